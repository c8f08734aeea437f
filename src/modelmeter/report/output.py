"""Writing results: whole files or none, and a terminal that may go away."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from rich.console import RenderableType

from modelmeter.errors import InputError

#: What a formatter gives: text to write as it is, or something that Rich renders for the terminal.
Output: TypeAlias = str | RenderableType


def write_file(path: Path, text: str) -> None:
    """Write a file whole: a temporary file beside it, then a rename.

    A device, a pipe and the file that a standard stream goes to are written directly.

    Raises:
        InputError: the path cannot be written.
    """
    data = text.encode()
    try:
        stream = _stream(path)
        if stream is not None:
            with open(stream, "wb", closefd=False) as file:
                file.write(data)
        elif path.exists() and not stat.S_ISREG(path.stat().st_mode):
            with path.open("wb") as file:
                file.write(data)
        else:
            _replace(_target(path), data)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError("output", path, f"a file that can be written ({reason})") from None


def _stream(path: Path) -> int | None:
    """The standard stream that goes to this file, as ``/dev/stdout`` does: replacing it would lose what is there."""
    for descriptor in (1, 2):
        with suppress(OSError, ValueError):
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                return descriptor
    return None


def _target(path: Path) -> Path:
    """The file that a symbolic link leads to: it is replaced, not the link."""
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return target


def _replace(path: Path, data: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _mode(path))
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _mode(path: Path) -> int:
    """The mode of the file that is replaced, or what the umask gives a new one."""
    if path.exists():
        return stat.S_IMODE(path.stat().st_mode)
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask
