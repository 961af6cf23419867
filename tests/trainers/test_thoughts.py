"""Thoughts in training data: drafts keep them, and no prompt, score, target or statistic reads them."""

from __future__ import annotations

import pytest

from helpers.data_rows import aft_data, write
from helpers.tiny_models import CHATML, save_tiny
from helpers.training_rows import ask, make_encoder
from lm_eval_aft.core.jsonl import read_jsonl
from lm_eval_aft.core.thinking import without_thoughts
from trainers.generation.selection import reward_all
from trainers.rows.row import shown_text
from trainers.rows.samples import Sample

# Chat templates that open a thought. The second one also says how the answer follows.
OPENS = CHATML.replace("assistant\n", "assistant\n<think>\n")
OPENS_AND_ENDS = OPENS.replace(
    "\n{{ m['content'] }}", "\n{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}"
)


@pytest.mark.parametrize("template", [OPENS, OPENS_AND_ENDS])
def test_a_target_ends_the_thought_that_the_prompt_opens(template):
    made = make_encoder(chat_template=template)
    example, _ = made.encode(Sample(ask("2+2?"), (), "It is 4", "here"))
    decode = made.renderer.tokenizer.decode
    target = decode(example.token_ids[example.prompt_tokens :])
    assert decode(example.token_ids[: example.prompt_tokens]).endswith("<think>\n")
    assert target == "\n</think>\n\nIt is 4<|im_end|>"
    # So the trained model's text holds the target as its answer.
    assert without_thoughts(target.removesuffix("<|im_end|>"), "<think>") == "It is 4"


def test_on_policy_drafts_hold_the_mark_that_the_template_wrote(tmp_path):
    folder = save_tiny(tmp_path / "m", chat_template=OPENS)
    source, out = write(tmp_path / "q.jsonl", [{"query": "2+2?"}]), tmp_path / "d.jsonl"
    arguments = f"pretrained={folder},dtype=float32,max_gen_toks=6,cache=none"
    output = aft_data("drafts", source, out, "-n", 3, "--device", "cpu", "--model_args", arguments)
    drafts = read_jsonl(out)[0]["drafts"]
    assert all(draft.startswith("<think>") for draft in drafts)
    # A random model ends no thought.
    assert [shown_text(draft) for draft in drafts] == ["", "", ""]
    assert "empty 3" in output


def test_a_reward_model_reads_answers():
    class Model:
        def score(self, rows):
            self.read = [[chat[-1].content for chat in row] for row in rows]
            return [[0.0] * len(row) for row in rows]

    model = Model()
    reward_all([{"query": "2+2?", "drafts": ["<think>3?</think>4", "hm [/THINK]5", "<think>3 or"]}], model)
    assert model.read == [["4", "5", ""]]


def test_statistics_count_answers(tmp_path):
    drafts = ["[THINK]a b c[/THINK]It is 4", "<think>other words</think>It is 4", "<think>cut"]
    output = aft_data("stats", write(tmp_path / "d.jsonl", [{"query": "2+2?", "drafts": drafts}]))
    assert "words a draft         2.0 (median 3, 0 to 3)" in output
    assert "empty drafts          1" in output
    assert "equal drafts          1 repeat another of their row" in output


def test_demonstrations_show_no_thoughts(tmp_path):
    shots = write(tmp_path / "s.jsonl", [{"query": "1+1?", "target": "<thought>easy</thought>It is 2"}])
    source, out = write(tmp_path / "q.jsonl", [{"query": "2+2?"}]), tmp_path / "d.jsonl"
    prompts: list[str] = []

    def script(request) -> str:
        prompts.extend(message.content for message in request.prompt.chat.messages)
        return "It is 4"

    from lm_eval_aft.engines import registry
    from lm_eval_aft.engines.scripted import ScriptedEngine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptedEngine, "load", classmethod(lambda cls, args, host: cls(script)))
        assert registry.ENGINES["scripted"].endswith("ScriptedEngine")
        options = ("--demonstrations", shots, "--model_args", "engine=scripted,pretrained=x,max_gen_toks=64")
        aft_data("drafts", source, out, "-n", 1, *options)
    assert prompts == ["1+1?", "It is 2", "2+2?"]
