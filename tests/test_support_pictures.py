"""support/pictures.py and support/films.py: label colours, an evaluation's sheet, camera paths, films."""
import math
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from support import films, pictures
from support.files import DataError
from support.labels import IGNORE, SCANNET, Classes

PALETTE = np.array(SCANNET.colours)


# ------------------------------------------------------------------------------------------------ pictures
def test_label_colours_are_scannets_and_unlabelled_is_black():
    picture = pictures.colour_labels(torch.tensor([[0, 1, IGNORE]]))
    assert picture.tolist() == [[[174, 199, 232], [152, 223, 138], [0, 0, 0]]]


def count(picture: np.ndarray, colour) -> int:
    """Pixels of (nearly) this colour."""
    return int((np.abs(picture - np.asarray(colour)).max(-1) < 3).sum())


def shot(wrong: int = 0, depth: float = 2.0, truth: int = 0) -> dict:
    """One view of grey wall of which `wrong` rows are called floor; its true depth, 0 for none."""
    view = {"frame": "7", "psnr": 20.0, "miou": None if truth == IGNORE else 50.0,
            "colour": torch.full((40, 50, 3), 0.5), "truth": torch.full((40, 50, 3), 0.5),
            "labels": torch.zeros(40, 50, dtype=torch.long), "true_labels": torch.full((40, 50), truth),
            "depth": torch.ones(40, 50), "true_depth": torch.full((40, 50), depth)}
    view["labels"][:wrong] = 1
    return view


def sheet(path: Path, shots: list[dict], has_labels: bool = True, iou: dict | None = None, **options):
    """The sheet of these views as pixels (h, w, 3)."""
    scores = {"miou": 50.0 if has_labels else None, "per_class_iou": iou}
    pictures.evaluation_sheet(path, "title", shots, has_labels, scores, **options)
    return iio.imread(path)[..., :3].astype(int)


def test_the_sheet_marks_the_wrong_pixels_and_leaves_out_what_has_no_truth(tmp_path):
    none, half = (sheet(tmp_path / "sheet.png", [shot(wrong)]) for wrong in (0, 20))
    bare = sheet(tmp_path / "sheet.png", [shot(0, 0.0, IGNORE)], False, semantic=False)
    orange = [255 * x for x in pictures.ORANGE]
    assert count(none, orange) == 0 and count(half, orange) > 5_000
    assert bare.shape[1] < 0.6 * none.shape[1]                                # 4 of 9 columns


def test_the_sheets_bars_are_as_long_as_the_classes_iou(tmp_path):
    def area(wall: float) -> int:
        picture = sheet(tmp_path / "sheet.png", [shot(20)], iou={"wall": wall, "floor": None})
        return count(picture[:, -300:], SCANNET.colours[0])                   # the legend's side
    assert area(100) == pytest.approx(2 * area(50), rel=0.15)                 # and a small square each


def test_the_sheet_has_four_rows_at_most(tmp_path):
    heights = [len(sheet(tmp_path / "sheet.png", [shot()] * views)) for views in (2, 5)]
    assert heights == [int(100 * (rows * 1.9 * 40 / 50 + 1.5)) for rows in (2, 4)]


# --------------------------------------------------------------------------------------------- camera paths
def test_the_camera_path_goes_through_its_poses_and_turns_evenly():
    keys = torch.eye(4, dtype=torch.float64).repeat(5, 1, 1)
    for i, angle in enumerate((0.0, 0.3, 0.5, 0.5, 1.4)):
        c, s = math.cos(angle), math.sin(angle)
        keys[i, :3, :3] = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]])
        keys[i, :3, 3] = torch.tensor([i, i ** 2 / 4, math.sin(i)])
    path = films.camera_path(keys.float(), 4 * 10 + 1).double()
    torch.testing.assert_close(path[::10], keys, atol=1e-6, rtol=0)
    R, eye = path[:, :3, :3], torch.eye(3, dtype=torch.float64).expand(41, 3, 3)
    torch.testing.assert_close(R @ R.transpose(1, 2), eye, atol=1e-6, rtol=0)
    angles = torch.atan2(path[:, 0, 2], path[:, 0, 0])
    torch.testing.assert_close(angles[30:].diff(), torch.full((10,), 0.09).double(), atol=1e-5, rtol=0)
    steps = path[:, :3, 3].diff(dim=0)                                        # the velocity does not jump
    assert (steps.diff(dim=0).norm(dim=1) < 0.15 * steps.norm(dim=1)[1:]).all()
    assert torch.equal(films.camera_path(keys[:2].float(), 2), keys[:2].float())


