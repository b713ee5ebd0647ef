"""Every file that public LLaMAs come with: added tokens, ends, gaps, splits."""

import json
import struct
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tiktoken
from hypothesis import given
from hypothesis import strategies as st
from nasty import nasty_texts
from needs import needs

import npllama
from npllama.text.byte_level import byte_letters
from npllama.text.merges import check_merges, cut, merge_pairs, ranks_of
from npllama.text.splits import (
    GPT2,
    LLAMA3,
    PATTERNS,
    QWEN2,
    SINGLE_DIGITS,
    runs,
    split_of,
)
from npllama.text.tokenizer import SPACE, Mark, Token
from npllama.text.vocabulary import load_tokenizer

FOLDER = Path(__file__).parent / "goldens" / "tokenizers"
MODEL = (FOLDER / "sentencepiece.model").read_bytes()
RANKS = (FOLDER / "ranks.model").read_bytes()
WHOLE = json.loads((FOLDER / "byte_level.json").read_bytes())
SPLITS = json.loads((FOLDER.parent / "splits.json").read_text("utf-8"))
ENGINE = sentencepiece.SentencePieceProcessor(model_proto=MODEL)
SIZE = ENGINE.vocab_size()


def files(model=None, whole=None, **others):
    """The files of a checkpoint; `others` without their ``.json``."""
    made = {f"{name}.json": json.dumps(data).encode() for name, data in others.items()}
    if model is not None:
        made["tokenizer.model"] = model
    if whole is not None:
        made["tokenizer.json"] = json.dumps(whole).encode()
    return made


def pieces_json(**changes):
    """The SentencePiece model of the goldens as Hugging Face writes it."""
    vocab = {ENGINE.id_to_piece(i): i for i in range(SIZE)}
    scores = {name: ENGINE.get_score(i) for name, i in vocab.items()}
    normal = [n for n, i in vocab.items() if not (ENGINE.is_byte(i) or i < 3)]
    known = set(normal)
    merges = [
        (-scores[name], i, [name[:i], name[i:]])
        for name in normal
        for i in range(1, len(name))
        if name[:i] in known and name[i:] in known
    ]
    special = {"special": True, "normalized": False}
    added = [special | {"id": i, "content": ENGINE.id_to_piece(i)} for i in range(3)]
    prepend = {"type": "Prepend", "prepend": SPACE}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    model = {"type": "BPE", "byte_fallback": True, "unk_token": "<unk>"}
    model |= {"vocab": vocab, "merges": [pair for *_, pair in sorted(merges)]}
    whole = {"added_tokens": added, "model": model, "pre_tokenizer": None}
    whole["normalizer"] = {"type": "Sequence", "normalizers": [prepend, replace]}
    return whole | changes


def metaspace(scheme, split=False):
    step = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme}
    return {"normalizer": None, "pre_tokenizer": step | {"split": split}}


def spelled(tokenizer, text):
    return [tokenizer.piece(i) for i in tokenizer.encode(text, bos=False, eos=False)]


# ---- ids without a token ------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_sample": True},
        {"num_beams": 2},
        {"stop_strings": ("never",)},
        {"logprobs": 1},
        {"echo": True},
        {"penalty_alpha": 0.6, "top_k": 2},
        {"prompt_lookup_num_tokens": 2},
        {"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 1.0},
        {"prompt_logprobs": True},
    ],
    ids=str,
)
def test_generation_goes_on_after_an_id_without_a_token(options):
    """The rows that pad an embedding can be chosen; they add no text."""
    model = npllama.load("stories-draft")
    V = model.config.vocab_size
    # Only ids beyond the tokenizer may come: as if those rows were the likeliest.
    short = model.tokenizer.vocabulary[: V - 8]
    tokenizer = replace(model.tokenizer, vocabulary=short)
    model = model._replace(tokenizer=tokenizer)
    allowed = tuple(range(V - 8, V))
    config = npllama.GenerationConfig(
        max_new_tokens=4, allowed_token_ids=allowed, eos_token_id=(), **options
    )
    text = npllama.generate(model, "Once", config, np.random.default_rng(0))
    assert len(text.tokens) == 4 and set(text.tokens) <= set(allowed)
    assert text.text == ("Once" if options.get("echo") else "")
    if not {"logprobs", "prompt_logprobs", "echo", "num_beams"} & set(options):
        streamed = npllama.stream(model, "Once", config, np.random.default_rng(0))
        assert "".join(streamed) == ""


