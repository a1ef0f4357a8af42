"""What a cycle of three orders is worth: the exact depth walk along it. Pure, in fractions, time does not exist here.

A coin is quoted in a bridge coin on one book and in cash on another; the bridge coin's own book closes the cycle:

- "in": buy the bridge coin with cash, buy the coin with the bridge coin, sell the coin for cash;
- "out": buy the coin with cash, sell the coin for the bridge coin, sell the bridge coin for cash.

Each order spends what the one before it brought. A unit through the cycle is worth the product of the three rates, and
that never rises as levels are used up: so the walk that stops at the first unit which does not pay has the most profit.

Money is counted in USD: spent cash at the ask of its rate, received cash at the bid. Lots come after the walk, then all
numbers again from the final sizes, each order filled on its own levels. What a lot leaves over is worth nothing.
"""

import decimal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import prod
from typing import Literal, NamedTuple

from services.detector.edge import BPS, EXACT, QUOTIENT, ZERO, Levels, common_step
from shared.messages import Reason

LimitedBy = Literal["margin", "depth", "notional", "share"]
"""What ended the walk: the next unit does not pay, published depth, the cap in USD, or an order's `max_size`."""

Decimals = tuple[Decimal, Decimal, Decimal]

GRAIN = Fraction(1, 10**18)
"""The lot where an exchange names none: no coin has smaller units, and every size ends as a decimal."""


@dataclass(frozen=True, slots=True)
class Order:
    """Terms of one order of the cycle.

    Attributes:
        levels: Asks to buy from, or bids to sell into.
        fee: Taker fee as a fraction of the traded value (0.001 is 10 bps).
        fee_in_base: A purchase pays its fee out of the bought coin, not on top of the price. A sale always pays it out
            of the quote currency received.
        lot_step: Sizes must be multiples of it; None: any size.
        min_size: Smallest order in base; None: none.
        min_notional: Smallest order in the order's own quote currency; None: none.
        max_size: Largest order in base (balance, or share of the depth); None: all that is published.
    """

    side: Literal["buy", "sell"]
    levels: Levels
    fee: Decimal
    fee_in_base: bool
    lot_step: Decimal | None
    min_size: Decimal | None
    min_notional: Decimal | None
    max_size: Decimal | None = None


@dataclass(frozen=True, slots=True)
class CycleEvaluation:
    """What a cycle is worth, and why not if it is worth nothing.

    `reasons` is empty exactly if there are sizes with a profit; otherwise sizes are 0 and what describes fills is None.
    The bps are of the executed fills, or of the top of the books where nothing is executable; None where a side is
    empty. What stands per order is in the order of the cycle.

    Attributes:
        sizes: In the base coin of each order.
        profit: USD, after fees.
        notional: USD spent by the first order, without fees.
        naive_bps: The product of the three prices alone: no fees, no conversion of cash.
        net_bps: Received against spent in USD, fees and conversion included.
        closed_loop_bps: None; for the caller, who knows what converting the cash back costs.
        vwaps: Average prices without fees, in each order's quote currency.
        limits: Worst prices touched.
    """

    reasons: tuple[Reason, ...]
    sizes: Decimals
    profit: Decimal
    notional: Decimal
    naive_bps: Decimal | None
    net_bps: Decimal | None
    closed_loop_bps: Decimal | None
    vwaps: Decimals | None
    limits: Decimals | None
    levels_used: tuple[int, int, int]
    limited_by: LimitedBy | None


class _Fill(NamedTuple):
    """An order filled on its levels; `quote` is without fee."""

    size: Fraction
    quote: Fraction
    limit: Decimal
    levels: int


class _Piece(NamedTuple):
    """A level, or its part that is allowed: what filling it spends, and what a unit spent brings, fee included."""

    spent: Fraction
    rate: Fraction


class _Room(NamedTuple):
    """The largest size of an order (base), and what makes it so."""

    size: Fraction
    limited_by: LimitedBy


