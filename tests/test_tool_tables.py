"""tools/tables.py and its neighbours: rows are the paper's, trainings are run once and shared, an interrupted
table goes on, seeds give a spread.

The recipes run through the real commands at smoke size in tests/smoke.sh. Here the commands are recorded, and
a stand-in writes what they would have written.
"""
import json
import os
import subprocess
import sys
from argparse import Namespace
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from support.datasets import TEST_ROOM
from support.runs import write_state
from tools import beyond, captures, experiments, figures, tables

rooms = import_module("00_rooms")
data = import_module("01_data")
reprojection = import_module("03_reprojection")
training = import_module("07_train")


def save(path, model, step, **run):
    """A checkpoint of a model."""
    write_state(path, {"model": model.state_dict(), "config": vars(model.config), "step": step, "run": run,
                       "classes": model.classes._asdict()})


def flag(flags, name, default=None):
    """What a command line gives a flag."""
    return flags[flags.index(name) + 1] if name in flags else default


class Recorder(experiments.Bench):
    """A Bench whose scripts write their files at once: metrics depend on the flags alone, so rows can be told
    apart."""

    def __init__(self, folder, seeds=1, size="smoke"):
        super().__init__(Namespace(size=size, seeds=seeds, data=None, runs=str(folder), out=str(folder),
                                   captures=None, lpips=False, checkpoint=None, preview=1))
        self.ran = []

    def run(self, script, *flags):
        flags = [str(f) for f in flags]
        self.ran.append((script, flags))
        out = Path(flag(flags, "--out"))
        assert flags[-2] == "--out"         # training_seconds reads it there
        if "--labels" in flags:
            assert (Path(flag(flags, "--labels")) / "metrics.json").exists()
        out.mkdir(parents=True, exist_ok=True)
        {"07_train.py": self.train_at_once, "08_eval.py": self.evaluate,
         "09_semantic_nerf.py": self.train_nerf}.get(script, self.other)(flags, out)

    def train_at_once(self, flags, out):
        given = {f.name: f.type(flag(flags, f"--{f.name.replace('_', '-')}")) for f in fields(training.Config)
                 if f"--{f.name.replace('_', '-')}" in flags}
        model = training.SRay(training.Config(**{"steps": 2000, **given}))
        save(out / "checkpoint.pt", model, model.config.steps, train=list("abcde"), test=["u"], root="rooms")
        (out / "log.csv").write_text("step,seconds\n1,1.0\n")
        every = int(flag(flags, "--keep-every", 0))
        for i in range(every, model.config.steps + 1, every) if every else ():
            os.link(out / "checkpoint.pt", out / f"checkpoint_{i}.pt")

    def train_nerf(self, flags, out):
        stops = [int(x) for x in f"{flag(flags, '--evaluate-at')},{flag(flags, '--steps')}".split(",")]
        seed = int(flag(flags, "--seed", 0))
        (out / "checkpoint.pt").write_text("")
        (out / "metrics.json").write_text(json.dumps({"history": [
            dict(miou=n + seed, avg_acc=n, total_acc=n, psnr=n, train_seconds=n, steps=n) for n in stops]}))

    def other(self, flags, out):
        """import_scenes, pseudo_labels"""
        (out / "metrics.json").write_text(json.dumps(dict(miou=1.0, total_acc=2.0)))

    def evaluate(self, flags, out):
        c = training.load_checkpoint(flag(flags, "--checkpoint"))[0].config
        value = 50 + 10 * c.tau + c.seed + len(c.cra)
        keys = "miou total_acc avg_acc psnr ssim lpips depth_abs_rel train_seconds".split()
        (out / "metrics.json").write_text(json.dumps(
            dict.fromkeys(keys, value) | {"baseline_copy_nearest": {"psnr": value}}))


ROWS = {
    "1": ["1/0", "0.75/0.25", "0.5/0.5", "0.25/0.75", "0/1"],
    "2": list(tables.MODES), "3": list(tables.MODES),
    "4": ["1", "0.8", "0.7", "0.5", "0.2"], "5": ["S-NeRF", "S-Ray"],
    "6": ["MVSNeRF (quoted)", "IBRNet (quoted)", "NeuRay (quoted)", "S-Ray (quoted)",
          "S-Ray, ours, on rooms in these layouts", "nearest source view copied, rooms in these layouts"],
    "7": ["1", "4", "8", "12", "16"],
    "12": ["1 (10k)", "5 (50k)", "10 (100k)", "20 (200k)", "26 (260k)", "30 (300k)"],
    "13": ["0 (0)", *(f"{n} ({k})" for n, k in ((2, "2k"), (4, "4k"), (6, "6k"), (8, "8k"), (30, "30k"))
                      for _ in range(2)), "100 (100k)"]}


