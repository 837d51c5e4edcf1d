"""Drop pairs whose caption does not fit the image, by their scores."""

import fractions
from typing import Annotated
from typing import Literal

from align_keras.curation.rule_parts import drop_unless
from align_keras.curation.rule_parts import first_ranks
from align_keras.curation.rule_parts import int64
from align_keras.curation.rule_parts import union
from align_keras.curation.rules import Limits
from align_keras.curation.rules import SignedBound
from align_keras.curation.rules import rule
from align_keras.io.optional import OptionalModule

ibis = OptionalModule("ibis", extra="curation")

# The audit draws this number as a line.
LOWEST = "lowest score that stays"


def _one_bound(parameters):
    given = [n for n in ("at_least", "keep_share") if parameters[n] is not None]
    if len(given) != 1:
        raise ValueError("it needs one of at_least and keep_share")


def _lowest(evidence):
    """Return the lowest score that stays, or `None` if none does."""
    least = evidence.parameters["at_least"]
    if least is None:
        (found,) = evidence.collect(evidence.table("lowest"))
        least = found["lowest"]
    return least


def _score_of(evidence, row):
    score = evidence.score(row)
    if score is None:
        return "it has no score"
    lowest = _lowest(evidence)
    stays = "none stays" if lowest is None else f"{lowest:.6g} or more stays"
    return f"its score is {score:.6g}, and {stays}"


def _account(evidence):
    rows = evidence.counted()
    without = rows.anti_join(evidence.scores(), "row_id")
    (found,) = evidence.collect(without.agg(rows=without.count()))
    stay = evidence.parameters["missing"] == "keep"
    words = "rows without a score, which " + ("stay" if stay else "go")
    lowest = _lowest(evidence)
    told = {} if lowest is None else {LOWEST: lowest}
    return {words: found["rows"], **told}


@rule("score", check=_one_bound, why=_score_of, account=_account)
def similarity(
    rows,
    *,
    at_least: SignedBound = None,
    keep_share: Annotated[
        float | None, Limits("be above 0 and at most 1", 1e-6, 1)
    ] = None,
    missing: Literal["keep", "drop"] = "drop",
    scores,
    stage,
):
    """Drop rows whose score from `align-keras score` is too low.

    `keep_share: 0.3` ranks all rows that have a score, and keeps the best 30 %
    of them, rounded down, and all that tie at the last rank. A row without a
    score is dropped, or kept with `missing: keep`.
    """
    known = rows.select("row_id").join(scores, "row_id")
    if at_least is not None:
        dropped = drop_unless(known, known.score >= at_least)
    else:
        # Compare integers, so that 0.3 of ten rows is exactly three.
        share = fractions.Fraction(repr(keep_share)).limit_denominator(10**6)
        most = known.count() * int64(share.numerator)
        most = known.agg(most=most).as_scalar()
        below = int64(share.denominator)
        lowest = first_ranks(known, "score", lambda rank: rank * below <= most)
        lowest = stage("lowest", lowest).lowest.as_scalar()
        dropped = drop_unless(known, known.score >= lowest)
    if missing == "keep":
        return dropped
    without = rows.anti_join(scores, "row_id").select("row_id")
    return union([dropped, without])
