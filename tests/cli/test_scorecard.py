"""`arb scorecard`: scores by hand, calibration beside a brute force, forecasters whose truth is known, the command."""

import gzip
import io
import itertools
import json
import math
import random
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from services.cli import scorecard
from services.cli.__main__ import app
from services.cli.report import Held
from services.cli.scorecard import forecasts, reading, show, sums, words
from services.cli.scorecard.forecasts import Bin, Estimate, Forecast, isotonic
from shared import kafka, settings, topics, weights
from shared.errors import DependencyMissing, InputError, UsageError
from shared.messages import Audit, Decision, DelayedEdge, Message, Opportunity, Shadow

D = Decimal
MS = 1_000_000
S = 1000 * MS
T0 = 1_795_168_800 * S  # 2026-11-20 10:00 UTC
ROOT = Path(__file__).parents[2]
LEG = {"vwap": "100", "limit": "100", "fee_bps": "10", "levels": 1, "alive_age_ms": 1, "book_age_ms": 1}
BUY = {"exchange": "binance", "symbol": "BTC-USDT", "bids": [], "asks": [], **LEG}
SELL = {"exchange": "kraken", "symbol": "BTC-USD", "bids": [], "asks": [], **LEG}


def said(p: float, **changes) -> dict:
    return {"p_edge": p, "view": "hold", "veto": False, "volatility": 0.1, "code": "OK", "note": "", **changes}


def call(p: float | None = None, outcome: str | None = None, cost: str = "0.001", **changes) -> dict:
    return {
        "provider": "google",
        "model_asked": "gemini-x",
        "outcome": outcome or ("late" if p is None else "ok"),
        "latency_ms": 400,
        "cost_usd": cost,
        "answer": None if p is None else said(p),
        **changes,
    }


def role(p: float | None = None, outcome: str | None = None, **changes) -> dict:
    named = {"role": "risk", "prompt_version": "risk-2", "prompt_sha256": "0" * 64}
    return call(p, outcome, **(named | changes))


def decision(number: int, *roles: dict, outcome: str = "hold", at_ns: int | None = None, **changes) -> Decision:
    detected_ns = T0 + number * 60 * S if at_ns is None else at_ns
    values = {
        "decision_id": f"d{number}",
        "opportunity_id": f"o{number}",
        "base": "BTC",
        "outcome": outcome,
        "mode": "full",
        "reason": "score",
        "score": {"low": 0, "high": 1000, "threshold": 600},
        "p_edge": None,
        "p_low": 0.0,
        "rules": {"result": "pass", "codes": []},
        "roles": list(roles),
        "panel": {"version": "v", "deadline_ms": 1500, "elapsed_ms": 400, "cost_usd": "0"},
        "buy": BUY,
        "sell": SELL,
        "size": "0.1",
        "net_bps": "10",
        "profit_usd": "5",  # so the order is of 5,000 USD
        "detected_ns": detected_ns,
        "decided_ns": detected_ns + 500 * MS,
        "expires_ns": detected_ns + 5 * S,
    }
    return Decision.model_validate(values | changes)


def came(number: int, net: str | None, profit: str = "0", at_ns: int | None = None, **changes) -> DelayedEdge:
    """Executable if it has a profit; missed if it has no net edge."""
    values = {
        "opportunity_id": f"o{number}",
        "base": "BTC",
        "buy_exchange": "binance",
        "buy_symbol": "BTC-USDT",
        "sell_exchange": "kraken",
        "sell_symbol": "BTC-USD",
        "delay_ms": 1000,
        "net_bps": None if net is None else D(net),
        "profit_usd": None if net is None else D(profit),
        "executable": D(profit) > 0,
        "missed": net is None,
        "opened_net_bps": D(10),
        "evaluated_ns": (T0 + number * 60 * S if at_ns is None else at_ns) + S,
    }
    return DelayedEdge(**(values | changes))


def good(number: int, **changes) -> DelayedEdge:
    return came(number, "8", "4", **changes)


def bad(number: int, **changes) -> DelayedEdge:
    return came(number, "-6", **changes)


def shadow(number: int, p: float | None, **changes) -> Shadow:
    record = role(p, model_asked="other", via="shadow") | changes
    return Shadow.model_validate(
        {
            "decision_id": f"d{number}",
            "opportunity_id": f"o{number}",
            "base": "BTC",
            "call": record,
            "raw": None,
            "asked_ns": T0 + number * 60 * S,
        }
    )


def score(*messages: Message, horizon_ms: int = 1000, since_ns: int | None = None) -> sums.Scorecard:
    read = reading.Read()
    for number, message in enumerate(messages):
        read.take((number,), message)
    return sums.score(read.decisions, read.trials, read.held, horizon_ms, since_ns)


