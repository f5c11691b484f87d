"""Table 9's attention on packed tokens: sequences of different lengths, sorted into blocks of like length."""
import math
from importlib import import_module
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

cra = import_module("04_cra")

SHORT = 8               # packed sequences no longer than this are computed many abreast, without padding
SIZES = (*range(1, SHORT + 1), *range(16, 4097, 16))     # packed sequences are padded to these lengths
TILE = 2 ** 18          # scores of packed sequences computed at a time: a MiB stays in a core's cache


def padded_length(lengths: Tensor, most: int) -> Tensor:
    """To which of SIZES, or to `most`, the most there can be, sequences of these lengths (N,) are padded:
    (N,)."""
    sizes = torch.tensor((0, *(n for n in SIZES if n < most), most))
    return sizes[torch.bucketize(lengths, sizes)]


class Block(NamedTuple):
    """Sequences of like length, padded to one length."""
    count: int            # b  sequences
    length: int           # n  rows of each
    real: Tensor | None   # (b, n), or short (n, b): which of them are no padding; None: all
    # rows in the order (n, b), all sequences abreast, instead of (b, n), one after the other
    short: bool = False


class Layout(NamedTuple):
    """Where T tokens stand when their sequences are sorted into blocks: P rows, one block after the other."""
    blocks: list[Block]
    token: Tensor         # (P,) which token each row is; a row of padding repeats some token
    row: Tensor | None    # (T,) in which row each token is, if it is in any
    real: Tensor | None   # (P, 1) which rows are no padding; None: all


def lay_out(order: Tensor, lengths: Tensor, size: Tensor, most: int, tokens: int, short: int = SHORT) -> Layout:
    """order: tokens, sequence after sequence, all or some of 0 .. tokens-1; lengths (N,) of the sequences;
    size (N,): sequences of one size become a block (of size 0: none), padded to it, but to no more than
    `most`; up to size `short` they stand abreast, in blocks of a cacheful. tokens 0: `row` and `real` are
    left out."""
    first, blocks, found, padding = lengths.cumsum(0) - lengths, [], [], []
    for n in size[size > 0].unique().tolist():
        same, within = (size == n).nonzero()[:, 0], torch.arange(min(n, most))  # (b,), (n,)
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
    """One head, x (D, b, t), y (D, b, s) -> sum_d x[d,b,t] y[d,b,s], (b, t, s). short: all heads, (A, D, t,
    b), (A, D, s, b) -> (A, t, s, b), by long products of numbers instead of tiny ones of matrices."""
    if not short:
        return torch.bmm(x.permute(1, 2, 0), y.transpose(0, 1))
    out = x[:, 0, :, None] * y[:, 0, None]
    for d in range(1, x.shape[1]):
        out.addcmul_(x[:, d, :, None], y[:, d, None])
    return out


def mixture(x: Tensor, p: Tensor, short: bool) -> Tensor:
    """x (D, b, t), p (b, t, s) -> sum_t x[d,b,t] p[b,t,s], (D, b, s). short: (A, D, t, b), (A, t, s, b) ->
    (A, D, s, b)."""
    if not short:
        return torch.bmm(x.transpose(0, 1), p).transpose(0, 1)
    out = x[:, :, 0, None] * p[:, 0, None]
    for t in range(1, p.shape[1]):
        out.addcmul_(x[:, :, t, None], p[:, t, None])
    return out


def largest(p: Tensor) -> Tensor:
    """p.amax(1, keepdim=True) of (b, t, s) or (A, t, s, b). Where rows of s are no multiple of 32, halving
    the axis is faster."""
    while p.dim() == 3 and p.shape[2] % 32 and p.shape[1] % 2 == 0:
        p = torch.maximum(*p.chunk(2, dim=1))
    return p.amax(1, keepdim=True)


