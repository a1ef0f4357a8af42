"""Messages and moments in, opportunities and rejections out."""

from collections import defaultdict
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from services.detector.engine import Engine, Event
from shared import settings as arb_settings
from shared.messages import DelayedEdge, Opportunity, Reason, Rejection, Tick, decode, read_tick

MS = 1_000_000
T0 = 1_795_000_000_000  # ms


def as_tick(message: dict[str, Any]) -> Tick:
    """As it is read from the topic."""
    return read_tick(orjson.dumps(message))


class Run:
    """An engine, its clock, and all that came out."""

    def __init__(self, configured, **changes: Any) -> None:
        self.settings = configured.model_copy(update={"detector": configured.detector.model_copy(update=changes)})
        self.engine = Engine(self.settings)
        self.events: list[Opportunity | Rejection] = []
        self.outcomes: list[DelayedEdge] = []

    def feed(self, message: dict[str, Any]) -> list[Opportunity | Rejection]:
        return self._keep(self.engine.on_message(as_tick(message), message["received_ns"]))

    def timer(self, at_ms: int) -> list[Opportunity | Rejection]:
        return self._keep(self.engine.on_timer(at_ms * MS))

    def _keep(self, events: list[Event]) -> list[Opportunity | Rejection]:
        """Verdicts; outcomes are kept apart."""
        self.outcomes += [event for event in events if isinstance(event, DelayedEdge)]
        new = [event for event in events if not isinstance(event, DelayedEdge)]
        self.events += new
        return new

    def opportunities(self) -> list[Opportunity]:
        return [event for event in self.events if isinstance(event, Opportunity)]

    def rejections(self) -> list[Rejection]:
        return [event for event in self.events if isinstance(event, Rejection)]


def health(exchange: str, symbol: str, state: str, at_ms: int, sequence: int = 10**6) -> dict[str, Any]:
    at = at_ms * MS
    return {
        "kind": "health",
        "v": 1,
        "exchange": exchange,
        "symbol": symbol,
        "sequence": sequence,
        "received_ns": at,
        "state": state,
        "reason": None,
        "since_ns": at,
        "alive_ns": at,
    }


def rate(
    bid: float,
    ask: float,
    at_ms: int,
    sequence: int = 1,
    exchange: str = "kraken",
    state: str = "live",
    symbol: str = "USDT-USD",
) -> dict[str, Any]:
    return {
        "kind": "rate",
        "v": 1,
        "exchange": exchange,
        "symbol": symbol,
        "sequence": sequence,
        "received_ns": at_ms * MS,
        "exchange_ns": None,
        "bid": bid,
        "ask": ask,
        "state": state,
    }


def open_gap(run: Run, tick) -> Opportunity:
    """Kraken's bid one per cent above Coinbase's ask, from T0+10 on."""
    run.feed(tick("coinbase", "BTC-USD", 99.9, 100.0, T0))
    run.feed(tick("kraken", "BTC-USD", 101.0, 101.1, T0 + 10))
    run.timer(T0 + 110)
    return run.opportunities()[-1]


def test_a_gap_opens_after_persistence_with_the_moment_it_first_paid(configured, tick):
    run = Run(configured)
    run.feed(tick("coinbase", "BTC-USD", 99.9, 100.0, T0))
    run.feed(tick("kraken", "BTC-USD", 101.0, 101.1, T0 + 10))
    assert run.opportunities() == []
    assert [r.reasons for r in run.rejections()] == [[Reason.PERSISTENCE]]
    assert run.timer(T0 + 109) == []
    closed, opened = run.timer(T0 + 110)
    assert (closed.phase, closed.close_reason) == ("closed", "accepted")
    assert (opened.phase, opened.opened_ns, opened.detected_ns) == ("opened", (T0 + 10) * MS, (T0 + 110) * MS)
    assert (opened.buy.exchange, opened.sell.exchange) == ("coinbase", "kraken")
    assert opened.profit_usd == opened.size * (opened.sell.vwap * 999 - opened.buy.vwap * 1001) / 1000
    assert opened.expires_ns == opened.detected_ns + configured.detector.expires_ms * MS


def test_the_id_is_the_gaps_own(configured, tick):
    first = open_gap(Run(configured), tick)
    again = open_gap(Run(configured), tick)
    assert first.opportunity_id == again.opportunity_id
    assert len(first.opportunity_id) == 32
    later = Run(configured)
    later.feed(tick("coinbase", "BTC-USD", 99.9, 100.0, T0))
    later.feed(tick("kraken", "BTC-USD", 101.0, 101.1, T0 + 11))
    later.timer(T0 + 200)
    assert later.opportunities()[-1].opportunity_id != first.opportunity_id


