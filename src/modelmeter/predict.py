"""How long a run takes on a device: a roofline over the recorded kernels, plus what runs beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite

from modelmeter.api import Model
from modelmeter.devices import PRECISIONS, Device
from modelmeter.engine import ENGINES, under_engine
from modelmeter.errors import InputError, choice
from modelmeter.estimate import Estimate
from modelmeter.footprint import Memory
from modelmeter.parallel import ALONE, Parallel, check_layout, default_layout, over_pcie, rank_memory
from modelmeter.policy import INTEGERS, Policy
from modelmeter.rates import Constants, Sustained, constants, entries, sustained
from modelmeter.roofline import Rates, Seconds
from modelmeter.spending import Circumstances, node_seconds, stage_seconds
from modelmeter.stage import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the time depends on beside the model and the workload.

    Args:
        engine: one of :data:`ENGINES`.
        attention: kernel; the device's usual one without it.
        price_per_gpu_hour: for the cost, in any currency.
        gpus: devices that run; ``gpus=`` of the model's configuration, where it is set, is the same.
        parallel: how they divide the work; the usual layout of the implementation without it.
        constants: of the device's rates; the fitted ones of ``rates.yaml`` unless others are given.

    Raises:
        InputError: an unknown engine, or a kernel that cannot run on the device.
    """

    device: Device
    engine: str = "eager"
    attention: str | None = None
    price_per_gpu_hour: float | None = None
    gpus: int = 1
    parallel: Parallel | None = None
    constants: Constants = field(default_factory=constants)

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise choice("engine", self.engine, ENGINES)
        price = self.price_per_gpu_hour
        if price is not None and not (isfinite(price) and price > 0):
            raise InputError("price", price, "a decimal number above 0")
        low, high = INTEGERS["gpus"]
        if isinstance(self.gpus, bool) or not isinstance(self.gpus, int) or not low <= self.gpus <= high:
            raise InputError("gpus", self.gpus, f"an integer from {low} to {high}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePrediction:
    """A module, its submodules included, and what its seconds are spent on over the whole run."""

    id: str
    depth: int
    flops: int
    seconds_by: Seconds

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return sum(self.seconds_by.values())

    @property
    def bound(self) -> str:
        """What most of the time goes to: compute, memory, launches, host_link or host."""
        return bound(self.seconds_by)


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePrediction:
    """A stage and what its seconds are spent on."""

    id: str
    flops: int
    seconds_by: Seconds

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return sum(self.seconds_by.values())

    @property
    def bound(self) -> str:
        """What most of the time goes to: compute, memory, launches, host_link or host."""
        return bound(self.seconds_by)


def bound(seconds_by: Seconds) -> str:
    """What most seconds go to, all arithmetic taken together.

    Example:
        >>> bound({"linear:bfloat16": 1.0, "attention:bfloat16": 1.0, "memory": 1.5})
        'compute'
    """
    groups: dict[str, float] = {}
    for resource, spent in seconds_by.items():
        group = "compute" if ":" in resource else resource
        groups[group] = groups.get(group, 0.0) + spent
    return max(groups, key=lambda group: groups[group], default="compute")


@dataclass(frozen=True)
class Prediction:
    """Seconds of a run on a device, with the range in which measurements should lie.

    Args:
        layout: of the devices that run.
        estimate: FLOPs of the run under the same engine, and its memory on a single device.
        half_width: relative half-width of the range.
    """

    model: str
    plan: Plan
    settings: Settings
    attention: str
    layout: Parallel
    stages: tuple[StagePrediction, ...]
    rates: Rates
    origins: Mapping[str, str]
    estimate: Estimate
    half_width: float
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]

    @cached_property
    def seconds(self) -> float:
        """From the first stage to the last; the weights are loaded already."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def range(self) -> tuple[float, float]:
        """Shortest and longest time that would not surprise."""
        return self.seconds * (1 - self.half_width), self.seconds * (1 + self.half_width)

    @property
    def flops(self) -> int:
        """FLOPs of the run."""
        return self.estimate.flops

    @cached_property
    def memory(self) -> Memory:
        """Bytes on each of the devices."""
        return self.estimate.memory if self.layout == ALONE else rank_memory(self.estimate, self.layout)

    @property
    def peak_bytes(self) -> int:
        """The most memory on one device at any time, before what the driver and the allocator take."""
        return self.memory.peak_bytes

    @cached_property
    def nodes(self) -> tuple[NodePrediction, ...]:
        """Every module that is called, parents before children, with the seconds of its kernels.

        What an engine that fuses moves beside products and attention, and what devices send one another, belongs to
        no module, and is left out.
        """
        under = _circumstances(self.settings, self.rates, self.layout)
        return tuple(
            NodePrediction(id=run.stage.path(path), depth=depth, flops=flops, seconds_by=by)
            for run in self.estimate.runs
            for path, depth, flops, by in node_seconds(run, under)
        )

    @property
    def utilisation(self) -> float:
        """FLOPs per second, as a part of the bf16 peak of the datasheet of all devices."""
        return self.flops / self.seconds / (self.settings.gpus * self.settings.device.peak_flops["bf16"])

    @property
    def energy_joules(self) -> float | None:
        """At the power limit of the devices, each for the whole run."""
        watts = self.settings.device.tdp_watts
        return None if watts is None else self.settings.gpus * watts * self.seconds

    @property
    def cost(self) -> float | None:
        """In the currency of the price per GPU-hour."""
        price = self.settings.price_per_gpu_hour
        return None if price is None else self.settings.gpus * price * self.seconds / 3600


def predict(model: Model, plan: Plan, settings: Settings) -> Prediction:
    """Seconds of a plan on a device.

    Raises:
        InputError: an engine that the model has no count for, a device that lacks what it needs, or a layout that
            cannot run.

    Example:
        >>> import modelmeter as mm
        >>> from modelmeter.devices import find_device
        >>> model = mm.load("wan2.1-t2v-14b")
        >>> settings = Settings(device=find_device("h100"), attention="fa2")
        >>> 1700 < predict(model, model.plan(model.workload()), settings).seconds < 2000
        True
    """
    _check_precision(model, settings.device)
    running = under_engine(model, settings.engine)
    if running is not model:
        plan = running.plan(plan.workload)
    layout = _layout(running, plan, settings)
    found = sustained(settings.device, settings.attention, settings.constants)
    estimate = running.estimated(plan)
    under = _circumstances(settings, found.rates, layout)
    stages = tuple(
        StagePrediction(id=run.stage.id, flops=run.flops, seconds_by=stage_seconds(running, run, under))
        for run in estimate.runs
    )
    half_width, warnings = _knowledge(settings, found)
    return Prediction(
        model=model.id,
        plan=plan,
        settings=settings,
        attention=found.attention,
        layout=layout,
        stages=stages,
        rates=found.rates,
        origins=found.origins,
        estimate=estimate,
        half_width=half_width,
        assumptions=_assumptions(running, settings, found, layout),
        warnings=(*plan.warnings, *warnings),
    )


def _layout(model: Model, plan: Plan, settings: Settings) -> Parallel:
    """The layout that is asked for, or the usual one.

    Raises:
        InputError: one that cannot run, or another number of devices than the model is configured for.
    """
    if model.config["gpus"] not in (1, settings.gpus):
        raise InputError("gpus", settings.gpus, f"{model.config['gpus']}, as the model is configured")
    guided = plan.workload.guidance_passes == 2
    layout = settings.parallel or default_layout(settings.gpus, model, settings.engine, guided=guided)
    check_layout(layout, settings.gpus, model, plan, settings.device)
    return layout


def _circumstances(settings: Settings, rates: Rates, layout: Parallel) -> Circumstances:
    return Circumstances(
        device=settings.device, engine=settings.engine, rates=rates, constants=settings.constants, layout=layout
    )


def _check_precision(model: Model, device: Device) -> None:
    """Refuse a precision that the device has no arithmetic for.

    Raises:
        InputError: such a precision.
    """
    precision = Policy.of(model.config).precision
    if precision in PRECISIONS and precision != "fp32" and precision not in device.peak_flops:
        able = [name for name in PRECISIONS if name in device.peak_flops and name != "tf32"]
        raise InputError("precision", precision, f"one that {device.name} computes in: {', '.join(able)}")


def _knowledge(settings: Settings, found: Sustained) -> tuple[float, tuple[str, ...]]:
    """Half-width of the range, and why it is not the narrowest."""
    widths: Mapping[str, float] = entries()["range"]
    reasons: list[tuple[float, str]] = []
    device = settings.device
    if settings.attention is None:
        reasons.append((widths["kernel_unknown"], f"attention={found.attention}: not named, the usual kernel"))
    if device.name not in entries()["validated_devices"]:
        reasons.append((widths["estimated"], f"{device.name}: no published run was held against the predictions"))
    if settings.gpus > 1:
        known = (
            "known from runs on RTX 4090 alone" if over_pcie(device) else "one part of the datasheet for all devices"
        )
        reasons.append((widths["several_gpus"], f"gpus={settings.gpus}: the rate of the links is {known}"))
    if settings.engine != "eager":
        reasons.append((widths["estimated"], f"engine={settings.engine}: its elementwise traffic is assumed"))
    reasons += [(widths["kernel_unknown"], text) for text in found.estimated]
    return max([widths["known"], *(width for width, _ in reasons)]), tuple(text for _, text in reasons)


def _assumptions(model: Model, settings: Settings, found: Sustained, layout: Parallel) -> tuple[str, ...]:
    policy = Policy.of(model.config)
    several = () if layout == ALONE else (f"{settings.gpus} devices, {layout}; encoders and VAE run on one of them",)
    return (
        f"{policy.implementation} implementation, engine {settings.engine}, attention {found.attention}",
        f"weights {policy.precision}, VAE {policy.vae_precision}, offload {policy.offload}",
        *several,
        "kernels of one stream run one after another; weights are loaded before the first stage",
    )
