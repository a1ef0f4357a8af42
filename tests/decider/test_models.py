"""The providers' clients: who has one, the trial at the start, the pings, and models that are switched off."""

import asyncio
import contextlib
import datetime
import time
from decimal import Decimal

import pytest

from services.decider.llm import CallResult
from services.decider.models import TRIAL_S, Models, check_dates
from shared import secrets, settings
from shared.errors import SettingsError
from shared.settings import Candidate, ModelChoice, Settings
from tests.decider import hostile
from tests.decider.hostile import KEYS, OK, Hostile, answer, cut_off, http, listed, reply, settings_at

SYSTEMS = {role: f"You are {role}. Answer in json." for role in ("sentiment", "risk", "volatility")}
NAMES = ("gpt-6-luna", "models/gemini-3.5-flash-lite", "deepseek-flash")
LISTED = listed(*NAMES)
ALL = ("openai", "gemini", "deepseek")


def always(*_: object) -> bool:
    return True


def changed(loaded: Settings, role: str, **changes: object) -> Settings:
    """The settings with one role's changed."""
    roles = {**loaded.roles, role: loaded.roles[role].model_copy(update=changes)}
    return loaded.model_copy(update={"roles": roles})


def rows(loaded: Settings, model: str, **changes: object) -> Settings:
    """The settings with one model's row changed."""
    row = loaded.models[model].model_copy(update=changes)
    return loaded.model_copy(update={"models": {**loaded.models, model: row}})


@contextlib.asynccontextmanager
async def models_of(loaded: Settings, environ: dict[str, str] = KEYS):
    models = Models(loaded, environ)
    try:
        yield models
    finally:
        await models.close()


@contextlib.asynccontextmanager
async def at(server: Hostile, **decider: object):
    """Models whose three providers are all this server."""
    async with models_of(settings_at(dict.fromkeys(ALL, server.base_url), **decider)) as models:
        yield models


# ---------------------------------------------------------------- who can be asked


async def test_a_provider_has_a_client_if_it_has_a_key_and_any_role_names_it():
    loaded = settings.load()
    some = {name: KEYS[name] for name in ("OPENAI_API_KEY", "HOLYSHEEP_API_KEY")}
    async with models_of(loaded, some) as models:
        assert models.any()
        assert [name for name in loaded.providers if models.has(name)] == ["openai"], "nobody names the gateway"
        assert models.missing() == ["GEMINI_API_KEY", "DEEPSEEK_API_KEY"]
    async with models_of(loaded, {}) as models:
        assert not models.any()
        assert models.missing() == ["OPENAI_API_KEY", "GEMINI_API_KEY", "DEEPSEEK_API_KEY"]
    async with models_of(loaded) as models:
        assert models.missing() == []


@pytest.mark.parametrize(
    ("place", "named"),
    [
        ({"fallback": ModelChoice(provider="holysheep", model="deepseek-flash")}, True),
        ({"candidate": Candidate(provider="holysheep", model="gpt-4.1", stage="shadow", share=0.1)}, True),
        ({"candidate": Candidate(provider="holysheep", model="gpt-4.1", stage="off", share=0.1)}, False),
    ],
)
async def test_fallbacks_and_candidates_have_clients_too_but_not_those_that_are_off(place, named):
    loaded = changed(settings.load(), "risk", **place)
    async with models_of(loaded) as models:
        assert models.has("holysheep") is named
    async with models_of(loaded, {}) as models:
        assert ("HOLYSHEEP_API_KEY" in models.missing()) is named


async def test_one_without_a_client_is_skipped():
    async with models_of(settings.load(), {}) as models:
        result = await models.ask(ModelChoice(provider="openai", model="gpt-6-luna"), "json", "{}")
    assert result == CallResult("skipped:disabled")


async def test_after_the_end_nothing_is_asked():
    async with Hostile() as server, at(server) as models:
        await models.close()
        result = await models.ask(ModelChoice(provider="openai", model="gpt-6-luna"), "json", "{}")
    assert (result.outcome, models.any(), server.requests) == ("skipped:disabled", False, [])


async def test_keys_are_secrets_from_then_on():
    key = "sk-of-nobody-else_0123456789"
    async with models_of(settings.load(), {"OPENAI_API_KEY": key}):
        assert secrets.redact(f"x{key}x") == "x[key]x"


