"""Table 11 and volume rendering: density and colour from the initial context, coarse and fine samples, rendered pixels.

    M (.., C), colours (.., 3), mask (R, S, V)   ->   sigma (R, S), colour (R, S, 3)   ->   pixels (R, ...)

Density and semantics are decoupled: the geometry-aware network reads M, not M''. So wherever only density is wanted (the coarse
pass of inference) nothing of Tables 9 and 10 has to run. Views that agree on a feature are looking at a surface: that is why
the mean and the variance over the views are the input of the density.

Volume rendering of any per-sample quantity x (colour, class logits, depth), samples s in order of depth:

    alpha_s = 1 - exp(-sigma_s delta_s)      w_s = alpha_s prod_{t<s} (1 - alpha_t)      pixel = sum_s w_s x_s

What the table leaves open, and how it is settled (figures in README.md, "Choices settled by measuring"): L2 has no ELU before
its sigmoid (ELU >= -1 would keep every visibility above 0.27, so no view could be silenced); L5-L6 are the plain mean and biased
variance over the valid views; L9 is attention along the ray with residual, LayerNorm and sample position; L11's ReLU on sigma is
`density="relu"`, `density="softplus"` the alternative that cannot die; `use_delta=False` drops delta as the reference does.

Dimension key: R rays, S samples per ray, V source views, C channels, T valid tokens. (.., C): (R, S, V, C) or packed (05), (T, C).
Run: python 06_geometry_render.py     Test: pytest tests/test_06_geometry_render.py
"""
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

encoder = import_module("02_encoder")        # ELU
cra = import_module("04_cra")                # MultiHeadAttention, sample_positions: L9 is Table 9's attention
weighting = import_module("05_weighting")    # semantic_ray: a sum over the views; packed tokens


# ---------------------------------------------------------------------------------------------------- Table 11

class Geometry(NamedTuple):
    """What the geometry-aware network says about each sample."""
    sigma: Tensor        # (R, S)        density, 0 where no view is valid
    colour: Tensor | None   # (R, S, 3)  blended source colours; None if not asked for
    visibility: Tensor   # (.., 1)       Table 11, L3: each view's weight; Table 10's 37th input


class GeometryNetwork(nn.Module):
    """Table 11, and the colour head (a softmax over the valid views blends the reprojected source colours).

    density: "softplus", or "relu" as the table lists. pooling: "mean" divides L5 and L6 by the number of valid views,
    "weighted" by the sum of their L3.
    """

    def __init__(self, channels: int = 32, heads: int = 4, density: str = "softplus", pooling: str = "mean",
                 fused: bool = True):
        super().__init__()
        self.pooling = pooling
        self.density = {"relu": F.relu, "softplus": F.softplus}[density]
        self.L1 = nn.Sequential(nn.Linear(channels, 32), encoder.ELU())
        self.L2 = nn.Linear(channels, 1)
        self.L8 = nn.Sequential(nn.Linear(64, 32), encoder.ELU(), nn.Linear(32, 16), encoder.ELU())
        self.L9 = cra.MultiHeadAttention(16, heads, fused=fused)
        self.L10 = nn.Sequential(nn.Linear(16, 16), encoder.ELU())
        self.L11 = nn.Linear(16, 1)
        self.blend = nn.Sequential(nn.Linear(32 + 1 + 4, 16), encoder.ELU(), nn.Linear(16, 8), encoder.ELU(),
                                   nn.Linear(8, 1))

    def forward(self, M: Tensor, colours: Tensor | None, differences: Tensor, mask: Tensor, index: Tensor | None = None) -> Geometry:
        """M (.., C), colours (.., 3) or None (density only), differences (.., 4), mask (R, S, V) -> Geometry.
        index (R, S): positions along the ray to embed instead of 0 .. S-1."""
        over_views = lambda x: weighting.sum_over_views(x, mask)              # (.., K) -> (R, S, K)
        L1, L3 = self.L1(M).to(M.dtype), self.L2(M).to(M.dtype).sigmoid()     # (.., 32), (.., 1)
        visible = L3 if M.dim() == 2 else L3 * mask[..., None]                # (.., 1), 0 where the view is not valid
        L4 = L1 * visible                                                     # (.., 32)
        if self.pooling == "mean":
            count = mask.sum(2)[..., None].clamp(min=1)                       # (R, S, 1) valid views
            L5, square = over_views(L4) / count, over_views(L4.square()) / count                  # (R, S, 32)  cross-view mean
        else:
            share = weighting.unpack(visible.squeeze(-1), mask)               # (R, S, V)
            share = share / share.sum(2, keepdim=True).clamp(min=1e-6)
            share = (share if M.dim() == 4 else share[mask])[..., None]       # (.., 1)
            L5, square = over_views(L1 * share), over_views(L1.square() * share)                  # (R, S, 32)
        L6 = (square - L5.square()).clamp(min=0)                              # (R, S, 32)  variance E[x^2] - E[x]^2; 0 for one view
        L8 = self.L8(torch.cat([L5, L6], dim=-1))                             # L7: (R, S, 64) -> (R, S, 16)
        seen = mask.any(dim=2)                                                # (R, S)
        position = cra.sample_positions(mask.shape[1] if index is None else index, 16, M.device).to(M.dtype)
        if M.dim() == 2:                                                      # R sequences of length S
            whole, y = [cra.Block(*seen.shape, None if seen.all() else seen)], (L8 + position).flatten(0, 1)
            L9 = self.L9.blocks(y, whole).view(L8.shape)            # (R, S, 16)
        else:
            L9 = self.L9(L8[:, :, None], seen[:, :, None], position)[:, :, 0]
        sigma = self.density(self.L11(self.L10(L9)).squeeze(-1).to(M.dtype)) * seen               # (R, S)
        if colours is None:
            return Geometry(sigma, None, L3)

        score = self.blend(torch.cat([L4, L3, differences], dim=-1)).squeeze(-1)                  # (R, S, V) or (T,)
        score = weighting.unpack(score, mask) + cra.readable_keys(mask, M.dtype)                  # (R, S, V)
        # colour[r,s,k] = sum_v softmax_v(score)[r,s,v] colours[r,s,v,k]
        colour = weighting.semantic_ray(cra.Softmax.apply(score), colours, mask)                  # (R, S, 3)
        return Geometry(sigma, colour, L3)


