"""What an opportunity says from its opening to its end, what rejects it, and what becomes of its edge afterwards."""

import itertools
from decimal import Decimal
from typing import Any

import pytest

from services.detector.engine import Engine
from shared.errors import UndecodableRecord
from shared.messages import DelayedEdge, Opportunity, Reason, Rejection
from tests.detector.test_engine import MS, T0, Run, as_tick, health, open_gap, rate

D = Decimal


def with_exchange(configured, name: str, **changes: Any):
    exchange = configured.exchanges[name].model_copy(update=changes)
    return configured.model_copy(update={"exchanges": {**configured.exchanges, name: exchange}})


def stated(exchange: str, at_ms: int, **terms: str) -> dict[str, Any]:
    """A proof of life with what the exchange's metadata says of orders."""
    return {**health(exchange, "BTC-USD", "live", at_ms), **terms}


# ---------------------------------------------------------------- one opportunity a gap


def test_what_comes_back_within_close_after_is_the_same_opportunity(configured, tick):
    run = Run(configured)
    opened = open_gap(run, tick)
    for n in range(5):
        at = T0 + 220 + n * 200
        run.feed(tick("kraken", "BTC-USD", 99.5, 99.6, at))
        run.timer(at + 50)
        run.feed(tick("kraken", "BTC-USD", 101.0, 101.1, at + 100))
        run.timer(at + 150)
    assert {o.opportunity_id for o in run.opportunities()} == {opened.opportunity_id}
    assert "closed" not in {o.phase for o in run.opportunities()}
    gone = [o for o in run.opportunities() if o.size == 0]
    assert [(o.phase, o.profit_usd, o.detected_ns // MS - T0) for o in gone] == [
        ("updated", 0, 220 + n * 200) for n in range(5)
    ], "each time it says at once that nothing is there"
    assert all(o.net_bps < 0 for o in gone)


def test_at_the_end_it_says_how_long_it_lived_and_what_it_was_worth(configured, tick):
    run = Run(configured)
    opened = open_gap(run, tick)  # there since T0+10, published at T0+110
    run.feed(tick("kraken", "BTC-USD", 100.5, 100.6, T0 + 510))
    higher, lower = opened.net_bps, run.opportunities()[-1].net_bps
    run.feed(tick("kraken", "BTC-USD", 99.0, 99.1, T0 + 1010))
    run.timer(T0 + 1010 + configured.detector.close_after_ms)
    (closed,) = [o for o in run.opportunities() if o.phase == "closed"]
    assert (closed.opportunity_id, closed.close_reason) == (opened.opportunity_id, "crossing_gone")
    assert closed.lifetime_ms == 1000, "to the end of the edge, not to the end of the waiting"
    assert abs(closed.integral_bps_s - (higher + lower) / 2) <= D("0.0001"), "half a second of each"
    assert closed.peak_net_bps == higher


def test_an_opening_that_time_brings_is_dated_by_a_message(configured, tick):
    """The rate makes it pass, and the timer sees that: the id must not depend on when the timer ran."""

    def play(timers: list[int]) -> str:
        run = Run(configured)
        run.feed(rate(1.0, 1.01, T0))
        run.feed(tick("kraken", "BTC-USD", 101.0, 101.1, T0))
        run.feed(tick("binance", "BTC-USDT", 99.9, 100.0, T0))
        run.feed(rate(0.999, 1.0, T0 + 7, sequence=2))
        for at in timers:
            run.timer(T0 + at)
        (opened,) = [o for o in run.opportunities() if o.phase == "opened"]
        assert opened.opened_ns == (T0 + 7) * MS
        return opened.opportunity_id

    assert play([50, 100, 150]) == play([20, 180])


def test_an_edge_that_flickers_wildly_is_not_published_more_often_than_allowed(configured, tick):
    run = Run(configured)
    open_gap(run, tick)
    for n in range(200):
        run.feed(tick("kraken", "BTC-USD", *((99.5, 99.6) if n % 2 else (101.0, 101.1)), T0 + 120 + n * 3))
    moments = [o.detected_ns // MS for o in run.opportunities()]
    assert min(later - sooner for sooner, later in itertools.pairwise(moments)) >= configured.detector.update_min_ms


def test_what_time_alone_brings_back_has_an_id_of_its_own(configured, tick):
    """The opportunity ends by silence and is a rejection again, with no message since the first rejection."""
    run = Run(configured)
    open_gap(run, tick)
    for at in range(T0 + 150, T0 + 4000, 50):
        run.timer(at)
    opened = [r.rejection_id for r in run.rejections() if r.phase == "opened"]
    assert len(opened) == len(set(opened)) == 2


# ---------------------------------------------------------------- gates


def test_a_rate_that_falls_silent_ends_what_stood_on_it_at_once(configured, tick):
    """The gap crosses only when converted: without the rate nothing crosses, and the timer must not wait for ever."""
    run = Run(configured)
    run.feed(rate(0.989, 0.990, T0))
    for at in range(T0, T0 + 2500, 50):
        run.feed(tick("kraken", "BTC-USD", 99.9, 100.1, at))
        run.feed(tick("binance", "BTC-USDT", 99.8, 100.0, at))
        run.timer(at)
    assert [o.close_reason for o in run.opportunities() if o.phase == "closed"] == ["rate_stale"]


def test_a_rate_alone_can_open_a_gap(configured, tick):
    run = Run(configured)
    run.feed(rate(1.0, 1.001, T0))
    run.feed(tick("kraken", "BTC-USD", 99.9, 100.1, T0))
    run.feed(tick("binance", "BTC-USDT", 99.8, 100.0, T0))
    run.timer(T0 + 50)
    assert run.events == []
    run.feed(rate(0.989, 0.990, T0 + 60, sequence=2))
    for at in (T0 + 100, T0 + 150, T0 + 200):
        run.timer(at)
    (opened,) = run.opportunities()
    assert (opened.buy.exchange, opened.opened_ns) == ("binance", (T0 + 60) * MS)


def test_skew_is_judged_again_when_the_late_leg_proves_its_life(configured, tick):
    run = Run(configured, max_skew_ms=600)
    run.feed(tick("coinbase", "BTC-USD", 99.9, 100.0, T0))
    run.feed(tick("kraken", "BTC-USD", 101.0, 101.1, T0 + 700))
    assert run.rejections()[0].reasons == [Reason.SKEW]
    run.feed(health("coinbase", "BTC-USD", "live", T0 + 720))
    run.timer(T0 + 850)
    assert run.opportunities()[0].opened_ns == (T0 + 720) * MS


def test_a_bridge_coin_whose_book_is_quiet_still_converts(configured, tick):
    run = Run(configured)
    run.feed(tick("kraken", "BTC-USD", 49_999.0, 50_000.0, T0))
    run.feed(tick("binance", "ETH-BTC", 0.0499, 0.05, T0))
    run.feed(tick("okx", "ETH-BTC", 0.0505, 0.0506, T0))
    for n in range(1, 12):
        at = T0 + n * 500
        run.feed(health("kraken", "BTC-USD", "live", at, sequence=10**6 + n))
        run.feed({**health("binance", "ETH-BTC", "live", at, sequence=10**6 + n)})
        run.feed({**health("okx", "ETH-BTC", "live", at, sequence=10**6 + n)})
        run.timer(at)
    assert "closed" not in {o.phase for o in run.opportunities()}


BAD_BOOKS = [
    ([[0, 1]], [[1, 1]]),
    ([[-1.0, 1]], [[1, 1]]),
    ([[1e308, 1]], [[1, 1]]),
    ([["1", 1]], [[1, 1]]),
    ([[1, 1]], [[1e-20, 1]]),
    ([[None, 1]], [[1, 1]]),
]


@pytest.mark.parametrize(("bids", "asks"), BAD_BOOKS)
def test_a_price_that_is_none_is_refused_before_anything_changes(configured, tick, bids, asks):
    run = Run(configured)
    opened = open_gap(run, tick)
    bad = tick("kraken", "BTC-USD", 1, 2, T0 + 120) | {"bids": bids, "asks": asks}
    with pytest.raises(UndecodableRecord):
        run.engine.on_message(as_tick(bad), (T0 + 300) * MS)
    run.timer(T0 + 400)
    assert run.opportunities()[-1].net_bps == opened.net_bps
    assert [edge.delay_ms for edge in run.outcomes] == [50, 100, 250], "what was due is not lost with it"


@pytest.mark.parametrize("lot_step", ["NaN", "abc", "-1", "Infinity", "1e400"])
def test_an_order_term_that_is_none_is_refused_before_anything_changes(configured, tick, lot_step):
    run = Run(configured)
    opened = open_gap(run, tick)
    with pytest.raises(UndecodableRecord):
        run.engine.on_message(as_tick(stated("kraken", T0 + 120, lot_step=lot_step)), (T0 + 120) * MS)
    run.feed(tick("kraken", "BTC-USD", 100.3, 101.1, T0 + 1200))
    assert run.opportunities()[-1].opportunity_id == opened.opportunity_id
    assert run.opportunities()[-1].net_bps == D("9.9600")


@pytest.mark.parametrize(("bid", "ask"), [(1e308, 1e308), (1e-308, 1.0), (-1.0, 1.0), (0, 0)])
def test_a_rate_that_is_none_is_refused(configured, bid, ask):
    with pytest.raises(UndecodableRecord):
        Run(configured).feed(rate(bid, ask, T0))


def test_a_level_that_is_none_below_the_top_makes_the_book_no_book(configured, tick):
    run = Run(configured)
    run.feed(tick("coinbase", "BTC-USD", 99.9, 100.0, T0))
    run.feed(tick("kraken", "BTC-USD", 101.0, 101.1, T0 + 10) | {"bids": [[101.0, 1.0], ["x", 1.0]]})
    run.timer(T0 + 500)
    assert run.opportunities() == []
    assert run.rejections()[-1].reasons in ([Reason.HEALTH], [Reason.DEPTH])


def test_a_bridge_book_that_loses_a_side_ends_the_cycle(configured, tick):
    run = Run(configured, sanity_cap_bps=D(1000))
    for message in triangle(tick, ("binance",) * 3, (2399.0, 2400.0)):
        run.feed(message)
    run.timer(T0 + 150)
    run.feed(tick("binance", "BTC-USDT", 1, 2, T0 + 200) | {"bids": []})
    run.timer(T0 + 250)
    assert run.opportunities()[-1].close_reason == "depth"


def test_outages_leave_nothing_behind(configured, tick):
    run = Run(configured)
    for n in range(20):
        at = T0 + n * 40_000
        run.feed(tick("coinbase", "BTC-USD", 99.9, 100.0, at))
        run.feed(tick("kraken", "BTC-USD", 100.1, 100.3, at))
        for later in range(0, 38_000, 500):
            run.timer(at + later)
    assert len(run.engine._due) <= 1


def test_a_crossing_with_a_book_that_is_not_live_says_so(configured, tick):
    run = Run(configured)
    run.feed(tick("coinbase", "BTC-USD", 99.9, 100.0, T0))
    run.feed(health("kraken", "BTC-USD", "live", T0, sequence=0))
    run.feed(tick("kraken", "BTC-USD", 99.95, 100.1, T0))
    run.feed(health("kraken", "BTC-USD", "checksum", T0 + 10, sequence=500_000))
    assert run.events == []
    run.feed(tick("coinbase", "BTC-USD", 99.0, 99.1, T0 + 20))
    (rejected,) = run.rejections()
    assert (rejected.reasons, rejected.net_bps) == ([Reason.HEALTH], None)
    run.feed(health("kraken", "BTC-USD", "halted", T0 + 30))
    run.timer(T0 + 1100)
    assert run.rejections()[-1].reasons == [Reason.HALTED]
    assert run.rejections()[-1].phase == "updated"


def test_sizes_follow_what_the_exchanges_say_of_orders(configured, tick):
    run = Run(configured)
    run.feed(stated("kraken", T0, lot_step="0.3"))
    run.feed(stated("coinbase", T0, lot_step="0.2"))
    gap = open_gap(run, lambda *a: {**tick(*a), "sequence": 10**7 + a[-1]})
    assert gap.size == D("0.6"), "a multiple of both steps"


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        ({"lot_step": "7"}, Reason.LOT),
        ({"lot_step": "0.1", "min_size": "1.1"}, Reason.MIN_NOTIONAL),
        ({"lot_step": "0.1", "min_notional": "101.5"}, Reason.MIN_NOTIONAL),
    ],
)
def test_an_order_that_the_exchange_would_refuse_is_no_opportunity(configured, tick, terms, reason):
    run = Run(configured)
    run.feed(stated("kraken", T0, **terms))
    run.feed(tick("coinbase", "BTC-USD", 99.9, 100.0, T0))
    run.feed({**tick("kraken", "BTC-USD", 101.0, 101.1, T0 + 10), "sequence": 10**7})
    run.timer(T0 + 500)
    assert run.opportunities() == []
    assert run.rejections()[0].reasons == [reason]


