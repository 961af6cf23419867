"""Several models in one run: which writes which text, their seeds, store keys, cost, resuming and refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.instances import make_instance
from helpers.scripted_runs import TEMPLATE, Recorder, make_question, run
from helpers.tiny_models import NO_SYSTEM, save_tiny
from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.errors import AFTError, ConfigError, EngineError, PromptTooLong, TemplateError
from lm_eval_aft.core.names import joined_name
from lm_eval_aft.core.prompts import DEFAULT_TEMPLATE, Template
from lm_eval_aft.core.records import Request, Trace
from lm_eval_aft.core.usage import ModelShape, Usage, total
from lm_eval_aft.inference.ballot import best
from lm_eval_aft.inference.models import Model, ModelPlan, Models
from lm_eval_aft.inference.schedule import propose_and_aggregate
from lm_eval_aft.model import AFTLM
from lm_eval_aft.storage.draft_store import NoStore, SQLiteStore, generation_key
from lm_eval_aft.storage.traces import read_traces

QUESTIONS = [make_question(f"What is {n} + {n}?", doc_id=n) for n in range(3)]
SHAPE = ModelShape(parameters=1000, layers=2, attention_width=8)


def first_model(request: Request) -> str:
    return f"first {request.seed % 1000}"


def second_model(request: Request) -> str:
    return f"second model {request.seed % 1000}"


def model(script, name: str, max_length: int = 8192, template: Template = TEMPLATE) -> Model:
    return Model(name, Recorder(script, max_length), template, "scripted")


def answer(models: Models, store=None, questions=QUESTIONS, k=4, layers=2, **settings) -> list[Trace]:
    config = AFTConfig(k=k, layers=layers, **settings)
    main = models.main
    return propose_and_aggregate(
        questions, main.engine, main.template, config, store or NoStore(), models=models, quiet=True
    )


def texts(traces: list[Trace], layer: int) -> list[list[str]]:
    return [[draft.completion.text for draft in trace.layer(layer)] for trace in traces]


class TestAggregator:
    def test_it_writes_every_layer_after_the_drafts(self):
        models = Models(model(first_model, "one"), model(second_model, "two"))
        traces = answer(models)
        assert [len(layer) for layer in models.main.engine.layers] == [12]
        assert [len(layer) for layer in models.aggregator.engine.layers] == [12, 3]
        assert all(trace.answer.startswith("second model") for trace in traces)

    def test_its_texts_equal_those_of_its_own_run_on_the_same_drafts(self, tmp_path):
        models = Models(model(first_model, "one"), model(second_model, "two"))
        together = answer(models)
        drafts = run(QUESTIONS, k=4, layers=2, engine=Recorder(first_model))
        assert texts(together, 0) == texts(drafts, 0)
        assert [draft.seed for draft in together[0].drafts] == [draft.seed for draft in drafts[0].drafts]

    def test_it_reads_the_drafts_through_its_own_template(self):
        own = Template(DEFAULT_TEMPLATE.replace("Below are", "Read these"), "own")
        models = Models(model(first_model, "one"), model(second_model, "two", template=own))
        answer(models)
        (request, *_), *_ = models.aggregator.engine.layers
        assert "Read these 4 drafts" in request.prompt.chat.messages[0].content
        assert "first" in request.prompt.chat.messages[0].content

    def test_its_own_context_decides_what_is_cut_from_the_drafts(self):
        def long(request: Request) -> str:
            return "word " * 50

        models = Models(model(long, "one"), model(second_model, "two", max_length=300))
        (trace,) = answer(models, questions=QUESTIONS[:1], layers=1)
        (cuts,) = trace.cut_tokens
        assert len(cuts) == 4
        assert min(cuts) > 0

    def test_a_question_too_long_for_it_names_it(self):
        models = Models(model(first_model, "one"), model(second_model, "two", max_length=70))
        with pytest.raises(PromptTooLong, match=r"^two: the question 'What is 0 . 0.'... needs"):
            answer(models, questions=QUESTIONS[:1])
        assert len(models.main.engine.layers) == 1

    def test_thoughts_of_one_model_say_nothing_about_the_prompts_of_the_other(self):
        """A text that ends a thought shows that its own model's prompt opened one."""

        def thinks(request: Request) -> str:
            return "hm </think> it is 4"

        def is_cut(request: Request) -> str:
            return "so " * 100

        models = Models(model(thinks, "one"), model(is_cut, "two"))
        (trace,) = answer(models, questions=QUESTIONS[:1], layers=1)
        assert trace.drafts[-1].cut
        assert trace.drafts[-1].opened_thought == ""
        (trace,) = answer(
            Models(model(lambda r: thinks(r) if r.seed % 2 else is_cut(r), "one")), questions=QUESTIONS[:1]
        )
        assert {draft.opened_thought for draft in trace.drafts if draft.cut} == {"<think>"}


