"""Ring 4: our transformer against the allocation tracker on diffusers' real class, kernel by kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from diffusers import WanTransformer3DModel

from modelmeter import nn
from modelmeter.models.wan2_1.transformer import KEEP_IN_FP32, Wan2_1DiTModel
from modelmeter.verify.allocations import Tracked, keep_in_fp32, track

T2V_1_3B = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30}
T2V_14B = {"num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824, "num_layers": 40}
TEXT = (512, 4096)


class Latents(NamedTuple):
    """Batch, latent frames, latent rows, latent columns."""

    batch: int
    frames: int
    rows: int
    columns: int

    @property
    def shape(self) -> tuple[int, ...]:
        """[B, C, T, h, w]."""
        return (self.batch, 16, self.frames, self.rows, self.columns)


VIDEO_480P = Latents(1, 21, 60, 104)
VIDEO_720P = Latents(1, 21, 90, 160)
WORKLOADS = {
    "480p": VIDEO_480P,
    "720p": VIDEO_720P,
    "batch 2": VIDEO_480P._replace(batch=2),
    "one frame": VIDEO_480P._replace(frames=1),
}


class Row(NamedTuple):
    """What a kernel is compared by; live bytes are those above weights and inputs."""

    name: str
    path: str
    live: int
    bytes_read: int
    bytes_written: int


def theirs(config: dict[str, int], latents: Latents, dtype: torch.dtype) -> Tracked:
    """The real class on meta."""
    with torch.device("meta"):
        model = WanTransformer3DModel(**config)
        keep_in_fp32(model, dtype)
        return track(
            model,
            torch.empty(latents.shape, dtype=dtype),
            torch.empty(latents.batch, dtype=torch.int64),
            torch.empty(latents.batch, *TEXT, dtype=dtype),
            return_dict=False,
        )


def ours(config: dict[str, int], latents: Latents, dtype: nn.DType, *, memo: bool = True) -> list[Row]:
    """Our model on shapes, its record unrolled."""
    model = Wan2_1DiTModel(**config)
    model.to(dtype, keep_in_fp32=KEEP_IN_FP32)
    record = nn.trace(
        model,
        nn.Tensor(latents.shape, dtype),
        nn.Tensor((latents.batch,), nn.int64),
        nn.Tensor((latents.batch, *TEXT), dtype),
        memo=memo,
    )
    return list(unrolled(record.body, "", 0))


def unrolled(body: nn.Body, path: str, live: int) -> Iterator[Row]:
    """Every kernel of a call, in the order they run."""
    for item in body.items:
        if isinstance(item, nn.Op):
            yield Row(item.name, path, live + item.live, item.bytes_read, item.bytes_written)
        else:
            yield from unrolled(item.body, f"{path}.{item.name}" if path else item.name, live + item.live)


def rows(tracked: Tracked) -> list[Row]:
    """The tracked kernels, by what they are compared by."""
    return [Row(k.name, k.path, k.live, k.bytes_read, k.bytes_written) for k in tracked.kernels]


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize("latents", WORKLOADS.values(), ids=WORKLOADS)
@pytest.mark.parametrize("config", [T2V_1_3B, T2V_14B], ids=["1.3B", "14B"])
def test_every_kernel_is_that_of_the_real_class(config: dict[str, int], latents: Latents, precision: str) -> None:
    """Name, module, live bytes, bytes read and written of each kernel of two layers are the real ones."""
    two_layers = config | {"num_layers": 2}
    expected = rows(theirs(two_layers, latents, getattr(torch, precision)))
    assert len(expected) > 100
    assert ours(two_layers, latents, getattr(nn, precision)) == expected


@pytest.mark.parametrize(
    ("config", "latents", "peak"),
    [
        pytest.param(T2V_1_3B, VIDEO_480P, 1_611_850_752, id="1.3B-480p"),
        pytest.param(T2V_1_3B, VIDEO_720P, 3_717_522_432, id="1.3B-720p"),
        pytest.param(T2V_14B, VIDEO_480P, 3_729_070_080, id="14B-480p"),
        pytest.param(T2V_14B, VIDEO_720P, 8_598_435_840, id="14B-720p"),
    ],
)
def test_the_peak_of_a_full_forward_is_that_of_the_real_class(
    config: dict[str, int], latents: Latents, peak: int
) -> None:
    """At full depth every kernel agrees, and the peak is the one measured on diffusers 0.42 with torch 2.13."""
    tracked = theirs(config, latents, torch.bfloat16)
    assert tracked.peak_bytes == peak
    kernels = ours(config, latents, nn.bfloat16)
    assert max(kernel.live for kernel in kernels) == peak
    assert kernels == rows(tracked)
    assert tracked.live_bytes == 2 * 16 * latents.frames * latents.rows * latents.columns


def test_sharing_equal_calls_changes_no_kernel() -> None:
    """With and without the memo the record reads the same."""
    config = T2V_1_3B | {"num_layers": 3}
    assert ours(config, VIDEO_480P, nn.bfloat16, memo=True) == ours(config, VIDEO_480P, nn.bfloat16, memo=False)
