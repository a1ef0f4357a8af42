"""`arb report`: shares, intervals and the rule by hand, duplicates and what was missed, and the command itself."""

import gzip
import io
import json
import random
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from services.cli import report
from services.cli.__main__ import app
from services.cli.report import Asked, By, Held, Report, Survival, chosen, headline, summarise, wilson
from shared import kafka, topics
from shared.errors import DependencyMissing, InputError, UsageError
from shared.messages import DelayedEdge
from shared.settings import KafkaSettings

D = Decimal
MS = 1_000_000
S = 1000 * MS
T0 = 1_795_168_800 * S  # 2026-11-20 10:00 UTC
ROOT = Path(__file__).parents[2]
SPAN = "in the last 24 h"


def outcome(identity: str, delay_ms: int = 100, net: str | None = None, profit: str = "0", **changes) -> DelayedEdge:
    """Paid if it has a profit; missed if it has no net edge."""
    values = {
        "opportunity_id": identity,
        "base": "BTC",
        "buy_exchange": "binance",
        "buy_symbol": "BTC-USDT",
        "sell_exchange": "kraken",
        "sell_symbol": "BTC-USD",
        "delay_ms": delay_ms,
        "net_bps": None if net is None else D(net),
        "profit_usd": None if net is None else D(profit),
        "executable": D(profit) > 0,
        "missed": net is None,
        "opened_net_bps": D(8),
        "evaluated_ns": changes.pop("opened_ns", T0) + delay_ms * MS,
    }
    return DelayedEdge(**(values | changes))


def held(*outcomes: DelayedEdge) -> list[Held]:
    return [Held((number,), one) for number, one in enumerate(outcomes)]


def many(paid: int, gone: int, delay_ms: int = 100, prefix: str = "", **changes) -> list[DelayedEdge]:
    found = [outcome(f"{prefix}p{n}", delay_ms, "5", "1", **changes) for n in range(paid)]
    return found + [outcome(f"{prefix}g{n}", delay_ms, "-5", **changes) for n in range(gone)]


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("hits", "of", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),  # z² / (n + z²) = 3.8415 / 13.8415
        (10, 10, 0.7225, 1.0),
        (6, 10, 0.3127, 0.8318),
        (1, 1, 0.2065, 1.0),
        (4, 4, 0.5101, 1.0),  # the fewest that can show a half: n / (n + z²)
        (3, 3, 0.4385, 1.0),
    ],
)
def test_wilson_by_hand(hits, of, low, high):
    assert wilson(hits, of) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_one_delay_by_hand():
    """Five opportunities: 6 bps and 3 USD, 4 bps and 1 USD, two that lose 2 and 10 bps, one that nobody saw."""
    found = summarise(
        held(
            outcome("a", net="6", profit="3"),
            outcome("b", net="4", profit="1"),
            outcome("c", net="-2"),
            outcome("d", net="-10"),
            outcome("e"),
        )
    )
    assert found.total.delays == (Survival(100, 5, 1, 2, D(1), D(1)),), "median of -10, -2, 4, 6; 4 USD for 4 seen"
    only = found.total.delays[0]
    assert (only.seen, only.share) == (4, 0.5)
    assert only.interval == (pytest.approx(0.1500, abs=5e-5), pytest.approx(0.8500, abs=5e-5))
    assert (found.total.opportunities, found.outcomes, found.missed, found.duplicates) == (5, 5, 1, 0)


def test_missed_is_neither_a_loss_nor_a_profit():
    only_missed = summarise(held(outcome("a"), outcome("b"))).total.delays[0]
    assert only_missed == Survival(100, 2, 2, 0, None, None)
    assert (only_missed.share, only_missed.interval, only_missed.passes) == (None, None, False)
    contradicting = outcome("c", net="6", profit="3", missed=True)
    assert summarise(held(contradicting)).total.delays[0].paid == 0


