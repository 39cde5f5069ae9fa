//! The parts that a kernel brings for its SMMU: a [`Platform`] and a [`Memory`]. The hardware here is as little of
//! an SMMU as `probe` needs, so that the example runs on the host; a kernel's registers are where `Registers` is.
//!
//! `cargo run -p granule-smmuv3 --example platform`

#![allow(unsafe_code, reason = "keeps the contracts of `Platform` and `Memory`")]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Instant;

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_smmuv3::registers::offset::{CMDQ_CONS, CMDQ_PROD, CR0, GBPA, IDR0, IDR1, IDR5, IRQ_CTRL, STRTAB_BASE};
use granule_smmuv3::registers::{GBPA as Gbpa, IDR0 as Idr0, IDR1 as Idr1, IDR5 as Idr5};
use granule_smmuv3::{DmaMemory, Memory, PAGE1, Platform, Report, Scope, probe};

/// The registers, both pages, as words of 32 bits. On the metal this is an address, and an access is one LDR or STR.
struct Registers(Mutex<Vec<u32>>);

impl Registers {
    /// An SMMU that translates stage 1 of 4 KiB pages, walks caches, and has streams of 8 bits.
    fn new() -> Self {
        let mut words = vec![0; 2 * PAGE1 / 4];
        let bits = Idr0::S1P::SET + Idr0::TTF::Aarch64 + Idr0::COHACC::SET + Idr0::TTENDIAN::Little;
        words[IDR0 / 4] = (bits + Idr0::STALL_MODEL::Terminate).value;
        words[IDR1 / 4] = (Idr1::SIDSIZE.val(8) + Idr1::CMDQS.val(19) + Idr1::EVENTQS.val(19)).value;
        words[IDR5 / 4] = (Idr5::OAS.val(5) + Idr5::GRAN4K::SET).value;
        Self(Mutex::new(words))
    }

    fn read(&self, offset: usize) -> u32 {
        self.0.lock().unwrap()[offset / 4]
    }

    fn write(&self, offset: usize, value: u32) {
        let mut words = self.0.lock().unwrap();
        words[offset / 4] = value;
        match offset {
            // The SMMU acknowledges in the next register.
            CR0 | IRQ_CTRL => words[offset / 4 + 1] = value,
            // An update is done at once.
            GBPA => words[GBPA / 4] &= !Gbpa::UPDATE::SET.value,
            // It is done with every command at once.
            CMDQ_PROD => words[CMDQ_CONS / 4] = value,
            _ => {}
        }
    }
}

struct Machine {
    registers: Registers,
    since: Instant,
}

// SAFETY: 1. The registers are this machine's alone, and accessed in program order. 2. The fences are stronger than the
// barriers. 3. Memory is the host's; nothing but this program reads it.
unsafe impl Platform for Machine {
    type Word = AtomicU64;

    fn word(value: u64) -> AtomicU64 {
        AtomicU64::new(value)
    }

    fn read32(&self, offset: usize) -> u32 {
        self.registers.read(offset)
    }

    fn write32(&self, offset: usize, value: u32) {
        self.registers.write(offset, value);
    }

    fn read64(&self, offset: usize) -> u64 {
        u64::from(self.read32(offset)) | u64::from(self.read32(offset + 4)) << 32
    }

    fn write64(&self, offset: usize, value: u64) {
        self.write32(offset, value as u32);
        self.write32(offset + 4, (value >> 32) as u32);
    }

    fn dmb_oshst(&self) {
        fence(Ordering::SeqCst);
    }

    fn dmb_oshld(&self) {
        fence(Ordering::SeqCst);
    }

    /// DC CVAC for each line, and a DSB: for an SMMU that does not see caches, which this one does.
    fn clean(&self, _: PhysAddr, _: u64) {}

    fn relax(&self) {
        std::thread::yield_now();
    }

    fn microseconds(&self) -> u64 {
        self.since.elapsed().as_micros() as u64
    }

    fn report(&self, report: &Report) {
        println!("SMMU: {report}");
    }
}

// SAFETY: the host's allocator gives zeroed memory of this alignment to one owner; its address serves as the physical
// one, because nothing but this program reads it.
unsafe impl Memory for Machine {
    fn allocate(&self, bytes: usize, align: usize) -> Option<DmaMemory> {
        let layout = Layout::from_size_align(bytes, align).ok().filter(|layout| layout.size() != 0)?;
        // SAFETY: the layout is not empty.
        let virt = NonNull::new(unsafe { alloc_zeroed(layout) })?.cast::<u64>();
        // SAFETY: it is zeroed, aligned, and its owner's until it is freed.
        Some(unsafe { DmaMemory::new(PhysAddr(VirtAddr::from_ptr(virt.as_ptr()).0), virt, bytes) })
    }

    unsafe fn free(&self, memory: DmaMemory) {
        // The driver frees queues and tables, which are aligned to their size.
        let layout = Layout::from_size_align(memory.bytes(), memory.bytes()).expect("as it was allocated");
        // SAFETY: from `allocate`, by the caller's contract.
        unsafe { dealloc(memory.virt().as_ptr().cast(), layout) };
    }
}

fn main() {
    let machine = Machine { registers: Registers::new(), since: Instant::now() };
    let probed = probe(machine).unwrap_or_else(|error| panic!("{error}"));
    println!("{}", probed.smmu.features());
    // SAFETY: a register is read alone.
    let base = unsafe { probed.smmu.platform() }.read64(STRTAB_BASE);
    println!("stream table at {base:#x}");
    // No stream is in use: all abort. A CPU has changed two pages of the address space 1.
    probed.smmu.invalidate(1, VirtAddr(0x40_0000), VirtAddr(0x40_2000), Scope::Leaves);
    println!("{:?}", probed.smmu.stats());
}