class TestProposers:
    def both(self) -> Models:
        return Models(model(first_model, "one"), None, (model(first_model, "one"), model(second_model, "two")))

    def test_each_writes_an_equal_part_and_the_main_model_the_layers(self):
        traces = answer(self.both())
        for drafts in texts(traces, 0):
            assert [text.split()[0] for text in drafts] == ["first", "first", "second", "second"]
        assert all(text.startswith("first") for layer in texts(traces, 1) for text in layer)

    def test_their_drafts_are_those_of_runs_of_each_model_alone(self):
        traces = answer(self.both())
        first = run(QUESTIONS, k=4, layers=1, engine=Recorder(first_model))
        second = run(QUESTIONS, k=4, layers=1, engine=Recorder(second_model))
        alone = [one[:2] + two[2:] for one, two in zip(texts(first, 0), texts(second, 0), strict=True)]
        assert texts(traces, 0) == alone
        assert [draft.seed for draft in traces[0].layer(0)] == [draft.seed for draft in first[0].layer(0)]

    def test_a_store_with_the_drafts_of_each_model_generates_none_anew(self, tmp_path):
        store = SQLiteStore(tmp_path / "drafts.sqlite")
        for script in (first_model, second_model):
            run(QUESTIONS, k=4, layers=1, engine=Recorder(script), store=store)
        models = self.both()
        traces = answer(models, store)
        assert all(draft.reused for trace in traces for draft in trace.layer(0))
        assert [proposer.engine.layers for proposer in models.proposers] == [[[]], [[]]]

    @pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
    def test_any_number_of_them_that_divides_k(self, count):
        scripts = [lambda request, n=n: f"model{n} {request.seed}" for n in range(count)]
        models = Models(model(first_model, "main"), None, tuple(model(s, f"m{n}") for n, s in enumerate(scripts)))
        (trace,) = answer(models, questions=QUESTIONS[:1], k=12)
        assert [text.split()[0] for text in texts([trace], 0)[0]] == [f"model{n // (12 // count)}" for n in range(12)]
        assert len({(d.seed, d.completion.text.split()[0]) for d in trace.layer(0)}) == 12
        assert len(trace.drafts) == 12 * 2 + 1

    def test_no_proposer_wins_every_tie(self):
        questions = [make_question(f"Question {n}") for n in range(200)]
        models = Models(model(first_model, "one"), None, (model(first_model, "one"), model(second_model, "two")))
        traces = answer(models, questions=questions, k=2, layers=1)
        taken = [best([1.0, 1.0], trace.layer(0)) for trace in traces]
        assert 70 < sum(taken) < 130
        assert taken == [best([1.0, 1.0], trace.layer(0)) for trace in traces]

    def test_two_that_share_an_engine_share_its_calls(self):
        engine = Recorder(first_model)
        own = Template(DEFAULT_TEMPLATE.replace("{% block draft %}", "{% block draft %}Be brief."), "own")
        models = Models(Model("m", engine, TEMPLATE), None, (Model("m", engine, TEMPLATE), Model("m", engine, own)))
        answer(models)
        assert [len(layer) for layer in engine.layers] == [12, 12, 3]


