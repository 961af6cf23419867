"""The sizes of a transformers model that decide the cost of a token."""

from __future__ import annotations

from typing import Any

from lm_eval_aft.core.usage import ModelShape

# The exceptions of a config or a model that lacks a size.
SHAPE_ERRORS = (AttributeError, NotImplementedError, TypeError)


def model_shape(model: Any) -> ModelShape | None:
    """Read the sizes of a loaded transformers model. None if it lacks one, as models without attention do.

    Embeddings and the output head are left out. So are the weights that peft keeps of modules it has replaced.
    """
    try:
        return _shape(model, model.config.get_text_config())
    except SHAPE_ERRORS:
        return None


def _shape(model: Any, config: Any) -> ModelShape:
    head = model.get_output_embeddings()
    embeddings = (model.get_input_embeddings().weight, getattr(head, "weight", None))
    # A head may share its weights with the input embedding.
    excluded = {id(weights): weights for weights in embeddings if weights is not None}
    used = [weights for name, weights in model.named_parameters() if ".original_module." not in name]
    parameters = sum(weights.numel() for weights in used) - sum(weights.numel() for weights in excluded.values())
    return ModelShape(parameters, config.num_hidden_layers, attention_width(config))


def attention_width(config: Any, keys: bool = False) -> int:
    """Heads times head size of a layer, on average where layers differ, from the text config of a model.

    Args:
        config: A transformers config.
        keys: Count the heads of keys and values instead of those of queries.

    Raises:
        One of ``SHAPE_ERRORS``: If the config lacks a size.
    """
    # transformers has this list since 5.10, and then refuses to read from the config what layers differ in.
    layers = list(getattr(config, "per_layer_config", None) or [config])
    return round(sum(_layer_width(layer, keys) for layer in layers) / len(layers))


def _layer_width(config: Any, keys: bool) -> int:
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(size * ((getattr(config, "num_key_value_heads", None) or heads) if keys else heads))
