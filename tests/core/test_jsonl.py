"""JSON lines: blank lines are skipped, and what cannot be read is named with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from lm_eval_aft.core.errors import RecordError
from lm_eval_aft.core.jsonl import iterate_jsonl, read_jsonl, write_jsonl


def test_objects_come_back_with_the_line_they_are_on(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa9"}\n\n  \n{"b": 2}')
    assert list(iterate_jsonl(file)) == [(f"{file} line 1", {"a": "é"}), (f"{file} line 4", {"b": 2})]


def test_what_is_written_is_read(tmp_path: Path):
    rows = [{"text": "line\u2028break\r\n", "n": 1}, {"text": ""}]
    assert write_jsonl(tmp_path / "deep" / "rows.jsonl", rows) == 2
    assert read_jsonl(tmp_path / "deep" / "rows.jsonl") == rows


@pytest.mark.parametrize("line", [b"{", b"[]", b"3", b'{"a": 1', b"[" * 100_000, b"\xff\xfe"])
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"a": 1}\n' + line + b"\n")
    with pytest.raises(RecordError, match=r"rows\.jsonl line 2 "):
        list(iterate_jsonl(file))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(RecordError, match=r"gone\.jsonl cannot be read \(No such file or directory\)"):
        list(iterate_jsonl(tmp_path / "gone.jsonl"))
