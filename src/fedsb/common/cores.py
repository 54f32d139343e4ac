"""The cores of this machine that a process may use, and those that nothing else keeps busy."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

WAITING = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
"""A thread without work sleeps: spinning, it would take the core of another that has some. OpenMP looks at
this when torch is imported."""
LEAST_SECONDS = 0.1
"""Over which use is measured: the system counts it in hundredths of a second."""
QUOTAS = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Cores that this process may run on: those of its affinity, no more than the time its control group may
    have (Linux cgroups, versions 1 and 2)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *(math.ceil(quota) for quota in _quotas())]))


def _quotas() -> Iterator[float]:
    """Cores' worth of time that each group around this process may have; none where nothing limits it."""
    own = ""
    with suppress(OSError):
        lines = OWN_GROUP.read_text().splitlines()
        own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    for folder in (QUOTAS / own, *(QUOTAS / own).parents):
        with suppress(OSError, ValueError):  # also of "max", which is no limit
            quota, period = map(int, (folder / "cpu.max").read_text().split())
            yield quota / period
        if folder == QUOTAS:
            break
    with suppress(OSError, ValueError):
        quota, period = (int((QUOTAS / "cpu" / f"cpu.cfs_{n}_us").read_text()) for n in ("quota", "period"))
        if quota > 0:
            yield quota / period


@dataclass(frozen=True)
class Use:
    """Processor time used until now, from which use since then is told.

    Attributes:
        everybody: core-seconds of all processes of the machine.
        own: core-seconds of this process and its ended children.
        at: monotonic seconds.
    """

    everybody: float = field(default_factory=lambda: _busy_seconds())
    own: float = field(default_factory=lambda: sum(os.times()[:4]))
    at: float = field(default_factory=lambda: time.monotonic())

    def free_cores(self) -> int:
        """Usable cores that other processes left idle since then, to the nearest whole one; one at least."""
        time.sleep(max(0.0, LEAST_SECONDS - (time.monotonic() - self.at)))
        now = Use()
        others = (now.everybody - self.everybody - (now.own - self.own)) / (now.at - self.at)
        left = (os.cpu_count() or 1) - max(0.0, others)
        return max(1, min(usable_cores(), round(left)))


def _busy_seconds() -> float:
    import psutil

    times = psutil.cpu_times()
    return float(sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq")))
