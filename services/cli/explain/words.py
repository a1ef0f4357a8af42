"""What `arb explain` says: a sentence for each reason, the settings that move it, numbers as people read them."""

import datetime
from collections.abc import Iterable
from decimal import Context, Decimal
from typing import NamedTuple

from shared.fees import taker_fee
from shared.messages import Leg, Limit, Reason
from shared.settings import Settings


class Why(NamedTuple):
    """One reason in plain words.

    Attributes:
        short: Ends the sentence "rejected because of ...".
        sentence: May name, in braces, what `steps` fills in.
        moved_by: Settings that move it; `*` stands for the exchanges of the legs.
    """

    short: str
    sentence: str
    moved_by: tuple[str, ...] = ()


REASONS: dict[Reason, Why] = {
    Reason.NO_CROSSING: Why(
        "no gap at all", "The best bid is not above the best ask, neither as the prices stand nor converted."
    ),
    Reason.HEALTH: Why(
        "a book that could not be trusted",
        "A book was not live, or its last proof of life was too old: nothing is concluded from what may be wrong.",
        ("detector.max_silence_ms",),
    ),
    Reason.AGE: Why(
        "an old book",
        "A book had not changed for too long: its prices may be leftovers.",
        ("detector.max_book_age_ms",),
    ),
    Reason.SKEW: Why(
        "books of different moments",
        "The books were last heard of too far apart: they may never have been true at the same moment.",
        ("detector.max_skew_ms",),
    ),
    Reason.RATE_MISSING: Why(
        "a missing conversion rate",
        "Nobody quotes {unconverted} in USD: a conversion that is not known is never taken for 1.",
        ("detector.rate_exchanges",),
    ),
    Reason.RATE_STALE: Why(
        "a stale conversion rate",
        "There is a rate, but it is not live or too old: nothing is converted with it.",
        ("detector.max_silence_ms",),
    ),
    Reason.FEES: Why(
        "fees",
        "Fees eat the gap: it is {naive} bps wide as the prices stand, and they need {break_even} bps.",
        ("exchanges.*.fees",),
    ),
    Reason.CONVERSION: Why(
        "conversion", "The conversion eats the gap: it is {naive} bps wide as the prices stand, {converted} bps in USD."
    ),
    Reason.THRESHOLD: Why(
        "less profit than wanted", "It pays, but {net} bps net is less than you want.", ("detector.open_net_bps",)
    ),
    Reason.DEPTH: Why(
        "too little depth",
        "A side of a book was empty, or the caps left no size at all.",
        ("detector.max_notional_usd", "detector.max_depth_share"),
    ),
    Reason.LOT: Why(
        "a size below one lot",
        "The size that pays is less than one lot that all its exchanges take, or the lots eat the profit. What the "
        "exchanges themselves say of lots comes before the setting.",
        ("exchanges.*.lot_step",),
    ),
    Reason.MIN_NOTIONAL: Why(
        "a size below the smallest order",
        "The size that pays is below the smallest order (value or size) of an exchange. What the exchanges "
        "themselves say of it comes before the setting.",
        ("exchanges.*.min_notional_usd",),
    ),
    Reason.BALANCE: Why(
        "an empty account",
        "There is nothing to spend where it is bought, or nothing to sell where it is sold.",
        ("exchanges.*.balances",),
    ),
    Reason.PERSISTENCE: Why(
        "too short a time",
        "It passed every gate with {net} bps net, but had been there for {there_ms} ms only: a flicker is not traded.",
        ("detector.persistence_ms",),
    ),
    Reason.SANITY: Why(
        "a gap too good to be true",
        "{net} bps net is far more often bad data, halted withdrawals or another coin than profit.",
        ("detector.sanity_cap_bps",),
    ),
    Reason.IDENTITY: Why(
        "another coin of the same name",
        "{base} is listed as different coins that share a ticker.",
        ("detector.not_the_same",),
    ),
    Reason.HALTED: Why(
        "halted trading", "Trading was halted on one of its exchanges, for all of it or for the symbol."
    ),
}

