//! Outcomes of a transaction, and those that must not be.

use std::collections::BTreeSet;

use super::ats::{EATS, FULL_ATS};
use super::config::{Context, Entry, Regime, Stage1};
use super::registers::ATSCHK;
use super::state::State;
use super::tlb::Held;
use super::violation::SmmuRule;
use super::walk::{End, Step};
use super::{Access, Operation, Outcome, View};

const C_BAD_STREAMID: u8 = 0x02;
const C_BAD_STE: u8 = 0x04;
const C_BAD_CD: u8 = 0x0a;
const F_TRANSL_FORBIDDEN: u8 = 0x07;
const F_WALK_EABT: u8 = 0x0b;
const F_TRANSLATION: u8 = 0x10;
const F_ADDR_SIZE: u8 = 0x11;
const F_ACCESS: u8 = 0x12;
const F_PERMISSION: u8 = 0x13;

impl State {
    /// Everything that a transaction may come to.
    pub(crate) fn outcomes(&mut self, stream: u32, address: u64, access: Access) -> BTreeSet<Outcome> {
        self.views(stream).iter().flat_map(|view| self.outcomes_of(view, address, access)).collect()
    }

    /// The outcome when nothing is cached.
    pub(crate) fn settled(&mut self, stream: u32, address: u64, access: Access) -> Outcome {
        match self.view_now(stream) {
            View::Translate { stage1, context: Context::Regime(regime) } => {
                judge(self.walk(&regime, address), &regime, self.as_overridden(&stage1, access))
            }
            other => self.outcomes_of(&other, address, access)[0],
        }
    }

    /// The outcome of a transaction that its device calls translated already (ATS).
    pub(crate) fn translated(&mut self, stream: u32, address: u64) -> Outcome {
        let forbidden = Outcome::Refused { event: Some(F_TRANSL_FORBIDDEN) };
        match self.view_now(stream) {
            View::OffAborts | View::OffPasses => self.settled(stream, address, Access::READ),
            _ if self.hardware.ats && !self.registers.is_on(ATSCHK) => Outcome::Reaches(address),
            View::Translate { stage1, .. } if self.hardware.ats && stage1.rest[0] & EATS == FULL_ATS => {
                Outcome::Reaches(address)
            }
            View::Translate { .. } | View::Entry(Entry::Bypass(_)) => forbidden,
            _ => self.settled(stream, address, Access::READ),
        }
    }

    fn walk(&self, regime: &Regime, address: u64) -> Reached {
        match regime.walk(&self.arena, address, |_| ()) {
            End::Leaf(step) => Reached::Leaf(step, address),
            End::Invalid => Reached::Nothing,
            End::External => Reached::NoMemory,
        }
    }

    /// `access` with the privilege that it has by the entry.
    fn as_overridden(&self, stage1: &Stage1, access: Access) -> Access {
        let privileged = match stage1.privilege {
            2 => false,
            3 => true,
            _ => access.privileged,
        };
        Access { privileged: privileged || self.hardware.ignores_privilege, ..access }
    }

    fn outcomes_of(&self, view: &View, address: u64, access: Access) -> Vec<Outcome> {
        vec![match view {
            View::OffAborts | View::Entry(Entry::Abort) => Outcome::Refused { event: None },
            View::OffPasses | View::Entry(Entry::Bypass(_)) => Outcome::Reaches(address),
            View::NoStream => Outcome::Refused { event: Some(C_BAD_STREAMID) },
            View::Entry(_) => Outcome::Refused { event: Some(C_BAD_STE) },
            View::Translate { context: Context::Bad(_), .. } => Outcome::Refused { event: Some(C_BAD_CD) },
            View::Translate { stage1, context: Context::Regime(regime) } => {
                let access = self.as_overridden(stage1, access);
                let mut all = vec![judge(self.walk(regime, address), regime, access)];
                let in_range = regime.tables.is_some_and(|tables| address >> tables.input_bits == 0);
                let held = self.tlb.held().filter(|held| in_range && held.serves(regime, address));
                all.extend(held.map(|held| judge(Reached::Leaf(held.step, address), regime, access)));
                return all;
            }
        }]
    }

    /// A transaction: what it comes to, and the event that it leaves.
    pub(crate) fn transact(&mut self, stream: u32, address: u64, access: Access) -> Outcome {
        let settled = self.settled(stream, address, access);
        let others = self.outcomes(stream, address, access);
        let old = others.into_iter().find(|outcome| self.prefers_old && *outcome != settled);
        let outcome = old.unwrap_or(settled);
        self.note(Operation::Transaction { stream, address, access, outcome });
        if let Outcome::Refused { event: Some(kind) } = outcome {
            self.record_event(kind, stream, address, access);
        }
        outcome
    }

    /// A walk for `address` comes to what the CPUs have stored there.
    fn check_cleaned(&mut self, stream: u32, address: u64) {
        let View::Translate { context: Context::Regime(regime), .. } = self.view_now(stream) else { return };
        let mut found = None;
        let _ = regime.walk(&self.arena, address, |index| found = found.or(self.arena.in_caches_alone(index)));
        if let Some((at, cached)) = found {
            let in_memory = self.arena.index(at).map_or(0, |index| self.arena.read(index));
            let text =
                format!("the walk for {address:#x} reads {in_memory:#x} at {at:#x}, where CPUs stored {cached:#x}");
            self.report(SmmuRule::NotCleaned, text);
        }
    }

