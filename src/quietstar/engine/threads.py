"""How many threads a command computes with.

Two threads that compute small products spend their time waiting for each other, and on a busy machine more threads than
free cores make everything many times slower. The default is therefore OMP_NUM_THREADS, or else the cores
this process may use (its affinity, the quota of its container) less what other programs keep busy, at least one; one
for models too narrow to gain from more. Knows cores and loads; knows nothing about models but their width.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

NARROW = 256  # hidden sizes below this gain nothing from a second thread
_CGROUP = Path("/sys/fs/cgroup")


def cores() -> int:
    """Cores this process may use: by its affinity, and by the quota of its control group."""
    try:
        found = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        found = os.cpu_count() or 1
    quota = _quota()
    return max(1, found if quota is None else min(found, math.ceil(quota)))


def _quota() -> float | None:
    """Cores that the control group allows (version 2, or 1), None where it sets no limit."""
    try:
        most, period = (_CGROUP / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            most = (_CGROUP / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (_CGROUP / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    try:
        return int(most) / int(period) if most not in ("max", "-1") else None
    except (ValueError, ZeroDivisionError):
        return None


def sensible(width: int | None = None) -> int | None:
    """Threads for a model whose hidden size is `width`; None where OMP_NUM_THREADS decides already."""
    if os.environ.get("OMP_NUM_THREADS"):
        return None
    if width is not None and width < NARROW:
        return 1
    have = cores()
    try:
        busy = os.getloadavg()[0]  # other programs, mostly: this one has only begun
    except (AttributeError, OSError):
        busy = 0.0
    return max(1, min(have, math.floor(have - busy + 0.5)))


def use(count: int | None, width: int | None = None) -> None:
    """Let torch compute with `count` threads, or with a sensible number where it is None."""
    import torch

    chosen = sensible(width) if count is None else count
    if chosen is not None and chosen != torch.get_num_threads():
        torch.set_num_threads(chosen)
