"""JSON that strangers wrote, read strictly: bounded, no key twice, no numbers that are none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import isfinite
from typing import Any

from modelmeter.errors import InputError
from modelmeter.local.folder import Folder

#: Longest configuration; those of the Wan models have about a thousand bytes.
LONGEST_CONFIG = 1_000_000
#: Deepest nesting; configurations have two levels, an index of shards and a header three.
DEEPEST = 20


class _TwiceError(ValueError):
    """A key that stands twice in one object."""


def read_json(folder: Folder, file: str, longest: int = LONGEST_CONFIG) -> dict[str, Any] | None:
    """The JSON object in a file; ``None`` where nothing has that name.

    Raises:
        InputError: no JSON object, or one that is too long, too deep, or has a key twice.
    """
    size = folder.size(file)
    if size is None:
        return None
    data = folder.start(file, longest + 1)
    if data is None or len(data) > longest or size > longest:
        raise InputError(file, f"{size:,} bytes", f"JSON of at most {longest:,} bytes")
    return parsed(file, data)


def parsed(file: str, data: bytes) -> dict[str, Any]:
    """The JSON object that bytes hold.

    Raises:
        InputError: as :func:`read_json`.

    Example:
        >>> parsed("config.json", b'{"dim": 1536}')
        {'dim': 1536}
    """
    allowed = "a JSON object"
    try:
        found = json.loads(
            data.decode("utf-8-sig"), object_pairs_hook=_once, parse_constant=_refused, parse_float=_finite
        )
    except _TwiceError as error:
        raise InputError(f"{file}:{error}", "twice", "a key that stands once") from None
    except RecursionError:
        raise InputError(file, "deeply nested", f"{allowed} of at most {DEEPEST} levels") from None
    except UnicodeDecodeError:
        raise InputError(file, "not UTF-8", allowed) from None
    except json.JSONDecodeError as error:
        raise InputError(file, f"{error.msg} in line {error.lineno}", allowed) from None
    except ValueError as error:  # a number that is none, or an integer of too many digits
        raise InputError(file, error, f"{allowed} of finite numbers") from None
    if not isinstance(found, dict):
        raise InputError(file, type(found).__name__, allowed)
    if _deeper(found, DEEPEST):
        raise InputError(file, "deeply nested", f"{allowed} of at most {DEEPEST} levels")
    return found


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        raise _TwiceError(next(key for key, _ in pairs if key in seen or seen.add(key)))  # type: ignore[func-returns-value]
    return found


def _refused(word: str) -> Any:
    raise ValueError(word)


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(text)
    return number


def _deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects stand deeper in each other than so many levels, found level by level."""
    level = [value]
    for _ in range(levels):
        level = [
            item
            for outer in level
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, dict | list)
        ]
        if not level:
            return False
    return True
