"""Notices certificates that were renewed."""

from __future__ import annotations

import sys
from dataclasses import replace

from cnclip_server._errors import SettingError
from cnclip_server._settings import Tls


class Renewals:
    """Notices a renewed certificate, which tritonserver reads at its start alone."""

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._taken = self._seen = tls.stamp()

    def are_there(self) -> bool:
        """Whether the files were replaced since, and can be used; of those that cannot it is told once.

        To be called every second: files that change between two looks are left to the next.
        """
        before, self._seen = self._seen, self._tls.stamp()
        if self._seen == self._taken or self._seen != before:
            return False
        self._taken = self._seen
        try:
            replace(self._tls)
        except SettingError as error:  # half renewed: the other half comes
            print(f"warning: the renewed certificate is not taken yet: {error}", file=sys.stderr, flush=True)
            return False
        return True
