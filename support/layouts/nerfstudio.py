"""Blender's, nerfstudio's and instant-ngp's transforms.json: OpenGL axes, pixel centres at half-integers.

Three programs read such files, each with keys of its own. A key that touches the camera is read, or refused
by its name. What is known to be harmless is passed over. Other keys are listed in a line.
"""
import re
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np

from support.files import DataError, open_file, read_json
from support.layouts import (
    MARGIN,
    Camera,
    Capture,
    Photo,
    Range,
    check_missing,
    check_shape,
    checked_pose,
    image_size,
    inside,
    sides,
)
from support.lens import check_middle

SPLITS = ["transforms_train.json", "transforms_val.json", "transforms_test.json"]
ENDINGS = ("", ".png", ".jpg", ".jpeg", ".PNG", ".JPG", ".JPEG")              # NeRF's scenes leave it out

PINHOLES = "OPENCV PINHOLE SIMPLE_PINHOLE SIMPLE_RADIAL RADIAL PERSPECTIVE".split()
FISHEYES = "OPENCV_FISHEYE SIMPLE_RADIAL_FISHEYE RADIAL_FISHEYE".split()
LENS = "k1 k2 k3 k4 p1 p2".split()                                            # distortion_params' order
FOCAL = {axis: (f"fl_{axis}", f"camera_angle_{axis}", f"{axis}_fov") for axis in "xy"}
CAMERA = {"w",
          "h", "cx", "cy", "camera_model", "is_fisheye", "distortion_params", *LENS, *FOCAL["x"], *FOCAL["y"]}
READ = CAMERA | set("frames file_path transform_matrix depth_file_path mask_path is_bad test_frames "
                    "train_filenames "
                    "val_filenames test_filenames ply_file_path depth_unit_scale_factor "
                    "integer_depth_scale".split())
# where the scene was put, how sharp a photograph is: nothing that moves a pixel
HARMLESS = set("aabb_scale scale offset up render_aabb applied_transform applied_scale orientation_override "
               "auto_scale_poses_override sharpness colmap_im_id rotation has_mask camera_id camera_label "
               "camera_name "
               "name id timestamp n_frames".split())
EMPTY = (None, False, 0, "", [], {})                                          # a key with it says nothing
# an unknown key that sounds like this touches the camera
TOUCHES = re.compile(
    r"fov|foc|lens|dist|camera|intrin|fisheye|shutter|latlong|equirect|panor|ortho|theta|skew|aspect|sensor|"
    r"shift|princip|calib|matrix|projecti|mitsuba|width|height|resol|crop|axes|axis|conven|coord|stereo|^size$|"
    r"^[kpbs]\d$|^c_?[xy]$|^f_?[xyl]?$|^[KP]$", re.I)


def read(folder: Path) -> Capture:
    """transforms.json, or transforms_train/val/test.json one after the other -> photos in the files'
    order."""
    files, notes = transforms_files(folder)
    photos, missing, strange, total, bad, elsewhere, maskless = [], [], set(), 0, 0, 0, 0
    for file in files:
        meta = read_transforms(file)
        reader = Reader(file, {key: value for key, value in meta.items() if key not in ("frames",
                                                                                        "test_frames")})
        strange |= reader.check_keys(reader.shared, str(file))
        lists = reader.lists()
        for index, (frame, split) in enumerate(frames_of(meta, file)):
            where, total = f"{file}, frame {index}", total + 1
            strange |= reader.check_keys(frame, where)
            if frame.get("is_bad") is True:
                bad += 1
                continue
            image = reader.image(frame.get("file_path"), where)
            if image.is_file():
                split = lists.get(image, "none") if lists else split
                photos.append(reader.photo(len(photos), frame, image, split, where))
            else:
                missing.append(image)
        elsewhere, maskless = elsewhere + reader.elsewhere, maskless + reader.maskless
    notes += check_missing(missing, total - bad, str(folder))
    unlisted = sum(photo.split == "none" for photo in photos)
    for count, words in ((bad, "frames have is_bad: left out"),
                         (unlisted, "frames are in none of train_, val_ and test_filenames: left out"),
                         (maskless, "masks are named (mask_path) and not there: nothing is masked in these"),
                         (elsewhere, "file names start in another folder: looked for in this one")):
        notes += [f"{count} {words}"] * bool(count)
    notes += [f"keys not used: {', '.join(sorted(strange)[:12])}"] * bool(strange)
    photos = [photo for photo in photos if photo.split != "none"]
    return Capture(photos, notes, points_range(folder, photos) if photos else None)


