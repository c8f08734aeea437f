"""The README shows what the commands print today."""

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
CONSOLE = re.compile(r"```console\n\$ (?P<command>.+)\n(?P<output>[^`]*)```")


def printed(command: str) -> str:
    """What a shell prints for a command of the README."""
    own = command.replace("modelmeter ", f"{sys.executable} -m modelmeter ", 1)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(["bash", "-o", "pipefail", "-c", own], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


COMMANDS = [found["command"] for found in CONSOLE.finditer(README.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("command", COMMANDS)
def test_console_blocks_show_real_output(command: str) -> None:
    """Every console block holds what its command prints; UPDATE_SNAPSHOTS=1 writes the block anew."""
    text = README.read_text(encoding="utf-8")
    (found,) = [block for block in CONSOLE.finditer(text) if block["command"] == command]
    output = printed(command)
    if os.environ.get("UPDATE_SNAPSHOTS") == "1":
        README.write_text(text[: found.start("output")] + output + text[found.end("output") :], encoding="utf-8")
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
