"""Keep credentials out of what a run writes down."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

REDACTED = "[redacted]"

_SECRET_KEY = re.compile(
    r"(^|[_\-.])(token|hf_token|secret|password|passwd|credentials?|authorization|api_?key|access_?key|private_?key)$",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(r"\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_\-]{16,}|gh[pousr]_[A-Za-z0-9]{16,})")
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")


def redact(value: Any) -> Any:
    """`value` with every credential replaced by `[redacted]`, at any depth.

    A credential is what stands under a key such as `hf_token`, `api_key` or `password` (not `token_budget`), what
    looks like an access token, or what stands before the `@` of a URL.
    """
    if isinstance(value, Mapping):
        return {
            key: REDACTED if _SECRET_KEY.search(str(key)) and item is not None else redact(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    if isinstance(value, str):
        return _USERINFO.sub(f"{REDACTED}@", _SECRET_VALUE.sub(REDACTED, value))
    return value
