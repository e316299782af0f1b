use super::*;
use smalti_storage::ids::Epoch;

fn ver(seq: u64) -> Ver {
    Ver { epoch: Epoch(1), seq }
}

fn entry(seq: u64) -> VecEntry {
    if seq == 0 { VecEntry::default() } else { VecEntry { ver: ver(seq), ..VecEntry::default() } }
}

fn held(seq: u64, touched: &[u8], vec: &[u64]) -> (VersionMeta, bool) {
    let meta = VersionMeta {
        ver: ver(seq),
        touched: touched.iter().map(|slot| Slot(*slot)).collect(),
        vec: vec.iter().map(|seq| entry(*seq)).collect(),
        ..VersionMeta::default()
    };
    (meta, true)
}

fn facts(prepared: u64, versions: Vec<(VersionMeta, bool)>) -> Facts {
    let prepared = (prepared > 0).then(|| ver(prepared));
    Facts { versions, prepared, ..Facts::default() }
}

fn row(slots: Vec<Facts>) -> BTreeMap<Slot, Facts> {
    slots.into_iter().enumerate().map(|(i, f)| (Slot(i as u8), f)).collect()
}

// 2+1; version 1 wrote the whole row, version 2 changes slot 0.
const BASE: u64 = 1;

#[test]
fn an_update_on_one_data_slot_is_constructible_with_the_other_one() {
    let all = &[0, 1, 2];
    let decision = decide(
        &row(vec![
            facts(2, vec![held(2, &[0, 2], &[]), held(BASE, all, &[])]),
            facts(0, vec![held(BASE, all, &[])]),
            facts(0, vec![held(BASE, all, &[1, 1])]),
        ]),
        2,
    );
    let chosen = decision.chosen.expect("two consistent shards exist");
    assert_eq!(chosen.ver, ver(2));
    assert_eq!(chosen.vec, vec![entry(2), entry(1)]);
    assert_eq!(chosen.lacking, [(Slot(2), ver(1))].into());
    assert!(decision.aborts.is_empty());
}

#[test]
fn a_whole_row_on_one_slot_only_is_undone() {
    let all = &[0, 1, 2];
    let decision = decide(
        &row(vec![
            facts(2, vec![held(2, all, &[]), held(BASE, all, &[])]),
            facts(0, vec![held(BASE, all, &[])]),
            facts(0, vec![held(BASE, all, &[1, 1])]),
        ]),
        2,
    );
    assert_eq!(decision.chosen, None);
    assert_eq!(decision.aborts, vec![(Slot(0), ver(2))]);
}

#[test]
fn a_committed_version_is_completed_even_when_a_disk_forgot_it() {
    let all = &[0, 1, 2];
    let decision = decide(
        &row(vec![
            facts(0, vec![held(2, all, &[])]),
            facts(0, vec![held(BASE, all, &[])]),
            facts(2, vec![held(2, all, &[2, 2]), held(BASE, all, &[1, 1])]),
        ]),
        2,
    );
    let chosen = decision.chosen.expect("committed on slot 0");
    assert_eq!(chosen.lacking, [(Slot(1), ver(1))].into());
}

#[test]
fn without_parity_in_sync_a_prepared_data_slot_goes_forward() {
    let decision = decide(
        &row(vec![
            facts(2, vec![held(2, &[0, 2], &[]), held(BASE, &[0, 1, 2], &[])]),
            facts(0, vec![held(BASE, &[0, 1, 2], &[])]),
        ]),
        2,
    );
    assert_eq!((decision.stands, decision.lost), (ver(2), false), "its only slot holds it");
    assert_eq!((decision.chosen, decision.aborts), (None, vec![]));
}

#[test]
fn a_first_write_that_nobody_completed_is_undone() {
    let decision = decide(
        &row(vec![facts(1, vec![held(1, &[0, 1, 2], &[])]), facts(0, vec![]), facts(0, vec![])]),
        2,
    );
    assert_eq!(decision.aborts, vec![(Slot(0), ver(1))]);
    assert_eq!(decision.chosen, None);
}