def test_a_key_of_another_provider_stops_the_start():
    with pytest.raises(SettingsError, match="GEMINI_API_KEY"):
        Models(settings.load(), {"GEMINI_API_KEY": KEYS["OPENAI_API_KEY"]})


def test_a_base_url_that_is_none_names_its_setting():
    with pytest.raises(SettingsError, match=r"^providers\.openai\.base_url: .*'http://host:port/v1'$"):
        Models(settings_at({"openai": "http://host:port/v1"}), KEYS)


async def test_the_name_of_a_models_row_is_asked_for_unless_it_has_a_name():
    async with Hostile() as server:
        loaded = rows(settings_at(dict.fromkeys(ALL, server.base_url)), "deepseek-flash", name="deepseek-v9")
        async with models_of(loaded) as models:
            await models.ask(ModelChoice(provider="openai", model="deepseek-flash"), "json", "{}")
            await models.ask(ModelChoice(provider="gemini", model="gemini-3.5-flash-lite"), "json", "{}")
    assert [request.json()["model"] for request in server.requests] == ["deepseek-v9", "gemini-3.5-flash-lite"]
    sent = [request.header("authorization") for request in server.requests]
    assert sent == [f"Bearer {KEYS['OPENAI_API_KEY']}", f"Bearer {KEYS['GEMINI_API_KEY']}"], "each its own key"


# ---------------------------------------------------------------- the other request


async def efforts(models: Models, server: Hostile, provider: str, times: int) -> list[tuple[str, str]]:
    choice = ModelChoice(provider=provider, model="gemini-3.5-flash-lite")
    before = len(server.requests)
    outcomes = [(await models.ask(choice, "json", "{}")).outcome for _ in range(times)]
    sent = [request.json()["reasoning_effort"] for request in server.requests[before:]]
    return list(zip(outcomes, sent, strict=True))


async def test_after_a_400_the_other_request_is_sent_from_then_on_and_only_there():
    async with Hostile([http(400, b"{}")]) as server, at(server) as models:
        assert await efforts(models, server, "gemini", 3) == [("bad_request", "minimal"), ("ok", "low"), ("ok", "low")]
        assert await efforts(models, server, "openai", 1) == [("ok", "minimal")], "elsewhere it may be taken"


@pytest.mark.parametrize("status", [401, 404, 422, 429, 500])
async def test_other_refusals_do_not_change_the_request(status):
    async with Hostile([http(status, b"{}")]) as server, at(server) as models:
        assert [effort for _, effort in await efforts(models, server, "gemini", 2)] == ["minimal", "minimal"]


async def test_both_requests_refused_stays_with_the_other():
    async with Hostile(then=http(400, b"{}")) as server, at(server) as models:
        assert [effort for _, effort in await efforts(models, server, "gemini", 3)] == ["minimal", "low", "low"]


async def test_a_400_changes_nothing_where_there_is_no_other_request():
    async with Hostile([http(400, b"{}")]) as server, at(server) as models:
        choice = ModelChoice(provider="openai", model="gpt-6-luna")
        assert (await models.ask(choice, "json", "{}")).outcome == "bad_request"
        assert (await models.ask(choice, "json", "{}")).outcome == "ok"
    assert server.requests[0].body == server.requests[1].body


# ---------------------------------------------------------------- the trial at the start


async def test_a_good_start_lists_and_tries_each_and_says_nothing():
    paid = []
    async with Hostile(listing=LISTED) as server, at(server) as models:

        def reserve(provider: str, model: object, text: str) -> bool:
            paid.append((provider, text))
            return True

        assert await models.warm(SYSTEMS, reserve) == []
    asked = [request.json() for request in server.requests if request.method == "POST"]
    assert sorted(request.method for request in server.requests) == ["GET"] * 3 + ["POST"] * 3
    assert {body["messages"][0]["content"] for body in asked} == set(SYSTEMS.values())
    assert sorted(provider for provider, _ in paid) == ["deepseek", "gemini", "openai"]
    texts = {body["messages"][0]["content"] + body["messages"][1]["content"] for body in asked}
    assert {text for _, text in paid} == texts, "what is paid for is what is sent"


async def test_without_the_probe_nothing_is_paid_for():
    async with Hostile(listing=LISTED) as server, at(server, probe=False) as models:
        assert await models.warm(SYSTEMS, always) == []
    assert [request.method for request in server.requests] == ["GET"] * 3


