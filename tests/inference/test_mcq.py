"""Multiple choice after drafts: each question is drafted once, and the aggregation prompt scores every choice."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from lm_eval.api.instance import Instance

from helpers.instances import make_instance
from helpers.made_runs import make_run
from helpers.tiny_models import save_tiny
from lm_eval_aft.analysis.diagnosis import diagnose_traces
from lm_eval_aft.analysis.report.diagnosis_tables import diagnostics_panel, panel_text
from lm_eval_aft.analysis.runs import read_entries
from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.errors import ConfigError, EngineError, PromptTooLong
from lm_eval_aft.core.prompts import Template, aggregate_prompt
from lm_eval_aft.engines.hf.engine import HFEngine
from lm_eval_aft.engines.lm_scorer import LMScorer
from lm_eval_aft.engines.scripted import ScriptedEngine
from lm_eval_aft.inference.multiple_choice import orders
from lm_eval_aft.model import AFTLM
from lm_eval_aft.storage.draft_store import NoStore, SQLiteStore
from lm_eval_aft.storage.traces import read_traces

TEMPLATE = Template.load(None)
QUESTIONS = ("Question: what barks?\nAnswer:", "Question: what is 2 + 2?\nAnswer:")
CHOICES = (" a dog", " a cat", " it")


def instances(contexts=QUESTIONS, choices=CHOICES) -> list[Instance]:
    return [
        make_instance("loglikelihood", {"q": context}, (context, choice), index, metadata=("quiz", doc, 1))
        for doc, context in enumerate(contexts)
        for index, choice in enumerate(choices)
    ]


def model(engine, store=None, **changes) -> AFTLM:
    settings = {"mcq": "drafts", "k": 3, "layers": 1, "draft_max_tokens": 6, **changes}
    return AFTLM.around(engine, AFTConfig.split(settings)[0], TEMPLATE, store or NoStore(), "tiny")


def close(scores, expected) -> bool:
    pairs = zip(scores, expected, strict=True)
    return all(math.isclose(a, b, abs_tol=1e-4) and x == y for (a, x), (b, y) in pairs)


def read_by(lm: AFTLM, chat, texts: list[str]) -> str:
    """The aggregation prompt as text."""
    fitted = aggregate_prompt(TEMPLATE, lm.engine.renderer, chat, texts, 8000, final=True)
    return lm.engine.renderer.render(fitted.prompt.chat)


def split(lm: AFTLM, text: str, choice: str) -> tuple[list[int], list[int]]:
    """Prompt and choice as tokens. White space at the end of the prompt belongs to the choice, as in lm-eval."""
    whole, head = lm.engine.tokenizer.encode(text + choice), lm.engine.tokenizer.encode(text.rstrip())
    return head, whole[len(head) :]


def directly(lm: AFTLM, chat, texts: list[str], choices=CHOICES) -> list[tuple[float, bool]]:
    """log p(choice | aggregation prompt), with one forward pass of the whole sequence per choice."""
    scores = []
    for choice in choices:
        head, ids = split(lm, read_by(lm, chat, texts), choice)
        with torch.inference_mode():
            logits = lm.engine.model(torch.tensor([[*head, *ids]])).logits[0, -len(ids) - 1 : -1].float()
        rows = logits.log_softmax(-1)
        scores.append((sum(float(row[i]) for row, i in zip(rows, ids, strict=True)), logits.argmax(-1).tolist() == ids))
    return scores


def drafts(trace) -> list[str]:
    return [draft.completion.text for draft in trace.layer(0)]


@pytest.fixture(scope="module")
def lm(tiny_engine, tmp_path_factory) -> AFTLM:
    folder = tmp_path_factory.mktemp("mcq")
    lm = model(tiny_engine, record=str(folder))
    lm.scores = lm.loglikelihood(instances(), disable_tqdm=True)
    lm.traces = list(read_traces(folder))
    lm.chats = [trace.question.chat for trace in lm.traces]
    return lm


def test_scores_are_log_probabilities_under_the_aggregation_prompt(lm):
    for number, trace in enumerate(lm.traces):
        scores = lm.scores[3 * number : 3 * number + 3]
        assert close(scores, directly(lm, trace.question.chat, drafts(trace)))
        assert trace.scores == tuple(value for value, _ in scores)
        assert trace.answer == CHOICES[trace.scores.index(max(trace.scores))]
        assert trace.cut_tokens == ((0, 0, 0),)


def test_scores_are_those_of_model_hf_on_the_rendered_prompt(lm, tiny_engine):
    prompts = [read_by(lm, trace.question.chat, drafts(trace)) for trace in lm.traces]
    assert close(lm.scores, tiny_engine.scorer.loglikelihood(instances(prompts), disable_tqdm=True))


@pytest.mark.parametrize("kind", ["llama", "sliding", "gemma"])
def test_base_models_and_other_caches(kind, tmp_path):
    engine = HFEngine.load(
        {"pretrained": save_tiny(tmp_path / kind, kind, None), "dtype": "float32"}, HostArgs("auto", None, "cpu")
    )
    lm = model(engine, record=str(tmp_path / "traces"))
    contexts, choices = ("The dog barks and ", "Question: what is 2 + 2?\nAnswer: "), ("runs", "eats", "4", "")
    scores = lm.loglikelihood(instances(contexts, choices), disable_tqdm=True)
    for number, trace in enumerate(read_traces(tmp_path / "traces")):
        assert trace.question.chat.wrapped
        expected = directly(lm, trace.question.chat, drafts(trace), choices)
        assert close(scores[4 * number : 4 * number + 4], expected)


def test_lm_evals_own_scoring_of_these_tokens_gives_the_same(lm, tiny_engine):
    prompts = [tiny_engine.renderer.encode(chat).token_ids for chat in lm.chats]
    choices = [[tuple(tiny_engine.tokenizer.encode(c, add_special_tokens=False)) for c in CHOICES]] * 2
    flat = [(("", ""), list(p), list(c)) for p, own in zip(prompts, choices, strict=True) for c in own]
    expected = tiny_engine.lm._loglikelihood_tokens(flat, disable_tqdm=True)
    scores = [scores for _, scores in sorted(tiny_engine.scorer.score_choices(prompts, choices))]
    assert close([score for own in scores for score in own], expected)
    # Choices of one token need no second forward pass.
    single = [[(ids[0][0],), (ids[1][1],)] for ids in choices]
    expected = [(("", ""), list(p), list(c)) for p, own in zip(prompts, single, strict=True) for c in own]
    scores = [score for _, own in sorted(tiny_engine.scorer.score_choices(prompts, single)) for score in own]
    assert close(scores, tiny_engine.lm._loglikelihood_tokens(expected, disable_tqdm=True))


def test_a_batch_that_holds_one_prompt_gives_the_same(lm, tiny_engine, monkeypatch):
    monkeypatch.setattr(tiny_engine.limits, "tokens", 4)
    assert close(model(tiny_engine).loglikelihood(instances(), disable_tqdm=True), lm.scores)


def test_out_of_memory_halves_the_batch_of_choices_and_one_that_does_not_fit_is_an_error(
    lm, tiny_engine, monkeypatch, caplog
):
    forward = tiny_engine.model.forward

    def limited(**inputs):
        if len(inputs["input_ids"]) > 3:
            raise torch.OutOfMemoryError("simulated: more than three rows")
        return forward(**inputs)

    monkeypatch.setattr(tiny_engine.model, "forward", limited)
    monkeypatch.setattr(tiny_engine.limits, "tokens", 40_000)
    assert close(model(tiny_engine).loglikelihood(instances(), disable_tqdm=True), lm.scores)
    assert "Out of memory" in caplog.text
    monkeypatch.setattr(tiny_engine.model, "forward", lambda **_: limited(input_ids=[0] * 4))
    with pytest.raises(EngineError, match="with 3 choices does not fit into the memory"):
        list(tiny_engine.scorer.score_choices([[5, 6]], [[[7], [8], [9]]]))
    monkeypatch.setattr(tiny_engine.model, "forward", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(tiny_engine.scorer.score_choices([[5, 6]], [[[7], [8], [9]]]))


def test_a_question_is_drafted_once_and_what_it_costs_is_counted(lm):
    assert [len(trace.drafts) for trace in lm.traces] == [3, 3]
    info = lm.get_model_info()["aft"]
    assert (info["mcq"], info["scored_after_drafts"], info["scored_without_aggregation"]) == ("drafts", 2, 0)
    assert (info["usage"]["generations"], info["generations_per_question"]) == (6, 3)
    written = [draft.completion for trace in lm.traces for draft in trace.drafts]
    sheets = [[split(lm, read_by(lm, t.question.chat, drafts(t)), choice) for choice in CHOICES] for t in lm.traces]
    prompt_tokens = sum(len(sheet[0][0]) for sheet in sheets)
    choice_tokens = sum(len(ids) for sheet in sheets for _, ids in sheet)
    scored = info["usage"]["computed_prompt_tokens"] - sum(c.computed_prompt_tokens for c in written)
    # Each prompt and each choice is computed once.
    assert scored == prompt_tokens + choice_tokens
    read = info["usage"]["prompt_tokens"] - sum(c.prompt_tokens for c in written)
    assert read == 3 * prompt_tokens + choice_tokens


def test_hidden_layers_write_and_the_last_layer_scores(tiny_engine, tmp_path):
    lm = model(tiny_engine, layers=2, record=str(tmp_path))
    lm.loglikelihood(instances(), disable_tqdm=True)
    for trace in read_traces(tmp_path):
        assert [len(trace.layer(layer)) for layer in (0, 1, 2)] == [3, 3, 0]


def test_orders_are_averaged(tiny_engine, tmp_path):
    lm = model(tiny_engine, mcq_orders=3, record=str(tmp_path))
    scores = lm.loglikelihood(instances(QUESTIONS[:1]), disable_tqdm=True)
    (trace,) = read_traces(tmp_path)
    read = orders(trace, lm.config)
    assert read[0] == drafts(trace)
    assert [sorted(each) for each in read] == [sorted(drafts(trace))] * 3
    each = [directly(lm, trace.question.chat, texts) for texts in read]
    expected = [(sum(v for v, _ in column) / 3, all(g for _, g in column)) for column in zip(*each, strict=True)]
    assert close(scores, expected)


def test_a_probe_changes_what_is_read(lm, tiny_engine, tmp_path):
    probed = model(tiny_engine, probe="instruction", record=str(tmp_path))
    scores = probed.loglikelihood(instances(QUESTIONS[:1]), disable_tqdm=True)
    (trace,) = read_traces(tmp_path)
    assert drafts(trace) == drafts(lm.traces[0])
    (read,) = orders(trace, probed.config)
    assert sum("pineapple" in text for text in read) == 1
    assert close(scores, directly(lm, trace.question.chat, read))


def test_texts_that_do_not_fit_are_cut_and_the_trace_says_so(tiny_engine, tmp_path):
    # 4,096 tokens hold the question, the choices and a part of the drafts.
    long = QUESTIONS[0] + " word" * 670
    lm = model(tiny_engine, record=str(tmp_path), draft_max_tokens=40)
    assert len(lm.loglikelihood(instances((long,)), disable_tqdm=True)) == 3
    (trace,) = read_traces(tmp_path)
    assert sum(trace.cut_tokens[-1]) > 0


def test_padding_of_several_processes_is_scored_but_not_counted(lm, tiny_engine):
    padded = model(tiny_engine)
    requests = instances()
    scores = padded.loglikelihood([*requests, requests[-1], requests[-1]], disable_tqdm=True)
    assert close(scores, [*lm.scores, lm.scores[-1], lm.scores[-1]])
    assert padded.usage == lm.usage


def test_documents_that_ask_the_same_of_other_choices_are_two(tiny_engine, tmp_path):
    lm = model(tiny_engine, record=str(tmp_path))
    first = instances(("Which?",), ("a", "b"))
    second = [replace(request, metadata=("t", 9, 1), doc_id=9) for request in instances(("Which?",), ("c", "d"))]
    lm.loglikelihood([*first, *second], disable_tqdm=True)
    assert lm.get_model_info()["aft"]["scored_after_drafts"] == 2
    one, two = read_traces(tmp_path)
    assert drafts(one) == drafts(two)
    assert [len(trace.scores) for trace in (one, two)] == [2, 2]
    assert (one.answer in "ab", two.answer in "cd") == (True, True)


def test_several_processes_add_up_what_they_scored_without_aggregation(tiny_engine, monkeypatch):
    plain = model(tiny_engine, mcq="plain")
    monkeypatch.setattr(plain, "gather_object", lambda counts: [counts, counts])
    plain.loglikelihood(instances(), disable_tqdm=True)
    monkeypatch.setattr(
        tiny_engine.scorer, "loglikelihood_rolling", lambda requests, disable_tqdm: [0.0] * len(requests)
    )
    plain.loglikelihood_rolling(instances(), disable_tqdm=True)
    assert plain.get_model_info()["aft"]["scored_without_aggregation"] == 24


def test_a_second_run_writes_nothing_and_the_seed_decides(tiny_engine, tmp_path):
    store = SQLiteStore(tmp_path / "s.sqlite")
    first, again = model(tiny_engine, store), model(tiny_engine, store)
    scores = first.loglikelihood(instances(), disable_tqdm=True)
    assert close(again.loglikelihood(list(reversed(instances())), disable_tqdm=True), scores[::-1])
    assert first.computed_usage.generated_tokens > 0 == again.computed_usage.generated_tokens
    other = model(tiny_engine, seed=7).loglikelihood(instances(), disable_tqdm=True)
    assert not close(other, scores)


def test_plain_is_the_engine_alone_and_so_is_a_choice_without_a_question(tiny_engine):
    plain = model(tiny_engine, mcq="plain")
    assert plain.loglikelihood(instances(), disable_tqdm=True) != []
    info = plain.get_model_info()["aft"]
    assert (info["mcq"], info["scored_without_aggregation"], info["scored_after_drafts"]) == ("plain", 6, 0)
    bare = instances(("",))
    expected = tiny_engine.scorer.loglikelihood(bare, disable_tqdm=True)
    drafted = model(tiny_engine)
    assert close(drafted.loglikelihood(bare, disable_tqdm=True), expected)
    assert drafted.usage.generations == 0
    assert close(drafted.loglikelihood([*bare, *instances()], disable_tqdm=True)[:3], expected)


def test_plain_counts_what_lm_eval_computes(tiny_engine):
    plain = model(tiny_engine, mcq="plain")
    plain.loglikelihood(instances(("Answer:",), ("a", "b", "cd")), disable_tqdm=True)
    # One byte is one token. lm-eval computes all tokens but the last, so two lines of 8 tokens share a prompt of 7.
    # "cd" shares nothing.
    assert (plain.usage.prompt_tokens, plain.usage.computed_prompt_tokens) == (8 + 8 + 9, 9 + 9)
    assert (plain.usage.generations, plain.usage.generated_tokens) == (0, 0)
    assert plain.computed_usage == plain.usage
    shape = tiny_engine.shape
    assert plain.usage.flops == shape.flops(0, 7) + 2 * shape.flops(7, 8) + shape.flops(0, 9)


def test_an_engine_without_shared_scoring_is_asked_choice_by_choice(tiny_engine, lm):
    class Plain:
        scorer = LMScorer(tiny_engine.lm, tiny_engine.renderer)

        def __getattr__(self, name):
            return getattr(tiny_engine, name)

    other = model(Plain())
    assert close(other.loglikelihood(instances(), disable_tqdm=True), lm.scores)
    assert other.usage.computed_prompt_tokens > lm.usage.computed_prompt_tokens
    assert other.usage.prompt_tokens == lm.usage.prompt_tokens


def test_what_cannot_be(tiny_engine):
    for changes, message in (
        ({"layers": 0}, "layers=0 must be 1 or more, or use mcq=plain"),
        ({"strategy": "majority"}, "strategy=aggregate, not for strategy=majority"),
        ({"mcq": "plain", "mcq_orders": 2}, "mcq_orders is for mcq=drafts"),
        ({"mcq": "both"}, "mcq must be one of plain, drafts"),
    ):
        with pytest.raises(ConfigError, match=message):
            model(tiny_engine, **changes)
    with pytest.raises(EngineError, match="engine=hf cannot answer loglikelihood requests"):
        model(ScriptedEngine()).loglikelihood(instances(), disable_tqdm=True)
    with pytest.raises(PromptTooLong):
        model(tiny_engine).loglikelihood(instances(("word " * 4000,)), disable_tqdm=True)


def test_diagnostics_speak_of_the_texts_that_were_read(lm, tiny_engine, tmp_path):
    (run,) = diagnose_traces(lm.traces, [], regex="(.)$")
    assert (run.diagnostics.scored, run.diagnostics.layers) == (True, 0)
    panel = panel_text(diagnostics_panel(run.diagnostics))
    assert "k=3, layers=1" in panel
    assert "scored choices" in panel
    assert "drafts" in panel
    assert "\n answer" not in panel
    deeper = model(tiny_engine, layers=2, record=str(tmp_path))
    deeper.loglikelihood(instances(), disable_tqdm=True)
    (run,) = diagnose_traces(read_traces(tmp_path), [])
    panel = panel_text(diagnostics_panel(run.diagnostics))
    assert "layer 1 from the drafts" in panel
    assert "of the answers" not in panel


def test_kinds_of_scoring_have_labels_and_costs_of_their_own(tmp_path):
    scores = [1.0, 0.0] * 20
    counts = ({"scored_without_aggregation": 160}, {"scored_after_drafts": 40}, {"scored_after_drafts": 40})
    files = []
    for number, (scored, texts) in enumerate(zip(counts, (0, 120, 120), strict=True)):
        file = make_run(tmp_path / str(number), scores, k=3, layers=1, tokens=0 if not texts else 90)
        data = json.loads(file.read_text())
        aft = data["config"]["aft"]
        aft["usage"]["generations"] = texts
        aft |= {**scored, "generations_per_question": 3, "mcq_orders": 1 + number}
        file.write_text(json.dumps(data))
        files.append(file)
    entries = read_entries(files)
    assert tuple(entry.label for entry in entries) == (
        "m scored at once",
        "m scored after (3, 1) mcq_orders=2",
        "m scored after (3, 1) mcq_orders=3",
    )
    costs = [entry.costs["t"] for entry in entries]
    assert [(cost.prompt_tokens, cost.generations) for cost in costs] == [(9, 0), (9, 3), (9, 3)]
