"""Taker fees: dated data from the settings, never constants in code."""

import datetime
from collections.abc import Sequence
from decimal import Decimal
from typing import Protocol


class FeeEntry(Protocol):
    """One line of a fee schedule (`exchanges.<name>.fees` in the settings)."""

    @property
    def valid_from(self) -> datetime.date: ...
    @property
    def taker_bps(self) -> Decimal: ...
    @property
    def symbol(self) -> str | None: ...


def taker_fee_bps(schedule: Sequence[FeeEntry], symbol: str, day: datetime.date) -> Decimal | None:
    """Taker fee for `symbol` on `day` in basis points; None if the schedule does not reach back so far.

    An entry that names the symbol wins over a general one; among equals the latest `valid_from` wins.
    """
    valid = [e for e in schedule if e.valid_from <= day and e.symbol in (None, symbol)]
    if not valid:
        return None
    return max(valid, key=lambda e: (e.symbol is not None, e.valid_from)).taker_bps