def test_balances_cap_the_size_and_an_empty_one_is_a_reason(configured, tick):
    spending = with_exchange(configured, "coinbase", balances={"USD": D("50.05")})
    gap = open_gap(Run(spending), tick)
    assert (gap.size, gap.limited_by) == (D("0.5"), "balance"), "50 for the coins and 10 bps of it for the fee"
    selling = with_exchange(configured, "kraken", balances={"BTC": D("0.25")})
    assert open_gap(Run(selling), tick).size == D("0.25")
    run = Run(with_exchange(configured, "kraken", balances={"ETH": D(5)}))
    run.feed(tick("coinbase", "BTC-USD", 99.9, 100.0, T0))
    run.feed(tick("kraken", "BTC-USD", 101.0, 101.1, T0))
    run.timer(T0 + 500)
    assert run.rejections()[0].reasons == [Reason.BALANCE]
    assert run.opportunities() == []


def test_a_share_of_the_depth_caps_the_size(configured, tick):
    gap = open_gap(Run(configured, max_depth_share=D("0.4")), tick)
    assert (gap.size, gap.limited_by, gap.depth_limited) == (D("0.4"), "share", False)


def test_a_fee_in_the_coin_sells_only_what_was_received(configured, tick):
    (fee,) = configured.exchanges["coinbase"].fees
    in_base = with_exchange(
        configured, "coinbase", fees=(fee.model_copy(update={"in_base": True}),), lot_step=D("0.0001")
    )
    run = Run(in_base)
    run.feed(stated("kraken", T0, lot_step="0.001"))
    gap = open_gap(run, lambda *a: {**tick(*a), "sequence": 10**7 + a[-1]})
    assert gap.sell_size == D("0.999")
    assert gap.size == D(1)
    assert gap.profit_usd == D("0.999") * 101 * D("0.999") - 100


