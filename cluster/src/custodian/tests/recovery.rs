//! Secrets that are dealt anew, by somebody who had them whole again: what a custodian takes of that, and what
//! somebody who had none can not do with it.

use super::*;
use crate::custodian::judge;
use smalti_storage::keys::open_for_recovery;

impl World {
    /// What of a custodian's folder is left: nothing, or files that do not open.
    fn lose(&mut self, no: u64, broken: bool) {
        for file in std::fs::read_dir(self.dirs[&NodeId(no)].path()).unwrap() {
            let file = file.unwrap().path();
            if file.extension().is_some_and(|kind| kind == "share") {
                if broken {
                    std::fs::write(file, [1; 64]).unwrap();
                } else {
                    std::fs::remove_file(file).unwrap();
                }
            }
        }
        self.restart(NodeId(no));
    }

    /// A dealing of a secret as the map wants it.
    fn deal(&mut self, secret: &Secret) -> Dealing {
        let plan = &self.map.custodians;
        let (threshold, total) = (plan.threshold, plan.holders.len() as u8);
        get_key_parts(secret, threshold, total, &mut self.rng).unwrap()
    }

    fn open(&self, name: SecretName) -> Secret {
        let custody = self.map.custody_of(&name).unwrap();
        let commitments = Commitments::from_bytes(&custody.commitments).unwrap();
        let cluster = ClusterId(Uuid::from_u128(1));
        let envelope = &custody.sealed_for_recovery;
        open_for_recovery(&self.recovery.0, envelope, cluster, name, &commitments).unwrap()
    }

    /// As the node does that people gave their shares to. `Ok(false)` if somebody refused something.
    fn recover(&mut self) -> Result<bool, Died> {
        let plan = self.map.custodians.clone();
        let named: Vec<SecretName> = self.map.custodies().map(|(secret, _)| secret).collect();
        for name in named {
            let before = self.map.custody_of(&name).unwrap().clone();
            if before.share_epoch == plan.share_epoch {
                continue;
            }
            let secret = self.open(name);
            let dealing = self.deal(&secret);
            for (node, part) in plan.nodes().zip(&dealing.parts) {
                let ask = self.keep(name, part, &dealing.commitments);
                if self.ask(5, node, ask)? != Answer::Kept {
                    return Ok(false);
                }
            }
            let custody = Custody {
                share_epoch: plan.share_epoch,
                threshold: plan.threshold,
                holders: plan.holders.clone(),
                commitments: dealing.commitments.to_bytes(),
                sealed_for_recovery: before.sealed_for_recovery,
            };
            let from = before.commitments;
            self.propose(&Command::Reshare { secret: name, from, custody })?;
            self.sweep();
        }
        Ok(true)
    }
}

#[track_caller]
fn refused(outcome: Outcome, text: &str) {
    let Outcome::Answer(Answer::Refused(why)) = outcome else { panic!("{outcome:?}") };
    assert!(why.contains(text), "{why}");
}

/// Two of three custodians have lost their shares, or can not open them: nobody can deal them on.
#[test]
fn what_too_few_can_open_is_dealt_anew_whoever_dies_at_whatever_step() {
    let mut died = 0;
    for (broken, nodes) in [(false, &[1, 2, 3][..]), (true, &[1, 2, 3]), (true, &[3, 4, 5])] {
        for who in [Who::AskedBefore, Who::AskedAfter, Who::AskerBefore, Who::AskerAfter] {
            for at in 1.. {
                let mut world = World::new();
                world.lose(1, broken);
                world.lose(2, broken);
                world.set(2, nodes);
                assert!(!matches!(world.deal_on(), Ok(true)), "one share is enough");
                world.steps = 0;
                world.crash = Some(Crash { at, who });
                let mut tries = 0;
                while !matches!(world.recover(), Ok(true)) {
                    tries += 1;
                    assert!(tries < 4, "{who:?} at {at}: it does not come to an end");
                }
                world.sweep();
                world.check("recovered");
                assert_eq!(world.shares(), 2 * nodes.len(), "none is left of before");
                if world.steps < at {
                    break;
                }
                died += 1;
            }
        }
    }
    assert!(died > 80, "{died} deaths");
}

