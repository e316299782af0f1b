//! Which folders are watched, which open files belong to them, and which call is to fail.

use crate::hook;
use crate::record::{Event, FileId, Record};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A call that is to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which of the calls that change something, counted from 1.
    pub nth: u64,
    /// What happens then.
    pub kind: Kind,
}

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// This one, with this error number; the next ones pass, as after a failed sync of Linux.
    Once(i32),
    /// This one and all that follow.
    Forever(i32),
    /// A write takes only half of its bytes and says so; of all other calls this is none.
    Short,
}

/// A folder whose changes are recorded from [`Watch::begin`] until this is dropped.
#[derive(Debug)]
pub struct Watch {
    id: u64,
}

impl Watch {
    /// Begins to watch a folder, which must be there and empty.
    ///
    /// # Errors
    /// When it can not be read, is not empty, or has a name that is no text.
    pub fn begin(folder: &Path) -> io::Result<Self> {
        let folder = folder.canonicalize()?;
        if folder.read_dir()?.next().is_some() {
            return Err(io::Error::other("a folder to be watched has to be empty"));
        }
        let root = folder.to_str().ok_or_else(|| io::Error::other("a name that is no text"))?;
        hook::link();
        let mut state = lock();
        state.last += 1;
        let id = state.last;
        state.watched.push(Watched {
            id,
            root: root.to_owned(),
            folders: BTreeSet::from([String::new()]),
            names: BTreeMap::new(),
            nodes: BTreeMap::new(),
            lens: Vec::new(),
            events: Vec::new(),
            calls: 0,
            fault: None,
            steps: VecDeque::new(),
            takes: Duration::ZERO,
            bad: None,
            hit: None,
        });
        ACTIVE.fetch_add(1, Ordering::SeqCst);
        Ok(Self { id })
    }

    /// Puts a mark between the events before and after now.
    pub fn mark(&self, mark: u64) {
        self.with(|watched| watched.events.push(Event::Mark(mark)));
    }

    /// Lets a call fail.
    pub fn fail(&self, fault: Fault) {
        self.with(|watched| watched.fault = Some(fault));
    }

    /// Lets one call fail with EIO, by its name instead of its number: after calls that begin with
    /// each of `steps` but the last came in this order, the first that begins with the last one. If
    /// it is a sync it takes so long to fail, and other threads go on meanwhile.
    pub fn fail_after(&self, steps: &[&'static str], takes: Duration) {
        self.with(|watched| {
            watched.steps = steps.iter().copied().collect();
            watched.takes = takes;
        });
    }

    /// From now on this byte can not be read of files whose names end so: EIO, as of a bad sector.
    pub fn unreadable(&self, end: &'static str, at: u64) {
        self.with(|watched| watched.bad = Some((end, at)));
    }

    /// How many calls that change something there were.
    pub fn calls(&self) -> u64 {
        self.with(|watched| watched.calls)
    }

    /// The call that failed first, if one did.
    pub fn hit(&self) -> Option<String> {
        self.with(|watched| watched.hit.clone())
    }

    /// What was recorded until now.
    pub fn record(&self) -> Record {
        self.with(|watched| Record { events: watched.events.clone() })
    }

    fn with<T>(&self, work: impl FnOnce(&mut Watched) -> T) -> T {
        let _quiet = Quiet::enter();
        let mut state = lock();
        let watched = state.watched.iter_mut().find(|watched| watched.id == self.id);
        work(watched.expect("watched until this is dropped"))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _quiet = Quiet::enter();
        let mut state = lock();
        ACTIVE.fetch_sub(1, Ordering::SeqCst);
        state.watched.retain(|watched| watched.id != self.id);
    }
}

/// How many folders are watched; the calls look no further while it is 0.
static ACTIVE: AtomicUsize = AtomicUsize::new(0);

static STATE: Mutex<State> = Mutex::new(State { watched: Vec::new(), last: 0 });

thread_local! {
    /// Set while this thread is in here, so that what it does itself (a panic prints) passes.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

fn lock() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Quiet {
    before: bool,
}

impl Quiet {
    fn enter() -> Self {
        Self { before: INSIDE.replace(true) }
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        INSIDE.set(self.before);
    }
}

pub(crate) struct State {
    watched: Vec<Watched>,
    last: u64,
}

/// What the kernel calls a file: its device, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Inode {
    pub(crate) device: u64,
    pub(crate) number: u64,
}

/// What an open file descriptor stands for.
#[derive(Clone, Debug)]
pub(crate) enum Node {
    File(FileId),
    Folder(String),
}

pub(crate) struct Watched {
    id: u64,
    root: String,
    folders: BTreeSet<String>,
    names: BTreeMap<String, FileId>,
    /// What was opened and still has a name: without one its number may be given out again.
    nodes: BTreeMap<Inode, Node>,
    /// Length of each file, by its number.
    lens: Vec<u64>,
    events: Vec<Event>,
    calls: u64,
    fault: Option<Fault>,
    /// Beginnings of calls to wait for; the last one is to fail.
    steps: VecDeque<&'static str>,
    /// How long a sync takes to fail.
    takes: Duration,
    /// The end of a file's name, and a place in such files that can not be read.
    bad: Option<(&'static str, u64)>,
    hit: Option<String>,
}

/// What is to become of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Pass,
    Fail(i32),
    Short,
}

/// The right to handle one call; whatever else watched files are for waits, so that the record
/// has the order in which things happened.
pub(crate) struct Inside {
    state: MutexGuard<'static, State>,
    _quiet: Quiet,
}

impl Inside {
    /// `None` when there is nothing to watch, or this thread is in here already.
    pub(crate) fn enter() -> Option<Self> {
        if ACTIVE.load(Ordering::SeqCst) == 0 || INSIDE.get() {
            return None;
        }
        let quiet = Quiet::enter();
        Some(Self { state: lock(), _quiet: quiet })
    }

