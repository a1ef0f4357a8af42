"""What a check says: a result, a line with the numbers, and the way out."""

from enum import StrEnum
from typing import NamedTuple


class Part(StrEnum):
    """What is looked at, in the order in which it is told."""

    SETTINGS = "settings"
    KAFKA = "kafka"
    TOPICS = "topics"
    GROUPS = "groups"
    TICKS = "ticks"
    EXCHANGES = "exchanges"
    CLOCK = "clock"
    MODELS = "models"
    BUDGET = "budget"
    MACHINE = "machine"
    SERVICES = "services"


class Result(StrEnum):
    """`warn`: works, but not for long or not well. `skipped`: could not be looked at, or was not to be."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


class Finding(NamedTuple):
    """One check's answer. `fix`: the command or setting that mends it; every failure and warning has one."""

    part: Part
    check: str
    result: Result
    words: str
    fix: str = ""


def ok(part: Part, check: str, words: str) -> Finding:
    return Finding(part, check, Result.OK, words)


def warn(part: Part, check: str, words: str, fix: str) -> Finding:
    return Finding(part, check, Result.WARN, words, fix)


def fail(part: Part, check: str, words: str, fix: str) -> Finding:
    return Finding(part, check, Result.FAIL, words, fix)


def skipped(part: Part, check: str, words: str) -> Finding:
    return Finding(part, check, Result.SKIPPED, words)


def some(names: list[str], most: int = 4) -> str:
    """The first of them, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def span(seconds: float) -> str:
    """`0.4 s`, `90 s`, `12 min`, `3.5 h`, `4 days`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86_400:.0f} days"
