"""A directory that strangers wrote: only regular files inside it are opened, bounded, and never to wait on."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from modelmeter.errors import InputError

#: Most entries of one folder; a model of a thousand shards would not fit on a disk.
MOST_ENTRIES = 1000
#: What an entry is called that is no regular file.
KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
}


@dataclass(frozen=True, slots=True)
class Folder:
    """A directory with the real paths below which its files may lie; made by :func:`open_folder`."""

    root: Path
    below: tuple[Path, ...]

    @property
    def name(self) -> str:
        """Its own name, links resolved."""
        return self.root.name

    def size(self, file: str) -> int | None:
        """Bytes of a regular file; ``None`` where nothing has that name.

        Raises:
            InputError: something else than a regular file, or a link that leaves the directory.
        """
        real = self._real(file)
        return None if real is None else self._regular(file, real).st_size

    def start(self, file: str, most: int) -> bytes | None:
        """The first bytes of a file, at most so many; ``None`` where nothing has that name.

        Raises:
            InputError: as :meth:`size`, or a file that cannot be read.
        """
        real = self._real(file)
        if real is None:
            return None
        self._regular(file, real)
        try:
            # whatever may have taken the place of the file since: without waiting, and not through a link
            with open(os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as stream:
                if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                    raise InputError(file, "no regular file", "a regular file")
                return stream.read(most)
        except OSError as error:
            raise _unreadable(file, error) from None

    def names(self, folder: str) -> list[str]:
        """Names of the entries of a folder, sorted; none where there is no such folder.

        Raises:
            InputError: more entries than :data:`MOST_ENTRIES`, or a link that leaves the directory.
        """
        real = self._real(folder)
        if real is None or not real.is_dir():
            return []
        try:
            with os.scandir(real) as entries:
                found = [entry.name for entry in islice(entries, MOST_ENTRIES + 1)]
        except OSError as error:
            raise _unreadable(folder, error) from None
        if len(found) > MOST_ENTRIES:
            raise InputError(folder, f"more than {MOST_ENTRIES:,} files", "the folder of a model")
        return sorted(found)

    def _real(self, file: str) -> Path | None:
        path = self.root / file
        try:
            real = path.resolve(strict=True)
        except (FileNotFoundError, NotADirectoryError):
            if path.is_symlink():
                raise InputError(file, "a link to nothing", "a file") from None
            return None
        except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError before Python 3.13
            raise _unreadable(file, error) from None
        if not any(real.is_relative_to(root) for root in self.below):
            raise InputError(file, f"a link to {real}", "a file inside the directory")
        return real

    def _regular(self, file: str, real: Path) -> os.stat_result:
        try:
            found = real.stat()
        except OSError as error:
            raise _unreadable(file, error) from None
        if not stat.S_ISREG(found.st_mode):
            raise InputError(file, KINDS.get(stat.S_IFMT(found.st_mode), "no file"), "a regular file")
        return found


def open_folder(path: str) -> Folder:
    """The directory at a path.

    A snapshot in the cache of Hugging Face links to its blobs, which lie beside the snapshots: there links may lead.

    Raises:
        InputError: there is no directory at the path, or it cannot be read.
    """
    allowed = "a model directory, or one of the models of: modelmeter list"
    try:
        root = Path(path).resolve(strict=True)
        if not root.is_dir():
            raise InputError("model", path, allowed)
        os.access(root, os.R_OK)
    except (OSError, RuntimeError, ValueError):
        raise InputError("model", path, allowed) from None
    blobs = [
        parent.parent / "blobs"
        for parent in (root, *root.parents)
        if parent.name == "snapshots" and parent.parent.name.startswith("models--")
    ]
    return Folder(root, (root, *blobs))


def _unreadable(file: str, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or "a loop of links"
    return InputError(file, reason, "a file that can be read")
