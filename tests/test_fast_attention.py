"""fast/attention.py, tokens.py and lookup.py against the lessons' definitions, piece by piece."""
from importlib import import_module

import pytest
import torch

from fast import attention, lookup
from fast.tokens import Tokens

reprojection, cra = import_module("03_reprojection"), import_module("04_cra")
C = 8


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ragged(R, S, V):
    """A mask with views that see nothing of a ray, rays and samples that nobody sees."""
    mask = torch.rand(R, S, V, generator=torch.Generator().manual_seed(3)) < 0.6
    mask[0], mask[1, :, 0], mask[1, :, 1], mask[2, 0], mask[2, 1] = False, False, True, False, True
    return mask


def module(mode, relu=True, places=None):
    torch.manual_seed(0)
    return cra.CRA(mode, C, 2, relu, places).double()


def assert_same(lesson, fast):
    for a, b in zip(lesson, fast, strict=True):
        torch.testing.assert_close(b, a)


@pytest.mark.parametrize("tile", [1, 2000, 2 ** 18])
@pytest.mark.parametrize("shape", [(4, 5, 3), (3, 21, 9)])
@pytest.mark.parametrize("places", [None, 16])
@pytest.mark.parametrize("mode", cra.MODES)
def test_tokens_are_refined_as_the_definition_says_whatever_the_tile(monkeypatch, mode, places, shape, tile):
    monkeypatch.setattr(attention, "TILE", tile)
    net, M, mask = module(mode, places=places), normal(*shape, C), ragged(*shape)
    tokens, found = Tokens.of(mask), []
    for packed in (False, True):
        net.zero_grad()
        leaf = (M[mask] if packed else M * mask[..., None]).requires_grad_()
        out = attention.refine(net, leaf, tokens, None) if packed else net(leaf, mask)[mask]
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)).sum().backward()
        gradient = leaf.grad if packed else leaf.grad[mask]
        found.append([out, gradient, *(p.grad.clone() for p in net.parameters())])
    assert_same(*found)


@pytest.mark.parametrize("tile", [1, 2000, 2 ** 18])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("mode", cra.MODES)
def test_some_samples_tokens_are_those_of_the_definition(monkeypatch, mode, relu, tile):
    monkeypatch.setattr(attention, "TILE", tile)
    R, S, V = 4, 21, 9
    net, M, mask = module(mode, relu), normal(R, S, V, C), ragged(R, S, V)
    kept = torch.rand(R, S, generator=torch.Generator().manual_seed(4)) < 0.3
    kept[3] = False  # a ray of which nothing is asked
    tokens = Tokens.of(mask)
    with torch.no_grad():
        some = attention.refine(net, M[mask], tokens, kept.flatten()[tokens.sample])
        assert_same([net(M * mask[..., None], mask)[mask & kept[..., None]]], [some])


@pytest.mark.parametrize("mode", cra.MODES)
def test_of_nothing_nothing_is_refined(mode):
    mask, none = torch.zeros(2, 5, 3, dtype=torch.bool), torch.zeros(0, dtype=torch.bool)
    for kept in (None, none):
        assert attention.refine(module(mode), normal(0, C), Tokens.of(mask), kept).shape == (0, C)
    mask[0, 3, 1] = True                                                      # valid, but not kept
    out = attention.refine(module(mode), normal(1, C), Tokens.of(mask), torch.tensor([False]))
    assert out.shape == (0, C)


def test_the_layout_has_every_token_once_and_its_sequences_in_blocks():
    lengths = torch.tensor([3, 0, 1, 6, 20, 8, 6])
    order = torch.randperm(44, generator=torch.Generator().manual_seed(0))
    size = attention.padded_length(lengths, 20)
    assert size.tolist() == [3, 0, 1, 6, 20, 8, 6]  # 32 would be next, but 20 is the most there are
    beyond = attention.padded_length(torch.tensor([0, 17, 5000]), 6000)
    assert beyond.tolist() == [0, 32, 6000]                                   # the last of SIZES is 4096
    size[[3, 6]] = 8  # as if there were no blocks of 6
    layout = attention.lay_out(order, lengths, size, 44)
    assert [tuple(block.shape) for block in layout.blocks] == [(1, 1), (3, 1), (8, 3), (1, 20)]
    assert [block.short for block in layout.blocks] == [True, True, True, False]
    assert torch.equal(layout.token[layout.row], torch.arange(44))
    first, rows = lengths.cumsum(0) - lengths, layout.token.split([1, 3, 24, 20])
    assert torch.equal(rows[1], order[:3])
    assert torch.equal(rows[2].view(8, 3)[:6, 0], order[first[3]:first[3] + 6])
    assert torch.equal(rows[3], order[first[4]:first[4] + 20]) and layout.blocks[3].real is None
    assert layout.blocks[2].real.sum(0).tolist() == [6, 8, 6]


