"""Other people's layouts, turned once into the one that 01 reads (ScanNet's export).

    python -m tools.import_scenes SOURCE --out data/NAME     one scene, or a folder of many
    python 07_train.py --scene data/NAME                     or 08_eval.py --checkpoint CKPT --scene data/NAME

support/layouts/ reads Blender, nerfstudio, LLFF, ScanNet downloads and Replica, and has a table of their
conventions. Here scenes are written.

Images are copied byte for byte wherever 01 can read them. Transparent ones go on white. Photographs with lens
distortion, or with cameras of their own, are resampled to one pinhole camera, as 01 expects, and that is
said. Scenes not known to be in metres get a near_far.txt: from depth maps, bounds or sparse points, else
guessed from the poses.

An interrupted import leaves whole scenes only, and the same command continues.
Test: pytest tests/test_tool_import.py
"""
import argparse
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import imageio.v3 as iio
import numpy as np
import torch
from tqdm import tqdm

from support.datasets import SIGNS, foreign_scenes, list_scenes, space
from support.files import DataError, read_image, run_script, write_atomically
from support.labels import CLASSES_CSV, LABELS_TSV, read_label_table
from support.layouts import Camera, Photo, image_size, llff, nerfstudio, replica, scannet_sens, sides

data = import_module("01_data")               # scale_intrinsics, project, Scene

BLENDER, LLFF, SENS, REPLICA = SIGNS
READERS = {BLENDER: nerfstudio.read, LLFF: llff.read, REPLICA: replica.read}
EVERY = {SENS: 10, REPLICA: 5}                # frames of a video; everything else: all
SPLITS = {SENS: ["scannet-60-10"], REPLICA: ["replica-8", "replica-12-6"]}
SPLIT_FILES = Path(__file__).resolve().parent.parent / "docs" / "splits"


class Written(NamedTuple):
    """What a scene's folder holds now: its frames' facts, (H, W); was anything transparent; ranges of
    depth."""
    frames: list[dict]
    size: tuple[int, int]
    transparent: bool = False
    ranges: list[tuple[float, float]] = []


class Range(NamedTuple):
    """near, far, and where they come from."""
    near: float
    far: float
    why: str


# ----------------------------------------------------------------------------------------------- near and far

def guess_near_far(c2w: np.ndarray, transparent: bool, where: str) -> Range:
    """From poses (N, 4, 4) alone. DataError where all cameras are in one place.

    Cameras that look at one thing, with the point nearest to all optical axes at depths z: from half the
    smallest to 1.5 times the largest; where images show a background too, from 0.3 to 5 times. Cameras that
    look around: from 0.2 to 6 times their farthest distance from their middle.
    """
    centre, forward = c2w[:, :3, 3], c2w[:, :3, 2]
    across = np.eye(3) - forward[:, :, None] * forward[:, None, :]  # (N, 3, 3): distance from each axis
    total = across.sum(0)
    point = np.linalg.pinv(total, rcond=1e-6) @ (across @ centre[:, :, None])[..., 0].sum(0)
    z = ((point - centre) * forward).sum(1)                                   # (N,)
    off = np.linalg.norm((across @ (point - centre)[:, :, None])[..., 0], axis=1)
    radius = float(np.linalg.norm(centre - centre.mean(0), axis=1).max())
    if radius < 1e-6:
        raise DataError(f"{where}: all cameras are in one place: near and far cannot be told; give "
                        "--near and --far")
    if z.min() > 0 and off.mean() < 0.3 * z.mean() and np.linalg.cond(total) < 1e4:
        near, far = (0.5, 1.5) if transparent else (0.3, 5)
        return Range(near * float(z.min()), far * float(z.max()),
                     "guessed from the poses: the cameras look at one thing")
    return Range(0.2 * radius, 6 * radius, "guessed from the poses: how far the cameras move")


