use super::*;
use crate::record::{ABSENT, RECORD_LEN};
use proptest::prelude::*;
use reed_solomon_simd::ReedSolomonDecoder;

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 32) as u8
        })
        .collect()
}

/// Data and parity records of a random row.
fn row(code: &Code, seed: u64, len: usize) -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = (0..code.n as u64).map(|j| bytes(seed * 64 + j, len)).collect();
    let data: Vec<&[u8]> = all.iter().map(Vec::as_slice).collect();
    let parity = code.encode(&data).expect("encodes");
    all.extend(parity.into_iter().map(Vec::from));
    all
}

/// The parity that the library itself makes, by its simplest interface.
fn library(n: usize, k: usize, data: &[Vec<u8>]) -> Vec<Vec<u8>> {
    reed_solomon_simd::encode(n, k, data).expect("encodes")
}

fn slots(set: u32) -> Vec<Slot> {
    SlotSet(set).iter().collect()
}

#[test]
fn parity_is_the_librarys_for_every_geometry() {
    for n in 1..=31u8 {
        for k in 1..=32 - n {
            let code = Code::new(n, k).expect("valid");
            let all = row(&code, 1, 128);
            let (n, k) = (usize::from(n), usize::from(k));
            assert_eq!(all[n..], library(n, k, &all[..n]), "{n}+{k}");
            assert!(code.generator.iter().flatten().all(|factor| *factor != 0), "{n}+{k}");
        }
    }
}

#[test]
fn one_parity_is_xor_and_one_data_is_a_copy() {
    for n in 1..=31u8 {
        let code = Code::new(n, 1).expect("valid");
        let all = row(&code, 2, 64);
        let mut sum = vec![0; 64];
        all.iter().for_each(|record| xor(&mut sum, record));
        assert_eq!(sum, [0; 64], "{n}+1");
        let code = Code::new(1, n).expect("valid");
        assert!(row(&code, 3, 64).windows(2).all(|pair| pair[0] == pair[1]), "1+{n}");
    }
}

/// Every way to keep exactly `n` of `n + k` records, for every geometry up to 8+4.
#[test]
fn any_n_records_give_all_others() {
    for n in 1..=8u8 {
        for k in 1..=4u8 {
            let code = Code::new(n, k).expect("valid");
            let all = row(&code, 4, 64);
            let every: Vec<Slot> = (0..n + k).map(Slot).collect();
            for kept in (0u32..1 << (n + k)).filter(|set| set.count_ones() == u32::from(n)) {
                let have: Vec<(Slot, &[u8])> =
                    slots(kept).into_iter().rev().map(|s| (s, &all[s.index()][..])).collect();
                let rebuilt = code.reconstruct(&have, &every).expect("enough");
                for (slot, record) in rebuilt {
                    assert_eq!(record, all[slot.index()], "{n}+{k} kept {kept:b} slot {slot}");
                }
            }
        }
    }
}

/// Our decoding by matrix agrees with the library's own decoder.
#[test]
fn decoding_agrees_with_the_library() {
    for (n, k) in [(2u8, 1u8), (2, 2), (3, 2), (4, 2), (8, 3), (8, 4), (20, 12)] {
        let code = Code::new(n, k).expect("valid");
        let (n, k) = (usize::from(n), usize::from(k));
        let all = row(&code, 5, RECORD_LEN);
        let lost = k.min(n);
        let mut decoder = ReedSolomonDecoder::new(n, k, RECORD_LEN).expect("valid");
        let mut have: Vec<(Slot, &[u8])> = Vec::new();
        for (i, record) in all.iter().enumerate().take(n).skip(lost) {
            decoder.add_original_shard(i, record).expect("adds");
            have.push((Slot(i as u8), record));
        }
        for (i, record) in all[n..].iter().enumerate().take(lost) {
            decoder.add_recovery_shard(i, record).expect("adds");
            have.push((Slot((n + i) as u8), record));
        }
        let want: Vec<Slot> = (0..lost as u8).map(Slot).collect();
        let ours = code.reconstruct(&have, &want).expect("enough");
        let theirs = decoder.decode().expect("decodes");
        for (slot, record) in ours {
            assert_eq!(Some(&record[..]), theirs.restored_original(slot.index()), "{n}+{k}");
        }
    }
}

#[test]
fn surplus_records_are_not_needed_and_do_no_harm() {
    let code = Code::new(4, 2).expect("valid");
    let all = row(&code, 6, 64);
    let have: Vec<(Slot, &[u8])> =
        [5u8, 3, 0, 4, 1].map(|s| (Slot(s), &all[usize::from(s)][..])).to_vec();
    let rebuilt = code.reconstruct(&have, &[Slot(2)]).expect("enough");
    assert_eq!(rebuilt, [(Slot(2), Bytes::from(all[2].clone()))]);
    assert_eq!(code.reconstruct(&have, &[]), Ok(vec![]));
}

#[test]
fn absent_rows_have_absent_parity() {
    for (n, k) in [(1, 1), (2, 1), (2, 2), (4, 2), (8, 4)] {
        let code = Code::new(n, k).expect("valid");
        let data = vec![&ABSENT[..]; usize::from(n)];
        for parity in code.encode(&data).expect("encodes") {
            assert_eq!(parity, &ABSENT[..]);
        }
        for delta in code.delta(Slot(0), &ABSENT).expect("data slot") {
            assert_eq!(delta, &ABSENT[..]);
        }
    }
}

