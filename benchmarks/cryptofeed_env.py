"""cryptofeed in a virtual environment of its own, to be measured in the same run as our collector.

It is kept out of our environment (it brings some twenty-five packages and a compiler run) and in the cache folder, so
that only the first run needs a package index. `measure` is what a benchmark calls.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from shared.settings import cache_dir

VERSION = "2.4.1"
PACKAGES = (f"cryptofeed=={VERSION}", "order_book==0.6.1", "yapic.json==1.9.5", "orjson==3.13.0")
"""cryptofeed, its book and its JSON parser (compiled, so they make the numbers), and our callback's writer."""

DRIVER = Path(__file__).with_name("cryptofeed_driver.py")
INSTALL_S = 600
RUN_S = 300


def prepare(cache: Path) -> Path:
    """Python of an environment that has cryptofeed; made on the first call, in `cache`/benchmarks.

    Raises:
        RuntimeError: it cannot be installed; with pip's last words.
    """
    home = cache / "benchmarks" / f"cryptofeed-{VERSION}"
    python, complete, what = home / "bin" / "python", home / "complete", "\n".join((sys.version, *PACKAGES))
    if complete.exists() and complete.read_text() == what:
        return python
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix="making-") as folder:
        made = Path(folder) / "environment"
        _call([sys.executable, "-m", "venv", str(made)])
        # cryptofeed comes as source: a C compiler and Python's headers are needed.
        _call([str(made / "bin" / "python"), "-m", "pip", "install", "--no-input", "--quiet", *PACKAGES])
        (made / "complete").write_text(what)
        shutil.rmtree(home, ignore_errors=True)
        os.rename(made, home)  # whole or not at all; an environment's python finds its packages from where it stands
    return python


def measure(exchange: str, frames: list[bytes], rounds: int, verify: bool = False) -> dict[str, Any] | None:
    """What the driver found (`cryptofeed_driver.py` says what); None where cryptofeed cannot read such frames.

    CPU a frame is `median(result["cpu_s"]) / result["frames"]`; the frames count REST snapshots too.

    Raises:
        RuntimeError: cryptofeed cannot be installed, or its run failed or took too long.
    """
    python = prepare(cache_dir())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "frames"
        file.write_bytes(b"".join(frame.replace(b"\n", b" ") + b"\n" for frame in frames))
        command = [str(python), "-I", str(DRIVER), exchange, str(file), str(rounds)]
        words = _call([*command, "--verify"] if verify else command, RUN_S)
    result: dict[str, Any] = json.loads(words.splitlines()[-1])
    return result if result["cpu_s"] is not None else None


def _call(command: list[str], limit_s: int = INSTALL_S) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"cryptofeed {VERSION}: no end after {limit_s} s: {' '.join(command)}") from None
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        raise RuntimeError(f"cryptofeed {VERSION}: {' '.join(command[:4])} ... failed:\n{last}")
    return done.stdout
