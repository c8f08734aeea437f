"""The two ways in which a question cannot be answered, each one clear line."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches

#: Longest piece of user input that an error repeats.
SHOWN = 60


class InputError(ValueError):
    """Bad input: names the field, the value and what is allowed (exit status 2).

    Example:
        >>> print(InputError("height", 481, "a multiple of 16; nearest: 480 or 496"))
        height=481: allowed is a multiple of 16; nearest: 480 or 496
    """

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(f"{shown(field)}={shown(value)}: allowed is {allowed}")


class UnavailableError(RuntimeError):
    """The reference is not available here: a package, a device or memory is missing (exit status 3)."""


class Typed(str):
    """Text as it was typed: shown without quotes and type."""

    __slots__ = ()


def shown(value: object) -> str:
    """A value from outside as one short printable line.

    Example:
        >>> shown(["a"]), len(shown("9" * 400))
        ("['a']", 60)
    """
    return _line(value, str, SHOWN)


def with_type(value: object) -> str:
    """A value of a wrong type as a short line that says which, since ``480`` and ``'480'`` look alike.

    Example:
        >>> with_type("480"), with_type(None), with_type(Typed("480.5"))
        ("'480' (str)", 'None (NoneType)', '480.5')
    """
    if isinstance(value, Typed):
        return value
    kind = f" ({type(value).__name__})"[: SHOWN // 2]
    return _line(value, repr, SHOWN - len(kind)) + kind


def printable(text: str) -> str:
    """Text from outside without what a terminal would act on.

    Example:
        >>> printable("a" + chr(27) + "[31m") == "a" + chr(92) + "x1b[31m"
        True
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def _line(value: object, to_text: Callable[[object], str], most: int) -> str:
    try:
        text = to_text(value)
    except ValueError:  # an int past Python's limit for conversion to text
        return "a number of more than 4,300 digits"
    text = printable(text)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def choice(field: str, value: object, allowed: Iterable[str], *, more: Iterable[str] = ()) -> InputError:
    """The error for a value that is none of the allowed words, with the nearest of them.

    Args:
        more: words that are allowed too but too many to list; the nearest may be one of them.

    Example:
        >>> print(choice("model", "wan2.1-t2v-14", ["wan2.1-t2v-14b", "wan2.1-t2v-1.3b"]))
        model=wan2.1-t2v-14: allowed is one of wan2.1-t2v-14b, wan2.1-t2v-1.3b; nearest: wan2.1-t2v-14b
    """
    words = list(allowed)
    near = get_close_matches(shown(value), [*words, *more], n=1, cutoff=0.4)
    return InputError(field, value, f"one of {', '.join(words)}" + (f"; nearest: {near[0]}" if near else ""))
