"""Table 9: Cross-Reprojection Attention, from the initial to the refined 3D contextual space.

    M (R, S, V, C), mask (R, S, V)   ->   M'' (R, S, V, C)

A query ray has S samples seen in V views: S V tokens of context. Dense attention would let every token read
every other at a cost that grows with (S V)^2. Cross-Reprojection Attention does it in two sparse steps
(section 3.3):

    M -> M'    intra-view radial attention:   within one view, along the ray     (sequences of length S)
    M' -> M''  cross-view sparse attention:   at one sample, across the views    (sequences of length V)

Two hops connect every token with every other. Each is multi-head attention, 4 heads on 32 channels, with a
residual and a LayerNorm around it, no feed-forward, and the table's ReLU on its output (docs/choices.md). A
masked token is no key: nobody reads it. So masking a view equals removing it.

Dimension key: R rays, S samples, V source views, C channels, A heads, D head dim; B sequences of N tokens
(s queries, t keys).
Run: python 04_cra.py     Test: pytest tests/test_04_cra.py
"""
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from support.files import run_script, save_picture

MODES = ("none", "intra", "cross", "full", "dense")          # the rows of Tables 2 and 3
FUSED_LIMIT = 65535                                          # sequences that a CUDA kernel takes at once


def key_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """mask (..., t), true where a key may be read -> what is added to the scores: 0 there, -inf elsewhere. A
    row in which nothing may be read reads everything: finite, and of no weight later (w = 0 in 05)."""
    mask = mask | ~mask.any(dim=-1, keepdim=True)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, -torch.inf)


def attention_maps(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:  # exercise: L4 and L6
    """Who reads whom, and how much: q (B, A, s, D), k (B, A, t, D), mask (B, t) -> (B, A, s, t)."""
    # score[b,a,s,t] = sum_d q[b,a,s,d] k[b,a,t,d] / sqrt(D)
    score = torch.einsum("basd,batd->bast", q, k) / math.sqrt(q.shape[-1])                 # (B, A, s, t)
    return (score + key_bias(mask, score.dtype)[:, None, None]).softmax(dim=-1)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:  # exercise: L4 and L6
    """Scaled dot-product attention: q, k, v (B, A, N, D), mask (B, N), true: may be read -> (B, A, N, D)."""
    # out[b,a,s,d] = sum_t softmax_t(score)[b,a,s,t] v[b,a,t,d]
    return torch.einsum("bast,batd->basd", attention_maps(q, k, mask), v)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """`attention` by PyTorch's fused kernel, which never stores the (B, A, s, t) scores; for fast/."""
    bias = key_bias(mask, q.dtype)[:, None, None].expand(-1, q.shape[1], q.shape[2], -1)   # (B, A, s, t)
    parts = zip(*(x.split(FUSED_LIMIT) for x in (q, k, v, bias)))
    return torch.cat([F.scaled_dot_product_attention(q, k, v, attn_mask=b) for q, k, v, b in parts])


def sample_positions(S: int, channels: int, places: int | None = None, device=None) -> Tensor:
    """Sinusoidal position embedding, base 10000, of a ray's S samples (Table 9, L2; Table 11, L9): (S,
    channels). They divide the stretch from -1/2 to places - 1/2, so that weights do not depend on how many
    samples there are; S places, or None: by their own index 0 .. S-1."""
    s = torch.arange(S, device=device, dtype=torch.float32)                   # (S,)
    position = (s + 0.5) * ((places or S) / S) - 0.5                          # (S,)
    rate = 10000.0 ** (-torch.arange(0, channels, 2, device=device, dtype=torch.float32) / channels)
    angle = position[:, None] * rate                                          # (S, channels / 2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)        # (S, channels)


class MultiHeadAttention(nn.Module):
    """Multi-head attention with residual and LayerNorm: x (B, N, C), mask (B, N) -> (B, N, C).

    mask: which tokens may be read. relu: a ReLU on the attention's output, before the residual (Table 9).
    """

    def __init__(self, channels: int, heads: int = 4, relu: bool = True):
        super().__init__()
        self.heads, self.relu, self.attend = heads, relu, attention           # fast/ has another attend
        self.query, self.key, self.value = (nn.Linear(channels, channels) for _ in range(3))
        self.out = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)

    def queries_keys_values(self, x: Tensor) -> list[Tensor]:
        """x (B, N, C) -> three of (B, A, N, D)."""
        B, N, C = x.shape
        layers = self.query, self.key, self.value
        return [layer(x).view(B, N, self.heads, -1).transpose(1, 2) for layer in layers]

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        read = self.attend(*self.queries_keys_values(x), mask)                # (B, A, N, D)
        read = self.out(read.transpose(1, 2).flatten(2))                      # (B, N, C)
        return self.norm(x + (F.relu(read) if self.relu else read))           # (B, N, C)


