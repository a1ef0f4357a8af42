"""The walk along a cycle: two cycles computed by hand, a brute force over every breakpoint, and what must not change."""

import random
from bisect import bisect_left
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from operator import attrgetter
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.detector import edge
from services.detector.cycle import CycleEvaluation, Order, evaluate_cycle
from shared.messages import Reason

D = Decimal


def levels(text: str) -> list[tuple[Decimal, Decimal]]:
    return [(D(price), D(size)) for price, size in (pair.split("@")[::-1] for pair in text.split())]


def order(side, book, fee="0", in_base=False, lot=None, min_size=None, min_notional=None, max_size=None) -> Order:
    optional = (None if number is None else D(number) for number in (lot, min_size, min_notional, max_size))
    return Order(side, levels(book) if isinstance(book, str) else book, D(fee), in_base, *optional)


def decimals(*numbers: str) -> tuple[Decimal, ...]:
    return tuple(map(D, numbers))


def evaluated(orders, spend="1", receive="1", cap=None) -> CycleEvaluation:
    return evaluate_cycle(tuple(orders), D(spend), D(receive), None if cap is None else D(cap))


# BTC costs 100, ETH costs 0.05 BTC (so 5 in cash) and brings 5.2 for 8 units, then 5.1; above 0.05 BTC it costs 5.1.
IN = (order("buy", "1@100 1@101"), order("buy", "10@0.05 10@0.051"), order("sell", "8@5.2 20@5.1"))
# ETH costs 4 (then 4.7), is sold for 0.05 BTC, and a BTC brings 100, then 96, then 90: 5, 4.8 and 4.5 per ETH.
OUT = (order("buy", "10@4 10@4.7"), order("sell", "100@0.05"), order("sell", "0.4@100 0.4@96 5@90"))


# ---------------------------------------------------------------- by hand


def test_in_stops_where_a_further_unit_brings_only_what_it_costs():
    """8 units at +0.2, 2 at +0.1, and none where both sides are 5.1."""
    found = evaluated(IN)
    assert found == CycleEvaluation(
        reasons=(),
        sizes=decimals("0.5", "10", "10"),
        profit=D("1.8"),
        notional=D(50),
        naive_bps=D(360),
        net_bps=D(360),
        closed_loop_bps=None,
        vwaps=decimals("100", "0.05", "5.18"),
        limits=decimals("100", "0.05", "5.1"),
        levels_used=(1, 1, 2),
        limited_by="margin",
    )


def test_out_walks_all_three_books():
    """8 units at +1 exhaust the first bridge bid, 2 at +0.8 the first ask, 6 at +0.1 the second bridge bid."""
    found = evaluated(OUT)
    assert found.sizes == decimals("16", "16", "0.8")
    assert found.profit == D(8) + D("1.6") + D("0.6")
    assert found.notional == D(40) + D("28.2")
    assert found.vwaps == decimals("4.2625", "0.05", "98")
    assert found.limits == decimals("4.7", "0.05", "96")
    assert found.levels_used == (2, 1, 2)
    assert found.limited_by == "margin"


def test_in_pays_each_fee_where_it_falls_and_converts_the_cash():
    """10 ETH for 0.4 BTC and 25 % of it, 0.5 BTC out of 0.625 that lose 20 %, at 100 and 1.1; 80 less 10 % at 1.05."""
    orders = order("buy", "2@100", "0.2", True), order("buy", "10@0.04", "0.25"), order("sell", "20@8", "0.1")
    found = evaluated(orders, "1.1", "1.05")
    assert found.sizes == decimals("0.625", "10", "10")
    assert found.notional == D("68.75")
    assert found.profit == D("75.6") - D("68.75")
    assert found.naive_bps == D(10_000), "8 for 100 * 0.04"
    assert found.net_bps is not None
    assert round(found.net_bps, 10) == round((D("75.6") / D("68.75") - 1) * 10_000, 10)
    assert found.limited_by == "depth"


