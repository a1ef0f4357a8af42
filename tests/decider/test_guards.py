"""What may be asked and what may not, rule by rule; that a refusal takes nothing; and that no guard holds for ever
unless it must."""

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.decider.guards import RESULTS, UNDERSTOOD, Guards
from shared.settings import Settings

T0 = 1000.0
P, M = "openai", "gpt-6-luna"
COOLDOWN_S = 5.0


@pytest.fixture
def guards(configured) -> Guards:
    return Guards(configured)


def limited(configured: Settings, **changes: object) -> Guards:
    """Guards whose provider P has other limits."""
    providers = {**configured.providers, P: configured.providers[P].model_copy(update=changes)}
    return Guards(configured.model_copy(update={"providers": providers}))


def ask(guards: Guards, now_s: float, outcome: str, model: str = M, provider: str = P, **more: float) -> str | None:
    """A call that is allowed and over at once; what the report said."""
    assert guards.refuses(provider, model, 100, now_s) is None
    return guards.report(provider, model, outcome, now_s, **more)


def tripped(guards: Guards) -> Guards:
    """M's breaker opened at T0."""
    words = [ask(guards, T0, "late") for _ in range(10)]
    assert words[:9] == [None] * 9
    assert words[9] == f"{M} at {P}: breaker opened: 10 failures or late answers in a row; tried again in 5 s"
    return guards


def test_at_first_everything_is_allowed(guards):
    assert guards.state(P, M, T0) == "closed"
    assert guards.refuses(P, M, 100, T0) is None


# ---------------------------------------------------------------- auth, quota


def test_a_refused_key_holds_all_models_of_the_provider_for_ever_and_no_other(guards):
    words = ask(guards, T0, "auth")
    assert words is not None
    assert words.startswith("openai: it refuses the key")
    for now_s in (T0, T0 + 1e9):
        assert guards.refuses(P, M, 100, now_s) == "skipped:disabled"
        assert guards.refuses(P, "another", 100, now_s) == "skipped:disabled"
        assert guards.state(P, "another", now_s) == "disabled"
    assert guards.refuses("gemini", M, 100, T0 + 1e9) is None


def test_a_refused_key_is_told_once_and_no_answer_lifts_it(guards):
    assert all(guards.refuses(P, M, 100, T0) is None for _ in range(3))
    told = [guards.report(P, M, outcome, T0) for outcome in ("auth", "auth", "ok")]
    assert [words is not None for words in told] == [True, False, False]
    assert guards.refuses(P, M, 100, T0) == "skipped:disabled"


def test_without_quota_the_provider_is_not_asked_for_ten_minutes(guards, configured):
    words = ask(guards, T0, "quota")
    assert words == "openai: quota or balance used up; none of its models is asked for 600 s"
    end = T0 + configured.guards.quota_s
    assert guards.refuses("gemini", M, 100, T0) is None
    for model in (M, "another"):
        assert guards.refuses(P, model, 100, end - 0.001) == "skipped:breaker"
        assert guards.state(P, model, end - 0.001) == "open"
    assert [guards.state(P, model, end) for model in (M, "another")] == ["closed", "closed"]
    assert ask(guards, end, "quota") is not None, "a second time is told again"
    assert guards.refuses(P, M, 100, end) == "skipped:breaker"


def test_a_candidate_without_quota_holds_up_its_own_model_only_and_for_as_long(guards, configured):
    assert guards.refuses(P, M, 100, T0) is None
    words = guards.report(P, M, "quota", T0, alone=True)
    assert words == f"{M} at openai: quota or balance used up; it is not asked for 600 s"
    end = T0 + configured.guards.quota_s
    assert (guards.refuses(P, M, 100, end - 0.001), guards.state(P, M, end - 0.001)) == ("skipped:breaker", "open")
    assert guards.refuses(P, "another", 100, T0) is None
    assert (guards.refuses(P, M, 100, end), guards.state(P, M, end)) == (None, "closed")