def forecast(*pairs: tuple[float, int]) -> list[Forecast]:
    return [Forecast(p, y, cluster) for cluster, (p, y) in enumerate(pairs)]


many_forecasts = st.lists(
    st.builds(Forecast, st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 1), st.integers(0, 9)),
    min_size=1,
    max_size=60,
)


# ---------------------------------------------------------------- scores


def test_brier_and_skill_by_hand():
    """0.8 and yes, 0.4 and no, 0.6 and yes, 0.2 and no: errors 0.04, 0.16, 0.16, 0.04; the base rate's are 0.25."""
    found = forecast((0.8, 1), (0.4, 0), (0.6, 1), (0.2, 0))
    brier = forecasts.brier(found)
    assert brier.value == pytest.approx(0.1)
    # distances from the mean are 0.06, so s² / n = (4 * 0.0036 / 3) / 4 and t(3) is 3.182
    assert brier.high == pytest.approx(0.1 + 3.182 * math.sqrt(0.0012), rel=2e-3)
    assert brier.low == 0, "a mean of squares is never below 0"
    assert forecasts.skill(found).value == pytest.approx(1 - 0.1 / 0.25)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (5, 2.5706), (10, 2.2281), (10**6, 1.95997)]
)
def test_student_beside_the_table(freedom, quantile):
    assert forecasts.student(freedom) == pytest.approx(quantile, rel=0.003)


def test_a_perfect_forecaster_has_no_error_and_all_skill():
    found = forecast(*[(1.0, 1), (0.0, 0)] * 10)
    assert forecasts.brier(found) == Estimate(0.0, 0.0, 0.0)
    assert forecasts.skill(found) == Estimate(1.0, 1.0, 1.0)
    assert forecasts.calibration_error(forecasts.bins(found)) == 0


@given(many_forecasts)
def test_always_saying_the_base_rate_is_no_skill(found):
    rate = forecasts.base_rate(found)
    plain = [one._replace(p=rate) for one in found]
    assert forecasts.skill(plain).value == pytest.approx(0, abs=1e-12)
    assert weights.weight_of(forecasts.skill(plain).value, len(plain)) == pytest.approx(0, abs=1e-12)


@given(many_forecasts, st.randoms(use_true_random=False))
def test_every_score_is_within_its_bounds_and_no_order_matters(found, rng):
    mixed = rng.sample(found, len(found))
    for scored in (forecasts.brier, forecasts.skill, forecasts.bins, forecasts.calibration):
        assert scored(found) == scored(mixed)
    brier, skill = forecasts.brier(found), forecasts.skill(found)
    assert 0 <= brier.value <= 1
    assert skill.value <= 1
    assert 0 <= weights.weight_of(skill.value, len(found)) <= 1
    if brier.low is not None and brier.high is not None:
        assert 0 <= brier.low <= brier.value <= brier.high <= 1


