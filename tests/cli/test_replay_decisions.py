"""`arb replay decisions`: what was recorded gives the same decision again, and a what-if never guesses."""

import gzip
import hashlib
import json
import random
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from services.cli.__main__ import app
from services.cli.decisions import words
from services.cli.decisions.finding import Dossier
from services.cli.decisions.replay import NOT_ASKED, NOT_AWAITED, STRANGERS, NotKnown, Replay, Verdict, replay, what_if
from services.decider import judge, rules, scoring
from services.decider.judge import Case, Terms
from services.decider.scoring import ROLES
from shared import settings
from shared.errors import ArbiterError, InputError, UsageError
from shared.messages import Arrival, Audit, Opportunity, RoleAnswer, RoleRecord, decode
from tests import samples

NOW_NS = 1_795_000_000_000_000_000
MS = 1_000_000
SETTINGS = settings.load()
TERMS = Terms.of(SETTINGS)
FAILURES = ("late", "unsure", "invalid", "server", "network", "rate_limited", "skipped:breaker", "skipped:budget")


def terms(**decider) -> Terms:
    """Those of other settings of [decider]."""
    return Terms.of(SETTINGS.model_copy(update={"decider": SETTINGS.decider.model_copy(update=decider)}))


def opportunity(number: int = 0, **changes) -> Opportunity:
    identity = hashlib.md5(str(number).encode()).hexdigest()
    return samples.opportunity(NOW_NS, **{"opportunity_id": identity, **changes})


def answer(p=0.8, view="buy", veto=False, volatility=0.1, manipulation="low") -> RoleAnswer:
    return RoleAnswer(
        p_edge=p,
        view=view,
        veto=veto,
        volatility=volatility,
        code="OK",
        pressure="buyers",
        liquidity="enough",
        manipulation=manipulation,
        note="",
    )


def record(role, result: RoleAnswer | str, **changes) -> RoleRecord:
    chosen = SETTINGS.roles[role]
    given = isinstance(result, RoleAnswer)
    values = {
        "role": role,
        "provider": chosen.provider,
        "model_asked": chosen.model,
        "outcome": "ok" if given else result,
        "latency_ms": 400,
        "cost_usd": Decimal("0.000101"),
        "answer": result if given else None,
        "prompt_version": chosen.prompt,
        "prompt_sha256": TERMS.prompts[role].sha256,
    }
    return RoleRecord(**(values | changes))


def panel_case(results, order=None, *, deadline_ms=None, under=TERMS, asked=None, **changes) -> Case:
    """As the panel does it: results come in this order, 100 ms apart, until it is certain or time is over.

    Args:
        results: By role; a role that is not in `order` never comes.
        order: Groups of roles that arrive together.
    """
    order = [[role] for role in ROLES] if order is None else order
    case = Case(asked or opportunity(), NOW_NS, False, (asked or opportunity()).expires_ns, keys=True, asked_ns=NOW_NS)
    case.deadline_ms = judge.deadline_ms(case, under) if deadline_ms is None else deadline_ms
    case.records = {role: record(role, results[role]) for role in ROLES}
    case.late = True
    for number, roles in enumerate(order, 1):
        case.arrivals.append(Arrival(roles=sorted(roles), after_ms=100 * number))
        if judge.votes_after(case.arrivals, case.records, late=False, terms=under)[1] is not None:
            case.late = False
            break
    came = {role for arrival in case.arrivals for role in arrival.roles}
    for role in set(ROLES) - came:
        case.records[role] = record(role, "late" if case.late else "unneeded")
    case.elapsed_ms = case.deadline_ms if case.late else 100 * len(case.arrivals)
    case.decided_ns = NOW_NS + case.elapsed_ms * MS
    return replace(case, **changes)


def recorded(case: Case, under=TERMS) -> Audit:
    """The record as a reader of the topic gets it."""
    audit = decode(judge.audit(case, judge.conclude(case, under)).encode())
    assert isinstance(audit, Audit)
    return audit


ANSWERS = st.builds(
    answer,
    p=st.sampled_from([0.0, 0.3, 0.5, 0.7, 0.71, 0.9]),
    view=st.sampled_from(["buy", "sell", "hold"]),
    veto=st.booleans(),
    volatility=st.sampled_from([0.0, 0.39, 0.4, 1.0]),
    manipulation=st.sampled_from(["low", "high"]),
)
RESULTS = st.fixed_dictionaries({role: ANSWERS | st.sampled_from(FAILURES) for role in ROLES})


