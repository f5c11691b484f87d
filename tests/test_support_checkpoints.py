"""support/checkpoints.py: what a checkpoint says is checked field by field; nothing it says is run."""
import zipfile
from importlib import import_module

import pytest
import torch

from support import checkpoints
from support.files import DataError

training = import_module("07_train")
RUN = {"data": "path", "root": "scans", "train": ["a"], "test": ["b"], "seconds": 1.5, "command": "python x",
       "finetuned": False, "labels": None, "validation": 0, "crop": 0, "mean": {"semantic": 0.5}}


def state_of(model: torch.nn.Module, **changes) -> dict:
    """A checkpoint after one step of Adam."""
    optimiser = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimiser.step()
    return {"model": model.state_dict(),
            "config": {}, "classes": {"names": ["x", "y"], "colours": [[0, 1, 2]] * 2},
            "step": 1, "optimiser": optimiser.state_dict(), "run": RUN, **changes}


@pytest.fixture
def state():
    return state_of(torch.nn.Linear(3, 2))


def refused(path, state, words):
    torch.save(state, path)
    with pytest.raises(DataError, match=f"^{path}: not a checkpoint of this model .*{words}") as error:
        checkpoints.read_state(path)
    assert "\n" not in str(error.value)


def test_a_checkpoint_comes_back_as_it_was_written(tmp_path, state):
    checkpoints.write_state(tmp_path / "a.pt", state)
    found = checkpoints.read_state(tmp_path / "a.pt")
    assert found["run"] == RUN and found["step"] == 1 and found["classes"] == state["classes"]
    assert all(torch.equal(found["model"][name], state["model"][name]) for name in state["model"])


def test_a_run_that_says_nothing_is_as_one_that_knows_no_scene(tmp_path, state):
    checkpoints.write_state(tmp_path / "a.pt", {**state, "run": {}})
    run = checkpoints.read_state(tmp_path / "a.pt")["run"]
    assert run.keys() == RUN.keys() and run["train"] == run["test"] == [] and run["seconds"] == 0


@pytest.mark.parametrize("name, value", [
    ("data", "film"), ("data", ["rooms"]), ("root", 5), ("root", ""), ("root", "a\0b"), ("root", "x" * 5000),
    ("train",
     "abc"), ("train", [1]), ("train", {"a": 1}), ("test", None), ("test", [["a"]]), ("seconds", "1"),
    ("seconds", float("inf")), ("seconds", float("nan")), ("seconds", True), ("command", None),
    ("finetuned", 1), ("labels", 3), ("validation", -1), ("validation", 1.0), ("crop", -1),
    ("mean", [1]), ("mean", {"loss": float("nan")})])
def test_what_a_run_says_is_checked_and_named(tmp_path, state, name, value):
    refused(tmp_path / "a.pt", {**state, "run": {**RUN, name: value}}, f"unusable '{name}' in its run")


@pytest.mark.parametrize("value", [
    {"names": ["x", "y"], "colours": [[0, 0, 0]]}, {"names": [1, 2], "colours": [[0, 0, 0]] * 2}, ["x"], None,
    {"names": [], "colours": []}, {"names": ["x", "x"], "colours": [[0, 0, 0]] * 2}, {"names": ["x", "y"]},
    {"names": ["x"] * 200, "colours": [[0, 0, 0]] * 200}, {"names": ["a\nb"], "colours": [[0, 0, 0]]},
    {"names": ["x"], "colours": [[0, 0, 256]]}, {"names": ["x"], "colours": [[0, 0]]},
    {"names": ["x"], "colours": [[0.5, 0, 0]]}, {"names": ["x" * 200], "colours": [[0, 0, 0]]},
    {"names": "xy", "colours": [[0, 0, 0]] * 2}])
def test_a_label_set_is_checked(tmp_path, state, value):
    refused(tmp_path / "a.pt", {**state, "classes": value}, "")


@pytest.mark.parametrize("change", [{"step": "3"}, {"step": -1}, {"step": True}, {"step": 10 ** 30},
                                    {"run": []}, {"config": None}, {"model": 1}, {"model": {"w": [1.0]}},
                                    {"optimiser": 5},
                                    {"model": {5: torch.ones(1)}},
                                    {"optimiser": {"state": {0: {"step": 1}}}}])
