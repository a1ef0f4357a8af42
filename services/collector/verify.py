"""Recordings through the very same feed that runs live: are their books right, and what happens to damaged copies?"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from services.collector.damage import Item, Outcome, Trials
from services.collector.exchanges import EXCHANGES, exchange_named
from services.collector.exchanges.base import Exchange, parse_listing
from services.collector.feed import Feed
from services.collector.keeper import Timing
from shared.errors import BadFrame, InputError, SubscriptionRefused, UnknownSymbol
from shared.recordings import Recorded, protocol_of, recorded

LEVELS = 10

SESSION_NS = 86_400_000_000_000
"""Frames without receive times whose own times are further apart were put together from several sessions."""

MOST_DAMAGED = 1200
"""Frames of a recording that damaged copies are made of: its beginning, with all snapshots."""


def verify(exchange: str, path: Path) -> dict[str, Any]:
    """Report on a recording; its keys are those of `arb verify --json`.

    `samples` is True for single frames of several sessions whose books do not fit together: they mean nothing.
    `instruments` counts what metadata answers list.

    Raises:
        UnknownExchange: no such exchange.
        InputError: the file cannot be read; with its line number.
    """
    return _read(exchange_named(exchange), path).report()


def _read(exchange: Exchange, path: Path) -> "_Run":
    run = _Run(exchange)
    for item in recorded(path):
        if item.inbound:
            run.take_in(item)
    return run


class _Run:
    """One recording on its way through a feed."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._feed = Feed(exchange, None, None, LEVELS, Timing(), 0)
        self._instruments = 0
        self.streamed = False
        """Whether there were socket frames: REST answers alone make books without a stream."""
        self._timed = False
        self._first_ns: int | None = None
        self._last_ns: int | None = None

    def take_in(self, item: Recorded) -> None:
        feed, now_ns = self._feed, item.received_ns or 0
        self._timed = self._timed or item.received_ns is not None
        try:
            if item.url.startswith("http"):
                self._rest(item, now_ns)
            else:
                self.streamed = True
                feed.on_frame(item.frame, now_ns)
                if not self._timed:
                    self._note_times(item.frame)
        except BadFrame as error:
            # Live the connection would be made again, so no book of it survives the frame.
            feed.counts.errors += 1
            feed.on_lost(now_ns, str(error))
            feed.on_connected(now_ns)
        except (SubscriptionRefused, UnknownSymbol):
            feed.counts.errors += 1

    def _rest(self, item: Recorded, now_ns: int) -> None:
        exchange, feed = self._exchange, self._feed
        native = exchange.snapshot_symbol(item.url) if exchange.snapshot_symbol is not None else None
        if native is not None:
            feed.on_rest(native, item.frame, now_ns)
            return
        feed.counts.frames += 1
        feed.counts.ignored += 1
        if urlsplit(item.url).path == urlsplit(exchange.instruments_url("")).path:
            self._instruments += len(parse_listing(exchange, item.frame))

    def _note_times(self, frame: str) -> None:
        for event in self._exchange.parse(frame):
            at_ns = getattr(event, "exchange_ns", None)
            if at_ns is not None:
                self._first_ns = at_ns if self._first_ns is None else min(self._first_ns, at_ns)
                self._last_ns = at_ns if self._last_ns is None else max(self._last_ns, at_ns)

    def report(self) -> dict[str, Any]:
        feed = self._feed
        apart_ns = (self._last_ns or 0) - (self._first_ns or 0)
        report: dict[str, Any] = {
            "exchange": self._exchange.name,
            **feed.counts.as_dict(),
            "instruments": self._instruments,
            "samples": False,
            "books": {},
        }
        for symbol, state, book in feed.books():
            best = book.best() or (None, None)
            report["books"][symbol] = {
                "state": state,
                "bids": len(book.bids.keys),
                "asks": len(book.asks.keys),
                "best_bid": best[0],
                "best_ask": best[1],
            }
        report["samples"] = not self._timed and apart_ns > SESSION_NS and not ok(report)
        return report


def ok(report: dict[str, Any]) -> bool:
    """Whether every book verified and nothing was wrong on the way; of samples, only that all could be read."""
    if report["samples"]:
        return bool(report["errors"] == 0)
    faults = sum(report[name] for name in ("gaps", "checksum_failed", "crossed", "errors", "tops_wrong", "trade_gaps"))
    return faults == 0 and all(book["state"] == "live" for book in report["books"].values())


# ---------------------------------------------------------------- a whole folder


def recordings(folder: Path) -> list[tuple[str, Path]]:
    """Protocol and path of every recording in a folder that holds frames of a known exchange.

    Raises:
        InputError: the folder holds none, or a file in it cannot be read.
    """
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.name.endswith((".jsonl", ".jsonl.gz"))):
        protocol = next((name for item in recorded(path) if (name := protocol_of(item.url)) in EXCHANGES), None)
        if protocol is not None:
            found.append((protocol, path))
    if not found:
        raise InputError(str(folder), "holds no recording (*.jsonl, *.jsonl.gz) of an exchange that we know")
    return found


def verify_all(folder: Path, runs: int, say: Callable[[str], None] = lambda words: None) -> dict[str, Any]:
    """Report on every recording of a folder, and on `runs` damaged copies per exchange that has books there.

    Returns:
        `{"files": [report with "file" and "ok", ...], "damage": {exchange: {...}}, "ok": bool}`.

    Raises:
        InputError: see `recordings`.
    """
    files: list[dict[str, Any]] = []
    streams: dict[str, list[Path]] = {}
    for protocol, path in recordings(folder):
        say(f"reading {path.name}")
        run = _read(EXCHANGES[protocol], path)
        report = run.report()
        if not run.streamed:
            report["books"] = {}
        report = {"file": path.name, **report, "ok": ok(report)}
        files.append(report)
        if report["books"] and not report["samples"] and report["ok"]:
            streams.setdefault(protocol, []).append(path)
    damage = {}
    for protocol, paths in streams.items() if runs else ():
        damage[protocol] = _damaged(EXCHANGES[protocol], paths, runs, say).as_dict()
    whole = all(report["ok"] for report in files)
    return {
        "files": files,
        "damage": damage,
        "ok": whole and all(not one["wrong"] and not one["not_recovered"] for one in damage.values()),
    }


def _damaged(exchange: Exchange, paths: list[Path], runs: int, say: Callable[[str], None]) -> Outcome:
    outcome = Outcome()
    for place, path in enumerate(paths):
        trials = Trials(exchange, list(_items(exchange, path)))
        share = runs // len(paths) + (place < runs % len(paths))
        for seed in range(share if trials.useful else 0):
            if seed % 25 == 0:
                say(f"damaging {path.name}: {seed} of {share} copies")
            trials.run(seed, outcome)
    return outcome


def _items(exchange: Exchange, path: Path) -> Iterator[Item]:
    number = 0
    for item in recorded(path):
        native = None
        if item.url.startswith("http"):
            native = exchange.snapshot_symbol(item.url) if exchange.snapshot_symbol is not None else None
            if native is None:
                continue
        if item.inbound:
            yield Item(number, native, item.frame.encode())
            number += 1
        if number == MOST_DAMAGED:
            return
