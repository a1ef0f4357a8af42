"""The shell of `arb dlq`: reads the dead-letter topics, and sends letters again."""

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from services.cli.dlq import letters
from services.cli.dlq.letters import CLAIMED, SENT, Box, Letter, Marker, Place, Wanted, dead_letter_topics
from shared import cluster, kafka
from shared.errors import AccessRefused, ArbiterError, BrokerUnavailable
from shared.kafka import Record
from shared.settings import KafkaSettings

SILENCE_S = 10.0

CLOCKS_MS = 3_600_000
"""Markers are written by another machine's clock than their letters."""


def read(settings: KafkaSettings, names: Sequence[str], since_ms: int = 0) -> Iterator[Record]:
    """What these topics hold from a moment on, up to their end of now; in order within a partition.

    Raises:
        BrokerUnavailable: Kafka does not answer.
        TopicMismatch: a topic is missing.
    """
    cluster.wait_for_brokers(settings)
    config = kafka.reader(settings, "dlq")
    spans = kafka.spans(config, names, since_ms)
    return (record for record in kafka.read_spans(config, spans, SILENCE_S) if record is not None)


def find(settings: KafkaSettings, wanted: Wanted, since_ms: int = 0, *, values: bool = False) -> list[Letter]:
    """The letters that are meant, with what was done with them.

    Args:
        since_ms: Put aside since.
        values: Whether they come with their values: all of a topic may be more than memory holds.

    Raises:
        BrokerUnavailable, TopicMismatch: see `read`.
    """
    box = Box(wanted, values)
    for record in read(settings, sorted({place.topic for place in wanted.ids}) or dead_letter_topics(), since_ms):
        box.take(record)
    return box.letters()


def one(settings: KafkaSettings, place: Place) -> Letter:
    """One letter.

    Raises:
        ArbiterError: it is not there (any more).
    """
    found = find(settings, Wanted(frozenset([place])), values=True)
    if not found:
        raise ArbiterError(
            f"no dead letter {place}: it was deleted (they are kept for 30 days), or it never was; `arb dlq list` "
            "shows those that there are"
        )
    return found[0]


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of a run: letters that Kafka took, those that another run had claimed first, and those that were
    deleted before they could be read again."""

    taken: tuple[Letter, ...]
    others: tuple[Letter, ...]
    gone: tuple[Letter, ...] = ()


def send(settings: KafkaSettings, chosen: Sequence[Letter], claimed: Callable[[], None] = lambda: None) -> Sent:
    """Claim the letters, send those that are ours, say so.

    Args:
        chosen: With or without their values, which are read anew.
        claimed: Called between the claim and the sending.

    Raises:
        BrokerUnavailable: Kafka did not take it all; what is claimed and not marked as sent may have gone out.
        AccessRefused: we may not read or write one of the topics.
    """
    run = uuid.uuid4().hex
    # A claim says which attempt it is for: of two runs that saw the same box, one wins each letter.
    attempts = {letter.place: letter.attempts + 1 for letter in chosen}
    sending = False
    publisher = kafka.Publisher(kafka.event_producer(settings, "dlq"), drop_when_full=False)

    def mark(kind: str, places: Sequence[Place]) -> None:
        for place in places:
            key, headers = letters.marked(Marker(place, kind, attempts[place], run))
            publisher.publish(place.topic, key, None, headers)
        publisher.confirm()

    try:
        mark(CLAIMED, list(attempts))
        since_ms = min(letter.died_ms for letter in chosen) - CLOCKS_MS
        box = Box(Wanted(frozenset(attempts)))
        for record in read(settings, sorted({place.topic for place in attempts}), since_ms):
            box.take(record)
        present = {letter.place: letter for letter in box.letters()}
        mine = {place for place, attempt in attempts.items() if box.claims.get((place, attempt)) == run}
        ours = [present[place] for place in attempts if place in mine and place in present]
        claimed()
        sending = True
        for letter in ours:
            letter.attempts = attempts[letter.place]
            publisher.publish(letter.topic, letter.key, letter.value, letters.outgoing(letter))
        publisher.confirm()
        mark(SENT, [letter.place for letter in ours])
    except BrokerUnavailable as error:
        words = "nothing was sent; what `arb dlq list` shows as begun goes out with --again"
        if sending:
            words = f"some of {len(chosen)} letters may have gone out: see `arb dlq list`, where they are begun"
        kind = AccessRefused if isinstance(error, AccessRefused) else BrokerUnavailable
        raise kind(f"{error}; {words}") from None
    finally:
        publisher.close(2.0)
    others = tuple(letter for letter in chosen if letter.place not in mine)
    gone = tuple(letter for letter in chosen if letter.place in mine and letter.place not in present)
    return Sent(tuple(ours), others, gone)
