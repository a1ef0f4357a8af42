"""Taker fees: dated data from the settings, never constants in code."""

import datetime
from collections.abc import Sequence
from decimal import Decimal
from typing import Protocol, TypeVar


class FeeEntry(Protocol):
    """One line of a fee schedule (`exchanges.<name>.fees` in the settings)."""

    @property
    def valid_from(self) -> datetime.date: ...
    @property
    def taker_bps(self) -> Decimal: ...
    @property
    def symbol(self) -> str | None: ...
    @property
    def tier(self) -> str | None: ...
    @property
    def in_base(self) -> bool: ...


Entry = TypeVar("Entry", bound=FeeEntry)


def taker_fee(schedule: Sequence[Entry], symbol: str, tier: str | None, day: datetime.date) -> Entry | None:
    """The line that counts for `symbol` in `tier` on `day`; None if the schedule does not reach back so far.

    A line that names the symbol wins over a general one, then one that names the tier; of equals the latest wins.
    """
    valid = [e for e in schedule if e.valid_from <= day and e.symbol in (None, symbol) and e.tier in (None, tier)]
    return max(valid, key=lambda e: (e.symbol is not None, e.tier is not None, e.valid_from), default=None)