def test_not_executable_pays_nothing_whatever_it_says():
    strange = [outcome("a", net="6", profit="3", executable=False), outcome("b", net="6", executable=True)]
    assert summarise(held(*strange)).total.delays[0] == Survival(100, 2, 0, 0, D(6), D(0))


def test_an_unknown_net_edge_is_in_no_median():
    seen = summarise(held(outcome("a", net="-2"), outcome("b", missed=False))).total.delays[0]
    assert (seen.seen, seen.median_net_bps, seen.mean_profit_usd) == (2, D(-2), D(0))


def test_the_newest_of_two_records_about_a_moment_counts():
    old, new = outcome("a", net="6", profit="3"), outcome("a", net="-2")
    found = summarise([Held((2,), new), Held((1,), old), Held((2,), new)])
    assert found.total.delays == (Survival(100, 1, 0, 0, D(-2), D(0)),)
    assert (found.total.opportunities, found.outcomes, found.duplicates) == (1, 1, 2)


def test_groups_by_pair_base_exchange_and_route():
    there = outcome("a", net="6", profit="3")
    back = outcome("b", net="6", profit="3", buy_exchange="kraken", sell_exchange="binance")
    ether = outcome(
        "c", net="6", profit="3", base="ETH", buy_symbol="ETH-BTC", sell_symbol="ETH-USD", route="synthetic"
    )
    every = held(there, back, ether, outcome("a", 250, "-1"))

    def names(by: By) -> list[tuple[str, int]]:
        return [(series.label, series.opportunities) for series in summarise(every, by).groups]

    assert names(By.PAIR) == [
        ("binance BTC-USDT -> kraken BTC-USD", 1),
        ("binance ETH-BTC -> kraken ETH-USD", 1),
        ("kraken BTC-USDT -> binance BTC-USD", 1),
    ]
    assert names(By.BASE) == [("BTC", 2), ("ETH", 1)]
    assert names(By.EXCHANGE) == [("buy binance", 2), ("sell kraken", 2), ("buy kraken", 1), ("sell binance", 1)]
    assert names(By.ROUTE) == [("direct", 2), ("synthetic", 1)]


def test_coins_and_times_are_chosen_by_the_opening():
    every = held(
        outcome("a", 5000, "1", opened_ns=T0),
        outcome("b", 100, "1", opened_ns=T0 + S),
        outcome("c", 100, "1", opened_ns=T0 + S, base="ETH"),
    )

    def ids(bases: tuple[str, ...], since_ns: int | None, until_ns: int | None) -> str:
        return "".join(one.outcome.opportunity_id for one in chosen(every, bases, since_ns, until_ns))

    assert ids((), None, None) == "abc"
    assert ids(("ETH",), None, None) == "c"
    assert ids((), T0 + 1, None) == "bc", "its outcome is later than that, its opening is not"
    assert ids((), T0, T0 + S) == "a"


def test_lived_up_to_the_last_delay_before_fewer_than_half_paid():
    def lived(*shares: tuple[int, int, int]) -> int | None:
        return summarise(held(*(one for ms, paid, gone in shares for one in many(paid, gone, ms)))).total.lived_ms

    assert lived((50, 3, 1), (100, 2, 2), (250, 1, 3), (500, 4, 0)) == 100
    assert lived((50, 1, 3), (100, 4, 0)) is None
    assert lived((50, 1, 0)) == 50
    unseen = [*many(1, 0, 50), outcome("p0", 100), *many(1, 0, 250)]
    assert summarise(held(*unseen)).total.lived_ms == 250, "what nobody saw ends nothing"


# ---------------------------------------------------------------- the rule


