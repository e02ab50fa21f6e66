"""Client data by reference: which population, which examples, how many contributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec
import numpy as np
import tensorflow_federated as tff
from google.protobuf.message import DecodeError

from fcp_core.protocol.protos import plan_pb2
from fcp_core.rounds.tasks import NAME_PATTERN, AssignmentMode

#: An ExampleSelector, or nested mappings, lists and tuples of them.
NestedExampleSelector: TypeAlias = Any

_SELECTOR = plan_pb2.ExampleSelector.DESCRIPTOR.full_name


@dataclass(frozen=True)
class DataSelectionConfig:
    """What :meth:`FederatedDataSourceIterator.select` returns and a context takes as client data.

    :param num_clients: how many contributions to wait for.
    """

    population_name: str
    example_selector: NestedExampleSelector
    task_assignment_mode: Any
    num_clients: int


class FederatedDataSource(tff.program.FederatedDataSource):  # type: ignore[misc]
    """The examples that an ExampleSelector finds on the devices of a population.

    :param population_name: words separated by slashes.
    :param example_selector: an ``ExampleSelector`` message, or nested mappings, lists and tuples of
        them; the client data then is a structure of sequences with the mapping's keys.
    :param task_assignment_mode: whether a device may take a round together with others: a
        ``PopulationEligibilitySpec.TaskInfo.TaskAssignmentMode`` or an ``AssignmentMode``.
    :raises ValueError: if the population's name is not one.
    :raises TypeError: if a selector is not one.
    """

    def __init__(
        self,
        population_name: str,
        example_selector: NestedExampleSelector,
        task_assignment_mode: Any = AssignmentMode.SINGLE.number,
    ) -> None:
        check_name("population_name", population_name)
        AssignmentMode(getattr(task_assignment_mode, "value", task_assignment_mode))
        self._population_name = population_name
        self._example_selector = example_selector
        self._task_assignment_mode = task_assignment_mode
        self._federated_type = tff.FederatedType(data_type(example_selector), tff.CLIENTS)

    @property
    def federated_type(self) -> Any:
        """The ``tff.FederatedType``: sequences of serialized examples at the clients."""
        return self._federated_type

    @property
    def population_name(self) -> str:
        """The name of the population."""
        return self._population_name

    @property
    def example_selector(self) -> NestedExampleSelector:
        """The selector, or the structure of selectors."""
        return self._example_selector

    @property
    def task_assignment_mode(self) -> Any:
        """How a device may take the rounds on this data."""
        return self._task_assignment_mode

    def iterator(self) -> FederatedDataSourceIterator:
        """Return an iterator; all of them are alike."""
        return FederatedDataSourceIterator(self)


class FederatedDataSourceIterator(tff.program.FederatedDataSourceIterator):  # type: ignore[misc]
    """Selects client data by number of contributions; see :class:`FederatedDataSource`."""

    def __init__(self, source: FederatedDataSource) -> None:
        self._source = source

    @classmethod
    def from_bytes(cls, buffer: bytes) -> FederatedDataSourceIterator:
        """Return the iterator that :meth:`to_bytes` has written, of a source like its own.

        :raises ValueError: for any other bytes.
        """
        try:
            kept = msgspec.msgpack.decode(buffer, type=_Kept)
            selector, mode = _selector_of(kept.selector), AssignmentMode(kept.mode).number
            source = FederatedDataSource(kept.population, selector, mode)
        except (msgspec.DecodeError, DecodeError, TypeError, ValueError) as error:
            raise ValueError(f"the bytes are no iterator of a data source: {error}") from error
        return cls(source)

    def to_bytes(self) -> bytes:
        """Return the source as bytes; an iterator has no position beside it.

        It is what a program's state manager saves. Tuples of selectors come back as lists.
        """
        mode = self._source.task_assignment_mode
        return msgspec.msgpack.encode(
            _Kept(
                self._source.population_name,
                _plain_selector(self._source.example_selector),
                AssignmentMode(getattr(mode, "value", mode)).number,
            )
        )

    @property
    def federated_type(self) -> Any:
        """The source's type."""
        return self._source.federated_type

    def select(self, k: int | None = None) -> DataSelectionConfig:
        """Ask for the data of *k* contributions; the server picks the devices.

        :raises ValueError: if *k* is None or not positive.
        :raises TypeError: if it is no whole number.
        """
        if k is not None and (
            isinstance(k, bool | np.bool_) or not isinstance(k, int | np.integer)
        ):
            raise TypeError(f"k must be a whole number of contributions, not {k!r}")
        if k is None or k <= 0:
            raise ValueError(f"k must be positive: the number of contributions, not {k}")
        return DataSelectionConfig(
            self._source.population_name,
            self._source.example_selector,
            self._source.task_assignment_mode,
            int(k),
        )


