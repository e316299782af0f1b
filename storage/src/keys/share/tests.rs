use super::*;
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

fn deal(seed: u64, threshold: u8, parts: u8) -> (Secret, Dealing) {
    let mut rng = StdRng::seed_from_u64(seed);
    let secret = Secret::random(&mut rng);
    let dealing = get_key_parts(&secret, threshold, parts, &mut rng).expect("valid split");
    (secret, dealing)
}

fn same(a: &Secret, b: &Secret) -> bool {
    a.master_key().expose() == b.master_key().expose()
}

#[test]
fn splits_out_of_range_are_refused() {
    let mut rng = StdRng::seed_from_u64(1);
    let secret = Secret::random(&mut rng);
    for (threshold, parts) in [(0, 0), (0, 3), (1, 1), (1, 3), (4, 3), (255, 254)] {
        let refused = get_key_parts(&secret, threshold, parts, &mut rng).err();
        assert_eq!(refused, Some(PartError::Split { threshold, parts }));
    }
    assert_eq!(deal(2, 2, 2).1.parts.len(), 2);
    assert_eq!(deal(2, 3, 255).1.parts.len(), 255);
}

/// Every subset of every small dealing: enough parts give the secret, fewer do not.
#[test]
fn exactly_the_subsets_of_threshold_size_reconstruct() {
    for parts in 2..=6u8 {
        for threshold in 2..=parts {
            let (secret, dealing) = deal(3, threshold, parts);
            for set in 0u32..1 << parts {
                let chosen: Vec<KeyPart> = (0..parts)
                    .rev()
                    .filter(|i| set & 1 << i != 0)
                    .map(|i| dealing.parts[usize::from(i)].clone())
                    .collect();
                let result = reconstruct_symmetric_key(&chosen, &dealing.commitments);
                let (need, have) = (usize::from(threshold), chosen.len());
                match result {
                    Ok(back) => assert!(have >= need && same(&back, &secret)),
                    Err(error) => {
                        assert!(have < need);
                        assert_eq!(error, PartError::NotEnough { need, have });
                    }
                }
            }
        }
    }
}

#[test]
fn bad_parts_are_refused_by_name() {
    let (_, dealing) = deal(4, 3, 5);
    let (_, other) = deal(5, 3, 5);
    let (_, lower) = deal(6, 2, 5);
    let check = |part: &KeyPart| verify_part(part, &dealing.commitments);
    for part in &dealing.parts {
        assert_eq!(check(part), Ok(()));
    }
    let good = &dealing.parts[1];
    let mut altered = good.clone();
    altered.value += Scalar::ONE;
    assert_eq!(check(&altered), Err(PartError::Mismatch { index: 2 }));
    let mut renamed = good.clone();
    renamed.index = 3;
    assert_eq!(check(&renamed), Err(PartError::Mismatch { index: 3 }));
    let mut zero = good.clone();
    zero.value = Scalar::ZERO;
    assert_eq!(check(&zero), Err(PartError::ZeroPart { index: 2 }));
    let mut nameless = good.clone();
    nameless.index = 0;
    assert_eq!(check(&nameless), Err(PartError::ZeroIndex));
    assert_eq!(check(&other.parts[1]), Err(PartError::Mismatch { index: 2 }));
    let length = PartError::Length { index: 2, threshold: 2, commitments: 3 };
    assert_eq!(check(&lower.parts[1]), Err(length));
    let length = PartError::Length { index: 2, threshold: 3, commitments: 2 };
    assert_eq!(verify_part(good, &lower.commitments), Err(length));
    // A part that lies about its threshold to get past the length does not verify.
    let mut liar = lower.parts[1].clone();
    liar.threshold = 3;
    assert_eq!(check(&liar), Err(PartError::Mismatch { index: 2 }));
}

