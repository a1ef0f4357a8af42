"""`arb decide` that ends at one step of its work: by `kill -9`, or by an exception that nobody thought of.

    python killed.py STEP NUMBER

It is the program itself; only the step's function is wrapped, and ends it when it is called for the NUMBER-th time.
"""

import functools
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from services.cli import __main__ as cli
from services.decider.budget import Budget
from services.decider.decide import Newest
from services.decider.service import Service
from services.decider.state import State
from shared import kafka, secrets, topics
from shared.kafka import ConsumerThread, Publisher

KEYS = ("OPENAI_API_KEY", "GEMINI_API_KEY", "DEEPSEEK_API_KEY")


def die(*_: object) -> None:
    """Nothing runs after it: no `finally`, no flush."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_delivered(publisher: Publisher, *_: object) -> None:
    """When Kafka has all that was published up to now."""
    publisher.flush(10)
    die()


def die_soon(*_: object) -> None:
    """When there has been time to do what must not be done without this call."""
    threading.Timer(0.5, die).start()


def crash(*_: object) -> None:
    """As a library may end us: keys are in its variables, in its words and in the words of what it rests on."""
    headers = {name: f"Bearer {os.environ[name]}" for name in KEYS}
    try:
        raise ValueError(f"no header: {headers!r}")
    except ValueError as error:
        raise RuntimeError(f"unexpected {' '.join(headers.values())}") from error


def of_a_panel(wanted: str) -> Callable[..., bool]:
    """Messages to this topic. What earlier tests left to be decided has expired: no model is asked about it."""

    def counts(_: Publisher, topic: str, key: object, value: bytes, *__: object) -> bool:
        return topic == wanted and b'"mode":"rules_only"' not in value

    return counts


class Step(NamedTuple):
    """A call of `owner.name`: before, after or instead of one of those that count, the process is ended."""

    owner: Any
    name: str
    when: Literal["before", "after", "instead"] = "before"
    ends: Callable[..., None] = die
    counts: Callable[..., bool] = lambda *_: True


STEPS = {
    "reserving": Step(Budget, "reserve_all"),
    "booking": Step(State, "_into_second", "after"),  # in the middle of the file's change
    "reserved": Step(Budget, "reserve_all", "after"),
    "audited": Step(Publisher, "publish", "before", die_delivered, of_a_panel(topics.DECISIONS)),
    "delivered": Step(Publisher, "publish", "after", die_delivered, of_a_panel(topics.DECISIONS)),
    "held back": Step(Publisher, "publish", "instead", die_soon, of_a_panel(topics.DECISIONS)),  # by a slow broker
    "record held back": Step(Publisher, "publish", "instead", die_soon, of_a_panel(topics.AUDIT)),
    "settling": Step(Budget, "settle_all"),
    "settled": Step(Budget, "settle_all", "after"),
    "storing": Step(ConsumerThread, "store"),
    "reading the tail": Step(kafka, "read_range", "after"),
    "revoking": Step(Service, "on_revoked"),
    "revoked": Step(Service, "on_revoked", "after"),
    "handed over": Step(ConsumerThread, "_revoked", "after"),  # and committed
    "crash at the start": Step(secrets, "register", "after", crash),
    "crash at a record": Step(Newest, "take", ends=crash),
}


def wrap(step: Step, number: int) -> None:
    """Let it end this process."""
    real, calls = getattr(step.owner, step.name), itertools.count(1)

    @functools.wraps(real)
    def wrapped(*args: Any, **named: Any) -> Any:
        when = step.when if step.counts(*args) and next(calls) == number else None
        if when in ("before", "instead"):
            step.ends(*args)
        result = real(*args, **named) if when != "instead" else None
        if when == "after":
            step.ends(*args)
        return result

    setattr(step.owner, step.name, wrapped)


if __name__ == "__main__":
    wrap(STEPS[sys.argv[1]], int(sys.argv[2]))
    sys.argv[1:] = ["decide"]
    cli.main()
