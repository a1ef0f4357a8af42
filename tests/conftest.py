"""Fixtures for all tests: one real broker per session, started when the first test asks for it."""

import os
from collections.abc import Iterator

import pytest

from services.cli.broker import start_broker
from shared.settings import KafkaSettings


@pytest.fixture(scope="session")
def broker() -> Iterator[KafkaSettings]:
    """How to reach a real Kafka with all topics. ARB_TEST_BROKER forces one of external, jars, docker, mock."""
    forced = os.environ.get("ARB_TEST_BROKER")
    with start_broker(forced, quick=True) as running:
        if running.kind == "mock" and forced != "mock":
            pytest.skip(f"no real Kafka can run here: {'; '.join(running.refused)}")
        yield running.kafka
