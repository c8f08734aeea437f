"""The command line: exit status, one line for every error, whole files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import modelmeter as mm
from modelmeter import cli
from modelmeter.cli import main
from modelmeter.config import registry
from modelmeter.report.formats import FORMATS
from modelmeter.report.listing import LISTINGS
from modelmeter.verify.run import KINDS
from modelmeter.verify.settings import LOOPS

BAD_OVERRIDES = [
    "height=0",
    "height=-16",
    "height=480.5",
    "height=1e2",
    "height=true",
    "height=null",
    "height=481",
    "height=[480]",
    "height={a: 1}",
    "height=480,720",
    "height=range(1,3)",
    "num_frames=" + "9" * 400,
    "num_frames=" + "9" * 5000,
    "num_frames=4097",
    "guidance_scale=inf",
    "guidance_scale=nan",
    "guidance_scale=0",
    "hieght=480",
    "height",
    "height=",
    "=480",
    "",
    "+height=480",
    "++height=480",
    "~height",
    "hydra.run.dir=x",
    "hydra/launcher=joblib",
    "_target_=os.system",
    "transformer._target_=os.system",
    "height=${oc.env:HOME}",
    "height=${width}",
    "height=int(480)",
    "height=str(480)",
    "transformer.patch_size=[int(1),2,2]",
    "height@foo=480",
    "height@_global_=480",
    "workload=nothing",
    "workload=",
    "workload=''",
    "implementation=mine",
    "transformer.num_layers=0",
    "transformer.num_layers=1001",
    "transformer.num_heads=7",
    "transformer.dim=5121",
    "transformer.patch_size=[1,2]",
    "transformer.patch_size=[1,2,0]",
    "transformer.qk_norm=false",
    "transformer.model_type=i2v",
    "transformer.nothing=1",
    "id=x",
    "height=\n480",
    "height=\x00",
    "é=ü",
]


def run(*arguments: str) -> int:
    """Exit status of the command line in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["modelmeter", *arguments])
        with pytest.raises(SystemExit) as exit:
            main()
    assert exit.value.code is None or isinstance(exit.value.code, int)
    return exit.value.code or 0


def assert_one_line(error: str) -> None:
    """An error is one line, says which program speaks, and is no traceback."""
    assert error.startswith("modelmeter: "), error
    assert error.count("\n") == 1, error
    assert "Traceback" not in error
    assert len(error) < 1000


