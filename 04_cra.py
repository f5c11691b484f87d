"""Table 9: Cross-Reprojection Attention, from the initial to the refined 3D contextual space.

    M (R, S, V, C), mask (R, S, V)   ->   M'' (R, S, V, C)

A query ray has S samples seen in V views: S V tokens of context. Dense attention would let every token read every other at
a cost that grows with (S V)^2. Cross-Reprojection Attention does it in two sparse steps (section 3.3 of the paper):

    M -> M'    intra-view radial attention:   within one view, along the ray     (sequences of length S, position added)
    M' -> M''  cross-view sparse attention:   at one sample, across the views    (sequences of length V)

Two hops connect every token with every other: along the ray in its own view, then across the views. Each is multi-head
attention, 4 heads on 32 channels, and a sequence's masked tokens are no keys: nobody reads them. Masking a view equals
removing it.

The table lists L1 and L5, transposes that bring the attended axis in front; an einsum subscript says the same.
What the table leaves open, and how it is settled (figures in README.md, "Choices settled by measuring"): a residual and a
LayerNorm around each attention, no feed-forward; `relu=True`, the table's ReLU on the attention's output, is S-Ray's default.

Packed. M may come as its T valid tokens alone, M[mask] (T, C) (03 makes them so on a CPU). The sequences then have different lengths;
`lay_out` sorts them into blocks of like length, and nothing is computed for tokens that nobody reads. `PackedAttention` is
`attention` for such blocks, a cacheful at a time.

Dimension key: R rays, S samples (s queries, t keys), V source views (v queries, u keys), C channels, A heads, D head dim,
T valid tokens, P those and padding.
Run: python 04_cra.py     Test: pytest tests/test_04_cra.py
"""
import math
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MODES = ("none", "intra", "cross", "full", "dense")          # the rows of Tables 2 and 3
FUSED_LIMIT = 65535     # sequences a CUDA kernel has been seen to accept in one call
SHORT = 8               # packed sequences no longer than this are computed many abreast, without padding
SIZES = (*range(1, SHORT + 1), *range(16, 4097, 16))     # packed sequences are padded to these lengths
TILE = 2 ** 18          # scores of packed sequences computed at a time: a MiB stays in a core's cache
EINSUM_UP_TO = 16       # sequences no longer than this go through the einsum: on a CPU it is the faster one (10_benchmark.py --tried)


class Softmax(torch.autograd.Function):
    """softmax over the last axis, written out: over rows of 8 PyTorch's own takes several times as long on a CPU (its inner loop
    is the row; `python 10_benchmark.py --tried` has the figures)."""

    @staticmethod
    def forward(ctx, score: Tensor) -> Tensor:
        p = score - score.amax(dim=-1, keepdim=True)
        p.mul_(math.log2(math.e)).exp2_()                                     # exp2: exp is slow where it underflows
        p /= p.sum(dim=-1, keepdim=True)
        ctx.save_for_backward(p)
        return p

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        """p_t (g_t - sum_u p_u g_u)"""
        p, = ctx.saved_tensors
        weighted = gradient * p
        return weighted.sub_(p * weighted.sum(dim=-1, keepdim=True))


