"""How a service sees its own clients of Kafka: librdkafka's statistics as metrics, and whether Kafka answers at all.

Statistics: https://github.com/confluentinc/librdkafka/blob/master/STATISTICS.md
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import orjson
import structlog
from prometheus_client import Gauge

from shared import metrics
from shared.errors import BrokerUnavailable

log = structlog.get_logger()

STATISTICS_MS = 5000

ASK_S = 3.0
"""How often Kafka is asked, and how long one answer may take."""

SILENT_S = 12.0
"""Without an answer for so long Kafka is away: four questions, so that one slow broker of several says nothing."""

QUANTILES = {"p50": "0.5", "p99": "0.99"}

Json = dict[str, Any]


class Statistics:
    """`stats_cb` of one client. Called in the thread that polls; other threads may read the attributes.

    Args:
        client: What the client is for: the label of its metrics.

    Attributes:
        joined: Whether the group has dealt its partitions and this member has its own, perhaps none.
        partitions: How many of them are assigned.
    """

    def __init__(self, client: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.client = client
        self.joined = False
        self.partitions = 0
        self._clock = clock
        self._at: float | None = None
        self._counted: dict[tuple[str, str], int] = {}
        self._topics: set[str] = set()

    def __call__(self, text: str) -> None:
        try:
            self.take(orjson.loads(text))
        except Exception as error:  # it would end the poll that brought the statistics, and with it the service
            log.error("statistics of Kafka's client", client=self.client, error=f"{type(error).__name__}: {error}")

    def age_s(self) -> float | None:
        """How old they are; None before the first ones."""
        return None if self._at is None else self._clock() - self._at

    def take(self, found: Json) -> None:
        """Take in what librdkafka says."""
        real = [broker for broker in found["brokers"].values() if broker["source"] not in ("internal", "logical")]
        # A broker from bootstrap.servers has no number until it is known; then it stands in the list a second time.
        metrics.KAFKA_BROKERS_UP.labels(self.client).set(
            sum(broker["nodeid"] >= 0 and broker["state"] == "UP" for broker in real)
        )
        for quantile, label in QUANTILES.items():
            measured = [broker["rtt"][quantile] for broker in real if broker.get("rtt", {}).get("cnt")]
            # In microseconds. What was not measured lately is not shown: an old value would look like a new one.
            _set(metrics.KAFKA_RTT_MS, (self.client, label), max(measured) / 1000 if measured else None)
        failed = sum(
            self._new((name, count), broker.get(count, 0))
            for name, broker in found["brokers"].items()
            for count in ("txerrs", "rxerrs", "req_timeouts")
            if broker["source"] != "internal"
        )
        metrics.KAFKA_ERRORS.labels(self.client).inc(failed)
        if found["type"] == "producer":
            metrics.KAFKA_QUEUE.labels(self.client).set(found["msg_cnt"])
            metrics.KAFKA_QUEUE_MAX.labels(self.client).set(found["msg_max"])
            metrics.KAFKA_QUEUE_BYTES.labels(self.client).set(found["msg_size"])
        if "cgrp" in found:
            heard = any(broker.get("rtt", {}).get("cnt") for broker in found["brokers"].values())
            self._member(found["cgrp"], found["topics"], heard)
        self._at = self._clock()

    def _member(self, group: Json, topics: Json, heard: bool) -> None:
        """`heard`: some broker has answered since the last statistics; if none has, nobody knows the ends."""
        metrics.REBALANCES.labels(self.client).inc(self._new(("cgrp", "rebalance_cnt"), group["rebalance_cnt"]))
        held = {name: list(_held(topic["partitions"])) for name, topic in topics.items()}
        held = {name: partitions for name, partitions in held.items() if partitions}
        for name in self._topics - held.keys():  # lost to another member: what was true is not any more
            metrics.CONSUMER_LAG.labels(name).set(0)
            metrics.CONSUMER_PARTITIONS.labels(name).set(0)
        self._topics |= held.keys()
        for name, partitions in held.items():
            behind = [lag for lag in map(_lag, partitions) if lag is not None]
            _set(metrics.CONSUMER_LAG, (name,), sum(behind) if behind and heard else None)
            metrics.CONSUMER_PARTITIONS.labels(name).set(len(partitions))
        self.partitions = sum(map(len, held.values()))
        self.joined = group["state"] == "up" and group["join_state"] == "steady"

    def assignment(self) -> tuple[bool, str]:
        """Whether the group has dealt, and in words."""
        age_s = self.age_s()
        if age_s is None or age_s > 3 * STATISTICS_MS / 1000:
            return False, "nothing heard of the group" + ("" if age_s is None else f" for {age_s:.0f} s")
        if not self.joined:
            return False, "joining the group, or a rebalance is under way"
        return True, f"{self.partitions} partitions" if self.partitions else "standby: others have all partitions"

    def _new(self, of: tuple[str, str], total: int) -> int:
        """How much a count that only grows has grown."""
        before = self._counted.get(of, 0)
        self._counted[of] = total
        return max(0, total - before)


def _held(partitions: dict[str, Json]) -> Iterable[Json]:
    """Those that are assigned. Number -1 is librdkafka's own, for messages without one."""
    for number, partition in partitions.items():
        if number != "-1" and partition["desired"] and partition["fetch_state"] not in ("none", "stopping", "stopped"):
            yield partition


def _lag(partition: Json) -> int | None:
    """Messages between what was processed and the end; None while one of the two is not known. Where nothing was
    processed yet: from where reading begins."""
    if partition["hi_offset"] < 0:
        return None
    for place in ("stored_offset", "committed_offset", "next_offset"):
        if partition[place] >= 0:
            return int(max(0, partition["hi_offset"] - partition[place]))
    return None


def _set(gauge: Gauge, labels: tuple[str, ...], value: float | None) -> None:
    """None takes the series away."""
    if value is not None:
        gauge.labels(*labels).set(value)
        return
    with contextlib.suppress(KeyError):  # it was never there
        gauge.remove(*labels)


class Pulse:
    """Asks Kafka every few seconds whether it is there, in a thread of its own: the answer may not come.

    An open connection says nothing of a broker that has stopped, and a service that has nothing to send would not
    notice.

    Args:
        ask: How many brokers there are, within so many seconds; `Publisher.brokers`.
        trouble: What went wrong with messages lately, or None; `Publisher.trouble`.
    """

    def __init__(
        self,
        ask: Callable[[float], int],
        trouble: Callable[[], str | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._trouble = trouble
        self._clock = clock
        self._answered: float | None = None
        self._brokers = 0
        self._words = ""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kafka-pulse", daemon=True)

    def __enter__(self) -> "Pulse":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()  # not waited for: it may hang in a question for seconds

    def look(self) -> tuple[bool, str]:
        """Whether Kafka is there and takes our messages, and in words."""
        answered = self._answered
        if answered is None:
            return False, f"Kafka has not answered yet{self._words}"
        age_s = self._clock() - answered
        if age_s > SILENT_S:
            return False, f"no answer from Kafka for {age_s:.0f} s{self._words}"
        trouble = self._trouble()
        if trouble is not None:
            return False, trouble
        return True, f"{self._brokers} brokers, answered {age_s:.0f} s ago"

    def ask(self) -> None:
        """Ask once."""
        try:
            self._brokers = self._ask(ASK_S)
        except BrokerUnavailable as error:
            self._words = f": {error}"
        else:
            self._answered, self._words = self._clock(), ""

    def _run(self) -> None:
        while not self._closing.is_set():
            self.ask()
            self._closing.wait(ASK_S)
