"""04_cra.py: attention is what its equation says, and each mode connects the tokens it should and no others."""
import math
from importlib import import_module
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

cra = import_module("04_cra")
R, S, V, C = 2, 5, 3, 32
MODES = ["none", "intra", "cross", "full", "dense"]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some(*shape, seed=0):
    """A mask with true and false in it."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.6


def module(mode="full", **settings):
    torch.manual_seed(0)
    return cra.CRA(mode, **settings).double()


@pytest.fixture(params=["einsum", "fused kernel"])
def branch(request, monkeypatch):
    """Both ways of computing attention, whatever the length."""
    monkeypatch.setattr(cra, "EINSUM_UP_TO", 10 ** 9 if request.param == "einsum" else 0)


# ---------------------------------------------------------------------------------------------------- attention itself

@pytest.mark.parametrize("function", [cra.attention, cra.fused_attention])
def test_attention_equals_a_python_loop(function):
    B, A, s, t, D = 2, 4, 3, 5, 8
    q, k, v, mask = normal(B, A, s, D), normal(B, A, t, D, seed=1), normal(B, A, t, D, seed=2), some(B, A, t)
    mask[..., 0] = True
    out = function(q, k, v, mask)
    for b, a, i in product(range(B), range(A), range(s)):
        keys = [j for j in range(t) if mask[b, a, j]]
        score = [math.exp(sum(float(q[b, a, i, d] * k[b, a, j, d]) for d in range(D)) / math.sqrt(D)) for j in keys]
        expected = sum(e * v[b, a, j] for e, j in zip(score, keys)) / sum(score)
        torch.testing.assert_close(out[b, a, i], expected)


@pytest.mark.parametrize("function", [cra.attention, cra.fused_attention])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_torchs_in_value_and_gradient(function, masked):
    B, A, s, t, D = 2, 4, 3, 5, 8
    mask = some(B, 1, t) if masked else torch.ones(B, 1, t, dtype=torch.bool)
    mask[..., 1] = True

    def run(f):
        leaves = [normal(B, A, n, D, seed=i).requires_grad_() for i, n in enumerate((s, t, t))]
        out = f(*leaves)
        return [out, *torch.autograd.grad((out * normal(B, A, s, D, seed=9)).sum(), leaves)]
    ours = run(lambda q, k, v: function(q, k, v, mask))
    theirs = run(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, :, None, :]))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b)


def test_the_softmax_equals_torchs_in_value_and_gradient():
    score = 30 * normal(3, 4, 5, 7)
    score[0, 1, :, 2:5] = -torch.inf
    score.requires_grad_()
    upstream = normal(3, 4, 5, 7, seed=1)
    for ours, theirs in ((cra.Softmax.apply(score), score.softmax(-1)),):
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(*(torch.autograd.grad((p * upstream).sum(), score)[0] for p in (ours, theirs)))
    assert torch.autograd.gradcheck(cra.Softmax.apply, normal(2, 3, 4).requires_grad_())
    huge = torch.tensor([[1e4, -1e4, 1e4]], requires_grad=True)
    cra.Softmax.apply(huge)[0, 0].backward()
    torch.testing.assert_close(huge.grad, torch.tensor([[0.25, 0.0, -0.25]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fused_attention_equals_the_definition_also_in_rows_without_a_key(dtype):
    B, A, s, t, D = 3, 4, 5, 5, 8
    mask = some(B, A, t)
    mask[1] = False                                                                    # no key at all
    mask[0, :, 0] = mask[2, :, 0] = True
    upstream = normal(B, A, s, D, seed=9).to(dtype)
    results = []
    for function in (cra.attention, cra.fused_attention):
        leaves = [normal(B, A, n, D, seed=i).to(dtype).requires_grad_() for i, n in enumerate((s, t, t))]
        out = function(*leaves, mask)
        results.append([out, *torch.autograd.grad((out * upstream).sum(), leaves)])
    (out, *_), _ = results
    everything = cra.attention(*(x[1:2] for x in leaves), torch.ones(1, A, t, dtype=torch.bool))
    torch.testing.assert_close(out[1:2], everything)                                   # it reads everything
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["intra", "cross"])
@pytest.mark.parametrize("relu", [False, True])
def test_multi_head_attention_equals_torchs_with_the_same_weights(branch, kind, relu):
    N, G = (S, V) if kind == "intra" else (V, 1)
    x, mask = normal(R, N, G, C), some(R, N, G)
    mask[:, 0] = True                                                                  # torch's gives nan without a key
    position = normal(N, C, seed=3) if kind == "intra" else None
    torch.manual_seed(0)
    ours = cra.MultiHeadAttention(C, heads=4, relu=relu).double()
    nn.init.normal_(ours.norm.weight)
    nn.init.normal_(ours.norm.bias)
    theirs = nn.MultiheadAttention(C, 4, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.copy_(ours.out.bias)
    found = ours(x, mask, position)
    for r, g in product(range(R), range(G)):                                           # one sequence at a time
        y = x[r, :, g] + (position if kind == "intra" else 0)
        z, _ = theirs(y[None], y[None], y[None], key_padding_mask=~mask[None, r, :, g])
        z = z[0].relu() if relu else z[0]
        expected = F.layer_norm(y + z, (C,), ours.norm.weight, ours.norm.bias)
        torch.testing.assert_close(found[r, :, g], expected)


def test_both_branches_are_one_function_at_any_length(monkeypatch):
    x, mask = normal(R, 40, 2, C), some(R, 40, 2)
    mask[0, :, 1] = False
    attention = cra.MultiHeadAttention(C).double()
    called = []
    monkeypatch.setattr(cra, "fused_attention", lambda *a, f=cra.fused_attention: called.append("fused") or f(*a))
    monkeypatch.setattr(cra, "attention", lambda *a, f=cra.attention: called.append("einsum") or f(*a))
    long = attention(x, mask)
    attention.fused = False
    torch.testing.assert_close(attention(x, mask), long)
    attention.fused = True
    attention(x[:, :cra.EINSUM_UP_TO], mask[:, :cra.EINSUM_UP_TO])
    assert called == ["fused", "einsum", "einsum"]


@pytest.mark.parametrize("with_position", [False, True])
def test_the_maps_are_the_softmax_the_module_uses(branch, with_position):
    x, mask = normal(R, S, V, C), some(R, S, V)
    mask[:, 1], mask[0, :, 2] = True, False                                            # one sequence without any key
    position = normal(S, C, seed=3) if with_position else None
    attention = cra.MultiHeadAttention(C).double()
    maps = attention.maps(x, mask, position)                                           # (R, V, 4, S, S)
    y = x + (position[:, None] if with_position else 0)
    values = attention.value(y).view(R, S, V, 4, 8)
    heads = torch.einsum("rgant,rtgad->rngad", maps, values).reshape(R, S, V, C)
    torch.testing.assert_close(attention.norm(y + attention.out(heads)), attention(x, mask, position))
    assert not maps[1].permute(3, 0, 1, 2)[~mask[1]].any()                             # (S keys, V): nobody reads a masked one


@pytest.mark.parametrize("limit", [1, 13, 30])
def test_chunking_changes_nothing(branch, monkeypatch, limit):
    x, mask = normal(5, 7, V, C), some(5, 7, V)
    attention = cra.MultiHeadAttention(C).double()
    whole = attention(x, mask)
    sizes = []
    for name in ("attention", "fused_attention"):
        monkeypatch.setattr(cra, name, lambda q, *a, f=getattr(cra, name): sizes.append(q.shape[0] * q.shape[1]) or f(q, *a))
    monkeypatch.setattr(cra, "FUSED_LIMIT", limit)
    torch.testing.assert_close(attention(x, mask), whole)
    assert len(sizes) > 1 and max(sizes) <= max(limit, V * 4)                          # one ray's sequences are the least


# ---------------------------------------------------------------------------------------------------- position

def test_the_position_embedding_is_the_sinusoid_of_the_sample_index():
    table = cra.sample_positions(7, 10)
    assert table.shape == (7, 10)
    for s, i in product(range(7), range(5)):
        angle = s / 10000 ** (2 * i / 10)
        assert table[s, 2 * i] == pytest.approx(math.sin(angle), abs=1e-6)
        assert table[s, 2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-6)


def test_positions_need_not_be_whole_nor_the_same_for_every_ray():
    index = 5 * torch.rand(R, S, dtype=torch.float64)
    table = cra.sample_positions(index, 10)
    for r, s, i in product(range(R), range(S), range(5)):
        angle = float(index[r, s]) / 10000 ** (2 * i / 10)
        assert table[r, s, 2 * i:2 * i + 2].tolist() == pytest.approx([math.sin(angle), math.cos(angle)], abs=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_given_positions_replace_the_sample_index(mode):
    M, mask, attend, order = normal(R, S, V, C), some(R, S, V), module(mode), [3, 1, 4, 0, 2]
    index = torch.arange(S).double().expand(R, S)
    out = attend(M, mask)
    torch.testing.assert_close(attend(M, mask, index), out, rtol=1e-5, atol=1e-5)
    shuffled = attend(M[:, order], mask[:, order], index[:, order])                    # a sample takes its position along
    valid = mask[:, order]
    torch.testing.assert_close(shuffled[valid], out[:, order][valid], rtol=1e-5, atol=1e-5)
    shifted = attend(M, mask, index + torch.tensor([[0.0], [7.5]]))                    # the second ray's only
    torch.testing.assert_close(shifted[0], out[0], rtol=1e-5, atol=1e-5)
    assert ((shifted[1] - out[1]).abs().max() > 1e-2) == (mode in ("intra", "full", "dense"))


@pytest.mark.parametrize("mode, notices", [("intra", True), ("full", True), ("dense", True), ("cross", False)])
def test_the_order_of_samples_matters_wherever_attention_runs_along_the_ray(mode, notices):
    M, mask, order = normal(R, S, V, C), torch.ones(R, S, V, dtype=torch.bool), [3, 1, 4, 0, 2]
    attend = module(mode)
    difference = (attend(M[:, order], mask) - attend(M, mask)[:, order]).abs().max()
    assert (difference > 1e-3) if notices else (difference < 1e-12)


# ---------------------------------------------------------------------------------------------------- which token reads which

def reach(mode):
    """reach[s, v, t, u]: does token (s, v) of M'' depend on token (t, u) of M? Asked of the gradient, exactly zero or not."""
    attend, M = module(mode), normal(1, S, V, C).requires_grad_()
    out = attend(M, torch.ones(1, S, V, dtype=torch.bool))
    rows = [torch.autograd.grad((out[0, s, v] * normal(C, seed=5)).sum(), M, retain_graph=True)[0][0].abs().sum(-1) > 0
            for s, v in product(range(S), range(V))]
    return torch.stack(rows).view(S, V, S, V)


SAME_VIEW = torch.eye(V, dtype=torch.bool)[None, :, None, :].expand(S, V, S, V)
SAME_SAMPLE = torch.eye(S, dtype=torch.bool)[:, None, :, None].expand(S, V, S, V)


def test_intra_view_attention_does_not_mix_views_and_joins_all_samples_of_one():
    assert torch.equal(reach("intra"), SAME_VIEW)


def test_cross_view_attention_does_not_mix_samples_and_joins_all_views_of_one():
    assert torch.equal(reach("cross"), SAME_SAMPLE)


def test_dense_attention_is_full_connectivity():
    assert reach("dense").all()


def test_intra_then_cross_reaches_every_token_in_two_hops_and_either_alone_does_not():
    assert reach("full").all()
    assert not reach("intra").all() and not reach("cross").all()


def test_full_is_intra_view_attention_followed_by_cross_view_attention():
    full, M, mask = module("full"), normal(R, S, V, C), some(R, S, V)
    intra, cross = module("intra"), module("cross")
    intra.L4.load_state_dict(full.L4.state_dict())
    cross.L6.load_state_dict(full.L6.state_dict())
    torch.testing.assert_close(full(M, mask), cross(intra(M, mask), mask))


def test_rays_do_not_read_each_other_in_any_mode():
    M, mask = normal(R, S, V, C), some(R, S, V)
    for mode in MODES:
        attend = module(mode)
        torch.testing.assert_close(attend(M, mask)[1:], attend(M[1:], mask[1:]))


def test_mode_none_returns_the_initial_context():
    M = normal(R, S, V, C)
    assert torch.equal(module("none")(M, some(R, S, V)), M) and not list(module("none").parameters())


def test_an_unknown_mode_is_refused_by_name():
    with pytest.raises(ValueError, match="sparse"):
        cra.CRA("sparse")


# ---------------------------------------------------------------------------------------------------- symmetries and masks

@pytest.mark.parametrize("mode", MODES)
def test_permuting_views_permutes_the_refined_context(branch, mode):
    M, mask, order, attend = normal(R, S, V, C), some(R, S, V), [2, 0, 1], module(mode)
    out = attend(M, mask)
    torch.testing.assert_close(attend(M[:, :, order], mask[:, :, order]), out[:, :, order])
    assert (out - out[:, :, order]).abs().max() > 0.1


@pytest.mark.parametrize("mode", MODES)
def test_masking_a_view_equals_removing_it(branch, mode):
    M, mask, attend = normal(R, S, V, C), some(R, S, V), module(mode)
    mask[:, :, 1] = False
    rest = [0, 2]
    valid = mask[:, :, rest]                                                           # what masked tokens become, nobody reads
    torch.testing.assert_close(attend(M, mask)[:, :, rest][valid], attend(M[:, :, rest], valid)[valid])


@pytest.mark.parametrize("mode", ["intra", "cross", "full", "dense"])
def test_valid_tokens_do_not_read_a_masked_token(branch, mode):
    M, mask, attend = normal(R, S, V, C), torch.ones(R, S, V, dtype=torch.bool), module(mode)
    mask[0, 2, 1] = False
    garbage = M.clone()
    garbage[0, 2, 1] = 1e3
    before, after = attend(M, mask), attend(garbage, mask)
    torch.testing.assert_close(after[mask], before[mask])
    everything = torch.ones_like(mask)
    assert (attend(garbage, everything) - attend(M, everything))[mask].abs().max() > 1e-3      # unmasked, it would be read


@pytest.mark.parametrize("mode", ["intra", "cross", "full", "dense"])
def test_sequences_without_a_key_give_finite_values_and_gradients(branch, mode):
    M, mask = normal(R, S, V, C).requires_grad_(), some(R, S, V)
    mask[0], mask[1, 2] = False, False
    out = module(mode)(M, mask)
    out.square().sum().backward()
    assert torch.isfinite(out).all() and torch.isfinite(M.grad).all() and (M.grad != 0).any()


@pytest.mark.parametrize("mode", ["intra", "cross", "full", "dense"])
def test_every_weight_gets_a_gradient(mode):
    attend = module(mode)
    (attend(normal(R, S, V, C), torch.ones(R, S, V, dtype=torch.bool)) * normal(R, S, V, C, seed=7)).sum().backward()
    dead = [name for name, p in attend.named_parameters() if p.grad.abs().max() < 1e-10]
    assert all(name.endswith("key.bias") for name in dead)         # it adds the same to all scores of a query: softmax is blind


# ---------------------------------------------------------------------------------------------------- valid tokens alone

def ragged(R, S, V, share=0.6):
    """A mask with everything: rays, samples, (ray, view) pairs that see nothing, and some that see all."""
    mask = some(R, S, V, seed=4) if share == 0.6 else torch.rand(R, S, V, generator=torch.Generator().manual_seed(4)) < share
    mask[0], mask[1, :, 0], mask[1, :, 1], mask[2, 0], mask[2, 1] = False, False, True, False, True
    return mask


@pytest.mark.parametrize("shape", [(4, 5, 3), (3, 21, 9)])
@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_packed_tokens_are_refined_as_the_definition_says_in_value_and_gradient(branch, mode, index, shape):
    R, S, V = shape
    net, M, mask, found = module(mode, relu=True), normal(*shape, C), ragged(*shape), []
    where = normal(R, S, seed=6) if index else None
    for packed in (False, True):
        net.zero_grad()
        leaf = (M[mask] if packed else M * mask[..., None]).requires_grad_()
        out = net(leaf, mask, where)
        out = out if packed else out[mask]
        (out * torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape)).sum().backward()
        found.append([out, leaf.grad if packed else leaf.grad[mask], *(p.grad.clone() for p in net.parameters())])
    for dense, packed in zip(*found):
        torch.testing.assert_close(packed, dense)


@pytest.mark.parametrize("tile", [1, 2000, 2 ** 18])
@pytest.mark.parametrize("mode", MODES)
def test_packed_tokens_of_some_samples_are_those_of_the_definition(branch, mode, tile, monkeypatch):
    monkeypatch.setattr(cra, "TILE", tile)
    R, S, V = 4, 21, 9
    net, M, mask = module(mode), normal(R, S, V, C), ragged(R, S, V)
    keep = torch.stack([torch.randperm(S, generator=torch.Generator().manual_seed(r))[:6].sort().values for r in range(R)])
    with torch.no_grad():
        expected = net(M * mask[..., None], mask, None, keep)[mask.take_along_dim(keep[:, :, None], dim=1)]
        torch.testing.assert_close(net(M[mask], mask, None, keep), expected)


def test_nothing_valid_packed_is_nothing_refined():
    mask, keep = torch.zeros(R, S, V, dtype=torch.bool), torch.tensor([[1, 2], [0, 4]])
    for mode in MODES:
        assert module(mode)(normal(0, C), mask).shape == (0, C) == module(mode)(normal(0, C), mask, None, keep).shape
        one = mask.clone()
        one[0, 3, 1] = True                                                            # valid, but not among those kept
        assert module(mode)(normal(1, C), one, None, keep).shape == (0, C)


def test_the_layout_has_every_token_once_and_its_sequences_in_blocks():
    lengths = torch.tensor([3, 0, 1, 6, 20, 8, 6])
    order = torch.randperm(44, generator=torch.Generator().manual_seed(0))
    size = cra.padded_length(lengths, 20)
    assert size.tolist() == [3, 0, 1, 6, 20, 8, 6]                                     # 32 would be next, but 20 is the most there are
    size[[3, 6]] = 8                                                                   # as if there were no blocks of 6
    assert cra.padded_length(torch.tensor([0, 17, 5000]), 6000).tolist() == [0, 32, 6000]          # beyond the last of SIZES
    layout = cra.lay_out(order, lengths, size, 20, 44)
    assert [(b.count, b.length) for b in layout.blocks] == [(1, 1), (1, 3), (3, 8), (1, 20)]
    assert torch.equal(layout.token[layout.row], torch.arange(44)) and int(layout.real.sum()) == 44
    first, rows = lengths.cumsum(0) - lengths, layout.token.split([1, 3, 24, 20])
    assert torch.equal(rows[1], order[:3]) and torch.equal(rows[2].view(8, 3)[:6, 0], order[first[3]:first[3] + 6])
    assert layout.blocks[3].real is None and layout.blocks[2].real.sum(0).tolist() == [6, 8, 6]
    assert [b.short for b in layout.blocks] == [True, True, True, False] and torch.equal(rows[3], order[first[4]:first[4] + 20])


@pytest.mark.parametrize("tile", [1, 40, 2 ** 18])
@pytest.mark.parametrize("n, short", [(1, True), (5, True), (5, False), (16, False), (7, False), (33, False)])
def test_packed_attention_is_the_definition_in_value_and_gradient_whatever_the_tile(monkeypatch, n, short, tile):
    """Sequences of n tokens, padded and not, through PackedAttention and through forward."""
    monkeypatch.setattr(cra, "TILE", tile)
    torch.manual_seed(0)
    b, net, found = 6, cra.MultiHeadAttention(C, relu=True).double(), []
    x, real = normal(b, n, C), torch.arange(n) < torch.tensor([n, 1, n, max(1, n - 2), n, n])[:, None]        # (b, n)
    order = (lambda t: t.transpose(0, 1)) if short else (lambda t: t)
    blocks = [cra.Block(2, n, None, short), cra.Block(b - 2, n, order(real[2:]), short)]
    for packed in (False, True):
        net.zero_grad()
        leaf, keys = x.clone().requires_grad_(), real.clone()
        keys[:2] = True                                                                # the first block has no padding
        if packed:
            y = torch.cat([order(leaf[:2]).reshape(-1, C), order(leaf[2:]).reshape(-1, C)])
            first, second = net.blocks(y, blocks).split([2 * n, (b - 2) * n])
            shape = lambda t, count: order(t.view(*((n, count) if short else (count, n)), C))
            out = torch.cat([shape(first, 2), shape(second, b - 2)])
        else:
            out = net(leaf[:, :, None], keys[..., None])[:, :, 0]
        ((out * torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape))[keys]).sum().backward()
        found.append([out[keys], leaf.grad, *(p.grad.clone() for p in net.parameters())])
    for expected, got in zip(*found):
        torch.testing.assert_close(got, expected)


def test_packed_attention_survives_scores_of_any_size():
    net, x = cra.MultiHeadAttention(C), 1e3 * normal(3, 20, C).float()
    for short in (True, False):
        y, blocks = x.reshape(-1, C).requires_grad_(), [cra.Block(3, 20, None) if not short else cra.Block(20, 3, None, True)]
        out = net.blocks(y, blocks)
        out.sum().backward()
        assert torch.isfinite(out).all() and torch.isfinite(y.grad).all()


def test_the_largest_is_amax_however_it_is_found():
    for shape in ((4, 16, 5), (4, 7, 5), (2, 12, 32), (4, 6, 3, 9)):
        p = normal(*shape)
        assert torch.equal(cra.largest(p), p.amax(1, keepdim=True))
