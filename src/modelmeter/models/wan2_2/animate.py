"""The Wan2.2 Animate diffusion transformer on shapes, as diffusers' ``WanAnimateTransformer3DModel``.

The image-to-video transformer of Wan2.1, with one latent frame of the character before the video, the pose added
to the tokens of the video, and attention to a face after every few blocks. Face and pose are encoded in every forward.

Source: diffusers 0.42 ``models/transformers/transformer_wan_animate.py``. Shapes: B batch, T latent frames with the
reference, S video tokens, F frames of the face, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelmeter.models.wan2_1.embeddings import token_grid
from modelmeter.models.wan2_1.transformer import (
    KEEP_IN_FP32,
    Wan2_1DiTModel,
    head_modulation,
    unpatchified,
)
from modelmeter.models.wan2_2.face_encoder import WanAnimateFaceBlockCrossAttention, WanAnimateFaceEncoder
from modelmeter.models.wan2_2.motion_encoder import WanAnimateMotionEncoder
from modelmeter.nn import Conv3d, Dim, ModuleList, Tensor, functional

#: Weights that diffusers keeps in float32. Source: ``WanAnimateTransformer3DModel._keep_in_fp32_modules``.
ANIMATE_KEEP_IN_FP32 = (*KEEP_IN_FP32, "motion_synthesis_weight")
#: Frames of the face for every latent frame but the first. Source: two convolutions of stride 2 in the face encoder.
FACE_STRIDE = 4


class WanAnimateTransformer3DModel(Wan2_1DiTModel):
    """The diffusion transformer of Wan2.2 Animate.

    Args:
        latent_channels: channels of the pose, and of the noise and the image among ``in_channels``.
        motion_encoder_channel_sizes: channels of the motion encoder by side of the picture; the vendor's without.
        motion_encoder_size: rows and columns of a picture of the face.
        motion_style_dim, motion_dim, motion_encoder_dim: widths of the motion encoder.
        face_encoder_hidden_dim, face_encoder_num_heads: width and tokens of the face encoder.
        inject_face_latents_blocks: blocks from one attention to the face to the next; it divides ``num_layers``.
        motion_encoder_batch_size: pictures that the motion encoder takes at once.
        arguments: those of :class:`Wan2_1DiTModel`.

    Example:
        >>> from modelmeter.nn import trace
        >>> sizes = {"num_attention_heads": 2, "attention_head_dim": 32, "ffn_dim": 64, "num_layers": 5}
        >>> model = WanAnimateTransformer3DModel(image_dim=24, added_kv_proj_dim=64, motion_encoder_size=16, **sizes)
        >>> grid = {"batch": 1, "frames": 3, "rows": 4, "columns": 6}
        >>> inputs = model.inputs(**grid, text_len=512, image_tokens=7, face_frames=5)
        >>> trace(model, **inputs).outputs.shape
        (1, 16, 3, 8, 12)
    """

    def __init__(
        self,
        *,
        latent_channels: int = 16,
        motion_encoder_channel_sizes: Mapping[str, int] | None = None,
        motion_encoder_size: int = 512,
        motion_style_dim: int = 512,
        motion_dim: int = 20,
        motion_encoder_dim: int = 512,
        face_encoder_hidden_dim: int = 1024,
        face_encoder_num_heads: int = 4,
        inject_face_latents_blocks: int = 5,
        motion_encoder_batch_size: int = 8,
        in_channels: int = 36,
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        num_layers: int = 40,
        **arguments: Any,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            num_layers=num_layers,
            **arguments,
        )
        dim = num_attention_heads * attention_head_dim
        self.inject_face_latents_blocks = inject_face_latents_blocks
        self.motion_encoder_batch_size = motion_encoder_batch_size
        self.pose_patch_embedding = Conv3d(latent_channels, dim, self.patch_size, stride=self.patch_size)
        self.motion_encoder = WanAnimateMotionEncoder(
            size=motion_encoder_size,
            style_dim=motion_style_dim,
            motion_dim=motion_dim,
            out_dim=motion_encoder_dim,
            channels=motion_encoder_channel_sizes,
        )
        self.face_encoder = WanAnimateFaceEncoder(
            motion_encoder_dim, dim, hidden_dim=face_encoder_hidden_dim, num_heads=face_encoder_num_heads
        )
        self.face_adapter = ModuleList(
            [
                WanAnimateFaceBlockCrossAttention(dim, heads=num_attention_heads)
                for _ in range(num_layers // inject_face_latents_blocks)
            ]
        )

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_image: Tensor | None,
        pose_hidden_states: Tensor,
        face_pixel_values: Tensor,
        face_batches: int | None = None,
    ) -> Tensor:
        """Latents [B, C, T, h, w], timesteps [B], text, images, pose [B, C', T - 1, h, w], faces [B, 3, F, size, size].

        ``face_batches``: how often the motion encoder runs, where the sizes are formulas.
        """
        batch_size, grid = hidden_states.shape[0], token_grid(hidden_states, self.patch_size)
        rotary_emb = self.rope(hidden_states)

        hidden_states = self.patch_embedding(hidden_states)
        pose_hidden_states = self.pose_patch_embedding(pose_hidden_states)
        hidden_states[:, :, 1:].copy_(hidden_states[:, :, 1:] + pose_hidden_states)
        hidden_states = hidden_states.flatten(2).transpose(1, 2).contiguous()

        temb, timestep_proj, encoder_hidden_states, encoder_hidden_states_image = self.condition_embedder(
            timestep, encoder_hidden_states, encoder_hidden_states_image, None
        )
        timestep_proj = timestep_proj.unflatten(1, (6, -1))
        if encoder_hidden_states_image is not None:
            encoder_hidden_states = functional.cat([encoder_hidden_states_image, encoder_hidden_states], dim=1)

        _, channels, num_face_frames, height, width = face_pixel_values.shape
        face_pixel_values = face_pixel_values.permute(0, 2, 1, 3, 4).reshape(-1, channels, height, width)
        motion_vec_batches = []
        for face_batch in face_pixel_values.split(self.batch_sizes(face_pixel_values.shape[0], face_batches), dim=0):
            motion_vec_batch = self.motion_encoder(face_batch)
            motion_vec_batches.append(motion_vec_batch)
        motion_vec = functional.cat(motion_vec_batches, dim=0)
        motion_vec = motion_vec.view(batch_size, num_face_frames, -1)
        motion_vec = self.face_encoder(motion_vec)
        pad_face = functional.zeros_like(motion_vec[:, :1])
        motion_vec = functional.cat([pad_face, motion_vec], dim=1)

        for block_idx, block in enumerate(self.blocks):
            hidden_states = block(hidden_states, encoder_hidden_states, timestep_proj, rotary_emb)
            if block_idx % self.inject_face_latents_blocks == 0:
                face_adapter_block_idx = block_idx // self.inject_face_latents_blocks
                face_adapter_output = self.face_adapter[face_adapter_block_idx](hidden_states, motion_vec)
                hidden_states = face_adapter_output + hidden_states

        shift, scale = head_modulation(self.scale_shift_table, temb)
        original_dtype = hidden_states.dtype
        hidden_states = self.norm_out(hidden_states.float())
        hidden_states = (hidden_states * (scale + 1) + shift).to(original_dtype)
        hidden_states = self.proj_out(hidden_states)
        return unpatchified(hidden_states, batch_size, grid, self.patch_size)

    def batch_sizes(self, pictures: Dim, batches: int | None) -> list[Dim]:
        """Pictures in each call of the motion encoder: all full but the last."""
        if batches is None:
            assert isinstance(pictures, int)
            batches = -(-pictures // self.motion_encoder_batch_size)
        full = [self.motion_encoder_batch_size] * (batches - 1)
        return [*full, pictures - sum(full)]

    def sizes(self, dims: Mapping[str, int]) -> dict[str, Dim]:
        """The frames of the face follow from the latent frames; where one latent frame is left, all are numbers."""
        sizes = super().sizes(dims)
        latent_frames = dims["frames"] - 1
        if latent_frames == 1:
            return {**sizes, "frames": dims["frames"], "face_frames": dims["face_frames"]}
        surplus = dims["face_frames"] - FACE_STRIDE * latent_frames
        return {**sizes, "face_frames": FACE_STRIDE * (sizes["frames"] - 1) + surplus}

    def counts(self, dims: Mapping[str, int]) -> dict[str, int]:
        """How often the motion encoder runs."""
        return {"face_batches": len(self.batch_sizes(dims["batch"] * dims["face_frames"], None))}

    def inputs(self, **dims: Dim) -> dict[str, Tensor]:
        """As :class:`Wan2_1DiTModel`, the pose of all frames but the reference, and ``face_frames`` pictures."""
        result = super().inputs(**dims)
        batch, _, frames, *sides = result["hidden_states"].shape
        dtype, channels = result["hidden_states"].dtype, self.pose_patch_embedding.weight.shape[1]
        size = self.motion_encoder.size
        return {
            **result,
            "pose_hidden_states": Tensor((batch, channels, frames - 1, *sides), dtype),
            "face_pixel_values": Tensor((batch, 3, dims["face_frames"], size, size), dtype),
        }