/// One bad part among enough good ones stops the reconstruction and is named, wherever it stands.
#[test]
fn reconstruction_names_the_bad_part() {
    let (_, dealing) = deal(7, 2, 4);
    let (_, other) = deal(8, 2, 4);
    for at in 0..4 {
        let mut parts = dealing.parts.clone();
        parts[at] = other.parts[at].clone();
        let index = at as u8 + 1;
        let error = reconstruct_symmetric_key(&parts, &dealing.commitments).err();
        assert_eq!(error, Some(PartError::Mismatch { index }));
        parts[at] = dealing.parts[(at + 1) % 4].clone();
        let repeated = dealing.parts[(at + 1) % 4].index();
        let error = reconstruct_symmetric_key(&parts, &dealing.commitments).err();
        assert_eq!(error, Some(PartError::Duplicate { index: repeated }));
    }
    let twice = [dealing.parts[0].clone(), dealing.parts[0].clone()];
    let error = reconstruct_symmetric_key(&twice, &dealing.commitments).err();
    assert_eq!(error, Some(PartError::Duplicate { index: 1 }));
    let none = reconstruct_symmetric_key(&[], &dealing.commitments).err();
    assert_eq!(none, Some(PartError::NotEnough { need: 2, have: 0 }));
}

#[test]
fn each_purpose_and_secret_has_its_own_key() {
    let (a, _) = deal(9, 2, 3);
    let (b, _) = deal(10, 2, 3);
    assert_ne!(a.master_key().expose(), a.wrapping_key().expose());
    assert_ne!(a.master_key().expose(), b.master_key().expose());
    // Both secrets count, and which is which.
    let epochs = [(&a, &b), (&b, &a), (&a, &a)].map(|(m, w)| *m.epoch_master_key(w).expose());
    assert!(epochs[0] != epochs[1] && epochs[0] != epochs[2] && epochs[1] != epochs[2]);
    assert!(!epochs.contains(a.master_key().expose()));
    assert_ne!(a.wrapping_key().expose(), b.wrapping_key().expose());
}

#[test]
fn dealing_twice_gives_unrelated_parts() {
    let mut rng = StdRng::seed_from_u64(11);
    let secret = Secret::random(&mut rng);
    let first = get_key_parts(&secret, 2, 3, &mut rng).expect("valid split");
    let second = get_key_parts(&secret, 2, 3, &mut rng).expect("valid split");
    assert_eq!(first.commitments.0[0], second.commitments.0[0]);
    assert_ne!(first.commitments, second.commitments);
    let mixed = [first.parts[0].clone(), second.parts[1].clone()];
    let error = reconstruct_symmetric_key(&mixed, &first.commitments).err();
    assert_eq!(error, Some(PartError::Mismatch { index: 2 }));
}

