"""09_semantic_nerf.py: the encoding is its formula, semantics see no direction, rendering is the integral,
and it learns a scene."""
import inspect
import json
import math
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from importlib import import_module
from itertools import product

import pytest
import torch
from conftest import REPO

from support import machine
from support.files import DataError

data, training = import_module("01_data"), import_module("07_train")
nerf = import_module("09_semantic_nerf")
SMALL = replace(nerf.Config(**nerf.PRESETS["smoke"]), hidden=16, coarse=6, fine=5)


@pytest.fixture
def scene(box_folder, tmp_path):
    return data.Scene(box_folder, 48, 64, tmp_path)


def model_of(config=SMALL):
    torch.manual_seed(0)
    return nerf.SemanticNeRF(config, torch.tensor([1.0, 2.0, 0.5]), 6.0)


def test_positional_encoding_equals_its_formula():
    x = torch.tensor([[0.3, -1.2, 0.7], [2.0, 0.0, -0.4]], dtype=torch.float64)
    encoded = nerf.positional_encoding(x, 4)
    assert encoded.shape == (2, 3 + 6 * 4)
    for i in range(2):
        expected = x[i].tolist()
        for octave in range(4):
            for f in (math.sin, math.cos):
                expected += [f(2 ** octave * p) for p in x[i].tolist()]
        torch.testing.assert_close(encoded[i], torch.tensor(expected, dtype=torch.float64))


def test_the_encoding_begins_with_the_position_itself():
    x = torch.tensor([0.3, -1.2, 0.7])
    assert torch.equal(nerf.positional_encoding(x, 2)[:3], x)


def test_each_octave_is_twice_as_fast_as_the_one_before():
    encoded = nerf.positional_encoding(torch.tensor([0.1, 0.2, 0.3]), 4)[3:].view(4, 6)  # sin, cos of three
    angle = torch.atan2(encoded[:, 0], encoded[:, 3])
    torch.testing.assert_close(angle, 0.1 * torch.tensor([1.0, 2, 4, 8]))


def test_the_sines_of_an_octave_come_before_its_cosines():
    encoded = nerf.positional_encoding(torch.zeros(3), 2)[3:]
    assert encoded.tolist() == [0, 0, 0, 1, 1, 1] * 2


def test_density_and_semantics_do_not_see_the_direction_and_colour_does():
    field = model_of().fine
    points, a, b = torch.rand(3, 5, 3), torch.eye(3), torch.eye(3).roll(1, 0)
    (sigma, colour, logits), (sigma2, colour2, logits2) = field(points, a), field(points, b)
    assert sigma.shape == (3, 5) and colour.shape == (3, 5, 3) and logits.shape == (3, 5, 20)
    assert torch.equal(sigma, sigma2) and torch.equal(logits, logits2)
    assert (colour - colour2).abs().min() > 0
    assert (sigma >= 0).all() and (colour > 0).all() and (colour < 1).all()


def test_the_paper_size_is_nerfs_eight_layers_of_256_with_a_skip_into_the_fifth():
    field = nerf.Field(nerf.Config())
    sizes = [(layer.in_features, layer.out_features) for layer in field.layers]
    assert sizes == [(63, 256)] + [(256, 256)] * 3 + [(319, 256)] + [(256, 256)] * 3
    assert field.colour[0].in_features == 256 + 27 and field.colour[0].out_features == 128


