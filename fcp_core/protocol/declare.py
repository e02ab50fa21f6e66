"""Declares a protobuf service in Python: what a protocol plugin of its own needs, without protoc.

A file that protoc or ``fcp_core.protocol.generate`` made does as well; for a few messages this is
shorter. Field numbers are the order of the fields, so new fields go to the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fcp_core.protocol.pool import POOL, message_class
from fcp_core.protocol.protos import google_api_annotations_pb2 as api
from fcp_core.protocol.protos import google_longrunning_operations_pb2 as longrunning
from fcp_core.protocol.wkt import FileDescriptorProto

_OPERATION = "google.longrunning.Operation"


@dataclass(frozen=True)
class Rpc:
    """A method of a service.

    :param request: the name of its request message.
    :param response: that of its response; of a long-running call, what its operation ends with.
    :param post: the path of its route, with fields of the request in braces.
    :param metadata: the metadata of its operation if it is long-running; with a field
        ``polling_interval`` of type ``google.protobuf.Duration``, or devices ask without a pause.
    """

    name: str
    request: str
    response: str
    post: str
    metadata: str | None = None


class ServiceFile:
    """A file with messages and one service; ``file["JoinRequest"]`` is a message's class.

    :param name: of the file, such as ``fcp_example/sums.proto``; distinct in the process.
    :param package: such as ``example.sums.v1``.
    :param messages: by name, the fields in their order with their types: a scalar's
        (``"string"``), another message's of this file, or a full one
        (``"google.protobuf.Duration"``); ``"repeated bytes"`` for a list.
    :param service: the service's name in the package.
    :raises TypeError: if the file does not fit together.
    """

    def __init__(
        self,
        name: str,
        package: str,
        messages: Mapping[str, Mapping[str, str]],
        service: str,
        rpcs: Sequence[Rpc],
    ) -> None:
        file = FileDescriptorProto(name=name, package=package, syntax="proto3")
        needed = {api.DESCRIPTOR.name, longrunning.DESCRIPTOR.name}
        for title, fields in messages.items():
            message = file.message_type.add(name=title)
            for number, (field, kind) in enumerate(fields.items(), start=1):
                _add_field(message, number, field, kind, package, messages, needed)
        declared = file.service.add(name=service)
        for rpc in rpcs:
            _add_method(declared, rpc, package)
        file.dependency.extend(sorted(needed))
        POOL.AddSerializedFile(file.SerializeToString())
        #: The descriptor, for ``AggregationProtocolFactory.files``.
        self.descriptor = POOL.FindFileByName(name)
        #: The service's full name, for ``AggregationProtocolFactory.services``.
        self.service = f"{package}.{service}"
        self._package = package

    def __getitem__(self, message: str) -> Any:
        """Return the class of a message.

        :raises KeyError: if there is none of that name.
        """
        return message_class(f"{self._package}.{message}")


def _add_field(
    message: Any,
    number: int,
    name: str,
    kind: str,
    package: str,
    own: Mapping[str, Any],
    needed: set[str],
) -> None:
    field = message.field.add(name=name, number=number)
    repeated, kind = kind.startswith("repeated "), kind.removeprefix("repeated ")
    field.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
    scalar = getattr(field, f"TYPE_{kind.upper()}", None)
    if scalar is not None:
        field.type = scalar
    elif kind in own:
        field.type_name = f".{package}.{kind}"
    else:
        field.type_name = f".{kind}"
        needed.add(POOL.FindMessageTypeByName(kind).file.name)


def _add_method(service: Any, rpc: Rpc, package: str) -> None:
    response = f"{package}.{rpc.response}" if rpc.metadata is None else _OPERATION
    method = service.method.add(
        name=rpc.name, input_type=f".{package}.{rpc.request}", output_type=f".{response}"
    )
    rule = method.options.Extensions[api.http]
    rule.post, rule.body = rpc.post, "*"
    if rpc.metadata is not None:
        info = method.options.Extensions[longrunning.operation_info]
        info.response_type, info.metadata_type = rpc.response, rpc.metadata
