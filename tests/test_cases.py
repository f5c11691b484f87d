"""Inputs that users have, through the real commands: each comes in with every pixel where its camera sees it,
or is refused in one line that says what to type. What other programs write is made by captures.py."""
import json
import shutil
import struct
from importlib import import_module

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from captures import (
    SIZE,
    K,
    check_pixels,
    colours,
    frames,
    imported,
    importer,
    intrinsics,
    pinhole,
    refused,
    run,
    write_images,
    write_transforms,
)
from conftest import REPO, camera, write_box_scene, write_matrix
from PIL import Image
from test_tool_import import sens_bytes, weights, write_replica

from support.files import read_near_far
from support.frames import decode_all
from support.labels import LABELS_TSV, SCANNET

data, training, evaluation = (import_module(name) for name in ("01_data", "07_train", "08_eval"))
reprojection = import_module("03_reprojection")


def said(capsys) -> str:
    return capsys.readouterr().out


def write_json(path, meta, listed) -> None:
    path.write_text(json.dumps(meta | {"frames": listed}))


# --------------------------------------------------------------------------- the same photograph, once

def test_train_copied_to_test_and_val_has_each_photograph_once(tmp_path, capsys):
    write_images(tmp_path / "c/images")
    for name in ("train", "val", "test"):
        write_json(tmp_path / f"c/transforms_{name}.json", intrinsics(), frames(24))
    scene = imported(tmp_path / "c", tmp_path / "out")
    check_pixels(scene, 24, 0.01)
    assert "48 photographs are there twice: taken once" in said(capsys)
    assert not (scene.folder / "split.txt").exists()                          # train alone is no split
    source, tune, test = data.protocol(scene)
    assert len(set(source + tune + test)) == 20


@pytest.mark.parametrize("whole", ["transforms_all.json", "transforms.json"])
def test_all_beside_train_and_test_has_each_photograph_once_and_keeps_the_split(tmp_path, capsys, whole):
    write_images(tmp_path / "c/images")
    for name, part in (("transforms_train.json", slice(18)), ("transforms_test.json", slice(18, 24)),
                       (whole, slice(24))):
        write_json(tmp_path / "c" / name, intrinsics(), frames(24)[part])
    scene = imported(tmp_path / "c", tmp_path / "out")
    check_pixels(scene, 24, 0.01)
    assert "24 photographs are there twice" in said(capsys)
    assert scene.parts() == (list(range(18)), list(range(18, 24)))


def test_a_frame_listed_twice_or_copied_under_another_name_counts_once(tmp_path, capsys):
    source = write_transforms(tmp_path / "c")
    shutil.copy(source / "images/0003.png", source / "images/copy.png")
    again = frames(24)[3] | {"file_path": "images/copy.png"}
    write_json(source / "transforms.json", intrinsics(), frames(24) + frames(24)[:8] + [again])
    check_pixels(imported(source, tmp_path / "out"), 24, 0.01)
    assert "9 photographs are there twice" in said(capsys)


def test_an_export_with_a_photograph_twice_counts_it_once(box_copy, capsys):
    for kind, end in (("color", "jpg"), ("pose", "txt"), ("label-filt", "png"), ("depth", "png")):
        shutil.copy(box_copy / kind / f"6.{end}", box_copy / kind / f"500.{end}")
    scene = data.Scene(box_copy, 24, 32)
    assert 500 not in scene.frames and len(scene) == 25
    assert "1 photographs are there twice: taken once" in said(capsys)


# --------------------------------------------------------------------------------- masks, splits, bad frames

HOLE = np.full(SIZE, 255, np.uint8)
HOLE[12:24, 16:32] = 0                                                        # black: a moving person


def write_masked(folder, kind: str):
    """A capture whose photographs are red where HOLE is black, and masks that say so."""
    source = write_transforms(folder)
    for path in sorted((source / "images").iterdir()):
        image = iio.imread(path)
        image[HOLE == 0] = 255, 0, 0
        iio.imwrite(path, image)
        if kind == "dynamic":
            iio.imwrite(source / f"images/dynamic_mask_{path.stem}.png", 255 - HOLE)
        else:
            (source / "masks").mkdir(exist_ok=True)
            iio.imwrite(source / f"masks/{path.name}", np.repeat(HOLE[..., None], 3, 2))
    if kind == "mask_path":
        listed = [frame | {"mask_path": frame["file_path"].replace("images", "masks")}
                  for frame in frames(24)]
        write_json(source / "transforms.json", intrinsics(), listed)
    return source


