"""support/ranges.py: near and far of a scene by what its photographs show."""
import shutil
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import write_matrix

from support import ranges
from support.files import DataError

data, training = import_module("01_data"), import_module("07_train")
SETTINGS = training.Config(height=48, width=64, views=4, coarse=6, fine=6, typical=1.5)


@pytest.fixture
def open_scene(tmp_path):
    """open_scene(folder): the scene anew, its cache in one place."""
    return lambda folder: data.Scene(folder, 48, 64, tmp_path / "cache")


@pytest.fixture
def looked_at(monkeypatch):
    """The frames whose photographs a sweep reads, in order."""
    seen, right = [], data.Scene.photograph

    def photograph(scene, frame):
        seen.append(frame)
        return right(scene, frame)
    monkeypatch.setattr(data.Scene, "photograph", photograph)
    return seen


@pytest.fixture
def quick(monkeypatch):
    """Instead of the sweep, which takes a second: the farthest camera's distance from the origin."""
    def farthest(images, K, c2w):
        return float(c2w[:, :3, 3].norm(dim=1).max())
    monkeypatch.setattr(ranges, "typical_depth", farthest)


def move(folder, change):
    """Change the place of every camera: change((3,)) -> (3,)."""
    for path in (folder / "pose").iterdir():
        pose = np.loadtxt(path)
        if np.isfinite(pose).all():
            pose[:3, 3] = change(pose[:3, 3])
            write_matrix(path, pose)


@pytest.fixture
def larger(box_copy):
    """The box, three times as large: the photographs stay."""
    move(box_copy, lambda place: 3 * place)
    return box_copy


def test_near_and_far_are_the_settings_times_the_median_depth_by_the_typical_one(
        box_folder, open_scene, capsys):
    scene = open_scene(box_folder)
    assert ranges.follow([scene], SETTINGS, data.protocol) == [scene]
    depth = scene.views(data.protocol(scene)[0]).depth
    found = ranges.median_depth(scene, data.protocol)
    assert found == pytest.approx(float(depth[depth > 0].median()), rel=0.25)
    assert scene.range == pytest.approx((0.3 * found / 1.5, 8 * found / 1.5)) and scene.near_far is None
    assert scene.views([3, 4]).near_far.tolist() == [pytest.approx(scene.range)] * 2
    times = f"{found / 1.5:.2g}"
    assert capsys.readouterr().out == (f"near and far: times {times} to {times} in 1 of 1 scenes, for a "
                                       "median depth of 1.5 (--typical, a plane sweep)\n")


@torch.no_grad()
def test_a_scene_three_times_as_large_has_three_times_the_range_and_the_same_picture(
        box_folder, larger, open_scene):
    torch.manual_seed(0)
    model, pixels, found = training.SRay(SETTINGS).eval(), data.pixel_grid(48, 64)[::37], []
    frames = list(range(3, 19, 2)), [], []            # whose choice depends on metres, in a protocol
    for folder in (box_folder, larger):
        scene, = ranges.follow([open_scene(folder)], SETTINGS, lambda scene: frames)
        views, target = scene.views([9, 10, 12]), scene.views([11])[0]
        got = model(model.encode(views), pixels, target.K, target.c2w)
        found.append((scene, got["coarse"], got["fine"]))
    (small, *a), (large, *b) = found
    assert large.range == pytest.approx([3 * x for x in small.range], rel=1e-4)
    for of_small, of_large in zip(a, b):
        for key, factor in (("weights", 1), ("colour", 1), ("logits", 1), ("z", 3), ("depth", 3)):
            torch.testing.assert_close(of_large[key], factor * of_small[key], atol=2e-3, rtol=2e-3)


def test_a_scene_with_a_near_far_of_its_own_is_not_looked_at(box_copy, open_scene, looked_at, capsys):
    (box_copy / "near_far.txt").write_text("0.5 3")
    scene, = ranges.follow([open_scene(box_copy)], SETTINGS, data.protocol)
    assert scene.range == (0.5, 3) and not looked_at and not capsys.readouterr().out


def test_with_typical_0_nothing_is_looked_at_or_changed(box_folder, open_scene, looked_at, tmp_path, capsys):
    scene, = ranges.follow([open_scene(box_folder)], training.Config(), data.protocol)
    assert scene.range is None and scene.views([3]).near_far is None
    assert not list((tmp_path / "cache").rglob("*.txt")) and not capsys.readouterr().out


def test_no_test_view_is_looked_at(box_folder, open_scene, looked_at, quick):
    scene, = ranges.follow([open_scene(box_folder)], SETTINGS, data.protocol)
    source, _, test = data.protocol(scene)
    assert looked_at == [scene.frames[i] for i in source] and len(looked_at) == 8
    assert not {scene.frames[i] for i in test} & set(looked_at)


