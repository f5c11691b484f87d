"""Other people's layouts, turned once into the one that 01 reads (ScanNet's export).

    python -m tools.import_scenes SOURCE --out data/NAME     one scene, or a folder of many
    python 07_train.py --scene data/NAME                     or 08_eval.py --checkpoint CKPT --scene data/NAME

support/layouts/ reads Blender, nerfstudio, COLMAP, LLFF, ScanNet downloads and Replica, and has a table of
their conventions. Here scenes are written.

Images are copied byte for byte wherever 01 can read them. Transparent ones go on white. Photographs with lens
distortion, or with cameras of their own, are resampled to one pinhole camera, as 01 expects, and that is
said. A photograph that is there twice is taken once. Scenes not known to be in metres get a near_far.txt
(support/near_far.py). A capture's own split becomes the scene's split.txt, its masks mask/.

An interrupted import leaves whole scenes only, and the same command continues.
Test: pytest tests/test_tool_import.py
"""
import argparse
import hashlib
import os
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import imageio.v3 as iio
import numpy as np
import torch
from tqdm import tqdm

from support import near_far
from support.datasets import SIGNS, folders_below, foreign_scenes, is_export, is_scene, list_scenes, space
from support.files import (
    MAX_IMAGE_BYTES,
    DataError,
    open_file,
    read_bytes,
    read_image,
    read_json,
    read_text,
    run_script,
    write_atomically,
    write_json,
)
from support.folders import remove_parts, whole_folder
from support.labels import CLASSES_CSV, LABELS_TSV, read_label_table
from support.layouts import (
    Capture,
    Photo,
    Range,
    colmap,
    image_size,
    llff,
    nerfstudio,
    replica,
    scannet_sens,
    sides,
)
from support.lens import Camera, one_camera, resample
from support.strange import level, what_is

data = import_module("01_data")               # scale_intrinsics, project, Scene

BLENDER, COLMAP, LLFF, SENS, REPLICA = SIGNS
READERS = {BLENDER: nerfstudio.read, COLMAP: colmap.read, LLFF: llff.read, REPLICA: replica.read}
EVERY = {SENS: 10, REPLICA: 5}                # frames of a video; everything else: all
SPLITS = {SENS: ["scannet-60-10"], REPLICA: ["replica-8", "replica-12-6"]}
SPLIT_FILES = Path(__file__).resolve().parent.parent / "docs" / "splits"


class Job(NamedTuple):
    """One scene to import: its layout, its folder or .sens file, the name it gets."""
    layout: str
    source: Path
    name: str


class Written(NamedTuple):
    """What a scene's folder holds now: its frames' facts and poses; (H, W); K; was anything transparent;
    ranges of depth; lines to print."""
    frames: list[dict]
    poses: list[np.ndarray]
    size: tuple[int, int]
    K: np.ndarray
    transparent: bool
    ranges: list[tuple[float, float]]
    notes: list[str]


# -------------------------------------------------------------------------------------------- writing a scene

def bar(items, name: str, total: int):
    """The items, with progress."""
    return tqdm(items, desc=name, total=total, unit="frame", dynamic_ncols=True,
                mininterval=0.5 if sys.stderr.isatty() else 15)


def write_matrix(path: Path, matrix: np.ndarray) -> None:
    """K (3, 3) or a pose (4, 4) as ScanNet writes them: 4x4 numbers in text."""
    full = np.eye(4)
    full[:len(matrix), :len(matrix)] = matrix
    np.savetxt(path, full, fmt="%.10g")


