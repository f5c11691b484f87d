"""tools/attention.py and its neighbours: each row differs from full CRA in the one thing that it is named
after, the truth that a diagnostic is told is true, and the statistics are those of a textbook.
"""
import json
import math
import os
import signal
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import write_box_scene

from fast import choice
from support.files import DataError
from tools import attention, attention_table, beyond, experiments, variants
from tools.variants import ROWS, TrueDepth, Variant

data = import_module("01_data")
cra = import_module("04_cra")
geometry = import_module("06_geometry_render")
training = import_module("07_train")

R, S, V, C = 2, 5, 3, 32
CONFIG = training.Config(**{**training.PRESETS["smoke"], "views": V, "coarse": 4, "fine": S, "rays": 6})


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


def level_of(row: str, config=CONFIG, classes=20, **more):
    return ROWS[row][2](replace(config, cra=ROWS[row][1]), classes, **more)


@pytest.fixture
def tokens():
    torch.manual_seed(0)
    mask = torch.rand(R, S, V) < 0.7
    mask[0, 0], mask[1, :, 2] = False, False      # a sample, and a view along a ray, without any
    return torch.randn(R, S, V, C) * mask[..., None], mask


@pytest.fixture(scope="module")
def scene(box_folder):
    return data.Scene(box_folder, 48, 64)


@pytest.fixture(scope="module")
def sources(scene):
    """Encoded source views by a model of random weights, and a target."""
    torch.manual_seed(0)
    model = training.SRay(CONFIG)
    with torch.no_grad():
        return model.encode(scene.views([4, 7, 9])), scene.views([6])[0]


# ----------------------------------------------------------------------------------------------- the controls

def test_the_mlp_has_the_parameters_of_full_attention_within_two_percent():
    full, mlp = count(level_of("full").cra), count(level_of("mlp").cra)
    assert full == 8576 and 0 < abs(full - mlp) < 0.02 * full
    assert count(level_of("none").cra) == 0 and count(level_of("uniform").cra) == full


def test_the_mlp_mixes_no_tokens(tokens):
    M, mask = tokens
    mlp, full = level_of("mlp").cra, level_of("full").cra
    moved, other = M.clone(), mask.clone()
    moved[1, 2, 1] += 1.0
    other[1, 3] = ~other[1, 3]                                    # nor does it matter what may be read
    changed = (mlp(moved, other) - mlp(M, mask)).abs().amax(-1) > 0
    assert changed.nonzero().tolist() == [[1, 2, 1]]
    assert ((full(moved, mask) - full(M, mask)).abs().amax(-1) > 0).sum() > 1


def test_the_mlp_knows_the_position_as_attention_does():
    M, mask = torch.ones(1, S, V, C), torch.ones(1, S, V, dtype=torch.bool)
    out = level_of("mlp").cra(M, mask)
    assert (out[:, 1:] - out[:, :1]).abs().amax() > 0.01 and torch.equal(out[:, :, 0], out[:, :, 1])


def test_uniform_scores_are_full_attention_whose_queries_and_keys_are_zero(tokens):
    uniform, full = level_of("uniform").cra, level_of("full").cra
    full.load_state_dict(uniform.state_dict())
    assert not torch.allclose(uniform(*tokens), full(*tokens), atol=1e-3)
    for layer in (full.L4, full.L6):
        for part in (layer.query, layer.key):
            torch.nn.init.zeros_(part.weight)
            torch.nn.init.zeros_(part.bias)
    assert torch.allclose(uniform(*tokens), full(*tokens), atol=1e-5)


@pytest.mark.parametrize("row", [row for row in ROWS if row != "average"])
def test_the_fast_form_of_a_row_has_its_values_and_gradients(row):
    torch.manual_seed(0)
    model = variants.build(Variant(row), CONFIG, data.SCANNET).double()
    assert choice.same_level(model, choice.packed)