def transforms_files(folder: Path) -> tuple[list[Path], list[str]]:
    """Which of a folder's transforms files are read, in order, and a line on those that are not."""
    every = sorted(folder.glob("transforms*.json"))
    split = [folder / name for name in SPLITS if (folder / name).is_file()]
    whole = [path for path in every if path.name in ("transforms.json", "transforms_all.json")]
    undistorted = [path for path in every if path.name == "transforms_undistorted.json"
                   and image_root(path) != folder]
    if undistorted:                           # ScanNet++ has the same photographs with their lens, too
        files = undistorted
    elif split:
        files = split + whole                 # a photograph in both keeps its split
    else:
        files = whole[-1:] if folder / "transforms.json" in whole else whole or every
    left = [path.name for path in every if path not in files]
    return files, [f"not read: {', '.join(left)}"] * bool(left)


def image_root(file: Path) -> Path:
    """The folder that file names are relative to: the file's own, or beside it in ScanNet++."""
    if file.parent.name == "nerfstudio":
        names = {"transforms_undistorted.json": "resized_undistorted_images"}
        root = file.parent.with_name(names.get(file.name, "resized_images"))
        return root if root.is_dir() else file.parent
    return file.parent


def frames_of(meta: dict, file: Path) -> list[tuple[dict, str]]:
    """Every frame of a file and the split it is in, by the file's name or its list test_frames."""
    split = file.stem.removeprefix("transforms").removeprefix("_")
    split = split if file.name in SPLITS else ""
    test = meta.get("test_frames") or []
    if not isinstance(test, list) or not all(isinstance(frame, dict) for frame in test):
        raise DataError(f"{file}: 'test_frames' is not a list of frames; export it again")
    return [(frame, split or "train" * bool(test)) for frame in meta["frames"]] + [(f, "test") for f in test]


class Reader:
    """One transforms file: its frames -> Photos."""

    def __init__(self, file: Path, shared: dict):
        self.file, self.shared, self.root = file, shared, image_root(file)
        self.factor = 1                       # the numbers' size over the images'
        self.elsewhere = 0                    # file names that start in another folder
        self.maskless = 0                     # masks that are named and not there

    def check_keys(self, keys: dict, where: str) -> set[str]:
        """The unknown keys that are harmless. DataError for one that touches the camera."""
        unknown = {key for key, value in keys.items() if key not in READ | HARMLESS and value not in EMPTY}
        for key in sorted(unknown):
            if TOUCHES.search(key):
                raise DataError(f"{where}: '{key}' ({str(keys[key])[:40]}) touches the camera and is not "
                                f"read "
                                "here; turn it into fl_x, fl_y, cx, cy, k1 ... p2, or undistort the images, "
                                "and "
                                "remove it")
        return unknown

    def lists(self) -> dict[Path, str]:
        """train_filenames, val_filenames, test_filenames -> {image: split}. What is in two is in the first:
        no photograph that is trained on is a test view."""
        lists = {}
        for split in ("test", "val", "train"):
            names = self.shared.get(f"{split}_filenames") or []
            if not isinstance(names, list):
                raise DataError(f"{self.file}: '{split}_filenames' is not a list of file names; correct it")
            lists |= {self.image(name, f"{self.file}, {split}_filenames"): split for name in names}
        return lists

    def image(self, name, where: str) -> Path:
        """The image of a frame; of images_2, _4, _8 where images/ is not there."""
        path = inside(self.root, name, where, ENDINGS)
        if not path.is_file() and path.parent.name == "images" and not path.parent.is_dir():
            for factor in (2, 4, 8):
                smaller = path.parent.with_name(f"images_{factor}") / path.name
                if smaller.is_file():
                    self.factor = factor
                    return inside(self.root, smaller.relative_to(self.root).as_posix(), where)
        listed = PurePosixPath(name.replace("\\", "/")).parent
        self.elsewhere += path.parent != self.root / listed
        return path

    def photo(self, number: int, frame: dict, image: Path, split: str, where: str) -> Photo:
        """One frame. DataError that names what is wrong with it."""
        pose = checked_pose(frame.get("transform_matrix"), where)
        pose[:3, 1:3] *= -1                                                   # up, back -> down, forward
        camera = read_camera(self.shared, frame, image_size(image), where, self.factor)
        depth, named = None, frame.get("depth_file_path")
        if named:
            depth = inside(self.root, named, where)
            if depth.suffix.lower() != ".png":
                depth = None
        mask, inverted = self.mask(frame, image, where)
        return Photo(number, image, pose, camera, split, depth, None, self.depth_scale(frame, where), mask,
                     inverted)

    def depth_scale(self, frame: dict, where: str) -> float:
        """The scene's units a count of the depth maps: nerfstudio's 1/1000, or what the file says."""
        keys = {**self.shared, **frame}
        scales = {number(keys, key, None, where, True) for key in ("depth_unit_scale_factor",
                                                                   "integer_depth_scale")
                  if key in keys}
        if len(scales) > 1:
            raise DataError(f"{where}: 'depth_unit_scale_factor' and 'integer_depth_scale' differ; remove "
                            f"the "
                            "wrong one")
        return scales.pop() if scales else 0.001

    def mask(self, frame: dict, image: Path, where: str) -> tuple[Path | None, bool]:
        """The mask of a frame, and whether it marks what moves (instant-ngp) instead of what stays."""
        if frame.get("mask_path"):
            path = inside(self.root, frame["mask_path"], where)
            if path.is_file():
                return path, False
            beside = self.root.with_name(self.root.name.replace("images", "masks"))
            path = beside / Path(frame["mask_path"]).name                     # ScanNet++
            if path.is_file() and self.root != self.file.parent:
                return inside(beside, path.name, where), False
            self.maskless += 1
        dynamic = image.with_name(f"dynamic_mask_{image.stem}.png")
        if dynamic.is_file():
            return inside(self.root, dynamic.relative_to(self.root).as_posix(), where), True
        return mask_beside(self.root, image), False


