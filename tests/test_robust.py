"""Hard to break: killed, stopped and colliding runs, full disks, hostile datasets, several processes."""
import csv
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zlib
from importlib import import_module
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch

resource = pytest.importorskip("resource", reason="POSIX only: SIGKILL, limits of memory and file size")
import fuzz
import kill

rooms, data, training, evaluation = (import_module(name) for name in ("00_rooms", "01_data", "07_train", "08_eval"))
ROOT = Path(__file__).parents[1]
SMOKE = ["--preset", "smoke", "--rays", "8", "--coarse", "2", "--fine", "2", "--device", "cpu", "--no-eval"]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Two rooms of 64x48 on disk: one to train on, one unseen."""
    folder = tmp_path_factory.mktemp("rooms")
    rooms.make_rooms(folder, [0, 9000], frames=24, width=64, height=48, workers=1)
    return folder


def start(*arguments, cwd: Path, script: str = "07_train.py", **environment) -> kill.Fork:
    """A script's main() in a process of its own."""
    return kill.Fork(list(arguments), cwd, script, **environment)


def said(cwd: Path) -> str:
    """What the processes started in cwd have written."""
    return (cwd / "output.txt").read_text().replace("\r", "\n") if (cwd / "output.txt").exists() else ""


def wait_for(happened, process: kill.Fork, seconds: float = 60) -> None:
    """Until happened() is true."""
    end = time.time() + seconds
    while not happened():
        assert process.wait(0.01) is None and time.time() < end
    assert process.wait(0) is None


def refused(process: kill.Fork, cwd: Path, *words: str, count: int = 1) -> None:
    """It ends with status 2, and its line of error (the count-th in this folder) has these words."""
    assert process.wait(60) == 2, said(cwd)
    errors = [line.partition("error: ")[2] for line in said(cwd).splitlines() if "error: " in line]
    assert len(errors) == count and "Traceback" not in said(cwd), said(cwd)
    assert all(word in errors[-1] for word in words), errors[-1]


# ---------------------------------------------------------------------------------------------------- nothing lost

def test_a_run_killed_at_any_moment_and_resumed_ends_like_one_that_nobody_touched(root, tmp_path):
    flags = ("--no-eval", "--cache", str(tmp_path / "cache"))
    expected, seconds = kill.whole(root, tmp_path / "whole", kill.Fork, flags)
    assert expected["step"] == 9 and len(expected["log"]) == 2 and len(expected["weights"]) > 50
    for i, share in enumerate((0.45, 0.65, 0.85)):
        got, killed = kill.point(root, tmp_path / f"point{i}", [share * seconds], kill.Fork, flags)
        assert got == expected, killed


