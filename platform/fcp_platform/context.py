"""The federated context: runs a program's computations as rounds of a server."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_federated as tff
from tensorflow_federated.python.core.impl.types import type_conversions
from typing_extensions import Self

from fcp_core.protocol.protos import plan_pb2
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.eligibility import EligibilityTask
from fcp_core.rounds.tasks import AssignmentMode, TaskSpec
from fcp_platform import dp as noise
from fcp_platform import intrinsics, naming, plans, rounds, values
from fcp_platform.computation import FederatedComputation
from fcp_platform.data_source import (
    DataSelectionConfig,
    check_name,
    data_type,
    selectors_in_order,
)
from fcp_platform.naming import Leaf
from fcp_platform.plan_cache import PlanCache, default_folder
from fcp_platform.references import CheckpointTensorReference
from fcp_platform.runners import TaskRunner
from fcp_platform.servers import LocalServer, RemoteServer

#: The fields of a specification that come of the computation, its state and the client data.
_MADE = frozenset(
    {
        *("population", "name", "plan", "aggregation", "goal_count", "checkpoint"),
        *("minimum_count", "assignment_mode", "slices", "result_format"),
    }
)


class AggregationFailedError(ValueError):
    """A round that has no result: refused, cancelled, out of time, or short of contributions.

    :param code: why, as a canonical code.
    """

    def __init__(self, name: str, error: StatusError) -> None:
        super().__init__(f"Aggregation failed. {name}: {error.message}")
        self.code: Code = error.code


class FederatedContext(tff.program.FederatedContext):  # type: ignore[misc]
    """Runs :class:`FederatedComputation` on the devices of a population.

    :param population_name: the population; a context has one.
    :param server: a :class:`LocalServer`, whose socket is bound when the context is made and which
        serves between ``__enter__`` and ``__exit__``, or a :class:`RemoteServer`; None: a
        ``LocalServer()`` on a free port of this machine.
    :param base_context: runs all other computations; None: they are refused.
    :param minimum_fraction: of a round's contributions, the part that is enough at its deadline.
    :param plan_cache: the folder that keeps lowered computations for the next run of the program;
        empty: ``fcp/plans`` in the user's cache folder; None: they are not kept.
    :param tflite: whether plans have a TFLite model beside the graph, where TensorFlow can make
        one: published clients prefer it.
    :param uris: aggregators with URIs of their own, by the intrinsic of the computation that asks
        for them: ``{"federated_min": "lowest_quarter"}``. They get the intrinsic's inputs.
    :param dp: who draws the noise of ``tff.aggregators.DifferentiallyPrivateFactory``: ``program``,
        as TFF does, or ``server``, by the aggregators of ``fcp-server-privacy``.
    :param task: fields of a :class:`~fcp_core.rounds.tasks.TaskSpec` that hold for every round,
        such as ``deadline`` in seconds, ``over_selection``, ``max_at_work``, ``resources`` or
        ``selection``; what a round makes itself is not among them. With a ``protocol`` other than
        ``simple`` plans route what is aggregated securely to it, as published clients want.
    :raises ValueError: if the population's name is not one, *minimum_fraction* no fraction, a
        field has a value that no task may have, or *uris* names what is no plain aggregation or
        comes with a *dp* that is the server's.
    :raises TypeError: for a keyword that is no such field, or another kind of server.
    :raises UsageError: if the configuration is invalid, or the server cannot listen.
    """

    def __init__(
        self,
        population_name: str,
        server: LocalServer | RemoteServer | None = None,
        *,
        base_context: Any = None,
        minimum_fraction: float = 1.0,
        plan_cache: str | os.PathLike[str] | None = "",
        tflite: bool = True,
        uris: Mapping[str, str] | None = None,
        dp: str = noise.PROGRAM,
        **task: Any,
    ) -> None:
        check_name("population_name", population_name)
        if not 0 < minimum_fraction <= 1:
            raise ValueError(f"minimum_fraction must be above 0, at most 1, not {minimum_fraction}")
        if dp not in (noise.PROGRAM, noise.SERVER):
            raise ValueError(f"dp must be {noise.PROGRAM!r} or {noise.SERVER!r}, not {dp!r}")
        if dp == noise.SERVER and task.get("costs"):
            raise ValueError("dp='server' books what the server draws: leave costs out")
        if not isinstance(server, LocalServer | RemoteServer | None):
            raise TypeError(f"server must be a LocalServer or a RemoteServer, not {server!r}")
        self._population = population_name
        self._template = _round_template(population_name, task)
        self._base_context = base_context
        self._minimum_fraction = minimum_fraction
        self._plan_cache = None if plan_cache is None else PlanCache(plan_cache or default_folder())
        self._tflite, self._dp = tflite, dp
        self._uris = intrinsics.own_uris(uris or {})
        if self._uris and dp != noise.PROGRAM:
            raise ValueError("uris could take a sum away from the server's noise: leave out one")
        self._plans: dict[tuple[Any, tuple[bytes, ...]], bytes] = {}
        self._runner: TaskRunner = (server or LocalServer()).runner(population_name)

    @property
    def server_port(self) -> int:
        """The port that the server listens on."""
        return self._runner.port

    @property
    def server_url(self) -> str:
        """Where devices reach the server."""
        return self._runner.url

    def set_eligibility_task(self, task: EligibilityTask | None) -> None:
        """Say how the population's devices find out what they are eligible for.

        It holds for who checks in from now on. A server elsewhere keeps it when the program ends,
        and a server of the program's own that was told to store what it knows does too.

        :param task: a TensorFlow plan that weighs tasks on the device, policies, or both, in place
            of what the population has; None: nothing any more.
        :raises StatusError: if a policy is not installed or its options do not do, or the server
            cannot be reached.
        """
        self._runner.set_eligibility_task(self._population, task)

    def __enter__(self) -> Self:
        """Serve, or connect."""
        self._runner.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop serving, or disconnect; rounds that the program waits for fail."""
        self._runner.stop()

    def invoke(self, comp: Any, arg: Any) -> Any:
        """Start a round and return at once; must be called inside a running event loop.

        :param comp: a :class:`FederatedComputation`, or what the base context takes.
        :param arg: the state (values, or references of an earlier round) and the client data (what
            ``FederatedDataSource.iterator().select(k)`` returns).
        :returns: a structure like the result type, of references to values.
        :raises TypeError: if there is no base context for *comp*; for a state that is not made of
            values, client data that is not a selection, or of another type than *comp* reads.
        :raises ValueError: for a wrong number of arguments, a state of another structure, another
            population, a computation that cannot be lowered, or one whose noise the server is to
            draw and cannot.
        """
        if not isinstance(comp, FederatedComputation):
            if self._base_context is None:
                raise TypeError(
                    "the computation must be a FederatedComputation if no base_context was "
                    f"provided to run others; it is a {type(comp).__name__}"
                )
            return self._base_context.invoke(comp, arg)
        state, data = _arguments(comp, arg)
        values.check_leaves(state)
        if not isinstance(data, DataSelectionConfig):
            raise TypeError(
                f"arg[{int(comp.takes_state)}] must be the result of "
                f"FederatedDataSource.iterator().select(), found {type(data).__name__}"
            )
        if data.population_name != self._population:
            raise ValueError(
                "the population_names must match: the FederatedDataSource's is "
                f"{data.population_name!r}, the FederatedContext's {self._population!r}"
            )
        leaves = values.given(state, comp.round_type.parameter[0], naming.STATE)
        plan = self._plan(comp, data)
        task = asyncio.get_running_loop().create_task(
            self._round(comp, leaves, data, plan), name=f"round of {comp.name}"
        )
        return _result(comp, task)

    def lower(self, comp: FederatedComputation) -> None:
        """Lower a computation now, or find it in the plan cache, rather than when it first runs.

        :raises ValueError: if a part of it cannot be made a TensorFlow graph.
        :raises TypeError: for a tensor that cannot travel.
        """
        comp.lower(self._plan_cache)

    def _plan(self, comp: FederatedComputation, data: DataSelectionConfig) -> bytes:
        selectors = _selectors(comp, data)
        key = (
            comp.wrapped_computation,
            tuple(selector.SerializeToString(deterministic=True) for selector in selectors),
        )
        if key not in self._plans:
            self.lower(comp)
            if self._dp == noise.SERVER:
                noise.the_one(comp.lowered)
            plan: plan_pb2.ClientOnlyPlan = plans.build_plan(
                comp.lowered,
                selectors,
                routed=self._template.protocol not in (None, "simple"),
                tflite=self._tflite,
            )
            # A program that is started again must make the same bytes.
            self._plans[key] = plan.SerializeToString(deterministic=True)
        return self._plans[key]

    async def _round(
        self,
        comp: FederatedComputation,
        leaves: list[tuple[Leaf, Any]],
        data: DataSelectionConfig,
        plan: bytes,
    ) -> bytes:
        """Run a round; return the checkpoint of the new state and the metrics."""
        state = await asyncio.gather(*(_materialize(leaf, value) for leaf, value in leaves))
        try:
            return await self._prepared_round(comp, dict(state), data, plan)
        except StatusError as error:
            raise AggregationFailedError(comp.name, error) from error

    async def _prepared_round(
        self,
        comp: FederatedComputation,
        state: Mapping[str, Any],
        data: DataSelectionConfig,
        plan: bytes,
    ) -> bytes:
        drawn = noise.arranged(comp.lowered, state, self._dp, self._template)
        prepared = await asyncio.to_thread(rounds.prepare, comp.lowered, drawn.state, self._uris)
        mode = data.task_assignment_mode
        spec = self._template.replace(
            **drawn.task,
            name=comp.name,
            plan=plan,
            aggregation=prepared.aggregation,
            goal_count=data.num_clients,
            checkpoint=prepared.checkpoint,
            minimum_count=max(1, math.ceil(data.num_clients * self._minimum_fraction)),
            assignment_mode=AssignmentMode(getattr(mode, "value", mode)),
            slices=prepared.slices,
        )
        aggregate = await self._runner.run(spec)
        return await asyncio.to_thread(rounds.finish, comp.lowered, prepared, aggregate, drawn.kept)


