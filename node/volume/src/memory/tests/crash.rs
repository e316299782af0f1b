//! A rotation with a death at every step of it: of whoever sees to it, or of the custodian that is asked. Whatever
//! has happened by then, every record opens with what the map and the custodians have, and in the end the older
//! keys are gone.

use super::*;

/// Who dies at a step, and whether what was asked has been done by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    KeeperBefore,
    KeeperAfter,
    CustodianBefore,
    CustodianAfter,
}

/// Whoever saw to it is dead.
#[derive(Debug)]
struct Died;

/// A cluster that counts what is asked of it, and in which somebody dies at one step.
struct Mortal {
    cluster: MemoryCluster,
    at: usize,
    who: Who,
    steps: std::sync::atomic::AtomicUsize,
}

impl Mortal {
    /// Whether the one who sees to it goes on, and a custodian that was asked.
    fn step(&self, custodian: Option<NodeId>) -> (bool, bool) {
        let step = self.steps.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        if step != self.at {
            return (self.steps_left(step), true);
        }
        match (self.who, custodian) {
            (Who::KeeperBefore | Who::KeeperAfter, _) | (_, None) => (false, true),
            (Who::CustodianBefore | Who::CustodianAfter, Some(_)) => (true, false),
        }
    }

    /// The dead do nothing more.
    fn steps_left(&self, step: usize) -> bool {
        step < self.at || matches!(self.who, Who::CustodianBefore | Who::CustodianAfter)
    }

    /// Something that is done at once, unless somebody dies before.
    fn act<T>(&self, act: impl FnOnce(&MemoryCluster) -> T) -> Result<T, Died> {
        match self.step(None) {
            (true, _) => Ok(act(&self.cluster)),
            (false, _) => {
                if matches!(self.who, Who::KeeperAfter | Who::CustodianAfter) {
                    act(&self.cluster);
                }
                Err(Died)
            }
        }
    }

    fn asked<T>(
        &self,
        custodian: NodeId,
        ask: impl FnOnce() -> BoxFuture<'static, Result<T, String>>,
    ) -> Result<T, String> {
        let (keeper, answers) = self.step(Some(custodian));
        if keeper && answers {
            return ask().now_or_never().expect("memory answers at once");
        }
        if matches!(self.who, Who::KeeperAfter | Who::CustodianAfter) {
            let _ = ask().now_or_never();
        }
        if !answers {
            self.cluster.stop_node(custodian);
        }
        Err("dead".into())
    }
}

impl Cluster for Mortal {
    fn id(&self) -> ClusterId {
        self.cluster.id()
    }

    fn stores(&self) -> Vec<Candidate> {
        self.cluster.stores()
    }

    fn custody(&self) -> Custody {
        self.cluster.custody()
    }

    fn custodians(&self) -> Custodians {
        self.cluster.custodians()
    }

    fn recovery(&self) -> Option<Recovery> {
        self.cluster.recovery()
    }

    fn unix_seconds(&self) -> u64 {
        self.cluster.unix_seconds()
    }

    fn keep(
        &self,
        custodian: NodeId,
        secret: SecretName,
        share_epoch: u32,
        part: &KeyPart,
        commitments: &Commitments,
    ) -> BoxFuture<'_, Result<(), String>> {
        let (cluster, part) = (self.cluster.clone(), part.clone());
        let commitments = commitments.clone();
        let kept = self.asked(custodian, move || {
            async move { cluster.keep(custodian, secret, share_epoch, &part, &commitments).await }
                .boxed()
        });
        ready(kept).boxed()
    }

    fn release(
        &self,
        custodian: NodeId,
        share: ShareName,
    ) -> BoxFuture<'_, Result<KeyPart, String>> {
        let cluster = self.cluster.clone();
        let released = self.asked(custodian, move || {
            async move { cluster.release(custodian, share).await }.boxed()
        });
        ready(released).boxed()
    }

    fn session(&self, volume: VolumeId) -> BoxFuture<'_, Result<Session, VolumeError>> {
        self.cluster.session(volume)
    }
}

/// The volume as the map has it.
fn now(cluster: &MemoryCluster) -> Volume {
    cluster.lock().volume(id(1)).expect("there").clone()
}