def test_token_of_a_text_that_has_no_row_in_the_embedding_is_refused():
    model = npllama.load("stories-draft")
    V = model.config.vocab_size
    tokenizer = replace(
        model.tokenizer,
        vocabulary=[*model.tokenizer.vocabulary, Token("<pad>", b"", True)],
        marks=model.tokenizer.marks | {"<pad>": Mark(V)},
    )
    model = model._replace(tokenizer=tokenizer)
    config = npllama.GenerationConfig(allowed_special="all", max_new_tokens=2)
    assert npllama.generate(model, "Once", config).tokens
    with pytest.raises(
        ValueError, match=f"'<pad>' is token {V}, outside the embedding"
    ):
        npllama.generate(model, "Once<pad>", config)


# ---- added tokens -----------------------------------------------------------------

IM = [
    {"id": SIZE, "content": "<|im_start|>"},
    {"id": SIZE + 1, "content": "<|im_end|>"},
]
DECODER = {str(token["id"]): token for token in IM}
LISTED = {token["content"]: token["id"] for token in IM}
NAMES = {"additional_special_tokens": list(LISTED), "eos_token": "<|im_end|>"}
PLACES = {
    "tokenizer_config": files(
        MODEL,
        tokenizer_config={"added_tokens_decoder": DECODER, "eos_token": "<|im_end|>"},
    ),
    "added_tokens": files(MODEL, added_tokens=LISTED, special_tokens_map=NAMES),
    "added_tokens and config": files(
        MODEL, added_tokens=LISTED, tokenizer_config=NAMES
    ),
    "tokenizer.json beside": files(
        MODEL, {"added_tokens": IM}, special_tokens_map={"eos_token": "<|im_end|>"}
    ),
    "tokenizer.json of pieces": files(
        whole=pieces_json(added_tokens=[*pieces_json()["added_tokens"], *IM]),
        tokenizer_config={"eos_token": {"content": "<|im_end|>"}},
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_added_tokens_are_read_wherever_they_are_kept(place):
    tokenizer = load_tokenizer(PLACES[place])
    assert tokenizer.vocab_size == SIZE + 2 and tokenizer.eos_id == SIZE + 1
    assert [tokenizer.special[token["content"]] for token in IM] == [SIZE, SIZE + 1]
    assert tokenizer.decode([SIZE, SIZE + 1]) == ""
    text = "<|im_start|>user"
    assert SIZE not in tokenizer.encode(text)
    assert tokenizer.encode(text, bos=False, allowed_special="all")[0] == SIZE


def test_ranks_take_added_tokens_too():
    size = RANKS.count(b"\n") + 256
    added = {
        str(size): {"content": "<pad>"},
        # A fine-tune gave a reserved token a name.
        str(size - 1): {"content": "<|im_end|>"},
        str(size + 1): {"content": "<think>", "special": False},
    }
    config = {"added_tokens_decoder": added, "eos_token": "<|im_end|>"}
    tokenizer = load_tokenizer(files(RANKS, tokenizer_config=config))
    assert tokenizer.vocab_size == size + 2 and tokenizer.eos_id == size - 1
    assert tokenizer.special["<pad>"] == size and "<think>" not in tokenizer.special
    assert size + 1 in tokenizer.encode("a<think>b")
    assert tokenizer.decode(tokenizer.encode("a<think>b")) == "a<think>b"


@pytest.mark.parametrize("legacy", [True, False])
def test_word_that_is_listed_only_by_name_is_a_word(legacy):
    given = files(
        MODEL, added_tokens={"new": SIZE}, tokenizer_config={"legacy": legacy}
    )
    tokenizer = load_tokenizer(given)
    assert tokenizer.encode("new")[1:] == [SIZE] and "new" not in tokenizer.special
    # In the old way, what follows a word is a text of its own, with its own space.
    back = tokenizer.decode(tokenizer.encode("a new!"))
    assert back == ("a new !" if legacy else "a new!")


THE = ENGINE.piece_to_id(SPACE + "the")
CALLED = {"content": SPACE + "the", "special": True}
# Where a file may say that a piece is special, beside a model or pieces in JSON.
SAID = {
    "decoder": {"tokenizer_config": {"added_tokens_decoder": {str(THE): CALLED}}},
    "decoder, its name elsewhere, too": {
        "tokenizer_config": {"added_tokens_decoder": {str(THE): CALLED}},
        "added_tokens": {CALLED["content"]: THE},
    },
    "map": {"special_tokens_map": {"additional_special_tokens": [CALLED["content"]]}},
    "config": {"tokenizer_config": {"additional_special_tokens": [CALLED["content"]]}},
    "as an object": {"special_tokens_map": {"pad_token": CALLED}},
    "the end": {"tokenizer_config": {"eos_token": CALLED["content"]}},
}


@pytest.mark.parametrize("said", SAID)
@pytest.mark.parametrize("model", [MODEL, None], ids=["model", "json"])
def test_piece_that_a_file_calls_special_is_special(model, said):
    """Yi's ``<|im_start|>`` is a piece of its SentencePiece model."""
    the, whole = THE, pieces_json() if model is None else None
    tokenizer = load_tokenizer(files(model, whole, **SAID[said]))
    assert tokenizer.decode([the]) == "" and tokenizer.special[SPACE + "the"] == the
    assert the not in tokenizer.encode("the the")
    assert tokenizer.decode(tokenizer.encode("the the")) == "the the"


def test_gap_and_repeated_name_are_allowed():
    added = {str(SIZE + 5): {"content": "<a>"}, str(SIZE + 7): {"content": "</s>"}}
    tokenizer = load_tokenizer(
        files(MODEL, tokenizer_config={"added_tokens_decoder": added})
    )
    assert tokenizer.vocab_size == SIZE + 8 and tokenizer.eos_id == ENGINE.eos_id()
    assert tokenizer.decode([SIZE, SIZE + 6, SIZE + 7]) == ""
    whole = json.loads(json.dumps(WHOLE))
    whole["added_tokens"][1]["content"] = "<|begin_of_text|>"
    assert load_tokenizer(files(whole=whole)).bos_id == whole["added_tokens"][0]["id"]


@pytest.mark.parametrize(
    "added, size",
    [
        ({SIZE + 9: "<a>"}, SIZE + 10),  # a gap before the only one
        ({SIZE: "<a>", SIZE + 4: "<b>", SIZE + 8: "<c>"}, SIZE + 9),  # two gaps
        ({SIZE + 3: "<b>", SIZE: "<a>"}, SIZE + 4),  # in no order
        ({SIZE: "<unk>", SIZE + 1: "<s>", SIZE + 2: "</s>"}, SIZE + 3),  # all repeated
        ({SIZE: "the", SIZE + 1: "</s>"}, SIZE + 2),  # a repeated piece
        (
            {0: "<unk>", 1: "<s>", 2: "</s>", SIZE + 1: "<a>"},
            SIZE + 2,
        ),  # the model's own
    ],
)
@pytest.mark.parametrize("place", ["decoder", "added_tokens"])
def test_ids_of_added_tokens_are_those_of_the_file(added, size, place):
    decoder = {str(i): {"content": n, "special": False} for i, n in added.items()}
    config = {"added_tokens_decoder": decoder}
    given = {"tokenizer_config": config}
    if place == "added_tokens":
        given = {"added_tokens": {name: i for i, name in added.items()}}
    tokenizer = load_tokenizer(files(MODEL, **given))
    assert tokenizer.vocab_size == size
    assert (tokenizer.bos_id, tokenizer.eos_id) == (ENGINE.bos_id(), ENGINE.eos_id())
    unused = set(range(SIZE, size)) - set(added)
    assert tokenizer.decode(sorted(unused)) == ""
    for i, name in added.items():
        known = name in ("<unk>", "<s>", "</s>", "the")
        assert known or tokenizer.encode(name)[-1] == i
    assert tokenizer.decode(tokenizer.encode("a fox")) == "a fox"
    assert tokenizer.encode("</s>", bos=False) == ENGINE.encode("</s>") or SIZE in added


def test_name_outside_the_letters_of_bytes_is_its_own_text():
    whole = json.loads(json.dumps(WHOLE))
    whole["model"]["vocab"]["\u20ac"] = 768
    assert load_tokenizer(files(whole=whole)).token_bytes(768) == "\u20ac".encode()


def test_white_space_goes_with_a_token_that_takes_it():
    def parts(text, **flags):
        added = {str(SIZE): {"content": "<x>", "special": False} | flags}
        config = {"added_tokens_decoder": added}
        tokenizer = load_tokenizer(files(MODEL, tokenizer_config=config))
        tokens = tokenizer.encode(text, bos=False)
        at = tokens.index(SIZE) if SIZE in tokens else None
        return (
            at
            if at is None
            else (ENGINE.decode(tokens[:at]), ENGINE.decode(tokens[at + 1 :]))
        )

    assert parts("a \t<x> \nb") == ("a \t", " \nb")
    assert parts("a \t<x> \nb", lstrip=True) == ("a", " \nb")
    assert parts("a \t<x> \nb", rstrip=True) == ("a \t", "b")
    assert parts("a<x> b", single_word=True) is None
    assert parts("a-<x> b", single_word=True) == ("a-", " b")


def test_white_space_that_a_token_took_is_no_other_token():
    """As in Hugging Face's library, if the other takes the space before it, too."""
    added = {
        str(SIZE): {"content": "<x>", "rstrip": True},
        str(SIZE + 1): {"content": "\n\n", "lstrip": True, "special": False},
    }
    config = {"added_tokens_decoder": added}
    tokenizer = load_tokenizer(files(MODEL, tokenizer_config=config))

    def found(text):
        tokens = tokenizer.encode(text, bos=False, allowed_special="all")
        return [i for i in tokens if i >= SIZE]

    assert found("\n\n<x>\n\n\n\na\n\n") == [SIZE + 1, SIZE, SIZE + 1]
    assert found("\n\n\n\n") == [SIZE + 1, SIZE + 1]


def test_piece_that_is_listed_as_a_word_keeps_its_space():
    piece = next(i for i in range(SIZE) if ENGINE.id_to_piece(i) == f"{SPACE}the")
    word = {"content": f"{SPACE}the", "special": False}
    config = {"added_tokens_decoder": {str(piece): word}}
    tokenizer = load_tokenizer(files(MODEL, tokenizer_config=config))
    assert tokenizer.decode([piece, piece]) == "the the"


@pytest.mark.parametrize("ids", [{"a": "b"}, {"a": []}, {"\ud800": 900}, {"a": 2**40}])
def test_list_of_added_tokens_that_is_broken_is_named(ids):
    with pytest.raises(ValueError, match=r"^added_tokens\.json: "):
        load_tokenizer(files(MODEL, added_tokens=ids))


@pytest.mark.parametrize("other", ["\u0124", "new"])
def test_two_tokens_with_one_id_are_named(other):
    whole = json.loads(json.dumps(WHOLE))
    whole["model"]["vocab"][other] = whole["model"]["vocab"]["A"]
    with pytest.raises(ValueError, match="tokenizer.json: model.vocab gives .* one id"):
        load_tokenizer(files(whole=whole))


@pytest.mark.parametrize("form", [{}, metaspace("first")], ids=["prepend", "first"])
def test_added_token_that_takes_the_id_of_a_piece_is_named(form):
    whole = pieces_json(**form)
    whole["added_tokens"].append({"id": 300, "content": "new"})
    with pytest.raises(ValueError, match="added token 'new' has the id 300 of"):
        load_tokenizer(files(whole=whole))


DECODERS = [
    ({"type": "CTC"}, "a decoder of CTC is not known"),
    ({"type": "Metaspace"}, "the decoder and byte_fallback contradict"),
    ({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "WordPiece"}]},
     "a decoder of Fuse, WordPiece is not known"),
]  # fmt: skip


