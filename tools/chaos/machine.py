"""What a scenario needs of the machine: a small disk, a network of its own. Made here, and removed here.

Names carry our process id, so that a later run finds and removes what a killed one has left.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from shared.errors import DependencyMissing

MARK = "arbchaos"


class NotHere(Exception):
    """This machine does not let us; the text says why. The scenario is skipped."""


def _run(*words: str, error: type[Exception] = NotHere) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines()
        raise error(f"`{' '.join(words)}`: {last[-1] if last else f'exit {done.returncode}'}")


def _need(program: str) -> None:
    if os.geteuid() != 0:
        raise NotHere("needs root")
    if shutil.which(program) is None:
        raise NotHere(f"needs `{program}`")


def _is_left(name: str) -> bool:
    """Whether it carries the process id of a run that is over."""
    _, _, number = name.partition(f"{MARK}-")
    return number.isdigit() and not Path("/proc", number).exists()


def remove_left() -> None:
    """Remove what runs that were killed have left; nothing where we may not."""
    if os.geteuid() != 0:
        return
    for line in Path("/proc/mounts").read_text().splitlines():
        source, where = line.split()[:2]
        if _is_left(source):
            subprocess.run(["umount", where], capture_output=True, check=False)
    if shutil.which("ip") is None:
        return
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
    for name in (line.split()[0] for line in listed.splitlines() if line.strip()):
        if _is_left(name):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


# ---------------------------------------------------------------- a small disk


class Disk:
    """A file system of its own size, at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self) -> int:
        """Write until nothing more fits; returns the bytes that took."""
        block = bytes(65_536)
        with self._filler.open("ab", buffering=0) as file:
            for size in (65_536, 4_096, 1):  # to the last byte: what is left would let small writes through
                with contextlib.suppress(OSError):
                    while True:
                        file.write(block[:size])
        return self._filler.stat().st_size

    def free(self) -> None:
        """Give back what `fill` took."""
        self._filler.unlink(missing_ok=True)


@contextlib.contextmanager
def small_disk(path: Path, mib: int) -> Iterator[Disk]:
    """A tmpfs at `path`.

    Raises:
        NotHere: not root, or mounting is forbidden.
    """
    _need("mount")
    path.mkdir(parents=True, exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0700", f"{MARK}-{os.getpid()}", str(path))
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], capture_output=True, check=False)


# ---------------------------------------------------------------- a network of its own


class Cable(NamedTuple):
    """A pair of ends: `host` is this machine's address, `inner` the name of the other end in the namespace."""

    host: str
    inner: str


class Namespace:
    """A network namespace with two cables to this machine: one to the exchanges, one to Kafka."""

    def __init__(self, name: str, exchanges: Cable, kafka: Cable) -> None:
        self.name = name
        self.exchanges = exchanges
        self.kafka = kafka

    @property
    def prefix(self) -> tuple[str, ...]:
        """Put before a command, it runs in the namespace."""
        return ("ip", "netns", "exec", self.name)

    def cut(self) -> None:
        """Pull the cable to Kafka: what is sent goes nowhere, and no connection is told.

        Raises:
            DependencyMissing: it could not be pulled; the scenario has failed.
        """
        self._set("down")

    def mend(self) -> None:
        """Raises:
        DependencyMissing: it could not be put back.
        """
        self._set("up")

    def _set(self, state: str) -> None:
        _run("ip", "-n", self.name, "link", "set", self.kafka.inner, state, error=DependencyMissing)


@contextlib.contextmanager
def namespace() -> Iterator[Namespace]:
    """A namespace whose processes reach this machine by two addresses.

    Raises:
        NotHere: not root, or networks may not be made.
    """
    _need("ip")
    pid = os.getpid()
    name = f"{MARK}-{pid}"
    _run("ip", "netns", "add", name)
    try:
        _run("ip", "-n", name, "link", "set", "lo", "up")
        cables = []
        for number, kind in enumerate(("x", "k")):
            # 198.18.0.0/15 is kept for tests of network devices (RFC 2544): nothing real is hidden by it.
            third, fourth = pid % 256, 4 * (pid // 256 % 32) + 128 * number
            outer, inner = f"ac{kind}{pid % 10**7}", f"in{kind}"
            host, other = f"198.18.{third}.{fourth + 1}", f"198.18.{third}.{fourth + 2}"
            _run("ip", "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name)
            _run("ip", "addr", "add", f"{host}/30", "dev", outer)
            _run("ip", "link", "set", outer, "up")
            _run("ip", "-n", name, "addr", "add", f"{other}/30", "dev", inner)
            _run("ip", "-n", name, "link", "set", inner, "up")
            cables.append(Cable(host, inner))
        yield Namespace(name, *cables)
    finally:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)  # its cables go with it
