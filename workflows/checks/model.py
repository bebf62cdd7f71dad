"""Is this a model that can be improved? Looked at file by file, without torch or transformers."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfloop.workflows.config import Config
from selfloop.workflows.models.lengths import positions_in

__all__ = ["ModelFindings", "check_model", "look_at_model"]

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")
MAX_HEADER = 100_000_000
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass
class ModelFindings:
    """What was found. parameters: 0 where the weights could not be counted."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    folder: Path | None = None
    parameters: int = 0
    positions: int | None = None


def check_model(config: Config, key: str = "model", broken: frozenset[str] = frozenset()) -> ModelFindings:
    """Problems of `model` or `judge_model`, with the settings that must fit it. broken: keys whose values were wrong."""
    facts = look_at_model(getattr(config, key), key, config.trust_remote_code)
    if key == "model" and not facts.problems:
        look_at_dropout(config, facts)
        if "prompts.template" not in broken:
            look_at_template(config, facts)
    longest = config.generator.max_model_len or config.generator.max_tokens
    if facts.positions and longest > facts.positions:
        setting = "max_model_len" if config.generator.max_model_len else "max_tokens"
        facts.problems.append(
            f"generator.{setting} is {longest}, and {key} {getattr(config, key)} has {facts.positions} positions "
            f"(max_position_embeddings). Lower generator.{setting}"
        )
    return facts


def look_at_dropout(config: Config, facts: ModelFindings) -> None:
    """Where `trainer.dropout` acts; the settings of an architecture are known to transformers alone."""
    if not config.trainer.dropout or facts.folder is None:
        return
    from transformers import AutoConfig

    from selfloop.actors.train.model.dropout import dropout_settings, no_dropout

    try:
        found = AutoConfig.from_pretrained(facts.folder)
    except ValueError:  # an architecture of its own code, or unknown: the trainer will say
        return
    names = dropout_settings(found)
    if names:
        facts.notes.append(
            f"trainer.dropout={config.trainer.dropout:g} acts on {', '.join(names)} of {config.model}"
        )
    else:
        facts.problems.append(no_dropout(config.trainer.dropout, f"model {config.model}", names))


def look_at_template(config: Config, facts: ModelFindings) -> None:
    """The chat template that messages are written with; one that is given needs the tokenizer, which takes seconds."""
    if facts.folder is None:
        return
    from selfloop.workflows.run.template_check import template_findings

    problems, notes = template_findings(config, facts.folder)
    facts.problems += problems
    facts.notes += notes


def look_at_model(name: str, key: str = "model", trust_remote_code: bool = False) -> ModelFindings:
    """Everything that can be seen of a model without loading it."""
    facts = ModelFindings()
    folder = find_folder(name, key, facts)
    if folder is None:
        return facts
    facts.folder = folder
    where = f"{key} {name}"
    facts.problems += [f"{where} {text}" for text in look_at_config(folder, facts, trust_remote_code)]
    facts.problems += [f"{where} {text}" for text in look_at_weights(folder, facts)]
    facts.problems += [f"{where} {text}" for text in look_at_tokenizer(folder)]
    return facts


def find_folder(name: str, key: str, facts: ModelFindings) -> Path | None:
    """The folder to look into, or None when there is none on this machine (said in `facts`)."""
    if name == "pocket":
        from selfloop.workflows.pocket.source import POCKET_MODEL

        return POCKET_MODEL
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        facts.problems.append(
            f"{key} {name} is a file, and must be a folder with config.json, weights and tokenizer"
        )
        return None
    parts = Path(name).parts
    meant_as_path = name.startswith(("/", ".", "~")) or len(parts) > 2 or name.endswith("/")
    if meant_as_path or (len(parts) == 2 and Path(parts[0]).is_dir()) or not HUB_NAME.fullmatch(name):
        facts.problems.append(
            f"{key} {name}: there is no such folder ({path.absolute()}). Mend the path, or give a hub name or pocket"
        )
        return None
    return cached(name, key, facts)


