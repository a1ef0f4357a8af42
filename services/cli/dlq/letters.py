"""Dead letters and their markers, as records say it; which may be sent again, and as what. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from services.decider.service import MOST_BYTES
from shared import topics
from shared.errors import UndecodableRecord, UsageError
from shared.kafka import Headers, Record
from shared.messages import Book, Health, Opportunity, Rate, Trade, decode

PREFIX = "__dlq."
REPLAYED = "__dlq.replayed"
"""Header of what was sent again: how often, this time included."""

FROM = "__dlq.from"
"""Header of what was sent again: id of the dead letter."""

MARKER = "__dlq.marker"
CLAIMED, SENT = "claimed", "sent"

FRESH_S = 10.0
"""A detector reads back so much: an older tick has no meaning for it, and its price none for anybody."""

MOST_DIGITS = 19
"""Of a number in a record, which anybody may have written: offsets have no more, and `int` refuses thousands."""

BELONGS = {"opportunity": (Opportunity,), "tick": (Book, Trade, Health), "rate": (Rate,)}


class Place(NamedTuple):
    """Where a dead letter lies; as text its id."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


def place_of(text: str) -> Place:
    """An id as `arb dlq list` prints it.

    Raises:
        UsageError: it is none.
    """
    parts = text.split("/")
    if len(parts) == 3 and parts[0] in dead_letter_topics():
        partition, offset = _whole(parts[1]), _whole(parts[2])
        if partition is not None and offset is not None:
            return Place(parts[0], partition, offset)
    raise UsageError(
        f"{text!r} is no id of a dead letter; it is TOPIC/PARTITION/OFFSET as `arb dlq list` prints it, with one of "
        f"{', '.join(dead_letter_topics())}"
    )


def _whole(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) <= MOST_DIGITS else None


def dead_letter_topics() -> list[str]:
    """All there are."""
    return [topic.name for topic in topics.TOPICS if topic.name.endswith(".dlq")]


@dataclass(slots=True)
class Letter:
    """One dead letter.

    Attributes:
        topic, partition, offset, timestamp_ms: Of the original record.
        headers: Of the original record, and `__dlq.replayed` if it had been sent again before.
        died_ms: When it was put aside.
        attempts: How often it was claimed for sending; sent: how often Kafka is known to have taken it.
        problem: Why the value is still not what belongs on its topic; None if it is.
        cut: Bytes of the original value, where only its beginning was kept; else 0.
    """

    place: Place
    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    group: str
    stage: str
    error: str
    message: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    died_ms: int
    attempts: int = 0
    sent: int = 0
    sent_ms: int | None = None
    problem: str | None = None
    cut: int = 0

    @property
    def replays(self) -> int:
        """How often this record was sent again, as an earlier dead letter too."""
        before = next((value for name, value in self.headers if name == REPLAYED), None) or b""
        return (_whole(before.decode(errors="replace")) or 0) + self.attempts


class Marker(NamedTuple):
    """A run's word about a letter."""

    letter: Place
    kind: str
    attempt: int
    run: str


def _text(headers: Mapping[str, bytes | None], name: str) -> str:
    return (headers.get(PREFIX + name) or b"").decode(errors="replace")


def _number(headers: Mapping[str, bytes | None], name: str, otherwise: int) -> int:
    found = _whole(_text(headers, name))
    return otherwise if found is None else found


def letter_of(record: Record) -> Letter:
    """The dead letter in a record. One that somebody else wrote there has empty fields, and no topic."""
    headers = dict(record.headers)  # of two of a name the last: those of the last death
    own = [(name, value) for name, value in record.headers if not name.startswith(PREFIX) or name == REPLAYED]
    return Letter(
        place=Place(record.topic, record.partition, record.offset),
        topic=_text(headers, "topic"),
        partition=_number(headers, "partition", -1),
        offset=_number(headers, "offset", -1),
        timestamp_ms=_number(headers, "timestamp", record.timestamp_ms),
        group=_text(headers, "group"),
        stage=_text(headers, "stage"),
        error=_text(headers, "error.class"),
        message=_text(headers, "error.message"),
        key=record.key,
        value=record.value,
        headers=own,
        died_ms=record.timestamp_ms,
        cut=_number(headers, "cut", 0),
    )


def marker_of(record: Record) -> Marker | None:
    """The marker in a record, None if it is none."""
    headers = dict(record.headers)
    if headers.get(MARKER) not in (CLAIMED.encode(), SENT.encode()):
        return None
    try:
        place = place_of((record.key or b"").decode(errors="replace"))
    except UsageError:  # not written by us
        return None
    return Marker(place, _text(headers, "marker"), _number(headers, "attempt", 1), _text(headers, "run"))


def marked(marker: Marker) -> tuple[str, Headers]:
    """Key and headers of a marker's record, which has no value."""
    headers = {MARKER: marker.kind, f"{PREFIX}attempt": str(marker.attempt), f"{PREFIX}run": marker.run}
    return str(marker.letter), [(name, text.encode()) for name, text in headers.items()]


