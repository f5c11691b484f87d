"""Cameras, rays, and the one reader: scenes in the ScanNet export layout, decoded once and kept at training resolution.

A scene is a folder of posed photographs:

    <root>/<scene>/color/<i>.jpg  pose/<i>.txt  intrinsic/intrinsic_color.txt  [depth/<i>.png  label-filt/<i>.png]
    <root>/scannetv2-labels.combined.tsv        raw label id -> nyu40 id, needed where there are labels
    <root>/classes.csv                          instead of it, another label set: id,name,colour (read_classes)
    <scene>/near_far.txt                        optional: how near and how far the scene is, where it is not a room in metres

(12_import.py turns other layouts into this one.)
and a training example is one target view of it and V source views around it. Depth is read for evaluation and pictures only:
no depth sensor is an input of S-Ray.

Conventions (everywhere in this project): poses are c2w, camera to world, OpenCV axes (x right, y down, z forward), metres;
depth is along z; pixel centres are integers, the first one 0. Resizing an image by f per axis therefore maps a centre c to
(c + 1/2) f - 1/2. Labels are indices 0..19 into CLASSES, IGNORE (-1) where unlabelled; unlabelled is not a class.

Dimension key: R rays, V source views, N frames, H, W image size.
Run: python 01_data.py     Test: pytest tests/test_01_data.py
"""
import csv
import hashlib
import io
import os
import re
import shlex
import sys
import tempfile
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Callable, NamedTuple

import imageio.v3 as iio
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

rooms = import_module("00_rooms")            # SCANNET20 (id, name, colour); make_rooms, when there is no data at all

MAX_PIXELS = 2 ** 25                          # 8192x4096: an image that claims to be larger is refused before it is decoded

NYU40_IDS = [nyu40 for nyu40, _, _ in rooms.SCANNET20]
CLASSES = [name for _, name, _ in rooms.SCANNET20]            # L = 20
PALETTE = np.array([colour for _, _, colour in rooms.SCANNET20], np.uint8)
IGNORE = -1
LABELS_TSV = "scannetv2-labels.combined.tsv"


class Classes(NamedTuple):
    """A label set: names and colours [red, green, blue] of L classes. A model remembers its own."""
    names: list[str]
    colours: list[list[int]]


SCANNET = Classes(CLASSES, PALETTE.tolist())
CLASSES_CSV = "classes.csv"                  # beside the scenes, where their labels are not ScanNet's


class DataError(Exception):
    """Bad input. The message is one line: which file, what is wrong, what to do. Scripts print it and exit with status 2."""


class FrameError(DataError):
    """One frame cannot be read. A scene skips few of them (Scene.skip)."""


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main(); bad input, or a folder that cannot be read or written, ends it with one clear line and status 2."""
    try:
        main()
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:                  # a full disk, a folder without permission; files are written whole or not at all
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}; make room, or name another folder (--out, --cache, "
              "--data), and type the command again", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted; type the command again to go on", file=sys.stderr)
        raise SystemExit(130) from None


# ---------------------------------------------------------------------------------------------------- cameras and rays

def scale_intrinsics(K: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """K (..., 3, 3) of an image of size old (H, W) -> K of the same image resized to new (H, W), each axis by its own factor.

    A pixel centre c moves to (c + 1/2) f - 1/2, so the focal length scales by f and the principal point like a centre.
    """
    K = K.clone()
    for axis, f in ((0, new[1] / old[1]), (1, new[0] / old[0])):
        K[..., axis, :2] *= f
        K[..., axis, 2] = (K[..., axis, 2] + 0.5) * f - 0.5
    return K


def pixel_grid(height: int, width: int) -> Tensor:
    """All pixel centres (u, v), row by row: (H*W, 2) float32."""
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([u, v], dim=-1).view(-1, 2).float()


def rays(pixels: Tensor, K: Tensor, c2w: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels (R, 2) of one camera -> origin (3,) and directions (R, 3), scaled so that origin + z * direction has depth z."""
    u = torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=-1)            # (R, 3) homogeneous
    directions = u @ (c2w[:3, :3] @ torch.linalg.inv(K)).T                    # (R, 3); unit length along z, not unit length
    return c2w[:3, 3], directions


def unproject(pixels: Tensor, depth: Tensor, K: Tensor, c2w: Tensor) -> Tensor:
    """Pixels (R, 2) at depth (R,) metres along z -> world points (R, 3)."""
    origin, directions = rays(pixels, K, c2w)
    return origin + depth[:, None] * directions


