"""Joining or starting Ray."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import ray

from selfloop.workflows.config import Config
from selfloop.workflows.config.devices import bundles, joins
from selfloop.workflows.errors import EngineError, InputError
from selfloop.workflows.store.changes import kept_gpus

__all__ = ["HUGE_PAGES", "connect"]

HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""Training on CPU writes gigabytes of fresh memory a step, dear where a machine is short of it (docs/decisions.md)."""


def reaching(code: Path | None) -> dict[str, Any] | None:
    """The runtime environment of workers that find the run's copy of the user's modules, behind the working folder as long as
    the driver does; None where there is no copy."""
    if code is None or not code.is_dir():
        return None
    place, first = str(code), str(code) in sys.path

    def reach() -> None:  # by value: a worker may not know this module yet
        sys.path.insert(0 if first else len(sys.path), place)

    return {"worker_process_setup_hook": reach}


def connect(config: Config, device: str | None = None, code: Path | None = None) -> tuple[int, str]:
    """Join the cluster that RAY_ADDRESS or a job names, else start Ray here. (GPUs to use, the dashboard's address)

    device: what the run began on, and stays on. code: the run's copy of the user's modules. Raises InputError where the device,
    or what the config asks for, is not there.
    """
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    url = ""
    if not ray.is_initialized():
        joined = joins()
        os.environ.setdefault("GLIBC_TUNABLES", HUGE_PAGES)  # the actors of a Ray that starts here inherit it
        terminated = signal.getsignal(signal.SIGTERM)
        try:
            started = ray.init(
                address="auto" if joined else "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=reaching(code),
            )
        except Exception as error:  # Ray raises plain ones, too
            what = "join the cluster that RAY_ADDRESS names" if joined else "start Ray on this machine"
            raise EngineError(
                f"could not {what}: {type(error).__name__}: {error}. Nothing is lost; try again when the machine is less busy, "
                "or see the logs in /tmp/ray/session_latest/logs"
            ) from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(
                signal.SIGTERM, terminated
            )  # Ray puts its own in its place, which ends the process at once
        url = started.dashboard_url or ""
    there = ray.cluster_resources()
    gpus = kept_gpus(device, int(there.get("GPU", 0)))
    wanted = bundles(config, gpus)
    for kind in ("CPU", "GPU"):
        asked = sum(bundle.get(kind, 0) for bundle in wanted)
        if asked > there.get(kind, 0):
            raise InputError(
                f"the config asks for {asked:g} {kind}s (generator.replicas, trainer.ranks and their threads and gpus), and "
                f"the cluster has {there.get(kind, 0):g}. Ask for fewer, set placement=colocated, or add nodes"
            )
    return gpus, url
