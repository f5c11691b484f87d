"""tests/fuzz_check.py notices what it is there for: the import is broken in ways that misread in silence, and
some of the fuzz's captures come out wrong."""
import random
from importlib import import_module

import numpy as np
import pytest

pytest.importorskip("resource", reason="POSIX only")
fuzz = import_module("fuzz")
importer, data = import_module("tools.import_scenes"), import_module("01_data")
lens, frames = import_module("support.lens"), import_module("support.frames")
nerfstudio, colmap, llff = (import_module(f"support.layouts.{name}")
                            for name in ("nerfstudio", "colmap", "llff"))
pytestmark = pytest.mark.slow


def verdicts(folder, monkeypatch, layout, step):
    """Of captures of one layout that nobody damages, one after the other. step: what nerfstudio's all say."""
    captures = fuzz.captures
    monkeypatch.setattr(fuzz, "damaged", lambda *_: [])
    monkeypatch.setattr(captures, "LAYOUTS", [layout])
    for steps, chosen in (("FIRST", step), ("THEN", None), ("LAST", None)):
        monkeypatch.setattr(captures, steps, [chosen])
    monkeypatch.setattr(captures, "MORE", [captures.harmless, captures.marked])
    monkeypatch.chdir(folder)
    for number in range(12):
        yield fuzz.capture_case(folder / str(number), random.Random(number), fuzz.in_here)[1]


def without_lens(read):
    """A reader of cameras that knows no distortion."""
    return lambda *arguments: dict.fromkeys(read(*arguments), 0.0)


def unscaled(read):
    """A reader of cameras that leaves the focal length as the model has it."""
    return lambda camera, *more: read(camera, *more)._replace(fx=camera.fx, fy=camera.fy)


def off(read):
    """A reader whose principal point is a pixel and a half off."""
    return lambda *arguments: read(*arguments)._replace(cx=33.0, cy=25.0)


made, Reader = fuzz.captures, nerfstudio.Reader
BROKEN = {
    "the lens is ignored": (
        (nerfstudio, "read_lens", without_lens(nerfstudio.read_lens)), made.nerfstudio, made.lens),
    "the photographs keep their lens": ((importer, "resample", lambda image, *_: image), made.colmap, None),
    "a focal length for another size is not scaled": (
        (colmap, "at_size", unscaled(colmap.at_size)), made.colmap, None),
    "numbers of another size are believed": (
        (lens, "check_middle", lambda *_: None), made.nerfstudio, made.other_size),
    "missing images are not counted": (
        (nerfstudio, "check_missing", lambda *_: []), made.nerfstudio, made.gone),
    "masks are ignored": ((importer, "write_mask", lambda *_: 0.0), made.nerfstudio, made.masks),
    "keys that touch the camera are passed over": (
        (Reader, "check_keys", lambda *_: set()), made.nerfstudio, made.stranger),
    "01 does not scale the camera": ((data, "scale_intrinsics", lambda K, *_: K.clone()), made.replica, None),
    "the principal point is off": (
        (nerfstudio, "read_camera", off(nerfstudio.read_camera)), made.nerfstudio, None),
    "depth has another unit": ((Reader, "depth_scale", lambda *_: 0.001), made.nerfstudio, made.depths),
    "axes are others": ((nerfstudio, "checked_pose", lambda *_: np.eye(4)), made.nerfstudio, None),
    "LLFF's focal length stands for COLMAP's": (
        (importer, "READERS", importer.READERS | {importer.COLMAP: llff.read}), made.llff, None),
}


@pytest.mark.parametrize("what", BROKEN)
def test_the_fuzz_notices_when(what, tmp_path, monkeypatch):
    broken, layout, step = BROKEN[what]
    for module in (nerfstudio, frames) if broken[0] is lens else (broken[0],):
        monkeypatch.setattr(module, *broken[1:])
    ends = verdicts(tmp_path, monkeypatch, layout, step)
    assert next((end for end in ends if end not in ("success", "refused")), None)
