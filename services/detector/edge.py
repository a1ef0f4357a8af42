"""What a pair of books is worth: the exact depth walk. Pure, in Decimal, time does not exist here.

Buying takes the asks of one book, selling the bids of another. With fee fractions f and conversion x to USD (the ask
of the quote currency to obtain it, the bid to give it away), a unit costs `c = p * x * (1 + f)` and brings
`d = r * x * (1 - f)`; where the buying exchange takes its fee out of the coin, a unit to be sold costs
`c = p * x / (1 - f)`. Walking both books while `d > c` gives the maximum profit, because the marginal edge never rises
along the walk. Every cap ends the same walk earlier. Then the lot steps, and all numbers again at the final sizes.

The size is the largest at which every unit still pays, floored to the lots: rounding up could earn more in total, but
its last units would lose, and its limit price would be beyond the edge.
"""

import decimal
import functools
from collections.abc import Sequence
from decimal import Decimal
from math import lcm
from typing import NamedTuple

from shared.messages import Limit, Reason

Levels = Sequence[tuple[Decimal, Decimal]]
"""(price, size), best first."""

EXACT = decimal.Context(prec=120, rounding=decimal.ROUND_HALF_EVEN)
"""Wide enough for every product and sum of wire numbers: they stay exact."""

QUOTIENT = decimal.Context(prec=28, rounding=decimal.ROUND_HALF_EVEN)
"""Divisions that do not end (average prices, basis points) are rounded once, here."""

SMALLEST = Decimal("1e-18")
"""Sizes that a cap in money cuts out of a level are floored to this (no coin has smaller units)."""

DUST = Decimal("1e-45")
"""What must be bought to receive a size after a fee in the coin is rounded up to this: the division does not end."""

FOUR_DECIMALS = Decimal("0.0001")

ONE, ZERO, BPS = Decimal(1), Decimal(0), Decimal(10_000)


class Side(NamedTuple):
    """Terms of one leg.

    Attributes:
        fee: Taker fee as a fraction of the traded value (0.001 is 10 bps).
        rate: USD per unit of the quote currency: ask on the buying side, bid on the selling side.
        lot_step: Sizes must be multiples of it; None: any size.
        min_notional: Smallest order in USD; None: none.
        fee_in_base: On buying, the fee is taken out of the coin (selling always pays out of the quote currency).
        min_size: Smallest order in base; None: none.
    """

    fee: Decimal = ZERO
    rate: Decimal = ONE
    lot_step: Decimal | None = None
    min_notional: Decimal | None = None
    fee_in_base: bool = False
    min_size: Decimal | None = None


class Caps(NamedTuple):
    """What a trade must not exceed; None: no such cap.

    Attributes:
        notional: Bought value in USD, without fees.
        spend: Balance on the buying side, in its quote currency: value and fee.
        sell: Balance on the selling side, in base.
        share: Share (0 to 1) of the published depth of either side.
    """

    notional: Decimal | None = None
    spend: Decimal | None = None
    sell: Decimal | None = None
    share: Decimal | None = None


NO_CAPS = Caps()


class Walk(NamedTuple):
    """The largest sizes at which every unit pays: of the order to buy, of the order to sell, and what ended them."""

    bought: Decimal
    sold: Decimal
    ended: Limit


class Taken(NamedTuple):
    """A size filled on one side of a book: its value in the quote currency without fee, its worst price, its levels."""

    quote: Decimal
    limit: Decimal
    levels: int


class BridgeFill(NamedTuple):
    """The order on the bridge's book, where the route has one."""

    size: Decimal
    vwap: Decimal | None
    limit: Decimal | None
    levels: int


class Evaluation(NamedTuple):
    """What a pair of books is worth, and why not if it is worth nothing.

    `reasons` is empty exactly if there is a size with a profit. The bps are of the executed fills, or of the top of
    the books where nothing is executable; None where a side is empty. `size` is that of the order to buy, `sell_size`
    of the one to sell (less where the fee is taken out of the coin). `limited_by` is None where nothing is executable.
    """

    reasons: tuple[Reason, ...]
    size: Decimal
    sell_size: Decimal
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
    limited_by: Limit | None
    bridge: BridgeFill | None = None

    @property
    def depth_limited(self) -> bool:
        """The published depth ran out: how much more there is, nobody knows."""
        return self.limited_by == "depth"


def common_step(*steps: Decimal | None) -> Decimal | None:
    """Smallest size step that is a multiple of each: 0.001 and 0.0004 give 0.002. None if there are none."""
    return _common_step(*(str(step) for step in steps if step is not None))


@functools.cache  # by text: 0.1 and 0.10 are equal, and give steps of one and two digits
def _common_step(*texts: str) -> Decimal | None:
    if not texts:
        return None
    known = [Decimal(text) for text in texts]
    digits = max(0, *(-int(step.as_tuple().exponent) for step in known))
    with decimal.localcontext(EXACT):
        return Decimal(lcm(*(int(step.scaleb(digits)) for step in known))).scaleb(-digits)


