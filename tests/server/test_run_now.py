"""Coroutines that run without a task of their own until they wait."""

from __future__ import annotations

import asyncio

import pytest

from fcp_core.server.http.handler import run_now


def test_what_need_not_wait_is_done_at_once():
    done = []

    async def work():
        done.append(asyncio.current_task())

    async def main():
        task = asyncio.current_task()
        assert run_now(work()) is None
        # It must not take the task of whoever runs it for its own.
        assert done[0] is not task
        assert asyncio.current_task() is task

    asyncio.run(main())


@pytest.mark.parametrize("late", [False, True])
def test_what_waits_goes_on_in_a_task(late):
    seen = []

    async def work(future):
        seen.append(await future)
        await asyncio.sleep(0)
        seen.append(asyncio.current_task())

    async def main():
        future = asyncio.get_running_loop().create_future()
        rest = run_now(work(future))
        assert seen == []
        if not late:
            future.set_result("came before the task")
        task = asyncio.ensure_future(rest)
        await asyncio.sleep(0)
        if late:
            future.set_result("came after it")
        await task
        assert seen[0].startswith("came")
        assert seen[1] is task

    asyncio.run(main())


def test_errors_come_out_where_they_are():
    async def fails():
        raise ValueError("at once")

    async def fails_later(future):
        try:
            await future
        except KeyError:
            raise ValueError("later") from None

    async def main():
        with pytest.raises(ValueError, match="at once"):
            run_now(fails())
        future = asyncio.get_running_loop().create_future()
        rest = run_now(fails_later(future))
        future.set_exception(KeyError())
        with pytest.raises(ValueError, match="later"):
            await rest

    asyncio.run(main())


def test_a_cancelled_task_cancels_what_waits():
    ended = []

    async def work():
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def main():
        task = asyncio.ensure_future(run_now(work()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == ["cancelled"]

    asyncio.run(main())
