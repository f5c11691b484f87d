"""Other people's layouts, turned once into the one that 01 reads (ScanNet's export).

    python 12_import.py SOURCE --out data/NAME      one scene, or a folder of many; says what it recognised
    python 07_train.py --scene data/NAME            or: python 08_eval.py --checkpoint CKPT --scene data/NAME

| layout | told by | columns of a pose | pixel centres | what else |
|---|---|---|---|---|
| Blender / nerfstudio | transforms.json, or transforms_train.json ... | right, up, back (OpenGL) | half-integers | alpha on white |
| LLFF | poses_bounds.npy | down, right, back | axis in the middle | near and far |
| ScanNet download | scene0000_00.sens | right, down, forward | integers | depth; labels from its zip |
| Replica for Semantic-NeRF | Sequence_1/traj_w_c.txt | right, down, forward | integers | depth, labels of its own classes |

Written are right, down, forward, and integer centres. Where the first pixel's corner is 0 (COLMAP, hence nerfstudio and LLFF) a
principal point loses half a pixel, and the middle of an image is (W - 1) / 2. NeRF's own code puts Blender's optical axis at W / 2
of integer centres, half a pixel off; Blender renders it in the middle, and so do we.

Images are copied byte for byte wherever 01 can read them. Transparent ones go on white. Photographs with lens distortion, or with
cameras of their own, are resampled to one pinhole camera, as 01 expects, and that is said. Scenes not known to be in metres get a
near_far.txt: from depth maps, bounds or sparse points, else guessed from the poses. Files that a capture names must lie in it.

An interrupted import leaves whole scenes only, and the same command continues. Test: pytest tests/test_12_import.py
"""
import argparse
import colorsys
import json
import os
import re
import shlex
import shutil
import struct
import sys
import zipfile
import zlib
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Iterator, NamedTuple

import imageio.v3 as iio
import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

data = import_module("01_data")                # DataError, read_image, foreign_scenes, scale_intrinsics, Scene, split_by_space

# Replica's classes 1 .. 101 (its info_semantic.json); 0 is void: unlabelled
REPLICA_CLASSES = """
backpack base-cabinet basket bathtub beam beanbag bed bench bike bin blanket blinds book bottle box bowl camera cabinet candle
chair chopping-board clock cloth clothing coaster comforter computer-keyboard cup cushion curtain ceiling cooktop countertop
desk desk-organizer desktop-computer door exercise-ball faucet floor handbag hair-dryer handrail indoor-plant knife-block
kitchen-utensil lamp laptop major-appliance mat microwave monitor mouse nightstand pan panel paper-towel phone picture pillar
pillow pipe plant-stand plate pot rack refrigerator remote-control scarf sculpture shelf shoe shower-stall sink small-appliance
sofa stair stool switch table table-runner tablet tissue-paper toilet toothbrush towel tv-screen tv-stand umbrella
utensil-holder vase vent wall wall-cabinet wall-plug wardrobe window rug logo bag set-of-clothing
""".split()

EVERY = {"ScanNet download": 10, "Replica for Semantic-NeRF": 5}     # frames of a video; everything else: all
SPLITS = Path(__file__).with_name("docs") / "splits"


class Camera(NamedTuple):
    """A pinhole camera in pixels (centres at integers) and its lens distortion, OpenCV's model."""
    fx: float
    fy: float
    cx: float
    cy: float
    k1: float = 0.0
    k2: float = 0.0
    k3: float = 0.0
    p1: float = 0.0
    p2: float = 0.0

    def matrix(self) -> np.ndarray:
        """K (3, 3)."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]])


class Photo(NamedTuple):
    """A frame before it is copied: c2w (4, 4) in OpenCV axes, camera at the image's own size; split train, val, test or none."""
    number: int
    image: Path
    c2w: np.ndarray
    camera: Camera
    split: str = ""
    depth: Path | None = None
    label: Path | None = None


# ---------------------------------------------------------------------------------------------------- nothing is trusted

def inside(folder: Path, name, where: str) -> Path:
    """The file `name` of folder, as a capture lists it. DataError if it leads out of the folder: absolute, '..', a link."""
    if not isinstance(name, str) or not name or "\0" in name or max(map(len, re.split(r"[/\\]", name))) > 250 or len(name) > 2000:
        raise data.DataError(f"{where}: {str(name)[:100]!r} is not the name of a file")
    name = name.replace("\\", "/")
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or ".." in PurePosixPath(name).parts:
        raise data.DataError(f"{where}: '{name}' leads out of {folder}; file names must be relative to that folder and stay in it")
    path = folder / name
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise data.DataError(f"{path}: a link that leads out of {folder}; put the file itself there")
    return path


