"""Bytes of weights: plain dtypes, formats, adapters, and what a policy refuses."""

from __future__ import annotations

import pytest

import modelmeter as mm
from modelmeter.errors import InputError
from modelmeter.models.common.text_encoder import UMT5EncoderModel
from modelmeter.models.wan2_1.transformer import KEEP_IN_FP32, Wan2_1DiTModel
from modelmeter.nn import Linear, Parameter, bfloat16, float32
from modelmeter.policy import DTYPES, FORMATS, WORDS
from modelmeter.weights import in_blocks, stored_bytes, weights

GIB = 2**30


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("fp8", 8),
        ("int8", 8),
        ("int4", 4.5),
        ("q8_0", 8.5),
        ("q6_k", 6.5625),
        ("q5_k", 5.5),
        ("q5_1", 6),
        ("q5_0", 5.5),
        ("q4_k", 4.5),
        ("q4_1", 5),
        ("q4_0", 4.5),
        ("q3_k", 3.4375),
        ("q2_k", 2.625),
    ],
)
def test_bits_per_weight_of_a_format(name: str, bits: float) -> None:
    """A large matrix takes the bits per weight that llama.cpp and bitsandbytes state, and next to nothing beside."""
    matrix = Parameter((5120, 13824), bfloat16)
    found = stored_bytes(matrix, FORMATS[name]) * 8 / (5120 * 13824)
    assert found == pytest.approx(bits, rel=5e-4)
    assert found >= bits


def test_a_row_is_rounded_up_to_whole_blocks() -> None:
    """A row of 33 elements takes two blocks of 32, since no block spans two rows."""
    assert stored_bytes(Parameter((3, 33), bfloat16), FORMATS["q8_0"]) == 3 * 2 * 34


@pytest.mark.parametrize(
    ("name", "total"),
    [("wan2.1-t2v-14b", 28_635_351_168), ("wan2.1-t2v-1.3b", 2_844_248_192), ("wan2.2-ti2v-5b", 10_021_521_792)],
)
def test_diffusers_loads_so_many_bytes(name: str, total: int) -> None:
    """In bfloat16 with the modules that diffusers keeps in float32, counted by parameter name on the real class."""
    model = mm.load(name, "implementation=diffusers")
    assert model.weights()["transformer"].total == total


def test_the_official_code_loads_float32() -> None:
    """WanModel.from_pretrained without a dtype loads four bytes a parameter; UMT5 is bfloat16, the VAE float32."""
    found = mm.load("wan2.1-t2v-14b").weights()
    assert found["transformer"].total == 4 * 14_288_491_584
    assert found["text_encoder"].total == 2 * 5_680_910_336
    assert found["vae"].total == 4 * 126_892_531


def test_the_official_image_encoder_is_loaded_whole() -> None:
    """The official wrapper holds all of XLM-R CLIP in float16: parameters counted on the official class."""
    assert mm.load("wan2.1-i2v-14b-480p").weights()["image_encoder"].total == 2 * 1_193_014_785


def test_a_format_is_for_matrices_of_blocks_alone() -> None:
    """q4_0 leaves embeddings, norms, biases, tables and the head as they are loaded."""
    model = Wan2_1DiTModel(num_layers=2)
    model.to(bfloat16, keep_in_fp32=KEEP_IN_FP32)
    plain, quantised = weights(model), weights(model, FORMATS["q4_0"])
    matrices = {path: layer.weight for path, layer in in_blocks(model).items()}
    assert len(matrices) == 2 * 10
    for path, size in quantised.by_module.items():
        saved = plain.by_module[path] - size
        matrix = matrices.get(path)
        assert saved == (0 if matrix is None else stored_bytes(matrix) - stored_bytes(matrix, FORMATS["q4_0"])), path
    assert quantised.largest_matrix == stored_bytes(matrices["blocks.0.ffn.net.2"])


def test_adapters_are_two_thin_matrices() -> None:
    """A LoRA of rank r adds r * (in + out) parameters to each linear layer of a block, in the dtype of its matrix."""
    model = Wan2_1DiTModel(num_layers=1, num_attention_heads=12, ffn_dim=8960)
    model.to(bfloat16)
    added = weights(model, lora_rank=16).total - weights(model).total
    width = 1536
    assert added == 2 * 16 * (8 * (width + width) + 2 * (width + 8960))


def test_what_modules_share_counts_once() -> None:
    """UMT5's embedding is in two modules and in memory once."""
    found = weights(UMT5EncoderModel())
    assert found.total == 4 * UMT5EncoderModel().params == found.by_node[""] == found.by_node["encoder"]


def test_nodes_hold_what_is_below_them() -> None:
    """The bytes of a block are those of its modules, and of the whole those of its children."""
    model = Wan2_1DiTModel(num_layers=2)
    found = weights(model)
    assert found.by_node["blocks.0"] == found.blocks["blocks.0"] == found.by_node["blocks"] // 2
    children = [path for path in found.by_node if path and "." not in path]
    own = found.by_module.get("", 0)
    assert found.by_node[""] == sum(found.by_node[path] for path in children) + own == found.total


def test_a_float32_parameter_has_four_bytes() -> None:
    """The bytes of a plain dtype are elements times size."""
    layer = Linear(3, 5)
    assert weights(layer).total == 4 * 20
    assert stored_bytes(Parameter((5, 3), float32)) == 60


@pytest.mark.parametrize("precision", [*DTYPES, *FORMATS])
def test_every_precision_is_counted(precision: str) -> None:
    """Every value of ``precision`` gives weights, fewer bytes the fewer bits."""
    found = mm.load("wan2.1-t2v-1.3b", "implementation=diffusers", f"precision={precision}").weights()["transformer"]
    assert 0 < found.total <= 4 * 1_418_996_800
    assert (found.largest_matrix > 0) == (precision in FORMATS)


@pytest.mark.parametrize(
    "words",
    [
        ("precision=q4_4",),
        ("precision=16",),
        ("vae_precision=fp8",),
        ("offload=some",),
        ("workspace=output",),
        ("text_encoder_device=mps",),
        ("gpus=0",),
        ("gpus=1.5",),
        ("gpus=true",),
        ("lora_rank=-1",),
        ("blocks_to_swap=many", "offload=block"),
        ("blocks_to_swap=4",),
        ("gpus=2", "offload=block"),
        ("rms_norm=decomposed",),
    ],
)
def test_a_bad_policy_is_refused(words: tuple[str, ...]) -> None:
    """A value that a key does not have, or keys that do not go together, is bad input."""
    with pytest.raises(InputError, match=f"^{words[0].split('=')[0]}="):
        mm.load("wan2.1-t2v-1.3b", *words)


def test_every_key_of_a_policy_has_its_words() -> None:
    """Every word of every key is accepted by itself, except a norm that the official code does not have."""
    for key, words in WORDS.items():
        for word in words:
            if (key, word) != ("rms_norm", "decomposed"):
                assert mm.load("wan2.1-t2v-1.3b", f"{key}={word}").config[key] == word
