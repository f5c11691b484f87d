"""support/files.py: what is read is checked, what is written is whole, what is wrong is one line."""
import errno
import json
import os
import zlib

import imageio.v3 as iio
import numpy as np
import pytest
import torch

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


# ------------------------------------------------------------------------------- what is opened, what is read

@pytest.mark.skipif(os.name == "nt", reason="Windows has neither pipes in folders nor /dev/zero")
@pytest.mark.parametrize("make, words", [
    (lambda p: os.mkfifo(p), "not a file"), (lambda p: p.symlink_to("/dev/zero"), "not a file"),
    (lambda p: p.mkdir(), "not a file|directory"), (lambda p: p.symlink_to(p.name), "cannot be read"),
    (lambda p: None, "no such file; ask"), (lambda p: p.write_bytes(b"a" * 11), "11 bytes, more than 10"),
    (lambda p: p.write_bytes(b"\xff\xfe"), "cannot be read"), (lambda p: p.write_bytes(b"a\0b"), "not text")])
def test_what_is_no_text_of_that_size_is_refused_and_never_waited_for(tmp_path, make, words):
    make(tmp_path / "a.txt")
    with pytest.raises(files.DataError, match=f"a.txt: .*({words})"):
        files.read_text(tmp_path / "a.txt", 10, "ask")


def test_a_file_of_three_gigabytes_is_refused_before_it_is_read(tmp_path):
    with open(tmp_path / "near_far.txt", "wb") as file:
        file.truncate(3 * 2 ** 30)                                            # sparse: nothing on the disk
    with pytest.raises(files.DataError, match="3,221,225,472 bytes"):
        files.read_near_far(tmp_path / "near_far.txt")
    for read in (files.read_image, files.image_size, files.read_json):
        with pytest.raises(files.DataError, match="more than"):
            read(tmp_path / "near_far.txt")


def test_a_mark_of_utf8_is_not_part_of_the_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfid,name")
    assert files.read_text(tmp_path / "a.txt", 100) == "id,name"


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\0", "nan,"])
def test_what_is_no_json_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(files.DataError, match="a.json: cannot be read") as error:
        files.read_json(tmp_path / "a.json")
    assert len(str(error.value)) < 400


def test_print_colours_become_those_of_a_screen(tmp_path):
    rng = np.random.default_rng(0)
    inks = np.repeat(np.repeat(rng.integers(0, 256, (6, 8, 4), np.uint8), 8, 0), 8, 1)
    files.Image.fromarray(inks, "CMYK").save(tmp_path / "0.jpg", quality=100, subsampling=0)
    paper, black = 1 - inks[..., :3] / 255, 1 - inks[..., 3:] / 255           # what the inks leave of white
    found = files.read_image(tmp_path / "0.jpg")
    assert found.shape == (48, 64, 3) and np.abs(found - 255 * paper * black).mean() < 3


def save_map(path, values, **options):
    files.Image.fromarray(values).save(path, **options)


@pytest.mark.parametrize("write, words", [
    (lambda p: save_map(p, np.full((4, 6), 5, np.uint8), format="jpeg"), "not a png"),
    (lambda p: save_map(p, np.full((4, 6), 5, np.uint8), format="png", bits=4), "not labels"),
    (lambda p: save_map(p, np.zeros((4, 6, 3), np.uint8), format="png"), "not labels"),
    (lambda p: files.Image.new("P", (6, 4), 3).save(p, format="png"), "not labels"),
    (lambda p: files.Image.new("LA", (6, 4)).save(p, format="png"), "not labels")])
def test_a_map_whose_numbers_would_be_others_is_refused(tmp_path, write, words):
    write(tmp_path / "0.png")
    with pytest.raises(files.FrameError, match=f"0.png: .*{words}"):
        files.read_map(tmp_path / "0.png", (8, 16), "labels")


@pytest.mark.parametrize("kind, bits", [(np.uint8, 8), (np.uint16, 16)])
def test_a_map_is_read_as_it_is_where_it_has_the_bits_that_are_asked_for(tmp_path, kind, bits):
    values = np.arange(24, dtype=kind).reshape(4, 6) * (2 ** (bits - 5) + 1)
    save_map(tmp_path / "0.png", values)
    assert np.array_equal(files.read_map(tmp_path / "0.png", (bits,), "depth"), values)
    with pytest.raises(files.FrameError, match=f"not depth .*{24 - bits} bits"):
        files.read_map(tmp_path / "0.png", (24 - bits,), "depth")


# -------------------------------------------------------------------------------------------- what is written

@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_file_has_the_mode_that_the_umask_says(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        files.write_atomically(tmp_path / "a", lambda file: file.write(b"x"))
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes in folders")
def test_a_pipe_or_a_folder_is_never_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe"), (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        before = (tmp_path / name).stat()
        with pytest.raises(OSError, match="not a file"):
            files.write_atomically(tmp_path / name, lambda file: file.write(b"x"))
        assert (tmp_path / name).stat().st_ino == before.st_ino
    assert len(list(tmp_path.iterdir())) == 2


def test_json_is_what_any_program_reads(tmp_path):
    value = {"a": float("nan"), "b": [float("inf"), 1.5, {"c": -float("inf")}], "d": (2, "NaN", None, True)}
    files.write_json(tmp_path / "a.json", value)

    def refuse(word):
        raise ValueError(word)
    found = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    assert found == {"a": None, "b": [None, 1.5, {"c": None}], "d": [2, "NaN", None, True]}


def test_too_little_memory_is_one_line(capsys):
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9")):
        def main():
            raise error
        with pytest.raises(SystemExit) as end:
            files.run_script(main)
        printed = capsys.readouterr().err
        assert end.value.code == 2 and printed.startswith("error: out of memory") and printed.count("\n") == 1

    def broken():
        raise RuntimeError("shapes do not match")
    with pytest.raises(RuntimeError, match="shapes"):                         # a mistake of ours stays one
        files.run_script(broken)


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")])
def test_a_gpu_out_of_memory_is_one_line_that_names_the_flags(error, capsys):
    def main():
        raise error
    with pytest.raises(SystemExit) as end:
        files.run_script(main)
    printed = capsys.readouterr().err
    assert end.value.code == 2 and printed.count("\n") == 1 and str(error)[:60] in printed
    assert printed.startswith("error: the GPU is out of memory")
    assert "--piece 256" in printed and "--chunk 512" in printed


def test_of_several_processes_the_first_says_what_all_find(capsys, monkeypatch):
    cases = (files.DataError, "0", 1), (files.DataError, "1", 0), (files.FrameError, "1", 1)
    for error, rank, lines in cases:
        monkeypatch.setenv("LOCAL_RANK", rank)

        def main():
            raise error("bad")
        with pytest.raises(SystemExit):
            files.run_script(main)
        assert capsys.readouterr().err.count("error: bad") == lines


def test_a_name_in_a_figure_is_no_mathematics():
    from matplotlib.cbook import is_math_text
    from matplotlib.text import Text
    for name in ("room$x_{$", r"$\foo$", "a$", r"\$", "$$", "a\nb"):
        shown = files.figure_text(name)
        assert not is_math_text(shown) and "\n" not in shown
        assert Text(text=shown)._preprocess_math(shown)[0] == name.replace("\n", r"\n")
