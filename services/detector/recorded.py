"""The replay's shell: recorded ticks out of files and topics, and a group of processes that share them."""

import datetime
import gzip
import sys
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import structlog

from services.detector.engine import Engine
from services.detector.replay import Recorded, merged, recorded, replay
from services.detector.service import written
from shared import kafka, topics
from shared.errors import ArbiterError, InputError, UsageError
from shared.kafka import PartitionShare, Publisher, Record, Span
from shared.settings import Settings

log = structlog.get_logger()

MS = 1_000_000

SLACK_MS = 10_000
"""A record's timestamp is a little later than `received_ns`, and of another clock: so far around a range we look."""

SETTLED_NS = 2_000_000_000
"""A tick is on its topic within 1.5 s or never: a range that ended so long ago does not change any more."""

LOOK_S = 0.5
"""How often a member without work looks whether the others are done."""

POLL_EVERY = 64
"""Messages between two calls that keep a member in its group: some milliseconds."""


class Range(NamedTuple):
    """From `since_ns` up to, without, `until_ns`; decided by `received_ns`."""

    since_ns: int
    until_ns: int

    def holds(self, message: Recorded) -> bool:
        return self.since_ns <= message.received_ns < self.until_ns

    def __str__(self) -> str:
        return f"{self.since_ns}-{self.until_ns}"


def moment(option: str, text: str) -> int:
    """A moment of the command line, `2026-11-21T10:00:00Z`, in ns.

    Raises:
        UsageError: it is not one, or says no time zone.
    """
    try:
        at = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{option} {text!r}: must be a moment such as 2026-11-21T10:00:00Z") from None
    if at.tzinfo is None:
        raise UsageError(f"{option} {text!r}: say the time zone, such as {text}Z")
    since_epoch = at - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return since_epoch // datetime.timedelta(microseconds=1) * 1000


def chosen_range(since: str | None, until: str | None) -> Range | None:
    """The range of --since and --until; None if neither is given.

    Raises:
        UsageError: one is not a moment, or it ends before it begins.
    """
    if since is None and until is None:
        return None
    since_ns = 0 if since is None else moment("--since", since)
    until_ns = time.time_ns() - SETTLED_NS if until is None else moment("--until", until)
    if since_ns >= until_ns:
        raise UsageError("--since must be before --until (default: two seconds ago)")
    return Range(since_ns, until_ns)


def _iso(at_ms: int) -> str:
    return datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC).isoformat(timespec="milliseconds")


# ---------------------------------------------------------------- files


def of_files(paths: Sequence[Path], within: Range | None = None) -> Iterator[Recorded]:
    """The messages of files, one a line, in any order; `-` is standard input, `.gz` is unpacked.

    Raises:
        InputError: a file or a line cannot be read; with its number.
    """
    for path in paths:
        for message in _of_file(path):
            if within is None or within.holds(message):
                yield message


def _of_file(path: Path) -> Iterator[Recorded]:
    name, number = ("standard input" if str(path) == "-" else str(path)), 0
    try:
        with _open(path) as file:
            for text in file:
                number += 1
                if text.strip():
                    yield recorded(name, number, text.strip())
    except (OSError, EOFError, zlib.error) as error:
        words = getattr(error, "strerror", None) or str(error)
        raise InputError(name, words, number + 1 if number else None) from None


def _open(path: Path) -> IO[bytes]:
    if str(path) == "-":
        return sys.stdin.buffer
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


# ---------------------------------------------------------------- topics


