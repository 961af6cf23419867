"""What the base learns from: its tokenizer, its prompts, and documents of solved problems."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

from lm_eval_aft.bundled import arith
from lm_eval_aft.bundled.arith import Problem, Way
from trainers.family.settings import FamilyConfig, Stage

WORDS = ("<pad>", "<unk>", "<draft>", "<ask>", "<answer>", "<end>", "make", "=", ";", "+", "-", "*")
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + ' ' }}"
    "{% elif m['role'] == 'user' %}{{ '<ask> ' + m['content'] + ' ' }}"
    "{% else %}{{ '<answer> ' + m['content'] + ' <end> ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<answer> ' }}{% endif %}"
)
# Each draft answers a question that names the number it reaches. The model has to compare that number with the target.
PROMPT_TEMPLATE = (
    "{% block draft %}{% endblock %}"
    "{% block aggregate %}{% for draft in drafts %}<draft> {{ question.split(' make ') | first }} make "
    "{{ draft.split() | last }} <answer> {{ draft }} <end> {% endfor %}{% endblock %}"
)
# "<ask>", the numbers, "make", the target and "<answer>".
QUESTION_TOKENS = arith.COUNT + 4
# A step has five words and a separator. The separator of the last step is "<end>".
ANSWER_TOKENS = 6 * (arith.COUNT - 1)


def make_tokenizer() -> Any:
    """A tokenizer with one token a word: whole numbers, operators and the marks of the prompt."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = [*WORDS, *map(str, range(arith.LIMIT + 1))]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        additional_special_tokens=["<draft>", "<ask>", "<answer>"],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def document(config: FamilyConfig, stage: Stage, stream: Iterator[tuple[Problem, Way]], rng: random.Random) -> str:
    """Several answered problems, then some of the right ones again.

    A mismatched example asks for the target of the problem before it.
    """
    shares_numbers = rng.random() < stage.shared_numbers_share
    related = _same_numbers(config.problems, stream, rng) if shares_numbers else []
    solved = [*related, *islice(stream, config.problems - len(related))]
    parts, right, previous = [], [], 0
    for problem, way in solved:
        # The first problem has none before it, so at least one example is right.
        mismatched = previous and rng.random() < stage.mismatched_share and previous != problem.target
        question = (Problem(problem.numbers, previous) if mismatched else problem).question
        parts.append(f"<ask> {question} <answer> {arith.write(way)} <end>")
        right += [] if mismatched else parts[-1:]
        previous = problem.target
    return " ".join([*parts, *(rng.choice(right) for _ in range(config.repeats))])


def _same_numbers(count: int, stream: Iterator[tuple[Problem, Way]], rng: random.Random) -> list[tuple[Problem, Way]]:
    """Up to ``count`` problems with the same numbers and different targets, found in sixty tries."""
    problem, way = next(stream)
    solved = {problem.target: (problem, way)}
    for _ in range(60):
        if len(solved) == count:
            break
        other = arith.random_way(problem.numbers, rng)
        if other is not None:
            solved.setdefault(other[-1].result, (Problem(problem.numbers, other[-1].result), other))
    return list(solved.values())
