"""aft data drafts: prompts, seeds, queries that do not fit, and a command that was killed."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from helpers.data_rows import SCRIPTED, aft_data, drafted, queries, write
from helpers.fake_server import FakeServer
from helpers.tiny_models import CHATML, save_tiny
from lm_eval_aft.core.errors import BudgetReached, ChatError, ConfigError, EngineError, PromptTooLong
from lm_eval_aft.core.jsonl import read_jsonl
from lm_eval_aft.core.records import Request
from lm_eval_aft.storage.draft_store import SQLiteStore
from trainers.data import data
from trainers.generation.drafts import sample_drafts
from trainers.generation.generator import GeneratorOptions


def script_tokens(store: Path) -> int:
    """Generated tokens in a store."""
    with SQLiteStore(store) as kept:
        return kept.info().generated_tokens


def test_a_query_that_does_not_fit_gets_no_drafts_and_is_counted(tmp_path, tiny):
    rows = [{"query": "short"}, {"query": "x" * 5000}, {"query": "short too"}]
    source, out = write(tmp_path / "q.jsonl", rows), tmp_path / "d.jsonl"
    options = ("-n", 2, "--device", "cpu", "--model_args", f"pretrained={tiny},dtype=float32,max_gen_toks=4,cache=none")
    output = aft_data("drafts", source, out, *options)
    assert [len(row["drafts"]) for row in read_jsonl(out)] == [2, 0, 2]
    assert "2 drafts for each of 2 queries" in output
    assert "queries that did not fit 1" in output
    with pytest.raises(PromptTooLong):
        aft_data("drafts", write(tmp_path / "l.jsonl", rows[1:2]), out, *options)


def test_a_row_that_the_chat_template_refuses_is_named(tmp_path):
    picky = "{% if messages | length > 4 %}{{ raise_exception('too many') }}{% endif %}" + CHATML
    folder = save_tiny(tmp_path / "m", chat_template=picky)
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user", "assistant", "user")]
    rows = [{"query": "q", "drafts": ["a"]}, {"query": turns, "drafts": ["a"]}]
    options = ("--device", "cpu", "--model_args", f"pretrained={folder},dtype=float32,max_gen_toks=4,cache=none")
    for command in (("drafts", "-n", 1), ("aggregate", "--k", 1)):
        source = write(tmp_path / "q.jsonl", rows)
        with pytest.raises(ChatError, match=r"row 2 is refused by the model's chat template .*too many"):
            aft_data(command[0], source, tmp_path / "o.jsonl", *command[1:], *options)


def test_drafts_are_those_of_inference_and_come_once(tmp_path, tiny):
    source = write(tmp_path / "q.jsonl", queries(3))
    args = f"pretrained={tiny},dtype=float32,max_gen_toks=6,temperature=0.7,top_k=none,cache={tmp_path / 'c.sqlite'}"
    out = tmp_path / "d.jsonl"
    aft_data("drafts", source, out, "-n", 3, "--model_args", args, "--device", "cpu")
    rows = read_jsonl(out)
    assert [len(row["drafts"]) for row in rows] == [3, 3, 3]
    assert {end for row in rows for end in row["ends"]} <= {"stop", "length"}

    from lm_eval_aft.core.config import AFTConfig, samplings
    from lm_eval_aft.core.engine import HostArgs
    from lm_eval_aft.core.prompts import Template
    from lm_eval_aft.core.records import Chat, Message, Question
    from lm_eval_aft.engines.registry import load_engine
    from lm_eval_aft.inference.schedule import propose_and_aggregate
    from lm_eval_aft.storage.draft_store import SQLiteStore

    config = AFTConfig(k=3, layers=1, max_gen_toks=6)
    store = SQLiteStore(tmp_path / "c.sqlite")
    chat = Chat((Message("user", queries()[2]["query"]),))
    engine = load_engine("hf", {"pretrained": tiny, "dtype": "float32"}, HostArgs("auto", None, "cpu"))
    question = Question(chat, *samplings(config, {}))
    (trace,) = propose_and_aggregate([question], engine, Template.load(None), config, store, quiet=True)
    store.close()
    assert [draft.completion.text.strip() for draft in trace.layer(0)] == rows[2]["drafts"]
    assert all(draft.reused for draft in trace.layer(0))


def test_a_server_drafts_and_teaches_and_what_it_wrote_before_it_went_is_kept(tmp_path):
    with closing(FakeServer()) as server:
        args = f"engine=api,base_url={server.url},model=m,max_gen_toks=24,max_retries=0,concurrency=1"
        source, drafts, targets = write(tmp_path / "q.jsonl", queries(3)), tmp_path / "d.jsonl", tmp_path / "t.jsonl"
        server.faults = lambda number, body: (500, "gone", {}) if number == 4 else None
        with pytest.raises(EngineError, match="500"):
            aft_data("drafts", source, drafts, "-n", 2, "--model_args", args)
        assert not drafts.exists()
        output = aft_data("drafts", source, drafts, "-n", 2, "--model_args", args)
        # The store kept four.
        assert len(server.calls) == 5 + 2
        assert [len(set(row["drafts"])) for row in read_jsonl(drafts)] == [2, 2, 2]
        assert all(end == "stop" for row in read_jsonl(drafts) for end in row["ends"])
        assert "3 queries" in output
        aft_data("aggregate", drafts, targets, "--k", 2, "--model_args", args)
    for row, call in zip(read_jsonl(targets), server.calls[-3:], strict=True):
        assert all(draft in call["messages"][0]["content"] for draft in row["drafts"])
        assert call["messages"][1]["content"] == row["query"]
        assert row["target"].startswith(f"answer {call['seed']} ")


def test_demonstrations_and_ask_make_the_prompt_of_a_base_model(tmp_path, scripted):
    requests: list[Request] = []

    def script(request: Request) -> str:
        requests.append(request)
        return "one two three" if len(requests) % 2 else ""

    scripted(script)
    shots = write(tmp_path / "shots.jsonl", [{"query": "1+1", "target": "2"}])
    source = write(tmp_path / "q.jsonl", [{"query": "2+2", "drafts": ["old"], "right": [True]}])
    ask = ("--demonstrations", shots, "--ask", "Q: {query}\nA:")
    output = aft_data("drafts", source, tmp_path / "d.jsonl", "-n", 2, *ask, "--whole", "--model_args", SCRIPTED)
    turns = [(m.role, m.content) for m in requests[0].prompt.chat.messages]
    assert turns == [("user", "Q: 1+1\nA:"), ("assistant", "2"), ("user", "Q: 2+2\nA:")]
    assert (requests[0].sampling.temperature, requests[0].sampling.top_k, requests[0].sampling.top_p) == (1.0, 50, 0.95)
    assert "cut at the token limit 0, empty 1" in output
    assert read_jsonl(tmp_path / "d.jsonl") == [{"query": "2+2", "drafts": ["one two three"], "ends": ["stop"]}]
    assert "warning" not in output
    scripted(lambda request: "")
    output = aft_data("drafts", source, tmp_path / "n.jsonl", "-n", 2, "--whole", "--model_args", SCRIPTED)
    assert "warning: 1 of 1 queries have no whole draft: raise max_gen_toks" in output
    with pytest.raises(ConfigError, match=r"must hold \{query\}"):
        aft_data("drafts", source, tmp_path / "e.jsonl", "--ask", "Q:", "--model_args", SCRIPTED)
    with pytest.raises(ConfigError, match="--model_args k=3 has no meaning here"):
        aft_data("drafts", source, tmp_path / "e.jsonl", "--model_args", f"{SCRIPTED},k=3")


def test_a_bound_of_the_tokens_stops_the_drafts_and_a_higher_one_resumes_them(tmp_path, scripted):
    requests: list[Request] = []

    def script(request: Request) -> str:
        requests.append(request)
        return f"one two {request.seed % 1000}"

    scripted(script)
    source, out = write(tmp_path / "q.jsonl", queries(6)), tmp_path / "d.jsonl"
    whole = aft_data("drafts", source, tmp_path / "whole.jsonl", "-n", 2, "--model_args", SCRIPTED)
    tokens = script_tokens(tmp_path / "whole.jsonl.sqlite")
    requests.clear()

    def draft(bound: int) -> str:
        args = f"{SCRIPTED},max_generated_tokens={bound}"
        return aft_data("drafts", source, out, "-n", 2, "--model_args", args)

    for _ in range(2):
        with pytest.raises(
            BudgetReached, match=rf"^max_generated_tokens={tokens // 2} is reached: .*\.sqlite: the same"
        ):
            draft(tokens // 2)
        assert not out.exists()
        # The same bound again pays nothing.
        assert len(requests) == 6
    assert draft(tokens) == whole.replace("whole.jsonl", "d.jsonl")
    assert len(requests) == 12
    assert read_jsonl(out) == read_jsonl(tmp_path / "whole.jsonl")


def test_a_bound_of_the_cost_holds_for_all_attempts_at_targets(tmp_path, scripted):
    requests: list[Request] = []

    def script(request: Request) -> str:
        requests.append(request)
        return "it is 1"

    scripted(script)
    source, out = write(tmp_path / "d.jsonl", drafted(4)), tmp_path / "t.jsonl"
    options = ("--k", 2, "--verifier", r"exact:(\d+)", "--wrong", "retry", "--retries", 2)

    def write_targets(cost: float) -> str:
        args = f"{SCRIPTED},price_in=0,price_out=1e6,max_cost={cost}"
        return aft_data("aggregate", source, out, *options, "--model_args", args)

    with pytest.raises(ConfigError, match="no target could be used"):
        write_targets(1e6)
    assert len(requests) == 12
    tokens = script_tokens(Path(f"{out}.sqlite"))
    Path(f"{out}.sqlite").unlink()
    requests.clear()
    # The bound lies in the second attempt.
    with pytest.raises(BudgetReached, match=r"^max_cost=.* is reached"):
        write_targets(tokens / 2)
    assert 4 < len(requests) < 12
    done = len(requests)
    with pytest.raises(ConfigError, match="no target could be used"):
        write_targets(tokens * 2)
    assert len(requests) == 12
    assert done < 12


def test_a_killed_command_resumes_where_it_was(tmp_path, scripted):
    seeds: list[int] = []

    def script(request: Request) -> str:
        seeds.append(request.seed)
        if len(seeds) == 6:
            raise KeyboardInterrupt
        return "text"

    scripted(script)
    source, out = write(tmp_path / "q.jsonl", queries(2)), tmp_path / "d.jsonl"
    arguments = ["drafts", source, str(out), "-n", "4", "--model_args", SCRIPTED]
    assert CliRunner().invoke(data, arguments).exit_code != 0
    assert not out.exists()
    aft_data(*arguments)
    # The store kept five.
    assert len(seeds) == 6 + 3
    assert len(set(seeds)) == 8


def test_drafts_can_be_sampled_from_python(tmp_path, scripted):
    scripted(lambda request: f"text {request.seed}")
    source = Path(write(tmp_path / "q.jsonl", queries(2)))
    result = sample_drafts(source, GeneratorOptions(f"{SCRIPTED},cache=none"), count=3)
    assert [len(set(row["drafts"])) for row in result.rows] == [3, 3]
    assert result.facts[0].startswith("3 drafts for each of 2 queries")
    assert (result.settings["n"], result.settings["writer"]["temperature"]) == (3, 1.0)
    assert list(tmp_path.iterdir()) == [source]
