"""The ``modelmeter`` command: parse, call, print."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from enum import StrEnum
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO

import typer
from rich.console import Console, RenderableType

from modelmeter.errors import InputError, UnavailableError
from modelmeter.report.output import Output, write_file

# Typer brings its own Click since 0.26 and used the separate one before; both name the base alike.
ClickException: type[Exception] = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")

app = typer.Typer(
    name="modelmeter",
    help="What a video diffusion model costs, before anyone runs it.",
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class ReportFormat(StrEnum):
    """Formats of a report."""

    table = "table"
    markdown = "markdown"
    latex = "latex"
    json = "json"
    csv = "csv"
    ops_csv = "ops-csv"


class ListFormat(StrEnum):
    """Formats of a list."""

    table = "table"
    json = "json"


class Verify(StrEnum):
    """What there is to verify."""

    layers = "layers"
    end2end = "end2end"
    core = "core"
    pipelines = "pipelines"
    memory = "memory"
    all = "all"


class Loop(StrEnum):
    """How an end-to-end reference gets from one forward to a run."""

    none = "none"
    short = "short"
    full = "full"


class Listing(StrEnum):
    """What there is to list."""

    models = "models"
    workloads = "workloads"
    devices = "devices"


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="Model id, Hugging Face repository id, or a model directory.", show_default=False
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Workload keys (height=480) or configuration (transformer.num_layers=2)."
    ),
]
Preset = Annotated[str | None, typer.Option("-w", "--workload", help="Preset; see: modelmeter list workloads.")]
OutputFile = Annotated[
    str | None, typer.Option("-o", "--output", metavar="PATH", help="Write to a file instead of the terminal.")
]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command answers, the file to write it to, and the exit status.

    Commands only compute it: what goes wrong in one is then never mistaken for output that cannot be written.
    """

    result: Output
    output: str | None
    status: int = 0


@app.command("list", epilog="Example: modelmeter list models")
def list_command(
    what: Annotated[Listing, typer.Argument(help="What to list.")] = Listing.models,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Models: source, components, parameters, defaults.")
    ] = False,
    format: Annotated[ListFormat, typer.Option("--format", help="Output format.")] = ListFormat.table,
    output: OutputFile = None,
) -> Answer:
    """List the models, the workload presets or the devices."""
    from modelmeter.report.listing import LISTINGS, list_models_verbose

    if verbose and what is not Listing.models:
        raise InputError("verbose", what.value, "models")
    if verbose:
        return Answer(list_models_verbose(format.value), output)
    return Answer(LISTINGS[what.value](format.value), output)


@app.command(epilog="Example: modelmeter report wan2.1-t2v-14b num_frames=81 height=720 width=1280")
def report(
    model: Model,
    overrides: Overrides = None,
    workload: Preset = None,
    depth: Annotated[int, typer.Option(min=0, help="Levels of modules below a stage.")] = 2,
    top: Annotated[int | None, typer.Option(min=1, help="Only the N modules with the most FLOPs of their own.")] = None,
    format: Annotated[ReportFormat, typer.Option("--format", help="Output format.")] = ReportFormat.table,
    output: OutputFile = None,
) -> Answer:
    """Count the FLOPs and parameters of a workload, module by module."""
    from modelmeter.api import load
    from modelmeter.report.formats import FORMATS

    estimate = load(model, *(overrides or [])).estimate(workload=workload)
    return Answer(FORMATS[format.value](estimate, depth=depth, count=top), output)


@app.command("predict", epilog="Example: modelmeter predict wan2.1-t2v-14b --device h100 --attention fa3")
def predict_command(
    model: Model,
    device: Annotated[str, typer.Option(help="Device name or YAML file; see: modelmeter list devices.")],
    overrides: Overrides = None,
    workload: Preset = None,
    engine: Annotated[str, typer.Option(help="eager, compiled (torch.compile) or fused (a fused engine).")] = "eager",
    attention: Annotated[
        str | None, typer.Option(help="math, cudnn, fa2, fa3 or sage2.", show_default="the usual one of the device")
    ] = None,
    gpus: Annotated[int | None, typer.Option(help="Devices that run (gpus=).", show_default="1")] = None,
    parallel: Annotated[
        str | None,
        typer.Option(
            metavar="LAYOUT",
            help="How they divide the work: cfg=2,ulysses=4,ring=2,fsdp=8.",
            show_default="the usual one of the implementation",
        ),
    ] = None,
    price: Annotated[float | None, typer.Option(help="Price of a GPU-hour, in any currency.")] = None,
    format: Annotated[ListFormat, typer.Option("--format", help="Output format.")] = ListFormat.table,
    output: OutputFile = None,
) -> Answer:
    """Predict how long a run takes on a device, stage by stage, and what bounds it."""
    from modelmeter.api import load
    from modelmeter.devices import find_device
    from modelmeter.parallel import Parallel
    from modelmeter.predict import Settings, predict
    from modelmeter.report.prediction import FORMATS

    loaded = load(model, *(overrides or []), *([] if gpus is None else [f"gpus={gpus}"]))
    settings = Settings(
        device=find_device(device),
        engine=engine,
        attention=attention,
        price_per_gpu_hour=price,
        gpus=loaded.config["gpus"],
        parallel=None if parallel is None else Parallel.parse(parallel),
    )
    prediction = predict(loaded, loaded.plan(loaded.workload(workload)), settings)
    return Answer(FORMATS[format.value](prediction), output)