def checked_image(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A photo's image, uint8. DataError if it is of another size, or of a kind that is no photograph."""
    image = read_image(path)
    channels = image.shape[2] if image.ndim == 3 else 1
    if image.shape[:2] != size:
        raise DataError(f"{path}: {sides(image.shape)}, but others of the scene are {sides(size)}; make "
                        "them one size")
    if image.dtype != np.uint8 or channels > 4:
        raise DataError(f"{path}: {image.dtype}, {channels} channels; save it as 8-bit RGB")
    return image.reshape(*size, channels)


def write_colour(folder: Path, photo: Photo, image: np.ndarray, target: Camera) -> bool:
    """Copy a photo's image, or where it cannot be copied write it as png -> was anything of it
    transparent?"""
    channels = image.shape[2]
    alpha = image[..., -1:] if channels in (2, 4) else None
    transparent, copied = alpha is not None and bool((alpha < 255).any()), channels >= 3
    image = image[..., :3] if channels >= 3 else np.repeat(image[..., :1], 3, axis=2)
    if transparent:
        share = alpha / 255.0
        image, copied = (image * share + 255 * (1 - share)).round().astype(np.uint8), False
    if photo.camera != target:
        image, copied = resample(image, photo.camera, target), False
    if copied:
        raw = read_bytes(photo.image, MAX_IMAGE_BYTES)
        end = ".jpg" if raw.startswith(b"\xff\xd8\xff") else ".png"
        (folder / "color" / f"{photo.number}{end}").write_bytes(raw)
    else:
        iio.imwrite(folder / "color" / f"{photo.number}.png", image, compress_level=3)
    return transparent


def write_depth(folder: Path, photo: Photo, target: Camera) -> np.ndarray:
    """Write a depth map, in 1/1000 of the scene's unit -> its values (h, w)."""
    if abs(photo.depth_scale - 0.001) < 1e-9:
        return write_map(folder, "depth", photo, photo.depth, target)
    values = one_channel(photo.depth).astype(np.float64) * photo.depth_scale * 1000
    if values.max() > 65535:
        raise DataError(f"{photo.depth}: reaches {values.max() / 1000:.0f} units, more than 16 bits of "
                        f"1/1000 hold; "
                        "scale the capture, or leave the depth out")
    return write_map(folder, "depth", photo, photo.depth, target, values.round().astype(np.uint16))


def one_channel(path: Path) -> np.ndarray:
    """A depth or label map (h, w), 8 or 16 bits. DataError for anything else."""
    values = read_image(path)
    if values.ndim != 2 or values.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{path}: not a png of one channel (8 or 16 bits); export it again")
    return values


def write_map(folder: Path, kind: str, photo: Photo, source: Path, target: Camera,
              values: np.ndarray | None = None) -> np.ndarray:
    """Copy a depth or label map, or write these values of it -> its values (h, w)."""
    copied = values is None
    values = one_channel(source) if copied else values
    (folder / kind).mkdir(exist_ok=True)
    path = folder / kind / f"{photo.number}.png"
    if photo.camera != target:
        size = image_size(photo.image)
        if values.shape != size:
            raise DataError(f"{source}: {sides(values.shape)}, its image {sides(size)}; with lens distortion "
                            "they must agree")
        resampled = resample(values.astype(np.int32), photo.camera, target, "nearest")
        values, copied = resampled.astype(values.dtype), False
    if copied:
        path.write_bytes(read_bytes(source, MAX_IMAGE_BYTES))
    else:
        iio.imwrite(path, values)
    return values


def write_mask(folder: Path, photo: Photo, size: tuple[int, int], target: Camera) -> float:
    """Write which pixels are to be used (255) and which not (0) -> the share of those that are not."""
    image = read_image(photo.mask)
    if image.ndim == 3 and image.shape[2] in (2, 4) and image[..., -1].min() < 255:
        raise DataError(f"{photo.mask}: a mask with transparency; save it as black and white")
    keep = (image if image.ndim == 2 else image[..., :3].max(-1)) > 0
    h, w = keep.shape
    if abs(h / size[0] / (w / size[1]) - 1) > 0.02:
        raise DataError(f"{photo.mask}: {sides(keep.shape)}, its image {sides(size)}; export it again")
    keep = keep if not photo.mask_inverted else ~keep
    if keep.shape != size:
        keep = keep[data.nearest_pixels(size[0], h)[:, None], data.nearest_pixels(size[1], w)]
    mask = np.where(keep, np.uint8(255), np.uint8(0))
    write_map(folder, "mask", photo, photo.mask, target, mask)
    return 1 - float(keep.mean())


def write_photos(folder: Path, photos: list[Photo], name: str, where: str) -> Written:
    """Write a scene's photos. Ranges of depth are in units of 1000 counts."""
    size = image_size(photos[0].image)
    target = one_camera([p.camera for p in photos], size, where)
    changed = sum(p.camera != target for p in photos)
    notes = [f"{changed} of {len(photos)} images have lens distortion or a camera of their own: resampled "
             f"to one "
             f"pinhole camera (focal length {target.fx:.1f}, {target.fy:.1f})"] * bool(changed)
    notes += check_upright(photos, size)
    written = Written([], [], size, target.matrix(), False, [], notes)
    known, masked, transparent = set(), [], False
    for photo in bar(photos, name, len(photos)):
        image = checked_image(photo.image, size)
        digest = hashlib.sha256(image.tobytes()).digest()
        if digest in known:
            continue
        known.add(digest)
        transparent |= write_colour(folder, photo, image, target)
        write_matrix(folder / "pose" / f"{photo.number}.txt", photo.c2w)
        if photo.mask:
            masked.append(write_mask(folder, photo, size, target))
        written.poses.append(photo.c2w)
        written.frames.append({"number": photo.number, "image": photo.image.name}
                              | ({"split": photo.split} if photo.split else {}))
    kept = {frame["number"] for frame in written.frames}
    if len(kept) < len(photos):
        notes.append(f"{len(photos) - len(kept)} photographs are there twice: taken once")
    if masked:
        notes.append(f"{len(masked)} masks: {100 * sum(masked) / len(kept):.1f}% of all pixels are no truth "
                     f"and no "
                     "source")
    photos = [photo for photo in photos if photo.number in kept]
    write_maps(folder, photos, target, size, where, written.ranges)
    write_matrix(folder / "intrinsic" / "intrinsic_color.txt", target.matrix())
    return written._replace(transparent=transparent)


def check_upright(photos: list[Photo], size: tuple[int, int]) -> list[str]:
    """A line on images whose EXIF would turn them by 90 degrees, where their shape shows that the cameras are
    of the pixels as they are stored. DataError where it does not: square, or to be turned by 180 or
    mirrored."""
    turned = [(photo.image, orientation(photo.image)) for photo in photos]
    turned = [(image, code) for image, code in turned if code > 1]
    if not turned:
        return []
    for image, code in turned:
        if code < 5 or abs((size[0] / size[1]) ** 2 - 1) < 0.05:
            folder = shlex.quote(str(image.parent))
            raise DataError(f"{image}: has an EXIF orientation ({len(turned)} of {len(photos)} images), and "
                            "their shape does not tell whether the poses are of the pixels as stored (as "
                            f"COLMAP's) or of upright ones. As stored: exiftool -Orientation= {folder}; "
                            f"upright: mogrify -auto-orient {folder}/*")
    return [f"{len(turned)} images have an EXIF orientation: taken as their pixels are stored"]


def orientation(path: Path) -> int:
    """How an image's EXIF says that it is to be turned: 3 by 180 degrees, 6 and 8 by 90, 1 not at all; 2, 4,
    5 and 7 mirrored, too."""
    try:
        return int(iio.immeta(path, plugin="pillow", exclude_applied=False).get("Orientation", 1))
    except Exception:                         # no image: said elsewhere
        return 1


def write_maps(folder: Path, photos: list[Photo], target: Camera, size: tuple[int, int], where: str,
               ranges: list) -> None:
    """Write the depth and label maps of photos; adds the range of each depth map to `ranges`."""
    depth_size, top = None, 0
    for photo in photos:
        if photo.depth:
            depth = write_depth(folder, photo, target)
            if depth_size not in (None, depth.shape):
                raise DataError(f"{photo.depth}: {sides(depth.shape)}, others {sides(depth_size)}; export "
                                "it again")
            depth_size = depth.shape
            if (depth > 0).any():
                ranges.append(tuple(np.percentile(depth[depth > 0], (1, 99)) / 1000))
        if photo.label:
            top = max(top, int(write_map(folder, "label-filt", photo, photo.label, target).max()))
    if top > len(replica.CLASSES):
        raise DataError(f"{where}: holds label {top}, Replica's classes are 0 to {len(replica.CLASSES)}: "
                        "another label set")
    if depth_size:
        K = data.scale_intrinsics(torch.from_numpy(target.matrix()), size, depth_size).numpy()
        write_matrix(folder / "intrinsic" / "intrinsic_depth.txt", K)


def write_frame_split(folder: Path, frames: list[dict]) -> None:
    """The capture's own split, in lines 'train 3', 'test 7' of split.txt: no frame in another than train is
    trained on. Nothing where there is but one side."""
    lines = [f"{frame['split']} {frame['number']}\n" for frame in frames if "split" in frame]
    held = [line for line in lines if not line.startswith("train")]
    if held and len(held) < len(frames):
        (folder / "split.txt").write_text("".join(lines))


def write_sens(folder: Path, path: Path, name: str, every: int) -> Written:
    """Write scene0000_00.sens, and its labels if the zip, or what was in it, lies beside it."""
    labels, notes = scannet_sens.labels_of(path)
    read_label = scannet_sens.label_reader(labels) if labels else None
    for part in ["depth"] + ["label-filt"] * bool(read_label):
        (folder / part).mkdir()
    frames, poses = [], []
    with open_file(path, 2 ** 40) as file:
        header = scannet_sens.read_header(file, path)
        write_matrix(folder / "intrinsic" / "intrinsic_color.txt", header.K)
        write_matrix(folder / "intrinsic" / "intrinsic_depth.txt", header.depth_K)
        for frame in bar(scannet_sens.read_frames(file, path, header, every), name, header.count):
            if frame is None:
                continue
            i = frame.number
            colour = folder / "color" / f"{i}.{'jpg' if header.jpeg else 'png'}"
            where = f"{path}: the colour of frame {i} of {header.count}"
            if write_whole(colour, frame.colour, where).shape[:2] != header.size:
                raise DataError(f"{where} is not {sides(header.size)}; download it again")
            iio.imwrite(folder / "depth" / f"{i}.png", frame.depth, compress_level=1)
            write_matrix(folder / "pose" / f"{i}.txt", frame.c2w)
            if read_label:
                where = f"{labels}: {i}.png"
                if write_whole(folder / "label-filt" / f"{i}.png", read_label(i), where).ndim != 2:
                    raise DataError(f"{where} has several channels; download it again")
            frames.append({"number": i})
            poses.append(frame.c2w)
    return Written(frames, poses, header.size, header.K[:3, :3], False, [], notes)


def write_whole(path: Path, raw: bytes, what: str) -> np.ndarray:
    """Write an image as it is, not encoded again -> the image. DataError that names where it came from if it
    cannot be decoded."""
    path.write_bytes(raw)
    try:
        return read_image(path)
    except DataError:
        raise DataError(f"{what} cannot be decoded; download it again") from None


# ----------------------------------------------------------------------------------------- beside the scenes

def write_replica_classes(out: Path) -> None:
    """classes.csv with Replica's classes. DataError if there is another one."""
    path, text = out / CLASSES_CSV, replica.class_list().encode()
    if os.path.lexists(path) and read_bytes(path, 1_000_000) != text:
        raise DataError(f"{path}: not Replica's classes as written here; move it away or choose "
                        "another --out")
    if not path.is_file():
        write_atomically(path, lambda file: file.write(text))
    print(f"{path}: {len(replica.CLASSES)} classes, 0 is void: "
          + ", ".join(f"{i} {name}" for i, name in enumerate(replica.CLASSES, 1)))


def copy_label_table(source: Path, out: Path) -> None:
    """ScanNet's label table from the scan's folder or up to three above it, once. DataError if there is
    none."""
    if (out / LABELS_TSV).is_file():
        return
    places = [source.resolve(), *source.resolve().parents[:3]]
    table = next((p / LABELS_TSV for p in places if (p / LABELS_TSV).is_file()), None)
    if table is None:
        raise DataError(f"{source}: the scan has labels, but there is no {LABELS_TSV} beside it or above; "
                        "get it with ScanNet's download script and --label_map")
    read_label_table(table)
    write_atomically(out / LABELS_TSV, lambda file: file.write(read_bytes(table, 10_000_000)))


def write_labels(jobs: list[Job], out: Path) -> None:
    """The label set of scenes that have labels, beside them. DataError if another one is there."""
    scans = [job.source for job in jobs if job.layout == SENS and scannet_sens.labels_of(job.source)[0]]
    replicas = any(job.layout == REPLICA for job in jobs)
    for there, other in ((scans, CLASSES_CSV), (replicas, LABELS_TSV)):
        if there and (out / other).is_file() or scans and replicas:
            raise DataError(f"{out}: its scenes have another label set; choose another --out")
    if replicas:
        write_replica_classes(out)
    if scans:
        copy_label_table(scans[0].parent, out)


def write_split(layouts: set[str], out: Path) -> None:
    """split.txt beside the scenes, if this project has one that knows all of them: ScanNet's 60 / 10,
    Replica's 12 / 6 or 6 / 2."""
    spaces = {space(name) for name in list_scenes(out)}
    for name in [name for layout in layouts for name in SPLITS.get(layout, [])]:
        text = (SPLIT_FILES / f"{name}.txt").read_text()
        if spaces <= {line.split()[1] for line in text.splitlines() if line.startswith(("train ", "test "))}:
            path = out / "split.txt"
            if not os.path.lexists(path) or read_text(path, 10_000_000).startswith("# S-Ray"):
                write_atomically(out / "split.txt", lambda file: file.write(text.encode()))
                print(f"{out / 'split.txt'}: {text.splitlines()[0].removeprefix('# ')}")
            return


# ------------------------------------------------------------------------------------------- the command line

def import_scene(job: Job, folder: Path, every: int, near: float | None, far: float | None) -> str:
    """Write one scene into `folder` (not there yet) -> what to print of it."""
    with whole_folder(folder) as temporary:
        for part in ("color", "pose", "intrinsic"):
            (temporary / part).mkdir()
        capture = Capture([]) if job.layout == SENS else READERS[job.layout](job.source)
        if job.layout == SENS:
            written = write_sens(temporary, job.source, folder.name, every)
        elif capture.photos:
            written = write_photos(temporary, capture.photos[::every], folder.name, str(job.source))
        else:
            raise DataError(f"{job.source}: not one frame in it")
        write_frame_split(temporary, written.frames)
        depths = range_of(job, temporary, written, capture.range, near, far)
        if depths:
            (temporary / "near_far.txt").write_text(f"{depths.near:.6g} {depths.far:.6g}\n")
        about = {"source": job.source.name, "layout": job.layout, "every": every, "frames": written.frames}
        write_json(temporary / "import.json", about)
        has = {kind: (temporary / kind).is_dir() for kind in ("label-filt", "depth")}
        try:
            scene = data.Scene(temporary, *written.size)  # what 01 would refuse, it refuses now
            assert len(scene.K)
        except DataError as error:
            raise DataError(str(error).replace(str(temporary), str(job.source))) from None
    line = summary(folder, written, len(scene), depths, has["label-filt"], has["depth"])
    return "\n".join([line, *(f"  {note}" for note in capture.notes + written.notes)])


def range_of(job: Job, folder: Path, written: Written, known: Range | None, near: float | None,
             far: float | None) -> Range | None:
    """Near and far of what was written: as asked for, else found; None for ScanNet and Replica, in metres."""
    metres = job.layout in (SENS, REPLICA)
    found = None
    if not (metres or near and far):
        found = near_far.found(job.source, folder, np.stack(written.poses), written.K, written.ranges, known,
                               written.transparent)
    return near_far.chosen_near_far(found, near, far, job.source)


def summary(folder: Path, written: Written, usable: int, depths: Range | None, labels: bool,
            depth: bool) -> str:
    """The line that says what an imported scene holds."""
    lost = len(written.frames) - usable
    splits = [frame["split"] for frame in written.frames if "split" in frame]
    counts = ", ".join(f"{splits.count(split)} {split}" for split in dict.fromkeys(splits))
    wide = 2 * np.degrees(np.arctan(written.size[1] / 2 / written.K[0, 0]))
    line = f"{folder}: {usable} frames of {sides(written.size)}"
    if lost:
        line += f" ({lost} more without a pose)"
    if counts:
        line += f" ({counts})"
    line += f", {wide:.0f} degrees wide, {'' if labels else 'no '}labels, {'' if depth else 'no '}depth, "
    if depths:
        line += f"near {depths.near:.4g}, far {depths.far:.4g} "
        line += f"({depths.why}; edit near_far.txt if you know better)"
    else:
        line += "in metres"
    if usable < 20:
        line += f"\n  only {usable} usable frames: evaluation and fine-tuning take 20"
    return line


def scene_jobs(found: list[tuple[str, Path]]) -> list[Job]:
    """What to import, under which name: each .sens, else each folder. Where two would have one name, the
    folders above are added to it."""
    jobs = []
    for layout, folder in found:
        if layout == SENS:
            jobs += [Job(layout, path, path.stem) for path in sorted(folder.glob("*.sens"))]
        else:
            jobs.append(Job(layout, folder, scene_name(layout, folder.resolve())))
    names = [job.name for job in jobs]
    jobs = [job if names.count(job.name) == 1 else job._replace(name=clean(
        f"{job.source.resolve().parent.name}_{job.name}")) for job in jobs]
    names = [job.name for job in jobs]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"two scenes are called {name}; import their folders one by one, with an "
                            "--out each")
    return jobs


