//! Tables changed at random under a device that uses them, streams bound and unbound, frames given up and taken again:
//! an oracle knows what the device must see.
//!
//! Each story fails with one step of the driver away.

use std::collections::BTreeSet;

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_model::smmu::{Access, Hardware, Outcome, Rewrite};
use granule_smmuv3::{Scope, Step, Stream};
use proptest::prelude::*;
use proptest::strategy::ValueTree;

use crate::rig::{F_PERMISSION, F_TRANSLATION, PAGE_CLEAN, PAGE_RO, PAGE_RW, Rig, STREAM, Tables, update_context};

const PAGES: u64 = 16;

/// How a page is mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mapped {
    Writable,
    ReadOnly,
    Clean,
}

impl Mapped {
    const fn attributes(self) -> u64 {
        match self {
            Self::Writable => PAGE_RW,
            Self::ReadOnly => PAGE_RO,
            Self::Clean => PAGE_CLEAN,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Action {
    /// A page gets a new frame, by break-before-make where it has one.
    Map(u64, Mapped),
    /// Pages lose their frames, which are free then.
    Unmap(u64, u64),
    /// Pages get another permission.
    Protect(u64, u64, Mapped),
    /// The device reads or writes.
    Transact(u64, bool),
    /// The stream is unbound, the ASID given back, the other tables bound.
    Rebind,
    /// Translation ends, all frames are free, and translation begins again.
    Exit,
}

fn action() -> impl Strategy<Value = Action> {
    let mapped = prop_oneof![Just(Mapped::Writable), Just(Mapped::ReadOnly), Just(Mapped::Clean)];
    let count = 1..5u64;
    prop_oneof![
        4 => (0..PAGES, mapped.clone()).prop_map(|(page, mapped)| Action::Map(page, mapped)),
        2 => (0..PAGES, count.clone()).prop_map(|(page, count)| Action::Unmap(page, count)),
        3 => (0..PAGES, count, mapped).prop_map(|(page, count, mapped)| Action::Protect(page, count, mapped)),
        4 => (0..PAGES, any::<bool>()).prop_map(|(page, write)| Action::Transact(page, write)),
        1 => Just(Action::Rebind),
        1 => Just(Action::Exit),
    ]
}

struct Story {
    rig: Rig,
    tables: [Tables; 2],
    /// The pages that the bound tables map: the frame, and how.
    oracle: [[Option<(u64, Mapped)>; PAGES as usize]; 2],
    bound: usize,
    asid: u16,
    next_frame: u64,
}

impl Story {
    fn new(hardware: Hardware) -> Self {
        let mut rig = Rig::new(hardware);
        let tables = [Tables::new(&rig), Tables::new(&rig)];
        rig.model.add_device(STREAM);
        let asid = rig.parts.asids.allocate().unwrap();
        rig.translate(STREAM, &tables[0].context(asid));
        Self { rig, tables, oracle: Default::default(), bound: 0, asid, next_frame: 0x1_0000_0000 }
    }

    fn invalidate(&self, first: u64, count: u64) {
        let (start, end) = (VirtAddr(first * 0x1000), VirtAddr((first + count) * 0x1000));
        self.rig.parts.smmu.invalidate(self.asid, start, end, Scope::Leaves);
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Map(page, mapped) => {
                self.unmap(page, 1);
                let frame = self.next_frame;
                self.next_frame += 0x1000;
                self.tables[self.bound].map(&self.rig, page, frame, mapped.attributes());
                self.oracle[self.bound][page as usize] = Some((frame, mapped));
            }
            Action::Unmap(page, count) => self.unmap(page, count.min(PAGES - page)),
            Action::Protect(page, count, mapped) => {
                let count = count.min(PAGES - page);
                for page in page..page + count {
                    let Some((frame, how)) = &mut self.oracle[self.bound][page as usize] else { continue };
                    *how = mapped;
                    self.tables[self.bound].map(&self.rig, page, *frame, mapped.attributes());
                }
                self.invalidate(page, count);
            }
            Action::Transact(page, write) => {
                let access = if write { Access::WRITE } else { Access::READ };
                self.rig.model.transact(STREAM, page * 0x1000 + 0x18, access);
                self.rig.parts.events.drain(&self.rig.parts.smmu, |_| ());
            }
            Action::Rebind => {
                self.rig.set(STREAM, Stream::Abort);
                self.rig.parts.smmu.invalidate_asid(self.asid);
                self.rig.parts.asids.free(self.asid);
                self.asid = self.rig.parts.asids.allocate().unwrap();
                self.bound ^= 1;
                let context = self.tables[self.bound].context(self.asid);
                self.rig.translate(STREAM, &context);
            }
            Action::Exit => {
                let context = self.tables[self.bound].context(self.asid);
                let (streams, smmu) = (&mut self.rig.parts.streams, &self.rig.parts.smmu);
                update_context(streams, smmu, STREAM, &context.disabled()).unwrap();
                smmu.invalidate_asid(self.asid);
                for page in 0..PAGES {
                    if let Some((frame, _)) = self.oracle[self.bound][page as usize].take() {
                        self.rig.model.freed(PhysAddr(frame), 0x1000);
                        self.tables[self.bound].write(&self.rig, page, 0);
                    }
                }
                update_context(&mut self.rig.parts.streams, &self.rig.parts.smmu, STREAM, &context).unwrap();
            }
        }
    }

    fn unmap(&mut self, first: u64, count: u64) {
        let pages = first..first + count;
        let gone: Vec<u64> = pages
            .filter_map(|page| {
                let (frame, _) = self.oracle[self.bound][page as usize].take()?;
                self.tables[self.bound].write(&self.rig, page, 0);
                Some(frame)
            })
            .collect();
        self.invalidate(first, count);
        gone.into_iter().for_each(|frame| self.rig.model.freed(PhysAddr(frame), 0x1000));
    }

    /// Whether the device sees what the oracle has, at every page and at once.
    fn is_right(&self) -> bool {
        (0..PAGES).all(|page| {
            let [read, write] = match self.oracle[self.bound][page as usize] {
                None => [F_TRANSLATION; 2],
                Some((frame, Mapped::Writable)) => [Outcome::Reaches(frame); 2],
                Some((frame, _)) => [Outcome::Reaches(frame), F_PERMISSION],
            };
            let only =
                |outcome, access| self.rig.model.outcomes(STREAM, page * 0x1000, access) == BTreeSet::from([outcome]);
            only(read, Access::READ) && only(write, Access::WRITE)
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_device_sees_what_the_oracle_says(actions in prop::collection::vec(action(), 1..80), plain: bool) {
        let mut story = Story::new(if plain { Hardware::PLAIN } else { Hardware::QEMU });
        for action in actions {
            story.act(action);
            prop_assert!(story.is_right(), "after {:?}", action);
            story.rig.model.assert_clean();
        }
    }
}

/// Actions that follow from a number.
fn actions(count: usize) -> Vec<Action> {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let tree = prop::collection::vec(action(), count).new_tree(&mut runner).unwrap();
    tree.current()
}

/// Each step of the driver, taken away for the whole story.
#[test]
fn the_story_is_seen_to_fail() {
    type LeaveOut = fn(&Rig);
    let without: [(&str, LeaveOut); 8] = [
        ("CMD_TLBI_NH_VA", |rig| rig.model.rewrite_commands(without_opcode::<0x12>())),
        ("CMD_TLBI_NH_ASID", |rig| rig.model.rewrite_commands(without_opcode::<0x11>())),
        ("CMD_CFGI_STE", |rig| rig.model.rewrite_commands(without_opcode::<0x03>())),
        ("CMD_CFGI_CD", |rig| rig.model.rewrite_commands(without_opcode::<0x05>())),
        ("any CMD_CFGI", |rig| rig.model.leave_out(Step::Configuration)),
        ("CMD_SYNC", |rig| rig.model.leave_out(Step::Sync)),
        ("DMB OSHST before PROD", |rig| rig.model.leave_out(Step::DmbBeforeProd)),
        ("the right ASID", |rig| {
            rig.model.rewrite_commands(|[low, high]| Some([if low & 0xff == 0x12 { low ^ 1 << 50 } else { low }, high]))
        }),
    ];
    for (what, leave_out) in without {
        let mut story = Story::new(Hardware::QEMU);
        leave_out(&story.rig);
        let failed = actions(300).into_iter().position(|action| {
            story.act(action);
            let wrong = !story.is_right();
            wrong | !story.rig.model.violations().is_empty()
        });
        assert!(failed.is_some(), "nothing was seen to be wrong without {what}");
    }
    let mut story = Story::new(Hardware::QEMU);
    for action in actions(300) {
        story.act(action);
        assert!(story.is_right());
    }
    story.rig.model.assert_clean();
}

const fn without_opcode<const OPCODE: u64>() -> Rewrite {
    |command| if command[0] & 0xff == OPCODE { None } else { Some(command) }
}
