"""The rooms import one way, and only `verify` sees the reference packages."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LAYERS = "Imports run one way"
SCRIPTS = "Only verify imports the scripts of a model"
REFERENCES = "Only verify and the scripts of a model import the reference packages"


def _lint(source: Path) -> subprocess.CompletedProcess[str]:
    """Check the package in the directory ``source`` against the contracts of this project."""
    # The checker imports from the directory it runs in before anything installed.
    program = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"
    options = ["--config", str(ROOT / "pyproject.toml"), "--no-cache", "--no-logo"]
    return subprocess.run(
        [sys.executable, "-c", program, *options], cwd=source, capture_output=True, text=True, check=False, timeout=120
    )


def _copy(folder: Path) -> Path:
    """A copy of the package in ``folder`` where both rooms that may import the reference are present."""
    package = folder / "modelmeter"
    shutil.copytree(ROOT / "src" / "modelmeter", package, ignore=shutil.ignore_patterns("__pycache__"))
    for room in ("verify", "models/wan2_1/scripts"):
        (package / room).mkdir(exist_ok=True)
        (package / room / "__init__.py").touch()
    return package


def test_imports_run_one_way() -> None:
    """Every import of the package keeps the order of the rooms and the walls around the reference packages."""
    run = _lint(ROOT / "src")
    assert run.returncode == 0, run.stdout + run.stderr
    for contract in (LAYERS, SCRIPTS, REFERENCES):
        assert f"{contract} KEPT" in run.stdout


@pytest.mark.parametrize(
    ("module", "statement", "contract", "named"),
    [
        ("nn/dtype.py", "import torch", REFERENCES, "modelmeter.nn.dtype -> torch"),
        ("errors.py", "from diffusers import x", REFERENCES, "modelmeter.errors -> diffusers"),
        ("models/extra.py", "def f():\n    import transformers", REFERENCES, "modelmeter.models.extra -> transformers"),
        ("nn/tensor.py", "import modelmeter.models", LAYERS, "modelmeter.nn.tensor -> modelmeter.models"),
        ("models/extra.py", "from modelmeter import flops", LAYERS, "modelmeter.models.extra -> modelmeter.flops"),
        ("new_room.py", "", LAYERS, "- modelmeter.new_room"),
        ("models/wan2_1/extra.py", "from .scripts import x", SCRIPTS, "modelmeter.models.wan2_1.scripts"),
    ],
    ids=["torch", "diffusers", "late", "upwards", "fold", "new room", "scripts"],
)
def test_a_wrong_import_is_found(tmp_path: Path, module: str, statement: str, contract: str, named: str) -> None:
    """One import against the order, or a room without a place in it, breaks the contract that forbids it."""
    package = _copy(tmp_path)
    with (package / module).open("a", encoding="utf-8") as file:
        file.write(f"\n{statement}\n")
    run = _lint(tmp_path)
    assert run.returncode == 1, run.stdout + run.stderr
    assert f"{contract} BROKEN" in run.stdout
    assert named in run.stdout


def test_scripts_and_verify_may_import_the_reference(tmp_path: Path) -> None:
    """The wall lets through whom it should: verification and the scripts of a model import PyTorch."""
    package = _copy(tmp_path)
    for room in ("verify", "models/wan2_1/scripts"):
        (package / room / "extra.py").write_text("import torch.nn\nimport modelmeter.verify.extra\n", encoding="utf-8")
    run = _lint(tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
