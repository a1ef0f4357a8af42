"""Quiet ticks, nearly all there are: books that cross no other and have nothing open. Compiled where it can be.

A detector that reads a quiet tick notes the book and goes on. `_quiet.pyx` does that, from the record's text on, in a
tenth of the time that Python takes. Whatever is not quiet goes the general way, in Python, which could take all of
them: `plain` has the same classes without the compiled part, and is used where nothing was compiled, or with
ARB_PLAIN=1. Both are held to the same output, byte for byte, by the tests.
"""

import hashlib
import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from services.detector.plain import BookTop, CoinTops, Quiet, Quote


def _why_plain() -> str | None:
    """Why the compiled module is not used; None: it is."""
    if os.environ.get("ARB_PLAIN") == "1":
        return "ARB_PLAIN=1"
    try:
        module = importlib.import_module("services.detector._quiet")
    except ImportError:
        return "nothing was compiled when Arbiter was installed: that takes a C compiler and Python's headers"
    source = Path(__file__).with_name("_quiet.pyx")
    if source.exists() and hashlib.sha256(source.read_bytes()).hexdigest() != module.SOURCE:
        return "its source has changed since it was compiled: run `make compiled`"
    return None


WHY_PLAIN = _why_plain()
"""Why quiet ticks are taken in by Python; None: by the compiled module."""

if not TYPE_CHECKING:
    if WHY_PLAIN is None:
        from services.detector._quiet import BookTop, CoinTops, Quiet, Quote
    else:
        from services.detector.plain import BookTop, CoinTops, Quiet, Quote

__all__ = ["WHY_PLAIN", "BookTop", "CoinTops", "Quiet", "Quote"]
