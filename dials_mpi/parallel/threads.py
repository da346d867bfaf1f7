"""What numerical libraries and the allocator are told before anything is computed."""

import ctypes
import sys
from collections.abc import MutableMapping

_LARGEST_POOLED = 32 << 20  # bytes; the largest that glibc takes
_NEVER = 2**31 - 1


def one_thread(environment: MutableMapping[str, str]) -> None:
    """One thread per rank, and matrix products that do not depend on where in memory a matrix lies.

    Ranks that share cores would fight over them with more threads (40 times slower was measured). Intel's library picks
    another kernel, with other roundings, for another alignment, unless told to be strict: then an agent computes the
    same bits alone or stacked with others. Values that people set themselves stay.
    """
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment.setdefault(variable, "1")
    environment.setdefault("MKL_CBWR", "AVX2,STRICT")


def keep_freed_memory() -> None:
    """Arrays that are freed and made again with every minibatch stay in this process.

    By default glibc gives large ones back to the kernel, which then hands out new pages and clears them: 6 to 20 % of
    the time of a PPO update. Does nothing under other C libraries.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        mallopt(mmap_threshold, _LARGEST_POOLED)
        mallopt(trim_threshold, _NEVER)
