use super::*;
use proptest::prelude::*;
use smalti_storage::store::RecordHash;

fn row() -> RowAddr {
    RowAddr { group: GroupNo(3), stripe: 70_000, index: 200 }
}

fn ver(seq: u64) -> Ver {
    Ver { epoch: Epoch(5), seq }
}

fn wid(seq: u64) -> Wid {
    Wid { generation: 4, seq }
}

fn meta() -> VersionMeta {
    VersionMeta {
        ver: ver(9),
        base: ver(8),
        touched: SlotSet(0b101),
        snap: 2,
        wid: wid(77),
        vec: vec![VecEntry { ver: ver(9), wid: wid(77), snap: 2 }, VecEntry::default()],
        present: true,
        hash: RecordHash([7; 16]),
    }
}

/// One of every kind.
fn asks() -> Vec<Ask> {
    let (row, slot, record) = (row(), Slot(1), Bytes::from_static(b"record"));
    let update = Update { ver: ver(9), touched: SlotSet(0b101), snap: 2 };
    let changed = vec![Changed { slot: Slot(0), base: ver(8), wid: wid(77) }];
    let vec = vec![VecEntry::default()];
    let fingerprint = Fingerprint::of(&[7; 64]).expect("a whole piece");
    vec![
        Ask::Promise,
        Ask::Fetch { row, slot, want: Want::HeadMeta },
        Ask::Fetch { row, slot, want: Want::Head },
        Ask::Fetch { row, slot, want: Want::Version(ver(3)) },
        Ask::Fetch { row, slot, want: Want::HeldMeta(2) },
        Ask::Fetch { row, slot, want: Want::Held(2) },
        Ask::Versions { row, slot },
        Ask::Scan { group: GroupNo(3), after: Some((row, slot)), limit: 1024 },
        Ask::PrepData { row, slot, update, base: ver(8), wid: wid(77), record: record.clone() },
        Ask::PrepDelta { row, slot, update, changed, delta: record.clone(), fingerprint },
        Ask::PrepFull { row, slot, update, wid: wid(77), vec, record: record.clone() },
        Ask::Abort { row, slot, ver: ver(9) },
        Ask::AbortNewer { row, slot, than: ver(8) },
        Ask::Freeze { row, slot, frozen: true },
        Ask::Install { row, slot, meta: meta(), record: record.clone(), expect: ver(8) },
        Ask::Restore {
            row,
            slot,
            versions: vec![(meta(), record)],
            keep: vec![ver(7)],
            expect: ver(8),
        },
        Ask::Lease { duration_us: 1_500_000 },
        Ask::Release,
        Ask::Nop,
        Ask::Changed {
            group: GroupNo(3),
            slot,
            of: StoreId(uuid::Uuid::from_u128(7)),
            after: Some(row),
            limit: 1024,
        },
        Ask::Undecided { group: GroupNo(3) },
        Ask::Confirm,
        Ask::Vetted { incarnation: Incarnation(3) },
        Ask::Digest { group: GroupNo(3), after: Some((row, slot)), limit: 512 },
        Ask::Prove { row, slot },
    ]
}

fn answers() -> Vec<Answer> {
    let record = Bytes::from_static(b"record");
    let reject = Answer::Rejected;
    vec![
        Answer::Promised {
            incarnation: Incarnation(3),
            suspect: true,
            went_back: true,
            watermark: ver(7),
            prepared: vec![(row(), Slot(1))],
        },
        Answer::PromiseLater(1_515_000),
        Answer::Version { meta: meta(), record },
        Answer::Missing,
        Answer::Corrupt,
        Answer::Versions { versions: vec![(meta(), false)], prepared: Some(ver(9)) },
        Answer::Scanned {
            entries: vec![(row(), Slot(1), Some(vec![meta()])), (row(), Slot(2), None)],
            done: true,
        },
        Answer::Changed { rows: vec![row()], done: true },
        Answer::Undecided { right: true, rows: vec![row()] },
        Answer::Ok,
        Answer::Granted,
        reject(Reject::StaleEpoch { known: Epoch(6) }),
        reject(Reject::Base { have: ver(8) }),
        reject(Reject::Corrupt),
        reject(Reject::NoSpace),
        reject(Reject::OldWid),
        reject(Reject::Invalid),
        reject(Reject::Fingerprint),
        Answer::Digested {
            entries: vec![(row(), Slot(1), None), (row(), Slot(2), Some(proofs()))],
            done: true,
        },
        Answer::Proven(None),
        Answer::Proven(Some(proofs())),
    ]
}