@pytest.mark.slow
def test_each_table_has_the_papers_rows_and_as_many_cells_as_columns(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "tensor_cost", lambda *_: {"gflop": 1.0, "gflop_both": 3.0, "peak": 7.0})
    monkeypatch.setattr(tables, "captures", lambda bench: {"blender": tmp_path / "a", "llff": tmp_path / "b"})
    assert set(ROWS) == set(tables.TABLES) - {"beyond"}
    bench = Recorder(tmp_path)
    for number, names in ROWS.items():
        head, rows, *notes = tables.TABLES[number](bench)
        assert [row[0] for row in rows] == names and all(len(row) == len(head) for row in rows), number
        path = tables.write_table(number, bench, head, rows, tmp_path / "results", *notes)
        text, found = path.read_text(), json.loads(path.with_suffix(".json").read_text())
        assert "rooms" in text and ("compare the order of rows" in text or number == "6")
        assert found["rows"] == rows and found["commands"]
    trainings = [flags for script, flags in bench.ran if script == "07_train.py"]
    assert len(trainings) == 1 + 4 + 4 + 4 + 1 + 3      # the base and Table 2's rows are shared


def test_what_an_attention_costs_is_measured_once(tmp_path, monkeypatch):
    def measured(args, name, **values):
        return tables.benchmark.MEASURES[name](args, **values)
    monkeypatch.setattr(tables.benchmark, "fresh", measured)
    cost = tables.tensor_cost(Recorder(tmp_path), "cross", "fused")
    R, S, V, C = 16, 8, 4, 32
    assert cost["gflop"] == pytest.approx((8 * C * C + 4 * V * C) * R * S * V / 1e9)
    monkeypatch.setattr(tables.benchmark, "fresh", None)
    assert tables.tensor_cost(Recorder(tmp_path), "cross", "fused") == cost


def test_rows_differ_in_what_the_row_says_and_in_nothing_else(tmp_path):
    bench = Recorder(tmp_path)
    tables.table_4(bench)
    trainings = [flags for script, flags in bench.ran if script == "07_train.py"]
    others = {tuple(x for x, before in zip(flags, ["", *flags]) if not {x, before} & {"--tau", "--out"})
              for flags in trainings}
    assert len(others) == 1
    assert sorted(float(flag(f, "--tau")) for f in trainings if "--tau" in f) == [0.2, 0.5, 0.8, 1.0]


def test_labels_come_from_8_samples_a_ray_at_laptop_size_alone(tmp_path):
    for size, keep in (("laptop", "8"), ("smoke", None)):
        bench = Recorder(tmp_path, size=size)
        bench.seeds()
        assert [flag(flags, "--keep") for script, flags in bench.ran if script == "08_eval.py"] == [keep]


def test_a_finished_table_runs_nothing_again_and_an_unfinished_training_is_resumed(tmp_path):
    tables.table_7(Recorder(tmp_path))
    again = Recorder(tmp_path)
    rows = tables.table_7(again)[1]
    assert again.ran == [] and rows[0][1] == "61.00"
    checkpoint = next(tmp_path.glob("*/checkpoint.pt"))
    state = torch.load(checkpoint, weights_only=True)
    torch.save({**state, "step": 3}, checkpoint)
    third = Recorder(tmp_path)
    third.run = lambda script, *flags: third.ran.append((script, flags))
    third.trained()
    assert [(script, "--resume" in flags) for script, flags in third.ran] == [("07_train.py", True)]


def test_given_weights_stand_for_the_training_with_nothing_changed(tmp_path):
    save(tmp_path / "some.pt", training.SRay(training.Config(height=48, width=64)), 7, train=[], test=["u"],
         root="rooms", data="path")
    bench = Recorder(tmp_path / "runs")
    bench.args.checkpoint = str(tmp_path / "some.pt")
    assert (bench.trained() / "checkpoint.pt").read_bytes() == (tmp_path / "some.pt").read_bytes()
    assert bench.ran == []
    tables.table_7(bench)
    assert {script for script, _ in bench.ran} == {"08_eval.py"}
    bench.trained(tau=0.5)
    assert bench.ran[-1][0] == "07_train.py"


