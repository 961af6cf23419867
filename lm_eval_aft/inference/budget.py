"""Bounds of what a run or a command may cost: ``max_generated_tokens`` and ``max_cost``.

A run counts all its generations once, whether it generated them now or found them in the draft store. So the same
command stops at the same bound again and pays nothing, and with a higher bound it resumes. Generations that are stored
already are used even beyond a bound.
"""

from __future__ import annotations

from dataclasses import dataclass

from lm_eval_aft.core.records import Completion
from lm_eval_aft.core.usage import TokenCosts


class Budget:
    """What the generations of a run may cost, and what they cost so far."""

    def __init__(
        self, max_generated_tokens: int | None = None, max_cost: float | None = None, processes: int = 1
    ) -> None:
        """Begin to count.

        Args:
            max_generated_tokens: Most generated tokens; None for no bound.
            max_cost: Most that the tokens may cost; None for no bound.
            processes: Number of processes that share the run. Each has an equal part of the bounds.
        """
        self._max_tokens, self._max_cost, self._processes = max_generated_tokens, max_cost, processes
        self._tokens, self._cost = 0, 0.0

    def add(self, prompt_tokens: int, generated_tokens: int, costs: TokenCosts | None) -> None:
        """Count a generation, by what a million tokens of its model cost."""
        self._tokens += generated_tokens
        self._cost += costs.of(prompt_tokens, generated_tokens) if costs else 0.0

    def reached(self) -> tuple[str, str] | None:
        """The bound that is reached and what is spent, such as ("max_cost", "max_cost=2 is reached: 2.01 are spent").

        None if no bound is reached.
        """
        share = f" in one of {self._processes} processes" * (self._processes > 1)
        tokens, cost = self._max_tokens, self._max_cost
        if tokens is not None and self._tokens * self._processes >= tokens:
            name, spent = f"max_generated_tokens={tokens}", f"{self._tokens:,} tokens are generated"
            return "max_generated_tokens", f"{name} is reached: {spent}{share}"
        if cost is not None and self._cost * self._processes >= cost:
            return "max_cost", f"max_cost={cost:g} is reached: {self._cost:,.6g} are spent{share}"
        return None


@dataclass(frozen=True, slots=True)
class Meter:
    """Counts the generations of one model.

    Attributes:
        budget: What it counts towards.
        costs: What a million tokens of the model cost; None if that is unknown.
    """

    budget: Budget
    costs: TokenCosts | None = None

    def add(self, completion: Completion) -> None:
        """Count a generation."""
        self.budget.add(completion.prompt_tokens, completion.generated_tokens, self.costs)
