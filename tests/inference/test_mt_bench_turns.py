"""Dialogues: each turn is drafted and aggregated, and continues from the model's own answers."""

from __future__ import annotations

import json

import pytest

from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.engines.scripted import ScriptedEngine
from lm_eval_aft.model import AFTLM
from lm_eval_aft.storage.draft_store import NoStore, SQLiteStore
from lm_eval_aft.storage.traces import read_traces

LATER = ["And twice that?", "And half?"]


def script(request) -> str:
    """A text that names the number of the user's turns, whether the prompt holds drafts, and the seed."""
    messages = request.prompt.chat.messages
    turns = sum(message.role == "user" for message in messages)
    read = "drafts" if messages[0].role == "system" else "question"
    return f"<think>hm</think>turn {turns} from {read} {request.seed % 1000}"


def model(k: int = 2, layers: int = 1, store=None, **settings) -> AFTLM:
    config = AFTConfig(k=k, layers=layers, engine="scripted", **settings)
    return AFTLM.around(ScriptedEngine(script), config, Template.load(None), store or NoStore(), "scripted")


def request(turns, number: int = 0, until=(), question: str = "2+2?"):
    from helpers.instances import make_instance

    context = AFTLM.apply_chat_template(None, [{"role": "user", "content": f"{question} ({number})"}])
    return make_instance(
        "generate_until",
        {"id": number},
        (context, {"until": list(until), "max_gen_toks": 40, "temperature": 0.1, "turns": turns}),
        0,
        ("talk", number, 1),
    )


def ask(lm: AFTLM, *requests) -> list[list[str]]:
    return [json.loads(text)["turns"] for text in lm.generate_until(list(requests), disable_tqdm=True)]


def test_max_generations_counts_every_turn():
    assert len(ask(model(max_generations=9), request(LATER))[0]) == 3
    with pytest.raises(ConfigError, match="6 turns of 2 questions would be 18 generations, and at most 17 are allowed"):
        ask(model(max_generations=17), request(LATER), request(LATER, 1))


def test_the_drafts_of_each_turn_stop_by_themselves(tmp_path):
    lm = model(k=6, record=str(tmp_path), stop_when="window:2", stop_layers=0, vote_regex=r"turn (\d)")
    (answers,) = ask(lm, request(LATER))
    assert [answer[:20] for answer in answers] == [f"turn {turn} from question" for turn in (1, 2, 3)]
    assert [len(trace.drafts) for trace in read_traces(tmp_path)] == [3, 3, 3]
    assert lm.usage.generations == 6


def test_every_turn_is_drafted_and_aggregated_after_the_models_own_answers(tmp_path):
    lm = model(record=str(tmp_path))
    (answers,) = ask(lm, request(LATER))
    traces = list(read_traces(tmp_path))
    assert [trace.question.turn for trace in traces] == [0, 1, 2]
    # What the model thought is in the traces only.
    assert [trace.answer for trace in traces] == [f"<think>hm</think>{answer}" for answer in answers]
    assert all(len(trace.drafts) == 3 for trace in traces)
    assert lm.usage.generations == 9
    assert all(f"turn {n} from drafts" in answer for n, answer in enumerate(answers, 1))
    last = traces[-1].question
    assert [(m.role, m.content) for m in last.chat.messages] == [
        ("user", "2+2? (0)"),
        ("assistant", answers[0]),
        ("user", LATER[0]),
        ("assistant", answers[1]),
        ("user", LATER[1]),
    ]
    # The task's settings apply to the last layer only.
    assert (last.final.temperature, last.drafts.temperature) == (0.1, 0.7)


def test_seeds_come_from_what_is_asked_not_from_place_or_company():
    alone = ask(model(), request(LATER, 3))
    together = ask(model(), *[request(LATER, number) for number in (5, 3, 0)])
    assert together[1] == alone[0]
    assert len({text for answers in together for text in answers}) == 9


def test_dialogues_of_other_lengths_and_plain_questions_go_together():
    plain = request([], 1)
    del plain.arguments[1]["turns"]
    texts = model().generate_until([request(LATER), plain, request([], 2), request(LATER[:1], 3)], disable_tqdm=True)
    assert [len(json.loads(texts[n])["turns"]) for n in (0, 2, 3)] == [3, 1, 2]
    assert texts[1].startswith("turn 1")


def test_a_stopped_dialogue_resumes(tmp_path):
    lm = model(store=SQLiteStore(tmp_path / "s"))
    first = ask(lm, request(LATER), request(LATER, 1))
    again = model(store=lm.store)
    assert ask(again, request(LATER), request(LATER, 1)) == first
    assert (again.usage, again.computed_usage.generations) == (lm.usage, 0)
    lm.store.close()


def test_layers_0_answers_each_turn_once_and_stop_strings_cut_the_next_prompt():
    lm = model(layers=0)
    (answers,) = ask(lm, request(LATER[:1], until=[" from"]))
    assert answers == ["turn 1", "turn 2"]
    assert lm.usage.generations == 2


def test_padding_clones_of_a_dialogue_are_answered_once():
    lm, one = model(), request(LATER)
    assert ask(lm, one, one, one) == [ask(model(), request(LATER))[0]] * 3
    assert lm.usage.generations == 9


@pytest.mark.parametrize("turns", [None, [3], [""], 5])
def test_turns_that_are_none(turns):
    with pytest.raises(ConfigError, match="turns="):
        model().generate_until([request(turns)], disable_tqdm=True)
