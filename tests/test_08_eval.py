"""08_eval.py: metrics against hand-made cases, the protocol, an evaluation's figures and files."""
import json
import math
import shutil
import subprocess
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from conftest import REPO

from support import evaluating, films, machine, pictures, processes, ranges
from support.files import DataError, run_script
from support.labels import SCANNET20

rooms, data = import_module("00_rooms"), import_module("01_data")
training, evaluation = import_module("07_train"), import_module("08_eval")
pseudo_labels = import_module("tools.pseudo_labels")
L = len(data.CLASSES)
SMALL = training.Config(height=32, width=44, views=4, coarse=4, fine=4, test_rooms=0)


def confusion(pairs):
    """Confusion matrix from a list of (true, predicted, count)."""
    truth = torch.tensor([t for t, _, n in pairs for _ in range(n)])
    predicted = torch.tensor([p for _, p, n in pairs for _ in range(n)])
    return evaluation.confusion_matrix(predicted, truth, L)


# -------------------------------------------------------------------------------------------- the metrics
def test_metrics_against_a_hand_made_confusion_matrix():
    # class 0: 6 right, 2 called 1; class 1: 3 right, 1 called 5 (absent from the truth)
    m = evaluation.label_metrics(confusion([(0, 0, 6), (0, 1, 2), (1, 1, 3), (1, 5, 1)]))
    assert m["miou"] == pytest.approx(100 * (6 / 8 + 3 / 6) / 2)              # over the two in the truth
    assert m["total_acc"] == pytest.approx(100 * 9 / 12)
    assert m["avg_acc"] == pytest.approx(100 * (6 / 8 + 3 / 4) / 2)
    assert m["per_class_iou"]["wall"] == pytest.approx(75) and m["per_class_iou"]["sofa"] is None


def test_the_rows_of_a_confusion_matrix_are_the_truth():
    n = evaluation.confusion_matrix(torch.tensor([1, 1, 0]), torch.tensor([0, 0, 0]), 2)
    assert n.tolist() == [[1, 2, 0], [0, 0, 0]]


def test_the_union_counts_a_right_pixel_once():
    m = evaluation.label_metrics(torch.tensor([[6, 2, 0], [1, 3, 0]]), ["wall", "floor"])
    assert m["per_class_iou"] == {"wall": pytest.approx(100 * 6 / 9), "floor": pytest.approx(100 * 3 / 6)}


def test_a_class_that_the_truth_has_none_of_is_not_in_the_mean():
    m = evaluation.label_metrics(torch.tensor([[3, 1, 0], [0, 0, 0]]), ["wall", "floor"])
    assert m["miou"] == pytest.approx(75) and m["avg_acc"] == pytest.approx(75)
    assert m["per_class_iou"]["floor"] is None


def test_unlabelled_truth_is_left_out_and_an_unlabelled_answer_is_wrong():
    m = evaluation.label_metrics(confusion([(0, 0, 4), (data.IGNORE, 3, 50), (0, data.IGNORE, 4)]))
    assert m["total_acc"] == pytest.approx(50) and m["miou"] == pytest.approx(50)


def test_pooled_miou_is_not_the_mean_of_image_mious():
    a, b = confusion([(0, 0, 90), (1, 0, 10)]), confusion([(1, 1, 10)])
    pooled = evaluation.label_metrics(a + b)["miou"]
    assert pooled == pytest.approx(100 * (90 / 100 + 10 / 20) / 2)
    mean = (evaluation.label_metrics(a)["miou"] + evaluation.label_metrics(b)["miou"]) / 2
    assert pooled != pytest.approx(mean)


def test_no_label_at_all_gives_no_label_metrics():
    assert evaluation.label_metrics(confusion([(data.IGNORE, 0, 5)]))["miou"] is None


def test_psnr_of_a_known_error():
    truth = torch.rand(5, 7, 3) * 0.5
    assert evaluation.psnr(truth + 0.1, truth) == pytest.approx(20, abs=1e-4)
    assert evaluation.psnr(truth, truth) == pytest.approx(100)


