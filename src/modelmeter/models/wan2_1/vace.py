"""The Wan VACE diffusion transformer on shapes, module by module as diffusers' ``WanVACETransformer3DModel``.

A second stack of blocks runs over the control video first; each of them leaves a hint, all of which stay alive
until the main blocks, one after the other, have added them.

Source: diffusers 0.42 ``models/transformers/transformer_wan_vace.py``. Shapes: B batch, S video tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modelmeter.models.common.layers import RotaryEmbedding
from modelmeter.models.wan2_1.embeddings import token_grid
from modelmeter.models.wan2_1.transformer import (
    Wan2_1DiTModel,
    WanTransformerBlock,
    head_modulation,
    modulated,
    unpatchified,
)
from modelmeter.nn import Conv3d, Dim, Linear, ModuleList, Tensor, functional


class WanVACETransformerBlock(WanTransformerBlock):
    """A block over the control video: hint and control [B, S, D] each."""

    def __init__(self, dim: int, *, apply_input_projection: bool, **arguments: Any) -> None:
        super().__init__(dim, added_kv_proj_dim=None, **arguments)
        self.proj_in = Linear(dim, dim) if apply_input_projection else None
        self.proj_out = Linear(dim, dim)

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        control_hidden_states: Tensor,
        temb: Tensor,
        rotary_emb: RotaryEmbedding,
    ) -> tuple[Tensor | None, Tensor]:
        """Video [B, S, D], context [B, L, D], control [B, S, D] -> hint [B, S, D], control [B, S, D]."""
        # handed on without a name: the projected control lives only until the block has used it
        return self.attended(self.joined(control_hidden_states, hidden_states), encoder_hidden_states, temb, rotary_emb)

    def joined(self, control_hidden_states: Tensor, hidden_states: Tensor) -> Tensor:
        """The control as the block takes it: in the first block projected and added to the video, [B, S, D]."""
        if self.proj_in is None:
            return control_hidden_states
        control_hidden_states = self.proj_in(control_hidden_states)
        return control_hidden_states + hidden_states


class WanVACETransformer3DModel(Wan2_1DiTModel):
    """The diffusion transformer of Wan2.1 VACE.

    Args:
        vace_layers: main blocks after which a hint is added, one control block for each; 0 is one of them.
        vace_in_channels: channels of the control video.
        arguments: those of :class:`Wan2_1DiTModel`.

    Example:
        >>> from modelmeter.nn import trace
        >>> sizes = {"num_attention_heads": 2, "attention_head_dim": 32, "ffn_dim": 64, "num_layers": 2}
        >>> model = WanVACETransformer3DModel(vace_layers=[0], vace_in_channels=96, **sizes)
        >>> inputs = model.inputs(batch=1, frames=3, rows=8, columns=8, text_len=64)
        >>> trace(model, **inputs).outputs.shape
        (1, 16, 3, 16, 16)
    """

    control_block: type[WanVACETransformerBlock] = WanVACETransformerBlock

    def __init__(
        self,
        *,
        vace_layers: Sequence[int],
        vace_in_channels: int,
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        ffn_dim: int = 13824,
        cross_attn_norm: bool = True,
        **arguments: Any,
    ) -> None:
        super().__init__(
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            ffn_dim=ffn_dim,
            cross_attn_norm=cross_attn_norm,
            **arguments,
        )
        dim = num_attention_heads * attention_head_dim
        self.vace_layers = tuple(vace_layers)
        self.vace_patch_embedding = Conv3d(vace_in_channels, dim, self.patch_size, stride=self.patch_size)
        self.vace_blocks = ModuleList(
            [
                self.control_block(
                    dim,
                    ffn_dim=ffn_dim,
                    num_heads=num_attention_heads,
                    cross_attn_norm=cross_attn_norm,
                    apply_input_projection=i == 0,
                )
                for i in range(len(vace_layers))
            ]
        )

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        control_hidden_states: Tensor,
    ) -> Tensor:
        """Latents [B, C, T, h, w], timesteps [B], text [B, L, text_dim], control video -> [B, C', T, h, w]."""
        batch_size, grid = hidden_states.shape[0], token_grid(hidden_states, self.patch_size)
        scales = functional.new_ones(control_hidden_states, (len(self.vace_layers),)).unbind(0)
        rotary_emb = self.rope(hidden_states)

        hidden_states = self.patch_embedding(hidden_states)
        hidden_states = hidden_states.flatten(2).transpose(1, 2)  # [B, S, D], not made contiguous here

        control_hidden_states = self.vace_patch_embedding(control_hidden_states)
        control_hidden_states = control_hidden_states.flatten(2).transpose(1, 2)
        missing = hidden_states.shape[1] - control_hidden_states.shape[1]
        padding = functional.new_zeros(control_hidden_states, (batch_size, missing, hidden_states.shape[2]))
        control_hidden_states = functional.cat([control_hidden_states, padding], dim=1)

        temb, timestep_proj, encoder_hidden_states, _ = self.condition_embedder(
            timestep, encoder_hidden_states, None, None
        )
        timestep_proj = timestep_proj.unflatten(1, (6, -1))

        hints = []
        for block, scale in zip(self.vace_blocks, scales, strict=True):
            hint, control_hidden_states = block(
                hidden_states, encoder_hidden_states, control_hidden_states, timestep_proj, rotary_emb
            )
            hints.append((hint, scale))
        hints.reverse()

        for i, block in enumerate(self.blocks):
            hidden_states = block(hidden_states, encoder_hidden_states, timestep_proj, rotary_emb)
            if i in self.vace_layers:
                hint, scale = hints.pop()
                hidden_states = hidden_states + hint * scale

        shift, scale = head_modulation(self.scale_shift_table, temb)
        hidden_states = modulated(self.norm_out, hidden_states, scale, shift)
        hidden_states = self.proj_out(hidden_states)
        return unpatchified(hidden_states, batch_size, grid, self.patch_size)

    def inputs(self, **dims: Dim) -> dict[str, Tensor]:
        """As :class:`Wan2_1DiTModel`, and the control video at the size of the latents."""
        result = super().inputs(**dims)
        latents = result["hidden_states"]
        channels = self.vace_patch_embedding.weight.shape[1]
        shape = (latents.shape[0], channels, *latents.shape[2:])
        return {**result, "control_hidden_states": Tensor(shape, latents.dtype)}
