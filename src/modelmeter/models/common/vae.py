"""The video VAE of Wan2.1 and Wan2.2, as diffusers' ``AutoencoderKLWan``, and the calls that a pipeline makes of it."""

from __future__ import annotations

from collections.abc import Sequence

from modelmeter.models.common.vae_blocks import WanDecoder3d, WanEncoder3d
from modelmeter.models.common.vae_layers import conv_1
from modelmeter.models.common.vae_parts import Decode, Encode
from modelmeter.models.common.vae_tile_parts import Tiles
from modelmeter.stage import Call, Component, Forward


class AutoencoderKLWan(Component):
    """The VAE: ``entry("decode")`` and ``entry("encode")`` give what a pipeline calls, further labels its parts.

    Args:
        base_dim, decoder_base_dim: channels of the first level of the encoder, and of the last of the decoder.
        z_dim: channels of the latents.
        dim_mult: channels by level of the encoder, as multiples.
        num_res_blocks: residual blocks of a level of the encoder; the decoder has one more.
        attn_scales: levels of the encoder with attention, which the reference has but cannot run.
        temperal_downsample: for each level of the encoder but the last whether it halves the frames.
        dropout: none in inference.
        is_residual: the levels of Wan2.2.
        in_channels, out_channels: channels of a frame, patches included.
        patch_size: rows and columns of pixels that are taken as channels.
        flat: the levels of a decoder that is not residual are one list of layers, as in the official class.
        scale_factor_temporal, scale_factor_spatial: what tiling and pipelines take as the strides.

    Example:
        >>> AutoencoderKLWan().params, AutoencoderKLWan().entry("decode").params
        (126892531, 73295603)
    """

    #: Classes of what another implementation runs differently.
    decode_class: type[Decode] = Decode
    encode_class: type[Encode] = Encode

    def __init__(
        self,
        *,
        base_dim: int = 96,
        decoder_base_dim: int | None = None,
        z_dim: int = 16,
        dim_mult: Sequence[int] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        attn_scales: Sequence[float] = (),
        temperal_downsample: Sequence[bool] = (False, True, True),
        dropout: float = 0.0,
        is_residual: bool = False,
        in_channels: int = 3,
        out_channels: int = 3,
        patch_size: int | None = None,
        scale_factor_temporal: int = 4,
        scale_factor_spatial: int = 8,
        flat: bool = False,
    ) -> None:
        self.patch_size = patch_size
        self.stride = 2 ** (len(dim_mult) - 1) * (patch_size or 1)
        self.encoder = WanEncoder3d(
            in_channels,
            base_dim,
            z_dim * 2,
            dim_mult,
            num_res_blocks,
            attn_scales,
            temperal_downsample,
            is_residual=is_residual,
        )
        self.quant_conv = conv_1(z_dim * 2, z_dim * 2)
        self.post_quant_conv = conv_1(z_dim, z_dim)
        self.decoder = WanDecoder3d(
            base_dim if decoder_base_dim is None else decoder_base_dim,
            z_dim,
            dim_mult,
            num_res_blocks,
            temperal_downsample[::-1],
            out_channels,
            is_residual=is_residual,
            flat=flat,
        )
        decode = self.decode_class(self.post_quant_conv, self.decoder, self.patch_size)
        encode = self.encode_class(self.encoder, self.quant_conv, self.patch_size, self.stride)
        self.parts = {
            **decode.parts("decode"),
            **encode.parts("encode"),
            **Tiles(decode).parts("decode"),
            **Tiles(encode).parts("encode"),
        }

    def entry(self, label: str) -> Component:
        """``decode`` or ``encode`` as a whole, or one of the parts that :func:`decode_call` and its like name.

        Raises:
            KeyError: no part has that name.
        """
        return self.parts[label]


def decode_call(batch: int, frames: int, rows: int, columns: int, times: int) -> Call:
    """``decode`` of latents, ``times`` times: sizes are those of the latents.

    Example:
        >>> call = decode_call(1, 21, 60, 104, 1)
        >>> [(forward.label, forward.times) for forward in call.forwards][1:4]
        [('decode first chunk', 1), ('decode second chunk', 1), ('decode later chunk', 19)]
    """
    dims = {"batch": batch, "frames": frames, "rows": rows, "columns": columns}
    forwards = (
        Forward(dims=dims, label="decode latents"),
        *_chunks("decode", dims),
        Forward(dims=dims, label="decode video"),
    )
    return Call(forwards=forwards, times=times, dims=dims)


def encode_call(batch: int, frames: int, rows: int, columns: int, times: int) -> Call:
    """``encode`` of a video of 1 + 4 (frames - 1) frames, ``times`` times: sizes are those of the latents.

    Example:
        >>> [forward.label for forward in encode_call(1, 1, 60, 104, 1).forwards]
        ['encode first chunk', 'encode moments']
    """
    dims = {"batch": batch, "frames": frames, "rows": rows, "columns": columns}
    return Call(forwards=(*_chunks("encode", dims), Forward(dims=dims, label="encode moments")), times=times, dims=dims)


def _chunks(name: str, dims: dict[str, int]) -> list[Forward]:
    """The chunks of a call; those alike are traced as the last of them, when the most is alive."""
    frames = dims["frames"]
    chunks = [Forward(dims=dims, label=f"{name} first chunk")]
    if frames > 1:
        chunks.append(Forward(dims=dims, label=f"{name} second chunk"))
    if frames > 2:
        first, last = dims | {"done": 2}, dims | {"done": frames - 1}
        chunks.append(Forward(dims=last, first=first, times=frames - 2, label=f"{name} later chunk"))
    return chunks
