"""Fixtures for all tests."""

from hypothesis import HealthCheck, settings

pytest_plugins = ["support.cluster_fixtures", "support.etcd_servers"]

# How fast examples are drawn says something about the machine, nothing about the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
