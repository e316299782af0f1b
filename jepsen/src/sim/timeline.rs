//! The timeline of one row: what a run did to it, a line each, for people.
//!
//! The run tells what is sent, answered, committed and asked for by clients (the methods here);
//! what frames it (epochs, crashes, disks that forget) is found by looking before every event
//! (`watch`). `words` puts it shortly.
//!
//! T1. Nothing here draws, sends or changes anything: a run with a timeline is the run without.
//! T2. Nothing that concerns other rows alone has a line.

mod watch;
mod words;

use super::client::{Block, value_of};
use super::event::{At, Life};
use super::link::SessionId;
use super::swarm::Mode;
use super::world::{Report, World};
use bytes::Bytes;
use smalti_rowcommit::coordinator::{Alarm, BlockWrite, OpError, Phase};
use smalti_rowcommit::msg::{Ask, Frame, Reply};
use smalti_storage::ids::{GroupNo, RowAddr, StoreId, Wid};
use smalti_storage::store::Batch;
use std::collections::BTreeMap;
use std::fmt::Display;
use watch::Seen;

/// A client's operation on blocks of the row.
struct Told {
    op: u64,
    begun: u64,
    /// It has come to a node: before that it may never have been.
    invoked: bool,
    write: bool,
    /// All its blocks, also of other rows: results come in their order.
    blocks: Vec<(Block, u64)>,
}

/// What is told of one row, and to whom.
pub(crate) struct Timeline {
    row: RowAddr,
    line: Box<dyn FnMut(&str)>,
    /// Requests without an answer so far, by who sent them.
    asked: BTreeMap<(Life, u64), Ask>,
    /// The current operation of each client that has one on the row.
    ops: BTreeMap<usize, Told>,
    seen: Seen,
}

impl Timeline {
    fn say(&mut self, now: u64, who: impl Display, what: impl Display) {
        (self.line)(&format!("{:>10.3} {:<4} {what}", now as f64 / 1000.0, who.to_string()));
    }
}

/// Runs one seed and tells what concerns one row, line by line as it happens.
pub fn timeline(seed: u64, mode: Mode, row: RowAddr, line: impl FnMut(&str) + 'static) -> Report {
    let mut world = World::new(seed, mode, false);
    let rows = world.all_blocks().into_iter().map(|(row, _)| row.to_string());
    let mut rows: Vec<String> = rows.collect();
    rows.dedup();
    let mut timeline = Timeline {
        row,
        line: Box::new(line),
        asked: BTreeMap::new(),
        ops: BTreeMap::new(),
        seen: Seen::default(),
    };
    if rows.contains(&row.to_string()) {
        let (data, parity) = (world.swarm.data, world.swarm.parity);
        timeline.say(0, "row", format!("{row} of {data}+{parity}"));
    } else {
        timeline.say(0, "row", format!("{row} is not in this run, but {}", rows.join(", ")));
    }
    world.timeline = Some(timeline);
    world.run();
    world.watch(u64::MAX);
    if let Some(why) = world.failure.as_ref().map(|failure| failure.why.clone()) {
        world.say("sim", format!("FAILED: {why}"));
    }
    world.report()
}

/// Reads a row as it is printed; the `g` may be left out.
///
/// # Errors
/// The form that it should have.
pub fn parse_row(text: &str) -> Result<RowAddr, String> {
    let parse = || {
        let mut parts = text.strip_prefix('g').unwrap_or(text).split('/');
        let group = GroupNo(parts.next()?.parse().ok()?);
        let (stripe, index) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        parts.next().is_none().then_some(RowAddr { group, stripe, index })
    };
    parse().ok_or_else(|| "a row is named GROUP/STRIPE/INDEX, as in g0/1/0".into())
}

impl World {
    fn told_row(&self) -> Option<RowAddr> {
        self.timeline.as_ref().map(|timeline| timeline.row)
    }

    /// A line of the timeline, if there is one.
    fn say(&mut self, who: impl Display, what: impl Display) {
        let now = self.now;
        if let Some(timeline) = &mut self.timeline {
            timeline.say(now, who, what);
        }
    }

    fn say_at(&mut self, at: At, what: impl Display) {
        self.say(format_args!("n{at}"), what);
    }

    /// A coordinator sends a frame.
    pub(crate) fn tell_sent(&mut self, life: Life, store: StoreId, frame: &Frame) {
        let Some(row) = self.told_row() else { return };
        let to = self.node_of(store);
        let phase = self.nodes[life.at].process().coordinator.phase();
        let holds = self.holds_row(to);
        let mut what: Vec<String> = Vec::new();
        for request in &frame.requests {
            // What is asked of a store as a whole matters where the row is.
            let here = holds || words::place(&request.ask).is_some();
            if !here || !words::concerns(&request.ask, row) {
                continue;
            }
            what.extend(words::asked(&request.ask, phase));
            if let Some(timeline) = &mut self.timeline {
                timeline.asked.insert((life, request.id), request.ask.clone());
                if phase == Phase::TakingOver {
                    timeline.seen.takeover_asked(life.at, &request.ask);
                }
            }
        }
        if what.is_empty() {
            return;
        }
        let link = self.nodes[life.at].links.get(&store);
        let lost = link.is_none_or(|id| self.sessions[*id].number != frame.session);
        let lost = if lost { " (lost: the session is over)" } else { "" };
        self.say_at(life.at, format!("-> n{to}: {}{lost}", what.join("; ")));
    }

