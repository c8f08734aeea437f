"""``decode`` and ``encode`` of the official VAE on shapes, on the modules and weights of diffusers' class.

The layers are the same. Latents are scaled and shifted inside, the scaled ones live as long as the call, and pixels
are held to their range in place.

Source: Wan2.1 ``wan/modules/vae.py`` at 9737cba, Wan2.2 ``wan/modules/vae2_1.py`` and ``vae2_2.py`` at 42bf4cf.
"""

from __future__ import annotations

from typing import Any

from modelmeter.models.common.vae import AutoencoderKLWan
from modelmeter.models.common.vae_layers import Features
from modelmeter.models.common.vae_parts import Decode, Encode, unpatchify
from modelmeter.nn import Buffer, Tensor, resident, resident_cache


class OfficialDecode(Decode):
    """Latents to pixels; the scaled latents live as long as the call."""

    def latents(self, z: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        z = z / _by_channel(z) + _by_channel(z)
        return z, self.post_quant_conv(z)

    def first_chunk(self, source: Tensor) -> tuple[Tensor, Features]:
        _z = resident(source)
        return super().first_chunk(source)

    def later_chunk(self, source: Tensor, video: Tensor, chunk: Tensor | None, features: Features) -> Any:
        _z = resident(source)
        return super().later_chunk(source, video, chunk, features)

    def video(self, source: Tensor, video: Tensor, chunk: Tensor | None, features: Features) -> Tensor:
        video = self.joined(source, video, chunk, features)
        video.clamp_(-1.0, 1.0)
        return video

    def joined(self, source: Tensor, video: Tensor, chunk: Tensor | None, features: Features) -> Tensor:
        """What the model returns; all else is freed after it."""
        source, _z = self.held(source), resident(source)
        video, features = resident(video), resident_cache(features)
        chunk = None if chunk is None else resident(chunk)
        return video if self.patch_size == 1 else unpatchify(video, self.patch_size)


class OfficialEncode(Encode):
    """Pixels to means of latents, shifted and scaled."""

    def moments(  # type: ignore[override]
        self, source: Tensor, video: Tensor, chunk: Tensor | None, features: Features
    ) -> Tensor:
        source, video, features = self.held(source), resident(video), resident_cache(features)
        chunk = None if chunk is None else resident(chunk)
        mu, _log_var = self.quant_conv(video).chunk(2, dim=1)
        mu = (mu - _by_channel(mu)) * _by_channel(mu)
        return mu


def _by_channel(latents: Tensor) -> Tensor:
    """Mean or inverse deviation of every channel: [1, C, 1, 1, 1]."""
    return Buffer((1, latents.shape[1], 1, 1, 1), latents.dtype)


class WanVAE(AutoencoderKLWan):
    """The VAE as the official code runs it; of Wan2.1 with a ``flat`` decoder.

    Example:
        >>> WanVAE().params, WanVAE().entry("decode").params
        (126892531, 73295603)
    """

    decode_class = OfficialDecode
    encode_class = OfficialEncode
