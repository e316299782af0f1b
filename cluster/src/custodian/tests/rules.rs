//! What a custodian gives, keeps and destroys, and what it does not.

use super::*;

/// A member can make the map name commitments of a secret that anybody knows from the map, without having dealt
/// anything.
#[test]
fn a_dealing_that_nobody_was_given_destroys_nothing() {
    let mut world = World::new();
    world.set(2, &[1, 2, 3]);
    let before = world.shares();
    let (secret, old) = (wrapping(1), world.map.custody_of(&wrapping(1)).unwrap().clone());
    let mut rng = StdRng::seed_from_u64(4);
    let forged = get_key_parts(&world.secrets[&secret], 2, 3, &mut rng).unwrap();
    let sealed_for_recovery = old.sealed_for_recovery.clone();
    let custody = Custody { share_epoch: 2, sealed_for_recovery, ..dealt(&forged, &[1, 2, 3]) };
    world.must(&Command::Reshare { secret, from: old.commitments.clone(), custody });
    world.sweep();
    assert_eq!(world.shares(), before);
    for node in old.holders.iter().map(|holder| holder.node) {
        world.vault(node).find(&old.share_name(secret)).unwrap();
        let (map, now) = (world.map.clone(), world.now);
        assert_eq!(
            world.cores.get_mut(&node).unwrap().holdings(&map, now).lacking,
            1,
            "it is told"
        );
    }
    // Whoever gets it does without the older one.
    let name = world.map.custody_of(&secret).unwrap().share_name(secret);
    world.vault(NodeId(2)).keep(&name, &forged.parts[1]).unwrap();
    world.sweep();
    assert!(world.vault(NodeId(2)).find(&old.share_name(secret)).is_err());
    assert!(world.vault(NodeId(1)).find(&old.share_name(secret)).is_ok());
}

#[test]
fn what_is_asked_again_is_the_same_and_is_noted_once() {
    let mut world = World::new();
    let share = world.map.custody_of(&wrapping(1)).unwrap().share_name(wrapping(1));
    let one = NodeId(1);
    // More often than anybody may have shares: it has this one already.
    for _ in 0..600 {
        let outcome = world.once(4, one, Ask::Release { share });
        assert!(matches!(outcome, Outcome::Answer(Answer::Released(_))), "{outcome:?}");
    }
    world.set(2, &[1, 2, 4]);
    let deal = Ask::DealOn { share, share_epoch: 2 };
    let mut dealt = Vec::new();
    for _ in 0..2 {
        let outcome = world.once(3, one, deal.clone());
        let Outcome::Deal { gifts, commitments } = outcome else { panic!("{outcome:?}") };
        dealt.push((gifts, commitments));
    }
    assert_eq!(dealt[0], dealt[1]);
    use AuditEvent::{Began, DealtOn, Kept, Released};
    assert_eq!(world.events(1), [Began, Kept, Released, DealtOn]);
    world.now += std::time::Duration::from_secs(11);
    world.once(4, one, Ask::Release { share });
    assert_eq!(world.events(1).last(), Some(&Released));
}

#[test]
fn another_master_secret_is_kept_only_where_one_is_wanted() {
    let mut world = World::new();
    let mut rng = StdRng::seed_from_u64(5);
    let dealing = get_key_parts(&Secret::random(&mut rng), 2, 3, &mut rng).unwrap();
    let ask = |world: &World, part: usize| {
        world.keep(SecretName::Master, &dealing.parts[part], &dealing.commitments)
    };
    let refused = |outcome: Outcome, text: &str| {
        let Outcome::Answer(Answer::Refused(why)) = outcome else { panic!("{outcome:?}") };
        assert!(why.contains(text), "{why}");
    };
    let (one, first) = (NodeId(1), ask(&world, 0));
    refused(world.once(2, one, first.clone()), "no other master secret is wanted");
    world.set_with(2, &[1, 2, 3], true);
    refused(world.once(2, one, first), "no other master secret is wanted");
    let (first, second) = (ask(&world, 0), ask(&world, 1));
    refused(world.once(2, one, second), "share 2 is given, 1 is to be here");
    refused(world.once(9, one, first.clone()), "is not a member");
    let answer = world.once(2, one, first);
    assert!(matches!(answer, Outcome::Answer(Answer::Kept)), "{answer:?}");
    world.sweep();
    world.check("until the map has it, the one before counts");
}

#[test]
fn shares_of_before_are_refused_and_destroyed() {
    let mut world = World::new();
    let old = world.map.custody_of(&wrapping(1)).unwrap().clone();
    let share = old.share_name(wrapping(1));
    let before: Vec<KeyPart> =
        old.holders.iter().map(|holder| world.vault(holder.node).find(&share).unwrap()).collect();
    world.set(2, &[1, 2, 3]);
    assert!(matches!(world.deal_on(), Ok(true)));
    world.sweep();
    // The coordinator of an old map, and whoever has an old copy of the folder.
    let answer = world.once(4, NodeId(1), Ask::Release { share });
    assert!(
        matches!(&answer, Outcome::Answer(Answer::Refused(why)) if why.contains("it is 2")),
        "{answer:?}"
    );
    let new = world.map.custody_of(&wrapping(1)).unwrap().clone();
    let commitments = Commitments::from_bytes(&new.commitments).unwrap();
    let now = world.vault(NodeId(3)).find(&new.share_name(wrapping(1))).unwrap();
    let mixed = [before[0].clone(), now];
    assert!(reconstruct_symmetric_key(&mixed, &commitments).is_err(), "share epochs do not mix");
    let put_back =
        world.keep(wrapping(1), &before[0], &Commitments::from_bytes(&old.commitments).unwrap());
    let answer = world.once(4, NodeId(1), put_back);
    assert!(matches!(answer, Outcome::Answer(Answer::Refused(_))), "{answer:?}");
    use AuditEvent::{Began, Combined, DealtOn, Destroyed, Kept, Refused};
    let expected =
        [Began, Kept, DealtOn, Combined, Destroyed, DealtOn, Combined, Destroyed, Refused, Refused];
    assert_eq!(world.events(1), expected);
}

