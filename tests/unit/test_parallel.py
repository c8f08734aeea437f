"""Several GPUs: laws of the layout, what scales and what does not, and layouts that are refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import modelmeter as mm
from modelmeter.cli import main
from modelmeter.devices import find_device
from modelmeter.errors import InputError
from modelmeter.nn import symbol
from modelmeter.parallel import (
    Parallel,
    copied_bytes,
    gather_bytes,
    ring_bytes,
    shard,
    tokens_of_rank,
    ulysses_bytes,
)
from modelmeter.predict import Prediction, Settings, predict
from modelmeter.roofline import Rates, Shard, Work, kernel_seconds
from modelmeter.stage import Blocks

DIMS = {"batch": 1, "frames": 3, "rows": 4, "columns": 5, "text_len": 8}
BLOCKS = Blocks(count=2, width=16, inner_width=64)
SMALL = "wan2.1-t2v-1.3b"
FEW = {"num_frames": 5, "height": 256, "width": 256, "num_inference_steps": 2}


def prediction(
    name: str = SMALL, *overrides: str, video: dict[str, int] | None = None, device: str = "h100", **settings: object
) -> Prediction:
    """Of a small workload unless another is given."""
    model = mm.load(name, *overrides)
    asked = Settings(device=find_device(device), attention="fa2", **settings)  # type: ignore[arg-type]
    return predict(model, model.plan(model.workload(**(FEW if video is None else video))), asked)


def by_stage(found: Prediction) -> dict[str, dict[str, float]]:
    """What the seconds of every stage are spent on."""
    return {stage.id: dict(stage.seconds_by) for stage in found.stages}


def test_one_gpu_is_no_parallel() -> None:
    """One device, named or not, with an empty layout or none, spends the same and sends nothing."""
    plain, named = prediction(), prediction(gpus=1, parallel=Parallel())
    assert by_stage(plain) == by_stage(named)
    assert plain.peak_bytes == named.peak_bytes
    assert all("link" not in spent for spent in by_stage(plain).values())


@pytest.mark.parametrize("engine", ["eager", "fused"])
def test_guidance_side_by_side_halves_the_transformer(engine: str) -> None:
    """cfg=2 takes half the seconds of the transformer, resource by resource, sends nothing and leaves the rest."""
    one = by_stage(prediction(engine=engine))
    two = by_stage(prediction(engine=engine, gpus=2, parallel=Parallel(cfg=2)))
    halved = two.pop("transformer")
    assert halved == {name: pytest.approx(spent / 2) for name, spent in one.pop("transformer").items()}
    assert sum(halved.values()) > 0
    assert two == one


def test_nothing_is_sent_by_one_rank() -> None:
    """Every volume is zero at one rank and grows to what all ranks but one hold."""
    assert ulysses_bytes(Parallel(), DIMS, BLOCKS) == ring_bytes(Parallel(), DIMS, BLOCKS) == 0
    assert copied_bytes(Parallel(ring=4), DIMS, BLOCKS) == gather_bytes(Parallel(ulysses=4), 100) == 0
    # 60 tokens: 30 a rank, of width 16 in bfloat16; two blocks; half of query, key, value and output is for the other
    assert ulysses_bytes(Parallel(ulysses=2), DIMS, BLOCKS) == 2 * 4 * (30 * 16 * 2) / 2
    assert ring_bytes(Parallel(ring=3), DIMS, BLOCKS) == 2 * 2 * (20 * 16 * 2) * 2
    assert gather_bytes(Parallel(ulysses=4, fsdp=4), 100) == 150


def test_tokens_are_padded_to_the_ranks() -> None:
    """60 tokens on 8 ranks are 8 a rank: 64 in all, of which a rank runs 8 of 60."""
    layout = Parallel(ulysses=4, ring=2)
    assert tokens_of_rank(layout, DIMS) == 8
    part = shard(layout, DIMS)
    assert part is not None
    assert part.part == 8 / 60
    assert shard(Parallel(cfg=2), DIMS) is None


def test_a_rank_repeats_what_has_no_tokens() -> None:
    """A kernel of 100 bytes and 10 a token moves 100 and a quarter of the rest on one of four ranks."""
    rates = Rates(compute={}, bandwidth=1.0, launch_seconds=0.0)
    tokens = symbol("frames") * symbol("rows")
    dims = {"frames": 4, "rows": 6}
    whole = kernel_seconds(Work(None, 0, 10 * tokens + 100, 0), dims, rates)
    rank = kernel_seconds(Work(None, 0, 10 * tokens + 100, 0), dims, rates, Shard(0.25, {**dims, "frames": 0}))
    assert (whole, rank) == (("memory", 340.0), ("memory", 160.0))


def test_ulysses_divides_attention_and_not_the_encoders() -> None:
    """Attention takes a quarter on four ranks where tokens divide; encoders and VAE take what they took."""
    video = {**FEW, "num_frames": 21, "height": 512, "width": 512}
    one, four = by_stage(prediction(video=video)), by_stage(prediction(video=video, gpus=4))
    self_attention = one["transformer"]["attention:bfloat16"] / four["transformer"]["attention:bfloat16"]
    assert self_attention == pytest.approx(4, rel=1e-3)
    assert four["transformer"]["link"] > 0
    assert (one["text_encoder"], one["vae_decode"]) == (four["text_encoder"], four["vae_decode"])


def test_every_rank_embeds_the_time_of_all_tokens() -> None:
    """Wan2.2's official code embeds a time for every token before it divides them: the module takes the same."""
    name, video = "wan2.2-ti2v-5b", {**FEW, "num_frames": 121, "height": 704, "width": 1280}
    one, eight = (
        {node.id: node.seconds for node in prediction(name, "precision=bf16", video=video, gpus=gpus).nodes}
        for gpus in (1, 8)
    )
    assert eight["transformer.condition_embedder"] == one["transformer.condition_embedder"] > 0
    assert eight["transformer.blocks.0.ffn"] < one["transformer.blocks.0.ffn"] / 7


