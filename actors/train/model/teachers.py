"""Whole distributions: columns that an objective reads of the policy's and a frozen teacher's probabilities of every token.

`token_kl`: KL(reference || policy). `kl_NAME`: KL(frozen[NAME] || policy). `correct`: 1 where the policy's likeliest token
is the target. They are made inside the policy's forward, a few positions at a time, computed again in the backward pass,
so no (tokens, vocabulary) matrix is kept. Each rank holds its teachers whole, whatever the ZeRO stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from selfloop.actors.train.model.attention import lies_flat, states, use
from selfloop.actors.train.model.heads import Pooled
from selfloop.actors.train.model.logprobs import logit_scale, scaled
from selfloop.actors.train.rows.examples import of_distributions
from selfloop.workflows.errors import TrainerError
from selfloop.workflows.objectives.maths import full_kl

if TYPE_CHECKING:
    from selfloop.actors.train.model.zero import Sharded
    from selfloop.actors.train.rows.micro import Micro
    from selfloop.actors.train.spec import TrainerSpec, TrainWork
    from selfloop.workflows.objectives.base import Objective

__all__ = ["Teacher", "Teaching", "extra_of"]

CHUNK_BYTES = 64 * 2**20  # of float32 logits
Logits = Callable[[Tensor], Tensor]


class Teacher:
    """A frozen causal language model."""

    def __init__(self, folder: str, spec: TrainerSpec):
        from transformers import AutoModelForCausalLM

        kind: Any = AutoModelForCausalLM
        model = kind.from_pretrained(folder, dtype=getattr(torch, spec.dtype), use_safetensors=True)
        use(model)
        self.model = model.to(spec.device).eval().requires_grad_(False)
        self.flat = lies_flat(model, spec.device)
        self.head: Any = model.get_output_embeddings()
        self.scale, self.cap = logit_scale(model.config)

    @torch.no_grad()
    def states(self, micro: Micro) -> Tensor:
        """(trained, width) hidden states that predict the micro-batch's trained tokens."""
        found = states(self.model, micro.input_ids, micro.layout)
        return found.index_select(0, micro.index)

    @torch.no_grad()
    def logits(self, states: Tensor) -> Tensor:
        """(tokens, vocabulary), float32."""
        return scaled(self.head(states), self.scale, self.cap)


@dataclass(frozen=True)
class Teaching:
    """reads: what is read of each view, in order. teachers: by the name of the read."""

    reads: Mapping[str, tuple[str, ...]]
    teachers: Mapping[str, Teacher]

    @property
    def flat(self) -> bool:
        """Whether all teachers take sequences end to end."""
        return all(teacher.flat for teacher in self.teachers.values())

    def columns(self, micro: Micro) -> Callable[[Tensor, Tensor, Logits], Tensor]:
        """What the policy's forward calls with its (trained, width) states, the targets and its head's logits: all columns
        of all views, flat."""
        theirs = {name: teacher.states(micro) for name, teacher in self.teachers.items()}

        def run(hidden: Tensor, targets: Tensor, logits: Logits) -> Tensor:
            made = [hidden.new_zeros(0, dtype=torch.float32)]
            for view, names in self.reads.items():
                span = micro.spans.get(view)
                if span is not None:
                    part = {name: theirs[name][span] for name in names if name in theirs}
                    made.append(self.of_view(names, hidden[span], targets[span], part, logits).reshape(-1))
            return torch.cat(made)

        return run

    def of_view(
        self,
        names: tuple[str, ...],
        hidden: Tensor,
        targets: Tensor,
        theirs: Mapping[str, Tensor],
        logits: Logits,
    ) -> Tensor:
        """(reads, tokens) of one view, by chunks of positions."""

        def chunk(mine: Tensor, places: slice) -> Tensor:
            policy = logits(mine)
            columns: list[Tensor] = []
            for name in names:
                if name == "correct":
                    columns.append((policy.detach().argmax(-1) == targets[places]).to(policy.dtype))
                else:
                    columns.append(full_kl(policy, self.teachers[name].logits(theirs[name][places])))
            return torch.stack(columns)

        heads = [len(teacher.head.weight) for teacher in self.teachers.values()]
        vocabulary = heads[0] if heads else 2**16  # the policy's is not known here; most are of this order
        rows = max(1, CHUNK_BYTES // (4 * vocabulary))
        slices = [slice(start, start + rows) for start in range(0, len(hidden), rows)]
        made = [checkpoint(chunk, hidden[places], places, use_reentrant=False) for places in slices]
        return torch.cat([part for part in made if isinstance(part, Tensor)], -1)

    def split(self, micro: Micro, outputs: Tensor) -> dict[str, Tensor]:
        """`VIEW.READ` -> (rows, tokens), out of what the forward gave."""
        found: dict[str, Tensor] = {}
        start = len(micro.targets)
        for view, names in self.reads.items():
            span = micro.spans[view]
            for name in names:
                size = span.stop - span.start
                found[f"{view}.{name}"] = micro.spread_part(outputs[start : start + size], view)
                start += size
        return found


def extra_of(spec: TrainerSpec, work: TrainWork, model: Sharded) -> Teaching | Pooled | None:
    """What the objective reads beside log-probs or scalars, its teachers loaded; None if that is nothing."""
    pooled = tuple(view for view, names in work.objective.reads.items() if "hidden" in names)
    if pooled:
        return Pooled(pooled)
    reads = reads_of(work.objective)
    if not reads:
        return None
    vocabulary = model.module.model.config.get_text_config().vocab_size
    who, teachers, loaded = type(work.objective).__name__, dict[str, Teacher](), dict[str, Teacher]()
    for name in dict.fromkeys(name for names in reads.values() for name in names if name != "correct"):
        key = name.removeprefix("kl_")
        folder = work.reference if name == "token_kl" else work.frozen.get(key)
        if folder is None:
            way = "reference=model" if name == "token_kl" else f"frozen={{{key!r}: model}}"
            raise TrainerError(
                f"{who} reads {name}, the divergence from a teacher that was not given. Pass {way} to train"
            )
        if folder not in loaded:
            loaded[folder] = Teacher(folder, spec)
        teachers[name] = loaded[folder]
        theirs = int(teachers[name].model.config.get_text_config().vocab_size)
        if theirs != vocabulary:
            raise TrainerError(
                f"{who} compares distributions, and the teacher in {folder} has {theirs} tokens where the policy has "
                f"{vocabulary}. Both must have one tokenizer and vocabulary"
            )
    return Teaching(reads, teachers)


def reads_of(objective: Objective) -> dict[str, tuple[str, ...]]:
    """Of each view what needs whole distributions."""
    found = {
        view: tuple(name for name in names if of_distributions(name))
        for view, names in objective.reads.items()
    }
    return {view: names for view, names in found.items() if names}
