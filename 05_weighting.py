"""Table 10 and eq. 3: weigh the source views, and sum them into the semantic ray.

The views do not matter equally: some are occluded, some look from far or aslant. The semantic-aware weight
network scores each view from the initial context M; the scores become weights w in the set (eq. 3)

    C(tau) = { w : tau/m <= w_i <= 1/(tau m),  sum_i w_i = 1 }          m valid views, 0 < tau <= 1

and the semantic ray is the weighted sum of the refined context, from which one linear layer reads the logits:

    s[r,s,c] = sum_v w[r,s,v] M''[r,s,v,c]             M'' (R, S, V, C) -> s (R, S, C) -> logits (R, S, L)

tau controls how far views may differ: tau = 1 leaves one point, the mean; small tau leaves nearly the whole
simplex. The supplement prints strict bounds, an empty set at tau = 1; ours are closed.

How w gets into C(tau): sigmoid scores divided by their sum over the valid views (already a distribution),
then the exact Euclidean projection. Projecting the raw sigmoids instead pins most views to a bound, where the
gradient is zero: `python 05_weighting.py` prints both shares. 37 inputs: 32 (context) + 4 (direction
differences) + 1, the view's visibility (Table 11, L3); the table lists only the first two.

Dimension key: R rays, S samples, V source views, C channels, L classes.
Run: python 05_weighting.py     Test: pytest tests/test_05_weighting.py
"""

import torch
from torch import Tensor, nn

from support.files import run_script, save_picture


def project_onto_C(scores: Tensor, mask: Tensor, tau: float) -> Tensor:  # exercise: eq. 3
    """Euclidean projection of scores (..., V) onto C(tau) over the valid views of mask (..., V) -> w (...,
    V), 0 where invalid. No valid view: all zero. tau in (0, 1], else ValueError.

    The projection onto a box with a sum is w_i = clamp(score_i - shift, low, high), for the one shift at
    which the sum is 1. The sum falls piecewise linearly with the shift and bends only where a view meets a
    bound: look at all 2V bends, find the piece that crosses 1, solve its line. Exact, no iteration.
    """
    if not 0 < tau <= 1:
        raise ValueError(f"tau must be in (0, 1], not {tau}")
    valid = mask.to(scores.dtype)
    m = valid.sum(-1, keepdim=True).clamp(min=1)                              # (..., 1) valid views
    low, high = tau / m, 1 / (tau * m)                                        # (..., 1) eq. 3's bounds
    with torch.no_grad():  # which views end on which bound?
        bends = torch.cat([scores - low, scores - high], dim=-1)              # (..., 2V) a view meets a bound
        total = sum((scores[..., v:v + 1] - bends).clamp(low, high) * valid[..., v:v + 1]
                    for v in range(mask.shape[-1]))                           # (..., 2V) falls as it grows
        counts = torch.cat([mask, mask], dim=-1)                              # (..., 2V) a valid view's bend
        left = torch.where(counts & (total >= 1), bends, -torch.inf).amax(-1, keepdim=True)       # (..., 1)
        right = torch.where(counts & (total < 1), bends, torch.inf).amin(-1, keepdim=True)        # (..., 1)
        middle = torch.where(right.isinf(), left, (left + right) / 2)         # no right end: tau = 1
        at_high = (scores - middle >= high) & mask                            # (..., V)
        at_low = (scores - middle <= low) & mask & ~at_high                   # tau = 1: both bounds are 1/m
        free = mask & ~at_high & ~at_low                                      # (..., V) on neither bound
    bound = high * at_high + low * at_low                                     # (..., V) what the others have
    rest = 1 - bound.sum(-1, keepdim=True)                                    # (..., 1) left for the free
    shift = ((scores * free).sum(-1, keepdim=True) - rest) / free.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(free, (scores - shift).clamp(low, high), bound)        # (..., V)


def view_weights(sigmoids: Tensor, mask: Tensor, tau: float) -> Tensor:
    """Table 10's L3, scores in (0, 1), (R, S, V), mask (R, S, V) -> w (R, S, V) in C(tau), 0 where invalid:
    divide by the sum over the valid views, then project. ValueError as project_onto_C."""
    sigmoids = sigmoids * mask                                                # (R, S, V), 0 where invalid
    normalised = sigmoids / sigmoids.sum(-1, keepdim=True).clamp(min=1e-8)    # (R, S, V), sums to 1
    return project_onto_C(normalised, mask, tau)