def evaluate(
    asks: Levels,
    bids: Levels,
    buy: Side,
    sell: Side,
    caps: Caps = NO_CAPS,
    closed_loop: Decimal | None = ONE,
) -> Evaluation:
    """The maximum-profit trade under all caps, and what it is worth.

    Args:
        closed_loop: What a unit of the sale's quote currency brings in the currency that was spent, after the
            conversion's own fees; None if that is unknown.
    """
    if not asks or not bids:
        return nothing((Reason.DEPTH,), None, None, None)
    with decimal.localcontext(EXACT):
        return _evaluate(asks, bids, buy, sell, caps, closed_loop)


def nothing(
    reasons: tuple[Reason, ...], naive: Decimal | None, net: Decimal | None, closed: Decimal | None
) -> Evaluation:
    return Evaluation(reasons, ZERO, ZERO, ZERO, ZERO, naive, net, closed, None, None, None, None, 0, 0, None)


def rounded_bps(value: Decimal) -> Decimal:
    """Basis points as published: four decimals say more than any book can keep."""
    return value.quantize(FOUR_DECIMALS, context=EXACT)


def ratio_bps(part: Decimal, whole: Decimal) -> Decimal:
    return QUOTIENT.divide(EXACT.multiply(EXACT.subtract(part, whole), BPS), whole)


# ---------------------------------------------------------------- inside

# These count in the context of their callers, which must be EXACT: to enter one takes as long as three operations.


def _evaluate(asks: Levels, bids: Levels, buy: Side, sell: Side, caps: Caps, closed_loop: Decimal | None) -> Evaluation:
    best = walk(asks, bids, buy, sell, caps)
    if best.sold == 0 and best.ended == "margin":
        return _refused(_eaten_by(asks[0][0], bids[0][0], buy, sell), asks, bids, buy, sell, closed_loop)
    if best.sold == 0:
        reason = Reason.BALANCE if best.ended == "balance" else Reason.DEPTH
        return _refused((reason,), asks, bids, buy, sell, closed_loop)
    size, sell_size = _in_lots(best, buy, sell)
    if sell_size == 0:
        return _refused((Reason.LOT,), asks, bids, buy, sell, closed_loop)
    bought, sold = take(asks, size), take(bids, sell_size)
    notional, proceeds = bought.quote * buy.rate, sold.quote * sell.rate
    profit = proceeds * (1 - sell.fee) - notional * _quote_factor(buy)
    if profit <= 0:  # the coins that are bought for the fee and cannot be sold in lots
        return _refused((Reason.LOT,), asks, bids, buy, sell, closed_loop)
    if _too_small(size, notional, buy) or _too_small(sell_size, proceeds, sell):
        return _refused((Reason.MIN_NOTIONAL,), asks, bids, buy, sell, closed_loop)
    return Evaluation(
        (),
        size,
        sell_size,
        profit,
        notional,
        *_bps(bought.quote, sold.quote, size, sell_size, buy, sell, closed_loop),
        QUOTIENT.divide(bought.quote, size),
        QUOTIENT.divide(sold.quote, sell_size),
        bought.limit,
        sold.limit,
        bought.levels,
        sold.levels,
        best.ended,
    )


def _refused(
    reasons: tuple[Reason, ...], asks: Levels, bids: Levels, buy: Side, sell: Side, closed_loop: Decimal | None
) -> Evaluation:
    """Worth nothing; the bps are those of the tops."""
    kept = _kept(buy)
    return nothing(reasons, *_bps(asks[0][0], bids[0][0] * kept, ONE, kept, buy, sell, closed_loop))


def walk(asks: Levels, bids: Levels, buy: Side, sell: Side, caps: Caps = NO_CAPS) -> Walk:
    """Buy and sell level by level while each further unit still brings more than it costs, and no cap is reached."""
    kept = _kept(buy)
    cost_factor, proceeds_factor = _cost_factor(buy), sell.rate * (1 - sell.fee) * kept
    most_bought, most_sold = _most(asks, bids, caps)
    money = _most_money(caps, buy)
    bought = sold = spent = ZERO
    i = j = -1
    ask_left = bid_left = ask = cost = proceeds = ZERO
    whole = kept == 1
    while True:
        if ask_left == 0:
            i += 1
            if i == len(asks):
                break
            ask, ask_left = asks[i]
            cost = ask * cost_factor
        if bid_left == 0:
            j += 1
            if j == len(bids):
                break
            bid, bid_left = bids[j]
            proceeds = bid * proceeds_factor
        if proceeds <= cost:
            return Walk(bought, sold, "margin")
        step = ask_left
        gives = step if whole else step * kept
        if bid_left < gives:
            step, gives = min(ask_left, _needed(bid_left, kept)), bid_left
        ended: Limit | None = None
        if most_bought is not None and bought + step > most_bought:
            step, ended = most_bought - bought, "share"
            gives = min(gives, step * kept)
        if most_sold is not None and sold + gives > most_sold[0]:
            gives, ended = most_sold[0] - sold, most_sold[1]
            step = min(step, _needed(gives, kept))
        value = spent + step * ask
        for most, factor, what in money:
            if value * factor > most:
                room = (most - spent * factor) / (ask * factor)
                step, ended = max(ZERO, room.quantize(SMALLEST, rounding=decimal.ROUND_DOWN)), what
                gives = min(gives, step * kept)
                value = spent + step * ask
        bought += step
        sold += gives
        if ended is not None:
            return Walk(bought, sold, ended)
        spent = value
        ask_left -= step
        bid_left -= gives
    return Walk(bought, sold, "depth")


