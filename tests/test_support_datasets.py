"""support/datasets.py: which scenes there are, and which are for training and for testing."""
from importlib import import_module
from pathlib import Path

import pytest
from conftest import REPO

from support import datasets
from support.files import DataError


def no_rooms(*_, **__):
    """make_rooms, where none should be made."""
    raise AssertionError("rooms were made")


def find(scene: str, root: str | None = None, **options):
    """find_dataset with --scene and --data, without rooms."""
    return datasets.find_dataset(scene, root, 0, 0, no_rooms, **options)


# -------------------------------------------------------------------------------------------------- splitting

NAMES = [f"scene{space:04d}_{scan:02d}" for space in range(16) for scan in range(1 + space % 3)]


def test_without_a_split_file_every_seventh_space_is_for_testing_with_all_its_scans():
    train, test = datasets.split_by_space(NAMES)
    assert sorted(train + test) == NAMES
    assert {n[:9] for n in test} == {"scene0006", "scene0013"}
    assert not {n[:9] for n in train} & {n[:9] for n in test}


def test_two_scans_of_one_space_are_never_on_both_sides_of_a_split_file(tmp_path):
    file = tmp_path / "split.txt"
    file.write_text("# ours\ntrain scene0002_00\ntest scene0005   # the space\n\n")
    train, test = datasets.split_by_space(NAMES, file)
    assert train == ["scene0002_00", "scene0002_01", "scene0002_02"]
    assert test == ["scene0005_00", "scene0005_01", "scene0005_02"]
    file.write_text("train scene0002_00\ntest scene0002_01\n")
    with pytest.raises(DataError, match=r"split.txt, line 2: scene0002 .*train and in test"):
        datasets.split_by_space(NAMES, file)


@pytest.mark.parametrize("text, message", [
    ("train scene0001\nvalid scene0002\n", "line 2"), ("train\n", "line 1")])
def test_a_malformed_split_file_is_named_with_its_line(tmp_path, text, message):
    file = tmp_path / "split.txt"
    file.write_text(text)
    with pytest.raises(DataError, match=rf"split.txt, {message}"):
        datasets.split_by_space(NAMES, file)
    with pytest.raises(DataError, match="nowhere.txt: no such split file"):
        datasets.split_by_space(NAMES, tmp_path / "nowhere.txt")


def lines_of(split: str) -> list[list[str]]:
    """[side, scene] of each line of docs/splits/<split>.txt."""
    text = (REPO / f"docs/splits/{split}.txt").read_text()
    return [line.split() for line in text.splitlines() if not line.startswith("#")]


def test_the_split_files_have_the_papers_counts_and_no_space_on_both_sides():
    for name, train, test in (("scannet-60-10", 60, 10), ("replica-12-6", 12, 6), ("replica-8", 6, 2)):
        names = [scene for _, scene in lines_of(name)]
        got = datasets.split_by_space([f"{scene}_00" for scene in names], REPO / f"docs/splits/{name}.txt")
        assert [len(side) for side in got] == [train, test] and len(set(names)) == len(names) == train + test
    kinds = {"train": [], "test": []}
    for side, scene in sorted(lines_of("replica-12-6")):
        kinds[side].append(scene.rsplit("_", 1)[0].removeprefix("frl_"))
    kinds = {side: sorted(names) for side, names in kinds.items()}
    # supplement, section 1
    assert kinds["train"] == ["apartment"] * 7 + ["hotel"] + ["office"] * 2 + ["room"] * 2
    assert kinds["test"] == ["apartment"] * 2 + ["office"] * 3 + ["room"]


@pytest.mark.parametrize("name", [
    "../scene0001_00", "/etc", "a/b", "..", ".", "", "C:\\x", "a\\b", "x\0y", "x\ny"])
def test_a_list_of_scenes_cannot_lead_out_of_its_folder(box_folder, tmp_path, name):
    with pytest.raises(DataError, match=r"--scenes: .* is not the name of a scene; .* no paths"):
        find(str(box_folder.parent), scenes=[name])
    if name and not set(name) & set("\n\0"):
        (tmp_path / "split.txt").write_text(f"train scene0001_00\ntest {name}\n")
        with pytest.raises(DataError, match=r"split.txt, line 2: .* no paths"):
            datasets.split_by_space(["scene0001_00"], tmp_path / "split.txt")


# ---------------------------------------------------------------------------------- --scene, --data, --scenes

@pytest.fixture
def many(tmp_path):
    """Seven scene folders, empty: enough to be listed."""
    for i in range(7):
        (tmp_path / "scans" / f"scene{i:04d}_00" / "color").mkdir(parents=True)
    (tmp_path / "scans" / "notes").mkdir()
    return tmp_path / "scans"


def test_a_scene_path_is_one_scene_for_training(box_folder):
    found = find(str(box_folder))
    assert (found.kind, found.root) == ("path", box_folder.resolve().parent)
    assert (found.train, found.test) == (["scene0001_00"], [])


