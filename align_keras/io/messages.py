"""Show progress and the messages of the logger `align_keras`."""

import contextlib
import logging
import sys
from collections.abc import Iterator

logger = logging.getLogger("align_keras")

# Clears from the cursor to the end of the line.
_CLEAR = "\x1b[K"
_line_is_open = False


def print_progress(line: str, last: bool) -> None:
    """Print a line of progress; on a terminal, overwrite the previous one.

    Args:
        line: string.
        last: bool. Whether this is the last line.
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
    """Prints log records: progress to stdout, warnings to stderr."""

    def __init__(self):
        super().__init__()
        self._quieted = []

    def emit(self, record):
        self._quiet_others()
        end_progress()
        stream = sys.stdout if record.levelno < logging.WARNING else sys.stderr
        print(self.format(record), file=stream, flush=True)

    def _quiet_others(self):
        """Avoid duplicates if a library has set up logging in the meantime."""
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
    """Show this logger's messages on the terminal while the block runs.

    If the program has already configured the logger to show progress, its
    handlers are left as they are.

    Args:
        progress: bool. Whether to show progress. Warnings are always shown.
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
