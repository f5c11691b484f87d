"""Table 9's attention for sequences of all lengths: 04's MultiHeadAttention and CRA on valid tokens alone.

A room's ray leaves most source images: two thirds of its tokens (sample, view) are masked. 04 computes them
and masks them out. Here the T valid tokens stand in a list, ray by ray, sample by sample, view by view.
Sequences of like length make a block, padded to one length:

    along the ray    R V sequences of up to S tokens        across views    R S sequences of up to V tokens

How much longer a training step and an image take without it, on one thread of an AMD EPYC
(`python -m tools.benchmark --tried`): blocks of like length 20% and 16%, sequences up to SHORT side by side
12% and 15%, a cacheful at a time 4% and 9%; an image with labels from 8 samples a ray without `ask` 31%.

Dimension key: T tokens, P rows, padding too, b sequences of a block, n tokens of each (s queries, t keys),
C channels, A heads, D head dim.     Test: pytest tests/test_fast_attention.py
"""
import math
from importlib import import_module
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fast.tokens import Tokens

cra = import_module("04_cra")           # key_bias, sample_positions; the modules whose weights are used

SHORT = 8               # sequences up to this length stand side by side, unpadded
SIZES = (*range(1, SHORT + 1), *range(16, 4097, 16))        # lengths to which sequences are padded
TILE = 2 ** 18          # scores computed at a time: a MiB, which stays in a core's cache


# ------------------------------------------------------------------------------------------- blocks

class Block(NamedTuple):
    """Sequences of like length, padded to one length."""
    rows: slice           # of the layout's P
    shape: tuple          # (b, n): sequence after sequence; short ones (n, b): side by side
    real: Tensor | None   # of that shape, bool: no padding; None: all
    short: bool


class Layout(NamedTuple):
    """Where T tokens stand when their sequences are sorted into blocks."""
    blocks: list[Block]
    token: Tensor         # (P,) which token each row holds; padding repeats some token
    row: Tensor           # (T,) in which row each token stands; 0 if in none


def padded_length(lengths: Tensor, most: int) -> Tensor:
    """Which of SIZES, or of `most`, sequences of these lengths (B,) are padded to: (B,)."""
    sizes = torch.tensor((0, *(n for n in SIZES if n < most), most))
    return sizes[torch.bucketize(lengths, sizes)]


