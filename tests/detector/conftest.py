"""Ticks as the collectors write them, with numbers that a test can compute by hand."""

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from shared import settings
from shared.settings import Settings

Tick = Callable[..., dict[str, Any]]


@pytest.fixture
def configured() -> Settings:
    """10 bps everywhere, no lots or least orders, 100 ms of persistence: hand-computable."""
    loaded = settings.load()
    fee = settings.Fee(valid_from="2020-01-01", taker_bps="10")
    exchanges = {
        name: exchange.model_copy(update={"fees": (fee,), "min_notional_usd": 0, "lot_step": exchange.lot_step})
        for name, exchange in loaded.exchanges.items()
    }
    return loaded.model_copy(update={"exchanges": exchanges})


@pytest.fixture
def tick() -> Tick:
    """`tick("binance", "BTC-USD", 100, 101, at_ms)`: a book with one level a side, sequences rising."""
    sequences = count(1)

    def make(exchange: str, symbol: str, bid: float, ask: float, at_ms: int, size: float = 1.0) -> dict[str, Any]:
        return {
            "kind": "book",
            "v": 1,
            "exchange": exchange,
            "symbol": symbol,
            "sequence": next(sequences),
            "received_ns": at_ms * 1_000_000,
            "exchange_ns": None,
            "bids": [[bid, size]],
            "asks": [[ask, size]],
        }

    return make