@app.command("fit", epilog="Example: modelmeter fit wan2.1-t2v-14b --device 4090")
def fit_command(
    model: Model,
    device: Annotated[str, typer.Option(help="Device name or YAML file; see: modelmeter list devices.")],
    overrides: Overrides = None,
    workload: Preset = None,
    gpus: Annotated[int | None, typer.Option(help="Devices that share the work (gpus=).", show_default="1")] = None,
    format: Annotated[ListFormat, typer.Option("--format", help="Output format.")] = ListFormat.table,
    output: OutputFile = None,
) -> Answer:
    """Tell whether a run fits on a device, under which policies, and how far they go; exit status 1 if none does."""
    from modelmeter.api import load
    from modelmeter.devices import find_device
    from modelmeter.fit import fit
    from modelmeter.report.fitting import FORMATS

    found = find_device(device)
    words = [*(overrides or []), *([] if gpus is None else [f"gpus={gpus}"])]
    result = fit(load(model, *words), found, workload=workload)
    return Answer(FORMATS[format.value](result), output, 0 if result.fitting else 1)


@app.command("verify", epilog="Example: modelmeter verify layers -m wan2.1-t2v-1.3b -w wan2-1-ci-tiny")
def verify_command(
    what: Annotated[Verify, typer.Argument(help="What to verify.")] = Verify.all,
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option("-m", "--model", help="One model; without it, every model.")] = None,
    workload: Preset = None,
    reference: Annotated[
        str | None, typer.Option(help="modules, diffusers or official; without it diffusers where it has the class.")
    ] = None,
    official_path: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="With --reference official: a checkout of Wan2.1 or Wan2.2, whose code is imported and run.",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="meta, cpu or cuda:N, where the reference runs.", show_default="meta")
    ] = None,
    accept_rel_diff: Annotated[
        float | None,
        typer.Option(help="Largest relative difference that passes, instead of equality.", show_default="equal"),
    ] = None,
    loop: Annotated[Loop, typer.Option(help="end2end: scale one forward, run two steps, or run all.")] = Loop.none,
    format: Annotated[ListFormat, typer.Option("--format", help="Output format.")] = ListFormat.table,
    output: OutputFile = None,
) -> Answer:
    """Compare every number with the real model classes, run on the meta device."""
    from modelmeter.api import load
    from modelmeter.config import registry
    from modelmeter.report import verification
    from modelmeter.verify.run import ALL, verify

    names = [model] if model else [entry.id for entry in registry()]
    result = verify(
        [load(name, *(overrides or [])) for name in names],
        ALL if what is Verify.all else (what.value,),
        workload=workload,
        reference=reference,
        official_path=official_path,
        device=device,
        accept_rel_diff=accept_rel_diff,
        loop=loop.value,
        progress=lambda text: status(text),
    )
    document = result.document()
    as_json = format is ListFormat.json
    shown = verification.as_json(document) if as_json else verification.as_table(document, result.failures)
    return Answer(shown, output, 0 if result.passed else 1)


def status(text: str) -> None:
    """Say what runs, on a terminal only."""
    if sys.stderr is not None and sys.stderr.isatty():
        print(text, file=sys.stderr)


def show(result: Output, output: str | None) -> None:
    """Print a result, or write it to a file as plain text; only a terminal limits the width.

    Raises:
        InputError: the file or standard output cannot be written.
        BrokenPipeError: the reader of standard output has gone.
    """
    if output is not None:
        if not output:
            raise InputError("output", output, "the name of a file")
        write_file(Path(output), result if isinstance(result, str) else plain(result))
        return
    if sys.stdout is None:
        raise InputError("output", "standard output", "one that is open")
    try:
        if isinstance(result, str) or not sys.stdout.isatty():
            sys.stdout.write(result if isinstance(result, str) else plain(result))
        else:
            Console(soft_wrap=True).print(result)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        drop(sys.stdout)
        raise InputError("output", "standard output", f"one that can be written ({error.strerror})") from None


def drop(stream: TextIO) -> None:
    """Let go of what a stream could not write, so that the end of the program does not try again."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def plain(result: RenderableType) -> str:
    """What Rich would print, without colour and without a limit on the width."""
    text = StringIO()
    Console(file=text, width=10_000, color_system=None, force_terminal=False).print(result)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def fail(message: object, status: int) -> NoReturn:
    """End with one line on standard error, where there is one."""
    if sys.stderr is not None:
        try:
            print(f"modelmeter: {message}", file=sys.stderr, flush=True)
        except OSError:
            drop(sys.stderr)
    sys.exit(status)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit status 0 done, 1 failed or no, 2 bad input, 3 reference unavailable."""
    said = StringIO()
    answer: object = 0
    try:
        try:
            with redirect_stdout(said):
                answer = app(args=arguments, standalone_mode=False)
        except SystemExit as exit:  # shell completion ends like this
            answer = exit.code
        if said.getvalue():
            show(said.getvalue(), None)
        if isinstance(answer, Answer):
            show(answer.result, answer.output)
    except ClickException as error:
        fail(_one_line(error), 2)
    except InputError as error:
        fail(error, 2)
    except UnavailableError as error:
        fail(error, 3)
    except BrokenPipeError:
        # The reader has gone, as `| head` does; nothing is wrong with the answer.
        drop(sys.stdout)
    except (typer.Abort, KeyboardInterrupt):
        fail("interrupted", 2)
    code = answer.status if isinstance(answer, Answer) else answer
    sys.exit(code if isinstance(code, int) else 0)


def _one_line(error: Any) -> str:
    text = " ".join(str(error.format_message()).split())
    return text.replace("Value error, ", "")


if __name__ == "__main__":
    main()