    /// The watched folder a path lies in, and the path's name there.
    pub(crate) fn place(&mut self, path: &str) -> Option<(&mut Watched, String)> {
        self.state.watched.iter_mut().find_map(|watched| {
            let rest = path.strip_prefix(watched.root.as_str())?;
            if !rest.is_empty() && !rest.starts_with('/') {
                return None;
            }
            let parts: Vec<&str> =
                rest.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
            let name = parts.join("/");
            Some((watched, name))
        })
    }

    /// What a descriptor stands for, if that is watched.
    ///
    /// The kernel is asked each time. A table of open descriptors would be wrong sooner or later:
    /// they are closed and copied in many ways, `fclose` and `dup2` among them, that no call of
    /// ours sees, and then the number is another file's.
    pub(crate) fn node(&mut self, fd: i32) -> Option<(&mut Watched, Node)> {
        let inode = hook::inode(fd)?;
        self.state.watched.iter_mut().find_map(|watched| {
            let node = watched.nodes.get(&inode)?.clone();
            Some((watched, node))
        })
    }
}

/// How a file is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opening {
    pub(crate) makes: bool,
    pub(crate) empties: bool,
}

impl Watched {
    /// Counts a call, and says what is to become of it.
    pub(crate) fn judge(&mut self, call: &str, on: &str) -> Verdict {
        self.calls += 1;
        if let Some(step) = self.steps.front()
            && format!("{call} {on}").starts_with(step)
        {
            self.steps.pop_front();
            if self.steps.is_empty() {
                self.hit.get_or_insert_with(|| format!("{call} {on}"));
                return Verdict::Fail(libc::EIO);
            }
        }
        let Some(fault) = self.fault else { return Verdict::Pass };
        let verdict = match fault.kind {
            Kind::Once(error) if self.calls == fault.nth => Verdict::Fail(error),
            Kind::Forever(error) if self.calls >= fault.nth => Verdict::Fail(error),
            Kind::Short if self.calls == fault.nth => Verdict::Short,
            _ => return Verdict::Pass,
        };
        if self.hit.is_none() {
            self.hit = Some(format!("{call} {on}"));
        }
        verdict
    }

