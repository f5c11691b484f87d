"""tools/export.py: a run's weights in half precision, without the optimiser."""
import hashlib
import subprocess
import sys
from importlib import import_module

import pytest
import torch

from support.files import DataError
from support.runs import write_state
from tools.export import export

training = import_module("07_train")


@pytest.fixture
def run(tmp_path):
    """The folder of a run of seven steps."""
    torch.manual_seed(0)
    model = training.SRay(training.Config(height=48, width=64))
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimiser = torch.optim.Adam(model.parameters())
    optimiser.step()
    write_state(tmp_path / "run" / "checkpoint.pt", {
        "model": model.state_dict(), "optimiser": optimiser.state_dict(), "config": vars(model.config),
        "classes": model.classes._asdict(), "step": 7, "run": {"train": ["a"], "test": ["b"]}})
    return tmp_path / "run"


def test_exported_weights_are_the_run_in_half_precision_without_the_optimiser(run, tmp_path):
    given, made = run / "checkpoint.pt", tmp_path / "weights" / "small.pt"
    export(given, made)
    whole, small = (torch.load(path, weights_only=True) for path in (given, made))
    assert set(small) == {"model", "config", "classes", "step", "run"}
    assert all(small[key] == whole[key] for key in ("config", "classes", "step"))
    assert small["run"].items() >= whole["run"].items()
    model, _ = training.load_checkpoint(made)
    for name, x in model.state_dict().items():
        assert x.dtype == torch.float32 and torch.equal(x, whole["model"][name].half().float())
    assert made.stat().st_size < given.stat().st_size / 5


def test_the_mean_of_two_is_half_of_each(run, tmp_path):
    whole, other = torch.load(run / "checkpoint.pt", weights_only=True), tmp_path / "other.pt"
    write_state(other, {**whole, "model": {name: 3 * x for name, x in whole["model"].items()}, "step": 9})
    export(run / "checkpoint.pt", tmp_path / "mean.pt", other)
    mean = torch.load(tmp_path / "mean.pt", weights_only=True)
    assert mean["step"] == 7
    assert all(torch.equal(x, (2 * whole["model"][name]).half()) for name, x in mean["model"].items())
    names = ["x"] + whole["classes"]["names"][1:]
    write_state(other, {**whole, "classes": {**whole["classes"], "names": names}})
    with pytest.raises(DataError, match="one of the two"):
        export(run / "checkpoint.pt", other, other)
    with pytest.raises(DataError, match="have no mean"):
        export(run / "checkpoint.pt", tmp_path / "mean.pt", other)


def test_a_run_of_a_folder_is_evaluated_on_unseen_rooms_where_it_is_said(run, tmp_path):
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    elsewhere = {**state["run"], "data": "path", "root": "data/mixed"}
    write_state(run / "checkpoint.pt", {**state, "run": elsewhere})
    export(run / "checkpoint.pt", tmp_path / "small.pt", count=2)
    said = training.load_checkpoint(tmp_path / "small.pt")[1]["run"]
    assert (said["data"], said["root"], said["train"]) == ("rooms", "data/rooms", ["a"])
    assert said["test"] == ["room9000_00", "room9001_00"]


def test_what_is_no_checkpoint_is_not_exported(run, tmp_path):
    (run / "checkpoint.pt").write_bytes(b"no checkpoint")
    with pytest.raises(DataError, match="not a checkpoint"):
        export(run / "checkpoint.pt", tmp_path / "small.pt")
    assert not (tmp_path / "small.pt").exists()


def test_the_runs_own_checkpoint_is_not_written_over(run):
    before = (run / "checkpoint.pt").read_bytes()
    with pytest.raises(DataError, match="the run's own checkpoint"):
        export(run / "checkpoint.pt", run / "../run/checkpoint.pt")
    assert (run / "checkpoint.pt").read_bytes() == before


@pytest.mark.slow
def test_the_command_says_size_step_and_digest_and_the_file_cannot_be_resumed(run, tmp_path):
    done = subprocess.run([sys.executable, "-m", "tools.export", "run", "given/checkpoint.pt"], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    content = (tmp_path / "given" / "checkpoint.pt").read_bytes()
    assert done.stdout == (f"given/checkpoint.pt: {len(content) / 1e6:.2f} MB, step 7, "
                           f"sha256 {hashlib.sha256(content).hexdigest()}\n")
    done = subprocess.run([sys.executable, training.__file__, "--resume", "--out", "given"], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 2 and "--finetune" in done.stderr and len(done.stderr.splitlines()) == 1