@pytest.mark.parametrize("override", BAD_OVERRIDES, ids=lambda text: text[:30])
@pytest.mark.parametrize(
    "command", [["report", "wan2.1-t2v-14b"], ["verify", "layers", "-m", "wan2.1-t2v-14b"]], ids=" ".join
)
def test_bad_overrides_exit_2_with_one_line(
    command: list[str], override: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every bad override ends every command that takes overrides with status 2 and one line, and prints nothing."""
    assert run(*command, "--", override) == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert_one_line(error)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["report"],
        ["report", "wan2.1-t2v-15b"],
        ["report", ""],
        ["report", "wan2.1-t2v-14b", "-w", "nothing"],
        ["report", "wan2.1-t2v-14b", "-w", ""],
        ["report", "wan2.1-t2v-14b", "--format", "yaml"],
        ["report", "wan2.1-t2v-14b", "--depth", "-1"],
        ["report", "wan2.1-t2v-14b", "--depth", "x"],
        ["report", "wan2.1-t2v-14b", "--top", "0"],
        ["report", "wan2.1-t2v-14b", "--nothing"],
        ["report", "wan2.1-t2v-14b", "-o", "/no/such/folder/report.json"],
        ["report", "wan2.1-t2v-14b", "-o", "/"],
        ["report", "wan2.1-t2v-14b", "-o", ""],
        ["list", "nothing"],
        ["list", "--format", "xml"],
        ["verify", "nothing"],
        ["verify", "layers", "-m", "nothing"],
        ["verify", "layers", "-w", "nothing"],
        ["verify", "core", "-w", ""],
        ["verify", "core", "--device", ""],
        ["verify", "core", "--reference", "nothing"],
        ["verify", "core", "-m", "wan2.1-t2v-14b", "height=17"],
        ["verify", "layers", "--accept-rel-diff", "nan"],
        ["verify", "layers", "--accept-rel-diff", "-1"],
        ["verify", "layers", "--accept-rel-diff", "x"],
    ],
    ids=lambda arguments: " ".join(arguments) or "nothing",
)
def test_bad_arguments_exit_2_with_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Every command answers an argument it does not know with status 2 and one line."""
    assert run(*arguments) == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert_one_line(error)


def test_errors_name_field_value_and_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    """An error names the field, the value, what is allowed and the nearest valid choice."""
    run("report", "wan2.1-t2v-14", "height=480")
    assert "model=wan2.1-t2v-14: allowed is one of" in (error := capsys.readouterr().err)
    assert error.endswith("nearest: wan2.1-t2v-14b\n")
    run("report", "wan2.1-t2v-14b", "hieght=480")
    assert capsys.readouterr().err.endswith("nearest: height\n")
    run("report", "wan2.1-t2v-14b", "height=1e2")
    assert capsys.readouterr().err.startswith("modelmeter: height=1e2: allowed is an integer")
    run("report", "wan2.1-t2v-14b", "-o", "")
    assert capsys.readouterr().err == "modelmeter: output=: allowed is the name of a file\n"


def test_a_report_is_written_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is written replaces the old one and leaves nothing beside it; a refused run leaves the old one."""
    file = tmp_path / "report.json"
    file.write_text("old")
    assert run("report", "wan2.1-t2v-14b", "height=1", "--format", "json", "-o", str(file)) == 2
    assert file.read_text() == "old"
    assert run("report", "wan2.1-t2v-14b", "--format", "json", "-o", str(file)) == 0
    assert json.loads(file.read_text())["schema"] == "modelmeter.report/1"
    assert list(tmp_path.iterdir()) == [file]
    assert capsys.readouterr().out == ""


def test_a_device_is_written_directly_and_never_replaced() -> None:
    """Writing to a device leaves it a device."""
    assert run("report", "wan2.1-t2v-14b", "-o", "/dev/null") == 0
    assert not Path("/dev/null").is_file()


def test_a_reader_that_goes_away_is_no_error() -> None:
    """Output into a closed pipe ends quietly."""
    command = f"{sys.executable} -m modelmeter report wan2.1-t2v-14b --format json"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command} | head -c 10"], capture_output=True, text=True)
    assert (done.returncode, done.stderr, done.stdout[:1]) == (0, "", "{")


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A shell command in a folder, where ``$mm`` is the command line."""
    environment = {**os.environ, "mm": f"{sys.executable} -m modelmeter", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=folder, env=environment)


@pytest.mark.parametrize("redirection", [">/dev/full", ">&-"])
@pytest.mark.parametrize(
    "arguments", ["report wan2.1-t2v-14b", "report wan2.1-t2v-14b --format json", "list", "--help", "report --help"]
)
def test_standard_output_that_cannot_be_written_exits_2(arguments: str, redirection: str, tmp_path: Path) -> None:
    """Where standard output is full or closed, results and help end with status 2 and one line."""
    done = shell(f"$mm {arguments} {redirection}", tmp_path)
    assert done.returncode == 2
    assert_one_line(done.stderr)
    assert done.stderr.startswith("modelmeter: output=standard output: ")


def test_a_file_is_written_where_standard_output_is_closed(tmp_path: Path) -> None:
    """With -o nothing is printed, so standard output may be closed."""
    done = shell("$mm report wan2.1-t2v-14b --format json -o report.json >&-", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "report.json").read_text())["schema"] == "modelmeter.report/1"


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_the_status_of_an_error_needs_no_standard_error(redirection: str, tmp_path: Path) -> None:
    """Where an error cannot be told, the status still says what happened, and nothing goes to standard output."""
    done = shell(f"$mm report nothing {redirection}", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize(("redirection", "device"), [(">>", "/dev/stdout"), ("2>>", "/dev/stderr")])
def test_a_standard_stream_is_written_and_not_replaced(redirection: str, device: str, tmp_path: Path) -> None:
    """-o /dev/stdout adds to the file that standard output goes to, as printing does."""
    (tmp_path / "log").write_text("before\n")
    done = shell(f"exec {redirection} log; $mm list -o {device}; echo after >>log", tmp_path)
    assert done.returncode == 0
    lines = (tmp_path / "log").read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert lines[1].split() == ["id", "title", "aliases"]


def test_a_current_directory_that_is_gone_exits_2(tmp_path: Path) -> None:
    """Where the current directory has been deleted, that is said in one line."""
    done = shell("mkdir gone && cd gone && rmdir ../gone && $mm report wan2.1-t2v-14b", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert_one_line(done.stderr)
    assert done.stderr.startswith("modelmeter: current directory=")


def test_the_words_of_the_command_line_are_those_of_the_library() -> None:
    """Each choice offers what the library has, all of it and nothing else."""
    assert [kind.value for kind in cli.ReportFormat] == list(FORMATS)
    assert [kind.value for kind in cli.Listing] == list(LISTINGS)
    assert [kind.value for kind in cli.Loop] == list(LOOPS)
    assert [kind.value for kind in cli.Verify] == [*KINDS, "all"]


def test_shell_completion_prints_what_a_shell_asks_for(tmp_path: Path) -> None:
    """The words that complete a command are printed."""
    program = "import sys; sys.argv = ['modelmeter']; from modelmeter.cli import main; main()"
    words = "_MODELMETER_COMPLETE=complete_bash COMP_WORDS='modelmeter re' COMP_CWORD=1"
    done = shell(f'{words} {sys.executable} -c "{program}"', tmp_path)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["report"], "")


def test_lists_name_every_model_and_preset(capsys: pytest.CaptureFixture[str]) -> None:
    """The lists print every model with its aliases and every preset with its values."""
    assert run("list", "models", "--format", "json") == 0
    models = json.loads(capsys.readouterr().out)
    assert {"wan2.1-t2v-1.3b", "wan2.1-t2v-14b"} <= {model["id"] for model in models}
    assert run("list", "workloads") == 0
    listing = capsys.readouterr().out
    for preset in ("wan2-1-ci-tiny", "wan2-1-512p", "wan2-1-720p", "official-480p", "official-720p"):
        assert preset in listing
    assert run("list", "workloads", "--format", "json") == 0
    presets = json.loads(capsys.readouterr().out)
    (clips,) = [row for row in presets if row["model"] == "wan2.2-s2v-14b" and row["workload"] == "official-720p"]
    assert (clips["frames"], clips["clips"], clips["references"]) == (80, 1, "")


@pytest.mark.parametrize("command", ["list", "report", "predict", "fit", "verify"])
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The help of every command ends with an example."""
    assert run(command, "--help") == 0
    assert f"Example: modelmeter {command}" in capsys.readouterr().out


def test_the_table_is_plain_text_where_there_is_no_terminal() -> None:
    """Output into a pipe has no control sequences and no cut cells, also under a C locale and without HOME."""
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-m", "modelmeter", "report", "wan2.1-t2v-14b"],
        capture_output=True,
        env=environment,
        check=True,
    )
    text = done.stdout.decode("ascii")
    assert "\x1b" not in text
    assert "652,992,567,022,616,576 FLOPs" in text


def test_a_verbose_list_of_models_is_derived(capsys: pytest.CaptureFixture[str]) -> None:
    """Source, components, parameters and the vendor's defaults of every model are those of the model itself."""
    with pytest.raises(SystemExit, match="^0$"):
        main(["list", "models", "--verbose", "--format", "json"])
    listed = {row["id"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(listed) == [entry.id for entry in registry()]
    for name, row in listed.items():
        model = mm.load(name)
        assert row["components"] == {key: module.params for key, module in model.components.items()}
        assert row["params"] == sum(row["components"].values()) > 0
        assert row["source"] == model.source
        preset = model.workload(row["default_workload"]).values
        assert all(row["vendor_defaults"][key] == preset[key] for key in ("num_frames", "num_inference_steps"))
    with pytest.raises(SystemExit, match="^0$"):
        main(["list", "models", "--verbose"])
    table = capsys.readouterr().out
    assert all(f"{row['params']:,}" in table for row in listed.values())
    with pytest.raises(SystemExit, match="^2$"):
        main(["list", "devices", "--verbose"])
    assert capsys.readouterr().err == "modelmeter: verbose=devices: allowed is models\n"
