"""Estimates: laws, look-ups, and agreement of closed forms with traces on integers."""

import threading
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import modelmeter as mm
from modelmeter import config
from modelmeter.compiled import compile_forward
from modelmeter.config import compose, registry
from modelmeter.flops import total_flops
from modelmeter.memory import peaks
from modelmeter.models.wan2_1.transformer import KEEP_IN_FP32, Wan2_1DiTModel
from modelmeter.nn import Body, Op, bfloat16, evaluate, trace

MODELS = [entry.id for entry in registry()]

workloads = st.fixed_dictionaries(
    {
        "batch_size": st.integers(1, 4),
        "num_frames": st.integers(2, 30).map(lambda n: 4 * n + 1),
        "height": st.integers(2, 30).map(lambda n: 32 * n),
        "width": st.integers(2, 30).map(lambda n: 32 * n),
        "num_inference_steps": st.integers(1, 60),
        "text_len": st.just(512),
        "guidance_scale": st.sampled_from([1, 5.0]),
    }
)
dims = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 4),
        "frames": st.integers(1, 24),
        "rows": st.integers(1, 50),
        "columns": st.integers(1, 50),
        "text_len": st.integers(1, 600),
    }
)


#: Fewer layers than any model; laws hold at any depth.
SHALLOW = ["transformer.num_layers=2", "text_encoder.num_layers=1"]


@pytest.fixture(scope="module")
def models() -> dict[str, mm.Model]:
    """Every pipeline, shallow, loaded once."""
    own = {name: ["transformer.vace_layers=[0,1]"] for name in ("wan2.1-vace-1.3b", "wan2.1-vace-14b")}
    own["wan2.2-animate-14b"] = ["transformer.inject_face_latents_blocks=1"]
    parts = {entry.id: compose(entry) for entry in registry()}
    shallow = {name: [text for text in SHALLOW if text.partition(".")[0] in parts[name]] for name in MODELS}
    return {name: mm.load(name, *shallow[name], *own.get(name, [])) for name in MODELS}


def small_transformer() -> Wan2_1DiTModel:
    """A transformer with the layers of the real one and other sizes."""
    model = Wan2_1DiTModel(
        num_attention_heads=3, attention_head_dim=20, ffn_dim=112, num_layers=3, text_dim=48, freq_dim=32
    )
    model.to(bfloat16, keep_in_fp32=KEEP_IN_FP32)
    return model


def flat(body: Body, live: Any = 0) -> list[Op]:
    """The operators of a trace in order, live bytes from the start of the root."""
    ops: list[Op] = []
    for item in body.items:
        if isinstance(item, Op):
            ops.append(item._replace(live=live + item.live))
        else:
            ops += flat(item.body, live + item.live)
    return ops


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=10, deadline=None)
@given(keys=workloads)
def test_totals_are_sums(models: dict[str, mm.Model], name: str, keys: Mapping[str, Any]) -> None:
    """The total is the sum of the stages, a stage that of its nodes' own FLOPs, a node its own and its children's."""
    estimate = models[name].estimate(**keys)
    assert estimate.flops > 0
    assert estimate.flops == sum(stage.flops for stage in estimate.stages)
    for stage in estimate.stages:
        below = [node for node in estimate.nodes if node.id.split(".")[0] == stage.id]
        assert stage.flops == sum(node.own_flops for node in below)
    children: dict[str | None, int] = {}
    for node in estimate.nodes:
        children[node.parent] = children.get(node.parent, 0) + node.flops
    for node in estimate.nodes:
        assert node.flops == node.own_flops + children.get(node.id, 0)
        assert node.flops == sum(node.flops_by_kind.values())
    assert estimate.params == sum(params for _, params in estimate.components.values())


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=8, deadline=None)
@given(keys=workloads, factor=st.integers(2, 5))
def test_steps_and_batch_scale_linearly(
    models: dict[str, mm.Model], name: str, keys: dict[str, Any], factor: int
) -> None:
    """Twice the steps or videos are twice the FLOPs, and guidance doubles the transformer."""

    def transformers(**changes: Any) -> int:
        stages = models[name].estimate(**{**keys, **changes}).stages
        return sum(stage.flops for stage in stages if stage.id.startswith("transformer"))

    base = transformers()
    assert transformers(num_inference_steps=factor * keys["num_inference_steps"]) == factor * base
    assert transformers(batch_size=factor * keys["batch_size"]) == factor * base
    assert transformers(guidance_scale=7.5) == 2 * transformers(guidance_scale=1)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("key", "step"), [("num_frames", 8), ("height", 32), ("width", 32)])
