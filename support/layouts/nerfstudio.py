"""Blender's and nerfstudio's transforms.json: OpenGL axes, pixel centres at half-integers, lens distortion.

Photographs with lens distortion, or with cameras of their own, are resampled to one pinhole camera: a scene
in ScanNet's layout has one.
"""
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from support.files import DataError
from support.layouts import Camera, Photo, check_shape, checked_pose, image_size, inside, sides

PINHOLES = "OPENCV PINHOLE SIMPLE_PINHOLE SIMPLE_RADIAL RADIAL PERSPECTIVE".split()
SPLITS = ["transforms_train.json", "transforms_val.json", "transforms_test.json"]


def read(folder: Path, every: int) -> list[Photo]:
    """transforms.json, or transforms_train/val/test.json one after the other, as Photos in the files'
    order."""
    files = [folder / "transforms.json"]
    if not files[0].is_file():
        order = {name: i for i, name in enumerate(SPLITS)}
        files = sorted(folder.glob("transforms_*.json"), key=lambda p: (order.get(p.name, 3), p.name))
    photos = []
    for file in files:
        meta = read_json(file)
        shared = {key: value for key, value in meta.items() if key != "frames"}
        split = file.stem.removeprefix("transforms").removeprefix("_")
        for index, frame in enumerate(meta["frames"]):
            where = f"{file}, frame {index}"
            image = image_of(folder, frame.get("file_path"), where)
            pose = checked_pose(frame.get("transform_matrix"), where)
            pose[:3, 1:3] *= -1                                               # up, back -> down, forward
            depth = inside(folder, frame["depth_file_path"], where) if frame.get("depth_file_path") else None
            depth = depth if depth and depth.suffix.lower() == ".png" else None
            camera = read_camera(shared | frame, image_size(image), where)
            photos.append(Photo(len(photos), image, pose, camera, split, depth))
    return photos[::every]


def read_json(path: Path) -> dict:
    """A transforms file. DataError unless it is an object with a list of frames."""
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({str(error).splitlines()[0][:100]}); export it "
                        "again") from None
    frames = meta.get("frames") if isinstance(meta, dict) else None
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise DataError(f"{path}: has no list of frames; is it a Blender or nerfstudio transforms file?")
    return meta


def image_of(folder: Path, name, where: str) -> Path:
    """The image of a frame. NeRF's scenes leave the ending out."""
    image = inside(folder, name, where)
    if image.is_file():
        return image
    endings = [image.with_name(image.name + end) for end in (".png", ".jpg", ".jpeg", ".PNG", ".JPG")]
    image = next((path for path in endings if path.is_file()), image)
    return inside(folder, str(image.relative_to(folder)), where)


def number(meta: dict, key: str, default: float | None, where: str, positive: bool = False) -> float:
    """meta[key] as a finite float; default where it is absent. DataError for anything else."""
    value = meta.get(key, default)
    real = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9
    if not real or (positive and value <= 0):
        raise DataError(f"{where}: '{key}' is {value!r}, not a {'positive ' * positive}number; correct it or "
                        "export again")
    return float(value)


def read_camera(meta: dict, size: tuple[int, int], where: str) -> Camera:
    """Intrinsics of one frame (its own keys over the file's) -> Camera at the image's real size (H, W)."""
    model = meta.get("camera_model", "OPENCV")
    if model not in PINHOLES or number(meta, "k4", 0, where):
        raise DataError(f"{where}: camera model {str(model)[:40]}, or its k4, is no pinhole camera; "
                        "undistort the images first (COLMAP: image_undistorter)")
    h, w = (number(meta, key, side, where, True) for key, side in zip(("h", "w"), size))
    check_shape(size, h, w, f"{where}: the image is {sides(size)}, the file says")
    if "camera_angle_x" in meta and "fl_x" not in meta:
        angle = number(meta, "camera_angle_x", None, where, True)
        if angle >= np.pi:
            raise DataError(f"{where}: 'camera_angle_x' is {angle:g}; radians below pi are meant")
        meta = {**meta, "fl_x": 0.5 * w / np.tan(0.5 * angle)}
    fx = number(meta, "fl_x", None, where, True)
    defaults = {"fl_y": fx, "cx": w / 2, "cy": h / 2}
    fy, cx, cy = (number(meta, key, value, where) for key, value in defaults.items())
    if fy <= 0:
        raise DataError(f"{where}: 'fl_y' is {fy:g}, not a positive number; correct it or export again")
    lens = (number(meta, key, 0, where) for key in ("k1", "k2", "k3", "p1", "p2"))
    # to the size the image has, while the first corner is 0; then the first centre is
    x, y = size[1] / w, size[0] / h
    return Camera(x * fx, y * fy, x * cx - 0.5, y * cy - 0.5, *lens)


