"""MT-Bench as dialogues of two turns: answers in FastChat's format, and ratings if the run names a judge.

The task is a class, since lm-eval shows ``--metadata`` and the model arguments to classes only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from lm_eval.api.instance import Instance

from lm_eval_aft.core.arguments import refuse_secrets
from lm_eval_aft.core.errors import AFTError, ConfigError
from lm_eval_aft.core.log import log
from lm_eval_aft.core.names import display_name
from lm_eval_aft.judging.judged_task import JudgedTask
from lm_eval_aft.judging.mt_bench.data import (
    CATEGORIES,
    MT_BENCH_FOLDER,
    MT_BENCH_TASK,
    TEMPERATURES,
    AnswerSet,
    parse_question,
    parse_response,
    write_answers,
)
from lm_eval_aft.judging.mt_bench.in_run import MTBenchRunJudge, WordsPerTurn
from lm_eval_aft.judging.mt_bench.scores import MissingRatings, MTBenchScores
from lm_eval_aft.judging.tasks import (
    BYPASS,
    BYPASS_VALUE,
    JUDGE_MISSING,
    NO_SCORE,
    log_failure,
    log_how_to_judge,
)

WORDS = "words_per_turn"
BASELINE = "run the baseline as --model aft with layers=0, which answers without aggregation"


def dialogues(docs: Any) -> Any:
    """The questions under FastChat's column names and numbers, from FastChat's file or the hub's data set."""
    questions = [parse_question(row, place) for place, row in enumerate(docs)]
    columns = {
        "place": list(range(len(questions))),
        "question_id": [question.question_id for question in questions],
        "category": [question.category for question in questions],
        "turns": [list(question.turns) for question in questions],
        "reference": [list(question.reference) for question in questions],
    }
    from datasets import Dataset

    return Dataset.from_dict(columns)


def first_turn(doc: dict[str, Any]) -> str:
    """What the user says first."""
    return str(doc["turns"][0])


def _add_dialogue(request: Instance, doc: dict[str, Any]) -> None:
    """Add the later turns to a request's settings, and the temperature of the category unless one is chosen."""
    context, settings = request.args
    chosen = {"temperature", "do_sample"} & set(settings)
    sampling = {} if chosen else {"temperature": TEMPERATURES[doc["category"]]}
    request.arguments = (context, {**settings, **sampling, "turns": list(doc["turns"][1:])})


class MTBench(JudgedTask):
    """Answers, their length, and ratings if ``--metadata`` names a judge."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.model: Any = None
        self.run_judge: MTBenchRunJudge | None = None
        self.scores: MTBenchScores | None = None
        self.missing: int | None = None

    def build_all_requests(self, *, chat_template: Callable[..., str] | None = None, **options: Any) -> None:
        """Refuse models that cannot hold a dialogue, and read what the judge needs, before anything is generated."""
        if chat_template is None:
            raise ConfigError(f"{MT_BENCH_TASK} is a dialogue: run it with --model aft and --apply_chat_template.")
        self.model, self.scores = getattr(chat_template, "__self__", None), None
        if not getattr(self.model, "answers_turns", False):
            raise ConfigError(
                f"{MT_BENCH_TASK} needs a model that answers turn by turn, which only --model aft does: {BASELINE}."
            )
        settings = self.config.metadata or {}
        refuse_secrets(settings, "--metadata")
        if not self.predict_only:
            questions = [parse_question(doc) for doc in self.eval_docs]
            self.run_judge = MTBenchRunJudge.from_metadata(settings, questions, self.model.config.record)
        super().build_all_requests(chat_template=chat_template, **options)

    def construct_requests(self, doc: dict[str, Any], ctx: Any, **kwargs: Any) -> Any:
        """A request with the first turn as its context, and with later turns and temperature among its settings."""
        made = super().construct_requests(doc, ctx, **kwargs)
        # lm-eval 0.4 makes one request, and 0.5 a list of one.
        for request in made if isinstance(made, list) else [made]:
            _add_dialogue(request, doc)
        return made

    def process_results(self, doc: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
        """Words per turn, and None for each score of the judge. The first value carries the answer."""
        question = parse_question(doc)
        try:
            answer = parse_response(question, results[0])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{MT_BENCH_TASK} did not get the answers of all turns: {BASELINE}.") from error
        words = WordsPerTurn.of(doc["place"], question, answer)
        first, *others = self.aggregation()
        return {first: words, **dict.fromkeys(others)}

    def aggregation(self) -> dict[str, Callable[[Sequence[Any]], Any]]:
        """The function of each metric. The first one has the answers judged; the others read its scores."""
        if self.predict_only:
            return {BYPASS: self._predicted}
        judged = {name: lambda _, name=name: self._score(name) for name in self._judged_names()}
        return {WORDS: self._answered, **judged}

    def higher_is_better(self) -> dict[str, bool | None]:
        """True for ratings, False for missing judgements; None for words and spread, where neither is better."""
        neutral = {name for name in self.aggregation() if name in (WORDS, BYPASS) or name.endswith("_spread")}
        return {name: None if name in neutral else name != JUDGE_MISSING for name in self.aggregation()}

    def _judged_names(self) -> list[str]:
        if self.run_judge is None:
            return []
        spread = ["spread"] if self.run_judge.rating.repeats > 1 else []
        names = ["score", "turn_1", "turn_2", *CATEGORIES, *spread]
        return [*(f"{self.run_judge.prompts.name}_{name}" for name in names), JUDGE_MISSING]

    def _predicted(self, words: Sequence[WordsPerTurn]) -> int:
        self._write(words)
        return BYPASS_VALUE

    def _answered(self, words: Sequence[WordsPerTurn]) -> float:
        """Write the answers and have them judged. lm-eval aggregates in one process only, so this happens once."""
        answer_set = self._write(words)
        if self.run_judge is None:
            log_how_to_judge("mt_bench", answer_set.folder.parent if answer_set else None)
        elif answer_set:
            self.scores = self._judge(self.run_judge, answer_set)
        return fmean(words)

    def _judge(self, judge: MTBenchRunJudge, answer_set: AnswerSet) -> MTBenchScores | None:
        """The scores; None if judging fails."""
        try:
            scores = judge.judge(answer_set, log.info)
            self.missing = scores.missing
        except AFTError as error:
            self.missing = error.missing if isinstance(error, MissingRatings) else None
            log_failure(MT_BENCH_TASK, error, judge, answer_set.folder.parent)
            return None
        log.info("%s", scores.describe())
        return scores

    def _score(self, name: str) -> Any:
        if name == JUDGE_MISSING:
            return NO_SCORE if self.missing is None else self.missing
        return self.scores.metrics().get(name, NO_SCORE) if self.scores else NO_SCORE

    def _write(self, words: Sequence[WordsPerTurn]) -> AnswerSet | None:
        """Write the answers in FastChat's format if ``record=`` names a folder, and return them; else None."""
        config = self.model.config
        if not config.record:
            return None
        # lm-eval concatenates the values of several processes
        rows = sorted((one.row for one in words), key=lambda row: row[0])
        questions, answers = tuple(row[1] for row in rows), tuple(row[2] for row in rows)
        name, folder = display_name(self.model.name, config.k, config.layers), Path(config.record, MT_BENCH_FOLDER)
        log.info("%d answers are in %s.", len(answers), write_answers(folder, name, questions, answers))
        return AnswerSet(name, questions, answers, folder)
