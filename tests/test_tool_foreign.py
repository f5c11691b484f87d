"""tools/foreign.py: its sweep against loops and a room whose depth is known, its table from the command."""
import json
import shutil
import sys
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch

from support import ranges
from support.files import DataError, run_script
from support.runs import write_state
from tools import foreign

data = import_module("01_data")
reprojection = import_module("03_reprojection")
training = import_module("07_train")
evaluation = import_module("08_eval")
SIZE = 48, 64


@pytest.fixture(scope="module")
def scene(root, tmp_path_factory):
    return data.Scene(root / "scene0001_00", *SIZE, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def views(scene):
    """A test view and the source views of the box."""
    source, _, test = data.protocol(scene)
    return scene.views(test[:1])[0], scene.views(source)


def spread_in_loops(sources, pixel, depth, target):
    """Notebook 01's spread of colour at one depth of one pixel, patch pixel by patch pixel."""
    origin, way = data.rays(pixel[None], target.K, target.c2w)
    uv, z = data.project((origin + depth * way)[None], sources.K, sources.c2w)            # (1, 1, V, 2)
    there = [v for v in range(len(sources.K)) if reprojection.in_view(uv, z, *SIZE)[0, 0, v]]
    if len(there) < 3:
        return torch.inf
    total = 0.0
    for dv in range(-3, 4):
        for du in range(-3, 4):
            at = uv + torch.tensor([du, dv])
            colours = reprojection.lookup(sources.images, at, 1)[0, 0, there]             # (v, 3)
            total += float(colours.var(0, unbiased=False).sum())
    return (total / 49) ** 0.5


def test_the_cost_is_the_notebooks_spread_of_colour(views):
    target, sources = views
    pixel, depths = torch.tensor([[33.0, 21.0], [20.0, 30.0]]), torch.linspace(0.9, 3.5, 9)
    maps, wanted = foreign.patches(sources.images), []
    for at in pixel:
        costs = [spread_in_loops(sources, at, depth, target) for depth in depths]
        wanted.append(depths[costs.index(min(costs))])
        uv, z = data.project(data.rays(at[None], target.K, target.c2w)[0] + depths[:, None] * data.rays(
            at[None], target.K, target.c2w)[1], sources.K, sources.c2w)                   # (D, V, 2)
        inner = ((uv > 4) & (uv < torch.tensor([SIZE[1] - 5, SIZE[0] - 5]))).all(-1)      # no border within 3
        for d in range(len(depths)):
            seen = reprojection.in_view(uv[d], z[d], *SIZE)
            if seen.sum() < 3 or not inner[d][seen].all():
                continue
            colours = reprojection.lookup(maps, uv[None, d:d + 1].masked_fill(~seen[:, None], 0), 1)
            cost = foreign.disagreement(colours[0], seen[None])
            assert float(cost) == pytest.approx(costs[d], abs=1e-4)
    found = foreign.swept_depth(sources, maps, pixel, target.K, target.c2w, depths)
    assert found.tolist() == pytest.approx([float(depth) for depth in wanted])


def test_the_sweep_finds_the_depth_of_the_box(views):
    target, sources = views
    depths, bar = torch.linspace(0.5, 5, 96), SimpleNamespace(update=lambda n: None)
    swept = foreign.sweep(sources, foreign.patches(sources.images), target, depths, 3, bar)
    truth = target.depth[::3, ::3]
    mean, median = foreign.depth_errors(swept, truth)
    known = truth > 0
    assert median < 0.03 and mean == pytest.approx(float(((swept - truth).abs() / truth)[known].mean()))
    assert foreign.depth_errors(swept, torch.zeros_like(truth)) == (None, None)


def test_maps_at_a_quarter_of_the_resolution_are_looked_up_where_features_are(views):
    """Feature (i, j) is centred on pixel (4i, 4j): smooth colours kept there alone tell the same depth."""
    target, sources = views
    y, x = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    generator = torch.Generator().manual_seed(0)
    slope = torch.rand(len(sources.K), 2, generator=generator)                # each view's own
    maps = slope[:, :1, None] * x + slope[:, 1:, None] * y                    # (V, H, W)
    depths, pixels = torch.linspace(0.5, 5, 40), torch.tensor([[31.0, 24.0], [20, 30], [44, 11]])
    full, quarter = (foreign.swept_depth(sources, each, pixels, target.K, target.c2w, depths)
                     for each in (maps[:, None], maps[:, None, ::4, ::4]))
    assert full.tolist() == quarter.tolist() and len(set(full.tolist())) > 1


def test_masked_pixels_and_few_views_tell_nothing(views):
    target, sources = views
    maps, pixel = foreign.patches(sources.images), torch.tensor([[31.0, 24.0]])
    depths = torch.tensor([1.0, 2.0, 3.0])
    few = foreign.swept_depth(sources[:2], maps[:2], pixel, target.K, target.c2w, depths)
    assert few.tolist() == [2]                                                # the middle one
    dark = data.Views(**{**vars(sources), "mask": torch.zeros(len(sources.K), *SIZE, dtype=torch.bool)})
    assert foreign.swept_depth(dark, maps, pixel, target.K, target.c2w, depths).tolist() == [2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    model = training.SRay(training.Config(height=48, width=64, coarse=4, fine=4))
    path = tmp_path_factory.mktemp("weights") / "some.pt"
    write_state(path, {"model": model.state_dict(), "config": vars(model.config), "step": 3,
                       "classes": model.classes._asdict(), "run": {"train": ["a"], "test": ["b"]}})
    return path


def run(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["foreign", *map(str, flags)])
    foreign.main()


def test_the_table_has_a_row_for_each_scene_and_the_metrics_of_08(root, checkpoint, tmp_path, monkeypatch,
                                                                 capsys):
    shutil.rmtree(root / "scene0002_00/label-filt")
    out = tmp_path / "table.json"
    run(monkeypatch, root, "--checkpoint", checkpoint, "--height", 48, "--width", 64, "--preview", 6,
        "--cache", tmp_path, "--json", out)
    printed, found = capsys.readouterr().out.splitlines(), json.loads(out.read_text())
    assert list(found) == ["scene0001_00", "scene0002_00", "all", "command"]
    labelled, blank, every = (found[name] for name in list(found)[:3])
    assert blank["miou"] is None and blank["copy_miou"] is None and every["miou"] == labelled["miou"]
    for key in ("psnr", "depth", "depth_median", "sweep", "sweep_median"):
        assert every[key] == pytest.approx((labelled[key] + blank[key]) / 2)
    assert labelled["sweep_median"] < 0.05 < labelled["depth"]                # the model is untrained
    rows = [line.split() for line in printed if line.startswith(("scene", "all"))]
    assert [len(row) for row in rows] == [9, 9, 11] and rows[1].count("-") == 2
    run(monkeypatch, root / "scene0001_00", "--checkpoint", checkpoint, "--height", 48, "--width", 64,
        "--preview", 6, "--cache", tmp_path, "--json", out, "--features")
    learned = json.loads(out.read_text())["all"]
    assert learned["depth"] == labelled["depth"] and learned["sweep"] > 1.5 * labelled["sweep"]
    model, _ = training.load_checkpoint(checkpoint)
    scene = data.Scene(root / "scene0001_00", *SIZE, tmp_path)
    shots = list(evaluation.render_views(model.eval(), scene, evaluation.test_views(scene), stride=6))
    for key, theirs in (("psnr", "psnr"), ("depth", "depth_abs_rel"), ("copy_psnr", "copy_psnr")):
        assert labelled[key] == pytest.approx(sum(shot[theirs] for shot in shots) / 4, rel=1e-4)


def test_near_and_far_of_ours_and_of_the_sweep_follow_the_scenes_if_asked_to(
        root, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ranges, "typical_depth", lambda images, K, c2w: 30.0)
    far = []
    for typical in (0, 3):
        run(monkeypatch, root / "scene0001_00", "--checkpoint", checkpoint, "--height", 48, "--width", 64,
            "--preview", 12, "--cache", tmp_path, "--typical", typical, "--json", tmp_path / "table.json")
        far.append(json.loads((tmp_path / "table.json").read_text())["all"])
    assert "near and far: times 10 to 10 in 1 of 1 scenes" in capsys.readouterr().out
    assert far[1]["depth"] > 5 * far[0]["depth"] and far[1]["sweep"] > 2 * far[0]["sweep"]


@pytest.mark.parametrize("flags, words", [
    (["nowhere"], "nowhere: no such folder"), ([".", "--views", 17], "--views 17"),
    ([".", "--preview", 0], "--preview 0: must be at least 1"), ([".", "--height", 8], "--height 8")])
def test_bad_input_is_one_line_and_status_2(flags, words, checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["foreign", *map(str, flags), "--checkpoint", str(checkpoint)])
    with pytest.raises(SystemExit) as end:
        run_script(foreign.main)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith("error: ") and words in error and error.count("\n") == 1


def test_a_scene_too_short_for_the_protocol_is_named(box_copy, checkpoint, tmp_path, monkeypatch):
    for path in list((box_copy / "pose").iterdir())[:10]:
        path.unlink()
    with pytest.raises(DataError, match="scene0001_00.*usable frames"):
        run(monkeypatch, box_copy, "--checkpoint", checkpoint, "--cache", tmp_path)