def test_modules_take_the_seconds_of_their_stage() -> None:
    """On several ranks too the root of the transformer holds its kernels: all but links and the copies around them."""
    found = prediction(gpus=4, parallel=Parallel(ring=4))
    root = next(node.seconds for node in found.nodes if node.id == "transformer")
    stage = next(stage for stage in found.stages if stage.id == "transformer")
    assert root == pytest.approx(stage.seconds - stage.seconds_by["link"])


def test_weights_are_hidden_over_nvlink_alone() -> None:
    """Gathering weights costs nothing on H100, whose blocks run meanwhile, and all of it over PCIe."""
    video = {**FEW, "num_frames": 81, "height": 480, "width": 832}
    for device, hidden in (("h100", True), ("4090", False)):
        copied = prediction(device=device, video=video, gpus=2, parallel=Parallel(ulysses=2))
        kept = prediction(device=device, video=video, gpus=2, parallel=Parallel(ulysses=2, fsdp=2))
        assert (kept.seconds == copied.seconds) is hidden
        assert kept.seconds >= copied.seconds
        assert kept.peak_bytes < copied.peak_bytes


def test_memory_is_that_of_one_rank() -> None:
    """With weights and tokens divided alike the peak is that of gpus=8; without FSDP the weights are whole."""
    model = mm.load("wan2.1-t2v-14b", "gpus=8")
    plan = model.plan(model.workload(**FEW))
    asked = Settings(device=find_device("h100"), attention="fa2", gpus=8)
    assert predict(model, plan, asked).peak_bytes == model.estimated(plan).memory.peak_bytes
    whole = predict(model, plan, replace(asked, parallel=Parallel(ulysses=8)))
    assert whole.peak_bytes > 2 * predict(model, plan, asked).peak_bytes


def test_all_devices_are_paid_for() -> None:
    """Energy and cost count every device for the whole run; utilisation divides by all of their peaks."""
    found = prediction(gpus=4, price_per_gpu_hour=3.6)
    assert found.energy_joules == pytest.approx(4 * 700 * found.seconds)
    assert found.cost == pytest.approx(4 * found.seconds / 1000)
    assert found.utilisation == pytest.approx(found.flops / found.seconds / 4 / 989.4e12, rel=1e-3)


@pytest.mark.parametrize(
    ("engine", "guidance", "gpus", "layout"),
    [
        ("eager", 5.0, 4, Parallel(ulysses=4, fsdp=4)),
        ("fused", 5.0, 8, Parallel(cfg=2, ulysses=4)),
        ("fused", 1.0, 4, Parallel(ulysses=4)),
        ("fused", 5.0, 3, Parallel(ulysses=3)),
    ],
)
def test_the_usual_layout(engine: str, guidance: float, gpus: int, layout: Parallel) -> None:
    """Official code divides tokens and weights; a fused engine the two forwards of guidance, then tokens."""
    model = mm.load(SMALL, f"guidance_scale={guidance}")
    plan = model.plan(model.workload(**FEW))
    asked = Settings(device=find_device("h100"), attention="fa2", gpus=gpus, engine=engine)
    assert predict(model, plan, asked).layout == layout