def clean(name: str) -> str:
    """A name for a folder."""
    return re.sub(r"[^\w.-]", "_", name).lstrip(".") or "scene"


def scene_name(layout: str, folder: Path) -> str:
    """The name of a folder's scene: its own; of Replica's sequences the room's, room_0_01 and room_0_02 (two
    scans of one space), and so of vMAP's room_0/imap/00; of ScanNet++'s dslr/nerfstudio the scan's."""
    sequence = re.fullmatch(r"Sequence_(\d+)", folder.name)
    if layout == REPLICA and sequence:
        return clean(f"{folder.parent.name}_{int(sequence[1]):02d}")
    if layout == REPLICA and folder.parent.name == "imap":
        return clean(f"{folder.parent.parent.name}_{folder.name}")
    if folder.parent.name == "dslr":
        return clean(folder.parent.parent.name)
    return clean(folder.name)


def check_same(folder: Path, source: Path, layout: str, every: int) -> None:
    """DataError if the scene that is there was not imported from the same source in the same way."""
    try:
        about = read_json(folder / "import.json")
        there = {key: about.get(key) for key in ("source", "layout", "every")}
    except (DataError, AttributeError):
        there = {}
    if folder.resolve() in (source.resolve(), *source.resolve().parents):
        raise DataError(f"{folder}: the download itself lies there; choose another --out")
    if there != {"source": source.name, "layout": layout, "every": every}:
        raise DataError(f"{folder}: a scene that was not imported from here, or with another --every; move "
                        "it away or choose another --out")