def points_near_far(folder: Path, photos: list[Photo]) -> Range | None:
    """From the sparse points that nerfstudio leaves beside a capture: the 2nd and 98th percentile of their
    depths in the images, with a margin of a fifth. None if there are none."""
    named = nerfstudio.read_points(folder)
    if named is None:
        return None
    name, points = named
    K = torch.from_numpy(np.stack([p.camera.matrix() for p in photos])).float()
    c2w = torch.from_numpy(np.stack([p.c2w for p in photos])).float()
    uv, z = data.project(torch.from_numpy(points).float(), K, c2w)            # (P, N, 2), (P, N)
    h, w = image_size(photos[0].image)
    z = z[(z > 0) & (uv >= 0).all(-1) & (uv[..., 0] < w) & (uv[..., 1] < h)].numpy()
    low, high = np.percentile(z, (2, 98)) if len(z) > 100 else (0, 0)
    if 0 < low < high < np.inf:
        return Range(0.8 * float(low), 1.2 * float(high), f"from the points of {name}")


def found_near_far(layout: str, source: Path, photos: list[Photo], written: Written) -> Range | None:
    """What the capture says of near and far, or lets us guess; None where it is in metres."""
    if layout == LLFF:
        bounds = llff.read_rows(source)[:, 15:]
        return Range(0.9 * float(bounds[:, 0].min()), float(bounds[:, 1].max()), "from the bounds")
    if layout != BLENDER:
        return None
    if written.ranges:                        # (1st, 99th percentile) of each frame's depth, with a margin
        lows, highs = zip(*written.ranges)
        return Range(0.9 * min(lows), 1.1 * max(highs), "from the depth maps")
    poses = np.stack([p.c2w for p in photos])
    return points_near_far(source, photos) or guess_near_far(poses, written.transparent, str(source))


def chosen_near_far(found: Range | None, near: float | None, far: float | None, source: Path) -> Range | None:
    """--near and --far over what was found. None: metres, and 07's own range."""
    if not (near or far or found):
        return None
    why = found.why if found else "metres"
    if near and far:
        why = "as you said"
    elif near or far:
        why += ", and as you said"
    low, high, _ = found or (0.3, 8.0, "")
    near, far = near or low, far or high
    if not 0 < near < far < 1e9:
        raise DataError(f"{source}: near {near:.4g} and far {far:.4g} ({why}) are no range; give --near and "
                        "--far")
    return Range(near, far, why)


# -------------------------------------------------------------------------------------------- writing a scene