def mask_beside(root: Path, image: Path) -> Path | None:
    """The mask of an image in masks/ (COLMAP's name.jpg.png or nerfstudio's name.png), if there is one."""
    name = image.relative_to(root)
    name = Path(*name.parts[1:]) if len(name.parts) > 1 else name
    for path in (root / "masks" / f"{name}.png", (root / "masks" / name).with_suffix(".png")):
        if path.is_file():
            return inside(root, path.relative_to(root).as_posix(), str(root))
    return None


def read_transforms(path: Path) -> dict:
    """A transforms file. DataError unless it is an object with a list of frames."""
    meta = read_json(path)
    frames = meta.get("frames") if isinstance(meta, dict) else None
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise DataError(f"{path}: has no list of frames; is it a Blender or nerfstudio transforms file?")
    return meta


# ------------------------------------------------------------------------------------------------- the camera

def number(meta: dict, key: str, default: float | None, where: str, positive: bool = False) -> float:
    """meta[key] as a finite float; default where it is absent. DataError for anything else."""
    value = meta.get(key, default)
    real = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9
    if not real or (positive and value <= 0):
        raise DataError(f"{where}: '{key}' is {value!r}, not a {'positive ' * positive}number; correct it or "
                        "export again")
    return float(value)


def read_camera(shared: dict, frame: dict, size: tuple[int, int], where: str, factor: int = 1) -> Camera:
    """Intrinsics of one frame (its own keys over the file's) -> Camera at the image's real size (H, W)."""
    both = {**shared, **frame}
    h, w = (number(both, key, side * factor, where, True) for key, side in zip(("h", "w"), size))
    check_shape(size, h, w, f"{where}: the image is {sides(size)}, the file says")
    fx, fy = (focal_length(shared, frame, axis, side, where) for axis, side in zip("xy", (w, h)))
    if not (fx or fy):
        raise DataError(f"{where}: has no focal length (fl_x, camera_angle_x or x_fov); export it again")
    fx, fy = fx or fy, fy or fx
    cx, cy = number(both, "cx", w / 2, where), number(both, "cy", h / 2, where)
    lens, fisheye = read_lens(shared, frame, where), is_fisheye(both, where)
    if fisheye and (lens["p1"] or lens["p2"]):
        raise DataError(f"{where}: a fisheye with 'p1' or 'p2', which OpenCV's has not; correct it")
    # to the size the image has, while the first corner is 0; then the first centre is
    x, y = size[1] / w, size[0] / h
    camera = Camera(x * fx, y * fy, x * cx - 0.5, y * cy - 0.5, **lens, fisheye=fisheye)
    check_middle(camera.matrix(), size, where)
    return camera


