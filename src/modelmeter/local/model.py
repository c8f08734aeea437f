"""A model directory as a composed configuration, of the same form as those of the shipped models."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelmeter.errors import InputError, printable
from modelmeter.local.composing import assumed, composed, mismatches, not_modelled
from modelmeter.local.family import family, takes_images
from modelmeter.local.folder import Folder, open_folder
from modelmeter.local.layout import Found, find_components
from modelmeter.local.weights import BUDGET, Weights, differences, read_weights


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model directory.

    Args:
        id: the path as the user named it, printable.
        config: as that of a shipped model; what the directory does not say is that of the nearest one.
        absent: components for which the configuration has a section, the nearest model's, and the directory nothing.
        not_modelled: components that the model has and that are left out.
        warnings: what the reader has to know beside the numbers.
        weights: what is stored, by component.
    """

    id: str
    config: Mapping[str, Any]
    absent: tuple[str, ...]
    not_modelled: tuple[str, ...]
    warnings: tuple[str, ...]
    weights: Mapping[str, Weights]

    def differences(self, component: str, params: int, dtypes: Sequence[str]) -> list[str]:
        """What is stored of a component otherwise than it is modelled."""
        stored = self.weights.get(component)
        return [] if stored is None else differences(component, stored, params, dtypes)


def is_path(name: object) -> bool:
    """Whether a name is that of a directory: a path object, ``./x``, ``../x``, ``/x``, or a directory that is there.

    Example:
        >>> is_path("./model"), is_path("/model"), is_path("wan2.1-t2v-14b")
        (True, True, False)
    """
    if isinstance(name, os.PathLike):
        return True
    if not isinstance(name, str):
        return False
    try:
        return name.startswith(("./", "../", "/")) or os.path.isdir(name)
    except ValueError:  # a zero byte
        return False


def read_model(path: str | os.PathLike[str]) -> LocalModel:
    """The model in a directory: its JSON and the headers of its weights are read, nothing else.

    Raises:
        InputError: no diffusion transformer that can be read, or data that is not what it should be.
    """
    name = os.fspath(path)
    if not isinstance(name, str):
        raise InputError("model", name, "a path as text")
    folder = open_folder(name)
    found = find_components(folder, name)
    weights, warnings = _weights(folder, found)
    tensors = [key for one in weights.values() for stored in one.checkpoints for key in stored.tensors]
    nearest = family(found, images=takes_images(found, folder.name, tensors))
    config, absent = composed(found, nearest)
    left_out = not_modelled(found, config, absent)
    return LocalModel(
        id=printable(name),
        config={**config, "id": printable(name)},
        absent=tuple(dict.fromkeys((*absent, *left_out))),
        not_modelled=tuple(left_out),
        warnings=(
            f"{found.layout} layout; pipeline, defaults and presets are those of {nearest.id}",
            *(f"{part} is not modelled: {why}" for part, why in left_out.items()),
            *found.warnings,
            *assumed(found, config),
            *mismatches(config, left_out),
            *warnings,
        ),
        weights=weights,
    )


def _weights(folder: Folder, found: Found) -> tuple[dict[str, Weights], list[str]]:
    """What is stored of each component, and warnings about files in its folder and beside the folders."""
    budget = BUDGET
    weights = {}
    warnings: list[str] = []
    for component, place in found.folders.items():
        weights[component] = read_weights(folder, place, budget, known=found.checkpoints)
        budget -= weights[component].read
        warnings += weights[component].warnings
    if "." not in found.folders.values():
        beside = read_weights(folder, ".", budget, known=found.checkpoints)
        warnings += [*beside.warnings, *(f"{one.name}: weights of no component" for one in beside.checkpoints)]
    return weights, warnings
