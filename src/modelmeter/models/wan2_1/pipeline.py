"""The Wan2.1 pipelines: which stages run, on what sizes, how often."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from modelmeter.errors import InputError
from modelmeter.models.common.checks import check_component
from modelmeter.models.common.image_encoder import CLIPVisionModel
from modelmeter.models.common.text_encoder import UMT5EncoderModel
from modelmeter.models.common.vae import AutoencoderKLWan, decode_call, encode_call
from modelmeter.models.common.vae_official import WanVAE
from modelmeter.models.common.vae_tiles import tiled_decode_call, tiled_encode_call
from modelmeter.models.wan2_1.architecture import max_positions, transformer_arguments
from modelmeter.models.wan2_1.official import WanModel
from modelmeter.models.wan2_1.official_references import official_references
from modelmeter.models.wan2_1.official_vace import VaceWanModel
from modelmeter.models.wan2_1.transformer import KEEP_IN_FP32, TEXT_TOKENS_WITH_IMAGES, Wan2_1DiTModel
from modelmeter.models.wan2_1.vace import WanVACETransformer3DModel
from modelmeter.nn import bfloat16
from modelmeter.policy import DTYPES, Policy
from modelmeter.stage import Blocks, Call, Component, Pipeline, Plan, Reference, Stage, single
from modelmeter.workload import Geometry, Grid, Workload, round_frames

Config = Mapping[str, Any]

#: Part of a module's path, and the part of the mirror's path that runs the same matrix products.
MIRRORED = {"ffn.net.0.proj": "ffn.fc1", "ffn.net.0": "ffn.fc1", "ffn.net.2": "ffn.fc2"}
#: Fewest frames of a video between two images: the first latent frame holds one, the others four.
FEWEST_FRAMES_BETWEEN = 5


def difference(config: Config, name: str) -> Any:
    """What the implementation does where the two differ in cost."""
    return config["differences"][name][config["implementation"]]


# -- components --------------------------------------------------------------------------------------------------


def components(config: Config) -> dict[str, Component]:
    """The modules of the pipeline by component id, weights in the dtypes that diffusers loads."""
    return {**encoders(config), "transformer": transformer(config)}


def encoders(config: Config) -> dict[str, Component]:
    """All components but the diffusion transformer."""
    for name in ("text_encoder", "image_encoder", "vae"):
        check_component(name, config.get(name, {}))
    text_encoder = UMT5EncoderModel(**config["text_encoder"])
    text_encoder.to(bfloat16)
    found: dict[str, Component] = {"text_encoder": text_encoder}
    if "image_encoder" in config:
        image_encoder = CLIPVisionModel(**image_encoder_arguments(config))
        image_encoder.to(DTYPES[difference(config, "image_encoder_weights")])
        found["image_encoder"] = image_encoder
    # tiles are diffusers' own
    vae_class = WanVAE if config["implementation"] == "official" and not config["vae_tiling"] else AutoencoderKLWan
    vae = vae_class(**config["vae"], flat=difference(config, "vae_decoder") == "flat")
    vae.to(DTYPES[config["vae_precision"]])
    return {**found, "vae": vae}


def transformer(config: Config) -> Component:
    """The diffusion transformer of a configuration, as its implementation runs it.

    Raises:
        InputError: sizes that the implementation cannot run.
    """
    arguments = transformer_arguments(config["transformer"], image_encoder="image_encoder" in config)
    if config["implementation"] == "official" and arguments["freq_dim"] % 2:  # asserted by sinusoidal_embedding_1d
        raise InputError("transformer.freq_dim", arguments["freq_dim"], "an even number under implementation=official")
    per_token = difference(config, "timesteps") == "per_token"
    kind, kept = TRANSFORMERS[config["implementation"], "vace_layers" in arguments]
    model = kind(**arguments, expand_timesteps=per_token)
    model.to(Policy.of(config).dtype, keep_in_fp32=kept)
    return model


#: Class of the transformer by implementation and whether it is VACE, and what stays in float32 in any dtype.
TRANSFORMERS: Mapping[tuple[str, bool], tuple[type[Wan2_1DiTModel], tuple[str, ...]]] = {
    ("official", False): (WanModel, ()),
    ("official", True): (VaceWanModel, ()),
    ("diffusers", False): (Wan2_1DiTModel, KEEP_IN_FP32),
    ("diffusers", True): (WanVACETransformer3DModel, KEEP_IN_FP32),
}


def image_encoder_arguments(config: Config) -> dict[str, Any]:
    """Arguments of the image encoder, of which the official code skips the last layer."""
    encoder = config["image_encoder"]
    running = encoder["num_hidden_layers"] - difference(config, "unused_image_encoder_layers")
    return {**encoder, "layers_that_run": running}


def references(config: Config, repository: str = "Wan2.1") -> dict[str, dict[str, Reference]]:
    """The real classes of the stages; mirrors in plain PyTorch for text to video.

    Args:
        repository: of the vendor, which has the official classes.
    """
    arguments = transformer_arguments(config["transformer"], image_encoder="image_encoder" in config)
    vace = "vace_layers" in arguments
    name = "WanVACETransformer3DModel" if vace else "WanTransformer3DModel"
    real = Reference("diffusers", name, arguments, dtype=Policy.of(config).dtype.name)
    found = {
        **encoder_references(config, repository),
        "transformer": {"diffusers": real, "official": official_references(config, repository)["transformer"]},
    }
    plain = not vace and "image_dim" not in arguments and difference(config, "timesteps") == "per_sample"
    if plain:
        mirrors = "modelmeter.models.wan2_1.scripts.verify._reference_modules"
        found["transformer"]["modules"] = Reference(mirrors, "RefWan2_1DiffusionCore", arguments, MIRRORED)
    return found


def encoder_references(config: Config, repository: str) -> dict[str, dict[str, Reference]]:
    """The real classes of all stages but the diffusion transformer's; arguments as those of :func:`references`."""
    encoders = "modelmeter.verify.transformers_models"
    vae = vae_reference(config)
    found = {
        "text_encoder": {
            "diffusers": Reference(encoders, "build_text_encoder", config["text_encoder"], dtype="bfloat16")
        },
        "vae_encode": {"diffusers": replace(vae, method="encode")},
        "vae_decode": {"diffusers": vae},
    }
    if "image_encoder" in config:
        found["image_encoder"] = {
            "diffusers": Reference(encoders, "build_image_encoder", image_encoder_arguments(config))
        }
    for stage, official in official_references(config, repository).items():
        if stage in found:
            found[stage]["official"] = official
    return found


