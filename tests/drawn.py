"""config.json files drawn at random, for every supported model_type: each field that a class reads has some values."""

import copy
import json
import random
from pathlib import Path
from typing import Any

import torch
import transformers as peers

from families import CENTERED, SMALL, STACKS, VOCAB

IDS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
SCALINGS: tuple[dict[str, Any], ...] = (
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 3.0},
    {"type": "linear", "factor": 2},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.5,
        "high_freq_factor": 5.0,
        "original_max_position_embeddings": 20,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 500},
    {"rope_type": "yarn", "factor": 2.5, "beta_fast": 16, "beta_slow": 2, "attention_factor": 0.8},
    {"rope_type": "yarn", "factor": 40, "mscale": 0.7, "mscale_all_dim": 1.3, "original_max_position_embeddings": 10},
    {"rope_type": "default", "partial_rotary_factor": 0.5},
    {"rope_type": "linear", "factor": 3.0, "partial_rotary_factor": 0.5},
    {"rope_type": "yarn", "factor": 4.0, "truncate": False},
    {"rope_type": "dynamic", "factor": 2.0},
)
TYPES = ("full_attention", "sliding_attention")
ACTIVATIONS = (
    "gelu",
    "gelu_new",
    "gelu_fast",
    "gelu_python",
    "gelu_pytorch_tanh",
    "relu",
    "relu2",
    "silu",
    "swish",
    "tanh",
)
LAYERS = {"num_hidden_layers": (1, 2, 3, 7)}
DECODER = {
    **{name: (value,) for name, value in SMALL.items() if name not in LAYERS},
    **LAYERS,
    "num_key_value_heads": (1, 2, 4, "absent"),
    "head_dim": (8, 16, "absent", None),
    "hidden_act": (*ACTIVATIONS, "absent", "quick_gelu"),
    "rms_norm_eps": (1e-6, 0.3, "absent"),
    "tie_word_embeddings": (True, False, "absent"),
    "final_logit_softcapping": ("absent", "absent", 3.0),
    "use_cache": (True, False, "absent"),
}
BIAS = (True, False, "absent")
WINDOW = (1, 8, None, "absent")
STACK = {
    **{name: (value,) for name, value in STACKS.items()},
    "encoder_layers": (1, 3),
    "decoder_layers": (1, 2),
    "activation_function": (*ACTIVATIONS, "absent"),
    "tie_word_embeddings": (True, False, "absent"),
}

ENCODER = {
    **{name: (value,) for name, value in SMALL.items() if name not in LAYERS},
    "num_hidden_layers": (1, 2, 3),
    "hidden_act": (*ACTIVATIONS, "absent"),
    "type_vocab_size": (1, 2, 5, "absent"),
    "layer_norm_eps": (1e-12, 0.3, "absent"),
    "tie_word_embeddings": BIAS,
    "chunk_size_feed_forward": ("absent", 4),
    "is_decoder": ("absent", False, False, True),
}
ROBERTA = ENCODER | {"pad_token_id": (1, 1, 1, "absent", 2)}

