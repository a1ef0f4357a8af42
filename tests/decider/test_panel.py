"""The fan-out: one deadline, early stop, no task left."""

import asyncio
import time

import pytest

from services.decider import panel
from services.decider.panel import Reply
from shared.messages import RoleAnswer, RoleRecord

YES = RoleAnswer(p_edge=0.9, view="buy", veto=False, volatility=0.1, code="OK", note="")


def record(role, outcome="ok", answer=None):
    return RoleRecord(
        role=role, provider="p", model_asked="m", outcome=outcome, answer=answer, prompt_version="1", prompt_sha256=""
    )


def asker(role, answer=YES, wait_s=0.0, outcome="ok"):
    async def ask():
        await asyncio.sleep(wait_s)
        return Reply(record(role, outcome, answer), answer)

    return ask


async def run(deadline_s=1.0, **askers):
    before = asyncio.all_tasks()
    began = time.monotonic()
    result = await panel.run(
        askers,
        lambda role, outcome, ms: record(role, outcome),
        deadline_s=deadline_s,
        threshold=600,
        p_min=0.5,
    )
    assert asyncio.all_tasks() == before, "a task was left behind"
    return result, time.monotonic() - began


def outcomes(result):
    return {item.role: item.outcome for item in result.records}


async def test_all_answers_are_counted_and_recorded_in_order():
    result, _ = await run(
        sentiment=asker("sentiment", YES.model_copy(update={"view": "hold"})),
        risk=asker("risk"),
        volatility=asker("volatility"),
    )
    assert result.verdict.outcome == "execute"
    assert [item.role for item in result.records] == ["sentiment", "risk", "volatility"]


async def test_the_rest_is_cancelled_when_the_verdict_stands():
    result, took_s = await run(
        30.0, sentiment=asker("sentiment"), risk=asker("risk"), volatility=asker("volatility", wait_s=25)
    )
    assert result.verdict.outcome == "execute"
    assert outcomes(result)["volatility"] == "unneeded"
    assert took_s < 5


async def test_a_veto_stops_at_once():
    veto = YES.model_copy(update={"veto": True})
    result, took_s = await run(
        30.0,
        sentiment=asker("sentiment", wait_s=25),
        risk=asker("risk", veto),
        volatility=asker("volatility", wait_s=25),
    )
    assert (result.verdict.outcome, result.verdict.why) == ("reject", "veto")
    assert took_s < 5


async def test_i4_at_the_deadline_it_is_back_and_what_hangs_is_late():
    result, took_s = await run(
        0.2, sentiment=asker("sentiment"), risk=asker("risk", wait_s=60), volatility=asker("volatility", wait_s=60)
    )
    assert (result.verdict.outcome, result.verdict.why) == ("hold", "deadline")
    assert outcomes(result) == {"sentiment": "ok", "risk": "late", "volatility": "late"}
    assert 0.2 <= took_s < 2.0, "the deadline, with room for a busy machine"


async def test_without_any_answer_it_holds():
    nothing = {role: asker(role, None, outcome="server") for role in ("sentiment", "risk", "volatility")}
    result, _ = await run(**nothing)
    assert result.verdict.outcome == "hold"
    assert set(outcomes(result).values()) == {"server"}


@pytest.mark.parametrize("deadline_s", [0.0, -1.0])
async def test_without_time_it_holds(deadline_s):
    result, _ = await run(deadline_s, **{role: asker(role) for role in ("sentiment", "risk", "volatility")})
    assert result.verdict.outcome == "hold"


async def test_cancelled_from_outside_it_leaves_nothing_behind():
    before = asyncio.all_tasks()
    askers = {role: asker(role, wait_s=60) for role in ("sentiment", "risk", "volatility")}
    task = asyncio.create_task(panel.run(askers, lambda *a: record(a[0]), deadline_s=60, threshold=600, p_min=0.5))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == before
