"""Print a command of the README, so that the automatic run does what a reader would do.

Usage: readme_commands.py report|test [README]
"""

from __future__ import annotations

import sys
from pathlib import Path

#: What marks the line of each command.
MARKS = {"report": ("pip install", "modelmeter report"), "test": ("pip install", "pytest")}


def command(readme: str, name: str) -> str:
    """The first line of ``readme`` with all marks of ``name``, as it stands.

    Raises:
        ValueError: there is none, or a reader could not copy it: it is not a line of its own in a fenced block.
    """
    marks = MARKS[name]
    fenced = False
    for number, line in enumerate(readme.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif all(mark in line for mark in marks):
            if not fenced or not line.startswith("pip install"):
                raise ValueError(f"line {number} of the README must be a command of its own in a fenced block: {line}")
            return line
    raise ValueError(f"the README has no {name} command: a line with {' and '.join(map(repr, marks))}")


def main(arguments: list[str]) -> int:
    """Print the command that is asked for; 1 if the README does not give it, 2 if the question is wrong."""
    if not arguments or arguments[0] not in MARKS or len(arguments) > 2:
        print(f"usage: readme_commands.py {'|'.join(MARKS)} [README]", file=sys.stderr)
        return 2
    readme = Path(arguments[1]) if len(arguments) == 2 else Path(__file__).parents[1] / "README.md"
    try:
        print(command(readme.read_text(encoding="utf-8"), arguments[0]))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
