"""Multiple choice after drafts: one set of drafts a question, every choice scored under the aggregation prompt."""

from __future__ import annotations

import math

import pytest
import torch
from lm_eval.api.instance import Instance

from lm_eval_aft.config import AFTConfig
from lm_eval_aft.errors import ConfigError, PromptTooLong
from lm_eval_aft.mcq import orders
from lm_eval_aft.model import AFTLM
from lm_eval_aft.prompts import Template, aggregate_prompt
from lm_eval_aft.store import NoStore, SQLiteStore
from lm_eval_aft.traces import read_traces

TEMPLATE = Template.load(None)
QUESTIONS = ("Question: what barks?\nAnswer:", "Question: what is 2 + 2?\nAnswer:")
CHOICES = (" a dog", " a cat", " it")


def instances(contexts=QUESTIONS, choices=CHOICES) -> list[Instance]:
    return [
        Instance("loglikelihood", {"q": context}, (context, choice), index, metadata=("quiz", doc, 1))
        for doc, context in enumerate(contexts)
        for index, choice in enumerate(choices)
    ]


def model(engine, store=None, **given) -> AFTLM:
    settings = {"mcq": "drafts", "k": 3, "layers": 1, "draft_max_tokens": 6, **given}
    return AFTLM.around(engine, AFTConfig.split(settings)[0], TEMPLATE, store or NoStore(), "tiny")


def close(found, expected) -> bool:
    pairs = zip(found, expected, strict=True)
    return all(math.isclose(a, b, abs_tol=1e-4) and x == y for (a, x), (b, y) in pairs)


def directly(lm: AFTLM, shown: list[str], question: int = 0) -> list[tuple[float, bool]]:
    """log p(choice | aggregation prompt) by one forward pass of the whole sequence a choice."""
    engine = lm.engine
    chat = next(read for read in lm.asked if QUESTIONS[question] in read.messages[-1].content)
    prompt = aggregate_prompt(TEMPLATE, engine.renderer, chat, shown, 8000, final=True).prompt.token_ids
    scores = []
    for choice in CHOICES:
        ids = engine.tokenizer.encode(choice, add_special_tokens=False)
        with torch.inference_mode():
            logits = engine.model(torch.tensor([[*prompt, *ids]])).logits[0, -len(ids) - 1 : -1].float()
        rows = logits.log_softmax(-1)
        scores.append((sum(float(row[i]) for row, i in zip(rows, ids, strict=True)), logits.argmax(-1).tolist() == ids))
    return scores


@pytest.fixture
def lm(tiny_engine, tmp_path) -> AFTLM:
    made = model(tiny_engine, record=str(tmp_path / "traces"))
    made.found = made.loglikelihood(instances(), disable_tqdm=True)
    made.traces = list(read_traces(tmp_path / "traces"))
    made.asked = [trace.question.chat for trace in made.traces]
    return made


def test_scores_are_log_probabilities_under_the_aggregation_prompt(lm):
    for number, trace in enumerate(lm.traces):
        shown = [draft.completion.text for draft in trace.layer(0)]
        expected = directly(lm, shown, number)
        assert close(lm.found[3 * number : 3 * number + 3], expected)
        assert trace.scores == tuple(value for value, _ in lm.found[3 * number : 3 * number + 3])
        assert trace.answer == CHOICES[trace.scores.index(max(trace.scores))]


def test_lm_evals_own_scoring_of_these_tokens_gives_the_same(lm, tiny_engine):
    prompts = [tiny_engine.renderer.encode(chat).token_ids for chat in lm.asked]
    choices = [[tuple(tiny_engine.tokenizer.encode(c, add_special_tokens=False)) for c in CHOICES]] * 2
    flat = [(("", ""), list(p), list(c)) for p, own in zip(prompts, choices, strict=True) for c in own]
    expected = tiny_engine.scorer._loglikelihood_tokens(flat, disable_tqdm=True)
    found = tiny_engine.score_choices(prompts, choices)
    assert close([score for own in found for score in own], expected)
    single = [[(ids[0][0],), (ids[1][1],)] for ids in choices]  # one token each: no second forward pass
    expected = [(("", ""), list(p), list(c)) for p, own in zip(prompts, single, strict=True) for c in own]
    found = [score for own in tiny_engine.score_choices(prompts, single) for score in own]
    assert close(found, tiny_engine.scorer._loglikelihood_tokens(expected, disable_tqdm=True))


def test_a_batch_that_holds_one_prompt_gives_the_same(lm, tiny_engine, monkeypatch):
    monkeypatch.setattr(tiny_engine, "_batch_tokens", 4)
    assert close(model(tiny_engine).loglikelihood(instances(), disable_tqdm=True), lm.found)


