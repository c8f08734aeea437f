"""The pages of docs/models are as the models are now; the contract shows code that is there."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import modelmeter as mm
from modelmeter.config import registry
from modelmeter.formula import formula, sizes

DOCS = Path(__file__).parents[2] / "docs"
NAMES = [entry.id for entry in registry()]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """The script that writes the pages."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_what_is_generated_now(generate: ModuleType, name: str) -> None:
    """Apart from its verification, every page is what ``python docs/generate.py models`` writes."""
    stored = (DOCS / "models" / f"{name}.md").read_text(encoding="utf-8")
    assert stored == generate.page(name, generate.previous(name))


def test_there_is_a_page_for_every_model_and_no_other() -> None:
    """A page of a model that is gone does not stay."""
    assert sorted(file.stem for file in (DOCS / "models").glob("*.md")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_verification_passed_and_says_on_what_and_when(name: str) -> None:
    """Every page has a date, the versions of the references, and a result that passed on numbers that are not zero."""
    text = (DOCS / "models" / f"{name}.md").read_text(encoding="utf-8").split("## Verification")[1]
    assert re.search(rf"`modelmeter verify layers -m {re.escape(name)}`, 20\d\d-\d\d-\d\d:", text)
    found = re.search(
        r"^passed: ([\d,]+) numbers compared, ([\d,]+) of them not zero, equal; reference (.*)$", text, re.M
    )
    assert found is not None
    compared, nonzero = (int(number.replace(",", "")) for number in found.groups()[:2])
    assert compared > nonzero > 100
    assert re.search(r"\btorch \d+\.\d+", found[3])


@pytest.mark.parametrize("preset", ["official-480p", "official-720p"])
@pytest.mark.parametrize("name", NAMES)
def test_printed_formulas_evaluate_to_the_total(name: str, preset: str) -> None:
    """Evaluated as Python, the printed closed forms times their calls are the total of the run, stage by stage."""
    estimate = mm.load(name).estimate(workload=preset)
    total = 0
    for run in estimate.runs:
        values = [eval(formula(run, call), {}, sizes(call)) * call.times for call in run.stage.calls]
        assert sum(values) == run.flops
        total += sum(values)
    assert total == estimate.flops > 0


@pytest.mark.parametrize("name", NAMES)
def test_tables_are_closed(name: str) -> None:
    """In every table of a page, FLOPs per call times calls are those of a line, and lines add up to the total."""
    text = (DOCS / "models" / f"{name}.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| component \| parameters .*?\n\n", text, re.M | re.S)
    assert len(tables) == 2
    for table in tables:
        *lines, last = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in table.split("\n")[2:-2]]
        numbers = [[int(cell.replace(",", "")) for cell in line[2:5]] for line in lines]
        assert all(once * calls == flops for once, calls, flops in numbers)
        assert sum(flops for _, _, flops in numbers) == int(last[4].replace(",", ""))
        assert last[0] == "total"


def test_the_contract_shows_code_that_is_there() -> None:
    """Every piece of code of the worked example stands, line for line, in the file that is named above it."""
    text = (DOCS / "adding-a-model.md").read_text(encoding="utf-8")
    pieces = re.findall(r"^<!-- (\S+) -->\n```\w+\n(.*?)^```$", text, re.M | re.S)
    assert len(pieces) == text.count("```") // 2 > 5
    for file, code in pieces:
        assert code in (DOCS.parent / file).read_text(encoding="utf-8"), f"{file} has no {code}"
