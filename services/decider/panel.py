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

    def abstention(self) -> RoleRecord | None:
        """Its record if it may not ask any model now; else None, and nothing is done."""

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
    for role in sorted(askers):
        if (found := _abstention(role, askers[role])) is not None:
            records[role] = found
    if records:
        arrivals.append(Arrival.trusted(roles=sorted(records), after_ms=_ms(began, monotonic)))
        if judge.votes_after(arrivals, records, late=False, terms=terms)[1] is not None:
            rest = {role: asker.stopped("unneeded") for role, asker in askers.items() if role not in records}
            return PanelResult({**records, **rest}, arrivals, False, _ms(began, monotonic))
    asked = [role for role in askers if role not in records]
    if ready is not None:
        await asyncio.sleep(0)  # an answer that has come goes before a question that takes as long to make ready
        ready(asked)
    late = False
    ended: dict[Role, RoleRecord] = {}
    changed = asyncio.Event()

    async def ask(role: Role) -> None:
        ended[role] = await _record(role, askers[role])
        changed.set()  # here, and not when the task is over: a turn of the loop earlier

    tasks: list[asyncio.Task[None]] = []
    try:
        for role in asked:
            if monotonic() - began >= deadline_s:
                break
            tasks.append(asyncio.create_task(ask(role)))
            await asyncio.sleep(0)  # this question goes out first, and so does what others wait for
        async with asyncio.timeout(deadline_s - (monotonic() - began)):
            while len(records) < len(askers):
                await changed.wait()
                if monotonic() - began >= deadline_s:
                    raise TimeoutError  # noticed too late: the loop was held up, and the timeout had no turn
                changed.clear()
                new = ended.keys() - records.keys()
                records.update((role, ended[role]) for role in new)
                arrivals.append(Arrival.trusted(roles=sorted(new), after_ms=_ms(began, monotonic)))
                if judge.votes_after(arrivals, records, late=False, terms=terms)[1] is not None:
                    break
    except TimeoutError:
        late = True
    finally:
        running = [task for task in tasks if not task.done()]
        for task in running:
            task.cancel()
        if running:
            await asyncio.gather(*running, return_exceptions=True)
    elapsed_ms = _ms(began, monotonic)
    for role in asked:
        if role not in records:
            # One that finished in the same moment keeps its record; its answer came too late to be counted.
            records[role] = ended.get(role) or askers[role].stopped("late" if late else "unneeded")
    return PanelResult(records, arrivals, late, elapsed_ms)


def _abstention(role: Role, asker: Asker) -> RoleRecord | None:
    try:
        return asker.abstention()
    except Exception as error:
        return _failed(role, asker, error)


async def _record(role: Role, asker: Asker) -> RoleRecord:
    try:
        return await asker.ask()
    except Exception as error:
        return _failed(role, asker, error)


def _failed(role: Role, asker: Asker, error: Exception) -> RoleRecord:
    """An asker that raises has a fault: its role abstains. Only its kind is told: words can hold keys."""
    log.error("a role failed", role=role, error=type(error).__name__)
    return asker.stopped("invalid")


def _ms(began: float, monotonic: Callable[[], float]) -> int:
    return int((monotonic() - began) * 1000)
