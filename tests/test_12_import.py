"""12_import.py: axes, centres, focal lengths and depth of each layout; a scene written in each layout and imported back; and what is refused."""
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from importlib import import_module
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch

rooms, data = import_module("00_rooms"), import_module("01_data")
training, evaluation, importer = import_module("07_train"), import_module("08_eval"), import_module("12_import")
ROOT = Path(__file__).parents[1]
FLIP = np.diag([1.0, -1, -1, 1])                                              # OpenCV <-> OpenGL axes


def run(module, *arguments):
    """A script's main() as `python script arguments` runs it, in this process."""
    before, sys.argv = sys.argv, ["script.py", *map(str, arguments)]
    try:
        module.main()
    finally:
        sys.argv = before


def refused(*arguments) -> str:
    """The one clear line of an import that fails; nothing may be left behind, not even a hidden folder."""
    out = Path(arguments[arguments.index("--out") + 1])
    with pytest.raises(data.DataError) as error:
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


# ---------------------------------------------------------------------------------------------------- writers, one for each layout

def write_nerfstudio(room: Path, folder: Path, **extra) -> None:
    (folder / "images").mkdir(parents=True)
    frames, K = frames_of(room)
    for i, _, colour in frames:
        shutil.copy(colour, folder / f"images/frame_{i + 1:05d}.jpg")
    meta = {"camera_model": "OPENCV", "fl_x": K[0, 0], "fl_y": K[1, 1], "cx": K[0, 2] + 0.5, "cy": K[1, 2] + 0.5, "w": 64, "h": 48, "k1": 0.0,
            "frames": [{"file_path": f"images/frame_{i + 1:05d}.jpg", "transform_matrix": (c2w @ FLIP).tolist()} for i, c2w, _ in frames]} | extra
    (folder / "transforms.json").write_text(json.dumps(meta))


def write_blender(room: Path, folder: Path) -> None:
    """train, val and test; images as png; square pixels and a middle axis are given, the room's own K is not used."""
    frames, _ = frames_of(room)
    for split, part in (("train", frames[:12]), ("val", frames[12:14]), ("test", frames[14:])):
        (folder / split).mkdir(parents=True)
        for k, (_, _, colour) in enumerate(part):
            iio.imwrite(folder / split / f"r_{k}.png", iio.imread(colour))
        (folder / f"transforms_{split}.json").write_text(json.dumps({"camera_angle_x": 0.9, "frames": [
            {"file_path": f"./{split}/r_{k}", "rotation": 0.1, "transform_matrix": (c2w @ FLIP).tolist()} for k, (_, c2w, _) in enumerate(part)]}))


def write_llff(room: Path, folder: Path, focal: float = 60.0, factor: int = 1) -> None:
    """images/ (or images_4 of a photograph four times the size), rows [R | t | H W f] in the axes down, right, back, and bounds."""
    name = "images" if factor == 1 else f"images_{factor}"
    (folder / name).mkdir(parents=True)
    rows = []
    for i, c2w, colour in frames_of(room)[0]:
        shutil.copy(colour, folder / name / f"IMG_{i:04d}.JPG")
        right, down, forward, position = c2w[:3].T
        rows.append([*np.stack([down, right, -forward, position, [48 * factor, 64 * factor, focal * factor]], axis=1).ravel(), 0.5 + 0.01 * i, 6.0 + 0.1 * i])
    np.save(folder / "poses_bounds.npy", np.array(rows))


def sens_bytes(frames: list, K: np.ndarray, depth_K: np.ndarray, size, depth_size, shift=1000.0) -> bytes:
    """A .sens file of [(c2w, jpeg bytes, depth (h, w) uint16)]."""
    four = lambda m: np.pad(m, (0, 4 - len(m))).astype("<f4").tobytes() if len(m) == 3 else m.astype("<f4").tobytes()
    head = struct.pack("<IQ", 4, 6) + b"sensor" + four(K) + four(np.eye(4)) + four(depth_K) + four(np.eye(4))
    head += struct.pack("<iiIIIIfQ", 2, 1, size[1], size[0], depth_size[1], depth_size[0], shift, len(frames))
    for c2w, colour, depth in frames:
        packed = zlib.compress(depth.astype("<u2").tobytes())
        head += c2w.astype("<f4").tobytes() + struct.pack("<QQQQ", 1, 2, len(colour), len(packed)) + colour + packed
    return head


