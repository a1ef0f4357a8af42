"""Settings of the clients, those that matter."""

import socket
import time
import uuid
from typing import Any

import structlog
from confluent_kafka import KafkaError

from shared.kafka.watch import STATISTICS_MS, Statistics
from shared.settings import KafkaSettings

log = structlog.get_logger()

Config = dict[str, Any]


def _common(settings: KafkaSettings, service: str) -> Config:
    return {
        "bootstrap.servers": settings.servers,
        "client.id": f"{service}-{socket.gethostname()}",
        "socket.keepalive.enable": True,
        "reconnect.backoff.max.ms": 2000,  # the default of 10 s is slow after a broker's restart
        "socket.timeout.ms": 10_000,  # by default a broker that hangs holds everything up for 60 s
        "log_level": 2,  # lost connections reach us through error_cb, once
        "error_cb": _on_client_error,
    }


def measured(config: Config, client: str) -> Config:
    """With librdkafka's statistics as metrics; `client` is their label."""
    return {"statistics.interval.ms": STATISTICS_MS, "stats_cb": Statistics(client), **config}


def statistics_of(config: Config) -> Statistics:
    """What `measured` has put in."""
    found = config["stats_cb"]
    assert isinstance(found, Statistics)
    return found


def tick_producer(settings: KafkaSettings, service: str) -> Config:
    """Fresh before complete: a tick that cannot be sent in 1.5 s is dropped and counted."""
    config = _common(settings, service) | {
        "acks": 1,
        "enable.idempotence": False,
        "retries": 1,
        "linger.ms": 0.5,
        "delivery.timeout.ms": 1500,
        "queue.buffering.max.messages": 20_000,
        "compression.type": "none",
        "partitioner": "murmur2_random",
        "delivery.report.only.error": True,
        **settings.client_options(),
    }
    return measured(config, "ticks")


def event_producer(settings: KafkaSettings, service: str) -> Config:
    """Opportunities, rejections, decisions, dead letters: idempotent, acknowledged by all, never dropped."""
    config = _common(settings, service) | {
        "enable.idempotence": True,
        "acks": "all",
        "linger.ms": 0,
        "delivery.timeout.ms": 120_000,
        "compression.type": "none",
        "partitioner": "murmur2_random",
        **settings.client_options(),
    }
    return measured(config, "events")


def _member(settings: KafkaSettings, group: str) -> Config:
    """A member of a group, with the range assignor. With KIP-848 the broker keeps the time of sessions and heartbeats
    (`group.consumer.*`), and the client refuses settings for it."""
    if settings.group_protocol == "consumer":
        return {"group.id": group, "group.protocol": "consumer", "group.remote.assignor": "range"}
    return {
        "group.id": group,
        "partition.assignment.strategy": "range",
        "session.timeout.ms": 10_000,
        "heartbeat.interval.ms": 1000,
    }


READ_AHEAD = {"queued.min.messages": 10_000, "fetch.queue.backoff.ms": 50}
"""Of ticks: by default the client fetches 100,000 messages, each block into memory that the kernel must clear first."""


def tick_consumer(settings: KafkaSettings, service: str, group: str) -> Config:
    """Latest ticks of a group. Committed offsets only feed lag metrics: stale prices are never read again."""
    config = _common(settings, service) | {
        **_member(settings, group),
        "auto.offset.reset": "latest",
        "fetch.wait.max.ms": 50,
        **READ_AHEAD,
        "enable.auto.commit": True,
        "auto.commit.interval.ms": 5000,
        **settings.client_options(),
    }
    return measured(config, "consumer")


def event_consumer(settings: KafkaSettings, service: str, group: str) -> Config:
    """At least once: offsets are stored by us, after the work is done, and committed in the background."""
    config = _common(settings, service) | {
        **_member(settings, group),
        "auto.offset.reset": "earliest",
        "enable.auto.commit": True,
        "auto.commit.interval.ms": 1000,
        "enable.auto.offset.store": False,
        "queued.min.messages": 100,
        "queued.max.messages.kbytes": 4096,
        "fetch.queue.backoff.ms": 50,
        "fetch.wait.max.ms": 50,
        **settings.client_options(),
    }
    return measured(config, "consumer")


def share_consumer(settings: KafkaSettings, service: str, group: str) -> Config:
    """A member that only shares partition numbers (`PartitionShare`): it reads nothing and commits when told."""
    return _common(settings, service) | {
        **_member(settings, group),
        "enable.auto.commit": False,
        **settings.client_options(),
    }


def reader(settings: KafkaSettings, service: str) -> Config:
    """A reader without a group: it sees every partition and commits nothing."""
    return _common(settings, service) | {
        "group.id": f"{service}-{uuid.uuid4()}",  # the client wants one; nothing is ever committed under it
        "auto.offset.reset": "latest",
        "enable.auto.commit": False,
        "fetch.wait.max.ms": 50,
        "fetch.queue.backoff.ms": 50,
        **settings.client_options(),
    }


def is_incremental(config: Config) -> bool:
    """Whether rebalances of this consumer add and remove (KIP-848) instead of dealing everything anew (classic)."""
    return bool(config.get("group.protocol") == "consumer")


_SAME_ERROR_S = 10.0

_last_logged: dict[str, float] = {}


def _on_client_error(error: KafkaError) -> None:
    """A broker that is away brings hundreds of the same error a second: one line in ten seconds says it."""
    now = time.monotonic()
    if error.fatal() or now - _last_logged.get(error.name(), -_SAME_ERROR_S) >= _SAME_ERROR_S:
        _last_logged[error.name()] = now
        log.warning("kafka", error=error.str(), code=error.name(), fatal=error.fatal())
