"""Chat templates that are given beside the model: built-in ones by name, or a Jinja text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selfloop.workflows.data.files import read_json

__all__ = ["BUILT_IN", "NO_TEMPLATE", "OTHERS", "has_template", "template_text", "written"]

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + END + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PLAIN = (
    "{% for message in messages %}"
    "{{ message['role'] | capitalize + ':\\n' + message['content'] }}"
    "{{ END if message['role'] == 'assistant' }}{{ '\\n\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:\\n' }}{% endif %}"
)
BUILT_IN = {"chatml": CHATML, "plain": PLAIN}
"""chatml: OpenAI's markup, for models that know its tokens. plain: words alone, for any vocabulary. END stands for the token
that ends a turn, which depends on the vocabulary."""

NO_TEMPLATE = (
    "has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json), so messages cannot be written "
    "for it. Set prompts.template to chatml, plain or a Jinja file, or take the instruct version of the model"
)
CHATML_END = "<|im_end|>"
SHOWS = "{{"  # without it a template shows nothing of a message; a path never has it
OTHERS = (
    "chat_template.jinja",
    "chat_template.json",
)  # where a folder has a template besides tokenizer_config.json


def template_text(given: str) -> str:
    """What `prompts.template` means: a built-in name or a Jinja text as it is, a file's text for its path. ValueError where
    there is no such file, or no template in it."""
    if given in BUILT_IN or SHOWS in given:
        return given
    path, names = Path(given).expanduser(), " or ".join(BUILT_IN)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = (
            "there is no such file"
            if isinstance(error, FileNotFoundError)
            else f"it cannot be read ({error})"
        )
        raise ValueError(
            f"prompts.template is {given!r}, and {why} ({path.absolute()}). Give {names}, or the path of a Jinja file"
        ) from error
    if SHOWS not in text:
        raise ValueError(
            f"prompts.template {given} has no {{{{ … }}}}, so it would write nothing of any message. Give a Jinja chat "
            f"template, {names}"
        )
    return text


def written(template: str, tokenizer: Any) -> str:
    """The Jinja text of a template for this tokenizer: as it is given, or a built-in one, which ends turns with a token that
    the vocabulary has and begins with the token that the tokenizer puts before texts, if it does that."""
    if template not in BUILT_IN:
        return template
    known = {token.content for token in tokenizer.added_tokens_decoder.values()}
    own = template == "chatml" and CHATML_END in known
    begins = tokenizer.bos_token_id is not None and tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    text = BUILT_IN[template].replace("END", f"'{CHATML_END}'" if own else "eos_token")
    return ("{{ bos_token }}" if begins else "") + text


def has_template(folder: Path) -> bool:
    """Whether a model folder has a chat template of its own. ValueError for a tokenizer_config.json that is no JSON."""
    inside = read_json(folder / "tokenizer_config.json").get("chat_template")
    others = any((folder / name).exists() for name in OTHERS)
    return bool(inside) or others or (folder / "additional_chat_templates").is_dir()
