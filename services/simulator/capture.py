"""Captured frames as a source: read once, told apart by exchange, paced by their own times. No sockets here."""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import orjson

from shared.errors import InputError

UNTIMED_S = 0.05
"""Between frames of a recording without times."""

HOSTS = {
    "binance": ("binance.com", "binance.vision", "binance.us"),
    "coinbase-exchange": ("ws-feed.pro.coinbase.com", "ws-feed.exchange.coinbase.com"),
    "coinbase": ("advanced-trade-ws.coinbase.com",),
    "kraken": ("kraken.com",),
    "bybit": ("bybit.com",),
    "okx": ("okx.com",),
}


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
    """Read a recording (format: one JSON object a line with received_at, direction, url, frame; plain or .gz).

    Raises:
        InputError: it cannot be read, with its line; or nothing in it comes from an exchange we know.
    """
    exchange = None
    frames: list[TimedFrame] = []
    rest: dict[str, list[TimedFrame]] = {}
    first_s: float | None = None
    at_s = 0.0
    for number, data in _lines(path):
        try:
            direction, url, frame, received_at = data["direction"], data["url"], data["frame"], data.get("received_at")
        except (KeyError, TypeError):
            raise InputError(str(path), "must be an object with direction, url and frame", number) from None
        if direction != "in":
            continue
        if received_at is None:
            at_s += UNTIMED_S
        else:
            first_s = received_at if first_s is None else first_s
            at_s = max(at_s, received_at - first_s)
        parts = urlsplit(url)
        exchange = _exchange(parts.hostname or "") or exchange
        if parts.scheme.startswith("http"):
            rest.setdefault(f"{parts.path}?{parts.query}", []).append(TimedFrame(at_s, frame))
        else:
            frames.append(TimedFrame(at_s, frame))
    if exchange is None:
        raise InputError(str(path), f"no frame of a known exchange; known: {', '.join(HOSTS)}")
    if not frames:
        raise InputError(str(path), "holds no WebSocket frame to replay")
    return Recording(exchange, tuple(frames), rest)


def _exchange(host: str) -> str | None:
    for name, hosts in HOSTS.items():
        if any(host == known or host.endswith("." + known) for known in hosts):
            return name
    return None


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, text in enumerate(file, 1):
                if text.strip():
                    yield number, orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InputError(str(path), f"not JSON: {error}", number) from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(str(path), getattr(error, "strerror", None) or str(error), number or None) from None
