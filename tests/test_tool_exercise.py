"""tools/exercise.py, tests/mine.py: the marked bodies go and nothing else; a student's file is tested, and no
other stage reads it. (tests/exercises.py tries every stage, with wrong solutions: make test-all.)"""
import ast
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from importlib import import_module

import pytest
from conftest import REPO
from mine import score

from support.files import DataError
from tools import exercise

SMALL = '''"""Table 9: a stage."""
import math


def root(x: float) -> float:  # exercise: L4
    """x -> its root."""
    # root = exp(log(x) / 2)
    half = math.log(x) / 2  # a logarithm
    # no loop
    return math.exp(half)


class Net:
    def forward(self,
                x):  # exercise
        """Table 8's Input 2, of which L20 knows nothing."""
        return x


def plain(x):
    """Not an exercise."""
    return x  # (R,)
'''


def parts(text: str) -> tuple[ast.Module, dict[str, list[ast.stmt]]]:
    """A file's tree without the marked bodies, and these: name -> statements behind the docstring."""
    tree, taken = ast.parse(text), {}
    marked = {function.name for function in exercise.exercises(text)}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in marked:
            taken[node.name], node.body = node.body[1:], node.body[:1]
    return tree, taken


@pytest.mark.parametrize("hints", [False, True])
@pytest.mark.parametrize("path", exercise.stages().values(), ids=lambda path: path.stem)
def test_the_marked_bodies_go_and_nothing_else(path, hints):
    text = path.read_text()
    student = exercise.without_bodies(text, f"tests/test_{path.name}", hints)
    tree, bodies = parts(student)
    assert ast.dump(tree) == ast.dump(parts(text)[0])
    for name, (line,) in bodies.items():
        assert isinstance(line, ast.Raise) and line.exc.func.id == "NotImplementedError"
        said = line.exc.args[0].value
        assert said.startswith(f"{name}: ") and said.endswith(f"; pytest tests/test_{path.name} --mine")
    lines = text.split("\n")
    for function in reversed(exercise.exercises(text)):
        lines[function.first - 1:function.last] = []
    kept = iter(student.split("\n"))
    assert all(line in kept for line in lines)                                # in this order, comments too


def test_stages_with_an_idea_to_write_have_exercises():
    assert list(exercise.stages()) == ["01", "03", "04", "05", "06", "07", "08", "09"]
    marked = {f"{number} {function.name}" for number, path in exercise.stages().items()
              for function in exercise.exercises(path.read_text())}
    assert {"01 project", "03 lookup", "04 cross_view", "05 project_onto_C", "06 pool_views", "07 losses",
            "08 ssim", "09 positional_encoding"} < marked and len(marked) == 23


def test_a_body_becomes_one_line_that_names_the_row_and_the_test_and_equations_stay():
    student = exercise.without_bodies(SMALL, "tests/test_x.py")
    assert '''
    """x -> its root."""
    # root = exp(log(x) / 2)
    raise NotImplementedError("root: Table 9, L4; pytest tests/test_x.py --mine")


class''' in student
    assert 'raise NotImplementedError("forward: Table 8\'s Input 2; pytest' in student


def test_hints_keep_the_comments_each_with_the_name_that_its_line_sets():
    student = exercise.without_bodies(SMALL, "tests/test_x.py", hints=True)
    assert "    # root = exp(log(x) / 2)\n    # half: a logarithm\n    # no loop\n    raise" in student


@pytest.mark.parametrize("mark, docstring, source", [
    ("L4", "", "Table 9, L4"), ("eq. 3", "Table 8, L2.", "eq. 3"), ("", "See Table 8, L2.", "Table 8, L2"),
    ("", "(NeRF, section 5.2): x.", "NeRF, section 5.2"), ("", "Words.", "its docstring")])
def test_what_to_read_is_the_markers_or_the_docstrings(mark, docstring, source):
    assert exercise.source_of(mark, docstring, "Table 9") == source


