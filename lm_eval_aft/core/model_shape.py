"""The sizes of a transformers model that decide the cost of a token."""

from __future__ import annotations

from typing import Any

from lm_eval_aft.core.usage import ModelShape


def model_shape(model: Any) -> ModelShape:
    """Read the sizes of a loaded transformers model.

    Embeddings and the output head are left out. So are the weights that peft keeps of modules it has replaced.
    """
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    embeddings = (model.get_input_embeddings().weight, getattr(head, "weight", None))
    # A head may share its weights with the input embedding.
    excluded = {id(weights): weights for weights in embeddings if weights is not None}
    used = [weights for name, weights in model.named_parameters() if ".original_module." not in name]
    parameters = sum(weights.numel() for weights in used) - sum(weights.numel() for weights in excluded.values())
    return ModelShape(parameters, config.num_hidden_layers, config.num_attention_heads * head_size(config))


def head_size(config: Any) -> int:
    """The size of an attention head, from the text config of a model."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
