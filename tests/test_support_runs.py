"""support/runs.py: a run's folder, its lock, checkpoint, log and curves; how it is asked to stop."""
import csv
import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import imageio.v3 as iio
import pytest
import torch

from support import runs
from support.files import DataError
from support.labels import SCANNET

RUN = {"data": "path", "root": ".", "train": [], "test": [], "seconds": 0.0, "command": "",
       "finetuned": False, "labels": None, "validation": 0, "crop": 0, "mean": {}}
STATE = {"step": 3, "run": RUN, "config": {}, "model": {"weight": torch.arange(3.0)}}


# ------------------------------------------------------------------------------------------------- the folder

def test_a_folder_is_free_or_taken_or_passed_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, lock = runs.free_folder(None, "rooms-smoke")
    second, other = runs.free_folder(None, "rooms-smoke")                     # the first is locked
    assert (first, second) == (Path("runs/rooms-smoke"), Path("runs/rooms-smoke-2"))
    with pytest.raises(DataError, match="another process"):
        runs.free_folder(str(first), "any")
    lock.close()
    again, lock = runs.free_folder(None, "rooms-smoke")  # killed before its first checkpoint: nothing in it
    assert again == first
    lock.close()
    (first / "checkpoint.pt").touch()
    assert runs.free_folder(None, "rooms-smoke")[0] == Path("runs/rooms-smoke-3")
    with pytest.raises(DataError, match="--resume continues it"):
        runs.free_folder(str(first), "any")
    assert other


def test_a_folder_to_resume_has_a_checkpoint_and_nobody_in_it(tmp_path):
    with pytest.raises(DataError, match="name that folder"):
        runs.folder_to_resume(None)
    with pytest.raises(DataError, match=r"run/checkpoint.pt: no such checkpoint"):
        runs.folder_to_resume(str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    for name in ("checkpoint.pt", "checkpoint_2.pt", ".checkpoint.pt.x1", "log.csv"):
        (tmp_path / "run" / name).touch()
    out, lock = runs.folder_to_resume(str(tmp_path / "run"))
    assert out == tmp_path / "run" and lock
    names = {path.name for path in out.iterdir()}                             # a killed writer's part is gone
    assert names == {"checkpoint.pt", "checkpoint_2.pt", "log.csv", ".lock"}
    with pytest.raises(DataError, match="another process trains in it"):
        runs.folder_to_resume(str(out))
    assert runs.folder_to_resume(str(out), rank=1) == (out, None)             # the first process has the lock


@pytest.mark.slow
def test_a_lock_dies_with_its_process(tmp_path):
    code = ("import sys, time; from pathlib import Path; from support import runs\n"
            "lock = runs.lock_folder(Path(sys.argv[1])); print('locked', flush=True); time.sleep(60)")
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True,
                               cwd=Path(__file__).parents[1])
    assert process.stdout.readline() == "locked\n"
    assert runs.lock_folder(tmp_path) is None
    process.kill()
    process.wait()
    assert runs.lock_folder(tmp_path)


def test_an_empty_run_is_removed_and_one_with_a_checkpoint_or_anything_else_is_not(tmp_path):
    for name, others in (("empty", []), ("run", ["checkpoint.pt"]), ("mine", ["notes.txt"])):
        (tmp_path / name).mkdir()
        for file in ("log.csv", ".lock", *others):
            (tmp_path / name / file).touch()
        runs.remove_empty(tmp_path / name)
    runs.remove_empty(tmp_path / "nowhere")
    assert not (tmp_path / "empty").exists() and (tmp_path / "mine/notes.txt").exists()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"checkpoint.pt", "log.csv", ".lock"}


# --------------------------------------------------------------------------------------------- the checkpoint

