"""The papers' tables as data, and ours beside them: `table` -> `reproduce` -> `page`.

A table is a file in `tables`: the paper's numbers with their source, the config and the arms of its rows, and
a small form of both that two cores can do.
"""
