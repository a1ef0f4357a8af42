"""What a pair of books is worth: the exact depth walk. Pure, in Decimal, time does not exist here.

Buying takes the asks of one book, selling the bids of another. With fee fractions f and conversion x to USD (the ask
of the quote currency to obtain it, the bid to give it away), a unit costs `c = p * x * (1 + f)` and brings
`d = r * x * (1 - f)`. Walking both books while `d > c` gives the maximum profit, because the marginal edge never
rises along the walk. Caps come after it, then the common lot step, and all numbers again at the final size.
"""

import decimal
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import lcm
from typing import Literal, NamedTuple

from shared.messages import Reason

Levels = Sequence[tuple[Decimal, Decimal]]
"""(price, size), best first."""

EXACT = decimal.Context(prec=80, rounding=decimal.ROUND_HALF_EVEN)
"""Wide enough for every product and sum of wire numbers: they stay exact."""

QUOTIENT = decimal.Context(prec=28, rounding=decimal.ROUND_HALF_EVEN)
"""Divisions that do not end (average prices, basis points) are rounded once, here."""

SMALLEST = Decimal("1e-18")
"""Sizes that a cap in USD cuts out of a level are floored to this (no coin has smaller units)."""

ONE, ZERO, BPS = Decimal(1), Decimal(0), Decimal(10_000)


@dataclass(frozen=True, slots=True)
class Side:
    """Terms of one leg.

    Attributes:
        fee: Taker fee as a fraction of the traded value (0.001 is 10 bps).
        rate: USD per unit of the quote currency: ask on the buying side, bid on the selling side.
        lot_step: Sizes must be multiples of it; None: any size.
        min_notional: Smallest order in USD; None: none.
    """

    fee: Decimal = ZERO
    rate: Decimal = ONE
    lot_step: Decimal | None = None
    min_notional: Decimal | None = None


