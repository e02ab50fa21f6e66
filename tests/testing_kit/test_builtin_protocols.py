"""The built-in protocol obeys the laws."""

from fcp_aggregators.plugin import fcp_register_aggregation_protocols
from fcp_core.client.plain import PlainUpload
from fcp_core.testing import AggregationProtocolConformance


class TestSimple(AggregationProtocolConformance):
    (factory,) = fcp_register_aggregation_protocols()

    def device(self):
        return PlainUpload()
