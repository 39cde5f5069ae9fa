//! Rules of the architecture, checked at the moment of each operation.
//!
//! Arm ARM D8.17.1 (break-before-make, FEAT_BBM levels), D8.7.1 (contiguous groups). A table may only be linked when
//! its contents come before the link, and a frame may only be reused when no walk and no TLB reaches it.

use granule_arch::addr::PhysAddr;
use granule_arch::descriptor::{Descriptor, Kind as EntryKind, bits};
use granule_pgtable::Geometry;
use granule_pgtable::geometry::LAST_LEVEL;

use crate::event::Time;
use crate::state::{State, Tree};
use crate::stores::{Place, entry_kind};
use crate::story::{Rule, Violation, entry};
use crate::tlb::{Held, Kind};

/// Memory type and shareability: never to be changed under a live translation.
const MEMORY_TYPE: u64 = 0b111 << 2 | 0b11 << 8;

/// The property that must not change between `old`, which a TLB may hold, and `new`, which a walk may read beside it.
fn conflict(old: &Held, new: &Held, bbml2: bool) -> Option<&'static str> {
    let size = (!bbml2).then_some("size");
    match (old.kind, new.kind) {
        (Kind::Table, Kind::Table) => {
            (old.level == new.level && old.start == new.start && old.target != new.target).then_some("table")
        }
        (Kind::Leaf, Kind::Table) => size.filter(|_| old.level <= new.level),
        (Kind::Table, Kind::Leaf) => size.filter(|_| old.level >= new.level),
        (Kind::Leaf, Kind::Leaf) => {
            let changed = |mask| (old.attributes ^ new.attributes) & mask != 0;
            if !old.same_output(new) {
                Some("output address")
            } else if changed(MEMORY_TYPE) {
                Some("memory type")
            } else if changed(bits::NG) {
                Some("global or not")
            } else {
                size.filter(|_| old.level != new.level || old.is_contiguous() != new.is_contiguous())
            }
        }
    }
}

/// The reason for which no CPU may reach a frame, or store to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Use {
    /// Anyone may take it: no translation of it may be left.
    Freed,
    /// The contents go on elsewhere: no writable translation of it may be left.
    Copied,
}

impl<G: Geometry> State<G> {
    /// Whether `holder` may come to use `old` and `new` for one access: both are of one tree, or it runs that of `new`
    /// under what `old` belongs to.
    fn meets(&self, holder: usize, old: &Held, new: &Held) -> bool {
        let runs = self.asid_of(holder, new.root);
        self.is_of_use(holder, old)
            && (old.root == new.root || runs.is_some_and(|asid| old.asid == asid || old.is_global() || new.is_global()))
    }

    /// `cpu` is about to walk `tree`: no other tree's entries are left to it under that ASID.
    pub(crate) fn check_asid(&mut self, cpu: usize, tree: Tree, now: Time) {
        let is_left = |held: &&Held| held.asid == tree.asid && held.root != tree.root && !held.is_global();
        let in_half = |held: &&Held| held.start >> G::VA_BITS == tree.start >> G::VA_BITS;
        let Some(held) = self.cpus[cpu].tlb.all().filter(is_left).find(in_half).copied() else { return };
        let mut story = vec![format!("CPU {cpu} may hold {held}"), self.line(now)];
        story.extend(self.why_held(cpu, &held));
        let headline = format!("ASID {} is another tree's, of which CPU {cpu} may hold entries", tree.asid);
        self.report(Violation::new(Rule::AsidInUse, headline, story));
    }

