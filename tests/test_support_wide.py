"""support/rooms: rooms of WIDE, their walks, prints, and what a camera does to their pictures."""
import json
from functools import lru_cache
from importlib import import_module

import imageio.v3 as iio
import numpy as np
import pytest

from support import datasets
from support.files import DataError
from support.rooms import DOUBTED, TEST, VARIED, WIDE, asked_seeds, camera, export, prints, sheets, walks
from support.rooms import test_seeds as unseen
from support.rooms.camera import Camera, camera_of
from support.rooms.materials import material
from support.rooms.occlusion import SOURCES, TARGETS, in_view
from support.rooms.parts import BALL, BOX, CYLINDER, Item, turn
from support.rooms.patch import Patch
from support.rooms.prints import PRINTS
from support.rooms.variants import VARIANTS, round_sofa

rooms = import_module("00_rooms")
room_of = lru_cache(None)(rooms.make_room)
SOME = WIDE[:40]


@lru_cache(None)
def shoot(seed, height=30, width=40):
    """(K, poses, rgb (24, H, W, 3), depth (24, H, W), label (24, H, W)) of a room of WIDE."""
    room = room_of(seed)
    K, poses = rooms.intrinsics(room, width, height), rooms.camera_path(room, 24, seed)
    return K, poses, *map(np.stack, zip(*(rooms.render(room, c2w, K, height, width) for c2w in poses)))


# ------------------------------------------------------------------------------------------ seeds and files

def test_wide_rooms_have_seeds_of_their_own():
    for others in (range(5000), VARIED, DOUBTED, TEST[0]):
        assert not set(others) & set(WIDE)
    assert [*unseen(40000, 2)] == [49000, 49001] and [*unseen(20000, 1)] == [29000]
    assert [*unseen(0, 1)] == [*unseen(39999, 1)] == [*unseen(50000, 1)] == [9000]
    assert all(rooms.make_room(seed).kind[:4] == "wide" for seed in (40000, 49999))
    assert all(rooms.make_room(seed).kind[:4] != "wide" for seed in (39999, 50000))


@pytest.mark.parametrize("seed, count, test, flag", [
    (-1, 1, 0, "--seed"), (10 ** 6, 1, 0, "--seed"), (0, 0, 0, "--count"), (4999, 2, 0, "--count"),
    (48999, 2, 0, "--count"), (0, 1, -1, "--test"), (0, 1, 1001, "--test")])
def test_seeds_that_are_no_rooms_or_of_two_kinds_are_refused(seed, count, test, flag):
    with pytest.raises(DataError, match=flag):
        asked_seeds(seed, count, test)


def test_asked_seeds_are_those_and_test_rooms_of_their_kind():
    assert asked_seeds(40000, 2, 1) == [40000, 40001, 49000] and asked_seeds(4998, 2, 0) == [4998, 4999]


def test_one_command_writes_wide_rooms_of_a_size_and_their_split(tmp_path, monkeypatch):
    real = rooms.make_rooms
    monkeypatch.setattr(rooms, "make_rooms", lambda *a, **size: real(*a, frames=2, workers=1, **size))
    command = f"00_rooms.py --data {tmp_path} --seed 40003 --count 1 --test 1 --width 48 --height 36"
    monkeypatch.setattr("sys.argv", command.split())
    rooms.main()
    found = datasets.find_dataset(str(tmp_path), None, 0, 0, None)
    assert (found.train, found.test) == (["room40003_00"], ["room49000_00"])
    assert iio.imread(tmp_path / "room49000_00/color/1.jpg").shape == (36, 48, 3)
    about = json.loads((tmp_path / "room40003_00/room.json").read_text())
    assert about["kind"].startswith("wide ") and export.said_of(tmp_path / "room40003_00") == about


@pytest.mark.parametrize("size", ["0", "-4", "5000", "wide"])
def test_a_size_that_is_none_is_refused_in_a_line(size, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["00_rooms.py", "--data", "nowhere", "--width", size])
    with pytest.raises(SystemExit):
        rooms.main()
    assert f"argument --width: invalid pixels value: '{size}'" in capsys.readouterr().err


