"""Every metric, in one place, with its unit and meaning. `shared/health.py` serves them.

Names end in their unit (`_ms`, `_usd`, `_bytes`) or in `_total`. Labels come from closed lists and from the settings:
the number of series is bounded.
"""

import functools
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

_LATENCY_MS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
_FAST_MS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 500)


@functools.cache
def series(family: Counter | Gauge | Histogram, *labels: str) -> Any:
    """The series of a family with these labels, in its order: few, and finding one takes as long as counting."""
    return family.labels(*labels)


# Every service
INFO = Gauge("arb_service_info", "1; which service this is", ["service", "version"])
READY = Gauge("arb_ready", "1 while the service does its job, by what that takes", ["check"])
LOOP_LAG_MS = Histogram("arb_loop_lag_ms", "How late the main loop came to its heartbeat (ms)", buckets=_LATENCY_MS)

# Kafka, as librdkafka sees it (every five seconds, by client: what the service uses it for)
KAFKA_QUEUE = Gauge("arb_kafka_queue_messages", "Messages waiting in the producer", ["client"])
KAFKA_QUEUE_MAX = Gauge("arb_kafka_queue_max_messages", "Messages that the producer can hold", ["client"])
KAFKA_QUEUE_BYTES = Gauge("arb_kafka_queue_bytes", "Bytes waiting in the producer", ["client"])
KAFKA_RTT_MS = Gauge("arb_kafka_rtt_ms", "Round trip to the slowest broker (ms)", ["client", "quantile"])
KAFKA_BROKERS_UP = Gauge("arb_kafka_brokers_up", "Brokers that the client is connected to", ["client"])
KAFKA_ERRORS = Counter("arb_kafka_request_errors_total", "Requests that failed or timed out", ["client"])
CONSUMER_LAG = Gauge("arb_consumer_lag_messages", "Messages not yet processed, of what is assigned", ["topic"])
CONSUMER_PARTITIONS = Gauge("arb_consumer_partitions", "Partitions assigned to this member", ["topic"])
REBALANCES = Counter("arb_consumer_rebalances_total", "Rebalances that this member took part in", ["client"])
TICKS_DROPPED = Counter("arb_ticks_dropped_total", "Ticks given up because Kafka was slow", ["topic", "reason"])
EVENTS_LOST = Counter("arb_events_lost_total", "Events that Kafka did not take in time", ["topic"])
DEAD_LETTERS = Counter("arb_dead_letters_total", "Records put on a dead-letter topic", ["topic", "stage"])

# Collector
FRAME_TO_TICK_MS = Histogram(
    "arb_frame_to_tick_ms",
    "From a frame's receipt to its tick handed to Kafka's client (ms)",
    ["exchange"],
    buckets=_FAST_MS,
)
FRAMES = Counter("arb_frames_total", "Frames received", ["exchange"])
TICKS = Counter("arb_ticks_total", "Messages published", ["exchange", "kind"])
BOOK_STATE = Gauge("arb_book_live", "1 while the book is live", ["exchange", "symbol"])
BOOK_CHANGES = Counter("arb_book_state_changes_total", "Changes of a book's state", ["exchange", "state"])
RECONNECTS = Counter("arb_reconnects_total", "Connections made again", ["exchange", "reason"])
CONNECTIONS = Gauge("arb_connections", "Open connections", ["exchange", "protocol"])
DOUBTS = Counter("arb_book_doubts_total", "Signs that a book was wrong", ["exchange", "kind"])
REST = Counter("arb_rest_requests_total", "REST requests", ["exchange", "outcome"])
CLOCK_OFFSET_MS = Gauge("arb_clock_offset_ms", "Exchange's clock minus ours (ms)", ["exchange"])
CLOCK_ERROR_MS = Gauge("arb_clock_error_ms", "Bound of the error of that offset (ms)", ["exchange"])
FEED_LAG_MS = Gauge("arb_feed_lag_ms", "Newest frame's delay over the least of five minutes (ms)", ["exchange"])
EARLY_FRAMES = Counter("arb_frames_early_total", "Frames received before they were sent, by both clocks", ["exchange"])
INSTRUMENTS_AGE_S = Gauge("arb_instruments_age_s", "Age of the exchange's metadata in use (s)", ["exchange"])