@pytest.mark.slow
def test_the_runs_on_one_scene_have_seeds_and_all_start_from_one_training(tmp_path):
    bench = Recorder(tmp_path, seeds=3)
    rows = {(row[0], row[1]): row for row in tables.table_13(bench)[1]}
    assert rows["0 (0)", "S-Ray"][2] == "61.00"
    assert rows["2 (2k)", "S-Ray"][2] == "62.00 ± 1.00"                       # seeds 0, 1, 2 of 61
    assert rows["100 (100k)", "Semantic-NeRF"][2] == "101.00 ± 1.00" and ("100 (100k)", "S-Ray") not in rows
    rows = tables.table_5(bench)[1]
    assert rows[0][1:4] == ["N/A", "6.00 ± 1.00", "6.00 ± 1.00"]              # the paper's 5k: 5 steps
    assert rows[1][1:3] == ["61.00", "62.00 ± 1.00"]
    starts = [flag(flags, "--finetune") for _, flags in bench.ran if "--finetune" in flags]
    assert len(starts) == 6 and len(set(starts)) == 1
    assert len({flag(flags, "--out") for _, flags in bench.ran}) == len(bench.ran)


@pytest.mark.slow
def test_seeds_give_a_mean_a_spread_and_a_paired_difference(tmp_path):
    bench = Recorder(tmp_path, seeds=3)
    rows = {row[0]: row for row in tables.table_4(bench)[1]}
    assert rows["0.7"][1] == "62.00 ± 1.00" and rows["1"][1] == "65.00 ± 1.00"    # 57 + 4 + 1, and 3 more
    assert rows["1"][4] == "+3.00 ± 0.00"

    def paired(a, b):
        return experiments.paired([{"miou": x} for x in a], [{"miou": x} for x in b])
    assert "indistinguishable" in paired((1.0, 2.0, 3.0), (1.5, 1.6, 3.1))
    # mean 2, standard error 1 / sqrt(3): t = 3.46, and 4.30 is needed
    assert paired((1.0, 2.0, 3.0), (0.0, 0.0, 0.0)).endswith("(indistinguishable)")
    assert paired((2.0, 3.0, 4.0), (0.0, 0.0, 0.0)) == "+3.00 ± 1.00"         # t = 5.2


def test_a_tables_training_seconds_are_those_of_all_its_trainings_whichever_call_made_them(tmp_path):
    for bench in (Recorder(tmp_path), Recorder(tmp_path)):
        tables.table_13(bench)
        logs = sorted(tmp_path.rglob("log.csv"))
        for i, log in enumerate(logs):
            log.write_text(f"step,seconds\n10,1.0\n20,{100 * 10 ** i}.5\n")
        assert len(logs) == 2                                                 # base, fine-tuning
        assert bench.training_seconds() == 100.5 + 1000.5 + 100               # a NeRF of 100 steps: 1 s each


