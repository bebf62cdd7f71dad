"""Talk to a checkpoint of a run: lines of a terminal or of a pipe, answers streamed token by token."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from selfloop.workflows.data.schema import Message
from selfloop.workflows.errors import InputError
from selfloop.workflows.store.folder import RunFolder
from selfloop.workflows.store.reading import open_run

__all__ = ["chat", "checkpoint_of"]

Reply = Callable[[list[Message]], str]
HELP = "Type a message and press Enter; /new starts a new conversation, Ctrl-D ends."


def checkpoint_of(run: str | Path, iteration: int | None = None) -> tuple[Path, int]:
    """(folder, iteration) of a policy: of this iteration, else of the last that has one. 0 is the initial policy."""
    folder, config = open_run(run)
    held = RunFolder(folder)
    there = [index for index in held.iterations() if (held.policy(index) / "config.json").is_file()]
    wanted = max(there, default=0) if iteration is None else iteration
    if wanted == 0:
        return initial(folder, config), 0
    if wanted not in there:
        known = ", ".join(map(str, [0, *there]))
        raise InputError(
            f"{folder} has no checkpoint of iteration {wanted}. It has {known}: choose one with --iteration"
        )
    return held.policy(wanted), wanted


def initial(run: Path, config: Mapping[str, Any]) -> Path:
    """The folder of a run's initial model; the run's own one where it has another chat template."""
    from selfloop.workflows.models.find import model_folder

    if (own := run / "model").is_dir():
        return own
    model, start = str(config.get("model", "pocket")), RunFolder(run).started_in()
    there = start is not None and model != "pocket" and (start / model).is_dir()
    return model_folder(str(start / model) if start is not None and there else model)


def load(folder: Path, temperature: float, max_tokens: int) -> Reply:
    """A function that answers messages, printing tokens as they come."""
    import os

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import torch
    from transformers import AutoModelForCausalLM, TextStreamer
    from transformers.utils import logging

    from selfloop.workflows.models.codec import Codec

    logging.disable_progress_bar()
    codec = Codec(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype)
    model = model.to(device).eval()
    streamer = TextStreamer(codec.tokenizer, skip_prompt=True, skip_special_tokens=True)
    ends = sorted(codec.ends)
    own = codec.tokenizer.pad_token_id
    sampling: dict[str, Any] = {"do_sample": temperature > 0, "eos_token_id": ends or None}
    sampling["pad_token_id"] = own if own is not None else next(iter(ends), None)
    if temperature > 0:
        sampling["temperature"] = temperature

    def reply(messages: list[Message]) -> str:
        ids = torch.tensor([codec.encode(messages)], device=device)
        with torch.inference_mode():
            made = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_tokens,
                streamer=streamer,
                **sampling,
            )
        return codec.decode([made[0, ids.shape[1] :].tolist()])[0]

    return reply


def chat(reply: Reply, lines: IO[str] | None = None, interactive: bool | None = None) -> None:
    """Answer each line until the input ends. In a pipe every line is a conversation of its own."""
    source = lines or sys.stdin
    talking = source.isatty() if interactive is None else interactive
    if talking:
        print(HELP, flush=True)
    history: list[Message] = []
    for text in asked(source, talking):
        if text == "/new" or not talking:
            history = []
        if text == "/new":
            print("(a new conversation)", flush=True)
            continue
        history.append({"role": "user", "content": text})
        try:
            answer = reply(history)
        except KeyboardInterrupt:
            print("\n(stopped)", flush=True)
            history.pop()
            if not talking:
                raise
            continue
        history.append({"role": "assistant", "content": answer})


def asked(source: IO[str], talking: bool) -> Iterator[str]:
    """Lines that were typed or piped in, without empty ones."""
    if talking and source is sys.stdin:
        import contextlib
        import importlib

        with contextlib.suppress(ImportError):
            importlib.import_module("readline")  # arrow keys and history for input()
        while True:
            try:
                text = input("you> ").strip()
            except EOFError:
                print()
                return
            if text:
                yield text
    for line in source:
        if line.strip():
            yield line.strip()
