"""Messages that several tests begin with."""

from typing import Any

from shared.messages import Opportunity

MS = 1_000_000


def opportunity(now_ns: int, **changes: Any) -> Opportunity:
    """Open, fresh and profitable at that moment, as the detector publishes it; its id is always the same."""
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
        "opened_ns": now_ns - 150 * MS,
        "detected_ns": now_ns - 20 * MS,
        "expires_ns": now_ns + 5_000 * MS,
        "peak_net_bps": "30",
        **changes,
    }
    return Opportunity.model_validate(values)
