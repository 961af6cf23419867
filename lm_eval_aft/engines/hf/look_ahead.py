"""Proposes the next tokens of a text, if the text repeats its prompt.

An aggregated text often repeats the drafts in its prompt. One forward pass over proposed tokens gives the logits of all
their positions. The engine draws each position with the noise of its seed and step, and keeps the tokens as long as
they agree with the proposal. So the proposal decides the number of forward passes, and not the text. Proposals from
the prompt are those of "prompt lookup decoding" (Saxena 2023) and of LLMA (Yang et al. 2023, arXiv 2304.04487).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

# The longest proposal. A longer one saves few forward passes, and a wrong one costs more.
MOST_PROPOSED = 16


class PromptIndex:
    """Where each token stands in a prompt.

    Attributes:
        token_ids: The prompt.
        positions: The positions of each token id.
    """

    def __init__(self, token_ids: Sequence[int]) -> None:
        """Index a prompt."""
        self.token_ids = token_ids
        self.positions: dict[int, list[int]] = defaultdict(list)
        for position, token in enumerate(token_ids):
            self.positions[token].append(position)


class Proposer:
    """Proposes the continuation that the prompt shows after the longest suffix of a text.

    A proposal has as many tokens as the prompt has predicted in a row, or half as many as match if these are more. So a
    text that does not repeat its prompt gets none.
    """

    def __init__(self, index: PromptIndex) -> None:
        """Start an empty text after a prompt."""
        self._index = index
        # For each position of the newest token in the prompt, how many tokens up to it are the end of the text.
        self._matches: dict[int, int] = {}
        self._expected: int | None = None
        self._streak = 0

    def add(self, token: int) -> None:
        """Take the next token of the text."""
        self._streak = self._streak + 1 if token == self._expected else 0
        before = self._matches
        self._matches = {place: before.get(place - 1, 0) + 1 for place in self._index.positions.get(token, ())}
        self._expected = next(iter(self._continuation(1)), None)

    def propose(self, most: int) -> list[int]:
        """The tokens that may follow, at most ``most``."""
        longest = max(self._matches.values(), default=0)
        return self._continuation(min(max(self._streak, longest // 2), MOST_PROPOSED, most))

    def _continuation(self, count: int) -> list[int]:
        """What follows the longest matches in the prompt. If they differ, the most frequent token follows."""
        longest = max(self._matches.values(), default=0)
        places = [place for place, length in self._matches.items() if length == longest]
        token_ids = self._index.token_ids
        tokens: list[int] = []
        while len(tokens) < count:
            places = [place + 1 for place in places if place + 1 < len(token_ids)]
            if not places:
                break
            token = Counter(token_ids[place] for place in places).most_common(1)[0][0]
            places = [place for place in places if token_ids[place] == token]
            tokens.append(token)
        return tokens
