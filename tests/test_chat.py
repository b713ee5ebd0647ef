"""Conversations as Meta writes them; what users say stays what users say."""

import io
import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import assume, given
from hypothesis import strategies as st

from npllama.text.chat import (
    chat_tokens,
    choose_format,
    closing,
    detect_format,
    stop_tokens,
)
from npllama.text.forms import FORMATS, FORMS, LLAMA2_MARKS, VICUNA_SYSTEM
from npllama.text.rendering import render
from npllama.text.turns import turn_tokens
from npllama.text.vocabulary import load_tokenizer, load_tokenizer_file

FOLDER = Path(__file__).parent / "goldens" / "tokenizers"
SP = load_tokenizer_file(FOLDER / "sentencepiece.model")
RANKS = load_tokenizer_file(FOLDER / "ranks.model")
CHATML = """{% for message in messages %}{% if loop.first and message['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


def with_chatml(file, special=True, template=CHATML):
    """A tokenizer to which fine-tuning added the marks of ChatML."""
    size = load_tokenizer_file(FOLDER / file).vocab_size
    added = {
        str(size + i): {"content": name, "special": special}
        for i, name in enumerate(["<|im_start|>", "<|im_end|>"])
    }
    config = {"added_tokens_decoder": added, "chat_template": template}
    model = (FOLDER / file).read_bytes()
    files = {"tokenizer.model": model, "tokenizer_config.json": json.dumps(config)}
    return load_tokenizer(
        files | {"tokenizer_config.json": json.dumps(config).encode()}
    )


ML = with_chatml("ranks.model")
ML_WORDS = with_chatml("sentencepiece.model", special=False)
OF_FORMAT = {"llama-2": SP, "llama-3": RANKS, "chatml": ML, "template": ML}
OF_FORMAT |= dict.fromkeys(["zephyr", "vicuna", "deepseek", "plain"], SP)
BY_TURNS = [format for format in FORMATS if format != "template"]


def may_be_said(format, talk):
    """Whether no message holds what marks turns in a form."""
    texts = FORMS[format].texts if format in FORMS else ()
    return not any(mark in message["content"] for mark in texts for message in talk)


def dialog(*contents, system=None):
    """A dialog in which user and assistant speak in turn."""
    said = [] if system is None else [{"role": "system", "content": system}]
    roles = ["user", "assistant"] * len(contents)
    return said + [{"role": r, "content": c} for r, c in zip(roles, contents)]


# ---- the published forms, written out by hand ----------------------------------

# Sequences of text, each of which begins with BOS; all but the last end with EOS.
LLAMA2 = {
    "one question": (dialog("Hi"), ["[INST] Hi [/INST]"]),
    "white space around it": (dialog(" \n Hi there\n\n"), ["[INST] Hi there [/INST]"]),
    "instructions": (
        dialog("Hi ", system=" Be brief. "),
        ["[INST] <<SYS>>\n Be brief. \n<</SYS>>\n\nHi [/INST]"],
    ),
    "white space after instructions": (
        dialog("  Hi", system="Be brief."),
        ["[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n  Hi [/INST]"],
    ),
    "no instructions": (
        dialog("Hi", system=""),
        ["[INST] <<SYS>>\n\n<</SYS>>\n\nHi [/INST]"],
    ),
    "three turns": (
        dialog("One?", " Yes.\n", "Two?", "", "Three?", system="Count."),
        [
            "[INST] <<SYS>>\nCount.\n<</SYS>>\n\nOne? [/INST] Yes. ",
            "[INST] Two? [/INST]  ",
            "[INST] Three? [/INST]",
        ],
    ),
}


@pytest.mark.parametrize("talk, sequences", LLAMA2.values(), ids=LLAMA2)
def test_llama_2_is_written_as_meta_writes_it(talk, sequences):
    expected = []
    for text in sequences[:-1]:
        expected += SP.encode(text, bos=True, eos=True)
    expected += SP.encode(sequences[-1], bos=True)
    assert chat_tokens(SP, talk, "llama-2") == expected


BEGIN, EOT = "<|begin_of_text|>", "<|eot_id|>"
SYSTEM = "<|start_header_id|>system<|end_header_id|>\n\n"
USER = "<|start_header_id|>user<|end_header_id|>\n\n"
ASSISTANT = "<|start_header_id|>assistant<|end_header_id|>\n\n"
LLAMA3 = {
    "one question": (dialog("Hi"), f"{BEGIN}{USER}Hi{EOT}{ASSISTANT}"),
    "white space around it": (
        dialog(" \n Hi there\n\n"),
        f"{BEGIN}{USER}Hi there{EOT}{ASSISTANT}",
    ),
    "instructions": (
        dialog("Hi", system=" Be brief. "),
        f"{BEGIN}{SYSTEM}Be brief.{EOT}{USER}Hi{EOT}{ASSISTANT}",
    ),
    "no instructions": (
        dialog("Hi", system=""),
        f"{BEGIN}{SYSTEM}{EOT}{USER}Hi{EOT}{ASSISTANT}",
    ),
    "three turns": (
        dialog("One?", " Yes.\n", "Two?", "", "Three?", system="Count."),
        f"{BEGIN}{SYSTEM}Count.{EOT}{USER}One?{EOT}{ASSISTANT}Yes.{EOT}"
        f"{USER}Two?{EOT}{ASSISTANT}{EOT}{USER}Three?{EOT}{ASSISTANT}",
    ),
}


@pytest.mark.parametrize("talk, text", LLAMA3.values(), ids=LLAMA3)
def test_llama_3_is_written_as_meta_writes_it(talk, text):
    tokens = chat_tokens(RANKS, talk, "llama-3")
    assert tokens == RANKS.encode(text, bos=False, allowed_special="all")
    assert RANKS.decode(tokens, skip_special=False) == text


@pytest.mark.parametrize("tokenizer", [SP, RANKS], ids=["sentencepiece", "tiktoken"])
def test_plain_is_the_lines_and_nothing_else(tokenizer):
    talk = dialog("One?", "Yes.", "Two?", system="Count.")
    tokens = chat_tokens(tokenizer, talk, "plain")
    assert tokenizer.decode(tokens) == "Count.\nOne?\nYes.\nTwo?"
    assert [i for i in tokens if i in tokenizer.special.values()] == [tokenizer.bos_id]


# ---- laws ------------------------------------------------------------------------

MARKS = [*RANKS.special, *LLAMA2_MARKS, "<s>", "</s>", "<<", ">>", "\n", " "]


def contents():
    """What people say, and what they should not be able to say."""
    parts = st.one_of(st.sampled_from(MARKS), st.text("abé狐 \n[]", max_size=6))
    return st.lists(parts, max_size=5).map("".join)


def dialogs():
    """Dialogs of one to three turns, with instructions or without."""
    counts = st.integers(0, 2).flatmap(
        lambda n: st.lists(contents(), min_size=2 * n + 1, max_size=2 * n + 1)
    )
    systems = st.none() | contents()
    return st.tuples(counts, systems).map(lambda x: dialog(*x[0], system=x[1]))


@pytest.mark.parametrize("format", BY_TURNS)
@given(talk=dialogs())
def test_turns_one_after_the_other_are_the_conversation(format, talk):
    said = [message["content"] for message in talk]
    assume(may_be_said(format, talk))
    system = said.pop(0) if talk[0]["role"] == "system" else None
    tokens = []
    for i, question in enumerate(said[::2]):
        answer = dict(enumerate(said[1::2])).get(i)
        turn = turn_tokens(OF_FORMAT[format], question, format, i == 0, system, answer)
        tokens += turn
    assert tokens == chat_tokens(OF_FORMAT[format], talk, format)


@given(talk=dialogs())
def test_answer_of_llama_3_stands_between_its_header_and_its_end(talk):
    """What a cache holds after an answer is what the next turn goes on from."""
    assume(len(talk) > 2)
    shorter = talk[:-2]
    before = chat_tokens(RANKS, shorter, "llama-3")
    answer = RANKS.encode(talk[-2]["content"].strip(), bos=False)
    more = turn_tokens(RANKS, talk[-1]["content"], "llama-3", False)
    kept = [*before, *answer, *closing(RANKS, "llama-3"), *more]
    assert kept == chat_tokens(RANKS, talk, "llama-3")


@given(talk=dialogs())
def test_no_message_of_llama_3_can_end_its_turn(talk):
    tokens = chat_tokens(RANKS, talk, "llama-3")
    special = [RANKS.piece(i) for i in tokens if i in RANKS.special.values()]
    head = ["<|start_header_id|>", "<|end_header_id|>"]
    assert special == [BEGIN] + [*head, EOT] * len(talk) + head
    lines = [f"{message['role']}\n\n{message['content'].strip()}" for message in talk]
    assert RANKS.decode(tokens) == "".join([*lines, "assistant\n\n"])


@pytest.mark.parametrize("mark", LLAMA2_MARKS)
@pytest.mark.parametrize("place", range(4))
def test_message_of_llama_2_that_holds_a_mark_is_refused(mark, place):
    said = ["Be brief.", "One?", "Yes.", "Two?"]
    said[place] += f" x{mark}y"
    with pytest.raises(ValueError, match=re.escape(mark)) as caught:
        chat_tokens(SP, dialog(*said[1:], system=said[0]), "llama-2")
    assert "\n" not in str(caught.value)


def test_names_of_special_tokens_are_text_in_llama_2():
    tokens = chat_tokens(SP, dialog("</s><s>"), "llama-2")
    assert [i for i in tokens if i in SP.special.values()] == [SP.bos_id]
    assert SP.decode(tokens) == "[INST] </s><s> [/INST]"


@pytest.mark.parametrize("format", BY_TURNS)
def test_instructions_are_said_once(format):
    again = turn_tokens(OF_FORMAT[format], "Two?", format, False, "Be brief.")
    assert again == turn_tokens(OF_FORMAT[format], "Two?", format, False)


# ---- ends, and what is refused ------------------------------------------------------


def test_answer_ends_where_its_form_ends_it():
    special = RANKS.special
    ends = {special[name] for name in (EOT, "<|eom_id|>", "<|end_of_text|>")}
    assert stop_tokens(RANKS, "llama-3") == ends
    assert stop_tokens(RANKS, "plain") == {special["<|end_of_text|>"]}
    assert stop_tokens(SP, "llama-2") == stop_tokens(SP, "plain") == {SP.eos_id}
    assert closing(RANKS, "llama-3") == [special[EOT]]
    assert closing(SP, "llama-2") == [SP.eos_id] and closing(SP, "plain") == []


@pytest.mark.parametrize(
    "roles",
    ["", "s", "a", "sa", "ua", "uu", "us", "uau a", "usu", "ssu", "uaua", "x", "sua"],
)
def test_dialog_in_another_order_is_refused(roles):
    names = {"s": "system", "u": "user", "a": "assistant", "x": "tool"}
    talk = [{"role": names.get(r, " "), "content": "x"} for r in roles]
    for format in FORMATS:
        with pytest.raises(ValueError, match="dialog: expected the roles"):
            chat_tokens(OF_FORMAT[format], talk, format)


def test_message_without_a_text_is_refused():
    for message in ({"role": "user"}, {"role": "user", "content": ["x"]}, "user"):
        with pytest.raises(ValueError, match="message 0 has no content"):
            chat_tokens(RANKS, [message], "llama-3")


def test_form_that_is_unknown_or_cannot_be_written_is_refused():
    with pytest.raises(ValueError, match="'llama-4' is not one of llama-2, llama-3"):
        chat_tokens(RANKS, dialog("Hi"), "llama-4")
    with pytest.raises(ValueError, match="llama-3 needs <|start_header_id|>"):
        chat_tokens(SP, dialog("Hi"), "llama-3")


@pytest.mark.parametrize(
    "tokenizer, template, format",
    [
        (RANKS, "{{ '<|start_header_id|>' + message['role'] }}", "llama-3"),
        (SP, "{{ bos_token + '[INST] ' + content + ' [/INST]' }}", "llama-2"),
        (RANKS, "{{ '<|im_start|>' + message['role'] }}", "template"),
        (RANKS, CHATML, "template"),  # it has no such tokens
        (ML, CHATML, "chatml"),
        (ML, "", "llama-3"),
        (ML_WORDS, "", "chatml"),
        (SP, "{{ '<|user|>\n' + m + eos_token + '<|assistant|>\n' }}", "zephyr"),
        (SP, "{{ 'USER: ' + m + ' ASSISTANT:' }}", "vicuna"),
        (SP, "{{ 'User: ' + m + '\n\nAssistant:' }}", "deepseek"),
        (SP, "{{ '### Instruction:\n' + m }}", "template"),
        (RANKS, "", "llama-3"),
        (SP, "", "plain"),
    ],
)
def test_template_tells_the_form_and_else_the_vocabulary(tokenizer, template, format):
    assert detect_format(replace(tokenizer, chat_template=template)) == format


# ---- the other forms, written out by hand ---------------------------------------

TALK = dialog("Hi ", "Yes.", " So?\n")
BRIEF = [{"role": "system", "content": "Be brief."}, *TALK]
START, END = "<|im_start|>", "<|im_end|>"
WRITTEN = {
    ("chatml", "no instructions"): (
        TALK,
        f"{START}system\nBe kind.{END}\n{START}user\nHi {END}\n{START}assistant\nYes."
        f"{END}\n{START}user\n So?\n{END}\n{START}assistant\n",
    ),
    ("chatml", "instructions"): (
        BRIEF[:2],
        f"{START}system\nBe brief.{END}\n{START}user\nHi {END}\n{START}assistant\n",
    ),
    ("zephyr", "instructions"): (
        BRIEF,
        "<|system|>\nBe brief.</s>\n<|user|>\nHi </s>\n<|assistant|>\nYes.</s>\n"
        "<|user|>\n So?\n</s>\n<|assistant|>\n",
    ),
    ("vicuna", "no instructions"): (
        TALK,
        f"<s>{VICUNA_SYSTEM} USER: Hi  ASSISTANT: Yes.</s>USER:  So?\n ASSISTANT:",
    ),
    ("vicuna", "instructions"): (BRIEF[:2], "<s>Be brief. USER: Hi  ASSISTANT:"),
    ("deepseek", "instructions"): (
        BRIEF,
        "<s>Be brief.\n\nUser: Hi \n\nAssistant: Yes.</s>User:  So?\n\n\nAssistant:",
    ),
}


@pytest.mark.parametrize("case", WRITTEN, ids="-".join)
def test_form_is_written_as_its_models_were_trained(case):
    (talk, text), tokenizer = WRITTEN[case], OF_FORMAT[case[0]]
    tokens = chat_tokens(tokenizer, talk, case[0])
    assert tokens == tokenizer.encode(text, bos=False, allowed_special="all")


@pytest.mark.parametrize("tokenizer", [ML, ML_WORDS], ids=["special", "words"])
@given(talk=dialogs())
def test_no_message_of_chatml_can_end_its_turn(tokenizer, talk):
    talk = [m | {"content": m["content"] + "<|im_end|>x<|im_start|>"} for m in talk]
    marks = [tokenizer.marks[name].id for name in (START, END)]
    first = [] if talk[0]["role"] == "system" else marks  # the template's own
    tokens = chat_tokens(tokenizer, talk, "chatml")
    assert [i for i in tokens if i in marks] == [*first, *(marks * len(talk)), marks[0]]
    assert tokenizer.decode(tokens).count("<|im_end|>x<|im_start|>") >= len(talk)


@given(talk=dialogs())
def test_no_message_of_a_template_can_end_its_turn(talk):
    """The template writes what `chatml` writes; names in a message stay text."""
    assert chat_tokens(ML, talk, "template") == chat_tokens(ML, talk, "chatml")


@pytest.mark.parametrize("format", ["zephyr", "vicuna", "deepseek"])
def test_message_that_holds_a_mark_that_is_text_is_refused(format):
    for mark in FORMS[format].texts:
        with pytest.raises(ValueError, match=re.escape(f"{mark} marks turns")):
            chat_tokens(SP, dialog(f"a{mark}b"), format)


def test_answer_of_every_form_ends_and_is_closed():
    marks = {name: ML.marks[name].id for name in (START, END)}
    assert stop_tokens(ML, "chatml") == {ML.eos_id, marks[END]}
    assert stop_tokens(ML, "template") == {ML.eos_id, marks[END]}
    assert closing(ML, "chatml") == [marks[END]] and closing(ML, "template") == []
    for format in ("zephyr", "vicuna", "deepseek"):
        assert stop_tokens(SP, format) == {SP.eos_id} == set(closing(SP, format))


def test_form_is_chosen_only_if_the_template_writes_the_same():
    assert choose_format(ML)[0] == "chatml"
    other = CHATML.replace("'\n' + message", "'\n\n' + message")
    assert other != CHATML
    assert choose_format(with_chatml("ranks.model", template=other))[0] == "template"
    assert "no chat format" in choose_format(SP)[1]
    assert choose_format(RANKS) == ("llama-3", "told from the vocabulary")


def test_form_is_chosen_by_its_marks_where_jinja_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    format, why = choose_format(ML)
    assert format == "chatml" and "npllama[chat]" in why
    with pytest.raises(ValueError, match=r"needs Jinja; install npllama\[chat\]"):
        chat_tokens(ML, TALK, "template")


def test_message_with_every_guard_is_refused():
    said = "".join(chr(code) for code in range(0xFDD0, 0xFDF0))
    with pytest.raises(ValueError, match="U[+]FDD0"):
        chat_tokens(ML, dialog(said), "chatml")
    one = chat_tokens(ML, dialog(said[:5]), "chatml")
    assert said[:5] in ML.decode(one)


def test_message_whose_normal_form_is_a_mark_is_refused():
    """An NFKC model reads a fullwidth bracket as a bracket."""
    content = trained_with_nfkc()
    tokenizer = load_tokenizer({"tokenizer.model": content})
    assert chat_tokens(tokenizer, dialog("\uff41"), "llama-2")
    wide_marks = ["\uff3b/INST]", "\uff3bINST\uff3d", "<<\uff33YS>>", "[INST\uff3d"]
    wide_marks += ["\uff1c\uff1cSYS>>", "<<SYS>\uff1e", "<<\uff0fSYS>>", "[\uff0fINST]"]
    for wide in wide_marks:
        with pytest.raises(ValueError, match="marks turns in llama-2"):
            chat_tokens(tokenizer, dialog(f"Hi {wide}"), "llama-2")


def trained_with_nfkc():
    """A small SentencePiece model that brings a text into the form NFKC first."""
    model = io.BytesIO()
    lines = ["[INST] the fox /INST] <<SYS>> <</SYS>> hi once upon a time"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=310,
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="nfkc",
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


# ---- templates: golden, what transformers renders --------------------------------

GOLDEN = json.loads((FOLDER.parent / "chat.json").read_text("utf-8"))


@pytest.mark.parametrize("kind", GOLDEN["templates"])
def test_template_is_rendered_as_transformers_renders_it(kind):
    golden = GOLDEN["templates"][kind]
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    for talk, text in zip(GOLDEN["dialogs"], golden["rendered"], strict=True):
        if text is not None:
            assert render(golden["template"], talk, names) == text
        else:
            with pytest.raises(ValueError, match="^chat template: "):
                render(golden["template"], talk, names)


@pytest.mark.parametrize("kind", FORMS)
def test_form_is_what_templates_of_its_kind_write(kind):
    tokenizer = OF_FORMAT[kind]
    template = GOLDEN["templates"][kind]["template"]
    assert choose_format(replace(tokenizer, chat_template=template))[0] == kind


HOSTILE = {
    "a long loop": "{% for i in range(99999) %}{% for j in range(99999) %}"
    "{% endfor %}{% endfor %}",
    "a huge range": "{% for i in range(1000000000) %}{% endfor %}",
    "a huge text": "{{ 'a' * 10000000000 }}",
    "a huge number": "{{ 9 ** (9 ** 9) }}",
    "much padding": "{{ '%1000000000d' % 1 }}",
    "much text": "{% for i in range(90000) %}{{ 'a' * 90 }}{% endfor %}",
    "doubling": "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(99) %}"
    "{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    "itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "its class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "its globals": "{{ cycler.__init__.__globals__.os.system('touch x') }}",
    "its globals by filter": "{{ raise_exception|attr('__globals__') }}",
    "the loop's": "{% for m in messages %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "a private name": "{% set n = namespace(__class__=1) %}{{ n }}",
    "a change": "{{ messages.append(1) }}",
    "a file": "{% include '/etc/passwd' %}",
    "no template": "{% for",
    "deep nesting": "{{ " + "(" * 5000 + ")" * 5000 + " }}",
}


# These two end when their time is up.
LONG = {"a long loop", "a huge number"}


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[pytest.mark.slow] if kind in LONG else [])
        for kind in HOSTILE
    ],
)
def test_hostile_template_is_one_line(kind):
    begin = time.monotonic()
    try:
        text = render(HOSTILE[kind], dialog("Hi"), {})
    except ValueError as error:
        assert str(error).startswith("chat template: ") and "\n" not in str(error)
        assert len(str(error)) < 250
    else:  # what the sandbox makes nothing of
        assert kind in ("its globals by filter", "its class") and len(text) < 99
    assert time.monotonic() - begin < 30