#[test]
fn bad_questions_are_refused_by_name() {
    assert_eq!(Code::new(0, 1).err(), Some(CodeError::Shape { n: 0, k: 1 }));
    assert_eq!(Code::new(1, 0).err(), Some(CodeError::Shape { n: 1, k: 0 }));
    assert_eq!(Code::new(31, 2).err(), Some(CodeError::Shape { n: 31, k: 2 }));
    let code = Code::new(2, 2).expect("valid");
    let (a, b, short) = ([1u8; 128], [2u8; 128], [3u8; 64]);
    assert_eq!(code.encode(&[&a]), Err(CodeError::Count { need: 2, have: 1 }));
    assert_eq!(code.encode(&[&a, &short]), Err(CodeError::Length(64)));
    assert_eq!(code.encode(&[&[], &[]]), Err(CodeError::Length(0)));
    assert_eq!(code.encode(&[&a[..65], &b[..65]]), Err(CodeError::Length(65)));
    assert_eq!(code.delta(Slot(2), &a), Err(CodeError::Slot(Slot(2))));
    assert_eq!(code.delta(Slot(0), &a[..63]), Err(CodeError::Length(63)));
    let rebuild = |have: &[(u8, &[u8])], want: u8| {
        let have: Vec<(Slot, &[u8])> = have.iter().map(|(s, r)| (Slot(*s), *r)).collect();
        code.reconstruct(&have, &[Slot(want)]).map(|_| ())
    };
    assert_eq!(rebuild(&[(0, &a)], 1), Err(CodeError::NotEnough { need: 2, have: 1 }));
    assert_eq!(rebuild(&[(0, &a), (0, &a)], 1), Err(CodeError::Duplicate(Slot(0))));
    assert_eq!(rebuild(&[(0, &a), (4, &a)], 1), Err(CodeError::Slot(Slot(4))));
    assert_eq!(rebuild(&[(0, &a), (1, &b)], 4), Err(CodeError::Slot(Slot(4))));
    assert_eq!(rebuild(&[(0, &a), (1, &short)], 2), Err(CodeError::Length(64)));
    assert_eq!(rebuild(&[(0, &a), (1, &b)], 3), Ok(()));
}

/// Parity on disk must be extended by deltas of every later build.
#[test]
fn the_generator_never_changes() {
    let code = Code::new(4, 2).expect("valid");
    assert_eq!(code.generator, [[3, 2, 5, 4], [2, 3, 4, 5]]);
}

#[test]
fn one_code_serves_many_threads_and_shapes() {
    let codes: Vec<Code> =
        [(2, 2), (4, 2), (8, 3)].map(|(n, k)| Code::new(n, k).expect("valid")).into();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let codes = &codes;
            scope.spawn(move || {
                for round in 0..50 {
                    for code in codes {
                        let all = row(code, thread * 1000 + round, 256);
                        assert_eq!(all[code.n..], library(code.n, code.k, &all[..code.n]));
                    }
                }
            });
        }
    });
}

proptest! {
    #[test]
    fn a_delta_is_a_re_encoding(n in 1u8..=8, k in 1u8..=4, seed: u32, pick: u8, pieces in 1usize..9) {
        let code = Code::new(n, k).expect("valid");
        let slot = Slot(pick % n);
        let len = pieces * PIECE;
        let old = row(&code, u64::from(seed), len);
        let mut new = old.clone();
        new[slot.index()] = bytes(u64::from(seed) << 20 | 5, len);
        let data: Vec<&[u8]> = new[..code.n].iter().map(Vec::as_slice).collect();
        let expected = code.encode(&data).expect("encodes");
        let mut delta = old[slot.index()].clone();
        xor(&mut delta, &new[slot.index()]);
        let deltas = code.delta(slot, &delta).expect("data slot");
        for (p, (delta, expected)) in deltas.iter().zip(&expected).enumerate() {
            let mut parity = old[code.n + p].clone();
            xor(&mut parity, delta);
            prop_assert_eq!(&parity[..], &expected[..]);
        }
    }

    #[test]
    fn any_loss_of_large_geometries_is_rebuilt(n in 1u8..=31, k in 1u8..=31, seed: u32, order: [u64; 2]) {
        let k = k.min(32 - n);
        let code = Code::new(n, k).expect("valid");
        let all = row(&code, u64::from(seed), 64);
        // A random n of the slots: drop one at a time.
        let mut kept: Vec<Slot> = (0..n + k).map(Slot).collect();
        let mut draw = u128::from(order[0]) << 64 | u128::from(order[1]);
        while kept.len() > code.n {
            let at = (draw % kept.len() as u128) as usize;
            draw = (draw / kept.len() as u128) ^ (draw << 40);
            kept.swap_remove(at);
        }
        let have: Vec<(Slot, &[u8])> = kept.iter().map(|s| (*s, &all[s.index()][..])).collect();
        let want: Vec<Slot> = (0..n + k).map(Slot).collect();
        for (slot, record) in code.reconstruct(&have, &want).expect("enough") {
            prop_assert_eq!(&record[..], &all[slot.index()][..]);
        }
    }
}
