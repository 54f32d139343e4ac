"""How many threads each of several processes gets."""

from __future__ import annotations

import os


def threads(at_once: int) -> int:
    """Torch threads of each of so many processes: a part of the cores, or fewer if the user wants so."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    part = max(1, cores // at_once)
    return min(part, int(wanted)) if wanted.isdigit() and int(wanted) else part