def lay_out(order: Tensor, lengths: Tensor, size: Tensor, tokens: int, abreast: bool = True) -> Layout:
    """order: tokens, all or some of 0 .. tokens-1, sequence after sequence; lengths (B,) of the sequences.
    Those of one size (B,) make a block, padded to it and cut into TILEs; of size 0 none. abreast: short ones
    stand side by side."""
    first, most = lengths.cumsum(0) - lengths, int(lengths.max())
    blocks, held, reals, end = [], [order[:0]], [order[:0]], 0
    for n in size[size > 0].unique().tolist():
        same, within, beside = (size == n).nonzero()[:, 0], torch.arange(min(n, most)), abreast and n <= SHORT
        real = within < lengths[same, None]                                   # (b, n)
        token = order[(first[same, None] + within).clamp(max=len(order) - 1)]             # (b, n)
        step = max(1, TILE // (n * n * (8 if beside else 1)))  # all heads of short ones together
        for r, t in zip(real.split(step), token.split(step)):
            r, t = (r.T, t.T) if beside else (r, t)
            rows = slice(end, end + t.numel())
            blocks.append(Block(rows, t.shape, None if r.all() else r, beside))
            held.append(t.flatten())
            reals.append(r.flatten())
            end = rows.stop
    token, real = torch.cat(held), torch.cat(reals).nonzero()[:, 0]           # (P,), (T,)
    return Layout(blocks, token, torch.zeros(tokens, dtype=torch.long).index_copy(0, token[real], real))


# ------------------------------------------------------------------------------------------- attention

def products(x: Tensor, y: Tensor) -> Tensor:
    """One head, x (D, b, t), y (D, b, s) -> sum_d x[d,b,t] y[d,b,s], (b, t, s). Short sequences, all heads,
    (D, A, t, b), (D, A, s, b) -> (A, t, s, b): long products of numbers instead of tiny ones of matrices."""
    if x.dim() == 3:
        return torch.bmm(x.permute(1, 2, 0), y.transpose(0, 1))
    out = x[0, :, :, None] * y[0, :, None]
    for d in range(1, len(x)):
        out.addcmul_(x[d, :, :, None], y[d, :, None])
    return out


def mixture(x: Tensor, p: Tensor) -> Tensor:
    """x (D, b, t), p (b, t, s) -> sum_t x[d,b,t] p[b,t,s], (D, b, s). Short sequences, (D, A, t, b), (A, t,
    s, b) -> (D, A, s, b)."""
    if x.dim() == 3:
        return torch.bmm(x.transpose(0, 1), p).transpose(0, 1)
    out = x[:, :, 0, None] * p[:, 0]
    for t in range(1, p.shape[1]):
        out.addcmul_(x[:, :, t, None], p[:, t])
    return out


class PackedAttention(torch.autograd.Function):
    """04's `attention`, queries, keys and values included: rows y (P, C) read each other, sequence by
    sequence -> (C, P), before the output layer.

    weight (3C, C) and bias (3C,) make queries (times log2 e / sqrt D: exp2 is faster than exp), keys and
    values. The scores of a block are computed, used and forgotten; backward computes them again, as fused
    kernels do. The keys' axis comes before the queries', the faster order for products this small.
    """

    @staticmethod
    def tiles(heads: int, blocks: list[Block], weight: Tensor, bias: Tensor, y: Tensor, *others: Tensor):
        """For each block: what is added to its scores, which heads go together, its columns of y.T (C, ..),
        its queries, keys, values (3, D, A, ..), its columns of the others (A, .., P). .. is (b, n) or (n, b).
        """
        for rows, shape, real, short in blocks:
            add = None
            if real is not None:
                add = cra.key_bias(real.T if short else real, y.dtype)        # (b, n)
                add = add.T[:, None] if short else add[:, :, None]            # (n, 1, b) or (b, n, 1)
            x = y[rows].T.unflatten(1, shape)                                 # (C, ..)
            three = torch.addmm(bias[:, None], weight, x.flatten(1))          # (3C, rows)
            yield (add, [slice(None)] if short else range(heads), x,
                   three.view(3, heads, -1, *shape).transpose(1, 2),
                   *(other[..., rows].unflatten(-1, shape) for other in others))

    @staticmethod
    def forward(ctx, y: Tensor, weight: Tensor, bias: Tensor, heads: int, blocks: list[Block]) -> Tensor:
        z, total = y.new_empty(heads, y.shape[1] // heads, len(y)), y.new_empty(heads, len(y))
        for tile in PackedAttention.tiles(heads, blocks, weight, bias, y, z, total):
            add, together, _, (q, k, v), z_, total_ = tile
            z_ = z_.transpose(0, 1)                                           # (D, A, ..)
            for a in together:
                p = products(k[:, a], q[:, a])                                # (b, t, s) or (A, t, s, b)
                if add is not None:
                    p += add
                top = p.amax(1)                                               # (b, s) or (A, s, b)
                p.sub_(top.unsqueeze(1)).exp2_()
                some = p.sum(1)
                torch.div(mixture(v[:, a], p), some, out=z_[:, a])
                if any(ctx.needs_input_grad):
                    total_[a] = some.log2_().add_(top)                        # log2 of the sum
        ctx.save_for_backward(y, weight, bias, z, total)
        ctx.how = heads, blocks
        return z.flatten(0, 1)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        """p_t (g_t - sum_u p_u g_u) for the scores, g being the gradient of p."""
        y, weight, bias, z, total = ctx.saved_tensors
        heads, blocks = ctx.how
        dy, dweight, dbias = torch.empty_like(y), torch.zeros_like(weight), torch.zeros_like(bias)
        natural = weight.clone()                                              # d 2^x = 2^x ln 2 dx,
        natural[:2 * y.shape[1]] *= math.log(2)                               # for queries and keys
        tiles = PackedAttention.tiles(heads, blocks, weight, bias, y, z, total, gradient.view(z.shape))
        for block, (add, together, x, (q, k, v), z_, total_, g) in zip(blocks, tiles):
            d = torch.empty(3, heads, *g.shape[1:], dtype=y.dtype)            # (3, A, D, ..) of q, k, v
            dq, dk, dv = d.transpose(1, 2)                                    # (D, A, ..) each
            g = g.contiguous().transpose(0, 1)                                # (D, A, ..)
            delta = (g * z_.transpose(0, 1)).sum(0)                           # (A, ..)
            for a in together:
                p = products(k[:, a], q[:, a])                                # (b, t, s) or (A, t, s, b)
                if add is not None:
                    p += add
                p.sub_(total_[a].unsqueeze(1)).exp2_()
                dv[:, a] = mixture(g[:, a], p.transpose(1, 2))
                ds = products(v[:, a], g[:, a]).sub_(delta[a].unsqueeze(1)).mul_(p)
                dq[:, a] = mixture(k[:, a], ds)
                dk[:, a] = mixture(q[:, a], ds.transpose(1, 2))
            d = d.view(len(weight), -1)                                       # (3C, rows)
            dweight.addmm_(d, x.flatten(1).T)
            dbias += d.sum(1)
            torch.mm(d.T, natural, out=dy[block.rows])
        for gradient in (dweight, dbias):
            gradient[:2 * y.shape[1]] *= math.log(2)
        return dy, dweight, dbias, None, None


def attend(module: nn.Module, x: Tensor, layout: Layout) -> Tensor:
    """04's MultiHeadAttention of tokens x (T, C) in a layout -> (T, C), of no meaning for those in no row."""
    if not layout.blocks:
        return x
    y = x.index_select(0, layout.token)                                       # (P, C)
    scale = math.log2(math.e) / math.sqrt(x.shape[1] // module.heads)
    weight = torch.cat([module.query.weight * scale, module.key.weight, module.value.weight])
    bias = torch.cat([module.query.bias * scale, module.key.bias, module.value.bias])
    z = PackedAttention.apply(y, weight, bias, module.heads, layout.blocks)   # (C, P)
    z = module.out(z.T)                                                       # (P, C)
    z = module.norm(y + (F.relu_(z) if module.relu else z))
    return z.index_select(0, layout.row)                                      # (T, C)


def ask(module: nn.Module, x: Tensor, reading: Layout, asking: Layout, askers: Tensor) -> Tensor:
    """attend, where the tokens askers (n,) of x (T, C) alone ask -> (n, C); without gradient. They stand in
    `asking`, block by block, and read those of `reading`.

    Where few ask many, keys and values need not be computed: q . k = x (Wq^T Wk) y, and Wo sum_t p_t Wv y_t =
    (Wo Wv) sum_t p_t y_t. These products of weights are made once.
    """
    if not asking.blocks:
        return x.index_select(0, askers)
    A, C = module.heads, x.shape[1]
    y, asker = x.index_select(0, reading.token), x.index_select(0, asking.token)          # (P, C), (Q, C)
    query, key, value = (f.weight.view(A, C // A, C) for f in (module.query, module.key, module.value))
    scale = math.log2(math.e) / math.sqrt(C // A)
    # a key's bias adds the same number to all scores of a query, which changes no softmax
    shift = torch.einsum("ad,adj->aj", module.query.bias.view(A, -1) * scale, key)        # (A, C)
    both = torch.einsum("adi,adj->iaj", query * scale, key)                   # (C, A, C)
    q = torch.addmm(shift.flatten(), asker, both.flatten(1))                  # (Q, A C)
    z = torch.empty_like(q)
    for few, many in zip(asking.blocks, reading.blocks):
        b, t = many.shape
        y_ = y[many.rows].view(b, t, C)                                       # (b, t, C)
        q_, z_ = (x[few.rows].view(b, -1, C) for x in (q, z))                 # (b, s A, C)
        p = torch.bmm(y_, q_.transpose(1, 2))                                 # (b, t, s A)
        if many.real is not None:
            p += cra.key_bias(many.real, y.dtype)[..., None]
        p.sub_(p.amax(1, keepdim=True)).exp2_()
        torch.div(torch.bmm(p.transpose(1, 2), y_), p.sum(1)[..., None], out=z_)
    answer = torch.einsum("cad,adj->ajc", module.out.weight.view(C, A, -1), value)        # (A, C, C)
    z = torch.addmm(module.out(module.value.bias), z, answer.reshape(-1, C))  # (Q, C)
    z = module.norm(asker + (F.relu_(z) if module.relu else z))
    return z.index_select(0, asking.row.index_select(0, askers))              # (n, C)


# ------------------------------------------------------------------------------------------- CRA

def along_rays(tokens: Tokens, mode: str) -> tuple[Tensor, Tensor, int]:
    """The sequences along the rays: of each view, in mode "dense" of all views together -> the tokens (T,),
    sequence after sequence, lengths (B,), and the most there can be."""
    R, S, V = tokens.mask.shape
    number = (tokens.mask.flatten().cumsum(0) - 1).view(R, S, V)              # which token
    if mode == "dense":
        return number[tokens.mask], tokens.mask.sum((1, 2)), S * V            # R sequences
    by_view = tokens.mask.transpose(1, 2)                                     # (R, V, S)
    return number.transpose(1, 2)[by_view], by_view.sum(2).flatten(), S       # R V sequences


def refine(module: nn.Module, M: Tensor, tokens: Tokens, kept: Tensor | None) -> Tensor:
    """04's CRA of valid tokens: M (T, C) -> M'' (T, C). kept (T,) bool: refine these alone -> (n, C); the
    others are read along the ray, but ask nothing."""
    (R, S, V), T, sample = tokens.mask.shape, len(M), tokens.sample           # sample (T,)
    some = None if kept is None else kept.nonzero()[:, 0]                     # (n,)
    if module.mode in ("intra", "full", "dense"):
        L2 = cra.sample_positions(S, M.shape[1], module.places).to(M.dtype)   # (S, C)
        L2 = L2.index_select(0, sample % S)                                   # (T, C)
        L3, layer = L2.add_(M), module.dense if module.mode == "dense" else module.L4
        order, lengths, most = along_rays(tokens, module.mode)
        size = padded_length(lengths, most)                                   # (B,)
        if kept is None:
            M = attend(layer, L3, lay_out(order, lengths, size, T))           # M'
        else:
            asks = kept[order]                                                # (T,)
            count = torch.arange(len(size)).repeat_interleave(lengths)[asks].bincount(minlength=len(size))
            size = size * (count > 0)
            reading = lay_out(order, lengths, size, T, abreast=False)
            asking = lay_out(order[asks], count, size, T, abreast=False)
            M = ask(layer, L3, reading, asking, some)                         # M'
    elif kept is not None:
        M = M.index_select(0, some)                                           # (n, C)
    if module.mode in ("cross", "full"):                                      # R S sequences of up to V
        sample = sample if kept is None else sample.index_select(0, some)
        lengths = sample.bincount(minlength=R * S)
        layout = lay_out(torch.arange(len(M)), lengths, padded_length(lengths, V), len(M))
        M = attend(module.L6, M, layout)                                      # M''
    return M