# ---------------------------------------------------------------------------------------------------- samples along a ray

def spaced_depths(near: float, far: float, count: int, spacing: str, device=None) -> Tensor:
    """count + 1 bin edges from near to far metres, even in depth ("linear"), in inverse depth ("disparity"), or the mean of the
    two ("mix"): (count + 1,). Of 64 disparity bins on 0.1 .. 10 m, 52 lie nearer than 0.5 m and 6 beyond 1 m."""
    t = torch.linspace(0, 1, count + 1, device=device)
    disparity, linear = 1 / ((1 - t) / near + t / far), near + (far - near) * t
    return {"disparity": disparity, "linear": linear, "mix": (disparity + linear) / 2}[spacing]


def coarse_samples(near: float, far: float, rays: int, count: int, spacing: str, jitter: Tensor | None, device=None) -> Tensor:
    """Depths (R, S) increasing along z, one in each bin: its middle, or with jitter (R, S) in [0, 1) that far into it (training)."""
    edges = spaced_depths(near, far, count, spacing, device)                  # (S + 1,)
    where = torch.full((rays, count), 0.5, device=device) if jitter is None else jitter
    return edges[:-1] + where * (edges[1:] - edges[:-1])                      # (R, S)


def fine_samples(z: Tensor, weights: Tensor, count: int, jitter: Tensor | None) -> Tensor:
    """Importance sampling (NeRF, section 5.2): coarse depths z (R, S) and rendering weights (R, S) -> depths (R, count),
    increasing, drawn from the piecewise-constant density that has a bin around every coarse sample.

    The distribution is cut into `count` even strata: one draw from the middle of each, or with jitter (R, count) in [0, 1) that far
    into it. A floor of 1e-3 in all, spread evenly, makes a ray that meets nothing sampled evenly. No gradient.
    """
    z, weights = z.detach(), weights.detach()
    R, S = z.shape
    middle = (z[:, 1:] + z[:, :-1]) / 2
    edges = torch.cat([z[:, :1], middle, z[:, -1:]], dim=1)                   # (R, S + 1): a bin around every sample
    p = weights + 1e-3 / S
    cdf = torch.cat([torch.zeros_like(p[:, :1]), (p / p.sum(1, keepdim=True)).cumsum(1)], dim=1)  # (R, S + 1), 0 .. 1
    u = torch.full((R, count), 0.5, device=z.device) if jitter is None else jitter
    u = ((torch.arange(count, device=z.device) + u) / count).to(z.dtype)      # (R, count) one in each stratum, increasing
    bin = (torch.searchsorted(cdf, u.contiguous(), right=True) - 1).clamp(0, S - 1)               # (R, count)
    low, high = cdf.gather(1, bin), cdf.gather(1, bin + 1)
    inside = ((u - low) / (high - low).clamp(min=1e-10)).clamp(0, 1)
    left, right = edges.gather(1, bin), edges.gather(1, bin + 1)
    return left + inside * (right - left)


# ---------------------------------------------------------------------------------------------------- volume rendering

