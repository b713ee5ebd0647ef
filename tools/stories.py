"""Little stories: a seeded grammar that writes them, and a checker that reads them.

    python tools/stories.py --n 3 --seed 0        write three stories
    python tools/stories.py --check stories.txt   check stories, one per line

A story tells of somebody who wants something, looks for it, meets trouble and a
helper, and finds it.  It is written from a plot: a list of parts, each a choice of
templates whose slots, in braces, are filled with words.  A slot that was filled
once keeps its filling to the end of the story, and pronouns follow the names; that
is what makes an ending follow from its beginning.

The checker is the same grammar read backwards: a text is a story if, and only if,
it can be derived from some plot with one filling of every slot.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

#  ---- words ------------------------------------------------------------------

GIRLS = "Lily Mia Anna Rosie Ella Nora Ruby Tess Ivy Clara".split()
BOYS = "Tom Ben Max Sam Leo Finn Otto Jack Hugo Paul".split()


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


WORDS: dict[str, list[str]] = {
    "name": GIRLS + BOYS,
    "kind": "mouse rabbit bear fox cat duck hedgehog frog squirrel beaver".split(),
    "trait": "little brave curious gentle clever shy cheerful sleepy".split(),
    "home": _lines("""
        in a house by the sea
        under the roots of a big tree
        on a green hill
        in a village behind the mountains
        near a quiet lake
        at the edge of the forest"""),
    "hobby": _lines("""
        sing to the birds
        count the stars
        paint stones
        bake small cakes
        climb trees
        watch the clouds
        read old books
        dance in the rain"""),
    "day": _lines("""
        One morning
        One cold day
        One summer evening
        On the first day of spring
        One windy afternoon"""),
    "color": "red blue green yellow white golden".split(),
    "gift": "ribbon kite ball drum scarf lantern boat hat".split(),
    "lost": "key ring button bell coin whistle spoon cup".split(),
    "tool": "rope needle ladder hammer brush basket".split(),
    "junk": _lines("""
        an old shoe
        a sleeping snail
        a heap of leaves
        a broken plate
        a spider in its web
        dust and a feather
        a pile of sand"""),
    "near": _lines("""
        under the bed
        in the kitchen
        behind the door
        in the garden
        on the shelf
        in the attic"""),
    "spot": _lines("""
        under the bridge
        behind the mill
        in the hollow log
        beside the well
        on top of the wall
        in the tall grass
        inside the cave
        between two rocks"""),
    "trouble": _lines("""
        it began to rain
        a thick fog came up
        the wind blew hard
        the sun went down
        the path came to an end"""),
    "feeling": "sad tired worried afraid lonely".split(),
    "helper_kind": "owl crow goat turtle deer mole swan bee".split(),
    "helper_trait": "wise grey friendly tiny tall kind".split(),
    "helper": "Pip Hazel Bruno Willow Oscar Fern Moss Pearl".split(),
    "work": _lines("""
        carry some wood
        pick some berries
        sweep the floor
        mend the fence
        fill a bucket with water
        find a lost egg"""),
    "joy": [
        "laughed",
        "jumped for joy",
        "clapped",
        "smiled from ear to ear",
        "cheered",
    ],
    "meal": ["soup", "honey cake", "warm bread", "apple pie", "berries and cream"],
    "moral": _lines("""
        never gave up again
        slept well that night
        told everybody the story
        was never lonely again
        sang all the way home"""),
}

# Every thing has its purpose: for whom it is, and what of theirs it mends.
KIN = dict(
    zip(
        WORDS["gift"] + WORDS["tool"],
        "sister brother cousin mother grandmother father uncle aunt".split()
        + "grandfather grandmother uncle father mother aunt".split(),
    )
)
BROKEN = dict(zip(WORDS["tool"], "cart bed roof gate chair nest".split()))

# Pronouns are slots that the name decides; a capital begins a sentence.
SHE = {"They": "She", "they": "she", "them": "her", "their": "her"}
HE = {"They": "He", "they": "he", "them": "him", "their": "his"}

#  ---- plots ------------------------------------------------------------------

OPENING = _lines("""
    Once upon a time there was a {trait} {kind} named {name}, who lived {home}.
    Once upon a time, a {trait} {kind} called {name} lived {home}.
    Long ago, {home}, there lived a {trait} {kind} named {name}.
    There once was a {kind} named {name}. {They} was very {trait}, and {they} lived {home}.
    {name} was a {trait} {kind} who lived {home}.""")
HABIT = _lines("""
    {They} loved to {hobby}.
    Every day {they} would {hobby}.
    What {they} liked best was to {hobby}.""")
SEARCH = _lines("""
    {They} looked {near}, but there was only {junk}.
    First {they} looked {near}. There was nothing but {junk}.
    {They} searched {near} and found {junk}, but no {thing}.""")
LEAVE = _lines("""
    So {name} put on {their} coat and went out into the world.
    So {they} went out to look for it.
    "I will look for a {thing} out there," said {name}, and off {they} went.""")
TROUBLE = _lines("""
    Then {trouble}, and {name} felt {feeling}.
    But soon {trouble}. {name} was {feeling}.
    After a while {trouble}, and {they} sat down on a stone, {feeling} and cold.""")
MEETING = _lines("""
    Just then a {helper_trait} {helper_kind} came by. "I am {helper}," said the {helper_kind}. "What are you looking for?"
    There {they} met {helper}, a {helper_trait} {helper_kind}. "Why are you so {feeling}?" asked {helper}.
    A {helper_trait} {helper_kind} named {helper} saw {them}. "Can I help you?" asked {helper}.""")
BARGAIN = _lines("""
    "Help me to {work}, and I will tell you where to look," said {helper}. So {name} helped {helper} to {work}. "Thank you," said {helper}. "Look {spot}."
    "I know of one," said {helper}. "But first I must {work}." "I will help you," said {name}, and {they} did. Then {helper} said, "You will find it {spot}."
    "I saw one {spot}," said {helper}. {name} thanked the {helper_kind} and went on.""")
FINDING = _lines("""
    {name} looked {spot}, and there it was: the {color} {thing}!
    And there, {spot}, lay the {color} {thing}. {name} {joy}.
    {They} ran as fast as {they} could. {spot:cap} lay the {color} {thing}, and {they} {joy}.""")

GIFT_WANT = _lines("""
    {day}, {name} wanted to give {their} {kin} a {color} {thing}.
    {day} it was the birthday of {their} {kin}, and {name} wanted to bring a {color} {thing}.""")
GIFT_ASKING = _lines("""
    "I am looking for a {color} {thing} for my {kin}," said {name}.
    "My {kin} wishes for a {color} {thing}," said {name}. "Have you seen one?"
    {name} told {helper} about {their} {kin} and the {color} {thing}.""")
GIFT_HOPE = _lines("""
    "How glad my {kin} will be!" said {name}.
    "This is for my {kin}," {they} said.""")
GIFT_END = _lines("""
    {They} took it home and gave it to {their} {kin}. "A {color} {thing}!" said {their} {kin}. "It is just what I wished for." They ate {meal} together, and {name} {moral}.
    At home, {name} put the {thing} into the hands of {their} {kin}, who {joy2} and made {meal}. And {name} {moral}.""")
LOST_WANT = _lines("""
    {day}, {name} could not find {their} {color} {thing}.
    {day}, {name} lost {their} {color} {thing}, and {they} wanted it back.""")
LOST_ASKING = _lines("""
    "I am looking for a {color} {thing}," said {name}.
    {name} told {helper} about the {color} {thing}.
    "Have you seen a {color} {thing}?" asked {name}.""")
LOST_END = _lines("""
    {They} held the {thing} tight and never lost it again. At home there was {meal}, and {name} {moral}.
    "Now I will take good care of you," {they} said to the {thing}. {They} shared {their} {meal} with {helper}, and {name} {moral}.""")
MEND_WANT = _lines("""
    {day}, the {broken} of {their} {kin} broke, and {name} needed a {color} {thing} to mend it.
    {day}, {name} heard that the {broken} of {their} {kin} was broken. "I need a {color} {thing}," {they} said.""")
MEND_ASKING = _lines("""
    "I need a {color} {thing} to mend the {broken} of my {kin}," said {name}.
    "The {broken} of my {kin} is broken," said {name}. "Have you seen a {color} {thing}?"
    {name} told {helper} about the {broken} of {their} {kin} and the {color} {thing}.""")
MEND_HOPE = _lines("""
    "Now I can mend the {broken} of my {kin}," said {name}.
    "My {kin} will have a good {broken} again," {they} said.""")
MEND_END = _lines("""
    With the {thing} {they} mended the {broken}. {their:cap} {kin} {joy2} and made {meal}, and {name} {moral}.
    {name} carried the {thing} home and worked until the {broken} was as good as new. "Thank you," said {their} {kin}. They ate {meal}, and {name} {moral}.""")

_BEGIN, _WAY, _HELP = (
    [OPENING, HABIT],
    [SEARCH, LEAVE, TROUBLE, MEETING],
    [BARGAIN, FINDING],
)
PLOTS: dict[str, list[list[str]]] = {
    "gift": [*_BEGIN, GIFT_WANT, *_WAY, GIFT_ASKING, *_HELP, GIFT_HOPE, GIFT_END],
    "lost": [*_BEGIN, LOST_WANT, *_WAY, LOST_ASKING, *_HELP, LOST_END],
    "tool": [*_BEGIN, MEND_WANT, *_WAY, MEND_ASKING, *_HELP, MEND_HOPE, MEND_END],
}
SLOT = re.compile(r"\{(\w+)(:cap)?\}")


def words_of(slot: str, plot: str) -> list[str]:
    """What may fill a slot; the thing wanted depends on the plot."""
    return WORDS[{"thing": plot, "joy2": "joy"}.get(slot, slot)]


def filling_of(slot: str, filled: dict[str, str]) -> str | None:
    """The word that a slot must have: it was filled before, or another decides it."""
    if slot in SHE and "name" in filled:
        return (SHE if filled["name"] in GIRLS else HE)[slot]
    if slot in ("kin", "broken"):
        return (KIN if slot == "kin" else BROKEN)[filled["thing"]]
    return filled.get(slot)


def capital(text: str) -> str:
    """The text as it begins a sentence."""
    return text[0].upper() + text[1:]


#  ---- writing ----------------------------------------------------------------


def story(rng: np.random.Generator) -> str:
    """Write one story.

    Parameters
    ----------
    rng : np.random.Generator
        Equal generators write equal stories.

    Returns
    -------
    str
        One line, 80 to 160 words.
    """
    plot = str(rng.choice(list(PLOTS)))
    # Things come first: they decide for whom a story is, before they are named.
    filled = {"thing": str(rng.choice(words_of("thing", plot)))}
    parts = [fill(str(rng.choice(part)), plot, filled, rng) for part in PLOTS[plot]]
    return " ".join(parts)


def fill(
    template: str, plot: str, filled: dict[str, str], rng: np.random.Generator
) -> str:
    """Put words into the slots of a template.

    Writes into `filled`.
    """

    def word(match: re.Match) -> str:
        slot, cap = match.groups()
        chosen = filling_of(slot, filled)
        if chosen is None:
            chosen = filled[slot] = str(rng.choice(words_of(slot, plot)))
        return capital(chosen) if cap else chosen

    return SLOT.sub(word, template)


#  ---- reading ----------------------------------------------------------------


def check(text: str) -> list[str]:
    """Say what is wrong with a text; nothing, if it is a story of the grammar.

    Returns
    -------
    list of str
        One sentence for the place where every derivation fails.
    """
    furthest = 0
    begins = [(plot, thing) for plot in PLOTS for thing in words_of("thing", plot)]
    for plot, thing in begins:
        ways = derivations(text.strip(), plot, PLOTS[plot], 0, {"thing": thing})
        for at, rest in ways:
            if rest is None:
                return []
            furthest = max(furthest, at)
    where = text.strip()[furthest : furthest + 60].strip()
    if not where:
        return ["the story breaks off before its end"]
    return [f"no story of the grammar goes on with {where!r} at character {furthest}"]


def derivations(
    text: str, plot: str, parts: list[list[str]], at: int, filled: dict[str, str]
) -> Iterator[tuple[int, str | None]]:
    """Try every way to read `text` from `at` on as the given parts.

    Yields
    ------
    (int, None)
        When all of it was read.
    (int, str)
        How far one way led, and the part it led to.
    """
    if not parts:
        yield at, None if at == len(text) else "end"
        return
    # One space, no more and no less, stands between two parts.
    space = " " if at else ""
    for template in parts[0]:
        for end, more in matches(text, at, space + template, plot, filled):
            yield from derivations(text, plot, parts[1:], end, {**filled, **more})
    yield at, "none"


def matches(
    text: str, at: int, template: str, plot: str, filled: dict[str, str]
) -> Iterator[tuple[int, dict[str, str]]]:
    """Every reading of one template: where it ends, and how its slots are filled."""
    slot = SLOT.search(template)
    if slot is None:
        if text.startswith(template, at):
            yield at + len(template), {}
        return
    before, after = template[: slot.start()], template[slot.end() :]
    if not text.startswith(before, at):
        return
    at += len(before)
    known = filling_of(slot[1], filled)
    for word in words_of(slot[1], plot) if known is None else [known]:
        shown = capital(word) if slot[2] else word
        if text.startswith(shown, at):
            now = filled if known is not None else {**filled, slot[1]: word}
            for end, more in matches(text, at + len(shown), after, plot, now):
                yield end, {**({slot[1]: word} if known is None else {}), **more}


#  ---- command line -----------------------------------------------------------


def natural(text: str) -> int:
    """Read a whole number that is not negative."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative; give 0 or more")
    return number


def check_lines(file: Path) -> int:
    """Print a line for every error in a file of stories; return the exit code."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        print(f"stories: {file}: {error}", file=sys.stderr)
        return 1
    told = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not told:
        print(f"stories: {file}: no story in it; give one per line", file=sys.stderr)
        return 1
    wrong = [(number, fault) for number, line in told for fault in check(line)]
    for number, fault in wrong:
        print(f"{file}:{number}: {fault}", file=sys.stderr)
    return 1 if wrong else 0


def main(argv: list[str] | None = None) -> int:
    """Write stories, or check some; return the exit code."""
    parser = argparse.ArgumentParser(description="Write or check little stories.")
    parser.add_argument("--n", type=natural, default=1, help="how many to write")
    parser.add_argument("--seed", type=natural, default=0, help="of the first story")
    parser.add_argument("--check", type=Path, metavar="FILE", help="one story per line")
    options = parser.parse_args(argv)
    if options.check is not None:
        return check_lines(options.check)
    rng = np.random.default_rng(options.seed)
    for _ in range(options.n):
        print(story(rng))
    return 0


if __name__ == "__main__":
    sys.exit(main())