def test_ssim_equals_a_loop_over_windows():
    generator = np.random.default_rng(0)
    x, y = generator.random((14, 13, 3)), generator.random((14, 13, 3))
    y = 0.6 * x + 0.4 * y
    kernel = np.array([[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5 ** 2)) for j in range(11)]
                       for i in range(11)])
    kernel /= kernel.sum()
    values = []
    for c in range(3):
        for i in range(14 - 10):
            for j in range(13 - 10):
                a, b = x[i:i + 11, j:j + 11, c], y[i:i + 11, j:j + 11, c]
                ma, mb = (kernel * a).sum(), (kernel * b).sum()
                va, vb = (kernel * (a - ma) ** 2).sum(), (kernel * (b - mb) ** 2).sum()
                cov = (kernel * (a - ma) * (b - mb)).sum()
                values.append((2 * ma * mb + 1e-4) * (2 * cov + 9e-4)
                              / ((ma ** 2 + mb ** 2 + 1e-4) * (va + vb + 9e-4)))
    assert evaluation.ssim(torch.tensor(x), torch.tensor(y)) == pytest.approx(np.mean(values), abs=1e-9)
    assert evaluation.ssim(torch.tensor(x), torch.tensor(x)) == pytest.approx(1)


def test_lpips_gets_images_in_minus_one_to_one_and_is_never_silently_skipped(monkeypatch):
    class Stand:                              # stands for the package, whose weights are not here
        def __init__(self, net, verbose):
            assert net == "vgg"

        def to(self, device):
            return self

        def eval(self):
            return self

        def __call__(self, a, b):
            assert a.shape == b.shape == (1, 3, 4, 5) and a.min() == -1 and b.max() == 1
            return (a - b).abs().mean()
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=Stand))
    assert evaluation.lpips_metric("cpu")(torch.zeros(4, 5, 3), torch.ones(4, 5, 3)) == 2.0
    monkeypatch.setitem(sys.modules, "lpips", None)                           # not installed
    with pytest.raises(DataError, match="requirements-lpips.txt"):
        evaluation.lpips_metric("cpu")


def test_depth_error_leaves_unknown_depth_out():
    truth, depth = torch.tensor([[2.0, 0.0], [4.0, 1.0]]), torch.tensor([[1.0, 9.0], [4.0, 1.5]])
    assert evaluation.depth_abs_rel(depth, truth) == pytest.approx((0.5 + 0 + 0.5) / 3)
    assert evaluation.depth_abs_rel(truth, torch.zeros(2, 2)) is None


def test_a_mean_runs_over_the_images_that_have_the_figure():
    image = {"miou": None, "psnr": 10.0, "ssim": None, "lpips": None, "depth_abs_rel": 0.5, "seconds": 1.0,
             "copy_psnr": 4.0}
    images = [image, image | {"miou": 30.0, "psnr": 20.0, "depth_abs_rel": None}]
    m = evaluation.summary(images, confusion([(0, 0, 3), (0, 1, 1)]), confusion([(0, 0, 1), (0, 1, 3)]),
                           data.CLASSES)
    assert (m["miou_per_image"], m["psnr"], m["ssim"], m["depth_abs_rel"]) == (30, 15, None, 0.5)
    assert m["miou"] == 75 and m["baseline_copy_nearest"] == {"psnr": 4, "miou": 25}


def test_the_table_says_what_was_not_computed(capsys):
    figures = {"miou": 12.345, "total_acc": 50.0, "avg_acc": 25.0, "miou_per_image": 11.0, "psnr": 20.0,
               "ssim": None, "depth_abs_rel": 0.12345}
    evaluation.print_table({"per_class_iou": {"wall": 33.3, "sofa": None}, "data": "rooms", **figures,
                            "baseline_copy_nearest": {"psnr": 15.0, "miou": None}})
    screen = capsys.readouterr().out
    assert "wall  33.3" in screen and "sofa" not in screen
    rows = [line.split() for line in screen.splitlines()[-2:]]
    assert rows[0][-7:] == ["12.35", "50.00", "25.00", "11.00", "20.00", "-", "0.1235"]
    assert rows[1][-2:] == ["-", "15.00"]


