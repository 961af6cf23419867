"""MT-Bench: dialogues of two turns upon the model's own answers, kept in FastChat's format, judged if a judge is named.

A class, since only a class sees ``--metadata`` and the model arguments, which say where answers go and who judges them.
``aft_mt_bench.yaml`` names it. File formats and judging are in ``lm_eval_aft.judging.mt_bench``.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from lm_eval_aft.core.errors import AFTError, ConfigError
from lm_eval_aft.core.log import log
from lm_eval_aft.core.names import display_name
from lm_eval_aft.judging.mt_bench.data import (
    CATEGORIES,
    FOLDER,
    TASK,
    TEMPERATURES,
    Material,
    dialogue,
    parse_response,
    write_answers,
)
from lm_eval_aft.judging.mt_bench.in_run import RunJudge, Words
from lm_eval_aft.judging.mt_bench.scores import MissingRatings, Scores, show

WORDS, MISSING, PREDICTED = "words_per_turn", "judge_missing", "bypass"
NO_SCORE = "N/A"  # what lm-eval itself prints where there is no number
PREDICTED_VALUE = 999  # lm-eval's own value for answers that were not scored
BASELINE = "run the baseline as --model aft with layers=0, which answers plainly"


def dialogues(docs: Any) -> Any:
    """The questions with FastChat's names and numbers, whatever the data set calls them."""
    rows = [dialogue(row, place) for place, row in enumerate(docs)]
    columns = {
        "place": list(range(len(rows))),
        "question_id": [row.question_id for row in rows],
        "category": [row.category for row in rows],
        "turns": [list(row.turns) for row in rows],
        "reference": [list(row.reference) for row in rows],
    }
    from datasets import Dataset

    return Dataset.from_dict(columns)


def first_turn(doc: dict[str, Any]) -> str:
    """What the user says first."""
    return str(doc["turns"][0])


class MTBench(ConfigurableTask):
    """Answers, their length, and ratings if ``--metadata`` names a judge."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})
        self.model: Any = None
        self.run_judge: RunJudge | None = None
        self.scores: Scores | None = None
        self.missing: int | None = None

    def build_all_requests(self, *, chat_template: Callable[..., str] | None = None, **options: Any) -> None:
        """Refuse what cannot hold a dialogue, and find what the judge needs, before anything is generated."""
        if chat_template is None:
            raise ConfigError(f"{TASK} is a dialogue: run it with --model aft and --apply_chat_template.")
        self.model, self.scores = getattr(chat_template, "__self__", None), None
        if not getattr(self.model, "answers_turns", False):
            raise ConfigError(
                f"{TASK} needs a model that answers turn by turn, which only --model aft does: {BASELINE}."
            )
        if PREDICTED not in self._metric_fn_list:
            asked = [dialogue(doc) for doc in self.eval_docs]
            self.run_judge = RunJudge.of(self.config.metadata or {}, asked, self.model.config.record)
        super().build_all_requests(chat_template=chat_template, **options)

    def construct_requests(self, doc: dict[str, Any], ctx: Any, **kwargs: Any) -> Instance:
        """The first turn as context, the later ones and the category's temperature beside it."""
        request = super().construct_requests(doc, ctx, **kwargs)
        context, given = request.args
        named = {"temperature", "do_sample"} & set(given)
        sampling = {} if named else {"temperature": TEMPERATURES[doc["category"]]}
        request.arguments = (context, {**given, **sampling, "turns": list(doc["turns"][1:])})
        return request

    def process_results(self, doc: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
        """Words per turn; every other metric is made of all answers together."""
        asked = dialogue(doc)
        try:
            answer = parse_response(asked, results[0])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{TASK} got something else than the answers of all turns: {BASELINE}.") from error
        words = Words.of(doc["place"], asked, answer)
        first, *others = self.aggregation()
        return {first: words, **dict.fromkeys(others)}

    def aggregation(self) -> dict[str, Callable[[Sequence[Any]], Any]]:
        """The first one gets the answers, writes them and has them judged; the others look up what came of it."""
        if PREDICTED in self._metric_fn_list:
            return {PREDICTED: self._predicted}
        named = {name: lambda _, name=name: self._score(name) for name in self._judged_names()}
        return {WORDS: self._answered, **named}

    def higher_is_better(self) -> dict[str, bool | None]:
        """A longer answer or a wider spread is neither better nor worse."""
        neutral = {name for name in self.aggregation() if name in (WORDS, PREDICTED) or name.endswith("_spread")}
        return {name: None if name in neutral else name != MISSING for name in self.aggregation()}

    def _judged_names(self) -> list[str]:
        if self.run_judge is None:
            return []
        spread = ["spread"] if self.run_judge.plan.repeats > 1 else []
        names = ["score", "turn_1", "turn_2", *CATEGORIES, *spread]
        return [*(f"{self.run_judge.prompts.name}_{name}" for name in names), MISSING]

    def _predicted(self, words: Sequence[Words]) -> int:
        self._write(words)
        return PREDICTED_VALUE

    def _answered(self, words: Sequence[Words]) -> float:
        """Only the process that gathers all answers comes here."""
        material = self._write(words)
        if self.run_judge is None:
            out = "OUT (OUT is --output_path, and --log_samples must be on)"
            run = shlex.quote(str(material.folder.parent)) if material else out
            log.info("Judge later with: aft judge mt_bench %s --judge-model NAME --judge-base-url URL", run)
        elif material:
            self.scores = self._judge(self.run_judge, material)
        return fmean(words)

    def _judge(self, judge: RunJudge, material: Material) -> Scores | None:
        """The scores; if it fails lm-eval must still save the answers, so that is said, and there is no score."""
        try:
            scores = judge.judge(material, log.info)
            self.missing = scores.missing
        except AFTError as error:
            self.missing = error.missing if isinstance(error, MissingRatings) else None
            log.error("%s has no scores: %s", TASK, error)
            log.error("Its answers are kept; go on with: %s", judge.command(material.folder.parent))
            return None
        log.info("%s", show(scores))
        return scores

    def _score(self, name: str) -> Any:
        if name == MISSING:
            return NO_SCORE if self.missing is None else self.missing
        return self.scores.metrics().get(name, NO_SCORE) if self.scores else NO_SCORE

    def _write(self, words: Sequence[Words]) -> Material | None:
        """Keep the answers in FastChat's format where ``record=`` names a folder; None where it does not."""
        config = self.model.config
        if not config.record:
            return None
        rows = sorted((one.row for one in words), key=lambda row: row[0])  # several processes deliver in turn
        asked, answers = tuple(row[1] for row in rows), tuple(row[2] for row in rows)
        name, folder = display_name(self.model.name, config.k, config.layers), Path(config.record, FOLDER)
        log.info("%d answers are in %s.", len(answers), write_answers(folder, name, asked, answers))
        return Material(name, asked, answers, folder)
