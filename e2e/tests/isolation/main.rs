//! Isolation: two tenants on one real etcd. One of them, the attacker, calls every RPC of every service with the keys,
//! lease ids, names and ids of the other, the victim; nothing of the victim's may be shown, changed or held up.
//!
//! The same attacks run through etcd's own proxy, where the known leaks must be found, or the suite would prove nothing.
//! What both columns say stands in `docs/security.md`, which a test keeps current.

/// The attacks, by service.
mod attacks;

/// The victim: what it has, and whether it still has it.
mod victim;

/// A proxy under attack, and what came of it.
mod siege;

/// Calls as raw bytes.
mod raw;

mod audit;
mod cost;
mod fairness;
mod hostile_etcd;
mod identities;
mod limits;
mod port;
mod reading;
mod table;
mod tricks;
mod waiting;

use siege::{Siege, Verdict};

/// Attacker and victim, by prefix.
struct Neighbours {
    attacker: &'static [u8],
    victim: &'static [u8],
}

/// Prefixes that begin alike, that cannot be counted up, and that follow one another with nothing between.
const NEIGHBOURS: [Neighbours; 5] = [
    Neighbours { attacker: b"/a/", victim: b"/a" },
    Neighbours { attacker: b"/a/", victim: b"/a0" },
    Neighbours { attacker: b"/a0", victim: b"/a/" },
    Neighbours { attacker: b"/a\xff", victim: b"/b" },
    Neighbours { attacker: b"\xfe\xff", victim: b"\xff\xff" },
];

#[tokio::test]
async fn no_attack_reaches_a_neighbour_whatever_the_prefixes() {
    for Neighbours { attacker, victim } in NEIGHBOURS {
        let mut siege = Siege::of_ours(attacker, victim).await;
        let verdicts = siege.run(attacks::all()).await;
        let leaks: Vec<_> = verdicts.iter().filter(|(_, verdict)| !matches!(verdict, Verdict::Kept)).collect();
        assert!(leaks.is_empty(), "{} against {}: {leaks:#?}", attacker.escape_ascii(), victim.escape_ascii());
    }
}

#[tokio::test]
async fn the_attacks_are_real_and_the_page_about_them_is_current() {
    let (ours, original) =
        tokio::join!(async { Siege::of_ours(b"/a/", b"/b/").await.run(attacks::all()).await }, async {
            Siege::of_the_original(b"/a/", b"/b/").await.run(attacks::all()).await
        },);
    let leaks: Vec<_> = ours.iter().filter(|(_, verdict)| !matches!(verdict, Verdict::Kept)).collect();
    assert!(leaks.is_empty(), "{leaks:#?}");
    for known in attacks::KNOWN_LEAKS_OF_THE_ORIGINAL {
        let verdict = original.iter().find(|(title, _)| *title == known).map(|(_, verdict)| verdict);
        assert!(matches!(verdict, Some(Verdict::Leaks(_))), "{known} through etcd's own proxy: {verdict:?}");
    }
    table::check(&ours, &original);
}

#[test]
fn every_rpc_of_etcd_is_among_the_attacks() {
    let attacked: Vec<&str> = attacks::all().iter().map(|attack| attack.path).collect();
    let missing: Vec<&str> = etcd_proxy::rules::methods::METHODS
        .iter()
        .map(|method| method.path)
        .filter(|path| !path.starts_with("/grpc.health.") && !attacked.contains(path))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}
