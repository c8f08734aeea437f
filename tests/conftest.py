"""Settings of every test."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# Laid out as a checkout by the tests that import it.
collect_ignore = ["integration/official_stand_in"]

# Nothing here needs weights: a test that asks the network for them is wrong, and fails at once.
os.environ["HF_HUB_OFFLINE"] = "1"

# The first example pays for importing the reference packages, so time says nothing about an example. "ci" is
# Hypothesis's own profile: the same examples on every run.
settings.register_profile(
    "modelmeter", parent=settings.get_profile("ci" if os.environ.get("CI") else "default"), deadline=None
)
settings.load_profile("modelmeter")


@pytest.fixture
def assert_stored() -> Callable[[Path, str], None]:
    """Compare output with a stored file; UPDATE_SNAPSHOTS=1 writes the files anew, to be read before a commit."""

    def compare(file: Path, output: str) -> None:
        if os.environ.get("UPDATE_SNAPSHOTS") == "1":
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(output, encoding="utf-8")
        assert file.exists(), f"{file.name} is not stored: write it with UPDATE_SNAPSHOTS=1 pytest"
        assert output == file.read_text(encoding="utf-8")

    return compare
