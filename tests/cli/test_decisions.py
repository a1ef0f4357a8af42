"""`arb decisions` and `arb decision`: what is found, what is said of it, and that nothing is cut."""

import functools
import io
import json
import re
from decimal import Decimal
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from services.cli.__main__ import app
from services.cli.decisions import finding, listing, show, words
from services.cli.decisions.finding import Dossier, Files, Found, dossier, listed
from services.cli.decisions.listing import Wanted, short_ids
from services.cli.decisions.words import ABSENT, WHY, explain
from services.decider import judge
from services.decider.judge import Case, Reason, Terms
from services.decider.scoring import ROLES, Why
from shared import cluster, settings, topics
from shared.errors import ArbiterError, InputError, UsageError
from shared.messages import (
    Arrival,
    Audit,
    CallRecord,
    Decision,
    DelayedEdge,
    Opportunity,
    Question,
    RoleAnswer,
    RoleRecord,
    Shadow,
    Tokens,
    decode,
)

ROOT = Path(__file__).parents[2]
NOW_NS = 1_795_000_000_000_000_000
MS = 1_000_000
SETTINGS = settings.load()
TERMS = Terms.of(SETTINGS)
OPPORTUNITY = "6bd746aab5e95c3a7b6376ce76720e35"


def opportunity(**changes) -> Opportunity:
    leg = {"fee_bps": "10", "levels": 2, "book_age_ms": 120}
    bought = {"vwap": "67000.598", "limit": "67001", "bids": [[66999.9, 0.4]], "asks": [[67000.0, 0.3]]}
    sold = {"vwap": "67298.948", "limit": "67298.2", "bids": [[67300.0, 0.31]], "asks": [[67300.1, 0.2]]}
    values = {
        "opportunity_id": OPPORTUNITY,
        "phase": "opened",
        "base": "BTC",
        "buy": {"exchange": "binance", "symbol": "BTC-USDT", "alive_age_ms": 20, **leg, **bought},
        "sell": {"exchange": "okx", "symbol": "BTC-USDT", "alive_age_ms": 140, **leg, **sold},
        "rates": [],
        "size": "0.74685",
        "notional_usd": "49999.37",
        "profit_usd": "117.23",
        "naive_bps": "44.78",
        "net_bps": "23.45",
        "closed_loop_bps": "24.45",
        "depth_limited": False,
        "opened_ns": NOW_NS - 130 * MS,
        "detected_ns": NOW_NS - 20 * MS,
        "expires_ns": NOW_NS + 4980 * MS,
        "peak_net_bps": "23.45",
    }
    return Opportunity.model_validate(values | changes)


def answer(**changes) -> RoleAnswer:
    values = {"p_edge": 0.62, "view": "hold", "veto": False, "volatility": 0.0, "code": "OK"}
    lists = {"pressure": "buyers", "liquidity": "enough", "manipulation": "low", "note": ""}
    return RoleAnswer(**(values | lists | changes))


def call(provider: str, model: str, outcome: str | RoleAnswer, **changes) -> dict[str, object]:
    values: dict[str, object] = {"provider": provider, "model_asked": model, "http": 200}
    if isinstance(outcome, RoleAnswer):
        values |= {"outcome": "ok", "answer": outcome}
    else:
        values |= {"outcome": outcome}
    return values | changes


def record(role: str, **values) -> RoleRecord:
    prompt = TERMS.prompts[role]
    return RoleRecord(role=role, prompt_version=prompt.name, prompt_sha256=prompt.sha256, **values)


