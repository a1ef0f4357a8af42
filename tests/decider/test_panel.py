"""The fan-out: one deadline, early stop, no task left."""

import asyncio
import time

import pytest

from services.decider import judge, panel
from services.decider.judge import Terms
from services.decider.scoring import ROLES
from shared.messages import RoleAnswer, RoleRecord
from tests.decider.conftest import role_answer

YES = role_answer()


def record(role, outcome="ok", answer=None):
    return RoleRecord(
        role=role, provider="p", model_asked="m", outcome=outcome, answer=answer, prompt_version="1", prompt_sha256=""
    )


class Scripted:
    def __init__(self, role: str, answer: RoleAnswer | None = YES, wait_s: float = 0.0, outcome: str = "ok") -> None:
        self.role, self.answer, self.wait_s, self.outcome = role, answer, wait_s, outcome

    async def ask(self):
        await asyncio.sleep(self.wait_s)
        return record(self.role, self.outcome, self.answer)

    def stopped(self, outcome):
        return record(self.role, outcome)

    def abstention(self):
        return None


@pytest.fixture
def terms(configured):
    return Terms.of(configured)


def askers(**changes):
    return {role: changes.get(role) or Scripted(role) for role in ROLES}


async def run(terms, deadline_s=1.0, **changes):
    before = asyncio.all_tasks()
    began = time.monotonic()
    result = await panel.run(askers(**changes), terms, deadline_s=deadline_s)
    assert asyncio.all_tasks() == before, "a task was left behind"
    assert set(result.records) == set(ROLES)
    verdict = judge.votes_after(result.arrivals, result.records, late=result.late, terms=terms)[1]
    assert verdict is not None, "what is recorded is enough to find the verdict again"
    return result, verdict, time.monotonic() - began


def outcomes(result):
    return {role: found.outcome for role, found in result.records.items()}


async def test_all_answers_are_counted(terms):
    _, verdict, _ = await run(terms, sentiment=Scripted("sentiment", YES.model_copy(update={"view": "hold"})))
    assert verdict.outcome == "execute"


async def test_the_rest_is_cancelled_when_the_verdict_stands(terms):
    result, verdict, took_s = await run(terms, 30.0, volatility=Scripted("volatility", wait_s=25))
    assert verdict.outcome == "execute"
    assert outcomes(result)["volatility"] == "unneeded"
    assert took_s < 5


async def test_a_veto_stops_at_once(terms):
    result, verdict, took_s = await run(
        terms,
        30.0,
        sentiment=Scripted("sentiment", wait_s=25),
        risk=Scripted("risk", YES.model_copy(update={"veto": True})),
        volatility=Scripted("volatility", wait_s=25),
    )
    assert verdict == ("reject", "veto")
    assert [arrival.roles for arrival in result.arrivals] == [["risk"]]
    assert took_s < 5


async def test_i4_at_the_deadline_it_is_back_and_what_hangs_is_late(terms):
    result, verdict, took_s = await run(
        terms, 0.2, risk=Scripted("risk", wait_s=60), volatility=Scripted("volatility", wait_s=60)
    )
    assert verdict == ("hold", "deadline")
    assert result.late
    assert outcomes(result) == {"sentiment": "ok", "risk": "late", "volatility": "late"}
    assert 0.2 <= took_s < 2.0, "the deadline, with room for a busy machine"


@pytest.mark.parametrize("where", ["abstention", "ask"])
async def test_an_asker_with_a_fault_abstains(terms, where, monkeypatch):
    faulty = Scripted("volatility")
    monkeypatch.setattr(faulty, where, lambda: 1 / 0)
    result, verdict, _ = await run(terms, volatility=faulty)
    assert outcomes(result) == {"sentiment": "ok", "risk": "ok", "volatility": "invalid"}
    assert verdict.outcome == "execute"


async def test_without_any_answer_it_holds(terms):
    result, verdict, _ = await run(terms, **{role: Scripted(role, None, outcome="server") for role in ROLES})
    assert verdict.outcome == "hold"
    assert "server" in outcomes(result).values()


class Noting(Scripted):
    """Makes its question ready in one turn of the loop; it leaves in the next."""

    def __init__(self, role: str, steps: list[str]) -> None:
        super().__init__(role)
        self.steps = steps

    async def ask(self):
        self.steps.append(f"ready {self.role}")
        await asyncio.sleep(0)
        self.steps.append(f"sent {self.role}")
        return await super().ask()


async def test_a_question_leaves_before_the_next_is_made_ready(terms):
    steps: list[str] = []
    await run(terms, **{role: Noting(role, steps) for role in ROLES})
    assert steps == [f"{step} {role}" for role in ROLES for step in ("ready", "sent")]


@pytest.mark.parametrize("deadline_s", [0.0, -1.0])
async def test_without_time_it_holds_and_asks_nobody(terms, deadline_s):
    steps: list[str] = []
    _, verdict, _ = await run(terms, deadline_s, **{role: Noting(role, steps) for role in ROLES})
    assert verdict.outcome == "hold"
    assert steps == []


async def test_cancelled_from_outside_it_leaves_nothing_behind(terms):
    before = asyncio.all_tasks()
    slow = {role: Scripted(role, wait_s=60) for role in ROLES}
    task = asyncio.create_task(panel.run(slow, terms, deadline_s=60))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == before
