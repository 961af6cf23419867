"""What aggregation did, for the page: its sentences, two pictures, and the tables."""

from __future__ import annotations

from collections.abc import Iterator

from lm_eval_aft.analysis.diagnosis import Diagnostics
from lm_eval_aft.analysis.report.diagnosis_tables import count_text, diagnostics_panel
from lm_eval_aft.analysis.report.page.data import Aggregation, PositionCopies, RightDrafts


def aggregation(diagnostics: Diagnostics, run: str) -> Aggregation:
    """What the page shows of one run on one task; ``run`` is its label."""
    voted = diagnostics.k > 1 and diagnostics.layers and not diagnostics.scored
    return Aggregation(
        diagnostics_panel(diagnostics, run),
        diagnostics.k,
        tuple(_by_right_drafts(diagnostics)) if voted else (),
        tuple(_copies(diagnostics)),
    )


def _by_right_drafts(diagnostics: Diagnostics) -> Iterator[RightDrafts]:
    for share in diagnostics.vote_shares:
        vote = "" if share.majority is None else f"{share.majority:.0%}"
        questions = count_text(share.questions)
        yield RightDrafts(share.right_drafts, questions, share.answer, share.majority, f"{share.answer:.0%}", vote)


def _copies(diagnostics: Diagnostics) -> Iterator[PositionCopies]:
    """Copies of the drafts by the answers. The last reading is that of the drafts."""
    reading = diagnostics.readings[-1] if diagnostics.readings else None
    if reading is None or not reading.copies:
        return
    for place, count in enumerate(reading.copies_by_position):
        share = count / reading.texts
        yield PositionCopies(place + 1, share, f"{share:.1%} ({count_text(count)})")
