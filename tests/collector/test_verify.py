"""Recordings through the live feed: the captures verify, damaged ones never lie, bad files are named."""

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from services.collector.exchanges import EXCHANGES
from services.collector.exchanges.base import Delta, Top
from services.collector.feed import Feed
from services.collector.keeper import Timing
from services.collector.verify import ok, verify, verify_all
from shared.errors import InputError, UnknownExchange
from shared.recordings import recorded

CAPTURES = Path(__file__).parent / "captures"
BOOK10 = CAPTURES / "kraken-book10-btcusd-crossbook.jsonl"
BOOK25 = CAPTURES / "kraken-book25-btcusd-crossbook.jsonl.gz"
BINANCE = CAPTURES / "binance-mixed-cryptofeed.jsonl.gz"
OKX = CAPTURES / "okx-mixed-cryptofeed.jsonl.gz"
COINBASE = CAPTURES / "coinbase-exchange-mixed-cryptofeed.jsonl.gz"
KEYS = [
    *("exchange", "frames", "snapshots", "deltas", "trades", "gaps", "checksum_ok", "checksum_failed"),
    *("crossed", "duplicates", "ignored", "errors", "tops", "tops_wrong", "trade_gaps", "corrected"),
    *("instruments", "samples", "books"),
]


@pytest.mark.parametrize(
    ("exchange", "file", "expected", "books"),
    [
        ("kraken", BOOK10, {"frames": 377, "snapshots": 5, "deltas": 296, "checksum_ok": 301}, 1),
        ("kraken", BOOK25, {"frames": 2104, "snapshots": 1, "deltas": 2051, "checksum_ok": 2052}, 1),
        ("binance", BINANCE, {"frames": 269, "snapshots": 4, "deltas": 177}, 4),
        ("coinbase-exchange", COINBASE, {"frames": 9947, "snapshots": 10, "deltas": 9719, "trades": 107}, 10),
        ("coinbase", CAPTURES / "coinbase-advanced-markettrades-ccxt.jsonl", {"frames": 3, "trades": 7}, 0),
        ("coinbase", CAPTURES / "coinbase-advanced-ticker-ccxt.jsonl", {"frames": 3, "ignored": 3}, 0),
        ("okx", OKX, {"frames": 410, "snapshots": 3, "deltas": 287, "trades": 74, "checksum_ok": 290}, 3),
        ("okx", CAPTURES / "okx-spot-trades-tickers-ccxt.jsonl", {"frames": 6, "trades": 2}, 0),
        ("bybit", CAPTURES / "bybit-spot-orderbook50-gocryptotrader.jsonl", {"snapshots": 1, "deltas": 1}, 1),
        ("bybit", CAPTURES / "bybit-spot-orderbook1-ticker-ccxt.jsonl", {"frames": 6, "tops": 2}, 0),
    ],
)
def test_each_capture_verifies(exchange, file, expected, books):
    report = verify(exchange, file)
    assert list(report) == KEYS
    for name, count in expected.items():
        assert report[name] == count, name
    for name in ("gaps", "checksum_failed", "crossed", "duplicates", "errors", "tops_wrong", "trade_gaps", "corrected"):
        assert report[name] == 0, name
    assert len(report["books"]) == books
    assert {book["state"] for book in report["books"].values()} <= {"live"}
    assert all(book["best_bid"] < book["best_ask"] for book in report["books"].values())
    assert ok(report)


def test_the_subscribed_depth_is_kept():
    book = verify("kraken", BOOK25)["books"]["BTC-USD"]
    assert (book["bids"], book["asks"]) == (25, 25)


def test_without_truncation_the_depth_25_capture_fails():
    """The guard of the guard: truncation is what makes its checksums match."""
    feed = Feed(replace(EXCHANGES["kraken"], truncates=False), None, None, 10, Timing(), 0)
    for item in recorded(BOOK25):
        feed.on_frame(item.frame, 0)
    assert feed.counts.checksum_failed > 0


def test_binances_faster_tops_agree_with_the_books_they_are_merged_into():
    """What merging by `u` stands on: wherever both name the same update, they show the same best prices."""
    seen: dict[tuple[str, int], tuple] = {}
    feed, agreed = Feed(EXCHANGES["binance"], None, None, 10, Timing(), 0), 0
    for item in recorded(BINANCE):
        native = EXCHANGES["binance"].snapshot_symbol(item.url)
        if native is not None:
            feed.on_rest(native, item.frame, 0)
            continue
        feed.on_frame(item.frame, 0)
        for event in EXCHANGES["binance"].parse(item.frame):
            if isinstance(event, Top):
                seen[event.symbol, event.order] = (event.bid, event.ask)
            elif isinstance(event, Delta) and (event.symbol, event.last_id) in seen:
                book = feed.live_book(event.symbol)
                if book is not None:
                    assert (book.bids.top(1)[0], book.asks.top(1)[0]) == seen[event.symbol, event.last_id]
                    agreed += 1
    assert agreed > 10


