"""07_train.py: the assembled model, its losses, a training step, the loop, and what a checkpoint holds."""
import math
from argparse import Namespace
from dataclasses import fields, replace
from importlib import import_module
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fast.step import StepOnCores
from support import augment, runs
from support.files import DataError

data, training = import_module("01_data"), import_module("07_train")
cra, encoder, geometry = (import_module(name) for name in ("04_cra", "02_encoder", "06_geometry_render"))
ROOT = Path(__file__).parents[1]
SMALL = training.Config(height=48, width=64, views=3, rays=32, coarse=6, fine=5, steps=20)
MODES = ["none", "intra", "cross", "full", "dense"]
NEAR = {"atol": 1e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def scene(box_folder, tmp_path_factory):
    return data.Scene(box_folder, 48, 64, cache=tmp_path_factory.mktemp("cache"))


def make_model(config=SMALL):
    torch.manual_seed(1)
    return training.SRay(config).eval()


def turned_away(views, index):
    """The same views, view `index` looking away from everything: from far outside, outwards."""
    c2w = views.c2w.clone()
    c2w[index] = torch.eye(4)
    c2w[index, 2, 3] = 50
    return replace(views, c2w=c2w)


def random_pixels(count=17):
    return torch.rand(count, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([63.0, 47.0])


def draw(scene, config=SMALL, step=0):
    """The first batch of a step, drawn from all frames of a scene."""
    return training.draw_batches([scene], [list(range(len(scene)))], config, step)[0]


# ---------------------------------------------------------------------------------------------- the settings

def test_the_settings_default_to_the_papers_values():
    config = training.Config()
    supplement = {
        "height": 240, "width": 320, "steps": 260_000,                        # section 1
        "views": 8,                                   # section 1, data split; section 2, training process
        "train_rooms": 60, "test_rooms": 10,                                  # section 1, data split
        "lambda1": 1, "lambda2": 1,                                           # section 1, below eq. 2
        "rays": 1024, "coarse": 64, "fine": 64,                               # Table 2: 1024 x 64 x 8 x 32
        "tau": 0.7,                                                           # Table 4
        "cra": "full", "cra_relu": True,                                      # Table 9
        "geometry_relu": True,                                                # Table 11, L9
        "source_loss": 0, "extra_views": 0, "colour_jitter": 0, "targets": 1,          # not in it
    }
    assert {name: getattr(config, name) for name in supplement} == supplement
    other = {"density": "softplus", "encoder_activation": "elu"}      # Table 11, L11: ReLU; Table 8: none
    assert {name: getattr(config, name) for name in other} == other
    assert config.places == config.coarse == config.fine                      # a sample's place is its index
    silent = {"pool", "angle_weight", "every", "near", "far", "typical", "places", "lr", "lr_final", "clip",
              "seed"}
    assert {f.name for f in fields(config)} == silent | supplement.keys() | other.keys()
    assert training.PRESETS["paper"] == {}
    assert training.REPLICA == {"height": 480, "width": 640, "steps": 100_000}            # section 1
    model = training.SRay(config)
    assert (encoder.CHANNELS, model.fine.cra.L4.heads, model.fine.geometry.L9.heads) == (32, 4, 4)
    assert training.SRay(replace(config, cra="dense")).fine.cra.dense.heads == 4


def test_the_settings_are_few_and_say_nothing_of_the_machine():
    names = {f.name for f in fields(training.Config)}
    assert len(names) <= 32 and all(f.metadata["help"] for f in fields(training.Config))
    assert not names & {"device", "workers", "piece", "chunk", "keep", "stride", "coarse_stride", "bf16",
                        "fast", "compile", "packed", "fused", "save_every", "keep_every", "validation"}


@pytest.mark.parametrize("preset", training.PRESETS)
def test_a_preset_names_settings_alone(preset):
    config = training.Config(**training.PRESETS[preset])
    assert config.rays >= config.targets and config.steps >= 1


@pytest.mark.parametrize("name, value, of", [
    ("geometry_relu", False, lambda model: [x.geometry.L9.relu for x in (model.coarse, model.fine)]),
    ("cra_relu", False, lambda model: [x.cra.L6.relu for x in (model.coarse, model.fine)]),
    ("density", "relu", lambda model: [x.geometry.density for x in (model.coarse, model.fine)]),
    ("cra", "intra", lambda model: [x.cra.mode for x in (model.coarse, model.fine)]),
    ("tau", 0.3, lambda model: [x.weights.tau for x in (model.coarse, model.fine)]),
    ("encoder_activation", "none", lambda model: [type(model.encoder.activation)] * 2)])
def test_a_setting_of_the_model_reaches_both_levels(name, value, of):
    default, changed = of(make_model()), of(make_model(replace(SMALL, **{name: value})))
    assert changed != default and changed[0] == changed[1] == {
        "density": F.relu, "encoder_activation": torch.nn.Identity}.get(name, value)


def test_the_learning_rate_warms_up_over_a_hundredth_and_falls_by_a_cosine():
    config = training.Config()
    rate = [training.learning_rate(config, step) for step in range(0, 260_000, 100)]
    assert training.learning_rate(config, 0) == pytest.approx(1e-3 / 2600)
    assert training.learning_rate(config, 1299) == pytest.approx(1e-3 / 2, rel=1e-3)
    assert training.learning_rate(config, 2600) == max(rate) == pytest.approx(1e-3, rel=1e-3)
    assert training.learning_rate(config, 130_000) == pytest.approx((1e-3 + 5e-5) / 2)
    assert training.learning_rate(config, 65_000) == pytest.approx(5e-5 + 9.5e-4 * (2 + math.sqrt(2)) / 4)
    assert training.learning_rate(config, 260_000) == pytest.approx(5e-5)
    assert rate[:27] == sorted(rate[:27]) and rate[26:] == sorted(rate[26:], reverse=True)


# ------------------------------------------------------------------------------------------------- one level

def level_at(model, views, target, z):
    """The fine level at depths z (R, S) along random pixels' rays -> sigma, colours, logits, view weights."""
    sources = model.encode(views)
    origin, directions = data.rays(random_pixels(len(z)), target.K, target.c2w)
    context, sigma, colours = model.fine.context_and_density(origin, directions, z, sources)
    return sigma, colours, *model.fine.semantics(context)


@pytest.mark.parametrize("settings", [{"cra": mode} for mode in MODES])
@torch.no_grad()
def test_masking_a_view_equals_removing_it_through_a_level_and_the_model(scene, settings):
    model = make_model(replace(SMALL, **settings))
    views, target = scene.views([5, 8, 16, 20]), scene.views([11])[0]
    blind, fewer, rest = turned_away(views, 2), views[[0, 1, 3]], [0, 1, 3]
    z = torch.linspace(0.3, 3, 5).expand(17, 5)
    with_it, without = level_at(model, blind, target, z), level_at(model, fewer, target, z)
    seen = without[3].sum(-1) > 0                                             # samples that some view has
    assert 0.5 < seen.float().mean() < 1 and with_it[3][..., 2].abs().max() == 0
    torch.testing.assert_close(with_it[0], without[0], **NEAR)
    torch.testing.assert_close(with_it[3][..., rest], without[3], **NEAR)
    for a, b in zip(with_it[1:3], without[1:3]):
        torch.testing.assert_close(a[seen], b[seen], **NEAR)
    with_it, without, all_four = (
        model(model.encode(x), random_pixels(), target.K, target.c2w)["fine"] for x in (blind, fewer, views))
    for key in ("colour", "logits", "depth"):
        torch.testing.assert_close(with_it[key], without[key], atol=1e-4, rtol=1e-4)
    assert (all_four["colour"] - without["colour"]).abs().max() > 1e-4        # when it sees, it does matter


@torch.no_grad()
def test_view_weights_density_and_colour_read_m_and_the_logits_read_what_attention_makes_of_it(scene):
    model, views, target = make_model(), scene.views([9, 10, 12]), scene.views([11])[0]
    z, found = torch.linspace(0.5, 3, 5).expand(17, 5), []
    for _ in range(2):
        found.append(level_at(model, views, target, z))
        for parameter in model.fine.cra.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    for i, same in enumerate((True, True, False, True)):                      # sigma, colour, logits, w
        assert torch.equal(found[0][i], found[1][i]) == same


@torch.no_grad()
def test_a_levels_logits_are_its_parts_one_after_the_other(scene):
    """The semantic ray by a loop over views, from the refined context and the weights of the initial one."""
    model, views, target = make_model(), scene.views([9, 10, 12]), scene.views([11])[0]
    level, sources, z = model.fine, model.encode(views), torch.linspace(0.5, 3, 5).expand(17, 5)
    origin, directions = data.rays(random_pixels(), target.K, target.c2w)
    points = torch.stack([torch.stack([origin + depth * d for depth in z[0]]) for d in directions])
    M, colours, differences, mask = level.reprojection(points, origin, *sources[:4])
    expected = level.geometry(M, colours, differences, mask)
    weights = level.weights(M, differences, expected.visibility, mask)
    refined = level.cra(M, mask)
    logits = level.head(sum(weights[:, :, v, None] * refined[:, :, v] for v in range(3)))
    found = level_at(model, views, target, z)
    for a, b in zip(found, (expected.sigma, expected.colour, logits, weights)):
        torch.testing.assert_close(a, b, **NEAR)


@torch.no_grad()
def test_both_attentions_along_the_ray_have_as_many_places_as_the_settings_say(scene):
    """Other places than a level's samples: other densities (Table 11, L9), other labels (Table 9, L2)."""
    views, target = scene.views([9, 10, 12]), scene.views([11])[0]
    z, found = torch.linspace(0.5, 3, 5).expand(17, 5), []
    for places in (5, 24):
        model = make_model(replace(SMALL, places=places))
        assert model.fine.geometry.places == model.coarse.cra.places == places
        found.append(level_at(model, views, target, z))
    for i, same in enumerate((False, True, False, True)):                     # sigma, colour, logits, w
        assert torch.equal(found[0][i], found[1][i]) == same


# ------------------------------------------------------------------------------------------------- the model

class Fog(torch.nn.Module):
    """A level of constant density, whose colours and logits are its samples' depths."""

    def context_and_density(self, origin, directions, z, sources, colour=True):
        return z, torch.full_like(z, 0.1), z[..., None].expand(*z.shape, 3) if colour else None

    def semantics(self, z):
        return 2 * z[..., None], torch.zeros(*z.shape, 3)


def test_a_level_is_rendered_along_the_ray_and_its_depth_is_a_mean_over_its_weights():
    """Density a metre of ray, not of z; what passes the last sample counts for neither colour nor depth."""
    model, R, S = make_model(), 3, 5
    z = torch.rand(R, S, generator=torch.Generator().manual_seed(0)).cumsum(1) + 0.5
    directions = torch.tensor([[0.0, 0, 1], [0.75, 0, 1], [1.2, -0.9, 1.5]])
    length = [1.0, 1.25, math.sqrt(1.2 ** 2 + 0.9 ** 2 + 1.5 ** 2)]
    sources = training.Sources(*[torch.zeros(1)] * 4)
    found = model.render_level(Fog(), torch.zeros(3), directions, z, sources)
    for r in range(R):
        light, weights = 1.0, []
        for s in range(S):
            end = float(z[r, s + 1]) if s + 1 < S else SMALL.far
            passes = math.exp(-0.1 * (end - float(z[r, s])) * length[r])
            weights.append(light * (1 - passes))
            light *= passes
        assert found["weights"][r].tolist() == pytest.approx(weights, abs=1e-6)
        total = sum(w * float(x) for w, x in zip(weights, z[r]))
        assert sum(weights) < 0.95
        assert float(found["depth"][r]) == pytest.approx(total / sum(weights), rel=1e-5)
        assert found["colour"][r].tolist() == pytest.approx([total] * 3, rel=1e-5)
        assert float(found["logits"][r, 0]) == pytest.approx(2 * total, rel=1e-5)


def test_no_valid_view_anywhere_gives_finite_output_and_zero_density(scene):
    model, views = make_model(), scene.views([9, 10, 12])
    for index in range(3):
        views = turned_away(views, index)
    target = scene.views([11])[0]
    out = model(model.encode(views), random_pixels(), target.K, target.c2w)["fine"]
    assert out["weights"].abs().max() == 0 and out["colour"].abs().max() == 0
    (out["logits"].sum() + out["colour"].sum() + out["depth"].sum()).backward()
    assert all(torch.isfinite(out[key]).all() for key in ("logits", "colour", "depth"))
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


@torch.no_grad()
def test_permuting_the_source_views_changes_no_pixel(scene):
    model, views, target = make_model(), scene.views([9, 10, 12]), scene.views([11])[0]
    a, b = (model(model.encode(x), random_pixels(), target.K, target.c2w)["fine"]
            for x in (views, views[[2, 0, 1]]))
    torch.testing.assert_close(a["logits"], b["logits"], **NEAR)
    torch.testing.assert_close(a["w"][..., [2, 0, 1]], b["w"], **NEAR)


@torch.no_grad()
def test_inference_needs_no_semantics_on_the_coarse_samples(scene, monkeypatch):
    model, views, target = make_model(), scene.views([9, 10, 12]), scene.views([11])[0]
    sources = model.encode(views)
    full = model(sources, random_pixels(), target.K, target.c2w)["fine"]
    for part in (model.coarse.cra, model.coarse.weights):
        monkeypatch.setattr(part, "forward", lambda *_: pytest.fail("semantics of the coarse samples"))
    light = model(sources, random_pixels(), target.K, target.c2w, fine_only=True)["fine"]
    for key in ("colour", "logits", "depth"):
        assert torch.equal(full[key], light[key])


@torch.no_grad()
def test_jitter_moves_the_coarse_samples_in_their_bins_and_the_fine_ones_in_their_strata(scene):
    model, views, target = make_model(), scene.views([9, 10, 12]), scene.views([11])[0]
    sources, jitter = model.encode(views), torch.rand(17, 11, generator=torch.Generator().manual_seed(0))
    out = model(sources, random_pixels(), target.K, target.c2w, jitter)
    edges = [0.3 + 7.7 * i / 6 for i in range(7)]
    for r, s in product(range(17), range(6)):
        expected = edges[s] + float(jitter[r, s]) * (edges[s + 1] - edges[s])
        assert float(out["coarse"]["z"][r, s]) == pytest.approx(expected, abs=1e-4)
    weights = out["coarse"]["weights"]
    expected = geometry.fine_samples(out["coarse"]["z"], weights, 5, jitter[:, 6:])
    torch.testing.assert_close(out["fine"]["z"], expected)
    assert (expected - geometry.fine_samples(out["coarse"]["z"], weights, 5, None)).abs().max() > 0.1
    fixed = model(sources, random_pixels(), target.K, target.c2w)
    middles = [(a + b) / 2 for a, b in zip(edges, edges[1:])]
    torch.testing.assert_close(fixed["coarse"]["z"][3], torch.tensor(middles))


@torch.no_grad()
def test_a_scene_in_another_unit_with_a_near_far_of_its_own_is_rendered_the_same(scene):
    """Everything seven times as large, in a file's unit: the same picture, depths seven times as far."""
    model, views, target = make_model(), scene.views([9, 10, 12]), scene.views([11])[0]
    c2w, there, pixels = views.c2w.clone(), target.c2w.clone(), random_pixels()
    c2w[:, :3, 3] *= 7
    there[:3, 3] *= 7
    larger = replace(views, c2w=c2w, near_far=torch.tensor([2.1, 56.0]).expand(3, 2))
    a = model(model.encode(views), pixels, target.K, target.c2w)["fine"]
    b = model(model.encode(larger), pixels, target.K, there)["fine"]
    for key, factor in (("colour", 1), ("logits", 1), ("weights", 1), ("depth", 7), ("z", 7)):
        torch.testing.assert_close(b[key], factor * a[key], atol=1e-3, rtol=1e-3)


def test_the_semantic_loss_alone_moves_the_density(scene):
    model, views, target = make_model(), scene.views([9, 10, 12]), scene.views([11])[0]
    out = model(model.encode(views), random_pixels(), target.K, target.c2w)
    training.losses(out, torch.zeros(17, 3), torch.full((17,), 3))[0].backward()
    for level in (model.coarse, model.fine):
        assert level.geometry.L11.weight.grad.abs().max() > 0


@torch.no_grad()
def test_an_image_is_its_rays_whatever_the_chunk_and_the_stride(scene):
    model, views, target = make_model(), scene.views([9, 10, 12]), scene.views([11])[0]
    sources = model.encode(views)
    whole = model.render_image(sources, target.K, target.c2w, 48, 64)
    assert {key: tuple(x.shape) for key, x in whole.items()} == {
        "colour": (48, 64, 3), "logits": (48, 64, 20), "depth": (48, 64)}
    one = model(sources, torch.tensor([[5.0, 7.0]]), target.K, target.c2w)["fine"]
    part = model.render_image(sources, target.K, target.c2w, 48, 64, chunk=1000)
    few = model.render_image(sources, target.K, target.c2w, 48, 64, chunk=100, stride=5)
    for key, image in whole.items():
        torch.testing.assert_close(image[7, 5], one[key][0], **NEAR)
        torch.testing.assert_close(image, part[key], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(image[::5, ::5], few[key], atol=1e-4, rtol=1e-4)


def test_another_level_is_used_where_one_is_given(scene):
    class Other(training.Level):
        """The same, and known by its class."""
    model = training.SRay(SMALL, level=Other)
    assert type(model.coarse) is type(model.fine) is Other
    assert type(make_model().coarse) is training.Level
    assert model.state_dict().keys() == make_model().state_dict().keys()


# ----------------------------------------------------------------------------------------------- checkpoints

def saved(path, model, **changes) -> Path:
    """A checkpoint of a model at path, some settings of its config changed, or absent where None."""
    optimiser, progress = torch.optim.Adam(model.parameters()), Namespace(seconds=lambda: 1.5)
    runs.save(path, model, optimiser, {"train": []}, progress, 0, 0, 7)
    state = torch.load(path / "checkpoint.pt", weights_only=True)
    state["config"] = {k: v for k, v in {**state["config"], **changes}.items() if v is not None}
    torch.save(state, path / "checkpoint.pt")
    return path / "checkpoint.pt"


@torch.no_grad()
def test_a_checkpoint_read_again_renders_the_same_image_to_the_bit(scene, tmp_path):
    model = make_model()
    loaded, state = training.load_checkpoint(saved(tmp_path, model))
    assert state["step"] == 7 and loaded.config == SMALL and state["run"]["seconds"] == 1.5
    assert state["config"].keys() == {f.name for f in fields(training.Config)}
    views, target = scene.views([9, 10, 12]), scene.views([11])[0]
    a, b = (m.render_image(m.encode(views), target.K, target.c2w, 12, 16) for m in (model, loaded.eval()))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]          # nothing temporary is left


def test_a_checkpoint_without_geometry_relu_was_made_without_that_relu(tmp_path):
    model, _ = training.load_checkpoint(saved(tmp_path, make_model(), geometry_relu=None))
    assert model.config.geometry_relu is False and not model.fine.geometry.L9.relu
    model, _ = training.load_checkpoint(saved(tmp_path, make_model()))
    assert model.config.geometry_relu is True and model.fine.geometry.L9.relu


def test_a_checkpoint_without_places_has_as_many_as_samples(tmp_path):
    small = replace(SMALL, coarse=5, fine=5)
    model, _ = training.load_checkpoint(saved(tmp_path, make_model(small), places=None, position="index"))
    assert model.config.places == model.fine.cra.places == model.fine.geometry.places == 5
    model, _ = training.load_checkpoint(saved(tmp_path, make_model(small), position="index"))
    assert model.config.places == 64                                          # what it says itself
    with pytest.raises(DataError, match="checkpoint.pt: .*6 . 5 samples, embedded by index: commit 603a4e8"):
        training.load_checkpoint(saved(tmp_path, make_model(), places=None, position="index"))


@pytest.mark.parametrize("name, now, then", [
    ("position", "index", "depth"), ("spacing", "linear", "mix"), ("union", False, True),
    ("pooling", "mean", "weighted"), ("use_delta", True, False)])
def test_a_checkpoint_made_with_an_option_that_is_gone_is_refused_by_its_name(tmp_path, name, now, then):
    with pytest.raises(DataError, match=f"checkpoint.pt: .*{name} = {then}"):
        training.load_checkpoint(saved(tmp_path, make_model(), **{name: then}))
    training.load_checkpoint(saved(tmp_path, make_model(), **{name: now}, keep=3, workers=2, bf16=True))


@pytest.mark.parametrize("name, value", [
    ("height", "48"), ("height", 10), ("height", 10 ** 6), ("near", float("nan")), ("near", 9.0), ("cra", 5),
    ("cra", "sparse"), ("tau", "0.7"), ("tau", 1.5), ("views", 3.5)])
def test_a_checkpoint_with_absurd_settings_is_refused(tmp_path, name, value):
    with pytest.raises(DataError, match=rf"checkpoint.pt: not a checkpoint .*{name}"):
        training.load_checkpoint(saved(tmp_path, make_model(), **{name: value}))


def test_a_checkpoint_of_another_shape_is_refused(tmp_path):
    with pytest.raises(DataError, match="checkpoint.pt: not a checkpoint of this model"):
        training.load_checkpoint(saved(tmp_path, make_model(replace(SMALL, cra="none")), cra="full"))
    with pytest.raises(DataError, match="no such checkpoint"):
        training.load_checkpoint(tmp_path / "nothing.pt")


def test_the_given_weights_load_with_the_settings_of_their_file():
    model, state = training.load_checkpoint(ROOT / "weights/sray_rooms.pt")
    assert model.config.geometry_relu is state["config"]["geometry_relu"] is True
    for name in ("height", "width", "views", "coarse", "fine", "tau", "cra", "lr", "extra_views", "seed"):
        assert getattr(model.config, name) == state["config"][name]
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, state["model"][name].float())


def test_the_same_seed_is_the_same_start_and_another_seed_another():
    starts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        starts.append(torch.cat([p.flatten() for p in training.SRay(SMALL).parameters()]))
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])