class _Kept(msgspec.Struct, array_like=True):
    """A data source in an iterator's bytes."""

    population: str
    selector: Any
    mode: int


def _plain_selector(selector: NestedExampleSelector) -> Any:
    """Return a structure of selectors as mappings and lists of their bytes."""
    elements = elements_of(selector)
    if elements is None:
        return selector.SerializeToString(deterministic=True)
    plain = {key: _plain_selector(inner) for key, inner in elements.items()}
    return plain if not isinstance(next(iter(plain), ""), int) else list(plain.values())


def _selector_of(plain: Any) -> NestedExampleSelector:
    """Return the selectors that :func:`_plain_selector` has made plain."""
    if isinstance(plain, dict):
        return {str(key): _selector_of(inner) for key, inner in plain.items()}
    if isinstance(plain, list):
        return [_selector_of(inner) for inner in plain]
    return plan_pb2.ExampleSelector.FromString(plain)


def check_name(what: str, name: object) -> None:
    """Check the name of a population or a computation.

    :raises ValueError: whose message begins with *what* and "must match".
    """
    if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
        raise ValueError(f'{what} must match "{NAME_PATTERN.pattern}", found {name!r}')


def selectors_in_order(
    selector: NestedExampleSelector, type_spec: Any = None
) -> list[plan_pb2.ExampleSelector]:
    """Return the selectors of a data source as a computation reads them.

    :param selector: its mappings may have their keys in another order than the type.
    :param type_spec: the type of one client's data; None: what the selectors give.
    :returns: this project's own messages, in the order of the type, depth first.
    :raises TypeError: if the selectors do not give data of that type.
    """
    if type_spec is None:
        type_spec = data_type(selector)
    if not isinstance(type_spec, tff.StructType):
        if data_type(selector) != type_spec:
            raise TypeError(f"{type_spec} is read, {data_type(selector)} selected")
        return [plan_pb2.ExampleSelector.FromString(selector.SerializeToString())]
    given = elements_of(selector)
    members = list(tff.structure.iter_elements(type_spec))
    if given is None or len(given) != len(members):
        raise TypeError(f"{type_spec} is read, {data_type(selector)} selected")
    found = []
    for index, (name, element) in enumerate(members):
        key = index if name is None else name
        if key not in given:
            raise TypeError(f"no selector for the element {key!r} of {type_spec}")
        found += selectors_in_order(given[key], element)
    return found


def data_type(selector: NestedExampleSelector) -> Any:
    """Return the type that a selector, or a structure of them, gives one client.

    :raises TypeError: for anything else.
    """
    elements = elements_of(selector)
    if elements is not None:
        return tff.StructType(
            [
                (key if isinstance(key, str) else None, data_type(inner))
                for key, inner in elements.items()
            ]
        )
    # The message may be of another pool: a program brings the selector's class from where it likes.
    descriptor = getattr(selector, "DESCRIPTOR", None)
    if getattr(descriptor, "full_name", None) != _SELECTOR:
        raise TypeError(
            f"example_selector must be an ExampleSelector or a structure of them, "
            f"found {type(selector).__name__}"
        )
    return tff.SequenceType(np.str_)


def elements_of(selector: NestedExampleSelector) -> dict[str | int, Any] | None:
    """Return the elements of a structure by name, or by index; None for a single selector."""
    if isinstance(selector, Mapping):
        return {str(key): inner for key, inner in selector.items()}
    if isinstance(selector, tuple) and hasattr(selector, "_asdict"):
        return dict(selector._asdict())
    if isinstance(selector, Sequence) and not isinstance(selector, str | bytes):
        return dict(enumerate(selector))
    return None
