"""What differs in the Wan2.2 pipelines: two experts that share the steps, and text or image to video in one."""

from __future__ import annotations

from modelmeter.models.wan2_1 import pipeline as wan2_1
from modelmeter.models.wan2_1.pipeline import Config, blocks
from modelmeter.stage import Component, Pipeline, Plan, Reference, Stage, single
from modelmeter.workload import Geometry, Workload

#: Timesteps of the training schedule. Source: ``num_train_timesteps`` of the official and diffusers' schedulers.
TRAIN_TIMESTEPS = 1000
#: Source: ``eps`` in diffusers' ``UniPCMultistepScheduler.set_timesteps``.
SIGMA_MARGIN = 1e-6


def timesteps(steps: int, shift: float, first_sigma: float) -> list[int]:
    """Timesteps of a flow-matching schedule, noisiest first, cut to integers as the schedulers do.

    Args:
        first_sigma: the noisiest sigma before it is shifted; the others follow at equal distances.

    Source: diffusers ``UniPCMultistepScheduler.set_timesteps`` with ``use_flow_sigmas``; the official
    ``FlowUniPCMultistepScheduler``, and ``FlowDPMSolverMultistepScheduler``, which gives the same counts.

    Example:
        >>> timesteps(40, 12.0, 0.999)[:3], timesteps(40, 12.0, 0.999)[-2:]
        ([999, 997, 995], [386, 235])
    """
    step = (1 / TRAIN_TIMESTEPS - 1) / steps
    sigmas = [i * step + first_sigma for i in range(steps)]
    shifted = [shift * sigma / (1 + (shift - 1) * sigma) for sigma in sigmas]
    # diffusers takes a sigma of 1 back a little, so that its logarithm stays finite
    return [int(TRAIN_TIMESTEPS * min(sigma, 1 - SIGMA_MARGIN)) for sigma in shifted]


def expert_steps(steps: int, shift: float, boundary: float, first_sigma: float) -> tuple[int, int]:
    """How many steps the high-noise expert runs, and how many the other.

    Source: ``t >= boundary * num_train_timesteps`` in both implementations.

    Example:
        >>> expert_steps(40, 12.0, 0.875, 0.999), expert_steps(40, 5.0, 0.9, 0.999), expert_steps(40, 3.0, 0.875, 1.0)
        ((26, 14), (15, 25), (13, 27))
    """
    high = sum(timestep >= boundary * TRAIN_TIMESTEPS for timestep in timesteps(steps, shift, first_sigma))
    return high, steps - high


def components(config: Config) -> dict[str, Component]:
    """As Wan2.1, with a second expert."""
    return {**wan2_1.components(config), "transformer_2": wan2_1.transformer(_of_second(config))}


def references(config: Config) -> dict[str, dict[str, Reference]]:
    """As Wan2.1; the experts are one class."""
    second = text_image_references(_of_second(config))["transformer"]
    return {**text_image_references(config), "transformer_2": second}


def _of_second(config: Config) -> Config:
    """The configuration as the second expert has it: the experts of a local model may be of different sizes."""
    return {**config, "transformer": config.get("transformer_2", config["transformer"])}


def text_image_references(config: Config) -> dict[str, dict[str, Reference]]:
    """As Wan2.1, with the official classes of Wan2.2."""
    return wan2_1.references(config, "Wan2.2")


def expert_stages(config: Config, video: Workload, geometry: Geometry) -> tuple[Stage, Stage]:
    """The noisy steps with one expert, the others with the other; one runs in a step."""
    dims = wan2_1.transformer_dims(config, video, geometry)
    assert video.flow_shift is not None
    first_sigma = wan2_1.difference(config, "first_sigma")
    high, low = expert_steps(video.num_inference_steps, video.flow_shift, config["boundary"], first_sigma)
    return (
        Stage(id="transformer", component="transformer", calls=(single(dims, high * video.guidance_passes),)),
        Stage(id="transformer_2", component="transformer_2", calls=(single(dims, low * video.guidance_passes),)),
    )


def plan_text_to_video(config: Config, video: Workload) -> Plan:
    """Text encoder, two experts, VAE decoder."""
    video, geometry, warnings = wan2_1.prepared(config, video)
    stages = (
        wan2_1.text_encoder_stage(config, video),
        *expert_stages(config, video, geometry),
        wan2_1.decode_stage(config, video, geometry),
    )
    return Plan(workload=video, geometry=geometry, stages=stages, warnings=tuple(warnings))


def plan_image_to_video(config: Config, video: Workload) -> Plan:
    """As text to video, with the image encoded as a whole video; no image encoder."""
    video, geometry, warnings = wan2_1.prepared(config, video)
    stages = (
        wan2_1.text_encoder_stage(config, video),
        wan2_1.encode_whole_video(config, geometry),
        *expert_stages(config, video, geometry),
        wan2_1.decode_stage(config, video, geometry),
    )
    warnings += wan2_1.dropped_frames(video)
    return Plan(workload=video, geometry=geometry, stages=stages, warnings=tuple(warnings))


def plan_text_image_to_video(config: Config, video: Workload) -> Plan:
    """One transformer for both tasks; for ``i2v`` the image alone is encoded."""
    video, geometry, warnings = wan2_1.prepared(config, video)
    image = (wan2_1.vae_stage("vae_encode", wan2_1.encoded(config, 1, 1, geometry)),) if video.task == "i2v" else ()
    stages = (
        wan2_1.text_encoder_stage(config, video),
        *image,
        wan2_1.transformer_stage(config, video, geometry),
        wan2_1.decode_stage(config, video, geometry),
    )
    return Plan(workload=video, geometry=geometry, stages=stages, warnings=tuple(warnings))


WAN2_2_PIPELINE = Pipeline(components=components, plan=plan_text_to_video, references=references, blocks=blocks)
WAN2_2_IMAGE_TO_VIDEO_PIPELINE = Pipeline(
    components=components, plan=plan_image_to_video, references=references, blocks=blocks
)
WAN2_2_TEXT_IMAGE_TO_VIDEO_PIPELINE = Pipeline(
    components=wan2_1.components, plan=plan_text_image_to_video, references=text_image_references, blocks=blocks
)