def case(**changes) -> Case:
    """The risk role by its fallback after a failure, the volatility role as it should, and a sentiment that is none."""
    failed = call("gemini", "gemini-3.5-flash-lite", "server", http=503, latency_ms=110)
    risk = call("openai", "gpt-5.4-mini", answer(note="books agree"), via="fallback", latency_ms=421)
    risk |= {"tokens": Tokens(input=611, cached=512, out=52), "cost_usd": Decimal("0.0003467")}
    risk |= {"model_reported": "gpt-5.4-mini-2026-09-01", "request_id": "req_1f"}
    wild = call("deepseek", "deepseek-flash", answer(volatility=0.12), latency_ms=702)
    wild |= {"tokens": Tokens(input=598, cached=0, out=49), "cost_usd": Decimal("0.000238")}
    broken = call("openai", "gpt-6-luna", "invalid", latency_ms=873)
    broken |= {"tokens": Tokens(input=605, cached=0, out=31), "cost_usd": Decimal("0.000091")}
    raws = {"sentiment": ['{"p_edge": 1.4, "view": "buy"}'], "risk": ['{"p_edge": 0.62}', "upstream away"]}
    values = {
        "opportunity": opportunity(),
        "admitted_ns": NOW_NS,
        "admitted_closed": False,
        "admitted_expires_ns": opportunity().expires_ns,
        "keys": True,
        "asked_ns": NOW_NS + MS,
        "deadline_ms": 1500,
        "elapsed_ms": 874,
        "arrivals": [
            Arrival(roles=["risk"], after_ms=533),
            Arrival(roles=["volatility"], after_ms=703),
            Arrival(roles=["sentiment"], after_ms=874),
        ],
        "records": {
            "sentiment": record("sentiment", **broken),
            "risk": record("risk", **risk, others=[CallRecord(**failed)]),
            "volatility": record("volatility", **wild),
        },
        "questions": [
            Question(role=role, system=TERMS.prompts[role].text, user='{"base":"BTC"}', raw=raws.get(role, ["{}"]))
            for role in ROLES
        ],
        "decided_ns": NOW_NS + 876 * MS,
    }
    return Case(**(values | changes))


def audit_of(made: Case, terms: Terms = TERMS) -> Audit:
    found = decode(judge.audit(made, judge.conclude(made, terms)).encode())
    assert isinstance(found, Audit)
    return found


def shadow(audit: Audit) -> Shadow:
    values = call("gemini", "gemini-2.5-flash", answer(p_edge=0.4, manipulation="high"), via="shadow", latency_ms=640)
    values |= {"tokens": Tokens(input=611, cached=0, out=50), "cost_usd": Decimal("0.000308")}
    names = {"decision_id": audit.decision.decision_id, "opportunity_id": OPPORTUNITY, "base": "BTC"}
    return Shadow(**names, call=record("risk", **values), raw="{}", asked_ns=audit.decision.decided_ns)


def edge(delay_ms: int, net_bps: str | None, profit: str | None, **changes) -> DelayedEdge:
    values = {
        "opportunity_id": OPPORTUNITY,
        "base": "BTC",
        "buy_exchange": "binance",
        "buy_symbol": "BTC-USDT",
        "sell_exchange": "okx",
        "sell_symbol": "BTC-USDT",
        "delay_ms": delay_ms,
        "net_bps": net_bps,
        "profit_usd": profit,
        "executable": profit not in (None, "0"),
        "missed": net_bps is None,
        "opened_net_bps": "23.45",
        "evaluated_ns": NOW_NS + (delay_ms - 20) * MS,
    }
    return DelayedEdge.model_validate(values | changes)


EDGES = (edge(100, "21.10", "105.49"), edge(1000, "-3.2", "0"), edge(5000, None, None))


def about() -> Dossier:
    audit = audit_of(case())
    return Dossier(audit.decision, audit, (shadow(audit),), EDGES)


def shown(what: Dossier, width: int, terms: Terms = TERMS, *, terminal: bool = True, prompts: bool = False) -> str:
    file = io.StringIO()
    console = Console(
        width=width, file=file, force_terminal=terminal, color_system=None, soft_wrap=True, highlight=False
    )
    show.show_decision(console, explain(what, terms), what, prompts=prompts)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def pinned(text: str) -> str:
    """With the hashes of one day: they change with every setting and prompt, and what is printed around them does not."""
    hashes = {TERMS.version: "3ca1e31c", about().decision.decision_id: "9771874103f6adf7f736bf9753cc594f"}
    of_prompts = {"sentiment": "2c69598e0763", "risk": "ad7c65c4ba81", "volatility": "b1613a628baf"}
    hashes |= {TERMS.prompts[role].sha256[:12]: digest for role, digest in of_prompts.items()}
    return functools.reduce(lambda so_far, one: so_far.replace(*one), hashes.items(), text)


