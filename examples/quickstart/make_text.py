"""Writes stories.txt and logbook.txt: the quickstart's two texts, grown from the grammars in this folder.

stories.txt: short stories of animals, weather and gardens, for pre-training.
logbook.txt: a ship's log, one entry a day in a fixed form, for fine-tuning.
Documents are separated by a line holding `<|endoftext|>`. The grammars were written for this project: the texts
have its licence.
"""

import argparse
from pathlib import Path

from logbook import voyages
from stories import story

from grammar import Dice

SEPARATOR = "\n<|endoftext|>\n"


def collect(documents, size_bytes):
    """Different documents until their bytes reach `size_bytes`."""
    kept, seen, total = [], set(), 0
    for text in documents:
        if text not in seen:
            seen.add(text)
            kept.append(text)
            total += len(text) + len(SEPARATOR)
        if total >= size_bytes:
            break
    return SEPARATOR.join(kept) + SEPARATOR


def endless(make, dice):
    while True:
        yield make(dice)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--stories-kib", type=int, default=500)
    parser.add_argument("--logbook-kib", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    args = parser.parse_args()
    stories = collect(endless(story, Dice(args.seed)), args.stories_kib * 1024)
    logbook = collect(voyages(Dice(args.seed + 1)), args.logbook_kib * 1024)
    (args.out / "stories.txt").write_text(stories, encoding="ascii", newline="\n")
    (args.out / "logbook.txt").write_text(logbook, encoding="ascii", newline="\n")


if __name__ == "__main__":
    main()
