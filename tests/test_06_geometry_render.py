"""06_geometry_render.py: density and colour from views, samples along rays, volume rendering."""
import math
from importlib import import_module
from itertools import product

import pytest
import torch

geometry, training = import_module("06_geometry_render"), import_module("07_train")
R, S, V, C = 2, 5, 3, 32


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --------------------------------------------------------------------------------------------------- Table 11

def inputs(views=V):
    """M, colours, differences (float64), and a mask in which no view sees one sample and one view another."""
    mask = uniform(R, S, views, seed=3) < 0.7
    mask[:, 0], mask[0, 1], mask[0, 2] = True, False, False
    mask[0, 2, 1] = True
    return normal(R, S, views, C), uniform(R, S, views, 3, seed=1), normal(R, S, views, 4, seed=2), mask


def network(**settings):
    torch.manual_seed(0)
    return geometry.GeometryNetwork(**settings).double()


def around(net, name, f):
    """Run f() and return what went into and came out of net.<name>."""
    kept = []
    hook = getattr(net, name).register_forward_hook(lambda module, x, y: kept.append((x[0], y)))
    f()
    hook.remove()
    return kept[0]


def test_the_cross_view_mean_and_variance_run_over_the_valid_views_only():
    net, (M, colours, differences, mask) = network(), inputs()
    pooled, _ = around(net, "L8", lambda: net(M, colours, differences, mask))
    assert pooled.shape == (R, S, 64)                                         # Table 11, L7
    for r, s in product(range(R), range(S)):
        valid = [net.L1(M[r, s, v]) * torch.sigmoid(net.L2(M[r, s, v])) for v in range(V) if mask[r, s, v]]
        count, zero = len(valid) or 1, torch.zeros(32).double()
        mean = sum(valid, zero) / count                                       # no valid view: zeros
        variance = sum(((x - mean) ** 2 for x in valid), zero) / count
        torch.testing.assert_close(pooled[r, s], torch.cat([mean, variance]))


def test_the_variance_over_the_views_is_the_biased_one():
    values = torch.tensor([1.0, 3.0, 0.0]).view(1, 1, 3, 1)
    mean, variance = geometry.pool_views(values, torch.tensor([[[True, True, False]]]))
    assert mean.item() == 2 and variance.item() == 1                          # divided by 2 views, not by 1


def test_the_layers_have_the_sizes_of_table_11():
    net = network()
    def linear(module):
        return [(x.in_features, x.out_features) for x in module.modules() if isinstance(x, torch.nn.Linear)]
    assert linear(net.L1) == [(32, 32)] and linear(net.L2) == [(32, 1)]
    assert linear(net.L8) == [(64, 32), (32, 16)]
    assert linear(net.L9) == [(16, 16)] * 4 and net.L9.heads == 4
    assert linear(net.L10) == [(16, 16)] and linear(net.L11) == [(16, 1)]


def test_l3_is_the_sigmoid_of_l2_and_the_visibility_that_table_10_reads():
    net, x = network(), inputs()
    torch.testing.assert_close(net(*x).visibility, 1 / (1 + torch.exp(-net.L2(x[0]))))


