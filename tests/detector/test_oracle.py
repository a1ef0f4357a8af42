"""The engine against a naive model of it: every pair of books and every cycle judged exactly, at every look.

The engine compares price lists before it looks at books, decides in floats what is clear, and looks again only at what
a heap says is due. The model does none of that. After each strike of the timer both must agree on everything, and after
each message on what its book is part of.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from itertools import count
from typing import Any, NamedTuple

import orjson
import pytest

from services.detector import cycle, edge, lifecycle
from services.detector.engine import TIMER_NS, Engine, Event
from shared import settings as configuration
from shared.messages import DelayedEdge, Opportunity, Reason, Rejection
from shared.settings import Settings
from shared.symbols import CASH, base_of, split
from tests.detector.test_engine import MS, T0, Run, as_tick, health, rate

Key = tuple[str, str]
Levels = tuple[tuple[Decimal, Decimal], ...]
Verdict = Opportunity | Rejection

EXCHANGES = ("binance", "coinbase", "kraken")
DOLLARS = ("BTC-USD", "ETH-USD")
MIXED = ("BTC-USD", "BTC-USDT", "ETH-USD", "ETH-USDT")
ROUTES = ("BTC-USD", "ETH-USD", "ETH-BTC")
ROUTES_IN_USDT = ("BTC-USDT", "ETH-USDT", "ETH-BTC")
SEEDS = 3
PRICES = {"BTC-USD": 1000.0, "BTC-USDT": 1000.0, "ETH-USD": 50.0, "ETH-USDT": 50.0, "ETH-BTC": 0.05}

SMALL_EDGE = {Reason.FEES, Reason.CONVERSION, Reason.THRESHOLD}
"""They end an opportunity only when its net edge stays below `close_net_bps`."""

UNFIT = {Reason.LOT, Reason.MIN_NOTIONAL}
"""Only the exact walk sees them: an opportunity whose tops pay is walked when it may be published again."""


evaluate, evaluate_cycle = (lru_cache(maxsize=5000)(walk) for walk in (edge.evaluate, cycle.evaluate_cycle))
"""The exact walks: most of what is judged at a strike has not changed since the one before."""


def dec(number: float) -> Decimal:
    return Decimal(repr(number))


def exact(levels: list[list[float]]) -> Levels:
    return tuple((dec(price), dec(size)) for price, size in levels)


# ---------------------------------------------------------------- the naive model


@dataclass
class Book:
    """The newest of everything that was said of a book."""

    key: Key
    sequence: int = -1
    state: str = "syncing"
    received_ns: int = 0
    alive_ns: int = 0
    bids: Levels = ()
    asks: Levels = ()
    terms: tuple[Decimal | None, ...] = (None, None, None)

    def __post_init__(self) -> None:
        self.exchange, symbol = self.key
        self.base, self.quote = split(symbol)


class Rate(NamedTuple):
    """USD for a unit of cash."""

    bid: Decimal
    ask: Decimal
    state: str
    received_ns: int


class Route(NamedTuple):
    """Where the coin is bought, where it is sold, and the bridge's book of a cycle."""

    buy: Key
    sell: Key
    bridge: Key | None = None


class Judged(NamedTuple):
    """`reasons` of what does not cross: why an opportunity that is still open must end at once."""

    crossing: bool
    reasons: tuple[Reason, ...]
    net_bps: Decimal | None = None


