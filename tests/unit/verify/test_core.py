"""Every law seen holding on the real component and broken on one that was tampered with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import modelmeter as mm
from modelmeter.compiled import CompiledForward
from modelmeter.errors import InputError
from modelmeter.models.wan2_1 import transformer
from modelmeter.models.wan2_1.transformer import Wan2_1DiTModel
from modelmeter.nn import Linear, ModuleList
from modelmeter.stage import Call, Forward, Plan
from modelmeter.verify.run import verify
from modelmeter.workload import Workload

SMALL = ["transformer.num_layers=2", "transformer.dim=256", "transformer.num_heads=2", "transformer.ffn_dim=512"]
#: Several frames, so that every part of the transformer has something to do.
SIZE = ["num_frames=9", "height=256", "width=384", "num_inference_steps=3", "text_len=7"]


def failures(*overrides: str) -> tuple[str, ...]:
    """What the laws find wrong with a small transformer."""
    return verify([mm.load("wan2.1-t2v-1.3b", *SMALL, *SIZE, *overrides)], ["core"], workload="wan2-1-ci-tiny").failures


def calling(monkeypatch: pytest.MonkeyPatch, change: Callable[[Call, Workload], Call]) -> None:
    """Let every plan make other calls of the transformer."""
    plan = mm.Model.plan

    def changed(self: mm.Model, video: Workload) -> Plan:
        planned = plan(self, video)
        return replace(
            planned,
            stages=tuple(
                replace(stage, calls=tuple(change(call, video) for call in stage.calls))
                if stage.id == "transformer"
                else stage
                for stage in planned.stages
            ),
        )

    monkeypatch.setattr(mm.Model, "plan", changed)


def of_size(call: Call, **dims: int) -> Call:
    """The call with other sizes."""
    forwards = tuple(replace(forward, dims={**forward.dims, **dims}) for forward in call.forwards)
    return replace(call, forwards=forwards, dims={**call.dims, **dims})


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["num_inference_steps=50000"],
        ["num_inference_steps=60000"],
        ["num_inference_steps=99999"],
        ["num_inference_steps=100000"],
        ["batch_size=40000"],
        ["batch_size=65535"],
        ["batch_size=65536"],
        ["num_frames=4093"],
        ["height=16384", "width=16"],
        ["height=16", "width=16384"],
        ["transformer.patch_size=[1,16,16]"],
        ["transformer.patch_size=[3,64,64]", "height=512", "width=1024"],
        ["transformer.patch_size=[64,1,1]", "num_frames=256"],
    ],
    ids=" ".join,
)
def test_the_laws_hold_up_to_the_bounds(overrides: list[str]) -> None:
    """The real component keeps every law, also where twice as much is out of bounds and for large patches."""
    assert failures(*overrides) == ()


def test_a_module_that_costs_other_than_its_operators_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed forms are held against a trace on integers: one FLOP more in one module shows."""
    honest = CompiledForward.module_flops

    def more(self: CompiledForward, dims: Any) -> dict[str, int]:
        return {path: flops + (path == "blocks.1.attn2") for path, flops in honest(self, dims).items()}

    monkeypatch.setattr(CompiledForward, "module_flops", more)
    (line,) = failures()
    assert " transformer.blocks.1.attn2: flops analytic" in line


def test_a_module_that_is_left_out_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that runs and has no closed form counts as zero against the trace."""
    honest = CompiledForward.module_flops

    def fewer(self: CompiledForward, dims: Any) -> dict[str, int]:
        return {path: flops for path, flops in honest(self, dims).items() if path != "blocks.0.ffn"}

    monkeypatch.setattr(CompiledForward, "module_flops", fewer)
    (line,) = failures()
    assert " transformer.blocks.0.ffn: flops analytic 0, reference " in line


def test_a_weight_that_never_runs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules with weights that no forward calls are named, in lists too; those without weights may idle."""
    init = transformer.WanAttention.__init__

    def with_idle(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.idle = ModuleList([Linear(8, 8), ModuleList([])])

    monkeypatch.setattr(transformer.WanAttention, "__init__", with_idle)
    assert sorted(failures()) == [
        f"wan2.1-t2v-1.3b wan2-1-ci-tiny transformer.blocks.{i}.attn{j}.idle.0: has 72 parameters and is never called"
        for i in (0, 1)
        for j in (1, 2)
    ]


@pytest.mark.parametrize("more", [1, -1])
def test_parameters_that_are_not_those_of_the_weights_are_found(more: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A component that says more or fewer parameters than its weights have is found."""
    honest = Wan2_1DiTModel.params
    monkeypatch.setattr(Wan2_1DiTModel, "params", property(lambda self: honest.fget(self) + more))  # type: ignore[attr-defined]
    (line,) = failures()
    assert " transformer: params analytic" in line


@pytest.mark.parametrize("steps", [3, 60_000])
def test_steps_that_cost_more_than_their_number_are_found(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One forward more in every run breaks the proportion to the steps, below the bound and near it."""
    calling(monkeypatch, lambda call, _: replace(call, times=call.times + 1))
    (line,) = failures(f"num_inference_steps={steps}")
    assert " transformer [2 x num_inference_steps]: run_flops" in line


@pytest.mark.parametrize("batch", [3, 40_000])
def test_videos_that_cost_more_than_their_number_are_found(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One video more in every batch breaks the proportion to the videos, below the bound and near it."""
    calling(monkeypatch, lambda call, _: of_size(call, batch=call.dims["batch"] + 1))
    (line,) = failures(f"batch_size={batch}")
    assert " transformer [2 x batch_size]: run_flops" in line


@pytest.mark.parametrize(
    ("dim", "found", "overrides"),
    [
        ("frames", "num_frames=13 costs no more than 9", []),
        ("rows", "height=272 costs no more than 256", []),
        ("columns", "width=400 costs no more than 384", []),
        ("rows", "height=384 costs no more than 256", ["transformer.patch_size=[1,16,16]"]),
        ("columns", "width=512 costs no more than 384", ["transformer.patch_size=[1,16,16]"]),
        ("columns", "width=16384 costs no more than 16368", ["height=16", "width=16384"]),
    ],
    ids=str,
)
def test_a_size_that_costs_nothing_is_found(
    dim: str, found: str, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one side of the video does not reach the transformer, the next size that runs shows it."""
    calling(monkeypatch, lambda call, _: of_size(call, **{dim: 5}))
    (line,) = failures(*overrides)
    assert line == f"wan2.1-t2v-1.3b wan2-1-ci-tiny transformer: {found}"


def test_a_size_without_another_is_no_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no other size runs, nothing was compared, and that is said."""
    plan = mm.Model.plan

    def only(self: mm.Model, video: Workload) -> Plan:
        if video.height != 256:
            raise InputError("height", video.height, "256")
        return plan(self, video)

    monkeypatch.setattr(mm.Model, "plan", only)
    (line,) = failures()
    assert "no other height than 256 runs" in line


def test_a_forward_is_held_against_its_own_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every forward of a call is compared, not only the first."""
    calling(
        monkeypatch, lambda call, _: replace(call, forwards=(*call.forwards, Forward(dims={**call.dims, "rows": 3})))
    )
    result = verify([mm.load("wan2.1-t2v-1.3b", *SMALL, *SIZE)], ["core"], workload="wan2-1-ci-tiny")
    roots = [row.analytic for row in result.rows if (row.id, row.quantity) == ("transformer", "flops")]
    assert len(set(roots)) == 2
