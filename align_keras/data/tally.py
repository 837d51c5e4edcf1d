"""Accounts of what a source holds and of what is left out of it."""

import collections
from collections.abc import Callable

# No more than this are listed by name; all are counted.
MAX_LISTED = 1000


class Tally:
    """What was seen in a source, and what of it was left out, and why.

    Args:
        tell: callable of a name and a reason, told of whatever is left out.
            Defaults to `None`.

    Attributes:
        seen: int. Images that the source names or holds, usable or not. Who
            reads a source counts each one when it is seen; who uses it can
            tell in the end whether any got lost.
        reasons: `collections.Counter` of what was left out, by reason.
        listed: list of dicts of `"file"`, `"reason"` and perhaps `"detail"`
            of the first 1000 of these.
        looked_at: set of strings. Files of the source that were read or left
            out, to be compared with those that it holds.
    """

    def __init__(self, tell: Callable | None = None):
        self.tell = tell
        self.seen = 0
        self.reasons = collections.Counter()
        self.listed = []
        self.looked_at = set()

    def skip(self, name: str, reason: str, detail: str | None = None):
        """Leave out something that was counted as seen."""
        self.reasons[reason] += 1
        if self.tell is not None:
            self.tell(name, f"{reason}: {detail}" if detail else reason)
        if len(self.listed) < MAX_LISTED:
            entry = {"file": str(name), "reason": reason}
            self.listed.append(entry | ({"detail": detail} if detail else {}))

    def leave_out(self, name: str, reason: str, detail: str | None = None):
        """Leave out something at the moment it is seen."""
        self.seen += 1
        self.skip(name, reason, detail)

    def summary(self) -> str:
        """Return the counts in words."""
        counts = sorted(self.reasons.items())
        counts = [f"{count} {reason}" for reason, count in counts]
        return ", ".join(counts) or "it holds no images with captions"

    def explain(self) -> str:
        """Return the counts in words, and what was left out first."""
        told = self.summary()
        if self.listed:
            first = self.listed[0]
            told += f"; the first is {first['file']}"
            told += f": {first['detail']}" if "detail" in first else ""
        return told

    def check(self, used: int):
        """Raise unless everything that was seen was used or left out.

        Raises:
            RuntimeError: It does not add up, which is an error of this
                package.
        """
        left_out = self.reasons.total()
        if self.seen != used + left_out:
            raise RuntimeError(
                f"Of {self.seen} images that the source holds, {used} were "
                f"used and {left_out} left out for a reason, which does not "
                "add up. Please report this as an error of align_keras."
            )
