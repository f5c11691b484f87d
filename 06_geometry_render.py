"""Table 11 and volume rendering: density and colour from the initial context, samples, rendered pixels.

M (R, S, V, C), colours (R, S, V, 3), mask (R, S, V)  ->  sigma (R, S), colour (R, S, 3)  ->  pixels (R, ...)

Density and semantics are decoupled: the geometry-aware network reads M, not M''. So wherever only density is
wanted (the coarse pass of inference) nothing of Tables 9 and 10 has to run. Views that agree on a feature are
looking at a surface: that is why the density reads the mean and the variance over the views.

Volume rendering of any per-sample quantity x (colour, class logits), samples s in order of depth:

    alpha_s = 1 - exp(-sigma_s delta_s)      w_s = alpha_s prod_{t<s} (1 - alpha_t)      pixel = sum_s w_s x_s

The table's "Dot-product (L1, L3)" scales the 32 numbers of a token by its one visibility. The colour head is
in no table: a softmax over the views. What else the table leaves open (figures: docs/choices.md): L2 has no
ELU before its sigmoid (ELU >= -1 would keep every visibility above 0.27, so no view could be silenced); L5-L6
are the plain mean and biased variance over the valid views; L9 has the residual, LayerNorm and sample
position of Table 9; sigma is L11's softplus, which cannot die as the table's ReLU can.

Dimension key: R rays, S samples per ray, V source views, C channels.
Run: python 06_geometry_render.py     Test: pytest tests/test_06_geometry_render.py
"""
from importlib import import_module
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from support.files import run_script, save_picture

cra = import_module("04_cra")                # L9 is Table 9's attention: MultiHeadAttention, sample_positions


# ------------------------------------------------------------------------------------------- Table 11

class Geometry(NamedTuple):
    """What the geometry-aware network says about each sample."""
    sigma: Tensor           # (R, S)        density in 1/m, 0 where no view is valid
    colour: Tensor | None   # (R, S, 3)     blended source colours; None if not asked for
    visibility: Tensor      # (R, S, V, 1)  L3: how far each view is believed; Table 10's 37th input


