"""The tasks: which answer a text holds, and that lm-eval loads and scores the tasks."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lm_eval_aft
from helpers.lm_eval_version import in_group
from lm_eval_aft.inference.extraction import extract_flexible, extract_strict, normalise

sys.path.insert(0, str(lm_eval_aft.tasks_path() / "aft_gsm8k"))
import utils as gsm8k

sys.path.pop(0)
# Other tasks have a module of that name.
del sys.modules["utils"]
PERFECT = "2 + 2 = 4.\nThe answer is {}."

# A text, and what four filters find in it: strict, flexible, stock strict-match, stock flexible-extract.
ENDINGS = [
    ("The answer is 18.", "18", "18", None, "18."),
    ("The answer is $18.00.", "18", "18", None, "$18.00."),
    ("The answer is **18**.", "18", "18", None, "18"),
    ("The answer is 18...", "18", "18", None, "18..."),
    ("The answer is 1,234", "1234", "1234", None, "1,234"),
    ("The answer is 18. Drafts 1 and 2 agree.", "18", "18", None, "2"),
    ("The answer is 18 dollars (3 items).", "18", "18", None, "3"),
    ("The answer is -5.", "-5", "-5", None, "-5."),
    ("The answer is \u22125.", "-5", "-5", None, "5."),
    ("The answer is 3/4.", "3/4", "3/4", None, "4."),
    (r"The answer is \boxed{18}.", "18", "18", None, "18"),
    (r"So we get \(\frac{1}{2}\)", None, "1/2", None, "2"),
    ("The answer is N.\nThe answer is 20.", "20", "20", None, "20."),
    ("The answer is 50%", "50", "50", None, "50"),
    ("#### 18", None, "18", "18", "18"),
    ("9 - 2 = 7 apples", None, "7", None, "7"),
    ("so 9-2 = 7", None, "7", None, "7"),
    ("He has 7 of them, in 2", None, "2", None, "2"),
    ("The answer is 1 1/2.", "3/2", "3/2", None, "2."),
    (r"The answer is 1\frac{1}{2}.", "3/2", "3/2", None, "2"),
    ("The answer is 1\u00bd.", "3/2", "3/2", None, "1"),
    ("The answer is -2 3/4", "-11/4", "-11/4", None, "4"),
    ("The answer is _18_.", "18", "18", None, "18"),
    ("So __18__", None, "18", None, "18"),
    ("x_1 is 7, the other is x_2", None, "7", None, "2"),
    ("The answer is 6 x 7 = 42.", "42", "42", None, "42."),
    ("The answer is $20 - $5 = $15 a day.", "15", "15", None, "$15"),
    (r"The answer is 2 \times 3 = \boxed{6}.", "6", "6", None, "6"),
    ("The answer is 6 * 7 = 42. Drafts 1 and 2 say so.", "42", "42", None, "2"),
    ("The answer is 6 x 7, which is 42.", None, "42", None, "42."),
    ("The answer is **18** 3 items.", "18", "18", None, "3"),
    ("The answer is 18 (= 3 x 6).", "18", "18", None, "6"),
    ("no number at all", None, None, None, None),
    ("", None, None, None, None),
]


@pytest.fixture(scope="module")
def stock():
    """lm-eval's own filters for gsm8k, from its YAML."""
    import re

    import lm_eval.tasks
    import yaml

    text = Path(lm_eval.tasks.__file__).parent.joinpath("gsm8k", "gsm8k.yaml").read_text()
    patterns = {f["name"]: f["filter"][0] for f in yaml.safe_load(text)["filter_list"]}

    def apply(name: str, answer: str) -> str | None:
        matches = re.findall(patterns[name]["regex_pattern"], answer)
        if not matches:
            return None
        match = matches[patterns[name].get("group_select", 0)]
        return match if isinstance(match, str) else next(part for part in match if part)

    return apply