/// What the rules of custodians keep out, each with the control that what is asked rightly is given.
#[test]
fn who_may_not_have_something_is_refused_by_the_map() {
    let mut world = World::new();
    let name = |world: &World, secret| world.map.custody_of(&secret).unwrap().share_name(secret);
    let (master, share) = (name(&world, SecretName::Master), name(&world, wrapping(1)));
    let refused = |outcome: Outcome, text: &str| {
        let Outcome::Answer(Answer::Refused(why)) = outcome else { panic!("{outcome:?}") };
        assert!(why.contains(text), "{why}");
    };
    let one = NodeId(1);
    refused(world.once(2, one, Ask::Release { share }), "does not coordinate");
    refused(world.once(9, one, Ask::Release { share: master }), "is not a member");
    let strange = ShareName { secret: wrapping(7), ..share };
    refused(world.once(4, one, Ask::Release { share: strange }), "no such key epoch");
    assert!(matches!(
        world.once(4, one, Ask::Release { share }),
        Outcome::Answer(Answer::Released(_))
    ));
    assert!(matches!(
        world.once(2, one, Ask::Release { share: master }),
        Outcome::Answer(Answer::Released(_))
    ));
    // Nobody wants secrets dealt on.
    let deal = Ask::DealOn { share: master, share_epoch: 2 };
    refused(world.once(1, one, deal.clone()), "share epoch 2; it is 1");
    world.set(2, &[1, 2, 4]);
    refused(world.once(9, one, deal.clone()), "is not a member");
    refused(world.once(1, one, Ask::DealOn { share: master, share_epoch: 3 }), "it is 2");
    refused(world.once(1, NodeId(5), deal.clone()), "no share of that secret");
    let Outcome::Deal { gifts, .. } = world.once(1, one, deal) else { panic!("it is dealt on") };
    let to: Vec<u64> = gifts.iter().map(|(node, _)| node.0).collect();
    assert_eq!(to, [1, 2, 4], "to nobody but those that the map names");
    let gift = gifts[2].1.clone();
    let Ask::Take { from, share_epoch, share: given, commitments, .. } = gift.clone() else {
        panic!("{gift:?}")
    };
    // Given by another one, to another one, as another one's, or something else.
    refused(world.once(2, NodeId(4), gift.clone()), "does not hold share 1");
    refused(world.once(1, NodeId(2), gift.clone()), "share 3 is given, 2 is to be here");
    refused(world.once(1, NodeId(5), gift.clone()), "is to have no share");
    let again = |dealer, commitments: &[u8]| Ask::Take {
        from,
        share_epoch,
        dealer,
        share: given.clone(),
        commitments: commitments.to_vec(),
    };
    refused(world.once(1, NodeId(4), again(2, &commitments)), "does not hold share 2");
    let mut rng = StdRng::seed_from_u64(3);
    let other = get_key_parts(&Secret::random(&mut rng), 2, 3, &mut rng).unwrap();
    let other = other.commitments.to_bytes();
    refused(world.once(1, NodeId(4), again(1, &other)), "does not match");
    assert!(matches!(world.once(1, NodeId(4), gift), Outcome::Answer(Answer::Kept)));
    // Only what was taken can be combined.
    let dealers = |commitments: &[u8]| {
        [1, 2].map(|index| DealerBytes { index, commitments: commitments.to_vec() }).to_vec()
    };
    let combine = Ask::Combine { from, share_epoch, dealers: dealers(&commitments) };
    refused(world.once(1, NodeId(4), combine), "key part 2 does not match");
    world.check("nothing has changed");
}

#[test]
fn what_is_missing_is_noticed_and_proofs_are_of_what_is_there() {
    let mut world = World::new();
    let missing = |world: &mut World| {
        let (map, now) = (world.map.clone(), world.now);
        [1, 2, 4].map(|no| world.cores.get_mut(&NodeId(no)).unwrap().holdings(&map, now).lacking)
    };
    assert_eq!(missing(&mut world), [0, 0, 0]);
    let share = world.map.custody_of(&wrapping(1)).unwrap().share_name(wrapping(1));
    let file =
        std::fs::read_dir(world.dirs[&NodeId(2)].path()).unwrap().map(|file| file.unwrap().path());
    let file = file.filter(|file| file.to_string_lossy().contains("-1-1-")).last().unwrap();
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, [&bytes[..20], &[bytes[20] ^ 1], &bytes[21..]].concat()).unwrap();
    assert_eq!(missing(&mut world), [0, 0, 0], "it was read a moment ago");
    world.now += std::time::Duration::from_secs(3601);
    assert_eq!(missing(&mut world), [0, 1, 0]);
    let prove = Ask::Prove { challenge: [1; 32], shares: vec![share] };
    let proofs = |outcome| match outcome {
        Outcome::Answer(Answer::Proofs(proofs)) => proofs[0].clone(),
        other => panic!("{other:?}"),
    };
    assert!(proofs(world.once(3, NodeId(1), prove.clone())).is_ok());
    let why = proofs(world.once(3, NodeId(2), prove)).unwrap_err();
    assert!(why.contains("do not authenticate"), "{why}");
    // New shares for the same custodians mend it.
    world.set(2, &[1, 2, 3]);
    assert!(matches!(world.deal_on(), Ok(true)));
    world.check("dealt on");
    assert_eq!(missing(&mut world), [0, 0, 0]);
}