def _round_template(population: str, fields: Mapping[str, Any]) -> TaskSpec:
    """Return a specification with what is the same in every round.

    :raises TypeError: for a field that there is not, or that a round makes itself.
    :raises ValueError: for a value that no task may have.
    """
    for name in fields:
        if name not in TaskSpec.__struct_fields__ or name in _MADE:
            known = ", ".join(n for n in TaskSpec.__struct_fields__ if n not in _MADE)
            raise TypeError(
                f"FederatedContext() got an unexpected keyword argument {name!r}; fields of every "
                f"round's task are {known}"
            )
    spec = TaskSpec(population, "round", plan=b"", aggregation=b"", goal_count=1, **fields)
    try:
        with contextlib.suppress(TypeError):  # a value of a wrong type, which is named below
            spec.check()
        spec.to_bytes()
    except StatusError as error:
        raise ValueError(error.message) from error
    return spec


async def _materialize(leaf: Leaf, value: Any) -> tuple[str, Any]:
    if isinstance(value, tff.program.MaterializableValueReference):
        value = values.as_array(leaf, await value.get_value())
    return leaf.name, value


def _arguments(comp: FederatedComputation, arg: Any) -> tuple[Any, Any]:
    """Return the state and the client data.

    :raises ValueError: if there are more or fewer arguments.
    """
    if not comp.takes_state:
        if isinstance(arg, tff.structure.Struct):
            raise ValueError(f"one argument expected, client data, not {len(arg)}")
        return np.int32(0), arg
    arguments = [] if arg is None else list(arg)
    if len(arguments) != 2:
        raise ValueError(f"two arguments expected, state and client data, not {len(arguments)}")
    return arguments[0], arguments[1]


