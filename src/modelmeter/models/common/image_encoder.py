"""The image encoder CLIP on shapes, module by module as transformers' ``CLIPVisionModel``.

It follows what that class runs (transformers 5.23, ``models/clip/modeling_clip.py``), operator by operator,
with the same module names and the same lifetimes.

Shapes: B images, N tokens (one for the class and one per patch), D width, H heads, E = D // H channels a head.
"""

from __future__ import annotations

from modelmeter.nn import (
    GELU,
    Buffer,
    Conv2d,
    Dim,
    Embedding,
    LayerNorm,
    Linear,
    Module,
    ModuleList,
    Parameter,
    Tensor,
    float32,
    functional,
    int64,
)
from modelmeter.stage import Component


class CLIPVisionEmbeddings(Module):
    """Patches and a class token with their positions: [B, C, size, size] -> [B, N, D]."""

    def __init__(self, hidden_size: int, *, num_channels: int, image_size: int, patch_size: int) -> None:
        positions = (image_size // patch_size) ** 2 + 1
        patch = (patch_size, patch_size)
        self.class_embedding = Parameter((hidden_size,), float32)
        self.patch_embedding = Conv2d(num_channels, hidden_size, patch, stride=patch, bias=False)
        self.position_embedding = Embedding(positions, hidden_size)
        self.position_ids = Buffer((1, positions), int64)

    def forward(self, pixel_values: Tensor) -> Tensor:
        batch_size = pixel_values.shape[0]
        patch_embeds = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        patch_embeds = patch_embeds.flatten(2).transpose(1, 2)
        class_embeds = self.class_embedding[None, None].expand(batch_size, 1, *self.class_embedding.shape)
        embeddings = functional.cat([class_embeds, patch_embeds], dim=1)
        embeddings = embeddings + self.position_embedding(self.position_ids)
        return embeddings


class CLIPAttention(Module):
    """Self-attention: [B, N, D] -> [B, N, D]."""

    def __init__(self, hidden_size: int, *, num_attention_heads: int) -> None:
        self.head_dim = hidden_size // num_attention_heads
        self.k_proj = Linear(hidden_size, hidden_size)
        self.v_proj = Linear(hidden_size, hidden_size)
        self.q_proj = Linear(hidden_size, hidden_size)
        self.out_proj = Linear(hidden_size, hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        queries = self.q_proj(hidden_states)
        keys = self.k_proj(hidden_states)
        values = self.v_proj(hidden_states)
        queries = self._heads(queries)
        keys = self._heads(keys)
        values = self._heads(values)
        attn_output = functional.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).contiguous()
        attn_output = attn_output.reshape(*hidden_states.shape[:-1], -1).contiguous()
        attn_output = self.out_proj(attn_output)
        return attn_output

    def _heads(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, H, N, E]."""
        return x.view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2)


class CLIPMLP(Module):
    """[B, N, D] -> [B, N, intermediate_size] -> [B, N, D], exact GELU."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        self.activation_fn = GELU()
        self.fc1 = Linear(hidden_size, intermediate_size)
        self.fc2 = Linear(intermediate_size, hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.fc1(hidden_states)
        hidden_states = self.activation_fn(hidden_states)
        hidden_states = self.fc2(hidden_states)
        return hidden_states


class CLIPEncoderLayer(Module):
    """Attention and feed-forward, each after a norm and added to its input: [B, N, D] -> [B, N, D]."""

    def __init__(self, hidden_size: int, *, intermediate_size: int, num_attention_heads: int) -> None:
        self.self_attn = CLIPAttention(hidden_size, num_attention_heads=num_attention_heads)
        self.layer_norm1 = LayerNorm(hidden_size)
        self.mlp = CLIPMLP(hidden_size, intermediate_size)
        self.layer_norm2 = LayerNorm(hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        residual = hidden_states
        hidden_states = self.layer_norm1(hidden_states)
        hidden_states = self.self_attn(hidden_states)
        hidden_states = residual + hidden_states
        residual = hidden_states
        hidden_states = self.layer_norm2(hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = residual + hidden_states
        return hidden_states


class CLIPEncoder(Module):
    """The layers: [B, N, D] -> what went into the first and came out of each that runs, all [B, N, D]."""

    def __init__(self, layers: list[CLIPEncoderLayer], *, layers_that_run: int) -> None:
        self.layers_that_run = layers_that_run
        self.layers = ModuleList(layers)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, ...]:
        collected = [hidden_states]
        for i in range(self.layers_that_run):
            hidden_states = self.layers[i](hidden_states)
            collected.append(hidden_states)
        return tuple(collected)


class CLIPVisionModel(Component):
    """The vision tower of CLIP, as transformers' class of that name, all hidden states kept.

    Pipelines take the hidden states before the last layer; transformers runs the last layer all the same.

    Args:
        hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_channels, image_size,
            patch_size: as in the configuration of the real class.
        layers_that_run: the first of the layers, where not all of them run, as in the official implementation.

    Raises:
        ValueError: more layers run than there are.

    Example:
        >>> from modelmeter.nn import trace
        >>> model = CLIPVisionModel(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
        >>> last, pooled, hidden_states = trace(model, **model.inputs(batch=1)).outputs
        >>> last.shape, pooled.shape, len(hidden_states)
        ((1, 257, 64), (1, 64), 3)
    """

    def __init__(
        self,
        *,
        hidden_size: int = 1280,
        intermediate_size: int = 5120,
        num_hidden_layers: int = 32,
        num_attention_heads: int = 16,
        num_channels: int = 3,
        image_size: int = 224,
        patch_size: int = 14,
        layers_that_run: int | None = None,
    ) -> None:
        running = num_hidden_layers if layers_that_run is None else layers_that_run
        if not 0 <= running <= num_hidden_layers:
            raise ValueError(f"layers_that_run={running}: must be from 0 to num_hidden_layers={num_hidden_layers}")
        self.idle = tuple(f"encoder.layers.{i}" for i in range(running, num_hidden_layers))
        self.image_shape = (num_channels, image_size, image_size)
        self.embeddings = CLIPVisionEmbeddings(
            hidden_size, num_channels=num_channels, image_size=image_size, patch_size=patch_size
        )
        self.pre_layrnorm = LayerNorm(hidden_size)  # the name is transformers'
        layers = [
            CLIPEncoderLayer(hidden_size, intermediate_size=intermediate_size, num_attention_heads=num_attention_heads)
            for _ in range(num_hidden_layers)
        ]
        self.encoder = CLIPEncoder(layers, layers_that_run=running)
        self.post_layernorm = LayerNorm(hidden_size)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Images [B, C, size, size] -> last hidden state [B, N, D], pooled [B, D], all hidden states."""
        hidden_states = self.embeddings(pixel_values)
        hidden_states = self.pre_layrnorm(hidden_states)
        hidden_states = self.encoder(hidden_states)
        pooled_output = self.post_layernorm(hidden_states[-1][:, 0, :])
        return hidden_states[-1], pooled_output, hidden_states

    def inputs(self, **dims: Dim) -> dict[str, Tensor]:
        """What ``forward`` takes for ``batch`` images, by name; image processors return them in float32."""
        return {"pixel_values": Tensor((dims["batch"], *self.image_shape), float32)}
