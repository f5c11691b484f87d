"""Table 8, L20-L22: reproject the query ray into the source views; the initial 3D contextual space M.

Section 3.2 of the paper: not single points but whole query rays are projected; what the source views show
along the ray is its context. For S points on each of R query rays and V source views

    L22 Add:  M[r,s,v]  =  L20: feature of view v at the point's pixel  +  L21: MLP(direction difference)

    points (R, S, 3), features (V, C, h, w), images (V, 3, H, W)   ->   context M (R, S, V, C),
        colours (R, S, V, 3), differences (R, S, V, 4), mask (R, S, V) bool

The direction difference (Input 2) is: unit direction from the source camera to the point, minus the unit
query direction, and their dot product. The mask is true where the point is in front of the camera and inside
its image; it knows nothing of occlusion. Feature (i, j) is centred on pixel (4i, 4j) (see 02_encoder.py), so
the feature of pixel u is looked up at u / 4.

Dimension key: R rays, S samples per ray, V source views, C channels.
Run: python 03_reprojection.py     Test: pytest tests/test_03_reprojection.py
"""
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from support.files import run_script

data = import_module("01_data")              # project, rays: cameras; example_views for the picture
encoder = import_module("02_encoder")        # STRIDE, CHANNELS: what a feature map is


class Context(NamedTuple):
    """The initial 3D contextual space M and what was looked up with it."""
    M: Tensor               # (R, S, V, C)   features + direction embedding, 0 where the mask is false
    colours: Tensor | None  # (R, S, V, 3)   source colours in [0, 1], 0 where the mask is false
    differences: Tensor     # (R, S, V, 4)   direction differences
    mask: Tensor            # (R, S, V)      bool: in front of the camera and inside its image


def lookup(maps: Tensor, pixels: Tensor, stride: int) -> Tensor:  # exercise: L20
    """Bilinear lookup in maps (V, C, h, w), whose cell (i, j) is centred on pixel (stride i, stride j), at
    pixels (R, S, V, 2) -> (R, S, V, C). Beyond the outermost centres the border value holds."""
    h, w = maps.shape[-2:]
    u, v = (2 * pixels / stride).permute(2, 0, 1, 3).unbind(-1)               # (V, R, S) each
    grid = torch.stack([u / max(w - 1, 1), v / max(h - 1, 1)], dim=-1) - 1    # -1: first centre, +1: last
    out = F.grid_sample(maps, grid, padding_mode="border", align_corners=True)                # (V, C, R, S)
    return out.permute(2, 3, 0, 1)                                            # (R, S, V, C)


def in_view(pixels: Tensor, z: Tensor, height: int, width: int) -> Tensor:
    """pixels (..., 2) at depths z (...) -> (...) bool: in front of the camera and inside its image, to the
    outer edge of its border pixels."""
    u, v = pixels.unbind(-1)
    return (z > 1e-3) & (u >= -0.5) & (v >= -0.5) & (u <= width - 0.5) & (v <= height - 0.5)


def unmasked(masks: Tensor, pixels: Tensor) -> Tensor:
    """masks (V, H, W) bool at pixels (R, S, V, 2) -> (R, S, V) bool: no part in a false pixel."""
    return lookup(masks[:, None].to(pixels.dtype), pixels, 1)[..., 0] > 0.999


def direction_differences(points: Tensor, query_origin: Tensor, source_origins: Tensor) -> Tensor:  # exercise
    """Table 8's Input 2. points (R, S, 3), camera centres: query_origin (3,), source_origins (V, 3) ->
    (R, S, V, 4): unit direction from source to point minus that from query to point; their dot product."""
    query = F.normalize(points - query_origin, dim=-1)[:, :, None]            # (R, S, 1, 3)
    source = F.normalize(points[:, :, None] - source_origins, dim=-1)         # (R, S, V, 3)
    cosine = (source * query).sum(-1, keepdim=True)                           # (R, S, V, 1)
    return torch.cat([source - query, cosine], dim=-1)                        # (R, S, V, 4)


