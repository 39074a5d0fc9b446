"""What a process that does nothing but run a worker tells its interpreter and its allocator.

Both are settings of the whole process, so nothing here happens on import or in `Worker`: whoever owns the process
calls `settle_memory` once, when the worker is made.
"""

import ctypes
import gc

# From malloc.h. glibc gives the top of the heap back to the kernel, and maps every larger block anew: with packets of
# 66 kB each batch's memory is faulted in again and again, about 9 us of an alert's 215.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_KEEP_BYTES = 2**30
_TOP_PAD_BYTES = 16 * 2**20
_LARGEST_HEAP_BLOCK = 32 * 2**20
"""glibc takes no larger threshold."""
_COLLECT_AFTER = 20_000
"""New containers, a few batches' worth: after 700, as by default, alerts that are still on their way are looked through
again and again, which costs 2 to 6 us an alert. What is garbage without a cycle goes at once, whatever this is."""


def settle_memory() -> bool:
    """Exempt what start-up made from garbage collection, and keep freed memory for the next batch.

    Imports leave about 90,000 objects that live as long as the process; a full collection walks over all of them.
    Frozen, a collection sees only what the alerts made; and it begins less often.

    Returns
    -------
    bool
        False where the C library has no such settings (musl, macOS): then only the first half was done.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, *gc.get_threshold()[1:])
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wanted = (
        (_M_TRIM_THRESHOLD, _KEEP_BYTES),
        (_M_TOP_PAD, _TOP_PAD_BYTES),
        (_M_MMAP_THRESHOLD, _LARGEST_HEAP_BLOCK),
    )
    return {mallopt(option, value) for option, value in wanted} == {1}
