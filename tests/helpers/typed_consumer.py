"""A program that uses the public names. `make lint` checks it by mypy in strict mode, as a user would."""

from collections.abc import Iterator

import lm_eval_aft
from lm_eval_aft import AFTError


def labels(folder: str) -> list[str]:
    return [entry.label for entry in lm_eval_aft.read_runs(folder)]


def scores(folder: str) -> dict[str, float]:
    return {score.metric: score.value for entry in lm_eval_aft.read_runs(folder) for score in entry.run.scores}


def verdicts(baseline: str, other: str) -> list[str]:
    compared = lm_eval_aft.compare(baseline, other, tasks="gsm8k", level=0.9)
    return [comparison.verdict for comparison in compared.comparisons]


def oracle(folder: str) -> float:
    (votes,) = lm_eval_aft.votes(folder)
    return votes.points[-1].oracle.estimate


def fixed(folder: str) -> int:
    return sum(diagnosis.diagnostics.questions for diagnosis in lm_eval_aft.diagnose(folder))


def texts(folder: str) -> Iterator[str]:
    for trace in lm_eval_aft.read_traces(folder):
        yield from (draft.completion.text for draft in trace.drafts)


def rows(folder: str) -> int:
    frames = lm_eval_aft.frames(folder, regex=r"\d+")
    return len(frames.runs) + len(frames.samples) + len(frames.drafts)


def main() -> str:
    lm_eval_aft.register()
    try:
        return f"{lm_eval_aft.__version__} {lm_eval_aft.tasks_path()} {labels('out')}"
    except AFTError as error:
        return str(error)
