"""The three scripts as the command line: ``modelmeter verify KIND`` with the 14B model unless another is named."""

from __future__ import annotations

import sys

from modelmeter.cli import main

#: What a script verifies when no ``--model`` is given.
DEFAULT_MODEL = "wan2.1-t2v-14b"


def run(kind: str) -> None:
    """Verify with the arguments of the process; the last ``--model`` counts."""
    main(["verify", kind, "--model", DEFAULT_MODEL, *sys.argv[1:]])
