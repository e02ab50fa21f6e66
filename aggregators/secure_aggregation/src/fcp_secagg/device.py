"""Secure aggregation on the device's seam."""

from __future__ import annotations

import secrets
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import numpy as np

from fcp_core.client.protocols import (
    CallStep,
    DeviceProtocol,
    PlanResults,
    Step,
    Together,
    UploadStep,
)
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.protos import secagg_messages_pb2 as messages
from fcp_core.protocol.protos import secure_aggregations_pb2 as pb
from fcp_core.protocol.status import Code, StatusError
from fcp_secagg.client import SecAggClient
from fcp_secagg.packing import Vector, VectorSpec
from fcp_secagg.primitives import Secrets

if TYPE_CHECKING:
    from fcp_core.protocol.protos.task_assignments_pb2 import TaskAssignment

_LARGEST = 2**62


class SecureAggregationDevice(DeviceProtocol):
    """Masks what is to be summed under masks, and helps to unmask the sum.

    :param random: returns bytes that nobody can predict.
    :param threshold_above: of which fraction of its neighbours more must be needed to put a key
        together, whatever the server says; with 0.5, none that lies about who is gone has both keys
        of the device.
    """

    comes_back = (Code.ABORTED, Code.DEADLINE_EXCEEDED)

    def __init__(
        self, random: Secrets = secrets.token_bytes, *, threshold_above: float = 0.0
    ) -> None:
        self._secrets = random
        self._threshold_above = threshold_above

    def accepts(self, assignment: TaskAssignment) -> bool:
        """Whether an assignment is one of secure aggregation."""
        return assignment.HasField("secure_aggregation_info")

    def contribute(
        self, assignment: TaskAssignment, results: PlanResults
    ) -> Generator[Step, Any, None]:
        """Contribute the results.

        Tensors that the plan routes to secure aggregation leave the device masked. Of a plan that
        routes none, those do which the server names; all others go in the clear.

        :raises StatusError: from the generator: as the server refuses; CANCELLED if going on would
            give the results away.
        """
        started = yield CallStep(
            "SecureAggregations.StartSecureAggregation",
            pb.StartSecureAggregationRequest(
                aggregation_id=assignment.aggregation_id,
                authorization_token=assignment.authorization_token,
            ),
            assignment.aggregation_data_forwarding_info,
        )
        session = _Session(assignment, started)
        try:
            _check_threshold(started.protocol_execution_info, self._threshold_above)
            vectors, plain = split(results, started)
            yield from session.run(vectors, plain, self._secrets)
        except _GaveUpError as error:
            yield session.abort(error)
            raise StatusError(Code.CANCELLED, str(error)) from None


class _GaveUpError(Exception):
    """The device itself ends the session."""