def test_a_question_is_drafted_once_and_what_it_costs_is_counted(lm):
    assert [len(trace.drafts) for trace in lm.traces] == [3, 3]
    info = lm.get_model_info()["aft"]
    assert (info["mcq"], info["scored_after_drafts"], info["scored_without_aggregation"]) == ("drafts", 2, 0)
    assert (info["usage"]["generations"], info["generations_per_question"]) == (6, 3)
    written = [draft.completion for trace in lm.traces for draft in trace.drafts]
    scored = info["usage"]["computed_prompt_tokens"] - sum(c.computed_prompt_tokens for c in written)
    choice_tokens = sum(len(lm.engine.tokenizer.encode(choice, add_special_tokens=False)) for choice in CHOICES)
    prompts = [
        aggregate_prompt(
            TEMPLATE, lm.engine.renderer, t.question.chat, [d.completion.text for d in t.drafts], 8000, final=True
        ).prompt.prompt_tokens
        for t in lm.traces
    ]
    assert scored == sum(prompts) + 2 * choice_tokens  # each prompt once, each choice once
    asked = info["usage"]["prompt_tokens"] - sum(c.prompt_tokens for c in written)
    assert asked == 3 * sum(prompts) + 2 * choice_tokens


def test_hidden_passes_write_and_the_last_scores(tiny_engine, tmp_path):
    lm = model(tiny_engine, layers=2, record=str(tmp_path))
    lm.loglikelihood(instances(), disable_tqdm=True)
    for trace in read_traces(tmp_path):
        assert [len(trace.layer(layer)) for layer in (0, 1, 2)] == [3, 3, 0]


def test_orders_are_averaged(tiny_engine, tmp_path):
    lm = model(tiny_engine, mcq_orders=3, record=str(tmp_path))
    found = lm.loglikelihood(instances(QUESTIONS[:1]), disable_tqdm=True)
    (trace,) = read_traces(tmp_path)
    lm.asked = [trace.question.chat]
    shown = orders(trace, lm.config)
    written = [draft.completion.text for draft in trace.layer(0)]
    assert shown[0] == written
    assert [sorted(each) for each in shown] == [sorted(written)] * 3
    each = [directly(lm, texts_) for texts_ in shown]
    expected = [(sum(v for v, _ in column) / 3, all(g for _, g in column)) for column in zip(*each, strict=True)]
    assert close(found, expected)


def test_a_second_run_writes_nothing_and_the_seed_decides(tiny_engine, tmp_path):
    store = SQLiteStore(tmp_path / "s.sqlite")
    first, again = model(tiny_engine, store), model(tiny_engine, store)
    scores = first.loglikelihood(instances(), disable_tqdm=True)
    assert close(again.loglikelihood(list(reversed(instances())), disable_tqdm=True), scores[::-1])
    assert first.spent.generated_tokens > 0 == again.spent.generated_tokens
    other = model(tiny_engine, seed=7).loglikelihood(instances(), disable_tqdm=True)
    assert not close(other, scores)


def test_plain_is_the_engine_alone_and_so_is_a_choice_without_a_question(tiny_engine):
    plain = model(tiny_engine, mcq="plain")
    assert plain.loglikelihood(instances(), disable_tqdm=True) != []
    assert plain.get_model_info()["aft"]["scored_without_aggregation"] == 6
    bare = instances(("",))
    expected = tiny_engine.scorer.loglikelihood(bare, disable_tqdm=True)
    drafted = model(tiny_engine)
    assert close(drafted.loglikelihood(bare, disable_tqdm=True), expected)
    assert drafted.usage.generations == 0
    assert close(drafted.loglikelihood([*bare, *instances()], disable_tqdm=True)[:3], expected)


def test_an_engine_without_shared_scoring_is_asked_choice_by_choice(tiny_engine, lm):
    class Plain:
        def __getattr__(self, name):
            if name == "score_choices":
                raise AttributeError(name)
            return getattr(tiny_engine, name)

    other = model(Plain())
    assert close(other.loglikelihood(instances(), disable_tqdm=True), lm.found)
    assert other.usage.computed_prompt_tokens > lm.usage.computed_prompt_tokens
    assert other.usage.prompt_tokens == lm.usage.prompt_tokens


def test_what_cannot_be(tiny_engine):
    for given, said in (
        ({"layers": 0}, "needs layers=1 or more"),
        ({"strategy": "majority"}, "strategy=aggregate, not strategy=majority"),
        ({"mcq": "plain", "mcq_orders": 2}, "mcq_orders is for mcq=drafts"),
        ({"mcq": "both"}, "mcq must be one of plain, drafts"),
    ):
        with pytest.raises(ConfigError, match=said):
            model(tiny_engine, **given)
    with pytest.raises(PromptTooLong):
        model(tiny_engine).loglikelihood(instances(("word " * 4000,)), disable_tqdm=True)