# ---------------------------------------------------------------------------------------------------- films
def two_shots() -> list[dict]:
    """A dark floor a metre away, then a brighter chair at four."""
    return [{"colour": torch.full((48, 64, 3), x), "labels": torch.full((48, 64), label),
             "depth": torch.full((48, 64), d)} for x, label, d in ((0.2, 1, 1.0), (0.6, 4, 4.0))]


def test_a_film_shows_colours_labels_and_depth_of_each_frame():
    first, second = films.film(two_shots(), "title", 160)
    assert first.shape[0] % 16 == first.shape[1] % 16 == 0                    # sizes that a codec takes
    row = 80
    assert first[row, 80].tolist() == [51] * 3 and second[row, 80].tolist() == [153] * 3
    assert first[row, 240].tolist() == PALETTE[1].tolist()
    assert second[row, 240].tolist() == PALETTE[4].tolist()
    top = [253, 231, 36]                                                      # viridis: 4 m is the top
    assert second[row, 400].tolist() == top and first[row, 400].tolist() != top


def test_a_gif_keeps_every_classs_colour_in_every_frame(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (5, 80, 112, 3)).astype(np.uint8)   # too many colours
    noise[:, 70:75, :100] = PALETTE.repeat(5, axis=0)                         # a legend
    (tmp_path / "out.gif").write_bytes(films.gif(list(noise), 12))
    film = iio.imread(tmp_path / "out.gif")[..., :3].astype(int)
    assert film.shape == noise.shape
    assert np.abs(film[:, 72, 2:100:5] - PALETTE).max() <= 12                 # a palette a frame: far off


def test_a_gif_keeps_the_colours_of_other_classes(tmp_path):
    classes = Classes(["lamp", "rug"], [[250, 3, 250], [3, 90, 3]])
    noise = np.random.default_rng(0).integers(100, 200, (5, 80, 112, 3)).astype(np.uint8)
    noise[:, 70, 10] = classes.colours[0]
    (tmp_path / "out.gif").write_bytes(films.gif(list(noise), 12, classes))
    film = iio.imread(tmp_path / "out.gif")[..., :3].astype(int)
    assert np.abs(film[:, 70, 10] - classes.colours[0]).max() <= 12


@pytest.mark.parametrize("name, panel", [("films/out.mp4", 320), ("films/out.gif", 224)])
def test_a_written_film_has_its_frames_and_says_its_size(tmp_path, capsys, name, panel):
    films.write_film(tmp_path / name, two_shots() * 2, "title", SCANNET)
    film = iio.imread(tmp_path / name, **({"plugin": "FFMPEG"} if name.endswith("mp4") else {}))[..., :3]
    assert len(film) == 4 and f"4 frames of {film.shape[2]}x{film.shape[1]}, 12 a" in capsys.readouterr().out
    middle = film[:, panel // 2, panel // 2].astype(int)                      # the colour panel
    assert np.abs(middle - np.array([51, 153, 51, 153])[:, None]).max() < 12


def test_without_ffmpeg_an_mp4_is_refused_and_a_gif_is_not(monkeypatch):
    monkeypatch.setattr(films.importlib.util, "find_spec", lambda name: None)
    films.check_video(Path("out.gif"))
    with pytest.raises(DataError, match="imageio\\[ffmpeg\\]"):
        films.check_video(Path("out.mp4"))
    with pytest.raises(DataError, match=".mp4 or .gif"):
        films.check_video(Path("out.avi"))
