"""Offsets against a naive model."""

from hypothesis import given
from hypothesis import strategies as st

from services.decider.offsets import OffsetTracker


@given(st.permutations(range(12)), st.integers(0, 12))
def test_only_the_finished_beginning_is_stored_whatever_the_order(order, start):
    tracker = OffsetTracker()
    offsets = [start + 2 * n for n in range(12)]  # offsets may have holes
    for offset in offsets:
        tracker.add(offset)
    finished: set[int] = set()
    stored = None
    for index in order:
        before = stored
        next_offset = tracker.complete(offsets[index])
        finished.add(offsets[index])
        stored = next_offset if next_offset is not None else stored
        beginning = [offset for n, offset in enumerate(offsets) if set(offsets[: n + 1]) <= finished]
        assert stored == (beginning[-1] + 1 if beginning else None)
        assert next_offset is None or before is None or next_offset > before
        assert tracker.in_flight() == 12 - len(finished)
