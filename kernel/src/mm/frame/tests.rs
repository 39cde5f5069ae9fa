//! The allocator on fake machines: against an oracle, to exhaustion and back, with many CPUs, and in the order of a
//! boot.

#![allow(unsafe_code, reason = "frame records and free lists in frames that the allocator owns")]

mod several_cpus;

use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicBool, Ordering};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::boxed::Box;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::vec;
use std::vec::Vec;

use granule_arch::addr::{PAGE, PhysRange};
use granule_arch::alternative::host;
use proptest::prelude::*;

use super::*;
use crate::mm::page_block::{MAX_ORDER, host_allocations};
use crate::platform::TagStorageRegion;
use crate::platform::features::branch;
use crate::smp::CpuId;

/// Memory and records for a machine whose physical addresses have nothing to do with the host's.
pub(in crate::mm) struct Machine {
    banks: Vec<PhysRange>,
    ram: *mut u8,
    ram_layout: Layout,
    records: *mut u8,
    records_layout: Layout,
}

impl Machine {
    pub(in crate::mm) fn new(banks: &[PhysRange]) -> Self {
        let (low, high) = (banks.first().unwrap().start(), banks.last().unwrap().end());
        let ram_layout = Layout::from_size_align((high - low) as usize, BLOCK_SIZE as usize).unwrap();
        let frames = (high.align_up(BLOCK_SIZE).unwrap() - low.align_down(BLOCK_SIZE)) as usize / PAGE_SIZE;
        let records_layout = Layout::from_size_align(FrameRecords::bytes(frames), PAGE_SIZE).unwrap();
        // SAFETY: neither size is zero.
        let (ram, records) = unsafe { (alloc_zeroed(ram_layout), alloc_zeroed(records_layout)) };
        assert!(!ram.is_null() && !records.is_null());
        // SAFETY: just allocated. Records that were not zeroed must not pass for good ones.
        unsafe { records.write_bytes(0xa5, records_layout.size()) };
        Self { banks: banks.to_vec(), ram, ram_layout, records, records_layout }
    }

    fn lowest(&self) -> PhysAddr {
        self.banks[0].start()
    }

    pub(in crate::mm) fn linear(&self) -> LinearMap {
        LinearMap::new(VirtAddr(VirtAddr::from_ptr(self.ram).0.wrapping_sub(self.lowest().0)))
    }

    /// Does what start.rs does, except for mapping. The allocator must not outlive the machine.
    pub(in crate::mm) fn boot(&self, cpu: &Cpu, reserved: &[PhysRange]) -> FrameAllocator {
        let mut map = MemoryMap::new(self.banks.iter().copied(), reserved.iter().copied()).unwrap();
        let storage_bytes = FrameAllocator::required_bytes(&map);
        let storage = map.take(storage_bytes / PAGE_SIZE, PAGE_SIZE as u64).unwrap();
        let storage = self.linear().address(storage);
        // SAFETY: the run was just taken from the map. The contents that a previous stage left there must not matter.
        unsafe { storage.as_ptr::<u8>().write_bytes(0xa5, storage_bytes) };
        let lowest_block = self.lowest().align_down(BLOCK_SIZE).frame_number();
        let base = VirtAddr::from_ptr(self.records).0.wrapping_sub(FrameRecords::bytes(lowest_block) as u64);
        // SAFETY: storage and records are the machine's, which outlives the allocator.
        unsafe { FrameAllocator::new(cpu, &mut map, storage, FrameRecords::new(VirtAddr(base)), self.linear()) }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // SAFETY: allocated with these layouts.
        unsafe {
            dealloc(self.ram, self.ram_layout);
            dealloc(self.records, self.records_layout);
        }
    }
}

/// A machine that lives for ever, booted.
pub(crate) fn leaked(mib: u64) -> &'static FrameAllocator {
    let machine = ManuallyDrop::new(Machine::new(&[range(0x4000_0000, 0x4000_0000 + (mib << 20))]));
    Box::leak(Box::new(machine.boot(&Cpu::new(CpuId(0)), &[])))
}

/// As [`leaked`], with a region of tag storage, the third page block, whose blocks have `block_bytes`.
pub(crate) fn leaked_with_tag_storage(mib: u64, block_bytes: u64) -> &'static FrameAllocator {
    let (start, end) = (0x4000_0000, 0x4000_0000 + (mib << 20));
    let storage = range(start + 2 * BLOCK_SIZE, start + 3 * BLOCK_SIZE);
    let machine = ManuallyDrop::new(Machine::new(&[range(start, end)]));
    let frames: &FrameAllocator = Box::leak(Box::new(machine.boot(&Cpu::new(CpuId(0)), &[storage])));
    let region = TagStorageRegion { storage, block_bytes, tagged: range(start, end) };
    frames.set_tag_storage(TagStorage::new(&[region], frames.linear()).unwrap());
    frames
}

