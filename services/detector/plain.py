"""What is known of the top of each book, side by side for all books of a coin: plain Python. See `quiet`. Pure."""

from collections import deque
from typing import Any, NamedTuple

NO_BID, NO_ASK = 0.0, float("inf")
"""Best prices of an empty side: nothing ever crosses with them."""

LEAST, MOST = 1e-18, 1e18
"""No price or size of any coin lies beyond; what does would only break the arithmetic later, far from its record."""


NEVER_NS = 1 << 62

CLEAR = 1e-9
"""Products of floats are within 1e-15 of the exact ones; nearer to a tie than this they do not decide."""

SECOND_NS = 1_000_000_000
DAY_NS = 86_400_000_000_000


class Gates(NamedTuple):
    """Settings that say when a tick changes nothing about what is open; see `Judge` for what they mean."""

    max_silence_ns: int
    max_age_ns: int
    max_skew_ns: int
    update_min_ns: int
    update_max_ns: int
    reasons_min_ns: int
    most_net: float


class Quote:
    """What a unit of a quote currency brings in USD (`bid`) and costs (`ask`), and until when that may be used."""

    __slots__ = ("ask", "bid", "good_until_ns")

    bid: float
    ask: float
    good_until_ns: int


class Mids:
    """Mid prices of one book, one a second, the newest 61 of them."""

    __slots__ = ("_held", "next_ns")

    def __init__(self) -> None:
        self._held: deque[tuple[int, float]] = deque(maxlen=61)
        self.next_ns = 0
        """Before it no other mid is wanted."""

    def add(self, received_ns: int, mid: float) -> None:
        """Keep the mid of a second, if it is the first of it."""
        if received_ns >= self.next_ns:
            second = received_ns // SECOND_NS
            self._held.append((second, mid))
            self.next_ns = (second + 1) * SECOND_NS

    def since(self, second: int) -> list[tuple[int, float]]:
        """Seconds (since 1970) and mids from a second on."""
        return [row for row in self._held if row[0] >= second]


class BookTop:
    """The newest book of one symbol on one exchange: its best prices, its moments, and its sides as text.

    `best_bid` and `best_ask` are 0 and infinity while there is no book, so that nothing ever crosses with it.
    `touched_ns` is the `received_ns` of the newest message about it; `fx` the rate of its quote currency; `coin` all
    books of its base asset, and `slot` its place among them; `gaps` what is open or pending between it and others;
    `version` rises with each book. On `fee_day` (days since 1970) `buy_factor` is what a unit received costs and
    `sell_factor` what a unit sold brings, if `fee_known`.
    """

    __slots__ = (
        "alive_ns",
        "asks_text",
        "best_ask",
        "best_bid",
        "bids_text",
        "buy_factor",
        "coin",
        "exchange",
        "fee_day",
        "fee_known",
        "fx",
        "gaps",
        "mids",
        "received_ns",
        "sell_factor",
        "sequence",
        "slot",
        "state",
        "touched_ns",
        "version",
    )

    coin: "CoinTops"

    def __init__(self, exchange: str, fx: Quote) -> None:
        self.exchange = exchange
        self.fx = fx
        self.gaps: list[Any] = []
        self.state = "syncing"
        self.sequence = -1
        self.version = self.slot = 0
        self.received_ns = self.alive_ns = self.touched_ns = 0
        self.mids = Mids()
        self.bids_text = self.asks_text = b"[]"
        self.best_bid, self.best_ask = NO_BID, NO_ASK
        self.fee_day, self.fee_known = -1, False
        self.buy_factor, self.sell_factor = float("inf"), 0.0

    def put(self, received_ns: int, bids: bytes, asks: bytes, best_bid: float, best_ask: float) -> None:
        """A book came: it is itself a proof of life, and only live books are published."""
        self.bids_text, self.asks_text, self.best_bid, self.best_ask = bids, asks, best_bid, best_ask
        self.version += 1
        self.received_ns = self.alive_ns = self.touched_ns = received_ns
        self.state = "live"
        if best_bid > NO_BID and best_ask < NO_ASK:
            self.mids.add(received_ns, (best_bid + best_ask) / 2)


