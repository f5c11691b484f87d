"""tools/geometry.py: the depth terms are what their formula says, the rest of the step is 07's, and with
lambda1 = 0 the same rays are rendered without labels."""
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import import_module

import pytest
import torch

from tools import geometry
from tools.variants import TrueDepth

data = import_module("01_data")
training = import_module("07_train")

# as many samples again in the fine level would hide a bin of the wrong level
CONFIG = training.Config(**{**training.PRESETS["smoke"], "lambda2": 7.0, "coarse": 7, "fine": 12})


@pytest.fixture(scope="module")
def scene(box_folder):
    return data.Scene(box_folder, 48, 64)


@pytest.fixture(scope="module")
def truth(scene):
    truth = TrueDepth()
    truth.add([scene])
    return truth


@pytest.fixture(scope="module")
def job(scene):
    """A model of random weights, encoded sources, a batch and its jitter."""
    torch.manual_seed(0)
    model = training.SRay(CONFIG)
    batch, = training.draw_batches([scene], [list(range(len(scene)))], CONFIG, 3)
    jitter = torch.rand(len(batch.pixels), CONFIG.coarse + CONFIG.fine)
    return model, model.encode(batch.sources), batch, jitter


def test_the_depth_terms_by_hand():
    z = torch.tensor([[1.0, 2.0, 3.0]]).repeat(4, 1)
    weights = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.5, 0.5], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    level = {"z": z, "weights": weights, "depth": torch.tensor([2.0, 2.5, 1.0, 2.0])}
    error, spread = geometry.depth_losses(level, torch.tensor([2.0, 2.25, 3.0, 0.0]), 1.0)
    assert torch.allclose(error, torch.tensor([0.0, 0.25 / 2.25, 2 / 3, 0.0]))
    # at the truth; 0.75 and 0.25 of a half each; two bins away; unknown
    near = [1.0, 0.5 * 0.75 + 0.5 * 0.25, 0.0]
    assert torch.allclose(spread, torch.tensor([-math.log(x + geometry.LEAST) for x in near] + [0.0]))


def test_without_labels_renders_what_the_model_renders(job):
    model, sources, batch, jitter = job
    target = batch.pixels, batch.K, batch.c2w, jitter
    whole, part = model(sources, *target), geometry.without_labels(model, sources, *target)
    assert whole.keys() == part.keys()
    for name, level in part.items():
        for key in ("z", "weights", "colour", "depth"):
            assert torch.equal(level[key], whole[name][key])


@pytest.mark.parametrize("lambda1", [0.0, 1.0])
def test_the_loss_is_eq_2_and_the_depth_terms(job, truth, scene, lambda1):
    model, sources, batch, jitter = job
    model.config = replace(CONFIG, lambda1=lambda1)
    rays = torch.arange(len(batch.pixels))
    loss, parts = geometry.batch_loss(truth, model, sources, batch, rays, jitter)
    theirs, own = training.batch_loss(model, sources, batch, rays, jitter)
    target = next(i for i in range(len(scene)) if torch.equal(scene.c2w[i], batch.c2w))
    u, v = batch.pixels.long().T
    depth, expected = scene.views([target]).depth[0, v, u], theirs
    known = depth > 0
    assert known.any()
    for level in model(sources, batch.pixels, batch.K, batch.c2w, jitter).values():
        expected = expected + ((level["depth"] - depth).abs() / depth)[known].mean()
        close = (1 - (level["z"] - depth[:, None]).abs() / (7.7 / CONFIG.coarse)).clamp(min=0)
        expected = expected - 0.1 * ((level["weights"] * close).sum(1) + 0.01).log()[known].mean()
    assert torch.allclose(loss, expected, rtol=1e-5) and torch.allclose(parts[1], own[1], rtol=1e-5)
    assert torch.allclose(parts[0] + 7 * parts[1], loss, rtol=1e-5) and parts[3] == loss


def test_pieces_sum_to_the_whole(job, truth):
    model, sources, batch, jitter = job
    model.config = CONFIG
    rays = torch.arange(len(batch.pixels))
    whole = geometry.batch_loss(truth, model, sources, batch, rays, jitter)[1]
    pieces = sum(geometry.batch_loss(truth, model, sources, batch, part, jitter)[1]
                 for part in rays.split(20))
    assert torch.allclose(whole, pieces, rtol=1e-5)


def run(*flags, status=0):
    command = [sys.executable, "-m", "tools.geometry", *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return done


def test_it_trains_and_leaves_attention_alone_where_labels_do_not_count(box_folder, tmp_path):
    """A run without labels, resumed, then another on top of it with labels."""
    flags = ["--scene", box_folder, "--preset", "smoke", "--source-loss", 0, "--cache", tmp_path / "cache"]
    first, second = tmp_path / "first", tmp_path / "second"
    run(*flags, "--lambda1", 0, "--lr", 1e-2, "--steps", 20, "--out", first)
    model, state = training.load_checkpoint(first / "checkpoint.pt")
    assert state["run"]["command"].startswith("python -m tools.geometry --scene ")
    torch.manual_seed(0)
    begun = training.SRay(model.config)
    moved = {name for name, x in begun.state_dict().items() if not torch.equal(x, model.state_dict()[name])}
    assert any(name.startswith("fine.geometry") for name in moved)
    assert not any(".cra." in name or ".weights." in name or ".head." in name for name in moved)
    rows = (first / "log.csv").read_text().splitlines()
    assert float(rows[-1].split(",")[1]) < float(rows[1].split(",")[1])      # the depth terms fall
    run("--resume", "--out", first, "--steps", 22)
    run(*flags, "--steps", 2, "--init", first / "checkpoint.pt", "--out", second)
    after, _ = training.load_checkpoint(second / "checkpoint.pt")
    assert not torch.equal(after.fine.head.weight, model.fine.head.weight)


def test_bad_input_ends_in_one_line(box_folder, tmp_path):
    done = run("--scene", box_folder, "--init", tmp_path / "none.pt", "--out", tmp_path / "run", status=2)
    assert "none.pt" in done.stderr.splitlines()[-1] and not (tmp_path / "run").exists()


def test_scenes_without_depth_are_refused(box_folder, tmp_path):
    shutil.copytree(box_folder, tmp_path / "bare", ignore=shutil.ignore_patterns("depth", "label-filt"))
    done = run("--scene", tmp_path / "bare", "--preset", "smoke", "--lambda1", 0,
               "--source-loss", 0, "--cache", tmp_path / "cache", "--out", tmp_path / "run", status=2)
    assert "no scene has depth" in done.stderr.splitlines()[-1] and not (tmp_path / "run").exists()


def test_torchrun_is_refused(box_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = run("--scene", box_folder, "--out", tmp_path / "run", status=2)
    assert "torchrun" in done.stderr.splitlines()[-1] and not (tmp_path / "run").exists()
