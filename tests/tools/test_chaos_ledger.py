"""What the chaos suite counts: every kind of loss shows, and nothing else does."""

from typing import Any

import pytest

from shared import topics
from shared.kafka import Record
from shared.messages import Decision
from tests.samples import opportunity
from tools.chaos.ledger import Accounts, Window, digest, settle, undisturbed_ns

SECOND_NS = 1_000_000_000
START_NS = 1_000 * SECOND_NS


class Topics:
    """Records in the order in which they are published."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def put(self, topic: str, value: bytes) -> None:
        self.records.append(Record(topic, 0, len(self.records), b"BTC", value, 0, []))

    def opportunity(self, identity: str, phase: str = "opened", at_s: float = 10.0, **changes: Any) -> None:
        at_ns = START_NS + int(at_s * SECOND_NS)
        times = {"opened_ns": at_ns, "detected_ns": at_ns} if phase == "opened" else {"detected_ns": at_ns}
        message = opportunity(at_ns, opportunity_id=identity, phase=phase, **times, **changes)
        self.put(topics.OPPORTUNITIES, message.encode())

    def decision(self, identity: str, decision_id: str | None = None, **changes: Any) -> None:
        one = opportunity(START_NS).model_dump(mode="json")
        values = {
            "decision_id": decision_id or f"d-{identity}",
            "opportunity_id": identity,
            "outcome": "hold",
            "mode": "rules_only",
            "reason": "no_keys",
            "score": {"low": 0, "high": 0, "threshold": 600},
            "p_edge": None,
            "p_low": 0.0,
            "rules": {"result": "pass", "codes": []},
            "roles": [],
            "panel": {"version": "1", "deadline_ms": 1500, "elapsed_ms": 0, "cost_usd": "0"},
            "decided_ns": START_NS,
            **{name: one[name] for name in ("base", "buy", "sell", "size", "net_bps", "profit_usd")},
            **{name: one[name] for name in ("detected_ns", "expires_ns")},
            **changes,
        }
        self.put(topics.DECISIONS, Decision.model_validate(values).encode())


def gap(since_s: float, until_s: float, buy: str = "binance", sell: str = "kraken") -> dict[str, Any]:
    return {
        "base": "BTC",
        "buy": {"exchange": buy, "symbol": "BTC-USDT"},
        "sell": {"exchange": sell, "symbol": "BTC-USD"},
        "start_ns": START_NS + int(since_s * SECOND_NS),
        "end_ns": START_NS + int(until_s * SECOND_NS),
    }


def window(since_s: float, until_s: float, *exchanges: str) -> Window:
    since, until = (START_NS + int(at * SECOND_NS) for at in (since_s, until_s))
    return Window(since, until, frozenset(exchanges) or None)


def of(found: Topics, truth: list[dict[str, Any]] | None = None, *windows: Window, **changes: Any) -> Accounts:
    seen = {(r.topic, r.partition, r.offset): digest(r.value) for r in found.records}
    truth = [gap(9, 12)] if truth is None else truth
    return settle(found.records, changes.get("seen", seen), truth, windows, START_NS, START_NS + 100 * SECOND_NS)


@pytest.fixture
def whole() -> Topics:
    found = Topics()
    found.opportunity("a")
    found.decision("a")
    found.opportunity("a", "closed", 12.0, close_reason="edge")
    return found


def test_what_is_whole_has_nothing_lost(whole):
    found = of(whole)
    assert (found.opened, found.decided, found.gaps, found.found, found.unfinished) == (1, 1, 1, 1, 0)
    lists = (found.undecided, found.headless, found.vanished, found.missed, found.invented, found.contradictions)
    assert not any(lists)
    assert (found.opened_again, found.decided_again, found.undecodable, found.dead_letters) == (0, 0, 0, 0)


def test_an_opening_without_a_decision_is_a_lost_decision(whole):
    whole.opportunity("b", at_s=11)
    assert of(whole).undecided == ["b"]


@pytest.mark.parametrize("phase", ["updated", "closed"])
def test_what_was_never_opened_on_the_topic_but_goes_on_is_a_lost_opportunity(whole, phase):
    whole.opportunity("b", phase)
    assert of(whole).headless == ["b"]


def test_a_decision_about_nothing_is_a_lost_opportunity(whole):
    whole.decision("b")
    assert of(whole).headless == ["b"]


def test_what_a_reader_saw_and_is_gone_or_another_has_vanished(whole):
    place = (topics.OPPORTUNITIES, 0, 77)
    other = (topics.OPPORTUNITIES, 0, 0)
    assert of(whole, seen={place: 1, other: 2}).vanished == [other, place]


def test_copies_are_counted_and_may_differ_in_times_only(whole):
    whole.opportunity("a")
    whole.decision("a", decided_ns=START_NS + 5)
    found = of(whole)
    assert (found.opened_again, found.decided_again, found.two_decisions, found.contradictions) == (1, 1, 0, [])
    whole.decision("a", outcome="execute")
    assert of(whole).contradictions == ["d-a"]
    whole.decision("a", "another")
    assert of(whole).two_decisions == 1


def test_a_gap_nobody_found_is_missed_unless_something_was_broken(whole):
    truth = [gap(9, 12), gap(30, 33)]
    found = of(whole, truth)
    assert (found.gaps, found.found, found.missed, found.excused) == (2, 1, [truth[1]], 0)
    found = of(whole, truth, window(29, 32.5))
    assert (found.gaps, found.missed, found.excused) == (1, [], 1)
    assert of(whole, truth, window(29, 31.5)).missed == [truth[1]], "1.5 s of it were undisturbed"
    assert of(whole, truth, window(29, 32.5, "okx")).missed == [truth[1]], "another exchange was away"
    assert of(whole, truth, window(29, 32.5, "kraken")).missed == []


def test_a_short_gap_need_not_be_found(whole):
    assert of(whole, [gap(9, 12), gap(30, 30.9)]).gaps == 1


def test_an_opportunity_without_a_gap_is_invented(whole):
    whole.opportunity("b", at_s=50)
    whole.opportunity("b", "closed", 51, close_reason="edge")
    found = of(whole)
    assert found.invented == ["b"]
    found = of(whole, None, window(49, 52))
    assert (found.invented, found.invented_broken) == ([], 1)


def test_what_cannot_be_read_and_dead_letters_are_counted(whole):
    whole.put(topics.DECISIONS, b"{}")
    whole.put(topics.dlq(topics.OPPORTUNITIES), b"whatever")
    found = of(whole)
    assert (found.undecodable, found.dead_letters) == (1, 1)


@pytest.mark.parametrize(
    ("windows", "longest_s"),
    [([], 10), ([(2, 4)], 6), ([(0, 4), (3, 9)], 1), ([(-5, 20)], 0), ([(2, 3), (8, 9)], 5)],
)
def test_the_longest_undisturbed_piece(windows, longest_s):
    found = undisturbed_ns(gap(0, 10), START_NS, START_NS + 10 * SECOND_NS, [window(*one) for one in windows])
    assert found == longest_s * SECOND_NS
