"""Wiring of the collector: settings, exchange, publisher, run."""

from services.collector.exchanges import exchange_named
from services.collector.service import Collector
from shared import cluster, kafka, process, symbols, topics
from shared.errors import SettingsError
from shared.settings import Settings


def main(settings: Settings, exchange: str) -> None:
    """Collect one exchange until SIGTERM or SIGINT.

    Raises:
        UnknownExchange, SettingsError, UnknownSymbol, SubscriptionRefused: exit 2.
        BrokerUnavailable: exit 3.
    """
    chosen = exchange_named(exchange)
    configured = settings.exchange(exchange)
    wanted = {topics.FX_RATES if symbols.is_rate(symbol) else topics.ticks(exchange) for symbol in configured.symbols}
    if not wanted:
        raise SettingsError(f"exchanges.{exchange}.symbols is empty: nothing to collect")
    cluster.require_topics(settings.kafka, sorted(wanted))
    publisher = kafka.Publisher(kafka.tick_producer(settings.kafka, f"collector-{exchange}"), drop_when_full=True)
    collector = Collector(chosen, configured, settings.collector, publisher)
    try:
        process.run_async(collector.run)
    finally:
        publisher.close(5.0)
