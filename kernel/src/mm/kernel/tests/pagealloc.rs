//! `debug_pagealloc`: what is free is hidden, whatever the way it became free, and the report says so.

use std::string::String;
use std::vec::Vec;

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::alternative::host;
use granule_arch::descriptor::{Attributes, MemoryType};
use granule_arch::tlbi::{AddressOperand, Instruction};
use granule_pgtable::host::Operation;
use granule_pgtable::{Lazy, PageRange, Shape};
use proptest::prelude::*;

use super::super::KernelSpace;
use super::super::record::record;
use super::{PAGE, space};
use crate::mm::frame::FrameAllocator;
use crate::mm::layout;
use crate::platform::features::branch;
use crate::smp::Cpu;

const MEMORY: PhysAddr = PhysAddr(0x4000_0000);
const MIB: u64 = 8;
const ON: &[u16] = &[branch::DEBUG_PAGEALLOC, branch::DIRECT_MAP];

/// A space whose linear map shows its own memory, by pages.
fn hidden() -> (&'static KernelSpace, &'static FrameAllocator, Cpu) {
    let (space, frames, cpu) = space(MIB);
    let range = PageRange::new(layout::linear(MEMORY), MIB << 20).unwrap();
    let (lazy, data) = (Lazy::new(&space.mmu), Attributes::kernel_data(MemoryType::NormalTagged));
    space.tables().get().map(&lazy, range, MEMORY, data, Shape::PAGES, &mut space.table_source(&cpu)).unwrap();
    frames.hide_free_frames(&cpu, space);
    (space, frames, cpu)
}

/// Frames that are not shown.
fn hidden_frames(space: &KernelSpace) -> Vec<PhysAddr> {
    let mut frames = Vec::new();
    let range = PageRange::new(layout::linear(MEMORY), MIB << 20).unwrap();
    space.tables().dump(range, |extent| {
        if !extent.attributes.is_valid() {
            frames.extend((0..extent.size / PAGE).map(|page| extent.physical + page * PAGE));
        }
    });
    frames
}

#[test]
fn a_frame_that_is_freed_is_invalidated_before_it_is_anyones() {
    host::with(ON, || {
        let (space, frames, cpu) = hidden();
        let mut frame = PhysAddr(0);
        let shown = record(|| frame = frames.alloc(&cpu).unwrap());
        assert!(matches!(shown[..], [Operation::Write { .. }, Operation::DsbIshst, Operation::Isb]), "{shown:?}");
        assert!(space.kernel_page_present(frame));
        let hidden = record(|| frames.free(&cpu, frame));
        let tlbi = Instruction::Vaale1is(AddressOperand::new(layout::linear(frame), None));
        assert!(matches!(hidden[0], Operation::Write { .. }));
        assert_eq!(hidden[1..], [Operation::DsbIshst, Operation::Tlbi(tlbi), Operation::DsbIsh, Operation::Isb]);
        assert!(!space.kernel_page_present(frame));
    });
}

#[test]
fn the_report_of_a_fault_says_that_the_frame_is_free() {
    host::with(ON, || {
        let (space, frames, cpu) = hidden();
        let frame = frames.alloc(&cpu).unwrap();
        let walk = |address: VirtAddr| {
            let mut text = String::new();
            space.describe_walk(address, &mut text).unwrap();
            text
        };
        let inside = layout::linear(frame) + 0x123;
        assert!(!walk(inside).contains("free"));
        space.set_direct_map_invalid_noflush(frame).unwrap();
        assert!(walk(inside).ends_with("is in use, and its owner has taken it out of the linear map\n"));
        space.set_direct_map_default_noflush(frame).unwrap();
        frames.free(&cpu, frame);
        let text = walk(inside);
        assert!(text.ends_with(" is free: this is a use after free, or of what was never allocated\n"), "{text}");
        assert!(text.contains(&std::format!("  {} is free", frame + 0x123)), "{text}");
    });
}

#[derive(Clone, Debug)]
enum Step {
    Alloc,
    AllocList(usize, usize),
    AllocBlock,
    Free(usize),
    FreeMany(usize),
    Drain,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Alloc),
        2 => (1_usize..120, 0_usize..120).prop_map(|(count, kept)| Step::AllocList(count, kept)),
        1 => Just(Step::AllocBlock),
        4 => any::<usize>().prop_map(Step::Free),
        2 => (1_usize..90).prop_map(Step::FreeMany),
        1 => Just(Step::Drain),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn what_is_hidden_is_what_is_free(steps in proptest::collection::vec(step(), 1..60)) {
        host::with(ON, || {
            let (space, frames, cpu) = hidden();
            let (mut taken, mut blocks) = (Vec::new(), Vec::new());
            for step in steps {
                match step {
                    Step::Alloc => taken.extend(frames.alloc(&cpu)),
                    Step::AllocList(count, kept) => {
                        if let Ok(mut list) = frames.alloc_list(&cpu, count) {
                            for _ in 0..kept.min(count) {
                                taken.extend(list.pop());
                            }
                            frames.free_list(&cpu, list);
                        }
                    }
                    Step::AllocBlock => blocks.extend(frames.alloc_blocks(&cpu, 0)),
                    Step::Free(which) if !taken.is_empty() => {
                        frames.free(&cpu, taken.swap_remove(which % taken.len()));
                    }
                    Step::Free(_) => {
                        if let Some(block) = blocks.pop() {
                            frames.free_blocks(&cpu, block, 0);
                        }
                    }
                    Step::FreeMany(count) => {
                        let mut freeing = frames.freeing(&cpu);
                        taken.drain(..count.min(taken.len())).for_each(|frame| freeing.add(frame));
                    }
                    Step::Drain => frames.drain_cpu(&cpu),
                }
                let hidden = hidden_frames(space);
                assert_eq!(hidden.len(), frames.stats().free);
                let in_use = |frame| frames.frame(frame).is_some_and(|(_, record)| record.references() != 0);
                assert!(!hidden.iter().any(|&frame| in_use(frame)));
            }
        });
    }
}
