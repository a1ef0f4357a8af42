"""The one table of topics. `kafka-topics.sh` holds the same for Kafka's own command; a test compares them.

All tick topics have the same partition count and all messages the base asset as key, so that with the
`murmur2_random` partitioner and the `range` assignor one detector owns a coin on every exchange.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

TICK_PARTITIONS = 16
EVENT_PARTITIONS = 8

EXCHANGES = ("binance", "coinbase", "kraken", "bybit", "okx")
"""Exchanges that have a tick topic. Adding one is a subscription change for every detector: see docs."""

FX_RATES = "fx-rates"
OPPORTUNITIES = "arbitrage-opportunities"
REJECTIONS = "arbitrage-rejections"
DECISIONS = "ai-trading-decisions"
OUTCOMES = "opportunity-outcomes"
AUDIT = "decision-audit"
TICKS_DLQ = "tick-data.dlq"


def ticks(exchange: str) -> str:
    """Name of an exchange's tick topic."""
    return f"tick-data-{exchange}"


def dlq(topic: str) -> str:
    """Where a reader of `topic` puts records it cannot decode."""
    return TICKS_DLQ if topic.startswith("tick-data-") else f"{topic}.dlq"


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic as it must exist.

    Attributes:
        min_insync_replicas: On a cluster of three; smaller clusters get at most their size minus one, at
            least 1. 1 for ticks: below it the broker hides even records sent with `acks=1`.
        config: Topic-level settings besides retention and `min.insync.replicas`.
    """

    name: str
    partitions: int
    retention_ms: int
    min_insync_replicas: int
    key: str
    written_by: str
    read_by: str
    config: dict[str, str] = field(default_factory=dict)

    def settings(self, brokers: int) -> dict[str, str]:
        """Topic settings on a cluster of `brokers` nodes; of a topic that is there: with so many copies."""
        return {
            "cleanup.policy": "delete",
            "retention.ms": str(self.retention_ms),
            "min.insync.replicas": str(max(1, min(self.min_insync_replicas, brokers - 1))),
            **self.config,
        }

    def replication(self, brokers: int) -> int:
        """Copies of each partition on a cluster of `brokers` nodes."""
        return min(3, brokers)


# Only closed segments are deleted: small ones, or one hour of ticks would stay for days.
_TICKS = {"segment.ms": "300000", "segment.bytes": "67108864", "retention.bytes": "536870912"}

TOPICS: tuple[Topic, ...] = (
    *(
        Topic(
            ticks(name),
            TICK_PARTITIONS,
            HOUR_MS,
            1,
            "base asset",
            f"collector {name}",
            "detector, recorder",
            _TICKS,
        )
        for name in EXCHANGES
    ),
    Topic(FX_RATES, 1, HOUR_MS, 1, "symbol", "collector", "every detector, without a group", _TICKS),
    Topic(OPPORTUNITIES, EVENT_PARTITIONS, 7 * DAY_MS, 2, "base asset", "detector", "decider"),
    Topic(REJECTIONS, EVENT_PARTITIONS, DAY_MS, 1, "base asset", "detector", "users, dashboard"),
    Topic(DECISIONS, EVENT_PARTITIONS, 30 * DAY_MS, 2, "base asset", "decider", "users"),
    Topic(OUTCOMES, EVENT_PARTITIONS, 30 * DAY_MS, 2, "base asset", "detector", "scorecard, users"),
    Topic(AUDIT, EVENT_PARTITIONS, 7 * DAY_MS, 1, "decision id", "decider", "users"),
    Topic(TICKS_DLQ, 1, 30 * DAY_MS, 2, "original key", "detector", "arb dlq"),
    Topic(dlq(FX_RATES), 1, 30 * DAY_MS, 2, "original key", "detector", "arb dlq"),
    Topic(dlq(OPPORTUNITIES), EVENT_PARTITIONS, 30 * DAY_MS, 2, "original key", "decider", "arb dlq"),
)


def tick_topics(exchanges: Iterable[str] = EXCHANGES) -> list[str]:
    """Tick topics of the named exchanges, in a fixed order: every detector must subscribe to the same list."""
    return [ticks(name) for name in exchanges]
