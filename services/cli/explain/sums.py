"""The arithmetic of `arb explain`: a verdict computed again from its own prices, sizes, fees and rates. Pure."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import NamedTuple

from shared import symbols
from shared.messages import Leg, Level, Opportunity, Reason, Rejection

Verdict = Opportunity | Rejection

BPS, ONE = Decimal(10_000), Decimal(1)

BPS_STEP, USD_STEP, VWAP_STEP = Decimal("0.0001"), Decimal("0.000001"), Decimal("1e-12")
"""Differences up to these are of rounding: bps are published with four decimals, average prices have 28 digits."""


class Order(NamedTuple):
    """One order of the trade. `size` is in the base of its symbol; 0 where nothing is executable."""

    side: str
    leg: Leg
    size: Decimal

    @property
    def levels(self) -> Sequence[Level]:
        """What it meets."""
        return self.leg.asks if self.side == "buy" else self.leg.bids

    @property
    def top(self) -> Decimal | None:
        """The best price that it meets; None: an empty side."""
        return _exact(self.levels[0][0]) if self.levels else None

    @property
    def there(self) -> Decimal | None:
        """The size at that price."""
        return _exact(self.levels[0][1]) if self.levels else None

    @property
    def quote(self) -> str:
        return symbols.split(self.leg.symbol)[1]

    @property
    def paid(self) -> Decimal:
        """What a value of one takes, with a fee on top of the price."""
        return ONE if self.side == "sell" or self.leg.fee_in_base else 1 + self.fee

    @property
    def kept(self) -> Decimal:
        """What is left of one received, with a fee taken out of it."""
        return 1 - self.fee if self.side == "sell" or self.leg.fee_in_base else ONE

    @property
    def fee(self) -> Decimal:
        """As a fraction; nothing to count with where `fee_bps` is None."""
        return (self.leg.fee_bps or Decimal(0)) / BPS


class Worth(NamedTuple):
    """Gap in bps of the cost: as prices stand, in USD, after fees; and the gap that the fees alone need."""

    naive: Decimal
    converted: Decimal | None
    net: Decimal | None
    break_even: Decimal | None


@dataclass(frozen=True, slots=True)
class Sums:
    """All that the steps are made of.

    Attributes:
        orders: In the order of the cycle.
        unconverted: Currencies without a rate.
        top: Worth at the best prices; None: an empty side.
        fills: Worth at the average prices and sizes; None where nothing is executable.
        profit: USD at these.
        disagreements: Where the message contradicts its own numbers.
    """

    orders: tuple[Order, ...]
    unconverted: tuple[str, ...]
    top: Worth | None
    fills: Worth | None
    profit: Decimal | None
    disagreements: tuple[str, ...]


def recompute(message: Verdict) -> Sums:
    """Compute a verdict again from its own fields, and compare."""
    orders = orders_of(message)
    obtain, give, unconverted = _conversion(message, orders)
    tops, vwaps = _all(order.top for order in orders), _all(order.leg.vwap for order in orders)
    top = None if tops is None else worth(orders, tops, obtain, give)
    fills = profit = None
    if message.size > 0 and vwaps is not None:
        fills = worth(orders, vwaps, obtain, give)
        if fills.net is not None and obtain is not None and give is not None:
            with localcontext(prec=50):
                spent = orders[0].size * vwaps[0] * orders[0].paid * obtain
                profit = orders[-1].size * vwaps[-1] * orders[-1].kept * give - spent
                fills = fills._replace(net=profit * BPS / spent)  # lots: not all that is bought can be sold
    source = f"the {'top of the books' if fills is None else 'average prices'} in the same message"
    found, wrong = fills or top, _wrong_averages(orders)
    if found is not None and not (isinstance(message, Opportunity) and message.phase == "closed"):  # a newer net edge
        wrong += _differs("naive_bps", message.naive_bps, found.naive, BPS_STEP, source)
        wrong += _differs("net_bps", message.net_bps, found.net, BPS_STEP, source)
        if orders[0].quote == orders[-1].quote and found.net is not None and obtain is not None and give is not None:
            loop = ((found.net / BPS + 1) * obtain / give - 1) * BPS  # nothing has to be converted
            wrong += _differs("closed_loop_bps", message.closed_loop_bps, loop, BPS_STEP, source)
    if isinstance(message, Opportunity):
        wrong += _differs("profit_usd", message.profit_usd, profit, USD_STEP, "its sizes and average prices")
    return Sums(orders, unconverted, top, fills, profit, tuple(wrong))


def orders_of(message: Verdict) -> tuple[Order, ...]:
    """The orders of a verdict: two, or those of its route."""
    if message.legs is not None:
        return tuple(Order(leg.side, leg, leg.size) for leg in message.legs)
    sold = message.size if message.sell_size is None else message.sell_size
    return Order("buy", message.buy, message.size), Order("sell", message.sell, sold)


def worth(orders: Sequence[Order], prices: Sequence[Decimal], obtain: Decimal | None, give: Decimal | None) -> Worth:
    """What trading one unit round at these prices brings.

    Args:
        obtain, give: USD for a unit of the currency spent, and of the one received; None: no usable rate.
    """
    with localcontext(prec=50):
        rates = [price if order.side == "sell" else 1 / price for order, price in zip(orders, prices, strict=True)]
        gap = math.prod(rates, start=ONE)
        kept = math.prod((order.kept / order.paid for order in orders), start=ONE)
        fees_known = all(order.leg.fee_bps is not None for order in orders)
        converted = None if obtain is None or give is None else gap * give / obtain
        return Worth(
            (gap - 1) * BPS,
            None if converted is None else (converted - 1) * BPS,
            None if converted is None or not fees_known else (converted * kept - 1) * BPS,
            (1 / kept - 1) * BPS if fees_known else None,
        )


def average_price(levels: Sequence[Level], size: Decimal) -> Decimal | None:
    """Average price of filling `size` from the best level on; None if the levels do not hold it."""
    with localcontext(prec=50):
        left, value = size, Decimal(0)
        for price, there in levels:
            step = min(left, _exact(there))
            left, value = left - step, value + step * _exact(price)
            if left == 0:
                return value / size if size else None
    return None


def rate_is_stale(message: Verdict) -> bool:
    """Whether one of its rates must not be used; it does not say which."""
    return isinstance(message, Rejection) and Reason.RATE_STALE in message.reasons


def _exact(wire: float) -> Decimal:
    """The digits of the wire."""
    return Decimal(repr(wire))


def _all(values: Iterable[Decimal | None]) -> list[Decimal] | None:
    """The values; None if one is missing."""
    found = list(values)
    known = [value for value in found if value is not None]
    return known if len(known) == len(found) else None


def _conversion(message: Verdict, orders: Sequence[Order]) -> tuple[Decimal | None, Decimal | None, tuple[str, ...]]:
    """USD for a unit of the currency spent, for one of the currency received, and the currencies without a rate."""
    prices = {(symbols.base_of(rate.symbol), rate.side): rate.price for rate in message.rates}
    prices |= {("USD", "ask"): ONE, ("USD", "bid"): ONE}
    ends = [(orders[0].quote, "ask"), (orders[-1].quote, "bid")]
    missing = tuple(dict.fromkeys(quote for quote, side in ends if (quote, side) not in prices))
    if rate_is_stale(message):
        return None, None, missing
    return prices.get((ends[0][0], "ask")), prices.get((ends[1][0], "bid")), missing


def _differs(name: str, said: Decimal | None, computed: Decimal | None, step: Decimal, source: str) -> list[str]:
    """What to say if the two differ by more than a step; nothing if one is unknown."""
    if said is None or computed is None or abs(said - computed) <= step:
        return []
    return [f"{name} is {said:f}, but {source} give {computed.quantize(step):f}"]


def _wrong_averages(orders: Sequence[Order]) -> list[str]:
    """Average prices that the published levels contradict; nothing where they do not hold the size."""
    wrong = []
    for order in orders:
        computed, vwap = average_price(order.levels, order.size), order.leg.vwap
        if computed is not None and vwap is not None and abs(computed / vwap - 1) > VWAP_STEP:
            name = f"{order.leg.exchange} {order.leg.symbol} vwap"
            wrong.append(f"{name} is {vwap:f}, but {order.size:f} of its own levels cost {computed:.12g} on average")
    return wrong
