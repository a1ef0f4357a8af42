"""What is on the topics at the end, against what a reader saw meanwhile and what was really there. Pure."""

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from shared import topics
from shared.errors import UndecodableRecord
from shared.kafka import Record
from shared.messages import decode

MS = 1_000_000
TOLERANCE_NS = 500 * MS
"""Between a gap in the simulator's log and what was published about it: the way of a frame, and the settings."""

LONG_NS = 1_000 * MS
"""A gap that was there for so long while nothing was broken must have been found (`detector.persistence_ms` is 100)."""

LATE_NS = 3_000 * MS
"""Prices that a reader could still have believed: a book is live for two seconds after its last proof of life."""

Place = tuple[str, int, int]
"""Topic, partition, offset."""


class Window(NamedTuple):
    """Something was broken from `since_ns` to `until_ns`; it concerns the books of these exchanges (None: of all)."""

    since_ns: int
    until_ns: int
    exchanges: frozenset[str] | None


@dataclass
class Accounts:
    """What the topics say.

    Attributes:
        opened, decided: Opportunities whose `opened` is there; those of them with a decision.
        undecided: Ids whose `opened` is there without a decision.
        headless: Ids of which something is there (an update, an end, a decision), but no `opened`.
        vanished: Places at which a reader saw a record that is gone or another one now.
        gaps, found: Gaps of the simulator's log that had `LONG_NS` while nothing was broken; those with an opportunity.
        missed: The others.
        excused: Gaps of that length which were not found, and had less than `LONG_NS` outside of the windows.
        invented: Opportunities of moments when nothing was broken, without a gap.
        invented_ms: How far each of them was from the next gap of its pair; None: there was none at all.
        invented_broken: The same of moments when something was.
        opened_again: `opened` messages beyond the first of an id.
        decided_again: Decisions beyond the first of an id.
        two_decisions: Opportunities with decisions of different ids.
        contradictions: Ids of decisions whose copies differ in what they say (not in times).
        unfinished: Opportunities without an end.
    """

    opened: int = 0
    decided: int = 0
    undecided: list[str] = field(default_factory=list)
    headless: list[str] = field(default_factory=list)
    vanished: list[Place] = field(default_factory=list)
    gaps: int = 0
    found: int = 0
    missed: list[dict[str, Any]] = field(default_factory=list)
    excused: int = 0
    invented: list[str] = field(default_factory=list)
    invented_ms: list[int | None] = field(default_factory=list)
    invented_broken: int = 0
    opened_again: int = 0
    decided_again: int = 0
    two_decisions: int = 0
    contradictions: list[str] = field(default_factory=list)
    unfinished: int = 0
    undecodable: int = 0
    dead_letters: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    modes: dict[str, int] = field(default_factory=dict)


def digest(value: bytes | None) -> int:
    return zlib.crc32(value or b"")


def settle(
    records: Iterable[Record],
    seen: Mapping[Place, int],
    truth: Sequence[dict[str, Any]],
    windows: Sequence[Window],
    since_ns: int,
    until_ns: int,
    patience: float = 1.0,
) -> Accounts:
    """Close the books.

    Args:
        records: Everything on the topics of opportunities, outcomes, decisions and dead letters, in order by partition.
        seen: What a reader got meanwhile, by place: `digest` of its value.
        truth: The simulator's log.
        windows: When something was broken.
        since_ns, until_ns: What of the log counts: from when everything was up until the market was stopped.
        patience: `TOLERANCE_NS` and `LONG_NS` are so many times longer.
    """
    accounts = Accounts()
    there: dict[Place, int] = {}
    spans: dict[str, _Span] = {}
    mentioned: set[str] = set()
    said: dict[str, list[dict[str, Any]]] = defaultdict(list)
    decisions: dict[str, set[str]] = defaultdict(set)
    for record in records:
        there[(record.topic, record.partition, record.offset)] = digest(record.value)
        if record.topic.endswith(".dlq"):
            accounts.dead_letters += 1
            continue
        try:
            decode(record.value)
        except UndecodableRecord:
            accounts.undecodable += 1
            continue
        message = orjson.loads(record.value or b"")
        mentioned.add(message["opportunity_id"])
        if record.topic == topics.OPPORTUNITIES:
            _opportunity(accounts, spans, message)
        elif record.topic == topics.DECISIONS:
            said[message["decision_id"]].append(message)
            decisions[message["opportunity_id"]].add(message["decision_id"])
    accounts.opened = len(spans)
    accounts.decided = sum(identity in decisions for identity in spans)
    accounts.undecided = sorted(spans.keys() - decisions.keys())
    accounts.headless = sorted(mentioned - spans.keys())
    accounts.vanished = sorted(place for place, value in seen.items() if there.get(place) != value)
    accounts.decided_again = sum(len(copies) - 1 for copies in said.values())
    accounts.two_decisions = sum(len(ids) > 1 for ids in decisions.values())
    accounts.contradictions = sorted(
        identity for identity, copies in said.items() if len({_essence(copy) for copy in copies}) > 1
    )
    accounts.unfinished = sum(span.closed_ns is None for span in spans.values())
    first = [copies[0] for copies in said.values()]
    accounts.outcomes = dict(Counter(message["outcome"] for message in first))
    accounts.modes = dict(Counter(message["mode"] for message in first))
    _compare(accounts, truth, spans, windows, since_ns, until_ns, patience)
    return accounts


