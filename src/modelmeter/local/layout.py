"""What lies where in a model directory: official layout, diffusers layout, or one transformer's own folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modelmeter.errors import InputError, shown, with_type
from modelmeter.local.components import COMPONENTS, Section
from modelmeter.local.folder import Folder
from modelmeter.local.keys import Key, boolean, values
from modelmeter.local.read_json import read_json
from modelmeter.local.transformer_config import CLASSES, Transformer, class_of, transformer

#: Folders of the experts of the official Wan2.2 code, by component. Source: ``high_noise_checkpoint`` and
#: ``low_noise_checkpoint`` in wan/configs of Wan2.2 at 42bf4cf.
OFFICIAL_EXPERTS = {"transformer": "high_noise_model", "transformer_2": "low_noise_model"}
DIFFUSERS_EXPERTS = {"transformer": "transformer", "transformer_2": "transformer_2"}
#: Checkpoints of the vendor's other components, which have no configuration of their own: the vendor's code fixes it.
#: Source: ``t5_checkpoint``, ``vae_checkpoint`` and ``clip_checkpoint`` in wan/configs.
CHECKPOINTS = {
    "models_t5_umt5-xxl-enc-bf16.pth": "text_encoder",
    "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth": "image_encoder",
    "Wan2.1_VAE.pth": "vae",
    "Wan2.2_VAE.pth": "vae",
}
#: Folder of the audio encoder in the vendor's repository of S2V. Source: ``wav2vec`` in wan/configs/wan_s2v_14B.py of
#: Wan2.2 at 42bf4cf.
OFFICIAL_FOLDERS = {"audio_encoder": "wav2vec2-large-xlsr-53-english"}
#: Entries of ``model_index.json`` that cost nothing.
FREE = ("feature_extractor", "image_processor", "scheduler", "tokenizer")
#: Most entries of ``model_index.json``.
MOST_COMPONENTS = 50
INDEX, CONFIG = "model_index.json", "config.json"
#: What ``model_index.json`` says beside the components.
OPTIONS: Mapping[str, Key] = {
    "boundary_ratio": Key(
        "null or a number from 0 to 1",
        lambda value: value is None or (type(value) in (int, float) and 0 <= value <= 1),
        None,
    ),
    "expand_timesteps": boolean(False),
}
#: The shift of a schedule, under the name that a class of scheduler gives it.
SHIFTS = ("flow_shift", "shift")
SHIFT = Key("a number above 0, at most 1000", lambda value: type(value) in (int, float) and 0 < value <= 1000, None)
#: The class whose schedule is modelled, which tells how two experts share the steps.
SCHEDULER = "UniPCMultistepScheduler"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a directory holds.

    Args:
        layout: ``official``, ``diffusers`` or ``transformer``, one transformer's own folder.
        experts: diffusion transformers by component id, one at least.
        folders: where the weights of a component lie, by component id.
        components: the other components that have a configuration.
        checkpoints: the vendor's checkpoints that are there.
        missing: components that are not modelled, and why.
        pipeline: the class that ``model_index.json`` names.
        boundary, expand_timesteps, flow_shift: what ``model_index.json`` and the scheduler say, if they do.
    """

    layout: str
    experts: Mapping[str, Transformer]
    folders: Mapping[str, str]
    components: Mapping[str, Section] = field(default_factory=dict)
    checkpoints: tuple[str, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    pipeline: str | None = None
    boundary: float | None = None
    expand_timesteps: bool | None = None
    flow_shift: float | None = None
    warnings: tuple[str, ...] = ()


def find_components(folder: Folder, path: str) -> Found:
    """What a model directory holds.

    Args:
        path: how the user named it.

    Raises:
        InputError: no diffusion transformer that can be read, or a configuration that is refused.
    """
    index = read_json(folder, INDEX)
    if index is not None:
        return _diffusers(folder, path, index)
    if any(folder.size(f"{name}/{CONFIG}") is not None for name in OFFICIAL_EXPERTS.values()):
        return _official_experts(folder)
    given = read_json(folder, CONFIG)
    if given is not None:
        return _single(folder, given)
    if any(folder.size(f"{name}/{CONFIG}") is not None for name in DIFFUSERS_EXPERTS.values()):
        return _diffusers(folder, path, {})
    raise InputError("model", path, f"a directory with {INDEX}, {CONFIG} or {OFFICIAL_EXPERTS['transformer']}/{CONFIG}")


def _single(folder: Folder, given: Mapping[str, Any]) -> Found:
    """One configuration at the top: the official layout of one transformer, or a folder of diffusers'."""
    found = transformer(CONFIG, given)
    official = not found.class_name.endswith("3DModel")
    components, missing = _official_components(folder) if official else ({}, {})
    return Found(
        layout="official" if official else "transformer",
        experts={"transformer": found},
        folders={"transformer": ".", **{name: OFFICIAL_FOLDERS[name] for name in components}},
        components=components,
        checkpoints=_checkpoints(folder) if official else (),
        missing=missing,
        warnings=(*found.warnings, *(warning for section in components.values() for warning in section.warnings)),
    )


def _official_components(folder: Folder) -> tuple[dict[str, Section], dict[str, str]]:
    """Components of the official layout that have a configuration, and why one of them is not modelled."""
    components, missing = {}, {}
    for name, place in OFFICIAL_FOLDERS.items():
        file = f"{place}/{CONFIG}"
        given = read_json(folder, file)
        if given is not None:
            section = COMPONENTS[name](file, given)
            if section.values is None:
                missing[name] = f"the class {shown(section.class_name)} is not modelled"
            else:
                components[name] = section
    return components, missing


def _official_experts(folder: Folder) -> Found:
    experts, missing = {}, {}
    for name, place in OFFICIAL_EXPERTS.items():
        file = f"{place}/{CONFIG}"
        given = read_json(folder, file)
        if given is None:
            missing[name] = f"no {file}"
        else:
            experts[name] = transformer(file, given)
    return Found(
        layout="official",
        experts=experts,
        folders={name: OFFICIAL_EXPERTS[name] for name in experts},
        checkpoints=_checkpoints(folder),
        missing=missing,
        warnings=tuple(warning for expert in experts.values() for warning in expert.warnings),
    )


def _checkpoints(folder: Folder) -> tuple[str, ...]:
    """Those of the vendor's checkpoints that are there; only their names are looked at."""
    return tuple(name for name in CHECKPOINTS if folder.size(name) is not None)


def _diffusers(folder: Folder, path: str, index: Mapping[str, Any]) -> Found:
    options = values(INDEX, index, OPTIONS)
    named = _named(index)
    experts: dict[str, Transformer] = {}
    components: dict[str, Section] = {}
    missing: dict[str, str] = {}
    for name in {**dict.fromkeys((*DIFFUSERS_EXPERTS, *COMPONENTS)), **named}:
        if named.get(name, "") is None or (name not in DIFFUSERS_EXPERTS and name not in COMPONENTS):
            continue
        file = f"{name}/{CONFIG}"
        given = read_json(folder, file)
        if given is None:
            if name in named:
                missing[name] = f"no {file}"
        elif name == "transformer_2" and "transformer" in experts and class_of(given) not in CLASSES:
            missing[name] = f"the class {shown(class_of(given))} is not modelled"
        elif name in DIFFUSERS_EXPERTS:
            experts[name] = transformer(file, given)
        else:
            components[name] = COMPONENTS[name](file, given)
            if components[name].values is None:
                missing[name] = f"the class {shown(components[name].class_name)} is not modelled"
    others = [name for name, kind in named.items() if kind is not None and name not in (*FREE, *COMPONENTS)]
    missing |= {
        shown(name): f"the class {shown(named[name])} is not modelled"
        for name in others
        if name not in DIFFUSERS_EXPERTS
    }
    if not experts:
        raise InputError("model", path, "a directory with a diffusion transformer: transformer/config.json")
    flow_shift, warnings = _scheduler(folder, two_experts="transformer_2" in experts)
    pipeline = index.get("_class_name")
    return Found(
        layout="diffusers",
        experts=experts,
        folders={name: name for name in (*experts, *components)},
        components={name: section for name, section in components.items() if section.values is not None},
        missing=missing,
        pipeline=pipeline if isinstance(pipeline, str) else None,
        boundary=options["boundary_ratio"],
        expand_timesteps=options["expand_timesteps"] if "expand_timesteps" in index else None,
        flow_shift=flow_shift,
        warnings=(
            *(warning for expert in experts.values() for warning in expert.warnings),
            *(warning for section in components.values() for warning in section.warnings),
            *warnings,
        ),
    )


def _named(index: Mapping[str, Any]) -> dict[str, str | None]:
    """The components that an index names with their classes; ``None`` for those that the pipeline does without.

    Raises:
        InputError: no library and class, or too many components.
    """
    named: dict[str, str | None] = {}
    for name, value in index.items():
        if not name.startswith("_") and isinstance(value, list):
            if len(value) != 2 or not (value == [None, None] or isinstance(value[1], str)):
                raise InputError(f"{INDEX}:{shown(name)}", with_type(value), "a library and a class")
            named[name] = value[1]
    if len(named) > MOST_COMPONENTS:
        raise InputError(INDEX, f"{len(named):,} components", f"at most {MOST_COMPONENTS}")
    return named


def _scheduler(folder: Folder, *, two_experts: bool) -> tuple[float | None, list[str]]:
    """The shift of the schedule, and a warning where another schedule than the modelled one shares out the steps."""
    file = "scheduler/scheduler_config.json"
    given = read_json(folder, file)
    if given is None:
        return None, []
    found = values(file, given, {key: SHIFT for key in SHIFTS if given.get(key) is not None})
    warnings = []
    if two_experts and (given.get("_class_name") != SCHEDULER or given.get("use_flow_sigmas") is not True):
        kind = shown(given.get("_class_name"))
        warnings.append(f"{file}: {kind}: the steps of the experts are those of {SCHEDULER} with flow sigmas")
    return next(iter(found.values()), None), warnings
