"""All roles asked at once, one deadline, and no task left behind.

As soon as the verdict cannot change any more the rest is cancelled and awaited.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import structlog

from services.decider import judge
from services.decider.judge import Terms
from shared.messages import Arrival, Role, RoleRecord

log = structlog.get_logger()


class Asker(Protocol):
    """One role's part in one panel."""

    async def ask(self) -> RoleRecord:
        """The role's answer or abstention. Never raises but CancelledError."""

    def barred(self) -> bool:
        """Whether it is certain to abstain, without a call."""

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
    ready: Callable[[list[Role]], None] | None = None,
) -> PanelResult:
    """Ask all roles; back by `deadline_s` with no task running.

    Args:
        ready: Called with those that will be asked, before the first of them is.
    """
    began = monotonic()
    records: dict[Role, RoleRecord] = {}
    arrivals: list[Arrival] = []
    # Who is certain to abstain does so first: if that decides (no risk role, no execution), nobody else is paid.
    barred = sorted(role for role, asker in askers.items() if asker.barred())
    for role in barred:
        records[role] = await askers[role].ask()
    if barred:
        arrivals.append(Arrival.trusted(roles=barred, after_ms=_ms(began, monotonic)))
        if judge.votes_after(arrivals, records, late=False, terms=terms)[1] is not None:
            rest = {role: asker.stopped("unneeded") for role, asker in askers.items() if role not in records}
            return PanelResult({**records, **rest}, arrivals, False, _ms(began, monotonic))
    asked = [role for role in askers if role not in records]
    if ready is not None:
        ready(asked)
    tasks: dict[asyncio.Task[RoleRecord], Role] = {}
    running: set[asyncio.Task[RoleRecord]] = set()
    late = False
    try:
        for role in asked:
            if tasks and deadline_s > monotonic() - began:
                await asyncio.sleep(0)  # the question before this one goes out first, and so does what others wait for
            task = asyncio.create_task(askers[role].ask())
            tasks[task] = role
            running.add(task)
        while running:
            left_s = deadline_s - (monotonic() - began)
            done: set[asyncio.Task[RoleRecord]] = set()
            if left_s > 0:
                done, running = await asyncio.wait(running, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                late = True
                break
            roles = sorted(tasks[task] for task in done)
            records.update((tasks[task], _result(task, askers[tasks[task]])) for task in done)
            arrivals.append(Arrival.trusted(roles=roles, after_ms=_ms(began, monotonic)))
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


def _result(task: asyncio.Task[RoleRecord], asker: Asker) -> RoleRecord:
    """The record. An asker that raises has a fault: its role abstains. Only its kind is told: words can hold keys."""
    error = task.exception()
    if error is None:
        return task.result()
    log.error("a role failed", error=type(error).__name__)
    return asker.stopped("invalid")


def _ms(began: float, monotonic: Callable[[], float]) -> int:
    return int((monotonic() - began) * 1000)
