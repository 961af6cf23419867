"""``aft train`` on a tiny random model of every causal architecture that transformers ships."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from helpers import zoo, zoo_outcome
from helpers.training_runs import log_of, weights
from lm_eval_aft.core.errors import AFTError
from trainers.settings import TrainConfig
from trainers.train import run_training

# One architecture of each kind of cache: attention, sliding window, chunks, indexed, compressed, linear attention,
# state space, hybrids of these with attention, convolutions, recurrent state, a cache of its own, none.
KINDS = (
    *("llama", "gemma3_text", "llama4_text", "glm_moe_dsa", "deepseek_v4", "qwen3_next", "mamba2", "jamba"),
    *("zamba2", "lfm2", "rwkv", "xlstm", "minimax", "openai-gpt"),
)
pytestmark = [
    pytest.mark.zoo,
    pytest.mark.filterwarnings("default"),
    pytest.mark.usefixtures("quiet_transformers"),
]


@pytest.mark.parametrize(
    "kind", [kind if kind in KINDS else pytest.param(kind, marks=pytest.mark.slow) for kind in zoo.ARCHITECTURES]
)
def test_an_architecture_trains_or_is_refused_in_one_sentence(kind, config, tmp_path):
    try:
        zoo_outcome.save(kind, str(tmp_path / "model"))
    except Exception as error:
        pytest.skip(f"transformers does not build it: {zoo_outcome.reason(error)}")
    own = replace(config, model=str(tmp_path / "model"), max_steps=2, save_every=None, learning_rate=1e-2)
    refusal = refused(own)
    if "lora_targets" in refusal:  # not every layer can have an adapter, and the model trains whole
        assert kind in NO_ADAPTER
        own = replace(own, lora_rank=0)
        refusal = refused(own)
    assert bool(refusal) == (kind in REFUSED), refusal
    if refusal:
        return
    losses = [line["loss"] for line in log_of(own) if "loss" in line]
    assert losses
    assert all(math.isfinite(loss) for loss in losses)
    if own.lora_rank:  # the second matrix of an adapter starts at zero
        assert any(bool(part.any()) for name, part in weights(own.output).items() if "lora_B" in name)


def refused(config: TrainConfig) -> str:
    """Train; the sentence of an error of ours, or nothing if there is none."""
    try:
        run_training("aft", config)
    except AFTError as error:
        sentence = str(error)
        if "\n" in sentence or ("cannot be trained" not in sentence and "lora_rank=0" not in sentence):
            raise
        return sentence
    return ""


# lora_targets=all-linear names layers that peft cannot adapt.
NO_ADAPTER = (
    *("deepseek_v4", "falcon_h1", "falcon_mamba", "llama4", "llama4_text", "mamba", "mamba2", "nemotron_h", "phimoe"),
)
# Not causal, or not trained on token ids alone.
REFUSED = ("blt", "cpmant", "git", "prophetnet", "reformer", "xlm", "xlnet")