def test_what_happens_together_counts_as_one():
    """Forty of one minute with the same error tell hardly more than one; spread over forty minutes they do."""
    together = [Forecast(0.5 + 0.1 * (n // 40), 0, n // 40) for n in range(160)]
    apart = [one._replace(cluster=n) for n, one in enumerate(together)]
    near, far = forecasts.brier(apart), forecasts.brier(together)
    assert near.value == far.value
    assert near.high is not None
    assert far.high is not None
    assert far.high - far.value > 4 * (near.high - near.value)
    assert forecasts.brier([one._replace(cluster=0) for one in apart]).high is None, "one minute: nobody can tell"


def test_bins_are_of_equal_count_and_never_part_equal_answers():
    plain = forecasts.bins(forecast(*((n / 100, n % 2) for n in range(100))))
    assert [one.n for one in plain] == [10] * 10
    assert plain[0] == Bin(10, pytest.approx(0.045), 5)
    lumps = forecasts.bins(forecast(*[(0.5, 1)] * 70, *[(0.5, 0)] * 20, *[(0.9, 1)] * 10))
    assert lumps == (Bin(90, 0.5, 70), Bin(10, pytest.approx(0.9), 10))
    assert forecasts.calibration_error(lumps) == pytest.approx((90 * (70 / 90 - 0.5) + 10 * 0.1) / 100)


@given(many_forecasts)
def test_bins_hold_every_forecast_once(found):
    bins = forecasts.bins(found)
    assert sum(one.n for one in bins) == len(found)
    assert sum(one.true for one in bins) == sum(one.y for one in found)
    assert 1 <= len(bins) <= forecasts.BINS
    assert [one.mean_p for one in bins] == sorted(one.mean_p for one in bins)


# ---------------------------------------------------------------- calibration


def best_rising(values: list[float], loads: list[float]) -> list[float]:
    """Of all ways to cut the sequence into runs of one value each that never fall, the nearest one."""
    best, least = [], math.inf
    for cuts in itertools.product([False, True], repeat=len(values) - 1):
        edges = [0, *(n + 1 for n, cut in enumerate(cuts) if cut), len(values)]
        fitted: list[float] = []
        for begin, end in itertools.pairwise(edges):
            load = sum(loads[begin:end])
            fitted += [sum(v * w for v, w in zip(values[begin:end], loads[begin:end], strict=True)) / load] * (
                end - begin
            )
        if all(a <= b + 1e-12 for a, b in itertools.pairwise(fitted)):
            error = sum(w * (v - f) ** 2 for v, w, f in zip(values, loads, fitted, strict=True))
            if error < least - 1e-12:
                best, least = fitted, error
    return best


@given(st.lists(st.tuples(st.integers(0, 10), st.integers(1, 5)), min_size=1, max_size=8))
def test_pooling_finds_what_trying_everything_finds(pairs):
    values, loads = [v / 10 for v, _ in pairs], [float(w) for _, w in pairs]
    assert isotonic(values, loads) == pytest.approx(best_rising(values, loads))


def test_pooling_by_hand():
    assert isotonic([0.1, 0.5, 0.3, 0.9], [1, 1, 1, 1]) == pytest.approx([0.1, 0.4, 0.4, 0.9])
    assert isotonic([3, 2, 1], [1, 1, 4]) == pytest.approx([1.5, 1.5, 1.5])


@given(many_forecasts)
def test_calibration_rises_is_never_certain_and_can_be_saved(found):
    points = forecasts.calibration(found)
    assert all(p < q and low <= high for (p, low), (q, high) in itertools.pairwise(points))
    assert all(0 < meant < 1 for _, meant in points)
    saved = weights.Entry(
        role="risk",
        model="m",
        prompt_version="risk-2",
        n=len(found),
        base_rate=0.5,
        brier=0.2,
        bss=0.1,
        weight=0.1,
        calibration=points,
    )
    assert 0 < saved.calibrated(0.37) < 1


def test_ten_of_ten_are_no_certainty():
    """Ten no at 0.1, ten yes at 0.9: the prior is 11/22, so the rates are (0 + 1) / 12 and (10 + 1) / 12."""
    points = forecasts.calibration(forecast(*[(0.1, 0)] * 10, *[(0.9, 1)] * 10))
    assert points == [(0.1, round(1 / 12, 6)), (0.9, round(11 / 12, 6))]
    assert forecasts.calibration(forecast((0.9, 1))) == [(0.9, pytest.approx((1 + 2 * 2 / 3) / 3, abs=1e-6))]
    sure = forecasts.calibration(forecast(*[(0.5, 1)] * 30_000))
    assert sure == [(0.5, forecasts.MOST)]


# ---------------------------------------------------------------- forecasters whose truth is known


def drawn(seed: int, n: int, say) -> list[Forecast]:
    """The truth q is uniform, what comes follows it, and the forecaster says `say(q)`."""
    rng = random.Random(seed)
    return [Forecast(say(q), int(rng.random() < q), k) for k, q in enumerate(rng.random() for _ in range(n))]


@pytest.mark.parametrize(
    ("say", "brier", "bss"),
    [
        (lambda q: q, 1 / 6, 1 / 3),  # E q(1 - q), and 1 - that / (1/4)
        (lambda q: 0.5, 1 / 4, 0.0),
        (lambda q: 0.25 + q / 2, 1 / 6 + 1 / 48, 1 / 4),  # plus E (q - p)² = E (q - 1/2)² / 4
        (lambda q: 1 - q, 1 / 6 + 1 / 3, -1.0),  # E (2q - 1)² = 1/3
    ],
)
def test_intervals_hold_the_truth_about_as_often_as_they_say(say, brier, bss):
    """Of 200 samples 95 % should; fewer than 180 (90 %) or never a miss would be a wrong interval."""
    hits = {"brier": 0, "bss": 0}
    for seed in range(200):
        found = drawn(seed, 300, say)
        for name, one, truth in (
            ("brier", forecasts.brier(found), brier),
            ("bss", forecasts.skill(found), bss),
        ):
            assert one.low is not None
            assert one.high is not None
            hits[name] += one.low - 1e-9 <= truth <= one.high + 1e-9
    assert hits["brier"] >= 180
    assert hits["bss"] >= 180
    if brier != 1 / 4:  # whoever always says a half has the same error every time
        assert hits["brier"] < 200


def test_calibrated_and_not_come_out_as_such():
    calibrated = forecasts.bins(drawn(1, 4000, lambda q: q))
    shy = forecasts.bins(drawn(1, 4000, lambda q: 0.25 + q / 2))
    held = sum(one.interval[0] <= one.mean_p <= one.interval[1] for one in calibrated)
    assert held >= 9
    assert sum(one.interval[0] <= one.mean_p <= one.interval[1] for one in shy) <= 4
    assert forecasts.calibration_error(calibrated) < 2 * forecasts.chance_error(calibrated)
    assert forecasts.calibration_error(shy) > 4 * forecasts.chance_error(shy)


def test_calibration_undoes_a_known_distortion():
    points = forecasts.calibration(drawn(2, 4000, lambda q: 0.25 + q / 2))
    entry = weights.Entry(
        role="risk",
        model="m",
        prompt_version="risk-2",
        n=4000,
        base_rate=0.5,
        brier=0.2,
        bss=0.1,
        weight=0.1,
        calibration=points,
    )
    for q in (0.1, 0.3, 0.5, 0.7, 0.9):
        assert entry.calibrated(0.25 + q / 2) == pytest.approx(q, abs=0.08)


def test_the_chance_error_is_what_somebody_calibrated_has():
    found = [forecasts.bins(drawn(seed, 300, lambda q: q)) for seed in range(100)]
    by_chance = sum(map(forecasts.chance_error, found)) / 100
    assert sum(map(forecasts.calibration_error, found)) / 100 == pytest.approx(by_chance, rel=0.1)


# ---------------------------------------------------------------- joining


@pytest.mark.parametrize(
    ("outcome", "y"),
    [
        (good(0), 1),
        (bad(0), 0),
        (came(0, None), None),
        (good(0, missed=True), None),
        (good(0, executable=False), 0),
        (came(0, "0", "1"), 0),
        (came(0, None, missed=False), 0),
    ],
)
def test_labels(outcome, y):
    assert sums.label(outcome) == y


@pytest.mark.parametrize(
    ("outcome", "usd"),
    [
        (good(0), D(4)),
        (bad(0), D(-3)),  # 6 bps of the order's 5,000 USD
        (came(0, "2"), D(0)),  # an edge, but below the least order
        (came(0, None), None),
        (came(0, None, missed=False), None),  # an empty side: no price
    ],
)
def test_worth_by_hand(outcome, usd):
    assert sums.worth_usd(sums.judged(decision(0)), outcome) == usd


def test_a_loss_of_an_order_whose_size_is_unknown_has_no_price():
    sizeless = sums.judged(decision(0, net_bps="-1", profit_usd="0"))
    assert sums.worth_usd(sizeless, bad(0)) is None
    assert sums.worth_usd(sizeless, good(0)) == 4


def test_a_card_by_hand():
    found = score(
        decision(0, role(0.8, latency_ms=100)),
        decision(1, role(0.4, latency_ms=200)),
        decision(2, role(0.6, "slow", latency_ms=1300)),
        decision(3, role(0.2)),
        decision(4, role(None, "late", latency_ms=1500)),
        decision(5, role(None, "unneeded", latency_ms=50)),
        decision(6, role(None, "skipped:breaker", latency_ms=0, cost="0")),
        decision(7, role(0.5, answer=said(0.5, code="UNSURE"), cost="0.003")),
        decision(8, role(0.5)),
        *(good(0), bad(1), good(2), bad(3), good(4), came(5, None), good(8)),
    )
    (card,) = found.cards
    assert (card.key, card.vias, card.on_trial) == (("risk", "gemini-x", "risk-2"), (("primary", 9),), False)
    assert (card.calls, card.needed, card.answers) == (9, 7, 5)
    assert card.valid == 5 / 7
    assert card.abstained == (("late", 1), ("skipped:breaker", 1), ("unneeded", 1), ("unsure", 1))
    assert (card.p50_ms, card.p95_ms) == (400, 1500)
    assert (card.n, card.base_rate, card.mean_p) == (5, 3 / 5, pytest.approx(0.5))
    assert card.brier is not None
    assert card.brier.value == pytest.approx((0.04 + 0.16 + 0.16 + 0.04 + 0.25) / 5)
    assert card.bss is not None
    assert card.bss.value == pytest.approx(1 - 0.13 / 0.24)
    assert card.weight == pytest.approx((1 - 0.13 / 0.24) * 5 / 205)
    assert card.cost_usd == D("0.010")
    assert card.cost_per_answer == D("0.002")
    assert card.useful == 4, "a half is on no side"
    assert card.cost_per_useful == D("0.006") / 4, "calls whose outcome is known: the four, the late one, the half"


def test_missed_and_other_horizons_are_no_label():
    found = score(decision(0, role(0.9)), decision(1, role(0.9)), came(0, None), good(1, delay_ms=500))
    assert [card.n for card in found.cards] == [0]
    assert (found.panel.known, found.panel.missed, found.panel.without) == (0, 1, 1)
    assert score(decision(1, role(0.9)), good(1, delay_ms=500), horizon_ms=500).cards[0].n == 1


def test_a_decision_counts_once_as_it_was_first_published():
    first, again = decision(0, role(0.9)), decision(0, role(0.1), decided_ns=T0 + S)
    for order in ((first, again, first), (again, first, first)):
        found = score(*order, good(0))
        assert found.cards[0].mean_p == pytest.approx(0.9)
        assert (found.panel.decisions, found.panel.duplicates, found.cards[0].calls) == (1, 2, 1)


def test_of_two_records_of_an_outcome_the_newest_counts():
    assert score(decision(0, role(0.9)), good(0), bad(0)).cards[0].base_rate == 0
    assert score(decision(0, role(0.9)), came(0, None), good(0)).cards[0].base_rate == 1


def test_answers_used_again_count_once():
    found = score(
        decision(0, role(0.9)),
        decision(1, role(0.9), mode="cached", cached_from="d0", outcome="execute", p_edge=0.9),
        good(0),
        good(1),
    )
    (card,) = found.cards
    assert (card.calls, card.n, card.cost_usd) == (1, 1, D("0.001"))
    assert (found.panel.decisions, found.panel.cached, found.panel.asked) == (2, 1, 2)
    assert found.panel.cost_usd == D("0.001"), "the calls were paid once"
    assert found.panel.pool is None, "a pooled probability used again is none of its own"
    gain = found.panel.over_rule
    assert gain is not None
    assert (gain.n, gain.panel_usd, gain.other_usd) == (2, 4, 8), "but it executed"


def test_what_failed_before_is_counted_for_its_own_model():
    stood_in = role(0.7, model_asked="stand-in", via="fallback", others=[call(None, "server", cost="0.002")])
    found = score(decision(0, stood_in), good(0))
    failed, answered = sorted(found.cards, key=lambda card: card.model)
    assert (failed.model, failed.answers, failed.abstained, failed.cost_usd) == (
        "gemini-x",
        0,
        (("server", 1),),
        D("0.002"),
    )
    assert (answered.model, answered.vias, answered.n) == ("stand-in", (("fallback", 1),), 1)
    assert found.panel.cost_usd == D("0.003")


def test_the_same_model_at_two_providers_is_one_opinion():
    hedged = role(0.7, others=[call(0.2, provider="elsewhere", via="hedge")])
    (card,) = score(decision(0, hedged), good(0)).cards
    assert (card.calls, card.answers, card.n, card.mean_p) == (2, 1, 1, pytest.approx(0.7))


def test_a_switched_off_role_is_no_model():
    assert score(decision(0, role(None, "skipped:disabled", model_asked="none", provider="none"))).cards == ()


def test_a_candidate_on_trial_has_a_card_of_its_own():
    found = score(decision(0, role(0.9)), shadow(0, 0.3), shadow(0, 0.3), good(0), shadow(1, 0.2), bad(1))
    own, other = found.cards
    assert (own.model, own.on_trial) == ("gemini-x", False)
    assert (other.model, other.on_trial, other.calls, other.n) == ("other", True, 2, 2)
    assert found.panel.cost_usd == D("0.001"), "it is no part of the panel"
    assert words.name_of(other) == "risk other risk-2 (on trial)"
    promoted = score(decision(0, role(0.9, model_asked="other")), shadow(1, 0.2), good(0), bad(1))
    assert [(card.on_trial, card.n, card.vias) for card in promoted.cards] == [
        (False, 2, (("primary", 1), ("shadow", 1)))
    ]


def test_prompts_are_told_apart():
    found = score(decision(0, role(0.9)), decision(1, role(0.9, prompt_version="risk-3")))
    assert [card.prompt_version for card in found.cards] == ["risk-2", "risk-3"]


def test_an_audit_holds_its_decision():
    judged = decision(0, role(0.9))
    leg = BUY
    opportunity = Opportunity.model_validate(
        {
            "opportunity_id": "o0",
            "phase": "opened",
            "base": "BTC",
            "buy": leg,
            "sell": SELL,
            "rates": [],
            "closed_loop_bps": None,
            "depth_limited": False,
            **dict.fromkeys(("size", "notional_usd", "profit_usd", "naive_bps", "net_bps", "peak_net_bps"), "1"),
            **dict.fromkeys(("opened_ns", "detected_ns", "expires_ns"), T0),
        }
    )
    audit = Audit(decision=judged, opportunity=opportunity, admitted_ns=T0, admitted_expires_ns=T0, keys=True)
    assert score(audit, good(0)).cards == score(judged, good(0)).cards
    assert score(audit, judged).panel.decisions == 1


def test_only_since():
    found = score(decision(0, role(0.9)), decision(1, role(0.9)), good(0), good(1), shadow(0, 0.1), since_ns=T0 + S)
    assert (found.panel.decisions, [card.n for card in found.cards]) == (1, [1])


# ---------------------------------------------------------------- the panel


def test_the_panel_by_hand():
    """Executes a good one (+4) and a bad one (-3), holds a bad one (-3) and a good one (4); each costs 0.001."""
    found = score(
        decision(0, role(0.9), outcome="execute", p_edge=0.9),
        decision(1, role(0.9), outcome="execute", p_edge=0.8),
        decision(2, role(0.2), outcome="hold", p_edge=0.2),
        decision(3, role(0.2), outcome="reject", p_edge=0.1),
        decision(4, outcome="hold", mode="rules_only", rules={"result": "hold", "codes": ["net"]}),
        *(good(0), bad(1), bad(2), good(3), bad(4)),
    ).panel
    assert found.fates == (
        sums.Fate("execute", 2, 2, 1),
        sums.Fate("hold", 2, 2, 0),
        sums.Fate("reject", 1, 1, 1),
    )
    rule, yes = found.over_rule, found.over_yes
    assert rule is not None
    assert yes is not None
    assert (rule.n, rule.panel_usd, rule.other_usd, rule.cost_usd) == (4, D(1), D(2), D("0.004"))
    assert rule.total_usd == D("-1.004")
    assert rule.mean_usd.value == pytest.approx(-0.251)
    assert (yes.n, yes.other_usd, yes.total_usd) == (5, D(-1), D("1.996"))
    assert found.pool is not None
    assert found.pool.n == 4
    assert found.pool.brier.value == pytest.approx((0.01 + 0.64 + 0.04 + 0.81) / 4)


def test_decisions_after_the_horizon_are_said():
    found = score(decision(0, role(0.9), decided_ns=T0 + 2 * S), good(0))
    assert found.panel.late == 1
    assert "1 decision made after the horizon" in (words.apart(found, 0) or "")


def panel_of(n: int, share_right: float, seed: int = 1) -> list[Message]:
    """Half of the gaps stay; the panel executes those that stay, and holds the others, with this probability."""
    rng = random.Random(seed)
    found: list[Message] = []
    for k in range(n):
        stays, right = rng.random() < 0.5, rng.random() < share_right
        p = round(rng.uniform(0.55, 0.95) if stays == right else rng.uniform(0.05, 0.45), 2)
        found += [decision(k, role(p), outcome="execute" if stays == right else "hold", p_edge=p)]
        found += [came(k, "6", "3") if stays else came(k, "-6")]
    return found


@pytest.mark.parametrize(
    ("messages", "reason", "words_of_it"),
    [
        ([], "none", "nothing to score: no decision in the last 7 d"),
        ([good(0)], "none", "nothing to score: no decision in the last 7 d"),
        ([decision(0, role(0.9))], "no_outcomes", "nothing to score: 1 decision in the last 7 d, but no outcome 1 s"),
        (
            [decision(0, role(0.9)), came(0, None)],
            "unseen",
            "nothing to score: 1 decision in the last 7 d, but nobody saw what any was worth after 1 s: all outcomes",
        ),
        (
            [decision(0, role(None, "skipped:disabled"), mode="rules_only"), good(0)],
            "not_asked",
            "nothing to score: 1 decision in the last 7 d, 1 with a known outcome, but no model was asked in any",
        ),
        (panel_of(37, 0.9), "few", "not enough outcomes: 37 of 200 needed, 163 more; 37 decisions in the last 7 d"),
        (panel_of(199, 0.9), "few", "not enough outcomes: 199 of 200 needed, 1 more;"),
        (panel_of(200, 0.9), "better", "the models added value: +"),
        (panel_of(400, 0.5), "chance", "the models added nothing that can be told from chance: "),
        (panel_of(400, 0.1), "worse", "the models cost more than they brought: -"),
    ],
)
def test_the_answer(messages, reason, words_of_it):
    found = score(*messages)
    assert found.reason == reason
    assert words.headline(found, "in the last 7 d").startswith(words_of_it)
    assert "\n" not in words.headline(found, "in the last 7 d")
    assert found.good == (reason == "better")
    shown(found)


def test_executing_everything_adds_nothing_but_cost():
    every = [decision(k, role(0.9), outcome="execute") for k in range(200)]
    found = score(*every, *(good(k) if k % 2 else bad(k) for k in range(200)))
    gain = found.panel.over_rule
    assert gain is not None
    assert (gain.total_usd, found.reason) == (D("-0.200"), "worse")


def shown(found: sums.Scorecard, **options) -> str:
    out = io.StringIO()
    show.show(Console(file=out, width=80, soft_wrap=True, **options), found, 0, "in the last 7 d")
    return out.getvalue()


@given(st.randoms(use_true_random=False))
def test_the_order_of_the_input_changes_no_byte(rng):
    messages = [*panel_of(30, 0.7), shadow(3, 0.3), shadow(4, 0.8), decision(5, role(0.1)), good(6), came(7, None)]
    held = {id(one): Held((n,), one) for n, one in enumerate(messages) if isinstance(one, DelayedEdge)}
    mixed = rng.sample(messages, len(messages))

    def of(order: list[Message]) -> tuple[bytes, bytes]:
        found = sums.score(
            [sums.judged(one) for one in order if isinstance(one, Decision)],
            [sums.tried(one) for one in order if isinstance(one, Shadow)],
            [held[id(one)] for one in order if isinstance(one, DelayedEdge)],
            1000,
        )
        saved = found.weights(9)
        assert saved is not None
        return json.dumps(words.as_value(found, 0, "")).encode(), saved.model_dump_json().encode()

    assert of(messages) == of(mixed)


def test_a_model_that_says_the_base_rate_gets_no_weight():
    """Half are good, and it says a half every time: whatever else is in the sample, its skill is 0."""
    roles = [decision(k, role(0.9 if k % 2 else 0.1), role(0.5, role="volatility")) for k in range(200)]
    found = score(*roles, *(good(k) if k % 2 else bad(k) for k in range(200)))
    saved = found.weights(9)
    assert saved is not None
    risk, plain = (saved.of(name, "gemini-x", "risk-2") for name in ("risk", "volatility"))
    assert risk is not None
    assert plain is not None
    assert (plain.bss, plain.weight, plain.n) == (0, 0, 200)
    assert risk.bss == pytest.approx(1 - 0.01 / 0.25)
    assert risk.weight == pytest.approx(0.96 / 2)


# ---------------------------------------------------------------- shown


def test_tables_fit_into_80_columns_and_nothing_is_cut():
    text = shown(score(*panel_of(1200, 0.7)))
    assert "…" not in text
    assert "knows more than the base rate" in text or "cannot be told from" in text
    assert "Beside executing all that the models were asked about (the rule)" in text


def test_the_plot_has_its_points_where_they_belong():
    found = score(*(decision(k, role(0.5)) for k in range(4)), *(good(0), good(1), good(2), bad(3)))
    drawn_lines = show.plot(show.plotted(found.cards)).plain.splitlines()
    points = [(row, line.index("●") - 8) for row, line in enumerate(drawn_lines[1:22]) if "●" in line]
    assert points == [(5, 30)], "three of four came where a half was said"
    assert drawn_lines[6].startswith("  0.75 |")
    plain = show.plot(show.plotted(found.cards), ascii_only=True).plain
    assert plain.isascii()
    assert plain.splitlines()[6].count("o") == 1


# ---------------------------------------------------------------- the command


def arb(*arguments: str, given: bytes | None = None):
    config = ["--config", str(ROOT / "deploy" / "arb.toml")]
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, ["scorecard", *config, *arguments], input=given)


def lines(*messages: Message) -> bytes:
    return b"".join(one.encode() + b"\n" for one in messages)


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "messages.jsonl"
    path.write_bytes(lines(*panel_of(240, 0.9)))
    return path


def test_the_command_ends_0_and_saves_what_the_decider_reads(file, tmp_path):
    saved = tmp_path / "weights.json"
    done = arb("--from-file", str(file), "--save", str(saved))
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("the models added value: +")
    found = weights.load(saved)
    entry = found.of("risk", "gemini-x", "risk-2")
    assert entry is not None
    assert (entry.n, found.horizon_ms, found.since_ns) == (240, 1000, T0)
    assert f"1 models, 1 of them with enough outcomes to be followed; digest {found.digest()}" in " ".join(
        done.stderr.split()
    )


def test_json_and_other_ways_to_give_a_file(file, tmp_path):
    packed = tmp_path / "messages.jsonl.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    one, other, both = (
        json.loads(arb(*arguments, "--json", given=file.read_bytes()).stdout)
        for arguments in (
            ["--from-file", "-"],
            ["--from-file", str(packed)],
            ["--from-file", str(file), "--from-file", str(packed)],
        )
    )
    assert one == other
    assert both["models"] == one["models"]
    assert both["panel"].pop("duplicates") == 240
    assert both["panel"]["over_rule"] == one["panel"]["over_rule"]
    (model,) = one["models"]
    assert (model["n"], model["followed"], len(model["bins"])) == (240, True, 10)
    assert D(one["panel"]["over_rule"]["low_usd"]) < D(one["panel"]["over_rule"]["mean_usd"])


def test_nothing_known_is_one_line_1_and_no_file(tmp_path):
    empty, saved = tmp_path / "empty.jsonl", tmp_path / "weights.json"
    empty.touch()
    saved.write_text("old")
    done = arb("--from-file", str(empty), "--save", str(saved))
    assert done.exit_code == 1
    assert done.stdout.splitlines() == ["nothing to score: no decision in these files"]
    assert "is not written: no outcome of any answer is known" in done.stderr
    assert saved.read_text() == "old"


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (
            ["--horizon-ms", "700"],
            "--horizon-ms 700: no outcome is computed then; detector.outcome_delays_ms has 50, 100",
        ),
        (["--since", "yesterday"], "--since 'yesterday': must be"),
        (["--since", "2999-01-01T00:00:00Z"], "--since '2999-01-01T00:00:00Z': must lie in the past"),
    ],
)
def test_wrong_usage_is_2(file, arguments, wanted):
    error = arb("--from-file", str(file), *arguments).exception
    assert isinstance(error, UsageError)
    assert error.exit_code == 2
    assert wanted in str(error)