@st.composite
def orders(draw):
    """Some roles, in some order, some at once."""
    roles = draw(st.permutations(ROLES))[: draw(st.integers(0, 3))]
    cuts = [draw(st.booleans()) for _ in roles]
    groups = []
    for role, cut in zip(roles, cuts, strict=True):
        if cut or not groups:
            groups.append([role])
        else:
            groups[-1].append(role)
    return groups


CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "killed": st.booleans(),
        "newest": st.sampled_from([None, opportunity(phase="closed"), opportunity(net_bps="1"), opportunity()]),
        "decided_ns": st.integers(NOW_NS, NOW_NS + 6000 * MS),
    },
)


@st.composite
def cases(draw):
    """Any opportunity on any of the ways to a decision."""
    gap = opportunity(
        draw(st.integers(0, 50)),
        net_bps=draw(st.sampled_from(["30", "6", "1", "500"])),
        detected_ns=draw(st.sampled_from([NOW_NS - 20 * MS, NOW_NS - 9000 * MS])),
        expires_ns=draw(st.sampled_from([NOW_NS - MS, NOW_NS + 200 * MS, NOW_NS + 5000 * MS])),
        base=draw(st.sampled_from(["BTC", "ETH"])),
    )
    case = Case(gap, NOW_NS, draw(st.booleans()), gap.expires_ns, keys=draw(st.booleans()), decided_ns=NOW_NS + MS)
    case.superseded = draw(st.booleans())
    if judge.admit(case, rules.check(gap, SETTINGS), TERMS) is not None:
        return replace(case, killed=draw(st.booleans()))
    case = panel_case(draw(RESULTS), draw(orders()), asked=gap, **draw(CHANGES))
    if draw(st.booleans()) and not case.late:
        reused = {role: judge.reused(one) for role, one in case.records.items()}
        return replace(case, records=reused, cached_from="c" * 32, asked_ns=None, deadline_ms=0, elapsed_ms=0)
    return case


# ---------------------------------------------------------------- the same again


@given(cases())
def test_a_record_makes_the_same_decision_again_byte_for_byte(case):
    audit = recorded(case)
    report = replay([audit], TERMS)
    assert (report.faults, report.same, report.records) == ((), 1, 1)
    assert report.encoded == (audit.decision.encode(),)
    assert report.digest == hashlib.sha256(audit.decision.encode() + b"\n").hexdigest()


@given(st.lists(cases(), max_size=8), st.randoms())
def test_the_report_does_not_depend_on_order_or_duplicates(several, chance):
    audits = [recorded(case) for case in several]
    once = replay(audits, TERMS)
    shuffled = [*audits, *chance.choices(audits, k=3)] if audits else []
    chance.shuffle(shuffled)
    twice = replay(shuffled, TERMS)
    assert replace(twice, duplicates=once.duplicates) == once
    assert twice.duplicates - once.duplicates == len(shuffled) - len(audits)
    ids = [json.loads(value)["decision_id"] for value in once.encoded]
    assert ids == sorted(set(ids)), "each id once, sorted"


def test_of_one_decision_recorded_twice_with_other_answers_both_are_checked_and_the_earlier_counts():
    """A decider was killed between its record and its decision, and decided again."""
    first = recorded(panel_case({role: answer() for role in ROLES}))
    later = recorded(panel_case(dict.fromkeys(ROLES, "server"), decided_ns=NOW_NS + 4000 * MS))
    for audits in ([first, later], [later, first]):
        report = replay(audits, TERMS)
        assert (report.records, report.decisions, report.repeated, report.same) == (2, 1, 1, 2)
        assert report.encoded == (first.decision.encode(),)


