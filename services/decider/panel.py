"""All roles asked at once, one deadline, and no task left behind.

As soon as the verdict cannot change any more the rest is cancelled and awaited.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from services.decider import judge
from services.decider.judge import Terms
from shared.messages import Arrival, Role, RoleRecord


class Asker(Protocol):
    """One role's part in one panel."""

    async def ask(self) -> RoleRecord:
        """The role's answer or abstention. Never raises but CancelledError."""

    def stopped(self, outcome: str) -> RoleRecord:
        """After a cancellation: the record, with `late` or `unneeded` for the call that was cut off."""


class PanelResult(NamedTuple):
    """What the panel came to: enough to find its verdict again."""

    records: dict[Role, RoleRecord]
    arrivals: list[Arrival]
    late: bool
    elapsed_ms: int


async def run(
    askers: Mapping[Role, Asker],
    terms: Terms,
    *,
    deadline_s: float,
    monotonic: Callable[[], float] = time.monotonic,
) -> PanelResult:
    """Ask all roles; back by `deadline_s` with no task running."""
    began = monotonic()
    records: dict[Role, RoleRecord] = {}
    arrivals: list[Arrival] = []
    tasks = {asyncio.create_task(asker.ask()): role for role, asker in askers.items()}
    running = set(tasks)
    late = False
    try:
        while running:
            left_s = deadline_s - (monotonic() - began)
            done: set[asyncio.Task[RoleRecord]] = set()
            if left_s > 0:
                done, running = await asyncio.wait(running, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                late = True
                break
            roles = sorted(tasks[task] for task in done)
            records.update((tasks[task], task.result()) for task in done)
            arrivals.append(Arrival(roles=roles, after_ms=_ms(began, monotonic)))
            if judge.votes_after(arrivals, records, late=False, terms=terms)[1] is not None:
                break
    finally:
        for task in running:
            task.cancel()
        ended = await asyncio.gather(*running, return_exceptions=True)
    elapsed_ms = _ms(began, monotonic)
    for task, result in zip(running, ended, strict=True):
        role = tasks[task]
        # One that finished in the same moment keeps its record; its answer came too late to be counted.
        records[role] = (
            result if isinstance(result, RoleRecord) else askers[role].stopped("late" if late else "unneeded")
        )
    return PanelResult(records, arrivals, late, elapsed_ms)


def _ms(began: float, monotonic: Callable[[], float]) -> int:
    return int((monotonic() - began) * 1000)
