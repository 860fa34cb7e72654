"""Keeps the machine's DNS out of the figures.

torch's TCPStore looks up the names of both ends of every connection. Many at once, as when a world forms, can be more than
the DNS server of the machine answers in time, and each loss is a pause of 5 s, whatever the backend.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_NSSWITCH = "/etc/nsswitch.conf"
_CLONE_NEWNS = 0x20000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000


def only_from_files(directory: Path) -> None:
    """From now on this process, and those it starts, find names in /etc/hosts only. Call it before a name was looked up.

    Raises:
        OSError: that needs to be root.
    """
    settings = directory / "nsswitch.conf"
    settings.write_text("hosts: files\npasswd: files\ngroup: files\n")
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.unshare(_CLONE_NEWNS))
    _check(libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None))
    _check(libc.mount(str(settings).encode(), _NSSWITCH.encode(), None, _MS_BIND, None))


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
