"""Step 4: train the target or the draft from scratch for a number of minutes of this machine.

Usage: train.py ROOT target|draft MINUTES OUT_DIR
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

CONTEXT = 768
BATCH = 8
RECALL_ROWS = 3
SHAPES = {
    "target": {
        "hidden_size": 320,
        "intermediate_size": 896,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 128,
    },
    "draft": {
        "hidden_size": 160,
        "intermediate_size": 448,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64,
    },
}
LEARNING_RATE = {"target": 3e-3, "draft": 4e-3}


def tokens(root: Path, name: str) -> np.ndarray:
    return np.fromfile(root / f"{name}.bin", dtype="<u2")


def windows(source: np.ndarray, starts: list[int], context: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([source[s : s + context + 1].astype(np.int64) for s in starts]))


def loss_of(model: LlamaForCausalLM, batch: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(batch[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].reshape(-1))


def held_loss(model: LlamaForCausalLM, held: np.ndarray) -> float:
    model.eval()
    with torch.no_grad():
        losses = [
            loss_of(model, windows(held, [k * 4 * CONTEXT + j * CONTEXT for j in range(4)], CONTEXT)).item()
            for k in range(12)
        ]
    model.train()
    return float(np.mean(losses))


def main(root: Path, size: str, minutes: float, out: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(2)
    model = LlamaForCausalLM(
        LlamaConfig(
            **SHAPES[size],
            vocab_size=4096,
            max_position_embeddings=8192,
            rope_theta=50000.0,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
            attn_implementation="sdpa",
        )
    )
    plain, recall, held = (tokens(root, name) for name in ("plain", "recall", "held"))
    rng = np.random.default_rng(0)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE[size], betas=(0.9, 0.95))

    def batch() -> torch.Tensor:
        rows = []
        for row in range(BATCH):
            source = recall if row < RECALL_ROWS else plain
            rows.append(windows(source, [int(rng.integers(0, len(source) - CONTEXT - 1))], CONTEXT))
        return torch.cat(rows)

    began, step = time.time(), 0
    while (done := (time.time() - began) / (minutes * 60)) < 1:
        cosine = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE[size] * min(1, (step + 1) / 150) * cosine
        loss = loss_of(model, batch())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 25 == 0:
            rate = int(step * BATCH * CONTEXT / (time.time() - began))
            print(step, round(loss.item(), 3), "tok/s", rate, flush=True)
        if step % 400 == 0:
            print("held", held_loss(model, held), flush=True)
    print("held", held_loss(model, held), "after", step, "steps,", step * BATCH * CONTEXT, "tokens")
    model.to(torch.bfloat16).save_pretrained(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), Path(sys.argv[4]))
