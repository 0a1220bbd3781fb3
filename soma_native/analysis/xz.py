"""What xz makes of a validation text after the training text: the size of both, less that of the first."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

try:
    import lzma
except ImportError:  # a Python that was compiled where liblzma was not
    lzma = None  # type: ignore[assignment]

HAS_XZ = lzma is not None
_REACH = 1 << 26  # bytes that xz -9 looks back: what stands before them is left out
_PIECE = 1 << 18  # bytes between two questions whether to stop

_log = logging.getLogger("soma_native")


class End:
    """The last bytes of some texts, or the first: as many as xz looks back."""

    def __init__(self, *, last: bool) -> None:
        self._last = last
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, texts: Iterable[str | bytes]) -> None:
        """Read more texts."""
        for text in texts:
            if not self._last and self._size >= _REACH:
                return
            data = text.encode() if isinstance(text, str) else text
            self._parts.append(data[-_REACH:] if self._last else data[:_REACH])
            self._size += len(self._parts[-1])
            while self._last and self._size - len(self._parts[0]) >= _REACH:
                self._size -= len(self._parts.pop(0))

    def joined(self) -> bytes:
        """What is kept of all."""
        data = b"".join(self._parts)
        return data[-_REACH:] if self._last else data[:_REACH]


def xz_bits(train: End, validation: End) -> float:
    """Bits per byte of the validation text in xz -9e, after the training text; both sizes are made at one time."""
    known, new = train.joined(), validation.joined()
    size = len(known) + len(new)
    reach = 1 << max(12, (size - 1).bit_length())  # more memory than for the text is of no use
    options = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": min(reach, _REACH)}
    stop = threading.Event()

    def compressed_size(*texts: bytes) -> int:
        compressor = lzma.LZMACompressor(filters=[options])
        made = 0
        for text in texts:
            for at in range(0, len(text), _PIECE):
                if stop.is_set():
                    return 0
                made += len(compressor.compress(text[at : at + _PIECE]))
        return made + len(compressor.flush())

    if size > 1 << 22:
        _log.info("xz -9e of %d MB takes about %d seconds", size >> 20, size >> 19)
    with ThreadPoolExecutor(2) as pool:
        sizes = [pool.submit(compressed_size, known), pool.submit(compressed_size, known, new)]
        try:
            return (sizes[1].result() - sizes[0].result()) * 8 / len(new)
        finally:
            stop.set()