@given(
    count=st.integers(1, 4),
    each=st.integers(1, 3),
    layers=st.integers(1, 4),
    narrow=st.integers(0, 3),
    with_aggregator=st.booleans(),
)
def test_generations_equal_the_formula_and_every_store_key_is_met_once(count, each, layers, narrow, with_aggregator):
    """Widths, subsets and any number of models: nothing is generated twice, and each key has its writer's engine."""
    k, scripts = count * each, [lambda request, n=n: f"model{n} {request.seed}" for n in range(count + 1)]
    for number, script in enumerate(scripts):
        script.__qualname__ = f"script{number}"
    main, *others = [model(script, f"m{number}") for number, script in enumerate(scripts)]
    models = Models(main, others[0]) if with_aggregator else Models(main, None, tuple(others))
    widths = (k, narrow) if narrow and layers > 1 else ()
    config = AFTConfig(k=k, layers=layers, widths=widths, subset=min(k, narrow) if narrow else None)
    store = NoStore()
    traces = propose_and_aggregate(QUESTIONS, main.engine, TEMPLATE, config, store, models=models, quiet=True)
    assert all(len(trace.drafts) == config.generations for trace in traces)
    requests = [
        (engine.fingerprint, request) for engine in models.engines for layer in engine.layers for request in layer
    ]
    keys = {generation_key(fingerprint, request) for fingerprint, request in requests}
    assert len(keys) == len(requests) == len(QUESTIONS) * config.generations


class TestCost:
    def test_each_model_costs_what_its_own_shape_says(self):
        models = Models(model(first_model, "one"), model(second_model, "two"))
        models.main.engine.shape = SHAPE
        models.aggregator.engine.shape = replace(SHAPE, parameters=5000)
        for trace in answer(models):
            assert total(list(trace.usage_by_model.values())) == trace.usage
            assert trace.usage_by_model["one"].generations == 4
            assert trace.usage_by_model["two"].generations == 5
            drafts = [draft.completion for draft in trace.layer(0)]
            prompt = drafts[0].prompt_tokens
            flops = SHAPE.flops(0, prompt) + sum(SHAPE.flops(prompt, prompt + d.generated_tokens) for d in drafts)
            assert trace.usage_by_model["one"].flops == flops

    def test_operations_are_unknown_if_the_shape_of_one_model_is(self):
        models = Models(model(first_model, "one"), model(second_model, "two"))
        models.main.engine.shape = SHAPE
        (trace,) = answer(models, questions=QUESTIONS[:1])
        assert trace.usage.flops == 0
        assert trace.usage_by_model["one"].flops > 0

    def test_each_proposer_computes_the_prompt_of_its_drafts_once(self):
        models = Models(model(first_model, "one"), None, (model(first_model, "one"), model(second_model, "two")))
        (trace,) = answer(models, questions=QUESTIONS[:1], layers=1)
        prompt = trace.drafts[0].completion.prompt_tokens
        assert trace.usage_by_model["two"].computed_prompt_tokens == prompt
        assert trace.usage_by_model["two"].prompt_tokens == 2 * prompt

    def test_a_trace_keeps_it(self):
        (trace,) = answer(Models(model(first_model, "one"), model(second_model, "two")), questions=QUESTIONS[:1])
        assert Trace.from_json(trace.to_json()) == trace
        assert run(QUESTIONS[:1])[0].usage_by_model == {}


