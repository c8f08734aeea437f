"""Running checks over models and workloads, up to the first that fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from modelmeter.api import Model
from modelmeter.errors import InputError, UnavailableError, choice
from modelmeter.policy import DTYPES, Policy, implementation
from modelmeter.stage import Plan, Reference
from modelmeter.verify.compare import Check, Progress, Verification
from modelmeter.verify.core import core
from modelmeter.verify.settings import LOOPS, OFFICIAL, REFERENCES, Settings, settings

if TYPE_CHECKING:
    from modelmeter.verify.memory import Trackers
    from modelmeter.verify.official import Checkout
    from modelmeter.verify.reference import References

#: Packages whose versions a verification states.
PACKAGES = ("torch", "diffusers", "transformers")
#: Kinds of checks that ``all`` runs, in this order; and those that run only when named.
ALL = ("layers", "end2end", "core", "pipelines")
KINDS = (*ALL, "memory")


@dataclass(frozen=True, slots=True)
class Job:
    """A model at a workload."""

    model: Model
    workload: str
    plan: Plan
    first: bool
    """The first workload of its model."""


def verify(
    models: Sequence[Model],
    kinds: Sequence[str] = ALL,
    *,
    workload: str | None = None,
    reference: str | None = None,
    official_path: str | None = None,
    device: str | None = None,
    accept_rel_diff: float | None = None,
    loop: str = "none",
    progress: Progress = lambda _: None,
) -> Verification:
    """Compare models with their references.

    Args:
        models: models with their overrides.
        kinds: ``layers``, ``end2end``, ``core``, ``pipelines``, ``memory``.
        workload: a preset; without one that of the overrides, or every preset, those that a model cannot run left
            out and listed.
        reference: ``diffusers``, ``modules`` or ``official``; without it diffusers where it has the class.
        official_path: with ``official``, a checkout of the vendor's repository, whose code is imported and run.
            Models of another repository are left out and listed, unless there are no others.
        device, accept_rel_diff: instead of what ``verify_run`` of the configuration says.
        loop: ``none`` scales one forward to a run, ``short`` runs two steps, ``full`` all of them.
        progress: told what is about to be measured.

    Raises:
        InputError: an unknown word, or a model that cannot run the workload or any of its presets.
        UnavailableError: the reference, the device or the memory is missing.

    Example:
        >>> import modelmeter as mm
        >>> verify([mm.load("wan2.1-t2v-1.3b")], ["core"], workload="wan2-1-ci-tiny").passed
        True
    """
    for kind in kinds:
        if kind not in KINDS:
            raise choice("verification", kind, KINDS)
    if loop not in LOOPS:
        raise choice("loop", loop, LOOPS)
    if reference is not None and reference not in REFERENCES:
        raise choice("reference", reference, REFERENCES)
    # Every word is checked before anything runs.
    chosen = {
        (kind, model.id): settings(model.config, kind, device=device, accept_rel_diff=accept_rel_diff)
        for kind in kinds
        for model in models
    }
    if "memory" in kinds:
        for (kind, _), setting in chosen.items():
            if kind == "memory" and setting.device != "meta":
                raise InputError("device", setting.device, "meta for memory, whose reference runs there only")
        if reference not in (None, "diffusers"):
            raise InputError("reference", reference, "diffusers for memory")
        for model in models:
            if (precision := Policy.of(model.config).precision) not in DTYPES:
                raise InputError("precision", precision, f"{', '.join(DTYPES)} for memory")
    if reference == OFFICIAL:
        for setting in chosen.values():
            if setting.device != "meta":
                raise InputError("device", setting.device, f"meta with --reference {OFFICIAL}")
        if official_path == "":
            raise InputError("official-path", official_path, "the directory of a checkout")
    elif official_path is not None:
        raise InputError("official-path", official_path, f"only with --reference {OFFICIAL}")
    jobs, refused = _jobs(models, workload)
    checkout, jobs, others = _checkout(jobs, official_path) if reference == OFFICIAL else (None, jobs, [])
    refused += others
    needed = {setting.device for (kind, _), setting in chosen.items() if kind in ("layers", "end2end")}
    found = {name: _references(reference, name, progress, checkout) for name in needed}
    for references in found.values():
        refused += _without_reference(jobs, references)
    compared = _with_pipeline(models, kinds)
    refused += [f"{model.id} pipelines: not compared for this model" for model in models if model.id not in compared]
    trackers = _trackers(progress) if "memory" in kinds else None
    if trackers is not None:
        refused += [*_untracked(jobs), *_not_official(models)]
    checks: list[Check] = []
    for check in _checks(kinds, jobs, chosen, found, trackers, compared, loop, progress):
        checks.append(check)
        if check.failures:  # fail fast: the next forward is not measured
            break
    used = versions() | ({checkout.repository: checkout.revision} if checkout else {})
    return Verification(checks=tuple(checks), versions=used, not_applicable=tuple(refused))


def _checkout(jobs: Sequence[Job], path: str | None) -> tuple[Checkout, list[Job], list[str]]:
    """The official code at a path, what runs of its models, and which models are of another repository."""
    try:
        from modelmeter.verify.official import Checkout, find_repository
    except ImportError as error:
        raise _not_installed(error) from None
    found = {job.model.id: _official(job.model) for job in jobs}
    if not any(found.values()):
        raise InputError("reference", OFFICIAL, f"another kind for {' and '.join(found)}")
    repository = find_repository(path, [each.repository for references in found.values() for each in references])
    own = {model for model, references in found.items() if any(each.repository == repository for each in references)}
    checkout = Checkout(Path(path or ""), repository, [each for model in own for each in found[model]])
    others = [f"{model}: no model of {repository}" for model in found if model not in own]
    return checkout, [job for job in jobs if job.model.id in own], others


def _official(model: Model) -> list[Reference]:
    """The official classes of a model."""
    return [kinds[OFFICIAL] for kinds in model.pipeline.references(model.config).values() if OFFICIAL in kinds]


def _references(kind: str | None, device: str, progress: Progress, checkout: Checkout | None) -> References:
    """Only here is PyTorch imported: the laws of ``core`` do without."""
    try:
        from modelmeter.verify.reference import References
    except ImportError as error:
        raise _not_installed(error) from None
    return References(kind, device, progress, checkout)


def _trackers(progress: Progress) -> Trackers:
    try:
        from modelmeter.verify.memory import Trackers
    except ImportError as error:
        raise _not_installed(error) from None
    return Trackers(progress)


def _with_pipeline(models: Sequence[Model], kinds: Sequence[str]) -> set[str]:
    """Models whose calls can be compared; one that is asked for alone is refused where it is."""
    if "pipelines" not in kinds or len(models) * len(kinds) == 1:
        return {model.id for model in models}
    try:
        from modelmeter.verify.pipelines import available
    except ImportError as error:
        raise _not_installed(error) from None
    return {model.id for model in models if available(model)}


def _pipelines() -> Callable[..., Iterator[Check]]:
    try:
        from modelmeter.verify.pipelines import pipelines
    except ImportError as error:
        raise _not_installed(error) from None
    return pipelines


def _not_installed(error: ImportError) -> UnavailableError:
    return UnavailableError(
        f"package {error.name} is not installed; install it with: pip install 'modelmeter-video[verify]'"
    )


def _without_reference(jobs: Sequence[Job], references: References) -> list[str]:
    """Stages that have no reference of the asked kind; a model of which none has one is refused."""
    missing: list[str] = []
    for job in jobs:
        if job.first:
            without = [stage.id for stage in job.plan.stages if references.reference(job.model, stage) is None]
            if len(without) == len(job.plan.stages):
                raise InputError("reference", references.kind, f"another kind for {job.model.id}")
            missing += [f"{job.model.id} {stage}: no reference of the kind {references.kind}" for stage in without]
    return missing


def _untracked(jobs: Sequence[Job]) -> list[str]:
    """Stages without a real class that could be tracked."""
    missing: list[str] = []
    for job in jobs:
        references = job.model.pipeline.references(job.model.config)
        without = [stage.id for stage in job.plan.stages if "diffusers" not in references[stage.id]]
        missing += [f"{job.model.id} {stage}: no reference of the kind diffusers" for stage in without if job.first]
    return missing


def _not_official(models: Sequence[Model]) -> list[str]:
    """What is compared where the forwards of the official code are asked for, which are not tracked."""
    asked = [model for model in models if implementation(model.config) == OFFICIAL]
    if not any("diffusers" in model.pipeline.references(model.config)["transformer"] for model in asked):
        return []
    return [
        "implementation=official: its forwards are not tracked, memory is that of implementation=diffusers; "
        "the official FLOPs: verify layers --reference official"
    ]


def _checks(
    kinds: Sequence[str],
    jobs: Sequence[Job],
    chosen: dict[tuple[str, str], Settings],
    found: dict[str, References],
    trackers: Trackers | None,
    compared: set[str],
    loop: str,
    progress: Progress,
) -> Iterator[Check]:
    for kind in kinds:
        for job in jobs:
            setting = chosen[kind, job.model.id]
            what = (job.model, job.workload, job.plan)
            if kind == "core":
                yield from core(*what, setting.tolerance)
            elif kind == "layers":
                from modelmeter.verify.layers import layers

                yield from layers(*what, found[setting.device], setting.tolerance, with_params=job.first)
            elif kind == "end2end":
                from modelmeter.verify.end2end import end2end

                yield from end2end(*what, found[setting.device], setting.tolerance, loop=loop)
            elif kind == "memory":
                from modelmeter.verify.memory import memory

                assert trackers is not None
                yield from memory(job.model, job.workload, trackers, setting.tolerance)
            elif job.first and job.model.id in compared:  # sizes say nothing about calls: one preset is enough
                pipelines = _pipelines()
                yield from pipelines(job.model, job.workload, setting.tolerance, progress=progress)


def _jobs(models: Sequence[Model], workload: str | None) -> tuple[list[Job], list[str]]:
    """What runs, and which pairs of model and preset cannot."""
    jobs: list[Job] = []
    refused: list[str] = []
    reason: InputError | None = None
    for model in models:
        asked = model.overrides.preset if workload is None else workload
        own: list[Job] = []
        errors: dict[str, InputError] = {}
        for name in model.presets if asked is None else [asked]:
            try:
                own.append(Job(model, name, model.plan(model.workload(name)), first=not own))
            except InputError as error:
                errors[name] = error
        reasons = {str(error) for error in errors.values()}
        if not own and len(reasons) == 1 and len(models) == 1:  # what every preset is refused for is said once
            raise next(iter(errors.values()))
        refused += [f"{model.id} {name}: {error}" for name, error in errors.items()]
        if not own and (asked is None or len(models) == 1):
            raise InputError("model", model.id, f"a model with a preset that it can run; {'; '.join(refused)}")
        reason = reason or next(iter(errors.values()), None)
        jobs += own
    if not jobs and reason is not None:  # no model runs it: what the first says is enough
        raise reason
    return jobs, refused


def versions() -> dict[str, str]:
    """Versions of the packages that the references come from; absent ones are left out."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
