"""The HTTP client of the virtual devices, against bytes and against servers of a few lines."""

import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcp_core.bench.answers import Answer, AnswerReader
from fcp_core.bench.connections import Connection, Connections, Origin, Tally, split

HEAD = b"HTTP/1.1 200 OK\r\nServer: x\r\n"


def chunked(body, sizes):
    pieces, at = [], 0
    for size in sizes:
        piece = body[at : at + size]
        if piece:
            pieces.append(b"%x;name=value\r\n%s\r\n" % (len(piece), piece))
        at += size
    rest = body[at:]
    if rest:
        pieces.append(b"%X\r\n%s\r\n" % (len(rest), rest))
    return b"".join([*pieces, b"0\r\nTrailer: t\r\n\r\n"])


@st.composite
def answers(draw):
    """An answer as it is sent, and as it is meant."""
    status = draw(st.sampled_from([200, 204, 404, 503]))
    body = b"" if status == 204 else draw(st.binary(max_size=40))
    start = b"HTTP/1.1 %d Some Words\r\nX-Other: 1\r\n" % status
    if status != 204 and draw(st.booleans()):
        sizes = draw(st.lists(st.integers(1, 16), max_size=4))
        sent = start + b"transfer-encoding: chunked\r\n\r\n" + chunked(body, sizes)
    else:
        sent = start + b"CONTENT-LENGTH:  %d \r\n\r\n" % len(body) + body
    if draw(st.booleans()):
        sent = b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n" + sent
    return sent, Answer(status, body)


@given(st.lists(answers(), max_size=4), st.integers(1, 30))
def test_answers_that_come_together_are_read_one_by_one(sent, step):
    reader, found = AnswerReader(), []
    data = b"".join(one for one, _ in sent)
    for at in range(0, len(data), step):
        answer = reader.feed(data[at : at + step])
        while answer is not None:
            found.append(answer)
            answer = reader.feed(b"")
    assert found == [meant for _, meant in sent]
    assert reader.end() is None


class Wire(asyncio.Transport):
    """A transport that nobody is at the other end of."""

    def write(self, data):
        pass

    def is_closing(self):
        return False

    def abort(self):
        pass


@given(answers(), st.lists(st.integers(1, 30), max_size=12))
def test_an_answer_is_read_however_it_is_cut(answer, cuts):
    sent, meant = answer

    async def read():
        connection = Connection()
        connection.connection_made(Wire())
        waiting = asyncio.ensure_future(connection.exchange(b"GET", b""))
        await asyncio.sleep(0)
        at = 0
        for cut in (*cuts, len(sent)):
            connection.data_received(sent[at : at + cut])
            at += cut
        first = await waiting
        waiting = asyncio.ensure_future(connection.exchange(b"GET", b""))
        await asyncio.sleep(0)
        connection.data_received(HEAD + b"Content-Length: 4\r\n\r\nnext")
        return first, await waiting, connection.reusable

    assert asyncio.run(read()) == (meant, Answer(200, b"next"), True)


async def serve(answer, use):
    """Run *use* with the URL of a server; *answer* speaks for it on each connection."""

    speaking = []

    async def speak(reader, writer):
        speaking.append(asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await answer(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    try:
        return await use(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    finally:
        server.close()
        await asyncio.gather(*speaking)


async def ask(url, times=1):
    """Return the answers to some requests, one after the other, and how many connections."""
    tally = Tally()
    connections = Connections(None, tally)
    origin, _ = split(url)
    try:
        answers = [await connections.exchange(origin, b"GET /\r\n\r\n", b"") for _ in range(times)]
    finally:
        connections.close()
        await asyncio.sleep(0)
    return answers, tally.opened


def test_an_answer_may_last_until_the_connection_ends():
    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b"\r\nall of it")

    answers, opened = asyncio.run(serve(answer, lambda url: ask(url, 2)))
    assert answers == [Answer(200, b"all of it")] * 2
    assert opened == 2


def test_a_connection_is_kept_and_one_that_ended_is_replaced():
    async def answer(reader, writer):
        # Each takes two requests; it says so of the second of every other connection only.
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b"Content-Length: 1\r\n\r\na")
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b"Connection: close\r\nContent-Length: 1\r\n\r\nb")

    answers, opened = asyncio.run(serve(answer, lambda url: ask(url, 6)))
    assert b"".join(answer.body for answer in answers) == b"ababab"
    assert opened == 3


def test_one_that_was_closed_behind_our_back_is_replaced():
    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b"Content-Length: 1\r\n\r\na")
        await reader.readuntil(b"\r\n\r\n")  # and nothing more

    answers, opened = asyncio.run(serve(answer, lambda url: ask(url, 3)))
    assert [answer.body for answer in answers] == [b"a"] * 3
    assert opened == 3


@pytest.mark.parametrize("said", [b"", HEAD + b"Content-Length: 9\r\n\r\nabc", b"SSH-2.0\r\n\r\n"])
def test_an_answer_that_does_not_come_is_an_error(said):
    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)

    with pytest.raises(ConnectionError):
        asyncio.run(serve(answer, ask))


@pytest.mark.parametrize("url", ["", "localhost:80", "ftp://x/", "http://", "http://x:port/"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ValueError, match=r"Port|is no http"):
        Origin.of(url)


def test_the_origin_of_an_address():
    origin, path = split("https://fcp.example.org/data/x/plan")
    assert path == "/data/x/plan"
    assert (origin.host, origin.port, origin.secure) == ("fcp.example.org", 443, True)
    assert origin.header == "Host: fcp.example.org\r\n"
    assert split("https://fcp.example.org") == (origin, "")
    assert Origin.of("http://localhost:8080").port == 8080
