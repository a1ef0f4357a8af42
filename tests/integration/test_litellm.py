"""The decider's real parts behind a gateway that we did not write: LiteLLM's proxy, three models under one key."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.integration import counterparts
from tests.integration.counterparts import Bench, Llmock, configured, delay, fail, outcomes, record_of, reply

pytestmark = pytest.mark.timeout(900)  # the first run installs it

KEY = "sk-of-the-gateway-test-0123456789"
UPSTREAMS = {
    "gpt-6-luna": ("up-gpt-a", "up-gpt-b"),
    "gemini-3.5-flash-lite": ("up-gemini",),
    "deepseek-flash": ("up-deepseek",),
    counterparts.STRICT: ("up-deepseek",),
}
GOOD = (reply("up-gpt*"), reply("up-gemini*", view="hold"), reply("up-deepseek*", view="hold"))
ROLES = ("sentiment", "risk", "volatility")
ALL_OK = dict.fromkeys(ROLES, "ok")


@pytest.fixture(scope="module")
def server() -> Iterator[Llmock]:
    try:
        counterparts.python_of(counterparts.LITELLM, wanted=counterparts.litellm_wanted())
        counterparts.python_of(counterparts.LLMOCK)
    except RuntimeError as reason:
        pytest.skip(str(reason))
    with counterparts.llmock() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(server: Llmock) -> Iterator[str]:
    """One for all tests: it takes long to start."""
    with counterparts.litellm(UPSTREAMS, server, KEY) as base_url:
        yield base_url


@pytest.fixture
def bench(server: Llmock, gateway: str) -> Callable[..., Bench]:
    """`bench(key="...")`: a decider that has all its models from the gateway. Use it in `async with`."""
    server.reset()

    def make(key: str = KEY, **changes: Any) -> Bench:
        roles = {role: {"provider": "holysheep"} for role in ROLES}
        settings = configured({"holysheep": gateway}, roles=roles, panel_deadline_ms=3000, **changes)
        return Bench(settings, {"HOLYSHEEP_API_KEY": key})

    return make


async def test_three_models_of_one_gateway_execute(server, bench):
    server.script(*GOOD)
    async with bench() as its:
        decision, audit = await its.decide()
    assert (decision.outcome, decision.mode) == ("execute", "full")
    for record in decision.roles:
        assert record.provider == "holysheep"
        assert record.model_reported == record.model_asked, "what it says is the name it was asked by"
    assert {one["model"] for one in server.asked()} <= {name for names in UPSTREAMS.values() for name in names}
    assert KEY.encode() not in audit.encode()


async def test_a_gateway_that_refuses_a_field_is_found_at_the_start(server, bench):
    """DeepSeek's switch for thinking is no field of the API that LiteLLM speaks to this upstream."""
    server.script(*GOOD)
    async with bench() as its:
        prompts = {role: found.text for role, found in its.decider.terms.prompts.items()}
        assert [line for line in await its.models.warm(prompts, lambda *_: True) if " took " not in line] == []
        model = its.settings.models["deepseek-flash"]
        its.settings.models["deepseek-flash"] = model.model_copy(update={"name": counterparts.STRICT})
        found = await its.models.warm(prompts, lambda *_: True)
        its.settings.models["deepseek-flash"] = model
    (line,) = [line for line in found if " took " not in line]
    assert "HTTP 400" in line
    assert "models.deepseek-flash" in line


async def test_a_wrong_key_is_a_bad_request_there_and_soon_left_alone(server, bench):
    """LiteLLM without a database answers 400 to a key that it does not know, not 401."""
    server.script(*GOOD)
    async with bench(key="sk-of-somebody-else-0123456789") as its:
        for _ in range(3 * its.settings.guards.bad_requests):
            decision, _ = await its.decide()
            assert decision.outcome == "hold"
            refused = [record for record in decision.roles if record.outcome == "bad_request"]
            assert {record.http for record in refused} <= {400}
            assert set(outcomes(decision).values()) <= {"bad_request", "unneeded", "skipped:disabled"}
        assert "skipped:disabled" in outcomes(decision).values()
    assert server.asked() == []


async def test_an_upstreams_wait_comes_under_another_name_and_is_kept(server, bench):
    server.script(*GOOD, delay("up-gemini*", 0.5), fail("up-gemini*", 429, times=1, retry_after=2.5))
    async with bench() as its:
        decision, _ = await its.decide()
        assert outcomes(decision)["risk"] == "rate_limited"
        assert record_of(decision, "risk").http == 429
        its.ahead_s += 2.0
        waiting, _ = await its.decide()
        assert outcomes(waiting)["sentiment"] == "skipped:not_before", "one key: all of the gateway waits"
        assert waiting.panel.cost_usd == 0
        its.ahead_s += 0.6
        again, _ = await its.decide()
        assert (again.outcome, outcomes(again)) == ("execute", ALL_OK)


async def test_a_cool_down_of_all_deployments_is_a_rate_limit(server, bench):
    server.script(*GOOD, delay("up-gpt*", 0.5), fail("up-gpt*", 503))
    async with bench() as its:
        for _ in UPSTREAMS["gpt-6-luna"]:
            decision, _ = await its.decide()
            assert outcomes(decision)["sentiment"] == "server"
        asked = len(server.asked("up-gpt"))
        decision, _ = await its.decide()
        cooling = record_of(decision, "sentiment")
        assert (cooling.outcome, cooling.http) == ("rate_limited", 429)
        assert decision.outcome == "hold"
        assert len(server.asked("up-gpt")) == asked, "the gateway did not ask"
        waiting, _ = await its.decide()
        assert outcomes(waiting)["sentiment"] == "skipped:not_before"
