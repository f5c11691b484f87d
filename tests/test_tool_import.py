"""tools/import_scenes.py and support/layouts: axes, centres, focal lengths, depth of each layout; a scene
written in each and imported back; what is refused."""
import json
import os
import shutil
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from support.datasets import split_by_space
from support.files import DataError, read_near_far
from support.labels import LABELS_TSV, SCANNET
from support.layouts import replica

rooms, data = import_module("00_rooms"), import_module("01_data")
training, evaluation = import_module("07_train"), import_module("08_eval")
importer = import_module("tools.import_scenes")
FLIP = np.diag([1.0, -1, -1, 1])                                              # OpenCV <-> OpenGL axes


def run(module, *arguments):
    """A script's main() as `python script arguments` runs it, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["script.py", *map(str, arguments)])
        patch.setattr("support.machine.prepare_cpu", lambda: None)            # its settings would stay
        module.main()


def refused(*arguments) -> str:
    """The one clear line of an import that fails; nothing may be left behind, not even a hidden folder."""
    out = Path(arguments[arguments.index("--out") + 1])
    with pytest.raises(DataError) as error:
        run(importer, *arguments)
    assert "\n" not in str(error.value)
    assert not out.exists() or not [p for p in out.iterdir() if p.is_dir()]
    return str(error.value)


@pytest.fixture(scope="module")
def room(tmp_path_factory) -> Path:
    """One room of ours, 20 frames of 64x48."""
    root = tmp_path_factory.mktemp("rooms")
    return root / rooms.make_rooms(root, [5], frames=20, width=64, height=48, workers=1)[0]


def frames_of(room: Path):
    """[(number, c2w (4, 4), colour path)], K (3, 3) of a scene in ScanNet layout, read by hand."""
    K = np.loadtxt(room / "intrinsic/intrinsic_color.txt")[:3, :3]
    return [(i, np.loadtxt(room / f"pose/{i}.txt"), room / f"color/{i}.jpg") for i in range(20)], K


# ------------------------------------------------------------------------------- writers, one for each layout

def write_nerfstudio(room: Path, folder: Path, **extra) -> None:
    (folder / "images").mkdir(parents=True)
    frames, K = frames_of(room)
    for i, _, colour in frames:
        shutil.copy(colour, folder / f"images/frame_{i + 1:05d}.jpg")
    meta = {"camera_model": "OPENCV", "fl_x": K[0, 0], "fl_y": K[1, 1],
            "cx": K[0, 2] + 0.5, "cy": K[1, 2] + 0.5, "w": 64, "h": 48,
            "k1": 0.0, "frames": []}
    for i, c2w, _ in frames:
        meta["frames"].append({"file_path": f"images/frame_{i + 1:05d}.jpg",
                               "transform_matrix": (c2w @ FLIP).tolist()})
    (folder / "transforms.json").write_text(json.dumps(meta | extra))


def write_blender(room: Path, folder: Path) -> None:
    """train, val and test; images as png; square pixels and a middle axis are given, the room's own K is not
    used."""
    frames, _ = frames_of(room)
    for split, part in (("train", frames[:12]), ("val", frames[12:14]), ("test", frames[14:])):
        (folder / split).mkdir(parents=True)
        for k, (_, _, colour) in enumerate(part):
            iio.imwrite(folder / split / f"r_{k}.png", iio.imread(colour))
        (folder / f"transforms_{split}.json").write_text(json.dumps({"camera_angle_x": 0.9, "frames": [
            {"file_path": f"./{split}/r_{k}", "rotation": 0.1, "transform_matrix": (c2w @ FLIP).tolist()}
            for k, (_, c2w, _) in enumerate(part)]}))


def write_llff(room: Path, folder: Path, focal: float = 60.0, factor: int = 1) -> None:
    """images/ (or images_4 of a photograph four times the size), rows [R | t | H W f] in the axes down,
    right, back, and bounds."""
    name = "images" if factor == 1 else f"images_{factor}"
    (folder / name).mkdir(parents=True)
    rows = []
    for i, c2w, colour in frames_of(room)[0]:
        shutil.copy(colour, folder / name / f"IMG_{i:04d}.JPG")
        right, down, forward, position = c2w[:3].T
        hwf = [48 * factor, 64 * factor, focal * factor]
        pose = np.stack([down, right, -forward, position, hwf], axis=1)
        rows.append([*pose.ravel(), 0.5 + 0.01 * i, 6.0 + 0.1 * i])
    np.save(folder / "poses_bounds.npy", np.array(rows))


def sens_bytes(frames: list, K: np.ndarray, depth_K: np.ndarray, size, depth_size, shift=1000.0) -> bytes:
    """A .sens file of [(c2w, jpeg bytes, depth (h, w) uint16)]."""

    def four(matrix):
        return np.pad(matrix, (0, 4 - len(matrix))).astype("<f4").tobytes()
    head = struct.pack("<IQ", 4, 6) + b"sensor" + four(K) + four(np.eye(4)) + four(depth_K) + four(np.eye(4))
    head += struct.pack("<iiIIIIfQ", 2, 1, size[1], size[0], depth_size[1], depth_size[0], shift, len(frames))
    for c2w, colour, depth in frames:
        packed = zlib.compress(depth.astype("<u2").tobytes())
        head += c2w.astype("<f4").tobytes() + struct.pack("<QQQQ", 1, 2, len(colour), len(packed))
        head += colour + packed
    return head


def write_sens(room: Path, folder: Path) -> None:
    """The room as a download: scans/scene0123_00/ with .sens and zip, the table above; frame 3 lost."""
    scan = folder / "scans/scene0123_00"
    scan.mkdir(parents=True)
    frames, K = frames_of(room)
    made = [(c2w, colour.read_bytes(), iio.imread(room / f"depth/{i}.png")) for i, c2w, colour in frames]
    made[3] = (np.full((4, 4), -np.inf), *made[3][1:])
    (scan / "scene0123_00.sens").write_bytes(sens_bytes(made, K, K, (48, 64), (48, 64)))
    with zipfile.ZipFile(scan / "scene0123_00_2d-label-filt.zip", "w") as archive:
        for i, _, _ in frames:
            archive.write(room / f"label-filt/{i}.png", f"label-filt/{i}.png")
    shutil.copy(room.parent / LABELS_TSV, folder)


def write_replica(folder: Path, box, count: int = 20, ids=(93, 40, 0, 31, 20, 101)) -> None:
    """room_0/Sequence_1 of the box: a camera 90 degrees wide; the box's walls get class ids of Replica's."""
    K = np.array([[32.0, 0, 31.5], [0, 32, 23.5], [0, 0, 1]])
    sequence = folder / "room_0/Sequence_1"
    for kind in ("rgb", "depth", "semantic_class"):
        (sequence / kind).mkdir(parents=True)
    lines = []
    for i in range(count):
        colour, depth, raw = box.photograph(K, box.camera(i), 48, 64)
        iio.imwrite(sequence / f"rgb/rgb_{i}.png", colour)
        iio.imwrite(sequence / f"depth/depth_{i}.png", (1000 * depth).round().astype(np.uint16))
        walls = {value: ids[k] for k, value in enumerate((1, 3, 0, 1163, 1357, 21))}
        classes = np.vectorize(walls.get)(raw).astype(np.uint8)
        iio.imwrite(sequence / f"semantic_class/semantic_class_{i}.png", classes)
        lines.append(" ".join(f"{x:.9f}" for x in box.camera(i).ravel()))
    (sequence / "traj_w_c.txt").write_text("\n".join(lines) + "\n")


# ----------------------------------------------------------------------------- a known point at a known pixel

def pixel_of(point, scene) -> np.ndarray:
    """Where the first camera of a scene sees a world point: u, v, depth."""
    uv, z = data.project(torch.tensor([point], dtype=torch.float32), scene.K[None], scene.c2w[:1])
    return np.array([*uv[0, 0].tolist(), z.item()])


def small(tmp_path: Path, name: str, size=(40, 60)) -> Path:
    """An image of one colour with a red pixel in column 10, row 5."""
    image = np.full((*size, 3), 90, np.uint8)
    image[5, 10] = 255, 0, 0
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    iio.imwrite(tmp_path / name, image)
    return tmp_path / name


def test_blender_a_point_up_and_right_of_the_camera_is_up_and_right_in_the_image(tmp_path):
    small(tmp_path, "lego/train/r_0.png")
    small(tmp_path, "lego/train/r_1.png")
    poses = [np.eye(4), np.eye(4)]  # camera axes are the world's: it looks along -z
    poses[0][:3, 3], poses[1][:3, 3] = (0, 0, 4), (1, 0, 4)
    (tmp_path / "lego/transforms_train.json").write_text(json.dumps({
        "camera_angle_x": 2 * np.arctan(30 / 80),  # focal length 80 for a width of 60
        "frames": [{"file_path": f"./train/r_{i}", "transform_matrix": p.tolist()}
                   for i, p in enumerate(poses)]}))
    run(importer, tmp_path / "lego", "--out", tmp_path / "out", "--near", 1, "--far", 9)
    scene = data.Scene(tmp_path / "out/lego", 40, 60, tmp_path / "cache")
    # 1 right, 0.5 up, 4 in front: 80 * 1 / 4 right of the middle (29.5), 80 * 0.5 / 4 above the middle (19.5)
    assert pixel_of((1.0, 0.5, 0.0), scene) == pytest.approx([49.5, 9.5, 4], abs=1e-4)
    assert scene.near_far == (1, 9)


def test_nerfstudio_a_principal_point_loses_half_a_pixel_and_scales_with_the_image(tmp_path):
    small(tmp_path, "c/images/a.png")
    frames = [{"file_path": "images/a.png", "transform_matrix": np.eye(4).tolist()}]
    (tmp_path / "c/transforms.json").write_text(json.dumps(
        {"fl_x": 100, "fl_y": 120, "cx": 61, "cy": 38, "w": 120, "h": 80, "frames": frames}))
    # an image of half the size
    run(importer, tmp_path / "c", "--out", tmp_path / "out", "--near", 1, "--far", 9)
    scene = data.Scene(tmp_path / "out/c", 40, 60, tmp_path / "cache")
    assert scene.K.numpy() == pytest.approx(np.array([[50, 0, 30], [0, 60, 18.5], [0, 0, 1]]), abs=1e-5)
    # 0.2 right, 0.1 down, 2 in front of a camera that looks along -z
    assert pixel_of((0.2, -0.1, -2.0), scene) == pytest.approx([50 * 0.1 + 30, 60 * 0.05 + 18.5, 2], abs=1e-4)


def test_llff_a_point_down_and_right_of_the_camera(tmp_path):
    small(tmp_path, "fern/images_4/a.png")
    pose = np.zeros((3, 5))
    # world z is down, x right, y back: forward is -y
    pose[:, 0], pose[:, 1], pose[:, 2] = (0, 0, 1), (1, 0, 0), (0, 1, 0)
    pose[:, 3], pose[:, 4] = (0.5, 0, 0), (160, 240, 320)
    np.save(tmp_path / "fern/poses_bounds.npy", np.array([[*pose.ravel(), 2.0, 7.0]]))
    run(importer, tmp_path / "fern", "--out", tmp_path / "out")
    scene = data.Scene(tmp_path / "out/fern", 40, 60, tmp_path / "cache")
    # 1 right of the camera, 0.5 down, 5 in front; focal length 320 / 4
    assert pixel_of((1.5, -5.0, 0.5), scene) == pytest.approx([29.5 + 80 / 5, 19.5 + 40 / 5, 5], abs=1e-4)
    assert scene.near_far == pytest.approx((1.8, 7))                          # 0.9 of the nearest bound


def test_sens_depth_of_another_scale_becomes_millimetres_and_the_jpeg_is_copied(tmp_path):
    jpeg = iio.imwrite("<bytes>", np.full((40, 60, 3), 90, np.uint8), extension=".jpg")
    K, pose = np.array([[80.0, 0, 31], [0, 90, 18], [0, 0, 1]]), np.eye(4)
    pose[:3, 3] = 1, 2, 3
    depth = np.full((20, 30), 5000, np.uint16)
    depth[4, 7] = 12000
    depth_K = np.diag([0.5, 0.5, 1]) @ K
    raw = sens_bytes([(pose, jpeg, depth)], K, depth_K, (40, 60), (20, 30), shift=4000.0)
    (tmp_path / "scene0001_00.sens").write_bytes(raw)
    run(importer, tmp_path / "scene0001_00.sens", "--out", tmp_path / "out")
    scene = data.Scene(tmp_path / "out/scene0001_00", 40, 60, tmp_path / "cache")
    assert (scene.folder / "color/0.jpg").read_bytes() == jpeg
    values = iio.imread(scene.folder / "depth/0.png")
    assert values[4, 7] == 3000 and values[0, 0] == 1250                      # 12000 / 4000 metres
    # OpenCV axes
    assert pixel_of((2.0, 2.5, 8.0), scene) == pytest.approx([80 / 5 + 31, 45 / 5 + 18, 5], abs=1e-4)
    assert scene.near_far is None                                             # metres


def test_replica_camera_at_640x480_and_depth_in_millimetres(tmp_path):
    sequence = tmp_path / "office_3/Sequence_1"
    image = np.zeros((480, 640), np.uint16)
    image[100, 200] = 2345
    label = (image > 0).astype(np.uint8) * 93
    colour = np.zeros((480, 640, 3), np.uint8)
    for kind, picture in (("rgb", colour), ("depth", image), ("semantic_class", label)):
        (sequence / kind).mkdir(parents=True)
        iio.imwrite(sequence / f"{kind}/{kind}_0.png", picture)
    pose = np.eye(4)
    pose[:3, 3] = -1, 0, 0
    (sequence / "traj_w_c.txt").write_text(" ".join(map(str, pose.ravel())))
    run(importer, tmp_path / "office_3", "--out", tmp_path / "out")
    scene = data.Scene(tmp_path / "out/office_3_01", 480, 640, tmp_path / "cache")
    assert scene.K.tolist() == [[320, 0, 319.5], [0, 320, 239.5], [0, 0, 1]]  # not 229.5
    assert pixel_of((0.0, 0.5, 2.0), scene) == pytest.approx([160 + 319.5, 80 + 239.5, 2], abs=1e-4)
    views = scene.views([0])
    assert views.depth[0, 100, 200] == pytest.approx(2.345)
    assert scene.classes.names[views.labels[0, 100, 200]] == "wall"
    assert views.labels[0, 0, 0] == data.IGNORE                               # class 0 is void


def test_replicas_class_list():
    names = replica.CLASSES
    assert len(names) == 101 and len(set(names)) == 101
    known = {1: "backpack", 20: "chair", 31: "ceiling", 40: "floor", 76: "sofa", 93: "wall", 97: "window",
             98: "rug", 101: "set-of-clothing"}
    assert all(names[i - 1] == name for i, name in known.items())


# ---------------------------------------------------------------------------------- written and imported back

def same_scene(there: Path, room: Path, numbers, tolerance=1e-5):
    """Same cameras and the same images to the byte of a decoded pixel."""
    frames, _ = frames_of(room)
    scene = data.Scene(there, 48, 64, there.parent / "cache")
    assert len(scene) == len(numbers)
    for got, (number, c2w, colour) in zip(range(len(scene)), [frames[i] for i in numbers]):
        assert scene.c2w[got].numpy() == pytest.approx(c2w, abs=tolerance)
        assert np.array_equal(iio.imread(scene.files(scene.frames[got])[0])[..., :3], iio.imread(colour))
    return scene


@pytest.mark.slow
def test_a_room_as_nerfstudio_comes_back(room, tmp_path, capsys):
    write_nerfstudio(room, tmp_path / "phone")
    run(importer, tmp_path / "phone", "--out", tmp_path / "out")
    scene, screen = same_scene(tmp_path / "out/phone", room, range(20)), capsys.readouterr().out
    assert scene.K.numpy() == pytest.approx(data.Scene(room, 48, 64).K.numpy(), abs=1e-5)
    # copied, not encoded again
    assert (scene.folder / "color/0.jpg").read_bytes() == (room / "color/0.jpg").read_bytes()
    assert "Blender / nerfstudio" in screen and "20 frames of 64x48" in screen
    assert "near" in screen and "measured" in screen
    near, far = scene.near_far
    depth = data.Scene(room, 48, 64, tmp_path / "cache").views(range(20)).depth
    assert near < depth.quantile(0.02) and depth.quantile(0.98) < far < 2 * depth.max()
    assert not scene.has_labels


@pytest.mark.slow
def test_a_room_as_blender_comes_back_with_its_splits(room, tmp_path):
    write_blender(room, tmp_path / "lego")
    run(importer, tmp_path / "lego", "--out", tmp_path / "out")
    scene = same_scene(tmp_path / "out/lego", room, range(20))
    focal = 32 / np.tan(0.45)
    K = np.array([[focal, 0, 31.5], [0, focal, 23.5], [0, 0, 1]])
    assert scene.K.numpy() == pytest.approx(K, abs=1e-4)
    about = json.loads((scene.folder / "import.json").read_text())["frames"]
    assert [frame["split"] for frame in about] == ["train"] * 12 + ["val"] * 2 + ["test"] * 6


@pytest.mark.parametrize("factor", [1, 4])
def test_a_room_as_llff_comes_back(room, tmp_path, factor):
    write_llff(room, tmp_path / "fern", factor=factor)
    run(importer, tmp_path / "fern", "--out", tmp_path / "out")
    scene = same_scene(tmp_path / "out/fern", room, range(20))
    assert scene.K.numpy() == pytest.approx(np.array([[60, 0, 31.5], [0, 60, 23.5], [0, 0, 1]]), abs=1e-5)
    assert scene.near_far == pytest.approx((0.45, 7.9))


def test_a_room_as_a_scannet_download_comes_back_labels_depth_and_all(room, tmp_path, capsys):
    write_sens(room, tmp_path / "download")
    run(importer, tmp_path / "download", "--out", tmp_path / "out", "--every", 1)
    numbers = [i for i in range(20) if i != 3]                                # tracking was lost in frame 3
    scene = same_scene(tmp_path / "out/scene0123_00", room, numbers)
    assert scene.frames == numbers and "19 frames of 64x48 (1 more without a pose)" in capsys.readouterr().out
    truth = data.Scene(room, 48, 64, tmp_path / "cache")
    got, want = scene.views([4, 9]), truth.views([5, 10])
    assert torch.equal(got.labels, want.labels) and torch.equal(got.depth, want.depth)
    assert (got.labels >= 0).any()
    assert torch.allclose(scene.K, truth.K, atol=1e-5) and scene.classes == SCANNET


def test_every_tenth_frame_keeps_its_number_and_its_label(room, tmp_path):
    write_sens(room, tmp_path / "download")
    run(importer, tmp_path / "download", "--out", tmp_path / "out")           # 10 is the default for a scan
    folder = tmp_path / "out/scene0123_00"
    assert sorted(p.name for p in (folder / "label-filt").iterdir()) == ["0.png", "10.png"]
    assert (folder / "label-filt/10.png").read_bytes() == (room / "label-filt/10.png").read_bytes()
    same_scene(folder, room, [0, 10])


def test_the_box_as_replica_comes_back_with_its_own_classes(box, tmp_path, capsys):
    write_replica(tmp_path / "Replica_Dataset", box)
    run(importer, tmp_path / "Replica_Dataset", "--out", tmp_path / "out", "--every", 1)
    screen = capsys.readouterr().out
    assert "101 classes" in screen and "93 wall" in screen and "6 to train on, 2 for testing" in screen
    scene = data.Scene(tmp_path / "out/room_0_01", 48, 64, tmp_path / "cache")
    views, L = scene.views([7]), {name: i for i, name in enumerate(scene.classes.names)}
    colour, depth, raw = box.photograph(views.K[0].double().numpy(), box.camera(7), 48, 64)
    assert views.c2w[0].numpy() == pytest.approx(box.camera(7), abs=1e-5)
    assert np.array_equal((views.images[0].permute(1, 2, 0) * 255).round().byte().numpy(), colour)
    assert views.depth[0].numpy() == pytest.approx(depth, abs=6e-4)
    classes = {1: L["wall"], 3: L["floor"], 0: -1, 1163: L["ceiling"], 1357: L["chair"],
               21: L["set-of-clothing"]}
    want = np.vectorize(classes.get)(raw)
    assert np.array_equal(views.labels[0].numpy(), want) and len(np.unique(want)) > 2
    train, test = split_by_space(["room_0_01", "room_0_02", "room_2_01"], tmp_path / "out/split.txt")
    assert train == ["room_0_01", "room_0_02"] and test == ["room_2_01"]      # two sequences are one space


def test_near_and_far_come_from_the_points_that_nerfstudio_leaves_or_from_depth_maps(room, tmp_path):
    write_nerfstudio(room, tmp_path / "c", ply_file_path="sparse_pc.ply")
    scene = data.Scene(room, 48, 64, tmp_path / "cache")
    views = scene.views([2, 11])
    grid = data.pixel_grid(48, 64)[::9]
    points = torch.cat([data.unproject(grid, view.depth.flatten()[::9], view.K, view.c2w)
                        for view in (views[0], views[1])])
    head = "".join(f"{line}\n" for line in (
        "ply", "format ascii 1.0", f"element vertex {len(points)}", "property float x", "property float y",
        "property float z", "property uint8 red", "end_header"))
    rows = "".join(f"{x} {y} {z} 255\n" for x, y, z in points.tolist())
    (tmp_path / "c/sparse_pc.ply").write_text(head + rows)
    run(importer, tmp_path / "c", "--out", tmp_path / "out")
    near, far = read_near_far(tmp_path / "out/c/near_far.txt")
    depth = scene.views(range(20)).depth
    assert 0.3 < near < depth.quantile(0.05) and depth.quantile(0.95) < far < 1.6 * depth.max()

    meta = json.loads((tmp_path / "c/transforms.json").read_text())
    for i, frame in enumerate(meta["frames"]):
        shutil.copy(room / f"depth/{i}.png", tmp_path / f"c/images/depth_{i}.png")
        frame["depth_file_path"] = f"images/depth_{i}.png"
    (tmp_path / "c/transforms.json").write_text(json.dumps(meta))
    run(importer, tmp_path / "c", "--out", tmp_path / "out2")
    got = data.Scene(tmp_path / "out2/c", 48, 64, tmp_path / "cache")
    low, high = (depth.flatten(1).quantile(q, dim=1) for q in (0.01, 0.99))
    assert got.near_far == pytest.approx((0.5 * float(low.min()), 1.5 * float(high.max())), rel=0.01)
    assert torch.equal(got.views(range(20)).depth, depth)


def test_transparent_pixels_become_white_and_half_transparent_ones_half(tmp_path):
    image = np.zeros((40, 60, 4), np.uint8)
    image[:, 20:40], image[:, 40:] = (200, 100, 50, 255), (200, 100, 50, 128)
    (tmp_path / "lego").mkdir()
    iio.imwrite(tmp_path / "lego/a.png", image)
    frames = [{"file_path": "a", "transform_matrix": np.eye(4).tolist()}]
    (tmp_path / "lego/transforms.json").write_text(json.dumps({"camera_angle_x": 0.7, "frames": frames}))
    run(importer, tmp_path / "lego", "--out", tmp_path / "out", "--near", 2, "--far", 6)
    got = iio.imread(tmp_path / "out/lego/color/0.png")
    assert got[0, [5, 30, 50]].tolist() == [[255, 255, 255], [200, 100, 50], [227, 177, 152]]


def test_lens_distortion_is_taken_out(tmp_path):
    """A distorted photograph of a smooth pattern, made point by point, imports to what a pinhole camera
    sees."""
    K, k1, p1 = np.array([[70.0, 0, 31], [0, 75, 22], [0, 0, 1]]), -0.12, 0.01

    def pattern(x, y):
        return 128 + 60 * np.sin(3 * x) + 50 * np.cos(4 * y + x)
    v, u = np.mgrid[:48, :64]
    xd, yd = (u - 31) / 70, (v - 22) / 75
    x, y = xd.copy(), yd.copy()
    for _ in range(60):  # the ray that the lens bends to this pixel
        r2 = x * x + y * y
        x, y = (xd - 2 * p1 * x * y) / (1 + k1 * r2), (yd - p1 * (r2 + 2 * y * y)) / (1 + k1 * r2)
    (tmp_path / "c").mkdir()
    iio.imwrite(tmp_path / "c/a.png", np.repeat(pattern(x, y)[..., None], 3, -1).round().astype(np.uint8))
    frames = [{"file_path": "a.png", "transform_matrix": np.eye(4).tolist()}]
    (tmp_path / "c/transforms.json").write_text(json.dumps(
        {"fl_x": 70, "fl_y": 75, "cx": 31.5, "cy": 22.5, "k1": k1, "p1": p1, "frames": frames}))
    run(importer, tmp_path / "c", "--out", tmp_path / "out", "--near", 1, "--far", 2)
    K = np.loadtxt(tmp_path / "out/c/intrinsic/intrinsic_color.txt")
    want = pattern((u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1])
    assert np.abs(iio.imread(tmp_path / "out/c/color/0.png")[..., 0] - want).max() < 2.5
    assert K[0, 0] / K[1, 1] == pytest.approx(70 / 75)


def test_frames_with_cameras_of_their_own_become_one_camera(tmp_path):
    """Two frames of a world of smooth colour on the plane z = -1, with different focal lengths: afterwards
    they agree."""
    v, u = np.mgrid[:40, :60]
    frames = []
    (tmp_path / "c").mkdir()
    for name, fl in (("a", 70.0), ("b", 74.0)):
        x, y = (u - 29.5) / fl, (v - 19.5) / fl
        wave = (128 + 90 * np.sin(4 * x + 3 * y)).round().astype(np.uint8)
        iio.imwrite(tmp_path / f"c/{name}.png", np.repeat(wave[..., None], 3, -1))
        frames.append({"file_path": f"{name}.png", "fl_x": fl, "fl_y": fl,
                       "transform_matrix": np.eye(4).tolist()})
    (tmp_path / "c/transforms.json").write_text(json.dumps({"frames": frames}))
    run(importer, tmp_path / "c", "--out", tmp_path / "out", "--near", 1, "--far", 2)
    a, b = (iio.imread(tmp_path / f"out/c/color/{i}.png").astype(int) for i in (0, 1))
    before = iio.imread(tmp_path / "c/a.png").astype(int) - iio.imread(tmp_path / "c/b.png")
    assert np.abs(a - b).max() <= 2 < np.abs(before).max()


# ------------------------------------------------------------------------------- what is refused, in one line

def broken_nerfstudio(change):
    """A capture with something wrong in its transforms.json: change(meta, folder)."""
    def write(room, folder):
        write_nerfstudio(room, folder)
        meta = json.loads((folder / "transforms.json").read_text())
        change(meta, folder)
        (folder / "transforms.json").write_text(json.dumps(meta))
    return write


def frame_7(**change):
    """The same for some keys of frame 7."""
    return broken_nerfstudio(lambda meta, folder: meta["frames"][7].update(change))


def pose_7(entry, value):
    """Or for one number of its pose."""
    def change(meta, folder):
        meta["frames"][7]["transform_matrix"][entry[0]][entry[1]] = value
    return broken_nerfstudio(change)


EIGHTH = "images/frame_00008.jpg"


def link_7(meta, folder):
    """Or an image that is a link to a file elsewhere."""
    (folder / EIGHTH).rename(folder.parent / "secret.jpg")
    (folder / EIGHTH).symlink_to(folder.parent / "secret.jpg")


@pytest.mark.parametrize("write, words", [
    (broken_nerfstudio(lambda meta, folder: meta.pop("frames")), "no list of frames"),
    (broken_nerfstudio(lambda meta, folder: meta.update(frames=[])), "not one frame"),
    (broken_nerfstudio(lambda meta, folder: meta.update(fl_x=-5)), "'fl_x' is -5"),
    (broken_nerfstudio(lambda meta, folder: meta.update(fl_x=float("nan"))), "'fl_x' is nan"),
    (broken_nerfstudio(lambda meta, folder: meta.update(cx="middle")), "'cx' is 'middle'"),
    (broken_nerfstudio(lambda meta, folder: meta.update(w=-64)), "'w' is -64"),
    (broken_nerfstudio(lambda meta, folder: meta.update(w=48, h=64)), "another shape"),
    (broken_nerfstudio(lambda meta, folder: (meta.pop("fl_x"), meta.pop("fl_y"))), "has no focal length"),
    (broken_nerfstudio(lambda meta, folder: meta.update(camera_model="FULL_OPENCV")), "FULL_OPENCV"),
    (broken_nerfstudio(lambda meta, folder: meta.update(k1=-9.0)), "distortion too strong"),
    (broken_nerfstudio(link_7), "a link that leads out"),
    (broken_nerfstudio(lambda meta, folder: [(folder / f"images/frame_{i:05d}.jpg").unlink()
                                             for i in range(1, 12)]),
     "11 of 20 images are not there (frame_00001.jpg, ..."),
    (broken_nerfstudio(lambda meta, folder: (folder / EIGHTH).write_bytes(b"\xff\xd8\xff nothing")),
     "cannot be decoded"),
    (broken_nerfstudio(lambda meta, folder: iio.imwrite(folder / EIGHTH, np.zeros((24, 32, 3), np.uint8))),
     "32x24, but others"),
    (frame_7(file_path="../secret.jpg"), "frame 7: '../secret.jpg' leads out"),
    (frame_7(file_path="/etc/passwd"), "leads out"),
    (frame_7(file_path="C:\\secret.jpg"), "leads out"),
    (frame_7(file_path="images\\..\\..\\secret.jpg"), "leads out"),
    (frame_7(depth_file_path="../depth.png"), "leads out"),
    (frame_7(file_path=7), "is not the name of a file"),
    (frame_7(file_path="x" * 5000), "is not the name of a file"),
    (frame_7(transform_matrix=[[1, 0], [0, 1]]), "frame 7: the pose is not a 4x4 matrix"),
    (frame_7(transform_matrix="none"), "not a 4x4 matrix"),
    (pose_7((0, 3), float("nan")), "frame 7: the pose holds NaN"),
    (pose_7((0, 3), float("inf")), "NaN, inf"),
    (pose_7((0, 0), 3.0), "not a rotation"),
    (pose_7((3, 3), 2.0), "not a rotation"),
    (frame_7(transform_matrix=np.diag([1.0, 1, -1, 1]).tolist()), "mirrored"),
])
def test_a_broken_capture_is_refused_in_one_line(room, tmp_path, write, words):
    write(room, tmp_path / "c")
    assert words in refused(tmp_path / "c", "--out", tmp_path / "out")


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "[" * 100_000, '{"frames": [1]}', "\x00\xff"])
def test_bad_json_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "c").mkdir()
    (tmp_path / "c/transforms.json").write_text(text)
    assert "transforms.json" in refused(tmp_path / "c", "--out", tmp_path / "out")


def test_cameras_all_in_one_place_need_near_and_far(tmp_path):
    small(tmp_path, "c/a.png")
    frames = [{"file_path": "a.png", "transform_matrix": np.eye(4).tolist()}] * 3
    (tmp_path / "c/transforms.json").write_text(json.dumps({"camera_angle_x": 0.7, "frames": frames}))
    assert "--near and --far" in refused(tmp_path / "c", "--out", tmp_path / "out")


def test_a_broken_llff_capture_is_refused_in_one_line(room, tmp_path):
    write_llff(room, tmp_path / "fern")
    path = tmp_path / "fern/poses_bounds.npy"
    good = np.load(path)
    bad = {"N x 17": good[:, :16], "20 images": good[:19]}
    for words, column, value in (("NaN", 3, np.nan), ("far", 16, 0.1), ("not positive", 14, -3.0),
                                 ("not a rotation", 0, 5.0)):
        bad[words] = good.copy()
        bad[words][4, column] = value
    for words, rows in bad.items():
        np.save(path, rows)
        assert words in refused(tmp_path / "fern", "--out", tmp_path / "out")
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (2,), }".ljust(117)
    pickled = b"\x93NUMPY\x01\x00v\x00" + header + b"\n"
    for raw in (b"", b"\x93NUMPY", path.read_bytes()[:300], pickled):
        path.write_bytes(raw)
        assert "poses_bounds.npy" in refused(tmp_path / "fern", "--out", tmp_path / "out")


def test_a_broken_scan_is_refused_in_one_line(room, tmp_path):
    write_sens(room, tmp_path / "d")
    sens = tmp_path / "d/scans/scene0123_00/scene0123_00.sens"
    good = sens.read_bytes()
    first = 4 + 8 + 6 + 256 + 36                                              # where the first frame begins

    def put(at, raw):
        return good[:at] + raw + good[at + len(raw):]
    for words, raw in {
            "ends in its header": good[:100],
            "ends in frame 12 of 20": good[:first + (len(good) - first) * 5 // 8],
            "ends in frame 19": good[:-1], "version 4": put(0, b"\x05"),
            "not a pinhole": put(18, struct.pack("<f", -5)),
            "sizes of": put(first - 28, struct.pack("<I", 0)),
            "frames: damaged": put(first - 8, struct.pack("<Q", 2 ** 60)),
            "compressed in a way": put(first - 36, struct.pack("<i", 0)),
            "frame 0 of 20: the pose holds NaN": put(first, struct.pack("<f", np.nan)),
            "not a rotation": put(first, struct.pack("<f", 7)),
            "ends in frame 0": put(first + 80, struct.pack("<Q", 2 ** 62)),
            "the colour of frame 0 of 20 cannot be decoded": put(first + 96, b"\0" * 100)}.items():
        sens.write_bytes(raw)
        assert words in refused(tmp_path / "d", "--out", tmp_path / "out")
    large = [(np.eye(4), (room / "color/0.jpg").read_bytes(), np.zeros((480, 640), np.uint16))]
    # unpacks to more than it says
    sens.write_bytes(sens_bytes(large, np.eye(3), np.eye(3), (48, 64), (48, 64)))
    assert "does not unpack to 64x48" in refused(tmp_path / "d", "--out", tmp_path / "out")
    sens.write_bytes(good)
    (tmp_path / "d" / LABELS_TSV).unlink()
    assert LABELS_TSV in refused(tmp_path / "d", "--out", tmp_path / "other")


@pytest.mark.parametrize("entry, words", [
    ("../label-filt/0.png", "leads out"), ("/label-filt/0.png", "leads out"),
    ("a/..\\..\\0.png", "leads out"), ("C:/0.png", "leads out"), ("link", "link"),
    (None, "no label-filt/0.png"), ("junk", "cannot be opened")])
def test_path_tricks_in_a_zip_are_refused(room, tmp_path, entry, words):
    write_sens(room, tmp_path / "d")
    path = tmp_path / "d/scans/scene0123_00/scene0123_00_2d-label-filt.zip"
    if entry == "junk":
        path.write_bytes(b"PK\x03\x04 not a zip")
    else:
        with zipfile.ZipFile(path, "a" if entry else "w") as archive:
            if entry == "link":
                info = zipfile.ZipInfo("label-filt/x.png")
                info.external_attr = 0o120777 << 16
                archive.writestr(info, "/etc/passwd")
            else:
                archive.writestr(entry or "readme.txt", b"x")
    assert words in refused(tmp_path / "d", "--out", tmp_path / "out")
    assert not (tmp_path / "label-filt").exists()


def test_a_broken_replica_is_refused_in_one_line(box, tmp_path):
    write_replica(tmp_path / "r", box, count=3)
    sequence = tmp_path / "r/room_0/Sequence_1"
    lines = (sequence / "traj_w_c.txt").read_text().splitlines()
    for words, text in (("3 images", "\n".join(lines[:2])), ("16 numbers", "1 2 3"), ("traj_w_c.txt", "a b"),
                        ("line 1: the pose holds", "\n".join(["nan " * 16, *lines[1:]]))):
        (sequence / "traj_w_c.txt").write_text(text)
        assert words in refused(tmp_path / "r", "--out", tmp_path / "out")
    (sequence / "traj_w_c.txt").write_text("\n".join(lines))
    iio.imwrite(sequence / "semantic_class/semantic_class_0.png", np.full((48, 64), 200, np.uint8))
    assert "another label set" in refused(tmp_path / "r", "--out", tmp_path / "out")


@pytest.mark.slow
def test_an_interrupted_import_leaves_whole_scenes_and_goes_on(room, tmp_path, monkeypatch):
    for name in ("a", "b"):
        write_nerfstudio(room, tmp_path / "c" / name)
    write, count = importer.write_colour, []

    def interrupted(*arguments):
        count.append(1)
        if len(count) == 30:                                                  # Ctrl-C in the middle of b
            raise KeyboardInterrupt
        return write(*arguments)
    monkeypatch.setattr(importer, "write_colour", interrupted)
    with pytest.raises(DataError, match="the same command continues"):
        run(importer, tmp_path / "c", "--out", tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["a"]
    (tmp_path / "out/.b.1a2b.part/color").mkdir(parents=True)                 # as a kill leaves it
    for path in (tmp_path / "out/.b.1a2b.part/color", tmp_path / "out/.b.1a2b.part"):
        os.utime(path, (time.time() - 7200,) * 2)
    stamp = (tmp_path / "out/a/import.json").stat().st_mtime_ns
    run(importer, tmp_path / "c", "--out", tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["a", "b"]
    assert not (tmp_path / "out/b/color/half.jpg").exists()
    assert (tmp_path / "out/a/import.json").stat().st_mtime_ns == stamp       # kept
    with pytest.raises(DataError, match="another --every"):
        run(importer, tmp_path / "c", "--out", tmp_path / "out", "--every", 2)


def test_what_is_no_layout_is_told_what_there_is(room, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no layout I know" in refused(tmp_path / "empty", "--out", tmp_path / "out")
    assert "use it as it is" in refused(room.parent, "--out", tmp_path / "out")
    assert "no such file" in refused(tmp_path / "nowhere", "--out", tmp_path / "out")


def test_replica_and_scannet_do_not_share_a_folder(room, box, tmp_path):
    write_sens(room, tmp_path / "d")
    write_replica(tmp_path / "r", box, count=2)
    run(importer, tmp_path / "d", "--out", tmp_path / "out", "--every", 7)
    with pytest.raises(DataError, match="another label set"):
        run(importer, tmp_path / "r", "--out", tmp_path / "out")


# ------------------------------------------------------------------------------ splits, classes, near and far


SMALL = training.Config(height=32, width=40, views=2, coarse=4, fine=4, rays=16)


def test_the_unit_of_a_scene_with_near_far_does_not_matter(box_folder, tmp_path):
    """Everything ten times as large, near and far too: the same source views, labels and colours, ten times
    the depth."""
    big = tmp_path / "big/scene0001_00"
    shutil.copytree(box_folder, big)
    for path in (big / "pose").iterdir():
        pose = np.loadtxt(path)
        pose[:3, 3] *= 10
        np.savetxt(path, pose)
    (big / "near_far.txt").write_text("4 60")
    little = tmp_path / "little/scene0001_00"
    shutil.copytree(box_folder, little)
    (little / "near_far.txt").write_text("0.4 6")
    torch.manual_seed(0)
    model, got = training.SRay(SMALL).eval(), []
    for folder in (little, big):
        shutil.copy(box_folder.parent / LABELS_TSV, folder.parent)
        scene = data.Scene(folder, 32, 40, tmp_path / "cache")
        source, _, test = data.protocol(scene)
        views, target = scene.views(source), scene.views(test[:1])[0]
        with torch.no_grad():
            sources = model.encode(views)
            result = model(sources, data.pixel_grid(32, 40)[::47], target.K, target.c2w)["fine"]
        got.append((source, test, result))
    (s1, t1, a), (s2, t2, b) = got
    assert (s1, t1) == (s2, t2)
    assert torch.allclose(a["colour"], b["colour"], atol=1e-4)
    assert torch.allclose(a["logits"], b["logits"], atol=1e-3)
    assert torch.allclose(10 * a["depth"], b["depth"], rtol=1e-3)
    assert a["z"].min() >= 0.4 and a["z"].max() <= 6
    assert a["depth"].std() > 0
    scene = data.Scene(big, 32, 40, tmp_path / "cache")
    batch = training.draw_batches([scene], [list(range(20))], SMALL, 0)[0]
    assert batch.sources.near_far.tolist() == [[4, 60]] * 2                   # training sees the same range


# ----------------------------------------------------------------------------- 07 and 08 on what was imported

def weights(path: Path, classes=SCANNET) -> Path:
    """A checkpoint of random weights, as 07 writes it."""
    torch.manual_seed(0)
    run = {"data": "rooms", "root": "elsewhere", "train": ["room0000_00"], "test": [], "seconds": 0.0,
           "command": ""}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": training.SRay(SMALL, classes).state_dict(), "config": asdict(SMALL),
                "classes": classes._asdict(), "step": 1, "run": run}, path)
    return path


@pytest.mark.slow
def test_a_capture_without_labels_is_rendered_by_weights_from_elsewhere(room, tmp_path, capsys):
    write_nerfstudio(room, tmp_path / "phone")
    run(importer, tmp_path / "phone", "--out", tmp_path / "data/phone")
    checkpoint = weights(tmp_path / "run/checkpoint.pt")
    run(evaluation, "--checkpoint", checkpoint, "--scene", tmp_path / "data/phone", "--views", 2,
        "--cache", tmp_path / "cache")
    screen = capsys.readouterr().out
    metrics = json.loads((tmp_path / "run/eval/metrics.json").read_text())
    assert metrics["psnr"] > 0 and metrics["miou"] is None
    assert "no labels" in screen and "its near_far.txt" in screen
    # columns: colour thrice, our labels, our depth; bars
    assert iio.imread(tmp_path / "run/eval/phone.png").shape[1] > 1200


@pytest.mark.slow
def test_labels_of_other_classes_are_not_compared_and_said_so_in_one_line(box, tmp_path, capsys, monkeypatch):
    sheets = []
    monkeypatch.setattr("support.pictures.evaluation_sheet", lambda *given, **_: sheets.append(given))
    write_replica(tmp_path / "r", box)
    run(importer, tmp_path / "r", "--out", tmp_path / "replica", "--every", 1)
    checkpoint = weights(tmp_path / "a/checkpoint.pt")
    run(evaluation, "--checkpoint", checkpoint, "--scene", tmp_path / "replica", "--views", 2,
        "--cache", tmp_path / "cache")
    screen = capsys.readouterr().out
    line = [line for line in screen.splitlines() if "LABELS ARE NOT COMPARED" in line]
    assert len(line) == 1 and "20 classes (wall" in line[0] and "101 classes (backpack" in line[0]
    metrics = json.loads((tmp_path / "a/eval/metrics.json").read_text())
    assert metrics["miou"] is None and metrics["psnr"] > 0 and metrics["depth_abs_rel"] > 0
    assert sheets[0][3] is False and sheets[0][5] == SCANNET  # no true labels, the checkpoint's colours
    with pytest.raises(DataError, match="start without these weights"):
        run(training, "--finetune", checkpoint, "--scene", tmp_path / "replica", "--cache", tmp_path / "c",
            "--out", tmp_path / "b")


@pytest.mark.slow
def test_training_on_replica_remembers_its_classes_and_is_evaluated_with_them(box, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("support.pictures.evaluation_sheet", lambda *_, **__: None)
    write_replica(tmp_path / "r", box)
    run(importer, "r", "--out", "data/replica", "--every", 1)
    size = ["--height", 32, "--width", 40, "--views", 2]
    run(training, "--scene", "replica", "--preset", "smoke", "--steps", 2, "--out", "run", "--no-eval", *size)
    model, state = training.load_checkpoint("run/checkpoint.pt")
    assert model.classes.names == replica.CLASSES and model.fine.head.out_features == 101
    assert state["run"]["data"] == "replica" and state["run"]["train"] == ["room_0_01"]
    run(evaluation, "--checkpoint", "run/checkpoint.pt", "--views", 2)
    metrics = json.loads(Path("run/eval/metrics.json").read_text())
    assert metrics["miou"] is not None and metrics["classes"] == replica.CLASSES
    assert "floor" in metrics["per_class_iou"]
    run(training, "--finetune", "run/checkpoint.pt", "--scene", "replica", "--steps", 1, "--out", "tuned",
        "--no-eval")
    assert training.load_checkpoint("tuned/checkpoint.pt")[0].classes == model.classes


def test_a_checkpoint_from_before_label_sets_has_scannets(tmp_path):
    state = torch.load(weights(tmp_path / "a.pt"), weights_only=True)
    del state["classes"]
    torch.save(state, tmp_path / "old.pt")
    assert training.load_checkpoint(tmp_path / "old.pt")[0].classes == SCANNET
    state["classes"] = {"names": data.CLASSES[:5], "colours": [[0, 0, 0]] * 5}
    torch.save(state, tmp_path / "wrong.pt")
    with pytest.raises(DataError, match="wrong.pt"):
        training.load_checkpoint(tmp_path / "wrong.pt")


@pytest.mark.parametrize("layout", ["phone", "fern", "download", "Replica_Dataset"])
def test_07_and_08_given_another_layout_print_the_import_command(room, box, tmp_path, layout, monkeypatch):
    writers = {"phone": write_nerfstudio, "fern": write_llff, "download": write_sens}
    write = writers.get(layout, lambda _, folder: write_replica(folder, box, 1))
    write(room, tmp_path / "my data" / layout)
    monkeypatch.chdir(tmp_path)
    name = {"download": "scannet", "Replica_Dataset": "replica"}.get(layout, layout)
    command = f"python -m tools.import_scenes 'my data/{layout}' --out data/{name}"
    checkpoint = weights(tmp_path / "checkpoint.pt")
    for module, arguments in ((training, []), (evaluation, ["--checkpoint", checkpoint])):
        with pytest.raises(DataError) as error:
            run(module, "--scene", f"my data/{layout}", *arguments)
        assert str(error.value).endswith(command) and "\n" not in str(error.value)


@pytest.mark.slow
def test_one_broken_capture_does_not_stop_the_others(room, tmp_path):
    """In a process of its own, as typed."""
    for name in ("a", "b"):
        write_nerfstudio(room, tmp_path / "both" / name)
    (tmp_path / "both/a" / EIGHTH).write_bytes(b"")  # the first of two captures is broken
    command = [sys.executable, "-m", "tools.import_scenes", "both", "--out", "data/x"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "data/x/b: 20 frames of 64x48" in done.stdout
    assert "NOT IMPORTED: both/a/images/frame_00008.jpg: cannot be decoded" in done.stdout
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: 1 of 2 scenes were not imported (reasons above): a;")
    assert os.listdir(tmp_path / "data/x") == ["b"]
