"""Keep credentials out of what a run writes down, and forgotten text out of what it hands on."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.errors import DataError
from expunge.runs.store import stops_when_full

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


KEY_FILE = "redact.key"
"""Stays in the run directory; it never enters a report, a card or an export."""
_KEY_BYTES = 32


def redaction_key(run: Path) -> bytes:
    """The run's secret for keyed digests; made, readable by its owner only, when first asked for.

    Without it nobody can test a guess of the forgotten text against a digest; with it, whoever holds the run can show
    which digest belongs to which text.

    Raises:
        DataError: the key that lies there is not one.
        StoppedError: the disk is full.
        UsageError: the run directory cannot be written to.
    """
    path = run / KEY_FILE
    if not path.exists():
        with stops_when_full(path):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(secrets.token_hex(_KEY_BYTES) + "\n")
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (ValueError, OSError) as error:
        raise DataError(f"{path} is not a redaction key ({error})", hint="restore or delete it") from error
    if len(key) != _KEY_BYTES:
        raise DataError(f"{path} holds {len(key)} bytes, not {_KEY_BYTES}", hint="restore or delete it")
    return key


def keyed_digest(text: str, *, key: bytes, length: int = 16) -> str:
    """The first `length` hexadecimal digits of HMAC-SHA-256 of a text: equal texts have equal digests."""
    return hmac.new(key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:length]
