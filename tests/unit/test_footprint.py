"""What is on the device at the peak of a stage, and what on the host."""

from __future__ import annotations

import pytest

import modelmeter as mm
from modelmeter.footprint import Memory, StageMemory
from modelmeter.report.document import document
from modelmeter.residency import BLOCKS_IN_FLIGHT, LATENTS_HELD

GIB = 2**30


def memory(name: str, *words: str, **keys: object) -> Memory:
    """Of a model under a policy; text to video at 480x832 with 81 frames by default."""
    return mm.load(name, *words).estimate(**{"workload": "official-480p", **keys}).memory  # type: ignore[arg-type]


def stages(found: Memory) -> dict[str, StageMemory]:
    """By id."""
    return {stage.id: stage for stage in found.stages}


def test_without_offload_everything_is_resident() -> None:
    """Every stage has the weights of all components on the device, and none are on the host."""
    found = memory("wan2.1-t2v-14b")
    assert {stage.resident_bytes for stage in found.stages} == {found.weights_bytes}
    assert found.host_bytes == 0


def test_offloaded_components_leave() -> None:
    """diffusers has the running component alone on the device; the official code keeps the VAE too."""
    loaded = mm.load("wan2.2-t2v-a14b", "implementation=diffusers").weights()
    found = stages(memory("wan2.2-t2v-a14b", "implementation=diffusers", "offload=component"))
    for stage, component in [
        ("text_encoder",) * 2,
        ("transformer",) * 2,
        ("transformer_2",) * 2,
        ("vae_decode", "vae"),
    ]:
        assert found[stage].resident_bytes == loaded[component].total
    official = memory("wan2.2-t2v-a14b", "offload=component")
    vae = loaded["vae"].total
    assert stages(official)["transformer_2"].resident_bytes == 4 * 14_288_491_584 + vae
    assert stages(official)["vae_decode"].resident_bytes == vae
    assert official.host_bytes == official.weights_bytes - vae


def test_wan2_1_has_its_transformer_there_from_the_start() -> None:
    """WanT2V moves the transformer to the device when it is made, so that it is there beside the text encoder."""
    found = stages(memory("wan2.1-t2v-14b", "offload=component"))
    assert found["text_encoder"].resident_bytes == 4 * 14_288_491_584 + 2 * 5_680_910_336 + 4 * 126_892_531
    assert found["vae_decode"].resident_bytes == 4 * 126_892_531


def test_a_text_encoder_on_the_cpu_takes_nothing_of_the_device() -> None:
    """Neither its weights nor its activations are on the device; the host holds them."""
    found = memory("wan2.1-t2v-1.3b", "text_encoder_device=cpu")
    text = stages(found)["text_encoder"]
    assert (text.activation_peak_bytes, text.input_bytes) == (0, 0)
    assert text.resident_bytes == found.weights_bytes - 2 * 5_680_910_336
    assert found.host_bytes == 2 * 5_680_910_336


def test_swapped_blocks_leave_two_behind() -> None:
    """With all blocks swapped two of them are on the device; with ten, all but eight."""
    words = "implementation=diffusers", "offload=block"
    weights = mm.load("wan2.1-t2v-14b", *words).weights()["transformer"]
    block = weights.blocks["blocks.0"]
    assert len(weights.blocks) == 40
    for count, on_device in ((None, BLOCKS_IN_FLIGHT), (10, 40 - 10 + BLOCKS_IN_FLIGHT), (1, 40), (0, 40)):
        swap = () if count is None else (f"blocks_to_swap={count}",)
        found = stages(memory("wan2.1-t2v-14b", *words, *swap))["transformer"]
        assert found.resident_bytes == weights.total - (40 - on_device) * block


def test_shards_are_an_nth_and_roots_stay() -> None:
    """Eight devices hold an eighth of transformer and text encoder each, their root units in bfloat16, and the VAE.

    Source of the roots: 1.956 GiB of UMT5's embedding and 0.43 GiB of the 14B transformer, which FSDP never reshards.
    """
    found = stages(memory("wan2.1-t2v-14b", "gpus=8"))["vae_decode"]
    shards = (4 * 14_288_491_584 + 2 * 5_680_910_336) / 8
    roots = found.resident_bytes - shards - 4 * 126_892_531
    assert roots / GIB == pytest.approx(1.956 + 0.433, abs=0.002)