def evaluate_cycle(
    orders: tuple[Order, Order, Order],
    spend_rate: Decimal,
    receive_rate: Decimal,
    max_notional_usd: Decimal | None,
) -> CycleEvaluation:
    """The trade of maximum profit under all caps, and what it is worth.

    Args:
        orders: In the order of the cycle: buy, buy, sell ("in") or buy, sell, sell ("out").
        spend_rate: USD that one unit of the cash spent by the first order costs.
        receive_rate: USD that one unit of the cash received by the last order brings.
        max_notional_usd: Largest value of the first order in USD, without fee; None: no cap.

    Raises:
        ValueError: the sides are those of no cycle.
    """
    if tuple(order.side for order in orders) not in {("buy", "buy", "sell"), ("buy", "sell", "sell")}:
        raise ValueError(f"no cycle: {', '.join(order.side for order in orders)}")
    if not all(order.levels for order in orders):
        return _nothing((Reason.DEPTH,), None, None)
    conversion = Fraction(receive_rate) / Fraction(spend_rate)
    kept = prod(map(_kept, orders), start=Fraction(1))
    top = _product(orders, [order.levels[0][0] for order in orders])
    naive, net = _bps(top), _bps(top * kept * conversion)
    if top * kept * conversion <= 1:
        return _nothing(_eaten_by(top, kept, conversion), naive, net)
    most_quote = None if max_notional_usd is None else Fraction(max_notional_usd) / Fraction(spend_rate)
    rooms = [_room(orders[0], most_quote), _room(orders[1], None), _room(orders[2], None)]
    if any(room.size <= 0 for room in rooms):
        return _nothing((Reason.DEPTH,), naive, net)
    spent, limited_by = _walk(orders, rooms, conversion)
    whole = [room._replace(size=_floor(room.size, _lot(order))) for order, room in zip(orders, rooms, strict=True)]
    if whole != rooms:
        # Ends at whole lots: so a size rounded up to its lot still fits, and no order buys what the next cannot take.
        spent, _ = _walk(orders, whole, conversion)
    sizes = _in_lots(orders, spent)
    if not all(sizes):
        return _nothing((Reason.LOT,), naive, net)
    fills = [_fill(order, size) for order, size in zip(orders, sizes, strict=True)]
    cost = _spent(orders[0], fills[0].size, fills[0].quote) * Fraction(spend_rate)
    proceeds = _brought(orders[2], fills[2].size, fills[2].quote) * Fraction(receive_rate)
    if proceeds <= cost:
        return _nothing((Reason.LOT,), naive, net)
    if any(_too_small(order, fill) for order, fill in zip(orders, fills, strict=True)):
        return _nothing((Reason.MIN_NOTIONAL,), naive, net)
    vwaps = [fill.quote / fill.size for fill in fills]
    return CycleEvaluation(
        reasons=(),
        sizes=_three(_decimal, sizes),
        profit=_decimal(proceeds - cost),
        notional=_decimal(fills[0].quote * Fraction(spend_rate)),
        naive_bps=_bps(_product(orders, vwaps)),
        net_bps=_bps(proceeds / cost),
        closed_loop_bps=None,
        vwaps=_three(_rounded, vwaps),
        limits=(fills[0].limit, fills[1].limit, fills[2].limit),
        levels_used=(fills[0].levels, fills[1].levels, fills[2].levels),
        limited_by=limited_by,
    )


def _nothing(reasons: tuple[Reason, ...], naive: Decimal | None, net: Decimal | None) -> CycleEvaluation:
    none = (ZERO, ZERO, ZERO)
    return CycleEvaluation(reasons, none, ZERO, ZERO, naive, net, None, None, None, (0, 0, 0), None)


def _eaten_by(top: Fraction, kept: Fraction, conversion: Fraction) -> tuple[Reason, ...]:
    """Why the first unit does not pay: no crossing, fees, conversion, or both together."""
    if top <= 1 and top * conversion <= 1:
        return (Reason.NO_CROSSING,)
    reasons = []
    if top * kept <= 1:
        reasons.append(Reason.FEES)
    if top * conversion <= 1:
        reasons.append(Reason.CONVERSION)
    return tuple(reasons) or (Reason.FEES, Reason.CONVERSION)


# ---------------------------------------------------------------- one order


def _product(orders: Sequence[Order], prices: Sequence[Decimal | Fraction]) -> Fraction:
    """What a unit of cash becomes along the cycle, without fees and conversion."""
    rates = (
        1 / Fraction(price) if order.side == "buy" else Fraction(price)
        for order, price in zip(orders, prices, strict=True)
    )
    return prod(rates, start=Fraction(1))


def _kept(order: Order) -> Fraction:
    """What the fee leaves of a rate."""
    fee = Fraction(order.fee)
    return 1 - fee if order.side == "sell" or order.fee_in_base else 1 / (1 + fee)


def _spent(order: Order, size: Fraction, quote: Fraction) -> Fraction:
    """What filling `size` for `quote` takes of the currency that the order spends."""
    if order.side == "sell":
        return size
    return quote if order.fee_in_base else quote * (1 + Fraction(order.fee))


def _brought(order: Order, size: Fraction, quote: Fraction) -> Fraction:
    """What filling `size` for `quote` brings of the currency that the order receives."""
    return quote * (1 - Fraction(order.fee)) if order.side == "sell" else size * _received(order)


def _received(buy: Order) -> Fraction:
    """What is left of a bought unit."""
    return 1 - Fraction(buy.fee) if buy.fee_in_base else Fraction(1)


def _room(order: Order, most_quote: Fraction | None) -> _Room:
    """How much of the order its depth, its `max_size` and `most_quote` (in its quote currency, without fee) allow."""
    with decimal.localcontext(EXACT):
        depth = sum((size for _, size in order.levels), ZERO)
    room = _Room(Fraction(depth), "depth")
    if order.max_size is not None and order.max_size < room.size:
        room = _Room(Fraction(order.max_size), "share")
    if most_quote is not None and (affordable := _affordable(order.levels, most_quote)) < room.size:
        room = _Room(affordable, "notional")
    return room