def test_trade_ids_of_coinbase_exchange_are_contiguous_by_product():
    seen: dict[str, list[int]] = {}
    for item in recorded(COINBASE):
        data = json.loads(item.frame) if item.url.startswith("wss") and item.inbound else {}
        if isinstance(data, dict) and data.get("type") in ("match", "last_match"):
            seen.setdefault(data["product_id"], []).append(data["trade_id"])
    assert seen
    assert all(ids == list(range(ids[0], ids[0] + len(ids))) for ids in seen.values())


# ---------------------------------------------------------------- gaps, folders


def lines_of(file: Path) -> list[str]:
    return gzip.decompress(file.read_bytes()).decode().splitlines()


def test_a_whole_folder_is_verified_and_damaged_copies_of_it():
    said: list[str] = []
    result = verify_all(CAPTURES, 8, said.append)
    assert result["ok"]
    assert [report["file"] for report in result["files"]] == sorted(path.name for path in CAPTURES.glob("*.jsonl*"))
    assert set(result["damage"]) == {"binance", "bybit", "coinbase-exchange", "kraken", "okx"}
    for one in result["damage"].values():
        assert (one["runs"], one["wrong"], one["not_recovered"]) == (8, 0, 0)
    (samples,) = [report for report in result["files"] if report["samples"]]
    assert samples["file"] == "coinbase-exchange-singles-cryptomsgparser.jsonl"
    assert any("damaging" in words for words in said)


def test_a_folder_with_one_bad_recording_is_not_verified(tmp_path):
    lines = BOOK10.read_text().splitlines()
    at = next(number for number, line in enumerate(lines) if "update" in line and "checksum" in line)
    lines[at] = re.sub(r"(checksum.{2,3}:)(\d)", r"\g<1>1\2", lines[at])
    (tmp_path / "cut.jsonl").write_text("\n".join(lines))
    result = verify_all(tmp_path, 0)
    assert not result["ok"]
    assert [report["ok"] for report in result["files"]] == [False]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="holds no recording"):
        verify_all(empty, 0)


def test_a_gap_in_a_recording_is_reported_and_the_book_stays_down(tmp_path):
    lines = lines_of(BINANCE)
    diffs = [i for i, line in enumerate(lines) if "depthUpdate" in line and "NKNUSDT" in line]
    del lines[diffs[len(diffs) // 2]]
    file = tmp_path / "gap.jsonl.gz"
    file.write_bytes(gzip.compress("\n".join(lines).encode()))
    report = verify("binance", file)
    assert report["gaps"] == 1
    assert report["books"]["NKNUSDT"]["state"] == "gap"
    assert report["books"]["BLZETH"]["state"] == "live"
    assert not ok(report)


# ---------------------------------------------------------------- bad input

GOOD = '{"received_at":1.0,"direction":"in","url":"wss://h","frame":"{}"}'


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"not json\n", "line 1: not JSON"),
        ((GOOD + "\n[]\n").encode(), "line 2: must be a JSON object"),
        ((GOOD + "\n" + GOOD + '\n{"direction":"in","url":"x"}\n').encode(), "line 3: 'frame' is missing"),
        (b'{"direction":"up","url":"x","frame":""}\n', "line 1: direction 'up', allowed are 'in' and 'out'"),
        (b'{"direction":"in","url":"x","frame":"","received_at":"now"}\n', "line 1: received_at 'now'"),
        (b'{"direction":"in","url":"x","frame":5}\n', "line 1: 'frame' is missing or not a text"),
        ((GOOD + "\n\xff\xfe\n").encode("latin-1"), "line 2: not JSON"),
    ],
)
def test_a_file_that_is_no_recording_is_named_with_its_line(tmp_path, content, words):
    file = tmp_path / "capture.jsonl"
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        verify("kraken", file)
    assert words in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_truncated_gzip_is_named_with_its_line(tmp_path):
    file = tmp_path / "cut.jsonl.gz"
    file.write_bytes(BOOK25.read_bytes()[:20_000])
    with pytest.raises(InputError, match=r"line \d+: .*end"):
        verify("kraken", file)


def test_a_missing_file_and_a_false_gzip_are_named(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        verify("kraken", tmp_path / "none.jsonl")
    file = tmp_path / "plain.jsonl.gz"
    file.write_text(GOOD)
    with pytest.raises(InputError, match="gzip"):
        verify("kraken", file)


def test_an_unknown_exchange_is_refused():
    with pytest.raises(UnknownExchange):
        verify("mtgox", BOOK10)
