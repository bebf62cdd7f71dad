"""Where metrics go: metrics.jsonl always, and TensorBoard, Ray's exporter, wandb or MLflow behind one protocol."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from selfloop.workflows.errors import InputError
from selfloop.workflows.store.disk import append, storing
from selfloop.workflows.store.metrics import Metrics, MetricsFile, metric_name

if TYPE_CHECKING:
    from selfloop.workflows.config import Config

__all__ = ["TRACKERS", "Tracker", "Trackers"]


class Tracker(Protocol):
    """A place for metrics. To add one, write these three methods and a line in TRACKERS."""

    def start(self, run_dir: Path, config: Config) -> None: ...

    def log(self, index: int, metrics: Metrics) -> None: ...

    def close(self) -> None: ...


class Trackers(MetricsFile):
    """All trackers of a run, beside metrics.jsonl."""

    def __init__(self, run_dir: Path, config: Config):
        super().__init__(run_dir)
        self.trackers: list[Tracker] = [TRACKERS[name]() for name in config.trackers]
        for tracker in self.trackers:
            with storing(self.path.parent, "what a tracker keeps"):
                tracker.start(self.path.parent, config)

    def tell(self, iteration: int, metrics: Metrics) -> None:
        for tracker in self.trackers:
            with storing(self.path.parent, "what a tracker keeps"):
                tracker.log(iteration, metrics)

    def close(self) -> None:
        """Flush and close all trackers. Every number is in metrics.jsonl: an error here must not hide how the run ended."""
        for tracker in self.trackers:
            with contextlib.suppress(Exception):
                tracker.close()


class TensorBoard:
    """Event files in RUN/tensorboard, written without torch or TensorFlow, and without a thread: its errors would be
    printed by nobody's leave."""

    def start(self, run_dir: Path, config: Config) -> None:
        folder, now = run_dir / "tensorboard", time.time()
        folder.mkdir(exist_ok=True)
        self.path = folder / f"events.out.tfevents.{int(now):010d}.{os.getpid()}"
        self.write(file_version="brain.Event:2", wall_time=now)

    def write(self, **fields: Any) -> None:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        made: Any = event_pb2  # its names are made when it is imported
        record = io.BytesIO()
        RecordWriter(record).write(made.Event(**fields).SerializeToString())
        append(self.path, record.getvalue())

    def log(self, index: int, metrics: Metrics) -> None:
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb

        values = [scalar_pb(name, value).value[0] for name, value in metrics.items()]
        self.write(wall_time=time.time(), step=index, summary={"value": values})

    def close(self) -> None:
        pass


class RayMetrics:
    """Gauges of Ray's Prometheus endpoint, where Ray runs."""

    def start(self, run_dir: Path, config: Config) -> None:
        self.run = run_dir.name
        self.gauges: dict[str, Any] = {}

    def log(self, index: int, metrics: Metrics) -> None:
        ray: Any = sys.modules.get("ray")  # asked, not imported: a local run has no Ray
        if ray is None or not ray.is_initialized():
            return
        gauge = importlib.import_module("ray.util.metrics").Gauge
        for name, value in {"iteration": float(index), **metrics}.items():
            if name not in self.gauges:
                made = gauge(f"selfloop_{metric_name(name)}", description=name, tag_keys=("run",))
                made.set_default_tags({"run": self.run})
                self.gauges[name] = made
            self.gauges[name].set(value)

    def close(self) -> None:
        self.gauges = {}


class Wandb:
    """Weights & Biases; a resumed run goes on under the same id."""

    def start(self, run_dir: Path, config: Config) -> None:
        wandb = optional("wandb")
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "selfloop"),
            name=run_dir.name,
            id=metric_name(str(run_dir.absolute()))[-64:],
            resume="allow",
            dir=str(run_dir),
            config=config.model_dump(mode="json"),
        )

    def log(self, index: int, metrics: Metrics) -> None:
        self.run.log(dict(metrics), step=index)

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """MLflow, at MLFLOW_TRACKING_URI or in RUN/mlruns."""

    def start(self, run_dir: Path, config: Config) -> None:
        self.mlflow = optional("mlflow")
        if "MLFLOW_TRACKING_URI" not in os.environ:
            self.mlflow.set_tracking_uri((run_dir / "mlruns").absolute().as_uri())
        self.mlflow.set_experiment("selfloop")
        self.mlflow.start_run(run_name=run_dir.name)
        self.mlflow.log_dict(config.model_dump(mode="json"), "config.json")

    def log(self, index: int, metrics: Metrics) -> None:
        self.mlflow.log_metrics(dict(metrics), step=index)

    def close(self) -> None:
        self.mlflow.end_run()


def optional(name: str) -> Any:
    """Import a tracker's library, or say how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"trackers names {name}, which is not installed. Install it (pip install 'selfloop[{name}]') or drop it"
        ) from error


TRACKERS: dict[str, Callable[[], Tracker]] = {
    "tensorboard": TensorBoard,
    "ray": RayMetrics,
    "wandb": Wandb,
    "mlflow": MLflow,
}
