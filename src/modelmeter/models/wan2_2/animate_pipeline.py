"""The Wan2.2 Animate pipeline: clip after clip, each with its own pose and face, all of one character.

Source: diffusers 0.42 ``pipelines/wan/pipeline_wan_animate.py``. Both of its modes make the same calls: to animate,
empty frames are encoded beside the pose, to replace, those of the background.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelmeter.errors import InputError, choice
from modelmeter.models.wan2_1 import pipeline as wan2_1
from modelmeter.models.wan2_1.architecture import LARGEST_WIDTH, transformer_arguments
from modelmeter.models.wan2_1.official_references import official_references
from modelmeter.models.wan2_1.pipeline import Config
from modelmeter.models.wan2_2.animate import ANIMATE_KEEP_IN_FP32, WanAnimateTransformer3DModel
from modelmeter.models.wan2_2.motion_encoder import CHANNEL_SIZES, LAST_SIDE
from modelmeter.policy import Policy
from modelmeter.stage import Call, Component, Pipeline, Plan, Reference, Stage, single
from modelmeter.workload import Geometry, Workload

#: Frames of a clip that the next one begins with. Source: the default of ``prev_segment_conditioning_frames`` of
#: ``WanAnimatePipeline``, and ``--refert_num 1`` in the vendor's examples; both take 5 too, at the same cost a clip.
SHARED_FRAMES = 1
#: The vendor's repository that has the official classes.
REPOSITORY = "Wan2.2"
#: Latent frames of the character before the video.
REFERENCE_FRAMES = 1
#: Arguments that only this transformer has: integers from 1 up.
SIZES = (
    *("motion_encoder_size", "motion_style_dim", "motion_dim", "motion_encoder_dim", "motion_encoder_batch_size"),
    *("face_encoder_hidden_dim", "face_encoder_num_heads", "inject_face_latents_blocks"),
)


def animate_arguments(vendor: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of diffusers' ``WanAnimateTransformer3DModel`` for the vendor's configuration.

    Raises:
        InputError: sizes that no model can have.

    Example:
        >>> from modelmeter.config import compose, find
        >>> animate_arguments(compose(find("wan2.2-animate-14b"))["transformer"])["latent_channels"]
        16
    """
    _check_sizes(vendor)
    trunk = transformer_arguments(vendor, image_encoder=True)
    channel_sizes = vendor["motion_encoder_channel_sizes"]
    return {
        **trunk,
        # noise, 4 of mask, and the encoded image
        "latent_channels": (vendor["in_dim"] - 4) // 2,
        **{name: vendor[name] for name in SIZES},
        "motion_encoder_channel_sizes": None if channel_sizes is None else dict(channel_sizes),
    }


def _check_sizes(vendor: Mapping[str, Any]) -> None:
    for name in SIZES:
        if not 1 <= vendor[name] <= LARGEST_WIDTH:
            raise InputError(f"transformer.{name}", vendor[name], f"an integer from 1 to {LARGEST_WIDTH:,}")
    sides = [side for side in vendor["motion_encoder_channel_sizes"] or CHANNEL_SIZES if int(side) >= LAST_SIDE]
    if str(vendor["motion_encoder_size"]) not in sides:
        raise choice("transformer.motion_encoder_size", vendor["motion_encoder_size"], sides)
    if vendor["in_dim"] % 2 or vendor["in_dim"] < 6:
        raise InputError("transformer.in_dim", vendor["in_dim"], "an even number from 6 up: twice the latents and 4")
    if vendor["patch_size"][0] != 1:
        raise InputError("transformer.patch_size", vendor["patch_size"], "1 frame for this model")
    if vendor["num_layers"] % vendor["inject_face_latents_blocks"]:
        allowed = f"a multiple of inject_face_latents_blocks = {vendor['inject_face_latents_blocks']}"
        raise InputError("transformer.num_layers", vendor["num_layers"], allowed)


