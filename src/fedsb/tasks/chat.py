"""Chat data, a list of messages in one cell, which are not read yet."""

from collections.abc import Mapping

FORMS = (("role", "content"), ("from", "value"))
"""Keys of a message: who says what, as the hub's chat data and as ShareGPT's have them."""


def chat_refusal(value: object) -> str | None:
    """What the value is and what to do about it, if it is a list of messages; None of any other value."""
    messages = value if isinstance(value, list | tuple) else []
    for who, what in FORMS:
        if messages and all(isinstance(m, Mapping) and who in m and what in m for m in messages):
            return (
                f"a list of messages ({who}, {what}), and chat data are not read yet: write two columns of "
                "plain text, one with all before the last answer (the tokenizer's apply_chat_template makes "
                "it) and one with that answer"
            )
    return None
