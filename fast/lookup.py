"""Bilinear lookup by rows: 03's `lookup` for valid tokens alone."""
import torch
import torch.nn.functional as F
from torch import Tensor


class Gather(torch.autograd.Function):
    """out[n] = sum_i weight[n,i] table[index[n,i]]: table (P, C), index and weight (N, 4) -> (N, C). Rows of
    C numbers are read and written whole."""

    @staticmethod
    def forward(ctx, table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(index, weight)
        ctx.rows = len(table)
        return F.embedding_bag(index, table, mode="sum", per_sample_weights=weight)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        """The gradient (N, C) goes to the rows that were read; index and weight have none."""
        index, weight = ctx.saved_tensors
        table = gradient.new_zeros(ctx.rows, gradient.shape[1])
        for i in range(index.shape[1]):                                       # a third of index_add's time
            where = index[:, i:i + 1].long().expand_as(gradient)              # (N, C)
            table.scatter_add_(0, where, gradient * weight[:, i:i + 1])
        return table, None, None


def lookup(maps: Tensor, pixels: Tensor, view: Tensor, stride: int) -> Tensor:
    """03's lookup in maps (V, C, h, w) at pixels (T, 2), each of one view (T,) -> (T, C)."""
    V, C, h, w = maps.shape
    u, v = (pixels.detach() / stride).unbind(-1)                              # (T,), as all that follows
    u, v = u.clamp(0, w - 1), v.clamp(0, h - 1)
    left, top = u.floor().clamp_(max=max(w - 2, 0)), v.floor().clamp_(max=max(h - 2, 0))
    u, v, cell = u - left, v - top, (view.int() * h + top.int()) * w + left.int()
    both, right, below = u * v, min(1, w - 1), w * min(1, h - 1)  # steps to the next cell, the next row
    index = torch.stack([cell, cell + right, cell + below, cell + below + right], dim=-1)     # (T, 4)
    weight = torch.stack([1 - u - v + both, u - both, v - both, both], dim=-1)                # (T, 4)
    table = maps.permute(0, 2, 3, 1).reshape(-1, C)                           # (V h w, C)
    return Gather.apply(table, index, weight)