def checked_pose(matrix, where: str) -> np.ndarray:
    """3x4 or 4x4 numbers -> pose (4, 4) float64. DataError unless finite, with a rotation (to 1%) and a sane position."""
    try:
        pose = np.array(matrix, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        pose = np.zeros(0)
    if pose.shape not in ((3, 4), (4, 4)):
        raise data.DataError(f"{where}: the pose is not a 4x4 matrix of numbers; export it again")
    if pose.shape == (3, 4):
        pose = np.vstack([pose, [0, 0, 0, 1]])
    if not np.isfinite(pose).all() or np.abs(pose).max() > 1e6:
        raise data.DataError(f"{where}: the pose holds NaN, inf or huge numbers; leave the frame out or export it again")
    R = pose[:3, :3]
    if np.abs(R @ R.T - np.eye(3)).max() > 0.01 or np.linalg.det(R) < 0 or not np.allclose(pose[3], [0, 0, 0, 1]):
        raise data.DataError(f"{where}: the pose is not a rotation and a position (mirrored, scaled or sheared); export it again")
    return pose


def sides(size) -> str:
    """(H, W, ...) as people write it: WxH."""
    return f"{size[1]}x{size[0]}"


def image_size(path: Path) -> tuple[int, int]:
    """(H, W) of an image, from its header. DataError if missing or no image."""
    try:
        return iio.improps(path).shape[:2]
    except Exception:
        return data.read_image(path).shape[:2]                                # says what is wrong


# ---------------------------------------------------------------------------------------------------- Blender / nerfstudio

def read_json(path: Path) -> dict:
    """A transforms file. DataError unless it is an object with a list of frames."""
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise data.DataError(f"{path}: cannot be read as JSON ({str(error).splitlines()[0][:100]}); export it again") from None
    frames = meta.get("frames") if isinstance(meta, dict) else None
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise data.DataError(f"{path}: has no list of frames; is it a Blender or nerfstudio transforms file?")
    return meta


def number(meta: dict, key: str, default: float | None, where: str, positive: bool = False) -> float:
    """meta[key] as a finite float; default where it is absent. DataError for anything else."""
    value = meta.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e9 or (positive and value <= 0):
        raise data.DataError(f"{where}: '{key}' is {value!r}, not a {'positive ' * positive}number; correct it or export again")
    return float(value)


def transforms_camera(meta: dict, size: tuple[int, int], where: str) -> Camera:
    """Intrinsics of one frame (its own keys over the file's) -> Camera at the image's real size (H, W)."""
    model, pinholes = meta.get("camera_model", "OPENCV"), "OPENCV PINHOLE SIMPLE_PINHOLE SIMPLE_RADIAL RADIAL PERSPECTIVE".split()
    if model not in pinholes or number(meta, "k4", 0, where):
        raise data.DataError(f"{where}: camera model {str(model)[:40]}, or its k4, is no pinhole camera; undistort the images "
                             "first (COLMAP: image_undistorter)")
    h, w = (number(meta, key, side, where, True) for key, side in zip(("h", "w"), size))
    if abs(h / size[0] / (w / size[1]) - 1) > 0.02:
        raise data.DataError(f"{where}: the image is {sides(size)}, the file says {w:g}x{h:g}: another shape")
    if "camera_angle_x" in meta and "fl_x" not in meta:
        angle = number(meta, "camera_angle_x", None, where, True)
        if angle >= np.pi:
            raise data.DataError(f"{where}: 'camera_angle_x' is {angle:g}; radians below pi are meant")
        meta = {**meta, "fl_x": 0.5 * w / np.tan(0.5 * angle)}
    fx = number(meta, "fl_x", None, where, True)
    fy, cx, cy = (number(meta, key, value, where) for key, value in (("fl_y", fx), ("cx", w / 2), ("cy", h / 2)))
    if fy <= 0:
        raise data.DataError(f"{where}: 'fl_y' is {fy:g}, not a positive number; correct it or export again")
    K = Camera(fx, fy, cx - 0.5, cy - 0.5)                                    # first corner 0 -> first centre 0
    K = data.scale_intrinsics(torch.from_numpy(K.matrix()), (h, w), size)     # and to the size the image has
    lens = (number(meta, key, 0, where) for key in ("k1", "k2", "k3", "p1", "p2"))
    return Camera(K[0, 0].item(), K[1, 1].item(), K[0, 2].item(), K[1, 2].item(), *lens)


def read_transforms(folder: Path, every: int) -> list[Photo]:
    """transforms.json, or transforms_train/val/test.json one after the other, as Photos in the files' order."""
    files = [folder / "transforms.json"]
    if not files[0].is_file():
        order = ["transforms_train.json", "transforms_val.json", "transforms_test.json"]
        files = sorted(folder.glob("transforms_*.json"), key=lambda p: (order.index(p.name) if p.name in order else 3, p.name))
    photos = []
    for file in files:
        meta = read_json(file)
        for index, frame in enumerate(meta["frames"]):
            where = f"{file}, frame {index}"
            image = inside(folder, frame.get("file_path"), where)
            if not image.is_file():                                           # NeRF's scenes leave the ending out
                image = next((p for end in (".png", ".jpg", ".jpeg", ".PNG", ".JPG")
                              if (p := image.with_name(image.name + end)).is_file()), image)
                inside(folder, str(image.relative_to(folder)), where)
            both = {**{key: value for key, value in meta.items() if key != "frames"}, **frame}
            pose = checked_pose(frame.get("transform_matrix"), where)
            pose[:3, 1:3] *= -1                                               # up, back -> down, forward
            depth = inside(folder, frame["depth_file_path"], where) if frame.get("depth_file_path") else None
            depth = depth if depth and depth.suffix.lower() == ".png" else None
            photos.append(Photo(len(photos), image, pose, transforms_camera(both, image_size(image), where),
                                file.stem.removeprefix("transforms").removeprefix("_"), depth))
    return photos[::every]


# ---------------------------------------------------------------------------------------------------- LLFF

def read_llff(folder: Path, every: int) -> tuple[list[Photo], np.ndarray]:
    """poses_bounds.npy (N, 17) and the N images in name order -> Photos, bounds (N, 2)."""
    path = folder / "poses_bounds.npy"
    try:
        rows = np.load(path, allow_pickle=False)
        rows = np.array(rows, np.float64)
    except (OSError, ValueError, TypeError, EOFError, MemoryError) as error:
        raise data.DataError(f"{path}: cannot be read as an array of numbers ({str(error)[:80].splitlines()[0]}); "
                             "export it again") from None
    if rows.ndim != 2 or rows.shape[1] != 17 or not len(rows):
        raise data.DataError(f"{path}: holds {rows.shape} numbers instead of N x 17; export it again")
    if not np.isfinite(rows).all() or (rows[:, [4, 9, 14, 15]] <= 0).any() or (rows[:, 16] <= rows[:, 15]).any():
        raise data.DataError(f"{path}: holds NaN, inf, a size or focal length that is not positive, or bounds without "
                             "0 < near < far; export it again")
    for name in ("images", "images_2", "images_4", "images_8"):
        images = sorted(p for p in (folder / name).glob("[!.]*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if images:
            break
    if len(images) != len(rows):
        raise data.DataError(f"{folder}: {len(images)} images (in images/, or images_2, _4, _8) for {len(rows)} poses in "
                             "poses_bounds.npy; there must be one each, in name order")
    photos = []
    for i, (image, row) in enumerate(zip(images, rows)):
        where, table = f"{path}, row {i}", row[:15].reshape(3, 5)
        inside(folder, str(image.relative_to(folder)), where)
        down, right, back, position = table[:, :4].T
        pose = checked_pose(np.stack([right, down, -back, position], axis=1), where)
        (h, w, f), size = table[:, 4], image_size(image)
        if abs(h / size[0] / (w / size[1]) - 1) > 0.02:
            raise data.DataError(f"{where}: {image.name} is {sides(size)}, the pose is for {w:g}x{h:g}: another shape")
        photos.append(Photo(i, image, pose, Camera(f * size[1] / w, f * size[0] / h, (size[1] - 1) / 2, (size[0] - 1) / 2)))
    return photos[::every], rows[:, 15:]


# ---------------------------------------------------------------------------------------------------- Replica

def read_replica(folder: Path, every: int) -> list[Photo]:
    """One sequence of Replica as rendered for Semantic-NeRF: rgb/, depth/, semantic_class/, traj_w_c.txt."""
    path = folder / "traj_w_c.txt"
    try:
        poses = [np.array([float(x) for x in line.split()]) for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise data.DataError(f"{path}: cannot be read as lines of 16 numbers ({error}); copy it again") from None
    if not poses or any(len(p) != 16 for p in poses):
        raise data.DataError(f"{path}: not 16 numbers on every line; copy it again")
    there = [p for p in (folder / "rgb").glob("rgb_*.png")]
    if len(there) != len(poses):
        raise data.DataError(f"{folder}: {len(there)} images rgb/rgb_<i>.png for {len(poses)} poses in traj_w_c.txt; copy it again")
    photos, kinds = [], [kind for kind in ("depth", "semantic_class") if (folder / kind).is_dir()]
    for i in range(0, len(poses), every):
        image, *others = (inside(folder, f"{kind}/{kind}_{i}.png", str(path)) for kind in ("rgb", *kinds))
        files = dict(zip(kinds, others))
        h, w = image_size(image)
        photos.append(Photo(i, image, checked_pose(poses[i].reshape(4, 4), f"{path}, line {i + 1}"),
                            Camera(w / 2, w / 2, (w - 1) / 2, (h - 1) / 2),   # 90 degrees wide: 320, 320, 319.5, 239.5 at 640x480
                            depth=files.get("depth"), label=files.get("semantic_class")))
    return photos


def write_replica_classes(root: Path) -> None:
    """classes.csv with Replica's 101 classes: 93,wall,#... Colours are ours: hues a golden section apart."""
    lines = ["id,name,colour"]
    for i, name in enumerate(REPLICA_CLASSES, 1):
        rgb = colorsys.hsv_to_rgb(0.618034 * i % 1, 0.45 + 0.5 * (i % 3) / 2, 0.95 - 0.4 * (i % 4) / 3)
        lines.append(f"{i},{name},#" + "".join(f"{round(255 * x):02x}" for x in rgb))
    path, text = root / data.CLASSES_CSV, "\n".join([*lines, ""]).encode()
    if path.is_file() and path.read_bytes() != text:
        raise data.DataError(f"{path}: not Replica's classes as written here; move it away or choose another --out")
    if not path.is_file():
        data.write_atomically(path, lambda file: file.write(text))


# ---------------------------------------------------------------------------------------------------- one camera for all frames

def resample(image: np.ndarray, camera: Camera, target: Camera, mode: str = "bilinear") -> np.ndarray:
    """What a pinhole camera `target` would have seen in place of `camera` with its lens: image (H, W, 3) or (H, W), same size."""
    h, w = image.shape[:2]
    u, v = distorted(*np.meshgrid(np.arange(w), np.arange(h)), camera, target)
    grid = torch.from_numpy(np.stack([2 * u / (w - 1) - 1, 2 * v / (h - 1) - 1], axis=-1))[None]
    x = torch.from_numpy(image.reshape(h, w, -1).astype(np.float64)).permute(2, 0, 1)[None]
    y = F.grid_sample(x, grid, mode=mode, padding_mode="border", align_corners=True)
    return y[0].permute(1, 2, 0).round().numpy().astype(image.dtype).reshape(image.shape)


def distorted(u: np.ndarray, v: np.ndarray, camera: Camera, target: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Where the ray through target's pixel (u, v) falls in the image of camera, distortion included (OpenCV's formula)."""
    x, y = (u - target.cx) / target.fx, (v - target.cy) / target.fy
    r2 = x * x + y * y
    radial = 1 + r2 * (camera.k1 + r2 * (camera.k2 + r2 * camera.k3))
    xd = x * radial + 2 * camera.p1 * x * y + camera.p2 * (r2 + 2 * x * x)
    yd = y * radial + camera.p1 * (r2 + 2 * y * y) + 2 * camera.p2 * x * y
    return camera.fx * xd + camera.cx, camera.fy * yd + camera.cy


def one_camera(cameras: list[Camera], size: tuple[int, int], where: str) -> Camera:
    """The pinhole camera for the whole scene: theirs if all are one without distortion, else their median, zoomed in until all of
    them see its every pixel. DataError beyond twice the focal length, or for a lens that folds the image back on itself."""
    first = cameras[0]
    if len(set(cameras)) == 1 and not any(first[4:]):
        return first
    h, w = size
    border = np.array([(u, v) for u in range(w) for v in (0, h - 1)] + [(u, v) for v in range(h) for u in (0, w - 1)]).T
    middle = np.median(np.array(cameras), axis=0)
    r2 = np.linspace(0, max((((border.T - middle[2:4]) / middle[:2]) ** 2).sum(1)), 50)
    folds = any((1 + r2 * (3 * c.k1 + r2 * (5 * c.k2 + r2 * 7 * c.k3)) <= 0).any() for c in set(cameras))
    for zoom in np.arange(1, 2, 0.01) if not folds else ():
        target = Camera(*(float(x) for x in middle[:4] * [zoom, zoom, 1, 1]))
        seen = [distorted(*border, camera, target) for camera in set(cameras)]
        if all(-0.5 <= u.min() and u.max() <= w - 0.5 and -0.5 <= v.min() and v.max() <= h - 0.5 for u, v in seen):
            return target
    raise data.DataError(f"{where}: no pinhole camera fits into all frames (cameras too different, or distortion too strong); "
                         "undistort them first")


# ---------------------------------------------------------------------------------------------------- near and far

def guess_near_far(c2w: np.ndarray, transparent: bool, where: str) -> tuple[float, float, str]:
    """From poses (N, 4, 4) alone -> near, far, why. DataError where all cameras are in one place.

    Cameras that look at one thing, with the point nearest to all optical axes at depths z: from half the smallest to 1.5 times the
    largest; where images show a background too, from 0.3 to 5 times. Cameras that look around: from 0.2 to 6 times their farthest
    distance from their middle.
    """
    centre, forward = c2w[:, :3, 3], c2w[:, :3, 2]
    across = np.eye(3) - forward[:, :, None] * forward[:, None, :]            # (N, 3, 3): distance from each axis
    total = across.sum(0)
    point = np.linalg.pinv(total, rcond=1e-6) @ (across @ centre[:, :, None])[..., 0].sum(0)
    z = ((point - centre) * forward).sum(1)                                   # (N,)
    off = np.linalg.norm((across @ (point - centre)[:, :, None])[..., 0], axis=1)
    radius = float(np.linalg.norm(centre - centre.mean(0), axis=1).max())
    if radius < 1e-6:
        raise data.DataError(f"{where}: all cameras are in one place: near and far cannot be told; give --near and --far")
    if z.min() > 0 and off.mean() < 0.3 * z.mean() and np.linalg.cond(total) < 1e4:
        near, far = (0.5, 1.5) if transparent else (0.3, 5)
        return near * float(z.min()), far * float(z.max()), "guessed from the poses: the cameras look at one thing"
    return 0.2 * radius, 6 * radius, "guessed from the poses: how far the cameras move"


def points_near_far(folder: Path, photos: list[Photo]) -> tuple[float, float, str] | None:
    """From the sparse points that nerfstudio leaves beside a capture (ply_file_path, as text): the 2nd and 98th percentile of their
    depths in the images, with a margin of a fifth. None if there are none."""
    name = read_json(folder / "transforms.json").get("ply_file_path") if (folder / "transforms.json").is_file() else None
    path = inside(folder, name, str(folder / "transforms.json")) if name else None
    if not path or not path.is_file():
        return None
    with open(path, "rb") as file:
        head = [file.readline(200).strip() for _ in range(40)]
        if b"format ascii 1.0" not in head or b"end_header" not in head:
            return None
        file.seek(0)
        while file.readline(200).strip() != b"end_header":
            pass
        try:
            points = np.array([[float(x) for x in line.split()[:3]] for line, _ in zip(file, range(500_000))]).reshape(-1, 3)
        except ValueError:
            raise data.DataError(f"{path}: its points are not numbers; export it again, or remove 'ply_file_path'") from None
    points = points[::1 + len(points) // 5000]
    K = torch.from_numpy(np.stack([p.camera.matrix() for p in photos])).float()
    c2w = torch.from_numpy(np.stack([p.c2w for p in photos])).float()
    uv, z = data.project(torch.from_numpy(points).float(), K, c2w)            # (P, N, 2), (P, N)
    h, w = image_size(photos[0].image)
    z = z[(z > 0) & (uv >= 0).all(-1) & (uv[..., 0] < w) & (uv[..., 1] < h)].numpy()
    low, high = np.percentile(z, (2, 98)) if len(z) > 100 else (0, 0)
    return (0.8 * float(low), 1.2 * float(high), f"from the points of {path.name}") if 0 < low < high < np.inf else None


def depth_near_far(ranges: list[tuple[float, float]]) -> tuple[float, float, str]:
    """From (1st, 99th percentile) of each frame's depth, with a margin of a tenth."""
    return 0.9 * min(r[0] for r in ranges), 1.1 * max(r[1] for r in ranges), "from the depth maps"


# ---------------------------------------------------------------------------------------------------- writing a scene

@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside it, renamed to `folder` at the end: the scene appears whole or not at all."""
    temporary = folder.with_name(f".{folder.name}.importing")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        for part in ("color", "pose", "intrinsic"):
            (temporary / part).mkdir(parents=True)
        yield temporary
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_matrix(path: Path, matrix: np.ndarray) -> None:
    """K (3, 3) or a pose (4, 4) as ScanNet writes them: 4x4 numbers in text."""
    full = np.eye(4)
    full[:len(matrix), :len(matrix)] = matrix
    np.savetxt(path, full, fmt="%.10g")


def write_colour(folder: Path, photo: Photo, target: Camera, size: tuple[int, int]) -> bool:
    """Copy a photo's image, or where it cannot be copied write it as png -> was anything of it transparent?"""
    image, raw = data.read_image(photo.image), photo.image.read_bytes()
    end = ".jpg" if raw.startswith(b"\xff\xd8\xff") else ".png" if raw.startswith(b"\x89PNG") else None
    channels = image.shape[2] if image.ndim == 3 else 1
    if image.shape[:2] != size:
        raise data.DataError(f"{photo.image}: {sides(image.shape)}, but others of the scene are {sides(size)}; make them one size")
    if image.dtype != np.uint8 or channels > 4 or (channels == 4 and end == ".jpg"):
        raise data.DataError(f"{photo.image}: {image.dtype}, {channels} channels; save it as 8-bit RGB")
    alpha = image[..., -1:] if channels in (2, 4) else None
    transparent, copied = alpha is not None and bool((alpha < 255).any()), end is not None and channels >= 3
    if image.ndim == 2 or channels < 3:
        image = np.repeat(image.reshape(*size, channels)[..., :1], 3, axis=2)
    if transparent:
        share = alpha / 255.0
        image, copied = (image[..., :3] * share + 255 * (1 - share)).round().astype(np.uint8), False
    if photo.camera != target:
        image, copied = resample(image[..., :3], photo.camera, target), False
    if copied:
        (folder / "color" / f"{photo.number}{end}").write_bytes(raw)
    else:
        iio.imwrite(folder / "color" / f"{photo.number}.png", image[..., :3], compress_level=3)
    return transparent


def write_map(folder: Path, kind: str, photo: Photo, source: Path, target: Camera) -> np.ndarray:
    """Copy a depth or label map (one channel png) -> its values (h, w)."""
    values = data.read_image(source)
    if values.ndim != 2 or values.dtype not in (np.uint8, np.uint16):
        raise data.DataError(f"{source}: not a png of one channel (8 or 16 bits); export it again")
    if photo.camera != target:
        size = image_size(photo.image)
        if values.shape != size:
            raise data.DataError(f"{source}: {sides(values.shape)}, its image {sides(size)}; with lens distortion they must agree")
        values = resample(values.astype(np.int32), photo.camera, target, "nearest").astype(values.dtype)
    (folder / kind).mkdir(exist_ok=True)
    if photo.camera != target:
        iio.imwrite(folder / kind / f"{photo.number}.png", values)
    else:
        (folder / kind / f"{photo.number}.png").write_bytes(source.read_bytes())
    return values


def write_photos(folder: Path, photos: list[Photo], name: str, where: str) -> tuple[list[dict], tuple, bool, list]:
    """Write the scene -> what to remember of each frame, (H, W), transparent?, ranges of depth (in units of 1000 counts)."""
    size = image_size(photos[0].image)
    target = one_camera([p.camera for p in photos], size, where)
    changed = sum(p.camera != target for p in photos)
    if changed:
        print(f"  {changed} of {len(photos)} images have lens distortion or a camera of their own: resampled to one pinhole camera "
              f"(focal length {target.fx:.1f}, {target.fy:.1f})", flush=True)
    frames, transparent, ranges, depth_size, top = [], False, [], None, 0
    for photo in tqdm(photos, desc=name, unit="frame", dynamic_ncols=True, mininterval=0.5 if sys.stderr.isatty() else 15):
        transparent |= write_colour(folder, photo, target, size)
        write_matrix(folder / "pose" / f"{photo.number}.txt", photo.c2w)
        if photo.depth:
            depth = write_map(folder, "depth", photo, photo.depth, target)
            if depth_size not in (None, depth.shape):
                raise data.DataError(f"{photo.depth}: {sides(depth.shape)}, others {sides(depth_size)}; export it again")
            depth_size = depth.shape
            if (depth > 0).any():
                ranges.append(tuple(np.percentile(depth[depth > 0], (1, 99)) / 1000))
        if photo.label:
            top = max(top, int(write_map(folder, "label-filt", photo, photo.label, target).max()))
        frames.append({"number": photo.number, "image": photo.image.name} | ({"split": photo.split} if photo.split else {}))
    if top > len(REPLICA_CLASSES):
        raise data.DataError(f"{where}: holds label {top}, Replica's classes are 0 to {len(REPLICA_CLASSES)}: another label set")
    write_matrix(folder / "intrinsic" / "intrinsic_color.txt", target.matrix())
    if depth_size:
        K = data.scale_intrinsics(torch.from_numpy(target.matrix()), size, depth_size).numpy()
        write_matrix(folder / "intrinsic" / "intrinsic_depth.txt", K)
    return frames, size, transparent, ranges


# ---------------------------------------------------------------------------------------------------- ScanNet downloads

def take(file, count: int, what: str) -> bytes:
    """The next bytes of a .sens file. DataError where it ends too early."""
    raw = file.read(count)
    if len(raw) < count:
        raise data.DataError(f"{file.name}: ends in {what}; the download was cut off, start it again")
    return raw


def label_reader(path: Path):
    """_2d-label-filt.zip -> a function from frame number to its png. DataError if the zip is damaged or an entry leads out."""
    try:
        archive = zipfile.ZipFile(path)
        entries = {}
        for info in archive.infolist():
            parts = PurePosixPath(info.filename.replace("\\", "/")).parts
            if not parts or parts[0] == "/" or ".." in parts or ":" in info.filename or (info.external_attr >> 28) == 0o12:
                raise data.DataError(f"{path}: its entry '{info.filename}' leads out of the folder or is a link; "
                                     "this is not ScanNet's zip")
            entries["/".join(parts[-2:])] = info
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise data.DataError(f"{path}: cannot be opened as a zip ({error}); download it again") from None

    def read(frame: int) -> bytes:
        """One label map, as it is in the zip."""
        info = entries.get(f"label-filt/{frame}.png")
        if info is None:
            raise data.DataError(f"{path}: has no label-filt/{frame}.png, but the scan has that frame; download it again")
        if info.file_size > 2 ** 25:
            raise data.DataError(f"{path}: label-filt/{frame}.png claims {info.file_size:,} bytes; this is not ScanNet's zip")
        try:
            with archive.open(info) as file:
                return file.read(2 ** 25)
        except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, NotImplementedError) as error:
            raise data.DataError(f"{path}: label-filt/{frame}.png is damaged ({error}); download it again") from None
    return read


def write_sens(folder: Path, path: Path, name: str, every: int) -> tuple[list[dict], tuple[int, int]]:
    """scene0000_00.sens, and its labels if the zip lies beside it -> what to remember of each frame, (H, W).

    Version 4, little endian: uint32 version; uint64 length, sensor's name; four float32 4x4: intrinsics and extrinsics of colour,
    then of depth; int32 compression of colour (2 jpeg) and depth (1 zlib); uint32 width and height of colour and of depth; float32
    depth units a metre; uint64 frames. A frame: float32 4x4 c2w, two uint64 times, uint64 bytes of colour and of depth, and these.
    """
    labels = path.with_name(f"{path.stem}_2d-label-filt.zip")
    read_label = label_reader(labels) if labels.is_file() else None
    for part in ["depth"] + ["label-filt"] * bool(read_label):
        (folder / part).mkdir()
    frames = []
    with open(path, "rb") as file:
        total = path.stat().st_size
        version, length = struct.unpack("<IQ", take(file, 12, "its header"))
        if version != 4 or length > 10_000:
            raise data.DataError(f"{path}: not a .sens file of version 4; download it again")
        take(file, length, "its header")
        K, _, depth_K, _ = np.frombuffer(take(file, 256, "its header"), "<f4").reshape(4, 4, 4).astype(np.float64)
        colour_kind, depth_kind, w, h, dw, dh, shift, count = struct.unpack("<iiIIIIfQ", take(file, 36, "its header"))
        if colour_kind not in (1, 2) or depth_kind not in (0, 1):
            raise data.DataError(f"{path}: colour or depth is compressed in a way ScanNet does not use ({colour_kind}, "
                                 f"{depth_kind}); download it again")
        if not all(0 < side <= 10_000 for side in (w, h, dw, dh)) or not 0 < shift < 1e6 or not 0 < count <= total // 96:
            raise data.DataError(f"{path}: sizes of {w}x{h} and {dw}x{dh}, {shift:g} units a metre, {count} frames: damaged; "
                                 "download it again")
        for kind, matrix in (("color", K), ("depth", depth_K)):
            if not np.isfinite(matrix).all() or min(matrix[0, 0], matrix[1, 1]) <= 0 or not np.allclose(matrix[2, :3], [0, 0, 1]):
                raise data.DataError(f"{path}: its {kind} camera is not a pinhole camera; download it again")
            write_matrix(folder / "intrinsic" / f"intrinsic_{kind}.txt", matrix)
        for i in tqdm(range(count), desc=name, unit="frame", dynamic_ncols=True, mininterval=0.5 if sys.stderr.isatty() else 15):
            where = f"frame {i} of {count}"
            pose = np.frombuffer(take(file, 64, where), "<f4").reshape(4, 4).astype(np.float64)
            _, _, colour_bytes, depth_bytes = struct.unpack("<QQQQ", take(file, 32, where))
            if colour_bytes + depth_bytes > total - file.tell():
                take(file, total + 1, where)                                  # says that the file ends there
            if i % every:
                file.seek(colour_bytes + depth_bytes, os.SEEK_CUR)
                continue
            colour, packed = take(file, colour_bytes, where), take(file, depth_bytes, where)
            image_path = folder / "color" / f"{i}.{'jpg' if colour_kind == 2 else 'png'}"
            image_path.write_bytes(colour)                                    # as it is, not encoded again
            if read_whole(image_path, f"{path}: the colour of {where}").shape[:2] != (h, w):
                raise data.DataError(f"{path}: the colour of {where} is not {w}x{h}; download it again")
            try:
                unpacker = zlib.decompressobj()
                raw = unpacker.decompress(packed, 2 * dw * dh + 1) if depth_kind == 1 else packed
            except zlib.error:
                raw = b""
            if len(raw) != 2 * dw * dh:
                raise data.DataError(f"{path}: the depth of {where} does not unpack to {dw}x{dh}; download it again")
            depth = np.frombuffer(raw, "<u2").reshape(dh, dw)
            if shift != 1000:                                                 # 01 reads millimetres
                depth = (depth * (1000 / shift)).round().clip(0, 65535)
            iio.imwrite(folder / "depth" / f"{i}.png", depth.astype(np.uint16), compress_level=1)
            lost = np.isinf(pose).any() and not np.isnan(pose).any()          # ScanNet's mark of lost tracking; 01 leaves it out
            write_matrix(folder / "pose" / f"{i}.txt", np.full((4, 4), -np.inf) if lost else checked_pose(pose, f"{path}, {where}"))
            if read_label:
                (folder / "label-filt" / f"{i}.png").write_bytes(read_label(i))
                if read_whole(folder / "label-filt" / f"{i}.png", f"{labels}: label-filt/{i}.png").ndim != 2:
                    raise data.DataError(f"{labels}: label-filt/{i}.png has several channels; download it again")
            frames.append({"number": i})
    return frames, (h, w)


def read_whole(path: Path, what: str) -> np.ndarray:
    """Decode a file just written. DataError that names where it came from."""
    try:
        return data.read_image(path)
    except data.DataError:
        raise data.DataError(f"{what} cannot be decoded; download it again") from None


def copy_label_table(source: Path, out: Path) -> None:
    """ScanNet's label table from the scan's folder or up to three above it, once. DataError if there is none."""
    if (out / data.LABELS_TSV).is_file():
        return
    places = [source.resolve(), *source.resolve().parents[:3]]
    table = next((p / data.LABELS_TSV for p in places if (p / data.LABELS_TSV).is_file()), None)
    if table is None:
        raise data.DataError(f"{source}: the scan has labels, but there is no {data.LABELS_TSV} beside it or above; get it with "
                             "ScanNet's download script and --label_map")
    data.read_label_table(table)
    data.write_atomically(out / data.LABELS_TSV, lambda file: file.write(table.read_bytes()))


# ---------------------------------------------------------------------------------------------------- the command line

def import_scene(layout: str, source: Path, folder: Path, every: int, near: float | None, far: float | None) -> str:
    """Write one scene into `folder` (not there yet) -> a line that says what it holds."""
    with whole_folder(folder) as temporary:
        where, found = str(source), None
        if layout == "ScanNet download":
            frames, size = write_sens(temporary, source, folder.name, every)
        else:
            bounds = None
            if layout == "LLFF":
                photos, bounds = read_llff(source, every)
            else:
                photos = {"Blender / nerfstudio": read_transforms, "Replica for Semantic-NeRF": read_replica}[layout](source, every)
            if not photos:
                raise data.DataError(f"{source}: not one frame in it")
            frames, size, transparent, ranges = write_photos(temporary, photos, folder.name, where)
            if layout == "LLFF":
                found = 0.9 * float(bounds[:, 0].min()), float(bounds[:, 1].max()), "from the bounds"
            elif layout == "Blender / nerfstudio" and not (near and far):
                found = depth_near_far(ranges) if ranges else (
                    points_near_far(source, photos) or guess_near_far(np.stack([p.c2w for p in photos]), transparent, where))
        if near or far or found:                                              # else: metres, and 07's own range
            why = "as you said" if near and far else f"{found[2] if found else 'metres'}{', and as you said' * bool(near or far)}"
            near, far = near or (found[0] if found else 0.3), far or (found[1] if found else 8.0)
            if not 0 < near < far < 1e9:
                raise data.DataError(f"{source}: near {near:.4g} and far {far:.4g} ({why}) are no range; give --near and --far")
            (temporary / "near_far.txt").write_text(f"{near:.6g} {far:.6g}\n")
        about = {"source": source.name, "layout": layout, "every": every, "frames": frames}
        (temporary / "import.json").write_text(json.dumps(about, indent=1))
        has = {kind: (temporary / kind).is_dir() for kind in ("label-filt", "depth")}
        try:
            scene = data.Scene(temporary, *size)                              # whatever 01 would refuse, it refuses now
        except data.DataError as error:
            raise data.DataError(str(error).replace(str(temporary), str(source))) from None
    splits = {s: sum(f.get("split") == s for f in frames) for s in dict.fromkeys(f.get("split", "") for f in frames) if s}
    lost = len(frames) - len(scene)
    return (f"{folder}: {len(scene)} frames of {sides(size)}" + f" ({lost} more without a pose)" * (lost > 0)
            + f" ({', '.join(f'{n} {s}' for s, n in splits.items())})" * bool(splits)
            + f", {'' if has['label-filt'] else 'no '}labels, {'' if has['depth'] else 'no '}depth, "
            + (f"near {near:.4g}, far {far:.4g} ({why}; edit near_far.txt if you know better)" if near else "in metres")
            + f"\n  only {len(scene)} usable frames: evaluation and fine-tuning take 20" * (len(scene) < 20))


def scene_jobs(layout: str, folders: list[Path]) -> list[tuple[Path, str]]:
    """What to import, under which name: each .sens, each of Replica's sequences, else each folder."""
    jobs = []
    for folder in folders:
        name = re.sub(r"[^\w.-]", "_", folder.resolve().name).lstrip(".") or "scene"
        if layout == "ScanNet download":
            jobs += [(path, path.stem) for path in sorted(folder.glob("*.sens"))]
        elif layout == "Replica for Semantic-NeRF":                           # room_0_01, room_0_02: two scans of one space
            jobs += [(folder / f"Sequence_{i}", f"{name}_{i:02d}") for i in (1, 2)
                     if (folder / f"Sequence_{i}" / "traj_w_c.txt").is_file()]
        else:
            jobs.append((folder, name))
    names = [name for _, name in jobs]
    for name in names:
        if names.count(name) > 1:
            raise data.DataError(f"two scenes are called {name}; import their folders one by one, with an --out each")
    return jobs


def write_split(layout: str, out: Path) -> None:
    """split.txt beside the scenes, if this project has one that knows all of them: ScanNet's 60 / 10, Replica's 12 / 6 or 6 / 2."""
    spaces = {data.space(name) for name in data.list_scenes(out)}
    for name in {"ScanNet download": ["scannet-60-10"], "Replica for Semantic-NeRF": ["replica-8", "replica-12-6"]}.get(layout, []):
        text = (SPLITS / f"{name}.txt").read_text()
        if spaces <= {line.split()[1] for line in text.splitlines() if line.startswith(("train ", "test "))}:
            if not (out / "split.txt").exists() or (out / "split.txt").read_text().startswith("# S-Ray"):
                data.write_atomically(out / "split.txt", lambda file: file.write(text.encode()))
                print(f"{out / 'split.txt'}: {text.splitlines()[0].removeprefix('# ')}")
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", metavar="SOURCE", help="a capture, a scan, or a folder of many")
    parser.add_argument("--out", required=True, help="folder for the scenes, like data/NAME")
    parser.add_argument("--every", type=int, help="take every n-th frame [10 of ScanNet's videos, 5 of Replica's, else all]")
    parser.add_argument("--near", type=float, help="nearest depth worth sampling, in the scene's units [found]")
    parser.add_argument("--far", type=float, help="and the farthest [found]")
    args = parser.parse_args()

    source, out = Path(args.source), Path(args.out)
    if not source.exists():
        raise data.DataError(f"{source}: no such file or folder")
    if args.every is not None and args.every < 1:
        raise data.DataError(f"--every {args.every}: must be at least 1")
    if any(x is not None and not 0 < x < 1e9 for x in (args.near, args.far)) or (args.near and args.far and args.near >= args.far):
        raise data.DataError(f"--near {args.near} --far {args.far}: needs 0 < near < far")
    layout, folders = data.foreign_scenes(source)
    if layout is None:
        if (source / "color").is_dir() or any(source.glob("*/color")):
            raise data.DataError(f"{source}: ScanNet's export already; use it as it is: "
                                 f"python 07_train.py --scene {shlex.quote(str(source))}")
        known = "; ".join(f"{name}: {signs[0]}" for name, signs in data.SIGNS.items())
        raise data.DataError(f"{source}: no layout I know ({known}); README, \"Your own data\", has examples")
    every = args.every or EVERY.get(layout, 1)
    jobs = scene_jobs(layout, folders)
    if source.is_file() and layout == "ScanNet download":
        jobs = [job for job in jobs if job[0].name == source.name]
    print(f"{source}: recognised as {layout}, {len(jobs)} scene{'s' * (len(jobs) > 1)}"
          + f", one frame in {every}" * (every > 1), flush=True)
    own = layout == "Replica for Semantic-NeRF"
    labelled = own or any(p.with_name(f"{p.stem}_2d-label-filt.zip").is_file() for p, _ in jobs if p.is_file())
    if labelled and (out / (data.LABELS_TSV if own else data.CLASSES_CSV)).is_file():
        raise data.DataError(f"{out}: its scenes have another label set; choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        if own:
            write_replica_classes(out)
            print(f"{out / data.CLASSES_CSV}: {len(REPLICA_CLASSES)} classes, 0 is void: "
                  + ", ".join(f"{i} {name}" for i, name in enumerate(REPLICA_CLASSES, 1)))
        elif labelled:
            copy_label_table(jobs[0][0].parent, out)
        failed = []
        for path, name in jobs:
            if (out / name).exists():
                check_same(out / name, path, layout, every)
                print(f"{out / name}: there already; kept (delete the folder to import it again)")
                continue
            try:
                print(import_scene(layout, path, out / name, every, args.near, args.far), flush=True)
            except data.DataError as error:
                if len(jobs) == 1:
                    raise
                failed.append(name)                                           # a night's import does not stop at one bad scan
                print(f"NOT IMPORTED: {error}", flush=True)
        if failed:
            raise data.DataError(f"{len(failed)} of {len(jobs)} scenes were not imported (reasons above): {', '.join(failed[:5])}"
                                 + ", ..." * (len(failed) > 5) + "; mend or remove them, the same command goes on")
        write_split(layout, out)
    except KeyboardInterrupt:
        raise data.DataError(f"interrupted; whole scenes in {out} stay, and the same command continues") from None
    except OSError as error:
        raise data.DataError(f"{error.filename or out}: {error.strerror or error}") from None
    print(f"next: python 07_train.py --scene {shlex.quote(str(out))}    or, with weights you have: "
          f"python 08_eval.py --checkpoint CKPT --scene {shlex.quote(str(out))}")


def check_same(folder: Path, source: Path, layout: str, every: int) -> None:
    """DataError if the scene that is there was not imported from the same source in the same way."""
    try:
        about = json.loads((folder / "import.json").read_text())
        there = {key: about.get(key) for key in ("source", "layout", "every")}
    except (OSError, ValueError, AttributeError):
        there = {}
    if there != {"source": source.name, "layout": layout, "every": every}:
        raise data.DataError(f"{folder}: a scene that was not imported from here, or with another --every; delete it or choose "
                             "another --out")


if __name__ == "__main__":
    data.run_script(main)
