"""One round on the server's side: prepare what devices get, and make a result of the aggregate.

Both run with TensorFlow in the calling thread; neither touches an event loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fcp_core.aggregation.configuration import configuration_from_server_aggregations
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_platform import encoding, naming
from fcp_platform.graphs import in_words
from fcp_platform.lowering import Lowered
from fcp_platform.naming import Constant


@dataclass(frozen=True)
class Prepared:
    """What a round begins with.

    :param checkpoint: what devices download; empty if nothing is broadcast.
    :param aggregation: a serialized aggregation ``Configuration``.
    :param slices: what ``federated_select`` serves: name -> key -> checkpoint.
    :param kept: the intermediate state, by tensor name, for :func:`finish`.
    """

    checkpoint: bytes
    aggregation: bytes
    slices: Mapping[str, Mapping[int, bytes]]
    kept: Mapping[str, np.ndarray[Any, Any]]


def prepare(
    lowered: Lowered,
    state: Mapping[str, np.ndarray[Any, Any]],
    uris: Mapping[str, str] | None = None,
) -> Prepared:
    """Run the part of a computation before the broadcast.

    :param state: the state's leaves by name, ``server/...``.
    :param uris: which URIs the aggregation core is asked for instead of those of TFF's intrinsics.
    :raises StatusError: if what the server does fails; the message says in which part.
    """
    with in_words("what the server does before the broadcast"):
        values = lowered.prepare.run(state)
    broadcast = {}
    for leaf, source in lowered.broadcast.items():
        value = source.value if isinstance(source, Constant) else values[source]
        broadcast[leaf.name] = encoding.stored(leaf.name, leaf.dtype).encode_array(value)
    parameters = dict(lowered.aggregations.constants)
    for name, form in lowered.aggregations.parameters.items():
        parameters[name] = form.encode_array(values[name])
    configuration = configuration_from_server_aggregations(lowered.aggregations.configs, parameters)
    for config in configuration.intrinsic_configs:
        config.intrinsic_uri = (uris or {}).get(config.intrinsic_uri, config.intrinsic_uri)
    kept = {
        name: value
        for name, value in values.items()
        if name.startswith(f"{naming.INTERMEDIATE_STATE}/")
    }
    with in_words("the select function of a federated_select"):
        slices = {select.served_at_id: select.slices(values) for select in lowered.selects}
    return Prepared(
        write_checkpoint(broadcast, "tf_v1") if broadcast else b"",
        configuration.SerializeToString(),
        slices,
        kept,
    )


def finish(
    lowered: Lowered,
    prepared: Prepared,
    aggregate: bytes,
    kept: Mapping[str, np.ndarray[Any, Any]] = {},
) -> bytes:
    """Run the part of a computation after the aggregation.

    :param aggregate: the checkpoint that the aggregation gave.
    :param kept: results by name that are other than what the computation makes.
    :returns: a checkpoint with the new state, ``server/...``, and the metrics, ``metrics/...``.
    :raises StatusError: if what the server does fails.
    """
    values = dict(prepared.kept)
    checkpoint = open_checkpoint(aggregate)
    for name, form in lowered.aggregations.outputs.items():
        tensor = checkpoint.get_tensor(name)
        form.check(name, tensor)
        values[name] = form.decode_array(tensor)
    with in_words("what the server does with the aggregate"):
        results = {**lowered.result.run(values), **kept}
    types = {port.leaf.name: port.leaf.type for port in lowered.result.outputs}
    return write_checkpoint(
        {
            name: encoding.stored(name, types[name].dtype).encode_array(value)
            for name, value in results.items()
        },
        "tf_v1",
    )