def test_a_part_of_another_kind_is_refused(tmp_path, state, change):
    refused(tmp_path / "a.pt", {**state, **change}, "")


@pytest.mark.parametrize("name", ["model", "config", "step"])
def test_a_part_that_is_missing_is_named(tmp_path, state, name):
    refused(tmp_path / "a.pt", {key: value for key, value in state.items() if key != name}, name)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_and_moments_that_are_no_numbers_are_refused_by_name(tmp_path, state, value):
    state["model"]["bias"][1] = value
    with pytest.raises(DataError, match="bias holds NaN or infinity"):
        checkpoints.write_state(tmp_path / "b.pt", state)                     # and never written
    assert not (tmp_path / "b.pt").exists()
    refused(tmp_path / "a.pt", state, "bias holds NaN or infinity")
    state["model"]["bias"][1] = 0
    state["optimiser"]["state"][1]["exp_avg"][0] = value
    refused(tmp_path / "a.pt", state, "exp_avg holds NaN")


def test_a_tensor_that_claims_more_than_it_holds_is_refused(tmp_path, state):
    state["model"]["bias"] = torch.zeros(1).expand(10 ** 12)                  # a kilobyte on disk
    refused(tmp_path / "a.pt", state, "'bias' is not a tensor")
    for other in (torch.eye(3).to_sparse(), torch.ones(2).to(torch.complex64), torch.ones(2).to(torch.int8)):
        refused(tmp_path / "a.pt", {**state, "model": {"bias": other}}, "'bias' is not a tensor")


def test_a_checkpoint_that_unpacks_to_more_than_it_is_is_refused(tmp_path, state):
    torch.save({**state, "model": {"w": torch.zeros(10 ** 6)}}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive, \
            zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for info in archive.infolist():
            packed.writestr(info.filename, archive.read(info))
    with pytest.raises(DataError, match=r"b.pt: not a checkpoint .*compressed"):
        checkpoints.read_state(tmp_path / "b.pt")


def test_adam_goes_on_with_a_checkpoints_moments_and_its_own_settings():
    torch.manual_seed(0)
    first = torch.nn.Linear(3, 2)
    state = state_of(first)
    state["optimiser"]["param_groups"][0] |= {"weight_decay": 1e9, "maximize": True, "betas": (0, 0)}
    second = torch.nn.Linear(3, 2)
    optimiser = torch.optim.Adam(second.parameters(), lr=0.5)
    checkpoints.resume_optimiser(optimiser, state, "run")
    group, saved = optimiser.param_groups[0], optimiser.state_dict()["state"]
    own = {name: group[name] for name in ("lr", "weight_decay", "maximize", "betas")}
    assert own == {"lr": 0.5, "weight_decay": 0, "maximize": False, "betas": (0.9, 0.999)}
    given = state["optimiser"]["state"][0]
    assert torch.equal(saved[0]["exp_avg"], given["exp_avg"]) and saved[0]["step"] == 1


@pytest.mark.parametrize("sizes", [(3, 4), (2, 2)])
def test_moments_of_other_parameters_are_refused(sizes):
    optimiser = torch.optim.Adam(torch.nn.Linear(*sizes).parameters())
    with pytest.raises(DataError, match="run: not a checkpoint .*another model"):
        checkpoints.resume_optimiser(optimiser, state_of(torch.nn.Linear(3, 2)), "run")


@pytest.mark.parametrize("name, value", [
    ("far", float("inf")), ("near", float("nan")), ("height",
                                                    "48"), ("height", 48.0), ("rays", True),
    ("rays", -5), ("cra", 5), ("cra",
                 "other"), ("tau", None), ("coarse", 10 ** 9), ("test_rooms", 10 ** 9),
    ("seed", 10 ** 20)])
def test_settings_are_checked_and_named(tmp_path, name, value):
    state = state_of(torch.nn.Linear(3, 2), config={name: value})
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(DataError, match=f"a.pt: not a checkpoint .*{name.replace('_', '.')}"):
        training.load_checkpoint(tmp_path / "a.pt")
