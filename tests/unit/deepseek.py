"""Small random models of DeepSeek's layers, as transformers makes and saves them, and specs for them."""

from __future__ import annotations

from pathlib import Path

import gpu_bundle
import torch
import transformers

SHAPE: dict[str, object] = {
    "vocab_size": 260,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "moe_intermediate_size": 32,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "max_position_embeddings": 512,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 32,
    "mscale": 0.9,
    "mscale_all_dim": 0.7,
}
FAMILIES: dict[str, dict[str, object]] = {
    "V2": {"q_lora_rank": None, "n_shared_experts": 2, "routed_scaling_factor": 1.5, "rope_parameters": YARN},
    "V3": {"q_lora_rank": 32, "n_shared_experts": 1, "n_group": 3, "topk_group": 2, "rope_parameters": YARN},
}


def model(family: str, **changes: object) -> transformers.PreTrainedModel:
    """In float32, of numbers that bf16 holds, but for the bias of choices."""
    config = getattr(transformers, f"Deepseek{family}Config")(**(SHAPE | FAMILIES[family] | changes))
    torch.manual_seed(0)
    made = getattr(transformers, f"Deepseek{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for tensor in made.parameters():
            tensor.uniform_(0.5, 1.5) if tensor.dim() == 1 else tensor.normal_(0.0, 0.12)
            tensor.copy_(tensor.bfloat16())
        for name, tensor in made.named_buffers():
            if name.endswith("e_score_correction_bias"):
                tensor.normal_(0.0, 0.2)
    return made


def write(
    folder: Path, made: transformers.PreTrainedModel, target: str, pin: str, context: str = "64"
) -> Path:
    """The path of a spec for ``made``, with a tokenizer."""
    spec = gpu_bundle.write(folder, target)
    (folder / "model" / "model.safetensors").unlink()
    made.save_pretrained(folder / "model")
    text = spec.read_text().replace("weights: {format: int4-rtn, group: 64}, kv: tq3", pin)
    spec.write_text(text.replace("context_tokens: 64", f"context_tokens: {context}"))
    return spec
