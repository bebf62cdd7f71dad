"""The hierarchy of errors is drawn at the top of its module."""

from __future__ import annotations

from selfloop.workflows import errors


def test_the_drawing_is_the_hierarchy() -> None:
    def drawn(kind: type[BaseException], indent: str) -> list[str]:
        below = [
            line
            for other in kind.__subclasses__()
            if other.__module__ == errors.__name__
            for line in drawn(other, indent + "    ")
        ]
        return [f"{indent}{kind.__name__}", *below]

    assert errors.__doc__ is not None
    assert "\n".join(drawn(errors.SelfloopError, "    ")) in errors.__doc__
