"""Values of a configuration by key: each of the type that the real class takes, with its default."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from modelmeter.errors import InputError, shown, with_type

#: Largest integer: far above any size; the models have bounds of their own below it.
LARGEST = 10**9
#: Longest list: blocks with a hint of VACE.
LONGEST_LIST = 1000
#: Most layers of a component: far above any model, few enough to count in a moment.
MOST_LAYERS = 256
#: Most unknown keys that a warning names.
MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Key:
    """What a key may hold, in words and as a test, and what it is where it is missing, unless it is needed."""

    allowed: str
    accepts: Callable[[Any], bool]
    default: Any
    needed: bool = False


def _is_integer(value: Any, most: int = LARGEST) -> bool:
    return type(value) is int and 1 <= value <= most


def integer(default: int, most: int = LARGEST) -> Key:
    """A size of at least 1."""
    return Key(f"an integer from 1 to {most:,}", lambda value: _is_integer(value, most), default)


def optional_integer(default: int | None) -> Key:
    """A size, or null."""
    return Key("null or an integer from 1 up", lambda value: value is None or _is_integer(value), default)


def integers(default: list[int] | None, most: int = LONGEST_LIST, least: int = 1) -> Key:
    """A list of so many integers at most."""
    return Key(
        f"a list of at most {most} integers from {least} up",
        lambda value: (
            isinstance(value, list)
            and 0 < len(value) <= most
            and all(type(item) is int and least <= item <= LARGEST for item in value)
        ),
        default,
    )


def booleans(default: list[bool], most: int) -> Key:
    """A list of so many truth values at most."""
    return Key(
        f"a list of at most {most} of true and false",
        lambda value: isinstance(value, list) and len(value) <= most and all(type(item) is bool for item in value),
        default,
    )


def boolean(default: bool) -> Key:
    """True or false."""
    return Key("true or false", lambda value: type(value) is bool, default)


def number(default: float) -> Key:
    """A number above 0, as the margin of a norm."""
    return Key(
        "a number above 0, at most 1000", lambda value: type(value) in (int, float) and 0 < value <= 1000, default
    )


def only(*values: Any) -> Key:
    """One of few values, the first where the key is missing: the model cannot represent others."""
    words = " or ".join("null" if value is None else str(value).lower() for value in values)
    return Key(
        f"{words} for this model",
        lambda value: any(type(value) is type(one) and value == one for one in values),
        values[0],
    )


def needed(key: Key) -> Key:
    """A key that has to be there: without it the real class is one that the model cannot represent."""
    return replace(key, needed=True)


def values(file: str, given: Mapping[str, Any], keys: Mapping[str, Key]) -> dict[str, Any]:
    """The values of known keys.

    Raises:
        InputError: a value that its key cannot hold, or a needed key that is not there; names file and key.

    Example:
        >>> values("config.json", {"num_layers": 2, "other": 1}, {"num_layers": integer(40), "dim": integer(5120)})
        {'num_layers': 2, 'dim': 5120}
    """
    found = {}
    for key, kind in keys.items():
        if kind.needed and key not in given:
            raise InputError(f"{file}:{key}", "missing", kind.allowed)
        value = given.get(key, kind.default)
        if key in given and not kind.accepts(value):
            raise InputError(f"{file}:{key}", with_type(value), kind.allowed)
        found[key] = value
    return found


def unknown(file: str, given: Mapping[str, Any], known: Mapping[str, Key]) -> list[str]:
    """A warning for keys that the real class does not know and would leave out.

    Example:
        >>> unknown("config.json", {"dim": 1, "_class_name": "X", "ref_conv": True, "x": None}, {"dim": integer(1)})
        ['config.json: not known to the class and left out: ref_conv']
    """
    found = [
        shown(key)
        for key, value in given.items()
        if key not in known and not key.startswith("_") and value is not None and value is not False
    ]
    if not found:
        return []
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return [f"{file}: not known to the class and left out: {', '.join(found[:MOST_NAMED])}{more}"]
