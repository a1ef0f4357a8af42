"""The decider's real parts against llmock, an OpenAI-compatible server that we did not write."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.integration import counterparts
from tests.integration.counterparts import Bench, Llmock, another, configured, delay, fail, outcomes, record_of, reply

KEYS = {
    "OPENAI_API_KEY": "sk-of-the-openai-test-000",
    "GEMINI_API_KEY": "AIzaSyOfTheGeminiTest-0000000000000000",
    "DEEPSEEK_API_KEY": "sk-of-the-deepseek-test-000",
}
GOOD = (reply("gpt*"), reply("gemini*", view="hold"), reply("deepseek*", view="hold"))
ALL_OK = dict.fromkeys(("sentiment", "risk", "volatility"), "ok")


@pytest.fixture(scope="module")
def server() -> Iterator[Llmock]:
    try:
        counterparts.python_of(counterparts.LLMOCK)
    except RuntimeError as reason:
        pytest.skip(f"llmock cannot be installed: {reason}")
    with counterparts.llmock() as running:
        yield running


@pytest.fixture
def bench(server: Llmock) -> Callable[..., Bench]:
    """`bench(panel_deadline_ms=600)`: a decider whose three providers are llmock. Use it in `async with`."""
    server.reset()

    def make(**changes: Any) -> Bench:
        return Bench(configured(dict.fromkeys(("openai", "gemini", "deepseek"), server.base_url), **changes), KEYS)

    return make


async def test_three_good_answers_execute_and_each_model_is_asked_its_own_way(server, bench):
    server.script(*GOOD)
    async with bench() as its:
        decision, audit = await its.decide()
    assert (decision.outcome, decision.mode, decision.reason) == ("execute", "full", "score")
    assert outcomes(decision) == ALL_OK
    assert {record.model_asked: record.model_reported for record in decision.roles} == {
        name: name for name in ("gpt-6-luna", "gemini-3.5-flash-lite", "deepseek-flash")
    }
    assert all(record.cost_usd > 0 and record.tokens.out > 0 for record in decision.roles)
    asked = {one["model"]: one["body"] for one in server.asked()}
    assert len(server.asked()) == 3, "one call a role, no retries"
    assert asked["gpt-6-luna"]["response_format"]["type"] == "json_schema"
    assert "max_completion_tokens" in asked["gpt-6-luna"]
    assert "max_tokens" in asked["gemini-3.5-flash-lite"]
    assert asked["deepseek-flash"]["response_format"] == {"type": "json_object"}
    assert asked["deepseek-flash"]["thinking"] == {"type": "disabled"}
    assert server.verdict()["passed"]
    assert not any(key.encode() in audit.encode() for key in KEYS.values())


async def test_what_only_fits_the_schema_is_an_answer_like_any_other(server, bench):
    """Unscripted, llmock fills in the schema with the first and largest of everything: also `"veto": true`."""
    server.script(GOOD[2])
    async with bench() as its:
        decision, _ = await its.decide()
    assert (decision.outcome, decision.reason) == ("reject", "veto")
    answer = record_of(decision, "risk").answer
    assert answer is not None
    assert (answer.p_edge, answer.veto, answer.code) == (1.0, True, "OK")


async def test_json_of_another_shape_is_no_answer(server, bench):
    """Without a schema its JSON is a greeting."""
    server.script(*GOOD[:2])
    async with bench() as its:
        decision, audit = await its.decide()
    assert (decision.outcome, decision.reason) == ("hold", "score")
    assert outcomes(decision)["volatility"] == "invalid"
    (raw,) = audit.questions[-1].raw
    assert raw is not None
    assert list(json.loads(raw)) == ["message"], "kept for whoever looks into it"


async def test_a_model_beyond_the_deadline_is_late_and_the_decision_is_not(server, bench):
    server.script(*GOOD, delay("deepseek*", 5))
    async with bench(panel_deadline_ms=600) as its:
        tasks = len(asyncio.all_tasks())
        decision, _ = await its.decide()
        assert len(asyncio.all_tasks()) == tasks, "nothing goes on after the panel"
    assert (decision.outcome, decision.mode, decision.reason) == ("hold", "partial", "deadline")
    assert outcomes(decision) == ALL_OK | {"volatility": "late"}
    assert decision.panel.deadline_ms == 600
    assert 600 <= decision.panel.elapsed_ms < 750
    assert record_of(decision, "volatility").cost_usd > 0, "it may be billed: its reservation stands"


async def test_an_answer_that_cannot_matter_is_not_waited_for(server, bench):
    server.script(reply("gpt*"), reply("gemini*", veto=True), GOOD[2], delay("gpt*", 5), delay("deepseek*", 5))
    async with bench() as its:
        began = time.monotonic()
        decision, _ = await its.decide()
    assert (decision.outcome, decision.reason) == ("reject", "veto")
    assert outcomes(decision) == {"sentiment": "unneeded", "risk": "ok", "volatility": "unneeded"}
    assert time.monotonic() - began < 1.4, "long before the deadline of 1.5 s, let alone the others' 5 s"


async def test_too_many_requests_are_waited_out(server, bench):
    server.script(*GOOD, fail("gemini*", 429, times=1, retry_after=2.5))
    async with bench() as its:
        limited, _ = await its.decide()
        assert limited.outcome == "hold"
        assert outcomes(limited)["risk"] == "rate_limited"
        assert record_of(limited, "risk").http == 429
        assert record_of(limited, "risk").cost_usd == 0
        skipped, _ = await its.decide()
        assert outcomes(skipped)["risk"] == "skipped:not_before"
        assert len(server.asked("gemini")) == 1, "it was not asked again"
        its.ahead_s += 1.0
        assert outcomes((await its.decide())[0])["risk"] == "skipped:not_before"
        its.ahead_s += 1.6
        again, _ = await its.decide()
        assert again.outcome == "execute"
        assert len(server.asked("gemini")) == 2


async def test_a_server_that_fails_opens_its_breaker_while_the_fallback_answers(server, bench):
    server.script(*GOOD, fail("gpt*", 503))
    roles = {"sentiment": {"fallback": another("gemini", "gemini-3.5-flash-lite")}}
    async with bench(roles=roles, guards={"consecutive": 3}) as its:
        for _ in range(3):
            decision, _ = await its.decide()
            stood_in = record_of(decision, "sentiment")
            assert (stood_in.outcome, stood_in.via, stood_in.model_asked) == (
                "ok",
                "fallback",
                "gemini-3.5-flash-lite",
            )
            assert [(other.outcome, other.http) for other in stood_in.others] == [("server", 503)]
        assert len(server.asked("gpt")) == 3
        decision, _ = await its.decide()
        assert [other.outcome for other in record_of(decision, "sentiment").others] == ["skipped:breaker"]
        assert len(server.asked("gpt")) == 3, "open: it is left alone"
        assert its.desk.guards.state("openai", "gpt-6-luna", its.desk.monotonic()) == "open"

        server.clear()
        server.script(*GOOD)
        its.ahead_s += its.settings.guards.cooldown_s
        for _ in range(its.settings.guards.successes_to_close):
            decision, _ = await its.decide()
            assert decision.outcome == "execute"
            assert record_of(decision, "sentiment").via == "primary"
        assert its.desk.guards.state("openai", "gpt-6-luna", its.desk.monotonic()) == "closed"


@pytest.mark.parametrize(
    ("status", "more", "outcome", "afterwards"),
    [
        (401, {"code": "invalid_api_key"}, "auth", "skipped:disabled"),
        (402, {"message": "Insufficient Balance"}, "quota", "skipped:breaker"),
        (429, {"code": "insufficient_quota", "message": "insufficient_quota"}, "quota", "skipped:breaker"),
    ],
)
async def test_a_refused_key_and_an_empty_purse_are_not_tried_again(server, bench, status, more, outcome, afterwards):
    server.script(*GOOD, fail("deepseek*", status, **more))
    async with bench() as its:
        decision, _ = await its.decide()
        assert outcomes(decision)["volatility"] == outcome
        assert decision.outcome == "hold"
        its.ahead_s += 60.0
        decision, _ = await its.decide()
        assert outcomes(decision)["volatility"] == afterwards
        assert len(server.asked("deepseek")) == 1


async def test_a_model_that_refuses_the_request_three_times_is_out(server, bench):
    server.script(*GOOD, fail("deepseek*", 404))
    async with bench() as its:
        found = [outcomes((await its.decide())[0])["volatility"] for _ in range(4)]
    assert found == ["bad_request"] * 3 + ["skipped:disabled"]
    assert len(server.asked("deepseek")) == 3


async def test_the_check_at_the_start_finds_what_is_wrong(server, bench):
    server.script(*GOOD[:2], fail("deepseek*", 402))
    async with bench() as its:
        prompts = {role: found.text for role, found in its.decider.terms.prompts.items()}
        problems = await its.models.warm(prompts, lambda *_: True)
    assert [line for line in problems if "quota" in line], problems
    assert not [line for line in problems if "sentiment" in line and "not tried" in line]


async def test_many_at_once_all_come_back(server, bench):
    server.script(*GOOD, delay("*", 0.05))
    async with bench(max_panels_in_flight=16) as its:
        leg = counterparts.opportunity().buy.model_dump()
        routes = [
            {
                "base": coin,
                "buy": leg | {"exchange": buy, "symbol": f"{coin}-USDT"},
                "sell": leg | {"exchange": sell, "symbol": f"{coin}-USD"},
            }
            for coin in ("BTC", "ETH", "SOL")
            for buy in ("binance", "bybit", "okx")
            for sell in ("kraken", "coinbase")
        ]
        found = await asyncio.gather(*(its.decide(**one) for one in routes[:16]))
    assert [decision.outcome for decision, _ in found] == ["execute"] * 16
    assert len(server.asked()) == 48