@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside it, renamed to `folder` at the end: the scene appears whole or not at all."""
    temporary = folder.with_name(f".{folder.name}.importing")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        for part in ("color", "pose", "intrinsic"):
            (temporary / part).mkdir(parents=True)
        yield temporary
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
    cmyk = channels == 4 and path.read_bytes()[:3] == b"\xff\xd8\xff"
    if image.dtype != np.uint8 or channels > 4 or cmyk:
        raise DataError(f"{path}: {image.dtype}, {channels} channels; save it as 8-bit RGB")
    return image.reshape(*size, channels)


def write_colour(folder: Path, photo: Photo, target: Camera, size: tuple[int, int]) -> bool:
    """Copy a photo's image, or where it cannot be copied write it as png -> was anything of it
    transparent?"""
    image = checked_image(photo.image, size)
    channels = image.shape[2]
    alpha = image[..., -1:] if channels in (2, 4) else None
    transparent, copied = alpha is not None and bool((alpha < 255).any()), channels >= 3
    image = image[..., :3] if channels >= 3 else np.repeat(image[..., :1], 3, axis=2)
    if transparent:
        share = alpha / 255.0
        image, copied = (image * share + 255 * (1 - share)).round().astype(np.uint8), False
    if photo.camera != target:
        image, copied = nerfstudio.resample(image, photo.camera, target), False
    if copied:
        raw = photo.image.read_bytes()
        end = ".jpg" if raw.startswith(b"\xff\xd8\xff") else ".png"
        (folder / "color" / f"{photo.number}{end}").write_bytes(raw)
    else:
        iio.imwrite(folder / "color" / f"{photo.number}.png", image, compress_level=3)
    return transparent


def write_map(folder: Path, kind: str, photo: Photo, source: Path, target: Camera) -> np.ndarray:
    """Copy a depth or label map (one channel png) -> its values (h, w)."""
    values = read_image(source)
    if values.ndim != 2 or values.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{source}: not a png of one channel (8 or 16 bits); export it again")
    (folder / kind).mkdir(exist_ok=True)
    path = folder / kind / f"{photo.number}.png"
    if photo.camera == target:
        path.write_bytes(source.read_bytes())
        return values
    size = image_size(photo.image)
    if values.shape != size:
        raise DataError(f"{source}: {sides(values.shape)}, its image {sides(size)}; with lens distortion "
                        "they must agree")
    resampled = nerfstudio.resample(values.astype(np.int32), photo.camera, target, "nearest")
    values = resampled.astype(values.dtype)
    iio.imwrite(path, values)
    return values


def write_photos(folder: Path, photos: list[Photo], name: str, where: str) -> Written:
    """Write a scene's photos. Ranges of depth are in units of 1000 counts."""
    size = image_size(photos[0].image)
    target = nerfstudio.one_camera([p.camera for p in photos], size, where)
    changed = sum(p.camera != target for p in photos)
    if changed:
        print(f"  {changed} of {len(photos)} images have lens distortion or a camera of their own: resampled "
              f"to one pinhole camera (focal length {target.fx:.1f}, {target.fy:.1f})", flush=True)
    frames, transparent, ranges, depth_size, top = [], False, [], None, 0
    for photo in bar(photos, name, len(photos)):
        transparent |= write_colour(folder, photo, target, size)
        write_matrix(folder / "pose" / f"{photo.number}.txt", photo.c2w)
        if photo.depth:
            depth = write_map(folder, "depth", photo, photo.depth, target)
            if depth_size not in (None, depth.shape):
                raise DataError(f"{photo.depth}: {sides(depth.shape)}, others {sides(depth_size)}; export "
                                "it again")
            depth_size = depth.shape
            if (depth > 0).any():
                ranges.append(tuple(np.percentile(depth[depth > 0], (1, 99)) / 1000))
        if photo.label:
            top = max(top, int(write_map(folder, "label-filt", photo, photo.label, target).max()))
        frames.append({"number": photo.number, "image": photo.image.name})
        if photo.split:
            frames[-1]["split"] = photo.split
    if top > len(replica.CLASSES):
        raise DataError(f"{where}: holds label {top}, Replica's classes are 0 to {len(replica.CLASSES)}: "
                        "another label set")
    write_matrix(folder / "intrinsic" / "intrinsic_color.txt", target.matrix())
    if depth_size:
        K = data.scale_intrinsics(torch.from_numpy(target.matrix()), size, depth_size).numpy()
        write_matrix(folder / "intrinsic" / "intrinsic_depth.txt", K)
    return Written(frames, size, transparent, ranges)


def write_sens(folder: Path, path: Path, name: str, every: int) -> Written:
    """Write scene0000_00.sens, and its labels if the zip lies beside it."""
    labels = path.with_name(f"{path.stem}_2d-label-filt.zip")
    read_label = scannet_sens.label_reader(labels) if labels.is_file() else None
    for part in ["depth"] + ["label-filt"] * bool(read_label):
        (folder / part).mkdir()
    frames = []
    with open(path, "rb") as file:
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
                where = f"{labels}: label-filt/{i}.png"
                if write_whole(folder / "label-filt" / f"{i}.png", read_label(i), where).ndim != 2:
                    raise DataError(f"{where} has several channels; download it again")
            frames.append({"number": i})
    return Written(frames, header.size)


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
    if path.is_file() and path.read_bytes() != text:
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
    write_atomically(out / LABELS_TSV, lambda file: file.write(table.read_bytes()))


