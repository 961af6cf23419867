"""The cost of each task of a run, and how many of its texts were cut or empty.

The cost of a task comes from its traces. A task without traces gets the mean over the whole run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lm_eval_aft.core.cuts import Cuts, total_cuts
from lm_eval_aft.core.records import Trace
from lm_eval_aft.core.usage import Usage
from lm_eval_aft.inference.dialogue import is_empty
from lm_eval_aft.storage.results import EvalRun

Cost = Literal["tokens", "flops"]
# task, doc_id, repeat, turn
QuestionKey = tuple[str, int, int, int]


@dataclass(frozen=True, slots=True)
class TaskCost:
    """The cost of one task of one run.

    Attributes:
        task: Name of the task.
        questions: Number of questions, by which the cost is divided. Repeats and turns of a question belong to it.
        usage: Logical cost of all questions together.
        own: False if it is the mean over all tasks of the run, since there are no traces.
        texts: Generated texts in the traces; 0 without traces.
        cut: How many of these texts ended at the token limit.
        empty: How many of these texts hold no answer: only white space, or a thought that does not end.
        cuts: How often drafts were cut to fit the context.
    """

    task: str
    questions: int
    usage: Usage
    own: bool = True
    texts: int = 0
    cut: int = 0
    empty: int = 0
    cuts: Cuts = field(default_factory=Cuts)

    @property
    def generations(self) -> float:
        """Generations a question."""
        return self.usage.generations / self.questions

    @property
    def generated_tokens(self) -> float:
        """Generated tokens a question."""
        return self.usage.generated_tokens / self.questions

    @property
    def prompt_tokens(self) -> float:
        """Prompt tokens a question; each generation counts with its whole prompt."""
        return self.usage.prompt_tokens / self.questions

    @property
    def flops(self) -> float | None:
        """FLOPs a question; None if the shape of the model is unknown."""
        return self.usage.flops / self.questions if self.usage.flops else None


def trace_cost(trace: Trace) -> TaskCost:
    """The cost of one trace."""
    texts = trace.drafts
    cut, empty = sum(text.cut for text in texts), sum(is_empty(trace.question, text) for text in texts)
    return TaskCost(
        trace.question.task, 1, trace.usage, texts=len(texts), cut=cut, empty=empty, cuts=total_cuts([trace])
    )


def task_costs(run: EvalRun, traced: Mapping[QuestionKey, TaskCost]) -> dict[str, TaskCost]:
    """The cost of each task; empty if another model than ours was run.

    Args:
        run: The run.
        traced: The cost of each of its traces.
    """
    if run.settings is None or run.usage is None or not run.usage.prompt_tokens:
        return {}
    from_traces = _sums(traced)
    questions = {task: run.conditions[task].questions for task in run.tasks}
    if len(questions) == 1 and not from_traces:
        ((task, count),) = questions.items()
        return {task: TaskCost(task, count, run.usage)}
    mean = {task: TaskCost(task, sum(questions.values()), run.usage, own=False) for task in questions}
    return {**mean, **from_traces}


def _sums(traced: Mapping[QuestionKey, TaskCost]) -> dict[str, TaskCost]:
    """The sums of the costs by task."""
    documents: dict[str, set[int]] = {}
    parts: dict[str, list[TaskCost]] = {}
    for (task, doc_id, _, _), cost in traced.items():
        documents.setdefault(task, set()).add(doc_id)
        parts.setdefault(task, []).append(cost)
    return {
        task: TaskCost(
            task,
            len(documents[task]),
            sum((cost.usage for cost in costs), Usage()),
            texts=sum(cost.texts for cost in costs),
            cut=sum(cost.cut for cost in costs),
            empty=sum(cost.empty for cost in costs),
            cuts=sum((cost.cuts for cost in costs), Cuts()),
        )
        for task, costs in parts.items()
    }
