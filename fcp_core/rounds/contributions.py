"""The machine of one contribution: from its authorization token to its submission.

    AUTHORIZED --start--> STARTED --begin_upload--> UPLOADING --finish_upload--> UPLOADED
                             ^                          |                           |
                             +------abandon_upload------+                         submit
                                                                                    v
                                                                                SUBMITTED

``end`` leads from everywhere to ENDED. The authorization token starts an upload once. What the
device gets then, a client token and a resource name, both begin with it, so that the server knows
them for its own even after a restart, when it remembers no more than the token's hash.

A token that was used is UNAUTHENTICATED. One that cannot lead to a contribution any more, because
the round ended or the server was restarted, is ABORTED: the published client then comes back soon,
where NOT_FOUND or INVALID_ARGUMENT would send it away for hours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from fcp_core.aggregation.engine import HeldBody
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.expiring import Expiring
from fcp_core.rounds.tokens import TokenSource, digest

#: An uploaded checkpoint, as it came off the socket of this process or lies in another.
Body: TypeAlias = bytes | bytearray | memoryview | HeldBody

_LOST = "this assignment is no longer known; check in again"


class ContributionStage(Enum):
    """Where a contribution stands."""

    AUTHORIZED = "authorized"
    STARTED = "started"
    UPLOADING = "uploading"
    UPLOADED = "uploaded"
    SUBMITTED = "submitted"
    ENDED = "ended"


@dataclass(frozen=True)
class UploadTicket:
    """What a device needs to upload and submit.

    :param client_token: names the device in submit and abort.
    :param resource_name: where its checkpoint goes.
    """

    client_token: str
    resource_name: str


class Contribution:
    """One assignment's contribution. Tokens are kept as hashes only.

    :param assignment: the assignment it belongs to.
    :param session_id: the device session it belongs to.
    :ivar assigned_at: when its device was assigned, in seconds since the epoch.
    :ivar upload_seconds: how long its bytes took to come.
    """

    def __init__(
        self, aggregation_id: str, assignment: str, session_id: str, assigned_at: float = 0.0
    ) -> None:
        self.aggregation_id = aggregation_id
        self.assignment = assignment
        self.session_id = session_id
        self.assigned_at = assigned_at
        self.upload_seconds = 0.0
        self._upload_began = 0.0
        self.stage = ContributionStage.AUTHORIZED
        self.body: Body | None = None
        self._on_end: Callable[[], None] | None = None
        self._client_hash = self._resource_hash = ""
        self._why = _LOST

    def start(self, token: str, tokens: TokenSource) -> UploadTicket:
        """Use up the authorization token.

        :raises StatusError: ABORTED if it has ended, UNAUTHENTICATED if the token was used before.
        """
        self.check_live()
        if self.stage is not ContributionStage.AUTHORIZED:
            raise StatusError(
                Code.UNAUTHENTICATED,
                "this authorization token has been used; each is good for one upload",
            )
        ticket = UploadTicket(f"{token}.{tokens.secret()}", f"{token}.{tokens.secret()}")
        self._client_hash = digest(ticket.client_token)
        self._resource_hash = digest(ticket.resource_name)
        self.stage = ContributionStage.STARTED
        return ticket

    def begin_upload(self, resource_name: str, now: float = 0.0) -> None:
        """Let the bytes come.

        :raises StatusError: UNAUTHENTICATED for a name that is wrong or was used, ABORTED if the
            contribution has ended.
        """
        self._check_resource(resource_name)
        self.check_live()
        if self.stage is not ContributionStage.STARTED:
            raise StatusError(
                Code.UNAUTHENTICATED, "this upload has been used; each takes one body"
            )
        self.stage = ContributionStage.UPLOADING
        self._upload_began = now

    def finish_upload(
        self,
        resource_name: str,
        body: Body,
        now: float = 0.0,
        on_end: Callable[[], None] | None = None,
    ) -> None:
        """Take the bytes.

        :param on_end: called when the contribution ends, so that nobody needs them any more.
        :raises StatusError: as :meth:`begin_upload`.
        """
        self._check_resource(resource_name)
        self.check_live()
        if self.stage is not ContributionStage.UPLOADING:
            raise StatusError(Code.UNAUTHENTICATED, "this upload has not begun or is finished")
        self.body = body
        self._on_end = on_end
        self.upload_seconds = now - self._upload_began
        self.stage = ContributionStage.UPLOADED

    def abandon_upload(self, resource_name: str) -> None:
        """Forget an upload whose connection broke: the device may try again."""
        if self.stage is ContributionStage.UPLOADING and self._is_resource(resource_name):
            self.stage = ContributionStage.STARTED

    def submit(self, client_token: str, resource_name: str) -> None:
        """Use up the client token; a request that is refused with INVALID_ARGUMENT does not.

        :raises StatusError: UNAUTHENTICATED for a token that is wrong or was used, ABORTED if the
            contribution has ended, INVALID_ARGUMENT for a wrong resource name, or if nothing was
            uploaded.
        """
        self.check_client(client_token)
        if not self._is_resource(resource_name):
            raise StatusError(
                Code.INVALID_ARGUMENT,
                f"resource_name {resource_name!r} is not the one that was given for this upload; "
                "submit again with that one",
            )
        if self.stage is not ContributionStage.UPLOADED:
            raise StatusError(
                Code.INVALID_ARGUMENT,
                "nothing has been uploaded; upload the checkpoint, then submit again",
            )
        self.stage = ContributionStage.SUBMITTED

    def check_client(self, client_token: str) -> None:
        """Check that the device may submit or abort.

        :raises StatusError: UNAUTHENTICATED for a token that is wrong or was used, ABORTED if the
            contribution has ended.
        """
        if self.stage is not ContributionStage.ENDED and (
            self._client_hash != digest(client_token)
        ):
            raise _unknown("client token")
        self.check_live()
        if self.stage is ContributionStage.SUBMITTED:
            raise StatusError(
                Code.UNAUTHENTICATED, "this client token has been used; each is good for one submit"
            )

    def take_body(self) -> Body:
        """Hand over what was uploaded; it is not kept."""
        body, self.body = self.body, None
        return b"" if body is None else body

    def end(self, why: str) -> None:
        """Close it: what is asked of it from now on is answered ABORTED, with *why*."""
        if self.stage is not ContributionStage.SUBMITTED:
            self.stage = ContributionStage.ENDED
        if isinstance(self.body, HeldBody):
            self.body.drop()
        self.body = None
        self._why = why
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end()

    def check_live(self) -> None:
        """Check that it can still come to something.

        :raises StatusError: ABORTED, with the reason, if not.
        """
        if self.stage is ContributionStage.ENDED:
            raise StatusError(Code.ABORTED, self._why)

    def _is_resource(self, resource_name: str) -> bool:
        return self._resource_hash == digest(resource_name)

    def _check_resource(self, resource_name: str) -> None:
        if self.stage is not ContributionStage.ENDED and not self._is_resource(resource_name):
            raise _unknown("upload")


class ContributionBook:
    """All contributions that a token may still ask for, by the hash of the authorization token."""

    def __init__(self, tokens: TokenSource) -> None:
        self._tokens = tokens
        self._book: Expiring[Contribution] = Expiring()
        self._hashes: dict[str, str] = {}

    def issue(self, contribution: Contribution, expires: float) -> str:
        """Return a fresh authorization token; one that the assignment had before is void.

        :param expires: when even a late request need not be recognised any more.
        """
        self.revoke(contribution.assignment)
        token = self._tokens.secret()
        self._enter(digest(token), contribution, expires)
        return token

    def restore(
        self, token_hash: str, aggregation_id: str, session_id: str, expires: float
    ) -> None:
        """Remember a token from before a restart; whoever comes with it is answered ABORTED."""
        contribution = Contribution(aggregation_id, "", session_id)
        contribution.end("the server was restarted and this assignment is lost; check in again")
        self._enter(token_hash, contribution, expires)

    def revoke(self, assignment: str) -> str | None:
        """Forget an assignment's token; return its hash, if it had one."""
        token_hash = self._hashes.pop(assignment, None)
        if token_hash is not None:
            self._book.pop(token_hash)
        return token_hash

    def hash_of(self, assignment: str) -> str | None:
        """Return the hash of an assignment's token."""
        return self._hashes.get(assignment)

    def find(self, token: str, what: str) -> Contribution:
        """Return the contribution of an authorization token, or of what was made from it.

        :param what: what the message calls it.
        :raises StatusError: UNAUTHENTICATED if it is unknown.
        """
        contribution = self._book.get(digest(token.partition(".")[0]))
        if contribution is None:
            raise _unknown(what)
        return contribution

    def pop_due(self, now: float) -> list[str]:
        """Forget what has expired; return the hashes."""
        due = self._book.pop_due(now)
        for _, contribution in due:
            self._hashes.pop(contribution.assignment, None)
        return [token_hash for token_hash, _ in due]

    def next_expiry(self) -> float | None:
        """Return when the next entry expires."""
        return self._book.next_expiry()

    def __iter__(self) -> Iterator[Contribution]:
        """Iterate over the contributions."""
        return iter(self._book)

    def _enter(self, token_hash: str, contribution: Contribution, expires: float) -> None:
        self._book.put(token_hash, contribution, expires)
        if contribution.assignment:
            self._hashes[contribution.assignment] = token_hash


def _unknown(what: str) -> StatusError:
    return StatusError(Code.UNAUTHENTICATED, f"this {what} is not one that the server gave out")
