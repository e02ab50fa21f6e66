"""Client data by reference: which population, which examples, how many contributions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import tensorflow_federated as tff

from fcp_core.protocol.protos import plan_pb2
from fcp_core.rounds.tasks import NAME_PATTERN, AssignmentMode

#: An ExampleSelector, or a nested mapping of them.
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
    :param example_selector: an ``ExampleSelector`` message, or a nested mapping of them; the
        client data then is a structure of sequences with the mapping's keys.
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
        """The selector, or the mapping of selectors."""
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
        """Refuse: an iterator has no position that could be kept.

        :raises NotImplementedError: always.
        """
        raise NotImplementedError("an iterator has no position to restore; make a new one")

    def to_bytes(self) -> bytes:
        """Refuse: an iterator has no position that could be kept.

        :raises NotImplementedError: always.
        """
        raise NotImplementedError("an iterator has no position to keep; make a new one")

    @property
    def federated_type(self) -> Any:
        """The source's type."""
        return self._source.federated_type

    def select(self, k: int | None = None) -> DataSelectionConfig:
        """Ask for the data of *k* contributions; the server picks the devices.

        :raises ValueError: if *k* is not a positive number.
        """
        if k is None or k <= 0:
            raise ValueError(f"k must be positive: the number of contributions, not {k}")
        return DataSelectionConfig(
            self._source.population_name,
            self._source.example_selector,
            self._source.task_assignment_mode,
            k,
        )


def check_name(what: str, name: object) -> None:
    """Check the name of a population or a computation.

    :raises ValueError: whose message begins with *what* and "must match".
    """
    if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
        raise ValueError(f'{what} must match "{NAME_PATTERN.pattern}", found {name!r}')


def selectors_in_order(selector: NestedExampleSelector) -> list[plan_pb2.ExampleSelector]:
    """Return the selectors of a data source, depth first, as this project's own messages."""
    if isinstance(selector, Mapping):
        return [leaf for inner in selector.values() for leaf in selectors_in_order(inner)]
    return [plan_pb2.ExampleSelector.FromString(selector.SerializeToString())]


def data_type(selector: NestedExampleSelector) -> Any:
    """Return the type that a selector, or a nested mapping of them, gives one client.

    :raises TypeError: for anything else.
    """
    if isinstance(selector, Mapping):
        return tff.StructType([(str(key), data_type(inner)) for key, inner in selector.items()])
    # The message may be of another pool: a program brings the selector's class from where it likes.
    descriptor = getattr(selector, "DESCRIPTOR", None)
    if getattr(descriptor, "full_name", None) != _SELECTOR:
        raise TypeError(
            f"example_selector must be an ExampleSelector or a mapping of them, "
            f"found {type(selector).__name__}"
        )
    return tff.SequenceType(np.str_)
