"""Every metric is filled by some service, and named by the rules."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.metrics import MetricWrapperBase

from shared import metrics

ROOT = Path(__file__).parents[2]
DEFINED = {name: found for name, found in vars(metrics).items() if isinstance(found, MetricWrapperBase)}
UNITS = ("_ms", "_s", "_usd", "_bytes", "_messages")
STATES = {
    "arb_service_info": "a constant",
    "arb_ready": "0 or 1",
    "arb_book_live": "0 or 1",
    "arb_co_partitioned": "0 or 1",
    "arb_kill_switch": "0 or 1",
    "arb_model_guard": "0 or 1",
    "arb_brier": "a score without a unit",
    "arb_kafka_brokers_up": "a count of brokers",
    "arb_consumer_partitions": "a count of partitions",
    "arb_connections": "a count of connections",
    "arb_books": "a count of books",
    "arb_gaps_open": "a count of gaps",
    "arb_decider_in_flight": "a count of opportunities",
}
"""Gauges without a unit in their name, and what they are."""


def used() -> set[str]:
    files = [path for folder in ("services", "shared") for path in (ROOT / folder).rglob("*.py")]
    return {name for path in files for name in re.findall(r"\bmetrics\.([A-Z][A-Z_]+)\b", path.read_text())}


def test_every_metric_is_filled_somewhere_and_nothing_else_is():
    assert used() == set(DEFINED)


@pytest.mark.parametrize("name", DEFINED)
def test_names_say_the_unit_or_that_it_is_a_count(name):
    metric = DEFINED[name]
    (described,) = metric.describe()
    assert described.name.startswith("arb_")
    if described.type == "counter":  # its samples end in _total
        assert not described.name.endswith(("_total", "_created"))
    elif described.type == "histogram":
        assert described.name.endswith("_ms")
    else:
        assert described.name.endswith(UNITS) != (described.name in STATES), described.name


@pytest.mark.parametrize("name", DEFINED)
def test_help_is_there_and_names_the_unit(name):
    (described,) = DEFINED[name].describe()
    assert described.documentation
    for ending, words in (("_ms", "(ms)"), ("_s", "(s)"), ("_usd", "(USD)")):
        if described.name.endswith(ending):
            assert words in described.documentation, described.documentation


CREATED = """
from prometheus_client import REGISTRY, Counter
from shared import client, health

def created():
    return [sample.name for metric in REGISTRY.collect() for sample in metric.samples if "_created" in sample.name]

Counter("own", "Of a user's program").inc()
assert "own_created" in created(), "a program that only imports us keeps its own way"
health.serve(health.Health("detector"), "127.0.0.1", 0)
assert not created(), created()
"""


def test_the_time_at_which_a_counter_was_made_is_not_exported_by_services():
    done = subprocess.run([sys.executable, "-c", CREATED], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