@pytest.mark.parametrize("decoder, words", DECODERS)
def test_decoder_that_would_join_otherwise_is_named(decoder, words, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=words):
        load_tokenizer(files(whole=WHOLE | {"decoder": decoder}))


DECODER = [
    ({"7x": {"content": "a"}}, "an added token has the id '7x'"),
    ({" 7": {"content": "a"}}, "an added token has the id ' 7'"),
    ({"9" * 30: {"content": "a"}}, "an added token has the id '9999"),
    ({"900": {}}, "there is no 'content'"),
    ({"900": []}, "a value is of another kind"),
    ([], None),
    (["a"], "a value is of another kind"),
]


@pytest.mark.parametrize("decoder, words", DECODER)
def test_broken_settings_are_named_in_words(decoder, words):
    given = files(MODEL, tokenizer_config={"added_tokens_decoder": decoder})
    if words is None:
        assert load_tokenizer(given).vocab_size == SIZE
        return
    with pytest.raises(ValueError) as caught:
        load_tokenizer(given)
    told = str(caught.value)
    assert told.startswith("tokenizer_config.json: ") and words in told
    assert "Error" not in told


@pytest.mark.parametrize(
    "merge", ["a b c", "ab", ["a"], ["a", 5], [["a"], "b"], 7, None]
)
def test_merge_that_is_no_pair_is_named(merge, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    whole = json.loads(json.dumps(WHOLE))
    whole["model"]["merges"][3] = merge
    with pytest.raises(ValueError) as caught:
        load_tokenizer(files(whole=whole))
    assert f"model.merges has {merge!r}, which is not a pair" in str(caught.value)


def test_letters_of_bytes_are_listed_once_for_a_vocabulary(monkeypatch):
    """Listed for every token, they made a large vocabulary take a minute."""
    needs("tokenizers")
    from npllama.text import borrowed

    calls = []
    monkeypatch.setattr(
        borrowed, "byte_letters", lambda: calls.append(1) or byte_letters()
    )
    whole = json.loads(json.dumps(WHOLE))
    whole["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False}
    whole["pre_tokenizer"] |= {"trim_offsets": True, "use_regex": True}
    whole["normalizer"] = {"type": "Lowercase"}
    tokenizer = load_tokenizer(files(whole=whole))
    assert tokenizer.kind == "tokenizers" and len(calls) == 1
    assert spelled(tokenizer, "A") == ["a"]


# ---- what is put around a text --------------------------------------------------------


def template(before, after):
    """A post-processor of Hugging Face."""

    def piece(i):
        return {"SpecialToken": {"id": str(i), "type_id": 0}}

    text = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [*map(piece, before), text, *map(piece, after)],
        "special_tokens": {str(i): {"ids": [i]} for i in (*before, *after)},
    }


SEQUENCE = {
    "type": "Sequence",
    "processors": [{"type": "ByteLevel"}, template([1], [2])],
}
AROUND = [
    ({}, None, [1], []),
    ({"add_bos_token": True}, None, [1], []),
    ({"add_bos_token": False}, None, [], []),
    ({"add_eos_token": True}, None, [1], [2]),
    ({"add_bos_token": False, "add_eos_token": True}, None, [], [2]),
    ({"bos_token": None}, None, [], []),
    ({"bos_token": None, "add_bos_token": True}, None, [], []),
    ({"bos_token": "</s>"}, None, [2], []),
    ({}, template([1], []), [1], []),
    ({}, template([], []), [], []),
    ({}, template([1, 1], [2]), [1, 1], [2]),
    ({}, SEQUENCE, [1], [2]),
    ({}, {"type": "ByteLevel"}, [], []),
    (
        {},
        {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1]},
        [1],
        [2],
    ),
    ({"add_bos_token": False}, template([1], []), [], []),
    ({"add_bos_token": True}, template([], []), [1], []),
]


