"""The invariants of `llm-providers.md` section 4 over whole cases: any answers, order, delay, failure, time and state."""

from decimal import Decimal

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from services.decider import judge, rules
from services.decider.judge import Case, Reason, Terms
from services.decider.scoring import ROLES, Answered, Why, interval
from shared import settings
from shared.errors import SettingsError
from shared.messages import Arrival, RoleAnswer, RoleRecord, decode
from shared.weights import Entry, Weights
from tests.decider.conftest import NOW_NS, role_answer

MS = 1_000_000
SETTINGS = settings.load()
FAILURES = [
    "server",
    "network",
    "late",
    "unneeded",
    "invalid",
    "auth",
    "quota",
    "rate_limited",
    "bad_request",
    "refusal",
]
FAILURES += ["unsure", "saturated", "skipped:breaker", "skipped:limiter", "skipped:budget", "skipped:disabled"]


def weights(brier: float) -> Weights:
    entries = [
        Entry(
            role=role,
            model=chosen.model,
            prompt_version=chosen.prompt,
            n=400,
            base_rate=0.6,
            brier=brier,
            bss=0.3,
            weight=0.2,
            calibration=[(0.0, 0.1), (1.0, 0.8)],
        )
        for role, chosen in SETTINGS.roles.items()
    ]
    return Weights(entries=entries, horizon_ms=1000, since_ns=0, until_ns=1, made_ns=1)


PLAIN, CALIBRATED = Terms.of(SETTINGS), Terms.of(SETTINGS, weights(0.2))

ANSWERS = st.builds(
    role_answer,
    p_edge=st.one_of(st.sampled_from([0.0, 0.49, 0.5, 0.7, 0.71, 1.0]), st.floats(0, 1)),
    view=st.sampled_from(["buy", "sell", "hold"]),
    veto=st.booleans(),
    volatility=st.sampled_from([0.0, 0.39, 0.4, 1.0]),
    manipulation=st.sampled_from(["low", "medium", "high", None]),
)


def record(role: str, what: RoleAnswer | str) -> RoleRecord:
    chosen = SETTINGS.roles[role]
    return RoleRecord(
        role=role,
        provider=chosen.provider,
        model_asked=chosen.model,
        outcome=what if isinstance(what, str) else "ok",
        answer=None if isinstance(what, str) else what,
        cost_usd=Decimal("0.0001"),
        prompt_version=chosen.prompt,
        prompt_sha256="0" * 64,
    )


@st.composite
def cases(draw, answered: bool = False):
    """A panel that has come to its end, and the moment of the last check."""
    given = {role: draw(ANSWERS if answered else st.one_of(ANSWERS, st.sampled_from(FAILURES))) for role in ROLES}
    order = draw(st.permutations(ROLES))
    come = 3 if answered else draw(st.integers(0, 3))
    newest_changes = draw(
        st.sampled_from(
            [
                {},
                *({"phase": "closed"}, {"net_bps": "1"}, {"expires_ns": NOW_NS}, {"profit_usd": "0"}),
                {"phase": "updated", "size": "0.001", "net_bps": "20", "expires_ns": NOW_NS + 9_000 * MS},
            ]
        )
    )
    return {
        "given": given,
        "order": order[:come],
        "late_by_ms": draw(st.sampled_from([0, 0, 500, 2_500])),
        "newest": newest_changes,
        "killed": draw(st.sampled_from([False, False, True])),
        "terms": draw(st.sampled_from([PLAIN, CALIBRATED])),
    }


