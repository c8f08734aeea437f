"""Devices: what is shipped, how it is found, and files of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelmeter.devices import LARGEST_FILE, devices, find_device, read_device
from modelmeter.errors import InputError


def test_shipped_devices_state_their_sources() -> None:
    """Every shipped device has a name of its own, a peak in bf16 or fp16 and at least one source."""
    found = devices()
    assert len(found) >= 28
    assert len({device.name for device in found}) == len(found)
    for device in found:
        assert device.sources, device.name
        assert device.peak_flops.get("bf16") or device.peak_flops.get("fp16"), device.name
        assert device.name == device.name.lower()


def test_units_are_si_inside() -> None:
    """The H100 SXM holds 80 GiB, and its rates are FLOP and bytes per second (NVIDIA's H100 datasheet)."""
    h100 = find_device("h100")
    assert h100.memory_bytes == 80 * 2**30
    assert h100.peak_flops["bf16"] == pytest.approx(989.4e12)
    assert h100.memory_bandwidth == pytest.approx(3.35e12)
    assert (h100.link_bandwidth, h100.host_bandwidth) == (450e9, 64e9)
    assert h100.attention_flops["FlashAttention2"][32768] == pytest.approx(339e12)


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("h100", "h100-80gb-sxm"),
        ("h20", "h20-96gb-sxm"),
        ("h200", "h200-141gb-sxm"),
        ("A100", "a100-80gb-sxm"),
        ("a800", "a800-80gb-sxm"),
        ("b200", "b200-hgx"),
        ("4090", "rtx-4090"),
        ("rtx-4090", "rtx-4090"),
        ("rtx-4090d", "rtx-4090d"),
        ("RTX-5", "rtx-5090"),
        ("h100-80gb-p", "h100-80gb-pcie"),
        ("l40", "l40s-48gb"),
    ],
)
def test_a_device_is_found_by_name_alias_or_unique_prefix(word: str, name: str) -> None:
    """A short word means the SXM part with the largest memory; a prefix means the one device that it begins."""
    assert find_device(word).name == name


def test_an_alias_means_one_device() -> None:
    """No alias is shared, and none is the name of another device."""
    words = [word for device in devices() for word in (device.name, *device.aliases)]
    assert len(set(words)) == len(words)


@pytest.mark.parametrize("word", ["", "h", "rtx", "voodoo2", "rtx 4090", "../rtx-4090"])
def test_an_unknown_or_ambiguous_word_is_refused(word: str) -> None:
    """A word that names no device, or several, is refused with the names there are."""
    with pytest.raises(InputError, match="^device="):
        find_device(word)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    """A file with a name and a memory size is a device; what it leaves out is not known."""
    path = tmp_path / "card.yaml"
    path.write_text("name: My-Card\nmemory_gb: 16\npeak_dense_tflops: {bf16: 100}\n", encoding="utf-8")
    card = find_device(str(path))
    assert (card.name, card.memory_bytes, card.peak_flops) == ("my-card", 16 * 2**30, {"bf16": 100e12})
    assert card.memory_bandwidth is None


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "device="),
        ("[1, 2]", "device="),
        ("name: [", "device="),
        ("name: a\nname_: b", "nearest: name"),
        ("memory_gb: 4", "name="),
        ("name: a", "memory_gb="),
        ("name: a\nmemory_gb: -1", "memory_gb="),
        ("name: a\nmemory_gb: .inf", "memory_gb="),
        ("name: a\nmemory_gb: .nan", "memory_gb="),
        ("name: a\nmemory_gb: true", "memory_gb="),
        ("name: a\nmemory_gb: " + "9" * 400, "memory_gb="),
        ("name: 3\nmemory_gb: 4", "name="),
        ("name: a\nmemory_gb: 4\nverified: 1", "verified="),
        ("name: a\nmemory_gb: 4\nsources: x", "sources="),
        ("name: a\nmemory_gb: 4\ninterconnect: x", "interconnect="),
        ("name: a\nmemory_gb: 4\npeak_dense_tflops: {fp13: 1}", "nearest: fp16|peak_dense_tflops=fp13"),
        ("name: a\nmemory_gb: 4\nattention_kernel_tflops: {tokens: {fa2: {1K: 3}}}", "attention_kernel_tflops.fa2="),
        ("aliases: &x [a]\nsources: *x\nname: a\nmemory_gb: 4", "without aliases"),
        ("name: !!python/object/apply:os.system [ls]", "device="),
        ("name: a\nmemory_gb: 4\n1: 2", "key in"),
        ("a: " + "[" * 5000, "device="),
        ("#" * (LARGEST_FILE + 1), "65,536 bytes"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, named: str) -> None:
    """A stranger's file that says nothing, too much or nonsense is refused with the key at fault."""
    path = tmp_path / "card.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=named) as error:
        read_device(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 900


@pytest.mark.parametrize("name", ["absent.yaml", "folder.yaml", "nul\0.yaml", "binary.yaml"])
def test_what_is_no_text_file_is_refused(tmp_path: Path, name: str) -> None:
    """A file that is absent, a directory, impossible or no text is bad input."""
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(InputError, match="^device="):
        find_device(str(tmp_path / name))
