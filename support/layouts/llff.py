"""LLFF's poses_bounds.npy: a row of [R | t | H W f] and near, far for each image in name order; axes down,
right, back. NeX writes rows without H, W, f and these in hwf_cxcy.npy."""
import io
from pathlib import Path

import numpy as np

from support.files import DataError, read_bytes, read_text, reason
from support.layouts import (
    Camera,
    Capture,
    Photo,
    Range,
    check_shape,
    checked_pose,
    image_size,
    images_in,
    inside,
    sides,
)
from support.lens import check_middle


def read(folder: Path) -> Capture:
    """poses_bounds.npy (N, 17) and the N images -> Capture."""
    path, rows = folder / "poses_bounds.npy", read_rows(folder)
    (images, notes), photos = list_images(folder, len(rows)), []
    for i, (image, row) in enumerate(zip(images, rows)):
        where, table = f"{path}, row {i}", row[:15].reshape(3, 5)
        inside(folder, str(image.relative_to(folder)), where)
        down, right, back, position = table[:, :4].T
        pose = checked_pose(np.stack([right, down, -back, position], axis=1), where)
        (h, w, f), size = table[:, 4], image_size(image)
        check_shape(size, h, w, f"{where}: {image.name} is {sides(size)}, the pose is for")
        camera = Camera(f * size[1] / w, f * size[0] / h, (size[1] - 1) / 2, (size[0] - 1) / 2)
        photos.append(Photo(i, image, pose, own_camera(folder, size) or camera))
    return Capture(photos, notes, bounds(rows))


def own_camera(folder: Path, size: tuple[int, int]) -> Camera | None:
    """The camera of hwf_cxcy.npy (H, W, fx, fy, cx, cy; the first corner at 0), if there is one."""
    path = folder / "hwf_cxcy.npy"
    if not path.is_file():
        return None
    numbers = load(path).ravel()
    if len(numbers) != 6 or not np.isfinite(numbers).all() or min(numbers) <= 0:
        raise DataError(f"{path}: not the six numbers H, W, fx, fy, cx, cy; export it again")
    h, w, fx, fy, cx, cy = numbers
    check_shape(size, h, w, f"{path}: the images are {sides(size)}, the numbers are for")
    x, y = size[1] / w, size[0] / h
    camera = Camera(x * fx, y * fy, x * cx - 0.5, y * cy - 0.5)
    check_middle(camera.matrix(), size, str(path))
    return camera


def bounds(rows: np.ndarray) -> Range:
    """Near and far from the rows' own."""
    return Range(0.9 * float(rows[:, 15].min()), float(rows[:, 16].max()), "from the bounds")


def load(path: Path) -> np.ndarray:
    """An array of numbers, float64. DataError for anything else."""
    content = read_bytes(path, 100_000_000)
    try:
        return np.array(np.load(io.BytesIO(content), allow_pickle=False), np.float64)
    except (OSError, ValueError, TypeError, EOFError, MemoryError, SyntaxError) as error:
        raise DataError(f"{path}: cannot be read as an array of numbers ({reason(error)}); export it "
                        "again") from None


def read_rows(folder: Path) -> np.ndarray:
    """poses_bounds.npy: (N, 17) float64. DataError for anything else."""
    path = folder / "poses_bounds.npy"
    rows = load(path)
    if rows.ndim == 2 and rows.shape[1] == 14 and (folder / "hwf_cxcy.npy").is_file():
        hwf = load(folder / "hwf_cxcy.npy").ravel()[:3]
        if len(hwf) == 3:
            hwf = np.tile(hwf[:, None], (len(rows), 1, 1))                    # (N, 3, 1)
            tables = np.concatenate([rows[:, :12].reshape(-1, 3, 4), hwf], axis=2)
            rows = np.concatenate([tables.reshape(-1, 15), rows[:, 12:]], axis=1)
    if rows.ndim != 2 or rows.shape[1] != 17 or not len(rows):
        raise DataError(f"{path}: holds {rows.shape} numbers instead of N x 17; export it again")
    positive = (rows[:, [4, 9, 14, 15]] > 0).all() and (rows[:, 16] > rows[:, 15]).all()
    if not np.isfinite(rows).all() or not positive:
        raise DataError(f"{path}: holds NaN, inf, a size or focal length that is not positive, or bounds "
                        "without 0 < near < far; export it again")
    return rows


def list_images(folder: Path, count: int) -> tuple[list[Path], list[str]]:
    """The images in name order: of images/, or of images_2, _4, _8, the first that has any. Where
    view_imgs.txt lists those that have a pose, these alone, and a line says so. DataError unless there are
    `count`."""
    images = next(filter(None, (images_in(folder / name) for name in
                                ("images", "images_2", "images_4", "images_8"))), [])
    listing = next((path for path in (folder / "view_imgs.txt", folder / "sparse" / "view_imgs.txt")
                    if path.is_file()), None)
    if len(images) != count and listing:
        names = [Path(name.strip()).name for name in read_text(listing, 10_000_000,
                                                               "").splitlines() if name.strip()]
        by_name = {path.name: path for path in images} | {path.stem: path for path in images}
        listed = [by_name[key] for key in (name if name in by_name else Path(name).stem for name in names)
                  if key in by_name]
        if len(listed) == len(names) == count:
            return listed, [f"{len(images) - count} images are not in {listing.name} (no pose): left out"]
    if len(images) != count:
        hint = f", {listing.name} lists others" if listing else \
            ", or view_imgs.txt must list those that have one"
        raise DataError(f"{folder}: {len(images)} images (in images/, or images_2, _4, _8) for {count} "
                        f"poses in "
                        f"poses_bounds.npy; there must be one each, in name order{hint}")
    return images, []
