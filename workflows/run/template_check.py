"""Does `prompts.template` fit the model? Seen on short conversations, with the model's tokenizer, before an actor starts."""

from __future__ import annotations

import re
from pathlib import Path

from selfloop.workflows.config import Config
from selfloop.workflows.data.schema import Message
from selfloop.workflows.models.codec import Codec, codec_of
from selfloop.workflows.models.templates import BUILT_IN, NO_TEMPLATE, has_template
from selfloop.workflows.run.fitting import Ruler

__all__ = ["template_findings"]

MARK = re.compile(r"<\|[^<>|\s]+\|>|</?s>")  # how templates spell control tokens
ASK: Message = {"role": "user", "content": "selfloop asks 7"}  # words that no template has of its own
SAID: Message = {"role": "assistant", "content": "selfloop says 8"}


def template_findings(config: Config, folder: Path) -> tuple[list[str], list[str]]:
    """(problems, notes) of the chat template that messages are written with for the model in `folder`."""
    given, model = config.prompts.template, f"model {config.model}"
    if given is None:
        return ([] if has_template(folder) else [f"{model} {NO_TEMPLATE}"]), []
    ruler = Ruler(folder, config.trust_remote_code, given)
    named = f"prompts.template ({given})" if given in BUILT_IN else "the chat template of prompts.template"
    others = " or ".join(name for name in BUILT_IN if name != given)
    system: list[Message] = (
        [{"role": "system", "content": config.prompts.system}] if config.prompts.system else []
    )
    if problem := refusal(ruler, named, others, system) or endless(ruler.codec, named, model):
        return [problem], []
    notes = [replaced(ruler, named, model), shown(ruler.codec, named, model, [*system, ASK]),
             headless(ruler.codec, named), unknown(ruler.codec, named, model)]  # fmt: skip
    return [], [note for note in notes if note]


def refusal(ruler: Ruler, named: str, others: str, system: list[Message]) -> str:
    """Why the template takes no prompt of this run; empty where it does."""
    if why := ruler.look([ASK]):
        parsed = not why.startswith("TemplateSyntaxError")
        what = "does not take a user's message" if parsed else "cannot be parsed"
        return f"{named} {what}: {why}. Mend it, or take {others}"
    if system and (why := ruler.look([*system, ASK])):
        return (
            f"{named} does not take the system message that prompts.system sets: {why}. Leave prompts.system out and write "
            f"its text into the template, or take {others}"
        )
    return ""


def endless(codec: Codec, named: str, model: str) -> str:
    if codec.ends:
        return ""
    return (
        f"{named} ends an answer with no token of {model}, and neither its tokenizer nor its config names an end token, so that "
        "every answer would be cut at generator.max_tokens. Let the template write one behind the assistant's message, or "
        "set eos_token in tokenizer_config.json"
    )


def render(codec: Codec, messages: list[Message], prompt: bool) -> str:
    return codec.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)


def whole(codec: Codec) -> str:
    """A short conversation with an answer; empty where the template refuses it."""
    try:
        return render(codec, [ASK, SAID], False)
    except Exception:  # a template is a program of its author
        return ""


def replaced(ruler: Ruler, named: str, model: str) -> str:
    own = has_template(ruler.folder) and codec_of(str(ruler.folder), ruler.trusted).tokenizer.chat_template
    same = own in (False, ruler.codec.tokenizer.chat_template)
    return "" if same else f"{named} takes the place of the one that {model} has"


def shown(codec: Codec, named: str, model: str, talk: list[Message]) -> str:
    """How a prompt looks, and what ends its answer."""
    text = render(codec, talk, True)
    for message in talk:
        text = text.replace(message["content"].strip(), "…")
    ends = [end for end in codec.tokenizer.convert_ids_to_tokens(sorted(codec.ends)) if end]
    if (turn := codec.rendering.turn).ending:
        end = codec.tokenizer.convert_ids_to_tokens(turn.end)
        more = [other for other in ends if other != end]
        said = f"{end} ends an answer" + (
            f", and so does the model's own {' or '.join(more)}" if more else ""
        )
    else:
        said = f"it writes no token of the vocabulary behind an answer, which the model's own {' or '.join(ends)} ends"
    return f"{named} writes a prompt for {model} as {text!r}; {said}"


def headless(codec: Codec, named: str) -> str:
    """What stands before an answer in a conversation, and not behind a prompt."""
    prompt, text = render(codec, [ASK], True), whole(codec)
    before, said, _ = text.partition(SAID["content"])
    missing = before.removeprefix(prompt).strip() if said and before.startswith(prompt) else ""
    if not missing or prompt != render(codec, [ASK], False):
        return ""
    return (
        f"{named} writes {missing!r} before an answer in a conversation, and not behind a prompt that is to be answered: "
        "write it there if add_generation_prompt"
    )


def unknown(codec: Codec, named: str, model: str) -> str:
    """Control tokens by their spelling, which the vocabulary does not have."""
    known = {token.content for token in codec.tokenizer.added_tokens_decoder.values()}
    marks = dict.fromkeys(MARK.findall(render(codec, [ASK], True) + whole(codec)))
    lacking = [mark for mark in marks if mark not in known]
    if not lacking:
        return ""
    return (
        f"{named} writes {' and '.join(lacking)}, which {model} has no token for: it reads them as text, several tokens each "
        "(prompts.template=plain does without)"
    )
