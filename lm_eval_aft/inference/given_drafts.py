"""``drafts_from=FOLDER``: the drafts of another run, aggregated instead of new ones."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from lm_eval_aft.core.errors import RecordError
from lm_eval_aft.core.records import Draft, Question, Sampling
from lm_eval_aft.storage.traces import read_traces

# What the traces of a run with given drafts say of the other run.
SOURCE_SETTINGS = ("model", "fingerprint", "strategy", "k", "layers", "seed", "temperature", "top_p", "top_k")


@dataclass
class GivenDrafts:
    """The drafts of another run, by question.

    Attributes:
        folder: Folder of that run's traces.
        source: That run's model, fingerprint, k and sampling.
    """

    folder: str
    source: dict[str, object] = field(default_factory=dict)
    _drafts: dict[tuple[str, int], tuple[Draft, ...]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str) -> GivenDrafts:
        """Read a folder of traces.

        Raises:
            RecordError: If there are none, or they come from several runs.
        """
        drafts: dict[tuple[str, int], tuple[Draft, ...]] = {}
        settings: dict[str, Any] = {}
        # By task: a task may set the maximum length of its texts.
        sampling: dict[str, Sampling] = {}
        for trace in read_traces(folder):
            question, settings = trace.question, settings or trace.set_settings
            task_sampling = sampling.setdefault(question.task, question.drafts)
            if trace.set_settings != settings or task_sampling != question.drafts:
                raise RecordError(f"drafts_from={folder} holds the traces of several runs: give the folder of one.")
            drafts[question.chat.identity, question.repeat] = trace.layer(0)
        source = {name: settings.get(name) for name in SOURCE_SETTINGS}
        source |= {"proposers": settings["proposers"]} if settings.get("proposers") else {}
        return cls(folder, source, drafts)

    def of(self, question: Question, k: int) -> tuple[Draft, ...]:
        """The first k drafts of a question.

        Raises:
            RecordError: If the other run does not have the question, or has fewer drafts of it.
        """
        drafts = self._drafts.get((question.chat.identity, question.repeat), ())
        if len(drafts) < k:
            raise RecordError(
                f"drafts_from={self.folder} has {len(drafts)} drafts of document {question.doc_id} of "
                f"{question.task}, and k={k} needs {k}: make its traces with k={k} or more, without stop_when, "
                "on the same prompts and --limit, or lower k."
            )
        return tuple(replace(draft, reused=True, elapsed_s=0.0) for draft in drafts[:k])
