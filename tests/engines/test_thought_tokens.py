"""Thoughts in what engines write: marks that are control tokens, and servers that render the prompt themselves."""

from __future__ import annotations

import pytest

from helpers.fake_server import FakeServer, completion
from helpers.scripted_runs import make_question
from helpers.tiny_models import CHATML, save_tiny, tiny_tokenizer
from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.engines.ending import text_before_stop
from lm_eval_aft.engines.registry import load_engine
from lm_eval_aft.inference.dialogue import answer_of
from lm_eval_aft.inference.schedule import propose_and_aggregate
from lm_eval_aft.judging.local import LocalClient
from lm_eval_aft.storage.draft_store import NoStore

HOST = HostArgs("auto", None, "cpu")
HEAD = "assistant\n{% if thinking | default(true) %}<think>\n{% endif %}"
OPENS = CHATML.replace("assistant\n", HEAD)


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (["[THINK]", "[/THINK]"], "[THINK]3?[/THINK]4"),
        (["<|START_THINKING|>", "<|END_THINKING|>"], "<|START_THINKING|>3?<|END_THINKING|>4"),
        (
            ["<|channel|>", "<|message|>", "<|end|>", "<|start|>"],
            "<|channel|>analysis<|message|>3?<|end|><|start|>assistant<|channel|>final<|message|>4",
        ),
    ],
)
def test_control_tokens_of_thoughts_are_shown_and_no_others(tmp_path, tokens, text):
    folder = save_tiny(tmp_path)
    plain = load_engine("hf", {"pretrained": folder, "dtype": "float32"}, HOST)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(tokens, special_tokens=True)
    tokenizer.save_pretrained(folder)
    engine = load_engine("hf", {"pretrained": folder, "dtype": "float32"}, HOST)
    ids = tokenizer.encode(f"<s>{text}<|im_end|>")
    shown = engine.renderer.thought_ids
    assert text_before_stop(tokenizer, ids, engine.stop_ids, (), shown) == (text, True)
    assert engine.renderer.clean(text) == "4"
    # The texts of such a model have changed, so its store keys have too. Those of other models stay.
    assert engine.fingerprint.endswith("|thoughts shown")
    assert "thoughts" not in plain.fingerprint


def test_what_a_template_opens_comes_with_the_prompt_and_a_local_judge_repeats_it(tmp_path):
    engine = load_engine("hf", {"pretrained": save_tiny(tmp_path, chat_template=OPENS), "dtype": "float32"}, HOST)
    (trace,) = answered(engine)
    assert [draft.opened_thought for draft in trace.drafts] == ["<think>"] * 3
    # A random model ends no thought, so none of its texts holds an answer.
    assert [answer_of(trace.question, draft) for draft in trace.drafts] == ["", "", ""]
    messages = [{"role": "user", "content": "Rate it."}]
    body = {"messages": messages, "temperature": 0, "max_tokens": 4}
    reply = LocalClient(engine).post("/chat/completions", body, stop=Never())
    assert reply["choices"][0]["message"]["content"].startswith("<think>")
    arguments = {"pretrained": str(tmp_path), "dtype": "float32", "chat_template_args": {"thinking": False}}
    (trace,) = answered(load_engine("hf", arguments, HOST))
    assert [draft.opened_thought for draft in trace.drafts] == ["", "", ""]


class Never:
    def is_set(self) -> bool:
        return False


def answered(engine, k: int = 2):
    config = AFTConfig(k=k, layers=1)
    question = make_question("2+2?")
    return propose_and_aggregate([question], engine, Template.load(None), config, NoStore(), quiet=True)


def serve(server: FakeServer, *messages: tuple[dict, str]) -> None:
    """Let the server reply with these messages and finish reasons, in turn."""

    def reply(number: int, body: dict):
        message, finish = messages[min(number, len(messages) - 1)]
        made = completion(body, finish=finish)
        made["choices"][0]["message"] = {"role": "assistant", **message}
        return 200, made, {}

    server.faults = reply


def api(server: FakeServer, **args):
    return load_engine("api", {"base_url": server.url, "model": "m", "concurrency": 1, **args}, HostArgs())


CUT, CLOSED = ({"content": "3? or 3"}, "length"), ({"content": "3?</think>4"}, "stop")


class TestServers:
    def last_prompt(self, server: FakeServer) -> str:
        return server.calls[-1]["messages"][0]["content"]

    def test_a_tokenizer_shows_that_the_template_opens_a_thought(self, server, tmp_path):
        serve(server, CUT, ({"content": "3? or"}, "length"), ({"content": "It is 4"}, "stop"))
        engine = api(server, tokenizer=save_tiny(tmp_path, chat_template=OPENS))
        (trace,) = answered(engine)
        assert [draft.completion.text for draft in trace.layer(0)] == ["<think>3? or 3", "<think>3? or"]
        assert [answer_of(trace.question, draft) for draft in trace.drafts] == ["", "", "It is 4"]
        assert "draft" not in self.last_prompt(server)

    @pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
    def test_a_server_may_keep_the_thought_apart(self, server, tmp_path, field):
        answer, thought = {"content": "It is 4, because", field: "3?"}, {"content": None, field: "3?"}
        serve(server, (answer, "length"), (thought, "length"))
        engine = api(server, tokenizer=save_tiny(tmp_path, chat_template=OPENS))
        (trace,) = answered(engine)
        assert [answer_of(trace.question, draft) for draft in trace.layer(0)] == ["It is 4, because", ""]

    def test_arguments_of_the_chat_template_reach_the_tokenizer(self, server, tmp_path):
        serve(server, ({"content": "4 it is"}, "length"))
        body = {"chat_template_kwargs": {"thinking": False}}
        engine = api(server, tokenizer=save_tiny(tmp_path, chat_template=OPENS), extra_body=body)
        (trace,) = answered(engine)
        assert [answer_of(trace.question, draft) for draft in trace.layer(0)] == ["4 it is"] * 2

    def test_without_a_tokenizer_a_finished_text_shows_what_the_template_opened(self, server):
        serve(server, CUT, CLOSED, ({"content": "3? or 5"}, "length"))
        (trace,) = answered(api(server))
        assert [answer_of(trace.question, draft) for draft in trace.drafts] == ["", "4", ""]
        assert "[draft 1]\n4\n[/draft 1]" in self.last_prompt(server)
        assert "3?" not in self.last_prompt(server)

    def test_a_cut_answer_of_a_model_that_does_not_think_stays(self, server):
        serve(server, CUT)
        (trace,) = answered(api(server))
        assert [answer_of(trace.question, draft) for draft in trace.drafts] == ["3? or 3"] * 3
