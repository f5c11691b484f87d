"""One scene's files in ScanNet's layout: found, checked, decoded once and kept in a cache.

    <scene>/color/<i>.jpg  pose/<i>.txt  intrinsic/intrinsic_color.txt     needed
    <scene>/depth/<i>.png  intrinsic/intrinsic_depth.txt                   where there is depth
    <scene>/label-filt/<i>.png  and a label table beside the scene         where there are labels
    <scene>/mask/<i>.png                                                   black: no truth and no source
    <scene>/near_far.txt                                                   where it is not a room in metres
    <scene>/split.txt                                                      lines "train 3", "test 7": frames

What a frame means (cameras, classes, depth at training resolution) is 01's: Scene extends SceneFolder by
decode(). A frame that cannot be read is left out, while there are few. File numbers may have zeros before
them.

Test: pytest tests/test_support_frames.py
"""
import hashlib
import math
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from support.files import (
    MAX_PIXELS,
    DataError,
    FrameError,
    image_size,
    open_file,
    read_image,
    read_intrinsics,
    read_map,
    read_near_far,
    read_pose,
    write_atomically,
)
from support.labels import CLASSES_CSV, LABELS_TSV, Classes, classes_of, table_of
from support.lens import check_middle, check_same_view
from support.listing import Listing, labels_beside, read_frame_split, same_photographs, say

MASKED = -2           # in the cache, instead of a label: the pixel is masked
CLOSE = 0.02          # metres between neighbouring frames, below which a test view is nearly a source view
DECODED = 3           # a part of the cache's key: another number where the same files decode to other values


