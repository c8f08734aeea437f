"""How long a run takes on a device: a roofline over the recorded kernels, plus what runs beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite

from modelmeter.api import Model
from modelmeter.devices import PRECISIONS, Device
from modelmeter.engine import ENGINES, elementwise_bytes, fuses, host_seconds, under_engine
from modelmeter.errors import InputError, choice
from modelmeter.estimate import Estimate, StageRun
from modelmeter.nn import Body
from modelmeter.policy import Policy
from modelmeter.rates import Constants, Sustained, constants, entries, sustained
from modelmeter.roofline import Rates, Seconds, Work, own_works, seconds
from modelmeter.stage import Plan

#: What is spent neither in kernels nor in launches.
HOST_LINK, HOST = "host_link", "host"
#: Calls of a stage that cost time beside their kernels.
CALL_SECONDS: Mapping[str, str] = {"text_encoder": "text_encoder_call_s", "image_encoder": "image_encoder_call_s"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the time depends on beside the model and the workload.

    Args:
        engine: one of :data:`ENGINES`.
        attention: kernel; the device's usual one without it.
        price_per_gpu_hour: for the cost, in any currency.
        constants: of the device's rates; the fitted ones of ``rates.yaml`` unless others are given.

    Raises:
        InputError: an unknown engine, or a kernel that cannot run on the device.
    """

    device: Device
    engine: str = "eager"
    attention: str | None = None
    price_per_gpu_hour: float | None = None
    constants: Constants = field(default_factory=constants)

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise choice("engine", self.engine, ENGINES)
        price = self.price_per_gpu_hour
        if price is not None and not (isfinite(price) and price > 0):
            raise InputError("price", price, "a decimal number above 0")


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
        estimate: FLOPs and memory of the run under the same engine.
        half_width: relative half-width of the range.
    """

    model: str
    plan: Plan
    settings: Settings
    attention: str
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

    @property
    def peak_bytes(self) -> int:
        """The most memory on the device at any time, before what the driver and the allocator take."""
        return self.estimate.memory.peak_bytes

    @cached_property
    def nodes(self) -> tuple[NodePrediction, ...]:
        """Every module that is called, parents before children, with the seconds of its kernels.

        What an engine that fuses moves beside products and attention belongs to no module, and is left out.
        """
        return tuple(node for run in self.estimate.runs for node in _nodes(run, self.rates, self.settings.engine))

    @property
    def utilisation(self) -> float:
        """FLOPs per second, as a part of the bf16 peak of the datasheet."""
        return self.flops / self.seconds / self.settings.device.peak_flops["bf16"]

    @property
    def energy_joules(self) -> float | None:
        """At the power limit of the device."""
        watts = self.settings.device.tdp_watts
        return None if watts is None else watts * self.seconds

    @property
    def cost(self) -> float | None:
        """In the currency of the price per GPU-hour."""
        price = self.settings.price_per_gpu_hour
        return None if price is None else price * self.seconds / 3600


def predict(model: Model, plan: Plan, settings: Settings) -> Prediction:
    """Seconds of a plan on a device.

    Raises:
        InputError: an engine that the model has no count for, or a device that lacks what it needs.

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
    found = sustained(settings.device, settings.attention, settings.constants)
    estimate = running.estimated(plan)
    stages = tuple(_stage(running, run, settings, found.rates) for run in estimate.runs)
    half_width, warnings = _knowledge(settings, found)
    return Prediction(
        model=model.id,
        plan=plan,
        settings=settings,
        attention=found.attention,
        stages=stages,
        rates=found.rates,
        origins=found.origins,
        estimate=estimate,
        half_width=half_width,
        assumptions=_assumptions(running, settings, found),
        warnings=(*plan.warnings, *warnings),
    )


def _products(works: Mapping[Work, int]) -> Mapping[Work, int]:
    return {work: count for work, count in works.items() if work.resource is not None}


def _nodes(run: StageRun, rates: Rates, engine: str) -> Iterator[NodePrediction]:
    spent: dict[str, dict[str, float]] = {}
    flops: dict[str, int] = {}
    called: set[str] = set()
    for forward, times, form in run.forwards:
        known: dict[Body, Seconds] = {}
        for path, count in form.module_flops(forward.dims).items():
            flops[path] = flops.get(path, 0) + times * count
        for node in form.nodes:
            own = spent.setdefault(node.path, {})
            for body in node.bodies:
                called.add(node.path)
                if body not in known:
                    works = own_works(body)
                    known[body] = seconds(_products(works) if fuses(run, engine) else works, forward.dims, rates)
                for resource, single in known[body].items():
                    own[resource] = own.get(resource, 0.0) + times * single
    for path in reversed(spent):  # children come after their parents
        if path:
            above = spent[path.rpartition(".")[0]]
            for resource, single in spent[path].items():
                above[resource] = above.get(resource, 0.0) + single
    for path, by in spent.items():
        if path in called:
            depth = path.count(".") + 1 if path else 0
            yield NodePrediction(id=run.stage.path(path), depth=depth, flops=flops[path], seconds_by=by)


def _stage(model: Model, run: StageRun, settings: Settings, rates: Rates) -> StagePrediction:
    total: dict[str, float] = {}
    for forward, times, form in run.forwards:
        works, extra = form.works, 0.0
        if fuses(run, settings.engine):
            works = _products(works)
            extra = elementwise_bytes(model, forward.dims, settings.engine) / rates.bandwidth
        for resource, spent in seconds(works, forward.dims, rates).items():
            total[resource] = total.get(resource, 0.0) + times * spent
        if extra:
            total["memory"] = total.get("memory", 0.0) + times * extra
    on_cpu = run.stage.id == "text_encoder" and model.config["text_encoder_device"] == "cpu"
    if on_cpu:
        total = {HOST: run.calls * settings.constants["text_encoder_on_cpu_call_s"]}
    elif run.stage.id in CALL_SECONDS:
        total[HOST] = run.calls * settings.constants[CALL_SECONDS[run.stage.id]]
    moved = 0.0 if on_cpu else host_seconds(model, run, settings.device, settings.constants, sum(total.values()))
    if moved:
        total[HOST_LINK] = moved
    return StagePrediction(id=run.stage.id, flops=run.flops, seconds_by=total)


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
    if settings.engine != "eager":
        reasons.append((widths["estimated"], f"engine={settings.engine}: its elementwise traffic is assumed"))
    reasons += [(widths["kernel_unknown"], text) for text in found.estimated]
    return max([widths["known"], *(width for width, _ in reasons)]), tuple(text for _, text in reasons)


def _assumptions(model: Model, settings: Settings, found: Sustained) -> tuple[str, ...]:
    policy = Policy.of(model.config)
    return (
        f"{policy.implementation} implementation, engine {settings.engine}, attention {found.attention}",
        f"weights {policy.precision}, VAE {policy.vae_precision}, offload {policy.offload}",
        "kernels of one stream run one after another; weights are loaded before the first stage",
    )
