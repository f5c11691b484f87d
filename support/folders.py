"""Folders that appear whole or not at all, while several processes may write them.

Test: pytest tests/test_support_folders.py
"""
import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path


def part_of(target: Path, mark: str = "") -> Path:
    """A hidden name beside target, for what is not whole yet: nobody can have guessed it."""
    return target.with_name(f".{target.name[:40]}.{mark or secrets.token_hex(6)}.part")


@contextlib.contextmanager
def whole_folder(target: Path, mark: str = "") -> Iterator[Path]:
    """A new folder beside target, renamed to target at the end. Where another process made target meanwhile,
    its folder stays. mark: what the hidden names of one program have in common (remove_parts)."""
    temporary = part_of(target, mark)
    temporary.mkdir()                          # fails where there is something, a planted link too
    try:
        yield temporary
        try:
            os.rename(temporary, target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_parts(folder: Path, mark: str = "") -> None:
    """Remove what killed writers left in a folder: all with this mark, or all that is an hour old."""
    for part in folder.glob(f".*.{mark or '*'}.part"):
        with contextlib.suppress(OSError):     # just finished
            newest = max(path.lstat().st_mtime for path in [part, *part.glob("*")])
            if mark or time.time() - newest > 3600:
                shutil.rmtree(part) if part.is_dir() and not part.is_symlink() else part.unlink()
