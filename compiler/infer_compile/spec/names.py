"""The language's names of formats, levels, engines and methods that at least one engine serves.

Which engine serves which, and on what, is in catalog/engines.yaml; a test holds these lists to that table.
"""

from __future__ import annotations

from ..runtime.formats.weights import GROUPED as GROUPED
from ..runtime.formats.weights import GROUPS as GROUPS

WEIGHTS = (
    "bf16",
    "int8",
    "int4-rtn",
    "fp8",
    "int4-awq",
    "int4-gptq",
    "nvfp4",
    "mxfp4",
    "q8_0",
    "q6_k",
    "q5_k_m",
    "q4_k_m",
    "q4_0",
    "q3_k_m",
    "q2_k",
    "iq4_xs",
)
KV = ("bf16", "fp8", "int8", "k8v4", "tq4", "tq3", "tq2", "ct4", "ct3", "ct2")
ENGINES = ("native", "tensorrt-llm", "vllm", "sglang", "llama.cpp")
SPECULATION = ("none", "draft", "ngram", "eagle3", "mtp", "medusa", "lookahead")
