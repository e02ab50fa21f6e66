"""A TFF computation with a name, checked to be one that devices can run."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow_federated as tff

from fcp_platform import intrinsics, lowering
from fcp_platform.data_source import check_name
from fcp_platform.plan_cache import PlanCache
from fcp_platform.unused import without_unused


class FederatedComputation(tff.framework.ConcreteComputation):  # type: ignore[misc]
    """A computation (state, client data) to (state, metrics) that a context runs as a task.

    In a context of TFF's own it is simulated there, like the computation that it wraps.

    :param comp: of type ``(<S@SERVER, {D}@CLIENTS> -> <S@SERVER, M@SERVER>)``. There may be no new
        state, ``(<S@SERVER, {D}@CLIENTS> -> M@SERVER)``, as in an evaluation, and no state at all,
        ``({D}@CLIENTS -> M@SERVER)``.
    :param name: words separated by slashes; the name of the task that devices see.
    :raises TypeError: if *comp* is not such a computation.
    :raises ValueError: if the name is not one, or *comp* uses an intrinsic that cannot run on
        devices, or broadcasts what depends on an aggregate.
    """

    def __init__(self, comp: Any, *, name: str) -> None:
        check_name("name", name)
        self._form = _form_of(comp)
        intrinsics.call_dominant(comp.to_building_block())
        super().__init__(
            computation_proto=tff.framework.ConcreteComputation.get_proto(comp),
            context_stack=tff.framework.get_context_stack(),
            annotated_type=comp.type_signature,
        )
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
    def takes_state(self) -> bool:
        """Whether the first of two arguments is a state, and not client data the only one."""
        return self._form.takes_state

    @property
    def returns_state(self) -> bool:
        """Whether the first of two results is the new state, and not metrics the only one."""
        return self._form.returns_state

    @property
    def round_type(self) -> Any:
        """The type of the computation as devices run it: with a state, and with a new one."""
        return self._whole.type_signature

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
        return without_unused(lowering.lower(*self._split))

    def lower(self, cache: PlanCache | None) -> None:
        """Lower the computation, or find it in a cache; nothing happens if it is lowered already.

        :raises ValueError: as :attr:`lowered`.
        :raises TypeError: as :attr:`lowered`.
        """
        if cache is None or "lowered" in self.__dict__:
            self.lowered  # noqa: B018  # makes it
            return
        found = cache.get(self._whole)
        if found is None:
            cache.put(self._whole, self.lowered)
        else:
            self.__dict__["lowered"] = found  # what the property would keep

    @functools.cached_property
    def _whole(self) -> Any:
        return _with_state(self._comp, self._form)

    @functools.cached_property
    def _split(self) -> tuple[Any, intrinsics.Functions]:
        return lowering.distribute_aggregate_form(self._whole)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Invoke the computation in the current TFF context.

        :raises TypeError: for keywords that are not the computation's, or are given twice.
        """
        # The number of arguments is for the context to check.
        names = itertools.chain(self._form.parameters, itertools.repeat(None))
        given = list(zip(names, args, strict=False))
        arg = [*given, *self._named(len(args), kwargs)]
        whole = tff.structure.Struct(arg)
        if not self.takes_state and len(arg) == 1:
            whole = arg[0][1]
        return tff.framework.get_context_stack().current.invoke(self, whole)

    def _named(self, position: int, kwargs: dict[str, Any]) -> list[tuple[str, Any]]:
        """Return the arguments given by name, in the order of the parameters.

        :param position: of the first parameter that has no argument yet.
        """
        names = self._form.parameters
        for name in kwargs:
            if name not in names:
                known = ", ".join(repr(each) for each in names if each is not None) or "none"
                raise TypeError(f"there is no argument {name!r}; those with a name are {known}")
            if names.index(name) < position:
                raise TypeError(f"the argument {name!r} is given twice")
        return [(name, kwargs[name]) for name in names[position:] if name in kwargs]

    def __hash__(self) -> int:
        """Return a hash of the computation and the name."""
        return hash((self._comp, self._name))

    def __eq__(self, other: object) -> bool:
        """Whether both wrap one computation under one name."""
        if not isinstance(other, FederatedComputation):
            return NotImplemented
        return self._comp == other._comp and self._name == other._name


@dataclass(frozen=True)
class _Form:
    """What a computation takes and returns.

    :param parameters: the names of its arguments; None for one that has none.
    """

    takes_state: bool
    returns_state: bool
    parameters: tuple[str | None, ...]


def _form_of(comp: Any) -> _Form:
    """Return a computation's form.

    :raises TypeError: if devices cannot run it.
    """
    if not isinstance(comp, tff.framework.ConcreteComputation):
        raise TypeError(
            f"comp must be a TFF computation, found {type(comp).__name__}; polymorphic "
            "computations and plain functions must be given their types first"
        )
    parameter, result = comp.type_signature.parameter, comp.type_signature.result
    if parameter is not None and _placed(parameter, tff.CLIENTS):
        _check_placed("the result (metrics)", result, tff.SERVER)
        return _Form(False, False, (None,))
    if not isinstance(parameter, tff.StructType) or len(parameter) != 2:
        raise TypeError(
            "comp must take two arguments, state and client data, or client data alone, found "
            f"{parameter}"
        )
    _check_placed("the first argument (state)", parameter[0], tff.SERVER)
    _check_placed("the second argument (client data)", parameter[1], tff.CLIENTS)
    names = tuple(name for name, _ in tff.structure.iter_elements(parameter))
    if isinstance(result, tff.FederatedType) or _names_metrics(result):
        # A federated result is metrics alone, whatever structure it has inside.
        _check_placed("the result (metrics)", result, tff.SERVER)
        return _Form(True, False, names)
    if not isinstance(result, tff.StructType) or len(result) != 2:
        raise TypeError(
            f"comp must return two values, state and metrics, or metrics as one federated value, "
            f"found {result}"
        )
    _check_placed("the first result (state)", result[0], tff.SERVER)
    _check_placed("the second result (metrics)", result[1], tff.SERVER)
    if not parameter[0].is_assignable_from(result[0]):
        raise TypeError(
            f"comp must return a state of the type it takes: {parameter[0]}, found {result[0]}; "
            "metrics without a state are one federated value"
        )
    return _Form(True, True, names)


def _names_metrics(result: Any) -> bool:
    """Whether a result is certainly metrics by name, not a pair of a state and metrics."""
    if not isinstance(result, tff.StructType) or len(result) in (0, 2):
        return False
    return all(name is not None for name, _ in tff.structure.iter_elements(result))


def _with_state(comp: Any, form: _Form) -> Any:
    """Return a computation that takes a state and returns one, as rounds do."""
    if form.takes_state and form.returns_state:
        return comp
    parameter = comp.type_signature.parameter
    if form.takes_state:
        return tff.federated_computation(
            lambda state, data: (state, comp(state, data)), [parameter[0], parameter[1]]
        )
    nothing = tff.FederatedType(np.int32, tff.SERVER)
    return tff.federated_computation(lambda state, data: (state, comp(data)), [nothing, parameter])


def _check_placed(what: str, type_spec: Any, placement: Any) -> None:
    if not _placed(type_spec, placement):
        raise TypeError(f"{what} must be placed at {placement}, found {type_spec}")


def _placed(type_spec: Any, placement: Any) -> bool:
    """Whether a type is placed there: as a whole, or each element of a structure."""
    if isinstance(type_spec, tff.FederatedType):
        return bool(type_spec.placement is placement)
    return isinstance(type_spec, tff.StructType) and all(
        _placed(element, placement) for _, element in tff.structure.iter_elements(type_spec)
    )
