"""tools/models.py and support/rooms/meshes.py: a model is read, stands in a room, hides what is behind."""
import json
import subprocess
import sys
import zipfile
from importlib import import_module

import imageio.v3 as iio
import numpy as np
import pytest

from support.rooms import classes as nyu
from support.rooms import export, meshes
from support.rooms.meshes import Mesh, Place
from support.rooms.parts import turn
from tools import models

rooms = import_module("00_rooms")

CUBE = """mtllib cube.mtl
v 0 0 0
v 2 0 0
v 2 1 0
v 0 1 0
v 0 0 4
v 2 0 4
v 2 1 4
v 0 1 4
vt 0 0
vt 1 1
usemtl red paint
f 1 2 3 4
f 5/1 6/2 7/2 8/1
f 1 2 6 5
usemtl glass
f 4 3 7 8
usemtl wood
f -8 -5 -1 -4
f 2 3 7 6
"""
PAINTS = """newmtl red paint
Kd 1 0.5 0
newmtl glass
d 0.2
Kd 1 1 1
newmtl wood
map_Kd C:\\\\pictures\\old oak.png
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A library in which every model is a cuboid."""
    path = tmp_path_factory.mktemp("models") / "library.sh3f"
    oak = iio.imwrite("<bytes>", np.full((200, 8, 3), 128, np.uint8), extension=".png")
    with zipfile.ZipFile(path, "w") as archive:
        rows = []
        for n, name in enumerate((name for names in models.LABELS.values() for name in names.split()), 1):
            rows += [f"model#{n}=/m/{name}/{name}.obj", f"width#{n}=60", f"depth#{n}=50.5", f"height#{n}=90"]
            for kind, content in (("obj", CUBE), ("mtl", PAINTS)):
                archive.writestr(f"m/{name}/{name if kind == 'obj' else 'cube'}.{kind}", content)
            archive.writestr(f"m/{name}/old oak.png", oak)
        archive.writestr("PluginFurnitureCatalog.properties", "\n".join(rows))
    return str(path)


def test_reading_a_mesh(file):
    mesh = models.mesh_of(file, "table")
    assert models.library(file)[0]["table"][1] == pytest.approx([.6, .505, .9])
    assert mesh.corners.shape == (10, 3, 3) and len(mesh.colours) == 2           # the glass is left out
    assert np.bincount(mesh.material).tolist() == [6, 4]
    assert mesh.corners.min((0, 1)).tolist() == [-1] * 3 and mesh.corners.max((0, 1)).tolist() == [1] * 3
    assert mesh.colours[0] == pytest.approx([1, .5 ** 2.2, 0])
    assert mesh.colours[1].shape == (66, 2, 3) and mesh.colours[1].mean() == pytest.approx((128 / 255) ** 2.2)
    first, second = mesh.corners[0], mesh.corners[2]      # at z = 0, the back, and at z = 4, the front
    assert (first[:, 1] == -1).all() and (second[:, 1] == 1).all()
    assert first[:2, 2].tolist() == [-1, -1] and first[2, 2] == 1 and first[0, 0] == -first[1, 0]
    assert mesh.uv[2].tolist() == [[0, 0], [1, 1], [1, 1]]
    sides = np.cross(mesh.corners[:, 1] - mesh.corners[:, 0], mesh.corners[:, 2] - mesh.corners[:, 0])
    assert np.cross(sides[:, None], mesh.normals) == pytest.approx(0)
    assert np.abs(mesh.normals).max(2).min() > 0


def test_each_pixel_has_the_nearest_triangle_that_covers_it():
    rng = np.random.default_rng(0)
    uvz = np.concatenate([rng.uniform(-6, 26, (30, 3, 2)), rng.uniform(1, 9, (30, 3, 1))], 2)
    uvz[7, 0, 2] = .01                                                           # too near: left out
    pixel, t, z, share = meshes.covered(uvz, 16, 20)
    found = dict(zip(pixel.tolist(), zip(t.tolist(), z)))
    for v in range(16):
        for u in range(20):
            best = (None, np.inf)
            for k in set(range(30)) - {7}:
                a = np.vstack([uvz[k, :, :2].T, np.ones(3)])
                b = np.linalg.solve(a, [u, v, 1])
                if b.min() >= 0 and 1 / (b / uvz[k, :, 2]).sum() < best[1]:
                    best = k, 1 / (b / uvz[k, :, 2]).sum()
            assert found.get(v * 20 + u, (None, np.inf)) == (best[0], pytest.approx(best[1]))
    assert share.sum(1) == pytest.approx(1) and (uvz[t, :, 2] * share).sum(1) == pytest.approx(z)


def cube(colour, tint=None):
    """A closed cuboid of one colour, standing askew."""
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
    quads = [(0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5)]
    t = corners[[(q[0], q[i], q[i + 1]) for q in quads for i in (1, 2)]]
    flat = np.cross(t[:, 1] - t[:, 0], t[:, 2] - t[:, 0])[:, None].repeat(3, 1)
    mesh = Mesh(t, flat, np.tile([.3, .6], (12, 3, 1)), np.zeros(12, int), [colour])
    return Place(mesh, np.array([.3, 1.9, .6]), np.array([.5, .2, .6]), turn(.7), nyu.DESK, [tint])