def test_a_bad_line_and_a_place_that_cannot_be_written_are_2(file, tmp_path):
    bad_file = tmp_path / "bad.jsonl"
    bad_file.write_bytes(b"\n{}\n")
    for arguments, wanted in (
        (["--from-file", str(bad_file)], "bad.jsonl, line 2: "),
        (["--from-file", str(file), "--save", str(tmp_path / "no" / "w.json")], "w.json: No such file"),
        (["--from-file", str(file), "--png", str(tmp_path / "no" / "p.png")], "p.png: No such file"),
    ):
        error = arb(*arguments).exception
        assert isinstance(error, InputError)
        assert wanted in str(error)


def test_a_picture(file, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "plot.png"
    assert arb("--from-file", str(file), "--png", str(path)).exit_code == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    path.unlink()
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    done = arb("--from-file", str(empty), "--png", str(path))
    assert "is not written: there is nothing to plot" in done.stderr
    assert not path.exists()


def test_a_picture_without_matplotlib_is_one_line_and_3(file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = arb("--from-file", str(file), "--png", str(tmp_path / "plot.png"))
    assert isinstance(done.exception, DependencyMissing)
    assert str(done.exception) == "--png needs matplotlib: pip install matplotlib"
    assert done.stdout == ""


# ---------------------------------------------------------------- Kafka


def test_from_kafka_the_last_week_of_three_topics(monkeypatch, capsys):
    now_ns = T0 + 7 * 86_400 * S
    values = {
        topics.DECISIONS: [decision(0, role(0.9)).encode(), decision(1, role(0.9)).encode(), b"?"],
        topics.OUTCOMES: [good(0).encode(), bad(1).encode(), bad(0, delay_ms=500).encode(), None],
        topics.AUDIT: [b'{"kind":"audit","not read":1}', shadow(0, 0.2).encode()],
    }
    asked = {}

    def spans(config, wanted, since_ms, until_ms):
        (topic,) = wanted
        asked[topic] = (since_ms, until_ms)
        return [kafka.Span(topic, 0, 0, len(values[topic]), 0, len(values[topic]))]

    def read_spans(config, wanted):
        (span,) = wanted
        yield None
        for offset, value in enumerate(values[span.topic]):
            yield kafka.Record(span.topic, 0, offset, b"BTC", value, T0 // MS, [])

    monkeypatch.setattr(reading.cluster, "wait_for_brokers", lambda _: 1)
    monkeypatch.setattr(reading.kafka, "spans", spans)
    monkeypatch.setattr(reading.kafka, "read_spans", read_spans)
    console = Console(file=io.StringIO())
    found = scorecard.run(
        settings.load(ROOT / "deploy" / "arb.toml"),
        None,
        1000,
        (),
        None,
        None,
        True,
        console,
        console,
        clock=lambda: now_ns,
    )
    value = json.loads(capsys.readouterr().out)
    assert not found
    assert value["headline"] == "not enough outcomes: 2 of 200 needed, 198 more; 2 decisions in the last 7 d"
    assert value["unreadable"] == 2
    assert [(model["model"], model["n"]) for model in value["models"]] == [("gemini-x", 2), ("other", 1)]
    now_ms, week_ms = now_ns // MS, 7 * 86_400_000
    assert asked == {
        topics.DECISIONS: (now_ms - week_ms - 10_000, now_ms),
        topics.OUTCOMES: (now_ms - week_ms - 10_000, now_ms),
        topics.AUDIT: (now_ms - week_ms + reading.EXPIRING_MS, now_ms),
    }, "audits are kept for a week: those that may go while we read are left out"
