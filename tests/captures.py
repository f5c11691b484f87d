"""Captures of conftest's box, written as other programs write them: every pixel of every photograph is known.

For test_cases.py and test_tool_import_*.py.
"""
import json
import sys
from importlib import import_module
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from conftest import HALF, camera

from support.files import DataError

data, importer = import_module("01_data"), import_module("tools.import_scenes")
SIZE = (48, 64)
K = np.array([[55.0, 0, 31.5], [0, 55.0, 23.5], [0, 0, 1]])
FLIP = np.diag([1.0, -1, -1, 1])                                              # OpenCV <-> OpenGL axes


def colours(directions: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """What rays (H, W, 3) of a camera in the box meet: (H, W, 3) uint8, conftest's pattern."""
    h, w, _ = directions.shape
    world, origin = (directions.reshape(-1, 3) @ pose[:3, :3].T).T, pose[:3, 3:]
    world = np.where(world == 0, 1e-12, world)
    depth = ((np.sign(world) * HALF[:, None] - origin) / world).min(0)
    waves = np.array([[7.0, 5, -4], [-4, 8, 5], [5, -3, 8]]) @ (origin + depth * world)
    return (127.5 + 100 * np.sin(waves)).T.round().astype(np.uint8).reshape(h, w, 3)


def pinhole(matrix: np.ndarray, size=SIZE) -> np.ndarray:
    """The rays of a pinhole camera's pixels (H, W, 3)."""
    v, u = np.mgrid[:size[0], :size[1]].astype(float)
    return np.stack([(u - matrix[0, 2]) / matrix[0, 0], (v - matrix[1, 2]) / matrix[1, 1], np.ones(size)], -1)


def through_lens(matrix: np.ndarray, bend, size=SIZE) -> np.ndarray:
    """The rays of the pixels of a camera whose lens bends a ray (x, y) to bend(x, y): found by iteration."""
    target = pinhole(matrix, size)[..., :2]
    x, y = target[..., 0].copy(), target[..., 1].copy()
    for _ in range(3000):
        bx, by = bend(x, y)
        x, y = x + 0.7 * (target[..., 0] - bx), y + 0.7 * (target[..., 1] - by)
    assert np.abs(np.stack(bend(x, y), -1) - target).max() < 1e-9
    return np.stack([x, y, np.ones(size)], -1)


def frames(count: int) -> list[dict]:
    """Frames of transforms.json: images/0000.png ..., the box's cameras."""
    return [{"file_path": f"images/{i:04d}.png", "transform_matrix": (camera(i) @ FLIP).tolist()}
            for i in range(count)]


def write_images(folder: Path, count: int = 24, rays: np.ndarray | None = None, first: int = 0) -> None:
    """images/0000.png ... of the box, seen along these rays (a pinhole camera's)."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, count):
        iio.imwrite(folder / f"{i:04d}.png", colours(pinhole(K) if rays is None else rays, camera(i)))


def intrinsics(matrix: np.ndarray = K, size=SIZE) -> dict:
    """A camera as nerfstudio writes it: the first corner is 0."""
    return {"fl_x": matrix[0, 0], "fl_y": matrix[1, 1], "cx": matrix[0, 2] + 0.5, "cy": matrix[1, 2] + 0.5,
            "w": size[1], "h": size[0]}


def write_transforms(folder: Path, meta: dict | None = None, count: int = 24, rays=None, **more) -> Path:
    """A capture: images/ and transforms.json -> its folder."""
    write_images(folder / "images", count, rays)
    meta = (intrinsics() if meta is None else meta) | {"frames": frames(count)} | more
    (folder / "transforms.json").write_text(json.dumps(meta))
    return folder


def run(module, *arguments):
    """A script's main() as `python script arguments` runs it, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["script.py", *map(str, arguments)])
        patch.setattr("support.machine.prepare_cpu", lambda: None)            # its settings would stay
        module.main()


def refused(module, *arguments) -> str:
    """The one line that a command ends with."""
    with pytest.raises(DataError) as error:
        run(module, *arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def imported(source: Path, out: Path, measure: bool = False) -> "data.Scene":
    """The one scene of a capture, imported by the command, at its own size. measure: its near and far,
    too."""
    run(importer, source, "--out", out, *(() if measure else ("--near", 1, "--far", 5)))
    folder, = (path for path in out.iterdir() if path.is_dir())
    size = iio.improps(next((folder / "color").iterdir())).shape[:2]
    return data.Scene(folder, *size, out / "cache")


def check_pixels(scene, count: int, worst: float = 3.0) -> None:
    """The scene has `count` frames, and each image is what its own camera and pose see in the box."""
    assert len(scene) == count
    for i, frame in enumerate(scene.frames):
        want = colours(pinhole(scene.native_K.astype(float), scene.size), scene.poses[i])
        got = iio.imread(scene.files(frame)[0])[..., :3]
        error = np.abs(got.astype(float) - want).mean()
        assert error < worst, (frame, error)