def read_points(folder: Path) -> tuple[str, np.ndarray] | None:
    """The sparse points that nerfstudio leaves beside a capture (ply_file_path, as text): the file's name and
    at most 5,000 of them (P, 3). None if there are none."""
    path = folder / "transforms.json"
    name = read_json(path).get("ply_file_path") if path.is_file() else None
    path = inside(folder, name, str(path)) if name else None
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
            rows = [[float(x) for x in line.split()[:3]] for line, _ in zip(file, range(500_000))]
            points = np.array(rows).reshape(-1, 3)
        except ValueError:
            raise DataError(f"{path}: its points are not numbers; export it again, or remove "
                            "'ply_file_path'") from None
    return path.name, points[::1 + len(points) // 5000]


# ---------------------------------------------------------------------------------- one camera for all frames

def resample(image: np.ndarray, camera: Camera, target: Camera, mode: str = "bilinear") -> np.ndarray:
    """What a pinhole camera `target` would have seen in place of `camera` with its lens: image (H, W, 3) or
    (H, W), same size."""
    h, w = image.shape[:2]
    u, v = distorted(*np.meshgrid(np.arange(w), np.arange(h)), camera, target)
    grid = torch.from_numpy(np.stack([2 * u / (w - 1) - 1, 2 * v / (h - 1) - 1], axis=-1))[None]
    x = torch.from_numpy(image.reshape(h, w, -1).astype(np.float64)).permute(2, 0, 1)[None]
    y = F.grid_sample(x, grid, mode=mode, padding_mode="border", align_corners=True)
    return y[0].permute(1, 2, 0).round().numpy().astype(image.dtype).reshape(image.shape)


def distorted(u: np.ndarray, v: np.ndarray, camera: Camera, target: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Where the ray through target's pixel (u, v) falls in the image of camera, distortion included (OpenCV's
    formula)."""
    x, y = (u - target.cx) / target.fx, (v - target.cy) / target.fy
    r2 = x * x + y * y
    radial = 1 + r2 * (camera.k1 + r2 * (camera.k2 + r2 * camera.k3))
    xd = x * radial + 2 * camera.p1 * x * y + camera.p2 * (r2 + 2 * x * x)
    yd = y * radial + camera.p1 * (r2 + 2 * y * y) + 2 * camera.p2 * x * y
    return camera.fx * xd + camera.cx, camera.fy * yd + camera.cy


def one_camera(cameras: list[Camera], size: tuple[int, int], where: str) -> Camera:
    """The pinhole camera for the whole scene: theirs if all are one without distortion, else their median,
    zoomed in until all of them see its every pixel. DataError beyond twice the focal length, or for a lens
    that folds the image back on itself."""
    kinds = set(cameras)
    if len(kinds) == 1 and not any(cameras[0][4:]):
        return cameras[0]
    h, w = size
    edges = [(u, v) for u in range(w) for v in (0, h - 1)] + [(u, v) for v in range(h) for u in (0, w - 1)]
    border = np.array(edges).T                                                # (2, P)
    middle = np.median(np.array(cameras), axis=0)
    r2 = np.linspace(0, max((((border.T - middle[2:4]) / middle[:2]) ** 2).sum(1)), 50)
    folds = any((1 + r2 * (3 * c.k1 + r2 * (5 * c.k2 + r2 * 7 * c.k3)) <= 0).any() for c in kinds)
    for zoom in np.arange(1, 2, 0.01) if not folds else ():
        target = Camera(*(float(x) for x in middle[:4] * [zoom, zoom, 1, 1]))
        seen = np.array([distorted(*border, camera, target) for camera in kinds])                # (c, 2, P)
        if seen.min() >= -0.5 and (seen.max(axis=(0, 2)) <= [w - 0.5, h - 0.5]).all():
            return target
    raise DataError(f"{where}: no pinhole camera fits into all frames (cameras too different, or distortion "
                    "too strong); undistort them first")
