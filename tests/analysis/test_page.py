"""The page as a file: its parts, and what no text can put into it. test_page_browser tests how it behaves."""

from __future__ import annotations

import base64
import gzip
import json
import re
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import pytest

from helpers.page_data import hostile_page, large_page, sample, small_page
from lm_eval_aft.analysis.report.page.data import PageData
from lm_eval_aft.analysis.report.page.write import SHARD_SIZE, write_page
from lm_eval_aft.core.errors import RecordError


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text of the scripts and styles."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.texts.append("")
        self.inside = True

    def handle_data(self, data):
        if self.inside:
            self.texts[-1] += data

    def handle_endtag(self, tag):
        self.inside = False

    def all(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attrs, text) for (name, attrs), text in zip(self.found, self.texts, strict=True) if name == tag]


def written(tmp_path: Path, data: PageData) -> str:
    return write_page(tmp_path / "page.html", data).read_text(encoding="ascii")


def blocks(page: str) -> dict[str, str]:
    return dict(re.findall(r'<script type="[^"]+" id="([^"]+)">([^<]*)</script>', page))


def test_a_hostile_page_has_the_elements_of_a_tidy_one(tmp_path: Path):
    tidy, hostile = (Elements(written(tmp_path, page)) for page in (small_page(), hostile_page()))
    assert [tag for tag, _ in hostile.found] == [tag for tag, _ in tidy.found]
    allowed = {"charset", "http-equiv", "content", "name", "type", "id", "class", "lang"}
    assert {name for _, attributes in hostile.found for name in attributes} <= allowed


def test_the_policy_allows_this_script_and_this_style_and_nothing_else(tmp_path: Path):
    page = Elements(written(tmp_path, hostile_page()))
    (policy,) = [a["content"] for a, _ in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    (script,) = [text for attributes, text in page.all("script") if "type" not in attributes]
    ((_, style),) = page.all("style")
    digests = [base64.b64encode(sha256(text.encode()).digest()).decode() for text in (script, style)]
    assert policy.startswith(
        f"default-src 'none'; script-src 'sha256-{digests[0]}'; style-src 'sha256-{digests[1]}'; base-uri 'none'; "
    )
    assert "unsafe" not in policy


def test_no_address_and_no_markup_sink_is_in_the_code(tmp_path: Path):
    page = written(tmp_path, small_page())
    outside = re.sub(r'<script type="[^<]*</script>', "", page).replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", outside)
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "fetch("):
        assert sink not in page


def test_shards_and_index_hold_every_sample(tmp_path: Path):
    data = replace(small_page(), samples=tuple(sample(doc) for doc in range(2 * SHARD_SIZE + 1)))
    found = blocks(written(tmp_path, data))
    shards = [json.loads(gzip.decompress(base64.b64decode(found[f"shard-{i}"]))) for i in range(3)]
    assert [len(shard) for shard in shards] == [SHARD_SIZE, SHARD_SIZE, 1]
    assert shards[2][0]["texts"][2] == {
        "layer": 1, "index": 0, "text": "draft two of 64: 8", "answer": "8", "right": False,
        "seed": "3", "generated_tokens": 34, "finish_reason": "stop", "copies": [1], "nearest": 1, "spoken": None,
    }  # fmt: skip
    index = json.loads(found["data"])["index"]
    assert (index["runs"], index["tasks"], index["shard_size"]) == (["run A"], ["gsm8k"], SHARD_SIZE)
    assert index["entries"][64] == [0, 0, 0, 64, 2, None, None, "question 64?"]


def test_grades_are_bits_of_the_index(tmp_path: Path):
    index = json.loads(blocks(written(tmp_path, small_page()))["data"])["index"]
    assert [entry[4] for entry in index["entries"]] == [1, 1 + 4, 2 + 8, 2, 0]


def test_open_ends_of_intervals_are_null(tmp_path: Path):
    groups = json.loads(blocks(written(tmp_path, small_page()))["data"])["effects"]["groups"]
    assert [effect["low"] for group in groups for effect in group["effects"]] == [-6.1, -8.0, None]


def test_equal_data_give_equal_pages_and_replace_the_old_one(tmp_path: Path):
    first = written(tmp_path, small_page())
    assert written(tmp_path, hostile_page()) != first
    assert written(tmp_path, small_page()) == first
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_an_empty_page_is_a_page(tmp_path: Path):
    data = json.loads(blocks(written(tmp_path, PageData("nothing")))["data"])
    assert (data["title"], data["leaderboard"], data["index"]["entries"]) == ("nothing", None, [])


def test_a_whole_benchmark_is_a_few_megabytes(tmp_path: Path):
    path = write_page(tmp_path / "page.html", large_page(questions=200))
    raw = sum(len(text.text) for each in large_page(questions=200).samples for text in each.texts)
    # The file is base64 of compressed text, and holds index and prompts too.
    assert path.stat().st_size < raw


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match=r"page\.html cannot be written"):
        write_page(tmp_path / "file" / "page.html", small_page())


def test_importing_loads_nothing_heavy():
    code = "import sys, lm_eval_aft.analysis.report.page.write\n"
    code += "print(sorted({'numpy', 'torch', 'lm_eval', 'jinja2'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
