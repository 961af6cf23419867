"""A judge without a server: the hf engine in place of the HTTP client."""

from __future__ import annotations

from contextlib import closing

import pytest

from lm_eval_aft import cli
from lm_eval_aft.core.records import Message
from lm_eval_aft.engines.scripted import ScriptedEngine
from lm_eval_aft.judging.judge import Judge, JudgeCall
from lm_eval_aft.judging.local import LocalClient
from lm_eval_aft.judging.mt_bench.data import CATEGORIES, MTBenchAnswer, MTBenchQuestion, write_answers


def call(text: str, **settings) -> JudgeCall:
    return JudgeCall((Message("user", text),), **{"temperature": 0.0, "max_tokens": 8, **settings})


def test_it_answers_as_a_server_would_and_keeps_what_it_said(tiny_engine, tmp_path):
    from lm_eval_aft.core.records import Chat, Request, Sampling

    calls = [call(f"Rate {n}.") for n in range(4)]
    prompts = [tiny_engine.renderer.encode(Chat(one.messages)) for one in calls]
    requests = [Request(prompt, Sampling(0.0, 1.0, 0, 8), 0) for prompt in prompts]
    expected = {n: (c.text, c.prompt_tokens, c.generated_tokens) for n, c in tiny_engine.generate(requests)}
    with closing(Judge("t", "", client=LocalClient(tiny_engine), cache=tmp_path / "c", quiet=True)) as judge:
        got = {n: (r.text, r.prompt_tokens, r.generated_tokens) for n, r in judge.ask(calls)}
        assert got == expected
        assert judge.estimate(calls).to_send == 0


def test_a_prompt_beyond_the_context_is_refused_alone():
    client = LocalClient(ScriptedEngine(lambda request: "Fine. [[7]]", max_length=40))
    with closing(Judge("t", "", client=client, quiet=True)) as judge:
        replies = dict(judge.ask([call("short"), call("word " * 50), call("also short")]))
    assert [replies[n].text for n in range(3)] == ["Fine. [[7]]", "", "Fine. [[7]]"]
    assert "51 prompt tokens and 8 to generate are beyond the context length of 40" in replies[1].refused


@pytest.mark.parametrize("both", [True, False])
def test_a_server_or_an_engine_not_both_and_not_neither(tiny, tmp_path, capfd, both):
    more = ["--judge-engine", "hf", "--judge-base-url", "http://127.0.0.1:1/v1"] if both else []
    with pytest.raises(SystemExit) as stopped:
        cli.main(["judge", "mt_bench", str(tmp_path), "--judge-model", tiny, *more])
    assert stopped.value.code == 2
    assert "either --judge-base-url or --judge-engine" in capfd.readouterr().err


def test_the_command_judges_with_a_checkpoint(tiny, tmp_path, capfd):
    questions = [MTBenchQuestion(81 + 10 * n, category, (f"a{n}", "b")) for n, category in enumerate(CATEGORIES[:2])]
    file = write_answers(tmp_path, "m", questions, [MTBenchAnswer(q.question_id, ("x", "y")) for q in questions])
    arguments = [str(file), "--judge-model", tiny, "--judge-engine", "hf", "--max-tokens", "12", "--allow-missing"]
    # a model with random weights writes no rating
    with pytest.raises(SystemExit) as stopped:
        cli.main(["judge", "mt_bench", *arguments])
    errors = capfd.readouterr().err
    assert stopped.value.code == 2
    assert "4 judge calls to make" in errors
    assert "4 of 4 judgements of m hold no rating" in errors
