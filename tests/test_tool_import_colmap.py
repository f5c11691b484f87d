"""support/layouts/colmap.py: models written here from poses and lenses, read back to 1e-6."""
import struct

import imageio.v3 as iio
import numpy as np
import pytest
from captures import SIZE, K, check_pixels, colours, imported, importer, pinhole, refused, run, write_images
from conftest import HALF, camera

from support.files import read_near_far
from support.layouts import colmap

MODELS = {name: (number, names.split()) for number, (name, names) in colmap.MODELS.items()}
VALUES = {"f": 55.0, "fx": 55.0, "fy": 54.0, "cx": 32.3, "cy": 24.1, "k1": 0.11, "k2": -0.03, "k3": 0.01,
          "k4": 0.002, "p1": 0.003, "p2": -0.002}


def quaternion(R: np.ndarray) -> list[float]:
    """(w, x, y, z) of a rotation: the eigenvector of the largest eigenvalue of Bar-Itzhack's matrix."""
    a = R
    M = np.array([[a[0, 0] + a[1, 1] + a[2, 2], a[2, 1] - a[1, 2], a[0, 2] - a[2, 0], a[1, 0] - a[0, 1]],
                  [0, a[0, 0] - a[1, 1] - a[2, 2], a[0, 1] + a[1, 0], a[0, 2] + a[2, 0]],
                  [0, 0, a[1, 1] - a[0, 0] - a[2, 2], a[1, 2] + a[2, 1]],
                  [0, 0, 0, a[2, 2] - a[0, 0] - a[1, 1]]])
    return np.linalg.eigh(M + np.triu(M, 1).T)[1][:, -1].tolist()


def write_model(folder, cameras: list, shots: list, points: list, binary: bool) -> None:
    """cameras [(id, model, w, h, values)], shots [(camera id, name, c2w, point ids)], points [(x, y, z)]."""
    folder.mkdir(parents=True)
    rows = []
    for i, (which, name, c2w, ids) in enumerate(shots, 1):
        R = c2w[:3, :3].T
        rows.append((i, [*quaternion(R), *(-R @ c2w[:3, 3]).tolist()], which, name, ids))
    if binary:
        raw = struct.pack("<Q", len(cameras))
        for number, model, w, h, values in cameras:
            raw += struct.pack(f"<IiQQ{len(values)}d", number, MODELS[model][0], w, h, *values)
        (folder / "cameras.bin").write_bytes(raw)
        raw = struct.pack("<Q", len(rows))
        for i, numbers, which, name, ids in rows:
            raw += struct.pack("<I7dI", i, *numbers, which) + name.encode() + b"\0"
            raw += struct.pack("<Q", len(ids)) + b"".join(struct.pack("<ddq", 1.0, 2.0, j) for j in ids)
        (folder / "images.bin").write_bytes(raw)
        raw = struct.pack("<Q", len(points))
        for i, point in enumerate(points):
            raw += struct.pack("<Q3d3BdQ2I", i, *point, 1, 2, 3, 0.5, 1, 7, 8)
        (folder / "points3D.bin").write_bytes(raw)
        return
    (folder / "cameras.txt").write_text("# cameras\n" + "".join(
        f"{number} {model} {w} {h} {' '.join(map(repr, values))}\n"
        for number, model, w, h, values in cameras))
    (folder / "images.txt").write_text("# images\n# two lines each\n" + "".join(
        f"{i} {' '.join(map(repr, numbers))} {which} {name}\n{' '.join(f'1.0 2.0 {j}' for j in ids)}\n"
        for i, numbers, which, name, ids in rows))
    (folder / "points3D.txt").write_text("# points\n" + "".join(
        f"{i} {x!r} {y!r} {z!r} 1 2 3 0.5 7 8\n" for i, (x, y, z) in enumerate(points)))


def names(count: int) -> list[str]:
    return [f"{i:04d}.png" for i in range(count)]