def test_out_pays_each_fee_where_it_falls_and_converts_the_cash():
    """10 ETH for 40 leave 8; 0.4 BTC for them leave 0.36; 54 for these leave 43.2, at 1.05."""
    orders = order("buy", "10@4", "0.2", True), order("sell", "9@0.05", "0.1"), order("sell", "1@150", "0.2")
    found = evaluated(orders, "1.1", "1.05")
    assert found.sizes == decimals("10", "8", "0.36")
    assert found.notional == D(44)
    assert found.profit == D("45.36") - D(44)
    assert found.naive_bps == D(8750), "150 * 0.05 for 4"


def test_in_with_lots_rounds_the_bridge_coin_up_and_the_coin_down():
    """Lots of 0.4 and 0.6 of the coin have 1.2 in common: 9.6 of 10; 0.48 BTC need 0.49 in lots of 0.07."""
    lots = "0.07", "0.4", "0.6"
    found = evaluated(replace(terms, lot_step=D(lot)) for terms, lot in zip(IN, lots, strict=True))
    assert found.sizes == decimals("0.49", "9.6", "9.6")
    assert found.notional == D(49)
    assert found.profit == D("41.6") + D("8.16") - D(49)
    assert found.net_bps == edge.ratio_bps(D("49.76"), D(49)), "dust of the bridge coin is worth nothing"
    assert found.naive_bps is not None
    assert round(found.naive_bps, 10) == round((D("49.76") / 48 - 1) * 10_000, 10), "prices alone know no dust"
    assert found.limited_by == "margin"


def test_out_with_lots_rounds_everything_down():
    """15 of 16 ETH, 0.75 BTC, of which 0.7 can be sold: 0.4 at 100 and 0.3 at 96."""
    found = evaluated(replace(terms, lot_step=D(lot)) for terms, lot in zip(OUT, ("1.5", "1", "0.1"), strict=True))
    assert found.sizes == decimals("15", "15", "0.7")
    assert found.profit == D(40) + D("28.8") - D(40) - D("23.5")
    assert found.limits == decimals("4.7", "0.05", "96")


def test_out_buys_no_coin_for_what_would_be_dust_of_the_bridge_coin():
    """16 ETH bring 0.8 BTC, of which 0.7 can be sold: 14 are enough."""
    assert evaluated((*OUT[:2], replace(OUT[2], lot_step=D("0.7")))).sizes == decimals("14", "14", "0.7")
    found = evaluated((OUT[0], replace(OUT[1], fee=D("0.01")), replace(OUT[2], lot_step=D("0.297"))))
    assert found.sizes == decimals("12", "12", "0.594"), "which is 0.6 less the fee"


@pytest.mark.parametrize(("lot", "bought"), [("0.5", "2.5"), ("0.1", "2.4")])
def test_a_fee_in_the_coin_buys_no_more_lots_than_the_sale_needs(lot, bought):
    """2.5 or 2.8 of the coin leave half of it, of which 1.2 are lots of 0.6: these need 2.4, in lots of the purchase."""
    orders = order("buy", "2.8@4", "0.5", True, lot=lot), order("sell", "9@0.1", lot="0.6"), order("sell", "1@100")
    found = evaluated(orders)
    assert found.sizes == decimals(bought, "1.2", "0.12")
    assert found.profit == 12 - D(bought) * 4


def test_lots_never_buy_more_than_the_walk_does():
    """1.4 to be sold need 2.8, of which 2 are lots and leave 1: one lot of 0.7, although a third unit is published."""
    orders = order("buy", "9@4", "0.5", True, lot="1"), order("sell", "9@0.2", lot="0.7", max_size="1.4")
    assert evaluated((*orders, order("sell", "1@100"))).sizes == decimals("2", "0.7", "0.14")


def test_a_bridge_coin_that_loses_its_fee_is_bought_for_what_is_left():
    """0.4 BTC are needed and 20 % are lost: 0.5, which is no multiple of 0.03."""
    orders = order("buy", "2@100", "0.2", True, lot="0.03"), order("buy", "8@0.05"), order("sell", "9@8")
    assert evaluated(orders).sizes == decimals("0.51", "8", "8")


def test_a_division_that_does_not_end_is_cut_at_the_smallest_unit():
    """1 BTC buys 3.33 ETH at 0.3; what that costs, rounded up again, is 1 BTC."""
    found = evaluated((order("buy", "1@100"), order("buy", "9@0.3"), order("sell", "9@31")))
    assert found.sizes == decimals("1", "3.333333333333333333", "3.333333333333333333")
    assert found.profit == D("3.333333333333333323"), "exact for these sizes"
    assert found.naive_bps == D("333.3333333333333333333333333")