def write_sens(room: Path, folder: Path) -> None:
    """The room as a download: scans/scene0123_00/ with .sens and zip, the table above; frame 3 lost."""
    scan = folder / "scans/scene0123_00"
    scan.mkdir(parents=True)
    frames, K = frames_of(room)
    made = [(np.full((4, 4), -np.inf) if i == 3 else c2w, colour.read_bytes(), iio.imread(room / f"depth/{i}.png")) for i, c2w, colour in frames]
    (scan / "scene0123_00.sens").write_bytes(sens_bytes(made, K, K, (48, 64), (48, 64)))
    with zipfile.ZipFile(scan / "scene0123_00_2d-label-filt.zip", "w") as archive:
        for i, _, _ in frames:
            archive.write(room / f"label-filt/{i}.png", f"label-filt/{i}.png")
    shutil.copy(room.parent / data.LABELS_TSV, folder)


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
        iio.imwrite(sequence / f"semantic_class/semantic_class_{i}.png", np.vectorize(walls.get)(raw).astype(np.uint8))
        lines.append(" ".join(f"{x:.9f}" for x in box.camera(i).ravel()))
    (sequence / "traj_w_c.txt").write_text("\n".join(lines) + "\n")


# ---------------------------------------------------------------------------------------------------- a known point at a known pixel

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
    poses = [np.eye(4), np.eye(4)]                                            # camera axes are the world's: it looks along -z
    poses[0][:3, 3], poses[1][:3, 3] = (0, 0, 4), (1, 0, 4)
    (tmp_path / "lego/transforms_train.json").write_text(json.dumps({
        "camera_angle_x": 2 * np.arctan(30 / 80),                             # focal length 80 for a width of 60
        "frames": [{"file_path": f"./train/r_{i}", "transform_matrix": p.tolist()} for i, p in enumerate(poses)]}))
    run(importer, tmp_path / "lego", "--out", tmp_path / "out", "--near", 1, "--far", 9)
    scene = data.Scene(tmp_path / "out/lego", 40, 60, tmp_path / "cache")
    # 1 right, 0.5 up, 4 in front: 80 * 1 / 4 right of the middle (29.5), 80 * 0.5 / 4 above the middle (19.5)
    assert pixel_of((1.0, 0.5, 0.0), scene) == pytest.approx([49.5, 9.5, 4], abs=1e-4)
    assert scene.near_far == (1, 9)


def test_nerfstudio_a_principal_point_loses_half_a_pixel_and_scales_with_the_image(tmp_path):
    small(tmp_path, "c/images/a.png")
    frames = [{"file_path": "images/a.png", "transform_matrix": np.eye(4).tolist()}]
    (tmp_path / "c/transforms.json").write_text(json.dumps({"fl_x": 100, "fl_y": 120, "cx": 61, "cy": 38, "w": 120, "h": 80, "frames": frames}))
    run(importer, tmp_path / "c", "--out", tmp_path / "out", "--near", 1, "--far", 9)        # an image of half the size
    scene = data.Scene(tmp_path / "out/c", 40, 60, tmp_path / "cache")
    assert scene.K.numpy() == pytest.approx(np.array([[50, 0, 30], [0, 60, 18.5], [0, 0, 1]]), abs=1e-5)
    # 0.2 right, 0.1 down, 2 in front of a camera that looks along -z
    assert pixel_of((0.2, -0.1, -2.0), scene) == pytest.approx([50 * 0.1 + 30, 60 * 0.05 + 18.5, 2], abs=1e-4)


