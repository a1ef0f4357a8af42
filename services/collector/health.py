"""Whether one book can be trusted: a state machine without clock or sockets.

    from \\ event     CONNECTED  VERIFIED  SILENT  PROOF  GAP  CROSSED  CHECKSUM  LOST          HALTED  DROPPED
    disconnected      syncing    -         -       -      -    -        -         -             -       -
    syncing           -          live      -       -      gap  crossed  checksum  disconnected  halted  -
    live              -          -         stale   -      gap  crossed  checksum  disconnected  halted  syncing
    stale             -          live      -       live   gap  crossed  checksum  disconnected  halted  syncing
    gap               -          live      -       -      -    crossed  checksum  disconnected  halted  syncing
    crossed           -          live      -       -      gap  -        checksum  disconnected  halted  syncing
    checksum          -          live      -       -      gap  crossed  -         disconnected  halted  syncing
    halted            -          live      -       -      -    -        -         disconnected  -       syncing

`-` leaves the state as it is. VERIFIED is a snapshot that passed its checks. PROOF after silence is enough for
`live`: the link was never lost, and a link that delivers in order has lost nothing. DROPPED is our own doing (an
unsubscription): the book is gone, nobody is to blame.
"""

from enum import Enum, auto

from shared.messages import BookState

MOST_WORDS = 300
"""Characters of a reason: it may quote an exchange, which may say anything."""


class Event(Enum):
    """What happened to a book."""

    CONNECTED = auto()
    VERIFIED = auto()
    SILENT = auto()
    PROOF = auto()
    GAP = auto()
    CROSSED = auto()
    CHECKSUM = auto()
    LOST = auto()
    HALTED = auto()
    DROPPED = auto()


_DOUBT: dict[Event, BookState] = {
    Event.GAP: "gap",
    Event.CROSSED: "crossed",
    Event.CHECKSUM: "checksum",
    Event.LOST: "disconnected",
    Event.HALTED: "halted",
}
_TABLE: dict[BookState, dict[Event, BookState]] = {
    "disconnected": {Event.CONNECTED: "syncing"},
    "syncing": {Event.VERIFIED: "live", **_DOUBT},
    "live": {Event.SILENT: "stale", Event.DROPPED: "syncing", **_DOUBT},
    "stale": {Event.VERIFIED: "live", Event.PROOF: "live", Event.DROPPED: "syncing", **_DOUBT},
    "gap": {Event.VERIFIED: "live", Event.DROPPED: "syncing", **_DOUBT},
    "crossed": {Event.VERIFIED: "live", Event.DROPPED: "syncing", **_DOUBT},
    "checksum": {Event.VERIFIED: "live", Event.DROPPED: "syncing", **_DOUBT},
    "halted": {Event.VERIFIED: "live", Event.DROPPED: "syncing", Event.LOST: "disconnected"},
}


class BookHealth:
    """State of one book, why, and since when."""

    __slots__ = ("reason", "since_ns", "state")

    def __init__(self, now_ns: int) -> None:
        self.state: BookState = "disconnected"
        self.reason: str | None = "not connected yet"
        self.since_ns = now_ns

    def on(self, event: Event, now_ns: int, reason: str | None = None) -> bool:
        """Take in an event; whether the state changed."""
        new = _TABLE[self.state].get(event)
        if new is None or new == self.state:
            return False
        self.state, self.since_ns = new, now_ns
        # What an exchange says may be long, or hold halves of characters that no message can carry.
        self.reason = reason if reason is None else reason[:MOST_WORDS].encode(errors="replace").decode()
        return True
