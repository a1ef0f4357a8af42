"""What every adapter must do, whatever its protocol: a conversation with the simulator's own implementation of it.

To add an exchange is to pass this suite (docs/adding-an-exchange.md). The simulator knows the true book at any moment;
a feed that says "live" must have exactly that one.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from services.collector.exchanges import EXCHANGES
from services.collector.exchanges.base import parse_answer, parse_listing
from services.collector.feed import Feed
from services.collector.instruments import Catalog, resolve
from services.collector.keeper import Timing
from services.collector.outputs import BookChanged, Fetch, HealthChanged, Reconnect, Send, Traded
from services.simulator.exchanges import SERVERS
from services.simulator.market import BookEvent, Market, MarketEvent
from shared import settings, topics
from shared.errors import FeedError, UsageError

MS = 1_000_000
SECOND = 1000 * MS
START_NS = 1_790_000_000 * SECOND
TIMING = Timing(first_data_ns=15 * SECOND, refresh_ns=1800 * SECOND, max_silence_ns=2 * SECOND)
CONFIGURED = settings.load()
RUNS = {"coinbase": 200, "bybit": 200}
"""Of those that no capture of any length exists of; damaged copies of captures are in test_damage.py."""

every_exchange = pytest.mark.parametrize("name", sorted(EXCHANGES))


class Conversation:
    """One feed and one simulated exchange; frames arrive at once unless a fault is put between."""

    def __init__(self, name: str, seed: int = 1, symbols: int = 2) -> None:
        self.exchange = EXCHANGES[name]
        own = "coinbase" if name == "coinbase-exchange" else name
        configured = CONFIGURED.exchanges[own]
        wanted = tuple(symbol for symbol in configured.symbols if not symbol.startswith("USD"))[:symbols]
        self.depth = configured.book_depth
        few = CONFIGURED.model_copy(update={"exchanges": {own: configured.model_copy(update={"symbols": wanted})}})
        self.market = Market(few, (own,), seed, 20.0)
        self.books = {symbol: book for (_, symbol), book in self.market.books.items()}
        self.server = SERVERS[name](self.books)
        self.names = {self.exchange.native(symbol): symbol for symbol in self.books}
        self.now_ns = START_NS
        self.fault: Callable[[str], list[str]] = lambda frame: [frame]
        self.states: list[tuple[str, str]] = []
        self.published: dict[str, BookChanged] = {}
        self.trades: list[Traded] = []
        self.sent: list[str] = []
        self.connections = 0
        self.connect()

    def connect(self) -> None:
        self.connections += 1
        self.feed = Feed(self.exchange, self.names, self.depth, 10, TIMING, self.now_ns, fast_tops=True)
        self.session = self.server.session(self.exchange.url("/", list(self.names)), self.now_ns)
        self._act(self.feed.on_connected(self.now_ns))
        self._deliver(self.session.on_open(self.now_ns))
        for frame in self.exchange.subscribe(list(self.names), self.depth, True):
            self._say(frame)

    def run(self, seconds: float) -> Iterator[MarketEvent]:
        """Let the market go on; yields each event after its frames were delivered."""
        end_ns = self.now_ns - START_NS + int(seconds * SECOND)
        for at_ns, event in self.market.step(end_ns):
            self._timers(START_NS + at_ns)
            if isinstance(event, BookEvent):
                self.server.before_book(event)
                self._deliver(self.session.on_book(event, self.now_ns))
            else:
                self._deliver(self.session.on_trade(event, self.now_ns))
            yield event
        self._timers(START_NS + end_ns)

    def wait(self, seconds: float) -> None:
        """Time passes; the market stands still."""
        self._timers(self.now_ns + int(seconds * SECOND))

    def true(self, symbol: str) -> tuple[list[Any], list[Any]]:
        book = self.books[symbol]
        return (
            [(book.price(price), book.size(size)) for price, size in book.top("bids", 10)],
            [(book.price(price), book.size(size)) for price, size in book.top("asks", 10)],
        )

    def held(self, symbol: str) -> tuple[list[Any], list[Any]] | None:
        """The feed's book, if it is live."""
        book = self.feed.live_book(self.exchange.native(symbol))
        return None if book is None else (book.bids.top(10), book.asks.top(10))

    def assert_all_true(self) -> None:
        for symbol in self.books:
            assert self.held(symbol) == self.true(symbol), symbol

    def _timers(self, until_ns: int) -> None:
        while self.now_ns + 100 * MS <= until_ns:
            self.now_ns += 100 * MS
            frames = self.session.on_timer(self.now_ns)
            proof = self.exchange.proof
            if proof is not None and self.now_ns - self.feed.alive_ns >= proof.idle_s * SECOND:
                if proof.frame is None:
                    self._act(self.feed.on_proof(self.now_ns))
                else:
                    frames += self.session.on_client(proof.frame, self.now_ns)
            self._deliver(frames)
            self._act(self.feed.on_timer(self.now_ns))
        self.now_ns = max(self.now_ns, until_ns)

    def _deliver(self, frames: list[str]) -> None:
        for original in frames:
            for frame in self.fault(original):
                try:
                    self._act(self.feed.on_frame(frame, self.now_ns))
                except FeedError:
                    self._lost()
                    return

    def _lost(self) -> None:
        self._act(self.feed.on_lost(self.now_ns, "lost"))
        self.connect()

    def _say(self, frame: str) -> None:
        self.sent.append(frame)
        self._deliver(self.session.on_client(frame, self.now_ns))

    def _act(self, outputs: list[Any]) -> None:
        for out in outputs:
            if isinstance(out, HealthChanged):
                self.states.append((out.symbol, out.state))
            elif isinstance(out, BookChanged):
                self.published[out.symbol] = out
            elif isinstance(out, Traded):
                self.trades.append(out)
            elif isinstance(out, Send):
                self._say(out.frame)
            elif isinstance(out, Reconnect):
                self._lost()
                return
            elif isinstance(out, Fetch):
                assert self.exchange.snapshot_url is not None
                answer = self.server.rest(self.exchange.snapshot_url("", out.native, self.depth), self.now_ns)
                assert answer is not None
                self._act(self.feed.on_rest(out.native, answer.body, self.now_ns))


