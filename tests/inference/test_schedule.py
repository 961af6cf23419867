"""The schedule: layers, seeds, sharing, and what traces hold."""

from __future__ import annotations

import pytest

from helpers.scripted_runs import GREEDY, SAMPLED, Recorder, make_question, run
from lm_eval_aft.core.errors import EngineError, PromptTooLong
from lm_eval_aft.core.records import Chat, Message, Question, Trace
from lm_eval_aft.core.usage import ModelShape
from lm_eval_aft.engines.scripted import ScriptedEngine
from lm_eval_aft.storage.draft_store import NoStore, SQLiteStore


@pytest.mark.parametrize(("k", "layers"), [(1, 0), (5, 0), (1, 1), (3, 1), (5, 2), (2, 4)])
def test_every_question_gets_k_layers_plus_one_generations(k, layers):
    engine = Recorder()
    traces = run([make_question("a"), make_question("b")], k, layers, engine)
    assert [len(trace.drafts) for trace in traces] == [k * layers + 1] * 2
    assert [trace.usage.generations for trace in traces] == [k * layers + 1] * 2
    # The engine gets a whole layer of all questions at once.
    assert len(engine.layers) == layers + 1
    for trace in traces:
        assert [len(trace.layer(n)) for n in range(layers + 1)] == [k] * layers + [1]
        assert trace.answer == trace.drafts[-1].completion.text


def test_each_layer_reads_the_one_before():
    engine = Recorder()
    (trace,) = run([make_question("a")], 2, 2, engine)
    for layer in (1, 2):
        system = engine.layers[layer][0].prompt.chat.messages[0].content
        for draft in trace.layer(layer - 1):
            assert draft.completion.text in system
    assert engine.layers[0][0].prompt.chat == trace.question.chat


def test_the_last_layer_alone_uses_the_final_sampling():
    engine = Recorder()
    run([make_question("a", final=GREEDY)], 2, 2, engine)
    assert [{r.sampling for r in layer} for layer in engine.layers] == [{SAMPLED}, {SAMPLED}, {GREEDY}]
    engine = Recorder()
    run([make_question("a", final=GREEDY)], 5, 0, engine)
    assert [r.sampling for r in engine.layers[0]] == [GREEDY]


def test_the_cost_of_an_answer_does_not_depend_on_what_the_store_held(tmp_path):
    def cost(store, k, repeats):
        return [
            trace.usage
            for trace in run([make_question("some words", repeat=n) for n in range(repeats)], k, 2, store=store)
        ]

    store = SQLiteStore(tmp_path / "drafts.sqlite")
    for k, repeats in ((1, 1), (2, 1), (3, 2), (5, 3)):
        assert cost(store, k, repeats) == cost(NoStore(), k, repeats)
    store.close()


class TestSeeds:
    def seeds(self, *args, **kwargs):
        return {(d.layer, d.index): d.seed for trace in run(*args, **kwargs) for d in trace.drafts}

    def test_k_and_layers_and_being_last_change_no_seed(self):
        small, large = self.seeds([make_question("a")], 3, 1), self.seeds([make_question("a")], 5, 3)
        assert all(large[place] == seed for place, seed in small.items())

    def test_company_and_order_change_nothing(self):
        alone = run([make_question("a")])[0]
        together = run([make_question("b"), make_question("a")])[1]
        assert [(d.seed, d.completion.text) for d in alone.drafts] == [
            (d.seed, d.completion.text) for d in together.drafts
        ]

    def test_run_seed_question_repeat_and_place_do(self):
        base = self.seeds([make_question("a")])
        assert len(set(base.values())) == len(base)
        for other in (
            self.seeds([make_question("a")], seed=1),
            self.seeds([make_question("b")]),
            self.seeds([make_question("a", repeat=1)]),
        ):
            assert not set(base.values()) & set(other.values())

    def test_they_fit_a_signed_64_bit_integer(self):
        assert all(0 <= seed < 2**63 for seed in self.seeds([make_question(str(i)) for i in range(50)]).values())

    def test_they_are_what_they_were_in_version_0_1(self):
        # With another seed, no stored draft of any user would be found again.
        assert self.seeds([make_question("a")])[0, 0] == 1468838491201164151