def test_what_is_written_is_what_the_camera_makes_of_a_true_picture(tmp_path, monkeypatch):
    flawed = Camera(40001, light=.2, gamma=1.2, quality=80, metres=.004, degrees=.2)
    monkeypatch.setattr(rooms, "camera_of", lambda seed: flawed)
    rooms.write_room(tmp_path, "a", 40001, 2, 64, 48)
    room = room_of(40001)
    K, path = rooms.intrinsics(room, 64, 48), rooms.camera_path(room, 2, 40001)
    rgb, depth, label = rooms.render(room, path[1], K, 48, 64)
    assert np.abs(iio.imread(tmp_path / "a/depth/1.png") / 1000 - depth).max() < .001  # of the true pose
    written = np.loadtxt(tmp_path / "a/pose/1.txt")
    assert 0 < np.abs(written - path[1]).max() < .02 and np.allclose(written, flawed.measured(path[1], 1))
    stored = iio.imread(tmp_path / "a/color/1.jpg").astype(float)
    assert np.abs(stored - flawed.develop(rgb, 1)).mean() < 5 < np.abs(stored - rgb).mean()
    assert len(np.unique(iio.imread(tmp_path / "a/label-filt/1.png"))) == len(np.unique(label))


# --------------------------------------------------------------------------------------- rooms and furniture

def test_wide_rooms_have_every_size_and_lens():
    sizes = np.array([room_of(seed).size for seed in SOME])
    assert sizes.min() >= 2.2 and sizes[:, :2].max() <= 12 and sizes[:, 2].max() <= 4.5
    assert sizes[:, :2].min() < 2.7 and sizes[:, :2].max() > 10 and np.ptp(sizes[:, 2]) > 1.8
    assert 4.5 < np.exp(np.log(sizes[:, 0]).mean()) < 6.2  # log-uniform: the middle is 5.1
    focal = [room_of(seed).focal for seed in SOME]
    assert .55 <= min(focal) < .62 and 1.1 < max(focal) <= 1.3
    many = [len(room_of(seed).objects) for seed in SOME]
    assert np.corrcoef(many, sizes[:, 0] * sizes[:, 1])[0, 1] > .6 and min(many) >= 4


def test_wide_furniture_stands_in_the_room_and_apart_and_also_in_the_middle():
    middle = 0
    for seed in SOME[:12]:
        room = room_of(seed)
        for i, (name, lo, hi) in enumerate(room.objects):
            assert (lo > np.append(-room.size[:2] / 2, 0) - .01).all()
            assert (hi < np.append(room.size[:2] / 2, room.size[2]) + .01).all()
            middle += (np.abs(np.stack([lo, hi])[:, :2]) < room.size[:2] / 2 - .5).all()
            for other, low, high in room.objects[:i] if name != "way in" else ():
                assert (np.minimum(hi, high) - np.maximum(lo, low)).min() < .02, (seed, name, other)
    assert middle > 30


def test_things_of_a_kind_have_other_proportions():
    tall, flat = [], []
    for seed in SOME:
        for name, lo, hi in room_of(seed).objects:
            if name == "fridge":
                tall.append(hi[2] - lo[2])
            if name == "desk":
                flat.append(hi[2] - lo[2])
    assert min(tall) < 1.5 < 2 < max(tall) and len(flat) > 3


@pytest.mark.parametrize("build", VARIANTS)
def test_variants_are_furniture_of_a_room(build):
    drawn = [build(np.random.default_rng(seed)) for seed in range(6)]
    bounds = np.array([item.bounds() for item in drawn])
    assert bounds[:, 0, 2].min() > -.05 and (bounds[:, 1] - bounds[:, 0]).max() < 4.2
    assert bounds[:, 1, 2].max() < 2.6 and len(np.unique(bounds[:, 1].round(3), axis=0)) == 6
    assert {part[5] for item in drawn for part in item.parts} <= {*rooms.RAW}


def test_a_round_sofas_back_and_arms_are_alike_on_both_sides():
    for seed in range(12):
        lo, hi = round_sofa(np.random.default_rng(seed)).bounds()
        assert lo[0] == pytest.approx(-hi[0])


def test_wide_rooms_of_an_older_version_are_made_anew():
    assert (rooms.settings(40000, 24, 8, 6)["version"], rooms.settings(9000, 24, 8, 6)["version"]) == (3, 2)


def test_stretching_stretches_the_bounds_and_keeps_rotations():
    """Exact where nothing is turned; what is turned by a quarter changes its other axis."""
    m, s = material(np.random.default_rng(0)), np.array([.5, 2, 3.0])
    item = Item(3).add((-.2, .5), (0, .3), (.1, .9), m).post(1, 1, .2, (0, .4), m, CYLINDER)
    before = np.array(item.bounds())
    assert np.allclose(item.stretch(s).bounds(), s * before)
    turned = Item(3).put(Item(3).add((-.2, .5), (0, .3), (.1, .9), m, BALL), yaw=np.pi / 2)
    rot, before = turned.parts[0][3], np.array(turned.bounds())
    assert np.allclose(turned.stretch(s).bounds(), s * before) and (turned.parts[0][3] == rot).all()
    assert turned.parts[0][0] == BALL and np.allclose(turn(np.pi / 2), rot) and BOX == 0


