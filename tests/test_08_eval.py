"""08_eval.py: metrics against hand-made cases, the protocol, the files a run leaves, weights to give away and fly-throughs."""
import hashlib
import json
import math
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import imageio.v3 as iio
import numpy as np
import pytest
import torch

rooms, data = import_module("00_rooms"), import_module("01_data")
training, evaluation = import_module("07_train"), import_module("08_eval")
ROOT = Path(__file__).parents[1]
L = len(data.CLASSES)


def confusion(pairs):
    """Confusion matrix from a list of (true, predicted, count)."""
    truth = torch.tensor([t for t, _, n in pairs for _ in range(n)])
    predicted = torch.tensor([p for _, p, n in pairs for _ in range(n)])
    return evaluation.confusion_matrix(predicted, truth, L)


def test_metrics_against_a_hand_made_confusion_matrix():
    # class 0: 6 right, 2 called 1; class 1: 3 right, 1 called 5 (absent from the truth)
    m = evaluation.label_metrics(confusion([(0, 0, 6), (0, 1, 2), (1, 1, 3), (1, 5, 1)]))
    assert m["miou"] == pytest.approx(100 * (6 / 8 + 3 / 6) / 2)              # over the two classes present in the truth
    assert m["total_acc"] == pytest.approx(100 * 9 / 12)
    assert m["avg_acc"] == pytest.approx(100 * (6 / 8 + 3 / 4) / 2)
    assert m["per_class_iou"]["wall"] == pytest.approx(75) and m["per_class_iou"]["sofa"] is None


def test_unlabelled_truth_is_left_out_and_an_unlabelled_answer_is_wrong():
    m = evaluation.label_metrics(confusion([(0, 0, 4), (data.IGNORE, 3, 50), (0, data.IGNORE, 4)]))
    assert m["total_acc"] == pytest.approx(50) and m["miou"] == pytest.approx(50)


def test_pooled_miou_is_not_the_mean_of_image_mious():
    a, b = confusion([(0, 0, 90), (1, 0, 10)]), confusion([(1, 1, 10)])
    pooled = evaluation.label_metrics(a + b)["miou"]
    assert pooled == pytest.approx(100 * (90 / 100 + 10 / 20) / 2)
    assert pooled != pytest.approx((evaluation.label_metrics(a)["miou"] + evaluation.label_metrics(b)["miou"]) / 2)


def test_no_label_at_all_gives_no_label_metrics():
    assert evaluation.label_metrics(confusion([(data.IGNORE, 0, 5)]))["miou"] is None


def test_psnr_of_a_known_error():
    truth = torch.rand(5, 7, 3) * 0.5
    assert evaluation.psnr(truth + 0.1, truth) == pytest.approx(20, abs=1e-4)


def test_ssim_equals_a_loop_over_windows():
    generator = np.random.default_rng(0)
    x, y = generator.random((14, 13, 3)), generator.random((14, 13, 3))
    y = 0.6 * x + 0.4 * y
    kernel = np.array([[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5 ** 2)) for j in range(11)] for i in range(11)])
    kernel /= kernel.sum()
    values = []
    for c in range(3):
        for i in range(14 - 10):
            for j in range(13 - 10):
                a, b = x[i:i + 11, j:j + 11, c], y[i:i + 11, j:j + 11, c]
                ma, mb = (kernel * a).sum(), (kernel * b).sum()
                va, vb, cov = (kernel * (a - ma) ** 2).sum(), (kernel * (b - mb) ** 2).sum(), (kernel * (a - ma) * (b - mb)).sum()
                values.append((2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma ** 2 + mb ** 2 + 1e-4) * (va + vb + 9e-4)))
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
    with pytest.raises(data.DataError, match="requirements-lpips.txt"):
        evaluation.lpips_metric("cpu")


def test_depth_error_leaves_unknown_depth_out():
    truth = torch.tensor([[2.0, 0.0], [4.0, 1.0]])
    assert evaluation.depth_abs_rel(torch.tensor([[1.0, 9.0], [4.0, 1.5]]), truth) == pytest.approx((0.5 + 0 + 0.5) / 3)
    assert evaluation.depth_abs_rel(truth, torch.zeros(2, 2)) is None


