"""For users' own programs: what Arbiter publishes, as typed messages, by `async for`.

from shared.client import decisions

async for decision in decisions("127.0.0.1:29092"):
    print(decision.base, decision.outcome, decision.reason)
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from typing import TypeVar

import structlog

from shared import cluster, kafka, topics
from shared.errors import UndecodableRecord
from shared.messages import Decision, Message, Opportunity, Rejection, decode
from shared.settings import STATISTICS, KafkaSettings

log = structlog.get_logger()

M = TypeVar("M", bound=Message)

_REMEMBERED = 100_000
"""Decision ids kept to recognise a duplicate: days of decisions in a few MB."""


async def decisions(
    servers: str,
    *,
    since_s: float | None = None,
    group: str | None = None,
    options: Mapping[str, str | int | float | bool] | None = None,
) -> AsyncIterator[Decision]:
    """Decisions as they are published, each id once.

    Args:
        servers: Kafka's address, `host:port` or several with commas.
        since_s: Begin with those of the last so many seconds; None: from now on. Without a group only.
        group: Share the work with other programs of the same group and resume where it stopped, at least
            once: an offset is committed after the loop's body has asked for the next decision. None: every
            decision comes here.
        options: librdkafka's own settings, for SASL and TLS.

    Raises:
        BrokerUnavailable: Kafka cannot be reached. AccessRefused: it does not let us in, or not read.
        SettingsError: `servers` or an option is impossible.
        TopicMismatch: the topic does not exist.
    """
    seen: OrderedDict[str, None] = OrderedDict()
    async for decision in _follow(topics.DECISIONS, Decision, servers, since_s, group, options):
        if decision.decision_id in seen:
            continue
        seen[decision.decision_id] = None
        if len(seen) > _REMEMBERED:
            seen.popitem(last=False)
        yield decision


async def opportunities(
    servers: str,
    *,
    since_s: float | None = None,
    group: str | None = None,
    options: Mapping[str, str | int | float | bool] | None = None,
) -> AsyncIterator[Opportunity]:
    """Opportunities in every phase (`opened`, `updated`, `closed`); arguments and errors as for `decisions`."""
    async for message in _follow(topics.OPPORTUNITIES, Opportunity, servers, since_s, group, options):
        yield message


async def rejections(
    servers: str,
    *,
    since_s: float | None = None,
    group: str | None = None,
    options: Mapping[str, str | int | float | bool] | None = None,
) -> AsyncIterator[Rejection]:
    """Gross crossings that are no opportunity, and why; arguments and errors as for `decisions`."""
    async for message in _follow(topics.REJECTIONS, Rejection, servers, since_s, group, options):
        yield message


async def _follow(
    topic: str,
    model: type[M],
    servers: str,
    since_s: float | None,
    group: str | None,
    options: Mapping[str, str | int | float | bool] | None,
) -> AsyncIterator[M]:
    settings = KafkaSettings.of(servers, options or {})
    await asyncio.to_thread(cluster.require_topics, settings, [topic])  # says why, where it is not to be had
    start = kafka.ConsumerThread.START_NOW if since_s is None else int((time.time() - since_s) * 1000)
    config = kafka.event_consumer(settings, "client", group) if group else kafka.reader(settings, "client")
    for ours in (STATISTICS, "stats_cb"):  # a user's program has metrics of its own
        config.pop(ours, None)
    async with kafka.ConsumerThread(config, [topic], since_ms=None if group else start) as consumer:
        async for batch in consumer.batches():
            for record in batch:
                try:
                    message = decode(record.value)
                except UndecodableRecord as error:
                    log.warning(
                        "skipped", topic=topic, partition=record.partition, offset=record.offset, why=str(error)
                    )
                    continue
                if isinstance(message, model):
                    yield message
                if group:
                    consumer.store(record.topic, record.partition, record.offset + 1)
