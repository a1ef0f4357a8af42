"""Edge after delay: what an opportunity's books are worth some time after it was published. Pure.

The moment of an opening is its `detected_ns`: before it nobody could know. Its edge is computed again from the books as
they stand `delay` later, all messages of that moment taken in and none after it.
"""

import heapq
from collections.abc import Collection, Sequence
from itertools import count

from services.detector.gap import Gap
from services.detector.lifecycle import known_bps
from services.detector.plain import NEVER_NS
from services.detector.verdict import MS, Judge
from shared.messages import DelayedEdge, Opportunity


class Outcomes:
    """The edges that are still to be computed.

    Args:
        delays_ms: After each opening.
    """

    def __init__(self, delays_ms: Sequence[int], judge: Judge) -> None:
        self._delays_ms = delays_ms
        self._judge = judge
        self._order = count()
        self._due: list[tuple[int, int, int, Gap, Opportunity]] = []
        self.next_ns = NEVER_NS
        """When the next one can be computed: time must have passed it."""

    def expect(self, gap: Gap, opened: Opportunity, published: Collection[int] = ()) -> None:
        """Compute all delays of an opening, but those that were published already (ms)."""
        for delay_ms in self._delays_ms:
            if delay_ms not in published:
                due = opened.detected_ns + delay_ms * MS
                heapq.heappush(self._due, (due, next(self._order), delay_ms, gap, opened))
        self.next_ns = self._due[0][0] if self._due else NEVER_NS

    def drop(self, bases: Collection[str]) -> None:
        """Another owner computes those of these coins."""
        self._due = [row for row in self._due if row[4].base not in bases]
        heapq.heapify(self._due)
        self.next_ns = self._due[0][0] if self._due else NEVER_NS

    def until(self, now_ns: int) -> list[DelayedEdge]:
        """Those whose moment lies before `now_ns`, in order."""
        found = []
        while self._due and self._due[0][0] < now_ns:
            due_ns, _, delay_ms, gap, opened = heapq.heappop(self._due)
            found.append(self._edge(gap, opened, delay_ms, due_ns))
        self.next_ns = self._due[0][0] if self._due else NEVER_NS
        return found

    def _edge(self, gap: Gap, opened: Opportunity, delay_ms: int, due_ns: int) -> DelayedEdge:
        numbers = None if self._judge.failed(gap, due_ns) else self._judge.numbers(gap, due_ns)
        return DelayedEdge.trusted(
            opportunity_id=opened.opportunity_id,
            base=opened.base,
            route=opened.route,
            buy_exchange=gap.buy.exchange,
            buy_symbol=gap.buy.symbol,
            sell_exchange=gap.sell.exchange,
            sell_symbol=gap.sell.symbol,
            delay_ms=delay_ms,
            net_bps=None if numbers is None else known_bps(numbers.net_bps),
            profit_usd=None if numbers is None else numbers.profit,
            executable=numbers is not None and not numbers.reasons,
            missed=numbers is None,
            opened_net_bps=opened.net_bps,
            evaluated_ns=due_ns,
        )
