"""A program's values for a structured type: checked, in the order of the type, as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from fcp_platform import naming
from fcp_platform.naming import Leaf

_REFERENCE = tff.program.MaterializableValueReference
_LEAF_TYPES = (
    tf.Tensor,
    np.ndarray,
    np.number,
    np.bool_,
    np.str_,
    np.bytes_,
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    _REFERENCE,
)


def check_leaves(value: Any) -> None:
    """Check that a state is made of values and containers alone, whatever its type.

    :raises TypeError: naming the first leaf that is neither a value nor a reference to one.
    """
    if isinstance(value, _LEAF_TYPES):
        return
    elements = _elements(value)
    if elements is None:
        raise TypeError(
            "arg[0] must be a value or structure of values (tensors, arrays, numbers, strings, "
            f"bytes or references to such), found {type(value).__name__}"
        )
    for _, element in elements:
        check_leaves(element)


def flatten(value: Any, type_spec: Any, name: str) -> list[tuple[Leaf, Any]]:
    """Pair the leaves of a value with those of its type.

    :param value: nested mappings, sequences, attrs objects and ``Struct``; named elements are
        found by name, so that the order of a mapping does not matter.
    :param name: what the value is called: the prefix of the leaves' names.
    :raises ValueError: if the structures differ; the message names the place.
    """
    type_spec = naming.unplaced(type_spec)
    if not isinstance(type_spec, tff.StructType):
        (leaf,) = naming.leaves(type_spec, name)
        return [(leaf, value if isinstance(value, _LEAF_TYPES) else _listed(leaf, value))]
    members = naming.member_types(type_spec)
    elements = None if isinstance(value, _LEAF_TYPES) else _elements(value)
    if elements is None or len(elements) != len(members):
        found = "one value" if elements is None else f"{len(elements)} elements"
        raise ValueError(
            f"{_place(name)} must have {len(members)} elements ({type_spec}), found {found}"
        )
    by_name = {key: element for key, element in elements if key is not None}
    flat: list[tuple[Leaf, Any]] = []
    for index, (key, element_type) in enumerate(members):
        if key is not None and by_name:
            if key not in by_name:
                raise ValueError(f"{_place(name)} has no element {key!r}; it has {sorted(by_name)}")
            element = by_name[key]
        else:
            element = elements[index][1]
        flat.extend(flatten(element, element_type, naming.element_name(name, key, index)))
    return flat


def given(value: Any, type_spec: Any, name: str) -> list[tuple[Leaf, Any]]:
    """Pair the leaves of a type with arrays, or with the references to values that are not there.

    :raises ValueError: as :func:`flatten` and :func:`as_array`.
    """
    return [
        (leaf, each if isinstance(each, _REFERENCE) else as_array(leaf, each))
        for leaf, each in flatten(value, type_spec, name)
    ]


def as_array(leaf: Leaf, value: Any) -> np.ndarray[Any, Any]:
    """Return a leaf's value as an array that fits its type.

    :raises ValueError: naming the leaf, if dtype or shape do not fit.
    """
    wanted = leaf.type
    if isinstance(value, tf.Tensor):
        value = value.numpy()
    if wanted.dtype.type is np.str_:
        array = np.asarray(value, dtype=object)
        if not all(isinstance(item, (str, bytes)) for item in array.reshape(-1).tolist()):
            raise ValueError(
                f"{_place(leaf.name)} must be a string tensor, found {type(value).__name__}"
            )
    else:
        array = np.asarray(value)
        if array.dtype != wanted.dtype:
            array = _converted(leaf, array)
    if wanted.shape is not None and not (
        len(wanted.shape) == array.ndim
        and all(want in (None, got) for want, got in zip(wanted.shape, array.shape, strict=True))
    ):
        raise ValueError(
            f"{_place(leaf.name)} must be of type {wanted}, found the shape {list(array.shape)}"
        )
    return array


def _place(name: str) -> str:
    """Return where a tensor of the state is, in the words of the program that gives it."""
    return naming.place_of(name, naming.STATE, "the state")


def _listed(leaf: Leaf, value: Any) -> np.ndarray[Any, Any]:
    """Return the array that nested Python lists of values stand for.

    :raises ValueError: for any other structure, or lists of different lengths.
    """
    one = f"{_place(leaf.name)} must be one value of type {leaf.type}, not a structure"
    if not isinstance(value, list | tuple) or not _all_values(value):
        raise ValueError(one)
    is_text = leaf.dtype.type is np.str_
    try:
        array = np.array(value, dtype=object if is_text else None)
    except ValueError as error:
        raise ValueError(f"{one}; its lists are of different lengths") from error
    # An empty list has no dtype of its own.
    return array if array.size or is_text else array.astype(leaf.dtype)


def _all_values(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_all_values, value))
    return isinstance(value, _LEAF_TYPES) and not isinstance(value, _REFERENCE)


def _converted(leaf: Leaf, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Convert to the leaf's dtype if no value changes its kind (7 to 7.0, but not 7.5 to 7)."""
    wanted = leaf.dtype
    if not np.can_cast(array.dtype, wanted, "same_kind"):
        raise ValueError(f"{_place(leaf.name)} must be of dtype {wanted}, found {array.dtype}")
    converted = array.astype(wanted)
    if wanted.kind in "iu" and not np.array_equal(converted, array):
        raise ValueError(f"{_place(leaf.name)} does not fit the dtype {wanted}")
    return converted


def _elements(value: Any) -> list[tuple[str | None, Any]] | None:
    """Return the elements of a container with their names, or None if it is none."""
    if isinstance(value, tff.structure.Struct):
        return list(tff.structure.iter_elements(value))
    if isinstance(value, Mapping):
        return [(str(key), element) for key, element in value.items()]
    if attrs.has(type(value)):
        return list(attrs.asdict(value, recurse=False).items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [(None, element) for element in value]
    return None