def test_a_folder_of_scenes_is_split_by_space(many):
    found = find(str(many))
    assert found.kind == "path" and found.test == ["scene0006_00"] and len(found.train) == 6
    found = find("scannet", str(many))
    assert found.kind == "scannet" and found.root == many and found.test == ["scene0006_00"]


def test_a_split_file_beside_the_scenes_is_obeyed(many):
    (many / "split.txt").write_text("test scene0002\ntrain scene0003\n")
    found = find(str(many))
    assert (found.train, found.test) == (["scene0003_00"], ["scene0002_00"])


def test_named_scenes_are_trained_on_and_leave_the_test_list(many):
    (many / "scene0006_01" / "color").mkdir(parents=True)
    found = find(str(many), scenes=["scene0006_01", "scene0000_00"])
    assert (found.train, found.test) == (["scene0006_01", "scene0000_00"], [])


def test_without_scannet_rooms_are_made_in_one_loud_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made = []

    def make_rooms(root, seeds, **_):
        made.append((root, list(seeds)))
    found = datasets.find_dataset("scannet", None, 3, 2, make_rooms)
    assert made == [(Path("data/rooms"), [0, 1, 2, 9000, 9001])]
    assert found.kind == "rooms" and found.train == ["room0000_00", "room0001_00", "room0002_00"]
    assert found.test == ["room9000_00", "room9001_00"]
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "NO SCANNET" in printed and "rooms" in printed
    # more to train on, none to test
    found = datasets.find_dataset("rooms", None, 1, 1, make_rooms, varied_rooms=2)
    assert found.train == ["room0000_00", "room5000_00", "room5001_00"] and found.test == ["room9000_00"]
    assert made[1][1] == [0, 5000, 5001, 9000]


@pytest.mark.parametrize("scene, root, scenes, named", [
    ("scannet", "nowhere", None, "nowhere"), ("nowhere", None, None, "nowhere"),
    ("scans", None, ["scene0099_00"], "scene0099_00"), ("scans/notes", None, None, "notes"),
    ("scans", "scans", None, "--data scans")])
def test_a_root_or_scene_that_is_not_there_is_named(many, monkeypatch, scene, root, scenes, named):
    monkeypatch.chdir(many.parent)
    with pytest.raises(DataError, match=named):
        find(scene, root, scenes=scenes)


def test_rooms_that_are_there_are_not_written_again(tmp_path):
    (tmp_path / "room9000_00" / "color").mkdir(parents=True)
    made = []

    def find_rooms(**options):
        return datasets.find_dataset("rooms", str(tmp_path), 1, 2,
                                     lambda root, seeds, **_: made.append(list(seeds)), **options)
    assert find_rooms().test == ["room9000_00", "room9001_00"] and made == [[0, 9001]]
    found = find_rooms(scenes=["room9000_00"])  # named and there: no other room to train on is needed
    assert found.train == ["room9000_00"] and found.test == ["room9001_00"] and made[1] == [9001]


def test_the_numbers_of_rooms_are_those_of_00():
    rooms = import_module("00_rooms")
    assert rooms.VARIED == range(datasets.VARIED_ROOM, datasets.TEST_ROOM)


@pytest.mark.parametrize("sign, command", [
    ("transforms.json", "'my data/x' --out data/x"), ("poses_bounds.npy", "'my data/x' --out data/x"),
    ("scans/a/a.sens", "'my data/x' --out data/scannet"),
    ("room_0/Sequence_1/traj_w_c.txt", "'my data/x' --out data/replica")])
def test_another_layout_ends_in_the_command_that_imports_it(tmp_path, monkeypatch, sign, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my data/x" / sign).parent.mkdir(parents=True)
    (tmp_path / "my data/x" / sign).write_text("")
    with pytest.raises(DataError) as error:
        find("my data/x")
    assert str(error.value).endswith(f": python -m tools.import_scenes {command}")
    assert "\n" not in str(error.value)


def test_replica_that_is_not_there_is_told_how_to_come(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="python -m tools.import_scenes FOLDER --out data/replica"):
        find("replica")


@pytest.mark.parametrize("text, words", [
    ("", "it has none, there are scene0001_00"), ("# only a remark\n", "it has none"),
    ("train SCENE0001\n", "it has SCENE0001, there are scene0001_00 .letter case counts"),
    ("train other\ntest more\n", "it has other, more, there are")])
def test_a_split_that_names_no_scene_says_what_is_there(box_copy, text, words):
    (box_copy.parent / "split.txt").write_text(text)
    with pytest.raises(DataError, match=f"split.txt: names none of the scenes .*{words}"):
        find(str(box_copy.parent))


def test_a_split_without_training_scenes_is_one_for_evaluation_alone(box_copy):
    (box_copy.parent / "split.txt").write_text("test scene0001_00\n")
    dataset = find(str(box_copy.parent))
    assert (dataset.train, dataset.test) == ([], ["scene0001_00"])
    with pytest.raises(DataError, match="no scene to train on; .* there are scene0001_00; .*--scenes"):
        datasets.check_training(dataset)
