"""A question in SQL to the devices of a population, and the task that it leads to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.errors import MissingExtraError, UsageError
from fcp_core.protocol import sql, wkt
from fcp_core.protocol.protos import plan_pb2
from fcp_core.rounds.specification import TaskSpec
from fcp_core.tasks.schedule import Schedule
from fcp_core.tasks.sql_question import Question
from fcp_core.tasks.tables import Table

if TYPE_CHECKING:
    from fcp_core.tasks.sql_lowering import Lowered


class SqlQuery(Question, frozen=True):
    """A question in SQL, with the task that it leads to; made as :class:`Question`."""

    def lowered(self) -> Lowered:
        """Return what devices, the server and the reader of the result do.

        :raises UsageError: if it is no query that can be answered, naming the clause.
        """
        try:
            from fcp_core.tasks.sql_lowering import lower
        except ModuleNotFoundError:
            raise MissingExtraError("asking in SQL", "analytics") from None
        from fcp_core.tasks.sql_result import check_shown

        lowered = lower(self)
        check_shown(lowered.parsed)
        return lowered

    def to_spec(self, **fields: Any) -> TaskSpec:
        """Return the specification of the task.

        :param fields: the fields of the :class:`TaskSpec`, such as ``population``, ``name`` and
            ``goal_count``.
        :raises UsageError: as :meth:`lowered`.
        :raises StatusError: INVALID_ARGUMENT for a field that no task may have.
        """
        self._check_given()
        lowered = self.lowered()
        configuration = configuration_to_proto(lowered.intrinsics)
        spec = TaskSpec(
            plan=self._plan(lowered).SerializeToString(deterministic=True),
            aggregation=configuration.SerializeToString(deterministic=True),
            result_format="federated_compute",
            query=self.to_text(),
            **fields,
        )
        spec.check()
        return spec

    def _check_given(self) -> None:
        """Refuse what would be passed over: it would look as if it were kept to.

        :raises UsageError: naming the keys. Tasks that 0.2.0 took are read all the same.
        """
        private = self.epsilon is not None
        usual = SqlQuery("")
        bounds = (self.max_groups, self.delta) != (usual.max_groups, usual.delta)
        table = (self.capacity, self.key_bytes) != (usual.capacity, usual.key_bytes)
        wrong = {
            "max_groups and delta go with an epsilon; without one there is no noise": bounds
            and not private,
            "max_rows goes with an epsilon, or with masked": self.max_rows is not None
            and not (private or self.masked),
            "capacity and key_bytes go with masked": table and not self.masked,
            "key_bytes must be at least 8": self.key_bytes < 8,
            "minimum_rows must be from 0 to 1,000,000": not 0 <= self.minimum_rows <= 1_000_000,
        }
        if found := [words for words, is_wrong in wrong.items() if is_wrong]:
            raise UsageError(f"{'; '.join(found)}.")

    def _plan(self, lowered: Lowered) -> plan_pb2.ClientOnlyPlan:
        plan = plan_pb2.ClientOnlyPlan()
        for part in lowered.parts:
            query = plan.phase.example_query_spec.example_queries.add(
                min_output_row_count=self.minimum_rows
            )
            columns = dict(part.columns.values())
            criteria = wkt.Any(type_url=sql.TYPE_URL)
            criteria.value = sql.selection_criteria(part.sql, columns)
            query.example_selector.collection_uri = self.collection
            query.example_selector.criteria.CopyFrom(criteria)
            for tensor, (column, data_type) in part.columns.items():
                query.output_vector_specs[tensor].vector_name = column
                query.output_vector_specs[tensor].data_type = data_type  # type: ignore[assignment]
                aggregations = plan.phase.federated_example_query.aggregations
                aggregations[tensor].tf_v1_checkpoint_aggregation.SetInParent()
        return plan

    def table(self, checkpoint: bytes, release: Mapping[str, Any] | None = None) -> Table:
        """Return what the query asks for, from the result of its task.

        A column of numbers with noise has another one beside it, with the standard deviations that
        follow from that of the noise.

        :param release: of the task's status.
        :raises StatusError: INVALID_ARGUMENT if that is no result of this query.
        """
        from fcp_core.tasks.sql_result import read_result

        noise = {each["output"]: each["stddev"] for each in (release or {}).get("noise", ())}
        return read_result(self.lowered(), checkpoint, noise)

    @classmethod
    def answer(
        cls, text: str, checkpoint: bytes, release: Mapping[str, Any] | None = None
    ) -> Table:
        """Return the result of a task as a table.

        :param text: the query of the task; empty: it has none, and the result is the table.
        :param release: of the task's status.
        :raises UsageError: if a later version made the query.
        :raises StatusError: as for :meth:`table`, and ``Table.of``.
        """
        if not text:
            return Table.of(checkpoint)
        return cls.from_text(text).table(checkpoint, release)

    @classmethod
    def shown(cls, text: str, checkpoint: bytes, release: Mapping[str, Any] | None = None) -> Table:
        """Return the same, or what is in the result if the query cannot be read here.

        :raises StatusError: as :meth:`answer`.
        """
        try:
            return cls.answer(text, checkpoint, release)
        except UsageError:
            return Table.of(checkpoint)

    @classmethod
    def from_text(cls, text: str) -> SqlQuery:
        """Read what :meth:`to_text` wrote.

        :raises UsageError: if a later version wrote it.
        """
        try:
            return msgspec.json.decode(text.encode(), type=cls)
        except msgspec.ValidationError as error:
            raise UsageError(f"the task's query was made by another version: {error}.") from None


@dataclass(frozen=True)
class SqlTask:
    """A task that asks in SQL.

    :param fields: those of the :class:`TaskSpec` that are not made of the query.
    :param schedule: when it is submitted again; None: it is not.
    """

    query: SqlQuery
    fields: Mapping[str, Any]
    schedule: Schedule | None = None

    def to_spec(self) -> TaskSpec:
        """Return the task's specification.

        :raises UsageError: if the query cannot be answered, naming the clause.
        :raises StatusError: INVALID_ARGUMENT for a field that no task may have.
        """
        return self.query.to_spec(**self.fields)
