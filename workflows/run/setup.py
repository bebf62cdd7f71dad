"""From a config to what a run needs: the recipe, its prompts, the checker, the planner, the engines' specs. No Ray here."""

from __future__ import annotations

import atexit
import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from selfloop.workflows.config import Config
from selfloop.workflows.data.batches import column_hash
from selfloop.workflows.data.schema import Message
from selfloop.workflows.errors import InputError
from selfloop.workflows.flow.iteration import SourceInfo
from selfloop.workflows.flow.plan import Planner
from selfloop.workflows.flow.recipe import Recipe
from selfloop.workflows.judges.base import Verifier
from selfloop.workflows.judges.verifiers import verifier
from selfloop.workflows.models.find import model_folder
from selfloop.workflows.models.with_template import lay_out
from selfloop.workflows.recipes import find_method
from selfloop.workflows.sources import load_prompts, load_source
from selfloop.workflows.store.checkpoint import Place
from selfloop.workflows.store.folder import RunFolder
from selfloop.workflows.store.modules import reach_modules
from selfloop.workflows.store.reading import open_run

__all__ = ["Setup", "open_config"]

PROBES = 8
GAP_LIMIT = {"float32": 1e-3, "bfloat16": 0.25}


def scratch() -> Path:
    """A folder that goes with this process."""
    place = tempfile.mkdtemp(prefix="selfloop-")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return Path(place)


@dataclass(frozen=True)
class Setup:
    """Everything that is derived from the config alone. home: the run's folder; None: nothing that is made for the run stays.
    read: all rows of sources that were read already, by name."""

    config: Config
    home: Path | None = None
    read: Mapping[str, pa.Table] = field(default_factory=dict)

    @cached_property
    def recipe(self) -> Recipe:
        method = find_method(self.config.recipe)
        if method is None:
            raise InputError(f"there is no method {self.config.recipe!r}. `selfloop methods` lists them")
        return method(**self.config.settings)

    @cached_property
    def sources(self) -> dict[str, pa.Table]:
        """The rows of every source: prompts, heldout, and the config's named ones."""
        train, heldout = load_prompts(self.config.prompts, self.config.seed, self.read)
        more = {
            name: self.read[name]
            if name in self.read
            else load_source(spec, self.config.seed, responses=True)
            for name, spec in self.config.data.items()
        }
        return {"prompts": train, "heldout": heldout, **more}

    @cached_property
    def hashes(self) -> dict[str, dict[str, str]]:
        """Of each source: a hash of every column."""
        return {
            name: {column: column_hash(table[column]) for column in table.column_names}
            for name, table in self.sources.items()
        }

    @property
    def contents(self) -> dict[str, dict[str, Any]]:
        """Of each source: its number of rows, and a hash of what is in them."""
        return {
            name: {
                "rows": self.sources[name].num_rows,
                "hash": hashlib.sha256(repr(sorted(columns.items())).encode()).hexdigest()[:16],
            }
            for name, columns in self.hashes.items()
        }

    @cached_property
    def checker(self) -> Verifier | None:
        """The verifier of answers: the config's, else exact text for the pocket world, else a number."""
        if self.config.judge is not None:
            return verifier(self.config.judge)
        heldout = self.sources["heldout"]["answer"]
        if heldout.null_count == len(heldout):
            return None
        return verifier("exact" if self.config.prompts.source == "pocket" else "number")

    @cached_property
    def planner(self) -> Planner:
        infos = {name: self.info(name, table) for name, table in self.sources.items()}
        config = self.config
        return Planner(
            self.recipe,
            infos,
            config.evaluation,
            config.iterations,
            self.checker,
            config.generator.max_tokens,
        )

    def info(self, name: str, table: pa.Table) -> SourceInfo:
        answers = table["answer"]
        has_answers = answers.null_count < len(answers)
        columns = frozenset(table.column_names) - (frozenset() if has_answers else {"answer"})
        per_iteration = self.config.prompts.per_iteration if name == "prompts" else None
        return SourceInfo(table.num_rows, columns, has_answers, per_iteration)

    @cached_property
    def base(self) -> Path:
        """The folder of the initial model as it was given."""
        return model_folder(self.config.model)

    @cached_property
    def folder(self) -> Path:
        """The initial model as the run sees it: with `prompts.template`, its files under another chat template."""
        template = self.config.prompts.template
        if template is None:
            return self.base
        from selfloop.workflows.models.codec import codec_of

        codec = codec_of(str(self.base), self.config.trust_remote_code, template)
        return lay_out(self.base, codec, (self.home or scratch()) / "model")

    @cached_property
    def model_hash(self) -> str:
        """A hash of the initial model's files: weights, config, tokenizer and template."""
        digest = hashlib.sha256()
        for path in sorted(self.folder.iterdir()):
            if path.suffix in (".safetensors", ".json", ".jinja") and path.is_file():
                digest.update(path.name.encode())
                with open(path, "rb") as file:
                    while chunk := file.read(2**24):
                        digest.update(chunk)
        return digest.hexdigest()[:16]

    @property
    def initial(self) -> Place:
        """The initial model as the first of a run's models."""
        return Place(str(self.folder), None, None, self.model_hash)

    @property
    def probe_messages(self) -> list[list[Message]]:
        """The fixed batch on which engines and trainer are compared after every publish."""
        return self.sources["heldout"]["prompt"].slice(0, PROBES).to_pylist()

    def specs(self, gpus: int) -> Any:
        """What the actors start with: (engine spec, trainer spec, probe limit)."""
        from selfloop.actors.generate.spec import EngineSpec
        from selfloop.actors.train.spec import TrainerSpec

        config, device = self.config, "cuda" if gpus else "cpu"
        default = "bfloat16" if gpus else "float32"
        generator, trainer = config.generator, config.trainer
        dtype = generator.dtype or default
        engine = EngineSpec(generator.engine, str(self.folder), dtype, device, generator.threads, generator.max_model_len,
                            generator.max_num_seqs, generator.memory, dict(generator.options))  # fmt: skip
        fields = trainer.model_dump(exclude={"gpus", "dtype", "lora", "schedule"})
        fields |= {"schedule": trainer.schedule.kind, "floor": trainer.schedule.floor, "lora": trainer.lora,
                   "max_model_len": generator.max_model_len}  # fmt: skip
        spec = TrainerSpec(str(self.folder), device=device, dtype=trainer.dtype or default, **fields)
        return engine, spec, config.probe_limit or GAP_LIMIT[dtype]


def open_config(run: str | Path, going_on: bool = False) -> tuple[Path, Config]:
    """(absolute folder, config) of a run. Raises InputError, also for a config of another version; going_on: and for a run
    of an older format."""
    folder, held = open_run(run)
    folder = folder.absolute()
    if going_on:
        RunFolder(folder).refuse_older()
    reach_modules(RunFolder(folder))
    try:
        return folder, Config.model_validate(held)
    except ValueError as error:
        raise InputError(
            f"{folder}/config.json does not fit this version of Selfloop: {error}. Take the version that its "
            "environment.json names"
        ) from error
