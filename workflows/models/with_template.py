"""A model's folder with another chat template in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfloop.workflows.data.files import read_json
from selfloop.workflows.models.templates import OTHERS

if TYPE_CHECKING:
    from selfloop.workflows.models.codec import Codec

__all__ = ["lay_out"]


def lay_out(model: Path, codec: Codec, out: Path) -> Path:
    """The model's folder as `out`, with the codec's template as its only one: links to its files, and what says which tokens
    end a response to those who load it without Selfloop. An earlier `out` is replaced."""
    from selfloop.workflows.models.codec import listed_ends

    making = out.with_name(f".{out.name}.tmp")  # renamed when it is whole
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    for file in sorted(model.absolute().iterdir()):
        if file.is_file() and file.name not in OTHERS:
            (making / file.name).symlink_to(file)
    (making / OTHERS[0]).write_text(codec.tokenizer.chat_template, encoding="utf-8")
    settings = read_json(model / "tokenizer_config.json")
    if settings.pop("chat_template", None) is not None:
        replace(making / "tokenizer_config.json", settings)
    if codec.ends - listed_ends(model) - {codec.tokenizer.eos_token_id}:
        replace(making / "generation_config.json", generation(model) | {"eos_token_id": sorted(codec.ends)})
    shutil.rmtree(out, ignore_errors=True)
    making.rename(out)
    return out


def generation(model: Path) -> dict[str, Any]:
    """What generation_config.json says, or would say if transformers made it of config.json."""
    if (model / "generation_config.json").exists():
        return read_json(model / "generation_config.json")
    config = read_json(model / "config.json")
    return {name: config[name] for name in ("bos_token_id", "pad_token_id") if name in config}


def replace(path: Path, settings: dict[str, Any]) -> None:
    """A file in the place of the link of this name."""
    path.unlink(missing_ok=True)
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
