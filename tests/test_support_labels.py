"""support/labels.py: ScanNet's classes and table, class lists of other data."""
import os

import numpy as np
import pytest

from support import labels
from support.files import DataError


def test_raw_ids_become_nyu40_ids_become_twenty_classes_and_the_rest_is_ignored(box_folder, box):
    table = labels.read_label_table(box_folder.parent / labels.LABELS_TSV)
    assert len(table) == 1358
    for raw in range(1358):
        assert table[raw] == box.raw_to_class.get(raw, labels.IGNORE)
    names = {1: "wall", 2: "floor", 9: "window", 14: "desk", 16: "curtain", 24: "refrigerator",
             28: "shower curtain", 33: "toilet", 34: "sink", 36: "bathtub", 39: "otherfurniture"}
    assert len(labels.SCANNET.names) == 20
    assert all(labels.SCANNET.names[labels.NYU40_IDS.index(nyu40)] == name for nyu40, name in names.items())


@pytest.mark.parametrize("text", [
    "99999999999\t1\r\n", "-1\t1\r\n", "9" * 5000 + "\t1\r\n", '"' + "x" * 200_000])
def test_a_label_table_of_absurd_ids_is_refused(tmp_path, text):
    (tmp_path / labels.LABELS_TSV).write_text("id\tnyu40id\r\n" + text)
    with pytest.raises(DataError, match=labels.LABELS_TSV):
        labels.read_label_table(tmp_path / labels.LABELS_TSV)


def test_classes_csv_maps_ids_merges_names_and_keeps_colours(tmp_path):
    rows = "7,wall,#ff0080\n300,chair,#010203\n9,wall,#000000\n"
    (tmp_path / "classes.csv").write_text("id,name,colour\n" + rows)
    classes, table = labels.read_classes(tmp_path / "classes.csv")
    assert classes.names == ["wall", "chair"] and classes.colours == [[255, 0, 128], [1, 2, 3]]
    assert table[[7, 9, 300]].tolist() == [0, 0, 1] and (np.delete(table, [7, 9, 300]) == labels.IGNORE).all()
    for rows in ("", "x,a,#000000", "1,a,#0000", "-1,a,#000000", "1,a,#000000\n1,b,#000000", "1,,#000000",
                 "70000,a,#000000", "1,a", "1", "\n".join(f"{i},c{i},#000000" for i in range(128))):
        (tmp_path / "classes.csv").write_text(f"id,name,colour\n{rows}\n")
        with pytest.raises(DataError, match="classes.csv"):
            labels.read_classes(tmp_path / "classes.csv")


def test_a_folder_of_scenes_has_its_own_classes_or_scannets(box_copy):
    root = box_copy.parent
    assert labels.classes_of(root) == labels.SCANNET and labels.table_of(root)[[1, 3]].tolist() == [0, 1]
    (root / "classes.csv").write_text("id,name,colour\n3,wall,#ffffff\n")
    assert labels.classes_of(root).names == ["wall"] and labels.table_of(root).tolist() == [-1, -1, -1, 0]


def test_two_label_sets_are_told_apart_in_one_clause():
    given = labels.Classes(["rug", "vase"], [[0, 0, 0]] * 2)
    assert labels.other_classes(labels.SCANNET, given) == (
        "the checkpoint knows 20 classes (wall, floor, cabinet ...), the scenes are labelled with 2 classes "
        "(rug, vase ...)")


@pytest.mark.parametrize("text", ["1,a\x07b,#000000", "1," + "x" * 200 + ",#000000", '1,"a\nb",#000000',
                                  "1, ,#000000"])
def test_the_name_of_a_class_is_a_line_of_text(tmp_path, text):
    (tmp_path / "classes.csv").write_text("id,name,colour\n" + text + "\n")
    with pytest.raises(DataError, match="classes.csv"):
        labels.read_classes(tmp_path / "classes.csv")


def test_a_class_list_may_begin_with_the_mark_of_utf8(tmp_path):
    (tmp_path / "classes.csv").write_bytes("\ufeffid,name,colour\r\n1,Tür $x$,#000000\r\n".encode())
    assert labels.read_classes(tmp_path / "classes.csv")[0].names == ["Tür $x$"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes in folders")
def test_a_pipe_in_place_of_a_class_list_is_refused(tmp_path):
    os.mkfifo(tmp_path / "classes.csv")
    for read in (labels.classes_of, labels.table_of):
        with pytest.raises(DataError, match="classes.csv: cannot be read .not a file"):
            read(tmp_path)