class Naive:
    """Holds messages, and judges any route from them alone."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.detector = settings.detector
        self.silence_ns = self.detector.max_silence_ms * MS
        self.bridges = self.detector.bridges if self.detector.routes else ()
        self.owned = {"BTC", "ETH"}
        self.books: dict[Key, Book] = {}
        self.routes: list[Route] = []
        self.rates: dict[Key, tuple[int, Rate]] = {}
        self.cash: dict[str, tuple[Rate | None, bool]] = {}
        """What counts of each quote currency, and whether anything at all is known: as of the last strike."""
        self.renewed_ns = 0

    def take(self, message: dict[str, Any], now_ns: int) -> bool:
        """Whether it says anything new."""
        key = (message["exchange"], message["symbol"])
        base, quote = split(key[1])
        if message["kind"] == "rate":
            if message["sequence"] > self.rates.get(key, (-1, None))[0]:
                held = Rate(dec(message["bid"]), dec(message["ask"]), message["state"], message["received_ns"])
                self.rates[key] = (message["sequence"], held)
                self.cash[base] = self._conversion(base, now_ns)
            return False
        if base not in self.owned and base not in self.bridges:
            return False
        self.cash.setdefault(quote, self._conversion(quote, self.renewed_ns))
        if key not in self.books:
            self.books[key] = Book(key)
            self.routes = list(self._routes())
        book = self.books[key]
        if message["sequence"] <= book.sequence:
            return False
        book.sequence = message["sequence"]
        if message["kind"] == "book":
            book.bids, book.asks, book.state = exact(message["bids"]), exact(message["asks"]), "live"
            book.received_ns = book.alive_ns = message["received_ns"]
        else:
            book.state, book.alive_ns = message["state"], message["alive_ns"]
            terms = (message.get(name) for name in ("lot_step", "min_size", "min_notional"))
            book.terms = tuple(None if term is None else Decimal(term) for term in terms)
        return True

    def renew(self, now_ns: int) -> None:
        """The timer strikes: rates age, and the bridge's book becomes one."""
        self.renewed_ns = now_ns
        self.cash = {quote: self._conversion(quote, now_ns) for quote in self.cash}

    def own(self, bases: set[str]) -> None:
        self.owned = bases
        self.books = {key: book for key, book in self.books.items() if book.base in {*bases, *self.bridges}}
        self.routes = list(self._routes())

    def _routes(self) -> Iterator[Route]:
        """Every ordered pair of books and every cycle of the coins that are owned."""
        for buy in self.books.values():
            for sell in self.books.values():
                if buy.base != sell.base or buy.base not in self.owned:
                    continue
                quotes = (buy.quote, sell.quote)
                if buy.exchange != sell.exchange and (buy.quote == sell.quote or set(quotes) <= set(CASH)):
                    yield Route(buy.key, sell.key)
                if any(quote in CASH for quote in quotes) and any(quote in self.bridges for quote in quotes):
                    for bridge in self.books.values():
                        place = bridge.exchange in (buy.exchange, sell.exchange)
                        if place and bridge.base in quotes and bridge.quote in CASH:
                            yield Route(buy.key, sell.key, bridge.key)

    def judge(self, route: Route, now_ns: int) -> Judged:
        buy, sell = self.books[route.buy], self.books[route.sell]
        bridge = None if route.bridge is None else self.books[route.bridge]
        first = bridge is not None and buy.quote == bridge.base  # cash buys the bridge coin
        spent = bridge.quote if bridge is not None and first else buy.quote
        received = bridge.quote if bridge is not None and not first else sell.quote
        books = [book for book in (buy, sell, bridge) if book is not None]
        failed = [
            Reason.HALTED if book.state == "halted" else Reason.HEALTH
            for book in books
            if book.state != "live" or now_ns - book.alive_ns > self.silence_ns
        ]
        missing = [reason for quote in (spent, received) if (reason := self._lacks(quote, now_ns)) is not None]
        if not self._crosses(buy, sell, bridge, first, spent, received):
            through = None if bridge is None else bridge.asks if first else bridge.bids
            empty = not buy.asks or not sell.bids or through == ()
            return Judged(False, unique(failed) or unique(missing) or ((Reason.DEPTH,) if empty else ()))
        if failed:
            return Judged(True, unique(failed))
        reasons = []
        if any(now_ns - book.received_ns > self.detector.max_book_age_ms * MS for book in books):
            reasons.append(Reason.AGE)
        if any(one.alive_ns - other.alive_ns > self.detector.max_skew_ms * MS for one in books for other in books):
            reasons.append(Reason.SKEW)
        if any(f"{book.exchange}:{book.base}" in self.detector.not_the_same for book in books):
            reasons.append(Reason.IDENTITY)
        if missing:
            return Judged(True, (*reasons, *unique(missing)))
        spend, receive = self._rate(spent, "ask"), self._rate(received, "bid")
        found: edge.Evaluation | cycle.CycleEvaluation
        if bridge is None:
            found = evaluate(
                buy.asks,
                sell.bids,
                self._side(buy, spend),
                self._side(sell, receive),
                edge.Caps(self.detector.max_notional_usd),
            )
        else:
            price = (bridge.asks if first else bridge.bids)[0][0]
            turn = self._order("buy" if first else "sell", bridge, spend if first else receive)
            bought = self._order("buy", buy, spend * price if first else spend)
            sold = self._order("sell", sell, receive if first else receive * price)
            orders = (turn, bought, sold) if first else (bought, sold, turn)
            found = evaluate_cycle(orders, spend, receive, self.detector.max_notional_usd)
        reasons += found.reasons
        if not found.reasons and found.net_bps > self.detector.sanity_cap_bps:
            reasons.append(Reason.SANITY)
        elif not found.reasons and found.net_bps < self.detector.open_net_bps:
            reasons.append(Reason.THRESHOLD)
        return Judged(True, tuple(reasons), found.net_bps)

    def _conversion(self, quote: str, now_ns: int) -> tuple[Rate | None, bool]:
        """The first live rate in the order of the settings; a bridge coin's own book in USD is one too."""
        known = False
        for exchange in self.detector.rate_exchanges:
            key = (exchange, f"{quote}-USD")
            rate, book = self.rates.get(key, (0, None))[1], self.books.get(key)
            if quote in self.bridges and book is not None and book.bids and book.asks:
                rate = Rate(book.bids[0][0], book.asks[0][0], book.state, book.alive_ns)
            if rate is None:
                continue
            known = True
            if rate.state == "live" and now_ns - rate.received_ns <= self.silence_ns:
                return rate, True
        return None, known

    def _lacks(self, quote: str, now_ns: int) -> Reason | None:
        rate, known = self.cash[quote]
        if quote == "USD" or (rate is not None and now_ns - rate.received_ns <= self.silence_ns):
            return None
        return Reason.RATE_STALE if known else Reason.RATE_MISSING

    def _rate(self, quote: str, side: str) -> Decimal | None:
        if quote == "USD":
            return Decimal(1)
        rate = self.cash[quote][0]
        return None if rate is None else getattr(rate, side)

    def _crosses(self, buy: Book, sell: Book, bridge: Book | None, first: bool, spent: str, received: str) -> bool:
        """The bid is above the ask, as they stand or converted."""
        if not buy.asks or not sell.bids:
            return False
        ask, bid = buy.asks[0][0], sell.bids[0][0]
        if bridge is not None:
            through = bridge.asks if first else bridge.bids
            if not through:
                return False
            ask, bid = (ask * through[0][0], bid) if first else (ask, bid * through[0][0])
        spend, receive = self._rate(spent, "ask"), self._rate(received, "bid")
        return bid > ask or (spend is not None and receive is not None and bid * receive > ask * spend)

    def _terms(self, book: Book, usd: Decimal) -> tuple[Decimal | None, Decimal | None, Decimal | None]:
        """Lot step, least size, least value in USD."""
        lot_step, min_size, min_notional = book.terms
        if lot_step is None:
            exchange = self.settings.exchanges[book.exchange]
            return exchange.lot_step, None, exchange.min_notional_usd
        return lot_step, min_size, None if min_notional is None else min_notional * usd

    def _fee(self, book: Book) -> tuple[Decimal, bool]:
        (fee,) = self.settings.exchanges[book.exchange].fees
        return fee.taker_bps / 10_000, fee.in_base

    def _side(self, book: Book, usd: Decimal) -> edge.Side:
        (fee, in_base), (lot_step, min_size, least) = self._fee(book), self._terms(book, usd)
        return edge.Side(fee, usd, lot_step, least, in_base, min_size)

    def _order(self, side: Any, book: Book, usd: Decimal) -> cycle.Order:
        (fee, in_base), (lot_step, min_size, least) = self._fee(book), self._terms(book, usd)
        levels = book.asks if side == "buy" else book.bids
        quoted = None if least is None else edge.QUOTIENT.divide(least, usd)
        return cycle.Order(side, levels, fee, side == "buy" and in_base, lot_step, min_size, quoted)


