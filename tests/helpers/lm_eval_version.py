"""Which lm-eval the tests run with. 0.4 and 0.5 score some tasks differently."""

from __future__ import annotations

from importlib.metadata import version

# Version 0.5.0.dev1 reads a target that is a whole number as the index of a choice. It scores every text as wrong
# there, and refuses shots with such an answer. It also runs what a model wrote without --confirm_run_unsafe_code.
IS_0_5 = version("lm_eval").startswith("0.5")


def in_group(task: str, group: str) -> str:
    """The name of a task in the results of its group. Version 0.5 puts the group before it."""
    return f"{group}::{task}" if IS_0_5 else task
