"""Where decisions and their records are found: in Kafka or in files, by time or by an id."""

import gzip
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from services.cli.explain.words import moment
from services.decider.judge import Terms
from shared import kafka, topics, weights
from shared.errors import ArbiterError, InputError, UndecodableRecord, UsageError
from shared.messages import AnyMessage, Audit, Decision, DelayedEdge, Shadow, decode
from shared.settings import KafkaSettings, Settings

MS = 1_000_000
MINUTE_NS = 60_000_000_000

SLACK_MS = 10_000
"""A record's timestamp is of another clock than its message: we look so much further on both sides."""

FULL_ID = 32
"""Characters of a whole id: with fewer, all of Kafka has to be searched to know that no other one begins like it."""

TOPIC_OF = {
    "decision": topics.DECISIONS,
    "audit": topics.AUDIT,
    "shadow": topics.AUDIT,
    "outcome": topics.OUTCOMES,
}


class Found(NamedTuple):
    """A message, its bytes, and where it stands."""

    message: AnyMessage
    value: bytes
    where: str


class Source(Protocol):
    """Where messages come from.

    Attributes:
        windows_s: How far back to look for a whole id, one after the other; None: all.
        unreadable: Records that are no messages of ours: where, and why.
    """

    windows_s: Sequence[float | None]
    unreadable: list[tuple[str, str]]

    def read(
        self, names: Sequence[str], since_ns: int = 0, until_ns: int | None = None, holding: str = ""
    ) -> Iterator[Found]:
        """Messages of the topics, about of that time (a file's: all) and with this text in them, in no fixed order."""

    def words(self, since_ns: int | None) -> str:
        """What was searched."""


# ---------------------------------------------------------------- files and Kafka


@dataclass
class Files:
    """Messages in files, one a line, in any order, other kinds too; `-` is standard input, `.gz` is unpacked."""

    files: Sequence[Path]
    windows_s: Sequence[float | None] = (None,)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    _stdin: list[bytes] | None = None

    def read(
        self, names: Sequence[str], since_ns: int = 0, until_ns: int | None = None, holding: str = ""
    ) -> Iterator[Found]:
        """All lines of these topics' kinds.

        Raises:
            InputError: a file cannot be read, or a line is no message; with its number.
        """
        text = holding.encode()
        for file in self.files:
            name, number = ("standard input" if str(file) == "-" else str(file)), 0
            try:
                for line in self._lines(file):
                    number += 1
                    value = line.strip()
                    if not value:
                        continue
                    message = decode(value)
                    if text in value and TOPIC_OF.get(message.kind) in names:
                        yield Found(message, value, f"{name}, line {number}")
            except UndecodableRecord as error:
                raise InputError(name, str(error), number) from None
            except (OSError, EOFError, zlib.error) as error:
                words = getattr(error, "strerror", None) or str(error)
                raise InputError(name, words, number + 1 if number else None) from None

    def words(self, since_ns: int | None) -> str:
        """The files."""
        return f"in {', '.join(str(file) for file in self.files)}"

    def _lines(self, file: Path) -> Iterator[bytes]:
        if str(file) == "-":
            if self._stdin is None:  # it can be read once only, and is searched several times
                self._stdin = sys.stdin.buffer.read().splitlines()
            yield from self._stdin
            return
        with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as opened:
            yield from opened


