"""The protocol of backend `kubernetes` as pure functions: no I/O, no clock, no thread, no chance (docs/adr/0010-kubernetes-protocol.md)."""