@pytest.mark.parametrize("kind", ["mask_path", "masks", "dynamic"])
def test_masked_pixels_are_no_truth_and_no_source(tmp_path, capsys, kind):
    scene = imported(write_masked(tmp_path / "c", kind), tmp_path / "out")
    assert "24 masks: 6.2% of all pixels are no truth and no source" in said(capsys)
    views = scene.views([0, 5, 9])
    assert (views.mask.numpy() == (HOLE > 0)).all() and (views.labels == data.IGNORE).all()
    config = training.Config(height=48, width=64, views=2, rays=512, coarse=4, fine=4)
    batch = training.draw_batch(scene, list(range(24)), [], config, training.generator_of(0, 0))
    u, v = batch.pixels.long().T
    assert (HOLE[v, u] > 0).all() and not (batch.colours == torch.tensor([1.0, 0, 0])).all(1).any()
    torch.manual_seed(0)
    model = training.SRay(config).eval()
    points = data.unproject(torch.tensor([[24.0, 18.0], [50.0, 40.0]]), torch.tensor([1.0, 1.0]), views.K[0],
                            views.c2w[0])[:, None]  # in view 0: in the hole, and not
    with torch.no_grad():
        sources = model.encode(views)
        seen = model.coarse.reprojection(points, views.c2w[1, :3, 3], *sources[:4], True, sources.mask)
    assert seen.mask[:, 0, 0].tolist() == [False, True] and (seen.M[0, 0, 0] == 0).all()
    packed = import_module("fast.packed").PackedLevel(config, 20).eval()      # the same tokens are invalid
    packed.load_state_dict(model.coarse.state_dict())
    rays = data.rays(data.pixel_grid(48, 64)[::97], views.K[1], views.c2w[1])
    z = torch.full((32, 4), 1.0).cumsum(1)
    with torch.no_grad():
        (_, a, b), (_, c, d) = (level.context_and_density(*rays, z, sources)
                                for level in (model.coarse, packed))
        _, plain, _ = model.coarse.context_and_density(*rays, z, sources._replace(mask=None))
    assert torch.allclose(a, c, atol=1e-4) and torch.allclose(b, d, atol=1e-4)
    assert not torch.allclose(a, plain)


def test_masks_count_in_no_figure(tmp_path):
    scene = imported(write_masked(tmp_path / "c", "masks"), tmp_path / "out")
    torch.manual_seed(0)
    model = training.SRay(training.Config(height=48, width=64, views=2, rays=8, coarse=2, fine=2)).eval()
    shot = next(evaluation.render_views(model, scene, data.protocol(scene)[2][:1], views=2))
    shown = HOLE > 0
    want = -10 * np.log10(((shot["colour"].numpy() - shot["truth"].numpy())[shown] ** 2).mean())
    assert shot["psnr"] == pytest.approx(want, abs=1e-3) and shot["ssim"] is None


def test_bad_frames_are_left_out_and_test_frames_are_the_split(tmp_path, capsys):
    source = write_transforms(tmp_path / "c")
    listed = [frame | {"is_bad": i in (4, 9)} for i, frame in enumerate(frames(24))]
    write_json(source / "transforms.json", intrinsics() | {"test_frames": listed[20:]}, listed[:20])
    scene = imported(source, tmp_path / "out")
    check_pixels(scene, 22, 0.01)
    assert "2 frames have is_bad: left out" in said(capsys)
    assert scene.parts() == (list(range(18)), list(range(18, 22)))


def test_lists_of_file_names_are_the_split(tmp_path):
    names = [frame["file_path"] for frame in frames(24)]
    source = write_transforms(tmp_path / "c", train_filenames=names[:18], val_filenames=names[18:20],
                              test_filenames=names[19:24])
    scene = imported(source, tmp_path / "out")
    assert scene.parts() == (list(range(18)), [20, 21, 22, 23])               # what is in two is in the first