/// Parts on custodians' disks are read by every later build: `f(x) = 5 + 3x`, so part 2 is 11.
#[test]
fn old_bytes_keep_decoding() {
    let mut bytes = vec![1, 2, 2];
    bytes.resize(34, 0);
    bytes.push(11);
    let part = KeyPart::from_bytes(&bytes).expect("a part");
    assert_eq!(*part.to_bytes(), bytes);
    // 5G and 3G, from the published tables of secp256k1.
    let hex = "0102\
        022f8bde4d1a07209355b4a7250a5c5128e88b84bddc619ab7cba8d569b240efe4\
        02f9308a019258c31049344f85f89d5229b531c845836f99b08601f113bce036f9";
    let bytes: Vec<u8> = (0..hex.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hex"))
        .collect();
    let commitments = Commitments::from_bytes(&bytes).expect("commitments");
    assert_eq!(commitments.to_bytes(), bytes);
    assert_eq!(verify_part(&part, &commitments), Ok(()));
    let mut first = part.clone();
    (first.index, first.value) = (1, Scalar::from(8u64));
    let secret = reconstruct_symmetric_key(&[part, first], &commitments).expect("both verify");
    assert_eq!(secret.0, Scalar::from(5u64));
}

#[test]
fn malformed_bytes_are_refused() {
    let (_, dealing) = deal(12, 2, 3);
    let good = dealing.parts[0].to_bytes();
    let read = |bytes: &[u8]| KeyPart::from_bytes(bytes).map(|_| ());
    assert_eq!(read(&good), Ok(()));
    assert_eq!(read(&good[..34]), Err(PartError::BadPart));
    assert_eq!(read(&[&good[..], &[0]].concat()), Err(PartError::BadPart));
    assert_eq!(read(&[&[2], &good[1..]].concat()), Err(PartError::BadPart));
    // Not below the order of the group.
    assert_eq!(read(&[&good[..3], &[0xff; 32]].concat()), Err(PartError::BadPart));

    let good = dealing.commitments.to_bytes();
    let bad = Err(PartError::BadCommitments);
    let read = |bytes: &[u8]| Commitments::from_bytes(bytes).map(|_| ());
    assert_eq!(read(&good), Ok(()));
    assert_eq!(read(&good[..good.len() - 1]), bad);
    assert_eq!(read(&[&[1, 3], &good[2..]].concat()), bad);
    assert_eq!(read(&[&[1, 1], &good[2..35]].concat()), bad);
    assert_eq!(read(&[1, 0]), bad);
    assert_eq!(read(&[&[9], &good[1..]].concat()), bad);
    // The identity commits to nothing, and 0xff is no compressed point.
    assert_eq!(read(&[&[1, 2], &[0; 33][..], &good[35..]].concat()), bad);
    assert_eq!(read(&[&[1, 2], &[0xff; 33][..], &good[35..]].concat()), bad);
}

#[test]
fn nothing_secret_is_printed() {
    let (secret, dealing) = deal(13, 2, 2);
    let text = format!("{secret:?} {dealing:?}");
    let expected = "Secret(redacted) Dealing { parts: [KeyPart(1 of a threshold of 2, redacted), \
        KeyPart(2 of a threshold of 2, redacted)], commitments: Commitments(threshold 2) }";
    assert_eq!(text, expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_threshold_of_the_parts_reconstructs(
        seed: u64,
        (threshold, parts) in (2u8..=7).prop_flat_map(|t| (Just(t), t..=9)),
        order: prop::sample::Index,
        flip in 0usize..256,
    ) {
        let (secret, dealing) = deal(seed, threshold, parts);
        // Through bytes, as custodians keep and send them.
        let commitments = postcard::to_stdvec(&dealing.commitments).expect("serializes");
        let commitments: Commitments = postcard::from_bytes(&commitments).expect("reads");
        let mut chosen: Vec<KeyPart> = dealing
            .parts
            .iter()
            .map(|part| KeyPart::from_bytes(&part.to_bytes()).expect("reads"))
            .collect();
        chosen.rotate_left(order.index(usize::from(parts)));
        chosen.truncate(usize::from(threshold));
        let back = reconstruct_symmetric_key(&chosen, &commitments).expect("enough");
        prop_assert!(same(&back, &secret));

        let missing = chosen.pop().expect("at least two");
        let error = reconstruct_symmetric_key(&chosen, &commitments).err();
        let need = usize::from(threshold);
        prop_assert_eq!(error, Some(PartError::NotEnough { need, have: need - 1 }));

        // A flipped bit of its value: either no scalar at all, or refused by name.
        let mut bytes = missing.to_bytes();
        bytes[3 + flip / 8] ^= 1 << (flip % 8);
        match KeyPart::from_bytes(&bytes) {
            Err(error) => prop_assert_eq!(error, PartError::BadPart),
            Ok(altered) => {
                let index = altered.index();
                chosen.push(altered);
                let error = reconstruct_symmetric_key(&chosen, &commitments).err();
                prop_assert_eq!(error, Some(PartError::Mismatch { index }));
            }
        }
    }
}