def find(settings: Settings, within: Range) -> list[Span]:
    """Where the range is on the tick topics and on fx-rates.

    Raises:
        UsageError: some of it has been deleted, or may still grow.
        BrokerUnavailable, TopicMismatch: as for any reader.
    """
    if within.until_ns > time.time_ns() - SETTLED_NS:
        raise UsageError(f"--until must be at least {SETTLED_NS // 10**9} s ago: what is later may still arrive")
    config = kafka.reader(settings.kafka, "replay")
    since_ms = within.since_ns // MS
    names = [*topics.tick_topics(), topics.FX_RATES]
    found = kafka.spans(config, names, since_ms - SLACK_MS, within.until_ns // MS + SLACK_MS)
    cut = [span._replace(end=span.begin + 1) for span in found if 0 < span.low == span.begin < span.high]
    for record in kafka.read_spans(config, cut):
        if record is not None and record.timestamp_ms > since_ms:
            raise UsageError(
                f"{record.topic}/{record.partition}: its oldest record is of {_iso(record.timestamp_ms)}, what was "
                "before it has been deleted; begin there with --since"
            )
    return found


def of_topics(settings: Settings, wanted: Sequence[Span], within: Range) -> Iterator[Recorded]:
    """The messages of a range. A record that is none of ours is named in the log and left out, as live."""
    for record in _read(settings, wanted):
        message = _recorded(record)
        if message is not None and within.holds(message):
            yield message


def _read(settings: Settings, wanted: Sequence[Span]) -> Iterator[Record]:
    return (r for r in kafka.read_spans(kafka.reader(settings.kafka, "replay"), wanted) if r is not None)


def _recorded(record: Record) -> Recorded | None:
    try:
        return recorded(f"{record.topic}/{record.partition}", record.offset, record.value)
    except InputError as error:
        log.warning("left out", error=str(error))
        return None


def leave_out(message: Recorded, error: Exception) -> None:
    """What the engine cannot take in from a topic: live it goes to the dead letters, and the rest goes on."""
    log.warning("left out", source=message.source, offset=message.line, error=repr(error))


# ---------------------------------------------------------------- a group that shares a range


STOPPED = "stopped before the whole range was done; start it again with the same --group to finish it"


class Stopped(ArbiterError):
    """Told to stop before all was done."""


class _Lost(Exception):
    """The partition number was given to another member."""


class Member:
    """One of several processes that replay a range together, a partition number at a time.

    A number is committed when all its events are delivered: a member that dies leaves it to another one, which does
    it again from its beginning and finds the same ids.
    """

    def __init__(
        self,
        settings: Settings,
        within: Range,
        share: PartitionShare,
        out: Publisher,
        found: Sequence[Span],
        stop: threading.Event,
    ) -> None:
        self._settings = settings
        self._within = within
        self._share = share
        self._out = out
        self._stop = stop
        self._rates = [span for span in found if span.topic == topics.FX_RATES]
        self._ticks: dict[int, list[Span]] = {}
        for span in found:
            if span.topic != topics.FX_RATES:
                self._ticks.setdefault(span.partition, []).append(span)

    def run(self) -> None:
        """Until every number is done, by whichever member.

        Raises:
            Stopped: `stop` was set before.
            BrokerUnavailable, TopicMismatch: see the readers.
        """
        look_s = wait_s = 0.0
        while not self._stop.is_set():
            self._share.poll(wait_s)
            wait_s = 0.05
            if time.monotonic() < look_s:
                continue
            done = self._share.done()
            if done >= self._share.numbers:
                return
            look_s = time.monotonic() + LOOK_S
            mine = sorted((self._share.owned or frozenset()) - done)
            empty = [number for number in mine if all(span.begin >= span.end for span in self._ticks[number])]
            if empty:
                self._share.commit([span for number in empty for span in self._ticks[number]])
            if left := [number for number in mine if number not in empty]:
                self._do(left[0])
                look_s = wait_s = 0.0  # the next one at once
        raise Stopped(STOPPED)

    def _do(self, number: int) -> None:
        """Replay one number and commit it, unless it is taken from us meanwhile."""
        ticks = self._ticks[number]
        events = 0
        try:
            ordered = merged(self._tended(number, self._messages(number)))
            engine = Engine(self._settings, owned=lambda base: self._number_of(base) == number)
            for event in replay(engine, self._tended(number, ordered), self._within.until_ns, leave_out):
                self._out.publish(*written(event))
                events += 1
            self._out.confirm()
            self._keep(number)
            while self._share.owned is None:  # a rebalance is under way: nothing can be committed until it has ended
                self._keep(number, 0.05)
        except _Lost:
            log.info("given to another member", partition=number)
            return
        if self._share.commit(ticks):
            log.info("replayed", partition=number, events=events)

    def _messages(self, number: int) -> Iterator[Recorded]:
        """All that bears on the coins of a number: their ticks, the rates, and the bridge coins' books."""
        yield from of_topics(self._settings, [*self._ticks[number], *self._rates], self._within)
        detector = self._settings.detector
        bridges = {base for base in detector.bridges if detector.routes and self._number_of(base) != number}
        keys = {base.encode() for base in bridges}
        spans = [span for other in sorted({self._number_of(base) for base in bridges}) for span in self._ticks[other]]
        for record in _read(self._settings, spans):
            message = _recorded(record) if record.key in keys else None
            if message is not None and self._within.holds(message):
                yield message

    def _number_of(self, base: str) -> int:
        return kafka.partition_of(base, len(self._ticks))

    def _tended(self, number: int, messages: Iterable[Recorded]) -> Iterator[Recorded]:
        """The messages, keeping our place in the group."""
        for count, message in enumerate(messages):
            if count % POLL_EVERY == 0:
                self._keep(number)
            yield message

    def _keep(self, number: int, wait_s: float = 0.0) -> None:
        self._share.poll(wait_s)
        if self._stop.is_set():
            raise Stopped(STOPPED)
        if self._share.owned is not None and number not in self._share.owned:
            raise _Lost


def group_label(within: Range) -> str:
    """What a group's commits say: this range was replayed up to its end."""
    return f"arb replay {within}"