class CoinTops:
    """The best prices of a coin's books side by side, as they are and in USD.

    A book whose ask is not below the highest bid of all, and whose bid is not above the lowest ask of all, crosses none
    of the others.

    Attributes:
        owned: Whether it is judged here (a bridge coin of another instance is only held).
        bridge: Other coins are quoted in it.
        has_moved: One of its books has changed since somebody set this to false.
        bridged: One of its books is quoted in a bridge coin: its prices say nothing beside the others.
        mixed: Its books are quoted in more than one currency.
    """

    __slots__ = (
        "_asks",
        "_bids",
        "_usd_asks",
        "_usd_bids",
        "_version",
        "books",
        "bridge",
        "bridged",
        "has_moved",
        "mixed",
        "owned",
    )

    def __init__(self, *, owned: bool, bridge: bool) -> None:
        self.owned = owned
        self.bridge = bridge
        self.bridged = self.mixed = self.has_moved = False
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


NOTHING_SEEN = float("-inf")


class GapTop:
    """What is open between two books, and what of it a quiet tick must know. `Gap` says what each means.

    `eaten` is what a rejection says is too much: 1 fees, 2 conversion, 3 both; 0 for any other reason. `best_seen_bps`
    is the highest net edge of quiet ticks since somebody asked.
    """

    __slots__ = (
        "adopted",
        "best_seen_bps",
        "bridge",
        "buy",
        "due_ns",
        "eaten",
        "failing_ns",
        "gone_ns",
        "opportunity",
        "passing_ns",
        "published_ns",
        "recheck_ns",
        "refused_ns",
        "rejection",
        "sell",
    )

    gone_ns: int | None
    passing_ns: int | None
    failing_ns: int | None

    def __init__(self, buy: BookTop, sell: BookTop, bridge: BookTop | None) -> None:
        self.buy: Any = buy
        self.sell: Any = sell
        self.bridge: Any = bridge
        self.opportunity: Any = None
        self.rejection: Any = None
        self.gone_ns = self.passing_ns = self.failing_ns = None
        self.adopted = False
        self.eaten = self.published_ns = 0
        self.refused_ns = -1
        self.recheck_ns = self.due_ns = NEVER_NS
        self.best_seen_bps = NOTHING_SEEN


class Quiet:
    """The books by the names that they have on the wire."""

    def __init__(self, gates: Gates) -> None:
        """Args: gates: What decides whether all that is open stays as it is."""

    def stays(self, gap: GapTop, now_ns: int) -> bool:
        """Whether it is certain that judging a gap now changes nothing but when time alone may change something, which
        the caller finds out, and what is noted of a rejection, which is then done."""
        return False

    def know(self, exchange: str, symbol: str, book: BookTop) -> None:
        """A book that is held from now on."""

    def forget(self, exchange: str, symbol: str) -> None:
        """A book that is held no longer."""

    def take(
        self, values: list[bytes | None], at: int, now_ns: int, sure_ns: int, until_ns: int, version: int
    ) -> tuple[int, int]:
        """Take in quiet ticks from `values[at]` on, up to the first record that is none: where that is, and the moment.

        A tick is quiet if it is a newer book, written as our collectors do, of a coin that is judged here and routed
        nowhere, and nothing follows from it but what the book is now. Either it crosses no other and has nothing open,
        or of all that is open or crosses it is certain, in floats, that it stays as it is: a rejection whose
        crossing is gone waits for its end, one that fees or the conversion eat goes on for the same reason, an
        opportunity still pays and may not be published again yet.

        Args:
            now_ns: The newest moment so far.
            sure_ns: A tick that was received later may be from the future: not quiet.
            until_ns: A moment after it brings something else.
            version: Of the rates.
        """
        return at, now_ns
