"""What fits on a device: options, headroom, reach, and exit statuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import modelmeter as mm
from modelmeter.cli import main
from modelmeter.devices import Device, find_device
from modelmeter.errors import InputError
from modelmeter.fit import RESERVE_BYTES, Fit, fit

SMALL = "wan2.1-t2v-1.3b"
GIB = 2**30


def card(gib: float) -> Device:
    """A device with so much memory."""
    return Device(name="card", memory_bytes=int(gib * GIB))


def found(gib: float, *words: str) -> Fit:
    """For the small model under diffusers, at 480x832 with 81 frames."""
    return fit(mm.load(SMALL, "implementation=diffusers", *words), card(gib))


def ended(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error."""
    with pytest.raises(SystemExit) as error:
        main(["fit", *arguments])
    assert isinstance(error.value.code, int)
    said = capsys.readouterr()
    return error.value.code, said.out, said.err


def test_headroom_is_memory_less_reserve_less_peak() -> None:
    """An option fits exactly where its peak is at most the memory of the device less the stated reserve."""
    words = "precision=bf16", "offload=component", "vae_tiling=false", "text_encoder_device=cuda"
    (option,) = found(24, *words).options
    assert option.headroom_bytes == 24 * GIB - RESERVE_BYTES - option.memory.peak_bytes > 0
    brim = (option.memory.peak_bytes + RESERVE_BYTES) / GIB
    exact = Device(name="card", memory_bytes=option.memory.peak_bytes + RESERVE_BYTES)
    short = Device(name="card", memory_bytes=option.memory.peak_bytes + RESERVE_BYTES - 1)
    model = mm.load(SMALL, "implementation=diffusers", *words)
    assert fit(model, exact).options[0].headroom_bytes == 0
    assert fit(model, exact).fitting
    assert not fit(model, short).fitting
    assert brim > 1


def test_an_option_is_what_an_estimate_says() -> None:
    """The peak of every option is that of an estimate with its keys."""
    for option in found(24).options[::5]:
        policy = option.policy
        keys = ("precision", "offload", "text_encoder_device")
        words = [f"{key}={getattr(policy, key)}" for key in keys]
        words.append(f"vae_tiling={str(option.vae_tiling).lower()}")
        estimate = mm.load(SMALL, "implementation=diffusers", *words).estimate()
        assert option.memory.peak_bytes == estimate.memory.peak_bytes
        assert option.memory.host_bytes == estimate.memory.host_bytes


def test_what_the_user_sets_stays() -> None:
    """Keys that are set are not varied; the others are."""
    options = found(24, "precision=q6_k", "offload=block").options
    assert {(option.policy.precision, option.policy.offload) for option in options} == {("q6_k", "block")}
    assert {option.vae_tiling for option in options} == {False, True}
    assert {option.policy.text_encoder_device for option in options} == {"cuda", "cpu"}


def test_the_loaded_precision_comes_first() -> None:
    """Official weights are tried in float32 before anything else, those of diffusers in bfloat16."""
    assert fit(mm.load(SMALL), card(24)).options[0].policy.precision == "fp32"
    assert found(24).options[0].policy.precision == "bf16"


def test_more_memory_never_loses_an_option() -> None:
    """What fits on a smaller device fits on a larger one."""
    sizes = (6, 9, 12, 16, 24, 48)
    counts = [len(found(gib).fitting) for gib in sizes]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] == len(found(48).options)


def test_worthwhile_options_need_less_and_less() -> None:
    """Within a precision every listed option needs less than those before it."""
    result = found(48)
    for precision in {option.policy.precision for option in result.options}:
        peaks = [option.memory.peak_bytes for option in result.worthwhile if option.policy.precision == precision]
        assert peaks == sorted(peaks, reverse=True)
        assert len(set(peaks)) == len(peaks) >= 1
    assert set(map(id, result.worthwhile)) <= set(map(id, result.fitting))