def test_an_exercise_that_is_there_is_never_overwritten(tmp_path):
    file, = exercise.write(["04"], tmp_path)
    file.write_text("mine")
    for numbers in (["04"], ["03", "04"]):
        with pytest.raises(DataError, match="04_cra.py: there already"):
            exercise.write(numbers, tmp_path)
    assert file.read_text() == "mine" and list(tmp_path.iterdir()) == [file]


def test_the_score_counts_functions_and_names_the_first_that_fails():
    tests = {("tests/test_04_cra.py", line, f"test_{name}") for line, name in enumerate("abc")}
    passed = {x for x in tests if x[2] != "test_b"}
    assert score("04_cra", tests, passed) == "04_cra: 2 of 3; next: test_b"
    assert score("04_cra", tests, tests) == "04_cra: 3 of 3"
    assert score("05_weighting", tests, tests) == "05_weighting: no test ran"
    broken = {("tests/test_03_reprojection.py", None, "tests/test_03_reprojection.py")}
    assert score("03_reprojection", broken, set()) == "03_reprojection: cannot be imported"


def test_each_wrong_solution_is_in_a_body_and_its_test_is_in_the_stages_file():
    wrong = import_module("exercises").WRONG
    assert wrong.keys() == exercise.stages().keys() and all(len(cases) >= 3 for cases in wrong.values())
    for number, path in exercise.stages().items():
        text, tests = path.read_text(), (REPO / f"tests/test_{path.name}").read_text()
        bodies = [(function.first, function.last) for function in exercise.exercises(text)]
        for right, _, test in wrong[number].values():
            assert text.count(right) == 1 and f"def {test}(" in tests
            line = text[:text.index(right)].count("\n") + 1
            assert any(first <= line <= last for first, last in bodies), right


def run(*arguments, cwd) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", *map(str, arguments)], cwd=cwd, capture_output=True,
                          text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_the_command_writes_an_exercise_once_and_refuses_in_one_line(tmp_path):
    done = run("tools.exercise", "04", cwd=tmp_path)
    assert done.stdout == "exercises/04_cra.py: 5 to write; pytest tests/test_04_cra.py --mine\n"
    for stage, words in (("04", "never overwritten"), ("02", "no stage with an exercise; there are 01, 03")):
        done = run("tools.exercise", stage, cwd=tmp_path)
        assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1
    done = run("pytest", REPO / "tests/test_03_reprojection.py", "--mine", cwd=tmp_path)
    assert done.returncode == 4 and "python -m tools.exercise 03" in done.stderr + done.stdout


@pytest.mark.slow
def test_mine_tests_the_students_stage_with_all_others_the_projects(tmp_path):
    """Here 03 lacks one body, and the student's 01 and 02, which it would import, cannot be imported."""
    folder, text = tmp_path / "exercises", (REPO / "03_reprojection.py").read_text()
    text = text.replace("-> Tensor:  # exercise\n", "-> Tensor:\n")           # direction_differences stays
    folder.mkdir()
    (folder / "03_reprojection.py").write_text(exercise.without_bodies(text, "tests/test_03_reprojection.py"))
    for name in ("01_data.py", "02_encoder.py"):
        (folder / name).write_text("raise RuntimeError")
    once = "pytest", "-p", "no:cacheprovider", "--mine"
    line = "03_reprojection: 2 of 15; next: test_the_lookup_is_exact_at_pixel_centres\n"
    done = run(*once, REPO / "tests/test_03_reprojection.py", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stdout and line in done.stdout, done.stdout
    for name in ("01_data.py", "02_encoder.py"):  # a class: all stages of a folder
        (folder / name).unlink()
    done = run(*once, REPO / "tests", "--exercises", "exercises", "--junitxml", "score.xml", cwd=tmp_path)
    assert done.returncode == 1 and done.stdout.count(" next: ") == 1 and line in done.stdout, done.stdout
    cases = ElementTree.parse(tmp_path / "score.xml").iter("testcase")
    assert len({case.get("name").split("[")[0] for case in cases if len(case)}) == 13
