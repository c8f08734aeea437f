"""Loading a model and asking it what a workload costs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from modelmeter.compiled import CompiledForward, compile_forward
from modelmeter.config import Overrides, applied, compose, find, is_id, parse_overrides
from modelmeter.errors import choice
from modelmeter.estimate import Estimate, StageRun
from modelmeter.local.model import LocalModel, is_path, read_model
from modelmeter.models.registry import pipeline
from modelmeter.nn import RMSNorm
from modelmeter.policy import DTYPES, Policy, loading
from modelmeter.stage import Call, Component, Forward, Pipeline, Plan, Stage
from modelmeter.weights import Weights, weights
from modelmeter.workload import Workload, workload

#: Components that a precision, a format and adapters apply to.
TRANSFORMERS = ("transformer", "transformer_2")


@dataclass(frozen=True)
class Model:
    """A model with its configuration, ready to estimate; made by :func:`load`.

    Args:
        id: id of the model.
        config: composed configuration, user overrides applied.
        overrides: what the user set beside the configuration.
        absent: components for which a local model has nothing but a section of the configuration.
        not_modelled: components that a local model has and that are left out.
        warnings: what the reader has to know of a local model.
    """

    id: str
    title: str
    source: str
    config: Mapping[str, Any]
    overrides: Overrides
    absent: tuple[str, ...] = ()
    not_modelled: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    _forms: dict[tuple[object, ...], CompiledForward] = field(default_factory=dict, repr=False, compare=False)
    _variants: dict[str, Model] = field(default_factory=dict, repr=False, compare=False)

    @property
    def pipeline(self) -> Pipeline:
        """What the family tells about itself."""
        return pipeline(self.config["pipeline"])

    @cached_property
    def components(self) -> dict[str, Component]:
        """Modules on shapes by component id."""
        found = self.pipeline.components(self.config)
        for module in found.values():
            for _, part in module.named_modules():
                if isinstance(part, RMSNorm):
                    part.fused = self.config["rms_norm"] == "fused"
        return {name: module for name, module in found.items() if name not in self.absent}

    @property
    def presets(self) -> Mapping[str, Mapping[str, Any]]:
        """Workloads by name."""
        presets: Mapping[str, Mapping[str, Any]] = self.config["workloads"]
        return presets

    def with_config(self, changes: Mapping[str, Any]) -> Model:
        """The model with other values of its configuration, made once.

        Args:
            changes: values by dotted key.

        Example:
            >>> load("wan2.1-t2v-14b").with_config({"implementation": "diffusers"}).config["implementation"]
            'diffusers'
        """
        key = repr(sorted(changes.items()))
        if key not in self._variants:
            self._variants[key] = replace(self, config=applied(self.config, changes), _forms={}, _variants={})
        return self._variants[key]

    def workload(self, preset: str | None = None, **keys: Any) -> Workload:
        """A workload: a preset, the overrides given to :func:`load`, and these keys on top.

        Raises:
            InputError: an unknown preset or key, or a bad value.

        Example:
            >>> load("wan2.1-t2v-14b").workload("wan2-1-512p", num_frames=17).height
            512
        """
        words = (preset, self.overrides.preset, self.config["default_workload"])
        name = next(word for word in words if word is not None)
        if not isinstance(name, str) or name not in self.presets:
            raise choice("workload", name, self.presets)
        return workload({**self.presets[name], **self.overrides.workload, **keys}, self.config["workload_keys"])

    def plan(self, video: Workload) -> Plan:
        """The stages that run for a workload.

        Raises:
            InputError: a size that the model cannot run.
        """
        plan = self.pipeline.plan(self.config, video)
        return replace(
            plan,
            stages=tuple(stage for stage in plan.stages if stage.component not in self.absent),
            not_modelled=(*plan.not_modelled, *self.not_modelled),
            warnings=(*self.warnings, *plan.warnings),
        )

    def estimate(self, *, workload: str | None = None, **keys: Any) -> Estimate:
        """What a workload costs: exact, from closed forms that are compiled once.

        Args:
            workload: name of a preset; the model's default without one.
            keys: workload keys, such as ``num_frames=81``.

        Raises:
            InputError: an unknown preset or key, or a value that the model cannot run.

        Example:
            >>> estimate = load("wan2.1-t2v-1.3b").estimate(num_inference_steps=1, guidance_scale=1)
            >>> estimate["transformer"].flops
            283001787777024
        """
        return self.estimated(self.plan(self.workload(workload, **keys)))

    def estimated(self, plan: Plan) -> Estimate:
        """What a plan costs."""
        return Estimate(
            model=self.id,
            source=self.source,
            config=self.config,
            plan=plan,
            components=self._component_params,
            runs=self.runs(plan),
            modules=self.components,
            loaded=self.weights,
        )

    def runs(self, plan: Plan) -> tuple[StageRun, ...]:
        """The stages of a plan with the closed forms of their forwards."""
        return tuple(
            StageRun(stage, tuple((forward, times, self.compiled(stage, forward)) for forward, times in stage.forwards))
            for stage in plan.stages
        )

    def compiled(self, stage: Stage, forward: Forward) -> CompiledForward:
        """The closed forms of a forward of a stage, compiled when first needed."""
        module = self.components[stage.component].entry(forward.label)
        sizes, counts = module.sizes(forward.dims), module.counts(forward.dims)
        key = (stage.component, forward.label, *sizes.values(), *counts.values())
        if key not in self._forms:
            self._forms[key] = compile_forward(module, forward.dims)
        return self._forms[key]

    def call_flops(self, stage: Stage, call: Call) -> dict[str, int]:
        """FLOPs of every module that one call of a stage's component runs, submodules included, by path."""
        total: dict[str, int] = {}
        for forward in call.forwards:
            for path, flops in self.compiled(stage, forward).module_flops(forward.dims).items():
                total[path] = total.get(path, 0) + forward.times * flops
        return total

    def weights(self) -> Mapping[str, Weights]:
        """The weights of every component in bytes, under the policy of the configuration."""
        return self._weights

    @cached_property
    def _weights(self) -> Mapping[str, Weights]:
        policy = Policy.of(self.config)
        idle = loading(self.config, "image_encoder_idle_params")
        idle *= DTYPES[loading(self.config, "image_encoder_weights")].itemsize
        loaded = {}
        for name, module in self.components.items():
            if name in TRANSFORMERS:
                loaded[name] = weights(module, policy.format, lora_rank=policy.lora_rank)
            else:
                loaded[name] = weights(module, idle=idle if name == "image_encoder" else 0)
        return loaded

    @cached_property
    def _component_params(self) -> dict[str, tuple[str, int]]:
        return {name: (type(module).__name__, module.params) for name, module in self.components.items()}