def cached(name: str, key: str, facts: ModelFindings) -> Path | None:
    """The folder of a hub model that was downloaded before."""
    home = os.environ.get("HF_HOME", str(Path("~/.cache/huggingface").expanduser()))
    cache = Path(os.environ.get("HF_HUB_CACHE", f"{home}/hub")) / f"models--{name.replace('/', '--')}"
    reference = cache / "refs" / "main"
    if reference.is_file():
        folder = cache / "snapshots" / reference.read_text(encoding="utf-8").strip()
        if (folder / "config.json").exists():
            return folder
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
        facts.problems.append(
            f"{key} {name} is no folder here and not in the cache ({cache.parent}), and HF_HUB_OFFLINE forbids to "
            "download it. Download it first, or give a folder"
        )
    else:
        facts.notes.append(
            f"{key} {name} is taken as a hub name: its files can be checked only when the run downloads them"
        )
    return None


def object_or_problem(path: Path) -> dict[str, Any] | str:
    """A JSON object, or what is wrong with the file, as the end of a sentence."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        return f"has a {path.name} that cannot be read ({error}). Fetch it again"
    except json.JSONDecodeError as error:
        return f"has a {path.name} that is not JSON (line {error.lineno}: {error.msg}). Fetch it again"
    return value if isinstance(value, dict) else f"has a {path.name} that is no JSON object. Fetch it again"


def look_at_config(folder: Path, facts: ModelFindings, trust_remote_code: bool) -> Iterator[str]:
    path = folder / "config.json"
    if not path.exists():
        held = "is empty" if not any(folder.iterdir()) else "has no config.json"
        yield f"{held}, so its architecture is unknown. Give a Hugging Face model folder (save_pretrained makes one)"
        return
    config = object_or_problem(path)
    if isinstance(config, str):
        yield config
        return
    if "model_type" not in config:
        yield "has a config.json without model_type. Save the model again with save_pretrained"
    if "auto_map" in config and not trust_remote_code:
        yield (
            "needs code of its own (auto_map in config.json), which is not run unasked. "
            "If you trust it, set trust_remote_code=true"
        )
    facts.positions = positions_in(config)


def look_at_weights(folder: Path, facts: ModelFindings) -> Iterator[str]:
    index = folder / "model.safetensors.index.json"
    files = sorted(folder.glob("*.safetensors"))
    if index.exists():
        held = object_or_problem(index)
        if isinstance(held, str):
            yield held
            return
        files = [folder / name for name in sorted(set(held.get("weight_map", {}).values()))]
        missing = [file.name for file in files if not file.exists()]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            yield f"lacks the weights file {missing[0]}{more} that its index names. Fetch it again"
            files = [file for file in files if file.exists()]
    elif not files:
        other = next(
            (file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".gguf")), None
        )
        if other:
            yield (
                f"has its weights in {other}, and only safetensors are read (other formats can run code). Convert it: "
                "AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)"
            )
        else:
            yield "has no weights (*.safetensors). Fetch them, or give another folder"
        return
    for file in files:
        count = count_parameters(file)
        if isinstance(count, str):
            yield count
        else:
            facts.parameters += count


def count_parameters(path: Path) -> int | str:
    """Parameters in a safetensors file, from its header; or what is wrong, as the end of a sentence."""
    broken = f"has a broken weights file {path.name}"
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER):
                pointer = " (it looks like a Git LFS pointer: git lfs pull)" if size < 1000 else ""
                return f"{broken}: it is no safetensors file{pointer}. Fetch it again"
            header = json.loads(file.read(length))
    except (OSError, ValueError) as error:
        return f"{broken}: {error}. Fetch it again"
    tensors = [value for name, value in header.items() if name != "__metadata__"]
    end = max((tensor["data_offsets"][1] for tensor in tensors), default=0)
    if size != 8 + length + end:
        return f"{broken}: {8 + length + end:,} bytes were announced, and it has {size:,}. Fetch it again"
    return sum((t["data_offsets"][1] - t["data_offsets"][0]) // BYTES.get(t["dtype"], 1) for t in tensors)


def look_at_tokenizer(folder: Path) -> Iterator[str]:
    if not any((folder / name).exists() for name in TOKENIZERS):
        yield "has no tokenizer (tokenizer.json). Copy the files of the model it was made from"
        return
    settings = folder / "tokenizer_config.json"
    if settings.exists() and isinstance(wrong := object_or_problem(settings), str):
        yield wrong