    /// A store's answers leave it. What it took shows in its batch already.
    pub(crate) fn tell_answered(&mut self, at: At, session: SessionId, reply: &Reply) {
        let from = self.sessions[session].from;
        let what = self.answers(from, reply, false);
        if !what.is_empty() {
            self.say_at(at, format!("answers n{}: {}", from.at, what.join("; ")));
        }
    }

    /// A store's answers come to the coordinator.
    pub(crate) fn tell_heard(&mut self, session: SessionId, reply: &Reply) {
        if self.timeline.is_none() {
            return;
        }
        let (from, to) = (self.sessions[session].from, self.sessions[session].to);
        let what = self.answers(from, reply, true);
        if let Some(timeline) = &mut self.timeline {
            reply.answers.iter().for_each(|(id, _)| drop(timeline.asked.remove(&(from, *id))));
        }
        if !what.is_empty() {
            let old = if self.sessions[session].broken { " (the session is over)" } else { "" };
            self.say_at(from.at, format!("<- n{}: {}{old}", to.at, what.join("; ")));
        }
    }

    fn answers(&self, from: Life, reply: &Reply, has_come: bool) -> Vec<String> {
        let Some(timeline) = &self.timeline else { return Vec::new() };
        let words = |(id, answer)| {
            let ask = timeline.asked.get(&(from, id))?;
            words::answered(ask, answer, timeline.row, has_come)
        };
        reply.answers.iter().map(|(id, answer)| (*id, answer)).filter_map(words).collect()
    }

    /// A store's batch is about to be on its disk.
    pub(crate) fn tell_batch(&mut self, at: At, batch: &Batch) {
        let Some(row) = self.told_row() else { return };
        let promised = self.holds_row(at).then(|| self.promised(at));
        let what = words::batch(batch, row, promised);
        if !what.is_empty() {
            let relaxed = if batch.relaxed { " (a crash may lose it)" } else { "" };
            self.say_at(at, format!("disk: {what}{relaxed}"));
        }
    }

    pub(crate) fn tell_alarm(&mut self, at: At, alarm: Alarm) {
        let Some(row) = self.told_row() else { return };
        let silent = |store| Some(self.node_of(store)).filter(|at| self.holds_row(*at));
        let what = match alarm {
            Alarm::Corrupt { row: of, slot } if of == row => format!("finds {slot} wanting"),
            Alarm::Miscomputed { row: of, slot } if of == row => {
                format!("finds {slot} miscomputed")
            }
            Alarm::RecordLost { row: of, slot, .. } if of == row => {
                format!("finds a record of {slot} lost")
            }
            Alarm::RowLost { row: of } if of == row => "finds the row lost".into(),
            Alarm::Silent { store } => match silent(store) {
                Some(at) => format!("finds n{at} silent"),
                None => return,
            },
            _ => return,
        };
        self.say_at(at, what);
    }

    /// A client begins an operation.
    pub(crate) fn tell_op(&mut self, client: usize, op: u64, write: bool, of: &[(Block, u64)]) {
        let Some(timeline) = &mut self.timeline else { return };
        timeline.ops.remove(&client);
        if of.iter().any(|((row, _), _)| *row == timeline.row) {
            let told = Told { op, begun: self.now, invoked: false, write, blocks: of.to_vec() };
            timeline.ops.insert(client, told);
        }
    }

    /// It has come to a node.
    pub(crate) fn tell_invoked(&mut self, at: At, client: usize, wid: Option<Wid>) {
        let Some(timeline) = &mut self.timeline else { return };
        let Some(told) = timeline.ops.get_mut(&client) else { return };
        told.invoked = true;
        let block =
            |((_, slot), value): &(Block, u64)| words::block(*slot, told.write.then_some(*value));
        let blocks = told.blocks.iter().filter(|((row, _), _)| *row == timeline.row);
        let what = words::list(blocks.map(block), ", ");
        let verb = if told.write { "writes" } else { "reads" };
        let wid = wid.map(|wid| format!(" as {}", words::wid(wid))).unwrap_or_default();
        let since = told.begun as f64 / 1000.0;
        let what = format!("{verb} {what} at n{at}{wid} (since {since:.3})");
        self.say(format_args!("c{client}"), what);
    }

