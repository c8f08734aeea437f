"""Files are written whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from modelmeter.errors import InputError
from modelmeter.report.output import write_file


def test_the_mode_of_a_replaced_file_is_kept(tmp_path: Path) -> None:
    """A file keeps its mode; a new one has what the umask gives."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("old")
    old.chmod(0o640)
    write_file(old, "text")
    assert stat.S_IMODE(old.stat().st_mode) == 0o640
    umask = os.umask(0o027)
    try:
        write_file(new, "text")
    finally:
        os.umask(umask)
    assert stat.S_IMODE(new.stat().st_mode) == 0o640
    assert (old.read_text(), new.read_text()) == ("text", "text")


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_a_link(exists: bool, tmp_path: Path) -> None:
    """What a symbolic link leads to is written, there or not yet, and the link still leads to it."""
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "target", tmp_path / "link"
    if exists:
        target.write_text("old")
    link.symlink_to(Path("folder") / "target")
    write_file(link, "text")
    assert link.is_symlink()
    assert target.read_text() == "text"
    assert list(target.parent.iterdir()) == [target]


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    """Links that lead to one another cannot be written, and stay."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.symlink_to(second)
    second.symlink_to(first)
    with pytest.raises(InputError, match="Too many levels of symbolic links"):
        write_file(first, "text")
    assert first.is_symlink()
    assert sorted(tmp_path.iterdir()) == [first, second]


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When writing fails in the middle, the old content is there and no temporary file."""
    file = tmp_path / "file"
    file.write_text("old")

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fails)
    with pytest.raises(InputError, match="No space left on device"):
        write_file(file, "text")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
