"""What the pages tell people to type or to open is there: each command's script takes its flags, each link leads somewhere, each test and
notebook of the README's table exists. That the commands work is for the other tests: this one keeps the pages from falling behind."""
import argparse
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "weights/README.md", "results/README.md"]
TYPED = re.compile(r"`((?:python|torchrun)[^`]+)`|^((?:python|torchrun) .+)$", flags=re.M)
THEIRS = "download-scannet.py"                                                # comes with ScanNet, not with us


def commands() -> list[str]:
    """Every python and torchrun command of the pages, without comments."""
    found = [inline or block for page in PAGES for inline, block in TYPED.findall((ROOT / page).read_text().replace("\\\n", ""))]
    return sorted({" ".join(line.split("#")[0].split()) for line in found if THEIRS not in line})


class Parsed(Exception):
    """The command line was understood."""


@pytest.mark.parametrize("command", commands())
def test_the_script_takes_the_flags(command, monkeypatch, capsys):
    words = shlex.split(command.replace(" FLAG", "").replace("WHAT", "2"))    # what stands for something else
    start = next(i for i, word in enumerate(words) if word.endswith(".py"))
    script, flags = words[start], words[start + 1:]
    assert (ROOT / script).is_file()
    if not flags:
        return
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser, *args):
        try:
            parse(parser, *args)
        except SystemExit as stop:
            assert stop.code == 0, capsys.readouterr().err                    # --help ends with 0
        raise Parsed
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", [script, *flags])
    module = import_module(script[:-3])
    monkeypatch.setattr(module, "prepare_cpu", lambda: None, raising=False)
    with pytest.raises(Parsed):
        module.main()


def test_there_are_commands_to_check():
    assert len(commands()) > 30 and "python 07_train.py --scene scannet" in commands()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    named = re.findall(r"`((?:tests|docs|notebooks)/[\w./-]+)`", text)
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_script_has_a_row_and_every_row_its_tests():
    text = (ROOT / "README.md").read_text()
    for script in sorted(ROOT.glob("[01][0-9]_*.py")):
        assert f"| [`{script.name}`]({script.name}) |" in text and f"`tests/test_{script.stem}.py`" in text