def test_a_flicker_is_a_rejection_and_no_opportunity(configured, tick):
    run = Run(configured)
    run.feed(tick("coinbase", "BTC-USD", 99.9, 100.0, T0))
    run.feed(tick("kraken", "BTC-USD", 101.0, 101.1, T0 + 10))
    run.feed(tick("kraken", "BTC-USD", 99.95, 100.05, T0 + 60))
    run.timer(T0 + 2000)
    assert run.opportunities() == []
    assert [(r.phase, r.close_reason) for r in run.rejections()] == [("opened", None), ("closed", "crossing_gone")]


def test_updates_are_bounded_below_and_above(configured, tick):
    run = Run(configured)
    opened = open_gap(run, tick)
    run.feed(tick("kraken", "BTC-USD", 101.5, 101.6, T0 + 150))
    assert [o.phase for o in run.opportunities()] == ["opened"], "moved, but 100 ms have not passed"
    run.feed(tick("kraken", "BTC-USD", 101.4, 101.5, T0 + 215))
    assert run.opportunities()[-1].phase == "updated"
    assert run.opportunities()[-1].peak_net_bps > opened.net_bps
    for at in range(T0 + 300, T0 + 1400, 50):
        run.timer(at)
    updates = [o.detected_ns // MS - T0 for o in run.opportunities() if o.phase == "updated"]
    assert updates == [215, 1250], "without a change: once a second"
    assert len({o.opportunity_id for o in run.opportunities()}) == 1


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("edge", "edge"),
        ("gone", "crossing_gone"),
        ("unhealthy", "health"),
        ("halted", "halted"),
        ("silent", "health"),
        ("absurd", "sanity"),
    ],
)
def test_an_opportunity_closes_with_its_reason(configured, tick, how, reason):
    run = Run(configured)
    open_gap(run, tick)
    if how == "edge":
        run.feed(tick("kraken", "BTC-USD", 100.1, 100.3, T0 + 200))
    elif how == "gone":
        run.feed(tick("kraken", "BTC-USD", 99.0, 99.1, T0 + 200))
    elif how == "unhealthy":
        run.feed(health("kraken", "BTC-USD", "checksum", T0 + 200))
    elif how == "halted":
        run.feed(health("kraken", "BTC-USD", "halted", T0 + 200))
    elif how == "absurd":
        run.feed(tick("kraken", "BTC-USD", 120.0, 120.1, T0 + 200))
    else:
        run.timer(T0 + 10 + configured.detector.max_silence_ms + 1)
    if how in ("edge", "gone"):
        run.timer(T0 + 210)  # 100 ms after the opening was published
        assert run.opportunities()[-1].phase == "updated", "it says so at once, and may come back"
        run.timer(T0 + 200 + configured.detector.close_after_ms)
    closed = run.opportunities()[-1]
    assert (closed.phase, closed.close_reason) == ("closed", reason)


def test_hysteresis_a_gap_between_the_thresholds_stays_open_but_does_not_open(configured, tick):
    run = Run(configured)
    open_gap(run, tick)
    run.feed(tick("kraken", "BTC-USD", 100.22, 100.3, T0 + 200))  # net about 2 bps: above 0, below 5
    assert run.opportunities()[-1].phase != "closed"
    fresh = Run(configured)
    fresh.feed(tick("coinbase", "BTC-USD", 99.9, 100.0, T0))
    fresh.feed(tick("kraken", "BTC-USD", 100.22, 100.3, T0 + 200))
    fresh.timer(T0 + 1000)
    assert fresh.opportunities() == []
    assert fresh.rejections()[0].reasons == [Reason.THRESHOLD]


def reasons_of(run: Run) -> list[Reason]:
    return run.rejections()[0].reasons


def test_rejection_fees(configured, tick):
    run = Run(configured)
    run.feed(tick("coinbase", "BTC-USD", 99.9, 100.0, T0))
    run.feed(tick("kraken", "BTC-USD", 100.1, 100.3, T0))
    assert reasons_of(run) == [Reason.FEES]
    assert round(run.rejections()[0].naive_bps) == 10


def test_rejection_conversion(configured, tick):
    run = Run(configured)
    run.feed(rate(0.994, 0.9945, T0))
    run.feed(tick("coinbase", "BTC-USD", 99.9, 100.0, T0))
    run.feed(tick("binance", "BTC-USDT", 100.5, 100.6, T0))
    assert reasons_of(run) == [Reason.CONVERSION]
    used = run.rejections()[0].rates
    assert [(r.symbol, r.side, str(r.price)) for r in used] == [("USDT-USD", "bid", "0.994")]


