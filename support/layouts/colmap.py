"""COLMAP's sparse model: images/ and sparse/0/{cameras,images,points3D}.bin or .txt.

COLMAP's poses are world to camera, as a quaternion (w, x, y, z) and a translation; the axes are ours. Its
binary files, little endian: uint64 count, then

    camera    uint32 id, int32 model, uint64 width, height, float64 parameters
    image     uint32 id, float64 quaternion and translation, uint32 camera, the name and a zero byte,
              uint64 count, and for each of its points float64 x, y, int64 point (-1: none)
    point     uint64 id, float64 x, y, z, 3 bytes colour, float64 error, uint64 count, 2 uint32 for each

As text they have a line for a camera and a point, two for an image, and # before remarks.
"""
import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from support.files import DataError, open_file, read_text
from support.layouts import (
    Camera,
    Capture,
    Photo,
    Range,
    check_missing,
    check_shape,
    checked_pose,
    image_size,
    images_in,
    inside,
    llff,
    sides,
)
from support.layouts.nerfstudio import mask_beside, range_of
from support.lens import check_middle

# number in the binary file, name, its parameters in order. f is fx and fy, k is k1
MODELS = {
    0: ("SIMPLE_PINHOLE", "f cx cy"), 1: ("PINHOLE", "fx fy cx cy"), 2: ("SIMPLE_RADIAL", "f cx cy k1"),
    3: ("RADIAL", "f cx cy k1 k2"), 4: ("OPENCV", "fx fy cx cy k1 k2 p1 p2"),
    5: ("OPENCV_FISHEYE", "fx fy cx cy k1 k2 k3 k4"), 8: ("SIMPLE_RADIAL_FISHEYE", "f cx cy k1"),
    9: ("RADIAL_FISHEYE", "f cx cy k1 k2")}
REFUSED = {6: "FULL_OPENCV", 7: "FOV", 10: "THIN_PRISM_FISHEYE", 11: "RAD_TAN_THIN_PRISM_FISHEYE"}
# where a model lies, and the images it speaks of: the first folder that has any
PHOTOGRAPHS = ("images", "images_2", "images_4", "images_8", "input", "image", "rgb", ".")
PLACES = {"sparse/0": PHOTOGRAPHS, "sparse": PHOTOGRAPHS, "colmap/sparse/0": PHOTOGRAPHS,
          "dense/sparse": ("dense/images",), "distorted/sparse/0": ("input",)}
END = "; copy it again, or export the model again (colmap model_converter)"


class Shot(NamedTuple):
    """An image of a model: c2w (4, 4), its camera's id, its file's name, the ids of the points it sees."""
    c2w: np.ndarray
    camera: int
    name: str
    points: np.ndarray


def has_model(folder: Path) -> bool:
    """Do these files lie in it?"""
    return any((folder / f"cameras.{end}").is_file() for end in ("bin", "txt"))


def model_folder(folder: Path) -> tuple[Path, tuple] | None:
    """The folder of a capture's model, and where its images may lie. Of sparse/0, sparse/1 ... the model with
    the most images."""
    place = next((place for place in PLACES if has_model(folder / place)), None)
    if place is None:
        return None
    models = [folder / place]
    if place == "sparse/0":
        models += sorted(p for p in folder.glob("sparse/[1-9]*") if has_model(p))
    sizes = [max((p.stat().st_size for p in model.glob("images.*")), default=0) for model in models]
    return models[sizes.index(max(sizes))], PLACES[place]


