"""cryptofeed in a virtual environment of its own, to be measured in the same run as our collector.

`measure` is what a benchmark calls.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from other_env import call, prepare

VERSION = "2.4.1"
NAME = f"cryptofeed-{VERSION}"
PACKAGES = (f"cryptofeed=={VERSION}", "order_book==0.6.1", "yapic.json==1.9.5", "orjson==3.13.0")
"""cryptofeed, its book and its JSON parser (compiled, so they make the numbers), and our callback's writer."""

DRIVER = Path(__file__).with_name("cryptofeed_driver.py")
RUN_S = 300


def measure(exchange: str, frames: list[bytes], rounds: int, verify: bool = False) -> dict[str, Any] | None:
    """What the driver found (`cryptofeed_driver.py` says what); None where cryptofeed cannot read such frames.

    CPU a frame is `median(result["cpu_s"]) / result["frames"]`; the frames count REST snapshots too.

    Raises:
        RuntimeError: cryptofeed cannot be installed, or its run failed or took too long.
    """
    python = prepare(NAME, PACKAGES)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "frames"
        file.write_bytes(b"".join(frame.replace(b"\n", b" ") + b"\n" for frame in frames))
        command = [str(python), "-I", str(DRIVER), exchange, str(file), str(rounds)]
        words = call(NAME, [*command, "--verify"] if verify else command, RUN_S)
    result: dict[str, Any] = json.loads(words.splitlines()[-1])
    return result if result["cpu_s"] is not None else None
