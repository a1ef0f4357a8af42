"""The invariants of the panel, over every answer of a grid, every order and every failure."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.decider import scoring
from services.decider.scoring import ABSTAINED, PENDING, ROLES, Answered, Pooling, Verdict, Why
from shared.messages import RoleAnswer
from shared.weights import Entry, Weights


def answer(p=0.6, view="hold", veto=False, volatility=0.0, manipulation="low", model="m"):
    given = {"p_edge": p, "view": view, "veto": veto, "volatility": volatility, "manipulation": manipulation}
    return Answered(RoleAnswer(**given, code="OK", pressure="balanced", liquidity="enough", note=""), model)


def entry(role, model, weight, curve=((0.0, 0.05), (0.5, 0.4), (1.0, 0.9)), n=500):
    return Entry(
        role=role,
        model=model,
        prompt_version=f"{role}-2",
        n=n,
        base_rate=0.5,
        brier=0.2,
        bss=0.2,
        weight=weight,
        calibration=list(curve),
    )


def pooling(*, calibrated=False, prior_weight=0.0, weights=(1.0, 1.0, 1.0)):
    """Plain, or with a calibrated model "m" for each role, one of them lighter and one heavier than configured."""
    configured = dict(zip(ROLES, weights, strict=True))
    entries = {}
    if calibrated:
        entries = {(role, "m"): entry(role, "m", weight) for role, weight in zip(ROLES, (0.2, 1.0, 0.6), strict=True)}
    most = {role: max([configured[role], *(e.weight for (r, _), e in entries.items() if r == role)]) for role in ROLES}
    return Pooling(0.5, prior_weight, configured, entries, most, calibrated)


GRID = {
    "sentiment": [answer(p, view) for p in (0.2, 0.7, 0.71, 0.9) for view in ("buy", "sell", "hold")],
    "risk": [
        *(answer(p, veto=veto) for p in (0.0, 0.49, 0.5, 0.9) for veto in (False, True)),
        answer(0.9, manipulation="high"),
    ],
    "volatility": [answer(p, volatility=v) for p in (0.1, 0.9) for v in (0.0, 0.39, 0.4, 1.0)],
}
T = 600
POOLINGS = {False: pooling(), True: pooling(calibrated=True, prior_weight=0.3)}


def judge(votes, deadline=False, calibrated=False, threshold=T):
    return scoring.verdict(votes, threshold, 0.45, POOLINGS[calibrated], deadline=deadline)


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
        ("risk", answer(0.9, manipulation="medium"), 300),
        ("risk", answer(0.9, manipulation="high"), 0),
        ("volatility", answer(volatility=0.39), 200),
        ("volatility", answer(volatility=0.40), 0),
    ],
)
def test_contribution(role, vote, thousandths):
    assert scoring.contribution(role, vote.answer) == thousandths


def test_every_contribution_is_within_its_range():
    for role in ROLES:
        low, high = scoring.RANGES[role]
        found = {scoring.contribution(role, vote.answer) for vote in GRID[role]}
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
                assert isinstance(risk, Answered)
                assert not risk.answer.veto
                assert risk.answer.p_edge >= 0.5
                assert risk.answer.manipulation != "high"
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
        ((PENDING, answer(0.9, manipulation="high"), PENDING), Verdict("hold", Why.RISK)),
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
    plain = pooling()
    assert plain.pool(without)[0] > plain.pool(with_all)[0]
    assert plain.pool(without)[1] <= plain.pool(with_all)[1]
    assert plain.pool(dict.fromkeys(ROLES, ABSTAINED)) == (None, 0.0)


VOTE = st.one_of(
    st.sampled_from([ABSTAINED, PENDING]),
    st.builds(answer, p=st.floats(0, 1), model=st.sampled_from(["m", "fallback", "canary"])),
)
WEIGHT = st.floats(0, 1)


@given(
    st.tuples(VOTE, VOTE, VOTE),
    st.tuples(WEIGHT, WEIGHT, WEIGHT),
    st.lists(st.tuples(st.sampled_from(ROLES), st.sampled_from(["m", "fallback"]), WEIGHT)),
    WEIGHT,
    st.sets(st.sampled_from(ROLES)),
)
def test_i2_taking_an_answer_away_never_raises_the_gates_probability(votes, configured, weighed, prior_weight, gone):
    """Whatever the weights: also where a model's own is larger or smaller than the role's."""
    entries = {(role, model): entry(role, model, weight) for role, model, weight in weighed}
    own = dict(zip(ROLES, configured, strict=True))
    most = {role: max([own[role], *(e.weight for (r, _), e in entries.items() if r == role)]) for role in ROLES}
    pooled = Pooling(0.5, prior_weight, own, entries, most, True)
    whole = dict(zip(ROLES, votes, strict=True))
    less = {role: ABSTAINED if role in gone else vote for role, vote in whole.items()}
    p_edge, p_low = pooled.pool(whole)
    assert pooled.pool(less)[1] <= p_low
    assert 0 <= p_low <= 1
    assert p_edge is None or 0 <= p_edge <= 1


def test_weights_and_calibration_follow_the_outcomes_where_there_are_enough(configured):
    risk = configured.roles["risk"]
    few = entry("risk", risk.model, 0.3, n=199)
    enough = entry("risk", risk.model, 0.3, n=200)
    vote = answer(0.5, model=risk.model)
    plain = Pooling.of(configured, None)
    assert plain.voice("risk", vote) == (1.0, 0.5)
    assert Pooling.of(configured, weights(few)).voice("risk", vote) == (1.0, 0.5)
    followed = Pooling.of(configured, weights(enough))
    assert followed.voice("risk", vote) == (0.3, 0.4)
    assert followed.voice("risk", answer(0.5, model="another")) == (0.3, 0.5), "no more than the role's own has earned"
    assert followed.most["risk"] == 0.3
    assert not followed.calibrated, "only once every role is"
    every = [entry(role, chosen.model, 0.3) for role, chosen in configured.roles.items()]
    assert Pooling.of(configured, weights(*every)).calibrated


def test_what_models_have_earned_is_enough_to_execute(configured):
    """Learned weights are small: a gate that held them against configured ones would never open again."""
    every = [entry(role, chosen.model, 0.05) for role, chosen in configured.roles.items()]
    pooled = Pooling.of(configured, weights(*every))
    votes = {role: answer(0.9, "buy", model=chosen.model) for role, chosen in configured.roles.items()}
    assert pooled.pool(votes)[1] == pytest.approx(0.8)
    assert scoring.verdict(votes, T, 0.5, pooled, deadline=True) == ("execute", "score")
    stranger = {**votes, "risk": answer(0.9, "buy", model="the fallback")}
    assert pooled.pool(stranger)[1] <= (0.8 * 2 + 0.9) / 3 + 0.0001, "and a stranger weighs no more"


def weights(*entries):
    return Weights(entries=list(entries), horizon_ms=1000, since_ns=0, until_ns=1, made_ns=1)
