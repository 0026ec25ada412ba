"""llama.cpp's caches, run: ``python benchmarks/kv_llama_cpp.py FOLDER_WITH_LLAMA_PERPLEXITY``.

Writes the quickstart model and the one with hard keys as GGUF in float32 (needs the ``gguf`` package), runs
``llama-perplexity`` over the evaluation text with an f16 cache and with quantized ones, and keeps what its
divergence report says in docs/kv-quality.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import Tokenizer

from infer_compile.evaluate.text import default_evaluation
from kv_models import QUICKSTART, checkpoint_of, write_hard
from kv_quality import CONTEXTS, RESULTS

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
KINDS = ("q8_0", "q4_0")
PLAIN = ("q4_0",)
"""Cache types that are run without rotation too."""
REPORT = {
    "perplexity": r"Mean PPL\(Q\)\s*:\s*([\d.]+)",
    "ratio": r"Mean PPL\(Q\)/PPL\(base\)\s*:\s*([\d.]+)",
    "ratio_error": r"Mean PPL\(Q\)/PPL\(base\)\s*:\s*[\d.]+ ±\s*([\d.]+)",
    "kl": r"Mean\s+KLD:\s*(-?[\d.]+)",
    "kl_error": r"Mean\s+KLD:\s*-?[\d.]+ ±\s*([\d.]+)",
    "kl_p99": r"99\.0%\s+KLD:\s*(-?[\d.]+)",
    "top1_percent": r"Same top p:\s*([\d.]+)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure llama.cpp's cache types.")
    parser.add_argument("binaries", type=Path, help="folder of llama-perplexity")
    parser.add_argument("--tokens", type=int, default=32_768, help="half of them are scored")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    program = arguments.binaries / "llama-perplexity"
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        models = {"quickstart": QUICKSTART, "hard": write_hard(folder / "hard")}
        for name, source in models.items():
            path = write_gguf(source, folder / f"{name}.gguf")
            contexts = CONTEXTS if name == "quickstart" else CONTEXTS[-1:]
            results[name] = {
                str(context): dict(_run(program, path, context, arguments)) for context in contexts
            }
    shown = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    version = re.search(r"version: (\S+) \(build \d+, commit (\w+)\)", shown.stdout + shown.stderr)
    store = json.loads(arguments.json.read_text()) if arguments.json.is_file() else {"schema": 1}
    store["llama.cpp"] = {
        "version": " ".join(version.groups()) if version else "",
        "tokens": arguments.tokens,
        "results": results,
    }
    arguments.json.write_text(json.dumps(store, indent=1, sort_keys=True) + "\n")


def _run(
    program: Path, model: Path, context: int, arguments: argparse.Namespace
) -> Iterator[tuple[str, dict[str, float]]]:
    """Every cache type against the f16 cache."""
    base = model.with_suffix(".base")
    common = [
        *(program, "-m", model, "-f", default_evaluation(), "-c", context, "-b", 2048, "-fa", "on"),
        *("--chunks", arguments.tokens // context, "-t", arguments.threads, "--kl-divergence-base", base),
    ]
    _call(common, rotated=True)
    _same_tokens(base, context)
    for kind in KINDS:
        for rotated in (True, False) if kind in PLAIN else (True,):
            quantized = ("--kl-divergence", "--cache-type-k", kind, "--cache-type-v", kind)
            found = _report(_call([*common, *quantized], rotated))
            yield (kind if rotated else f"{kind}-plain"), found
    base.unlink()


def _same_tokens(base: Path, context: int) -> None:
    """The file of reference probabilities begins with a mark, three numbers and the tokens."""
    with base.open("rb") as file:
        file.seek(8)
        _, _, chunks = np.fromfile(file, np.int32, 3)
        found = np.fromfile(file, np.int32, chunks * context)
    tokenizer = Tokenizer.from_file(str(QUICKSTART / "tokenizer.json"))
    expected = tokenizer.encode(default_evaluation().read_text(encoding="utf-8")).ids[: len(found)]
    if not np.array_equal(found, expected):
        raise SystemExit("llama.cpp cuts the text into other tokens")


def _call(words: list[object], rotated: bool) -> str:
    settings = os.environ | {"LLAMA_ATTN_ROT_DISABLE": "0" if rotated else "1"}
    # Into a file: through a pipe the last lines of its logging thread were lost at its end.
    with tempfile.TemporaryFile("w+") as said:
        done = subprocess.run([str(word) for word in words], stdout=said, stderr=said, env=settings)
        said.seek(0)
        text = said.read()
    if done.returncode:
        raise SystemExit(f"llama-perplexity failed: {text[-2000:]}")
    return text


def _report(text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, pattern in REPORT.items():
        match = re.search(pattern, text)
        if match is None:
            raise SystemExit(f"llama-perplexity reported no {name}: {text[-2000:]}")
        found[name] = float(match.group(1))
    ratio, error = found.pop("ratio"), found.pop("ratio_error")
    return found | {"change_percent": 100 * (ratio - 1), "change_error": 100 * error}


def write_gguf(source: Path, path: Path) -> Path:
    """The model of ``source`` (a Llama, or a Qwen2 with biases: llama.cpp's Llama takes them too)."""
    config = json.loads((source / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_tokenizer(writer, source, config)
    checkpoint = checkpoint_of(source)
    for name in checkpoint.shards:
        writer.add_tensor(_renamed(name), _tensor(checkpoint.read(name), name, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter, source: Path, config: Mapping[str, Any]) -> None:
    """A byte-level BPE that splits text as GPT-2's does."""
    described = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    control = {token["id"] for token in described["added_tokens"]}
    kinds = (gguf.TokenType.NORMAL, gguf.TokenType.CONTROL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([tokenizer.id_to_token(token) for token in range(config["vocab_size"])])
    writer.add_token_types([kinds[token in control] for token in range(config["vocab_size"])])
    writer.add_token_merges([" ".join(pair) for pair in described["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


def _renamed(name: str) -> str:
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in whole:
        return whole[name]
    _, _, layer, rest = name.split(".", 3)
    part, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{NAMES[part]}.{kind}"


def _tensor(numbers: np.ndarray, name: str, config: Mapping[str, Any]) -> np.ndarray:
    """float32; rows of queries and keys are ordered so that rotary pairs are neighbours."""
    found = np.asarray(numbers, np.float32)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for part, count in heads.items():
        if f".{part}." in name:
            pairs = found.reshape(count, 2, len(found) // count // 2, -1)
            found = pairs.swapaxes(1, 2).reshape(found.shape)
    return np.ascontiguousarray(found)


if __name__ == "__main__":
    main()
