"""Locks the folder of a training run, so that a second run in it is refused."""

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
_holders: dict[str, tuple[int, int]] = {}  # folder -> (process, thread) that holds it


@contextlib.contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Lock a folder, created if missing, against other runs. The thread that holds it may lock it again.

    The system releases the lock when the process ends, also in a crash. Nothing is locked where the file system has no
    locks, or where the folder is read-only: the first save then raises an error.

    Raises:
        CheckpointError: another process or thread holds the folder.
    """
    key, me = os.path.realpath(folder), (os.getpid(), threading.get_ident())
    holder = _holders.setdefault(key, me)
    if holder[0] != me[0]:  # an entry of the parent process, copied by a fork
        holder = _holders[key] = me
    if holder is not me:
        if holder != me:
            raise _taken(folder, f"process {me[0]}, in another thread")
        yield
        return
    made = not os.path.lexists(folder)
    descriptor = None
    try:
        descriptor = _lock(folder)
        yield
    finally:
        if os.getpid() == me[0]:  # a forked child must not release its parent's lock
            del _holders[key]
            if descriptor is not None:
                with contextlib.suppress(OSError):
                    os.unlink(folder / LOCK)
                os.close(descriptor)
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # fails, as it should, if the folder holds files now


def _lock(folder: Path) -> int | None:
    """The descriptor of the locked file, or None if nothing can be locked."""
    try:
        import fcntl
    except ImportError:  # Windows has no such lock: users must not start two runs in one folder
        return None
    for _ in range(10):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            _log.debug("%s: is not held: %s", folder, error)
            return None
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock, whose lock a forked child would keep
        except (BlockingIOError, PermissionError):
            process = os.read(descriptor, 20).decode("ascii", "replace")
            os.close(descriptor)
            raise _taken(folder, f"process {process}" if process else "another process") from None
        except OSError as error:
            _log.debug("the file system of %s has no locks: %s", folder, error)
        if _is_at(descriptor, folder / LOCK):
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
            return descriptor
        os.close(descriptor)  # the other run released and deleted this file in between: try again
    return None


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def _taken(folder: Path, by: str) -> CheckpointError:
    return CheckpointError(f"a run works in it already ({by}): wait for its end, or give another folder", path=folder)