def _result(comp: FederatedComputation, future: asyncio.Future[bytes]) -> Any:
    """Return the references to a round's results, in containers like TFF's own."""
    result_type = comp.type_signature.result
    if comp.returns_state:
        prefixes = (naming.STATE, naming.METRICS)
        found = tff.structure.Struct(
            (name, _references(element, prefix, future))
            for (name, element), prefix in zip(
                naming.member_types(result_type), prefixes, strict=True
            )
        )
    else:
        found = _references(result_type, naming.METRICS, future)
    if isinstance(naming.unplaced(result_type), tff.StructType):
        return type_conversions.type_to_py_container(found, result_type)
    return found


def _references(type_spec: Any, name: str, future: asyncio.Future[bytes]) -> Any:
    """Return a structure of references like *type_spec*."""
    type_spec = naming.unplaced(type_spec)
    if isinstance(type_spec, tff.StructType):
        return tff.structure.Struct(
            (key, _references(element, naming.element_name(name, key, index), future))
            for index, (key, element) in enumerate(naming.member_types(type_spec))
        )
    return CheckpointTensorReference(name, type_spec.dtype, type_spec.shape, future)


def _selectors(
    comp: FederatedComputation, data: DataSelectionConfig
) -> list[plan_pb2.ExampleSelector]:
    """Return the selectors of a data source, in the order in which a computation reads them.

    :raises TypeError: if it reads something else.
    """
    wanted = _client_type(comp.round_type.parameter[1])
    try:
        return selectors_in_order(data.example_selector, wanted)
    except TypeError as error:
        given = data_type(data.example_selector)
        raise TypeError(
            f"the computation reads client data of type {wanted}, found {given}: {error}"
        ) from error


def _client_type(type_spec: Any) -> Any:
    """Return the type of one client's data: the placement may be of the whole or of the leaves."""
    type_spec = naming.unplaced(type_spec)
    if isinstance(type_spec, tff.StructType):
        return tff.StructType(
            [(name, _client_type(element)) for name, element in naming.member_types(type_spec)]
        )
    return type_spec
