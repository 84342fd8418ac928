"""Memory that a step frees stays with the process, on CPUs: the next layer's tensors then need no new pages.

glibc maps blocks of more than a few MiB anew each time, and gives what is free at the top of its heap back at once. A
step on a CPU makes thousands of such blocks; the page faults are up to a tenth of its time.
"""

from __future__ import annotations

import ctypes

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
"""Parameters of `mallopt(3)`."""


def keep_freed_memory() -> None:
    """Keep freed blocks of up to 32 MiB (the most that glibc lets be kept); does nothing with another allocator."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(MMAP_THRESHOLD, 32 << 20)
    mallopt(TRIM_THRESHOLD, 2**31 - 1)
    mallopt(TOP_PAD, 64 << 20)