def test_reach_is_the_last_that_fits() -> None:
    """One latent frame more, or one step of height more, no longer fits; what is told does."""
    words = "implementation=diffusers", "precision=bf16", "offload=component", "vae_tiling=false"
    model = mm.load(SMALL, *words, "text_encoder_device=cpu")
    device = card(12)
    ((option, reach),) = fit(model, device).best
    usable = 12 * GIB - RESERVE_BYTES

    def peak(**keys: int) -> int:
        return model.estimate(**keys).memory.peak_bytes

    assert reach.num_frames > 81
    assert peak(num_frames=reach.num_frames) <= usable < peak(num_frames=reach.num_frames + 4)
    assert reach.height > 480
    assert (reach.height % 16, reach.width % 16) == (0, 0)
    assert reach.width == pytest.approx(reach.height * 832 / 480, abs=8)
    assert peak(height=reach.height, width=reach.width) <= usable
    taller = reach.height + 16
    assert peak(height=taller, width=round(taller // 16 * 832 / 480) * 16) > usable
    assert option.fits


def test_reach_stops_at_what_the_model_can_run() -> None:
    """With memory to spare the most frames are those that the table of positions has: 1024 latent frames."""
    ((_, reach),) = fit(mm.load(SMALL, "precision=bf16", "offload=none"), card(10_000)).best
    assert reach.num_frames == 1 + 4 * 1023


def test_exit_status_says_whether_it_fits(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """0 where a policy fits and 1 where none does; the document says the same in either case."""
    path = tmp_path / "fit.json"
    code, _, _ = ended(capsys, SMALL, "--device", "4090", "precision=bf16", "--format", "json", "-o", str(path))
    document = json.loads(path.read_text(encoding="utf-8"))
    assert code == 0
    assert document["fits"] is True
    assert document["device"] == "rtx-4090"
    assert {option["fits"] for option in document["options"]} == {True}
    code, out, err = ended(
        capsys, "wan2.1-t2v-14b", "--device", "rtx-4080", "precision=fp32", "offload=none", "--format", "json"
    )
    assert (code, err) == (1, "")
    document = json.loads(out)
    assert (document["fits"], document["best"]) == (False, [])
    assert max(option["headroom_bytes"] for option in document["options"]) < 0


def test_gpus_share_the_weights(capsys: pytest.CaptureFixture[str]) -> None:
    """``--gpus 8`` is ``gpus=8``: an eighth of the sharded weights is on each device."""
    _, out, _ = ended(capsys, SMALL, "--device", "h100", "--gpus", "8", "--format", "json", "precision=bf16")
    options = json.loads(out)["options"]
    assert {option["policy"]["gpus"] for option in options} == {8}
    assert "block" not in {option["policy"]["offload"] for option in options}
    one = mm.load(SMALL, "precision=bf16").estimate().memory.peak_bytes
    assert options[0]["peak_bytes"] < one


def test_the_table_tells_what_fits_and_what_not(capsys: pytest.CaptureFixture[str]) -> None:
    """The reserve, the headroom of what fits, how far it goes, and how much the nearest of the rest lacks."""
    code, out, _ = ended(capsys, SMALL, "--device", "rtx-4080", "implementation=diffusers")
    assert code == 0
    assert "usable 15.00 GiB = 16.00 GiB less 1.00 GiB" in out
    assert "do not fit; nearest: " in out
    assert "most frames" in out


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((SMALL, "--device", "voodoo"), "device="),
        ((SMALL, "--device", "tpu-v7x"), "device="),
        ((SMALL, "--device", "4090", "--gpus", "0"), "gpus="),
        ((SMALL, "--device", "4090", "offload=disk"), "offload="),
        ((SMALL, "--device", "4090", "-w", "nothing"), "workload="),
        ((SMALL, "--device", "4090", "height=481"), "height="),
    ],
)
def test_bad_input_is_status_2(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], field: str) -> None:
    """An unknown device, one without a memory size, and bad keys are one line on standard error."""
    code, out, err = ended(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"modelmeter: {field}")
    assert err.count("\n") == 1


def test_memory_that_is_not_known_is_refused() -> None:
    """A device without a memory size answers nothing."""
    with pytest.raises(InputError, match="^device="):
        fit(mm.load(SMALL), find_device("tpu-v7x"))


def test_what_is_not_modelled_is_told() -> None:
    """A model of which components are left out fits with a warning that more is needed."""
    model = mm.load("ltx-video-2b", "precision=bf16")
    assert model.estimate().plan.not_modelled
    assert any("not modelled are text_encoder" in line for line in fit(model, card(24)).warnings)
    assert not any("not modelled" in line for line in found(24, "precision=bf16").warnings)
