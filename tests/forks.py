"""Scripts started by tests: main() in a process forked off one that has imported PyTorch already, which saves
seconds a start. POSIX only."""
import multiprocessing
import os
import sys
import time
from importlib import import_module
from pathlib import Path

import torch
import torch._dynamo  # which the first Adam imports: a fork has it loaded

from support.files import run_script

HERE = Path(__file__).resolve().parent


class Fork:
    """A script's main() in a process of its own, one thread, its output in cwd/output.txt. environment: its
    variables; FILE_SIZE limits the files it may write."""
    context = None

    def __init__(self, arguments: list, cwd: Path, script: str = "07_train.py", **environment: str):
        if Fork.context is None:
            Fork.context = multiprocessing.get_context("forkserver")
            Fork.context.set_forkserver_preload(["forks", "07_train", "08_eval", "matplotlib.pyplot"])
            os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), str(HERE)])      # for the server
        arguments = [str(a) for a in arguments], cwd, script, environment
        self.process = Fork.context.Process(target=run_main, args=arguments)
        self.process.start()

    def wait(self, seconds: float | None = None) -> int | None:
        """The exit status; None if it still runs after so many seconds."""
        self.process.join(seconds)
        return self.process.exitcode

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.join()


def run_main(arguments: list[str], cwd: Path, script: str, environment: dict[str, str]) -> None:
    """What a Fork's process does."""
    torch.set_num_threads(1)
    if "FILE_SIZE" in environment:
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(environment["FILE_SIZE"]),) * 2)
    os.environ.update(environment)
    os.chdir(cwd)
    log = os.open("output.txt", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(log, 1), os.dup2(log, 2)
    sys.argv = [script, *arguments]
    run_script(import_module(script.removesuffix(".py")).main)


def start(*arguments, cwd: Path, script: str = "07_train.py", **environment) -> Fork:
    """Fork, its arguments as on a command line."""
    return Fork(list(arguments), cwd, script, **environment)


def said(cwd: Path) -> str:
    """What the processes started in cwd have written."""
    return (cwd / "output.txt").read_text().replace("\r", "\n") if (cwd / "output.txt").exists() else ""


def finished(*arguments, cwd: Path, script: str = "07_train.py") -> str:
    """Run a script to its end, which must be a good one -> what it wrote."""
    before = len(said(cwd))
    assert start(*arguments, cwd=cwd, script=script).wait(120) == 0, said(cwd)
    return said(cwd)[before:]


def wait_for(happened, process: Fork, seconds: float = 60) -> None:
    """Until happened() is true, while the process runs."""
    end = time.time() + seconds
    while not happened():
        assert process.wait(0.01) is None and time.time() < end
    assert process.wait(0) is None


def refused(process: Fork, cwd: Path, *words: str) -> None:
    """It ends with status 2, and its line of error, the last in this folder, has these words."""
    before = said(cwd).count("error: ")
    assert process.wait(60) == 2, said(cwd)
    errors = [line.partition("error: ")[2] for line in said(cwd).splitlines() if "error: " in line]
    assert len(errors) - before <= 1 and errors and "Traceback" not in said(cwd), said(cwd)
    assert all(word in errors[-1] for word in words), errors[-1]
