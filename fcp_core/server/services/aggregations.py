"""The service that devices bring their contributions to.

Each assignment brings one contribution. A client of 2026 whose plan yields several checkpoints (one
for each privacy id) would start one upload for each with the same token; the second is refused, and
so is a task with such a plan when it is submitted.
"""

from __future__ import annotations

from collections.abc import Callable

from fcp_core.protocol.protos import aggregations_pb2 as pb
from fcp_core.protocol.protos import common_pb2 as common
from fcp_core.protocol.protos import google_longrunning_operations_pb2 as longrunning
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.clock import Clock
from fcp_core.rounds.contributions import Contribution, ContributionBook
from fcp_core.rounds.operations import OperationBook, operation_name
from fcp_core.rounds.tokens import TokenSource
from fcp_core.server.services.eligibility import code_of
from fcp_core.server.services.round import Round
from fcp_core.server.services.tasks import Tasks


class Aggregations:
    """``google.internal.federatedcompute.v1.Aggregations``."""

    def __init__(
        self,
        *,
        clock: Clock,
        tokens: TokenSource,
        book: ContributionBook,
        operations: OperationBook,
        tasks: Tasks,
        base_url: Callable[[], str],
    ) -> None:
        self._clock = clock
        self._tokens = tokens
        self._book = book
        self._operations = operations
        self._tasks = tasks
        self._base_url = base_url

    async def start_aggregation_data_upload(
        self, request: pb.StartAggregationDataUploadRequest, sender: str | None = None
    ) -> longrunning.Operation:
        """Use up an authorization token; the operation is done and says where to upload.

        :raises StatusError: NOT_FOUND for an aggregation that this server never had,
            UNAUTHENTICATED for a token that is unknown or was used, ABORTED if the round is over,
            PERMISSION_DENIED for an assignment of somebody else's session.
        """
        now = self._clock.now()
        token = request.authorization_token
        contribution = self._find(request.aggregation_id, token, "authorization token")
        if "." in token:
            raise StatusError(
                Code.UNAUTHENTICATED,
                "this is a client token; an upload starts with the "
                "authorization token of the assignment",
            )
        round_ = self._round(contribution, sender)
        ticket = round_.start_upload(contribution, token, now)
        forwarding = common.ForwardingInfo(target_uri_prefix=self._base_url())
        response = pb.StartAggregationDataUploadResponse(
            aggregation_protocol_forwarding_info=forwarding,
            resource=common.ByteStreamResource(
                data_upload_forwarding_info=forwarding, resource_name=ticket.resource_name
            ),
            client_token=ticket.client_token,
        )
        return self._operations.done(
            operation_name(self._tokens.uuid()),
            pb.StartAggregationDataUploadMetadata(),
            response,
            now,
        )

    async def submit_aggregation_result(
        self, request: pb.SubmitAggregationResultRequest, sender: str | None = None
    ) -> pb.SubmitAggregationResultResponse:
        """Aggregate what was uploaded; when this returns, it is in the aggregate.

        A wrong resource name, or submitting before uploading, is refused with INVALID_ARGUMENT and
        does not use up the token.

        :raises StatusError: as :meth:`start_aggregation_data_upload`; INVALID_ARGUMENT, with the
            reason, if the checkpoint does not fit.
        """
        contribution = self._find(request.aggregation_id, request.client_token, "client token")
        contribution.check_client(request.client_token)
        round_ = self._round(contribution, sender)
        await round_.submit(contribution, request.client_token, request.resource_name)
        return pb.SubmitAggregationResultResponse()

    async def abort_aggregation(
        self, request: pb.AbortAggregationRequest, sender: str | None = None
    ) -> pb.AbortAggregationResponse:
        """Let a device give up. If its assignment has ended already, nothing happens.

        :raises StatusError: NOT_FOUND for an aggregation that this server never had,
            UNAUTHENTICATED for a client token that is unknown or was used.
        """
        contribution = self._find(request.aggregation_id, request.client_token, "client token")
        try:
            contribution.check_client(request.client_token)
        except StatusError as error:
            if error.code is not Code.ABORTED:
                raise
            return pb.AbortAggregationResponse()
        code = code_of(request.status.code)
        self._round(contribution, sender).drop(
            contribution.assignment,
            "aborted",
            Code.CANCELLED if code is Code.OK else code,
            request.status.message or "the device aborted",
        )
        return pb.AbortAggregationResponse()

    def _find(self, aggregation_id: str, token: str, what: str) -> Contribution:
        self._tasks.round_of(aggregation_id)
        contribution = self._book.find(token, what)
        if contribution.aggregation_id != aggregation_id:
            raise StatusError(
                Code.UNAUTHENTICATED, f"this {what} is for another aggregation than the one named"
            )
        return contribution

    def _round(self, contribution: Contribution, sender: str | None) -> Round:
        contribution.check_live()
        round_ = self._tasks.round_of(contribution.aggregation_id)
        if round_ is None:
            raise StatusError(Code.ABORTED, "the round is over; check in again")
        round_.check_sender(contribution, sender)
        return round_
