"""Federated programs against a real server, with devices that talk to it over HTTP."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import csv
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow_federated")

import tensorflow as tf
import tensorflow_federated as tff

import fcp_platform as fcp_demo
from fcp_core.client import CallableStore, Client
from fcp_core.plugins import hookimpl
from fcp_core.protocol.protos import client_runner_example_data_pb2, plan_pb2
from fcp_core.protocol.protos.population_eligibility_spec_pb2 import PopulationEligibilitySpec
from fcp_core.protocol.status import Code, StatusError

pytestmark = pytest.mark.tff

POPULATION = "test/population"
COLLECTION = "app:/numbers"
SELECTOR = plan_pb2.ExampleSelector(collection_uri=COLLECTION)
CONFIG = {"retry_min": "50ms", "retry_max": "100ms", "polling_interval": "20ms"}
DATA = tff.FederatedType(tff.SequenceType(np.str_), tff.CLIENTS)
MULTIPLE = PopulationEligibilitySpec.TaskInfo.TASK_ASSIGNMENT_MODE_MULTIPLE


@tff.tensorflow.computation(tff.SequenceType(np.str_))
def total(examples: Any) -> Any:
    return examples.reduce(np.int64(0), lambda sum_, x: sum_ + tf.strings.to_number(x, tf.int64))


@tff.tensorflow.computation(np.int64, np.int64)
def add(a: Any, b: Any) -> Any:
    return a + b


@tff.federated_computation(tff.FederatedType(np.int64, tff.SERVER), DATA)
def sum_up(state: Any, data: Any) -> Any:
    sum_ = tff.federated_sum(tff.federated_map(total, data))
    return tff.federated_map(add, (state, sum_)), collections.OrderedDict(sum=sum_)


@tff.federated_computation(tff.FederatedType(np.int64, tff.SERVER), DATA)
def greatest(state: Any, data: Any) -> Any:
    return state, tff.federated_max(tff.federated_map(total, data))


def source(**kwargs: Any) -> Any:
    return fcp_demo.FederatedDataSource(POPULATION, SELECTOR, **kwargs)


class Progress:
    """Waits for events of the server."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.events: list[Any] = []

    @hookimpl
    def fcp_event(self, event: Any) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def wait_for(self, name: str, count: int = 1) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.count(name) >= count, 60)

    def count(self, name: str) -> int:
        return sum(type(event).__name__ == name for event in self.events)


@contextlib.contextmanager
def serving(**kwargs: Any) -> Iterator[Any]:
    """A context that serves, and is TFF's default."""
    kwargs.setdefault("config", CONFIG)
    with fcp_demo.FederatedContext(POPULATION, **kwargs) as context:
        previous = tff.framework.get_context_stack().current
        tff.framework.set_default_context(context)
        try:
            yield context
        finally:
            tff.framework.set_default_context(previous)


@contextlib.contextmanager
def devices(context: Any, data: Sequence[Callable[[str], list[bytes]]]) -> Iterator[None]:
    """Devices on threads; each holds what its function returns for a collection."""
    done = threading.Event()

    def live(client: Client) -> None:
        while not done.is_set():
            result = client.run_once()
            done.wait(min(result.retry_after, 0.1))

    clients = [
        Client(
            context.server_url,
            POPULATION,
            stores=CallableStore(lambda selector, held=held: held(selector.collection_uri)),
        )
        for held in data
    ]
    threads = [threading.Thread(target=live, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for client in clients:
            client.interrupt()
        for thread in threads:
            thread.join()


def holding(*numbers: int) -> list[Callable[[str], list[bytes]]]:
    return [lambda uri, number=number: [str(number).encode()] for number in numbers]


def test_reference_program_with_client_processes(tmp_path: Path) -> None:
    """The documentation's program: a sum over two rounds, by processes of the command line."""
    computation = fcp_demo.FederatedComputation(sum_up, name="sum")
    iterator = source().iterator()

    async def program() -> list[tuple[int, int]]:
        state: Any = np.int64(5)
        seen = []
        for _ in range(2):
            state, metrics = computation(state, iterator.select(2))
            seen.append((await state.get_value(), await metrics["sum"].get_value()))
        return seen

    with serving() as context, contextlib.ExitStack() as stack:
        for number in (1, 20):
            path = tmp_path / f"examples-{number}"
            message = client_runner_example_data_pb2.ClientRunnerExampleData()
            examples = message.examples_by_collection_uri[COLLECTION].examples
            examples.extend([str(number).encode(), b"300"])
            path.write_bytes(message.SerializeToString())
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "fcp_core", "client"),
                    f"--server=http://localhost:{context.server_port}",
                    f"--population={POPULATION}",
                    f"--example-data-path={path}",
                    "--num-rounds=-1",
                    "--sleep-after-round-secs=0.1",
                ],
                env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
        seen = asyncio.run(program())
    # A device may contribute twice to a round, as in the reference.
    for before, (state, sum_) in zip([5, seen[0][0]], seen, strict=True):
        assert state == before + sum_
        assert sum_ in (602, 621, 640)


def test_multiple_tasks_at_once_and_rounds_of_one_name() -> None:
    single = fcp_demo.FederatedComputation(sum_up, name="single")
    first = fcp_demo.FederatedComputation(sum_up, name="first")
    second = fcp_demo.FederatedComputation(greatest, name="second")
    several = source(task_assignment_mode=MULTIPLE).iterator()
    one_by_one = source().iterator()

    async def program() -> list[Any]:
        zero = np.int64(0)
        rounds = [
            first(zero, several.select(3)),
            second(zero, several.select(3)),
            # The second round of a name starts from the first one's state without waiting for it.
            one := single(zero, one_by_one.select(2)),
            single(one[0], one_by_one.select(2)),
        ]
        return await tff.program.materialize_value(rounds)

    with serving() as context, devices(context, holding(7, 7, 7)):
        (_, a), (_, b), (c, _), (d, _) = asyncio.run(program())
    assert (a["sum"], b, c, d) == (21, 7, 14, 28)


