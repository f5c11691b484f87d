"""support/rooms: furniture, rooms, the camera's walk, textures, surfaces, and how rooms come to disk."""
import csv
import os
import time
from functools import lru_cache
from importlib import import_module

import numpy as np
import pytest

from support.files import DataError
from support.labels import CLASSES_CSV, LABELS_TSV
from support.rooms import VARIED, classes, export, furniture
from support.rooms.house import make_room
from support.rooms.materials import colour, material
from support.rooms.parts import BALL, BOX, CYLINDER, Item
from support.rooms.paths import camera_path
from support.rooms.surface import surface_at
from support.rooms.textures import TEXTURES, Patch, lines, noise

room_of = lru_cache(None)(make_room)  # seed -> Room


def test_furniture_is_made_of_parts():
    rng = np.random.default_rng(0)
    for names, least in (("chair desk sofa door bathtub", 6), ("bed window", 7), ("bookshelf", 9),
                         ("picture kitchen fridge toilet washbasin", 5), ("cabinet bar", 4), ("table", 3)):
        for build in (getattr(furniture, name) for name in names.split()):
            for _ in range(5):
                item = build(rng)
                parts = [p for p in item.parts if p[5] == item.label]
                assert len(parts) >= least, (build.__name__, len(parts))
                assert len({tuple(p[1].round(3)) for p in parts}) >= 3  # in different places


def test_two_pieces_of_a_kind_differ():
    for build in (furniture.chair, furniture.bed, furniture.cabinet):
        a, b = build(np.random.default_rng(1)), build(np.random.default_rng(2))
        assert not np.allclose(a.bounds()[1], b.bounds()[1])
        assert not np.allclose(a.parts[0][4]["a"], b.parts[0][4]["a"])


@pytest.mark.slow
def test_furniture_stands_in_the_room_and_apart():
    for seed in [*range(24), *VARIED[:16]]:
        room = room_of(seed)
        assert len(room.objects) >= 7
        for i, (name, lo, hi) in enumerate(room.objects):
            assert (lo > np.append(-room.size[:2] / 2, 0) - .01).all()
            assert (hi < np.append(room.size[:2] / 2, room.size[2]) + .01).all()
            for other, low, high in room.objects[:i] if name != "way in" else ():
                assert (np.minimum(hi, high) - np.maximum(lo, low)).min() < .02, (seed, name, other)


def to_furniture(room, eye):
    """Metres (F,) from the camera's places eye (F, 3) to the nearest object's box."""
    gaps = [np.maximum(np.maximum(lo - eye, eye - hi), 0) for _, lo, hi in room.objects]
    return np.linalg.norm(gaps, axis=2).min(0)


@pytest.mark.slow
def test_the_camera_walks_at_eye_height_outside_the_furniture():
    for seed in range(24):
        room = room_of(seed)
        poses = camera_path(room, 24, seed)
        eye, R = poses[:, :3, 3], poses[:, :3, :3]
        assert poses.shape == (24, 4, 4) and poses.dtype == np.float64
        assert np.allclose(R.transpose(0, 2, 1) @ R, np.eye(3), atol=1e-9)
        assert np.allclose(np.linalg.det(R), 1)
        assert (eye[:, 2] > 1.2).all() and (eye[:, 2] < 1.7).all()
        assert (R[:, 2, 2] < 0).all() and (R[:, 2, 1] < -.8).all()  # looks a little down, y points down
        assert (to_furniture(room, eye) > .15).all()


@pytest.mark.slow
def test_the_camera_walks_in_varied_rooms_in_steps_of_at_most_45_cm():
    for seed in VARIED[:24]:
        room = room_of(seed)
        poses = camera_path(room, 24, seed)
        eye, R = poses[:, :3, 3], poses[:, :3, :3]
        assert np.allclose(R.transpose(0, 2, 1) @ R, np.eye(3), atol=1e-9) and (R[:, 2, 1] < -.8).all()
        assert (eye[:, 2] > 1.05).all() and (eye[:, 2] < 1.95).all()
        assert (np.abs(eye[:, :2]) < room.size[:2] / 2 - .3).all()
        assert np.linalg.norm(np.diff(eye, axis=0), axis=1).max() < .45
        assert (to_furniture(room, eye) > .1).all()


