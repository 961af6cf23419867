"""One rule says whether a run is better: the terminal, JSON, the page, the card and the exit code agree."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from helpers.made_runs import add_task, make_run
from lm_eval_aft.analysis.api import read_sides
from lm_eval_aft.analysis.comparison import compare_entries
from lm_eval_aft.cli import aft

# Of 20 questions: the baseline's right answers and the other run's.
CASES = {
    "better": ([0] * 20, [1] * 8 + [0] * 12, True),
    "worse": ([1] * 8 + [0] * 12, [0] * 20, True),
    # Tango's interval leaves out zero, and the exact p is 0.062.
    "interval only": ([0] * 20, [1] * 5 + [0] * 15, True),
    # The reverse, which must not be taken for a regression.
    "interval only, worse": ([1] * 5 + [0] * 15, [0] * 20, True),
    "less is better": ([0] * 20, [1] * 8 + [0] * 12, False),
    "level": ([1] * 20, [1] * 20, True),
}
VERDICTS = {
    "better": "better",
    "worse": "worse",
    "interval only": "no difference shown",
    "interval only, worse": "no difference shown",
    "less is better": "worse",
    "level": "no difference shown",
}


def make_sides(folder: Path, case: str, further_tasks: int = 0) -> list[str]:
    """The two runs of a case, with further tasks on which they are equal. Returns their folders."""
    first, second, higher = CASES[case]
    for name, scores in (("a", first), ("b", second)):
        make_run(folder / name, scores, model=name, tokens=100, higher_is_better={"t": {"acc": higher}})
        for number in range(further_tasks):
            add_task(folder / name, f"u{number}", [1] * 20)
    return [str(folder / "a"), str(folder / "b")]


def shown(folder: Path, sides: list[str]) -> dict[str, str]:
    """The verdict on task t in each place, as one of the words of ``Comparison.verdict``."""
    base, others = read_sides(Path(sides[0]), [Path(sides[1])], None)
    row = next(each for each in compare_entries(base, others).comparisons if each.score.task == "t")
    page = folder / "page.html"
    commands = {
        "text": ["compare", *sides],
        "json": ["compare", *sides, "--format", "json"],
        "exit": ["compare", *sides, "--fail-on-regression"],
        "card": ["report", *sides, "--model-card", "--baseline", sides[0]],
        "page": ["report", *sides, "--html", str(page)],
    }
    done = {name: CliRunner().invoke(aft, arguments) for name, arguments in commands.items()}
    (sentence,) = re.findall(r"^t: .*$", done["text"].output, re.MULTILINE)
    (card,) = re.findall(r"^- (t: .*)$", done["card"].output, re.MULTILINE)
    assert card == sentence
    data = json.loads(re.search(r'id="data">([^<]*)<', page.read_text())[1])
    (effect,) = (each for each in page_effects(data) if each["name"] == "t")
    texts = effect["texts"]
    # The numbers were formatted once.
    for text in (texts["difference"], texts["baseline"], texts["score"], texts["p"], texts["p_holm"]):
        assert f" {text} " in done["text"].output
    (json_row,) = (each for each in json.loads(done["json"].output) if each["score"]["task"] == "t")
    (table_row,) = re.findall(r"^ b \(5, 2\) +t acc % .*$", done["text"].output, re.MULTILINE)
    return {
        "rule": row.verdict,
        "sentence": _in_words(sentence),
        "table": re.search(r"(better|worse|no difference shown) *$", table_row)[1],
        "json": json_row["verdict"],
        "page": effect["verdict"],
        "exit": "worse" if done["exit"].exit_code == 1 else "",
    }


def page_effects(data: dict) -> list[dict]:
    """The page's comparisons of whole tasks."""
    effects = [effect for group in data["effects"]["groups"] for effect in group["effects"]]
    return [effect for effect in effects if effect["kind"] == "run"]


def _in_words(sentence: str) -> str:
    words = re.search(r" (better|worse|higher|lower) than ", sentence)
    doubt = "no difference is shown" in sentence
    assert doubt == (words is None or words[1] in ("higher", "lower"))
    return "no difference shown" if doubt else words[1]


@pytest.mark.parametrize("case", CASES)
def test_every_place_has_the_same_verdict(tmp_path: Path, case: str):
    places = shown(tmp_path, make_sides(tmp_path, case))
    verdict = VERDICTS[case]
    assert places.pop("exit") == ("worse" if verdict == "worse" else "")
    assert places == dict.fromkeys(places, verdict)


def test_the_corrected_p_counts_everywhere(tmp_path: Path):
    """With ten tasks, p = 0.008 becomes 0.078."""
    places = shown(tmp_path, make_sides(tmp_path, "worse", further_tasks=9))
    assert places == {**dict.fromkeys(places, "no difference shown"), "exit": ""}


def test_three_runs_have_the_same_words_and_digits_everywhere(tmp_path: Path):
    """Terminal, page, card and exit code, with one run better and one worse than the baseline on two tasks."""
    right = {"base": 20, "good": 34, "bad": 6}
    for place, (name, count) in enumerate(right.items(), 1):
        make_run(tmp_path / name, [1] * count + [0] * (40 - count), model=name, k=place, tokens=100 * place)
        add_task(tmp_path / name, "u", [1] * 21 + [0] * 19)
    folders = [str(tmp_path / name) for name in right]
    page = tmp_path / "page.html"
    terminal = CliRunner().invoke(aft, ["compare", *folders, "--fail-on-regression"])
    card = CliRunner().invoke(aft, ["report", *folders, "--model-card", "--baseline", folders[0]])
    CliRunner().invoke(aft, ["report", *folders, "--html", str(page), "--baseline", folders[0]])
    assert terminal.exit_code == 1
    sentences = re.findall(r"^[tu]: .*$", terminal.output, re.MULTILINE)
    assert re.findall(r"^- ([tu]: .*)$", card.output, re.MULTILINE) == sentences
    assert [_in_words(each) for each in sentences] == ["better", "no difference shown", "worse", "no difference shown"]
    data = json.loads(re.search(r'id="data">([^<]*)<', page.read_text())[1])
    # The page has the sentence on the best run of each task, and the numbers of all.
    assert [headline["sentences"][0] for headline in data["headlines"]] == sentences[:2]
    found = page_effects(data)
    verdicts = {f"{effect['name']}: {effect['run']}": effect["verdict"] for effect in found}
    assert verdicts == {sentence.split(" is ")[0]: _in_words(sentence) for sentence in sentences}
    verdicts = {row["name"]: row["verdict"] for row in data["strips"][0]["rows"]}
    assert verdicts == {"base (1, 2)": "", "good (2, 2)": "better", "bad (3, 2)": "worse"}
    for effect in found:
        line = next(
            line
            for line in terminal.output.splitlines()
            if line.strip().startswith(effect["run"]) and f" {effect['name']} " in line and effect["verdict"] in line
        )
        for text in effect["texts"].values():
            assert f" {text} " in f"{line} "
    facts = [fact["text"] for fact in data["headlines"][0]["facts"]]
    assert len(facts) == 2
    assert all(f" {text} " in terminal.output for text in facts)
