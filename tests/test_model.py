"""``--model aft`` inside lm-eval: contexts, repeats, stops, traces, totals, and agreement with ``--model hf``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.instances import make_instance
from helpers.lm_eval_version import IS_0_5
from helpers.scripted_runs import make_drafts
from helpers.tiny_models import CHATML, save_tiny, tiny_tokenizer
from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.errors import ChatError, ConfigError, EngineError, PromptTooLong, RecordError, TemplateError
from lm_eval_aft.core.prompts import DEFAULT_TEMPLATE, Template
from lm_eval_aft.core.records import Chat, Message
from lm_eval_aft.engines.api.engine import APIEngine
from lm_eval_aft.inference.checkpoint import CheckpointConfig, choose_template
from lm_eval_aft.inference.dialogue import answer_of
from lm_eval_aft.inference.requests import make_question, stop_at_tokens
from lm_eval_aft.model import AFTLM
from lm_eval_aft.storage.traces import read_traces

pytestmark = pytest.mark.usefixtures("quick_lm_eval")
# Two documents have one prompt.
QUESTIONS = ["1+1?", "2+2?", "3+3?", "2+2?"]


def evaluate(model: AFTLM | object, task: dict, tmp_path: Path, **options) -> dict:
    """Run lm-eval on a task with a small local file, as its command line does."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    data = tmp_path / "data.jsonl"
    rows = [{"question": q, "answer": "two", "choices": ["2", "4", "six"], "gold": 0} for q in QUESTIONS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"train": str(data), "test": str(data)}},
        "test_split": "test",
        "fewshot_split": "train",
        "fewshot_config": {"sampler": "first_n"},
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "exact_match"}],
    }
    return lm_eval.simple_evaluate(
        model=model,
        tasks=[{**base, **task}],
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
        **options,
    )


GENERATE = {
    "task": "small_generate",
    "output_type": "generate_until",
    "generation_kwargs": {"until": ["\n"], "do_sample": False, "temperature": 0.0, "max_gen_toks": 16},
}
CHOICE = {
    "task": "small_choice",
    "output_type": "multiple_choice",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{gold}}",
    "metric_list": [{"metric": "acc"}],
}
ROLLING = {
    "task": "small_rolling",
    "output_type": "loglikelihood_rolling",
    "doc_to_target": "{{question}}",
    "metric_list": [{"metric": "word_perplexity"}],
}


def aft(tiny: str, **args) -> AFTLM:
    return AFTLM(
        **{"pretrained": tiny, "dtype": "float32", "k": 2, "layers": 1, "device": "cpu", "batch_size": "auto", **args}
    )


@pytest.fixture(scope="module")
def hf(tiny):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=tiny, dtype="float32", device="cpu", batch_size=3)


def answers(results: dict) -> list:
    (samples,) = results["samples"].values()
    return [sample["resps"] for sample in samples]


def compare_with_hf(folder, tmp_path, **options):
    from lm_eval.models.huggingface import HFLM

    ours = evaluate(aft(folder, layers=0, final_temperature=0), GENERATE, tmp_path, **options)
    hf = HFLM(pretrained=folder, dtype="float32", device="cpu", batch_size=3)
    assert answers(ours) == answers(evaluate(hf, GENERATE, tmp_path, **options))
    assert any(text for ((text,),) in answers(ours))


@pytest.mark.parametrize("shots", [0, 2])
def test_a_plain_greedy_answer_equals_model_hf(tiny, tmp_path, shots):
    compare_with_hf(tiny, tmp_path, num_fewshot=shots, apply_chat_template=True, fewshot_as_multiturn=True)


def test_a_base_model_without_chat_template_equals_model_hf(tmp_path):
    compare_with_hf(save_tiny(tmp_path / "base", chat_template=None), tmp_path, num_fewshot=2)