def test_label_colours_are_scannets_and_unlabelled_is_black():
    picture = evaluation.colour_labels(torch.tensor([[0, 1, data.IGNORE]]))
    assert picture.tolist() == [[[174, 199, 232], [152, 223, 138], [0, 0, 0]]]


# ---------------------------------------------------------------------------------------------------- whole runs

@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A folder with two rooms, one without labels, and a checkpoint trained for two steps."""
    folder = tmp_path_factory.mktemp("eval")
    names = rooms.make_rooms(folder / "rooms", [0, 9000], frames=24, width=64, height=48, workers=1)
    shutil.copytree(folder / "rooms" / names[1], folder / "plain" / "scene0001_00", ignore=shutil.ignore_patterns("label-filt"))
    done = subprocess.run([sys.executable, str(ROOT / "07_train.py"), "--scene", "rooms", "--preset", "smoke", "--train-rooms", "1",
                           "--test-rooms", "1", "--scenes", names[0], "--data", str(folder / "rooms"), "--steps", "2",
                           "--out", str(folder / "run")], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def evaluate(work, *arguments) -> dict:
    done = subprocess.run([sys.executable, str(ROOT / "08_eval.py"), "--checkpoint", "run/checkpoint.pt", *map(str, arguments)],
                          cwd=work, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((work / "out/metrics.json").read_text())
    metrics["screen"] = done.stdout
    return metrics


def test_training_ends_with_the_evaluation_of_an_unseen_room(work):
    metrics = json.loads((work / "run/eval/metrics.json").read_text())
    assert iio.imread(work / "rooms/room9000_00/color/0.jpg").shape == (48, 64, 3)                # rooms there were kept as they are
    assert metrics["data"] == "rooms" and metrics["scenes"] == ["room9000_00"] and metrics["scenes_seen_in_training"] == []
    for key in ("miou", "total_acc", "avg_acc", "miou_per_image", "psnr", "ssim", "depth_abs_rel", "per_class_iou", "classes",
                "views", "steps", "seconds", "baseline_copy_nearest", "command", "hardware"):
        assert metrics[key] is not None, key
    assert metrics["steps"] == 2 and metrics["classes"] == data.CLASSES and len(metrics["images"]) == 4
    assert (work / "run/eval/room9000_00.png").stat().st_size > 20_000


def test_metrics_json_agrees_with_the_views_on_disk(work):
    metrics = evaluate(work, "--out", "out")
    scene = data.Scene(work / "rooms/room9000_00", 48, 64, cache=work / "cache")
    source, _, test = data.protocol(scene)
    assert [image["frame"] for image in metrics["images"]] == [scene.frames[i] for i in test]
    model, _ = training.load_checkpoint(work / "run/checkpoint.pt")
    views, truth = scene.views(source), scene.views(test)
    with torch.no_grad():
        sources = model.eval().encode(views)
    hits = total = 0
    for i in range(4):
        got = model.render_image(sources, truth.K[i], truth.c2w[i], 48, 64)
        error = ((got["colour"] - truth.images[i].permute(1, 2, 0)) ** 2).mean()
        assert metrics["images"][i]["psnr"] == pytest.approx(-10 * math.log10(error), abs=1e-3)
        labelled = truth.labels[i] >= 0
        hits += (got["logits"].argmax(-1) == truth.labels[i])[labelled].sum().item()
        total += labelled.sum().item()
        nearest = (views.c2w[:, :3, 3] - truth.c2w[i, :3, 3]).norm(dim=-1).argmin()
        copy = ((views.images[nearest] - truth.images[i]) ** 2).mean()
        assert metrics["images"][i]["copy_psnr"] <= -10 * math.log10(copy) + 3           # by distance and angle, about as near
    assert metrics["total_acc"] == pytest.approx(100 * hits / total, abs=0.05)


def test_a_scene_without_labels_gets_colour_metrics_only_and_is_told_so(work):
    metrics = evaluate(work, "--scene", "plain", "--out", "out")
    assert metrics["miou"] is None and metrics["total_acc"] is None and metrics["psnr"] > 0 and metrics["depth_abs_rel"] > 0
    assert "no labels" in metrics["screen"] and metrics["data"] == "path"


def test_the_target_truth_does_not_reach_the_model(work):
    """Blacking out a test view's colour file changes no rendered pixel, only the score."""
    shutil.copytree(work / "rooms", work / "copy")
    before = evaluate(work, "--scene", "copy", "--scenes", "room9000_00", "--out", "out")
    scene = data.Scene(work / "copy/room9000_00", 48, 64)
    frame = scene.frames[data.protocol(scene)[2][0]]
    path = work / f"copy/room9000_00/color/{frame}.jpg"
    iio.imwrite(path, np.zeros_like(iio.imread(path)))
    after = evaluate(work, "--scene", "copy", "--scenes", "room9000_00", "--out", "out")
    assert after["miou"] == before["miou"] and after["depth_abs_rel"] == before["depth_abs_rel"]
    assert after["images"][0]["psnr"] != before["images"][0]["psnr"] and after["images"][1]["psnr"] == before["images"][1]["psnr"]