class TestResuming:
    def test_what_is_finished_stays_if_a_model_dies(self, tmp_path):
        calls = 0

        def dies(request: Request) -> str:
            nonlocal calls
            calls += 1
            if calls > 3:
                raise EngineError("the device is lost")
            return second_model(request)

        dies.__module__, dies.__qualname__ = second_model.__module__, second_model.__qualname__
        store = SQLiteStore(tmp_path / "drafts.sqlite")
        with pytest.raises(EngineError, match=r"^b: the device is lost$"):
            answer(Models(model(first_model, "a"), None, (model(first_model, "a"), model(dies, "b"))), store)
        models = Models(model(first_model, "a"), None, (model(first_model, "a"), model(second_model, "b")))
        resumed = answer(models, store)
        assert [len(proposer.engine.layers[0]) for proposer in models.proposers] == [0, 3]
        whole = answer(Models(model(first_model, "a"), None, (model(first_model, "a"), model(second_model, "b"))))
        assert [texts(resumed, layer) for layer in range(3)] == [texts(whole, layer) for layer in range(3)]
        assert [trace.usage for trace in resumed] == [trace.usage for trace in whole]


REFUSED = [
    ({"aggregator": {"k": 3}}, "aggregator has k=3, which belongs to the run: give k beside aggregator"),
    ({"proposers": [{"pretrained": "x"}, {"seed": 1}]}, r"proposers\[1\] has seed=1, which belongs to the run"),
    ({"aggregator": {"aggregator": {}}}, "aggregator has aggregator=.*belongs to the run"),
    ({"aggregator": "bundled:aft"}, "aggregator=bundled:aft is not allowed: aggregator must be a dictionary"),
    ({"proposers": {"pretrained": "x"}}, "proposers must be a list of dictionaries"),
    ({"proposers": []}, "proposers must be a list of dictionaries"),
    ({"proposers": ["bundled:aft"]}, r"proposers\[0\]=bundled:aft is not allowed"),
    ({"proposers": [{}, {}, {}], "k": 5}, "k=5 drafts cannot be split evenly among 3 proposers: give a multiple of 3"),
    ({"aggregator": {}, "proposers": [{}]}, "aggregator= contradicts proposers=: .* give it as pretrained="),
    ({"aggregator": {}, "layers": 0}, "aggregator= needs an aggregation layer: layers=0 must be 1 or more"),
    ({"proposers": [{}], "layers": 0}, "proposers= needs an aggregation layer: layers=0 must be 1 or more"),
    ({"aggregator": {}, "strategy": "majority"}, "aggregator= writes nothing with strategy=majority and layers=1"),
    ({"aggregator": {}, "strategy": "beam"}, "aggregator= needs an aggregation layer"),
    ({"aggregator": {}, "drafts_from": "folder"}, "aggregator= contradicts drafts_from="),
    ({"proposers": [{}], "stop_when": "window:2"}, "stop_when=window:2 ends the drafts of one model"),
    ({"proposers": [{}], "mcq": "drafts"}, "proposers= does not fit mcq=drafts.*use mcq=plain"),
    ({"aggregator": {"api_key": "x9y8z7w6v5"}}, "aggregator.api_key must not be given in --model_args"),
    (
        {"proposers": [{"headers": {"Authorization": "q1w2e3r4t5"}}]},
        "proposers.headers.Authorization must not be given",
    ),
]


class TestArguments:
    @pytest.mark.parametrize(("arguments", "sentence"), REFUSED)
    def test_what_is_refused(self, arguments, sentence):
        with pytest.raises(ConfigError, match=sentence) as caught:
            AFTConfig.split({"k": 4, **arguments})
        assert "x9y8z7w6v5" not in str(caught.value)
        assert "q1w2e3r4t5" not in str(caught.value)

    def test_the_texts_of_json_values_are_read(self):
        given = {"aggregator": '{"pretrained":"a","enable_thinking":true}'}
        config, rest = AFTConfig.split({"pretrained": "b", **given})
        assert config.aggregator == {"pretrained": "a", "enable_thinking": True}
        assert rest == {"pretrained": "b"}
        config, _ = AFTConfig.split({"k": 2, "proposers": '[{"pretrained":"a"},{"pretrained":"b","dtype":null}]'})
        assert config.proposers == ({"pretrained": "a"}, {"pretrained": "b"})

    def test_proposers_may_be_voted_on(self):
        config, _ = AFTConfig.split({"k": 4, "proposers": [{"pretrained": "a"}], "strategy": "majority"})
        assert config.generations == 4


