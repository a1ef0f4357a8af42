"""A generated market: correlated books on several exchanges, with gaps that it knows. Pure and seeded.

One fair value per coin wanders; every exchange quotes around it on its own price grid, in its own quote currency.
At times one exchange's books of one coin are pushed away from the fair value for a while: far enough to pay after
fees (a gap), not far enough (a decoy), or only for a moment (a flicker). Nothing here reads a clock: `step` is told
how much time has passed, and the same seed gives the same events at the same moments.
"""

import heapq
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import count
from typing import Literal, NamedTuple

from shared import symbols
from shared.settings import Settings

SECOND_NS = 1_000_000_000

LEVELS = 30
"""Levels that every book has on each side."""

START_USD = {"BTC": 65_000.0, "ETH": 3_200.0, "SOL": 150.0, "USDT": 0.9995, "USDC": 1.0}
STEP_BPS = {"USDT": 0.02, "USDC": 0.02}
"""Standard deviation of a fair value's move in 100 ms; 0.25 bps where nothing is said."""

EXCHANGE_NOISE_BPS = 0.6
"""An exchange's own wobble around the fair value."""

CLEAR_BPS = (-10.0, 25.0)
"""No push brings any pair's edge into this range: what is a gap and what is not must be beyond doubt."""

MOST_NET_BPS = 150.0


class BookEvent(NamedTuple):
    """Changes of one book: price in ticks and size in lots, absolute, 0 removes."""

    exchange: str
    symbol: str
    bids: list[tuple[int, int]]
    asks: list[tuple[int, int]]


class TradeEvent(NamedTuple):
    """One trade at the touch."""

    exchange: str
    symbol: str
    price: int
    size: int
    taker_side: Literal["buy", "sell"]
    trade_id: int


MarketEvent = BookEvent | TradeEvent


@dataclass(slots=True)
class SimBook:
    """One book in integers: price in units of 10**-price_digits, size in units of 10**-size_digits."""

    exchange: str
    symbol: str
    price_digits: int
    size_digits: int
    grid: int
    half_spread_bps: float
    lot_usd: float
    bids: dict[int, int] = field(default_factory=dict)
    asks: dict[int, int] = field(default_factory=dict)
    center: int = 0
    last_trade_id: int = 0

    def top(self, side: str, levels: int) -> list[tuple[int, int]]:
        """The best `levels` of "bids" or "asks", best first."""
        if side == "bids":
            return [(price, self.bids[price]) for price in sorted(self.bids, reverse=True)[:levels]]
        return [(price, self.asks[price]) for price in sorted(self.asks)[:levels]]

    def price(self, ticks: int) -> float:
        return float(ticks / 10**self.price_digits)

    def size(self, lots: int) -> float:
        return float(lots / 10**self.size_digits)

    def price_text(self, ticks: int) -> str:
        """With all its digits: `65000.10`."""
        return f"{Decimal(ticks).scaleb(-self.price_digits):f}"

    def size_text(self, lots: int) -> str:
        return f"{Decimal(lots).scaleb(-self.size_digits):f}"


class Push(NamedTuple):
    """One exchange's books of one coin are away from the fair value."""

    exchange: str
    base: str
    bps: float
    seconds: float
    kind: Literal["gap", "decoy", "flicker"]