def test_rejection_rate_missing_and_stale(configured, tick):
    run = Run(configured)
    run.feed(tick("coinbase", "BTC-USD", 99.9, 100.0, T0))
    run.feed(tick("binance", "BTC-USDT", 103.5, 103.6, T0))
    assert reasons_of(run) == [Reason.RATE_MISSING]
    assert run.rejections()[0].net_bps is None
    stale = Run(configured)
    stale.feed(rate(1.0, 1.0, T0 - 5000))
    stale.feed(tick("coinbase", "BTC-USD", 99.9, 100.0, T0))
    stale.feed(tick("binance", "BTC-USDT", 101.0, 101.1, T0))
    assert reasons_of(stale) == [Reason.RATE_STALE]


def test_the_next_exchange_gives_the_rate_when_the_first_is_not_live(configured, tick):
    run = Run(configured)
    run.feed(rate(0.9, 0.91, T0, exchange="kraken", state="stale"))
    run.feed(rate(0.9990, 0.9991, T0, exchange="coinbase"))
    run.feed(tick("coinbase", "BTC-USD", 99.9, 100.0, T0))
    run.feed(tick("binance", "BTC-USDT", 101.0, 101.1, T0))
    assert run.rejections()[0].rates[0].exchange == "coinbase"


def test_a_gap_that_only_the_conversion_shows_is_found(configured, tick):
    """Buying with a cheap dollar: the tickers do not cross, the money does."""
    run = Run(configured)
    run.feed(rate(0.989, 0.990, T0))
    run.feed(tick("kraken", "BTC-USD", 99.9, 100.1, T0))
    run.feed(tick("binance", "BTC-USDT", 99.8, 100.0, T0))
    run.timer(T0 + 100)
    opened = run.opportunities()[-1]
    assert (opened.buy.exchange, opened.sell.exchange) == ("binance", "kraken")
    assert opened.naive_bps < 0 < opened.net_bps


def test_rejection_age_and_skew(configured, tick):
    run = Run(configured, max_book_age_ms=500, max_skew_ms=400)
    run.feed(tick("coinbase", "BTC-USD", 99.9, 100.0, T0))
    run.feed(tick("kraken", "BTC-USD", 101.0, 101.1, T0 + 600))
    assert reasons_of(run) == [Reason.AGE, Reason.SKEW]


def test_rejection_sanity_and_identity(configured, tick):
    run = Run(configured, not_the_same=("kraken:BTC",))
    run.feed(tick("coinbase", "BTC-USD", 99.9, 100.0, T0))
    run.feed(tick("kraken", "BTC-USD", 110.0, 110.1, T0))
    assert reasons_of(run) == [Reason.IDENTITY, Reason.SANITY]


def test_a_rejection_that_stays_is_two_messages_not_a_million(configured, tick):
    run = Run(configured)
    for n in range(500):
        run.feed(tick("coinbase", "BTC-USD", 99.9, 100.0 + (n % 2) * 0.3, T0 + n * 20))
        run.feed(tick("kraken", "BTC-USD", 100.1, 100.3 + (n % 2) * 0.3, T0 + n * 20 + 1))
    assert [r.phase for r in run.rejections()] == ["opened"], "it flickers for ten seconds"
    run.feed(tick("kraken", "BTC-USD", 99.9, 100.2, T0 + 10_100))
    run.feed(tick("coinbase", "BTC-USD", 99.9, 100.2, T0 + 10_100))
    run.timer(T0 + 11_200)
    assert [r.phase for r in run.rejections()] == ["opened", "closed"]


def test_an_older_sequence_is_dropped(configured, tick):
    run = Run(configured)
    old, new = tick("kraken", "BTC-USD", 150.0, 151.0, T0), tick("kraken", "BTC-USD", 100.0, 100.1, T0 + 1)
    run.feed(new)
    run.feed(old)
    run.feed(tick("coinbase", "BTC-USD", 99.9, 100.05, T0 + 2))
    assert run.events == []


def test_books_of_one_exchange_never_pair_and_unknown_exchanges_are_ignored(configured, tick):
    run = Run(configured)
    run.feed(rate(1.0, 1.0, T0))
    run.feed(tick("binance", "BTC-USDT", 99.0, 100.0, T0))
    run.feed(tick("binance", "BTC-USDC", 150.0, 151.0, T0))
    run.feed(tick("mtgox", "BTC-USD", 150.0, 151.0, T0))
    run.timer(T0 + 1000)
    assert run.events == []