def test_the_tier_of_the_account_decides_the_fee(configured, tick):
    (fee,) = configured.exchanges["coinbase"].fees
    fees = (fee, fee.model_copy(update={"tier": "vip", "taker_bps": D(2)}))
    assert open_gap(Run(with_exchange(configured, "coinbase", fees=fees)), tick).buy.fee_bps == 10
    assert open_gap(Run(with_exchange(configured, "coinbase", fees=fees, fee_tier="vip")), tick).buy.fee_bps == 2


# ---------------------------------------------------------------- edge after delay


def test_the_edge_is_computed_again_after_each_delay(configured, tick):
    run = Run(configured)
    opened = open_gap(run, tick)  # published at T0+110
    run.feed(tick("kraken", "BTC-USD", 100.5, 100.6, T0 + 210))  # a hundred ms later: still of that moment
    run.feed(tick("kraken", "BTC-USD", 100.1, 100.2, T0 + 361))
    for at in range(T0 + 400, T0 + 1200, 50):
        run.timer(at)
    run.feed(tick("coinbase", "BTC-USD", 99.9, 100.0, T0 + 2000))
    run.timer(T0 + 6000)
    found = {edge.delay_ms: edge for edge in run.outcomes}
    assert list(found) == [50, 100, 250, 500, 1000, 5000]
    assert found[50].net_bps == opened.net_bps
    assert found[50].profit_usd == opened.profit_usd
    assert found[100].net_bps == found[250].net_bps != found[50].net_bps
    assert [found[delay].executable for delay in (50, 100, 250, 500)] == [True, True, True, False]
    assert found[500].profit_usd == 0
    assert found[500].net_bps < 0
    assert (found[5000].missed, found[5000].net_bps, found[5000].profit_usd) == (True, None, None)
    assert {edge.opportunity_id for edge in run.outcomes} == {opened.opportunity_id}
    assert found[250].evaluated_ns == opened.detected_ns + 250 * MS


