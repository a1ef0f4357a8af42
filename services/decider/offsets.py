"""Which offset may be committed when work finishes in any order. Pure."""

from collections import deque


class OffsetTracker:
    """One partition during one assignment: the offset after the longest finished beginning."""

    def __init__(self) -> None:
        self._queue: deque[int] = deque()
        self._done: set[int] = set()

    def add(self, offset: int) -> None:
        """A record was read; in the order of the partition."""
        self._queue.append(offset)

    def complete(self, offset: int) -> int | None:
        """A record is dealt with; the next offset to read if the finished beginning has grown, else None."""
        self._done.add(offset)
        last = None
        while self._queue and self._queue[0] in self._done:
            last = self._queue.popleft()
            self._done.discard(last)
        return None if last is None else last + 1

    def in_flight(self) -> int:
        """Records read and not dealt with."""
        return len(self._queue) - len(self._done)