def _affordable(levels: Levels, quote: Fraction) -> Fraction:
    """The largest size whose value is not above `quote`."""
    size = Fraction(0)
    for price, available in levels:
        step = min(Fraction(available), quote / Fraction(price))
        size += step
        quote -= step * Fraction(price)
    return size


def _fill(order: Order, size: Fraction) -> _Fill:
    """The order's levels from the best on, until they make `size` (not above the depth)."""
    left, quote, limit, used = size, Fraction(0), ZERO, 0
    for price, available in order.levels:
        step = min(left, Fraction(available))
        quote += step * Fraction(price)
        left -= step
        limit, used = price, used + 1
        if left == 0:
            break
    return _Fill(size, quote, limit, used)


def _too_small(order: Order, fill: _Fill) -> bool:
    return (order.min_size is not None and fill.size < order.min_size) or (
        order.min_notional is not None and fill.quote < order.min_notional
    )


# ---------------------------------------------------------------- the cycle


def _walk(orders: Sequence[Order], rooms: Sequence[_Room], conversion: Fraction) -> tuple[list[Fraction], LimitedBy]:
    """What each order spends up to the first unit that does not pay or does not fit, and which of these it is."""
    pieces = [_pieces(order, room.size) for order, room in zip(orders, rooms, strict=True)]
    now = [next(order) for order in pieces]
    left = [piece.spent for piece in now]
    spent = [Fraction(0)] * 3
    while True:
        first, second, third = (piece.rate for piece in now)
        if first * second * third * conversion <= 1:
            return spent, "margin"
        for amount, room in zip(left, rooms, strict=True):
            if amount == 0:
                return spent, room.limited_by
        flow = (Fraction(1), first, first * second)  # each order's spending per unit that the first one spends
        step = min(amount / per_unit for amount, per_unit in zip(left, flow, strict=True))
        for k, per_unit in enumerate(flow):
            spent[k] += step * per_unit
            left[k] -= step * per_unit
        for k in range(3):
            if left[k] == 0:
                if (piece := next(pieces[k], None)) is None:
                    return spent, "depth"
                now[k], left[k] = piece, piece.spent


def _pieces(order: Order, room: Fraction) -> Iterator[_Piece]:
    """The order level by level up to `room` (base); where that cuts a level, a piece of 0 has the next unit's rate."""
    kept = _kept(order)
    for price, available in order.levels:
        size, value = min(Fraction(available), room), Fraction(price)
        rate = kept / value if order.side == "buy" else kept * value
        if size > 0:
            yield _Piece(_spent(order, size, size * value), rate)
        if size < available:
            yield _Piece(Fraction(0), rate)
        room -= size


def _in_lots(orders: Sequence[Order], spent: Sequence[Fraction]) -> list[Fraction]:
    """Sizes that the exchanges take, none above its floored room; 0 where nothing is left.

    Args:
        spent: By each order of the walk; a sale's is its size.
    """
    first, second, third = orders
    inwards = second.side == "buy"
    buy, sell = (second, third) if inwards else (first, second)
    left = _received(buy)
    step = _step(common_step(buy.lot_step, sell.lot_step)) if left == 1 else _lot(sell)
    sold = _floor(_floor(spent[2 if inwards else 1] / left, _lot(buy)) * left, step)
    if inwards:
        bought = _ceil(sold / left, _lot(buy))
        needed = _spent(second, bought, _fill(second, bought).quote)
        return [_ceil(needed / _received(first), _lot(first)), bought, sold]
    bridge = _floor(_brought(second, sold, _fill(second, sold).quote), _lot(third))
    # As much of the coin as brings these lots: more would be paid for and end as dust of the bridge coin.
    sold = _ceil(_affordable(second.levels, bridge / _kept(second)), step)
    return [_ceil(sold / left, _lot(buy)), sold, bridge]


def _lot(order: Order) -> Fraction:
    return _step(order.lot_step)


def _step(lot: Decimal | None) -> Fraction:
    return GRAIN if lot is None else Fraction(lot)


def _floor(size: Fraction, step: Fraction) -> Fraction:
    return size // step * step


def _ceil(size: Fraction, step: Fraction) -> Fraction:
    return -(-size // step * step)


# ---------------------------------------------------------------- fractions to decimals


def _decimal(value: Fraction, context: decimal.Context = EXACT) -> Decimal:
    """Exact for sizes and money: products and sums of decimals end."""
    return context.divide(Decimal(value.numerator), Decimal(value.denominator))


def _rounded(value: Fraction) -> Decimal:
    return _decimal(value, QUOTIENT)


def _bps(product: Fraction) -> Decimal:
    return _rounded((product - 1) * Fraction(BPS))


def _three(convert: Callable[[Fraction], Decimal], values: Sequence[Fraction]) -> Decimals:
    first, second, third = map(convert, values)
    return first, second, third
