"""Table 8, L20-L22: reproject the query ray into the source views, and build the initial 3D contextual space M.

Section 3.2 of the paper: not single points but whole query rays are projected; what the source views show along the ray is
its context. For S points on each of R query rays and V source views

    M[r,s,v] = feature of view v at the point's pixel  +  MLP(direction difference)          (L20 Reprojection, L21, L22 Add)

    points (R, S, 3), features (V, C, h, w), images (V, 3, H, W)   ->   context M (R, S, V, C), colours (R, S, V, 3),
                                                                         differences (R, S, V, 4), mask (R, S, V) bool

The direction difference (Input 2) is: unit direction from the source camera to the point, minus the unit query direction,
and their dot product. The mask is true where the point is in front of the camera and inside its image; it knows nothing of
occlusion. Feature (i, j) is centred on pixel (4i, 4j) (see 02_encoder.py), so a pixel u is looked up at u / 4.

Much of M may be masked: of a room's tokens two thirds. `packed=True` computes the T valid tokens alone, M[mask] (T, C), and every
later stage takes M either way (05's docstring says how): the same numbers in less time on a CPU.

Dimension key: R rays, S samples per ray, V source views, C channels, T valid tokens. (.., C): (R, S, V, C) or packed, (T, C).
Run: python 03_reprojection.py     Test: pytest tests/test_03_reprojection.py
"""
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

data = import_module("01_data")              # project, rays: cameras; example_views for the picture
encoder = import_module("02_encoder")        # STRIDE, CHANNELS: what a feature map is


class Context(NamedTuple):
    """The initial 3D contextual space M and what was looked up with it. Packed: all but the mask of the valid tokens alone."""
    M: Tensor             # (.., C)       features + direction embedding, 0 where the mask is false
    colours: Tensor | None   # (.., 3)    source colours in [0, 1], 0 where the mask is false; None if not asked for
    differences: Tensor   # (.., 4)       direction differences
    mask: Tensor          # (R, S, V)     bool: in front of the camera and inside its image


def lookup(maps: Tensor, pixels: Tensor, stride: int, view: Tensor | None = None) -> Tensor:
    """Bilinear lookup: maps (V, C, h, w) whose cell (i, j) is centred on pixel (stride i, stride j), at pixels (R, S, V, 2)
    -> (R, S, V, C), or pixels (T, 2) of views (T,) -> (T, C). Beyond the outermost centres the border value holds. No gradient
    reaches the pixels."""
    V, C, h, w = maps.shape
    if view is not None or maps.device.type == "cpu" and C >= 16:             # wide maps: `Gather` is the faster way
        view = (torch.arange(V) if view is None else view).int()              # (V,) or (T,)
        u, v = (pixels.detach() / stride).unbind(-1)                          # (R, S, V) or (T,), as all that follows
        u, v = u.clamp(0, w - 1), v.clamp(0, h - 1)
        left, top = u.floor().clamp_(max=max(w - 2, 0)), v.floor().clamp_(max=max(h - 2, 0))
        u, v, cell = u.sub_(left), v.sub_(top), (view * h + top.int()) * w + left.int()
        both, right, below = u * v, min(1, w - 1), w * min(1, h - 1)          # how much further the next cell is, and the next row
        index = torch.stack([cell, cell + right, cell + below, cell + below + right], dim=-1)     # (.., 4)
        weight = torch.stack([1 - u - v + both, u - both, v - both, both], dim=-1)
        table = maps.permute(0, 2, 3, 1).reshape(-1, C)                       # a row for each cell of each view
        return Gather.apply(table, index.view(-1, 4), weight.view(-1, 4)).view(*pixels.shape[:-1], C)
    half = torch.tensor([max(w - 1, 1), max(h - 1, 1)], device=maps.device, dtype=maps.dtype) / 2
    grid = (pixels / stride / half - 1).permute(2, 0, 1, 3)                   # (V, R, S, 2): -1 first centre, +1 last
    out = F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=True)   # (V, C, R, S)
    return out.permute(2, 3, 0, 1)                                            # (R, S, V, C)


