"""What is trained: settings, rows, samples, and the exact tokens that are learnt."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.paths import ROOT
from helpers.tiny_models import CHATML, NO_SYSTEM, tiny_tokenizer
from lm_eval_aft.core.chat import TokenizerRenderer
from lm_eval_aft.core.errors import ChatError, ConfigError, RecordError, TemplateError
from lm_eval_aft.core.jsonl import read_jsonl
from lm_eval_aft.core.prompts import Template, aggregate_prompt, draft_prompt
from lm_eval_aft.core.records import Chat, Message
from trainers.fitting.examples import MASK, Encoder
from trainers.inspection.overlap import measure, nearest, warnings, with_strange_drafts
from trainers.rows.row import Row, load_rows
from trainers.rows.samples import Sample, make_samples, pseudo_samples
from trainers.settings import TrainConfig, load_config, make_config, markdown_table

CONFIG = TrainConfig(model="m", data="d", output="o")


def row(number: int = 0, **changes) -> Row:
    fields = {
        "query": f"What is {number} + 1?",
        "drafts": [f"draft {number} {letter}" for letter in "abcde"],
        "target": f"It is {number + 1}, all told.",
        "sft_target": f"{number + 1}",
    }
    return Row.of({**fields, **changes}, f"d row {number}")


def ask(text: str) -> Chat:
    return Chat((Message("user", text),))


def encoder(max_length: int = 2048, chat_template: str | None = CHATML, template: Template | None = None) -> Encoder:
    return Encoder(tiny_tokenizer(chat_template), template or Template.load(None), max_length)


# ---------------------------------------------------------------- settings


def test_settings_come_from_yaml_toml_and_set(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("model: m\ndata: d\noutput: o\nlearning_rate: 1e-4\nk: [1, 3]\n")
    (tmp_path / "a.toml").write_text('model = "m"\ndata = "d"\noutput = "o"\nlearning_rate = 1e-4\nk = [1, 3]\n')
    for name in ("a.yaml", "a.toml"):
        config = load_config(str(tmp_path / name), ["k=[1,3,5]", "bf16=true", "lora_rank=0"])
        assert (config.k, config.bf16, config.lora_rank, config.learning_rate) == ((1, 3, 5), True, 0, 1e-4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lora_rnk": 4}, "did you mean lora_rank?"),
        ({"k": [1, 0]}, "k=0 is not allowed: k must be a whole number of at least 1"),
        ({"schedule": "step"}, "schedule must be one of cosine, linear, constant"),
        ({"data": None}, "data is missing in here: add data: ..."),
        ({"patience": 2}, "patience needs a validation file"),
    ],
)
def test_a_wrong_setting_is_one_sentence(settings, said):
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")):
        make_config({"model": "m", "data": "d", "output": "o", **settings}, "here")


def test_a_settings_file_that_is_none_is_refused(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("- 1\n- 2\n")
    with pytest.raises(ConfigError, match="are not a list of key: value lines"):
        load_config(str(tmp_path / "a.yaml"))
    (tmp_path / "b.yaml").write_text("k: 1\n")
    with pytest.raises(ConfigError, match=r"--set k is not allowed: write --set key=value"):
        load_config(str(tmp_path / "b.yaml"), ["k"])


def test_the_table_of_settings_in_the_docs_is_the_config():
    docs = ROOT / "docs" / "training.md"
    assert markdown_table() in docs.read_text(encoding="utf-8")


# ---------------------------------------------------------------- rows


def test_rows_say_which_line_is_wrong(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"query": "x", "drafts": ["a"], "target": "b"}\n\n{"query": \n')
    with pytest.raises(RecordError, match=r"rows.jsonl line 3 is not JSON"):
        read_jsonl(path)
    path.write_text("\n")
    with pytest.raises(RecordError, match="has no rows"):
        load_rows(path)
    with pytest.raises(RecordError, match="cannot be read"):
        load_rows(tmp_path / "absent.jsonl")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"query": " "}, "query of d row 0 must be a text, or a list of messages"),
        ({"query": [{"role": "assistant", "content": "a"}]}, "that ends with the user"),
        ({"drafts": "a"}, "drafts of d row 0 must be a list of texts"),
        ({"drafts": ["a", 1]}, "drafts of d row 0 must be a list of texts"),
        ({"target": 5}, "target of d row 0 is 5: it must be a text"),
        ({"query": [{"role": "user", "content": None}]}, "role and content, both texts"),
        ({"query": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}, "role and content, both texts"),
        ({"query": [{"role": 1, "content": "a"}, {"role": "user", "content": "b"}]}, "role and content, both texts"),
        ({"sources": [1, 1]}, r"sources of d row 0 are \[1, 1\]: name each position once"),
        ({"sources": [7]}, "sources of d row 0 must be a list of positions in drafts, from 0 to 4"),
    ],
)
def test_a_wrong_row_is_one_sentence(changes, said):
    with pytest.raises(ConfigError, match=said):
        row(**changes)


def test_drafts_without_text_are_left_out_and_sources_follow():
    checked = row(drafts=["", "a", "  ", "b"], sources=[3])
    assert checked.drafts == ("a", "b")
    assert checked.sources == (1,)


# ---------------------------------------------------------------- samples


def test_the_four_kinds():
    rows = [row(number) for number in range(8)]
    config = replace(CONFIG, k=(5,), plain_share=0.5)
    sft, aft, bare, pseudo = (
        make_samples(rows, kind, config) for kind in ("sft", "aft", "aft-no-drafts", "aft-pseudo")
    )
    assert [(s.drafts, s.target) for s in sft] == [((), r.sft_target) for r in rows]
    assert [(s.drafts, s.target) for s in bare] == [((), r.target) for r in rows]
    assert [s.target for s in aft if s.drafts] == [r.target for r in rows]
    assert [s.target for s in pseudo if s.drafts] == [r.sft_target for r in rows]
    assert [s.drafts for s in aft] == [s.drafts for s in pseudo]  # the same draws: only the target differs
    plain = [s for s in aft if not s.drafts]
    assert sorted(s.target for s in plain) == sorted(r.sft_target for r in rows)  # half of all, each row once


def test_draws_do_not_depend_on_the_other_rows_and_every_k_comes():
    rows = [row(number) for number in range(40)]
    config = replace(CONFIG, k=(1, 3, 5), sets_per_query=3, plain_share=0.0)
    drawn = make_samples(rows, "aft", config)
    assert make_samples(rows[7:9], "aft", config) == drawn[21:27]
    counts = {k: sum(len(s.drafts) == k for s in drawn) for k in (1, 3, 5)}
    assert min(counts.values()) > 20, counts
    assert all(len(set(s.drafts)) == len(s.drafts) for s in drawn)
    assert make_samples(rows, "aft", replace(config, seed=1)) != drawn


def test_the_order_of_drafts_is_free_and_the_sources_are_always_drawn():
    rows = [row(number, sources=[4], target=f"draft {number} e, mended") for number in range(600)]
    samples = make_samples(rows, "aft", replace(CONFIG, k=(3,), plain_share=0.0))
    assert all(any(draft.endswith(" e") for draft in sample.drafts) for sample in samples)
    table = measure(samples).positions[3]
    assert sum(table) == 600
    assert all(150 < count < 250 for count in table), table  # 200 each; 4 standard deviations are 46


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("aft", {"target": ""}, "d row 1 has no target: aft train aft learns it"),
        ("aft-no-drafts", {"target": None}, "d row 1 has no target"),
        ("aft-pseudo", {"sft_target": ""}, "d row 1 has no sft_target"),
        ("sft", {"target": "", "sft_target": ""}, "d row 1 has no sft_target nor target"),
        ("aft", {"drafts": []}, r"1 of 2 rows have fewer drafts with text than k=5 \(d row 1 has 0\)"),
        ("aft", {"drafts": ["only one"]}, r"\(d row 1 has 1\): lower k, or leave such rows out"),
        ("aft", {"drafts": ["a", "", " ", "b", "c"]}, r"\(d row 1 has 3\)"),
    ],
)
def test_rows_that_a_kind_cannot_use_are_refused(kind, changes, said):
    with pytest.raises(ConfigError, match=said):
        make_samples([row(0), row(1, **changes)], kind, replace(CONFIG, k=(1, 5)))


# ---------------------------------------------------------------- tokens


def test_exact_ids_and_labels_of_a_plain_example():
    example, cut = encoder().encode(Sample(ask("hi"), (), "yo", "here"))
    tokenizer = tiny_tokenizer()
    prompt = tokenizer.encode("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    y, o, end = (tokenizer.convert_tokens_to_ids(token) for token in ("y", "o", "<|im_end|>"))
    assert list(example.token_ids) == [*prompt, y, o, end]
    assert example.labels == [MASK] * len(prompt) + [y, o, end]
    assert not cut


@pytest.mark.parametrize("chat_template", [CHATML, NO_SYSTEM, None])
def test_training_prompts_are_inference_prompts(chat_template):
    made = encoder(chat_template=chat_template)
    renderer = TokenizerRenderer(made.renderer.tokenizer)  # as an engine makes one from the saved tokenizer
    chat, drafts = Chat((Message("system", "Be brief."), Message("user", "What is 2 + 2?"))), ("4, surely.", "It is 5.")
    for sample, prompt in (
        (Sample(chat, drafts, "4", ""), aggregate_prompt(made.template, renderer, chat, drafts, 2000, final=True)),
        (Sample(chat, (), "4", ""), draft_prompt(made.template, renderer, chat, 2000, final=True)),
    ):
        example, _ = made.encode(sample)
        assert example.token_ids[: example.prompt_tokens] == prompt.prompt.token_ids
        assert example.labels[example.prompt_tokens :] == [*renderer.tokenizer.encode("4"), made.end_id]


def test_a_tokenizer_without_chat_template_gets_one_that_ends_turns():
    made = encoder(chat_template=None)
    assert made.renderer.render(ask("hi")) == "### User\nhi\n\n### Assistant\n"
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    text = made.renderer.tokenizer.apply_chat_template(chat, tokenize=False)
    assert text == "### User\nhi\n\n### Assistant\nyo<|im_end|>\n\n"
    assert made.renderer.turn_end_ids == {made.end_id}


def test_white_space_that_a_chat_template_puts_before_answers_is_learnt():
    bracket = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] }}"
        "{% if not (continue_final_message is defined and continue_final_message) %}<|im_end|>{% endif %}"
        "{% else %}[{{ m['content'] }}]{% endif %}{% endfor %}"
    )
    example, _ = encoder(chat_template=bracket).encode(Sample(ask("hi"), (), "yo", "here"))
    assert list(example.token_ids) == tiny_tokenizer().encode("[hi] yo<|im_end|>")


def test_drafts_are_cut_to_fit_and_targets_never():
    sample = Sample(ask("hi"), ("a" * 300, "b" * 300), "c" * 200, "here")
    tight = encoder(max_length=1100)
    example, cut = tight.encode(sample)
    assert cut
    assert len(example.token_ids) <= 1100
    assert len(example.token_ids) - example.prompt_tokens == 201
    short = Sample(ask("hi"), (), "yo", "here")
    encoded = encoder(max_length=150).encode_all([sample, short])
    assert (len(encoded.examples), encoded.too_long, encoded.cut) == (1, 1, 0)
    with pytest.raises(ConfigError, match="none of the 1 examples fits max_length=150: raise max_length"):
        encoder(max_length=150).encode_all([sample])


def test_targets_that_cannot_be_learnt_are_refused():
    with pytest.raises(ConfigError, match="the target of here has no tokens: every token would be masked"):
        encoder().encode(Sample(ask("hi"), (), " ", "here"))
    with pytest.raises(ConfigError, match="the target of here holds a control token"):
        encoder().encode(Sample(ask("hi"), (), "yo<|im_end|>no", "here"))


def test_templates_that_drop_the_drafts_or_the_question_are_refused():
    silent = Template("{% block draft %}{% endblock %}{% block aggregate %}Do better.{% endblock %}", "silent.j2")
    with pytest.raises(TemplateError, match=r"silent.j2 and the tokenizer's chat template does not show the drafts"):
        encoder(template=silent)
    deaf = "{% for m in messages %}{% if m['role'] != 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
    with pytest.raises(TemplateError, match="does not show the user message"):
        encoder(chat_template=deaf)


def test_a_row_that_the_chat_template_refuses_is_named():
    alternating = "{% if messages | length > 4 %}{{ raise_exception('roles must alternate') }}{% endif %}" + CHATML
    made = encoder(chat_template=alternating)
    chat = Chat(tuple(Message("user", text) for text in "abcde"))
    with pytest.raises(ChatError, match=r"d row 7 is refused by the model's chat template .*roles must alternate"):
        made.encode_all([Sample(ask("hi"), (), "yo", "d row 6"), Sample(chat, (), "yo", "d row 7")])


def test_a_tokenizer_without_end_is_refused():
    tokenizer = tiny_tokenizer("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="has no end token: set its eos_token"):
        Encoder(tokenizer, Template.load(None), 100)


# ---------------------------------------------------------------- overlap


def test_the_nearest_draft_and_ties():
    assert nearest("so 3 + 4 = 7", ["3 + 4 = 8", "so 3 + 4 = 7 it is", "no"])[1] == (1,)
    assert nearest("x", ["a", "b"]) == (0.0, (0, 1))
    samples = [Sample(ask("q"), ("a b c", "a b c"), "a b c", ""), Sample(ask("q"), ("a b", "z"), "a b", "")]
    found = measure(samples)
    assert found.positions == {2: (1.0, 0.0)}  # where all drafts are equally near nothing is counted
    assert (found.samples, found.copies, found.copy_rate) == (2, 2, 1.0)


def test_copies_and_targets_that_ignore_the_drafts_are_warned_about():
    drafts = ("the sum is four because two and two make four", "it is five")
    copied, ignored, used = (
        [Sample(ask("q"), drafts, target, "")]
        for target in (drafts[1], "forty-two, obviously", "two and two make four, so four")
    )
    assert "100% of the targets are a draft word for word" in warnings(measure(copied), copied, [], False)[0]
    assert "seem to ignore the drafts" in warnings(measure(ignored), ignored, used, False)[0]
    assert warnings(measure(used), used, ignored, False) == []
    assert "every target is its row's sft_target" in warnings(measure(used), used, [], True)[0]


def test_a_lone_number_as_sft_target_is_no_level_to_beat():
    rows = [
        Row.of(
            {
                "query": f"{n} + 1?",
                "drafts": [f"{n} + 1 = {n + 1}"],
                "target": f"{n} + 1 = {n + 1}, so {n + 1}.",
                "sft_target": sft.format(n + 1),
            },
            "row",
        )
        for n in range(4)
        for sft in ("{}", "therefore the whole of it is {}")
    ]
    assert {sample.target.split()[0] for sample in pseudo_samples(rows, TrainConfig())} == {"therefore"}


def test_without_sft_targets_those_that_share_no_more_than_chance_are_warned_about():
    drafts = [(f"the sum of {n} and one is {n + 1}", f"it is {n}") for n in range(6)]
    asked = [n // 2 for n in range(12)]  # two draws of a query: its own drafts are no chance
    ignoring = [Sample(ask(f"q{n}"), drafts[n], "zebra violin", "") for n in asked]
    reading = [Sample(ask(f"q{n}"), drafts[n], f"so {n + 1} is the sum of {n} and one", "") for n in asked]
    said = warnings(measure(ignoring), ignoring, [], False)
    assert "no more (0.00) than with the drafts of other queries (0.00): they seem to ignore" in said[0]
    assert warnings(measure(reading), reading, [], False) == []
    assert with_strange_drafts(reading[:2]) == []
    strange = with_strange_drafts(reading)
    assert [sample.target for sample in strange] == [sample.target for sample in reading]
    assert all(new.drafts not in (old.drafts, ()) for new, old in zip(strange, reading, strict=True))


def test_the_rows_of_a_file_keep_their_order(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"query": str(n), "drafts": ["a"], "target": "b"}) + "\n" for n in range(3)))
    assert [(r.chat.messages[0].content, r.where) for r in load_rows(path)] == [
        (str(n), f"{path} row {n + 1}") for n in range(3)
    ]
