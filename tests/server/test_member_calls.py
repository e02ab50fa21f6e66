"""Calls to other members when the server stops."""

import asyncio

from tornado.httputil import HTTPHeaders

from fcp_core.server.http.member_calls import MemberConnections


def test_a_call_whose_answer_nobody_took_ends_without_a_traceback(caplog):
    ended = asyncio.Event()

    async def begin(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n.")
        await reader.read()
        writer.close()
        ended.set()

    async def main():
        async with await asyncio.start_server(begin, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            connections = MemberConnections()
            call = await connections.open(f"http://{host}:{port}/")
            call.send("GET", "/", HTTPHeaders({"Host": host}))
            await call.head
            connections.close()
            # The rest of a stop takes longer.
            await asyncio.wait_for(asyncio.gather(ended.wait(), call._reading), 60)

    asyncio.run(main())
    assert caplog.text == ""
