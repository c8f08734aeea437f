"""How weights are stored and where they are: what decides memory beside the workload."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from modelmeter.errors import InputError
from modelmeter.nn import DType, bfloat16, float16, float32

#: Plain dtypes by the words of ``precision``.
DTYPES: Mapping[str, DType] = {"fp32": float32, "bf16": bfloat16, "fp16": float16}


class Format(NamedTuple):
    """A format of quantised matrices: ``block`` elements, or a whole row, in so many bytes, scales included.

    Args:
        block: elements that are stored together; 0 for a row of the matrix (one output feature).
        block_bytes: bytes of a block; of a row what comes beside one byte an element.
        matrix_bytes: what comes once a matrix.
    """

    block: int
    block_bytes: int
    matrix_bytes: int = 0


#: What the matrices of the blocks may be stored in. Sources: ggml-common.h (``block_q8_0`` and its like: quants and
#: fp16 scales); float8_e4m3 with one fp32 scale a matrix, as the "fp8 scaled" checkpoints; bitsandbytes LLM.int8()
#: (int8, one fp32 scale a row) and its 4-bit formats (64 elements and their fp32 absmax).
FORMATS: Mapping[str, Format] = {
    "fp8": Format(1, 1, matrix_bytes=4),
    "int8": Format(0, 4),
    "int4": Format(64, 32 + 4),
    "q8_0": Format(32, 34),
    "q6_k": Format(256, 210),
    "q5_k": Format(256, 176),
    "q5_1": Format(32, 24),
    "q5_0": Format(32, 22),
    "q4_k": Format(256, 144),
    "q4_1": Format(32, 20),
    "q4_0": Format(32, 18),
    "q3_k": Format(256, 110),
    "q2_k": Format(256, 84),
}
#: Values of the keys of a policy that are words; ``default`` is what the implementation loads.
WORDS: Mapping[str, tuple[str, ...]] = {
    "precision": ("default", *DTYPES, *FORMATS),
    "vae_precision": tuple(DTYPES),
    "offload": ("none", "component", "block"),
    "text_encoder_device": ("cuda", "cpu"),
    "workspace": ("none", "input", "both"),
    "rms_norm": ("fused", "decomposed"),
}
#: Smallest and largest values of those that are integers.
INTEGERS: Mapping[str, tuple[int, int]] = {"blocks_to_swap": (0, 1000), "gpus": (1, 1024), "lora_rank": (0, 65_536)}


#: How a model that has one implementation is loaded: as the examples of diffusers load their models.
LOADING: Mapping[str, Any] = {
    "weights": "bf16",
    "image_encoder_weights": "fp32",
    "image_encoder_idle_params": 0,
    "transformer_on_device": "while_running",
    "timesteps": "per_sample",
}


def implementation(config: Mapping[str, Any]) -> str:
    """Whose pipeline runs."""
    return str(config.get("implementation", "diffusers"))


def loading(config: Mapping[str, Any], name: str) -> Any:
    """How the implementation loads what ``name`` says, where the configuration asks for nothing else."""
    differences = config.get("differences", {})
    return differences[name][implementation(config)] if name in differences else LOADING[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The keys of a configuration that decide memory beside the workload.

    Args:
        precision: the diffusion transformers; a format is that of the matrices in their blocks.
        blocks_to_swap: blocks of a transformer that wait in host memory under ``offload=block``; -1 for all.
        gpus: devices that share the transformers, the text encoder and the tokens.
        workspace: copies that convolutions make of their operands in another layout.

    Example:
        >>> from modelmeter.config import compose, find
        >>> Policy.of(compose(find("wan2.1-t2v-14b"))).precision
        'fp32'
    """

    implementation: str
    precision: str
    vae_precision: str
    offload: str
    blocks_to_swap: int
    text_encoder_device: str
    gpus: int
    workspace: str
    rms_norm: str
    lora_rank: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Policy:
        """What a composed configuration says, ``default`` resolved.

        Raises:
            InputError: keys that do not go together.
        """
        values = {"implementation": implementation(config)} | {
            field.name: config[field.name] for field in fields(cls) if field.name != "implementation"
        }
        if values["precision"] == "default":
            values["precision"] = loading(config, "weights")
        policy = cls(**values)
        if policy.blocks_to_swap >= 0 and policy.offload != "block":
            raise InputError("blocks_to_swap", policy.blocks_to_swap, "a number only under offload=block")
        if policy.gpus > 1 and policy.offload == "block":
            raise InputError("gpus", policy.gpus, "1 under offload=block")
        if policy.rms_norm == "decomposed" and policy.implementation == "official":
            raise InputError("rms_norm", policy.rms_norm, "fused: the official code has a norm of its own")
        return policy

    @property
    def values(self) -> dict[str, str | int]:
        """Keys and values."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def dtype(self) -> DType:
        """The dtype of the transformers' weights as they run; quantised ones run as bfloat16."""
        return DTYPES.get(self.precision, bfloat16)

    @property
    def format(self) -> Format | None:
        """The format of the matrices in the transformers' blocks, if it is none of the plain dtypes."""
        return FORMATS.get(self.precision)
