"""04_cra.py: attention is what its equation says; each mode connects the tokens it should and no others."""
import math
from importlib import import_module
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

cra, training = import_module("04_cra"), import_module("07_train")
R, S, V, C = 2, 5, 3, 32
MODES = ["none", "intra", "cross", "full", "dense"]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_mask(*shape, seed=0):
    """A mask with true and false in it."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.6


def module(mode="full", attend=cra.attention, **settings):
    """A CRA of random weights, all its attentions computed by `attend`."""
    torch.manual_seed(0)
    built = cra.CRA(mode, **settings).double()
    for part in built.children():
        part.attend = attend
    return built


def value_and_gradients(function, *shapes, dtype=torch.float64):
    """function of random tensors -> its value, and the gradient of a random sum of it by each of them."""
    leaves = [normal(*shape, seed=i).to(dtype).requires_grad_() for i, shape in enumerate(shapes)]
    out = function(*leaves)
    return [out, *torch.autograd.grad((out * normal(*out.shape, seed=9).to(dtype)).sum(), leaves)]


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


# ------------------------------------------------------------------------------------------ attention itself

@pytest.mark.parametrize("function", [cra.attention, cra.fused_attention])
def test_attention_equals_a_python_loop(function):
    B, A, s, t, D = 2, 4, 3, 5, 8
    q, mask = normal(B, A, s, D), random_mask(B, t)
    k, v = normal(B, A, t, D, seed=1), normal(B, A, t, D, seed=2)
    mask[:, 0] = True
    out = function(q, k, v, mask)
    assert out.shape == (B, A, s, D)
    for b, a, i in product(range(B), range(A), range(s)):
        keys = [j for j in range(t) if mask[b, j]]
        score = [math.exp(sum(float(q[b, a, i, d] * k[b, a, j, d]) for d in range(D)) / math.sqrt(D))
                 for j in keys]
        expected = sum(e * v[b, a, j] for e, j in zip(score, keys)) / sum(score)
        torch.testing.assert_close(out[b, a, i], expected)


def test_scores_are_divided_by_the_root_of_the_head_dimension():
    q, k = torch.ones(1, 1, 1, 16), torch.stack([torch.zeros(16), torch.full((16,), 0.1)])[None, None]
    weight = cra.attention_maps(q, k, torch.ones(1, 2, dtype=torch.bool)).flatten()
    assert float(weight[1] / weight[0]) == pytest.approx(math.exp(16 * 0.1 / 4))


@pytest.mark.parametrize("limit", [1, 2, 3, 65535])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fused_attention_equals_attention_in_slices_of_any_size(monkeypatch, dtype, limit):
    """Values and gradients, a sequence without any key among them; there everything is read."""
    monkeypatch.setattr(cra, "FUSED_LIMIT", limit)
    B, A, N, D = 5, 4, 7, 8
    mask, sizes, kernel = random_mask(B, N), [], F.scaled_dot_product_attention
    mask[1], mask[4], mask[0, 2] = False, True, True

    def counted(q, *rest, **named):
        sizes.append(len(q))
        return kernel(q, *rest, **named)
    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    shapes = [(B, A, N, D)] * 3
    plain = value_and_gradients(lambda q, k, v: cra.attention(q, k, v, mask), *shapes, dtype=dtype)
    fused = value_and_gradients(lambda q, k, v: cra.fused_attention(q, k, v, mask), *shapes, dtype=dtype)
    same(fused, plain)
    assert sum(sizes) == B and max(sizes) == min(limit, B)
    q, k, v = (normal(B, A, N, D, seed=i).to(dtype) for i in range(3))
    torch.testing.assert_close(plain[0][1], kernel(q, k, v)[1])


def test_without_a_mask_attention_equals_torchs_in_value_and_gradient():
    mask = torch.ones(3, 5, dtype=torch.bool)
    shapes = [(3, 4, 5, 8)] * 3
    same(value_and_gradients(lambda q, k, v: cra.attention(q, k, v, mask), *shapes),
         value_and_gradients(F.scaled_dot_product_attention, *shapes))


def test_1024_rays_of_64_samples_are_more_sequences_than_a_kernel_takes():
    assert cra.FUSED_LIMIT < 1024 * 64


@pytest.mark.parametrize("function", [cra.attention, cra.fused_attention])
def test_attention_survives_scores_of_any_size(function):
    q = torch.tensor([1e4, -1e4, 0.0]).view(1, 1, 3, 1).requires_grad_()
    out = function(q, q, q, torch.ones(1, 3, dtype=torch.bool))
    out.sum().backward()
    torch.testing.assert_close(out.flatten(), torch.tensor([1e4, -1e4, 0.0]))
    assert torch.isfinite(q.grad).all()


@pytest.mark.parametrize("function", [cra.attention, cra.fused_attention])
@pytest.mark.parametrize("relu", [None, True, False])
def test_multi_head_attention_equals_torchs_with_the_same_weights(function, relu):
    """And a ReLU on its output unless told otherwise, as Table 9 lists; residual and LayerNorm around it."""
    B, N = 3, 5
    x, mask = normal(B, N, C), random_mask(B, N)
    mask[:, 0] = True                                                        # torch's gives nan without a key
    torch.manual_seed(0)
    ours = (cra.MultiHeadAttention(C) if relu is None else cra.MultiHeadAttention(C, 4, relu)).double()
    ours.attend = function
    nn.init.normal_(ours.norm.weight)
    nn.init.normal_(ours.norm.bias)
    theirs = nn.MultiheadAttention(C, 4, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        for kind in ("weight", "bias"):
            parts = [getattr(layer, kind) for layer in (ours.query, ours.key, ours.value)]
            getattr(theirs, f"in_proj_{kind}").copy_(torch.cat(parts))
            getattr(theirs.out_proj, kind).copy_(getattr(ours.out, kind))
    z, _ = theirs(x, x, x, key_padding_mask=~mask)
    z = z if relu is False else z.relu()
    expected = F.layer_norm(x + z, (C,), ours.norm.weight, ours.norm.bias)
    torch.testing.assert_close(ours(x, mask), expected)


def test_the_definition_is_what_runs_unless_another_attention_is_set():
    attentions = [x for x in cra.CRA().modules() if isinstance(x, cra.MultiHeadAttention)]
    assert len(attentions) == 2 and all(x.attend is cra.attention for x in attentions)


# -------------------------------------------------------------------------------------------------- position

def test_the_position_embedding_is_the_sinusoid_of_the_sample_index():
    table = cra.sample_positions(7, 10)
    assert table.shape == (7, 10)
    for s, i in product(range(7), range(5)):
        angle = s / 10000 ** (2 * i / 10)
        assert table[s, 2 * i] == pytest.approx(math.sin(angle), abs=1e-6)
        assert table[s, 2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-6)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 24, 64, 100, 4096])
def test_as_many_samples_as_places_have_their_index_to_the_bit(count):
    index, rate = torch.arange(count).float(), 10000.0 ** (-torch.arange(0, 32, 2).float() / 32)
    angle = index[:, None] * rate
    expected = torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)
    assert torch.equal(cra.sample_positions(count, 32, count), expected)
    assert torch.equal(cra.sample_positions(count, 32), expected)


@pytest.mark.parametrize("count", [1, 5, 64])
def test_other_numbers_of_samples_are_spread_over_the_places(count):
    """Each in the middle of its part of the ray, from half a place before the first to half a place behind
    the last. The fastest sinusoid's angle is the position itself."""
    sine, cosine = cra.sample_positions(count, 10, 24)[:, :2].double().T
    expected = [-0.5 + 24 * (s + 0.5) / count for s in range(count)]
    assert sine.tolist() == pytest.approx([math.sin(x) for x in expected], abs=1e-5)
    assert cosine.tolist() == pytest.approx([math.cos(x) for x in expected], abs=1e-5)