def test_the_document_says_how_many_and_how(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON names the number of devices and the layout; the table says so in its first line."""
    command = ["predict", SMALL, "--device", "h100", "--gpus", "8", "--parallel", "cfg=2,ulysses=4,fsdp=8"]
    for more in (["--format", "json"], []):
        with pytest.raises(SystemExit) as done:
            main([*command, *more])
        assert done.value.code == 0
        out = capsys.readouterr().out
        if more:
            found = json.loads(out)
            assert (found["gpus"], found["parallel"]) == (8, {"cfg": 2, "ulysses": 4, "ring": 1, "fsdp": 8})
        else:
            assert f"{SMALL} on 8 x h100-80gb-sxm: " in out.splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("h100", "--gpus", "8"), "parallel.ulysses=8: allowed is a divisor of the 12 heads"),
        (("h100", "--gpus", "8", "--parallel", "ulysses=4"), "gpus=8, not 4"),
        (("h100", "--parallel", "ulysses=4"), "gpus=1, not 4"),
        (("h100", "--gpus", "4", "--parallel", "ulysses=4,fsdp=2"), "parallel.fsdp=2: allowed is 1 or 4"),
        (("h100", "--gpus", "3", "--parallel", "cfg=3"), "parallel.cfg=3: allowed is 1 or 2"),
        (("h100", "--gpus", "2", "--parallel", "cfg=2", "guidance_scale=1"), "parallel.cfg=2: allowed is 1 without"),
        (("h100", "--gpus", "2", "--parallel", "tensor=2"), "parallel=tensor: allowed is one of cfg, ulysses, ring"),
        (("h100", "--gpus", "2", "--parallel", "cfg"), "parallel=cfg: allowed is key=number"),
        (("h100", "--gpus", "2", "--parallel", "ulysses=2,ulysses=1"), "each key once"),
        (("h100", "--gpus", "2", "--parallel", "ulysses=two"), "parallel.ulysses=two: allowed is an integer"),
        (("h100", "--gpus", "2", "--parallel", "ulysses=0"), "parallel.ulysses=0: allowed is an integer"),
        (("h100", "--gpus", "2", "--parallel", ""), "parallel="),
        (("h100", "--gpus", "0"), "gpus=0"),
        (("h100", "--gpus", "4", "implementation=diffusers"), "gpus=4: allowed is 1 without --parallel"),
        (("h100", "--gpus", "2", "offload=block"), "gpus=2"),
        (
            ("h100", "--gpus", "32", "--parallel", "ring=32", "height=64", "width=64", "num_frames=1"),
            "16 tokens of the video",
        ),
    ],
)
def test_impossible_layouts_end_with_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    """Status 2 and one line that names what is wrong."""
    with pytest.raises(SystemExit) as error:
        main(["predict", SMALL, "--device", *arguments])
    assert error.value.code == 2
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1


def test_a_device_alone_stays_alone() -> None:
    """A device of which no link is known runs one rank, not two."""
    model = mm.load(SMALL)
    plan = model.plan(model.workload(**FEW))
    device = replace(find_device("h100"), link_bandwidth=None)
    assert predict(model, plan, Settings(device=device)).seconds > 0
    with pytest.raises(InputError, match="no link to other devices"):
        predict(model, plan, Settings(device=device, gpus=2))


@pytest.mark.parametrize("name", ["wan2.2-animate-14b", "wan2.2-s2v-14b", "ltx-video-2b"])
def test_models_whose_division_is_not_modelled_are_refused(name: str) -> None:
    """What runs on several devices in another way is refused, not guessed."""
    model = mm.load(name)
    with pytest.raises(InputError, match="is not modelled"):
        predict(
            model,
            model.plan(model.workload()),
            Settings(device=find_device("h100"), gpus=2, parallel=Parallel(ulysses=2)),
        )


def test_devices_of_model_and_settings_agree() -> None:
    """``gpus=`` of the configuration and of the settings are one number."""
    model = mm.load(SMALL, "gpus=4")
    with pytest.raises(InputError, match="gpus=1: allowed is 4"):
        predict(model, model.plan(model.workload(**FEW)), Settings(device=find_device("h100")))
