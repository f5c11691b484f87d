"""01_data.py: cameras, the reader, the cache, who looks at what, and what bad input ends in."""
import pickle
import re
import shutil
from importlib import import_module
from itertools import product
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch

data = import_module("01_data")


def poses(count, seed=0):
    """Random rigid c2w (count, 4, 4) float64."""
    generator = torch.Generator().manual_seed(seed)
    c2w = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    c2w[:, :3, :3] = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator, dtype=torch.float64)).Q
    c2w[:, :3, :3] *= torch.linalg.det(c2w[:, :3, :3])[:, None, None]                  # a rotation, no mirror
    c2w[:, :3, 3] = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return c2w


def intrinsics(count):
    """Different K (count, 3, 3) float64."""
    K = torch.eye(3, dtype=torch.float64).repeat(count, 1, 1)
    for i in range(count):
        K[i, 0, 0], K[i, 1, 1], K[i, 0, 2], K[i, 1, 2] = 50 + i, 70 - i, 31 + 2 * i, 22.5 - i
    return K


# ---------------------------------------------------------------------------------------------------- cameras and rays

def test_projection_inverts_unprojection():
    c2w, K = poses(3), intrinsics(3)
    pixels, depth = torch.rand(5, 2, dtype=torch.float64) * 60, torch.rand(5, dtype=torch.float64) * 4 + 0.3
    for v in range(3):
        points = data.unproject(pixels, depth, K[v], c2w[v])
        uv, z = data.project(points, K, c2w)
        assert uv.shape == (5, 3, 2) and z.shape == (5, 3)
        torch.testing.assert_close(uv[:, v], pixels)
        torch.testing.assert_close(z[:, v], depth)


def test_projection_equals_the_pinhole_formula_point_by_point():
    c2w, K = poses(3), intrinsics(3)
    points = torch.randn(2, 5, 3, dtype=torch.float64) * 3
    uv, z = data.project(points, K, c2w)
    assert (z > 0).any() and (z < 0).any()
    for r, s, v in product(range(2), range(5), range(3)):
        x, y, depth = torch.linalg.inv(c2w[v])[:3] @ torch.cat([points[r, s], torch.ones(1, dtype=torch.float64)])
        expected = torch.stack([K[v, 0, 0] * x / depth + K[v, 0, 2], K[v, 1, 1] * y / depth + K[v, 1, 2]])
        torch.testing.assert_close(uv[r, s, v], expected)
        torch.testing.assert_close(z[r, s, v], depth)


def test_a_pixel_whose_point_is_behind_the_camera_has_negative_depth_and_is_finite():
    c2w, K = poses(1), intrinsics(1)
    centre, forward = c2w[0, :3, 3], c2w[0, :3, 2]
    uv, z = data.project(torch.stack([centre - 2 * forward, centre, centre + 2 * forward]), K, c2w)
    assert z[0, 0] < 0 < z[2, 0] and torch.isfinite(uv).all()


def test_pixel_grid_runs_row_by_row_over_integer_centres():
    assert data.pixel_grid(2, 3).tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]]


def test_resizing_moves_a_pixel_centre_by_its_axis_factor_about_the_image_corner():
    K, c2w = torch.tensor([[1170.0, 0, 647.7], [0, 1171.5, 483.7], [0, 0, 1]], dtype=torch.float64), poses(1)
    small = data.scale_intrinsics(K, (968, 1296), (240, 320))
    pixels = torch.tensor([[0.0, 0.0], [1295.0, 967.0], [100.25, 777.0]], dtype=torch.float64)
    points = data.unproject(pixels, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), K, c2w[0])
    moved, _ = data.project(points, small[None], c2w)
    factor = torch.tensor([320 / 1296, 240 / 968], dtype=torch.float64)                # not the same ratio
    torch.testing.assert_close(moved[:, 0], (pixels + 0.5) * factor - 0.5)
    assert K[0, 2] == 647.7                                                            # the argument is left alone