@pytest.mark.parametrize(
    ("outcomes", "reason", "words"),
    [
        ([], "none", "no edge today: no opportunity in the last 24 h"),
        (many(61, 39), "survives", "100 opportunities in the last 24 h; after 100 ms 61 % still paid"),
        (
            many(31, 69),
            "gone",
            "no edge today: 100 opportunities in the last 24 h; after 100 ms 31 % still paid",
        ),
        (
            many(3, 0),
            "few",
            "no edge today: 3 opportunities in the last 24 h; after 100 ms 100 % still paid, and so few prove nothing",
        ),
        (many(4, 0), "survives", "4 opportunities in the last 24 h; after 100 ms 100 % still paid"),
        (
            [outcome("a"), outcome("b")],
            "unseen",
            "no edge today: 2 opportunities in the last 24 h, but nobody saw what any was worth after 100 ms or later",
        ),
        (
            many(40, 0, 50),
            "unseen",
            "no edge today: 40 opportunities in the last 24 h, but nobody saw what any was worth after 100 ms or later",
        ),
        (
            [*many(0, 80), *many(18, 2, prefix="okx", buy_exchange="okx")],
            "pairs",
            "100 opportunities in the last 24 h; after 100 ms 18 % still paid, but 90 % on okx BTC-USDT -> kraken BTC-USD",
        ),
    ],
    ids=["none", "survives", "gone", "few", "four", "missed", "too early", "pairs"],
)
def test_the_rule_and_its_headline(outcomes, reason, words):
    found = summarise(held(*outcomes))
    assert found.reason == reason
    assert headline(found, SPAN) == words
    assert found.edge == (not words.startswith("no edge today"))


def test_the_rule_looks_at_the_first_delay_that_is_late_enough():
    every = held(*many(40, 0, 100), *many(0, 40, 250), *many(40, 0, 500))
    assert summarise(every, need_ms=100).edge
    late = summarise(every, need_ms=150)
    assert (late.reason, late.judged.delay_ms) == ("gone", 250), "what comes back later does not save it"
    assert "at 250 ms, the first delay from there on, 0 % of all" in report.rule(late)
    assert summarise(every, need_ms=0).judged.delay_ms == 100
    assert summarise(every, need_ms=501).reason == "unseen"


def test_the_rule_does_not_depend_on_the_grouping():
    every = held(*many(0, 80), *many(18, 2, prefix="okx", buy_exchange="okx"))
    assert {summarise(every, by).reason for by in By} == {"pairs"}
    assert "18 % of all (12-27 %; 18 of 100 seen): no; 1 of 2 pairs by themselves." in report.rule(summarise(every))


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.0, "0 %"),
        (0.0004, "0.1 %"),
        (0.29, "29 %"),
        (0.4999, "49.9 %"),
        (0.5, "50 %"),
        (0.5001, "50.1 %"),
        (0.614, "61 %"),
        (0.9975, "99.7 %"),
        (0.99999, "99.9 %"),
        (1.0, "100 %"),
    ],
)
def test_a_share_is_not_rounded_over_the_line(share, words):
    assert report.percent(share) == words


# ---------------------------------------------------------------- whatever comes

EDGES = st.builds(
    outcome,
    st.sampled_from("abcdefg"),
    st.sampled_from([50, 100, 250]),
    st.none() | st.decimals(-50, 50, places=4).map(str),
    st.decimals(0, 9, places=12).map(str),
    buy_exchange=st.sampled_from(["binance", "okx"]),
    base=st.sampled_from(["BTC", "ETH"]),
    executable=st.booleans(),
    missed=st.booleans(),
)


@given(st.lists(EDGES, max_size=40), st.randoms(use_true_random=False), st.sampled_from(By))
def test_sums_match_and_neither_order_nor_duplicates_matter(edges: list[DelayedEdge], rnd: random.Random, by: By):
    records = held(*edges)
    found = summarise(records, by)
    again = [*records, *rnd.choices(records, k=5)] if records else []
    rnd.shuffle(again)
    other = summarise(again, by)
    assert numbers(other) == numbers(found)
    assert other.duplicates - found.duplicates == len(again) - len(records)
    sides = 2 if by is By.EXCHANGE else 1
    for name in ("count", "missed", "paid"):
        whole = sum(getattr(one, name) for one in found.total.delays)
        assert sum(getattr(one, name) for series in found.groups for one in series.delays) == sides * whole
    assert sum(one.count for one in found.total.delays) == found.outcomes == len(records) - found.duplicates
    for series in (found.total, *found.groups):
        for one in series.delays:
            assert 0 <= one.paid <= one.seen <= one.count == one.seen + one.missed
            assert (one.share is None) == (one.seen == 0)
            if one.share is not None:
                low, high = one.interval
                assert 0 <= low <= one.share <= high <= 1


