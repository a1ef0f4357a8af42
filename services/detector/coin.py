"""All books of one coin, and what is open between them. Pure."""

from services.detector.books import HeldBook
from services.detector.context import Trades
from services.detector.gap import Gap, GapKey
from services.detector.quiet import CoinTops


class Coin(CoinTops):
    """The books of one base asset.

    Attributes:
        gaps: What is open or pending.
    """

    __slots__ = ("base", "gaps", "trades")

    books: list[HeldBook]

    def __init__(self, base: str, *, owned: bool, bridge: bool) -> None:
        super().__init__(owned=owned, bridge=bridge)
        self.base = base
        self.gaps: dict[GapKey, Gap] = {}
        self.trades = Trades()

    def hold(self, book: HeldBook, *, bridged: bool) -> None:
        """Take in a new book, before its first prices."""
        self.add(book)
        self.bridged = self.bridged or bridged
        self.mixed = len({one.quote for one in self.books}) > 1