class Reprojection(nn.Module):
    """Table 8, L20-L22. Holds the direction MLP 4 -> 16 -> 32 with ELU (L21)."""

    def __init__(self):
        super().__init__()
        self.L21 = nn.Sequential(nn.Linear(4, 16), nn.ELU(), nn.Linear(16, encoder.CHANNELS), nn.ELU())

    def forward(self, points: Tensor, query_origin: Tensor, features: Tensor, images: Tensor, K: Tensor,
                c2w: Tensor, colour: bool = True, masks: Tensor | None = None) -> Context:
        """points (R, S, 3), query camera centre (3,), source features (V, C, h, w), images (V, 3, H, W), K
        (V, 3, 3), c2w (V, 4, 4) -> Context; colour=False leaves its colours out. Where there are masks
        (V, H, W), a token with a part in a false pixel is invalid, as if it were outside the image."""
        H, W = images.shape[-2:]
        pixels, z = data.project(points, K, c2w)                              # (R, S, V, 2), (R, S, V)
        mask = in_view(pixels, z, H, W)                                       # (R, S, V)
        pixels = pixels.masked_fill(~mask[..., None], 0)  # at nan, grid_sample's gradient crashes on a CPU
        if masks is not None:
            mask = mask & unmasked(masks, pixels)                             # (R, S, V)
        differences = direction_differences(points, query_origin, c2w[:, :3, 3])      # (R, S, V, 4)
        L20 = lookup(features, pixels, encoder.STRIDE)                        # (R, S, V, C)
        M = (L20 + self.L21(differences)) * mask[..., None]                   # L22: (R, S, V, C)
        colours = lookup(images, pixels, 1) * mask[..., None] if colour else None     # (R, S, V, 3)
        return Context(M, colours, differences, mask)


def main() -> None:
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    views = data.example_views()
    target, sources = views[8], views[:8]
    pixels = torch.tensor([[150.0, 140.0]])                                   # one query ray
    origin, directions = data.rays(pixels, target.K, target.c2w)
    z = torch.linspace(0.3, 8.0, 64)                                          # (S,) 64 depths, 07's range
    points = origin + z[:, None] * directions[:, None]                        # (1, 64, 3)
    reproject = Reprojection()
    with torch.no_grad():
        features = encoder.Encoder()(sources.images)
        context = reproject(points, origin, features, sources.images, sources.K, sources.c2w)
    parameters = sum(p.numel() for p in reproject.parameters())
    print("Table 8, L20-L22, on a query ray, 64 samples, 8 source views\n")
    print(f"{'row':4} {'the supplement':28} {'our output (R, S, V, C)':26} parameters")
    for row, text, count in (("L20", "Reprojection", 0), ("L21", "MLP (Input 2)  4, 16, 32", parameters),
                             ("L22", "Add (L21, L20)", 0)):
        print(f"{row:4} {text:28} {str(tuple(context.M.shape)):26} {count:,}")
    print(f"Input 2, direction differences {tuple(context.differences.shape)}; mask "
          f"{tuple(context.mask.shape)}, {context.mask.float().mean():.0%} valid")

    colours, mask = context.colours[0], context.mask[0]                       # (S, V, 3), (S, V)
    count = mask.sum(1).clamp(min=1)[:, None]                                 # (S, 1)
    mean = colours.sum(1) / count                                             # (S, 3)
    spread = (colours.square().sum(1) / count - mean.square()).clamp(min=0).sum(-1).sqrt()    # (S,)
    spread[mask.sum(1) < 4] = torch.nan                                       # too few views to agree
    best, truth = int(spread.nan_to_num(9.0).argmin()), float(target.depth[140, 150])
    print(f"One fact: nothing is learned yet, and where the views agree on the colour is already a hint of "
          f"depth: they agree best at {z[best]:.2f} m; the surface is at {truth:.2f} m.")

    figure, axes = plt.subplots(1, 3, figsize=(15, 4), layout="constrained")
    axes[0].imshow(target.images.permute(1, 2, 0))
    axes[0].plot(*pixels[0], "o", mfc="none", mec="#d55e00", ms=14, mew=3)
    axes[0].set_title("target and query pixel")
    uv, _ = data.project(points[0], sources.K, sources.c2w)                   # (64, 8, 2)
    axes[1].imshow(sources.images[0].permute(1, 2, 0))
    axes[1].scatter(*uv[mask[:, 0], 0].T, c=torch.arange(64)[mask[:, 0]], cmap="viridis", vmin=0, vmax=63)
    axes[1].set_title("a source view: the ray is a line (dark: near)")
    axes[2].plot(z, spread, color="#0072b2")
    axes[2].axvline(truth, color="#d55e00", ls="--", label="true depth")
    axes[2].set(xlabel="depth along the query ray (m)", ylabel="colour spread", title="do the views agree?")
    axes[2].legend()
    Path("outputs").mkdir(exist_ok=True)
    figure.savefig("outputs/03_reprojection.png", dpi=100)
    print("picture: outputs/03_reprojection.png")


if __name__ == "__main__":
    run_script(main)