def test_a_dot_in_a_resized_image_is_where_the_scaled_intrinsics_project_it():
    K, c2w = torch.tensor([[1170.0, 0, 647.7], [0, 1171.5, 483.7], [0, 0, 1]], dtype=torch.float64), poses(1)
    v, u = np.mgrid[:968, :1296]
    for pixel in ([300.3, 700.8], [1001.6, 250.2]):
        dot = 255 * np.exp(-((u - pixel[0]) ** 2 + (v - pixel[1]) ** 2) / (2 * 15 ** 2))
        image = np.repeat(dot.round().astype(np.uint8)[..., None], 3, axis=2)
        small = data.resize_image(image, 240, 320)[..., 1].astype(float)
        rows, columns = np.mgrid[:240, :320]
        seen = [(small * columns).sum() / small.sum(), (small * rows).sum() / small.sum()]
        point = data.unproject(torch.tensor([pixel], dtype=torch.float64), torch.ones(1, dtype=torch.float64), K, c2w[0])
        where, _ = data.project(point, data.scale_intrinsics(K, (968, 1296), (240, 320))[None], c2w)
        np.testing.assert_allclose(where[0, 0], seen, atol=0.02)                       # half a pixel would be 0.5


@pytest.mark.parametrize("new, old", [(3, 9), (5, 7), (240, 968), (6, 3)])
def test_nearest_pixels_takes_the_cell_that_holds_the_centre(new, old):
    for i, chosen in enumerate(data.nearest_pixels(new, old)):
        centre = (2 * i + 1) * old / (2 * new)                                         # in cells: cell c spans [c, c + 1)
        assert chosen <= centre < chosen + 1


# ---------------------------------------------------------------------------------------------------- the reader

@pytest.fixture
def scene(box_folder, tmp_path):
    return data.Scene(box_folder, 48, 64, cache=tmp_path / "cache")


def test_frames_are_in_numeric_order_and_a_lost_pose_is_left_out(scene, box):
    assert scene.frames == [n for n in box.numbers if n != box.lost]                   # 2, 6, 10, ...: not "10", "102", "14"
    for index in (0, 1, 12):
        expected = box.camera(box.numbers.index(scene.frames[index]))
        np.testing.assert_allclose(scene.c2w[index], expected, atol=1e-6)


def test_every_takes_every_so_many_frame_numbers(box_folder, box):
    scene = data.Scene(box_folder, 48, 64, every=3)
    assert scene.frames == [n for n in box.numbers[::3] if n != box.lost] and len(scene.c2w) == len(scene)


def test_views_hold_the_colours_depths_and_labels_that_were_photographed(scene, box):
    views = scene.views([0, 20])
    assert views.images.shape == (2, 3, 48, 64) and views.labels.shape == views.depth.shape == (2, 48, 64)
    for i, frame in enumerate([scene.frames[0], scene.frames[20]]):
        colour, depth, raw = box.photograph(box.K, box.camera(box.numbers.index(frame)), *box.size)
        error = np.abs(views.images[i].permute(1, 2, 0).numpy() * 255 - colour)
        assert error.mean() < 5                                                        # jpg
        classes = [box.raw_to_class[int(x)] for x in raw.ravel()]
        assert views.labels[i].flatten().tolist() == classes and len(set(classes)) >= 3
        known = views.depth[i] > 0
        assert 0.9 < known.float().mean() < 1                                          # the depth camera sees a bit less
        assert (views.depth[i] - torch.tensor(depth))[known].abs().mean() < 0.01


