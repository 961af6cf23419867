"""Joins draft stores: the texts of several files in a new one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lm_eval_aft.core.errors import ConfigError, StoreError
from lm_eval_aft.core.files import atomic_write, writing
from lm_eval_aft.core.records import Completion
from lm_eval_aft.storage.draft_store import KEYS_PER_QUERY, SQLiteStore

# What tells two texts of one key apart. The other counts depend on what else was generated at the time.
Text = tuple[str, tuple[int, ...], str]


@dataclass(frozen=True, slots=True)
class Merged:
    """What joining stores did.

    Attributes:
        generations: Generations in the new store.
        repeated: Generations that a store before in the order held too.
        conflicts: How many of those had another text. The new store holds the text of the first store.
    """

    generations: int
    repeated: int
    conflicts: int


def merge_stores(stores: Sequence[Path], output: Path, *, keep_first: bool = False) -> Merged:
    """Write the generations of several draft stores into a new one, whole or not at all. The stores stay as they are.

    Args:
        stores: The files, of any version that this package reads. Each generation is compared with its digest.
        output: The new file. Its folder is made if it is missing.
        keep_first: Whether to keep the text of the first store if a later one has another text under the same key.

    Raises:
        ConfigError: If a store is given twice, or there is a file at ``output``.
        StoreError: If a file is not a draft store, is damaged, or cannot be read or written; or if two stores have
            different texts under one key, and ``keep_first`` is False.
    """
    _check_paths(stores, output)
    with writing(output, StoreError):
        output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(output) as partial:
            try:
                with SQLiteStore(partial) as target:
                    merged = _merge(stores, target, keep_first)
                    # On a full disk SQLite would close the file without an error, and leave a part of it in the log.
                    target.empty_log()
            finally:
                # SQLite leaves them if the last commit fails, for example on a full disk.
                for end in ("-wal", "-shm"):
                    partial.with_name(partial.name + end).unlink(missing_ok=True)
    return merged


def _check_paths(stores: Sequence[Path], output: Path) -> None:
    if output.exists():
        raise ConfigError(f"--output {output} exists: give the path of a new file, or remove it.")
    seen: set[Path] = set()
    for store in stores:
        if store.resolve() in seen:
            raise ConfigError(f"{store} is given twice: give each draft store once, and look for one that is missing.")
        seen.add(store.resolve())


def _merge(stores: Sequence[Path], target: SQLiteStore, keep_first: bool) -> Merged:
    repeated = conflicts = 0
    for path in stores:
        with SQLiteStore(path, create=False) as store:
            for part in store.parts(KEYS_PER_QUERY):
                held = target.get(part)
                repeated += len(held)
                differing = [key for key in held if _text(held[key]) != _text(part[key])]
                if differing and not keep_first:
                    raise StoreError(
                        f"{path} has another text than a store before it under {len(differing):,} keys or more, first "
                        f"{differing[0][:12]}: the same seeds gave different texts, as on GPUs and servers, so give "
                        "--keep-first to keep the text of the store that is named first."
                    )
                conflicts += len(differing)
                _put(part, held, target)
    return Merged(target.info().generations, repeated, conflicts)


def _put(part: dict[str, Completion], held: dict[str, Completion], target: SQLiteStore) -> None:
    """Add what the target lacks: generations, and the confidence of a text that it holds without."""
    for key, completion in part.items():
        if key not in held:
            target.put(key, completion)
        elif held[key].confidence is None and _text(held[key]) == _text(completion):
            target.put(key, replace(held[key], confidence=completion.confidence))
    target.flush()


def _text(completion: Completion) -> Text:
    return completion.text, completion.token_ids, completion.finish_reason
