"""Stand-in for ``wan/modules/animate/model_animate.py`` of Wan2.2."""

import math

import torch
from torch import nn

from ..base import ImageProjection
from ..base import WanModel as WanModel2_1
from .face_blocks import FaceAdapter, FaceEncoder
from .motion_encoder import Generator

PICTURES = 8


class WanAnimateModel(WanModel2_1):
    """The diffusion transformer with pose and face."""

    def __init__(
        self,
        patch_size=(1, 2, 2),
        text_len=512,
        in_dim=36,
        dim=5120,
        ffn_dim=13824,
        freq_dim=256,
        text_dim=4096,
        out_dim=16,
        num_heads=40,
        num_layers=40,
        window_size=(-1, -1),
        qk_norm=True,
        cross_attn_norm=True,
        eps=1e-6,
        motion_encoder_dim=512,
        use_img_emb=True,
    ):
        sizes = patch_size, text_len, in_dim, dim, ffn_dim, freq_dim, text_dim, out_dim, num_heads, num_layers
        super().__init__("i2v", *sizes, window_size, qk_norm, cross_attn_norm, eps)
        assert use_img_emb
        assert isinstance(self.img_emb, ImageProjection)
        self.pose_patch_embedding = nn.Conv3d(16, dim, kernel_size=patch_size, stride=patch_size)
        self.motion_encoder = Generator(size=512, style_dim=512, motion_dim=20)
        self.face_adapter = FaceAdapter(heads_num=num_heads, hidden_dim=dim, num_adapter_layers=num_layers // 5)
        self.face_encoder = FaceEncoder(in_dim=motion_encoder_dim, hidden_dim=dim, num_heads=4)

    def faces(self, face_pixel_values):
        """[B, 3, F, 512, 512] -> [B, T, N, D]."""
        pictures = face_pixel_values.transpose(1, 2).flatten(0, 1)
        calls = range(math.ceil(len(pictures) / PICTURES))
        motion = torch.cat([self.motion_encoder.get_motion(pictures[i * PICTURES : (i + 1) * PICTURES]) for i in calls])
        tokens = self.face_encoder(motion.unflatten(0, (len(face_pixel_values), -1)))
        return torch.cat([torch.zeros_like(tokens[:, :1]), tokens], dim=1)

    def forward(self, x, t, clip_fea, context, seq_len, y=None, pose_latents=None, face_pixel_values=None):
        """As ``WanModel``, with poses of all frames but the first, and pictures of the face."""
        latents = [torch.cat(pair, dim=0) for pair in zip(x, y, strict=True)]
        faces = self.faces(face_pixel_values)
        x, given = self.embedded(latents, None, context, seq_len, clip_fea)
        poses = torch.cat(
            [self.pose_patch_embedding(pose.unsqueeze(0)).flatten(2).transpose(1, 2) for pose in pose_latents]
        )
        x = torch.cat([x[:, : x.shape[1] - poses.shape[1]], x[:, x.shape[1] - poses.shape[1] :] + poses], dim=1)
        e, given["e"] = self.times(t, seq_len)
        for i, block in enumerate(self.blocks):
            x = block(x, **given)
            if i % 5 == 0:
                x = x + self.face_adapter.fuser_blocks[i // 5](x, faces)
        return self.unpatchify(self.head(x, e), given["grid_sizes"])