@dataclass
class Topics:
    """Messages in Kafka. What cannot be read is kept in `unreadable`, as the readers of a topic put it aside."""

    settings: KafkaSettings
    windows_s: Sequence[float | None] = (900, 4 * 3600, 86_400, None)
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    def read(
        self, names: Sequence[str], since_ns: int = 0, until_ns: int | None = None, holding: str = ""
    ) -> Iterator[Found]:
        """What was published from then on, and a little before.

        Raises:
            BrokerUnavailable, TopicMismatch: as for any reader.
        """
        config = kafka.reader(self.settings, "decisions")
        since_ms = max(1, since_ns // MS - SLACK_MS)
        until_ms = None if until_ns is None else until_ns // MS + SLACK_MS
        text = holding.encode()
        wanted = kafka.spans(config, names, since_ms, until_ms)
        if not any(span.begin < span.end for span in wanted):
            # Nothing of that time, or a broker that cannot look up by time (librdkafka's mock): then all is read.
            every = kafka.spans(config, names, 1)
            if any(span.begin == span.high > span.low for span in every):
                wanted = [span._replace(begin=span.low) for span in every]
        for record in kafka.read_spans(config, wanted):
            if record is None or text not in (record.value or b""):
                continue
            where = f"{record.topic}/{record.partition}@{record.offset}"
            try:
                message = decode(record.value)
            except UndecodableRecord as error:
                self.unreadable.append((where, str(error)))
                continue
            if TOPIC_OF.get(message.kind) == record.topic:
                yield Found(message, record.value or b"", where)

    def words(self, since_ns: int | None) -> str:
        """How far back."""
        return "in all that Kafka holds" if since_ns is None else f"in Kafka since {moment(since_ns)}"


# ---------------------------------------------------------------- by time


class Listing(NamedTuple):
    """Decisions, oldest first, each id once (the earliest). `duplicates`: further copies that were published."""

    decisions: list[Decision]
    duplicates: int


def listed(found: Iterable[Found], keep: Callable[[Decision], bool]) -> Listing:
    """Decisions as published; those of which only the record is there are taken out of it."""
    first: dict[str, Decision] = {}
    recorded: dict[str, Decision] = {}
    duplicates = 0
    for one in found:
        message = one.message
        if isinstance(message, Decision) and keep(message):
            duplicates += message.decision_id in first
            _earliest(first, message)
        elif isinstance(message, Audit) and keep(message.decision):
            _earliest(recorded, message.decision)
    every = {**recorded, **first}
    return Listing(sorted(every.values(), key=lambda one: (one.decided_ns, one.decision_id)), duplicates)


def _earliest(held: dict[str, Decision], decision: Decision) -> None:
    other = held.get(decision.decision_id)
    if other is None or (decision.decided_ns, decision.encode()) < (other.decided_ns, other.encode()):
        held[decision.decision_id] = decision


# ---------------------------------------------------------------- by id


@dataclass(frozen=True, slots=True)
class Dossier:
    """All that is there about one decision.

    Attributes:
        audit: None: its record is not there.
        shadows: What candidates on trial answered to the same questions.
        outcomes: What the edge was worth afterwards, by delay.
        others: Further decisions about the same opportunity, by other panels.
        again: Further records under the same id, with other content.
    """

    decision: Decision
    audit: Audit | None
    shadows: tuple[Shadow, ...] = ()
    outcomes: tuple[DelayedEdge, ...] = ()
    others: tuple[Decision, ...] = ()
    again: int = 0


def dossier(source: Source, identity: str, now_ns: int) -> Dossier:
    """What there is about a decision or an opportunity.

    Args:
        identity: An id of either, or the beginning of one.

    Raises:
        ArbiterError: there is none; says what was searched.
        UsageError: several begin like that.
    """
    identity = identity.strip().lower()
    if not identity or not identity.isalnum():
        raise UsageError(f"{identity!r} is no id of a decision or an opportunity, nor the beginning of one")
    matches = _matches(source, identity, now_ns)
    if not matches:
        raise ArbiterError(
            f"no decision and no opportunity {identity} {source.words(None)}; ids are in `arb decisions` (the last "
            "hour; --since looks further back)"
        )
    opportunities = sorted({match.opportunity_id for match in matches})
    if len(opportunities) > 1:
        ids = [
            match.decision_id if match.decision_id.startswith(identity) else match.opportunity_id for match in matches
        ]
        shown = ", ".join(sorted(set(ids))[:5])
        raise UsageError(
            f"{identity} is ambiguous: {len(opportunities)} begin like it, such as {shown}; say more of it"
        )
    newest = max(matches, key=lambda one: (one.decided_ns, one.decision_id))
    return _about(source, newest, [match for match in matches if match is not newest])


def _matches(source: Source, identity: str, now_ns: int) -> list[Decision]:
    """Decisions of which an id is or begins like this; an exact one comes before all that only begin like it."""
    windows = source.windows_s if len(identity) >= FULL_ID else (None,)
    for names in ((topics.DECISIONS,), (topics.AUDIT,)):
        for window_s in windows:
            since_ns = 0 if window_s is None else max(0, now_ns - int(window_s * 1e9))
            found = listed(
                source.read(names, since_ns, holding=f'"{identity}'),
                lambda one: one.decision_id.startswith(identity) or one.opportunity_id.startswith(identity),
            ).decisions
            if found:
                return [one for one in found if identity in (one.decision_id, one.opportunity_id)] or found
    return []


def _about(source: Source, decision: Decision, others: Sequence[Decision]) -> Dossier:
    about = (decision.decided_ns - MINUTE_NS, decision.decided_ns + 2 * MINUTE_NS)
    records = list(source.read([topics.AUDIT], *about, holding=decision.decision_id))
    audits = {
        one.message.encode(): one.message
        for one in records
        if isinstance(one.message, Audit) and one.message.decision.decision_id == decision.decision_id
    }
    shadows = {
        one.message.encode(): one.message
        for one in records
        if isinstance(one.message, Shadow) and one.message.decision_id == decision.decision_id
    }
    mine = [audit for audit in audits.values() if audit.decision == decision]
    audit = min(mine, key=lambda one: one.encode()) if mine else None
    since_ns = decision.detected_ns - MINUTE_NS if audit is None else audit.opportunity.opened_ns
    outcomes: dict[int, DelayedEdge] = {}
    for one in source.read([topics.OUTCOMES], since_ns, decision.decided_ns + 2 * MINUTE_NS, decision.opportunity_id):
        edge = one.message
        if isinstance(edge, DelayedEdge) and edge.opportunity_id == decision.opportunity_id:
            held = outcomes.get(edge.delay_ms, edge)
            outcomes[edge.delay_ms] = held if held.missed < edge.missed else edge
    return Dossier(
        decision,
        audit,
        tuple(sorted(shadows.values(), key=lambda one: (one.asked_ns, one.call.role))),
        tuple(edge for _, edge in sorted(outcomes.items())),
        tuple(others),
        len(audits) - (audit is not None),
    )


# ---------------------------------------------------------------- terms of now


def terms_of(settings: Settings) -> Terms:
    """The terms of these settings, and of the weights file where one is set and there.

    Raises:
        SettingsError: a prompt or the weights file cannot be used.
    """
    file = settings.decider.weights_file
    return Terms.of(settings, weights.load(file) if file is not None and file.exists() else None)
