"""Requests of lm-eval, for tests that call the model themselves."""

from __future__ import annotations

from typing import Any

from lm_eval.api.instance import Instance

from helpers.lm_eval_version import IS_0_5


def make_instance(
    request_type: str,
    doc: dict[str, Any],
    arguments: tuple[Any, ...],
    idx: int = 0,
    metadata: tuple[str, int, int] = ("t", 0, 1),
    **others: Any,
) -> Instance:
    """Make a request. lm-eval 0.4 reads the metadata alone, and 0.5 also wants two of its parts by name.

    Args:
        request_type: Such as generate_until.
        doc: The document.
        arguments: The context, and the generation settings or the continuation.
        idx: Position among the requests of the document.
        metadata: Name of the task, row of the document, number of repeats.
        others: Further fields of lm-eval's Instance.
    """
    task, row, _ = metadata
    return Instance(
        request_type=request_type,
        doc=doc,
        arguments=arguments,
        idx=idx,
        metadata=metadata,
        task_name=task,
        doc_id=row,
        **others,
    )


def rolling_arguments(text: str) -> tuple[str, ...]:
    """The arguments of a request for loglikelihood_rolling. lm-eval 0.5 puts a context before the text."""
    return ("", text) if IS_0_5 else (text,)
