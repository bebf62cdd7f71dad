"""The door of every objective: one spelling of the columns, one dtype, and errors that name the column and the row."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Protocol

from selfloop.workflows.errors import ObjectiveError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Domain", "canonical", "needed_columns", "prepare", "scalar"]

Domain = Literal["binary", "unit", "rank", "whole"]

TOKEN_READS = (  # longer names first: they are looked for at the end of a column's name
    *("reference_logprobs", "sampling_logprobs", "old_logprobs", "logprobs", "mask"),
    *("phrase", "unlikely", "token_kl", "kl_first", "kl_second", "correct", "divergence", "values"),
)
ROW_READS = ("rewards", "hidden")
WITHOUT_VIEW = {"token_kl": "chosen.token_kl", "values": "response.values", "old_values": "old_values"}
OF_RESPONSE = ("advantages", "returns", "old_values")  # without a view, yet one value a response token
OF_RANKED = ("rank", "scores")  # (rows, k)
DOMAINS: dict[Domain, tuple[str, Callable[[Tensor], Tensor]]] = {
    "binary": ("0 or 1", lambda x: (x == 0) | (x == 1)),
    "unit": ("between 0 and 1", lambda x: (x >= 0) & (x <= 1)),
    "rank": (
        "a whole number, 0 for the best (-1: no such candidate)",
        lambda x: (x >= -1) & (x == x.round()),
    ),
    "whole": ("a whole number from 0", lambda x: (x >= 0) & (x == x.round())),
}


class Objective(Protocol):
    """An objective as its columns see it: of what `base.Objective` says, what concerns them."""

    views: ClassVar[tuple[str, ...]]
    columns: ClassVar[tuple[str, ...]]
    optional: ClassVar[tuple[str, ...]]
    alternatives: ClassVar[Mapping[str, str]]
    domains: ClassVar[Mapping[str, Domain]]
    statistic_names: ClassVar[tuple[str, ...]]

    @property
    def reads(self) -> dict[str, tuple[str, ...]]: ...


class _Check(NamedTuple):
    """One condition: `good` is true where it holds, rows are its first axis."""

    column: str
    good: Tensor
    words: str
    values: Tensor | None


def canonical(name: str) -> str:
    """The one spelling of a column: `chosen_logprobs` and `chosen.logprobs` are both `chosen.logprobs`."""
    if name in WITHOUT_VIEW or "." in name:
        return WITHOUT_VIEW.get(name, name)
    for read in (*TOKEN_READS, *ROW_READS):
        view = name.removesuffix(f"_{read}")
        if view != name:
            return f"{view}.{read}"
    return name


def scalar(column: Tensor) -> Tensor:
    """A statistic or a state that was handed back as a scalar or expanded to (rows,)."""
    return column if column.dim() == 0 else column.reshape(-1)[0]


def needed_columns(objective: Objective, given: Container[str]) -> tuple[str, ...]:
    """The columns without a view that rows must have: where one of them is not given and its alternative is, that one."""
    instead = objective.alternatives
    return tuple(
        instead[name] if name not in given and instead.get(name, "") in given else name
        for name in objective.columns
    )


def prepare(objective: Objective, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The columns the objective needs: spelled `VIEW.name`, in one float dtype, zero behind masks, all checked."""
    import torch

    given: dict[str, Tensor] = {}
    for name in sorted(batch, key=lambda name: "." in name):  # VIEW.name wins over VIEW_name
        given[canonical(name)] = torch.as_tensor(batch[name])
    reads = [f"{view}.{read}" for view, names in objective.reads.items() for read in names]
    masks = [_mask_name(name) for name in reads if name.rsplit(".", 1)[1] not in ROW_READS]
    needed = list(dict.fromkeys([*reads, *masks, *map(canonical, needed_columns(objective, given))]))
    if any(name not in given for name in needed):
        _refuse_missing(objective, needed, given)
    optional = [name for name in map(canonical, objective.optional) if name in given]
    step = [name for name in given if name in objective.statistic_names or name.startswith("state_")]
    double = any(given[name].dtype == torch.float64 for name in reads)
    dtype = torch.float64 if double else torch.float32
    rows = {name: given[name].to(dtype) for name in dict.fromkeys([*needed, *optional])}
    _refuse_shapes(objective, rows)
    _refuse_values(objective, rows)
    for name, column in rows.items():
        mask = _mask_of(name, rows)
        if mask is not None:
            rows[name] = torch.where(mask > 0, column, torch.zeros_like(column))
    return {**rows, **{name: given[name].to(torch.promote_types(given[name].dtype, dtype)) for name in step}}


