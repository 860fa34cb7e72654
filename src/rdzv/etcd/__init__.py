"""A client of etcd's v3 API by its JSON gateway, with the verbs of `rdzv.kube`. Standard library only; knows nothing of rendezvous."""