def test_what_a_fast_form_would_not_see_runs_plain():
    model = variants.build(Variant("full"), CONFIG, data.SCANNET)
    for level in (model.coarse, model.fine):
        level.cra.L4.attend = level.cra.L6.attend = variants.mean_of_keys    # probe's
    assert not choice.same_level(model.double(), choice.packed)
    for variant in (Variant("average"), Variant("full", "moments")):
        torch.manual_seed(0)
        assert not choice.same_level(variants.build(variant, CONFIG, data.SCANNET).double(), choice.packed)


@pytest.mark.parametrize("row", ["none", "full", "dense"])
def test_a_row_without_control_is_the_lessons_level(row, sources):
    found, target = sources
    plain, ours = training.Level(replace(CONFIG, cra=ROWS[row][1]), 20), level_of(row)
    ours.load_state_dict(plain.state_dict())
    z = torch.linspace(0.5, 4, S).expand(R, S)
    rays = *data.rays(torch.tensor([[20.0, 30], [40, 10]]), target.K, target.c2w), z, found
    for a, b in zip(plain.semantics(plain.context_and_density(*rays)[0]),
                    ours.semantics(ours.context_and_density(*rays)[0])):
        assert torch.equal(a, b)


def test_the_2d_average_is_that_of_the_encoders_own_head(sources):
    found, target = sources
    model = variants.build(Variant("average"), CONFIG, data.SCANNET)
    z = torch.linspace(0.5, 4, S).expand(R, S)
    origin, directions = data.rays(torch.tensor([[20.0, 30], [40, 10]]), target.K, target.c2w)
    context, _, _ = model.fine.context_and_density(origin, directions, z, found)
    logits, _ = model.fine.semantics(context)
    points = origin + z[..., None] * directions[:, None]
    seen = context[2].any(-1)                     # where no view is valid, neither has meaning
    expected = beyond.average_2d(model.source_head(found.features), points, found)
    assert seen.sum() > 4 and torch.allclose(logits[seen], expected[seen], atol=1e-5)
    assert "fine.source_head" not in " ".join(model.state_dict())


def test_rows_of_one_seed_begin_alike_but_for_their_attention():
    first = variants.initial(Variant("none"), CONFIG, data.SCANNET, None, {}).state_dict()
    for variant in (Variant("mlp"), Variant("dense"), Variant("full", "moments"), Variant("average")):
        model = variants.initial(variant, CONFIG, data.SCANNET, None, {}).state_dict()
        assert all(torch.equal(model[name], first[name]) for name in first)
    other = variants.initial(Variant("none"), replace(CONFIG, seed=1), data.SCANNET, None, {}).state_dict()
    assert not torch.equal(other["fine.head.weight"], first["fine.head.weight"])


@pytest.mark.parametrize("variant", [Variant(row) for row in ROWS] + [
    Variant("mlp", "moments"), Variant("full", "visibility"), Variant("mlp", true_depth=True)])
def test_the_lessons_step_trains_every_part_that_is_used(variant, scene):
    truth = TrueDepth()
    truth.add([scene])
    model = variants.build(variant, CONFIG, data.SCANNET, truth)
    batches = training.draw_batches([scene], [list(range(20))], replace(CONFIG, extra_views=0), 0)
    assert math.isfinite(training.training_step(model, batches, 0)["loss"])
    idle = {name for name, p in model.named_parameters() if p.grad is None}
    expected = {"uniform": ("query", "key"), "average": ("weights.", "fine.head", "coarse.head")}
    assert all(any(part in name for part in expected.get(variant.row, ())) for name in idle)
    assert bool(idle) == (variant.row in expected)


# -------------------------------------------------------------------------------------------- the diagnostics

def test_what_is_joined_begins_without_effect_and_is_the_moments_over_valid_views(sources):
    found, target = sources
    plain, joined = level_of("mlp"), level_of("mlp", join="moments")
    joined.load_state_dict(plain.state_dict(), strict=False)
    z = torch.linspace(0.5, 4, S).expand(R, S)
    rays = *data.rays(torch.tensor([[20.0, 30], [40, 10]]), target.K, target.c2w), z, found
    context = joined.context_and_density(*rays)[0]
    M, _, mask, _, beside = context
    logits = plain.semantics(plain.context_and_density(*rays)[0])[0]
    seen = mask.any(-1)
    assert torch.allclose(joined.semantics(context)[0][seen], logits[seen], atol=1e-5)
    for r, s in seen.nonzero().tolist():
        views = M[r, s][mask[r, s]]                               # (valid, C)
        moments = torch.cat([views.mean(0), views.var(0, unbiased=False)])
        assert torch.allclose(beside[r, s], moments.expand(V, -1), atol=1e-5)


