"""support/frames.py: a scene's files, the frames that are left out, the cache, and what bad input ends in."""
import math
import os
import pickle
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image

from support import frames as store
from support.files import DataError
from support.labels import CLASSES_CSV, LABELS_TSV

data = import_module("01_data")


@pytest.fixture
def scene(box_folder, tmp_path):
    return data.Scene(box_folder, 48, 64, cache=tmp_path / "cache")


def test_frames_are_in_numeric_order_and_a_lost_pose_is_left_out(scene, box):
    assert scene.frames == [n for n in box.numbers if n != box.lost]  # 2, 6, 10, ...: not "10", "102", "14"
    for index in (0, 1, 12):
        expected = box.camera(box.numbers.index(scene.frames[index]))
        np.testing.assert_allclose(scene.c2w[index], expected, atol=1e-6)


def test_every_takes_every_so_many_frame_numbers(box_folder, box):
    scene = data.Scene(box_folder, 48, 64, every=3)
    assert scene.frames == [n for n in box.numbers[::3] if n != box.lost] and len(scene.c2w) == len(scene)


def brought_together(folder, factor):
    """The cameras of a scene this much as far from each other; those of the box are some 9 cm apart."""
    for path in (folder / "pose").iterdir():
        pose = np.loadtxt(path)
        pose[:3, 3] *= factor
        np.savetxt(path, pose)


def steps_of(scene):
    """The distances from each camera to the next, one by one, in order."""
    centres = scene.c2w[:, :3, 3].tolist()
    return sorted(math.dist(a, b) for a, b in zip(centres, centres[1:]))


def test_frames_less_than_2_cm_apart_are_said_with_an_every_that_helps(box_copy, capsys):
    wide = data.Scene(box_copy, 48, 64)
    brought_together(box_copy, 0.12)
    near, sparse = data.Scene(box_copy, 48, 64), data.Scene(box_copy, 48, 64, every=5)
    assert steps_of(near)[12] < 0.02 < steps_of(sparse)[2] and steps_of(wide)[12] > 0.05
    store.say_where_frames_are_close([wide, sparse])
    assert capsys.readouterr().out == ""
    store.say_where_frames_are_close([wide, near])
    line, = capsys.readouterr().out.splitlines()
    assert f"less than 2 cm apart in {near.name}: a test view" in line and "--every" in line
    every = int(re.search(r"--every (\d+)", line)[1])
    assert steps_of(near)[12] * every >= 0.05 > steps_of(near)[12] * (every - 1)
    brought_together(box_copy, 0.001)
    store.say_where_frames_are_close([data.Scene(box_copy, 48, 64, every=2)])
    assert "--every 20, a frame in 20" in capsys.readouterr().out           # ten times what there is


def test_frames_in_a_unit_of_their_own_are_close_by_the_scenes_far(box_copy, capsys):
    for far, close in (("2", False), ("80", True)):
        (box_copy / "near_far.txt").write_text(f"0.1 {far}")
        store.say_where_frames_are_close([data.Scene(box_copy, 48, 64)])
        assert bool(capsys.readouterr().out) == close


def test_colour_may_be_png(box_copy, tmp_path):
    before = data.Scene(box_copy, 48, 64, cache=tmp_path).load(0)
    iio.imwrite(box_copy / "color" / "2.png", iio.imread(box_copy / "color" / "2.jpg"))
    (box_copy / "color" / "2.jpg").unlink()
    after = data.Scene(box_copy, 48, 64, cache=tmp_path / "other").load(0)
    assert np.array_equal(before, after)


# -------------------------------------------------------------------------------------------------- the cache

def forbid_decoding(monkeypatch):
    def fail(path):
        raise AssertionError(f"{path} was decoded")
    monkeypatch.setattr(store, "read_image", fail)


def test_the_second_read_does_not_decode(box_folder, tmp_path, monkeypatch):
    first = data.Scene(box_folder, 24, 32, cache=tmp_path).load(4)
    forbid_decoding(monkeypatch)
    again = data.Scene(box_folder, 24, 32, cache=tmp_path)
    assert np.array_equal(again.load(4), first) and first.any()
    with pytest.raises(AssertionError, match="was decoded"):
        again.load(5)                                                                  # the alarm works