def test_depth_is_read_through_the_depth_cameras_own_size_and_intrinsics(box_folder, box, tmp_path):
    scene = data.Scene(box_folder, 36, 40, cache=tmp_path)
    depth = scene.views([3]).depth[0].numpy()
    png = iio.imread(box_folder / "depth" / f"{scene.frames[3]}.png")
    unseen = 0
    for row, column in product(range(36), range(40)):
        x = ((column + 0.5) * 64 / 40 - 0.5 - box.K[0, 2]) / box.K[0, 0]               # the ray of this pixel, z = 1
        y = ((row + 0.5) * 48 / 36 - 0.5 - box.K[1, 2]) / box.K[1, 1]
        u, v = (box.depth_K @ [x, y, 1])[:2]
        window = [png[j, i] for i in (int(np.floor(u)), int(np.ceil(u))) for j in (int(np.floor(v)), int(np.ceil(v)))
                  if 0 <= i < 80 and 0 <= j < 60]
        if len(window) == 4:
            assert min(window) <= round(depth[row, column] * 1000) <= max(window)
        elif not window:
            assert depth[row, column] == 0
            unseen += 1
    assert unseen > 0


@pytest.mark.parametrize("height, width", [(48, 64), (36, 40)])
def test_a_depth_warp_between_two_frames_agrees_within_a_pixel(box_folder, tmp_path, height, width):
    scene = data.Scene(box_folder, height, width, cache=tmp_path)
    views = scene.views([8, 13])
    pixels = data.pixel_grid(height, width)
    known = views.depth[0].flatten() > 0
    points = data.unproject(pixels, views.depth[0].flatten(), views.K[0], views.c2w[0])
    uv, z = data.project(points, views.K[1:], views.c2w[1:])
    (u, v), z = uv[:, 0].round().long().T, z[:, 0]
    inside = known & (z > 0) & (u > 0) & (v > 0) & (u < width - 1) & (v < height - 1)
    inside[inside.clone()] &= views.depth[1, v[inside], u[inside]] > 0
    assert inside.float().mean() > 0.4
    u, v, z, first = u[inside], v[inside], z[inside], inside.nonzero()[:, 0]
    colours = views.images[0].flatten(1)[:, first]                                     # (3, P) of the first frame
    steps = list(product((-1, 0, 1), (-1, 0, 1)))                                      # a pixel around, in the second frame
    depths = torch.stack([views.depth[1, v + j, u + i] for j, i in steps])             # (9, P)
    around = torch.stack([views.images[1][:, v + j, u + i] for j, i in steps])         # (9, 3, P)
    labels = torch.stack([views.labels[1, v + j, u + i] for j, i in steps])            # (9, P)
    whole = (depths > 0).all(0)                                                        # next to no hole
    assert ((z >= depths.amin(0) - 0.002) & (z <= depths.amax(0) + 0.002))[whole].float().mean() > 0.98
    noise = 8 / 255                                                                    # jpg
    agree = ((colours >= around.amin(0) - noise) & (colours <= around.amax(0) + noise)).all(0)
    assert agree.float().mean() > 0.97
    assert (labels == views.labels[0].flatten()[first]).any(0).float().mean() > 0.995


def test_intrinsics_are_scaled_per_axis_from_the_images_real_size(box_folder, tmp_path):
    K = data.Scene(box_folder, 36, 40, cache=tmp_path).K
    expected = [[50 * 40 / 64, 0, 31.5 * 40 / 64 - 0.5], [0, 52 * 36 / 48, 25 * 36 / 48 - 0.5], [0, 0, 1]]
    np.testing.assert_allclose(K, expected, rtol=1e-6)


def test_raw_ids_become_nyu40_ids_become_twenty_classes_and_the_rest_is_ignored(box_folder, box):
    table = data.read_label_table(box_folder.parent / data.LABELS_TSV)
    assert len(table) == 1358
    for raw in range(1358):
        assert table[raw] == box.raw_to_class.get(raw, data.IGNORE)
    names = {1: "wall", 2: "floor", 9: "window", 14: "desk", 16: "curtain", 24: "refrigerator", 28: "shower curtain",
             33: "toilet", 34: "sink", 36: "bathtub", 39: "otherfurniture"}
    assert len(data.CLASSES) == 20
    assert all(data.CLASSES[data.NYU40_IDS.index(nyu40)] == name for nyu40, name in names.items())


