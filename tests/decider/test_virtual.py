"""The loop of the tests that takes no time."""

import asyncio
import time

import pytest

from tests.decider import virtual


def test_an_hour_passes_at_once_and_timers_in_their_order():
    async def main(loop):
        began, seen = loop.time(), []

        async def after(seconds):
            await asyncio.sleep(seconds)
            seen.append((seconds, round(loop.time() - began, 6)))

        await asyncio.gather(*(after(seconds) for seconds in (3600, 0.25, 5)))
        return seen

    began = time.monotonic()
    assert virtual.run(main) == [(0.25, 0.25), (5, 5.0), (3600, 3600.0)]
    assert time.monotonic() - began < 60


def test_work_passes_a_timeout_by():
    async def main(loop):
        async with asyncio.timeout(1):
            loop.work(2)
            await asyncio.sleep(10)

    with pytest.raises(TimeoutError):
        virtual.run(main)


def test_who_waits_for_nothing_is_told():
    with pytest.raises(AssertionError, match="for ever"):
        virtual.run(lambda loop: asyncio.Event().wait())