def test_varied_rooms_are_larger_paler_and_seen_otherwise():
    plain, varied = [room_of(seed) for seed in range(24)], [room_of(seed) for seed in VARIED[:24]]
    area, light, focal = ([[measure(room) for room in group] for group in (plain, varied)] for measure in (
        lambda room: room.size[0] * room.size[1],
        lambda room: room.materials["a"].mean(),
        lambda room: room.focal))
    assert max(area[1]) > 50 > 25 > max(area[0]) and min(area[1]) < 26
    assert np.mean(light[1]) > 1.15 * np.mean(light[0]) and min(light[1]) < 1.2 * np.mean(light[0])
    assert np.ptp(focal[1]) > 1.6 * np.ptp(focal[0])
    away = [(np.abs(np.stack([lo, hi])[:, :2]) < room.size[:2] / 2 - .3).all()
            for room in varied for name, lo, hi in room.objects if name in ("sofa", "armchair")]
    assert any(away) and not all(away)  # some stand away from the walls


def test_an_items_bounds_hold_its_parts_and_nothing_more():
    """Of a turned item with all three shapes, one of them tilted, against random points in its parts."""
    q, m = np.random.default_rng(0).uniform(-1, 1, (100000, 3)), material(np.random.default_rng(1))
    unit = {BOX: q, CYLINDER: q[(q[:, :2] ** 2).sum(1) <= 1], BALL: q / np.linalg.norm(q, axis=1)[:, None]}
    item = Item(3).add((-.2, .5), (0, .3), (.1, .9), m).add((1, 1.4), (.2, .5), (0, .7), m, BALL, tilt=.6)
    item = Item(3).put(item.post(-.4, .6, .15, (0, 1.2), m, CYLINDER), 2, -1, .7)
    lo, hi = item.bounds()
    for part in item.parts:
        shape, centre, half, rot, _, _ = part
        points = centre + (unit[shape] * half) @ rot.T
        assert (points > lo - 1e-9).all() and (points < hi + 1e-9).all()
        alone = Item(3)
        alone.parts = [part]
        slack = .065 if shape == CYLINDER else .015  # a cylinder counts as the box around it
        assert np.abs(np.array(alone.bounds()) - (points.min(0), points.max(0))).max() < slack


def test_all_classes_draw_from_one_palette():
    """A colour is linear RGB in 0…1, light or dark, and nothing but the generator decides it."""
    drawn = np.array([colour(np.random.default_rng(i)) for i in range(500)])
    assert drawn.min() >= 0 and drawn.max() <= 1 and drawn.mean(1).min() < .1 and drawn.mean(1).max() > .7
    assert (drawn[7] == colour(np.random.default_rng(7))).all()


@pytest.mark.parametrize("name", TEXTURES)
def test_a_texture_stays_in_range_and_depends_on_the_place_alone(name):
    """Shuffled points get shuffled values; furniture uses every texture."""
    rng, n = np.random.default_rng(0), 500
    p = {"panel": (2, 3, .07), "folds": (.12, 1, 0)}.get(name, (.2, 1, 0))
    fields = [*rng.uniform(-1, 1, (2, n)), np.full(n, .4), np.full(n, .8), rng.random(n) < .5,
              np.tile(p, (n, 1)), rng.integers(0, 1 << 16, n), np.full(n, .004)]
    mix, gain = TEXTURES[name](Patch(*fields))
    assert mix.min() >= 0 and mix.max() <= 1 + 1e-6 and np.min(gain) > 0 and np.max(gain) <= 1.15
    assert np.ptp(mix) + np.ptp(gain) > .3  # there is a pattern
    order = rng.permutation(n)
    again, _ = TEXTURES[name](Patch(*(x[order] for x in fields)))
    assert np.allclose(again, mix[order])
    assert any(name in room_of(seed).materials["texture"] for seed in range(8))


def test_lines_keep_their_share_of_the_surface_at_any_distance():
    x = np.linspace(0, 10, 100001)
    for foot in (.001, .01, .05):
        assert lines(x, .2, .06, foot).mean() == pytest.approx(.3, abs=.01)
    assert lines(x, .2, .02, .001).max() == 1 > .5 > lines(x, .2, .02, .04).max()  # thin: faint


