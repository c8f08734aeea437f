"""Closed forms as text that Python evaluates: what one call of a component costs, in the sizes of its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from modelmeter.estimate import StageRun
from modelmeter.nn import Dim, Polynomial, to_text
from modelmeter.stage import Call

#: Sizes that have a letter of their own, and products of sizes that are written as one.
LETTERS: Mapping[str, str] = {"batch": "B", "text_len": "L", "image_tokens": "I"}
PRODUCTS: Mapping[str, tuple[str, ...]] = {"S": ("frames", "rows", "columns"), "P": ("rows", "columns")}


def formula(run: StageRun, call: Call) -> str:
    """FLOPs of one call of a stage: forwards of the same closed form together, each times how often they run.

    Example:
        >>> import modelmeter as mm
        >>> (run,) = mm.load("wan2.1-t2v-1.3b").estimate().runs[1:2]
        >>> formula(run, run.stage.calls[0])
        '184320*L*S + 184320*S**2 + 300417024*L + 2501246976*S + 33816576'
    """
    times: dict[str, int] = {}
    for forward, _, form in run.forwards:
        if any(forward is own for own in call.forwards) and form.flops_form != 0:
            text = to_text(lettered(form.flops_form))
            times[text] = times.get(text, 0) + forward.times
    if list(times.values()) == [1]:
        return next(iter(times))
    return " + ".join(f"{n}*({text})" if n > 1 else f"({text})" for text, n in times.items()) or "0"


def lettered(value: Dim) -> Dim:
    """A closed form with :data:`LETTERS` for sizes and :data:`PRODUCTS` where a term has all sizes of one.

    Example:
        >>> from modelmeter.nn import symbol
        >>> lettered(symbol("rows") * symbol("columns") * symbol("columns") * symbol("text_len"))
        L*P*columns
    """
    if isinstance(value, int):
        return value
    terms: dict[tuple[str, ...], int] = {}
    for monomial, coefficient in value.terms.items():
        names = list(monomial)
        for letter, parts in PRODUCTS.items():
            while all(part in names for part in parts):
                for part in parts:
                    names.remove(part)
                names.append(letter)
        key = tuple(sorted(LETTERS.get(name, name) for name in names))
        terms[key] = terms.get(key, 0) + coefficient
    return Polynomial(terms)


def sizes(call: Call) -> dict[str, int]:
    """What the names in the formula of a call stand for.

    Example:
        >>> import modelmeter as mm
        >>> run = mm.load("wan2.1-t2v-1.3b").estimate().runs[1]
        >>> eval(formula(run, run.stage.calls[0]), sizes(run.stage.calls[0]))
        283001787777024
    """
    found = {name: size for forward in call.forwards for name, size in forward.dims.items()}
    letters = {letter: found[name] for name, letter in LETTERS.items() if name in found}
    products = {
        letter: prod(found[part] for part in parts)
        for letter, parts in PRODUCTS.items()
        if all(part in found for part in parts)
    }
    return {**found, **letters, **products}