@settings(max_examples=8, deadline=None)
@given(keys=workloads)
def test_more_never_costs_less(
    models: dict[str, mm.Model], name: str, key: str, step: int, keys: dict[str, Any]
) -> None:
    """More frames, rows or columns cost more."""
    more = {**keys, key: keys[key] + step}
    assert models[name].estimate(**more).flops > models[name].estimate(**keys).flops


@settings(max_examples=200, deadline=None)
@given(sizes=dims)
def test_closed_forms_equal_the_trace_on_integers(sizes: dict[str, int]) -> None:
    """On 200 random workloads the compiled polynomials give the FLOPs by kind and the peak of the integer trace."""
    model = small_transformer()
    record = trace(model, **model.inputs(**sizes)).body
    form = compile_forward(model, sizes)
    assert form.flops_by_kind(sizes) == total_flops(record)
    highest = max(peaks(record, {}), key=lambda peak: peak.live)
    assert form.peak(sizes).live == highest.live


@settings(max_examples=25, deadline=None)
@given(sizes=dims)
def test_every_operator_is_the_same_on_formulas(sizes: dict[str, int]) -> None:
    """Operator by operator, shapes, FLOPs, bytes and live bytes of the formula are those of the integers."""
    model = small_transformer()
    form = compile_forward(model, sizes)
    on_integers = flat(trace(model, **model.inputs(**sizes)).body)
    on_formulas = flat(form.body)
    assert len(on_integers) == len(on_formulas) > 100
    for exact, formula in zip(on_integers, on_formulas, strict=True):
        assert formula.name == exact.name
        assert [tuple(evaluate(n, sizes) for n in spec.shape) for spec in formula.outputs] == [
            spec.shape for spec in exact.outputs
        ]
        for field in ("flops", "vector_flops", "bytes_read", "bytes_written", "live"):
            assert evaluate(getattr(formula, field), sizes) == getattr(exact, field), (exact.name, field)


@settings(max_examples=25, deadline=None)
@given(sizes=dims)
def test_the_memo_changes_nothing(sizes: dict[str, int]) -> None:
    """Equal calls that are shared give the same operators, in order, as calls that all run."""
    model = small_transformer()
    shared = trace(model, **model.inputs(**sizes))
    repeated = trace(model, **model.inputs(**sizes), memo=False)
    assert flat(shared.body) == flat(repeated.body)
    assert len({call.body for call in repeated.body.calls}) > len({call.body for call in shared.body.calls})


def test_closed_forms_refuse_sizes_that_they_do_not_cover() -> None:
    """A form compiled for one video does not answer for two, nor one compiled for many frames for a single one."""
    model = small_transformer()
    sizes = {"batch": 1, "frames": 3, "rows": 4, "columns": 4, "text_len": 8}
    form = compile_forward(model, sizes)
    for other in ({**sizes, "batch": 2}, {**sizes, "frames": 1}):
        with pytest.raises(ValueError, match="outside these closed forms"):
            form.flops(other)


def test_look_ups_find_nodes_by_path() -> None:
    """A path finds one node, a star the sum over one part of a path, and a wrong path names the nearest."""
    estimate = mm.load("wan2.1-t2v-14b").estimate()
    one = estimate["transformer.blocks.3.attn1"]
    every = estimate["transformer.blocks.*.attn1"]
    assert every.flops == 40 * one.flops
    assert every.params == 40 * one.params
    assert every.calls == 40 * one.calls == 40 * 100
    assert estimate.flops == sum(estimate[stage.id].flops for stage in estimate.stages)
    with pytest.raises(mm.InputError, match=r"nearest: transformer\.blocks\.\*\.attn1"):
        estimate["transformer.blocks.*.atn1"]
    with pytest.raises(mm.InputError, match="nearest: transformer"):
        estimate["transfomer"]


def test_a_star_is_the_only_wildcard(models: dict[str, mm.Model]) -> None:
    """A star matches within one part of a path; what means more to a shell is looked up as it stands."""
    estimate = models["wan2.1-t2v-14b"].estimate()
    attention = [estimate[f"transformer.blocks.1.attn{i}"].flops for i in (1, 2)]
    assert estimate["transformer.blocks.1.attn*"].flops == sum(attention) > attention[0] > 0
    assert estimate["transformer.blocks.1*"].params == estimate["transformer.blocks.1"].params
    for path in ("transformer.blocks.[0-3].attn1", "transformer.blocks.?", "transformer.block.", "*" + 20 * ".*", ""):
        with pytest.raises(mm.InputError, match="^node="):
            estimate[path]


def test_a_sum_of_several_classes_is_of_no_class(models: dict[str, mm.Model]) -> None:
    """Nodes of one class keep it when they are summed, others together are of the kind several."""
    estimate = models["wan2.1-t2v-14b"].estimate()
    assert estimate["transformer.blocks.*"].kind == estimate["transformer.blocks.0"].kind
    assert estimate["transformer.*"].kind == "several"
    assert estimate["transformer.*"].flops == estimate["transformer"].flops - estimate["transformer"].own_flops