def views_of(box, frames):
    """Cameras of the box and their exact depth maps."""
    poses = torch.tensor(np.array([box.camera(i) for i in frames]), dtype=torch.float32)
    K = torch.tensor(box.K, dtype=torch.float32).expand(len(frames), 3, 3)
    depth = [box.photograph(box.K, box.camera(i), *box.size)[1] for i in frames]
    return K, poses, torch.tensor(np.array(depth), dtype=torch.float32)


def test_a_view_sees_a_wall_of_the_empty_box_wherever_it_has_it_in_its_image(box):
    K, c2w, depth = views_of(box, [4, 6, 9])
    pixels = data.pixel_grid(*box.size)
    points = data.unproject(pixels, depth[1].flatten(), K[1], c2w[1])
    uv, z = data.project(points, K, c2w)
    inside = (z > 0) & (uv > -0.4).all(-1) & (uv[..., 0] < 63.4) & (uv[..., 1] < 47.4)
    seen = variants.sees(points, K, c2w, depth)
    assert inside[:, 0].any() and seen[inside].float().mean() > 0.99
    assert not seen[(z <= 0) | (uv < -0.6).any(-1)].any()
    assert not variants.sees(torch.zeros(1, 3), K, c2w, depth).any()      # the middle of the room is empty


def test_a_view_does_not_see_what_a_known_occluder_hides(box):
    K, c2w, depth = views_of(box, [4, 6, 9])
    points = data.unproject(data.pixel_grid(*box.size), depth[1].flatten(), K[1], c2w[1])
    before, uv = variants.sees(points, K, c2w, depth), data.project(points, K, c2w)[0]
    depth[0, :, :32] = 0.4                                        # a screen before the left half of view 0
    depth[2, :24] = 0                                             # view 2 does not know the depth up there
    after = variants.sees(points, K, c2w, depth)
    left, top = uv[:, 0, 0].round() < 32, uv[:, 2, 1].round() < 24
    assert before[left, 0].any() and not after[left, 0].any()
    assert torch.equal(after[~left, 0], before[~left, 0]) and torch.equal(after[:, 1], before[:, 1])
    assert before[top, 2].any() and not after[top, 2].any() and torch.equal(after[~top, 2], before[~top, 2])


def test_a_depth_map_is_found_by_its_cameras_pose(scene):
    truth = TrueDepth()
    truth.add([scene])
    for i in (3, 8):
        assert torch.equal(truth.of(scene.views([i]).c2w[0]), scene.views([i]).depth[0])
    with pytest.raises(DataError, match="same pose"):
        truth.add([SimpleNamespace(c2w=scene.c2w, folder="another")])


def test_true_depth_places_the_fine_samples_at_the_surface(scene, sources):
    found, target = sources
    truth = TrueDepth()
    truth.add([scene])
    model = variants.build(Variant("none", true_depth=True), CONFIG, data.SCANNET, truth)
    pixels = data.pixel_grid(48, 64)[::301]
    z = model(found, pixels, target.K, target.c2w)["fine"]["z"]
    surface = target.depth.flatten()[::301]
    known = surface > 0
    assert known.any() and (z[:, 1:] > z[:, :-1]).all()
    assert torch.allclose(z[known].mean(1), surface[known], rtol=1e-4)
    assert ((z[known] / surface[known, None] - 1).abs() < 0.02).all()


# ------------------------------------------------------------------------------------------- Figure 1, anew

def test_rank_agreement_counts_pairs_and_halves_ties():
    torch.manual_seed(0)
    score, truth = torch.randint(5, (40,)).float(), torch.rand(40) < 0.4
    won = [1.0 if a > b else 0.5 if a == b else 0.0 for a in score[truth] for b in score[~truth]]
    assert variants.rank_agreement(score, truth) == pytest.approx(100 * sum(won) / len(won))
    assert math.isnan(variants.rank_agreement(score, torch.ones(40, dtype=torch.bool)))