/// A member that knows a secret, or makes a share up, and would have custodians take it for theirs.
#[test]
fn what_somebody_brings_is_kept_only_as_the_map_wants_it() {
    let mut world = World::new();
    let (one, two) = (NodeId(1), NodeId(2));
    let bring = |world: &World, part: &KeyPart, commitments: &Commitments| {
        world.keep(SecretName::Master, part, commitments)
    };
    let master = world.open(SecretName::Master);
    let dealing = world.deal(&master);
    let (parts, commitments) = (&dealing.parts, &dealing.commitments);
    // Nobody wants it dealt: it is as the custodians are.
    let ask = bring(&world, &parts[0], commitments);
    refused(world.once(5, one, ask), "another share of that secret is in use, of share epoch 1");
    world.set(2, &[1, 2, 3]);
    let at = |share_epoch| Ask::Keep {
        secret: SecretName::Master,
        share_epoch,
        share: ShareBytes(parts[0].to_bytes()),
        commitments: commitments.to_bytes(),
    };
    for share_epoch in [1, 3, u32::MAX] {
        refused(world.once(5, one, at(share_epoch)), "it is 2");
    }
    refused(world.once(9, one, at(2)), "is not a member");
    refused(world.once(5, two, at(2)), "share 1 is brought, 2 is to be here");
    refused(world.once(5, NodeId(4), at(2)), "is to have no share");
    let (other, higher) = {
        let other = Secret::random(&mut world.rng);
        let other = world.deal(&other);
        (other, get_key_parts(&master, 3, 3, &mut world.rng).unwrap())
    };
    let ask = bring(&world, &other.parts[0], &other.commitments);
    refused(world.once(5, one, ask), "no other master secret is wanted");
    let ask = bring(&world, &higher.parts[0], &higher.commitments);
    refused(world.once(5, one, ask), "a threshold of 3");
    let ask = bring(&world, &other.parts[0], commitments);
    refused(world.once(5, one, ask), "does not match");
    // Where nobody has recovery shares nobody can have it whole.
    let recovery = world.map.recovery.take();
    refused(world.once(5, one, at(2)), "the master secret is not dealt again");
    world.map.recovery = recovery;
    assert!(matches!(world.once(5, one, at(2)), Outcome::Answer(Answer::Kept)));
    let events = world.events(1);
    assert_eq!(events.last(), Some(&AuditEvent::Kept));
    world.check("what was kept besides changes nothing");
}

/// Shares that nobody wants are bounded in number, destroy none, are not given out, and go when the custodians
/// change again.
#[test]
fn shares_that_nobody_wanted_are_few_and_in_nobodys_way() {
    let mut world = World::new();
    world.set(2, &[1, 2, 3]);
    let master = world.open(SecretName::Master);
    let bring = |world: &mut World| {
        let dealing = world.deal(&master);
        let ask = world.keep(SecretName::Master, &dealing.parts[0], &dealing.commitments);
        (world.once(5, NodeId(1), ask), dealing)
    };
    let mut kept = Vec::new();
    for _ in 0..8 {
        let (outcome, dealing) = bring(&mut world);
        assert!(matches!(outcome, Outcome::Answer(Answer::Kept)), "{outcome:?}");
        kept.push(dealing);
    }
    refused(bring(&mut world).0, "8 shares of that secret are kept for share epoch 2 already");
    // The same one again is none more.
    let again = world.keep(SecretName::Master, &kept[0].parts[0], &kept[0].commitments);
    assert!(matches!(world.once(5, NodeId(1), again), Outcome::Answer(Answer::Kept)));
    world.sweep();
    world.check("those that count are there");
    let own = world.map.custody_of(&SecretName::Master).unwrap().share_name(SecretName::Master);
    let brought = ShareName { share_epoch: 2, ..own };
    refused(world.once(5, NodeId(1), Ask::Release { share: brought }), "share epoch 2");
    // Another share epoch: none of theirs can come to count any more, and there is room again.
    world.set(2, &[1, 2, 3]);
    world.sweep();
    let left = world.vault(NodeId(1)).names().unwrap();
    assert!(left.iter().all(|share| judge::is_wanted(&world.map, share)), "{left:?}");
    assert_eq!(left.len(), 2, "{left:?}");
    world.check("those that count are there yet");
    assert!(matches!(bring(&mut world).0, Outcome::Answer(Answer::Kept)));
    // And what custodians deal on themselves comes to an end all the same.
    assert!(matches!(world.deal_on(), Ok(true)));
    world.sweep();
    world.check("dealt on");
    assert_eq!(world.shares(), 6);
}