def load(name: str | os.PathLike[str], *overrides: str) -> Model:
    """A model by id, Hugging Face repository id, or the path of a model directory.

    Of a directory only JSON and the headers of its weights are read; see the page on model directories.

    Args:
        name: such as ``wan2.1-t2v-14b``, ``Wan-AI/Wan2.1-T2V-14B`` or ``./my-model``.
        overrides: ``key=value``: workload keys, ``implementation=``, or ``transformer.<key>=``.

    Raises:
        InputError: an unknown model or key, a bad value, or a directory without a model that can be read.

    Example:
        >>> load("Wan-AI/Wan2.1-T2V-14B", "height=480", "width=832").components["transformer"].params
        14288491584
    """
    if is_path(name) and not is_id(name):
        model = _local(read_model(name), overrides)
    else:
        assert not isinstance(name, os.PathLike)  # such a name is a path
        entry = find(name)
        model = _model(entry.id, entry.title, compose(entry), overrides)
    # bad values are refused here, not in the middle of a run
    model.workload()
    Policy.of(model.config)
    assert model.components
    return model


def _model(id: str, title: str, config: Mapping[str, Any], overrides: Sequence[str]) -> Model:
    parsed = parse_overrides(overrides, config)
    return Model(id, title, config["source"], applied(config, parsed.config), parsed)


def _local(found: LocalModel, overrides: Sequence[str]) -> Model:
    model = _model(found.id, found.config["title"], found.config, overrides)
    model = replace(model, absent=found.absent, not_modelled=found.not_modelled)
    return replace(model, warnings=(*found.warnings, *_stored_otherwise(found, model)))


def _stored_otherwise(found: LocalModel, model: Model) -> Iterator[str]:
    for name, module in model.components.items():
        dtypes = dict.fromkeys(weight.dtype.name for _, weight in module.named_parameters())
        yield from found.differences(name, module.params, list(dtypes))
