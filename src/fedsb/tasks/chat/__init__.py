"""Conversations: read from rows in the shapes that people have, laid out by a chat template, learnt.

`refusal` is for the other tasks, which cannot read them.
"""