    /// The tables in memory alone decide what becomes of a transaction to `address`, and CPUs have cleaned them.
    pub(crate) fn audit(&mut self, stream: u32, address: u64) {
        self.check_cleaned(stream, address);
        let views = self.views(stream);
        if views.len() > 1 {
            let text = format!("stream {stream:#x} may be treated as any of {views:x?}");
            return self.report(SmmuRule::StaleConfiguration, text);
        }
        for access in [Access::READ, Access::WRITE] {
            let settled = self.settled(stream, address, access);
            let Some(other) = self.outcomes(stream, address, access).into_iter().find(|outcome| *outcome != settled)
            else {
                continue;
            };
            let held = self.tlb.held().find(|held| held.until.is_some() && held.step.covers(address)).copied();
            let why = held.map_or(String::new(), |held| format!(": {}", self.why_held(&held)));
            let text =
                format!("{access:?} of stream {stream:#x} at {address:#x} is {settled:x?}, and may be {other:x?}{why}");
            return self.report(SmmuRule::StaleTranslation, text);
        }
        let kept = self.atc.stale(&self.tlb).find(|(asked, step)| *asked == stream && step.covers(address));
        if let Some((_, step)) = kept.filter(|_| self.atc.serves(stream)) {
            self.report(SmmuRule::StaleTranslation, why_kept(stream, &step));
        }
    }

    /// `bytes` at `address` get another use: no TLB may lead there.
    pub(crate) fn freed(&mut self, address: u64, bytes: u64) {
        self.note(Operation::Freed { address, bytes });
        let size = |step: &Step| if step.is_leaf { step.size } else { 0x1000 };
        let leads = |step: &Step| step.target() < address + bytes && address < step.target() + size(step);
        let found = self.tlb.held().find(|held| leads(&held.step)).copied();
        if let Some(held) = found {
            let text = format!("{address:#x} is given up: {}", self.why_held(&held));
            self.report(SmmuRule::MemoryInUse, text);
        }
        let kept = self.atc.stale(&self.tlb).find(|(stream, step)| self.atc.serves(*stream) && leads(step));
        if let Some((stream, step)) = kept {
            self.report(SmmuRule::MemoryInUse, format!("{address:#x} is given up: {}", why_kept(stream, &step)));
        }
    }

    fn why_held(&self, held: &Held) -> String {
        let Step { asid, start, size, level, descriptor, .. } = held.step;
        let what = if held.step.is_leaf { "a leaf" } else { "a table" };
        let text =
            format!("the TLB may hold {what} of ASID {asid}, {start:#x} +{size:#x}, level {level}, {descriptor:#x}");
        match held.until {
            None => format!("{text}, and it is still there to be walked to"),
            Some(until) if self.tlb.is_being_invalidated(&held.step) => {
                format!("{text}, gone since #{until}; a CMD_TLBI covers it, and no CMD_SYNC has completed that")
            }
            Some(until) => format!("{text}, gone since #{until}, and no CMD_TLBI covers it"),
        }
    }
}

fn why_kept(stream: u32, step: &Step) -> String {
    let Step { start, size, descriptor, .. } = step;
    format!(
        "the device of stream {stream:#x} may keep {start:#x} +{size:#x}, {descriptor:#x}, and no CMD_ATC_INV behind \
         the CMD_SYNC of its CMD_TLBI covers it"
    )
}

/// How a translation ends.
enum Reached {
    Leaf(Step, u64),
    Nothing,
    NoMemory,
}

impl Held {
    fn serves(&self, regime: &Regime, address: u64) -> bool {
        self.step.is_leaf && regime.uses(&self.step) && self.step.covers(address)
    }
}

impl Step {
    fn covers(&self, address: u64) -> bool {
        self.start <= address && address <= self.last()
    }
}

fn judge(reached: Reached, regime: &Regime, access: Access) -> Outcome {
    let refused = |kind| Outcome::Refused { event: regime.records.then_some(kind) };
    let (leaf, address) = match reached {
        Reached::Nothing => return refused(F_TRANSLATION),
        Reached::NoMemory => return refused(F_WALK_EABT),
        Reached::Leaf(leaf, address) => (leaf, address),
    };
    let flag = |at: u32| leaf.descriptor >> at & 1 != 0;
    if leaf.target() >> regime.output_bits != 0 {
        return refused(F_ADDR_SIZE);
    }
    if !flag(10) && !regime.ignores_young {
        return refused(F_ACCESS);
    }
    // AP[2] forbids writes, whatever DBM is: flags are not updated here. AP[1] permits unprivileged accesses.
    let executable = if access.privileged { !flag(53) } else { !flag(54) };
    let allowed = (access.privileged || flag(6)) && !(access.write && flag(7)) && (!access.execute || executable);
    if allowed { Outcome::Reaches(leaf.target() + (address - leaf.start)) } else { refused(F_PERMISSION) }
}
