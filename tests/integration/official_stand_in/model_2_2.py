"""Stand-in for ``wan/modules/model.py`` of Wan2.2: a timestep for every token, and no image encoder."""

import torch

from .base import WanModel as WanModel2_1
from .base import waves


class WanModel(WanModel2_1):
    """The diffusion transformer."""

    def takes_images(self):
        """Images come in the channels alone."""
        return False

    def times(self, t, seq_len):
        """A timestep for every token."""
        if t.dim() == 1:
            t = t.expand(t.size(0), seq_len)
        with torch.amp.autocast("cuda", dtype=torch.float32):
            e = self.time_embedding(waves(self.freq_dim, t.flatten()).unflatten(0, (t.size(0), seq_len)).float())
            return e, self.time_projection(e).unflatten(2, (6, self.dim))

    def forward(self, x, t, context, seq_len, y=None):
        """Lists of [C, T, h, w] and [L, C], timesteps [B] or [B, S] -> list of [C', T, h, w]."""
        assert (y is not None) == (self.model_type == "i2v")
        return super().forward(x, t, context, seq_len, y=y)
