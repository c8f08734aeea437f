"""The forward of the official ``VaceWanModel`` on shapes, on the modules and weights of diffusers' class.

The control blocks hand on one tensor: all hints so far and the control, stacked anew in float32 by every block.

Source: Wan2.1 ``wan/modules/vace_model.py`` at 9737cba. Shapes: B batch, S video tokens, D width, n control blocks.
"""

from __future__ import annotations

from modelmeter.models.wan2_1.official import AUTOCAST_DTYPE, Rotations, WanAttentionBlock, WanModel
from modelmeter.models.wan2_1.vace import WanVACETransformer3DModel, WanVACETransformerBlock
from modelmeter.nn import Tensor, autocast, functional


class BaseWanAttentionBlock(WanAttentionBlock):
    """A block over the video, and the hint of a control block where one belongs to it."""

    def forward(  # type: ignore[override]
        self, x: Tensor, context: Tensor, e: Tensor, rotations: Rotations, hint: Tensor | None
    ) -> Tensor:
        """As :class:`WanAttentionBlock`; the hint is [B, S, D]."""
        x = super().forward(x, context, e, rotations)
        if hint is not None:
            x = x + hint * 1.0  # a scale that runs although it is 1
        return x


class VaceWanAttentionBlock(WanAttentionBlock, WanVACETransformerBlock):
    """A block over the control video."""

    def forward(  # type: ignore[override]
        self, c: Tensor, x: Tensor, context: Tensor, e: Tensor, rotations: Rotations
    ) -> Tensor:
        """Control [B, S, D] (or all before it, [n, B, S, D]), video [B, S, D] -> hints and control [n + 1, B, S, D]."""
        all_c: list[Tensor] = []
        if self.proj_in is not None:
            c = self.proj_in(c) + x
        else:
            all_c = list(c.unbind(0))
            c = all_c.pop(-1)
        c = super().forward(c, context, e, rotations)
        assert self.proj_out is not None
        c_skip = self.proj_out(c)
        all_c += [c_skip, c]
        c = functional.stack(all_c, dim=0)
        return c


class VaceWanModel(WanModel, WanVACETransformer3DModel):
    """The diffusion transformer of Wan2.1 VACE as the official code runs it.

    Example:
        >>> from modelmeter.nn import trace
        >>> sizes = {"num_attention_heads": 2, "attention_head_dim": 32, "ffn_dim": 64, "num_layers": 2}
        >>> model = VaceWanModel(vace_layers=[0], vace_in_channels=96, **sizes)
        >>> inputs = model.inputs(batch=1, frames=3, rows=8, columns=8, text_len=64)
        >>> trace(model, **inputs).outputs.shape
        (1, 16, 3, 16, 16)
    """

    block = BaseWanAttentionBlock
    control_block = VaceWanAttentionBlock

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        control_hidden_states: Tensor,
    ) -> Tensor:
        """Latents [B, C, T, h, w], timesteps [B], text [B, L, text_dim], control video -> [B, C', T, h, w]."""
        with autocast(AUTOCAST_DTYPE):
            rotations = self.rope(hidden_states)
            x = self.tokens(hidden_states, self.patch_embedding)
            e, e0, context, _ = self.condition_embedder(timestep, encoder_hidden_states, None)
            hints = self.hints(x, control_hidden_states, context, e0, rotations)
            for i, block in enumerate(self.blocks):
                hint = hints[self.vace_layers.index(i)] if i in self.vace_layers else None
                x = block(x, context, e0, rotations, hint)
            x = self.head(x, e)
            return self.unpatchify(x, rotations[1]).float()

    def hints(
        self, x: Tensor, control_hidden_states: Tensor, context: Tensor, e: Tensor, rotations: Rotations
    ) -> tuple[Tensor, ...]:
        """What every control block adds to its main block: n of [B, S, D] in one storage."""
        c = self.tokens(control_hidden_states, self.vace_patch_embedding)
        for block in self.vace_blocks:
            c = block(c, x, context, e, rotations)
        return c.unbind(0)[:-1]
