"""tools/speedrun.py: what it counts, from the real command at its smallest."""
import json
import subprocess
import sys
import time

import pytest

from support.files import DataError
from tools import python, speedrun


def test_processor_time_is_that_of_the_process_it_starts(tmp_path, monkeypatch):
    script = tmp_path / "07_train.py"
    monkeypatch.setattr(speedrun, "python", lambda name, *flags: ([sys.executable, str(script)], None))
    script.write_text("import time\nend = time.process_time() + 0.6\nwhile time.process_time() < end: pass")
    _, busy = speedrun.processor_seconds("07_train.py")
    script.write_text("import time\ntime.sleep(0.6)")
    start = time.process_time()
    seconds, idle = speedrun.processor_seconds("07_train.py")
    assert 0.6 <= busy < 1.6 and idle < busy - 0.4 and seconds >= 0.6 and time.process_time() - start < 0.5
    script.write_text("raise SystemExit(3)")
    with pytest.raises(DataError, match="status 3"):
        speedrun.processor_seconds("07_train.py")


def test_a_line_has_minutes_units_and_quality():
    found = {"seed": 1, "minutes": 12.34, "processor_seconds": 700.4, "U_seconds": 0.02, "U": 35020.0,
             "miou": 65.254, "total_acc": 86.0, "psnr": 27.0}
    assert speedrun.line("seed 1", found) == (
        "seed 1: 12.3 minutes, 700 processor seconds, 35,020 U of 0.0200 s; "
        "65.25 mIoU, 86.00 total accuracy, 27.00 dB")


def run(*flags, folder):
    command, env = python("tools.speedrun", *flags)
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
def test_the_command_counts_rooms_and_training_and_not_evaluation(tmp_path):
    smoke = "--seeds", 1, "--json", "found.json", "--", "--preset", "smoke", "--steps", 2
    done = run(*smoke, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert [one["seed"] for one in found["runs"]] == [0] and "mean of 1:" in done.stdout
    for one in found["runs"]:
        run_folder = tmp_path / f"runs/speedrun/seed{one['seed']}"
        metrics = json.loads((run_folder / "eval/metrics.json").read_text())
        assert one["miou"] == metrics["miou"] and one["U"] == one["processor_seconds"] / one["U_seconds"]
        assert (run_folder / "rooms/room9000_00/color").is_dir() and one["processor_seconds"] > 1
    assert found["mean"] | {"seed": 0} == found["runs"][0]
    assert "error: --seeds must be at least 1" in run("--seeds", 0, folder=tmp_path).stderr
    again = run(*smoke, folder=tmp_path)
    assert again.returncode == 2 and "seed0: there already" in again.stderr
