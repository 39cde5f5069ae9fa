//! Blocks where memory runs out, and where threads of several spaces that share them change them at once.

use core::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::*;
use crate::mm::space::{FaultError, Locking};

/// All page blocks but some, and all frames of cut blocks but some.
pub(super) struct TakenFrames<'r> {
    rig: &'r Rig,
    blocks: Vec<PhysAddr>,
    frames: Vec<PhysAddr>,
}

impl<'r> TakenFrames<'r> {
    pub(super) fn leaving(rig: &'r Rig, blocks: usize, frames: usize) -> Self {
        rig.frames.drain_cpu(&rig.cpu);
        let taken = core::iter::from_fn(|| rig.frames.alloc_blocks(&rig.cpu, 0).ok()).collect();
        let others = core::iter::from_fn(|| rig.frames.alloc(&rig.cpu).ok()).collect();
        let mut taken = Self { rig, blocks: taken, frames: others };
        taken.frames.drain(..frames.min(taken.frames.len())).for_each(|frame| rig.frames.free(&rig.cpu, frame));
        taken.blocks.drain(..blocks).for_each(|block| rig.frames.free_blocks(&rig.cpu, block, 0));
        taken
    }

    pub(super) fn held(&self) -> usize {
        self.blocks.len() * BLOCK_FRAMES + self.frames.len()
    }
}

impl Drop for TakenFrames<'_> {
    fn drop(&mut self) {
        self.blocks.drain(..).for_each(|block| self.rig.frames.free_blocks(&self.rig.cpu, block, 0));
        self.frames.drain(..).for_each(|frame| self.rig.frames.free(&self.rig.cpu, frame));
    }
}

/// In another table of each level.
const FAR: u64 = 1 << 18;

/// A call that may fail; whether it did not.
type Call = fn(&Rig, &Space) -> bool;

const CALLS: [(&str, Call); 8] = [
    ("a store far away", |rig, space| space.write_bytes(&rig.cpu, page(FAR), &[1]).is_ok()),
    ("a store beside", |rig, space| space.write_bytes(&rig.cpu, page(BLOCK_PAGES), &[1]).is_ok()),
    ("a child that stores", |rig, space| {
        let Ok(child) = space.fork(&rig.cpu) else { return false };
        let stored = [&child, space].map(|space| space.write_bytes(&rig.cpu, page(2), &[3]).is_ok());
        // The child's pages are counted no more.
        drop(child);
        stored == [true; 2]
    }),
    ("a move", |rig, space| {
        let to = Move::To(page(2 * FAR + 5));
        let mut request = Remap::new(page(0), BLOCK_SIZE, BLOCK_SIZE, to, false).unwrap();
        space.mremap(&rig.cpu, &mut request, &SpaceLimits::NONE).is_ok()
    }),
    ("populated", |rig, space| {
        space.madvise_populate(&rig.cpu, page(0), 3 * BLOCK_SIZE, Access::Write, &|| false).is_ok()
    }),
    ("guards", |rig, space| space.madvise_guard(&rig.cpu, page(7), BLOCK_SIZE, &|| false).is_ok()),
    ("locked", |rig, space| space.mlock(&rig.cpu, page(7), BLOCK_SIZE, Locking::Now, &|| false).is_ok()),
    ("a part protected", |_, space| space.mprotect(page(7), BLOCK_SIZE, Protection::READ).is_ok()),
];

#[test]
fn nothing_is_lost_where_memory_runs_out() {
    const FRAMES: usize = 12;
    let rig = Rig::new(16);
    for (name, call) in CALLS {
        let mut served = [0; 2];
        for blocks in 0..4 {
            for frames in 0..FRAMES {
                let space = advised(&rig, 4);
                let far = MapRequest { placement: Placement::Fixed(page(FAR)), ..private(BLOCK_PAGES) };
                space.mmap(&rig.cpu, &far).unwrap();
                space.madvise_areas(&rig.cpu, page(FAR), BLOCK_SIZE, AreaAdvice::HugePage).unwrap();
                rig.write(&space, page(1), 1);
                let taken = TakenFrames::leaving(&rig, blocks, frames);
                served[usize::from(call(&rig, &space))] += 1;
                let used = rig.used() - taken.held();
                assert_eq!(used, footprint(&space).pages + space.table_frames(), "{name}: {blocks}, {frames}");
                drop((taken, space));
                assert_eq!((rig.used(), rig.frames.stats().refused, rig.spaces.counts()), (0, 0, [0; 3]), "{name}");
            }
        }
        assert!(served[1] >= FRAMES, "{name}: {served:?}");
    }
}