def test_07_and_08_use_the_captures_own_split(tmp_path):
    write_images(tmp_path / "c/images")
    test = [2, 5, 11, 14, 17]
    for name, part in (("train", [i for i in range(24) if i not in test]), ("test", test)):
        write_json(tmp_path / f"c/transforms_{name}.json", intrinsics(), [frames(24)[i] for i in part])
    scene = imported(tmp_path / "c", tmp_path / "out")
    source, tune, held = data.protocol(scene)
    truth = {i: scene.poses[i] for i in range(24)}
    assert len(source) == len(tune) == 8 and len(held) == 4
    assert all(any(np.allclose(truth[i], camera(k), atol=1e-6) for k in test) for i in held)
    starting = import_module("support.starting")
    for tested in ([], [scene.name]):
        run_of = {"test": tested, "train": [], "finetuned": False}
        allowed = starting.training_frames(scene, run_of, 4, data.protocol)
        assert not any(np.allclose(truth[i], camera(k), atol=1e-6) for i in allowed for k in test)
    assert set(evaluation.test_views(scene)) == set(held)


# ------------------------------------------------------------------------- what is where, and what is missing

def test_some_images_missing_are_counted_and_the_rest_comes_in(tmp_path, capsys):
    source = write_transforms(tmp_path / "c", count=28)
    for i in (2, 5, 9, 27):
        (source / f"images/{i:04d}.png").unlink()
    check_pixels(imported(source, tmp_path / "out"), 24, 0.01)
    assert "4 of 28 images are not there (0002.png, ...): left out" in said(capsys)


def test_images_2_alone_stands_for_images(tmp_path):
    meta = {"fl_x": 110, "fl_y": 110, "cx": 64, "cy": 48}
    source = write_transforms(tmp_path / "c", meta | {"w": 128, "h": 96})
    (source / "images").rename(source / "images_2")
    check_pixels(imported(source, tmp_path / "out"), 24, 0.01)
    meta = {"fl_x": 110, "fl_y": 110, "cx": 64, "cy": 48}  # no w, h: the folder's name says it
    write_json(source / "transforms.json", meta, frames(24))
    check_pixels(imported(source, tmp_path / "out2"), 24, 0.01)


@pytest.mark.parametrize("prefix", ["/elsewhere/in/", "../in/", "./data\\livingroom\\", "C:\\x\\"])
def test_names_that_start_in_another_folder_are_found_in_this_one(tmp_path, capsys, prefix):
    source = write_transforms(tmp_path / "in")
    listed = [frame | {"file_path": prefix + frame["file_path"]} for frame in frames(24)]
    text = json.dumps(intrinsics() | {"frames": listed})
    (source / "transforms.json").write_text("\ufeff" + text, encoding="utf-8")
    check_pixels(imported(source, tmp_path / "out"), 24, 0.01)
    assert "24 file names start in another folder" in said(capsys)


def test_scannetpp_undistorted_comes_in_under_its_scans_name(tmp_path):
    folder = tmp_path / "c/0a1b2c/dslr/nerfstudio"
    folder.mkdir(parents=True)
    write_images(folder.with_name("resized_undistorted_images"))
    listed = [frame | {"file_path": frame["file_path"].removeprefix("images/")} for frame in frames(24)]
    write_json(folder / "transforms_undistorted.json", intrinsics() | {"camera_model": "PINHOLE"}, listed)
    write_json(folder / "transforms.json", intrinsics() | {"camera_model": "OPENCV_FISHEYE"}, listed)
    scene = imported(tmp_path / "c", tmp_path / "out")
    check_pixels(scene, 24, 0.01)
    assert scene.name == "0a1b2c"


def llff_rows(count: int) -> np.ndarray:
    rows = []
    for i in range(count):
        right, down, forward, position = camera(i)[:3].T
        rows.append([*np.stack([down, right, -forward, position, [48, 64, 55]], axis=1).ravel(), 0.5, 5.0])
    return np.array(rows)


def test_llff_with_unregistered_images_uses_view_imgs(tmp_path, capsys):
    write_images(tmp_path / "c/images", 24)
    for i in (3, 8):                                                          # two that have no pose
        iio.imwrite(tmp_path / f"c/images/{i:04d}x.png", np.zeros((*SIZE, 3), np.uint8))
    np.save(tmp_path / "c/poses_bounds.npy", llff_rows(24))
    assert "view_imgs.txt must list" in refused(importer, tmp_path / "c", "--out", tmp_path / "no")
    (tmp_path / "c/view_imgs.txt").write_text("".join(f"{i:04d}.png\n" for i in range(24)))
    check_pixels(imported(tmp_path / "c", tmp_path / "out"), 24, 0.01)
    assert "2 images are not in view_imgs.txt (no pose): left out" in said(capsys)


