"""support/files.py: what is read is checked, what is written is whole, what is wrong is one line."""
import errno
import os
import zlib

import imageio.v3 as iio
import numpy as np
import pytest

from support import files


def test_a_script_prints_the_line_and_ends_with_status_2(capsys):
    def main():
        raise files.DataError("there/2.jpg: cannot be decoded; copy it again")
    with pytest.raises(SystemExit) as end:
        files.run_script(main)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: there/2.jpg: cannot be decoded; copy it again\n"


@pytest.mark.parametrize("number", ["ENOSPC", "EROFS", "EACCES"])
def test_a_disk_that_is_full_or_read_only_is_one_line_with_the_file(tmp_path, monkeypatch, capsys, number):
    code = getattr(errno, number)
    kept = tmp_path / "kept.txt"
    kept.write_text("before")

    def fails(*_, **__):
        raise OSError(code, os.strerror(code))
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "open", fails)
        with pytest.raises(SystemExit) as end:
            files.run_script(lambda: files.write_atomically(kept, lambda file: file.write(b"after")))
        printed = capsys.readouterr().err
        assert end.value.code == 2 and printed.count("\n") == 1
        assert printed.startswith(f"error: {kept}: {os.strerror(code)}; ")
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", fails)  # written, but not renamed
        with pytest.raises(OSError):
            files.write_atomically(kept, lambda file: file.write(b"after"))
    assert kept.read_text() == "before" and not list(tmp_path.glob(".*"))


# ----------------------------------------------------------------------------------------------------- images

def test_an_image_that_claims_to_be_huge_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = tmp_path / "0.png"
    small = np.zeros((2, 2), np.uint8)
    iio.imwrite(path, small)
    assert files.read_image(path).shape == (2, 2)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("it was decoded"))
    content = bytearray(path.read_bytes())
    for side, words in ((9000, "claims to be 9000x9000, more than"), (2 ** 31 - 1, "")):
        content[16:24] = 2 * side.to_bytes(4, "big")
        content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
        path.write_bytes(content)
        with pytest.raises(files.DataError, match=rf"0.png: cannot be decoded \({words}"):
            files.read_image(path)


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither pipes in folders nor /dev/zero")
@pytest.mark.parametrize("make", [
    lambda p: os.mkfifo(p), lambda p: p.symlink_to("/dev/zero"), lambda p: p.mkdir(),
    lambda p: iio.imwrite(p, np.zeros((4, 4, 3), np.uint8), extension=".bmp")])
def test_what_is_no_jpg_or_png_is_refused_and_never_waited_for(tmp_path, make):
    make(tmp_path / "0.jpg")
    with pytest.raises(files.DataError, match="0.jpg"):
        files.read_image(tmp_path / "0.jpg")


# --------------------------------------------------------------------------------------------------- matrices

def test_a_pose_is_read_as_written_and_a_lost_one_is_none(tmp_path, box):
    for pose, expected in ((box.camera(3), box.camera(3)), (np.full((4, 4), -np.inf), None)):
        np.savetxt(tmp_path / "6.txt", pose)
        np.testing.assert_equal(files.read_pose(tmp_path / "6.txt"), expected)


@pytest.mark.parametrize("change", [
    lambda p: p.__setitem__((0, 3), np.nan), lambda p: p.__setitem__((0, 3), np.inf),
    lambda p: p.__setitem__((0, 3), -np.inf), lambda p: p.__setitem__((0, 3), 1e300),
    lambda p: p.__setitem__((0, 0), -1), lambda p: p.__setitem__((0, 0), 1.1), lambda p: p.__imul__(2),
    lambda p: p.__setitem__((0, 1), 0.2), lambda p: p.__setitem__((3, 0), 1), lambda p: p.fill(0)])
def test_a_pose_that_is_no_rotation_and_place_is_refused(tmp_path, change):
    pose = np.eye(4)
    change(pose)
    np.savetxt(tmp_path / "6.txt", pose)
    with pytest.raises(files.DataError, match=r"6.txt: not a camera's pose"):
        files.read_pose(tmp_path / "6.txt")


@pytest.mark.parametrize("place, value", [(None, 0), ((0, 0), -50), ((0, 0), 1e300), ((1, 1), 1e-300),
                                          ((0, 2), -np.inf), ((0, 2), 1e20), ((1, 0), 3)])
def test_intrinsics_that_are_no_pinhole_are_refused(tmp_path, place, value):
    K = np.diag([50.0, 50, 1, 1])
    if place:
        K[place] = value
    np.savetxt(tmp_path / "K.txt", K)
    if not place:
        np.testing.assert_equal(files.read_intrinsics(tmp_path / "K.txt"), K[:3, :3])
        return
    with pytest.raises(files.DataError, match="K.txt: not a pinhole camera"):
        files.read_intrinsics(tmp_path / "K.txt")


def test_near_and_far_are_two_numbers_or_there_is_no_file(tmp_path):
    path = tmp_path / "near_far.txt"
    assert files.read_near_far(path) is None
    path.write_text("0.5 6\n")
    assert files.read_near_far(path) == (0.5, 6)
    for text in ("", "1", "2 1", "0 3", "nan 3", "1 inf", "a b"):
        path.write_text(text)
        with pytest.raises(files.DataError, match="near_far.txt"):
            files.read_near_far(path)