    /// `new` is about to be readable by walks: no TLB may hold something that must not be there beside it.
    pub(crate) fn check_make(&mut self, writer: usize, new: &[Held], now: Time) {
        let bbml2 = self.features.bbml2;
        let found = new.iter().find_map(|new| {
            self.cpus.iter().enumerate().find_map(|(holder, cpu)| {
                let mut held = cpu.tlb.overlapping(new.start, new.last()).filter(|old| self.meets(holder, old, new));
                held.find_map(|old| {
                    let what = conflict(old, new, bbml2)?;
                    // Where sizes may change, a table may come in the place of another that translates alike.
                    let is_alike = bbml2 && (old.kind, new.kind) == (Kind::Table, Kind::Table);
                    let is_alike = is_alike && self.translate_alike(old.target, new.target, new.level + 1);
                    (!is_alike).then_some((holder, *old, *new, what))
                })
            })
        });
        let Some((holder, old, new, what)) = found else { return };
        let mut story = vec![format!("CPU {holder} may hold {old}")];
        story.push(format!("{now} CPU {writer} makes it {new}"));
        story.extend(self.why_held(holder, &old));
        let headline = format!("{what} of a live translation changes without break-before-make, at {:#x}", new.start);
        self.report(Violation::new(Rule::BreakBeforeMake, headline, story));
    }

    /// Whether walks through two tables of `level` find the same memory, of the same type: what may change in place may
    /// differ.
    fn translate_alike(&self, one: PhysAddr, other: PhysAddr, level: u8) -> bool {
        let fixed = bits::ADDRESS | MEMORY_TYPE | bits::NG;
        (0..G::entries(level) as u64).all(|index| {
            let [one, other] = [one, other].map(|table| self.arena.value(table + index * 8));
            let is_read = one & other & bits::VALID != 0;
            !is_read || entry_kind(one, level) == entry_kind(other, level) && (one ^ other) & fixed == 0
        })
    }

    /// `new` fills an entry that was empty: what was there before is gone from every TLB, and so is what was below it
    /// if it was a table. An empty entry is given up, and its next owner relies on that, even if it makes the same.
    /// (Present-invalid entries are their owner's, which may make them valid again at any time.)
    pub(crate) fn check_fill(&mut self, writer: usize, new: &[Held], now: Time) {
        let bbml2 = self.features.bbml2;
        // Steps of the walk to the entry itself are as they were; what must not change at all, `check_make` reports.
        let is_left = |old: &Held, new: &Held| {
            !old.grouped && (old.kind == Kind::Leaf || old.level >= new.level) && conflict(old, new, bbml2).is_none()
        };
        let found = new.iter().filter(|new| !new.grouped).find_map(|new| {
            self.cpus.iter().enumerate().find_map(|(holder, cpu)| {
                let mut held = cpu.tlb.overlapping(new.start, new.last());
                held.find(|old| is_left(old, new) && self.meets(holder, old, new)).map(|old| (holder, *old, *new))
            })
        });
        let Some((holder, old, new)) = found else { return };
        let mut story = vec![format!("CPU {holder} may hold {old}")];
        story.push(format!("{now} CPU {writer} makes it {new}"));
        story.extend(self.why_held(holder, &old));
        let headline = format!("an emptied entry is filled before its invalidation is complete, at {:#x}", new.start);
        self.report(Violation::new(Rule::EarlyFill, headline, story));
    }

    /// `new` may be held from now on: what some CPU may write through anything that it holds, by whatever address, none
    /// may execute at EL1.
    pub(crate) fn check_write_xor_execute(&mut self, writer: usize, new: &[Held], now: Time) {
        let clash = |new: &Held, old: &Held| {
            new.shares_memory(old)
                && (new.is_writable() && old.is_executable() || new.is_executable() && old.is_writable())
        };
        let found = new.iter().filter(|new| new.kind == Kind::Leaf).find_map(|new| {
            self.cpus.iter().enumerate().find_map(|(holder, cpu)| {
                let mut held = cpu.tlb.translating_to(new.target, new.target + (new.size - 1)).chain(&cpu.ahead);
                held.find(|old| clash(new, old)).map(|old| (holder, *old, *new))
            })
        });
        let Some((holder, old, new)) = found else { return };
        let mut story = vec![format!("CPU {holder} may hold {old}"), format!("{now} CPU {writer} makes {new}")];
        story.extend(self.why_held(holder, &old));
        let headline = format!("{} may be written and executed at one moment", new.target.max(old.target));
        self.report(Violation::new(Rule::WriteXorExecute, headline, story));
    }