def test_round_in_which_every_client_fails() -> None:
    def fail(uri: str) -> list[bytes]:
        raise StatusError(Code.INVALID_ARGUMENT, f"no collection {uri}")

    computation = fcp_demo.FederatedComputation(sum_up, name="sum")

    async def program() -> None:
        state, _ = computation(0, source().iterator().select(2))
        await state.get_value()

    progress = Progress()
    with (
        serving(round_deadline=2.0, plugins=[progress]) as context,
        devices(context, [fail, fail]),
        pytest.raises(
            fcp_demo.AggregationFailedError, match=r"^Aggregation failed\. sum: "
        ) as error,
    ):
        asyncio.run(program())
    assert error.value.code is Code.DEADLINE_EXCEEDED
    assert progress.count("Dropped") >= 1


def test_minimum_fraction_is_enough_at_the_deadline() -> None:
    computation = fcp_demo.FederatedComputation(sum_up, name="sum")
    progress = Progress()

    async def program() -> Any:
        state, _ = computation(0, source().iterator().select(1000))
        return await state.get_value()

    with (
        serving(round_deadline=1.5, minimum_fraction=0.001, plugins=[progress]) as context,
        devices(context, holding(3)),
    ):
        assert asyncio.run(program()) == 3 * progress.count("Contributed")


def test_cancelled_program_cancels_the_round() -> None:
    computation = fcp_demo.FederatedComputation(sum_up, name="sum")
    progress = Progress()

    async def program() -> None:
        state, _ = computation(0, source().iterator().select(1))
        waiting = asyncio.ensure_future(state.get_value())
        await asyncio.to_thread(progress.wait_for, "TaskOpened")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.to_thread(progress.wait_for, "TaskClosed")

    with serving(plugins=[progress]):
        asyncio.run(program())
    assert [e.code for e in progress.events if type(e).__name__ == "TaskClosed"] == [Code.CANCELLED]


def test_secure_sums_only_where_the_operator_allows() -> None:
    @tff.federated_computation(tff.FederatedType(np.int64, tff.SERVER), DATA)
    def secure(state: Any, data: Any) -> Any:
        return state, tff.federated_secure_sum_bitwidth(tff.federated_map(total, data), 10)

    computation = fcp_demo.FederatedComputation(secure, name="secure")

    async def program() -> Any:
        _, sum_ = computation(0, source().iterator().select(2))
        return await sum_.get_value()

    with (
        serving(),
        pytest.raises(
            fcp_demo.AggregationFailedError,
            match=r"allow_unprotected = true in \[fcp:aggregator.federated_secure_sum_bitwidth\]",
        ) as error,
    ):
        asyncio.run(program())
    assert error.value.code is Code.FAILED_PRECONDITION
    allowed = {**CONFIG, "aggregator.federated_secure_sum_bitwidth.allow_unprotected": True}
    with serving(config=allowed) as context, devices(context, holding(4, 4)):
        assert asyncio.run(program()) == 8


def test_release_managers_and_program_state(tmp_path: Path) -> None:
    """References are released, saved and loaded by TFF's own managers; a program resumes."""
    computation = fcp_demo.FederatedComputation(sum_up, name="sum")
    saved = tff.program.FileProgramStateManager(tmp_path / "state", keep_total=2)
    releases = [
        tff.program.CSVFileReleaseManager(
            tmp_path / "metrics.csv",
            save_mode=tff.program.CSVSaveMode.WRITE,
        ),
        tff.program.TensorBoardReleaseManager(tmp_path / "board"),
        tff.program.LoggingReleaseManager(),
    ]

    async def program(rounds: int) -> Any:
        state, version = await saved.load_latest(np.int64(0))
        if state is None:
            state, version = np.int64(0), 0
        iterator = source().iterator()
        for number in range(version + 1, version + 1 + rounds):
            state, metrics = computation(state, iterator.select(2))
            for manager in releases:
                await manager.release(metrics, key=number)
            await saved.save(state, number)
        return await tff.program.materialize_value(state)

    with serving() as context, devices(context, holding(4, 4)):
        assert asyncio.run(program(2)) == 16
        assert asyncio.run(program(1)) == 24
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["key"], row["sum"]) for row in rows] == [("1", "8"), ("2", "8"), ("3", "8")]
    assert list((tmp_path / "board").iterdir())


def test_tls(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    certificate, key = _self_signed(tmp_path)
    computation = fcp_demo.FederatedComputation(sum_up, name="sum")

    async def program() -> Any:
        state, _ = computation(0, source().iterator().select(1))
        return await state.get_value()

    with serving(certfile=certificate, keyfile=key) as context:
        assert context.server_url.startswith("https://localhost:")
        client = Client(
            context.server_url,
            POPULATION,
            stores=CallableStore(lambda selector: [b"11"]),
            ca_file=str(certificate),
        )
        done = threading.Event()

        def live() -> None:
            while not done.is_set():
                client.run_once()
                done.wait(0.05)

        thread = threading.Thread(target=live)
        thread.start()
        try:
            assert asyncio.run(program()) == 11
        finally:
            done.set()
            client.interrupt()
            thread.join()


def _self_signed(folder: Path) -> tuple[Path, Path]:
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_path, key_path = folder / "cert.pem", folder / "key.pem"
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate_path, key_path
