"""Count the images of a source, and those that are left out."""

import collections
from collections.abc import Callable

# At most this many are listed by name; all are counted.
MAX_LISTED = 1000


class Tally:
    """Counts the images of a source, and those left out with the reason.

    Args:
        tell: callable. Called with a name and a reason for everything that is
            left out. Defaults to `None`.

    Attributes:
        seen: int. The images that the source names or holds, usable or not.
            The code that reads a source counts each image; the code that uses
            it can check at the end that none was lost.
        reasons: `collections.Counter`. The number left out for each reason.
        listed: list of dicts with `"file"`, `"reason"` and perhaps `"detail"`
            for the first 1000 that were left out.
        looked_at: set of strings. Files of the source that were read or left
            out, to compare with those that it holds.
    """

    def __init__(self, tell: Callable | None = None):
        self.tell = tell
        self.seen = 0
        self.reasons = collections.Counter()
        self.listed = []
        self.looked_at = set()

    def skip(self, name: str, reason: str, detail: str | None = None):
        """Leave out an image that was already counted as seen."""
        self.reasons[reason] += 1
        if self.tell is not None:
            self.tell(name, f"{reason}: {detail}" if detail else reason)
        if len(self.listed) < MAX_LISTED:
            entry = {"file": str(name), "reason": reason}
            self.listed.append(entry | ({"detail": detail} if detail else {}))

    def leave_out(self, name: str, reason: str, detail: str | None = None):
        """Count an image as seen, and leave it out."""
        self.seen += 1
        self.skip(name, reason, detail)

    def summary(self) -> str:
        """Return the counts in words."""
        counts = sorted(self.reasons.items())
        counts = [f"{count} {reason}" for reason, count in counts]
        return ", ".join(counts) or "it holds no images with captions"

    def explain(self) -> str:
        """Return the counts in words, with the first example."""
        told = self.summary()
        if self.listed:
            first = self.listed[0]
            told += f"; the first is {first['file']}"
            told += f": {first['detail']}" if "detail" in first else ""
        return told

    def check(self, used: int):
        """Check that every image seen was either used or left out.

        Raises:
            RuntimeError: The numbers do not add up, which is a bug in this
                package.
        """
        left_out = self.reasons.total()
        if self.seen != used + left_out:
            raise RuntimeError(
                f"Of {self.seen} images that the source holds, {used} were "
                f"used and {left_out} left out for a reason, which does not "
                "add up. Please report this as a bug in align_keras."
            )