def numbers(found: Report) -> list[object]:
    return [found.total, found.groups, found.pairs, found.outcomes, found.missed, found.reason]


# ---------------------------------------------------------------- the command


@pytest.fixture
def file(tmp_path) -> Path:
    """40 opportunities: 38 pay after 100 ms, 10 after a second; one of each was missed. Other kinds are passed over."""
    early = [*many(38, 1), outcome("x")]
    late = [outcome(one.opportunity_id, 1000, *(("5", "1") if n < 10 else ("-5",))) for n, one in enumerate(early[:-1])]
    outcomes = [*early, *late, outcome("x", 1000), early[0]]
    opportunity = (ROOT / "tests/shared/stored/v1/opportunity.json").read_bytes().strip()
    path = tmp_path / "outcomes.jsonl"
    path.write_bytes(b"\n".join([opportunity, b"", *(one.encode() for one in outcomes), b""]))
    return path


def arb(*arguments: str, given: bytes | None = None):
    return CliRunner().invoke(app, ["report", *arguments], input=given)


def test_from_a_file_for_people(file):
    done = arb("--from-file", str(file))
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "40 opportunities from 2026-11-20 10:00 to 2026-11-20 10:00 UTC; after 100 ms 97 % still paid"
    assert "At least half still paid up to 100 ms after publishing, fewer later." in lines[1]
    assert "100 ms 39 1 97 % 87-99.5 % 5.00 0.97" in [" ".join(line.split()) for line in lines]
    assert "1 s 39 1 26 % 15-41 % -5.00 0.26" in [" ".join(line.split()) for line in lines]
    assert "binance BTC-USDT -> kraken BTC-USD (40)" in done.stdout
    assert "97 % of all (87-99.5 %; 38 of 39 seen): yes; 1 of 1 pair by themselves." in done.stdout
    assert (
        "2 of 80 outcomes missed (nobody could see the books then): in no share; 1 duplicate counted once." in lines[-1]
    )
    assert all(len(line) <= 80 for line in lines[3:-2])


def test_no_edge_ends_1_and_says_it_plainly(file, tmp_path):
    done = arb("--from-file", str(file), "--need-ms", "500")
    assert done.exit_code == 1
    assert done.stdout.startswith("no edge today: ")
    assert "after 1 s 26 % still paid" in done.stdout
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    done = arb("--from-file", str(empty))
    assert done.exit_code == 1
    assert done.stdout.startswith("no edge today: no opportunity in these files\n")
    done = arb("--from-file", str(file), "--base", "doge", "--since", "24h", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["headline"] == "no edge today: no opportunity in the last 24 h"


def test_as_json_has_the_same_numbers(file):
    done = arb("--from-file", str(file), "--by", "exchange", "--json")
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout)
    assert (value["edge"], value["reason"], value["by"]) == (True, "survives", "exchange")
    assert {name: value[name] for name in ("outcomes", "missed", "duplicates", "no_outcomes")} == {
        "outcomes": 80,
        "missed": 2,
        "duplicates": 1,
        "no_outcomes": 0,
    }
    first = value["all"]["delays"][0]
    assert (first["count"], first["seen"], first["paid"], first["share"]) == (40, 39, 38, 38 / 39)
    assert (first["median_net_bps"], first["mean_profit_usd"]) == ("5.0000", "0.974359"), "38 USD over 39"
    assert value["rule"]["all"] == first
    assert [(group["kind"], group["name"]) for group in value["groups"]] == [("buy", "binance"), ("sell", "kraken")]