@pytest.mark.parametrize("binary", [True, False], ids=["bin", "txt"])
@pytest.mark.parametrize("model", MODELS)
def test_poses_and_lens_come_back(tmp_path, model, binary):
    write_images(tmp_path / "c/images", 5)
    values = [VALUES[key] for key in MODELS[model][1]]
    shots = [(3, name, camera(i), [-1]) for i, name in enumerate(names(5))]
    write_model(tmp_path / "c/sparse/0", [(3, model, 64, 48, values)], shots, [], binary)
    photos = colmap.read(tmp_path / "c").photos
    for i, photo in enumerate(photos):
        assert photo.image.name == names(5)[i] and np.abs(photo.c2w - camera(i)).max() < 1e-6
        lens = photo.camera
        want = VALUES | {"fx": VALUES["f"], "fy": VALUES["f"]} if "f" in MODELS[model][1] else VALUES
        got = (lens.fx, lens.fy, lens.cx + 0.5, lens.cy + 0.5)
        assert got == pytest.approx([want[key] for key in ("fx", "fy", "cx", "cy")], abs=1e-6)
        for key in ("k1", "k2", "k3", "k4", "p1", "p2"):
            assert getattr(lens, key) == (VALUES[key] if key in MODELS[model][1] else 0)
        assert lens.fisheye == model.endswith("FISHEYE")


@pytest.mark.parametrize("binary", [True, False], ids=["bin", "txt"])
def test_a_capture_of_colmap_comes_in_with_near_and_far_of_its_points(tmp_path, binary, capsys):
    source = tmp_path / "c"
    write_images(source / "images", 26)
    generator = np.random.default_rng(0)
    points = generator.uniform(-1, 1, (400, 3))
    points = points / np.abs(points / HALF).max(1, keepdims=True)             # on the walls
    shots = []
    for i, name in enumerate(names(24)):                                      # two more are not registered
        local = (points - camera(i)[:3, 3]) @ camera(i)[:3, :3]
        shots.append((1, name, camera(i), np.flatnonzero(local[:, 2] > 0.3).tolist() + [-1]))
    write_model(source / "sparse/0", [(1, "PINHOLE", 64, 48, [55.0, 55.0, 32.0, 24.0])], shots[::-1],
                points.tolist(), binary)
    scene = imported(source, tmp_path / "out", measure=True)
    check_pixels(scene, 24, 0.01)
    screen = capsys.readouterr().out
    assert "2 images are not in the model (unregistered): left out" in screen and "400 points" in screen
    depths = np.concatenate([((points - camera(i)[:3, 3]) @ camera(i)[:3, 2])[shots[i][3][:-1]]
                             for i in range(24)])
    low, high = np.percentile(depths, (2, 98))
    assert read_near_far(scene.folder / "near_far.txt") == pytest.approx((0.5 * low, 1.5 * high), rel=1e-4)


def test_several_cameras_become_one_and_images_of_half_the_size_scale_theirs(tmp_path, capsys):
    source = tmp_path / "c"
    other = np.array([[60.0, 0, 30.5], [0, 60.0, 24.5], [0, 0, 1]])
    write_images(source / "images_2", 12)
    write_images(source / "images_2", 24, pinhole(other), first=12)
    cameras = [(1, "SIMPLE_PINHOLE", 128, 96, [110.0, 64.0, 48.0]),
               (2, "PINHOLE", 128, 96, [120.0, 120.0, 62.0, 50.0])]
    shots = [(1 + (i >= 12), name, camera(i), []) for i, name in enumerate(names(24))]
    write_model(source / "sparse/0", cameras, shots, [], True)
    write_model(source / "sparse/1", cameras, shots[:3], [], True)
    check_pixels(imported(source, tmp_path / "out"), 24)
    assert "sparse/0 of several models" in capsys.readouterr().out


def test_an_llff_folder_with_a_model_takes_its_cameras_and_its_own_bounds(tmp_path, capsys):
    source = tmp_path / "fern"
    write_images(source / "images", 24)
    rows = [[*np.hstack([np.eye(3, 4), [[48], [64], [99]]]).ravel(), 0.5, 6.0]] * 24  # the wrong focal length
    np.save(source / "poses_bounds.npy", np.array(rows))
    write_model(source / "sparse/0", [(1, "PINHOLE", 64, 48, [55.0, 55.0, 32.0, 24.0])],
                [(1, name, camera(i), []) for i, name in enumerate(names(24))], [], True)
    scene = imported(source, tmp_path / "out", measure=True)
    check_pixels(scene, 24, 0.01)
    assert scene.near_far == pytest.approx((0.45, 6.0)) and "recognised as COLMAP" in capsys.readouterr().out