GOLDEN = """\
BTC: HOLD (score, mode partial). Buying on binance (BTC-USDT) and selling on okx
(BTC-USDT) was worth 23.45 bps net, 117.23 USD on 0.74685 BTC. Why: the score
does not reach the threshold.

1. what was detected
   the gap opened 2026-11-18 11:06:39.870 UTC; this state of it (opened) was
   published 2026-11-18 11:06:39.980 UTC, 110 ms later; void after 2026-11-18
   11:06:44.980 UTC
   buy 0.74685 BTC on binance BTC-USDT at 67,000.598 on average, limit price
   67,001.00, fee 10 bps
   sell 0.74685 BTC on okx BTC-USDT at 67,298.948 on average, limit price
   67,298.20, fee 10 bps
   net 23.45 bps: 117.23 USD on 49,999.37 USD; the tops of the books alone 44.78
   bps, closed loop 24.45 bps
   the decider took it up 20 ms after that; then it was good for another 4,980
   ms

2. the rules: pass
   size 0.74685 BTC, profit 117.23 USD: both above 0: passes
   net edge 23.45 bps: at least 5 (decider.min_net_bps): passes
   and at most 200 (detector.sanity_cap_bps): passes
   last proof of life 20 ms on binance, 140 ms on okx before: at most 2,000
   (decider.max_silence_ms): passes
   skew between them 120 ms: at most 2,000 (decider.max_skew_ms): passes
   the older book last changed 120 ms before: at most 30,000
   (detector.max_book_age_ms): passes
   value 49,999.37 USD: at most 50,000 USD (detector.max_notional_usd): passes

3. the panel: asked, 874 of 1,500 ms taken
   asked 1 ms after it was taken up
   panel 3ca1e31c: roles, prompts, models, weights and limits of that moment
   budget: 0.0006757 USD spent, at most 0.02 for an opportunity
   (decider.max_opportunity_usd)

4. what each role said, in the order in which answers arrived
   risk, after 533 ms: approves, p 0.62, adds 300 (of 0..300)
      gpt-5.4-mini at openai (fallback), 421 ms, HTTP 200, tokens 611 in (512
      cached), 52 out, 0.0003467 USD, says that it is gpt-5.4-mini-2026-09-01,
      request req_1f
      prompt risk-2 (sha256 ad7c65c4ba81)
      answer: p_edge 0.62, view hold, veto no, volatility 0, code OK, pressure
      buyers, liquidity enough, manipulation low; note: books agree
      also called: gemini-3.5-flash-lite at gemini (plays the role), 110 ms,
      HTTP 503, tokens 0 in (0 cached), 0 out, 0.000000 USD; server: the
      provider failed
      raw text: upstream away
   score now 0..1000, needed 600: not decided yet
   volatility, after 703 ms: volatility 0.12, p 0.62, adds 200 (of 0..200)
      deepseek-flash at deepseek (plays the role), 702 ms, HTTP 200, tokens 598
      in (0 cached), 49 out, 0.000238 USD
      prompt volatility-2 (sha256 b1613a628baf)
      answer: p_edge 0.62, view hold, veto no, volatility 0.12, code OK,
      pressure buyers, liquidity enough, manipulation low
   score now 200..1000, needed 600: not decided yet
   sentiment, after 874 ms: no answer (invalid): what came is no answer
      gpt-6-luna at openai (plays the role), 873 ms, HTTP 200, tokens 605 in (0
      cached), 31 out, 0.000091 USD
      prompt sentiment-2 (sha256 2c69598e0763)
      raw text, no answer because p_edge: less_than_equal: {"p_edge": 1.4,
      "view": "buy"}
   score now 200, needed 600: decided, hold (score)
   risk, in the shadow, never counted: does not approve, p 0.40, adds 0 (of
   0..300)
      gemini-2.5-flash at gemini (candidate, stage shadow), 640 ms, HTTP 200,
      tokens 611 in (0 cached), 50 out, 0.000308 USD
      prompt risk-2 (sha256 ad7c65c4ba81)
      answer: p_edge 0.4, view hold, veto no, volatility 0, code OK, pressure
      buyers, liquidity enough, manipulation high

5. what decided
   score: the score does not reach the threshold
   score 200 of 600 needed (decider.threshold), in thousandths
   pooled probability 0.62; p_low 0.4133 with absent roles counted as 0, at
   least 0.50 (decider.p_edge_min) is not asked for before outcomes have
   calibrated it

6. the last check, right before publishing
   newest state of it: the same message, 896 ms before
   not needed: only `execute` has to pass it

7. the outcome: HOLD
   2026-11-18 11:06:40.876 UTC, 896 ms after its numbers were published
   mode partial, 0.0006757 USD
   decision 9771874103f6adf7f736bf9753cc594f
   opportunity 6bd746aab5e95c3a7b6376ce76720e35 (arb explain has its numbers)
   its record judged again with the settings of now: the same, byte for byte

8. what became of the edge
   decided 896 ms after it was published as opened; from then on:
      100 ms after: 21.10 bps net, 105.49 USD: still executable
      1.0 s after: -3.20 bps net, 0.00 USD: gone
      5.0 s after: nobody could tell
"""