@pytest.mark.parametrize("path", [None, 1, ["transformer"]])
def test_a_look_up_of_another_type_is_refused(models: dict[str, mm.Model], path: Any) -> None:
    """What is no text is no path."""
    with pytest.raises(mm.InputError, match="^node="):
        models["wan2.1-t2v-14b"].estimate()[path]


def test_presets_overrides_and_keys_build_on_one_another() -> None:
    """Keys of estimate win over overrides of load, which win over the preset."""
    model = mm.load("wan2.1-t2v-14b", "height=480", "workload=wan2-1-512p")
    assert model.estimate().workload.values | {"flow_shift": 5.0} == {
        **model.presets["wan2-1-512p"],
        "height": 480,
        "flow_shift": 5.0,
    }
    assert model.estimate(height=256).workload.height == 256
    assert model.estimate(workload="wan2-1-720p").workload.width == 1280
    with pytest.raises(mm.InputError, match="nearest: wan2-1-720p"):
        model.estimate(workload="wan2-1-720")


def test_an_empty_preset_is_not_the_default() -> None:
    """An empty word names no preset, neither as an override nor as an argument."""
    with pytest.raises(mm.InputError, match="^workload=: allowed is one of"):
        mm.load("wan2.1-t2v-14b", "workload=''")
    with pytest.raises(mm.InputError, match="^workload=: allowed is one of"):
        mm.load("wan2.1-t2v-14b").estimate(workload="")


@pytest.mark.parametrize("value", [1, None, True, ["a"], b"x", pytest.param(object(), id="object()")], ids=repr)
def test_words_of_another_type_are_refused(value: Any) -> None:
    """What is no text is bad input wherever a word is asked for."""
    model = mm.load("wan2.1-t2v-14b")
    with pytest.raises(mm.InputError, match="^model="):
        mm.load(value)
    with pytest.raises(mm.InputError, match="^override="):
        mm.load("wan2.1-t2v-14b", value)
    if value is not None:
        with pytest.raises(mm.InputError, match="^workload="):
            model.estimate(workload=value)


def test_a_model_has_a_configuration_of_its_own() -> None:
    """What is done with the configuration of one model changes no other."""
    before = mm.load("wan2.1-t2v-1.3b").estimate().flops
    config: Any = mm.load("wan2.1-t2v-1.3b").config
    config["transformer"]["num_layers"] = 1
    assert mm.load("wan2.1-t2v-1.3b").estimate().flops == before


def test_repository_ids_are_aliases() -> None:
    """A Hugging Face repository id loads the model, in any case."""
    for name in ("Wan-AI/Wan2.1-T2V-14B", "Wan-AI/Wan2.1-T2V-14B-Diffusers", "wan-ai/wan2.1-t2v-14b"):
        assert mm.load(name).id == "wan2.1-t2v-14b"


def test_guidance_off_is_said_to_differ_in_the_official_loop() -> None:
    """At a guidance scale of 1 a warning says that the official loop would still run two forwards."""
    official = mm.load("wan2.1-t2v-14b").estimate(guidance_scale=1)
    assert any("the official loop runs two" in warning for warning in official.warnings)
    diffusers = mm.load("wan2.1-t2v-14b", "implementation=diffusers").estimate(guidance_scale=1)
    assert not any("official" in warning for warning in diffusers.warnings)


def test_the_ci_preset_is_rounded_as_diffusers_does() -> None:
    """Under diffusers the 4 frames of the CI preset run as 5 frames, 2 latent frames; officially as 1 latent frame."""
    diffusers = mm.load("wan2.1-t2v-14b", "implementation=diffusers").estimate(workload="wan2-1-ci-tiny")
    assert (diffusers.workload.num_frames, diffusers.geometry.latent_frames) == (5, 2)
    official = mm.load("wan2.1-t2v-14b").estimate(workload="wan2-1-ci-tiny")
    assert (official.workload.num_frames, official.geometry.latent_frames) == (4, 1)


def test_sixteen_threads_load_and_estimate_at_once() -> None:
    """Loading and estimating from 16 threads at once gives each the same answer."""
    names = ["wan2.1-t2v-1.3b", "wan2.2-ti2v-5b"]
    results: list[list[int]] = []
    gate = threading.Barrier(16)

    def work() -> None:
        gate.wait()
        results.append([mm.load(name, "height=480", "width=832", *SHALLOW).estimate().flops for name in names])

    config._composed.cache_clear()
    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = [mm.load(name, *SHALLOW).estimate(height=480, width=832).flops for name in names]
    assert results == [alone] * 16
