"""What devices sustain: which kernel runs where, and where each rate comes from."""

from __future__ import annotations

import pytest

from modelmeter.devices import Device, devices, find_device
from modelmeter.errors import InputError
from modelmeter.rates import attention_kernels, constants, entries, runs_on, sustained


def test_every_constant_has_a_source() -> None:
    """No constant and no attention kernel stands without the reason for its value."""
    for name, entry in [*entries()["constants"].items(), *entries()["attention"].items()]:
        assert entry["source"], name


def test_devices_of_the_constants_exist() -> None:
    """Every device that a constant names is a shipped one."""
    names = {device.name for device in devices()}
    named = {name.partition(".")[2] for name in constants() if "." in name} - {"of_chart"}
    chips = {word for pair in entries()["same_chip"].items() for word in pair}
    assert named | chips | set(entries()["validated_devices"]) <= names
    assert named


@pytest.mark.parametrize(
    ("kernel", "device"),
    [("fa3", "a100"), ("fa3", "4090"), ("fa3", "b200")]
    + [(kernel, device) for kernel in ("fa2", "fa3", "cudnn", "sage2") for device in ("mi300x", "mi355x")],
)
def test_kernels_are_refused_where_they_cannot_run(kernel: str, device: str) -> None:
    """FlashAttention-3 off Hopper and CUDA kernels on AMD end with one line that names those that run."""
    with pytest.raises(InputError, match=f"attention={kernel}: .*runs on") as error:
        sustained(find_device(device), kernel)
    assert "\n" not in str(error.value)


def test_an_unknown_kernel_is_refused_with_the_nearest() -> None:
    """A mistyped kernel is answered with one that exists."""
    with pytest.raises(InputError, match="fa3"):
        sustained(find_device("h100"), "fa4")


def test_a_device_that_lacks_a_figure_is_refused() -> None:
    """Without a bandwidth or a bf16 peak there is no answer, and the line says which."""
    with pytest.raises(InputError, match="memory bandwidth"):
        sustained(Device(name="mine", peak_flops={"bf16": 1e12}))
    with pytest.raises(InputError, match="bf16 peak"):
        sustained(Device(name="mine", memory_bandwidth=1e12))


def test_every_device_answers_with_every_kernel_that_runs_on_it() -> None:
    """Rates are above zero and about the peak at most: cards boost above the clock of their datasheet."""
    answered = 0
    for device in devices():
        if device.memory_bandwidth is None:
            continue
        for kernel in attention_kernels():
            if runs_on(kernel, device):
                found = sustained(device, kernel)
                limit = (4 if kernel == "sage2" else 1.1) * device.peak_flops["bf16"]
                assert 0 < found.rates.compute["attention:bfloat16"] <= limit, (device.name, kernel)
                assert 0 < found.rates.compute["linear:bfloat16"] < device.peak_flops["bf16"]
                assert set(found.origins) == set(found.rates.compute)
                answered += 1
    assert answered > 60


def test_a_rate_without_a_measurement_says_so() -> None:
    """A kernel that no chart has for the device is estimated from the peak, and named."""
    assert not sustained(find_device("h100"), "fa2").estimated
    (line,) = sustained(find_device("l40s"), "fa2").estimated
    assert "l40s" in line


def test_the_same_chip_runs_at_the_same_rates() -> None:
    """H200 and H800 take the kernels of the H100, their own bandwidth."""
    h100, h200 = sustained(find_device("h100"), "fa3"), sustained(find_device("h200"), "fa3")
    assert h100.rates.compute == h200.rates.compute
    assert h100.rates.bandwidth < h200.rates.bandwidth


def test_published_constants_are_those_without_a_wan_run() -> None:
    """The second set leaves out what only Wan runs tell, so that other sources or peaks decide."""
    assert set(constants("published")) < set(constants())
    assert constants("published")["fa3.h100-80gb-sxm"] == 648  # FlashAttention-3 paper, 16K tokens, head_dim 128