# ---------------------------------------------------------------- what it is


@every_exchange
def test_it_is_complete(name):
    exchange = EXCHANGES[name]
    assert exchange.name == name
    own = "coinbase" if name == "coinbase-exchange" else name
    assert own in topics.EXCHANGES, "its tick topic"
    assert own in CONFIGURED.exchanges, "its table in deploy/arb.toml"
    configured = CONFIGURED.exchanges[own]
    assert not exchange.depths or configured.book_depth in exchange.depths
    assert name in SERVERS, "its simulator"
    assert exchange.limits.books >= 1
    for rules in (exchange.limits.connects, exchange.limits.messages, exchange.limits.requests):
        assert rules, "a limit that is not stated is one we choose"
        assert all(rule.most >= 1 and rule.seconds > 0 for rule in rules)
    assert (exchange.snapshot_url is None) == (exchange.parse_snapshot is None)


@every_exchange
def test_its_metadata_names_every_symbol_as_its_streams_do(name):
    talk = Conversation(name)
    exchange = talk.exchange
    answer = talk.server.rest(exchange.instruments_url(""), talk.now_ns)
    assert answer is not None
    found = Catalog(name, "", 0, tuple(parse_listing(exchange, answer.body)))
    assert resolve(found, list(talk.books), name).names == talk.names
    for row in found.instruments:
        assert row.tick_size is not None
        assert row.tick_size > 0
        assert row.lot_step is not None
        assert row.trading
    symbol = next(iter(talk.books))
    talk.server.halted.add(symbol)
    answer = talk.server.rest(exchange.instruments_url(""), talk.now_ns)
    assert answer is not None
    halted = resolve(Catalog(name, "", 0, tuple(parse_listing(exchange, answer.body))), list(talk.books), name).halted
    assert list(halted) == [exchange.native(symbol)]


