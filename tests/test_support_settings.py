"""support/settings.py: flags from a dataclass, and what its values may be."""
import argparse
from dataclasses import dataclass

import pytest

from support import settings
from support.files import DataError
from support.settings import setting


@dataclass
class Toy:
    size: int = setting(4, "how large, 50% at most", least=2)
    rate: float = setting(0.5, "how fast", least=0)
    kind: str = setting("soft", "which", choices=("soft", "hard"))
    big_one: bool = setting(True, "whether")


def parse(*words):
    parser = argparse.ArgumentParser()
    settings.add_settings(parser, Toy)
    return parser.parse_args(words)


def test_a_flag_not_given_is_no_setting_and_a_given_one_has_its_type():
    assert settings.given(parse(), Toy) == {}
    found = settings.given(parse("--size", "7", "--rate", "1", "--big-one", "false", "--kind", "hard"), Toy)
    assert found == {"size": 7, "rate": 1.0, "big_one": False, "kind": "hard"}
    assert type(found["rate"]) is float


@pytest.mark.parametrize("text, value", [("true", True), ("False", False), ("1", True), ("0", False)])
def test_true_and_false_are_words_or_digits(text, value):
    assert settings.given(parse("--big-one", text), Toy) == {"big_one": value}


@pytest.mark.parametrize("words", [["--big-one", "perhaps"], ["--size", "2.5"], ["--rate", "fast"]])
def test_a_value_of_another_type_is_a_wrong_command_line(words, capsys):
    with pytest.raises(SystemExit) as end:
        parse(*words)
    assert end.value.code == 2 and words[0] in capsys.readouterr().err


def test_the_help_has_each_settings_text_and_default(capsys):
    with pytest.raises(SystemExit) as end:
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0
    assert "--size INT how large, 50% at most [4]" in text and "--big-one BOOLEAN whether [True]" in text


@pytest.mark.parametrize("values, words", [
    ({"size": 1}, "--size 1: must be at least 2"), ({"rate": -0.1}, "--rate -0.1: must be at least 0"),
    ({"rate": float("nan")}, "--rate nan: must be at least 0"),
    ({"kind": "odd"}, "--kind odd: one of soft, hard")])
def test_a_value_that_no_run_could_use_is_named_with_what_it_may_be(values, words):
    with pytest.raises(DataError, match=f"^{words}$"):
        settings.check(Toy(**values))
    settings.check(Toy(size=2, rate=0.0, kind="hard"))


def test_a_file_gives_its_settings_and_what_it_lacks_is_the_default_or_what_was_meant_then():
    assert settings.read_settings(Toy, {"size": 9, "foreign": 1}, {}, {}) == Toy(size=9)
    assert settings.read_settings(Toy, {}, {"big_one": False}, {}) == Toy(big_one=False)
    assert settings.read_settings(Toy, {"big_one": True}, {"big_one": False}, {}) == Toy()
    assert settings.read_settings(Toy, {"rate": 1}, {}, {}).rate == 1         # an int is a float
    told = {"rate": lambda toy: toy.size / 2}                                 # by another setting
    assert settings.read_settings(Toy, {"size": 5}, told, {}) == Toy(size=5, rate=2.5)
    assert settings.read_settings(Toy, {"size": 5, "rate": 3.0}, told, {}) == Toy(size=5, rate=3.0)


def test_a_setting_that_is_gone_is_refused_by_name_unless_it_had_what_all_have_now():
    assert settings.read_settings(Toy, {"old": 3}, {}, {"old": 3}) == Toy()
    assert settings.read_settings(Toy, {}, {}, {"old": 3}) == Toy()
    with pytest.raises(ValueError, match="old = 4 is gone; commit 603a4e8, or a later one with --old, reads"):
        settings.read_settings(Toy, {"old": 4}, {}, {"old": 3})


@pytest.mark.parametrize("saved", [
    {"size": "4"}, {"size": 4.0}, {"size": None}, {"rate": "fast"}, {"kind": 3}])
def test_a_value_of_another_type_in_a_file_is_refused_by_name(saved):
    with pytest.raises(ValueError, match=f"unusable {next(iter(saved))}"):
        settings.read_settings(Toy, saved, {}, {})


def test_a_value_out_of_range_in_a_file_is_refused():
    with pytest.raises(DataError, match="--size 1"):
        settings.read_settings(Toy, {"size": 1}, {}, {})


@pytest.mark.parametrize("values, words", [
    ({"size": 10 ** 13}, "--size 1.*: must be at most 1e.12"),
    ({"rate": float("inf")}, "--rate inf: must be at most"), ({"most": 9}, "--most 9: must be at most 8")])
def test_a_value_that_no_machine_could_use_is_named(values, words):
    @dataclass
    class Bounded(Toy):
        most: int = settings.setting(4, "bounded", most=8)
    with pytest.raises(DataError, match=words):
        settings.check(Bounded(**values))
    settings.check(Bounded(size=10 ** 12, rate=1e30, most=8))


def test_a_truth_value_in_a_file_is_no_number():
    with pytest.raises(ValueError, match="unusable size"):
        settings.read_settings(Toy, {"size": True}, {}, {})