class Fill(NamedTuple):
    """A walk's result. `buy_quote` and `sell_quote` are in each leg's own currency and without fees."""

    size: Decimal
    buy_quote: Decimal
    sell_quote: Decimal
    buy_limit: Decimal | None
    sell_limit: Decimal | None
    buy_levels: int
    sell_levels: int
    ended: Literal["margin", "depth", "cap"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a pair of books is worth, and why not if it is worth nothing.

    `reasons` is empty exactly if there is a size with a profit. The bps are of the executed fills, or of the top of
    the books where nothing is executable; None where a side is empty.
    """

    reasons: tuple[Reason, ...]
    size: Decimal
    profit: Decimal
    notional: Decimal
    naive_bps: Decimal | None
    net_bps: Decimal | None
    closed_loop_bps: Decimal | None
    buy_vwap: Decimal | None
    sell_vwap: Decimal | None
    buy_limit: Decimal | None
    sell_limit: Decimal | None
    buy_levels: int
    sell_levels: int
    depth_limited: bool


def walk(
    asks: Levels,
    bids: Levels,
    buy: Side,
    sell: Side,
    max_size: Decimal | None = None,
    max_notional: Decimal | None = None,
) -> Fill:
    """Buy and sell level by level while each further unit still brings more than it costs.

    Args:
        max_size: Stop at this size (base).
        max_notional: Stop when the bought value (USD, without fees) reaches this.
    """
    with decimal.localcontext(EXACT):
        cost_factor, proceeds_factor = buy.rate * (1 + buy.fee), sell.rate * (1 - sell.fee)
        size = buy_quote = sell_quote = ZERO
        buy_limit = sell_limit = None
        i = j = buy_levels = sell_levels = 0
        ask_left = asks[0][1] if asks else ZERO
        bid_left = bids[0][1] if bids else ZERO
        ended: Literal["margin", "depth", "cap"] = "depth"
        while i < len(asks) and j < len(bids):
            ask, bid = asks[i][0], bids[j][0]
            if bid * proceeds_factor <= ask * cost_factor:
                ended = "margin"
                break
            step = min(ask_left, bid_left)
            capped = step
            if max_size is not None:
                capped = min(capped, max_size - size)
            if max_notional is not None:
                room = (max_notional - buy_quote * buy.rate) / (ask * buy.rate)
                if room < capped:
                    capped = max(ZERO, room.quantize(SMALLEST, rounding=decimal.ROUND_DOWN))
            if capped > 0:
                size += capped
                buy_quote += capped * ask
                sell_quote += capped * bid
                buy_limit, sell_limit = ask, bid
                buy_levels, sell_levels = i + 1, j + 1
            if capped < step:
                ended = "cap"
                break
            ask_left -= step
            bid_left -= step
            if ask_left == 0:
                i += 1
                ask_left = asks[i][1] if i < len(asks) else ZERO
            if bid_left == 0:
                j += 1
                bid_left = bids[j][1] if j < len(bids) else ZERO
        return Fill(size, buy_quote, sell_quote, buy_limit, sell_limit, buy_levels, sell_levels, ended)


def common_step(*steps: Decimal | None) -> Decimal | None:
    """Smallest size step that is a multiple of each: 0.001 and 0.0004 give 0.002. None if there are none."""
    known = [step for step in steps if step is not None]
    if not known:
        return None
    digits = max(0, *(-int(step.as_tuple().exponent) for step in known))
    with decimal.localcontext(EXACT):
        return Decimal(lcm(*(int(step.scaleb(digits)) for step in known))).scaleb(-digits)


def floor_to(size: Decimal, step: Decimal | None) -> Decimal:
    """The largest multiple of `step` not above `size`."""
    if step is None:
        return size
    with decimal.localcontext(EXACT):
        return (size // step) * step


def evaluate(
    asks: Levels,
    bids: Levels,
    buy: Side,
    sell: Side,
    max_notional: Decimal | None = None,
    closed_loop: Decimal | None = ONE,
) -> Evaluation:
    """The maximum-profit trade under all caps, and what it is worth.

    Args:
        max_notional: Largest bought value in USD; None: no cap.
        closed_loop: What a unit of the sale's quote currency brings in the currency that was spent, after the
            conversion's own fees; None if that is unknown.
    """
    if not asks or not bids:
        return nothing((Reason.DEPTH,), None, None, None)
    naive, net, closed = _bps(asks[0][0], bids[0][0], buy, sell, closed_loop)
    best = walk(asks, bids, buy, sell, max_notional=max_notional)
    if best.size == 0:
        reasons = (Reason.DEPTH,) if best.ended == "cap" else _eaten_by(asks[0][0], bids[0][0], buy, sell)
        return nothing(reasons, naive, net, closed)
    size = floor_to(best.size, common_step(buy.lot_step, sell.lot_step))
    if size == 0:
        return nothing((Reason.LOT,), naive, net, closed)
    fill = best if size == best.size else walk(asks, bids, buy, sell, max_size=size)
    with decimal.localcontext(EXACT):
        notional = fill.buy_quote * buy.rate
        sold = fill.sell_quote * sell.rate
        profit = sold * (1 - sell.fee) - notional * (1 + buy.fee)
    if (buy.min_notional is not None and notional < buy.min_notional) or (
        sell.min_notional is not None and sold < sell.min_notional
    ):
        return nothing((Reason.MIN_NOTIONAL,), naive, net, closed)
    buy_vwap = QUOTIENT.divide(fill.buy_quote, size)
    sell_vwap = QUOTIENT.divide(fill.sell_quote, size)
    naive, net, closed = _bps(fill.buy_quote, fill.sell_quote, buy, sell, closed_loop)
    return Evaluation(
        (),
        size,
        profit,
        notional,
        naive,
        net,
        closed,
        buy_vwap,
        sell_vwap,
        fill.buy_limit,
        fill.sell_limit,
        fill.buy_levels,
        fill.sell_levels,
        best.ended == "depth",
    )


def nothing(
    reasons: tuple[Reason, ...], naive: Decimal | None, net: Decimal | None, closed: Decimal | None
) -> Evaluation:
    return Evaluation(reasons, ZERO, ZERO, ZERO, naive, net, closed, None, None, None, None, 0, 0, False)


def _bps(
    bought: Decimal, sold: Decimal, buy: Side, sell: Side, closed_loop: Decimal | None
) -> tuple[Decimal, Decimal, Decimal | None]:
    """Naive (no conversion, no fees), net (both) and closed loop (and converted back), in bps of the cost."""
    with decimal.localcontext(EXACT):
        spent, earned = bought * (1 + buy.fee), sold * (1 - sell.fee)
        naive = ratio_bps(sold, bought)
        net = ratio_bps(earned * sell.rate, spent * buy.rate)
        closed = None if closed_loop is None else ratio_bps(earned * closed_loop, spent)
    return naive, net, closed


def ratio_bps(part: Decimal, whole: Decimal) -> Decimal:
    with decimal.localcontext(EXACT):
        return QUOTIENT.divide((part - whole) * BPS, whole)


def _eaten_by(ask: Decimal, bid: Decimal, buy: Side, sell: Side) -> tuple[Reason, ...]:
    """Why the first unit does not pay: no crossing, fees, conversion, or both together."""
    with decimal.localcontext(EXACT):
        crossing = bid > ask
        crossing_converted = bid * sell.rate > ask * buy.rate
        pays_fees = bid * (1 - sell.fee) > ask * (1 + buy.fee)
    if not crossing and not crossing_converted:
        return (Reason.NO_CROSSING,)
    reasons = []
    if not pays_fees:
        reasons.append(Reason.FEES)
    if not crossing_converted:
        reasons.append(Reason.CONVERSION)
    return tuple(reasons) or (Reason.FEES, Reason.CONVERSION)
