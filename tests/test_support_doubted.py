"""support/rooms: rooms in which a view must be doubted, and how much of a scene must be."""
from functools import lru_cache
from importlib import import_module

import numpy as np
import pytest

from support import datasets
from support.rooms import DOUBTED, TEST, VARIED, doubted, export, house, test_seeds
from support.rooms import classes as nyu
from support.rooms.doubles import COUCHES, FRONTS, TOPS, couch, front, top
from support.rooms.occlusion import SOURCES, TARGETS, in_view, shares
from support.rooms.parts import Item
from support.rooms.screens import SCREENS

test_seeds.__test__ = False  # a function under test, not a test
rooms = import_module("00_rooms")
DOUBLES = [(front, FRONTS), (couch, COUCHES), (top, TOPS)]
CLASSES = {*FRONTS, *COUCHES, *TOPS}


# ------------------------------------------------------------------------------------------------- occlusion

def wall_and_panel():
    """A wall at z = 4, seen by the target (0) and three sources: (1) a metre to the right, with a panel at
    z = 2 before its columns 10 to 19; (2) where the target is; (3) looking away."""
    K = np.array([[20, 0, 19.5], [0, 20, 4.5], [0, 0, 1.0]])
    c2w = np.tile(np.eye(4), (4, 1, 1))
    c2w[1, 0, 3] = 1
    c2w[3, :3, :3] = np.diag([-1, 1, -1])
    depth = np.full((4, 10, 40), 4.0)
    depth[1, :, 10:20] = 2
    return depth, K, c2w


def test_of_a_known_panel_the_share_is_what_geometry_says():
    """A metre at 4 m is five pixels: source 1 sees target column u at u - 5."""
    depth, K, c2w = wall_and_panel()
    inside, behind = in_view(depth, K, c2w, 0, 1)
    assert (inside == (np.arange(40) >= 5)).all()
    assert (behind == ((np.arange(40) >= 15) & (np.arange(40) < 25))).all()
    assert shares(depth, K, c2w, [1], [0]) == (10 / 40, 35 / 40)
    assert shares(depth, K, c2w, [1, 2, 3], [0]) == (10 / 40, 35 / 40 + 1)
    assert shares(depth, K, c2w, [2, 3], [0]) == (0, 1)
    assert shares(depth, K, c2w, [1], [0, 2]) == (10 / 40, 35 / 40)  # two targets: their mean


def test_up_and_down_are_not_left_and_right():
    depth, K, c2w = wall_and_panel()
    c2w[1, :2, 3] = 0, 1
    inside, behind = in_view(depth, K, c2w, 0, 1)
    rows = np.arange(10)[:, None] >= 5
    assert (inside == rows).all()
    assert (behind == rows & (np.arange(40) >= 10) & (np.arange(40) < 20)).all()


def test_unknown_depth_hides_nothing_and_is_no_pixel():
    depth, K, c2w = wall_and_panel()
    depth[1, :, 10:15] = 0  # half the panel
    assert shares(depth, K, c2w, [1], [0]) == (5 / 40, 35 / 40)
    depth[0, :, :20] = 0    # of the target's pixels 20 remain, all in the image, five behind the panel
    assert shares(depth, K, c2w, [1], [0]) == (5 / 20, 1)
    assert shares(0 * depth, K, c2w, [1], [0]) == (0, 0)


@pytest.mark.parametrize("panel, hidden", [(3.85, True), (3.9, False), (4.1, False), (9, False)])
def test_what_is_behind_by_less_than_3_percent_or_before_is_not_hidden(panel, hidden):
    depth, K, c2w = wall_and_panel()
    depth[1, :, 10:20] = panel
    assert shares(depth, K, c2w, [1], [0]).occluded == (.25 if hidden else 0)


# ----------------------------------------------------------------------------------------------------- seeds

def test_rooms_to_be_doubted_have_seeds_of_their_own():
    assert TEST[0].start == datasets.TEST_ROOM and TEST[1][0] in DOUBTED and TEST[1][-1] in DOUBTED
    for others in (range(5000), VARIED, TEST[0]):
        assert not set(others) & set(DOUBTED)
    assert [*test_seeds(20000, 2)] == [29000, 29001] and [*test_seeds(29003, 1)] == [29000]
    assert [*test_seeds(0, 3)] == [*test_seeds(5000, 3)] == [9000, 9001, 9002]
    assert rooms.make_room(20000).kind == rooms.make_room(29999).kind == "doubted"
    assert all(rooms.make_room(seed).kind != "doubted" for seed in (19999, 30000))


