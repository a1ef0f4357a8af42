"""What a model is told of the books: the ten best levels, whatever the exchange publishes."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.detector.context import depth_usd, imbalance
from tests.detector.test_engine import T0, Run, open_gap, rate
from tests.detector.test_lifecycle import triangle

D = Decimal
prices = st.floats(1e-9, 1e9)
sides = st.lists(st.tuples(prices, prices), max_size=25)


def levels(price: float, step: float, size: float, count: int) -> list[list[float]]:
    return [[round(price + n * step, 8), size] for n in range(count)]


@given(sides, sides)
def test_imbalance_is_the_share_of_the_ten_best_levels(bids, asks):
    bid, ask = (sum((Fraction(size) for _, size in side[:10]), Fraction(0)) for side in (bids, asks))
    found = imbalance(bids, asks)
    if not bid + ask:
        assert found is None
    else:
        assert found is not None
        assert -1 <= found <= 1
        assert abs(Fraction(found) - (bid - ask) / (bid + ask)) <= Fraction(51, 10_000)


@given(sides, st.floats(1e-3, 1e5))
def test_depth_is_the_value_of_the_ten_best_levels_to_the_cent(side, usd):
    exact = sum((Fraction(price) * Fraction(size) for price, size in side[:10]), Fraction(0)) * Fraction(usd)
    found = depth_usd(side, usd)
    assert found is not None
    assert abs(Fraction(found) - exact) <= Fraction(1, 199) + exact / 10**14


@pytest.mark.parametrize("usd", [0.0, float("inf"), float("nan")])
def test_without_a_rate_no_depth_is_guessed(usd):
    assert depth_usd([(100.0, 1.0)], usd) is None


def test_prices_and_sizes_at_the_limits_of_what_is_read_still_give_numbers():
    side = [(1e18, 1e18)] * 10
    assert round(depth_usd(side, 1e18), -45) == D("1e55")
    assert imbalance(side, side) == 0


def test_an_opportunity_says_the_depth_of_both_sides_at_the_rate_in_use(configured, tick):
    run = Run(configured)
    run.feed(rate(0.998, 1.002, T0))
    bought = tick("binance", "BTC-USDT", 99.9, 100.0, T0)
    bought |= {"asks": levels(100.0, 0.01, 2.0, 12), "bids": levels(99.9, -0.01, 0.5, 3)}
    sold = tick("kraken", "BTC-USD", 102.0, 102.1, T0) | {"bids": levels(102.0, -0.5, 1.0, 15)}
    run.feed(bought)
    run.feed(sold)
    run.timer(T0 + 110)
    (opened,) = run.opportunities()
    asks = sum(D("2") * (D(100) + n * D("0.01")) for n in range(10))
    bids = sum(D(102) - n * D("0.5") for n in range(10))
    assert opened.context.ask_depth_usd == round(asks * D("1.002"), 2)
    assert opened.context.bid_depth_usd == bids
    assert opened.context.imbalance_buy == round(D("-18.5") / D("21.5"), 2), "ten asks of 2, three bids of 0.5"
    assert opened.context.imbalance_sell == round(D(9) / D(11), 2), "ten bids of 1, one ask of 1"
    assert len(opened.buy.asks) == 5, "the message itself shows less"


def test_what_is_sold_for_tether_is_worth_what_tether_brings(configured, tick):
    run = Run(configured)
    run.feed(rate(0.998, 1.002, T0))
    run.feed(tick("kraken", "BTC-USD", 99.9, 100.0, T0, size=3.0))
    run.feed(tick("binance", "BTC-USDT", 102.0, 102.1, T0, size=2.0))
    run.timer(T0 + 110)
    (opened,) = run.opportunities()
    assert (opened.context.ask_depth_usd, opened.context.bid_depth_usd) == (300, D("203.59"))


@pytest.mark.parametrize(("eth_usdt", "first"), [((2600.0, 2601.0), True), ((2399.0, 2400.0), False)])
def test_in_a_cycle_the_bridge_of_the_cycle_values_the_book_in_the_bridge_coin(configured, tick, eth_usdt, first):
    run = Run(configured, sanity_cap_bps=D(1000))
    for message in triangle(tick, ("binance", "binance", "okx"), eth_usdt):
        run.feed(message)
    run.timer(T0 + 150)
    (opened,) = [one for one in run.opportunities() if one.base == "ETH"]
    bridge = next(leg for leg in opened.legs if leg.symbol == "BTC-USDT")
    rates = {used.side: used.price for used in opened.rates}
    if first:
        price, size = (D(repr(number)) for number in opened.buy.asks[0])
        through = D(repr(bridge.asks[0][0])) * rates.get("ask", D(1))
        assert opened.context.ask_depth_usd == round(price * size * through, 2)
    else:
        price, size = (D(repr(number)) for number in opened.sell.bids[0])
        through = D(repr(bridge.bids[0][0])) * rates.get("bid", D(1))
        assert opened.context.bid_depth_usd == round(price * size * through, 2)


def test_what_closes_keeps_the_context_of_the_last_look(configured, tick):
    run = Run(configured)
    opened = open_gap(run, tick)
    run.feed(tick("kraken", "BTC-USD", 99.0, 99.1, T0 + 500))
    run.timer(T0 + 500 + configured.detector.close_after_ms)
    closed = run.opportunities()[-1]
    assert closed.phase == "closed"
    assert opened.context.ask_depth_usd == closed.context.ask_depth_usd == 100
