"""The least that any detector on Kafka does: read ticks, and write a message of an opportunity's size where one is due.

Started by `latency.py`, with the same clients and settings as the detector. A tick at which a message is due carries
the mark; it is looked for in the bytes, nothing is parsed. The message is the tick with blanks behind it: the driver
finds out of it when it sent the tick.

    python benchmarks/relay.py '{"servers": ..., "group": ..., "topic": ..., "size": ..., "mark": ...}'
"""

import json
import sys

from services.detector.service import BATCH, WAIT_S
from shared import kafka, process, topics
from shared.settings import KafkaSettings


def main() -> None:
    case = json.loads(sys.argv[1])
    stop = process.stop_on_signal()
    settings = KafkaSettings(servers=case["servers"], options=case["options"])
    mark, size, topic = case["mark"].encode(), case["size"], case["topic"]
    publisher = kafka.Publisher(kafka.event_producer(settings, "relay"), drop_when_full=False)
    config = kafka.tick_consumer(settings, "relay", case["group"])
    reader = kafka.TicksReader(config, topics.tick_topics(), 0, lambda _: None)
    try:
        while not stop.is_set():
            for record in reader.read(BATCH, WAIT_S):
                if record.value and mark in record.value:
                    publisher.publish(topic, record.key, record.value.ljust(size))
    finally:
        reader.close()
        publisher.close()


if __name__ == "__main__":
    main()