def test_of_a_scene_without_a_protocol_eight_frames_are_swept_none_of_them_for_testing(
        box_copy, open_scene, looked_at, quick):
    (box_copy / "split.txt").write_text("".join(f"test {i}\n" for i in range(2, 62, 4)))
    ranges.follow([open_scene(box_copy)], SETTINGS, data.protocol)
    assert looked_at == [62, 66, 74, 78, 86, 90, 98, 102]                     # of the 11 from 62 on


def test_a_scene_is_measured_once_and_again_where_a_photograph_changes(
        box_copy, open_scene, looked_at, quick, tmp_path):
    before, = ranges.follow([open_scene(box_copy)], SETTINGS, data.protocol)
    assert len(looked_at) == 8
    after, = ranges.follow([open_scene(box_copy)], SETTINGS, data.protocol)
    assert len(looked_at) == 8 and after.range == before.range
    kept, = (tmp_path / "cache").rglob("depth_*.txt")
    for damaged in (b"nothing", b"-1", b"nan", b"\xff", b""):
        kept.write_bytes(damaged)
        assert ranges.follow([open_scene(box_copy)], SETTINGS, data.protocol)[0].range == before.range
    assert len(looked_at) == 48
    path = box_copy / f"color/{looked_at[0]}.jpg"
    path.write_bytes(path.read_bytes() + b"!")
    ranges.follow([open_scene(box_copy)], SETTINGS, data.protocol)
    assert len(looked_at) == 56
    move(box_copy, lambda place: 3 * place)
    larger, = ranges.follow([open_scene(box_copy)], SETTINGS, data.protocol)
    assert larger.range[1] > 2 * before.range[1] and len(looked_at) == 64


def test_where_no_depth_can_be_told_near_and_far_stay_and_a_line_says_so(
        box_copy, box_folder, open_scene, looked_at, capsys):
    move(box_copy, lambda place: 0 * place)
    for _ in range(2):                                                        # which is remembered too
        still, moving = ranges.follow([open_scene(box_copy), open_scene(box_folder)], SETTINGS, data.protocol)
        told, untold = capsys.readouterr().out.splitlines()
        assert still.range == (0.3, 8) and moving.range != (0.3, 8) and "in 1 of 2 scenes" in told
        assert untold == ("near and far: as they are in 1 of 2 scenes, whose photographs tell no depth: "
                          "scene0001_00")
    assert len(looked_at) == 16


def test_a_cache_that_cannot_be_written_is_named(box_folder, open_scene, quick, monkeypatch):
    def full(path, write):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(ranges, "write_atomically", full)
    with pytest.raises(DataError, match="cannot write the cache .No space left"):
        ranges.follow([open_scene(box_folder)], SETTINGS, data.protocol)


def test_a_photograph_that_cannot_be_read_is_named(box_copy, open_scene):
    scene = open_scene(box_copy)
    path = box_copy / f"color/{scene.frames[data.protocol(scene)[0][3]]}.jpg"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=path.name):
        ranges.follow([scene], SETTINGS, data.protocol)


def test_a_scene_that_nobody_measured_keeps_the_settings_range(box_folder, open_scene):
    model, scene = training.SRay(SETTINGS), open_scene(box_folder)
    sources = model.encode(scene.views([9, 10, 12]))
    assert training.depth_range(SETTINGS, sources) == (SETTINGS.near, SETTINGS.far)
    ranges.follow([scene], SETTINGS, data.protocol)
    near, far = training.depth_range(SETTINGS, model.encode(scene.views([9, 10, 12])))
    assert float(far / near) == pytest.approx(SETTINGS.far / SETTINGS.near) and float(far) != SETTINGS.far


@pytest.fixture
def rooms_of_a_run(box_folder, tmp_path, monkeypatch):
    """A run's unseen room, where tools look for it -> the run."""
    shutil.copytree(box_folder.parent, tmp_path / "rooms")
    (tmp_path / "rooms/scene0001_00").rename(tmp_path / "rooms/room9000_00")
    monkeypatch.chdir(tmp_path)
    return {"data": "rooms", "root": "rooms", "train": [], "test": ["room9000_00"]}


def test_tools_that_open_a_runs_scenes_measure_them(rooms_of_a_run, quick, monkeypatch):
    attention, figures = import_module("tools.attention"), import_module("tools.figures")
    args, run = SimpleNamespace(cache="cache"), rooms_of_a_run
    assert attention.open_scene(args, SETTINGS, run, "room9000_00", None).range[1] != 8
    torch.manual_seed(0)
    model = training.SRay(SETTINGS)
    monkeypatch.setattr(training, "load_checkpoint", lambda path: (model, {"run": run}))
    assert figures.unseen("checkpoint.pt").sources.near_far is not None
