"""Hard to break: killed, stopped and colliding runs, full disks, hostile datasets, several processes.

What is read and refused of a single file, folder or flag has its tests in test_support_*.py.
"""
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from support import runs
from support.datasets import list_scenes
from support.frames import decode_all

pytest.importorskip("resource", reason="POSIX only: SIGKILL, limits of memory and file size")
fuzz, kill, forks = (import_module(name) for name in ("fuzz", "kill", "forks"))
rooms, data, training, evaluation = (import_module(name) for name in (
    "00_rooms", "01_data", "07_train", "08_eval"))
start, said, wait_for, refused = forks.start, forks.said, forks.wait_for, forks.refused
ROOT = Path(__file__).parents[1]
SMOKE = ["--preset", "smoke", "--rays", "8", "--coarse", "2", "--fine", "2", "--device", "cpu", "--no-eval"]
pytestmark = pytest.mark.slow


def steps_of(path: Path) -> int:
    """The steps after which a checkpoint was written."""
    return training.load_checkpoint(path)[1]["step"]


# --------------------------------------------------------------------------------------------- nothing lost

def test_a_run_killed_at_any_moment_and_resumed_ends_like_one_that_nobody_touched(root, tmp_path):
    flags = ("--no-eval", "--cache", str(tmp_path / "cache"))
    expected, seconds = kill.whole(root, tmp_path / "whole", forks.Fork, flags)
    assert expected["step"] == 9 and len(expected["log"]) == 2 and len(expected["weights"]) > 50
    for i, share in enumerate((0.45, 0.65, 0.85)):
        got, killed = kill.point(root, tmp_path / f"point{i}", [share * seconds], forks.Fork, flags)
        assert got == expected, killed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_save_and_say_how_to_go_on(root, tmp_path, number):
    process = start("--scene", root, *SMOKE, "--steps", 10_000, "--save-every", 1_000_000, "--keep-every", 9,
                    "--out", "run", cwd=tmp_path)
    wait_for(lambda: (tmp_path / "run/checkpoint_9.pt").exists(), process)
    time.sleep(0.2)                                                # among the steps that are not saved anyway
    os.kill(process.process.pid, number)
    assert process.wait(60) == 130, said(tmp_path)
    step = steps_of(tmp_path / "run/checkpoint.pt")
    last = said(tmp_path).strip().splitlines()[-1]
    assert step > 9 and last == (f"stopped at step {step} of 10000; everything is saved; continue with: "
                                 "python 07_train.py --resume --out run --save-every 1000000 "
                                 "--keep-every 9 --device cpu --no-eval")
    forks.finished("--resume", "--out", "run", "--no-eval", "--steps", step + 1, cwd=tmp_path)
    assert steps_of(tmp_path / "run/checkpoint.pt") == step + 1


def test_killed_while_frames_are_decoded_nothing_is_damaged(root, tmp_path):
    shutil.copytree(root, tmp_path / "boxes")
    process = start("--scene", "boxes", *SMOKE, "--steps", 1, "--out", "run", cwd=tmp_path)
    cache = tmp_path / "cache"
    wait_for(lambda: len(list(cache.glob("*/*.npy"))) >= 2, process)
    process.kill()
    scene, fresh = (data.Scene(tmp_path / "boxes/scene0001_00", 48, 64, x)
                    for x in (cache, tmp_path / "fresh"))
    assert all(np.array_equal(scene.load(i), fresh.load(i)) for i in range(len(scene)))
    forks.finished("--scene", "boxes", *SMOKE, "--steps", 1, "--out", "run", cwd=tmp_path)