def test_a_key_that_may_not_use_a_candidate_is_good_for_the_others(guards):
    assert guards.refuses(P, M, 100, T0) is None
    assert "this key may not use it" in guards.report(P, M, "auth", T0, alone=True)
    assert guards.report(P, M, "auth", T0, alone=True) is None, "told once"
    assert (guards.refuses(P, M, 100, T0 + 1e9), guards.refuses(P, "another", 100, T0)) == ("skipped:disabled", None)


def test_quota_reported_by_several_calls_at_once_is_told_once(guards):
    assert all(guards.refuses(P, M, 100, T0) is None for _ in range(3))
    assert [guards.report(P, M, "quota", T0) is not None for _ in range(3)] == [True, False, False]


# ---------------------------------------------------------------- rate limits


@pytest.mark.parametrize(
    ("asked_s", "waited_s"),
    [
        *[(2.5, 2.5), (0.0, 0.0), (300.0, 300.0), (301.0, 300.0), (1e9, 300.0)],
        *[(None, 1.0), (math.nan, 1.0), (math.inf, 1.0), (-1.0, 1.0)],
    ],
)
def test_a_provider_is_waited_for_as_long_as_it_asks_up_to_five_minutes(guards, asked_s, waited_s):
    assert guards.refuses(P, M, 100, T0) is None
    assert guards.report(P, M, "rate_limited", T0, retry_after_s=asked_s) is None
    if waited_s:
        assert guards.refuses(P, M, 100, T0 + waited_s - 0.001) == "skipped:not_before"
        assert guards.state(P, M, T0 + waited_s - 0.001) == "waiting"
        assert guards.refuses(P, "another", 100, T0 + waited_s - 0.001) == "skipped:not_before", "limits are shared"
        assert guards.refuses("gemini", M, 100, T0 + waited_s - 0.001) is None
    assert guards.refuses(P, M, 100, T0 + waited_s) is None


def test_a_provider_that_does_not_say_is_waited_for_twice_as_long_each_time_up_to_a_minute(guards):
    now_s = T0
    for wait_s in (1, 2, 4, 8, 16, 32, 60, 60, *[60] * 1100):  # 2.0 ** 1100 is no float
        assert ask(guards, now_s, "rate_limited") is None
        assert guards.refuses(P, M, 100, now_s + wait_s - 0.001) == "skipped:not_before"
        now_s += wait_s
        assert guards.state(P, M, now_s) == "closed"


@pytest.mark.parametrize("success", ["ok", "slow", "unsure"])
def test_a_success_ends_the_doubling_and_another_failure_does_not(guards, success):
    for wait_s, now_s in ((1, T0), (2, T0 + 1)):
        ask(guards, now_s, "rate_limited")
        assert guards.refuses(P, M, 100, now_s + wait_s - 0.001) == "skipped:not_before"
    ask(guards, T0 + 3, "server")
    ask(guards, T0 + 3, "rate_limited")
    assert guards.refuses(P, M, 100, T0 + 6.999) == "skipped:not_before"
    ask(guards, T0 + 7, success)
    ask(guards, T0 + 7, "rate_limited")
    assert guards.refuses(P, M, 100, T0 + 8) is None


def test_a_shorter_wait_does_not_shorten_a_longer_one(guards):
    assert all(guards.refuses(P, M, 100, T0) is None for _ in range(2))
    guards.report(P, M, "rate_limited", T0, retry_after_s=30)
    guards.report(P, M, "rate_limited", T0, retry_after_s=1)
    assert guards.refuses(P, M, 100, T0 + 29) == "skipped:not_before"


# ---------------------------------------------------------------- bad requests