def focal_length(shared: dict, frame: dict, axis: str, side: float, where: str) -> float | None:
    """Pixels along x or y: fl_x, or by an angle, camera_angle_x in radians or x_fov in degrees; the frame's
    own before the file's. None where there is none; DataError where two of them disagree by more than 1%."""
    for level in (frame, shared):
        found = {}
        for key in (key for key in FOCAL[axis] if key in level):
            value = number(level, key, None, where, True)
            angle = np.radians(value) if key.endswith("_fov") else value
            if not key.startswith("fl_") and angle >= np.pi:
                raise DataError(f"{where}: '{key}' is {value:g}; "
                                + ("degrees below 180" if key.endswith("_fov") else "radians below pi")
                                + " are meant")
            found[key] = value if key.startswith("fl_") else 0.5 * side / np.tan(0.5 * angle)
        if found and max(found.values()) > 1.01 * min(found.values()):
            numbers = ", ".join(f"{key} = {x:.1f} pixels" for key, x in found.items())
            raise DataError(f"{where}: two focal lengths ({numbers}); remove the wrong one")
        if found:
            return next(iter(found.values()))
    return None


def read_lens(shared: dict, frame: dict, where: str) -> dict[str, float]:
    """k1 .. k4, p1, p2 of the frame if it has any, else of the file. distortion_params has them in one
    list."""
    for level in (frame, shared):
        values = level.get("distortion_params")
        if values is not None:
            if not isinstance(values, list) or len(values) not in (4, 6):
                raise DataError(f"{where}: 'distortion_params' is {str(values)[:60]}, not k1, k2, k3, k4, "
                                f"p1, p2; "
                                "correct it")
            named = dict(zip(LENS, values))
            return {key: number(named, key, 0, where) for key in LENS}
        if any(key in level for key in LENS):
            return {key: number(level, key, 0, where) for key in LENS}
    return dict.fromkeys(LENS, 0.0)


def is_fisheye(meta: dict, where: str) -> bool:
    """Is the lens a fisheye's? DataError for a camera that is neither that nor perspective."""
    model, flag = meta.get("camera_model", "OPENCV"), meta.get("is_fisheye", False)
    if model not in PINHOLES + FISHEYES or not (isinstance(flag, bool) or flag in (0, 1)):
        raise DataError(f"{where}: camera_model {str(model)[:40]} (is_fisheye {str(flag)[:10]}) is no "
                        f"perspective "
                        "or fisheye camera; undistort the images first (COLMAP: colmap image_undistorter)")
    return bool(flag) or model in FISHEYES


# ------------------------------------------------------------------------------------------------- the points

def read_points(folder: Path) -> tuple[str, np.ndarray] | None:
    """The sparse points that nerfstudio leaves beside a capture (ply_file_path, as text): the file's name and
    at most 5,000 of them (P, 3). None if there are none."""
    path = folder / "transforms.json"
    name = read_transforms(path).get("ply_file_path") if path.is_file() else None
    path = inside(folder, name, str(path)) if name else None
    if not path or not path.is_file():
        return None
    with open_file(path, 2 ** 28) as file:
        head = [file.readline(200).strip() for _ in range(40)]
        if b"format ascii 1.0" not in head or b"end_header" not in head:
            return None
        file.seek(0)
        while file.readline(200).strip() != b"end_header":
            pass
        try:
            lines = islice(iter(partial(file.readline, 1000), b""), 500_000)
            points = np.array([[float(x) for x in line.split()[:3]] for line in lines]).reshape(-1, 3)
        except ValueError:
            raise DataError(f"{path}: its points are not numbers; export it again, or remove "
                            "'ply_file_path'") from None
    return path.name, points[::1 + len(points) // 5000]


def points_range(folder: Path, photos: list[Photo]) -> Range | None:
    """Near and far from the sparse points: the 2nd and 98th percentile of their depths in the images, with
    MARGIN. None if there are none."""
    named = read_points(folder)
    if named is None:
        return None
    (name, points), depths = named, []
    h, w = image_size(photos[0].image)
    for photo in photos:
        local = (points - photo.c2w[:3, 3]) @ photo.c2w[:3, :3]               # (P, 3)
        local = local[local[:, 2] > 0]
        u, v = (local[:, :2] / local[:, 2:]).T
        u, v = u * photo.camera.fx + photo.camera.cx, v * photo.camera.fy + photo.camera.cy
        depths.append(local[(u >= 0) & (v >= 0) & (u < w) & (v < h), 2])
    return range_of(np.concatenate(depths), f"from the points of {name}")


def range_of(z: np.ndarray, why: str) -> Range | None:
    """The 2nd and 98th percentile of depths, with MARGIN. None where they are too few."""
    low, high = np.percentile(z, (2, 98)) if len(z) > 100 else (0, 0)
    return Range(MARGIN[0] * float(low), MARGIN[1] * float(high), why) if 0 < low < high < np.inf else None