def test_the_log_of_a_resumed_run_has_every_step_once(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,loss,seconds\r\n10,0.5,1\r\n20,0.4,2\r\n30,0.3,3\r\n4")
    training.trim_log(path, 20)
    assert path.read_text().split() == ["step,loss,seconds", "10,0.5,1", "20,0.4,2"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_save_and_say_how_to_go_on(root, tmp_path, number):
    process = start("--scene", root, *SMOKE, "--steps", 10_000, "--save-every", 1_000_000, "--keep-every", 9,
                    "--out", "run", cwd=tmp_path)
    wait_for(lambda: (tmp_path / "run/checkpoint_9.pt").exists(), process)
    time.sleep(0.2)                                                           # among the steps that are not saved anyway
    os.kill(process.process.pid, number)
    assert process.wait(60) == 130, said(tmp_path)
    step = training.load_checkpoint(tmp_path / "run/checkpoint.pt")[1]["step"]
    last = said(tmp_path).strip().splitlines()[-1]
    assert step > 9 and last == (f"stopped at step {step} of 10000; everything is saved; continue with: "
                                 "python 07_train.py --resume --out run")
    done = start("--resume", "--out", "run", "--no-eval", "--steps", step + 1, cwd=tmp_path)
    assert done.wait(60) == 0 and training.load_checkpoint(tmp_path / "run/checkpoint.pt")[1]["step"] == step + 1, said(tmp_path)


def test_killed_while_frames_are_decoded_nothing_is_damaged(root, tmp_path):
    shutil.copytree(root, tmp_path / "rooms")
    process = start("--scene", "rooms", *SMOKE, "--steps", 1, "--out", "run", cwd=tmp_path)
    cache = tmp_path / "cache"
    wait_for(lambda: len(list(cache.glob("*/*.npy"))) >= 2, process)
    process.kill()
    scene = data.Scene(tmp_path / "rooms/room0000_00", 48, 64, cache)
    fresh = data.Scene(tmp_path / "rooms/room0000_00", 48, 64, tmp_path / "fresh")
    assert all(np.array_equal(scene.load(i), fresh.load(i)) for i in range(len(scene)))
    assert start("--scene", "rooms", *SMOKE, "--steps", 1, "--out", "run", cwd=tmp_path).wait(60) == 0, said(tmp_path)


def test_killed_while_rooms_are_made_the_next_run_finds_whole_rooms_only(root, tmp_path):
    code = ("import sys; from importlib import import_module; sys.path.insert(0, sys.argv[1])\n"
            "import_module('00_rooms').make_rooms('rooms', [0, 9000], frames=24, width=64, height=48, workers=1)")
    process = subprocess.Popen([sys.executable, "-c", code, str(ROOT)], cwd=tmp_path, stderr=subprocess.DEVNULL)
    end = time.time() + 60
    while not (tmp_path / "rooms/room0000_00").exists() and time.time() < end:
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not (tmp_path / "rooms/room9000_00").exists() and data.list_scenes(tmp_path / "rooms") == ["room0000_00"]
    rooms.make_rooms(tmp_path / "rooms", [0, 9000], frames=24, width=64, height=48, workers=1)
    for path in root.rglob("*.*"):
        if path.is_file():
            assert (tmp_path / "rooms" / path.relative_to(root)).read_bytes() == path.read_bytes()


def test_a_room_that_is_replaced_is_never_there_in_half(tmp_path, monkeypatch):
    rooms.write_room(tmp_path, "room0005_00", 5, frames=2, width=32, height=24)
    seen, real = [], shutil.rmtree

    def watch(path, **options):
        about = tmp_path / "room0005_00" / "room.json"
        seen.append((Path(path).name, about.exists() and '"frames": 3' in about.read_text()))
        real(path, **options)
    monkeypatch.setattr(rooms.shutil, "rmtree", watch)
    rooms.write_room(tmp_path, "room0005_00", 5, frames=3, width=32, height=24)
    assert seen and all(whole and name.startswith(".") for name, whole in seen)       # the new one is there before the old one goes
    assert [p.name for p in tmp_path.iterdir()] == ["room0005_00"]


def test_a_full_disk_leaves_the_last_checkpoint_and_one_line(root, tmp_path):
    assert start("--scene", root, *SMOKE, "--steps", 2, "--out", "run", cwd=tmp_path).wait(60) == 0, said(tmp_path)
    good = (tmp_path / "run/checkpoint.pt").read_bytes()
    process = start("--resume", "--out", "run", "--steps", 4, "--no-eval", cwd=tmp_path, FILE_SIZE=str(len(good) // 2))
    refused(process, tmp_path, "run/checkpoint.pt: ", "too large")
    assert (tmp_path / "run/checkpoint.pt").read_bytes() == good
    assert not list((tmp_path / "run").glob(".checkpoint*"))


@pytest.mark.parametrize("number", ["ENOSPC", "EROFS", "EACCES"])
def test_a_disk_that_is_full_or_read_only_is_one_line_with_the_file(box_folder, tmp_path, monkeypatch, capsys, number):
    code = getattr(errno, number)
    kept = tmp_path / "kept.txt"
    kept.write_text("before")

    def fails(*_, **__):
        raise OSError(code, os.strerror(code))
    with monkeypatch.context() as patch:
        patch.setattr(data.tempfile, "mkstemp", fails)
        with pytest.raises(SystemExit) as end:
            data.run_script(lambda: data.write_atomically(kept, lambda file: file.write(b"after")))
        printed = capsys.readouterr().err
        assert end.value.code == 2 and printed.startswith(f"error: {kept}: {os.strerror(code)}; ") and printed.count("\n") == 1
        with pytest.raises(data.DataError, match=r"cannot write the cache .* --cache"):
            data.Scene(box_folder, 24, 32, cache=tmp_path / "cache").load(0)
        assert not list((tmp_path / "cache").rglob("*.*"))
    with monkeypatch.context() as patch:
        patch.setattr(data.os, "replace", fails)                                       # written, but not renamed
        with pytest.raises(OSError):
            data.write_atomically(kept, lambda file: file.write(b"after"))
    assert kept.read_text() == "before" and not list(tmp_path.glob(".*"))


def test_a_folder_that_cannot_be_written_ends_with_one_line(root, tmp_path):
    (tmp_path / "file").write_text("")
    refused(start("--scene", root, *SMOKE, "--steps", 2, "--out", "file/run", cwd=tmp_path), tmp_path, "file", "--out")
    assert (tmp_path / "file").read_text() == "" and not list(tmp_path.rglob("checkpoint.pt")), "something was written"


# ---------------------------------------------------------------------------------------------------- two runs, one folder

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
    refused(start("--resume", "--out", "run", "--no-eval", cwd=tmp_path), tmp_path, "run: another process trains in it", count=2)
    winner.kill()                                                             # the lock dies with its process
    assert start("--resume", "--out", "run", "--no-eval", "--steps", 1, cwd=tmp_path).wait(60) == 0, said(tmp_path)


def test_a_folder_is_free_or_taken_or_passed_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, lock = training.free_folder(None, "rooms-smoke")
    second, other = training.free_folder(None, "rooms-smoke")                 # the first is locked
    assert (first, second) == (Path("runs/rooms-smoke"), Path("runs/rooms-smoke-2"))
    with pytest.raises(data.DataError, match="another process"):
        training.free_folder(str(first), "any")
    lock.close()
    again, lock = training.free_folder(None, "rooms-smoke")                   # killed before its first checkpoint: nothing in it
    assert again == first
    lock.close()
    (first / "checkpoint.pt").touch()
    assert training.free_folder(None, "rooms-smoke")[0] == Path("runs/rooms-smoke-3")
    with pytest.raises(data.DataError, match="--resume continues it"):
        training.free_folder(str(first), "any")
    with pytest.raises(data.DataError, match="no such checkpoint"):
        training.folder_to_resume(str(second))
    assert other


# ---------------------------------------------------------------------------------------------------- frames that cannot be read

@pytest.fixture
def long_scene(box_folder, tmp_path) -> Path:
    """A scene of 200 frames: links to the box's 25, inside the scene."""
    folder = tmp_path / "scans" / box_folder.name
    shutil.copytree(box_folder.parent, tmp_path / "scans")
    for kind, suffix in (("color", "jpg"), ("depth", "png"), ("label-filt", "png"), ("pose", "txt")):
        for number in (n for n in range(1000, 1174)):
            os.symlink(f"{2 + 4 * (number % 5)}.{suffix}", folder / kind / f"{number}.{suffix}")
    return folder


def replace(path: Path, content: bytes) -> None:
    """Put a file in the place of a link or file."""
    path.unlink()
    path.write_bytes(content)


def test_one_percent_of_a_scenes_frames_are_named_skipped_and_counted_and_more_are_an_error(long_scene, tmp_path, capsys):
    replace(long_scene / "pose/1000.txt", b"nan " * 16)
    replace(long_scene / "color/1003.jpg", b"\xff\xd8\xff rubbish")
    scene = data.Scene(long_scene, 24, 32, tmp_path / "cache")
    assert scene.total == 200 and len(scene) == 198                           # one lost, one skipped
    frames, = training.decode_all([scene], [list(range(len(scene)))])
    assert len(frames) == 197 and {scene.frames[i] for i in frames} == set(scene.frames) - {1003}
    printed = capsys.readouterr().out
    assert [line.split(":")[0] for line in printed.splitlines()] == ["skipped"] * 2
    assert "pose/1000.txt" in printed and "color/1003.jpg" in printed
    assert "so far 2 of scene0001_00's 200 frames, at most 2" in printed
    target, sources = data.training_pair(scene, 4, torch.Generator().manual_seed(0), frames=frames)
    assert scene.frames.index(1003) not in [target, *sources]
    replace(long_scene / "label-filt/1004.png", b"")
    scene = data.Scene(long_scene, 24, 32, tmp_path / "cache")
    with pytest.raises(data.DataError, match=r"3 of 200 frames cannot be read, more than 1%"):
        training.decode_all([scene], [list(range(len(scene)))])


def test_of_fewer_than_100_frames_none_is_skipped(box_copy, tmp_path):
    (box_copy / "color/6.jpg").write_bytes(b"")
    scene = data.Scene(box_copy, 24, 32, tmp_path / "cache")
    with pytest.raises(data.DataError, match=r"color/6.jpg: .*\(of 26 frames none is skipped\)"):
        training.decode_all([scene], [list(range(len(scene)))])


def test_evaluation_leaves_an_unreadable_view_out_and_moves_no_other_into_its_place(long_scene, tmp_path):
    scene = data.Scene(long_scene, 24, 32, tmp_path / "cache")
    source, _, test = data.protocol(scene)
    for index in (source[2], test[1]):
        replace(long_scene / f"color/{scene.frames[index]}.jpg", b"\xff\xd8\xff rubbish")
    scene = data.Scene(long_scene, 24, 32, tmp_path / "cache")
    training.decode_all([scene], [evaluation.source_views(scene, 8) + evaluation.test_views(scene)], quiet=True)
    assert evaluation.source_views(scene, 8) == [i for i in source if i != source[2]]
    assert evaluation.test_views(scene) == [i for i in test if i != test[1]]


# ---------------------------------------------------------------------------------------------------- nothing let in

def bad_pose(change):
    """A pose with one thing wrong, as text."""
    pose = np.eye(4)
    change(pose)
    return "\n".join(" ".join(map(str, row)) for row in pose)


@pytest.mark.parametrize("change", [
    lambda p: p.__setitem__((0, 3), np.nan), lambda p: p.__setitem__((0, 3), np.inf), lambda p: p.__setitem__((0, 3), -np.inf),
    lambda p: p.__setitem__((0, 3), 1e300), lambda p: p.__setitem__((0, 0), -1), lambda p: p.__setitem__((0, 0), 1.1),
    lambda p: p.__imul__(2), lambda p: p.__setitem__((0, 1), 0.2), lambda p: p.__setitem__((3, 0), 1), lambda p: p.fill(0)])
def test_a_pose_that_is_no_rotation_and_place_is_refused(box_copy, change):
    (box_copy / "pose/6.txt").write_text(bad_pose(change))
    with pytest.raises(data.DataError, match=r"pose/6.txt: not a camera's pose"):
        data.Scene(box_copy, 24, 32)


@pytest.mark.parametrize("place, value", [((0, 0), -50), ((0, 0), 1e300), ((1, 1), 1e-300), ((0, 2), -np.inf), ((0, 2), 1e20),
                                          ((1, 0), 3)])
def test_intrinsics_that_are_no_pinhole_are_refused(box_copy, place, value):
    K = np.eye(4) * 50
    K[2, 2] = K[3, 3] = 1
    K[place] = value
    np.savetxt(box_copy / "intrinsic/intrinsic_color.txt", K)
    with pytest.raises(data.DataError, match="intrinsic_color.txt: not a pinhole camera"):
        data.Scene(box_copy, 24, 32)


def test_an_image_that_claims_to_be_huge_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "0.png"
    small = np.zeros((2, 2), np.uint8)
    iio.imwrite(path, small)
    content = bytearray(path.read_bytes())
    for width, height, words in ((9000, 9000, "claims to be 9000x9000, more than"), (2 ** 31 - 1, 2 ** 31 - 1, "")):
        content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
        content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
        path.write_bytes(content)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(data.DataError, match=rf"0.png: cannot be decoded \({words}"):
            data.read_image(path)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000           # kB; 81 million pixels would be more


@pytest.mark.parametrize("make", [lambda p: os.mkfifo(p), lambda p: p.symlink_to("/dev/zero"), lambda p: p.mkdir(),
                                  lambda p: iio.imwrite(p, np.zeros((4, 4, 3), np.uint8), extension=".bmp")])
def test_what_is_no_jpg_or_png_is_refused_and_never_waited_for(tmp_path, make):
    make(tmp_path / "0.jpg")
    with pytest.raises(data.DataError, match="0.jpg"):
        data.read_image(tmp_path / "0.jpg")


@pytest.mark.parametrize("file", ["color/2.jpg", "label-filt/2.png", "depth/2.png", "pose/2.txt", "intrinsic/intrinsic_color.txt",
                                  "intrinsic/intrinsic_depth.txt"])
def test_a_link_that_leads_out_of_the_scene_is_refused_and_one_inside_is_not(box_copy, tmp_path, file):
    inside, outside = box_copy / "elsewhere", tmp_path / "outside"
    shutil.copyfile(box_copy / file, outside)
    (box_copy / file).rename(inside)
    (box_copy / file).symlink_to(inside)
    data.Scene(box_copy, 24, 32, tmp_path / "cache").views([0])
    shutil.rmtree(tmp_path / "cache")
    (box_copy / file).unlink()
    (box_copy / file).symlink_to(outside)
    with pytest.raises(data.DataError, match=f"{file}: a link that leads out of the scene"):
        data.Scene(box_copy, 24, 32, tmp_path / "cache").views([0])


@pytest.mark.parametrize("name", ["../scene0001_00", "/etc", "a/b", "..", ".", "", "C:\\x", "a\\b", "x\0y", "x\ny"])
def test_a_list_of_scenes_cannot_lead_out_of_its_folder(box_folder, tmp_path, name):
    with pytest.raises(data.DataError, match=r"--scenes: .* is not the name of a scene; .* no paths"):
        data.find_dataset(str(box_folder.parent), None, 0, 0, scenes=[name])
    if name and not set(name) & set("\n\0"):
        (tmp_path / "split.txt").write_text(f"train scene0001_00\ntest {name}\n")
        with pytest.raises(data.DataError, match=r"split.txt, line 2: .* no paths"):
            data.split_by_space(["scene0001_00"], tmp_path / "split.txt")


@pytest.mark.parametrize("text", ["99999999999\t1\r\n", "-1\t1\r\n", "9" * 5000 + "\t1\r\n", '"' + "x" * 200_000])
def test_a_label_table_of_absurd_ids_is_refused(tmp_path, text):
    (tmp_path / data.LABELS_TSV).write_text("id\tnyu40id\r\n" + text)
    with pytest.raises(data.DataError, match=data.LABELS_TSV):
        data.read_label_table(tmp_path / data.LABELS_TSV)


@pytest.mark.parametrize("name, value", [("height", 10 ** 6), ("height", "48"), ("near", float("nan")), ("cra", 5), ("tau", None)])
def test_a_checkpoint_with_absurd_settings_is_refused(tmp_path, name, value):
    state = {"model": {}, "config": {name: value}, "step": 1, "run": {}}
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(data.DataError, match=f"a.pt: not a checkpoint .*{name}"):
        training.load_checkpoint(tmp_path / "a.pt")


def test_weights_that_would_run_code_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)
    torch.save({"model": Evil(), "config": {}, "step": 1, "run": {}}, tmp_path / "evil.pt")
    with pytest.raises(data.DataError, match="evil.pt: not a checkpoint"):
        training.load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()
    code = "".join(path.read_text() for path in ROOT.glob("[01]*.py"))
    assert code.count("torch.load(") == code.count("weights_only=True") > 0 and "import pickle" not in code


def test_40_damaged_scenes_end_in_success_or_one_clear_line():
    counts, failed = fuzz.run(first=0, cases=40, real=0)
    assert not failed, failed
    assert counts["success"] >= 5 and counts["refused"] >= 20 and sum(counts.values()) == 40


# ---------------------------------------------------------------------------------------------------- several processes

def pair(*arguments, cwd: Path, script: str = "07_train.py") -> None:
    """Two processes of a script as torchrun starts them, on this machine's CPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    both = [start(*arguments, cwd=cwd, script=script, RANK=str(i), LOCAL_RANK=str(i), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
                  MASTER_ADDR="127.0.0.1", MASTER_PORT=port) for i in range(2)]
    assert [p.wait(120) for p in both] == [0, 0], said(cwd)


def gradients(path: Path) -> dict[int, torch.Tensor]:
    """Of a run's only step: Adam's first moment is a tenth of it."""
    return {i: moments["exp_avg"] * 10 for i, moments in torch.load(path, weights_only=True)["optimiser"]["state"].items()}


@pytest.mark.parametrize("split", [["--targets", "1", "--rays", "15"], ["--targets", "3", "--rays", "15", "--extra-views", "1"]])
def test_two_processes_have_the_gradient_of_one_on_the_same_rays(root, tmp_path, split):
    flags = ["--scene", root, *SMOKE, "--steps", 1, *split, "--clip", 1e6]
    assert start(*flags, "--out", "one", cwd=tmp_path).wait(60) == 0, said(tmp_path)
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
    assert start(*flags, "--out", "one", cwd=tmp_path).wait(60) == 0, said(tmp_path)
    pair(*flags, "--out", "two", cwd=tmp_path)
    (tmp_path / "three").mkdir()
    shutil.copy(tmp_path / "two/checkpoint_2.pt", tmp_path / "three/checkpoint.pt")
    assert start("--resume", "--out", "three", "--no-eval", cwd=tmp_path).wait(60) == 0, said(tmp_path)
    means = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["run"]["mean"] for name in ("one", "two", "three")]
    assert means[1] == pytest.approx(means[0], rel=1e-4) and means[2] == pytest.approx(means[0], rel=1e-4)


def test_two_processes_share_the_views_of_an_evaluation_and_find_the_metrics_of_one(root, tmp_path):
    config = training.Config(**{**fuzz.TINY, "coarse": 4, "fine": 4})
    torch.manual_seed(0)
    model = training.SRay(config)
    training.save_checkpoint(tmp_path / "run/checkpoint.pt", model, torch.optim.Adam(model.parameters()), 1, {
        "data": "rooms", "root": str(root), "train": [], "test": ["room9000_00", "room0000_00"], "seconds": 0.0, "command": "-",
        "mean": {}, "finetuned": False})
    with open(tmp_path / "run/log.csv", "w") as log:
        csv.writer(log).writerow(["step", "seconds"])
    results = []
    for processes in (start, pair):
        done = processes("--checkpoint", "run/checkpoint.pt", cwd=tmp_path, script="08_eval.py")
        assert done is None or done.wait(60) == 0, said(tmp_path)
        results.append(kill.result(tmp_path / "run")["metrics"])
        shutil.rmtree(tmp_path / "run/eval")
    assert results[0] == results[1] and len(results[0]["images"]) == 8
    assert [image["scene"] for image in results[1]["images"]] == ["room9000_00"] * 4 + ["room0000_00"] * 4
