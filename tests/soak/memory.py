"""What this process has allocated, as the C library says it."""

import ctypes
import gc
import typing


class HeapFacts(ctypes.Structure):
    """glibc's struct mallinfo2."""

    names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_: typing.ClassVar = [(name, ctypes.c_size_t) for name in names]


def heap_bytes():
    """What is allocated and not freed: unlike resident memory it knows nothing of gaps between pieces."""
    gc.collect()
    library = ctypes.CDLL(None)
    library.mallinfo2.restype = HeapFacts
    facts = library.mallinfo2()
    return facts.uordblks + facts.hblkhd