# ---------------------------------------------------------------- routes of three


def triangle(
    tick, exchanges: tuple[str, str, str], eth_usdt: tuple[float, float], at: int = T0
) -> list[dict[str, Any]]:
    """BTC at 50,000, ETH at 0.05 BTC: 2,500 by way of BTC."""
    bridge, cross, direct = exchanges
    return [
        rate(1.0, 1.0, at),
        tick(bridge, "BTC-USDT", 49_999.0, 50_000.0, at, 2.0),
        tick(cross, "ETH-BTC", 0.0499, 0.05, at, 10.0),
        tick(direct, "ETH-USDT", *eth_usdt, at, 10.0),
    ]


@pytest.mark.parametrize(
    ("exchanges", "route"),
    [
        (("binance",) * 3, "triangular"),
        (("binance", "binance", "okx"), "synthetic"),
        (("okx", "bybit", "okx"), "synthetic"),
    ],
)
def test_a_cycle_of_three_orders_is_found(configured, tick, exchanges, route):
    run = Run(configured, sanity_cap_bps=D(1000))
    for message in triangle(tick, exchanges, (2600.0, 2601.0)):
        run.feed(message)
    run.timer(T0 + 150)
    (opened,) = [o for o in run.opportunities() if o.base == "ETH"]
    assert opened.route == route
    assert (opened.buy.symbol, opened.sell.symbol) == ("ETH-BTC", "ETH-USDT")
    assert [(leg.symbol, leg.side, leg.size) for leg in opened.legs] == [
        ("BTC-USDT", "buy", D("0.5005")),  # 10 ETH cost 0.5 BTC and 10 bps
        ("ETH-BTC", "buy", D(10)),
        ("ETH-USDT", "sell", D(10)),
    ]
    assert opened.profit_usd == 26_000 * D("0.999") - D("0.5005") * 50_000 * D("1.001")
    assert opened.naive_bps == 400


