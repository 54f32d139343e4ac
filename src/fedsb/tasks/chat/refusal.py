"""A list of messages in a cell where another task expects text."""

from collections.abc import Mapping

FORMS = (("role", "content"), ("from", "value"))
"""Keys of a message: who says what, as the hub's chat data and as ShareGPT's have them."""


def form_of(value: object) -> tuple[str, str] | None:
    """The keys of the messages, if the value is a list of them; None of any other value."""
    messages = value if isinstance(value, list | tuple) else []
    for form in FORMS:
        if messages and all(isinstance(m, Mapping) and m.keys() >= set(form) for m in messages):
            return form
    return None


def chat_refusal(value: object) -> str | None:
    """What the value is and what to do about it, if it is a list of messages; None of any other value."""
    form = form_of(value)
    if form is None:
        return None
    return (
        f"a list of messages ({', '.join(form)}); set task.kind: chat, which reads them and needs no columns"
    )