@dataclass(slots=True)
class Box:
    """What dead-letter topics hold, in the order in which it is read: a marker may come before its letter.

    Args:
        wanted: Letters that are kept.
        values: Whether they are kept with their values, which may be large.
    """

    wanted: "Wanted"
    values: bool = True
    claims: dict[tuple[Place, int], str] = field(default_factory=dict)
    _letters: dict[Place, Letter] = field(default_factory=dict)
    _sent: dict[Place, list[int]] = field(default_factory=dict)

    def take(self, record: Record) -> None:
        """Take in a record."""
        marker = marker_of(record)
        if marker is None:
            letter = letter_of(record)
            if self.wanted.holds(letter):
                letter.problem = decodes(letter)
                if not self.values:
                    letter.value = None
                self._letters[letter.place] = letter
        elif marker.kind == CLAIMED:
            # One letter's markers lie in one partition: the first in the log wins.
            self.claims.setdefault((marker.letter, marker.attempt), marker.run)
        else:
            self._sent.setdefault(marker.letter, []).append(record.timestamp_ms)

    def letters(self) -> list[Letter]:
        """All that are kept, each with what was done with it."""
        for (place, attempt), _ in self.claims.items():
            if place in self._letters:
                self._letters[place].attempts = max(self._letters[place].attempts, attempt)
        for place, moments in self._sent.items():
            if place in self._letters:
                self._letters[place].sent, self._letters[place].sent_ms = len(moments), max(moments)
        return list(self._letters.values())


# ---------------------------------------------------------------- may it go out again


def decodes(letter: Letter) -> str | None:
    """Why the value is still not what belongs on its topic; None if it is."""
    if not letter.topic:
        return "it does not say which topic it comes from"
    kind = "opportunity"
    if letter.topic != topics.OPPORTUNITIES:
        kind = "rate" if letter.topic == topics.FX_RATES else "tick"
    size = len(letter.value or b"")
    if kind == "opportunity" and size > MOST_BYTES:
        return f"it has {size} bytes, an opportunity {MOST_BYTES} at most"
    try:
        message = decode(letter.value)
    except UndecodableRecord as error:
        return str(error)
    return None if isinstance(message, BELONGS[kind]) else f"a {message.kind} does not belong on {letter.topic}"


def refusal(letter: Letter, now_ms: int, *, force: bool, again: bool) -> str | None:
    """Why it is not sent, with the option that sends it all the same; None if it may go. Its value is not needed."""
    if letter.topic not in {topic.name for topic in topics.TOPICS} or letter.topic.endswith(".dlq"):
        return f"its topic {letter.topic or '(none)'} is none of ours"
    if letter.cut:
        return f"only the beginning of its {letter.cut} bytes was kept"
    if letter.attempts and not again:
        if letter.sent:
            times = "once" if letter.sent == 1 else f"{letter.sent} times"
            return f"it was sent {times} before; --again sends it once more"
        return "a run began to send it and did not say that it was taken; --again sends it, perhaps twice"
    if force:
        return None
    if letter.problem is not None:
        return f"{letter.problem}; --force sends it all the same"
    age_s = (now_ms - letter.timestamp_ms) / 1000
    if letter.topic != topics.OPPORTUNITIES and age_s > FRESH_S:
        return f"its price is {age_s:.0f} s old and means nothing now; --force sends it all the same"
    return None


def outgoing(letter: Letter) -> Headers:
    """Headers with which it goes out again: its own, and that and whence it was sent again. Call it once claimed."""
    own = [(name, value) for name, value in letter.headers if not name.startswith(PREFIX)]
    return [*own, (REPLAYED, str(letter.replays).encode()), (FROM, str(letter.place).encode())]


# ---------------------------------------------------------------- many at once


class Wanted(NamedTuple):
    """Which letters are meant; empty means any. `topic`: where they come from, or where they lie."""

    ids: frozenset[Place] = frozenset()
    topic: str | None = None
    stage: str | None = None
    error: str | None = None

    def holds(self, letter: Letter) -> bool:
        """Whether a letter is meant."""
        return (
            (not self.ids or letter.place in self.ids)
            and self.topic in (None, letter.topic, letter.place.topic)
            and self.stage in (None, letter.stage)
            and self.error in (None, letter.error)
        )


@dataclass(slots=True)
class Heap:
    """Letters of one topic, stage and error."""

    topic: str
    stage: str
    error: str
    count: int = 0
    waiting: int = 0
    oldest_ms: int = 0
    newest_ms: int = 0
    newest: Place | None = None
    message: str = ""


def heaps(letters: Iterable[Letter]) -> list[Heap]:
    """Letters by topic, stage and error, the largest heap first. `waiting`: never claimed for sending."""
    found: dict[tuple[str, str, str], Heap] = {}
    for one in letters:
        heap = found.setdefault((one.topic, one.stage, one.error), Heap(one.topic, one.stage, one.error))
        heap.count += 1
        heap.waiting += not one.attempts
        heap.oldest_ms = min(heap.oldest_ms or one.died_ms, one.died_ms)
        if one.died_ms >= heap.newest_ms:
            heap.newest_ms, heap.newest, heap.message = one.died_ms, one.place, one.message
    return sorted(found.values(), key=lambda heap: (-heap.count, heap.topic))


def in_their_order(letters: Iterable[Letter]) -> Sequence[Letter]:
    """As they came at first: a coin's messages keep their order."""
    return sorted(letters, key=lambda one: (one.topic, one.timestamp_ms, one.partition, one.offset))
