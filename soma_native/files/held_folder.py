"""A folder that a training run works in: a second run is refused as long as the first lives."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from soma_native.errors import CheckpointError

_log = logging.getLogger("soma_native")

LOCK = ".soma-training"
_holders: dict[str, tuple[int, int]] = {}  # process and thread, by folder


@contextlib.contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Hold a folder, made if need be, against other runs; the thread that holds it may hold it again.

    The system lets go of it when the process ends, however it ends. Where the file system has no locks, or the folder
    cannot be written to, nothing is held: saving says what is wrong with the folder.

    Raises:
        CheckpointError: another process or thread holds it.
    """
    key, me = os.path.realpath(folder), (os.getpid(), threading.get_ident())
    holder = _holders.setdefault(key, me)
    if holder[0] != me[0]:  # of the process that this one was forked from
        holder = _holders[key] = me
    if holder is not me:
        if holder != me:
            raise _taken(folder, f"process {me[0]}")
        yield
        return
    made = not os.path.lexists(folder)
    descriptor = None
    try:
        descriptor = _lock(folder)
        yield
    finally:
        if os.getpid() == me[0]:  # a forked child lets go of nothing
            del _holders[key]
            if descriptor is not None:
                with contextlib.suppress(OSError):
                    os.unlink(folder / LOCK)
                os.close(descriptor)
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # which does nothing to one that holds something by now


def _lock(folder: Path) -> int | None:
    """The locked file, or None where there can be none."""
    try:
        import fcntl
    except ImportError:  # Windows: runs in one folder are then the user's own care
        return None
    for _ in range(10):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            _log.debug("%s: is not held: %s", folder, error)
            return None
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, no forked child keeps it
        except (BlockingIOError, PermissionError):
            process = os.read(descriptor, 20).decode("ascii", "replace")
            os.close(descriptor)
            raise _taken(folder, f"process {process}") from None
        except OSError as error:
            _log.debug("the file system of %s has no locks: %s", folder, error)
        if _is_at(descriptor, folder / LOCK):
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
            return descriptor
        os.close(descriptor)  # its holder let go and took it away in between
    return None


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def _taken(folder: Path, by: str) -> CheckpointError:
    return CheckpointError(f"another training run works in it ({by}): wait for its end, or give another", path=folder)
