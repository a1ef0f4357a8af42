"""What several integration tests write with."""

import pytest

from shared import kafka


@pytest.fixture
def out(broker):
    publisher = kafka.Publisher(kafka.event_producer(broker, "test"), drop_when_full=False)
    yield publisher
    publisher.close()