def test_masks_beside_the_images_are_used(tmp_path):
    source = tmp_path / "c"
    write_images(source / "images", 20)
    write_model(source / "sparse/0", [(1, "PINHOLE", 64, 48, [55.0, 55.0, 32.0, 24.0])],
                [(1, name, camera(i), []) for i, name in enumerate(names(20))], [], False)
    (source / "masks").mkdir()
    mask = np.full(SIZE, 255, np.uint8)
    mask[10:20, 5:9] = 0
    for name in names(20):
        iio.imwrite(source / f"masks/{name}.png", mask)
    views = imported(source, tmp_path / "out").views([0, 7])
    assert (views.mask.numpy() == (mask > 0)).all()


def damaged(folder, name, content):
    write_images(folder / "images", 3)
    write_model(folder / "sparse/0", [(1, "PINHOLE", 64, 48, [55.0, 55.0, 32.0, 24.0])],
                [(1, n, camera(i), [-1]) for i, n in enumerate(names(3))], [(1.0, 2.0, 3.0)],
                name.endswith("bin"))
    path = folder / "sparse/0" / name
    path.write_bytes(content(path.read_bytes()))


@pytest.mark.parametrize("name, content, words", [
    ("cameras.bin", lambda raw: raw[:20], "ends too early"),
    ("cameras.bin", lambda raw: raw[:12] + struct.pack("<i", 6) + raw[16:], "FULL_OPENCV is not read"),
    ("cameras.bin", lambda raw: raw[:12] + struct.pack("<i", 77) + raw[16:], "camera model 77"),
    ("cameras.bin", lambda raw: raw[:32] + struct.pack("<d", -1) + raw[40:], "are no parameters"),
    ("images.bin", lambda raw: raw[:-4], "ends too early"),
    ("images.bin", lambda raw: raw[:-16 - 16] + struct.pack("<Q", 2 ** 60) + raw[-24:], "ends too early"),
    ("images.bin", lambda raw: raw[:12] + struct.pack("<d", 9) + raw[20:], "not of length 1"),
    ("images.bin", lambda raw: struct.pack("<Q", 0), "not one image is registered"),
    ("points3D.bin", lambda raw: raw[:-3], "ends too early"),
    ("cameras.txt", lambda raw: b"1 FOV 64 48 55 32 24 0.9\n", "FOV is not read"),
    ("cameras.txt", lambda raw: b"1 PINHOLE 64 48 55\n", "are no parameters"),
    ("cameras.txt", lambda raw: b"2 PINHOLE 64 48 55 55 32 24\n", "has camera 1, which"),
    ("cameras.txt", lambda raw: b"1 PINHOLE 48 64 55 55 24 32\n", "another shape"),
    ("cameras.txt", lambda raw: b"1 PINHOLE 64 48 55 55 64 48\n", "far from the middle"),
    ("images.txt", lambda raw: raw.replace(b"0001.png", b"../../x.png"), "leads out"),
    ("images.txt", lambda raw: b"\xff\xfe", "cannot be read"),
    ("points3D.txt", lambda raw: b"1 a b c\n", "not COLMAP's points")])
def test_a_damaged_model_ends_in_one_line(tmp_path, name, content, words):
    damaged(tmp_path / "c", name, content)
    assert words in refused(importer, tmp_path / "c", "--out", tmp_path / "out", "--near", 1, "--far", 2)


@pytest.mark.parametrize("place", ["sparse", "colmap/sparse/0", "dense/sparse"])
def test_other_places_of_a_model_and_the_file_itself(tmp_path, place):
    images = "dense/images" if place.startswith("dense") else "images"
    write_images(tmp_path / "c" / images, 3)
    write_model(tmp_path / "c" / place, [(1, "PINHOLE", 64, 48, [55.0, 55.0, 32.0, 24.0])],
                [(1, n, camera(i), []) for i, n in enumerate(names(3))], [], True)
    run(importer, tmp_path / "c", "--out", tmp_path / "out", "--near", 1, "--far", 2)
    assert (iio.imread(tmp_path / "out/c/color/1.png") == colours(pinhole(K), camera(1))).all()