def ended(opportunity, drawn, order=None, gone=frozenset()) -> Case:
    """As the panel would have left it: arrivals until the verdict stands, else late; `gone` roles never arrive."""
    terms = drawn["terms"]
    order = [role for role in (drawn["order"] if order is None else order) if role not in gone]
    records = {role: record(role, what) for role, what in drawn["given"].items()}
    arrivals: list[Arrival] = []
    stands = False
    for n, role in enumerate(order):
        arrivals.append(Arrival(roles=[role], after_ms=n))
        if judge.votes_after(arrivals, records, late=False, terms=terms)[1] is not None:
            stands = True
            break
    seen = {role for arrival in arrivals for role in arrival.roles}
    records = {
        role: r if role in seen else record(role, "unneeded" if stands else "late") for role, r in records.items()
    }
    opened = opportunity()
    newest = opportunity(**{"detected_ns": NOW_NS, **drawn["newest"]}) if drawn["newest"] else opened
    return Case(
        opportunity=opened,
        admitted_ns=NOW_NS,
        admitted_closed=False,
        admitted_expires_ns=opened.expires_ns,
        keys=True,
        killed=drawn["killed"],
        asked_ns=NOW_NS,
        deadline_ms=1500,
        arrivals=arrivals,
        late=not stands,
        records=records,
        newest=newest,
        decided_ns=NOW_NS + drawn["late_by_ms"] * MS,
    )


@given(drawn=cases())
def test_i1_i3_i6_i8_of_any_case(opportunity, drawn):
    case, terms = ended(opportunity, drawn), drawn["terms"]
    decision = judge.conclude(case, terms)
    assert decode(decision.encode()) == decision, "I6: finite, valid JSON"
    audit = decode(judge.audited(case, decision.encode()))
    assert audit == judge.audit(case, decision) == decode(audit.encode())
    assert judge.audited(case, decision.encode()) == audit.encode(), "the fast writer writes what the model does"
    again = judge.conclude(judge.case_of(audit), terms)
    assert again.encode() == decision.encode(), "I8: the record makes the same decision again"
    arrived = {role for arrival in case.arrivals for role in arrival.roles}
    if decision.outcome == "execute":
        risk = next(found.answer for found in decision.roles if found.role == "risk")
        assert "risk" in arrived, "I1: nothing executes without the risk role's yes"
        assert risk is not None
        assert not risk.veto
        assert risk.p_edge >= 0.5
        assert risk.manipulation != "high"
        assert decision.score.low >= decision.score.threshold
        assert decision.rules.result == "pass"
        assert rules.check(case.newest, terms.settings).result == "pass"
        assert case.newest.phase != "closed"
        assert case.decided_ns < decision.expires_ns == case.newest.expires_ns
        for name in ("buy", "sell", "size", "net_bps", "profit_usd", "detected_ns"):
            assert getattr(decision, name) == getattr(case.newest, name), "it is for what the last check has seen"
        assert not case.killed
        assert terms is PLAIN or decision.p_low >= 0.5
    assert decision.panel.cost_usd == sum(found.cost_usd for found in decision.roles)
    assert decision.reason in {*Reason, *Why}


@given(drawn=cases(answered=True), gone=st.sets(st.sampled_from(ROLES)), order=st.permutations(ROLES))
def test_i2_taking_away_or_delaying_answers_never_opens_the_gate(opportunity, drawn, gone, order):
    whole = judge.conclude(ended(opportunity, drawn), drawn["terms"])
    less = judge.conclude(ended(opportunity, drawn, order=order, gone=gone), drawn["terms"])
    if less.outcome == "execute":
        assert whole.outcome == "execute"
    if not gone and whole.outcome == "execute":
        assert less.outcome == "execute", "and for complete answers the order does not matter"


@given(drawn=cases(), failed=st.sampled_from(FAILURES))
def test_i1_with_every_model_failing_nothing_executes(opportunity, drawn, failed):
    drawn["given"] = dict.fromkeys(ROLES, failed)
    assert judge.conclude(ended(opportunity, drawn), drawn["terms"]).outcome != "execute"


@given(drawn=cases())
def test_what_is_recorded_of_each_arrival_narrows_the_interval(opportunity, drawn):
    case = ended(opportunity, drawn)
    before = (-300, 1000)
    for n in range(len(case.arrivals) + 1):
        votes, _ = judge.votes_after(case.arrivals[:n], case.records, late=False, terms=drawn["terms"])
        low, high = interval(votes)
        assert before[0] <= low <= high <= before[1]
        before = (low, high)