def test_a_cuboid_is_drawn_where_a_part_of_the_room_would_be():
    place, room = cube(np.array([.2, .4, .6])), rooms.make_room(40003)
    P = {key: value[:6] for key, value in room.parts.items()}
    room.parts = P
    K, c2w = rooms.intrinsics(room, 64, 48), np.eye(4)
    c2w[:3, :3], c2w[:3, 3] = [[1, 0, 0], [0, 0, 1], [0, -1, 0]], [0, 0, .8]     # looks along y
    empty, _ = rooms.trace(room, c2w, K, 48, 64)
    more = dict(shape=rooms.BOX, centre=place.centre, half=place.half, rot=place.rot, material=0, label=1)
    room.parts = {key: np.concatenate([P[key], np.array(more[key])[None]]) for key in P}
    expected, part = rooms.trace(room, c2w, K, 48, 64)
    depth = empty.copy()
    pixel, point, normal, albedo = meshes.draw(place, c2w, K, depth)
    assert 200 < len(pixel) < 3000 and (np.flatnonzero(part.ravel() == 6) == pixel).all()
    assert depth == pytest.approx(expected, abs=1e-4)
    local = place.rot.T @ (point - place.centre[:, None]) / place.half[:, None]
    assert np.abs(local).max(0) == pytest.approx(1, abs=1e-4)                    # on a face
    face = np.abs(local).argmax(0)
    turned = place.rot.T @ normal
    assert np.abs(turned[face, range(len(face))]) == pytest.approx(1, abs=1e-5)
    assert (((point - c2w[:3, 3:]) * normal).sum(0) < 0).all()
    assert albedo == pytest.approx(np.tile([[.2], [.4], [.6]], len(pixel)))
    assert len(meshes.draw(place, c2w, K, np.full_like(depth, .5))[0]) == 0      # behind what is there
    c2w[:3, 3] = [0, 4, .8]
    assert len(meshes.draw(place, c2w, K, depth)[0]) == 0                        # behind the camera


def test_a_picture_is_looked_up_from_its_lower_left_and_may_be_tinted():
    picture = np.zeros((4, 4, 3))
    picture[1, 1] = .1, .2, .3                            # uv = (.3, .6): column 1, row 2 from below
    picture[2, 1] = .5, .25, 0
    c2w = np.eye(4)
    c2w[:3, :3], c2w[:3, 3] = [[1, 0, 0], [0, 0, 1], [0, -1, 0]], [0, 0, .8]
    K = np.array([[50, 0, 32], [0, 50, 24], [0, 0, 1.0]])
    _, _, _, albedo = meshes.draw(cube(picture), c2w, K, np.full((48, 64), 9.0))
    assert albedo[:, 0] == pytest.approx([.1, .2, .3])
    _, _, _, albedo = meshes.draw(cube(picture, np.array([0, .1, .02])), c2w, K, np.full((48, 64), 9.0))
    assert albedo[:, 0] == pytest.approx(np.array([0, .1, .02]) * .2 / picture.mean())


def test_rooms_have_models_of_their_class_and_say_so(file, tmp_path):
    size = dict(frames=3, width=48, height=36)
    models.write_room(tmp_path, "room45002_00", 45002, file, **size)
    about = json.loads((tmp_path / "room45002_00/room.json").read_text())
    assert about["models"] == "library.sh3f" and export.is_there(tmp_path / "room45002_00",
                                                                 models.settings(45002, file, **size))
    assert about["kind"].startswith("wide ")
    assert not export.is_there(tmp_path / "room45002_00", rooms.settings(45002, **size))  # nor one without
    room = models.furnished(file, 45002)
    assert len(room.places) >= 3 and "model" not in room.materials["texture"]
    assert {name for name, _, _ in room.objects} - {"model"} and ("model" in {x[0] for x in room.objects})
    K, poses = rooms.intrinsics(room, 48, 36), rooms.camera_path(room, 24, 45002)
    other = 0
    for pose in poses[::6]:
        rgb, depth, label = models.render(room, pose, K, 36, 48)
        plain, far, behind = rooms.render(room, pose, K, 36, 48)
        near = depth < far
        assert (depth <= far).all() and (rgb[~near] == plain[~near]).all() and (label == behind)[~near].all()
        assert {*np.unique(label[near])} <= {place.label for place in room.places}
        assert (rgb[near] != plain[near]).any(-1).mean() > .8 or not near.any()
        other += near.sum()
    assert other > 200


@pytest.mark.parametrize("content, said", [(b"no archive", "not a furniture library"), (None, "no model")])
def test_another_file_is_refused_in_one_line(content, said, tmp_path):
    path = tmp_path / "some.sh3f"
    if content:
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("PluginFurnitureCatalog.properties",
                             "model#1=/a/b.obj\nwidth#1=1\ndepth#1=1\nheight#1=1")
    command = [sys.executable, "-m", "tools.models", str(path), "--data", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and said in done.stderr.splitlines()[-1] and not (tmp_path / "out").exists()


def test_rooms_that_are_not_wide_are_refused(file, tmp_path):
    command = [sys.executable, "-m", "tools.models", file, "--data", str(tmp_path / "out"), "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "--seed 7: no wide room" in done.stderr
    assert not (tmp_path / "out").exists()