def unique(reasons: Sequence[Reason]) -> tuple[Reason, ...]:
    return tuple(dict.fromkeys(reasons))


# ---------------------------------------------------------------- both beside each other


class Both:
    """An engine and the model, fed with the same; what is open by the engine's own messages."""

    def __init__(self, settings: Settings, seed: int) -> None:
        self.settings = settings.detector
        self.engine = Engine(settings)
        self.naive = Naive(settings)
        self.seed = seed
        self.now_ns = T0 * MS
        self.next_ns = T0 * MS
        self.open: dict[Route, Verdict] = {}
        self.ids: dict[str, set[str]] = defaultdict(set)
        self.opened: dict[str, int] = defaultdict(int)
        self.since: dict[tuple[Route, str], int] = {}
        self.failed_ns: dict[Route, int] = {}

    def feed(self, message: dict[str, Any]) -> None:
        """Strike until the message comes, then let both take it."""
        self.until(message["received_ns"])
        self.now_ns = message["received_ns"]
        news = self.naive.take(message, self.now_ns)
        taken, _ = self.engine.take_quiet([orjson.dumps(message)], 0, self.now_ns, self.now_ns)
        self._keep([] if taken else self.engine.on_message(as_tick(message), self.now_ns))
        if news:
            # What a rate or a bridge's book brings the timer finds; a proof of life bears on nothing but what is open.
            key, book = (message["exchange"], message["symbol"]), message["kind"] == "book"
            own = [route for route in self.naive.routes if key in (route.buy, route.sell)]
            self._agree([route for route in own if book or route in self.open])

    def until(self, at_ns: int) -> None:
        """Strike the timer up to a moment."""
        while self.next_ns <= at_ns:
            self.now_ns = self.next_ns
            self.naive.renew(self.now_ns)
            self._keep(self.engine.on_timer(self.now_ns))
            self._agree_on_all()
            self.next_ns += TIMER_NS

    def own(self, bases: set[str]) -> None:
        """Other coins from now on; what is not owned any more is forgotten without a word, and may come back."""
        for base in {"BTC", "ETH"} - bases:
            self.ids.pop(base, None)
            self.open = {route: held for route, held in self.open.items() if held.base != base}
            self.since = {at: ns for at, ns in self.since.items() if base_of(at[0].buy[1]) != base}
        self.naive.own(bases)
        self.engine.own(lambda base: base in bases)
        self.naive.renew(self.now_ns)
        self._keep(self.engine.evaluate_all(self.now_ns))
        self._agree_on_all()

    def _agree_on_all(self) -> None:
        self._agree(self.naive.routes)
        mine = {held.opportunity_id for held in self.open.values() if isinstance(held, Opportunity)}
        assert {held.opportunity_id for held in self.engine.open_opportunities()} == mine, self._where()

    def _keep(self, events: Sequence[Event]) -> None:
        """One verdict open at a time for each route; only what is open changes; no id twice."""
        for event in events:
            assert event.base in self.naive.owned, f"{self._where()}: {event.base} is not ours"
            if isinstance(event, DelayedEdge):
                continue
            route, identity, held = route_of(event), identity_of(event), self.open.get(route_of(event))
            where = f"{self._where(route)}: {event.kind} {identity} {event.phase}"
            if event.phase == "opened":
                assert held is None, f"{where} while {held and identity_of(held)} is open"
                assert identity not in self.ids[event.base], f"{where} again"
                self.ids[event.base].add(identity)
                self.opened[f"{event.kind}, {event.route}"] += 1
                if isinstance(event, Opportunity):
                    self._paid(route, event, where)
            else:
                assert held is not None, f"{where} but nothing is open"
                assert identity_of(held) == identity, f"{where} but {identity_of(held)} is open"
            if event.phase == "closed":
                del self.open[route]
            else:
                self.open[route] = event

    def _paid(self, route: Route, opened: Opportunity, where: str) -> None:
        """It has paid since it says, and long enough."""
        judged = self.naive.judge(route, self.now_ns)
        assert (judged.crossing, judged.reasons) == (True, ()), f"{where} but {judged}"
        assert opened.opened_ns <= self.now_ns - self.settings.persistence_ms * MS, where
        # A rate that falls silent may bring another one at once: see `..._must_last_before_it_opens`.
        if all(symbol.endswith("-USD") for symbol in (opened.buy.symbol, opened.sell.symbol)):
            assert opened.opened_ns >= self.failed_ns.get(route, 0), f"{where} but it did not pay all that time"

    def _agree(self, routes: Sequence[Route]) -> None:
        for route in routes:
            judged, held = self.naive.judge(route, self.now_ns), self.open.get(route)
            lasted_ms = self._lasted(route, judged)
            if isinstance(held, Opportunity):
                agreed = self._goes_on(judged, lasted_ms)
            elif judged.crossing:
                said = None if held is None else tuple(held.reasons)
                agreed = said == (judged.reasons or (Reason.PERSISTENCE,))
                agreed = agreed and lasted_ms["pays"] < self.settings.persistence_ms
            else:  # a rejection may wait for its end, and only the timer ends it
                waited_ms = lasted_ms["gone"] - (self.now_ns - self.naive.renewed_ns) / MS
                agreed = held is None or waited_ms < self.settings.rejection_linger_ms
            assert agreed, f"{self._where(route)}: {judged} for {lasted_ms} ms, but open is {described(held)}"

    def _goes_on(self, judged: Judged, lasted_ms: dict[str, float]) -> bool:
        """Whether an opportunity may be open still."""
        if lasted_ms["fades"] >= 0:
            return lasted_ms["fades"] < self.settings.close_after_ms
        failing = set(judged.reasons) - SMALL_EDGE
        return not failing or (failing <= UNFIT and lasted_ms["unfit"] < self.settings.update_min_ms)

    def _lasted(self, route: Route, judged: Judged) -> dict[str, float]:
        """How long each has been so at every look; -1: it is not."""
        small = set(judged.reasons) <= SMALL_EDGE
        now = {
            "pays": judged.crossing and not judged.reasons,
            "gone": not judged.crossing,
            "fades": not judged.reasons
            if not judged.crossing
            else small and judged.net_bps is not None and judged.net_bps < self.settings.close_net_bps,
            "unfit": bool(UNFIT & set(judged.reasons)),
        }
        if not now["pays"]:
            self.failed_ns[route] = self.now_ns
        found = {}
        for what, is_so in now.items():
            if is_so:
                found[what] = (self.now_ns - self.since.setdefault((route, what), self.now_ns)) / MS
            else:
                self.since.pop((route, what), None)
                found[what] = -1
        return found

    def _where(self, route: Route | None = None) -> str:
        return f"seed {self.seed}, {self.now_ns / MS - T0:g} ms, {route}"