def test_many_layouts_at_many_depths_come_in_and_the_rest_is_named(tmp_path, capsys):
    for name in ("nerf_synthetic/lego", "nerf_synthetic/chair", "deep/er/still/phone", "other/lego"):
        write_transforms(tmp_path / "c" / name)
    for name in ("fern", "horns"):
        write_images(tmp_path / f"c/nerf_llff_data/{name}/images", 24)
        np.save(tmp_path / f"c/nerf_llff_data/{name}/poses_bounds.npy", llff_rows(24))
    write_images(tmp_path / "c/snaps", 3)
    write_box_scene(tmp_path / "c/scans/scene0001_00")
    (tmp_path / "c/clips").mkdir()
    (tmp_path / "c/clips/a.mp4").write_bytes(b"x")
    run(importer, tmp_path / "c", "--out", tmp_path / "out", "--near", 1, "--far", 5)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "chair", "fern", "horns", "nerf_synthetic_lego", "other_lego", "phone"]
    screen = said(capsys)
    left = [line for line in screen.splitlines() if line.startswith("NOT IMPORTED")]
    for words in ("snaps: 3 photographs without poses", "clips/a.mp4: a video",
                  "scene0001_00: ScanNet's export already"):
        assert sum(words in line for line in left) == 1, words
    for name in ("fern", "phone"):
        check_pixels(data.Scene(tmp_path / "out" / name, *SIZE, tmp_path / "cache"), 24, 0.01)


def test_depth_in_another_unit_is_read_in_its_own(tmp_path):
    source = write_transforms(tmp_path / "c", depth_unit_scale_factor=0.0002)
    (source / "depth").mkdir()
    for i in range(24):
        iio.imwrite(source / f"depth/{i}.png", np.full(SIZE, 10000 + i, np.uint16))
    listed = [frame | {"depth_file_path": f"depth/{i}.png"} for i, frame in enumerate(frames(24))]
    write_json(source / "transforms.json", intrinsics() | {"depth_unit_scale_factor": 0.0002}, listed)
    scene = imported(source, tmp_path / "out", measure=True)
    assert scene.views([0]).depth.unique().tolist() == pytest.approx([2.0])
    assert scene.near_far == pytest.approx((1.0, 3.0), rel=0.01)


@pytest.mark.parametrize("size, code", [((48, 48), 6), ((48, 64), 3)])
def test_photographs_that_exif_would_turn_unseen_are_refused(tmp_path, size, code):
    matrix = np.array([[55.0, 0, size[1] / 2 - 0.5], [0, 55, 23.5], [0, 0, 1]])
    source = write_transforms(tmp_path / "c", intrinsics(matrix, size), rays=pinhole(matrix, size))
    check_pixels(imported(source, tmp_path / "out"), 24, 0.01)
    exif = Image.Exif()
    exif[0x0112] = code
    for path in (source / "images").iterdir():
        Image.open(path).save(path, exif=exif)
    line = refused(importer, source, "--out", tmp_path / "out2")
    assert "24 of 24 images" in line and "exiftool -Orientation= " in line and "mogrify -auto-orient " in line


def test_photographs_that_exif_would_turn_by_90_are_taken_as_stored_where_the_file_says_so(tmp_path, capsys):
    source, exif = write_transforms(tmp_path / "c"), Image.Exif()
    exif[0x0112] = 6
    for path in (source / "images").iterdir():
        Image.open(path).save(path, exif=exif)
    check_pixels(imported(source, tmp_path / "out"), 24, 0.01)
    assert "24 images have an EXIF orientation: taken as their pixels are stored" in said(capsys)


# ----------------------------------------------------------------------------------------- refusals that help

def photos(folder):
    write_images(folder, 3)


def video(folder):
    folder.mkdir()
    (folder / "room.mp4").write_bytes(b"x")


def seven_scenes(folder):
    (folder / "seq-01").mkdir(parents=True)
    (folder / "seq-01/frame-000000.pose.txt").write_text("")


