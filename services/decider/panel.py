"""Three roles asked at once, one deadline, and no task left behind.

Each asker returns a `Reply` and never raises (but CancelledError). As soon as the verdict cannot change any more the
rest is cancelled and awaited.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple

from services.decider import scoring
from services.decider.scoring import ABSTAINED, PENDING, ROLES, Verdict, Vote
from shared.messages import Role, RoleAnswer, RoleRecord


class Reply(NamedTuple):
    """A role's record; `answer` counts only if the role did not abstain."""

    record: RoleRecord
    answer: RoleAnswer | None


Asker = Callable[[], Coroutine[Any, Any, Reply]]
Cancelled = Callable[[Role, str, int], RoleRecord]
"""Makes the record of a role that was stopped: role, outcome (`late` or `unneeded`), milliseconds."""


class PanelResult(NamedTuple):
    """What the panel came to."""

    verdict: Verdict
    votes: dict[Role, Vote]
    records: list[RoleRecord]
    elapsed_ms: int


async def run(
    askers: Mapping[Role, Asker],
    cancelled: Cancelled,
    *,
    deadline_s: float,
    threshold: int,
    p_min: float,
    calibrated: bool = False,
    monotonic: Callable[[], float] = time.monotonic,
) -> PanelResult:
    """Ask all roles; back by `deadline_s` with a verdict and no task running."""
    began = monotonic()
    votes: dict[Role, Vote] = dict.fromkeys(ROLES, PENDING)
    records: dict[Role, RoleRecord] = {}
    tasks = {asyncio.create_task(askers[role]()): role for role in ROLES}
    running = set(tasks)

    def judge(deadline: bool) -> Verdict | None:
        return scoring.verdict(votes, threshold, p_min, calibrated=calibrated, deadline=deadline)

    verdict: Verdict | None = None
    late = False
    try:
        while verdict is None:
            left_s = deadline_s - (monotonic() - began)
            done: set[asyncio.Task[Reply]] = set()
            if left_s > 0:
                done, running = await asyncio.wait(running, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            late = not done
            for task in done:
                role = tasks[task]
                reply = task.result()
                records[role] = reply.record
                votes[role] = ABSTAINED if reply.answer is None else reply.answer
            verdict = judge(deadline=late)
    finally:
        for task in running:
            task.cancel()
        ended = await asyncio.gather(*running, return_exceptions=True)
    elapsed_ms = int((monotonic() - began) * 1000)
    for task, result in zip(running, ended, strict=True):
        role = tasks[task]
        # One that finished in the same moment keeps its record; its answer came too late to be counted.
        stopped = result.record if isinstance(result, Reply) else None
        records[role] = stopped or cancelled(role, "late" if late else "unneeded", elapsed_ms)
        if late:
            votes[role] = ABSTAINED
    return PanelResult(verdict, votes, [records[role] for role in ROLES], elapsed_ms)