def identity_of(event: Verdict) -> str:
    return event.opportunity_id if isinstance(event, Opportunity) else event.rejection_id


def described(held: Verdict | None) -> str:
    return "nothing" if held is None else f"{held.kind} {identity_of(held)} {getattr(held, 'reasons', '')}"


def route_of(event: Verdict) -> Route:
    pair = [(leg.exchange, leg.symbol) for leg in (event.buy, event.sell)]
    bridge = [key for leg in event.legs or () if (key := (leg.exchange, leg.symbol)) not in pair]
    return Route(*pair, *bridge)


# ---------------------------------------------------------------- a market of chance


def by_chance(chance: random.Random, *, skew: bool = False) -> Settings:
    """The defaults with small fees, and times that a short run sees the end of."""
    loaded = configuration.load()
    exchanges = {}
    for name, exchange in loaded.exchanges.items():
        fee = configuration.Fee(valid_from="2020-01-01", taker_bps="10", in_base=name == "binance")
        exchanges[name] = exchange.model_copy(update={"fees": (fee,), "min_notional_usd": Decimal(5)})
    detector = loaded.detector.model_copy(
        update={
            "persistence_ms": chance.choice([0, 100, 100, 170]),
            "close_after_ms": chance.choice([0, 250]),
            "rejection_linger_ms": chance.choice([0, 300, 1000]),
            "max_book_age_ms": chance.choice([1500, 30_000]),
            "max_silence_ms": chance.choice([800, 2000]),
            "max_skew_ms": chance.choice([300, 600]) if skew else 2000,
            "open_net_bps": Decimal(chance.choice(["0", "5"])),
            "sanity_cap_bps": Decimal(chance.choice(["40", "200"])),
            "not_the_same": chance.choice([(), (), ("kraken:ETH",)]),
        }
    )
    return loaded.model_copy(update={"exchanges": exchanges, "detector": detector})


