"""Module names of the official Wan code, and the paths in the analytic model (diffusers' names) they answer for.

One table for each official class: a path of a module (or of a parameter, where it lies in another module) and
its path here. ``*`` is a number that is the same on both sides. Only modules that hold weights or run matrix
products of their own stand here; what a container counts is the sum of what is below it.

- ``a + b``: one official module does the work of several equal ones, so each has an equal part of it.
- ``a & b``: one weight has two paths.
- ``None``: a weight that has no place in the analytic model, for the reason beside it.

Source: the ``__init__`` of every class in Wan2.1 at 9737cba and Wan2.2 at 42bf4cf, under ``wan/modules``;
diffusers ``scripts/convert_wan_to_diffusers.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

Names: TypeAlias = Mapping[str, str | None]


def below(official: str, ours: str, names: Mapping[str, str]) -> dict[str, str]:
    """A table for what lies below a module; ``""`` in it is the module itself.

    Example:
        >>> below("self_attn", "attn1", {"": "", "q": "to_q"})
        {'self_attn': 'attn1', 'self_attn.q': 'attn1.to_q'}
    """
    return {_joined(official, path): _joined(ours, answer) for path, answer in names.items()}


def _joined(*parts: str) -> str:
    return ".".join(part for part in parts if part)


# -- wan/modules/model.py: WanModel; wan/modules/vace_model.py: VaceWanModel ---------------------------------------

ATTENTION = {
    "": "",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "o": "to_out.0",
    "norm_q": "norm_q",
    "norm_k": "norm_k",
    "k_img": "add_k_proj",
    "v_img": "add_v_proj",
    "norm_k_img": "norm_added_k",
}
TRANSFORMER_BLOCK = {
    "": "",  # its modulation table
    **below("self_attn", "attn1", ATTENTION),
    "norm3": "norm2",  # norm1 and norm2 (here norm1 and norm3) have no weights
    **below("cross_attn", "attn2", ATTENTION),
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
TRANSFORMER: Names = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "img_emb": "condition_embedder.image_embedder",  # its positions
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    **below("blocks.*", "blocks.*", TRANSFORMER_BLOCK),
    "head": "",  # its modulation table
    "head.head": "proj_out",
}
VACE_TRANSFORMER: Names = {
    **TRANSFORMER,
    "vace_patch_embedding": "vace_patch_embedding",
    **below("vace_blocks.*", "vace_blocks.*", TRANSFORMER_BLOCK),
    "vace_blocks.*.before_proj": "vace_blocks.*.proj_in",
    "vace_blocks.*.after_proj": "vace_blocks.*.proj_out",
}

# -- wan/modules/animate: WanAnimateModel --------------------------------------------------------------------------

#: Blocks that halve the picture from 512 rows to 4: a constant of the official class.
MOTION_BLOCKS = 7
#: A blur, a convolution and an activation are one module here.
MOTION_BLOCK = {
    **{"conv1.0": "conv1", "conv1.1": "conv1.act_fn"},
    **{"conv2.0": "conv2", "conv2.1": "conv2", "conv2.2": "conv2.act_fn"},
    **{"skip.0": "conv_skip", "skip.1": "conv_skip"},
}
MOTION = {
    "enc.net_app.convs.0.0": "conv_in",
    "enc.net_app.convs.0.1": "conv_in.act_fn",
    **{
        path: answer
        for i in range(MOTION_BLOCKS)
        for path, answer in below(f"enc.net_app.convs.{i + 1}", f"res_blocks.{i}", MOTION_BLOCK).items()
    },
    f"enc.net_app.convs.{MOTION_BLOCKS + 1}": "conv_out",
    "enc.fc.*": "motion_network.*",
    "dec.direction": "",
}
ANIMATE_TRANSFORMER: Names = {
    **TRANSFORMER,
    "pose_patch_embedding": "pose_patch_embedding",
    **below("motion_encoder", "motion_encoder", MOTION),
    "face_encoder": "face_encoder",  # its padding
    **{f"face_encoder.{conv}.conv": f"face_encoder.{conv}" for conv in ("conv1_local", "conv2", "conv3")},
    "face_encoder.out_proj": "face_encoder.out_proj",
    "face_adapter.fuser_blocks.*": "face_adapter.*",
    "face_adapter.fuser_blocks.*.linear1_q": "face_adapter.*.to_q",
    "face_adapter.fuser_blocks.*.linear1_kv": "face_adapter.*.to_k + face_adapter.*.to_v",
    "face_adapter.fuser_blocks.*.linear2": "face_adapter.*.to_out",
    "face_adapter.fuser_blocks.*.q_norm": "face_adapter.*.norm_q",
    "face_adapter.fuser_blocks.*.k_norm": "face_adapter.*.norm_k",
}

# -- wan/modules/t5.py: T5Encoder ----------------------------------------------------------------------------------

T5_ATTENTION = {"": "", "q": "q", "k": "k", "v": "v", "o": "o"}
T5_BLOCK = {
    "norm1": "layer.0.layer_norm",
    **below("attn", "layer.0.SelfAttention", T5_ATTENTION),
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}
TEXT_ENCODER: Names = {
    "token_embedding": "shared & encoder.embed_tokens",
    **below("blocks.*", "encoder.block.*", T5_BLOCK),
    "norm": "encoder.final_layer_norm",
}

# -- wan/modules/clip.py: VisionTransformer ------------------------------------------------------------------------

IMAGE_ENCODER: Names = {
    "patch_embedding": "embeddings.patch_embedding",
    "cls_embedding": "embeddings",
    "pos_embedding": "embeddings.position_embedding",
    "pre_norm": "pre_layrnorm",
    "transformer.*.norm1": "encoder.layers.*.layer_norm1",
    "transformer.*.attn": "encoder.layers.*.self_attn",
    "transformer.*.attn.to_qkv": " + ".join(f"encoder.layers.*.self_attn.{part}_proj" for part in "qkv"),
    "transformer.*.attn.proj": "encoder.layers.*.self_attn.out_proj",
    "transformer.*.norm2": "encoder.layers.*.layer_norm2",
    "transformer.*.mlp.0": "encoder.layers.*.mlp.fc1",
    "transformer.*.mlp.2": "encoder.layers.*.mlp.fc2",
    "post_norm": "post_layernorm",
    "head": None,  # projects to the space of the text, which no pipeline asks for
}

# -- wan/modules/vae.py (vae2_1.py in Wan2.2) and wan/modules/vae2_2.py: WanVAE_ -----------------------------------

RESIDUAL = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}
RESAMPLE = {"resample.1": "resample.1", "time_conv": "time_conv"}
PIXEL_ATTENTION = {"": "", "norm": "norm", "to_qkv": "to_qkv", "proj": "proj"}
ENDS = {
    "conv1": "conv_in",
    **below("middle.0", "mid_block.resnets.0", RESIDUAL),
    **below("middle.1", "mid_block.attentions.0", PIXEL_ATTENTION),
    **below("middle.2", "mid_block.resnets.1", RESIDUAL),
    "head.0": "norm_out",
    "head.2": "conv_out",
}
VAE: Names = {
    **below("encoder", "encoder", ENDS),
    "conv1": "quant_conv",
    "conv2": "post_quant_conv",
    **below("decoder", "decoder", ENDS),
}


def vae_names(levels: int, num_res_blocks: int) -> Names:
    """The VAE of Wan2.1: all layers of the encoder, and all of the decoder, in one row.

    Args:
        levels: of resolution.
        num_res_blocks: of a level of the encoder; the decoder has one more.
    """
    row = num_res_blocks + 2  # residual blocks and an upsampler
    names: dict[str, str | None] = {
        **VAE,
        **below("encoder.downsamples.*", "encoder.down_blocks.*", {**RESIDUAL, **RESAMPLE}),
    }
    for level in range(levels):
        first, block = level * row, f"decoder.up_blocks.{level}"
        for i in range(num_res_blocks + 1):
            names |= below(f"decoder.upsamples.{first + i}", f"{block}.resnets.{i}", RESIDUAL)
        if level < levels - 1:
            names |= below(f"decoder.upsamples.{first + row - 1}", f"{block}.upsamplers.0", RESAMPLE)
    return names


def residual_vae_names(levels: int, num_res_blocks: int) -> Names:
    """The VAE of Wan2.2: a row of layers for each level."""
    names: dict[str, str | None] = {
        **VAE,
        **below("encoder.downsamples.*.downsamples.*", "encoder.down_blocks.*.resnets.*", RESIDUAL),
        **below("decoder.upsamples.*.upsamples.*", "decoder.up_blocks.*.resnets.*", RESIDUAL),
    }
    down, up = f"downsamples.{num_res_blocks}", f"upsamples.{num_res_blocks + 1}"
    for level in range(levels - 1):
        names |= below(f"encoder.downsamples.{level}.{down}", f"encoder.down_blocks.{level}.downsampler", RESAMPLE)
        names |= below(f"decoder.upsamples.{level}.{up}", f"decoder.up_blocks.{level}.upsampler", RESAMPLE)
    return names


# -- reading the tables --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Renamed:
    """Numbers of official modules under our paths.

    Args:
        inclusive: by path, everything at and below it.
        answered: paths that an official module answers for by name, and not only by what is below it.
        unknown: official paths that no table has.
    """

    inclusive: Mapping[str, int]
    answered: frozenset[str]
    unknown: tuple[str, ...]

    def at(self, paths: Iterable[str]) -> dict[str, int]:
        """The numbers of these paths, zero where nothing answers, and of all further ones that were answered for."""
        return {path: self.inclusive.get(path, 0) for path in (*paths, *sorted(self.answered))}


def renamed(own: Mapping[str, int], names: Names) -> Renamed:
    """Numbers that official modules have of their own, under our paths and added up along them.

    What no table knows counts for the root alone.

    Example:
        >>> names = {"attn.to_qkv": "attn.q + attn.k + attn.v", "attn.o": "attn.to_out.0", "head": None}
        >>> found = renamed({"attn.to_qkv": 6, "attn.o": 4, "new": 1, "head": 5}, names)
        >>> found.inclusive["attn"], found.inclusive["attn.q"], found.inclusive[""], found.unknown
        (10, 2, 11, ('new',))
    """
    inclusive: dict[str, int] = {"": 0}
    answered: set[str] = set()
    unknown: list[str] = []
    find = finder(names)
    for path, value in own.items():
        if not value:
            continue
        try:
            answer = find(path)
        except KeyError:
            unknown.append(path)
            answer = ""
        for paths, part in _parts(answer, value):
            answered |= paths
            for place in {place for each in paths for place in _along(each)}:
                inclusive[place] = inclusive.get(place, 0) + part
    return Renamed(inclusive, frozenset(answered), tuple(unknown))


def finder(names: Names) -> Callable[[str], str | None]:
    """Looks up official paths, the root among them; a path that no table has is a KeyError.

    Example:
        >>> finder({"blocks.*.self_attn": "blocks.*.attn1"})("blocks.7.self_attn")
        'blocks.7.attn1'
    """
    patterns = [
        (re.compile(re.escape(path).replace(r"\*", r"(\d+)")), answer) for path, answer in {"": "", **names}.items()
    ]

    def find(path: str) -> str | None:
        for pattern, answer in patterns:
            if found := pattern.fullmatch(path):
                if answer is None:
                    return None
                return answer.replace("*", "{}").format(*found.groups() * (1 + answer.count(" + ")))
        raise KeyError(path)

    return find


def _parts(answer: str | None, value: int) -> list[tuple[set[str], int]]:
    """Which paths share a number: each set of paths is one weight, and has its part of it."""
    if answer is None:
        return []
    answers = answer.split(" + ")
    part = value // len(answers)
    parts = [part] * (len(answers) - 1)
    return [(set(each.split(" & ")), size) for each, size in zip(answers, [*parts, value - sum(parts)], strict=True)]


def _along(path: str) -> list[str]:
    """A path and all above it, up to the root."""
    names = path.split(".")
    return [".".join(names[:length]) for length in range(len(names) + 1)] if path else [""]
