"""npllama: a LLaMA in NumPy, written to be read.

The files of this package are the chapters of a book.  Each has one idea, and
needs only the chapters before it.  A first reading is Part I: nine files, from the
one product to the whole model on one screen.  A chapter that is a folder lists its
sections in its own ``__init__.py``, in reading order.

A LLaMA in a minute: a text comes in as *tokens*, numbers from 0 to V - 1.  The
*embedding* is a table that holds a vector of E numbers for each token; the
model starts from these vectors, one for each *position* of the text.  L
*blocks* follow, one after the other.  The vectors that run through them are
the *residual stream*.  Each block adds to the vector of every position twice:

- *attention* lets a position look at itself and at those before it.  From its
  vector it makes a *query* (what it looks for), a *key* (what it can be found
  by) and a *value* (what it gives to whoever finds it).  It receives an
  average of the values, in which a value weighs more the better its key
  matches the query.  This happens in H *heads* side by side, whose queries,
  keys and values have D numbers each.  Heads may share keys and values: there
  are K sets of them, at most H.
- the *feed-forward* half works on each position alone: it widens the vector to
  F numbers, applies a function that is not linear, and narrows it again.

A *norm* before each half keeps the numbers at one scale.  After the last block
the vector is multiplied with one row for each word of the vocabulary.  This
gives V *logits*, one for each token that could come next: the larger, the
likelier.
One token is chosen, and everything begins again, one position further.

Part I, the network
    1   `ops`          the one product, written as an equation
    2   `config`       the numbers that define a LLaMA
    3   `weights`      what a LLaMA is made of
    4   `norm`         keeping one scale
    5   `rope`         where a token stands
    6   `cache`        what need not be computed again
    7   `attention`    looking back
    8   `feedforward`  thinking on the spot
    9   `model`        the whole on one screen

Part II, text and files
    10  `text`         text to tokens and back; conversations
    11  `files`        one file that is the whole model
    12  `convert`      any public LLaMA, from wherever it lies

Part III, from logits to text
    13  `sampling`     from logits to logits to a token
    14  `decoding`     from distributions to texts, a strategy per file
    15  `generation`   what may be asked for, and one interface to all of it

Part IV, what it costs
    16  `cost`         counted while it runs, predicted in closed form; the roofline

Part V, the golden reference
    17  `golden`       every number on the way, and where another's go wrong
    18  `testing`      what must hold of anyone's sampler
    19  `conformance`  all of it on one package, and a report

Part VI, many at once
    20  `serving`      pages, turns and an engine for many texts

Part VII, long texts and small memories
    21  `contexts`     tiles, texts past any length, weights larger than memory

Part VIII, fewer bits
    22  `compression`  weights, keys and values rounded to a few bits; GPTQ

Letters stand for sizes, and only for sizes:

    B  rows of a batch              H  query heads
    T  new positions                K  key/value heads
    S  positions seen               G  query heads per key/value head, H / K
    N  positions a cache can hold   D  size of a head
    E  width of the residual stream F  width of the feed-forward
    V  words in the vocabulary      L  layers
    P  positions of a page          Q  pages of a pool
    R  texts in a packed row; of an adapter, its rank

What others call the weights:

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
from npllama.files.checkpoint import load, save
from npllama.generation.generate import Generation, generate, pieces, stream
from npllama.generation.options import GenerationConfig
from npllama.generation.task import Helpers
from npllama.model import forward
from npllama.ops import observing, rowwise
from npllama.weights import Model

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
    "rowwise",
    "save",
    "stream",
]
