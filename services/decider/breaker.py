"""The circuit breaker of one model at one provider: whether to ask it now, from how it has answered. Pure."""

import math
from collections import deque
from enum import StrEnum

from services.decider.bucket import Steady
from shared.settings import GuardSettings

MOST_CALLS = 4096
"""Calls of a window that are kept at most (the newest): more than three times what the default bucket lets through."""


class State(StrEnum):
    """Of a breaker. Closed list."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Result(StrEnum):
    """What a call says about the model. Closed list.

    NEUTRAL: nothing, as when it was never made, was cut off unneeded, or was refused for what it said.
    """

    OK = "ok"
    SLOW = "slow"
    FAILED = "failed"
    LATE = "late"
    NEUTRAL = "neutral"


class Breaker:
    """Closed lets every call through, open none, half-open one at a time (a trial).

    | from      | on                                                                | to        |
    | --------- | ----------------------------------------------------------------- | --------- |
    | closed    | `consecutive` failures or lates in a row                          | open      |
    | closed    | error rate above `error_share` (`error_min_calls` or more),       | open      |
    |           | or above `error_share_few` (`error_min_calls_few` or more)        |           |
    | closed    | none of these, but late or slow are more than `slow_share`        | open,     |
    |           | (`slow_min_calls` or more)                                        | for slow  |
    | open      | cool-down over, and no call from before it opened is under way    | half-open |
    | half-open | a good trial, the `successes_to_close`th since the last bad one   | closed    |
    | half-open | a good trial before that                                          | half-open |
    |           | (open for `slow_probe_s` if it opened for slow)                   |           |
    | half-open | a bad trial                                                       | open      |
    | half-open | a neutral trial, or none reported for `lost_after_s`              | half-open |
    | any       | anything else                                                     | the same  |

    What counts for which rule, each looked at after every call that is not neutral:

    - in a row: FAILED and LATE, ended by OK and SLOW. It has no window.
    - error rate: FAILED of OK, SLOW and FAILED. A late call is in neither number: nobody knows how it would have
      ended, and as a call without an error it would hide those of others.
    - slow: SLOW and LATE of all four.

    The cool-down is `cooldown_s`, doubled by each bad trial up to `cooldown_max_s`, and `cooldown_s` again once it has
    closed. A model that opened it for being slow is tried once per `slow_probe_s` instead, whatever the trials say,
    and a slow trial is a bad one; otherwise SLOW is a good one. Once closed, the window and the row begin anew.

    A report does not say which call it is of. So no trial begins while a call let through before it opened may still
    report, and whatever else reports while it is not closed is ignored.

    Args:
        settings: The section `[guards]`.
        lost_after_s: A call that has not reported for so long never will. Must be longer than any call.
    """

    def __init__(self, settings: GuardSettings, lost_after_s: float) -> None:
        self._settings = settings
        self._lost_after_s = lost_after_s
        self._clock = Steady()
        # A minimum that the window could not hold would never be reached.
        self._most_calls = max(
            MOST_CALLS, settings.error_min_calls, settings.error_min_calls_few, settings.slow_min_calls
        )
        self._first_cooldown_s = min(settings.cooldown_s, settings.cooldown_max_s)
        self._in_flight = 0  # let through while closed, not yet reported
        self._in_flight_since_s = -math.inf  # when the newest of them was let through
        self._close()

    def _close(self) -> None:
        self._window: deque[tuple[float, Result]] = deque()
        self._counts = dict.fromkeys(Result, 0)  # of what is in the window
        self._row = 0
        self._tripped = False
        self._for_slow = False
        self._until_s = -math.inf
        self._cooldown_s = self._first_cooldown_s
        self._trial_since_s: float | None = None
        self._good = 0

    def state(self, now_s: float) -> State:
        """Half-open: a trial is under way, or could begin."""
        return self._state(self._clock.at(now_s))

    def allows(self, now_s: float) -> bool:
        """Whether `try_acquire` would let a call through. Takes nothing."""
        return self._allows(self._clock.at(now_s))

    def try_acquire(self, now_s: float) -> bool:
        """Let a call through if the state allows it; it must then be reported, even if it is never made."""
        now_s = self._clock.at(now_s)
        if not self._allows(now_s):
            return False
        if self._tripped:
            self._in_flight = 0
            self._trial_since_s = now_s
            return True
        if now_s - self._in_flight_since_s >= self._lost_after_s:
            self._in_flight = 0
        self._in_flight += 1
        self._in_flight_since_s = now_s
        return True

    def report(self, result: Result, now_s: float) -> str | None:
        """What became of a call. If that opened a closed breaker or closed an open one: words for an operator."""
        now_s = self._clock.at(now_s)
        if not self._tripped:
            self._in_flight = max(self._in_flight - 1, 0)
            return None if result == Result.NEUTRAL else self._count(result, now_s)
        if self._in_flight:
            self._in_flight -= 1
            return None
        if not self._trial_under_way(now_s):
            return None
        self._trial_since_s = None
        return None if result == Result.NEUTRAL else self._judge_trial(result, now_s)

    def _state(self, now_s: float) -> State:
        if not self._tripped:
            return State.CLOSED
        return State.HALF_OPEN if self._trial_under_way(now_s) or self._allows(now_s) else State.OPEN

    def _allows(self, now_s: float) -> bool:
        if not self._tripped:
            return True
        reported = not self._in_flight or now_s - self._in_flight_since_s >= self._lost_after_s
        return now_s >= self._until_s and reported and not self._trial_under_way(now_s)

    def _trial_under_way(self, now_s: float) -> bool:
        return self._trial_since_s is not None and now_s - self._trial_since_s < self._lost_after_s

    def _count(self, result: Result, now_s: float) -> str | None:
        """Take in a call while closed, and open if a rule says so."""
        self._window.append((now_s, result))
        self._counts[result] += 1
        while now_s - self._window[0][0] >= self._settings.window_s or len(self._window) > self._most_calls:
            self._counts[self._window.popleft()[1]] -= 1
        self._row = self._row + 1 if result in (Result.FAILED, Result.LATE) else 0
        why = self._failing()
        if why is None:
            why = self._slow()
            if why is None:
                return None
            self._for_slow = True
        self._tripped = True
        wait_s = self._wait(now_s)
        return f"breaker opened: {why}; tried again in {wait_s:g} s"

    def _failing(self) -> str | None:
        limits, counts = self._settings, self._counts
        if self._row >= limits.consecutive:
            return f"{self._row} failures or late answers in a row"
        failed = counts[Result.FAILED]
        calls = failed + counts[Result.OK] + counts[Result.SLOW]
        for share, least in (
            (limits.error_share, limits.error_min_calls),
            (limits.error_share_few, limits.error_min_calls_few),
        ):
            if calls >= least and failed / calls > share:
                return f"{failed} of {calls} calls failed within {limits.window_s:g} s"
        return None

    def _slow(self) -> str | None:
        limits, calls = self._settings, len(self._window)
        slow = self._counts[Result.SLOW] + self._counts[Result.LATE]
        if calls >= limits.slow_min_calls and slow / calls > limits.slow_share:
            return f"{slow} of {calls} answers slow or late within {limits.window_s:g} s"
        return None

    def _judge_trial(self, result: Result, now_s: float) -> str | None:
        good = result == Result.OK or (result == Result.SLOW and not self._for_slow)
        if not good:
            self._good = 0
            self._cooldown_s = min(2 * self._cooldown_s, self._settings.cooldown_max_s)
            self._wait(now_s)
            return None
        self._good += 1
        if self._good >= self._settings.successes_to_close:
            answers = "1 good answer" if self._good == 1 else f"{self._good} good answers"
            self._close()
            return f"breaker closed: {answers} since the last bad one"
        if self._for_slow:
            self._wait(now_s)
        return None

    def _wait(self, now_s: float) -> float:
        """Stay open from now on for as long as the reason asks; seconds."""
        wait_s = self._settings.slow_probe_s if self._for_slow else self._cooldown_s
        self._until_s = now_s + wait_s
        return wait_s