@pytest.mark.parametrize("config, processor, front, back", AROUND, ids=str)
def test_text_begins_and_ends_as_the_files_say(config, processor, front, back):
    whole = None if processor is None else {"post_processor": processor}
    tokenizer = load_tokenizer(files(MODEL, whole, tokenizer_config=config))
    inner = ENGINE.encode("Hello")
    assert tokenizer.encode("Hello") == [*front, *inner, *back]
    assert tokenizer.encode("Hello", bos=False, eos=False) == inner
    forced = tokenizer.encode("Hello", bos=True, eos=True)
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    assert forced == [*bos, *inner, tokenizer.eos_id]
    if processor is not None:
        both = load_tokenizer(
            files(whole=pieces_json(post_processor=processor), tokenizer_config=config)
        )
        assert both.encode("Hello") == [*front, *inner, *back]


def test_json_without_a_post_processor_puts_nothing_around_a_text():
    tokenizer = load_tokenizer(files(whole=WHOLE))
    assert (tokenizer.front, tokenizer.back) == ((), ())
    assert tokenizer.encode("a", bos=True)[0] == tokenizer.bos_id


# ---- the space in front -----------------------------------------------------------------


@pytest.mark.parametrize(
    "whole", [None, pieces_json(), pieces_json(**metaspace("first"))]
)
def test_space_in_front_can_be_switched_off(whole):
    given = files(
        None if whole else MODEL, whole, tokenizer_config={"add_prefix_space": False}
    )
    tokenizer = load_tokenizer(given)
    assert spelled(tokenizer, "the fox")[0] != SPACE + "the"
    for text in ("the fox", " the", ""):
        tokens = tokenizer.encode(text, bos=False)
        assert tokenizer.decode(tokens) == text
        assert b"".join(map(tokenizer.token_bytes, tokens)) == text.encode()


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_space_stands_before_the_parts_that_a_file_names(scheme):
    added = [
        *pieces_json()["added_tokens"],
        {"id": SIZE, "content": "<w>", "special": False},
    ]
    whole = pieces_json(added_tokens=added, **metaspace(scheme))
    tokenizer = load_tokenizer(files(whole=whole))
    first, second = ("the", "the") if scheme == "never" else (SPACE + "the", "the")
    second = SPACE + "the" if scheme == "always" else second
    found = spelled(tokenizer, "the<w>the")
    at = found.index("<w>")
    assert "".join(found[:at]) == first and "".join(found[at + 1 :]) == second
    assert tokenizer.decode(tokenizer.encode("the<w>")) == "the<w>"