def test_noise_is_uniform_and_differs_between_cells_and_seeds():
    i, j = (x.ravel() for x in np.mgrid[-50:50, -50:50])
    a, b = noise(i, j, 0 * i + 5), noise(i, j, 0 * i + 6)
    assert np.histogram(a, 10, (0, 1))[0].min() > 850 and abs(np.corrcoef(a, b)[0, 1]) < .05
    assert abs(np.corrcoef(a[:-1], a[1:])[0, 1]) < .05 and len(np.unique(a)) > 9900


def test_the_normal_is_that_of_the_surface_in_the_depth_image():
    """Against the cross product of the differences between neighbouring points."""
    rooms = import_module("00_rooms")
    room, height, width = room_of(12), 120, 160
    K, c2w = rooms.intrinsics(room, width, height), camera_path(room, 2, 12)[1]
    depth, part = rooms.trace(room, c2w, K, height, width)
    v, u = np.mgrid[:height, :width].astype(np.float64)
    ray = np.stack([u, v, 0 * u + 1], -1) @ np.linalg.inv(K).T @ c2w[:3, :3].T
    point = c2w[:3, 3] + depth[..., None] * ray
    flat = [x.reshape(-1, 3).T.astype(np.float32) for x in (point, ray)]
    surface = surface_at(room.parts, part.ravel(), *flat)
    normal = np.stack(surface.normal, -1).reshape(height, width, 3)[1:-1, 1:-1]
    assert np.allclose(np.linalg.norm(normal, axis=-1), 1, atol=1e-5)
    assert ((normal * ray[1:-1, 1:-1]).sum(-1) <= 0).all()  # towards the viewer
    along_v, along_u = point[2:, 1:-1] - point[:-2, 1:-1], point[1:-1, 2:] - point[1:-1, :-2]
    truth = np.cross(along_v, along_u)
    truth /= np.linalg.norm(truth, axis=-1, keepdims=True)
    shape = room.parts["shape"][part][1:-1, 1:-1]
    agree = np.abs((truth * normal).sum(-1)) > .97
    assert agree.mean() > .85 and all(agree[shape == kind].mean() > .4 for kind in (BOX, CYLINDER, BALL))


def test_a_surface_knows_the_place_on_its_face_and_its_front():
    parts = dict(shape=np.array([BOX]), centre=np.array([[1.0, 2, 3]]), half=np.array([[.5, .2, .4]]),
                 rot=np.eye(3)[None])
    points = np.array([[1.25, 2.2, 3.2], [1.5, 2.1, 2.8], [.75, 1.9, 3.4], [.75, 1.8, 3]], np.float32).T
    s = surface_at(parts, np.zeros(4, int), points, points - np.array([[1], [9], [9]], np.float32))
    assert np.allclose(np.stack(s.normal, 1)[[0, 2]], [[0, 1, 0], [0, 0, 1]])
    assert np.allclose(s.a, [.5, .5, -.5, -.5], atol=1e-5) and np.allclose(s.b, [.5, -.5, -.5, 0], atol=1e-5)
    assert np.allclose(s.ha, [.5, .2, .5, .5]) and np.allclose(s.hb, [.4, .4, .2, .4])
    assert s.front.tolist() == [True, False, False, False]


def test_the_label_table_names_every_label_of_a_room_once(tmp_path):
    classes.write_label_table(tmp_path / "table.tsv")
    rows = list(csv.DictReader((tmp_path / "table.tsv").read_text().splitlines(), delimiter="\t"))
    ids = [int(row["id"]) for row in rows]
    assert len(set(ids)) == len(ids) and ids == sorted(ids)
    assert [p.name for p in tmp_path.iterdir()] == ["table.tsv"]
    used = {int(label) for seed in range(8) for label in room_of(seed).parts["label"]}
    assert used <= {int(row["nyu40id"]) for row in rows} and len(used) == 23


