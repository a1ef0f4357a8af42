"""Candidates: when one is rolled back, that it stays so, and what it lacks to go on."""

import random

import pytest

from services.decider.state import State
from services.decider.trials import MOST, Trials
from shared.settings import Candidate
from shared.weights import Entry, Weights

CANDIDATE = Candidate(provider="openai", model="gpt-5.4-mini", stage="shadow", share=1.0)


@pytest.fixture
def tried(configured):
    risk = configured.roles["risk"].model_copy(update={"candidate": CANDIDATE})
    return configured.model_copy(update={"roles": {**configured.roles, "risk": risk}})


class Kept:
    def __init__(self):
        self.calls = []

    def __call__(self, *what):
        self.calls.append(what)


@pytest.fixture
def kept():
    return Kept()


@pytest.fixture
def trials(tried, kept):
    return Trials(tried, (), kept)


def feed(trials, tried, outcome, count, latency_ms=100, via="shadow"):
    choice = CANDIDATE if via in ("shadow", "canary") else tried.roles["risk"]
    found = [trials.took("risk", choice, via, outcome, latency_ms, 1) for _ in range(count)]
    return next((why for why in found if why is not None), None)


@pytest.mark.parametrize("via", ["shadow", "canary"])
def test_failures_in_a_row(trials, tried, kept, via):
    assert feed(trials, tried, "server", 9, via=via) is None
    assert feed(trials, tried, "ok", 1, via=via) is None
    assert feed(trials, tried, "server", 10, via=via) == "errors: 10 failures in a row"
    assert kept.calls == [("risk", "openai", "gpt-5.4-mini", "errors: 10 failures in a row", 1)]
    assert not trials.allowed("risk", CANDIDATE)
    assert feed(trials, tried, "server", 30, via=via) is None, "told once"


def test_a_share_of_failures(trials, tried):
    assert feed(trials, tried, "invalid", 3) is None
    assert feed(trials, tried, "ok", 36) is None, "fewer calls than guards.candidate_min_calls"
    assert feed(trials, tried, "ok", 1) == "errors: 7.5% of 40 calls failed"


def test_slower_than_the_model_in_place(trials, tried):
    assert feed(trials, tried, "ok", 100, latency_ms=111) is None, "nothing to compare with"
    assert feed(trials, tried, "ok", 50, latency_ms=100, via="primary") is None
    why = feed(trials, tried, "ok", 1, latency_ms=111)
    assert why == "latency: 100% of calls above 110 ms, where the model in place has 5 %"


@pytest.mark.parametrize(("factor", "least", "most"), [(1.0, 0, 2), (1.5, 38, 40)])
def test_as_fast_as_the_model_in_place_it_stays_and_much_slower_it_goes(tried, factor, least, most):
    gone = 0
    for seed in range(40):
        draw = random.Random(seed)
        trials = Trials(tried, (), Kept())
        for _ in range(400):
            feed(trials, tried, "ok", 1, latency_ms=int(draw.lognormvariate(6.2, 0.4)), via="primary")
            feed(trials, tried, "ok", 1, latency_ms=int(factor * draw.lognormvariate(6.2, 0.4)))
        gone += not trials.allowed("risk", CANDIDATE)
    assert least <= gone <= most


def test_refuses_to_answer_more_often(trials, tried):
    feed(trials, tried, "ok", 100, via="primary")
    assert feed(trials, tried, "refusal", 2) is None
    why = feed(trials, tried, "ok", 37) or feed(trials, tried, "refusal", 1)
    assert why == "validity: 92.5% valid answers against 100.0%"


@pytest.mark.parametrize("outcome", ["unneeded", "rate_limited", "saturated"])
def test_what_says_nothing_about_a_model_counts_nowhere(trials, tried, outcome):
    assert feed(trials, tried, outcome, 200) is None
    assert trials.lacks("risk") == [f"0 of {MOST} calls"]


def entry(model, prompt, brier, n=300):
    common = {"n": n, "base_rate": 0.5, "brier": brier, "bss": 0.1, "weight": 0.1, "calibration": []}
    return Entry(role="risk", model=model, prompt_version=prompt, **common)


def weights(tried, mine, theirs, n=300):
    risk = tried.roles["risk"]
    entries = [entry(CANDIDATE.model, risk.prompt, mine, n), entry(risk.model, risk.prompt, theirs, n)]
    return Weights(entries=entries, horizon_ms=1000, since_ns=0, until_ns=1, made_ns=1)


def test_worse_calibrated(trials, tried):
    assert trials.weigh(weights(tried, 0.205, 0.2), 1) == []
    assert trials.weigh(weights(tried, 0.3, 0.2, n=199), 1) == [], "too few outcomes"
    assert trials.weigh(weights(tried, 0.206, 0.2), 1) == [("risk", "calibration: Brier score worse by 0.0060")]
    assert not trials.allowed("risk", CANDIDATE)
    assert trials.weigh(weights(tried, 0.3, 0.2), 1) == []


def test_a_restart_does_not_bring_it_back(tried):
    with State(None) as state:
        first = Trials(tried, state.rolled_back(), state.roll_back)
        feed(first, tried, "server", 10)
        again = Trials(tried, state.rolled_back(), state.roll_back)
        assert not again.allowed("risk", CANDIDATE)
        state.clear_rollback("risk")
        assert Trials(tried, state.rolled_back(), state.roll_back).allowed("risk", CANDIDATE)


def test_forgiven_while_it_runs_it_begins_anew(trials, tried):
    feed(trials, tried, "server", 10)
    trials.renew([("risk", CANDIDATE.provider, CANDIDATE.model)])
    assert not trials.allowed("risk", CANDIDATE)
    trials.renew([])
    assert trials.allowed("risk", CANDIDATE)
    assert feed(trials, tried, "server", 9) is None, "the old failures are not counted again"


def test_what_it_lacks_for_the_next_stage(trials, tried):
    assert trials.lacks("sentiment") is None
    feed(trials, tried, "ok", 100, latency_ms=100, via="primary")
    feed(trials, tried, "ok", MOST, latency_ms=100)
    assert trials.lacks("risk") == ["200 outcomes of both models (arb scorecard --save)"]
    trials.weigh(weights(tried, 0.2, 0.2), 1)
    assert trials.lacks("risk") == []
    feed(trials, tried, "server", 10)
    assert trials.lacks("risk") == ["it was rolled back"]
