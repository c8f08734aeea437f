"""Laws of exact polynomials."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from modelmeter.nn import Dim, at_least, evaluate, substitute, symbol, to_text

NAMES = ("B", "L", "S")


@st.composite
def dims(draw: st.DrawFn) -> Dim:
    """A random polynomial in three symbols."""
    total: Dim = draw(st.integers(-50, 50))
    for _ in range(draw(st.integers(0, 4))):
        term: Dim = draw(st.integers(-20, 20))
        for name in draw(st.lists(st.sampled_from(NAMES), max_size=3)):
            term = term * symbol(name)
        total = total + term
    return total


values = st.fixed_dictionaries({name: st.integers(-1000, 10**25) for name in NAMES})


@given(dims(), dims(), values)
def test_arithmetic_commutes_with_evaluation(a: Dim, b: Dim, at: dict[str, int]) -> None:
    """Adding, subtracting and multiplying formulas gives what the same steps give on integers, at any size."""
    assert evaluate(a + b, at) == evaluate(a, at) + evaluate(b, at)
    assert evaluate(a - b, at) == evaluate(a, at) - evaluate(b, at)
    assert evaluate(a * b, at) == evaluate(a, at) * evaluate(b, at)


@given(dims(), dims())
def test_division_undoes_multiplication(a: Dim, b: Dim) -> None:
    """A product divided by one factor is the other factor, as a formula."""
    assume(b != 0)
    assert (a * b) // b == a


@given(dims(), dims(), dims())
def test_division_with_a_remainder_raises(a: Dim, b: Dim, rest: Dim) -> None:
    """A division that does not come out even raises instead of rounding."""
    divisor = b * symbol("S") + symbol("B") ** 4
    assume(rest != 0)
    with pytest.raises(ValueError, match="not divisible"):
        (a * divisor + rest) // divisor


@given(dims(), values)
def test_text_is_the_formula(a: Dim, at: dict[str, int]) -> None:
    """The printed formula, read by Python, has the value of the formula."""
    assert eval(to_text(a), {}, dict(at)) == evaluate(a, at)


@given(dims(), dims(), st.fixed_dictionaries({name: st.integers(2, 50) for name in NAMES}))
def test_at_least_is_never_wrong(a: Dim, b: Dim, at: dict[str, int]) -> None:
    """Where one formula is proven at least the other, it is so at every size from the minimum up."""
    if at_least(a, b, dict.fromkeys(NAMES, 2)):
        assert evaluate(a, at) >= evaluate(b, at)


def test_at_least_proves_what_holds_only_above_the_minimum() -> None:
    """S squared is proven at least 2 S from S = 2 up, and not from S = 1 up."""
    s = symbol("S")
    assert at_least(s * s, 2 * s, {"S": 2})
    assert not at_least(s * s, 2 * s, {"S": 1})


@given(dims(), values)
def test_substitution_in_parts_is_evaluation(a: Dim, at: dict[str, int]) -> None:
    """Replacing one symbol and evaluating the rest gives the value of the whole."""
    partly = substitute(a, {"S": at["S"]})
    assert evaluate(partly, at) == evaluate(a, at)


def test_formulas_refuse_questions_that_depend_on_sizes() -> None:
    """Truth, order and evaluation without a needed symbol raise."""
    s = symbol("S")
    with pytest.raises(TypeError, match="truth"):
        bool(s)
    with pytest.raises(TypeError, match="order"):
        assert s < 3
    with pytest.raises(ValueError, match="no value for the symbol S"):
        evaluate(s, {"B": 1})