@pytest.mark.long
def test_a_stop_string_that_no_text_shows_ends_the_answer_as_in_model_hf(tmp_path, monkeypatch):
    # With "auto", model hf tries 64 rows of the longest text first.
    model = aft(save_tiny(tmp_path / "base", chat_template=None), k=1, layers=0, batch_size=1)
    tokenizer, forward = model.engine.tokenizer, model.engine.model.forward
    control = tokenizer.convert_tokens_to_ids("<|im_start|>")
    script = [*tokenizer.encode("It is 7."), control, *tokenizer.encode("Question: 8?"), tokenizer.eos_token_id]
    prompt = len(tokenizer.encode("1+1?"))

    def scripted(input_ids=None, logits_to_keep=0, **rest):
        cache = rest.get("cache", rest.get("past_key_values"))  # the second is transformers' name before 5.24
        before = cache.get_seq_length() if cache is not None else 0
        output = forward(input_ids=input_ids, **rest)
        output.logits.fill_(-10)
        output.logits[..., script[min(before + input_ids.shape[1] - prompt, len(script) - 1)]] = 10
        return output

    monkeypatch.setattr(model.engine.model, "forward", scripted)
    settings = {"until": ["<|im_start|>", "<|im_end|>"], "do_sample": False, "max_gen_toks": 64}
    for lm in (model, model.engine.lm):
        request = make_instance("generate_until", {"q": 1}, ("1+1?", settings), 0, metadata=("t", 0, 1))
        assert lm.generate_until([request], disable_tqdm=True) == ["It is 7."]


def test_stop_strings_that_end_texts_anyway_change_no_sampling(tiny):
    model = aft(tiny)
    request = make_instance(
        "generate_until", {"q": 1}, ("1+1?", {"until": ["<|im_end|>", "\n"]}), 0, metadata=("t", 0, 1)
    )
    question = make_question(request, request.args[1], 0, model.config)
    assert stop_at_tokens(question, model.engine.renderer) == question


NAMED = {"default": CHATML, "loud": CHATML.replace("{{ m['content'] }}", "LOUD {{ m['content'] }}")}


def named_templates(folder: Path, templates: dict[str, str] | str = NAMED, kind: str = "llama") -> str:
    save_tiny(folder, kind)
    (folder / "chat_template.jinja").unlink()
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = templates
    tokenizer.save_pretrained(folder)
    return str(folder)


def rendered(model: AFTLM) -> str:
    return model.engine.renderer.render(Chat((Message("user", "1+1?"),)))