def vae_reference(config: Config) -> Reference:
    """The decoder of diffusers' VAE, in the dtype that it is loaded in, with its tiles where they are asked for."""
    dtype = DTYPES[config["vae_precision"]].name
    vae = Reference("diffusers", "AutoencoderKLWan", config["vae"], method="decode", dtype=dtype)
    return replace(vae, package="modelmeter.verify.vae_models", name="build_tiled_vae") if config["vae_tiling"] else vae


def blocks(config: Config) -> Blocks:
    """The blocks of a forward, those of VACE included."""
    sizes = config["transformer"]
    count = sizes["num_layers"] + len(sizes.get("vace_layers", ()))
    return Blocks(count=count, width=sizes["dim"], inner_width=sizes["ffn_dim"])


# -- stages ------------------------------------------------------------------------------------------------------


def prepared(config: Config, video: Workload, *, reference_frames: int = 0) -> tuple[Workload, Geometry, list[str]]:
    """What really runs, its geometry, and what the reader has to know.

    Args:
        reference_frames: latent frames before the video.

    Raises:
        InputError: a size that the model cannot run.
    """
    video, warnings = round_frames(video, difference(config, "num_frames"))
    if video.flow_shift is None:
        video = replace(video, flow_shift=difference(config, "flow_shift"))
    geometry = token_grid(config).geometry(video, reference_frames=reference_frames)
    padding = difference(config, "text_padding")
    if padding not in ("text_len", video.text_len):
        warnings.append(f"text_len={video.text_len}: the official code pads every prompt to {padding} tokens")
    if video.guidance_passes == 1 and difference(config, "unguided_passes") == 2:
        warnings.append(
            f"guidance_scale={video.guidance_scale:g}: counted as one forward a step; "
            "the official loop runs two whatever the scale"
        )
    return video, geometry, warnings


def token_grid(config: Config) -> Grid:
    """How the VAE and the transformer divide a video."""
    vae = config["vae"]
    return Grid(
        temporal_stride=vae["scale_factor_temporal"],
        spatial_stride=vae["scale_factor_spatial"],
        patch_size=tuple(config["transformer"]["patch_size"]),
        max_positions=max_positions(config["transformer"]),
    )


def text_encoder_stage(config: Config, video: Workload) -> Stage:
    """The prompt and the negative prompt, one after the other."""
    guided = video.guidance_passes == 2 or difference(config, "negative_prompt") == "always"
    dims = {"batch": video.batch_size, "text_len": video.text_len}
    return Stage(id="text_encoder", component="text_encoder", calls=(single(dims, 2 if guided else 1),))