@every_exchange
def test_its_clock_can_be_read(name):
    talk = Conversation(name)
    answer = talk.server.rest(talk.exchange.time_url(""), START_NS + 123_456_789)
    assert answer is not None
    server_ns, coarse_ns = parse_answer(talk.exchange, talk.exchange.parse_time, answer.body)
    assert 0 <= START_NS + 123_456_789 - server_ns < coarse_ns


@every_exchange
def test_its_subscriptions_fit_into_what_it_allows(name):
    exchange = EXCHANGES[name]
    natives = [exchange.native(f"COIN{number}-USDT") for number in range(exchange.limits.books)]
    frames = exchange.subscribe(natives, CONFIGURED.exchanges["kraken"].book_depth, True)
    assert all(len(frame) < 64_000 for frame in frames)
    for rule in exchange.limits.messages:
        assert len(frames) <= rule.most * max(1.0, 15.0 / rule.seconds), "within the deadline of the first data"
    text = " ".join(frames) + exchange.url("", natives)
    assert all(native.lower() in text.lower() for native in natives)


# ---------------------------------------------------------------- what it does


@every_exchange
def test_every_book_is_live_and_true_after_every_update(name):
    talk = Conversation(name)
    compared = 0
    for event in talk.run(20):
        held = talk.held(event.symbol)
        if held is not None:
            assert held == talk.true(event.symbol)
            compared += 1
    assert compared > 400
    talk.assert_all_true()
    assert {state for _, state in talk.states} == {"syncing", "live"}
    assert talk.connections == 1
    counts = talk.feed.counts
    assert (counts.gaps, counts.crossed, counts.checksum_failed, counts.tops_wrong, counts.errors) == (0, 0, 0, 0, 0)


@every_exchange
def test_what_is_published_is_the_book_with_its_best_prices_first(name):
    talk = Conversation(name)
    for event in talk.run(10):
        if isinstance(event, BookEvent) and event.symbol in talk.published:
            out = talk.published[event.symbol]
            bids, asks = talk.true(event.symbol)
            assert (out.bids[0], out.asks[0]) == (bids[0], asks[0])
            assert [price for price, _ in out.bids] == sorted((p for p, _ in out.bids), reverse=True)
            assert [price for price, _ in out.asks] == sorted(p for p, _ in out.asks)
            assert len(out.bids) == len(out.asks) == 10


@every_exchange
def test_each_trade_is_published_once_with_its_symbol_and_time(name):
    talk = Conversation(name)
    happened = [event for event in talk.run(30) if not isinstance(event, BookEvent)]
    assert [out.symbol for out in talk.trades] == [event.symbol for event in happened]
    for out, event in zip(talk.trades, happened, strict=True):
        book = talk.books[event.symbol]
        assert (out.trade.price, out.trade.size) == (book.price(event.price), book.size(event.size))
        assert out.trade.taker_side in (event.taker_side, None), "unknown is better than guessed"
        assert out.trade.exchange_ns is not None
        assert START_NS <= out.trade.exchange_ns <= talk.now_ns
    assert talk.feed.counts.trade_gaps == 0


@every_exchange
def test_a_quiet_market_stays_live_by_proof_and_a_silent_link_is_stale_within_two_seconds(name):
    talk = Conversation(name)
    for _ in talk.run(5):
        pass
    talk.states.clear()
    talk.wait(30)
    assert {state for _, state in talk.states} <= {"live"}
    assert len([1 for symbol, _ in talk.states if symbol == next(iter(talk.books))]) >= 25, "proof of life every second"
    session, talk.session = talk.session, Silent()
    proof = talk.exchange.proof
    if proof is not None and proof.frame is None:  # a dead socket answers no ping either
        outputs = [out for tick in range(1, 25) for out in talk.feed.on_timer(talk.now_ns + tick * 100 * MS)]
        talk._act(outputs)
    else:
        talk.wait(2.4)
    assert {state for _, state in talk.states[-len(talk.books) :]} == {"stale"}
    talk.session = session
    talk.wait(2)
    assert {state for _, state in talk.states[-len(talk.books) :]} == {"live"}


class Silent:
    """A session that has nothing to say."""

    def on_timer(self, now_ns: int) -> list[str]:
        return []

    def on_client(self, text: str, now_ns: int) -> list[str]:
        return []


