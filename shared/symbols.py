"""Canonical symbols: `BASE-QUOTE`, upper case, such as `BTC-USDT`.

A native name (`BTCUSDT`, `BTC/USD`) becomes canonical only by a table, never by cutting strings: quote
assets vary in length and `BTCUSDT` has no separator. The other direction is a plain join.
"""

import re

CASH = ("USD", "USDT", "USDC")
"""Quote assets that are converted to the numeraire by `fx-rates`; USD is the numeraire."""

_CANONICAL = re.compile(r"[A-Z0-9]{1,15}-[A-Z0-9]{2,10}")


def is_canonical(symbol: str) -> bool:
    """Whether `symbol` looks like `BTC-USDT`."""
    return _CANONICAL.fullmatch(symbol) is not None


def split(symbol: str) -> tuple[str, str]:
    """Base and quote of a canonical symbol.

    Raises:
        ValueError: it is not `BASE-QUOTE`.
    """
    base, dash, quote = symbol.partition("-")
    if not (base and dash and quote):
        raise ValueError(f"{symbol!r} is not a symbol such as BTC-USDT")
    return base, quote


def base_of(symbol: str) -> str:
    """Base asset: the key of every message about this symbol."""
    return symbol.partition("-")[0]


def is_rate(symbol: str) -> bool:
    """Whether the pair converts one kind of cash into another (`USDT-USD`): it belongs to `fx-rates`."""
    base, _, quote = symbol.partition("-")
    return base in CASH and quote in CASH
