"""The one way this package writes JSON that others read: valid JSON, in which a number that is not finite is null.

JSON has no NaN and no infinity; Python writes them all the same, and other readers stop there.
"""

from __future__ import annotations

import json
import math
from typing import Any


def to_json(value: Any, *, indent: int | None = None, ascii_only: bool = False) -> str:
    """`value` as JSON text; numbers that are not finite become null, characters stay as they are unless `ascii_only`.

    Raises:
        TypeError: something JSON has no form for.

    >>> to_json({"kl": float("nan"), "text": "größer"})
    '{"kl": null, "text": "größer"}'
    """
    return json.dumps(_finite(value), indent=indent, ensure_ascii=ascii_only, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return value
