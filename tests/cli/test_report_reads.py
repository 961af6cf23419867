"""Each command reads each trace file and each samples file once, however often it needs their content."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

import lm_eval_aft
from lm_eval_aft.analysis.runs import read_entries
from lm_eval_aft.cli import aft


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, quick_lm_eval: None) -> Path:
    """Three runs of the scripted engine on aft_demo, with traces and samples."""
    out = tmp_path_factory.mktemp("runs")
    options = ["--k", "1,3", "--layers", "0,1", "--tasks", "aft_demo", "--limit", "4", "--apply_chat_template"]
    arguments = ["sweep", "--model_args", "engine=scripted", *options, "--output_path", str(out)]
    assert CliRunner().invoke(aft, arguments, catch_exceptions=False).exit_code == 0
    return out


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each JSON lines file is opened."""
    counts: Counter[str] = Counter()
    original = Path.open

    def counting(path: Path, *arguments, **options):
        if path.suffix == ".jsonl":
            counts[path.name] += 1
        return original(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", counting)
    return counts


def test_the_page_reads_each_file_once(runs: Path, tmp_path: Path, opened: Counter[str]):
    page = tmp_path / "page.html"
    done = CliRunner().invoke(aft, ["report", str(runs), "--html", str(page)], catch_exceptions=False)
    assert done.exit_code == 0
    text = page.read_text()
    # The curves were drawn, and the samples are on the page.
    assert "majority vote" in text
    assert "shard-0" in text
    assert sorted(name.split("_")[0] for name in opened) == ["aft"] * 3 + ["samples"] * 3
    assert set(opened.values()) == {1}, opened


@pytest.mark.parametrize(
    ("words", "read"),
    [
        (["report", "ALL"], {"aft": 3, "samples": 3}),
        (["report", "ALL", "--format", "csv"], {"aft": 3, "samples": 3}),
        (["report", "ALL", "--model-card"], {"aft": 3, "samples": 3}),
        (["compare", "ALL"], {"aft": 3, "samples": 3}),
        (["compare", "ALL", "--format", "json"], {"aft": 3, "samples": 3}),
        (["compare", "ALL", "--regex", "[0-9]+"], {"aft": 3, "samples": 3}),
        (["compare", "--strategies", "ALL"], {"aft": 3, "samples": 3}),
        # The task graded the texts, so no gold answers are needed.
        (["votes", "FOLDER"], {"aft": 3}),
        (["votes", "FOLDER", "--stop-when", "agree:0.9"], {"aft": 3}),
        (["votes", "FOLDER", "--regex", "[0-9]+"], {"aft": 3, "samples": 1}),
        (["diagnose", "FOLDER"], {"aft": 3}),
        (["diagnose", "FOLDER", "--regex", "[0-9]+"], {"aft": 3, "samples": 1}),
        (["plot", "FOLDER", "--png", "PNG"], {"aft": 3, "samples": 3}),
        (["plot", "ALL", "--png", "PNG"], {"aft": 3, "samples": 3}),
        (["plot", "FOLDER", "--curves", "--png", "PNG"], {"aft": 3, "samples": 3}),
        (["plot", "FOLDER", "--frontier", "--png", "PNG"], {"aft": 3, "samples": 3}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_reads_each_file_once(
    words: list[str], read: dict[str, int], runs: Path, tmp_path: Path, opened: Counter[str]
):
    widest_first = sorted(read_entries([runs]), key=lambda entry: -(entry.run.width or 0))
    stands_for = {
        "ALL": [str(entry.run.path) for entry in widest_first],
        "FOLDER": [str(runs)],
        "PNG": [str(tmp_path)],
    }
    given = [part for word in words for part in stands_for.get(word, [word])]
    done = CliRunner().invoke(aft, given, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert Counter(name.split("_")[0] for name in opened) == read
    assert set(opened.values()) == {1}, opened


def test_the_table_alone_keeps_no_traces_in_memory(runs: Path, opened: Counter[str]):
    entries = read_entries([runs])
    for _ in range(2):
        assert [len(list(entry.traces())) for entry in entries] == [4, 4, 4]
    # What is needed of the samples stays in memory, and the texts of traces do not.
    assert {name.split("_")[0]: count for name, count in opened.items()} == {"samples": 1, "aft": 2}


def test_frames_read_each_file_of_a_sweep_once(runs: Path, opened: Counter[str]):
    frames = lm_eval_aft.frames(runs)
    settings = frames.runs[["k", "layers"]].drop_duplicates().sort_values(["k", "layers"])
    assert settings.to_numpy().tolist() == [[1, 0], [1, 1], [3, 1]]
    assert sorted(frames.drafts.groupby("run").size()) == [4, 8, 16]
    assert frames.samples.groupby("run")["doc_id"].nunique().tolist() == [4, 4, 4]
    assert set(opened.values()) == {1}


def test_kept_traces_have_no_token_ids_and_are_read_once(runs: Path, opened: Counter[str]):
    entries = read_entries([runs], keep=True)
    for entry in entries:
        assert entry.traces() is entry.traces()
        assert entry.costs["aft_demo"].texts == sum(len(trace.drafts) for trace in entry.traces())
        assert all(not draft.completion.token_ids for trace in entry.traces() for draft in trace.drafts)
    assert set(opened.values()) == {1}
