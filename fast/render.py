"""Whole images sooner: labels from the samples that weigh most, a coarse level on a grid, several cores.

    keep             labels come from the `keep` samples of largest weight on each ray; the others are read
                     along the ray, but ask nothing. Colour and depth stay.
    coarse_stride    the coarse level sees every n-th row and column's rays; between them its weights, which
                     place the fine samples, are interpolated
    workers          threads that share an image's chunks (0: as many as help)

Labels from 8 samples a ray take some 60% of an image's time in full, with a coarse level at every 4th row and
column 44% (320x240, 64 + 64 samples, 8 views, AMD EPYC, one thread). `python -m tools.benchmark` measures it,
`--skipping CHECKPOINT` what it changes.

Test: pytest tests/test_fast_render.py
"""
import math
from contextlib import nullcontext
from importlib import import_module

import torch
from torch import Tensor, nn

from fast.packed import PackedLevel
from support.machine import core_pool

data = import_module("01_data")                    # rays, pixel_grid
reprojection = import_module("03_reprojection")    # lookup: weights between the coarse rays
geometry = import_module("06_geometry_render")     # coarse_samples, fine_samples
training = import_module("07_train")               # SRay, depth_range


class Heaviest:
    """A level that has seen its samples, and answers for some of each ray's alone: it stands in for the level
    in SRay.render_level, so that rendering stays the lesson's."""

    def __init__(self, level: nn.Module, *rays):
        self.level, self.seen = level, level.context_and_density(*rays)
        self.keep: Tensor | None = None                                       # (R, n) samples, increasing

    def context_and_density(self, *_) -> tuple:
        """Level's."""
        return self.seen

    def semantics(self, context: tuple) -> tuple[Tensor, None]:
        """Level's logits (R, S, L), 0 but for the samples to keep; no view weights."""
        where = self.keep[:, :, None]                                         # (R, n, 1)
        if isinstance(self.level, PackedLevel):
            logits, _ = self.level.semantics(context, self.keep)              # (R, n, L)
        else:
            logits = self.level.semantics(context)[0].take_along_dim(where, dim=1)
        every = logits.new_zeros(*self.seen[1].shape, logits.shape[-1])       # (R, S, L)
        return every.scatter(1, where.expand_as(logits), logits), None


class FastSRay(training.SRay):
    """SRay, whose render_image takes the short ways above, and more rays together."""

    keep, coarse_stride, workers, together = 0, 1, 0, 12_288                  # together: samples of a chunk

    def coarse_depths(self, sources, pixels: Tensor) -> Tensor:
        """The coarse samples of pixels (R, 2): (R, coarse)."""
        c, (near, far) = self.config, training.depth_range(self.config, sources)
        return geometry.coarse_samples(near, far, len(pixels), c.coarse, None, pixels.device)

    @torch.no_grad()
    def coarse_weights(self, sources, pixels: Tensor, K: Tensor, c2w: Tensor) -> Tensor:
        """Their weights (R, coarse), which place the fine samples."""
        rays = *data.rays(pixels, K, c2w), self.coarse_depths(sources, pixels), sources
        return self.render_level(self.coarse, *rays, density_only=True)["weights"]

    @torch.no_grad()
    def fine_values(self, sources, pixels: Tensor, K: Tensor, c2w: Tensor, weights: Tensor) -> dict:
        """The fine level's pixel values, its samples placed by the coarse weights (R, coarse)."""
        z = self.coarse_depths(sources, pixels)                               # (R, coarse)
        z = geometry.fine_samples(z, weights, self.config.fine, None)         # (R, S)
        rays = *data.rays(pixels, K, c2w), z, sources
        if not 0 < self.keep < self.config.fine:
            return self.render_level(self.fine, *rays)
        level = Heaviest(self.fine, *rays)
        weights = self.render_level(level, *rays, density_only=True)["weights"]       # (R, S)
        level.keep = weights.topk(self.keep, dim=1).indices.sort(dim=1).values        # (R, keep)
        return self.render_level(level, *rays)

    def render_image(self, sources, K: Tensor, c2w: Tensor, height: int, width: int, chunk: int = 0,
                     stride: int = 1) -> dict[str, Tensor]:
        """SRay's."""
        c, n = self.config, self.coarse_stride
        grid = data.pixel_grid(height, width).to(K.device).view(height, width, 2)[::stride, ::stride]
        few = grid[::n, ::n]                                                  # (h', w', 2): the coarse rays
        last = torch.channels_last                                            # a cell's channels side by side
        sources = sources._replace(features=sources.features.contiguous(memory_format=last),
                                   images=sources.images.contiguous(memory_format=last))
        chunk = chunk or max(1, self.together // max(c.coarse, c.fine))
        pool = core_pool(K.device, math.ceil(grid[..., 0].numel() / chunk), self.workers)
        run = pool.map if pool else map

        def place(pixels: Tensor) -> Tensor:
            return self.coarse_weights(sources, pixels, K, c2w)

        def between(pixels: Tensor) -> Tensor:
            return reprojection.lookup(weights, pixels[:, None, None], n * stride)[:, 0, 0]      # (R, coarse)

        def render(pixels: Tensor) -> dict[str, Tensor]:
            return self.fine_values(sources, pixels, K, c2w, (place if n == 1 else between)(pixels))
        with pool or nullcontext():
            if n > 1:
                weights = torch.cat(list(run(place, few.flatten(0, 1).split(chunk))))     # (h' w', coarse)
                weights = weights.T.unflatten(1, few.shape[:2])[None]         # (1, coarse, h', w')
            parts = list(run(render, grid.flatten(0, 1).split(chunk)))
        return {key: torch.cat([part[key] for part in parts]).unflatten(0, grid.shape[:2])
                for key in ("colour", "logits", "depth")}
