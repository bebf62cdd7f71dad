"""A small plain sampler for measuring the pocket world: transformers, one process, no engine.

The runs of Selfloop sample with its engines; this one exists so that the world can be measured and its worth shown
without them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfloop.workflows.data.schema import Message
from selfloop.workflows.models.rendering import Rendering

__all__ = ["Player", "Said", "load"]

ROWS = 2048  # sequences decoded together


@dataclass(frozen=True)
class Said:
    """One sampled reply: its tokens with the end token if one came, and its text."""

    ids: tuple[int, ...]
    text: str


@dataclass
class Player:
    """A model with its tokenizer."""

    model: Any
    tokenizer: Any

    def encode(self, prompts: Sequence[list[Message]]) -> list[list[int]]:
        """Token ids of the prompts, ready for a reply."""
        rendering = Rendering(self.tokenizer)
        return [rendering.prompt(messages) for messages in prompts]

    def sample(
        self,
        prompts: Sequence[list[Message]],
        n: int = 1,
        temperature: float = 1.0,
        seed: int = 0,
        most: int = 24,
    ) -> list[list[Said]]:
        """n replies to each prompt, of at most `most` tokens; temperature 0 is greedy."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        found: list[list[Said]] = [[] for _ in prompts]
        with torch.inference_mode():
            for rows, ids in _equal_lengths(self.encode(prompts), max(1, ROWS // n)):
                replies = self._decode(ids, n, temperature, generator, most)
                texts = self.tokenizer.batch_decode(replies, skip_special_tokens=True)
                for place, (reply, text) in enumerate(zip(replies, texts, strict=True)):
                    found[rows[place // n]].append(Said(tuple(reply), text))
        return found

    def _decode(self, ids: Any, n: int, temperature: float, generator: Any, most: int) -> list[list[int]]:
        import torch

        end = self.tokenizer.eos_token_id
        out = self.model(input_ids=ids, use_cache=True, logits_to_keep=1)
        cache, logits = out.past_key_values, out.logits[:, -1].repeat_interleave(n, 0)
        cache.batch_repeat_interleave(n)
        done = torch.zeros(len(logits), dtype=torch.bool)
        steps = []
        for _ in range(most):
            token = logits.argmax(-1)
            if temperature > 0:
                probabilities = torch.softmax(logits / temperature, -1)
                token = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
            steps.append(torch.where(done, -1, token))
            done |= token == end
            if bool(done.all()):
                break
            logits = self.model(input_ids=token[:, None], past_key_values=cache, use_cache=True).logits[:, -1]
        return [[token for token in row if token >= 0] for row in torch.stack(steps, 1).tolist()]

    def label_logprobs(self, prompts: Sequence[list[Message]], labels: Sequence[str]) -> list[list[float]]:
        """Log-probs of the labels as next tokens, nats, one row a prompt."""
        import torch

        names = [self.tokenizer.encode(label, add_special_tokens=False)[0] for label in labels]
        found: list[list[float]] = [[] for _ in prompts]
        with torch.inference_mode():
            for rows, ids in _equal_lengths(self.encode(prompts), ROWS):
                logits = self.model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1]
                for row, values in zip(rows, torch.log_softmax(logits, -1)[:, names].tolist(), strict=True):
                    found[row] = values
        return found


def _equal_lengths(ids: list[list[int]], most: int) -> Any:
    """(places, tensor) of prompts of equal length, so that nothing is padded."""
    import torch

    groups: dict[int, list[int]] = defaultdict(list)
    for place, tokens in enumerate(ids):
        groups[len(tokens)].append(place)
    for length in sorted(groups):
        for start in range(0, len(groups[length]), most):
            rows = groups[length][start : start + most]
            yield rows, torch.tensor([ids[place] for place in rows])


def load(folder: Path | str) -> Player:
    """The model of a Hugging Face folder, in fp32 on the CPU."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype="float32")
    return Player(model.eval(), AutoTokenizer.from_pretrained(str(folder)))