def test_attention_received_is_one_where_attention_is_uniform_and_is_what_valid_readers_give(tokens):
    M, mask = tokens
    level = level_of("full")
    context = M, None, mask, None
    intra, cross = (x.detach() for x in level.cra.maps(M, mask))
    along, across = variants.attention_received(level, context)
    for r, s, v in mask.nonzero().tolist():
        of_samples = [intra[r, v, :, t, s].mean().item() for t in range(S) if mask[r, t, v]]
        of_views = [cross[r, s, :, u, v].mean().item() for u in range(V) if mask[r, s, u]]
        assert along[r, s, v].item() == pytest.approx(sum(of_samples), rel=1e-4)
        assert across[r, s, v].item() == pytest.approx(sum(of_views), rel=1e-4)
    for layer in (level.cra.L4, level.cra.L6):
        torch.nn.init.zeros_(layer.query.weight)
        torch.nn.init.zeros_(layer.query.bias)
    for received in variants.attention_received(level, context):
        assert torch.allclose(received[mask], torch.ones(int(mask.sum())), atol=1e-5)


def test_tokens_are_seen_or_hidden_as_the_views_true_depths_say(scene, sources):
    found, target = sources
    model = variants.build(Variant("full"), CONFIG, data.SCANNET).eval()
    depths, pixels = scene.views([4, 7, 9]).depth, data.pixel_grid(48, 64)[::97]
    tokens = variants.looked_at(model, found, depths, target, pixels)
    assert tokens["seen"].float().mean() > 0.5 and not tokens["hidden"].any()  # the box is empty
    assert 0 < tokens["near"].float().mean() < 1 and not tokens["contested"].any()
    depths[0] = 0.3                                               # a screen right before the first view
    after = variants.looked_at(model, found, depths, target, pixels)
    assert after["hidden"].any() and not (after["hidden"] & after["seen"]).any()
    assert not (after["hidden"] & ~tokens["seen"] & tokens["contested"]).any() and after["contested"].any()
    assert torch.equal(tokens["seen"] & ~after["seen"], tokens["seen"] & after["hidden"])
    assert all(torch.equal(tokens[x], after[x]) for x in ("near", "intra-view attention"))


def test_looking_has_attention_and_both_baselines(scene):
    model = variants.build(Variant("full"), CONFIG, data.SCANNET)
    found = variants.looking(model, scene, V, rays=60)
    assert {"intra-view attention", "cross-view attention", "baseline: sample index",
            "baseline: rendering weight"} < set(found)
    assert all(0 <= one["surface"] <= 100 for one in found.values())
    with pytest.raises(DataError, match="full"):
        variants.looking(variants.build(Variant("none"), CONFIG, data.SCANNET), scene, V)


# ------------------------------------------------------------------------------------------------- statistics

def test_t_quantiles_are_the_tables():
    for n, t in experiments.STUDENT.items():
        assert attention_table.t_quantile(0.975, n - 1) == pytest.approx(t, abs=0.006)
    assert attention_table.t_quantile(0.8, 14) == pytest.approx(0.868, abs=0.0006)      # printed tables
    assert attention_table.t_quantile(0.975, 29) == pytest.approx(2.045, abs=0.0006)


def test_paired_differences_are_those_of_a_hand_computation():
    control = {("a", 0): 50.0, ("b", 0): 60.0, ("a", 1): 52.0, ("b", 1): 58.0, ("b", 2): 1.0}
    row = {("a", 0): 51.0, ("b", 0): 63.0, ("a", 1): 54.0, ("b", 1): 64.0, ("c", 1): 9.0}
    found = attention_table.paired(row, control)                  # 1, 3, 2, 6: mean 3, deviation sqrt(14 / 3)
    assert (found.count, found.mean, found.seeds) == (4, 3.0, 2)
    assert found.deviation == pytest.approx(math.sqrt(14 / 3))
    assert found.half == pytest.approx(3.182 * math.sqrt(14 / 3) / 2, rel=1e-3)
    assert found.half_of_seeds == pytest.approx(12.706 * math.sqrt(2) / math.sqrt(2), rel=1e-3)   # 2 and 4
    assert attention_table.paired(row, {("z", 0): 1.0}) is None