class Gather(torch.autograd.Function):
    """out[n] = sum_i weight[n,i] table[index[n,i]]: table (P, C), index (N, 4), weight (N, 4) -> (N, C). The bilinear lookup as
    rows of a table: whole rows of C numbers are read and written, where F.grid_sample walks through one channel at a time."""

    @staticmethod
    def forward(ctx, table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(index, weight)
        ctx.rows = len(table)
        return F.embedding_bag(index, table, mode="sum", per_sample_weights=weight)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        """The gradient (N, C) goes to the rows it was read from; index and weight have none."""
        index, weight = ctx.saved_tensors
        table = gradient.new_zeros(ctx.rows, gradient.shape[1])
        for i in range(index.shape[1]):                                       # scatter_add: a third of index_add's time
            table.scatter_add_(0, index[:, i:i + 1].long().expand_as(gradient), gradient * weight[:, i:i + 1])
        return table, None, None


def in_view(pixels: Tensor, z: Tensor, height: int, width: int) -> Tensor:
    """pixels (..., 2) at depths z (...) -> (...) bool: in front of the camera and inside its image, to the border's outer edge."""
    u, v = pixels.unbind(-1)
    return (z > 1e-3) & (u >= -0.5) & (v >= -0.5) & (u <= width - 0.5) & (v <= height - 0.5)


def direction_differences(points: Tensor, query_origin: Tensor, source_origins: Tensor) -> Tensor:
    """points (R, S, 1, 3) seen from the query camera (3,) and the source cameras (V, 3) -> (R, S, V, 4), or points (T, 3) and
    cameras (T, 3) -> (T, 4): unit source direction minus unit query direction, and their dot product (1: both look at the
    point from the same side)."""
    query = F.normalize(points - query_origin, dim=-1)                        # (R, S, 1, 3)
    source = F.normalize(points - source_origins, dim=-1)                     # (R, S, V, 3)
    return torch.cat([source - query, (source * query).sum(-1, keepdim=True)], dim=-1)           # (R, S, V, 4)


class Reprojection(nn.Module):
    """Table 8, L20-L22. Holds the direction MLP 4 -> 16 -> 32 with ELU (L21)."""

    def __init__(self):
        super().__init__()
        self.L21 = nn.Sequential(nn.Linear(4, 16), encoder.ELU(), nn.Linear(16, encoder.CHANNELS), encoder.ELU())

    def forward(self, points: Tensor, query_origin: Tensor, features: Tensor, images: Tensor, K: Tensor,
                c2w: Tensor, colour: bool = True, packed: bool = False) -> Context:
        """points (R, S, 3), query camera centre (3,), source features (V, C, h, w), images (V, 3, H, W), K (V, 3, 3),
        c2w (V, 4, 4) -> Context; colour=False leaves its colours out; packed: the valid tokens alone."""
        H, W = images.shape[-2:]
        pixels, z = data.project(points, K, c2w)                              # (R, S, V, 2), (R, S, V)
        mask = in_view(pixels, z, H, W)                                       # (R, S, V)
        points, centres, view = points[:, :, None], c2w[:, :3, 3].contiguous(), None            # (R, S, 1, 3), (V, 3)
        if packed:
            token, V = mask.flatten().nonzero()[:, 0], len(c2w)               # (T,) which of the R S V are valid
            view = token % V
            pixels, centres = pixels.view(-1, 2).index_select(0, token), centres.index_select(0, view)   # (T, 2), (T, 3)
            points = points.view(-1, 3).index_select(0, token // V)           # (T, 3)
        else:
            pixels = pixels.masked_fill(~mask[..., None], 0)                  # finite everywhere
        colours = lookup(images, pixels, 1, view) if colour else None         # (.., 3)
        differences = direction_differences(points, query_origin, centres)    # (.., 4)
        L20 = lookup(features, pixels, encoder.STRIDE, view)                  # (.., C)
        M = L20.add_(self.L21(differences))                                   # L22: (.., C)
        if not packed:
            M, colours = M.mul_(mask[..., None]), colours * mask[..., None] if colour else None          # 0 where the mask is false
        return Context(M, colours, differences, mask)


def main() -> None:
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    views = data.example_views()
    target, sources = views[8], views[:8]
    pixels = torch.tensor([[150.0, 140.0], [60.0, 100.0], [250.0, 170.0]])    # three query rays
    origin, directions = data.rays(pixels, target.K, target.c2w)
    z = 1 / torch.linspace(1 / 0.5, 1 / 8.0, 64)                              # 64 samples, even in inverse depth
    points = origin + z[:, None] * directions[:, None]                        # (R, S, 3)
    reproject = Reprojection()
    with torch.no_grad():
        features = encoder.Encoder()(sources.images)
        context = reproject(points, origin, features, sources.images, sources.K, sources.c2w)
    rows = [("L20", "Reprojection", (*context.M.shape,), 0),
            ("L21", "MLP (Input 2)  4, 16, 32", (*context.M.shape,), sum(p.numel() for p in reproject.parameters())),
            ("L22", "Add (L21, L20)", (*context.M.shape,), 0)]
    print("Table 8, L20-L22, on 3 query rays, 64 samples, 8 source views\n")
    print(f"{'row':4} {'the supplement':28} {'our output (R, S, V, C)':26} parameters")
    for row, text, shape, count in rows:
        print(f"{row:4} {text:28} {str(shape):26} {count:,}")
    print(f"Input 2, direction differences {tuple(context.differences.shape)}; mask {tuple(context.mask.shape)}, "
          f"{context.mask.float().mean():.0%} valid")

    colours, mask = context.colours[0], context.mask[0][..., None]            # (S, V, 3), (S, V, 1)
    mean = (colours * mask).sum(1) / mask.sum(1).clamp(min=1)                 # (S, 3)
    spread = (((colours - mean[:, None]) ** 2 * mask).sum(1) / mask.sum(1).clamp(min=1)).sum(-1).sqrt()   # (S,)
    enough = mask.sum(1)[:, 0] >= 4
    best = int(torch.where(enough, spread, torch.full_like(spread, 9.0)).argmin())
    truth = float(target.depth[140, 150])
    print(f"One fact: nothing is learned yet, and where the views agree on the colour is already a hint of depth: "
          f"they agree best at {z[best]:.2f} m; the surface is at {truth:.2f} m.")

    figure, axes = plt.subplots(2, 5, figsize=(15, 5.4), constrained_layout=True)
    uv, depth = data.project(points[0], sources.K, sources.c2w)
    for v, axis in zip(range(9), axes.flat):
        index = 8 if v == 0 else v - 1
        axis.imshow(views.images[index].permute(1, 2, 0))
        axis.set_axis_off()
        if v == 0:
            axis.plot(*pixels[0], "o", mfc="none", mec="#d55e00", ms=12, mew=3)
            axis.set_title("target and query pixel")
            continue
        inside = context.mask[0, :, index]
        axis.scatter(*uv[inside, index].T, c=torch.arange(64)[inside], cmap="viridis", s=12, vmin=0, vmax=63)
        axis.set_title(f"source {index}: the ray is a line")
    plot = axes[1, 4]
    plot.plot(z[enough], spread[enough], color="#0072b2")
    plot.axvline(truth, color="#d55e00", ls="--", label="true depth")
    plot.set(xlabel="depth along the query ray (m)", ylabel="colour spread", title="do the views agree?")
    plot.legend()
    figure.suptitle("One query ray in eight source views (dark: near, bright: far)")
    Path("outputs").mkdir(exist_ok=True)
    figure.savefig("outputs/03_reprojection.png", dpi=100)
    print("picture: outputs/03_reprojection.png")


if __name__ == "__main__":
    data.run_script(main)
