"""One producer with a thread for its reports; dead letters."""

import functools
import threading
import time
from collections.abc import Callable
from typing import Any

import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from shared import metrics, secrets
from shared.errors import AccessRefused, BrokerUnavailable
from shared.kafka.clients import Config
from shared.kafka.reading import Headers, Record
from shared.kafka.refusals import is_refusal, refused
from shared.topics import dlq

log = structlog.get_logger()

DeliveryError = KafkaError
"""What a delivery callback gets where it is not None; `str()` says why."""

TROUBLE_S = 10.0
"""So long after a message that Kafka did not take a publisher is in trouble."""

MOST_DEAD_BYTES = 900_000
"""Of a value that goes to a dead-letter topic: brokers take 1 MiB for a whole record."""


class Publisher:
    """A producer with a thread that serves its delivery reports.

    Args:
        config: From `tick_producer` or `event_producer`.
        drop_when_full: True for ticks: a full queue drops the message and counts it. False for events: a full
            queue makes the caller wait, and a message that Kafka did not take in time ends the process by
            `BrokerUnavailable` at the next call, because going on would lose it silently.
    """

    def __init__(self, config: Config, *, drop_when_full: bool, full_wait_s: float = 30.0) -> None:
        self._producer = Producer(config)
        self._drop_when_full = drop_when_full
        self._full_wait_s = full_wait_s
        self._lost: str | None = None
        self._refused: AccessRefused | None = None
        self._trouble: tuple[float, str] | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="kafka-publisher", daemon=True)
        self._thread.start()

    def publish(
        self,
        topic: str,
        key: str | bytes | None,
        value: bytes | None,
        headers: Headers | None = None,
        on_delivery: Callable[[KafkaError | None], None] | None = None,
        *,
        then: Callable[[], None] | None = None,
    ) -> bool:
        """Queue one message; False if it was dropped (ticks only).

        `on_delivery` runs in the publisher's thread, with None or the error; it takes over the duty to handle
        a failure. `then`, instead of it, runs there when the message is delivered, and leaves the duty here
        (never for ticks: their client reports failures only).

        Raises:
            BrokerUnavailable: Kafka does not take messages, or an earlier one was lost.
            AccessRefused: we may not write to a topic (ticks, too: no later one would fare better).
        """
        if self._refused is not None:
            raise self._refused
        if self._lost is not None:
            raise BrokerUnavailable(f"Kafka did not take a message: {self._lost}")
        callback = self._report
        if on_delivery is not None:
            callback = functools.partial(self._tell, on_delivery)
        elif then is not None:
            callback = functools.partial(self._report, then=then)
        # Headers only where there are some: the argument alone costs as much as the rest of the call.
        extra: dict[str, Any] = {} if headers is None else {"headers": headers}
        deadline = None
        while True:
            try:
                self._producer.produce(topic, value, key, on_delivery=callback, **extra)
                return True
            except BufferError:
                if self._drop_when_full:
                    metrics.TICKS_DROPPED.labels(topic=topic, reason="queue_full").inc()
                    self._trouble = (time.monotonic(), f"{topic}: the queue to Kafka is full")
                    return False
                now = time.monotonic()
                deadline = deadline or now + self._full_wait_s
                if now > deadline:
                    raise BrokerUnavailable(f"Kafka took no message for {self._full_wait_s:g} s") from None
                self._producer.poll(0.01)
            except KafkaException as error:  # too large, say, or a client that takes nothing more
                said = error.args[0]
                raise (
                    refused(said, topic)
                    if is_refusal(said)
                    else BrokerUnavailable(f"Kafka's client did not take a message for {topic}: {said.str()}")
                ) from None

    def _tell(
        self, on_delivery: Callable[[KafkaError | None], None], error: KafkaError | None, message: Message
    ) -> None:
        if error is not None:
            self._note(error, message)
        on_delivery(error)

    def _report(self, error: KafkaError | None, message: Message, then: Callable[[], None] | None = None) -> None:
        if error is None:
            if then is not None:
                then()
            return
        self._note(error, message)
        if not self._drop_when_full:
            self._lost = f"{message.topic()}: {error.str()}"
            log.error("message lost", topic=message.topic(), error=error.str())

    def _note(self, error: KafkaError, message: Message) -> None:
        """Count what was not delivered."""
        topic = message.topic() or "?"
        self._trouble = (time.monotonic(), f"{topic}: {error.str()}")
        if is_refusal(error):
            self._refused = refused(error, topic)
        if self._drop_when_full:
            metrics.TICKS_DROPPED.labels(topic=topic, reason=error.name()).inc()
        else:
            metrics.EVENTS_LOST.labels(topic=topic).inc()

    def _serve(self) -> None:
        while not self._closing.is_set():
            try:
                self._producer.poll(0.1)
            except KafkaException as fatal:  # the client takes nothing more; what was queued is reported as lost
                said = fatal.args[0]
                log.error("kafka", error=said.str(), code=said.name(), fatal=True)
                self._lost = said.str()
                if is_refusal(said):
                    self._refused = refused(said)

    def brokers(self, timeout_s: float) -> int:
        """Ask Kafka how many brokers there are.

        Raises:
            BrokerUnavailable: no answer.
        """
        try:
            return len(self._producer.list_topics(timeout=timeout_s).brokers)
        except KafkaException as error:
            raise BrokerUnavailable(error.args[0].str()) from None

    def trouble(self) -> str | None:
        """What went wrong with messages in the last seconds; None: nothing."""
        if self._lost is not None:
            return f"a message was lost: {self._lost}"
        if self._trouble is None:
            return None
        at, words = self._trouble
        age_s = time.monotonic() - at
        return f"a message was not delivered {age_s:.0f} s ago: {words}" if age_s <= TROUBLE_S else None

    def flush(self, timeout_s: float = 10.0) -> int:
        """Wait for everything queued; returns how many messages are left.

        The publisher's thread hears of each; the client's own `flush` would take its reports over, and a fatal error
        with them.
        """
        deadline = time.monotonic() + timeout_s
        while (left := len(self._producer)) and time.monotonic() < deadline:
            time.sleep(0.002)  # the client has no event for it
        return left

    def confirm(self, timeout_s: float = 30.0) -> None:
        """Wait until all that was published is delivered.

        Raises:
            BrokerUnavailable: some of it is not, or was lost.
        """
        left = self.flush(timeout_s)
        if self._refused is not None:
            raise self._refused
        if left or self._lost is not None:
            raise BrokerUnavailable(f"Kafka did not take a message: {self._lost or f'{left} wait'}")

    def close(self, timeout_s: float = 10.0) -> int:
        """Flush and stop; returns how many messages were given up (also logged)."""
        left = self.flush(timeout_s)
        self._closing.set()
        self._thread.join(1.0)
        if left:
            log.error("messages given up at the end", count=left)
        return left


