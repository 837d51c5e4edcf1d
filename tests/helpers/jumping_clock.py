"""A clock that somebody sets, back and forth by a day, all the time."""

import datetime
import os
import random
import time

DAY = 86_400
_draw = random.Random(0)
_time, _replace = time.time, os.replace


def _now():
    return _time() + _draw.choice((-DAY, 0, DAY))


class _Datetime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(_now(), tz)

    @classmethod
    def utcnow(cls):
        return cls.now(datetime.UTC).replace(tzinfo=None)


def _stamped(source, target, **options):
    """Rename a file, whose time is what the clock says then."""
    _replace(source, target, **options)
    now = _now()
    os.utime(target, (now, now))


def begin(patch=setattr):
    """Let the clock of this process jump, and the times of its files."""
    patch(time, "time", _now)
    patch(time, "time_ns", lambda: int(_now() * 1e9))
    patch(datetime, "datetime", _Datetime)
    patch(os, "replace", _stamped)
