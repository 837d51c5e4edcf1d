"""What a run says of its data and its work before it begins."""

import logging

import pytest

from align_keras.data import RecordFiles
from align_keras.training import load_recipe
from align_keras.training import reports
from align_keras.training.reports import describe_work
from align_keras.training.reports import warn


@pytest.fixture(autouse=True)
def unread(monkeypatch):
    """The order of the records is told elsewhere."""
    monkeypatch.setattr(reports, "describe_order", lambda records: None)


def said(caplog, total, held_out="data", step=0, **fields):
    records = RecordFiles(["a"], {"a": total})
    recipe = load_recipe("small", **{"steps": 100, **fields})
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="align_keras"):
        warn(recipe, records, held_out, step)
        describe_work(recipe, records)
    return caplog.text


def test_a_run_says_how_often_it_shows_each_image(caplog):
    text = said(caplog, 1000, batch_size=50)
    assert "1000 images; 100 steps of 50 pairs show each of them 5.0" in text
    assert "2.0% of a batch" in text
    assert "WARNING" not in text


@pytest.mark.parametrize(
    "total, held_out, fields, warning",
    [
        (49, "data", {"batch_size": 50}, "holds some of the 49 images more"),
        (1000, None, {}, "Nothing is held out"),
        (1000, "data", {"steps": 7_000, "batch_size": 50}, "be seen 350 times"),
    ],
)
def test_what_learns_little_is_told(caplog, total, held_out, fields, warning):
    assert warning in said(caplog, total, held_out, **fields)
    # Who resumes has been told.
    assert warning not in said(caplog, total, held_out, step=5, **fields)


def test_what_is_within_bounds_is_not_warned_of(caplog):
    for total, fields in (
        (50, {"batch_size": 50}),
        (1000, {"steps": 6_000, "batch_size": 50}),
    ):
        assert "WARNING" not in said(caplog, total, **fields)