def test_one_command_writes_scenes_and_their_split(tmp_path, monkeypatch, capsys):
    real, argv = rooms.make_rooms, ["00_rooms.py", "--data", str(tmp_path), "--seed", "20003"]
    monkeypatch.setattr(rooms, "make_rooms", lambda root, seeds, **_: real(root, seeds, 2, 32, 24, workers=1))
    monkeypatch.setattr("sys.argv", [*argv, "--count", "2", "--test", "1"])
    rooms.main()
    found = datasets.find_dataset(str(tmp_path), None, 0, 0, None)
    assert (found.train, found.test) == (["room20003_00", "room20004_00"], ["room29000_00"])


def test_a_split_keeps_what_it_says_of_other_scenes(tmp_path):
    (tmp_path / "split.txt").write_text("train mine\ntest room20000\n")
    names = [f"room{number}_00" for number in ("20000", "0001", "9000", "19999", "29001")]
    export.write_split(tmp_path, names)
    assert datasets.read_split(tmp_path / "split.txt") == {
        "mine": "train", "room20000": "test", "room0001": "train", "room9000": "test", "room19999": "test",
        "room29001": "test"}


# ----------------------------------------------------------------------------------------------------- rooms

room_of = lru_cache(None)(rooms.make_room)


def walk(seed, height=60, width=80):
    """A room, K, and its walk."""
    room = room_of(seed)
    return room, rooms.intrinsics(room, width, height), rooms.camera_path(room, 24, seed)


@pytest.mark.parametrize("seed", [20000, 20007, 29003])
def test_30_percent_of_pixels_are_hidden_from_a_view_and_five_views_have_a_pixel(seed):
    room, K, path = walk(seed)
    found = shares([rooms.trace(room, c2w, K, 60, 80)[0] for c2w in path], K, path)
    assert .3 < found.occluded < .8 and 5 < found.views < 8


def test_in_other_rooms_few_are():
    room, K, path = walk(9000)
    found = shares([rooms.trace(room, c2w, K, 60, 80)[0] for c2w in path], K, path)
    assert found.occluded < .15 and found.views < 3.5


def test_furniture_stands_apart_and_off_the_walk():
    for seed in DOUBTED[:6]:
        room, _, path = walk(seed)
        eye, names = path[:, :3, 3], [name for name, _, _ in room.objects]
        assert names.count("front") == 3 and "couch" in names and "top" in names
        assert sum(name in {build.__name__ for build in SCREENS} for name in names) >= 4
        for i, (name, lo, hi) in enumerate(room.objects):
            assert (lo > np.append(-room.size[:2] / 2, 0) - .01).all()
            assert (hi < np.append(room.size[:2] / 2, room.size[2]) + .01).all()
            assert np.linalg.norm(np.maximum(np.maximum(lo - eye, eye - hi), 0), axis=1).min() > .25
            for other, low, high in room.objects[:i]:
                assert (np.minimum(hi, high) - np.maximum(lo, low)).min() < .02, (seed, name, other)
        assert np.median(np.linalg.norm(np.diff(eye, axis=0), axis=1)) > .2


def test_all_doubles_and_screens_appear():
    parts = [room_of(seed).parts["label"] for seed in DOUBTED[:12]]
    count = np.sum([[label in part for label in sorted(CLASSES)] for part in parts], 0)
    assert count.min() >= 3 and count.max() < 12
    names = {name for seed in DOUBTED[:12] for name, _, _ in room_of(seed).objects}
    assert names >= {build.__name__ for build in SCREENS} | {"chair", "desk", "window"}


# --------------------------------------------------------------------------------------------------- doubles

def alone(build, label, side, seed=3):
    """A room with one double in its middle, its front towards -y, lit from everywhere."""
    rng = np.random.default_rng(seed)
    item = Item(label).put(build(rng, label, -side), 0, .4, np.pi)
    size, after = np.array([8, 8, 2.6]), rng.random()
    parts, materials = house._pack(house._shell(np.random.default_rng(0), "office", size) + item.parts)
    return rooms.Room(0, "", size, np.zeros(4), .8, parts, materials, [], []), item.bounds(), after