# ---------------------------------------------------------------------------------------------------- losses

def test_equation_1_against_a_hand_calculation():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [5.0, -5.0]])
    labels = torch.tensor([0, 0, data.IGNORE])
    by_hand = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2   # mean over the two labelled rays
    result = {"coarse": {"logits": logits, "colour": torch.zeros(3, 3)},
              "fine": {"logits": logits, "colour": torch.ones(3, 3)}}
    semantic, photometric = training.losses(result, torch.full((3, 3), 0.25), labels)
    assert semantic.item() == pytest.approx(2 * by_hand, rel=1e-6)
    assert photometric.item() == pytest.approx(0.25 ** 2 + 0.75 ** 2)


def test_the_mean_runs_over_the_labelled_rays_alone():
    labels = torch.tensor([0, data.IGNORE, data.IGNORE, data.IGNORE])
    assert training.cross_entropy(torch.zeros(4, 20), labels).item() == pytest.approx(math.log(20))


def test_both_levels_count_in_both_losses():
    labels, true = torch.tensor([0]), torch.zeros(1, 3)
    good = {"logits": torch.tensor([[50.0, 0.0]]), "colour": true}
    for level in ("coarse", "fine"):
        result = {"coarse": good, "fine": good} | {level: {"logits": torch.zeros(1, 2), "colour": true + 0.5}}
        semantic, photometric = training.losses(result, true, labels)
        assert semantic.item() == pytest.approx(math.log(2)) and photometric.item() == pytest.approx(0.25)


