"""01_data.py: cameras, a scene at training resolution, who looks at what."""
import re
import shutil
from importlib import import_module
from itertools import product

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from support.labels import LABELS_TSV

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


# ------------------------------------------------------------------------------------------- cameras and rays

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
        homogeneous = torch.cat([points[r, s], torch.ones(1, dtype=torch.float64)])
        x, y, depth = torch.linalg.inv(c2w[v])[:3] @ homogeneous
        expected = torch.stack([K[v, 0, 0] * x / depth + K[v, 0, 2], K[v, 1, 1] * y / depth + K[v, 1, 2]])
        torch.testing.assert_close(uv[r, s, v], expected)
        torch.testing.assert_close(z[r, s, v], depth)


def test_a_camera_turns_points_by_the_transpose_of_its_rotation():
    c2w, K = torch.eye(4, dtype=torch.float64)[None].clone(), intrinsics(1)
    # its axes x, y, z in the world: it looks along the world's x
    c2w[0, :3, :3] = torch.tensor([[0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    uv, z = data.project(torch.tensor([[2.0, 0.0, 0.0]], dtype=torch.float64), K, c2w)
    assert z.item() == 2 and uv[0, 0].tolist() == K[0, :2, 2].tolist()


def test_u_runs_to_the_right_and_v_runs_down():
    c2w, K = torch.eye(4, dtype=torch.float64)[None], intrinsics(1)
    uv, _ = data.project(torch.tensor([[1.0, 0, 2], [0, 1, 2]], dtype=torch.float64), K, c2w)
    assert uv[:, 0].tolist() == [[31 + 50 / 2, 22.5], [31, 22.5 + 70 / 2]]


def test_depth_is_along_z_and_not_along_the_ray():
    c2w, K = poses(1)[0], intrinsics(1)[0]
    pixels = torch.tensor([[0.0, 0.0], [60.0, 40.0]], dtype=torch.float64)
    points = data.unproject(pixels, torch.full((2,), 2.0, dtype=torch.float64), K, c2w)
    along_z = (points - c2w[:3, 3]) @ c2w[:3, 2]
    torch.testing.assert_close(along_z, torch.full((2,), 2.0, dtype=torch.float64))


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
    assert K[0, 2] == 647.7  # the argument is left alone


def test_a_dot_in_a_resized_image_is_where_the_scaled_intrinsics_project_it():
    K, c2w = torch.tensor([[1170.0, 0, 647.7], [0, 1171.5, 483.7], [0, 0, 1]], dtype=torch.float64), poses(1)
    v, u = np.mgrid[:968, :1296]
    for pixel in ([300.3, 700.8], [1001.6, 250.2]):
        dot = 255 * np.exp(-((u - pixel[0]) ** 2 + (v - pixel[1]) ** 2) / (2 * 15 ** 2))
        image = np.repeat(dot.round().astype(np.uint8)[..., None], 3, axis=2)
        small = data.resize_image(image, 240, 320)[..., 1].astype(float)
        rows, columns = np.mgrid[:240, :320]
        seen = [(small * columns).sum() / small.sum(), (small * rows).sum() / small.sum()]
        pixel, one = torch.tensor([pixel], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        point = data.unproject(pixel, one, K, c2w[0])
        where, _ = data.project(point, data.scale_intrinsics(K, (968, 1296), (240, 320))[None], c2w)
        np.testing.assert_allclose(where[0, 0], seen, atol=0.02)  # half a pixel would be 0.5


def tent(new, old):
    """(new, old): how much of each of `old` pixels is in each new one. A tent on the new pixel's centre, that
    falls to 0 a pixel of the coarser of the two grids away; it sums to 1 within the image."""
    wide, rows = max(1.0, old / new), []
    for i in range(new):
        row = [max(0.0, 1 - abs(c + 0.5 - (i + 0.5) * old / new) / wide) for c in range(old)]
        rows.append([x / sum(row) for x in row])
    return np.array(rows)


@pytest.mark.parametrize("height, width", [(6, 9), (10, 31), (40, 50)])
def test_a_resized_pixel_reads_all_pixels_that_it_covers(height, width):
    image = np.random.default_rng(0).integers(0, 256, (23, 31, 3), dtype=np.uint8)
    expected = np.einsum("ia,abk,jb->ijk", tent(height, 23), image, tent(width, 31))
    np.testing.assert_allclose(data.resize_image(image, height, width), expected, atol=0.51)
    lines = np.zeros((24, 32, 3), np.uint8)
    lines[:, ::4] = 200                       # a quarter of the width: no smaller image may lose them
    assert (data.resize_image(lines, 6, 8)[:, 1:-1] == 50).all()


@pytest.mark.parametrize("new, old", [(3, 9), (5, 7), (240, 968), (6, 3)])
def test_nearest_pixels_takes_the_cell_that_holds_the_centre(new, old):
    for i, chosen in enumerate(data.nearest_pixels(new, old)):
        centre = (2 * i + 1) * old / (2 * new)  # in cells: cell c spans [c, c + 1)
        assert chosen <= centre < chosen + 1


# ------------------------------------------------------------------------------------------------- the reader

@pytest.fixture
def scene(box_folder, tmp_path):
    return data.Scene(box_folder, 48, 64, cache=tmp_path / "cache")


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
        assert 0.9 < known.float().mean() < 1  # the depth camera sees a bit less
        assert (views.depth[i] - torch.tensor(depth))[known].abs().mean() < 0.01


def test_depth_is_read_through_the_depth_cameras_own_size_and_intrinsics(box_folder, box, tmp_path):
    scene = data.Scene(box_folder, 36, 40, cache=tmp_path)
    depth = scene.views([3]).depth[0].numpy()
    png = iio.imread(box_folder / "depth" / f"{scene.frames[3]}.png")
    unseen = 0
    for row, column in product(range(36), range(40)):
        x = ((column + 0.5) * 64 / 40 - 0.5 - box.K[0, 2]) / box.K[0, 0]  # the ray of this pixel, z = 1
        y = ((row + 0.5) * 48 / 36 - 0.5 - box.K[1, 2]) / box.K[1, 1]
        u, v = (box.depth_K @ [x, y, 1])[:2]
        around = product((int(np.floor(u)), int(np.ceil(u))), (int(np.floor(v)), int(np.ceil(v))))
        window = [png[j, i] for i, j in around if 0 <= i < 80 and 0 <= j < 60]
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
    colours = views.images[0].flatten(1)[:, first]  # (3, P) of the first frame
    steps = list(product((-1, 0, 1), (-1, 0, 1)))  # a pixel around, in the second frame
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
    (box_copy.parent / LABELS_TSV).unlink()
    views = data.Scene(box_copy, 24, 32, cache=tmp_path).views([0, 1])
    assert (views.labels == data.IGNORE).all() and (views.depth == 0).all() and views.images.std() > 0.1


# -------------------------------------------------------------------------------------------------- the cache


# ----------------------------------------------------------------------------------- which views look at what

@pytest.mark.parametrize("angle_weight", [0.0, 1.0, 10.0])
def test_nearest_views_are_sorted_by_distance_plus_angle(angle_weight):
    c2w = poses(7)
    cost = []
    for i in range(1, 7):
        metres = float(torch.dist(c2w[0, :3, 3], c2w[i, :3, 3]))
        cosine = float(sum(c2w[0, k, 2] * c2w[i, k, 2] for k in range(3)))  # of the angle between the z axes
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


def test_the_protocol_takes_20_nearby_views_apart_into_8_and_8_and_4(scene):
    source, tune, test = data.protocol(scene)
    assert (len(source), len(tune), len(test)) == (8, 8, 4)
    twenty = set(source) | set(tune) | set(test)
    assert len(twenty) == 20                                                           # disjoint
    middle = scene.c2w[len(scene) // 2]
    assert twenty == set(data.nearest_views(middle, scene.c2w, 20))
    for part in (tune, test):
        assert all(min(source) <= i for i in part) and sum(i <= max(source) for i in part) >= len(part) - 1
    assert all(min(source) < i < max(source) for i in test)  # a test view lies between sources


def test_between_two_test_views_of_the_protocol_lie_four_others(scene):
    source, tune, test = data.protocol(scene)
    order = sorted(source + tune + test)                                               # in time
    places = [order.index(i) for i in test]
    assert [b - a for a, b in zip(places, places[1:])] == [5, 5, 5]
    for place in places:                                                               # a source on a side
        assert {order[place - 1], order[place + 1]} & set(source)


# ---------------------------------------------------------------------------------- --scene, --data, --scenes


# -------------------------------------------------------------------------------------------------- bad input


def keep(folder, count):
    for path in sorted((folder / "pose").iterdir())[count:]:
        path.unlink()


def test_fewer_views_than_asked_for_names_the_scene(box_copy):
    keep(box_copy, 4)
    scene = data.Scene(box_copy, 24, 32)
    data.training_pair(scene, 3, torch.Generator())
    words = rf"{re.escape(str(box_copy))}: 4 usable frames, but 4 source views"
    with pytest.raises(data.DataError, match=words):
        data.training_pair(scene, 4, torch.Generator())


def test_fewer_than_20_frames_are_too_few_for_the_protocol(box_copy):
    for path in (box_copy / "pose").iterdir():
        if int(path.stem) > 78:  # 20 numbers remain, one of them lost
            path.unlink()
    with pytest.raises(data.DataError, match=rf"{re.escape(str(box_copy))}: 19 usable frames"):
        data.protocol(data.Scene(box_copy, 24, 32))


def test_the_views_chosen_do_not_depend_on_the_unit():
    """Positions and directions both count: in a scene 50 times as large, 50 times as much is a metre."""
    class Poses:
        folder = "none"

        def __len__(self):
            return 30

        def parts(self):
            return list(range(30)), []

        def __init__(self, size):
            generator = np.random.default_rng(0)
            self.c2w, self.near_far = torch.eye(4).repeat(30, 1, 1), (0.4 * size, 8.0 * size)
            for pose, a in zip(self.c2w, generator.uniform(-1.5, 1.5, 30)):
                pose[0, 0], pose[0, 2], pose[2, 0], pose[2, 2] = np.cos(a), np.sin(a), -np.sin(a), np.cos(a)
            self.c2w[:, :3, 3] = torch.from_numpy(size * generator.uniform(-1, 1, (30, 3))).float()
    assert data.protocol(Poses(1)) == data.protocol(Poses(50))
    pairs = [data.training_pair(Poses(size), 4, torch.Generator().manual_seed(1), pool=6) for size in (1, 50)]
    assert pairs[0] == pairs[1]
