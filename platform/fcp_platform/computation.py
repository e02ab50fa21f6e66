"""A TFF computation with a name, checked to be one that devices can run."""

from __future__ import annotations

import functools
from typing import Any

import tensorflow_federated as tff

from fcp_platform import intrinsics, lowering
from fcp_platform.data_source import check_name
from fcp_platform.plan_cache import PlanCache


class FederatedComputation(tff.Computation):  # type: ignore[misc]
    """A computation (state, client data) to (state, metrics) that a context runs as a task.

    :param comp: of type ``(<S@SERVER, {D}@CLIENTS> -> <S@SERVER, M@SERVER>)``.
    :param name: words separated by slashes; the name of the task that devices see.
    :raises TypeError: if *comp* is not such a computation.
    :raises ValueError: if the name is not one, or *comp* uses an intrinsic that cannot run on
        devices, or broadcasts what depends on an aggregate.
    """

    def __init__(self, comp: Any, *, name: str) -> None:
        check_name("name", name)
        _check_type(comp)
        intrinsics.call_dominant(comp.to_building_block())
        self._comp = comp
        self._name = name

    @property
    def name(self) -> str:
        """The name of the task."""
        return self._name

    @property
    def wrapped_computation(self) -> Any:
        """The computation as it was given."""
        return self._comp

    @property
    def type_signature(self) -> Any:
        """The type of the computation."""
        return self._comp.type_signature

    @property
    def distribute_aggregate_form(self) -> Any:
        """TFF's DistributeAggregateForm of the computation."""
        return self._split[0]

    @functools.cached_property
    def lowered(self) -> lowering.Lowered:
        """The computation as graphs and aggregations.

        :raises ValueError: if a part of it cannot be made a TensorFlow graph.
        :raises TypeError: for a tensor that cannot travel.
        """
        return lowering.lower(*self._split)

    def lower(self, cache: PlanCache | None) -> None:
        """Lower the computation, or find it in a cache; nothing happens if it is lowered already.

        :raises ValueError: as :attr:`lowered`.
        :raises TypeError: as :attr:`lowered`.
        """
        if cache is None or "lowered" in self.__dict__:
            self.lowered  # noqa: B018  # makes it
            return
        found = cache.get(self._comp)
        if found is None:
            cache.put(self._comp, self.lowered)
        else:
            self.__dict__["lowered"] = found  # what the property would keep

    @functools.cached_property
    def _split(self) -> tuple[Any, intrinsics.Functions]:
        return lowering.distribute_aggregate_form(self._comp)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Invoke the computation in the current TFF context."""
        arg = tff.structure.Struct([*((None, value) for value in args), *kwargs.items()])
        return tff.framework.get_context_stack().current.invoke(self, arg)

    def __hash__(self) -> int:
        """Return a hash of the computation and the name."""
        return hash((self._comp, self._name))

    def __eq__(self, other: object) -> bool:
        """Whether both wrap one computation under one name."""
        if not isinstance(other, FederatedComputation):
            return NotImplemented
        return self._comp == other._comp and self._name == other._name


def _check_type(comp: Any) -> None:
    if not isinstance(comp, tff.framework.ConcreteComputation):
        raise TypeError(
            f"comp must be a TFF computation, found {type(comp).__name__}; polymorphic "
            "computations and plain functions must be given their types first"
        )
    signature = comp.type_signature
    parameter, result = signature.parameter, signature.result
    if not isinstance(parameter, tff.StructType) or len(parameter) != 2:
        raise TypeError(f"comp must take two arguments, state and client data, found {parameter}")
    if not isinstance(result, tff.StructType) or len(result) != 2:
        raise TypeError(f"comp must return two values, state and metrics, found {result}")
    for what, type_spec, placement in (
        ("the first argument (state)", parameter[0], tff.SERVER),
        ("the second argument (client data)", parameter[1], tff.CLIENTS),
        ("the first result (state)", result[0], tff.SERVER),
        ("the second result (metrics)", result[1], tff.SERVER),
    ):
        if not _placed(type_spec, placement):
            raise TypeError(f"{what} must be placed at {placement}, found {type_spec}")
    if not parameter[0].is_assignable_from(result[0]):
        raise TypeError(
            f"comp must return a state of the type it takes: {parameter[0]}, found {result[0]}"
        )


def _placed(type_spec: Any, placement: Any) -> bool:
    """Whether a type is placed there: as a whole, or each element of a structure."""
    if isinstance(type_spec, tff.FederatedType):
        return bool(type_spec.placement is placement)
    return isinstance(type_spec, tff.StructType) and all(
        _placed(element, placement) for _, element in tff.structure.iter_elements(type_spec)
    )
