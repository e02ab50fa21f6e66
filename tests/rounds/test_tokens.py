"""Tokens and keys: what is genuine is read, and nothing else is."""

import hmac
import math
import pickle
import re
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcp_core.errors import UsageError
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds import tokens as module
from fcp_core.rounds.keys import DeploymentKeys, Keyring, SigningKey, format_keys, parse_keys
from fcp_core.rounds.token_parts import (
    ExpiredTokenError,
    Kind,
    scope_of,
    sender_digest,
    uuid_bytes,
    uuid_text,
)
from fcp_core.rounds.tokens import Tokens, check_sender

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
DEPLOYMENT = bytes(range(16))
TASK, ASSIGNMENT = b"t" * 16, b"a" * 16
FIRST, SECOND, THIRD = (SigningKey(number, bytes([number]) * 32) for number in (1, 2, 3))


def made(keyring=None, deployment=DEPLOYMENT):
    return Tokens(keyring or Keyring(FIRST), deployment)


def token(tokens=None, kind=Kind.CLIENT, sender="me", expires=100.0, extra=b"x", **key):
    return (tokens or made()).make(kind, TASK, ASSIGNMENT, sender, expires, extra, **key)


def refused(text, kind=Kind.CLIENT, now=0.0, scope=None, tokens=None):
    """Return the message of the error that reading a token raises."""
    with pytest.raises(StatusError) as caught:
        (tokens or made()).read(text, kind, now, scope)
    assert caught.value.code is Code.UNAUTHENTICATED
    assert len(text) < 8 or text not in caught.value.message
    assert not isinstance(caught.value, ExpiredTokenError)
    return caught.value.message


# What a token says.


@settings(deadline=None)
@given(
    kind=st.sampled_from(Kind),
    scope=st.binary(min_size=16, max_size=16),
    subject=st.binary(min_size=16, max_size=16),
    sender=st.none() | st.text(),
    expires=st.floats(1.0, 2.0**39),
    extra=st.binary(max_size=64),
)
def test_a_token_says_what_it_was_made_of(kind, scope, subject, sender, expires, extra):
    text = made().make(kind, scope, subject, sender, expires, extra)
    assert re.fullmatch("[A-Za-z0-9_-]+", text)
    read = made().read(text, kind, expires - 1.0, scope)
    assert (read.kind, read.scope, read.subject, read.extra) == (kind, scope, subject, extra)
    assert read.expires == math.ceil(expires)
    assert read.key == FIRST.id
    check_sender(read, sender)
    assert made().make(kind, scope, subject, sender, expires, extra) == text


@pytest.mark.parametrize(
    "parts",
    [(b"short", ASSIGNMENT, b""), (TASK, ASSIGNMENT + b"1", b""), (TASK, ASSIGNMENT, b"x" * 65)],
)
def test_parts_of_a_wrong_length_are_a_mistake_of_the_caller(parts):
    scope, subject, extra = parts
    with pytest.raises(ValueError, match="16 bytes"):
        made().make(Kind.CLIENT, scope, subject, None, 1.0, extra)


def test_uuids_there_and_back():
    text = str(uuid.uuid4())
    assert uuid_text(uuid_bytes(text)) == text
    assert len(scope_of("phones/all")) == 16
    assert scope_of("phones/all") != scope_of("phones/al")


# What is no token.


@settings(deadline=None, max_examples=400)
@given(data=st.data())
def test_a_token_with_one_character_changed_is_refused(data):
    text = token()
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from([*ALPHABET, "=", "+", "/", " ", "ä"]))
    if other != text[place]:
        refused(text[:place] + other + text[place + 1 :])


@pytest.mark.parametrize("extra", [b"", b"1", b"12", b"123"])
def test_every_bit_counts(extra):
    """Also those of the last character, which base64 leaves unused."""
    text = token(extra=extra)
    for place, character in enumerate(text):
        for bit in range(6):
            other = ALPHABET[ALPHABET.index(character) ^ 1 << bit]
            refused(text[:place] + other + text[place + 1 :])


def test_a_token_cut_short_or_made_longer_is_refused():
    text = token()
    for size in range(len(text)):
        refused(text[:size])
    for more in ("A", "AA", "AAA", "AAAA", "=", "\n", "A" * 10_000):
        refused(text + more)


@settings(deadline=None)
@given(st.text() | st.text(alphabet=ALPHABET, max_size=200))
def test_arbitrary_text_is_refused(text):
    refused(text)


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.CLIENT])
def test_a_token_of_another_kind_is_refused(kind):
    assert "another kind" in refused(token(kind=kind))


def test_a_token_for_another_task_is_refused():
    made().read(token(), Kind.CLIENT, 0.0, TASK)
    assert "something else" in refused(token(), scope=b"o" * 16)


@pytest.mark.parametrize(("given_to", "sent_by"), [("me", "you"), (None, ""), ("", None)])
def test_a_token_of_another_sender_is_refused(given_to, sent_by):
    read = made().read(token(sender=given_to), Kind.CLIENT, 0.0)
    with pytest.raises(StatusError) as caught:
        check_sender(read, sent_by)
    assert caught.value.code is Code.PERMISSION_DENIED


def test_a_token_of_another_deployment_is_refused():
    """Even with the same keys."""
    assert "not made by this server" in refused(token(made(deployment=b"o" * 16)))


def test_a_late_token_is_told_from_a_forged_one():
    text = token(expires=100.0)
    made().read(text, Kind.CLIENT, 99.9)
    with pytest.raises(ExpiredTokenError) as caught:
        made().read(text, Kind.CLIENT, 100.0)
    assert caught.value.code is Code.UNAUTHENTICATED
    assert caught.value.token.subject == ASSIGNMENT
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.token, again.message) == (caught.value.token, caught.value.message)


