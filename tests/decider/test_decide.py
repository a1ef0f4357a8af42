"""One opportunity to one decision, reason by reason; the models are a real endpoint of the test's own."""

import asyncio
import json

import pytest

from services.decider import llm
from services.decider.decide import Decider, Models, Newest
from shared.messages import decode
from shared.settings import Settings

MS = 1_000_000
ANSWERS = {
    "sentiment": {"p_edge": 0.8, "view": "buy", "veto": False, "volatility": 0.0, "code": "OK", "note": ""},
    "risk": {"p_edge": 0.8, "view": "hold", "veto": False, "volatility": 0.0, "code": "OK", "note": ""},
    "volatility": {"p_edge": 0.8, "view": "hold", "veto": False, "volatility": 0.1, "code": "OK", "note": ""},
}


class Clock:
    def __init__(self, now_ns: int) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns


@pytest.fixture
def answers(monkeypatch):
    """What each role's model does: a dict of answer fields, an outcome code, or a coroutine function."""
    scripted = {role: dict(answer) for role, answer in ANSWERS.items()}
    calls: list[str] = []

    async def ask(client, name, model, system, user):
        role = json.loads(user)["role"]
        calls.append(role)
        what = scripted[role]
        if callable(what):
            what = await what()
        if isinstance(what, str):
            return llm.CallResult(what, http=500)
        answer = llm.RoleAnswer.model_validate(what)
        return llm.CallResult("ok", answer, 200, usage=None)

    monkeypatch.setattr(llm, "ask", ask)
    return scripted, calls


KEYS = {"OPENAI_API_KEY": "k", "GEMINI_API_KEY": "k", "DEEPSEEK_API_KEY": "k"}


def decider(configured: Settings, clock: Clock, environ=KEYS, **changes) -> tuple[Decider, Newest]:
    settings = configured.model_copy(update={"decider": configured.decider.model_copy(update=changes)})
    newest = Newest()
    return Decider(settings, Models(settings, environ), newest, clock), newest


async def decided(configured, opportunity, now_ns, environ=KEYS, **changes):
    judge, newest = decider(configured, Clock(now_ns), environ, **changes)
    newest.take(opportunity)
    decision = await judge.decide(opportunity)
    assert decode(decision.encode()) == decision, "I6: finite, valid JSON"
    return decision


async def test_three_good_answers_execute(configured, opportunity, now_ns, answers):
    decision = await decided(configured, opportunity(), now_ns, threshold=900)
    assert (decision.outcome, decision.mode, decision.reason) == ("execute", "full", "score")
    assert (decision.score.low, decision.score.high) == (1000, 1000)
    assert [record.outcome for record in decision.roles] == ["ok", "ok", "ok"]
    assert decision.panel.cost_usd > 0
    assert decision.panel.cost_usd == sum(record.cost_usd for record in decision.roles)
    assert decision.p_edge == 0.8


async def test_the_id_depends_on_the_opportunity_and_the_panel_only(configured, opportunity, now_ns, answers):
    first = await decided(configured, opportunity(), now_ns)
    later = await decided(configured, opportunity(net_bps="40"), now_ns + 5)
    other_panel = await decided(configured, opportunity(), now_ns, threshold=700)
    assert first.decision_id == later.decision_id != other_panel.decision_id
    assert len(first.decision_id) == 32


@pytest.mark.parametrize(
    ("changes", "outcome", "reason"),
    [
        ({"expires_ns": 1_795_000_000_000_000_000}, "hold", "expired"),
        ({"detected_ns": 1_795_000_000_000_000_000 - 3_001 * MS}, "hold", "too_old"),
        ({"phase": "closed"}, "hold", "closed"),
        ({"net_bps": "4.9"}, "hold", "rules"),
        ({"net_bps": "200.1"}, "reject", "rules"),
        ({"size": "0"}, "reject", "rules"),
        ({"profit_usd": "0"}, "reject", "rules"),
        ({"notional_usd": "50000.01"}, "reject", "rules"),
        ({"expires_ns": 1_795_000_000_000_000_000 + 349 * MS}, "hold", "no_time"),
    ],
)
async def test_without_a_call_it_is_said_why(configured, opportunity, now_ns, answers, changes, outcome, reason):
    decision = await decided(configured, opportunity(**changes), now_ns)
    assert (decision.outcome, decision.mode, decision.reason) == (outcome, "rules_only", reason)
    assert answers[1] == []
    assert decision.panel.cost_usd == 0


async def test_a_leg_that_is_silent_or_skewed_holds(configured, opportunity, now_ns, answers):
    leg = opportunity().buy.model_dump() | {"alive_age_ms": 2001}
    decision = await decided(configured, opportunity(buy=leg), now_ns, max_skew_ms=1000)
    assert (decision.outcome, decision.rules.codes) == ("hold", ["silent", "skew"])


async def test_a_name_outside_the_settings_is_rejected_unasked(configured, opportunity, now_ns, answers):
    leg = opportunity().buy.model_dump() | {"exchange": "mtgox"}
    decision = await decided(configured, opportunity(buy=leg), now_ns)
    assert (decision.outcome, decision.reason) == ("reject", "unknown_name")
    assert answers[1] == []