def test_unlabelled_pixels_are_ignored():
    logits, labels = torch.randn(6, 20), torch.tensor([3, data.IGNORE, 7, data.IGNORE, 0, 19])
    before = training.cross_entropy(logits, labels)
    logits[1, 5] += 100
    assert torch.equal(before, training.cross_entropy(logits, labels))


def test_a_batch_without_labels_has_a_finite_loss():
    logits = torch.randn(4, 20, requires_grad=True)
    loss = training.cross_entropy(logits, torch.full((4,), data.IGNORE))
    loss.backward()
    assert loss.item() == 0 and (logits.grad == 0).all()


@torch.no_grad()
def test_source_view_loss_reads_the_label_under_each_feature(scene):
    model = make_model()
    labels = torch.full((1, 48, 64), 4)
    labels[:, ::4, ::4] = 9  # pixel (4i, 4j) is feature (i, j)'s truth
    model.source_head.weight.zero_()
    model.source_head.bias.zero_()
    model.source_head.bias[9] = 50.0
    features = model.encode(scene.views([3])).features
    assert training.source_view_loss(model, features, labels).item() < 1e-6


# ------------------------------------------------------------------------------------------------ the draw

def test_a_batch_has_the_targets_own_pixels_colours_and_labels_and_other_views_as_sources(scene):
    labels = set()
    for step in range(20):
        batch = draw(scene, step=step)
        assert not any(torch.equal(batch.c2w, c2w) for c2w in batch.sources.c2w)
        index = [i for i in range(len(scene)) if torch.equal(scene.c2w[i], batch.c2w)][0]
        truth = scene.views([index])[0]
        u, v = batch.pixels.long().unbind(-1)
        assert torch.equal(truth.images[:, v, u].T, batch.colours)
        assert torch.equal(truth.labels[v, u], batch.labels)
        assert torch.equal(truth.K, batch.K) and len(batch.sources.K) == 3
        labels |= set(batch.labels.tolist())
    assert labels == {-1, 1, 8}                                               # what the camera meets
    again = draw(scene, step=19)
    assert torch.equal(again.pixels, batch.pixels) and torch.equal(again.c2w, batch.c2w)
    assert not torch.equal(draw(scene, replace(SMALL, seed=1), 19).pixels, batch.pixels)