def nice_slam(folder):
    (folder / "room0/results").mkdir(parents=True)
    (folder / "room0/results/frame000000.jpg").write_bytes(b"x")


def tum(folder):
    folder.mkdir()
    (folder / "groundtruth.txt").write_text("")


@pytest.mark.parametrize("write, words", [
    (photos, ["3 photographs without poses", "colmap automatic_reconstructor --workspace_path"]),
    (lambda folder: write_images(folder / "images_2", 3), ["3 photographs without poses", "images_2"]),
    (video, ["room.mp4: a video", "ffmpeg -i", "colmap automatic_reconstructor"]),
    (seven_scenes, ["7-Scenes"]), (nice_slam, ["NICE-SLAM"]), (tum, ["TUM"])])
def test_a_folder_that_is_no_scene_is_told_what_to_type(tmp_path, write, words):
    write(tmp_path / "c")
    checkpoint = weights(tmp_path / "checkpoint.pt")
    for command in ((importer, tmp_path / "c", "--out", tmp_path / "out"),
                    (training, "--scene", tmp_path / "c"),
                    (evaluation, "--checkpoint", checkpoint, "--scene", tmp_path / "c")):
        line = refused(*command)
        assert all(word in line for word in words), line


def test_a_level_too_high_or_too_low_is_named(box_folder, tmp_path):
    shutil.copytree(box_folder, tmp_path / "a/scans/scene0001_00")
    assert f"name {tmp_path / 'a/scans'}" in refused(training, "--scene", tmp_path / "a")
    low = tmp_path / "a/scans/scene0001_00/color"
    assert "a part of the scene" in refused(training, "--scene", low)
    source = write_transforms(tmp_path / "c")
    assert "a part of the scene" in refused(importer, source / "images", "--out", tmp_path / "out")


def test_a_sequence_of_replica_itself_and_vmaps_place_come_in(box, tmp_path):
    write_replica(tmp_path / "r", box, count=2)
    run(importer, tmp_path / "r/room_0/Sequence_1", "--out", tmp_path / "out", "--every", 1)
    assert (tmp_path / "out/room_0_01/color/1.png").exists()
    (tmp_path / "v/room_1/imap").mkdir(parents=True)
    (tmp_path / "r/room_0/Sequence_1").rename(tmp_path / "v/room_1/imap/00")
    run(importer, tmp_path / "v", "--out", tmp_path / "out2", "--every", 1)
    wide = np.array([[32.0, 0, 31.5], [0, 32, 23.5], [0, 0, 1]])
    assert (iio.imread(tmp_path / "out2/room_1_00/color/1.png") == colours(pinhole(wide), camera(1))).all()


# --------------------------------------------------------------------------------------- ScanNet's export

SMALL = ("--preset", "smoke", "--steps", 1, "--no-eval", "--views", 2)


def test_colour_resized_and_its_camera_not_is_refused_by_07_and_08(box_copy, tmp_path):
    full = np.array([[100, 0, 62.5], [0, 104, 49.5], [0, 0, 1.0]])
    write_matrix(box_copy / "intrinsic/intrinsic_color.txt", full)
    checkpoint = weights(tmp_path / "checkpoint.pt")
    for command in ((training, "--scene", box_copy, *SMALL),
                    (evaluation, "--checkpoint", checkpoint, "--scene", box_copy)):
        assert "seem to belong to about 126x100" in refused(*command, "--cache", tmp_path / "cache")


def test_a_focal_length_of_another_size_is_refused_beside_depth(box_copy, tmp_path):
    other = np.array([[100, 0, 31.5], [0, 104, 23.5], [0, 0, 1.0]])
    write_matrix(box_copy / "intrinsic/intrinsic_color.txt", other)
    assert "the depth camera" in refused(training, "--scene", box_copy, *SMALL, "--cache", tmp_path / "cache")


@pytest.mark.parametrize("ending", [".jpg", ".jpeg", ".JPG"])
def test_numbers_padded_with_zeros_are_numbers(box_copy, tmp_path, ending):
    for kind in ("color", "pose", "depth", "label-filt"):
        for path in sorted((box_copy / kind).iterdir()):
            end = ending if kind == "color" else path.suffix
            path.rename(path.with_name(f"{978 + int(path.stem) // 4:04d}{end}"))
    scene = data.Scene(box_copy, 24, 32, tmp_path / "cache")
    assert len(scene) == 25 and scene.frames[0] == 978 and scene.frames[-1] == 1003
    assert scene.views([24]).labels.max() >= 0 and np.allclose(scene.poses[24], camera(25), atol=1e-6)


