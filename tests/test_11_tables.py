"""11_tables.py: rows are the paper's, trainings are run once and shared, an interrupted table goes on, seeds give a spread.

The recipes themselves run through the real command at smoke size in .ci/run; here the commands are recorded, and a small stand-in
writes what they would have written."""
import json
import subprocess
import sys
from argparse import Namespace
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest
import torch

tables = import_module("11_tables")
training = import_module("07_train")
SCRIPT = Path(tables.__file__)


class Recorder(tables.Bench):
    """A Bench whose scripts write their files at once: metrics depend on the flags alone, so rows can be told apart."""

    def __init__(self, folder, seeds=1, size="smoke"):
        super().__init__(Namespace(size=size, seeds=seeds, data=None, runs=str(folder), out=str(folder)))
        self.ran = []

    def run(self, script, *flags):
        flags = [str(f) for f in flags]
        self.ran.append((script, flags))
        out = Path(flags[flags.index("--out") + 1])
        out.mkdir(parents=True, exist_ok=True)
        if script == "07_train.py":
            given = {f.name: flags[flags.index(flag) + 1] for f in fields(training.Config)
                     if (flag := f"--{f.name.replace('_', '-')}") in flags}
            kinds = {f.name: f.type for f in fields(training.Config)}
            config = training.Config(**{name: kinds[name](value) for name, value in given.items()})
            model = training.SRay(config)
            steps = range(1, config.steps + 1) if config.keep_every else ()
            for path in (out / "checkpoint.pt", *(out / f"checkpoint_{i}.pt" for i in steps)):
                training.save_checkpoint(path, model, torch.optim.Adam(model.parameters()), config.steps, {"train": list("abcde"), "test": ["u"], "root": "rooms"})
        elif script == "09_semantic_nerf.py":
            at = [int(x) for x in flags[flags.index("--evaluate-at") + 1].split(",")] + [int(flags[flags.index("--steps") + 1])]
            (out / "metrics.json").write_text(json.dumps({"history": [
                dict(miou=n, avg_acc=n, total_acc=n, psnr=n, train_seconds=n, steps=n) for n in at]}))
        else:
            model, _ = training.load_checkpoint(flags[flags.index("--checkpoint") + 1])
            c = model.config
            value = 50 + 10 * c.tau + c.seed + len(c.cra)
            (out / "metrics.json").write_text(json.dumps(dict.fromkeys(
                ("miou", "total_acc", "avg_acc", "psnr", "ssim", "depth_abs_rel", "train_seconds"), value)))


def test_each_table_has_the_papers_rows_and_as_many_cells_as_columns(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "tensor_cost", lambda bench, mode, kind: {"gflop": 1.0, "gflop_both": 3.0, "peak": 7.0})
    first = {1: ["1/0", "0.75/0.25", "0.5/0.5", "0.25/0.75", "0/1"], 2: list(tables.MODES), 3: list(tables.MODES),
             4: ["1", "0.8", "0.7", "0.5", "0.2"], 7: ["1", "4", "8", "12", "16"],
             12: ["1 (10k)", "5 (50k)", "10 (100k)", "20 (200k)", "26 (260k)", "30 (300k)"],
             13: ["0 (0)", *(f"{n} ({k})" for n, k in ((3, "2k"), (6, "4k"), (9, "6k"), (12, "8k"), (45, "30k")) for _ in range(2)),
                  "150 (100k)"]}
    assert set(first) == set(tables.TABLES)
    bench = Recorder(tmp_path)
    for number, names in first.items():
        head, rows = tables.TABLES[number](bench)
        assert [row[0] for row in rows] == names and all(len(row) == len(head) for row in rows), number
        path = tables.write_table(number, bench, head, rows, tmp_path / "results")
        text, found = path.read_text(), json.loads(path.with_suffix(".json").read_text())
        assert "rooms" in text and "compare the order of rows" in text and found["rows"] == rows and found["commands"]
    trainings = [flags for script, flags in bench.ran if script == "07_train.py"]
    assert len(trainings) == 1 + 4 + 4 + 4 + 1 + 1                            # the base and Table 2's rows are shared


def test_rows_differ_in_what_the_row_says_and_in_nothing_else(tmp_path):
    bench = Recorder(tmp_path)
    tables.table_4(bench)
    without = lambda flags: [x for i, x in enumerate(flags) if "--tau" not in (x, flags[i - 1]) and "--out" not in (x, flags[i - 1])]
    trainings = [flags for script, flags in bench.ran if script == "07_train.py"]
    assert len({tuple(without(flags)) for flags in trainings}) == 1
    assert sorted(float(f[f.index("--tau") + 1]) for f in trainings if "--tau" in f) == [0.2, 0.5, 0.8, 1.0]


def test_a_finished_table_runs_nothing_again_and_an_unfinished_training_is_resumed(tmp_path):
    tables.table_7(Recorder(tmp_path))
    again = Recorder(tmp_path)
    rows = tables.table_7(again)[1]
    assert again.ran == [] and rows[0][1] == "61.00"
    checkpoint = next(tmp_path.glob("*/checkpoint.pt"))
    state = torch.load(checkpoint, weights_only=True)
    torch.save({**state, "step": 3}, checkpoint)
    third = Recorder(tmp_path)
    third.run = lambda script, *flags: third.ran.append((script, flags))
    third.trained()
    assert [(script, "--resume" in flags) for script, flags in third.ran] == [("07_train.py", True)]


def test_seeds_give_a_mean_a_spread_and_a_paired_difference(tmp_path):
    bench = Recorder(tmp_path, seeds=3)
    rows = {row[0]: row for row in tables.table_4(bench)[1]}
    assert rows["0.7"][1] == "62.00 ± 1.00" and rows["1"][1] == "65.00 ± 1.00"          # 57 + 4 + 1, and 3 more; seeds 0, 1, 2
    assert rows["1"][4] == "+3.00 ± 0.00"
    near = [{"miou": x} for x in (1.0, 2.0, 3.0)], [{"miou": x} for x in (1.5, 1.6, 3.1)]
    assert "indistinguishable" in tables.paired(*near)


def test_a_failing_command_ends_the_table_with_one_line(tmp_path):
    command = [sys.executable, str(SCRIPT), "7", "--preset", "smoke", "--data", str(tmp_path / "nowhere")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "07_train.py --scene scannet" in done.stderr and "ended with status 2" in done.stderr
    assert not (tmp_path / "results").exists()
