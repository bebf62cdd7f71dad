"""Does this machine have what the config asks for: processors, memory, disk, programs, a folder to write to?"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from selfloop.workflows.config import Config
from selfloop.workflows.config.devices import bundles, joins
from selfloop.workflows.errors import InputError
from selfloop.workflows.store.changes import changes, kept_gpus, unconfirmed
from selfloop.workflows.store.disk import size
from selfloop.workflows.store.folder import RunFolder

__all__ = [
    "check_folder",
    "check_machine",
    "check_packages",
    "check_space",
    "count_cpus",
    "count_gpus",
    "told_changes",
]

GIB = 2**30
TRAINING_BYTES = 16  # a parameter: fp32 weights, gradients and two moments of Adam
FROZEN_BYTES = 5  # a parameter under adapters: fp32 weights, and room for the adapters
SERVED_BYTES = 4  # a parameter of a float32 checkpoint, which training goes on from
MIXED_BYTES = 6  # a parameter: the bfloat16 checkpoint that is served, and float32 master weights


def count_gpus() -> int:
    """NVIDIA GPUs that this process may use, counted without torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1", "NoDevFiles"):
        return 0
    there = gpus_in_machine()
    return there if visible is None else min(there, len(visible.split(",")))


@functools.cache  # nvidia-smi takes a while
def gpus_in_machine() -> int:
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10, check=False)
        if listed.returncode == 0:
            return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    except (OSError, subprocess.TimeoutExpired):
        pass
    driver = Path("/proc/driver/nvidia/gpus")
    if driver.is_dir():
        return len(list(driver.iterdir()))
    return sum(path.name[6:].isdigit() for path in Path("/dev").glob("nvidia*"))


def count_cpus() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def check_machine(config: Config, device: str | None = None) -> Iterator[str]:
    """More GPUs or CPUs asked than there are. device: what the run began on, if it goes on."""
    if joins():  # what the cluster has is counted when it is joined
        return
    try:
        gpus = kept_gpus(device, count_gpus())
    except InputError as error:
        yield str(error)
        return
    wanted = bundles(config, gpus)
    ways = {
        "GPU": "Lower generator.replicas, generator.gpus, trainer.ranks or trainer.gpus",
        "CPU": "Lower generator.replicas, generator.threads, trainer.ranks or trainer.threads",
    }
    for kind, there in (("GPU", gpus), ("CPU", count_cpus())):
        asked = sum(bundle.get(kind, 0.0) for bundle in wanted)
        if asked > there:
            together = "" if config.placement == "colocated" else ", or set placement=colocated"
            yield f"the config asks for {asked:g} {kind}s, and this machine has {there}. {ways[kind]}{together}"
    memory = config.generator.memory
    if gpus and memory is not None and memory > 1:
        yield (
            f"generator.memory is {memory:g}: on a GPU it is the share of the device that the engine takes, at most 1 "
            "(GiB of key-value cache on CPU only). Set e.g. generator.memory=0.85, or leave it out"
        )


def check_packages(config: Config) -> Iterator[str]:
    """Programs that the config uses and that are not installed."""
    stack = "gpu" if count_gpus() else "cpu"
    needed = {"torch": stack, "deepspeed": stack, "transformers": stack}
    if config.generator.engine == "vllm":
        needed["vllm"] = stack
    if config.judge == "math":
        needed["math_verify"] = "math"
    needed |= {name: name for name in config.trackers if name in ("wandb", "mlflow")}
    by_extra: dict[str, list[str]] = {}
    for module, extra in needed.items():
        if importlib.util.find_spec(module) is None:
            by_extra.setdefault(extra, []).append(module)
    for extra, modules in by_extra.items():
        one = len(modules) == 1
        yield (
            f"{', '.join(modules)} {'is' if one else 'are'} not installed, and this config needs "
            f"{'it' if one else 'them'}. Install: pip install 'selfloop[{extra}]'"
        )


def check_folder(config: Config | None, run_dir: Path, confirmed: bool = False) -> Iterator[str]:
    """A run folder that cannot be written, that belongs to another config (not compared with None), or whose run goes on
    only when the user says yes."""
    blocked = unwritable(run_dir)
    if blocked:
        yield blocked
        return
    folder = RunFolder(run_dir)
    try:
        held = folder.config()
        folder.refuse_older()
    except InputError as error:
        yield str(error)
        return
    if held is None:
        try:
            folder.refuse_strangers()
        except InputError as error:
            yield str(error)
    elif config is not None and folder.committed():
        wanted = config.model_dump(mode="json")
        changed, question = changes(held, wanted), unconfirmed(held, wanted)
        if changed.refused:
            yield f"{run_dir} holds a run of another config: {changed.refusal}"
        if question and not confirmed:
            yield question


def told_changes(config: Config, run_dir: Path) -> Iterator[str]:
    """What is said when a run goes on with other resources than it had."""
    folder = RunFolder(run_dir)
    changed = changes(folder.config() or {}, config.model_dump(mode="json"))
    if not folder.committed() or changed.refused:
        return
    other = [line for line in changed.free if not line.startswith("iterations ")]
    if other:
        yield f"the run goes on with other settings that do not change what it makes: {'; '.join(other)}"
    if changed.noted:
        yield (
            f"{'; '.join(changed.noted)}: what is made from here on may differ in its last bits from what an undisturbed run "
            "makes; manifests say under which settings each node was made"
        )
    if folder.record().get("resolved", {}).get("device") == "cpu" and count_gpus():
        yield "there are GPUs here, and the run stays on CPU, on which it began"


def unwritable(run_dir: Path) -> str | None:
    """Why nothing can be written there, tried with an empty folder that is removed again."""
    place = run_dir.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        return f"run folder {run_dir} cannot be made: {place} is a file. Choose another --run-dir"
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".selfloop-", dir=place))
    except OSError as error:
        why = error.strerror or str(error)
        return f"run folder {run_dir} cannot be written ({place}: {why}). Choose another --run-dir"
    return None


def check_space(config: Config, run_dir: Path, parameters: int) -> Iterator[str]:
    """Too little disk for the checkpoints, or too little memory to train on CPU."""
    if not parameters or joins():
        return
    folder = RunFolder(run_dir)
    unwritten = [
        index
        for index in range(max(folder.completed(), 0) + 1, config.iterations + 1)
        if not (folder.iteration(index) / "policy").is_dir()
    ]
    if not unwritten:
        return
    place = run_dir.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    kept = min(len(unwritten), config.checkpoints.keep or len(unwritten))
    dtype = config.trainer.dtype or ("bfloat16" if count_gpus() else "float32")
    need = parameters * (SERVED_BYTES if dtype == "float32" else MIXED_BYTES) * kept
    if need > free:
        yield (
            f"the checkpoints still to be written need about {size(need)} (iterations {unwritten[0]} to {unwritten[-1]}), and "
            f"{place} has {size(free)} free. Free about {size(need - free)} there, set checkpoints.keep, or choose another "
            "--run-dir; nothing that was committed is lost"
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    each = FROZEN_BYTES if config.trainer.lora else TRAINING_BYTES
    need = parameters * (each + 4 * config.generator.replicas)
    if not count_gpus() and need > memory:
        yield (
            f"training {parameters / 1e9:.1f} B parameters on CPU needs about {need / GIB:.0f} GiB of memory, and this "
            f"machine has {memory / GIB:.0f} GiB. Take a smaller model, trainer.lora.rank=16, or a machine with GPUs"
        )