def readable_keys(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """mask (..., t), true where a key may be read -> what is added to the scores: 0 there, -inf elsewhere. A row in which nothing
    may be read reads everything: finite, and masked out by whoever uses it."""
    mask = mask | ~mask.any(dim=-1, keepdim=True)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Multi-head attention over the second-to-last axis, as an equation. This is the definition.

    q (B, A, s, D), k, v (B, A, t, D), mask (B, 1 or A, t): which keys may be read (None: all) -> (B, A, s, D).
    """
    # score[b,a,s,t] = sum_d q[b,a,s,d] k[b,a,t,d] / sqrt(D)
    score = torch.einsum("basd,batd->bast", q / math.sqrt(q.shape[-1]), k)
    if mask is not None:
        score += readable_keys(mask, score.dtype)[:, :, None]
    # out[b,a,s,d] = sum_t softmax_t(score)[b,a,s,t] v[b,a,t,d]
    return torch.einsum("bast,batd->basd", Softmax.apply(score), v)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The same function through PyTorch's fused kernel, which never stores the (s, t) scores."""
    free = mask is None or q.device.type == "cpu" and bool(mask.all())        # asking a GPU would make the CPU wait for it
    bias = None if free else readable_keys(mask, q.dtype)[:, :, None].expand(-1, q.shape[1], q.shape[2], -1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def sample_positions(index: int | Tensor, channels: int, device=None) -> Tensor:
    """Sinusoidal position embedding, base 10000 (Table 9, L2; Table 11, L9): of 0 .. index-1, (index, channels), or of any
    positions (..., S), not necessarily whole ones, (..., S, channels)."""
    if isinstance(index, int):
        index = torch.arange(index, device=device, dtype=torch.float32)
    rate = 10000.0 ** (-torch.arange(0, channels, 2, device=index.device, dtype=torch.float32) / channels)
    angle = index[..., None] * rate                                           # (..., S, channels / 2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)        # (..., S, channels)


def padded_length(lengths: Tensor, most: int) -> Tensor:
    """To which of SIZES, or to `most`, the most there can be, sequences of these lengths (N,) are padded: (N,)."""
    sizes = torch.tensor((0, *(n for n in SIZES if n < most), most))
    return sizes[torch.bucketize(lengths, sizes)]


class Block(NamedTuple):
    """Sequences of like length, padded to one length."""
    count: int            # b  sequences
    length: int           # n  rows of each
    real: Tensor | None   # (b, n), or short (n, b): which of them are no padding; None: all
    short: bool = False   # rows in the order (n, b), all sequences abreast, instead of (b, n), one after the other


class Layout(NamedTuple):
    """Where T tokens stand when their sequences are sorted into blocks: P rows, one block after the other."""
    blocks: list[Block]
    token: Tensor         # (P,) which token each row is; a row of padding repeats some token
    row: Tensor | None    # (T,) in which row each token is, if it is in any
    real: Tensor | None   # (P, 1) which rows are no padding; None: all


def lay_out(order: Tensor, lengths: Tensor, size: Tensor, most: int, tokens: int, short: int = SHORT) -> Layout:
    """order: tokens, sequence after sequence, all or some of 0 .. tokens-1; lengths (N,) of the sequences; size (N,): sequences of
    one size become a block (of size 0: none), padded to it, but to no more than `most`; up to size `short` they stand abreast, in
    blocks of a cacheful. tokens 0: `row` and `real` are left out."""
    first, blocks, found, padding = lengths.cumsum(0) - lengths, [], [], []
    for n in size[size > 0].unique().tolist():
        same, within = (size == n).nonzero()[:, 0], torch.arange(min(n, most))                     # (b,), (n,)
        for some in same.split(max(1, TILE // (8 * n * n)) if n <= short else len(same)):
            real = within < lengths[some, None]                               # (b, n)
            token = (first[some, None] + within).clamp_(max=len(order) - 1)   # (b, n)
            if n <= short:
                real, token = real.T, token.T
            blocks.append(Block(len(some), len(within), None if real.all() else real, n <= short))
            padding.append(real.flatten())
            found.append(token.flatten())
    token, real = order[torch.cat(found)], torch.cat(padding)                 # (P,) each
    if not tokens:
        return Layout(blocks, token, None, None)
    row = torch.zeros(tokens, dtype=torch.long)
    if all(block.real is None for block in blocks):
        row[token], real = torch.arange(len(token)), None
    else:
        row[token[real]], real = real.nonzero()[:, 0], real[:, None]
    return Layout(blocks, token, row, real)


def products(x: Tensor, y: Tensor, short: bool) -> Tensor:
    """One head, x (D, b, t), y (D, b, s) -> sum_d x[d,b,t] y[d,b,s], (b, t, s). short: all heads, (A, D, t, b), (A, D, s, b) ->
    (A, t, s, b), by long products of numbers instead of tiny ones of matrices."""
    if not short:
        return torch.bmm(x.permute(1, 2, 0), y.transpose(0, 1))
    out = x[:, 0, :, None] * y[:, 0, None]
    for d in range(1, x.shape[1]):
        out.addcmul_(x[:, d, :, None], y[:, d, None])
    return out


def mixture(x: Tensor, p: Tensor, short: bool) -> Tensor:
    """x (D, b, t), p (b, t, s) -> sum_t x[d,b,t] p[b,t,s], (D, b, s). short: (A, D, t, b), (A, t, s, b) -> (A, D, s, b)."""
    if not short:
        return torch.bmm(x.transpose(0, 1), p).transpose(0, 1)
    out = x[:, :, 0, None] * p[:, 0, None]
    for t in range(1, p.shape[1]):
        out.addcmul_(x[:, :, t, None], p[:, t, None])
    return out


def largest(p: Tensor) -> Tensor:
    """p.amax(1, keepdim=True) of (b, t, s) or (A, t, s, b). Where rows of s are no multiple of 32, halving the axis is faster."""
    while p.dim() == 3 and p.shape[2] % 32 and p.shape[1] % 2 == 0:
        p = torch.maximum(*p.chunk(2, dim=1))
    return p.amax(1, keepdim=True)


class PackedAttention(torch.autograd.Function):
    """The heads of `attention` for packed sequences on a CPU: rows y (P, C) read each other, sequence by sequence -> (C, P).

    weight (3C, C) and bias (3C,) make queries, keys and values. They, and the scores of one head (of all, where sequences are short),
    are computed for as many sequences as the cache holds, used and forgotten; backward computes them again, as fused kernels do.
    The keys' axis comes before the queries', the faster order for products this small (`python 10_benchmark.py --tried`).
    """

    @staticmethod
    def tiles(heads: int, blocks: list[Block], rows: list[Tensor]):
        """For some sequences at a time: whether they are short, which heads go together, what is added to the scores (None: nothing),
        and what is theirs of each of the tensors rows (.., P): (.., b, n), short (.., n, b)."""
        i = 0
        for b, n, real, short in blocks:
            cut = [x[:, i:i + b * n].unflatten(1, (n, b) if short else (b, n)) for x in rows]
            i, step = i + b * n, max(1, TILE // (n * n))
            bias = None if real is None else readable_keys(real, cut[0].dtype)                    # (n, b) or (b, n)
            if short:
                yield short, [slice(None)], None if bias is None else bias[:, None], cut
                continue
            for some in (slice(first, first + step) for first in range(0, b, step)):
                yield short, range(heads), None if bias is None else bias[some, :, None], [x[:, some] for x in cut]

    @staticmethod
    def heads(weight: Tensor, bias: Tensor, heads: int, x: Tensor) -> Tensor:
        """Columns x (C, ..) -> (K, A, D, ..), K = 1 to 3 of queries, keys and values."""
        y = torch.addmm(bias[:, None], weight, x.flatten(1))
        return y.view(-1, heads, len(x) // heads, *x.shape[1:])

    @staticmethod
    def forward(ctx, y: Tensor, weight: Tensor, bias: Tensor, heads: int, blocks: list[Block]) -> Tensor:
        C = y.shape[1]
        scale = math.log2(math.e) / math.sqrt(C // heads)                     # exp2 is faster than exp
        z, total = y.new_empty(C, len(y)), y.new_empty(heads, len(y))         # total: log2 of the sum of exponentials, for backward
        for short, together, add, (y_, z_, total_) in PackedAttention.tiles(heads, blocks, [y.T, z, total]):
            q, k, v = PackedAttention.heads(weight, bias, heads, y_)          # (A, D, n, b) or (A, D, b, n)
            q *= scale
            z_ = z_.unflatten(0, (heads, -1))
            for a in together:
                p = products(k[a], q[a], short)                               # (b, t, s) or (A, t, s, b)
                if add is not None:
                    p += add
                top = largest(p)
                p.sub_(top).exp2_()
                some = p.sum(1, keepdim=short)                                # (b, s) or (A, 1, s, b)
                torch.div(mixture(v[a], p, short), some, out=z_[a])
                if any(ctx.needs_input_grad):
                    total_[a] = some.log2_().view(total_[a].shape).add_(top.squeeze(1))
        ctx.save_for_backward(y, weight, bias, z, total)
        ctx.how = heads, blocks, scale
        return z

    @staticmethod
    def backward(ctx, gradient: Tensor):
        """p_t (g_t - sum_u p_u g_u) for the scores, g being the gradient of p."""
        y, weight, bias, z, total = ctx.saved_tensors
        heads, blocks, scale = ctx.how
        dy, dweight, dbias = torch.empty_like(y), torch.zeros_like(weight), torch.zeros_like(bias)
        for short, together, add, (y_, z_, total_, g, dy_) in PackedAttention.tiles(heads, blocks, [y.T, z, total, gradient, dy.T]):
            q, k, v = PackedAttention.heads(weight, bias, heads, y_)
            q *= scale
            d, g = q.new_empty(3, *q.shape), g.contiguous()                   # d: of q, k, v
            g, z_ = g.unflatten(0, (heads, -1)), z_.unflatten(0, (heads, -1))
            delta = (g * z_).sum(1)                                           # (A, b, s) or (A, s, b)
            for a in together:
                p = products(k[a], q[a], short)
                if add is not None:
                    p += add
                p.sub_(total_[a].unsqueeze(1)).exp2_()
                d[2, a] = mixture(g[a], p.transpose(1, 2), short)
                ds = products(v[a], g[a], short).sub_(delta[a].unsqueeze(1)).mul_(p)
                d[0, a] = mixture(k[a], ds, short)
                d[1, a] = mixture(q[a], ds.transpose(1, 2), short)
            d[0] *= scale * math.log(2)
            d[1] *= math.log(2)
            d = d.view(len(weight), -1)                                       # (3C, tokens)
            dweight.addmm_(d, y_.flatten(1).T)
            dbias += d.sum(1)
            torch.mm(d.T, weight, out=dy_.flatten(1).T)                       # the rows themselves
        return dy, dweight, dbias, None, None


class Rearrange(torch.autograd.Function):
    """x[index] for an index that reads every row once, but for padding: x (N, C), index (P,) -> (P, C). The gradient is a lookup
    as well, at `back` (N,), the place of each row; `real` (N, 1): which rows have one. (PyTorch would add row to row.)"""

    @staticmethod
    def forward(ctx, x: Tensor, index: Tensor, back: Tensor, real: Tensor | None) -> Tensor:
        ctx.save_for_backward(back, real)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        """The gradient (P, C) of each row of x, 0 for padding."""
        back, real = ctx.saved_tensors
        gradient = gradient.index_select(0, back)
        return gradient if real is None else gradient.mul_(real), None, None, None


class MultiHeadAttention(nn.Module):
    """Multi-head attention with residual and LayerNorm along one axis of x (R, N, G, C): R x G sequences of length N.

    mask (R, N, G): which tokens may be read. heads * head dim = channels. fused: use the fused kernel (same function).
    """

    def __init__(self, channels: int, heads: int = 4, relu: bool = False, fused: bool = True):
        super().__init__()
        self.heads, self.relu, self.fused = heads, relu, fused
        self.query, self.key, self.value = (nn.Linear(channels, channels) for _ in range(3))
        self.out = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, mask: Tensor, position: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        """rows (R, n): only these tokens of each sequence ask (all are asked); the output is (R, n, G, C) then."""
        R, N, G, C = x.shape
        A, D = self.heads, C // self.heads
        y = x if position is None else x + position[..., None, :]             # (R, N, G, C): position (N, C) or (R, N, C)
        # G sequences of A heads each are G*A heads of one sequence: no copy, only another reading of the same memory
        asking = y if rows is None else y.take_along_dim(rows[:, :, None, None], dim=1)          # (R, n, G, C)
        q, k, v = (f(a).view(R, -1, G * A, D).transpose(1, 2)                 # (R, G*A, n or N, D)
                   for f, a in ((self.query, asking), (self.key, y), (self.value, y)))
        keys = mask.transpose(1, 2).repeat_interleave(A, dim=1)               # (R, G*A, N)
        attend = fused_attention if self.fused and N > EINSUM_UP_TO else attention
        parts = [attend(*part) for part in zip(*(t.split(max(1, FUSED_LIMIT // (G * A))) for t in (q, k, v, keys)))]
        z = parts[0] if len(parts) == 1 else torch.cat(parts)                 # (R, G*A, n, D)
        z = self.out(z.transpose(1, 2).reshape(asking.shape))                 # (R, n, G, C)
        return self.norm(asking + (F.relu_(z) if self.relu else z))

    def packed(self, x: Tensor, layout: Layout, asking: Layout, position: Tensor | None = None,
               place: Tensor | None = None) -> Tensor:
        """forward for sequences of all lengths: x (T, C) tokens in a layout, asking the layout of those that ask (the same one: all;
        else without gradient) -> (T, C), of no meaning for tokens that do not ask. position[place[t]] is added to token t."""
        def rows(where: Layout) -> Tensor:
            """x, with its position, in that layout: (P, C)"""
            y = Rearrange.apply(x, where.token, where.row, None)
            return y if position is None else y.add_(position.index_select(0, place.index_select(0, where.token)))
        y = rows(layout)                                                      # (P, C)
        z = self.blocks(y, layout.blocks) if asking is layout else self.ask_some(rows(asking), y, asking.blocks, layout.blocks)
        return Rearrange.apply(z, asking.row, asking.token, asking.real)

    def blocks(self, y: Tensor, blocks: list[Block]) -> Tensor:
        """Rows (P, C) read each other, sequence by sequence -> (P, C)."""
        three = self.query, self.key, self.value
        z = PackedAttention.apply(y, torch.cat([f.weight for f in three]), torch.cat([f.bias for f in three]), self.heads, blocks)
        z = self.out(z.T)                                                     # (P, C)
        return self.norm(y + (F.relu_(z) if self.relu else z))

    def ask_some(self, asker: Tensor, y: Tensor, asking: list[Block], reading: list[Block]) -> Tensor:
        """Rows (Q, C) ask, sequence by sequence, rows (P, C) -> (Q, C), without gradient; no block is short. Where few ask many, keys
        and values need not be computed: q . k = x (Wq^T Wk) y, and Wo sum_t p_t Wv y_t = (Wo Wv) sum_t p_t y_t, and such products
        of weights are made once."""
        A, C = self.heads, y.shape[1]
        query, key, value = (f.weight.view(A, C // A, C) for f in (self.query, self.key, self.value))
        scale = math.log2(math.e) / math.sqrt(C // A)                         # exp2 is faster than exp
        # a key's bias adds the same number to all scores of a query, which changes no softmax
        q = torch.addmm(torch.einsum("ad,adj->aj", self.query.bias.view(A, -1) * scale, key).flatten(), asker,
                        torch.einsum("adi,adj->iaj", query * scale, key).flatten(1)).view(-1, C)      # (Q A, C)
        z, i, j = torch.empty_like(q), 0, 0
        for ask, block in zip(asking, reading):
            b, s, t = block.count, ask.length * A, block.length
            q_, z_, y_ = (x[k:k + b * n].view(b, n, C) for x, k, n in ((q, i, s), (z, i, s), (y, j, t)))
            i, j, step = i + b * s, j + b * t, max(1, TILE // (s * t))
            bias = None if block.real is None else readable_keys(block.real, y.dtype)[..., None]  # (b, t, 1)
            for some in (slice(first, first + step) for first in range(0, b, step)):
                p = torch.bmm(y_[some], q_[some].transpose(1, 2))             # (b, t, s): keys before queries
                if bias is not None:
                    p += bias[some]
                p.sub_(largest(p)).exp2_()
                torch.div(torch.bmm(p.transpose(1, 2), y_[some]), p.sum(1)[..., None], out=z_[some])
        answer = torch.einsum("cad,adj->ajc", self.out.weight.view(C, A, -1), value).reshape(-1, C)   # (A C, C)
        z = torch.addmm(self.out(self.value.bias), z.view(-1, A * C), answer)                     # (Q, C)
        return self.norm(asker + (F.relu_(z) if self.relu else z))

    def maps(self, x: Tensor, mask: Tensor, position: Tensor | None = None) -> Tensor:
        """What forward's attention reads, for pictures: x (R, N, G, C), mask (R, N, G) -> (R, G, A, N, N), the softmax over the
        keys (last axis) of every query; rows sum to 1, masked keys have 0."""
        R, N, G, C = x.shape
        y = x if position is None else x + position[..., None, :]             # (R, N, G, C)
        q, k = (f(y).view(R, N, G, self.heads, -1) for f in (self.query, self.key))
        # score[r,g,a,n,t] = sum_d q[r,n,g,a,d] k[r,t,g,a,d] / sqrt(D)
        score = torch.einsum("rngad,rtgad->rgant", q, k) / math.sqrt(q.shape[-1])
        return (score + readable_keys(mask.transpose(1, 2), score.dtype)[:, :, None, None]).softmax(dim=-1)


class CRA(nn.Module):
    """Table 9. M (R, S, V, C), mask (R, S, V) -> M'' (R, S, V, C), or packed, (T, C) -> (T, C).

    mode: "full" (intra-view radial, then cross-view sparse attention), "intra", "cross", "dense" (one attention over all
    S V tokens of a ray) or "none" (returns M): the five rows of Tables 2 and 3.
    """

    def __init__(self, mode: str = "full", channels: int = 32, heads: int = 4, relu: bool = False, fused: bool = True):
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode {mode!r} is none of {MODES}")
        self.mode = mode
        if mode in ("intra", "full"):
            self.L4 = MultiHeadAttention(channels, heads, relu, fused)        # intra-view radial attention
        if mode in ("cross", "full"):
            self.L6 = MultiHeadAttention(channels, heads, relu, fused)        # cross-view sparse attention
        if mode == "dense":
            self.dense = MultiHeadAttention(channels, heads, relu, fused)

    def forward(self, M: Tensor, mask: Tensor, index: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """index (R, S): positions to embed instead of 0 .. S-1. keep (R, n): refine only these samples, (R, n, V, C): the
        others are still read along the ray, but ask nothing (rendering, where many samples weigh next to nothing)."""
        if M.dim() == 2:
            return self.packed(M, mask, index, keep)
        R, S, V, C = M.shape
        position = sample_positions(S if index is None else index, C, M.device).to(M.dtype)      # L2: (S, C) or (R, S, C)
        if self.mode == "dense":                                              # every token reads every token of its ray
            position = position.repeat_interleave(V, dim=-2)                  # (.., S*V, C): a sample's views share it
            rows = None if keep is None else (keep[:, :, None] * V + torch.arange(V, device=M.device)).flatten(1)
            return self.dense(M.reshape(R, S * V, 1, C), mask.reshape(R, S * V, 1), position, rows).view(R, -1, V, C)
        if self.mode in ("intra", "full"):                                    # R*V sequences of length S
            M = self.L4(M, mask, position, keep)                              # M': (R, S, V, C)
        elif keep is not None:
            M = M.take_along_dim(keep[:, :, None, None], dim=1)
        if self.mode in ("cross", "full"):                                    # R*S sequences of length V
            mask = mask if keep is None else mask.take_along_dim(keep[:, :, None], dim=1)
            M = self.L6(M.reshape(-1, V, 1, C), mask.reshape(-1, V, 1)).view(M.shape)             # M''
        return M

    def packed(self, M: Tensor, mask: Tensor, index: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """forward for the valid tokens alone: M (T, C), T = mask.sum() -> (T, C), or the tokens of the samples `keep` names."""
        (R, S, V), C = mask.shape, M.shape[-1]
        r, s, v = mask.nonzero(as_tuple=True)                                 # (T,) each: ray, sample, view
        asked = None if keep is None else torch.zeros(R, S, dtype=torch.bool).scatter(1, keep, True)[r, s]
        if not len(M) or asked is not None and not asked.any():
            return M if keep is None else M[asked]
        if self.mode in ("intra", "full", "dense"):
            table = sample_positions(S if index is None else index, C).view(-1, C).to(M.dtype)    # (S, C) or (R S, C)
            place = s if index is None else r * S + s                         # (T,) the row of it that a token embeds
            number = (mask.flatten().cumsum(0) - 1).view(mask.shape)          # (R, S, V) which token
            if self.mode == "dense":                                          # R sequences of up to S V tokens
                order, sequence, lengths, most = number[mask], r, mask.sum((1, 2)), S * V
            else:                                                             # R V sequences of up to S tokens
                order, lengths, most = number.transpose(1, 2)[mask.transpose(1, 2)], mask.sum(1).flatten(), S
                sequence = r * V + v
            size = padded_length(lengths, most)
            if asked is None:
                layout = asking = lay_out(order, lengths, size, most, len(M))
            else:
                count = sequence[asked].bincount(minlength=len(lengths))      # how many of each sequence's tokens are asked
                size *= count > 0
                layout = lay_out(order, lengths, size, most, 0, short=0)
                asking = lay_out(order[asked[order]], count, size, most // S * keep.shape[1], len(M), short=0)
            M = (self.dense if self.mode == "dense" else self.L4).packed(M, layout, asking, table, place)          # M': (T, C)
        if keep is not None:
            M, mask = M.index_select(0, asked.nonzero()[:, 0]), mask.take_along_dim(keep[:, :, None], dim=1)
        if self.mode in ("cross", "full"):                                    # R S sequences of up to V tokens
            lengths = mask.sum(2).flatten()
            layout = lay_out(torch.arange(len(M)), lengths, padded_length(lengths, V), V, len(M))
            M = self.L6.packed(M, layout, layout)                             # M''
        return M


def main() -> None:
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    R, S, V, C = 4, 12, 3, 32
    M, mask = torch.randn(R, S, V, C), torch.ones(R, S, V, dtype=torch.bool)
    cra = CRA()
    with torch.no_grad():
        refined = cra(M, mask)
    count = {row: sum(p.numel() for p in getattr(cra, row).parameters()) for row in ("L4", "L6")}
    print(f"Table 9 on {R} rays, {S} samples, {V} source views\n")
    print(f"{'row':4} {'the supplement':42} {'our output':22} parameters")
    for row, text, shape, parameters in [
            ("", "Input: initial 3D contextual space", (R, S, V, C), 0), ("L1", "Transpose (Input)", (R, V, S, C), 0),
            ("L2", "Position embeddings", (S, C), 0), ("L3", "Add (L1, L2)", (R, V, S, C), 0),
            ("L4", "Multi-head attention (nhead=4): intra-view", (R, V, S, C), count["L4"]),
            ("L5", "Transpose (L4)", (R, S, V, C), 0),
            ("L6", "Multi-head attention (nhead=4): cross-view", tuple(refined.shape), count["L6"])]:
        print(f"{row:4} {text:42} {str(shape):22} {parameters:,}")

    figure, axes = plt.subplots(1, 4, figsize=(15, 4.3), constrained_layout=True)
    reach = {}
    for axis, mode in zip(axes, ("intra", "cross", "full", "dense")):         # which token moves which? ask the gradient
        torch.manual_seed(0)
        module = CRA(mode)
        x = M[:1].clone().requires_grad_()
        out = module(x, mask[:1]).view(S * V, C)
        touched = torch.zeros(S * V, S * V)
        for token in range(S * V):
            gradient, = torch.autograd.grad(out[token].square().sum(), x, retain_graph=True)
            touched[token] = gradient.view(S * V, C).norm(dim=-1)
        reach[mode] = (touched > 0).float().mean()
        axis.imshow((touched + 1e-6).log10(), cmap="cividis", vmin=-6)
        axis.set(title=f"{mode}: {reach[mode]:.0%} of the pairs", xlabel="is read: token (sample, view)")
    axes[0].set_ylabel("reads: token (sample, view)")
    figure.suptitle(f"Which of the {S}x{V} tokens of a ray reach which (log gradient): two sparse hops go where dense does")
    pairs = {"intra": V * S * S, "cross": S * V * V, "dense": (S * V) ** 2}
    print(f"One fact: on {S} samples and {V} views the scores number {pairs['intra']} (intra) + {pairs['cross']} (cross), "
          f"dense {pairs['dense']}; at the paper's 64 and 8, {8 * 64 * 64 + 64 * 8 * 8:,} against {(64 * 8) ** 2:,}. "
          f"Both reach {reach['full']:.0%} of the pairs.")
    Path("outputs").mkdir(exist_ok=True)
    figure.savefig("outputs/04_cra.png", dpi=100)
    print("picture: outputs/04_cra.png")


if __name__ == "__main__":
    main()