def project(points: Tensor, K: Tensor, c2w: Tensor) -> tuple[Tensor, Tensor]:
    """World points (..., 3) into V cameras, K (V, 3, 3), c2w (V, 4, 4) -> pixels (..., V, 2), depth along z (..., V).

    All views in one matrix product: a camera is K [R^T | -R^T t], 3x4, and V of them stack to 3V x 4. Behind the camera
    (z <= 0) the pixel is meaningless but finite; callers mask by z.
    """
    V = K.shape[0]
    R, t = c2w[:, :3, :3], c2w[:, :3, 3]
    KR = K @ R.transpose(1, 2)                                                # (V, 3, 3)
    shift = -(KR @ t[:, :, None])[:, :, 0]                                    # (V, 3)
    uvz = (points.reshape(-1, 3) @ KR.reshape(V * 3, 3).T + shift.view(-1)).view(*points.shape[:-1], V, 3)
    z = uvz[..., 2]                                                           # (..., V)
    safe = torch.where(z.abs() < 1e-6, torch.full_like(z, 1e-6), z)
    return uvz[..., :2] / safe[..., None], z


# ---------------------------------------------------------------------------------------------------- reading one frame

def read_image(path: Path) -> np.ndarray:
    """Decode a jpg or png as it is on disk. FrameError if missing, damaged, of another kind, or larger than MAX_PIXELS."""
    if not path.is_file():                    # nor is a pipe or a device one, which might never end
        raise FrameError(f"{path}: no such file; export the frame again or remove its pose")
    try:
        with open(path, "rb") as file:
            if not file.read(4).startswith((b"\xff\xd8\xff", b"\x89PNG")):
                raise ValueError("neither jpg nor png")
        with iio.imopen(path, "r", plugin="pillow") as file:
            height, width = file.properties(index=0).shape[:2]                # from the header alone
            if height * width > MAX_PIXELS:
                raise ValueError(f"claims to be {width}x{height}, more than {MAX_PIXELS:,} pixels")
            return file.read(index=0)
    except Exception as error:                # Pillow raises OSError, SyntaxError, ValueError ... for damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FrameError(f"{path}: cannot be decoded ({reason}); copy or export it again") from None


