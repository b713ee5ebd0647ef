"""Text to tokens and back: laws, answers of Hugging Face's code, broken files."""

import base64
import copy
import json
import re
import sys
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st

from npllama.text import byte_level
from npllama.text import tokenizer as chapter
from npllama.text.byte_level import cut_long_text, llama3_special_names
from npllama.text.tokenizer import SPACE, Mark, StreamDecoder
from npllama.text.vocabulary import load_tokenizer, load_tokenizer_file

GOLDENS = Path(__file__).parent / "goldens"
GOLDEN = json.loads((GOLDENS / "tokenizer.json").read_text("utf-8"))
FILES = {
    "sentencepiece": ("tokenizer.model", GOLDENS / "tokenizers/sentencepiece.model"),
    "ranks": ("tokenizer.model", GOLDENS / "tokenizers/ranks.model"),
    "json": ("tokenizer.json", GOLDENS / "tokenizers/byte_level.json"),
}
CONTENTS = {kind: path.read_bytes() for kind, (_, path) in FILES.items()}
LOADED = {kind: load_tokenizer_file(path) for kind, (_, path) in FILES.items()}
SP, RANKS, JSON = LOADED.values()

every_kind = pytest.mark.parametrize("tokenizer", LOADED.values(), ids=LOADED)
tiktoken_kind = pytest.mark.parametrize(
    "tokenizer", [RANKS, JSON], ids=["ranks", "json"]
)

NASTY = [
    *("<|eot_id|>", "<|begin_of_text|>", "<s>", "</s>", "<unk>", "<0x0A>", "<|eot"),
    *("\U0001f469\u200d\U0001f467", "e\u0301", "\r\n", "\x00", "\u2047", "\ufffd"),
    *(
        "[INST]",
        " ",
        "   ",
        "\n\n",
        "12345",
        "it's",
        "狐",
        "\U0001f1e8\U0001f1ed",
        "\ufeff",
    ),
    *("Once upon", "the", "\u00a0", "\x1c", "\u2028", "\U0010ffff"),
]


def texts():
    """Any text, made of any characters and of those that are known for trouble."""
    characters = st.characters(exclude_categories=["Cs"])
    parts = st.one_of(st.sampled_from(NASTY), st.text(characters, max_size=8))
    return st.lists(parts, max_size=8).map("".join)


def any_tokens(tokenizer):
    return st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30)


def streamed(tokenizer, tokens, **options):
    """What a stream hands out, token by token."""
    stream = StreamDecoder(tokenizer, **options)
    return [*map(stream.push, tokens), stream.flush()]


# ---- golden: the `tokenizers` library through transformers' classes --------------


@pytest.mark.parametrize("text, ids, back", GOLDEN["sentencepiece"]["encode"])
def test_sentencepiece_text_is_cut_and_joined_as_hugging_face_does(text, ids, back):
    # transformers 5 puts no space before a text that begins with one, and so cannot
    # tell " a" from "a"; SentencePiece, and Meta with it, does.
    same = text.removeprefix(" ")
    assert SP.encode(same, bos=False) == ids
    assert SP.decode(ids) == back == same


@tiktoken_kind
@pytest.mark.parametrize("text, ids, back", GOLDEN["tiktoken"]["encode"])
def test_byte_level_text_is_cut_and_joined_as_hugging_face_does(
    tokenizer, text, ids, back
):
    assert tokenizer.encode(text, bos=False) == ids
    assert tokenizer.decode(ids) == back == text


@tiktoken_kind
@pytest.mark.parametrize("text, ids, back", GOLDEN["tiktoken"]["special"])
def test_special_tokens_are_found_as_hugging_face_finds_them(
    tokenizer, text, ids, back
):
    assert tokenizer.encode(text, bos=False, allowed_special="all") == ids
    assert tokenizer.decode(ids) == back


@pytest.mark.parametrize(
    "kind, ids, text",
    [(kind, *entry) for kind in GOLDEN for entry in GOLDEN[kind]["decode"]],
)
def test_tokens_in_no_sensible_order_are_decoded_as_hugging_face_does(kind, ids, text):
    for tokenizer in LOADED.values():
        if tokenizer.kind == kind:
            assert tokenizer.decode(ids) == text


