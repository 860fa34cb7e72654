"""The kinds of group `rdzv.dev`, under the names that their URLs and Roles have."""

from __future__ import annotations

from rdzv.kube.api import Resource
from rdzv.spec import API_VERSION, PLURAL

RENDEZVOUS = Resource(API_VERSION, PLURAL)
ROUNDS = Resource(API_VERSION, "rendezvousrounds")
MEMBERS = Resource(API_VERSION, "rendezvousmembers")
STORES = Resource(API_VERSION, "rendezvousstores")

UPGRADE = "apply the CRDs of this version (charts/rendezvous-operator/files/crds/), or helm upgrade"
"""What to do about a CRD that is older than this library."""