def photograph(room, degrees):
    """What a camera at eye height sees of the middle, from so far to the right of straight ahead."""
    a = np.radians(degrees)
    eye, forward = np.array([3 * np.sin(a), -3 * np.cos(a), 1.4]), np.array([-np.sin(a), np.cos(a), -.15])
    forward /= np.linalg.norm(forward)
    right = np.array([np.cos(a), np.sin(a), 0])
    c2w = np.eye(4)
    c2w[:3] = np.stack([right, np.cross(forward, right), forward, eye], 1)
    return rooms.render(room, c2w, rooms.intrinsics(room, 96, 72), 72, 96)


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("build, labels", DOUBLES)
def test_doubles_are_one_picture_but_from_the_end_that_tells(build, labels, side):
    for seed in (3, 4):
        made = [alone(build, label, side, seed) for label in labels]
        assert all(np.allclose(bounds, made[0][1]) and after == made[0][2] for _, bounds, after in made)
        for degrees in (0, -25 * side, -45 * side):  # straight ahead, and past the end that is closed
            pictures = [photograph(room, degrees) for room, _, _ in made]
            for (rgb, depth, seen), label in zip(pictures, labels):
                assert (rgb == pictures[0][0]).all() and (depth == pictures[0][1]).all()
                assert (seen == label).sum() > 300
        pictures = [photograph(room, 40 * side)[0].astype(int) for room, _, _ in made]
        for i in range(len(labels)):
            for j in range(i):
                assert (np.abs(pictures[i] - pictures[j]).max(-1) > 20).sum() > 40, (i, j)


def evidence(seed, monkeypatch):
    """Of each view and double in room `seed`: pixels of it, and whether the view would look otherwise were it
    of another class. -> two arrays (views, doubles): sources first."""
    room, K, path = walk(seed, 120, 160)
    for name, labels in (("FRONTS", FRONTS), ("COUCHES", COUCHES), ("TOPS", TOPS)):
        monkeypatch.setattr(doubted, name, labels[1:] + labels[:1])
    other = rooms.make_room(seed)
    monkeypatch.undo()
    boxes = [(lo - .03, hi + .03) for name, lo, hi in room.objects if name in ("front", "couch", "top")]
    pixels, tells = (np.zeros((len(SOURCES + TARGETS), len(boxes)), int) for _ in range(2))
    v, u = np.mgrid[:120, :160]
    for i, c2w in enumerate(path[SOURCES + TARGETS]):
        (a, depth, label), (b, _, changed) = (rooms.render(x, c2w, K, 120, 160) for x in (room, other))
        ray = np.stack([u, v, 0 * u + 1], -1) @ np.linalg.inv(K).T @ c2w[:3, :3].T
        point = depth[..., None] * ray + c2w[:3, 3]
        for j, (lo, hi) in enumerate(boxes):
            there = ((point > lo) & (point < hi)).all(-1)
            pixels[i, j] = (there & (label != changed)).sum()
            tells[i, j] = (there & (np.abs(a.astype(int) - b).max(-1) > 20)).sum()
    return pixels, tells >= 15


@pytest.mark.slow
def test_most_doubles_are_told_by_another_view_than_ones_own(monkeypatch):
    own, another, neither = 0, 0, 0
    for seed in (29000, 29001, 29002):
        pixels, tells = evidence(seed, monkeypatch)
        known = tells[:len(SOURCES)].any(0)
        for n, told in zip(pixels[len(SOURCES):], tells[len(SOURCES):]):
            own, another = own + n[told].sum(), another + n[~told & known].sum()
            neither += n[~told & ~known].sum()
    total = own + another + neither
    assert total > .1 * 3 * 4 * 120 * 160  # a tenth of all pixels are of doubles
    assert .2 < own / total < .6 and another / total > .35 and neither / total < .15


def test_colours_of_doubles_do_not_give_the_class_away():
    """Over many draws the fronts' albedo has the same mean and spread whatever the class."""
    for build, labels in DOUBLES:
        drawn = [[build(np.random.default_rng(seed), label, 1).parts[0][4]["a"] for seed in range(40)]
                 for label in labels]
        assert np.ptp(drawn, axis=0).max() == 0 and np.std(drawn[0]) > .1
    assert {*FRONTS} == {nyu.CABINET, nyu.FRIDGE, nyu.DOOR} and len(CLASSES) == 7


def test_the_contact_sheet_says_the_shares(monkeypatch, capsys):
    sheets = []
    monkeypatch.setattr(rooms, "contact_sheet", lambda path, rows: sheets.append(rows))
    monkeypatch.setattr("sys.argv", ["00_rooms.py", "--seed", "20001", "--count", "1"])
    rooms.main()
    (title, shots), = sheets[0]
    room, K, path = walk(20001, 120, 160)
    hidden, views = shares([rooms.trace(room, c2w, K, 120, 160)[0] for c2w in path], K, path)
    assert title == f"doubted\n{hidden:.0%} occluded, {views:.1f} views" and len(shots) == 2
