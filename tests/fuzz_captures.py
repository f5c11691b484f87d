"""Captures for tests/fuzz.py: the box of conftest.py as other programs write it, in many spellings.

Each is honest: what it says is enough to know every pixel, or it must be refused. write(folder, rng) ->
Truth. tests/fuzz_check.py compares what was imported with it.
"""
import json
import math
import shutil
import struct
from functools import cache
from importlib import import_module
from typing import NamedTuple

import imageio.v3 as iio
import numpy as np
from captures import SIZE, K, colours, intrinsics, pinhole, through_lens
from captures import frames as listed
from conftest import camera, photograph

lens_of, models = import_module("test_tool_import_lens"), import_module("test_tool_import_colmap")
imports, cases = import_module("test_tool_import"), import_module("test_cases")
COUNT = 22
HOLE = cases.HOLE
WIDE = np.array([[40.0, 0, 31.5], [0, 40.0, 23.5], [0, 0, 1]])
RADIAL, FISHEYE = lens_of.LENS, dict(k1=-0.12, k2=0.02, k3=0.003, k4=-0.001)
OPENCV = dict(k1=0.1, k2=-0.03, p1=0.002, p2=-0.002)


class Truth(NamedTuple):
    """made: how many photographs a capture speaks of. refused: it must not come in. every: what to import
    it with."""
    made: int
    refused: bool = False
    every: int = 1
    layout: str = ""


@cache
def rays(lens: str) -> np.ndarray:
    """Of the pixels of a camera with this lens, (H, W, 3)."""
    if lens == "fisheye":
        return through_lens(WIDE, lens_of.equidistant(*FISHEYE.values()))
    if lens == "opencv":
        return through_lens(K, lens_of.radial(**{"k3": 0, "k4": 0, **OPENCV}))
    return pinhole(K) if lens == "pinhole" else through_lens(K, lens_of.radial(**RADIAL))


