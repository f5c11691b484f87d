"""Table 10 and eq. 3: weigh the source views, and sum them into the semantic ray.

The views do not matter equally: some are occluded, some look from far or aslant. The semantic-aware weight network scores each
view from the initial context M; the scores become weights w in the set (eq. 3)

    C(tau) = { w : tau/m <= w_i <= 1/(tau m),  sum_i w_i = 1 }          m valid views, 0 < tau <= 1

and the semantic ray is the weighted sum of the refined context, from which one linear layer reads the logits of L classes:

    s[r,s,c] = sum_v w[r,s,v] M''[r,s,v,c]                              M'' (R, S, V, C) -> s (R, S, C) -> logits (R, S, L)

tau controls how far views may differ: tau = 1 leaves one point, the mean; small tau leaves nearly the whole simplex. The
supplement prints strict bounds, an empty set at tau = 1; ours are closed.

How w gets into C(tau): sigmoid scores divided by their sum over the valid views (already a distribution), then the exact
Euclidean projection. Projecting the raw sigmoids instead pins most views to a bound, where the gradient is zero: `python
05_weighting.py` prints both shares. 37 inputs: 32 (context) + 4 (direction differences) + 1, the view's visibility weight
(Table 11, L3); the table lists only the first two.

Packed. M may come as its T valid tokens alone, M[mask] (T, C), ray by ray, sample by sample, view by view. Whatever treats each token
by itself (a linear layer, an activation) need not know. `sum_over_views` adds up the tokens of a sample either way, `unpack`
brings one number a token back to (R, S, V).

Dimension key: R rays, S samples, V source views, C channels, L classes, T valid tokens. (.., C): (R, S, V, C) or packed, (T, C).
Run: python 05_weighting.py     Test: pytest tests/test_05_weighting.py
"""
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

encoder = import_module("02_encoder")       # ELU


def project_onto_C(scores: Tensor, mask: Tensor, tau: float) -> Tensor:
    """Euclidean projection of scores (..., V) onto C(tau) over the valid views of mask (..., V) -> w (..., V); 0 where invalid.

    The projection onto a box with a sum is w_i = clamp(score_i - shift, low, high) for the one shift at which the sum is 1
    (eq. 3's bounds; the shift is the multiplier of the sum). The sum falls piecewise linearly with the shift and bends
    only where some view meets a bound: look at all 2V bends, find the piece that crosses 1, solve its line. Exact, no
    iteration. The gradient: w_i of the free views (strictly inside the bounds) is score_i minus their mean, plus a constant.
    No valid view: all zero. tau in (0, 1], else ValueError.
    """
    if not 0 < tau <= 1:
        raise ValueError(f"tau must be in (0, 1], not {tau}")
    # the views' axis goes first: whatever is done to a view is done to all samples at once, in one stride
    scores, mask = scores.movedim(-1, 0).contiguous(), mask.movedim(-1, 0).contiguous()          # (V, ...)
    valid = mask.to(scores.dtype)
    m = valid.sum(0).clamp(min=1)                                             # (...) valid views
    low, high = tau / m, 1 / (tau * m)                                        # (...) feasible for every m >= 1
    with torch.no_grad():
        y = scores.detach()
        bends = torch.cat([y - low, y - high])                                # (2V, ...) shifts where a view meets a bound
        total = torch.zeros_like(bends)                                       # (2V, ...) falls as the shift grows
        for view, counts in zip(y, valid):
            total.addcmul_((view - bends).clamp_(low, high), counts)
        both, over = torch.cat([mask, mask]), total >= 1                      # a masked view's bends do not count
        left = torch.where(both & over, bends, -torch.inf).amax(0)            # (...) last bend with sum >= 1
        right = torch.where(both & ~over, bends, torch.inf).amin(0)           # (...) first bend with sum < 1
        middle = torch.where(left.isfinite() & right.isfinite(), (left + right) / 2, torch.where(left.isfinite(), left, right))
        at_high = (y - middle >= high) & mask
        at_low = (y - middle <= low) & mask & ~at_high                        # tau = 1: both bounds are 1/m, count one
        free = mask & ~at_high & ~at_low                                      # (V, ...) views strictly between the bounds
        bound = torch.where(at_high, high, torch.where(at_low, low, 0))       # (V, ...) what the others have
    shift = ((scores * free).sum(0) - (1 - bound.sum(0))) / free.sum(0).clamp(min=1)              # the free share the rest
    return torch.where(free, (scores - shift).clamp(low, high), bound).movedim(0, -1)


def view_weights(sigmoids: Tensor, mask: Tensor, tau: float) -> Tensor:
    """Table 10's L3, scores in (0, 1), (R, S, V) -> w (R, S, V) in C(tau): divide by the sum of the valid, then project."""
    sigmoids = sigmoids * mask
    normalised = sigmoids / sigmoids.sum(-1, keepdim=True).clamp(min=1e-8)
    return project_onto_C(normalised, mask, tau)


class SumOfRuns(torch.autograd.Function):
    """The sums of the first lengths[0] rows, of the next lengths[1] and so on: x (T, C), lengths (N,) -> (N, C)."""

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
    """x (R, S, V, C), or packed the (T, C) where mask (R, S, V) is true -> (R, S, C)."""
    if x.dim() == 4:
        return x.sum(dim=2)
    return SumOfRuns.apply(x, mask.sum(dim=2).flatten()).view(*mask.shape[:2], -1)


