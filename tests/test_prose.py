"""The prose check counts sentences and names faults."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.prose import MOST_README_LINES, faults, forbidden_words, main, sentences


def test_sentences_end_at_points_colons_items_and_blank_lines():
    page = "Run the command. It ends: all is well.\n\n- one item of a list\n- another item of it\n\nA last line"
    assert sentences(page) == [
        "Run the command",
        "all is well",
        "- one item of a list",
        "another item of it",
        "A last line",
    ]


@pytest.mark.parametrize("block", ["```bash\nrun a b c d\n```", "    some code", "| a table of words |", "# A heading"])
def test_code_tables_and_headings_are_left_out(block: str):
    assert sentences(f"Here is prose.\n\n{block}\n\nMore prose comes.") == ["Here is prose", "More prose comes"]


def test_code_in_a_line_is_one_word():
    assert sentences("Give `--limit 20 --tasks gsm8k` once.") == ["Give code once"]


def test_a_sentence_of_thirty_words_passes_and_one_of_thirty_one_does_not():
    assert faults("page.md", "word " * 29 + "word.") == []
    (fault,) = faults("page.md", "word " * 30 + "word.")
    assert fault.startswith("page.md: 31 words in one sentence: word")


@pytest.mark.parametrize("text", ["The opponents win.", "It was asked\nfor twice.", "## Look-up", "| born | x |"])
def test_a_forbidden_word_is_named(text: str):
    assert len(forbidden_words(text)) == 1


@pytest.mark.parametrize("text", ["`look-up.py`", "[a](look-up.json)", "```text\nopponent\n```", "A stubborn one."])
def test_code_addresses_and_longer_words_are_no_forbidden_words(text: str):
    assert forbidden_words(text) == []


def test_the_readme_has_a_limit_of_lines():
    page = "A line.\n" * (MOST_README_LINES + 1)
    assert faults("README.md", page) == ["README.md: 151 lines, at most 150 are allowed"]
    assert faults("tasks/aft_gsm8k/README.md", page) == []


def test_the_command_prints_counts_and_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "lab-notes").mkdir()
    (tmp_path / "lab-notes" / "a.md").write_text("word " * 31 + ".")
    (tmp_path / "b.md").write_text("Four words are here. And here are five.")
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == "2 pages, 8 words, mean 4.0, longest 4, over 30: 0\n"
    (tmp_path / "lab-notes" / "a.md").write_text("An opponent is here.")
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().out.endswith("a.md: do not write 'opponent'\n")


def test_a_high_mean_is_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "a.md").write_text("word " * 21 + ".")
    assert main([str(tmp_path / "a.md")]) == 1
    assert "21.0 words a sentence on average, at most 20 are allowed" in capsys.readouterr().out