def test_both_roots_of_a_pair_stay() -> None:
    """While the VAE decodes, the root units of both experts of A14B are on the device."""
    one = stages(memory("wan2.2-t2v-a14b", "gpus=8"))
    assert one["vae_decode"].resident_bytes > one["text_encoder"].resident_bytes - (GIB + GIB // 2)
    grown = one["transformer_2"].resident_bytes - one["transformer"].resident_bytes
    assert grown / GIB == pytest.approx(0.433, abs=0.002)


def test_the_rest_of_the_pipeline_holds_latents() -> None:
    """From the first step on, eight tensors like the latents: 0.144 GiB at 720x1280 with 81 frames."""
    found = stages(memory("wan2.1-t2v-14b", workload="official-720p"))
    assert found["transformer"].held_bytes == found["vae_decode"].held_bytes == LATENTS_HELD * 19_353_600
    assert found["text_encoder"].held_bytes == 0


def test_a_peak_is_the_sum_of_its_parts() -> None:
    """The peak of a run is that of its largest stage, which is all that it holds; the node is one of that stage."""
    found = memory("wan2.1-i2v-14b-480p", "precision=q8_0", "implementation=diffusers", "offload=component")
    largest = max(found.stages, key=lambda stage: stage.peak_bytes)
    parts = ("resident", "held", "input", "dequantised")
    beside = sum(getattr(largest, f"{part}_bytes") for part in parts)
    assert found.peak_bytes == beside + largest.activation_peak_bytes + largest.workspace_bytes
    assert found.peak_node.startswith(f"{largest.id}.")
    assert stages(found)["transformer"].dequantised_bytes == 2 * 5120 * 13824


def test_activations_are_the_measured_peaks() -> None:
    """Peaks of one forward are those that an allocation tracker measured on the classes of diffusers 0.42.1."""
    found = stages(memory("wan2.1-t2v-14b", "implementation=diffusers", workload="official-720p"))
    assert found["transformer"].activation_peak_bytes == 8_598_435_840
    assert found["vae_decode"].activation_peak_bytes == 18_842_121_216
    half = stages(memory("wan2.1-t2v-14b", "implementation=diffusers", "vae_precision=bf16", workload="official-720p"))
    assert half["vae_decode"].activation_peak_bytes == 9_785_088_000


#: Peaks that an allocation tracker measured on diffusers' AutoencoderKLWan when every convolution also allocates
#: copies of its input, or of input and output: method, latent sizes, dtype, bytes without, with one, with both.
WORKSPACES = [
    ("vae_decode", 480, 832, "fp32", 8_166_976_512, 8_786_448_384, 9_399_865_344),
    ("vae_decode", 720, 1280, "fp32", 18_842_121_216, 20_266_924_032, 21_682_501_632),
    ("vae_decode", 480, 832, "bf16", 4_240_204_800, 4_393_224_192, 4_699_932_672),
    ("vae_decode", 720, 1280, "bf16", 9_785_088_000, 10_133_462_016, 10_841_250_816),
    ("vae_decode", 480, 768, "bf16", 3_914_035_200, 4_055_454_720, 4_338_570_240),
    ("vae_encode", 480, 832, "fp32", 5_639_427_072, 6_258_898_944, 6_872_315_904),
    ("vae_encode", 720, 1280, "fp32", 13_009_314_816, 14_434_117_632, 15_849_695_232),
    ("vae_encode", 480, 832, "bf16", 2_976_430_080, 3_129_449_472, 3_436_157_952),
    ("vae_encode", 720, 1280, "bf16", 6_868_684_800, 7_217_058_816, 7_924_847_616),
]


@pytest.mark.parametrize(("stage", "height", "width", "dtype", "none", "input", "both"), WORKSPACES)
def test_workspaces_are_measured(
    stage: str, height: int, width: int, dtype: str, none: int, input: int, both: int
) -> None:
    """The highest of live bytes and the copies together, not of each apart, is what was measured."""
    for workspace, peak in (("none", none), ("input", input), ("both", both)):
        words = "implementation=diffusers", f"vae_precision={dtype}", f"workspace={workspace}"
        found = stages(memory("wan2.1-i2v-14b-480p", *words, height=height, width=width, num_frames=81))[stage]
        assert found.activation_peak_bytes == none
        assert found.activation_peak_bytes + found.workspace_bytes == peak


def test_memory_is_found_when_asked_for() -> None:
    """An estimate finds no peak before its memory is looked at."""
    model = mm.load("wan2.1-t2v-1.3b")
    estimate = model.estimate()
    assert estimate.flops
    assert not any(form._peaks for run in estimate.runs for _, _, form in run.forwards)
    assert estimate.memory.peak_bytes
    assert any(form._peaks for run in estimate.runs for _, _, form in run.forwards)


@pytest.mark.parametrize(
    ("name", "workload", "peak"),
    [
        ("wan2.1-t2v-14b", "official-480p", 7_561_946_112),
        ("wan2.1-t2v-14b", "official-720p", 17_445_897_216),
        ("wan2.2-ti2v-5b", "official-720p", 20_724_957_184),
    ],
)
def test_the_official_decoder_holds_no_input_of_a_level(name: str, workload: str, peak: int) -> None:
    """Peaks of the official VAE as an allocation tracker measured them."""
    assert stages(memory(name, workload=workload))["vae_decode"].activation_peak_bytes == peak


def test_devices_share_the_activations_of_the_transformer() -> None:
    """Tokens are divided; what Wan2.2 embeds of the timesteps of all tokens, seven widths in float32, is not."""
    one = stages(memory("wan2.1-t2v-14b"))["transformer"].activation_peak_bytes
    eight = stages(memory("wan2.1-t2v-14b", "gpus=8"))["transformer"].activation_peak_bytes
    assert eight == -(-one // 8)
    one = stages(memory("wan2.2-t2v-a14b"))["transformer"].activation_peak_bytes
    eight = stages(memory("wan2.2-t2v-a14b", "gpus=8"))["transformer"].activation_peak_bytes
    whole = 32_760 * 7 * 5120 * 4
    assert eight == whole - (whole - one) // 8


#: Peak, bytes read and bytes written of one forward where ``torch.nn.functional.rms_norm`` runs in steps, as a tracker
#: measured them on the classes of diffusers 0.42.1: model, preset, module of the peak, three integers.
IN_STEPS = [
    ("wan2.1-t2v-14b", "official-480p", "blocks.0.attn2.norm_q", 3_739_686_880, 1_492_804_439_564, 1_286_689_274_948),
    ("wan2.1-t2v-14b", "official-720p", "blocks.0.attn2.norm_q", 8_609_224_000, 3_403_335_478_652, 2_966_230_104_068),
    ("wan2.1-t2v-1.3b", "official-480p", "blocks.0.ffn.net.0", 1_611_850_752, 352_923_546_956, 308_777_231_140),
    ("wan2.2-ti2v-5b", "official-720p", "blocks.0.ffn.net.0", 5_450_416_128, 753_458_456_384, 646_874_435_232),
    ("wan2.1-vace-1.3b", "official-480p", "blocks.0.ffn.net.0", 3_222_070_302, 535_237_494_410, 467_419_501_810),
]


@pytest.mark.parametrize(("name", "workload", "node", "peak", "read", "written"), IN_STEPS)
def test_a_norm_in_steps(name: str, workload: str, node: str, peak: int, read: int, written: int) -> None:
    """Bytes and the place of the peak are the measured ones, and more than with one kernel for the norm."""
    model = mm.load(name, "implementation=diffusers", "rms_norm=decomposed")
    estimate = model.estimate(workload=workload, num_inference_steps=1, guidance_scale=1)
    found = stages(estimate.memory)["transformer"]
    assert (found.activation_peak_bytes, found.peak_node) == (peak, f"transformer.{node}")
    moved = estimate.traffic["transformer"].total
    assert (moved.weight_bytes_read + moved.activation_bytes_read, moved.bytes_written) == (read, written)


def test_the_document_holds_the_memory_of_the_contract() -> None:
    """``memory`` has the keys that scripts rely on, whole numbers of bytes, and a stage for each stage."""
    estimate = mm.load("wan2.1-i2v-14b-480p", "precision=fp8", "offload=component").estimate()
    found = document(estimate)["memory"]
    assert list(found) == ["policy", "weights_bytes", "host_bytes", "peak_bytes", "peak_node", "stages"]
    assert found["policy"]["precision"] == "fp8"
    assert [stage["id"] for stage in found["stages"]] == [stage.id for stage in estimate.stages]
    for stage in found["stages"]:
        assert list(stage) == ["id", "weights_bytes", "activation_peak_bytes"]
        assert all(type(stage[key]) is int and stage[key] > 0 for key in ("weights_bytes", "activation_peak_bytes"))
    assert found["peak_node"] in {node.id for node in estimate.nodes}