def write_labels(layout: str, jobs: list[tuple[Path, str]], out: Path) -> None:
    """The label set of scenes that have labels, beside them. DataError if another one is there."""
    zips = [path.with_name(f"{path.stem}_2d-label-filt.zip") for path, _ in jobs if path.is_file()]
    labelled = layout == REPLICA or any(path.is_file() for path in zips)
    if labelled and (out / (LABELS_TSV if layout == REPLICA else CLASSES_CSV)).is_file():
        raise DataError(f"{out}: its scenes have another label set; choose another --out")
    if layout == REPLICA:
        write_replica_classes(out)
    elif labelled:
        copy_label_table(jobs[0][0].parent, out)


def write_split(layout: str, out: Path) -> None:
    """split.txt beside the scenes, if this project has one that knows all of them: ScanNet's 60 / 10,
    Replica's 12 / 6 or 6 / 2."""
    spaces = {space(name) for name in list_scenes(out)}
    for name in SPLITS.get(layout, []):
        text = (SPLIT_FILES / f"{name}.txt").read_text()
        if spaces <= {line.split()[1] for line in text.splitlines() if line.startswith(("train ", "test "))}:
            if not (out / "split.txt").exists() or (out / "split.txt").read_text().startswith("# S-Ray"):
                write_atomically(out / "split.txt", lambda file: file.write(text.encode()))
                print(f"{out / 'split.txt'}: {text.splitlines()[0].removeprefix('# ')}")
            return


# ------------------------------------------------------------------------------------------- the command line

def import_scene(layout: str, source: Path, folder: Path, every: int, near: float | None,
                 far: float | None) -> str:
    """Write one scene into `folder` (not there yet) -> a line that says what it holds."""
    with whole_folder(folder) as temporary:
        found = None
        if layout == SENS:
            written = write_sens(temporary, source, folder.name, every)
        else:
            photos = READERS[layout](source, every)
            if not photos:
                raise DataError(f"{source}: not one frame in it")
            written = write_photos(temporary, photos, folder.name, str(source))
            found = None if near and far else found_near_far(layout, source, photos, written)
        depths = chosen_near_far(found, near, far, source)
        if depths:
            (temporary / "near_far.txt").write_text(f"{depths.near:.6g} {depths.far:.6g}\n")
        about = {"source": source.name, "layout": layout, "every": every, "frames": written.frames}
        (temporary / "import.json").write_text(json.dumps(about, indent=1))
        has = {kind: (temporary / kind).is_dir() for kind in ("label-filt", "depth")}
        try:
            scene = data.Scene(temporary, *written.size)  # what 01 would refuse, it refuses now
        except DataError as error:
            raise DataError(str(error).replace(str(temporary), str(source))) from None
    return summary(folder, written, len(scene), depths, has["label-filt"], has["depth"])


def summary(folder: Path, written: Written, usable: int, depths: Range | None, labels: bool,
            depth: bool) -> str:
    """The line that says what an imported scene holds."""
    lost = len(written.frames) - usable
    splits = [frame["split"] for frame in written.frames if "split" in frame]
    counts = ", ".join(f"{splits.count(split)} {split}" for split in dict.fromkeys(splits))
    line = f"{folder}: {usable} frames of {sides(written.size)}"
    if lost:
        line += f" ({lost} more without a pose)"
    if counts:
        line += f" ({counts})"
    line += f", {'' if labels else 'no '}labels, {'' if depth else 'no '}depth, "
    if depths:
        line += f"near {depths.near:.4g}, far {depths.far:.4g} "
        line += f"({depths.why}; edit near_far.txt if you know better)"
    else:
        line += "in metres"
    if usable < 20:
        line += f"\n  only {usable} usable frames: evaluation and fine-tuning take 20"
    return line


