"""Wiring of the decider: settings, models, consumer, publisher, run."""

import asyncio
import time

import structlog

from services.decider.decide import Decider, Models, Newest
from services.decider.service import GROUP, TAIL_MS, Service
from shared import cluster, kafka, process, topics
from shared.settings import Settings

log = structlog.get_logger()


def main(settings: Settings) -> None:
    """Decide until SIGTERM or SIGINT.

    Raises:
        BrokerUnavailable: exit 3. TopicMismatch: a topic is missing: exit 2.
    """
    cluster.require_topics(settings.kafka, [topics.OPPORTUNITIES, topics.DECISIONS, topics.dlq(topics.OPPORTUNITIES)])
    publisher = kafka.Publisher(kafka.event_producer(settings.kafka, "decider"), drop_when_full=False)
    try:
        process.run_async(lambda stop: _run(settings, publisher, stop))
    finally:
        publisher.close()


async def _run(settings: Settings, publisher: kafka.Publisher, stop: asyncio.Event) -> None:
    models = Models(settings)
    if not models.any():
        variables = ", ".join(provider.api_key_env for provider in settings.providers.values())
        log.warning("no provider has a key: decisions rest on rules only", set_one_of=variables)
    newest = Newest()
    service = Service(Decider(settings, models, newest), newest, publisher)
    consumer = kafka.ConsumerThread(
        kafka.event_consumer(settings.kafka, "decider", GROUP),
        [topics.OPPORTUNITIES],
        high_water=200,
        auto_release=False,
        on_assigned=lambda partitions: service.on_assigned(
            partitions,
            lambda: kafka.read_range(
                kafka.reader(settings.kafka, "decider"), topics.DECISIONS, int(time.time() * 1000) - TAIL_MS
            ),
        ),
        on_revoked=service.on_revoked,
    )
    try:
        await service.run(consumer, stop)
    finally:
        await models.close()
