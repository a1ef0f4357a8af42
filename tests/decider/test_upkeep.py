"""What a decider looks after beside its decisions."""

import asyncio
import contextlib
import sqlite3

from services.decider.state import Limits, State
from services.decider.upkeep import Upkeep

PLENTY = Limits(10**15, 10**15, 10**15)


async def test_in_a_quiet_market_a_state_file_that_was_locked_is_found_usable_again(workbench, tmp_path, now_ns):
    bench, file = workbench(), tmp_path / "decider.sqlite"
    with State(file) as state:
        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert state.book(1, "openai", now_ns, PLENTY, shadow=False) is None
        assert not state.usable()[0]
        upkeep = asyncio.create_task(Upkeep(bench.decider, bench.desk, state).run())
        async with asyncio.timeout(10):
            while not state.usable()[0]:  # noqa: ASYNC110 -- it has no event
                await asyncio.sleep(0)
        upkeep.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await upkeep
