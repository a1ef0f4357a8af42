"""Damaged copies of the captures: a live book is never a wrong one, and this test would notice if it were."""

import dataclasses
import json
from pathlib import Path

import pytest

from services.collector.damage import Item, Outcome, Trials
from services.collector.exchanges import EXCHANGES
from services.collector.exchanges.base import always
from shared.recordings import recorded

CAPTURES = Path(__file__).parent / "captures"
FILES = {
    "kraken": "kraken-book10-btcusd-crossbook.jsonl",
    "binance": "binance-mixed-cryptofeed.jsonl.gz",
    "okx": "okx-mixed-cryptofeed.jsonl.gz",
    "bybit": "bybit-spot-orderbook50-gocryptotrader.jsonl",
    "coinbase-exchange": "coinbase-exchange-mixed-cryptofeed.jsonl.gz",
}
"""Coinbase Advanced Trade has no captured book: its 500 runs are in test_conformance.py."""

RUNS = 200


def items(name: str, most: int = 220) -> list[Item]:
    exchange, found = EXCHANGES[name], []
    for item in recorded(CAPTURES / FILES[name]):
        native = None
        if item.url.startswith("http"):
            native = exchange.snapshot_symbol(item.url) if exchange.snapshot_symbol is not None else None
            if native is None:
                continue
        if item.inbound and len(found) < most:
            found.append(Item(len(found), native, item.frame.encode()))
    return found


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_damage_leaves_a_live_book_that_is_wrong_and_every_book_comes_back(name):
    trials, outcome = Trials(EXCHANGES[name], items(name)), Outcome()
    assert trials.useful
    for seed in range(RUNS):
        trials.run(seed, outcome)
    assert outcome.wrong == 0, outcome.first_wrong
    assert outcome.not_recovered == 0
    assert outcome.runs == RUNS
    assert outcome.doubted > RUNS / 4, "the faults were faults"
    assert outcome.compared > RUNS
    blind = RUNS if EXCHANGES[name].unchained else RUNS / 10
    assert outcome.unseen < blind


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("binance", {"follows": always}),
        ("kraken", {"checksum": None, "by_time": False}),
        ("okx", {"checksum": None, "follows": always}),
    ],
)
def test_without_its_checks_an_adapter_is_caught(name, changes):
    """The guard of the guard: the same trials with the protocol's own checks left out."""
    trials, outcome = Trials(dataclasses.replace(EXCHANGES[name], **changes), items(name)), Outcome()
    for seed in range(60):
        trials.run(seed, outcome)
    assert outcome.wrong > 0


def naive_kraken(frames: list[bytes]) -> dict[str, tuple[list, list]]:
    """The last book of a recording, by dictionaries and sorting alone."""
    sides: dict[str, dict[str, dict[float, float]]] = {}
    for frame in frames:
        message = json.loads(frame)
        if message.get("channel") != "book":
            continue
        for data in message["data"]:
            if message["type"] == "snapshot":
                sides[data["symbol"]] = {"bids": {}, "asks": {}}
            for side in ("bids", "asks"):
                held = sides[data["symbol"]][side]
                for level in data[side]:
                    held.pop(level["price"], None)
                    if level["qty"]:
                        held[level["price"]] = level["qty"]
                for price in sorted(held, reverse=side == "bids")[10:]:
                    del held[price]
    return {
        symbol: (sorted(book["bids"].items(), reverse=True), sorted(book["asks"].items()))
        for symbol, book in sides.items()
    }


def naive_binance(frames: list[Item]) -> dict[str, tuple[list, list]]:
    books: dict[str, tuple[int, dict, dict]] = {}
    diffs: dict[str, list] = {}
    for item in frames:
        data = json.loads(item.frame)
        if item.native is not None:
            sides = [{float(p): float(s) for p, s in data[side]} for side in ("bids", "asks")]
            books[item.native] = (data["lastUpdateId"], *sides)
        elif data["data"].get("e") == "depthUpdate":
            diffs.setdefault(data["data"]["s"], []).append(data["data"])
    found = {}
    for symbol, (last, bids, asks) in books.items():
        for diff in diffs.get(symbol, []):
            if diff["u"] > last:
                for held, rows in ((bids, diff["b"]), (asks, diff["a"])):
                    for price, size in rows:
                        held.pop(float(price), None)
                        if float(size):
                            held[float(price)] = float(size)
        found[symbol] = (sorted(bids.items(), reverse=True)[:10], sorted(asks.items())[:10])
    return found


def test_the_truth_is_what_a_naive_reading_of_the_recording_gives():
    frames = items("kraken", 10_000)
    last = Trials(EXCHANGES["kraken"], frames).last()
    assert last["BTC-USD"] == ("live", naive_kraken([item.frame for item in frames])["BTC/USD"])
    frames = items("binance", 10_000)
    last = Trials(EXCHANGES["binance"], frames).last()
    assert {symbol: tops for symbol, (_, tops) in last.items()} == naive_binance(frames)
