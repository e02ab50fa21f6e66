"""The federated context: runs a program's computations as rounds of a server."""

from __future__ import annotations

import asyncio
import math
import os
import socket
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

import tensorflow_federated as tff
from tensorflow_federated.python.core.impl.types import type_conversions
from typing_extensions import Self

from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.protos import plan_pb2
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.eligibility import EligibilityTask
from fcp_core.rounds.tasks import AssignmentMode, ResourceForm, TaskSpec
from fcp_core.server.server import Server
from fcp_platform import naming, plans, rounds, values
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
from fcp_platform.runners import LocalRunner, RemoteRunner, TaskRunner


class AggregationFailedError(ValueError):
    """A round that has no result: refused, cancelled, out of time, or short of contributions.

    :param code: why, as a canonical code.
    """

    def __init__(self, name: str, error: StatusError) -> None:
        super().__init__(f"Aggregation failed. {name}: {error.message}")
        self.code: Code = error.code


class FederatedContext(tff.program.FederatedContext):  # type: ignore[misc]
    """Runs :class:`FederatedComputation` on the devices of a population.

    Without *server* the context has a server of its own: its socket is bound when the context is
    made, and it serves between ``__enter__`` and ``__exit__``.

    :param population_name: the population; a context has one.
    :param base_context: runs all other computations; None: they are refused.
    :param host: what the server listens on; ``""`` is every interface.
    :param port: 0 takes a free one; see :attr:`server_port`.
    :param certfile: a PEM certificate; with one the server speaks HTTPS only.
    :param keyfile: its key, if that is not in *certfile*.
    :param address_family: ``socket.AF_INET`` or ``AF_INET6``; None: both.
    :param config_file: the server's configuration file; None: what the working folder has.
    :param config: configuration values that win over the file, by dotted name, such as
        ``{"aggregator.federated_secure_sum.allow_unprotected": True}``.
    :param plugins: further plugin objects, such as an observer of events.
    :param external_url: where devices reach the server, if not where it listens.
    :param processes: how many processes serve: this one, and others that receive and fold.
    :param server: the address of a server elsewhere, such as ``https://fcp.example.org/``, that the
        rounds run on; the options of a server of its own are refused then.
    :param token: the admin token of that server.
    :param ca_file: PEM certificates to trust instead of the system's.
    :param client_certfile: a PEM certificate that opens the admin API of that server, beside the
        token or instead of it.
    :param client_keyfile: its key, if that is in a file of its own.
    :param program: a name by which a program that is started again finds the rounds that it left on
        that server; None: it leaves none behind.
    :param round_deadline: seconds after which a round ends by itself; None: the server's default.
    :param minimum_fraction: of a round's contributions, the part that is enough at its deadline.
    :param over_selection: how many devices may work at a time, as a multiple of the contributions
        still missing; None: the server's default.
    :param max_at_work: how many devices may work at a time in any case; None: the server's default.
    :param resources: whether devices find plans and checkpoints in the assignment (``inline``), as
        far as the server allows, or fetch them (``uri``); None: as the server's options say.
    :param plan_cache: the folder that keeps lowered computations for the next run of the program;
        empty: ``fcp/plans`` in the user's cache folder; None: they are not kept.
    :raises ValueError: if the population's name is not one, *minimum_fraction* no fraction, or
        *resources* neither of the two.
    :raises UsageError: if the configuration does not do, the server cannot listen, or the options
        are of two kinds of server.
    """

    def __init__(
        self,
        population_name: str,
        *,
        base_context: Any = None,
        host: str = "localhost",
        port: int = 0,
        certfile: str | os.PathLike[str] | None = None,
        keyfile: str | os.PathLike[str] | None = None,
        address_family: socket.AddressFamily | None = None,
        config_file: str | os.PathLike[str] | None = None,
        config: Mapping[str, Any] | None = None,
        plugins: Iterable[object] = (),
        external_url: str | None = None,
        processes: int = 1,
        server: str | None = None,
        token: str | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        client_certfile: str | os.PathLike[str] | None = None,
        client_keyfile: str | os.PathLike[str] | None = None,
        program: str | None = None,
        round_deadline: float | None = None,
        minimum_fraction: float = 1.0,
        over_selection: float | None = None,
        max_at_work: int | None = None,
        resources: ResourceForm | None = None,
        plan_cache: str | os.PathLike[str] | None = "",
    ) -> None:
        check_name("population_name", population_name)
        if not 0 < minimum_fraction <= 1:
            raise ValueError(f"minimum_fraction must be above 0, at most 1, not {minimum_fraction}")
        if resources not in (None, "inline", "uri"):
            raise ValueError(f"resources must be 'inline' or 'uri', not {resources!r}")
        self._population = population_name
        self._base_context = base_context
        self._deadline = round_deadline
        self._minimum_fraction = minimum_fraction
        self._over_selection = over_selection
        self._plan_cache = None if plan_cache is None else PlanCache(plan_cache or default_folder())
        self._max_at_work = max_at_work
        self._resources = resources
        self._plans: dict[tuple[Any, tuple[bytes, ...]], bytes] = {}
        local: dict[str, Any] = {
            "port": port,
            "certfile": certfile,
            "keyfile": keyfile,
            "address_family": address_family,
            "external_url": external_url,
        }
        remote = {
            "token": token,
            "ca_file": ca_file,
            "client_certfile": client_certfile,
            "client_keyfile": client_keyfile,
            "program": program,
        }
        self._runner: TaskRunner
        if server is None:
            _refuse(remote, "needs the address of a server: server='https://...'")
            loaded = Plugins.load(
                config_file=config_file,
                # A program keeps its state itself, and its rounds end with it.
                overrides={"storage": "memory", **(config or {})},
                overrides_origin="FederatedContext(config=...)",
                extra=plugins,
            )
            self._runner = LocalRunner(
                Server(
                    loaded,
                    populations=[population_name],
                    host=host,
                    processes=processes,
                    **local,
                )
            )
        else:
            own: dict[str, Any] = {
                "config_file": config_file,
                "config": config,
                "plugins": tuple(plugins),
            }
            own["host"] = host if host != "localhost" else None
            own["processes"] = processes if processes != 1 else None
            _refuse({**local, **own}, f"is for a server of the program's own, not for {server}")
            if token is None and client_certfile is None:
                raise UsageError(
                    f"the server {server} asks for its admin token, token=..., or for a client "
                    "certificate, client_certfile=..."
                )
            self._runner = RemoteRunner(
                server,
                token,
                ca_file=ca_file,
                certfile=client_certfile,
                keyfile=client_keyfile,
                program=program,
            )

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

    def __exit__(
        self,
        typ: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
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
            population, or a computation that cannot be lowered.
        """
        if not isinstance(comp, FederatedComputation):
            if self._base_context is None:
                raise TypeError(
                    f"a {type(comp).__name__} is not a FederatedComputation, and there is no "
                    "base_context to run it"
                )
            return self._base_context.invoke(comp, arg)
        arguments = [] if arg is None else list(arg)
        if len(arguments) != 2:
            raise ValueError(f"two arguments expected, state and client data, not {len(arguments)}")
        state, data = arguments
        values.check_leaves(state)
        if not isinstance(data, DataSelectionConfig):
            raise TypeError(
                "arg[1] must be the result of FederatedDataSource.iterator().select(), "
                f"found {type(data).__name__}"
            )
        if data.population_name != self._population:
            raise ValueError(
                f"the data are of the population {data.population_name!r}, the context serves "
                f"{self._population!r}"
            )
        leaves = values.flatten(state, comp.type_signature.parameter[0], naming.STATE)
        plan = self._plan(comp, data)
        task = asyncio.get_running_loop().create_task(
            self._round(comp, leaves, data, plan), name=f"round of {comp.name}"
        )
        references = (
            _references(comp.type_signature.result[0], naming.STATE, task),
            _references(comp.type_signature.result[1], naming.METRICS, task),
        )
        result_type = comp.type_signature.result
        named = tff.structure.Struct(
            (name, reference)
            for (name, _), reference in zip(
                naming.member_types(result_type), references, strict=True
            )
        )
        return type_conversions.type_to_py_container(named, result_type)

    def lower(self, comp: FederatedComputation) -> None:
        """Lower a computation now, or find it in the plan cache, rather than when it first runs.

        :raises ValueError: if a part of it cannot be made a TensorFlow graph.
        :raises TypeError: for a tensor that cannot travel.
        """
        comp.lower(self._plan_cache)

    def _plan(self, comp: FederatedComputation, data: DataSelectionConfig) -> bytes:
        selectors = selectors_in_order(data.example_selector)
        key = (
            comp.wrapped_computation,
            tuple(selector.SerializeToString(deterministic=True) for selector in selectors),
        )
        if key not in self._plans:
            _check_data(comp, data)
            self.lower(comp)
            plan: plan_pb2.ClientOnlyPlan = plans.build_plan(comp.lowered, selectors)
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
        prepared = await asyncio.to_thread(rounds.prepare, comp.lowered, dict(state))
        mode = data.task_assignment_mode
        spec = TaskSpec(
            population=self._population,
            name=comp.name,
            plan=plan,
            aggregation=prepared.aggregation,
            goal_count=data.num_clients,
            checkpoint=prepared.checkpoint,
            minimum_count=max(1, math.ceil(data.num_clients * self._minimum_fraction)),
            assignment_mode=AssignmentMode(getattr(mode, "value", mode)),
            deadline=self._deadline,
            over_selection=self._over_selection,
            max_at_work=self._max_at_work,
            resources=self._resources,
            slices=prepared.slices,
        )
        try:
            aggregate = await self._runner.run(spec)
        except StatusError as error:
            raise AggregationFailedError(comp.name, error) from error
        return await asyncio.to_thread(rounds.finish, comp.lowered, prepared, aggregate)


def _refuse(options: Mapping[str, Any], why: str) -> None:
    """Refuse options that were given and go with the other kind of server.

    :raises UsageError: naming the first of them.
    """
    for name, value in options.items():
        if value:
            raise UsageError(f"FederatedContext({name}=...) {why}.")


async def _materialize(leaf: Leaf, value: Any) -> tuple[str, Any]:
    if isinstance(value, tff.program.MaterializableValueReference):
        value = await value.get_value()
    return leaf.name, values.as_array(leaf, value)


def _references(type_spec: Any, name: str, future: asyncio.Future[bytes]) -> Any:
    """Return a structure of references like *type_spec*."""
    type_spec = naming.unplaced(type_spec)
    if isinstance(type_spec, tff.StructType):
        return tff.structure.Struct(
            (key, _references(element, naming.element_name(name, key, index), future))
            for index, (key, element) in enumerate(naming.member_types(type_spec))
        )
    return CheckpointTensorReference(name, type_spec.dtype, type_spec.shape, future)


def _check_data(comp: FederatedComputation, data: DataSelectionConfig) -> None:
    """Check that a computation reads what a data source gives.

    :raises TypeError: if not.
    """
    wanted = comp.type_signature.parameter[1]
    given = tff.FederatedType(data_type(data.example_selector), tff.CLIENTS)
    members = [naming.leaves(type_spec, "data") for type_spec in (wanted, given)]
    if members[0] != members[1]:
        raise TypeError(f"the computation reads client data of type {wanted}, found {given}")
