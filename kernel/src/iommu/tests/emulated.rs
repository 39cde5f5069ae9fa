//! An SMMU as QEMU emulates it, in few lines: it keeps every configuration and translation that it has used until a
//! command takes it away, and does each command at once. (`granule_model::smmu` has what the architecture allows
//! beyond; here it is mm that is to be seen telling.)
//!
//! It decodes by numbers of its own.

#![allow(unsafe_code, reason = "keeps the contracts of unsafe traits on memory of the test")]

use std::boxed::Box;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::vec::Vec;

use core::ptr::NonNull;

use granule_arch::addr::{PAGE, PhysAddr, VirtAddr};
use granule_smmuv3::{DmaMemory, Report};

use super::super::host::Hardware;
use crate::mm::frame::FrameAllocator;
use crate::mm::page_block::BLOCK_SIZE;
use crate::smp::{Cpu, CpuId};

/// The outcome of an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// It goes there.
    Reaches(PhysAddr),
    /// It ends, with an event of this number.
    Event(u8),
    /// It ends.
    Nothing,
}

/// How a stream is translated, as far as it matters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Config {
    root: u64,
    asid: u16,
    translates: bool,
    records: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Entry {
    Abort,
    Bypass,
    Stage1 { context: u64 },
    Bad,
}

#[derive(Default)]
struct ModelState {
    registers: BTreeMap<usize, u64>,
    entries: BTreeMap<u32, Entry>,
    contexts: BTreeMap<u32, Config>,
    /// By ASID and page: the frame, and whether it may be written.
    tlb: BTreeMap<(u16, u64), (u64, bool)>,
    commands: Vec<[u64; 2]>,
    /// The driver's ordered operations.
    stream: Vec<&'static str>,
    /// It takes no commands any more.
    deaf: bool,
    /// Microseconds.
    clock: u64,
    /// Free memory.
    left: (u64, u64),
    /// Allocations that succeed before one does not.
    allocations: Option<usize>,
    reports: Vec<std::string::String>,
}

type Hook = Box<dyn FnMut() + Send>;

/// The SMMU, for the test and for the driver.
#[derive(Clone)]
pub(super) struct Emulated {
    state: Arc<Mutex<ModelState>>,
    hook: Arc<Mutex<Option<Hook>>>,
    frames: &'static FrameAllocator,
}

impl Emulated {
    pub(super) fn new(frames: &'static FrameAllocator) -> Self {
        // As QEMU's: IDR0, IDR1, IDR3, IDR5, AIDR.
        let registers = [(0, 0x0d44_101b), (4, 0x0273_0010), (0xc, 0x1414), (0x14, 0x74), (0x1c, 1)];
        let state = ModelState { registers: registers.into_iter().collect(), ..ModelState::default() };
        Self { state: Arc::new(Mutex::new(state)), hook: Arc::default(), frames }
    }

