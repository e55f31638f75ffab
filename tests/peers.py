"""The names of GPT-2's tensors in transformers, mapped from ours: for parity tests and benchmarks."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from isoform.model.config import ModelConfig
from isoform.model.transformer import Transformer

BLOCK = {
    "mixer_norm.before": "ln_1",
    "mixer.query_key_value": "attn.c_attn",
    "mixer.output": "attn.c_proj",
    "feedforward_norm.before": "ln_2",
    "feedforward.up": "mlp.c_fc",
    "feedforward.down": "mlp.c_proj",
}


def gpt2_name(name: str) -> str:
    """Our name of a parameter to theirs."""
    fixed = {"stem.embedding.weight": "wte.weight", "decoder.position.table": "wpe.weight"}
    if name in fixed:
        return f"transformer.{fixed[name]}"
    if name.startswith("decoder.final_norm."):
        return name.replace("decoder.final_norm", "transformer.ln_f")
    _, _, layer, rest = name.split(".", 3)
    module, leaf = rest.rsplit(".", 1)
    return f"transformer.h.{layer}.{BLOCK[module]}.{leaf}"


def gpt2_twin(model: Transformer) -> GPT2LMHeadModel:
    """A transformers GPT-2 with the weights of ours."""
    config: ModelConfig = model.config
    assert config.decoder is not None
    block = config.decoder.blocks[0]
    twin = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.context_length,
            n_embd=config.model_dim,
            n_layer=config.decoder.num_layers,
            n_head=block.attention.num_heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
        )
    ).eval()
    theirs = twin.state_dict()
    with torch.no_grad():
        for name, ours in model.named_parameters():
            target = theirs[gpt2_name(name)]
            if "query_key_value" in name:  # theirs are concatenated
                ours = ours.unflatten(0, (block.attention.num_heads, 3, -1)).transpose(0, 1).flatten(0, 2)
            is_matrix = ours.dim() == 2 and ".blocks." in name  # their matrices are (in, out)
            target.copy_(ours.T if is_matrix else ours)
    return twin