def test_killed_while_rooms_are_made_the_next_run_finds_whole_rooms_only(tmp_path):
    code = """
import sys
from importlib import import_module
sys.path.insert(0, sys.argv[1])
import_module('00_rooms').make_rooms('rooms', [0, 9000], frames=24, width=64, height=48, workers=1)"""
    process = subprocess.Popen([sys.executable, "-c", code, str(ROOT)], cwd=tmp_path,
                               stderr=subprocess.DEVNULL)
    end = time.time() + 60
    while not (tmp_path / "rooms/room0000_00").exists() and time.time() < end:
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert list_scenes(tmp_path / "rooms") == ["room0000_00"]
    for name in ("rooms", "others"):
        rooms.make_rooms(tmp_path / name, [0, 9000], frames=24, width=64, height=48, workers=1)
    files = [path for path in (tmp_path / "others").rglob("*.*") if path.is_file()]
    assert len(files) > 100
    for path in files:
        assert (tmp_path / "rooms" / path.relative_to(tmp_path / "others")).read_bytes() == path.read_bytes()


def test_a_full_disk_leaves_the_last_checkpoint_and_one_line(root, tmp_path):
    forks.finished("--scene", root, *SMOKE, "--steps", 2, "--out", "run", cwd=tmp_path)
    good = (tmp_path / "run/checkpoint.pt").read_bytes()
    process = start("--resume", "--out", "run", "--steps", 4, "--no-eval", cwd=tmp_path,
                    FILE_SIZE=str(len(good) // 2))
    refused(process, tmp_path, "run/checkpoint.pt: ", "too large")
    assert (tmp_path / "run/checkpoint.pt").read_bytes() == good
    assert not list((tmp_path / "run").glob(".checkpoint*"))


def test_a_folder_that_cannot_be_written_ends_with_one_line(root, tmp_path):
    (tmp_path / "file").write_text("")
    process = start("--scene", root, *SMOKE, "--steps", 2, "--out", "file/run", cwd=tmp_path)
    refused(process, tmp_path, "file", "--out")
    assert (tmp_path / "file").read_text() == "" and not list(tmp_path.rglob("checkpoint.pt"))


# ------------------------------------------------------------------------------------- two runs, one folder

def test_two_runs_started_at_the_same_moment_never_share_a_folder(root, tmp_path):
    common = ["--scene", root, *SMOKE, "--steps", 10_000]
    pair = [start(*common, "--out", "run", cwd=tmp_path) for _ in range(2)]
    end = time.time() + 60
    while all(p.wait(0.05) is None for p in pair) and time.time() < end:
        pass
    loser, = (p for p in pair if p.wait(0) is not None)
    winner, = (p for p in pair if p is not loser)
    refused(loser, tmp_path, "run: ", "another")
    wait_for(lambda: (tmp_path / "run/checkpoint.pt").exists(), winner)
    process = start("--resume", "--out", "run", "--no-eval", cwd=tmp_path)
    refused(process, tmp_path, "run: another process trains in it")
    winner.kill()                                                             # the lock dies with its process
    forks.finished("--resume", "--out", "run", "--no-eval", "--steps", 1, cwd=tmp_path)


# ------------------------------------------------------------------------------------ what cannot be read

def test_evaluation_leaves_an_unreadable_view_out_and_moves_no_other_into_its_place(long_scene, tmp_path):
    scene = data.Scene(long_scene, 24, 32, tmp_path / "cache")
    source, _, test = data.protocol(scene)
    for index in (source[2], test[1]):
        path = long_scene / f"color/{scene.frames[index]}.jpg"
        path.unlink()                                                         # a link perhaps
        path.write_bytes(b"\xff\xd8\xff rubbish" + str(index).encode())       # no two the same photograph
    scene = data.Scene(long_scene, 24, 32, tmp_path / "cache")
    decode_all([scene], [evaluation.source_views(scene, 8) + evaluation.test_views(scene)], quiet=True)
    assert evaluation.source_views(scene, 8) == [i for i in source if i != source[2]]
    assert evaluation.test_views(scene) == [i for i in test if i != test[1]]


def test_40_damaged_scenes_end_in_success_or_one_clear_line():
    counts, failed = fuzz.run(first=0, cases=40, real=0)
    assert not failed, failed
    assert counts["success"] >= 5 and counts["refused"] >= 20 and sum(counts.values()) == 40


# -------------------------------------------------------------------------------------- several processes

def pair(*arguments, cwd: Path, script: str = "07_train.py") -> None:
    """Two processes of a script as torchrun starts them, on this machine's CPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    both = [start(*arguments, cwd=cwd, script=script, RANK=str(i), LOCAL_RANK=str(i), WORLD_SIZE="2",
                  LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port) for i in range(2)]
    assert [p.wait(120) for p in both] == [0, 0], said(cwd)


def gradients(path: Path) -> dict[int, torch.Tensor]:
    """Of a run's only step: Adam's first moment is a tenth of it."""
    state = torch.load(path, weights_only=True)["optimiser"]["state"]
    return {i: moments["exp_avg"] * 10 for i, moments in state.items()}


@pytest.mark.parametrize("split", [
    ["--targets", "1", "--rays", "15"], ["--targets", "3", "--rays", "15", "--extra-views", "1"]])
def test_two_processes_have_the_gradient_of_one_on_the_same_rays(root, tmp_path, split):
    flags = ["--scene", root, *SMOKE, "--steps", 1, *split, "--clip", 1e6]
    forks.finished(*flags, "--out", "one", cwd=tmp_path)
    pair(*flags, "--out", "two", cwd=tmp_path)
    one, two = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("one", "two"))
    assert one["run"]["mean"] == pytest.approx(two["run"]["mean"], rel=1e-5)
    ones, twos = (gradients(tmp_path / name / "checkpoint.pt") for name in ("one", "two"))
    assert ones.keys() == twos.keys() and len(ones) > 50 and max(g.abs().max() for g in ones.values()) > 0.1
    for i in ones:
        torch.testing.assert_close(twos[i], ones[i], rtol=1e-5, atol=1e-5)
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == [".lock", "checkpoint.pt", "log.csv"]
    assert said(tmp_path).count("run folder two") == 1                        # one process speaks


def test_a_run_of_two_processes_is_resumed_by_one_and_goes_on_with_the_same_rays(root, tmp_path):
    flags = ["--scene", root, *SMOKE, "--steps", 4, "--keep-every", 2]
    forks.finished(*flags, "--out", "one", cwd=tmp_path)
    pair(*flags, "--out", "two", cwd=tmp_path)
    (tmp_path / "three").mkdir()
    shutil.copy(tmp_path / "two/checkpoint_2.pt", tmp_path / "three/checkpoint.pt")
    forks.finished("--resume", "--out", "three", "--no-eval", cwd=tmp_path)
    one, two, three = (runs.read_state(tmp_path / name / "checkpoint.pt")["run"]["mean"]
                       for name in ("one", "two", "three"))
    assert two == pytest.approx(one, rel=1e-4) and three == pytest.approx(one, rel=1e-4)


def test_two_processes_share_the_views_of_an_evaluation_and_find_the_metrics_of_one(root, tmp_path):
    config = training.Config(**{**fuzz.TINY, "coarse": 4, "fine": 4})
    torch.manual_seed(0)
    runs.write_state(tmp_path / "run/checkpoint.pt", {
        "model": training.SRay(config).state_dict(), "config": asdict(config), "step": 1,
        "optimiser": {"state": {}}, "run": {
            "data": "path", "root": str(root), "train": [], "test": ["scene0002_00", "scene0001_00"],
            "seconds": 0.0, "command": "-", "mean": {}, "finetuned": False}})
    (tmp_path / "run/log.csv").write_text("step,seconds\n")
    results = []
    for processes in (forks.finished, pair):
        processes("--checkpoint", "run/checkpoint.pt", cwd=tmp_path, script="08_eval.py")
        results.append(kill.result(tmp_path / "run")["metrics"])
        shutil.rmtree(tmp_path / "run/eval")
    assert results[0] == results[1] and len(results[0]["images"]) == 8
    assert [image["scene"] for image in results[1]["images"]] == ["scene0002_00"] * 4 + ["scene0001_00"] * 4
