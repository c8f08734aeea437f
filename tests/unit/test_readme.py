"""The README and the pages show what the commands print today."""

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
CONSOLE = re.compile(r"```console\n\$ (?P<command>.+)\n(?P<output>[^`]*)```")


def printed(command: str) -> str:
    """What a shell prints for a command of the README."""
    own = command.replace("modelmeter ", f"{sys.executable} -m modelmeter ", 1)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    shell = ["bash", "-o", "pipefail", "-c", own]
    done = subprocess.run(shell, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


COMMANDS = [
    (page, found["command"])
    for page in ("README.md", "docs/model-directories.md")
    for found in CONSOLE.finditer((ROOT / page).read_text(encoding="utf-8"))
]


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_console_blocks_show_real_output(page: str, command: str) -> None:
    """Every console block holds what its command prints; UPDATE_SNAPSHOTS=1 writes the block anew."""
    text = (ROOT / page).read_text(encoding="utf-8")
    (found,) = [block for block in CONSOLE.finditer(text) if block["command"] == command]
    output = printed(command)
    if os.environ.get("UPDATE_SNAPSHOTS") == "1":
        (ROOT / page).write_text(text[: found.start("output")] + output + text[found.end("output") :], encoding="utf-8")
    else:
        assert found["output"] == output


def test_python_blocks_run() -> None:
    """Every Python example of the README gives the result that stands there."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    examples = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, "README.md", str(README), 0)
    runner = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF)
    result = runner.run(examples)
    assert result.attempted > 4
    assert result.failed == 0