@given(st.data())
def test_tokens_that_are_no_bytes_are_decoded_as_sentencepiece_does(data):
    engine = sentencepiece.SentencePieceProcessor(model_proto=CONTENTS["sentencepiece"])
    ids = [i for i in range(SP.vocab_size) if not engine.is_byte(i)]
    tokens = data.draw(st.lists(st.sampled_from([0, 1, 2, *ids]), max_size=12))
    assert SP.decode(tokens) == engine.decode(tokens)


# ---- laws ------------------------------------------------------------------------


@every_kind
@given(text=texts())
@example(text="")
@example(text=" ")
@example(text="\x00")
@example(text=" \n ")
def test_text_comes_back_whole(tokenizer, text):
    taken = text.replace(SPACE, " ") if tokenizer is SP else text
    assert tokenizer.decode(tokenizer.encode(text, eos=True)) == taken


@every_kind
@given(text=texts())
def test_bytes_of_the_tokens_are_the_bytes_of_the_text(tokenizer, text):
    tokens = tokenizer.encode(text.replace(SPACE, ""))
    front = " " if tokenizer is SP and len(tokens) > 1 else ""
    content = b"".join(map(tokenizer.token_bytes, tokens))
    assert content == (front + text.replace(SPACE, "")).encode()


@every_kind
@given(data=st.data(), skip=st.booleans(), continuing=st.booleans())
def test_stream_of_any_tokens_equals_the_text_of_their_bytes(
    tokenizer, data, skip, continuing
):
    tokens = data.draw(any_tokens(tokenizer))
    contents = [
        b"" if skip and i in tokenizer.special.values() else spelled(tokenizer, i)
        for i in tokens
    ]
    if tokenizer is SP and not continuing:
        with_text = [n for n, i in enumerate(tokens) if tokenizer.token_bytes(i)]
        if with_text and tokenizer.piece(tokens[with_text[0]]).startswith(SPACE):
            contents[with_text[0]] = contents[with_text[0]][1:]
    whole = b"".join(contents).decode("utf-8", "replace")
    options = {"skip_special": skip, "continuing": continuing}
    assert "".join(streamed(tokenizer, tokens, **options)) == whole
    if not continuing:
        assert tokenizer.decode(tokens, skip_special=skip) == whole


def spelled(tokenizer, token):
    """Bytes of a token, or of its name if it is special."""
    names = {i: name for name, i in tokenizer.special.items()}
    return names[token].encode() if token in names else tokenizer.token_bytes(token)


@every_kind
@given(text=texts())
def test_stream_shows_whole_characters_as_soon_as_they_are_there(tokenizer, text):
    tokens = tokenizer.encode(text, bos=False)
    shown, seen = "", b""
    stream = StreamDecoder(tokenizer, continuing=True)
    for token in tokens:
        shown += stream.push(token)
        seen += tokenizer.token_bytes(token)
        assert shown == seen.decode("utf-8", "ignore")
    assert stream.flush() == ""


@every_kind
@given(text=texts(), share=st.floats(0, 1))
@example(text="a a a a a a", share=0.5)
def test_text_goes_on_where_it_was_cut(tokenizer, text, share):
    tokens = tokenizer.encode(text, bos=False)
    at = round(share * len(tokens))
    begun = streamed(tokenizer, tokens[:at])
    rest = streamed(tokenizer, tokens[at:], continuing=at > 0)
    # Only where no character was cut in two.
    if not begun[-1]:
        assert "".join([*begun, *rest]) == tokenizer.decode(tokens)


@every_kind
@given(text=texts())
@example(text="<|begin_of_text|><|eot_id|></s><s>")
def test_no_text_makes_a_special_token(tokenizer, text):
    assert not set(tokenizer.encode(text, bos=False)) & set(tokenizer.special.values())


@tiktoken_kind
@given(text=texts())
def test_special_tokens_that_are_allowed_come_back_by_name(tokenizer, text):
    tokens = tokenizer.encode(text, bos=False, allowed_special="all")
    assert tokenizer.decode(tokens, skip_special=False) == text
    found = [i for i in tokens if i in tokenizer.special.values()]
    names = re.findall("|".join(map(re.escape, tokenizer.special)), text)
    assert found == [tokenizer.special[name] for name in names]


