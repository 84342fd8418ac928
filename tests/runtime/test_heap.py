"""Keeping freed memory: what glibc is told, and allocators that cannot be told."""

import ctypes
import subprocess
import sys

import pytest

from vlm_r1.runtime.heap import keep_freed_memory

CODE = """
import resource
from vlm_r1.runtime.heap import keep_freed_memory
if {keep}:
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.mallopt({mmap}) if not {keep} else None
before = faults()
for _ in range(20):
    block = libc.malloc(20 << 20)
    ctypes.memset(block, 1, 20 << 20)
    libc.free(block)
print(faults() - before)
"""


def faults(keep: bool) -> int:
    """Page faults of taking, writing and freeing 20 MiB 20 times, in a process of its own."""
    code = CODE.format(keep=keep, mmap="-3, 128 << 10")  # a fixed threshold: glibc would learn one from the first
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_freed_blocks_are_used_again():
    assert 5 * faults(keep=True) < faults(keep=False)


def test_an_allocator_without_it_is_left_alone(monkeypatch):
    told = []

    class Glibc:
        def mallopt(self, *args):
            told.append(args)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Glibc())
    keep_freed_memory()
    assert told == [(-3, 32 << 20), (-1, 2**31 - 1), (-2, 64 << 20)]  # as malloc.h numbers them; the values are ints
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    keep_freed_memory()

    def missing(name):
        raise OSError("no such library")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    keep_freed_memory()
