"""Stand-in for ``wan/modules/vace_model.py`` of Wan2.1."""

import torch
from torch import nn

from .model import WanAttentionBlock, WanModel


class ControlBlock(WanAttentionBlock):
    """A block over the control video."""

    def __init__(self, *arguments, block_id=0):
        super().__init__(*arguments)
        self.block_id = block_id
        if block_id == 0:
            self.before_proj = nn.Linear(self.dim, self.dim)
        self.after_proj = nn.Linear(self.dim, self.dim)

    def forward(self, c, x, **given):
        """Control and video -> control, hint."""
        if self.block_id == 0:
            c = self.before_proj(c) + x
        c = super().forward(c, **given)
        return c, self.after_proj(c)


class HintedBlock(WanAttentionBlock):
    """A block of the video, after which a hint is added."""

    def __init__(self, *arguments, block_id=None):
        super().__init__(*arguments)
        self.block_id = block_id

    def forward(self, x, hints, context_scale=1.0, **given):
        """Video -> video."""
        x = super().forward(x, **given)
        return x if self.block_id is None else x + hints[self.block_id] * context_scale


class VaceWanModel(WanModel):
    """The diffusion transformer with a second stack of blocks."""

    def __init__(
        self,
        vace_layers=None,
        vace_in_dim=None,
        model_type="vace",
        patch_size=(1, 2, 2),
        text_len=512,
        in_dim=16,
        dim=2048,
        ffn_dim=8192,
        freq_dim=256,
        text_dim=4096,
        out_dim=16,
        num_heads=16,
        num_layers=32,
        window_size=(-1, -1),
        qk_norm=True,
        cross_attn_norm=True,
        eps=1e-6,
    ):
        layers = list(range(0, num_layers, 2)) if vace_layers is None else vace_layers
        # plain attributes, so that blocks can be made before the module is
        self.__dict__["hints_of"] = {layer: number for number, layer in enumerate(layers)}
        sizes = patch_size, text_len, in_dim, dim, ffn_dim, freq_dim, text_dim, out_dim, num_heads, num_layers
        super().__init__("t2v", *sizes, window_size, qk_norm, cross_attn_norm, eps)
        block = "t2v_cross_attn", dim, ffn_dim, num_heads, window_size, qk_norm, cross_attn_norm, eps
        self.vace_blocks = nn.ModuleList(ControlBlock(*block, block_id=layer) for layer in layers)
        self.vace_patch_embedding = nn.Conv3d(vace_in_dim or in_dim, dim, kernel_size=patch_size, stride=patch_size)

    def block(self, *arguments):
        """One of the blocks of the video."""
        *arguments, i = arguments
        return HintedBlock("t2v_cross_attn", *arguments, block_id=self.hints_of.get(i))

    def forward(self, x, t, vace_context, context, seq_len, vace_context_scale=1.0, clip_fea=None, y=None):
        """As ``WanModel``, with a list of control videos [C, T, h, w]."""
        x, given = self.embedded(x, y, context, seq_len, clip_fea)
        e, given["e"] = self.times(t, seq_len)
        control = [self.vace_patch_embedding(video.unsqueeze(0)).flatten(2).transpose(1, 2) for video in vace_context]
        c = torch.cat([self.padded(video, seq_len, 1) for video in control])
        hints = []
        for block in self.vace_blocks:
            c, hint = block(c, x, **given)
            hints.append(hint)
        for block in self.blocks:
            x = block(x, hints, vace_context_scale, **given)
        return self.unpatchify(self.head(x, e), given["grid_sizes"])
