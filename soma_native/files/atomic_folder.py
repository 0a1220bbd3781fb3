"""Replaces several files of a folder at once: after a crash at any point, readers see all old files or all new ones.

New files are written into a hidden folder inside the target and flushed to disk. One rename of that folder to
`.soma-pending` puts them in force. Then each file is moved to its own name. Readers use `FolderView`, which looks into
`.soma-pending` first, so a crash between two moves does not matter to them. The next save finishes the moves. Reading
never writes. Files that the save does not name are never touched.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from soma_native.errors import CheckpointError
from soma_native.files.untrusted import open_regular, parse_json

_log = logging.getLogger("soma_native")

STAGING_PREFIX = ".soma-saving-"
PENDING = ".soma-pending"
MANIFEST = ".soma-manifest.json"
_MAX_MANIFEST_BYTES = 1 << 20


class Staging:
    """The files of a `with replace_files(...)` block: new ones are written into `path`; `remove` deletes old ones."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.removed: set[str] = set()

    def remove(self, name: str) -> None:
        """Let the change also delete `name`, unless a new file of that name was written."""
        self.removed.add(plain_name(name))


class FolderView:
    """A folder's files after its last change, also if a crash left files of that change in `.soma-pending`.

    Args:
        folder: the folder to read. Nothing in it is ever changed.

    Raises:
        CheckpointError: an unfinished change left a manifest that cannot be read.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._staged: frozenset[str] = frozenset()
        self._removed: frozenset[str] = frozenset()
        manifest = _read_manifest(self.folder)
        if manifest is not None:
            self._staged, self._removed = manifest

    def path(self, name: str) -> Path:
        """The path of the file `name` now. If the folder has no such file, nothing exists at this path."""
        staged = self.folder / PENDING / name
        if name in self._removed or (name in self._staged and os.path.lexists(staged)):
            return staged  # for a removed name this path does not exist: the pending folder never holds one
        return self.folder / name


def stamp(folder: str | os.PathLike[str]) -> tuple[object, ...]:
    """A value that changes when another process completes or advances a save. Readers compare it before and after."""

    def identity(path: Path) -> tuple[int, int, int] | None:
        try:
            found = os.lstat(path)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    return identity(Path(folder)), identity(Path(folder) / PENDING)


@contextlib.contextmanager
def replace_files(folder: str | os.PathLike[str]) -> Iterator[Staging]:
    """Replace files of `folder` (created if missing) all at once, or none of them if the block raises or power fails.

    Args:
        folder: the folder of the files. Savers of one folder wait for each other.

    Raises:
        CheckpointError: the folder or a file cannot be written (disk full, read-only, no folder). The old files are
            unchanged, and temporary files are deleted.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with replace_files(folder) as staging:
    ...     _ = (staging.path / "a.txt").write_text("one")
    ...     _ = (staging.path / "b.txt").write_text("two")
    >>> sorted(os.listdir(folder))
    ['a.txt', 'b.txt']
    """
    folder = Path(folder)
    made = not os.path.lexists(folder)
    committed = False
    try:
        if os.path.lexists(folder) and not folder.is_dir():
            kind = "a broken link" if folder.is_symlink() else "a file"
            raise CheckpointError(f"is {kind} where a folder is expected", path=folder)
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            _finish_pending(folder)
            staging = Staging(folder / f"{STAGING_PREFIX}{uuid.uuid4().hex}")
            try:
                staging.path.mkdir()
                yield staging
                names = _settle(folder, staging)
                if names or staging.removed:
                    _seal(folder, staging, names)
                    committed = True
                    _finish_pending(folder)
            finally:
                shutil.rmtree(staging.path, ignore_errors=True)
    except CheckpointError:
        _forget_empty(folder, made)
        raise
    except OSError as error:
        if committed:  # the new files are in force, only the cleanup failed
            _log.warning("%s: saved, but not tidied up (%s); the next save will do it", folder, error)
            return
        _forget_empty(folder, made)
        where = f" ({error.filename})" if error.filename and Path(error.filename) != folder else ""
        raise CheckpointError(
            f"cannot save here: {error.strerror or error}{where}; what was here before is unchanged", path=folder
        ) from error
    except BaseException:
        _forget_empty(folder, made)
        raise


def _settle(folder: Path, staging: Staging) -> list[str]:
    """Flush the new files, drop those that are equal to the old ones, and refuse names that cannot be replaced."""
    names = []
    for entry in sorted(os.listdir(staging.path)):
        new, old = staging.path / entry, folder / entry
        if old.is_dir() and not old.is_symlink():
            raise CheckpointError("is a folder where the saved file must go; move it away", path=old)
        if old.is_file() and not old.is_symlink() and filecmp.cmp(new, old, shallow=False):
            os.unlink(new)  # other programs may read the old file: an equal one does not replace it
        else:
            with open(new, "rb+") as file:
                os.fsync(file.fileno())
            names.append(entry)
        staging.removed.discard(entry)
    staging.removed = {name for name in staging.removed if os.path.lexists(folder / name)}
    return names


def _seal(folder: Path, staging: Staging, names: list[str]) -> None:
    """Write the manifest and rename the staging folder. The rename puts the new files in force."""
    with open(staging.path / MANIFEST, "w", encoding="utf-8") as file:
        json.dump({"files": names, "removed": sorted(staging.removed)}, file)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(staging.path)
    os.rename(staging.path, folder / PENDING)
    _sync_folder(folder)


def _finish_pending(folder: Path) -> None:
    """Move the files of a change in force to their names, and delete the staging folders of crashed savers."""
    pending = folder / PENDING
    manifest = _read_manifest(folder)
    if manifest is not None:
        staged, removed = manifest
        # Weights first, for readers that do not know the pending folder. When a model is saved again after more
        # training, only its weights change, so these readers see a complete change after the first move.
        for name in sorted(staged, key=lambda name: (not name.endswith(".safetensors"), name)):
            if os.path.lexists(pending / name):
                os.replace(pending / name, folder / name)
        for name in sorted(removed):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(folder / name)
        _sync_folder(folder)
        os.unlink(pending / MANIFEST)  # all moves are done: readers need not look here
    if pending.is_dir() and not pending.is_symlink():
        shutil.rmtree(pending)
    for entry in os.listdir(folder):
        if entry.startswith(STAGING_PREFIX):
            shutil.rmtree(folder / entry, ignore_errors=True)


def _read_manifest(folder: Path) -> tuple[frozenset[str], frozenset[str]] | None:
    """The (files, removed) names of a change in force with unfinished moves; None if no change is pending."""
    path = folder / PENDING / MANIFEST
    if not os.path.lexists(path):
        return None
    if path.parent.is_symlink():
        raise CheckpointError("is a link, which no save makes; remove it", path=path.parent)
    with open_regular(path) as file:
        document = parse_json(file.read(_MAX_MANIFEST_BYTES), path)
    lists: list[Any] = [document.get("files"), document.get("removed")] if isinstance(document, dict) else []
    if not lists or not all(isinstance(names, list) and all(isinstance(n, str) for n in names) for names in lists):
        raise CheckpointError("does not list the files of the save it belongs to", path=path)
    try:
        staged, removed = (frozenset(plain_name(name) for name in names) for names in lists)
    except ValueError as error:
        raise CheckpointError(str(error), path=path) from None
    return staged, removed


def plain_name(name: str) -> str:
    """`name` if it is a plain file name, which cannot lead out of the folder. Else raises a ValueError."""
    if not name or name in {".", "..", MANIFEST} or "\0" in name or name != os.path.basename(name) or "\\" in name:
        raise ValueError(f"{name!r} is not a plain file name")
    return name


def _forget_empty(folder: Path, made: bool) -> None:
    """Delete the folder if this save made it and it is empty."""
    if made:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _sync_folder(folder: Path) -> None:
    """Flush renames in `folder` to disk, if the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems refuse this for folders
        _log.debug("cannot sync the folder %s", folder)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Lock the folder against other savers. The system releases the lock when the process ends, also in a crash."""
    try:
        import fcntl
    except ImportError:  # Windows has no such lock: users must not save to one folder twice at a time
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            _log.debug("the file system of %s has no locks", folder)
        yield
    finally:
        os.close(descriptor)
