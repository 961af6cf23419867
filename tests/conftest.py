"""What the tests share: a tiny chat model on disk, made here, and engines around it."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub: no test needs a hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # on a busy machine threads wait for each other longer than a tiny model runs

STARTUP = Path(__file__).resolve().parent / "startup"  # here, and in every Python that a test starts
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(STARTUP), os.environ.get("PYTHONPATH")]))
runpy.run_path(str(STARTUP / "sitecustomize.py"))

SHARED = Path(__file__).resolve().parents[2] / "shared"
SMOLLM2 = Path.home() / ".cache" / "lm_eval_aft" / "smollm2-135m-instruct"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% if not (loop.last and continue_final_message is defined and continue_final_message) %}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of benchmark files beside the checkout."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the benchmark files beside the checkout are not here")
    return SHARED


@pytest.fixture(scope="session")
def smollm2() -> str:
    """A real 135M chat model."""
    if not (SMOLLM2 / "config.json").is_file():
        pytest.skip("SmolLM2-135M-Instruct is not on this machine: make demo-chat fetches it")
    return str(SMOLLM2)


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
    """A config small enough to run in milliseconds: plain, sliding-window, or Gemma-like."""
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
    """Write a tiny model with random weights (seed 0) and its tokenizer as an ordinary checkpoint folder."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(kind))
    with torch.no_grad():
        for weights in model.parameters():  # the default scale gives near-uniform logits, hence texts without ends
            weights.mul_(3)
    model.generation_config.eos_token_id = 3
    model.save_pretrained(folder)
    tiny_tokenizer(chat_template).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tiny Llama chat model."""
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_engine(tiny: str):
    """The hf engine around it, in fp32 on the CPU."""
    from lm_eval_aft.engines.base import HostArgs
    from lm_eval_aft.engines.hf.engine import HFEngine

    return HFEngine.load({"pretrained": tiny, "dtype": "float32"}, HostArgs("auto", None, "cpu"))


@pytest.fixture(scope="session")
def quick_lm_eval():
    """lm-eval without its description of the machine, which takes seconds per run and says nothing a test asks."""
    patch = pytest.MonkeyPatch()
    patch.setattr("lm_eval.evaluator.add_env_info", lambda storage: None)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def reward(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny reward model with random weights."""
    import torch
    from transformers import AutoModelForSequenceClassification

    folder = tmp_path_factory.mktemp("reward")
    config = tiny_config()
    config.num_labels = 1
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)
