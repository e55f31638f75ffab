"""Small transformers models of every supported family, with parameters that reveal errors."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as peers

VOCAB, LENGTH = 50, 30
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": VOCAB,
    "max_position_embeddings": 40,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
STACKS = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "forced_eos_token_id": None,
    "decoder_start_token_id": 2,
}
ROPE = {"rope_theta": 500000.0, "factor": 8.0, "original_max_position_embeddings": 20}
LLAMA3 = {**ROPE, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {**ROPE, "rope_theta": 10000.0, "rope_type": "yarn", "original_max_position_embeddings": 2000}
HALF = {"rope_theta": 10000.0, "rope_type": "default", "partial_rotary_factor": 0.5}
LINEAR = {"rope_theta": 10000.0, "rope_type": "linear", "factor": 3.0}


CENTERED = ("gemma", "gemma2", "gemma3_text")
"""Model types whose gains are stored less 1."""


@dataclass(frozen=True)
class Peer:
    """A config of theirs and the class it is for; form: decoder, encoder, pair, patches or frames."""

    config: Any
    model: Any
    form: str = "decoder"


def all_peers() -> dict[str, Peer]:
    """Every family, some in several settings."""
    p = peers
    grouped = {**SMALL, "num_key_value_heads": 2}
    dense = {name: value for name, value in SMALL.items() if name != "intermediate_size"}
    wide = {**grouped, "head_dim": 16}
    return {
        "gpt2": Peer(
            p.GPT2Config(
                vocab_size=VOCAB, n_positions=40, n_embd=32, n_layer=3, n_head=4, bos_token_id=None, eos_token_id=None
            ),
            p.GPT2LMHeadModel,
        ),
        "llama2": Peer(p.LlamaConfig(**SMALL), p.LlamaForCausalLM),
        "llama3": Peer(p.LlamaConfig(**grouped, rope_parameters=LLAMA3, tie_word_embeddings=True), p.LlamaForCausalLM),
        "llama yarn": Peer(p.LlamaConfig(**wide, rope_parameters=YARN, attention_bias=True), p.LlamaForCausalLM),
        "llama linear": Peer(p.LlamaConfig(**wide, rope_parameters=LINEAR, mlp_bias=True), p.LlamaForCausalLM),
        "qwen2": Peer(
            p.Qwen2Config(**grouped, use_sliding_window=True, sliding_window=8, max_window_layers=1),
            p.Qwen2ForCausalLM,
        ),
        "phi3": Peer(
            p.Phi3Config(**grouped, sliding_window=8, rope_parameters=HALF),
            p.Phi3ForCausalLM,
        ),
        "stablelm": Peer(p.StableLmConfig(**grouped, use_qkv_bias=True, rope_parameters=HALF), p.StableLmForCausalLM),
        "stablelm parallel": Peer(
            p.StableLmConfig(**grouped, use_parallel_residual=True, rope_parameters=HALF), p.StableLmForCausalLM
        ),
        "smollm3": Peer(
            p.SmolLM3Config(**grouped | {"num_hidden_layers": 5}, use_sliding_window=True, sliding_window=8),
            p.SmolLM3ForCausalLM,
        ),
        "starcoder2": Peer(p.Starcoder2Config(**grouped, sliding_window=8), p.Starcoder2ForCausalLM),
        "gemma": Peer(p.GemmaConfig(**wide), p.GemmaForCausalLM),
        "granite": Peer(
            p.GraniteConfig(
                **grouped,
                embedding_multiplier=3.0,
                residual_multiplier=0.7,
                attention_multiplier=0.2,
                logits_scaling=0.5,
            ),
            p.GraniteForCausalLM,
        ),
        "gemma2": Peer(
            p.Gemma2Config(**wide | {"num_hidden_layers": 4}, sliding_window=8, attn_logit_softcapping=2.0),
            p.Gemma2ForCausalLM,
        ),
        "olmo": Peer(p.OlmoConfig(**grouped), p.OlmoForCausalLM),
        "gpt_neox": Peer(p.GPTNeoXConfig(**SMALL, rope_parameters=HALF), p.GPTNeoXForCausalLM),
        "gpt_neox sequential": Peer(
            p.GPTNeoXConfig(**SMALL, rope_parameters=HALF, use_parallel_residual=False, attention_bias=False),
            p.GPTNeoXForCausalLM,
        ),
        "gptj": Peer(
            p.GPTJConfig(
                **dense,
                n_inner=48,
                rotary_dim=4,
            ),
            p.GPTJForCausalLM,
        ),
        "cohere": Peer(p.CohereConfig(**grouped, logit_scale=2.0), p.CohereForCausalLM),
        "phi": Peer(p.PhiConfig(**grouped, rope_parameters=HALF, qk_layernorm=True), p.PhiForCausalLM),
        "opt": Peer(p.OPTConfig(**dense, ffn_dim=48), p.OPTForCausalLM),
        "opt post": Peer(p.OPTConfig(**dense, ffn_dim=48, do_layer_norm_before=False), p.OPTForCausalLM),
        "bloom": Peer(p.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=3, n_head=4), p.BloomForCausalLM),
        "mistral": Peer(p.MistralConfig(**grouped, sliding_window=8), p.MistralForCausalLM),
        "qwen3": Peer(p.Qwen3Config(**wide), p.Qwen3ForCausalLM),
        "gemma3": Peer(
            p.Gemma3TextConfig(**wide | {"num_hidden_layers": 7}, sliding_window=8, query_pre_attn_scalar=10),
            p.Gemma3ForCausalLM,
        ),
        "olmo2": Peer(p.Olmo2Config(**grouped), p.Olmo2ForCausalLM),
        "mixtral": Peer(p.MixtralConfig(**grouped, num_local_experts=5, sliding_window=8), p.MixtralForCausalLM),
        "qwen3-moe": Peer(
            p.Qwen3MoeConfig(**wide, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=24),
            p.Qwen3MoeForCausalLM,
        ),
        "bert": Peer(p.BertConfig(**SMALL | {"pad_token_id": 0}), p.BertForMaskedLM, "encoder"),
        "roberta": Peer(p.RobertaConfig(**SMALL | {"pad_token_id": 1}), p.RobertaForMaskedLM, "encoder"),
        "xlm-roberta": Peer(
            p.XLMRobertaConfig(**SMALL | {"pad_token_id": 1}, type_vocab_size=1), p.XLMRobertaForMaskedLM, "encoder"
        ),
        "camembert": Peer(p.CamembertConfig(**SMALL | {"pad_token_id": 1}), p.CamembertForMaskedLM, "encoder"),
        "distilbert": Peer(
            p.DistilBertConfig(
                vocab_size=VOCAB, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=40
            ),
            p.DistilBertForMaskedLM,
            "encoder",
        ),
        "electra": Peer(
            p.ElectraConfig(**SMALL | {"pad_token_id": 0}, embedding_size=32), p.ElectraForMaskedLM, "encoder"
        ),
        "modernbert": Peer(
            p.ModernBertConfig(**SMALL, local_attention=8, cls_token_id=None, sep_token_id=None),
            p.ModernBertForMaskedLM,
            "encoder",
        ),
        "t5": Peer(
            p.T5Config(
                vocab_size=VOCAB,
                d_model=32,
                d_kv=16,
                d_ff=48,
                num_layers=2,
                num_decoder_layers=3,
                num_heads=4,
                relative_attention_num_buckets=8,
                relative_attention_max_distance=16,
                feed_forward_proj="gated-gelu",
                tie_word_embeddings=False,
                decoder_start_token_id=0,
            ),
            p.T5ForConditionalGeneration,
            "pair",
        ),
        "mt5": Peer(
            p.MT5Config(
                vocab_size=VOCAB,
                d_model=32,
                d_kv=16,
                d_ff=48,
                num_layers=2,
                num_decoder_layers=3,
                num_heads=4,
                relative_attention_num_buckets=8,
                relative_attention_max_distance=16,
            ),
            p.MT5ForConditionalGeneration,
            "pair",
        ),
        "mbart": Peer(
            p.MBartConfig(**STACKS, max_position_embeddings=40, scale_embedding=True),
            p.MBartForConditionalGeneration,
            "pair",
        ),
        "bart": Peer(p.BartConfig(**STACKS, max_position_embeddings=40), p.BartForConditionalGeneration, "pair"),
        "marian": Peer(
            p.MarianConfig(**STACKS, max_position_embeddings=40, activation_function="swish", scale_embedding=True),
            p.MarianMTModel,
            "pair",
        ),
        "vit": Peer(
            p.ViTConfig(
                hidden_size=32,
                num_hidden_layers=3,
                num_attention_heads=4,
                intermediate_size=48,
                image_size=16,
                patch_size=4,
                num_labels=7,
            ),
            p.ViTForImageClassification,
            "patches",
        ),
        "whisper": Peer(
            p.WhisperConfig(
                **STACKS, num_mel_bins=10, max_source_positions=20, max_target_positions=40, begin_suppress_tokens=None
            ),
            p.WhisperForConditionalGeneration,
            "frames",
        ),
    }


def make(peer: Peer, folder: Path) -> Any:
    """A model of theirs with every parameter from N(0, 0.2^2), norm gains around 1, saved in a folder."""
    torch.manual_seed(0)
    model = peer.model(peer.config).eval()
    is_centered = peer.config.model_type in CENTERED
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad and peer.form != "frames":
                continue  # tables of sinusoids
            parameter.normal_(0, 0.2, generator=generator)
            is_gain = parameter.dim() == 1 and name.endswith("weight")
            if is_gain and not is_centered:
                parameter.add_(1)
        for name, buffer in model.named_buffers():
            if name.endswith("final_logits_bias"):
                buffer.normal_(generator=generator)
    model.save_pretrained(folder)
    return model
