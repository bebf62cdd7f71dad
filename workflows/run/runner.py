"""What both runtimes do alike: take over what is committed, complete nodes, note the models that were made."""

from __future__ import annotations

import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

from selfloop.actors.train.spec import TrainResult, TrainWork
from selfloop.actors.train.telling import Told
from selfloop.workflows.data.batches import Counts
from selfloop.workflows.errors import InputError
from selfloop.workflows.flow.graph import Graph
from selfloop.workflows.run.job import Job
from selfloop.workflows.run.models import made_by
from selfloop.workflows.run.node import Flow, make_flows
from selfloop.workflows.run.outcome import Outcome
from selfloop.workflows.run.reuse import take_node
from selfloop.workflows.run.signal import nothing_to_learn
from selfloop.workflows.run.watch import Stage
from selfloop.workflows.store.changes import differences
from selfloop.workflows.store.checkpoint import Place

__all__ = ["PART_ROWS", "Runner"]

PART_ROWS = 4096  # a part is written when it has this many rows, or when its node ends


class Runner:
    """Runs the graph of one iteration at a time; `run` is the runtime's own."""

    def __init__(self, job: Job):
        self.job = job
        self.flows: dict[str, Flow] = {}
        self.outcome = Outcome()

    def begin(self, graph: Graph) -> None:
        """Set up the state of every node, with what an earlier driver committed."""
        self.graph = graph
        self.outcome = Outcome()
        self.flows = make_flows(graph, self.job)
        for flow in self.flows.values():
            self.restore(flow)
            self.prepare(flow)

    def model_made(self, label: str) -> None:
        """A train node has ended: its model is `label`."""

    def prepare(self, flow: Flow) -> None:
        """Once the node's models are known: its content key, and its rows if another run has made them already."""
        if flow.key or not all(self.job.models.has(model) for model in flow.node.models):
            return
        inputs = {source.node.name: source.key for source in flow.inputs}
        if not all(inputs.values()):
            return
        now = self.job.under(flow.node)
        flow.made = flow.made or [now]
        flow.had = self.earlier_keys(flow)
        key = self.job.key(flow.node, self.graph, inputs, flow.made)
        if flow.written and flow.written not in flow.had:
            raise InputError(
                f"the rows of node {flow.node.name!r} of iteration {self.graph.iteration} were made by other code or other "
                f"package versions than run now (content key {flow.written}, now {key}), so new rows would not match them. "
                "Go on with the versions in environment.json, or start another run with reuse=<this run>, which takes what still "
                "matches"
            )
        ended = flow.complete or (flow.total is not None and len(flow.stored) >= flow.total)
        if (
            flow.made[-1] != now and not ended
        ):  # a part of it was made under other settings, the rest is under these
            flow.made = [*flow.made, now]
            key = self.job.key(flow.node, self.graph, inputs, flow.made)
        flow.key = flow.written if flow.complete and flow.written else key
        flow.had.add(flow.key)
        if not flow.complete and take_node(self.job, self.graph, flow):
            self.restore(flow)
            self.report(flow)

    def earlier_keys(self, flow: Flow) -> set[str]:
        """The keys that its committed parts may carry: what was made of an input before settings changed on the input's way
        carries the key that the input had then."""
        names = [source.node.name for source in flow.inputs]
        ways = [
            dict(zip(names, way, strict=True)) for way in product(*(source.had for source in flow.inputs))
        ]
        counts = range(1, len(flow.made) + 1)
        return {
            self.job.key(flow.node, self.graph, way, flow.made[:count]) for way in ways for count in counts
        }

    def restore(self, flow: Flow) -> None:
        """Take over a node that an earlier driver completed."""
        entry = self.job.folder.manifest(self.graph.iteration)["nodes"].get(flow.node.name)
        if entry is None:
            return
        if flow.node.training is None and len(flow.stored) != entry.get("batches", len(flow.stored)):
            self.job.folder.event("incomplete", iteration=self.graph.iteration, node=flow.node.name)
            return  # a part of it is gone: what is missing is made again
        flow.complete, flow.written = True, entry["key"]
        flow.made = entry.get("made", [])
        if flow.node.training is None:
            self.outcome.counts[flow.node.name] = Counts.of(entry)
        else:
            self.job.models.note(made_by(flow.node, self.graph), Place.of(entry["model"], self.job.folder))
            self.outcome.trained[flow.node.name] = entry.get("metrics", {})
            self.outcome.idle |= {flow.node.name} if entry.get("idle") else set()
        if flow.node.op is not None and flow.node.op.numbers:
            self.outcome.read_summary(flow.stored)

    def end(self, flow: Flow) -> None:
        """Complete the node if everything of it is committed."""
        count = flow.total
        if flow.complete or count is None or len(flow.stored) < count or flow.writing or flow.waiting:
            return
        flow.complete = True
        self.job.check_failures(self.graph.iteration, flow.node.name, flow.counted, done=True)
        entry = {
            **flow.about,
            "batches": count,
            **flow.counted.entry(),
            "parts": flow.parts,
            "checksums": flow.checksums,
        }
        self.job.folder.commit_node(self.graph.iteration, flow.node.name, entry)
        self.outcome.counts[flow.node.name] = flow.counted
        if flow.node.op is not None and flow.node.op.numbers:
            self.outcome.read_summary(flow.stored)
        self.report(flow)

    def carry_over(self, flow: Flow) -> bool:
        """Complete a train node that has nothing to learn (see `run.signal`) without a trainer; False if it has something."""
        training, made = flow.node.training, self.job.models.before(flow.node, self.graph)
        assert training is not None
        if made is None or not nothing_to_learn(flow.inputs[0].whole(), training.objective.factors):
            return False
        flow.sent = 1
        self.outcome.idle.add(flow.node.name)
        self.job.folder.event("carried", iteration=self.graph.iteration, node=flow.node.name)
        self.commit_model(flow, made, {"idle": True, "steps": 0, "metrics": {"steps": 0.0, "examples": 0.0}})
        return True

    def drop_steps(self, flow: Flow, work: TrainWork) -> None:
        """Drop a step checkpoint that ranks of other settings left: the steps after it would be of another training."""
        assert work.step_dir is not None
        now = self.job.under(flow.node)
        for path in sorted(Path(work.step_dir).glob("step-*/state.json")):
            held = json.loads(path.read_text(encoding="utf-8"))
            made = held.get("made", now)
            other = differences({name: made.get(name) for name in now}, now)
            if other:
                node, step = flow.node.name, held["step"]
                shutil.rmtree(work.step_dir, ignore_errors=True)
                self.job.folder.event("dropped", iteration=self.graph.iteration, node=node, step=step)
                self.job.say(
                    f"Node {node} begins its training again: its checkpoint of step {step} is dropped, because "
                    f"{'; '.join(other)}."
                )
                return

    def finish_training(self, flow: Flow, work: TrainWork, result: TrainResult) -> None:
        """A model was made."""
        made = Place(work.out, work.state_out, dict(result.receipt), result.checksum)
        flow.in_flight -= 1
        self.model_made(made_by(flow.node, self.graph).label)
        self.outcome.curves[flow.node.name] = result.curve
        self.commit_model(flow, made, {"steps": result.steps, "metrics": result.metrics})
        rows = int(result.metrics.get("examples", 0))
        self.job.progress(flow.node.name, Stage(1, 1, rows, complete=True))
        shutil.rmtree(work.step_dir or "", ignore_errors=True)
        self.job.folder.event(
            "trained", iteration=self.graph.iteration, node=flow.node.name, steps=result.steps,
            first_step=int(result.metrics.get("resumed_at_step", 0)),
        )  # fmt: skip

    def commit_model(self, flow: Flow, made: Place, told: dict[str, Any]) -> None:
        """Complete a train node: note where its model is, so that nodes which wait for it may run."""
        flow.complete = True
        self.job.models.note(made_by(flow.node, self.graph), made)
        entry = {"key": flow.key, "made": flow.made, **told, "model": made.entry(self.job.folder)}
        entry |= {"span": self.job.span} if self.job.span else {}
        self.job.folder.commit_node(self.graph.iteration, flow.node.name, entry)
        self.outcome.trained[flow.node.name] = told["metrics"]
        for later in self.flows.values():
            self.prepare(later)

    def told(self, flow: Flow, told: Told) -> None:
        """Tell the console how far a training is."""
        self.job.progress(flow.node.name, told)

    def report(self, flow: Flow) -> None:
        """Tell the console how far the node is, and stop a run whose rows mostly fail."""
        counted = flow.counted
        self.job.check_failures(self.graph.iteration, flow.node.name, counted, done=False)
        op = flow.node.op
        tokens = (counted.tokens or 0) if op is not None and "tokens" in op.metrics else 0
        what = op.phrase if op is not None and not flow.node.evaluation else ""
        stage = Stage(len(flow.stored), flow.total, counted.rows, tokens, flow.in_flight, flow.complete, what)
        self.job.progress(flow.node.name, stage)  # what is counted is committed