@every_exchange
def test_one_books_doubt_concerns_no_other_book(name):
    talk = Conversation(name)
    for _ in talk.run(5):
        pass
    first, other = talk.books
    talk.states.clear()
    talk._act(talk.feed.doubt(talk.exchange.native(first), "for the test", talk.now_ns))
    for _ in talk.run(2):
        pass
    assert [state for symbol, state in talk.states if symbol == first][:2] == ["gap", "live"]
    assert {state for symbol, state in talk.states if symbol == other} <= {"live"}
    assert talk.connections == 1
    talk.assert_all_true()


@every_exchange
def test_a_symbol_it_does_not_list_never_becomes_a_book(name):
    talk = Conversation(name)
    native = talk.exchange.native("NOPE-USDT")
    talk.names = {**talk.names, native: "NOPE-USDT"}
    try:
        talk.connect()
        for _ in talk.run(3):
            pass
    except UsageError as error:
        assert "NOPE" in str(error)
    assert talk.feed.live_book(native) is None


@every_exchange
def test_a_halted_symbol_stops_and_comes_back_alone(name):
    talk = Conversation(name)
    for _ in talk.run(3):
        pass
    first, other = talk.books
    native = talk.exchange.native(first)
    talk._act(talk.feed.on_halted({native: "not traded: HALT"}, talk.now_ns))
    for _ in talk.run(3):
        assert talk.held(first) is None
    assert talk.held(other) == talk.true(other)
    talk._act(talk.feed.on_halted({}, talk.now_ns))
    for _ in talk.run(3):
        pass
    talk.assert_all_true()
    assert talk.connections == 1


# ---------------------------------------------------------------- what happens to it


class Faults:
    """Two to four faults at random frames of a run."""

    def __init__(self, draw: random.Random, frames: int) -> None:
        kinds = ("drop", "repeat", "late", "cut")
        self.plan = {draw.randrange(frames): draw.choice(kinds) for _ in range(draw.randint(2, 4))}
        self.seen = 0
        self.held: list[str] = []
        self.draw = draw
        self.lost = False

    def __call__(self, frame: str) -> list[str]:
        kind = self.plan.get(self.seen)
        self.seen += 1
        late, self.held = self.held, []
        if kind == "drop":
            self.lost = True
            return late
        if kind == "repeat":
            return [*late, frame, frame]
        if kind == "late":
            self.lost = True
            self.held = [frame]
            return late
        if kind == "cut":
            return [*late, frame[: self.draw.randrange(len(frame))]]
        return [frame, *late]


@every_exchange
def test_under_faults_a_live_book_is_the_true_one_and_every_book_comes_back(name):
    """Where nothing chains the updates (Coinbase Exchange) a lost one cannot be seen; cut and repeated ones can."""
    blind = EXCHANGES[name].unchained
    doubted = compared = 0
    runs = RUNS.get(name, 60)
    for seed in range(runs):
        draw = random.Random(seed)
        talk = Conversation(name, seed)
        faults = talk.fault = Faults(draw, 60)
        before = faults.seen
        for event in talk.run(1.5):
            frames, before = range(before, faults.seen), faults.seen
            if faults.held or (blind and faults.lost) or not isinstance(event, BookEvent):
                continue
            if not frames or any(number in faults.plan for number in frames):
                continue  # nothing came that could tell
            held = talk.held(event.symbol)
            if held is not None:
                assert held == talk.true(event.symbol), f"seed {seed}, frame {faults.seen}, {faults.plan}"
                compared += 1
        talk.fault = lambda frame: [frame]
        doubted += any(state in ("gap", "checksum", "crossed", "disconnected") for _, state in talk.states)
        if blind:
            talk._lost()
        for _ in range(60):  # a book that was doubted again and again is subscribed again after half a minute
            for _ in talk.run(0.3):
                pass
            if all(talk.held(symbol) is not None for symbol in talk.books):
                break
            talk.wait(0.7)
        for symbol in talk.books:
            assert talk.held(symbol) == talk.true(symbol), f"seed {seed}: {symbol} did not come back"
    assert compared > runs
    assert doubted > runs / 4
