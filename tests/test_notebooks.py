"""The notebooks as they are committed: they import the concepts and define none again, the files they name
exist, and their outputs are there and small. `make notebooks` executes them from a clean state."""
import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import matplotlib
import pytest
import torch

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
SCRIPTS = sorted(ROOT.glob("0[0-9]_*.py"))


def cells(name: str, kind: str) -> list[dict]:
    """Cells of a notebook, of kind "code" or "markdown", each with its source as one string."""
    notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())
    found = [cell for cell in notebook["cells"] if cell["cell_type"] == kind]
    return [{**cell, "source": "".join(cell["source"])} for cell in found]


def names_of(target: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(target) if isinstance(node, ast.Name)}


def defined(source: str, top: bool = False) -> set[str]:
    """Names of functions, classes, lambdas given a name, and constants in capitals; top: those alone that
    stand outside of any other."""
    tree, names = ast.parse(source), set()
    for node in tree.body if top else ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            given = set().union(*map(names_of, node.targets))
            is_function = isinstance(node.value, ast.Lambda)
            names |= {name for name in given if is_function or name.isupper() and len(name) > 1}
    return names


def test_all_of_them_are_there():
    assert [name[:2] for name in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_imports_the_scripts_and_defines_none_of_their_names_again(name):
    source = "\n".join(cell["source"] for cell in cells(name, "code"))
    ours = set().union(*(defined(path.read_text(), top=True) for path in SCRIPTS))
    assert {"project_onto_C", "Encoder", "lookup", "PALETTE"} <= ours
    assert not defined(source) & ours
    imported = re.findall(r'"(\d\d_\w+)"', source)
    assert len(imported) >= 2 and {f"{n}.py" for n in imported} <= {path.name for path in SCRIPTS}


def test_a_name_defined_again_would_be_found():
    source = "def project():\n  pass\nfar = lambda x: x\nIGNORE = 3\nrays = 4"
    assert defined(source) == {"project", "far", "IGNORE"}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_files_it_names_exist(name):
    text = "\n".join(cell["source"] for cell in cells(name, "markdown"))
    named = re.findall(r"[`\s(]((?:docs/|tests/|weights/|support/)?[\w]+\.(?:py|md|pt))\b", text)
    assert named and [file for file in named if not (ROOT / file).is_file()] == []


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_its_outputs_are_there_in_order_without_an_error_and_small(name):
    code = cells(name, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error"]
    pictures = [o for o in outputs if any(kind.startswith("image/") for kind in o.get("data", {}))]
    assert len(pictures) >= 4
    assert (ROOT / "notebooks" / f"{name}.ipynb").stat().st_size < 1_000_000


def setup_of(name: str) -> str:
    """A notebook's first code cell, which fetches the repository in Colab."""
    return cells(name, "code")[0]["source"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_line_of_code_is_longer_than_110_columns(name):
    lines = [line for cell in cells(name, "code") for line in cell["source"].split("\n")]
    assert lines and [line for line in lines if len(line) > 110] == []


def test_all_begin_with_the_same_cell():
    assert len({setup_of(name) for name in NOTEBOOKS}) == 1


@pytest.mark.parametrize("folder", ["root", "elsewhere"])
def test_outside_of_colab_the_first_cell_does_nothing(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT if folder == "root" else tmp_path)
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    before = os.getcwd(), list(sys.path), dict(os.environ), set(os.listdir())
    exec(setup_of(NOTEBOOKS[0]), {})
    assert (os.getcwd(), list(sys.path), dict(os.environ), set(os.listdir())) == before


def test_in_colab_the_first_cell_clones_and_installs_and_only_once(monkeypatch, tmp_path):
    commands = []

    def run(command: list[str], check: bool):
        """Does what git would do."""
        commands.append(command)
        if command[:2] == ["git", "clone"]:
            Path(command[-1]).mkdir()
            (Path(command[-1]) / "01_data.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    monkeypatch.setattr(subprocess, "run", run)
    names: dict = {}
    exec(setup_of(NOTEBOOKS[0]), names)
    clone, install = commands
    assert clone[:2] == ["git", "clone"] and names["REPOSITORY"] in clone
    assert install[:4] == [sys.executable, "-m", "pip", "install"]
    assert Path.cwd() == tmp_path / clone[-1]
    exec(setup_of(NOTEBOOKS[0]), {})                                          # the cell is run again
    assert len(commands) == 2 and Path.cwd() == tmp_path / clone[-1]


def test_02_and_03_open_the_ray_explorer_in_a_file_beside_them():
    for name in NOTEBOOKS[1:3]:
        cell, = [cell for cell in cells(name, "code") if "ray_explorer(" in cell["source"].split("\n")[-1]]
        shown = ["".join(o["data"]["text/html"]) for o in cell["outputs"] if "text/html" in o.get("data", {})]
        assert len(shown) == 1 and 'src="../outputs/explorer_room' in shown[0] and len(shown[0]) < 1000


def test_the_ray_explorer_is_made_by_the_tool(monkeypatch, tmp_path, capsys):
    from support.diagrams import ray_explorer

    def run(command: list[str], **_):
        """Does as if."""
        assert command[:3] == [sys.executable, "-m", "tools.explore"]
        Path(command[command.index("--out") + 1]).write_text("page")
        return SimpleNamespace(returncode=0, stdout="one line\nFILE: 3 MB\n", stderr="")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", run)
    frame = ray_explorer("data/example/room9009_00", stride=16)
    page = tmp_path / "notebooks" / frame.src                                 # as a notebook's page sees it
    assert Path(os.path.normpath(page)).read_text() == "page"
    assert capsys.readouterr().out.splitlines()[-1] == "FILE: 3 MB"


def test_a_picture_shows_channels_last_and_a_ring_around_its_pixel():
    matplotlib.use("Agg")
    from support.diagrams import picture, plt

    image, axis = torch.rand(3, 4, 6), plt.subplots()[1]
    for given in (image, image.permute(1, 2, 0)):
        shown = picture(axis, given, "title", pixel=(5.0, 2.0)).get_array()
        assert torch.equal(torch.tensor(shown), image.permute(1, 2, 0))
    assert picture(axis, image[0]).get_array().shape == (4, 6)
    assert axis.lines[0].get_xydata().tolist() == [[5.0, 2.0]]
    plt.close()