def test_three_bad_requests_in_a_row_disable_the_model_and_no_other(guards):
    told = [ask(guards, T0, "bad_request") for _ in range(3)]
    assert told[:2] == [None, None]
    assert told[2] is not None
    assert told[2].startswith(f"{M} at {P}: 3 bad requests in a row; not asked until the next start")
    assert guards.refuses(P, M, 100, T0 + 1e9) == "skipped:disabled"
    assert guards.state(P, M, T0) == "disabled"
    assert guards.refuses(P, "another", 100, T0) is None
    assert guards.refuses("gemini", M, 100, T0) is None
    assert guards.report(P, M, "bad_request", T0) is None, "told once"


@pytest.mark.parametrize("outcome", ["skipped:budget", *sorted(RESULTS.keys() - {"auth", "quota", "bad_request"})])
def test_only_a_request_that_was_understood_ends_a_row_of_bad_ones(configured, outcome):
    guards = Guards(configured)
    for n, each in enumerate(["bad_request", "bad_request", outcome, "bad_request"]):
        ask(guards, T0 + 10 * n, each)
    understood = outcome in {"ok", "slow", "unsure", "refusal", "content_filter", "invalid"}
    assert guards.state(P, M, T0 + 30) == ("closed" if understood else "disabled")


# ---------------------------------------------------------------- breaker


@pytest.mark.parametrize("outcome", ["server", "network", "invalid", "late", "no_such_outcome"])
def test_ten_failures_of_any_kind_open_the_breaker_of_this_model_only(configured, outcome):
    # Without the rule of the error rate, which eight failures would meet first.
    few = configured.guards.model_copy(update={"error_share_few": 1.0})
    guards = Guards(configured.model_copy(update={"guards": few}))
    told = [ask(guards, T0, outcome) for _ in range(10)]
    assert [words is not None for words in told] == [False] * 9 + [True]
    assert guards.refuses(P, M, 100, T0 + COOLDOWN_S - 0.001) == "skipped:breaker"
    assert guards.state(P, M, T0 + COOLDOWN_S - 0.001) == "open"
    assert guards.state(P, M, T0 + COOLDOWN_S) == "half_open"
    assert guards.refuses(P, "another", 100, T0) is None
    assert guards.refuses("gemini", M, 100, T0) is None


@pytest.mark.parametrize(
    "outcome",
    ["ok", "unsure", "saturated", "unneeded", "refusal", "content_filter", "skipped:budget", "skipped:expired"],
)
def test_what_is_no_failure_never_opens_the_breaker(configured, outcome):
    guards = Guards(configured)
    for n in range(200):
        assert ask(guards, T0 + n * 0.05, outcome) is None
    assert guards.state(P, M, T0 + 10) == "closed"


def test_slow_answers_open_the_breaker_for_longer(guards):
    told = [ask(guards, T0, "slow") for _ in range(20)]
    assert told[-1] is not None
    assert told[-1].endswith("tried again in 30 s")
    assert guards.state(P, M, T0 + 29.9) == "open"
    assert guards.state(P, M, T0 + 30) == "half_open"


def test_three_good_trials_close_the_breaker_and_are_told(guards):
    tripped(guards)
    at = T0 + COOLDOWN_S
    assert [ask(guards, at, outcome) for outcome in ("ok", "unsure")] == [None, None]
    assert ask(guards, at, "slow") == f"{M} at {P}: breaker closed: 3 good answers since the last bad one"
    assert guards.state(P, M, at) == "closed"


@pytest.mark.parametrize(
    "neutral", ["unneeded", "saturated", "refusal", "content_filter", "skipped:budget", "rate_limited", "bad_request"]
)
def test_a_trial_is_alone_and_one_that_came_to_nothing_gives_its_place_back(guards, neutral):
    tripped(guards)
    at = T0 + COOLDOWN_S
    assert guards.refuses(P, M, 100, at) is None
    assert guards.refuses(P, M, 100, at) == "skipped:breaker"
    assert guards.report(P, M, neutral, at) is None
    assert guards.state(P, M, at) == "half_open"
    assert guards.refuses(P, M, 100, at + 1) is None, "a second later: the limit of the rate has passed"


# ---------------------------------------------------------------- buckets