CONTRADICTION = (
    "Either an older version wrote it, or it is a mistake of Arbiter, not of the market: then please report it with "
    "`--json`."
)

UNKNOWN_FEE = "No fee is known for that day on {unknown_fee}: it is never taken for 0."

CLOSED: dict[str | None, tuple[str, tuple[str, ...]]] = {
    "accepted": ("it passed every gate for long enough and became an opportunity", ()),
    "crossing_gone": ("the gap is gone: the bid is no longer above the ask", ()),
    "edge": ("the net edge fell below detector.close_net_bps", ("detector.close_net_bps", "detector.close_after_ms")),
    "handover": ("another detector took the coin over and could not confirm it", ()),
    **{reason.value: (f"a gate failed ({why.short})", why.moved_by) for reason, why in REASONS.items()},
}
"""Why a verdict closed, and the settings that move it."""

LIMITS: dict[Limit, tuple[str, tuple[str, ...]]] = {
    "margin": ("the edge itself: the next level would lose money", ()),
    "depth": ("the published depth: it ran out while it still paid, so the true size is unknown", ()),
    "notional": ("the largest value of one trade", ("detector.max_notional_usd",)),
    "balance": ("the balance", ("exchanges.*.balances",)),
    "share": ("the largest share of the published depth", ("detector.max_depth_share",)),
}
"""What ended the size, and the settings that move it."""


# ---------------------------------------------------------------- settings as they are now


class Present(NamedTuple):
    """The settings as they are today."""

    settings: Settings
    today: datetime.date

    def moved_by(self, names: Iterable[str], legs: Iterable[Leg]) -> str:
        """Settings with their values; `*` stands for the exchanges of the legs."""
        found: dict[str, str] = {}
        for name in names:
            section, *_, key = name.split(".")
            if "*" in name:
                found |= {name.replace("*", leg.exchange): self._of_exchange(leg, key) for leg in legs}
            else:
                found[name] = _value(getattr(getattr(self.settings, section), key))
        return ", ".join(f"{name} (now {value})" for name, value in found.items())

    def _of_exchange(self, leg: Leg, key: str) -> str:
        chosen = self.settings.exchanges.get(leg.exchange)
        if chosen is None:
            return "no such exchange in your settings"
        if key != "fees":
            return _value(getattr(chosen, key))
        fee = taker_fee(chosen.fees, leg.symbol, chosen.fee_tier, self.today)
        if fee is None:
            return "none that is valid today"
        return f"{plain(fee.taker_bps)} bps since {fee.valid_from}{', taken in the coin' if fee.in_base else ''}"


def _value(value: object) -> str:
    if value is None:
        return "not set"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_value(one)}" for name, one in value.items()) or "empty"
    if isinstance(value, tuple):
        return ", ".join(str(one) for one in value) or "empty"
    return f"{value:,f}" if isinstance(value, Decimal) else f"{value:,}" if type(value) is int else str(value)


# ---------------------------------------------------------------- numbers


def bps(value: Decimal | None, digits: int = 2) -> str:
    return "unknown" if value is None else f"{round(value, digits) + 0:.{digits}f}"  # + 0: no "-0.00"


def plain(value: Decimal) -> str:
    """All digits, without zeros at the end: sizes and fees."""
    text = f"{value:,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


MOST_DIGITS = 20
"""No exchange sends more: a number with more is a quotient."""


def price(value: Decimal | None, places: int = 2) -> str:
    """All digits that were sent, at least `places` after the point; of a quotient no more than twelve in all."""
    if value is None:
        return "no price"
    if len(value.as_tuple().digits) > MOST_DIGITS:
        value = Context(prec=12).plus(value)
    return f"{value:,.{max(places, -int(value.as_tuple().exponent))}f}"


def seconds(ms: int) -> str:
    return f"{ms} ms" if ms < 1000 else f"{ms / 1000:,.1f} s"


def moment(at_ns: int) -> str:
    """Date and time in UTC, as the messages are."""
    return f"{datetime.datetime.fromtimestamp(at_ns / 1e9, datetime.UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3] + " UTC"
