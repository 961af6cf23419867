"""Check the prose of Markdown pages: `python tests/helpers/prose.py README.md docs` names each fault.

- A sentence has at most 30 words, and the sentences of all pages together at most 20 on average.
- No page uses a word of ``FORBIDDEN``.
- README.md has at most 150 lines.

Code, tables, headings, pictures and pages in lab-notes/ are left out when sentences are counted. A colon ends a
sentence, and so does the next item of a list. Code within a line counts as one word, and so does the dash of a first
item.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

MOST_WORDS = 30
MOST_WORDS_ON_AVERAGE = 20
MOST_README_LINES = 150
FORBIDDEN = (
    "opponent",
    "rescued",
    "corrupted",
    "mended",
    "goes on",
    "asked for",
    "told to",
    "by the clock",
    "look-up",
    "born",
    "what became of",
)

# Fenced blocks, and lines that are no prose: indented by four, tables, headings, HTML and pictures.
BLOCK = re.compile(r"```.*?```", re.DOTALL)
OTHER_LINE = re.compile(r"\s{4,}|\||#|<|!\[")
CODE = re.compile(r"`[^`]*`")
ADDRESS = re.compile(r"\]\([^)]*\)|https?://\S+")
FORBIDDEN_WORD = re.compile(rf"\b(?:{'|'.join(FORBIDDEN)})s?\b", re.IGNORECASE)


def sentences(page: str) -> list[str]:
    """The sentences of a page that have more than two words.

    Args:
        page: Text of a Markdown page.

    Returns:
        Sentences with words parted by one space, code replaced by the word ``code``.
    """
    lines = [line for line in BLOCK.sub("", page).split("\n") if not OTHER_LINE.match(line)]
    text = re.sub(r"\n\s*\n|\n[-*\d]", ". ", "\n".join(lines))
    parts = re.split(r"[.!?:](?:\s|$)", CODE.sub("code", text))
    return [" ".join(words).rstrip(".") for words in (part.split() for part in parts) if len(words) > 2]


def counted_sentences(name: str, page: str) -> list[str]:
    """The sentences of a page whose words are counted: none of a page in lab-notes/."""
    return [] if "lab-notes" in Path(name).parts else sentences(page)


def forbidden_words(page: str) -> list[str]:
    """The words of ``FORBIDDEN`` that a page uses outside code and addresses, tables and headings included."""
    text = ADDRESS.sub(" ", CODE.sub(" ", BLOCK.sub(" ", page)))
    return FORBIDDEN_WORD.findall(" ".join(text.split()))


def faults(name: str, page: str) -> list[str]:
    """What is wrong with the prose of one page, each fault with the name of the page."""
    long = [sentence for sentence in counted_sentences(name, page) if len(sentence.split()) > MOST_WORDS]
    found = [f"{name}: {len(sentence.split())} words in one sentence: {sentence}" for sentence in long]
    found += [f"{name}: do not write '{word}'" for word in forbidden_words(page)]
    lines = len(page.splitlines())
    if Path(name).name == "README.md" and "tasks" not in Path(name).parts and lines > MOST_README_LINES:
        found.append(f"{name}: {lines} lines, at most {MOST_README_LINES} are allowed")
    return found


def pages(names: list[str]) -> list[Path]:
    """The Markdown files among the names, and those below the folders."""
    return [
        file for name in names for file in ([Path(name)] if name.endswith(".md") else sorted(Path(name).rglob("*.md")))
    ]


def main(names: list[str]) -> int:
    """Print the counts of the pages and their faults. Returns 1 if there is a fault, else 0."""
    texts = {str(file): file.read_text(encoding="utf-8") for file in pages(names)}
    lengths = [len(sentence.split()) for name, text in texts.items() for sentence in counted_sentences(name, text)]
    mean = sum(lengths) / max(1, len(lengths))
    longer = sum(length > MOST_WORDS for length in lengths)
    print(
        f"{len(texts)} pages, {sum(lengths)} words, mean {mean:.1f}, longest {max(lengths, default=0)}, "
        f"over {MOST_WORDS}: {longer}"
    )
    found = [fault for name, text in texts.items() for fault in faults(name, text)]
    if mean > MOST_WORDS_ON_AVERAGE:
        found.append(f"{mean:.1f} words a sentence on average, at most {MOST_WORDS_ON_AVERAGE} are allowed")
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
