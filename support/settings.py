"""A dataclass of settings: its flags, and what its values may be.

Test: pytest tests/test_support_settings.py
"""
import argparse
from dataclasses import field, fields

from support.files import DataError

LARGEST = 10 ** 12        # of any whole number: this times a million still seeds a generator
LARGEST_FLOAT = 1e38      # of any other: what float32 holds


def setting(default, help: str, least: float | None = None, choices: tuple = (),
            most: float | None = None):
    """A dataclass field: the text of its flag; its least and largest value, or the values it may have."""
    return field(default=default, metadata={"help": help, "least": least, "most": most, "choices": choices})


def boolean(text: str) -> bool:
    """true or false, as a flag takes it."""
    if text.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError("true or false")
    return text.lower() in ("true", "1")


def add_settings(parser: argparse.ArgumentParser, settings: type) -> None:
    """One flag for each field. A flag not given stays None, so that presets and checkpoints can fill it."""
    group = parser.add_argument_group("settings (defaults are the paper's; a preset changes some)")
    for f in fields(settings):
        kind = boolean if f.type is bool else f.type
        group.add_argument(f"--{f.name.replace('_', '-')}", type=kind, metavar=kind.__name__.upper(),
                           help=f"{f.metadata['help']} [{f.default}]".replace("%", "%%"))


def given(args: argparse.Namespace, settings: type) -> dict:
    """The settings that the command line names."""
    return {f.name: getattr(args, f.name) for f in fields(settings) if getattr(args, f.name) is not None}


def check(config) -> None:
    """DataError for a value that no run could use."""
    for f in fields(config):
        value, flag = getattr(config, f.name), f"--{f.name.replace('_', '-')} {getattr(config, f.name)}"
        least, choices = f.metadata["least"], f.metadata["choices"]
        if least is not None and not value >= least:                          # not NaN either
            raise DataError(f"{flag}: must be at least {least:g}")
        most = f.metadata["most"] or (LARGEST if f.type is int else LARGEST_FLOAT)
        if isinstance(value, (int, float)) and not abs(value) <= most:
            raise DataError(f"{flag}: must be at most {most:g}")
        if choices and value not in choices:
            raise DataError(f"{flag}: one of {', '.join(choices)}")


def reads_it(name: str) -> str:
    """Which versions still read a checkpoint that was made with a setting that is gone."""
    return f"commit 603a4e8, or a later one with --{name.replace('_', '-')}, reads it"


def read_settings(settings: type, saved: dict, absent: dict, removed: dict):
    """A dataclass of settings from a file's dictionary. absent: what a setting meant before it was one, where
    that is not its default, or a function that tells it from the others. removed: settings that are gone, and
    the value that everything now has. ValueError otherwise."""
    for name, value in removed.items():
        if saved.get(name, value) != value:
            raise ValueError(f"{name} = {saved[name]} is gone; {reads_it(name)}")
    config = settings(**{f.name: saved[f.name] for f in fields(settings) if f.name in saved})
    for f in fields(config):
        kinds = (float, int) if f.type is float else (f.type,)
        if type(getattr(config, f.name)) not in kinds:
            raise ValueError(f"unusable {f.name}")
    check(config)
    for name, value in absent.items():
        if name not in saved:
            setattr(config, name, value(config) if callable(value) else value)
    check(config)
    return config
