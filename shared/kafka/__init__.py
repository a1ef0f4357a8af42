"""Kafka as Arbiter uses it: the settings that matter, one publisher, one consumer with one owner thread.

Only this package, `shared/cluster.py` and the demo's own broker (`services/cli/broker.py`) import confluent_kafka.
The choices and the measurements behind them: plain `Producer` (the asyncio one holds a steady trickle back), `poll` and
then `consume(n, 0)` (waiting for n messages costs the whole timeout), every call on a consumer from one thread (another
one waits for a whole poll), `murmur2_random` everywhere and the `range` assignor (all else breaks the co-location of a
coin's topics).
"""

from shared.kafka.clients import (
    Config,
    event_consumer,
    event_producer,
    is_incremental,
    reader,
    share_consumer,
    statistics_of,
    tick_consumer,
    tick_producer,
)
from shared.kafka.groups import UNEQUAL_S, CoAssignment, PartitionShare, Place, TicksReader, co_partitioned
from shared.kafka.publishing import MOST_DEAD_BYTES, DeliveryError, Publisher, dead_letter
from shared.kafka.reading import (
    Batch,
    Headers,
    Reader,
    Record,
    Span,
    begins,
    partition_of,
    partitions_of,
    read,
    read_range,
    read_spans,
    spans,
)
from shared.kafka.refusals import is_refusal, refused
from shared.kafka.thread import ConsumerThread

__all__ = [
    "MOST_DEAD_BYTES",
    "UNEQUAL_S",
    "Batch",
    "CoAssignment",
    "Config",
    "ConsumerThread",
    "DeliveryError",
    "Headers",
    "PartitionShare",
    "Place",
    "Publisher",
    "Reader",
    "Record",
    "Span",
    "TicksReader",
    "begins",
    "co_partitioned",
    "dead_letter",
    "event_consumer",
    "event_producer",
    "is_incremental",
    "is_refusal",
    "partition_of",
    "partitions_of",
    "read",
    "read_range",
    "read_spans",
    "reader",
    "refused",
    "share_consumer",
    "spans",
    "statistics_of",
    "tick_consumer",
    "tick_producer",
]
