"""Fixtures for all tests."""

import os

from hypothesis import HealthCheck, settings

pytest_plugins = ["support.cluster_fixtures", "support.installed", "support.etcd_servers", "faults.tally"]

# How fast examples are drawn says something about the machine, nothing about the code.
# A run tells what a change did, so each one draws the same examples; the long campaigns draw others each time.
settings.register_profile(
    "any machine",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=os.environ.get("RDZV_FAULTS") != "long",
)
settings.load_profile("any machine")

# What the chart tells the operator; only its own tests run anything from them.
for name, image in {"RDZV_IMAGE": "operator:1", "RDZV_ETCD_IMAGE": "etcd:v3", "RDZV_ETCD_V2_IMAGE": "etcd:v2"}.items():
    os.environ.setdefault(name, image)
