"""Which drafts of a row are kept: the best by a score, a matched mean, or only rows that have enough.

Scores come from a reward model (any sequence-classification checkpoint with one output, read as the
FsfairX-LLaMA3-RM-v0.1 card does: chat template without BOS, raw logit), a verifier, or the row itself. Called by
``aft data select``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from itertools import combinations
from typing import Any

from tqdm import tqdm

from lm_eval_aft.engines.fingerprint import checkpoint_fingerprint
from lm_eval_aft.errors import ConfigError, EngineError
from lm_eval_aft.records import Completion
from lm_eval_aft.store import Store
from trainers.drafts import keep_drafts
from trainers.rows import query_chat
from trainers.verify import Verifier

MOST_SETS = 5000  # sets of k drafts that are compared for a matched mean


class RewardModel:
    """Scores an answer to a chat; scores are kept in a store, so a killed command goes on."""

    def __init__(self, name: str, store: Store, device: str, batch_size: int) -> None:
        """Load a checkpoint.

        Raises:
            EngineError: If it cannot be loaded.
            ConfigError: If it has several outputs, or no chat template.
        """
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.device = device if torch.cuda.is_available() or not device.startswith("cuda") else "cpu"
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(name)
            model: Any = AutoModelForSequenceClassification.from_pretrained(name, dtype="auto")
        except (OSError, ValueError) as error:
            raise EngineError(f"--reward_model {name} cannot be loaded: {str(error).splitlines()[0]}") from error
        if model.config.num_labels != 1:
            raise ConfigError(
                f"--reward_model {name} has {model.config.num_labels} outputs: one that scores has a single one."
            )
        if not self.tokenizer.chat_template:
            raise ConfigError(f"--reward_model {name} has no chat template: it cannot be told question from answer.")
        self.model = model.to(self.device).eval()
        if self.model.config.pad_token_id is None:  # how the model finds the last token of each row
            self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
            self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self.store, self.batch_size = store, batch_size
        self.fingerprint = "reward|" + checkpoint_fingerprint(name, None, getattr(model.config, "_commit_hash", None))

    def score(self, rows: Sequence[Mapping[str, Any]]) -> list[list[float]]:
        """The score of each draft of each row."""
        texts = [[self._text(row, draft, n) for draft in row["drafts"]] for n, row in enumerate(rows, 1)]
        keys = {text: self._key(text) for row in texts for text in row}
        known = {key: float(completion.text) for key, completion in self.store.get(keys.values()).items()}
        missing = sorted((text for text, key in keys.items() if key not in known), key=len)
        with tqdm(desc="scores", total=len(missing), unit="text") as bar:
            for start in range(0, len(missing), self.batch_size):
                batch = missing[start : start + self.batch_size]
                for text, score in zip(batch, self._logits(batch), strict=True):
                    known[keys[text]] = score
                    self.store.put(keys[text], Completion(repr(score), (), "stop", 0, 0, 0))
                bar.update(len(batch))
        self.store.flush()
        return [[known[keys[text]] for text in row] for row in texts]

    def _text(self, row: Mapping[str, Any], draft: str, number: int) -> str:
        turns = [{"role": m.role, "content": m.content} for m in query_chat(row, f"row {number}").messages]
        chat = [*turns, {"role": "assistant", "content": draft}]
        text = str(self.tokenizer.apply_chat_template(chat, tokenize=False))
        return text.removeprefix(self.tokenizer.bos_token or "")

    def _key(self, text: str) -> str:
        return sha256(f"{self.fingerprint}\n{text}".encode()).hexdigest()

    def _logits(self, texts: Sequence[str]) -> list[float]:
        import torch

        batch = self.tokenizer(list(texts), return_tensors="pt", padding=True).to(self.device)
        with torch.inference_mode():
            scores: list[float] = self.model(**batch).logits[:, 0].float().tolist()
        return scores


def verify_all(rows: Sequence[Mapping[str, Any]], verifier: Verifier) -> list[dict[str, Any]]:
    """The rows with ``right``, one flag a draft."""
    return [{**row, "right": [bool(verifier(draft, row)) for draft in row["drafts"]]} for row in rows]


def keep_best(rows: Sequence[Mapping[str, Any]], k: int) -> list[dict[str, Any]]:
    """The k best drafts of each row by score (else by being right), in their old order; shorter rows are left out."""
    made = []
    for row in rows:
        values = row.get("scores") or row.get("right") or [0.0] * len(row["drafts"])
        usable = [i for i, draft in enumerate(row["drafts"]) if draft.strip()]
        best = sorted(usable, key=lambda i: -values[i])[:k]
        if len(best) == k:
            made.append(keep_drafts(row, sorted(best)))
    return made


def keep_matched(rows: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], k: int) -> list[dict[str, Any]]:
    """For each query that another file has too, the k drafts whose mean score is nearest to the other file's there.

    Raises:
        ConfigError: If either file has rows without scores, or they share no query.
    """
    goals = {query_chat(row, "the other file").identity: _mean(_scores(row)) for row in other}
    made = []
    for row in rows:
        goal = goals.get(query_chat(row, "a row").identity)
        usable = [i for i, draft in enumerate(row["drafts"]) if draft.strip()]
        if goal is None or len(usable) < k:
            continue
        scores = _scores(row)
        sets = (chosen for _, chosen in zip(range(MOST_SETS), combinations(usable, k), strict=False))
        nearest = min(sets, key=lambda chosen: abs(_mean([scores[i] for i in chosen]) - goal))
        made.append(keep_drafts(row, nearest))
    if not made:
        raise ConfigError("the two files share no query with enough drafts: they must ask the same.")
    return made


def _scores(row: Mapping[str, Any]) -> list[float]:
    if not row.get("scores"):
        raise ConfigError("a row has no scores: run aft data select --reward_model MODEL on both files first.")
    return list(row["scores"])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))