def read(folder: Path) -> Capture:
    """A capture with COLMAP's model -> Capture, in the order of the images' names."""
    found = model_folder(folder)
    if found is None:
        raise DataError(f"{folder}: no sparse/0/cameras.bin or .txt; run colmap mapper")
    model, roots = found
    end = "bin" if (model / "cameras.bin").is_file() else "txt"
    cameras, shots = read_cameras(model / f"cameras.{end}"), read_images(model / f"images.{end}")
    if not shots:
        raise DataError(f"{model}: not one image is registered; run colmap mapper again")
    root = next((folder / name for name in roots if (folder / name / shots[0].name).is_file()
                 or images_in(folder / name)), folder / "images")
    photos, missing = [], []
    for number, shot in enumerate(sorted(shots, key=lambda shot: shot.name)):
        where = f"{model}, image {shot.name[:100]}"
        image = inside(root, shot.name, where)
        if not image.is_file():
            missing.append(image)
            continue
        if shot.camera not in cameras:
            raise DataError(f"{where}: has camera {shot.camera}, which cameras.{end} has not{END}")
        camera = at_size(*cameras[shot.camera], image, where)
        photos.append(Photo(number, image, checked_pose(shot.c2w, where), camera,
                            mask=mask_of(folder, root, image)))
    notes = check_missing(missing, len(shots), str(model))
    others = {path.name for path in images_in(root)} - {Path(shot.name).name for shot in shots}
    others = {name for name in others if not name.startswith("dynamic_mask_")}
    notes += [f"{len(others)} images are not in the model (unregistered): left out"] * bool(others)
    several = [p for p in folder.glob("sparse/*/cameras.*") if p.parent != model]
    notes += [f"{model.relative_to(folder)} of several models: the one with the most images"] * bool(several)
    depths = points_range(model / f"points3D.{end}", shots)
    if depths is None and (folder / "poses_bounds.npy").is_file():            # LLFF's: the same world
        depths = llff.bounds(llff.read_rows(folder))
    return Capture(photos, notes, depths)


def mask_of(folder: Path, root: Path, image: Path) -> Path | None:
    """The mask of an image, in masks/ beside images/: COLMAP's name.jpg.png, or name.png."""
    name = image.relative_to(root)
    return mask_beside(folder, folder / "images" / name)


def at_size(camera: Camera, width: int, height: int, image: Path, where: str) -> Camera:
    """A camera of a model, at the size that the image has."""
    size = image_size(image)
    check_shape(size, height, width, f"{where}: {image.name} is {sides(size)}, its camera is for")
    x, y = size[1] / width, size[0] / height
    camera = camera._replace(fx=x * camera.fx, fy=y * camera.fy,
                             cx=x * camera.cx - 0.5, cy=y * camera.cy - 0.5)
    check_middle(camera.matrix(), size, where)
    return camera


# -------------------------------------------------------------------------------------------------- the files

def lines_of(path: Path) -> list[str]:
    """The lines of a text file that are no remarks. The second line of an image may be empty."""
    return [line for line in read_text(path, 2 ** 28).splitlines() if not line.startswith("#")]


def unpack(file: BinaryIO, form: str) -> tuple:
    """The next numbers of a binary file. DataError where it ends too early."""
    size = struct.calcsize("<" + form)
    raw = file.read(size)
    if len(raw) < size:
        raise DataError(f"{file.name}: ends too early{END}")
    return struct.unpack("<" + form, raw)


def take(file: BinaryIO, count: int, size: int) -> bytes:
    """count items of `size` bytes. DataError where the file cannot hold them."""
    left = Path(file.name).stat().st_size - file.tell()
    if count * size > left:
        raise DataError(f"{file.name}: ends too early{END}")
    return file.read(count * size)


def read_cameras(path: Path) -> dict[int, tuple[Camera, int, int]]:
    """cameras.bin or .txt -> {id: (camera with the first corner at 0, width, height)}."""
    rows, numbers = [], {name: number for number, (name, _) in MODELS.items()}
    try:
        if path.suffix == ".txt":
            for words in filter(None, map(str.split, lines_of(path))):
                rows.append((int(words[0]), numbers.get(words[1], words[1]), int(words[2]), int(words[3]),
                             [float(x) for x in words[4:]]))
        else:
            with open_file(path, 2 ** 30) as file:
                for _ in range(unpack(file, "Q")[0]):
                    name, model, width, height = unpack(file, "IiQQ")
                    count = len(MODELS[model][1].split()) if model in MODELS else 0
                    rows.append((name, model, width, height, list(unpack(file, f"{count}d"))))
                    if not count:
                        break
    except (ValueError, IndexError, OSError) as error:
        raise DataError(f"{path}: not COLMAP's cameras ({str(error)[:80]}){END}") from None
    for _, _, width, height, _ in rows:
        if not (0 < width < 1e6 and 0 < height < 1e6):
            raise DataError(f"{path}: a camera of {width}x{height} pixels{END}")
    return {name: (made_camera(model, values, path), width, height)
            for name, model, width, height, values in rows}


