"""A level of S-Ray (07's Level) that computes its valid tokens alone, on a CPU."""
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fast.attention import Block, attend_blocks, refine
from fast.lookup import lookup

data = import_module("01_data")
encoder = import_module("02_encoder")
reprojection = import_module("03_reprojection")
cra = import_module("04_cra")
weighting = import_module("05_weighting")
geometry = import_module("06_geometry_render")


class SumOfRuns(torch.autograd.Function):
    """The sums of the first lengths[0] rows, of the next lengths[1] and so on: x (T, C), lengths (N,) -> (N,
    C)."""

    @staticmethod
    def forward(ctx, x: Tensor, lengths: Tensor) -> Tensor:
        ctx.save_for_backward(lengths)
        ctx.rows = len(x)
        rows = torch.arange(len(x), device=x.device)
        return F.embedding_bag(rows, x, lengths.cumsum(0) - lengths, mode="sum")

    @staticmethod
    def backward(ctx, gradient: Tensor):
        """Each row of a run has the gradient of its sum."""
        lengths, = ctx.saved_tensors
        return gradient.repeat_interleave(lengths, dim=0, output_size=ctx.rows), None


def sum_over_views(x: Tensor, mask: Tensor) -> Tensor:
    """x (T, C) where mask (R, S, V) is true -> (R, S, C)."""
    return SumOfRuns.apply(x, mask.sum(dim=2).flatten()).view(*mask.shape[:2], -1)


def unpack(x: Tensor, mask: Tensor) -> Tensor:
    """x (T,) -> (R, S, V): in its place where the mask is true, 0 elsewhere."""
    return x.new_zeros(mask.numel()).index_copy(0, mask.flatten().nonzero()[:, 0], x).view(mask.shape)


class PackedLevel(nn.Module):
    """07's Level on valid tokens."""

    def __init__(self, config, classes: int):
        super().__init__()
        self.config = config
        self.reprojection = reprojection.Reprojection()
        self.geometry = geometry.GeometryNetwork(density=config.density, relu=config.geometry_relu)
        self.cra = cra.CRA(config.cra, relu=config.cra_relu)
        self.weights = weighting.WeightNetwork(tau=config.tau)
        self.head = nn.Linear(encoder.CHANNELS, classes)

    def reproject(self, origin, directions, z, sources, colour):
        """M (T, C), colours (T, 3), differences (T, 4), mask (R, S, V)"""
        features, images, K, c2w = sources[:4]
        V, (H, W) = len(K), images.shape[-2:]
        points = origin + z[..., None] * directions[:, None]                  # (R, S, 3)
        pixels, depth = data.project(points, K, c2w)                          # (R, S, V, 2), (R, S, V)
        mask = reprojection.in_view(pixels, depth, H, W)                      # (R, S, V)
        if sources.mask is not None:
            mask = mask & reprojection.unmasked(sources.mask, pixels.masked_fill(~mask[..., None], 0))
        token = mask.flatten().nonzero()[:, 0]                                # (T,)
        view = token % V
        pixels = pixels.view(-1, 2).index_select(0, token)                    # (T, 2)
        centres = c2w[:, :3, 3].contiguous().index_select(0, view)            # (T, 3)
        points = points.view(-1, 3).index_select(0, token // V)               # (T, 3)
        # T "rays" of one sample, each with the one source camera of its token
        differences = reprojection.direction_differences(points[:, None], origin, centres[:, None, None])
        differences = differences.view(-1, 4)                                 # (T, 4)
        M = lookup(features, pixels, view, encoder.STRIDE) + self.reprojection.L21(differences)
        colours = lookup(images, pixels, view, 1) if colour else None
        return M, colours, differences, mask

    def look(self, M, colours, differences, mask, index):
        """-> sigma (R, S), colour (R, S, 3), visibility (T, 1)"""
        g = self.geometry
        L1, L3 = g.L1(M), g.L2(M).sigmoid()
        L4 = L1 * L3
        valid = mask.sum(2)[..., None].clamp(min=1)
        L5, square = sum_over_views(L4, mask) / valid, sum_over_views(L4.square(), mask) / valid
        L6 = (square - L5.square()).clamp(min=0)
        L8 = g.L8(torch.cat([L5, L6], dim=-1))                                # (R, S, 16)
        seen = mask.any(dim=2)
        position = cra.sample_positions(mask.shape[1] if index is None else index, 16, M.device).to(M.dtype)
        whole = [Block(*seen.shape, None if seen.all() else seen)]
        L9 = attend_blocks(g.L9, (L8 + position).flatten(0, 1), whole).view(L8.shape)
        sigma = g.density(g.L11(g.L10(L9)).squeeze(-1)) * seen
        if colours is None:
            return sigma, None, L3
        score = g.blend(torch.cat([L4, L3, differences], dim=-1)).squeeze(-1)           # (T,)
        score = unpack(score, mask) + cra.key_bias(mask, score.dtype)         # (R, S, V)
        share = score.softmax(-1)[mask]                                       # (T,)
        return sigma, sum_over_views(share[:, None] * colours, mask), L3

    def context_and_density(self, origin, directions, z, sources, colour: bool = True) -> tuple:
        """As Level's."""
        M, colours, differences, mask = self.reproject(origin, directions, z, sources, colour)
        c, index = self.config, None
        if c.position == "depth":
            near, far = (c.near, c.far) if sources.near_far is None else sources.near_far[0].unbind()
            index = z.shape[1] * (1 / near - 1 / z) / (1 / near - 1 / far)    # (R, S) in 0 .. S
        sigma, colours, visibility = self.look(M, colours, differences, mask, index)
        return (M, differences, mask, visibility, index), sigma, colours

    def semantics(self, context: tuple, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As Level's; keep (R, n): of these samples alone."""
        M, differences, mask, visibility, index = context
        refined = refine(self.cra, M, mask, index, keep)                      # M'': (T, C)
        if keep is not None:
            kept = torch.zeros_like(mask[:, :, 0]).scatter(1, keep, True)[..., None].expand(mask.shape)
            tokens = kept[mask].nonzero()[:, 0]
            M, differences, visibility = (x.index_select(0, tokens) for x in (M, differences, visibility))
            mask = mask.take_along_dim(keep[:, :, None], dim=1)
        score = self.weights.L2(torch.cat([M, differences, visibility], dim=-1)).squeeze(-1).sigmoid()
        w = weighting.view_weights(unpack(score, mask), mask, self.weights.tau)
        return self.head(sum_over_views(w[mask][:, None] * refined, mask)), w