def import_all(jobs: list[Job], out: Path, args: argparse.Namespace) -> None:
    """Import every scene that is not there yet. One bad scan of many does not stop the others; DataError at
    the end names them."""
    failed = []
    for job in jobs:
        folder, every = out / job.name, args.every or EVERY.get(job.layout, 1)
        if folder.exists():
            check_same(folder, job.source, job.layout, every)
            print(f"{folder}: there already; kept (delete the folder to import it again)")
            continue
        try:
            print(import_scene(job, folder, every, args.near, args.far), flush=True)
        except DataError as error:
            if len(jobs) == 1:
                raise
            failed.append(job.name)
            print(f"NOT IMPORTED: {error}", flush=True)
    if failed:
        some = ", ".join(failed[:5]) + ", ..." * (len(failed) > 5)
        raise DataError(f"{len(failed)} of {len(jobs)} scenes were not imported (reasons above): {some}; "
                        "mend or remove them, the same command goes on")


def recognise(source: Path) -> list[Job]:
    """What to import of SOURCE. DataError where there is nothing."""
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    found = foreign_scenes(source)
    if not found and any(is_export(folder) for folder in folders_below(source, is_export)):
        raise DataError(level(source, is_scene) or f"{source}: ScanNet's export already; use it as it is: "
                        f"python 07_train.py --scene {shlex.quote(str(source))}")
    if not found:
        known = "; ".join(f"{name}: {signs[0]}" for name, signs in SIGNS.items())
        raise DataError(level(source, is_scene) or what_is(source) or
                        f"{source}: no layout I know ({known}); docs/data.md has examples")
    jobs = scene_jobs(found)
    if source.is_file() and found[0][0] == SENS:
        jobs = [job for job in jobs if job.source.name == source.name]
    return jobs


