//! What headers tell of the store: whether it is the one that was known before.

use etcd_proxy_proto::etcdserverpb::ResponseHeader;

/// Whether a linearizable answer is of another store than what was known before it was asked for, or of the same one put
/// back to a backup. Neither the revision nor the term of a leader with a majority goes back. Proxies between may leave the
/// cluster and the term out, as etcd's own does where it makes a header itself.
pub fn is_before(newest: &ResponseHeader, known: &ResponseHeader) -> bool {
    let is_another = newest.cluster_id != known.cluster_id && newest.cluster_id != 0 && known.cluster_id != 0;
    let has_older_term = newest.raft_term < known.raft_term && newest.raft_term != 0;
    is_another || has_older_term || newest.revision < known.revision
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(cluster_id: u64, revision: i64, raft_term: u64) -> ResponseHeader {
        ResponseHeader { cluster_id, member_id: 1, revision, raft_term }
    }

    #[test]
    fn a_store_that_went_back_is_told_by_its_cluster_its_revision_or_its_term() {
        let known = header(7, 40, 3);
        for newest in [header(7, 40, 3), header(7, 41, 3), header(7, 40, 4), header(0, 40, 0)] {
            assert!(!is_before(&newest, &known), "{newest:?}");
        }
        for newest in [header(7, 39, 3), header(7, 39, 4), header(7, 50, 2), header(8, 50, 4), header(0, 39, 0)] {
            assert!(is_before(&newest, &known), "{newest:?}");
        }
        assert!(!is_before(&known, &header(0, 40, 0)), "what was not told is no difference");
    }
}