def test_a_raw_id_beyond_the_table_is_ignored(box_copy, box, tmp_path):
    path = box_copy / "label-filt" / "2.png"
    raw = iio.imread(path)
    raw[:5] = 60000
    iio.imwrite(path, raw)
    labels = data.Scene(box_copy, 48, 64, cache=tmp_path).views([0]).labels[0]
    assert (labels[:5] == data.IGNORE).all() and (labels[5:] != data.IGNORE).any()


def test_a_scene_without_labels_and_depth_reads_as_unlabelled_and_unknown(box_copy, tmp_path):
    shutil.rmtree(box_copy / "label-filt")
    shutil.rmtree(box_copy / "depth")
    (box_copy.parent / data.LABELS_TSV).unlink()
    views = data.Scene(box_copy, 24, 32, cache=tmp_path).views([0, 1])
    assert (views.labels == data.IGNORE).all() and (views.depth == 0).all() and views.images.std() > 0.1


def test_colour_may_be_png(box_copy, tmp_path):
    before = data.Scene(box_copy, 48, 64, cache=tmp_path).load(0)
    iio.imwrite(box_copy / "color" / "2.png", iio.imread(box_copy / "color" / "2.jpg"))
    (box_copy / "color" / "2.jpg").unlink()
    after = data.Scene(box_copy, 48, 64, cache=tmp_path / "other").load(0)
    assert np.array_equal(before, after)


# ---------------------------------------------------------------------------------------------------- the cache

def forbid_decoding(monkeypatch):
    def fail(path):
        raise AssertionError(f"{path} was decoded")
    monkeypatch.setattr(data, "read_image", fail)


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
    shutil.copyfile(box_copy / kind.format(90), box_copy / kind.format(18))            # frame index 4 is number 18
    after = data.Scene(box_copy, 48, 64, cache=tmp_path / "cache").load(4)
    assert not np.array_equal(before, after)
    assert np.array_equal(after, data.Scene(box_copy, 48, 64, cache=tmp_path / "fresh").load(4))


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
        assert not list(scene.cache.glob("*.npy"))                                     # not yet under its name
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(data.np, "save", dies_half_way)
        with pytest.raises(KeyboardInterrupt):
            scene.load(0)
    assert list(scene.cache.iterdir()) == []                                           # and no litter
    scene.load(0)
    assert len(list(scene.cache.glob("*.npy"))) == 1


def test_two_scenes_of_one_name_do_not_share_a_cache_nor_do_two_sizes(box_folder, box_copy, tmp_path):
    for folder, height, width in ((box_folder, 24, 32), (box_copy, 24, 32), (box_folder, 32, 24)):
        scene = data.Scene(folder, height, width, cache=tmp_path)                      # files of the same size and time
        assert scene.load(0).shape == (scene.height, scene.width, 6)
    assert len(list(tmp_path.rglob("*.npy"))) == 3


def test_a_scene_holds_no_frames(scene):
    scene.views(range(len(scene)))
    assert len(pickle.dumps(scene)) < 48 * 64 * 6                                      # all it keeps is less than one frame


# ---------------------------------------------------------------------------------------------------- which views look at what

@pytest.mark.parametrize("angle_weight", [0.0, 1.0, 10.0])
def test_nearest_views_are_sorted_by_distance_plus_angle(angle_weight):
    c2w = poses(7)
    cost = []
    for i in range(1, 7):
        metres = float(torch.dist(c2w[0, :3, 3], c2w[i, :3, 3]))
        cosine = float(sum(c2w[0, k, 2] * c2w[i, k, 2] for k in range(3)))             # of the angle between the z axes
        cost.append(metres + angle_weight * np.arccos(cosine))
    assert data.nearest_views(c2w[0], c2w[1:], 4, angle_weight) == np.argsort(cost)[:4].tolist()