@dataclass
class _Span:
    """When an opportunity was open."""

    pair: tuple[str, str, str, str]
    opened_ns: int
    closed_ns: int | None = None


def _opportunity(accounts: Accounts, spans: dict[str, _Span], message: dict[str, Any]) -> None:
    identity, phase = message["opportunity_id"], message["phase"]
    if phase == "opened":
        if identity in spans:
            accounts.opened_again += 1
        else:
            spans[identity] = _Span(_pair(message), message["opened_ns"])
    elif phase == "closed" and identity in spans:
        spans[identity].closed_ns = message["detected_ns"]


def _pair(found: Mapping[str, Any]) -> tuple[str, str, str, str]:
    buy, sell = found["buy"], found["sell"]
    return buy["exchange"], buy["symbol"], sell["exchange"], sell["symbol"]


def _essence(decision: dict[str, Any]) -> tuple[Any, ...]:
    """What a reader acts on."""
    return tuple(decision[name] for name in ("outcome", "opportunity_id", "base", "size"))


def _compare(
    accounts: Accounts,
    truth: Sequence[dict[str, Any]],
    spans: Mapping[str, _Span],
    windows: Sequence[Window],
    since_ns: int,
    until_ns: int,
    patience: float,
) -> None:
    long_ns, tolerance_ns = int(LONG_NS * patience), int(TOLERANCE_NS * patience)
    by_pair: dict[tuple[str, str, str, str], list[_Span]] = defaultdict(list)
    for span in spans.values():
        by_pair[span.pair].append(span)
    real: dict[tuple[str, str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for gap in truth:
        real[_pair(gap)].append(gap)
        begin, end = max(gap["start_ns"], since_ns), min(gap["end_ns"], until_ns)
        if end - begin < long_ns:
            continue
        found = any(_away_ns(gap, span) <= tolerance_ns for span in by_pair[_pair(gap)])
        if undisturbed_ns(gap, begin, end, windows) >= long_ns:
            accounts.gaps += 1
            accounts.found += found
            if not found:
                accounts.missed.append(gap)
        elif not found:
            accounts.excused += 1
    for identity, span in spans.items():
        broken = any(w.since_ns <= span.opened_ns <= w.until_ns for w in windows)
        away_ns = min((_away_ns(gap, span) for gap in real[span.pair]), default=None)
        if away_ns is not None and away_ns <= (LATE_NS if broken else tolerance_ns):
            continue
        if broken:
            accounts.invented_broken += 1
        else:
            accounts.invented.append(identity)
            accounts.invented_ms.append(None if away_ns is None else away_ns // MS)


def undisturbed_ns(gap: Mapping[str, Any], begin: int, end: int, windows: Sequence[Window]) -> int:
    """The longest time in one piece between `begin` and `end` in which nothing was broken that concerns the gap."""
    exchanges = {gap["buy"]["exchange"], gap["sell"]["exchange"]}
    longest, at = 0, begin
    for window in sorted(windows):
        if window.exchanges is not None and not window.exchanges & exchanges:
            continue
        longest = max(longest, min(window.since_ns, end) - at)
        at = max(at, window.until_ns)
    return max(longest, end - at)


def _away_ns(gap: Mapping[str, Any], span: _Span) -> int:
    """Time between a gap and an opportunity; negative where they overlap."""
    closed_ns = span.closed_ns if span.closed_ns is not None else max(span.opened_ns, gap["end_ns"])
    return int(max(span.opened_ns - gap["end_ns"], gap["start_ns"] - closed_ns))
