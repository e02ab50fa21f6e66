"""The built-in protocol obeys the laws."""

from typing import ClassVar

from fcp_aggregators.plugin import fcp_register_aggregation_protocols
from fcp_core.protocol.protos import aggregation_protocol_messages_pb2 as messages
from fcp_core.testing import AggregationProtocolConformance

(SIMPLE,) = fcp_register_aggregation_protocols()


class TestSimple(AggregationProtocolConformance):
    factory = SIMPLE


class TestSimpleWithOutliers(AggregationProtocolConformance):
    factory = SIMPLE
    options: ClassVar = {"detection_interval": 5.0, "grace_period": 1.0}


class TestSimpleByReference(AggregationProtocolConformance):
    """The shell has the bytes; the message says where."""

    factory = SIMPLE

    def message(self, data):
        return messages.ClientMessage(
            simple_aggregation={"input": {"uri": "uploads/" + data.decode()}}
        )