fn range(start: u64, end: u64) -> PhysRange {
    PhysRange::new(PhysAddr(start), PhysAddr(end)).unwrap()
}

fn small_machine() -> (Machine, Cpu) {
    (Machine::new(&[range(0x4000_0000, 0x4080_0000)]), Cpu::new(CpuId(0)))
}

/// Whether every frame of the run is memory that the allocator may hand out.
fn is_ours(banks: &[PhysRange], reserved: &[PhysRange], run: PhysRange) -> bool {
    banks.iter().any(|bank| bank.start() <= run.start() && run.end() <= bank.end())
        && !reserved.iter().any(|hole| hole.overlaps(run))
}

#[derive(Clone, Debug)]
enum FrameStep {
    Alloc {
        cpu: usize,
        count: usize,
    },
    /// Many at once, and then all but `kept` of them back.
    AllocList {
        cpu: usize,
        count: usize,
        kept: usize,
    },
    AllocBlocks {
        cpu: usize,
        order: u32,
    },
    /// Frees the n-th thing in use, modulo how many there are, and its neighbours.
    Free {
        cpu: usize,
        which: usize,
        count: usize,
    },
    /// As [`Self::Free`], in bulk.
    FreeMany {
        cpu: usize,
        which: usize,
        count: usize,
    },
    /// The first ones from `which` on, some of which have another holder that drops them later.
    LetGoFew {
        cpu: usize,
        which: usize,
        count: usize,
    },
    Drain {
        cpu: usize,
    },
}

fn steps() -> impl Strategy<Value = Vec<FrameStep>> {
    let step = prop_oneof![
        4 => (0..3_usize, 1..700_usize).prop_map(|(cpu, count)| FrameStep::Alloc { cpu, count }),
        2 => (0..3_usize, 0..4_u32).prop_map(|(cpu, order)| FrameStep::AllocBlocks { cpu, order }),
        4 => (0..3_usize, 0..1500_usize, any::<usize>())
            .prop_map(|(cpu, count, kept)| FrameStep::AllocList { cpu, count, kept: kept % (count + 1) }),
        4 => (0..3_usize, any::<usize>(), 1..900_usize).prop_map(|(cpu, which, count)| FrameStep::Free { cpu, which, count }),
        4 => (0..3_usize, any::<usize>(), 1..900_usize)
            .prop_map(|(cpu, which, count)| FrameStep::FreeMany { cpu, which, count }),
        4 => (0..3_usize, any::<usize>(), 0..=FEW).prop_map(|(cpu, which, count)| FrameStep::LetGoFew { cpu, which, count }),
        1 => (0..3_usize).prop_map(|cpu| FrameStep::Drain { cpu }),
    ];
    prop::collection::vec(step, 1..40)
}

/// The runs in use: start → size in bytes and the order of a run of blocks.
type InUse = BTreeMap<u64, (u64, Option<u32>)>;

#[track_caller]
fn hand_out(in_use: &mut InUse, start: PhysAddr, size: u64, order: Option<u32>) {
    let below = in_use.range(..start.0 + size).next_back();
    assert!(below.is_none_or(|(other, (other_size, _))| other + other_size <= start.0), "{start}: two owners");
    in_use.insert(start.0, (size, order));
}