def half(image: np.ndarray) -> np.ndarray:
    """An image of half the size: the mean of four pixels."""
    h, w = image.shape[:2]
    return image.reshape(h // 2, 2, w // 2, 2, 3).mean((1, 3)).round().astype(np.uint8)


def write_images(folder, lens="pinhole", count=COUNT, smaller=False, spoilt=False) -> None:
    """0000.png ... of the box. spoilt: red where HOLE is black."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        image = colours(rays(lens), camera(i))
        image[(HOLE == 0) & spoilt] = 255, 0, 0
        iio.imwrite(folder / f"{i:04d}.png", half(image) if smaller else image)


def write_masks(folder, end=".png") -> None:
    """masks/0000.png ...: black where the images are red."""
    (folder / "masks").mkdir()
    for i in range(COUNT):
        iio.imwrite(folder / f"masks/{i:04d}{end}", HOLE)


# ------------------------------------------------------------------------ what a transforms.json may say, too

class Draft:
    """A capture of nerfstudio's before it is written."""

    def __init__(self, folder, rng):
        self.folder, self.rng, self.meta, self.frames = folder, rng, intrinsics(), listed(COUNT)
        self.lens, self.spoilt, self.smaller, self.refused, self.prefix = "pinhole", False, False, False, ""
        self.after, self.files = [], {}       # steps once the images are there; {name: frames} of the files


def lens(draft):
    """Distortion, in one of the spellings that are read."""
    spelling = draft.rng.choice(["names", "list", "frames", "fisheye", "is_fisheye"])
    draft.lens = "fisheye" if "fisheye" in spelling else "radial"
    if spelling == "names":
        draft.meta |= RADIAL
    elif spelling == "list":
        draft.meta["distortion_params"] = list(RADIAL.values())
    elif spelling == "frames":
        draft.meta["k1"] = 0.5                # the file's, which the frames' own replace
        draft.frames = [frame | RADIAL for frame in draft.frames]
    else:
        flag = {"is_fisheye": True} if spelling == "is_fisheye" else {"camera_model": "OPENCV_FISHEYE"}
        draft.meta |= intrinsics(WIDE) | FISHEYE | flag


def angles(draft):
    """The focal length in another key."""
    for axis, side in (("x", "w"), ("y", "h")):
        angle = 2 * math.atan(draft.meta[side] / 2 / draft.meta.pop(f"fl_{axis}"))
        spelled = {f"camera_angle_{axis}": angle}, {f"{axis}_fov": math.degrees(angle)}
        draft.meta |= draft.rng.choice(spelled)
    if draft.rng.random() < 0.3:              # square pixels need but one
        del draft.meta[next(key for key in draft.meta if key in ("camera_angle_y", "y_fov"))]


def in_frames(draft):
    """The camera in every frame, and another one in the file."""
    draft.frames = [{**draft.meta, **frame} for frame in draft.frames]
    draft.meta = {key: 1.5 * value if key in ("fl_x", "fl_y") else value for key, value in draft.meta.items()}


def other_size(draft):
    """Numbers for images of another size, which w and h name, or nothing."""
    factor = draft.rng.choice([0.5, 0.8, 1.25, 2, 4])
    keys = {"w", "h", "cx", "cy", "fl_x", "fl_y"} & set(draft.meta)
    draft.meta |= {key: factor * draft.meta[key] for key in keys}
    if draft.rng.random() < 0.5:
        del draft.meta["w"], draft.meta["h"]


def stranger(draft):
    """A key that touches the camera and that nobody reads here."""
    key, value = draft.rng.choice([("k5", 0.01), ("ftheta_p0", 0.1), ("equirectangular", True), ("fov", 30),
                                   ("lens", "wide"), ("rolling_shutter_time", 0.1), ("K", [[1, 0], [0, 1]]),
                                   ("camera_model", "FULL_OPENCV"), ("orthographic", 1), ("skew", 0.3)])
    draft.rng.choice([draft.meta, draft.frames[5]])[key] = value
    draft.refused = True


def harmless(draft):
    """Keys that say nothing of the camera."""
    draft.meta |= {"aabb_scale": 16, "comment": "by hand", "k5": 0, "equirectangular": False}
    draft.frames = [frame | {"sharpness": 20.5, "colmap_im_id": 3} for frame in draft.frames]


def twice(draft):
    """Photographs listed again, or copied under another name."""
    draft.frames += draft.frames[:draft.rng.randint(1, 5)]
    copied = f"copy{draft.rng.choice(['.png', 'of.PNG'])}"
    draft.frames.append(draft.frames[7] | {"file_path": f"images/{copied}"})
    draft.after.insert(0, lambda images: shutil.copy(images / "0007.png", images / copied))


def gone(draft):
    """Listed images that are not there: a few, or most."""
    lost = draft.rng.sample(range(COUNT), draft.rng.choice([1, 3, 15]))
    draft.after.append(lambda images: [(images / f"{i:04d}.png").unlink() for i in lost])


def bad(draft):
    """Frames that the capture itself calls bad: another pose."""
    for i in (2, 11):
        draft.frames[i] = draft.frames[i] | {"is_bad": True, "transform_matrix": np.eye(4).tolist()}


def masks(draft):
    """Something moves in the photographs, and masks say where."""
    draft.spoilt, kind = True, draft.rng.choice(["path", "beside", "dynamic"])
    if kind == "path":
        draft.frames = [frame | {"mask_path": frame["file_path"].replace("images", "masks")}
                        for frame in draft.frames]
    if kind == "dynamic":
        draft.after.append(lambda images: [iio.imwrite(images / f"dynamic_mask_{i:04d}.png", 255 - HOLE)
                                           for i in range(COUNT)])
    else:
        write_masks(draft.folder, draft.rng.choice([".png", ".png.png"]) if kind == "beside" else ".png")


def lists(draft):
    """Lists of names; a photograph may be in two, or in none."""
    names = [f"images/{i:04d}.png" for i in range(COUNT)]
    draft.meta |= {"train_filenames": names[:16], "val_filenames": names[15:18],
                   "test_filenames": names[17:-2]}


def test_frames(draft):
    """ScanNet++'s list of test frames."""
    draft.meta["test_frames"], draft.frames = draft.frames[17:], draft.frames[:17]


def files(draft):
    """NeRF's three files, perhaps with all once more beside them."""
    draft.files = {"transforms_train.json": draft.frames[:14], "transforms_val.json": draft.frames[14:16],
                   "transforms_test.json": draft.frames[16:]}
    if draft.rng.random() < 0.5:
        draft.files["transforms_all.json"] = draft.frames


def elsewhere(draft):
    """Names that begin in another folder, or have no ending."""
    start = draft.rng.choice(["/home/me/capture/", "../capture/", "C:\\me\\", "./"])
    draft.frames = [frame | {"file_path": start + frame["file_path"]} for frame in draft.frames]


def no_ending(draft):
    """Names as NeRF's own scenes have them."""
    draft.frames = [frame | {"file_path": frame["file_path"].removesuffix(".png")} for frame in draft.frames]


def marked(draft):
    """A byte order mark."""
    draft.prefix = "\ufeff"


def halves(draft):
    """images_2 alone is kept."""
    draft.smaller = True


def depths(draft):
    """Depth maps, in a unit of their own."""
    unit = draft.rng.choice([0.001, 0.0002])
    draft.meta["depth_unit_scale_factor"] = unit
    (draft.folder / "depth").mkdir()
    for i, frame in enumerate(draft.frames):
        frame["depth_file_path"] = f"depth/{i:04d}.png"
        z = photograph(K, camera(i), *SIZE)[1]
        iio.imwrite(draft.folder / f"depth/{i:04d}.png", (z / unit).round().astype(np.uint16))


FIRST = [lens, depths, bad, None, None]                                       # before frames are moved
THEN = [angles, in_frames, other_size, None, None]
MORE = [stranger, harmless, twice, gone, masks, elsewhere, no_ending, marked, halves]
LAST = [lists, test_frames, files, None, None]


def nerfstudio(folder, rng) -> Truth:
    """transforms.json, or three, with images/ or images_2/."""
    draft = Draft(folder, rng)
    chosen = [rng.choice(FIRST), rng.choice(THEN), *rng.sample(MORE, rng.choice([0, 1, 1, 2])),
              rng.choice(LAST)]
    for step in filter(None, chosen):
        step(draft)
    smaller = draft.smaller and not (draft.spoilt or draft.after)
    images = folder / ("images_2" if smaller else "images")
    write_images(images, draft.lens, smaller=smaller, spoilt=draft.spoilt)
    for step in draft.after:
        step(images)
    for name, part in (draft.files or {"transforms.json": draft.frames}).items():
        text = json.dumps(draft.meta | {"frames": part})
        (folder / name).write_text(draft.prefix + text, encoding="utf-8")
    total = sum(map(len, draft.files.values())) or len(draft.frames) + len(draft.meta.get("test_frames", []))
    return Truth(total, draft.refused)


# ------------------------------------------------------------------------------------------ the other layouts

def colmap(folder, rng, binary=None) -> Truth:
    """A sparse model: one or two cameras of several kinds, images that it does not know, of half the size."""
    kind = rng.choice(["PINHOLE", "SIMPLE_PINHOLE", "OPENCV", "OPENCV_FISHEYE", "two"])
    straight = kind not in ("OPENCV", "OPENCV_FISHEYE")
    smaller, extra = straight and rng.random() < 0.3, rng.choice([0, 0, 2])
    masked = not smaller and rng.random() < 0.3
    look = {"OPENCV": "opencv", "OPENCV_FISHEYE": "fisheye"}.get(kind, "pinhole")
    write_images(folder / ("images_2" if smaller else "images"), look, COUNT, smaller, masked)
    if masked:
        write_masks(folder, rng.choice([".png", ".png.png"]))
    values = {"PINHOLE": [55.0, 55.0, 32.0, 24.0], "SIMPLE_PINHOLE": [55.0, 32.0, 24.0],
              "OPENCV": [55.0, 55.0, 32.0, 24.0, *OPENCV.values()],
              "OPENCV_FISHEYE": [40.0, 40.0, 32.0, 24.0, *FISHEYE.values()]}
    cameras = [(1, kind if kind != "two" else "PINHOLE", 64, 48, values.get(kind, values["PINHOLE"]))]
    if kind == "two":                         # the same lens, in numbers for images of twice the size
        cameras.append((9, "SIMPLE_PINHOLE", 128, 96, [110.0, 64.0, 48.0]))
    shots = [(cameras[i % len(cameras)][0], f"{i:04d}.png", camera(i), [-1]) for i in range(COUNT - extra)]
    rng.shuffle(shots)
    binary = rng.random() < 0.5 if binary is None else binary
    place = rng.choice(["sparse/0", "sparse", "colmap/sparse/0"])
    models.write_model(folder / place, cameras, shots, [], binary)
    if place == "sparse/0" and rng.random() < 0.3:
        models.write_model(folder / "sparse/1", cameras, shots[:3], [], binary)
    return Truth(COUNT)


def llff(folder, rng) -> Truth:
    """poses_bounds.npy; perhaps with a model beside it whose lens it does not know, or with images that have
    no pose."""
    rows, extra = cases.llff_rows(COUNT), rng.choice([0, 0, 2])
    if rng.random() < 0.4:
        truth = colmap(folder, rng)
        rows[:, 14] = 99                      # a focal length unlike COLMAP's
        np.save(folder / "poses_bounds.npy", rows)
        return truth
    smaller = rng.random() < 0.3
    images = folder / ("images_4" if smaller else "images")
    write_images(images, smaller=smaller)
    named = bool(extra) and rng.random() < 0.5
    if named:
        (folder / "view_imgs.txt").write_text("".join(f"{i:04d}.png\n" for i in range(COUNT - extra)))
    np.save(folder / "poses_bounds.npy", rows[:COUNT - extra])
    return Truth(COUNT, bool(extra) and not named)


def replica(folder, rng) -> Truth:
    """A sequence of Semantic-NeRF's Replica."""
    imports.write_replica(folder, cases_box, COUNT)
    return Truth(COUNT)


class cases_box:
    """What write_replica asks of the box."""
    photograph, camera = staticmethod(photograph), staticmethod(camera)


def sens(folder, rng) -> Truth:
    """A scan as it is downloaded, perhaps with labels, one frame lost; every second frame perhaps."""
    made = [(camera(i), iio.imwrite("<bytes>", colours(pinhole(K), camera(i)), extension=".png"),
             (1000 * photograph(K, camera(i), *SIZE)[1]).round().astype(np.uint16)) for i in range(COUNT)]
    if rng.random() < 0.5:
        made[4] = (np.full((4, 4), -np.inf), *made[4][1:])
    raw = imports.sens_bytes(made, K, K, SIZE, SIZE)
    scan = folder / "scene0000_00"
    scan.mkdir(parents=True)
    raw = raw.replace(struct.pack("<ii", 2, 1), struct.pack("<ii", 1, 1), 1)  # its images are png
    (scan / "scene0000_00.sens").write_bytes(raw)
    every = rng.choice([1, 2])
    return Truth(COUNT // every, every=every)


LAYOUTS = [nerfstudio, nerfstudio, nerfstudio, colmap, colmap, llff, replica, sens]


def write(folder, rng) -> Truth:
    """A capture of one of the layouts."""
    folder.mkdir(parents=True)
    layout = rng.choice(LAYOUTS)
    return layout(folder, rng)._replace(layout=layout.__name__)
