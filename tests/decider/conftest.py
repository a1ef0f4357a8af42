"""An opportunity as the detector publishes it, and settings with a model server of the test's own."""

from collections.abc import Callable
from typing import Any

import pytest

from shared import settings
from shared.messages import Opportunity
from shared.settings import Settings

NOW_NS = 1_795_000_000_000_000_000


@pytest.fixture
def now_ns() -> int:
    return NOW_NS


@pytest.fixture
def configured() -> Settings:
    return settings.load()


@pytest.fixture
def opportunity() -> Callable[..., Opportunity]:
    """`opportunity(net_bps="30")`: open now, fresh, profitable."""

    def make(**changes: Any) -> Opportunity:
        leg = {
            "vwap": "100",
            "limit": "100",
            "fee_bps": "10",
            "levels": 1,
            "alive_age_ms": 20,
            "book_age_ms": 50,
            "bids": [[99.9, 1]],
            "asks": [[100.0, 1]],
        }
        values = {
            "opportunity_id": "a" * 32,
            "phase": "opened",
            "base": "BTC",
            "buy": {"exchange": "binance", "symbol": "BTC-USDT", **leg},
            "sell": {"exchange": "kraken", "symbol": "BTC-USD", **leg},
            "rates": [],
            "size": "0.5",
            "notional_usd": "30000",
            "profit_usd": "90",
            "naive_bps": "120",
            "net_bps": "30",
            "closed_loop_bps": "25",
            "depth_limited": False,
            "opened_ns": NOW_NS - 150_000_000,
            "detected_ns": NOW_NS - 20_000_000,
            "expires_ns": NOW_NS + 5_000_000_000,
            "peak_net_bps": "30",
            **changes,
        }
        return Opportunity.model_validate(values)

    return make
