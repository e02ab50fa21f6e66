"""The descriptor pool that holds this project's protocol messages.

Every message lives in a pool of its own instead of protobuf's process-wide one, because
TensorFlow, googleapis-common-protos and other packages register messages of the same names
there, and two files that define one name in one pool cannot be imported together.
"""

from __future__ import annotations

from typing import Any as _AnyType

from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    duration_pb2,
    empty_pb2,
    message_factory,
    timestamp_pb2,
)
from google.protobuf.descriptor import Descriptor, FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message

POOL = DescriptorPool()

for _module in (descriptor_pb2, any_pb2, duration_pb2, empty_pb2, timestamp_pb2):
    POOL.AddSerializedFile(_module.DESCRIPTOR.serialized_pb)


def message_class(full_name: str) -> _AnyType:
    """Return the message class of a full name, such as ``google.rpc.Status``.

    :raises KeyError: if the pool has no message of that name.
    """
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(full_name))


def adopted(message: Message) -> _AnyType:
    """Return a message of this pool that is equal to one of another, such as TensorFlow's own.

    Messages of two pools cannot be put into each other, though they have one name.

    :raises KeyError: if this pool has no message of its name.
    """
    return message_class(message.DESCRIPTOR.full_name).FromString(
        message.SerializePartialToString()
    )


def _with_nested(message: Descriptor) -> _AnyType:
    """Return a message's class with its nested messages' classes as attributes.

    Protobuf's pure-Python implementation does not set these by itself.
    """
    cls = message_factory.GetMessageClass(message)
    for nested in message.nested_types:
        inner = _with_nested(nested)
        if not hasattr(cls, nested.name):
            setattr(cls, nested.name, inner)
    return cls


def build(serialized: bytes, namespace: dict[str, _AnyType]) -> FileDescriptor:
    """Add one serialized FileDescriptorProto and put its classes into *namespace*.

    Called by the generated ``*_pb2`` modules, with their imports already loaded.
    """
    name = descriptor_pb2.FileDescriptorProto.FromString(serialized).name
    POOL.AddSerializedFile(serialized)
    file: FileDescriptor = POOL.FindFileByName(name)
    for key, message in file.message_types_by_name.items():
        namespace[key] = _with_nested(message)
    for key, enum in file.enum_types_by_name.items():
        namespace[key] = EnumTypeWrapper(enum)
        for value in enum.values:
            namespace[value.name] = value.number
    namespace.update(file.extensions_by_name)
    return file