# ---------------------------------------------------------------- words


def test_a_decision_in_80_columns():
    assert pinned(shown(about(), 80)).strip() == GOLDEN.strip()


def test_a_decision_as_the_document_shows_it():
    """docs/decisions.md, four columns indented."""
    text = (ROOT / "docs" / "decisions.md").read_text().split("## What `arb decision` prints")[1].split("\n## ")[0]
    block = [line for line in text.splitlines() if line.startswith("    ") or not line.strip()]
    document = "\n".join(line.removeprefix("    ") for line in block).strip()
    assert document == pinned(shown(about(), 114)).strip()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_word_is_cut_at_any_width(width):
    whole = shown(about(), 10_000, terminal=False)
    assert shown(about(), width).split() == whole.split()
    assert max(map(len, shown(about(), width).splitlines())) <= width


def test_every_reason_and_every_outcome_of_a_call_has_its_words():
    assert set(WHY) == {*map(str, Reason), *map(str, Why)}
    text = (ROOT / "docs" / "reasons.md").read_text().split("A role's outcome in a decision:")[1]
    documented = set(re.findall(r"`([a-z_:]+)`", text)) - {"ok", "slow"}
    assert documented <= set(ABSENT)


@pytest.mark.parametrize(
    ("changes", "reason", "said"),
    [
        ({"keys": False}, "no_keys", "no provider has a key"),
        ({"admitted_closed": True}, "closed", "by then the detector had closed it"),
        ({"superseded": True}, "superseded", "a newer opportunity of the same route was waiting"),
        ({"killed": True}, "kill_switch", "the file named in decider.kill_switch was there"),
        ({"admitted_ns": NOW_NS + 5000 * MS}, "expired", "by then its time was over"),
        (
            {"opportunity": opportunity(net_bps="3")},
            "rules",
            "net edge 3.00 bps: at least 5 (decider.min_net_bps): FAILS",
        ),
    ],
)
def test_why_the_panel_was_not_asked(changes, reason, said):
    nobody = {"asked_ns": None, "deadline_ms": 0, "elapsed_ms": 0, "arrivals": [], "records": {}, "questions": []}
    audit = audit_of(case(**(nobody | changes)))
    assert audit.decision.reason == reason
    text = shown(Dossier(audit.decision, audit), 10_000)
    assert said in text
    assert "3. the panel: not asked\n" in text
    assert "no model was asked" in text


def yes(**changes) -> Case:
    """All say yes."""
    records = {
        "sentiment": record("sentiment", **call("openai", "gpt-6-luna", answer(view="buy", p_edge=0.8))),
        "risk": record("risk", **call("gemini", "gemini-3.5-flash-lite", answer())),
        "volatility": record("volatility", **call("deepseek", "deepseek-flash", "unneeded")),
    }
    arrivals = [Arrival(roles=["risk", "sentiment"], after_ms=400)]
    return case(**({"records": records, "arrivals": arrivals, "elapsed_ms": 400, "questions": []} | changes))


def test_the_last_check_says_what_failed():
    newest = opportunity(phase="updated", net_bps="2", detected_ns=NOW_NS + 300 * MS)
    audit = audit_of(yes(newest=newest))
    assert (audit.decision.outcome, audit.decision.reason) == ("hold", "edge_gone")
    text = shown(Dossier(audit.decision, audit), 10_000)
    assert "newest state of it: updated, published 2026-11-18 11:06:40.300 UTC, 576 ms before" in text
    assert "the rules on its newest numbers (2.00 bps net): FAILS (net)" in text
    assert "score now 800..1000, needed 600: decided, execute (score)" in text
    assert "kill switch off: passes" in text