def made_camera(model: int | str, values: list[float], path: Path) -> Camera:
    """COLMAP's parameters -> Camera. DataError for a model that is not known, by its name."""
    if model not in MODELS:
        name = REFUSED.get(model, model)
        raise DataError(f"{path}: camera model {name} is not read here; undistort the images first (colmap "
                        "image_undistorter), and import its output")
    name, parameters = MODELS[model]
    named = dict(zip(parameters.split(), values))
    if len(values) != len(parameters.split()) or not np.isfinite(values).all() or min(
            named.get(key, 1) for key in ("f", "fx", "fy")) <= 0:
        raise DataError(f"{path}: {values} are no parameters ({parameters}) of {name}{END}")
    if "f" in named:
        named["fx"] = named["fy"] = named.pop("f")
    return Camera(**named, fisheye="FISHEYE" in name)


def read_images(path: Path) -> list[Shot]:
    """images.bin or .txt -> the registered images."""
    try:
        return text_images(path) if path.suffix == ".txt" else binary_images(path)
    except (ValueError, IndexError, OSError, OverflowError) as error:
        raise DataError(f"{path}: not COLMAP's images ({str(error)[:80]}){END}") from None


def text_images(path: Path) -> list[Shot]:
    """Two lines an image."""
    lines, shots = lines_of(path), []
    while lines and not lines[-1].strip():
        lines.pop()
    for first, second in zip(lines[::2], [*lines[1::2], ""]):
        words = first.split(maxsplit=9)
        pose = world_to_camera([float(x) for x in words[1:8]], path)
        ids = np.array([int(x) for x in second.split()[2::3]], np.int64)
        shots.append(Shot(pose, int(words[8]), words[9].strip(), ids))
    return shots


def binary_images(path: Path) -> list[Shot]:
    """The records of images.bin."""
    shots = []
    with open_file(path, 2 ** 30) as file:
        for _ in range(unpack(file, "Q")[0]):
            _, *numbers, camera = unpack(file, "I7dI")
            name = bytearray()
            while (byte := unpack(file, "c")[0]) != b"\0":
                name += byte
                if len(name) > 2000:
                    raise ValueError("a name without an end")
            count = unpack(file, "Q")[0]
            points = np.frombuffer(take(file, count, 24), np.dtype([("xy", "<f8", 2), ("id", "<i8")]))
            shots.append(Shot(world_to_camera(numbers, path), camera, name.decode("utf-8", "surrogateescape"),
                              points["id"]))
    return shots


def world_to_camera(numbers: list[float], path: Path) -> np.ndarray:
    """qw, qx, qy, qz, tx, ty, tz -> c2w (4, 4)."""
    q, t = np.array(numbers[:4]), np.array(numbers[4:])
    length = np.linalg.norm(q)
    if not np.isfinite(numbers).all() or abs(length - 1) > 0.01:
        raise DataError(f"{path}: a quaternion that is not of length 1, or numbers that are not finite{END}")
    w, x, y, z = q / length
    R = np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                  [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                  [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]])
    c2w = np.eye(4)
    c2w[:3, :3], c2w[:3, 3] = R.T, -R.T @ t
    return c2w


def read_points(path: Path) -> dict[int, np.ndarray]:
    """points3D.bin or .txt -> {id: (x, y, z)}; nothing where there is no such file."""
    points = {}
    try:
        if path.suffix == ".txt" and path.is_file():
            for words in filter(None, map(str.split, lines_of(path))):
                points[int(words[0])] = np.array([float(x) for x in words[1:4]])
        elif path.is_file():
            with open_file(path, 2 ** 30) as file:
                for _ in range(unpack(file, "Q")[0]):
                    name, x, y, z, *_, count = unpack(file, "Q3d3BdQ")
                    points[name] = np.array([x, y, z])
                    take(file, count, 8)
    except (ValueError, IndexError, OSError) as error:
        raise DataError(f"{path}: not COLMAP's points ({str(error)[:80]}){END}") from None
    return points


def points_range(path: Path, shots: list[Shot]) -> Range | None:
    """Near and far from the depths that the points have in the images that see them."""
    points, depths = read_points(path), []
    for shot in shots:
        seen = [points[i] for i in shot.points.tolist() if i in points]
        if seen:
            depths.append((np.array(seen) - shot.c2w[:3, 3]) @ shot.c2w[:3, 2])
    z = np.concatenate(depths) if depths else np.zeros(0)
    return range_of(z[np.isfinite(z) & (z > 0)], f"from COLMAP's {len(points):,} points")