def test_a_coarse_stride_is_an_evaluations_own_choice(work):
    found, whole = evaluate(work, "--out", "out", "--coarse-stride", 2), evaluate(work, "--out", "out")
    assert np.sum(found["confusion"]) == np.sum(whole["confusion"]) and found["psnr"] != whole["psnr"]
    assert found["psnr"] == pytest.approx(whole["psnr"], abs=1)
    done = subprocess.run([sys.executable, str(ROOT / "08_eval.py"), "--checkpoint", "run/checkpoint.pt", "--coarse-stride", "0"], cwd=work,
                          capture_output=True, text=True)
    assert done.returncode == 2 and "--coarse-stride 0" in done.stderr


def test_a_preview_is_every_nth_pixel_of_the_whole_picture(work):
    whole, part = evaluate(work, "--out", "out"), evaluate(work, "--out", "out", "--preview", 4)
    assert part["preview"] == 4 and np.sum(part["confusion"]) <= 4 * 12 * 16 < np.sum(whole["confusion"])
    assert part["ssim"] is None and whole["ssim"] > 0 and "every 4th row and column" in part["screen"]
    model, _ = training.load_checkpoint(work / "run/checkpoint.pt")
    scene = data.Scene(work / "rooms/room9000_00", 48, 64, cache=work / "cache")
    sources, truth = scene.views(data.protocol(scene)[0]), scene.views(data.protocol(scene)[2])
    with torch.no_grad():
        encoded = model.eval().encode(sources)
        for i in range(4):
            image = model.render_image(encoded, truth.K[i], truth.c2w[i], 48, 64)["colour"]
            error = (image - truth.images[i].permute(1, 2, 0)).square()
            assert part["images"][i]["psnr"] == pytest.approx(-10 * math.log10(error[::4, ::4].mean()), abs=0.02)
            assert abs(part["images"][i]["psnr"] - whole["images"][i]["psnr"]) > 1e-4            # a sample is not the whole
    done = subprocess.run([sys.executable, str(ROOT / "08_eval.py"), "--checkpoint", "run/checkpoint.pt", "--preview", "0"], cwd=work,
                          capture_output=True, text=True)
    assert done.returncode == 2 and "--preview 0" in done.stderr


def test_too_few_frames_for_the_protocol_is_refused_before_rendering(work):
    shutil.copytree(work / "rooms/room9000_00", work / "short/scene0002_00")
    shutil.copy(work / "rooms" / data.LABELS_TSV, work / "short")
    for i in range(10):
        (work / f"short/scene0002_00/pose/{i}.txt").unlink()
    done = subprocess.run([sys.executable, str(ROOT / "08_eval.py"), "--checkpoint", "run/checkpoint.pt", "--scene", "short",
                           "--out", "none"], cwd=work, capture_output=True, text=True)
    assert done.returncode == 2 and "14 usable frames" in done.stderr and not (work / "none").exists()


