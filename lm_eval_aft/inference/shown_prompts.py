"""What lm-eval's sample logs show of a request: the rendered prompt, and its messages beside it.

lm-eval logs the arguments of each request after the model has answered. Until then the first argument is the context
that the task gave, which may hold the messages of a chat as JSON. Afterwards it is the prompt as text, and a last
argument holds the messages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.instance import Instance

from lm_eval_aft.core.chat import decode
from lm_eval_aft.core.records import Chat


class ShownPrompt(str):
    """A prompt as text. It keeps the context that the task gave, so that the request can be answered again.

    Attributes:
        context: The context.
    """

    context: str

    @classmethod
    def of(cls, text: str, context: str) -> ShownPrompt:
        """Make a shown prompt."""
        shown = cls(text)
        shown.context = context
        return shown


def given_args(request: Instance) -> tuple[Any, ...]:
    """The arguments of a request as the task gave them, whether or not its prompt is shown."""
    args: tuple[Any, ...] = request.args
    return (args[0].context, *args[1:-1]) if args and isinstance(args[0], ShownPrompt) else args


def show_prompts(requests: Sequence[Instance], render: Callable[[Chat], str]) -> None:
    """Let the sample logs show the prompts of requests.

    Args:
        requests: Requests whose first argument is a context. An empty context stays as it is.
        render: The prompt of a context's chat, as text.
    """
    shown: dict[str, tuple[ShownPrompt, dict[str, Any]]] = {}
    for request in requests:
        context, *others = given_args(request)
        if not context:
            continue
        if context not in shown:
            chat = decode(context)
            messages = [message.to_dict() for message in chat.with_prefill]
            shown[context] = ShownPrompt.of(render(chat), context), {"messages": messages}
        prompt, beside = shown[context]
        request.arguments = (prompt, *others, beside)