async def test_a_trial_that_the_budget_refuses_is_skipped_with_words():
    async with Hostile(listing=LISTED) as server, at(server) as models:
        problems = await models.warm(SYSTEMS, lambda provider, *_: provider != "gemini")
    assert problems == ["roles.risk: gemini-3.5-flash-lite was not tried, the budget has no room (decider.max_*_usd)"]
    assert sum(request.method == "POST" for request in server.requests) == 2


async def only_risk(then: hostile.Behaviour, listing: hostile.Behaviour = LISTED, **decider: object) -> list[str]:
    """What `warm` says where only the risk role's provider has a key."""
    async with Hostile(then=then, listing=listing) as server:
        loaded = settings_at({"gemini": server.base_url}, **decider)
        async with models_of(loaded, {"GEMINI_API_KEY": KEYS["GEMINI_API_KEY"]}) as models:
            return await models.warm(SYSTEMS, always)


async def later(exchange: hostile.Exchange) -> None:
    await asyncio.sleep(1.0)
    await exchange.send(OK)


THIS = "roles.risk: gemini-3.5-flash-lite at gemini"
SEE_REQUEST = "see request, token_param and structured in models.gemini-3.5-flash-lite"
SEE_SLOW = "models.gemini-3.5-flash-lite.slow_ms and decider.panel_deadline_ms"
SEE_STRUCTURED = "see structured (json_schema), max_out and request (is thinking off?) in models.gemini-3.5-flash-lite"


@pytest.mark.parametrize(
    ("then", "problem"),
    [
        (http(401, b""), "gemini refused the key in GEMINI_API_KEY (HTTP 401): is it the right one, and still valid?"),
        (http(402, b""), "gemini has no money or quota left for this key (HTTP 402): see its billing page"),
        (
            http(429, b""),
            f"{THIS} is rate limited (HTTP 429): see providers.gemini.calls_per_s and its own limits",
        ),
        (
            http(404, b'[{"error":{"message":"no such model"}}]'),
            f"{THIS} is not there (HTTP 404, 'no such model'): see its name and providers.gemini.base_url",
        ),
        (
            http(400, b'{"error":{"message":"Unknown name \\"seed\\"\\u001b[2J"}}'),
            f"{THIS} refused the request (HTTP 400, 'Unknown name \"seed\" [2J'): {SEE_REQUEST}",
        ),
        (
            http(422, b"nope"),
            f"{THIS} refused the request (HTTP 422): {SEE_REQUEST}",
        ),
        (
            http(200, reply("Sure! Here is my answer.")),
            f"{THIS} did not answer with the fields asked for: {SEE_STRUCTURED}",
        ),
        (
            http(200, reply(message={"content": None, "refusal": "no"})),
            f"{THIS} refused to answer (refusal): see roles.risk.prompt and model",
        ),
        (http(503, b""), f"{THIS} failed (HTTP 503): it is asked again when it is needed"),
        (
            cut_off(b""),
            f"{THIS} cannot be reached (network): see providers.gemini.base_url",
        ),
    ],
)
async def test_each_problem_at_the_start_is_one_line_that_names_the_setting(then, problem):
    assert await only_risk(then) == [problem]


async def test_an_unsure_model_is_a_good_start():
    assert await only_risk(http(200, reply(answer(code="UNSURE")))) == []


async def test_a_slow_model_is_named_with_its_time():
    (problem,) = await only_risk(later)
    assert problem.startswith(f"{THIS} took 1")
    assert problem.endswith(f"slow from 900 ms on: see {SEE_SLOW}")


async def test_a_model_that_never_answers_and_a_list_that_never_ends_take_their_time_and_no_more(monkeypatch):
    monkeypatch.setattr("services.decider.models.TRIAL_S", 0.2)
    began = time.monotonic()
    problems = await only_risk(hostile.blank_lines, listing=hostile.blank_lines)
    assert time.monotonic() - began < 3.0
    assert problems == [
        "gemini did not list its models within 0.2 s: see providers.gemini.base_url",
        f"{THIS} did not answer within 0.2 s: a panel lasts 1500 ms (decider.panel_deadline_ms)",
    ]
    assert TRIAL_S == 5.0


