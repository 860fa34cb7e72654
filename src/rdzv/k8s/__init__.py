"""Pod side of the Kubernetes API: a small client, and the records of the `kubernetes` backend. Standard library only."""
