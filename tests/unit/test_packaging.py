"""What an installed copy promises: metadata, files, and the two commands of the README."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "modelmeter"

#: Packages that give an answer nothing; whoever needs them asks for an extra.
HEAVY = {"accelerate", "diffusers", "numpy", "pandas", "plotly", "pyarrow", "sympy", "torch", "transformers"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """The whole of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def readme_commands() -> ModuleType:
    """The script that reads the README for the automatic run."""
    spec = importlib.util.spec_from_file_location("readme_commands", ROOT / ".ci" / "readme_commands.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0].lower() for requirement in requirements}


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


# -- the two commands -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["report", "test"])
def test_readme_has_the_command(readme_commands: ModuleType, name: str) -> None:
    """The README gives both commands of the automatic run, each as a line to copy."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    line = readme_commands.command(readme, name)
    assert line in readme.splitlines()


@pytest.mark.parametrize(
    "readme",
    [
        "",
        "```\npip install -e .\nmodelmeter report wan\n```",
        "Run pip install -e . && modelmeter report wan\n```\npip install -e . && modelmeter report wan\n```",
        "pip install -e . && modelmeter report wan",
        "```\nsee\n```\npip install -e . && modelmeter report wan",
        "```\n$ pip install -e . && modelmeter report wan\n```",
    ],
    ids=["empty", "two lines", "prose first", "no fence", "after a fence", "prompt"],
)
def test_readme_without_a_command_is_refused(readme_commands: ModuleType, readme: str) -> None:
    """A README whose command is absent or cannot be copied fails the automatic run instead of passing without it."""
    with pytest.raises(ValueError, match="README"):
        readme_commands.command(readme, "report")


def test_readme_script_prints_or_fails(tmp_path: Path) -> None:
    """The script prints just the command and exits 1 where there is none."""
    script = str(ROOT / ".ci" / "readme_commands.py")
    readme = tmp_path / "README.md"
    readme.write_text('# A\n```bash\npip install -e ".[x]" && pytest\n```\n', encoding="utf-8")
    found, absent = (
        subprocess.run([sys.executable, script, name, str(readme)], capture_output=True, text=True, check=False)
        for name in ("test", "report")
    )
    assert (found.returncode, found.stdout) == (0, 'pip install -e ".[x]" && pytest\n')
    assert (absent.returncode, absent.stdout) == (1, "")
    assert "no report command" in absent.stderr


def test_automatic_run_is_executable() -> None:
    """The script of the automatic run may be started as it is and is valid bash."""
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    subprocess.run([bash, "-n", str(script)], check=True)


# -- metadata -------------------------------------------------------------------------------------------------


def test_core_dependencies_are_light(project: dict[str, Any]) -> None:
    """A plain install brings a command line and configuration, and nothing that computes."""
    core = _names(project["project"]["dependencies"])
    assert core == {"hydra-core", "omegaconf", "pyyaml", "rich", "typer"}
    assert not core & HEAVY


def test_reference_packages_are_pinned_exactly(project: dict[str, Any]) -> None:
    """The packages that verification rests on are pinned to one release each, of any build."""
    pins = _pins()
    assert _names(project["project"]["optional-dependencies"]["verify"]) == {
        "accelerate",
        "diffusers",
        "ftfy",  # which a pipeline of diffusers calls without asking whether it is there
        "torch",
        "transformers",
    }
    assert pins["torch"] == "2.13.0"
    assert pins["diffusers"] == "0.42.1"
    assert pins["transformers"] == "5.23.0"
    assert pins["accelerate"] == "1.15.0"


def test_every_dependency_is_pinned(project: dict[str, Any]) -> None:
    """The constraints pin every package that the core, an extra or the development group names, and only exactly."""
    extras = project["project"]["optional-dependencies"]
    lists = [project["project"]["dependencies"], *extras.values(), project["dependency-groups"]["dev"]]
    named = set().union(*map(_names, lists)) - {project["project"]["name"]}
    pins = _pins()
    assert named <= pins.keys()
    assert all(re.fullmatch(r"\d+(\.\d+)*", version) for version in pins.values()), "a plain release each"


def test_development_group_covers_the_test_extra(project: dict[str, Any]) -> None:
    """Who installs the development group can run the tests: it names every tool of the test extra."""
    extra = _names(project["project"]["optional-dependencies"]["test"]) - {project["project"]["name"]}
    assert extra
    assert extra <= _names(project["dependency-groups"]["dev"])


def test_installed_metadata_is_this_project(project: dict[str, Any]) -> None:
    """The installed distribution has the version of pyproject.toml and the command `modelmeter`."""
    distribution = importlib.metadata.distribution("modelmeter-video")
    assert distribution.version == project["project"]["version"]
    (command,) = distribution.entry_points.select(group="console_scripts")
    assert (command.name, command.value) == ("modelmeter", "modelmeter.cli:main")


def test_citation_has_the_version(project: dict[str, Any]) -> None:
    """Whoever cites the project cites the version and licence that pyproject.toml states."""
    lines = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    assert f"version: {project['project']['version']}" in lines
    assert f"license: {project['project']['license']}" in lines


def test_licence_is_apache() -> None:
    """LICENSE is the whole text of Apache-2.0, with its nine sections."""
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert re.findall(r"^ +(\d)\. [A-Z]", text, re.MULTILINE) == list("123456789")
    assert "END OF TERMS AND CONDITIONS" in text


def test_changelog_has_an_unreleased_section() -> None:
    """What is not released yet stands first in the changelog."""
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "[Unreleased]"


# -- files ----------------------------------------------------------------------------------------------------


def test_wheel_holds_the_whole_package(tmp_path: Path) -> None:
    """A wheel has every file of the package, data included, its licence, and nothing else."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    files = {
        path.relative_to(PACKAGE.parent).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert any(name.endswith(".yaml") for name in files)
    assert "modelmeter/py.typed" in files
    assert {name for name in held if ".dist-info/" not in name} == files
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in held)


def test_module_runs_as_the_command() -> None:
    """`python -m modelmeter` is the command `modelmeter`."""
    run = subprocess.run(
        [sys.executable, "-m", "modelmeter", "--help"], capture_output=True, text=True, check=True, timeout=120
    )
    assert "report" in run.stdout