class Market:
    """Messages as collectors would send them, on a clock of its own."""

    def __init__(self, chance: random.Random, symbols: Sequence[str]) -> None:
        self.chance = chance
        self.at_ms = T0
        self.sequences = count(1)
        self.keys = [(name, symbol) for name in EXCHANGES for symbol in symbols if chance.random() < 0.85]
        self.dead: set[Key] = set()
        self.rate_silent_ms = 0
        self.routes = "ETH-BTC" in symbols
        self.converts = any(symbol.endswith("USDT") for symbol in symbols)

    def messages(self, steps: int) -> Iterator[dict[str, Any]]:
        chance = self.chance
        for _ in range(steps):
            self.at_ms += chance.choice([1, 3, 10, 10, 30, 60, 200])
            if chance.random() < 0.01:
                self.at_ms += chance.choice([1000, 2500, 4000])  # nothing from anybody
            key, what = chance.choice(self.keys), chance.random()
            if what < 0.05 or (what < 0.5 and key not in self.dead):
                self.dead.discard(key)
                yield self.book(key)
            elif what < 0.6:
                yield self.health(key, chance.choice(["live"] * 6 + ["stale", "gap", "halted"]))
            elif what < 0.75:
                yield self.health(key, "live")
            elif what < 0.82:
                yield from self.rate()
            else:
                for one in self.keys:
                    if one not in self.dead and chance.random() < 0.9:
                        yield self.health(one, "live")
            if chance.random() < 0.004:
                self.dead.add(key)

    def book(self, key: Key) -> dict[str, Any]:
        chance, price = self.chance, PRICES[key[1]]
        middle = price * (1 + chance.gauss(0, 0.0015))
        away, step = price * chance.choice([0.0001, 0.0005]), price * 0.0003

        def side(sign: int) -> list[list[float]]:
            if chance.random() < 0.02 and not (key[1] == "BTC-USD" and self.routes):  # see the last test
                return []
            sizes = [chance.choice([0.001, 0.01, 1.0, 5.0]) for _ in range(3)]
            return [[round(middle + sign * (away + n * step), 7), size] for n, size in enumerate(sizes)]

        sequence = next(self.sequences) - (100 if chance.random() < 0.02 else 0)  # an old one at times
        return {
            "kind": "book",
            "v": 1,
            "exchange": key[0],
            "symbol": key[1],
            "sequence": max(0, sequence),
            "received_ns": self.at_ms * MS,
            "exchange_ns": None,
            "bids": side(-1),
            "asks": side(1),
        }

    def health(self, key: Key, state: str) -> dict[str, Any]:
        chance = self.chance
        message = health(*key, state, self.at_ms, next(self.sequences))
        message["alive_ns"] -= chance.choice([0, 0, 5, 50, 300]) * MS
        if chance.random() < 0.1:
            message |= {"lot_step": chance.choice(["0.001", "0.1"]), "min_notional": chance.choice([None, "10"])}
        return message

    def rate(self) -> Iterator[dict[str, Any]]:
        """It moves, is not live, is silent for a while, or another exchange's is."""
        chance = self.chance
        if self.converts and self.at_ms >= self.rate_silent_ms:
            bid = round(1 + chance.gauss(0, 0.002), 5)
            exchange, state = chance.choice(["kraken", "coinbase"]), chance.choice(["live"] * 8 + ["stale"])
            yield rate(bid, round(bid + 0.0001, 5), self.at_ms, next(self.sequences), exchange, state)
            if chance.random() < 0.05:
                self.rate_silent_ms = self.at_ms + 3000