async def test_a_refused_request_is_tried_again_with_the_other_one_and_both_are_paid_for():
    async with Hostile([http(400, b"{}")], listing=LISTED) as server:
        loaded = settings_at({"gemini": server.base_url})
        async with models_of(loaded, {"GEMINI_API_KEY": KEYS["GEMINI_API_KEY"]}) as models:
            paid: list[str] = []

            def reserve(provider: str, *_: object) -> bool:
                paid.append(provider)
                return True

            assert await models.warm(SYSTEMS, reserve) == []
            assert (paid, len(server.requests)) == (["gemini"] * 2, 3)
            assert await efforts(models, server, "gemini", 1) == [("ok", "low")], "the panels need not learn it again"


async def test_a_model_that_is_not_listed_and_does_not_answer_is_unknown_with_close_names():
    problems = await only_risk(http(404, b""), listing=listed("models/gemini-3.5-flash", "other\x1b[2J"))
    assert problems == [
        "roles.risk.model: gemini lists 2 models, but no 'gemini-3.5-flash-lite'; close to it: gemini-3.5-flash",
        f"{THIS} is not there (HTTP 404): see its name and providers.gemini.base_url",
    ]


async def test_a_model_that_answers_need_not_be_listed():
    assert await only_risk(OK, listing=listed("an-alias")) == []


async def test_one_that_is_not_tried_is_known_by_the_list_only():
    assert await only_risk(OK, listing=listed("a", "b"), probe=False) == [
        "roles.risk.model: gemini lists 2 models, but no 'gemini-3.5-flash-lite'"
    ]


@pytest.mark.parametrize("listing", [http(404, b""), http(403, b""), http(200, b"<html>"), listed()])
async def test_a_provider_that_answers_need_not_have_a_list(listing):
    assert await only_risk(OK, listing=listing) == []


async def test_a_refused_key_is_said_once_for_list_and_roles():
    async with Hostile(then=http(401, b""), listing=http(401, b"")) as server:
        loaded = settings_at({"openai": server.base_url})
        for role in ("risk", "volatility"):
            loaded = changed(loaded, role, provider="openai")
        async with models_of(loaded) as models:
            problems = await models.warm(SYSTEMS, always)
    assert problems == ["openai refused the key in OPENAI_API_KEY (HTTP 401): is it the right one, and still valid?"]


async def test_one_that_is_not_there_is_said_once_and_not_tried():
    paid: list[object] = []
    loaded = settings_at({"gemini": "http://127.0.0.1:9/v1"})
    async with models_of(loaded, {"GEMINI_API_KEY": KEYS["GEMINI_API_KEY"]}) as models:
        problems = await models.warm(SYSTEMS, lambda *call: bool(paid.append(call)))
    assert problems == [
        "gemini cannot be reached: see providers.gemini.base_url (http://127.0.0.1:9/v1)",
    ]
    assert not paid


async def test_fallbacks_are_looked_up_in_the_list_but_not_paid_for():
    async with Hostile(listing=LISTED) as server:
        loaded = settings_at(dict.fromkeys(ALL, server.base_url))
        loaded = changed(loaded, "risk", fallback=ModelChoice(provider="openai", model="gpt-5.4-mini"))
        async with models_of(loaded) as models:
            problems = await models.warm(SYSTEMS, always)
    assert problems == [
        "roles.risk.fallback.model: openai lists 3 models, but no 'gpt-5.4-mini'; close to it: gpt-6-luna"
    ]
    assert sum(request.method == "POST" for request in server.requests) == 3


async def test_nothing_at_the_start_raises_whatever_the_budget_and_the_providers_do():
    def broken(*_: object) -> bool:
        raise RuntimeError("a budget of its own")

    async with Hostile(listing=hostile.hang_up, then=hostile.hang_up) as server, at(server) as models:
        assert len(await models.warm(SYSTEMS, broken)) == 3
        assert len(await models.warm({}, always)) == 3
    async with Hostile(listing=LISTED) as server, at(server) as models:
        assert await models.warm(SYSTEMS, broken) == [f"roles.{role}: not tried (RuntimeError)" for role in SYSTEMS]
        assert await models.warm({}, always) == [f"roles.{role}: not tried, it has no prompt" for role in SYSTEMS]


async def test_no_line_of_the_start_has_a_key_in_it():
    async with Hostile(listing=hostile.echo, then=hostile.echo) as server, at(server) as models:
        said = repr(await models.warm(SYSTEMS, always))
    assert not [key for key in KEYS.values() if key in said]
    assert said.count("refused the key") == 3


