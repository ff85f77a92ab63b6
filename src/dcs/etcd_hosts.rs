//! Where the nodes of an etcd cluster are: what is the same for both versions of its API.

pub(crate) mod address;
pub(crate) mod srv;