@pytest.fixture(autouse=True)
def _reasons_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changed reasons are published at most once a second otherwise."""
    monkeypatch.setattr(lifecycle, "REASONS_MIN_NS", 0)


def play(seed: int, symbols: Sequence[str], steps: int, *, skew: bool = False) -> Both:
    """One run to its end, where everything has been silent for long."""
    chance = random.Random(seed)
    both, market = Both(by_chance(chance, skew=skew), seed), Market(chance, symbols)
    for message in market.messages(steps):
        both.feed(message)
    both.until((market.at_ms + 3500) * MS)
    return both


# ---------------------------------------------------------------- tests


@pytest.mark.parametrize(
    ("symbols", "skew"),
    [(DOLLARS, False), (DOLLARS, True), (MIXED, False), (MIXED, True), (ROUTES, False), (ROUTES_IN_USDT, False)],
    ids=["dollars", "dollars-skew", "stablecoins", "stablecoins-skew", "routes", "routes-in-usdt"],
)
def test_the_engine_agrees_with_the_naive_model(symbols, skew):
    opened: dict[str, int] = defaultdict(int)
    for seed in range(SEEDS):
        for what, times in play(seed, symbols, 160, skew=skew).opened.items():
            opened[what] += times
    routes = ("direct", "triangular", "synthetic") if "ETH-BTC" in symbols else ("direct",)
    for route in routes:
        assert min(opened[f"{kind}, {route}"] for kind in ("opportunity", "rejection")) > 0, dict(opened)


@pytest.mark.parametrize("symbols", [MIXED, ROUTES], ids=["stablecoins", "routes"])
def test_coins_that_come_and_go_leave_nothing_behind(symbols):
    for seed in range(SEEDS):
        chance = random.Random(seed)
        both, market = Both(by_chance(chance), seed), Market(chance, symbols)
        for message in market.messages(120):
            both.feed(message)
            if chance.random() < 0.02:
                both.own(set(chance.choice([("BTC", "ETH"), ("BTC",), ("ETH",), ()])))
        both.own(set())
        assert both.open == {}
        both.until(both.now_ns + 8_000 * MS)  # longer than anything is waited for
        assert both.engine.is_idle()
        assert both.engine.open_opportunities() == []


# ---------------------------------------------------------------- where they do not agree yet


def test_what_pays_because_a_rate_fell_silent_must_last_before_it_opens(configured, tick):
    """Coinbase's rate counts from the strike on that finds Kraken's too old."""
    run = Run(configured)
    run.feed(rate(1.0, 1.0001, T0))
    run.feed(tick("binance", "BTC-USDT", 999.0, 1000.0, T0 + 1850))
    run.feed(tick("kraken", "BTC-USD", 990.0, 991.0, T0 + 1850))
    run.feed(rate(0.98, 0.9801, T0 + 1900, exchange="coinbase"))
    run.timer(T0 + 1950)
    opened = [event for event in run.timer(T0 + 2050) if isinstance(event, Opportunity) and event.phase == "opened"]
    assert opened == [], "it has paid for no time at all"


def test_a_rate_alone_may_bring_a_cycle(configured, tick):
    run = Run(configured)
    run.feed(rate(1.0, 1.0001, T0))
    for symbol, bid, ask in (("BTC-USDT", 999.0, 1000.0), ("ETH-BTC", 0.0499, 0.05), ("ETH-USD", 49.5, 49.6)):
        run.feed(tick("kraken", symbol, bid, ask, T0))
    run.timer(T0 + 50)
    run.feed(rate(0.98, 0.9801, T0 + 60, sequence=2))
    found = [event for event in run.timer(T0 + 100) if event.phase == "opened"]
    assert [(event.buy.symbol, event.sell.symbol) for event in found] == [("ETH-BTC", "ETH-USD")]


def test_a_proof_of_life_of_the_bridge_may_mend_the_skew_of_a_cycle(configured, tick):
    run = Run(configured, max_skew_ms=300)
    for symbol, bid, ask, at in (
        ("BTC-USD", 999.0, 1000.0, 0),
        ("ETH-BTC", 0.0499, 0.05, 400),
        ("ETH-USD", 50.5, 50.6, 400),
    ):
        run.feed(tick("kraken", symbol, bid, ask, T0 + at))
    run.timer(T0 + 450)
    run.feed(health("kraken", "BTC-USD", "live", T0 + 500))
    run.timer(T0 + 550)
    assert [rejection.reasons for rejection in run.rejections()] == [[Reason.SKEW], [Reason.PERSISTENCE]]


def test_a_bridges_book_without_asks_is_no_rate(configured, tick):
    run = Run(configured)
    run.feed(tick("kraken", "BTC-USD", 999.0, 1000.0, T0) | {"asks": []})
    run.feed(tick("kraken", "ETH-BTC", 0.05, 0.0501, T0))
    run.feed(tick("binance", "ETH-BTC", 0.051, 0.0511, T0))
    assert [rejection.reasons for rejection in run.rejections()] == [[Reason.RATE_MISSING]]