def sources_of(scene, batch):
    """The indices of a batch's source views."""
    return {i for i, pose in enumerate(scene.c2w) if any(torch.equal(pose, x) for x in batch.sources.c2w)}


@pytest.mark.parametrize("weight", [0.0, 1.0, 20.0])
def test_sources_are_the_nearest_where_a_radian_counts_as_many_metres_as_angle_weight_says(scene, weight):
    config = replace(SMALL, pool=3, angle_weight=weight)
    others = replace(config, angle_weight=1 - weight)
    poses, different = scene.c2w.double(), 0
    for step in range(20):
        batch = draw(scene, config, step)
        distance = {}
        for i, pose in enumerate(poses):
            metres = math.dist(pose[:3, 3], batch.c2w[:3, 3])
            cosine = sum(float(a * b) for a, b in zip(pose[:3, 2], batch.c2w[:3, 2].double()))
            distance[i] = metres + weight * math.acos(min(1, max(-1, cosine)))
        target, *nearest = sorted(distance, key=distance.get)[:4]
        assert torch.equal(scene.c2w[target], batch.c2w)
        found = sources_of(scene, batch)
        assert found == set(nearest)
        different += found != sources_of(scene, draw(scene, others, step))
    assert different > 3                                                      # it does matter


def test_extra_views_are_of_other_scenes_while_there_are_any(scene, box_folder, tmp_path):
    """The other scene is black and has one class."""
    other = data.Scene(box_folder, 48, 64, tmp_path)
    other.decode = lambda frame: (np.zeros((48, 64, 3), np.uint8), np.full((48, 64), 5, np.int8),
                                  np.zeros((48, 64), np.uint16))
    everything = [list(range(len(scene)))] * 2
    for step in range(6):
        first, second = training.draw_batches([scene, other], everything, replace(SMALL, targets=2), step)
        assert {bool(first.colours.any()), bool(second.colours.any())} == {True, False}
        batch, = training.draw_batches([scene, other], everything, replace(SMALL, extra_views=1), step)
        assert batch.extra_images.shape == (1, 3, 48, 64) and batch.extra_labels.shape == (1, 48, 64)
        assert bool(batch.colours.any()) != bool(batch.extra_images.any())
        assert (batch.extra_labels == 5).all() == batch.colours.any()