def test_the_smallest_difference_is_found_in_four_of_five_experiments():
    least = attention_table.smallest(2.0, 15)
    assert least == pytest.approx((2.145 + 0.868) * 2 / math.sqrt(15), rel=1e-3)
    torch.manual_seed(0)
    drawn = least + 2 * torch.randn(4000, 15)
    found = drawn.mean(1) / drawn.std(1) * math.sqrt(15) > 2.145
    assert 0.76 < found.float().mean() < 0.84


def test_null_deviation_is_that_of_two_seeds_in_one_room():
    torch.manual_seed(0)
    drawn = 3 * torch.randn(400, 3) + 100 * torch.rand(400, 1)    # rooms differ, which does not count
    scores = {(f"room{i}", seed): float(drawn[i, seed]) for i in range(400) for seed in range(3)}
    assert attention_table.null_deviation(scores) == pytest.approx(3 * math.sqrt(2), rel=0.06)
    assert math.isnan(attention_table.null_deviation({("a", 0): 1.0}))


def write_run(folder, kind, row, seed, rooms, **more):
    run = dict(row=row, join="", true_depth=False, tau=0.7, seed=seed, train_seconds=1,
               settings={"steps": 5, "cra": row, "seed": seed}) | more
    metrics = {room: dict(miou=miou, total_acc=90.0) for room, miou in rooms.items()}
    (folder / f"{kind}-{row}{''.join(map(str, more.values()))}-seed{seed}.json").write_text(
        json.dumps(run | {"rooms": metrics}))


def test_runs_of_other_settings_do_not_share_a_table(tmp_path):
    write_run(tmp_path, "generalise", "full", 0, {"a": 50.0})
    write_run(tmp_path, "finetune", "full", 0, {"a": 50.0})
    later = tmp_path / "generalise-none-seed0.json"
    write_run(tmp_path, "generalise", "none", 0, {"a": 50.0})
    assert len(attention_table.read_results(tmp_path).runs) == 3
    later.write_text(later.read_text().replace('"steps": 5', '"steps": 5, "places": 24'))
    with pytest.raises(DataError, match="generalise-none-seed0.json: other settings than in"):
        attention_table.read_results(tmp_path)