@pytest.mark.parametrize("kind", ["color/{}.jpg", "label-filt/{}.png", "depth/{}.png"])
def test_a_changed_file_is_decoded_again(box_copy, tmp_path, kind):
    before = data.Scene(box_copy, 48, 64, cache=tmp_path / "cache").load(4)
    shutil.copyfile(box_copy / kind.format(90), box_copy / kind.format(18))  # frame index 4 is number 18
    after = data.Scene(box_copy, 48, 64, cache=tmp_path / "cache").load(4)
    assert not np.array_equal(before, after)
    assert np.array_equal(after, data.Scene(box_copy, 48, 64, cache=tmp_path / "fresh").load(4))


def test_changing_classes_csv_decodes_the_labels_again(box_copy, tmp_path):
    path = box_copy.parent / CLASSES_CSV
    path.write_text("id,name,colour\n3,wall,#ffffff\n")
    before = data.Scene(box_copy, 48, 64, tmp_path / "cache").views(range(0, 25, 6)).labels
    path.write_text("id,name,colour\n21,ground,#ffffff\n3,wall,#ffffff\n")
    after = data.Scene(box_copy, 48, 64, tmp_path / "cache").views(range(0, 25, 6)).labels
    assert torch.equal(before == 0, after == 1) and (before == 0).any() and after.max() == 1


