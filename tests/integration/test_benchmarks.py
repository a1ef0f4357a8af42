"""The benchmarks of detector and decider run: a number that nobody can measure any more is no number. What they find is
not judged."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
NEIGHBOURS = ("common", "latency", "market", "other_env", "quix_env")


@pytest.fixture
def benchmark(monkeypatch) -> Iterator[Callable[[str], ModuleType]]:
    """A benchmark as a module; its folder is no package."""
    monkeypatch.syspath_prepend(str(FOLDER))
    loaded = []

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look there
        loaded.append(spec.name)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in (*loaded, *NEIGHBOURS):
        sys.modules.pop(name, None)


@pytest.mark.integration
def test_a_tick_costs_something_beside_the_floor(benchmark, broker):
    rows = benchmark("detector").run(broker, 1, 3000, [10], (), warm_s=1)
    assert 0 < rows.floor[0]["ratio"] < 1
    assert rows.engine[0]["events_per_1000"] > 0
    assert rows.quix == []


@pytest.mark.integration
def test_gaps_reach_a_reader_through_a_detector_and_a_relay(benchmark, broker):
    rows, ratios = benchmark("latency").run(broker, rate=200, seconds=1, rounds=1)
    assert [row["path"] for row in rows] == ["relay", "detector"]
    assert all(row["gaps"] > 0 and row["p50_ms"] > 0 for row in rows)
    assert [row["of"] for row in ratios] == ["p50", "p99"]


@pytest.mark.integration
@pytest.mark.parametrize("part", ["added", "rules", "memory"])
def test_a_decider_is_measured(benchmark, broker, tmp_path, part):
    measured = benchmark("decider")
    if part == "added":
        rows, added, _ = measured.added_time(broker, tmp_path, rate=5, seconds=2, rounds=1)
        assert len(added.inside) == len(added.slowest) > 0
        assert min(added.slowest) >= measured.LATENCY_MS[0], "a model's own time is at least what was drawn for it"
        assert min(added.inside) > 0, "and nobody decides before it has answered"
        assert [row["n"] > 0 for row in rows] == [True] * 6
    elif part == "rules":
        rows, ratio = measured.rules_only(broker, tmp_path, 500, 1)
        assert [row["messages"] >= 500 for row in rows] == [True] * 3
        assert ratio > 0
    else:
        row = measured.memory(broker, tmp_path, 500, 4000, every_s=0.05)
        assert row["rss_MiB_warm"] > 0
        assert row["blocks_end"] > 0


def test_every_number_of_symbols_has_the_same_share_of_crossings(benchmark):
    market = benchmark("market")
    for symbols in (10, 50):
        count = symbols * len(market.EXCHANGES) * market.PERIOD
        rounds = range(market.PERIOD)
        crossing = sum(market.higher(which, number) > 0 for which in range(symbols) for number in rounds)
        assert crossing / (symbols * market.PERIOD) == market.LASTS / market.PERIOD
        assert market.spacing_ns(symbols) * count == market.PERIOD / market.BOOK_HZ * market.SECOND_NS


def test_a_repeating_market_leaves_nothing_in_the_engine(benchmark):
    day = benchmark("memory").Day()
    for _ in range(2):
        day.repeat()
    warm = day.blocks()
    day.repeat()
    assert day.events > 0
    assert abs(day.blocks() - warm) < 100
