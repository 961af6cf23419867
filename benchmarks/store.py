"""How large is a draft store, and how fast is it, beside a store of version 1?

The script puts generations into a new store of each version and gets them all again, in turns. A generation of 1,024
bytes has 480 bytes of text, 120 token ids and 64 bytes of other columns; one of 3,072 bytes has 1,504 and 376. Half of
a store's CPU time can be in the package, so the same class reads and writes both versions.

Usage: python benchmarks/store.py [--generations 100000] [--turns 3] [--out benchmarks/results]
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import common

from lm_eval_aft.core.records import Completion, Confidence
from lm_eval_aft.storage.draft_store import DRAFT_STORE, SQLiteStore
from lm_eval_aft.storage.sqlite import SQLiteFile

PAYLOADS = {1024: (480, 120), 3072: (1504, 376)}
VERSION_1 = replace(
    DRAFT_STORE,
    version=1,
    page_bytes=4096,
    table="CREATE TABLE generations (key BLOB PRIMARY KEY, text TEXT NOT NULL, token_ids BLOB NOT NULL, finish_reason "
    "TEXT NOT NULL, prompt_tokens INT NOT NULL, computed_prompt_tokens INT NOT NULL, generated_tokens INT NOT NULL, "
    "digest BLOB NOT NULL) WITHOUT ROWID",
)
# Keys in one call of ``get``, as for a layer of 400 questions with k=5.
KEYS_PER_CALL = 2000


@dataclass(frozen=True)
class Figures:
    """Seconds and bytes of one turn."""

    put_cpu_s: float
    put_wall_s: float
    get_cpu_s: float
    get_wall_s: float
    file_bytes: int


def generations(count: int, payload: int) -> list[tuple[str, Completion]]:
    """Keys and completions. The keys are hashes, so they arrive in no order."""
    characters, tokens = PAYLOADS[payload]
    source = random.Random(payload)
    rows = []
    for number in range(count):
        ids = tuple(source.randrange(49_152) for _ in range(tokens))
        text = "".join(source.choices("abcdefghijklmnopqrstuvwxyz ", k=characters))
        confidence = Confidence.of([source.random() - 1 for _ in range(40)])
        completion = Completion(text, ids, "stop", 200, 0, tokens, confidence)
        rows.append((sha256(str(number).encode()).hexdigest(), completion))
    return rows


def measure(path: Path, version: int, rows: list[tuple[str, Completion]]) -> Figures:
    """Put all generations into a new store, close it, and get them from the file."""
    if version == 1:
        SQLiteFile(path, VERSION_1).db.close()
    store = SQLiteStore(path)
    cpu, wall = time.process_time(), time.perf_counter()
    for key, completion in rows:
        store.put(key, completion)
    store.close()
    put = time.process_time() - cpu, time.perf_counter() - wall
    file_bytes = path.stat().st_size
    store = SQLiteStore(path)
    cpu, wall = time.process_time(), time.perf_counter()
    for start in range(0, len(rows), KEYS_PER_CALL):
        part = dict(rows[start : start + KEYS_PER_CALL])
        found = store.get(part)
        if {key: completion.text for key, completion in found.items()} != {key: c.text for key, c in part.items()}:
            raise SystemExit(f"version {version} gives other texts than it got")
    get = time.process_time() - cpu, time.perf_counter() - wall
    store.close()
    return Figures(*(round(seconds, 2) for seconds in (*put, *get)), file_bytes)


def compare(count: int, payload: int, turns: int) -> dict[str, object]:
    """The figures of both versions for one payload, and how many times version 2 is smaller and faster."""
    rows = generations(count, payload)
    figures: dict[int, list[Figures]] = {1: [], 2: []}
    for turn in range(turns):
        for version in (1, 2) if turn % 2 == 0 else (2, 1):
            with tempfile.TemporaryDirectory() as folder:
                figures[version].append(measure(Path(folder, "drafts.sqlite"), version, rows))

    def median(version: int, name: str) -> float:
        return statistics.median(getattr(turn, name) for turn in figures[version])

    names = list(Figures.__annotations__)
    return {
        **{
            f"version_{version}": {name: [getattr(t, name) for t in figures[version]] for name in names}
            for version in (1, 2)
        },
        "bytes_a_generation": {version: round(median(version, "file_bytes") / count) for version in figures},
        "times_better": {name: round(median(1, name) / max(1e-9, median(2, name)), 2) for name in names},
    }


def main() -> None:
    """Measure and write the figures."""
    options = common.parser(__doc__)
    common.add_turns(options)
    options.add_argument("--generations", type=int, default=100_000, help="Generations in a store (default 100,000).")
    args = options.parse_args()
    cases = {f"{payload} bytes": compare(args.generations, payload, args.turns) for payload in PAYLOADS}
    common.write("store", {"generations": args.generations, "turns": args.turns, "cases": cases}, args.out)


if __name__ == "__main__":
    main()
