"""The real pipelines of diffusers with real components of any size, and the calls that they make."""

from __future__ import annotations

import importlib
import inspect
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, wraps
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import transformers
from PIL import Image

from modelmeter.models.registry import pipeline
from modelmeter.models.wan2_2.animate_pipeline import whole_video
from modelmeter.nn import Tensor
from modelmeter.stage import Reference
from modelmeter.verify.transformers_models import build_image_encoder, build_text_encoder
from modelmeter.workload import Workload, round_frames

Config = Mapping[str, Any]

#: The class in diffusers for each pipeline of a configuration; a task of ``i2v`` has a class of its own.
CLASSES: Mapping[str, str] = {
    "WanPipeline": "WanPipeline",
    "WanImageToVideoPipeline": "WanImageToVideoPipeline",
    "WanVACEPipeline": "WanVACEPipeline",
    "WanAnimatePipeline": "WanAnimatePipeline",
    "Wan2_2Pipeline": "WanPipeline",
    "Wan2_2ImageToVideoPipeline": "WanImageToVideoPipeline",
    "Wan2_2TextImageToVideoPipeline": "WanPipeline",
}
IMAGE_TO_VIDEO, VACE, ANIMATE = "WanImageToVideoPipeline", "WanVACEPipeline", "WanAnimatePipeline"
#: By stage the component and its method that the pipeline calls.
CALLED: Mapping[str, tuple[str, str]] = {
    "text_encoder": ("text_encoder", "forward"),
    "image_encoder": ("image_encoder", "forward"),
    "vae_encode": ("vae", "encode"),
    "transformer": ("transformer", "forward"),
    "transformer_2": ("transformer_2", "forward"),
    "vae_decode": ("vae", "decode"),
}
#: One number for every layer of the second stack of VACE: the forward on shapes takes none and makes its own.
NOT_MODELLED = ("control_hidden_states_scale",)
SEED = 0


def class_name(config: Config, video: Workload) -> str:
    """The class in diffusers that runs a workload."""
    return IMAGE_TO_VIDEO if video.task == "i2v" else CLASSES[config["pipeline"]]


def kind_of(stage: str, inputs: Mapping[str, Tensor | torch.Tensor]) -> str:
    """A kind of call: the stage, and the shapes of its inputs by name."""
    shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items() if name not in NOT_MODELLED}
    if (mask := shapes.get("attention_mask")) and len(mask) == 2:
        # the pipeline hands over [B, L], and transformers makes of it what the forward on shapes takes: [B, 1, L, L]
        shapes["attention_mask"] = (mask[0], 1, mask[1], mask[1])
    return f"{stage}({', '.join(f'{name}={_by(shapes[name])}' for name in sorted(shapes))})"


def video_of(shape: Sequence[int]) -> str:
    """What the pipeline gives, as a kind: [B, F, C, H, W]."""
    return f"vae_decode.video({_by(shape)})"


def _by(shape: Sequence[Any]) -> str:
    return "x".join(str(size) for size in shape)


class Tokenizer:
    """Stands in for the tokenizer, which has no size: some tokens, padded as asked."""

    def __call__(self, texts: Sequence[str], *, max_length: int, **options: object) -> SimpleNamespace:
        """Ids and mask, [B, L] each."""
        lengths = torch.tensor([min(len(text) + 1, max_length) for text in texts])
        mask = (torch.arange(max_length)[None, :] < lengths[:, None]).long()
        return SimpleNamespace(input_ids=mask, attention_mask=mask)


