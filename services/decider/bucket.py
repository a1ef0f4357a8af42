"""A bucket of calls or tokens: so many at once, and so many a second after that. Pure, the clock passed in."""

import math

JITTER_S = 1.0
"""A reading of the clock this much behind the newest one was taken before it and used after it. Further behind, the
clock itself was set back."""


class Steady:
    """Makes a clock that can go back into one that never does.

    A reading a little behind counts as the newest one. After a clock was set back, time goes on from where it was:
    if it waited until the clock has caught up, a bucket would stay empty, and a breaker open, for all that while.
    """

    __slots__ = ("_ahead_s", "_newest_s")

    def __init__(self) -> None:
        self._newest_s = -math.inf
        self._ahead_s = 0.0

    def at(self, now_s: float) -> float:
        """Seconds for a reading of the clock, never less than before."""
        behind_s = self._newest_s - (now_s + self._ahead_s)
        if behind_s > JITTER_S:
            self._ahead_s += behind_s
        self._newest_s = max(self._newest_s, now_s + self._ahead_s)
        return self._newest_s


class Bucket:
    """Never gives more than `capacity` plus `per_s` times the length of an interval, in any interval. Full at first.

    Args:
        capacity: Most that can be taken at once.
        per_s: How fast it fills again, per second.

    Raises:
        ValueError: one of them is not above 0, or not finite.
    """

    __slots__ = ("_at_s", "_capacity", "_clock", "_level", "_per_s")

    def __init__(self, capacity: float, per_s: float) -> None:
        for name, number in (("capacity", capacity), ("per_s", per_s)):
            if not 0 < number < math.inf:
                raise ValueError(f"{name} of a bucket must be above 0 and finite, not {number}")
        self._capacity = float(capacity)
        self._per_s = float(per_s)
        self._level = self._capacity
        self._at_s: float | None = None
        self._clock = Steady()

    def has(self, amount: float, now_s: float) -> bool:
        """Whether `try_acquire` would give it. Takes nothing."""
        # Above the capacity it could wait for ever; below 0 it would fill the bucket; NaN is neither more nor less.
        if not 0 <= amount <= self._capacity:
            return False
        now_s = self._clock.at(now_s)
        if self._at_s is not None:
            self._level = min(self._capacity, self._level + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        return amount <= self._level

    def try_acquire(self, amount: float, now_s: float) -> bool:
        """Take it if it is there, all or nothing. Never waits; more than the capacity is refused at any time."""
        if not self.has(amount, now_s):
            return False
        self._level -= amount
        return True