def test_rendering_equals_a_loop_over_samples():
    model = model_of()
    origins, directions = torch.rand(2, 3), torch.tensor([[0.1, 0.2, 1.0], [0.0, -0.5, 1.0]])
    out = model.rays(origins, directions)["fine"]
    z = out["z"]
    assert z.shape == (2, 11) and (z.diff(dim=1) >= 0).all()      # coarse and fine together, in order
    for r in range(2):
        length, through, colour, logits = directions[r].norm(), 1.0, torch.zeros(3), torch.zeros(20)
        for s in range(11):
            x = (origins[r] + z[r, s] * directions[r] - model.centre) / model.scale
            sigma, c, scores = (y[0, 0] for y in model.fine(x.view(1, 1, 3), (directions[r] / length)[None]))
            delta = (z[r, s + 1] if s < 10 else torch.tensor(SMALL.far)) - z[r, s]
            alpha = 1 - torch.exp(-sigma * delta * length)
            colour, logits = colour + through * alpha * c, logits + through * alpha * scores
            through = through * (1 - alpha)
        torch.testing.assert_close(out["colour"][r], colour, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(out["logits"][r], logits, atol=1e-5, rtol=1e-4)


def test_training_rays_are_the_pixels_with_their_colours_and_labels(scene):
    views = scene.views([2, 9])
    origins, directions, colours, labels = nerf.training_rays(views)
    assert len(origins) == len(labels) == 2 * 48 * 64
    for n, row, column in product(range(2), (0, 17, 47), (0, 30, 63)):
        i = n * 48 * 64 + row * 64 + column
        point = (origins[i] + 2.5 * directions[i])[None]
        pixels, depth = data.project(point, views.K[n:n + 1], views.c2w[n:n + 1])
        torch.testing.assert_close(pixels[0, 0], torch.tensor([column, row]).float(), atol=1e-3, rtol=0)
        assert float(depth) == pytest.approx(2.5, abs=1e-4)
        assert torch.equal(colours[i], views.images[n, :, row, column])
        assert labels[i] == views.labels[n, row, column]


def test_an_image_is_rendered_like_s_rays_and_in_chunks():
    ours, s_rays = nerf.SemanticNeRF.render_image, training.SRay.render_image
    assert inspect.signature(ours) == inspect.signature(s_rays)
    model, K, c2w = model_of(), torch.tensor([[8.0, 0, 5], [0, 9, 4], [0, 0, 1]]), torch.eye(4)
    whole, chunks, part = (model.render_image(None, K, c2w, 7, 9, *how) for how in ((), (5,), (0, 3)))
    pixel = model(None, torch.tensor([[6.0, 3.0]]), K, c2w)["fine"]           # column 6, row 3
    for key, x in whole.items():
        torch.testing.assert_close(chunks[key], x)
        torch.testing.assert_close(part[key], x[::3, ::3])
        torch.testing.assert_close(pixel[key][0], x[3, 6])


@pytest.mark.slow
def test_it_learns_the_views_it_is_trained_on(tmp_path):
    rooms = import_module("00_rooms")
    name, = rooms.make_rooms(tmp_path, [0], frames=24, width=64, height=48, workers=1)
    views = data.Scene(tmp_path / name, 48, 64, tmp_path).views([8, 10, 12])
    config = replace(SMALL, layers=6, hidden=64, coarse=24, fine=16, rays=256, steps=150, lr=5e-3,
                     lr_final=5e-3)
    model = nerf.new_model(views, config)
    colour0, right0 = error_of(model, views)
    nerf.train(model, views, torch.optim.Adam(model.parameters()), 0, 150)
    colour, right = error_of(model, views)
    assert colour < 0.25 * colour0 and right > max(0.5, right0 + 0.2), (colour0, right0, colour, right)


def error_of(model, views):
    """Mean squared colour error and the share of right labels on a training view."""
    with torch.no_grad():
        out = model.render_image(None, views.K[0], views.c2w[0], 48, 64)
    known = views.labels[0] >= 0
    return (float((out["colour"] - views.images[0].permute(1, 2, 0)).square().mean()),
            float((out["logits"].argmax(-1) == views.labels[0])[known].float().mean()))


def test_training_goes_on_exactly_where_it_stopped(scene):
    views, config = scene.views([8, 10]), replace(SMALL, steps=6)
    whole, parts = nerf.new_model(views, config), nerf.new_model(views, config)
    before = {key: x.clone() for key, x in whole.state_dict().items()}
    nerf.train(whole, views, torch.optim.Adam(whole.parameters()), 0, 6)
    optimiser = torch.optim.Adam(parts.parameters())
    nerf.train(parts, views, optimiser, 0, 4)
    nerf.train(parts, views, optimiser, 4, 6)
    last = config.lr * (config.lr_final / config.lr) ** (5 / 6)
    assert optimiser.param_groups[0]["lr"] == pytest.approx(last)
    for key, x in whole.state_dict().items():
        assert torch.equal(x, parts.state_dict()[key])
        assert key in ("centre", "scale") or not torch.equal(x, before[key]), key


def test_a_checkpoint_gives_its_model_back_also_one_that_named_the_machine(tmp_path):
    model = model_of()
    old = asdict(SMALL) | {"chunk": 512, "keep": 0, "device": "auto", "workers": 0}       # until 603a4e8
    torch.save({"model": model.state_dict(), "config": old, "step": 3}, tmp_path / "nerf.pt")
    loaded = nerf.load(tmp_path / "nerf.pt")
    assert loaded.config == SMALL and torch.equal(loaded.centre, model.centre)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters()))
    (tmp_path / "torn.pt").write_bytes((tmp_path / "nerf.pt").read_bytes()[:1000])
    with pytest.raises(DataError, match="torn.pt: not a Semantic-NeRF"):
        nerf.load(tmp_path / "torn.pt")