class Market:
    """All books, driven by `step`.

    Args:
        settings: Exchanges, symbols and fees (a push is planned by the fees).
        served: Exchanges to generate.
        rate: Updates a second of each book.
        pace: How many times more often than every three to five seconds a push is tried.
    """

    def __init__(self, settings: Settings, served: tuple[str, ...], seed: int, rate: float, pace: float = 1.0) -> None:
        self._random = random.Random(seed)
        self._rate = rate
        self._pace = pace
        self._enabled = {name: ex for name, ex in settings.enabled_exchanges().items() if name in served}
        self._order = count()
        self._due: list[tuple[int, int, str, object]] = []
        self.books: dict[tuple[str, str], SimBook] = {}
        self._fair: dict[str, float] = {}
        self._pushed: dict[tuple[str, str], float] = {}
        for name, exchange in self._enabled.items():
            for symbol in exchange.symbols:
                self._add_book(name, symbol)
        self._fees = {
            name: max((float(fee.taker_bps) for fee in exchange.fees if fee.symbol is None), default=0.0)
            for name, exchange in self._enabled.items()
        }
        for asset in sorted(self._fair):
            self._plan(100_000_000, "fair", asset)
        for key in sorted(self.books):
            self._plan(int(self._random.random() * SECOND_NS / rate), "quote", key)
            self._plan(int(self._random.random() * SECOND_NS), "trade", key)
        self._plan(int(self._random.uniform(1.5, 2.5) * SECOND_NS), "push", None)

    def _add_book(self, exchange: str, symbol: str) -> None:
        base, quote = symbols.split(symbol)
        for asset in (base, quote):
            if asset not in self._fair:
                guess = 10 ** (zlib.crc32(asset.encode()) % 4 - 1) * 1.7  # any coin: somewhere from 0.17 to 170 USD
                self._fair[asset] = 1.0 if asset == "USD" else START_USD.get(asset, guess)
        rate = symbols.is_rate(symbol)
        value = self._fair[base] / self._fair[quote]
        # A grid of about 0.4 bps, with as many digits as that takes; cash pairs have four to five.
        digits = 5 if rate else max(1, 5 - len(str(int(value))) + 1)
        unit = 10**digits
        grid = 1 if rate else max(1, round(value * unit * 0.4e-4))
        spread = 0.3 if rate else {"binance": 0.4, "coinbase": 0.8}.get(exchange, 1.2)
        book = SimBook(exchange, symbol, digits, 8, grid, spread, 200_000.0 if rate else 3_000.0)
        self.books[(exchange, symbol)] = book
        book.last_trade_id = 1_000_000
        self._requote(book)

    # ------------------------------------------------ time

    def _plan(self, at_ns: int, what: str, about: object) -> None:
        heapq.heappush(self._due, (at_ns, next(self._order), what, about))

    def step(self, elapsed_ns: int) -> Iterator[tuple[int, MarketEvent]]:
        """Everything that happens up to `elapsed_ns` since the start, with its moment, in order."""
        while self._due and self._due[0][0] <= elapsed_ns:
            at_ns, _, what, about = heapq.heappop(self._due)
            for event in self._happen(at_ns, what, about):
                yield at_ns, event

    def next_ns(self) -> int:
        """When the next thing is due, in ns since the start."""
        return self._due[0][0]

    def _happen(self, at_ns: int, what: str, about: object) -> Iterator[MarketEvent]:
        draw = self._random
        if what == "fair":
            asset = str(about)
            if asset != "USD":
                self._fair[asset] *= 1 + draw.gauss(0, STEP_BPS.get(asset, 0.25)) / 10_000
            self._plan(at_ns + 100_000_000, "fair", asset)
        elif what == "quote":
            book = self.books[about]  # type: ignore[index]  # the heap holds what `_plan` was given
            self._plan(at_ns + int(draw.uniform(0.5, 1.5) * SECOND_NS / self._rate), "quote", about)
            yield from self._requote(book)
        elif what == "trade":
            book = self.books[about]  # type: ignore[index]
            self._plan(at_ns + int(draw.expovariate(1.5) * SECOND_NS), "trade", about)
            yield self._trade(book)
        elif what == "push":
            self._plan(at_ns + int(draw.uniform(3.0, 5.0) * SECOND_NS / self._pace), "push", None)
            push = self._choose()
            if push is not None:
                self._pushed[(push.exchange, push.base)] = push.bps
                self._plan(at_ns + int(push.seconds * SECOND_NS), "release", push)
                yield from self._requote_all(push)
        else:
            assert isinstance(about, Push)
            del self._pushed[(about.exchange, about.base)]
            yield from self._requote_all(about)

    # ------------------------------------------------ pushes

    def _choose(self) -> Push | None:
        """A push whose every edge is clearly above or clearly below what pays; None if the coin is busy."""
        draw = self._random
        kind: Literal["gap", "decoy", "flicker"] = draw.choices(("gap", "decoy", "flicker"), (0.6, 0.25, 0.15))[0]
        places = sorted({(ex, symbols.base_of(sym)) for ex, sym in self.books if not symbols.is_rate(sym)})
        exchange, base = draw.choice(places)
        others = sorted({ex for ex, b in places if b == base and ex != exchange})
        seconds = draw.uniform(0.8, 4.0) if kind != "flicker" else draw.uniform(0.04, 0.06)
        if not others or any(pushed_base == base for _, pushed_base in self._pushed):
            return None
        for _ in range(200):
            bps = draw.uniform(20, 60) if kind == "decoy" else draw.uniform(80, 300)
            edges = [bps - self._fees[exchange] - self._fees[other] - 4.0 for other in others]
            clear = all(edge <= CLEAR_BPS[0] or CLEAR_BPS[1] <= edge <= MOST_NET_BPS for edge in edges)
            pays = any(edge >= CLEAR_BPS[1] for edge in edges)
            if clear and pays == (kind != "decoy"):
                return Push(exchange, base, bps * draw.choice((-1, 1)), seconds, kind)
        return None

    def _requote_all(self, push: Push) -> Iterator[MarketEvent]:
        for (exchange, symbol), book in sorted(self.books.items()):
            if exchange == push.exchange and symbols.base_of(symbol) == push.base and not symbols.is_rate(symbol):
                yield from self._requote(book)

    # ------------------------------------------------ books

    def _requote(self, book: SimBook) -> list[MarketEvent]:
        """Move the ladder to where the value is now; sizes of some levels change anyway."""
        draw = self._random
        base, quote = symbols.split(book.symbol)
        noise = 0.1 if symbols.is_rate(book.symbol) else EXCHANGE_NOISE_BPS
        away_bps = draw.gauss(0, noise) + self._pushed.get((book.exchange, base), 0.0)
        value = self._fair[base] / self._fair[quote] * (1 + away_bps / 10_000) * 10**book.price_digits
        half = max(value * book.half_spread_bps / 10_000, book.grid * 0.51)
        best_bid = int((value - half) // book.grid)
        best_ask = max(int((value + half) // book.grid) + 1, best_bid + 1)
        new_bids = self._ladder(book, book.bids, range(best_bid, best_bid - LEVELS, -1), value)
        new_asks = self._ladder(book, book.asks, range(best_ask, best_ask + LEVELS), value)
        bids, asks = _changes(book.bids, new_bids), _changes(book.asks, new_asks)
        book.bids, book.asks = new_bids, new_asks
        return [BookEvent(book.exchange, book.symbol, bids, asks)] if bids or asks else []

    def _ladder(self, book: SimBook, old: dict[int, int], rungs: range, value: float) -> dict[int, int]:
        draw = self._random
        unit_price = value / 10**book.price_digits
        ladder = {}
        for depth, rung in enumerate(rungs):
            price = rung * book.grid
            size = old.get(price)
            if size is None or draw.random() < 0.06:
                usd = book.lot_usd * draw.lognormvariate(0, 0.6) * (1 + depth / 6)
                size = max(1, int(usd / unit_price * 10**book.size_digits))
            ladder[price] = size
        return ladder

    def _trade(self, book: SimBook) -> TradeEvent:
        draw = self._random
        side: Literal["buy", "sell"] = draw.choice(("buy", "sell"))
        price = min(book.asks) if side == "buy" else max(book.bids)
        most = (book.asks if side == "buy" else book.bids)[price]
        book.last_trade_id += 1
        return TradeEvent(
            book.exchange, book.symbol, price, max(1, int(most * draw.uniform(0.01, 0.4))), side, book.last_trade_id
        )


def _changes(old: dict[int, int], new: dict[int, int]) -> list[tuple[int, int]]:
    gone = [(price, 0) for price in old if price not in new]
    return gone + [(price, size) for price, size in new.items() if old.get(price) != size]