def sample_lengths(z: Tensor, far: float, ray_length: Tensor) -> Tensor:
    """delta (R, S) in metres along the ray: to the next sample, and for the last one to far. z (R, S) along z; ray_length
    (R,) metres of ray per metre of z (the length of the direction)."""
    last = (far - z[:, -1:]).clamp(min=1e-3)
    return torch.cat([z[:, 1:] - z[:, :-1], last], dim=1) * ray_length[:, None]


def rendering_weights(sigma: Tensor, delta: Tensor | None) -> Tensor:
    """sigma (R, S) in 1/m with delta (R, S) in m, or per sample with delta None -> w (R, S): how much of the pixel each
    sample is. 0 <= w, sum <= 1."""
    tau = sigma if delta is None else sigma * delta                           # (R, S) optical thickness
    alpha = 1 - torch.exp(-tau)
    before = torch.cat([torch.zeros_like(tau[:, :1]), tau[:, :-1].cumsum(1)], dim=1)              # thickness in front of s
    return alpha * torch.exp(-before)                                         # prod (1 - alpha_t) = exp(-sum tau_t)


def render(weights: Tensor, values: Tensor) -> Tensor:
    """pixel[r,k] = sum_s w[r,s] x[r,s,k]: weights (R, S), values (R, S, K) -> (R, K)."""
    return (weights[..., None] * values).sum(dim=1)


def main() -> None:
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    R, S, V, C = 64, 32, 8, 32
    network = GeometryNetwork()
    M, colours, differences = torch.randn(R, S, V, C), torch.rand(R, S, V, 3), torch.randn(R, S, V, 4)
    with torch.no_grad():
        geometry = network(M, colours, differences, torch.rand(R, S, V) < 0.8)
    print(f"Table 11 on {R} rays, {S} samples, {V} source views\n")
    print(f"{'row':6} {'the supplement':32} {'our output':18} parameters")
    for row, text, shape in [
            ("L1", "MLP (Input)  32, 32", (R, S, V, 32)), ("L2", "MLP (Input)  32, 1", (R, S, V, 1)),
            ("L3", "Sigmoid (L2)", tuple(geometry.visibility.shape)), ("L4", "Dot-product (L1, L3)", (R, S, V, 32)),
            ("L5", "Cross-view mean (L4)", (R, S, 32)), ("L6", "Cross-view variance (L4)", (R, S, 32)),
            ("L7", "Concat (L5, L6)", (R, S, 64)), ("L8", "MLP (L7)  64, 32, 16", (R, S, 16)),
            ("L9", "Multi-head attention (nhead=4)", (R, S, 16)), ("L10", "MLP (L9)  16", (R, S, 16)),
            ("L11", "MLP (L10)  1", tuple(geometry.sigma.shape)),
            ("blend", "colour: softmax over views", tuple(geometry.colour.shape))]:
        module = getattr(network, row, None)
        print(f"{row:6} {text:32} {str(shape):18} {sum(p.numel() for p in module.parameters()) if module else 0:,}")

    near, far, surface = 0.3, 8.0, 2.5
    z = coarse_samples(near, far, 1, S, "linear", None)                       # (1, S)
    sigma = 30 * torch.exp(-((z - surface) / 0.15) ** 2)                      # a blurred surface
    weights = rendering_weights(sigma, sample_lengths(z, far, torch.ones(1)))
    fine = fine_samples(z, weights, S, None)
    depth = float(render(weights, z[..., None]))
    print(f"One fact: {int(((z - surface).abs() < 0.3).sum())} of {S} coarse samples lie within 0.3 m of a surface at "
          f"{surface} m, and {int(((fine - surface).abs() < 0.3).sum())} of {S} fine ones. The coarse samples alone render a depth "
          f"of {depth:.2f} m; their weights sum to {float(weights.sum()):.3f}.")
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(10, 5.4), sharex=True, constrained_layout=True,
                                         height_ratios=[3, 1])
    top.step(z[0], weights[0], where="mid", color="#d55e00", label="rendering weight w")
    top.plot(z[0], 1 - torch.exp(-sigma[0] / 10), color="#0072b2", label="density σ (squashed)")
    top.axvline(surface, color="#999999", ls="--", label="surface")
    top.legend(frameon=False)
    top.set(title="Coarse to fine along one ray", ylabel="weight")
    bottom.plot(z[0], torch.ones(S), "|", ms=18, color="#56b4e9")
    bottom.plot(fine[0], torch.zeros(S), "|", ms=18, color="#d55e00")
    bottom.set(yticks=[0, 1], yticklabels=["fine", "coarse"], ylim=(-0.6, 1.6), xlabel="depth along z (m)")
    Path("outputs").mkdir(exist_ok=True)
    figure.savefig("outputs/06_geometry_render.png", dpi=100)
    print("picture: outputs/06_geometry_render.png")


if __name__ == "__main__":
    main()
