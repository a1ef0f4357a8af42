"""What the last minute of one coin looked like: trades and volatility, in bounded memory. Pure."""

import itertools
import math
from collections import deque
from collections.abc import Sequence
from decimal import Decimal

from services.detector.plain import SECOND_NS
from services.detector.quiet import Mids
from shared.messages import Level

MINUTE_NS = 60_000_000_000
MOST_TRADES = 20_000
"""A minute of the busiest pair has some thousand trades; more are forgotten from the old end."""

DEEP = 10
"""Levels of a side that imbalance and depth are about: as many from every exchange, however many are published."""


class Trades:
    """Trades of one base asset on all exchanges, over a sliding minute."""

    __slots__ = ("_buys", "_known", "_seen")

    def __init__(self) -> None:
        self._seen: deque[tuple[int, str | None]] = deque()
        self._buys = 0
        self._known = 0

    def add(self, received_ns: int, taker_side: str | None) -> None:
        self._seen.append((received_ns, taker_side))
        self._count(taker_side, 1)
        if len(self._seen) > MOST_TRADES or self._seen[0][0] < received_ns - MINUTE_NS:
            self._forget()

    def _forget(self) -> None:
        self._count(self._seen.popleft()[1], -1)

    def _count(self, taker_side: str | None, by: int) -> None:
        self._known += by * (taker_side is not None)
        self._buys += by * (taker_side == "buy")

    def last_minute(self, now_ns: int) -> tuple[int, Decimal | None]:
        """How many, and the share in which the taker bought (None if no side is known)."""
        while self._seen and self._seen[0][0] < now_ns - MINUTE_NS:
            self._forget()
        share = Decimal(self._buys) / self._known if self._known else None
        return len(self._seen), None if share is None else round(share, 2)


def volatility_bps(mids: Mids, now_ns: int) -> Decimal | None:
    """Of the last minute: root of the summed squared log returns, scaled to a minute, in bps; None below ten seconds.

    Realised volatility: the sum over the seconds seen, times 60 over their span, under the root.
    """
    seen = mids.since(now_ns // SECOND_NS - 60)
    if len(seen) < 3 or seen[-1][0] - seen[0][0] < 10:
        return None
    total = sum(math.log(b[1] / a[1]) ** 2 for a, b in itertools.pairwise(seen))
    return round(Decimal(math.sqrt(total * 60 / (seen[-1][0] - seen[0][0])) * 10_000), 2)


def imbalance(bids: Sequence[Level], asks: Sequence[Level]) -> Decimal | None:
    """(bid size - ask size) / (bid size + ask size) of the ten best levels, -1 to 1; None without any."""
    bid, ask = sum(level[1] for level in bids[:DEEP]), sum(level[1] for level in asks[:DEEP])
    return round(Decimal((bid - ask) / (bid + ask)), 2) if bid + ask > 0 else None


def depth_usd(side: Sequence[Level], usd: float) -> Decimal | None:
    """Value of the ten best levels of a side in USD, to the cent; None where no rate is known.

    Args:
        usd: USD per unit of the quote currency; 0 or infinite: not known.
    """
    if not 0 < usd < math.inf:
        return None
    return Decimal(repr(round(sum(price * size for price, size in side[:DEEP]) * usd, 2)))
