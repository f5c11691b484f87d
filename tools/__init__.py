"""The top floor of programs: to use, not to read. `python -m tools.NAME --help`, from the repository's
root."""
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent


def python(name: str, *flags) -> tuple[list[str], dict]:
    """The command line of a numbered script ("07_train.py") or a tool ("tools.export"), and its environment:
    it runs from any folder."""
    script = [str(HERE / name)] if name.endswith(".py") else ["-m", name]
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    return [sys.executable, *script, *map(str, flags)], {**os.environ, "PYTHONPATH": path}