def dead_letter(
    publisher: Publisher,
    record: Record,
    *,
    group: str,
    stage: str,
    error: Exception,
    on_delivery: Callable[[KafkaError | None], None] | None = None,
) -> None:
    """Put a record that cannot be processed on its dead-letter topic: original key, value and headers, plus why.

    The value is what came; the words about it are ours, and a key that a sender put there is blacked out in them.
    Of a value beside which the reasons would not fit into a record, the beginning; `__dlq.cut` says how much there was.
    """
    words = secrets.redact(str(error))
    why = {
        "__dlq.topic": record.topic,
        "__dlq.partition": str(record.partition),
        "__dlq.offset": str(record.offset),
        "__dlq.timestamp": str(record.timestamp_ms),
        "__dlq.group": group,
        "__dlq.stage": stage,
        "__dlq.error.class": type(error).__name__,
        "__dlq.error.message": words[:500],
    }
    value = record.value
    if value is not None and len(value) > MOST_DEAD_BYTES:
        why["__dlq.cut"] = str(len(value))
        value = value[:MOST_DEAD_BYTES]
    headers = [*record.headers, *((name, text.encode()) for name, text in why.items())]
    metrics.DEAD_LETTERS.labels(topic=record.topic, stage=stage).inc()
    log.warning("dead letter", topic=record.topic, partition=record.partition, offset=record.offset, error=words)
    publisher.publish(dlq(record.topic), record.key, value, headers, on_delivery)