def test_files_that_belong_to_no_frame_are_counted_in_a_line(box_copy, tmp_path, capsys):
    (box_copy / "pose/2b.txt").write_text("")
    shutil.copy(box_copy / "color/2.jpg", box_copy / "color/7.jpg")
    data.Scene(box_copy, 24, 32, tmp_path / "cache")
    assert "1 in pose/ (2b.txt), 1 in color/ (7.jpg)" in said(capsys)


def test_poses_of_all_frames_and_colour_of_every_tenth(box_copy, tmp_path):
    for path in sorted((box_copy / "color").iterdir(), key=lambda path: int(path.stem))[:]:
        if (int(path.stem) - 2) // 4 % 5:
            path.unlink()
    line = refused(training, "--scene", box_copy, *SMALL, "--cache", tmp_path / "cache")
    assert "20 of 26 poses have no image in color/: it has one frame in 5; give --every 5" in line
    assert len(data.Scene(box_copy, 24, 32, tmp_path / "cache", every=5)) == 6


def test_only_the_depth_cameras_numbers_are_named(box_copy, tmp_path):
    (box_copy / "intrinsic/intrinsic_color.txt").unlink()
    line = refused(training, "--scene", box_copy, *SMALL, "--cache", tmp_path / "c")
    assert "intrinsic_depth.txt is there" in line


def test_a_training_without_labels_is_refused_before_its_first_step(box_copy, tmp_path, capsys):
    (box_copy / "label-filt").rename(box_copy / "label")
    flags = ("--scene", box_copy, *SMALL, "--cache", tmp_path / "cache", "--out", tmp_path / "run")
    line = refused(training, *flags)
    assert "no training scene has labels" in line and "label is not read" in line and "--lambda1 0" in line
    assert "labels: 0 of 1 training scenes" in said(capsys) and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_scannet_frames_25k_is_told_what_to_do_and_then_trains(box_copy, tmp_path, capsys):
    for kind in ("color", "pose", "depth", "label-filt"):
        for path in sorted((box_copy / kind).iterdir()):
            path.rename(path.with_name(f"{int(path.stem) * 100:06d}{path.suffix}"))
    nyu40 = {0: 0, 1: 1, 3: 2, 1163: 40, 1357: 39, 21: 9}
    for path in (box_copy / "label-filt").iterdir():
        iio.imwrite(path, np.vectorize(nyu40.get)(iio.imread(path)).astype(np.uint8))
    (box_copy / "label-filt").rename(box_copy / "label")
    for kind in ("color", "depth"):
        (box_copy / f"intrinsic/intrinsic_{kind}.txt").rename(box_copy / f"intrinsics_{kind}.txt")
    (box_copy / "intrinsic").rmdir()
    (box_copy.parent / LABELS_TSV).unlink()
    flags = ("--scene", box_copy, *SMALL, "--cache", tmp_path / "cache", "--out", tmp_path / "run")
    line = refused(training, *flags)
    assert "rename it and copy docs/classes-nyu40.csv" in line
    (box_copy / "label").rename(box_copy / "label-filt")
    shutil.copy(REPO / "docs/classes-nyu40.csv", box_copy.parent / "classes.csv")
    run(training, *flags)
    assert "labels: 1 of 1 training scenes" in said(capsys)
    scene = data.Scene(box_copy, *SIZE, tmp_path / "cache")
    assert scene.classes == SCANNET and set(scene.views([3]).labels.unique().tolist()) <= {-1, 0, 1, 19, 8}


def test_labels_that_may_be_nyu40_ids_already_get_a_warning(box_copy, tmp_path, capsys):
    scene = data.Scene(box_copy, 24, 32, tmp_path / "cache")
    decode_all([scene], [list(range(25))], quiet=True)
    assert "no label above 40" not in said(capsys)
    for path in (box_copy / "label-filt").iterdir():
        iio.imwrite(path, np.minimum(iio.imread(path), 40))
    scene = data.Scene(box_copy, 24, 32, tmp_path / "cache")
    decode_all([scene], [list(range(25))], quiet=True)
    assert "no label above 40 in 25 frames" in said(capsys)


