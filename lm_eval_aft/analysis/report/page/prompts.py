"""The prompts of aggregation layers, made again from a trace.

A trace holds the texts and the digest of the template, not the template. So a prompt can be made again for the default
template and for those of the bundled checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lm_eval_aft.bundled import FOLDER, NAMES
from lm_eval_aft.core.errors import AFTError
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.core.records import Trace
from lm_eval_aft.inference.checkpoint import FILE, CheckpointConfig

# By their digest.
Templates = Mapping[str, Template]


def known_templates() -> Templates:
    """The default template and those of the bundled checkpoints, by their digest."""
    configs = (CheckpointConfig.load(path) for name in NAMES if (path := FOLDER / name / FILE).is_file())
    templates = [Template.load(None), *(Template(config.template, "bundled") for config in configs)]
    return {template.digest: template for template in templates}


def layer_prompts(trace: Trace, spoken: Sequence[str], templates: Templates) -> tuple[str, ...]:
    """What each aggregation layer got as its system message, with the texts that it read.

    Args:
        trace: The trace.
        spoken: The trace's texts without their thoughts, in order.
        templates: See ``known_templates``.

    Returns:
        A text for each layer; none if the prompts cannot be made again: another template, a probe or ``carry`` that
        changed the drafts, texts that read a subset, a selection, or drafts that were cut to fit the context.
    """
    settings = trace.settings
    reader = settings.get("aggregator") or settings
    template = templates.get(str((reader.get("template") or {}).get("sha256")))
    usual = {"strategy": "aggregate", "probe": "none", "carry": "text"}
    as_usual = all(settings.get(name, value) == value for name, value in usual.items()) and not trace.subsets
    if template is None or not as_usual or any(map(any, trace.cut_tokens)):
        return ()
    depth = max(draft.layer for draft in trace.drafts)
    read = [[text for draft, text in zip(trace.drafts, spoken, strict=True) if draft.layer == n] for n in range(depth)]
    try:
        return tuple(_system_message(template, trace, texts) for texts in read)
    except AFTError:
        # A template may refuse texts that the tokenizer would have cleaned.
        return ()


def _system_message(template: Template, trace: Trace, texts: Sequence[str]) -> str:
    kept = [text.strip() for text in texts if text.strip()]
    chat = template.aggregate_chat(trace.question.chat, kept) if kept else template.draft_chat(trace.question.chat)
    first = chat.messages[0]
    return first.content if first.role == "system" else ""
