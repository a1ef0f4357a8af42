"""Quiet ticks, nearly all there are: nothing follows from them but what the book is now. Compiled where it can be.

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
    from services.detector.plain import BookTop, CoinTops, GapTop, Mids, Quiet, Quote


def _plain() -> tuple[str, str] | None:
    """Why the compiled module is not used, and what to do; None: it is used."""
    if os.environ.get("ARB_PLAIN") == "1":
        return "ARB_PLAIN=1", "unset ARB_PLAIN"
    try:
        module = importlib.import_module("services.detector._quiet")
    except ModuleNotFoundError:
        return "it was not compiled", "run `make compiled`: it says why; it takes a C compiler and Python's headers"
    except ImportError as error:
        return f"what was compiled cannot be loaded ({error})", "run `make compiled`"
    source = Path(__file__).with_name("_quiet.pyx")
    if source.exists() and hashlib.sha256(source.read_bytes()).hexdigest() != module.SOURCE:
        return "services/detector/_quiet.pyx has changed since it was compiled", "run `make compiled`"
    return None


PLAIN = _plain()
"""Why quiet ticks are taken in by Python, and what to do; None: the compiled module does it."""

if not TYPE_CHECKING:
    if PLAIN is None:
        from services.detector._quiet import BookTop, CoinTops, GapTop, Mids, Quiet, Quote
    else:
        from services.detector.plain import BookTop, CoinTops, GapTop, Mids, Quiet, Quote

__all__ = ["PLAIN", "BookTop", "CoinTops", "GapTop", "Mids", "Quiet", "Quote"]