def write_scan(folder, labels: str) -> None:
    """scene0000_00.sens of the box, 3 frames, and its labels as they were downloaded."""
    scan = folder / "scene0000_00"
    scan.mkdir(parents=True)
    made = [(camera(i), iio.imwrite("<bytes>", colours(pinhole(K), camera(i)), extension=".png"),
             np.full(SIZE, 1500, np.uint16)) for i in range(3)]
    raw = sens_bytes(made, K, K, SIZE, SIZE)
    raw = raw.replace(struct.pack("<ii", 2, 1), struct.pack("<ii", 1, 1), 1)  # its images are png
    (scan / "scene0000_00.sens").write_bytes(raw)
    (folder / LABELS_TSV).write_text("id\tcategory\tnyu40id\n1\twall\t1\n50\tbin\t39\n")
    if labels == "zip of other labels":
        (scan / "scene0000_00_2d-label.zip").write_bytes(b"x")
    elif labels != "none":
        (scan / labels).mkdir()
        for i in range(3):
            iio.imwrite(scan / labels / f"{i}.png", np.full(SIZE, 1, np.uint16))


def test_labels_already_unpacked_beside_a_scan_are_read(tmp_path, capsys):
    write_scan(tmp_path / "d", "label-filt")
    run(importer, tmp_path / "d", "--out", tmp_path / "out", "--every", 1)
    scene = data.Scene(tmp_path / "out/scene0000_00", *SIZE, tmp_path / "cache")
    check_pixels(scene, 3, 0.01)
    assert (scene.views([1]).labels == 0).all() and ", labels," in said(capsys)


@pytest.mark.parametrize("labels, seen", [
    ("zip of other labels", "scene0000_00_2d-label.zip is, which"), ("label", "(label is, which"),
    ("none", "")])
def test_labels_that_are_not_read_are_named(tmp_path, capsys, labels, seen):
    write_scan(tmp_path / "d", labels)
    run(importer, tmp_path / "d", "--out", tmp_path / "out", "--every", 1)
    screen = said(capsys)
    assert "no labels: " in screen and "_2d-label-filt.zip is not there" in screen and seen in screen


# --------------------------------------------------------------------------------------------------- cropping

def test_crop_takes_pixels_off_every_side_and_the_camera_with_them(box_copy, tmp_path):
    a = data.Scene(box_copy, 48, 64, tmp_path / "c").views([3])
    b = data.Scene(box_copy, 40, 56, tmp_path / "c", crop=4).views([3])
    assert torch.equal(b.images, a.images[:, :, 4:-4, 4:-4])
    assert torch.equal(b.labels, a.labels[:, 4:-4, 4:-4])
    assert torch.equal(b.depth, a.depth[:, 4:-4, 4:-4])
    points = data.unproject(torch.tensor([[20.0, 11.0]]), torch.tensor([1.3]), a.K[0], a.c2w[0])
    assert data.project(points, b.K, b.c2w)[0].flatten().tolist() == pytest.approx([16, 7], abs=1e-4)
    flags = "--scene", box_copy, *SMALL, "--crop", 20, "--cache", tmp_path / "c"
    assert "crop less" in refused(training, *flags)


@pytest.mark.slow
def test_08_crops_as_its_run_did(box_copy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("support.pictures.evaluation_sheet", lambda *_, **__: None)
    run(training, "--scene", box_copy, *SMALL, "--crop", 4, "--out", "run", "--height", 40, "--width", 56)
    run(evaluation, "--checkpoint", "run/checkpoint.pt", "--views", 2)
    assert [path.name.split("_")[-1] for path in (tmp_path / "cache").iterdir()] == ["crop4"]


# ----------------------------------------------------------------------------------------------- near and far

@pytest.mark.slow
def test_near_and_far_of_a_capture_are_measured(tmp_path, capsys):
    scene = imported(write_transforms(tmp_path / "c", count=26), tmp_path / "out", measure=True)
    screen, (near, far) = said(capsys), read_near_far(scene.folder / "near_far.txt")
    if "measured" in screen:
        assert 0.3 < near < 1.2 and 3 < far < 8
    else:
        assert "guessed" in screen
