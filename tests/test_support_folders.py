"""support/folders.py: whole folders, and what killed writers leave."""
import os
import time

import pytest

from support import folders


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "scene"
    with pytest.raises(KeyboardInterrupt):
        with folders.whole_folder(target) as part:
            (part / "half").touch()
            assert part.name.startswith(".scene.") and not target.exists()
            raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with folders.whole_folder(target) as part:
        (part / "file").touch()
    assert os.listdir(tmp_path) == ["scene"] and os.listdir(target) == ["file"]


def test_of_two_writers_the_first_stays_and_the_second_ends_well(tmp_path):
    target = tmp_path / "scene"
    with folders.whole_folder(target) as first, folders.whole_folder(target) as second:
        assert first != second
        (first / "theirs").touch(), (second / "ours").touch()
    assert os.listdir(tmp_path) == ["scene"] and len(os.listdir(target)) == 1


def test_a_planted_link_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    folders.part_of(tmp_path / "scene", "mark").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        with folders.whole_folder(tmp_path / "scene", "mark"):
            pass
    assert not os.listdir(tmp_path / "elsewhere")


def test_parts_are_removed_when_they_are_old_or_ones_own(tmp_path):
    for name in (".a.1.part", ".b.1.part", ".c.mine.part", "d.part", ".e"):
        (tmp_path / name / "color").mkdir(parents=True)
    old = (time.time() - 7200,) * 2
    for name in (".a.1.part/color", ".a.1.part", ".b.1.part"):                # into b somebody still writes
        os.utime(tmp_path / name, old)
    folders.remove_parts(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".b.1.part", ".c.mine.part", ".e", "d.part"]
    folders.remove_parts(tmp_path, "mine")
    assert sorted(os.listdir(tmp_path)) == [".b.1.part", ".e", "d.part"]
