"""All books of one coin, and whether one of them crosses any other: a look at numbers before a look at books. Pure."""

from services.detector.books import HeldBook, Rates
from services.detector.context import Trades
from services.detector.gap import Gap, GapKey

NOTHING_HELD = float("inf")


class Coin:
    """The books of one base asset.

    The best prices stand side by side in lists, as they are and in USD: a book whose ask is not below the highest bid
    of all, and whose bid is not above the lowest ask of all, crosses none of the others.

    Attributes:
        owned: Whether it is judged here (a bridge coin of another instance is only held).
        bridge: Other coins are quoted in it.
        bridged: One of its books is quoted in a bridge coin: its prices say nothing beside the others.
        gaps: What is open or pending.
    """

    __slots__ = (
        "_asks",
        "_bids",
        "_mixed",
        "_usd_asks",
        "_usd_bids",
        "_version",
        "base",
        "books",
        "bridge",
        "bridged",
        "gaps",
        "owned",
        "trades",
    )

    def __init__(self, base: str, *, owned: bool, bridge: bool) -> None:
        self.base = base
        self.owned = owned
        self.bridge = bridge
        self.books: list[HeldBook] = []
        self.bridged = False
        self.gaps: dict[GapKey, Gap] = {}
        self.trades = Trades()
        self._bids: list[float] = []
        self._asks: list[float] = []
        self._usd_bids: list[float] = []
        self._usd_asks: list[float] = []
        self._mixed = False
        self._version = -1

    def add(self, book: HeldBook, *, bridged: bool) -> None:
        """Take in a new book, before its first prices."""
        book.coin, book.slot = self, len(self.books)
        self.books.append(book)
        self.bridged = self.bridged or bridged
        self._mixed = len({one.quote for one in self.books}) > 1
        for prices, none in (
            (self._bids, 0.0),
            (self._asks, NOTHING_HELD),
            (self._usd_bids, 0.0),
            (self._usd_asks, NOTHING_HELD),
        ):
            prices.append(none)

    def moved(self, book: HeldBook, rates: Rates) -> bool:
        """Note a book's best prices; whether it crosses another book, as they stand or converted."""
        slot, bid, ask = book.slot, book.best_bid, book.best_ask
        bids, asks = self._bids, self._asks
        bids[slot], asks[slot] = bid, ask
        if self._mixed:
            if self._version != rates.version:
                self._version = rates.version
                for one in self.books:
                    self._convert(one)
            else:
                self._usd_bids[slot], self._usd_asks[slot] = bid * book.fx.bid, ask * book.fx.ask
            if max(self._usd_bids) > self._usd_asks[slot] or self._usd_bids[slot] > min(self._usd_asks):
                return True
        return max(bids) > ask or bid > min(asks)

    def crosses_converted(self, rates: Rates) -> bool:
        """Whether any two books cross in USD at the rates of now: a rate alone may bring that."""
        if not self._mixed:
            return False
        if self._version != rates.version:
            self._version = rates.version
            for one in self.books:
                self._convert(one)
        return max(self._usd_bids) > min(self._usd_asks)

    def _convert(self, book: HeldBook) -> None:
        self._usd_bids[book.slot] = book.best_bid * book.fx.bid
        self._usd_asks[book.slot] = book.best_ask * book.fx.ask