def test_another_light_is_the_same_for_all_views_of_a_scene_and_within_its_factor(scene):
    """A grey of one half becomes g * 0.5 ** gamma in each channel, at every pixel of every source and of the
    target alike."""
    images = torch.full((3, 3, 4, 5), 0.5)
    assert augment.relight(images, 0.0, None) is images
    lit = torch.stack([augment.relight(images, 0.5, torch.Generator().manual_seed(i)) for i in range(200)])
    torch.testing.assert_close(lit, lit[:, :1, :, :1, :1].expand_as(lit))
    low, high = 0.5 ** 1.5 / 1.5, 0.5 ** (1 / 1.5) * 1.5
    assert low <= lit.min() < low + 0.1 and high - 0.1 < lit.max() <= high
    plain, lit = (draw(scene, replace(SMALL, colour_jitter=amount), 3) for amount in (0.0, 0.5))
    for channel in range(3):                                            # log lit = log gain + gamma log plain
        x, y = (batch.sources.images[:, channel].flatten() for batch in (plain, lit))
        target, target_lit = (batch.colours[:, channel] for batch in (plain, lit))
        inside, usable = (x > 0.02) & (y < 1), (target > 0.02) & (target_lit < 1)
        A = torch.stack([torch.ones_like(x), x.clamp(min=1e-3).log()], -1)[inside].double()
        gain, gamma = torch.linalg.lstsq(A, y[inside].log().double()[:, None]).solution[:, 0]
        assert 1 / 1.5 <= gamma <= 1.5 and 1 / 1.5 <= gain.exp() <= 1.5
        assert abs(gamma - 1) + gain.abs() > 1e-2
        expected = (gain.exp() * target[usable] ** gamma).float()
        torch.testing.assert_close(target_lit[usable], expected, atol=1e-3, rtol=0)


