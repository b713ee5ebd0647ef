"""The models and sizes at which LLM-Viewer's figures are compared with ours.

Needs nothing but the names of presets.
"""

MODELS = ("llama-2-7b", "llama-2-13b", "llama-2-70b", "llama-3-8b")
SIZES = ((1, 2048), (3, 130), (64, 4096))  # rows, positions of each
BITS = ((16, 16, 16), (4, 16, 8), (8, 8, 8))  # weights, activations, cache
CARD = ("nvidia_A100_80G", "a100-80g")  # by its name there and here
FIELDS = (
    "OPs",
    "load_weight",
    "load_act",
    "store_act",
    "load_kv_cache",
    "store_kv_cache",
    "inference_time",
)
FILE = "llm_viewer.json"
