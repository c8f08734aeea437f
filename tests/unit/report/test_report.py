"""Reports: stored output, and the invariants that hold for any of it."""

import csv
import json
import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest

import modelmeter as mm
from modelmeter.cli import plain
from modelmeter.config import registry
from modelmeter.report.document import document
from modelmeter.report.formats import FORMATS
from modelmeter.report.output import Output
from modelmeter.report.rows import folded, to_depth, top
from modelmeter.report.units import scaled

SNAPSHOTS = Path(__file__).parent / "snapshots"
MODELS = [entry.id for entry in registry()]


def text(output: Output) -> str:
    """What is written to a file."""
    return output if isinstance(output, str) else plain(output)


@pytest.mark.parametrize("format", ["table", "markdown", "latex"])
@pytest.mark.parametrize("name", MODELS)
def test_the_report_of_the_default_workload_is_as_stored(
    name: str, format: str, assert_stored: Callable[[Path, str], None]
) -> None:
    """The table of every model's default workload has not changed since it was last looked at."""
    output = text(FORMATS[format](mm.load(name).estimate(), depth=2, count=None))
    assert_stored(SNAPSHOTS / f"{name}.{format}.txt", output)


@pytest.mark.parametrize("name", MODELS)
def test_rows_add_up_to_the_total(name: str) -> None:
    """Folded rows lose nothing: their own FLOPs sum to the total, those of depth 0 too, and parameters as well."""
    estimate = mm.load(name).estimate()
    rows = folded(estimate.nodes)
    assert sum(row.own_flops for row in rows) == estimate.flops
    assert sum(row.flops for row in rows if row.depth == 0) == estimate.flops
    by_id = {row.id: row for row in rows}
    for row in rows:
        below = [other for other in rows if other.parent == row.id]
        assert row.flops == row.own_flops + sum(other.flops for other in below)
        assert row.depth == 0 or row.parent in by_id


def test_the_printed_column_adds_up() -> None:
    """On the printed text, the shares of the rows below a row add up to its share."""
    lines = text(FORMATS["table"](mm.load("wan2.1-t2v-14b").estimate(), depth=2, count=None)).splitlines()
    shares = {
        len(found[1]) // 2: 0.0 for line in lines if (found := re.match(r"( *)\S.* ([\d.]+) %$", line)) is not None
    }
    for line in lines:
        if found := re.match(r"( *)\S.* ([\d.]+) %$", line):
            shares[len(found[1]) // 2] += float(found[2])
    assert shares[0] == 100
    assert shares[1] == pytest.approx(100, abs=0.05)
    assert shares[2] == pytest.approx(100, abs=0.05)


@pytest.mark.parametrize("name", MODELS)
def test_the_document_holds_every_node_and_exact_integers(name: str) -> None:
    """JSON has every module of the components, integers only, and its stages sum exactly to the total."""
    model = mm.load(name)
    parsed = json.loads(text(FORMATS["json"](model.estimate(), depth=0, count=1)))
    assert parsed == document(model.estimate())
    assert parsed["schema"] == "modelmeter.report/1"
    assert parsed["model"]["id"] == name
    assert sum(stage["flops"] for stage in parsed["stages"]) == parsed["totals"]["flops"]
    for stage in parsed["stages"]:
        below = [node for node in parsed["nodes"] if node["id"].split(".")[0] == stage["id"]]
        assert sum(node["own_flops"] for node in below) == stage["flops"]
    plan = model.plan(model.workload())
    roots = [model.components[stage.component].entry(stage.forwards[0][0].label) for stage in plan.stages]
    assert len(parsed["nodes"]) == sum(1 for root in roots for _ in root.named_modules()) > 100
    assert all(type(node[key]) is int for node in parsed["nodes"] for key in ("calls", "flops", "own_flops", "params"))
    ids = {node["id"] for node in parsed["nodes"]}
    assert all(node["parent"] is None or node["parent"] in ids for node in parsed["nodes"])
    assert parsed["not_modelled"] == list(plan.not_modelled)


def test_csv_reads_back() -> None:
    """CSV has one line for every node with the same integers as JSON."""
    estimate = mm.load("wan2.1-t2v-1.3b").estimate()
    lines = list(csv.DictReader(StringIO(text(FORMATS["csv"](estimate, depth=2, count=None)))))
    assert [line["id"] for line in lines] == [node.id for node in estimate.nodes]
    assert sum(int(line["own_flops"]) for line in lines) == estimate.flops
    kinds = [key for key in lines[0] if key.startswith("flops.")]
    stages = [line for line in lines if not line["parent"]]
    assert sum(int(line[kind]) for line in stages for kind in kinds) == estimate.flops


def test_ops_csv_holds_every_kernel() -> None:
    """Kernels sum to the total; those that multiply matrices cost 2 batch m n k, attention twice that."""
    estimate = mm.load("wan2.1-t2v-1.3b").estimate()
    lines = list(csv.DictReader(StringIO(text(FORMATS["ops-csv"](estimate, depth=2, count=None)))))
    assert sum(int(line["count"]) * int(line["flops"]) for line in lines) == estimate.flops
    products = [line for line in lines if line["batch"]]
    assert len(products) > 500
    for line in products:
        once = 2 * int(line["batch"]) * int(line["m"]) * int(line["n"]) * int(line["k"])
        assert int(line["flops"]) == (2 * once if line["kind"] == "attention" else once)
    assert {line["flops"] for line in lines if not line["batch"]} == {"0"}


def test_depth_and_top_choose_rows() -> None:
    """Depth 0 leaves the stages; top gives the largest own FLOPs in order."""
    rows = folded(mm.load("wan2.1-t2v-14b").estimate().nodes)
    assert [row.id for row in to_depth(rows, 0)] == ["text_encoder", "transformer", "vae_decode"]
    largest = top(rows, 3)
    assert [row.id for row in largest][:1] == ["transformer.blocks.*.attn1"]
    assert [row.own_flops for row in largest] == sorted((row.own_flops for row in rows), reverse=True)[:3]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (999, "999 B"),
        (1000, "1.000 kB"),
        (9_999, "9.999 kB"),
        (99_994, "99.99 kB"),
        (99_996, "100.0 kB"),
        (999_949, "999.9 kB"),
        (999_951, "1.000 MB"),
        (999_999, "1.000 MB"),
        (9_999_999, "10.00 MB"),
        (12_345_678, "12.35 MB"),
        (10**18 - 1, "1.000 EB"),
        (10**21, "1000.0 EB"),
    ],
)
def test_units_keep_four_digits(value: int, expected: str) -> None:
    """Numbers are scaled by decimal prefixes to about four significant digits."""
    assert scaled(value, "B") == expected
