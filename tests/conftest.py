"""Fixtures for all tests."""

pytest_plugins = ["support.cluster_fixtures"]