def test_no_more_calls_than_the_bucket_of_the_provider_has(configured):
    guards = limited(configured, burst=3, calls_per_s=2.0)
    models = [M, "another", M, M, "third"]
    assert [guards.refuses(P, model, 1, T0) for model in models] == [None] * 3 + ["skipped:limiter"] * 2
    assert guards.refuses(P, M, 1, T0 + 0.5) is None
    assert guards.refuses("gemini", M, 1, T0) is None


def test_no_more_tokens_than_the_bucket_of_the_provider_has(configured):
    guards = limited(configured, tokens_per_minute=6000)
    assert guards.refuses(P, M, 6001, T0) == "skipped:limiter", "never, however long one waits"
    assert guards.refuses(P, M, 6000, T0) is None
    assert guards.refuses(P, "another", 100, T0 + 0.9) == "skipped:limiter"
    assert guards.refuses(P, "another", 100, T0 + 1.1) is None, "a hundred a second"


def test_a_provider_that_is_not_in_the_settings_has_the_default_limits(guards):
    assert [guards.refuses("unknown", "model", 1, T0) for _ in range(51)] == [None] * 50 + ["skipped:limiter"]
    assert guards.refuses("unknown", "model", 1, T0 + 0.051) is None
    assert guards.refuses("unknown2", "model", 1_000_000, T0) is None
    assert guards.refuses("unknown2", "model", 100, T0) == "skipped:limiter"


# ---------------------------------------------------------------- a refusal takes nothing, and the order


def test_a_refusal_takes_neither_call_nor_tokens_nor_trial(configured):
    guards = limited(configured, burst=12, calls_per_s=0.001, tokens_per_minute=60_000)
    tripped(guards)  # two calls are left
    for _ in range(5):
        assert guards.refuses(P, M, 100, T0) == "skipped:breaker"
    at = T0 + 60
    for _ in range(5):
        assert guards.refuses(P, M, 60_001, at) == "skipped:limiter"
    assert guards.refuses(P, "another", 100, at) is None
    guards.report(P, "another", "rate_limited", at, retry_after_s=10)
    for _ in range(5):
        assert guards.refuses(P, M, 60_000, at + 5) == "skipped:not_before"
    assert guards.refuses(P, M, 60_000, at + 10) is None, "the trial, the last call and all the tokens"
    assert guards.refuses(P, "another", 0, at + 10) == "skipped:limiter"


def test_a_call_that_the_bucket_of_calls_refuses_takes_no_tokens(configured):
    guards = limited(configured, burst=1, calls_per_s=1.0, tokens_per_minute=600)
    assert guards.refuses(P, M, 0, T0) is None
    assert guards.refuses(P, M, 600, T0) == "skipped:limiter"
    assert guards.refuses(P, M, 600, T0 + 1) is None


def test_the_first_reason_is_the_one_that_is_said(configured):
    guards = limited(configured, burst=14, calls_per_s=0.001)
    assert all(guards.refuses(P, "another", 1, T0) is None for _ in range(4))
    tripped(guards)
    assert guards.refuses(P, "another", 1, T0) == "skipped:limiter"
    guards.report(P, "another", "rate_limited", T0, retry_after_s=300)
    assert guards.refuses(P, "another", 1, T0) == "skipped:not_before"
    assert guards.refuses(P, M, 1, T0) == "skipped:breaker"
    assert guards.state(P, M, T0) == "open"
    for _ in range(3):
        guards.report(P, "another", "bad_request", T0)
    assert guards.refuses(P, "another", 1, T0) == "skipped:disabled"
    guards.report(P, M, "auth", T0)
    assert guards.refuses(P, M, 1, T0) == "skipped:disabled"


# ---------------------------------------------------------------- any history

