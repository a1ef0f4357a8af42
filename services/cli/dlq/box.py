"""The shell of `arb dlq`: reads the dead-letter topics, and sends letters again."""

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from services.cli.dlq import letters
from services.cli.dlq.letters import CLAIMED, SENT, Box, Letter, Marker, Place, Wanted, dead_letter_topics
from shared import cluster, kafka
from shared.errors import ArbiterError, BrokerUnavailable
from shared.kafka import Record
from shared.settings import KafkaSettings

NEVER_MS = 2**53
"""A moment that no record is younger than: up to the end of now."""

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
    spans = kafka.spans(config, names, since_ms, NEVER_MS)
    return (record for record in kafka.read_spans(config, spans, SILENCE_S) if record is not None)


def find(settings: KafkaSettings, wanted: Wanted, since_ms: int = 0, *, values: bool = True) -> list[Letter]:
    """The letters that are meant, with what was done with them. `since_ms`: put aside since.

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
    found = find(settings, Wanted(frozenset([place])))
    if not found:
        raise ArbiterError(
            f"no dead letter {place}: it was deleted (they are kept for 30 days), or it never was; `arb dlq list` "
            "shows those that there are"
        )
    return found[0]


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of a run: letters that Kafka took, and those that another run had claimed first."""

    taken: tuple[Letter, ...]
    others: tuple[Letter, ...]


def send(settings: KafkaSettings, chosen: Sequence[Letter], claimed: Callable[[], None] = lambda: None) -> Sent:
    """Claim the letters, send those that are ours, say so.

    Args:
        claimed: Called between the claim and the sending.

    Raises:
        BrokerUnavailable: Kafka did not take it all; what is claimed and not marked as sent may have gone out.
    """
    run = uuid.uuid4().hex
    # A claim says which attempt it is for: of two runs that saw the same box, one wins each letter.
    attempts = {letter.place: letter.attempts + 1 for letter in chosen}
    publisher = kafka.Publisher(kafka.event_producer(settings, "dlq"), drop_when_full=False)

    def mark(kind: str, places: Sequence[Place]) -> None:
        for place in places:
            key, headers = letters.marked(Marker(place, kind, attempts[place], run))
            publisher.publish(place.topic, key, None, headers)
        publisher.confirm()

    try:
        mark(CLAIMED, list(attempts))
        since_ms = min(letter.died_ms for letter in chosen) - CLOCKS_MS
        box = Box(Wanted(frozenset(attempts)), values=False)
        for record in read(settings, sorted({place.topic for place in attempts}), since_ms):
            box.take(record)
        ours = [letter for letter in chosen if box.claims.get((letter.place, attempts[letter.place])) == run]
        others = [letter for letter in chosen if letter not in ours]
        claimed()
        for letter in ours:
            letter.attempts = attempts[letter.place]
            publisher.publish(letter.topic, letter.key, letter.value, letters.outgoing(letter))
        publisher.confirm()
        mark(SENT, [letter.place for letter in ours])
    except BrokerUnavailable as error:
        raise BrokerUnavailable(
            f"{error}; some of {len(chosen)} letters may have gone out: see `arb dlq list`, where they are begun"
        ) from None
    finally:
        publisher.close(2.0)
    return Sent(tuple(ours), tuple(others))
