"""Tiny chat models with random weights, and their byte-level tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% if not (loop.last and continue_final_message is defined and continue_final_message) %}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML


def tiny_tokenizer(chat_template: str | None = CHATML):
    """A byte-level tokenizer without merges: 256 byte tokens and the four control tokens of ChatML."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<s>", "<|im_start|>", "<|im_end|>"]
    vocab = {token: number for number, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="<pad>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = chat_template
    return fast


def tiny_config(kind: str = "llama"):
    """The config of a model that runs in milliseconds: "llama", "sliding" (sliding window) or "gemma"."""
    import transformers

    sizes = {
        "vocab_size": 260,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "bos_token_id": 1,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    if kind == "sliding":
        return transformers.MistralConfig(**sizes, sliding_window=16)
    if kind == "gemma":
        return transformers.Gemma3TextConfig(**sizes, head_dim=8, sliding_window=16, query_pre_attn_scalar=8)
    return transformers.LlamaConfig(**sizes)


def save_tiny(folder: Path, kind: str = "llama", chat_template: str | None = CHATML) -> str:
    """Write a tiny model with random weights (seed 0) and its tokenizer as a checkpoint. Returns the folder."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(kind))
    # With the default scale the logits are nearly uniform, so no text would end.
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(3)
    model.generation_config.eos_token_id = 3
    model.save_pretrained(folder)
    tiny_tokenizer(chat_template).save_pretrained(folder)
    return str(folder)


# A weight of every tiny model.
LAYER = "model.layers.1.mlp.up_proj.weight"


def damaged_copy(checkpoint: str, folder: Path, value: float | None) -> str:
    """Copy a tiny checkpoint without its weight ``LAYER``, or with a value in that weight. Returns the folder."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoint, folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    if value is None:
        del weights[LAYER]
    else:
        weights[LAYER][3, 4] = value
    save_file(weights, file, metadata={"format": "pt"})
    return str(folder)


def save_tiny_for_vllm(folder: Path) -> str:
    """Write a tiny Llama that vLLM's CPU attention runs: it needs heads of 32. Returns the folder."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    sizes = {"vocab_size": 260, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes, **heads, bos_token_id=1, eos_token_id=3))
    with torch.no_grad():
        for weights in model.parameters():
            # The default scale gives near-uniform logits.
            weights.mul_(3)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)
