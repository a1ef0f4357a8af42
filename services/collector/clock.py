"""Two clocks that are not ours: how far an exchange's is off, and how far its feed lags behind. Pure.

The offset comes from the exchange's time endpoint: asked at t0, answered at t1 with the server's time s,
`offset = s - (t0 + t1) / 2`, wrong by at most half the round trip (and by how coarse the answer is). The sample with
the shortest round trip counts.

Lag needs no trust in either clock: `(received - sent) - min over a window of (received - sent)` is free of any constant
offset and rises when the exchange, the network or we ourselves fall behind. A negative raw difference is a sign that
the clocks disagree: it is counted and told, never clamped.
"""

from collections import deque
from typing import NamedTuple


class Offset(NamedTuple):
    """The exchange's clock minus ours, in ns; the truth is within `error_ns` of it."""

    offset_ns: int
    error_ns: int
    round_trip_ns: int
    at_ns: int


def offset(sent_ns: int, server_ns: int, received_ns: int, coarse_ns: int) -> Offset:
    """One sample. `coarse_ns`: how coarse the server's answer is (a second for one that says whole seconds).

    A coarse clock has cut the rest off, so half of that is added.
    """
    round_trip_ns = received_ns - sent_ns
    middle_ns = (sent_ns + received_ns) // 2
    return Offset(
        server_ns + coarse_ns // 2 - middle_ns, (round_trip_ns + coarse_ns + 1) // 2, round_trip_ns, received_ns
    )


class ClockOffset:
    """The best of the last samples.

    Args:
        keep: How many samples are looked at: old ones leave, because clocks drift.
    """

    def __init__(self, keep: int = 10) -> None:
        self._samples: deque[Offset] = deque(maxlen=keep)

    def add(self, sample: Offset) -> None:
        """Take in a sample; one of a clock that was set back meanwhile says nothing."""
        if sample.round_trip_ns >= 0:
            self._samples.append(sample)

    def best(self) -> Offset | None:
        """The sample with the shortest round trip."""
        return min(self._samples, key=lambda sample: sample.round_trip_ns, default=None)


WINDOW_NS = 300_000_000_000
BUCKET_NS = 30_000_000_000
"""The window moves in steps of this."""

STEP_NS = 1_000_000_000
CONFIRMED = 5
"""A time that jumps by more than a second either way is not believed until so many in a row do: one wrong digit would
make the feed look late for minutes. After that the exchange's clock was set, and what was seen before says nothing."""


class FeedLag:
    """How far a feed is behind the best that it has been in the last five minutes."""

    __slots__ = ("_buckets", "_floor_ns", "_last_ns", "_odd", "_seen_ns", "_start_ns", "negative")

    def __init__(self) -> None:
        self._buckets: deque[tuple[int, int]] = deque()  # start, and least difference since; the newest is last
        self._start_ns = 0
        self._floor_ns: int | None = None  # least difference of the window
        self._last_ns = 0
        self._seen_ns = 0
        self._odd = 0
        self.negative = 0
        """How many frames came before they were sent, by the two clocks."""

    def seen(self, received_ns: int, exchange_ns: int) -> None:
        """A frame with its time."""
        raw_ns = received_ns - exchange_ns
        floor_ns = self._floor_ns
        if raw_ns < 0:
            self.negative += 1
        if floor_ns is not None:
            # A feed that falls behind does so no faster than time passes.
            if raw_ns < floor_ns - STEP_NS or raw_ns > self._last_ns + received_ns - self._seen_ns + STEP_NS:
                self._odd += 1
                if self._odd < CONFIRMED:
                    return
                self._buckets.clear()
                floor_ns = self._floor_ns = None
            self._odd = 0
        self._last_ns = raw_ns
        self._seen_ns = received_ns
        if floor_ns is None or not 0 <= received_ns - self._start_ns < BUCKET_NS:
            self._roll(received_ns, raw_ns)
        elif raw_ns < self._buckets[-1][1]:
            self._buckets[-1] = (self._start_ns, raw_ns)
            if raw_ns < floor_ns:
                self._floor_ns = raw_ns

    def _roll(self, received_ns: int, raw_ns: int) -> None:
        """A new bucket; old ones leave."""
        buckets = self._buckets
        while buckets and buckets[0][0] <= received_ns - WINDOW_NS:
            buckets.popleft()
        buckets.append((received_ns, raw_ns))
        self._start_ns = received_ns
        self._floor_ns = min(least for _, least in buckets)

    def forget(self) -> None:
        """Our own clock was set: what was seen before says nothing."""
        self._buckets.clear()
        self._floor_ns, self._odd = None, 0

    def lag_ns(self, now_ns: int, within_ns: int = 2_000_000_000) -> int | None:
        """Lag of the newest frame; None if there was none within the last `within_ns`."""
        if self._floor_ns is None or now_ns - self._seen_ns > within_ns:
            return None
        return self._last_ns - self._floor_ns

    def raw_ns(self) -> int | None:
        """Received minus sent of the newest frame, by two clocks: may be negative."""
        return None if self._floor_ns is None else self._last_ns
