"""The plugin: an engine and its options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fcp_core.aggregation.aggregator import AggregatorFactory
from fcp_core.aggregation.engine import Engine, EngineFactory
from fcp_core.plugins import hookimpl

if TYPE_CHECKING:
    from fcp_core.plugins.config import OptionRegistry

fcp_api_version = 1


def _make(factories: Mapping[str, AggregatorFactory], options: Mapping[str, Any]) -> Engine:
    # Dask is not imported for commands that aggregate nothing.
    from fcp_dask.engine import make_engine

    return make_engine(factories, options)


FACTORY = EngineFactory(
    "dask", "the local engine, with jobs and large reports on a Dask cluster", _make
)


@hookimpl
def fcp_add_options(options: OptionRegistry) -> None:
    """Declare the engine's options."""

    def add(name: str, kind: str, default: object, text: str, minimum: float | None = None) -> None:
        options.add("engine.dask", name, kind, default, text, minimum=minimum)

    add(
        "address",
        "str",
        None,
        "of the scheduler, such as tcp://10.0.0.5:8786; not set: DASK_SCHEDULER_ADDRESS, or else a "
        "cluster of this machine that starts and ends with the server",
    )
    add("workers", "int", -1, "processes of a cluster of this machine; -1: one a processor", -1)
    add("tls_ca_file", "path", None, "certificates to check the cluster by, for tls:// addresses")
    add("tls_client_cert", "path", None, "the certificate that the cluster knows this server by")
    add("tls_client_key", "path", None, "its key, if that is not in the same file")
    add(
        "patience",
        "duration",
        "30s",
        "how long a cluster without workers, or that cannot be reached, is waited for before the "
        "server does the work itself",
        0.1,
    )
    add(
        "report_bytes",
        "bytes",
        "64MiB",
        "smaller aggregates of aggregators that keep every contribution are reported in the server",
        0,
    )


@hookimpl
def fcp_register_engines() -> list[EngineFactory]:
    """Offer the engine."""
    return [FACTORY]