class TestNamedChatTemplates:
    def test_the_named_one_is_logged_and_rendered(self, tmp_path):
        model = aft(named_templates(tmp_path / "m"), record=str(tmp_path / "traces"))
        assert "LOUD" not in rendered(model)
        assert model.chat_template("loud") == NAMED["loud"]
        assert "LOUD 1+1?" in rendered(model)
        # --model hf scores with lm-eval's model, which renders the same template.
        history = [{"role": "user", "content": "1+1?"}]
        assert "LOUD 1+1?" in model.engine.scorer.apply_chat_template(history)
        assert model.chat_template(True) == NAMED["default"]
        assert "LOUD" not in rendered(model)

    @pytest.mark.parametrize("by_object", [True, False])
    def test_lm_evals_option_chooses_it(self, tmp_path, by_object):
        folder = named_templates(tmp_path / "m")
        arguments = {"pretrained": folder, "dtype": "float32", "k": 2, "layers": 1, "record": str(tmp_path / "traces")}
        if by_object:
            evaluate(aft(arguments.pop("pretrained"), **arguments), GENERATE, tmp_path, apply_chat_template="loud")
        else:
            evaluate("aft", GENERATE, tmp_path, apply_chat_template="loud", model_args=arguments, device="cpu")
        plain = AFTLM(pretrained=folder, dtype="float32", device="cpu")
        lengths = {}
        for trace in read_traces(tmp_path / "traces"):
            lengths[trace.question.chat.messages[0].content] = trace.layer(0)[0].completion.prompt_tokens
        # The tokenizer counts bytes.
        assert lengths["1+1?"] == plain.engine.renderer.encode(Chat((Message("user", "1+1?"),))).prompt_tokens + 5

    def test_an_unknown_name_is_refused_as_model_hf_refuses_it(self, tmp_path):
        folder = named_templates(tmp_path / "m")
        model = aft(folder)
        with pytest.raises(
            ConfigError, match="--apply_chat_template shy is not a chat template of this tokenizer: give one of"
        ):
            model.chat_template("shy")
        arguments = {"pretrained": folder, "dtype": "float32", "k": 1, "layers": 0}
        with pytest.raises(ConfigError, match="give one of default, loud"):
            evaluate("aft", GENERATE, tmp_path, apply_chat_template="shy", model_args=arguments, device="cpu")

    def test_the_end_of_its_messages_ends_texts(self, tmp_path):
        other = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<pad>{% endfor %}"
        model = aft(named_templates(tmp_path / "m", {**NAMED, "other": other}))
        before = model.engine.fingerprint
        assert 0 not in model.engine.stop_ids
        model.chat_template("other")
        assert 0 in model.engine.stop_ids
        assert model.engine.fingerprint != before

    def test_several_without_a_default_need_a_name(self, tmp_path):
        folder = named_templates(tmp_path / "m", {"loud": NAMED["loud"], "quiet": CHATML})
        with pytest.raises(ChatError, match="multiple chat templates with no default"):
            aft(folder)
        arguments = {"pretrained": folder, "dtype": "float32", "k": 1, "layers": 0}
        results = evaluate("aft", GENERATE, tmp_path, apply_chat_template="loud", model_args=arguments, device="cpu")
        assert results["results"]

    def test_a_single_template_has_no_name(self, tiny, caplog):
        model = aft(tiny)
        assert model.chat_template("loud") == CHATML
        assert "one chat template, which has no name" in caplog.text

    def test_a_server_renders_its_own(self):
        engine = object.__new__(APIEngine)
        engine.use_chat_template(None)
        with pytest.raises(ConfigError, match="has no effect with engine=api, since the server renders"):
            engine.use_chat_template("loud")