def scene_jobs(layout: str, folders: list[Path]) -> list[tuple[Path, str]]:
    """What to import, under which name: each .sens, each of Replica's sequences, else each folder."""
    jobs = []
    for folder in folders:
        name = re.sub(r"[^\w.-]", "_", folder.resolve().name).lstrip(".") or "scene"
        if layout == SENS:
            jobs += [(path, path.stem) for path in sorted(folder.glob("*.sens"))]
        elif layout == REPLICA:               # room_0_01, room_0_02: two scans of one space
            jobs += [(folder / f"Sequence_{i}", f"{name}_{i:02d}") for i in (1, 2)
                     if (folder / f"Sequence_{i}" / "traj_w_c.txt").is_file()]
        else:
            jobs.append((folder, name))
    names = [name for _, name in jobs]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"two scenes are called {name}; import their folders one by one, with an "
                            "--out each")
    return jobs


def check_same(folder: Path, source: Path, layout: str, every: int) -> None:
    """DataError if the scene that is there was not imported from the same source in the same way."""
    try:
        about = json.loads((folder / "import.json").read_text())
        there = {key: about.get(key) for key in ("source", "layout", "every")}
    except (OSError, ValueError, AttributeError):
        there = {}
    if there != {"source": source.name, "layout": layout, "every": every}:
        raise DataError(f"{folder}: a scene that was not imported from here, or with another --every; delete "
                        "it or choose another --out")


def import_all(layout: str, jobs: list[tuple[Path, str]], out: Path, every: int, near: float | None,
               far: float | None) -> None:
    """Import every scene that is not there yet. One bad scan of many does not stop the others; DataError at
    the end names them."""
    failed = []
    for path, name in jobs:
        if (out / name).exists():
            check_same(out / name, path, layout, every)
            print(f"{out / name}: there already; kept (delete the folder to import it again)")
            continue
        try:
            print(import_scene(layout, path, out / name, every, near, far), flush=True)
        except DataError as error:
            if len(jobs) == 1:
                raise
            failed.append(name)
            print(f"NOT IMPORTED: {error}", flush=True)
    if failed:
        some = ", ".join(failed[:5]) + ", ..." * (len(failed) > 5)
        raise DataError(f"{len(failed)} of {len(jobs)} scenes were not imported (reasons above): {some}; "
                        "mend or remove them, the same command goes on")


def recognise(source: Path) -> tuple[str, list[tuple[Path, str]]]:
    """The layout of --source and what to import of it. DataError where there is nothing."""
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    layout, folders = foreign_scenes(source)
    if layout is None and ((source / "color").is_dir() or any(source.glob("*/color"))):
        raise DataError(f"{source}: ScanNet's export already; use it as it is: "
                        f"python 07_train.py --scene {shlex.quote(str(source))}")
    if layout is None:
        known = "; ".join(f"{name}: {signs[0]}" for name, signs in SIGNS.items())
        raise DataError(f"{source}: no layout I know ({known}); README, \"Your own data\", has examples")
    jobs = scene_jobs(layout, folders)
    if source.is_file() and layout == SENS:
        jobs = [job for job in jobs if job[0].name == source.name]
    return layout, jobs


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
    layout, jobs = recognise(source)
    every = args.every or EVERY.get(layout, 1)
    print(f"{source}: recognised as {layout}, {len(jobs)} scene{'s' * (len(jobs) > 1)}"
          + f", one frame in {every}" * (every > 1), flush=True)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_labels(layout, jobs, out)
        import_all(layout, jobs, out, every, args.near, args.far)
        write_split(layout, out)
    except KeyboardInterrupt:
        raise DataError(f"interrupted; whole scenes in {out} stay, and the same command continues") from None
    except OSError as error:
        raise DataError(f"{error.filename or out}: {error.strerror or error}") from None
    print(f"next: python 07_train.py --scene {shlex.quote(str(out))}    or, with weights you have: "
          f"python 08_eval.py --checkpoint CKPT --scene {shlex.quote(str(out))}")


if __name__ == "__main__":
    run_script(main)
