"""Whole images sooner: labels from the samples that weigh most, a coarse level on a grid, several cores."""
import math
from importlib import import_module

import torch
from torch import Tensor, nn

from fast.packed import PackedLevel
from support.machine import core_pool

data = import_module("01_data")
reprojection = import_module("03_reprojection")
geometry = import_module("06_geometry_render")
training = import_module("07_train")


class Heaviest:
    """A level that has looked at its samples, and answers for the `keep` (R, n) of each ray alone: the logits
    of the others are 0."""

    def __init__(self, level: nn.Module, *rays):
        self.level, self.seen, self.keep = level, level.context_and_density(*rays), None

    def context_and_density(self, *_) -> tuple:
        """Level's."""
        return self.seen

    def semantics(self, context: tuple) -> tuple[Tensor, None]:
        """Level's, without w."""
        if isinstance(self.level, PackedLevel):
            logits, _ = self.level.semantics(context, self.keep)              # (R, n, L)
        else:
            logits, _ = self.level.semantics(context)                         # (R, S, L)
            logits = logits.take_along_dim(self.keep[:, :, None], dim=1)      # (R, n, L)
        every = logits.new_zeros(*self.seen[1].shape, logits.shape[-1])       # (R, S, L)
        return every.scatter(1, self.keep[:, :, None].expand_as(logits), logits), None


class FastSRay(training.SRay):
    """S-Ray whose render_image skips what weighs little: keep > 0, labels come from the `keep` samples of
    largest weight on each ray; coarse_stride n, the coarse level places the samples of every n-th row and
    column's rays, and its weights are interpolated between; workers threads (0: as many as help) share the
    chunks."""

    keep, coarse_stride, workers = 0, 1, 0

    @torch.no_grad()
    def coarse_weights(self, sources, pixels: Tensor, K: Tensor, c2w: Tensor) -> Tensor:
        """The coarse samples' weights (R, coarse), which place the fine ones."""
        origin, directions = data.rays(pixels, K, c2w)
        z = self.coarse_depths(sources, len(pixels), pixels.device)
        return self.render_level(self.coarse, origin, directions, z, sources, density_only=True)["weights"]

    def coarse_depths(self, sources, rays: int, device) -> Tensor:
        """(R, coarse)"""
        c, (near, far) = self.config, training.depth_range(self.config, sources)
        return geometry.coarse_samples(near, far, rays, c.coarse, c.spacing, None, device)

    @torch.no_grad()
    def fine_values(self, sources, pixels: Tensor, K: Tensor, c2w: Tensor, weights: Tensor) -> dict:
        """The fine level's pixel values, its samples placed by the coarse weights (R, coarse)."""
        origin, directions = data.rays(pixels, K, c2w)
        z = self.coarse_depths(sources, len(pixels), pixels.device)
        rays = origin, directions, geometry.fine_samples(z, weights, self.config.fine, None), sources
        if not 0 < self.keep < self.config.fine:
            return self.render_level(self.fine, *rays)
        level = Heaviest(self.fine, *rays)
        weights = self.render_level(level, *rays, density_only=True)["weights"]       # (R, S)
        level.keep = weights.topk(self.keep, dim=1).indices.sort(dim=1).values        # (R, keep)
        return self.render_level(level, *rays)

    def render_image(self, sources, K: Tensor, c2w: Tensor, height: int, width: int, chunk: int = 0,
                     stride: int = 1) -> dict[str, Tensor]:
        """As SRay's."""
        c = self.config
        # (h, w, 2)
        grid = data.pixel_grid(height, width).view(height, width, 2)[::stride, ::stride].to(K.device)
        some = grid[::self.coarse_stride, ::self.coarse_stride]  # (h', w', 2) rays that the coarse level sees
        last = torch.channels_last  # rows of a table, for fast.lookup
        sources = sources._replace(images=sources.images.contiguous(memory_format=last),
                                   features=sources.features.contiguous(memory_format=last))
        chunk = chunk or max(1, 2 ** (18 if K.device.type == "cuda" else 14) // max(c.coarse, c.fine))
        pool = core_pool(K.device, math.ceil(grid[..., 0].numel() / chunk), self.workers)
        run = pool.map if pool else map
        weights = None

        def place(pixels: Tensor) -> Tensor:
            return self.coarse_weights(sources, pixels, K, c2w)

        def render(pixels: Tensor) -> dict:
            if weights is None:
                placing = self.coarse_weights(sources, pixels, K, c2w)
            else:
                step = stride * self.coarse_stride                            # pixels between known rays
                placing = reprojection.lookup(weights, pixels[:, None, None], step)[:, 0, 0]
            return self.fine_values(sources, pixels, K, c2w, placing)
        if self.coarse_stride > 1:
            weights = torch.cat(list(run(place, some.flatten(0, 1).split(chunk))))    # (h' w', S)
            weights = weights.T.unflatten(1, some.shape[:2])[None]            # (1, S, h', w')
        parts = list(run(render, grid.flatten(0, 1).split(chunk)))
        if pool:
            pool.shutdown()
        return {key: torch.cat([part[key] for part in parts]).unflatten(0, grid.shape[:2])
                for key in ("colour", "logits", "depth")}