/// Of each eight pages a thread of a space has one to itself.
fn work(space: &Space, number: u64, mut numbers: Numbers, rig: &Rig) {
    // Two of each space, which are no other's; the rig's own is 0.
    let cpu = Cpu::new(CpuId(1 + number as u32));
    let again = |mut attempt: Box<dyn FnMut() -> Result<(), FaultError> + '_>| {
        // Protected by another thread, or for want of a page.
        while let Err(error) = attempt() {
            assert!(matches!(error, FaultError::NotAllowed | FaultError::OutOfMemory), "{error}");
            thread::yield_now();
        }
    };
    let mut values = vec![7_u8; (2 * BLOCK_PAGES) as usize];
    for round in 0..30_u8 {
        let index = numbers.below(2 * BLOCK_PAGES / 8) * 8 + number % 2;
        let (at, value) = (page(index), &mut values[index as usize]);
        match numbers.below(12) {
            0 => {
                space.madvise_dontneed(&cpu, at, PAGE).unwrap();
                *value = 0;
            }
            1..=5 => {
                *value = round | 0x80;
                let value = *value;
                again(Box::new(|| space.write_bytes(&cpu, at, &[value])));
            }
            6 => _ = space.madvise_populate(&cpu, page(0), 2 * BLOCK_SIZE, Access::Write, &|| false),
            7 => _ = footprint(space),
            _ => {
                let mut byte = [0];
                again(Box::new(|| space.read_bytes(&cpu, at, &mut byte)));
                assert_eq!(byte[0], *value, "page {index}, round {round}");
            }
        }
    }
    rig.frames.drain_cpu(&cpu);
}

#[test]
fn spaces_that_share_blocks_change_them_at_once() {
    let rig: &'static Rig = Box::leak(Box::new(Rig::new(64)));
    for round in 1..=30_u64 {
        let live: &[u16] = if round % 2 == 0 { &[] } else { &[branch::SIZE_CHANGE] };
        host::with(live, || {
            let space = advised(rig, 2);
            (0..2 * BLOCK_PAGES).filter(|at| at % 8 < 2).for_each(|at| rig.write(&space, page(at), 7));
            let spaces = [space.fork(&rig.cpu).unwrap(), space.fork(&rig.cpu).unwrap(), space];
            let taken = (round % 3 == 0).then(|| TakenFrames::leaving(rig, 6, usize::MAX));
            let working = AtomicUsize::new(6);
            thread::scope(|scope| {
                for number in 0..6 {
                    let (space, working) = (&spaces[number as usize / 2], &working);
                    scope.spawn(move || {
                        work(space, number, Numbers(0x9e37_79b9 ^ (round * 64 + number + 1)), rig);
                        working.fetch_sub(1, Ordering::Release);
                    });
                }
                let (mut numbers, mut children) = (Numbers(round * 77 + 5), Vec::new());
                while working.load(Ordering::Acquire) != 0 {
                    let space = &spaces[numbers.below(3) as usize];
                    let protect = |start, bytes, protection| {
                        space.mprotect(start, bytes, protection).unwrap();
                        space.mprotect(start, bytes, READ_WRITE).unwrap();
                    };
                    match numbers.below(5) {
                        0 => protect(page(numbers.below(2) * BLOCK_PAGES), BLOCK_SIZE, Protection::READ),
                        1 => protect(page(0), 2 * BLOCK_SIZE, Protection::NONE),
                        2 if children.len() < 2 => children.extend(space.fork(&rig.cpu).ok()),
                        2 | 3 => drop(children.pop()),
                        _ if numbers.below(20) == 0 => protect(page(numbers.below(1024)), PAGE, Protection::READ),
                        _ => {}
                    }
                    thread::yield_now();
                }
            });
            drop((spaces, taken));
        });
        assert_eq!((rig.used(), rig.frames.stats().refused), (0, 0), "round {round}");
    }
}