def read_text(path: Path, limit: int, missing: str) -> str:
    """A text file of at most `limit` bytes. DataError otherwise; `missing` says what to do where there is none."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; {missing}")
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise ValueError(f"longer than {limit:,} bytes")
        return content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); copy or export it again") from None


def read_matrix(path: Path) -> np.ndarray:
    """A 4x4 matrix of numbers in text, as poses and intrinsics are written: (4, 4) float64, -inf and nan kept."""
    text = read_text(path, 10_000, "a ScanNet export has one")
    try:
        matrix = np.array([[float(x) for x in line.split()] for line in text.split("\n") if line.strip()])
    except ValueError:
        raise DataError(f"{path}: not a 4x4 matrix of numbers; export it again") from None
    if matrix.shape != (4, 4):
        raise DataError(f"{path}: holds {matrix.shape} numbers instead of 4x4; export it again")
    return matrix


def read_pose(path: Path) -> np.ndarray | None:
    """A camera-to-world pose (4, 4) float64; None where tracking was lost, which ScanNet writes as -inf. DataError unless it is a
    rotation and a place, nothing else: no NaN, no scale, no mirror, last row 0 0 0 1."""
    pose = read_matrix(path)
    if np.isneginf(pose[:3]).all():
        return None
    R = pose[:3, :3]
    if not (np.isfinite(pose).all() and np.abs(pose).max() < 1e5 and np.abs(R.T @ R - np.eye(3)).max() < 1e-2
            and np.linalg.det(R) > 0 and np.abs(pose[3] - [0, 0, 0, 1]).max() < 1e-4):
        raise DataError(f"{path}: not a camera's pose (finite, a rotation without scale or mirror, metres, last row 0 0 0 1); "
                        "export it again")
    return pose


def read_intrinsics(path: Path) -> Tensor:
    """intrinsic_{color,depth}.txt -> K (3, 3) float32. DataError unless focal lengths are positive and all is finite."""
    K = read_matrix(path)[:3, :3]
    if not (np.isfinite(K).all() and (1e-2 < K.diagonal()).all() and np.abs(K).max() < 1e6 and K[1, 0] == 0
            and np.allclose(K[2], [0, 0, 1])):
        raise DataError(f"{path}: not a pinhole camera (finite, positive focal lengths in pixels, last row 0 0 1); export it again")
    return torch.tensor(K, dtype=torch.float32)


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Colour image (h, w, 3) uint8 -> (height, width, 3) uint8, antialiased bilinear, half-pixel centres."""
    if image.shape[:2] == (height, width):
        return image
    x = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    x = F.interpolate(x, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
    return x[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()


def nearest_pixels(new: int, old: int) -> np.ndarray:
    """For each of `new` pixels, the pixel of `old` whose cell holds its centre: floor((c + 1/2) old / new)."""
    return ((np.arange(new) + 0.5) * old / new).astype(np.int64)


def read_label_table(path: Path) -> np.ndarray:
    """scannetv2-labels.combined.tsv -> table (max raw id + 1,) int8: raw id -> index into CLASSES, IGNORE elsewhere."""
    text = read_text(path, 10_000_000, "the scenes have labels, which need it; ScanNet's download script brings it")
    try:
        rows = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t")
        pairs = [(int(row["id"]), int(row["nyu40id"])) for row in rows if row["nyu40id"]]
        if not all(0 <= raw < 2 ** 16 for raw, _ in pairs):
            raise ValueError("an id that no label image can hold")
        table = np.full(max(raw for raw, _ in pairs) + 1, IGNORE, np.int8)
        for raw, nyu40 in pairs:
            if nyu40 in NYU40_IDS:
                table[raw] = NYU40_IDS.index(nyu40)
    except (KeyError, TypeError, ValueError, IndexError, csv.Error) as error:
        raise DataError(f"{path}: not ScanNet's label table (needs columns id and nyu40id of numbers: {error})") from None
    return table


def read_classes(path: Path) -> tuple[Classes, np.ndarray]:
    """classes.csv, columns id (the raw label), name, colour (#rrggbb) -> Classes in the file's order, and a table like
    read_label_table's. Ids that share a name are one class; ids that are not listed are unlabelled. DataError if malformed."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [(int(row["id"]), row["name"].strip(), bytes.fromhex(row["colour"].strip().removeprefix("#")))
                    for row in csv.DictReader(file)]
    except (OSError, KeyError, TypeError, AttributeError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: not a class list (needs columns id,name,colour like 93,wall,#aec7e8: {error})") from None
    ids, names = [raw for raw, _, _ in rows], list(dict.fromkeys(name for _, name, _ in rows))
    if not 1 <= len(names) <= 127 or "" in names or len(set(ids)) < len(ids) or not 0 <= min(ids) <= max(ids) <= 65535:
        raise DataError(f"{path}: needs 1 to 127 named classes, each id once and from 0 to 65535")
    if any(len(colour) != 3 for _, _, colour in rows):
        raise DataError(f"{path}: a colour is six hexadecimal digits, like #aec7e8")
    table = np.full(max(ids) + 1, IGNORE, np.int8)
    table[ids] = [names.index(name) for _, name, _ in rows]
    colours = {name: list(colour) for _, name, colour in reversed(rows)}      # the first of those that share a name
    return Classes(names, [colours[name] for name in names]), table


def other_classes(known: Classes, given: Classes) -> str:
    """One clause that says how a checkpoint's label set and a scene's differ."""
    lists = [f"{len(c.names)} classes ({', '.join(c.names[:3])} ...)" for c in (known, given)]
    return f"the checkpoint knows {lists[0]}, the scenes are labelled with {lists[1]}"


def read_near_far(path: Path) -> tuple[float, float] | None:
    """near_far.txt, two numbers: the nearest and farthest depth worth sampling, in the scene's units. None if there is none."""
    if not path.is_file():
        return None
    try:
        near, far = (float(x) for x in path.read_text().split())
    except (ValueError, UnicodeDecodeError):
        near = far = 0.0
    if not 0 < near < far < float("inf"):
        raise DataError(f"{path}: not two numbers 0 < near < far; write them, or remove the file if the scene is in metres")
    return near, far


@dataclass
class Views:
    """N posed frames. images (N, 3, H, W) in [0, 1]; K (N, 3, 3); c2w (N, 4, 4); labels (N, H, W) int64, IGNORE where
    unlabelled; depth (N, H, W) metres along z, 0 where unknown (for evaluation and pictures, never an input);
    near_far (N, 2) where the scene has a near_far.txt, else None: the model's own range holds."""
    images: Tensor
    K: Tensor
    c2w: Tensor
    labels: Tensor
    depth: Tensor
    near_far: Tensor | None = None

    def __getitem__(self, index) -> "Views":
        return Views(*(None if x is None else x[index] for x in vars(self).values()))

    def to(self, device) -> "Views":
        """The same views on another device."""
        return Views(*(None if x is None else x.to(device, non_blocking=True) for x in vars(self).values()))


def write_atomically(path: Path, write: Callable) -> None:
    """Call write(file) on a temporary binary file beside path, then rename it: a reader sees the old file or the new one.
    OSError, with path as its filename, if the disk is full or the folder cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        error.filename = str(path)            # not the temporary one
        raise


# ---------------------------------------------------------------------------------------------------- a scene

class Scene:
    """One scene folder, its frames at height x width. Reads poses now, frames when asked (`load`), decoded once.

    frames: the file numbers with a pose, in numeric order (ScanNet writes -inf where tracking was lost), every `every`-th of
    them; a frame that cannot be read is left out, while there are few (`skip`). c2w (N, 4, 4), K (3, 3) at height x width.
    Decoded frames go to `cache` as uint8 colour, int8 label and uint16 depth (6 bytes a pixel), under a name that carries size
    and modification time of the sources, so a changed file is decoded again.
    labels: a folder whose <scene>/<frame>.png stand for the scene's own label-filt (pseudo labels).
    """

    def __init__(self, folder: Path, height: int, width: int, cache: Path = Path("cache"), every: int = 1,
                 labels: str | Path | None = None):
        self.folder, self.name, self.height, self.width = Path(folder), Path(folder).name, height, width
        if not (self.folder / "color").is_dir():
            raise DataError(f"{self.folder}: no such scene (needs color/, pose/, intrinsic/); check --data and --scenes")
        numbers = sorted(int(p.stem) for p in (self.folder / "pose").glob("*.txt") if re.fullmatch("0|[1-9][0-9]*", p.stem))
        if not numbers:                       # sorted as numbers: 2 before 10
            raise DataError(f"{self.folder / 'pose'}: no <number>.txt in it (0.txt, 1.txt ...); export the poses")
        self.homes = [self.folder.resolve(), *([Path(labels).resolve()] if labels else [])]        # no file of it may lie elsewhere
        self.skipped, self.total, poses = set(), len(numbers[::every]), {}
        for i in numbers[::every]:
            try:
                poses[i] = read_pose(self.own(self.folder / "pose" / f"{i}.txt"))
            except DataError as error:
                self.skip(i, error)
        self.frames = [i for i, pose in poses.items() if pose is not None]
        if not self.frames:
            raise DataError(f"{self.folder / 'pose'}: not one finite pose (tracking lost throughout); leave this scene out")
        self.c2w = torch.tensor(np.stack([poses[i] for i in self.frames]), dtype=torch.float32)   # (N, 4, 4)
        self.native_K = read_intrinsics(self.own(self.folder / "intrinsic" / "intrinsic_color.txt"))
        self.labels = Path(labels) / self.name if labels else self.folder / "label-filt"
        self.has_labels = self.labels.is_dir()
        if labels and not self.has_labels:
            raise DataError(f"{self.labels}: no such folder; --labels takes a folder with {self.name}/<frame>.png in it")
        self.near_far = read_near_far(self.folder / "near_far.txt")
        digest = hashlib.sha1(f"{self.folder.resolve()}{self.labels.resolve() if labels else ''}".encode()).hexdigest()[:10]
        self.cache = Path(cache) / f"{self.name}_{digest}_{height}x{width}"

    def __len__(self) -> int:
        return len(self.frames)

    def own(self, path: Path) -> Path:
        """The path of one of the scene's files. DataError if a link in the scene leads out of its folder."""
        try:
            if any(path.resolve().is_relative_to(home) for home in self.homes):
                return path
        except (OSError, RuntimeError):       # links in a circle
            pass
        raise FrameError(f"{path}: a link that leads out of the scene's folder; put the file itself there")

    def skip(self, frame: int, error: DataError) -> None:
        """Leave out a frame that cannot be read, and say so; the error itself if that makes more than 1% of the scene's frames."""
        self.skipped.add(frame)
        if len(self.skipped) * 100 > self.total:
            few = f"of {self.total} frames none is skipped" if self.total < 100 else \
                f"{len(self.skipped)} of {self.total} frames cannot be read, more than 1%"
            raise DataError(f"{error} ({few})")
        print(f"skipped: {error} (so far {len(self.skipped)} of {self.name}'s {self.total} frames, at most {self.total // 100})",
              flush=True)

    def attempt(self, index: int) -> FrameError | None:
        """Decode frame `index` into the cache, unless it is there -> None, or what is wrong with the frame."""
        try:
            self.load(index)
        except FrameError as error:
            return error

    def readable(self, indices: list[int]) -> list[int]:
        """The frames (0..N-1) that are not skipped."""
        return [i for i in indices if self.frames[i] not in self.skipped]

    @cached_property
    def label_table(self) -> np.ndarray:
        """Raw id -> class index, of the table beside the scene; read when first needed."""
        path = self.folder.parent / CLASSES_CSV
        return read_classes(path)[1] if path.is_file() else read_label_table(self.folder.parent / LABELS_TSV)

    @cached_property
    def classes(self) -> Classes:
        """The label set: classes.csv beside the scene, or ScanNet's 20 classes."""
        path = self.folder.parent / CLASSES_CSV
        return read_classes(path)[0] if path.is_file() else SCANNET

    @cached_property
    def raw_ids(self) -> np.ndarray:
        """Class index -> a raw id of that class (L,) uint16, 0 (unlabelled) for a class the table does not have."""
        return np.array([np.argmax(self.label_table == l) * (self.label_table == l).any() for l in range(len(self.classes.names))],
                        np.uint16)

    @cached_property
    def K(self) -> Tensor:
        """Intrinsics (3, 3) at this resolution, each axis scaled by its own factor from the colour image's real size."""
        return scale_intrinsics(self.native_K, self.size, (self.height, self.width))

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width of the colour images: of the first that can be read."""
        for frame in self.frames:
            try:
                return read_image(self.own(self.files(frame)[0])).shape[:2]
            except FrameError as error:
                self.skip(frame, error)
        raise DataError(f"{self.folder / 'color'}: not one image can be read; export them again")

    @cached_property
    def depth_K(self) -> Tensor:
        """Intrinsics (3, 3) of the depth camera, at its own size."""
        return read_intrinsics(self.own(self.folder / "intrinsic" / "intrinsic_depth.txt"))

    def files(self, frame: int) -> list[Path]:
        """The colour, label and depth file of a frame; the last two may not exist."""
        color = self.folder / "color" / f"{frame}.jpg"
        color = color if color.exists() else color.with_suffix(".png") if color.with_suffix(".png").exists() else color
        return [color, self.labels / f"{frame}.png", self.folder / "depth" / f"{frame}.png"]

    def decode(self, frame: int) -> np.ndarray:
        """Read and resize one frame's files -> (H, W, 6) uint8: red, green, blue, label (int8), depth in mm (uint16)."""
        color_path, label_path, depth_path = (self.own(path) for path in self.files(frame))
        color = read_image(color_path)
        if color.ndim != 3 or color.shape[2] < 3:
            raise FrameError(f"{color_path}: not a colour image; export it again")
        h, w = color.shape[:2]
        if (h, w) != self.size:
            raise FrameError(f"{color_path}: {w}x{h} pixels, but the scene's images are {self.size[1]}x{self.size[0]}; export it "
                             "again")
        packed = np.zeros((self.height, self.width, 6), np.uint8)
        packed[..., :3] = resize_image(color[..., :3], self.height, self.width)

        label = np.full((self.height, self.width), IGNORE, np.int8)
        if self.has_labels:
            raw = read_image(label_path)
            lh, lw = raw.shape[:2]
            same = (lh / h == lw / w) and (max(lh, h) % min(lh, h) == 0) and (max(lw, w) % min(lw, w) == 0)
            if raw.ndim != 2 or not same:
                raise FrameError(f"{label_path}: labels of {lw}x{lh} do not divide the colour image of {w}x{h}; "
                                "export both at one size (label-filt, one channel)")
            raw = raw[nearest_pixels(self.height, lh)[:, None], nearest_pixels(self.width, lw)].astype(np.int64)
            known = raw < len(self.label_table)
            label[known] = self.label_table[raw[known]]
        packed[..., 3] = label.view(np.uint8)

        if depth_path.exists():              # ScanNet's depth camera has its own size and intrinsics: follow the ray into it
            depth = read_image(depth_path)
            if depth.ndim != 2:
                raise FrameError(f"{depth_path}: not a one-channel depth map; export it again")
            K = scale_intrinsics(self.native_K, (h, w), (self.height, self.width))
            D = self.depth_K
            columns = torch.round((torch.arange(self.width) - K[0, 2]) / K[0, 0] * D[0, 0] + D[0, 2]).long().numpy()
            rows = torch.round((torch.arange(self.height) - K[1, 2]) / K[1, 1] * D[1, 1] + D[1, 2]).long().numpy()
            seen = ((rows >= 0) & (rows < depth.shape[0]))[:, None] & ((columns >= 0) & (columns < depth.shape[1]))
            mm = depth[rows.clip(0, depth.shape[0] - 1)[:, None], columns.clip(0, depth.shape[1] - 1)] * seen
            packed[..., 4:] = np.ascontiguousarray(mm.astype(np.uint16))[..., None].view(np.uint8)
        return packed

    def cached(self, index: int) -> bool:
        """Is frame `index` decoded already?"""
        return self.cache_path(index).exists()

    def cache_path(self, index: int) -> Path:
        """Where frame `index` is kept decoded: the name carries size and time of its files."""
        frame = self.frames[index]
        sources = [*self.files(frame), self.folder.parent / CLASSES_CSV]
        stamp = "".join(f"{p.stat().st_size}.{p.stat().st_mtime_ns};" for p in sources if p.exists())
        return self.cache / f"{frame}_{hashlib.sha1(stamp.encode()).hexdigest()[:10]}.npy"

    def load(self, index: int) -> np.ndarray:
        """Frame `index` (0..N-1) decoded at training resolution, from the cache if it is there: (H, W, 6) uint8."""
        path = self.cache_path(index)
        try:
            packed = np.load(path)
            if packed.shape == (self.height, self.width, 6) and packed.dtype == np.uint8:
                return packed
        except Exception:                     # numpy raises OSError, ValueError, EOFError, BadZipFile ... for what is not an array
            pass                              # not there, or half-written by something else: decode (again)
        packed = self.decode(self.frames[index])
        try:
            write_atomically(path, lambda file: np.save(file, packed))
        except OSError as error:
            raise DataError(f"{path.parent}: cannot write the cache ({error.strerror or error}); name another folder with "
                            "--cache") from None
        return packed

    def views(self, indices) -> Views:
        """These frames (0..N-1) as Views."""
        indices = [int(i) for i in indices]
        packed = torch.from_numpy(np.stack([self.load(i) for i in indices]))                     # (N, H, W, 6)
        depth = packed[..., 4:].contiguous().view(torch.int16)[..., 0].int() & 0xFFFF            # uint16 has few operations
        return Views(images=packed[..., :3].permute(0, 3, 1, 2).float() / 255,
                     K=self.K.expand(len(indices), 3, 3), c2w=self.c2w[indices],
                     labels=packed[..., 3].view(torch.int8).long(), depth=depth.float() / 1000,
                     near_far=torch.tensor(self.near_far).expand(len(indices), 2) if self.near_far else None)


# ---------------------------------------------------------------------------------------------------- which views look at what

def nearest_views(target: Tensor, c2w: Tensor, count: int, angle_weight: float = 1.0) -> list[int]:
    """The `count` cameras of c2w (N, 4, 4) nearest to the pose target (4, 4), nearest first.

    Distance in metres plus angle_weight metres per radian between the viewing directions: a camera at the same place
    looking the other way is no help (README, "Choices settled by measuring").
    """
    distance = (c2w[:, :3, 3] - target[:3, 3]).norm(dim=-1)                   # (N,)
    angle = torch.arccos((c2w[:, :3, 2] @ target[:3, 2]).clamp(-1, 1))        # (N,)
    return torch.argsort(distance + angle_weight * angle, stable=True)[:count].tolist()


def unit(scene: Scene) -> float:
    """How much of the scene's own unit stands for a metre: 1, or in a scene with near_far.txt its far over 8 (a room's)."""
    near_far = getattr(scene, "near_far", None)
    return near_far[1] / 8 if near_far else 1.0


def training_pair(scene: Scene, views: int, generator: torch.Generator, pool: int = 12,
                  frames: list[int] | None = None, angle_weight: float = 1.0) -> tuple[int, list[int]]:
    """A random target frame and `views` source frames out of its `pool` nearest; the target is never among them.

    frames: draw only from these (fine-tuning); all frames if None.
    """
    frames = list(range(len(scene))) if frames is None else list(frames)
    if len(frames) < views + 1:
        raise DataError(f"{scene.folder}: {len(frames)} usable frames, but {views} source views and a target are asked for; "
                        "leave this scene out or lower --views")
    target = frames[int(torch.randint(len(frames), (), generator=generator))]
    others = [i for i in frames if i != target]
    near = nearest_views(scene.c2w[target], scene.c2w[others], max(pool, views), angle_weight * unit(scene))
    chosen = torch.randperm(len(near), generator=generator)[:views].tolist()
    sources = [others[near[i]] for i in chosen]
    assert target not in sources
    return target, sources


def protocol(scene: Scene) -> tuple[list[int], list[int], list[int]]:
    """Section 1 of the supplement: 20 nearby views -> 8 source, 8 for fine-tuning, 4 test (frame indices).

    Nearby: the middle frame and the 19 nearest to it, in time order. The 4 test views are every fifth of the 20, the other
    16 alternate between source and fine-tuning, so that every test view lies between source views.
    """
    if len(scene) < 20:
        raise DataError(f"{scene.folder}: {len(scene)} usable frames, but the protocol takes 20 (8 source, 8 fine-tuning, "
                        "4 test); leave this scene out")
    middle = scene.c2w[len(scene) // 2]
    twenty = sorted(nearest_views(middle, scene.c2w, 20, unit(scene)))
    test = twenty[2::5]
    rest = [i for i in twenty if i not in test]
    return rest[0::2], rest[1::2], test


def space(name: str) -> str:
    """The room a scan shows: scene0160_01 -> scene0160. Splits go by space: two scans of one room are one room."""
    match = re.fullmatch(r"(.+)_\d\d", name)
    return match.group(1) if match else name


def check_names(names: list[str], where: str) -> None:
    """DataError unless these are plain folder names: a list of scenes must not lead out of the folder of scenes."""
    for name in names:
        if not isinstance(name, str) or name in ("", ".", "..") or not name.isprintable() or \
                any(kind(name).name != name for kind in (PurePosixPath, PureWindowsPath)):
            raise DataError(f"{where}: {str(name)[:80]!r} is not the name of a scene; names of folders only, no paths")


def split_by_space(names: list[str], split_file: Path | None = None) -> tuple[list[str], list[str]]:
    """Scene names -> (train, test), no space in both.

    split_file has a line "train NAME" or "test NAME" for each scene or space. Without one, every seventh space in name order is
    for testing (the paper's 60 / 10); one space alone has no test scene.
    """
    if split_file is None:
        spaces = sorted({space(n) for n in names})
        held_out = set(spaces[6::7] if len(spaces) >= 7 else spaces[-1:] if len(spaces) > 1 else [])
        return [n for n in names if space(n) not in held_out], [n for n in names if space(n) in held_out]
    if not Path(split_file).is_file():
        raise DataError(f"{split_file}: no such split file; it has lines 'train NAME' and 'test NAME'")
    part: dict[str, str] = {}
    for number, line in enumerate(read_text(Path(split_file), 10_000_000, "").splitlines(), 1):
        words = line.split("#")[0].split()
        if words and (len(words) != 2 or words[0] not in ("train", "test")):
            raise DataError(f"{split_file}, line {number}: '{line[:80]}' is not 'train NAME' or 'test NAME'")
        check_names(words[1:], f"{split_file}, line {number}")
        if words and part.setdefault(space(words[1]), words[0]) != words[0]:
            raise DataError(f"{split_file}, line {number}: {space(words[1])} is in train and in test; two scans of one "
                            "room belong to one side")
    return tuple([n for n in names if part.get(space(n)) == side] for side in ("train", "test"))


SIGNS = {   # layout -> what its folders hold; turning it into the one that is read here is 12_import.py's job
    "Blender / nerfstudio": ["transforms.json", "transforms_*.json"],
    "LLFF": ["poses_bounds.npy"],
    "ScanNet download": ["*.sens"],
    "Replica for Semantic-NeRF": ["Sequence_1/traj_w_c.txt", "Sequence_2/traj_w_c.txt"],
}


def foreign_scenes(path: Path) -> tuple[str | None, list[Path]]:
    """Is path (a folder, or the telling file in it) somebody else's layout? -> its name in SIGNS, and the scenes' folders: path
    itself, or those one or two levels below. (None, []) if it is none."""
    path = Path(path)
    if path.is_file() and any(path.match(sign) for signs in SIGNS.values() for sign in signs):
        path = path.parent
    for below in (".", "*", "*/*"):
        folders = sorted(p for p in path.glob(below) if p.is_dir() and not p.name.startswith(".")) if below != "." else [path]
        for layout, signs in SIGNS.items():
            found = [p for p in folders if any(next(p.glob(sign), None) for sign in signs)]
            if found:
                return layout, found
    return None, []


def list_scenes(root: Path) -> list[str]:
    """Names of the scene folders (those with color/) below root, sorted. DataError if there are none."""
    if not Path(root).is_dir() or not any((p / "color").is_dir() for p in Path(root).iterdir()):
        layout, _ = foreign_scenes(root)
        if layout:
            full = Path(root).resolve()
            name = re.sub(r"[^\w.-]", "_", (full if full.is_dir() else full.parent).name)
            name = {"ScanNet download": "scannet", "Replica for Semantic-NeRF": "replica"}.get(layout, name)
            raise DataError(f"{root}: another layout ({layout}); import it once, then use --scene data/{name}: "
                            f"python 12_import.py {shlex.quote(str(root))} --out data/{name}")
    if not Path(root).is_dir():
        raise DataError(f"{root}: no such folder; --data takes the folder that holds the scene folders")
    names = sorted(p.name for p in Path(root).iterdir() if (p / "color").is_dir() and not p.name.startswith("."))
    if not names:
        raise DataError(f"{root}: no scene in it (a scene has color/, pose/, intrinsic/); check --data")
    return names


# ---------------------------------------------------------------------------------------------------- --scene and --data

@dataclass
class Dataset:
    """Where scenes are and which are for what. kind: "rooms" (ours), "scannet", "replica", or "path" for somebody's folder."""
    kind: str
    root: Path
    train: list[str]
    test: list[str]


TEST_ROOM = 9000                              # rooms are numbered by seed; those from here on are for testing only


def find_dataset(scene: str, data: str | None, train_rooms: int, test_rooms: int, scenes: list[str] | None = None,
                 split_file: str | None = None, room_size: tuple[int, int] = (240, 320), varied_rooms: int = 0) -> Dataset:
    """Resolve --scene rooms | scannet | replica | PATH with --data ROOT and --scenes a,b,c.

    scannet: ROOT or data/scannet; when neither --data nor that folder exists, says so in one loud line and takes rooms.
    replica: ROOT or data/replica, which 12_import.py writes.
    rooms: made on first use in ROOT or data/rooms, `train_rooms` (0: none are needed) and `test_rooms` of them; `varied_rooms` more
    to train on, from the seeds whose rooms differ more (00_rooms.VARIED).
    PATH: a scene folder, or a folder of scenes. `scenes` replaces the training list; the same spaces leave the test list.
    """
    if scene == "scannet" and data is None and not Path("data/scannet").is_dir():
        print("*** NO SCANNET ON DISK (data/scannet; point --data at yours): MAKING ROOMS INSTEAD. "
              "Everything below is about rooms, not ScanNet. ***", flush=True)
        scene = "rooms"
    check_names(scenes or [], "--scenes")
    if scene == "rooms":
        root = Path(data or "data/rooms")
        there = scenes and all((root / name / "color").is_dir() for name in scenes)               # no others to train on
        training = [*range(train_rooms), *rooms.VARIED[:varied_rooms]]
        seeds = [*([] if there else training), *range(TEST_ROOM, TEST_ROOM + test_rooms)]
        if data:                              # somebody's folder: add what is missing, rewrite nothing
            seeds = [seed for seed in seeds if not (root / f"room{seed:04d}_00" / "color").is_dir()]
        rooms.make_rooms(root, seeds, frames=24, width=room_size[1], height=room_size[0])
        dataset = Dataset("rooms", root, [f"room{i:04d}_00" for i in training],
                          [f"room{TEST_ROOM + i:04d}_00" for i in range(test_rooms)])
    else:
        root, kind = (Path(data or f"data/{scene}"), scene) if scene in ("scannet", "replica") else (Path(scene), "path")
        if scene == "replica" and not root.is_dir():
            raise DataError(f"{root}: no Replica here; import your copy (README, \"Your own data\") with: "
                            f"python 12_import.py FOLDER --out {shlex.quote(str(root))}")
        if kind == "path" and data:
            raise DataError(f"--scene {scene} is a path already; leave out --data {data}")
        if kind == "path" and (root / "color").is_dir():                      # one scene folder
            root, names = root.resolve().parent, [root.resolve().name]
        else:
            names = list_scenes(root)
        split_file = split_file or (root / "split.txt" if (root / "split.txt").is_file() else None)
        dataset = Dataset(kind, root, *split_by_space(names, split_file))
    if scenes:
        for name in scenes:
            if not (dataset.root / name / "color").is_dir():
                raise DataError(f"{dataset.root / name}: no such scene; --scenes takes names of folders in {dataset.root}")
        taken = {space(name) for name in scenes}
        dataset.train, dataset.test = list(scenes), [n for n in dataset.test if space(n) not in taken]
    return dataset


def example_views(height: int = 240, width: int = 320, views: int = 8, seed: int = 3) -> Views:
    """A furnished room seen by `views` source cameras and, last, a target camera: views + 1 Views, for pictures and notebooks.

    The room is written to data/example once and read back like any other scene.
    """
    names = rooms.make_rooms(Path("data/example"), [seed], frames=24, width=320, height=240, workers=1)
    scene = Scene(Path("data/example") / names[0], height, width)
    target = len(scene) // 2
    others = [i for i in range(len(scene)) if i != target]
    near = nearest_views(scene.c2w[target], scene.c2w[others], views)
    return scene.views([others[i] for i in near] + [target])


def main() -> None:
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    views = example_views()
    target, sources = views[8], views[:8]
    print("what the reader returns: eight source views and, last, a target")
    for name, x in vars(views).items():
        if x is not None:
            print(f"  {name:8} {str(tuple(x.shape)):20} {str(x.dtype).removeprefix('torch.')}")

    pixels = pixel_grid(240, 320)                                             # (H*W, 2)
    points = unproject(pixels, target.depth.view(-1), target.K, target.c2w)   # (H*W, 3)
    uv, z = project(points, sources.K, sources.c2w)                           # (H*W, 8, 2), (H*W, 8)
    inside = (z > 0) & (uv >= 0).all(-1) & (uv[..., 0] <= 319) & (uv[..., 1] <= 239)
    u, v = uv.round().long().clamp(min=0).unbind(-1)
    seen_depth = sources.depth[torch.arange(8), v.clamp(max=239), u.clamp(max=319)]               # (H*W, 8)
    visible = inside & ((seen_depth - z).abs() < 0.05)
    print(f"One fact: {visible.any(1).float().mean():.0%} of the target's pixels are seen by some source view, "
          f"{visible.float().sum(1).mean():.1f} views on average; {inside.any(1).float().mean():.0%} fall inside some image. "
          "The difference is occlusion, which nobody tells the model.")

    figure, axes = plt.subplots(2, 5, figsize=(15, 5), constrained_layout=True)
    pick = int(torch.argmax(visible.sum(1)))                                  # a pixel that many views see
    for axis, index in zip(axes.flat, [8, *range(8)]):
        axis.imshow(views.images[index].permute(1, 2, 0))
        axis.set_title("target" if index == 8 else f"source {index}" + ("" if visible[pick, index] else " (not visible)"))
        x, y = pixels[pick] if index == 8 else uv[pick, index]
        if index == 8 or inside[pick, index]:
            axis.plot(float(x), float(y), "o", mfc="none", mec="#d55e00", ms=14, mew=3)
        axis.set_axis_off()
    picture = axes[1, 4].imshow(visible.sum(1).view(240, 320), cmap="viridis", vmin=0, vmax=8)
    figure.colorbar(picture, ax=axes[1, 4], label="source views")
    axes[1, 4].set_title("how many views see it")
    axes[1, 4].set_axis_off()
    figure.suptitle("One target pixel, unprojected with its true depth and projected into eight source views")
    Path("outputs").mkdir(exist_ok=True)
    figure.savefig("outputs/01_data.png", dpi=100)
    print("picture: outputs/01_data.png")


if __name__ == "__main__":
    run_script(main)
