"""What stands before the layers of wav2vec 2.0, on shapes: convolutions over the samples, and positions.

Source: transformers 5.23 ``models/wav2vec2/modeling_wav2vec2.py``. Shapes: B recordings, N samples, T tokens,
C channels of the convolutions, D width.
"""

from __future__ import annotations

from modelmeter.nn import (
    GELU,
    Conv1d,
    Dropout,
    LayerNorm,
    Linear,
    Module,
    ModuleList,
    Parameter,
    Tensor,
    float32,
    functional,
)


class Wav2Vec2LayerNormConvLayer(Module):
    """Convolution, norm over the channels, GELU: [B, C, N] -> [B, C', N']."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel: int, stride: int, bias: bool) -> None:
        self.conv = Conv1d(in_channels, out_channels, kernel, stride=stride, bias=bias)
        self.layer_norm = LayerNorm(out_channels)
        self.activation = GELU()

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.conv(hidden_states)
        hidden_states = hidden_states.transpose(1, 2)
        hidden_states = self.layer_norm(hidden_states)
        hidden_states = hidden_states.transpose(1, 2)
        hidden_states = self.activation(hidden_states)
        return hidden_states


class Wav2Vec2FeatureEncoder(Module):
    """Samples to features: [B, N] -> [B, C, T]."""

    def __init__(self, conv_layers: list[Wav2Vec2LayerNormConvLayer]) -> None:
        self.conv_layers = ModuleList(conv_layers)

    def forward(self, input_values: Tensor) -> Tensor:
        hidden_states = input_values[:, None]
        for conv_layer in self.conv_layers:
            hidden_states = conv_layer(hidden_states)
        return hidden_states


class Wav2Vec2FeatureProjection(Module):
    """Features to the width of the encoder, and the features normed: [B, T, C] -> [B, T, D], [B, T, C]."""

    def __init__(self, channels: int, hidden_size: int) -> None:
        self.layer_norm = LayerNorm(channels)
        self.projection = Linear(channels, hidden_size)
        self.dropout = Dropout()

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        norm_hidden_states = self.layer_norm(hidden_states)
        hidden_states = self.projection(norm_hidden_states)
        hidden_states = self.dropout(hidden_states)
        return hidden_states, norm_hidden_states


class WeightNorm(Module):
    """Lengths and directions to a weight: [1, 1, K], [out, in, K] -> [out, in, K]."""

    def forward(self, weight_g: Tensor, weight_v: Tensor) -> Tensor:
        return functional.weight_norm(weight_v, weight_g)


class ParametrizationList(Module):
    """What a weight is computed from whenever it is used. Source: ``torch.nn.utils.parametrize``."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.original0 = Parameter((1, 1, shape[-1]), float32)
        self.original1 = Parameter(shape, float32)
        vars(self)["0"] = WeightNorm()

    def forward(self) -> Tensor:
        (norm,) = (module for _, module in self.named_children())
        return norm(self.original0, self.original1)


class Parametrizations(Module):
    """The computed weights of a module by name; not called itself."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.weight = ParametrizationList(shape)


class ParametrizedConv1d(Module):
    """A convolution in groups, of which the weight is computed at every call: [B, D, T] -> [B, D, T']."""

    def __init__(self, channels: int, *, kernel_size: int, groups: int) -> None:
        self.groups = groups
        self.padding = kernel_size // 2
        self.bias = Parameter((channels,), float32)
        self.parametrizations = Parametrizations((channels, channels // groups, kernel_size))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.parametrizations.weight()
        return functional.conv(x, weight, self.bias, stride=(1,), padding=self.padding, groups=self.groups)


class Wav2Vec2SamePadLayer(Module):
    """Without the last token, which an even kernel adds: [B, D, T + 1] -> [B, D, T]."""

    def __init__(self, num_conv_pos_embeddings: int) -> None:
        self.num_pad_remove = 1 if num_conv_pos_embeddings % 2 == 0 else 0

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states[:, :, : -self.num_pad_remove] if self.num_pad_remove else hidden_states


class Wav2Vec2PositionalConvEmbedding(Module):
    """Positions from the neighbourhood of every token: [B, T, D] -> [B, T, D]."""

    def __init__(self, hidden_size: int, *, kernel_size: int, groups: int) -> None:
        self.conv = ParametrizedConv1d(hidden_size, kernel_size=kernel_size, groups=groups)
        self.padding = Wav2Vec2SamePadLayer(kernel_size)
        self.activation = GELU()

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = hidden_states.transpose(1, 2)
        hidden_states = self.conv(hidden_states)
        hidden_states = self.padding(hidden_states)
        hidden_states = self.activation(hidden_states)
        hidden_states = hidden_states.transpose(1, 2)
        return hidden_states
