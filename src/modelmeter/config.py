"""Configurations: which models there are, how their files compose, and what a user may override."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from importlib import resources
from math import isfinite
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from modelmeter.errors import InputError, Typed, choice, with_type
from modelmeter.policy import INTEGERS, WORDS
from modelmeter.workload import COMMON_KEYS, DECIMALS

#: Longest ``key=value`` that is read.
LONGEST_OVERRIDE = 1000
#: Keys of the configuration itself that a user may set where a model has them, and their values.
CHOICES: Mapping[str, tuple[object, ...]] = {
    "implementation": ("official", "diffusers"),
    "vae_tiling": (False, True),
    **WORDS,
}
#: Sections whose plain values a user may set as ``section.key=value``.
SECTIONS = ("transformer", "transformer_2", "text_encoder", "image_encoder", "audio_encoder", "vae")


@dataclass(frozen=True, slots=True)
class Entry:
    """A shipped model: where its file is, and by which names it is known."""

    id: str
    title: str
    aliases: tuple[str, ...]
    family: str
    file: str


@cache
def registry() -> tuple[Entry, ...]:
    """Every shipped model, read from the headers of the files in ``models/*/configs``.

    Example:
        >>> "wan2.1-t2v-14b" in [entry.id for entry in registry()]
        True
    """
    entries = []
    for family in sorted(resources.files("modelmeter.models").iterdir(), key=lambda item: item.name):
        folder = family.joinpath("configs")
        if not folder.is_dir():
            continue
        for file in sorted(folder.iterdir(), key=lambda item: item.name):
            if file.name.endswith(".yaml"):
                header = OmegaConf.create(file.read_text(encoding="utf-8"))
                aliases = tuple(str(alias) for alias in header.aliases)
                entries.append(Entry(header.id, header.title, aliases, family.name, file.name.removesuffix(".yaml")))
    return tuple(entries)


def is_id(name: object) -> bool:
    """Whether a name is the id of a shipped model; repository ids have a slash, as paths do.

    Example:
        >>> is_id("wan2.1-t2v-14b"), is_id("Wan-AI/Wan2.1-T2V-14B")
        (True, False)
    """
    return isinstance(name, str) and name.lower() in (entry.id for entry in registry())


def find(name: str) -> Entry:
    """The model of that id or Hugging Face repository id.

    Raises:
        InputError: no such model.

    Example:
        >>> find("Wan-AI/Wan2.1-T2V-14B-Diffusers").id
        'wan2.1-t2v-14b'
    """
    if not isinstance(name, str):
        raise choice("model", with_type(name), [entry.id for entry in registry()])
    for entry in registry():
        if name.lower() == entry.id or name.lower() in (alias.lower() for alias in entry.aliases):
            return entry
    raise choice("model", name, [entry.id for entry in registry()])


@cache
def _composed(entry: Entry) -> dict[str, Any]:
    """Compose once; :func:`compose` hands out copies.

    Uses Hydra's loader rather than its ``compose`` function, which keeps global state and so fails inside
    a user's own Hydra application.
    """
    try:
        os.getcwd()  # Hydra notes it
    except OSError as error:
        raise InputError("current directory", error.strerror, "one that exists") from None
    Plugins.instance()  # registers the pkg:// source; Hydra's own singleton, safe to repeat
    path = ConfigSearchPathImpl()
    path.append("hydra", "pkg://hydra.conf")
    path.append("modelmeter", "pkg://modelmeter.configs")
    path.append(entry.family, f"pkg://modelmeter.models.{entry.family}.configs")
    path.append("schema", "structured://")
    composed = ConfigLoaderImpl(path).load_configuration(entry.file, [], run_mode=RunMode.RUN)
    OmegaConf.set_struct(composed, False)
    composed.pop("hydra")
    plain = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def compose(entry: Entry) -> dict[str, Any]:
    """The composed configuration of a model as plain values, interpolations of our own files resolved.

    Example:
        >>> compose(find("wan2.1-t2v-14b"))["transformer"]["dim"]
        5120
    """
    return deepcopy(_composed(entry))


@dataclass(frozen=True, slots=True)
class Overrides:
    """What a user set: keys of the workload, the name of a preset, and the rest of the configuration."""

    workload: Mapping[str, Any]
    preset: str | None
    config: Mapping[str, Any]


def parse_overrides(texts: Sequence[str], config: Mapping[str, Any]) -> Overrides:
    """``key=value`` texts, checked against a composed configuration: plain values on existing keys.

    Raises:
        InputError: other syntax, an unknown key, or a value of another type than the one it replaces.

    Example:
        >>> parse_overrides(["height=480", "transformer.num_layers=2"], compose(find("wan2.1-t2v-14b"))).workload
        {'height': 480}
    """
    sections = {f"{section}.{key}": value for section in SECTIONS for key, value in config.get(section, {}).items()}
    keys = (*COMMON_KEYS, *config["workload_keys"])
    choices = {key: words for key, words in CHOICES.items() if key in config}
    sectioned = (f"{section}.<key>" for section in SECTIONS if section in config)
    known = [*keys, "workload", *choices, *INTEGERS, *sectioned]
    workload: dict[str, Any] = {}
    preset: str | None = None
    changes: dict[str, Any] = {}
    for text in texts:
        key, value = parse_override(text)
        typed = text.partition("=")[2]
        if key in keys:
            # what is no number keeps its own spelling, so that the error shows what was typed
            workload[key] = value if _is_number(key, value) else Typed(typed)
        elif key == "workload":
            preset = str(value)
        elif key in choices:
            if not any(value is word or (isinstance(value, str) and value == word) for word in choices[key]):
                raise choice(key, typed, [str(word).lower() for word in choices[key]])
            changes[key] = value
        elif key in INTEGERS:
            smallest, largest = INTEGERS[key]
            if type(value) is not int or not smallest <= value <= largest:
                raise InputError(key, Typed(typed), f"an integer from {smallest:,} to {largest:,}")
            changes[key] = value
        elif key in sections:
            if not _same_type(value, sections[key]):
                raise InputError(key, value, f"a value such as {sections[key]}")
            changes[key] = value
        else:
            raise choice("override", key, known, more=sections)
    return Overrides(workload, preset, changes)


def parse_override(text: str) -> tuple[str, Any]:
    """One ``key=value`` in Hydra's grammar, without additions, deletions, sweeps or interpolations.

    Raises:
        InputError: any other syntax.

    Example:
        >>> parse_override("height=480")
        ('height', 480)
    """
    allowed = "key=value with a plain value"
    if not isinstance(text, str):
        raise InputError("override", with_type(text), allowed)
    if len(text) > LONGEST_OVERRIDE:
        raise InputError("override", text, f"{allowed} of at most {LONGEST_OVERRIDE} characters")
    try:
        (override,) = OverridesParser.create().parse_overrides([text])
        value = override.value()
    except (HydraException, OmegaConfBaseException, ValueError, RecursionError):
        raise InputError("override", text, allowed) from None
    if not _is_plain(override, value):
        raise InputError("override", text, f"{allowed} (no +, ~, hydra, _target_, function, sweep or interpolation)")
    return override.key_or_group, value


def _is_plain(override: Override, value: Any) -> bool:
    key = override.key_or_group
    return (
        not (override.is_add() or override.is_force_add() or override.is_delete() or override.is_sweep_override())
        and override.package is None
        and key.split(".")[0].split("/")[0] != "hydra"
        and "_target_" not in str(override.input_line)
        and "${" not in str(override.input_line)
        and "(" not in str(override.input_line)  # a function that Hydra evaluates, such as int(480)
        and not isinstance(value, dict)
    )


def _is_number(key: str, value: Any) -> bool:
    """Whether the value may be kept as Hydra read it; all else is kept as it was typed."""
    return type(value) is int or (type(value) is float and key in DECIMALS)


def _same_type(value: Any, current: Any) -> bool:
    if isinstance(current, list):
        return isinstance(value, list) and value != [] and all(_same_type(item, current[0]) for item in value)
    if isinstance(current, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(current, bool)
    if isinstance(current, float):
        return isinstance(value, int | float) and isfinite(value) and value > 0
    return value == current if isinstance(current, str) else isinstance(value, type(current))


def applied(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with dotted keys set; the given one is left alone.

    Example:
        >>> applied({"transformer": {"dim": 8}}, {"transformer.dim": 16})
        {'transformer': {'dim': 16}}
    """
    result = dict(config)
    for dotted, value in changes.items():
        section, _, key = dotted.partition(".")
        result[section] = {**result[section], key: value} if key else value
    return result
