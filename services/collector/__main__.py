"""Wiring of the collector: settings, exchange, publisher, run."""

import asyncio

from services.collector.exchanges import EXCHANGES, exchange_named
from services.collector.instruments import shard as share_of
from services.collector.service import Collector
from shared import cluster, kafka, process, symbols, topics
from shared.errors import SettingsError
from shared.health import Health
from shared.kafka.watch import Pulse
from shared.settings import Settings, cache_dir


def health() -> Health:
    """What a collector says of itself."""
    return Health("collector", ("kafka", "books"))


def main(settings: Settings, exchange: str, shard: tuple[int, int], health: Health) -> None:
    """Collect one exchange until SIGTERM or SIGINT.

    Args:
        shard: (i, n): this process is number i (from 1) of n and follows its part of the symbols.

    Raises:
        UnknownExchange, SettingsError, UnknownSymbol, SubscriptionRefused: exit 2.
        BrokerUnavailable: exit 3.
    """
    configured = settings.exchange(exchange)
    if not configured.enabled:
        raise SettingsError(f"exchanges.{exchange}.enabled is false: nothing to collect")
    protocol = exchange_named(exchange)
    if protocol.depths and configured.book_depth not in protocol.depths:
        allowed = ", ".join(str(depth) for depth in protocol.depths)
        raise SettingsError(f"exchanges.{exchange}.book_depth: {configured.book_depth}, allowed are {allowed}")
    if configured.second is not None and configured.second.protocol not in EXCHANGES:
        raise SettingsError(
            f"exchanges.{exchange}.second.protocol: {configured.second.protocol!r}, allowed are {', '.join(EXCHANGES)}"
        )
    mine = share_of(configured.symbols, *shard)
    wanted = {topics.FX_RATES if symbols.is_rate(symbol) else topics.ticks(exchange) for symbol in mine}
    if not wanted:
        which = "" if shard == (1, 1) else f" for shard {shard[0]}/{shard[1]} of {len(configured.symbols)} symbols"
        raise SettingsError(f"exchanges.{exchange}.symbols is empty{which}: nothing to collect")
    cluster.require_topics(settings.kafka, sorted(wanted))
    client = f"collector-{exchange}" if shard == (1, 1) else f"collector-{exchange}-{shard[0]}"
    publisher = kafka.Publisher(kafka.tick_producer(settings.kafka, client), drop_when_full=True)
    collector = Collector(
        exchange, configured, settings.collector, publisher, cache=cache_dir(), shard=shard, protocol=protocol
    )
    health.watch("books", collector.books)

    async def run(stop: asyncio.Event) -> None:
        async with health.beating():
            await collector.run(stop)

    try:
        with Pulse(publisher.brokers, publisher.trouble) as pulse:
            health.watch("kafka", pulse.look)
            process.run_async(run)
    finally:
        publisher.close(5.0)
