"""Takes passwords and keys out of what is shown: messages, logs and tracebacks."""

from __future__ import annotations

import contextlib
import logging
import re

_HIDDEN = "***"

# Whatever stands before the last "@" of an address's host; then a password with a "/" in it that nobody escaped.
_USER = re.compile(r"(\b[A-Za-z][A-Za-z0-9+.-]*://)(?:[^\s/?#'\"]*@|[^\s/@:'\"]+:[^\s@'\"]*@)")

# Keys of signed addresses: SAS tokens, presigned S3.
_KEY = re.compile(r"([?&;][\w.-]*(?:sig|token|key|secret|passw|pwd|cred)[\w.-]*=)[^&;\s'\"]+", re.IGNORECASE)


def without_secrets(text: str) -> str:
    """Gives a text in which addresses have no user, password or key."""
    return _KEY.sub(rf"\1{_HIDDEN}", _USER.sub(rf"\1{_HIDDEN}@", text))


class SecretlessFormatter(logging.Formatter):
    """Formats a record without secrets, its traceback included."""

    def format(self, record: logging.LogRecord) -> str:
        """Gives what is written."""
        return without_secrets(super().format(record))


def hide_secrets_in_logs() -> None:
    """Makes every record of this process secretless as it is made: libraries have handlers of their own."""
    make = logging.getLogRecordFactory()
    if getattr(make, "hides_secrets", False):
        return

    def secretless(*args: object, **kwargs: object) -> logging.LogRecord:
        record = make(*args, **kwargs)
        with contextlib.suppress(TypeError, ValueError):  # formatted badly by its library: logging says so itself
            record.msg, record.args = without_secrets(record.getMessage()), None
        return record

    secretless.hides_secrets = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(secretless)
