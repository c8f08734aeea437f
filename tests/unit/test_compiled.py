"""Closed forms of a small component whose FLOPs are added up by hand: repeated calls, several forwards."""

from __future__ import annotations

from collections.abc import Mapping

from modelmeter.compiled import compile_forward
from modelmeter.estimate import StageRun
from modelmeter.nn import Dim, Linear, Parameter, Tensor, float32, functional
from modelmeter.stage import Call, Component, Forward, Stage

#: FLOPs for each row of the input.
INNER, HEAD, OWN = 2 * 4 * 4, 2 * 4 * 3, 2 * 3 * 5


class Twice(Component):
    """A component that calls one part twice, another once, a third never, and multiplies itself."""

    def __init__(self) -> None:
        self.inner = Linear(4, 4)
        self.head = Linear(4, 3)
        self.idle = Linear(4, 4)
        self.weight = Parameter((5, 3), float32)

    def inputs(self, **dims: Dim) -> dict[str, Tensor]:
        """[rows, 4]."""
        return {"x": Tensor((dims["rows"], 4), float32)}

    def forward(self, x: Tensor) -> Tensor:
        """[rows, 4] -> [rows, 5]."""
        x = self.inner(self.inner(x))
        return functional.linear(self.head(x), self.weight)


def test_a_part_that_is_called_twice_counts_twice() -> None:
    """One forward adds up both calls of a part, in the part and above it."""
    form = compile_forward(Twice(), {"rows": 6})
    assert [(node.path, len(node.bodies)) for node in form.nodes] == [("", 1), ("inner", 2), ("head", 1), ("idle", 0)]
    for rows in (2, 6, 100):
        assert form.own_flops({"rows": rows}) == {
            "": {"linear": rows * OWN},
            "inner": {"linear": rows * 2 * INNER},
            "head": {"linear": rows * HEAD},
            "idle": {},
        }
        whole = rows * (2 * INNER + HEAD + OWN)
        assert form.module_flops({"rows": rows}) == {"": whole, "inner": rows * 2 * INNER, "head": rows * HEAD}
        assert form.flops({"rows": rows}) == whole


def test_a_stage_adds_up_its_forwards() -> None:
    """Calls and FLOPs of every module are those of all forwards, each as often as it runs; the stage counts calls."""
    first, later = Forward(dims={"rows": 1}), Forward(dims={"rows": 5}, times=2)
    stage = Stage(
        id="stage",
        component="twice",
        calls=(
            Call(forwards=(first, later), times=7, dims={"rows": 11}),
            Call(forwards=(later,), times=3, dims={"rows": 10}),
        ),
    )
    forms = {rows: compile_forward(Twice(), {"rows": rows}) for rows in (1, 5)}
    run = StageRun(stage, tuple((forward, times, forms[forward.dims["rows"]]) for forward, times in stage.forwards))
    forwards = 7 * (1 + 2) + 3 * 2
    rows = 7 * (1 + 2 * 5) + 3 * 2 * 5
    nodes = {node.id: node for node in run.nodes("Twice")}
    assert run.calls == nodes["stage"].calls == 7 + 3
    assert [nodes[f"stage.{part}"].calls for part in ("inner", "head", "idle")] == [2 * forwards, forwards, 0]
    assert own(nodes) == {
        "stage": rows * OWN,
        "stage.inner": rows * 2 * INNER,
        "stage.head": rows * HEAD,
        "stage.idle": 0,
    }
    assert run.flops == nodes["stage"].flops == rows * (2 * INNER + HEAD + OWN)
    assert nodes["stage.inner"].flops == nodes["stage.inner"].own_flops
    assert nodes["stage"].flops_by_kind == {"linear": run.flops}


def own(nodes: Mapping[str, object]) -> dict[str, int]:
    """FLOPs of every node without those below it."""
    return {path: node.own_flops for path, node in nodes.items()}  # type: ignore[attr-defined]
