"""Recorded order: the same messages give the same bytes, whatever their order and company."""

import gzip
import random
import signal
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner

from services.cli.__main__ import app
from services.detector.engine import TIMER_NS, Engine
from services.detector.recorded import Range, chosen_range, moment, of_files
from services.detector.replay import merged, recorded, replay
from shared import kafka, settings
from shared.errors import InputError, UsageError

MS = 1_000_000
T0 = 1_795_000_000_000_000_000


class Clockwork:
    """An engine of the test's own: says what it was told, and when."""

    def __init__(self, busy: bool = True) -> None:
        self.busy = busy
        self.told: list[tuple[str, int]] = []

    def on_message(self, tick, now_ns):
        if tick.symbol == "BAD-USD":
            raise ValueError("bad bids")
        self.told.append((tick.symbol, now_ns))
        return []

    def on_timer(self, now_ns):
        self.told.append(("timer", now_ns))
        return []

    def is_idle(self):
        return not self.busy


def line(received_ns: int, symbol: str = "BTC-USD", exchange: str = "kraken", sequence: int = 1, **other: object):
    value = {"kind": "book", "v": 1, "exchange": exchange, "symbol": symbol, "sequence": sequence}
    return orjson.dumps(value | {"received_ns": received_ns, "bids": [], "asks": []} | other)


def items(*values: bytes):
    return [recorded("ticks.jsonl", number, value) for number, value in enumerate(values, 1)]


@pytest.fixture(scope="module")
def recording(generated):
    return generated(seed=7, seconds=12, since_ns=T0)


def events(values, until_ns=None, owned=None, **options) -> list[bytes]:
    engine = Engine(settings.load(), owned=owned)
    ordered = merged((recorded("ticks", number, value) for number, value in enumerate(values)), **options)
    return [event.encode() for event in replay(engine, ordered, until_ns)]


def ids(lines) -> set[str]:
    return {message.get("opportunity_id") for message in map(orjson.loads, lines)} - {None}


def test_the_same_messages_give_the_same_bytes_in_whatever_order_they_come(recording):
    values = [value for _, _, value, _ in recording.ticks]
    first = events(values)
    assert len(ids(first)) > 2
    for seed in range(2):
        shuffled = values + values[:100]  # some twice: the sequence drops the second
        random.Random(seed).shuffle(shuffled)
        assert events(shuffled) == first
    assert events(values, chunk_bytes=100_000) == first, "sorted through temporary files"


def test_every_gap_that_is_there_long_enough_is_found(recording):
    opened = [orjson.loads(one) for one in events([value for _, _, value, _ in recording.ticks], recording.until_ns)]
    found = {
        (one["buy"]["exchange"], one["buy"]["symbol"], one["sell"]["exchange"], one["sell"]["symbol"])
        for one in opened
        if one["kind"] == "opportunity" and one["route"] == "direct"
    }
    lasting = [gap for gap in recording.gaps if gap["end_ns"] - gap["start_ns"] > 700 * MS]
    assert len(lasting) > 2
    for gap in lasting:
        assert (*gap["buy"].values(), *gap["sell"].values()) in found


def test_a_coins_events_do_not_depend_on_its_neighbours(recording):
    """What scale-out rests on: one engine for all, or one for each partition number with the rates and BTC's books."""
    loaded = settings.load()
    bridges = loaded.detector.bridges if loaded.detector.routes else ()
    alone = events([value for _, _, value, _ in recording.ticks], recording.until_ns)
    split: list[bytes] = []
    for number in range(16):
        values = [
            value
            for topic, key, value, _ in recording.ticks
            if topic == "fx-rates" or key in bridges or kafka.partition_of(key, 16) == number
        ]
        split += events(values, recording.until_ns, lambda base, n=number: kafka.partition_of(base, 16) == n)
    assert ids(split) == ids(alone)
    bases = {orjson.loads(one)["base"] for one in alone}
    for base in bases:
        mine = f'"base":"{base}"'.encode()
        assert [one for one in split if mine in one] == [one for one in alone if mine in one]


def test_the_timer_strikes_at_every_multiple_before_a_message_is_taken_in():
    clockwork = Clockwork()
    first = 3 * TIMER_NS + 1
    list(replay(clockwork, items(line(first), line(6 * TIMER_NS, "ETH-USD"), line(6 * TIMER_NS + 1, "SOL-USD"))))
    assert clockwork.told == [
        ("BTC-USD", first),
        ("timer", 4 * TIMER_NS),
        ("timer", 5 * TIMER_NS),
        ("timer", 6 * TIMER_NS),
        ("ETH-USD", 6 * TIMER_NS),
        ("SOL-USD", 6 * TIMER_NS + 1),
    ]


def test_time_ends_with_the_last_message_or_where_it_is_told():
    for until_ns, strikes in ((None, []), (5 * TIMER_NS, [4 * TIMER_NS]), (5 * TIMER_NS + 1, [200 * MS, 250 * MS])):
        clockwork = Clockwork()
        list(replay(clockwork, items(line(4 * TIMER_NS - 1)), until_ns))
        assert clockwork.told[1:] == [("timer", at) for at in strikes]


def test_a_long_silence_with_nothing_open_costs_one_strike():
    clockwork = Clockwork(busy=False)
    list(replay(clockwork, items(line(1), line(T0 + 7))))
    assert clockwork.told == [("BTC-USD", 1), ("timer", T0), ("BTC-USD", T0 + 7)]


