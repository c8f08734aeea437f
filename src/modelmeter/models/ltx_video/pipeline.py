"""LTX-Video: the diffusion transformer on shapes, and the pipeline, of which no other stage is modelled.

Sources: diffusers 0.42 ``models/transformers/transformer_ltx.py`` and ``pipelines/ltx/pipeline_ltx.py``.
Shapes: B batch, S video tokens, L text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import pi, prod
from typing import Any

from modelmeter import nn
from modelmeter.models.common import layers
from modelmeter.models.common.checks import check_component
from modelmeter.nn import Dim, Tensor, functional
from modelmeter.policy import Policy
from modelmeter.stage import Component, Pipeline, Plan, Reference, Stage, single
from modelmeter.workload import Grid, Workload, round_frames


class LTXVideoRotaryPosEmbed(nn.Module):
    """Cosine and sine of every token, computed in every forward: tokens [B, S, C] -> two of [B, S, D]."""

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def forward(
        self, hidden_states: Tensor, num_frames: Dim, height: Dim, width: Dim, rope_interpolation_scale: Any
    ) -> layers.RotaryEmbedding:
        grid = self._coordinates(hidden_states.shape[0], (num_frames, height, width), rope_interpolation_scale)
        freqs = 10000.0 ** functional.linspace(0.0, 1.0, self.dim // 6)
        freqs = freqs * pi / 2.0
        freqs = freqs * (grid.unsqueeze(-1) * 2 - 1)
        freqs = freqs.transpose(-1, -2).flatten(2)
        cos_freqs = functional.cos(freqs).repeat_interleave(2, dim=-1)
        sin_freqs = functional.sin(freqs).repeat_interleave(2, dim=-1)
        if rest := self.dim % 6:
            cos_padding = functional.ones_like(cos_freqs[:, :, :rest])
            sin_padding = functional.zeros_like(cos_freqs[:, :, :rest])
            cos_freqs = functional.cat([cos_padding, cos_freqs], dim=-1)
            sin_freqs = functional.cat([sin_padding, sin_freqs], dim=-1)
        return cos_freqs, sin_freqs

    def _coordinates(self, batch_size: Dim, sizes: tuple[Dim, Dim, Dim], scale: tuple[float, ...]) -> Tensor:
        grid_h, grid_w, grid_f = (functional.arange(sizes[axis]) for axis in (1, 2, 0))
        axes = grid_f[:, None, None], grid_h[None, :, None], grid_w[None, None]
        grid = functional.stack([axis.expand(*sizes) for axis in axes], dim=0)
        grid = grid.unsqueeze(0).repeat(batch_size, 1, 1, 1, 1)
        for i, base in enumerate((20, 2048, 2048)):  # base_num_frames, base_height, base_width
            grid[:, i : i + 1].copy_(grid[:, i : i + 1] * scale[i] * 1 / base)
        return grid.flatten(2, 4).transpose(1, 2)


def apply_rotary_emb(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs of channels, in float32: [B, S, D] -> [B, S, D]."""
    x_real, x_imag = x.unflatten(2, (-1, 2)).unbind(-1)
    x_rotated = functional.stack([functional.neg(x_imag), x_real], dim=-1).flatten(2)
    return (x.float() * cos + x_rotated.float() * sin).to(x.dtype)


class LTXAttention(layers.Attention):
    """Of the video to itself by positions, or to the text under a mask: [B, S, D] -> [B, S, D]."""

    def forward(self, hidden_states: Tensor, source: Tensor, mask: Tensor | None, freqs: Any) -> Tensor:
        if mask is not None:
            if self.heads > 1:
                mask = mask.repeat_interleave(self.heads, dim=0)
            mask = mask.view(hidden_states.shape[0], self.heads, -1, mask.shape[-1])
        query, key, value = self.projected(hidden_states, source)
        if freqs is not None:
            query = apply_rotary_emb(query, *freqs)
            key = apply_rotary_emb(key, *freqs)
        query, key, value = (x.unflatten(2, (self.heads, -1)) for x in (query, key, value))
        return self.output(layers.attend(query, key, value, mask))


class LTXVideoTransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, the outer two modulated by the timestep."""

    def __init__(self, dim: int, *, heads: int) -> None:
        self.norm1, self.norm2 = layers.RMSNorm(), layers.RMSNorm()
        self.attn1, self.attn2 = LTXAttention(dim, heads=heads), LTXAttention(dim, heads=heads)
        self.ff = layers.FeedForward(dim, inner_dim=4 * dim)
        self.scale_shift_table = nn.Parameter((6, dim), nn.float32)

    def forward(self, hidden_states: Tensor, text: Tensor, temb: Tensor, freqs: Any, mask: Tensor) -> Tensor:
        norm_hidden_states = self.norm1(hidden_states)
        ada_values = self.scale_shift_table[None, None] + temb.unflatten(1, (6, -1)).unsqueeze(1)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = ada_values.unbind(dim=2)
        norm_hidden_states = norm_hidden_states * (1 + scale_msa) + shift_msa
        attn_hidden_states = self.attn1(norm_hidden_states, norm_hidden_states, None, freqs)
        hidden_states = hidden_states + attn_hidden_states * gate_msa
        attn_hidden_states = self.attn2(hidden_states, text, mask, None)
        hidden_states = hidden_states + attn_hidden_states
        norm_hidden_states = self.norm2(hidden_states) * (1 + scale_mlp) + shift_mlp
        ff_output = self.ff(norm_hidden_states)
        return hidden_states + ff_output * gate_mlp


class LTXVideoTransformer3DModel(Component):
    """Video tokens [B, S, in_channels], text [B, L, caption_channels] and its mask [B, L] -> [B, S, out_channels]."""

    def __init__(self, **config: int) -> None:
        heads = config["num_attention_heads"]
        inner_dim = heads * config["attention_head_dim"]
        self.proj_in = nn.Linear(config["in_channels"], inner_dim)
        self.scale_shift_table = nn.Parameter((2, inner_dim), nn.float32)
        self.time_embed = layers.AdaLayerNormSingle(inner_dim)
        self.caption_projection = layers.PixArtAlphaTextProjection(config["caption_channels"], inner_dim)
        self.rope = LTXVideoRotaryPosEmbed(inner_dim)
        blocks = [LTXVideoTransformerBlock(inner_dim, heads=heads) for _ in range(config["num_layers"])]
        self.transformer_blocks = nn.ModuleList(blocks)
        self.norm_out = nn.LayerNorm(inner_dim, elementwise_affine=False)
        self.proj_out = nn.Linear(inner_dim, config["out_channels"])

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        timestep: Tensor,
        encoder_attention_mask: Tensor,
        **positions: Any,
    ) -> Tensor:
        image_rotary_emb = self.rope(hidden_states, **positions)
        mask = ((1 - encoder_attention_mask.to(hidden_states.dtype)) * -10000.0).unsqueeze(1)
        hidden_states = self.proj_in(hidden_states)
        temb, embedded_timestep = self.time_embed(timestep, hidden_states.dtype)
        encoder_hidden_states = self.caption_projection(encoder_hidden_states)
        for block in self.transformer_blocks:
            hidden_states = block(hidden_states, encoder_hidden_states, temb, image_rotary_emb, mask)
        shift, scale = (self.scale_shift_table[None, None] + embedded_timestep[:, None, None]).unbind(2)
        hidden_states = self.norm_out(hidden_states)
        hidden_states = hidden_states * (1 + scale) + shift
        return self.proj_out(hidden_states)

    def inputs(self, **dims: Dim) -> dict[str, Any]:
        """What ``forward`` takes for ``batch`` videos of ``frames`` x ``rows`` x ``columns`` tokens, by name."""
        grid, text = (dims["frames"], dims["rows"], dims["columns"]), (dims["batch"], dims["text_len"])
        weight = self.proj_in.weight
        return {
            "hidden_states": Tensor((dims["batch"], prod(grid, start=1), weight.shape[1]), weight.dtype),
            "encoder_hidden_states": Tensor((*text, self.caption_projection.in_features), weight.dtype),
            "timestep": Tensor(text[:1], nn.float32),
            "encoder_attention_mask": Tensor(text, nn.bool_),
            **dict(zip(("num_frames", "height", "width"), grid, strict=True)),
            # seconds of a latent frame at 25 a second, pixels of a row and a column; source: LTXPipeline.__call__
            "rope_interpolation_scale": (8 / 25, 32, 32),
        }


def components(config: Mapping[str, Any]) -> dict[str, Component]:
    """The transformer, in the dtype that it is loaded in."""
    check_component("transformer", config["transformer"])
    check_component("vae", config["vae"])
    return {"transformer": LTXVideoTransformer3DModel(**config["transformer"]).to(Policy.of(config).dtype)}


def plan(config: Mapping[str, Any], video: Workload) -> Plan:
    """One call a step, with and without the prompt at once where guidance is on."""
    temporal, spatial = config["vae"]["temporal_compression_ratio"], config["vae"]["spatial_compression_ratio"]
    video, warnings = round_frames(video, "kept", temporal)
    grid = Grid(temporal_stride=temporal, spatial_stride=spatial, patch_size=(1, 1, 1))
    geometry, batch = grid.geometry(video), video.batch_size * video.guidance_passes
    calls = single({"batch": batch, **grid.tokens(geometry), "text_len": video.text_len}, video.num_inference_steps)
    stages = (Stage(id="transformer", component="transformer", calls=(calls,)),)
    missing = ("text_encoder", "vae_decode")
    return Plan(workload=video, geometry=geometry, stages=stages, not_modelled=missing, warnings=tuple(warnings))


def references(config: Mapping[str, Any]) -> dict[str, dict[str, Reference]]:
    """The real class."""
    dtype = Policy.of(config).dtype.name
    real = Reference("diffusers", "LTXVideoTransformer3DModel", config["transformer"], dtype=dtype)
    return {"transformer": {"diffusers": real}}


LTX_PIPELINE = Pipeline(components=components, plan=plan, references=references)
