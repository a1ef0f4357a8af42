"""The demo's counts, and the comparison with the truth that its report rests on."""

import io

import pytest
from rich.console import Console

from services.cli.board import Board, Report, percentiles
from services.cli.screen import render
from services.cli.watch import line
from shared import messages, topics
from shared.messages import decode

MS = 1_000_000
S = 1000 * MS


def gap(start_ms: int, end_ms: int, buy: str = "binance", sell: str = "kraken"):
    return {
        "base": "BTC",
        "buy": {"exchange": buy, "symbol": "BTC-USDT"},
        "sell": {"exchange": sell, "symbol": "BTC-USD"},
        "start_ns": start_ms * MS,
        "end_ns": end_ms * MS,
        "edge_bps": 50.0,
        "open": False,
    }


def opportunity(phase: str, at_ms: int, identity: str = "1", opened_ms: int | None = None, sell: str = "kraken"):
    leg = {
        "exchange": "binance",
        "symbol": "BTC-USDT",
        "vwap": "1",
        "limit": "1",
        "fee_bps": "10",
        "levels": 1,
        "alive_age_ms": 1,
        "book_age_ms": 1,
        "bids": [],
        "asks": [],
    }
    return messages.Opportunity.model_validate(
        {
            "opportunity_id": identity,
            "phase": phase,
            "base": "BTC",
            "buy": leg,
            "sell": leg | {"exchange": sell, "symbol": "BTC-USD"},
            "rates": [],
            "size": "1",
            "notional_usd": "1",
            "profit_usd": "1",
            "naive_bps": "1",
            "net_bps": "1",
            "closed_loop_bps": "1",
            "depth_limited": False,
            "opened_ns": (at_ms if opened_ms is None else opened_ms) * MS,
            "detected_ns": at_ms * MS,
            "expires_ns": at_ms * MS,
            "peak_net_bps": "1",
        }
    )


def board(*events) -> Board:
    made = Board(["binance", "kraken"], 100)
    for event in events:
        made.take(topics.OPPORTUNITIES, event, event.detected_ns + 3 * MS)
    return made


@pytest.mark.parametrize(
    ("events", "truth", "ready_ms", "stop_ms", "expected"),
    [
        ([("opened", 1100), ("closed", 2000)], [(1000, 2000)], 0, 9000, (1, 1, 0)),
        ([], [(1000, 2000)], 0, 9000, (1, 0, 0)),
        ([], [(1000, 1400)], 0, 9000, (0, 0, 0)),
        ([("opened", 5000), ("closed", 6000)], [(1000, 2000)], 0, 9000, (1, 0, 1)),
        ([("opened", 1100), ("closed", 1150)], [(1090, 1130)], 0, 9000, (0, 0, 0)),
        ([], [(1000, 2000)], 1600, 9000, (0, 0, 0)),
        ([], [(1000, 9000)], 0, 1300, (0, 0, 0)),
        ([("opened", 1100)], [(1000, 2000)], 0, 9000, (1, 1, 0)),
    ],
)
def test_found_missed_and_invented(events, truth, ready_ms, stop_ms, expected):
    made = board(*(opportunity(phase, at, opened_ms=events[0][1]) for phase, at in events))
    result = made.compare([gap(*span) for span in truth], ready_ms * MS, stop_ms * MS)
    assert (result["gaps"], result["found"], result["false"]) == expected


def test_another_pair_is_another_gap():
    made = board(opportunity("opened", 1100, sell="coinbase"))
    assert made.compare([gap(1000, 2000)], 0, 9 * S) == {"gaps": 1, "found": 0, "false": 1}


def test_latency_is_what_is_left_after_the_wanted_persistence():
    made = board(opportunity("opened", 1130, opened_ms=1000))
    assert made.latencies_ms == [33.0]


def test_counts_and_report():
    made = board(opportunity("opened", 1000), opportunity("updated", 1100), opportunity("closed", 1200))
    for value in (
        messages.book_value("binance", "BTC-USDT", 1, 5, None, [(1.0, 1.0)], [(2.0, 1.0)]),
        messages.trade_value("binance", "BTC-USDT", 2, 5, None, 1.0, 1.0, None, "1"),
        messages.health_value("kraken", "BTC-USD", 3, 5, "gap", "why", 5, 5),
    ):
        made.take("tick-data-x", decode(value), 5)
    made.take(topics.FX_RATES, decode(messages.rate_value("kraken", "USDT-USD", 1, 5, None, 0.9, 1.0, "live")), 5)
    report = Report("jars", "because")
    made.fill(report)
    assert report.ticks == {"binance": 2, "kraken": 1}
    assert report.opportunities == {"opened": 1, "closed": 1}
    assert made.live() == {"binance": 1, "kraken": 1}
    assert made.open == {}


def test_percentiles_by_rank():
    assert percentiles([]) == {"p50": None, "p99": None}
    assert percentiles([3.0, 1.0, 2.0]) == {"p50": 2.0, "p99": 3.0}


def test_each_kind_is_one_line_for_people():
    assert "opened: buy binance BTC-USDT, sell kraken BTC-USD" in line(opportunity("opened", 1))
    health = decode(messages.health_value("kraken", "BTC-USD", 3, 5, "gap", "why", 5, 5))
    assert line(health).endswith("kraken BTC-USD gap: why")


@pytest.mark.parametrize(("width", "height"), [(170, 46), (100, 40), (80, 24)])
def test_the_screen_fits_its_terminal_and_says_what_is_wrong(width, height):
    made = board(*(opportunity("opened", 1000 + n, identity=str(n)) for n in range(20)))
    for n in range(12):
        value = messages.book_value("binance", f"C{n}-USD", 1, 5, None, [(1.0, 1.0)], [(2.0, 1.0)])
        made.take("tick-data-binance", decode(value), 5)
    made.take("tick-data-kraken", decode(messages.health_value("kraken", "BTC-USD", 3, 5, "checksum", "w", 5, 5)), 5)
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(render(made, "header", 2000 * MS, width, height))
    lines = console.file.getvalue().splitlines()
    assert max(len(text) for text in lines) <= width
    text = "\n".join(lines)
    assert "gaps open now: 20" in text
    assert "checksum" in text
    assert "last decisions" in text
