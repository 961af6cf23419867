"""``make demo``: the commands that it runs, and the older files that it replaces."""

from __future__ import annotations

from pathlib import Path

import pytest

from lm_eval_aft.cli import demo


def test_an_older_demonstration_is_replaced_by_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    old = tmp_path / "out" / "demo" / "sft" / "m" / "results_1.json"
    old.parent.mkdir(parents=True)
    old.write_text("{}")
    (tmp_path / "out" / "other").mkdir()
    seen: list[tuple[str, bool]] = []
    monkeypatch.setattr(
        demo, "run_command", lambda program, *words: seen.append((f"{program} {words[0]}", old.exists()))
    )
    monkeypatch.setattr(demo, "read_traces", lambda folder: [None])
    monkeypatch.setattr(demo, "choose", lambda traces: traces[0])
    monkeypatch.setattr(demo, "show_question", lambda trace: None)
    assert demo.main() == 0
    assert seen == [
        ("lm_eval --model", False),
        ("lm_eval --model", False),
        ("aft compare", False),
        ("aft report", False),
    ]
    assert (tmp_path / "out" / "other").is_dir()
