"""Exercises: a stage's file without the bodies of the functions that carry its idea, to be written again.

    python -m tools.exercise 04                  writes exercises/04_cra.py
    python -m tools.exercise all --hints         every stage, with the comments and shapes of the bodies
    pytest tests/test_04_cra.py --mine           the stage's tests on exercises/04_cra.py, and a score

A function is an exercise where its `def` line ends with `# exercise`, or with `# exercise: Table 9, L4`, what
to read in the paper. Signature, docstring and equations on a line of their own stay, and so does the rest of
the file. The other stages stay the project's. A file that is there is never replaced.
Test: pytest tests/test_tool_exercise.py
"""
import argparse
import ast
import io
import re
import tokenize
from pathlib import Path
from typing import NamedTuple

from support.files import DataError, run_script

ROOT = Path(__file__).resolve().parents[1]
MARK = re.compile(r"# exercise(?:: (.*))?$")
SOURCE = re.compile(r"Table \d+(?:, L\d+|'s Input \d)|eq\. \d|(?:NeRF, )?section \d[\d.]*\d")


class Exercise(NamedTuple):
    """A function to write. Lines count from 1, as ast's do."""
    name: str
    source: str    # the table row or the equation
    first: int     # the first line of its body behind the docstring
    last: int      # and the last
    indent: str


def comments(text: str) -> dict[int, str]:
    """Line -> the comment on it."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}


def source_of(mark: str, docstring: str, table: str) -> str:
    """What the marker names, else the docstring's first row or equation. "L4": a row of the file's table."""
    if mark:
        return f"{table}, {mark}" if re.match(r"L\d", mark) else mark
    named = SOURCE.search(docstring)
    return named[0] if named else "its docstring"


def exercises(text: str) -> list[Exercise]:
    """The marked functions of a file, in its order. A marked function has a docstring."""
    tree, notes, found = ast.parse(text), comments(text), []
    table = re.search(r"Table \d+", ast.get_docstring(tree) or "")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            docstring = node.body[0]
            marks = [MARK.match(notes.get(line, "")) for line in range(node.lineno, docstring.lineno)]
            for mark in filter(None, marks):
                source = source_of(mark[1], ast.get_docstring(node), table[0] if table else "")
                found.append(Exercise(node.name, source, docstring.end_lineno + 1, node.end_lineno,
                                      " " * docstring.col_offset))
    return sorted(found, key=lambda exercise: exercise.first)


def without_bodies(text: str, test: str, hints: bool = False) -> str:
    """A file's text, each marked body replaced by one line that raises NotImplementedError and names what to
    read and which test to run. hints: the bodies' comments stay, each behind the name that its line sets."""
    lines, notes = text.split("\n"), comments(text)
    for name, source, first, last, indent in reversed(exercises(text)):
        kept = []
        for line in range(first, last + 1):
            code, note = lines[line - 1], notes.get(line, "")
            alone = code.strip() == note
            if note and (hints or alone and " = " in note):
                target = re.match(r"\s*(\w+(?:, \w+)*) = ", code)
                kept.append(indent + (note if alone or not target else f"# {target[1]}: {note[2:]}"))
        kept.append(f'{indent}raise NotImplementedError("{name}: {source}; pytest {test} --mine")')
        lines[first - 1:last] = kept
    return "\n".join(lines)


def stages() -> dict[str, Path]:
    """Number -> file of each stage that has an exercise."""
    return {path.name[:2]: path for path in sorted(ROOT.glob("0[0-9]_*.py")) if exercises(path.read_text())}


def write(numbers: list[str], folder: Path, hints: bool = False) -> list[Path]:
    """Write these stages' exercises -> their files. DataError where one of them is there already."""
    originals = stages()
    files = [folder / originals[number].name for number in numbers]
    there = [str(file) for file in files if file.exists()]
    if there:
        raise DataError(f"{', '.join(there)}: there already, and never overwritten; move it away, or name "
                        "another folder (--out)")
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        with open(file, "x") as out:                                          # never over another's work
            out.write(without_bodies((ROOT / file.name).read_text(), f"tests/test_{file.name}", hints))
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("stage", help="number of a stage, 04 for instance, or all")
    parser.add_argument("--hints", action="store_true", help="keep the comments and shapes of the bodies")
    parser.add_argument("--out", default="exercises", help="folder for the exercises [exercises]")
    args = parser.parse_args()
    known = list(stages())
    if args.stage not in (*known, "all"):
        raise DataError(f"{args.stage}: no stage with an exercise; there are {', '.join(known)} and all")
    numbers = known if args.stage == "all" else [args.stage]
    for file in write(numbers, Path(args.out), args.hints):
        count = len(exercises((ROOT / file.name).read_text()))
        print(f"{file}: {count} to write; pytest tests/test_{file.name} --mine")


if __name__ == "__main__":
    run_script(main)
