"""A real Kubernetes cluster on one machine: built from pinned modules, run in its own namespaces, gone without a trace."""