fn give_back(frames: &FrameAllocator, cpu: &Cpu, start: u64, order: Option<u32>) {
    match order {
        None => frames.free(cpu, PhysAddr(start)),
        Some(order) => frames.free_blocks(cpu, PhysAddr(start), order),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn every_frame_has_one_owner_and_all_come_back(
        holes in prop::collection::vec((0..24_u64 << 20, 1..3_u64 << 20), 0..5),
        steps in steps(),
    ) {
        let banks = [range(0x4000_0000, 0x4090_1000), range(0x4110_0000, 0x4200_0000)];
        let reserved: Vec<_> =
            holes.iter().map(|(at, size)| range(0x4000_0000 + at, 0x4000_0000 + at + size)).collect();
        let machine = Machine::new(&banks);
        let cpus = [0, 1, 2].map(|id| Cpu::new(CpuId(id)));
        prop_assume!(MemoryMap::new(banks, reserved.iter().copied()).is_ok_and(|map| map.free().iter().any(|r| r.size() > 65536)));
        let frames = machine.boot(&cpus[0], &reserved);
        let at_boot = frames.stats();
        prop_assert_eq!(at_boot.used, 0);

        let mut in_use = InUse::new();
        for step in steps {
            let allocations = host_allocations();
            let mut got = Vec::with_capacity(2048);
            let allocations_of_the_test = host_allocations() - allocations;
            match step {
                FrameStep::Alloc { cpu, count } => {
                    for _ in 0..count {
                        let Ok(frame) = frames.alloc(&cpus[cpu]) else {
                            // Exhausted: all that is left is in other magazines.
                            let stats = frames.stats();
                            prop_assert_eq!(stats.free, stats.in_magazines);
                            break;
                        };
                        got.push((frame, PAGE_SIZE as u64, None));
                    }
                }
                FrameStep::AllocList { cpu, count, kept } => {
                    let cpu = &cpus[cpu];
                    match frames.alloc_list(cpu, count) {
                        Ok(mut list) => {
                            for _ in 0..kept {
                                let frame = list.pop().unwrap();
                                prop_assert_eq!(frames.frame(frame).map(|(_, frame)| frame.references()), Some(1));
                                got.push((frame, PAGE_SIZE as u64, None));
                            }
                            frames.free_list(cpu, list);
                        }
                        Err(OutOfMemory) => {
                            let stats = frames.stats();
                            prop_assert!(count > stats.free - stats.in_magazines);
                        }
                    }
                }
                FrameStep::AllocBlocks { cpu, order } => {
                    if let Ok(start) = frames.alloc_blocks(&cpus[cpu], order) {
                        prop_assert!(start.is_aligned(BLOCK_SIZE << order));
                        got.push((start, BLOCK_SIZE << order, Some(order)));
                    }
                }
                FrameStep::Free { cpu, which, count } => {
                    for _ in 0..count.min(in_use.len()) {
                        let start = *in_use.keys().nth(which % in_use.len()).unwrap();
                        let (_, order) = in_use.remove(&start).unwrap();
                        give_back(&frames, &cpus[cpu], start, order);
                    }
                }
                FrameStep::FreeMany { cpu, which, count } => {
                    let mut freeing = frames.freeing(&cpus[cpu]);
                    for _ in 0..count.min(in_use.len()) {
                        let start = *in_use.keys().nth(which % in_use.len()).unwrap();
                        let (_, order) = in_use.remove(&start).unwrap();
                        match order {
                            None => freeing.add(PhysAddr(start)),
                            Some(order) => frames.free_blocks(&cpus[cpu], PhysAddr(start), order),
                        }
                    }
                }
                FrameStep::LetGoFew { cpu, which, count } => {
                    let single = in_use.iter().filter(|(_, (_, order))| order.is_none());
                    let skipped = which % (in_use.len() + 1);
                    let few: heapless::Vec<_, FEW> =
                        single.map(|(start, _)| *start).skip(skipped).take(count).collect();
                    let mut runs = heapless::Vec::<Range<usize>, FEW>::new();
                    for start in &few {
                        in_use.remove(start);
                        let number = PhysAddr(*start).frame_number();
                        match runs.last_mut() {
                            Some(run) if run.end == number => run.end += 1,
                            _ => runs.push(number..number + 1).unwrap(),
                        }
                    }
                    let shared: heapless::Vec<_, FEW> =
                        few.iter().copied().filter(|start| (start >> 12) % 3 == 0).collect();
                    let references = |start: &u64| frames.frame(PhysAddr(*start)).unwrap().1.references();
                    for start in &shared {
                        frames.frame(PhysAddr(*start)).unwrap().1.share();
                    }
                    frames.put_runs(&cpus[cpu], runs.into_iter());
                    prop_assert!(shared.iter().all(|start| references(start) == 1), "freed under a holder");
                    let numbers = shared.iter().map(|start| PhysAddr(*start).frame_number());
                    frames.put_runs(&cpus[cpu], numbers.map(|number| number..number + 1));
                }
                FrameStep::Drain { cpu } => frames.drain_cpu(&cpus[cpu]),
            }
            prop_assert_eq!(host_allocations() - allocations, allocations_of_the_test, "the allocator allocated");
            for (start, size, order) in got {
                prop_assert!(is_ours(&banks, &reserved, PhysRange::from_size(start, size).unwrap()));
                hand_out(&mut in_use, start, size, order);
            }
            let used: u64 = in_use.values().map(|(size, _)| size / PAGE_SIZE as u64).sum();
            prop_assert_eq!(frames.stats().used as u64, used);
        }
        for (start, (_, order)) in in_use {
            give_back(&frames, &cpus[1], start, order);
        }
        cpus.iter().for_each(|cpu| frames.drain_cpu(cpu));
        prop_assert_eq!(frames.stats(), at_boot, "not back to the state after boot");
    }
}

#[test]
fn exhaustion_is_a_value_and_gives_every_frame_once() {
    let (machine, cpu) = small_machine();
    let frames = machine.boot(&cpu, &[range(0x4000_0000, 0x4010_3000)]);
    let total = frames.stats().total;
    let mut all: Vec<_> = core::iter::from_fn(|| frames.alloc(&cpu).ok()).collect();
    assert_eq!(all.len(), total);
    assert_eq!(frames.alloc(&cpu), Err(OutOfMemory));
    assert_eq!(frames.alloc_zeroed(&cpu), Err(OutOfMemory));
    assert_eq!(frames.alloc_blocks(&cpu, 0), Err(OutOfMemory));
    all.sort();
    all.dedup();
    assert_eq!(all.len(), total, "a frame had two owners");
    frames.free(&cpu, all[7]);
    assert_eq!(frames.alloc(&cpu), Ok(all[7]));
    all.iter().for_each(|frame| frames.free(&cpu, *frame));
    frames.drain_cpu(&cpu);
    assert_eq!(frames.stats().free, total);
    assert!(frames.alloc_blocks(&cpu, 1).is_ok(), "neighbours were not joined");
}

#[test]
fn last_frames_of_a_block_in_the_own_magazine_do_not_stop_alloc_blocks() {
    let (machine, cpu) = small_machine();
    let frames = machine.boot(&cpu, &[range(0x4000_0000, 0x4060_0000 - 0x10_0000)]);
    let edge = frames.stats().total - BLOCK_FRAMES;
    let held: Vec<_> = (0..edge).map(|_| frames.alloc(&cpu).unwrap()).collect();
    let last = frames.alloc(&cpu).unwrap();
    frames.free(&cpu, last);
    assert_eq!(frames.stats().free_blocks, 0);
    assert!(frames.alloc_blocks(&cpu, 0).is_ok());
    assert_eq!(held.len(), edge);
}

#[test]
fn what_moves_and_what_does_not_are_in_different_blocks() {
    let machine = Machine::new(&[range(0x4000_0000, 0x4080_0000)]);
    let cpu = Cpu::new(CpuId(0));
    let frames = machine.boot(&cpu, &[]);
    let block = |frame: PhysAddr| frame.0 / BLOCK_SIZE;
    let mut unmovable = Vec::new();
    for turn in 0..700 {
        let (own, movable) = (frames.alloc(&cpu).unwrap(), frames.alloc_movable(&cpu).unwrap());
        unmovable.push(block(own));
        assert!(!unmovable.contains(&block(movable)), "turn {turn}");
        // A frame given back comes out for the same mobility.
        frames.free(&cpu, own);
        assert_eq!(frames.alloc(&cpu), Ok(own));
    }
    // Where one is used up the other serves.
    while frames.alloc(&cpu).is_ok() {}
    assert_eq!(frames.stats().free, frames.stats().in_magazines);
}

/// Each is a frame of its own, the reserve stays, and all of them make whole blocks again.
#[test]
fn groups_are_aligned_neighbours_and_come_back_one_by_one() {
    let (frames, cpu) = (leaked(8), Cpu::new(CpuId(0)));
    let before = frames.stats();
    let mut taken = vec![frames.alloc_movable(&cpu).unwrap()];
    let groups: Vec<_> = core::iter::from_fn(|| frames.alloc_movable_group(&cpu).ok()).collect();
    let each = |group: PhysAddr| (0..GROUP as u64).map(move |index| group + index * PAGE_SIZE as u64);
    taken.extend(groups.iter().copied().flat_map(each));
    assert!(groups.iter().all(|group| group.is_aligned((GROUP * PAGE_SIZE) as u64)) && groups.len() > 32);
    assert_eq!(frames.stats().used, before.used + taken.len());
    taken.extend(core::iter::from_fn(|| frames.alloc_movable(&cpu).ok()));
    assert_eq!((frames.stats().free, taken.len()), (0, before.free));
    let mut different = taken.clone();
    different.sort_unstable();
    different.dedup();
    assert_eq!(different.len(), taken.len());
    // Every other one: none is a group.
    let (some, rest): (Vec<_>, Vec<_>) = taken.iter().partition(|frame| frame.frame_number() % 2 == 0);
    some.into_iter().for_each(|frame| frames.free(&cpu, frame));
    frames.drain_cpu(&cpu);
    assert_eq!(frames.alloc_movable_group(&cpu), Err(OutOfMemory));
    rest.into_iter().for_each(|frame| frames.free(&cpu, frame));
    frames.drain_cpu(&cpu);
    assert_eq!(frames.stats(), before);
}

#[test]
fn cpus_take_frames_from_blocks_of_their_own() {
    let machine = Machine::new(&[range(0x4000_0000, 0x4080_0000)]);
    let cpus = [0, 1, 2].map(|id| Cpu::new(CpuId(id)));
    let frames = machine.boot(&cpus[0], &[]);
    let block = |frame: PhysAddr| frame.0 / BLOCK_SIZE;
    let mut owners = BTreeMap::new();
    for (turn, cpu) in cpus.iter().cycle().take(3 * 400).enumerate() {
        let frame = frames.alloc(cpu).unwrap();
        assert_eq!(*owners.entry(block(frame)).or_insert(cpu.id), cpu.id, "turn {turn}");
    }
    assert_eq!(owners.len(), 3);
    // All the rest, frames of others too, as no block is free.
    let left = frames.stats().free - frames.stats().in_magazines;
    let own_magazine = |cpu: &Cpu| cpu.id.of(frames.magazines)[0].len();
    let count = left + own_magazine(&cpus[2]);
    let list = frames.alloc_list(&cpus[2], count).expect("frames of other CPUs");
    assert_eq!(frames.stats().free, own_magazine(&cpus[0]) + own_magazine(&cpus[1]));
    // They go back to the blocks that they came from.
    frames.free_list(&cpus[2], list);
    cpus.iter().for_each(|cpu| frames.drain_cpu(cpu));
    for cpu in cpus.iter().cycle().take(3 * 100) {
        let frame = frames.alloc(cpu).unwrap();
        assert_eq!(*owners.entry(block(frame)).or_insert(cpu.id), cpu.id);
    }
}

#[test]
fn a_whole_block_stays_with_its_cpu_until_a_block_is_wanted() {
    let machine = Machine::new(&[range(0x4000_0000, 0x4080_0000)]);
    let cpus = [0, 1].map(|id| Cpu::new(CpuId(id)));
    let frames = machine.boot(&cpus[0], &[]);
    let at_boot = frames.stats();
    let all = at_boot.free_blocks;
    for cpu in &cpus {
        let list = frames.alloc_list(cpu, BLOCK_FRAMES).unwrap();
        frames.free_list(cpu, list);
    }
    assert_eq!(frames.stats().free_blocks, all - 2, "one with each");
    let blocks: Vec<_> = core::iter::from_fn(|| frames.alloc_blocks(&cpus[0], 0).ok()).collect();
    assert_eq!(blocks.len(), all, "that of the other CPU too");
    assert_eq!(frames.stats().cut_blocks, at_boot.cut_blocks);
    blocks.iter().for_each(|block| frames.free_blocks(&cpus[1], *block, 0));
    // Freed by another CPU it joins the free ones at once.
    let list = frames.alloc_list(&cpus[0], BLOCK_FRAMES).unwrap();
    frames.free_list(&cpus[1], list);
    assert_eq!(frames.stats(), at_boot);
}

#[test]
fn zeroed_frames_are_zero_whatever_they_held() {
    let (machine, cpu) = small_machine();
    let frames = machine.boot(&cpu, &[]);
    let bytes = |frame| {
        // SAFETY: the frame is this test's.
        unsafe { core::slice::from_raw_parts_mut(frames.linear().address(frame).as_ptr::<u8>(), PAGE_SIZE) }
    };
    let frame = frames.alloc(&cpu).unwrap();
    bytes(frame).fill(0xff);
    frames.free(&cpu, frame);
    let again = frames.alloc_zeroed(&cpu).unwrap();
    assert_eq!(again, frame, "the frame freed last is handed out first");
    assert!(bytes(again).iter().all(|byte| *byte == 0));
}

#[test]
fn record_shows_the_owner_and_is_cleared_by_free() {
    let (machine, cpu) = small_machine();
    let frames = machine.boot(&cpu, &[]);
    let address = frames.alloc(&cpu).unwrap();
    let (state, frame) = frames.frame(address).unwrap();
    assert_eq!((state, frame.references()), (BlockState::Cut, 1));
    frame.owner.store(7, Ordering::Relaxed);
    frame.flags.store(1, Ordering::Relaxed);
    frames.free(&cpu, address);
    assert_eq!(frame.references(), 0);
    assert_eq!(frame.owner.load(Ordering::Relaxed) | u64::from(frame.flags.load(Ordering::Relaxed)), 0);
}

/// Frees that must be noticed: each gets a fresh allocator and something of its own to free wrongly.
fn refused(wrong: impl Fn(&FrameAllocator, &Cpu) + std::panic::RefUnwindSafe) {
    let outcome = std::panic::catch_unwind(|| {
        let (machine, cpu) = small_machine();
        let frames = machine.boot(&cpu, &[range(0x4000_0000, 0x4000_1000)]);
        wrong(&frames, &cpu);
        frames.stats().refused
    });
    if cfg!(debug_assertions) {
        assert!(outcome.is_err(), "a debug build panics");
    } else {
        assert_eq!(outcome.ok(), Some(1));
    }
}

#[test]
fn double_free_of_a_frame_is_refused() {
    refused(|frames, cpu| {
        let frame = frames.alloc(cpu).unwrap();
        frames.free(cpu, frame);
        frames.free(cpu, frame);
    });
}

#[test]
fn wrong_frees_among_many_are_refused_and_they_alone() {
    // In the middle of a run, twice in a batch, reserved in front of one's own, in a block that is free as a whole.
    let many = |wrong: fn(&FrameAllocator, &Cpu, &mut Freeing<'_>, [PhysAddr; 3])| {
        refused(move |frames, cpu| {
            let mut list = frames.alloc_list(cpu, 3).unwrap();
            let mine = [(); 3].map(|()| list.pop().unwrap());
            {
                let mut freeing = frames.freeing(cpu);
                wrong(frames, cpu, &mut freeing, mine);
            }
            assert_eq!(frames.stats().used, 0, "the others are free");
        });
    };
    many(|frames, cpu, freeing, mine| {
        frames.free(cpu, mine[1]);
        mine.into_iter().for_each(|frame| freeing.add(frame));
    });
    many(|_, _, freeing, mine| [mine[2], mine[0], mine[1], mine[0]].into_iter().for_each(|frame| freeing.add(frame)));
    many(|_, _, freeing, mine| {
        freeing.add(PhysAddr(0x4000_0000));
        mine.into_iter().for_each(|frame| freeing.add(frame));
    });
    many(|_, _, freeing, mine| {
        mine.into_iter().for_each(|frame| freeing.add(frame));
        freeing.add(PhysAddr(0x4020_0000));
    });
    many(|_, _, freeing, mine| {
        mine.into_iter().for_each(|frame| freeing.add(frame));
        freeing.add(mine[2] + 8);
    });
}

/// As an area gives them back that had blocks, of which some were split, between pages.
#[test]
fn runs_of_blocks_come_back_in_whatever_pieces() {
    let (frames, cpu) = (leaked(32), Cpu::new(CpuId(0)));
    let before = frames.stats();
    let (blocks, order) = frames.alloc_largest_blocks(&cpu, 2).unwrap();
    let single = frames.alloc_blocks(&cpu, 0).unwrap();
    let pages = [(); 5].map(|()| frames.alloc(&cpu).unwrap());
    assert_eq!((order, frames.order_of_blocks(blocks), frames.order_of_blocks(single)), (2, Some(2), Some(0)));
    assert_eq!(
        [blocks + BLOCK_SIZE, blocks + PAGE, pages[0]].map(|address| frames.order_of_blocks(address)),
        [None; 3]
    );
    {
        let mut freeing = frames.freeing(&cpu);
        freeing.add(pages[0]);
        freeing.add_run(blocks, BLOCK_SIZE);
        (0..BLOCK_FRAMES as u64).for_each(|page| freeing.add(blocks + BLOCK_SIZE + page * PAGE));
        freeing.add_run(blocks + 2 * BLOCK_SIZE, 2 * BLOCK_SIZE);
        pages[1..].iter().for_each(|&page| freeing.add(page));
        freeing.add_run(single, BLOCK_SIZE);
    }
    frames.drain_cpu(&cpu);
    assert_eq!(frames.stats(), before);
}

#[test]
fn a_part_of_a_run_of_blocks_is_refused() {
    for (from, to) in [(0, BLOCK_SIZE), (BLOCK_SIZE, 2 * BLOCK_SIZE), (0, 2 * BLOCK_SIZE - PAGE)] {
        let (frames, cpu) = (leaked(16), Cpu::new(CpuId(0)));
        let (blocks, _) = frames.alloc_largest_blocks(&cpu, 1).unwrap();
        let used = frames.stats().used;
        let wrong = || frames.freeing(&cpu).add_run(blocks + from, to - from);
        let refused = std::panic::catch_unwind(core::panic::AssertUnwindSafe(wrong));
        assert!(refused.is_err() == cfg!(debug_assertions) && frames.stats().refused > 0);
        assert_eq!(frames.stats().used, used);
    }
}

/// Taking one block and giving it back leaves the larger runs as they are, and a run of all can be taken.
#[test]
fn a_single_block_stays_beside_the_sets_until_a_run_is_wanted() {
    let (frames, cpu) = (leaked(16), Cpu::new(CpuId(0)));
    let before = frames.stats();
    let order = (0..=MAX_ORDER).rev().find(|&order| {
        frames.alloc_blocks(&cpu, order).inspect(|&blocks| frames.free_blocks(&cpu, blocks, order)).is_ok()
    });
    let block = frames.alloc_blocks(&cpu, 0).unwrap();
    frames.free_blocks(&cpu, block, 0);
    assert_eq!((frames.alloc_blocks(&cpu, 0).unwrap(), frames.stats().free_blocks), (block, before.free_blocks - 1));
    frames.free_blocks(&cpu, block, 0);
    assert_eq!(frames.stats(), before);
    let all = frames.alloc_blocks(&cpu, order.unwrap()).unwrap();
    frames.free_blocks(&cpu, all, order.unwrap());
    assert_eq!(frames.stats(), before);
}

#[test]
fn groups_of_a_list_come_first() {
    let (frames, cpu) = (leaked(64), Cpu::new(CpuId(0)));
    let before = frames.stats();
    for count in [1, 16, 40, 700] {
        let mut list = frames.alloc_list_in_groups(&cpu, count).unwrap();
        let all: Vec<_> = core::iter::from_fn(|| list.pop_run(GROUP)).collect();
        assert_eq!(all.iter().map(|&(_, run)| run).sum::<usize>(), count);
        let groups = count / GROUP;
        let is_group = |&(first, run): &(PhysAddr, usize)| first.is_aligned(GROUP as u64 * PAGE) && run == GROUP;
        assert!(all[..groups].iter().all(is_group), "{count} frames: {all:?}");
        all.into_iter().for_each(|(first, run)| frames.freeing(&cpu).add_run(first, run as u64 * PAGE));
        frames.drain_cpu(&cpu);
        assert_eq!(frames.stats(), before);
    }
    assert!(frames.alloc_list_in_groups(&cpu, before.free + 1).is_err());
    assert_eq!(frames.stats(), before);
}

/// More blocks in pieces than are looked at.
#[test]
fn groups_come_out_of_one_fresh_block_where_the_others_have_none() {
    let (frames, cpu) = (leaked(128), Cpu::new(CpuId(0)));
    let taken: Vec<_> = (0..7 * BLOCK_FRAMES).map(|_| frames.alloc(&cpu).unwrap()).collect();
    let (some, rest): (Vec<_>, Vec<_>) = taken.into_iter().partition(|frame| frame.frame_number() % 2 == 0);
    some.into_iter().for_each(|frame| frames.free(&cpu, frame));
    frames.drain_cpu(&cpu);
    let blocks = frames.stats().free_blocks;
    let groups: Vec<_> = (0..32)
        .map(|_| {
            let mut list = frames.alloc_list_in_groups(&cpu, GROUP).unwrap();
            list.pop_run(GROUP).unwrap()
        })
        .collect();
    assert!(groups.iter().all(|&(first, run)| first.is_aligned(GROUP as u64 * PAGE) && run == GROUP), "{groups:?}");
    assert_eq!(frames.stats().free_blocks, blocks - 1);
    groups.into_iter().for_each(|(first, run)| frames.freeing(&cpu).add_run(first, run as u64 * PAGE));
    rest.into_iter().for_each(|frame| frames.free(&cpu, frame));
}

#[test]
fn holds_that_are_not_there_are_refused_where_runs_are_put() {
    // Free already; reserved in front of one's own; in a block that is free as a whole.
    refused(|frames, cpu| {
        let mut list = frames.alloc_list(cpu, 3).unwrap();
        let mine = [(); 3].map(|()| list.pop().unwrap().frame_number());
        frames.free(cpu, PhysAddr::from_frame_number(mine[1]));
        frames.put_runs(cpu, mine.map(|frame| frame..frame + 1).into_iter());
        assert_eq!(frames.stats().used, 0, "the others are free");
    });
    refused(|frames, cpu| frames.put_runs(cpu, core::iter::once(0x4_0000..0x4_0001)));
    refused(|frames, cpu| frames.put_runs(cpu, core::iter::once(0x4_0200..0x4_0202)));
}

#[test]
fn runs_that_are_put_come_out_in_their_order() {
    let (machine, cpu) = small_machine();
    let frames = machine.boot(&cpu, &[]);
    let all: Vec<_> = (0..FEW).map(|_| frames.alloc_movable(&cpu).unwrap().frame_number()).collect();
    let runs: Vec<_> = all.iter().map(|frame| *frame..frame + 1).collect();
    frames.put_runs(&cpu, runs.into_iter());
    let again: Vec<_> = (0..FEW).map(|_| frames.alloc_movable(&cpu).unwrap().frame_number()).collect();
    assert_eq!(again, all, "in the order in which they were listed");
}

#[test]
fn double_free_of_blocks_is_refused() {
    refused(|frames, cpu| {
        let blocks = frames.alloc_blocks(cpu, 0).unwrap();
        frames.free_blocks(cpu, blocks, 0);
        frames.free_blocks(cpu, blocks, 0);
    });
}

#[test]
fn foreign_frees_are_refused() {
    refused(|frames, cpu| frames.free(cpu, PhysAddr(0x1000)));
    refused(|frames, cpu| frames.free(cpu, PhysAddr(u64::MAX)));
    // Reserved, in a block that is cut.
    refused(|frames, cpu| frames.free(cpu, PhysAddr(0x4000_0000)));
    // In a block that is free as a whole.
    refused(|frames, cpu| frames.free(cpu, PhysAddr(0x4020_0000)));
    refused(|frames, cpu| {
        let frame = frames.alloc(cpu).unwrap();
        frames.free(cpu, frame + 8);
    });
    // A frame of a run of blocks, the run by its second block, the run with another size.
    refused(|frames, cpu| {
        let blocks = frames.alloc_blocks(cpu, 0).unwrap();
        frames.free(cpu, blocks);
    });
    refused(|frames, cpu| {
        let blocks = frames.alloc_blocks(cpu, 1).unwrap();
        frames.free_blocks(cpu, blocks + BLOCK_SIZE, 0);
    });
    refused(|frames, cpu| {
        let blocks = frames.alloc_blocks(cpu, 1).unwrap();
        frames.free_blocks(cpu, blocks, 0);
    });
}

#[test]
fn only_the_first_frame_of_a_run_has_a_record_of_its_own() {
    let (machine, cpu) = small_machine();
    let frames = machine.boot(&cpu, &[]);
    let run = frames.alloc_blocks(&cpu, 1).unwrap();
    assert_eq!(frames.frame(run).map(|(state, frame)| (state, frame.references())), Some((BlockState::Head, 1)));
    assert!(frames.frame(run + BLOCK_SIZE).is_none());
    frames.free_blocks(&cpu, run, 1);
    assert!(frames.frame(run).is_none());
    assert!(frames.frame(PhysAddr(0)).is_none());
}

#[test]
fn list_of_frames_is_all_or_nothing() {
    let (machine, cpu) = small_machine();
    let frames = machine.boot(&cpu, &[]);
    let total = frames.stats().total;
    assert!(frames.alloc_list(&cpu, total + 1).is_err());
    assert_eq!(frames.stats().used, 0);
    let mut list = frames.alloc_list(&cpu, total).unwrap();
    let first = list.pop().unwrap();
    assert_eq!(frames.alloc(&cpu), Err(OutOfMemory));
    frames.free_list(&cpu, list);
    assert_eq!(frames.stats().used, 1);
    frames.free(&cpu, first);
    frames.free_list(&cpu, frames.alloc_list(&cpu, 0).unwrap());
    assert_eq!(frames.stats().used, 0);
}

#[test]
fn orders_beyond_the_largest_are_out_of_memory() {
    let (machine, cpu) = small_machine();
    let frames = machine.boot(&cpu, &[]);
    assert_eq!(frames.alloc_blocks(&cpu, MAX_ORDER + 1), Err(OutOfMemory));
    assert_eq!(frames.alloc_blocks(&cpu, u32::MAX), Err(OutOfMemory));
}

/// The order in which start.rs brings memory up, step by step, on a machine like QEMU's with 64 MiB in two banks.
#[test]
fn boot_in_the_order_of_start() {
    let cpu = Cpu::new(CpuId(0));
    let banks = [range(0x4000_0000, 0x4200_0000), range(0x4400_0000, 0x4600_0000)];
    let (image, device_tree) = (range(0x4020_0000, 0x402a_0000), range(0x4000_0000, 0x4000_8000));
    let machine = Machine::new(&banks);

    // 1. The map of the memory.
    let mut map = MemoryMap::new(banks, [image, device_tree]).unwrap();
    // 2. Tables of the linear map, and the linear map itself.
    let table = map.take(1, PAGE_SIZE as u64).unwrap();
    let linear = machine.linear();
    // 3. The array of records: each part from one run, aligned so that large leaves can map it.
    let parts: Vec<_> = FrameAllocator::required_records(&map).collect();
    assert_eq!(parts, [(0x4_0000, 16 * 512), (0x4_4000, 16 * 512)]);
    let backing: Vec<_> = parts
        .iter()
        .map(|(_, frames)| map.take(FrameRecords::bytes(*frames) / PAGE_SIZE, PAGE_SIZE as u64).unwrap())
        .collect();
    // At a page boundary, as they are mapped.
    let bytes = FrameRecords::bytes(0x4_6000 - 0x4_0000) + PAGE_SIZE;
    let mapped: Vec<u64> = vec![0xa5a5_a5a5_a5a5_a5a5; bytes / 8];
    let first = VirtAddr::from_ptr(mapped.as_ptr()).0.next_multiple_of(PAGE_SIZE as u64);
    let base = VirtAddr(first.wrapping_sub(FrameRecords::bytes(0x4_0000) as u64));
    // 4. Page blocks and their arena.
    let storage = map.take(FrameAllocator::required_bytes(&map) / PAGE_SIZE, PAGE_SIZE as u64).unwrap();
    let left: u64 = map.free().iter().map(|range| range.size()).sum();
    // 5. Everything else.
    // SAFETY: the storage was taken from the map; the records and the machine outlive the allocator.
    let frames =
        unsafe { FrameAllocator::new(&cpu, &mut map, linear.address(storage), FrameRecords::new(base), linear) };

    let taken: Vec<_> = core::iter::from_fn(|| frames.alloc(&cpu).ok()).collect();
    assert_eq!(taken.len() as u64, left / PAGE_SIZE as u64);
    for spoken_for in [table, storage, image.start(), device_tree.start()].iter().chain(&backing) {
        assert!(!taken.contains(spoken_for), "{spoken_for} was handed out");
    }
    drop(mapped);
}