    fn state(&self) -> MutexGuard<'_, ModelState> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn word(&self, address: u64) -> u64 {
        // SAFETY: tables, queues and entries lie in memory that the frame allocator has.
        unsafe { self.frames.linear().address(PhysAddr(address)).as_ptr::<u64>().read_volatile() }
    }

    fn words<const N: usize>(&self, address: u64) -> [u64; N] {
        core::array::from_fn(|word| self.word(address + 8 * word as u64))
    }

    /// The commands since the last call, CMD_SYNC among them.
    pub(super) fn take_commands(&self) -> Vec<[u64; 2]> {
        core::mem::take(&mut self.state().commands)
    }

    /// The driver's operations since the last call: barriers, and its accesses to the command queue's indices.
    pub(super) fn take_stream(&self) -> Vec<&'static str> {
        core::mem::take(&mut self.state().stream)
    }

    /// Runs `work`, and `hook` at each DMB OSHST: what was stored before is visible, and what is commanded after it has
    /// not begun.
    pub(super) fn at_each_barrier<T>(&self, hook: impl FnMut() + Send + 'static, work: impl FnOnce() -> T) -> T {
        *self.hook.lock().unwrap() = Some(Box::new(hook));
        let result = work();
        *self.hook.lock().unwrap() = None;
        result
    }

    /// The value that the driver has stored to a register.
    pub(super) fn register(&self, offset: usize) -> u64 {
        self.state().registers.get(&offset).copied().unwrap_or(0)
    }

    /// It takes no commands any more.
    pub(super) fn grow_deaf(&self) {
        self.state().deaf = true;
    }

    /// Lets `count` more allocations succeed, or all.
    pub(super) fn limit_allocations(&self, count: Option<usize>) {
        self.state().allocations = count;
    }

    /// ASIDs under which it has translations.
    pub(super) fn cached_asids(&self) -> BTreeSet<u16> {
        self.state().tlb.keys().map(|(asid, _)| *asid).collect()
    }

    /// An access of a device.
    pub(super) fn access(&self, stream: u32, address: u64, write: bool) -> Outcome {
        let mut state = self.state();
        let register = |number: usize| state.registers.get(&number).copied().unwrap_or(0);
        if register(0x20) & 1 == 0 {
            // CR0.SMMUEN is clear: GBPA.ABORT decides.
            let aborts = register(0x44) >> 20 & 1 == 1;
            return if aborts { Outcome::Nothing } else { Outcome::Reaches(PhysAddr(address)) };
        }
        let entry = match state.entries.get(&stream) {
            Some(entry) => *entry,
            None => {
                let entry = self.read_entry(&state, stream);
                state.entries.insert(stream, entry);
                entry
            }
        };
        let context = match entry {
            Entry::Abort => return Outcome::Nothing,
            Entry::Bypass => return Outcome::Reaches(PhysAddr(address)),
            Entry::Bad => return self.event(&mut state, stream, address, write, 0x04, true),
            Entry::Stage1 { context } => context,
        };
        let config = *state.contexts.entry(stream).or_insert_with(|| self.read_context(context));
        // 48 bits of address, and TBI is off.
        if !config.translates || address >> 48 != 0 {
            return self.event(&mut state, stream, address, write, 0x10, config.records);
        }
        let page = address & !(PAGE - 1);
        let cached = state.tlb.get(&(config.asid, page)).map(|&(frame, writable)| (frame, writable, true));
        let (frame, writable) = match cached.or_else(|| self.walk(config.root, page)) {
            None => return self.event(&mut state, stream, address, write, 0x10, config.records),
            Some((_, _, false)) => return self.event(&mut state, stream, address, write, 0x12, config.records),
            Some((frame, writable, true)) => (frame, writable),
        };
        if write && !writable {
            return self.event(&mut state, stream, address, write, 0x13, config.records);
        }
        state.tlb.insert((config.asid, page), (frame, writable));
        Outcome::Reaches(PhysAddr(frame + (address - page)))
    }

    fn read_entry(&self, state: &ModelState, stream: u32) -> Entry {
        let base = state.registers[&0x80] & ((1 << 52) - 1) & !0x3f;
        let descriptor = self.word(base + u64::from(stream >> 8) * 8);
        if descriptor & 0x1f == 0 {
            return Entry::Bad;
        }
        let leaf = descriptor & ((1 << 52) - 1) & !0x3f;
        let words: [u64; 2] = self.words(leaf + u64::from(stream & 0xff) * 64);
        match (words[0] & 1, words[0] >> 1 & 7) {
            (0, _) => Entry::Bad,
            (_, 0b100) => Entry::Bypass,
            (_, 0b101) => Entry::Stage1 { context: words[0] & ((1 << 52) - 1) & !0x3f },
            _ => Entry::Abort,
        }
    }

    fn read_context(&self, at: u64) -> Config {
        let [first, second]: [u64; 2] = self.words(at);
        assert!(first >> 31 & 1 == 1 && first >> 30 & 1 == 1, "valid, and TTBR1 is not walked");
        assert!(first & 0x3f == 16 && first >> 38 & 0b11 == 0 || first >> 14 & 1 == 1, "48 bits, no TBI");
        Config {
            root: second & ((1 << 52) - 1) & !0xf,
            asid: (first >> 48) as u16,
            translates: first >> 14 & 1 == 0,
            records: first >> 45 & 1 == 1,
        }
    }

    /// The frame, whether it may be written, and whether it is young.
    fn walk(&self, root: u64, page: u64) -> Option<(u64, bool, bool)> {
        let mut table = root;
        for level in 0..4 {
            let entry = self.word(table + (page >> (39 - 9 * level) & 0x1ff) * 8);
            if entry & 0b11 != 0b11 {
                return None;
            }
            table = entry & 0x0000_ffff_ffff_f000;
            if level == 3 {
                return Some((table, entry >> 7 & 1 == 0, entry >> 10 & 1 == 1));
            }
        }
        None
    }

    fn event(
        &self,
        state: &mut ModelState,
        stream: u32,
        address: u64,
        write: bool,
        number: u8,
        records: bool,
    ) -> Outcome {
        if !records {
            return Outcome::Nothing;
        }
        let base = state.registers[&0xa0];
        let (size, at) = (1 << (base & 0x1f), base & ((1 << 52) - 1) & !0x1f);
        let index = |state: &ModelState, register| state.registers.get(&register).copied().unwrap_or(0);
        let (produced, consumed) = (index(state, 0x100a8), index(state, 0x100ac));
        if (produced ^ consumed) & (2 * size - 1) == size {
            // EVENTQ_ABT_ERR, as QEMU has it: not the overflow flag.
            let unacknowledged = (index(state, 0x60) ^ index(state, 0x64)) & 4 != 0;
            if !unacknowledged {
                *state.registers.entry(0x60).or_default() ^= 4;
            }
        } else {
            let record = [u64::from(number) | u64::from(stream) << 32, 2 << 40 | u64::from(!write) << 35, address, 0];
            for (word, value) in (0..).zip(record) {
                let at = self.frames.linear().address(PhysAddr(at + (produced % size) * 32 + word * 8));
                // SAFETY: the event queue, of which the driver reads up to PROD.
                unsafe { at.as_ptr::<u64>().write_volatile(value) };
            }
            state.registers.insert(0x100a8, (produced + 1) & (2 * size - 1));
        }
        Outcome::Event(number)
    }

    fn execute(&self, state: &mut ModelState, [low, high]: [u64; 2]) {
        let (stream, asid) = ((low >> 32) as u32, (low >> 48) as u16);
        match low & 0xff {
            0x03 => drop((state.entries.remove(&stream), state.contexts.remove(&stream))),
            0x04 => (state.entries, state.contexts) = Default::default(),
            0x05 | 0x06 => drop(state.contexts.remove(&stream)),
            0x10 | 0x30 => state.tlb.clear(),
            0x11 => state.tlb.retain(|(tag, _), _| *tag != asid),
            0x12 => {
                let pages = if high >> 10 & 3 == 0 { 1 } else { ((low >> 12 & 0x1f) + 1) << (low >> 20 & 0x1f) };
                let start = high & !(PAGE - 1);
                let covered = start..start + pages * PAGE;
                state.tlb.retain(|(tag, page), _| *tag != asid || !covered.contains(page));
            }
            0x46 => {}
            other => panic!("command {other:#x}"),
        }
        state.commands.push([low, high]);
    }
}