fn proofs() -> Vec<Proven> {
    vec![(meta(), Fingerprint::of(&[7; 64]).ok()), (meta(), None)]
}

fn frame() -> Frame {
    Frame {
        volume: VolumeNo(1),
        epoch: Epoch(5),
        incarnation: Incarnation(2),
        session: 300,
        watermark: ver(6),
        requests: (1..).zip(asks()).map(|(id, ask)| Request { id, ask }).collect(),
    }
}

fn reply() -> Reply {
    let answers = (1..).zip(answers()).collect();
    Reply { volume: VolumeNo(1), session: 300, incarnation: Incarnation(3), answers }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let pair = |pair: &[u8]| {
        let text = std::str::from_utf8(pair).expect("hexadecimal digits");
        u8::from_str_radix(text, 16).expect("hexadecimal digits")
    };
    digits.chunks(2).map(pair).collect()
}

#[test]
fn every_message_survives_the_wire() {
    assert_eq!(Frame::decode(&frame().encode()), Ok(frame()));
    assert_eq!(Reply::decode(&reply().encode()), Ok(reply()));
}

/// What version 8 looks like. These bytes never change; a new format gets a new version.
#[test]
fn messages_of_version_8_are_read_and_written_as_ever() {
    let old = unhex(include_str!("../../fixtures/frame.v8.hex"));
    assert_eq!(hex(&frame().encode()), hex(&old));
    assert_eq!(Frame::decode(&old), Ok(frame()));
    let old = unhex(include_str!("../../fixtures/reply.v8.hex"));
    assert_eq!(hex(&reply().encode()), hex(&old));
    assert_eq!(Reply::decode(&old), Ok(reply()));
}

#[test]
fn damage_is_refused() {
    let bytes = frame().encode();
    assert_eq!(Frame::decode(&[]), Err(WireError::Malformed));
    assert_eq!(Frame::decode(&bytes[..bytes.len() - 1]), Err(WireError::Malformed));
    let mut longer = bytes.to_vec();
    longer.push(0);
    assert_eq!(Frame::decode(&longer), Err(WireError::Malformed));
    longer[0] = 1;
    assert_eq!(Frame::decode(&longer), Err(WireError::Version(1)));
}

#[test]
fn kinds_of_requests() {
    let reads = asks().into_iter().filter(Ask::is_read).count();
    let binding = asks().into_iter().filter(Ask::binds).count();
    assert_eq!((reads, binding), (11, 9));
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = WIRE_VERSION;
        }
        if let Ok(frame) = Frame::decode(&bytes) {
            prop_assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
        }
        if let Ok(reply) = Reply::decode(&bytes) {
            prop_assert_eq!(Reply::decode(&reply.encode()), Ok(reply));
        }
    }

    #[test]
    fn flipped_bytes_never_panic(at in 0usize..2000, with in 1u8..) {
        for whole in [frame().encode(), reply().encode()] {
            let mut bytes = whole.to_vec();
            let at = at % bytes.len();
            bytes[at] ^= with;
            if let Ok(value) = Frame::decode(&bytes) {
                prop_assert_eq!(Frame::decode(&value.encode()), Ok(value));
            }
            if let Ok(value) = Reply::decode(&bytes) {
                prop_assert_eq!(Reply::decode(&value.encode()), Ok(value));
            }
        }
    }
}
