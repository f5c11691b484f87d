"""support/sweep.py and support/near_far.py: depths told by photographs, against depths that are known."""
from importlib import import_module

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from support import near_far, sweep

rooms = import_module("00_rooms")


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    root = tmp_path_factory.mktemp("rooms")
    return root / rooms.make_rooms(root, [5], frames=24, width=160, height=120, workers=1)[0]


@pytest.mark.slow
def test_the_sweep_measures_a_rooms_depths(room):
    K = np.loadtxt(room / "intrinsic/intrinsic_color.txt")[:3, :3]
    c2w = np.stack([np.loadtxt(room / f"pose/{i}.txt") for i in range(24)])
    depth = np.stack([iio.imread(room / f"depth/{i}.png") for i in range(24)]) / 1000
    found = near_far.swept(room, c2w, K)
    low, high = np.percentile(depth[depth > 0], (1, 99))
    assert 0.35 * low < found.near < 0.7 * low and 1.3 * high < found.far < 1.8 * high
    assert "measured" in found.why
    again = near_far.swept(room, np.block([[c2w[:, :3, :3], 10 * c2w[:, :3, 3:]], [c2w[:, 3:]]]), K)
    assert again.near == pytest.approx(10 * found.near, rel=1e-3)             # the unit does not matter
    assert again.far == pytest.approx(10 * found.far, rel=1e-3)


@pytest.mark.slow
def test_blank_photographs_and_cameras_in_one_place_tell_nothing(room):
    K = np.loadtxt(room / "intrinsic/intrinsic_color.txt")[:3, :3]
    c2w = np.stack([np.loadtxt(room / f"pose/{i}.txt") for i in range(24)])
    blank = [np.full((60, 80, 3), 90, np.uint8)] * 24
    assert len(sweep.measured_depths(blank, K, c2w)) == 0
    assert len(sweep.measured_depths(blank, K, c2w[:1].repeat(24, 0))) == 0
    assert len(sweep.measured_depths(blank[:3], K, c2w[:3])) == 0
    noise = np.random.default_rng(0).integers(0, 256, (24, 60, 80, 3)).astype(np.uint8)
    assert len(sweep.measured_depths(list(noise), K, c2w)) < 5


@pytest.mark.slow
def test_the_tool_renders_each_range_of_a_capture_from_the_same_views(tmp_path, monkeypatch, capsys):
    tool, tried = import_module("tools.near_far"), []

    def evaluated(scene, out, args):
        tried.append(tuple(map(float, (scene / "near_far.txt").read_text().split())))
        assert (scene / "split.txt").read_text().count("test") == 4
        return 20.0, 0.5
    monkeypatch.setattr(tool, "evaluated", evaluated)
    monkeypatch.setattr(tool, "WALKS", ["at one thing"])
    monkeypatch.setattr("sys.argv", ["near_far", "5", "--height", "60", "--width", "80", "--out",
                                     str(tmp_path / "out")])
    tool.main()
    assert "| 5, at one thing |" in capsys.readouterr().out
    sweep, true, poses, less, more = tried
    assert sweep == pytest.approx(true, rel=0.3) and poses[1] > 2 * true[1]
    assert more[0] < sweep[0] < less[0] and less[1] < sweep[1] < more[1]


def plane(depth, unit=1.0):
    """Photographs of a painted wall at a depth, by six cameras side by side, reduced: images, K, c2w."""
    paint = np.random.default_rng(0).uniform(0, 255, (40, 40, 3))
    K = np.array([[60.0, 0, 39.5], [0, 60, 29.5], [0, 0, 1]])
    v, u = np.mgrid[:60, :80]
    images, poses = [], np.tile(np.eye(4), (6, 1, 1))
    for i in range(6):
        poses[i, :2, 3] = 0.2 * i - 0.5, 0.1 * (i % 2)
        x = (u - K[0, 2]) / K[0, 0] * depth + poses[i, 0, 3]
        y = (v - K[1, 2]) / K[1, 1] * depth + poses[i, 1, 3]
        x, y = 20 + 19 * np.sin(x), 20 + 19 * np.sin(1.3 * y)                 # smooth
        a, b = x.astype(int), y.astype(int)
        fx, fy = (x - a)[..., None], (y - b)[..., None]
        images.append(((paint[b, a] * (1 - fx) + paint[b, a + 1] * fx) * (1 - fy)
                       + (paint[b + 1, a] * (1 - fx) + paint[b + 1, a + 1] * fx) * fy).astype(np.uint8))
    poses[:, :3, 3] *= unit
    return *sweep.reduced(images, torch.from_numpy(K).float()), torch.from_numpy(poses).float()


@pytest.mark.parametrize("depth", [1.5, 4.0])
def test_the_typical_depth_is_a_walls_in_whatever_unit(depth):
    assert sweep.typical_depth(*plane(depth)) == pytest.approx(depth, rel=0.08)
    assert sweep.typical_depth(*plane(depth, 100.0)) == pytest.approx(100 * depth, rel=0.08)


def test_there_is_no_typical_depth_where_cameras_do_not_move_are_too_few_or_look_apart():
    images, K, c2w = plane(2.0)
    assert sweep.typical_depth(images, K, c2w[:1].expand(6, 4, 4)) is None
    assert sweep.typical_depth(images[:3], K, c2w[:3]) is None
    apart = c2w.clone()
    for i, angle in enumerate(torch.arange(6) * torch.pi / 3):
        apart[i, 0, 0] = apart[i, 2, 2] = angle.cos()
        apart[i, 0, 2], apart[i, 2, 0] = angle.sin(), -angle.sin()
        apart[i, :3, 3] = apart[i, :3, 2]
    assert sweep.typical_depth(images, K, apart) is None


@pytest.mark.slow
def test_the_typical_depth_of_a_room_is_the_median_of_its_depth_maps(room):
    K = torch.from_numpy(np.loadtxt(room / "intrinsic/intrinsic_color.txt")[:3, :3]).float()
    some = range(0, 16, 2)                                                    # as few as source views
    c2w = torch.from_numpy(np.stack([np.loadtxt(room / f"pose/{i}.txt") for i in some])).float()
    images, K = sweep.reduced([iio.imread(room / f"color/{i}.jpg") for i in some], K)
    depth = np.stack([iio.imread(room / f"depth/{i}.png") for i in some]) / 1000
    assert sweep.typical_depth(images, K, c2w) == pytest.approx(float(np.median(depth)), rel=0.1)