# ------------------------------------------------------------------------------------------------- the walks

def test_the_camera_is_never_in_a_thing_or_a_wall():
    for seed in SOME:
        room = room_of(seed)
        eye = rooms.camera_path(room, 24, seed)[:, :3, 3]
        P = room.parts
        q = np.abs(np.einsum("pij,fpi->fpj", P["rot"][6:], eye[:, None] - P["centre"][6:])) / P["half"][6:]
        assert (q.max(2) > 1).all(), seed
        assert (np.abs(eye[:, :2]) < room.size[:2] / 2 - .1).all() and (eye[:, 2] < room.size[2] - .2).all()
        assert (eye[:, 2] > .75).all() and (eye[:, 2] < 1.95).all()


def test_where_no_walk_is_free_the_camera_turns_on_a_spot_that_is(monkeypatch):
    monkeypatch.setattr(walks, "_grade", lambda *_: 0)
    for seed in SOME[:12]:
        room = room_of(seed)
        eye = rooms.camera_path(room, 24, seed)[:, :3, 3]
        things = np.array([(lo, hi) for name, lo, hi in room.objects if name != "way in"])
        gap = np.maximum(np.maximum(things[:, 0] - eye[:, None], eye[:, None] - things[:, 1]), 0)
        assert np.linalg.norm(gap, axis=2).min() > .05 and np.ptp(eye[:, :2], axis=0).max() < .11


def test_steps_are_small_and_large():
    eyes = [rooms.camera_path(room_of(seed), 24, seed)[:, :3, 3] for seed in SOME]
    steps = [np.median(np.linalg.norm(np.diff(eye, axis=0), axis=1)) for eye in eyes]
    assert min(steps) < .1 and max(steps) > .35 and .12 < np.median(steps) < .3 and max(steps) < .75


def test_two_source_views_see_most_of_a_test_view():
    share = []
    for seed in SOME[:10]:
        K, poses, _, depth, _ = shoot(seed)
        masks = [[in_view(depth, K, poses, t, s) for s in SOURCES] for t in TARGETS]
        share.append(np.mean([np.sum([a & ~b for a, b in row], 0) >= 2 for row in masks]))
    assert min(share) > .6 and np.mean(share) > .78


def test_views_show_things_neither_black_nor_burnt_out():
    for seed in SOME[:10]:
        _, _, rgb, depth, label = shoot(seed)
        assert 50 < rgb.mean() < 220 and (rgb.max(-1) > 250).mean() < .5
        assert np.mean([len(np.unique(x)) for x in label]) > 1.5 and np.median(depth) > .5


def test_the_grade_is_the_share_that_two_views_see():
    """A wall 3 m away fills the view: three sources stand there, then all look away, then in a box."""
    room = rooms.Room(40000, "", np.array([8, 8, 2.6]), np.zeros(4), .8, {}, {}, [], [
        ("wall", np.array([2.9, -4, 0]), np.array([4, 4, 2.6]))])
    eye, yaw, pitch = np.tile([0.0, 0, 1.3], (24, 1)), np.zeros(24), np.zeros(24)
    assert walks._grade(room, eye, yaw, pitch) == 1
    yaw[SOURCES] = np.pi
    assert walks._grade(room, eye, yaw, pitch) == 0
    yaw[SOURCES[:2]] = 0
    assert walks._grade(room, eye, yaw, pitch) == 1
    screen = ("box", np.array([1.0, -2, 0]), np.array([1.1, 2, 2.6]))
    eye[SOURCES[:2], 0] = 2  # behind what the test views look at
    room.objects.append(screen)
    assert walks._grade(room, eye, yaw, pitch) == 0
    room.objects.append(("box", np.array([-.1, -.1, 1]), np.array([.1, .1, 1.4])))
    assert walks._grade(room, eye * 0 + (0, 0, 1.3), 0 * yaw, pitch) == 0


# ------------------------------------------------------------------------------------------------ the prints

def patch(n=400, foot=.004, seed=None, p=(.6, 5, .5), spread=1.0):
    rng = np.random.default_rng(0)
    seeds = rng.integers(0, 1 << 16, n) if seed is None else np.full(n, seed)
    return Patch(*(spread * rng.uniform(-1, 1, (2, n))), np.full(n, .9), np.full(n, .8), rng.random(n) < .5,
                 np.tile(np.float32(p), (n, 1)), seeds, np.full(n, foot, np.float32))


