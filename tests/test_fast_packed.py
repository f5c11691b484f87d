"""fast/packed.py against 07's Level: values and gradients, with the same modules."""
import copy
from importlib import import_module
from pathlib import Path

import pytest
import torch

from fast.choice import packed

cra, training = import_module("04_cra"), import_module("07_train")
WEIGHTS = Path(__file__).parents[1] / "weights" / "sray_rooms.pt"
CONFIG = training.Config(coarse=7, fine=7)


def rays(R=6, S=7, V=4, near_far=None, seed=0):
    """Rays among V cameras, some of whose images they miss: origin, directions, z, sources; float64. The
    first ray is seen by nobody and the last camera looks away: there are empty rows and columns in the
    mask."""
    generator = torch.Generator().manual_seed(seed)
    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)
    c2w = torch.eye(4, dtype=torch.float64).repeat(V, 1, 1)
    c2w[:, :3, 3] = uniform(V, 3) - 0.5
    if V > 1:
        c2w[-1, 0, 0] = c2w[-1, 2, 2] = -1
    K = torch.tensor([[50.0, 0, 31], [0, 50, 23], [0, 0, 1]], dtype=torch.float64).repeat(V, 1, 1)
    directions = torch.cat([1.4 * uniform(R, 2) - 0.7, torch.ones(R, 1, dtype=torch.float64)], dim=1)
    directions[0] = torch.tensor([9.0, 9.0, 1.0])
    z = (0.4 + 5 * uniform(R, S)).sort(dim=1).values
    own = None if near_far is None else torch.tensor([near_far] * V, dtype=torch.float64)
    sources = training.Sources(uniform(V, 32, 12, 16) - 0.5, uniform(V, 3, 48, 64), K, c2w, own)
    return uniform(3) - 0.5, directions, z, sources


def outputs(level, origin, directions, z, sources, colour=True):
    """A level's outputs and the gradients of a random sum of them, for the features and the parameters."""
    features = sources.features.clone().requires_grad_()
    sources = sources._replace(features=features)
    context, sigma, colours = level.context_and_density(origin, directions, z, sources, colour)
    logits, w = level.semantics(context)
    found = [x for x in (sigma, colours, logits, w) if x is not None]
    generator = torch.Generator().manual_seed(1)
    loss = sum((x * torch.rand(x.shape, generator=generator, dtype=x.dtype)).sum() for x in found)
    inputs = [features, *level.parameters()]
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
    return found, [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, gradients)]


def assert_equal(level, *scene, **options):
    """The level and its packed form agree to 1e-9 in float64."""
    level = copy.deepcopy(level).double()
    values, gradients = outputs(level, *scene, **options)
    fast_values, fast_gradients = outputs(packed(level), *scene, **options)
    largest = max(float(g.abs().max()) for g in gradients)
    for ours, theirs in zip(fast_values, values, strict=True):
        assert float((ours - theirs).abs().max()) < 1e-9
    for ours, theirs in zip(fast_gradients, gradients, strict=True):
        assert float((ours - theirs).abs().max()) < 1e-9 * largest


@pytest.mark.parametrize("mode", cra.MODES)
@pytest.mark.parametrize("places", [7, 24])
def test_every_attention_and_places_give_the_lessons_values_and_gradients(mode, places):
    torch.manual_seed(0)
    config = training.Config(cra=mode, places=places, coarse=7, fine=7)
    assert_equal(training.Level(config, 6), *rays(near_far=(0.3, 6.0)))
    assert_equal(training.Level(config, 6), *rays())


@pytest.mark.parametrize("settings", [{"cra_relu": False,
                                       "geometry_relu": False}, {"density": "relu"}, {"tau": 1.0},
                                      {"tau": 0.2}])
def test_every_other_option_of_a_level_does_too(settings):
    torch.manual_seed(0)
    assert_equal(training.Level(training.Config(coarse=7, fine=7, **settings), 6), *rays())


@pytest.mark.parametrize("size", [{"V": 1}, {"S": 1}, {"R": 1}, {"V": 9,
                                                                 "S": 19}, {"V": 17,
                                                                            "S": 5}, {"R": 1,
                                                                                      "V": 1, "S": 1}])
def test_one_view_one_sample_and_long_sequences(size):
    torch.manual_seed(0)
    assert_equal(training.Level(CONFIG, 6), *rays(**size))


def test_a_mask_without_a_single_valid_token():
    torch.manual_seed(0)
    origin, directions, z, sources = rays()
    directions[:] = torch.tensor([9.0, 9.0, 1.0])
    assert_equal(training.Level(CONFIG, 6), origin, directions, z, sources)


def test_density_alone_is_the_same_and_brings_no_colour():
    torch.manual_seed(0)
    level, scene = training.Level(CONFIG, 6).double(), rays()
    _, sigma, _ = level.context_and_density(*scene)
    _, alone, colour = packed(level).context_and_density(*scene, colour=False)
    assert colour is None and float((alone - sigma).abs().max()) < 1e-12


@pytest.mark.parametrize("name", ["coarse", "fine"])
def test_trained_weights_give_the_same_in_float32(name):
    level = getattr(training.load_checkpoint(WEIGHTS)[0], name)
    origin, directions, z, sources = rays(R=20, S=24, V=8)
    sources = training.Sources(*(x if x is None else x.float() for x in sources))
    scene = origin.float(), directions.float(), z.float(), sources
    (values, _), (fast, _) = outputs(level, *scene), outputs(packed(level), *scene)
    for ours, theirs in zip(fast, values, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("mode", cra.MODES)
def test_kept_samples_get_the_logits_and_view_weights_that_all_would_give_them(mode):
    torch.manual_seed(0)
    level, scene = training.Level(training.Config(cra=mode, coarse=7, fine=7), 6).double(), rays()
    keep = torch.tensor([[0, 3], [1, 2], [5, 6], [0, 6], [2, 4], [3, 4]])     # (R, n), increasing
    with torch.no_grad():
        logits, w = level.semantics(level.context_and_density(*scene)[0])
        twin = packed(level)
        some, some_w = twin.semantics(twin.context_and_density(*scene)[0], keep)
    assert float((some - logits.take_along_dim(keep[:, :, None], 1)).abs().max()) < 1e-9
    assert float((some_w - w.take_along_dim(keep[:, :, None], 1)).abs().max()) < 1e-9


def test_source_masks_make_the_same_tokens_invalid():
    torch.manual_seed(0)
    origin, directions, z, sources = rays()
    masks = torch.ones(sources.images[:, 0].shape, dtype=torch.bool)
    masks[:, 10:30, 20:50] = False
    level = training.Level(CONFIG, 6)
    assert_equal(level, origin, directions, z, sources._replace(mask=masks))
    level = level.double()
    both = sources, sources._replace(mask=masks)
    sigma, masked = (level.context_and_density(origin, directions, z, s)[1] for s in both)
    assert not torch.equal(sigma, masked)
