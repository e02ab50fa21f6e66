"""Google's well-known messages as they stand in this project's own descriptor pool.

Use these and not ``google.protobuf.*_pb2``: a message of another pool cannot be copied into ours.
"""

from typing import TYPE_CHECKING

from fcp_core.protocol.pool import message_class

if TYPE_CHECKING:
    from google.protobuf.any_pb2 import Any as Any
    from google.protobuf.descriptor_pb2 import FileDescriptorProto as FileDescriptorProto
    from google.protobuf.duration_pb2 import Duration as Duration
    from google.protobuf.empty_pb2 import Empty as Empty
    from google.protobuf.timestamp_pb2 import Timestamp as Timestamp
else:
    Any = message_class("google.protobuf.Any")
    Duration = message_class("google.protobuf.Duration")
    Empty = message_class("google.protobuf.Empty")
    FileDescriptorProto = message_class("google.protobuf.FileDescriptorProto")
    Timestamp = message_class("google.protobuf.Timestamp")

__all__ = ["Any", "Duration", "Empty", "FileDescriptorProto", "Timestamp"]