def transformer_dims(config: Config, video: Workload, geometry: Geometry) -> dict[str, int]:
    """Sizes of the transformer's inputs."""
    dims = {
        "batch": video.batch_size,
        **token_grid(config).tokens(geometry, reference_frames=video.num_reference_images or 0),
        "text_len": video.text_len,
    }
    if config["transformer"]["model_type"] == "i2v" and "image_encoder" in config:
        encoder = config["image_encoder"]
        dims["image_tokens"] = (encoder["image_size"] // encoder["patch_size"]) ** 2 + 1  # one for the class
    return dims


def transformer_stage(config: Config, video: Workload, geometry: Geometry) -> Stage:
    """Every step, with and without the prompt where guidance is on."""
    dims = transformer_dims(config, video, geometry)
    calls = (single(dims, video.num_inference_steps * video.guidance_passes),)
    return Stage(id="transformer", component="transformer", calls=calls)


def vae_stage(id: str, *calls: Call) -> Stage:
    """Encoding or decoding with the VAE."""
    return Stage(id=id, component="vae", calls=calls)


def decode_stage(config: Config, video: Workload, geometry: Geometry, times: int = 1) -> Stage:
    """All latent frames of the video to pixels, ``times`` times."""
    sizes = video.batch_size, geometry.latent_frames, geometry.latent_height, geometry.latent_width
    if config["vae_tiling"]:
        cut = {key: config["vae"][key] for key in ("scale_factor_spatial", "patch_size", "out_channels")}
        return vae_stage("vae_decode", tiled_decode_call(*sizes, times, **cut))
    return vae_stage("vae_decode", decode_call(*sizes, times))


def encoded(config: Config, batch: int, frames: int, geometry: Geometry, times: int = 1) -> Call:
    """A video of that many latent frames encoded, ``times`` times."""
    sizes = batch, frames, geometry.latent_height, geometry.latent_width
    if config["vae_tiling"]:
        keys = ("scale_factor_spatial", "patch_size", "in_channels", "z_dim")
        return tiled_encode_call(*sizes, times, **{key: config["vae"][key] for key in keys})
    return encode_call(*sizes, times)


# -- pipelines ---------------------------------------------------------------------------------------------------


def plan_text_to_video(config: Config, video: Workload) -> Plan:
    """Text encoder, transformer, VAE decoder."""
    video, geometry, warnings = prepared(config, video)
    stages = (
        text_encoder_stage(config, video),
        transformer_stage(config, video, geometry),
        decode_stage(config, video, geometry),
    )
    return Plan(workload=video, geometry=geometry, stages=stages, warnings=tuple(warnings))


def plan_image_to_video(config: Config, video: Workload) -> Plan:
    """As text to video, with the image (or the first and last) encoded by CLIP and, as a whole video, by the VAE."""
    kind = config["transformer"]["model_type"]
    check_text_len(video)
    video, geometry, warnings = prepared(config, video)
    if kind == "flf2v" and video.num_frames < FEWEST_FRAMES_BETWEEN:
        raise InputError("num_frames", video.num_frames, f"at least {FEWEST_FRAMES_BETWEEN} between two images")
    images = single({"batch": 2 if kind == "flf2v" else 1}, 1)
    stages = (
        text_encoder_stage(config, video),
        Stage(id="image_encoder", component="image_encoder", calls=(images,)),
        encode_whole_video(config, geometry),
        transformer_stage(config, video, geometry),
        decode_stage(config, video, geometry),
    )
    warnings += dropped_frames(video)
    return Plan(workload=video, geometry=geometry, stages=stages, warnings=tuple(warnings))


def check_text_len(video: Workload) -> None:
    """Refuse a text that would not be told from the image tokens before it.

    Raises:
        InputError: another length than the one that both implementations take for granted.
    """
    if video.text_len != TEXT_TOKENS_WITH_IMAGES:
        raise InputError("text_len", video.text_len, f"exactly {TEXT_TOKENS_WITH_IMAGES} for a model with image tokens")


def encode_whole_video(config: Config, geometry: Geometry) -> Stage:
    """The image followed by empty frames, all of which are encoded; once for all videos of a batch."""
    return vae_stage("vae_encode", encoded(config, 1, geometry.latent_frames, geometry))


def dropped_frames(video: Workload) -> list[str]:
    """A warning where the encoder takes fewer frames than it is given."""
    dropped = (video.num_frames - 1) % 4
    return [f"num_frames={video.num_frames}: the VAE encoder drops the last {dropped}"] if dropped else []


def plan_vace(config: Config, video: Workload) -> Plan:
    """As text to video, with the inactive and the reactive video and every reference image encoded first."""
    video, geometry, warnings = prepared(config, video, reference_frames=video.num_reference_images or 0)
    encodes = [encoded(config, video.batch_size, geometry.latent_frames, geometry, times=2)]
    if video.num_reference_images:
        encodes.append(encoded(config, 1, 1, geometry, times=video.batch_size * video.num_reference_images))
    stages = (
        text_encoder_stage(config, video),
        vae_stage("vae_encode", *encodes),
        transformer_stage(config, video, geometry),
        decode_stage(config, video, geometry),
    )
    warnings += dropped_frames(video)
    return Plan(workload=video, geometry=geometry, stages=stages, warnings=tuple(warnings))


WAN_PIPELINE = Pipeline(components=components, plan=plan_text_to_video, references=references, blocks=blocks)
WAN_IMAGE_TO_VIDEO_PIPELINE = Pipeline(
    components=components, plan=plan_image_to_video, references=references, blocks=blocks
)
WAN_VACE_PIPELINE = Pipeline(components=components, plan=plan_vace, references=references, blocks=blocks)
