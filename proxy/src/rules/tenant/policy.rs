//! Which calls a tenant may make: its profile, and single methods that are allowed or denied on top of it.

use crate::rules::{
    methods::{self, Access, METHODS, Method},
    wire::{self, Malformed, Value},
};

/// What `--api-profile` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Profile {
    /// Everything that etcd has.
    #[default]
    Full,
    /// What one of many tenants needs inside its prefix.
    Tenant,
    /// Reading only.
    ReadOnly,
}

impl Profile {
    pub const ALL: [Self; 3] = [Self::Full, Self::Tenant, Self::ReadOnly];

    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Tenant => "tenant",
            Self::ReadOnly => "read-only",
        }
    }
}

/// What becomes of a Compact under the profile `tenant`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Compaction {
    #[default]
    Deny,
    /// It is answered as if it had been done: kube-apiserver asks for one every five minutes.
    Ignore,
    Allow,
}

impl Compaction {
    pub const ALL: [Self; 3] = [Self::Deny, Self::Ignore, Self::Allow];

    pub fn name(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Ignore => "ignore",
            Self::Allow => "allow",
        }
    }
}

/// What is to be done with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    /// If its message writes nothing.
    IfItReads,
    /// Answered as if it had been done.
    Ignored,
    Refused(Refusal),
}

/// Why a call is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The profile does not have it.
    Profile(Profile),
    /// It is denied by its name.
    Denied,
    /// Nobody knows who asks.
    Unknown,
}

/// The calls of one tenant.
#[derive(Clone, Debug)]
pub struct Policy {
    profile: Profile,
    /// One for each row of [`METHODS`], so that a call costs one look.
    verdicts: [Verdict; METHODS.len()],
}

impl Default for Policy {
    fn default() -> Self {
        Self::new(Profile::Full, Compaction::Deny, &[], &[])
    }
}

