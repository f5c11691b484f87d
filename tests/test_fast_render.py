"""fast/render.py: whole images, against 07's render_image."""
import copy
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fast

data, geometry, training = (import_module(name) for name in ("01_data", "06_geometry_render", "07_train"))
WEIGHTS = Path(__file__).parents[1] / "weights" / "sray_rooms.pt"
H, W = 33, 42


@pytest.fixture(scope="module")
def shot(box_folder, tmp_path_factory):
    """The given weights, an encoded source set of the box and a target camera: model, sources, K, c2w."""
    model = training.load_checkpoint(WEIGHTS)[0].eval()
    model.config.coarse, model.config.fine = 8, 6
    views = data.Scene(box_folder, H, W, cache=tmp_path_factory.mktemp("cache")).views([0, 2, 4, 6, 8, 3])
    with torch.no_grad():
        return model, model.encode(views[:5]), views.K[5], views.c2w[5]


def renderer(model, how="auto", **options):
    """A renderer of a copy of the model."""
    args = SimpleNamespace(**{"fast": how, "keep": 0, "coarse_stride": 1, "workers": 1, **options})
    return fast.renderer(copy.deepcopy(model), args)


def close(ours, theirs):
    """Images of the two, pixel by pixel."""
    assert ours.keys() == theirs.keys()
    for key in theirs:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["auto", "true", "false"])
@pytest.mark.parametrize("chunk, stride", [(0, 1), (100, 1), (77, 3)])
def test_an_image_is_the_lessons_image(shot, how, chunk, stride):
    model, sources, K, c2w = shot
    plain = model.render_image(sources, K, c2w, H, W, chunk, stride)
    close(renderer(model, how).render_image(sources, K, c2w, H, W, chunk, stride), plain)


@pytest.fixture
def one_thread():
    """Each operation on one thread, for how many share a sum decides its last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_several_cores_give_the_same_bits(shot, one_thread):
    model, *camera = shot
    one, three = (renderer(model, workers=n).render_image(*camera, H, W, 100) for n in (1, 3))
    assert all(torch.equal(one[key], three[key]) for key in one)


@pytest.mark.parametrize("how", ["true", "false"])
def test_kept_samples_are_the_heaviest_and_colour_and_depth_stay(shot, how):
    model, sources, K, c2w = shot
    image = renderer(model, how, keep=2).render_image(sources, K, c2w, H, W)
    whole = model.render_image(sources, K, c2w, H, W)
    close({key: image[key] for key in ("colour", "depth")}, {key: whole[key] for key in ("colour", "depth")})
    with torch.no_grad():                     # one row, by hand
        pixels = data.pixel_grid(H, W)[:W]
        origin, directions = data.rays(pixels, K, c2w)
        z = model(sources, pixels, K, c2w, fine_only=True)["fine"]["z"]
        context, sigma, _ = model.fine.context_and_density(origin, directions, z, sources)
        delta = geometry.sample_lengths(z, model.config.far, directions.norm(dim=-1))
        weights = geometry.rendering_weights(sigma, delta)
        logits = model.fine.semantics(context)[0]
        for r in range(W):
            best = weights[r].argsort(descending=True)[:2]
            expected = sum(weights[r, s] * logits[r, s] for s in best)
            torch.testing.assert_close(image["logits"][0, r], expected, rtol=1e-4, atol=1e-5)


def test_keeping_all_samples_keeps_the_image(shot):
    model, *camera = shot
    close(renderer(model, keep=6).render_image(*camera, H, W), model.render_image(*camera, H, W))


def test_a_coarse_stride_leaves_the_pixels_of_its_grid_and_comes_near_at_the_others(shot):
    model, *camera = shot
    whole = model.render_image(*camera, H, W)
    image = renderer(model, coarse_stride=4).render_image(*camera, H, W)
    torch.testing.assert_close(image["depth"][::4, ::4], whole["depth"][::4, ::4], rtol=1e-3, atol=1e-3)
    between = (image["depth"] / whole["depth"] - 1).abs()
    assert 1e-4 < float(between.mean()) < 0.1


def test_a_scene_with_its_own_near_and_far_is_rendered_alike(shot):
    model, sources, K, c2w = shot
    sources = sources._replace(near_far=torch.tensor([[0.5, 5.0]] * 5))
    close(renderer(model).render_image(sources, K, c2w, H, W), model.render_image(sources, K, c2w, H, W))
