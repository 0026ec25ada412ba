"""Step 5: continue on a mix of text (3/8), recall (1/8) and chat (1/2).

Usage: tune.py ROOT SOURCE_DIR MINUTES OUT_DIR LEARNING_RATE [CONTEXT]     (CONTEXT: 768)
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from train import loss_of, tokens, windows
from transformers import LlamaForCausalLM

STEP_TOKENS = 6144


def main(root: Path, source: str, minutes: float, out: str, rate: float, context: int = 768) -> None:
    torch.manual_seed(1)
    torch.set_num_threads(2)
    model = LlamaForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="sdpa")
    plain, recall, chat, held = (tokens(root, name) for name in ("plain", "recall", "chat", "held"))
    rng = np.random.default_rng(7)
    rows = STEP_TOKENS // context + (1 if context > 768 else 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.05)

    def batch() -> torch.Tensor:
        parts = []
        for row in range(rows):
            text = plain if row < rows * 3 / 8 else recall if row < rows / 2 else chat
            parts.append(windows(text, [int(rng.integers(0, len(text) - context - 1))], context))
        return torch.cat(parts)

    began, step = time.time(), 0
    while (done := (time.time() - began) / (minutes * 60)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 30) * (1 - done * 0.97)
        loss = loss_of(model, batch())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 25 == 0:
            print(step, round(loss.item(), 3), flush=True)
    model.eval()
    with torch.no_grad():
        on_held = [loss_of(model, windows(held, [k * context], context)).item() for k in range(40)]
        tail = len(chat)
        on_chat = [
            loss_of(model, windows(chat, [tail - (k + 2) * context], context)).item() for k in range(10)
        ]
    print("held", np.mean(on_held), "chat", np.mean(on_chat))
    model.to(torch.bfloat16).save_pretrained(out)


if __name__ == "__main__":
    _, root, source, minutes, out, rate, *context = sys.argv
    main(Path(root), source, float(minutes), out, float(rate), *map(int, context))
