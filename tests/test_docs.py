"""The pages against the code: a command's program takes its flags, a link leads somewhere, a lesson has its
row, a name of docs/map.md is in the code, the README's lines of Python run.

Test: pytest tests/test_docs.py
"""
import argparse
import re
import shlex
import shutil
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGES = sorted(str(page.relative_to(ROOT)) for page in (
    *ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "results/README.md", ROOT / "weights/README.md"))
TYPED = re.compile(
    r"(?<!`)`((?:OMP_NUM_THREADS=1 )?(?:python|torchrun)\s[^`]+)`|^((?:python|torchrun) .+)$", flags=re.M)
THEIRS = "download-scannet.py"                   # comes with ScanNet, not with us
OLD = "603a4e8"                                  # a heading or a line with it may have old commands
TABLES = {"Table 8": 22, "Table 9": 6, "Table 10": 3, "Table 11": 11}


def without_old_code(text: str) -> str:
    """A page without the sections whose heading, and the lines in which, the old commit stands."""
    sections = [part for part in re.split(r"^(?=#+ )", text, flags=re.M) if OLD not in part.split("\n")[0]]
    return "\n".join(line for line in "".join(sections).split("\n") if OLD not in line)


def commands(text: str) -> list[str]:
    """The python and torchrun commands of a page that today's code should take, without comments."""
    found = (inline or block for inline, block in TYPED.findall(without_old_code(text)))
    return [" ".join(line.split("#")[0].split()) for line in found if THEIRS not in line]


def all_commands() -> list[str]:
    return sorted({command for page in PAGES for command in commands((ROOT / page).read_text())})


def program(command: str) -> tuple[str, list[str]]:
    """A command -> its module's name, and its flags. Capitals that stand for something else are filled in."""
    words = shlex.split(command.replace(" FLAG", "").replace("WHAT", "2").replace("--every N", "--every 2"))
    words = [word for word in words if not word.startswith("OMP_NUM_THREADS=")]
    if words[1] == "-m":
        return words[2], words[3:]
    start = next(i for i, word in enumerate(words) if word.endswith(".py"))
    return words[start].removesuffix(".py").replace("/", "."), words[start + 1:]


class Parsed(Exception):
    """The command line was understood."""


@pytest.mark.parametrize("command", all_commands())
def test_the_program_takes_the_flags(command, monkeypatch, capsys):
    name, flags = program(command)
    if not flags:
        assert (ROOT / name.replace(".", "/")).with_suffix(".py").is_file()
        return
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser, *args):
        try:
            parse(parser, *args)
        except SystemExit as stop:
            assert stop.code == 0, capsys.readouterr().err                    # --help ends with 0
        raise Parsed
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", [name, *flags])
    module = import_module(name)
    monkeypatch.setattr(module, "prepare_cpu", lambda: None, raising=False)
    with pytest.raises(Parsed):
        module.main()


def test_commands_are_found_and_old_ones_left_out():
    page = ("`python 07_train.py\n--steps 3`\n## New\npython a.py  # x\n`python b.py` at 603a4e8\n"
            "## 603a4e8\npython c.py\n")
    assert commands(page) == ["python 07_train.py --steps 3", "python a.py"]
    assert len(all_commands()) > 30 and "python 07_train.py --scene scannet" in all_commands()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = without_old_code((ROOT / page).read_text())
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    named = re.findall(r"`((?:tests|docs|notebooks|weights)/[\w./-]*[\w/])`", text)
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_lesson_has_a_row_with_its_test():
    text = (ROOT / "README.md").read_text()
    for script in sorted(ROOT.glob("0[0-9]_*.py")):
        row = next(line for line in text.split("\n") if f"]({script.name})" in line and line.startswith("|"))
        assert f"](tests/test_{script.name})" in row


def test_every_page_of_docs_is_linked_from_the_readme():
    text = (ROOT / "README.md").read_text()
    assert [page for page in PAGES if page.startswith("docs/") and f"]({page})" not in text] == []


def resolve(name: str):
    """`03_reprojection.Reprojection.L21` -> what the code has there. A class is made, to find layers."""
    module, *attributes = name.split(".")
    found = import_module(module)
    training = import_module("07_train")
    arguments = {"Level": (training.Config(), 20), "SRay": (training.Config(),), "MultiHeadAttention": (32,)}
    for attribute in attributes:
        if isinstance(found, type) and not hasattr(found, attribute):
            found = found(*arguments.get(found.__name__, ()))
        found = getattr(found, attribute)
    return found


def rows_of_the_map() -> list[tuple[str, str, str]]:
    """(heading, row, name) of each row of docs/map.md."""
    rows, heading = [], ""
    for line in (ROOT / "docs" / "map.md").read_text().split("\n"):
        heading = line.removeprefix("## ").split(":")[0] if line.startswith("## ") else heading
        cells = [cell.strip(" `") for cell in line.strip("|").split("|")]
        if line.startswith("| ") and cells[0] != "row":
            rows.append((heading, cells[0], cells[2]))
    return rows


@pytest.mark.parametrize("heading, row, name", rows_of_the_map())
def test_the_map_names_what_the_code_has(heading, row, name):
    found = resolve(name)
    if heading in TABLES and name.split(".")[-1] == row:                      # a layer with weights
        assert isinstance(found, torch.nn.Module) and any(True for _ in found.parameters())


def test_the_map_has_every_row_of_the_tables_and_every_equation():
    for table, count in TABLES.items():
        rows = [row for heading, row, _ in rows_of_the_map() if heading == table]
        assert rows == [f"L{i}" for i in range(1, count + 1)]
    assert {"eq. 1", "eq. 2", "eq. 3"} <= {row for _, row, _ in rows_of_the_map()}


def test_a_name_that_the_code_lacks_is_found_missing():
    for name in ("02_encoder.Encoder.L12", "03_reprojection.Reprojection.L20", "04_cra.no_such_function"):
        with pytest.raises(AttributeError):
            resolve(name)


@pytest.mark.slow
def test_the_readmes_lines_of_python_render_an_unseen_room(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "weights", tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    block, = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)
    truth = names["camera"].labels[::4, ::4]
    right = (names["labels"] == truth)[truth != names["data"].IGNORE].float().mean()
    assert names["image"]["colour"].shape == (60, 80, 3) and right > 0.85
