"""Numbers as a person reads them; exact integers belong in JSON and CSV."""

from __future__ import annotations

_PREFIXES = ((10**18, "E"), (10**15, "P"), (10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))


def scaled(value: int, unit: str) -> str:
    """Four significant digits and a decimal prefix.

    Example:
        >>> scaled(6_523_436_592_005_120, "FLOP"), scaled(0, "FLOP"), scaled(999, "")
        ('6.523 PFLOP', '0 FLOP', '999')
    """
    if value < 1000:
        return f"{value} {unit}".strip()
    value = _rounded(value)
    size, prefix = next((size, prefix) for size, prefix in _PREFIXES if value >= size)
    number = value / size
    digits = 3 if number < 10 else 2 if number < 100 else 1
    return f"{number:.{digits}f} {prefix}{unit}".strip()


def _rounded(value: int) -> int:
    """To four significant digits, before a prefix is chosen: 999,999 is 1.000 M."""
    return round(value, 4 - len(str(value)))


def share(part: int, whole: int) -> str:
    """Percentage with two decimals.

    Example:
        >>> share(1, 3), share(0, 0)
        ('33.33 %', '-')
    """
    return f"{100 * part / whole:.2f} %" if whole else "-"