def plan(main: dict, **arguments) -> ModelPlan:
    config, engine_args = AFTConfig.split({"k": 4, **main, **arguments})
    return ModelPlan.of(config, engine_args, HostArgs(device="cpu"))


def load_scripted(kind: str, engine_args, host: HostArgs) -> Recorder:
    """Load a scripted engine whose fingerprint holds the checkpoint. It fails for the checkpoint "broken"."""
    if engine_args.get("pretrained") == "broken":
        raise EngineError("the checkpoint broken has no weights: copy it again.")
    engine = Recorder()
    engine.fingerprint = f"{kind}/{engine_args.get('pretrained', engine_args.get('model'))}"
    engine.host = host
    return engine


MAIN = {"engine": "scripted", "pretrained": "a"}


class TestLoading:
    def test_the_engine_is_that_of_the_main_model_unless_it_is_given(self):
        models = plan(MAIN, proposers=[{"pretrained": "b"}, {"engine": "api", "model": "c"}]).load(load_scripted)
        assert [m.kind for m in models.proposers] == ["scripted", "api"]
        assert [m.name for m in models.proposers] == ["b", "c"]
        assert [m.engine.fingerprint for m in models.proposers] == ["scripted/b", "api/c"]

    def test_models_with_equal_arguments_share_one_engine(self):
        models = plan(MAIN, proposers=[{"pretrained": "a"}, {"pretrained": "b"}]).load(load_scripted)
        assert models.proposers[0].engine is models.main.engine
        assert len(models.engines) == 2

    def test_device_and_batch_size_may_be_given_to_a_model(self):
        models = plan(MAIN, aggregator={"pretrained": "b", "device": "cuda:1", "batch_size": 8}).load(load_scripted)
        assert models.aggregator.engine.host == HostArgs(8, None, "cuda:1")
        assert models.main.engine.host == HostArgs(device="cpu")

    def test_names_tell_models_with_different_engines_apart(self):
        models = plan(MAIN, aggregator={"pretrained": "a", "dtype": "bfloat16"}).load(load_scripted)
        assert (models.main.name, models.aggregator.name) == ("a", "a (aggregator)")

    def test_a_failure_names_the_model(self):
        chosen = plan(MAIN, proposers=[{"pretrained": "b"}, {"pretrained": "broken"}])
        with pytest.raises(
            EngineError, match=r"^proposers\[1\]: the checkpoint broken has no weights: copy it again\.$"
        ):
            chosen.load(load_scripted)

    def test_equal_proposers_are_refused(self):
        chosen = plan(MAIN, proposers=[{"pretrained": "b"}, {"pretrained": "b", "max_length": 100}])
        with pytest.raises(ConfigError, match=r"proposers\[1\] would write the same drafts as proposers\[0\]"):
            chosen.load(load_scripted)

    def test_one_model_with_two_draft_prompts_is_two_proposers(self, tmp_path):
        file = tmp_path / "brief.j2"
        file.write_text(DEFAULT_TEMPLATE.replace("{% block draft %}", "{% block draft %}Be brief."))
        chosen = plan(MAIN, proposers=[{"pretrained": "b"}, {"pretrained": "b", "template": str(file)}])
        assert [proposer.template.name for proposer in chosen.load(load_scripted).proposers] == ["default", str(file)]

    def test_a_checkpoint_must_be_named(self):
        with pytest.raises(ConfigError, match=r"^aggregator: it names no checkpoint for engine=hf: give pretrained"):
            plan({"pretrained": "a"}, aggregator={"peft": "b"})

    def test_two_models_of_vllm_are_refused(self):
        with pytest.raises(ConfigError, match=r"aggregator is a second model with engine=vllm.*give it engine=api"):
            plan({"engine": "vllm", "pretrained": "a"}, aggregator={"pretrained": "b"})

    def test_the_template_of_the_run_is_that_of_models_without_one(self, tmp_path):
        file = tmp_path / "own.j2"
        file.write_text(DEFAULT_TEMPLATE + " ")
        run_template = {**MAIN, "template": str(file)}
        models = plan(run_template, aggregator={"pretrained": "b"}).load(load_scripted)
        assert models.aggregator.template.name == str(file)
        models = plan({"pretrained": "x", **run_template}, aggregator={"engine": "hf", "pretrained": "bundled:aft"})
        assert models.load(load_scripted).aggregator.template.name.endswith("aft_config.json")