def test_adopted_opportunities_keep_their_id_or_end_as_handover(configured, tick):
    opened = open_gap(Run(configured), tick)
    heir = Run(configured)
    heir.feed(tick("coinbase", "BTC-USD", 99.9, 100.0, T0 + 200))
    for message in (tick("kraken", "BTC-USD", 101.0, 101.1, T0 + 200),):
        heir.engine.on_message(as_tick(message), message["received_ns"], silent=True)
    assert heir.engine.adopt(opened, (T0 + 210) * MS) == []
    (event,) = heir.engine.evaluate_all((T0 + 210) * MS)
    assert (event.phase, event.opportunity_id) == ("updated", opened.opportunity_id)
    other = Run(configured)
    other.engine.adopt(opened, (T0 + 210) * MS)
    closed = next(e for e in other.engine.evaluate_all((T0 + 210) * MS) if isinstance(e, Opportunity))
    assert (closed.phase, closed.close_reason, closed.opportunity_id) == ("closed", "handover", opened.opportunity_id)


def test_dropping_a_coin_forgets_it_without_a_word(configured, tick):
    run = Run(configured)
    open_gap(run, tick)
    run.engine.own(lambda base: base != "BTC")
    assert run.engine.open_opportunities() == []
    assert run.timer(T0 + 10_000) == []


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["binance", "coinbase", "kraken"]),
        st.sampled_from([99.0, 99.8, 100.0, 100.1, 100.5, 101.0, 125.0]),
        st.integers(0, 400),
        st.sampled_from(["book", "book", "book", "timer", "bad", "live"]),
    ),
    max_size=40,
)
CONFIGURED = arb_settings.load()


SILENT_THEN_PROVEN = [("binance", 99.0, 400, "book")] * 4 + [
    ("binance", 99.0, 166, "book"),
    ("binance", 99.8, 235, "book"),
]
"""Coinbase is silent for 2,001 ms; then its proof of life comes, and binance has begun to cross it meanwhile."""


@hypothesis_settings(max_examples=150)
@given(STEPS)
@example([("coinbase", 99.0, 0, "book"), *SILENT_THEN_PROVEN, ("coinbase", 99.0, 0, "live")])
def test_every_crossing_has_exactly_one_open_verdict_and_the_same_input_gives_the_same_bytes(steps):
    fee = arb_settings.Fee(valid_from="2020-01-01", taker_bps="10")
    exchanges = {
        n: e.model_copy(update={"fees": (fee,), "symbols": ("BTC-USD",)}) for n, e in CONFIGURED.exchanges.items()
    }
    configured = CONFIGURED.model_copy(update={"exchanges": exchanges})

    def play() -> list[bytes]:
        run, at, sequence = Run(configured), T0, 0
        books: dict[str, tuple[float, float]] = {}
        live: dict[str, int] = {}
        open_now: dict[tuple[str, str], set[str]] = defaultdict(set)
        out = []
        for exchange, price, wait_ms, what in steps:
            at, sequence = at + wait_ms, sequence + 1
            if what == "timer":
                events = run.timer(at)
            elif what == "book":
                books[exchange], live[exchange] = (price, price + 0.05), at
                events = run.feed(
                    {
                        "kind": "book",
                        "v": 1,
                        "exchange": exchange,
                        "symbol": "BTC-USD",
                        "sequence": sequence,
                        "received_ns": at * MS,
                        "exchange_ns": None,
                        "bids": [[price, 1.0]],
                        "asks": [[price + 0.05, 1.0]],
                    }
                )
            else:
                state = "live" if what == "live" else "gap"
                if what == "bad":
                    live.pop(exchange, None)
                elif exchange in books:
                    live[exchange] = at
                events = run.feed(health(exchange, "BTC-USD", state, at, sequence))
            for event in events:
                out.append(event.encode())
                decode(event.encode())
                pair = (event.buy.exchange, event.sell.exchange)
                identity = event.opportunity_id if isinstance(event, Opportunity) else event.rejection_id
                if event.phase == "closed":
                    assert identity in open_now[pair], "closed what was not open"
                    open_now[pair].discard(identity)
                else:
                    open_now[pair].add(identity)
            run_timer = run.timer(at)  # all pairs judged at this moment
            for event in run_timer:
                pair = (event.buy.exchange, event.sell.exchange)
                identity = event.opportunity_id if isinstance(event, Opportunity) else event.rejection_id
                (open_now[pair].discard if event.phase == "closed" else open_now[pair].add)(identity)
                out.append(event.encode())
            for pair, identities in open_now.items():
                assert len(identities) <= 1, f"two verdicts open on {pair}"
            for buy, (_, ask) in books.items():
                for sell, (bid, _) in books.items():
                    usable = all(at - live.get(name, -(10**9)) <= 2000 for name in (buy, sell))
                    if buy != sell and usable and bid > ask:
                        assert len(open_now[(buy, sell)]) == 1, f"{buy} {sell} crosses and nothing says so"
        return out

    assert play() == play()