def left_out(source: Path, jobs: list[Job]) -> list[str]:
    """A line for each folder of images or videos right below SOURCE (or two below) that is not imported."""
    if not source.is_dir() or len(jobs) == 1 and jobs[0].source == source:
        return []
    taken = {job.source.parents[1] if job.source.parent.name == "dslr" else job.source for job in jobs}
    lines = []
    for folder in folders_below(source, is_scene, 3):
        inside = folder in taken or any(path in taken for path in (*folder.glob("*.sens"), *folder.parents))
        if is_export(folder):
            lines.append(f"{folder}: ScanNet's export already; use it as it is")
        elif not inside and not any(folder in path.parents for path in taken):
            what = what_is(folder)
            lines += [what] if what else []
    return list(dict.fromkeys(f"NOT IMPORTED: {line}" for line in lines))


def parse_arguments() -> argparse.Namespace:
    """The command line. DataError for a value that no import could use."""
    parser = argparse.ArgumentParser(prog="python -m tools.import_scenes", description=__doc__.split("\n")[0])
    parser.add_argument("source", metavar="SOURCE", help="a capture, a scan, or a folder of many")
    parser.add_argument("--out", required=True, help="folder for the scenes, like data/NAME")
    parser.add_argument("--every", type=int,
                        help="take every n-th frame [10 of ScanNet's videos, 5 of Replica's, else all]")
    parser.add_argument("--near", type=float,
                        help="nearest depth worth sampling, in the scene's units [found]")
    parser.add_argument("--far", type=float, help="and the farthest [found]")
    args = parser.parse_args()
    if args.every is not None and args.every < 1:
        raise DataError(f"--every {args.every}: must be at least 1")
    given = [x for x in (args.near, args.far) if x is not None]
    if not all(0 < x < 1e9 for x in given) or (len(given) == 2 and args.near >= args.far):
        raise DataError(f"--near {args.near} --far {args.far}: needs 0 < near < far")
    return args


def main() -> None:
    args = parse_arguments()
    source, out = Path(args.source), Path(args.out)
    jobs = recognise(source)
    for layout in dict.fromkeys(job.layout for job in jobs):
        count, every = sum(job.layout == layout for job in jobs), args.every or EVERY.get(layout, 1)
        print(f"{source}: recognised as {layout}, {count} scene{'s' * (count > 1)}"
              + f", one frame in {every}" * (every > 1), flush=True)
    for line in left_out(source, jobs):
        print(line, flush=True)
    try:
        out.mkdir(parents=True, exist_ok=True)
        remove_parts(out)                     # of an import that was killed
        write_labels(jobs, out)
        import_all(jobs, out, args)
        write_split({job.layout for job in jobs}, out)
    except KeyboardInterrupt:
        raise DataError(f"interrupted; whole scenes in {out} stay, and the same command continues") from None
    except OSError as error:
        raise DataError(f"{error.filename or out}: {error.strerror or error}") from None
    print(f"next: python 07_train.py --scene {shlex.quote(str(out))}    or, with weights you have: "
          f"python 08_eval.py --checkpoint CKPT --scene {shlex.quote(str(out))}")


if __name__ == "__main__":
    run_script(main)
