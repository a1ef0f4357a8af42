"""One verdict in words, step by step. Pure: messages and settings in, an `Explanation` out."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from services.cli.explain.sums import Order, Sums, Verdict, rate_is_stale, recompute
from services.cli.explain.words import CLOSED, LIMITS, REASONS, UNKNOWN_FEE, Present, bps, moment, plain, price, seconds
from shared import symbols
from shared.messages import Leg, Opportunity, Reason, Rejection
from shared.settings import DetectorSettings

MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Step:
    """One step. `bps` is what the gap is worth after it; None where that is unknown or the step changes nothing."""

    name: str
    title: str
    lines: tuple[str, ...]
    bps: Decimal | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """A verdict in words.

    Attributes:
        message: The newest of its id.
        basis: The message whose numbers the steps are.
    """

    message: Verdict
    basis: Verdict
    sums: Sums
    headline: str
    steps: tuple[Step, ...]


def explain(timeline: Sequence[Verdict], present: Present) -> Explanation:
    """One verdict in words.

    Args:
        timeline: All that is known of one id, oldest first.
        present: The settings, for what moves each reason.
    """
    message, basis = timeline[-1], look(timeline)
    sums = recompute(basis)
    steps = (
        _top(basis, sums),
        _converted(basis, sums),
        _fees(sums),
        _depth(basis, sums, present),
        _time(sums, present.settings.detector),
        _outcome(message, basis, sums, present),
    )
    return Explanation(message, basis, sums, _headline(message, basis, sums), steps)


def look(timeline: Sequence[Verdict]) -> Verdict:
    """The message to explain: a closing one keeps the books of an earlier look, so the newest that is none.

    Of an opportunity that closed the newest at which something was executable.
    """
    if timeline[-1].phase != "closed":
        return timeline[-1]
    looks = [message for message in reversed(timeline) if message.phase != "closed"] or [timeline[-1]]
    return next((one for one in looks if isinstance(one, Rejection) or one.size > 0), looks[0])


def identity(message: Verdict) -> str:
    return message.opportunity_id if isinstance(message, Opportunity) else message.rejection_id


def _headline(message: Verdict, basis: Verdict, sums: Sums) -> str:
    orders = [
        f"{order.side}ing on {order.leg.exchange} ({order.leg.symbol}) at {price(order.top)}" for order in sums.orders
    ]
    start = f"{message.base}: {', '.join(orders[:-1])} and {orders[-1]}"
    start += " met an empty side" if sums.top is None else f" looked like {bps(sums.top.naive, 1)} bps"
    net, life = f"{bps(basis.net_bps, 1)} bps", seconds(_life_ms(message))
    closed = f", until {_why_closed(message)[0]}" if message.phase == "closed" else ""
    if isinstance(basis, Rejection):
        after = "what is left after fees and conversion was not worked out"
        if basis.net_bps is not None and basis.naive_bps is not None:
            after = f"{'but' if basis.net_bps < basis.naive_bps else 'and'} after fees and conversion it was {net}"
        short = " and ".join(dict.fromkeys(REASONS[reason].short for reason in basis.reasons)) or "nothing named"
        return f"{start}, {after}: rejected because of {short}{closed}."
    size = f"{basis.profit_usd:,.2f} USD on {plain(basis.size)} {message.base}" if basis.size else "nothing executable"
    there = f" for {life}{closed}" if closed else f", open for {life} when last heard of"
    paid = "paid" if basis.size else "is"
    return f"{start} and {paid} {net} after fees and conversion ({size}): an opportunity{there}."


def _market(order: Order) -> str:
    return f"{order.leg.exchange} {order.leg.symbol}"


# ---------------------------------------------------------------- what the gap is worth


def _top(message: Verdict, sums: Sums) -> Step:
    lines = []
    for order in sums.orders:
        best = f"best {'ask' if order.side == 'buy' else 'bid'} {price(order.top)}"
        there = "" if order.there is None else f" ({plain(order.there)} {symbols.base_of(order.leg.symbol)} there)"
        lines.append(f"{order.side} on {_market(order)}: {best}{there}")
    if sums.top is None:
        return Step("top", "top of the books: a side is empty", tuple(lines), None)
    buy, sell = sums.orders[0], sums.orders[-1]
    if len(sums.orders) == 2 and buy.top is not None and sell.top is not None:
        gap, quotes = price(sell.top - buy.top), sorted({buy.quote, sell.quote})
        if len(quotes) == 1:
            lines.append(f"gap: {gap} {quotes[0]} for each {message.base}")
        else:
            lines.append(f"gap: {gap} for each {message.base}, with {' and '.join(quotes)} taken as equal")
    return Step("top", "top of the books, as the prices stand", tuple(lines), sums.top.naive)


def _converted(message: Verdict, sums: Sums) -> Step:
    lines = [
        f"{rate.symbol} on {rate.exchange}: {rate.side} {price(rate.price, 4)} USD "
        f"{'to obtain' if rate.side == 'ask' else 'for giving away'} 1 {symbols.base_of(rate.symbol)}, "
        f"{rate.age_ms:,} ms old"
        for rate in message.rates
    ]
    after = None if sums.top is None else sums.top.converted
    if sums.unconverted:
        lines.append(f"no usable rate for {' and '.join(sums.unconverted)}: what the gap is worth in USD is unknown")
    elif rate_is_stale(message):
        lines.append("a rate is not live or too old: what the gap is worth in USD is unknown")
    elif not message.rates:
        lines.append("both ends are USD: nothing to convert")
    elif sums.top is not None and after is not None:
        change = after - sums.top.naive
        spread = ": the spread of its own rate" if sums.orders[0].quote == sums.orders[-1].quote else ""
        lines.append(f"the conversion {'adds' if change >= 0 else 'takes'} {bps(abs(change))} bps{spread}")
    return Step("conversion", "after conversion to USD", tuple(lines), after)


def _fees(sums: Sums) -> Step:
    lines = []
    for order in sums.orders:
        fee, coin = order.leg.fee_bps, order.side == "buy" and order.leg.fee_in_base
        takes = "a fee that is not known" if fee is None else f"{plain(fee)} bps"
        how = ", out of the coin that is bought" if coin else ""
        lines.append(f"{order.leg.exchange} takes {takes} on {order.side}ing{how}")
    top = sums.top
    if top is not None and top.break_even is not None:
        lines.append(f"break-even: a gap of {bps(top.break_even)} bps just pays these fees")
    return Step("fees", "after the fees of each order", tuple(lines), None if top is None else top.net)


def _depth(message: Verdict, sums: Sums, present: Present) -> Step:
    """What the books hold at a profit."""
    if sums.fills is None:
        return Step("depth", "at a size", (_why_no_size(message),), None)
    lines = [_fill(order) for order in sums.orders]
    if message.sell_size is not None:
        left = plain(message.size - message.sell_size)
        lines.append(f"the other {left} {message.base}: the fee in the coin, and less than a lot")
    if message.limited_by is not None:
        limit, names = LIMITS[message.limited_by]
        moved = present.moved_by(names, _legs(sums))
        lines.append(f"the size is limited by {limit}{f' ({moved})' if moved else ''}")
    if sums.profit is not None:
        on = f" on {message.notional_usd:,.2f} USD" if isinstance(message, Opportunity) else ""
        lines.append(f"profit: {sums.profit:,.2f} USD{on}")
    loop = f"{bps(message.closed_loop_bps)} bps once the proceeds are back in the currency that was spent"
    if message.closed_loop_bps is None:
        loop = "unknown, for the fee of converting the proceeds back is"
    return Step("depth", f"at {plain(message.size)} {message.base}", (*lines, f"closed loop: {loop}"), sums.fills.net)


def _why_no_size(message: Verdict) -> str:
    reasons = set(message.reasons) if isinstance(message, Rejection) else set()
    if message.net_bps is None:
        return "not worked out: a live book, a rate or a fee is missing"
    if reasons & {Reason.LOT, Reason.MIN_NOTIONAL, Reason.DEPTH, Reason.BALANCE}:
        return "nothing executable: the first unit pays, but no order of that size can be placed (see the reasons)"
    return "nothing executable: already the first unit would lose"


def _fill(order: Order) -> str:
    leg, levels = order.leg, "level" if order.leg.levels == 1 else "levels"
    average = None if leg.vwap is None else round(leg.vwap, max(2, 7 - leg.vwap.adjusted())).normalize()
    return (
        f"{order.side} {plain(order.size)} {symbols.base_of(leg.symbol)} on {_market(order)} at {price(average)} on "
        f"average, limit price {price(leg.limit)}, {leg.levels} {levels} of the book"
    )


# ---------------------------------------------------------------- gates of time, and what became of it


def _time(sums: Sums, limits: DetectorSettings) -> Step:
    lines = []
    for order in sums.orders:
        alive = _against(order.leg.alive_age_ms, limits.max_silence_ms)
        changed = _against(order.leg.book_age_ms, limits.max_book_age_ms)
        lines.append(f"{_market(order)}: last proof of life {alive} before, book last changed {changed} before")
    ages = [leg.alive_age_ms for leg in _legs(sums)]
    lines.append(f"skew between the books: {_against(max(ages) - min(ages), limits.max_skew_ms)}")
    return Step("time", "gates of time, against the limits as they are set now", tuple(lines), None)


def _against(value_ms: int, limit_ms: int) -> str:
    return f"{value_ms:,} ms ({'passes' if value_ms <= limit_ms else 'FAILS'}, at most {limit_ms:,})"


def _outcome(message: Verdict, basis: Verdict, sums: Sums, present: Present) -> Step:
    """Every reason of a rejection; the life of either."""
    lines = _reasons(message, basis, sums, present) if isinstance(message, Rejection) else []
    first, last = f"first seen {moment(message.opened_ns)}", moment(message.detected_ns)
    if message.phase == "closed":
        lines.append(f"there for {seconds(_life_ms(message))}: {first}, closed {last}")
    else:
        lines.append(f"not closed yet, as far as was read: {first}, last published {last}")
    best = message.peak_net_bps if isinstance(message, Opportunity) else message.best_net_bps
    if best is not None:
        lines.append(f"at its best {bps(best)} bps net")
    if message.phase == "closed":
        why, names = _why_closed(message)
        moved = present.moved_by(names, _legs(sums))
        lines.append(f"closed ({message.close_reason}): {why}{f'; moved by {moved}' if moved else ''}")
        if isinstance(message, Opportunity):
            seen = "look before it" if basis is message else f"look of {moment(basis.detected_ns)}"
            lines.append(f"at the close {bps(message.net_bps)} bps net; books and sizes above are of the {seen}")
    elif isinstance(message, Opportunity):
        lines.append(f"void if not heard of again by {moment(message.expires_ns)}")
    title = "why it was rejected" if isinstance(message, Rejection) else "what became of it"
    return Step("outcome", title, tuple(lines), basis.net_bps)


def _reasons(message: Rejection, basis: Verdict, sums: Sums, present: Present) -> list[str]:
    """A sentence for each."""
    seen = sums.fills or sums.top
    unknown = " and ".join(dict.fromkeys(leg.exchange for leg in _legs(sums) if leg.fee_bps is None))
    fields = {
        "base": message.base,
        "naive": bps(message.naive_bps),
        "converted": bps(None if seen is None else seen.converted),
        "net": bps(message.net_bps),
        "break_even": bps(None if seen is None else seen.break_even),
        "unknown_fee": unknown,
        "unconverted": " and ".join(sums.unconverted) or "a currency",
        "there_ms": f"{(basis.detected_ns - basis.opened_ns) // MS:,}",
    }
    lines = []
    for reason in message.reasons:
        why = REASONS[reason]
        sentence = UNKNOWN_FEE if reason is Reason.FEES and unknown else why.sentence
        moved = present.moved_by(why.moved_by, _legs(sums))
        lines.append(f"{reason.value}: {sentence.format_map(fields)}{f' Moved by {moved}.' if moved else ''}")
    return lines


def _why_closed(message: Verdict) -> tuple[str, tuple[str, ...]]:
    """In words, and the settings that move it; a code that this version does not know as it stands."""
    return CLOSED.get(message.close_reason, (message.close_reason or "no reason was given", ()))


def _life_ms(message: Verdict) -> int:
    if isinstance(message, Opportunity) and message.lifetime_ms is not None:
        return message.lifetime_ms
    return (message.detected_ns - message.opened_ns) // MS


def _legs(sums: Sums) -> list[Leg]:
    return [order.leg for order in sums.orders]
