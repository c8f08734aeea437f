"""The configuration of a diffusion transformer, official or diffusers', as the ``transformer`` section of ours.

The section has the keys of the official ``WanModel``. Keys that only diffusers has are in it where they differ
from what the official code fixes: ``image_dim``, ``pos_embed_seq_len``, ``rope_max_seq_len``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from modelmeter.errors import InputError, choice, with_type
from modelmeter.local.keys import (
    MOST_LAYERS,
    Key,
    boolean,
    integer,
    integers,
    needed,
    number,
    only,
    optional_integer,
    unknown,
    values,
)

Section = dict[str, Any]

#: What the official code fixes: width of the image encoder's output, tokens of two images, most positions along an
#: axis. Source: ``MLPProj(1280, dim)``, ``FIRST_LAST_FRAME_CONTEXT_TOKEN_NUMBER`` and ``rope_params(1024, ...)`` in
#: wan/modules/model.py of Wan2.1 at 9737cba.
FIXED = {"image_dim": 1280, "pos_embed_seq_len": 514, "rope_max_seq_len": 1024}
#: Channels of the latents of the Wan2.2 VAE, by which a transformer of TI2V is known.
TI2V_CHANNELS = 48
#: Length to which every prompt is padded. Source: ``text_len`` in wan/configs/shared_config.py.
TEXT_LEN = 512

#: Keys of the official ``WanModel`` and their defaults. Source: wan/modules/model.py of Wan2.1 at 9737cba.
OFFICIAL: Mapping[str, Key] = {
    "model_type": only("t2v", "i2v", "flf2v", "ti2v", "vace"),
    "patch_size": integers([1, 2, 2], most=3),
    "text_len": integer(512),
    "in_dim": integer(16),
    "dim": integer(2048),
    "ffn_dim": integer(8192),
    "freq_dim": integer(256),
    "text_dim": integer(4096),
    "out_dim": integer(16),
    "num_heads": integer(16),
    "num_layers": integer(32, MOST_LAYERS),
    "window_size": Key("[-1, -1] for this model", lambda value: value == [-1, -1], [-1, -1]),
    "qk_norm": only(True),
    "cross_attn_norm": boolean(True),
    "eps": number(1e-6),
}
#: Those that ``VaceWanModel`` adds. Source: wan/modules/vace_model.py.
OFFICIAL_VACE: Mapping[str, Key] = {
    "vace_layers": integers(None, least=0),
    "vace_in_dim": optional_integer(None),
}
#: Those that ``WanModel_S2V`` adds. Only one way to build it is modelled, which is not the one without them: they have
#: to be there, but for two that change nothing in it. Source: wan/modules/s2v/model_s2v.py of Wan2.2 at 42bf4cf.
OFFICIAL_S2V: Mapping[str, Key] = {
    "model_type": only("s2v"),
    "patch_size": only([1, 2, 2]),
    "cross_attn_norm": only(True),
    "cond_dim": needed(integer(16)),
    "audio_dim": needed(integer(1024)),
    "num_audio_token": needed(integer(4)),
    "enable_adain": needed(only(True)),
    "adain_mode": needed(only("attn_norm")),
    "audio_inject_layers": needed(integers(None, least=0)),
    "zero_init": boolean(False),
    "zero_timestep": needed(only(True)),
    "enable_motioner": needed(only(False)),
    "add_last_motion": needed(only(True)),
    "enable_tsm": only(False),
    "trainable_token_pos_emb": only(False),
    "enable_framepack": needed(only(True)),
    "framepack_drop_mode": needed(only("padd")),
}
#: Keys of diffusers' ``WanTransformer3DModel`` and their defaults. Source: its signature in diffusers 0.42.
DIFFUSERS: Mapping[str, Key] = {
    "patch_size": integers([1, 2, 2], most=3),
    "num_attention_heads": integer(40),
    "attention_head_dim": integer(128),
    "in_channels": integer(16),
    "out_channels": optional_integer(16),
    "text_dim": integer(4096),
    "freq_dim": integer(256),
    "ffn_dim": integer(13824),
    "num_layers": integer(40, MOST_LAYERS),
    "cross_attn_norm": boolean(True),
    "qk_norm": only("rms_norm_across_heads"),
    "eps": number(1e-6),
    "image_dim": optional_integer(None),
    "added_kv_proj_dim": optional_integer(None),
    "rope_max_seq_len": integer(1024),
    "pos_embed_seq_len": optional_integer(None),
}
#: Those that ``WanVACETransformer3DModel`` adds, or that it cannot use.
DIFFUSERS_VACE: Mapping[str, Key] = {
    "vace_layers": integers([0, 5, 10, 15, 20, 25, 30, 35], least=0),
    "vace_in_channels": integer(96),
    "image_dim": only(None),
    "added_kv_proj_dim": only(None),
    "pos_embed_seq_len": only(None),
}
#: What follows the face in Animate, and the defaults. Source: the signature of diffusers' class.
ANIMATE: Mapping[str, Key] = {
    "motion_encoder_dim": integer(512),
    "motion_encoder_channel_sizes": only(None),
    "motion_encoder_size": integer(512),
    "motion_style_dim": integer(512),
    "motion_dim": integer(20),
    "motion_encoder_batch_size": integer(8),
    "face_encoder_hidden_dim": integer(1024),
    "face_encoder_num_heads": integer(4),
    "inject_face_latents_blocks": integer(5),
}
#: Keys of the official ``WanAnimateModel``, which fixes the rest. Source: wan/modules/animate/model_animate.py of
#: Wan2.2 at 42bf4cf.
OFFICIAL_ANIMATE: Mapping[str, Key] = {
    "model_type": only("i2v", "animate"),
    "in_dim": integer(36),
    "motion_encoder_dim": integer(512),
    "use_img_emb": only(True),
}
#: Keys of diffusers' ``WanAnimateTransformer3DModel`` that ``WanTransformer3DModel`` does not have or has otherwise.
DIFFUSERS_ANIMATE: Mapping[str, Key] = {
    **ANIMATE,
    "in_channels": integer(36),
    "latent_channels": integer(16),
    "image_dim": integer(1280),
    "pos_embed_seq_len": only(None),
}


@dataclass(frozen=True, slots=True)
class Transformer:
    """A diffusion transformer of a directory.

    Args:
        file: its configuration.
        class_name: the class that it is for.
        section: its configuration in official keys.
        images: it takes the tokens of an image encoder; ``None`` where its configuration does not say.
    """

    file: str
    class_name: str
    section: Mapping[str, Any]
    images: bool | None
    warnings: tuple[str, ...]


def transformer(file: str, given: Mapping[str, Any]) -> Transformer:
    """The diffusion transformer that a ``config.json`` describes.

    Raises:
        InputError: the class is none of those that are modelled, or a value is none that its class can have.

    Example:
        >>> transformer("config.json", {"_class_name": "WanModel", "dim": 1536, "num_heads": 12}).section["dim"]
        1536
    """
    name = class_of(given)
    if name is None or name not in CLASSES:
        raise choice(f"{file}:_class_name", with_type(given.get("_class_name")), CLASSES)
    keys, read = CLASSES[name]
    found, images = read(file, values(file, given, keys))
    return Transformer(file, name, found, images, tuple(unknown(file, given, keys)))


def class_of(given: Mapping[str, Any]) -> str | None:
    """The class that a configuration is for: as it says, or by keys that no other configuration has.

    Example:
        >>> class_of({"dim": 1536, "num_heads": 12, "num_layers": 30, "ffn_dim": 8960})
        'WanModel'
    """
    name = given.get("_class_name")
    if name is None and given.keys() >= {"dim", "ffn_dim", "num_heads", "num_layers"}:
        kinds = {"vace": "VaceWanModel", "s2v": "WanModel_S2V"}
        return next((kind for word, kind in kinds.items() if given.get("model_type") == word), "WanModel")
    if name is None and given.keys() >= {"num_attention_heads", "attention_head_dim", "ffn_dim", "num_layers"}:
        return "WanVACETransformer3DModel" if "vace_layers" in given else "WanTransformer3DModel"
    if name == "WanModel" and given.get("model_type") == "vace":
        return "VaceWanModel"
    return name if isinstance(name, str) else None


def _official(file: str, found: Section) -> tuple[Section, bool | None]:
    """The official keys are ours; the window is that of all tokens."""
    _check_patch(file, found)
    section = {key: value for key, value in found.items() if key != "window_size"}
    images = {"i2v": None, "flf2v": True}.get(found["model_type"], False)
    return section, images


def _official_vace(file: str, found: Section) -> tuple[Section, bool | None]:
    """Without a list, every second block has a hint; the control has the channels of the video."""
    section, _ = _official(file, found)
    if section["vace_layers"] is None:
        section["vace_layers"] = list(range(0, section["num_layers"], 2))
    if section["vace_in_dim"] is None:
        section["vace_in_dim"] = section["in_dim"]
    return section | {"model_type": "vace"}, False


def _diffusers(file: str, found: Section) -> tuple[Section, bool | None]:
    """The official keys, the type from what the class is given. Source: ``convert_wan_to_diffusers.py``."""
    _check_patch(file, found)
    dim = found["num_attention_heads"] * found["attention_head_dim"]
    out_dim = found["in_channels"] if found["out_channels"] is None else found["out_channels"]
    images = found["image_dim"] is not None
    if images or found["added_kv_proj_dim"] is not None:
        if not images:
            raise InputError(f"{file}:image_dim", "null", "an integer where added_kv_proj_dim is one")
        if found["added_kv_proj_dim"] != dim:
            allowed = f"{dim}, the width of this model, where image_dim is set"
            raise InputError(f"{file}:added_kv_proj_dim", found["added_kv_proj_dim"], allowed)
    positions = found["pos_embed_seq_len"] if images else None
    if positions is not None and positions % 2:
        raise InputError(f"{file}:pos_embed_seq_len", positions, "the tokens of two images, an even number")
    if images:
        model_type = "i2v" if positions is None else "flf2v"
    elif found["in_channels"] != out_dim:
        model_type = "i2v"
    else:
        model_type = "ti2v" if out_dim == TI2V_CHANNELS else "t2v"
    section = {
        "model_type": model_type,
        "patch_size": found["patch_size"],
        "text_len": TEXT_LEN,
        "in_dim": found["in_channels"],
        "dim": dim,
        "ffn_dim": found["ffn_dim"],
        "freq_dim": found["freq_dim"],
        "text_dim": found["text_dim"],
        "out_dim": out_dim,
        "num_heads": found["num_attention_heads"],
        "num_layers": found["num_layers"],
        "qk_norm": True,
        "cross_attn_norm": found["cross_attn_norm"],
        "eps": found["eps"],
    }
    own = {key: found[key] for key in ("image_dim", "rope_max_seq_len")} | {"pos_embed_seq_len": positions}
    return section | {key: value for key, value in own.items() if value not in (None, FIXED[key])}, images


def _diffusers_vace(file: str, found: Section) -> tuple[Section, bool | None]:
    """As :func:`_diffusers`, with the blocks that have a hint and the channels of the control."""
    section, _ = _diffusers(file, found)
    own = {"vace_layers": found["vace_layers"], "vace_in_dim": found["vace_in_channels"]}
    return section | {"model_type": "vace"} | own, False


def _official_animate(file: str, found: Section) -> tuple[Section, bool | None]:
    """The image-to-video transformer, and the constants of what follows the face."""
    section, _ = _official(file, found)
    section.pop("use_img_emb")
    constants = {key: kind.default for key, kind in ANIMATE.items()}
    return {**constants, **section, "model_type": "i2v"}, True


def _official_s2v(file: str, found: Section) -> tuple[Section, bool | None]:
    """The official keys are ours."""
    section, _ = _official(file, found)
    return section, False


def _diffusers_animate(file: str, found: Section) -> tuple[Section, bool | None]:
    """As :func:`_diffusers`, with what follows the face; the channels in are two latents and 4 of mask."""
    section, _ = _diffusers(file, found)
    if 2 * found["latent_channels"] + 4 != found["in_channels"]:
        allowed = f"half of in_channels = {found['in_channels']} without the 4 of mask"
        raise InputError(f"{file}:latent_channels", found["latent_channels"], allowed)
    return section | {key: found[key] for key in ANIMATE}, True


def _check_patch(file: str, found: Section) -> None:
    if len(found["patch_size"]) != 3:
        raise InputError(f"{file}:patch_size", found["patch_size"], "three sizes: frames, rows, columns")


Read = Callable[[str, Section], tuple[Section, bool | None]]

#: Keys of every class that is modelled, and how they are read.
CLASSES: Mapping[str, tuple[Mapping[str, Key], Read]] = {
    "WanModel": (OFFICIAL, _official),
    "VaceWanModel": ({**OFFICIAL, **OFFICIAL_VACE}, _official_vace),
    "WanTransformer3DModel": (DIFFUSERS, _diffusers),
    "WanVACETransformer3DModel": ({**DIFFUSERS, **DIFFUSERS_VACE}, _diffusers_vace),
    "WanModel_S2V": ({**OFFICIAL, **OFFICIAL_S2V}, _official_s2v),
    "WanAnimateModel": ({**OFFICIAL, **OFFICIAL_ANIMATE}, _official_animate),
    "WanAnimateTransformer3DModel": ({**DIFFUSERS, **DIFFUSERS_ANIMATE}, _diffusers_animate),
}
