//! The command queue: what is taken from it, when, and what it does.

use super::hardware::Pace;
use super::registers::{CMDQ_ERR, CMDQEN};
use super::state::State;
use super::tlb::Covers;
use super::violation::SmmuRule;
use super::{Operation, Time};

/// An invalidation of configuration that no CMD_SYNC has completed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pending {
    All(Time),
    Entry { stream: u32, level1: bool, time: Time },
    Context { stream: u32, time: Time },
    Translations,
}

/// The reasons in CONS.ERR.
const CERROR_ILL: u32 = 1;
const CERROR_ABT: u32 = 2;

impl State {
    fn command_bits(&self) -> u32 {
        (self.registers.command_base & 0x1f) as u32
    }

    /// The index mask of a queue of `2^bits`: slot and round.
    const fn mask(bits: u32) -> u32 {
        (2 << bits) - 1
    }

    fn waiting(&self) -> u32 {
        let (prod, cons) = (self.registers.command_prod, self.registers.command_cons);
        prod.wrapping_sub(cons) & Self::mask(self.command_bits())
    }

    /// PROD was written.
    pub(crate) fn commands_published(&mut self, prod: u32) {
        let bits = self.command_bits();
        let before = self.registers.command_prod;
        if prod & !Self::mask(bits) != 0 {
            self.report(SmmuRule::Index, format!("CMDQ_PROD becomes {prod:#x}, and the queue has 2^{bits} commands"));
        }
        let room = (1u32 << bits).saturating_sub(self.waiting());
        let added = prod.wrapping_sub(before) & Self::mask(bits);
        if added > room {
            let text = format!("CMDQ_PROD goes from {before:#x} to {prod:#x}, and there is room for {room}");
            self.report(SmmuRule::Index, text);
        }
        self.registers.command_prod = prod & Self::mask(bits);
        for position in 0..added {
            let slot = before.wrapping_add(position) & ((1 << bits) - 1);
            let index = self.slot(slot);
            if (0..2).any(|word| self.unordered.contains_key(&(index + word))) {
                let text = format!(
                    "CMDQ_PROD is written while slot {slot} may be seen as it was before; missing: DMB OSHST in between"
                );
                self.report(SmmuRule::UnorderedCommand, text);
                break;
            }
        }
        if self.hardware.pace == Pace::AtOnce {
            self.consume(u32::MAX);
        }
    }

    pub(crate) fn looked_at_cons(&mut self) {
        if let Pace::PerLook(count) = self.hardware.pace {
            self.consume(count);
        }
    }

    /// Where slot `slot` is in memory.
    fn slot(&self, slot: u32) -> usize {
        let base = self.registers.command_base & ((1 << 52) - 1) & !0x1f;
        self.arena.index(base).expect("the queue was checked to be memory") + slot as usize * 2
    }

    /// Takes at most `most` commands.
    pub(crate) fn consume(&mut self, most: u32) {
        for _ in 0..most {
            let stopped = self.registers.active_errors() & CMDQ_ERR != 0 || !self.answers;
            if stopped || !self.registers.is_on(CMDQEN) || self.waiting() == 0 {
                return;
            }
            let bits = self.command_bits();
            let cons = self.registers.command_cons & Self::mask(bits);
            if let Some(left) = self.failing_fetches.checked_sub(1) {
                self.failing_fetches = left;
                return self.stop(cons, CERROR_ABT);
            }
            let index = self.slot(cons & ((1 << bits) - 1));
            // A store that nothing ordered may not have arrived.
            let seen = |word: usize| match self.unordered.get(&(index + word)) {
                Some(store) => store.before,
                None => self.arena.read(index + word),
            };
            let command = [seen(0), seen(1)];
            self.note(Operation::Command(command));
            let executed = self.rewrite.map_or(Some(command), |rewrite| rewrite(command));
            if executed.is_some_and(|command| !self.execute(command)) {
                return self.stop(cons, CERROR_ILL);
            }
            self.registers.command_cons = cons.wrapping_add(1) & Self::mask(bits);
            self.spy();
        }
    }

    /// The queue stops before the command at `cons`.
    fn stop(&mut self, cons: u32, reason: u32) {
        self.registers.command_cons = cons | reason << 24;
        self.registers.raise(CMDQ_ERR);
    }

    /// The driver has served the error that the queue stopped at.
    pub(crate) fn command_error_acknowledged(&mut self) {
        self.registers.command_cons &= 0xff_ffff;
        if self.hardware.pace == Pace::AtOnce {
            self.consume(u32::MAX);
        }
    }

