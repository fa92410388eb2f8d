"""A seeded text grammar: `[a|b|c]` picks one alternative (they nest), `{name}` inserts a slot.

`Dice` is SplitMix64, so that a seed gives the same text in every version of Python.
"""

import re

MASK = (1 << 64) - 1


class Dice:
    def __init__(self, seed):
        self.state = seed & MASK

    def below(self, n):
        """Uniform in 0..n; n is tiny beside 2^64, so the modulo's bias does not matter."""
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return (z ^ (z >> 31)) % n

    def pick(self, items):
        return items[self.below(len(items))]

    def some(self, items, n):
        """`n` different items, in random order."""
        left = list(items)
        return [left.pop(self.below(len(left))) for _ in range(n)]

    def chance(self, percent):
        return self.below(100) < percent


def alternatives(text):
    """Splits at the bars that stand outside every bracket."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c == "[") - (c == "]")
        if c == "|" and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return parts + [text[start:]]


def choose(text, dice):
    """Resolves every bracket, outermost first, so that unused alternatives roll no dice."""
    out, i = [], 0
    while i < len(text):
        if text[i] != "[":
            out.append(text[i])
            i += 1
            continue
        depth, end = 1, i + 1
        while depth:
            depth += (text[end] == "[") - (text[end] == "]")
            end += 1
        out.append(choose(dice.pick(alternatives(text[i + 1 : end - 1])), dice))
        i = end
    return "".join(out)


def say(text, slots, dice):
    """One title, sentence or paragraph: choices, then slots, then a capital at the start of every sentence.

    After a closing quotation mark only another quotation starts a sentence: `"Why?" "I forgot." "Oh!" said Pip.`
    """
    text = choose(text, dice).format(**slots)
    return re.sub(r'(^"?|[.!?] "?|[.!?]" ")([a-z])', lambda m: m[1] + m[2].upper(), text)


def with_article(noun):
    return ("an " if noun[0] in "aeiou" else "a ") + noun