@pytest.mark.parametrize("short", [True, False])
def test_the_gradient_is_that_of_finite_differences(short):
    lengths = torch.tensor([3, 1, 5])
    layout = attention.lay_out(torch.arange(9), lengths, torch.tensor([5, 5, 5]), 9, 8 if short else 0)
    inputs = [x.requires_grad_() for x in (normal(15, 4), normal(12, 4, seed=1), normal(12, seed=2))]
    assert torch.autograd.gradcheck(
        lambda y, weight, bias: attention.PackedAttention.apply(y, weight, bias, 2, layout.blocks)
        [:, layout.row], inputs)


@pytest.mark.parametrize("length", [3, 20])
def test_scores_of_any_size_are_survived(length):
    net, x = cra.MultiHeadAttention(C, 2), 1e3 * normal(60, C).float()
    lengths = torch.full((60 // length,), length)
    layout = attention.lay_out(torch.arange(60), lengths, lengths, 60)
    out = attention.attend(net, x.requires_grad_(), layout)
    out.sum().backward()
    assert torch.isfinite(out).all() and torch.isfinite(x.grad).all()


@pytest.mark.parametrize("gradient", [True, False])
def test_tokens_are_summed_packed_and_put_back(gradient):
    mask = ragged(4, 5, 3)
    tokens, x = Tokens.of(mask), normal(4, 5, 3, C) * mask[..., None]
    with torch.set_grad_enabled(gradient):
        torch.testing.assert_close(tokens.sum_over_views(x[mask]), x.sum(2))
        none = Tokens.of(torch.zeros_like(mask))
        assert torch.equal(none.sum_over_views(x[:0, 0, 0]), torch.zeros(4, 5, C, dtype=x.dtype))
    assert torch.equal(tokens.unpack(x[mask][:, 0]), x[..., 0]) and torch.equal(tokens.pack(x[..., 0]),
                                                                                x[mask][:, 0])


@pytest.mark.parametrize("size", [(6, 8), (1, 8), (6, 1), (1, 1)])
def test_the_lookup_is_the_lessons_to_the_border_and_beyond(size):
    h, w = size
    maps = normal(3, C, h, w).requires_grad_()
    u = torch.rand(40, 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pixels = (u * 1.4 - 0.2) * torch.tensor([4 * w, 4 * h])  # some beyond the outermost cells
    pixels[0, 0] = torch.tensor([4 * (w - 1), 4 * (h - 1)])                   # exactly on the last cell
    lesson = reprojection.lookup(maps, pixels[:, None], 4)[:, 0]              # (40, V, C)
    ours = lookup.lookup(maps, pixels.flatten(0, 1), torch.arange(3).repeat(40), 4).view_as(lesson)
    weight = normal(*lesson.shape, seed=2)
    gradients = [torch.autograd.grad((out * weight).sum(), maps)[0] for out in (lesson, ours)]
    assert_same([lesson, gradients[0]], [ours, gradients[1]])


def test_the_lookup_finds_cells_whose_number_no_float_holds():
    maps = torch.zeros(2, 1, 3001, 3001)                                      # 18 million cells
    pixels = torch.tensor([[2999.25, 3000.0], [3000.0, 2998.5]])
    maps[1, 0, 3000, 2999:] = torch.tensor([1.0, 5.0])
    maps[1, 0, 2998:3000, 3000] = torch.tensor([7.0, 9.0])
    found = lookup.lookup(maps, pixels, torch.tensor([1, 1]), 1)
    assert torch.equal(found, torch.tensor([[2.0], [8.0]]))
