"""What the detector holds: the latest book of each symbol on each exchange, and the conversion rates. Pure."""

import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from services.detector.context import Volatility
from shared import symbols
from shared.fees import taker_fee_bps
from shared.messages import Level
from shared.settings import ExchangeSettings

Key = tuple[str, str]
"""Exchange and symbol."""


def exact(levels: list[Level]) -> list[tuple[Decimal, Decimal]]:
    """Levels as decimals with the digits of the wire, which the shortest repr of a float keeps."""
    return [(Decimal(repr(price)), Decimal(repr(size))) for price, size in levels]


class HeldBook:
    """The newest book of one symbol on one exchange.

    `best_bid` and `best_ask` are 0 and infinity while there is no book, so that nothing ever crosses with it.
    """

    __slots__ = (
        "alive_ns",
        "asks",
        "base",
        "best_ask",
        "best_bid",
        "bids",
        "exchange",
        "fee_day",
        "fee_fraction",
        "key",
        "quote",
        "received_ns",
        "sequence",
        "settings",
        "state",
        "symbol",
        "version",
        "volatility",
    )

    def __init__(self, exchange: str, symbol: str, settings: ExchangeSettings) -> None:
        self.exchange = exchange
        self.symbol = symbol
        self.key: Key = (exchange, symbol)
        self.base, self.quote = symbols.split(symbol)
        self.settings = settings
        self.sequence = -1
        self.version = 0
        self.state = "syncing"
        self.alive_ns = 0
        self.received_ns = 0
        self.bids: list[Level] = []
        self.asks: list[Level] = []
        self.best_bid = 0.0
        self.best_ask = float("inf")
        self.volatility = Volatility()
        self.fee_day = -1
        self.fee_fraction: Decimal | None = None

    def on_book(self, message: dict[str, Any]) -> None:
        """A book is itself a proof of life, and only live books are published."""
        bids, asks = message["bids"], message["asks"]
        # Adding 0.0 refuses a text here, where the error still points to the record that brought it.
        best_bid, best_ask = (bids[0][0] + 0.0, asks[0][0] + 0.0) if bids and asks else (0.0, float("inf"))
        self.version += 1
        self.bids, self.asks, self.best_bid, self.best_ask = bids, asks, best_bid, best_ask
        self.received_ns = self.alive_ns = message["received_ns"]
        self.state = "live"
        if bids and asks:
            self.volatility.add(self.received_ns, (best_bid + best_ask) / 2)

    def on_health(self, message: dict[str, Any]) -> None:
        self.state = message["state"]
        self.alive_ns = message["alive_ns"]

    def fee(self, now_ns: int) -> Decimal | None:
        """Taker fee of today as a fraction; None if the schedule does not know."""
        day = now_ns // 86_400_000_000_000
        if day != self.fee_day:
            date = datetime.datetime.fromtimestamp(now_ns / 1e9, datetime.UTC).date()
            bps = taker_fee_bps(self.settings.fees, self.symbol, date)
            self.fee_day, self.fee_fraction = day, None if bps is None else bps / 10_000
        return self.fee_fraction

    def usable(self, now_ns: int, max_silence_ns: int) -> bool:
        """Live, and heard of not too long ago."""
        return self.state == "live" and now_ns - self.alive_ns <= max_silence_ns


class HeldRate(NamedTuple):
    """The newest rate of one pair on one exchange."""

    exchange: str
    symbol: str
    sequence: int
    received_ns: int
    bid: float
    ask: float
    state: str


class Rates:
    """Conversion of quote currencies to USD, from the first exchange in the list that has a live rate.

    Raises nothing: a missing rate is None and a verdict of its own.
    """

    def __init__(self, exchanges: tuple[str, ...], max_silence_ns: int) -> None:
        self._order = exchanges
        self._max_silence_ns = max_silence_ns
        self._held: dict[Key, HeldRate] = {}
        self.version = 0

    def on_rate(self, message: dict[str, Any]) -> bool:
        """Take in a `rate`; whether it was newer than the one held."""
        key = (message["exchange"], message["symbol"])
        held = self._held.get(key)
        if held is not None and message["sequence"] <= held.sequence:
            return False
        new = HeldRate(
            *key, message["sequence"], message["received_ns"], message["bid"], message["ask"], message["state"]
        )
        self._held[key] = new
        if held is None or (held.bid, held.ask, held.state) != (new.bid, new.ask, new.state):
            self.version += 1
        return True

    def find(self, quote: str, now_ns: int) -> tuple[HeldRate | None, bool]:
        """The usable rate of `quote` in USD, and whether there was any at all (a stale one)."""
        symbol = f"{quote}-USD"
        known = False
        for exchange in self._order:
            rate = self._held.get((exchange, symbol))
            if rate is None or not 0 < rate.bid <= rate.ask:
                continue
            known = True
            if rate.state == "live" and now_ns - rate.received_ns <= self._max_silence_ns:
                return rate, True
        return None, known
