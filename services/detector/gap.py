"""One gap between books: which books, by which route, and what is open about it. Pure."""

import hashlib
from decimal import Decimal
from typing import Literal

import orjson

from services.detector.books import HeldBook, Key
from services.detector.edge import ZERO, Evaluation, rounded_bps
from services.detector.plain import NOTHING_SEEN
from services.detector.quiet import GapTop
from shared.messages import Opportunity, Rejection, Route

GapKey = tuple[Key, Key, Key | None]
"""Where the coin is bought, where it is sold, and the bridge's book."""


class Gap(GapTop):
    """Buying a coin on one book and selling it on another, by way of a bridge coin's book if one of the two wants it.

    Attributes:
        bridge: The book that turns cash into the bridge coin (`bridge_side` is "buy": the coin is bought with it) or
            back ("sell": the coin is sold for it). None for a direct gap.
        passing_ns: Since when every gate lets it through (of the message that brought it), while nothing is open.
        refused_ns: When a look last said that it is none.
        failing_ns: Since when an open opportunity has no edge; it may come back. `told` whether an update has said so.
        dated_ns: `opened_ns` of the newest opportunity or rejection: no two of a gap have the same.
        gone_ns: Since when a rejected crossing is gone; it may come back.
        adopted: Taken over from another owner and not yet confirmed.
        accepted: It has been an opportunity at least once since the crossing began.
        best: Highest net edge (bps) since the rejection opened, of ticks that were judged here: see `best_bps`.
        recheck_ns: When what has changed may be published again.
        due_ns: When time alone may change something about it.
    """

    __slots__ = (
        "accepted",
        "best",
        "books",
        "dated_ns",
        "integral",
        "key",
        "looked_ns",
        "told",
        "walk",
        "walk_basis",
    )

    buy: HeldBook
    sell: HeldBook
    bridge: HeldBook | None
    opportunity: Opportunity | None
    rejection: Rejection | None

    def __init__(self, buy: HeldBook, sell: HeldBook, bridge: HeldBook | None = None) -> None:
        super().__init__(buy, sell, bridge)
        self.books = (buy, sell) if bridge is None else (buy, sell, bridge)
        self.key: GapKey = (buy.key, sell.key, None if bridge is None else bridge.key)
        self.told = False
        self.dated_ns = {"opportunity": -1, "rejection": -1}
        self.looked_ns = 0
        self.integral = ZERO
        self.accepted = False
        self.best: Decimal | None = None
        self.walk_basis: object = None
        self.walk: Evaluation | None = None

    @property
    def route(self) -> Route:
        if self.bridge is None:
            return "direct"
        return "triangular" if len({book.exchange for book in self.books}) == 1 else "synthetic"

    @property
    def bridge_side(self) -> Literal["buy", "sell"]:
        """What is done on the bridge's book."""
        assert self.bridge is not None
        return "buy" if self.buy.quote == self.bridge.base else "sell"

    def best_bps(self) -> Decimal | None:
        """Highest net edge since the rejection opened, as published."""
        if self.best_seen_bps > NOTHING_SEEN:
            seen = rounded_bps(Decimal(self.best_seen_bps))
            self.best_seen_bps = NOTHING_SEEN
            if self.best is None or seen > self.best:
                self.best = seen
        return self.best

    def idle(self) -> bool:
        """Nothing is open and nothing pending: the gap can be forgotten."""
        return self.opportunity is None and self.rejection is None and self.passing_ns is None

    def newest_ns(self) -> int:
        """When something that bears on it last changed, by a message or (another rate in use) by time."""
        return max(max(book.touched_ns, book.fx.since_ns) for book in self.books)

    def identity(self, opened_ns: int) -> str:
        """32 hex digits from the gap itself, so that every instance and every replay finds the same."""
        parts: list[object] = [self.buy.base, self.route]
        for book in self.books:
            parts += book.key
        return hashlib.sha256(orjson.dumps([*parts, opened_ns])).hexdigest()[:32]
