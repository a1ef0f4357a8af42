"""Fixtures for all tests: one real broker per session, started when the first test asks for it."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from services.cli.broker import start_broker
from shared.settings import KafkaSettings

# No deadline for an example: machines are noisy, and a timed test says nothing about the code.
settings.register_profile("arbiter", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("arbiter")


@pytest.fixture(scope="session")
def broker() -> Iterator[KafkaSettings]:
    """How to reach a real Kafka with all topics. ARB_TEST_BROKER forces one of external, jars, docker, mock."""
    forced = os.environ.get("ARB_TEST_BROKER")
    with start_broker(forced, quick=True) as running:
        if running.kind == "mock" and forced != "mock":
            pytest.skip(f"no real Kafka can run here: {'; '.join(running.refused)}")
        yield running.kafka
