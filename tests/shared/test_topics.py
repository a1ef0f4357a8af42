"""The table of topics, and the shell script that must say the same."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from shared import topics

SCRIPT = Path(__file__).parents[2] / "kafka-topics.sh"


def commands_of_the_script(brokers: int) -> dict[str, dict[str, object]]:
    environment = os.environ | {"DRY_RUN": "1", "BROKERS": str(brokers), "BOOTSTRAP": "b:1", "KAFKA_BIN": "/bin"}
    printed = subprocess.run([SCRIPT], env=environment, check=True, capture_output=True, text=True).stdout
    found: dict[str, dict[str, object]] = {}
    for line in printed.splitlines():
        words = shlex.split(line)
        assert words[:4] == ["/bin/kafka-topics.sh", "--bootstrap-server", "b:1", "--create"]
        pairs = list(zip(words[5::2], words[6::2], strict=True))
        options = dict(pair for pair in pairs if pair[0] != "--config")
        config = dict(value.split("=", 1) for option, value in pairs if option == "--config")
        found[options["--topic"]] = {
            "partitions": int(options["--partitions"]),
            "replication": int(options["--replication-factor"]),
            "settings": config,
        }
    return found


@pytest.mark.parametrize("brokers", [1, 2, 3, 5])
def test_the_script_creates_exactly_the_topics_of_the_table(brokers: int) -> None:
    wanted = {
        topic.name: {
            "partitions": topic.partitions,
            "replication": topic.replication(brokers),
            "settings": topic.settings(brokers),
        }
        for topic in topics.TOPICS
    }
    assert commands_of_the_script(brokers) == wanted


def test_the_script_refuses_a_broker_count_that_is_none() -> None:
    done = subprocess.run([SCRIPT], env=os.environ | {"BROKERS": "three"}, capture_output=True, text=True)
    assert done.returncode == 2
    assert "BROKERS must be a whole number" in done.stderr


def test_all_tick_topics_have_the_same_partition_count() -> None:
    by_name = {topic.name: topic for topic in topics.TOPICS}
    assert {by_name[name].partitions for name in topics.tick_topics()} == {topics.TICK_PARTITIONS}


def test_opportunities_and_decisions_share_their_partition_count() -> None:
    by_name = {topic.name: topic for topic in topics.TOPICS}
    names = (topics.OPPORTUNITIES, topics.DECISIONS, topics.OUTCOMES)
    assert {by_name[name].partitions for name in names} == {topics.EVENT_PARTITIONS}


@pytest.mark.parametrize(
    ("source", "dead_letters"),
    [
        ("tick-data-kraken", "tick-data.dlq"),
        ("fx-rates", "fx-rates.dlq"),
        (topics.OPPORTUNITIES, "arbitrage-opportunities.dlq"),
    ],
)
def test_each_read_topic_has_a_dead_letter_topic_in_the_table(source: str, dead_letters: str) -> None:
    assert topics.dlq(source) == dead_letters
    assert dead_letters in {topic.name for topic in topics.TOPICS}


def test_min_insync_replicas_never_exceeds_what_a_cluster_can_lose_a_node_with() -> None:
    for topic in topics.TOPICS:
        for brokers in (1, 2, 3):
            least = int(topic.settings(brokers)["min.insync.replicas"])
            assert 1 <= least <= max(1, topic.replication(brokers) - 1)