# ---------------------------------------------------------------- caps


@pytest.mark.parametrize(
    ("orders", "position", "caps", "sizes", "limited_by"),
    [
        (IN, 0, {"max_size": D("0.3")}, ("0.3", "6", "6"), "share"),
        (IN, 1, {"max_size": D(7)}, ("0.35", "7", "7"), "share"),
        (IN, 2, {"max_size": D(9)}, ("0.45", "9", "9"), "share"),
        (IN, 2, {"max_size": D(10)}, ("0.5", "10", "10"), "margin"),
        (OUT, 0, {"max_size": D(9)}, ("9", "9", "0.45"), "share"),
        (OUT, 1, {"max_size": D(12)}, ("12", "12", "0.6"), "share"),
        (OUT, 2, {"max_size": D("0.7")}, ("14", "14", "0.7"), "share"),
        (OUT, 2, {"max_size": D("0.7"), "lot_step": D("0.4")}, ("8", "8", "0.4"), "share"),
        (OUT, 2, {"levels": levels("0.4@100 0.4@96 0.1@90"), "lot_step": D("0.4")}, ("16", "16", "0.8"), "margin"),
        (OUT, 2, {"levels": levels("0.4@100 0.4@96 0.1@90"), "lot_step": D("0.6")}, ("12", "12", "0.6"), "margin"),
        (OUT, 2, {"levels": levels("0.4@100 0.1@96")}, ("10", "10", "0.5"), "depth"),
        (OUT, 1, {"levels": levels("8@0.05 1@0.01")}, ("8", "8", "0.4"), "margin"),
    ],
)
def test_each_order_has_its_own_cap(orders, position, caps, sizes, limited_by):
    capped = [replace(terms, **caps) if k == position else terms for k, terms in enumerate(orders)]
    found = evaluated(capped)
    assert found.sizes == decimals(*sizes)
    assert found.limited_by == limited_by


@pytest.mark.parametrize(
    ("orders", "cap", "sizes", "limited_by"),
    [
        (IN, "30", ("0.25", "5", "5"), "notional"),
        (IN, "60", ("0.5", "10", "10"), "margin"),
        (OUT, "24", ("5", "5", "0.25"), "notional"),
        (OUT, "59.28", ("12", "12", "0.6"), "notional"),
        (OUT, "1000", ("16", "16", "0.8"), "margin"),
    ],
)
def test_the_notional_cap_is_on_what_the_first_order_spends_in_usd(orders, cap, sizes, limited_by):
    """At a rate of 1.2 for spending and receiving, which moves no margin."""
    found = evaluated(orders, "1.2", "1.2", cap)
    assert found.sizes == decimals(*sizes)
    assert found.limited_by == limited_by
    assert found.notional <= D(cap)


def test_the_notional_cap_counts_no_fee():
    assert evaluated((replace(OUT[0], fee=D("0.01")), *OUT[1:]), cap="20").notional == D(20)


# ---------------------------------------------------------------- reasons


def flat(*prices: str, **changed: dict[str, object]) -> list[Order]:
    """An "out" cycle of one level of size 1 each."""
    sides = "buy", "sell", "sell"
    orders = [order(side, f"1@{price}") for side, price in zip(sides, prices, strict=True)]
    return [
        replace(terms, **changed.get(name, {})) for name, terms in zip(("one", "two", "three"), orders, strict=True)
    ]


TENTH = {"fee": D("0.1")}


