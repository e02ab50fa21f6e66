"""Laws that hold for some subjects of a kit only: the others do not collect them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Law = TypeVar("Law", bound=Callable[..., None])


def applies_if(condition: Callable[[Any], bool]) -> Callable[[Law], Law]:
    """Mark a law of a kit that does not apply to every subclass of the kit.

    :param condition: says of a subclass whether the law applies to it.
    """

    def mark(law: Law) -> Law:
        law.applies = condition  # type: ignore[attr-defined]
        return law

    return mark


class Laws:
    """Base of the kits: a subclass lacks the laws that do not apply to it."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        for name in dir(cls):
            found = (vars(base).get(name) for base in cls.__mro__)
            law = next((law for law in found if law is not None), None)
            condition = getattr(law, "applies", None)
            if condition is not None and name not in vars(cls):
                # pytest passes over what cannot be called.
                setattr(cls, name, law if condition(cls) else None)