@pytest.mark.parametrize("damage", [lambda b: b[:len(b) // 2], lambda b: b"", lambda b: b[:20]])
def test_a_truncated_cache_file_is_rebuilt(box_folder, tmp_path, damage):
    scene = data.Scene(box_folder, 24, 32, cache=tmp_path)
    good = scene.load(0)
    file, = scene.cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert np.array_equal(scene.load(0), good) and file.read_bytes() == whole


def test_a_cache_file_appears_whole_or_not_at_all(box_folder, tmp_path, monkeypatch):
    scene = data.Scene(box_folder, 24, 32, cache=tmp_path)

    def dies_half_way(file, array):
        file.write(array.tobytes()[:100])
        file.flush()
        assert not list(scene.cache.glob("*.npy"))  # not yet under its name
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", dies_half_way)
        with pytest.raises(KeyboardInterrupt):
            scene.load(0)
    assert list(scene.cache.iterdir()) == []                                           # and no litter
    scene.load(0)
    assert len(list(scene.cache.glob("*.npy"))) == 1


def test_two_scenes_of_one_name_do_not_share_a_cache_nor_do_two_sizes(box_folder, box_copy, tmp_path):
    for folder, height, width in ((box_folder, 24, 32), (box_copy, 24, 32), (box_folder, 32, 24)):
        scene = data.Scene(folder, height, width, cache=tmp_path)  # files of the same size and time
        assert scene.load(0).shape == (scene.height, scene.width, 6)
    assert len(list(tmp_path.rglob("*.npy"))) == 3


def test_a_scene_holds_no_frames(scene):
    scene.views(range(len(scene)))
    assert len(pickle.dumps(scene)) < 48 * 64 * 6  # all it keeps is less than one frame


def test_a_cache_that_cannot_be_written_is_named(box_folder, tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")
    words = re.escape(str(tmp_path / "cache")) + r".*: cannot write the cache .* --cache"
    with pytest.raises(DataError, match=words):
        data.Scene(box_folder, 24, 32, cache=tmp_path / "cache").load(0)


def test_after_the_first_pass_no_frame_is_decoded(box_folder, box_copy, tmp_path, monkeypatch, capsys):
    scenes = [data.Scene(folder, 24, 32, tmp_path / "cache") for folder in (box_folder, box_copy)]
    frames = [list(range(len(scene))) for scene in scenes]
    store.decode_all(scenes, frames)
    assert "decoding frames, first time only" in capsys.readouterr().err
    assert all(scene.cached(i) for scene in scenes for i in range(len(scene)))
    monkeypatch.setattr(data.Scene, "decode", lambda *_: pytest.fail("a frame was decoded again"))
    store.decode_all(scenes, frames)
    assert capsys.readouterr().err == ""                                      # nothing to do, nothing to show
    for scene, indices in zip(scenes, frames):
        assert len(scene.views(indices).images) == len(indices)


# -------------------------------------------------------------------------------------------------- bad input

def write(path, text):
    path.write_text(text)


def cut(path):
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def read(folder):
    data.Scene(folder, 24, 32, cache=folder.parent / "cache").views([0])


def keep(folder, count):
    for path in sorted((folder / "pose").iterdir())[count:]:
        path.unlink()


NAN_POSE, COLOUR_K, DEPTH_K = "nan " * 16, "intrinsic/intrinsic_color.txt", "intrinsic/intrinsic_depth.txt"


BAD = {   # what is done to a good scene, which file the message must name
    "no such scene": (shutil.rmtree, ""),
    "no colour folder": (lambda f: shutil.rmtree(f / "color"), ""),
    "no tsv": (lambda f: (f.parent / LABELS_TSV).unlink(), "../" + LABELS_TSV),
    "tsv of another kind": (lambda f: write(f.parent / LABELS_TSV, "a\tb\r\n1\t2\r\n"), "../" + LABELS_TSV),
    "empty tsv": (lambda f: write(f.parent / LABELS_TSV, ""), "../" + LABELS_TSV),
    "no pose": (lambda f: keep(f, 0), "pose"),
    "no finite pose": (lambda f: [write(p, "-inf -inf -inf -inf\n" * 4) for p in (f / "pose").iterdir()],
                       "pose"),
    "pose of words": (lambda f: write(f / "pose/2.txt", "a b c d\n" * 4), "pose/2.txt"),
    "pose of 3x4": (lambda f: write(f / "pose/2.txt", "1 0 0 0\n" * 3), "pose/2.txt"),
    "ragged pose": (lambda f: write(f / "pose/2.txt", "1 0 0 0\n1 0\n"), "pose/2.txt"),
    "no intrinsics": (lambda f: (f / COLOUR_K).unlink(), COLOUR_K),
    "intrinsics of words": (lambda f: write(f / COLOUR_K, "fx fy cx cy\n" * 4), COLOUR_K),
    "intrinsics of 3x3": (lambda f: write(f / COLOUR_K, "1 0 0\n" * 3), COLOUR_K),
    "focal length of zero": (lambda f: write(f / COLOUR_K, "0 0 5 0\n0 9 5 0\n0 0 1 0\n0 0 0 1\n"), COLOUR_K),
    "intrinsics not finite": (lambda f: write(f / COLOUR_K, "9 0 nan 0\n0 9 5 0\n0 0 1 0\n0 0 0 1\n"),
                              COLOUR_K),
    "bad depth intrinsics": (lambda f: write(f / DEPTH_K, "9 9\n"), DEPTH_K),
    "no jpg": (lambda f: (f / "color/2.jpg").unlink(), "color/2.jpg"),
    "truncated jpg": (lambda f: cut(f / "color/2.jpg"), "color/2.jpg"),
    "no label png": (lambda f: (f / "label-filt/2.png").unlink(), "label-filt/2.png"),
    "truncated label png": (lambda f: cut(f / "label-filt/2.png"), "label-filt/2.png"),
    "truncated depth png": (lambda f: cut(f / "depth/2.png"), "depth/2.png"),
    "empty png": (lambda f: write(f / "label-filt/2.png", ""), "label-filt/2.png"),
    "label size that does not divide": (
        lambda f: iio.imwrite(f / "label-filt/2.png", np.ones((40, 50), np.uint16)), "label-filt/2.png"),
    "labels in colour": (lambda f: iio.imwrite(f / "label-filt/2.png", np.ones((48, 64, 3), np.uint8)),
                         "label-filt/2.png"),
    "grey jpg": (lambda f: iio.imwrite(f / "color/2.jpg", np.ones((48, 64), np.uint8)), "color/2.jpg"),
    "depth in colour": (lambda f: iio.imwrite(f / "depth/2.png", np.ones((60, 80, 3), np.uint8)),
                        "depth/2.png"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # imageio tries old plugins on rubbish
@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_line_that_names_the_file(box_copy, case):
    read(box_copy)                                                                     # good until damaged
    shutil.rmtree(box_copy.parent / "cache")
    damage, named = BAD[case]
    damage(box_copy)
    with pytest.raises(DataError) as error:
        read(box_copy)
    message = str(error.value)
    expected = (box_copy.parent / named[3:]) if named.startswith("../") else box_copy / named
    assert re.match(re.escape(str(expected)) + r"\b", message) and "\n" not in message, message
    assert ";" in message or "needs" in message, message                               # says what to do
    assert not list((box_copy.parent / "cache").rglob("*"))                            # nothing half-written


@pytest.mark.parametrize("file", ["color/2.jpg", "label-filt/2.png", "depth/2.png", "pose/2.txt",
                                  "intrinsic/intrinsic_color.txt", "intrinsic/intrinsic_depth.txt"])
def test_a_link_that_leads_out_of_the_scene_is_refused_and_one_inside_is_not(box_copy, tmp_path, file):
    inside, outside = box_copy / "elsewhere", tmp_path / "outside"
    shutil.copyfile(box_copy / file, outside)
    (box_copy / file).rename(inside)
    (box_copy / file).symlink_to(inside)
    data.Scene(box_copy, 24, 32, tmp_path / "cache").views([0])
    shutil.rmtree(tmp_path / "cache")
    (box_copy / file).unlink()
    (box_copy / file).symlink_to(outside)
    with pytest.raises(DataError, match=f"{file}: a link that leads out of the scene"):
        data.Scene(box_copy, 24, 32, tmp_path / "cache").views([0])


# ----------------------------------------------------------------------------------- frames that are left out

def replace(path: Path, content: bytes) -> None:
    """Put a file in the place of a link or file."""
    path.unlink()
    path.write_bytes(content)


def test_one_percent_of_frames_is_skipped_and_named_and_more_are_an_error(long_scene, tmp_path, capsys):
    replace(long_scene / "pose/1000.txt", b"nan " * 16)
    replace(long_scene / "color/1003.jpg", b"\xff\xd8\xff rubbish")
    scene = data.Scene(long_scene, 24, 32, tmp_path / "cache")
    assert scene.total == 200 and len(scene) == 198                           # one lost, one skipped
    frames, = store.decode_all([scene], [list(range(len(scene)))])
    assert len(frames) == 197 and {scene.frames[i] for i in frames} == set(scene.frames) - {1003}
    printed = capsys.readouterr().out
    assert [line.split(":")[0] for line in printed.splitlines()] == ["skipped"] * 2
    assert "pose/1000.txt" in printed and "color/1003.jpg" in printed
    assert "so far 2 of scene0001_00's 200 frames, at most 2" in printed
    target, sources = data.training_pair(scene, 4, torch.Generator().manual_seed(0), frames=frames)
    assert scene.frames.index(1003) not in [target, *sources]
    replace(long_scene / "label-filt/1004.png", b"")
    scene = data.Scene(long_scene, 24, 32, tmp_path / "cache")
    with pytest.raises(DataError, match=r"3 of 200 frames cannot be read, more than 1%"):
        store.decode_all([scene], [list(range(len(scene)))])


def test_of_fewer_than_100_frames_none_is_skipped(box_copy, tmp_path):
    (box_copy / "color/6.jpg").write_bytes(b"")
    scene = data.Scene(box_copy, 24, 32, tmp_path / "cache")
    with pytest.raises(DataError, match=r"color/6.jpg: .*\(of 26 frames none is skipped\)"):
        store.decode_all([scene], [list(range(len(scene)))])


def test_a_bad_near_far_file_is_refused(box_copy):
    (box_copy / "near_far.txt").write_text("2 1")
    with pytest.raises(DataError, match="near_far.txt"):
        data.Scene(box_copy, 24, 32)


def test_packed_frames_come_apart_as_they_were():
    generator = np.random.default_rng(0)
    colour = generator.integers(0, 256, (3, 5, 3), dtype=np.uint8)
    labels = generator.integers(-1, 20, (3, 5), dtype=np.int8)
    depth = generator.integers(0, 65536, (3, 5), dtype=np.uint16)
    packed = store.pack(colour, labels, depth)
    assert packed.shape == (3, 5, 6) and packed.dtype == np.uint8
    for got, want in zip(store.unpack(packed[None]), (colour, labels, depth)):
        assert got.dtype == want.dtype and np.array_equal(got[0], want)


# ------------------------------------------------------------- what a decoded frame depends on; silent errors

def all_walls(folder):
    lines = (folder.parent / LABELS_TSV).read_text().replace("\t9\n", "\t1\n").replace("\t39\n", "\t1\n")
    (folder.parent / LABELS_TSV).write_text(lines)


def move(kind, column):
    def act(folder):
        path = folder / "intrinsic" / f"intrinsic_{kind}.txt"
        K = np.loadtxt(path)
        K[0, 2] += column
        np.savetxt(path, K)
    return act


@pytest.mark.parametrize("change", [all_walls, move("depth", 6), move("color", 4)])
def test_a_frame_is_decoded_again_where_anything_that_it_depends_on_changes(box_copy, tmp_path, change):
    before = data.Scene(box_copy, 48, 64, tmp_path / "cache").load(3)
    change(box_copy)
    after = data.Scene(box_copy, 48, 64, tmp_path / "cache").load(3)
    assert not np.array_equal(before, after)
    assert np.array_equal(after, data.Scene(box_copy, 48, 64, tmp_path / "fresh").load(3))


@pytest.mark.parametrize("make", ["mkfifo", "big"])
def test_what_is_no_frame_in_the_cache_is_neither_waited_for_nor_read(box_folder, tmp_path, make):
    scene = data.Scene(box_folder, 24, 32, cache=tmp_path)
    good, (file,) = scene.load(0), scene.cache.iterdir()
    file.unlink()
    if make == "mkfifo":
        os.mkfifo(file)
        with pytest.raises(DataError, match="cannot write the cache .not a file"):     # and never replaced
            scene.load(0)
    else:
        with open(file, "wb") as sparse:
            sparse.truncate(3 * 2 ** 30)
        assert np.array_equal(scene.load(0), good) and file.stat().st_size < 10_000


@pytest.mark.parametrize("change", [
    lambda x: (x // 256).astype(np.uint8), lambda x: x[::2, ::2], lambda x: np.repeat(x, 2, 1)])
def test_depth_of_other_bits_or_of_another_size_than_its_camera_is_refused(box_copy, tmp_path, change):
    for path in (box_copy / "depth").iterdir():
        iio.imwrite(path, change(iio.imread(path)))
    with pytest.raises(DataError, match="16 bits|intrinsic_depth|another image size"):
        data.Scene(box_copy, 48, 64, tmp_path / "cache").views([0])


@pytest.mark.parametrize("kind", ["depth", "label-filt"])
def test_a_map_that_is_jpg_inside_is_refused(box_copy, tmp_path, kind):
    path = box_copy / kind / "2.png"
    iio.imwrite(path, iio.imread(path).astype(np.uint8), extension=".jpg")
    with pytest.raises(DataError, match=f"{kind}/2.png: .*not a png"):
        data.Scene(box_copy, 48, 64, tmp_path / "cache").views([0])


def test_photographs_in_print_colours_are_read_rightly(box_copy, tmp_path):
    before = data.Scene(box_copy, 48, 64, tmp_path / "a").views([0]).images
    path = box_copy / "color/2.jpg"
    Image.open(path).convert("CMYK").save(path, quality=98, subsampling=0)
    after = data.Scene(box_copy, 48, 64, tmp_path / "b").views([0]).images
    assert float((before - after).abs().mean()) < 0.02


def test_pixels_that_are_decoded_at_a_time_have_a_bound_whatever_the_number_of_threads():
    memory, now, most = store.Memory(100), [], []

    def work(pixels):
        with memory.share(pixels):
            now.append(pixels)
            most.append((sum(now), len(now)))
            time.sleep(0.002)
            now.remove(pixels)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, [60, 30, 10, 500, 40, 40, 1, 100, 20] * 6))       # 500: alone, but not never
    assert all(count == 1 or pixels <= 100 for pixels, count in most) and memory.left == 100
    assert max(count for _, count in most) > 1


def test_a_decoded_frame_takes_its_share_of_memory_by_its_largest_image(box_copy, tmp_path, monkeypatch):
    iio.imwrite(box_copy / "label-filt/2.png", np.ones((96, 128), np.uint16))
    asked, share = [], store.MEMORY.share
    monkeypatch.setattr(store.MEMORY, "share", lambda pixels: asked.append(pixels) or share(pixels))
    data.Scene(box_copy, 24, 32, tmp_path / "cache").views([0, 0])
    assert asked == [96 * 128]                                                # and once: then it is cached