def test_the_other_way_round_ends_on_the_bridge(configured, tick):
    run = Run(configured, sanity_cap_bps=D(1000))
    for message in triangle(tick, ("binance",) * 3, (2399.0, 2400.0)):
        run.feed(message)
    run.timer(T0 + 150)
    (opened,) = run.opportunities()
    assert [(leg.symbol, leg.side) for leg in opened.legs] == [
        ("ETH-USDT", "buy"),
        ("ETH-BTC", "sell"),
        ("BTC-USDT", "sell"),
    ]
    assert opened.profit_usd > 0


def test_three_exchanges_are_no_route_and_routes_can_be_switched_off(configured, tick):
    far = Run(configured, sanity_cap_bps=D(1000))
    off = Run(configured, sanity_cap_bps=D(1000), routes=False)
    for message in triangle(tick, ("kraken", "binance", "okx"), (2600.0, 2601.0)):
        far.feed(message)
    for message in triangle(tick, ("binance",) * 3, (2600.0, 2601.0)):
        off.feed(message)
    far.timer(T0 + 150)
    off.timer(T0 + 150)
    assert far.events == off.events == []


def test_a_move_of_the_bridge_alone_opens_and_closes_a_cycle(configured, tick):
    run = Run(configured, sanity_cap_bps=D(1000))
    for message in triangle(tick, ("binance",) * 3, (2500.0, 2501.0)):
        run.feed(message)
    run.timer(T0 + 50)
    assert run.events == []
    run.feed(tick("binance", "BTC-USDT", 48_999.0, 49_000.0, T0 + 60, 2.0))
    run.timer(T0 + 100)
    run.timer(T0 + 200)
    (opened,) = run.opportunities()
    assert opened.opened_ns == (T0 + 60) * MS
    run.feed(tick("binance", "BTC-USDT", 49_999.0, 50_000.0, T0 + 300, 2.0))
    run.timer(T0 + 350)
    run.timer(T0 + 650)
    assert run.opportunities()[-1].close_reason == "crossing_gone"