/// What is to be done for a volume whose keys are wanted anew, from wherever it was left.
async fn rotate(mortal: &Mortal) -> Result<(), Died> {
    let cluster = &mortal.cluster;
    let volume = now(cluster);
    if volume.rotate {
        let metadata = ShardMetadata::of(&volume).expect("whole");
        let made = rotate_keys(mortal, id(1), &metadata).await.map_err(|_| Died)?;
        mortal.act(|cluster| cluster.begin_key_epoch(id(1), made).expect("taken"))?;
    }
    let metadata = ShardMetadata::of(&now(cluster)).expect("whole");
    let gateway = unshard_volume(mortal, id(1), &metadata).await.map_err(|_| Died)?;
    let volume = now(cluster);
    let (no, generation) = (volume.no, volume.writer_gen);
    let rows: Arc<dyn Rows> = Arc::new(MemoryRows { cluster: cluster.clone(), no, generation });
    let listed = cluster.list_blocks(id(1)).map_err(|_| Died)?;
    let places: Vec<_> = listed.iter().map(|block| (block.row, block.slot)).collect();
    for chunk in places.chunks(4) {
        // It dies before or after a write, which is whole or not there: that is the protocol's.
        mortal.act(|_| ())?;
        gateway.reseal(chunk, &rows).await.map_err(|_| Died)?;
    }
    let since = volume.key_epochs[&volume.key_epoch].since;
    let is_new = |block: &ListedBlock| block.contents >= Contents::Since(since);
    assert!(cluster.list_blocks(id(1)).map_err(|_| Died)?.iter().all(is_new));
    mortal.act(|cluster| {
        let below = volume.key_epoch;
        let retire = Command::RetireKeyEpochs { volume: no, generation, below };
        cluster.lock().apply(&retire);
    })?;
    let holders: Vec<NodeId> = cluster.custodians().nodes().collect();
    for node in holders {
        mortal.act(|cluster| destroy(cluster, node))?;
    }
    Ok(())
}

/// A custodian destroys what the map does not need.
fn destroy(cluster: &MemoryCluster, node: NodeId) {
    let mut state = cluster.lock();
    let names = state.map.custodies().map(|(secret, custody)| custody.share_name(secret));
    let wanted: BTreeSet<ShareName> = names.collect();
    state.shares.retain(|(of, share), _| *of != node || wanted.contains(share));
}

#[tokio::test]
async fn whoever_dies_at_whatever_step_of_a_rotation_every_record_opens() {
    let mut died = 0;
    let kinds = [Who::KeeperBefore, Who::KeeperAfter, Who::CustodianBefore, Who::CustodianAfter];
    for who in kinds {
        for at in 1.. {
            let what = format!("{who:?} at step {at}");
            let (cluster, metadata) = volume(3, 2, 1).await;
            let device = cluster.device(id(1)).await.expect("attached");
            for place in [0, 5 << 20, SIZE - 40_960] {
                device.write(place, pattern(place, 40_960).into()).await.expect("written");
            }
            drop(device);
            let (no, key_epoch) = (now(&cluster).no, metadata.key_epoch);
            cluster.lock().must(&Command::AskRotation { volume: no, key_epoch });
            let mortal = Mortal { cluster: cluster.clone(), at, who, steps: 0.into() };
            let whole = rotate(&mortal).await.is_ok();
            let steps = mortal.steps.load(std::sync::atomic::Ordering::Relaxed);
            opens(&cluster, &what).await;
            for node in (1..=3).map(NodeId) {
                cluster.start_node(node);
            }
            cluster.heal(id(1)).expect("healed");
            opens(&cluster, &what).await;
            // Whoever sees to it next knows what the map says.
            let next = Mortal {
                cluster: cluster.clone(),
                at: 0,
                who: Who::CustodianAfter,
                steps: 0.into(),
            };
            rotate(&next).await.unwrap_or_else(|Died| panic!("{what}: it does not end"));
            opens(&cluster, &what).await;
            let after = now(&cluster);
            assert!(!after.rotate && after.key_epochs.len() == 1, "{what}");
            assert_eq!(after.key_epoch.0, 2, "{what}: one wish, one key epoch");
            let shares = cluster.lock().shares.len();
            assert_eq!(shares, 6, "{what}: of the master secret, and of one wrapping secret");
            if whole && steps < at {
                break;
            }
            died += 1;
        }
    }
    assert!(died > 60, "{died} deaths");
}

/// All that was written is there, whoever opens it.
async fn opens(cluster: &MemoryCluster, what: &str) {
    for place in [0, 5 << 20, SIZE - 40_960] {
        let read = read_data(cluster, id(1), place, 40_960).await;
        let read = read.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(read == pattern(place, 40_960), "{what}: at {place}");
    }
}
