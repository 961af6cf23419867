"""What each text reads and how many texts a layer has: widths, subsets, conclusions, and drafts that end early."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.scripted_runs import GREEDY, SAMPLED, TEMPLATE, Recorder, make_question
from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.cuts import Cuts, total_cuts
from lm_eval_aft.core.early_stopping import StopRule, stop_rule
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.errors import ConfigError, RecordError
from lm_eval_aft.core.records import Request, Trace
from lm_eval_aft.engines.scripted import ScriptedEngine
from lm_eval_aft.inference.given_drafts import GivenDrafts
from lm_eval_aft.inference.schedule import conclusion, propose_and_aggregate
from lm_eval_aft.inference.selection import load_selector
from lm_eval_aft.inference.written_choice import chosen_index, names_no_text
from lm_eval_aft.storage.draft_store import NoStore, SQLiteStore, Store, generation_key
from lm_eval_aft.storage.traces import write_traces

HOST = HostArgs(4, None, "cpu")


def run(questions, engine=None, store: Store | None = None, given_drafts=None, **settings) -> list[Trace]:
    config, store = AFTConfig.split(settings)[0], store or NoStore()
    return propose_and_aggregate(
        questions,
        engine or Recorder(),
        TEMPLATE,
        config,
        store,
        selector=load_selector(config, store, HOST),
        given_drafts=given_drafts,
        quiet=True,
    )


def sizes(trace: Trace) -> list[int]:
    return [len(trace.layer(layer)) for layer in range(trace.drafts[-1].layer + 1)]


def answering(*letters: str):
    """A script: draft i of any question says the i-th letter, and a text that reads drafts says what it read last."""
    numbers: dict[int, int] = {}

    def script(request: Request) -> str:
        if any("[draft 1]" in message.content for message in request.prompt.chat.messages):
            return "written after reading: z"
        number = numbers.setdefault(request.seed, len(numbers))
        return f"some words: {letters[number % len(letters)]}"

    return script


class TestWidths:
    def test_each_layer_has_its_own_number_of_texts(self):
        (trace,) = run([make_question("q")], k="6/3/2", layers=4)
        assert sizes(trace) == [6, 3, 2, 2, 1]
        assert trace.usage.generations == AFTConfig.split({"k": "6/3/2", "layers": 4})[0].generations == 14

    def test_equal_widths_are_one_k(self):
        (several,), (single,) = run([make_question("q")], k="3/3", layers=2), run([make_question("q")], k=3, layers=2)
        assert several.drafts == replace(single, drafts=several.drafts).drafts
        assert [draft.completion for draft in several.drafts] == [draft.completion for draft in single.drafts]

    def test_the_drafts_are_those_of_any_other_run(self, tmp_path):
        store, engine = SQLiteStore(tmp_path / "s.sqlite"), Recorder()
        run([make_question("q")], k=6, layers=1, store=store)
        run([make_question("q")], engine, store, k="6/2", layers=2)
        # The answer of the first run is text 0 of layer 1.
        assert [len(layer) for layer in engine.layers] == [0, 1, 1]


class TestSubsets:
    def test_a_subset_of_all_texts_is_aggregation(self):
        engine, plain = Recorder(), Recorder()
        (trace,) = run([make_question("q")], engine, k=4, layers=3, subset=4)
        (other,) = run([make_question("q")], plain, k=4, layers=3)
        assert engine.layers == plain.layers
        assert [draft.completion for draft in trace.drafts] == [draft.completion for draft in other.drafts]
        assert trace.usage == other.usage

    def test_each_text_reads_its_own_subset(self):
        engine = Recorder(lambda request: f"text {request.seed}")
        (trace,) = run([make_question("q")], engine, k=8, layers=3, subset=3)
        drawn = [subset for layer in trace.subsets for subset in layer]
        assert [len(layer) for layer in trace.subsets] == [8, 8, 1]
        assert all(len(set(subset)) == 3 and subset == tuple(sorted(subset)) for subset in drawn)
        assert len(set(drawn)) > 8
        assert Counter(index for subset in trace.subsets[0] for index in subset).keys() >= set(range(8))
        for draft, request in zip(trace.layer(1), engine.layers[1], strict=True):
            prompt = request.prompt.chat.messages[0].content
            shown = [index for index, read in enumerate(trace.layer(0)) if f"\n{read.completion.text}\n" in prompt]
            assert tuple(shown) == trace.read_by(1, draft.index)

    def test_seeds_draw_and_company_does_not(self):
        questions = [make_question("a"), make_question("b")]
        both = run(questions, k=6, layers=2, subset=2)
        assert both[0].subsets != both[1].subsets
        assert run(questions[1:], k=6, layers=2, subset=2)[0].subsets == both[1].subsets
        assert run(questions[:1], k=6, layers=2, subset=2, seed=7)[0].subsets != both[0].subsets

    def test_the_cost_counts_each_prompt_once(self, tmp_path):
        store = SQLiteStore(tmp_path / "s.sqlite")
        (trace,) = run([make_question("q")], store=store, k=6, layers=2, subset=2)
        (again,) = run([make_question("q")], store=store, k=6, layers=2, subset=2)
        assert again.usage == trace.usage
        prompts = {(1, subset) for subset in trace.subsets[0]} | {(2, subset) for subset in trace.subsets[1]}
        lengths = {(d.layer, trace.read_by(d.layer, d.index)): d.completion.prompt_tokens for d in trace.drafts[6:]}
        assert lengths.keys() == prompts
        assert trace.usage.computed_prompt_tokens == sum(lengths.values()) + trace.drafts[0].completion.prompt_tokens

    def test_cuts_are_counted_by_prompt(self):
        engine = Recorder(lambda request: " ".join(["word"] * 50), max_length=300)
        question = make_question("q")
        question = replace(question, drafts=replace(SAMPLED, max_tokens=50), final=replace(SAMPLED, max_tokens=50))
        (trace,) = run([question], engine, k=6, layers=2, subset=4)
        cuts = total_cuts([trace])
        prompts = len(set(trace.subsets[0])) + 1
        assert (cuts.prompts, cuts.cut_prompts) == (prompts, prompts)
        assert cuts.draft_tokens == prompts * 4 * 50
        assert 0 < cuts.cut_tokens == sum(map(sum, trace.cut_tokens))
        assert total_cuts([replace(trace, cut_tokens=((0,) * 24, (0,) * 4))]) == Cuts(prompts=prompts)

    def test_a_trace_keeps_them(self):
        (trace,) = run([make_question("q")], k=5, layers=2, subset=2)
        assert Trace.from_json(trace.to_json()) == trace
        (plain,) = run([make_question("q")], k=5, layers=2)
        assert "subsets" not in plain.to_json()
        assert plain.read_by(1, 3) == (0, 1, 2, 3, 4)

    def test_rsa_votes_if_answers_can_be_found_and_writes_if_not(self):
        engine = Recorder(answering("a", "b", "a"))
        (trace,) = run([make_question("q")], engine, strategy="rsa", k=4, subset=2, layers=3, vote_regex=r": (\w)")
        assert sizes(trace) == [4, 4, 4, 1]
        assert trace.usage.generations == 12
        assert trace.scores == (4.0,) * 4
        (written,) = run([make_question("q")], strategy="rsa", k=4, subset=2, layers=3)
        assert written.usage.generations == 13
        assert len(written.subsets[-1][0]) == 2


class TestConclusions:
    @pytest.mark.parametrize(
        ("text", "answer", "expected"),
        [
            ("Think.\n\nSo it is 7.", "7", "So it is 7."),
            ("It is 7.\n\nI checked that.", "7", "I checked that.\n\nAnswer: 7"),
            ("First.\n \nLast one.\n\n", None, "Last one."),
            ("7", "7", "7"),
            ("It is 7.\n\nI checked all 17.", "7", "I checked all 17.\n\nAnswer: 7"),
            ("It is (A).\n\nAll agree.", "A", "All agree.\n\nAnswer: A"),
            ("So $5", "$5", "So $5"),
            ("", None, ""),
        ],
    )
    def test_the_last_paragraph_with_the_answer(self, text, answer, expected):
        assert conclusion(text, answer) == expected

    def test_layers_read_conclusions_only(self):
        engine = Recorder(lambda request: "A long way.\n\nThe end: y")
        run([make_question("q")], engine, k=2, layers=2, carry="answer", vote_regex=r": (\w)")
        prompts = [layer[0].prompt.chat.messages[0].content for layer in engine.layers[1:]]
        assert all("The end: y" in prompt and "A long way" not in prompt for prompt in prompts)

    def test_a_task_without_answers_is_refused(self):
        engine = Recorder()
        with pytest.raises(ConfigError, match=r"carry=answer cannot find the answers of t: .*or leave carry out"):
            run([make_question("q")], engine, k=2, layers=2, carry="answer")
        assert engine.layers == []


def test_the_posterior_is_the_upper_half_of_a_beta_distribution():
    scipy = pytest.importorskip("scipy.stats")
    rule = StopRule("agree", 0.95)
    for first in range(12):
        for second in range(first + 1):
            answers = ["a"] * first + ["b"] * second
            expected = scipy.beta(first + 1, second + 1).sf(0.5)
            assert rule.stops(answers) == (first > 0 and expected >= 0.95)


class TestStopping:
    def test_rules(self):
        agree, window = StopRule("agree", 0.95), StopRule("window", 3)
        assert [agree.stops(["a"] * n) for n in range(6)] == [False, False, False, False, True, True]
        assert not agree.stops([None] * 9)
        assert not agree.stops(["a", "a", "a", "a", "b"])
        assert agree.stops([None, "a", None, "a", "a", "a"])
        assert window.stops(["b", "a", "b", "a", "a", "a"])
        assert not window.stops(["a", "a", "a", "a"])
        assert not window.stops(["b", "b", None])
        assert not window.stops([])
        assert (agree.kept(["b", *"aaaaaaa"]), window.kept(list("abbbbb")), window.kept(list("ab"))) == (7, 6, 2)

    @given(st.lists(st.sampled_from(["a", "b", None])), st.integers(1, 20), st.sampled_from([0.6, 0.8, 0.95, 2, 3, 5]))
    def test_no_round_overshoots(self, answers, most, threshold):
        rule = StopRule("agree", threshold) if threshold < 1 else StopRule("window", threshold)
        more = rule.fewest_more(answers, most)
        assert 1 <= more <= most
        for fewer in range(1, more):
            for letter in ("a", "b", None):
                assert not rule.stops([*answers, *[letter] * fewer])

    @given(
        st.lists(st.sampled_from("abc"), min_size=2, max_size=12),
        st.sampled_from(["agree:0.8", "agree:0.95", "window:2"]),
    )
    @settings(max_examples=30)
    def test_stored_answers_say_how_many_rounds_a_run_takes(self, letters, rule):
        written = iter(letters)
        engine = Recorder(lambda request: f": {next(written)}")
        question = [make_question("q")]
        (trace,) = run(
            question, engine, k=len(letters), layers=1, strategy="majority", stop_when=rule, vote_regex=r": (\w)"
        )
        assert len(engine.layers) == stop_rule("stop_when", rule).rounds(letters)
        assert len(trace.layer(0)) == stop_rule("stop_when", rule).kept(letters)

    @pytest.mark.parametrize("text", ["agree:0.95", "window:4", "agree:0.501", "agree:0.9999999", "window:10000000"])
    def test_a_rule_is_written_as_it_is_given(self, text):
        assert str(stop_rule("stop_when", text)) == text

    def test_questions_that_agree_get_no_further_drafts(self):
        engine = Recorder(answering("a"))
        (trace,) = run([make_question("q")], engine, k=16, layers=2, stop_when="agree:0.95", vote_regex=r": (\w)")
        assert sizes(trace) == [4, 16, 1]
        assert [len(layer) for layer in engine.layers] == [4, 16, 1]

    def test_each_question_stops_by_itself(self):
        letters = {"same": "a", "other": "abcdefgh"}
        counts: Counter[str] = Counter()

        def script(request: Request) -> str:
            (message,) = request.prompt.chat.messages
            counts[message.content] += 1
            return ": " + letters[message.content][(counts[message.content] - 1) % len(letters[message.content])]

        questions = [make_question("same"), make_question("other")]
        same, other = run(
            questions, Recorder(script), k=8, strategy="majority", stop_when="window:2", vote_regex=r": (\w)"
        )
        assert (sizes(same), sizes(other)) == ([2, 1], [8, 1])

    @pytest.mark.parametrize(
        ("stop_layers", "expected"), [(None, [4, 3, 3, 1]), (0, [4, 1]), (1, [4, 1]), (2, [4, 3, 1])]
    )
    def test_layers_of_a_question_that_agrees(self, stop_layers, expected):
        more = {} if stop_layers is None else {"stop_layers": stop_layers}
        (trace,) = run(
            [make_question("q")],
            Recorder(answering("a")),
            k="9/3",
            layers=3,
            stop_when="agree:0.95",
            vote_regex=r": (\w)",
            **more,
        )
        assert sizes(trace) == expected
        assert trace.usage.generations == sum(expected) - (stop_layers == 0)
        assert trace.answer.endswith(": a" if stop_layers == 0 else ": z")

    def test_drafts_are_the_first_ones_of_a_full_run(self, tmp_path):
        store, engine = SQLiteStore(tmp_path / "s.sqlite"), Recorder()
        questions = [make_question("a"), make_question("b")]
        settings = {"k": 9, "strategy": "majority", "vote_regex": r"(\w)\W*$"}
        full = run(questions, store=store, **settings)
        stopped = run(questions, engine, store, stop_when="agree:0.6", **settings)
        assert all(not layer for layer in engine.layers)
        for trace, whole in zip(stopped, full, strict=True):
            assert [d.completion for d in trace.layer(0)] == [d.completion for d in whole.layer(0)][: sizes(trace)[0]]

    def test_given_drafts_stop_where_generated_ones_do(self, tmp_path):
        questions = [replace(make_question(text), doc_id=number) for number, text in enumerate("abcdef")]
        settings = {"k": 6, "layers": 1, "vote_regex": r"(\w)\W*$", "stop_when": "agree:0.6"}
        whole = run(questions, k=6, layers=1)
        stamp = {"k": 6, "layers": 1, "strategy": "aggregate"}
        write_traces(str(tmp_path), stamp, [replace(trace, settings=stamp) for trace in whole])
        given_drafts = GivenDrafts.read(str(tmp_path))
        stopped = run(questions, **settings)
        again = run(questions, given_drafts=given_drafts, **settings)
        assert [sizes(trace) for trace in again] == [sizes(trace) for trace in stopped]
        assert [trace.answer for trace in again] == [trace.answer for trace in stopped]
        with pytest.raises(RecordError, match="k=7 needs 7"):
            run(questions, given_drafts=given_drafts, **{**settings, "k": 7})

    def test_a_task_without_answers_is_refused(self):
        engine = Recorder()
        with pytest.raises(ConfigError, match=r"stop_when=window:2 cannot find the answers of t: .*stop_when out"):
            run([make_question("q")], engine, k=4, stop_when="window:2")
        assert engine.layers == []


class TestSelect:
    @pytest.mark.parametrize(
        ("text", "index"),
        [
            ("Draft 1 is wrong.\nBest draft: 2", 1),
            ("**Best draft:** 3", 2),
            (r"So \boxed{2}.", 1),
            ("The most consistent response is Response 3", 2),
            (" 2.", 1),
            ("Judgment: 1", 0),
            ("Best draft: 4", None),
            ("Best draft: 0", None),
            ("The answer is 2", None),
            ("", None),
            ("Best draft: 99999999999999999999", None),
        ],
    )
    def test_the_last_number_that_names_a_draft(self, text, index):
        assert chosen_index(text, 3) == index

    def test_the_named_text_is_the_answer(self):
        def script(request: Request) -> str:
            system = request.prompt.chat.messages[0].content
            return "Best draft: 2" if "Choose the best draft" in system else f"text {request.seed}"

        engine = Recorder(script)
        (trace,) = run([make_question("q")], engine, strategy="select", k=3)
        assert sizes(trace) == [3, 1]
        assert trace.answer == trace.layer(0)[1].completion.text
        assert trace.scores == (0.0, 1.0, 0.0)
        assert trace.usage.generations == 4
        assert trace.choice is not None
        assert trace.choice.completion.text == "Best draft: 2"
        assert not names_no_text(trace)
        assert Trace.from_json(trace.to_json()) == trace
        assert engine.layers[1][0].seed == run([make_question("q")], k=3, layers=1)[0].drafts[-1].seed

    def test_empty_drafts_are_not_numbered(self):
        numbers: dict[int, int] = {}

        def script(request: Request) -> str:
            if "Choose the best draft" in request.prompt.chat.messages[0].content:
                return "Best draft: 2"
            return ["", "one", "two"][numbers.setdefault(request.seed, len(numbers))]

        (trace,) = run([make_question("q")], Recorder(script), strategy="select", k=3)
        assert trace.answer == "two"

    def test_a_choice_of_no_draft_falls_back_to_the_vote(self, caplog):
        engine = Recorder(answering("a", "b", "b"))
        (trace,) = run([make_question("q")], engine, strategy="select", k=3, vote_regex=r": (\w)")
        assert trace.answer.endswith(": b")
        assert names_no_text(trace)
        assert "strategy=select: 1 of 1 choices name none of the drafts; the vote decides." in caplog.messages

    def test_a_task_without_answers_has_a_draw_by_lot_instead(self):
        (trace,) = run([make_question("q")], strategy="select", k=4)
        drafts = trace.layer(0)
        assert trace.answer == min(drafts, key=lambda draft: draft.seed).completion.text


STRATEGIES = st.sampled_from(["aggregate", "majority", "rsa", "select"])


@settings(max_examples=150)
@given(st.data())
def test_the_number_of_generations_is_the_formula_and_each_key_is_met_once(data):
    """For any k, widths, layers, subset and rule, of several questions together."""
    strategy, layers = data.draw(STRATEGIES), data.draw(st.integers(1, 4))
    ks = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=layers))
    chosen = {"strategy": strategy, "layers": layers, "k": ks[0] if len(ks) == 1 else ks, "vote_regex": r"(\d)\D*$"}
    reading = layers - (strategy in ("majority", "select"))
    widths = [ks[min(layer, len(ks) - 1)] for layer in range(layers)]
    if reading > 0 and (strategy == "rsa" or data.draw(st.booleans())):
        chosen["subset"] = data.draw(st.integers(1, min(widths[:reading])))
    elif strategy == "rsa":
        chosen["subset"] = 1
    rule = data.draw(st.sampled_from([None, "agree:0.8", "window:2"]))
    if rule:
        chosen["stop_when"] = rule
    if strategy == "aggregate" and not rule:
        del chosen["vote_regex"]
    config = AFTConfig.split(chosen)[0]
    engine = Recorder()
    traces = run([make_question("a"), make_question("b")], engine, **chosen)
    written = sum(widths) + (strategy in ("aggregate", "select"))
    assert config.generations == sum(widths) + (strategy != "majority")
    for trace in traces:
        saved = widths[0] - len(trace.layer(0))
        assert trace.usage.generations == written - saved
        assert saved == 0 or rule
    keys = [generation_key(engine.fingerprint, request) for layer in engine.layers for request in layer]
    assert len(keys) == len(set(keys)) == sum(trace.usage.generations for trace in traces)


def test_greedy_texts_of_one_subset_are_generated_once():
    question = replace(make_question("q", final=GREEDY), drafts=GREEDY)
    (trace,) = run([question], ScriptedEngine(), k=5, layers=2, subset=4)
    assert sizes(trace) == [5, 5, 1]
