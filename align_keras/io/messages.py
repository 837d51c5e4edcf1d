"""What this package has to say, through the logger `align_keras`."""

import contextlib
import logging
import sys
from collections.abc import Iterator

logger = logging.getLogger("align_keras")

# Clears from where the cursor stands to the end of the line.
_CLEAR = "\x1b[K"
_line_is_open = False


def print_progress(line: str, last: bool) -> None:
    """Print a line of progress; on a terminal over the one before.

    Args:
        line: string.
        last: bool. Whether no other follows.
    """
    global _line_is_open
    if not sys.stdout.isatty():
        print(line, flush=True)
        return
    print(f"\r{line}{_CLEAR}", end="\n" if last else "", flush=True)
    _line_is_open = not last


def end_progress() -> None:
    """End a line of progress, so that other output begins below it."""
    global _line_is_open
    if _line_is_open:
        print(flush=True)
        _line_is_open = False


class _Terminal(logging.Handler):
    """Prints what is logged: progress as output, warnings as errors."""

    def __init__(self):
        super().__init__()
        self._quieted = []

    def emit(self, record):
        self._quiet_others()
        end_progress()
        stream = sys.stdout if record.levelno < logging.WARNING else sys.stderr
        print(self.format(record), file=stream, flush=True)

    def _quiet_others(self):
        """Say nothing twice where a library has set up logging meanwhile."""
        for handler in logging.getLogger().handlers:
            stream = getattr(handler, "stream", None)
            on_terminal = stream in (sys.stdout, sys.stderr)
            if on_terminal and handler not in self._quieted:
                handler.addFilter(_is_of_others)
                self._quieted.append(handler)

    def close(self):
        for handler in self._quieted:
            handler.removeFilter(_is_of_others)
        super().close()


def _is_of_others(record):
    return record.name != logger.name


@contextlib.contextmanager
def messages_shown(progress: bool = True) -> Iterator[None]:
    """Show what is logged meanwhile on the terminal.

    A program that shows this logger's progress itself keeps its way of doing
    so.

    Args:
        progress: bool. Whether progress is shown; warnings always are.
            Defaults to `True`.
    """
    terminal, level = None, logger.level
    shown = any(isinstance(h, _Terminal) for h in logger.handlers)
    if not shown and not (
        logger.isEnabledFor(logging.INFO) and logger.hasHandlers()
    ):
        terminal = _Terminal()
        logger.addHandler(terminal)
    if not progress:
        logger.setLevel(logging.WARNING)
    elif not logger.isEnabledFor(logging.INFO):
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        if terminal is not None:
            logger.removeHandler(terminal)
            terminal.close()
