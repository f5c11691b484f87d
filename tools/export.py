"""A run's weights, small enough to give away: half precision, no optimiser, a sixth of the size.

    python -m tools.export runs/rooms-laptop weights/mine.pt
    python -m tools.export runs/second weights/mine.pt --mean weights/first.pt

--mean writes the mean of both weights, with the settings and the record of the first. Of trainings that began
from one another it may label scenes of another hand better than either (results/choices.md; the idea is
WiSE-FT's, Wortsman et al., CVPR 2022).
08, and 07's --finetune, --init and --encoder, read the file like any checkpoint (in float32). It cannot be
resumed.
Test: pytest tests/test_tool_export.py
"""
import argparse
import hashlib
from importlib import import_module
from pathlib import Path

from support.files import DataError, run_script
from support.rooms import test_seeds
from support.runs import write_state

training = import_module("07_train")           # load_checkpoint


def export(checkpoint: Path, file: Path, other: Path | None = None, count: int = 0) -> dict:
    """Write the weights of a checkpoint, or its mean with another's, to a file -> what is in it. count: to be
    evaluated on so many rooms. DataError if one is no checkpoint, or both are not of one network."""
    if file.resolve() == checkpoint.resolve():
        raise DataError(f"{file}: the run's own checkpoint, without which it cannot go on; name another file")
    if other and file.resolve() == Path(other).resolve():
        raise DataError(f"{file}: one of the two weights; name another file for their mean")
    _, state = training.load_checkpoint(checkpoint)
    small = {key: value for key, value in state.items() if key != "optimiser"}
    found = state["model"]
    if other:
        theirs = training.load_checkpoint(other)[1]
        shapes = ({name: x.shape for name, x in model.items()} for model in (found, theirs["model"]))
        if theirs["classes"] != state["classes"] or next(shapes) != next(shapes):
            raise DataError(f"{other}: other classes or another network than {checkpoint}: they have no mean")
        found = {name: (x.float() + theirs["model"][name].float()) / 2 for name, x in found.items()}
    small["model"] = {name: x.half() for name, x in found.items()}
    if count:
        names = [f"room{seed:04d}_00" for seed in test_seeds(0, count)]
        small["run"] = state["run"] | {"data": "rooms", "root": "data/rooms", "test": names}
    write_state(file, small)
    return small


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", help="folder of the run, with its checkpoint.pt, or a checkpoint")
    parser.add_argument("file", help="where to write the weights")
    parser.add_argument("--mean", metavar="FILE", help="weights of this network: write the mean of both")
    parser.add_argument("--rooms", type=int, default=0, metavar="N",
                        help="08 evaluates them on N unseen rooms [on what the run kept]")
    args = parser.parse_args()
    if args.rooms < 0 or args.rooms > 1000:
        raise DataError(f"--rooms {args.rooms}: give 0 to 1000")
    run = Path(args.run)
    state = export(run if run.is_file() else run / "checkpoint.pt", Path(args.file), args.mean,
                   args.rooms)
    content = Path(args.file).read_bytes()
    print(f"{args.file}: {len(content) / 1e6:.2f} MB, step {state['step']}, "
          f"sha256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    run_script(main)
