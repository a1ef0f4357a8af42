"""One gap between books: which books, by which route, and what is open about it. Pure."""

import hashlib
from decimal import Decimal
from typing import Literal

import orjson

from services.detector.books import HeldBook, Key
from services.detector.edge import ZERO, Evaluation
from shared.messages import Opportunity, Rejection, Route

GapKey = tuple[Key, Key, Key | None]
"""Where the coin is bought, where it is sold, and the bridge's book."""

NEVER_NS = 1 << 62


class Gap:
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
        best: Highest net edge (bps) since the rejection opened.
        recheck_ns: When what has changed may be published again.
        due_ns: When time alone may change something about it.
    """

    __slots__ = (
        "accepted",
        "adopted",
        "best",
        "books",
        "bridge",
        "buy",
        "dated_ns",
        "due_ns",
        "failing_ns",
        "gone_ns",
        "integral",
        "key",
        "looked_ns",
        "opportunity",
        "passing_ns",
        "published_ns",
        "recheck_ns",
        "refused_ns",
        "rejection",
        "sell",
        "told",
        "walk",
        "walk_basis",
    )

    def __init__(self, buy: HeldBook, sell: HeldBook, bridge: HeldBook | None = None) -> None:
        self.buy = buy
        self.sell = sell
        self.bridge = bridge
        self.books = (buy, sell) if bridge is None else (buy, sell, bridge)
        self.key: GapKey = (buy.key, sell.key, None if bridge is None else bridge.key)
        self.opportunity: Opportunity | None = None
        self.rejection: Rejection | None = None
        self.passing_ns: int | None = None
        self.failing_ns: int | None = None
        self.told = False
        self.gone_ns: int | None = None
        self.dated_ns = {"opportunity": -1, "rejection": -1}
        self.published_ns = 0
        self.looked_ns = 0
        self.integral = ZERO
        self.adopted = False
        self.accepted = False
        self.best: Decimal | None = None
        self.recheck_ns = NEVER_NS
        self.refused_ns = -1
        self.due_ns = NEVER_NS
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
