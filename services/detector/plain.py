"""What is known of the top of each book, side by side for all books of a coin: plain Python. See `quiet`. Pure."""

from typing import Any

NO_BID, NO_ASK = 0.0, float("inf")
"""Best prices of an empty side: nothing ever crosses with them."""

LEAST, MOST = 1e-18, 1e18
"""No price or size of any coin lies beyond; what does would only break the arithmetic later, far from its record."""


class Quote:
    """What a unit of a quote currency brings in USD (`bid`) and costs (`ask`)."""

    __slots__ = ("ask", "bid")

    bid: float
    ask: float


class BookTop:
    """The newest book of one symbol on one exchange: its best prices, its moments, and its sides as text.

    `best_bid` and `best_ask` are 0 and infinity while there is no book, so that nothing ever crosses with it.
    `touched_ns` is the `received_ns` of the newest message about it; `fx` the rate of its quote currency; `coin` all
    books of its base asset, and `slot` its place among them; `gaps` what is open or pending between it and others;
    `version` rises with each book; before `next_mid_ns` its mid price is not wanted.
    """

    __slots__ = (
        "alive_ns",
        "asks_text",
        "best_ask",
        "best_bid",
        "bids_text",
        "coin",
        "fx",
        "gaps",
        "next_mid_ns",
        "received_ns",
        "sequence",
        "slot",
        "state",
        "touched_ns",
        "version",
    )

    coin: "CoinTops"

    def __init__(self, fx: Quote) -> None:
        self.fx = fx
        self.gaps: list[Any] = []
        self.state = "syncing"
        self.sequence = -1
        self.version = self.slot = 0
        self.received_ns = self.alive_ns = self.touched_ns = self.next_mid_ns = 0
        self.bids_text = self.asks_text = b"[]"
        self.best_bid, self.best_ask = NO_BID, NO_ASK

    def put(self, received_ns: int, bids: bytes, asks: bytes, best_bid: float, best_ask: float) -> None:
        """A book came: it is itself a proof of life, and only live books are published."""
        self.bids_text, self.asks_text, self.best_bid, self.best_ask = bids, asks, best_bid, best_ask
        self.version += 1
        self.received_ns = self.alive_ns = self.touched_ns = received_ns
        self.state = "live"


class CoinTops:
    """The best prices of a coin's books side by side, as they are and in USD.

    A book whose ask is not below the highest bid of all, and whose bid is not above the lowest ask of all, crosses none
    of the others.

    Attributes:
        owned: Whether it is judged here (a bridge coin of another instance is only held).
        bridge: Other coins are quoted in it.
        bridged: One of its books is quoted in a bridge coin: its prices say nothing beside the others.
        mixed: Its books are quoted in more than one currency.
    """

    __slots__ = ("_asks", "_bids", "_usd_asks", "_usd_bids", "_version", "books", "bridge", "bridged", "mixed", "owned")

    def __init__(self, *, owned: bool, bridge: bool) -> None:
        self.owned = owned
        self.bridge = bridge
        self.bridged = self.mixed = False
        self.books: list[Any] = []
        self._bids: list[float] = []
        self._asks: list[float] = []
        self._usd_bids: list[float] = []
        self._usd_asks: list[float] = []
        self._version = -1

    def add(self, book: BookTop) -> None:
        """Take in a new book, before its first prices."""
        book.coin, book.slot = self, len(self.books)
        self.books.append(book)
        for prices, none in (
            (self._bids, NO_BID),
            (self._asks, NO_ASK),
            (self._usd_bids, NO_BID),
            (self._usd_asks, NO_ASK),
        ):
            prices.append(none)
        self._version = -1

    def moved(self, book: BookTop, version: int) -> bool:
        """Note a book's best prices; whether it crosses another book, as they stand or converted.

        Args:
            version: That of the rates: where it has changed, all are converted anew.
        """
        slot, bid, ask = book.slot, book.best_bid, book.best_ask
        bids, asks = self._bids, self._asks
        bids[slot], asks[slot] = bid, ask
        if self.mixed:
            self._convert(version)
            self._usd_bids[slot], self._usd_asks[slot] = bid * book.fx.bid, ask * book.fx.ask
            if max(self._usd_bids) > self._usd_asks[slot] or self._usd_bids[slot] > min(self._usd_asks):
                return True
        return max(bids) > ask or bid > min(asks)

    def crosses_converted(self, version: int) -> bool:
        """Whether any two books cross in USD at the rates of now: a rate alone may bring that."""
        if not self.mixed:
            return False
        self._convert(version)
        return max(self._usd_bids) > min(self._usd_asks)

    def _convert(self, version: int) -> None:
        if self._version == version:
            return
        self._version = version
        for book in self.books:
            self._usd_bids[book.slot] = book.best_bid * book.fx.bid
            self._usd_asks[book.slot] = book.best_ask * book.fx.ask


class Quiet:
    """The books by the names that they have on the wire."""

    def know(self, exchange: str, symbol: str, book: BookTop) -> None:
        """A book that is held from now on."""

    def forget(self, exchange: str, symbol: str) -> None:
        """A book that is held no longer."""

    def take(
        self, values: list[bytes | None], at: int, now_ns: int, sure_ns: int, until_ns: int, version: int
    ) -> tuple[int, int]:
        """Take in quiet ticks from `values[at]` on, up to the first record that is none: where that is, and the moment.

        A tick is quiet if it is a newer book, written as our collectors do, of a coin that is judged here and routed
        nowhere, that crosses no other and has nothing open. Nothing follows from it but what the book is now.

        Args:
            now_ns: The newest moment so far.
            sure_ns: A tick that was received later may be from the future: not quiet.
            until_ns: A moment after it brings something else.
            version: Of the rates.
        """
        return at, now_ns