    /// A second copy of a write has come to a node.
    pub(crate) fn tell_late(&mut self, at: At, blocks: &[BlockWrite]) {
        let Some(row) = self.told_row() else { return };
        let told = |block: &BlockWrite| {
            let value = words::block(block.slot, value_of(&block.record));
            format!("{value} as {}", words::wid(block.wid))
        };
        let what: Vec<String> = blocks.iter().filter(|b| b.row == row).map(told).collect();
        if !what.is_empty() {
            self.say_at(at, format!("begins a late copy of {}", what.join(", ")));
        }
    }

    /// A coordinator has ended an operation; its client may have given up before.
    pub(crate) fn tell_done(&mut self, at: At, number: u64, result: Result<&[Bytes], OpError>) {
        let Some(timeline) = &self.timeline else { return };
        let process = self.nodes[at].process.as_ref();
        let Some((client, op)) = process.and_then(|p| p.ops.get(&number)).copied() else { return };
        let Some(told) = timeline.ops.get(&client).filter(|told| told.op == op) else { return };
        let what = match result {
            Err(error) => format!("is told: {error}"),
            Ok(_) if told.write => "has its write acknowledged".into(),
            Ok(records) => {
                let seen = told.blocks.iter().zip(records);
                let seen = seen.filter(|(((row, _), _), _)| *row == timeline.row);
                let told = |((_, slot), record)| words::record(slot, record);
                let seen = seen.map(|((block, _), record)| told((*block, record)));
                format!("has read {}", seen.collect::<Vec<_>>().join(", "))
            }
        };
        self.say(format_args!("c{client}"), what);
    }

    /// A client does not learn what becomes of its operation.
    pub(crate) fn tell_unknown(&mut self, client: usize) {
        let told = self.timeline.as_mut().and_then(|timeline| timeline.ops.remove(&client));
        if let Some(told) = told.filter(|told| told.invoked) {
            let what = if told.write { "write" } else { "read" };
            self.say(
                format_args!("c{client}"),
                format!("does not know what becomes of its {what}"),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::failure::Failure;
    use super::*;
    use std::cell::RefCell;
    use std::collections::BTreeSet;
    use std::rc::Rc;

    const SEED: u64 = 498;

    fn row(text: &str) -> RowAddr {
        parse_row(text).expect("a row")
    }

    fn lines(seed: u64, row: RowAddr) -> Vec<String> {
        let lines = Rc::new(RefCell::new(Vec::new()));
        let into = Rc::clone(&lines);
        timeline(seed, Mode::Within, row, move |line| into.borrow_mut().push(line.to_owned()));
        lines.take()
    }

    /// Versions that are prepared.
    fn prepared(lines: &[String]) -> BTreeSet<&str> {
        let prepares = lines.iter().filter_map(|line| line.split_once(" prepare "));
        prepares.filter_map(|(_, rest)| rest.split(' ').next()).collect()
    }

    #[test]
    fn a_timeline_tells_of_its_row_and_of_no_other() {
        let rows = [row("g0/0/0"), row("g0/0/1")];
        let told = rows.map(|row| lines(SEED, row));
        for (row, lines) in rows.iter().zip(&told) {
            assert!(lines.len() > 100, "{} lines", lines.len());
            assert!(lines.iter().any(|line| line.contains(" map  epoch e2: coordinator n")));
            assert!(lines.iter().any(|line| line.contains("process starts")));
            let words = lines.iter().flat_map(|line| line.split([' ', ',', ':']));
            let mut named = words.filter(|word| parse_row(word).is_ok());
            assert!(named.all(|word| parse_row(word) == Ok(*row)), "{row}");
        }
        // A version is of one row.
        let [one, other] = told.each_ref().map(|lines| prepared(lines));
        assert!(!one.is_empty() && !other.is_empty());
        assert!(one.is_disjoint(&other), "{one:?} {other:?}");
    }

    #[test]
    fn the_replay_of_a_failure_names_its_row() {
        let replay = |failure: Failure| {
            let mut world = World::new(SEED, Mode::Within, false);
            world.fail(failure);
            world.report().replay(SEED)
        };
        let of_a_row = replay(Failure::at(row("g0/0/1"), "I5: lost".into()));
        assert!(of_a_row.contains("--seed 498 --trace\n"), "{of_a_row}");
        assert!(of_a_row.ends_with("--seed 498 --row g0/0/1"), "{of_a_row}");
        assert!(!replay("no end".into()).contains("--row"));
    }

    #[test]
    fn rows_are_read_as_they_are_printed() {
        let row = RowAddr { group: GroupNo(1), stripe: 20, index: 3 };
        assert_eq!(parse_row(&row.to_string()), Ok(row));
        assert_eq!(parse_row("1/20/3"), Ok(row));
        for bad in ["", "g1", "g1/2", "g1/2/3/4", "g1/2/x", "s1/2/3"] {
            assert!(parse_row(bad).is_err(), "{bad}");
        }
    }
}