@pytest.mark.parametrize("relu, places", [(None, None), (True, 12), (False, S)])
def test_l9_is_attention_along_the_ray_with_a_relu_unless_told_otherwise(relu, places):
    """Against torch's, one ray at a time, the samples' positions added by hand."""
    net, x = network() if relu is None else network(relu=relu, places=places), inputs()
    _, L8 = around(net, "L8", lambda: net(*x))
    got, out = around(net, "L9", lambda: net(*x))
    for s, c in product(range(S), range(16)):
        angle = ((s + 0.5) * (places or S) / S - 0.5) / 10000 ** (2 * (c // 2) / 16)
        expected = L8[:, s, c] + (math.cos(angle) if c % 2 else math.sin(angle))
        torch.testing.assert_close(got[:, s, c], expected, rtol=0, atol=1e-6)
    theirs = torch.nn.MultiheadAttention(16, 4, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        for kind in ("weight", "bias"):
            parts = [getattr(layer, kind) for layer in (net.L9.query, net.L9.key, net.L9.value)]
            getattr(theirs, f"in_proj_{kind}").copy_(torch.cat(parts))
            getattr(theirs.out_proj, kind).copy_(getattr(net.L9.out, kind))
    seen = x[-1].any(-1)
    z, _ = theirs(got, got, got, key_padding_mask=~seen)
    z = z if relu is False else z.relu()
    torch.testing.assert_close(out, torch.nn.functional.layer_norm(got + z, (16,)))
    assert (z < 0).any() == (relu is False)


def test_the_class_builds_by_default_what_the_settings_default_to():
    built, config = geometry.GeometryNetwork(), training.Config()
    named = geometry.GeometryNetwork(density=config.density, relu=config.geometry_relu)
    assert built.density is named.density is torch.nn.functional.softplus
    assert built.L9.relu is named.L9.relu is config.geometry_relu is True and built.L9.heads == 4


@pytest.mark.parametrize("density", ["softplus", "relu"])
def test_sigma_is_the_activated_density_where_some_view_is_valid_and_zero_elsewhere(density):
    net, (M, colours, differences, mask) = network(density=density), inputs()
    _, raw = around(net, "L11", lambda: net(M, colours, differences, mask))
    net.L11.bias.data -= raw.mean()                                            # both signs, so that relu cuts
    raw, sigma = raw[..., 0] - raw.mean(), net(M, colours, differences, mask).sigma
    assert (raw < 0).any() and (raw > 0).any()
    expected = raw.clamp(min=0) if density == "relu" else torch.log(1 + torch.exp(raw))
    torch.testing.assert_close(sigma, expected * mask.any(-1))
    assert sigma[0, 1] == 0


@pytest.mark.parametrize("settings", [{}, {"relu": False}, {"density": "relu"}])
def test_masking_a_view_equals_removing_it(settings):
    net, (M, colours, differences, mask) = network(**settings), inputs()
    net.L11.bias.data += 1                                                        # relu: something to compare
    mask[..., 1], rest = False, [0, 2]
    masked = net(M, colours, differences, mask)
    removed = net(M[:, :, rest], colours[:, :, rest], differences[:, :, rest], mask[:, :, rest])
    seen = mask.any(-1)
    torch.testing.assert_close(masked.sigma, removed.sigma)
    torch.testing.assert_close(masked.colour[seen], removed.colour[seen])
    torch.testing.assert_close(masked.visibility[:, :, rest], removed.visibility)


def test_what_a_masked_view_holds_is_never_read():
    net, (M, colours, differences, mask) = network(), inputs()
    garbage = [torch.where(mask[..., None], x, torch.full_like(x, 50.0)) for x in (M, colours, differences)]
    a, b, seen = net(M, colours, differences, mask), net(*garbage, mask), mask.any(-1)
    torch.testing.assert_close(a.sigma, b.sigma)
    torch.testing.assert_close(a.colour[seen], b.colour[seen])


def test_permuting_views_changes_neither_sigma_nor_colour():
    net, (*x, mask), order = network(), inputs(), [2, 0, 1]
    a, b = net(*x, mask), net(*(y[:, :, order] for y in x), mask[:, :, order])
    torch.testing.assert_close(a.sigma, b.sigma)
    torch.testing.assert_close(a.colour, b.colour)
    torch.testing.assert_close(a.visibility[:, :, order], b.visibility)
    assert a.sigma.std() > 1e-3 and a.colour.std() > 1e-3


def finite_gradients(net):
    return all(p.grad is None or torch.isfinite(p.grad).all() for p in net.parameters())


def test_no_valid_view_anywhere_gives_finite_output_zero_density_and_finite_gradients():
    net, (M, colours, differences, mask) = network(), inputs()
    out = net(M.requires_grad_(), colours, differences, torch.zeros_like(mask))
    assert (out.sigma == 0).all() and all(torch.isfinite(x).all() for x in out)
    (out.sigma.sum() + out.colour.square().sum()).backward()
    assert torch.isfinite(M.grad).all() and finite_gradients(net)


def test_one_valid_view_has_variance_zero_its_own_colour_and_a_finite_gradient():
    net, (M, colours, differences, mask) = network(), inputs()
    one = torch.zeros_like(mask)
    one[..., 1] = True
    out = net(M.requires_grad_(), colours, differences, one)
    pooled, _ = around(net, "L8", lambda: net(M, colours, differences, one))
    assert (pooled[..., 32:] == 0).all() and (pooled[..., :32] != 0).any()
    torch.testing.assert_close(out.colour, colours[:, :, 1])
    (out.sigma.sum() + out.colour.square().sum()).backward()
    assert torch.isfinite(M.grad).all() and finite_gradients(net)
    assert (M.grad[:, :, 1] != 0).any() and (M.grad[:, :, [0, 2]] == 0).all()


def test_colour_is_a_convex_combination_of_the_valid_source_colours():
    net, (M, _, differences, mask) = network(), inputs()
    primaries = torch.eye(3).double().expand(R, S, V, 3)                   # view v shows colour v: its weight
    blend = net(M, primaries, differences, mask).colour
    torch.testing.assert_close(blend.sum(-1), torch.ones(R, S).double())
    seen = mask.any(-1)
    assert (blend[seen][~mask[seen]] == 0).all() and (blend[mask] > 0).all()
    assert blend[mask.all(-1)].std() > 1e-3                                  # the views are not just averaged
    colours = uniform(R, S, V, 3, seed=8)
    mixed = net(M, colours, differences, mask).colour
    torch.testing.assert_close(mixed, (blend[..., None] * colours).sum(2))


def test_the_blend_of_colours_reads_the_view_its_visibility_and_the_direction_differences():
    """Each of the 37 inputs of the colour head moves the blend; direction differences move nothing else."""
    net, (M, colours, differences, _) = network(), inputs()
    mask = torch.ones(R, S, V, dtype=torch.bool)
    first = net.blend[0]
    assert (first.in_features, first.out_features) == (37, 16)
    out = net(M, colours, differences.requires_grad_(), mask)
    gradient, = torch.autograd.grad((out.colour * normal(R, S, 3)).sum(), differences, retain_graph=True)
    assert (gradient.abs() > 0).all()
    assert torch.autograd.grad(out.sigma.sum(), differences, allow_unused=True)[0] is None
    for r, s in product(range(R), range(S)):                                  # by hand
        score = []
        for v in range(V):
            visibility = torch.sigmoid(net.L2(M[r, s, v]))
            x = torch.cat([net.L1(M[r, s, v]) * visibility, visibility, differences[r, s, v]])
            score.append(net.blend(x).exp())
        expected = sum(w * colour for w, colour in zip(score, colours[r, s])) / sum(score)
        torch.testing.assert_close(out.colour[r, s], expected)


def test_without_colours_there_is_the_same_density_and_no_colour():
    net, (M, colours, differences, mask) = network(), inputs()
    full, light = (net(M, x, differences, mask) for x in (colours, None))
    assert light.colour is None and full.colour.shape == (R, S, 3)
    assert torch.equal(full.sigma, light.sigma) and torch.equal(full.visibility, light.visibility)


def test_the_samples_of_a_ray_read_each_other_and_their_order_but_rays_do_not():
    net, (M, colours, differences, _) = network(), inputs()
    mask = torch.ones(R, S, V, dtype=torch.bool)
    sigma = net(M.requires_grad_(), colours, differences, mask).sigma
    for r, s in product(range(R), range(S)):
        gradient, = torch.autograd.grad(sigma[r, s], M, retain_graph=True)
        touched = gradient.abs().sum((-1, -2)) > 0                                     # (R, S)
        assert touched[r].all() and not touched[1 - r].any()
    order = [4, 2, 0, 1, 3]
    shuffled = net(M[:, order], colours[:, order], differences[:, order], mask).sigma
    assert (shuffled - sigma[:, order]).abs().max() > 1e-4                      # the sample position is added


def test_a_sample_that_no_view_sees_is_not_read_by_the_others():
    net, (M, colours, differences, mask) = network(), inputs()
    mask[:], rest = True, [0, 2, 3, 4]
    mask[:, 1] = False
    tokens, read = around(net, "L9", lambda: net(M, colours, differences, mask))
    without = net.L9(tokens[:, rest], torch.ones(R, 4, dtype=torch.bool))     # at the positions that they had
    torch.testing.assert_close(read[:, rest], without)


def test_every_weight_of_the_geometry_network_gets_a_gradient():
    net, x = network(), inputs()
    out = net(*x)
    ((out.sigma * normal(R, S)).sum() + (out.colour * normal(R, S, 3)).sum()).backward()
    dead = [name for name, p in net.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-12]
    # a softmax cannot see a common constant
    assert all(name.endswith(("key.bias", "blend.4.bias")) for name in dead)


# ---------------------------------------------------------------------------------------- samples along a ray

def test_coarse_samples_lie_one_in_each_even_bin_and_in_its_middle_without_jitter():
    edges = torch.tensor([0.4 + i * (8 - 0.4) / 12 for i in range(13)])
    middles = geometry.coarse_samples(0.4, 8.0, 3, 12, None)
    torch.testing.assert_close(middles, ((edges[1:] + edges[:-1]) / 2).expand(3, 12))
    jitter = torch.rand(500, 12, generator=torch.Generator().manual_seed(0))
    z = geometry.coarse_samples(0.4, 8.0, 500, 12, jitter)
    assert z.shape == (500, 12) and (z >= edges[:-1]).all() and (z <= edges[1:]).all()
    # every sample has its own
    torch.testing.assert_close((z - edges[:-1]) / edges.diff(), jitter, atol=1e-4, rtol=0)


Z = torch.tensor([[0.5, 0.8, 1.0, 1.7, 3.0, 6.0]], dtype=torch.float64)        # six coarse samples of one ray
BINS = torch.tensor([0.5, 0.65, 0.9, 1.35, 2.35, 4.5, 6.0], dtype=torch.float64)      # a bin around each
WEIGHTS = torch.tensor([[0.05, 0.0, 0.3, 0.4, 0.0, 0.1]], dtype=torch.float64)


def test_fine_samples_follow_the_histogram_of_the_weights():
    rays, count = 5000, 7
    jitter = torch.rand(rays, count, generator=torch.Generator().manual_seed(0))
    fine = geometry.fine_samples(Z.expand(rays, 6), WEIGHTS.expand(rays, 6), count, jitter)
    p = (WEIGHTS[0] + 1e-3 / 6) / (WEIGHTS[0] + 1e-3 / 6).sum()
    drawn = torch.histogram(fine.flatten(), bins=BINS).hist
    expected = rays * count * p
    assert drawn.sum() == rays * count
    assert ((drawn - expected) ** 2 / expected).sum() < 20.5          # chi-square, 5 degrees of freedom: 0.1%
    for low, high, n in zip(BINS, BINS[1:], drawn):                                    # flat within a bin
        if n > 500:
            inside = (fine[(fine >= low) & (fine < high)] - low) / (high - low)
            assert abs(inside.mean() - 0.5) < 4 / math.sqrt(12 * n)


def test_fine_samples_without_jitter_are_the_middles_of_even_strata():
    weights = torch.cat([WEIGHTS, torch.tensor([[0.0, 0, 0, 0, 0, 0.9]]).double()])
    fine = geometry.fine_samples(Z.expand(2, 6), weights, 9, None)
    for r, i in product(range(2), range(9)):
        p = [(w + 1e-3 / 6) / (float(weights[r].sum()) + 1e-3) for w in weights[r].tolist()]
        rest, bin = (i + 0.5) / 9, 0                                              # walk up the distribution
        while rest > p[bin]:
            rest, bin = rest - p[bin], bin + 1
        expected = BINS[bin] + rest / p[bin] * (BINS[bin + 1] - BINS[bin])
        assert float(fine[r, i]) == pytest.approx(float(expected))


def test_jitter_moves_a_fine_sample_within_its_stratum():
    """Even weights on even bins: strata even in depth, and jitter is how far into one a sample is."""
    z, weights = torch.linspace(0, 1, 101).double()[None], torch.ones(1, 101).double()
    weights[:, [0, -1]] = 0.5                                                 # outer bins: half as wide
    jitter = torch.tensor([[0.25, 0.5, 0.0, 0.75]]).double()
    fine = geometry.fine_samples(z, weights, 4, jitter)
    torch.testing.assert_close(fine, (torch.arange(4) + jitter) / 4, atol=1e-4, rtol=0)


@pytest.mark.parametrize("weights", [
    WEIGHTS, torch.zeros(1, 6).double(), torch.eye(6).double(), 1e-12 * WEIGHTS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fine_samples_increase_and_stay_between_the_first_and_the_last(weights, dtype):
    rays = len(weights)
    random = torch.rand(rays, 64, generator=torch.Generator().manual_seed(0))
    for jitter in (None, torch.zeros(rays, 64), random):
        fine = geometry.fine_samples(Z.to(dtype).expand(rays, 6), weights.to(dtype), 64, jitter)
        assert fine.shape == (rays, 64) and fine.dtype == dtype
        assert (fine.diff(dim=1) >= 0).all() and (fine >= 0.5).all() and (fine <= 6).all()


def test_a_ray_that_meets_nothing_is_sampled_evenly_over_its_bins():
    fine = geometry.fine_samples(Z, torch.zeros(1, 6).double(), 600, None)
    assert torch.histogram(fine[0], bins=BINS).hist.tolist() == [100] * 6


def test_fine_samples_carry_no_gradient():
    weights = WEIGHTS.clone().requires_grad_()
    assert not geometry.fine_samples(Z.clone().requires_grad_(), weights, 4, None).requires_grad


# ------------------------------------------------------------------------------------------- volume rendering

def test_delta_is_in_metres_along_the_ray_and_the_last_one_reaches_far():
    z, length = torch.tensor([[1.0, 1.5, 3.0], [2.0, 2.5, 7.0]]).double(), torch.tensor([1.0, 1.25]).double()
    delta = geometry.sample_lengths(z, 4.0, length)
    torch.testing.assert_close(delta, torch.tensor([[0.5, 1.5, 1.0], [0.625, 5.625, 0.00125]]).double())
    # length 1.25, one metre of it along z
    origin, direction = normal(3), torch.tensor([0.6, 0.45, 1.0]).double()
    points = origin + z[1, :, None] * direction
    torch.testing.assert_close(delta[1, :2], (points[1:] - points[:-1]).norm(dim=-1))


def test_constant_density_matches_the_closed_form():
    sigma, near, far, n = 0.7, 0.5, 3.5, 6
    z = torch.linspace(near, far, n + 1, dtype=torch.float64)[None, :-1]
    delta = geometry.sample_lengths(z, far, torch.ones(1).double())
    weights = geometry.rendering_weights(torch.full((1, n), sigma, dtype=torch.float64), delta)
    for s in range(n):                                                         # what its two ends let through
        expected = math.exp(-sigma * 0.5 * s) - math.exp(-sigma * 0.5 * (s + 1))
        assert float(weights[0, s]) == pytest.approx(expected, abs=1e-12)
    assert float(weights.sum()) == pytest.approx(1 - math.exp(-sigma * (far - near)), abs=1e-12)


def test_rendering_weights_equal_a_loop_of_alpha_compositing():
    sigma, delta = 3 * uniform(R, S), uniform(R, S, seed=1)
    weights = geometry.rendering_weights(sigma, delta)
    for r in range(R):
        light = 1.0
        for s in range(S):
            alpha = 1 - math.exp(-float(sigma[r, s] * delta[r, s]))
            assert float(weights[r, s]) == pytest.approx(light * alpha, abs=1e-12)
            light *= 1 - alpha
    assert (weights >= 0).all() and (weights.sum(-1) <= 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_opaque_sample_renders_exactly_itself(dtype):
    sigma, values = torch.zeros(1, S, dtype=dtype), uniform(1, S, 4).to(dtype)
    delta = uniform(1, S, seed=1).to(dtype) + 0.1
    sigma[0, 2], sigma[0, 4] = 1e10, 5.0                                 # nothing before it, something behind
    weights = geometry.rendering_weights(sigma, delta)
    assert weights[0].tolist() == [0, 0, 1, 0, 0]
    assert torch.equal(geometry.render(weights, values)[0], values[0, 2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 1e-20, 1e10])
def test_weights_and_gradients_are_finite_at_the_extremes(dtype, value):
    for delta in (torch.full((1, S), length, dtype=dtype) for length in (0.1, 1.0)):
        sigma = torch.full((1, S), value, dtype=dtype, requires_grad=True)
        weights = geometry.rendering_weights(sigma, delta)
        (weights * torch.arange(1, S + 1)).sum().backward()
        assert torch.isfinite(weights).all() and torch.isfinite(sigma.grad).all()
        assert (weights >= 0).all() and float(weights.detach().sum()) <= 1 + 1e-6
        if value != 1e-20:
            assert weights[0].tolist() == [float(value == 1e10), 0, 0, 0, 0]


def test_rendering_is_the_weighted_sum_of_the_samples():
    weights, values = uniform(R, S), normal(R, S, 4)
    pixel = geometry.render(weights, values)
    assert pixel.shape == (R, 4)
    for r, k in product(range(R), range(4)):
        expected = sum(float(weights[r, s] * values[r, s, k]) for s in range(S))
        assert float(pixel[r, k]) == pytest.approx(expected)
