"""A tiny random model of every causal architecture that transformers ships."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

ARCHITECTURES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCAB = 260


def _each(value: int, names: str) -> dict[str, int]:
    return dict.fromkeys(names.split(), value)


# What the fields that decide a model's size become. A field that a config lacks, or that is None or 0, is left alone.
SIZES: dict[str, int] = {
    **_each(VOCAB, "vocab_size vocab_size_per_layer_input decoder_vocab_size unpadded_vocab_size audio_vocab_size"),
    **_each(VOCAB, "shape_vocab_size pronunciation_vocab_size encoder_hash_byte_group_vocab num_centroids"),
    **_each(VOCAB, "ngram_vocab_size_base"),
    **_each(256, "codebook_size"),
    **_each(32, "hidden_size d_model n_embd embedding_dim emb_dim embedding_size lru_width input_embedding_size"),
    **_each(32, "output_embedding_size word_embed_proj_dim dim_model_base embed_dim pronunciation_embed_dim"),
    **_each(32, "shape_embed_dim backbone_hidden_size input_size attention_hidden_size hidden_size_per_layer_input"),
    **_each(32, "hidden_size_global vision_output_dim projector_input_dim projector_output_dim audio_hidden_size"),
    **_each(32, "adapter_in_dim adapter_out_dim adapter_input_size output_channels ple_embed_dim codebook_dim"),
    **_each(
        32,
        "vector_quantization_hidden_dimension upsample_groups",
    ),
    **_each(64, "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_inner dff dim_ff d_ff n_inner mlp_dim"),
    **_each(64, "ffn_hidden_size feed_forward_size moe_intermediate_size shared_expert_intermediate_size"),
    **_each(64, "dense_intermediate_size shared_intermediate_size expert_ffn_hidden_size intermediate_size_mlp"),
    **_each(64, "moe_shared_expert_intermediate_size shared_experts_intermediate_size mamba_d_ssm"),
    **_each(64, "prefix_dense_intermediate_size ext_pw_out_channel nemo_conv_channels depthwise_separable_out_channel"),
    **_each(4, "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads"),
    **_each(4, "num_encoder_attention_heads num_decoder_attention_heads index_n_heads linear_num_value_heads"),
    **_each(4, "linear_num_heads conf_num_attention_heads"),
    **_each(2, "num_key_value_heads num_kv_heads linear_num_key_heads kv_n_heads num_query_groups n_groups"),
    **_each(8, "head_dim dim_head d_head qk_nope_head_dim qk_rope_head_dim v_head_dim index_head_dim d_kv kv_channels"),
    **_each(8, "linear_key_head_dim linear_value_head_dim linear_head_dim attention_head_size rotary_dim state_size"),
    **_each(8, "mamba_d_state ssm_state_size kv_lora_rank q_lora_rank o_lora_rank time_step_rank adapter_rank"),
    **_each(8, "gated_norm_rank router_hidden_size query_pre_attn_scalar mamba_dt_rank hc_lowrank laurel_rank"),
    **_each(8, "mamba_n_heads mamba_d_head mamba_num_heads mamba_head_dim mamba_headdim n_mamba_heads"),
    **_each(16, "qk_head_dim"),
    **_each(4, "num_experts num_local_experts n_routed_experts moe_num_experts zero_expert_num"),
    **_each(2, "num_experts_per_tok moe_topk moe_top_k moe_k num_experts_per_token"),
    **_each(1, "n_group topk_group num_expert_group n_shared_experts num_shared_experts moe_num_shared_experts"),
    **_each(512, "max_position_embeddings n_positions n_ctx context_length max_seq_len max_target_positions"),
    **_each(512, "model_max_length"),
    **_each(8, "sliding_window attention_window_size window_size local_attention index_topk local_attn_chunk_length"),
    **_each(8, "lsh_attn_chunk_length local_attention_window_len keep_window_size floor_scale log_scaling_n_floor"),
    **_each(8, "sliding_window_size rel_extent swa_head_dim original_max_position_embeddings"),
    **_each(4, "swa_num_attention_heads index_block_size heavily_compressed_attention"),
    **_each(2, "swa_num_key_value_heads index_topk_blocks compressed_sparse_attention"),
    **_each(16, "block_size attention_chunk_size chunk_size mamba_chunk_size patch_size crop_size image_size"),
    **_each(2, "first_k_dense_replace moe_layer_start_index num_dense_layers"),
}
LAYERS = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"),
    *("num_encoder_layers", "num_decoder_layers", "num_blocks", "conf_num_hidden_layers", "num_global_layers"),
)


def config(kind: str, changes: Mapping[str, Any] | None = None) -> Any:
    """The config of a tiny model of one architecture, with further fields."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[kind]
    try:
        fields = shrink(config_class().to_dict())
    except (ValueError, StrictDataclassError):  # some defaults contradict each other
        fields = {}
    return config_class.from_dict({**_merge(fields, EXTRAS.get(kind, {})), **(changes or {})})


