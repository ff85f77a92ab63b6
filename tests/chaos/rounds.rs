//! Round after round: harm, heal, wait, judge.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use howdah::clock;
use howdah::types::Moment;

use crate::docker::{docker_output, setting, wait_until};
use crate::field::Field;
use crate::harm::Strike;
use crate::judge::{Ack, Reign, missing, outage, overlap, reigns};
use crate::plan::{Mode, Plan, Round};
use crate::recorder::Recorder;
use crate::summary::{Entry, Summary};

/// A member may have to be rewound, on a machine that does other things as well.
const HEALTHY_WITHIN: Duration = Duration::from_secs(60);
/// After a thaw a frozen server runs on until its init has had a turn.
const THAW: Duration = Duration::from_secs(3);

pub(crate) struct Run<'a> {
    field: &'a Field,
    recorder: Recorder,
    plan: Plan,
    mode: Mode,
    /// Every acknowledged row, in order.
    acks: Vec<Ack>,
    /// From each of these moments on: whether what is acknowledged is promised to be kept.
    promises: Vec<(Moment, bool)>,
    /// Lost where losing is allowed.
    written_off: HashSet<u64>,
    summary: Summary,
    history: String,
}

impl<'a> Run<'a> {
    pub(crate) fn new(field: &'a Field, seed: u64) -> Run<'a> {
        let plan = Plan::new(seed, &setting("HOWDAH_CHAOS_ONLY").unwrap_or_default());
        let recorder = Recorder::start(field.addresses.clone(), &field.cluster.nodes[0].password);
        Run {
            field,
            recorder,
            plan,
            mode: Mode::Asynchronous,
            acks: Vec::new(),
            promises: Vec::new(),
            written_off: HashSet::new(),
            summary: Summary::default(),
            history: String::new(),
        }
    }

    /// Rounds until the time is over, or until something is wrong.
    pub(crate) fn until(&mut self, end: Moment) -> Result<(), String> {
        wait_until("the first row is written", HEALTHY_WITHIN, || {
            self.recorder.wrote_after(Moment(Duration::ZERO))
        });
        while clock::now() < end {
            let round = self.plan.next();
            self.play(&round)?;
        }
        Ok(())
    }

    fn play(&mut self, round: &Round) -> Result<(), String> {
        self.change_mode(round.mode)?;
        let aimed = round
            .faults
            .iter()
            .map(|fault| Strike::aim(self.field, *fault));
        let strikes = aimed.collect::<Result<Vec<_>, _>>()?;
        let names: Vec<String> = strikes.iter().map(Strike::describe).collect();
        let number = self.summary.rounds() + 1;
        let name = format!(
            "round {number}, {}: {}",
            self.mode.setting(),
            names.join(" and ")
        );
        let before = self.acks.len();
        let begin = clock::now();
        let thawed = self
            .harm(&strikes)
            .map_err(|error| format!("{name}: {error}"))?;
        let healed = clock::now();
        let failed = |fault: String| format!("{name}: {fault}");
        let recovery = self
            .field
            .heals(self.mode, HEALTHY_WITHIN)
            .map_err(failed)?;
        let well = clock::now();
        self.await_write(well).map_err(failed)?;
        self.collect();
        let outage = outage(&self.acks, begin, well);
        let (lost, late) = self.judge(&strikes, thawed).map_err(failed)?;
        let rows = self.acks.len() - before;
        self.say(&format!(
            "{:>5.0} s {name}: {:.1} s without a write, well {:.1} s after {:.1} s of harm, {rows} rows, {lost} lost",
            begin.since(self.promises[0].0).as_secs_f64(),
            outage.as_secs_f64(),
            recovery.as_secs_f64(),
            healed.since(begin).as_secs_f64(),
        ));
        self.summary.add(Entry {
            name: entry_name(&strikes),
            mode: self.mode,
            outage,
            recovery,
            rows,
            lost,
            late,
        });
        Ok(())
    }

    fn say(&mut self, line: &str) {
        println!("{line}");
        let _ = writeln!(self.history, "{line}");
    }

    /// In between, only what both modes promise is promised.
    fn change_mode(&mut self, mode: Mode) -> Result<(), String> {
        if mode == self.mode && !self.promises.is_empty() {
            return Ok(());
        }
        self.promises
            .push((clock::now(), self.mode.promises() && mode.promises()));
        self.field.change_mode(mode)?;
        let failed = |fault| format!("changing to {}: {fault}", mode.setting());
        self.field.heals(mode, HEALTHY_WITHIN).map_err(failed)?;
        self.promises.push((clock::now(), mode.promises()));
        self.mode = mode;
        Ok(())
    }

    /// Lets every fault begin and end at its time; when the last frozen server was thawed.
    fn harm(&mut self, strikes: &[Strike]) -> Result<Moment, String> {
        let begin = clock::now();
        let mut events: Vec<(Duration, bool, &Strike)> = Vec::new();
        for strike in strikes {
            events.push((strike.fault.begins, true, strike));
            events.push((strike.fault.begins + strike.fault.lasts, false, strike));
        }
        events.sort_by_key(|(at, ..)| *at);
        let mut thawed = begin;
        for (at, begins, strike) in events {
            // The length of a fault is what is tried here, not a wait for something.
            std::thread::sleep((begin + at).since(clock::now()));
            if begins {
                strike.begin(self.field)?;
            } else {
                if strike.fault.harm.thaws() {
                    thawed = clock::now();
                }
                strike.end(self.field)?;
            }
        }
        Ok(thawed)
    }

    fn await_write(&self, after: Moment) -> Result<(), String> {
        while !self.recorder.wrote_after(after) {
            if clock::now().since(after) > HEALTHY_WITHIN {
                return Err("all members look well, but nobody takes a write".to_owned());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn collect(&mut self) {
        self.acks.extend(self.recorder.take());
        self.acks.sort_by_key(|ack| ack.acknowledged);
    }

    fn is_promised(&self, ack: &Ack) -> bool {
        let begun = self.promises.partition_point(|(from, _)| *from <= ack.sent);
        begun > 0
            && self.promises[begun - 1].1
            && self
                .promises
                .get(begun)
                .is_none_or(|next| next.1 || next.0 > ack.acknowledged)
    }

    /// Looks for everything that must never be. Returns how many rows were lost, and acknowledged too late, where that is allowed.
    fn judge(&mut self, strikes: &[Strike], thawed: Moment) -> Result<(usize, usize), String> {
        let late = self.judge_writers(strikes, thawed)?;
        let lost = self.judge_rows(strikes)?;
        Ok((lost, late))
    }

    fn judge_writers(&mut self, strikes: &[Strike], thawed: Moment) -> Result<usize, String> {
        let all = reigns(
            self.acks
                .iter()
                .filter(|ack| !self.written_off.contains(&ack.id)),
        );
        let Some((early, late)) = overlap(&all) else {
            return Ok(0);
        };
        let told = tell(early, late);
        // Only who waits for a standby is sure not to acknowledge anything after it was frozen.
        let was_frozen = strikes.iter().any(|strike| {
            strike.fault.harm.thaws()
                && strike
                    .victims
                    .iter()
                    .any(|victim| *victim.name == *early.node)
        });
        if self.mode.promises() || !was_frozen || early.last > thawed + THAW {
            return Err(format!("two nodes took writes at the same time: {told}"));
        }
        let (from, node, timeline) = (late.first, early.node.clone(), early.timeline);
        let after =
            |ack: &&Ack| ack.node == node && ack.timeline == timeline && ack.executed > from;
        let ids: Vec<u64> = self.acks.iter().filter(after).map(|ack| ack.id).collect();
        let count = ids.len();
        self.written_off.extend(ids);
        Ok(count)
    }

    fn judge_rows(&mut self, strikes: &[Strike]) -> Result<usize, String> {
        let leader = self.field.leader().ok_or("nobody leads any more")?;
        let until = clock::now();
        let present = self.field.rows(leader)?;
        let (promised, open): (Vec<&Ack>, Vec<&Ack>) = self
            .acks
            .iter()
            .filter(|ack| ack.acknowledged < until && !self.written_off.contains(&ack.id))
            .partition(|ack| self.is_promised(ack));
        let gone = missing(promised.into_iter(), &present);
        if let Some(first) = gone.first() {
            return Err(format!(
                "{} acknowledged rows are not on {}, the first of them {first:?}, the last {:?}; reigns {:?}",
                gone.len(),
                leader.name(),
                gone.last(),
                reigns(self.acks.iter()),
            ));
        }
        let lost: Vec<u64> = missing(open.into_iter(), &present)
            .iter()
            .map(|ack| ack.id)
            .collect();
        let excused = strikes
            .iter()
            .any(|strike| strike.hits_leader || !strike.fault.harm.strikes_a_member());
        if !lost.is_empty() && !excused {
            return Err(format!(
                "{} rows are gone without harm to the leader",
                lost.len()
            ));
        }
        self.written_off.extend(&lost);
        self.judge_standbys(until)?;
        Ok(lost.len())
    }

    /// Standbys have what the leader has: everything acknowledged before, and nothing else.
    fn judge_standbys(&self, until: Moment) -> Result<(), String> {
        let leader = self.field.leader().ok_or("nobody leads any more")?;
        for standby in self.field.cluster.others(leader) {
            let end = clock::now() + Duration::from_secs(15);
            let theirs = loop {
                let theirs = self.field.rows(standby)?;
                let old = self.acks.iter().filter(|ack| ack.acknowledged < until);
                let behind = missing(
                    old.filter(|ack| !self.written_off.contains(&ack.id)),
                    &theirs,
                );
                if behind.is_empty() {
                    break theirs;
                }
                if clock::now() > end {
                    return Err(format!(
                        "{} lacks {} rows that the leader has",
                        standby.name(),
                        behind.len()
                    ));
                }
                std::thread::sleep(Duration::from_millis(100));
            };
            let own = theirs.beyond(&self.field.rows(leader)?);
            if !own.is_empty() {
                return Err(format!(
                    "{} has rows that {} lacks: {own:?}",
                    standby.name(),
                    leader.name()
                ));
            }
        }
        Ok(())
    }

    pub(crate) fn summary(&self) -> String {
        self.summary.table()
    }

    /// Keeps what may explain a failure, and says where.
    pub(crate) fn keep(&mut self, fault: &str) -> PathBuf {
        self.collect();
        let folder = std::env::temp_dir().join(format!("howdah-chaos-{}", clock::wall().0));
        fs::create_dir_all(&folder).unwrap();
        let wall = |moment: Moment| {
            clock::wall().0 as f64 / 1000.0 - clock::now().since(moment).as_secs_f64()
        };
        let mut rows = String::from("id,node,timeline,sent,executed,acknowledged\n");
        for ack in &self.acks {
            let [sent, executed, acknowledged] =
                [ack.sent, ack.executed, ack.acknowledged].map(wall);
            let _ = writeln!(
                rows,
                "{},{},{},{sent:.3},{executed:.3},{acknowledged:.3}",
                ack.id, ack.node, ack.timeline
            );
        }
        fs::write(folder.join("acknowledged.csv"), rows).unwrap();
        fs::write(
            folder.join("history.txt"),
            format!("{}{fault}\n", self.history),
        )
        .unwrap();
        for container in self.field.containers() {
            let output = docker_output(&["logs", "-t", &container.inspect("{{.Id}}")]);
            let path = folder.join(format!("{}.log", container.name));
            fs::write(path, [output.stdout, output.stderr].concat()).unwrap();
        }
        folder
    }
}

fn tell(early: &Reign, late: &Reign) -> String {
    format!(
        "{} on timeline {} until {:?}, {} on timeline {} from {:?}: {:?} too long",
        early.node,
        early.timeline,
        early.last.0,
        late.node,
        late.timeline,
        late.first.0,
        early.last.since(late.first)
    )
}

/// One row of the table for each kind of fault; whom it strikes makes all the difference.
fn entry_name(strikes: &[Strike]) -> String {
    match strikes {
        [one] if !one.fault.harm.strikes_a_member() => one.fault.harm.name().to_owned(),
        [one] if one.hits_leader => format!("{}: leader", one.fault.harm.name()),
        [one] => format!("{}: standby", one.fault.harm.name()),
        _ => "two at once".to_owned(),
    }
}