# ------------------------------------------------------------------------------------------- the protocol
def test_more_than_8_source_views_borrow_fine_tuning_views_and_never_test_views():
    class Poses:
        c2w, near_far = torch.eye(4).repeat(24, 1, 1), None

        def __len__(self):
            return 24

        def parts(self):
            return list(range(24)), []

        def readable(self, frames):
            return frames
    Poses.c2w[:, 0, 3] = torch.arange(24) / 10
    source, tune, test = data.protocol(Poses())
    assert evaluation.source_views(Poses(), 8) == source and evaluation.test_views(Poses()) == test
    for count in range(1, 17):
        views = evaluation.source_views(Poses(), count)
        assert len(set(views)) == count == len(views) and not set(views) & set(test)
        assert set(views) <= set(source) if count <= 8 else set(source) <= set(views)
    assert evaluation.source_views(Poses(), 1) == [source[4]]
    assert evaluation.source_views(Poses(), 16) == sorted(source + tune)


# ------------------------------------------------------------------------------------- whole evaluations
@pytest.fixture
def work(box_folder, tmp_path, monkeypatch) -> Path:
    """A working directory with a checkpoint of random weights, "trained" on rooms/room0000_00 and tested on
    rooms/room9000_00, which is the box; and plain/scene0001_00, the box without labels."""
    for name in ("room0000_00", "room9000_00"):
        shutil.copytree(box_folder, tmp_path / "rooms" / name)
    shutil.copy(next(box_folder.parent.glob("*.tsv")), tmp_path / "rooms")
    shutil.copytree(box_folder, tmp_path / "plain" / "scene0001_00",
                    ignore=shutil.ignore_patterns("label-filt"))
    torch.manual_seed(0)
    model = training.SRay(SMALL)
    run = {"data": "rooms", "root": "rooms", "train": ["room0000_00"], "test": ["room9000_00"],
           "seconds": 1.0, "command": "python 07_train.py"}
    (tmp_path / "run").mkdir()
    torch.save({"model": model.state_dict(), "config": asdict(model.config), "step": 2, "run": run,
                "classes": model.classes._asdict()}, tmp_path / "run/checkpoint.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "prepare_cpu", lambda: None)                 # it would stay for other tests
    monkeypatch.setattr(pictures, "evaluation_sheet", lambda path, *_, **__: path.parent.mkdir(exist_ok=True))
    return tmp_path


@pytest.fixture
def evaluate(work, monkeypatch, capsys):
    """evaluate(flag, value ...): main() with these flags -> metrics.json, and what was on "screen"."""
    def call(*flags) -> dict:
        monkeypatch.setattr(sys, "argv", ["08_eval.py", "--checkpoint", "run/checkpoint.pt", "--out", "out",
                                          *map(str, flags)])
        evaluation.main()
        found = json.loads(Path("out/metrics.json").read_text()) if Path("out/metrics.json").exists() else {}
        return found | {"screen": capsys.readouterr().out}
    return call


class Same(torch.nn.Module):
    """Stands for a model: every pixel is of one class, black and a metre away."""

    def __init__(self, answer):
        super().__init__()
        self.config, self.classes, self.answer = SMALL, data.SCANNET, answer
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def encode(self, views):
        return views

    def render_image(self, sources, K, c2w, height, width, chunk, stride):
        logits = torch.zeros(height, width, L)
        logits[..., self.answer] = 1
        return {"colour": torch.zeros(height, width, 3), "logits": logits, "depth": torch.ones(height, width)}


def test_an_images_miou_is_of_its_pixels_and_the_reported_one_of_all_pixels_together(work):
    scene = data.Scene(work / "rooms/room9000_00", 32, 44, cache=work / "cache")
    floor = data.CLASSES.index("floor")
    metrics = evaluation.evaluate(Same(floor), [scene], work / "out", "title")
    own, everything = [], []
    for index in data.protocol(scene)[2]:
        labels = [x for x in scene.views([index]).labels.flatten().tolist() if x != data.IGNORE]
        everything += labels
        own.append(100 * labels.count(floor) / len(labels) / len(set(labels)))         # the others' IoU is 0
    assert [image["miou"] for image in metrics["images"]] == pytest.approx(own)
    assert metrics["miou_per_image"] == pytest.approx(sum(own) / 4)
    pooled = 100 * everything.count(floor) / len(everything) / len(set(everything))
    assert metrics["miou"] == pytest.approx(pooled) and abs(pooled - sum(own) / 4) > 0.5


def test_metrics_json_has_its_entries(evaluate):
    metrics = evaluate()
    for key in ("miou", "total_acc", "avg_acc", "miou_per_image", "psnr", "ssim", "depth_abs_rel",
                "per_class_iou", "classes", "views", "steps", "seconds", "baseline_copy_nearest", "command",
                "hardware", "keep", "coarse_stride", "preview", "seconds_per_image"):
        assert metrics[key] is not None, key
    assert metrics["data"] == "rooms" and metrics["scenes"] == ["room9000_00"]
    assert metrics["scenes_seen_in_training"] == [] and "none of these was seen" in metrics["screen"]
    assert metrics["steps"] == 2 and metrics["classes"] == data.CLASSES and len(metrics["images"]) == 4
    assert metrics["config"] == asdict(SMALL)
    seen = evaluate("--scenes", "room0000_00")
    assert seen["scenes_seen_in_training"] == ["room0000"] and "seen in training" in seen["screen"]


def test_metrics_json_agrees_with_the_views_on_disk(work, evaluate):
    metrics = evaluate()
    scene = data.Scene(work / "rooms/room9000_00", 32, 44, cache=work / "cache")
    source, _, test = data.protocol(scene)
    assert [image["frame"] for image in metrics["images"]] == [scene.frames[i] for i in test]
    model, _ = training.load_checkpoint(work / "run/checkpoint.pt")
    views, truth = scene.views(source), scene.views(test)
    with torch.no_grad():
        sources = model.eval().encode(views)
    hits = total = 0
    for i in range(4):
        got = model.render_image(sources, truth.K[i], truth.c2w[i], 32, 44)
        error = ((got["colour"] - truth.images[i].permute(1, 2, 0)) ** 2).mean()
        assert metrics["images"][i]["psnr"] == pytest.approx(-10 * math.log10(error), abs=1e-3)
        depth = ((got["depth"] - truth.depth[i]).abs() / truth.depth[i])[truth.depth[i] > 0].mean()
        assert metrics["images"][i]["depth_abs_rel"] == pytest.approx(float(depth), rel=1e-4)
        labelled = truth.labels[i] >= 0
        hits += (got["logits"].argmax(-1) == truth.labels[i])[labelled].sum().item()
        total += labelled.sum().item()
        angle = (views.c2w[:, :3, 2] @ truth.c2w[i, :3, 2]).clamp(-1, 1).arccos()
        nearest = ((views.c2w[:, :3, 3] - truth.c2w[i, :3, 3]).norm(dim=-1) + angle).argmin()
        copy = -10 * math.log10(((views.images[nearest] - truth.images[i]) ** 2).mean())
        assert metrics["images"][i]["copy_psnr"] == pytest.approx(copy, abs=1e-3)
    assert metrics["total_acc"] == pytest.approx(100 * hits / total, abs=0.05)
    assert np.sum(metrics["confusion"]) == total


def test_a_scene_without_labels_gets_colour_metrics_only_and_is_told_so(evaluate):
    metrics = evaluate("--scene", "plain")
    assert metrics["miou"] is None and metrics["total_acc"] is None
    assert metrics["psnr"] > 0 and metrics["depth_abs_rel"] > 0
    assert "no labels" in metrics["screen"] and metrics["data"] == "path"


def test_labels_of_other_classes_are_not_compared(work, evaluate):
    rows = [f"{raw},thing {raw},#0000{raw % 256:02x}" for raw in (1, 3, 21, 1163, 1357)]
    (work / "rooms/classes.csv").write_text("\n".join(["id,name,colour", *rows]))
    metrics = evaluate()
    assert metrics["miou"] is None and metrics["psnr"] > 0 and "LABELS ARE NOT COMPARED" in metrics["screen"]


def test_a_scenes_own_near_and_far_are_used_and_said(work, evaluate):
    before = evaluate()
    (work / "rooms/room9000_00/near_far.txt").write_text("0.5 3")
    after = evaluate()
    assert after["psnr"] != before["psnr"] and "samples from 0.5 to 3" in after["screen"]


def test_near_and_far_follow_what_the_source_views_show_if_asked_to(work, evaluate, monkeypatch):
    seen = []

    def three_times_as_far(images, K, c2w):
        seen.append((tuple(images.shape), tuple(K.shape), tuple(c2w.shape)))
        return 9.0
    plain = evaluate()
    monkeypatch.setattr(ranges, "typical_depth", three_times_as_far)
    assert evaluate()["psnr"] == plain["psnr"] and not seen
    far = evaluate("--typical", 3)
    assert seen == [((8, 3, 48, 64), (3, 3), (8, 4, 4))] and far["config"]["typical"] == 3    # source views
    assert "near and far: times 3 to 3 in 1 of 1 scenes, for a median depth of 3" in far["screen"]
    # weights of a random model hardly differ along a ray: its depths are three times as far
    depths = [[image["depth_abs_rel"] for image in x["images"]] for x in (plain, far)]
    assert all(b > 2 * a for a, b in zip(*depths))
    state = torch.load("run/checkpoint.pt", weights_only=True)
    torch.save({**state, "config": {**state["config"], "typical": 3.0}}, "run/checkpoint.pt")
    assert evaluate()["psnr"] == far["psnr"] and len(seen) == 1        # the run's own; out of the cache
    assert evaluate("--typical", 0)["psnr"] == plain["psnr"]
    monkeypatch.setattr(films, "write_film", lambda path, shots, *_: seen.append(shots))
    evaluate("--video", "out.gif", "--frames", 2)
    assert all(shot["depth"].min() > 3 for shot in seen[1])                   # of a film too


@pytest.mark.parametrize("value, words", [(-1, "must be at least 0"), ("nan", "must be at least 0"),
                                          (1e6, "must be at most 1000")])
def test_a_typical_depth_that_is_none_is_refused(evaluate, value, words):
    with pytest.raises(DataError, match=f"--typical .*{words}"):
        evaluate("--typical", value)


def test_frames_of_less_than_2_cm_from_each_other_are_said_in_one_line(work, evaluate, monkeypatch):
    monkeypatch.setattr(evaluation, "evaluate", lambda *_: pytest.fail("not asked for"))
    monkeypatch.setattr(evaluation, "fly_through", lambda *_: None)
    assert "--every" not in evaluate("--video", "out.gif")["screen"]
    for path in (work / "rooms/room9000_00/pose").iterdir():
        pose = np.loadtxt(path)
        pose[:3, 3] /= 20
        np.savetxt(path, pose)
    line, = [x for x in evaluate("--video", "out.gif")["screen"].splitlines() if "--every" in x]
    assert "room9000_00" in line and "less than 2 cm apart" in line


def test_the_target_truth_does_not_reach_the_model(work, evaluate):
    """Blacking out a test view's colour file changes no rendered pixel, only the score."""
    before = evaluate()
    scene = data.Scene(work / "rooms/room9000_00", 32, 44)
    path = work / f"rooms/room9000_00/color/{scene.frames[data.protocol(scene)[2][0]]}.jpg"
    iio.imwrite(path, np.zeros_like(iio.imread(path)))
    after = evaluate()
    assert after["confusion"] == before["confusion"] and after["depth_abs_rel"] == before["depth_abs_rel"]
    assert after["images"][0]["psnr"] != before["images"][0]["psnr"]
    assert after["images"][1]["psnr"] == before["images"][1]["psnr"]


def test_the_chunk_changes_no_figure(evaluate):
    assert evaluate("--chunk", 100)["psnr"] == pytest.approx(evaluate()["psnr"], abs=1e-4)


def test_a_preview_is_every_nth_pixel_of_the_whole_picture(work, evaluate):
    whole, part = evaluate(), evaluate("--preview", 4)
    assert part["preview"] == 4 and np.sum(part["confusion"]) <= 4 * 8 * 11 < np.sum(whole["confusion"])
    assert part["ssim"] is None and whole["ssim"] and "every 4th row and column" in part["screen"]
    model, _ = training.load_checkpoint(work / "run/checkpoint.pt")
    scene = data.Scene(work / "rooms/room9000_00", 32, 44, cache=work / "cache")
    sources, truth = scene.views(data.protocol(scene)[0]), scene.views(data.protocol(scene)[2])
    with torch.no_grad():
        encoded = model.eval().encode(sources)
    for i in range(4):
        image = model.render_image(encoded, truth.K[i], truth.c2w[i], 32, 44)["colour"]
        error = (image - truth.images[i].permute(1, 2, 0)).square()
        psnr = -10 * math.log10(error[::4, ::4].mean())
        assert part["images"][i]["psnr"] == pytest.approx(psnr, abs=1e-3)
        assert abs(part["images"][i]["psnr"] - whole["images"][i]["psnr"]) > 1e-4     # a sample


def test_an_evaluation_may_have_a_size_samples_and_source_views_of_its_own(evaluate):
    sizes = "--height", 36, "--width", 40, "--coarse", 3, "--fine", 2
    metrics = evaluate(*sizes, "--views", 10)
    config = metrics["config"]
    assert [config[key] for key in ("height", "width", "coarse", "fine")] == [36, 40, 3, 2]
    assert "40x36" in metrics["screen"] and metrics["views"] == {"source": 10, "test": 4, "images": 4}
    assert metrics["psnr"] != evaluate(*sizes)["psnr"]


def test_two_processes_find_what_one_finds(work, monkeypatch):
    """Each takes its part of the views; the parts are collected here instead of by torch.distributed."""
    model, _ = training.load_checkpoint(work / "run/checkpoint.pt")
    names = ["rooms/room0000_00", "rooms/room9000_00", "plain/scene0001_00"]
    scenes = [data.Scene(work / name, 32, 44, cache=work / "cache") for name in names]
    alone = evaluation.evaluate(model, scenes, work / "alone", "title", stride=4)
    sent = []
    monkeypatch.setattr(processes, "rank_and_world", lambda: (1, 2))
    monkeypatch.setattr(processes, "gather_on_first", lambda mine: sent.append(mine) or [])
    assert evaluation.evaluate(model, scenes, work / "none", "title", stride=4) is None
    assert [len(part) for part in sent] == [4, 2] and not (work / "none").exists()
    monkeypatch.setattr(processes, "rank_and_world", lambda: (0, 2))
    monkeypatch.setattr(processes, "gather_on_first", lambda mine: mine + sent.pop(0))
    both = evaluation.evaluate(model, scenes, work / "both", "title", stride=4)
    for metrics in (alone, both):
        metrics.pop("seconds_per_image")
        for image in metrics["images"]:
            image.pop("seconds")
    assert both == alone and len(alone["images"]) == 12


@pytest.mark.parametrize("flags, words", [
    (["--height", "8"], "--height 8"),
    (["--coarse-stride", "0"], "--coarse-stride 0"),
    (["--keep", "-1"], "--keep -1"),
    (["--chunk", "-1"], "--chunk -1"),
    (["--preview", "0"], "--preview 0"),
    (["--preview", "2", "--lpips"], "--preview 2"),
    (["--views", "17"], "--views 17"),
    (["--scenes", "room0001_00", "--data", "rooms"], "no such scene"),
    (["--scenes", "../rooms"], "is not the name of a scene"),
    (["--video", "out.avi"], ".mp4 or .gif"),
    (["--video", "out.gif", "--frames", "1"], "at least 2"),
    (["--video", "out.gif", "--views", "1"], "two source views")])
def test_what_cannot_be_done_is_refused_in_one_line(work, monkeypatch, capsys, flags, words):
    monkeypatch.setattr(sys, "argv", ["08_eval.py", "--checkpoint", "run/checkpoint.pt", *flags])
    with pytest.raises(SystemExit) as ended:
        run_script(evaluation.main)
    error = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and words in error and not (work / "run/eval").exists()


def test_too_few_frames_for_the_protocol_are_refused_before_rendering(work, evaluate):
    for number in sorted((work / "rooms/room9000_00/pose").glob("*.txt"))[:10]:
        number.unlink()
    with pytest.raises(DataError, match="usable frames"):
        evaluate()
    assert not (work / "out").exists()


def test_a_fly_through_renders_a_path_along_the_source_views(work, evaluate, monkeypatch):
    written = []
    monkeypatch.setattr(films, "write_film", lambda path, shots, *_: written.append((path, shots)))
    evaluate("--video", "films/out.mp4", "--frames", 3)
    (path, shots), = written
    assert path == Path("films/out.mp4") and len(shots) == 3 and not (work / "out").exists()
    scene = data.Scene(work / "rooms/room9000_00", 32, 44, cache=work / "cache")
    source, model = data.protocol(scene)[0], training.load_checkpoint(work / "run/checkpoint.pt")[0].eval()
    with torch.no_grad():
        sources = model.encode(scene.views(source))
    for shot, index in ((shots[0], source[0]), (shots[2], source[-1])):
        image = model.render_image(sources, scene.K, scene.c2w[index], 32, 44)
        torch.testing.assert_close(shot["colour"], image["colour"], atol=1e-4, rtol=0)
        torch.testing.assert_close(shot["depth"], image["depth"], atol=1e-3, rtol=0)


def test_the_scenes_of_an_evaluation_are_the_runs_or_the_command_lines(box_folder, work):
    args = SimpleNamespace(scene=None, data=None, scenes=None, split=None, checkpoint="run/checkpoint.pt")
    held_out = {"data": "path", "root": "rooms", "test": ["room9000_00"]}

    def choose(**flags):
        given = SimpleNamespace(**vars(args) | flags)
        return evaluating.choose_scenes(given, training.Config(), held_out, rooms.make_rooms)
    assert choose() == ("path", Path("rooms"), ["room9000_00"])
    assert choose(scenes="room0000_00") == ("path", Path("rooms"), ["room0000_00"])
    root = box_folder.parent
    assert choose(scene=str(box_folder)) == ("path", root.resolve(), [box_folder.name])


# ------------------------------------------------------------------------------------------ pseudo labels
def test_pseudo_labels_are_the_2d_segmenters_on_the_views_that_training_may_see(work, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pseudo_labels", "--checkpoint", "run/checkpoint.pt",
                                      "--scenes", "room9000_00", "--out", "pseudo"])
    pseudo_labels.main()
    assert "pseudo labels in pseudo; on these views: mIoU" in capsys.readouterr().out
    model, _ = training.load_checkpoint(work / "run/checkpoint.pt")
    own, pseudo = (data.Scene(work / "rooms/room9000_00", 32, 44, work / "cache", labels=labels)
                   for labels in (None, work / "pseudo"))
    source, tune, test = data.protocol(own)
    views = own.views(source + tune)
    with torch.no_grad():
        logits = model.eval().source_head(model.encoder(views.images))
    expected = pseudo_labels.segment(model, views.images).argmax(1)
    assert torch.equal(expected[:, ::4, ::4], logits.argmax(1))               # where no upsampling is needed
    got, table = pseudo.views(source + tune).labels, own.label_table
    known = torch.tensor([bool((table == label).any()) for label in range(L)])[expected]
    assert torch.equal(got[known], expected[known]) and (got[~known] == data.IGNORE).all()
    assert not any((work / f"pseudo/room9000_00/{own.frames[i]}.png").exists() for i in test)
    accuracy = (expected == views.labels)[views.labels >= 0].double().mean()
    found = json.loads((work / "pseudo/metrics.json").read_text())
    assert found["total_acc"] == pytest.approx(100 * float(accuracy), abs=1e-6)