#[test]
fn what_is_beneath_an_undone_version_stays() {
    // 2+1 without parity: slot 0 was at 5 when a write of both blocks reached it alone.
    let decision = decide(
        &row(vec![
            facts(6, vec![held(6, &[0, 1, 2], &[]), held(5, &[0, 2], &[])]),
            facts(0, vec![held(3, &[0, 1, 2], &[])]),
        ]),
        2,
    );
    assert_eq!(decision.aborts, vec![(Slot(0), ver(6))]);
    assert_eq!((decision.chosen, decision.lost), (None, false));
}

#[test]
fn a_row_that_every_parity_slot_holds_undecided_goes_back_to_the_newest_committed() {
    // 4+2: 6 changes all data slots and stands on slot 0 and both parity slots only.
    let all = &[0, 1, 2, 3, 4, 5];
    let parity = || vec![held(6, all, &[6, 6, 6, 6]), held(5, &[0, 4, 5], &[5, 3, 2, 4])];
    let decision = decide(
        &row(vec![
            facts(6, vec![held(6, all, &[]), held(5, &[0, 4, 5], &[])]),
            facts(0, vec![held(3, &[1, 4, 5], &[])]),
            facts(0, vec![held(2, &[2, 4, 5], &[])]),
            facts(0, vec![held(4, &[3, 4, 5], &[])]),
            facts(6, parity()),
            facts(6, parity()),
        ]),
        4,
    );
    let undone = vec![(Slot(0), ver(6)), (Slot(4), ver(6)), (Slot(5), ver(6))];
    assert_eq!(decision.aborts, undone);
    assert_eq!((decision.chosen, decision.lost), (None, false));
}

#[test]
fn what_one_slot_was_built_on_is_committed_for_all() {
    // Slot 1 has taken 3 onto 2, so 2 is committed, though slots 0 and 2 were not told yet.
    let all = &[0, 1, 2];
    let decision = decide(
        &row(vec![
            facts(2, vec![held(2, all, &[]), held(1, all, &[])]),
            facts(3, vec![held(3, &[1, 2], &[]), held(2, all, &[])]),
            facts(2, vec![held(2, all, &[2, 2]), held(1, all, &[1, 1])]),
        ]),
        2,
    );
    let chosen = decision.chosen.expect("slots 0 and 1 agree on 3");
    assert_eq!(chosen.vec, vec![entry(2), entry(3)]);
    assert_eq!(chosen.lacking, [(Slot(2), ver(2))].into());
}

#[test]
fn unreadable_parity_is_no_proof_that_a_row_was_never_written() {
    let unreadable = Facts { unreadable: true, ..Facts::default() };
    let decision = decide(
        &row(vec![
            facts(2, vec![held(2, &[0, 2], &[]), held(1, &[0, 1, 2], &[])]),
            facts(0, vec![held(1, &[0, 1, 2], &[])]),
            unreadable.clone(),
        ]),
        2,
    );
    assert_eq!((decision.stands, decision.lost), (ver(2), false), "both data slots tell");
    assert_eq!((decision.chosen, decision.aborts), (None, vec![]));
    // With a data slot gone as well it may have been acknowledged, and must not be undone.
    let decision = decide(
        &row(vec![
            facts(2, vec![held(2, &[0, 2], &[]), held(1, &[0, 1, 2], &[])]),
            unreadable.clone(),
            unreadable,
        ]),
        2,
    );
    assert_eq!((decision.chosen, decision.aborts, decision.lost), (None, vec![], true));
}

fn suspect(prepared: u64, versions: Vec<(VersionMeta, bool)>) -> Facts {
    Facts { suspect: true, ..facts(prepared, versions) }
}

