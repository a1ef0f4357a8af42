"""Another project in a virtual environment of its own, to be measured in the same run as ours.

It is kept out of our environment (it brings dozens of packages, some compiled) and in the cache folder, so that only
the first run needs a package index.
"""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from shared.settings import cache_dir

INSTALL_S = 600


def home_of(name: str) -> Path:
    """Where the environment of that name is, or will be."""
    return cache_dir() / "benchmarks" / name


def is_prepared(name: str, packages: Sequence[str]) -> bool:
    """Whether `prepare` would have nothing to do."""
    complete = home_of(name) / "complete"
    return complete.exists() and complete.read_text() == _contents(packages)


def prepare(name: str, packages: Sequence[str]) -> Path:
    """Python of an environment that has `packages` (or options of `pip install`); made on the first call.

    Raises:
        RuntimeError: it cannot be installed; with pip's last words.
    """
    home = home_of(name)
    python = home / "bin" / "python"
    if is_prepared(name, packages):
        return python
    home.parent.mkdir(parents=True, exist_ok=True)
    with _alone(home), tempfile.TemporaryDirectory(dir=home.parent, prefix="making-") as folder:
        if is_prepared(name, packages):
            return python  # another process made it while this one waited
        made = Path(folder) / "environment"
        call(name, [sys.executable, "-m", "venv", str(made)])
        # What comes as source wants a C compiler and Python's headers.
        call(name, [str(made / "bin" / "python"), "-m", "pip", "install", "--no-input", "--quiet", *packages])
        (made / "complete").write_text(_contents(packages))
        shutil.rmtree(home, ignore_errors=True)
        os.rename(made, home)  # whole or not at all; an environment's python finds its packages from where it stands
    return python


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """One process at a time makes this environment; the lock ends with its process."""
    with home.with_name(f"{home.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def call(name: str, command: list[str], limit_s: float = INSTALL_S) -> str:
    """Standard output of a command.

    Raises:
        RuntimeError: it failed (with its last words), or took too long.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{name}: no end after {limit_s:g} s: {' '.join(command)}") from None
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        raise RuntimeError(f"{name}: {' '.join(command[:4])} ... failed:\n{last}")
    return done.stdout


def _contents(packages: Sequence[str]) -> str:
    return "\n".join((sys.version, *packages))