def test_standard_input_gz_and_several_files(file, tmp_path):
    packed = tmp_path / "outcomes.jsonl.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    one, other, both = (
        json.loads(arb(*arguments, "--json", given=file.read_bytes()).stdout)
        for arguments in (
            ["--from-file", "-"],
            ["--from-file", str(packed)],
            ["--from-file", str(file), "--from-file", str(packed)],
        )
    )
    assert one == other
    assert both["all"] == one["all"], "the same records twice"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\n{}\n", ", line 2: "),
        (b'{"kind": "outcome", "v": 1}\n', ", line 1: outcome.opportunity_id: Field required"),
        (b"\xff\xfe", ", line 1: "),
    ],
)
def test_a_bad_file_is_one_line_with_its_number_and_2(tmp_path, content, words):
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(content)
    error = arb("--from-file", str(bad)).exception
    assert isinstance(error, InputError)
    assert error.exit_code == 2
    assert f"{bad}{words}" in str(error)
    assert "\n" not in str(error)


def test_a_file_that_is_not_there_or_is_cut(tmp_path):
    with pytest.raises(InputError, match="nowhere: No such file"):
        report.read_files([tmp_path / "nowhere"])
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(b"{}")[:-4])
    with pytest.raises(InputError, match=r"cut\.gz: Compressed file ended"):
        report.read_files([cut])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--since", "yesterday"], "--since 'yesterday': must be a time such as 24h or 90m, or a moment 2026"),
        (["--since", "1.2.3h"], "--since '1.2.3h': must be"),
        (["--until", "2026-11-21T10:00:00"], "--until '2026-11-21T10:00:00': must be"),
        (["--since", "1h", "--until", "2h"], "--since must be before --until"),
    ],
)
def test_wrong_times_are_wrong_usage(file, arguments, words):
    error = arb("--from-file", str(file), *arguments).exception
    assert isinstance(error, UsageError)
    assert words in str(error)


def test_times_of_the_command_line():
    now = T0 + 86_400 * S
    assert report.moment_ns("--since", "24h", now) == T0
    assert report.moment_ns("--since", "90m", now) == now - 5400 * S
    assert report.moment_ns("--since", "2026-11-20T11:00:00+01:00", now) == T0
    assert report.moment_ns("--since", "1000000d", now) == 0


def test_at_most_so_many_tables(tmp_path):
    path = tmp_path / "pairs.jsonl"
    every = [one for n in range(12) for one in many(1 + n, 0, prefix=str(n), buy_exchange=f"x{n:02}")]
    path.write_bytes(b"\n".join(one.encode() for one in every))
    done = arb("--from-file", str(path), "--top", "2")
    assert done.stdout.count("95 % interval") == 4, "all, the two largest, and the rule"
    assert done.stdout.index("x11 BTC-USDT") < done.stdout.index("x10 BTC-USDT")
    assert "... and 10 more groups (--top 0 shows all)" in done.stdout
    assert arb("--from-file", str(path), "--top", "0").stdout.count("95 % interval") == 14


# ---------------------------------------------------------------- Kafka


