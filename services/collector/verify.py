"""A recording through the very same feed that runs live: are its books right?"""

from pathlib import Path
from typing import Any

from services.collector.exchanges import exchange_named
from services.collector.exchanges.base import Exchange
from services.collector.feed import Feed
from shared.errors import BadFrame, LinkLost, SubscriptionRefused, UnknownSymbol
from shared.recordings import Recorded, recorded

LEVELS = 10


def verify(exchange: str, path: Path) -> dict[str, Any]:
    """Report on a recording; its keys are those of `arb verify --json`.

    Raises:
        UnknownExchange: no such exchange.
        InputError: the file cannot be read; with its line number.
    """
    chosen = exchange_named(exchange)
    feed = Feed(chosen, None, None, LEVELS, None, 0)
    for item in recorded(path):
        if item.inbound:
            _take_in(feed, chosen, item)
    report: dict[str, Any] = {"exchange": chosen.name, **feed.counts.as_dict(), "books": {}}
    for symbol, state, book in feed.books():
        best = book.best() or (None, None)
        report["books"][symbol] = {
            "state": state,
            "bids": len(book.bids.keys),
            "asks": len(book.asks.keys),
            "best_bid": best[0],
            "best_ask": best[1],
        }
    return report


def _take_in(feed: Feed, exchange: Exchange, item: Recorded) -> None:
    now_ns = item.received_ns or 0
    try:
        if item.url.startswith("http"):
            native = exchange.snapshot_symbol(item.url) if exchange.snapshot_symbol is not None else None
            if native is None:
                feed.counts.frames += 1
                feed.counts.ignored += 1
            else:
                feed.on_rest(native, item.frame, now_ns)
        else:
            feed.on_frame(item.frame, now_ns)
    except BadFrame as error:
        # Live the connection would be made again, so no book of it survives the frame.
        feed.counts.errors += 1
        feed.on_lost(now_ns, str(error))
        feed.on_connected(now_ns)
    except (SubscriptionRefused, UnknownSymbol):
        feed.counts.errors += 1
    except LinkLost:
        feed.counts.ignored += 1  # the exchange announced an end: live we would connect again


def ok(report: dict[str, Any]) -> bool:
    """Whether every book verified and nothing was wrong on the way."""
    faults = sum(report[name] for name in ("gaps", "checksum_failed", "crossed", "errors"))
    return faults == 0 and all(book["state"] == "live" for book in report["books"].values())