#[test]
fn a_parity_slot_that_took_a_version_onto_less_than_others_know_is_no_shard_of_it() {
    // 2+1: the parity slot forgot 5 on slot 0 and took 6 on slot 1 nevertheless.
    let decision = decide(
        &row(vec![
            facts(0, vec![held(5, &[0, 2], &[])]),
            facts(6, vec![held(6, &[1, 2], &[]), held(3, &[1, 2], &[])]),
            suspect(6, vec![held(6, &[1, 2], &[2, 6]), held(3, &[1, 2], &[2, 3])]),
        ]),
        2,
    );
    assert_eq!((decision.lost, decision.aborts), (false, vec![]));
    assert!(decision.chosen.is_none(), "all touched slots hold it; the rest is a repair");
}

#[test]
fn what_a_suspect_alone_came_up_with_again_does_not_lose_a_row() {
    // 2+2 without slot 1. Slot 0 came up with 3, which was undone before 4 was issued; both
    // parity slots know that it is at 2, and its pre-image is there.
    let parity = || vec![held(4, &[1, 2, 3], &[2, 4])];
    let slots = vec![
        (Slot(0), suspect(3, vec![held(3, &[0, 2, 3], &[]), held(2, &[0, 2, 3], &[])])),
        (Slot(2), facts(0, parity())),
        (Slot(3), facts(0, parity())),
    ];
    let decision = decide(&slots.into_iter().collect(), 2);
    assert_eq!(decision.aborts, vec![(Slot(0), ver(3))]);
    assert_eq!((decision.chosen, decision.lost), (None, false));
}

#[test]
fn of_two_undecided_versions_of_suspects_the_older_one_is_doubted() {
    // 2+1 after a power failure. The parity slot went back to when 3 was undecided, which was
    // undone; 5 and then 6 were written to slot 0 since, and 6 was acknowledged.
    let all = &[0, 1, 2];
    let decision = decide(
        &row(vec![
            suspect(6, vec![held(6, &[0, 2], &[]), held(5, &[0, 2], &[])]),
            suspect(0, vec![held(2, &[1, 2], &[])]),
            suspect(3, vec![held(3, &[1, 2], &[1, 3]), held(2, all, &[1, 2])]),
        ]),
        2,
    );
    let chosen = decision.chosen.expect("both data slots have what it takes");
    assert_eq!(chosen.vec, vec![entry(6), entry(2)]);
    assert_eq!(chosen.lacking, [(Slot(2), ver(2))].into());
    assert_eq!(decision.aborts, vec![(Slot(2), ver(3))]);
}

#[test]
fn a_suspect_that_went_back_in_time_drops_what_it_held_undecided_then() {
    // 2+1. The parity slot went back to when 3 was undecided, which was undone; 2 is in a
    // snapshot, and 5 is the newest.
    let all = &[0, 1, 2];
    let back = suspect(3, vec![held(3, &[0, 2], &[3, 2]), held(2, all, &[2, 2])]);
    let slots = vec![
        facts(0, vec![held(5, all, &[]), held(2, all, &[])]),
        facts(0, vec![held(5, all, &[]), held(2, all, &[])]),
        back,
    ];
    let decision = decide(&row(slots), 2);
    assert_eq!(decision.aborts, vec![(Slot(2), ver(3))]);
    let chosen = decision.chosen.expect("the data slots hold 5");
    assert_eq!(chosen.lacking, [(Slot(2), ver(2))].into(), "once 3 is undone");
    // What is only on its way forward nobody has forgotten.
    let forward = vec![
        suspect(2, vec![held(2, all, &[]), held(1, all, &[])]),
        suspect(3, vec![held(3, all, &[]), held(2, all, &[])]),
        suspect(3, vec![held(3, all, &[3, 3]), held(2, all, &[2, 2])]),
    ];
    let decision = decide(&row(forward), 2);
    assert_eq!(decision.aborts, vec![]);
    assert_eq!(decision.chosen.map(|chosen| chosen.ver), Some(ver(3)));
    // One that is not behind may hold the newest of its own slot undecided.
    let current = vec![
        suspect(2, vec![held(2, &[0, 2], &[]), held(1, all, &[])]),
        suspect(3, vec![held(3, &[1, 2], &[]), held(1, all, &[])]),
        suspect(3, vec![held(3, &[1, 2], &[2, 3]), held(2, &[0, 2], &[2, 1])]),
    ];
    assert!(decide(&row(current), 2).aborts.is_empty());
}