PROVIDERS, MODELS = ("openai", "unknown"), ("a", "b")
Asked = st.tuples(st.sampled_from(PROVIDERS), st.sampled_from(MODELS))
Waits = st.sampled_from([0.0, 0.0, 0.0, 0.25, 1.0, 5.0, 30.0])
MOSTLY_BAD = [*RESULTS, "skipped:budget", "surprise", *["late", "server", "slow"] * 4, *["ok"] * 6]
MOSTLY_BAD.remove("auth")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    moves=st.lists(st.tuples(Waits, Asked, st.sampled_from([*MOSTLY_BAD, "auth", None, None])), max_size=120),
    backwards=st.sampled_from([0.0, 0.5, 1e4]),
)
def test_after_any_history_and_enough_quiet_every_model_is_asked_but_for_key_and_request(configured, moves, backwards):
    """Calls are reported or not (None), reports come without a call, and the clock is set back once."""
    guards, now_s = Guards(configured), T0
    keys: set[str] = set()
    rows: dict[tuple[str, str], list[str]] = {(p, m): [] for p in PROVIDERS for m in MODELS}
    for n, (wait_s, (provider, model), outcome) in enumerate(moves):
        now_s += wait_s - (backwards if n == 40 else 0)
        if outcome is None:
            guards.refuses(provider, model, 1000, now_s)
            continue
        guards.report(provider, model, outcome, now_s, retry_after_s=None if n % 2 else wait_s)
        rows[provider, model].append(outcome)
        if outcome == "auth":
            keys.add(provider)
    limits = configured.guards
    now_s += 1 + max(limits.quota_s, limits.cooldown_max_s, limits.slow_probe_s, limits.window_s, 300)
    for (provider, model), outcomes in rows.items():
        judged = [each for each in outcomes if each == "bad_request" or each in UNDERSTOOD]
        bad = any(judged[n : n + 3] == ["bad_request"] * 3 for n in range(len(judged)))
        held = bad or provider in keys
        assert (guards.state(provider, model, now_s) == "disabled") == held
        assert guards.refuses(provider, model, 1000, now_s) == ("skipped:disabled" if held else None)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    moves=st.lists(
        st.one_of(
            st.tuples(st.just("ask"), st.sampled_from([1000, 400_000])),
            st.tuples(st.just("wait"), st.sampled_from([0.5, 5.0, 10.0])),
            st.tuples(st.integers(0, 9), st.sampled_from(MOSTLY_BAD)),
        ),
        max_size=120,
    )
)
def test_at_most_one_trial_is_under_way_and_state_and_refusal_agree_whatever_the_order(configured, moves):
    guards, now_s = Guards(configured), T0
    under_way: list[tuple[float, str]] = []  # since when, and the state it was asked in
    for _ in range(10):
        ask(guards, now_s, "late")
    for what, how in moves:
        if what == "wait":
            now_s += how
            under_way = [call for call in under_way if now_s - call[0] < configured.guards.window_s]
        elif what == "ask":
            state = guards.state(P, M, now_s)
            refused = guards.refuses(P, M, how, now_s)
            if refused is None:
                under_way.append((now_s, state))
            allowed = {
                "disabled": {"skipped:disabled"},
                "open": {"skipped:breaker"},
                "half_open": {"skipped:breaker", "skipped:not_before", "skipped:limiter", None},
                "waiting": {"skipped:not_before"},
                "closed": {"skipped:limiter", None},
            }
            assert refused in allowed[state]
        elif under_way:
            under_way.pop(what % len(under_way))
            guards.report(P, M, how, now_s)
        trials = [call for call in under_way if call[1] == "half_open"]
        assert len(trials) <= 1
        if trials:
            assert guards.refuses(P, M, 1, now_s) in ("skipped:breaker", "skipped:disabled")


def test_no_word_for_an_operator_has_more_than_one_line(guards, configured):
    told = [guards.report(P, M, outcome, T0) for outcome in [*RESULTS, *["bad_request"] * 3, *["late"] * 20]]
    said = [words for words in told if words is not None]
    assert len(said) == 4, "key, quota, requests, breaker"
    assert all("\n" not in words and words.isascii() for words in said)
