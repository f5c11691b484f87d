"""support/lens.py and the cameras of transforms.json: every key that touches the camera is read, or refused
by its name. The box's photographs are re-rendered from what was read."""
import json
import math

import numpy as np
import pytest
from captures import (
    K,
    check_pixels,
    frames,
    imported,
    importer,
    intrinsics,
    refused,
    through_lens,
    write_transforms,
)

from support.files import DataError
from support.lens import Camera, check_middle, check_same_view, one_camera

WIDE = np.array([[40.0, 0, 31.5], [0, 40.0, 23.5], [0, 0, 1]])


def radial(k1, k2, k3, k4, p1, p2):
    """A perspective lens: (x, y) -> (x, y)."""
    def bend(x, y):
        r2 = x * x + y * y
        scale = 1 + k1 * r2 + k2 * r2 ** 2 + k3 * r2 ** 3 + k4 * r2 ** 4
        return (x * scale + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
                y * scale + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y)
    return bend


def equidistant(*k):
    """A fisheye: (x, y) -> (x, y)."""
    def bend(x, y):
        r = np.hypot(x, y)
        t = np.arctan(r)
        scale = t * (1 + sum(c * t ** (2 * i + 2) for i, c in enumerate(k))) / np.maximum(r, 1e-12)
        return x * scale, y * scale
    return bend


LENS = dict(k1=0.18, k2=-0.08, k3=0.01, k4=0.004, p1=0.002, p2=-0.003)


@pytest.mark.parametrize("meta", [
    LENS, {"distortion_params": list(LENS.values())},
    {"k1": 9, "distortion_params": list(LENS.values())}], ids=["names", "list", "both"])
def test_a_perspective_lens_is_taken_out(tmp_path, meta):
    source = write_transforms(tmp_path / "c", intrinsics() | meta, rays=through_lens(K, radial(**LENS)))
    check_pixels(imported(source, tmp_path / "out"), 24)


def test_a_lens_in_a_frame_stands_for_the_files(tmp_path):
    rays = through_lens(K, radial(**LENS))
    source = write_transforms(tmp_path / "c", intrinsics() | {"k1": 0.5}, rays=rays)
    meta = json.loads((source / "transforms.json").read_text())
    for frame in meta["frames"]:
        frame["distortion_params"] = list(LENS.values())
    (source / "transforms.json").write_text(json.dumps(meta))
    check_pixels(imported(source, tmp_path / "out"), 24)


@pytest.mark.parametrize("meta", [{"is_fisheye": True}, {"camera_model": "OPENCV_FISHEYE"}],
                         ids=["instant-ngp", "nerfstudio"])
def test_a_fisheye_is_taken_out(tmp_path, meta):
    k = dict(k1=-0.12, k2=0.02, k3=0.003, k4=-0.001)
    meta = intrinsics(WIDE) | k | meta | {"camera_angle_x": 2 * math.atan(32 / 40)}
    source = write_transforms(tmp_path / "c", meta, rays=through_lens(WIDE, equidistant(*k.values())))
    check_pixels(imported(source, tmp_path / "out"), 24)


def test_a_fisheye_without_numbers_is_still_none_of_a_pinhole(tmp_path):
    source = write_transforms(tmp_path / "c", intrinsics(WIDE) | {"is_fisheye": True},
                              rays=through_lens(WIDE, equidistant(0)))
    check_pixels(imported(source, tmp_path / "out"), 24)


ANGLES = {axis: 2 * math.atan(side / 2 / f) for axis, side, f in (("x", 64, 55), ("y", 48, 44))}


@pytest.mark.parametrize("meta", [
    {"camera_angle_x": ANGLES["x"], "camera_angle_y": ANGLES["y"]},
    {"x_fov": math.degrees(ANGLES["x"]), "y_fov": math.degrees(ANGLES["y"])},
    {"fl_x": 55, "camera_angle_y": ANGLES["y"]}, {"fl_x": 55, "fl_y": 44, "camera_angle_x": ANGLES["x"]}])
def test_a_focal_length_by_angles_holds_for_its_own_axis(tmp_path, meta):
    square = np.array([[55.0, 0, 31.5], [0, 44.0, 23.5], [0, 0, 1]])
    source = write_transforms(tmp_path / "c", meta, rays=through_lens(square, lambda x, y: (x, y)))
    check_pixels(imported(source, tmp_path / "out"), 24, 0.01)


