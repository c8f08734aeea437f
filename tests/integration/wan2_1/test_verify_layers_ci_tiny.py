"""The smallest workload through every reference, script and device, and each way in which it must fail."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

import modelmeter as mm
from modelmeter.cli import main
from modelmeter.config import compose, find
from modelmeter.models.wan2_1.transformer import Wan2_1DiTModel
from modelmeter.nn import Linear, functional
from modelmeter.nn.functional import products
from modelmeter.verify import device as devices
from modelmeter.verify import reference
from modelmeter.verify.run import verify

REPOSITORY = Path(__file__).parents[3]
LOCAL_MODEL = REPOSITORY / "models" / "wan2.1-t2v-14b" / "source-data"
SMALL = [
    "transformer.num_layers=2",
    "transformer.dim=256",
    "transformer.num_heads=2",
    "transformer.ffn_dim=512",
    "text_encoder.vocab_size=100",
    "text_encoder.num_layers=1",
    "text_encoder.d_model=64",
    "text_encoder.d_ff=64",
    "text_encoder.num_heads=2",
    "vae.base_dim=8",
    "vae.decoder_base_dim=8",
]
#: Longest config.json that is read.
LONGEST_CONFIG = 100_000


def verify_small(*kinds: str, **options: Any) -> Any:
    """A verification of a small transformer at the CI preset."""
    return verify([mm.load("wan2.1-t2v-1.3b", *SMALL)], kinds or ("layers",), workload="wan2-1-ci-tiny", **options)


def run(*arguments: str) -> int:
    """Exit status of the command line in this process."""
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert isinstance(exit.value.code, int)
    return exit.value.code


# -- what passes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["diffusers", "modules"])
@pytest.mark.parametrize("name", ["wan2.1-t2v-1.3b", "wan2.1-t2v-14b"])
def test_full_size_models_equal_both_references(name: str, kind: str) -> None:
    """At full size, layers and the whole run equal the real class and the mirrors in plain PyTorch."""
    result = verify([mm.load(name)], ("layers", "end2end"), workload="wan2-1-ci-tiny", reference=kind)
    assert result.failures == ()
    assert result.document()["reference"] == kind
    assert result.document()["max_rel_diff"] == 0
    assert result.document()["compared_nonzero"] > 400


@pytest.mark.parametrize("loop", ["none", "short", "full"])
@pytest.mark.parametrize(("steps", "guidance"), [(1, 1), (3, 1), (3, 5), (5, 5)])
def test_loops_that_really_run_give_the_scaled_total(loop: str, steps: int, guidance: int) -> None:
    """Scaling one forward, extrapolating two steps and running every step give the same run."""
    model = mm.load("wan2.1-t2v-1.3b", *SMALL, f"num_inference_steps={steps}", f"guidance_scale={guidance}")
    result = verify([model], ("end2end",), workload="wan2-1-ci-tiny", loop=loop)
    assert result.failures == ()
    forwards = steps * (2 if guidance > 1 else 1)
    one = next(row for row in verify_small("layers").rows if row.id == "transformer")
    (run,) = [row for row in result.rows if row.id == "transformer"]
    assert run.reference == forwards * one.reference


@pytest.mark.parametrize("kind", ["diffusers", "modules"])
def test_a_cpu_reference_counts_attention(kind: str) -> None:
    """On real tensors on the CPU the same integers are counted, attention included, and nothing is left behind."""
    on_meta = verify_small("layers", "end2end", reference=kind)
    on_cpu = verify_small("layers", "end2end", reference=kind, device="cpu")
    assert on_cpu.failures == ()
    assert on_cpu.rows == on_meta.rows
    attention = [row for row in on_cpu.rows if row.id.endswith("attn1") and row.quantity == "flops"]
    projections = 4 * next(row for row in on_cpu.rows if row.id.endswith("attn1.to_q")).reference
    assert attention[0].reference > projections


@pytest.mark.parametrize("kind", ["layers", "end2end", "core"])
def test_the_scripts_run_as_written(kind: str) -> None:
    """Each script passes on the CI preset, with the 14B model unless another is named, and prints its table."""
    script = f"modelmeter.models.wan2_1.scripts.verify.run_verify_{kind}"
    command = [sys.executable, "-m", script, "--workload", "wan2-1-ci-tiny"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert done.returncode == 0, done.stderr
    assert "wan2.1-t2v-14b wan2-1-ci-tiny" in done.stdout
    assert "passed: " in done.stdout


def test_core_needs_no_pytorch() -> None:
    """The laws are checked where PyTorch cannot be imported; the other kinds say in one line what is missing."""
    code = (
        "import sys; sys.modules['torch'] = None; from modelmeter.cli import main; "
        "main(['verify', sys.argv[1], '-m', 'wan2.1-t2v-1.3b', '-w', 'wan2-1-ci-tiny'])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    core = subprocess.run([sys.executable, "-c", code, "core"], capture_output=True, text=True, env=environment)
    assert (core.returncode, core.stderr) == (0, "")
    assert "passed: " in core.stdout
    layers = subprocess.run([sys.executable, "-c", code, "layers"], capture_output=True, text=True, env=environment)
    assert layers.returncode == 3
    assert layers.stderr == (
        "modelmeter: package torch is not installed; install it with: pip install 'modelmeter-video[verify]'\n"
    )


def test_mirrors_need_torch_alone() -> None:
    """Without diffusers the mirrors still verify, and diffusers as the reference is unavailable: status 3."""
    code = (
        "import sys; sys.modules['diffusers'] = None; from modelmeter.cli import main; "
        "main(['verify', 'layers', '-m', 'wan2.1-t2v-1.3b', '-w', 'wan2-1-ci-tiny', '--reference', sys.argv[1]])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    modules = subprocess.run([sys.executable, "-c", code, "modules"], capture_output=True, text=True, env=environment)
    assert (modules.returncode, modules.stderr) == (0, "")
    real = subprocess.run([sys.executable, "-c", code, "diffusers"], capture_output=True, text=True, env=environment)
    assert real.returncode == 3
    assert real.stderr.count("\n") == 1
    assert "package diffusers is not installed" in real.stderr


# -- a local copy of the model -----------------------------------------------------------------------------------


def local_overrides(folder: Path) -> list[str]:
    """Overrides that set the architecture of a local ``config.json``, which is read as data only."""
    with (folder / "config.json").open(encoding="utf-8") as file:
        config = json.loads(file.read(LONGEST_CONFIG))
    shipped = compose(find("wan2.1-t2v-14b"))["transformer"]
    return [f"transformer.{key}={value}" for key, value in config.items() if key in shipped and type(value) is int]


@pytest.mark.skipif(
    not (LOCAL_MODEL / "config.json").exists(),
    reason="no local model: WAN21_T2V_14B_PATH=DIR models/wan2.1-t2v-14b/bootstrap.sh links it",
)
def test_a_local_model_is_the_shipped_one_and_verifies() -> None:
    """The config.json of a local copy agrees with the shipped configuration and passes the CI preset."""
    overrides = local_overrides(LOCAL_MODEL)
    assert overrides
    shipped = mm.load("wan2.1-t2v-14b")
    assert mm.load("wan2.1-t2v-14b", *overrides).config["transformer"] == shipped.config["transformer"]
    assert verify([mm.load("wan2.1-t2v-14b", *overrides)], ("layers",), workload="wan2-1-ci-tiny").failures == ()


def test_bootstrap_links_a_local_model(tmp_path: Path) -> None:
    """The script links the directory that either variable names, and refuses one without config.json."""
    script = tmp_path / "bootstrap.sh"
    script.write_bytes((REPOSITORY / "models" / "wan2.1-t2v-14b" / "bootstrap.sh").read_bytes())
    model = tmp_path / "root" / "Wan2.1-T2V-14B"
    model.mkdir(parents=True)

    def bootstrap(**variables: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], **variables}
        return subprocess.run(["bash", str(script)], capture_output=True, text=True, env=environment)

    assert bootstrap().returncode == 2
    assert "no config.json" in bootstrap(WAN21_T2V_14B_PATH=str(model)).stderr
    (model / "config.json").write_text(json.dumps({"dim": 256, "num_heads": 2, "num_layers": 2, "ffn_dim": 512}))
    for variables in ({"WAN21_T2V_14B_PATH": str(model)}, {"LLM_MODELS_ROOT": str(model.parent)}):
        assert bootstrap(**variables).returncode == 0
        assert (tmp_path / "source-data").resolve() == model.resolve()
    overrides = local_overrides(tmp_path / "source-data")
    assert len(overrides) == 4
    model_here = mm.load("wan2.1-t2v-14b", *overrides)
    assert verify([model_here], ("layers",), workload="wan2-1-ci-tiny").failures == ()


# -- what must fail ----------------------------------------------------------------------------------------------


@contextmanager
def off_by_one_percent() -> Iterator[None]:
    """Attention of the transformer costs 1 % more than it should."""
    attention = functional.scaled_dot_product_attention
    launch = products.launch

    def more(name: str, *args: Any, flops: Any = 0, **kwargs: Any) -> Any:
        return launch(name, *args, flops=flops + flops // 100 if "flash" in name else flops, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "launch", more)
        yield
    assert functional.scaled_dot_product_attention is attention


#: A width at which the FLOPs of attention divide by 100.
HUNDREDS = [*SMALL, "transformer.dim=200"]


def test_a_formula_off_by_one_percent_fails_unless_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    """1 % off fails by default, naming the node, and passes within the budget that was asked for, which is said."""
    arguments = ["verify", "layers", *HUNDREDS, "-m", "wan2.1-t2v-1.3b", "-w", "wan2-1-ci-tiny"]
    with off_by_one_percent():
        assert run(*arguments) == 1
        assert "transformer.blocks.0.attn1: flops" in capsys.readouterr().out
        assert run(*arguments, "--accept-rel-diff", "0.05") == 0
        assert "(accepted: within 0.05)" in capsys.readouterr().out
        assert run(*arguments, "--accept-rel-diff", "0.0001") == 1


def test_failing_fast_stops_before_the_next_forward() -> None:
    """The forward that fails yields all its rows; the next workload is not measured."""
    with off_by_one_percent():
        result = verify([mm.load("wan2.1-t2v-1.3b", *HUNDREDS)], ("layers",))
    assert {row.workload for row in result.rows} == {"wan2-1-ci-tiny"}
    assert result.checks[-1].failures
    assert not any(check.failures for check in result.checks[:-1])
    assert len(result.checks[-1].rows) > 20


def test_uncounted_cpu_attention_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Left to its default kernel, attention on the CPU is uncounted: that is named and fails."""
    monkeypatch.setattr(devices, "attention_as_matrix_products", nullcontext)
    result = verify_small(device="cpu")
    uncounted = [op for check in result.checks for op in check.uncounted_ops]
    assert any("_scaled_dot_product_flash_attention_for_cpu" in op for op in uncounted)