def test_answers_used_again_name_where_they_came_from():
    records = {role: judge.reused(one) for role, one in yes().records.items()}
    audit = audit_of(yes(records=records, cached_from="c" * 32, asked_ns=None, deadline_ms=0, elapsed_ms=0))
    text = shown(Dossier(audit.decision, audit), 10_000)
    assert f"asked then: arb decision {'c' * 32}" in text
    assert "budget: nothing spent, it was paid for then" in text


def test_a_deadline_and_an_empty_purse_are_said():
    records = {
        "sentiment": record("sentiment", **call("openai", "gpt-6-luna", "skipped:budget")),
        "risk": record("risk", **call("gemini", "gemini-3.5-flash-lite", answer())),
        "volatility": record("volatility", **call("deepseek", "deepseek-flash", "late")),
    }
    arrivals = [Arrival(roles=["risk"], after_ms=400)]
    audit = audit_of(case(records=records, arrivals=arrivals, late=True, elapsed_ms=1500))
    text = shown(Dossier(audit.decision, audit), 10_000)
    assert "budget: not enough left to ask sentiment; `arb budget` says which cap" in text
    assert "volatility, not counted: no answer (late): cut off by the deadline" in text
    assert "the deadline ended it: absent roles at their worst, score 0" in text


def test_other_settings_are_said_and_decide_nothing_new():
    other = Terms.of(SETTINGS.model_copy(update={"decider": SETTINGS.decider.model_copy(update={"threshold": 100})}))
    text = shown(about(), 10_000, other)
    assert f"it was made by panel {TERMS.version}, the settings of now are panel {other.version}" in text
    assert "score now 200, needed 600\n" in text
    assert "byte for byte" not in text


def test_a_record_that_contradicts_itself_is_said_loudly():
    audit = audit_of(case())
    wrong = audit.model_copy(update={"decision": audit.decision.model_copy(update={"outcome": "execute"})})
    text = shown(Dossier(wrong.decision, wrong), 10_000)
    assert "THIS RECORD CONTRADICTS ITSELF: outcome is execute, comes out as hold" in text
    damaged = audit.model_copy(update={"arrivals": [Arrival(roles=["risk"], after_ms=1)]})
    assert "damaged record: the panel has not come to an end" in shown(Dossier(damaged.decision, damaged), 10_000)


def test_without_its_record_the_decision_speaks_for_itself():
    decision = audit_of(case()).decision
    text = shown(Dossier(decision, None), 10_000)
    assert "Note: its record is missing (decision-audit keeps 7 days)" in text
    assert "risk: approves, p 0.62, adds 300 (of 0..300)" in text
    assert "sentiment: no answer (invalid): what came is no answer" in text
    assert "score 200 of 600 needed" in text
    assert "not recorded" in text


def test_what_a_model_wrote_cannot_steer_the_terminal():
    """Colours, titles, a cleared screen, a right-to-left override, a line of its own."""
    evil = '\x1b[2J\x1b]0;owned\x07\u202e"p_edge"\nOUTCOME: execute\r[bold]'
    questions = [Question(role="sentiment", system="s", user="u", raw=[evil])]
    audit = audit_of(case(questions=questions))
    text = shown(Dossier(audit.decision, audit), 200)
    assert not set(text) & {"\x1b", "\x07", "\u202e", "\r"}
    assert r"\x1b[2J\x1b]0;owned\x07\u202e" in text
    assert "[bold]" in text
    assert not re.search(r"^\W*OUTCOME: execute", text, re.MULTILINE)


def test_the_whole_prompt_on_request():
    text = shown(about(), 10_000, prompts=True)
    for role in ROLES:
        for line in TERMS.prompts[role].text.split():
            assert line in text
    assert "risk: answer of call 2\n   upstream away" in text
    assert "sentiment: user text\n   {" in text
    assert "no prompts are recorded" in shown(Dossier(about().decision, None), 80, prompts=True)


# ---------------------------------------------------------------- finding


