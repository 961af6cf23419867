"""The data of ``aft_demo``: twelve small word problems with whole-number answers, which need no download."""

from __future__ import annotations

from typing import Any

PROBLEMS = [
    ("A baker packs 6 rolls in each bag and fills 7 bags. How many rolls does she pack?", 42),
    ("Tom has 15 marbles. He gives 4 to Ana and 3 to Ben. How many marbles does Tom keep?", 8),
    ("A bus ticket costs 3 coins. How many tickets can you buy with 24 coins?", 8),
    ("Lena reads 12 pages on Monday and twice as many on Tuesday. How many pages does she read in all?", 36),
    ("A farmer has 5 hens. Each hen lays 2 eggs a day. How many eggs does he have after 4 days?", 40),
    ("A rope of 20 metres is cut into pieces of 4 metres. How many pieces are there?", 5),
    ("Mia is 9 years old. Her brother is 5 years older. How old will her brother be in 6 years?", 20),
    ("A shop sells a pen for 2 coins and a book for 7 coins. How much do 3 pens and 2 books cost?", 20),
    ("There are 30 seats in a hall. 11 are taken, then 6 more people sit down. How many seats are free?", 13),
    ("Sam walks 2 kilometres to school and 2 kilometres back. How far does he walk in 5 days?", 20),
    ("A jar holds 50 beans. Rita takes out half of them and puts 8 back. How many beans are in the jar?", 33),
    ("Four friends share 3 pizzas of 8 slices each. How many slices does each friend get?", 6),
]


def dataset(**_: Any) -> Any:
    """The problems with GSM8K's fields, as the ``DatasetDict`` that lm-eval's ``custom_dataset`` returns."""
    from datasets import Dataset, DatasetDict

    rows = [{"question": question, "answer": f"#### {answer}"} for question, answer in PROBLEMS]
    return DatasetDict({"test": Dataset.from_list(rows)})
