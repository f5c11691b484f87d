"""Other people's layouts, one file each: read(folder) -> Capture, whose cameras are this project's.

    file              told by                              columns of a pose      pixel centres
    nerfstudio.py     transforms.json, or _train, _val     right, up, back        half-integers
    colmap.py         sparse/0/cameras.bin, or .txt        right, down, forward   half-integers
    llff.py           poses_bounds.npy                     down, right, back      axis in the middle
    scannet_sens.py   scene0000_00.sens                    right, down, forward   integers
    replica.py        traj_w_c.txt beside rgb/             right, down, forward   integers

Ours are right, down, forward, and integer centres. Where the first pixel's corner is 0 (COLMAP, hence
nerfstudio and LLFF) a principal point loses half a pixel, and the middle of an image is (W - 1) / 2. NeRF's
own code puts Blender's optical axis at W / 2 of integer centres, half a pixel off. Blender renders it in the
middle, and so do we.

Nothing that a capture says is trusted: files that it names must lie in its folder, numbers must be numbers.
What it says and we do not use is said in a line. support/datasets.py tells layouts apart (SIGNS), strange.py
says what to do with what is none of them. tools/import_scenes.py writes the scenes.

Test: pytest tests/test_tool_import.py
"""
import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

import numpy as np

from support.files import DataError
from support.files import image_size as image_size  # for the layouts
from support.lens import Camera

IMAGES = (".jpg", ".jpeg", ".png")


class Photo(NamedTuple):
    """A frame before it is copied: c2w (4, 4) in OpenCV axes, camera at the image's own size; split train,
    val, test or none. depth: a map whose values times depth_scale are the scene's unit. mask: an image whose
    black pixels are to be ignored (mask_inverted: those that are not black)."""
    number: int
    image: Path
    c2w: np.ndarray
    camera: Camera
    split: str = ""
    depth: Path | None = None
    label: Path | None = None
    depth_scale: float = 0.001
    mask: Path | None = None
    mask_inverted: bool = False


# near and far, of the smallest and largest depth measured (docs/data.md)
MARGIN = 0.5, 1.5


class Range(NamedTuple):
    """near, far, and where they come from."""
    near: float
    far: float
    why: str


class Capture(NamedTuple):
    """What a layout's reader found: its photos; lines to print; near and far, if the capture knows them."""
    photos: list[Photo]
    notes: list[str] = []
    range: Range | None = None


def inside(folder: Path, name, where: str, endings: tuple = ("",)) -> Path:
    """The file `name` of folder, as a capture lists it, with one of these endings. A name that starts
    elsewhere (absolute, '..', folders of another machine) stands for its longest end that is a file in the
    folder. DataError if it leads out of it."""
    usable = isinstance(name, str) and 0 < len(name) <= 2000 and name.isprintable() \
        and PurePosixPath(name.replace("\\", "/")).name not in ("", "..")
    if not usable or max(map(len, re.split(r"[/\\]", name))) > 240:
        raise DataError(f"{where}: {str(name)[:100]!r} is not the name of a file")
    name = name.replace("\\", "/")
    parts = [part for part in PurePosixPath(name).parts if part not in ("..", "/")]
    leads_out = bool(PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive
                     or ".." in PurePosixPath(name).parts)
    starts = [0] if not leads_out else []
    if parts and (leads_out or not (folder / parts[0]).exists()):
        starts = range(len(parts))[:30]
    tries = [folder.joinpath(*parts[i:-1], parts[-1] + end) for i in starts for end in endings]
    path = next((path for path in tries if path.is_file()), None if leads_out else folder / name)
    if path is None:
        raise DataError(f"{where}: '{name}' leads out of {folder}; file names must be relative to that "
                        "folder and stay in it")
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise DataError(f"{path}: a link that leads out of {folder}; put the file itself there")
    return path


def check_missing(missing: list[Path], total: int, where: str) -> list[str]:
    """A line on the listed images that are not there, or none. DataError if they are more than half."""
    if not missing:
        return []
    line = f"{len(missing)} of {total} images are not there ({missing[0].name}" + ", ..." * (len(missing) > 1)
    if 2 * len(missing) > total:
        raise DataError(f"{where}: {line}, looked for as {missing[0]}); put them there, or correct the names")
    return [f"{line}): left out"]


def images_in(folder: Path) -> list[Path]:
    """The image files right in a folder, in name order."""
    there = folder.glob("[!.]*") if folder.is_dir() else ()
    return sorted(path for path in there if path.suffix.lower() in IMAGES and path.is_file())


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


def check_shape(size: tuple[int, int], h: float, w: float, words: str) -> None:
    """DataError with these words unless an image of this size has the shape that its camera is given for."""
    if abs(h / size[0] / (w / size[1]) - 1) > 0.02:
        turned = abs(w / size[0] / (h / size[1]) - 1) <= 0.02
        raise DataError(f"{words} {w:g}x{h:g}: another shape" + turned * (
            ", turned by 90 degrees (an EXIF orientation is not applied here: store the pixels upright, "
            "mogrify -auto-orient)"))
