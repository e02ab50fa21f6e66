"""What devices are answered, and what they may bring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from fcp_core.aggregation.spec import TensorSpec
from fcp_core.protocol.checkpoint import open_checkpoint
from fcp_core.protocol.protos import secagg_messages_pb2 as messages
from fcp_core.protocol.protos import secure_aggregations_pb2 as pb
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.protocols import Call, Tickets
from fcp_secagg.cohort import Device
from fcp_secagg.packing import VectorSpec
from fcp_secagg.parameters import Parameters


def start_response(
    tickets: Tickets,
    parameters: Parameters,
    specs: Sequence[VectorSpec],
    masked: str,
    plain: str,
) -> Any:
    """Return what a device needs to begin.

    :param masked: the slot of the masked upload.
    :param plain: that of the checkpoint in the clear.
    """
    response = pb.StartSecureAggregationResponse(
        secagg_protocol_forwarding_info=tickets.forwarding, client_token=tickets.client_token
    )
    for spec in specs:
        response.secure_aggregands[spec.name].modulus = spec.modulus
    info = response.protocol_execution_info
    info.expected_number_of_clients = parameters.degree
    info.minimum_surviving_clients_for_reconstruction = parameters.threshold
    for resource, slot in (
        (response.masked_result_resource, masked),
        # The published client wants an address here even if it uploads nothing in the clear.
        (response.nonmasked_result_resource, plain),
    ):
        resource.resource_name = tickets.upload_name(slot)
        resource.data_upload_forwarding_info.CopyFrom(tickets.upload_forwarding)
    return response


def submitted(call: Call, device: Device, needs_plain: bool, masked: str, plain: str) -> None:
    """Check that a submission names what was uploaded, and all that is needed was.

    :raises StatusError: INVALID_ARGUMENT if not; the device may upload, and submit again.
    """
    request = call.request
    for name, slot, there, needed in (
        (request.masked_result_resource_name, masked, device.masked is not None, True),
        (request.nonmasked_result_resource_name, plain, device.plain is not None, needs_plain),
    ):
        if name and name != call.tickets.upload_name(slot):
            raise StatusError(
                Code.INVALID_ARGUMENT,
                f"{name!r} is not the resource name of the {slot} upload; submit the one given",
            )
        if needed and not (there and name):
            raise StatusError(
                Code.INVALID_ARGUMENT,
                f"the {slot} result was not uploaded, or is not named; upload it, and submit again",
            )


def masked_input(data: bytes) -> Any:
    """Parse a masked upload.

    :raises StatusError: INVALID_ARGUMENT if it is none.
    """
    try:
        return messages.MaskedInputCollectionResponse.FromString(data)
    except DecodeError as error:
        raise StatusError(
            Code.INVALID_ARGUMENT, f"the masked upload is no MaskedInputCollectionResponse: {error}"
        ) from None


def check_plain(data: bytes, specs: Sequence[TensorSpec]) -> None:
    """Check a checkpoint in the clear: one that is refused later would cost the whole cohort.

    :raises StatusError: INVALID_ARGUMENT if a tensor is missing, of another type, or not finite.
    """
    checkpoint = open_checkpoint(data)
    for spec in specs:
        if spec.name not in checkpoint:
            raise StatusError(Code.INVALID_ARGUMENT, f"the checkpoint has no tensor {spec.name!r}")
        tensor = checkpoint[spec.name]
        if not spec.matches(tensor):
            raise StatusError(
                Code.INVALID_ARGUMENT,
                f"the task expects {spec}, the checkpoint has {tensor.dtype}{list(tensor.shape)}",
            )
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            raise StatusError(Code.INVALID_ARGUMENT, f"tensor {spec.name!r} is not finite")
