"""What `model.adapt(…)` changes about a model: frozen objects that recipes hand over."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["ScalarHead", "Surgery"]


class Surgery(BaseModel):
    """Something that is done to a model before it is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ScalarHead(Surgery):
    """A number instead of words: a linear layer without bias on the last hidden state, zero until it is trained.

    For a reward model (`measure(…, "rewards")`: at the last token) and for a critic (`measure(…, "values")`: before each
    token). Everything under the head trains with it (or the adapters do, with `trainer.lora`). The checkpoint is
    transformers' `…ForSequenceClassification` with one label.
    """
