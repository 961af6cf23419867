"""No thought of a model reaches another prompt, a vote, a reward model, a task, or a reader of traces."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from helpers.instances import make_instance
from helpers.scripted_runs import SAMPLED, TEMPLATE, make_question
from helpers.tiny_models import CHATML, tiny_tokenizer
from lm_eval_aft.analysis.cost import trace_cost
from lm_eval_aft.analysis.grading import grade
from lm_eval_aft.core.chat import TokenizerRenderer
from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.records import Completion, Trace
from lm_eval_aft.core.usage import Usage
from lm_eval_aft.engines.scripted import ScriptedEngine
from lm_eval_aft.inference.answers import AnswerFinder
from lm_eval_aft.inference.dialogue import answer_of, final_answer, is_empty
from lm_eval_aft.inference.extraction import choose_extraction
from lm_eval_aft.inference.given_drafts import GivenDrafts
from lm_eval_aft.inference.schedule import propose_and_aggregate
from lm_eval_aft.inference.selection import BestOfN, Majority
from lm_eval_aft.model import AFTLM
from lm_eval_aft.storage.draft_store import NoStore
from lm_eval_aft.storage.traces import read_traces, write_traces

# What the model writes after the opening mark of the chat template: two answers, and a thought that is cut.
DRAFTS = ["is it 3? </think> 4", "maybe 3 or 3 or 3", "no, 5. </think> 5"]
LIMIT = 5


class Thinker(ScriptedEngine):
    """An engine whose chat template opens a thought. It writes ``texts`` in turn."""

    def __init__(self, texts, head: str = "<think>\\n") -> None:
        super().__init__(lambda request: self.texts[len(self.requests) - 1], max_length=100_000)
        template = CHATML.replace("assistant\n{% endif %}", f"assistant\n{head}{{% endif %}}")
        self.renderer = TokenizerRenderer(tiny_tokenizer(template))
        self.texts, self.requests = list(texts), []

    def complete(self, request, shared):
        self.requests.append(request)
        return super().complete(request, shared)


def think(*answers: str, texts=DRAFTS, head="<think>\\n", think_end="", selector=None, given_drafts=None, **settings):
    """Answer one question with these drafts and this answer. Returns the engine and the trace."""
    engine = Thinker([*texts, *answers], head)
    config = AFTConfig(k=max(len(texts), 1) if not given_drafts else 3, layers=1, **settings)
    question = replace(make_question("2+2?"), drafts=replace(SAMPLED, max_tokens=LIMIT), think_end=think_end)
    others = {"selector": selector, "given_drafts": given_drafts, "quiet": True}
    (trace,) = propose_and_aggregate([question], engine, TEMPLATE, config, NoStore(), **others)
    return engine, trace


def read_by_the_answer(engine: Thinker) -> str:
    """The system message of the last prompt, which holds the drafts."""
    return engine.requests[-1].prompt.chat.messages[0].content


def test_a_thought_reaches_no_aggregation_prompt_whether_it_ended_or_was_cut():
    engine, trace = think("so 4 </think> It is 4")
    system = read_by_the_answer(engine)
    assert "[draft 1]\n4\n[/draft 1]" in system
    # The draft that was cut in its thought is left out.
    assert "[draft 2]\n5\n[/draft 2]" in system
    assert "draft 3" not in system
    assert not any(word in system for word in ("3", "maybe", "think"))
    assert [draft.opened_thought for draft in trace.drafts] == ["<think>"] * 4
    # The record keeps every text as the model wrote it.
    assert [draft.completion.text for draft in trace.layer(0)] == [DRAFTS[0], "maybe 3 or 3 or", DRAFTS[2]]
    assert [draft.cut for draft in trace.layer(0)] == [False, True, False]
    assert [draft.empty for draft in trace.layer(0)] == [False, True, False]
    assert (trace_cost(trace).empty, final_answer(trace)) == (1, "It is 4")


def test_readers_of_traces_know_what_the_template_opened(tmp_path):
    _, trace = think("so 4 </think> It is 4")
    write_traces(str(tmp_path), {"k": 3, "layers": 1}, [trace])
    (read,) = read_traces(tmp_path)
    assert read.drafts == trace.drafts
    assert [answer_of(read.question, draft) for draft in read.drafts] == ["4", "", "5", "It is 4"]
    graded = grade(read, choose_extraction("gsm8k"), "4")
    assert [text.answer for text in graded.texts] == ["4", None, "5", "4"]
    assert [text.empty for text in graded.texts] == [False, True, False, False]
    assert graded.vote == 0.5
    # A file of an older version does not have the field.
    row = json.loads(trace.to_json())
    for draft in row["drafts"]:
        del draft["opened_thought"]
    assert Trace.from_dict(row).drafts[0].opened_thought == ""


def test_given_drafts_are_read_without_their_thoughts(tmp_path):
    _, trace = think("so 4 </think> It is 4")
    write_traces(str(tmp_path), {"k": 3, "layers": 1}, [trace])
    engine, _ = think("so </think> It is 5", texts=[], given_drafts=GivenDrafts.read(str(tmp_path)))
    system = read_by_the_answer(engine)
    assert "[draft 1]\n4\n[/draft 1]\n\n[draft 2]\n5\n[/draft 2]" in system
    assert "maybe" not in system


def test_all_drafts_cut_in_their_thoughts_give_the_prompt_of_a_draft():
    engine, _ = think("so 4 </think> It is 4", texts=["maybe 3 or 3 or 3"] * 2)
    assert [message.role for message in engine.requests[-1].prompt.chat.messages] == ["user"]


def test_votes_and_rewards_count_answers_only():
    _, trace = think(strategy="majority", vote_regex=r"(\d)", selector=Majority(AnswerFinder(r"(\d)")))
    assert (final_answer(trace), trace.scores) == ("4", (1.0, 0.0, 1.0))

    class Model:
        """Gives the best score to an empty answer."""

        def score(self, rows):
            self.read = [[chat[-1].content for chat in row] for row in rows]
            return [[float(not chat[-1].content) for chat in row] for row in rows]

        def cost(self, chats):
            return Usage()

    model = Model()
    _, trace = think(strategy="best_of_n", reward_model="rm", selector=BestOfN(model))
    assert model.read == [["4", "", "5"]]
    assert (final_answer(trace), trace.scores) == ("4", (0.0, 1.0, 0.0))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("3? </think> The answer is 4", "The answer is 4"),
        ("<think> 3? </think> The answer is 4", "The answer is 4"),
        ("3? or is it 3 or 3", ""),
    ],
)
def test_the_task_gets_the_answer_without_its_thought(text, answer):
    config = AFTConfig(k=1, layers=0, engine="scripted", max_gen_toks=7)
    lm = AFTLM.around(Thinker([text]), config, TEMPLATE, NoStore(), "scripted")
    context = lm.apply_chat_template([{"role": "user", "content": "2+2?"}])
    request = make_instance("generate_until", {}, (context, {"until": []}), 0, ("t", 0, 1))
    assert lm.generate_until([request], disable_tqdm=True) == [answer]


def test_the_next_turn_does_not_hold_a_thought():
    config = AFTConfig(k=1, layers=0, engine="scripted", max_gen_toks=7)
    engine = Thinker(["3? </think> It is 4", "3? or is it 3 or 3", "hm </think> bye"])
    lm = AFTLM.around(engine, config, TEMPLATE, NoStore(), "scripted")
    context = lm.apply_chat_template([{"role": "user", "content": "2+2?"}])
    settings = {"until": [], "turns": ["And twice?", "And half?"]}
    (response,) = lm.generate_until([make_instance("generate_until", {}, (context, settings), 0, ("t", 0, 1))])
    assert json.loads(response)["turns"] == ["It is 4", "", "bye"]
    last = engine.requests[-1].prompt.chat.messages
    assert [m.content for m in last if m.role == "assistant"] == ["It is 4", ""]


def test_the_users_mark_ends_a_thought_and_a_cut_text_without_it_holds_no_answer():
    texts = ["3 DONE it is 4", "3 or 3 or 3 or", "5"]
    engine, trace = think("hm DONE 4", texts=texts, head="", think_end="DONE")
    question = trace.question
    assert [answer_of(question, draft) for draft in trace.drafts] == ["it is 4", "", "5", "4"]
    assert [is_empty(question, draft) for draft in trace.drafts] == [False, True, False, False]
    assert "[draft 1]\nit is 4\n[/draft 1]\n\n[draft 2]\n5\n[/draft 2]" in read_by_the_answer(engine)


class Tokenized(ScriptedEngine):
    """A scripted engine with a tokenizer, which decodes without control tokens as the others do."""

    def __init__(self, tokenizer, text: str) -> None:
        super().__init__(lambda request: text)
        self.renderer, self.text = TokenizerRenderer(tokenizer), text

    def complete(self, request, shared):
        ids = tuple(self.renderer.tokenizer.encode(self.text, add_special_tokens=False))
        shown = self.renderer.tokenizer.decode(ids, skip_special_tokens=True)
        return Completion(shown, ids, "stop", request.prompt.prompt_tokens, 0, len(ids))


def test_a_mark_that_is_a_control_token_ends_a_thought():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|so|>"], special_tokens=True)
    engine = Tokenized(tokenizer, "5? 6?<|so|>it is 7")
    question = replace(make_question("2+5?"), think_end="<|so|>")
    config = AFTConfig(k=1, layers=1, think_end_token="<|so|>")
    (trace,) = propose_and_aggregate([question], engine, TEMPLATE, config, NoStore(), quiet=True)
    assert [draft.completion.text for draft in trace.drafts] == ["5? 6?<|so|>it is 7"] * 2
    assert [answer_of(question, draft) for draft in trace.drafts] == ["it is 7"] * 2
    # Without the argument the text stays as the engine made it.
    (plain,) = propose_and_aggregate([make_question("2+5?")], engine, TEMPLATE, AFTConfig(k=1, layers=1), NoStore())
    assert plain.drafts[0].completion.text == "5? 6?it is 7"
