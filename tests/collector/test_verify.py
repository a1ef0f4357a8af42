"""Recordings through the live feed: the captures verify, damaged ones never lie, bad files are named."""

import gzip
import json
import random
from pathlib import Path

import pytest

from services.collector.exchanges import EXCHANGES
from services.collector.feed import Feed
from services.collector.verify import ok, verify
from shared.errors import BadFrame, InputError, LinkLost, UnknownExchange, UsageError
from shared.recordings import recorded

CAPTURES = Path(__file__).parent / "captures"
BOOK10 = CAPTURES / "kraken-book10-btcusd-crossbook.jsonl"
BOOK25 = CAPTURES / "kraken-book25-btcusd-crossbook.jsonl.gz"
BINANCE = CAPTURES / "binance-mixed-cryptofeed.jsonl.gz"
COINBASE = CAPTURES / "coinbase-exchange-mixed-cryptofeed.jsonl.gz"
KEYS = [
    *("exchange", "frames", "snapshots", "deltas", "trades", "gaps", "checksum_ok", "checksum_failed"),
    *("crossed", "duplicates", "ignored", "errors", "books"),
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
    ],
)
def test_each_capture_verifies(exchange, file, expected, books):
    report = verify(exchange, file)
    assert list(report) == KEYS
    for name, count in expected.items():
        assert report[name] == count, name
    for name in ("gaps", "checksum_failed", "crossed", "duplicates", "errors"):
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
    from dataclasses import replace

    feed = Feed(replace(EXCHANGES["kraken"], truncates=False, resubscribe=None), None, None, 10, None, 0)
    for item in recorded(BOOK25):
        feed.on_frame(item.frame, 0)
    assert feed.counts.checksum_failed > 0


def test_trade_ids_of_coinbase_exchange_are_contiguous_by_product():
    seen: dict[str, list[int]] = {}
    for item in recorded(COINBASE):
        data = json.loads(item.frame) if item.url.startswith("wss") and item.inbound else {}
        if isinstance(data, dict) and data.get("type") in ("match", "last_match"):
            seen.setdefault(data["product_id"], []).append(data["trade_id"])
    assert seen
    assert all(ids == list(range(ids[0], ids[0] + len(ids))) for ids in seen.values())


# ---------------------------------------------------------------- damage


def lines_of(file: Path) -> list[str]:
    return gzip.decompress(file.read_bytes()).decode().splitlines()


def damaged(frames: list[str], draw: random.Random) -> list[str]:
    """A copy with one to three faults: dropped, repeated, swapped, cut or with one digit changed."""
    frames = list(frames)
    for _ in range(draw.randint(1, 3)):
        i = draw.randrange(1, len(frames) - 1)
        fault = draw.choice(("drop", "repeat", "swap", "digit", "cut"))
        if fault == "drop":
            del frames[i]
        elif fault == "repeat":
            frames.insert(i, frames[i])
        elif fault == "swap":
            frames[i], frames[i + 1] = frames[i + 1], frames[i]
        elif fault == "cut":
            frames[i] = frames[i][: draw.randrange(len(frames[i]))]
        else:
            places = [k for k, char in enumerate(frames[i]) if char.isdigit()]
            k = draw.choice(places) if places else 0
            frames[i] = (
                frames[i][:k] + str((int(frames[i][k]) + draw.randint(1, 9)) % 10) + frames[i][k + 1 :]
                if places
                else frames[i]
            )
    return frames


def step(feed: Feed, frame: str) -> None:
    """As live: a frame that cannot be read costs the connection, and with it every book."""
    try:
        feed.on_frame(frame, 0)
    except BadFrame:
        feed.on_lost(0, "bad frame")
        feed.on_connected(0)
    except (UsageError, LinkLost):
        feed.on_lost(0, "given up")
        feed.on_connected(0)


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_kraken_recording_never_leaves_a_live_book_that_the_exchange_contradicts(seed):
    """After each book frame taken in whole, a live book has exactly the checksum that the frame carries."""
    draw = random.Random(seed)
    frames = damaged([item.frame for item in recorded(BOOK10)], draw)
    feed = Feed(EXCHANGES["kraken"], None, None, 10, None, 0)
    compared = 0
    for frame in frames:
        step(feed, frame)
        try:
            data = json.loads(frame)
        except ValueError:
            continue
        if isinstance(data, dict) and data.get("channel") == "book":
            for _, state, book in feed.books():
                if state == "live":
                    assert EXCHANGES["kraken"].checksum is not None
                    assert EXCHANGES["kraken"].checksum(book) == data["data"][0]["checksum"]
                    compared += 1
    assert compared > 0


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_binance_recording_ends_with_true_books_or_none(seed, tmp_path):
    """Drops, repeats and swaps break the chain of ids; only the very last diff of a symbol can vanish unseen."""
    draw = random.Random(seed)
    lines = lines_of(BINANCE)
    last = {}
    for number, line in enumerate(lines):
        data = json.loads(json.loads(line)["frame"]).get("data", {})
        if data.get("e") == "depthUpdate":
            last[data["s"]] = number
    fault = draw.choice(("drop", "repeat", "swap"))
    i = draw.choice([number for number in range(12, len(lines) - 1) if number not in last.values()])
    if fault == "drop":
        del lines[i]
    elif fault == "repeat":
        lines.insert(i, lines[i])
    else:
        lines[i], lines[i + 1] = lines[i + 1], lines[i]
    file = tmp_path / "damaged.jsonl"
    file.write_text("\n".join(lines))
    true, found = verify("binance", BINANCE)["books"], verify("binance", file)["books"]
    assert {symbol: book for symbol, book in found.items() if book["state"] == "live" and book != true[symbol]} == {}


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