@pytest.mark.parametrize("name", PRINTS)
def test_a_print_stays_in_range_and_depends_on_the_place_alone(name):
    fields = patch()
    mix, gain = PRINTS[name](fields)
    assert mix.shape == (3, 400) and mix.min() >= -1e-6 and mix.max() <= 1 + 1e-6
    assert np.min(gain) > 0 and np.max(gain) <= 1 and np.ptp(mix) > .3
    assert np.abs(mix[0] - mix[1]).max() > .05  # more than two colours
    order = np.random.default_rng(1).permutation(400)
    again, _ = PRINTS[name](Patch(*(x[order] for x in fields)))
    assert np.allclose(again, mix[:, order], atol=1e-6)
    assert any(name in room_of(seed).materials["texture"] for seed in SOME)


@pytest.mark.parametrize("name", ["leaves", "clouds", "wallpaper", "bricks", "parquet"])
def test_a_print_fades_to_its_mean_before_it_aliases(name):
    near, far = (PRINTS[name](patch(4000, foot, 3))[0] for foot in (.002, 1.5))
    assert far.std(1).max() < .35 * near.std(1).max()
    assert far.mean(1) == pytest.approx(near.mean(1), abs=.08)


@pytest.mark.parametrize("name", sheets.SHEETS)
def test_a_sheet_is_drawn_from_its_number_and_kept_in_halvings(name):
    sheets.pyramid.cache_clear()
    a, b = sheets.pyramid(name, 3), sheets.pyramid(name, 4)
    sheets.pyramid.cache_clear()
    assert (a == sheets.pyramid(name, 3)).all() and not np.allclose(a, b)
    n = sheets.SIZE
    assert a.shape == ((4 * n * n - 1) // 3, 3) and a.min() >= 0 and a.max() <= 1 and a[:n * n].std() > .05
    assert np.allclose(a[-1], a[:n * n].mean(0), atol=1e-3)
    half = a[n * n:n * n + n * n // 4].reshape(n // 2, n // 2, 3)
    assert np.allclose(half[7, 11], a[:n * n].reshape(n, n, 3)[14:16, 22:24].mean((0, 1)), atol=1e-5)


@pytest.mark.parametrize("name", ["leaves", "clouds", "stains"])
def test_a_sheet_repeats_without_a_seam(name):
    n = sheets.SIZE
    sheet = sheets.pyramid(name, 3)[:n * n].reshape(n, n, 3)
    for axis in (0, 1):
        steps = np.abs(np.diff(sheet, axis=axis)).mean()
        seam = np.abs(np.take(sheet, 0, axis) - np.take(sheet, -1, axis)).mean()
        assert seam < 2 * steps


def test_looking_up_is_linear_between_the_points_of_a_sheet():
    n, fields = sheets.SIZE, patch(seed=0, p=(1, 7, 0), foot=1e-4)
    sheet, (u, v) = sheets.pyramid("clouds", 7)[:n * n].reshape(n, n, 3), (fields.a, fields.b)
    seen = prints.look_up(fields, u, v, np.ones(400, np.float32), "clouds")
    for k in range(0, 400, 20):
        x, y = u[k] * n - .5, v[k] * n - .5
        i, j, fx, fy = int(np.floor(x)), int(np.floor(y)), x % 1, y % 1
        corners = [sheet[(j + b) % n, (i + a) % n] for b in (0, 1) for a in (0, 1)]
        weights = [(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy]
        assert seen[:, k] == pytest.approx(sum(w * c for w, c in zip(weights, corners)), abs=1e-4)


def test_colours_of_wide_rooms_do_not_give_the_class_away():
    """As in tests/test_00_rooms.py: a table from 4-bit RGB to the likeliest class, read in other rooms."""
    to20 = np.full(256, -1)
    to20[[row[0] for row in rooms.SCANNET20]] = np.arange(20)
    counts, confusion = np.zeros((4096, 20)), np.zeros((20, 20))
    for k, seed in enumerate(SOME[:12]):
        _, _, rgb, _, label = shoot(seed)
        code, y = rgb.astype(int) // 16 @ (256, 16, 1), to20[label]
        if k < 8:
            np.add.at(counts, (code[y >= 0], y[y >= 0]), 1)
        else:
            guess = (counts / counts.sum(0).clip(1)).argmax(1)
            np.add.at(confusion, (y[y >= 0], guess[code[y >= 0]]), 1)
    hit, present = np.diag(confusion), confusion.sum(1) > 0
    assert 0 < 100 * (hit / (confusion.sum(0) + confusion.sum(1) - hit + 1e-9))[present].mean() < 20


def test_prints_lie_on_things_of_every_class_alike():
    """Every second room is nearly plain, but for its pictures. In the others the share of materials with a
    print is much the same whichever class they are of, though pictures are mostly posters."""
    count, plain = np.zeros((256, 2)), 0
    for seed in SOME:
        room = room_of(seed)
        printed = np.isin(room.materials["texture"], [*PRINTS])
        if printed.mean() < .12:
            plain += 1
            continue
        for label, m in {*zip(room.parts["label"], room.parts["material"])}:
            count[label, int(printed[m])] += 1
    many = count.sum(1) > 40
    assert .35 < plain / len(SOME) < .65
    share = count[many, 1] / count[many].sum(1)
    assert many.sum() >= 12 and share.min() > .12 and share.max() < .75 and np.std(share) < .14


# ------------------------------------------------------------------------------------------------ the camera

def grey(level=120):
    return np.full((48, 64, 3), level, np.uint8)


def test_other_rooms_have_a_perfect_camera_and_some_wide_rooms():
    assert all(camera_of(seed) == Camera(seed) for seed in (0, 5000, 20000, 39999, 50000))
    made = [camera_of(seed) for seed in WIDE[:200]]
    perfect = np.mean([c == Camera(c.seed) for c in made])
    assert .08 < perfect < .26
    for name, most in dict(light=.2, blur=.2, corners=.5, noise=.03, metres=.004, degrees=.2).items():
        values = np.array([getattr(c, name) for c in made])
        assert values.min() == 0 and .8 * most < values.max() <= most and (values == 0).mean() > .2
    assert 60 <= min(c.quality for c in made) and {c.quality for c in made if c == Camera(c.seed)} == {95}
    picture, pose = grey(), np.eye(4)
    assert (Camera(3).develop(picture, 0) == picture).all() and (Camera(3).measured(pose, 0) == pose).all()


def test_exposure_and_white_balance_change_between_views_by_the_share_that_is_said():
    light = [(Camera(1, light=.2).develop(grey(), i)[0, 0] / 120.0) ** 2 for i in range(200)]  # linear
    tint = light / np.mean(light, 1)[:, None]
    assert .7 < np.min(light) < .85 and 1.15 < np.max(light) < 1.33 and .02 < np.std(tint) < .1
    assert (Camera(1, light=.2).develop(grey(), 5) == Camera(1, light=.2).develop(grey(), 5)).all()


def test_gamma_corners_noise_and_blur_do_what_they_are_called():
    assert Camera(1, gamma=1.2).develop(grey(), 0)[0, 0, 0] == int((120 / 255) ** 1.2 * 255 + .5)
    dark = Camera(1, corners=.5).develop(grey(), 0)[..., 0]
    assert dark[24, 32] == 120 and dark[0, 0] == pytest.approx(120 * np.sqrt(.5), abs=1)
    noisy = Camera(1, noise=.03).develop(grey(), 0) / 255
    assert noisy.std() == pytest.approx(.03, rel=.05) and noisy.mean() == pytest.approx(120 / 255, abs=.003)
    point = grey(0)
    point[20, 30] = 250
    soft = Camera(1, blur=.2).develop(point, 0)[..., 1].astype(int)
    assert (soft[20, 30], soft[20, 31], soft[19, 30], soft[21, 31], soft[20, 32]) == (90, 30, 30, 10, 0)
    assert np.allclose(camera.blurred(np.ones((4, 5, 3)), .2), 1)


def test_written_poses_are_rotations_off_by_as_much_as_is_said():
    true = rooms.camera_path(room_of(40000), 24, 40000)
    off = np.array([np.linalg.inv(true[i % 24]) @ Camera(1, metres=.004, degrees=.2).measured(true[i % 24], i)
                    for i in range(300)])
    assert np.allclose(off[:, :3, :3] @ off[:, :3, :3].transpose(0, 2, 1), np.eye(3), atol=1e-12)
    angles = np.degrees(np.arccos(np.clip((np.trace(off[:, :3, :3], axis1=1, axis2=2) - 1) / 2, -1, 1)))
    assert np.sqrt(np.mean(angles ** 2)) == pytest.approx(.2 * np.sqrt(3), rel=.1)
    assert off[:, :3, 3].std(0) == pytest.approx(np.full(3, .004), rel=.15)
