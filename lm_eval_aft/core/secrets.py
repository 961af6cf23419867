"""Names of secrets: arguments whose values no file and no message may show."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lm_eval_aft.core.errors import ConfigError

KEY_VARIABLE = "OPENAI_API_KEY"  # the environment variable that holds the key of a server or judge
# api_key, hf_token, Authorization, ..., but not add_bos_token, think_end_token or tokenizer.
_SECRET = re.compile(
    r"(^|[^a-z])keys?([^a-z]|$)|apikey|secret|passw|authorization|bearer|(?<!bos_)(?<!eos_)(?<!pad_)(?<!end_)token$",
    re.IGNORECASE,
)


def is_secret(name: str) -> bool:
    """Whether an argument of this name holds a secret."""
    return _SECRET.search(name) is not None


def refuse_secrets(names: Iterable[str], place: str) -> None:
    """Refuse secrets among the names of arguments. The message does not show the value.

    Args:
        names: The arguments that were given.
        place: Where they were given, such as "--metadata".

    Raises:
        ConfigError: On the first name of a secret.
    """
    for name in names:
        if is_secret(name):
            raise ConfigError(
                f"{name} must not be given in {place}, which is written into result files: set the environment "
                f"variable {KEY_VARIABLE} instead."
            )
