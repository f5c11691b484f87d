"""Standard streams that are closed, or whose reader goes away: no program ends for that.

Test: pytest tests/test_support_streams.py
"""
import errno
import os
import sys
from contextlib import contextmanager


class Stream:
    """A text stream whose reader may leave (`| head -1`): what is written afterwards goes nowhere. What its
    encoding cannot say is written as an escape."""

    def __init__(self, stream):
        self.stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """As a stream's write()."""
        try:
            return self.stream.write(text)
        except OSError as error:
            self.go_on(error)
            return len(text)

    def flush(self) -> None:
        """As a stream's flush()."""
        try:
            self.stream.flush()
        except OSError as error:
            self.go_on(error)

    def go_on(self, error: OSError) -> None:
        """Lead the stream to nowhere if nobody reads it any more; the error itself if it is another one."""
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)


def open_closed() -> None:
    """Give each standard file number that is closed (`2>&-`) to /dev/null: the next file that is opened
    would get it, and with it what others write there."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


@contextmanager
def patient_streams():
    """sys.stdout and sys.stderr as Streams."""
    before = sys.stdout, sys.stderr
    open_closed()
    streams = [Stream(stream or open(os.devnull, "w")) for stream in before]
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        for stream in streams:
            stream.flush()
        sys.stdout, sys.stderr = before