REFUSED = {"equirectangular": True, "latlong": True, "orthographic": True, "ftheta_p0": 0.3, "K": [[1]],
           "intrinsics": [1, 2], "fov": 60, "lens_shift": 0.1, "rolling_shutter": [1], "from_mitsuba": True,
           "k5": 0.1, "camera_matrix": [1], "distortion": [0.1], "transform_matrix_start": [1], "skew": 0.1,
           "principal_point": [1, 2], "coordinate_system": "OpenCV", "width": 64, "fl": 30, "sensor_size": 24}


@pytest.mark.parametrize("key", REFUSED)
def test_a_key_that_touches_the_camera_and_is_not_read_is_refused_by_its_name(tmp_path, key):
    source = write_transforms(tmp_path / "c", **{key: REFUSED[key]})
    assert f"'{key}'" in refused(importer, source, "--out", tmp_path / "out")
    listed = [frame | {key: REFUSED[key]} for frame in frames(24)]
    (source / "transforms.json").write_text(json.dumps(intrinsics() | {"frames": listed}))
    assert f"frame 0: '{key}'" in refused(importer, source, "--out", tmp_path / "out")


@pytest.mark.parametrize("model", ["EQUIRECTANGULAR", "FULL_OPENCV", "FOV", "opencv", 7, None])
def test_a_camera_model_of_another_name_is_refused(tmp_path, model):
    source = write_transforms(tmp_path / "c", camera_model=model)
    assert f"camera_model {model}" in refused(importer, source, "--out", tmp_path / "out")


@pytest.mark.parametrize("meta, words", [
    ({"camera_angle_x": 2.0}, "two focal lengths (fl_x = 55.0 pixels, camera_angle_x = 20"),
    ({"x_fov": 190}, "degrees below 180"), ({"distortion_params": [0.1]}, "not k1, k2, k3, k4, p1, p2"),
    ({"is_fisheye": True, "p1": 0.1}, "a fisheye with 'p1'"), ({"k1": "weak"}, "'k1' is 'weak'"),
    ({"cx": 128.0}, "seem to belong to about 256x48"), ({"w": 128, "h": 96}, "about 32x24"),
    ({"is_fisheye": "yes"}, "is_fisheye yes")])
def test_a_camera_that_cannot_be_is_refused(tmp_path, meta, words):
    source = write_transforms(tmp_path / "c", intrinsics() | meta)
    assert words in refused(importer, source, "--out", tmp_path / "out")


def test_harmless_keys_are_listed_in_one_line_and_empty_ones_are_not(tmp_path, capsys):
    keys = dict(aabb_scale=4, my_note="x", mood=3, equirectangular=False, ftheta_p0=0)
    source = write_transforms(tmp_path / "c", **keys)
    check_pixels(imported(source, tmp_path / "out"), 24)
    assert "keys not used: mood, my_note\n" in capsys.readouterr().out


def test_numbers_of_the_full_size_without_the_size_are_refused(tmp_path):
    full = {"fl_x": 220, "fl_y": 220, "cx": 128, "cy": 96}                    # and images of 64x48
    source = write_transforms(tmp_path / "c", full)
    assert "seem to belong to about 256x192" in refused(importer, source, "--out", tmp_path / "out")
    scene = imported(write_transforms(tmp_path / "d", full | {"w": 256, "h": 192}), tmp_path / "ok")
    assert scene.native_K[0, 0] == 55


def test_cameras_side_by_side_see_about_the_same():
    matrix = np.array([[50.0, 0, 31.5], [0, 50, 23.5], [0, 0, 1]])
    check_same_view(matrix, (48, 64), 1.4 * matrix, (48, 64), "x")
    with pytest.raises(DataError, match="65 degrees wide, the depth camera 35"):
        check_same_view(matrix, (48, 64), 2 * matrix, (48, 64), "x")
    check_middle(matrix, (48, 64), "x")
    with pytest.raises(DataError, match="about 64x48"):
        check_middle(matrix, (96, 128), "x")


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_numbers_for_a_size_a_fifth_smaller_or_larger_are_refused(factor):
    matrix = np.array([[50.0, 0, 32 * factor - 0.5], [0, 50, 24 * factor - 0.5], [0, 0, 1]])
    size = f"about {64 * factor:.0f}x{48 * factor:.0f}"
    with pytest.raises(DataError, match=size):
        check_middle(matrix, (48, 64), "x")
    matrix[:2, 2] = 31.5, 24 * factor - 0.5                                   # the lens sits a little high
    check_middle(matrix, (48, 64), "x")


def test_a_lens_that_folds_the_image_has_no_pinhole_camera():
    with pytest.raises(DataError, match="no pinhole camera fits"):
        one_camera([Camera(50, 50, 31.5, 23.5, k1=-9.0)], (48, 64), "x")