@pytest.mark.slow
def test_the_script_trains_on_16_views_evaluates_on_4_and_writes_metrics(box_folder, tmp_path):
    command = [sys.executable, str(REPO / "09_semantic_nerf.py"), "--scene", str(box_folder),
               "--preset", "smoke"]

    def run(*flags) -> subprocess.CompletedProcess:
        return subprocess.run([*command, *flags], cwd=tmp_path, capture_output=True, text=True)
    done = run("--out", "run", "--evaluate-at", "5,10")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert [h["steps"] for h in metrics["history"]] == [5, 10, 20]
    assert metrics["history"][-1]["psnr"] == metrics["psnr"] > 3
    assert metrics["steps"] == 20 and len(metrics["images"]) == 4
    assert "trained on 16 views" in done.stdout and (tmp_path / "run" / f"{box_folder.name}.png").exists()
    assert " mIoU, " in done.stdout and " s of training" in done.stdout
    assert nerf.load(tmp_path / "run/checkpoint.pt").config == nerf.Config(**nerf.PRESETS["smoke"])
    again = run("--out", "run")
    assert again.returncode == 2 and "holds a run already" in again.stderr


@pytest.mark.parametrize("flag", [["--rays", "0"], ["--steps", "0"], ["--chunk", "-1"]])
def test_what_cannot_be_trained_is_refused(box_folder, monkeypatch, flag):
    monkeypatch.setattr(sys, "argv", ["09_semantic_nerf.py", "--scene", str(box_folder), *flag])
    with pytest.raises(DataError, match=f"{' '.join(flag)}: must be at least"):
        nerf.main()


@pytest.mark.slow
def test_a_scene_without_labels_is_trained_and_evaluated_by_colour(box_copy, tmp_path, monkeypatch, capsys):
    """Its photographs without a border, for a change."""
    shutil.rmtree(box_copy / "label-filt")
    trained, new = [], nerf.new_model
    monkeypatch.setattr(nerf, "new_model", lambda views, config: trained.append(views) or new(views, config))
    monkeypatch.setattr(machine, "prepare_cpu", lambda: None)                 # it would stay for other tests
    monkeypatch.setattr(sys, "argv", ["09_semantic_nerf.py", "--scene", str(box_copy), "--preset", "smoke",
                                      "--steps", "2", "--out", str(tmp_path / "run"), "--lambda1", "0",
                                      "--crop", "5"])
    nerf.main()
    assert "step 2: " in capsys.readouterr().out
    assert json.loads((tmp_path / "run/metrics.json").read_text())["miou"] is None
    H, W = trained[0].images.shape[-2:]
    cropped = data.Scene(box_copy, H, W, tmp_path / "cache", crop=5)
    views = cropped.views(sorted(sum(data.protocol(cropped)[:2], [])))
    assert torch.equal(trained[0].images, views.images) and torch.equal(trained[0].K, views.K)