def test_too_little_memory_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that cannot fit is refused before anything is allocated: status 3 and one line."""
    monkeypatch.setattr(devices, "_available", lambda _: 10**9)
    assert run("verify", "layers", "-m", "wan2.1-t2v-14b", "-w", "wan2-1-ci-tiny", "--device", "cpu") == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "GB of memory" in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_an_absent_device_is_unavailable(capsys: pytest.CaptureFixture[str]) -> None:
    """A valid device that is not there ends with status 3, another word with status 2."""
    for device in ("cuda", "cuda:0", "cuda:9999"):
        assert run("verify", "layers", "-m", "wan2.1-t2v-1.3b", "--device", device) == 3
        assert capsys.readouterr().err.count("\n") == 1
    assert run("verify", "layers", "-m", "wan2.1-t2v-1.3b", "--device", "gpu") == 2


def test_a_module_that_is_never_called_breaks_a_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """A configured module that holds weights and does not run is found without PyTorch."""
    init = Wan2_1DiTModel.__init__

    def with_idle(self: Any, **arguments: Any) -> None:
        init(self, **arguments)
        self.spare = Linear(8, 8)

    monkeypatch.setattr(Wan2_1DiTModel, "__init__", with_idle)
    result = verify([mm.load("wan2.1-t2v-1.3b", *SMALL)], ("core",), workload="wan2-1-512p")
    assert any("transformer.spare: has 72 parameters and is never called" in line for line in result.failures)


@pytest.mark.parametrize("place", ["forward", "count"])
def test_counting_again_after_an_exception(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an exception in the middle of a run, on meta and on the CPU, the same process counts the same integers."""
    before = verify_small("layers", device="cpu").rows
    hooks = len(torch.nn.modules.module._global_forward_pre_hooks)
    with pytest.MonkeyPatch.context() as patch:
        if place == "forward":
            patch.setattr(torch.nn.functional, "gelu", None)
        else:
            patch.setattr(reference, "parameters", None)
        for device in ("meta", "cpu"):
            with pytest.raises(TypeError):
                verify_small("layers", device=device)
    assert verify_small("layers", device="cpu").rows == before
    assert verify_small("layers").rows == before
    assert torch.is_grad_enabled()
    assert torch.get_default_device() == torch.device("cpu")
    assert len(torch.nn.modules.module._global_forward_pre_hooks) == hooks
    assert torch.backends.cuda.flash_sdp_enabled()