def write(root, name, seed, mark=""):
    """A room of one file."""
    def whole(folder):
        (folder / "seed.txt").write_text(str(seed))
        (folder / "room.json").write_text(f'{{"generator": "00_rooms.py", "seed": {seed}}}')
    export.write_whole(export.Path(root) / name, {"seed": seed}, whole, mark)


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    def dies(folder):
        (folder / "half").write_text("")
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        export.write_whole(tmp_path / "room", {"seed": 1}, dies)
    assert not list(tmp_path.iterdir())
    write(tmp_path, "room", 1)
    with pytest.raises(KeyboardInterrupt):
        export.write_whole(tmp_path / "room", {"seed": 2}, dies)
    assert (tmp_path / "room/seed.txt").read_text() == "1" and len(list(tmp_path.iterdir())) == 1


def test_a_room_that_another_process_made_meanwhile_stays(tmp_path):
    def overtaken(folder):
        write(tmp_path, "room", 1)  # the other process
        (tmp_path / "room/seed.txt").write_text("theirs")
    export.write_whole(tmp_path / "room", {"seed": 1}, overtaken)
    assert (tmp_path / "room/seed.txt").read_text() == "theirs" and len(list(tmp_path.iterdir())) == 1


def test_only_missing_rooms_are_written_and_old_remains_are_cleared(tmp_path):
    calls = []

    def job(root, name, seed, mark):
        calls.append(seed)
        write(export.Path(root), name, seed, mark)
    write(tmp_path, "room0002_00", 2)
    write(tmp_path, "room0003_00", 4)
    stale, fresh = tmp_path / ".room0009_00.1.part", tmp_path / ".room0008_00.1.part"
    stale.mkdir(), fresh.mkdir()
    os.utime(stale, (time.time() - 7200,) * 2)
    names = export.write_missing(tmp_path, [3, 1, 2], lambda seed: {"seed": seed}, job, workers=1)
    assert names == ["room0003_00", "room0001_00", "room0002_00"] and calls == [3, 1]
    assert (tmp_path / "room0003_00/seed.txt").read_text() == "3" and not stale.exists() and fresh.exists()
    assert (tmp_path / "scannetv2-labels.combined.tsv").exists()


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: p.write_text("notes"),
                                  lambda p: p.symlink_to("nowhere")])
def test_what_is_no_room_of_ours_is_never_replaced(tmp_path, make):
    make(tmp_path / "room0003_00")
    before = os.lstat(tmp_path / "room0003_00")
    with pytest.raises(DataError, match="room0003_00: not a room that 00_rooms.py made"):
        export.write_missing(tmp_path, [3], lambda seed: {"seed": seed}, write, workers=1)
    assert os.lstat(tmp_path / "room0003_00").st_ino == before.st_ino
    assert [path.name for path in tmp_path.iterdir()] == ["room0003_00"]


def test_a_label_table_that_is_there_stays(tmp_path):
    table, job = tmp_path / LABELS_TSV, dict(about=lambda seed: {"seed": seed}, write=write, workers=1)
    classes.write_label_table(table)
    mine = table.read_bytes() + b"1400\tmine\tmine\t1\t1" + 12 * b"\t" + b"\r\n"
    table.write_bytes(mine)
    export.write_missing(tmp_path, [1], **job)
    assert table.read_bytes() == mine and (tmp_path / "room0001_00").is_dir()
    other = mine.replace(b"\t4\t\tbed", b"\t5\t\tbed")                     # a bed is a chair here
    assert other != mine
    for name, content in ((LABELS_TSV, other), (CLASSES_CSV, b"id,name,colour\n1,a,#000000\n")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}: .*name another folder"):
            export.write_missing(tmp_path, [2], **job)
        assert (tmp_path / name).read_bytes() == content and not (tmp_path / "room0002_00").exists()


def test_workers_that_are_stopped_leave_nothing_and_a_planted_link_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(export.secrets, "token_hex", lambda n: "abcdef")
    (tmp_path / "elsewhere").mkdir()
    root = tmp_path / "rooms"

    def stopped(root, name, seed, mark):
        (export.Path(root) / f".{name}.{mark}.part/color").mkdir(parents=True)       # as SIGTERM leaves it
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        export.write_missing(root, [1], lambda seed: {"seed": seed}, stopped, workers=1)
    assert [path.name for path in root.iterdir()] == [LABELS_TSV]
    (root / ".room0001_00.abcdef.part").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        export.write_missing(root, [1], lambda seed: {"seed": seed}, write, workers=1)
    assert not list((tmp_path / "elsewhere").iterdir())