def test_the_order_is_by_moment_exchange_and_sequence():
    values = [line(2, exchange="okx"), line(2, sequence=2), line(2), line(1, exchange="okx"), line(2, "ADA-USD")]
    found = [(one.received_ns, one.exchange, one.sequence, one.symbol) for one in merged(items(*values))]
    assert found == [
        (1, "okx", 1, "BTC-USD"),
        (2, "kraken", 1, "ADA-USD"),
        (2, "kraken", 1, "BTC-USD"),
        (2, "kraken", 2, "BTC-USD"),
        (2, "okx", 1, "BTC-USD"),
    ]


def test_nothing_gives_nothing():
    clockwork = Clockwork()
    assert list(replay(clockwork, merged([]), T0)) == []
    assert clockwork.told == []


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (b"{", "truncated"),
        (b"[]", "Expected `object`"),
        (line(1, kind="decision"), "Invalid value 'decision'"),
        (line("1"), "Expected `int`, got `str` - at `$.received_ns`"),
        (line(1, sequence=True), "`$.sequence`"),
        (line(1, symbol=None), "`$.symbol`"),
        (line(1, bids=[[1, 2], ["x", 1]]), "Expected `float`, got `str`"),
    ],
)
def test_a_line_that_is_no_tick_is_named(tmp_path, value, problem):
    file = tmp_path / "ticks.jsonl"
    file.write_bytes(line(1) + b"\n\n" + value + b"\n")
    with pytest.raises(InputError) as error:
        list(of_files([file]))
    assert str(error.value).startswith(f"{file}, line 3: ")
    assert problem in str(error.value)


def test_a_message_that_the_engine_cannot_take_in_is_named():
    with pytest.raises(InputError, match=r"ticks.jsonl, line 2: cannot be taken in: ValueError\('bad bids'\)"):
        list(replay(Clockwork(), items(line(1), line(2, "BAD-USD"))))
    left_out = []
    clockwork = Clockwork()
    list(replay(clockwork, items(line(1), line(2, "BAD-USD"), line(3)), on_bad=lambda *bad: left_out.append(bad)))
    assert [message.line for message, _ in left_out] == [2]
    assert clockwork.told == [("BTC-USD", 1), ("BTC-USD", 3)]


@pytest.fixture
def run():
    """`arb detect ARGUMENTS` in this process, whose signals it takes for itself."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield lambda *arguments, stdin=None: CliRunner().invoke(app, ["detect", *arguments], input=stdin)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_replay_that_is_stopped_leaves_no_half_result(recording, tmp_path):
    """By SIGTERM while it waits for more on its standard input."""
    out = tmp_path / "verdicts.jsonl"
    command = [sys.executable, "-m", "services.cli", "detect", "--from-file", "-", "--out", str(out)]
    replaying = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert replaying.stdin is not None
    part = out.with_name(f"{out.name}.part")
    while not part.exists() and replaying.poll() is None:
        replaying.stdin.write(recording.ticks[0][2] + b"\n")
        replaying.stdin.flush()
    replaying.terminate()
    _, said = replaying.communicate(recording.ticks[1][2] + b"\n", timeout=30)
    assert (replaying.returncode, b"stopped before the end" in said) == (1, True), said
    assert list(tmp_path.iterdir()) == []


def write(path: Path, values) -> str:
    with gzip.open(path, "wb") if path.suffix == ".gz" else path.open("wb") as file:
        file.writelines(value + b"\n" for value in values)
    return str(path)


def test_the_command_prints_the_same_from_files_and_standard_input(run, recording, tmp_path):
    values = [value for _, _, value, _ in recording.ticks]
    plain = write(tmp_path / "all.jsonl", values)
    even, odd = write(tmp_path / "even.jsonl.gz", values[::2]), write(tmp_path / "odd.jsonl", values[1::2])
    out = tmp_path / "verdicts.jsonl"
    assert run("--from-file", plain, "--out", str(out)).exit_code == 0
    printed = run("--from-file", odd, "--from-file", even)
    assert printed.stdout_bytes == out.read_bytes() == b"".join(one + b"\n" for one in events(values))
    assert run("--from-file", "-", stdin=b"\n".join(values)).stdout_bytes == out.read_bytes()
    assert run("--from-file", write(tmp_path / "empty.jsonl", [])).stdout_bytes == b""


def test_a_range_takes_what_was_received_in_it(recording):
    within = Range(T0 + 1_000 * MS, T0 + 2_000 * MS)
    inside = [one for one in recording.ticks if within.since_ns <= one[3] < within.until_ns]
    kept = [one for one in items(*(value for _, _, value, _ in recording.ticks)) if within.holds(one)]
    assert len(kept) == len(inside) > 100


def test_moments_say_their_time_zone():
    assert moment("--since", "1970-01-01T00:00:01.000002Z") == 1_000_002_000
    assert moment("--since", "1970-01-01T01:00:00+01:00") == 0
    for text in ("yesterday", "2026-11-21T10:00:00"):
        with pytest.raises(UsageError, match="--since"):
            moment("--since", text)
    with pytest.raises(UsageError, match="before --until"):
        chosen_range("2026-11-21T10:00:00Z", "2026-11-21T10:00:00Z")
    assert chosen_range(None, None) is None


@pytest.mark.parametrize(
    "arguments",
    [
        ["--until", "2026-11-21T10:00:00Z"],
        ["--publish", "--since", "2026-11-21T10:00:00Z", "--until", "2026-11-21T10:00:01Z"],
        ["--publish", "--group", "g", "--since", "2026-11-21T10:00:00Z"],
        ["--publish", "--group", "g", "--from-file", "x"],
        ["--group", "g", "--since", "2026-11-21T10:00:00Z"],
    ],
)
def test_options_that_do_not_go_together_are_refused(run, arguments):
    assert isinstance(run(*arguments).exception, UsageError)