class WeightNetwork(nn.Module):
    """Table 10: the semantic-aware weight network. M (R, S, V, 32), differences (R, S, V, 4), visibility
    (R, S, V, 1), mask (R, S, V) -> w (R, S, V) in C(tau)."""

    def __init__(self, channels: int = 32, tau: float = 0.7):
        super().__init__()
        self.tau = tau
        self.L2 = nn.Sequential(nn.Linear(channels + 4 + 1, 16), nn.ELU(), nn.Linear(16, 8), nn.ELU(),
                                nn.Linear(8, 1))

    def forward(self, M: Tensor, differences: Tensor, visibility: Tensor, mask: Tensor) -> Tensor:
        L1 = torch.cat([M, differences, visibility], dim=-1)                  # (R, S, V, 37)
        L3 = self.L2(L1).squeeze(-1).sigmoid()                                # (R, S, V)
        return view_weights(L3, mask, self.tau)


def semantic_ray(w: Tensor, refined: Tensor) -> Tensor:  # exercise: s = sum_v w_v M''_v
    """w (R, S, V), refined context M'' (R, S, V, C) -> semantic ray (R, S, C)."""
    # s[r,s,c] = sum_v w[r,s,v] M''[r,s,v,c]
    return torch.einsum("rsv,rsvc->rsc", w, refined)


def main() -> None:
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    R, S, V, C, L = 64, 16, 8, 32, 20
    M, differences, visibility = torch.randn(R, S, V, C), torch.randn(R, S, V, 4), torch.rand(R, S, V, 1)
    mask = torch.rand(R, S, V) < 0.8
    network, head = WeightNetwork(), nn.Linear(C, L)
    w, refined = network(M, differences, visibility, mask), torch.randn(R, S, V, C)
    logits = head(semantic_ray(w, refined))
    parameters = sum(p.numel() for p in network.parameters())
    print(f"Table 10 on {R} rays, {S} samples, {V} source views ({parameters:,} parameters)\n")
    for row, text, shape in (
            ("L1", "Concat (Input 1, Input 2)", (R, S, V, 37)),
            ("L2", "MLP (L1)  37, 16, 8, 1", (R, S, V, 1)), ("L3", "Sigmoid (L2)", (R, S, V)),
            ("eq.3", "w in C(tau), tau = 0.7", tuple(w.shape)),
            ("", "semantic ray", (R, S, C)), ("", "logits", tuple(logits.shape))):
        print(f"{row:4} {text:30} {shape}")

    def pinned(scores: Tensor) -> float:
        """The share of valid views that sit on a bound: their score gets no gradient."""
        w, m = project_onto_C(scores, mask, 0.7), mask.sum(-1, keepdim=True)
        free = (w > 0.7 / m + 1e-6) & (w < 1 / (0.7 * m) - 1e-6) & mask
        return float(1 - free.sum() / mask.sum())

    raw = torch.randn(R, S, V).sigmoid() * mask
    divided = raw / raw.sum(-1, keepdim=True).clamp(min=1e-8)
    print(f"One fact: of sigmoid(N(0, 1)) scores, {pinned(raw):.0%} of the views are pinned to a bound (no "
          f"gradient) when projected as they are, {pinned(divided):.0%} when divided by their sum first.")

    figure, axes = plt.subplots(1, 3, figsize=(13, 4.4), layout="constrained")
    corner = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.866]])  # the simplex of three views, drawn flat
    points = torch.distributions.Dirichlet(torch.ones(3)).sample((400,))
    for axis, tau in zip(axes, (1.0, 0.7, 0.2)):
        inside = project_onto_C(points, torch.ones(400, 3, dtype=torch.bool), tau)
        start, end = points @ corner, inside @ corner
        axis.plot(*corner[[0, 1, 2, 0]].T, color="#999999")
        axis.plot(*torch.stack([start, end]).permute(2, 0, 1), color="#cccccc", lw=0.5, zorder=1)
        axis.scatter(*start.T, s=6, color="#56b4e9", label="score / sum")
        axis.scatter(*end.T, s=9, color="#d55e00", label="projection onto C(τ)")
        axis.set(title=f"τ = {tau}: {tau / 3:.2f} ≤ w ≤ {min(1 / (3 * tau), 1):.2f}", aspect="equal")
        axis.set_axis_off()
    axes[0].legend(loc="upper left", frameon=False)
    figure.suptitle("Eq. 3 for three views: a corner is all weight on one view, the centre is the mean")
    save_picture(figure, "outputs/05_weighting.png", 100)


if __name__ == "__main__":
    run_script(main)