def pack(colour: np.ndarray, labels: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Colour (H, W, 3) uint8, labels (H, W) int8, depth (H, W) uint16 -> (H, W, 6) uint8, as it is cached."""
    parts = [colour, labels[..., None].view(np.uint8), depth[..., None].view(np.uint8)]
    return np.concatenate(parts, axis=-1)


def unpack(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, H, W, 6) uint8 -> colour (N, H, W, 3) uint8, labels (N, H, W) int8, depth (N, H, W) uint16."""
    return packed[..., :3], packed[..., 3].view(np.int8), packed.view(np.uint16)[..., 2]


class SceneFolder:
    """The files of one scene, for frames of height x width. Reads poses now, frames when asked (`load`).

    frames: the file numbers with a pose, in numeric order, every `every`-th of them (ScanNet writes -inf
    where tracking was lost). poses: theirs, (N, 4, 4) float64. native_K (3, 3): intrinsics at the size of the
    colour images. labels: a folder whose <scene>/<frame>.png stand for the scene's label-filt (pseudo
    labels). crop: pixels taken off every side of the images. A subclass says what a frame is: decode(frame)
    -> colour, labels, depth for pack().
    """

    def __init__(self, folder: Path, height: int, width: int, cache: Path = Path("cache"), every: int = 1,
                 labels: str | Path | None = None, crop: int = 0):
        self.folder, self.name, self.height, self.width = Path(folder), Path(folder).name, height, width
        if not (self.folder / "color").is_dir():
            raise DataError(f"{self.folder}: no such scene (needs color/, pose/, intrinsic/); check --data "
                            "and --scenes")
        # no file of the scene may lie elsewhere
        self.homes = [self.folder.resolve(), *([Path(labels).resolve()] if labels else [])]
        self.skipped: set[int] = set()
        self.labels = Path(labels) / self.name if labels else self.folder / "label-filt"
        self.listing, self.crop, self.every = Listing(self.folder, self.labels), crop, every
        self.frames, self.poses = self.read_poses(every)
        self.native_K = self.read_camera("color") - np.float32([[0, 0, crop], [0, 0, crop], [0, 0, 0]])
        self.has_labels = self.labels.is_dir()
        if labels and not self.has_labels:
            raise DataError(f"{self.labels}: no such folder; --labels takes a folder with "
                            f"{self.name}/<frame>.png in it")
        self.has_masks = bool(self.listing.files["mask"])
        # range: of the samples, where the model's own does not hold; support/ranges.py sets it too
        self.range = self.near_far = read_near_far(self.folder / "near_far.txt")
        self.split = read_frame_split(self.folder / "split.txt")
        self.largest_id = 0                   # of the label maps that were read
        self.cache = self.cache_folder(Path(cache))

    def __len__(self) -> int:
        return len(self.frames)

    def read_poses(self, every: int) -> tuple[list[int], np.ndarray]:
        """Every `every`-th frame that has a pose, and these (N, 4, 4)."""
        folder, files = self.folder / "pose", self.listing.files["pose"]
        if not files:                         # sorted as numbers: 2 before 10
            raise DataError(f"{folder}: no <number>.txt in it (0.txt, 1.txt ...); export the poses")
        numbers = list(files)[::every]
        self.listing.check_colour(numbers)
        again = same_photographs({i: self.listing.path("color", i) for i in numbers})
        if again:
            say(f"{self.name}: {len(again)} photographs are there twice: taken once")
        if self.listing.unused():
            say(f"{self.name}: not used, for no frame has their number: {', '.join(self.listing.unused())}")
        numbers = [i for i in numbers if i not in set(again)]
        self.total, poses = len(numbers), {}
        for i in numbers:
            try:
                poses[i] = read_pose(self.own(files[i]))
            except DataError as error:
                self.skip(i, error)
        frames = [i for i, pose in poses.items() if pose is not None]
        if not frames:
            raise DataError(f"{folder}: not one finite pose (tracking lost throughout); leave this scene out")
        return frames, np.stack([poses[i] for i in frames])

    def read_camera(self, kind: str) -> np.ndarray:
        """Intrinsics (3, 3) float32 of the color or depth camera, at its own size."""
        path = self.camera_path(kind)
        if kind == "color" and not path.exists() and self.camera_path("depth").exists():
            raise DataError(f"{path}: no such file; intrinsic_depth.txt is there, but the colour camera's "
                            f"are "
                            "needed (where colour was resampled to the depth camera, copy it)")
        return read_intrinsics(self.own(path)).astype(np.float32)

    def camera_path(self, kind: str) -> Path:
        """The file of the color or depth camera's intrinsics; of scannet_frames_25k right in the scene."""
        other = self.folder / f"intrinsics_{kind}.txt"
        path = self.folder / "intrinsic" / f"intrinsic_{kind}.txt"
        return other if other.exists() and not path.exists() else path

    def own(self, path: Path) -> Path:
        """The path of one of the scene's files. FrameError if a link in the scene leads out of its folder."""
        try:
            if any(path.resolve().is_relative_to(home) for home in self.homes):
                return path
        except (OSError, RuntimeError):       # links in a circle
            pass
        raise FrameError(f"{path}: a link that leads out of the scene's folder; put the file itself there")

    # ------------------------------------------------------------------------------- frames that are left out

    def skip(self, frame: int, error: DataError) -> None:
        """Leave out a frame that cannot be read, and say so; the error itself if that makes more than 1% of
        the scene's frames."""
        self.skipped.add(frame)
        if len(self.skipped) * 100 > self.total:
            few = f"of {self.total} frames none is skipped" if self.total < 100 else \
                f"{len(self.skipped)} of {self.total} frames cannot be read, more than 1%"
            raise DataError(f"{error} ({few})")
        print(f"skipped: {error} (so far {len(self.skipped)} of {self.name}'s {self.total} frames, at most "
              f"{self.total // 100})", flush=True)

    def parts(self) -> tuple[list[int], list[int]]:
        """The scene's own split: frames (0..N-1) that may be trained on, and those that are for testing (of a
        split without test frames, the val frames). All, and none, where split.txt says nothing of them."""
        kinds = [self.split.get(number, "train") for number in self.frames]
        held = "test" if "test" in kinds else "val"
        train, test = ([i for i, kind in enumerate(kinds) if kind == part] for part in ("train", held))
        return (train, test) if train else (test, [])

    def label_hint(self) -> str:
        """What may be the labels of a scene that has none, in words."""
        return labels_beside(self.folder)

    def readable(self, indices: list[int]) -> list[int]:
        """The frames (0..N-1) that are not skipped."""
        return [i for i in indices if self.frames[i] not in self.skipped]

    def attempt(self, index: int) -> FrameError | None:
        """Decode frame `index` into the cache, unless it is there -> None, or what is wrong with the
        frame."""
        try:
            self.load(index)
        except FrameError as error:
            return error

    # ------------------------------------------------------------------------------------------------- labels

    @cached_property
    def label_table(self) -> np.ndarray:
        """Raw id -> class index, of the table beside the scene; read when first needed."""
        return table_of(self.folder.parent, (self.folder / "label-filt").is_dir())

    @cached_property
    def classes(self) -> Classes:
        """The label set: classes.csv beside the scene, or ScanNet's 20 classes."""
        return classes_of(self.folder.parent)

    def check_ids(self, decoded: list, count: int) -> None:
        """Say so where not one of all `count` frames, decoded now, has an id above 40, in a table of more
        ids: the maps may hold nyu40 ids, which mean other classes there."""
        if decoded and len(decoded) == count and 0 < self.largest_id <= 40 < len(self.label_table) - 1:
            say(f"{self.name}: no label above 40 in {count} frames. If label-filt/ holds nyu40 ids instead "
                f"of raw "
                f"ones, copy docs/classes-nyu40.csv to {self.folder.parent / CLASSES_CSV}; else all is well")

    @cached_property
    def raw_ids(self) -> np.ndarray:
        """Class index -> a raw id of that class (L,) uint16, 0 (unlabelled) for one the table does not
        have."""
        ids = [np.flatnonzero(self.label_table == label) for label in range(len(self.classes.names))]
        return np.array([i[0] if len(i) else 0 for i in ids], np.uint16)

    # -------------------------------------------------------------------------------------- a frame's images

    def files(self, frame: int) -> list[Path]:
        """The colour, label, depth and mask file of a frame; the last three may not exist."""
        return [self.listing.path(kind, frame) for kind in ("color", "label-filt", "depth", "mask")]

    @cached_property
    def full_size(self) -> tuple[int, int]:
        """Height and width of the colour images before they are cropped: of the first that can be read.
        DataError where the cameras' numbers cannot be of images of that size."""
        for frame in self.frames:
            color, _, depth, _ = self.files(frame)
            try:
                size = read_image(self.own(color)).shape[:2]
                depth_size = image_size(self.own(depth)) if depth.exists() else None
            except FrameError as error:
                self.skip(frame, error)
                continue
            K, path = self.read_camera("color"), self.camera_path("color")
            check_middle(K, size, str(path))
            if depth_size and self.camera_path("depth").exists():
                check_same_view(K, size, self.read_camera("depth"), depth_size, str(path))
            return size
        raise DataError(f"{self.folder / 'color'}: not one image can be read; export them again")

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width of the colour images, cropped."""
        h, w = (side - 2 * self.crop for side in self.full_size)
        if min(h, w) < 16:
            raise DataError(f"--crop {self.crop}: leaves {w}x{h} pixels of {self.folder}'s images; crop less")
        return h, w

    def check_camera(self) -> None:
        """DataError now, and not at the first frame, where the camera's numbers cannot be of these images."""
        assert self.size

    def cropped(self, image: np.ndarray, path: Path) -> np.ndarray:
        """An image, or a map of another size that shows the same, without `crop` of the image's pixels a
        side."""
        (h, w), crops = self.full_size, []
        for side, full in zip(image.shape, (h, w)):
            if self.crop * side % full:
                raise DataError(f"--crop {self.crop}: no whole pixels of {path}, "
                                f"{image.shape[1]}x{image.shape[0]} "
                                f"beside colour of {w}x{h}; crop a multiple of {full // np.gcd(side, full)}")
            crops.append(self.crop * side // full)
        return image[crops[0]:image.shape[0] - crops[0], crops[1]:image.shape[1] - crops[1]]

    def photograph(self, frame: int) -> np.ndarray:
        """A frame's colour image (h, w, 3) uint8, cropped. FrameError if it is no such image."""
        path = self.own(self.files(frame)[0])
        color, (h, w) = read_image(path), self.full_size
        if color.ndim != 3 or color.shape[2] < 3:
            raise FrameError(f"{path}: not a colour image; export it again")
        if color.shape[:2] != (h, w):
            raise FrameError(f"{path}: {color.shape[1]}x{color.shape[0]} pixels, but the scene's images are "
                             f"{w}x{h}; export it again")
        return self.cropped(color[..., :3], path)

    def read(self, frame: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """A frame's files as they are on disk: colour (h, w, 3) uint8; raw label ids and depth in mm, each of
        a size of its own, or None where the scene has none. FrameError if one of them is no such image."""
        _, label_path, depth_path, _ = (self.own(path) for path in self.files(frame))
        color, raw, depth, (h, w) = self.photograph(frame), None, None, self.full_size
        if self.has_labels:
            raw = read_map(label_path, (8, 16), "a label map")
            lh, lw = raw.shape
            divides = max(lh, h) % min(lh, h) == 0 and max(lw, w) % min(lw, w) == 0
            if lh / h != lw / w or not divides:
                raise FrameError(f"{label_path}: labels of {lw}x{lh} do not divide the colour image of "
                                 f"{w}x{h}; export both at one size (label-filt, one channel)")
            self.largest_id = max(self.largest_id, int(raw.max()))
            raw = self.cropped(raw, label_path)
        if depth_path.exists():
            depth = read_map(depth_path, (16,), "a depth map in millimetres")
            self.check_depth_size(depth_path, *depth.shape)
        return color, raw, depth

    def hide(self, frame: int, labels: np.ndarray, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A frame's labels (H, W) and depth (H, W) with MASKED and 0 where its mask is black, or where black
        has a part in the pixel."""
        path = self.own(self.files(frame)[3])
        if not path.exists():
            return labels, depth
        keep = self.cropped(read_map(path, (8,), "a mask, black where the image is not to be used"), path) > 0
        keep = torch.from_numpy(keep)[None, None].float()                     # (1, 1, h, w)
        keep = F.interpolate(keep, size=labels.shape, mode="bilinear", antialias=True, align_corners=False)
        keep = keep[0, 0].numpy() > 0.99                                      # (H, W)
        return np.where(keep, labels, np.int8(MASKED)), np.where(keep, depth, np.uint16(0))

    def check_depth_size(self, path: Path, h: int, w: int) -> None:
        """FrameError if the depth camera's principal point is so far from the middle of this depth map that
        its intrinsics must be for another size."""
        x, y = self.read_camera("depth")[:2, 2] + 0.5
        if abs(x / w - 0.5) > 0.15 or abs(y / h - 0.5) > 0.15:
            raise FrameError(f"{path}: {w}x{h}, but the principal point in intrinsic_depth.txt is of some "
                             f"{2 * x:.0f}x{2 * y:.0f}; export both for one size")

    # ---------------------------------------------------------------------------------------------- the cache

    # The key: a folder for the scene's place and the frames' size; a name for the state of all the files that
    # a decoded frame depends on.

    def cache_folder(self, root: Path) -> Path:
        """Where this scene's frames are kept decoded, at this size."""
        places = str(self.folder.resolve())
        if len(self.homes) > 1:               # labels from elsewhere
            places += str(self.labels.resolve())
        cropped = f"_crop{self.crop}" if self.crop else ""
        return root / f"{self.name}_{digest(places)}_{self.height}x{self.width}{cropped}"

    def cache_path(self, index: int) -> Path:
        """Where frame `index` is kept decoded. The name carries size and time of its files, and what the
        files say that it shares with others: where one is changed the frame is decoded again."""
        frame = self.frames[index]
        stamps = [f"{p.name}.{p.stat().st_size}.{p.stat().st_mtime_ns}" if p.exists() else "-"
                  for p in self.files(frame)]
        return self.cache / f"{frame}_{digest(';'.join([self.shared, *stamps]))}.npy"

    @cached_property
    def shared(self) -> str:
        """A digest of the cameras and of the label set, as they were when the scene was first asked for a
        frame."""
        parts = [str(DECODED)]
        for path in [*map(self.camera_path, ("color", "depth")),
                     *(self.folder.parent / name for name in (CLASSES_CSV, LABELS_TSV))]:
            content = b""
            if path.is_file():                 # whether it says something sensible is checked elsewhere
                with open_file(path, sys.maxsize) as file:
                    content = file.read(10_000_000)
            parts.append(hashlib.sha1(content).hexdigest())
        return ";".join(parts)

    def cached(self, index: int) -> bool:
        """Is frame `index` decoded already?"""
        return self.cache_path(index).exists()

    def largest(self, frame: int) -> int:
        """Pixels of the largest image of a frame, from the headers. FrameError if one is no image."""
        paths = [self.own(path) for path in self.files(frame) if path.exists()]
        return max((h * w for h, w in map(image_size, paths)), default=0)

    def load(self, index: int) -> np.ndarray:
        """Frame `index` (0..N-1) decoded, from the cache if it is there: (H, W, 6) uint8, see unpack()."""
        path = self.cache_path(index)
        try:
            with open_file(path, self.height * self.width * 6 + 10_000) as file:
                packed = np.load(file)
            if packed.shape == (self.height, self.width, 6) and packed.dtype == np.uint8:
                return packed
        # numpy raises OSError, ValueError, EOFError, BadZipFile ... for what is not an array
        except Exception:
            pass                              # not there, or damaged: decode (again)
        with MEMORY.share(self.largest(self.frames[index])):
            packed = pack(*self.decode(self.frames[index]))
        try:
            write_atomically(path, lambda file: np.save(file, packed))
        except OSError as error:
            raise DataError(f"{path.parent}: cannot write the cache ({error.strerror or error}); name "
                            "another folder with --cache") from None
        return packed


class Memory:
    """A bound for what is decoded at a time: so many pixels, whatever the number of threads. (A pixel takes
    some 30 bytes until it is resized.)"""

    def __init__(self, pixels: int):
        self.total = self.left = pixels
        self.changed = threading.Condition()

    @contextmanager
    def share(self, pixels: int):
        """Wait until so many pixels are free, and keep them."""
        pixels = min(pixels, self.total)
        with self.changed:
            self.changed.wait_for(lambda: self.left >= pixels)
            self.left -= pixels
        try:
            yield
        finally:
            with self.changed:
                self.left += pixels
                self.changed.notify_all()


MEMORY = Memory(MAX_PIXELS // 2)               # one large image, or many small ones


def digest(text: str) -> str:
    """Ten characters that stand for a text in a file's name."""
    return hashlib.sha1(text.encode(errors="surrogatepass")).hexdigest()[:10]


def decode_all(scenes: list, frames: list[list[int]], quiet: bool = False) -> list[list[int]]:
    """Decode every frame of scenes that is not in the cache yet, on all cores (on fewer where images are
    large), with progress: the first pass over the files, after which training reads decoded frames only.
    frames: indices for each scene. Returns them without those that cannot be read (Scene.skip)."""
    todo = [(scene, i) for scene, indices in zip(scenes, frames) for i in indices if not scene.cached(i)]
    if todo:
        largest = max(h * w for h, w in {scene.full_size for scene, _ in todo})
        # each thread may keep the memory of its largest image
        with ThreadPoolExecutor(max(1, min(os.cpu_count() or 1, MEMORY.total // largest))) as pool, \
                tqdm(total=len(todo), desc="decoding frames, first time only", unit="frame", disable=quiet,
                     mininterval=0.5 if sys.stderr.isatty() else 15) as bar:
            for (scene, i), error in zip(todo, pool.map(lambda one: one[0].attempt(one[1]), todo)):
                if error:
                    scene.skip(scene.frames[i], error)
                bar.update()
    for scene, indices in zip(scenes, frames):
        scene.check_ids([one for one in todo if one[0] is scene], len(indices))
    return [scene.readable(indices) for scene, indices in zip(scenes, frames)]


def say_where_frames_are_close(scenes: list) -> None:
    """Say in one line which scenes have neighbouring frames that are less than CLOSE apart (the median), and
    an --every that takes some 5 cm from one to the next. far of a scene in a unit of its own is 8 m."""
    close, every = [], 1
    for scene in scenes:
        steps = np.linalg.norm(np.diff(scene.poses[:, :3, 3], axis=0), axis=1)        # (N - 1,)
        unit = scene.near_far[1] / 8 if scene.near_far else 1
        metres = float(np.median(steps)) / unit if len(steps) else CLOSE
        if metres < CLOSE:
            close.append(scene.name)
            every = max(every, scene.every * math.ceil(0.05 / max(metres, 0.005)))    # 10 times at most
    if close:
        names = ", ".join(close[:4]) + ", ..." * (len(close) > 4)
        say(f"FRAMES ARE CLOSE: neighbours are less than {100 * CLOSE:g} cm apart in {names}: a test view is "
            f"nearly a source view and its figures flatter; train with --every {every}, a frame in {every}")