@pytest.mark.parametrize("legacy", [True, False])
def test_text_after_a_special_token_has_a_space_in_the_old_way_only(legacy):
    tokenizer = load_tokenizer(files(MODEL, tokenizer_config={"legacy": legacy}))
    tokens = tokenizer.encode("<s>the", bos=False, allowed_special="all")
    piece = "".join(map(tokenizer.piece, tokens[1:]))
    assert piece == (SPACE + "the" if legacy else "the")


# ---- pieces in JSON ------------------------------------------------------------------------


FORMS = {
    "prepend": {},
    "always": metaspace("always"),
    "first": metaspace("first"),
    "old": {"normalizer": None, "pre_tokenizer": {"type": "Metaspace", "split": False}},
}


@pytest.mark.parametrize("form", FORMS)
def test_model_rebuilt_from_json_is_the_model(form):
    tokenizer = load_tokenizer(files(whole=pieces_json(**FORMS[form])))
    for text in nasty_texts(400, 5):
        tokens = tokenizer.encode(text, bos=False)
        assert tokens == ENGINE.encode(text)
        assert tokenizer.decode(tokens) == text.replace(SPACE, " ")


def test_word_that_is_normalised_is_found_after_a_space_only():
    """Hugging Face puts the space in front of the word it looks for, too."""
    word = {"id": SIZE, "content": "newword", "special": False, "normalized": True}
    whole = pieces_json(added_tokens=[*pieces_json()["added_tokens"], word])
    tokenizer = load_tokenizer(files(whole=whole))
    assert SIZE in tokenizer.encode("newword") and SIZE in tokenizer.encode("a newword")
    assert SIZE not in tokenizer.encode("anewword")