def test_llff_a_point_down_and_right_of_the_camera(tmp_path):
    small(tmp_path, "fern/images_4/a.png")
    pose = np.zeros((3, 5))
    pose[:, 0], pose[:, 1], pose[:, 2] = (0, 0, 1), (1, 0, 0), (0, 1, 0)      # world z is down, x right, y back: forward is -y
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
    (tmp_path / "scene0001_00.sens").write_bytes(sens_bytes([(pose, jpeg, depth)], K, np.diag([0.5, 0.5, 1]) @ K, (40, 60), (20, 30), shift=4000.0))
    run(importer, tmp_path / "scene0001_00.sens", "--out", tmp_path / "out")
    scene = data.Scene(tmp_path / "out/scene0001_00", 40, 60, tmp_path / "cache")
    assert (scene.folder / "color/0.jpg").read_bytes() == jpeg
    values = iio.imread(scene.folder / "depth/0.png")
    assert values[4, 7] == 3000 and values[0, 0] == 1250                      # 12000 / 4000 metres
    assert pixel_of((2.0, 2.5, 8.0), scene) == pytest.approx([80 / 5 + 31, 45 / 5 + 18, 5], abs=1e-4)   # OpenCV axes
    assert scene.near_far is None                                             # metres


def test_replica_camera_at_640x480_and_depth_in_millimetres(tmp_path):
    sequence = tmp_path / "office_3/Sequence_1"
    image = np.zeros((480, 640), np.uint16)
    image[100, 200] = 2345
    for kind, picture in (("rgb", np.zeros((480, 640, 3), np.uint8)), ("depth", image), ("semantic_class", (image > 0).astype(np.uint8) * 93)):
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
    assert views.depth[0, 100, 200] == pytest.approx(2.345) and scene.classes.names[views.labels[0, 100, 200]] == "wall"
    assert views.labels[0, 0, 0] == data.IGNORE                               # class 0 is void


def test_replicas_class_list():
    names = importer.REPLICA_CLASSES
    assert len(names) == 101 and len(set(names)) == 101
    assert [names[i - 1] for i in (1, 20, 31, 40, 76, 93, 97, 98, 101)] == [
        "backpack", "chair", "ceiling", "floor", "sofa", "wall", "window", "rug", "set-of-clothing"]


# ---------------------------------------------------------------------------------------------------- written and imported back

def same_scene(there: Path, room: Path, numbers, tolerance=1e-5):
    """Same cameras and the same images to the byte of a decoded pixel."""
    frames, _ = frames_of(room)
    scene = data.Scene(there, 48, 64, there.parent / "cache")
    assert len(scene) == len(numbers)
    for got, (number, c2w, colour) in zip(range(len(scene)), [frames[i] for i in numbers]):
        assert scene.c2w[got].numpy() == pytest.approx(c2w, abs=tolerance)
        assert np.array_equal(iio.imread(scene.files(scene.frames[got])[0])[..., :3], iio.imread(colour))
    return scene


def test_a_room_as_nerfstudio_comes_back(room, tmp_path, capsys):
    write_nerfstudio(room, tmp_path / "phone")
    run(importer, tmp_path / "phone", "--out", tmp_path / "out")
    scene, screen = same_scene(tmp_path / "out/phone", room, range(20)), capsys.readouterr().out
    assert scene.K.numpy() == pytest.approx(data.Scene(room, 48, 64).K.numpy(), abs=1e-5)
    assert (scene.folder / "color/0.jpg").read_bytes() == (room / "color/0.jpg").read_bytes()     # copied, not encoded again
    assert "Blender / nerfstudio" in screen and "20 frames of 64x48" in screen and "near" in screen and "guessed" in screen
    near, far = scene.near_far
    depth = data.Scene(room, 48, 64, tmp_path / "cache").views(range(20)).depth
    assert near < depth.median() < far and not scene.has_labels


def test_a_room_as_blender_comes_back_with_its_splits(room, tmp_path):
    write_blender(room, tmp_path / "lego")
    run(importer, tmp_path / "lego", "--out", tmp_path / "out")
    scene = same_scene(tmp_path / "out/lego", room, range(20))
    focal = 32 / np.tan(0.45)
    assert scene.K.numpy() == pytest.approx(np.array([[focal, 0, 31.5], [0, focal, 23.5], [0, 0, 1]]), abs=1e-4)
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
    assert torch.equal(got.labels, want.labels) and torch.equal(got.depth, want.depth) and (got.labels >= 0).any()
    assert torch.allclose(scene.K, truth.K, atol=1e-5) and scene.classes == data.SCANNET


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
    want = np.vectorize({1: L["wall"], 3: L["floor"], 0: -1, 1163: L["ceiling"], 1357: L["chair"], 21: L["set-of-clothing"]}.get)(raw)
    assert np.array_equal(views.labels[0].numpy(), want) and len(np.unique(want)) > 2
    train, test = data.split_by_space(["room_0_01", "room_0_02", "room_2_01"], tmp_path / "out/split.txt")
    assert train == ["room_0_01", "room_0_02"] and test == ["room_2_01"]      # two sequences are one space