FIELDS: dict[str, dict[str, tuple]] = {
    "llama": DECODER | {"attention_bias": BIAS, "mlp_bias": BIAS, "sliding_window": ("absent", 8)},
    "mistral": DECODER
    | {"num_key_value_heads": (1, 2, None), "sliding_window": WINDOW, "attention_bias": ("absent", True)},
    "qwen2": DECODER
    | {
        "num_key_value_heads": (1, 2, None),
        "use_sliding_window": BIAS,
        "sliding_window": (3, 8),
        "max_window_layers": (0, 2, "absent"),
        "layer_types": ("absent", "drawn"),
    },
    "phi3": DECODER | {"sliding_window": WINDOW, "head_dim": ("absent",)},
    "stablelm": {
        **{name: choices for name, choices in DECODER.items() if name not in ("rms_norm_eps", "head_dim")},
        "num_key_value_heads": (1, 2),
        "layer_norm_eps": (1e-5, 0.3, "absent"),
        "use_qkv_bias": BIAS,
        "use_parallel_residual": BIAS,
        "qk_layernorm": ("absent", "absent", False, True),
    },
    "smollm3": DECODER
    | {
        "attention_bias": BIAS,
        "mlp_bias": BIAS,
        "use_sliding_window": BIAS,
        "sliding_window": WINDOW,
        "no_rope_layers": ("absent", [1, 1, 0, 0, 1, 0, 1], [1] * 7, [0] * 7),
        "no_rope_layer_interval": ("absent", 2, 3),
        "layer_types": ("absent", "absent", "drawn"),
        "head_dim": ("absent", 8, 16),
    },
    "starcoder2": {
        **{name: choices for name, choices in DECODER.items() if name != "rms_norm_eps"},
        "num_key_value_heads": (1, 2, "absent"),
        "norm_epsilon": (1e-5, 0.3, "absent"),
        "use_bias": BIAS,
        "sliding_window": WINDOW,
    },
    "gemma": DECODER
    | {
        "num_key_value_heads": (1, 2),
        "head_dim": (8, 16),
        "attention_bias": BIAS,
        "use_bidirectional_attention": ("absent", False, None, True),
    },
    "granite": DECODER
    | {
        "attention_bias": BIAS,
        "mlp_bias": BIAS,
        "embedding_multiplier": (12.0, 1.0, "absent"),
        "residual_multiplier": (0.22, 1.0, "absent"),
        "attention_multiplier": (0.2, "absent"),
        "logits_scaling": (8.0, 3, "absent"),
    },
    "gemma2": DECODER
    | {
        "num_key_value_heads": (1, 2, "absent"),
        "hidden_activation": (*ACTIVATIONS, "absent"),
        "attention_bias": BIAS,
        "query_pre_attn_scalar": (10, 16, "absent"),
        "sliding_window": (1, 8, "absent"),
        "layer_types": ("absent", "drawn"),
        "final_logit_softcapping": (3.0, None, "absent"),
        "attn_logit_softcapping": (2.0, None, "absent"),
        "use_bidirectional_attention": ("absent", False, None, True),
        "head_dim": (8, 16),
    },
    "olmo": {
        **{name: choices for name, choices in DECODER.items() if name != "rms_norm_eps"},
        "attention_bias": BIAS,
        "clip_qkv": ("absent", None, None, 0.5),
    },
    "gpt_neox": {
        **{name: choices for name, choices in DECODER.items() if name not in ("rms_norm_eps", "num_key_value_heads")},
        "head_dim": ("absent",),
        "layer_norm_eps": (1e-5, 0.3, "absent"),
        "attention_bias": BIAS,
        "use_parallel_residual": BIAS,
        "rotary_pct": ("absent", 0.5, 1.0),
        "rotary_emb_base": ("absent", 500.0),
    },
    "gptj": {
        "vocab_size": (VOCAB,),
        "n_positions": (40,),
        "n_embd": (32,),
        "n_layer": (1, 3),
        "n_head": (2, 4),
        "n_inner": (48, None, "absent"),
        "rotary_dim": (2, 4, 8, 8),
        "activation_function": (*ACTIVATIONS, "absent"),
        "layer_norm_epsilon": (1e-5, 0.3, "absent"),
        "tie_word_embeddings": BIAS,
        **dict.fromkeys(IDS, (None,)),
    },
    "cohere": {
        **{name: choices for name, choices in DECODER.items() if name != "rms_norm_eps"},
        "layer_norm_eps": (1e-5, 0.3, "absent"),
        "attention_bias": BIAS,
        "logit_scale": (0.0625, 1.0, 0.5, "absent"),
        "use_qk_norm": ("absent", False, False, True),
    },
    "phi": {
        **{name: choices for name, choices in DECODER.items() if name not in ("rms_norm_eps", "head_dim")},
        "layer_norm_eps": (1e-5, 0.3, "absent"),
        "qk_layernorm": BIAS,
    },
    "opt": {
        **{name: (value,) for name, value in SMALL.items() if name not in (*LAYERS, "intermediate_size")},
        **LAYERS,
        "pad_token_id": (1,),
        "ffn_dim": (48,),
        "activation_function": (*ACTIVATIONS, "absent"),
        "do_layer_norm_before": BIAS,
        "_remove_final_layer_norm": BIAS,
        "word_embed_proj_dim": ("absent", None, 32, 16),
        "enable_bias": BIAS,
        "layer_norm_elementwise_affine": (True, True, False, "absent"),
        "tie_word_embeddings": BIAS,
    },
    "bloom": {
        "vocab_size": (VOCAB,),
        "hidden_size": (32,),
        "n_layer": (1, 3),
        "n_head": (1, 4, 2),
        "layer_norm_epsilon": (1e-5, 0.3, "absent"),
        "apply_residual_connection_post_layernorm": ("absent", False, False, True),
        "slow_but_exact": ("absent", True),
        "pretraining_tp": ("absent", 2),
        "tie_word_embeddings": BIAS,
        **dict.fromkeys(IDS, (None,)),
    },
    "mixtral": DECODER
    | {
        "num_key_value_heads": (1, 2, None),
        "sliding_window": WINDOW,
        "num_local_experts": (5, 6, "absent"),
        "num_experts_per_tok": (1, 3, "absent"),
    },
    "qwen3": DECODER
    | {
        "head_dim": (8, 16, "absent"),
        "num_key_value_heads": (1, 2, None),
        "attention_bias": BIAS,
        "use_sliding_window": BIAS,
        "sliding_window": (3, 8),
        "max_window_layers": (0, 2, "absent"),
        "layer_types": ("absent", "drawn"),
    },
    "qwen3_moe": DECODER
    | {
        "head_dim": (8, 16, "absent"),
        "num_key_value_heads": (1, 2, 4),
        "attention_bias": BIAS,
        "use_sliding_window": BIAS,
        "sliding_window": (8, "absent"),
        "num_experts": (5, 6),
        "num_experts_per_tok": (1, 3),
        "moe_intermediate_size": (24,),
        "norm_topk_prob": BIAS,
        "decoder_sparse_step": (1, 2, "absent"),
        "mlp_only_layers": ("absent", [], [0], [1, 2]),
    },
    "olmo2": DECODER | {"head_dim": (8, 16, "absent"), "attention_bias": BIAS},
    "gemma3_text": DECODER
    | {
        "num_key_value_heads": (1, 2, "absent"),
        "hidden_activation": (*ACTIVATIONS, "absent"),
        "attention_bias": BIAS,
        "query_pre_attn_scalar": (10, 16, "absent"),
        "sliding_window": (1, 8, "absent"),
        "layer_types": ("absent", "drawn"),
        "sliding_window_pattern": ("absent", 2, 6),
        "final_logit_softcapping": (3.0, None, "absent"),
        "attn_logit_softcapping": ("absent", 2.0),
        "use_bidirectional_attention": ("absent", False, False, None, True),
        "head_dim": (8, 16),
        "rope_local_base_freq": ("absent", 500.0),
    },
    "gpt2": {
        "vocab_size": (VOCAB,),
        "n_positions": (40,),
        "n_embd": (32,),
        "n_layer": (1, 3),
        "n_head": (1, 4),
        "n_inner": (48, None, "absent"),
        "activation_function": (*ACTIVATIONS, "absent"),
        "layer_norm_epsilon": (1e-5, 0.3, "absent"),
        "scale_attn_weights": BIAS,
        "scale_attn_by_inverse_layer_idx": BIAS,
        "reorder_and_upcast_attn": BIAS,
        "tie_word_embeddings": BIAS,
        **dict.fromkeys(IDS, (None,)),
    },
    "bert": ENCODER | {"pad_token_id": (0,)},
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert"), ROBERTA),
    "distilbert": {
        "vocab_size": (VOCAB,),
        "dim": (32,),
        "n_layers": (1, 3),
        "n_heads": (1, 4),
        "hidden_dim": (48,),
        "max_position_embeddings": (40,),
        "pad_token_id": (0,),
        "activation": (*ACTIVATIONS, "absent"),
        "sinusoidal_pos_embds": BIAS,
        "tie_word_embeddings": BIAS,
    },
    "electra": ENCODER | {"pad_token_id": (0,), "embedding_size": (32, 32, 16)},
    "modernbert": {
        **{name: (value,) for name, value in SMALL.items() if name not in LAYERS},
        **LAYERS,
        "cls_token_id": (None,),
        "sep_token_id": (None,),
        "hidden_activation": (*ACTIVATIONS, "absent"),
        "classifier_activation": (*ACTIVATIONS, "absent"),
        "norm_eps": (1e-5, 0.3, "absent"),
        "norm_bias": BIAS,
        "attention_bias": BIAS,
        "mlp_bias": BIAS,
        "decoder_bias": BIAS,
        "classifier_bias": BIAS,
        "local_attention": (4, 9, "absent"),
        "layer_types": ("absent", "drawn"),
        "global_attn_every_n_layers": ("absent", 1, 2),
        "global_rope_theta": ("absent", 500.0),
        "local_rope_theta": ("absent", 300.0),
        "tie_word_embeddings": BIAS,
    },
    "vit": {
        "hidden_size": (32,),
        "num_hidden_layers": (1, 3),
        "num_attention_heads": (4,),
        "intermediate_size": (48,),
        "image_size": (16, [16, 16]),
        "patch_size": (4, 8, [4, 4]),
        "num_channels": (3, "absent"),
        "hidden_act": (*ACTIVATIONS, "absent"),
        "layer_norm_eps": (1e-12, 0.3, "absent"),
        "qkv_bias": BIAS,
        "id2label": ("absent", {"0": "a", "1": "b", "2": "c"}),
        "num_labels": ("absent", 2, 3, 7),
    },
    "t5": {
        "vocab_size": (VOCAB,),
        "d_model": (32,),
        "d_kv": (8, 16),
        "d_ff": (48,),
        "num_layers": (1, 2),
        "num_decoder_layers": (1, 3, None, "absent"),
        "num_heads": (4, 2),
        "relative_attention_num_buckets": (8, 32, "absent"),
        "relative_attention_max_distance": (16, "absent"),
        "layer_norm_epsilon": (1e-6, 0.3, "absent"),
        "feed_forward_proj": ("relu", "gated-gelu", "gated-silu", "gelu", "gelu_new", "absent"),
        "is_gated_act": ("absent", "absent", True, False),
        "dense_act_fn": ("absent", "absent", "silu"),
        "tie_word_embeddings": BIAS,
        "scale_decoder_outputs": ("absent", "absent", True, False),
        "decoder_start_token_id": (0,),
    },
    "mt5": {
        "vocab_size": (VOCAB,),
        "d_model": (32,),
        "d_kv": (8, 16),
        "d_ff": (48,),
        "num_layers": (1, 2),
        "num_decoder_layers": (1, 3, None, "absent"),
        "num_heads": (4, 2),
        "relative_attention_num_buckets": (8, 32, "absent"),
        "relative_attention_max_distance": (16, "absent"),
        "layer_norm_epsilon": (1e-6, 0.3, "absent"),
        "feed_forward_proj": ("relu", "gated-gelu", "gated-silu", "gelu", "gelu_new", "absent"),
        "tie_word_embeddings": BIAS,
    },
    "mbart": STACK | {"max_position_embeddings": (40,), "scale_embedding": BIAS},
    "bart": STACK | {"max_position_embeddings": (40,), "scale_embedding": BIAS},
    "marian": STACK | {"max_position_embeddings": (40,), "scale_embedding": BIAS},
    "whisper": STACK
    | {
        "max_source_positions": (20,),
        "max_target_positions": (40,),
        "num_mel_bins": (10,),
        "scale_embedding": BIAS,
        "begin_suppress_tokens": (None,),
    },
}
FLAT = (
    "granite",
    "gemma2",
    "cohere",
    "llama",
    "qwen2",
    "phi3",
    "stablelm",
    "smollm3",
    "starcoder2",
    "gemma",
    "mistral",
    "mixtral",
    "qwen3",
    "qwen3_moe",
    "olmo2",
)
NESTED = ("gemma3_text", "modernbert")
CLASSES = {
    "bert": "BertForMaskedLM",
    "roberta": "RobertaForMaskedLM",
    "xlm-roberta": "XLMRobertaForMaskedLM",
    "camembert": "CamembertForMaskedLM",
    "distilbert": "DistilBertForMaskedLM",
    "electra": "ElectraForMaskedLM",
    "modernbert": "ModernBertForMaskedLM",
    "vit": "ViTForImageClassification",
    "t5": "T5ForConditionalGeneration",
    "mt5": "MT5ForConditionalGeneration",
    "mbart": "MBartForConditionalGeneration",
    "bart": "BartForConditionalGeneration",
    "marian": "MarianMTModel",
    "whisper": "WhisperForConditionalGeneration",
}


