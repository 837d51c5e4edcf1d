"""What this package has to say, through the logger `align_keras`."""

import contextlib
import logging
import sys
from collections.abc import Iterator

logger = logging.getLogger("align_keras")


class _Terminal(logging.Handler):
    """Prints what is logged: progress as output, warnings as errors."""

    def emit(self, record):
        stream = sys.stdout if record.levelno < logging.WARNING else sys.stderr
        print(self.format(record), file=stream, flush=True)


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