def change(audit: Audit, **changes) -> Audit:
    return audit.model_copy(update=changes)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda a: change(a, arrivals=[]), "the panel has not come to an end"),
        (lambda a: change(a, decision=a.decision.model_copy(update={"roles": []})), "arrived, but has no record"),
        (
            lambda a: change(a, decision=a.decision.model_copy(update={"outcome": "hold"})),
            "outcome is hold, comes out as execute",
        ),
        (lambda a: change(a, decision=a.decision.model_copy(update={"decision_id": "0" * 32})), "decision_id is 000"),
        (lambda a: change(a, keys=False), "reason is score, comes out as no_keys"),
        (lambda a: change(a, killed=True), "reason is score, comes out as kill_switch"),
        (lambda a: change(a, opportunity=opportunity(net_bps="1")), "comes out as {'result': 'hold'"),
    ],
    ids=["no arrivals", "no records", "outcome", "id", "keys", "killed", "numbers"],
)
def test_what_does_not_come_out_again_is_a_fault_that_says_in_what(damage, words):
    audit = recorded(panel_case({role: answer() for role in ROLES}))
    assert audit.decision.outcome == "execute"
    report = replay([damage(audit)], TERMS)
    assert (report.ok, report.same) == (False, 0)
    (fault,) = report.faults
    assert words in fault.words


@given(st.data())
def test_no_single_change_of_an_answer_that_counts_goes_unnoticed(data):
    """What an answer adds to the score and to the pool is in the decision: another one is a fault."""
    audit = recorded(panel_case({role: answer() for role in ROLES}))
    role = data.draw(st.sampled_from(ROLES))
    other = data.draw(ANSWERS)
    records = [
        one if one.role != role or one.answer is None else one.model_copy(update={"answer": other})
        for one in audit.decision.roles
    ]
    tampered = change(audit, decision=audit.decision.model_copy(update={"roles": records}))
    report = replay([tampered], TERMS)
    counted = any(one.role == role and one.answer is not None for one in audit.decision.roles)
    said = answer()
    if not counted:
        assert report.ok, "it was cut off, and nothing was changed"
    elif (scoring.contribution(role, other), other.p_edge) != (scoring.contribution(role, said), said.p_edge):
        assert not report.ok


def test_published_decisions_are_held_against_what_comes_out():
    audit = recorded(panel_case({role: answer() for role in ROLES}))
    running = Replay(TERMS)
    running.published(audit.decision.decision_id, audit.decision.encode())
    running.published("e" * 32, b"of a time before the records")
    running.take(audit)
    assert (running.report().ok, running.report().compared) == (True, 1)
    running.published(audit.decision.decision_id, audit.decision.encode().replace(b"execute", b"reject"))
    (fault,) = running.report().faults
    assert fault.words == "published otherwise than its record says"


@given(cases(), st.booleans())
def test_every_decision_can_be_told(case, with_record):
    """Whatever its way; and the score after the last arrival is the one that was published."""
    audit = recorded(case)
    told = words.explain(Dossier(audit.decision, audit if with_record else None), TERMS)
    assert [step.name for step in told.steps][-2:] == ["outcome", "afterwards"]
    assert told.problems == ()
    lines = [line.text for step in told.steps for line in step.lines]
    assert all(line.strip() for line in lines)
    scores = [line for line in lines if line.startswith("score now ")]
    assert len(scores) == (len(audit.arrivals) if with_record else 0)
    if scores and not audit.late and audit.decision.mode != "rules_only":
        score = audit.decision.score
        assert f" {words.span(score.low, score.high)}, needed {score.threshold}: decided, " in scores[-1]
        assert all(line.endswith("not decided yet") for line in scores[:-1])


# ---------------------------------------------------------------- what if


def test_a_higher_threshold_changes_decisions_and_says_which():
    """300 for a purchase and 300 for no objection execute at 600; another 200 would not be 900."""
    audits = [recorded(panel_case({role: answer(0.6) for role in ROLES}, asked=opportunity(n))) for n in range(12)]
    audits.append(recorded(panel_case({role: answer(veto=True) for role in ROLES}, asked=opportunity(99))))
    report = replay(audits, terms(threshold=900))
    assert report.ok, "a what-if is no fault"
    (((before, after), ids),) = report.changed.items()
    assert (before, after) == (Verdict("execute", "score"), Verdict("hold", "score"))
    assert ids == sorted(audit.opportunity.opportunity_id for audit in audits[:12])
    assert (report.versions, report.unchanged) == ({TERMS.version: 13}, 1)