class TestChatTemplates:
    def test_a_named_one_that_a_model_lacks_is_refused_with_its_place(self, monkeypatch):
        models = Models(model(first_model, "one"), model(second_model, "two"))

        def lacks(name):
            raise ConfigError(f"there is no chat template {name}: give another name.")

        monkeypatch.setattr(models.aggregator.engine, "use_chat_template", lacks)
        with pytest.raises(ConfigError, match=r"^aggregator: there is no chat template tool_use: give another name\.$"):
            models.use_chat_template("tool_use")

    def test_only_the_model_that_reads_drafts_must_show_them(self):
        blind = Template("{% block draft %}{% endblock %}{% block aggregate %}Again.{% endblock %}", "blind")
        Models(model(first_model, "one", template=blind), model(second_model, "two")).check_prompts(reads=True)
        models = Models(model(first_model, "one"), model(second_model, "two", template=blind))
        with pytest.raises(TemplateError, match=r"^aggregator: the prompt made with the template blind does not show"):
            models.check_prompts(reads=True)


def local(tiny: str, **arguments) -> AFTLM:
    settings = {"pretrained": tiny, "dtype": "float32", "device": "cpu", "batch_size": "auto", "max_gen_toks": 24}
    return AFTLM(**{**settings, "k": 2, "layers": 2, **arguments})


class TestEngines:
    def test_each_model_reads_with_its_own_chat_template_and_context(self, tiny, tmp_path, monkeypatch):
        other = save_tiny(tmp_path / "other", "sliding", NO_SYSTEM.replace("<|im_start|>", "<|im_start|>as "))
        lm = local(tiny, layers=1, aggregator={"pretrained": other, "dtype": "float32", "max_length": 700})
        prompts: dict[str, list[str]] = {"main": [], "aggregator": []}
        for name, engine in (("main", lm.engine), ("aggregator", lm.models.aggregator.engine)):

            def record(requests, name=name, engine=engine, generate=engine.generate):
                prompts[name] += [engine.renderer.tokenizer.decode(request.prompt.token_ids) for request in requests]
                return generate(requests)

            monkeypatch.setattr(engine, "generate", record)
        # It fits the drafts' context of 4,096 tokens, and not the aggregator's with two drafts.
        ask(lm, 1, {"max_gen_toks": 64})
        assert prompts["main"] == ["<|im_start|>user\n3 + 30 - 3 * 2<|im_end|>\n<|im_start|>assistant\n"] * 2
        (reading,) = prompts["aggregator"]
        assert reading.startswith("<|im_start|>as user\nBelow are 2 drafts")
        assert lm.models.reader.engine.max_length == 700
        assert lm.get_model_info()["aft"]["cut_drafts"]["cut_prompts"] == 1

    def test_a_server_aggregates_what_a_local_model_drafts(self, tiny, server, tmp_path):
        aggregator = {"engine": "api", "base_url": server.url, "model": "m"}
        lm = local(tiny, aggregator=aggregator, record=str(tmp_path))
        (answer,) = ask(lm, 1)
        assert answer.startswith("answer ")
        assert len(server.calls) == 3
        assert "Below are 2 drafts" in server.calls[0]["messages"][0]["content"]
        info = lm.get_model_info()["aft"]
        assert {name: row["generations"] for name, row in info["usage_by_model"].items()} == {tiny: 2, "m": 3}
        assert info["usage_by_model"][tiny]["flops"] > 0
        assert info["usage_by_model"]["m"]["flops"] is info["usage"]["flops"] is None

    def test_drafts_are_kept_if_the_server_of_the_aggregator_fails(self, tiny, server, tmp_path):
        server.faults = lambda number, body: (400, {"error": {"message": "no"}}, {})
        settings = {"aggregator": {"engine": "api", "base_url": server.url, "model": "m"}, "record": str(tmp_path)}
        with pytest.raises(EngineError):
            ask(local(tiny, **settings), 2)
        server.faults = lambda number, body: None
        lm = local(tiny, **settings)
        ask(lm, 2)
        (trace, _) = read_traces(tmp_path)
        assert [draft.reused for draft in trace.drafts] == [True, True, False, False, False]
        assert lm.computed_usage.generations == 2 * 3


