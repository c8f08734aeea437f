"""How the transformer of Wan2.2 S2V takes the audio in, on shapes.

Source: Wan2.2 ``wan/modules/s2v/auxi_blocks.py`` and ``wan/modules/s2v/audio_utils.py`` at 42bf4cf; ``AdaLayerNorm``
is that of diffusers 0.42 (``models/normalization.py``).

Shapes: A frames of audio features (the video's and those before it), T latent frames, N tokens a frame, D width.
"""

from __future__ import annotations

from modelmeter.models.common.layers import FP32LayerNorm
from modelmeter.models.wan2_1.official import LayerNorm
from modelmeter.models.wan2_2.s2v_blocks import WanCrossAttention
from modelmeter.nn import (
    Conv1d,
    Linear,
    Module,
    ModuleList,
    Parameter,
    SiLU,
    Tensor,
    autocast,
    float32,
    functional,
)

#: Hidden states of the audio encoder of which a weighted mean is taken. Source: ``CausalAudioEncoder.num_layers``.
AUDIO_LAYERS = 25


class CausalConv1d(Module):
    """A convolution that looks back only, the first column repeated before: [B, C, A] -> [B, C', A']."""

    def __init__(self, chan_in: int, chan_out: int, kernel_size: int = 3, *, stride: int = 1) -> None:
        self.time_causal_padding = (kernel_size - 1, 0)
        self.conv = Conv1d(chan_in, chan_out, kernel_size, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.replication_pad1d(x, self.time_causal_padding)
        return self.conv(x)


class MotionEncoder_tc(Module):  # noqa: N801 - the name is the reference's
    """Audio features to tokens of every fourth frame: [1, A, C] -> global [1, A', 1, D], local [1, A', H + 1, D]."""

    def __init__(self, in_dim: int, hidden_dim: int, num_heads: int) -> None:
        self.num_heads = num_heads
        self.conv1_local = CausalConv1d(in_dim, hidden_dim // 4 * num_heads)
        self.conv1_global = CausalConv1d(in_dim, hidden_dim // 4)
        self.norm1 = LayerNorm(hidden_dim // 4, elementwise_affine=False)
        self.act = SiLU()
        self.conv2 = CausalConv1d(hidden_dim // 4, hidden_dim // 2, stride=2)
        self.conv3 = CausalConv1d(hidden_dim // 2, hidden_dim, stride=2)
        self.final_linear = Linear(hidden_dim, hidden_dim)
        self.norm2 = LayerNorm(hidden_dim // 2, elementwise_affine=False)
        self.norm3 = LayerNorm(hidden_dim, elementwise_affine=False)
        self.padding_tokens = Parameter((1, 1, 1, hidden_dim), float32)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.transpose(1, 2)
        x_ori = x.clone()
        x = self.conv1_local(x)
        x = x.view(self.num_heads, -1, x.shape[2]).transpose(1, 2)
        x = self.shrunk(x)
        x = x.transpose(0, 1).unsqueeze(0)
        padding = self.padding_tokens.repeat(1, x.shape[1], 1, 1)
        x = functional.cat([x, padding.float()], dim=-2)  # autocast brings both to one dtype
        x_local = x.clone()

        x = self.conv1_global(x_ori)
        x = x.transpose(1, 2)
        x = self.shrunk(x)
        x = self.final_linear(x)
        x = x.unsqueeze(2)
        return x, x_local

    def shrunk(self, x: Tensor) -> Tensor:
        """What follows the first convolution, on both ways: [H, A, D / 4] -> [H, A', D]."""
        x = self.norm1(x)
        x = self.act(x)
        x = x.transpose(1, 2)
        x = self.conv2(x)
        x = x.transpose(1, 2)
        x = self.norm2(x)
        x = self.act(x)
        x = x.transpose(1, 2)
        x = self.conv3(x)
        x = x.transpose(1, 2)
        x = self.norm3(x)
        x = self.act(x)
        return x


class CausalAudioEncoder(Module):
    """All hidden states of the audio encoder to tokens: [1, 25, C, A] -> global and local of MotionEncoder_tc."""

    def __init__(self, dim: int, out_dim: int, num_token: int) -> None:
        self.encoder = MotionEncoder_tc(dim, out_dim, num_token)
        self.weights = Parameter((1, AUDIO_LAYERS, 1, 1), float32)
        self.act = SiLU()

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(float32):
            weights = self.act(self.weights)
            weights_sum = functional.sum(weights, 1, keepdim=True)
            weighted_feat = functional.sum((features * weights) / weights_sum, 1, keepdim=False)
            weighted_feat = weighted_feat.permute(0, 2, 1)
            res = self.encoder(weighted_feat)
        return res


class AdaLayerNorm(Module):
    """Norm, scaled and shifted by one vector a frame: [T, N, D], temb [T, D] -> [T, N, D]."""

    def __init__(self, embedding_dim: int, output_dim: int) -> None:
        self.silu = SiLU()
        self.linear = Linear(embedding_dim, output_dim)
        self.norm = LayerNorm(output_dim // 2, elementwise_affine=False)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        temb = self.linear(self.silu(temb))
        shift, scale = temb.chunk(2, dim=1)
        shift = shift[:, None, :]
        scale = scale[:, None, :]
        x = self.norm(x) * (scale + 1) + shift
        return x


class AudioInjector_WAN(Module):  # noqa: N801 - the name is the reference's
    """Attention to the audio behind some of the blocks; not called itself.

    Of the norms before it, those without the audio are there and never run.
    """

    def __init__(self, dim: int, *, num_heads: int, layers: int) -> None:
        self.injector = ModuleList([WanCrossAttention(dim, num_heads, k_lens=True) for _ in range(layers)])
        self.injector_pre_norm_feat = self._norms(dim, layers)
        self.injector_pre_norm_vec = self._norms(dim, layers)
        self.injector_adain_layers = ModuleList([AdaLayerNorm(dim, dim * 2) for _ in range(layers)])

    def _norms(self, dim: int, layers: int) -> ModuleList:
        return ModuleList([FP32LayerNorm(dim, elementwise_affine=False) for _ in range(layers)])
