"""What the detector holds: the latest book of each symbol on each exchange, and the conversion rates. Pure."""

import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from services.detector.plain import DAY_NS, LEAST, MOST, NEVER_NS, NO_ASK, NO_BID
from services.detector.quiet import BookTop, Quote
from shared import metrics, symbols
from shared.errors import UndecodableRecord
from shared.fees import taker_fee
from shared.messages import BookTick, HealthTick, Level, RateTick, levels
from shared.settings import ExchangeSettings, Fee

if TYPE_CHECKING:
    from services.detector.coin import Coin

Key = tuple[str, str]
"""Exchange and symbol."""

NO_RATE = (0.0, float("inf"))
"""Bid and ask where no rate is known: nothing ever crosses by it."""


def exact(levels: list[Level]) -> list[tuple[Decimal, Decimal]]:
    """Levels as decimals with the digits of the wire, which the shortest repr of a float keeps."""
    return [(Decimal(repr(price)), Decimal(repr(size))) for price, size in levels]


def fee_on(settings: ExchangeSettings, symbol: str, now_ns: int) -> Fee | None:
    """The line of an exchange's fee schedule that counts for `symbol` at `now_ns` (UTC)."""
    day = datetime.datetime.fromtimestamp(now_ns / 1e9, datetime.UTC).date()
    return taker_fee(settings.fees, symbol, settings.fee_tier, day)


class OrderTerms(NamedTuple):
    """What an exchange wants of an order, where it says so: step and least size in base, least value in quote."""

    lot_step: Decimal | None = None
    min_size: Decimal | None = None
    min_notional: Decimal | None = None


Tops = tuple[bytes, bytes, float, float]
"""Both sides of a book as text, bids first, and their best prices."""


def tops_of(tick: BookTick) -> Tops:
    """What is read of a book when it comes.

    Raises:
        UndecodableRecord: its best prices are none.
    """
    bids, asks = bytes(tick.bids), bytes(tick.asks)
    try:  # the first price, without looking at what follows: `levels` will
        bid, ask = float(bids[2 : bids.index(b",", 2)]), float(asks[2 : asks.index(b",", 2)])
    except ValueError:  # an empty side, blanks, or no level at all
        return bids, asks, _first(bids, NO_BID), _first(asks, NO_ASK)
    if not (LEAST <= bid <= MOST and LEAST <= ask <= MOST):
        _check(bid)
        _check(ask)
    return bids, asks, bid, ask


def _first(side: bytes, none: float) -> float:
    found = levels(side)
    if not found:
        return none
    _check(found[0][0])  # a price of 0 must not pass for an empty side
    return found[0][0]


def _check(number: float) -> None:
    if not LEAST <= number <= MOST:
        raise UndecodableRecord(f"{number!r} is no price or size: it must be from {LEAST:g} to {MOST:g}")


def _term(text: str | None) -> Decimal | None:
    """A lot step or least order; 0 says that there is none."""
    if text is None:
        return None
    try:
        found = Decimal(text)
    except ArithmeticError:
        raise UndecodableRecord(f"order term {text[:40]!r} is no number") from None
    if not found.is_finite() or found < 0 or (found and not LEAST <= found <= MOST):
        raise UndecodableRecord(f"order term {text[:40]} must be 0, or from {LEAST:g} to {MOST:g}")
    return found or None