class CRA(nn.Module):
    """Table 9. M (R, S, V, C), mask (R, S, V) -> M'' (R, S, V, C).

    mode: "full" (intra-view radial, then cross-view sparse attention), "intra", "cross", "dense" (one
    attention over all S V tokens of a ray) or "none" (returns M): the rows of Tables 2 and 3. Else
    ValueError. places: of sample_positions.
    """

    def __init__(self, mode: str = "full", channels: int = 32, heads: int = 4, relu: bool = True,
                 places: int | None = None):
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode {mode!r} is none of {MODES}")
        self.mode, self.places = mode, places
        if mode in ("intra", "full"):
            self.L4 = MultiHeadAttention(channels, heads, relu)               # intra-view radial attention
        if mode in ("cross", "full"):
            self.L6 = MultiHeadAttention(channels, heads, relu)               # cross-view sparse attention
        if mode == "dense":
            self.dense = MultiHeadAttention(channels, heads, relu)

    def with_positions(self, M: Tensor) -> Tensor:
        """L1-L3: M (R, S, V, C) -> (R, V, S, C), the sample's position added."""
        R, S, V, C = M.shape
        L1 = M.transpose(1, 2)                                                # (R, V, S, C)
        L2 = sample_positions(S, C, self.places, M.device).to(M.dtype)        # (S, C)
        return L1 + L2                                                        # L3: (R, V, S, C)

    def intra_view(self, M: Tensor, mask: Tensor) -> Tensor:  # exercise: L1-L5
        """Intra-view radial attention: R V sequences of S tokens. M (R, S, V, C) -> M' (R, S, V, C)."""
        R, S, V, C = M.shape
        L3 = self.with_positions(M)                                           # (R, V, S, C)
        L4 = self.L4(L3.flatten(0, 1), mask.transpose(1, 2).flatten(0, 1))    # (R V, S, C)
        return L4.view(R, V, S, C).transpose(1, 2)                            # L5: (R, S, V, C)

    def cross_view(self, M: Tensor, mask: Tensor) -> Tensor:  # exercise: L6
        """Cross-view sparse attention: R S sequences of V tokens. M' (R, S, V, C) -> M'' (R, S, V, C)."""
        L6 = self.L6(M.flatten(0, 1), mask.flatten(0, 1))                     # (R S, V, C)
        return L6.view(M.shape)                                               # (R, S, V, C)

    def dense_attention(self, M: Tensor, mask: Tensor) -> Tensor:  # exercise
        """What CRA stands in for: R sequences of V S tokens. M (R, S, V, C) -> (R, S, V, C)."""
        R, S, V, C = M.shape
        L3 = self.with_positions(M)                                           # (R, V, S, C)
        out = self.dense(L3.flatten(1, 2), mask.transpose(1, 2).flatten(1))   # (R, V S, C)
        return out.view(R, V, S, C).transpose(1, 2)                           # (R, S, V, C)

    def forward(self, M: Tensor, mask: Tensor) -> Tensor:
        if self.mode == "dense":
            return self.dense_attention(M, mask)
        if self.mode in ("intra", "full"):
            M = self.intra_view(M, mask)                                      # M'
        if self.mode in ("cross", "full"):
            M = self.cross_view(M, mask)                                      # M''
        return M

    def maps(self, M: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The attention maps of mode "full": intra-view (R, V, A, S, S), cross-view (R, S, A, V, V)."""
        q, k, _ = self.L4.queries_keys_values(self.with_positions(M).flatten(0, 1))
        intra = attention_maps(q, k, mask.transpose(1, 2).flatten(0, 1))      # (R V, A, S, S)
        q, k, _ = self.L6.queries_keys_values(self.intra_view(M, mask).flatten(0, 1))
        cross = attention_maps(q, k, mask.flatten(0, 1))                      # (R S, A, V, V)
        return intra.unflatten(0, M.shape[:3:2]), cross.unflatten(0, M.shape[:2])


def main() -> None:
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    R, S, V, C = 4, 12, 3, 32
    M, mask = torch.randn(R, S, V, C), torch.ones(R, S, V, dtype=torch.bool)
    along_rays, refined = (R, V, S, C), tuple(CRA()(M, mask).shape)
    rows = ("L1", "Transpose (Input)", along_rays), ("L2", "Position embeddings", (S, C)), \
        ("L3", "Add (L1, L2)", along_rays), ("L4", "Multi-head attention: intra-view", along_rays), \
        ("L5", "Transpose (L4)", refined), ("L6", "Multi-head attention: cross-view", refined)
    for row, text, shape in rows:
        print(f"{row:4} {text:36} {shape}")
    print(f"One fact: at the paper's 64 samples and 8 views, two hops have {8 * 64 * 64 + 64 * 8 * 8:,} "
          f"scores a ray and head, dense attention {(64 * 8) ** 2:,}.")

    figure, axes = plt.subplots(1, 4, figsize=(15, 4.3), layout="constrained")
    probe = torch.randn(C)         # one direction of C: a LayerNorm holds the sum and the squares constant
    for axis, mode in zip(axes, ("intra", "cross", "full", "dense")):
        slope = jacobian(lambda x, cra=CRA(mode): cra(x, mask[:1]) @ probe, M[:1])  # (1, S, V, 1, S, V, C)
        reach = slope.norm(dim=-1).view(S * V, S * V)                         # token that reads, token read
        axis.imshow((reach + 1e-3).log10(), cmap="cividis", vmin=-3)
        axis.set(title=f"{mode}: {(reach > 0).float().mean():.0%} of the pairs", xlabel="token that is read")
    figure.suptitle("Which token (row) of a ray reads which: two sparse hops go where dense does")
    save_picture(figure, "outputs/04_cra.png", 100)


if __name__ == "__main__":
    run_script(main)
