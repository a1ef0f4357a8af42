"""The detector against what is really there: a generated market whose gaps another arithmetic knows."""

import pytest

from services.detector.engine import TIMER_NS, Engine
from services.detector.replay import merged, recorded, replay
from shared import settings
from shared.messages import DelayedEdge, Opportunity
from tests.conftest import TEN

TWENTY = (*TEN, "ATOM", "UNI", "XLM", "TRX", "NEAR", "APT", "FIL", "ICP", "BCH", "SUI")
T0_NS = 1_795_000_000_000_000_000


@pytest.mark.parametrize(("seed", "seconds"), [(1, 60.0), (2, 30.0)])
def test_every_gap_that_outlives_the_persistence_is_found_and_none_is_invented(generated, seed, seconds):
    """Twenty coins on five exchanges: recall and precision 1."""
    configured = settings.load()
    recording = generated(seed, seconds, T0_NS, coins=TWENTY, bridged=False)
    ticks = merged(recorded("generated", n, value) for n, (_, _, value, _) in enumerate(recording.ticks))
    engine = Engine(configured)
    events = list(replay(engine, ticks, recording.until_ns))
    opened: dict[tuple[str, str, str], list[Opportunity]] = {}
    ended = {e.opportunity_id: e.detected_ns for e in events if isinstance(e, Opportunity) and e.phase == "closed"}
    for event in events:
        if isinstance(event, Opportunity) and event.phase == "opened":
            opened.setdefault((event.base, event.buy.exchange, event.sell.exchange), []).append(event)
    outlives_ns = configured.detector.persistence_ms * 1_000_000 + TIMER_NS
    gaps: dict[tuple[str, str, str], list[tuple[int, int]]] = {}
    for gap in recording.gaps:
        key = (gap["base"], gap["buy"]["exchange"], gap["sell"]["exchange"])
        gaps.setdefault(key, []).append((gap["start_ns"], gap["end_ns"]))
    wanted = [(key, span) for key, spans in gaps.items() for span in spans if span[1] - span[0] > outlives_ns]
    assert len(wanted) > 15, "the market has something to find"
    missed = [
        (key, span)
        for key, span in wanted
        if not any(
            one.opened_ns < span[1] and ended.get(one.opportunity_id, recording.until_ns) > span[0]
            for one in opened.get(key, [])
        )
    ]
    assert missed == []
    invented = [
        (key, one.opened_ns)
        for key, found in opened.items()
        for one in found
        if not any(start <= one.opened_ns < end for start, end in gaps.get(key, []))
    ]
    assert invented == []
    counted = engine.crossings
    still = counted["opened"] - counted["accepted"] - counted["rejected"]
    assert 0 <= still <= 20 * 20, "every crossing that is over was accepted or rejected"
    edges = [event for event in events if isinstance(event, DelayedEdge)]
    assert {edge.opportunity_id for edge in edges} <= {one.opportunity_id for found in opened.values() for one in found}
    assert any(edge.executable for edge in edges)
    assert not any(edge.missed for edge in edges)