@given(RESULTS, orders(), st.sampled_from([0, 300, 500, 600, 700, 800, 1000]))
def test_a_what_if_is_what_the_panel_would_have_done_or_not_known(results, order, threshold):
    """Against a panel that really runs under the new terms, with the same answers in the same order."""
    other = terms(threshold=threshold)
    audit = recorded(panel_case(results, order))
    really = judge.conclude(panel_case(results, order, under=other), other)
    try:
        found = what_if(audit, other)
    except NotKnown as missing:
        assert str(missing) == NOT_AWAITED
        assert any(one.outcome == "unneeded" for one in audit.decision.roles), "only what was cut off is not known"
        return
    assert found.decision_id == really.decision_id
    assert (found.outcome, found.reason, found.score) == (really.outcome, really.reason, really.score)
    assert (found.p_edge, found.p_low) == (really.p_edge, really.p_low)


def test_terms_that_would_ask_the_panel_do_not_know_the_answers():
    audit = recorded(
        replace(
            panel_case(dict.fromkeys(ROLES, "late"), [], asked=opportunity(net_bps="3")),
            asked_ns=None,
            records={},
            late=False,
        )
    )
    assert (audit.decision.reason, audit.decision.mode) == ("rules", "rules_only")
    report = replay([audit], terms(min_net_bps=Decimal(1)))
    assert report.unknown == {NOT_ASKED: [audit.opportunity.opportunity_id]}
    assert (report.encoded, report.unchanged, dict(report.changed)) == ((), 0, {})


def test_terms_with_other_models_or_prompts_do_not_know_the_answers():
    audit = recorded(panel_case({role: answer() for role in ROLES}))
    risk = SETTINGS.roles["risk"].model_copy(update={"model": "gemini-2.5-flash"})
    other = Terms.of(SETTINGS.model_copy(update={"roles": SETTINGS.roles | {"risk": risk}}))
    assert list(replay([audit], other).unknown) == [STRANGERS]
    elsewhere = [
        one.model_copy(update={"prompt_sha256": "0" * 64}) if one.role == "risk" else one
        for one in audit.decision.roles
    ]
    older = change(audit, decision=audit.decision.model_copy(update={"roles": elsewhere}))
    assert list(replay([older], terms(threshold=500)).unknown) == [STRANGERS]


def test_a_longer_deadline_does_not_know_what_the_late_role_would_have_said():
    late = panel_case({role: answer() for role in ROLES}, [["sentiment"], ["volatility"]])
    assert late.late
    with pytest.raises(NotKnown, match="would wait for a role"):
        what_if(recorded(late), terms(panel_deadline_ms=2500))


def test_a_shorter_deadline_cuts_off_what_came_later():
    audit = recorded(panel_case({role: answer(0.5) for role in ROLES}, [["volatility"], ["sentiment"], ["risk"]]))
    assert [arrival.after_ms for arrival in audit.arrivals] == [100, 200, 300]
    assert audit.decision.outcome == "execute"
    shorter = what_if(audit, terms(panel_deadline_ms=300, min_useful_ms=100))
    assert (shorter.outcome, shorter.reason) == ("hold", "deadline")
    assert shorter.panel.deadline_ms == shorter.panel.elapsed_ms == 300
    enough = what_if(audit, terms(panel_deadline_ms=301, min_useful_ms=100))
    assert enough.outcome == "execute"


def test_records_of_both_versions_are_told_apart():
    mine = recorded(panel_case({role: answer() for role in ROLES}))
    other = terms(threshold=500)
    theirs = recorded(panel_case({role: answer() for role in ROLES}, under=other, asked=opportunity(1)), other)
    broken = change(mine, keys=False, admitted_ns=mine.admitted_ns + 1)
    report = replay([mine, theirs, broken], TERMS)
    assert (report.same, report.versions, len(report.faults)) == (1, {other.version: 1}, 1)


# ---------------------------------------------------------------- the command


def arb(*arguments: object):
    return CliRunner().invoke(app, ["replay", "decisions", *map(str, arguments)])


@pytest.fixture
def audits() -> list[Audit]:
    chance = random.Random(3)
    made = []
    for number in range(20):
        results = {role: answer(view=chance.choice(["buy", "sell"])) for role in ROLES}
        made.append(recorded(panel_case(results, asked=opportunity(number))))
    return made