#[test]
fn what_others_know_undone_is_not_completed() {
    // 1+2. A parity slot went back to when 3 was undecided. It was undone, and everybody was told
    // that all up to 5 was decided: 3 alone would do, for one shard is a row.
    let all = &[0, 1, 2];
    let at_two = |slot: u8| {
        let vec: &[u64] = if slot == 0 { &[] } else { &[2] };
        Facts { watermark: ver(5), ..facts(0, vec![held(2, all, vec)]) }
    };
    let back = suspect(3, vec![held(3, all, &[3]), held(2, all, &[2])]);
    for denier in [0, 1] {
        let mut slots = vec![facts(0, vec![]), facts(0, vec![]), back.clone()];
        slots[0].unreadable = true;
        slots[1].unreadable = true;
        slots[usize::from(denier)] = at_two(denier);
        let decision = decide(&row(slots), 1);
        assert_eq!(decision.aborts, vec![(Slot(2), ver(3))], "by slot {denier}");
        assert_eq!((decision.chosen, decision.lost), (None, false));
    }
    // A suspect may have had it by a repair, if it came in sync since.
    let repaired = |epoch| Facts { suspect: true, insync_since: Epoch(epoch), ..at_two(0) };
    for (epoch, denied) in [(1, true), (2, false)] {
        let mut slots = vec![repaired(epoch), facts(0, vec![]), back.clone()];
        slots[1].unreadable = true;
        let aborts = decide(&row(slots), 1).aborts;
        assert_eq!(aborts == vec![(Slot(2), ver(3))], denied, "since {epoch}: {aborts:?}");
    }
    // One that was told of less does not know.
    let slots = vec![facts(0, vec![held(2, all, &[])]), facts(0, vec![held(2, all, &[2])]), back];
    assert_eq!(decide(&row(slots), 1).chosen.map(|chosen| chosen.ver), Some(ver(3)));
}

#[test]
fn what_was_issued_before_the_newest_version_is_committed() {
    // 2 changed slot 0 and was acknowledged; 3 changes slot 1, which never heard of 2.
    let all = &[0, 1, 2];
    let decision = decide(
        &row(vec![
            facts(2, vec![held(2, &[0, 2], &[]), held(1, all, &[])]),
            facts(3, vec![held(3, &[1, 2], &[]), held(1, all, &[])]),
            facts(2, vec![held(2, &[0, 2], &[2, 1]), held(1, all, &[1, 1])]),
        ]),
        2,
    );
    let chosen = decision.chosen.expect("slots 0 and 1 agree on 3");
    assert_eq!(chosen.vec, vec![entry(2), entry(3)]);
    assert_eq!(chosen.lacking, [(Slot(2), ver(2))].into());
    assert!(decision.aborts.is_empty());
}

#[test]
fn where_nobody_can_tell_of_a_data_slot_nothing_is_decided() {
    let all = &[0, 1, 2];
    let unreadable = Facts { unreadable: true, ..Facts::default() };
    // Slot 0 holds version 2 undecided; only the parity slot could say what else there was of slot 1.
    let slots = vec![
        facts(2, vec![held(2, all, &[]), held(BASE, all, &[])]),
        unreadable.clone(),
        unreadable.clone(),
    ];
    let lost = Decision { lost: true, ..Decision::default() };
    assert_eq!(decide(&row(slots), 2), lost);
    assert_eq!(decide(&row(vec![unreadable.clone(), unreadable.clone(), unreadable]), 2), lost);
}