def test_pseudo_labels_of_a_scene_without_labels_and_label_table_are_nyu40_ids(box_copy, tmp_path):
    shutil.rmtree(box_copy / "label-filt")
    next(box_copy.parent.glob("*.tsv")).unlink()
    scene, model = data.Scene(box_copy, 32, 44, tmp_path / "c"), training.SRay(training.Config()).eval()
    found = pseudo_labels.write_pseudo_labels(model, [scene], tmp_path / "pseudo")
    assert found["miou"] is None
    source, tune, _ = data.protocol(scene)
    frame = scene.frames[source[0]]
    got = data.Scene(box_copy, 32, 44, tmp_path / "c", labels=tmp_path / "pseudo").views(source + tune).labels
    with torch.no_grad():
        expected = pseudo_labels.segment(model, scene.views(source + tune).images).argmax(1)
    assert torch.equal(got, expected)
    ids = set(iio.imread(tmp_path / "pseudo" / scene.name / f"{frame}.png").flatten().tolist())
    assert ids <= {nyu40 for nyu40, _, _ in SCANNET20} and 0 not in ids


def test_pseudo_labels_of_cropped_photographs_lie_where_the_photographs_do(work):
    own = data.Scene(work / "rooms/room9000_00", 24, 36, work / "cache", crop=4)
    model = training.load_checkpoint(work / "run/checkpoint.pt")[0].eval()
    pseudo_labels.write_pseudo_labels(model, [own], work / "cropped")
    frames, table = sorted(sum(data.protocol(own)[:2], [])), own.label_table
    with torch.no_grad():
        expected = pseudo_labels.segment(model, own.views(frames).images).argmax(1)
    written = data.Scene(own.folder, 24, 36, work / "cache", labels=work / "cropped", crop=4)
    labels = written.views(frames).labels
    known = torch.isin(expected, torch.from_numpy(table[table >= 0]).long())
    assert torch.equal(labels[known], expected[known]) and known.float().mean() > 0.1


