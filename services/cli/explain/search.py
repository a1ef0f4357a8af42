"""Where a verdict is found: by its id, or by a coin and two exchanges, in Kafka or in files."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from services.cli.explain.steps import MS, identity
from services.cli.explain.sums import Verdict, orders_of
from services.cli.explain.words import moment
from shared import kafka, topics
from shared.errors import ArbiterError, InputError, UndecodableRecord, UsageError
from shared.messages import Opportunity, Rejection, decode
from shared.settings import KafkaSettings

READ_S = 100.0
"""How long reading back may take."""

ALL = 0
"""Since when (ms), for all that Kafka holds."""

WINDOWS_S = (900, 4 * 3600, 86_400, None)
"""An id is looked for in the newest messages first, then further back; None: all."""

EARLIER_MS = 60_000
"""To read before the beginning of a verdict: two clocks, and what lay in a queue."""


class Asked(NamedTuple):
    """What to look for: an id, or a base with two exchanges."""

    identity: str | None = None
    pair: tuple[str, str, str] | None = None

    def may_be(self, value: bytes) -> bool:
        """Cheap: no message that is asked for is left out."""
        return all(f'"{word}"'.encode() in value for word in self.pair or (self.identity,))

    def is_it(self, message: Verdict) -> bool:
        if self.pair is None:
            return identity(message) == self.identity
        base, *ends = self.pair
        return message.base == base and sorted(ends) == sorted((message.buy.exchange, message.sell.exchange))


class Search(NamedTuple):
    """What was found of what was asked (oldest first), and among which values. `back` says how far, in words."""

    found: list[Verdict]
    values: list[bytes]
    back: str


def asked(identity: str | None, pair: tuple[str, str, str] | None) -> Asked:
    """What the command line asks for.

    Raises:
        UsageError: neither an id nor a pair, or both.
    """
    if (identity is None) == (pair is None):
        raise UsageError("arb explain takes the id of an opportunity or a rejection, or --pair BASE BUY SELL")
    return Asked(identity, None if pair is None else (pair[0].upper(), pair[1].lower(), pair[2].lower()))


def duration_s(text: str) -> float:
    """`90s`, `30m`, `1h` or `2d` in seconds; a plain number is seconds.

    Raises:
        UsageError: it is none of these.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if found is None:
        raise UsageError(f"--since {text!r}: must be a time such as 90s, 30m, 1h or 2d")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}[found[2]]


# ---------------------------------------------------------------- among values


def verdicts(values: Iterable[bytes], what: Asked) -> list[Verdict]:
    """The messages asked for, oldest first; each once, although Kafka may bring it twice."""
    found = []
    for value in dict.fromkeys(value for value in values if what.may_be(value)):
        try:
            message = decode(value)
        except UndecodableRecord:
            continue  # `arb watch` shows it
        if isinstance(message, Opportunity | Rejection) and what.is_it(message):
            found.append(message)
    # A rejection that is accepted closes in the moment in which its opportunity opens.
    return sorted(found, key=lambda message: (message.detected_ns, isinstance(message, Opportunity)))


def directions(found: Sequence[Verdict]) -> list[list[Verdict]]:
    """Verdicts by where is bought and sold, the newest first; `found` is oldest first."""
    by_legs: dict[tuple[str, ...], list[Verdict]] = {}
    for message in reversed(found):
        legs = (message.buy.exchange, message.buy.symbol, message.sell.exchange, message.sell.symbol)
        by_legs.setdefault(legs, []).append(message)
    return list(by_legs.values())


def became(message: Verdict, values: Iterable[bytes]) -> str | None:
    """Id of the opportunity that an accepted rejection became."""
    if message.close_reason != "accepted":
        return None
    same_pair = verdicts(values, Asked(pair=(message.base, message.buy.exchange, message.sell.exchange)))
    looked = (message.detected_ns, _books(message))
    opened = [one for one in same_pair if isinstance(one, Opportunity) and (one.detected_ns, _books(one)) == looked]
    return opened[0].opportunity_id if opened else None


def _books(message: Verdict) -> list[tuple[str, str, str]]:
    return [(order.side, order.leg.exchange, order.leg.symbol) for order in orders_of(message)]


# ---------------------------------------------------------------- files and Kafka


def search_files(files: Sequence[Path], what: Asked) -> Search:
    """All lines of the files, each one message.

    Raises:
        InputError: names the file, and the line that is no message.
    """
    values = []
    for file in files:
        try:
            lines = file.read_bytes().splitlines()
        except OSError as error:
            raise InputError(str(file), error.strerror or str(error)) from None
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                decode(line)
            except UndecodableRecord as error:
                raise InputError(str(file), str(error), number) from None
            values.append(line)
    return Search(verdicts(values, what), values, f"of {', '.join(str(file) for file in files)}")


def read_kafka(settings: KafkaSettings, since_ms: int) -> list[bytes]:
    """Both topics of verdicts from a moment on.

    Raises:
        BrokerUnavailable, TopicMismatch: as for any reader.
    """
    both = (topics.REJECTIONS, topics.OPPORTUNITIES)
    read = kafka.read_range(kafka.reader(settings, "explain"), both, since_ms, READ_S)
    return [record.value or b"" for record in read]


def search_kafka(read: Callable[[int], list[bytes]], what: Asked, since_s: float | None, now_ms: int) -> Search:
    """Look for it, and then as far back as the beginning of the newest that was found.

    Args:
        read: All verdicts since a moment (ms).
        since_s: How far back at most; None: all of Kafka, the newest first.
    """
    windows: Sequence[float | None] = WINDOWS_S if since_s is None else (since_s,)
    for window_s in windows:
        since_ms = ALL if window_s is None else max(ALL, now_ms - int(window_s * 1000))
        values = read(since_ms)
        if found := verdicts(values, what):
            begun_ms = max(ALL, found[-1].opened_ns // MS - EARLIER_MS)
            values = read(begun_ms) if begun_ms < since_ms else values
            break
    back = "that Kafka holds" if since_s is None else f"since {moment(since_ms * MS)}"
    return Search(found, values, back)


def not_found(search: Search, what: Asked) -> ArbiterError:
    """One line: what was searched, and what to do next."""
    searched = f"{len(search.values):,} messages {search.back}"
    if what.pair is None:
        return ArbiterError(
            f"no opportunity and no rejection {what.identity} in {searched}; ids are in `arb watch rejections --json` "
            "and `arb watch opportunities --json`"
        )
    base, one, other = what.pair
    return ArbiterError(
        f"no verdict on {base} between {one} and {other} in {searched}: no gap was there, or a book was missing "
        "(`arb watch health`); --since looks further back"
    )