def test_an_evaluation_may_have_a_size_and_samples_of_its_own(work):
    metrics = evaluate(work, "--out", "out", "--height", 40, "--width", 56, "--coarse", 3, "--fine", 4)
    assert metrics["config"]["height"] == 40 and metrics["config"]["width"] == 56 and metrics["config"]["fine"] == 4
    assert "56x40" in metrics["screen"]
    done = subprocess.run([sys.executable, str(ROOT / "08_eval.py"), "--checkpoint", "run/checkpoint.pt", "--height", "8"], cwd=work,
                          capture_output=True, text=True)
    assert done.returncode == 2 and "--height 8" in done.stderr and len(done.stderr.splitlines()) == 1


def test_more_than_8_source_views_borrow_fine_tuning_views_and_never_test_views():
    class Poses:
        c2w = torch.eye(4).repeat(24, 1, 1)
        __len__ = lambda self: 24
        readable = lambda self, frames: frames
    Poses.c2w[:, 0, 3] = torch.arange(24) / 10
    source, tune, test = data.protocol(Poses())
    assert evaluation.source_views(Poses(), 8) == source
    for count in range(1, 17):
        views = evaluation.source_views(Poses(), count)
        assert len(set(views)) == count == len(views) and not set(views) & set(test)
        assert set(views) <= set(source) if count <= 8 else set(source) <= set(views)
    assert evaluation.source_views(Poses(), 1) == [source[4]] and sorted(source + tune) == evaluation.source_views(Poses(), 16)


def test_pseudo_labels_are_the_2d_segmenters_and_training_reads_them(work):
    folder = work / "pseudo"
    def run(script: str, *arguments) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, str(ROOT / script), *map(str, arguments)], cwd=work, capture_output=True, text=True)
    done = run("08_eval.py", "--checkpoint", "run/checkpoint.pt", "--pseudo-labels", folder)
    assert done.returncode == 0, done.stderr
    model, state = training.load_checkpoint(work / "run" / "checkpoint.pt")
    name, c = state["run"]["test"][0], model.config
    root = work / state["run"]["root"]
    own, pseudo = (data.Scene(root / name, c.height, c.width, work / "cache", labels=labels) for labels in (None, folder))
    source, tune, test = data.protocol(own)
    with torch.no_grad():
        expected = model.eval().segment(own.views(source + tune).images).argmax(1)
    got = pseudo.views(source + tune).labels
    table = own.label_table
    known = torch.tensor([(table == l).any() for l in range(20)])[expected]   # a class the label table lacks cannot be written
    assert torch.equal(got[known], expected[known]) and (got[~known] == data.IGNORE).all()
    assert not any((folder / name / f"{own.frames[i]}.png").exists() for i in test)
    assert json.loads((folder / "metrics.json").read_text())["total_acc"] > 0
    tuned = run("07_train.py", "--scene", root, "--scenes", name, "--finetune", "run/checkpoint.pt", "--labels", folder, "--steps", 1,
                "--out", "tuned", "--no-eval")
    assert tuned.returncode == 0, tuned.stderr
    assert training.load_checkpoint(work / "tuned" / "checkpoint.pt")[1]["run"]["labels"] == str(folder)
    missing = run("07_train.py", "--scene", root, "--scenes", name, "--finetune", "run/checkpoint.pt", "--labels", "nowhere")
    assert missing.returncode == 2 and "--labels" in missing.stderr and "Traceback" not in missing.stderr


def test_the_sheet_marks_the_wrong_pixels_and_leaves_out_what_has_no_truth(tmp_path):
    def sheet(wrong: int, depth: float, labels: bool) -> np.ndarray:
        """One view of grey wall of which `wrong` rows are called floor; its depth, 0 for none."""
        shot = {"frame": "7", "psnr": 20.0, "miou": 50.0 if labels else None, "colour": torch.full((40, 50, 3), 0.5),
                "truth": torch.full((40, 50, 3), 0.5), "labels": torch.zeros(40, 50, dtype=torch.long),
                "true_labels": torch.full((40, 50), 0 if labels else data.IGNORE), "depth": torch.ones(40, 50),
                "true_depth": torch.full((40, 50), depth)}
        shot["labels"][:wrong] = 1
        evaluation.evaluation_sheet(tmp_path / "sheet.png", "title", [shot], labels, semantic=labels)
        return iio.imread(tmp_path / "sheet.png")[..., :3].astype(int)
    orange = lambda picture: (np.abs(picture - [214, 94, 0]).max(-1) < 3).sum()
    none, half, bare = sheet(0, 2.0, True), sheet(20, 2.0, True), sheet(0, 0.0, False)
    assert orange(none) == 0 and orange(half) > 5_000
    assert bare.shape[1] < 0.6 * none.shape[1]                                # 4 of 9 columns