def test_only_the_special_tokens_that_are_allowed_are_found():
    tokens = RANKS.encode("<|eot_id|><|eom_id|>", allowed_special={"<|eom_id|>"})
    special = {i for i in tokens if i in RANKS.special.values()}
    assert special == {RANKS.bos_id, RANKS.special["<|eom_id|>"]}
    assert SP.encode("a</s>", allowed_special={"</s>"}) == SP.encode("a", eos=True)


def test_of_special_tokens_that_overlap_the_longest_is_found():
    marks = {name: Mark(i) for i, name in enumerate(["<a", "<ab", "<a>", "b>"])}
    assert list(chapter.split_at("x<a><ab>", marks)) == ["x", Mark(2), Mark(1), ">"]


# Merges that only a text cut in the wrong place would make.
ACROSS = [b"12", b"34", b"1234", b" a", b"b\n", b" ab\n", b"Sx", b"'S", b"s\n"]


@pytest.mark.parametrize(
    "text, parts",
    [
        ("1234", "12 3 4".split()),  # numbers, by three digits
        ("it'Sx", "i t 'S x".split()),  # contractions, in capitals, too
        ("b\nab", ["b", "\n", "a", "b"]),  # letters end before a line does
        (" ab", [" a", "b"]),  # a space goes with the word after it
        ("s\n", ["s", "\n"]),
    ],
)
def test_text_of_llama_3_is_split_before_it_is_merged(text, parts):
    singles = [bytes([byte]) for byte in range(256)]
    ranks = b"".join(rank(t, i) for i, t in enumerate([*singles, *ACROSS]))
    tokenizer = load_tokenizer({"tokenizer.model": ranks})
    found = tokenizer.encode(text, bos=False)
    assert [tokenizer.piece(token) for token in found] == parts


# ---- long text -------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize(
    "text", [" " * 100_000, "a" * 60_000, "\n" * 60_000, "ab " * 140_000, "é1" * 30_000]
)
def test_huge_text_comes_back_whole(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.text("ab \n\x1c\u00a0", max_size=60), st.integers(1, 9), st.integers(1, 40))
def test_long_text_is_cut_where_meta_cuts_it(text, run, length):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(byte_level, "LONGEST_RUN", run)
        patch.setattr(byte_level, "LONGEST_TEXT", length)
        assert cut_long_text(text) == list(cut_by_counting(text, run, length))


def cut_by_counting(text, longest_run, longest_text):
    """The same rule, character by character."""
    for start in range(0, len(text), longest_text):
        cut, count = "", 0
        for character in text[start : start + longest_text]:
            same = cut and cut[-1].isspace() == character.isspace()
            if same and count == longest_run:
                yield cut
                cut, count = "", 0
            count = count + 1 if same else 1
            cut += character
        yield cut


def test_huge_text_is_cut_at_the_limits_of_meta():
    assert (byte_level.LONGEST_TEXT, byte_level.LONGEST_RUN) == (400_000, 25_000)
    assert [len(cut) for cut in cut_long_text("a" * 60_000)] == [25_000, 25_000, 10_000]
    assert [len(cut) for cut in cut_long_text("a " * 300_000)] == [400_000, 200_000]


# ---- what is in a vocabulary -------------------------------------------------------


@every_kind
def test_sequence_may_begin_and_end_with_its_tokens(tokenizer):
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    inner = tokenizer.encode("the fox", bos=False)
    assert tokenizer.encode("the fox", bos=True, eos=True) == [bos, *inner, eos]
    assert tokenizer.encode("", bos=True) == [bos]
    assert tokenizer.encode("", bos=False) == []
    assert tokenizer.token_bytes(bos) == tokenizer.token_bytes(eos) == b""


# Places after the ranks, from Meta's list.
LLAMA3_PLACES = {
    "<|begin_of_text|>": 0,
    "<|end_of_text|>": 1,
    "<|reserved_special_token_0|>": 2,
    "<|reserved_special_token_1|>": 3,
    "<|finetune_right_pad_id|>": 4,
    "<|step_id|>": 5,
    "<|start_header_id|>": 6,
    "<|end_header_id|>": 7,
    "<|eom_id|>": 8,
    "<|eot_id|>": 9,
    "<|python_tag|>": 10,
    "<|image|>": 11,
    "<|reserved_special_token_2|>": 12,
    "<|reserved_special_token_245|>": 255,
}