def build(config: Config, video: Workload, calls: Counter[str]) -> Any:
    """The real pipeline with real components of a configuration; their calls are counted by kind.

    Args:
        video: what will run; its ``flow_shift`` is the scheduler's.
    """
    real = pipeline(config["pipeline"]).references(config)["transformer"]["diffusers"]
    vae = config["vae"]
    channels = {"latents_mean": [0.0] * vae["z_dim"], "latents_std": [1.0] * vae["z_dim"]}
    components: dict[str, Any] = {
        "text_encoder": build_text_encoder(**config["text_encoder"]),
        "vae": diffusers.AutoencoderKLWan(**vae, **channels).eval(),
        "transformer": _new(real),
    }
    options: dict[str, Any] = {}
    if config["differences"]["timesteps"]["diffusers"] == "per_token":
        options["expand_timesteps"] = True
    if "boundary" in config:
        components["transformer_2"] = _new(real)
        options["boundary_ratio"] = config["boundary"]
    if "image_encoder" in config:
        components["image_encoder"] = build_image_encoder(**config["image_encoder"])
        side = config["image_encoder"]["image_size"]
        components["image_processor"] = transformers.CLIPImageProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )
    for stage, (name, method) in CALLED.items():
        if name in components:
            setattr(components[name], method, _counted(stage, getattr(components[name], method), calls))
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=video.flow_shift
    )
    kind = getattr(diffusers, class_name(config, video))
    pipe = kind(tokenizer=Tokenizer(), scheduler=scheduler, **components, **options)
    pipe.set_progress_bar_config(disable=True)
    if config["vae_tiling"]:
        pipe.vae.enable_tiling()
    return pipe


def _new(reference: Reference) -> torch.nn.Module:
    module: torch.nn.Module = getattr(importlib.import_module(reference.package), reference.name)(**reference.arguments)
    return module.eval()


def _counted(stage: str, method: Callable[..., Any], calls: Counter[str]) -> Callable[..., Any]:
    """The method, counting its calls by kind."""
    signature = inspect.signature(method)

    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = {**signature.bind(*args, **kwargs).arguments, **kwargs}
        calls[kind_of(stage, {name: value for name, value in given.items() if isinstance(value, torch.Tensor)})] += 1
        return method(*args, **kwargs)

    return call


def asked(config: Config, video: Workload) -> dict[str, Any]:
    """What the real pipeline is called with, as its user would."""
    kind = class_name(config, video)
    # no image has the size of the video, so that resizing shows
    image = Image.new("RGB", (40, 24))
    found: dict[str, Any] = {
        "prompt": ["a prompt"] * video.batch_size if kind != VACE else "a prompt",
        "num_frames": video.num_frames,
        "height": video.height,
        "width": video.width,
        "num_inference_steps": video.num_inference_steps,
        "guidance_scale": video.guidance_scale,
        "max_sequence_length": video.text_len,
        "generator": torch.Generator("cpu").manual_seed(SEED),
        "output_type": "pt",
    }
    if kind == IMAGE_TO_VIDEO:
        found["image"] = image
        if config["transformer"]["model_type"] == "flf2v":
            found["last_image"] = image
    if kind == VACE:
        found["reference_images"] = [image] * (video.num_reference_images or 0) or None
        if video.num_frames % 4 == 1:  # else the pipeline rounds, and makes an empty video of that many frames
            found["video"] = [Image.new("RGB", (video.width, video.height))] * video.num_frames
    if kind == ANIMATE:
        found["segment_frame_length"] = found.pop("num_frames")
        rounded, _ = round_frames(video, "rounded")
        # neither has the size that runs
        driving = [Image.new("RGB", (40, 24))] * whole_video(rounded)
        found |= {"image": image, "pose_video": driving, "face_video": driving}
    return found


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Random numbers and the logging of the packages are afterwards as they were."""
    # they tell that frames are rounded, which is what is tested, and which image processor stands in for another
    loggings = [(package, package.get_verbosity()) for package in (diffusers.utils.logging, transformers.logging)]
    for package, _ in loggings:
        package.set_verbosity_error()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            yield
    finally:
        for package, verbosity in loggings:
            package.set_verbosity(verbosity)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a real pipeline did: its calls by kind, and why it could not go on."""

    calls: Mapping[str, int]
    refused: str | None


@cache
def recorded(text: str, video: Workload) -> Recorded:
    """Run the real pipeline of a configuration, once for all models that differ only in what is made tiny.

    Args:
        text: the configuration as JSON.
        video: its ``flow_shift`` is the scheduler's.
    """
    config = json.loads(text)
    calls: Counter[str] = Counter()
    with _undisturbed():
        pipe = build(config, video, calls)
        try:
            frames = pipe(**asked(config, video)).frames
        except (RuntimeError, TypeError, ValueError) as error:
            return Recorded(dict(calls), " ".join(str(error).split()))
    calls[video_of(frames.shape)] += 1
    return Recorded(dict(calls), None)