# ---------------------------------------------------------------------------------------------------- weights, curves, films

def test_exported_weights_are_the_run_in_half_precision_without_the_optimiser(work):
    done = subprocess.run([sys.executable, str(ROOT / "07_train.py"), "--resume", "--out", "run", "--export", "weights/small.pt"],
                          cwd=work, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    whole, small = (torch.load(work / name, weights_only=True) for name in ("run/checkpoint.pt", "weights/small.pt"))
    assert set(small) == {"model", "config", "classes", "step", "run"} and all(small[key] == whole[key] for key in ("config", "step", "run"))
    model, state = training.load_checkpoint(work / "weights/small.pt")
    for name, x in model.state_dict().items():
        assert x.dtype == torch.float32 and torch.equal(x, whole["model"][name].half().float())
    assert (work / "weights/small.pt").stat().st_size < (work / "run/checkpoint.pt").stat().st_size / 5
    assert hashlib.sha256((work / "weights/small.pt").read_bytes()).hexdigest() in done.stdout
    (work / "given").mkdir()
    shutil.copy(work / "weights/small.pt", work / "given/checkpoint.pt")
    done = subprocess.run([sys.executable, str(ROOT / "07_train.py"), "--resume", "--out", "given"], cwd=work, capture_output=True,
                          text=True)
    assert done.returncode == 2 and "--finetune" in done.stderr and len(done.stderr.splitlines()) == 1


def test_weights_are_evaluated_on_the_same_rooms_where_those_were_never_made(work, tmp_path):
    state = torch.load(work / "run/checkpoint.pt", weights_only=True)
    state["run"]["root"] = "somewhere/else"
    training.export_weights(tmp_path / "small.pt", state)
    done = subprocess.run([sys.executable, str(ROOT / "08_eval.py"), "--checkpoint", "small.pt", "--video", "out.gif",
                           "--frames", "3"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    film = iio.imread(tmp_path / "out.gif")[..., :3]
    assert len(film) == 3
    check_film(film, 224)
    assert (tmp_path / "data/rooms/room9000_00/color/0.jpg").exists() and "none of these was seen" in done.stdout


def test_a_run_keeps_its_training_curves(work, tmp_path):
    lines = ["step,semantic,photometric,seconds"] + [f"{10 * i},{3 / i},{0.1 / i},{i}" for i in range(1, 9)]
    (tmp_path / "log.csv").write_text("\n".join(lines))
    training.training_curves(tmp_path)
    picture = iio.imread(tmp_path / "curves.png")
    assert picture.shape[0] > 300 and picture.shape[1] > 800 and picture[..., :3].std() > 10      # two losses, two panels
    steps = len((work / "run/log.csv").read_text().splitlines())
    assert (work / "run/curves.png").exists() == (steps > 2)                  # a run of two steps has one row: no line to draw


def test_the_camera_path_goes_through_its_poses_and_turns_evenly():
    keys = torch.eye(4, dtype=torch.float64).repeat(5, 1, 1)
    for i, angle in enumerate((0.0, 0.3, 0.5, 0.5, 1.4)):
        c, s = math.cos(angle), math.sin(angle)
        keys[i, :3, :3] = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]])
        keys[i, :3, 3] = torch.tensor([i, i ** 2 / 4, math.sin(i)])
    path = evaluation.camera_path(keys.float(), 4 * 10 + 1).double()
    torch.testing.assert_close(path[::10], keys, atol=1e-6, rtol=0)
    eye = torch.eye(3, dtype=torch.float64).expand(41, 3, 3)
    torch.testing.assert_close(path[:, :3, :3] @ path[:, :3, :3].transpose(1, 2), eye, atol=1e-6, rtol=0)
    angles = torch.atan2(path[:, 0, 2], path[:, 0, 0])
    torch.testing.assert_close(angles[30:].diff(), torch.full((10,), 0.09, dtype=torch.float64), atol=1e-5, rtol=0)
    steps = path[:, :3, 3].diff(dim=0)                                        # smooth: the velocity does not jump at a pose
    assert (steps.diff(dim=0).norm(dim=1) < 0.15 * steps.norm(dim=1)[1:]).all()
    assert torch.equal(evaluation.camera_path(keys[:2].float(), 2), keys[:2].float())


