"""A run's weights, small enough to give away: half precision, no optimiser, a sixth of the size.

    python -m tools.export runs/rooms-laptop weights/mine.pt

08, and 07's --finetune, --init and --encoder, read the file like any checkpoint (in float32). It cannot be
resumed.
Test: pytest tests/test_tool_export.py
"""
import argparse
import hashlib
from importlib import import_module
from pathlib import Path

from support.files import DataError, run_script
from support.runs import write_state

training = import_module("07_train")           # load_checkpoint


def export(checkpoint: Path, file: Path) -> dict:
    """Write the weights of a checkpoint to a file -> what is in it. DataError if it is no checkpoint."""
    if file.resolve() == checkpoint.resolve():
        raise DataError(f"{file}: the run's own checkpoint, without which it cannot go on; name another file")
    _, state = training.load_checkpoint(checkpoint)
    small = {key: value for key, value in state.items() if key != "optimiser"}
    small["model"] = {name: x.half() for name, x in state["model"].items()}
    write_state(file, small)
    return small


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", help="folder of the run, with its checkpoint.pt")
    parser.add_argument("file", help="where to write the weights")
    args = parser.parse_args()
    state = export(Path(args.run) / "checkpoint.pt", Path(args.file))
    content = Path(args.file).read_bytes()
    print(f"{args.file}: {len(content) / 1e6:.2f} MB, step {state['step']}, "
          f"sha256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    run_script(main)