def test_the_table_pairs_each_row_with_the_control_of_its_own_diagnostic(tmp_path, capsys):
    for seed in range(2):
        write_run(tmp_path, "generalise", "mlp", seed, {"a": 50.0 + seed, "b": 60.0})
        write_run(tmp_path, "generalise", "full", seed, {"a": 52.0 + seed, "b": 61.0})
        write_run(tmp_path, "generalise", "mlp", seed, {"a": 70.0, "b": 70.0}, join="visibility")
        write_run(tmp_path, "generalise", "full", seed, {"a": 69.0, "b": 70.0}, join="visibility")
    write_run(tmp_path, "finetune", "full", 5, {"a": 80.0})
    write_run(tmp_path, "finetune", "full", 5, {"a": 77.0}, tau=1.0)
    attention_table.table(tmp_path)
    rows = {line.split(" | ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "| 56.75 ± 0.35 | 90.00 ± 0.00 | +1.50 [" in rows["| full CRA"] and "4 pairs" in rows["| full CRA"]
    assert "-0.50 against mlp+visibility [" in rows["| full CRA+visibility"]
    assert "control" in rows["| none + MLP"] and "| 8,512 |" in rows["| none + MLP"]
    assert "-3.00 against full [" in rows["| full CRA-tau_1"] and "one seed |" in rows["| full CRA-tau_1"]
    assert ", 2 seeds |" in rows["| full CRA"]
    assert "| 4,288 | not run | not run | - |" in rows["| dense attention"]
    said = attention_table.power(tmp_path, {"generalise": 30})["generalise"]
    assert said["smallest difference"] == pytest.approx(attention_table.smallest(0.5 ** 0.5, 30))
    assert said["full"]["pairs"] == 4
    with pytest.raises(DataError, match="two seeds"):
        attention_table.power(tmp_path / "nothing", {"generalise": 30})


# ------------------------------------------------------------------------------------------------ whole runs

@pytest.fixture(scope="module")
def root_of_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rooms")
    for name in ("scene0001_00", "scene0002_00"):
        write_box_scene(folder / name)
    return folder


def arguments(root, tmp_path):
    folders = {name: str(tmp_path / name) for name in ("cache", "runs", "out")}
    return Namespace(size="smoke", seed=0, steps=4, scene=str(root), data=None, rooms=None, preview=1,
                     checkpoint=None, **folders)


@pytest.mark.slow
def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(root_of_two, tmp_path, monkeypatch):
    args, variant = arguments(root_of_two, tmp_path), Variant("mlp")
    config, flags = attention.config_of(args, variant), attention.scene_flags(args)
    whole, _, _ = attention.trained(args, "whole", variant, config, flags, {})
    rate, calls = training.learning_rate, []

    def killed_at_step_2(config, step):
        calls.append(step)
        if calls == [0, 1, 2]:
            os.kill(os.getpid(), signal.SIGTERM)
        return rate(config, step)
    monkeypatch.setattr(training, "learning_rate", killed_at_step_2)
    with pytest.raises(SystemExit):
        attention.trained(args, "killed", variant, config, flags, {})
    model, run, _ = attention.trained(args, "killed", variant, config, flags, {})
    assert calls == [0, 1, 2, 2, 3] and run["variant"] == "mlp"
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), model.parameters()))
    with pytest.raises(DataError, match="other settings"):
        attention.trained(args, "killed", variant, replace(config, steps=5), flags, {})


@pytest.mark.slow
def test_train_finetune_and_table_by_the_real_command(root_of_two, tmp_path):
    def run(*words, code=0):
        command = [sys.executable, "-m", "tools.attention", *words, "--size", "smoke",
                   "--scene", str(root_of_two)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr
    assert "tools.attention encoder" in run("train", "mlp", code=2)
    run("encoder")
    assert "tools.attention train mlp" in run("finetune", "mlp", code=2)
    run("train", "mlp")
    run("finetune", "mlp")
    results = tmp_path / "results" / "attention"
    first = json.loads((results / "generalise-mlp-seed0.json").read_text())
    tuned = json.loads((results / "finetune-mlp-seed0-scene0002_00.json").read_text())
    assert list(first["rooms"]) == list(tuned["rooms"]) == ["scene0002_00"]
    assert first["settings"]["source_loss"] > 0 and "source_loss" not in tuned["settings"]    # 07's own: 0
    assert first["settings"]["views"] == tuned["settings"]["views"] == 4
    assert "there already" in run("train", "mlp")
    assert f"| none + MLP | 8,512 | {first['rooms']['scene0002_00']['miou']:.2f} |" in run("table")


@pytest.mark.slow
def test_probe_and_look_measure_the_weights_as_they_are(root_of_two, tmp_path, monkeypatch, capsys):
    def run(*words):
        words = ["attention", *words, "--size", "smoke", "--scene", str(root_of_two)]
        monkeypatch.setattr(sys, "argv", words)
        attention.main()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(attention, "TAUS", (1.0, 0.7))
    run("encoder")
    run("train", "full")
    run("probe", "full")
    run("look", "full")
    results = tmp_path / "results" / "attention"
    changed = json.loads((results / "probe-full-seed0.json").read_text())["changed"]
    assert list(changed) == ["tau 1", "tau 0.7", "uniform scores"]
    assert changed["tau 0.7"] == json.loads((results / "generalise-full-seed0.json").read_text())["rooms"]
    assert changed["tau 1"] != changed["tau 0.7"] != changed["uniform scores"]
    capsys.readouterr()
    run("table")
    shown = capsys.readouterr().out
    assert "| full | uniform scores |" in shown and "| full | baseline: rendering weight |" in shown