def class_of(model_type: str) -> Any:
    """The class with a head."""
    return getattr(peers, CLASSES.get(model_type, "")) if model_type in CLASSES else peers.AutoModelForCausalLM


def config_of(values: dict) -> Any:
    """Their config of these fields, as from_pretrained makes it."""
    return peers.CONFIG_MAPPING[values["model_type"]].from_dict(copy.deepcopy(values))


def draw(model_type: str, seed: int) -> dict[str, Any]:
    """The fields of a config.json."""
    dice = random.Random(f"{model_type} {seed}")
    values = {name: dice.choice(choices) for name, choices in FIELDS[model_type].items()}
    if values.get("layer_types") == "drawn":
        values["layer_types"] = [dice.choice(TYPES) for _ in range(values["num_hidden_layers"])]
    if model_type == "phi3":  # which has one type of scheme
        values |= dice.choice(({}, {"partial_rotary_factor": 0.5}, {"rope_scaling": {"type": "yarn", "factor": 2.0}}))
    elif model_type in FLAT:
        values |= _rotary(dice, nested=False)
    elif model_type in NESTED:
        values |= _rotary(dice, nested=True)
    values["model_type"] = model_type
    return {name: value for name, value in values.items() if value != "absent"}


def _rotary(dice: random.Random, *, nested: bool) -> dict[str, Any]:
    """A rotary scheme in one of the two spellings."""
    base, scaling = dice.choice((None, 10000.0, 500)), dict(dice.choice(SCALINGS))
    if dice.random() < 0.5:
        named = {} if base is None else {"rope_theta": base}
        named |= dice.choice(({}, {}, {"partial_rotary_factor": 0.5}))
        return {**named, "rope_scaling": scaling} if dice.random() < 0.7 else named
    if not nested:
        return {"rope_parameters": scaling if base is None else {**scaling, "rope_theta": base}}
    other = dict(dice.choice(SCALINGS))
    kinds = {TYPES[0]: {**scaling, "rope_theta": 700.0}, TYPES[1]: {**other, "rope_theta": 300.0}}
    return {"rope_parameters": {kind: kinds[kind] for kind in dice.choice(((TYPES[0],), (TYPES[1],), TYPES))}}


def save(values: dict, folder: Path) -> Any:
    """A model of theirs with these fields and random parameters, in a folder whose config.json has just these."""
    torch.manual_seed(0)
    config, kind = config_of(values), class_of(values["model_type"])
    model = kind.from_config(config) if hasattr(kind, "from_config") else kind(config)
    model.eval()
    generator = torch.Generator().manual_seed(1)
    centred = values["model_type"] in CENTERED
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.2, generator=generator)
            if parameter.dim() == 1 and name.endswith("weight") and not centred:
                parameter.add_(1)
        for name, buffer in model.named_buffers():
            if name.endswith("final_logits_bias"):
                buffer.normal_(generator=generator)
    if getattr(config, "tie_word_embeddings", False) and len(values) % 2:
        model.tie_weights()  # else the file holds another head than the config says
    model.save_pretrained(folder)
    written = {"architectures": [type(model).__name__], **values}
    (folder / "config.json").write_text(json.dumps(written), encoding="utf-8")
    return kind.from_pretrained(folder).eval()