class Fake:
    """Topics in memory: (topic, published at, value)."""

    windows_s = (900, 4 * 3600, 86_400, None)

    def __init__(self, *messages) -> None:
        self.messages = messages
        self.unreadable: list[tuple[str, str]] = []
        self.asked: list[tuple[tuple[str, ...], int]] = []

    def read(self, names, since_ns=0, until_ns=None, holding=""):
        self.asked.append((tuple(names), since_ns))
        for at_ns, message in self.messages:
            value = message.encode()
            inside = since_ns <= at_ns and (until_ns is None or at_ns <= until_ns)
            if finding.TOPIC_OF[message.kind] in names and inside and holding.encode() in value:
                yield Found(message, value, "here")

    def words(self, since_ns):
        return "in memory"


def everything() -> Fake:
    what = about()
    at_ns = what.decision.decided_ns
    later = [(edge.evaluated_ns, edge) for edge in what.outcomes]
    return Fake((at_ns, what.audit), (at_ns, what.decision), (at_ns + 700 * MS, what.shadows[0]), *later)


def test_an_id_of_either_kind_or_its_beginning_finds_all_there_is():
    decision_id = about().decision.decision_id
    for identity in (decision_id, OPPORTUNITY, decision_id[:8], OPPORTUNITY[:6].upper()):
        assert dossier(everything(), identity, NOW_NS + 5000 * MS) == about()


def test_a_decision_to_execute_shows_what_was_judged_and_what_was_published():
    newest = opportunity(phase="updated", size="0.001", net_bps="21", detected_ns=NOW_NS + 300 * MS)
    audit = audit_of(yes(newest=newest))
    text = shown(Dossier(audit.decision, audit), 10_000)
    assert "BTC: EXECUTE" in text
    assert "was worth 21.00 bps net" in text
    assert "buy 0.74685 BTC on binance" in text, "step 1 has the numbers that were judged"
    assert "published with its newest numbers: 0.001 BTC, 21.00 bps net" in text


def test_a_whole_id_is_looked_for_in_the_newest_first():
    source = everything()
    dossier(source, OPPORTUNITY, NOW_NS + 3 * 3600 * 1000 * MS)
    looked = [since_ns for names, since_ns in source.asked if names == (topics.DECISIONS,)]
    assert looked == [NOW_NS + 3 * 3600 * 1000 * MS - seconds * 10**9 for seconds in (900, 4 * 3600)]
    source = everything()
    dossier(source, OPPORTUNITY[:8], NOW_NS)
    assert source.asked[0] == ((topics.DECISIONS,), 0), "only all of it shows that no other begins like it"


def test_an_ambiguous_beginning_is_said_so_and_an_exact_id_is_not_ambiguous():
    other = audit_of(case(opportunity=opportunity(opportunity_id=OPPORTUNITY[:6] + "0" * 26))).decision
    source = Fake((NOW_NS, about().decision), (NOW_NS, other))
    with pytest.raises(
        UsageError, match=f"{OPPORTUNITY[:6]} is ambiguous: 2 begin like it, such as {other.opportunity_id}, "
    ):
        dossier(source, OPPORTUNITY[:6], NOW_NS)
    assert dossier(source, OPPORTUNITY, NOW_NS).decision == about().decision


def test_two_panels_on_one_opportunity_show_the_newest_and_name_the_other():
    other = Terms.of(SETTINGS.model_copy(update={"decider": SETTINGS.decider.model_copy(update={"threshold": 100})}))
    second = audit_of(case(decided_ns=NOW_NS + 9000 * MS), other)
    found = dossier(Fake((NOW_NS, about().decision), (NOW_NS, second.decision)), OPPORTUNITY, NOW_NS)
    assert (found.decision, found.others) == (second.decision, (about().decision,))
    assert f"also decided by panel {TERMS.version}: hold (score)" in shown(found, 10_000, other)


def test_a_record_of_another_go_is_not_taken_for_this_one():
    """Killed between record and decision: the record that fits the decision counts, the other one is named."""
    again = audit_of(case(decided_ns=NOW_NS + 900 * MS))
    source = Fake((NOW_NS, again), (NOW_NS, about().audit), (NOW_NS, about().decision))
    found = dossier(source, OPPORTUNITY, NOW_NS)
    assert (found.audit, found.again) == (about().audit, 1)
    assert "1 more record of the same id with other content" in shown(found, 10_000)
    without = dossier(Fake((NOW_NS, again), (NOW_NS, about().decision)), OPPORTUNITY, NOW_NS)
    assert without.audit is None


