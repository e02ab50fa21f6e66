"""Names of tensors in checkpoints, derived from TFF types, and back.

A name is a prefix and the way to the tensor, joined by slashes: an element is called by its name,
or by its index if it has none. No two tensors of a type share a name: what would be mistaken for
something else in an element's name (a slash, or a name that looks like an index) is written as
``%`` and two digits, as in a URL. All other names are those of the reference platform.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import tensorflow_federated as tff

#: Prefixes of the names, by what a tensor is for.
STATE = "server"
METRICS = "metrics"
BROADCAST = "client"
UPDATE = "update"
INTERMEDIATE_STATE = "intermediate_state"
AGGREGATE = "intermediate_update/0"


@dataclass(frozen=True)
class Leaf:
    """One tensor or sequence of a structured value.

    :param name: its name in a checkpoint, such as ``update/0/weights``.
    :param type: its ``tff.TensorType`` or ``tff.SequenceType``.
    """

    name: str
    type: Any

    @property
    def dtype(self) -> Any:
        """The ``tf.DType`` or NumPy dtype of a tensor.

        :raises TypeError: for a sequence, which only devices may hold.
        """
        if self.is_sequence:
            raise TypeError(
                f"{self.name!r} has the type {self.type}: a sequence cannot travel between server "
                "and clients, or be part of state or metrics; make it tensors"
            )
        return self.type.dtype

    @property
    def is_sequence(self) -> bool:
        """Whether it is a sequence rather than a tensor."""
        return isinstance(self.type, tff.SequenceType)


@dataclass(frozen=True)
class Constant:
    """What stands where a leaf could: a value that the computation gives literally."""

    value: np.ndarray[Any, Any]


def leaves(type_spec: Any, prefix: str) -> list[Leaf]:
    """Return the leaves of a type, depth first; an element is called by its name, or its index.

    :param type_spec: a ``tff.Type`` of tensors, sequences, structures and federated values.
    :raises TypeError: for any other type inside, such as a function.
    """
    return list(_leaves(type_spec, prefix))


def member_types(struct: Any) -> list[tuple[str | None, Any]]:
    """Return the names (None if unnamed) and types of a ``tff.StructType``'s elements."""
    return list(tff.structure.iter_elements(struct))


def element_name(prefix: str, name: str | None, index: int) -> str:
    """Return the name of a structure's element.

    :param name: what the structure calls it; None if it has no name.
    """
    if name is None:
        return f"{prefix}/{index}"
    # The index of an element without a name is all digits, so a name must not be.
    escaped = f"%{ord(name[0]):02X}{name[1:]}" if _is_index(name) else quote(name, safe="")
    return f"{prefix}/{escaped}"


def path_of(name: str, prefix: str) -> tuple[str | int, ...]:
    """Return the names and indices of the elements that lead to a tensor.

    :param name: what :func:`leaves` called it.
    :param prefix: what was given there.
    """
    if name == prefix:
        return ()
    parts = name.removeprefix(f"{prefix}/").split("/")
    return tuple(int(part) if _is_index(part) else unquote(part) for part in parts)


def place_of(name: str, prefix: str, word: str) -> str:
    """Return where a tensor is, as a program would write it: ``state['loss'][0]``.

    :param word: what a program calls the whole.
    """
    return word + "".join(f"[{step!r}]" for step in path_of(name, prefix))


def _is_index(part: str) -> bool:
    return part.isascii() and part.isdigit()


def unplaced(type_spec: Any) -> Any:
    """Return the member of a federated type, and any other type as it is."""
    return type_spec.member if isinstance(type_spec, tff.FederatedType) else type_spec


def _leaves(type_spec: Any, prefix: str) -> Iterator[Leaf]:
    type_spec = unplaced(type_spec)
    if isinstance(type_spec, tff.StructType):
        for index, (name, element) in enumerate(member_types(type_spec)):
            yield from _leaves(element, element_name(prefix, name, index))
    elif isinstance(type_spec, (tff.TensorType, tff.SequenceType)):
        yield Leaf(prefix, type_spec)
    else:
        raise TypeError(f"{prefix!r} has the type {type_spec}, which is neither data nor structure")
