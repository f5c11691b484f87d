"""Hard to break, through the real commands: sent checkpoints, names, folders of somebody else's, moved data
sets, killed writers, two imports at once."""
import csv
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from support import runs
from support.labels import LABELS_TSV

pytest.importorskip("resource", reason="POSIX only")
forks = import_module("forks")
data, training, importer = (import_module(name) for name in ("01_data", "07_train", "tools.import_scenes"))
start, said, refused, finished = forks.start, forks.said, forks.refused, forks.finished
ROOT = Path(__file__).parents[1]
SMOKE = ["--preset", "smoke", "--rays", "8", "--coarse", "2", "--fine", "2", "--device", "cpu", "--no-eval"]
TINY = dict(height=48, width=64, views=4, rays=8, coarse=2, fine=2, steps=1)
pytestmark = pytest.mark.slow


def sent(path: Path, model=None, config=None, **run) -> Path:
    """A checkpoint of random weights whose run says this."""
    settings = training.Config(**TINY)
    torch.manual_seed(0)
    state = {"model": {**training.SRay(settings).state_dict(), **(model or {})}, "step": 1,
             "config": {**asdict(settings), **(config or {})}, "run": run}
    torch.save(state, path)
    return path


def tree(folder: Path) -> dict:
    """Every file below a folder and its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --------------------------------------------------------------------------------------- 1. a sent checkpoint

@pytest.mark.parametrize("script", ["08_eval.py", "tools.pseudo_labels.py"])
def test_nothing_is_written_where_a_checkpoint_points(tmp_path, monkeypatch, script):
    victim, home = tmp_path / "victim", tmp_path / "home"
    victim.mkdir(), home.mkdir()
    (victim / LABELS_TSV).write_text("REAL SCANNET TABLE")
    (victim / "room9000_00").mkdir()
    sent(home / "sent.pt", config={"test_rooms": 1}, data="rooms", root=str(victim), test=["room9000_00"])
    before = tree(victim)
    process = start("--checkpoint", "sent.pt", "--out", "eval", cwd=home, script=script)
    assert process.wait(120) == 0, said(home)
    assert tree(victim) == before and (home / "data/rooms/room9000_00/color").is_dir()


@pytest.mark.parametrize("change, words", [
    (dict(run=5), "unusable run"), (dict(classes={"names": ["a"], "colours": [[0, 0]]}), "unusable classes"),
    (dict(config={"far": float("inf")}), "far"),
    (dict(model={"coarse.head.bias": torch.full((20,), torch.nan)}), "coarse.head.bias holds NaN")])
def test_a_checkpoint_that_says_what_none_says_is_one_line(box_folder, tmp_path, change, words):
    sent(tmp_path / "sent.pt")
    torch.save({**torch.load(tmp_path / "sent.pt", weights_only=True), **change}, tmp_path / "sent.pt")
    process = start("--checkpoint", "sent.pt", "--scene", box_folder.parent, cwd=tmp_path,
                    script="08_eval.py")
    refused(process, tmp_path, "sent.pt: not a checkpoint of this model", words)
    assert not (tmp_path / "eval").exists()


def test_a_checkpoint_that_knows_no_scene_asks_for_one_or_takes_the_given(box_folder, tmp_path):
    sent(tmp_path / "sent.pt")
    process = start("--checkpoint", "sent.pt", cwd=tmp_path, script="08_eval.py")
    refused(process, tmp_path, "sent.pt", "--scene")
    finished("--checkpoint", "sent.pt", "--scene", box_folder.parent, "--out", "eval", cwd=tmp_path,
             script="08_eval.py")

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")
    metrics = json.loads((tmp_path / "eval/metrics.json").read_text(), parse_constant=refuse)
    assert len(metrics["images"]) == 4


# ------------------------------------------------------------------------- 2. what is there is not rewritten

@pytest.mark.parametrize("name, text", [
    ("log.csv", "my,own,log\n"), ("log.csv", "step,mine\n" + "1,2\n" * 100), ("curves.png", "mine"),
    ("checkpoint_5.pt", "mine")])
def test_a_run_is_not_started_over_somebodys_files(box_folder, tmp_path, name, text):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text(text)
    refused(start("--scene", box_folder.parent, *SMOKE, "--out", "mine", cwd=tmp_path), tmp_path,
            f"mine/{name}: ", "it stays")
    assert (tmp_path / "mine" / name).read_text() == text


def test_an_evaluation_does_not_write_over_somebodys_metrics(box_folder, tmp_path):
    sent(tmp_path / "sent.pt")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/metrics.json").write_text('{"mine": 1}')
    process = start("--checkpoint", "sent.pt", "--scene", box_folder.parent, "--out", "mine", cwd=tmp_path,
                    script="08_eval.py")
    refused(process, tmp_path, "mine/metrics.json: not of an evaluation")
    assert (tmp_path / "mine/metrics.json").read_text() == '{"mine": 1}'


def test_rooms_in_somebodys_folder_leave_the_label_table_alone(tmp_path):
    room = import_module("00_rooms").write_room
    for seed in (0, 1, 9000):
        room(tmp_path / "mine", f"room{seed:04d}_00", seed, frames=24, width=64, height=48)
    import_module("support.rooms.classes").write_label_table(tmp_path / "mine" / LABELS_TSV)
    with open(tmp_path / "mine" / LABELS_TSV, "ab") as table:
        table.write(b"1400\tmine\tmine\t1\t1" + 12 * b"\t" + b"\r\n")
    before = tree(tmp_path / "mine")
    finished("--scene", "rooms", "--data", "mine", *SMOKE, "--steps", 1, "--out", "run", cwd=tmp_path)
    assert tree(tmp_path / "mine") == before


# -------------------------------------------------------------------------- 4. and 5.: splits, names, shells

def test_names_with_dollars_spaces_and_accents_come_through_a_whole_training(box_folder, tmp_path):
    scans = tmp_path / "my $x_{$ scäns"
    shutil.copytree(box_folder.parent, scans)
    (scans / box_folder.name).rename(scans / "room$x_{$ é")
    rows = "".join(f"{i},$\\foo_{i}$,#0000{i:02x}\n" for i in (1, 3, 21))
    (scans / "classes.csv").write_text("id,name,colour\n" + rows)
    flags = [flag for flag in SMOKE if flag != "--no-eval"]
    process = start("--scene", scans.name, *flags, "--steps", 20, "--out", "runs $\\lr$", cwd=tmp_path,
                    PYTHONIOENCODING="ascii")
    assert process.wait(120) == 0, said(tmp_path)
    there = {path.name for path in (tmp_path / "runs $\\lr$/eval").iterdir()}
    assert there == {"metrics.json", "room$x_{$ é.png"} and (tmp_path / "runs $\\lr$/curves.png").exists()


@pytest.mark.parametrize("line", ["train other", "# a remark", "train SCENE0001_00", "test scene0001_00"])
def test_a_split_without_a_scene_to_train_on_is_one_line(box_copy, tmp_path, line):
    (box_copy.parent / "split.txt").write_text(line + "\n")
    process = start("--scene", box_copy.parent, *SMOKE, "--steps", 1, "--out", "run", cwd=tmp_path)
    refused(process, tmp_path, "scans", "scene0001_00")
    assert not (tmp_path / "run").exists()


def test_a_data_set_that_was_moved_is_found_by_data_and_the_printed_command_can_be_typed(box_copy, tmp_path):
    finished("--scene", box_copy.parent, *SMOKE, "--steps", 2, "--out", "my run", cwd=tmp_path)
    (tmp_path / "else where").mkdir()
    box_copy.parent.rename(tmp_path / "else where/scans")
    process = start("--resume", "--out", "my run", "--no-eval", cwd=tmp_path)
    refused(process, tmp_path, "no such scene", "--data")
    process = start("--resume", "--out", "my run", "--data", "else where/scans", "--steps", 100_000,
                    "--no-eval", "--save-every", 1, cwd=tmp_path)
    checkpoint = tmp_path / "my run/checkpoint.pt"
    forks.wait_for(lambda: runs.read_state(checkpoint)["step"] > 3, process)
    os.kill(process.process.pid, 2)
    assert process.wait(60) == 130
    command = said(tmp_path).strip().splitlines()[-1].partition("continue with: ")[2]
    words = shlex.split(command)[2:]
    assert words == ["--resume", "--out", "my run", "--data", "else where/scans", "--save-every", "1",
                     "--no-eval"]
    finished(*words, "--steps", 6, cwd=tmp_path)


# -------------------------------------------------------------------- 8. and 12.: modes, what is left behind

def test_what_a_training_writes_has_the_modes_of_the_umask_and_one_kind_of_line_end(box_folder, tmp_path):
    flags = ["--scene", box_folder.parent, *SMOKE, "--out", "run"]
    finished(*flags, "--steps", 20, cwd=tmp_path)
    finished("--resume", "--out", "run", "--steps", 40, "--no-eval", cwd=tmp_path)
    umask = os.umask(0)
    os.umask(umask)
    for name in ("checkpoint.pt", "log.csv"):
        assert (tmp_path / "run" / name).stat().st_mode & 0o777 == 0o666 & ~umask
    content = (tmp_path / "run/log.csv").read_bytes()
    steps = [row["step"] for row in csv.DictReader(content.decode().splitlines())]
    assert b"\r" not in content and steps == ["10", "20", "30", "40"]


def test_what_a_kill_before_the_first_checkpoint_leaves_is_cleared(box_folder, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    for name, text in ((".checkpoint.pt.1a.part", "half"), ("log.csv", "step,semantic\n"), (".lock", "")):
        (tmp_path / "run" / name).write_text(text)
    finished("--scene", box_folder.parent, *SMOKE, "--steps", 1, "--out", "run", cwd=tmp_path)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock", "checkpoint.pt", "log.csv"}
    monkeypatch.chdir(tmp_path)
    shutil.copytree("run", "runs/path-smoke", ignore=lambda *_: ["checkpoint.pt"])    # and without --out
    (tmp_path / "runs/path-smoke/.checkpoint.pt.1a.part").write_text("half")
    assert runs.free_folder(None, "path-smoke")[0] == Path("runs/path-smoke")
    assert not (tmp_path / "runs/path-smoke/.checkpoint.pt.1a.part").exists()


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("elsewhere")])
@pytest.mark.parametrize("name", ["log.csv", ".lock"])
def test_a_planted_pipe_or_link_in_a_run_is_not_waited_for_or_followed(box_folder, tmp_path, name, make):
    (tmp_path / "run").mkdir()
    make(tmp_path / "run" / name)
    process = start("--scene", box_folder.parent, *SMOKE, "--steps", 1, "--out", "run", cwd=tmp_path)
    assert process.wait(60) in (0, 2), said(tmp_path)
    assert not (tmp_path / "run/elsewhere").exists() and "Traceback" not in said(tmp_path)


# -------------------------------------------------------------------- 7. and 10.: pipes, two imports at once

def capture(folder: Path, box) -> Path:
    """The box as a nerfstudio capture."""
    (folder / "images").mkdir(parents=True)
    frames = []
    for i in range(20):
        pose = box.camera(i)
        colour, _, _ = box.photograph(box.K, pose, *box.size)
        importer.iio.imwrite(folder / f"images/{i}.png", colour)
        frames.append({"file_path": f"images/{i}.png",
                       "transform_matrix": (pose * [1, -1, -1, 1]).tolist()})
    (folder / "transforms.json").write_text(json.dumps({
        "fl_x": 50.0, "fl_y": 52.0, "cx": 31.5, "cy": 25.0, "w": 64, "h": 48, "frames": frames}))
    return folder


@pytest.mark.parametrize("name", ["transforms.json", "transforms_train.json", "poses_bounds.npy", "a.sens"])
def test_a_pipe_in_a_capture_is_not_waited_for(tmp_path, name):
    (tmp_path / "cap").mkdir()
    os.mkfifo(tmp_path / "cap" / name)
    refused(start("cap", "--out", "data", cwd=tmp_path, script="tools.import_scenes.py"), tmp_path, name)


@pytest.mark.parametrize("name", ["images/\ud800.jpg", ".", "", "..", "images/a.npz", "../a\nerror: b",
                                  "images", 5])
def test_odd_names_in_a_capture_are_one_line(tmp_path, box, name):
    cap = capture(tmp_path / "cap", box)
    np.savez(cap / "images/a.npz", a=np.zeros(3))
    meta = json.loads((cap / "transforms.json").read_text())
    meta["frames"][3]["file_path"] = name
    (cap / "transforms.json").write_text(json.dumps(meta))
    process = start("cap", "--out", "data", cwd=tmp_path, script="tools.import_scenes.py")
    assert process.wait(60) in (0, 2) and "Traceback" not in said(tmp_path), said(tmp_path)
    lines = [line for line in said(tmp_path).splitlines() if line.startswith("error: ")]
    assert len(lines) == (process.wait(0) == 2)


def test_two_imports_of_one_capture_at_once_both_end_well(tmp_path, box):
    capture(tmp_path / "cap", box)
    for _ in range(3):
        both = [start("cap", "--out", "data", cwd=tmp_path, script="tools.import_scenes.py")
                for _ in range(2)]
        assert [process.wait(60) for process in both] == [0, 0], said(tmp_path)
        assert os.listdir(tmp_path / "data") == ["cap"]
        assert len(data.Scene(tmp_path / "data/cap", 48, 64)) == 20
        shutil.rmtree(tmp_path / "data")


def test_an_import_into_the_download_never_says_to_delete_it(tmp_path, box):
    capture(tmp_path / "all/cap", box)
    before = tree(tmp_path / "all")
    refused(start("all/cap", "--out", "all", cwd=tmp_path, script="tools.import_scenes.py"), tmp_path,
            "all/cap: the download itself", "choose another --out")
    assert "delete" not in said(tmp_path) and tree(tmp_path / "all") == before


# ---------------------------------------------------------------------------------------- 11. two processes

def test_of_two_processes_one_says_what_is_wrong_with_the_data_and_both_end(box_copy, tmp_path):
    (box_copy / "color/6.jpg").write_bytes(b"rubbish")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    both = [start("--scene", box_copy.parent, *SMOKE, "--steps", 1, "--out", "run", cwd=tmp_path, RANK=str(i),
                  LOCAL_RANK=str(i), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
                  MASTER_PORT=port) for i in range(2)]
    assert [process.wait(120) for process in both] == [2, 2], said(tmp_path)
    assert said(tmp_path).count("error: ") == 1 and "Traceback" not in said(tmp_path)
    assert "color/6.jpg" in said(tmp_path) and not (tmp_path / "run/checkpoint.pt").exists()


# ------------------------------------------------------------------------------------- 6. memory has a bound

def test_large_photographs_take_the_memory_of_one_at_a_time(box_copy, tmp_path):
    """24 of 12 million pixels, a thread each: their largest part at once would take gigabytes."""
    K = np.loadtxt(box_copy / "intrinsic/intrinsic_color.txt")
    K[:2] *= 64
    np.savetxt(box_copy / "intrinsic/intrinsic_color.txt", K)
    for name in ("depth", "label-filt"):
        shutil.rmtree(box_copy / name)
    for i, path in enumerate(sorted((box_copy / "color").iterdir())):
        importer.iio.imwrite(path, np.full((3072, 4096, 3), 5 + 9 * i, np.uint8))
    code = f"""
import os, resource, sys, threading
os.cpu_count = lambda: 16
sys.path.insert(0, {str(ROOT)!r})
from importlib import import_module
from pathlib import Path
from support.frames import decode_all
scene = import_module('01_data').Scene(Path({str(box_copy)!r}), 48, 64, Path('cache'))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
decode_all([scene], [list(range(len(scene)))], quiet=True)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1000, f"{done.stdout} MB"