def test_a_detector_that_does_not_own_the_bridge_coin_still_needs_its_books(configured, tick):
    detector = configured.detector.model_copy(update={"sanity_cap_bps": D(1000)})
    engine = Engine(configured.model_copy(update={"detector": detector}), owned=lambda base: base != "BTC")
    events = []
    for message in triangle(tick, ("binance",) * 3, (2600.0, 2601.0)):
        events += engine.on_message(as_tick(message), message["received_ns"])
    events += engine.on_message(as_tick(tick("kraken", "BTC-USD", 51_000.0, 51_001.0, T0)), T0 * MS)
    events += engine.on_timer((T0 + 150) * MS)
    assert {event.base for event in events} == {"ETH"}, "BTC's own gap is its owner's"
    engine.own(lambda base: base == "SOL")
    assert engine.on_timer((T0 + 9000) * MS) == []


def test_a_coin_quoted_in_a_coin_is_compared_in_that_coin_and_counted_in_usd(configured, tick):
    run = Run(configured)
    run.feed(tick("kraken", "BTC-USD", 49_999.0, 50_000.0, T0))
    run.feed(tick("binance", "ETH-BTC", 0.0499, 0.05, T0))
    run.feed(tick("okx", "ETH-BTC", 0.0505, 0.0506, T0))
    run.timer(T0 + 150)
    (opened,) = run.opportunities()
    assert opened.route == "direct"
    assert opened.notional_usd == D("0.05") * 50_000
    assert [(r.symbol, r.side) for r in opened.rates] == [("BTC-USD", "ask"), ("BTC-USD", "bid")]


# ---------------------------------------------------------------- the sum


def test_gross_crossings_are_accepted_plus_rejected(configured, tick):
    """A naive count of crossings beside the engine's, on a long random run with all that can end one."""
    import random

    draw = random.Random(7)
    run = Run(configured, persistence_ms=200)
    linger_ms = configured.detector.rejection_linger_ms
    tops: dict[str, tuple[float, float]] = {}
    crossing_since: dict[tuple[str, str], int] = {}
    gone_since: dict[tuple[str, str], int] = {}
    naive = 0
    at = T0
    for _ in range(4000):
        at += draw.choice([1, 5, 20, 50, 300])
        name = draw.choice(["binance", "coinbase", "kraken"])
        mid = 100 * (1 + draw.choice([0, 0, 0, 0.0005, 0.003, -0.004]))
        tops[name] = (mid - 0.02, mid + 0.02)
        run.feed(tick(name, "BTC-USD", *tops[name], at))
        run.timer(at)
        for buy, (_, ask) in tops.items():
            for sell, (bid, _) in tops.items():
                pair = (buy, sell)
                if buy != sell and bid > ask:
                    if pair not in crossing_since:
                        crossing_since[pair] = at
                        naive += 1
                    gone_since.pop(pair, None)
                elif pair in crossing_since:
                    gone_since.setdefault(pair, at)
                    if at - gone_since[pair] >= linger_ms:
                        del crossing_since[pair], gone_since[pair]
    counted = run.engine.crossings
    open_now = {event.buy.exchange + event.sell.exchange for event in _still_open(run.events)}
    assert counted["opened"] == counted["accepted"] + counted["rejected"] + len(open_now)
    assert counted["accepted"] > 20
    assert counted["rejected"] > 20
    assert {buy + sell for buy, sell in crossing_since} >= open_now
    accepted = {o.opportunity_id for o in run.opportunities() if o.phase == "opened"}
    assert len(accepted) >= counted["accepted"], "a crossing may be accepted more than once, and is counted once"
    assert abs(counted["opened"] - naive) <= len(accepted), (
        "an opportunity ends sooner than a rejection: it may split one"
    )


def _still_open(events: list[Opportunity | Rejection]) -> list[Opportunity | Rejection]:
    found = {}
    for event in events:
        identity = event.opportunity_id if isinstance(event, Opportunity) else event.rejection_id
        if event.phase == "closed":
            found.pop(identity, None)
        else:
            found[identity] = event
    return list(found.values())


def test_every_message_of_a_run_can_be_read_back(configured, tick):
    from shared.messages import decode

    run = Run(configured, sanity_cap_bps=D(1000))
    for message in triangle(tick, ("binance", "binance", "okx"), (2600.0, 2601.0)):
        run.feed(message)
    for at in range(T0 + 50, T0 + 6500, 50):
        run.timer(at)
    kinds = {type(decode(event.encode())) for event in [*run.events, *run.outcomes]}
    assert kinds == {Opportunity, Rejection, DelayedEdge}