# ---------------------------------------------------------------- pings


class Clock:
    """Time that stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


async def test_only_those_that_were_not_asked_for_a_while_are_pinged():
    clock = Clock()
    async with Hostile() as quiet, Hostile() as busy:
        loaded = settings_at({"openai": quiet.base_url, "gemini": busy.base_url}, ping_s=45)
        models = Models(loaded, {name: KEYS[name] for name in ("OPENAI_API_KEY", "GEMINI_API_KEY")}, clock)
        clock.now_s += 30
        await models.ask(ModelChoice(provider="gemini", model="gemini-3.5-flash-lite"), "json", "{}")
        clock.now_s += 20
        warm = asyncio.create_task(models.keep_warm())
        await quiet.until(lambda: len(quiet.requests) == 1)
        assert [request.method for request in busy.requests] == ["POST"], "it was asked 20 s ago"
        warm.cancel()
        with pytest.raises(asyncio.CancelledError):
            await warm
        await models.close()
    assert quiet.requests[0].method == "GET"


@pytest.mark.parametrize("listing", [hostile.LISTED, http(500, b""), hostile.hang_up, hostile.gigabytes])
async def test_pings_go_on_whatever_they_bring(listing):
    async with Hostile(listing=listing) as server:
        loaded = settings_at({"openai": server.base_url}, ping_s=0.01)
        async with models_of(loaded, {"OPENAI_API_KEY": KEYS["OPENAI_API_KEY"]}) as models:
            warm = asyncio.create_task(models.keep_warm())
            await server.until(lambda: len(server.requests) >= 4)
            assert not warm.done()
            warm.cancel()
            with pytest.raises(asyncio.CancelledError):
                await warm


async def test_without_clients_there_is_nothing_to_keep_warm():
    async with models_of(settings.load(), {}) as models:
        async with asyncio.timeout(1):
            await models.keep_warm()


async def test_pings_end_by_themselves_when_the_clients_are_closed():
    async with Hostile() as server:
        loaded = settings_at({"openai": server.base_url}, ping_s=0.01)
        models = Models(loaded, {"OPENAI_API_KEY": KEYS["OPENAI_API_KEY"]})
        warm = asyncio.create_task(models.keep_warm())
        await server.until(lambda: len(server.requests) >= 1)
        await models.close()
        async with asyncio.timeout(5):
            await warm


# ---------------------------------------------------------------- models that end

LAST = datetime.date(2027, 1, 14)


@pytest.mark.parametrize(
    ("days_before", "said"),
    [(31, False), (30, True), (1, True), (0, True)],
)
def test_a_model_that_ends_soon_is_warned_of_for_thirty_days(days_before, said):
    loaded = changed(settings.load(), "risk", model="gpt-4.1")
    lines = check_dates(loaded, LAST - datetime.timedelta(days=days_before))
    expected = f"roles.risk: gpt-4.1 ends on 2027-01-14, in {days_before} days (models.gpt-4.1); "
    assert lines == ([expected + "choose another one for roles.risk.model"] if said else [])


OLD = "gpt-4.1"


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"model": OLD}, "roles.risk"),
        ({"fallback": ModelChoice(provider="openai", model=OLD)}, "roles.risk.fallback"),
        ({"candidate": Candidate(provider="openai", model=OLD, stage="canary", share=0.5)}, "roles.risk.candidate"),
    ],
)
def test_a_model_past_its_last_day_stops_the_start_with_role_model_and_date(changes, where):
    loaded = changed(settings.load(), "risk", **changes)
    with pytest.raises(SettingsError) as raised:
        check_dates(loaded, LAST + datetime.timedelta(days=1))
    assert str(raised.value) == f"{where}: the last day of gpt-4.1 was 2027-01-14; choose another one for {where}.model"


def test_a_candidate_that_is_off_may_be_past_its_last_day():
    off = Candidate(provider="openai", model=OLD, stage="off", share=0.5)
    assert check_dates(changed(settings.load(), "risk", candidate=off), LAST + datetime.timedelta(days=1)) == []


def test_the_models_of_the_defaults_have_no_last_day_in_sight():
    loaded = settings.load()
    assert check_dates(loaded, datetime.date(2026, 11, 20)) == []
    for chosen in loaded.roles.values():
        assert loaded.models[chosen.model].price(LAST).output > Decimal(0)