def test_words_are_apart_where_a_file_splits_them():
    together = load_tokenizer(files(whole=pieces_json(**metaspace("always"))))
    apart = load_tokenizer(files(whole=pieces_json(**metaspace("always", split=True))))
    text = "a    b"
    assert "".join(spelled(apart, text)) == "".join(spelled(together, text))
    assert all(not piece.startswith(SPACE * 2) for piece in spelled(apart, text))
    assert any(piece.startswith(SPACE * 2) for piece in spelled(together, text))


# ---- merges ----------------------------------------------------------------------------------


def test_word_is_cut_by_making_the_merges_in_order():
    pairs = merge_pairs(["o w", "l ow", "e r", ["low", "er"]])
    ranks = ranks_of(pairs)
    check_merges(pairs, ranks)
    assert cut("lower", ranks, len(pairs)) == ["lower"]
    assert cut("slowest", ranks, len(pairs)) == ["s", "low", "e", "s", "t"]
    assert cut("lower", ranks, 3) == ["low", "er"] and cut("", ranks, 4) == []


@pytest.mark.parametrize(
    "pairs",
    [
        ["a b", "b c", "a bc"],  # "a b" comes first, so there is no "bc" to add
        ["a b", "b c", "ab c", "a bc", "c d", "b cd", "a bcd"],
    ],
)
def test_merges_that_ranks_would_make_in_another_way_are_refused(pairs):
    pairs = merge_pairs(pairs)
    with pytest.raises(ValueError, match=r"model.merges is not in the order"):
        check_merges(pairs, ranks_of(pairs))


@given(st.data())
def test_merging_by_rank_is_merging_by_pairs_where_the_check_says_so(data):
    """The check against a merger that keeps the pairs."""
    tokens, pairs = list("ab"), []
    for _ in range(data.draw(st.integers(1, 6))):
        pair = tuple(data.draw(st.tuples(*[st.sampled_from(tokens)] * 2)))
        pairs.append(pair)
        tokens.append("".join(pair))
    ranks = ranks_of(pairs)
    try:
        check_merges(pairs, ranks)
    except ValueError:
        return
    word = data.draw(st.text("abc", max_size=12))
    assert cut(word, ranks, len(pairs)) == by_pairs(word, pairs)


def by_pairs(word, pairs):
    """Make the first merge of the list that there is, from the left, again and again."""
    parts = list(word)
    while True:
        found = [p for p in pairs if p in zip(parts, parts[1:])]
        if not found:
            return parts
        at = list(zip(parts, parts[1:])).index(found[0])
        parts[at : at + 2] = ["".join(found[0])]


# ---- splits -------------------------------------------------------------------------------------

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}


def split_by(pattern):
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    return {"type": "Sequence", "pretokenizers": [split, BYTES]}


