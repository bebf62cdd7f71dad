"""Where a model's files are: a folder, the pocket model, or a name on the Hugging Face hub."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from selfloop.workflows.errors import InputError

__all__ = ["model_folder"]


def model_folder(model: str) -> Path:
    """The Hugging Face folder of the initial model: a folder, the pocket model, or a hub name (fetched if need be)."""
    if model == "pocket":
        return Path(str(resources.files("selfloop.workflows.pocket") / "base"))
    if os.path.isdir(model):
        return Path(model).absolute()
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                model, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
            )
        )
    except Exception as error:  # the hub's client raises many kinds
        raise InputError(
            f"model={model} is no folder here, and the hub did not give it: {type(error).__name__}: {error}"
        ) from error
