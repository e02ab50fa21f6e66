"""Tokens, uploads and submissions of one contribution."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.contributions import Contribution, ContributionBook, ContributionStage
from fcp_core.rounds.tokens import TokenSource, digest


def counting_tokens():
    """Secrets that differ, and that a failing test shows the same way twice."""
    counter = itertools.count()
    return TokenSource(lambda size: next(counter).to_bytes(size, "big"))


def code_of(call, *args):
    try:
        call(*args)
    except StatusError as error:
        return error.code
    return Code.OK


class Reference:
    """What a contribution may do, as plain flags."""

    def __init__(self):
        self.started = self.uploading = self.uploaded = self.submitted = self.ended = False

    def start(self):
        if self.ended:
            return Code.ABORTED
        if self.started:
            return Code.UNAUTHENTICATED
        self.started = True
        return Code.OK

    def begin(self):
        if self.ended:
            return Code.ABORTED
        if not self.started or self.uploading or self.uploaded:
            return Code.UNAUTHENTICATED
        self.uploading = True
        return Code.OK

    def finish(self):
        if self.ended:
            return Code.ABORTED
        if not self.uploading:
            return Code.UNAUTHENTICATED
        self.uploading, self.uploaded = False, True
        return Code.OK

    def abandon(self):
        if not self.ended:
            self.uploading = False
        return Code.OK

    def submit(self):
        if self.ended:
            return Code.ABORTED
        if not self.started or self.submitted:
            return Code.UNAUTHENTICATED
        if not self.uploaded:
            return Code.INVALID_ARGUMENT
        self.submitted = True
        return Code.OK

    def end(self):
        self.ended = not self.submitted
        return Code.OK


@given(
    st.lists(st.sampled_from(["start", "begin", "finish", "abandon", "submit", "end"]), max_size=12)
)
def test_every_order_of_requests_is_answered_as_the_flags_say(steps):
    tokens = counting_tokens()
    book = ContributionBook(tokens)
    contribution = Contribution("aggregation", "assignment", "session")
    token = book.issue(contribution, 10.0)
    reference = Reference()
    ticket = None

    def start():
        nonlocal ticket
        ticket = contribution.start(token, tokens)

    for step in steps:
        client = ticket.client_token if ticket else f"{token}.guess"
        resource = ticket.resource_name if ticket else f"{token}.guess"
        call = {
            "start": start,
            "begin": lambda resource=resource: contribution.begin_upload(resource),
            "finish": lambda resource=resource: contribution.finish_upload(resource, b"body"),
            "abandon": lambda resource=resource: contribution.abandon_upload(resource),
            "submit": lambda c=client, r=resource: contribution.submit(c, r),
            "end": lambda: contribution.end("over"),
        }[step]
        assert code_of(call) is getattr(reference, step)()
        held = reference.uploaded and not reference.ended
        if not (reference.submitted and "end" in steps):
            assert (contribution.body == b"body") == held


def test_the_book_keeps_hashes_and_forgets_in_time():
    book = ContributionBook(counting_tokens())
    contribution = Contribution("aggregation", "assignment", "session")
    token = book.issue(contribution, 10.0)
    assert book.find(token, "token") is contribution
    assert book.find(f"{token}.anything", "token") is contribution
    assert code_of(book.find, f"x{token}", "token") is Code.UNAUTHENTICATED
    assert book.hash_of("assignment") == digest(token)
    again = book.issue(contribution, 20.0)
    assert again != token
    assert code_of(book.find, token, "token") is Code.UNAUTHENTICATED
    assert book.pop_due(19.9) == []
    assert book.pop_due(20.0) == [digest(again)]
    assert list(book) == []
    assert book.next_expiry() is None


def test_a_restored_token_is_aborted_in_every_form():
    tokens = counting_tokens()
    book = ContributionBook(tokens)
    book.restore(digest("token"), "aggregation", "session", 10.0)
    contribution = book.find("token.client", "token")
    assert contribution.stage is ContributionStage.ENDED
    for call, args in (
        (contribution.start, ("token", tokens)),
        (contribution.begin_upload, ("token.resource",)),
        (contribution.submit, ("token.client", "token.resource")),
    ):
        assert code_of(call, *args) is Code.ABORTED


def test_secrets_come_from_the_source_and_differ():
    tokens = TokenSource()
    assert len({tokens.secret() for _ in range(50)} | {tokens.uuid() for _ in range(50)}) == 100
    assert len(tokens.secret()) == 64
    assert tokens.uuid()[14] == "4"


def test_a_body_is_handed_over_once():
    tokens = counting_tokens()
    contribution = Contribution("aggregation", "assignment", "session")
    ticket = contribution.start("token", tokens)
    contribution.begin_upload(ticket.resource_name)
    body = memoryview(b"body")
    contribution.finish_upload(ticket.resource_name, body)
    assert contribution.take_body() is body
    assert contribution.take_body() == b""
    with pytest.raises(StatusError):
        contribution.begin_upload(ticket.client_token)
