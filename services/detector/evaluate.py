"""`arb evaluate`: one case as JSON in, the verdict with its numbers out. Pure; bad input names the field."""

import decimal
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from services.detector import edge
from services.detector.edge import ONE, ZERO, Caps, Evaluation, Levels, Side
from shared import symbols
from shared.errors import InputError
from shared.messages import Reason

NUMERAIRE = "USD"
FIELDS = (
    *("base", "buy", "sell", "fees_bps", "rates", "lot_step", "min_notional", "max_notional"),
    *("fee_in_base", "balances", "max_depth_share"),
)


def evaluate_case(case: Mapping[str, Any]) -> dict[str, Any]:
    """Verdict on a case; see `arb evaluate --help` for its fields. Money in USD, decimals as strings.

    Raises:
        InputError: names the field and what is allowed.
    """
    _only(case, "", FIELDS)
    base = _text(case, "base")
    buy_quote, asks = _leg(case, "buy", "asks", base)
    sell_quote, bids = _leg(case, "sell", "bids", base)
    fees = _pair(case, "fees_bps", low=Decimal(-10_000), high=Decimal(10_000))
    lots = _pair(case, "lot_step")
    least = _least(case)
    most = None if case.get("max_notional") is None else _number(case["max_notional"], "max_notional", low=ZERO)
    rates = _rates(case)
    buy_rate, sell_rate = _rate(rates, buy_quote, "ask"), _rate(rates, sell_quote, "bid")
    in_base = case.get("fee_in_base", False)
    if not isinstance(in_base, bool):
        raise InputError("case", "fee_in_base: must be true (the purchase pays its fee in the coin) or false")
    balances = _pair(case, "balances", low=ZERO)
    share = None
    if case.get("max_depth_share") is not None:
        share = _number(case["max_depth_share"], "max_depth_share", high=ONE, above=ZERO)
    terms = [
        Side((fees[i] or ZERO) / 10_000, rate or ONE, lots[i], least[i], in_base and i == 0)
        for i, rate in enumerate((buy_rate, sell_rate))
    ]
    result = edge.evaluate(
        asks, bids, terms[0], terms[1], Caps(most, *balances, share), _closed_loop(rates, buy_quote, sell_quote)
    )
    if buy_rate is None or sell_rate is None:
        # Without a rate only the naive number exists; it is never taken for 1.
        crossing = bool(asks and bids and bids[0][0] > asks[0][0])
        missing = (Reason.RATE_MISSING,) if asks and bids else (Reason.DEPTH, Reason.RATE_MISSING)
        top = edge.evaluate(asks[:1], bids[:1], Side(), Side()) if crossing else result
        result = edge.nothing(missing, top.naive_bps, None, None)
    return _report(result)


def _report(result: Evaluation) -> dict[str, Any]:
    return {
        "verdict": "reject" if result.reasons else "open",
        "reasons": [reason.value for reason in result.reasons],
        "size": text(result.size),
        "profit": text(result.profit),
        "naive_bps": text(result.naive_bps),
        "net_bps": text(result.net_bps),
        "closed_loop_bps": text(result.closed_loop_bps),
        "buy_vwap": text(result.buy_vwap),
        "sell_vwap": text(result.sell_vwap),
        "buy_limit": text(result.buy_limit),
        "sell_limit": text(result.sell_limit),
        "levels_used": {"buy": result.buy_levels, "sell": result.sell_levels},
        "depth_limited": result.depth_limited,
        "sell_size": text(result.sell_size),
        "limited_by": result.limited_by,
    }


def text(number: Decimal | None) -> str | None:
    """A decimal without exponent and trailing zeros."""
    if number is None:
        return None
    plain = format(number, "f")
    return plain.rstrip("0").rstrip(".") or "0" if "." in plain else plain


# ---------------------------------------------------------------- conversion


def _rate(rates: Mapping[str, tuple[Decimal, Decimal, Decimal]], quote: str, side: str) -> Decimal | None:
    """USD per unit of `quote`: the ask to obtain it, the bid to give it away; None if no rate says so."""
    if quote == NUMERAIRE:
        return ONE
    if (direct := rates.get(f"{quote}-{NUMERAIRE}")) is not None:
        return direct[side == "ask"]
    if (inverse := rates.get(f"{NUMERAIRE}-{quote}")) is not None:
        return edge.EXACT.divide(ONE, inverse[side == "bid"])
    return None


def _fee(rates: Mapping[str, tuple[Decimal, Decimal, Decimal]], quote: str) -> Decimal:
    found = rates.get(f"{quote}-{NUMERAIRE}") or rates.get(f"{NUMERAIRE}-{quote}")
    return found[2] if found is not None else ZERO


def _closed_loop(rates: Mapping[str, tuple[Decimal, Decimal, Decimal]], spent: str, received: str) -> Decimal | None:
    """Units of the spent currency for one unit of the received one, converted by USD with the rates' own fees."""
    if spent == received:
        return ONE
    to_usd, from_usd = _rate(rates, received, "bid"), _rate(rates, spent, "ask")
    if to_usd is None or from_usd is None:
        return None
    with decimal.localcontext(edge.EXACT):
        if received != NUMERAIRE:
            to_usd *= 1 - _fee(rates, received)
        if spent != NUMERAIRE:
            from_usd /= 1 - _fee(rates, spent)
        return to_usd / from_usd