def test_a_state_is_read_as_it_was_written_and_nothing_else_is_left(tmp_path):
    runs.write_state(tmp_path / "a.pt", STATE)
    found = runs.read_state(tmp_path / "a.pt")
    assert torch.equal(found["model"].pop("weight"), torch.arange(3.0))
    assert found == {**STATE, "model": {}} and [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_a_state_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    runs.write_state(tmp_path / "a.pt", STATE)
    before = (tmp_path / "a.pt").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as error:
        runs.write_state(tmp_path / "a.pt", {**STATE, "step": 4})
    assert error.value.filename == str(tmp_path / "a.pt")
    assert (tmp_path / "a.pt").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("change", [{"step": "3"}, {"run": []}, {"config": None}, {"model": 1}])
def test_a_state_without_its_parts_is_refused(tmp_path, change):
    torch.save({**STATE, **change}, tmp_path / "a.pt")
    with pytest.raises(DataError, match="a.pt: not a checkpoint of this model .*train again"):
        runs.read_state(tmp_path / "a.pt")


def test_what_is_no_state_is_refused_in_one_line(tmp_path):
    runs.write_state(tmp_path / "a.pt", STATE)
    content = (tmp_path / "a.pt").read_bytes()
    for wrong in (b"", b"words", content[:len(content) // 2]):
        (tmp_path / "wrong.pt").write_bytes(wrong)
        with pytest.raises(DataError, match="wrong.pt: not a checkpoint") as error:
            runs.read_state(tmp_path / "wrong.pt")
        assert "\n" not in str(error.value)
    torch.save([1, 2], tmp_path / "list.pt")
    for name, words in (("list.pt", "not a checkpoint"), ("nothing.pt", "no such checkpoint")):
        with pytest.raises(DataError, match=f"{name}: {words}"):
            runs.read_state(tmp_path / name)


def test_weights_that_would_run_code_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)
    torch.save({**STATE, "model": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(DataError, match="evil.pt: not a checkpoint"):
        runs.read_state(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


@dataclass
class Settings:
    size: int = 4


def save(out, step, keep_every=0, rank=0, **run):
    """runs.save of a small model after so many steps -> its optimiser."""
    model = torch.nn.Linear(2, 1)
    model.config, model.classes = Settings(), SCANNET
    optimiser = torch.optim.Adam(model.parameters())
    model(torch.ones(2)).backward()
    optimiser.step()
    runs.save(out, model, optimiser, run, Namespace(seconds=lambda: 2.5), keep_every, rank, step)
    return optimiser


def test_a_checkpoint_holds_weights_settings_classes_step_optimiser_and_run(tmp_path):
    optimiser = save(tmp_path, 6, train=["a"])
    state = runs.read_state(tmp_path / "checkpoint.pt")
    assert (state["step"], state["config"]) == (6, {"size": 4})
    assert state["run"] == {**RUN, "train": ["a"], "seconds": 2.5}
    assert state["classes"]["names"] == SCANNET.names and set(state["model"]) == {"weight", "bias"}
    moments = optimiser.state_dict()["state"][0]["exp_avg"]
    assert torch.equal(state["optimiser"]["state"][0]["exp_avg"], moments) and moments.any()


def test_copies_stay_every_so_many_steps_and_only_the_first_process_writes(tmp_path):
    for step in (0, 2, 3, 4, 6):
        save(tmp_path, step, keep_every=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint.pt", "checkpoint_3.pt", "checkpoint_6.pt"]
    assert runs.read_state(tmp_path / "checkpoint_3.pt")["step"] == 3
    save(tmp_path, 9, keep_every=3, rank=1)
    assert runs.read_state(tmp_path / "checkpoint.pt")["step"] == 6


@pytest.mark.parametrize("loss, norm", [
    (float("nan"), 1.0), (float("inf"), 1.0), (1.0, float("nan")), (1.0, float("inf"))])
def test_a_loss_or_gradient_that_is_no_number_is_an_error_that_names_the_good_weights(loss, norm):
    runs.check_finite(4, {"semantic": 2.0, "loss": 1.0}, 3.0, Path("run"))
    with pytest.raises(DataError, match=rf"step 4: the loss is {loss}.*semantic 2.*run.checkpoint.pt.*--lr"):
        runs.check_finite(4, {"semantic": 2.0, "loss": loss}, norm, Path("run"))


# ---------------------------------------------------------------------------------------------------- the log

def test_the_log_of_a_resumed_run_has_every_step_once(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,loss,seconds\r\n10,0.5,1\r\n20,0.4,2\r\n30,0.3,3\r\n4")
    runs.trim_log(path, 20)
    assert path.read_text().split() == ["step,loss,seconds", "10,0.5,1", "20,0.4,2"]
    with runs.open_log(tmp_path, 20, 0) as log:
        log.write("30,0.2,4\n")
    assert path.read_text().split()[-2:] == ["20,0.4,2", "30,0.2,4"]
    with runs.open_log(tmp_path, 0, 1) as log:  # another process writes nothing
        log.write("1,2,3\n")
    assert len(path.read_text().split()) == 4
    runs.open_log(tmp_path, 0, 0).close()  # a run that begins begins its log
    assert path.read_text() == ""


def progress(out, first_step=0, steps=25, run=None):
    run = {"seconds": 0.0} if run is None else run
    return runs.Progress(out, run, ("semantic", "photometric"), first_step, steps, 8, 0)


def test_progress_logs_every_tenth_step_and_the_last_with_running_means(tmp_path, capsys):
    run = {"seconds": 100.0}
    with progress(tmp_path, run=run) as shown:
        for step in range(25):
            shown.update(step + 1, {"semantic": float(step), "photometric": 1.0, "loss": 9.0})
    rows = list(csv.DictReader(open(tmp_path / "log.csv")))
    assert [row["step"] for row in rows] == ["10", "20", "25"]
    assert set(rows[0]) == {"step", "semantic", "photometric", "seconds"}
    mean, means = 0.0, []                                                     # from the first value on
    for step in range(25):
        mean = 0.98 * mean + 0.02 * step
        means.append(mean)
    found = [float(row["semantic"]) for row in rows]
    assert found == pytest.approx([means[9], means[19], means[24]], rel=1e-4)
    assert run["mean"] == pytest.approx({"semantic": mean, "photometric": 1.0})
    assert 100 <= float(rows[0]["seconds"]) < 110
    assert "25/25" in capsys.readouterr().err and "trained 25 steps in 0 s" in shown.summary()


def test_progress_goes_on_where_a_run_was_resumed(tmp_path):
    whole, cut = {"seconds": 0.0}, {"seconds": 0.0}
    (tmp_path / "whole").mkdir()
    with progress(tmp_path / "whole", run=whole) as shown:
        for step in range(25):
            shown.update(step + 1, {"semantic": float(step), "photometric": 1.0})
    (tmp_path / "cut").mkdir()
    with progress(tmp_path / "cut", run=cut) as shown:
        for step in range(12):
            shown.update(step + 1, {"semantic": float(step), "photometric": 1.0})
        kept = json.loads(json.dumps({**cut, "seconds": shown.seconds()}))  # what a checkpoint of step 12 has
        for step in range(12, 21):                                            # lost
            shown.update(step + 1, {"semantic": 7.0, "photometric": 7.0})
    with progress(tmp_path / "cut", first_step=12, run=kept) as shown:
        for step in range(12, 25):
            shown.update(step + 1, {"semantic": float(step), "photometric": 1.0})
        assert shown.seconds() >= kept["seconds"] and "trained 13 steps" in shown.summary()
    assert kept["mean"] == whole["mean"]
    logs = [[row[:-1] for row in csv.reader(open(tmp_path / name / "log.csv"))] for name in ("whole", "cut")]
    assert logs[0] == logs[1]


def test_progress_notes_how_long_it_waited_and_flushes_its_log_when_asked_for_the_time(tmp_path):
    class Slow(Future):
        def result(self):
            time.sleep(0.05)
            return 7
    with progress(tmp_path) as shown:
        assert shown.wait_for(Slow()) == 7 and 0.05 <= shown.waited < 1
        shown.update(10, {"semantic": 1.0, "photometric": 1.0})
        shown.seconds()
        assert (tmp_path / "log.csv").read_text().splitlines()[1].startswith("10,1,1,")


def test_the_curves_are_a_picture_with_a_line_for_each_logged_loss(tmp_path):
    runs.training_curves(tmp_path)                                            # no log, no picture
    for losses in (1, 3):
        names = ["semantic", "photometric", "source"][:losses]
        rows = [["step", *names, "seconds"], *([10 * i, *[2 / (i + 1)] * losses, i] for i in range(4))]
        (tmp_path / "log.csv").write_text("\n".join(",".join(map(str, row)) for row in rows[:2]))
        (tmp_path / "curves.png").unlink(missing_ok=True)
        runs.training_curves(tmp_path)                                        # of one row there is no line
        assert not (tmp_path / "curves.png").exists()
        (tmp_path / "log.csv").write_text("\n".join(",".join(map(str, row)) for row in rows))
        runs.training_curves(tmp_path)
        picture = iio.imread(tmp_path / "curves.png")
        assert abs(picture.shape[1] - 460 * losses) < 3 and picture[..., :3].std() > 10
        blue = (abs(picture[..., :3].astype(int) - [0x00, 0x72, 0xb2]).sum(-1) < 30).sum()
        assert (blue > 50) == (losses > 1)


# ---------------------------------------------------------------------------------------- being asked to stop

@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_to_stop_and_a_second_ctrl_c_interrupts(number, capfd):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt):
        with runs.asked_to_stop() as asked:
            assert asked == []
            signal.raise_signal(number)
            assert asked == [number]
            signal.raise_signal(signal.SIGINT)
    assert "stopping after this step, to save" in capfd.readouterr().err
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_training_that_was_stopped_says_how_to_go_on_and_ends_with_130(tmp_path, capsys):
    (tmp_path / "checkpoint.pt").touch()
    with pytest.raises(SystemExit) as end:
        with runs.ending(tmp_path, "python 07_train.py --resume", 0):
            raise runs.Stopped("12 of 20")
    assert end.value.code == 130 and (tmp_path / "checkpoint.pt").exists()
    assert capsys.readouterr().err == ("stopped at step 12 of 20; everything is saved; continue with: "
                                       "python 07_train.py --resume\n")
    with pytest.raises(SystemExit), runs.ending(tmp_path, "any", 1):          # another process keeps silent
        raise runs.Stopped("12 of 20")
    assert capsys.readouterr().err == ""


def test_a_training_that_was_interrupted_says_what_is_lost(tmp_path):
    with pytest.raises(DataError, match="interrupted; steps since .* are lost; continue with: again"):
        with runs.ending(tmp_path, "again", 0):
            raise KeyboardInterrupt


@pytest.mark.parametrize("rank", [0, 1])
def test_a_training_without_a_checkpoint_leaves_no_folder_however_it_ends(tmp_path, rank):
    out = tmp_path / "run"
    out.mkdir()
    (out / "log.csv").touch()
    with pytest.raises(ZeroDivisionError), runs.ending(out, "any", rank):
        1 / 0
    assert out.exists() == (rank == 1)
