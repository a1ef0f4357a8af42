"""What every process does alike."""

import asyncio
import signal
import subprocess
import sys
import threading
import time

import pytest

from shared import process

CHILD = """
import ctypes, sys
from shared.process import keep_heap_small

class Info(ctypes.Structure):  # mallinfo2(3)
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
if sys.argv[1] == "small":
    keep_heap_small()
libc.free(libc.malloc(1 << 20))  # glibc's threshold now follows this size
before = libc.mallinfo2().hblks
blocks = [libc.malloc(1 << 18) for _ in range(4)]
print(libc.mallinfo2().hblks - before)
"""


def mapped(kind: str) -> int:
    done = subprocess.run([sys.executable, "-c", CHILD, kind], capture_output=True, text=True)
    if "mallinfo2" in done.stderr:
        pytest.skip("this C library has no mallinfo2: it is not glibc 2.33 or newer")
    return int(done.stdout)


def test_large_blocks_are_the_systems_and_leave_no_holes_in_the_heap():
    assert mapped("usual") == 0, "the guard of the guard: without it they come from the heap"
    assert mapped("small") == 4


SERVICE = """
import asyncio, sys, time
from shared.process import leave, run_async

async def main(stop):
    left = [asyncio.create_task(asyncio.sleep(60)) for _ in range(int(sys.argv[1]))]
    if sys.argv[2] == "resolving":
        asyncio.get_running_loop().run_in_executor(None, time.sleep, 30)  # as a name that is being resolved
    print("up", flush=True)
    await stop.wait()

run_async(main)
print("told", flush=True)
leave()
"""


@pytest.mark.parametrize(("left", "thread"), [("0", "-"), ("2", "-"), ("0", "resolving")])
def test_sigterm_ends_a_service_at_once_and_well(left, thread):
    process = subprocess.Popen([sys.executable, "-c", SERVICE, left, thread], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "told\n"
        assert process.wait(10) == 0
        assert time.monotonic() - began < 10, "what is being resolved is not waited for"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def test_a_thread_of_its_own_waits_for_none_that_hangs():
    """Names are resolved in the loop's few threads: dead DNS must not keep a service from its last words."""
    over = threading.Event()
    hanging = [asyncio.create_task(asyncio.to_thread(over.wait, 30)) for _ in range(64)]
    try:
        async with asyncio.timeout(10):
            assert await process.in_thread(divmod, 7, 2) == (3, 1)
            with pytest.raises(ZeroDivisionError):
                await process.in_thread(divmod, 7, 0)
    finally:
        over.set()
        await asyncio.gather(*hanging)


LOUD = """
import threading
from pydantic import SecretStr
from shared import process, secrets
from shared.settings import LogSettings

class Bad:
    def __del__(self):
        raise RuntimeError("in a __del__: " + KEY)

def fail():
    raise RuntimeError("in a thread: " + KEY)

KEY = "k7-for-the-test-of-last-words"
secrets.register(SecretStr(KEY))
process.setup_logging(LogSettings(level="info", json=False))
thread = threading.Thread(target=fail, name="worker")
thread.start()
thread.join()
Bad()
fail()
"""


def test_what_nobody_catches_is_told_without_keys_wherever_it_happens():
    told = subprocess.run([sys.executable, "-c", LOUD], capture_output=True, text=True, timeout=60, check=False)
    assert told.returncode == 1
    assert told.stderr.count("in a thread: [key]") == 2
    assert "Exception in thread worker" in told.stderr
    assert "in a __del__: [key]" in told.stderr
    assert "k7-for" not in told.stdout + told.stderr