def records(*values: bytes | None, timestamp_ms: int = T0 // MS) -> list[kafka.Record]:
    return [kafka.Record(topics.OUTCOMES, 0, n, b"BTC", value, timestamp_ms, []) for n, value in enumerate(values)]


def test_records_that_are_no_outcomes_are_counted():
    health = (ROOT / "tests/shared/stored/v1/health.json").read_bytes()
    new_version = outcome("b").encode().replace(b'"v":1', b'"v":2')
    read = report.of_records(records(outcome("a").encode(), b"{", None, health, new_version))
    assert ([one.outcome.opportunity_id for one in read.held], read.no_outcomes) == (["a"], 4)
    out = io.StringIO()
    report.show(Console(file=out, width=80), summarise(read.held), read.no_outcomes, SPAN, 0)
    assert "4 records could not be read as an outcome." in " ".join(out.getvalue().split())


def test_from_kafka_the_last_day_by_default_and_the_newest_record(monkeypatch, capsys):
    asked_since = []
    values = [one.encode() for one in [*many(20, 0), outcome("p0", net="-1"), outcome("old", opened_ns=T0 - 2 * S)]]

    def read_range(config, topics, since_ms, timeout_s):
        asked_since.append((*topics, since_ms))
        return records(*values, b"?")

    monkeypatch.setattr(report.cluster, "wait_for_brokers", lambda settings: 1)
    monkeypatch.setattr(report.kafka, "read_range", read_range)
    now_ns = T0 - S + 86_400 * S
    console = Console(file=io.StringIO())
    edge = report.run(
        KafkaSettings(servers="nowhere:9"), Asked(), (), None, True, console, console, clock=lambda: now_ns
    )
    value = json.loads(capsys.readouterr().out)
    assert edge
    assert asked_since == [("opportunity-outcomes", T0 // MS - 1000 - report.SLACK_MS)]
    assert value["headline"] == "20 opportunities in the last 24 h; after 100 ms 95 % still paid"
    assert (value["duplicates"], value["no_outcomes"]) == (1, 1)


# ---------------------------------------------------------------- plots


def test_the_plot_has_its_points_where_they_belong():
    every = held(*many(4, 0, 50), *many(2, 2, 500), *many(0, 4, 5000))
    drawn = report.plot(report.plotted(summarise(every))).plain.splitlines()
    points = [(row, line.index("●") - 8) for row, line in enumerate(drawn[:13]) if "●" in line]
    assert points == [(0, 2), (6, 30), (12, 58)], "1, a half and 0; two decades"
    assert drawn[6].startswith("  50 % |")
    assert drawn[14].split() == ["50", "ms", "500", "ms", "5", "s"]
    assert drawn[15] == "  ● binance BTC-USDT -> kraken BTC-USD (8)"


def test_the_plot_of_plain_terminals_and_of_a_single_delay():
    drawn = report.plot(report.plotted(summarise(held(*many(1, 1)))), ascii_only=True)
    assert drawn.plain.isascii()
    assert drawn.plain.splitlines()[6].count("o") == 1
    assert drawn.plain.splitlines()[14].strip() == "100 ms"


def test_at_most_six_lines_and_none_of_what_nobody_saw():
    every = [one for n in range(12) for one in many(1 + n, 0, prefix=str(n), buy_exchange=f"x{n:02}")]
    lines = report.plotted(summarise(held(*every, *(outcome(f"m{n}", buy_exchange="blind") for n in range(50)))))
    assert [series.name.split()[0] for series in lines] == ["all", "x11", "x10", "x09", "x08", "x07"]
    assert report.plotted(summarise([])) == []


def test_a_picture_without_matplotlib_is_one_line_and_3(file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = arb("--from-file", str(file), "--png", str(tmp_path / "plot.png"))
    assert isinstance(done.exception, DependencyMissing)
    assert done.exception.exit_code == 3
    assert str(done.exception) == "--png needs matplotlib: pip install matplotlib"
    assert done.stdout == "", "said before any work is done"


def test_a_picture(file, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "plot.png"
    done = arb("--from-file", str(file), "--png", str(path))
    assert done.exit_code == 0, done.output
    assert path.read_bytes().startswith(b"\x89PNG")
    nowhere = arb("--from-file", str(file), "--png", str(tmp_path / "nowhere" / "plot.png")).exception
    assert isinstance(nowhere, InputError)
    assert "plot.png: No such file or directory" in str(nowhere)


def test_nothing_to_plot_is_said(tmp_path):
    pytest.importorskip("matplotlib")
    empty, path = tmp_path / "empty.jsonl", tmp_path / "plot.png"
    empty.touch()
    done = arb("--from-file", str(empty), "--png", str(path))
    assert done.exit_code == 1
    assert "is not written: there is nothing to plot" in done.stderr
    assert not path.exists()
