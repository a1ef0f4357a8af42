"""Wiring of the detector: settings, readers, engine, publisher, run."""

import time

from services.detector.engine import Engine
from services.detector.service import ADOPT_MS, BACK_MS, GROUP, Detector
from shared import cluster, kafka, process, topics
from shared.settings import Settings


def main(settings: Settings) -> None:
    """Detect until SIGTERM or SIGINT.

    Raises:
        BrokerUnavailable: exit 3.
        TopicMismatch: topics missing, or not co-partitioned: exit 2.
    """
    stop = process.stop_on_signal()
    needed = [*topics.tick_topics(), topics.FX_RATES, topics.OPPORTUNITIES, topics.REJECTIONS, topics.TICKS_DLQ]
    cluster.require_topics(settings.kafka, needed)
    publisher = kafka.Publisher(kafka.event_producer(settings.kafka, "detector"), drop_when_full=False)
    now_ms = int(time.time() * 1000)
    detector = Detector(
        Engine(settings),
        publisher,
        lambda: kafka.read_range(
            kafka.reader(settings.kafka, "detector"), topics.OPPORTUNITIES, int(time.time() * 1000) - ADOPT_MS
        ),
        lambda record, error: kafka.dead_letter(publisher, record, group=GROUP, stage="decode", error=error),
    )
    rates = kafka.Reader(kafka.reader(settings.kafka, "detector"), [topics.FX_RATES], now_ms - BACK_MS)
    ticks = kafka.TicksReader(
        kafka.tick_consumer(settings.kafka, "detector", GROUP), topics.tick_topics(), BACK_MS, detector.on_owned
    )
    try:
        detector.run(ticks, rates, stop)
    finally:
        ticks.close()
        rates.close()
        publisher.close()