def build(kind: str, changes: Mapping[str, Any] | None = None) -> Any:
    """A tiny model of one architecture, in fp32 and with random weights."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config(kind, changes)).float().eval()
    scatter(model)
    return model


def shrink(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config with every known size made small; of its layers the first of each kind stays."""
    layers = next((fields[name] for name in LAYERS if isinstance(fields.get(name), int)), 0)
    kept = _kept_layers(fields, layers)
    heads = {fields.get(name) for name in ("num_attention_heads", "n_heads", "n_head", "num_heads")}
    small: dict[str, Any] = {}
    for name, value in fields.items():
        if name in ("id2label", "label2id", "per_layer_config"):
            continue
        if isinstance(value, Mapping):
            small[name] = shrink(value)
        elif name in LAYERS and isinstance(value, int):
            small[name] = len(kept) if value == layers else 2
        elif _is_by_layer(value, layers):
            small[name] = [SIZES.get(name, value[index]) for index in kept]
        elif "key_value_heads" in name and value in heads:
            small[name] = SIZES["num_attention_heads"]
        elif name in SIZES and value and isinstance(value, int):
            small[name] = min(value, SIZES[name])
        elif name.endswith(("_token_id", "_token_index")) and isinstance(value, int) and value >= VOCAB:
            small[name] = 200 + len(small) % 50
        elif "drop" in name and isinstance(value, float):
            small[name] = 0.0
        else:
            small[name] = value
    if "tie_word_embeddings" in small:  # a tied head answers with the last token again
        small["tie_word_embeddings"] = False
    return small


def scatter(model: Any, seed: int = 0) -> None:
    """Draw all weights anew, large enough that no greedy text repeats one token, and no bias or norm trivial."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in model.parameters():
            noise = torch.randn(weights.shape, generator=generator)
            weights.copy_(noise * 0.4 if weights.dim() > 1 else weights + noise * 0.1)


def _is_by_layer(value: Any, layers: int) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == layers > 1 and list(value) != list(range(layers))


def _kept_layers(fields: Mapping[str, Any], layers: int) -> list[int]:
    by_layer = [value for value in fields.values() if _is_by_layer(value, layers)]
    first: dict[str, int] = {}
    for index in range(layers):
        first.setdefault(repr([each[index] for each in by_layer]), index)
    kept = sorted(first.values())
    return kept if len(kept) > 1 else list(range(min(2, layers)))


def _merge(fields: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(fields)
    for name, value in own.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merge(merged[name], value) if nested else value
    return merged


# What the general way leaves wrong.
_HEAD = {"head_dim": 8}
_EXPERTS = {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1}
_DECODER = {"is_decoder": True}
_MIXED = {"layer_types": ["sliding_attention", "full_attention"]}
_SHARED = {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
_INDEXER = {
    **{"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8},
    **{"indexer_budget": 8, "indexer_compress_ratio": 2},
}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_DOTS3 = {
    "per_layer_config": {
        "2": {
            **{"head_dim": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8},
            **{"kv_lora_rank": 8, "q_lora_rank": 8, "num_attention_heads": 2, "num_key_value_heads": 2},
        }
    }
}
EXTRAS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {**_MIXED, "rope_parameters": dict.fromkeys(_MIXED["layer_types"], _ROPE)},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}, "ffn_config": {"hidden_size": 32}},
    "deepseek_v2": _EXPERTS,
    "dots1": {**_EXPERTS, **_MIXED},
    "dots3_note": {"text_config": _DOTS3},
    "dots3_note_text": _DOTS3,
    "gemma3n_text": {
        **_SHARED,
        **{
            "num_kv_shared_layers": 2,
            "intermediate_size": [64] * 4,
            "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
        },
    },
    "gemma4": {"text_config": {**_SHARED, "num_kv_shared_layers": 2}},
    "gemma4_assistant": {
        **{"backbone_hidden_size": 32, "num_centroids": 20},
        "text_config": {
            **{**_SHARED, "num_kv_shared_layers": 4, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0},
            **{"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4},
            **{"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8},
        },
    },
    "gemma4_text": {**_SHARED, "num_kv_shared_layers": 2},
    "gemma4_unified": {"text_config": {**_SHARED, "num_kv_shared_layers": 2}},
    "gemma4_unified_assistant": {"text_config": {**_SHARED, "num_kv_shared_layers": 4}},
    "gemma4_unified_text": {**_SHARED, "num_kv_shared_layers": 2},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    # Rounding grows with the number of cycles.
    "hrm_text": {"num_layers_per_stack": 1, "num_hidden_layers": 6, "H_cycles": 2, "L_cycles": 2},
    "hunyuan_v1_dense": _HEAD,
    "hunyuan_v1_moe": _HEAD,
    "jamba": {"num_hidden_layers": 3, "attn_layer_period": 2, "attn_layer_offset": 1},
    "laguna": _MIXED,
    "lfm2": {"full_attn_idxs": [1], "layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]},
    "mamba2": {"num_heads": 8},
    "mellum": _MIXED,
    # Its window is as long as its context.
    "moshi": {"sliding_window": 512},
    "ministral": {**_HEAD, **_MIXED},
    "qwen4_exp": {"text_config": _INDEXER},
    "qwen4_exp_text": _INDEXER,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {**_DECODER, "axial_pos_embds": False, "num_buckets": 4},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128, "num_hidden_layers": 2, "num_blocks": 2},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        **{"num_hidden_layers": 5, "attention_hidden_size": 64, "attention_head_dim": 16, "n_mamba_heads": 2},
        "layers_block_type": ["linear_attention", "linear_attention", "hybrid", "linear_attention", "hybrid"],
    },
    "zamba2": {
        **{"num_hidden_layers": 5, "attention_hidden_size": 64, "attention_head_dim": 16},
        "layers_block_type": ["linear_attention", "linear_attention", "hybrid", "linear_attention", "hybrid"],
        "hybrid_layer_ids": [2, 4],
    },
}
EXTRAS |= {
    kind: {**_DECODER, **EXTRAS.get(kind, {})}
    for kind in (
        *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"),
        *(
            "rembert",
            "roberta",
            "roberta-prelayernorm",
            "roc_bert",
            "roformer",
            "xlm-roberta",
            "xlm-roberta-xl",
            "xmod",
        ),
    )
}