@pytest.mark.parametrize("angle_weight", [0.0, 20.0])
def test_the_target_is_never_among_its_sources_and_these_are_near_it(scene, angle_weight):
    generator = torch.Generator().manual_seed(0)
    targets = set()
    for _ in range(200):
        target, sources = data.training_pair(scene, 5, generator, pool=7, angle_weight=angle_weight)
        assert target not in sources and len(set(sources)) == 5
        others = [i for i in range(len(scene)) if i != target]
        near = data.nearest_views(scene.c2w[target], scene.c2w[others], 7, angle_weight)
        assert set(sources) <= {others[i] for i in near}
        targets.add(target)
    assert len(targets) > 20                                                           # of 25 frames


def test_fine_tuning_draws_from_its_own_frames_only(scene):
    generator, allowed = torch.Generator().manual_seed(0), [1, 5, 6, 9, 20]
    for _ in range(50):
        target, sources = data.training_pair(scene, 3, generator, frames=allowed)
        assert {target, *sources} <= set(allowed) and target not in sources


def test_the_protocol_takes_20_nearby_views_apart_into_8_and_8_and_4_spread_over_time(scene):
    source, tune, test = data.protocol(scene)
    assert (len(source), len(tune), len(test)) == (8, 8, 4)
    twenty = set(source) | set(tune) | set(test)
    assert len(twenty) == 20                                                           # disjoint
    middle = scene.c2w[len(scene) // 2]
    assert twenty == set(data.nearest_views(middle, scene.c2w, 20))
    for part in (tune, test):
        assert all(min(source) <= i for i in part) and sum(i <= max(source) for i in part) >= len(part) - 1
    assert all(min(source) < i < max(source) for i in test)                            # a test view lies between sources
    assert max(b - a for a, b in zip(sorted(test), sorted(test)[1:])) <= 8             # and they are spread


NAMES = [f"scene{space:04d}_{scan:02d}" for space in range(16) for scan in range(1 + space % 3)]


def test_without_a_split_file_every_seventh_space_is_for_testing_with_all_its_scans():
    train, test = data.split_by_space(NAMES)
    assert sorted(train + test) == NAMES
    assert {n[:9] for n in test} == {"scene0006", "scene0013"}
    assert not {n[:9] for n in train} & {n[:9] for n in test}


def test_two_scans_of_one_space_are_never_on_both_sides_of_a_split_file(tmp_path):
    file = tmp_path / "split.txt"
    file.write_text("# ours\ntrain scene0002_00\ntest scene0005   # the space\n\n")
    train, test = data.split_by_space(NAMES, file)
    assert train == ["scene0002_00", "scene0002_01", "scene0002_02"]
    assert test == ["scene0005_00", "scene0005_01", "scene0005_02"]
    file.write_text("train scene0002_00\ntest scene0002_01\n")
    with pytest.raises(data.DataError, match=r"split.txt, line 2: scene0002 .*train and in test"):
        data.split_by_space(NAMES, file)


@pytest.mark.parametrize("text, message", [("train scene0001\nvalid scene0002\n", "line 2"), ("train\n", "line 1")])
def test_a_malformed_split_file_is_named_with_its_line(tmp_path, text, message):
    file = tmp_path / "split.txt"
    file.write_text(text)
    with pytest.raises(data.DataError, match=rf"split.txt, {message}"):
        data.split_by_space(NAMES, file)
    with pytest.raises(data.DataError, match="nowhere.txt: no such split file"):
        data.split_by_space(NAMES, tmp_path / "nowhere.txt")


# ---------------------------------------------------------------------------------------------------- --scene, --data, --scenes

@pytest.fixture
def many(tmp_path):
    """Seven scene folders, empty: enough to be listed."""
    for i in range(7):
        (tmp_path / "scans" / f"scene{i:04d}_00" / "color").mkdir(parents=True)
    (tmp_path / "scans" / "notes").mkdir()
    return tmp_path / "scans"


def test_a_scene_path_is_one_scene_for_training(box_folder):
    found = data.find_dataset(str(box_folder), None, 0, 0)
    assert (found.kind, found.root, found.train, found.test) == ("path", box_folder.resolve().parent, ["scene0001_00"], [])


def test_a_folder_of_scenes_is_split_by_space(many):
    found = data.find_dataset(str(many), None, 0, 0)
    assert found.kind == "path" and found.test == ["scene0006_00"] and len(found.train) == 6
    found = data.find_dataset("scannet", str(many), 0, 0)
    assert found.kind == "scannet" and found.root == many and found.test == ["scene0006_00"]


def test_a_split_file_beside_the_scenes_is_obeyed(many):
    (many / "split.txt").write_text("test scene0002\ntrain scene0003\n")
    found = data.find_dataset(str(many), None, 0, 0)
    assert (found.train, found.test) == (["scene0003_00"], ["scene0002_00"])


def test_named_scenes_are_trained_on_and_leave_the_test_list(many):
    (many / "scene0006_01" / "color").mkdir(parents=True)
    found = data.find_dataset(str(many), None, 0, 0, scenes=["scene0006_01", "scene0000_00"])
    assert (found.train, found.test) == (["scene0006_01", "scene0000_00"], [])


def test_without_scannet_rooms_are_made_in_one_loud_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made = []
    monkeypatch.setattr(data.rooms, "make_rooms", lambda root, seeds, **_: made.append((Path(root), list(seeds))))
    found = data.find_dataset("scannet", None, 3, 2)
    assert made == [(Path("data/rooms"), [0, 1, 2, 9000, 9001])]
    assert found.kind == "rooms" and found.train == ["room0000_00", "room0001_00", "room0002_00"]
    assert found.test == ["room9000_00", "room9001_00"]
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "NO SCANNET" in printed and "rooms" in printed
    found = data.find_dataset("rooms", None, 1, 1, varied_rooms=2)                                # more to train on, none to test
    assert found.train == ["room0000_00", "room5000_00", "room5001_00"] and found.test == ["room9000_00"]
    assert made[1][1] == [0, 5000, 5001, 9000]


# ---------------------------------------------------------------------------------------------------- bad input

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
    "no tsv": (lambda f: (f.parent / data.LABELS_TSV).unlink(), "../" + data.LABELS_TSV),
    "tsv of another kind": (lambda f: write(f.parent / data.LABELS_TSV, "a\tb\r\n1\t2\r\n"), "../" + data.LABELS_TSV),
    "empty tsv": (lambda f: write(f.parent / data.LABELS_TSV, ""), "../" + data.LABELS_TSV),
    "no pose": (lambda f: keep(f, 0), "pose"),
    "no finite pose": (lambda f: [write(p, "-inf -inf -inf -inf\n" * 4) for p in (f / "pose").iterdir()], "pose"),
    "pose of words": (lambda f: write(f / "pose/2.txt", "a b c d\n" * 4), "pose/2.txt"),
    "pose of 3x4": (lambda f: write(f / "pose/2.txt", "1 0 0 0\n" * 3), "pose/2.txt"),
    "ragged pose": (lambda f: write(f / "pose/2.txt", "1 0 0 0\n1 0\n"), "pose/2.txt"),
    "no intrinsics": (lambda f: (f / COLOUR_K).unlink(), COLOUR_K),
    "intrinsics of words": (lambda f: write(f / COLOUR_K, "fx fy cx cy\n" * 4), COLOUR_K),
    "intrinsics of 3x3": (lambda f: write(f / COLOUR_K, "1 0 0\n" * 3), COLOUR_K),
    "focal length of zero": (lambda f: write(f / COLOUR_K, "0 0 5 0\n0 9 5 0\n0 0 1 0\n0 0 0 1\n"), COLOUR_K),
    "intrinsics not finite": (lambda f: write(f / COLOUR_K, "9 0 nan 0\n0 9 5 0\n0 0 1 0\n0 0 0 1\n"), COLOUR_K),
    "bad depth intrinsics": (lambda f: write(f / DEPTH_K, "9 9\n"), DEPTH_K),
    "no jpg": (lambda f: (f / "color/2.jpg").unlink(), "color/2.jpg"),
    "truncated jpg": (lambda f: cut(f / "color/2.jpg"), "color/2.jpg"),
    "no label png": (lambda f: (f / "label-filt/2.png").unlink(), "label-filt/2.png"),
    "truncated label png": (lambda f: cut(f / "label-filt/2.png"), "label-filt/2.png"),
    "truncated depth png": (lambda f: cut(f / "depth/2.png"), "depth/2.png"),
    "empty png": (lambda f: write(f / "label-filt/2.png", ""), "label-filt/2.png"),
    "label size that does not divide": (lambda f: iio.imwrite(f / "label-filt/2.png", np.ones((40, 50), np.uint16)),
                                        "label-filt/2.png"),
    "labels in colour": (lambda f: iio.imwrite(f / "label-filt/2.png", np.ones((48, 64, 3), np.uint8)), "label-filt/2.png"),
    "grey jpg": (lambda f: iio.imwrite(f / "color/2.jpg", np.ones((48, 64), np.uint8)), "color/2.jpg"),
    "depth in colour": (lambda f: iio.imwrite(f / "depth/2.png", np.ones((60, 80, 3), np.uint8)), "depth/2.png"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")                            # imageio tries old plugins on rubbish
@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_line_that_names_the_file(box_copy, case):
    read(box_copy)                                                                     # good until damaged
    shutil.rmtree(box_copy.parent / "cache")
    damage, named = BAD[case]
    damage(box_copy)
    with pytest.raises(data.DataError) as error:
        read(box_copy)
    message = str(error.value)
    expected = (box_copy.parent / named[3:]) if named.startswith("../") else box_copy / named
    assert re.match(re.escape(str(expected)) + r"\b", message) and "\n" not in message, message
    assert ";" in message or "needs" in message, message                               # says what to do
    assert not list((box_copy.parent / "cache").rglob("*"))                            # nothing half-written


def test_fewer_views_than_asked_for_names_the_scene(box_copy):
    keep(box_copy, 4)
    scene = data.Scene(box_copy, 24, 32)
    data.training_pair(scene, 3, torch.Generator())
    with pytest.raises(data.DataError, match=rf"{re.escape(str(box_copy))}: 4 usable frames, but 4 source views"):
        data.training_pair(scene, 4, torch.Generator())


def test_fewer_than_20_frames_are_too_few_for_the_protocol(box_copy):
    for path in (box_copy / "pose").iterdir():
        if int(path.stem) > 78:                                                        # 20 numbers remain, one of them lost
            path.unlink()
    with pytest.raises(data.DataError, match=rf"{re.escape(str(box_copy))}: 19 usable frames"):
        data.protocol(data.Scene(box_copy, 24, 32))


@pytest.mark.parametrize("scene, root, scenes, named", [
    ("scannet", "nowhere", None, "nowhere"), ("nowhere", None, None, "nowhere"),
    ("scans", None, ["scene0099_00"], "scene0099_00"), ("scans/notes", None, None, "notes"),
    ("scans", "scans", None, "--data scans")])
def test_a_root_or_scene_that_is_not_there_is_named(many, monkeypatch, scene, root, scenes, named):
    monkeypatch.chdir(many.parent)
    with pytest.raises(data.DataError, match=named):
        data.find_dataset(scene, root, 0, 0, scenes=scenes)


def test_a_cache_that_cannot_be_written_is_named(box_folder, tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(data.DataError, match=re.escape(str(tmp_path / "cache"))):
        data.Scene(box_folder, 24, 32, cache=tmp_path / "cache").load(0)


def test_a_script_prints_the_line_and_ends_with_status_2(capsys):
    def main():
        raise data.DataError("there/2.jpg: cannot be decoded; copy it again")
    with pytest.raises(SystemExit) as end:
        data.run_script(main)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: there/2.jpg: cannot be decoded; copy it again\n"
