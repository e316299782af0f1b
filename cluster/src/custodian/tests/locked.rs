//! A custodian whose key is out of reach: it says so, gives nothing, and has lost nothing.

use super::*;
use crate::custodian::Holdings;
use smalti_storage::keys::{KeyProvider, RestError};
use std::sync::{Mutex, PoisonError};
use zeroize::Zeroizing;

/// A provider that may be without its key.
#[derive(Debug)]
struct Lockable {
    key: RestKey,
    why: Mutex<Option<RestError>>,
}

impl Lockable {
    fn set(&self, why: Option<RestError>) {
        *self.why.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }
}

impl KeyProvider for Lockable {
    fn seal(&self, purpose: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, RestError> {
        self.ready()?;
        self.key.seal(purpose, plaintext)
    }

    fn open(&self, purpose: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, RestError> {
        self.ready()?;
        self.key.open(purpose, sealed)
    }

    fn ready(&self) -> Result<(), RestError> {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).clone().map_or(Ok(()), Err)
    }
}

#[test]
fn a_locked_custodian_says_so_gives_nothing_and_lacks_nothing() {
    let mut world = World::new();
    let two = NodeId(2);
    let why = Mutex::new(Some(RestError::Locked));
    let provider = Arc::new(Lockable { key: World::key(two), why });
    let folder = world.dirs[&two].path().to_owned();
    let vault = Vault::new(folder.clone(), CLUSTER, two, provider.clone());
    world.cores.insert(two, Core::open(two, vault, 5));
    let locked = "locked: `smalti key unlock` there";
    let first = world.cores.get_mut(&two).unwrap().first_holdings();
    assert_eq!(first, Holdings { lacking: 0, problem: locked.into() });

    let holdings = |world: &mut World| {
        let (map, now) = (world.map.clone(), world.now);
        world.cores.get_mut(&two).unwrap().holdings(&map, now)
    };
    let refusal = |outcome| match outcome {
        Outcome::Answer(Answer::Refused(why)) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(holdings(&mut world), first);
    let master = world.map.custody.share_name(SecretName::Master);
    let why = refusal(world.once(2, two, Ask::Release { share: master }));
    assert_eq!(why, "locked: `smalti key unlock` there");

    // Another provider's reason is told as it gives it.
    provider.set(Some(RestError::Provider("the card is out".into())));
    assert_eq!(holdings(&mut world).problem, "without its key: the card is out");

    provider.set(None);
    assert_eq!(holdings(&mut world), Holdings::default());
    let given = world.once(2, two, Ask::Release { share: master });
    assert!(matches!(given, Outcome::Answer(Answer::Released(_))), "{given:?}");

    // What is not there is missing, locked or not.
    provider.set(Some(RestError::Locked));
    for file in std::fs::read_dir(&folder).unwrap() {
        let file = file.unwrap().path();
        if file.extension().is_some_and(|extension| extension == "share") {
            std::fs::remove_file(file).unwrap();
        }
    }
    world.now += std::time::Duration::from_secs(3601);
    assert_eq!(holdings(&mut world), Holdings { lacking: 2, problem: locked.into() });
}