def test_special_tokens_of_llama_3_follow_the_ranks():
    names, first = llama3_special_names(), CONTENTS["ranks"].count(b"\n")
    assert len(set(names)) == 256 and RANKS.vocab_size == first + 256
    for name, place in LLAMA3_PLACES.items():
        assert names[place] == name and RANKS.special[name] == first + place
    assert (RANKS.bos_id, RANKS.eos_id) == (first, first + 1)


def test_pieces_have_names_for_people():
    assert SP.piece(SP.bos_id) == "<s>" and SP.piece(13) == "<0x0A>"
    assert SP.token_bytes(13) == b"\n"
    (the,) = SP.encode("the", bos=False)
    assert SP.piece(the) == SPACE + "the" and SP.token_bytes(the) == b" the"
    assert RANKS.piece(RANKS.bos_id) == "<|begin_of_text|>"
    (the,) = RANKS.encode(" the", bos=False)
    assert RANKS.piece(the) == " the"


@every_kind
@pytest.mark.parametrize("beyond", [0, 1, 10**6])
def test_id_without_a_token_is_the_empty_text(tokenizer, beyond):
    """Embeddings are padded to a round number, and a model may choose any row."""
    far = tokenizer.vocab_size + beyond
    the, fox = tokenizer.encode("the", bos=False), tokenizer.encode(" fox", bos=False)
    assert tokenizer.token_bytes(far) == b"" and tokenizer.piece(far) == ""
    assert tokenizer.decode([far, *the, far, *fox, far]) == tokenizer.decode(the + fox)
    assert "".join(streamed(tokenizer, [far], skip_special=False)) == ""


@every_kind
def test_negative_id_is_refused(tokenizer):
    stream = StreamDecoder(tokenizer)
    for use in (tokenizer.token_bytes, tokenizer.piece, stream.push):
        with pytest.raises(ValueError, match="token -1 is outside the vocabulary"):
            use(-1)
    with pytest.raises(ValueError, match="ids begin at 0"):
        tokenizer.decode([0, -1])


@every_kind
def test_what_is_no_text_is_refused(tokenizer):
    with pytest.raises(
        ValueError, match=r"character 2, '\\ud83d', is half a surrogate"
    ):
        tokenizer.encode("ab\ud83dc")
    with pytest.raises(TypeError, match="expected str, found bytes"):
        tokenizer.encode(b"ab")
    with pytest.raises(ValueError, match="allowed_special: '<|no|>' is not a special"):
        tokenizer.encode("ab", allowed_special={"<|no|>"})


# ---- files -------------------------------------------------------------------------


def config(**entries):
    return {"tokenizer_config.json": json.dumps(entries).encode()}


def members(kind, **entries):
    return {FILES[kind][0]: CONTENTS[kind]} | (config(**entries) if entries else {})


def test_ranks_and_json_of_one_vocabulary_are_one_tokenizer():
    assert RANKS.vocabulary == JSON.vocabulary and RANKS.special == JSON.special


def test_original_file_is_taken_where_there_are_two():
    both = members("json") | members("sentencepiece")
    assert load_tokenizer(both).kind == "sentencepiece"


@pytest.mark.parametrize("form", [str, lambda name: {"content": name, "lstrip": False}])
def test_settings_name_the_tokens_at_both_ends(form):
    ends = {"bos_token": form("<|step_id|>"), "eos_token": form("<|eot_id|>")}
    tokenizer = load_tokenizer(members("json", **ends))
    assert tokenizer.bos_id == tokenizer.special["<|step_id|>"]
    assert tokenizer.eos_id == tokenizer.special["<|eot_id|>"]
    # An empty name, as some old checkpoints have, names nothing.
    assert load_tokenizer(members("json", eos_token="")).eos_id == JSON.eos_id
    named = {"special_tokens_map.json": json.dumps(ends).encode()}
    assert load_tokenizer(members("json") | named).eos_id == tokenizer.eos_id


