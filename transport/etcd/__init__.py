"""etcd as the MetaStore of a cluster, over the JSON gateway of its v3 API."""