def test_transparent_pixels_become_white_and_half_transparent_ones_half(tmp_path):
    image = np.zeros((40, 60, 4), np.uint8)
    image[:, 20:40], image[:, 40:] = (200, 100, 50, 255), (200, 100, 50, 128)
    (tmp_path / "lego").mkdir()
    iio.imwrite(tmp_path / "lego/a.png", image)
    frames = [{"file_path": "a", "transform_matrix": np.eye(4).tolist()}]
    (tmp_path / "lego/transforms.json").write_text(json.dumps({"camera_angle_x": 0.7, "frames": frames}))
    run(importer, tmp_path / "lego", "--out", tmp_path / "out", "--near", 2, "--far", 6)
    got = iio.imread(tmp_path / "out/lego/color/0.png")
    assert got[0, 5].tolist() == [255, 255, 255] and got[0, 30].tolist() == [200, 100, 50] and got[0, 50].tolist() == [227, 177, 152]


def test_lens_distortion_is_taken_out(tmp_path):
    """A distorted photograph of a smooth pattern, made point by point, imports to what a pinhole camera sees."""
    K, k1, p1 = np.array([[70.0, 0, 31], [0, 75, 22], [0, 0, 1]]), -0.12, 0.01
    pattern = lambda x, y: 128 + 60 * np.sin(3 * x) + 50 * np.cos(4 * y + x)
    v, u = np.mgrid[:48, :64]
    xd, yd = (u - 31) / 70, (v - 22) / 75
    x, y = xd.copy(), yd.copy()
    for _ in range(60):                                                       # the ray that the lens bends to this pixel
        r2 = x * x + y * y
        x, y = (xd - 2 * p1 * x * y) / (1 + k1 * r2), (yd - p1 * (r2 + 2 * y * y)) / (1 + k1 * r2)
    (tmp_path / "c").mkdir()
    iio.imwrite(tmp_path / "c/a.png", np.repeat(pattern(x, y)[..., None], 3, -1).round().astype(np.uint8))
    (tmp_path / "c/transforms.json").write_text(json.dumps({
        "fl_x": 70, "fl_y": 75, "cx": 31.5, "cy": 22.5, "k1": k1, "p1": p1, "frames": [{"file_path": "a.png", "transform_matrix": np.eye(4).tolist()}]}))
    run(importer, tmp_path / "c", "--out", tmp_path / "out", "--near", 1, "--far", 2)
    K = np.loadtxt(tmp_path / "out/c/intrinsic/intrinsic_color.txt")
    want = pattern((u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1])
    assert np.abs(iio.imread(tmp_path / "out/c/color/0.png")[..., 0] - want).max() < 2.5
    assert K[0, 0] / K[1, 1] == pytest.approx(70 / 75)


def test_frames_with_cameras_of_their_own_become_one_camera(tmp_path):
    """Two frames of a world of smooth colour on the plane z = -1, with different focal lengths: afterwards they agree."""
    v, u = np.mgrid[:40, :60]
    frames = []
    (tmp_path / "c").mkdir()
    for name, fl in (("a", 70.0), ("b", 74.0)):
        x, y = (u - 29.5) / fl, (v - 19.5) / fl
        iio.imwrite(tmp_path / f"c/{name}.png", np.repeat((128 + 90 * np.sin(4 * x + 3 * y))[..., None], 3, -1).round().astype(np.uint8))
        frames.append({"file_path": f"{name}.png", "fl_x": fl, "fl_y": fl, "transform_matrix": np.eye(4).tolist()})
    (tmp_path / "c/transforms.json").write_text(json.dumps({"frames": frames}))
    run(importer, tmp_path / "c", "--out", tmp_path / "out", "--near", 1, "--far", 2)
    a, b = (iio.imread(tmp_path / f"out/c/color/{i}.png").astype(int) for i in (0, 1))
    before = iio.imread(tmp_path / "c/a.png").astype(int) - iio.imread(tmp_path / "c/b.png")
    assert np.abs(a - b).max() <= 2 < np.abs(before).max()