@pytest.mark.parametrize(("text", "strict", "flexible", "stock_strict", "stock_flexible"), ENDINGS)
def test_endings(text, strict, flexible, stock_strict, stock_flexible, stock):
    assert extract_strict(text) == strict
    assert extract_flexible(text) == flexible
    assert stock("strict-match", text) == stock_strict
    assert stock("flexible-extract", text) == stock_flexible


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"The answer is \tfrac{3}{4}.", "3/4"),
        (r"The answer is \frac34.", "3/4"),
        (r"The answer is -\cfrac{3}4.", "-3/4"),
        (r"So \boxed{1\nicefrac{1}{2}}", "3/2"),
        ("The answer is \u201318.", "-18"),
        ("The answer is \u2011$18.", "-18"),
        ("The answer is - 18", "-18"),
        ("The answer is **\u2212 18**", "-18"),
        (r"\boxed{- 18}", "-18"),
        ("5 - 23 = - 18", "-18"),
        ("- 18", "-18"),
        ("\u201318", "-18"),
        # A dash between numbers, and the mark of a list, are no signs.
        ("from 10\u201318", "18"),
        ("The answers are:\n- 18 apples", "18"),
        ("The answer is:\n- 18", "18"),
        ("The answer is 1e3.", "1000"),
        ("The answer is 1.5E+3", "1500"),
        ("The answer is 2e-3", "1/500"),
        ("10^3", "1000"),
        ("The answer is 10^{3}.", "1000"),
        ("The answer is 10**3", "1000"),
        ("The answer is 10\u00b3.", "1000"),
        (r"The answer is 2.5 \times 10^3.", "2500"),
        ("The answer is 5 x 3^2 = 45.", "45"),
        ("The answer is 0^-1", "0"),
        ("The answer is 1 234.", "1234"),
        ("The answer is $1 234.50", "2469/2"),
        ("1 234", "1234"),
        ("It is 12\u202f345\u202f678 in all", "12345678"),
        ("It is 1\u2009234 or so", "1234"),
        (r"It is 1\;234 or so", "1234"),
        ("It is 1\u00a0234", "1234"),
        ("He has 3 100-gram bags", "100"),
        ("The answer is 3 100-gram bags", "3"),
        ("In 2020 300 people", "300"),
    ],
)
def test_the_value_that_a_reader_sees(text, value):
    assert extract_flexible(text) == value


PIECES = ["=", "= ", "=*", "answer is =", "*", "1", "1,", "123,", "1 ", "1/", "\\frac{", "\\boxed{", "$", "- "]
PIECES += [
    "1 234 ",
    "is ",
    "\u2013",
    "10^",
    "2 x 10",
    "1e",
    "\u00b2",
    "1\u2009234",
    "*1",
    "1**2",
    "\\frac1",
    ": - ",
    "({[",
]


@pytest.mark.parametrize("piece", PIECES)
def test_time_grows_with_the_length_of_a_text_not_with_its_square(piece):
    text = piece * (40_000 // len(piece))
    started = time.process_time()
    extract_flexible(text)
    # If the time grew with the square of the length, it would be over a minute.
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("number", "spelling"),
    [
        ("1,234", "1234"),
        ("18.00", "18"),
        (".50", "1/2"),
        ("6/8", "3/4"),
        ("-0", "0"),
        ("1 1/2", "3/2"),
        ("5 4/2", "2"),
        ("3 1/0", None),
        ("1/0", None),
        ("1e3", "1000"),
        ("1e999999999", None),
        ("x", None),
        ("", None),
    ],
)
def test_equal_numbers_are_written_alike(number, spelling):
    assert normalise(number) == spelling


