"""The top floor of programs: to use, not to read. `python -m tools.NAME --help`, from the repository's
root."""