class PackedAttention(torch.autograd.Function):
    """The heads of `attention` for packed sequences on a CPU: rows y (P, C) read each other, sequence by
    sequence -> (C, P).

    weight (3C, C) and bias (3C,) make queries, keys and values. They, and the scores of one head (of all,
    where sequences are short), are computed for as many sequences as the cache holds, used and forgotten;
    backward computes them again, as fused kernels do. The keys' axis comes before the queries', the faster
    order for products this small (`python 10_benchmark.py --tried`).
    """

    @staticmethod
    def tiles(heads: int, blocks: list[Block], rows: list[Tensor]):
        """For some sequences at a time: whether they are short, which heads go together, what is added to the
        scores (None: nothing), and what is theirs of each of the tensors rows (.., P): (.., b, n), short (..,
        n, b)."""
        i = 0
        for b, n, real, short in blocks:
            cut = [x[:, i:i + b * n].unflatten(1, (n, b) if short else (b, n)) for x in rows]
            i, step = i + b * n, max(1, TILE // (n * n))
            bias = None if real is None else cra.key_bias(real, cut[0].dtype)  # (n, b) or (b, n)
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
        # total: log2 of the sum of exponentials, for backward
        z, total = y.new_empty(C, len(y)), y.new_empty(heads, len(y))
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
    """x[index] for an index that reads every row once, but for padding: x (N, C), index (P,) -> (P, C). The
    gradient is a lookup as well, at `back` (N,), the place of each row; `real` (N, 1): which rows have one.
    (PyTorch would add row to row.)"""

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


def attend(module, x: Tensor, layout: Layout, asking: Layout, position: Tensor | None = None,
           place: Tensor | None = None) -> Tensor:
    """forward for sequences of all lengths: x (T, C) tokens in a layout, asking the layout of those that ask
    (the same one: all; else without gradient) -> (T, C), of no meaning for tokens that do not ask.
    position[place[t]] is added to token t."""
    def rows(where: Layout) -> Tensor:
        """x, with its position, in that layout: (P, C)"""
        y = Rearrange.apply(x, where.token, where.row, None)
        return y if position is None else y.add_(position.index_select(0, place.index_select(0, where.token)))
    y = rows(layout)                                                      # (P, C)
    z = attend_blocks(module, y, layout.blocks) if asking is layout else ask_some(module, rows(asking), y, asking.blocks, layout.blocks)
    return Rearrange.apply(z, asking.row, asking.token, asking.real)


def attend_blocks(module, y: Tensor, blocks: list[Block]) -> Tensor:
    """Rows (P, C) read each other, sequence by sequence -> (P, C)."""
    three = module.query, module.key, module.value
    z = PackedAttention.apply(y, torch.cat([f.weight for f in three]), torch.cat([f.bias for f in three]), module.heads, blocks)
    z = module.out(z.T)                                                     # (P, C)
    return module.norm(y + (F.relu_(z) if module.relu else z))


def ask_some(module, asker: Tensor, y: Tensor, asking: list[Block], reading: list[Block]) -> Tensor:
    """Rows (Q, C) ask, sequence by sequence, rows (P, C) -> (Q, C), without gradient; no block is short.
    Where few ask many, keys and values need not be computed: q . k = x (Wq^T Wk) y, and Wo sum_t p_t Wv y_t =
    (Wo Wv) sum_t p_t y_t, and such products of weights are made once."""
    A, C = module.heads, y.shape[1]
    query, key, value = (f.weight.view(A, C // A, C) for f in (module.query, module.key, module.value))
    scale = math.log2(math.e) / math.sqrt(C // A)                         # exp2 is faster than exp
    # a key's bias adds the same number to all scores of a query, which changes no softmax
    q = torch.addmm(torch.einsum("ad,adj->aj", module.query.bias.view(A, -1) * scale, key).flatten(), asker,
                    torch.einsum("adi,adj->iaj", query * scale, key).flatten(1)).view(-1, C)      # (Q A, C)
    z, i, j = torch.empty_like(q), 0, 0
    for ask, block in zip(asking, reading):
        b, s, t = block.count, ask.length * A, block.length
        q_, z_, y_ = (x[k:k + b * n].view(b, n, C) for x, k, n in ((q, i, s), (z, i, s), (y, j, t)))
        i, j, step = i + b * s, j + b * t, max(1, TILE // (s * t))
        bias = None if block.real is None else cra.key_bias(block.real, y.dtype)[..., None]  # (b, t, 1)
        for some in (slice(first, first + step) for first in range(0, b, step)):
            p = torch.bmm(y_[some], q_[some].transpose(1, 2))             # (b, t, s): keys before queries
            if bias is not None:
                p += bias[some]
            p.sub_(largest(p)).exp2_()
            torch.div(torch.bmm(p.transpose(1, 2), y_[some]), p.sum(1)[..., None], out=z_[some])
    answer = torch.einsum("cad,adj->ajc", module.out.weight.view(C, A, -1), value).reshape(-1, C)   # (A C, C)
    z = torch.addmm(module.out(module.value.bias), z.view(-1, A * C), answer)                     # (Q, C)
    return module.norm(asker + (F.relu_(z) if module.relu else z))


def refine(module, M: Tensor, mask: Tensor, index: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
    """forward for the valid tokens alone: M (T, C), T = mask.sum() -> (T, C), or the tokens of the samples
    `keep` names."""
    (R, S, V), C = mask.shape, M.shape[-1]
    r, s, v = mask.nonzero(as_tuple=True)                                 # (T,) each: ray, sample, view
    asked = None if keep is None else torch.zeros(R, S, dtype=torch.bool).scatter(1, keep, True)[r, s]
    if not len(M) or asked is not None and not asked.any():
        return M if keep is None else M[asked]
    if module.mode in ("intra", "full", "dense"):
        # (S, C) or (R S, C)
        table = cra.sample_positions(S if index is None else index, C).view(-1, C).to(M.dtype)
        place = s if index is None else r * S + s  # (T,) the row of it that a token embeds
        number = (mask.flatten().cumsum(0) - 1).view(mask.shape)          # (R, S, V) which token
        if module.mode == "dense":                                          # R sequences of up to S V tokens
            order, sequence, lengths, most = number[mask], r, mask.sum((1, 2)), S * V
        else:                                                             # R V sequences of up to S tokens
            order, lengths, most = number.transpose(1, 2)[mask.transpose(1, 2)], mask.sum(1).flatten(), S
            sequence = r * V + v
        size = padded_length(lengths, most)
        if asked is None:
            layout = asking = lay_out(order, lengths, size, most, len(M))
        else:
            # how many of each sequence's tokens are asked
            count = sequence[asked].bincount(minlength=len(lengths))
            size *= count > 0
            layout = lay_out(order, lengths, size, most, 0, short=0)
            asking = lay_out(order[asked[order]], count, size, most // S * keep.shape[1], len(M), short=0)
        # M': (T, C)
        M = attend(module.dense if module.mode == "dense" else module.L4, M, layout, asking, table, place)
    if keep is not None:
        M, mask = M.index_select(0, asked.nonzero()[:, 0]), mask.take_along_dim(keep[:, :, None], dim=1)
    if module.mode in ("cross", "full"):                                    # R S sequences of up to V tokens
        lengths = mask.sum(2).flatten()
        layout = lay_out(torch.arange(len(M)), lengths, padded_length(lengths, V), V, len(M))
        M = attend(module.L6, M, layout, layout)                             # M''
    return M
