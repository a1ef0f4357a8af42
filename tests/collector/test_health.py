"""The state machine, transition by transition, against the table in its own docstring."""

import pytest

from services.collector import health
from services.collector.health import BookHealth, Event


def table() -> list[tuple[str, Event, str]]:
    """Rows of the docstring: (from, event, to); `-` stays."""
    lines = [line.split() for line in (health.__doc__ or "").splitlines()]
    start = next(i for i, words in enumerate(lines) if words[:1] == ["from"])
    events = [Event[name] for name in lines[start][3:]]
    rows = []
    for words in lines[start + 1 :]:
        if len(words) != len(events) + 1:
            break
        state, targets = words[0], words[1:]
        rows += [(state, event, state if to == "-" else to) for event, to in zip(events, targets, strict=True)]
    return rows


def at(state: str) -> BookHealth:
    book = BookHealth(1)
    book.state = state
    return book


def test_the_table_is_complete():
    assert len(table()) == 8 * len(Event)


@pytest.mark.parametrize(("state", "event", "to"), table())
def test_transition(state, event, to):
    book = at(state)
    changed = book.on(event, 77, "because")
    assert book.state == to
    assert changed == (to != state)
    if changed:
        assert (book.reason, book.since_ns) == ("because", 77)
    else:
        assert book.since_ns == 1


def test_only_a_verified_snapshot_or_proof_after_silence_makes_a_book_live():
    into_live = {(state, event) for state, event, to in table() if to == "live" and state != "live"}
    assert {event for _, event in into_live} == {Event.VERIFIED, Event.PROOF}
    assert {state for state, event in into_live if event is Event.PROOF} == {"stale"}
