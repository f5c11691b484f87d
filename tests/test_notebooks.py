"""The notebooks as they are committed: how they open and end, that they import the concepts and define none again, and that their
outputs are there and small. `make notebooks` executes them from a clean state."""
import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ["01_rays_and_reprojection", "02_attention_maps", "03_view_weights", "04_coarse_to_fine", "05_train_finetune_render"]


def cells(name: str, kind: str) -> list[dict]:
    notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())
    return [{**cell, "source": "".join(cell["source"])} for cell in notebook["cells"] if cell["cell_type"] in kind.split("|")]


def defined(source: str, top: bool = False) -> set[str]:
    """Names of functions, classes, lambdas given a name, and constants in capitals; top: those outside of any other alone."""
    tree, names = ast.parse(source), set()
    for node in tree.body if top else ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                names |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name)
                          and (isinstance(node.value, ast.Lambda) or n.id.isupper() and len(n.id) > 1)}
    return names


def scripts() -> list[Path]:
    return sorted(ROOT.glob("[01][0-9]_*.py"))


def test_all_of_them_are_there():
    assert sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")) == NOTEBOOKS


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_opens_with_what_you_will_understand_and_a_first_cell_of_path_versions_and_device(name):
    first, second = cells(name, "markdown|code")[:2]
    assert re.match(r"# \d\. .*\n\nAt the end you will understand\n\n- ", first["source"])
    assert all(word in second["source"] for word in ("sys.path.insert", "torch.__version__", "device"))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_asks_for_a_prediction_before_it_shows_an_answer(name):
    both = cells(name, "markdown|code")
    asked = [i for i, cell in enumerate(both) if cell["cell_type"] == "markdown" and "**Predict" in cell["source"]]
    assert len(asked) >= 3
    for i in asked:                           # the answer: a computed cell, right below
        text = both[i]["source"]
        assert both[i + 1]["cell_type"] == "code" and text.rindex("**Predict") > text.rfind("**What happened")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_ends_with_three_exercises_and_their_answers_collapsed(name):
    last = cells(name, "markdown|code")[-1]
    assert last["cell_type"] == "markdown"
    _, exercises = last["source"].split("## Exercises")
    questions, answers = exercises.split("<details><summary>Answers</summary>")
    assert re.findall(r"^(\d)\. ", questions, flags=re.M) == re.findall(r"^(\d)\. ", answers, flags=re.M) == ["1", "2", "3"]
    assert answers.rstrip().endswith("</details>")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_imports_the_scripts_and_defines_none_of_their_names_again(name):
    source = "\n".join(cell["source"] for cell in cells(name, "code"))
    ours = set().union(*(defined(path.read_text(), top=True) for path in scripts()))
    assert {"project_onto_C", "Encoder", "lookup", "PALETTE"} <= ours
    assert not defined(source) & ours
    imported = re.findall(r'"(\d\d_\w+)"', source)
    assert len(imported) >= 2 and {f"{n}.py" for n in imported} <= {path.name for path in scripts()}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_its_outputs_are_there_in_order_without_an_error_and_small(name):
    code = cells(name, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error"]
    pictures = [o for o in outputs if any(kind.startswith("image/") for kind in o.get("data", {}))]
    assert len(pictures) >= 4
    assert (ROOT / "notebooks" / f"{name}.ipynb").stat().st_size < 1_000_000


def test_a_name_defined_again_would_be_found():
    assert defined("def project():\n  pass\nfar = lambda x: x\nIGNORE = 3\nrays = 4") == {"project", "far", "IGNORE"}