class TestSharing:
    def test_equal_questions_share_their_drafts(self):
        engine = Recorder()
        first, second = run([make_question("a", doc_id=1), make_question("a", doc_id=2)], engine=engine)
        assert [d.completion for d in first.drafts] == [d.completion for d in second.drafts]
        assert sum(map(len, engine.layers)) == 7
        assert (first.computed_usage.generations, second.computed_usage.generations) == (7, 0)
        assert second.usage == first.usage

    def test_greedy_drafts_are_generated_once(self):
        engine = Recorder()
        question = Question(Chat((Message("user", "a"),)), GREEDY, GREEDY)
        (trace,) = run([question], 3, 1, engine)
        assert [len(layer) for layer in engine.layers] == [1, 1]
        assert len(trace.layer(0)) == 3

    def test_a_store_answers_the_second_run(self, tmp_path):
        store = SQLiteStore(tmp_path / "s.sqlite")
        first = run([make_question("a"), make_question("b")], store=store)
        engine = Recorder()
        second = run([make_question("b"), make_question("a")], store=store, engine=engine)
        assert engine.layers == [[], [], []]
        assert [d.completion for d in second[1].drafts] == [d.completion for d in first[0].drafts]
        assert second[0].computed_usage.generations == 0
        assert second[0].usage.generations == 7

    def test_other_k_and_layers_reuse_the_drafts(self, tmp_path):
        store = SQLiteStore(tmp_path / "s.sqlite")
        run([make_question("a")], 5, 1, store=store)
        engine = Recorder()
        run([make_question("a")], 3, 2, store=store, engine=engine)
        assert [len(layer) for layer in engine.layers] == [0, 3, 1]


class TestRecord:
    def test_empty_drafts_stay_and_are_left_out_of_the_prompt(self):
        seen = []

        def script(request):
            seen.append(request)
            return "" if len(seen) == 2 else f"text {len(seen)}"

        engine = Recorder(script)
        (trace,) = run([make_question("a")], 3, 1, engine)
        assert [d.empty for d in trace.layer(0)] == [False, True, False]
        assert "2 drafts" in engine.layers[1][0].prompt.chat.messages[0].content

    def test_cut_drafts_are_marked_and_still_read(self):
        engine = Recorder(lambda request: "word " * 100)
        (trace,) = run([make_question("a")], 2, 1, engine)
        assert all(d.cut and d.completion.generated_tokens == 64 for d in trace.drafts)
        assert "word word" in engine.layers[1][0].prompt.chat.messages[0].content

    def test_only_empty_drafts_lead_to_a_fresh_answer(self):
        (trace,) = run([make_question("a")], 2, 1, Recorder(lambda request: ""))
        assert trace.answer == ""
        assert len(trace.drafts) == 3

    def test_cuts_for_the_budget_are_recorded(self):
        (trace,) = run([make_question("a")], 2, 1, Recorder(lambda request: "word " * 60, max_length=230))
        assert len(trace.cut_tokens) == 1
        assert all(cut > 0 for cut in trace.cut_tokens[0])


def test_a_question_that_cannot_fit_stops_before_anything_is_generated():
    engine = Recorder(max_length=100)
    with pytest.raises(PromptTooLong):
        run([make_question("short"), make_question("long " * 60)], engine=engine)
    assert engine.layers == []


def test_what_ended_before_an_engine_died_is_in_the_store(tmp_path):
    class Dying(ScriptedEngine):
        def generate(self, requests):
            for number, pair in enumerate(super().generate(requests)):
                if number == 4:
                    raise EngineError("the engine stopped.")
                yield pair

    store = SQLiteStore(tmp_path / "s.sqlite")
    with pytest.raises(EngineError):
        run([make_question("a"), make_question("b")], engine=Dying(), store=store)
    assert store.info().generations == 4


def test_operations_follow_the_formula():
    shape = ModelShape(parameters=1000, layers=2, attention_width=8)
    assert shape.flops(0, 10) == 2 * 1000 * 10 + 2 * 2 * 8 * 100
    assert shape.flops(4, 10) == shape.flops(0, 10) - shape.flops(0, 4)


def test_a_trace_comes_back_from_its_line():
    for trace in run([make_question('quote " and \u2028 newline\n'), make_question("b")]):
        assert Trace.from_json(trace.to_json()) == trace
        assert "\n" not in trace.to_json()
