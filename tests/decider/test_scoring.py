"""The invariants of the panel, over every answer of a grid, every order and every failure."""

import itertools

import pytest

from services.decider import scoring
from services.decider.scoring import ABSTAINED, PENDING, ROLES, Verdict, Why
from shared.messages import RoleAnswer


def answer(p=0.6, view="hold", veto=False, volatility=0.0):
    return RoleAnswer(p_edge=p, view=view, veto=veto, volatility=volatility, code="OK", note="")


GRID = {
    "sentiment": [answer(p, view) for p in (0.2, 0.7, 0.71, 0.9) for view in ("buy", "sell", "hold")],
    "risk": [answer(p, veto=veto) for p in (0.0, 0.49, 0.5, 0.9) for veto in (False, True)],
    "volatility": [answer(p, volatility=v) for p in (0.1, 0.9) for v in (0.0, 0.39, 0.4, 1.0)],
}
T = 600


def judge(votes, deadline=False, calibrated=False, threshold=T):
    return scoring.verdict(votes, threshold, 0.5, calibrated=calibrated, deadline=deadline)


def final(votes, calibrated=False, threshold=T):
    """The outcome when nothing more comes."""
    verdict = judge(votes, deadline=True, calibrated=calibrated, threshold=threshold)
    assert verdict is not None
    return verdict.outcome


def complete():
    for values in itertools.product(*(GRID[role] for role in ROLES)):
        yield dict(zip(ROLES, values, strict=True))


@pytest.mark.parametrize(
    ("role", "vote", "thousandths"),
    [
        ("sentiment", answer(0.5, "buy"), 300),
        ("sentiment", answer(0.71, "buy"), 500),
        ("sentiment", answer(0.70, "buy"), 300),
        ("sentiment", answer(0.9, "sell"), -100),
        ("sentiment", answer(0.5, "sell"), -300),
        ("sentiment", answer(0.9, "hold"), 200),
        ("risk", answer(0.5), 300),
        ("risk", answer(0.49), 0),
        ("risk", answer(0.9, veto=True), 0),
        ("volatility", answer(volatility=0.39), 200),
        ("volatility", answer(volatility=0.40), 0),
    ],
)
def test_contribution(role, vote, thousandths):
    assert scoring.contribution(role, vote) == thousandths


def test_every_contribution_is_within_its_range():
    for role in ROLES:
        low, high = scoring.RANGES[role]
        found = {scoring.contribution(role, vote) for vote in GRID[role]}
        assert min(found) >= low
        assert max(found) <= high


@pytest.mark.parametrize("calibrated", [False, True])
def test_i1_no_set_of_failures_executes(calibrated):
    for failures in itertools.product((PENDING, ABSTAINED), repeat=3):
        assert final(dict(zip(ROLES, failures, strict=True)), calibrated) != "execute"
        assert final(dict(zip(ROLES, failures, strict=True)), calibrated, threshold=0) != "execute"


@pytest.mark.parametrize("calibrated", [False, True])
def test_i2_removing_or_delaying_any_answer_never_opens_the_gate(calibrated):
    for votes in complete():
        for masks in itertools.product((None, PENDING, ABSTAINED), repeat=3):
            fewer = {r: votes[r] if mask is None else mask for r, mask in zip(ROLES, masks, strict=True)}
            if final(fewer, calibrated) == "execute":
                assert final(votes, calibrated) == "execute"
                assert judge(fewer, calibrated=calibrated) is not None, "and it did not need the deadline"


def test_i3_execute_means_risk_said_yes_and_the_worst_case_is_enough():
    executed = 0
    for votes in complete():
        for masks in itertools.product((None, PENDING, ABSTAINED), repeat=3):
            some = {r: votes[r] if mask is None else mask for r, mask in zip(ROLES, masks, strict=True)}
            if final(some) == "execute":
                executed += 1
                risk = some["risk"]
                assert isinstance(risk, RoleAnswer)
                assert not risk.veto
                assert risk.p_edge >= 0.5
                assert scoring.interval(some)[0] >= T
    assert executed > 0


@pytest.mark.parametrize("calibrated", [False, True])
def test_i8_for_complete_answers_the_order_of_arrival_does_not_matter(calibrated):
    for votes in complete():
        outcomes = set()
        for order in itertools.permutations(ROLES):
            seen = dict.fromkeys(ROLES, PENDING)
            verdict = None
            for role in order:
                seen[role] = votes[role]
                verdict = verdict or judge(seen, calibrated=calibrated)
            assert verdict is not None
            outcomes.add(verdict.outcome == "execute")
        assert len(outcomes) == 1


@pytest.mark.parametrize(
    ("votes", "verdict"),
    [
        ((PENDING, answer(0.9, veto=True), PENDING), Verdict("reject", Why.VETO)),
        ((PENDING, answer(0.4), PENDING), Verdict("hold", Why.RISK)),
        ((answer(0.9, "buy"), answer(0.9), PENDING), Verdict("execute", Why.SCORE)),
        ((answer(0.9, "buy"), PENDING, answer()), None),
        ((answer(0.9, "buy"), ABSTAINED, PENDING), Verdict("hold", Why.RISK_ABSENT)),
        ((answer(0.2, "sell"), PENDING, PENDING), Verdict("hold", Why.SCORE)),
        ((ABSTAINED, answer(0.9), PENDING), Verdict("hold", Why.SCORE)),
        ((PENDING, PENDING, PENDING), None),
    ],
)
def test_it_stops_as_soon_as_the_verdict_stands(votes, verdict):
    assert judge(dict(zip(ROLES, votes, strict=True))) == verdict


def test_dropping_a_pessimist_raises_the_published_mean_but_not_the_gate():
    with_all = {"sentiment": answer(0.9), "risk": answer(0.9), "volatility": answer(0.1)}
    without = {**with_all, "volatility": ABSTAINED}
    assert scoring.pool(without)[0] > scoring.pool(with_all)[0]
    assert scoring.pool(without)[1] <= scoring.pool(with_all)[1]
    assert scoring.pool(dict.fromkeys(ROLES, ABSTAINED)) == (None, 0.0)