def pool_views(L4: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:  # exercise: L5, L6
    """L4 (R, S, V, C), 0 where invalid, mask (R, S, V) -> mean and biased variance over the valid views, (R,
    S, C) each; 0 where no view is valid."""
    valid = mask.sum(2)[..., None].clamp(min=1)                               # (R, S, 1) views
    L5 = L4.sum(2) / valid                                                    # (R, S, C) mean
    L6 = (L4.square().sum(2) / valid - L5.square()).clamp(min=0)              # (R, S, C) biased variance
    return L5, L6


class GeometryNetwork(nn.Module):
    """Table 11, and the colour head: a softmax over the valid views blends the reprojected source colours.

    density: "softplus", or "relu" as the table lists. relu: L9's ReLU, as the table lists. places: of 04's
    sample_positions.
    """

    def __init__(self, channels: int = 32, heads: int = 4, density: str = "softplus", relu: bool = True,
                 places: int | None = None):
        super().__init__()
        self.places = places
        self.density = {"relu": F.relu, "softplus": F.softplus}[density]
        self.L1 = nn.Sequential(nn.Linear(channels, 32), nn.ELU())
        self.L2 = nn.Linear(channels, 1)
        self.L8 = nn.Sequential(nn.Linear(64, 32), nn.ELU(), nn.Linear(32, 16), nn.ELU())
        self.L9 = cra.MultiHeadAttention(16, heads, relu)
        self.L10 = nn.Sequential(nn.Linear(16, 16), nn.ELU())
        self.L11 = nn.Linear(16, 1)
        self.blend = nn.Sequential(nn.Linear(32 + 1 + 4, 16), nn.ELU(), nn.Linear(16, 8), nn.ELU(),
                                   nn.Linear(8, 1))

    def forward(self, M: Tensor, colours: Tensor | None, differences: Tensor, mask: Tensor) -> Geometry:
        """M (R, S, V, C), colours (R, S, V, 3) or None (density only), differences (R, S, V, 4), mask
        (R, S, V) -> Geometry."""
        L1 = self.L1(M)                                                       # (R, S, V, 32)
        L3 = self.L2(M).sigmoid()                                             # (R, S, V, 1)
        L4 = L1 * L3 * mask[..., None]                                        # (R, S, V, 32), 0 where invalid
        L5, L6 = pool_views(L4, mask)                                         # (R, S, 32) each
        L7 = torch.cat([L5, L6], dim=-1)                                      # (R, S, 64)
        L8 = self.L8(L7)                                                      # (R, S, 16)
        any_valid = mask.any(dim=2)                                           # (R, S)
        position = cra.sample_positions(L8.shape[1], 16, self.places, M.device).to(M.dtype)       # (S, 16)
        L9 = self.L9(L8 + position, any_valid)                                # (R, S, 16) along the ray
        L11 = self.density(self.L11(self.L10(L9))).squeeze(-1)                # (R, S)
        colour = None if colours is None else self.colour(L4, L3, colours, differences, mask)
        return Geometry(L11 * any_valid, colour, L3)

    def colour(self, L4: Tensor, L3: Tensor, colours: Tensor, differences: Tensor, mask: Tensor) -> Tensor:
        """The colour head: which of the reprojected source colours (R, S, V, 3) to believe -> (R, S, 3)."""
        score = self.blend(torch.cat([L4, L3, differences], dim=-1)).squeeze(-1)          # (R, S, V)
        share = (score + cra.key_bias(mask, score.dtype)).softmax(dim=-1)     # (R, S, V)
        # colour[r,s,k] = sum_v share[r,s,v] colours[r,s,v,k]
        return torch.einsum("rsv,rsvk->rsk", share, colours)


# ---------------------------------------------------------------------------------------- samples along a ray

def coarse_samples(near: float, far: float, rays: int, count: int, jitter: Tensor | None,
                   device=None) -> Tensor:
    """Depths (R, S) increasing along z, one in each of S bins that are even from near to far: its middle, or
    with jitter (R, S) in [0, 1) that far into it (training). (The reference's are even in inverse depth: of
    64 on 0.1 .. 10 m, 52 lie nearer than 0.5 m and 6 beyond 1 m.)"""
    edges = near + (far - near) * torch.linspace(0, 1, count + 1, device=device)          # (S + 1,)
    where = torch.full((rays, count), 0.5, device=device) if jitter is None else jitter
    return edges[:-1] + where * (edges[1:] - edges[:-1])                      # (R, S)


def fine_samples(z: Tensor, weights: Tensor, count: int, jitter: Tensor | None) -> Tensor:  # exercise
    """Importance sampling (NeRF, section 5.2): coarse depths z (R, S) and rendering weights (R, S) -> depths
    (R, count), increasing, drawn from a histogram: a bin around each coarse sample, as heavy as its weight.
    A draw inverts its cumulative distribution: u in [0, 1) -> the depth before which u of all weight lies.

    The histogram is cut into `count` strata of equal weight: one draw from the middle of each, or with jitter
    (R, count) in [0, 1) that far into it. All bins share 1e-3 more, so a ray that meets nothing is sampled
    about as by the coarse level, never before its first sample or behind its last. No gradient.
    """
    z, weights = z.detach(), weights.detach()
    R, S = z.shape
    middle = (z[:, 1:] + z[:, :-1]) / 2                                       # (R, S - 1)
    edges = torch.cat([z[:, :1], middle, z[:, -1:]], dim=1)                   # (R, S + 1)
    p = weights + 1e-3 / S                                                    # (R, S)
    cdf = F.pad((p / p.sum(1, keepdim=True)).cumsum(1), (1, 0))               # (R, S + 1) from 0 to 1
    inside = torch.full((R, count), 0.5, device=z.device) if jitter is None else jitter
    u = ((torch.arange(count, device=z.device) + inside) / count).to(z.dtype)          # (R, count) increasing
    cell = (torch.searchsorted(cdf, u, right=True) - 1).clamp(0, S - 1)       # (R, count) the bin with u
    low, high = cdf.gather(1, cell), cdf.gather(1, cell + 1)                  # (R, count) its cdf
    left, right = edges.gather(1, cell), edges.gather(1, cell + 1)            # (R, count) its edges, m
    return left + (right - left) * ((u - low) / (high - low).clamp(min=1e-10)).clamp(0, 1)


# ------------------------------------------------------------------------------------------- volume rendering

def sample_lengths(z: Tensor, far: float, ray_length: Tensor) -> Tensor:
    """delta (R, S) in metres along the ray: to the next sample, and for the last one to far. z (R, S) along
    z; ray_length (R,) metres of ray per metre of z (the length of the direction)."""
    last = (far - z[:, -1:]).clamp(min=1e-3)
    return torch.cat([z[:, 1:] - z[:, :-1], last], dim=1) * ray_length[:, None]


def rendering_weights(sigma: Tensor, delta: Tensor) -> Tensor:  # exercise: w_s = alpha_s prod (1 - alpha_t)
    """Densities sigma (R, S) in 1/m on lengths delta (R, S) in m -> rendering weights w (R, S): how much of
    the pixel each sample is. 0 <= w, sum <= 1. Not eq. 3's w, which weighs views."""
    thickness = sigma * delta                                                 # (R, S) optical, no unit
    alpha = 1 - torch.exp(-thickness)                                         # (R, S)
    before = F.pad(thickness[:, :-1].cumsum(1), (1, 0))                       # (R, S) sum over t < s
    return alpha * torch.exp(-before)                     # prod_t (1 - alpha_t) = exp(-sum_t thickness_t)


def render(weights: Tensor, values: Tensor) -> Tensor:
    """Weights (R, S), values per sample (R, S, k) -> pixels (R, k)."""
    # pixel[r,k] = sum_s w[r,s] x[r,s,k]
    return torch.einsum("rs,rsk->rk", weights, values)


def main() -> None:
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    R, S, V, C = 64, 32, 8, 32
    network = GeometryNetwork()
    M, colours, differences = torch.randn(R, S, V, C), torch.rand(R, S, V, 3), torch.randn(R, S, V, 4)
    geometry = network.requires_grad_(False)(M, colours, differences, torch.rand(R, S, V) < 0.8)
    print(f"Table 11 on {R} rays, {S} samples, {V} source views\n")
    print(f"{'row':6} {'the supplement':32} {'our output':18} parameters")
    for row, text, shape in [
            ("L1", "MLP (Input)  32, 32", (R, S, V, 32)), ("L2", "MLP (Input)  32, 1", (R, S, V, 1)),
            ("L3", "Sigmoid (L2)", geometry.visibility.shape), ("L4", "Dot-product (L1, L3)", (R, S, V, 32)),
            ("L5", "Cross-view mean (L4)", (R, S, 32)), ("L6", "Cross-view variance (L4)", (R, S, 32)),
            ("L7", "Concat (L5, L6)", (R, S, 64)), ("L8", "MLP (L7)  64, 32, 16", (R, S, 16)),
            ("L9", "Multi-head attention (nhead=4)", (R, S, 16)), ("L10", "MLP (L9)  16", (R, S, 16)),
            ("L11", "MLP (L10)  1", geometry.sigma.shape), ("blend", "colour head", geometry.colour.shape)]:
        module = getattr(network, row, nn.Identity())
        print(f"{row:6} {text:32} {str(tuple(shape)):18} {sum(p.numel() for p in module.parameters()):,}")

    near, far, surface = 0.3, 8.0, 2.5
    z = coarse_samples(near, far, 1, S, None)                                 # (1, S)
    sigma = 30 * torch.exp(-((z - surface) / 0.15) ** 2)                      # a blurred surface
    weights = rendering_weights(sigma, sample_lengths(z, far, torch.ones(1)))
    fine = fine_samples(z, weights, S, None)
    near_it = [int(((x - surface).abs() < 0.3).sum()) for x in (z, fine)]
    print(f"One fact: {near_it[0]} of {S} coarse samples lie within 0.3 m of a surface at {surface} m, and "
          f"{near_it[1]} of {S} fine ones. The coarse samples alone render a depth of "
          f"{float(render(weights, z[..., None])):.2f} m; their weights sum to {float(weights.sum()):.3f}.")
    figure, axis = plt.subplots(figsize=(10, 4.4), layout="constrained")
    axis.step(z[0], weights[0], where="mid", color="#d55e00", label="rendering weight w")
    axis.plot(z[0], 1 - torch.exp(-sigma[0] / 10), color="#0072b2", label="density σ (squashed)")
    axis.axvline(surface, color="#999999", ls="--", label="surface")
    axis.plot(z[0], torch.full((S,), -0.08), "|", ms=16, color="#56b4e9", label="coarse samples")
    axis.plot(fine[0], torch.full((S,), -0.2), "|", ms=16, color="#d55e00", label="fine samples")
    axis.set(title="Coarse to fine along one ray", ylabel="weight", xlabel="depth along z (m)")
    axis.legend(frameon=False)
    save_picture(figure, "outputs/06_geometry_render.png", 100)


if __name__ == "__main__":
    run_script(main)
