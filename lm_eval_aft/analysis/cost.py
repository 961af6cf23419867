"""The cost of each task of a run, and how many of its texts were cut or empty.

The cost of a task comes from its traces. The cost of a run is known as a whole, so it also tells the cost of a task
without traces if no other task lacks them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from lm_eval_aft.core.cuts import Cuts, total_cuts
from lm_eval_aft.core.records import Trace
from lm_eval_aft.core.usage import Usage, total
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
        own: False if it is the mean over several tasks without traces.
        texts: Generated texts in the traces; 0 without traces.
        cut: How many of these texts ended at the token limit.
        empty: How many of these texts hold no answer: only white space, or a thought that does not end.
        cuts: How often drafts were cut to fit the context.
        answers: Answers in the traces, each repeat and each turn counted; 0 without traces.
        total_money: What all questions together cost in money; None if that is unknown.
    """

    task: str
    questions: int
    usage: Usage
    own: bool = True
    texts: int = 0
    cut: int = 0
    empty: int = 0
    cuts: Cuts = field(default_factory=Cuts)
    answers: int = 0
    total_money: float | None = None

    @property
    def money(self) -> float | None:
        """Money a question; None if that is unknown."""
        return None if self.total_money is None else self.total_money / self.questions

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
        trace.question.task,
        1,
        trace.usage,
        texts=len(texts),
        cut=cut,
        empty=empty,
        cuts=total_cuts([trace]),
        answers=1,
    )


def costs_by_task(traced: Mapping[QuestionKey, TaskCost]) -> dict[str, TaskCost]:
    """The cost of each task with traces, from the cost of each trace."""
    documents: dict[str, set[int]] = {}
    parts: dict[str, list[TaskCost]] = {}
    for (task, doc_id, _, _), cost in traced.items():
        documents.setdefault(task, set()).add(doc_id)
        parts.setdefault(task, []).append(cost)
    return {task: _sum(task, len(documents[task]), costs) for task, costs in parts.items()}


def cost_of_tasks(run: EvalRun, name: str, traced: Mapping[str, TaskCost]) -> TaskCost | None:
    """The cost of a task, or of all tasks in a group together; None if it is not known.

    Tasks without traces cost what is left of the run's total. So it is known for all of them together only.

    Args:
        run: The run.
        name: A task or a group of the run.
        traced: See ``costs_by_task``.
    """
    tasks = run.tasks_of(name)
    parts = [traced[task] for task in tasks if task in traced]
    untraced = [task for task in run.conditions if task not in traced]
    if rest := [task for task in tasks if task in untraced]:
        usage = _rest(run, traced)
        if usage is None or len(rest) < len(untraced):
            return None
        parts.append(TaskCost(name, _questions(run, rest), usage))
    return _sum(name, sum(part.questions for part in parts), parts) if parts else None


def task_costs(run: EvalRun, traced: Mapping[str, TaskCost]) -> dict[str, TaskCost]:
    """The cost of each task; empty if another model than ours was run.

    Several tasks without traces share the mean of what they cost together. A task that generates nothing has no part
    in it.

    Args:
        run: The run.
        traced: See ``costs_by_task``.
    """
    costs = {task: cost for task in run.conditions if (cost := cost_of_tasks(run, task, traced))}
    shared = [task for task in run.conditions if task not in costs and run.conditions[task].generates]
    usage = _rest(run, traced)
    if usage is None or not shared:
        return costs
    if len(costs) + len(shared) < len(run.conditions):
        # The rest reads prompts too, and how many is not known.
        usage = replace(usage, prompt_tokens=0, computed_prompt_tokens=0, flops=0)
    return costs | {task: TaskCost(task, _questions(run, shared), usage, own=False) for task in shared}


def _rest(run: EvalRun, traced: Mapping[str, TaskCost]) -> Usage | None:
    """What the tasks without traces cost together; None if it is not known."""
    if run.settings is None or run.usage is None or not run.usage.prompt_tokens:
        return None
    if any(cost.questions < run.conditions[task].questions for task, cost in traced.items() if task in run.conditions):
        return None
    spent = total([cost.usage for cost in traced.values()])
    rest = {field.name: getattr(run.usage, field.name) - getattr(spent, field.name) for field in fields(Usage)}
    return Usage(**rest) if min(rest.values()) >= 0 else None


def _questions(run: EvalRun, tasks: Sequence[str]) -> int:
    return sum(run.conditions[task].questions for task in tasks)


def _sum(name: str, questions: int, costs: Sequence[TaskCost]) -> TaskCost:
    return TaskCost(
        name,
        questions,
        total([cost.usage for cost in costs]),
        texts=sum(cost.texts for cost in costs),
        cut=sum(cost.cut for cost in costs),
        empty=sum(cost.empty for cost in costs),
        cuts=sum((cost.cuts for cost in costs), Cuts()),
        answers=sum(cost.answers for cost in costs),
    )