#[test]
fn a_slot_that_can_be_read_again_helps_where_the_row_would_be_lost() {
    let all = &[0, 1, 2];
    // Marked in an earlier takeover; what it has verifies and is what the parity slot names.
    let again = Facts { unreadable: true, ..facts(0, vec![held(BASE, all, &[])]) };
    let rotten = |(meta, _)| (meta, false);
    let slots = vec![
        again,
        facts(0, vec![rotten(held(BASE, all, &[]))]),
        facts(0, vec![held(BASE, all, &[1, 1])]),
    ];
    let decision = decide(&row(slots.clone()), 2);
    assert!(!decision.lost && decision.aborts.is_empty(), "{decision:?}");
    assert_eq!(decision.stands, ver(BASE));
    let lacking = decision.chosen.map(|chosen| chosen.lacking).unwrap_or_default();
    assert!(!lacking.contains_key(&Slot(0)), "it is restored as a whole");
    // Without it the row is lost.
    let mut slots = slots;
    slots[0].versions.clear();
    assert!(decide(&row(slots), 2).lost);
}

#[test]
fn what_a_suspect_holds_of_a_rotten_version_is_what_is_left_of_it() {
    // 2+1 without its parity slot: version 2 of slot 0, acknowledged by that slot alone, rots.
    let (meta, _) = held(2, &[0, 2], &[]);
    let slots = vec![
        suspect(2, vec![(meta, false), held(BASE, &[0, 1, 2], &[])]),
        suspect(0, vec![held(BASE, &[0, 1, 2], &[])]),
    ];
    let decision = decide(&row(slots), 2);
    assert!(decision.lost && decision.aborts.is_empty(), "{decision:?}");
}

#[test]
fn what_was_prepared_since_does_not_hide_that_others_know_a_version_undone() {
    let all = &[0, 1, 2];
    // Version 3 was undone everywhere, then 5 was prepared on all; the parity slot went back to when
    // it held 3. Taken for committed it would be what a snapshot from between them holds.
    let told = |mut facts: Facts| {
        facts.watermark = ver(4);
        facts
    };
    let slots = vec![
        told(facts(5, vec![held(5, all, &[]), held(BASE, all, &[])])),
        told(facts(5, vec![held(5, all, &[]), held(BASE, all, &[])])),
        Facts {
            watermark: ver(2),
            ..suspect(3, vec![held(3, all, &[3, 3]), held(BASE, all, &[1, 1])])
        },
    ];
    let decision = decide(&row(slots), 2);
    assert_eq!(decision.aborts, [(Slot(2), ver(3))]);
    let chosen = decision.chosen.expect("two consistent shards exist");
    assert_eq!((chosen.ver, chosen.lacking), (ver(5), [(Slot(2), ver(BASE))].into()));
}

#[test]
fn a_slot_that_can_be_read_again_does_not_say_what_the_row_is() {
    let all = &[0, 1, 2, 3];
    let (first, second) = (&[0, 2, 3], &[1, 2, 3]);
    let rotten = |(meta, _)| (meta, false);
    let again = |versions| Facts { unreadable: true, ..facts(0, versions) };
    // 2+2. Version 3 of slot 1 is acknowledged by parity slot 2 alone, the others being out; so is 5,
    // of slot 0, which slot 3 takes on its way back onto what it had. Then both copies rot.
    let slots = vec![
        facts(5, vec![rotten(held(5, first, &[])), held(BASE, all, &[])]),
        again(vec![held(BASE, all, &[])]),
        facts(5, vec![rotten(held(5, first, &[5, 3])), held(3, second, &[1, 3])]),
        again(vec![held(5, first, &[5, 1]), held(BASE, all, &[1, 1])]),
    ];
    // Slots 1 and 3 agree that slot 1 was never written again, and slot 2 knows better.
    let decision = decide(&row(slots), 2);
    assert!(decision.lost && decision.aborts.is_empty(), "{decision:?}");
}
