"""The top floor for speed: the same numbers sooner. See docs/speed.md."""
