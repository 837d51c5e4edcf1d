"""A line of progress is drawn over the one before, and over nothing else."""

import contextlib
import io
import logging

import pytest

from align_keras.io.messages import end_progress
from align_keras.io.messages import messages_shown
from align_keras.io.messages import print_progress


class Terminal(io.StringIO):
    """What a terminal would show of what is written to it."""

    def isatty(self):
        return True

    def shown(self):
        lines = [""]
        column = 0
        text = self.getvalue()
        at = 0
        while at < len(text):
            if text.startswith("\x1b[K", at):
                lines[-1] = lines[-1][:column]
                at += 3
                continue
            letter = text[at]
            if letter == "\n":
                lines.append("")
                column = 0
            elif letter == "\r":
                column = 0
            else:
                line = lines[-1]
                lines[-1] = line[:column] + letter + line[column + 1 :]
                column += 1
            at += 1
        return lines


@contextlib.contextmanager
def on_terminal():
    terminal = Terminal()
    with (
        contextlib.redirect_stdout(terminal),
        contextlib.redirect_stderr(terminal),
    ):
        yield terminal
        end_progress()


def test_a_shorter_line_leaves_nothing_of_a_longer_one():
    with on_terminal() as terminal:
        print_progress("step 1 of 2, much is left", last=False)
        print_progress("step 2", last=True)
    assert terminal.shown() == ["step 2", ""]


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])
def test_messages_begin_below_the_line(level):
    with on_terminal() as terminal, messages_shown():
        print_progress("step 1", last=False)
        logging.getLogger("align_keras").log(level, "said")
        print_progress("step 2", last=False)
        end_progress()
        end_progress()
    assert terminal.shown() == ["step 1", "said", "step 2", ""]


def test_a_file_gets_lines(capsys):
    print_progress("step 1", last=False)
    print_progress("step 2", last=True)
    assert capsys.readouterr().out == "step 1\nstep 2\n"
