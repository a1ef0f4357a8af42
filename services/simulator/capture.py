"""Captured frames as a source: read once, told apart by exchange, paced by their own times. No sockets here."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from shared.errors import InputError
from shared.recordings import HOSTS, protocol_of, recorded

UNTIMED_S = 0.05
"""Between frames of a recording without times."""


class TimedFrame(NamedTuple):
    """A frame of the exchange, and when it comes (seconds after the first)."""

    at_s: float
    frame: str


@dataclass(frozen=True, slots=True)
class Recording:
    """What one file holds: socket frames in order, and REST answers by path and query."""

    exchange: str
    frames: tuple[TimedFrame, ...]
    rest: dict[str, list[TimedFrame]]


def load(path: Path) -> Recording:
    """Read a recording (format: `shared/recordings.py`).

    Raises:
        InputError: it cannot be read, with its line; or nothing in it comes from an exchange we know.
    """
    exchange = None
    frames: list[TimedFrame] = []
    rest: dict[str, list[TimedFrame]] = {}
    first_ns: int | None = None
    at_s = 0.0
    for item in recorded(path):
        if not item.inbound:
            continue
        if item.received_ns is None:
            at_s += UNTIMED_S
        else:
            first_ns = item.received_ns if first_ns is None else first_ns
            at_s = max(at_s, (item.received_ns - first_ns) / 1e9)
        parts = urlsplit(item.url)
        exchange = protocol_of(item.url) or exchange
        if parts.scheme.startswith("http"):
            rest.setdefault(f"{parts.path}?{parts.query}", []).append(TimedFrame(at_s, item.frame))
        else:
            frames.append(TimedFrame(at_s, item.frame))
    if exchange is None:
        raise InputError(str(path), f"no frame of a known exchange; known: {', '.join(HOSTS)}")
    if not frames:
        raise InputError(str(path), "holds no WebSocket frame to replay")
    return Recording(exchange, tuple(frames), rest)
