"""05_weighting.py: the weights are the exact projection onto C(tau), over the valid views alone."""
from importlib import import_module
from itertools import product

import pytest
import torch

weighting, training = import_module("05_weighting"), import_module("07_train")
R, S, V, C = 2, 5, 6, 32
TAUS = [0.05, 0.3, 0.7, 0.95, 1.0]


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def first(m):
    """A mask (V,) of m valid views, not the first m: spread."""
    mask = torch.zeros(V, dtype=torch.bool)
    mask[[4, 1, 5, 0, 3, 2][:m]] = True
    return mask


def by_bisection(scores, tau):
    """Projection of scores (m,) onto C(tau): the multiplier of the sum, found by halving 200 times, in plain
    Python."""
    m = len(scores)
    low, high = tau / m, 1 / (tau * m)

    def clamped(shift):
        return [min(max(x - shift, low), high) for x in scores]
    a, b = min(scores) - high - 1, max(scores) - low + 1
    for _ in range(200):
        a, b = ((a + b) / 2, b) if sum(clamped((a + b) / 2)) > 1 else (a, (a + b) / 2)
    return torch.tensor(clamped((a + b) / 2), dtype=torch.float64)


# (kinds, V): plain, a distribution, ties, all the same, all 0, one against the rest, large, negative
SCORES = torch.stack([
    uniform(V), uniform(V, seed=1) / uniform(V, seed=1).sum(),
    torch.tensor([2.0, 5, 2, 5, 2, 5]).double() / 10,
    torch.ones(V).double() / 3, torch.zeros(V).double(), torch.tensor([0.0, 1, 0, 0, 0, 0]).double(),
    1e4 * uniform(V, seed=2), -3 * uniform(V, seed=3)])


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("m", range(1, V + 1))
def test_the_projection_sums_to_one_within_the_bounds_and_is_zero_where_masked(tau, m):
    mask = first(m).expand_as(SCORES)
    w = weighting.project_onto_C(SCORES, mask, tau)
    torch.testing.assert_close(w.sum(-1), torch.ones(len(SCORES)).double(), rtol=0, atol=1e-9)
    assert (w[~mask] == 0).all()
    assert (w[mask] >= tau / m - 1e-12).all() and (w[mask] <= 1 / (tau * m) + 1e-12).all()


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("m", range(1, V + 1))
def test_the_projection_equals_a_brute_force_solver(tau, m):
    mask = first(m)
    found = weighting.project_onto_C(SCORES, mask.expand_as(SCORES), tau)
    for w, scores in zip(found, SCORES):
        torch.testing.assert_close(w[mask], by_bisection(scores[mask].tolist(), tau), rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_a_batch_of_many_rays_with_different_masks_equals_the_solver_one_by_one(dtype, atol):
    scores, mask = uniform(R, S, V).to(dtype), uniform(R, S, V, seed=1) < 0.6
    mask[..., 2] = True
    found = weighting.project_onto_C(scores, mask, 0.6)
    for r, s in product(range(R), range(S)):
        expected = by_bisection(scores[r, s, mask[r, s]].tolist(), 0.6)
        torch.testing.assert_close(found[r, s, mask[r, s]].double(), expected, rtol=0, atol=atol)


def test_no_feasible_point_is_nearer_than_the_projection():
    scores, tau = 2 * uniform(V) - 0.5, 0.4
    low, high = tau / V, 1 / (tau * V)
    w = weighting.project_onto_C(scores, torch.ones(V, dtype=torch.bool), tau)
    points = torch.distributions.Dirichlet(torch.ones(V).double()).sample((50_000,))
    points = torch.cat([points, 0.9 * w + 0.1 * points])                               # far and near
    points = points[((points >= low) & (points <= high)).all(-1)]
    assert len(points) > 1000
    assert ((points - scores).square().sum(-1) >= (w - scores).square().sum() - 1e-12).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("m", range(1, V + 1))
def test_tau_one_is_the_mean_to_the_bit(dtype, m):
    scores, mask = uniform(40, V).to(dtype), first(m).expand(40, V)
    for w in (weighting.project_onto_C(scores, mask, 1.0), weighting.view_weights(scores, mask, 1.0)):
        assert (w[mask] == torch.ones((), dtype=dtype) / m).all() and (w[~mask] == 0).all()


def test_a_point_of_the_set_stays_where_it_is():
    for tau in TAUS:
        mask = torch.stack([first(m) for m in range(1, V + 1)])
        w = weighting.project_onto_C(uniform(V, V), mask, tau)
        torch.testing.assert_close(weighting.project_onto_C(w, mask, tau), w, rtol=0, atol=1e-12)


def smooth(m, mask, tau):
    """Eight score vectors whose projection does not change its set of bound views within 1e-4 of them."""
    def bound(x):
        w = by_bisection(x[mask].tolist(), tau)
        return ((w < tau / m + 1e-9) | (w > 1 / (tau * m) - 1e-9)).tolist()
    candidates = 0.8 * uniform(60, V, seed=m)
    steps = 1e-4 * torch.cat([torch.eye(V), -torch.eye(V)]).double()
    kept = [x for x in candidates if all(bound(x + step) == bound(x) for step in steps)]
    return torch.stack(kept[:8])


@pytest.mark.parametrize("m", range(1, V + 1))
def test_the_gradient_equals_finite_differences_away_from_kinks(m):
    tau, mask = 0.5, first(m)
    scores = smooth(m, mask, tau)
    assert len(scores) == 8

    def project(x):
        return weighting.project_onto_C(x, mask.expand_as(x), tau)
    assert torch.autograd.gradcheck(project, scores.requires_grad_())


def test_views_inside_the_bounds_get_a_gradient_and_views_on_a_bound_get_none():
    scores = torch.tensor([0.9, 0.3, 0.28, 0.26, 0.25, -0.6]).double().requires_grad_()
    w = weighting.project_onto_C(scores, torch.ones(V, dtype=torch.bool), 0.7)
    (w * uniform(V)).sum().backward()
    pinned = (w <= 0.7 / V + 1e-9) | (w >= 1 / (0.7 * V) - 1e-9)
    assert pinned.tolist() == [True, False, False, False, False, True]
    assert torch.equal(scores.grad == 0, pinned)


def test_no_valid_view_gives_zero_weights_and_a_finite_gradient():
    scores = uniform(3, V).requires_grad_()
    mask = torch.zeros(3, V, dtype=torch.bool)
    mask[1] = True
    w = weighting.view_weights(scores, mask, 0.7)
    assert (w[[0, 2]] == 0).all() and float(w[1].detach().sum()) == pytest.approx(1)
    w.square().sum().backward()
    assert torch.isfinite(scores.grad).all() and (scores.grad[[0, 2]] == 0).all()


@pytest.mark.parametrize("tau", [0.0, -0.5, 1.0001, float("nan")])
def test_tau_outside_its_range_is_refused(tau):
    with pytest.raises(ValueError, match="tau"):
        weighting.project_onto_C(uniform(2, V), torch.ones(2, V, dtype=torch.bool), tau)


# ------------------------------------------------------------------------------------- scores to semantic ray

def test_view_weights_project_the_scores_divided_by_their_valid_sum():
    scores, mask = uniform(R, S, V), uniform(R, S, V, seed=1) < 0.6
    mask[..., 2] = True
    w = weighting.view_weights(scores, mask, 0.7)
    for r, s in product(range(R), range(S)):
        valid = scores[r, s, mask[r, s]]
        expected = by_bisection((valid / sum(valid.tolist())).tolist(), 0.7)
        torch.testing.assert_close(w[r, s, mask[r, s]], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("value", [0.0, 1e-30, 1.0])
def test_scores_at_the_ends_of_the_sigmoid_give_the_mean(value):
    for dtype in (torch.float32, torch.float64):
        w = weighting.view_weights(torch.full((2, V), value, dtype=dtype), first(4).expand(2, V), 0.7)
        torch.testing.assert_close(w, (first(4) / 4).to(dtype).expand(2, V))


def network():
    torch.manual_seed(0)
    return weighting.WeightNetwork().double()


INPUTS = uniform(R, S, V, C, seed=5) * 6 - 3, uniform(R, S, V, 4, seed=6), uniform(R, S, V, 1, seed=7)


def test_masking_a_view_equals_removing_it():
    mask = uniform(R, S, V, seed=1) < 0.6
    mask[..., 1] = False
    rest = [0, 2, 3, 4, 5]
    masked = network()(*INPUTS, mask)
    removed = network()(*(x[:, :, rest] for x in INPUTS), mask[:, :, rest])
    torch.testing.assert_close(masked[..., rest], removed)
    assert (masked[..., 1] == 0).all()
    torch.testing.assert_close(masked.sum(-1), mask.any(-1).double())


def test_permuting_views_permutes_the_weights():
    mask, order = uniform(R, S, V, seed=1) < 0.8, [3, 0, 5, 1, 2, 4]
    w = network()(*INPUTS, mask)
    torch.testing.assert_close(network()(*(x[:, :, order] for x in INPUTS), mask[..., order]), w[..., order])
    assert (w - w[..., order]).abs().max() > 0.01


def elu(x):
    return torch.where(x > 0, x, x.exp() - 1)


def test_the_weight_network_is_table_10_with_37_inputs():
    net = network()
    linear = [layer for layer in net.L2 if isinstance(layer, torch.nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(37, 16), (16, 8), (8, 1)]
    inputs = [x.clone().requires_grad_() for x in INPUTS]
    (net(*inputs, torch.ones(R, S, V, dtype=torch.bool)) * uniform(R, S, V)).sum().backward()
    for x in inputs:                                                          # all 37 count
        assert (x.grad.flatten(0, 2).abs().sum(0) > 0).all()
    linear[2].weight.data *= 20                                            # so that views differ, bounds bind
    w = net(*INPUTS, torch.ones(R, S, V, dtype=torch.bool)).detach()
    for r, s in product(range(R), range(S)):
        scores = []
        for v in range(V):
            x = torch.cat([x[r, s, v] for x in INPUTS])
            x = elu(linear[1].weight @ elu(linear[0].weight @ x + linear[0].bias) + linear[1].bias)
            scores.append((linear[2].weight @ x + linear[2].bias).sigmoid().item())
        expected = by_bisection([x / sum(scores) for x in scores], 0.7)       # Table 4's best, by default
        torch.testing.assert_close(w[r, s], expected, rtol=0, atol=1e-9)


def test_the_semantic_ray_is_the_weighted_sum_over_views():
    w, refined = uniform(R, S, V), uniform(R, S, V, C, seed=1)
    ray = weighting.semantic_ray(w, refined)
    assert ray.shape == (R, S, C)
    for r, s, c in product(range(R), range(S), range(C)):
        expected = sum(float(w[r, s, v] * refined[r, s, v, c]) for v in range(V))
        assert float(ray[r, s, c]) == pytest.approx(expected)


def test_the_class_builds_by_default_what_the_settings_default_to():
    assert weighting.WeightNetwork().tau == training.Config().tau == 0.7
