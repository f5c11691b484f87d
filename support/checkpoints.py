"""A checkpoint is a file that somebody sent: what it says is checked field by field before it is used.

    {"model": {name: tensor}, "config": {...}, "classes": {"names", "colours"}, "step": int, "run": {...},
     "optimiser": {"state": {index: {"step", "exp_avg", "exp_avg_sq"}}, "param_groups": [...]}}

"run" says where a training had its data: "data" (the kind), "root", "train" and "test" (names of scenes) ...
These are names to look for. Nothing is ever written where they point.

Test: pytest tests/test_support_checkpoints.py
"""
import io
import math
import os
import zipfile
from copy import copy
from pathlib import Path

import torch

from support.files import DataError, open_file, reason, write_atomically
from support.labels import checked_classes
from support.settings import LARGEST

LIMIT = 2 ** 31                                # bytes of a checkpoint; ours have some 30 million
KINDS = "rooms", "scannet", "replica", "path"  # of data, as support/datasets.py names them
MODEL = "checkpoint of this model"
NAME = 4096                                    # characters of a name or a path, at most


def write_state(path: Path, state: dict) -> None:
    """Atomically write a checkpoint to the disk, not to its cache: after a power cut, too, there is the old
    one or the new one. DataError for weights that are no numbers: it would not be read again."""
    for name, tensor in state["model"].items():
        if not torch.isfinite(tensor).all():
            raise DataError(f"{path}: not written, for at step {state['step']} {name} holds NaN or infinity; "
                            "go on from an earlier checkpoint with a lower --lr")
    content = io.BytesIO()
    torch.save(state, content)

    def write(file) -> None:
        """All of it, down to the disk."""
        file.write(content.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    write_atomically(path, write)


def load_state(path: Path, what: str = MODEL) -> dict:
    """The dictionary in a checkpoint of any model (`what`), tensors on the CPU, nothing executed. It has
    "model", all finite, "config" and "step". DataError if it is none."""
    if not os.path.lexists(path):
        raise DataError(f"{path}: no such checkpoint; train one with 07_train.py")
    with open_file(path, LIMIT) as file:
        try:
            check_unpacked_size(file)
            state = torch.load(file, map_location="cpu", weights_only=True)
            check_parts(state)
            return state
        except Exception as error:             # a damaged zip, a foreign pickle, missing keys
            raise not_a_checkpoint(path, error, what) from None


def read_state(path: Path) -> dict:
    """load_state of a checkpoint of S-Ray: with a "run", and all else that it says checked too."""
    state = load_state(path)
    try:
        state["run"] = checked_run(state["run"])
        if "classes" in state:
            state["classes"] = checked_classes(state["classes"])._asdict()
        if "optimiser" in state:
            check_optimiser(state["optimiser"])
    except Exception as error:
        raise not_a_checkpoint(path, error) from None
    return state


def not_a_checkpoint(path: Path, error: Exception, what: str = MODEL) -> DataError:
    """What to tell somebody whose file is none of our checkpoints."""
    words = f"it has no {error}" if isinstance(error, KeyError) else reason(error)
    return DataError(f"{path}: not a {what} ({words}); train again or name another file")


# ------------------------------------------------------------------------------------------------- its fields

def check_unpacked_size(file) -> None:
    """ValueError for a zip that unpacks to more than it is. (Ours are not compressed.)"""
    with zipfile.ZipFile(file) as archive:
        unpacked = sum(info.file_size for info in archive.infolist())
    if unpacked > os.fstat(file.fileno()).st_size:
        raise ValueError("compressed")
    file.seek(0)


def check_parts(state) -> None:
    """ValueError unless this has weights, settings and a step; weights that are not finite are named."""
    if not isinstance(state, dict) or not all(isinstance(state[key], dict) for key in ("model", "config")):
        raise ValueError("unusable model or config")
    if type(state["step"]) is not int or not 0 <= state["step"] <= LARGEST:
        raise ValueError("unusable step")
    if len(state["model"]) > 10_000:
        raise ValueError("too many weights")
    for name, tensor in state["model"].items():
        check_tensor(name, tensor)


def check_tensor(name, tensor) -> None:
    """ValueError, with its name, unless this is a plain tensor that holds all it claims, of finite
    numbers."""
    plain = type(name) is str and isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided \
        and tensor.device.type == "cpu" and tensor.is_floating_point() and not tensor.is_quantized
    if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"{str(name)[:80]!r} is not a tensor that can be read")
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} holds NaN or infinity")


def is_text(value) -> bool:
    """A name or a path, as a checkpoint may hold it."""
    return type(value) is str and 0 < len(value) <= NAME and "\0" not in value


def is_number(value) -> bool:
    """A finite number that is not negative."""
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def is_names(value) -> bool:
    """A list of names. (Whether they are those of scenes is checked where they are looked for.)"""
    return type(value) is list and len(value) <= 100_000 and all(map(is_text, value))


def is_means(value) -> bool:
    """The running means of the losses."""
    return type(value) is dict and all(is_text(name) and is_number(x) for name, x in value.items())


def is_count(value) -> bool:
    """A whole number from 0 on."""
    return type(value) is int and value >= 0


RUN = {   # what a run says: how it is checked, and what holds where it does not say it
    "data": (lambda value: value in KINDS, "path"), "root": (is_text, "."), "train": (is_names, []),
    "test": (is_names, []), "seconds": (is_number, 0.0),
    "command": (lambda value: type(value) is str and len(value) < 100_000, ""),
    "finetuned": (lambda value: type(value) is bool, False),
    "labels": (lambda value: value is None or is_text(value), None),
    "validation": (is_count, 0), "crop": (is_count, 0), "mean": (is_means, {})}


def checked_run(run) -> dict:
    """What 07 writes of a run, all of it. ValueError, with the name of what is wrong, for anything else."""
    if type(run) is not dict:
        raise ValueError("unusable run")
    full = {name: run.get(name, copy(absent)) for name, (_, absent) in RUN.items()}
    for name, (usable, _) in RUN.items():
        if not usable(full[name]):
            raise ValueError(f"unusable '{name}' in its run")
    return full


def check_optimiser(optimiser) -> None:
    """ValueError unless this is an Adam's: two moments and a step for each index."""
    for index, moments in optimiser["state"].items():
        for name in ("step", "exp_avg", "exp_avg_sq"):
            check_tensor(f"the optimiser's {name}", torch.as_tensor(moments[name]))
        if type(index) is not int:
            raise ValueError("unusable optimiser")


def resume_optimiser(optimiser: torch.optim.Optimizer, state: dict, path) -> None:
    """Give a new Adam the moments of a checkpoint; its settings are this program's. DataError if they are of
    other parameters."""
    own, saved = optimiser.state_dict(), state["optimiser"]["state"]
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    try:
        for index, moments in saved.items():
            shape = parameters[index].shape
            if moments["exp_avg"].shape != shape or moments["exp_avg_sq"].shape != shape:
                raise ValueError("its optimiser is of another model")
        optimiser.load_state_dict({"state": saved, "param_groups": own["param_groups"]})
    except Exception as error:                 # other indices
        raise not_a_checkpoint(path, error) from None