@pytest.mark.parametrize(
    ("orders", "rates", "cap", "reasons"),
    [
        (flat("10", "1", "11"), ("1", "1"), None, []),
        (flat("10", "1", "11", one={"levels": []}), ("1", "1"), None, [Reason.DEPTH]),
        (flat("10", "1", "11", two={"levels": []}), ("1", "1"), None, [Reason.DEPTH]),
        (flat("10", "1", "11", three={"levels": []}), ("1", "1"), None, [Reason.DEPTH]),
        (flat("10", "1", "11", three={"max_size": D(0)}), ("1", "1"), None, [Reason.DEPTH]),
        (flat("10", "1", "11"), ("1", "1"), "0", [Reason.DEPTH]),
        (flat("10", "1", "10"), ("1", "1"), None, [Reason.NO_CROSSING]),
        (flat("10", "1", "9"), ("1", "1"), "0", [Reason.NO_CROSSING]),
        (flat("10", "1", "11", one=TENTH), ("1", "1"), None, [Reason.FEES]),
        (flat("10", "1", "11", two=TENTH), ("1", "1"), None, [Reason.FEES]),
        (flat("10", "1", "11", three=TENTH), ("1", "1"), None, [Reason.FEES]),
        (flat("10", "1", "11.1", one=TENTH), ("1", "1"), None, []),
        (flat("10", "1", "11.1", one=TENTH | {"fee_in_base": True}), ("1", "1"), None, [Reason.FEES]),
        (flat("10", "1", "11"), ("1.1", "1"), None, [Reason.CONVERSION]),
        (flat("10", "1", "11"), ("1", "0.9"), None, [Reason.CONVERSION]),
        (flat("10", "1", "11", three=TENTH), ("1.1", "1"), None, [Reason.FEES, Reason.CONVERSION]),
        (flat("10", "1", "12", three=TENTH), ("1.1", "1"), None, [Reason.FEES, Reason.CONVERSION]),
        (flat("10", "1", "9.5"), ("0.9", "1"), None, []),
        (flat("10", "1", "9.5", two=TENTH), ("0.9", "1"), None, [Reason.FEES]),
        (flat("10", "1", "11", one={"lot_step": D(2)}), ("1", "1"), None, [Reason.LOT]),
        (flat("10", "1", "11", two={"lot_step": D(2)}), ("1", "1"), None, [Reason.LOT]),
        (flat("10", "1", "11", three={"lot_step": D(2)}), ("1", "1"), None, [Reason.LOT]),
        ([replace(IN[0], lot_step=D("0.517")), *IN[1:]], ("1", "1"), None, []),
        ([replace(IN[0], lot_step=D("0.518")), *IN[1:]], ("1", "1"), None, [Reason.LOT]),
        ([replace(IN[0], lot_step=D("0.519")), *IN[1:]], ("1", "1"), None, [Reason.LOT]),
        (flat("10", "1", "11", one={"min_size": D(1)}), ("1", "1"), None, []),
        (flat("10", "1", "11", one={"min_size": D("1.01")}), ("1", "1"), None, [Reason.MIN_NOTIONAL]),
        (flat("10", "1", "11", two={"min_size": D("1.01")}), ("1", "1"), None, [Reason.MIN_NOTIONAL]),
        (flat("10", "1", "11", three={"min_size": D("1.01")}), ("1", "1"), None, [Reason.MIN_NOTIONAL]),
        (flat("10", "1", "11", one={"min_notional": D(10)}), ("1", "1"), None, []),
        (flat("10", "1", "11", one={"min_notional": D("10.1")}), ("2", "2"), None, [Reason.MIN_NOTIONAL]),
        (flat("10", "1", "11", two={"min_notional": D(1)}), ("2", "2"), None, []),
        (flat("10", "1", "11", two={"min_notional": D("1.1")}), ("2", "2"), None, [Reason.MIN_NOTIONAL]),
        (flat("10", "1", "11", three={"min_notional": D("11.1")}), ("2", "2"), None, [Reason.MIN_NOTIONAL]),
    ],
)
def test_each_gate(orders, rates, cap, reasons):
    found = evaluated(orders, *rates, cap)
    assert list(found.reasons) == reasons
    nothing = found.sizes == decimals("0", "0", "0") and found.profit == found.notional == 0
    assert nothing is bool(reasons)
    assert (found.limited_by is None) is (found.vwaps is None) is (found.limits is None) is bool(reasons)
    assert (found.naive_bps is None) is (found.net_bps is None) is not all(terms.levels for terms in orders)


def test_what_is_not_executable_still_says_what_the_top_of_the_books_is_worth():
    found = evaluated(flat("10", "1", "11", three=TENTH), "1", "0.5")
    assert (found.naive_bps, found.net_bps) == (D(1000), D("-5050"))