impl Policy {
    /// What is denied by name is denied, whatever else allows it.
    pub fn new(
        profile: Profile,
        compaction: Compaction,
        allowed: &[&'static Method],
        denied: &[&'static Method],
    ) -> Self {
        let verdicts = std::array::from_fn(|index| {
            let is_among = |list: &[&'static Method]| list.iter().any(|method| method.index() == index);
            if is_among(denied) {
                Verdict::Refused(Refusal::Denied)
            } else if is_among(allowed) {
                Verdict::Allowed
            } else {
                verdict(profile, compaction, METHODS[index].access)
            }
        });
        Self { profile, verdicts }
    }

    /// Of those whom nobody knows: nothing.
    pub fn nothing() -> Self {
        Self { profile: Profile::ReadOnly, verdicts: [Verdict::Refused(Refusal::Unknown); METHODS.len()] }
    }

    pub fn profile(&self) -> Profile {
        self.profile
    }

    /// Whether there is nothing that etcd has and this refuses.
    pub fn is_full(&self) -> bool {
        self.verdicts.iter().all(|verdict| *verdict == Verdict::Allowed)
    }

    pub fn verdict(&self, method: &Method) -> Verdict {
        self.verdicts[method.index()]
    }
}

fn verdict(profile: Profile, compaction: Compaction, access: Access) -> Verdict {
    match (profile, access) {
        (Profile::Full, _) | (_, Access::Anyone) | (Profile::Tenant, Access::Tenant | Access::ReaderIfItReads) => {
            Verdict::Allowed
        }
        (Profile::ReadOnly, Access::ReaderIfItReads) => Verdict::IfItReads,
        (Profile::Tenant, Access::Compaction) => match compaction {
            Compaction::Deny => Verdict::Refused(Refusal::Profile(profile)),
            Compaction::Ignore => Verdict::Ignored,
            Compaction::Allow => Verdict::Allowed,
        },
        (Profile::Tenant | Profile::ReadOnly, Access::Tenant | Access::Compaction | Access::Operator) => {
            Verdict::Refused(Refusal::Profile(profile))
        }
    }
}

/// The method that a name means: `KV/Range`, or with its package `etcdserverpb.KV/Range`.
pub fn method_named(name: &str) -> Option<&'static Method> {
    methods::METHODS.iter().find(|method| {
        let full = &method.path[1..];
        full == name || full.strip_suffix(name).is_some_and(|package| package.ends_with('.'))
    })
}

/// Transactions in transactions that are looked into; as many as the way up to etcd edits.
const MAX_DEPTH: usize = 130;

/// Whether an encoded `TxnRequest` holds anything that writes, at any depth and on either side. An operation that holds
/// several members counts as each of them, whichever of them a decoder would take.
pub fn txn_writes(txn: &[u8]) -> Result<bool, Malformed> {
    txn_has(&[PUT, DELETE_RANGE], txn, 0)
}

/// Whether it holds anything that stores.
pub fn txn_puts(txn: &[u8]) -> Result<bool, Malformed> {
    txn_has(&[PUT], txn, 0)
}

/// Members of a `RequestOp`.
const PUT: u32 = 2;
const DELETE_RANGE: u32 = 3;
const TXN: u32 = 4;

fn txn_has(kinds: &[u32], txn: &[u8], depth: usize) -> Result<bool, Malformed> {
    const SIDES: [u32; 2] = [2, 3];
    if depth >= MAX_DEPTH {
        return Err(Malformed::Depth);
    }
    let mut has = false;
    for field in wire::fields(txn) {
        let field = field?;
        let (true, Value::Bytes(operation)) = (SIDES.contains(&field.number), field.value) else { continue };
        // In pieces, a nested transaction may be whole only when they are put together: each field of it stays a
        // field, so each piece tells by itself what it writes.
        for member in wire::fields(operation) {
            let member = member?;
            match (member.number, member.value) {
                (TXN, Value::Bytes(nested)) => has |= txn_has(kinds, nested, depth + 1)?,
                (kind, Value::Bytes(_)) if kinds.contains(&kind) => has = true,
                _ => (),
            }
        }
    }
    Ok(has)
}

#[cfg(test)]
mod tests {
    use etcd_proxy_proto::etcdserverpb::{
        Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, request_op::Request,
    };
    use prost::Message as _;

    use super::*;

    fn check(policy: &Policy, name: &str, expected: Verdict) {
        let method = method_named(name).expect(name);
        assert_eq!(policy.verdict(method), expected, "{name} under {:?}", policy.profile());
    }

    const READ_ONLY: Verdict = Verdict::Refused(Refusal::Profile(Profile::ReadOnly));
    const TENANT: Verdict = Verdict::Refused(Refusal::Profile(Profile::Tenant));

    #[test]
    fn the_full_profile_refuses_nothing() {
        let policy = Policy::default();
        assert!(policy.is_full());
        assert!(METHODS.iter().all(|method| policy.verdict(method) == Verdict::Allowed));
    }

    #[test]
    fn a_tenant_may_do_what_stays_inside_its_prefix() {
        let policy = Policy::new(Profile::Tenant, Compaction::Deny, &[], &[]);
        assert!(!policy.is_full());
        let allowed: Vec<&str> = METHODS
            .iter()
            .filter(|method| policy.verdict(method) == Verdict::Allowed)
            .map(|method| method.path.rsplit('.').next().expect("a path has a service"))
            .collect();
        assert_eq!(
            allowed,
            [
                "Auth/AuthStatus",
                "Auth/Authenticate",
                "Cluster/MemberList",
                "KV/DeleteRange",
                "KV/Put",
                "KV/Range",
                "KV/RangeStream",
                "KV/Txn",
                "Lease/LeaseGrant",
                "Lease/LeaseKeepAlive",
                "Lease/LeaseLeases",
                "Lease/LeaseRevoke",
                "Lease/LeaseTimeToLive",
                "Maintenance/Status",
                "Watch/Watch",
                "Health/Check",
                "Health/List",
                "Health/Watch",
                "Election/Campaign",
                "Election/Leader",
                "Election/Observe",
                "Election/Proclaim",
                "Election/Resign",
                "Lock/Lock",
                "Lock/Unlock",
            ]
        );
    }

    #[test]
    fn a_reader_may_read() {
        let policy = Policy::new(Profile::ReadOnly, Compaction::Allow, &[], &[]);
        for name in ["KV/Range", "KV/RangeStream", "Watch/Watch", "Lease/LeaseTimeToLive", "Cluster/MemberList"] {
            check(&policy, name, Verdict::Allowed);
        }
        check(&policy, "KV/Txn", Verdict::IfItReads);
        for name in ["KV/Put", "KV/Compact", "Lease/LeaseLeases", "Lock/Lock", "Maintenance/Snapshot", "Auth/UserAdd"] {
            check(&policy, name, READ_ONLY);
        }
    }

    #[test]
    fn a_compaction_is_what_its_policy_says() {
        for (compaction, expected) in
            [(Compaction::Deny, TENANT), (Compaction::Ignore, Verdict::Ignored), (Compaction::Allow, Verdict::Allowed)]
        {
            check(&Policy::new(Profile::Tenant, compaction, &[], &[]), "KV/Compact", expected);
        }
    }

    #[test]
    fn single_methods_are_allowed_and_denied_on_top_and_denial_wins() {
        let named = |name| method_named(name).expect("a method");
        let (snapshot, put) = (named("Maintenance/Snapshot"), named("etcdserverpb.KV/Put"));
        let policy = Policy::new(Profile::ReadOnly, Compaction::Deny, &[snapshot, put], &[put, named("KV/Range")]);
        check(&policy, "Maintenance/Snapshot", Verdict::Allowed);
        check(&policy, "KV/Put", Verdict::Refused(Refusal::Denied));
        check(&policy, "KV/Range", Verdict::Refused(Refusal::Denied));
        assert!(!Policy::new(Profile::Full, Compaction::Deny, &[], &[put]).is_full());
    }

    #[test]
    fn a_method_is_named_with_its_service() {
        assert_eq!(method_named("Watch/Watch").expect("etcd's").path, "/etcdserverpb.Watch/Watch");
        assert_eq!(method_named("v3lockpb.Lock/Lock").expect("etcd's").path, "/v3lockpb.Lock/Lock");
        for name in ["", "Range", "V/Range", "/etcdserverpb.KV/Range", "pb.KV/Range", "KV/range"] {
            assert!(method_named(name).is_none(), "{name}");
        }
    }

    fn op(request: Request) -> RequestOp {
        RequestOp { request: Some(request) }
    }

    #[test]
    fn a_write_in_a_transaction_is_found_at_any_depth_and_on_either_side() {
        let check = |txn: &TxnRequest, expected: bool| {
            assert_eq!(txn_writes(&txn.encode_to_vec()), Ok(expected), "{txn:?}");
        };
        let range = op(Request::RequestRange(RangeRequest { key: "k".into(), ..RangeRequest::default() }));
        let reads = TxnRequest {
            compare: vec![Compare { key: "k".into(), ..Compare::default() }],
            success: vec![range.clone()],
            failure: vec![range.clone(), range],
        };
        check(&TxnRequest::default(), false);
        check(&reads, false);
        let writes = [
            op(Request::RequestPut(PutRequest::default())),
            op(Request::RequestDeleteRange(DeleteRangeRequest::default())),
        ];
        for write in writes {
            check(&TxnRequest { success: vec![write.clone()], ..reads.clone() }, true);
            let mut txn = TxnRequest { failure: vec![write], ..reads.clone() };
            for _ in 0..5 {
                check(&txn, true);
                txn = TxnRequest { success: vec![op(Request::RequestTxn(txn))], ..reads.clone() };
            }
        }
        check(&TxnRequest { failure: vec![op(Request::RequestTxn(reads.clone()))], ..reads.clone() }, false);
    }

    #[test]
    fn a_write_is_found_although_another_member_follows_it_or_it_comes_in_pieces() {
        // An operation with a put and then a range: one decoder of etcd's keeps only the last.
        assert_eq!(txn_writes(b"\x12\x07\x12\x02\x0a\x00\x0a\x01\x0a"), Ok(true));
        // A nested transaction in two pieces, the second of which writes.
        assert_eq!(txn_writes(b"\x1a\x08\x22\x00\x22\x04\x12\x02\x12\x00"), Ok(true));
        assert_eq!(txn_writes(b"\x12\x02\x12"), Err(Malformed::Truncated));
        let deep = (0..2 * MAX_DEPTH).fold(Vec::new(), |inner: Vec<u8>, _| {
            let mut op = vec![];
            wire::put_bytes_header(&mut op, 4, inner.len());
            op.extend(inner);
            let mut txn = vec![];
            wire::put_bytes_header(&mut txn, 2, op.len());
            txn.extend(op);
            txn
        });
        assert_eq!(txn_writes(&deep), Err(Malformed::Depth));
    }
}
