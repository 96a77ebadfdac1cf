"""How many generated inputs a fuzz test tries: a fixed budget by default, `QUIETSTAR_FUZZ` times as many on demand."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings

TIMES = max(1, int(os.environ.get("QUIETSTAR_FUZZ", "1")))


def fuzz(examples: int) -> Callable:
    """Decorate a `@given` test: marks it `fuzz` and tries `examples` inputs, times `QUIETSTAR_FUZZ`."""

    def decorate(test: Callable) -> Callable:
        limits = settings(
            max_examples=examples * TIMES, deadline=None, print_blob=True,
            suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
        )  # fmt: skip
        timed = pytest.mark.timeout(600 * TIMES)(limits(test))
        return pytest.mark.fuzz(timed)

    return decorate
