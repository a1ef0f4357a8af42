"""Quix Streams in a virtual environment of its own, to be measured in the same run as our detector.

`measure` is what a benchmark calls; `quix_driver.py` is the application.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from other_env import call, is_prepared, prepare

VERSION = "3.28.1"
NAME = f"quixstreams-{VERSION}"
PACKAGES = (f"quixstreams=={VERSION}", "confluent-kafka==2.12.2", "orjson==3.13.0", "rocksdict==0.3.29")
"""Quix Streams, and what of it is compiled and so makes the numbers."""

DRIVER = Path(__file__).with_name("quix_driver.py")
RUN_S = 300
STATES = ("store", "memory")
"""Books in Quix's own state store, or in a plain dict of the process."""


def is_installed() -> bool:
    """Whether `measure` needs no package index."""
    return is_prepared(NAME, PACKAGES)


def install() -> None:
    """Make the environment, where there is none yet.

    Raises:
        RuntimeError: it cannot be installed; with pip's last words.
    """
    prepare(NAME, PACKAGES)


def measure(servers: str, topic: str, out: str, count: int, state: str) -> dict[str, Any]:
    """What one pass over the first `count` records of `topic` took (`quix_driver.py` says what).

    Raises:
        RuntimeError: Quix Streams cannot be installed, or its run failed or took too long.
    """
    python = prepare(NAME, PACKAGES)
    with tempfile.TemporaryDirectory() as folder:
        case = {"servers": servers, "topic": topic, "out": out, "count": count, "state": state, "folder": folder}
        words = call(NAME, [str(python), "-I", str(DRIVER), json.dumps(case)], RUN_S)
    found: dict[str, Any] = json.loads(words.splitlines()[-1])
    return found