    /// As [`Self::judge`], of a call on an open file.
    pub(crate) fn judge_node(&mut self, call: &str, node: &Node) -> Verdict {
        if self.fault.is_none() && self.steps.is_empty() {
            return self.judge(call, "");
        }
        let name = match node {
            Node::Folder(name) => name.clone(),
            Node::File(file) => {
                let found = self.names.iter().find(|(_, id)| *id == file);
                found.map(|(name, _)| name.clone()).expect("one without a name is forgotten")
            }
        };
        self.judge(call, &name)
    }

    /// Whether these bytes of a file can be read.
    pub(crate) fn is_readable(&mut self, file: FileId, offset: u64, len: u64) -> bool {
        let Some((end, at)) = self.bad else { return true };
        let hit = (offset..offset + len).contains(&at);
        let name = self.names.iter().find(|(name, id)| hit && **id == file && name.ends_with(end));
        let Some((name, _)) = name else { return true };
        self.hit.get_or_insert_with(|| format!("read {name}"));
        false
    }

    /// Remembers what was opened.
    pub(crate) fn opened(&mut self, fd: i32, name: String, opening: Opening) {
        let node = self.node(name, opening);
        if let (Some(node), Some(inode)) = (node, hook::inode(fd)) {
            self.nodes.insert(inode, node);
        }
    }

    fn node(&mut self, name: String, opening: Opening) -> Option<Node> {
        if self.folders.contains(&name) {
            return Some(Node::Folder(name));
        }
        if let Some(file) = self.names.get(&name).copied() {
            if opening.empties {
                self.resized(file, 0);
            }
            return Some(Node::File(file));
        }
        if !opening.makes {
            return None;
        }
        let file = FileId(u32::try_from(self.lens.len()).expect("far fewer files"));
        self.lens.push(0);
        self.names.insert(name.clone(), file);
        self.events.push(Event::Create { name, file });
        Some(Node::File(file))
    }

    pub(crate) fn wrote(&mut self, file: FileId, offset: u64, bytes: &[u8]) {
        let end = offset + bytes.len() as u64;
        let len = &mut self.lens[file.0 as usize];
        *len = end.max(*len);
        self.events.push(Event::Write { file, offset, bytes: bytes.to_vec() });
    }

    pub(crate) fn resized(&mut self, file: FileId, len: u64) {
        let old = std::mem::replace(&mut self.lens[file.0 as usize], len);
        // RocksDB cuts a file to the length it has, to give back what was allocated behind it.
        if old != len {
            self.events.push(Event::Resize { file, len });
        }
    }

    pub(crate) fn len(&self, file: FileId) -> u64 {
        self.lens[file.0 as usize]
    }

    pub(crate) fn synced(&mut self, node: Node) {
        self.events.push(match node {
            Node::File(file) => Event::Sync { file },
            Node::Folder(name) => Event::SyncDir { name },
        });
    }

    /// Answers how long that took.
    pub(crate) fn sync_failed(&mut self, node: &Node) -> Duration {
        if let Node::File(file) = node {
            self.events.push(Event::SyncFailed { file: *file });
        }
        std::mem::take(&mut self.takes)
    }

    pub(crate) fn renamed(&mut self, from: String, to: String) {
        // What was made past us stays out of the record.
        if let Some(file) = self.names.remove(&from) {
            if let Some(replaced) = self.names.insert(to.clone(), file) {
                self.forget(replaced);
            }
            self.events.push(Event::Rename { from, to });
        }
    }

    pub(crate) fn unlinked(&mut self, name: String) {
        if let Some(file) = self.names.remove(&name) {
            self.forget(file);
            self.events.push(Event::Unlink { name });
        }
    }

    /// What is written to a file without a name is lost with it, and not recorded.
    fn forget(&mut self, file: FileId) {
        self.nodes.retain(|_, node| !matches!(node, Node::File(known) if *known == file));
    }

    pub(crate) fn made(&mut self, name: String) {
        self.folders.insert(name.clone());
        self.events.push(Event::MakeDir { name });
    }
}