def take(levels: Levels, size: Decimal) -> Taken:
    """Fill `size` from the best level on. The levels must hold it."""
    left, quote, limit, count = size, ZERO, levels[0][0], 0
    for price, available in levels:
        if left <= 0:
            break
        limit = price
        count += 1
        if left <= available:
            quote += left * price
            break
        quote += available * price
        left -= available
    return Taken(quote, limit, count)


def _kept(buy: Side) -> Decimal:
    """What is left of a bought unit."""
    return 1 - buy.fee if buy.fee_in_base else ONE


def _quote_factor(buy: Side) -> Decimal:
    """What is paid for a value of one, in the quote currency."""
    return ONE if buy.fee_in_base else 1 + buy.fee


def _cost_factor(buy: Side) -> Decimal:
    return buy.rate * _quote_factor(buy)


def _needed(received: Decimal, kept: Decimal) -> Decimal:
    """What must be bought to receive so much."""
    return received if kept == 1 else (received / kept).quantize(DUST, rounding=decimal.ROUND_UP)


def _most_money(caps: Caps, buy: Side) -> list[tuple[Decimal, Decimal, Limit]]:
    """Caps of the value bought: the most, what a quote unit of it counts, and which cap it is."""
    found: list[tuple[Decimal, Decimal, Limit]] = []
    if caps.notional is not None:
        found.append((caps.notional, buy.rate, "notional"))
    if caps.spend is not None:
        found.append((caps.spend, _quote_factor(buy), "balance"))
    return found


def _most(asks: Levels, bids: Levels, caps: Caps) -> tuple[Decimal | None, tuple[Decimal, Limit] | None]:
    """Most to be bought (by the share of the depth), and most to be sold, and by which cap."""
    most_bought: Decimal | None = None
    most_sold: tuple[Decimal, Limit] | None = None
    if caps.share is not None and caps.share < 1:
        most_bought = caps.share * sum((size for _, size in asks), ZERO)
        most_sold = (caps.share * sum((size for _, size in bids), ZERO), "share")
    if caps.sell is not None and (most_sold is None or caps.sell < most_sold[0]):
        most_sold = (caps.sell, "balance")
    return most_bought, most_sold


def _floor_to(size: Decimal, step: Decimal | None) -> Decimal:
    """The largest multiple of `step` not above `size`."""
    return size if step is None else (size // step) * step


def _ceil_to(size: Decimal, step: Decimal | None) -> Decimal:
    """The smallest multiple of `step` not below `size`."""
    floor = _floor_to(size, step)
    return floor if step is None or floor == size else floor + step


def _in_lots(best: Walk, buy: Side, sell: Side) -> tuple[Decimal, Decimal]:
    """Sizes to buy and to sell that both exchanges take: equal, unless the fee is taken out of the coin."""
    kept = _kept(buy)
    if kept == 1:
        size = _floor_to(best.sold, common_step(buy.lot_step, sell.lot_step))
        return size, size
    most = _floor_to(best.bought, buy.lot_step)
    sold = _floor_to(min(best.sold, most * kept), sell.lot_step)
    return min(most, _ceil_to(_needed(sold, kept), buy.lot_step)), sold


def _too_small(size: Decimal, value_usd: Decimal, side: Side) -> bool:
    return (side.min_notional is not None and value_usd < side.min_notional) or (
        side.min_size is not None and size < side.min_size
    )


def _bps(
    bought_quote: Decimal,
    sold_quote: Decimal,
    bought: Decimal,
    sold: Decimal,
    buy: Side,
    sell: Side,
    closed_loop: Decimal | None,
) -> tuple[Decimal, Decimal, Decimal | None]:
    """Naive (prices alone), net (fees and conversion) and closed loop (and converted back), in bps of the cost."""
    spent, earned = bought_quote * _quote_factor(buy), sold_quote * (1 - sell.fee)
    naive = ratio_bps(sold_quote * bought, bought_quote * sold)
    net = ratio_bps(earned * sell.rate, spent * buy.rate)
    closed = None if closed_loop is None else ratio_bps(earned * closed_loop, spent)
    return naive, net, closed


def _eaten_by(ask: Decimal, bid: Decimal, buy: Side, sell: Side) -> tuple[Reason, ...]:
    """Why the first unit does not pay: no crossing, fees, conversion, or both together."""
    crossing = bid > ask
    crossing_converted = bid * sell.rate > ask * buy.rate
    pays_fees = bid * (1 - sell.fee) * _kept(buy) > ask * _quote_factor(buy)
    if not crossing and not crossing_converted:
        return (Reason.NO_CROSSING,)
    reasons = []
    if not pays_fees:
        reasons.append(Reason.FEES)
    if not crossing_converted:
        reasons.append(Reason.CONVERSION)
    return tuple(reasons) or (Reason.FEES, Reason.CONVERSION)