class HeldBook(BookTop):
    """The newest book of one symbol on one exchange, what is known of its orders and fees, its levels when asked."""

    __slots__ = (
        "_asks",
        "_bids",
        "_exact_asks",
        "_exact_bids",
        "_read_version",
        "_terms",
        "_terms_text",
        "base",
        "fee_fraction",
        "fee_in_base",
        "key",
        "quote",
        "settings",
        "symbol",
        "terms",
    )

    coin: "Coin"
    fx: "Fx"

    def __init__(self, exchange: str, symbol: str, settings: ExchangeSettings, fx: "Fx") -> None:
        super().__init__(exchange, fx)
        self.symbol = symbol
        self.key: Key = (exchange, symbol)
        self.base, self.quote = symbols.split(symbol)
        self.settings = settings
        self._read_version = -1
        self._bids: list[Level] | None = None
        self._asks: list[Level] | None = None
        self._exact_bids: list[tuple[Decimal, Decimal]] | None = None
        self._exact_asks: list[tuple[Decimal, Decimal]] | None = None
        self.terms = self._terms = OrderTerms()
        self._terms_text: tuple[str | None, ...] = (None, None, None)
        self.fee_fraction: Decimal | None = None
        self.fee_in_base = False

    def _renew(self) -> None:
        """Forget the levels that were read of an earlier book."""
        if self._read_version != self.version:
            self._read_version = self.version
            self._bids = self._asks = None
            self._exact_bids = self._exact_asks = None

    @property
    def bids(self) -> list[Level]:
        """Best first; read when something looks at them."""
        self._renew()
        if self._bids is None:
            self._bids = self._read(self.bids_text)
        return self._bids

    @property
    def asks(self) -> list[Level]:
        """Best first; read when something looks at them."""
        self._renew()
        if self._asks is None:
            self._asks = self._read(self.asks_text)
        return self._asks

    def exact_bids(self) -> list[tuple[Decimal, Decimal]]:
        """As `bids`, in decimals; made once for all gaps that look at it."""
        self._renew()
        if self._exact_bids is None:
            self._exact_bids = exact(self.bids)
        return self._exact_bids

    def exact_asks(self) -> list[tuple[Decimal, Decimal]]:
        """As `asks`, in decimals; made once for all gaps that look at it."""
        self._renew()
        if self._exact_asks is None:
            self._exact_asks = exact(self.asks)
        return self._exact_asks

    def _read(self, side: bytes) -> list[Level]:
        """A side; nothing, and the book is none any more, if there is a level in it that is none."""
        try:
            found = levels(side)
            for price, size in found:
                _check(price)
                _check(size)
            return found
        except UndecodableRecord:
            metrics.TICKS_UNREADABLE.labels(exchange=self.exchange).inc()
            self.state = "gap"
            return []

    def on_health(self, tick: HealthTick, terms: "OrderTerms") -> None:
        self.state = tick.state
        self.alive_ns = tick.alive_ns
        self.touched_ns = tick.received_ns
        if terms != self.terms:  # once a second the same
            self.terms = terms
            self.version += 1

    def terms_of(self, tick: HealthTick) -> "OrderTerms":
        """What a proof of life says of orders.

        Raises:
            UndecodableRecord: a term is no number that could be one.
        """
        texts = (tick.lot_step, tick.min_size, tick.min_notional)
        if texts != self._terms_text:
            self._terms = OrderTerms(*map(_term, texts))
            self._terms_text = texts
        return self._terms

    def order_terms(self, usd: Decimal) -> tuple[Decimal | None, Decimal | None, Decimal | None]:
        """Lot step, least size (base) and least value (USD): the exchange's own, else those of the settings.

        Args:
            usd: USD per unit of the quote currency.
        """
        stated = self.terms
        if stated.lot_step is None:
            return self.settings.lot_step, None, self.settings.min_notional_usd
        least = None if stated.min_notional is None else stated.min_notional * usd
        return stated.lot_step, stated.min_size, least

    def fee(self, now_ns: int) -> Decimal | None:
        """Taker fee of today as a fraction; None if the schedule does not know. Its factors are of today, too."""
        day = now_ns // DAY_NS
        if day != self.fee_day:
            fee = fee_on(self.settings, self.symbol, now_ns)
            self.fee_day, self.fee_fraction = day, None if fee is None else fee.taker_bps / 10_000
            self.fee_known, self.fee_in_base = fee is not None, fee is not None and fee.in_base
            if self.fee_fraction is not None:
                f = float(self.fee_fraction)
                self.sell_factor = 1 - f
                self.buy_factor = 1 + f if not self.fee_in_base else 1 / (1 - f) if f < 1 else float("inf")
        return self.fee_fraction

    def usable(self, now_ns: int, max_silence_ns: int) -> bool:
        """Live, and heard of not too long ago."""
        return self.state == "live" and now_ns - self.alive_ns <= max_silence_ns


MOST_RATE = 1_000.0
"""USD per unit of cash, and its inverse: what lies beyond is no rate."""


def check_rate(tick: RateTick) -> None:
    """A rate that is not live may say 0: there was none yet.

    Raises:
        UndecodableRecord: a price is none.
    """
    for price in (tick.bid, tick.ask):
        if not (1 / MOST_RATE <= price <= MOST_RATE or (price == 0 and tick.state != "live")):
            raise UndecodableRecord(
                f"{tick.symbol}: {price!r} is no rate: it must be from {1 / MOST_RATE:g} to {MOST_RATE:g}"
            )


