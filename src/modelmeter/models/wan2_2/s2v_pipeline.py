"""The pipeline of Wan2.2 S2V: one clip after the other, each conditioned on the last frames of the one before.

Source: Wan2.2 ``wan/speech2video.py`` at 42bf4cf. diffusers has no such pipeline and no such transformer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from modelmeter.errors import InputError
from modelmeter.models.common.audio_encoder import Wav2Vec2ForCTC, audio_dims, token_span
from modelmeter.models.common.checks import check_component
from modelmeter.models.common.text_encoder import UMT5EncoderModel
from modelmeter.models.common.vae import AutoencoderKLWan, decode_call
from modelmeter.models.common.vae_tiles import tiled_decode_call
from modelmeter.models.wan2_1.architecture import MAX_POSITIONS, check_sizes
from modelmeter.models.wan2_1.pipeline import (
    Config,
    difference,
    encoded,
    text_encoder_stage,
    vae_reference,
    vae_stage,
)
from modelmeter.models.wan2_2.s2v import Wan2_2S2VModel, clip_dims
from modelmeter.models.wan2_2.s2v_motion import packed_tokens
from modelmeter.nn import bfloat16
from modelmeter.policy import DTYPES, Policy
from modelmeter.stage import Call, Component, Pipeline, Plan, Reference, Stage, single
from modelmeter.workload import Geometry, Grid, Workload

#: Samples of audio for one frame of video: 16 kHz at 16 frames a second.
#: Source: ``librosa.load(sr=16000)`` in ``wan/modules/s2v/audio_encoder.py``; ``self.fps = 16`` in ``speech2video.py``.
SAMPLES_PER_FRAME = 1000
#: Frames of a latent frame.
TEMPORAL_STRIDE = 4
#: Pixels of the largest patch of packed motion, which has to fit; and what the official code makes sizes multiples of.
SMALLEST_SIDE = OFFICIAL_STEP = 64
#: Keys of the configuration that are arguments of the transformer.
ARGUMENTS = (
    *("patch_size", "in_dim", "dim", "ffn_dim", "freq_dim", "text_dim", "out_dim", "num_heads", "num_layers"),
    *("cond_dim", "audio_dim", "num_audio_token", "audio_inject_layers"),
)
#: Keys that say how the one published model is built; no other way is modelled.
BUILT: Mapping[str, Any] = {
    "patch_size": [1, 2, 2],
    "cross_attn_norm": True,
    "enable_adain": True,
    "adain_mode": "attn_norm",
    "zero_timestep": True,
    "enable_motioner": False,
    "add_last_motion": True,
    "enable_framepack": True,
    "framepack_drop_mode": "padd",
}


# -- components --------------------------------------------------------------------------------------------------


def components(config: Config) -> dict[str, Component]:
    """The modules of the pipeline by component id, weights in the dtypes that the official code loads.

    Raises:
        InputError: diffusers' implementation, or sizes that no model can have.
    """
    if config["implementation"] != "official":
        raise InputError("implementation", config["implementation"], "official: diffusers has no class of this model")
    for name in ("text_encoder", "audio_encoder", "vae"):
        check_component(name, config[name])
    text_encoder = UMT5EncoderModel(**config["text_encoder"])
    text_encoder.to(bfloat16)
    vae = AutoencoderKLWan(**config["vae"])
    vae.to(DTYPES[config["vae_precision"]])
    transformer = Wan2_2S2VModel(**transformer_arguments(config))
    transformer.to(Policy.of(config).dtype)
    return {
        "text_encoder": text_encoder,
        "audio_encoder": Wav2Vec2ForCTC(**config["audio_encoder"]),
        "vae": vae,
        "transformer": transformer,
    }


def transformer_arguments(config: Config) -> dict[str, Any]:
    """Arguments of the transformer for the vendor's configuration of ``WanModel_S2V``.

    Raises:
        InputError: sizes that no model can have.
    """
    vendor = config["transformer"]
    check_sizes(vendor, "cond_dim", "audio_dim", "num_audio_token")
    for key, value in BUILT.items():
        if vendor[key] != value:
            raise InputError(f"transformer.{key}", vendor[key], f"{value} for this model")
    if vendor["dim"] % 4:
        raise InputError("transformer.dim", vendor["dim"], "a multiple of 4 for this model")
    narrowest = 6 * vendor["num_heads"]
    if vendor["dim"] < narrowest:
        raise InputError("transformer.dim", vendor["dim"], f"at least {narrowest}, 6 for each head")
    if vendor["freq_dim"] % 2:  # asserted by sinusoidal_embedding_1d
        raise InputError("transformer.freq_dim", vendor["freq_dim"], "an even number for this model")
    layers = vendor["audio_inject_layers"]
    if len(set(layers)) < len(layers) or min(layers) < 0:
        raise InputError("transformer.audio_inject_layers", layers, "different blocks, counted from 0")
    frames = config["motion_frames"]
    arguments = {key: vendor[key] for key in ARGUMENTS}
    return {**arguments, "patch_size": tuple(vendor["patch_size"]), "motion_frames": (frames, latent(frames))}


def latent(frames: int) -> int:
    """Latent frames of a video: the first holds one frame, the others four.

    Example:
        >>> latent(73), latent(81)
        (19, 21)
    """
    return (frames - 1) // TEMPORAL_STRIDE + 1


def references(config: Config) -> dict[str, dict[str, Reference]]:
    """The real classes of the encoders and the VAE; a mirror in plain PyTorch of the transformer."""
    encoders = "modelmeter.verify.transformers_models"
    mirrors = "modelmeter.models.wan2_2.scripts.verify._reference_modules_s2v"
    vae = vae_reference(config)
    text_encoder = Reference(encoders, "build_text_encoder", config["text_encoder"], dtype="bfloat16")
    return {
        "text_encoder": {"diffusers": text_encoder},
        "audio_encoder": {"diffusers": Reference(encoders, "build_audio_encoder", config["audio_encoder"])},
        "vae_encode": {"diffusers": replace(vae, method="encode")},
        "transformer": {"modules": Reference(mirrors, "RefWan2_2S2VModel", transformer_arguments(config))},
        "vae_decode": {"diffusers": vae},
    }


# -- stages ------------------------------------------------------------------------------------------------------


def plan(config: Config, video: Workload) -> Plan:
    """Text, audio, and what conditions the first clip; then every clip, and the last frames of it for the next.

    Raises:
        InputError: a size that the model cannot run.
    """
    assert video.num_clips is not None
    if video.flow_shift is None:
        video = replace(video, flow_shift=difference(config, "flow_shift"))
    geometry = clip_geometry(config, video)
    stages = (
        _one_by_one(config, video),
        Stage(id="audio_encoder", component="audio_encoder", calls=(single(_audio(config, video), video.batch_size),)),
        encode_stage(config, video, geometry),
        transformer_stage(video, geometry),
        decode_stage(config, video, geometry),
    )
    return Plan(workload=video, geometry=geometry, stages=stages, warnings=tuple(_warnings(config, video)))


def clip_geometry(config: Config, video: Workload) -> Geometry:
    """Latents of the noise of one clip; tokens with the reference, and with packed motion where there are clips before.

    Raises:
        InputError: a size that the model cannot run.
    """
    if video.num_frames < TEMPORAL_STRIDE:
        raise InputError("num_frames", video.num_frames, f"at least {TEMPORAL_STRIDE} for this model")
    vae = config["vae"]
    grid = Grid(
        temporal_stride=vae["scale_factor_temporal"],
        spatial_stride=vae["scale_factor_spatial"],
        patch_size=tuple(config["transformer"]["patch_size"]),
        max_positions=MAX_POSITIONS,
    )
    frames = video.num_frames // TEMPORAL_STRIDE
    # the reference has one latent frame of its own, without one of the noise being shorter for it
    geometry = grid.geometry(replace(video, num_frames=frames * TEMPORAL_STRIDE), reference_frames=1)
    for key in ("height", "width"):
        if getattr(video, key) < SMALLEST_SIDE:
            raise InputError(key, getattr(video, key), f"at least {SMALLEST_SIDE} for this model")
    if video.num_clips == 1:
        return geometry
    return replace(geometry, tokens=geometry.tokens + packed_tokens(geometry.latent_height, geometry.latent_width))


def _one_by_one(config: Config, video: Workload) -> Stage:
    """The prompts of every video, which the official code makes one by one."""
    stage = text_encoder_stage(config, replace(video, batch_size=1))
    return replace(stage, calls=tuple(replace(call, times=call.times * video.batch_size) for call in stage.calls))


def _audio(config: Config, video: Workload) -> dict[str, int]:
    """Sizes of audio as long as all clips."""
    assert video.num_clips is not None
    encoder = config["audio_encoder"]
    span = token_span(encoder["conv_kernel"], encoder["conv_stride"])
    samples = video.num_clips * video.num_frames * SAMPLES_PER_FRAME
    if samples < span[0]:
        raise InputError("num_frames", video.num_frames, f"audio of at least {span[0]} samples, not {samples}")
    return audio_dims(1, samples, span)


def encode_stage(config: Config, video: Workload, geometry: Geometry) -> Stage:
    """Once reference, pose (also where there is none) and empty motion; after every clip its last frames."""
    assert video.num_clips is not None
    motion = latent(config["motion_frames"])
    return vae_stage(
        "vae_encode",
        encoded(config, 1, 1, geometry, video.batch_size),
        encoded(config, 1, motion, geometry, video.batch_size * (1 + video.num_clips)),
        encoded(config, 1, 1 + geometry.latent_frames, geometry, video.batch_size),
    )


def transformer_stage(video: Workload, geometry: Geometry) -> Stage:
    """Every step of the first clip, which has no motion before it, and of the later ones."""
    steps = video.batch_size * video.num_inference_steps * video.guidance_passes
    calls = []
    for times, first in _clips(video):
        dims = clip_dims(
            num_frames=video.num_frames,
            rows=geometry.latent_height // 2,
            columns=geometry.latent_width // 2,
            text_len=video.text_len,
            drop_motion_frames=first,
        )
        calls.append(single(dims, times * steps))
    return Stage(id="transformer", component="transformer", calls=tuple(calls))


def decode_stage(config: Config, video: Workload, geometry: Geometry) -> Stage:
    """The first clip behind the reference, the later ones behind the motion before them."""
    before = {True: 1, False: latent(config["motion_frames"])}
    calls = [
        _decoded(config, before[first] + geometry.latent_frames, geometry, times * video.batch_size)
        for times, first in _clips(video)
    ]
    return vae_stage("vae_decode", *calls)


def _clips(video: Workload) -> list[tuple[int, bool]]:
    """How many clips of a kind, and whether it is the first."""
    assert video.num_clips is not None
    later = video.num_clips - 1
    return [(1, True), (later, False)] if later else [(1, True)]


def _decoded(config: Config, frames: int, geometry: Geometry, times: int) -> Call:
    sizes = 1, frames, geometry.latent_height, geometry.latent_width
    if config["vae_tiling"]:
        return tiled_decode_call(*sizes, times, scale_factor_spatial=config["vae"]["scale_factor_spatial"])
    return decode_call(*sizes, times)


def _warnings(config: Config, video: Workload) -> list[str]:
    """What the reader has to know beside the numbers."""
    assert video.num_clips is not None
    found = []
    frames = video.num_frames // TEMPORAL_STRIDE * TEMPORAL_STRIDE
    if frames != video.num_frames:
        found.append(f"num_frames={video.num_frames}: a clip has {frames} frames (a multiple of {TEMPORAL_STRIDE})")
    for key in ("height", "width"):
        if getattr(video, key) % OFFICIAL_STEP:
            found.append(f"{key}={getattr(video, key)}: the official code makes sizes multiples of {OFFICIAL_STEP}")
    padding = difference(config, "text_padding")
    if padding != video.text_len:
        found.append(f"text_len={video.text_len}: the official code pads every prompt to {padding} tokens")
    seconds = video.num_clips * video.num_frames * SAMPLES_PER_FRAME / 16_000
    found.append(
        f"audio: {seconds:g} s, as long as the clips; "
        "the official code encodes the whole file, however many clips it makes"
    )
    return found


WAN2_2_SPEECH_TO_VIDEO_PIPELINE = Pipeline(components=components, plan=plan, references=references)