@pytest.mark.parametrize("sides", [("sell", "buy", "sell"), ("buy", "sell", "buy"), ("buy", "buy", "buy")])
def test_sides_that_are_no_cycle_raise(sides):
    with pytest.raises(ValueError, match="no cycle: " + ", ".join(sides)):
        evaluated(order(side, "1@1") for side in sides)


# ---------------------------------------------------------------- against brute force

TINY = Fraction(1, 10**15)
"""More than sizes in units of 1e-18 can cost at prices around 100."""


class Point(NamedTuple):
    """What an order has filled, and what that spends and brings, fee included; `value` is without fee."""

    size: Fraction
    spent: Fraction
    brought: Fraction
    value: Fraction


def curve(terms: Order) -> list[Point]:
    """An order at the end of each of its levels; between these all numbers are linear."""
    points = [Point(*[Fraction(0)] * 4)]
    for price, size in terms.levels:
        value = Fraction(price) * Fraction(size)
        fee, before = Fraction(terms.fee), points[-1]
        if terms.side == "sell":
            step = Point(Fraction(size), Fraction(size), value * (1 - fee), value)
        elif terms.fee_in_base:
            step = Point(Fraction(size), value, Fraction(size) * (1 - fee), value)
        else:
            step = Point(Fraction(size), value * (1 + fee), Fraction(size), value)
        points.append(Point(*(one + more for one, more in zip(before, step, strict=True))))
    return points


def at(points: list[Point], what: str, amount: Fraction) -> Point | None:
    """Where `what` of the order is `amount`; None if its book does not hold that."""
    known = attrgetter(what)
    k = bisect_left(points, amount, key=known)
    if k == len(points):
        return None
    if k == 0:
        return points[0]
    low, high = points[k - 1], points[k]
    part = (amount - known(low)) / (known(high) - known(low))
    return Point(*(start + (end - start) * part for start, end in zip(low, high, strict=True)))


def best_profit(orders, spend, receive, cap) -> Fraction:
    """Profit is linear between the amounts of cash that end a level or meet a cap somewhere: the best of these, or 0."""
    curves = [curve(terms) for terms in orders]
    ends = [[*points] for points in curves]
    for k, terms in enumerate(orders):
        if terms.max_size is not None:
            ends[k].append(at(curves[k], "size", Fraction(terms.max_size)))
    if cap is not None:
        ends[0].append(at(curves[0], "value", Fraction(cap) / Fraction(spend)))
    best = Fraction(0)
    for k, points in enumerate(ends):
        for point in points:
            for earlier in reversed(curves[:k]):
                point = point and at(earlier, "brought", point.spent)
            if point is not None:
                best = max(best, profit_of(orders, curves, point.spent, Fraction(spend), Fraction(receive), cap))
    return best


def profit_of(orders, curves, cash, spend, receive, cap) -> Fraction:
    """Profit in USD of spending exactly so much, or 0 if that does not fit."""
    amount = cash
    for k, terms in enumerate(orders):
        point = at(curves[k], "spent", amount)
        if point is None or (terms.max_size is not None and point.size > terms.max_size):
            return Fraction(0)
        if k == 0 and cap is not None and point.value * spend > cap:
            return Fraction(0)
        amount = point.brought
    return amount * receive - cash * spend