impl Hardware for Emulated {
    fn read32(&self, offset: usize) -> u32 {
        let of = match offset {
            0x24 | 0x54 => offset - 4,
            _ => offset,
        };
        let mut state = self.state();
        if offset == 0x9c {
            state.stream.push("read CONS");
        }
        state.registers.get(&of).copied().unwrap_or(0) as u32
    }

    fn write32(&self, offset: usize, value: u32) {
        // GBPA: the update is over at once.
        let value = if offset == 0x44 { value & !(1 << 31) } else { value };
        let mut state = self.state();
        state.registers.insert(offset, value.into());
        if offset == 0x98 {
            state.stream.push("write PROD");
        }
        // Once CR0.CMDQEN is set.
        if offset == 0x98 && !state.deaf && state.registers.get(&0x20).is_some_and(|cr0| cr0 >> 3 & 1 == 1) {
            let base = state.registers[&0x90];
            let (size, at) = (1_u64 << (base & 0x1f), base & ((1 << 52) - 1) & !0x1f);
            let mut consumed = state.registers[&0x9c];
            while consumed & (2 * size - 1) != u64::from(value) & (2 * size - 1) {
                let command = self.words(at + (consumed % size) * 16);
                self.execute(&mut state, command);
                consumed = (consumed + 1) & (2 * size - 1);
            }
            state.registers.insert(0x9c, consumed);
        }
    }

    fn read64(&self, offset: usize) -> u64 {
        self.state().registers.get(&offset).copied().unwrap_or(0)
    }

    fn write64(&self, offset: usize, value: u64) {
        self.state().registers.insert(offset, value);
    }

    fn dmb_oshst(&self) {
        self.state().stream.push("dmb oshst");
        crate::sync::meeting::moment();
        // Taken out: what it does itself runs none.
        let hook = self.hook.lock().unwrap().take();
        if let Some(mut hook) = hook {
            hook();
            *self.hook.lock().unwrap() = Some(hook);
        }
    }

    fn dmb_oshld(&self) {
        self.state().stream.push("dmb oshld");
    }

    fn clean(&self, _: PhysAddr, _: u64) {
        unreachable!("it sees the caches")
    }

    fn relax(&self) {
        let _ = crate::sync::meeting::waits();
        std::thread::yield_now();
    }

    fn microseconds(&self) -> u64 {
        let mut state = self.state();
        state.clock += 1000;
        state.clock
    }

    fn report(&self, report: &Report) {
        self.state().reports.push(std::string::ToString::to_string(report));
    }

    fn allocate(&self, bytes: usize, align: usize) -> Option<DmaMemory> {
        let mut state = self.state();
        if let Some(left) = &mut state.allocations {
            *left = left.checked_sub(1)?;
        }
        let (size, align) = ((bytes as u64).next_multiple_of(PAGE), (align as u64).max(PAGE));
        let mut start = state.left.0.next_multiple_of(align);
        if start + size > state.left.1 {
            start = self.frames.alloc_blocks(&Cpu::new(CpuId(0)), 0).ok()?.0;
            state.left.1 = start + BLOCK_SIZE;
        }
        state.left.0 = start + size;
        let virt: VirtAddr = self.frames.linear().address(PhysAddr(start));
        // SAFETY: it has no other user, and the linear map shows it.
        unsafe {
            virt.as_ptr::<u8>().write_bytes(0, size as usize);
            Some(DmaMemory::new(PhysAddr(start), NonNull::new(virt.as_ptr())?, bytes))
        }
    }
}