def test_an_unknown_id_is_1_and_no_id_2():
    with pytest.raises(
        ArbiterError, match="no decision and no opportunity ffff in memory; ids are in `arb decisions`"
    ) as no:
        dossier(everything(), "ffff", NOW_NS)
    assert no.value.exit_code == 1
    for text in ("", "../etc", 'a"'):
        with pytest.raises(UsageError, match="is no id"):
            dossier(everything(), text, NOW_NS)


def test_each_decision_is_listed_once_oldest_first():
    first = about().decision
    later = first.model_copy(update={"decision_id": "f" * 32, "decided_ns": first.decided_ns + 1})
    again = first.model_copy(update={"decided_ns": first.decided_ns + 5})
    found = [Found(one, b"", "") for one in (later, again, first, first, about().audit)]
    listing_ = listed(found, Wanted().holds)
    assert (listing_.decisions, listing_.duplicates) == ([first, later], 2)
    assert listed([Found(about().audit, b"", "")], Wanted().holds).decisions == [first], "out of its record"


@pytest.mark.parametrize(
    ("wanted", "holds"),
    [
        (Wanted(), True),
        (Wanted(outcomes=("execute",)), False),
        (Wanted(outcomes=("hold", "reject"), bases=("BTC",), reasons=("score",)), True),
        (Wanted(bases=("ETH",)), False),
        (Wanted(reasons=("veto",)), False),
        (Wanted(since_ns=NOW_NS + 877 * MS), False),
        (Wanted(until_ns=NOW_NS + 876 * MS), False),
        (Wanted(since_ns=NOW_NS + 876 * MS, until_ns=NOW_NS + 877 * MS), True),
    ],
)
def test_which_decisions_are_wanted(wanted, holds):
    assert wanted.holds(about().decision) is holds


def test_short_ids_tell_all_apart():
    assert short_ids(["a" * 32, "b" * 32]) == {"a" * 32: "a" * 8, "b" * 32: "b" * 8}
    near = ["a" * 10 + "b" * 22, "a" * 32]
    assert set(short_ids(near).values()) == {"a" * 10 + "b", "a" * 11}
    assert short_ids([]) == {}


# ---------------------------------------------------------------- the commands


def arb(*arguments: object):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def file(tmp_path) -> Path:
    """Two decisions, one of them twice; a record, a shadow, outcomes; and another kind of message."""
    what = about()
    other = audit_of(
        yes(opportunity=opportunity(opportunity_id="0" * 32, base="BTC"), decided_ns=NOW_NS + 400 * MS)
    ).decision
    stored = (ROOT / "tests/shared/stored/v1/health.json").read_bytes().strip()
    messages = [what.decision, what.audit, what.shadows[0], *what.outcomes, what.decision, other]
    path = tmp_path / "messages.jsonl"
    path.write_bytes(b"\n".join([stored, b"", *(message.encode() for message in messages)]))
    return path


def test_the_table_has_the_newest_last_and_the_sums(file):
    done = arb("decisions", "--from-file", file)
    assert done.exit_code == 0, done.output
    assert re.findall(r"BTC 23\.4 +(\w+) partial", done.stdout) == ["execute", "hold"]
    for said in ("buy 0.80", "yes 0.62", "invalid", "unneeded", "800..1000 of 600", "200 of 600", "0.000676"):
        assert said in done.stdout
    sums = "2 decisions: 1 execute, 1 hold; 2 partial; 0.0006757 USD for models; 1 duplicate left out"
    assert sums in done.stdout


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_table_cuts_nothing(width):
    """Wide or stacked, every cell is there in full."""
    decisions = [about().decision, audit_of(yes(opportunity=opportunity(opportunity_id="0" * 32))).decision]
    slow = {
        role: one.model_copy(update={"answer": None, "outcome": "skipped:not_before"})
        for role, one in yes().records.items()
    }
    decisions.append(audit_of(case(records=slow, opportunity=opportunity(opportunity_id="1" * 32))).decision)
    out = io.StringIO()
    console = Console(width=width, file=out, force_terminal=True, color_system=None, soft_wrap=True)
    listing.show(console, listing.Listing(decisions, 0), 50)
    text = out.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for decision in decisions:
        assert decision.decision_id[:8] in text
        assert decision.reason in text
        assert words.score_words(decision) in text
        for one in decision.roles:
            assert words.said(one) in text