    /// `writer` linked `table` at `place`. Returns whether there is a table that can be walked. `fresh`: no walk
    /// could reach it before, neither here nor anywhere.
    pub(crate) fn link(&mut self, writer: usize, table: PhysAddr, place: Place, now: Time, fresh: bool) -> bool {
        if !self.arena.range().contains(table) {
            let headline = format!("{table} is linked as a table, and is no memory");
            self.report(Violation::new(Rule::TableInUse, headline, vec![self.line(now)]));
            return false;
        }
        let before = self.memory.place(table);
        if before.is_some_and(|before| before != place) {
            self.check_unreachable(table, "is linked at a second place");
        }
        if self.free.contains(&table.0) {
            let headline = format!("{table} is linked as a table, and is free");
            self.report(Violation::new(Rule::TableInUse, headline, vec![self.line(now)]));
        }
        if fresh || before != Some(place) {
            self.check_filled(writer, table, now);
            self.memory.frame_mut(table).forget_past();
        }
        self.memory.frame_mut(table).place = Some(place);
        true
    }

    /// A walker that follows the new link must find the table as it is: everything in it was stored by the linking CPU
    /// and before a barrier, or is complete.
    fn check_filled(&mut self, writer: usize, table: PhysAddr, now: Time) {
        let barrier = self.cpus[writer].last_barrier;
        let zeroed = self.memory.take_zeroed(table, G::PAGE_SIZE).filter(|&time| time > barrier);
        let Some(frame) = self.memory.frame(table) else { return };
        let late = frame.written().find_map(|(index, cell)| {
            let late = cell.undrained().find(|version| version.writer != writer || version.time > barrier)?;
            Some((late.time, format!("entry {index} was written and")))
        });
        let zeroed = zeroed.map(|time| (time, "it was zeroed and".to_owned()));
        let Some((time, what)) = late.or(zeroed) else { return };
        let story = vec![
            self.line(time),
            self.line(now),
            format!("missing: DMB ISHST (or stronger) on CPU {writer} between {time} and {now}"),
        ];
        let headline =
            format!("table {table} is linked while a walk may find in it what was there before: {what} linked");
        self.report(Violation::new(Rule::UnorderedTable, headline, story));
    }

    /// A CPU that follows a new leaf must find the frame zeroed.
    pub(crate) fn check_zeroed(&mut self, writer: usize, leaf: &Held, now: Time) {
        let barrier = self.cpus[writer].last_barrier;
        let zeroed = self.memory.take_zeroed(leaf.target, leaf.size);
        let Some(time) = zeroed.filter(|&time| time > barrier) else { return };
        let story = vec![
            self.line(time),
            self.line(now),
            format!("missing: DMB ISHST (or stronger) on CPU {writer} between {time} and {now}"),
        ];
        let headline = format!("{} is mapped at {:#x} before it is seen zeroed", leaf.target, leaf.start);
        self.report(Violation::new(Rule::UnorderedFrame, headline, story));
    }

    /// `table` gets another use: no walk may come to it.
    pub(crate) fn check_unreachable(&mut self, table: PhysAddr, what: &str) {
        for cpu in 0..self.cpus.len() {
            if self.memory.place(table).is_some() && self.reaches(cpu, table, |_| false) {
                let story = self.why_reached(cpu, table);
                let headline = format!("table {table} {what} while a walk of CPU {cpu} may come to it");
                self.report(Violation::new(Rule::TableInUse, headline, story));
                return;
            }
        }
    }

    /// `writer` stores `new` over `old`, which it read before: the hardware may have set flags in between, which `new`
    /// must have then. An entry that is discarded has none.
    pub(crate) fn check_flags_kept(&mut self, writer: usize, cell: PhysAddr, old: Descriptor, new: Descriptor) {
        let Some(used) = self.used_leaf(cell, old) else { return };
        let keeps = |flags: u64| used.0 & flags == old.0 & flags;
        let what = if !new.is_present() || new.address() != old.address() {
            return;
        } else if !keeps(bits::AF) && new.0 & bits::AF == 0 {
            "access flag"
        } else if !keeps(bits::RDONLY) && !new.is_dirty() {
            "dirty state"
        } else {
            return;
        };
        let place =
            self.memory.place(cell).map_or(0, |place| place.start + (self.index(cell) << G::shift(place.level)));
        let headline = format!("CPU {writer} overwrites the {what} that the hardware may just have set, at {place:#x}");
        let story = vec![
            format!("a plain store to {cell}: {old:?} -> {new:?}"),
            "missing: compare-exchange, of an entry that is not young, or writable and clean".to_owned(),
        ];
        self.report(Violation::new(Rule::LostUpdate, headline, story));
    }

