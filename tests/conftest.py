"""Fixtures for all tests: one real broker per session, started when the first test asks for it; recorded ticks."""

import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from services.cli.broker import start_broker
from services.simulator.market import BookEvent, Market
from services.simulator.truth import Truth
from shared import messages, topics
from shared import settings as configuration
from shared.settings import KafkaSettings
from shared.symbols import base_of, is_rate

# No deadline for an example: machines are noisy, and a timed test says nothing about the code. The examples are the same
# in every run, so that a change is judged by what it changes; `make fuzz` looks at others.
settings.register_profile("arbiter", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.register_profile("fuzz", settings.get_profile("arbiter"), derandomize=False, print_blob=True)
settings.load_profile("arbiter")


@pytest.fixture(scope="session")
def broker() -> Iterator[KafkaSettings]:
    """How to reach a real Kafka with all topics. ARB_TEST_BROKER forces one of external, jars, docker, mock."""
    forced = os.environ.get("ARB_TEST_BROKER")
    with start_broker(forced, quick=True) as running:
        if running.kind == "mock" and forced != "mock":
            pytest.skip(f"no real Kafka can run here: {'; '.join(running.refused)}")
        yield running.kafka


@dataclass(frozen=True)
class Recording:
    """Ticks of a generated market, in the order of the generator.

    Attributes:
        ticks: (topic, key, value, received_ns).
        gaps: What is really there (`services/simulator/truth.py`), those still open at the end included.
        since_ns, until_ns: All of it lies between, the second exclusive.
    """

    ticks: list[tuple[str, str, bytes, int]]
    gaps: list[dict[str, Any]]
    since_ns: int
    until_ns: int


TEN = ("BTC", "ETH", "SOL", "XRP", "ADA", "DOGE", "LTC", "DOT", "LINK", "AVAX")


@pytest.fixture(scope="session")
def generated() -> Callable[..., Recording]:
    """`generated(seed, seconds, since_ns)`: ten coins on five exchanges, one of them also quoted in BTC."""

    def make(
        seed: int, seconds: float, since_ns: int, rate: float = 4.0, coins: Sequence[str] = TEN, bridged: bool = True
    ) -> Recording:
        loaded = configuration.load()
        exchanges = {}
        for name, exchange in loaded.exchanges.items():
            quote = "USD" if name in ("coinbase", "kraken") else "USDT"
            symbols = [f"{coin}-{quote}" for coin in coins] + (
                ["ETH-BTC"] if bridged and name in ("binance", "okx") else []
            )
            rates = [symbol for symbol in exchange.symbols if is_rate(symbol)]
            exchanges[name] = exchange.model_copy(update={"symbols": (*symbols, *rates)})
        settings = loaded.model_copy(update={"exchanges": exchanges})
        market = Market(settings, tuple(exchanges), seed, rate)
        truth = Truth(settings, market, datetime.datetime.fromtimestamp(since_ns / 1e9, datetime.UTC).date())
        ticks: list[tuple[str, str, bytes, int]] = []
        gaps: list[dict[str, Any]] = []
        sequences = dict.fromkeys(market.books, since_ns // 1_000_000)

        def publish(exchange: str, symbol: str, at_ns: int, kind: str) -> None:
            book, sequence, cash = market.books[(exchange, symbol)], sequences[(exchange, symbol)] + 1, is_rate(symbol)
            sequences[(exchange, symbol)] = sequence
            about = (exchange, symbol, sequence, at_ns)
            bids, asks = (
                [(book.price(price), book.size(size)) for price, size in book.top(side, 10)]
                for side in ("bids", "asks")
            )
            if cash:
                value = messages.rate_value(*about, None, bids[0][0], asks[0][0], "live")
            elif kind == "health":
                value = messages.health_value(*about, "live", None, since_ns, at_ns)
            else:
                value = messages.book_value(*about, None, bids, asks)
            key = symbol if cash else base_of(symbol)
            ticks.append((topics.FX_RATES if cash else topics.ticks(exchange), key, value, at_ns))

        for key in market.books:
            publish(*key, since_ns, "book")
        alive_ns = 1_000_000_000
        for at_ns, event in market.step(int(seconds * 1e9)):
            while at_ns >= alive_ns:
                for key in market.books:
                    publish(*key, since_ns + alive_ns, "health")
                alive_ns += 1_000_000_000
            if isinstance(event, BookEvent):
                publish(event.exchange, event.symbol, since_ns + at_ns, "book")
                if not is_rate(event.symbol):
                    gaps += truth.look(base_of(event.symbol), since_ns + at_ns)
        until_ns = since_ns + int(seconds * 1e9) + 1
        return Recording(ticks, gaps + truth.still_open(until_ns), since_ns, until_ns)

    return make


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Integration tests first: they take longest, and wait more than they work."""
    items.sort(key=lambda item: "integration" not in item.path.parts)