# ---------------------------------------------------------------------------------------------------- a step

def loss_in_one_graph(model, batch, generator):
    """Eq. 1, eq. 2 and the source-view loss as they are written: all rays and the encoder in one graph."""
    config = model.config
    features = model.encoder(torch.cat([batch.sources.images, batch.extra_images]))
    sources = training.Sources(features[:len(batch.sources.K)], batch.sources.images, batch.sources.K,
                               batch.sources.c2w)
    jitter = torch.rand(len(batch.pixels), config.coarse + config.fine, generator=generator)
    result = model(sources, batch.pixels, batch.K, batch.c2w, jitter)
    levels = result["coarse"], result["fine"]
    semantic = sum(F.cross_entropy(level["logits"], batch.labels, ignore_index=-1) for level in levels)
    photometric = sum((level["colour"] - batch.colours).square().mean() for level in levels)
    labels = torch.cat([batch.sources.labels, batch.extra_labels])[:, ::4, ::4]
    logits = model.source_head(features)
    source = F.cross_entropy(logits, labels, ignore_index=-1)
    return config.lambda1 * semantic + config.lambda2 * photometric + config.source_loss * source


MIXED = replace(SMALL, rays=29, source_loss=0.5, lambda1=0.3, lambda2=1.7)


def gradients_of(model):
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("piece", [0, 1, 7, 64])
def test_rays_in_pieces_give_the_loss_and_the_gradient_of_them_all(scene, piece):
    model, batch = make_model(MIXED), draw(scene, MIXED)
    batch.labels[:9] = -1  # pieces with few labelled rays, or none
    for _ in range(2):                                                    # a second time nothing is left over
        parts = training.training_step(model, [batch], 3, piece)
    loss = loss_in_one_graph(model, batch, training.generator_of(MIXED.seed + 1, 3))
    assert tuple(parts) == training.PARTS and parts["loss"] == pytest.approx(loss.item(), rel=1e-5)
    semantic, photometric, source, _ = parts.values()
    assert loss.item() == pytest.approx(0.3 * semantic + 1.7 * photometric + 0.5 * source, rel=1e-5)
    expected = torch.autograd.grad(loss, list(model.parameters()))
    for a, b in zip(gradients_of(model), expected, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("piece", [0, 5])
def test_a_step_of_several_targets_has_the_gradient_of_the_mean_of_their_losses(scene, piece):
    config = replace(MIXED, targets=3, extra_views=2)
    model = make_model(config)
    batches = training.draw_batches([scene], [list(range(len(scene)))], config, 0)
    assert [len(b.pixels) for b in batches] == [9, 9, 9] and all(len(b.extra_images) == 2 for b in batches)
    parts = training.training_step(model, batches, 5, piece)
    graphs = [loss_in_one_graph(model, b, training.generator_of(config.seed + 1 + i, 5))
              for i, b in enumerate(batches)]
    loss = sum(graphs) / 3
    assert parts["loss"] == pytest.approx(loss.item(), rel=1e-5)
    expected = torch.autograd.grad(loss, list(model.parameters()))
    for a, b in zip(gradients_of(model), expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("cut", [0, 11])
def test_the_shares_of_two_processes_sum_to_the_whole_step(scene, monkeypatch, cut):
    """One of them may have nothing of a target."""
    model, batches = make_model(MIXED), [draw(scene, MIXED), draw(scene, MIXED, 1)]
    whole, expected = training.training_step(model, batches, 3), gradients_of(model)
    parts, found = [], []
    for shares in ((slice(0, cut), slice(0, 29)), (slice(cut, 29), slice(29, 29))):
        monkeypatch.setattr(training.processes, "share", lambda R, T, i: shares[i])
        parts.append(training.training_step(model, batches, 3))
        found.append(gradients_of(model))
    for name in whole:
        assert parts[0][name] + parts[1][name] == pytest.approx(whole[name], rel=1e-5)
    for sum_of_both, a, b in zip(expected, *found, strict=True):
        torch.testing.assert_close(a + b, sum_of_both, atol=2e-5, rtol=1e-3)


def test_what_no_loss_reaches_has_no_gradient(scene):
    model = make_model()                                                    # no source loss: its head is idle
    training.training_step(model, [draw(scene)], 3)
    idle = [name for name, p in model.named_parameters() if p.grad is None]
    assert idle == ["source_head.weight", "source_head.bias"]
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_a_step_encodes_each_source_set_once(scene, monkeypatch):
    model, batches = make_model(MIXED), [draw(scene, MIXED), draw(scene, MIXED, 1)]
    counts = []
    model.encoder.register_forward_hook(lambda module, x, y: counts.append(len(x[0])))
    training.training_step(model, batches, 3, 4)
    assert counts == [3, 3]


def test_rays_without_labels_train_the_colours_alone(scene):
    model, batch = make_model(), draw(scene)
    batch.labels[:] = data.IGNORE
    parts = training.training_step(model, [batch], 0)
    assert parts["semantic"] == 0 and parts["loss"] == pytest.approx(parts["photometric"])
    for level in (model.coarse, model.fine):
        assert not level.head.weight.grad.any() and level.geometry.blend[0].weight.grad.any()


@pytest.mark.parametrize("take_step", [training.training_step, StepOnCores(training, 1)])
def test_the_fused_adam_of_main_moves_the_weights_as_the_plain_one_does(scene, take_step):
    """It reads a gradient's memory in order, whatever its strides say."""
    config, moved = replace(MIXED, extra_views=2), []
    for fused in (True, False):
        model = make_model(config)
        optimiser = torch.optim.Adam(model.parameters(), lr=0.1, fused=fused)
        take_step(model, [draw(scene, config)], 3)
        optimiser.step()
        moved.append([optimiser.state[p]["exp_avg"] for p in model.parameters()])
    for a, b in zip(*moved, strict=True):
        torch.testing.assert_close(a, b)


# -------------------------------------------------------------------------------------------------- the loop

class Watched(torch.optim.SGD):
    """SGD that notes its learning rates and how far a step moves the parameters; asks to stop in time."""

    def __init__(self, model, stop_after=10 ** 9):
        super().__init__(model.parameters(), lr=1.0)
        self.rates, self.moves, self.stop, self.stop_after = [], [], [], stop_after

    def step(self, closure=None):
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        before = [p.detach().clone() for p in parameters]
        super().step()
        self.rates.append(self.param_groups[0]["lr"])
        moved = [float((p - b).detach().square().sum()) for p, b in zip(parameters, before)]
        self.moves.append(math.sqrt(sum(moved)))
        self.stop += [1] * (len(self.rates) == self.stop_after)


def looped(scene, out, config, first_step=0, state=None, stop_after=10 ** 9, **flags):
    """train() with SGD on one scene -> the model and its optimiser."""
    model = make_model(config)
    optimiser = Watched(model, stop_after)
    if state:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
    args = Namespace(**{"save_every": 1000, "keep_every": 0, "piece": 0, **flags})
    run, frames = state["run"] if state else {"seconds": 0.0}, [list(range(len(scene)))]
    out.mkdir(exist_ok=True)
    training.train(model, optimiser, [scene], frames, out, run, first_step, args, optimiser.stop)
    return model, optimiser


def test_training_follows_the_learning_rate_and_clips_the_gradient(scene, tmp_path):
    config = replace(SMALL, rays=8, steps=6, lr=0.1, lr_final=0.01, clip=0.1)
    _, optimiser = looped(scene, tmp_path, config)
    assert optimiser.rates == [training.learning_rate(config, step) for step in range(6)]
    assert optimiser.rates[0] == 0.1 and optimiser.rates[5] < 0.02
    assert optimiser.moves == pytest.approx([0.1 * rate for rate in optimiser.rates], rel=1e-3)
    _, free = looped(scene, tmp_path / "free", replace(config, clip=1e9))
    assert all(move > 0.2 * rate for move, rate in zip(free.moves, free.rates))


@pytest.mark.slow
def test_a_training_that_is_stopped_and_resumed_ends_like_one_that_is_not(scene, tmp_path):
    config = replace(SMALL, rays=8, steps=9, lr=0.01)
    whole, _ = looped(scene, tmp_path / "whole", config, save_every=2, keep_every=4)
    names = ["checkpoint.pt", "checkpoint_4.pt", "checkpoint_8.pt", "log.csv"]
    assert sorted(p.name for p in (tmp_path / "whole").iterdir()) == names
    with pytest.raises(runs.Stopped) as stopped:
        looped(scene, tmp_path / "cut", config, stop_after=3)
    assert stopped.value.args == ("3 of 9",)
    _, state = training.load_checkpoint(tmp_path / "cut/checkpoint.pt")
    assert state["step"] == 3
    cut, optimiser = looped(scene, tmp_path / "cut", config, 3, state)
    assert len(optimiser.rates) == 6
    for a, b in zip(whole.parameters(), cut.parameters()):
        assert torch.equal(a, b)
    logs = [(tmp_path / name / "log.csv").read_text().split() for name in ("whole", "cut")]
    whole, cut = ([row.split(",")[:-1] for row in log] for log in logs)       # all but the seconds
    assert whole == cut and whole[0] == ["step", "semantic", "photometric"] and len(whole) == 2


def test_a_loss_that_is_no_number_ends_training_and_keeps_the_good_checkpoint(scene, tmp_path):
    config = replace(SMALL, rays=8, steps=9, lr=1e30, lr_final=1e30, clip=1e30)
    with pytest.raises(DataError, match=r"step 1: the loss is .*checkpoint.pt.*lower --lr"):
        looped(scene, tmp_path, config, save_every=1)
    assert training.load_checkpoint(tmp_path / "checkpoint.pt")[1]["step"] == 0


@pytest.mark.slow
def test_without_the_rays_losses_training_makes_a_2d_segmenter(scene):
    """Source-view loss alone: the encoder and its 1x1 head learn, what renders stays as it is."""
    config = replace(SMALL, lambda1=0.0, lambda2=0.0, source_loss=1.0, extra_views=3, rays=1)
    model = make_model(config).train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(40):
        training.training_step(model, training.draw_batches([scene], [[3, 7, 9, 11]], config, step), step)
        optimiser.step()
    views = scene.views([3, 7, 11])
    labels = views.labels[:, ::4, ::4]
    with torch.no_grad():
        right = (model.eval().source_head(model.encoder(views.images)).argmax(1) == labels)[labels >= 0]
    assert right.float().mean() > 0.8, right.float().mean()
    for name, p in model.named_parameters():
        if not name.startswith(("encoder.", "source_head.")):
            assert torch.equal(p, before[name])


@pytest.mark.slow
def test_a_model_can_overfit_one_view(scene):
    config = replace(SMALL, rays=128, coarse=12, fine=12, views=4)
    model = make_model(config).train()
    views, target = scene.views([9, 10, 12, 13]), scene.views([11])[0]
    truth, labels = target.images.flatten(1).T, target.labels.flatten()
    grid = data.pixel_grid(48, 64)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(100):
        pick = torch.randint(len(grid), (config.rays,), generator=torch.Generator().manual_seed(step))
        batch = training.Batch(views, target.K, target.c2w, grid[pick], truth[pick], labels[pick],
                               views.images[:0], views.labels[:0])
        training.training_step(model, [batch], step)
        optimiser.step()
    with torch.no_grad():
        out = model.render_image(model.encode(views), target.K, target.c2w, 48, 64)
    right = (out["logits"].argmax(-1).flatten() == labels)[labels >= 0].float().mean()
    error = (out["colour"].view(-1, 3) - truth).square().mean()
    assert right > 0.9, right
    assert -10 * torch.log10(error) > 20, error
