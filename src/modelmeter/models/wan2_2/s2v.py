"""The diffusion transformer of Wan2.2 S2V (speech to video) on shapes, under the official code's own names.

It follows what the official ``WanModel_S2V`` runs (Wan2.2 ``wan/modules/s2v/model_s2v.py`` at 42bf4cf) under autocast
to bfloat16, for one video, which is all that ``wan/speech2video.py`` gives it; diffusers has no such class. The
lengths of samples, a few integers, are left out.

Shapes: T latent frames of noise, h x w latents, S tokens, of which the first S' are noise, L text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modelmeter.models.wan2_1.official import AUTOCAST_DTYPE, SinusoidalEmbedding
from modelmeter.models.wan2_2.s2v_audio import AUDIO_LAYERS, AudioInjector_WAN, CausalAudioEncoder
from modelmeter.models.wan2_2.s2v_blocks import Head_S2V, WanS2VAttentionBlock
from modelmeter.models.wan2_2.s2v_motion import (
    MOTION_CHANNELS,
    FramePackMotioner,
    rope_precompute,
    rotation_tables,
)
from modelmeter.nn import (
    GELU,
    Conv3d,
    Dim,
    Embedding,
    Linear,
    ModuleList,
    Sequential,
    SiLU,
    Tensor,
    autocast,
    bfloat16,
    float32,
    functional,
    int64,
)
from modelmeter.stage import Component

#: Kinds of tokens: noise, reference, motion. Source: ``trainable_cond_mask``.
TOKEN_KINDS = 3
#: Sizes of which four go into one of another: audio frames into a latent frame, tokens into the largest patch of
#: packed motion.
PACKED = {"audio_frames": "frames", "rows": "packed_rows", "columns": "packed_columns"}
PACKED_SIZE = 4


class Wan2_2S2VModel(Component):
    """The diffusion transformer of Wan2.2 S2V, as the official ``WanModel_S2V``.

    Args:
        patch_size, in_dim, dim, ffn_dim, freq_dim, text_dim, out_dim, num_heads, num_layers, cond_dim, audio_dim,
            num_audio_token, audio_inject_layers: as in the configuration of the official class.
        motion_frames: frames before the clip, and their latent frames.

    Example:
        >>> from modelmeter.nn import trace
        >>> model = Wan2_2S2VModel(dim=256, num_heads=2, ffn_dim=512, num_layers=2)
        >>> sizes = {"frames": 3, "audio_frames": 12, "rows": 5, "columns": 8, "text_len": 64}
        >>> inputs = model.inputs(**sizes, drop_motion_frames=1)
        >>> trace(model, **inputs).outputs
        Tensor([1, 16, 3, 10, 16], float32)
    """

    literals = ("drop_motion_frames",)

    def __init__(
        self,
        *,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        in_dim: int = 16,
        dim: int = 5120,
        ffn_dim: int = 13824,
        freq_dim: int = 256,
        text_dim: int = 4096,
        out_dim: int = 16,
        num_heads: int = 40,
        num_layers: int = 40,
        cond_dim: int = 16,
        audio_dim: int = 1024,
        num_audio_token: int = 4,
        audio_inject_layers: Sequence[int] = (0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39),
        motion_frames: tuple[int, int] = (73, 19),
    ) -> None:
        self.patch_size = patch_size
        self.num_heads = num_heads
        self.freq_dim = freq_dim
        self.text_dim = text_dim
        self.motion_frames = motion_frames
        self.patch_embedding = Conv3d(in_dim, dim, patch_size, stride=patch_size)
        self.text_embedding = Sequential([Linear(text_dim, dim), GELU(), Linear(dim, dim)])
        self.time_embedding = Sequential([Linear(freq_dim, dim), SiLU(), Linear(dim, dim)])
        self.time_projection = Sequential([SiLU(), Linear(dim, dim * 6)])
        self.blocks = ModuleList([WanS2VAttentionBlock(dim, ffn_dim, num_heads) for _ in range(num_layers)])
        self.head = Head_S2V(dim, out_dim, patch_size)
        self.freqs = rotation_tables(dim // num_heads)
        self.cond_encoder = Conv3d(cond_dim, dim, patch_size, stride=patch_size)
        self.casual_audio_encoder = CausalAudioEncoder(audio_dim, dim, num_audio_token)
        self.injected_block_id = tuple(layer for layer in sorted(audio_inject_layers) if layer < num_layers)
        self.audio_injector = AudioInjector_WAN(dim, num_heads=num_heads, layers=len(self.injected_block_id))
        self.trainable_cond_mask = Embedding(TOKEN_KINDS, dim)
        self.frame_packer = FramePackMotioner(dim, num_heads)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor,
        ref_latents: Tensor,
        motion_latents: Tensor,
        cond_states: Tensor,
        audio_input: Tensor,
        *,
        drop_motion_frames: bool,
    ) -> Tensor:
        """Noise to its prediction: [1, C, T, h, w] -> [1, C', T, h, w].

        Args:
            t: [1].
            context: [1, L, text_dim].
            ref_latents: [1, C, 1, h, w].
            motion_latents: [1, 16, motion, h, w].
            cond_states: the pose, [1, cond_dim, T, h, w].
            audio_input: all hidden states of the audio encoder, one a frame: [1, 25, audio_dim, A].
            drop_motion_frames: leave the packed motion out of the tokens, as in the first clip.
        """
        with autocast(AUTOCAST_DTYPE):
            audio_input = functional.cat(
                [audio_input[..., 0:1].repeat(1, 1, 1, self.motion_frames[0]), audio_input], dim=-1
            )
            audio_emb_global, audio_emb = self.casual_audio_encoder(audio_input)
            audio_of_clip = audio_emb_global[:, self.motion_frames[1] :].clone()
            merged_audio_emb = audio_emb[:, self.motion_frames[1] :]

            x = self.patch_embedding(x)
            cond = self.cond_encoder(cond_states)  # lives on, as ref does
            x = x + cond
            _, _, frames, rows, columns = x.shape
            x = x.flatten(2).transpose(1, 2)
            ref = self.patch_embedding(ref_latents).flatten(2).transpose(1, 2)
            original_seq_len = x.shape[1]
            x = functional.cat([x, ref], dim=1)
            mask_input = functional.zeros((1, x.shape[1]), int64)
            mask_input[:, original_seq_len:].fill_(1)
            x = functional.cat([x], dim=0)
            freqs = rope_precompute(
                x.unflatten(2, (self.num_heads, -1)), [(frames, rows, columns), (1, rows, columns)], self.freqs
            )
            x, freqs, mask_input = self._inject_motion(x, freqs, mask_input, motion_latents[0], drop_motion_frames)
            x = functional.cat([x], dim=0)
            freqs = functional.cat([freqs], dim=0)
            mask_input = functional.cat([mask_input], dim=0)
            x = x + self.trainable_cond_mask(mask_input).to(x.dtype)

            e, e0 = self._time(t)
            # each prompt is padded to its length, then all are stacked
            context = self.text_embedding(functional.stack([functional.cat([context[0]], dim=0)], dim=0))
            for i, block in enumerate(self.blocks):
                x = block(x, (e0, original_seq_len), freqs, context)
                if i in self.injected_block_id:
                    self._inject_audio(
                        self.injected_block_id.index(i), x, original_seq_len, audio_of_clip, merged_audio_emb
                    )
            x = x[:, :original_seq_len]
            x = self.head(x, e)
            return self._unpatchify(x, (frames, rows, columns)).float()

    def _inject_motion(
        self, x: Tensor, freqs: Tensor, mask: Tensor, motion: Tensor, drop: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Packed motion behind the other tokens; dropped motion is computed all the same."""
        mot, mot_remb = self.frame_packer(motion)
        if drop:
            mot, mot_remb = mot[:, :0], mot_remb[:, :0]
        x = functional.cat([x, mot], dim=1)
        freqs = functional.cat([freqs, mot_remb], dim=1)
        mask = functional.cat([mask, functional.ones((1, x.shape[1] - mask.shape[1]), mask.dtype) * 2], dim=1)
        return x, freqs, mask

    def _time(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Embedding of the timestep [1, D], and the modulation by it and by the timestep 0 [1, 6, 2, D]."""
        t = functional.cat([t, functional.zeros((1,), t.dtype)], dim=0)
        with autocast(float32):
            e = self.time_embedding(SinusoidalEmbedding(self.freq_dim).forward(t).float())
            e0 = self.time_projection(e).unflatten(1, (6, -1))
        zero_e0 = e0[-1:]
        e0 = e0[:-1]
        return e[:-1], functional.cat([e0.unsqueeze(2), zero_e0.unsqueeze(2).repeat(1, 1, 1, 1)], dim=2)

    def _inject_audio(
        self, injector: int, hidden_states: Tensor, noise: Dim, audio_emb_global: Tensor, audio_emb: Tensor
    ) -> None:
        """Attention of every frame of the noise to its own audio, added in place."""
        num_frames = audio_emb.shape[1]
        input_hidden_states = hidden_states[:, :noise].clone()
        input_hidden_states = input_hidden_states.view(num_frames, -1, hidden_states.shape[2])
        attn_hidden_states = self.audio_injector.injector_adain_layers[injector](
            input_hidden_states, audio_emb_global.flatten(0, 1)[:, 0]
        )
        residual_out = self.audio_injector.injector[injector](attn_hidden_states, audio_emb.flatten(0, 1))
        residual_out = residual_out.view(1, noise, -1)
        hidden_states[:, :noise].copy_(hidden_states[:, :noise] + residual_out)

    def _unpatchify(self, x: Tensor, grid: tuple[Dim, Dim, Dim]) -> Tensor:
        """Tokens back to a video, which autocast takes for a product: [1, S', pt ph pw C'] -> [1, C', T, h, w]."""
        x = x.view(1, *grid, *self.patch_size, -1)
        x = functional.einsum("bfhwpqrc->bcfphqwr", x)
        sizes = (size * patch for size, patch in zip(grid, self.patch_size, strict=True))
        return x.reshape(1, x.shape[1], *sizes)

    def inputs(self, **dims: Dim) -> dict[str, Any]:
        """What ``forward`` takes for one clip, by name.

        Args:
            dims: ``frames`` of latents, ``audio_frames``, ``rows`` and ``columns`` of tokens, ``text_len``, and 1 or 0
                for ``drop_motion_frames``.
        """
        p_t, p_h, p_w = self.patch_size
        frames, sizes = dims["frames"] * p_t, (dims["rows"] * p_h, dims["columns"] * p_w)
        audio_dim = self.casual_audio_encoder.encoder.conv1_local.conv.weight.shape[1]
        in_dim, cond_dim = self.patch_embedding.weight.shape[1], self.cond_encoder.weight.shape[1]
        return {
            "x": Tensor((1, in_dim, frames, *sizes), bfloat16),
            "t": Tensor((1,), int64),
            "context": Tensor((1, dims["text_len"], self.text_dim), bfloat16),
            "ref_latents": Tensor((1, in_dim, 1, *sizes), float32),
            "motion_latents": Tensor((1, MOTION_CHANNELS, self.motion_frames[1], *sizes), float32),
            "cond_states": Tensor((1, cond_dim, frames, *sizes), bfloat16),
            "audio_input": Tensor((1, AUDIO_LAYERS, audio_dim, dims["audio_frames"]), bfloat16),
            "drop_motion_frames": bool(dims["drop_motion_frames"]),
        }

    def sizes(self, dims: Mapping[str, int]) -> dict[str, Dim]:
        """Every audio frame, row and column stands for a part of another size, and a rest, which is a number."""
        found = super().sizes(dims)
        for name, packed in PACKED.items():
            rest = dims[name] - PACKED_SIZE * dims[packed]
            found[name] = PACKED_SIZE * found[packed] + rest
        return found


def clip_dims(*, num_frames: int, rows: int, columns: int, text_len: int, drop_motion_frames: bool) -> dict[str, int]:
    """Sizes of a clip: of its frames whose latents are whole, of its tokens, and of what they are packed into.

    Example:
        >>> sizes = clip_dims(num_frames=80, rows=30, columns=52, text_len=512, drop_motion_frames=True)
        >>> sizes["frames"], sizes["packed_rows"], sizes["packed_columns"]
        (20, 7, 13)
    """
    sizes = {"audio_frames": num_frames, "rows": rows, "columns": columns}
    packed = {PACKED[name]: size // PACKED_SIZE for name, size in sizes.items()}
    return {**sizes, **packed, "text_len": text_len, "drop_motion_frames": int(drop_motion_frames)}
