"""Keys that must be in no log, record or topic: those that were registered, and what looks like one.

`redact` is asked wherever text leaves the process, and wherever text from a provider comes in. It knows a key as it
stands, percent-encoded, JSON-escaped and in base64 (also in the middle of something longer). A provider that wants to
hide our own key from us can: it has it anyway. What this stops is the echo.
"""

import base64
import json
import logging
import re
import traceback
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import quote, quote_plus

from pydantic import SecretStr

MASK = "[key]"
SHORTEST = 6
"""A registered value with fewer characters is no secret, and blacking it out would eat ordinary words."""

DEEPEST = 8

LONGEST_WORD = 20
"""Nor is one of letters alone, unless it is longer than words are ("volatility" is no key), or certainly a secret."""
_SHAPES = re.compile(
    r"(?<![A-Za-z0-9])(?:sk-[A-Za-z0-9_-]{12,}|AIza[A-Za-z0-9_-]{20,}|hs_(?!req_)[A-Za-z0-9_-]{12,})"
    r"|(?<=bearer )[A-Za-z0-9._~+/=-]{16,}",
    re.IGNORECASE,
)
_SHAPES_START = ("sk-", "aiza", "hs_", "bearer ")  # looked for first: a line without any costs four searches

_written: dict[str, None] = {}
"""Every way in which a registered value is looked for, longest first: a key may begin with another."""


def register(value: SecretStr, *, certain: bool = False) -> None:
    """From now on `redact` knows this value. Registering it again changes nothing; there is no way back.

    Args:
        certain: It is a secret whatever it looks like, a password of Kafka say: blacked out even if it is a word.
    """
    text = value.get_secret_value().strip()
    if len(text) < SHORTEST or (text.isalpha() and len(text) < LONGEST_WORD and not certain):
        return
    found = {*_written, *_ways(text)}
    _written.clear()
    _written.update(dict.fromkeys(sorted(found, key=lambda way: (-len(way), way))))


def redact(text: str) -> str:
    """The text with every registered value, and all that has the shape of a key, replaced by `MASK`."""
    for way in _written:
        if way in text:
            text = text.replace(way, MASK)
    small = text.lower()
    if any(start in small for start in _SHAPES_START):
        text = _SHAPES.sub(MASK, text)
    return text


def redact_event(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: redacts every string of an event, its names too, however deep. Put it last but for the
    renderer, which writes other objects as their repr: one that shows a key becomes its redacted repr here."""
    cleaned = _clean(dict(event), 0)
    assert isinstance(cleaned, dict)
    return cleaned


class RedactingFormatter(logging.Formatter):
    """Formats records of the standard library's logging (other libraries use it) without keys and without locals."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def describe(error: BaseException) -> str:
    """A traceback as Python prints it, without locals and without keys."""
    return redact("".join(traceback.format_exception(error)))


def _clean(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if type(value) is str:
        return redact(value)
    if depth < DEEPEST:
        if isinstance(value, dict):
            return {_clean(name, depth + 1): _clean(held, depth + 1) for name, held in value.items()}
        if type(value) in (list, tuple, set, frozenset):
            return type(value)(_clean(held, depth + 1) for held in value)
    try:
        shown = repr(value)
    except Exception as error:  # a repr that fails must not end the logging, and is nothing to show
        return f"<{type(value).__name__}: repr failed with {type(error).__name__}>"
    cleaned = redact(shown)
    return value if cleaned == shown else cleaned


def _ways(text: str) -> set[str]:
    """How a value may be written in a URL, in JSON or in base64."""
    ways = {text, json.dumps(text)[1:-1], json.dumps(text)[1:-1].replace("/", "\\/"), repr(text)[1:-1]}
    for quoted in (quote(text, safe=""), quote(text), quote_plus(text)):
        ways |= {quoted, re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), quoted)}
    raw = text.encode()
    for before in range(3):  # base64 of a longer text: the value begins at any place within a group of three bytes
        encoded = base64.b64encode(bytes(before) + raw).decode().rstrip("=")
        # The first and the last characters are made of bits of what stands before and behind the value, too.
        first = (0, 2, 3)[before]
        last = len(encoded) if (before + len(raw)) % 3 == 0 else len(encoded) - 1
        core = encoded[first:last]
        ways |= {core, core.replace("+", "-").replace("/", "_")}
    return ways
