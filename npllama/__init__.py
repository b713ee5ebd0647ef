"""npllama: a LLaMA in NumPy, written to be read.

The files of this package are the chapters of a book.  Each has one idea, and
needs only the chapters before it.

Part I, the forward pass
    `ops`          the one product, written as an equation
    `config`       the numbers that define a LLaMA
    `tokenizer`    text to tokens and back
    `vocabulary`   the files that a tokenizer is read from
    `chat`         how a conversation becomes one text
    `npz`          arrays in a file, used where they lie
    `weights`      one file that is the whole model
    `norm`         keeping one scale
    `rope`         where a token stands
    `cache`        what need not be computed again
    `attention`    looking back
    `feedforward`  thinking on the spot
    `model`        the whole on one screen

Part II, from logits to text
    `sampling`     from logits to logits to a token
    `limits`       what an option may be
    `options`      what a user may ask for
    `decoding`     from distributions to texts, a strategy per file
    `task`         a prompt made ready
    `strategies`   which strategy is asked for
    `generation`   one face for all of it

Part III, what it costs
    `cost`         counted while it runs, predicted in closed form; and the roofline

Part IV, the golden reference
    `golden`       every number on the way, and where another's go wrong
    `testing`      what must hold of anyone's sampler
    `conformance`  all of it on one package, and a report

Letters stand for sizes, and only for sizes:

    B  rows of a batch              H  query heads
    T  new positions                K  key/value heads
    S  positions seen               G  query heads per key/value head, H / K
    N  positions a cache can hold   D  size of a head
    E  width of the residual stream F  width of the feed-forward
    V  words in the vocabulary      L  layers

What others call the weights of a block:

    npllama    Hugging Face               Meta             llama2.c
    attn_norm  input_layernorm            attention_norm   rms_att_weight
    wq         self_attn.q_proj           attention.wq     wq
    wk         self_attn.k_proj           attention.wk     wk
    wv         self_attn.v_proj           attention.wv     wv
    wo         self_attn.o_proj           attention.wo     wo
    mlp_norm   post_attention_layernorm   ffn_norm         rms_ffn_weight
    w_gate     mlp.gate_proj              feed_forward.w1  w1
    w_up       mlp.up_proj                feed_forward.w3  w3
    w_down     mlp.down_proj              feed_forward.w2  w2
    embed      model.embed_tokens         tok_embeddings   token_embedding_table
    norm       model.norm                 norm             rms_final_weight
    lm_head    lm_head                    output           wcls
"""

from npllama.cache import KVCache, new_cache
from npllama.config import PRESETS, Config, Rope, preset
from npllama.cost.counter import FlopCounter
from npllama.generation import Generation, generate, pieces, stream
from npllama.model import forward
from npllama.ops import observing
from npllama.options import GenerationConfig
from npllama.task import Helpers
from npllama.weights import Model, load, save

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "Config",
    "FlopCounter",
    "Generation",
    "GenerationConfig",
    "Helpers",
    "KVCache",
    "Model",
    "Rope",
    "forward",
    "generate",
    "load",
    "new_cache",
    "observing",
    "pieces",
    "preset",
    "save",
    "stream",
]