def _mask_name(name: str) -> str:
    return f"{name.rsplit('.', 1)[0]}.mask"


def _mask_of(name: str, columns: Mapping[str, Tensor]) -> Tensor | None:
    """The mask of a column with one value a token, None for other columns (and for masks)."""
    if name in OF_RESPONSE:
        return columns.get("response.mask") if columns[name].dim() == 2 else None
    if "." not in name or name.endswith(".mask") or name.rsplit(".", 1)[1] in ROW_READS:
        return None
    return columns.get(_mask_name(name))


def _refuse_missing(objective: Objective, needed: list[str], given: Mapping[str, Tensor]) -> None:
    missing = ", ".join(repr(name) for name in needed if name not in given)
    raise ObjectiveError(
        f"{type(objective).__name__}: the batch lacks the column {missing}. It has "
        f"{', '.join(sorted(given)) or 'none at all'}; needed are {', '.join(needed)}. Give `train` rows with these "
        "views and columns (and a reference where reference_logprobs are read), or another objective."
    )


def _refuse_shapes(objective: Objective, columns: Mapping[str, Tensor]) -> None:
    first = next(iter(columns))
    rows = columns[first].shape[:1]
    for name, column in columns.items():
        shape, mask = column.shape, _mask_of(name, columns)
        if mask is not None or name.endswith(".mask"):
            dims = 3 if name.startswith("ranked.") else 2
            wanted = column.shape if mask is None else mask.shape
            axes = "(rows, k, tokens)" if dims == 3 else "(rows, tokens)"
            good, why = shape == wanted and column.dim() == dims, f"{axes}, as its mask has: {tuple(wanted)}"
        elif name in OF_RANKED:
            like = columns.get("ranked.mask", columns.get("ranked.rewards", column))
            good, why = column.dim() == 2 and shape == like.shape[:2], f"(rows, k): {tuple(like.shape[:2])}"
        else:
            dims = 2 if name == "ranked.rewards" or name.endswith(".hidden") else 1
            good, why = column.dim() == dims, "one value a row" if dims == 1 else "two axes, rows first"
        if not good or shape[:1] != rows:
            raise ObjectiveError(
                f"{type(objective).__name__}: column {name!r} has shape {tuple(shape)}; wanted is {why}, and as many "
                f"rows as {first!r} {tuple(columns[first].shape)}. All columns of a batch belong to the same rows."
            )


def _refuse_values(objective: Objective, columns: Mapping[str, Tensor]) -> None:
    """One look at the device for all conditions; only a bad batch is looked at closer."""
    import torch

    checks = list(_checks(objective, columns))
    if bool(torch.stack([check.good.all() for check in checks]).all()):
        return
    check = next(check for check in checks if not bool(check.good.all()))
    row, *rest = (int(i) for i in (~check.good).nonzero()[0])
    place = f"row {row}" + (f", position {', '.join(map(str, rest))}" if rest else "")
    value = "" if check.values is None else f" holds {float(check.values[(row, *rest)]):g}:"
    raise ObjectiveError(
        f"{type(objective).__name__}: column {check.column!r}, {place}{value} {check.words}. "
        "A step on it would spoil the weights: mend or drop this row before training."
    )


def _checks(objective: Objective, columns: Mapping[str, Tensor]) -> list[_Check]:
    absent = columns["rank"] < 0 if "rank" in columns else None
    domains: dict[str, Domain] = {"rank": "rank", **objective.domains}
    found: list[_Check] = []
    for name, column in columns.items():
        mask = _mask_of(name, columns)
        if name.endswith(".mask"):
            good, words, shown = column.sum(-1) > 0, "no response token is left by the mask", None
        elif mask is not None:
            good, words, shown = column.isfinite() | (mask <= 0), "not finite where the mask is 1", column
        else:
            good, words, shown = column.isfinite(), "not finite", column
        if (
            absent is not None
            and good.shape[:2] == absent.shape
            and (name in OF_RANKED or name.startswith("ranked."))
        ):
            good = good | absent.reshape(*absent.shape, *[1] * (good.dim() - 2))
        found.append(_Check(name, good, words, shown))
        if name in domains:
            wanted, test = DOMAINS[domains[name]]
            found.append(_Check(name, test(column), f"must be {wanted}", column))
    return found
