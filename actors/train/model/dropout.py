"""An architecture's own dropout: the settings that say how much is dropped, and the modules that do it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["dropout_settings", "dropout_sites", "no_dropout", "set_dropout"]

ENDS = ("dropout", "pdrop", "dropout_prob")
ELSEWHERE = ("classifier", "summary")  # of heads that no trainer has


def _settings(config: Any) -> Iterator[tuple[Any, str]]:
    """Each setting of a transformers config that is a share to drop, with the (sub-)config that holds it."""
    text = config.get_text_config()
    for part in (config,) if text is config else (config, text):
        for name, value in vars(part).items():
            if name.endswith(ENDS) and isinstance(value, int | float) and not name.startswith(ELSEWHERE):
                yield part, name


def dropout_settings(config: Any) -> list[str]:
    """Their names, such as attention_dropout."""
    return list(dict.fromkeys(name for _, name in _settings(config)))


def set_dropout(config: Any, share: float) -> None:
    """Drop this share everywhere; 0 is no dropout."""
    for part, name in list(_settings(config)):
        setattr(part, name, share)


def dropout_sites(model: nn.Module, share: float) -> list[nn.Module]:
    """The modules that drop this share: dropout layers, and those (attention) that hold it under a setting's name or read it
    off a dropout layer of theirs, and look at their own mode."""
    from torch.nn import Dropout

    def layer(module: nn.Module) -> bool:
        return isinstance(module, Dropout) and module.p == share

    def drops(module: nn.Module) -> bool:
        held = any(name.endswith(ENDS) and value == share for name, value in vars(module).items())
        return held or layer(module) or any(map(layer, module.children()))

    return [module for module in model.modules() if drops(module)] if share else []


def no_dropout(share: float, who: str, names: list[str]) -> str:
    """Why an architecture without such places is refused. names: settings that are there, and that nothing follows."""
    found = f"its {', '.join(names)} reach no module" if names else "its config has none"
    return (
        f"trainer.dropout is {share:g}, and {who} has no place that drops anything: looked for were dropout layers and "
        f"settings like attention_dropout, hidden_dropout and resid_pdrop, and {found}. Leave trainer.dropout out, or train "
        "adapters with trainer.lora.dropout"
    )