# Detector
CO_PARTITIONED = Gauge("arb_co_partitioned", "1 if the last assignment put a coin's topics together, 0 if not")
BOOKS = Gauge("arb_books", "Books that the detector holds", ["exchange", "state"])
OPEN = Gauge("arb_gaps_open", "Verdicts open now", ["kind"])
FRAME_TO_OPPORTUNITY_MS = Histogram(
    "arb_frame_to_opportunity_ms",
    "From the receipt of the frame that made a gap pay to its opportunity, less persistence (ms)",
    buckets=_LATENCY_MS,
)
TICKS_READ = Counter("arb_ticks_read_total", "Ticks taken in", ["kind"])
TICKS_OLD = Counter("arb_ticks_old_total", "Ticks not newer than the one held", ["exchange"])
TICKS_EARLY = Counter("arb_ticks_early_total", "Ticks dropped: received more than a second from now", ["exchange"])
TICKS_UNREADABLE = Counter("arb_ticks_unreadable_total", "Books with a level that is none", ["exchange"])
OPPORTUNITIES = Counter("arb_opportunities_total", "Opportunities by phase", ["phase"])
REJECTIONS = Counter("arb_rejections_total", "Rejections opened, by first reason", ["reason"])
CROSSINGS = Counter("arb_crossings_total", "Gross crossings that are over, accepted once or never", ["outcome"])
OUTCOMES = Counter("arb_outcomes_total", "Edges computed after a delay", ["seen"])
TICK_AGE_MS = Histogram(
    "arb_tick_age_ms", "Age of the newest tick that the detector has read, each 50 ms (ms)", buckets=_LATENCY_MS
)

# Decider
OPPORTUNITY_AGE_MS = Histogram(
    "arb_opportunity_age_ms", "Age of an opportunity when the decider takes it in (ms)", buckets=_LATENCY_MS
)
DECISION_MS = Histogram(
    "arb_decision_ms", "From an opportunity taken in to its decision handed to Kafka's client (ms)", buckets=_LATENCY_MS
)
DECISIONS = Counter("arb_decisions_total", "Decisions", ["outcome", "mode"])
MODEL_CALLS = Counter("arb_model_calls_total", "Calls of models", ["provider", "role", "outcome"])
MODEL_LATENCY_MS = Histogram("arb_model_latency_ms", "Time of a model call (ms)", ["provider"], buckets=_LATENCY_MS)
MODEL_COST_USD = Counter("arb_model_cost_usd_total", "Cost of model calls (USD)", ["provider"])
MODEL_TOKENS = Counter("arb_model_tokens_total", "Tokens used: in, cached (of those), out", ["provider", "kind"])
MODEL_GUARD = Gauge("arb_model_guard", "1 for the state in which a model's guard is", ["provider", "model", "state"])
BRIER = Gauge("arb_brier", "Brier score by the weights file: 0 is perfect, 0.25 a coin", ["role", "model"])
ROLLBACKS = Counter("arb_candidate_rollbacks_total", "Candidates that were rolled back", ["role", "model"])
PANEL_MS = Histogram("arb_panel_ms", "Time of a panel (ms)", buckets=_LATENCY_MS)
BUDGET_LEFT_USD = Gauge("arb_budget_left_usd", "Left under a cap (USD)", ["cap"])
KILL_SWITCH = Gauge("arb_kill_switch", "1 while the kill switch is on")
DECIDER_IN_FLIGHT = Gauge("arb_decider_in_flight", "Opportunities read and not decided yet")
