"""LLFF's poses_bounds.npy: a row of [R | t | H W f] and near, far for each image in name order; axes down,
right, back."""
from pathlib import Path

import numpy as np

from support.files import DataError
from support.layouts import Camera, Photo, check_shape, checked_pose, image_size, inside, sides


def read(folder: Path, every: int) -> list[Photo]:
    """poses_bounds.npy (N, 17) and the N images -> Photos."""
    path, rows = folder / "poses_bounds.npy", read_rows(folder)
    images = list_images(folder)
    if len(images) != len(rows):
        raise DataError(f"{folder}: {len(images)} images (in images/, or images_2, _4, _8) for {len(rows)} "
                        "poses in poses_bounds.npy; there must be one each, in name order")
    photos = []
    for i, (image, row) in enumerate(zip(images, rows)):
        where, table = f"{path}, row {i}", row[:15].reshape(3, 5)
        inside(folder, str(image.relative_to(folder)), where)
        down, right, back, position = table[:, :4].T
        pose = checked_pose(np.stack([right, down, -back, position], axis=1), where)
        (h, w, f), size = table[:, 4], image_size(image)
        check_shape(size, h, w, f"{where}: {image.name} is {sides(size)}, the pose is for")
        camera = Camera(f * size[1] / w, f * size[0] / h, (size[1] - 1) / 2, (size[0] - 1) / 2)
        photos.append(Photo(i, image, pose, camera))
    return photos[::every]


def read_rows(folder: Path) -> np.ndarray:
    """poses_bounds.npy: (N, 17) float64. DataError for anything else."""
    path = folder / "poses_bounds.npy"
    try:
        rows = np.array(np.load(path, allow_pickle=False), np.float64)
    except (OSError, ValueError, TypeError, EOFError, MemoryError) as error:
        raise DataError(f"{path}: cannot be read as an array of numbers ({str(error)[:80].splitlines()[0]}); "
                        "export it again") from None
    if rows.ndim != 2 or rows.shape[1] != 17 or not len(rows):
        raise DataError(f"{path}: holds {rows.shape} numbers instead of N x 17; export it again")
    positive = (rows[:, [4, 9, 14, 15]] > 0).all() and (rows[:, 16] > rows[:, 15]).all()
    if not np.isfinite(rows).all() or not positive:
        raise DataError(f"{path}: holds NaN, inf, a size or focal length that is not positive, or bounds "
                        "without 0 < near < far; export it again")
    return rows


def list_images(folder: Path) -> list[Path]:
    """The images in name order: of images/, or of images_2, _4, _8, the first that has any."""
    for name in ("images", "images_2", "images_4", "images_8"):
        there = (folder / name).glob("[!.]*")
        images = sorted(p for p in there if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if images:
            return images
    return []
