"""Strategies and probes: selection, refining, beam search, given drafts, and changed texts."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest

from helpers.scripted_runs import SAMPLED, TEMPLATE, Recorder, make_drafts, make_question, run
from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.errors import ConfigError, EngineError, PromptTooLong, RecordError
from lm_eval_aft.core.records import Chat, Completion, Message, Prompt, Question, Request, Sampling, Trace
from lm_eval_aft.core.usage import Usage
from lm_eval_aft.inference.answers import AnswerFinder
from lm_eval_aft.inference.given_drafts import GivenDrafts
from lm_eval_aft.inference.probes import ORDER, apply_probe, with_wrong_number
from lm_eval_aft.inference.reward_model import RewardModel
from lm_eval_aft.inference.schedule import propose_and_aggregate
from lm_eval_aft.inference.selection import BestOfN, Candidates, Choice, Majority, load_selector
from lm_eval_aft.storage.draft_store import NoStore, SQLiteStore, generation_key
from lm_eval_aft.storage.traces import write_traces

HOST = HostArgs(4, None, "cpu")


def gsm8k(text: str) -> Question:
    return Question(Chat((Message("user", text),)), SAMPLED, SAMPLED, "aft_gsm8k", 0, "h", 0)


def select(question: Question, texts: list[str], regex: str | None = None) -> Choice:
    (choice,) = Majority(AnswerFinder(regex)).select([Candidates(question, make_drafts(*texts))])
    return choice


def texts(trace: Trace, layer: int) -> list[tuple[int, Completion]]:
    return [(draft.seed, draft.completion) for draft in trace.layer(layer)]


def vote(questions, engine=None, store=None, **settings) -> list[Trace]:
    config = AFTConfig.split({"strategy": "majority", **settings})[0]
    store = store or NoStore()
    selector = load_selector(config, store, HOST)
    return propose_and_aggregate(
        questions, engine or Recorder(), TEMPLATE, config, store, selector=selector, quiet=True
    )


class TestMajority:
    def test_the_first_text_with_the_most_frequent_answer_is_chosen(self):
        choice = select(gsm8k("q"), ["It is 4.", "So 7.", "The answer is 7.", "no idea"])
        assert (choice.index, choice.scores) == (1, (1.0, 2.0, 2.0, 0.0))

    def test_seeds_decide_between_equals_and_positions_do_not(self):
        def choose(texts, seeds):
            (choice,) = Majority().select([Candidates(gsm8k("q"), make_drafts(*texts, seeds=seeds))])
            return choice

        assert choose(["x", "is 3", "is 5"], [1, 2, 3]).index == 1
        assert choose(["x", "is 3", "is 5"], [1, 3, 2]).index == 2
        assert choose(["x", "y"], [2, 1]) == Choice(1, (0.0, 0.0))
        drafts = make_drafts("is 1", "is 2", "is 2", "is 1", seeds=[40, 30, 20, 10])
        for order in permutations(drafts):
            (choice,) = Majority().select([Candidates(gsm8k("q"), order)])
            assert order[choice.index].seed == 10

    def test_a_regex_finds_answers_of_any_task(self):
        assert select(make_question("q"), ["<a>", "<b> <a>", "<b> <b>", "<b>"], r"<(\w)>").index == 0

    def test_a_task_without_answers_is_refused(self):
        with pytest.raises(ConfigError, match=r"cannot find the answers of t: give vote_regex=PATTERN.*best_of_n"):
            select(make_question("q"), ["a"])

    def test_a_selection_writes_the_drafts_of_aggregation_and_nothing_more(self):
        engine, plain = Recorder(), Recorder()
        (trace,), (other,) = vote([gsm8k("q")], engine, k=5), run([gsm8k("q")], 5, 1, plain)
        assert texts(trace, 0) == texts(other, 0)
        assert engine.layers == plain.layers[:1]
        assert trace.usage.generations == 5
        assert trace.usage.generated_tokens == sum(draft.completion.generated_tokens for draft in trace.layer(0))
        (answer,) = trace.layer(1)
        assert answer.completion.generated_tokens == answer.completion.prompt_tokens == 0
        assert trace.answer in [draft.completion.text for draft in trace.layer(0)]
        assert len(trace.scores) == 5
        assert Trace.from_json(trace.to_json()) == trace

    def test_it_may_follow_layers_that_write(self):
        (trace,) = vote([gsm8k("q")], k=3, layers=2)
        assert [len(trace.layer(layer)) for layer in (0, 1, 2)] == [3, 3, 1]
        assert trace.usage.generations == 6

    def test_it_finds_its_texts_in_the_store_of_aggregation(self, tmp_path):
        store, engine = SQLiteStore(tmp_path / "s.sqlite"), Recorder()
        run([gsm8k("q")], 5, 2, store=store)
        (trace,) = vote([gsm8k("q")], engine, store, k=5)
        assert engine.layers == [[]]
        assert trace.computed_usage == Usage()


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"strategy": "vote"}, "strategy must be one of aggregate, refine, majority, weighted, best_of_n, beam"),
            ({"strategy": "refine", "k": 5}, "k=5 contradicts strategy=refine"),
            ({"strategy": "beam", "layers": 2}, "strategy=beam has no aggregation layers"),
            ({"strategy": "beam", "engine": "vllm"}, "strategy=beam needs engine=hf: engine=vllm"),
            ({"strategy": "majority", "layers": 0}, "layers=0 must be 1 or more"),
            ({"strategy": "weighted", "layers": 0}, "layers=0 must be 1 or more"),
            ({"strategy": "weighted", "confidence": "max"}, "confidence must be one of sum, mean, tail, window"),
            ({"strategy": "beam", "confidence": "sum"}, "confidence=sum does not fit strategy=beam"),
            ({"strategy": "best_of_n"}, "strategy=best_of_n and reward_model=CHECKPOINT need each other"),
            ({"reward_model": "x"}, "strategy=best_of_n and reward_model=CHECKPOINT need each other"),
            (
                {"vote_regex": "x"},
                "vote_regex finds answers for votes, stop_when and carry=answer: leave it out for strategy=aggregate",
            ),
            ({"layers": 0, "probe": "shuffle"}, "need layers=1 or more"),
            ({"strategy": "select", "probe": "shuffle"}, "probe=shuffle changes the texts that strategy=sel"),
            ({"strategy": "rsa", "layers": 0}, "strategy=rsa selects in its last layer"),
            ({"strategy": "select", "layers": 0}, "strategy=select selects in its last layer: layers=0"),
            ({"k": "32/0"}, "k=32/0 is not allowed: k must be a whole number of at least 1, or several such as 32/4"),
            ({"k": [32, 0]}, r"k=\[32, 0\] is not allowed: k must be a whole number"),
            ({"k": "8/4/2", "layers": 2}, "k=8/4/2 gives 3 layers their numbers of texts, and layers=2 has 2"),
            ({"k": "8/4", "strategy": "beam"}, "k=8/4 is a single number for strategy=beam"),
            ({"k": 3, "subset": 4}, "subset=4 is more than the 3 texts that a layer reads"),
            ({"k": "8/2", "subset": 4}, "subset=4 is more than the 2 texts that a layer reads"),
            ({"subset": 0}, "subset=0 is not allowed: subset must be a whole number of at least 1"),
            ({"subset": 2, "layers": 0}, "subset=2 is for layers that write from texts"),
            ({"subset": 2, "strategy": "majority"}, "subset=2 is for layers that write from texts"),
            ({"subset": 2, "strategy": "select"}, "subset=2 is for layers that write from texts"),
            ({"subset": 2, "probe": "shuffle"}, "leave subset out"),
            ({"subset": 2, "mcq": "drafts"}, "leave subset out"),
            ({"carry": "answer", "layers": 0}, "carry=answer changes what a layer reads"),
            ({"carry": "answer", "strategy": "majority"}, "carry=answer changes what a layer reads"),
            ({"carry": "all"}, "carry must be one of text, answer"),
            ({"stop_when": "agree:1"}, "stop_when=agree:1 is not allowed: give agree:P"),
            ({"stop_when": "agree:0.5"}, "stop_when=agree:0.5 is not allowed"),
            ({"stop_when": "agree:nan"}, "stop_when=agree:nan is not allowed"),
            ({"stop_when": "window:1"}, "window:W with a number of drafts W of at least 2"),
            ({"stop_when": "window"}, "stop_when=window is not allowed"),
            ({"stop_when": 4}, "stop_when=4 is not allowed"),
            ({"stop_when": "window:2", "layers": 0}, "needs layers=1 or more"),
            ({"stop_when": "window:2", "strategy": "refine"}, "fits neither strategy=refine"),
            ({"stop_when": "window:2", "mcq": "drafts"}, "mcq=plain"),
            ({"stop_layers": 1}, "stop_layers=1 is for questions whose drafts agree: give stop_when too"),
            ({"stop_when": "window:2", "stop_layers": 3}, "stop_layers=3 is more than layers=2: lower it"),
            ({"strategy": "rsa", "k": 3}, "subset=4 is more than the 3 texts"),
            ({"k": 1000, "layers": 1000}, "would be 1,000,001 generations a question"),
            ({"probe": "poison"}, "probe must be one of none, shuffle, wrong, empty, instruction, repeat"),
        ],
    )
    def test_contradictions_are_refused(self, settings, message):
        with pytest.raises(ConfigError, match=message):
            AFTConfig.split(settings)

    @pytest.mark.parametrize(
        ("settings", "generations"),
        [
            ({}, 11),
            ({"strategy": "refine", "layers": 3}, 4),
            ({"strategy": "majority", "k": 11}, 11),
            ({"strategy": "weighted", "k": 11}, 11),
            ({"strategy": "best_of_n", "k": 10, "reward_model": "x"}, 10),
            ({"strategy": "beam", "k": 4}, 1),
            ({"strategy": "select", "k": 4}, 5),
            # 16 texts in each of 10 layers, and one more if nothing can be voted on.
            ({"strategy": "rsa"}, 161),
            # The arithmetic of PaCoRe's setting [32, 4]: 32 + 4 + 1.
            ({"k": "32/4"}, 37),
            ({"k": [32, 4], "layers": 4}, 45),
            ({"k": "32/4", "strategy": "majority"}, 36),
        ],
    )
    def test_generations(self, settings, generations):
        assert AFTConfig.split(settings)[0].generations == generations

    def test_a_bad_regex_is_refused_before_anything_is_loaded(self):
        config = AFTConfig.split({"strategy": "majority", "vote_regex": "("})[0]
        with pytest.raises(ConfigError, match="is not a valid regular expression"):
            load_selector(config, NoStore(), HOST)


def test_refine_is_aggregation_of_one_text():
    engine = Recorder()
    config = AFTConfig.split({"strategy": "refine", "layers": 3})[0]
    (trace,) = propose_and_aggregate([make_question("q")], engine, TEMPLATE, config, NoStore(), quiet=True)
    (other,) = run([make_question("q")], 1, 3)
    assert [texts(trace, layer) for layer in range(4)] == [texts(other, layer) for layer in range(4)]
    assert trace.usage.generations == 4


class TestProbes:
    TEXTS = ("one 1", "two 2", "three 3", "four 4", "five 5")

    def probed(self, probe: str, layer: int = 1, seed: int = 1234, repeat: int = 0) -> list[str]:
        return apply_probe(self.TEXTS, AFTConfig(probe=probe, seed=seed), make_question("q", repeat=repeat), layer)

    def test_none_changes_nothing(self):
        assert self.probed("none") == list(self.TEXTS)

    def test_shuffle_draws_an_order_per_layer(self):
        orders = {tuple(self.probed("shuffle", layer)) for layer in range(1, 9)}
        assert len(orders) > 4
        assert all(sorted(order) == sorted(self.TEXTS) for order in orders)
        assert self.probed("shuffle") == self.probed("shuffle") != self.probed("shuffle", seed=1)

    @pytest.mark.parametrize("probe", ["wrong", "empty", "instruction"])
    def test_one_draft_is_planted(self, probe):
        planted = {
            "wrong": ["one 2", "two 3", "three 4", "four 5", "five 6"],
            "empty": [""] * 5,
            "instruction": [text + ORDER for text in self.TEXTS],
        }[probe]
        read = self.probed(probe)
        changed = [i for i in range(5) if read[i] != self.TEXTS[i]]
        assert len(changed) == 1
        assert read[changed[0]] == planted[changed[0]]
        places = {tuple(self.probed(probe, repeat=repeat)) for repeat in range(40)}
        # Over many questions, every draft is changed once.
        assert len(places) == 5
        assert self.probed(probe, layer=2) == list(self.TEXTS)

    def test_repeat_shows_the_first_draft_k_times(self):
        assert self.probed("repeat") == ["one 1"] * 5

    @pytest.mark.parametrize(
        ("text", "other"),
        [
            ("2 + 3 = 5, so 5 apples", "2 + 3 = 6, so 6 apples"),
            ("15 and 5.", "15 and 6."),
            ("it costs $1,299", "it costs $1300"),
            ("it is 3.50", "it is 4.50"),
            ("1,005 then 5", "1,005 then 6"),
            ("no number here", "here number no"),
            ("", ""),
        ],
    )
    def test_wrong(self, text, other):
        assert with_wrong_number(text) == other

    def test_a_probe_leaves_the_drafts_as_they_are(self):
        plain, probed = run([make_question("q")], 3, 2), run([make_question("q")], 3, 2, probe="empty")
        assert texts(plain[0], 0) == texts(probed[0], 0)
        assert texts(plain[0], 1) != texts(probed[0], 1)


class TestGivenDrafts:
    def write(self, folder, traces, **settings) -> str:
        write_traces(str(folder), {"k": 3, "layers": 0, "model": "other", **settings}, traces)
        return str(folder)

    def test_the_drafts_of_another_run_are_aggregated(self, tmp_path):
        (source,) = run([make_question("q")], 3, 1, temperature=1.5, seed=9)
        given_drafts = GivenDrafts.read(self.write(tmp_path, [source]))
        engine, config = Recorder(), AFTConfig(k=2, layers=1)
        (trace,) = propose_and_aggregate(
            [make_question("q")], engine, TEMPLATE, config, NoStore(), given_drafts=given_drafts, quiet=True
        )
        assert [d.completion for d in trace.layer(0)] == [d.completion for d in source.layer(0)[:2]]
        assert [d.reused for d in trace.layer(0)] == [True, True]
        assert trace.usage.generations == 3
        assert trace.computed_usage.generations == 1
        assert len(engine.layers) == 1
        assert given_drafts.source["model"] == "other"

    def test_a_question_it_has_not_asked_and_too_few_drafts(self, tmp_path):
        given_drafts = GivenDrafts.read(self.write(tmp_path, run([make_question("q")], 3, 1)))
        for question, k in ((make_question("other"), 3), (make_question("q"), 4)):
            with pytest.raises(RecordError, match=rf"drafts of document 0 of t, and k={k} needs {k}"):
                given_drafts.of(question, k)

    @pytest.mark.parametrize("changes", [{"model": "another"}, {"draft_max_tokens": 9}, {"template": {"sha256": "f"}}])
    def test_several_runs_in_one_folder_are_refused(self, tmp_path, changes):
        self.write(tmp_path, run([make_question("q")], 3, 1))
        self.write(tmp_path, run([make_question("q")], 3, 1), **changes)
        with pytest.raises(RecordError, match="holds the traces of several runs"):
            GivenDrafts.read(str(tmp_path))

    def test_drafts_are_read_without_their_thinking_whatever_ends_it(self):
        thinking = replace(make_question("q"), think_end="[/THINK]")
        assert apply_probe(["hm 3[/THINK]\n4", "5"], AFTConfig(), thinking, 1) == ["4", "5"]

    def test_two_bounds_of_one_task_are_two_runs_and_those_of_two_tasks_are_not(self, tmp_path):
        first, second = make_question("q"), make_question("r")
        longer = replace(second, drafts=replace(second.drafts, max_tokens=99))
        self.write(tmp_path / "one", run([first, replace(longer, task="u")], 3, 1))
        assert len(GivenDrafts.read(str(tmp_path / "one")).of(first, 3)) == 3
        self.write(tmp_path, run([longer], 3, 1))
        with pytest.raises(RecordError, match="holds the traces of several runs"):
            GivenDrafts.read(str(tmp_path))


def test_a_prompt_that_does_not_fit_is_refused_whatever_the_strategy():
    with pytest.raises(PromptTooLong, match="lower max_gen_toks"):
        vote([gsm8k("word " * 9000)], Recorder(max_length=512))


class TestBeam:
    def requests(self, engine, beams: int, texts=("a", "What is 7 times 8?")) -> list[Request]:
        prompts: list[Prompt] = [engine.renderer.encode(Chat((Message("user", text),))) for text in texts]
        return [Request(prompt, Sampling(0.0, 1.0, 0, 6, beams=beams), 0) for prompt in prompts]

    def test_it_is_the_beam_search_of_transformers_one_by_one(self, tiny_engine):
        import torch

        requests = self.requests(tiny_engine, 3)
        completions = dict(tiny_engine.generate(requests))
        for number, request in enumerate(requests):
            ids = torch.tensor([request.prompt.token_ids])
            row = tiny_engine.model.generate(ids, num_beams=3, do_sample=False, max_new_tokens=6)[0, ids.shape[1] :]
            end = [*row.tolist()].index(tiny_engine.tokenizer.eos_token_id) + 1 if 3 in row.tolist() else None
            assert completions[number].token_ids == tuple(row.tolist()[:end])
            assert completions[number].generated_tokens == 3 * len(completions[number].token_ids)

    def test_a_beam_has_a_key_of_its_own_and_greedy_keeps_its_old_one(self, tiny_engine):
        keys = [generation_key("f", self.requests(tiny_engine, beams)[0]) for beams in (1, 2, 3)]
        assert len(set(keys)) == 3
        assert keys[0] == generation_key("f", replace(self.requests(tiny_engine, 1)[0], seed=5))

    def test_a_run(self, tiny_engine):
        config = AFTConfig.split({"strategy": "beam", "k": 3})[0]
        question = replace(make_question("q"), final=replace(SAMPLED, max_tokens=5))
        (trace,) = propose_and_aggregate([question], tiny_engine, TEMPLATE, config, NoStore(), quiet=True)
        shape, (draft,) = tiny_engine.shape, trace.drafts
        steps, prompt = len(draft.completion.token_ids), draft.completion.prompt_tokens
        assert trace.usage.generations == 1
        assert trace.usage.generated_tokens == 3 * steps
        assert trace.usage.flops == shape.flops(0, prompt) + 3 * shape.flops(prompt, prompt + steps)


class TestBestOfN:
    def run(self, reward, store, k=4) -> Trace:
        settings = {"strategy": "best_of_n", "reward_model": reward, "k": k}
        config = AFTConfig.split(settings)[0]
        selector = load_selector(config, store, HOST)
        (trace,) = propose_and_aggregate(
            [make_question("q")], Recorder(), TEMPLATE, config, store, selector=selector, quiet=True
        )
        return trace

    def test_the_best_text_by_the_reward_model_and_what_reading_cost(self, reward):
        trace = self.run(reward, NoStore())
        best = max(range(4), key=lambda index: trace.scores[index])
        assert trace.answer == trace.layer(0)[best].completion.text
        written = sum(draft.completion.prompt_tokens for draft in trace.layer(0))
        assert trace.usage.generations == 4
        # The reward model has read four chats.
        assert trace.usage.prompt_tokens > written
        assert trace.usage.flops > 0

    def test_the_reward_model_scores_the_answer_in_a_text(self):
        read: list[str] = []

        class Model:
            def score(self, rows):
                read.extend(dialogue[-1].content for row in rows for dialogue in row)
                return [[0.0] * len(row) for row in rows]

            def cost(self, texts):
                return Usage()

        question = replace(make_question("2+2?"), until=("\n\n",), think_end="</think>")
        question = replace(question, chat=replace(question.chat, prefill="The answer is"))
        drafts = make_drafts("<think>5</think>The answer is 4", "It is 5\n\nQuestion: 3+3? It is 6")
        BestOfN(Model()).select([Candidates(question, drafts)])
        assert read == ["The answer is 4", "It is 5"]

    def test_scores_are_kept(self, reward, tmp_path):
        store = SQLiteStore(tmp_path / "s.sqlite")
        first = self.run(reward, store)
        kept = store.info().generations
        assert self.run(reward, store).scores == first.scores
        assert self.run(reward, store, k=3).scores == first.scores[:3]
        assert store.info().generations == kept
        # A model that is not there cannot score again.
        model = RewardModel(reward, store, "cpu", 4)
        model.model = None
        chats = [(*first.question.chat.messages, Message("assistant", d.completion.text)) for d in first.layer(0)]
        assert model.score([chats]) == [list(first.scores)]


VOTE = r"(\w)\W*$"
# A strategy, and what a word after it changes.
EVERY = {
    "aggregate": {"k": 3, "layers": 2},
    "aggregate subset": {"k": 3, "layers": 2, "subset": 2},
    "aggregate widths": {"k": "4/2"},
    "aggregate carry": {"k": 3, "layers": 2, "carry": "answer", "vote_regex": VOTE},
    "aggregate stop": {"k": 4, "layers": 2, "stop_when": "window:2", "stop_layers": 1, "vote_regex": r"(\w|\W)"},
    "majority stop": {"strategy": "majority", "k": 6, "stop_when": "agree:0.8", "vote_regex": VOTE},
    "refine": {"layers": 2},
    "majority": {"k": 3, "layers": 2, "vote_regex": VOTE},
    "weighted": {"k": 3, "layers": 2, "vote_regex": VOTE},
    "rsa": {"k": 3, "subset": 2, "layers": 2, "vote_regex": VOTE},
    "select": {"k": 3, "layers": 2, "vote_regex": VOTE},
    "best_of_n": {"k": 3, "layers": 1},
    "mbr": {"k": 3},
    "beam": {"k": 2},
}


@pytest.mark.parametrize("strategy", EVERY)
class TestEveryStrategy:
    """Every strategy resumes, draws by seeds, and fits its prompts, as aggregation does."""

    def run(self, strategy: str, engine, reward: str, store=None, questions=None, **changes) -> list[Trace]:
        settings = {"strategy": strategy.split()[0], **EVERY[strategy], **changes}
        if strategy == "best_of_n":
            settings["reward_model"] = reward
        config, store = AFTConfig.split(settings)[0], store or NoStore()
        short = replace(SAMPLED, max_tokens=8)
        questions = questions or [
            replace(make_question(text), drafts=short, final=short) for text in ("a?", "b?", "c?")
        ]
        selector = load_selector(config, store, HOST)
        return propose_and_aggregate(questions, engine, TEMPLATE, config, store, selector=selector, quiet=True)

    def essence(self, traces: list[Trace]) -> list[object]:
        # A reward is equal up to the rounding of its batch.
        return [
            (
                t.answer,
                [round(score, 5) for score in t.scores],
                [(d.layer, d.index, d.seed, d.completion.token_ids) for d in t.drafts],
            )
            for t in traces
        ]

    def test_a_run_that_was_stopped_resumes(self, strategy, tiny_engine, reward, tmp_path):
        class Dying:
            """Stops after two texts, as a killed run does."""

            def __getattr__(self, name):
                return getattr(tiny_engine, name)

            def generate(self, requests):
                for number, step in enumerate(tiny_engine.generate(requests)):
                    if number == 2:
                        raise EngineError("stopped")
                    yield step

        whole = self.run(strategy, tiny_engine, reward)
        store = SQLiteStore(tmp_path / "s.sqlite")
        with pytest.raises(EngineError, match="stopped"):
            self.run(strategy, Dying(), reward, store)
        assert store.info().generations == 2
        resumed = self.run(strategy, tiny_engine, reward, store)
        assert self.essence(resumed) == self.essence(whole)
        assert [trace.usage.generated_tokens for trace in resumed] == [t.usage.generated_tokens for t in whole]
        again = self.run(strategy, tiny_engine, reward, store)
        assert sum(trace.computed_usage.generated_tokens for trace in again) == 0

    def test_seeds_decide_and_neither_order_nor_company_does(self, strategy, tiny_engine, reward):
        short = replace(SAMPLED, max_tokens=8)
        questions = [replace(make_question(text), drafts=short, final=short) for text in ("a?", "b?", "c?")]
        whole = self.essence(self.run(strategy, tiny_engine, reward, questions=questions))
        assert self.essence(self.run(strategy, tiny_engine, reward, questions=questions[::-1])) == whole[::-1]
        assert self.essence(self.run(strategy, tiny_engine, reward, questions=questions[1:2])) == whole[1:2]
        other = self.essence(self.run(strategy, tiny_engine, reward, questions=questions, seed=7))
        drawn = [[(place, ids) for _, place, _, ids in trace[2]] for trace in whole]
        drawn_otherwise = [[(place, ids) for _, place, _, ids in trace[2]] for trace in other]
        # Beam search draws nothing.
        assert (drawn == drawn_otherwise) == (strategy == "beam")

    def test_texts_that_do_not_fit_are_cut_and_the_question_never(self, strategy, tiny_engine, reward):
        class Narrow:
            """An engine with room for a question and little more."""

            max_length = 900

            def __getattr__(self, name):
                return getattr(tiny_engine, name)

        short = replace(SAMPLED, max_tokens=8)
        long = replace(short, max_tokens=200)
        fits = [replace(make_question("q" * 20), drafts=long, final=short)]
        (trace,) = self.run(strategy, Narrow(), reward, questions=fits)
        reading = {"beam": 0, "best_of_n": 0, "mbr": 0, "majority": 1, "majority stop": 0, "rsa": 1}.get(
            strategy, len(trace.cut_tokens) or 2
        )
        assert len(trace.cut_tokens) == reading
        with pytest.raises(PromptTooLong):
            self.run(strategy, Narrow(), reward, questions=[replace(fits[0], chat=make_question("q" * 2000).chat)])