def test_every_gold_answer_of_gsm8k_is_found_again(shared):
    rows = [json.loads(line) for line in (shared / "data/gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 1319
    for row in rows:
        gold = gsm8k.doc_to_target(row)
        assert gold != gsm8k.INVALID
        assert extract_strict(PERFECT.format(row["answer"].split("####")[1].strip())) == gold
        assert extract_flexible(row["answer"]) == gold


def load(spec: str | dict):
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(lm_eval_aft.tasks_path()), include_defaults=False)
    return manager.load([spec])["tasks"]


def test_aft_gsm8k_takes_a_local_file_and_scores(tmp_path):
    data = tmp_path / "test.jsonl"
    data.write_text(json.dumps({"question": "What is 2+2?", "answer": "2+2=<<2+2=4>>4\n#### 4"}) + "\n")
    files = {"data_files": {"train": str(data), "test": str(data)}}
    spec = {"task": "aft_gsm8k", "dataset_path": "json", "dataset_name": None, "dataset_kwargs": files}
    # A group can override the data of a task.
    (task,) = load({"group": "local", "task": [spec]}).values()
    assert score(task, PERFECT.format(4)) == {"strict-match": 1.0, "flexible-extract": 1.0}
    assert score(task, "It is 4") == {"strict-match": 0.0, "flexible-extract": 1.0}
    assert score(task, "no idea") == {"strict-match": 0.0, "flexible-extract": 0.0}


def test_aft_gsm8k_follows_num_fewshot(tmp_path):
    import lm_eval
    from lm_eval.tasks import TaskManager

    answer = "{0}+{0}=<<{0}+{0}={1}>>{1}\n#### {1}"
    rows = [{"question": f"What is {n}+{n}?", "answer": answer.format(n, 2 * n)} for n in (2, 3)]
    for split, row in zip(("train", "test"), rows, strict=True):
        (tmp_path / split).write_text(json.dumps(row) + "\n")
    files = {"data_files": {split: str(tmp_path / split) for split in ("train", "test")}}
    spec = {"task": "aft_gsm8k", "dataset_path": "json", "dataset_name": None, "dataset_kwargs": files}
    manager = TaskManager(include_path=str(lm_eval_aft.tasks_path()), include_defaults=False)

    def messages(**options) -> list[dict]:
        results = lm_eval.simple_evaluate(
            model=lm_eval_aft.AFTLM(engine="scripted", k=1, layers=1),
            tasks=[{"group": "local", "task": [spec]}],
            task_manager=manager,
            apply_chat_template=True,
            fewshot_as_multiturn=True,
            bootstrap_iters=0,
            **options,
        )
        return results["samples"][in_group("aft_gsm8k", "local")][0]["arguments"][0][2]["messages"]

    question = {"role": "user", "content": gsm8k.doc_to_text(rows[1])}
    assert messages() == messages(num_fewshot=0) == [question]
    shot = [
        {"role": "user", "content": gsm8k.doc_to_text(rows[0])},
        {"role": "assistant", "content": "2+2=4\nThe answer is 4."},
    ]
    assert messages(num_fewshot=1) == [*shot, question]


def score(task, answer: str) -> dict[str, float]:
    task.build_all_requests(limit=1)
    (request,) = task.instances
    assert "What is 2+2?" in request.args[0] or "rolls" in request.args[0]
    assert request.args[1]["until"] == []
    request.resps.append(answer)
    task.apply_filters()
    doc = next(iter(task.test_docs()))
    # lm-eval 0.4 keeps the one text that its last filter gives, and 0.5 a list of it.
    texts = {name: kept if isinstance(kept, list) else [kept] for name, kept in request.filtered_resps.items()}
    return {name: task.process_results(doc, kept)["exact_match"] for name, kept in texts.items()}


def test_aft_demo_needs_no_download_and_no_working_directory(tmp_path):
    code = (
        "import sys, lm_eval_aft; from lm_eval.tasks import TaskManager\n"
        "manager = TaskManager(include_path=str(lm_eval_aft.tasks_path()), include_defaults=False)\n"
        "(task,) = manager.load(['aft_demo'])['tasks'].values()\n"
        "docs = list(task.test_docs()); task.build_all_requests()\n"
        "print(len(docs), len(task.instances), all(str(task.doc_to_target(d)).isdigit() for d in docs))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.stdout.split() == ["12", "12", "True"], done.stderr


def test_aft_demo_scores(tmp_path):
    (task,) = load("aft_demo").values()
    assert score(task, PERFECT.format(42)) == {"strict-match": 1.0, "flexible-extract": 1.0}


def test_the_group_lists_the_tasks():
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(lm_eval_aft.tasks_path()), include_defaults=False)
    assert manager.all_groups == ["aft"]
    assert {"aft_gsm8k", "aft_demo"} <= set(manager.all_subtasks)


def test_what_these_tests_keep_of_lm_evals_own_files_is_what_they_hold():
    from lm_eval.tasks import _index, _yaml_loader

    # tests/helpers/startup replaces this function.
    assert hasattr(_index.TaskIndex.build, "indexes_once")
    own = Path(_index.__file__).parent
    kept, again = _index.TaskIndex.build([own]), _index.TaskIndex.build([own, lm_eval_aft.tasks_path()])
    files = [entry for entry in kept.values() if entry.yaml_path][::100]
    assert len(files) > 50
    for entry in files:
        assert entry.cfg == _yaml_loader.load_yaml(entry.yaml_path, resolve_func=False, recursive=True)
    assert again.keys() - kept.keys() >= {"aft", "aft_gsm8k", "aft_demo"}
    assert again["gsm8k"] == kept["gsm8k"]
    assert again["gsm8k"] is not kept["gsm8k"]