    /// Whether the command is one.
    fn execute(&mut self, command: [u64; 2]) -> bool {
        let [low, high] = command;
        let (time, stream) = (self.time, (low >> 32) as u32);
        let leaf = high & 1 != 0;
        match low & 0xff {
            // Prefetches: a hint.
            0x01 | 0x02 => {}
            0x03 => self.pending.push(Pending::Entry { stream, level1: !leaf, time }),
            0x04 if high & 0x1f == 31 => self.pending.push(Pending::All(time)),
            0x04 => {
                let count = 1u32 << ((high & 0x1f) + 1).min(16);
                let first = stream & !(count - 1);
                self.pending.extend((first..first + count).map(|stream| Pending::Entry {
                    stream,
                    level1: !leaf,
                    time,
                }));
            }
            0x05 | 0x06 => self.pending.push(Pending::Context { stream, time }),
            0x10 | 0x28 => self.tlb.begin(Covers::All, time),
            0x30 => {
                self.tlb.begin(Covers::All, time);
                self.pending.push(Pending::Translations);
            }
            0x11 => self.tlb.begin(Covers::Asid((low >> 48) as u16), time),
            0x12 | 0x13 => {
                let asid = (low & 0xff == 0x12).then_some((low >> 48) as u16);
                let Some(covers) = self.range(asid, command) else { return true };
                self.tlb.begin(covers, time);
            }
            0x40 if self.hardware.ats => {
                let (size, address) = (high & 0x3f, high & !0xfff);
                // 52 and more: everything.
                let bytes = 0x1000_u64.checked_shl(size as u32).filter(|bytes| *bytes >= 0x1000);
                let (start, last) = match bytes {
                    Some(bytes) => (address, address.saturating_add(bytes - 1)),
                    None => (0, u64::MAX),
                };
                if bytes.is_some_and(|bytes| !address.is_multiple_of(bytes)) {
                    let text = format!("CMD_ATC_INV of {address:#x} is not aligned to its size: {low:#x} {high:#x}");
                    self.report(SmmuRule::Undefined, text);
                }
                self.atc.begin(stream, (start, last), &self.tlb);
            }
            0x46 => self.complete(command),
            // CMD_ATC_INV without ATS among them (4.5.1).
            _ => return false,
        }
        true
    }

    /// The entries that CMD_TLBI_NH_VA and _VAA cover.
    fn range(&mut self, asid: Option<u16>, [low, high]: [u64; 2]) -> Option<Covers> {
        let (num, scale) = (low >> 12 & 0x1f, low >> 20 & 0x1f);
        let (granule, level) = (high >> 10 & 3, (high >> 8 & 3) as u32);
        let (start, leaves) = (high & !0xfff, high & 1 != 0);
        if granule == 0 || !self.hardware.range_invalidation {
            // Without TG the other fields are reserved, and without the feature all of them are.
            if num != 0 || scale != 0 || level != 0 || granule != 0 {
                self.report(SmmuRule::Undefined, format!("a range in {low:#x} {high:#x}, where there are none"));
            }
            return Some(Covers::Range { asid, start, last: start + 0xfff, level: None, leaves });
        }
        if num == 0 && scale == 0 && level == 0 {
            self.report(SmmuRule::Undefined, format!("TG without NUM, SCALE and TTL is reserved: {low:#x} {high:#x}"));
        }
        let shift = 10 + 2 * granule;
        if !start.is_multiple_of(1 << shift) {
            self.report(SmmuRule::Undefined, format!("address {start:#x} is no multiple of the granule"));
        }
        let bytes = u128::from(num + 1) << scale << shift;
        let last = u64::try_from(u128::from(start) + bytes - 1).unwrap_or(u64::MAX);
        Some(Covers::Range { asid, start, last, level: (level != 0).then_some(level), leaves })
    }

    /// CMD_SYNC: everything before it is done.
    fn complete(&mut self, [low, high]: [u64; 2]) {
        for pending in std::mem::take(&mut self.pending) {
            let fetched = &mut self.fetched;
            match pending {
                Pending::All(time) => fetched.all = time,
                Pending::Entry { stream, level1, time } => {
                    fetched.entry.insert(stream, time);
                    // Contexts that were reached by the entry go with it.
                    fetched.context.insert(stream, time);
                    if level1 {
                        let split = self.registers.table_config >> 6 & 0x1f;
                        fetched.level1.insert(stream >> split, time);
                    }
                }
                Pending::Context { stream, time } => {
                    fetched.context.insert(stream, time);
                }
                Pending::Translations => self.translations_invalidated = true,
            }
        }
        self.tlb.complete();
        self.atc.complete();
        self.fill();
        std::mem::take(&mut self.delayed).into_iter().for_each(|record| self.record(record));
        match low >> 12 & 3 {
            1 => {
                // The interrupt is a store.
                let address = high & ((1 << 52) - 1) & !3;
                if let Some(index) = self.arena.index(address & !7) {
                    let shift = (address & 4) * 8;
                    let before = self.arena.read(index) & !(0xffff_ffff << shift);
                    self.arena.write(index, before | (low >> 32) << shift);
                }
            }
            3 => self.report(SmmuRule::Undefined, "CMD_SYNC with the reserved CS".into()),
            _ => {}
        }
    }

    pub(crate) fn configuration_was_invalidated(&self) -> bool {
        self.fetched.all != 0
    }

    pub(crate) const fn translations_were_invalidated(&self) -> bool {
        self.translations_invalidated
    }
}