def pair_crosses(buy: HeldBook, sell: HeldBook) -> bool:
    """Whether a book's bid is above another one's ask, as they stand or both converted to USD. No fees."""
    bid, ask = sell.best_bid, buy.best_ask
    return bid > ask or (sell.fx is not buy.fx and bid * sell.fx.bid > ask * buy.fx.ask)


class Fx(Quote):
    """The conversion of one quote currency to USD in use now, shared by all books that are quoted in it.

    `rate` is None for USD itself and where none is usable; `known` whether there is any at all (a stale one); `version`
    that of `Rates` when it last changed, `since_ns` the moment of that.
    """

    __slots__ = ("known", "looked_ns", "quote", "rate", "since_ns", "version")

    def __init__(self, quote: str) -> None:
        self.quote = quote
        self.rate: RateTick | None = None
        self.known = False
        self.version = 0
        self.since_ns = 0
        self.looked_ns = -1
        self.good_until_ns = NEVER_NS if quote == "USD" else -1
        self.bid, self.ask = (1.0, 1.0) if quote == "USD" else NO_RATE


def _rate_of(book: HeldBook) -> RateTick:
    return RateTick(*book.key, book.sequence, book.alive_ns, book.best_bid, book.best_ask, book.state)


class Rates:
    """Conversion of quote currencies to USD, from the first exchange in the list that has a live rate.

    A coin that others are quoted in (a bridge) has the book of its USD pair as its rate.
    """

    def __init__(self, exchanges: tuple[str, ...], max_silence_ns: int) -> None:
        self._order = exchanges
        self._max_silence_ns = max_silence_ns
        self._held: dict[Key, RateTick] = {}
        self._bridges: dict[Key, HeldBook] = {}
        self._fx: dict[str, Fx] = {}
        self._now_ns = 0
        self.version = 0
        """Rises when a rate in use has changed."""

    def fx(self, quote: str) -> Fx:
        """The conversion of `quote`; its numbers follow `renew`."""
        found = self._fx.get(quote)
        if found is None:
            found = self._fx[quote] = Fx(quote)
            self._renew(found, self._now_ns)
        return found

    def on_rate(self, tick: RateTick, now_ns: int) -> None:
        """Take in a `rate` (see `check_rate`), if it is newer than the one held."""
        key = (tick.exchange, tick.symbol)
        held = self._held.get(key)
        if held is not None and tick.sequence <= held.sequence:
            return
        self._held[key] = tick
        self._now_ns = now_ns
        quote = symbols.base_of(key[1])
        if quote in self._fx:
            self._renew(self._fx[quote], now_ns)

    def hold_bridge(self, book: HeldBook) -> None:
        """A bridge coin's book: its top is the rate of its pair, as it stands at a `renew`, whatever a `rate` says."""
        self._bridges[book.key] = book

    def renew(self, now_ns: int) -> None:
        """Time has moved on: rates may have become too old, or another exchange's be better placed."""
        self._now_ns = now_ns
        for fx in self._fx.values():
            self._renew(fx, now_ns)

    def _renew(self, fx: Fx, now_ns: int) -> None:
        if fx.quote == "USD":
            return
        rate, known = self._find(fx.quote, now_ns)
        bid, ask = NO_RATE if rate is None else (rate.bid, rate.ask)
        if (bid, ask, known) != (fx.bid, fx.ask, fx.known):
            self.version += 1
            fx.version = self.version
            # By a message since the last look, or by time: another one's silence.
            fx.since_ns = rate.received_ns if rate is not None and rate.received_ns > fx.looked_ns else now_ns
        fx.rate, fx.bid, fx.ask, fx.known, fx.looked_ns = rate, bid, ask, known, now_ns
        fx.good_until_ns = -1 if rate is None else rate.received_ns + self._max_silence_ns

    def _find(self, quote: str, now_ns: int) -> tuple[RateTick | None, bool]:
        symbol = f"{quote}-USD"
        known = False
        for exchange in self._order:
            bridge = self._bridges.get((exchange, symbol))
            rate = self._held.get((exchange, symbol)) if bridge is None else _rate_of(bridge)
            if rate is None or not 0 < rate.bid <= rate.ask < NO_ASK:
                continue
            known = True
            if rate.state == "live" and now_ns - rate.received_ns <= self._max_silence_ns:
                return rate, True
        return None, known