# ---------------------------------------------------------------- reading a case


def _only(found: Mapping[str, Any], where: str, allowed: tuple[str, ...]) -> None:
    for name in found:
        if name not in allowed:
            raise InputError("case", f"unknown field {where}{name}; allowed are {', '.join(allowed)}")


def _object(case: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = case.get(name)
    if not isinstance(found, Mapping):
        raise InputError("case", f"{name} is missing or not an object")
    return found


def _text(found: Mapping[str, Any], name: str, where: str = "") -> str:
    value = found.get(name)
    if not isinstance(value, str) or not value:
        raise InputError("case", f"{where}{name} is missing or not a text")
    return value


def _leg(case: Mapping[str, Any], name: str, side: str, base: str) -> tuple[str, Levels]:
    leg = _object(case, name)
    _only(leg, f"{name}.", ("exchange", "symbol", side))
    _text(leg, "exchange", f"{name}.")
    symbol = _text(leg, "symbol", f"{name}.")
    try:
        symbol_base, quote = symbols.split(symbol)
    except ValueError as error:
        raise InputError("case", f"{name}.symbol: {error}") from None
    if symbol_base != base:
        raise InputError("case", f"{name}.symbol: {symbol} is not a pair of {base}")
    rows = leg.get(side)
    if not isinstance(rows, list):
        raise InputError("case", f"{name}.{side} is missing or not a list of [price, size]")
    found: list[tuple[Decimal, Decimal]] = []
    for index, row in enumerate(rows):
        where = f"{name}.{side}[{index}]"
        if not isinstance(row, list) or len(row) != 2:
            raise InputError("case", f"{where}: must be [price, size]")
        price = _number(row[0], f"{where}[0]", above=ZERO)
        size = _number(row[1], f"{where}[1]", above=ZERO)
        if found and (price < found[-1][0] if side == "asks" else price > found[-1][0]):
            order = "rise" if side == "asks" else "fall"
            raise InputError("case", f"{where}[0]: {side} must {order}, best first")
        found.append((price, size))
    return quote, found


def _number(
    value: Any, where: str, low: Decimal | None = None, high: Decimal | None = None, above: Decimal | None = None
) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, Decimal | int | str | float):
        raise InputError("case", f"{where}: must be a number")
    try:
        number = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    except InvalidOperation:
        raise InputError("case", f"{where}: {value!r} is not a number") from None
    if not number.is_finite() or abs(number.adjusted()) > 30 or len(number.as_tuple().digits) > 36:
        raise InputError("case", f"{where}: {value} is not a number between 1e-30 and 1e30 of at most 36 digits")
    if above is not None and number <= above:
        raise InputError("case", f"{where}: {value} must be above {above}")
    if (low is not None and number < low) or (high is not None and number > high):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        raise InputError("case", f"{where}: {value} must be {bounds}")
    return number


def _pair(
    case: Mapping[str, Any], name: str, low: Decimal | None = None, high: Decimal | None = None
) -> tuple[Decimal | None, Decimal | None]:
    """Optional {"buy", "sell"}; a step must be above zero, a fee within its bounds."""
    if case.get(name) is None:
        return None, None
    found = _object(case, name)
    _only(found, f"{name}.", ("buy", "sell"))
    above = ZERO if low is None else None
    read = [
        None if found.get(side) is None else _number(found[side], f"{name}.{side}", low, high, above)
        for side in ("buy", "sell")
    ]
    return read[0], read[1]


def _least(case: Mapping[str, Any]) -> tuple[Decimal | None, Decimal | None]:
    value = case.get("min_notional")
    if value is None:
        return None, None
    if isinstance(value, Mapping):
        _only(value, "min_notional.", ("buy", "sell"))
        sides = [value.get("buy"), value.get("sell")]
        read = [None if v is None else _number(v, "min_notional", low=ZERO) for v in sides]
        return read[0], read[1]
    number = _number(value, "min_notional", low=ZERO)
    return number, number


def _rates(case: Mapping[str, Any]) -> dict[str, tuple[Decimal, Decimal, Decimal]]:
    """Symbol to (bid, ask, fee fraction)."""
    if case.get("rates") is None:
        return {}
    rates = {}
    for symbol, quoted in _object(case, "rates").items():
        where = f"rates.{symbol}"
        if not symbols.is_canonical(symbol):
            raise InputError("case", f"{where}: must be a pair such as USDT-USD")
        if not isinstance(quoted, Mapping):
            raise InputError("case", f'{where}: must be {{"bid": ..., "ask": ...}}')
        _only(quoted, f"{where}.", ("bid", "ask", "fee_bps"))
        for side in ("bid", "ask"):
            if side not in quoted:
                raise InputError("case", f"{where}.{side} is missing")
        bid = _number(quoted["bid"], f"{where}.bid", above=ZERO)
        ask = _number(quoted["ask"], f"{where}.ask", above=ZERO)
        if bid > ask:
            raise InputError("case", f"{where}: bid {bid} is above ask {ask}")
        fee = _number(quoted.get("fee_bps", 0), f"{where}.fee_bps", Decimal(0), Decimal(5_000))
        rates[symbol] = (bid, ask, fee / 10_000)
    return rates
