"""A level of S-Ray that computes its valid tokens alone: 07's Level for a CPU.

A room's ray leaves most source images, so two thirds of the tokens (sample, view) of M (R, S, V, C) are
masked. Here M is (T, C), the T valid ones. Layers work on tokens as they are; lookups (fast/lookup.py),
attention (fast/attention.py) and sums over the views have a packed form. A plain step takes 1.9 times as
long, a plain image 2.8 times; `elu` saves 5% of an image (AMD EPYC, one thread; `python -m tools.benchmark
--tried`).

Test: pytest tests/test_fast_packed.py
"""
import math
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fast.attention import attend, lay_out, padded_length, refine
from fast.lookup import lookup
from fast.tokens import Tokens

data = import_module("01_data")                    # project
encoder = import_module("02_encoder")              # STRIDE, CHANNELS
reprojection = import_module("03_reprojection")    # Reprojection, in_view, direction_differences
cra = import_module("04_cra")                      # CRA, key_bias, sample_positions
weighting = import_module("05_weighting")          # WeightNetwork, view_weights
geometry = import_module("06_geometry_render")     # GeometryNetwork


def elu(x: Tensor) -> Tensor:
    """nn.ELU in place, for x that nobody else reads; where no gradient is wanted by exp2, which is faster."""
    if torch.is_grad_enabled():
        return F.elu_(x)
    y = (x * math.log2(math.e)).exp2_().clamp_(max=1).sub_(1)                 # exp(x) - 1 >= x; 0 where x > 0
    return torch.maximum(x, y, out=x)


class PackedLevel(nn.Module):
    """07's Level, with its methods, its modules and their parameters. Cameras and sums are the lessons'."""

    def __init__(self, config, classes: int):
        super().__init__()
        c = self.config = config
        self.reprojection = reprojection.Reprojection()
        self.geometry = geometry.GeometryNetwork(density=c.density, relu=c.geometry_relu, places=c.places)
        self.cra = cra.CRA(c.cra, relu=c.cra_relu, places=c.places)
        self.weights = weighting.WeightNetwork(tau=c.tau)
        self.head = nn.Linear(encoder.CHANNELS, classes)

    def reproject(self, points: Tensor, origin: Tensor, features: Tensor, images: Tensor, K: Tensor,
                  c2w: Tensor, masks: Tensor | None, colour: bool) -> tuple:
        """03's Reprojection -> M (T, C), colours (T, 3) or None, differences (T, 4), Tokens."""
        H, W = images.shape[-2:]
        pixels, z = data.project(points, K, c2w)                              # (R, S, V, 2), (R, S, V)
        mask = reprojection.in_view(pixels, z, H, W)                          # (R, S, V)
        if masks is not None:
            mask = mask & reprojection.unmasked(masks, pixels.masked_fill(~mask[..., None], 0))
        tokens = Tokens.of(mask)
        view = tokens.place % len(K)                                          # (T,)
        pixels = pixels.view(-1, 2).index_select(0, tokens.place)             # (T, 2)
        centres = c2w[:, :3, 3].contiguous().index_select(0, view)            # (T, 3)
        points = points.view(-1, 3).index_select(0, tokens.sample)            # (T, 3)
        differences = reprojection.direction_differences(  # of T rays of one sample, one view
            points[:, None], origin, centres[:, None, None]).view(-1, 4)      # (T, 4)
        L20 = lookup(features, pixels, view, encoder.STRIDE)                  # (T, C)
        L22 = L20.add_(self.reprojection.L21(differences))                    # (T, C)
        return L22, lookup(images, pixels, view, 1) if colour else None, differences, tokens

    def density(self, M: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """06's GeometryNetwork -> sigma (R, S), L4 (T, 32), L3 (T, 1)."""
        net, (R, S, _) = self.geometry, tokens.mask.shape
        L1, L3 = net.L1(M), net.L2(M).sigmoid()                               # (T, 32), (T, 1)
        L4 = L1 * L3                                                          # (T, 32)
        valid = tokens.mask.sum(2)[..., None].clamp(min=1)                    # (R, S, 1)
        L5 = tokens.sum_over_views(L4) / valid                                # (R, S, 32)
        L6 = (tokens.sum_over_views(L4.square()) / valid - L5.square()).clamp(min=0)
        L8 = net.L8(torch.cat([L5, L6], dim=-1))                              # (R, S, 16)
        seen = tokens.mask.any(dim=2)                                         # (R, S)
        L8 = L8 + cra.sample_positions(S, 16, net.places).to(M.dtype)
        rows, lengths = seen.flatten().nonzero()[:, 0], seen.sum(1)
        layout = lay_out(rows, lengths, padded_length(lengths, S), R * S)     # R sequences of up to S
        L9 = attend(net.L9, L8.flatten(0, 1), layout).view(R, S, -1)
        L11 = net.density(net.L11(net.L10(L9))).squeeze(-1)                   # (R, S)
        return L11 * seen, L4, L3

    def colour(self, L4: Tensor, L3: Tensor, colours: Tensor, differences: Tensor, tokens: Tokens) -> Tensor:
        """06's colour head: which of the colours (T, 3) to believe -> (R, S, 3)."""
        score = self.geometry.blend(torch.cat([L4, L3, differences], dim=-1)).squeeze(-1)     # (T,)
        score = tokens.unpack(score) + cra.key_bias(tokens.mask, score.dtype)                 # (R, S, V)
        share = score.movedim(-1, 0).softmax(dim=0).movedim(0, -1)            # over rows of 8 it is slow
        share = tokens.pack(share)[:, None]                                   # (T, 1)
        return tokens.sum_over_views(share * colours)

    def context_and_density(self, origin: Tensor, directions: Tensor, z: Tensor, sources,
                            colour: bool = True) -> tuple:
        """Level's."""
        points = origin + z[..., None] * directions[:, None]                  # (R, S, 3)
        M, colours, differences, tokens = self.reproject(points, origin, *sources[:4], sources.mask, colour)
        sigma, L4, L3 = self.density(M, tokens)
        colours = self.colour(L4, L3, colours, differences, tokens) if colour else None
        return (M, differences, L3, tokens), sigma, colours

    def refine(self, M: Tensor, tokens: Tokens, kept: Tensor | None) -> Tensor:
        """04's CRA: M (T, C) -> M'' (T, C), or, of the tokens kept (T,) alone, (n, C)."""
        return refine(self.cra, M, tokens, kept)

    def semantics(self, context: tuple, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Level's. keep (R, n), increasing: of these samples alone -> logits (R, n, L), w (R, n, V)."""
        M, differences, visibility, tokens = context
        kept = None
        if keep is not None:
            kept = torch.zeros_like(tokens.mask[:, :, 0]).scatter(1, keep, True)      # (R, S)
            kept = kept.flatten()[tokens.sample]                              # (T,)
        refined = self.refine(M, tokens, kept)                                # M'': (T, C), or of those kept
        if keep is not None:
            some = kept.nonzero()[:, 0]
            M, differences, visibility = (x.index_select(0, some) for x in (M, differences, visibility))
            tokens = Tokens.of(tokens.mask.take_along_dim(keep[:, :, None], dim=1))   # of (R, n, V)
        L1 = torch.cat([M, differences, visibility], dim=-1)                  # (T, 37)
        L3 = self.weights.L2(L1).squeeze(-1).sigmoid()                        # (T,)
        w = weighting.view_weights(tokens.unpack(L3), tokens.mask, self.weights.tau)          # (R, S, V)
        semantic_ray = tokens.sum_over_views(tokens.pack(w)[:, None] * refined)               # (R, S, C)
        return self.head(semantic_ray), w