def components(config: Config) -> dict[str, Component]:
    """As the image-to-video pipeline of Wan2.1, with the transformer of diffusers under both implementations."""
    transformer = WanAnimateTransformer3DModel(**animate_arguments(config["transformer"]))
    transformer.to(Policy.of(config).dtype, keep_in_fp32=ANIMATE_KEEP_IN_FP32)
    return {**wan2_1.encoders(config), "transformer": transformer}


def references(config: Config) -> dict[str, dict[str, Reference]]:
    """The real classes of the stages."""
    arguments = animate_arguments(config["transformer"])
    dtype = Policy.of(config).dtype.name
    real = Reference("diffusers", "WanAnimateTransformer3DModel", arguments, dtype=dtype)
    official = official_references(config, REPOSITORY)["transformer"]
    return {
        **wan2_1.encoder_references(config, REPOSITORY),
        "transformer": {"diffusers": real, "official": official},
    }


def whole_video(video: Workload) -> int:
    """Frames of all clips together.

    Example:
        >>> whole_video(Workload(num_frames=77, num_clips=3, height=720, width=1280, num_inference_steps=20))
        229
    """
    return (video.num_clips or 1) * (video.num_frames - SHARED_FRAMES) + SHARED_FRAMES


def encode_stage(config: Config, video: Workload, geometry: Geometry, references: int, clips: int) -> Stage:
    """The character as one frame; for every clip the pose, and for each video what the clip begins with."""
    character = wan2_1.encoded(config, 1, REFERENCE_FRAMES, geometry, times=references)
    beginnings = video.batch_size, geometry.latent_frames, geometry
    if video.batch_size == 1:
        return wan2_1.vae_stage("vae_encode", character, wan2_1.encoded(config, *beginnings, times=2 * clips))
    pose = wan2_1.encoded(config, 1, geometry.latent_frames, geometry, times=clips)
    return wan2_1.vae_stage("vae_encode", character, pose, wan2_1.encoded(config, *beginnings, times=clips))


def transformer_call(config: Config, video: Workload, geometry: Geometry, clips: int) -> Call:
    """Every step of every clip, with the reference frame, and a picture of the face for every frame of the clip."""
    dims = {
        **wan2_1.transformer_dims(config, video, geometry),
        "frames": geometry.latent_frames + REFERENCE_FRAMES,
        "face_frames": video.num_frames,
    }
    return single(dims, clips * video.num_inference_steps * video.guidance_passes)


def plan(config: Config, asked: Workload) -> Plan:
    """Prompts, character, then clip by clip: pose and beginning encoded, all steps, all but the reference decoded."""
    wan2_1.check_text_len(asked)
    video, geometry, warnings = wan2_1.prepared(config, asked, reference_frames=REFERENCE_FRAMES)
    if video.num_frames <= SHARED_FRAMES:
        raise InputError("num_frames", asked.num_frames, f"a clip longer than what two share, {SHARED_FRAMES} frame")
    clips = video.num_clips or 1
    references = clips if wan2_1.difference(config, "reference_image") == "every_clip" else 1
    image = single({"batch": 1}, references)
    decode = wan2_1.decode_stage(config, video, geometry, times=clips)
    stages = (
        wan2_1.text_encoder_stage(config, video),
        Stage(id="image_encoder", component="image_encoder", calls=(image,)),
        encode_stage(config, video, geometry, references, clips),
        Stage(id="transformer", component="transformer", calls=(transformer_call(config, video, geometry, clips),)),
        decode,
    )
    warnings += wan2_1.dropped_frames(video)
    if clips > 1:
        warnings.append(
            f"num_clips={clips}: {whole_video(video)} frames in all; "
            f"two clips share {SHARED_FRAMES} frame{'s' if SHARED_FRAMES > 1 else ''}"
        )
    return Plan(workload=video, geometry=geometry, stages=stages, warnings=tuple(warnings))


WAN_ANIMATE_PIPELINE = Pipeline(components=components, plan=plan, references=references, blocks=wan2_1.blocks)
