"""`KubernetesStore`: torch's Store, kept in the Kubernetes API (docs/adr/0011-kubernetes-store.md)."""
