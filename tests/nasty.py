"""Texts that tokenizers are known to stumble over, drawn from a seed."""

import numpy as np

WORDS = """the Once upon fox café ſ K it's I'LL we've 'S 'ſ o'clock don't 12345 3.14
1e-5 ٣٤ ½ ⅷ ² 狐は古い木の下 赤い ball мяч गेंद पेड़ الكرة ὅτι ÅÄÖ e\u0301 한국어 \u1100\u1161
[INST] <<SYS>> <s> </s> <unk> <0x0A> <|eot_id|> <|im_start|> <|endoftext|> <| |>
def return x**2 != -> :: {}; https://a.b/c?d=e#f // 。 、 ！ ？ ～ ‘’ “” … — ・
👍🏽 👩‍👩‍👧 🇨🇭 \u200b \u200d \ufeff \u00a0 \u3000 \u2028 \x85 \x0b \x0c \x1c \x00 \x04 \x7f
\ufffd \u2047 \u2581 \u2581a \ud7ff \ue000 \U0010ffff \u0f00 \u1680 ﬁ Ａｂ １２ ㎏ Ω Å""".split(
    " "
)
WORDS = [word for line in WORDS for word in line.split("\n")]
SPACES = [" ", "", "  ", "\n", "\r\n", "\n\n", "\t", "   ", " \n ", "\u00a0", "    "]
RANGES = [(0, 128), (0, 0x250), (0x300, 0x700), (0x900, 0xE00), (0x2000, 0x2C00)]
RANGES += [(0x3000, 0xA000), (0xAC00, 0xD800), (0xF900, 0x10000), (0x10000, 0x20000)]


def nasty_texts(count, seed):
    """`count` texts: words, spaces and single characters, in any order."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield "".join(_part(rng) for _ in range(rng.integers(1, 12)))


def _part(rng):
    kind = rng.integers(8)
    if kind < 3:
        return str(rng.choice(WORDS))
    if kind < 5:
        return str(rng.choice(SPACES))
    if kind < 6:
        return str(rng.choice(WORDS))[:1] * int(rng.integers(1, 9))
    low, high = RANGES[rng.integers(len(RANGES))]
    codes = rng.integers(low, high, rng.integers(1, 4))
    return "".join(chr(c) for c in codes if not 0xD800 <= c < 0xE000)