PARTS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for part in m['content'] %}{{ part['text'] }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_DRAFTS = CHATML.replace("{{ m['content'] }}", "{% if m['role'] != 'system' %}{{ m['content'] }}{% endif %}")


class TestWhatPromptsShow:
    @pytest.mark.parametrize("layers", [0, 1])
    def test_a_chat_template_that_takes_parts_only_is_refused_at_load(self, tmp_path, layers):
        folder = save_tiny(tmp_path / "m", chat_template=PARTS)
        with pytest.raises(TemplateError, match=r"tokenizer's chat template does not show the user message: correct"):
            aft(folder, layers=layers)

    def test_a_template_that_shows_no_drafts_is_refused(self, tiny, tmp_path):
        file = tmp_path / "t.j2"
        file.write_text("{% block draft %}{% endblock %}{% block aggregate %}Answer again.{% endblock %}")
        with pytest.raises(TemplateError, match="does not show the drafts: correct the template"):
            aft(tiny, template=str(file))
        # Without a prompt that reads drafts there is nothing to show.
        assert aft(tiny, template=str(file), layers=0).config.layers == 0
        assert aft(tiny, template=str(file), strategy="majority", vote_regex="x").config.selects

    def test_a_chat_template_that_drops_the_system_text_is_given_it_with_the_question(self, tmp_path):
        assert aft(save_tiny(tmp_path / "m", chat_template=NO_DRAFTS)).config.layers == 1


DATED = (
    "{% set day = date_string if date_string is defined else strftime_now('%d %b %Y') %}Today is {{ day }}. " + CHATML
)


class TestDates:
    def test_a_template_that_writes_the_date_is_said_once(self, tmp_path, caplog):
        folder = save_tiny(tmp_path / "m", chat_template=DATED)
        aft(folder)
        aft(folder)
        messages = [record.getMessage() for record in caplog.records if "today's date" in record.getMessage()]
        assert len(messages) == 1
        assert 'chat_template_args={"strftime_now":"' in messages[0]

    @pytest.mark.parametrize("pin", [{"date_string": "26 Jul 2024"}, {"strftime_now": "26 Jul 2024"}])
    def test_a_pinned_date_is_written_and_not_said(self, tmp_path, caplog, pin):
        model = aft(save_tiny(tmp_path / "m", chat_template=DATED), chat_template_args=pin)
        assert rendered(model).startswith("Today is 26 Jul 2024. ")
        history = [{"role": "user", "content": "1+1?"}]
        assert model.engine.scorer.apply_chat_template(history).startswith("Today is 26 Jul 2024. ")
        assert "today's date" not in caplog.text

    def test_a_template_without_a_date_is_not_said(self, tiny, caplog):
        aft(tiny)
        assert "today's date" not in caplog.text


def seed_of(tmp_path: Path, **options) -> int | None:
    arguments = {"pretrained": "x", "engine": "scripted", "k": 1, "layers": 0, **options.pop("model_args", {})}
    results = evaluate("aft", GENERATE, tmp_path, model_args=arguments, **options)
    return results["config"]["aft"]["seed"]


class TestSeeds:
    @pytest.mark.parametrize(
        ("seeds", "seed"),
        [
            # lm-eval's own defaults keep the stores of earlier runs valid.
            ((), 1234),
            ((0, 1234, 1234, 1234), 1234),
            # --seed 7 sets all four.
            ((7, 7, 7, 7), 7),
            ((0, 0, 0, 0), 0),
            ((1234, 1234, 1234, 1234), 1234),
            # The first that is not the default counts. The fourth one draws few-shot examples.
            ((7,), 7),
            ((0, 1234, 9, 1234), 9),
            ((0, 8, 9, 10), 8),
            ((0, 1234, 1234, 5), 1234),
            ((None, None, None, None), 1234),
            ((None, None, 6, None), 6),
        ],
    )
    def test_lm_evals_seed_is_followed(self, tmp_path, seeds, seed):
        names = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
        assert seed_of(tmp_path, **dict(zip(names, seeds, strict=False))) == seed

    @pytest.mark.parametrize(("own", "seed"), [(3, 3), ("none", None), (1234, 1234)])
    def test_our_own_seed_comes_first(self, tmp_path, own, seed):
        assert seed_of(tmp_path, model_args={"seed": own}, random_seed=7) == seed

    def test_a_model_that_lm_eval_did_not_build_keeps_its_seed(self, tiny, tmp_path):
        results = evaluate(aft(tiny), GENERATE, tmp_path, random_seed=7)
        assert results["config"]["aft"]["seed"] == 1234

    def test_three_seeds_give_three_sets_of_drafts(self, tmp_path):
        drafts = set()
        for seed in (1, 2, 3):
            folder = tmp_path / str(seed)
            seed_of(tmp_path, model_args={"k": 2, "layers": 1, "record": str(folder)}, random_seed=seed)
            drafts |= {draft.completion.text for trace in read_traces(folder) for draft in trace.layer(0)}
        # Three distinct questions with two drafts each.
        assert len(drafts) > 12


def test_the_template_of_an_adapter_in_the_home_folder_is_used(tmp_path, monkeypatch):
    (tmp_path / "adapter").mkdir()
    own = "{% block draft %}{% endblock %}{% block aggregate %}{{ drafts | join(' / ') }} own{% endblock %}"
    CheckpointConfig(own, Template(own, "x").digest).save(tmp_path / "adapter")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert choose_template(AFTConfig(engine="vllm"), {"lora_local_path": "~/adapter"}).source == own
    with pytest.raises(ConfigError, match="names the home of an unknown user"):
        choose_template(AFTConfig(engine="vllm"), {"lora_local_path": "~no-such-user/adapter"})


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("task", [CHOICE, ROLLING])
def test_loglikelihoods_equal_model_hf(tiny, hf, tmp_path, chat, task):
    options = {"apply_chat_template": chat, "fewshot_as_multiturn": chat, "num_fewshot": 0 if task is ROLLING else 2}
    model = aft(tiny, batch_size=3)
    ours = evaluate(model, task, tmp_path, **options)
    assert answers(ours) == answers(evaluate(hf, task, tmp_path, **options))
    assert ours["config"]["aft"]["scored_without_aggregation"] > 0


def test_results_traces_and_totals_agree(tiny, tmp_path):
    record = tmp_path / "traces"
    results = evaluate(aft(tiny, k=3, layers=2, record=str(record)), GENERATE, tmp_path, apply_chat_template=True)
    traces = list(read_traces(record))
    assert [trace.question.doc_id for trace in sorted(traces, key=lambda t: t.question.doc_id)] == [0, 1, 2, 3]
    assert all(len(trace.drafts) == 7 for trace in traces)
    info = results["config"]["aft"]
    assert (info["k"], info["layers"], info["generations_per_question"]) == (3, 2, 7)
    assert info["usage"]["generations"] == 28
    computed = sum(trace.computed_usage.generations for trace in traces)
    # Two questions share a prompt.
    assert info["spent"]["generations"] == computed == 21
    assert info["usage"]["generated_tokens"] == sum(trace.usage.generated_tokens for trace in traces)
    assert info["usage"]["flops"] > 0
    assert info["template"]["sha256"] == Template.load(None).digest
    by_doc = {sample["doc_id"]: sample for sample in results["samples"]["small_generate"]}
    for trace in traces:
        sample = by_doc[trace.question.doc_id]
        assert trace.question.doc_hash == sample["doc_hash"]
        assert sample["resps"] == [[trace.answer.split("\n")[0]]]
        assert (trace.question.final.temperature, trace.question.drafts.temperature) == (0.0, 0.7)
    json.dumps(info)


def test_the_same_command_again_generates_nothing_and_replaces_its_traces(tiny, tmp_path):
    record = tmp_path / "traces"
    first = evaluate(aft(tiny, record=str(record)), GENERATE, tmp_path)
    lines = [trace.drafts for trace in read_traces(record)]
    second = evaluate(aft(tiny, record=str(record)), GENERATE, tmp_path)
    assert answers(first) == answers(second)
    assert second["config"]["aft"]["spent"]["generations"] == 0
    assert second["config"]["aft"]["usage"] == first["config"]["aft"]["usage"]
    again = [trace.drafts for trace in read_traces(record)]
    assert [[d.completion for d in drafts] for drafts in again] == [[d.completion for d in drafts] for drafts in lines]
    assert not list(record.glob("*.partial"))


def test_order_limit_and_batch_size_change_no_text(tiny, tmp_path):
    def texts(model, **options):
        results = evaluate(model, GENERATE, tmp_path, apply_chat_template=True, **options)
        return {sample["doc_id"]: sample["resps"] for sample in results["samples"]["small_generate"]}

    whole = texts(aft(tiny, final_temperature=0.9))
    assert texts(aft(tiny, final_temperature=0.9, batch_size=1)) == whole
    assert texts(aft(tiny, final_temperature=0.9), limit=2) == {0: whole[0], 1: whole[1]}
    # lm-eval 0.5.0.dev1 fails on samples= with documents that are not the first ones.
    if not IS_0_5:
        chosen = texts(aft(tiny, final_temperature=0.9), samples={"small_generate": [1, 2]})
        assert chosen == {1: whole[1], 2: whole[2]}
    # These two documents have one prompt.
    assert whole[1] == whole[3]


def test_repeats_are_further_draws(tiny, tmp_path):
    task = {**GENERATE, "repeats": 3, "filter_list": [{"name": "first", "filter": [{"function": "take_first"}]}]}
    results = evaluate(aft(tiny, final_temperature=1.0, record=str(tmp_path / "r")), task, tmp_path)
    for ((*texts,),) in answers(results):
        assert len(texts) == 3
    assert any(len(set(texts)) > 1 for ((*texts,),) in answers(results))
    traces = list(read_traces(tmp_path / "r"))
    assert sorted((t.question.doc_id, t.question.repeat) for t in traces) == [
        (d, r) for d in range(4) for r in range(3)
    ]


def logged_arguments(results: dict) -> list[list[tuple]]:
    (samples,) = results["samples"].values()
    return [sample["arguments"] for sample in samples]


@pytest.mark.parametrize("layers", [0, 1])
def test_sample_logs_show_the_rendered_prompt_beside_its_messages(tiny, tmp_path, layers):
    chat = {"apply_chat_template": True, "system_instruction": "Be brief."}
    (request,) = logged_arguments(evaluate(aft(tiny, layers=layers), GENERATE, tmp_path, **chat))[0]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    rendered = aft(tiny).tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert request[0] == rendered
    assert request[1]["max_gen_toks"] == 16
    assert request[2] == {"messages": messages}


def test_sample_logs_show_a_prefill_with_the_answer_only(tiny, tmp_path):
    task = {**GENERATE, "gen_prefix": "It is"}
    for layers, shown in ((0, True), (1, False)):
        (request,) = logged_arguments(evaluate(aft(tiny, layers=layers), task, tmp_path, apply_chat_template=True))[0]
        assert request[2]["messages"][-1] == {"role": "assistant", "content": "It is"}
        assert request[0].endswith("It is") is shown


def test_sample_logs_of_a_bare_prompt_show_the_turn_that_it_becomes(tiny, tmp_path):
    (request,) = logged_arguments(evaluate(aft(tiny), GENERATE, tmp_path))[0]
    messages = [{"role": "user", "content": "1+1?"}]
    rendered = aft(tiny).tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert (request[0], request[2]) == (rendered, {"messages": messages})


def test_sample_logs_of_a_server_show_a_transcript(tmp_path):
    lm = AFTLM(engine="scripted", k=2, layers=1)
    options = {"apply_chat_template": True, "system_instruction": "Be brief."}
    (request,) = logged_arguments(evaluate(lm, GENERATE, tmp_path, **options))[0]
    assert request[0] == "system: Be brief.\n\nuser: 1+1?"


@pytest.mark.parametrize("mcq", ["plain", "drafts"])
def test_sample_logs_of_choices_show_the_rendered_prompt(tiny, tmp_path, mcq):
    lm = aft(tiny, mcq=mcq, draft_max_tokens=4)
    requests = logged_arguments(evaluate(lm, CHOICE, tmp_path, apply_chat_template=True))[0]
    messages = [{"role": "user", "content": "1+1?"}]
    rendered = aft(tiny).tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert [request[0] for request in requests] == [rendered] * 3
    assert [request[1].strip() for request in requests] == ["2", "4", "six"]
    assert requests[0][2] == {"messages": messages}


def test_a_request_whose_prompt_is_shown_can_be_answered_again(tiny):
    lm = aft(tiny, k=1)
    context = lm.apply_chat_template([{"role": "user", "content": "1+1?"}])
    settings = {"until": [], "max_gen_toks": 4}
    request = make_instance("generate_until", {"q": 1}, (context, settings), 0, metadata=("t", 0, 1))
    first = lm.generate_until([request], disable_tqdm=True)
    shown = request.args
    assert lm.generate_until([request], disable_tqdm=True) == first
    assert request.args == shown
    assert lm.usage.generations == 2 * lm.config.generations


def test_each_run_of_one_model_has_its_own_costs(tiny, tmp_path):
    lm = aft(tiny)
    runs = [evaluate(lm, GENERATE, tmp_path, limit=limit)["config"]["aft"] for limit in (2, 1)]
    assert [run["usage"]["generations"] for run in runs] == [2 * 3, 3]
    assert [run["spent"]["generations"] for run in runs] == [2 * 3, 3]
    assert [run["bare_prompts_wrapped"] for run in runs] == [2, 1]


def test_requests_of_several_kinds_are_one_run(tiny, tmp_path):
    lm = aft(tiny)
    lm.generate_until([make_instance("generate_until", {"q": 1}, ("1+1?", {"until": []}), 0, metadata=("t", 0, 1))])
    lm.loglikelihood([make_instance("loglikelihood", {"q": 1}, ("1+1?", " 2"), 0, metadata=("t", 0, 1))])
    ours = lm.get_model_info()["aft"]
    assert (ours["usage"]["generations"], ours["scored_without_aggregation"]) == (3, 1)


def test_padding_clones_are_neither_run_nor_counted(tiny, tmp_path):

    args = ("2+2?", {"max_gen_toks": 4})
    one = make_instance("generate_until", {"q": 1}, args, 0, ("t", 0, 1))
    two = make_instance("generate_until", {"q": 2}, ("3+3?", {"max_gen_toks": 4}), 0, ("t", 1, 1))
    model = aft(tiny, record=str(tmp_path / "r"))
    # lm-eval pads the requests of a process with the last one.
    texts = model.generate_until([one, two, two, two], disable_tqdm=True)
    assert texts[1] == texts[2] == texts[3]
    assert model.usage.generations == 6
    assert len(list(read_traces(tmp_path / "r"))) == 2


def test_few_shot_turns_and_system_arrive_in_the_prompt(tiny, tmp_path):
    model = aft(tiny, record=str(tmp_path / "r"))
    options = {"num_fewshot": 3, "apply_chat_template": True, "fewshot_as_multiturn": True}
    evaluate(model, GENERATE, tmp_path, system_instruction="Be brief.", limit=1, **options)
    (trace,) = read_traces(tmp_path / "r")
    roles = [message.role for message in trace.question.chat.messages]
    assert roles == ["system", *["user", "assistant"] * 3, "user"]
    assert not trace.question.chat.wrapped


def test_a_bare_prompt_is_wrapped_with_a_warning_and_a_count(tiny, tmp_path, caplog):
    results = evaluate(aft(tiny), GENERATE, tmp_path)
    assert results["config"]["aft"]["bare_prompts_wrapped"] == 4
    assert "add --apply_chat_template" in caplog.text


def test_an_empty_prompt_and_one_beyond_the_context(tiny):

    def request(text):
        return [make_instance("generate_until", {}, (text, {"max_gen_toks": 4}), 0, ("t", 0, 1))]

    assert isinstance(aft(tiny).generate_until(request(""), disable_tqdm=True)[0], str)
    with pytest.raises(PromptTooLong, match="longer context"):
        aft(tiny).generate_until(request("word " * 2000), disable_tqdm=True)


def test_use_cache_is_refused_with_the_reason(tiny, tmp_path):
    with pytest.raises(ConfigError, match="cache=FILE"):
        evaluate(aft(tiny), GENERATE, tmp_path, use_cache=str(tmp_path / "cache"))


def test_generation_settings_that_are_not_used_are_named(tiny, tmp_path, caplog):
    task = {**GENERATE, "generation_kwargs": {**GENERATE["generation_kwargs"], "no_repeat_ngram_size": 3, "min_p": 0.1}}
    evaluate(aft(tiny), task, tmp_path)
    assert "Generation settings ['no_repeat_ngram_size'] of small_generate are not used" in caplog.text


def test_an_engine_without_scorer_names_itself(tmp_path):
    with pytest.raises(EngineError, match="engine=scripted cannot answer loglikelihood"):
        evaluate(AFTLM(engine="scripted"), CHOICE, tmp_path)


def test_a_record_folder_that_cannot_be_written(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="record= a folder you can write to"):
        aft(tiny, record=str(tmp_path / "file" / "traces"))


def test_a_missing_and_a_damaged_trace(tmp_path):
    with pytest.raises(RecordError, match="no traces"):
        list(read_traces(tmp_path))
    (tmp_path / "t.jsonl").write_text('{"half": ')
    with pytest.raises(RecordError, match=r"t\.jsonl line 1 is not JSON"):
        list(read_traces(tmp_path))


class TestCheckpointTemplate:
    OTHER = "{% block draft %}Draft.{% endblock %}{% block aggregate %}Merge {{ drafts | join(' | ') }}.{% endblock %}"

    @pytest.fixture
    def trained(self, tiny, tmp_path):
        import shutil

        folder = tmp_path / "trained"
        shutil.copytree(tiny, folder)
        CheckpointConfig(self.OTHER, Template(self.OTHER, "x").digest, k=3).save(folder)
        return folder

    def test_it_is_used(self, trained):
        assert aft(str(trained)).template.source == self.OTHER

    def test_it_is_found_in_a_subfolder(self, trained, tmp_path):
        args = {"pretrained": str(tmp_path), "subfolder": trained.name}
        assert choose_template(AFTConfig(), args).source == self.OTHER

    def test_the_same_template_from_a_file_is_no_contradiction(self, trained, tmp_path):
        (tmp_path / "same.j2").write_text(self.OTHER)
        assert aft(str(trained), template=str(tmp_path / "same.j2")).template.source == self.OTHER

    def test_another_is_refused_unless_overridden(self, trained, tmp_path):
        other = tmp_path / "default.j2"
        other.write_text(DEFAULT_TEMPLATE)
        with pytest.raises(ConfigError, match="template_override=true"):
            aft(str(trained), template=str(other))
        assert aft(str(trained), template=str(other), template_override=True).template.source == DEFAULT_TEMPLATE

    def test_a_damaged_file_is_named(self, trained):
        (trained / "aft_config.json").write_text("{")
        with pytest.raises(ConfigError, match=r"aft_config\.json cannot be read"):
            aft(str(trained))
        CheckpointConfig(self.OTHER, "0" * 64).save(trained)
        with pytest.raises(ConfigError, match="states template_sha256"):
            aft(str(trained))


@pytest.mark.parametrize(
    ("until", "expected"),
    [(None, "a\n\nb Q: c"), ([], "a\n\nb Q: c"), (["Q:", "\n\n"], "a"), ("Q:", "a\n\nb "), ([""], "a\n\nb Q: c")],
)
def test_stop_strings_cut_the_final_text(until, expected):
    request = make_instance("generate_until", {}, ("?", {"until": until}), 0, ("t", 0, 1))
    question = make_question(request, request.args[1], 0, AFTConfig())
    assert answer_of(question, make_drafts("a\n\nb Q: c")[0]) == expected


def test_a_stop_string_that_is_none_is_refused_before_anything_is_generated():
    request = make_instance("generate_until", {}, ("?", {"until": 5}), 0, ("t", 0, 1))
    with pytest.raises(ConfigError, match="until=5 is not allowed: until must be a text or a list of texts"):
        make_question(request, request.args[1], 0, AFTConfig())


def test_what_precedes_the_end_of_thinking_is_no_part_of_an_answer():
    request = make_instance("generate_until", {}, ("?", {"until": ["\n\n"]}), 0, ("t", 0, 1))
    question = make_question(request, request.args[1], 0, AFTConfig(think_end_token="</think>"))
    assert answer_of(question, make_drafts("<think>two\n\nlines</think>\n4\n\nrambling")[0]) == "4"
    assert answer_of(question, make_drafts("4\n\nrambling")[0]) == "4"


def test_other_models_cannot_find_our_contexts_in_lm_evals_request_cache(tiny, hf):
    assert aft(tiny).tokenizer_name != hf.tokenizer_name
    assert aft(tiny).tokenizer_name.startswith("aft-")
    assert tiny_tokenizer().chat_template == aft(tiny).chat_template(True)
