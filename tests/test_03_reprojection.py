"""03_reprojection.py: what is looked up where, and which (sample, view) is valid."""
from importlib import import_module
from itertools import product
from math import floor

import pytest
import torch

reprojection = import_module("03_reprojection")
R, S, V, H, W = 2, 5, 3, 24, 32


def scene(seed=0):
    """Float64 points (R, S, 3) in front of V cameras that look along z, with features, images, K, c2w."""
    g = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=g, dtype=torch.float64)
    c2w = torch.eye(4, dtype=torch.float64).repeat(V, 1, 1)
    c2w[:, :3, 3] = rand(V, 3) - 0.5
    K = torch.tensor([[30.0, 0, 15], [0, 28, 12], [0, 0, 1]], dtype=torch.float64).repeat(V, 1, 1)
    K[:, 0, 0] += torch.arange(V)
    points = rand(R, S, 3) * torch.tensor([4.0, 3, 3]) + torch.tensor([-2.0, -1.5, 1])
    return points, rand(V, 32, H // 4, W // 4) - 0.5, rand(V, 3, H, W), K, c2w


ORIGIN = torch.tensor([0.1, -0.2, -0.3], dtype=torch.float64)


def reproject(points, features, images, K, c2w):
    torch.manual_seed(0)
    return reprojection.Reprojection().double()(points, ORIGIN, features, images, K, c2w)


def bilinear(map_, x, y):
    """map_ (C, h, w) between its cells at column x, row y; the border holds beyond it. A number at a time."""
    h, w = map_.shape[1:]
    x, y = min(max(x, 0.0), w - 1.0), min(max(y, 0.0), h - 1.0)
    i, j = min(floor(y), h - 2), min(floor(x), w - 2)
    a, b = y - i, x - j
    return ((1 - a) * (1 - b) * map_[:, i, j] + (1 - a) * b * map_[:, i, j + 1]
            + a * (1 - b) * map_[:, i + 1, j] + a * b * map_[:, i + 1, j + 1])


@pytest.mark.parametrize("stride", [1, 4])
def test_the_lookup_is_exact_at_pixel_centres(stride):
    h, w = 5, 7
    maps = torch.rand(V, 3, h, w, dtype=torch.float64)
    row, column = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    pixels = stride * torch.stack([column, row], -1).double()             # (h, w, 2): cell (i, j) at (4j, 4i)
    # rays and samples: rows and columns
    found = reprojection.lookup(maps, pixels[:, :, None].expand(h, w, V, 2), stride)
    torch.testing.assert_close(found, maps.permute(2, 3, 0, 1), rtol=0, atol=1e-12)


def test_the_lookup_equals_a_bilinear_loop_and_holds_the_border():
    maps = torch.rand(V, 4, 6, 8, dtype=torch.float64)
    pixels = torch.rand(R, S, V, 2, dtype=torch.float64) * 40 - 4          # also beyond the outermost centres
    found = reprojection.lookup(maps, pixels, 4)
    assert found.shape == (R, S, V, 4)
    for r, s, v in product(range(R), range(S), range(V)):
        x, y = (pixels[r, s, v] / 4).tolist()
        torch.testing.assert_close(found[r, s, v], bilinear(maps[v], x, y))


def test_a_lookup_reads_column_u_of_row_v():
    maps = torch.arange(12.0).view(1, 1, 3, 4)                                # 4 i + j in row i, column j
    assert reprojection.lookup(maps, torch.tensor([[[[2.0, 1.0]]]]), 1).item() == 6


def test_a_map_of_one_cell_is_that_cell_everywhere():
    single = torch.rand(V, 24, 1, 1, dtype=torch.float64)
    pixels = torch.rand(R, S, V, 2, dtype=torch.float64) * 40 - 4
    found = reprojection.lookup(single, pixels, 4)
    torch.testing.assert_close(found, single[:, :, 0, 0].expand(R, S, V, 24))


def test_the_gradient_of_a_lookup_is_finite_differences():
    maps = torch.rand(V, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    pixels = (torch.rand(R, S, V, 2, dtype=torch.float64) * 18 - 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda m, p: reprojection.lookup(m, p, 4), (maps, pixels))


def elu(x):
    return torch.where(x > 0, x, x.exp() - 1)


def test_context_equals_a_loop_over_rays_samples_and_views():
    points, features, images, K, c2w = scene()
    torch.manual_seed(0)
    module = reprojection.Reprojection().double()
    context = module(points, ORIGIN, features, images, K, c2w)
    first, second = module.L21[0], module.L21[2]
    assert (first.in_features, first.out_features, second.out_features) == (4, 16, 32)        # Table 8, L21
    for r, s, v in product(range(R), range(S), range(V)):
        x, y, z = c2w[v, :3, :3].T @ (points[r, s] - c2w[v, :3, 3])
        u, t = K[v, 0, 0] * x / z + K[v, 0, 2], K[v, 1, 1] * y / z + K[v, 1, 2]
        inside = bool(z > 1e-3 and -0.5 <= u <= W - 0.5 and -0.5 <= t <= H - 0.5)
        a, b = points[r, s] - c2w[v, :3, 3], points[r, s] - ORIGIN
        a, b = a / a.square().sum().sqrt(), b / b.square().sum().sqrt()
        difference = torch.stack([*(a - b), a[0] * b[0] + a[1] * b[1] + a[2] * b[2]])
        hidden = elu(first.weight @ difference + first.bias)
        M = bilinear(features[v], float(u) / 4, float(t) / 4) + elu(second.weight @ hidden + second.bias)
        assert bool(context.mask[r, s, v]) == inside
        torch.testing.assert_close(context.differences[r, s, v], difference)
        torch.testing.assert_close(context.M[r, s, v], M * inside)
        seen = bilinear(images[v], float(u), float(t)) * inside
        torch.testing.assert_close(context.colours[r, s, v], seen)
    assert 0.2 < context.mask.double().mean() < 0.9                           # the loop saw both kinds


def test_points_behind_a_camera_are_invalid_even_where_they_project_into_the_image():
    _, features, images, K, c2w = scene()
    ahead = torch.tensor([0.2, 0.1, 2.0], dtype=torch.float64)
    points = torch.stack([c2w[:, :3, 3] + ahead, c2w[:, :3, 3] - ahead])      # (2, V, 3): mirrored, one pixel
    context = reproject(points, features, images, K, c2w)
    for v in range(V):
        assert context.mask[0, v, v] and not context.mask[1, v, v]
    assert (context.M[~context.mask] == 0).all() and (context.colours[~context.mask] == 0).all()


@pytest.mark.parametrize("pixel, valid", [
    ((-0.4, 5), True), ((-0.6, 5), False), ((31.4, 5), True), ((31.6, 5), False),
    ((5, -0.4), True), ((5, -0.6), False), ((5, 23.4), True), ((5, 23.6), False)])
def test_an_image_ends_half_a_pixel_beyond_its_outermost_centres(pixel, valid):
    _, features, images, K, c2w = scene()
    for v in range(V):
        ray = torch.linalg.inv(K[v]) @ torch.tensor([*pixel, 1.0], dtype=torch.float64)
        point = c2w[v, :3, 3] + 2 * ray
        assert bool(reproject(point.view(1, 1, 3), features, images, K, c2w).mask[0, 0, v]) == valid


def test_points_at_a_camera_centre_or_at_infinity_give_finite_values_and_gradients():
    _, features, images, K, c2w = scene()
    features = features.requires_grad_()
    nowhere = torch.full((3,), 1e12, dtype=torch.float64)
    points = torch.stack([*c2w[:, :3, 3], ORIGIN, nowhere]).view(1, V + 2, 3)
    module = reprojection.Reprojection().double()
    context = module(points, ORIGIN, features, images, K, c2w)
    for x in (context.M, context.colours, context.differences):
        assert torch.isfinite(x).all()
    assert not any(context.mask[0, v, v] for v in range(V))                   # no camera sees its own centre
    context.M.square().sum().backward()
    assert torch.isfinite(features.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters())


def test_a_point_that_is_no_number_is_in_no_view_and_looked_up_at_a_pixel_that_is_one(monkeypatch):
    """After a step that was too large: grid_sample's gradient at nan is a segmentation fault."""
    points, *rest = scene()
    points[0, 1] = torch.nan
    pixels, lookup = [], reprojection.lookup
    monkeypatch.setattr(reprojection, "lookup", lambda maps, at, n: pixels.append(at) or lookup(maps, at, n))
    context = reproject(points, *rest)
    assert not context.mask[0, 1].any() and context.mask.any()
    assert len(pixels) == 2 and all(torch.isfinite(at).all() for at in pixels)


def test_direction_differences_of_a_right_angle_by_hand():
    point = torch.tensor([[[1.0, 0.0, 2.0]]])
    query, sources = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([[-3.0, 0.0, 2.0], [1.0, 0.0, -5.0]])
    found = reprojection.direction_differences(point, query, sources)
    expected = torch.tensor([[1.0, 0, -1, 0], [0, 0, 0, 1]])               # +x against +z; the same direction
    torch.testing.assert_close(found[0, 0], expected)


def test_the_difference_is_the_sources_direction_minus_the_querys_each_of_length_one():
    point, query = torch.tensor([[[0.0, 0.0, 4.0]]]), torch.zeros(3)          # far and near: lengths cancel
    found = reprojection.direction_differences(point, query, torch.tensor([[-7.0, 0.0, 4.0]]))
    assert found.flatten().tolist() == [1, 0, -1, 0]


def test_all_views_at_once_equal_one_view_at_a_time():
    points, features, images, K, c2w = scene(1)
    together = reproject(points, features, images, K, c2w)
    for v in range(V):
        alone = reproject(points, features[v:v + 1], images[v:v + 1], K[v:v + 1], c2w[v:v + 1])
        for a, b in zip(alone, together):
            torch.testing.assert_close(a[:, :, 0], b[:, :, v])
    assert together.mask.any()


def test_gradients_reach_the_features_of_valid_views_and_the_direction_mlp():
    points, features, images, K, c2w = scene()
    module = reprojection.Reprojection().double()
    context = module(points, ORIGIN, features.requires_grad_(), images, K, c2w)
    context.M.sum().backward()
    seen = context.mask.flatten(0, 1).any(0)
    assert torch.equal(features.grad.flatten(1).abs().sum(1) > 0, seen)
    assert all((p.grad != 0).any() for p in module.parameters())


def test_colour_false_leaves_the_colours_out_and_nothing_else():
    points, *rest = scene()
    module = reprojection.Reprojection().double()
    full, light = (module(points, ORIGIN, *rest, colour=colour) for colour in (True, False))
    assert light.colours is None and full.colours.shape == (R, S, V, 3)
    for name in ("M", "differences", "mask"):
        assert torch.equal(getattr(light, name), getattr(full, name))
