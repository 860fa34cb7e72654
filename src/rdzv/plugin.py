"""Entry points of group `torchrun.handlers`: how torch finds the backends that it does not have.

torch calls these when `torch.distributed.elastic.rendezvous` is imported, and answers any error here with a mere warning.
So hardly anything is imported before a handler is asked for.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from rdzv import last_words

if TYPE_CHECKING:
    from rdzv.backends import HandlerCreator


def kubernetes() -> HandlerCreator:
    """The creator of backend `kubernetes`.

    As torch asks for it in whatever runs torchrun, with every backend, this is also where an agent of an injected pod is made to
    say why its rendezvous failed.
    """
    last_words.keep(os.environ)
    from rdzv.backends.kubernetes import BACKEND

    return BACKEND.create_handler


def etcd_v3() -> HandlerCreator:
    """The creator of backend `etcd-v3`."""
    from rdzv.backends.etcd_v3 import BACKEND

    return BACKEND.create_handler