def ask(lm: AFTLM, count: int = 4, limits: dict | None = None) -> list[str]:
    limits = {"until": [], "max_gen_toks": 24, **(limits or {})}
    requests = [
        make_instance("generate_until", {"n": n}, (f"{n} + 30 - {n} * 2", limits), metadata=("aft_arith", n, 1))
        for n in range(3, 3 + count)
    ]
    return lm.generate_until(requests, disable_tqdm=True)


def bundled(**arguments) -> AFTLM:
    return AFTLM(device="cpu", batch_size="auto", **{"k": 4, "layers": 2, **arguments})


class TestBundledCheckpoints:
    def test_an_aggregator_equals_a_run_on_given_drafts(self, tmp_path):
        lm = bundled(pretrained="bundled:sft", aggregator={"pretrained": "bundled:aft"}, record=str(tmp_path / "both"))
        together = ask(lm)
        drafts = str(tmp_path / "sft")
        ask(bundled(pretrained="bundled:sft", layers=1, record=drafts))
        given = bundled(pretrained="bundled:aft", drafts_from=drafts)
        assert ask(given) == together
        # The two checkpoints have one shape.
        assert given.usage == lm.usage
        assert len(set(together)) == 4
        info = lm.get_model_info()["aft"]
        assert {name: row["generations"] for name, row in info["usage_by_model"].items()} == {
            "bundled:sft": 16,
            "bundled:aft": 20,
        }
        assert sum(row["flops"] for row in info["usage_by_model"].values()) == info["usage"]["flops"]
        assert info["aggregator"]["fingerprint"] != info["fingerprint"]
        for trace in read_traces(tmp_path / "both"):
            assert trace.settings["aggregator"] == info["aggregator"]
        assert joined_name(info["model"], info) == "bundled:sft -> bundled:aft"

    def test_proposers_reuse_the_drafts_of_runs_of_each_model(self, tmp_path):
        store = str(tmp_path / "drafts.sqlite")
        for name in ("bundled:sft", "bundled:base"):
            ask(bundled(pretrained=name, k=4, layers=1, cache=store), 2)
        lm = bundled(
            pretrained="bundled:aft",
            proposers=[{"pretrained": "bundled:sft"}, {"pretrained": "bundled:base"}],
            cache=store,
            record=str(tmp_path / "traces"),
        )
        ask(lm, 2)
        traces = list(read_traces(tmp_path / "traces"))
        assert [draft.reused for trace in traces for draft in trace.layer(0)] == [True] * 8
        assert lm.computed_usage.generations == 2 * 5
        assert joined_name(lm.name, traces[0].settings) == "bundled:sft + bundled:base -> bundled:aft"

    def test_a_proposer_that_does_not_load_ends_the_run_before_it_begins(self, tmp_path):
        with pytest.raises(AFTError, match=r"^proposers\[1\]: ") as caught:
            bundled(pretrained="bundled:aft", proposers=[{"pretrained": "bundled:sft"}, {"pretrained": "bundled:no"}])
        assert caught.value.exit_code == 2


def test_an_ordinary_run_has_settings_as_before(tmp_path: Path):
    lm = AFTLM(engine="scripted", pretrained="x", k=2, layers=1)
    settings = lm.get_model_info()["aft"]
    assert not {"aggregator", "proposers", "usage_by_model", "models"} & set(settings)
    assert Usage() == lm.usage