def test_chat_template_comes_from_either_of_its_files():
    several = [{"name": "default", "template": "A"}, {"name": "tools", "template": "B"}]
    for written, read in (
        ("A", "A"),
        (several, "A"),
        (several[::-1], "A"),
        (several[1:], "B"),
        (None, ""),
        ("", ""),
    ):
        found = load_tokenizer(members("json", chat_template=written))
        assert found.chat_template == read
    file = {"chat_template.jinja": "{{ bos }} \u00e9".encode()}
    found = load_tokenizer(members("json", chat_template="old") | file)
    assert found.chat_template == "{{ bos }} \u00e9"


def test_tokens_added_by_fine_tuning_follow_those_of_the_model():
    size = SP.vocab_size
    added = {
        "0": {"content": "<unk>", "special": True},
        str(size): {"content": "<|im_start|>", "special": True},
        str(size + 1): {"content": "<think>", "special": False},
    }
    tokenizer = load_tokenizer(members("sentencepiece", added_tokens_decoder=added))
    assert tokenizer.vocab_size == size + 2
    assert tokenizer.special == SP.special | {"<|im_start|>": size}
    assert tokenizer.decode([size, size + 1, *SP.encode("the")]) == "<think> the"
    text = "<|im_start|><think>"
    # A word is found wherever it stands, a special token where that is allowed.
    assert tokenizer.encode(text) == [*SP.encode("<|im_start|>"), size + 1]
    guarded = tokenizer.encode("<|im_start|><\ufdd0think>", guard="\ufdd0")
    assert guarded == SP.encode(text)
    assert tokenizer.encode(text, allowed_special="all")[1:] == [size, size + 1]


def edited(*changes):
    """The tokenizer.json after some changes."""
    data = copy.deepcopy(json.loads(CONTENTS["json"]))
    for change in changes:
        change(data)
    return {"tokenizer.json": json.dumps(data).encode()}


def test_merges_may_be_written_as_strings():
    def join(data):
        data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]

    assert load_tokenizer(edited(join)).vocabulary == JSON.vocabulary


def test_special_tokens_may_come_before_the_others():
    def move(data):
        size = len(data["model"]["vocab"])
        data["added_tokens"] = data["added_tokens"][:2]
        vocabulary = data["model"]["vocab"].items()
        data["model"]["vocab"] = {token: i + 2 for token, i in vocabulary}
        for i, token in enumerate(data["added_tokens"]):
            token["id"] = i
            data["model"]["vocab"][token["content"]] = i
        assert size + 2 == len(data["model"]["vocab"])

    tokenizer = load_tokenizer(edited(move))
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 1)
    tokens = JSON.encode("Once upon a time", bos=False)
    assert tokenizer.encode("Once upon a time") == [i + 2 for i in tokens]


def rank_lines(*lines):
    return {"tokenizer.model": CONTENTS["ranks"] + b"".join(lines)}


def rank(content, number):
    return base64.b64encode(content) + b" %d\n" % number


def put(*path, value):
    """A change of one entry, given by its path."""

    def change(data):
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


