"""``drafts_from=FOLDER``: the drafts of another run, aggregated instead of new ones."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from lm_eval_aft.core.errors import RecordError
from lm_eval_aft.core.records import Draft, Question, Sampling
from lm_eval_aft.storage.traces import read_traces


@dataclass
class GivenDrafts:
    """The drafts of another run, by question.

    Attributes:
        source: What that run's traces say of it: model, fingerprint, k and sampling.
    """

    folder: str
    source: dict[str, object] = field(default_factory=dict)
    _drafts: dict[tuple[str, int], tuple[Draft, ...]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str) -> GivenDrafts:
        """Read a folder of traces.

        Raises:
            RecordError: There are none, or they come from several runs.
        """
        made = cls(folder)
        names = ("model", "fingerprint", "strategy", "k", "layers", "seed", "temperature", "top_p", "top_k")
        settings: dict[str, Any] = {}
        sampling: dict[str, Sampling] = {}  # by task, which may bound the texts
        for trace in read_traces(folder):
            asked, settings = trace.question, settings or trace.set_settings
            if trace.set_settings != settings or sampling.setdefault(asked.task, asked.drafts) != asked.drafts:
                raise RecordError(f"drafts_from={folder} holds the traces of several runs: give the folder of one.")
            made._drafts[asked.chat.identity, asked.repeat] = trace.layer(0)
        made.source = {name: settings.get(name) for name in names}
        return made

    def of(self, question: Question, k: int) -> tuple[Draft, ...]:
        """The first k drafts of a question.

        Raises:
            RecordError: The other run has not asked it, or has written fewer.
        """
        drafts = self._drafts.get((question.chat.identity, question.repeat), ())
        if len(drafts) < k:
            raise RecordError(
                f"drafts_from={self.folder} has {len(drafts)} drafts of document {question.doc_id} of {question.task} "
                f"and k={k} are needed: run it with as many, on the same prompts and --limit."
            )
        return tuple(replace(draft, reused=True, elapsed_s=0.0) for draft in drafts[:k])