DIGITS = {"type": "Digits", "individual_digits": True}
WORDS = BYTES | {"use_regex": True}
WRITTEN = {
    "GPT-2": (WORDS, GPT2, ["it", "'s", " 12", "  ", " a", "\n", "b", "!", "\n"]),
    "SmolLM2": (
        {"type": "Sequence", "pretokenizers": [DIGITS, WORDS]},
        SINGLE_DIGITS,
        ["it", "'s", " ", "1", "2", "  ", " a", "\n", "b", "!", "\n"],
    ),
    "LLaMA 3": (
        split_by(LLAMA3),
        LLAMA3,
        ["it", "'s", " ", "12", "  ", " a", "\n", "b", "!\n"],
    ),
    "Qwen2": (
        split_by(QWEN2),
        QWEN2,
        ["it", "'s", " ", "1", "2", "  ", " a", "\n", "b", "!\n"],
    ),
    "DeepSeek-Coder": (
        SPLITS["deepseek-coder"]["pre_tokenizer"],
        None,
        [
            "x",
            "\u4e2d\u6587",
            "y",
            " ",
            "\u4e2d",
            " a",
            "!!",
            "1",
            "2",
            "\n",
            "\n",
            "b",
        ],
    ),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_split_of_every_family_is_known(kind):
    """Tokens of two letters would stand across the borders if the text was whole."""
    written, pattern, parts = WRITTEN[kind]
    text = "".join(parts)
    assert pattern in (None, split_of(written).pattern)
    letters = {byte: letter for letter, byte in byte_letters().items()}
    inner = "".join(letters[byte] for byte in text.encode())
    merges = sorted(set(zip(inner, inner[1:])))
    vocab = {letter: i for i, letter in enumerate(letters.values())}
    vocab |= {"".join(pair): 256 + i for i, pair in enumerate(merges)}
    model = {"type": "BPE", "vocab": vocab, "merges": merges}
    whole = {"model": model, "pre_tokenizer": written, "normalizer": None}
    tokenizer = load_tokenizer(files(whole=whole))
    expected = [tokenizer.merge(part, True) for part in parts]
    assert tokenizer.encode(text) == [i for tokens in expected for i in tokens]
    assert max(tokenizer.encode(text)) >= 256
    lengths = [len(tokenizer.token_bytes(i)) for i in tokenizer.encode(text)]
    borders = np.cumsum([len(part.encode()) for part in parts])
    assert set(borders.tolist()) <= set(np.cumsum(lengths).tolist())


@pytest.mark.parametrize("kind", SPLITS)
def test_text_is_split_and_merged_as_hugging_face_does(kind):
    golden = SPLITS[kind]
    vocab = {letter: i for i, letter in enumerate(sorted(byte_letters()))}
    vocab |= {"".join(pair): 256 + i for i, pair in enumerate(golden["merges"])}
    model = {"type": "BPE", "vocab": vocab, "merges": golden["merges"]}
    steps = {key: golden[key] for key in ("normalizer", "pre_tokenizer")}
    tokenizer = load_tokenizer(files(whole=steps | {"model": model}))
    for text, ids in golden["encode"]:
        assert tokenizer.encode(text) == ids


@pytest.mark.parametrize(
    "steps, text, parts",
    [
        ([r"\s?[a-z]+"], "ab  cd1 e", ["ab", " ", " cd", "1", " e"]),
        ([r" ?[^ ,]+"], "ab,,\tc d", ["ab", ",,", "\tc", " d"]),
        ([r"[\r\n]"], "a\n\nb", ["a", "\n", "\n", "b"]),
        ([r"[a-z]+", r"\s+$"], "1  a2 ", ["1", "  ", "a", "2", " "]),
        ([r"\s+$"], "a  b  ", ["a  b", "  "]),
        ([r"\p{N}+", r"\p{N}"], "a12", ["a", "1", "2"]),
        # An earlier step cut the space off the word, so the later leaves it alone.
        ([r"[a-z]+", r"\s?[a-z]+"], "1  a", ["1  ", "a"]),
        ([r"[a-f]+", r"[d-z]+"], "adz", ["a", "d", "z"]),
    ],
)  # fmt: skip
def test_later_step_cuts_what_an_earlier_one_isolated(steps, text, parts):
    import regex

    pattern = regex.compile(runs(steps).replace("\\z", "\\Z"), regex.V1)
    assert pattern.findall(text) == parts


@pytest.mark.parametrize(
    "step",
    ["a+", "[a-z]*", "[a&&b]", "[a--b]", "[a~~b]", "[[a]b]", "(a|b)+", r"\s?[a]", r"\w+",
     r"[\w]+", "[a]+?", r"\s+", "[a]{2}", ""],
)  # fmt: skip
def test_step_of_another_kind_is_not_guessed(step):
    assert runs([step]) is None and runs([r"[\r\n]", step]) is None


def test_split_by_a_literal_is_no_regular_expression():
    literal = {"type": "Split", "pattern": {"String": "[ab]"}, "behavior": "Isolated"}
    for step in (literal, literal | {"pattern": {"String": GPT2}}):
        with pytest.raises(ValueError, match="not known here .Split String"):
            split_of({"type": "Sequence", "pretokenizers": [step, BYTES]})
    for change in ({"behavior": "Removed"}, {"invert": True}):
        step = {"type": "Split", "pattern": {"Regex": "[ab]"}, "behavior": "Isolated"}
        with pytest.raises(ValueError, match="not known here"):
            split_of({"type": "Sequence", "pretokenizers": [step | change, BYTES]})


def test_every_pattern_matches_every_character():
    """tiktoken drops what is not matched."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    texts = ["".join(map(chr, range(i, i + 64))) for i in range(0, 0x3000, 64)]
    texts += list(nasty_texts(200, 9))
    cut = [split_of(SPLITS[kind]["pre_tokenizer"]).pattern for kind in SPLITS]
    for pattern in {*PATTERNS.values(), *cut}:
        engine = tiktoken.Encoding(
            "x", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
        )
        for text in texts:
            assert bytes(engine.encode_ordinary(text)) == text.encode()


def test_byte_without_a_token_adds_none():
    whole = json.loads(json.dumps(WHOLE))
    letter = next(c for c, byte in byte_letters().items() if byte == 4)
    del whole["model"]["vocab"][letter]
    tokenizer = load_tokenizer(files(whole=whole))
    whole_one = load_tokenizer(files(whole=WHOLE))
    a, b = whole_one.encode("the fox"), whole_one.encode(" the")
    assert tokenizer.encode("the fox\x04 the") == a + b
    whole["model"]["unk_token"] = "!"
    tokenizer = load_tokenizer(files(whole=whole))
    assert tokenizer.encode("the fox\x04 the") == a + whole_one.encode("!") + b


def test_text_is_brought_into_its_normal_form():
    tokenizer = load_tokenizer(files(whole=WHOLE | {"normalizer": {"type": "NFC"}}))
    plain = load_tokenizer(files(whole=WHOLE))
    assert (
        tokenizer.encode("e\u0301") == plain.encode("\u00e9") != plain.encode("e\u0301")
    )


def test_space_is_put_before_a_text_that_has_none():
    whole = WHOLE | {"pre_tokenizer": WORDS | {"add_prefix_space": True}}
    tokenizer = load_tokenizer(files(whole=whole))
    plain = load_tokenizer(files(whole=WHOLE | {"pre_tokenizer": WORDS}))
    assert tokenizer.encode("the") == plain.encode(" the") == tokenizer.encode(" the")


# ---- llama2.c ---------------------------------------------------------------------------------


def llama2c_tokenizer():
    """The pieces of the model as llama2.c keeps them, in a tokenizer.bin."""
    content = struct.pack("<i", 27)
    for i in range(SIZE):
        name = ENGINE.id_to_piece(i).replace(SPACE, " ").encode()
        name = {1: b"\n<s>\n", 2: b"\n</s>\n"}.get(i, name)
        content += struct.pack("<fi", ENGINE.get_score(i), len(name)) + name
    return content


def test_tokenizer_of_llama2_c_is_the_model():
    content = llama2c_tokenizer()
    tokenizer = load_tokenizer({"tokenizer.bin": content})
    assert (
        tokenizer.vocab_size == SIZE and tokenizer.bos_id == 1 and tokenizer.eos_id == 2
    )
    for text in nasty_texts(300, 8):
        assert tokenizer.encode(text) == [1, *ENGINE.encode(text)]
    assert tokenizer.decode([1, *ENGINE.encode("the fox"), 2]) == "the fox"
    for broken in (content[:-3], content[:200], b"\x00" * 3, content + b"x"):
        with pytest.raises(ValueError, match="tokenizer.bin: "):
            load_tokenizer({"tokenizer.bin": broken})


# ---- through the library of Hugging Face ------------------------------------------------------


@pytest.mark.parametrize("prefix", ["x", "\u0120", "ab", "##", "\u4e2d"])
def test_prefix_that_merges_lack_is_refused(prefix):
    """Hugging Face's library ends the process for some of them."""
    needs("tokenizers")
    model = WHOLE["model"] | {"continuing_subword_prefix": prefix}
    with pytest.raises(ValueError, match="continuing_subword_prefix .* does not begin"):
        load_tokenizer(files(whole=WHOLE | {"model": model}))


def test_unknown_split_names_itself_and_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    whole = WHOLE | {"pre_tokenizer": split_by(r"\w+|\W")}
    with pytest.raises(
        ValueError, match=r"Split \\w\+.*npllama\[tokenizers\] may read"
    ):
        load_tokenizer(files(whole=whole))
