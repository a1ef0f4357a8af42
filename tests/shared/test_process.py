"""What every process does alike."""

import subprocess
import sys

import pytest

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
