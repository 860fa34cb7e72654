"""A write on condition of what is there, and the one rule about when its outcome has to be read back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rdzv.kube.api import ApiError, Conflict, NotFound

if TYPE_CHECKING:
    from rdzv.backing import Backing
    from rdzv.kube.api import Resource
    from rdzv.objects import Object

__all__ = ["OutcomeUnknownError", "put"]


class OutcomeUnknownError(Exception):
    """The write may have been carried out, or somebody wrote before: only reading tells what is there now."""

    def __init__(self, cause: ApiError) -> None:
        super().__init__(str(cause))
        self.cause = cause


def put(client: Backing, resource: Resource, namespace: str, obj: Object) -> Object:
    """Create the object or, with `metadata.resourceVersion`, replace that very version. One request, not repeated.

    Returns:
        The object as stored.

    Raises:
        OutcomeUnknownError: a lost reply, 5xx or 409; 404 on a replace.
        ApiError, ConfigError: it was certainly not written.
    """
    creates = "resourceVersion" not in obj["metadata"]
    send = client.create if creates else client.replace
    try:
        return send(resource, namespace, obj)
    except ApiError as error:
        # 404 on a create says that there is no such namespace, on a replace that somebody deleted the object.
        deleted = isinstance(error, NotFound) and not creates
        if isinstance(error, Conflict) or deleted or error.maybe_applied:
            raise OutcomeUnknownError(error) from error
        raise