@pytest.mark.slow
def test_a_failing_command_ends_the_table_with_one_line(tmp_path):
    command = [sys.executable, "-m", "tools.tables", "7", "--preset", "smoke", "--data", "nowhere"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "07_train.py --scene scannet" in done.stderr and "ended with status 2" in done.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_what_a_table_cannot_do_is_said_in_one_line(tmp_path):
    for flags, words in ((["4", "--checkpoint", "x.pt"], "4 compares trainings"),
                         (["beyond", "--preview", "0"], "must be 1 or more")):
        command = [sys.executable, "-m", "tools.tables", *flags]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_the_segmenters_settings_train_the_encoder_and_its_head_and_nothing_else(box_folder, tmp_path):
    scene = data.Scene(box_folder, 48, 64, tmp_path)
    torch.manual_seed(0)
    model = training.SRay(training.Config(**{**experiments.SEGMENTER, "targets": 1}, height=48, width=64,
                                          extra_views=3)).train()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(40):
        batches = training.draw_batches([scene], [[3, 7, 11]], model.config, step)
        training.training_step(model, batches, step)
        optimiser.step()
    views = scene.views([3, 7, 11])
    with torch.no_grad():
        labels = beyond.segment(model.eval(), views.images).argmax(1)
    assert (labels == views.labels)[views.labels >= 0].float().mean() > 0.8
    same = {name.split(".")[0] for name, x in model.state_dict().items() if torch.equal(x, before[name])}
    assert same == {"coarse", "fine"}


# --------------------------------------------------------------------------------------------------- captures

@pytest.mark.slow
def test_captures_in_either_layout_are_imported_with_the_cameras_they_were_written_with(box, tmp_path):
    K = box.K.copy()
    K[1, 1], K[:2, 2] = K[0, 0], [31.5, 23.5]    # one focal length, axis in the middle
    poses = np.stack([box.camera(i) for i in range(20)])
    images, depths, _ = zip(*(box.photograph(K, pose, 48, 64) for pose in poses))
    captures.write_blender(tmp_path / "blender" / "box", images, K, poses)
    captures.write_llff(tmp_path / "llff" / "box", images, K, poses, depths)
    for layout in ("blender", "llff"):
        command = [sys.executable, "-m", "tools.import_scenes", layout, "--out", f"{layout}-imported"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        scene = data.Scene(tmp_path / f"{layout}-imported" / "box", 48, 64, tmp_path / "cache")
        torch.testing.assert_close(scene.c2w, torch.tensor(poses, dtype=torch.float32), atol=1e-5, rtol=0)
        torch.testing.assert_close(scene.K, torch.tensor(K, dtype=torch.float32), atol=1e-4, rtol=0)
        picture = scene.views([7]).images[0].permute(1, 2, 0) * 255
        assert (picture.round().byte().numpy() == images[7]).all()


def test_cameras_of_the_captures_are_upright_and_look_where_they_should():
    room = rooms.make_room(TEST_ROOM)
    for poses in (captures.orbit(room), captures.forward_facing(room)):
        rotation = poses[:, :3, :3]
        square = rotation @ rotation.transpose(0, 2, 1)
        np.testing.assert_allclose(square, np.eye(3) + 0 * rotation, atol=1e-12)
        assert (np.linalg.det(rotation) > 0).all() and (rotation[:, 2, 1] < 0).all()    # its down is down
    around = captures.orbit(room)
    towards = np.array([0, 0, 1.1]) - around[:, :3, 3]
    np.testing.assert_allclose(around[:, :3, 2], towards / np.linalg.norm(towards, axis=1, keepdims=True))


# --------------------------------------------------------------------------------- what the paper leaves out

@pytest.fixture(scope="module")
def box_views(box_folder, tmp_path_factory):
    """Five views of the box, where every view sees every surface point that falls into its image."""
    return data.Scene(box_folder, 48, 64, cache=tmp_path_factory.mktemp("cache")).views(range(8, 13))


def surface(views, index, every=1):
    """Points (N, 3) on the walls that view `index` sees, and their colours (N, 3)."""
    view = views[index]
    known = (view.depth.flatten() > 0).nonzero().flatten()[::every]
    points = data.unproject(data.pixel_grid(48, 64)[known], view.depth.flatten()[known], view.K, view.c2w)
    return points, view.images.flatten(1).T[known]


def test_2d_logits_at_the_true_surface_are_averaged_over_the_views_that_have_it_in_their_image(box_views):
    sources, (points, colours) = box_views[:4], surface(box_views, 4, every=7)
    maps = sources.images[:, :, ::4, ::4]                                     # what these should say is known
    error = {}
    for shift in (0.0, 0.6):
        got = beyond.average_2d(maps, points[:, None] + shift, sources)[:, 0]     # (N, 3)
        error[shift] = (got - colours).abs().mean()
    assert error[0.0] < 0.6 * error[0.6]
    got = beyond.average_2d(maps, points[:, None], sources)[:, 0]
    uv, z = data.project(points, sources.K, sources.c2w)
    inside = (z > 0) & (uv > -0.5).all(-1) & (uv[..., 0] < 63.5) & (uv[..., 1] < 47.5)
    for n in range(0, len(points), 29):                                       # against a loop over the views
        seen = [reprojection.lookup(maps[v:v + 1], uv[n, v].view(1, 1, 1, 2), 4).flatten()
                for v in range(4) if inside[n, v]]
        torch.testing.assert_close(got[n], torch.stack(seen).mean(0) if seen else torch.zeros(3))


def test_rendering_at_the_true_depth_asks_the_fine_level_there_and_nowhere_else(box_views):
    torch.manual_seed(0)
    model = training.SRay(training.Config(height=48, width=64, coarse=6, fine=5)).eval()
    target, pixels = box_views[4], torch.tensor([[20.0, 30], [41, 12]])
    depth = torch.tensor([2.0, 3.1])
    with torch.no_grad():
        sources = model.encode(box_views[:4])
        maps = {"2D": model.source_head(sources.features)}
        found = beyond.both_ways(model, sources, maps, pixels, target.K, target.c2w, depth)
        plain = model(sources, pixels, target.K, target.c2w, fine_only=True)["fine"]
        torch.testing.assert_close(found["S-Ray"], plain["logits"])
        z = plain["z"].clone()
        nearest = [(z[r] - depth[r]).abs().argmin().item() for r in range(2)]
        for r in range(2):
            z[r, nearest[r]] = depth[r]
        origin, directions = data.rays(pixels, target.K, target.c2w)
        context, _, colours = model.fine.context_and_density(origin, directions, z, sources)
        logits, _ = model.fine.semantics(context)                             # of all samples
    for r in range(2):
        torch.testing.assert_close(found["S-Ray, true depth"][r], logits[r, nearest[r]])
        torch.testing.assert_close(found["colour at true depth"][r], colours[r, nearest[r]])
    assert set(found) == {"S-Ray", "S-Ray, true depth", "colour", "colour at true depth", "2D",
                          "2D, true depth"}


def test_consistency_counts_pixels_that_land_on_the_label_they_left_with(box_views):
    truth = list(box_views.labels)
    agree, total = beyond.consistency(truth, box_views)
    assert total > 3000 and agree / total > 0.95                              # exact labels, nearest pixels
    one = [torch.zeros_like(x) for x in truth]
    assert beyond.consistency(one, box_views) == (total, total)    # one label is consistent, if wrong
    turns = [torch.full_like(x, i % 2) for i, x in enumerate(truth)]
    assert beyond.consistency(turns, box_views) == (0, total)
    none = data.Views(**{**vars(box_views), "depth": 0 * box_views.depth})
    assert beyond.consistency(truth, none) == (0, 0)


@pytest.mark.slow
def test_every_second_row_and_column_is_what_all_of_them_say_there(box_folder, tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = training.SRay(training.Config(height=36, width=48, views=4, coarse=3, fine=3, source_loss=1.0))
    save(tmp_path / "a.pt", model, 1, root=str(box_folder.parent), test=[box_folder.name])
    asked, both_ways = [], beyond.both_ways
    monkeypatch.setattr(beyond, "both_ways", lambda *args: asked.append(both_ways(*args)) or asked[-1])
    whole, part = (beyond.measure_beyond(tmp_path / "a.pt", tmp_path / "a.pt", stride) for stride in (1, 2))
    for some, every in zip(asked[4:], asked[:4]):                             # a call for each view
        for way in some:
            torch.testing.assert_close(some[way], every[way].view(36, 48, -1)[::2, ::2].flatten(0, 1))
    assert len(asked) == 8 and whole.keys() == part.keys() and part["truth"]["miou"] == 100
    assert {row["consistency"] for row in part.values()} == {None} and whole["truth"]["consistency"] > 80
    assert part["S-Ray"]["psnr"] == pytest.approx(whole["S-Ray"]["psnr"], abs=2)  # others, same views


# ---------------------------------------------------------------------------------------------------- figures

def test_what_a_view_truly_sees_lies_not_behind_its_depth(box_views):
    points, _ = surface(box_views, 4, every=11)
    uv, z = data.project(points, box_views.K, box_views.c2w)
    u, v = uv.round().long().unbind(-1)
    inside = (z > 0) & (u >= 0) & (u < 64) & (v >= 0) & (v < 48)
    inside &= box_views.depth[torch.arange(5), v.clamp(0, 47), u.clamp(0, 63)] > 0    # the sensor has holes
    for v, centre in enumerate(box_views.c2w[:, :3, 3]):
        ray = points - centre
        nearer, farther = (figures.truly_visible(centre + f * ray, box_views)[:, v][inside[:, v]]
                           for f in (0.9, 1.2))
        assert nearer.all() and not farther.any()
    outside = ~((z > 0) & (uv > -1).all(-1) & (uv < 64).all(-1))
    assert not figures.truly_visible(points, box_views)[outside].any()
