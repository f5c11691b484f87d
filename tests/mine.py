"""`pytest tests/test_04_cra.py --mine`: a stage's own tests on exercises/04_cra.py, what a student wrote. All
other stages, and whoever else imports this one, have the project's. Last comes a score for each stage.

Test: pytest tests/test_tool_exercise.py
"""
import importlib
import importlib.util
import re
import sys
from pathlib import Path

import pytest


def functions(reports):
    """Reports of tests -> (file, line, name) of their functions."""
    return {(file, line, test.split("[")[0]) for file, line, test in (report.location for report in reports)}


def students(file: Path):
    """A student's file as a module of another name than the project's."""
    name = f"mine_{file.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        sys.modules[name] = importlib.util.module_from_spec(spec)             # dataclasses look for it there
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


class Mine:
    """A plugin of pytest. Without a file named, the tests of all stages that the student has run."""

    def __init__(self, config):
        self.folder = config.invocation_params.dir / config.getoption("exercises")
        self.collected = set()
        self.stages = re.findall(r"test_(\w+)\.py", " ".join(config.args))
        self.stages = self.stages or [file.stem for file in self.folder.glob("0*.py")]
        for stage in self.stages or ["04_cra"]:
            if not (self.folder / f"{stage}.py").is_file():
                raise pytest.UsageError(f"{self.folder / stage}.py: no such file; write it with `python -m "
                                        f"tools.exercise {stage[:2]}`, or name its folder (--exercises)")
        self.project = importlib.import_module
        importlib.import_module = self.import_module
        config.add_cleanup(lambda: setattr(importlib, "import_module", self.project))
        config.option.durations, config.option.reportchars = None, ""         # the score says it

    def import_module(self, name, package=None):
        """What test_04_cra imports as 04_cra is the student's."""
        if name in self.stages and sys._getframe(1).f_globals["__name__"] == f"test_{name}":
            return students(self.folder / f"{name}.py")
        return self.project(name, package)

    def pytest_ignore_collect(self, collection_path):
        if collection_path.suffix == ".py" and collection_path.stem.removeprefix("test_") not in self.stages:
            return True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, call):
        """A body that is still to be written is one line, not a traceback."""
        report = yield
        if call.excinfo and call.excinfo.errisinstance(NotImplementedError):
            report.longrepr = f"NotImplementedError: {call.excinfo.value}"
        return report

    def pytest_collection_finish(self, session):
        self.collected = functions(session.items)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter):
        result = yield
        every = terminalreporter.stats
        stats = {key: [report for report in every.get(key, []) if hasattr(report, "location")]
                 for key in ("passed", "failed", "error", "skipped")}
        passed = functions(stats["passed"]) - functions(stats["failed"] + stats["error"])
        tests = self.collected | functions(sum(stats.values(), []))
        tests -= functions(stats["skipped"]) - functions(stats["passed"] + stats["failed"] + stats["error"])
        for stage in sorted(self.stages):
            terminalreporter.write_line(score(stage, tests, passed))
        return result


def score(stage: str, tests: set, passed: set) -> str:
    """Functions (file, line, name): all, and those that passed -> a stage's line, with the first to mend."""
    mine = [(line, name) for file, line, name in tests if Path(file).stem == f"test_{stage}"]
    if not mine:
        return f"{stage}: no test ran"
    if mine[0][0] is None:                                                    # the report of a collection
        return f"{stage}: cannot be imported"
    done = {name for file, _, name in passed if Path(file).stem == f"test_{stage}"}
    left = [name for _, name in sorted(mine) if name not in done]
    return f"{stage}: {len(mine) - len(left)} of {len(mine)}" + (f"; next: {left[0]}" if left else "")
