"""What an exchange allows us in a given time: several sliding windows at once, and a pause when it says so. Pure.

Moments are of a clock that is never set back (`time.monotonic_ns`).
"""

from collections import deque
from collections.abc import Sequence

from services.collector.exchanges.base import Rule


class Allowance:
    """Books what is spent.

    Args:
        share: Part of each rule that is ours, where several processes share one address. Less than one within a
            rule's time becomes one within a longer time.
    """

    def __init__(self, rules: Sequence[Rule], share: float = 1.0) -> None:
        self._rules = [_shared(rule, share) for rule in rules]
        self._spent: list[deque[tuple[int, int]]] = [deque() for _ in rules]
        self._blocked_until_ns = 0

    def reserve(self, now_ns: int, cost: int = 1) -> int:
        """Book `cost` for the earliest moment it is allowed at; that moment in ns (now, or later: wait for it).

        A cost above a whole rule is booked as the whole rule.
        """
        at_ns = max(now_ns, self._blocked_until_ns)
        for (count, window_ns), spent in zip(self._rules, self._spent, strict=True):
            while spent and spent[0][0] <= now_ns - window_ns:
                spent.popleft()
            at_ns = max(at_ns, self._free_at(spent, count, window_ns, min(cost, count)))
        for (count, _), spent in zip(self._rules, self._spent, strict=True):
            spent.append((at_ns, min(cost, count)))
        return at_ns

    @staticmethod
    def _free_at(spent: deque[tuple[int, int]], count: int, window_ns: int, cost: int) -> int:
        """When the window that ends then has room for `cost`; bookings are in the order of their moments."""
        total = cost
        first_ns = spent[-1][0] if spent else 0  # first come, first served
        for at_ns, one in reversed(spent):
            total += one
            if total > count:
                return at_ns + window_ns
        return first_ns

    def block(self, until_ns: int) -> None:
        """Nothing before `until_ns`: the exchange said so."""
        self._blocked_until_ns = max(self._blocked_until_ns, until_ns)

    def blocked_until_ns(self) -> int:
        return self._blocked_until_ns


def _shared(rule: Rule, share: float) -> tuple[int, int]:
    mine = rule.most * share
    if mine >= 1:
        return int(mine), int(rule.seconds * 1e9)
    return 1, int(rule.seconds / mine * 1e9)