STEPS = ("pre_tokenizer", "pretokenizers")
BROKEN = {
    "nothing": ({}, "no tokenizer"),
    "an empty file": ({"tokenizer.model": b""}, "empty"),
    "noise": ({"tokenizer.model": bytes(range(256))}, "tokenizer.model: broken"),
    "half a model": ({"tokenizer.model": CONTENTS["sentencepiece"][:999]}, "broken"),
    "a pointer": ({"tokenizer.model": b"version https://git-lfs."}, "broken"),
    "an HTML page": ({"tokenizer.json": b"<html>"}, "tokenizer.json: Expecting value"),
    "a list": ({"tokenizer.json": b"[]"}, "tokenizer.json: broken"),
    "not UTF-8": ({"tokenizer.json": b'"\xff"'}, "tokenizer.json: broken"),
    "deep nesting": ({"tokenizer.json": b"[" * 100_000}, "tokenizer.json: broken"),
    "settings": (
        members("json") | {"tokenizer_config.json": b"[1]"},
        "tokenizer_config.json: broken",
    ),
    "added far beyond": (
        members("sentencepiece", added_tokens_decoder={"1048577": {"content": "x"}}),
        "the id 1048577, beyond 1048576",
    ),
    "a rank twice": (rank_lines(rank(b"qq", 5)), "two tokens have one rank"),
    "a gap": (rank_lines(rank(b"qq", 900)), "are not 0 to"),
    "a huge rank": (rank_lines(rank(b"qq", 10**30)), "are not 0 to 512"),
    "no rank": (rank_lines(b"cXE=\n"), "line 513 is not a token and its rank"),
    "not base64": (rank_lines(b"q*q 512\n"), "line 513"),
    "no single bytes": ({"tokenizer.model": rank(b"ab", 0)}, "a single byte has none"),
    "unigrams": (
        edited(put("model", "type", value="Unigram")),
        "type 'Unigram' is not BPE",
    ),
    "a normalizer": (
        edited(put("normalizer", value={"type": "Lowercase"})),
        "the normalizer Lowercase is not known",
    ),
    "no split": (edited(put("pre_tokenizer", value=None)), "not known here (nothing)"),
    "byte fallback": (
        edited(put("model", "byte_fallback", value=True)),
        "pieces are prepared in a way not known here (['Sequence'])",
    ),
    "pieces of bytes": (
        edited(
            put("model", "byte_fallback", value=True),
            put("pre_tokenizer", value={"type": "Metaspace"}),
        ),
        "byte_fallback needs a token <0x00>",
    ),
    "another pattern": (
        edited(put(*STEPS, 0, "pattern", value={"Regex": "(a+)+$"})),
        "split in a way that is not known here (Split (a+)+$",
    ),
    "two patterns": (
        edited(put(*STEPS, 1, "use_regex", value=True)),
        "split in a way that is not known here",
    ),
    "a space before each part": (
        edited(put(*STEPS, 1, "add_prefix_space", value=True)),
        "split in a way that is not known here",
    ),
    "chance": (edited(put("model", "dropout", value=0.1)), "dropout makes tokens by"),
    "merges out of order": (
        edited(lambda data: data["model"]["merges"].reverse()),
        "model.merges is not in the order",
    ),
    "a merge too few": (
        edited(lambda data: data["model"]["merges"].pop()),
        "model.merges does not make the token",
    ),
    "a name that is a number": (
        edited(put("added_tokens", 1, "content", value=7)),
        "an added token is called 7",
    ),
    "an id that is not whole": (
        edited(put("model", "vocab", "A", value=5.0)),
        "model.vocab gives 'A' the id 5.0",
    ),
    "a vocabulary that is a list": (
        edited(put("model", "vocab", value=["a"])),
        "model.vocab is not a mapping",
    ),
    "an id that is text": (
        edited(put("added_tokens", 1, "id", value="x")),
        "an added token has the id 'x'",
    ),
    "an id of another": (
        edited(put("added_tokens", 1, "id", value=5)),
        "'<|end_of_text|>' has the id 5 of '&'",
    ),
    "an end of another kind": (
        edited(put("post_processor", value={"type": "Sentencepiece"})),
        "post_processor 'Sentencepiece' is not known",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_file_is_named_in_one_line(kind, monkeypatch):
    # Hugging Face's library would read some of them.
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    files, message = BROKEN[kind]
    with pytest.raises(ValueError) as caught:
        load_tokenizer(files)
    told = str(caught.value)
    assert message in told and "\n" not in told and len(told) < 240
    assert not files or any(name in told for name in files)


edits = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 60), st.binary(max_size=6)),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("kind", FILES)
@given(edits=edits)
def test_damaged_file_is_refused_or_is_still_a_tokenizer(kind, edits):
    content = CONTENTS[kind]
    for share, length, new in edits:
        at = round(share * len(content))
        content = content[:at] + new + content[at + length :]
    try:
        tokenizer = load_tokenizer({FILES[kind][0]: content})
    except ValueError as error:
        assert "\n" not in str(error)
        return
    tokens = tokenizer.encode("the fox <s> é\n 12")
    assert tokenizer.decode(tokens, skip_special=False) != ""
    tokenizer.decode(range(tokenizer.vocab_size))
