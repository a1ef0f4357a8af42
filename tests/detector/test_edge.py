"""The depth walk: the published vectors, and a brute force that tries every size."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.detector import edge
from services.detector.edge import Caps, Side
from shared.messages import Reason

D = Decimal


def levels(text: str) -> list[tuple[Decimal, Decimal]]:
    return [(D(price), D(size)) for price, size in (pair.split("@")[::-1] for pair in text.split())]


V1_ASKS, V1_BIDS = levels("1@100 2@100.2 11@100.7"), levels("1.5@101 1.5@100.8 11@100.75")
TEN = Side(fee=D("0.001"))


def test_v1_stops_at_the_maximum_and_not_at_the_average():
    found = edge.evaluate(V1_ASKS, V1_BIDS, TEN, TEN)
    assert (found.size, found.profit) == (D(3), D("1.6969"))
    assert (found.buy_limit, found.sell_limit) == (D("100.2"), D("100.8"))
    assert (found.buy_levels, found.sell_levels) == (2, 2)
    assert not found.depth_limited, "the walk ended by margin"
    assert found.sell_vwap == D("100.9")


@pytest.mark.parametrize(("size", "profit"), [("1", "0.799"), ("1.5", "1.0984"), ("3", "1.6969")])
def test_v1_cumulative(size, profit):
    found = edge.walk(V1_ASKS, V1_BIDS, TEN, TEN, Caps(sell=D(size)))
    assert (found.bought, found.sold) == (D(size), D(size))
    bought, sold = edge.take(V1_ASKS, found.bought), edge.take(V1_BIDS, found.sold)
    assert sold.quote * D("0.999") - bought.quote * D("1.001") == D(profit)


@pytest.mark.parametrize(("buy", "sell", "gross"), [(10, 10, "20.0200"), (10, 40, "50.2008"), (10, 60, "70.4225")])
def test_v2_break_even_gap(buy, sell, gross):
    """Just above the break-even gap there is a profit, just below there is none."""
    terms = Side(D(buy) / 10_000), Side(D(sell) / 10_000)
    for shift, pays in (("0.001", True), ("-0.001", False)):
        bid = D(100) * (1 + (D(gross) + D(shift)) / 10_000)
        assert (edge.evaluate([(D(100), D(1))], [(bid, D(1))], *terms).size > 0) is pays


@pytest.mark.parametrize(
    ("sell_fee", "reasons", "profit", "net"),
    [(60, (Reason.FEES,), "0", "-40.03"), (10, (), "67.7975", "10.07")],
)
def test_v3_a_published_demo(sell_fee, reasons, profit, net):
    found = edge.evaluate(levels("1@67250"), levels("1@67452.5"), TEN, Side(D(sell_fee) / 10_000))
    assert found.reasons == reasons
    assert found.profit == D(profit)
    assert found.net_bps is not None
    assert round(found.net_bps, 2) == D(net)
    assert found.naive_bps is not None
    assert round(found.naive_bps, 1) == D("30.1")


def test_v5_lots_floor_to_the_common_step_and_profit_is_of_that_size():
    buy, sell = Side(lot_step=D("0.001")), Side(lot_step=D("0.0001"))
    found = edge.evaluate(levels("0.123456@100"), levels("5@101"), buy, sell)
    assert found.size == D("0.123")
    assert found.profit == D("0.123")
    assert found.depth_limited


@pytest.mark.parametrize(
    ("steps", "common"),
    [
        (("0.001", "0.0004"), "0.002"),
        (("0.1", None), "0.1"),
        ((None, None), None),
        (("1", "0.3"), "3"),
        (("10", "4"), "20"),
    ],
)
def test_the_common_step_is_a_multiple_of_both(steps, common):
    given_steps = [None if step is None else D(step) for step in steps]
    assert edge.common_step(*given_steps) == (None if common is None else D(common))


@pytest.mark.parametrize(
    ("asks", "bids", "buy", "sell", "cap", "reason"),
    [
        ("", "1@101", Side(), Side(), None, [Reason.DEPTH]),
        ("1@100", "", Side(), Side(), None, [Reason.DEPTH]),
        ("1@100", "1@100", Side(), Side(), None, [Reason.NO_CROSSING]),
        ("1@100", "1@99", Side(), Side(), None, [Reason.NO_CROSSING]),
        ("1@100", "1@100.1", TEN, TEN, None, [Reason.FEES]),
        ("1@100", "1@100.1", Side(), Side(rate=D("0.998")), None, [Reason.CONVERSION]),
        ("1@100", "1@100.3", TEN, Side(D("0.001"), rate=D("0.9995")), None, []),
        ("1@100", "1@100.3", TEN, Side(D("0.001"), rate=D("0.9985")), None, [Reason.FEES, Reason.CONVERSION]),
        ("1@100", "1@100.1", TEN, Side(D("0.001"), rate=D("0.9985")), None, [Reason.FEES, Reason.CONVERSION]),
        ("1@100", "1@99.9", Side(rate=D("0.998")), Side(), None, []),
        ("1@100", "1@101", Side(), Side(), D(0), [Reason.DEPTH]),
        ("0.5@100", "1@101", Side(lot_step=D(1)), Side(), None, [Reason.LOT]),
        ("1@100", "1@101", Side(min_notional=D(100)), Side(), None, []),
        ("1@100", "1@101", Side(min_notional=D("100.01")), Side(), None, [Reason.MIN_NOTIONAL]),
        ("1@100", "1@101", Side(), Side(min_notional=D("101.01")), None, [Reason.MIN_NOTIONAL]),
    ],
)
def test_each_gate_of_the_walk(asks, bids, buy, sell, cap, reason):
    found = edge.evaluate(levels(asks), levels(bids), buy, sell, Caps(notional=cap))
    if reason == [Reason.FEES, Reason.CONVERSION] and found.reasons != tuple(reason):
        # Neither alone eats the gap, or one does: at least one of the two is named.
        assert set(found.reasons) <= set(reason)
        assert found.reasons
    else:
        assert list(found.reasons) == reason
    assert (found.size > 0) is (reason == [])


def test_a_cap_cuts_inside_a_level_and_is_no_lack_of_depth():
    found = edge.evaluate(levels("1@100 1@100.5"), levels("5@102"), Side(), Side(), Caps(notional=D("150.25")))
    assert found.size == D("1.5")
    assert found.notional == D("150.25")
    assert not found.depth_limited


def test_buying_pays_the_rates_ask_and_selling_gets_its_bid():
    both = edge.evaluate(levels("1@100"), levels("1@102"), Side(rate=D("1.01")), Side(rate=D("0.99")))
    assert both.reasons == (Reason.CONVERSION,)
    found = edge.evaluate(levels("1@100"), levels("1@103"), Side(rate=D("1.01")), Side(rate=D("0.99")))
    assert found.profit == D("0.97")


def test_a_closed_loop_pays_the_conversion_too():
    found = edge.evaluate(levels("1@100"), levels("1@101"), Side(), Side(), closed_loop=D("0.998"))
    assert found.closed_loop_bps == (D("100.798") - 100) * 100
    assert edge.evaluate(levels("1@100"), levels("1@101"), Side(), Side(), closed_loop=None).closed_loop_bps is None


# ---------------------------------------------------------------- against brute force

PRICE = st.integers(90, 110)
SIZE = st.integers(1, 6).map(lambda n: Fraction(n, 2))
BOOK = st.lists(st.tuples(PRICE, SIZE), max_size=5)
FEE = st.sampled_from([0, 5, 10, 60])
RATE = st.sampled_from(["1", "0.999", "1.001"])
LOT = st.sampled_from([None, "0.5", "0.75", "2"])
CAP = st.sampled_from([None, 50, 130, 10_000])


def money(asks, bids, size, buy_factor, sell_factor):
    """Profit of trading exactly `size`, in fractions, buying cheapest and selling dearest first."""

    def take(side):
        left, total = size, Fraction(0)
        for price, available in side:
            step = min(left, available)
            total += step * price
            left -= step
        assert left == 0
        return total

    return take(bids) * sell_factor - take(asks) * buy_factor


@settings(max_examples=300)
@given(BOOK, BOOK, FEE, FEE, RATE, RATE, LOT, LOT, CAP)
def test_no_size_makes_more(asks, bids, buy_fee, sell_fee, buy_rate, sell_rate, buy_lot, sell_lot, cap):
    asks, bids = sorted(asks), sorted(bids, reverse=True)
    buy_factor = Fraction(buy_rate) * (1 + Fraction(buy_fee, 10_000))
    sell_factor = Fraction(sell_rate) * (1 - Fraction(sell_fee, 10_000))
    step = edge.common_step(*(None if lot is None else D(lot) for lot in (buy_lot, sell_lot)))
    terms = [
        Side(D(fee) / 10_000, D(rate), None if lot is None else D(lot))
        for fee, rate, lot in ((buy_fee, buy_rate, buy_lot), (sell_fee, sell_rate, sell_lot))
    ]
    found = edge.evaluate(
        [(D(p), D(str(float(s)))) for p, s in asks],
        [(D(p), D(str(float(s)))) for p, s in bids],
        *terms,
        Caps(notional=None if cap is None else D(cap)),
    )
    most = min(sum((s for _, s in asks), Fraction(0)), sum((s for _, s in bids), Fraction(0)))
    sizes = {Fraction(0)}
    for side in (asks, bids):
        total = Fraction(0)
        for _, available in side:
            total += available
            sizes.add(min(total, most))
    allowed = most if cap is None else largest_within(asks, most, Fraction(cap), Fraction(buy_rate))
    sizes = {min(size, allowed) for size in sizes} | {allowed}
    best = max(money(asks, bids, size, buy_factor, sell_factor) for size in sizes)
    got, profit = Fraction(found.size), Fraction(found.profit)
    assert profit == (money(asks, bids, got, buy_factor, sell_factor) if got else 0), "profit is exact at its size"
    assert got <= allowed
    if step is None:
        assert best - Fraction(1, 10**15) <= profit <= best
    else:
        assert got % Fraction(step) == 0
        assert 0 <= profit <= best
        smaller = got + Fraction(step)
        if smaller <= allowed and got > 0:
            assert money(asks, bids, smaller, buy_factor, sell_factor) <= best


def largest_within(asks, most, cap, rate):
    """The size whose bought value in USD is the cap."""
    left, size = cap, Fraction(0)
    for price, available in asks:
        step = min(available, left / (price * rate), most - size)
        size += step
        left -= step * price * rate
    return size


@given(BOOK, BOOK, FEE, FEE, st.integers(-3, 3))
def test_scaling_prices_by_a_power_of_ten_scales_profit(asks, bids, buy_fee, sell_fee, power):
    asks, bids = sorted(asks), sorted(bids, reverse=True)
    terms = Side(D(buy_fee) / 10_000), Side(D(sell_fee) / 10_000)

    def at(scale: Decimal) -> edge.Evaluation:
        return edge.evaluate(*([(D(p) * scale, D(str(float(s)))) for p, s in side] for side in (asks, bids)), *terms)

    one, scaled = at(D(1)), at(D(10) ** power)
    assert scaled.profit == edge.EXACT.multiply(one.profit, D(10) ** power)
    assert (scaled.size, scaled.reasons, scaled.net_bps) == (one.size, one.reasons, one.net_bps)


@given(BOOK, BOOK, FEE, FEE, FEE)
def test_a_worse_fee_never_raises_profit(asks, bids, fee, sell_fee, more):
    asks, bids = sorted(asks), sorted(bids, reverse=True)
    sides = [[(D(p), D(str(float(s)))) for p, s in side] for side in (asks, bids)]
    cheap = edge.evaluate(*sides, Side(D(fee) / 10_000), Side(D(sell_fee) / 10_000))
    dear = edge.evaluate(*sides, Side(D(fee + more) / 10_000), Side(D(sell_fee) / 10_000))
    assert dear.profit <= cheap.profit


# ---------------------------------------------------------------- fees in the coin, balances, share of depth

SHARE = st.sampled_from([None, "1", "0.5", "0.1"])
BALANCE = st.sampled_from([None, "0", "0.7", "3", "130"])


def decimals(side):
    return [(D(p), D(str(float(s)))) for p, s in side]


def fill(side, size):
    """Value of filling exactly `size`, in fractions."""
    left, total = size, Fraction(0)
    for price, available in side:
        step = min(left, available)
        total += step * price
        left -= step
    assert left == 0, "more than the book holds"
    return total


@settings(max_examples=300)
@given(BOOK, BOOK, FEE, FEE, st.booleans(), SHARE, BALANCE, BALANCE, CAP)
def test_no_size_within_all_caps_makes_more(asks, bids, buy_fee, sell_fee, in_base, share, spend, sell_most, cap):
    """Every breakpoint of the profit (level ends and caps) is tried, by the fraction of the coin that is kept."""
    asks, bids = sorted(asks), sorted(bids, reverse=True)
    f, g = Fraction(buy_fee, 10_000), Fraction(sell_fee, 10_000)
    kept, on_top = (1 - f, Fraction(1)) if in_base else (Fraction(1), 1 + f)
    caps = Caps(*(None if value is None else D(str(value)) for value in (cap, spend, sell_most, share)))
    found = edge.evaluate(
        decimals(asks), decimals(bids), Side(D(buy_fee) / 10_000, fee_in_base=in_base), Side(D(sell_fee) / 10_000), caps
    )
    depth_asks, depth_bids = (sum((s for _, s in side), Fraction(0)) for side in (asks, bids))
    part = Fraction(1) if share is None else Fraction(share)
    money = [Fraction(cap)] if cap is not None else []
    money += [Fraction(spend) / on_top] if spend is not None else []
    money_cap = min(money, default=None)
    most = min(depth_asks * part, depth_bids * part / kept)
    if sell_most is not None:
        most = min(most, Fraction(sell_most) / kept)
    if money_cap is not None:
        most = min(most, largest_within(asks, depth_asks, money_cap, Fraction(1)))
    points = {Fraction(0), most}
    for side, per in ((asks, Fraction(1)), (bids, kept)):
        total = Fraction(0)
        for _, available in side:
            total += available
            points.add(min(total / per, most))

    def profit(bought):
        return fill(bids, bought * kept) * (1 - g) - fill(asks, bought) * on_top

    best = max(profit(point) for point in points)
    bought, sold, got = (Fraction(value) for value in (found.size, found.sell_size, found.profit))
    assert best - Fraction(1, 10**14) <= got <= best
    assert got == fill(bids, sold) * (1 - g) - fill(asks, bought) * on_top, "profit is exact at its sizes"
    assert bought <= most + Fraction(1, 10**40)
    assert sold <= bought * kept, "no more is sold than was received"
    assert bool(found.reasons) == (got == 0)


@settings(max_examples=200)
@given(BOOK, BOOK, FEE, FEE, LOT, LOT)
def test_with_lots_a_fee_in_the_coin_leaves_whole_lots_and_no_loss(asks, bids, buy_fee, sell_fee, buy_lot, sell_lot):
    asks, bids = sorted(asks), sorted(bids, reverse=True)
    steps = [None if lot is None else D(lot) for lot in (buy_lot, sell_lot)]
    buy = Side(D(buy_fee) / 10_000, lot_step=steps[0], fee_in_base=True)
    found = edge.evaluate(decimals(asks), decimals(bids), buy, Side(D(sell_fee) / 10_000, lot_step=steps[1]))
    for size, step in zip((found.size, found.sell_size), steps, strict=True):
        assert step is None or size % step == 0
    assert found.sell_size <= found.size * (1 - buy.fee)
    assert found.profit >= 0
    if steps[0] is not None and found.size > 0:
        assert (found.size - steps[0]) * (1 - buy.fee) < found.sell_size, "a lot less would not have been enough"


def test_enormous_books_are_exact_and_quick():
    """Ten thousand levels a side, with all the digits that a wire number has."""
    asks = [(D(100) + D(n) / 10**6, D("0.12345678")) for n in range(10_000)]
    bids = [(D(101) - D(n) / 10**6, D("0.00000007")) for n in range(10_000)]
    found = edge.evaluate(asks, bids, TEN, TEN)
    assert found.size == D("0.0007")
    assert found.limited_by == "depth"
    sold = sum(((D(101) - D(n) / 10**6) * D("0.00000007") for n in range(10_000)), D(0))
    assert found.profit == sold * D("0.999") - D("0.0007") * 100 * D("1.001")
