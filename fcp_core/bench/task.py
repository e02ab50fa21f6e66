"""The task that a run offers when it brings its own: a sum of one array of float32."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.engine import CheckpointFormat
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.protos import data_type_pb2, plan_pb2
from fcp_core.rounds.tasks import TaskSpec

#: What the devices' array is called, and its sum.
INPUT, OUTPUT = "update", "total"
#: How many different contributions there are.
KINDS = 4
#: The values are whole numbers up to this, either way and never 0, so that their sums are exact...
_LARGEST = 1024
#: ... for so many contributions; with more of them, rounding is allowed for.
_EXACT = 2**24 // _LARGEST


@dataclass(frozen=True)
class BenchTask:
    """A generated task and what its devices contribute.

    :param elements: how many float32 there are in a contribution.
    :param checkpoint_format: of the contributions.
    :param broadcast: whether devices download a checkpoint of that size.
    """

    elements: int = 1
    checkpoint_format: CheckpointFormat = "federated_compute"
    broadcast: bool = False
    seed: int = 0

    def spec(self, population: str, name: str, goal: int, deadline: float) -> TaskSpec:
        """Return the task.

        :param deadline: seconds until it ends in any case.
        """
        intrinsic = Intrinsic(
            "federated_sum",
            inputs=(TensorSpec(INPUT, DataType.FLOAT, (self.elements,)),),
            outputs=(TensorSpec(OUTPUT, DataType.FLOAT, (self.elements,)),),
        )
        plan = plan_pb2.ClientOnlyPlan()
        query = plan.phase.example_query_spec.example_queries.add()
        query.example_selector.collection_uri = "app:/fcp-bench"
        query.output_vector_specs[INPUT].vector_name = INPUT
        query.output_vector_specs[INPUT].data_type = data_type_pb2.FLOAT
        routes = plan.phase.federated_example_query.aggregations
        routes[INPUT].federated_compute_checkpoint_aggregation.SetInParent()
        model = {"model": self._array(KINDS)}
        return TaskSpec(
            population=population,
            name=name,
            plan=plan.SerializeToString(),
            aggregation=configuration_to_proto([intrinsic]).SerializeToString(),
            goal_count=goal,
            # As many devices are at work as the load has, and none is lost on purpose.
            over_selection=1.0,
            checkpoint=write_checkpoint(model, self.checkpoint_format) if self.broadcast else b"",
            deadline=deadline,
            result_format="federated_compute",
        )

    def bodies(self, compressed: bool) -> list[bytes]:
        """Return the contributions, as they are sent.

        :param compressed: whether they are gzipped.
        """
        written = [
            write_checkpoint({INPUT: self._array(kind)}, self.checkpoint_format)
            for kind in range(KINDS)
        ]
        return [gzip.compress(data, 1, mtime=0) for data in written] if compressed else written

    def is_result(self, result: bytes, contributed: Sequence[int]) -> bool:
        """Whether a result is the sum of the contributions.

        :param contributed: how many there are of each kind.
        """
        expected = np.zeros(self.elements)
        for kind, count in enumerate(contributed):
            expected += count * self._array(kind).astype(np.float64)
        found = open_checkpoint(result)[OUTPUT]
        rounding = 0.0 if sum(contributed) <= _EXACT else 1e-3
        return bool(np.allclose(found, expected, rtol=rounding, atol=_LARGEST * rounding))

    def _array(self, kind: int) -> npt.NDArray[np.float32]:
        rng = np.random.default_rng((self.seed, kind))
        sizes = rng.integers(1, _LARGEST, self.elements, np.int32, endpoint=True)
        signs = rng.integers(0, 2, self.elements, np.int32) * 2 - 1
        return (sizes * signs).astype(np.float32)
