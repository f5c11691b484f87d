"""Other people's layouts, one file each: read(folder, every) -> Photos, whose cameras are this project's.

| file | layout | told by | columns of a pose | pixel centres | what else | |---|---|---|---|---|---| |
nerfstudio.py | Blender, nerfstudio | transforms.json, or _train, _val ... | right, up, back | half-integers |
lens | | llff.py | LLFF | poses_bounds.npy | down, right, back | axis in the middle | near, far | |
scannet_sens.py | ScanNet download | scene0000_00.sens | right, down, forward | integers | depth, labels | |
replica.py | Replica | Sequence_1/traj_w_c.txt | right, down, forward | integers | depth, labels |

Ours are right, down, forward, and integer centres. Where the first pixel's corner is 0 (COLMAP, hence
nerfstudio and LLFF) a principal point loses half a pixel, and the middle of an image is (W - 1) / 2. NeRF's
own code puts Blender's optical axis at W / 2 of integer centres, half a pixel off. Blender renders it in the
middle, and so do we.

Nothing that a capture says is trusted: files that it names must lie in its folder, numbers must be numbers.
support/datasets.py tells layouts apart (SIGNS). tools/import_scenes.py writes the scenes.

Test: pytest tests/test_tool_import.py
"""
import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

import imageio.v3 as iio
import numpy as np

from support.files import DataError, read_image


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
    """A frame before it is copied: c2w (4, 4) in OpenCV axes, camera at the image's own size; split train,
    val, test or none."""
    number: int
    image: Path
    c2w: np.ndarray
    camera: Camera
    split: str = ""
    depth: Path | None = None
    label: Path | None = None


def inside(folder: Path, name, where: str) -> Path:
    """The file `name` of folder, as a capture lists it. DataError if it leads out of the folder: absolute,
    '..', a link."""
    usable = isinstance(name, str) and 0 < len(name) <= 2000 and "\0" not in name
    if not usable or max(map(len, re.split(r"[/\\]", name))) > 250:
        raise DataError(f"{where}: {str(name)[:100]!r} is not the name of a file")
    name = name.replace("\\", "/")
    absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive
    if absolute or ".." in PurePosixPath(name).parts:
        raise DataError(f"{where}: '{name}' leads out of {folder}; file names must be relative to that "
                        "folder and stay in it")
    path = folder / name
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise DataError(f"{path}: a link that leads out of {folder}; put the file itself there")
    return path


def checked_pose(matrix, where: str) -> np.ndarray:
    """3x4 or 4x4 numbers -> pose (4, 4) float64. DataError unless finite, with a rotation (to 1%) and a sane
    position."""
    try:
        pose = np.array(matrix, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        pose = np.zeros(0)
    if pose.shape not in ((3, 4), (4, 4)):
        raise DataError(f"{where}: the pose is not a 4x4 matrix of numbers; export it again")
    if pose.shape == (3, 4):
        pose = np.vstack([pose, [0, 0, 0, 1]])
    if not np.isfinite(pose).all() or np.abs(pose).max() > 1e6:
        raise DataError(f"{where}: the pose holds NaN, inf or huge numbers; leave the frame out or "
                        "export it again")
    R = pose[:3, :3]
    rotation = np.abs(R @ R.T - np.eye(3)).max() <= 0.01 and np.linalg.det(R) >= 0
    if not rotation or not np.allclose(pose[3], [0, 0, 0, 1]):
        raise DataError(f"{where}: the pose is not a rotation and a position (mirrored, scaled or sheared); "
                        "export it again")
    return pose


def sides(size) -> str:
    """(H, W, ...) as people write it: WxH."""
    return f"{size[1]}x{size[0]}"


def image_size(path: Path) -> tuple[int, int]:
    """(H, W) of an image, from its header. DataError if missing or no image."""
    try:
        return iio.improps(path).shape[:2]
    except Exception:
        return read_image(path).shape[:2]     # says what is wrong


def check_shape(size: tuple[int, int], h: float, w: float, words: str) -> None:
    """DataError with these words unless an image of this size has the shape that its camera is given for."""
    if abs(h / size[0] / (w / size[1]) - 1) > 0.02:
        raise DataError(f"{words} {w:g}x{h:g}: another shape")