class _Session:
    """The calls of one session."""

    def __init__(self, assignment: TaskAssignment, started: Any) -> None:
        self._forwarding = started.secagg_protocol_forwarding_info
        resources = (started.masked_result_resource, started.nonmasked_result_resource)
        for info in (self._forwarding, *(r.data_upload_forwarding_info for r in resources)):
            if not info.target_uri_prefix:
                raise StatusError(
                    Code.INVALID_ARGUMENT, "the server does not say where calls or uploads go"
                )
        self._started = started
        self._who: dict[str, Any] = {
            "aggregation_id": assignment.aggregation_id,
            "client_token": started.client_token or assignment.authorization_token,
        }

    def run(
        self, vectors: dict[str, tuple[VectorSpec, Vector]], plain: bytes | None, random: Secrets
    ) -> Generator[Step, Any, None]:
        """Go through the rounds."""
        started, info = self._started, self._started.protocol_execution_info
        try:
            client = SecAggClient(
                info.expected_number_of_clients,
                info.minimum_surviving_clients_for_reconstruction,
                [spec for spec, _ in vectors.values()],
                random,
            )
            client.set_input({name: vector for name, (_, vector) in vectors.items()})
        except ValueError as error:
            raise _GaveUpError(str(error)) from None

        request: Any = pb.AdvertiseKeysRequest(**self._who, advertise_keys=client.start())
        answer = yield self._call("AdvertiseKeys", request)
        reply = _reply(client, answer.share_keys_server_request)

        request = pb.ShareKeysRequest(**self._who, share_keys_client_response=reply)
        answer = yield self._call("ShareKeys", request)
        reply = _reply(client, answer.masked_input_collection_server_request)

        masked = started.masked_result_resource
        request = pb.SubmitSecureAggregationResultRequest(
            **self._who, masked_result_resource_name=masked.resource_name
        )
        uploads = [UploadStep(masked, reply.SerializeToString(), compress=False)]
        if plain is not None:
            resource = started.nonmasked_result_resource
            request.nonmasked_result_resource_name = resource.resource_name
            uploads.append(UploadStep(resource, plain, compress=False))
        yield Together(tuple(uploads))
        answer = yield self._call("SubmitSecureAggregationResult", request)
        reply = _reply(client, answer.unmasking_server_request)

        request = pb.UnmaskRequest(**self._who, unmasking_client_response=reply)
        yield self._call("Unmask", request)

    def abort(self, error: Exception) -> CallStep:
        """Return the call that tells the server that the device gives up."""
        request = pb.AbortSecureAggregationRequest(**self._who)
        request.status.code = int(Code.INTERNAL)
        request.status.message = str(error)
        return self._call("AbortSecureAggregation", request, best_effort=True)

    def _call(self, method: str, request: Any, best_effort: bool = False) -> CallStep:
        return CallStep(f"SecureAggregations.{method}", request, self._forwarding, best_effort)


def _check_threshold(info: Any, above: float) -> None:
    needed, of = info.minimum_surviving_clients_for_reconstruction, info.expected_number_of_clients
    if needed <= above * of:
        raise _GaveUpError(
            f"{needed} of {of} neighbours could put a key together; this device wants more than "
            f"{above:g} of them"
        )


def _reply(client: SecAggClient, message: Any) -> Any:
    reply = client.receive(message)
    if isinstance(reply, messages.AbortMessage):
        raise _GaveUpError(reply.diagnostic_info)
    return reply


def split(
    results: PlanResults, started: Any
) -> tuple[dict[str, tuple[VectorSpec, Vector]], bytes | None]:
    """Divide results into vectors to mask and a checkpoint that goes in the clear, or None.

    :param started: the server's ``StartSecureAggregationResponse``.
    :raises _GaveUpError: if the two do not fit together.
    """
    aggregands = started.secure_aggregands
    checkpoint = results.checkpoint
    secure = dict(results.secure)
    if not secure:
        tensors = dict(open_checkpoint(checkpoint))
        secure = {name: tensors.pop(name) for name in list(tensors) if name in aggregands}
        checkpoint = write_checkpoint(tensors, "federated_compute") if tensors else b""
    if not secure:
        raise _GaveUpError("nothing of the results is to be masked")
    vectors = {}
    for name, tensor in secure.items():
        if name not in aggregands:
            raise _GaveUpError(f"the server names no modulus for {name!r}")
        vectors[name] = _vector(name, np.asarray(tensor), aggregands[name].modulus)
    return vectors, checkpoint or None


def _vector(name: str, tensor: Any, modulus: int) -> tuple[VectorSpec, Vector]:
    try:
        spec = VectorSpec(name, tensor.size, modulus)
    except ValueError as error:
        raise _GaveUpError(str(error)) from None
    if tensor.dtype.kind not in "iu":
        raise _GaveUpError(f"tensor {name!r} is {tensor.dtype}, and only integers can be masked")
    flat = tensor.reshape(-1)
    if int(flat.min()) < 0 or int(flat.max()) >= modulus:
        # The server is told this, and the modulus is its choice: so no element is named.
        raise _GaveUpError(
            f"tensor {name!r} has elements that do not all lie from 0 to below {modulus}"
        )
    return spec, flat.astype(np.uint64)
