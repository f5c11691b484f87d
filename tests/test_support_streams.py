"""support/streams.py: a program does not end because nobody listens."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow
PROGRAM = """
import sys
from support.files import DataError, run_script
def main():
    for i in range(20000):
        print("line", i)
    print("late", file=sys.stderr)
    open("done", "w").write("yes")
    {last}
run_script(main)
"""


def start(folder, last="pass", program=PROGRAM, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("environment", {})}
    command = [sys.executable, "-c", program.format(last=last)]
    return subprocess.Popen(command, cwd=folder, env=environment, **options)


@pytest.mark.parametrize("last, status", [("pass", 0), ("raise DataError('bad')", 2)])
def test_a_reader_that_leaves_ends_nothing(tmp_path, last, status):
    process = start(tmp_path, last, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"line 0\n"
    process.stdout.close()                                                    # as `| head -1` does
    errors = process.stderr.read().decode()
    assert process.wait(60) == status and (tmp_path / "done").exists()
    assert errors == "late\n" + "error: bad\n" * (status == 2)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_stream_that_is_closed_is_none_that_is_written_into_a_file(tmp_path, number):
    process = start(tmp_path, "pass", preexec_fn=lambda: os.close(number))
    assert process.wait(60) == 0 and (tmp_path / "done").read_text() == "yes"


def test_a_full_disk_behind_a_stream_is_still_an_error(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    with open("/dev/full", "w") as full:
        process = start(tmp_path, stdout=full, stderr=subprocess.PIPE)
        assert b"No space left" in process.stderr.read() and process.wait(60) != 0


def test_a_name_that_the_terminal_cannot_write_is_escaped(tmp_path):
    program = """
from support.files import DataError, run_script
def main():
    print('caf\\u00e9 \\udce9')
    raise DataError('caf\\u00e9\\nerror: \\udce9 \\x1b[2J')
run_script(main)"""
    process = start(tmp_path, program=program, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                    environment={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    out, errors = process.communicate(timeout=60)
    assert (out, process.returncode) == (b"caf\\xe9 \\udce9\n", 2)
    assert errors == b"error: caf\\xe9\\nerror: \\udce9 \\x1b[2J\n"
