"""A scalar answer loads nothing that computes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ["diffusers", "numpy", "pandas", "plotly", "pyarrow", "sympy", "torch", "transformers"]

IMPORT = "import modelmeter"
REPORT = """
import sys
from modelmeter.cli import main
sys.argv = ["modelmeter", "report", "wan2.1-t2v-14b"]
try:
    main()
except SystemExit as end:
    if end.code not in (None, 0):
        raise
"""


def _loaded(program: str) -> tuple[list[str], str]:
    """Which heavy packages a fresh interpreter has loaded after ``program``, and what it printed before."""
    ending = f"\nimport json, sys\nprint()\nprint(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    run = subprocess.run(
        [sys.executable, "-c", program + ending], capture_output=True, text=True, check=False, timeout=120
    )
    assert run.returncode == 0, run.stderr
    printed, _, last = run.stdout.rstrip("\n").rpartition("\n")
    loaded: list[str] = json.loads(last)
    return loaded, printed


def test_import_loads_nothing_heavy() -> None:
    """`import modelmeter` loads no package that computes or plots."""
    assert _loaded(IMPORT)[0] == []


def test_report_loads_nothing_heavy() -> None:
    """`modelmeter report` prints an answer without PyTorch, NumPy, SymPy or a table library."""
    loaded, printed = _loaded(REPORT)
    assert loaded == []
    assert printed.strip()


@pytest.mark.parametrize("name", ["numpy", "sympy", "torch"])
def test_a_heavy_import_is_found(name: str) -> None:
    """The check sees a heavy package that is loaded, so that an empty list says something."""
    assert name in _loaded(f"{IMPORT}\nimport {name}")[0]