def check_film(film: np.ndarray, panel: int) -> None:
    """Sizes a codec takes, three panels that differ, a camera that moved: film (N, h, w, 3)."""
    film = film.astype(float)
    assert film.shape[1] % 16 == film.shape[2] % 16 == 0
    colour, labels, depth = (film[:, 60 * panel // 320:panel * 3 // 5, i * panel + 10:(i + 1) * panel - 10] for i in range(3))
    for a, b in ((colour, labels), (labels, depth), (colour, depth)):
        assert np.abs(a - b).mean() > 10
    assert np.abs(colour[0] - colour[-1]).mean() > 3


def test_a_fly_through_has_its_frames_its_size_and_three_different_channels(work):
    done = subprocess.run([sys.executable, str(ROOT / "08_eval.py"), "--checkpoint", "run/checkpoint.pt", "--frames", "5",
                           "--video", "films/out.mp4"], cwd=work, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "rendering the fly-through" in done.stderr and not (work / "films/metrics.json").exists()
    film = iio.imread(work / "films/out.mp4", plugin="FFMPEG")
    assert len(film) == 5 and f"{film.shape[2]}x{film.shape[1]}" in done.stdout
    check_film(film, 320)


def test_a_film_shows_colours_labels_and_depth_of_each_frame():
    shots = [{"colour": torch.full((48, 64, 3), x), "labels": torch.full((48, 64), l), "depth": torch.full((48, 64), d)}
             for x, l, d in ((0.2, 1, 1.0), (0.6, 4, 4.0))]
    first, second = evaluation.film(shots, "title", 160)
    row = 80
    assert first[row, 80].tolist() == [51] * 3 and second[row, 80].tolist() == [153] * 3
    assert first[row, 240].tolist() == data.PALETTE[1].tolist() and second[row, 240].tolist() == data.PALETTE[4].tolist()
    assert second[row, 400].tolist() == [253, 231, 36] and first[row, 400].tolist() != [253, 231, 36]      # viridis: 4 m is the top


def test_a_gif_keeps_every_classs_colour_in_every_frame(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (5, 80, 112, 3)).astype(np.uint8)           # more colours than a gif has
    noise[:, 70:75, :100] = data.PALETTE.repeat(5, axis=0)                                        # a legend
    (tmp_path / "out.gif").write_bytes(evaluation.gif(list(noise), 12))
    film = iio.imread(tmp_path / "out.gif")[..., :3].astype(int)
    assert film.shape == noise.shape
    assert np.abs(film[:, 72, 2:100:5] - data.PALETTE).max() <= 12                                # a palette a frame: far off


@pytest.mark.parametrize("flags, words", [
    (["--video", "out.avi"], ".mp4 or .gif"),
    (["--video", "out.gif", "--frames", "1"], "at least 2")])
def test_a_film_that_cannot_be_made_is_refused_at_once(work, flags, words):
    done = subprocess.run([sys.executable, str(ROOT / "08_eval.py"), "--checkpoint", "run/checkpoint.pt", *flags], cwd=work,
                          capture_output=True, text=True)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1


def test_without_ffmpeg_an_mp4_is_refused_and_a_gif_is_not(monkeypatch):
    monkeypatch.setattr(evaluation.importlib.util, "find_spec", lambda name: None)
    evaluation.check_video(Path("out.gif"))
    with pytest.raises(data.DataError, match="imageio\\[ffmpeg\\]"):
        evaluation.check_video(Path("out.mp4"))