def unpack(x: Tensor, mask: Tensor) -> Tensor:
    """x (R, S, V) as it is, or packed (T,) -> (R, S, V): in its place where the mask is true, 0 elsewhere."""
    if x.dim() == 3:
        return x
    return x.new_zeros(mask.numel()).index_copy(0, mask.flatten().nonzero()[:, 0], x).view(mask.shape)


class WeightNetwork(nn.Module):
    """Table 10: the semantic-aware weight network. M (.., 32), differences (.., 4), visibility (.., 1), mask (R, S, V)
    -> w (R, S, V) in C(tau)."""

    def __init__(self, channels: int = 32, tau: float = 0.7):
        super().__init__()
        self.tau = tau
        self.L2 = nn.Sequential(nn.Linear(channels + 4 + 1, 16), encoder.ELU(), nn.Linear(16, 8), encoder.ELU(),
                                nn.Linear(8, 1))

    def forward(self, M: Tensor, differences: Tensor, visibility: Tensor, mask: Tensor) -> Tensor:
        L1 = torch.cat([M, differences, visibility], dim=-1)                  # (.., 37)
        L3 = self.L2(L1).squeeze(-1).to(M.dtype).sigmoid()                    # (R, S, V) or (T,)
        return view_weights(unpack(L3, mask), mask, self.tau)


def semantic_ray(w: Tensor, refined: Tensor, mask: Tensor) -> Tensor:
    """s[r,s,c] = sum_v w[r,s,v] M''[r,s,v,c]: w (R, S, V), 0 where the mask (R, S, V) is false, M'' (.., C) -> (R, S, C)."""
    w = w if refined.dim() == 4 else w.flatten().index_select(0, mask.flatten().nonzero()[:, 0])
    return sum_over_views(w[..., None] * refined, mask)                       # torch.einsum would make R S tiny products of it


def main() -> None:
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    R, S, V, C, L = 64, 16, 8, 32, 20
    M, differences, visibility = torch.randn(R, S, V, C), torch.randn(R, S, V, 4), torch.rand(R, S, V, 1)
    mask = torch.rand(R, S, V) < 0.8
    network, head = WeightNetwork(), nn.Linear(C, L)
    with torch.no_grad():
        w = network(M, differences, visibility, mask)
        logits = head(semantic_ray(w, M, mask))
    print(f"Table 10 on {R} rays, {S} samples, {V} source views\n")
    print(f"{'row':4} {'the supplement':40} {'our output':18} parameters")
    for row, text, shape, count in [
            ("L1", "Concat (Input 1, Input 2)", (R, S, V, 37), 0),
            ("L2", "MLP (L1)  37, 16, 8, 1", (R, S, V, 1), sum(p.numel() for p in network.L2.parameters())),
            ("L3", "Sigmoid (L2)", (R, S, V), 0), ("eq.3", "w in C(tau), tau = 0.7", tuple(w.shape), 0),
            ("", "semantic ray", (R, S, C), 0),
            ("", "logits", tuple(logits.shape), sum(p.numel() for p in head.parameters()))]:
        print(f"{row:4} {text:40} {str(shape):18} {count:,}")

    def pinned(scores: Tensor) -> float:
        """The share of valid views that sit on a bound: their score gets no gradient."""
        w = project_onto_C(scores, mask, 0.7)
        m = mask.sum(-1, keepdim=True)
        free = (w > 0.7 / m + 1e-6) & (w < 1 / (0.7 * m) - 1e-6) & mask
        return float(1 - free.sum() / mask.sum())

    raw = torch.randn(R, S, V).sigmoid() * mask
    divided = raw / raw.sum(-1, keepdim=True).clamp(min=1e-8)
    print(f"One fact: of sigmoid(N(0, 1)) scores, {pinned(raw):.0%} of the views are pinned to a bound (no gradient) when the "
          f"sigmoids are projected as they are, {pinned(divided):.0%} when they are divided by their sum first.")

    figure, axes = plt.subplots(1, 3, figsize=(13, 4.4), constrained_layout=True)
    corner = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.866]])             # the simplex of three views, drawn flat
    points = torch.distributions.Dirichlet(torch.ones(3)).sample((400,))
    for axis, tau in zip(axes, (1.0, 0.7, 0.2)):
        inside = project_onto_C(points, torch.ones(400, 3, dtype=torch.bool), tau)
        start, end = points @ corner, inside @ corner
        axis.plot(*corner[[0, 1, 2, 0]].T, color="#999999")
        for a, b in zip(start, end):
            axis.plot([a[0], b[0]], [a[1], b[1]], color="#cccccc", lw=0.5, zorder=1)
        axis.scatter(*start.T, s=6, color="#56b4e9", label="score / sum")
        axis.scatter(*end.T, s=9, color="#d55e00", label="projection onto C(τ)")
        axis.set(title=f"τ = {tau}: {tau / 3:.2f} ≤ w ≤ {min(1 / (3 * tau), 1):.2f}", aspect="equal")
        axis.set_axis_off()
    axes[0].legend(loc="upper left", frameon=False)
    figure.suptitle("Eq. 3 for three views: a corner is all weight on one view, the centre is the mean")
    Path("outputs").mkdir(exist_ok=True)
    figure.savefig("outputs/05_weighting.png", dpi=100)
    print("picture: outputs/05_weighting.png")


if __name__ == "__main__":
    main()