def random_book(kind: str, up: bool, seed: int) -> list[tuple[Decimal, Decimal]]:
    """Fifty levels, of prices so close that a walk goes deep."""
    rng = random.Random(f"{kind}{up}{seed}")
    low, high = PRICES[kind]
    start = rng.randint(low, high) * 1000
    prices = sorted(start + rng.randint(0, 1500) * (high - low) // 4 * (1 if up else -1) for _ in range(50))
    found = [(D(price) / 100_000, D(rng.randint(1, 999)) / 1000) for price in prices]
    return found if up else found[::-1]


PRICES = {"bridge": (9500, 10500), "cross": (45, 55), "asks": (4400, 5300), "bids": (4700, 5600)}
"""In hundredths: a coin of 0.5 bridge coins, which cost 100; against cash it is often cheap to buy and dear to sell."""


LEVELS = [1, 2, 3, 4, 5, 5, 0]
"""Least numbers of levels to draw: one of these makes empty books."""


@st.composite
def books(draw, kind: str, up: bool) -> list[tuple[Decimal, Decimal]]:
    if draw(st.integers(0, 9)) == 0:
        return random_book(kind, up, draw(st.integers(0, 10**6)))
    steps = st.integers(*PRICES[kind])
    sizes = st.integers(1, 12)
    found = draw(st.lists(st.tuples(steps, sizes), min_size=draw(st.sampled_from(LEVELS)), max_size=6))
    return sorted(((D(p) / 100, D(s) / 4) for p, s in found), reverse=not up)


FEES = st.sampled_from(["0", "0.0005", "0.001", "0.006", "-0.0001"])


@st.composite
def cycles(draw, lots: bool = False) -> tuple[Order, Order, Order]:
    """Either direction."""
    kinds = ("bridge", "cross", "bids") if draw(st.booleans()) else ("asks", "cross", "bridge")
    sides = ("buy", "buy", "sell") if kinds[0] == "bridge" else ("buy", "sell", "sell")
    found = []
    for kind, side in zip(kinds, sides, strict=True):
        steps = ["0.001", "0.01", "0.07", None] if kind == "bridge" else ["0.01", "0.1", "0.5", "0.03", None]
        found.append(
            order(
                side,
                draw(books(kind, side == "buy")),
                draw(FEES),
                draw(st.booleans()),
                lot=draw(st.sampled_from(steps)) if lots else None,
                max_size=draw(st.sampled_from([None, None, None, None, "0.8", "2.3"])),
            )
        )
    return tuple(found)


RATES = st.sampled_from(["1", "0.999", "1.001", "1.05"])
CAPS = st.sampled_from([None, None, "130.5", "10000"])


@settings(max_examples=200)
@given(cycles(), RATES, RATES, CAPS)
def test_no_size_makes_more(orders, spend, receive, cap):
    found = evaluated(orders, spend, receive, cap)
    best = best_profit(orders, spend, receive, None if cap is None else Fraction(cap))
    assert best - TINY <= Fraction(found.profit) <= best
    assert (found.profit > 0) is (found.reasons == ())
    match found.limited_by:
        case "margin":
            free = [replace(terms, max_size=None) for terms in orders]
            assert best_profit(free, spend, receive, None) == best, "no cap is in the way"
        case "depth":
            depths = [curve(terms)[-1].size for terms in orders]
            assert any(depth - Fraction(size) < TINY for depth, size in zip(depths, found.sizes, strict=True))
        case "notional":
            assert Fraction(cap) - TINY <= Fraction(found.notional) <= Fraction(cap)
        case "share":
            capped = [(terms.max_size, size) for terms, size in zip(orders, found.sizes, strict=True) if terms.max_size]
            assert any(most - size < D("1e-15") for most, size in capped)


@settings(max_examples=150)
@given(cycles(lots=True), RATES, RATES, CAPS)
def test_with_lots_every_number_is_that_of_orders_that_can_be_sent(orders, spend, receive, cap):
    found = evaluated(orders, spend, receive, cap)
    for terms, size in zip(orders, found.sizes, strict=True):
        assert Fraction(size) % Fraction(terms.lot_step or D("1e-18")) == 0
        assert terms.max_size is None or size <= terms.max_size
    filled = [at(curve(terms), "size", Fraction(size)) for terms, size in zip(orders, found.sizes, strict=True)]
    first, second, third = filled
    assert second.spent <= first.brought, "no order spends more than the one before it brought"
    assert third.spent <= second.brought
    cost, proceeds = first.spent * Fraction(spend), third.brought * Fraction(receive)
    assert Fraction(found.profit) == proceeds - cost
    assert Fraction(found.notional) == first.value * Fraction(spend)
    assert cap is None or found.notional <= D(cap)
    if found.reasons:
        assert found.sizes == decimals("0", "0", "0")
        return
    assert abs(Fraction(found.net_bps) - (proceeds / cost - 1) * 10_000) < TINY
    for k, terms in enumerate(orders):
        assert abs(Fraction(found.vwaps[k]) - filled[k].value / filled[k].size) < TINY
        used, points = found.levels_used[k], curve(terms)
        assert points[used - 1].size < Fraction(found.sizes[k]) <= points[used].size
        assert found.limits[k] == terms.levels[used - 1][0]


@settings(max_examples=150)
@given(cycles(lots=True), RATES, RATES, CAPS)
def test_lots_cost_no_more_than_a_few_lots_are_worth(orders, spend, receive, cap):
    """Against the optimum of books and caps that already end at whole lots."""
    whole = []
    for k, terms in enumerate(orders):
        points = curve(terms)
        most = [points[-1].size]
        if terms.max_size is not None:
            most.append(Fraction(terms.max_size))
        if k == 0 and cap is not None and (point := at(points, "value", Fraction(cap) / Fraction(spend))) is not None:
            most.append(point.size)
        lot = Fraction(terms.lot_step or D("1e-18"))
        cut = min(most) // lot * lot
        whole.append(replace(terms, max_size=edge.EXACT.divide(D(cut.numerator), D(cut.denominator))))
    optimum = best_profit(whole, spend, receive, None)
    coin, bridge = ((0, 1), 2) if orders[1].side == "sell" else ((1, 2), 0)
    steps = [orders[k].lot_step for k in coin]
    coins = max(edge.common_step(*steps) or D(0), sum(step or D(0) for step in steps))
    worth = coins * 62 + (orders[bridge].lot_step or D(0)) * 115  # what the dearest of them cost in USD
    assert optimum - Fraction(worth) - TINY <= Fraction(evaluated(orders, spend, receive, cap).profit) <= optimum


# ---------------------------------------------------------------- what must not change


@given(cycles(lots=True), RATES, st.integers(-3, 3))
def test_scaling_cash_prices_by_a_power_of_ten_scales_profit(orders, receive, power):
    scale = D(10) ** power
    cash = (0, 2)
    scaled_orders = [
        replace(terms, levels=[(price * scale, size) for price, size in terms.levels]) if k in cash else terms
        for k, terms in enumerate(orders)
    ]
    one, scaled = evaluated(orders, "1", receive), evaluated(scaled_orders, "1", receive)
    assert scaled.profit == edge.EXACT.multiply(one.profit, scale)  # not `*`, which rounds to 28 digits
    assert scaled.notional == edge.EXACT.multiply(one.notional, scale)
    assert (scaled.sizes, scaled.reasons, scaled.net_bps) == (one.sizes, one.reasons, one.net_bps)


@given(cycles(), st.integers(0, 2), st.sampled_from(["0.0001", "0.001", "0.02"]))
def test_a_worse_fee_never_raises_profit(orders, position, more):
    dear = [replace(terms, fee=terms.fee + D(more)) if k == position else terms for k, terms in enumerate(orders)]
    assert evaluated(dear).profit <= evaluated(orders).profit + D("1e-15")


LOTS = st.sampled_from([None, "0.1", "0.75"])


@settings(max_examples=200)
@given(st.booleans(), books("asks", True), books("bids", False), FEES, FEES, LOTS, LOTS, RATES, RATES)
def test_a_bridge_coin_that_is_cash_makes_a_pair_of_books(
    inwards, asks, bids, buy_fee, sell_fee, buy_lot, sell_lot, spend, receive
):
    """One endless bridge level at price 1 and no fee: the walk of two books knows the answer."""
    buy, sell = order("buy", asks, buy_fee, lot=buy_lot), order("sell", bids, sell_fee, lot=sell_lot)
    orders = (order("buy", "1000000@1"), buy, sell) if inwards else (buy, sell, order("sell", "1000000@1"))
    coin = slice(1, 3) if inwards else slice(0, 2)
    found = evaluated(orders, spend, receive)
    pair = edge.evaluate(
        asks,
        bids,
        edge.Side(fee=buy.fee, rate=D(spend), lot_step=buy.lot_step),
        edge.Side(fee=sell.fee, rate=D(receive), lot_step=sell.lot_step),
    )
    assert (found.reasons, found.profit) == (pair.reasons, pair.profit)
    assert found.sizes[coin] == (pair.size, pair.size)
    assert (found.naive_bps, found.net_bps) == (pair.naive_bps, pair.net_bps)
    assert (found.limited_by == "depth") is pair.depth_limited
    if found.limits is not None:
        assert found.limits[coin] == (pair.buy_limit, pair.sell_limit)
        assert found.levels_used[coin] == (pair.buy_levels, pair.sell_levels)
