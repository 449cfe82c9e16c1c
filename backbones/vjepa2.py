"""V-JEPA 2 (Assran et al. 2025): a video encoder, and a predictor of what it would make of frames that are not seen.

Maps of observed frames are the encoder's, each of two frames; maps of future ones are the predictor's, told where in space and time
they lie. The predictor learnt to give the encoder's output normalised once more, without weights (app/vjepa/train.py of the
published code), and that is what the maps of observed frames are too, so that a head reads one and the same thing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import VJEPA2Model

from backbones.encoders import EncoderBackbone, side, token_maps


class VJepa2Backbone(EncoderBackbone):
    """V-JEPA 2. Images of any shape up to the model's crop: patches are told their places in its square, as in training, where the
    encoder sees a part of them.

    Args:
        model: encoder and predictor. taps: `encoder.layer.i`, or `encoder.layernorm`, alone if anything is to be predicted; the
            predictor is dropped otherwise.
        scale: see `EncoderBackbone`; images should come near to filling the crop. max_context, max_horizon: most observed and
            future frames, together at most the model's clip; None for 16 of each, or half a shorter clip, and for no horizon where
            nothing is predicted.

    Raises:
        ValueError: see `EncoderBackbone`; or too many frames, or a horizon where nothing is predicted.
    """

    kind = VJEPA2Model
    stem: tuple[str, ...] = ("encoder.embeddings",)
    norm = "encoder.layernorm"
    lora_layers = ("query", "key", "value", "proj")

    def __init__(
        self,
        model: VJEPA2Model,
        *,
        taps: Sequence[str] = ("encoder.layernorm",),
        scale: float = 1.0,
        max_context: int | None = None,
        max_horizon: int | None = None,
    ) -> None:
        config, predicts = model.config, tuple(taps) == (self.norm,)
        max_context = min(16, config.frames_per_clip // 2) if max_context is None else max_context
        if max_horizon is None:
            max_horizon = max(0, min(16, config.frames_per_clip - max_context)) if predicts else 0
        if max_horizon and not predicts:
            raise ValueError(f"max_horizon {max_horizon} needs taps [{self.norm!r}]: that is what is predicted; got {list(taps)}")
        steps = sum(math.ceil(frames / config.tubelet_size) for frames in (max_context, max_horizon))
        if steps > config.frames_per_clip // config.tubelet_size:
            raise ValueError(
                f"max_context {max_context} and max_horizon {max_horizon} are more than the {config.frames_per_clip} frames of the "
                f"model's clips, where each is rounded up to a multiple of {config.tubelet_size}; lower one"
            )
        patch = side(config.patch_size)
        super().__init__(
            model, taps=taps, contexts=(1, max_context), multiple=patch, most=patch * (config.crop_size // patch),
            span=config.tubelet_size, max_horizon=max_horizon, scale=scale,
        )  # fmt: skip
        self.row = config.crop_size // patch
        if max_horizon:
            self.stem = (*self.stem, "predictor")
            self.requires_grad_(True)
        else:
            del model.predictor

    def run(self, frames: Tensor, grid: tuple[int, int, int]) -> None:
        # the model's own forward numbers patches as if they filled the square, which is wrong for any other shape
        encoder = self.model.encoder
        hidden = encoder.embeddings(frames)
        whole = grid[1:] == (self.row, self.row)
        places = None if whole else self.places(0, grid, frames.device).expand(len(frames), -1)
        for block in encoder.layer:
            hidden = block(hidden, places)[0]
        encoder.layernorm(hidden)

    def tap_map(self, output: Tensor, b: int, grid: tuple[int, int, int]) -> Tensor:
        return token_maps(output, grid)

    def maps(self, frames: Tensor, grid: tuple[int, int, int], future: int) -> Tensor:
        maps = super().maps(frames, grid, future)
        if not self.spec.predicts:
            return maps
        seen = maps.permute(0, 2, 1, 3, 4)
        normal = F.layer_norm(maps.movedim(2, -1), maps.shape[2:3]).movedim(-1, 2)
        return torch.cat([normal, token_maps(self.predicted(seen, future), (future, *grid[1:]))], 1) if future else normal

    def predicted(self, seen: Tensor, future: int) -> Tensor:
        """Tokens (b, future * h * w, c) that follow the encoder's output (b, c, s, h, w)."""
        b, c, s, h, w = seen.shape
        known, unknown = self.places(0, (s, h, w), seen.device), self.places(s, (future, h, w), seen.device)
        # the predictor takes tokens out of the whole square by their places
        square = seen.new_zeros(b, s * self.row**2, c).index_copy(1, known, seen.flatten(2).mT)
        return self.model.predictor(square, [known.expand(b, -1)], [unknown.expand(b, -1)]).last_hidden_state

    def places(self, first: int, grid: tuple[int, int, int], device: torch.device) -> Tensor:
        """(s * h * w,) numbers, in the model's square of patches, of a grid that begins in its corner, `first` steps late."""
        times, rows, columns = (torch.arange(n, device=device) for n in grid)
        return ((times[:, None, None] + first) * self.row**2 + rows[:, None] * self.row + columns).flatten()