def test_filters_limit_and_json(file):
    value = json.loads(arb("decisions", "--from-file", file, "--json", "--limit", "1").stdout)
    assert (value["count"], value["duplicates"], value["cost_usd"]) == (2, 1, "0.0006757")
    assert [one["outcome"] for one in value["decisions"]] == ["hold"]
    value = json.loads(arb("decisions", "--from-file", file, "--json", "--outcome", "execute", "--base", "btc").stdout)
    assert (value["count"], value["outcomes"]) == (1, {"execute": 1})
    assert "the newest 1 of 2 are shown" in arb("decisions", "--from-file", file, "--limit", "1").stdout
    assert json.loads(arb("decisions", "--from-file", file, "--json", "--reason", "score").stdout)["count"] == 2


def test_nothing_found_says_what_to_try_and_is_1(file):
    done = arb("decisions", "--from-file", file, "--outcome", "reject")
    assert (type(done.exception), done.exception.exit_code) == (ArbiterError, 1)
    assert f"no decision (reject) in {file}; --since looks further back" in str(done.exception)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["decisions", "--reason", "gossip"], "there is no such reason; there are budget, clock, closed"),
        (["decisions", "--since", "soon"], "must be a time such as 24h"),
        (["decisions", "--since", "1h", "--until", "2h"], "--since must be before --until"),
        (["replay", "decisions"], "takes --from-file FILE or --since 1h"),
    ],
)
def test_wrong_usage_is_one_line_and_2(arguments, said):
    done = arb(*arguments)
    assert isinstance(done.exception, UsageError)
    assert said in str(done.exception)


def test_one_decision_by_the_command(file):
    done = arb("decision", about().decision.decision_id[:8], "--from-file", file)
    assert done.exit_code == 0, done.output
    assert pinned(done.stdout).split() == GOLDEN.split()
    value = json.loads(arb("decision", OPPORTUNITY, "--from-file", file, "--json").stdout)
    assert [step["name"] for step in value["steps"]] == [
        *("detected", "rules", "panel", "roles", "decided", "check", "outcome", "afterwards")
    ]
    assert (value["problems"], len(value["shadows"]), len(value["outcomes"])) == ([], 1, 3)
    assert Audit.model_validate(value["audit"]) == about().audit
    assert Decision.model_validate(value["decision"]) == about().decision
    assert "sentiment: system text" in arb("decision", OPPORTUNITY, "--from-file", file, "--prompt").stdout
    unknown = arb("decision", "abcabc", "--from-file", file)
    assert (type(unknown.exception), unknown.exception.exit_code) == (ArbiterError, 1)


def test_files_that_cannot_be_read_are_named_with_their_line(file, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(about().decision.encode() + b'\n{"kind":"gossip"}\n')
    for path, said in ((bad, r"bad\.jsonl, line 2: .*gossip"), (tmp_path / "no.jsonl", r"no\.jsonl: No such file")):
        with pytest.raises(InputError, match=said):
            list(Files([file, path]).read([topics.DECISIONS]))
    squeezed = tmp_path / "cut.jsonl.gz"
    squeezed.write_bytes(b"\x1f\x8b\x08\x00no gzip")
    with pytest.raises(InputError, match=r"cut\.jsonl\.gz"):
        list(Files([squeezed]).read([topics.DECISIONS]))


def test_without_a_broker_it_is_3(monkeypatch):
    monkeypatch.setenv("ARB_KAFKA_SERVERS", "127.0.0.1:1")
    monkeypatch.setattr(cluster, "wait_for_brokers", functools.partial(cluster.wait_for_brokers, timeout_s=0.2))
    for arguments in (["decisions"], ["decision", OPPORTUNITY], ["replay", "decisions", "--since", "1h"]):
        done = arb(*arguments)
        assert done.exception.exit_code == 3
        assert "ARB_KAFKA_SERVERS" in str(done.exception)