async def test_without_keys_rules_only_holds_unless_told_otherwise(configured, opportunity, now_ns, answers):
    decision = await decided(configured, opportunity(), now_ns, environ={})
    assert (decision.outcome, decision.mode, decision.reason) == ("hold", "rules_only", "no_keys")
    decision = await decided(configured, opportunity(), now_ns, environ={}, rules_only_may_execute=True)
    assert (decision.outcome, decision.mode, decision.reason) == ("execute", "rules_only", "rules")


async def test_a_role_without_key_abstains(configured, opportunity, now_ns, answers):
    decision = await decided(
        configured, opportunity(), now_ns, environ={"OPENAI_API_KEY": "k", "GEMINI_API_KEY": "k"}, threshold=800
    )
    assert (decision.outcome, decision.mode, decision.reason) == ("execute", "partial", "score")
    assert [record.outcome for record in decision.roles] == ["ok", "ok", "skipped:disabled"]


async def test_without_money_no_model_is_asked(configured, opportunity, now_ns, answers):
    decision = await decided(configured, opportunity(), now_ns, max_minute_usd=0)
    assert (decision.outcome, decision.mode, decision.reason) == ("hold", "rules_only", "budget")
    assert answers[1] == []


@pytest.mark.parametrize("failure", ["server", "network", "invalid", "auth", "rate_limited", "bad_request", "unsure"])
async def test_failed_models_abstain_and_never_execute(configured, opportunity, now_ns, answers, failure):
    answers[0].update(dict.fromkeys(ANSWERS, failure))
    decision = await decided(configured, opportunity(), now_ns)
    assert (decision.outcome, decision.reason) == ("hold", "risk_absent")
    assert all(record.answer is None for record in decision.roles)
    assert decision.p_edge is None


async def test_a_veto_rejects(configured, opportunity, now_ns, answers):
    answers[0]["risk"]["veto"] = True
    decision = await decided(configured, opportunity(), now_ns)
    assert (decision.outcome, decision.reason) == ("reject", "veto")


async def test_a_model_that_hangs_is_late_and_the_decision_on_time(configured, opportunity, now_ns, answers):
    async def hang():
        await asyncio.sleep(60)

    answers[0]["risk"] = hang
    decision = await decided(configured, opportunity(), now_ns, panel_deadline_ms=400)
    assert (decision.outcome, decision.mode, decision.reason) == ("hold", "partial", "deadline")
    risk = decision.roles[1]
    assert risk.outcome == "late"
    assert risk.cost_usd > 0, "it may be billed: the reservation is charged"


@pytest.mark.parametrize(
    ("newer", "later_ms", "reason"),
    [
        ({"phase": "closed"}, 10, "closed"),
        ({"net_bps": "1"}, 10, "edge_gone"),
        ({}, 2_100, "silent"),
        ({"expires_ns": 1_795_000_000_000_000_000 + 1000 * MS}, 1_500, "expired"),
    ],
)
async def test_the_last_check_uses_what_came_while_the_models_thought(
    configured, opportunity, now_ns, answers, newer, later_ms, reason
):
    clock = Clock(now_ns)
    judge, newest = decider(configured, clock)
    newest.take(opportunity())

    async def meanwhile():
        clock.now_ns = now_ns + later_ms * MS
        if newer:
            newest.take(
                opportunity(
                    phase=newer.get("phase", "updated"),
                    detected_ns=now_ns + 5 * MS,
                    **{k: v for k, v in newer.items() if k != "phase"},
                )
            )
        return ANSWERS["risk"]

    answers[0]["risk"] = meanwhile
    decision = await judge.decide(opportunity())
    assert (decision.outcome, decision.reason) == ("hold", reason)


async def test_a_provider_that_asked_us_to_wait_is_left_alone(configured, opportunity, now_ns, answers, monkeypatch):
    judge, _ = decider(configured, Clock(now_ns))
    calls = []

    async def ask(client, name, model, system, user):
        calls.append(name)
        return llm.CallResult("rate_limited", http=429, retry_after_s=30.0)

    monkeypatch.setattr(llm, "ask", ask)
    first = await judge.decide(opportunity())
    second = await judge.decide(opportunity(opportunity_id="b" * 32))
    assert len(calls) == 3
    assert {record.outcome for record in first.roles} == {"rate_limited"}
    assert {record.outcome for record in second.roles} == {"skipped:not_before"}
    assert second.outcome == "hold"


def test_newest_keeps_the_latest_and_forgets_the_oldest(opportunity, now_ns):
    newest = Newest(most=2)
    newest.take(opportunity(opportunity_id="1", phase="closed", detected_ns=now_ns))
    newest.take(opportunity(opportunity_id="1", phase="updated", detected_ns=now_ns - 1))
    assert newest.get("1").phase == "closed"
    newest.take(opportunity(opportunity_id="2"))
    newest.take(opportunity(opportunity_id="3"))
    assert newest.get("1") is None