@pytest.mark.parametrize("terms", [PLAIN, CALIBRATED])
def test_three_good_answers_execute_also_when_calibrated(opportunity, terms):
    good = dict.fromkeys(ROLES, role_answer(p_edge=0.95))
    drawn = {"given": good, "order": ROLES, "late_by_ms": 0, "newest": {}, "killed": False, "terms": terms}
    assert judge.conclude(ended(opportunity, drawn), terms).outcome == "execute"


def test_a_case_that_never_ended_is_refused(opportunity):
    drawn = {"given": dict.fromkeys(ROLES, role_answer()), "order": [], "late_by_ms": 0, "newest": {}, "killed": False}
    case = ended(opportunity, {**drawn, "terms": PLAIN})
    case.late = False
    with pytest.raises(ValueError, match="not come to an end"):
        judge.conclude(case, PLAIN)


@pytest.mark.parametrize(
    ("changes", "stopped"),
    [
        ({"admitted_closed": True}, ("hold", "closed")),
        ({"admitted_expires_ns": NOW_NS}, ("hold", "expired")),
        ({"admitted_ns": NOW_NS + 2_990 * MS}, ("hold", "too_old")),
        ({"superseded": True}, ("hold", "superseded")),
        ({"killed": True}, ("hold", "kill_switch")),
        ({"keys": False}, ("hold", "no_keys")),
        ({"admitted_expires_ns": NOW_NS + 349 * MS}, ("hold", "no_time")),
        ({}, None),
    ],
)
def test_admit(opportunity, changes, stopped):
    opened = opportunity()
    facts = {"admitted_ns": NOW_NS, "admitted_closed": False, "admitted_expires_ns": opened.expires_ns, "keys": True}
    case = Case(opportunity=opened, **{**facts, **changes})
    assert judge.admit(case, rules.check(opened, SETTINGS), PLAIN) == stopped


def test_a_panel_of_other_settings_prompts_or_weights_is_another_version(configured):
    def changed(**decider):
        return configured.model_copy(update={"decider": configured.decider.model_copy(update=decider)})

    def of_risk(**model):
        name = configured.roles["risk"].model
        models = configured.models | {name: configured.models[name].model_copy(update=model)}
        return configured.model_copy(update={"models": models})

    versions = [
        Terms.of(configured).version,
        Terms.of(changed(threshold=700)).version,
        Terms.of(changed(min_net_bps=Decimal(6))).version,
        Terms.of(configured, weights(0.2)).version,
        Terms.of(configured, weights(0.1)).version,
        Terms.of(of_risk(name="gemini-3.5-flash-lite-002")).version,
        Terms.of(of_risk(max_out=300)).version,
        Terms.of(of_risk(request={"temperature": 1})).version,
    ]
    assert len(set(versions)) == len(versions)
    assert Terms.of(of_risk(p95_ms=1)).version == versions[0], "when it is hedged is no matter"
    assert Terms.of(changed(state_file="/x", ping_s=1)).version == versions[0], (
        "which file holds the money is no matter"
    )


def test_a_prompt_of_another_role_is_refused(configured):
    wrong = configured.roles["risk"].model_copy(update={"prompt": "sentiment-2"})
    with pytest.raises(SettingsError, match=r"roles\.risk\.prompt"):
        Terms.of(configured.model_copy(update={"roles": {**configured.roles, "risk": wrong}}))


@given(st.integers(-50, 500), st.integers(-50, 500))
def test_like_numbers_are_one_regime_and_others_are_not(opportunity, one, other):
    first, second = opportunity(net_bps=str(one)), opportunity(net_bps=str(other))
    assume(one != other)
    assert (judge.regime(first) == judge.regime(second)) == (one // 5 == other // 5)


def test_votes_name_the_model_that_answered():
    answered = record("risk", role_answer())
    assert judge.vote_of(answered) == Answered(answered.answer, SETTINGS.roles["risk"].model)