def test_signatures_and_senders_are_compared_in_constant_time(monkeypatch):
    compared = []

    def watch(left, right):
        compared.append((left, right))
        return hmac.compare_digest(left, right)

    class Watched:
        compare_digest = staticmethod(watch)
        digest = staticmethod(hmac.digest)

    text = token()
    monkeypatch.setattr(module, "hmac", Watched)
    read = made().read(text, Kind.CLIENT, 0.0, TASK)
    check_sender(read, "me")
    assert [len(left) for left, _ in compared] == [16, 16, 12]


# Keys.


def test_after_a_rotation_the_key_before_is_valid_and_the_one_before_that_is_not():
    text = token(made(Keyring(FIRST)))
    rotated = made(Keyring(SECOND, FIRST))
    assert rotated.read(text, Kind.CLIENT, 0.0).key == FIRST.id
    assert token(rotated) != text
    assert rotated.read(token(rotated), Kind.CLIENT, 0.0).key == SECOND.id
    assert "no longer" in refused(text, tokens=made(Keyring(THIRD, SECOND)))


def test_what_follows_from_a_token_stays_the_same_over_a_rotation():
    tokens = made()
    before = token(tokens)
    tokens.use(Keyring(SECOND, FIRST))
    assert token(tokens, key=FIRST.id) == before
    assert token(tokens) != before
    # A key that is gone cannot sign; the current one does.
    tokens.use(Keyring(THIRD, SECOND))
    assert tokens.read(token(tokens, key=FIRST.id), Kind.CLIENT, 0.0).key == THIRD.id


def test_nothing_shows_a_key():
    keys = DeploymentKeys(Keyring(SECOND, FIRST), DEPLOYMENT)
    for thing in (keys, keys.keyring, FIRST, made()):
        for text in (repr(thing), str(thing)):
            assert FIRST.secret.hex() not in text
            assert repr(FIRST.secret)[2:-1] not in text
            assert repr(SECOND.secret)[2:-1] not in text


def test_a_key_that_is_too_short_and_two_of_one_id_are_mistakes():
    with pytest.raises(ValueError, match="at least 32 bytes"):
        SigningKey(1, b"short")
    with pytest.raises(ValueError, match="is a byte"):
        SigningKey(256, b"x" * 32)
    with pytest.raises(ValueError, match="both keys have the id 01"):
        Keyring(FIRST, SigningKey(1, b"x" * 32))


def test_rotation_keeps_one_key_and_the_deployment():
    numbers = iter(range(1, 600))
    keys = DeploymentKeys.create(lambda size: next(numbers).to_bytes(size, "big"))
    for _ in range(300):
        before = keys
        keys = keys.rotated(lambda size: next(numbers).to_bytes(size, "big"))
        assert len(keys.keyring.ids) == 2
        assert keys.keyring.ids[1] == before.keyring.current.id
        assert keys.deployment == before.deployment


# The text of a key file.


def test_the_text_of_a_key_file_there_and_back():
    for keyring in (Keyring(FIRST), Keyring(SECOND, FIRST)):
        text = format_keys(DeploymentKeys(keyring, DEPLOYMENT))
        again = parse_keys(f"\n# a remark\n{text}", "keys")
        assert again.deployment == DEPLOYMENT
        assert [again.keyring.get(i) for i in again.keyring.ids] == [
            keyring.get(i) for i in keyring.ids
        ]


GOOD_ID, GOOD_KEY = f"deployment {'0d' * 16}", f"01 {'ab' * 32}"


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ([GOOD_ID], "has no key"),
        ([GOOD_KEY], "has no line 'deployment HEX'"),
        ([GOOD_ID, "# fine", "", "01"], "line 4: there must be two words"),
        ([GOOD_ID, GOOD_KEY + " 2"], "line 2: there must be two words"),
        ([GOOD_ID, GOOD_ID], "line 2: there is a second deployment id"),
        (["deployment 0d0d"], "line 1: the deployment's id must have 32"),
        ([GOOD_ID, f"1 {'ab' * 32}"], "line 2: the first word"),
        ([GOOD_ID, f"0G {'ab' * 32}"], "line 2: the first word"),
        ([GOOD_ID, f"01 {'ab' * 31}"], "line 2: the key must have at least 64"),
        ([GOOD_ID, f"01 {'ab' * 32}a"], "line 2: the key must have at least 64"),
        ([GOOD_ID, f"01 {'xy' * 32}"], "line 2: the key must have at least 64"),
        ([GOOD_ID, GOOD_KEY, GOOD_KEY], "line 3: both keys have this id"),
        ([GOOD_ID, GOOD_KEY, f"02 {'ab' * 32}", f"03 {'ab' * 32}"], "line 4: there is a third"),
    ],
)
def test_a_mistake_in_a_key_file_is_named_with_its_line(lines, problem):
    with pytest.raises(UsageError, match=re.escape(problem)) as caught:
        parse_keys("\n".join(lines), "the key file k")
    assert "abab" not in str(caught.value)
    assert "0d0d" not in str(caught.value)
    assert str(caught.value).startswith("the key file k")


@settings(deadline=None)
@given(st.text())
def test_arbitrary_text_of_a_key_file_is_refused(text):
    with pytest.raises(UsageError):
        parse_keys(text, "keys")


def test_no_sender_has_the_digest_of_a_name():
    assert len({sender_digest(sender) for sender in (None, "", "\0", "None")}) == 4
