"""A reward model: a sequence-classification checkpoint with one output, which scores an answer in its chat.

The input is the chat template's text without BOS, and the score is the raw logit, as the card of
FsfairX-LLaMA3-RM-v0.1 describes. The draft store keeps the scores, so a killed command resumes where it stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from tqdm import tqdm

from lm_eval_aft.core.errors import ChatError, ConfigError, EngineError
from lm_eval_aft.core.loading import load_reason, loading, refuse_no_checkpoint
from lm_eval_aft.core.model_checks import damaged_logits, damaged_weights, missing_weights
from lm_eval_aft.core.model_shape import model_shape
from lm_eval_aft.core.records import Completion, Message
from lm_eval_aft.core.rendering import render
from lm_eval_aft.core.shards import refused_shard
from lm_eval_aft.core.usage import Usage, total
from lm_eval_aft.storage.draft_store import Store
from lm_eval_aft.storage.fingerprint import checkpoint_fingerprint

# A chat that ends in the assistant's answer.
AnsweredChat = tuple[Message, ...]


class RewardModel:
    """Scores the answers of chats."""

    def __init__(self, name: str, store: Store, device: str, batch_size: int) -> None:
        """Load a checkpoint.

        Args:
            name: Folder or hub name.
            store: Keeps the scores, beside the generations.
            device: For example "cpu" or "cuda:0". The CPU is used if there is no CUDA.
            batch_size: Chats that are scored together.

        Raises:
            EngineError: If the checkpoint cannot be loaded, or its weights are missing or damaged.
            ConfigError: If it has several outputs, or no chat template.
        """
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.device = device if torch.cuda.is_available() or not device.startswith("cuda") else "cpu"
        refuse_no_checkpoint("reward_model", name)
        with loading(lambda error: EngineError(f"reward_model {name} cannot be loaded: {load_reason(error, name)}")):
            if reason := refused_shard(name):
                raise ValueError(reason)
            self.tokenizer: Any = AutoTokenizer.from_pretrained(name)
            loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                name, dtype="auto", use_safetensors=True, output_loading_info=True
            )
            model, info = loaded
            # A model of another kind also lacks the weights of the score. Its outputs say better what is wrong.
            if model.config.num_labels != 1:
                raise ConfigError(
                    f"reward_model {name} has {model.config.num_labels} outputs: give a model with a single one."
                )
            if fault := missing_weights(info["missing_keys"]) or damaged_weights(model):
                raise ValueError(fault)
        if not self.tokenizer.chat_template:
            raise ConfigError(
                f"reward_model {name} has no chat template, so it cannot tell question from answer: give a chat model."
            )
        self.model = model.to(self.device).eval()
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token or self.tokenizer.convert_ids_to_tokens(0)
        self.pad: int | None = model.config.get_text_config().pad_token_id
        self.name, self.store, self.batch_size, self.shape = name, store, batch_size, model_shape(self.model)
        self.fingerprint = "reward2|" + checkpoint_fingerprint(name, None, getattr(model.config, "_commit_hash", None))

    def score(self, rows: Sequence[Sequence[AnsweredChat]]) -> list[list[float]]:
        """The scores of rows of chats, in the same rows.

        Raises:
            ChatError: If the chat template refuses a chat.
            EngineError: If a score is not a number.
        """
        texts = [[self._text(chat) for chat in row] for row in rows]
        keys = {text: self._key(text) for row in texts for text in row}
        scores = {key: float(completion.text) for key, completion in self.store.get(keys.values()).items()}
        missing = sorted((text for text, key in keys.items() if key not in scores), key=len)
        with tqdm(desc="scores", total=len(missing), unit="text") as bar:
            for start in range(0, len(missing), self.batch_size):
                batch = missing[start : start + self.batch_size]
                for text, score in zip(batch, self._logits(batch), strict=True):
                    scores[keys[text]] = score
                    self.store.put(keys[text], Completion(repr(score), (), "stop", 0, 0, 0))
                bar.update(len(batch))
        self.store.flush()
        return [[scores[keys[text]] for text in row] for row in texts]

    def cost(self, chats: Sequence[AnsweredChat]) -> Usage:
        """The cost of scoring chats. Nothing is generated, and chats share no prompt."""
        lengths = [len(self.tokenizer(self._text(chat))["input_ids"]) for chat in chats]
        return total(
            [Usage(0, length, length, 0, self.shape.flops(0, length) if self.shape else 0) for length in lengths]
        )

    def _text(self, chat: AnsweredChat) -> str:
        rows = [message.to_dict() for message in chat]
        text = render(
            lambda: self.tokenizer.apply_chat_template(rows, tokenize=False),
            lambda reason: ChatError(
                f"the chat that asks {chat[-2].content[:60]!r} is refused by the chat template of reward_model "
                f"{self.name} ({reason}): correct its messages, or leave it out."
            ),
        )
        return text.removeprefix(self.tokenizer.bos_token or "")

    def _key(self, text: str) -> str:
        return sha256(f"{self.fingerprint}\n{text}".encode()).hexdigest()

    def _logits(self, texts: Sequence[str]) -> list[float]:
        import torch

        batch = self.tokenizer(list(texts), return_tensors="pt", padding=True, padding_side="right").to(self.device)
        # Some tokenizers return token types, which decoders do not take.
        batch.pop("token_type_ids", None)
        mask = batch["attention_mask"].bool()
        batch["input_ids"] = batch["input_ids"].masked_fill(~mask, self._pad_token(batch["input_ids"], mask))
        with torch.inference_mode():
            scores = self.model(**batch).logits[:, 0]
        if not bool(scores.isfinite().all()):
            raise EngineError(f"reward_model {self.name} cannot be used: {damaged_logits(scores.dtype)}")
        rewards: list[float] = scores.float().tolist()
        return rewards

    def _pad_token(self, ids: Any, mask: Any) -> int:
        """The token to pad a batch with.

        transformers reads the score at the last token that is not the model's pad token, whatever the tokenizer pads
        with. If the model has no pad token, the batch gets one that ends none of its texts.
        """
        if self.pad is not None:
            return self.pad
        ends = set(ids.gather(1, mask.sum(dim=1, keepdim=True) - 1).flatten().tolist())
        pad = next(token for token in range(len(ends) + 1) if token not in ends)
        self.model.config.get_text_config().pad_token_id = pad
        return pad