def test_two_runs_over_shuffled_copies_give_one_digest_which_is_that_of_the_file(audits, tmp_path):
    straight, mixed, out = tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz", tmp_path / "out.jsonl"
    lines = [audit.encode() for audit in audits]
    straight.write_bytes(b"\n".join(lines))
    decisions = [audit.decision.encode() for audit in audits]
    mixed.write_bytes(gzip.compress(b"\n\n".join([*lines[::-1], *decisions, *lines[:5]])))
    one, two = arb("--from-file", straight, "--out", out), arb("--from-file", mixed, "--json")
    assert (one.exit_code, two.exit_code) == (0, 0), one.output + two.output
    assert "20 of 20 come out byte for byte as they were published" in one.stdout
    value = json.loads(two.stdout)
    assert (value["same"], value["duplicates"], value["compared"]) == (20, 5, 20)
    assert f"digest {value['digest']}" in one.stdout
    assert hashlib.sha256(out.read_bytes()).hexdigest() == value["digest"]
    assert {decode(line).decision_id for line in out.read_bytes().splitlines()} == {
        audit.decision.decision_id for audit in audits
    }


def test_a_what_if_is_a_table_and_0(audits, tmp_path, monkeypatch):
    file = tmp_path / "audit.jsonl"
    file.write_bytes(b"\n".join(audit.encode() for audit in audits))
    monkeypatch.setenv("ARB_DECIDER_MIN_NET_BPS", "40")
    done = arb("--from-file", file)
    assert done.exit_code == 0, done.output
    assert "what if: 20 records of other panels judged by the panel of now" in done.stdout
    assert "hold (rules)" in done.stdout
    assert "execute (score)" in done.stdout
    assert "... and 10 more (--json has all)" in done.stdout
    assert "come out byte for byte" not in done.stdout
    monkeypatch.setenv("ARB_DECIDER_MIN_NET_BPS", "5")
    assert "what if" not in arb("--from-file", file).stdout


def test_a_damaged_record_is_one_line_and_1(audits, tmp_path):
    file = tmp_path / "audit.jsonl"
    file.write_bytes(b"\n".join(change(audit, arrivals=[]).encode() for audit in audits[:1]))
    done = arb("--from-file", file)
    assert done.exit_code == 1
    (line,) = (line for line in done.output.splitlines() if line.startswith("FAULT"))
    assert line == f"FAULT {audits[0].decision.decision_id}: damaged record: the panel has not come to an end"
    assert isinstance(done.exception, SystemExit)


def test_a_line_that_is_no_message_is_named_and_2(audits, tmp_path):
    """As for every command that reads files."""
    file = tmp_path / "audit.jsonl"
    file.write_bytes(audits[0].encode() + b"\n" + audits[1].encode()[:-200])
    done = arb("--from-file", file)
    assert isinstance(done.exception, InputError)
    assert done.exception.exit_code == 2
    assert "audit.jsonl, line 2: " in str(done.exception)


def test_nothing_to_replay_is_1_and_wrong_usage_2(tmp_path):
    file = tmp_path / "empty.jsonl"
    file.write_bytes(b"\n")
    done = arb("--from-file", file)
    assert isinstance(done.exception, ArbiterError)
    assert done.exception.exit_code == 1
    assert "decision-audit" in str(done.exception)
    assert isinstance(arb().exception, UsageError)
    help_of_all = CliRunner().invoke(app, ["replay", "--help"]).stdout
    assert "arb detect --from-" in help_of_all


def test_a_range_takes_its_part(audits, tmp_path):
    file = tmp_path / "audit.jsonl"
    earlier = replace(judge.case_of(audits[0]), decided_ns=NOW_NS)
    file.write_bytes(b"\n".join(audit.encode() for audit in [*audits[1:], recorded(earlier)]))
    range_ = ("--since", "2026-11-18T11:06:40.100Z", "--until", "2026-11-19T00:00:00Z")
    counts = [json.loads(arb("--from-file", file, *more, "--json").stdout)["records"] for more in ([], range_)]
    assert counts == [20, 19]


def test_a_record_of_the_topic_that_cannot_be_read_is_a_fault_that_says_where():
    running = Replay(TERMS)
    running.take(recorded(panel_case({role: answer() for role in ROLES})))
    running.unreadable("decision-audit/6@12", "Invalid JSON")
    report = running.report()
    assert (report.ok, report.same) == (False, 1)
    assert report.faults == (("decision-audit/6@12", "cannot be read: Invalid JSON"),)