    /// The frame at `frame` gets another use: no TLB may translate to it, but where everything is mapped anyway.
    pub(crate) fn check_untranslated(&mut self, frame: PhysAddr, becomes: Use) {
        let last = frame + (G::PAGE_SIZE - 1);
        let maps = |held: &&Held| {
            let (first, end) = (held.target, held.target + (held.size - 1));
            let counts = becomes == Use::Freed || held.attributes & bits::RDONLY == 0;
            held.kind == Kind::Leaf && counts && first <= last && frame <= end
        };
        let found = self.cpus.iter().enumerate().find_map(|(holder, cpu)| {
            let exempt = |held: &&Held| self.shows_all.iter().any(|range| range.contains(&held.start));
            let mut held = cpu.tlb.translating_to(frame, last).filter(maps);
            held.find(|held| self.is_of_use(holder, held) && !exempt(held)).map(|held| (holder, *held))
        });
        let Some((holder, held)) = found else { return };
        let mut story = vec![format!("CPU {holder} may hold {held}")];
        story.extend(self.why_held(holder, &held));
        let (what, reach) = match becomes {
            Use::Freed => ("freed", "reach"),
            Use::Copied => ("copied", "store to"),
        };
        let headline = format!("frame {frame} is {what} while CPU {holder} may {reach} it at {:#x}", held.start);
        self.report(Violation::new(Rule::FrameInUse, headline, story));
    }

    /// Why the group of `cell` must not be used: its entries do not translate alike. With BBML2 they may differ in the
    /// contiguous bit.
    pub(crate) fn mixed_group(&self, cell: PhysAddr) -> Option<String> {
        let place = self.memory.place(cell)?;
        if G::group_entries(place.level) == 1 {
            return None;
        }
        let values: Vec<u64> = self.group(cell).map(|cell| self.features.used(self.arena.value(cell))).collect();
        let is_leaf = |value: u64| entry_kind(value, place.level) == EntryKind::Leaf;
        let contiguous = |value: u64| is_leaf(value) && value & bits::CONTIGUOUS != 0;
        let (witness, &model) = values.iter().enumerate().find(|&(_, &value)| contiguous(value))?;
        let may_differ = if self.features.bbml2 { bits::CONTIGUOUS } else { 0 };
        let step = G::entry_size(place.level);
        for (index, &value) in values.iter().enumerate() {
            let expected = model.wrapping_add((index as u64).wrapping_sub(witness as u64).wrapping_mul(step));
            if !is_leaf(value) || (value ^ expected) & !may_differ != 0 {
                return Some(format!(
                    "contiguous group at {:#x}: entry {witness} is {}, entry {index} is {}",
                    place.start + (self.index(cell) & !(values.len() as u64 - 1)) * step,
                    entry(model, place.level),
                    entry(value, place.level),
                ));
            }
        }
        None
    }

    /// An instruction that is not defined on this machine, or whose operand is not.
    pub(crate) fn undefined(&mut self, cpu: usize, now: Time, why: &str) {
        let headline = format!("CPU {cpu} issues what is not defined here: {why}");
        self.report(Violation::new(Rule::Undefined, headline, vec![self.line(now)]));
    }

    pub(crate) fn report(&mut self, violation: Violation) {
        self.violations.push(violation);
    }
}

/// Whether entries of `level` are pages.
pub(crate) fn is_last(level: u8) -> bool {
    level == LAST_LEVEL
}

/// The address that a walk that reads `value` at `level` translates to, if it ends there.
pub(crate) fn address_of(value: u64) -> PhysAddr {
    Descriptor(value).address()
}
