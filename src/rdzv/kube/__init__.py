"""A small client of the Kubernetes API for use inside training processes: standard library only, and nothing of rendezvous in it."""
