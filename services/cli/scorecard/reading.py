"""Where a scorecard's messages come from: files, or the topics of decisions, outcomes and audits."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from services.cli.report import MS, SLACK_MS, Held, messages_in
from services.cli.scorecard.sums import Judged, Tried, judged, tried
from shared import cluster, kafka, topics
from shared.errors import UndecodableRecord
from shared.messages import AnyMessage, Audit, Decision, DelayedEdge, Shadow, decode
from shared.settings import KafkaSettings

EXPIRING_MS = 600_000
"""Kafka may delete what is this near its end while we read it: left out from the start."""


@dataclass
class Read:
    """What counts, and how many records could not be read."""

    decisions: list[Judged] = field(default_factory=list)
    trials: list[Tried] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    unreadable: int = 0

    def take(self, rank: tuple[int, ...], message: AnyMessage) -> None:
        """Keep what counts of a message; an audit holds its decision. `rank`: newer is higher."""
        match message:
            case Decision():
                self.decisions.append(judged(message))
            case Audit():
                self.decisions.append(judged(message.decision))
            case Shadow():
                self.trials.append(tried(message))
            case DelayedEdge():
                self.held.append(Held(rank, message))


def of_files(files: Sequence[Path]) -> Read:
    """Messages, one a line; `-` is standard input, `.gz` is unpacked. Other kinds are passed over.

    Raises:
        InputError: names the file, and the line that is no message.
    """
    read = Read()
    for rank, message in messages_in(files):
        read.take(rank, message)
    return read


def of_kafka(settings: KafkaSettings, since_ns: int, now_ns: int, horizon_ms: int) -> Read:
    """What was published since a moment, and a little before.

    Raises:
        BrokerUnavailable, TopicMismatch: as for any reader.
    """
    cluster.wait_for_brokers(settings)
    config = kafka.reader(settings, "scorecard")
    since_ms, now_ms = max(1, since_ns // MS - SLACK_MS), now_ns // MS
    kept_ms = {topic.name: topic.retention_ms for topic in topics.TOPICS}
    read = Read()
    for topic in (topics.DECISIONS, topics.OUTCOMES, topics.AUDIT):
        oldest_ms = max(since_ms, now_ms - kept_ms[topic] + EXPIRING_MS)
        for record in kafka.read_spans(config, kafka.spans(config, [topic], oldest_ms, now_ms)):
            if record is not None:
                _take(read, record, horizon_ms)
    return read


def _take(read: Read, record: kafka.Record, horizon_ms: int) -> None:
    if record.topic == topics.AUDIT and b'"kind":"audit"' in (record.value or b""):
        return  # large, and its decision has been read
    try:
        message = decode(record.value)
    except UndecodableRecord:
        read.unreadable += 1
        return
    if not isinstance(message, DelayedEdge) or message.delay_ms == horizon_ms:
        read.take((record.timestamp_ms, record.offset), message)