@pytest.mark.parametrize("mode", ["intra", "full", "dense"])
def test_twice_as_many_samples_of_the_same_ray_are_read_alike(mode):
    """A ray's first half and its second half show one thing each: 24 samples or 48 make no difference, where
    48 samples at their index make one."""
    halves = normal(1, 2, V, C)

    def half_way(count, places):
        M = halves.repeat_interleave(count // 2, dim=1)                       # (1, count, V, C)
        out = module(mode, places=places)(M, torch.ones(1, count, V, dtype=torch.bool))
        return out.view(1, 2, count // 2, V, C).mean(2)
    expected = half_way(24, 24)
    assert (half_way(48, 24) - expected).abs().max() < 0.05 * expected.std()
    assert (half_way(48, None) - expected).abs().max() > 0.1 * expected.std()


@pytest.mark.parametrize("mode, notices", [
    ("intra", True), ("full", True), ("dense", True), ("cross", False)])
def test_the_order_of_samples_matters_wherever_attention_runs_along_the_ray(mode, notices):
    M, mask, order = normal(R, S, V, C), torch.ones(R, S, V, dtype=torch.bool), [3, 1, 4, 0, 2]
    attend = module(mode)
    difference = (attend(M[:, order], mask) - attend(M, mask)[:, order]).abs().max()
    assert (difference > 1e-3) if notices else (difference < 1e-12)


# ---------------------------------------------------------------------------------- which token reads which

def reach(function):
    """reach[s, v, t, u]: does token (s, v) of function(M) depend on token (t, u) of M? Asked of the gradient,
    exactly zero or not."""
    M = normal(1, S, V, C).requires_grad_()
    out = function(M, torch.ones(1, S, V, dtype=torch.bool))
    rows = [torch.autograd.grad((out[0, s, v] * normal(C, seed=5)).sum(), M, retain_graph=True)[0][0]
            for s, v in product(range(S), range(V))]
    return torch.stack([row.abs().sum(-1) > 0 for row in rows]).view(S, V, S, V)


SAME_VIEW = torch.eye(V, dtype=torch.bool)[None, :, None, :].expand(S, V, S, V)
SAME_SAMPLE = torch.eye(S, dtype=torch.bool)[:, None, :, None].expand(S, V, S, V)


def test_intra_view_attention_does_not_mix_views_and_joins_all_samples_of_one():
    assert torch.equal(reach(module("intra")), SAME_VIEW)
    assert torch.equal(reach(module("full").intra_view), SAME_VIEW)


def test_cross_view_attention_does_not_mix_samples_and_joins_all_views_of_one():
    assert torch.equal(reach(module("cross")), SAME_SAMPLE)
    assert torch.equal(reach(module("full").cross_view), SAME_SAMPLE)


def test_dense_attention_is_full_connectivity():
    assert reach(module("dense")).all()
    assert reach(module("dense").dense_attention).all()


def test_intra_then_cross_reaches_every_token_in_two_hops():
    assert reach(module("full")).all()


def test_full_is_intra_view_attention_followed_by_cross_view_attention():
    full, M, mask = module("full"), normal(R, S, V, C), random_mask(R, S, V)
    intra, cross = module("intra"), module("cross")
    intra.L4.load_state_dict(full.L4.state_dict())
    cross.L6.load_state_dict(full.L6.state_dict())
    torch.testing.assert_close(full(M, mask), cross(intra(M, mask), mask))


def with_position(M, places):
    """M (R, S, V, C), each sample's position added: one number at a time."""
    where = [places * (s + 0.5) / S - 0.5 for s in range(S)]
    angle = [[x / 10000 ** (2 * (c // 2) / C) for c in range(C)] for x in where]
    table = [[math.cos(x) if c % 2 else math.sin(x) for c, x in enumerate(row)] for row in angle]
    return M + torch.tensor(table, dtype=M.dtype)[:, None]


@pytest.mark.parametrize("places", [S, 12])
@pytest.mark.parametrize("attend", [cra.attention, cra.fused_attention])
def test_each_mode_equals_its_attention_on_one_sequence_at_a_time(attend, places):
    """intra: the S tokens of a ray and view; cross: the V of a ray and sample; dense: the S V of a ray."""
    M, mask = normal(R, S, V, C), random_mask(R, S, V)
    M_in = with_position(M, places)
    intra, cross, dense = (module(mode, attend, places=places) for mode in ("intra", "cross", "dense"))
    found = [x(M, mask) for x in (intra, cross, dense)]
    near = {"rtol": 1e-5, "atol": 1e-5}                                       # positions are float32
    for r in range(R):
        for v in range(V):
            expected = intra.L4(M_in[r, None, :, v], mask[r, None, :, v])[0]
            torch.testing.assert_close(found[0][r, :, v], expected, **near)
        for s in range(S):
            expected = cross.L6(M[r, s, None], mask[r, s, None])[0]
            torch.testing.assert_close(found[1][r, s], expected, **near)
        expected = dense.dense(M_in[r].reshape(1, S * V, C), mask[r].reshape(1, S * V))
        torch.testing.assert_close(found[2][r], expected.view(S, V, C), **near)


def test_rays_do_not_read_each_other_in_any_mode():
    M, mask = normal(R, S, V, C), random_mask(R, S, V)
    for mode in MODES:
        attend = module(mode)
        torch.testing.assert_close(attend(M, mask)[1:], attend(M[1:], mask[1:]))


def test_mode_none_returns_the_initial_context():
    M = normal(R, S, V, C)
    assert torch.equal(module("none")(M, random_mask(R, S, V)), M) and not list(module("none").parameters())


def test_an_unknown_mode_is_refused_by_name():
    with pytest.raises(ValueError, match="sparse"):
        cra.CRA("sparse")


def test_the_class_builds_by_default_what_the_settings_default_to():
    built, config = cra.CRA(), training.Config()
    assert (built.mode, built.L4.relu, built.L6.relu) == (config.cra, config.cra_relu, config.cra_relu)
    assert (built.mode, built.L4.relu, built.L4.heads) == ("full", True, 4)              # Table 9
    plain = cra.CRA(relu=False)
    assert not plain.L4.relu and not plain.L6.relu and not cra.CRA("dense", relu=False).dense.relu


# --------------------------------------------------------------------------------------------- attention maps

def maps_of_a_module(mask):
    attend, M = module(), normal(R, S, V, C)
    intra, cross = attend.maps(M, mask)
    assert intra.shape == (R, V, 4, S, S) and cross.shape == (R, S, 4, V, V)
    return attend, M, intra, cross


def test_the_maps_are_distributions_over_what_may_be_read():
    mask = random_mask(R, S, V)
    mask[0, :, 2], mask[1, 3] = False, False                                  # no key: everything is read
    *_, intra, cross = maps_of_a_module(mask)
    for maps, keys in ((intra, mask.transpose(1, 2)), (cross, mask)):
        torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1], dtype=torch.float64))
        allowed = (keys | ~keys.any(-1, keepdim=True))[:, :, None, None].expand(maps.shape)
        assert torch.equal(maps > 0, allowed)


def test_the_maps_are_those_that_the_module_reads_by():
    mask = random_mask(R, S, V)
    attend, M, intra, cross = maps_of_a_module(mask)
    x = attend.with_positions(M)                                              # (R, V, S, C)
    values = attend.L4.value(x).view(R, V, S, 4, 8)
    heads = torch.einsum("rvast,rvtad->rvsad", intra, values).flatten(-2)     # (R, V, S, C)
    first = attend.L4.norm(x + attend.L4.out(heads).relu()).transpose(1, 2)   # (R, S, V, C)
    torch.testing.assert_close(first, attend.intra_view(M, mask))
    values = attend.L6.value(first).view(R, S, V, 4, 8)
    heads = torch.einsum("rsavu,rsuad->rsvad", cross, values).flatten(-2)
    torch.testing.assert_close(attend.L6.norm(first + attend.L6.out(heads).relu()), attend(M, mask))


# --------------------------------------------------------------------------------------- symmetries and masks

@pytest.fixture(params=[cra.attention, cra.fused_attention])
def attend(request):
    """Both ways of computing attention."""
    return request.param


@pytest.mark.parametrize("mode", MODES)
def test_permuting_views_permutes_the_refined_context(attend, mode):
    M, mask, order, refine = normal(R, S, V, C), random_mask(R, S, V), [2, 0, 1], module(mode, attend)
    out = refine(M, mask)
    torch.testing.assert_close(refine(M[:, :, order], mask[:, :, order]), out[:, :, order])
    assert (out - out[:, :, order]).abs().max() > 0.1


@pytest.mark.parametrize("mode", MODES)
def test_masking_a_view_equals_removing_it(attend, mode):
    M, mask, refine = normal(R, S, V, C), random_mask(R, S, V), module(mode, attend)
    mask[:, :, 1] = False
    rest = [0, 2]
    valid = mask[:, :, rest]                                         # what masked tokens become, nobody reads
    found = refine(M, mask)[:, :, rest]
    torch.testing.assert_close(found[valid], refine(M[:, :, rest], valid)[valid])


@pytest.mark.parametrize("mode", ["intra", "cross", "full", "dense"])
def test_valid_tokens_do_not_read_a_masked_token(attend, mode):
    M, mask, refine = normal(R, S, V, C), torch.ones(R, S, V, dtype=torch.bool), module(mode, attend)
    mask[0, 2, 1] = False
    garbage = M.clone()
    garbage[0, 2, 1] = 1e3
    before, after = refine(M, mask), refine(garbage, mask)
    torch.testing.assert_close(after[mask], before[mask])
    everything = torch.ones_like(mask)                                        # unmasked, it would be read
    assert (refine(garbage, everything) - refine(M, everything))[mask].abs().max() > 1e-3


@pytest.mark.parametrize("mode", ["intra", "cross", "full", "dense"])
def test_sequences_without_a_key_give_finite_values_and_gradients(attend, mode):
    M, mask = normal(R, S, V, C).requires_grad_(), random_mask(R, S, V)
    mask[0], mask[1, 2] = False, False
    out = module(mode, attend)(M, mask)
    (out * normal(R, S, V, C, seed=7)).sum().backward()
    assert torch.isfinite(out).all() and torch.isfinite(M.grad).all() and (M.grad != 0).any()


@pytest.mark.parametrize("mode", ["intra", "cross", "full", "dense"])
def test_every_weight_gets_a_gradient(mode):
    refine = module(mode)
    out = refine(normal(R, S, V, C), torch.ones(R, S, V, dtype=torch.bool))
    (out * normal(R, S, V, C, seed=7)).sum().backward()
    dead = [name for name, p in refine.named_parameters() if p.grad.abs().max() < 1e-10]
    # a key's bias adds the same to all scores of a query, and a softmax is blind to that
    assert all(name.endswith("key.bias") for name in dead)
