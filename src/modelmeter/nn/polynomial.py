"""Exact polynomials with integer coefficients: the dimensions of a closed form.

A dimension of a tensor is an ``int`` (a number is wanted) or a :class:`Polynomial` (a formula is wanted).
Both go through the same ``forward``. Everything stays exact: coefficients are Python integers, and a
division that leaves a remainder raises instead of rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

#: A product of symbols in sorted order, a power written by repetition: ``("S", "S")`` is S squared.
Monomial: TypeAlias = tuple[str, ...]


#: A size that is 1 stays a literal 1, since broadcasting and copies depend on it; a symbol is at least this.
SMALLEST_SYMBOL = 2


class Polynomial:
    """A polynomial in named symbols that is not a constant; constants are plain ``int``.

    Args:
        terms: integer coefficient of every monomial, zero coefficients left out.

    Raises:
        ValueError: a floor division with a remainder, or an evaluation without a needed symbol.
        TypeError: an order comparison or a truth test, which a formula cannot answer.

    Example:
        >>> S, D = symbol("S"), 8
        >>> 2 * S * D + S * 4
        20*S
        >>> (4 * S * S + 6 * S) // (2 * S)
        2*S + 3
        >>> evaluate(S * S, {"S": 5})
        25
    """

    __slots__ = ("_hash", "terms")

    def __init__(self, terms: Mapping[Monomial, int]) -> None:
        self.terms: Mapping[Monomial, int] = terms
        self._hash: int | None = None

    def __add__(self, other: Dim) -> Dim:
        terms = dict(self.terms)
        for monomial, coefficient in _terms(other).items():
            total = terms.get(monomial, 0) + coefficient
            if total:
                terms[monomial] = total
            else:
                terms.pop(monomial, None)
        return _simplest(terms)

    __radd__ = __add__

    def __neg__(self) -> Polynomial:
        return Polynomial({monomial: -coefficient for monomial, coefficient in self.terms.items()})

    def __sub__(self, other: Dim) -> Dim:
        return self + -other

    def __rsub__(self, other: int) -> Dim:
        return -self + other

    def __mul__(self, other: Dim) -> Dim:
        if isinstance(other, int):
            if other == 0:
                return 0
            return Polynomial({monomial: c * other for monomial, c in self.terms.items()})
        terms: dict[Monomial, int] = {}
        for left, a in self.terms.items():
            for right, b in other.terms.items():
                monomial = tuple(sorted(left + right))
                total = terms.get(monomial, 0) + a * b
                if total:
                    terms[monomial] = total
                else:
                    del terms[monomial]
        return _simplest(terms)

    __rmul__ = __mul__

    def __pow__(self, exponent: int) -> Dim:
        product: Dim = 1
        for _ in range(exponent):
            product = product * self
        return product

    def __floordiv__(self, other: Dim) -> Dim:
        return _divide(self, other)

    def __rfloordiv__(self, other: int) -> Dim:
        return _divide(other, self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Polynomial) and self.terms == other.terms

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(frozenset(self.terms.items()))
        return self._hash

    def __bool__(self) -> bool:
        raise TypeError(f"the truth of a formula depends on its symbols: {self}")

    def _no_order(self, other: object) -> bool:
        raise TypeError(f"the order of formulas depends on their symbols: {self} and {other}")

    __lt__ = __le__ = __gt__ = __ge__ = _no_order

    def __repr__(self) -> str:
        return to_text(self)


#: A dimension, a count of FLOPs or of bytes: an exact integer or an exact formula.
Dim: TypeAlias = int | Polynomial


def symbol(name: str) -> Polynomial:
    """The polynomial that is just the symbol ``name``.

    Example:
        >>> symbol("L") + 257
        L + 257
    """
    return Polynomial({(name,): 1})


def evaluate(value: Dim, symbols: Mapping[str, int]) -> int:
    """The integer that ``value`` takes when every symbol has its number; exact at any size.

    Raises:
        ValueError: a symbol of the formula has no number.

    Example:
        >>> evaluate(2 * symbol("S") * symbol("S") + 1, {"S": 10**12})
        2000000000000000000000001
    """
    if isinstance(value, int):
        return value
    total = 0
    try:
        for monomial, coefficient in value.terms.items():
            for name in monomial:
                coefficient *= symbols[name]
            total += coefficient
    except KeyError as missing:
        raise ValueError(f"no value for the symbol {missing.args[0]} of {value}") from None
    return total


def substitute(value: Dim, symbols: Mapping[str, Dim]) -> Dim:
    """``value`` with some symbols replaced by numbers or formulas; the other symbols stay.

    Example:
        >>> substitute(symbol("B") * symbol("S"), {"B": 2})
        2*S
    """
    if isinstance(value, int):
        return value
    total: Dim = 0
    for monomial, coefficient in value.terms.items():
        product: Dim = coefficient
        for name in monomial:
            product = product * symbols.get(name, Polynomial({(name,): 1}))
        total = total + product
    return total


def floor_divide(value: Dim, divisor: int) -> Dim:
    """How often ``divisor`` fits into ``value``: exact where what is left over is a number, whatever the symbols.

    Raises:
        ValueError: what is left over depends on a symbol.

    Example:
        >>> floor_divide(8 * symbol("n") + 4, 8), floor_divide(12, 8)
        (n, 1)
    """
    if isinstance(value, int):
        return value // divisor
    return (value - value.terms.get((), 0) % divisor) // divisor


def at_least(larger: Dim, smaller: Dim, minimum: Mapping[str, int]) -> bool:
    """Whether ``larger >= smaller`` surely holds while every symbol is at least its ``minimum``.

    Both are rewritten in the excess of each symbol over its minimum; when no coefficient of the difference
    is negative there, neither is the difference. ``False`` means "not proven", not "smaller".

    Example:
        >>> S = symbol("S")
        >>> at_least(S * S, 2 * S, {"S": 2}), at_least(S * S, 2 * S, {"S": 1})
        (True, False)
    """
    difference = larger - smaller
    if isinstance(difference, int):
        return difference >= 0
    if all(coefficient > 0 for coefficient in difference.terms.values()):
        return True
    names = {name for monomial in difference.terms for name in monomial}
    shifted = substitute(difference, {name: symbol(name) + minimum.get(name, 0) for name in names})
    return shifted >= 0 if isinstance(shifted, int) else all(c > 0 for c in shifted.terms.values())


def to_text(value: Dim) -> str:
    """The formula as text that Python and SymPy read, highest degree first.

    Example:
        >>> to_text(symbol("S") * symbol("S") * 4 - 3)
        '4*S**2 - 3'
    """
    if isinstance(value, int):
        return str(value)
    text = ""
    for monomial, coefficient in sorted(value.terms.items(), key=lambda term: (-len(term[0]), term[0])):
        powers = [
            name if monomial.count(name) == 1 else f"{name}**{monomial.count(name)}" for name in dict.fromkeys(monomial)
        ]
        factors = ([] if abs(coefficient) == 1 and powers else [str(abs(coefficient))]) + powers
        sign = " - " if coefficient < 0 else " + "
        text += (sign if text else sign.strip().replace("+", "")) + "*".join(factors)
    return text


def _terms(value: Dim) -> Mapping[Monomial, int]:
    if isinstance(value, Polynomial):
        return value.terms
    return {(): value} if value else {}


def _simplest(terms: dict[Monomial, int]) -> Dim:
    """A plain ``int`` where no symbol is left."""
    if not terms:
        return 0
    if len(terms) == 1 and () in terms:
        return terms[()]
    return Polynomial(terms)


def _divide(dividend: Dim, divisor: Dim) -> Dim:
    """Exact quotient by long division on the leading monomials (graded order, then alphabetical)."""
    quotient: Dim = 0
    remainder = dividend
    lead, lead_coefficient = max(_terms(divisor).items(), key=_rank)
    while rest := _terms(remainder):
        monomial, coefficient = max(rest.items(), key=_rank)
        missing = list(monomial)
        try:
            for name in lead:
                missing.remove(name)
        except ValueError:
            missing_factor = True
        else:
            missing_factor = coefficient % lead_coefficient != 0
        if missing_factor:
            raise ValueError(f"{to_text(dividend)} is not divisible by {to_text(divisor)} for every size")
        part = _simplest({tuple(missing): coefficient // lead_coefficient})
        quotient = quotient + part
        remainder = remainder - part * divisor
    return quotient


def _rank(term: tuple[Monomial, int]) -> tuple[int, Monomial]:
    # Graded lexicographic with symbols reversed in order: any monomial order makes exact division end.
    return len(term[0]), term[0]