def run(script: str, *arguments, cwd: Path) -> subprocess.CompletedProcess:
    """A script as a user runs it, in its own process."""
    return subprocess.run([sys.executable, str(REPO / script), *map(str, arguments)], cwd=cwd,
                          capture_output=True, text=True)


@pytest.mark.slow
def test_training_reads_pseudo_labels(work, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tool", "--checkpoint", "run/checkpoint.pt", "--out", "pseudo"])
    pseudo_labels.main()
    finetune = ["--scene", "rooms", "--data", "rooms", "--scenes", "room9000_00", "--test-rooms", 0,
                "--finetune", "run/checkpoint.pt", "--rays", 32, "--steps", 1, "--no-eval"]
    tuned = run("07_train.py", *finetune, "--labels", "pseudo", "--out", "tuned", cwd=work)
    assert tuned.returncode == 0, tuned.stderr
    assert training.load_checkpoint(work / "tuned/checkpoint.pt")[1]["run"]["labels"] == "pseudo"
    missing = run("07_train.py", *finetune, "--labels", "nowhere", cwd=work)
    assert missing.returncode == 2 and "--labels" in missing.stderr and "Traceback" not in missing.stderr


# ------------------------------------------------------------------------------------- after a training
@pytest.mark.slow
def test_training_ends_with_the_evaluation_of_an_unseen_room(tmp_path):
    names = rooms.make_rooms(tmp_path / "rooms", [0, 9000], frames=24, width=64, height=48, workers=1)
    done = run("07_train.py", "--scene", "rooms", "--preset", "smoke", "--train-rooms", 1, "--test-rooms", 1,
               "--scenes", names[0], "--data", "rooms", "--steps", 2, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run/eval/metrics.json").read_text())
    assert iio.imread(tmp_path / "rooms/room9000_00/color/0.jpg").shape == (48, 64, 3)     # kept as they were
    assert metrics["scenes"] == ["room9000_00"] and metrics["scenes_seen_in_training"] == []
    assert metrics["steps"] == 2 and metrics["miou"] is not None and metrics["train_command"]
    assert (tmp_path / "run/eval/room9000_00.png").stat().st_size > 20_000


@pytest.mark.slow
def test_weights_are_evaluated_on_the_same_rooms_where_those_were_never_made(work, tmp_path):
    state = torch.load(work / "run/checkpoint.pt", weights_only=True)
    state["run"]["root"], state["config"]["test_rooms"] = "somewhere/else", 1
    torch.save(state, tmp_path / "given.pt")
    done = run("08_eval.py", "--checkpoint", "given.pt", "--video", "out.gif", "--frames", 3, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "rendering the fly-through" in done.stderr and "none of these was seen" in done.stdout
    assert len(iio.imread(tmp_path / "out.gif")) == 3
    assert (tmp_path / "data/rooms/room9000_00/color/0.jpg").exists()
