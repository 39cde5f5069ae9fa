//! Rows by request, over the serial port, where boot arguments select none: on a board.
//!
//! The counter is the request's: event counter 0, by which [`count`](crate::harness) measures, counts another event
//! than instructions, or the code reads the virtual counter in its place. So what is measured is the code of every
//! bench.

#![allow(unsafe_code, reason = "programs the PMU, and patches reads of it")]

use core::sync::atomic::{AtomicU32, Ordering};

use alloc::vec::Vec;

use granule::bootargs;
use granule::chip::console;
use granule::iommu::iommu;
use granule::mm::kernel::{fixmap, image};
use granule_arch::addr::VirtAddr;
use granule_arch::cache;
use granule_protocol::{BenchCounter, Event, PATIENCE, REQUEST_BYTES, Reply, Responder, text};

use crate::harness::{BENCHES, Record, measure};

/// Which build this is: [`granule_protocol::IDENTITY`]. Not zero, so that it is in the file.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "the name of a symbol")]
static granule_tests_identity: AtomicU32 = AtomicU32::new(u32::MAX);

/// Serves requests for ever.
pub(crate) fn serve() -> ! {
    let mut responder = Responder::new(alloc::vec![0; REQUEST_BYTES]);
    loop {
        responder.ask(console::print);
        while let Some(byte) = console::poll_byte(PATIENCE) {
            let event = match responder.take(byte) {
                Reply::Nothing | Reply::Damaged | Reply::Data(_) | Reply::Start => continue,
                Reply::Answer(event) => event,
                Reply::Hello { .. } | Reply::Load(_) => {
                    Event::Image { identity: granule_tests_identity.load(Ordering::Relaxed) }
                }
                Reply::Run { name, seed } => {
                    let place = BENCHES.iter().position(|record| text(&record.name) == Some(name));
                    let index = place.map_or(u32::MAX, |index| index as u32);
                    match (place.and_then(|place| BENCHES.get(place)), BenchCounter::numbered(seed)) {
                        (Some(record), Some(counter)) if is_for(record) && set(counter) => {
                            run(&responder, index, record)
                        }
                        _ => Event::Skip { index },
                    }
                }
            };
            responder.answer(event);
            responder.send(event, console::print);
            break;
        }
    }
}

/// Measures a row; the answer counts its points.
fn run(responder: &Responder<Vec<u8>>, index: u32, record: &Record) -> Event {
    let Some(mut port) = responder.port(console::print) else { return Event::Skip { index } };
    port.answer(Event::Begin { index });
    match measure(record, index, &mut port, true) {
        0 => Event::Skip { index },
        checks => Event::Pass { index, checks },
    }
}

/// Whether this boot has what the row needs.
fn is_for(record: &Record) -> bool {
    let words = text(&record.bootargs).unwrap_or_default().split_ascii_whitespace();
    let is_booted_so = |word: &str| {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        bootargs::get(key) == Some(value)
    };
    let needs_smmu = text(&record.name).is_some_and(|name| name.starts_with("smmu:"));
    words.into_iter().all(is_booted_so) && (!needs_smmu || iommu().is_some()) && text(&record.on) == Some("")
}

/// Has the reads of event counter 0 count this from now on; false where the CPU cannot.
fn set(counter: BenchCounter) -> bool {
    use aarch64_cpu::registers::{ID_AA64DFR0_EL1, Readable as _};
    // 0 is no PMU, 15 is one that is not the architecture's.
    let has_pmu = !matches!(ID_AA64DFR0_EL1.read(ID_AA64DFR0_EL1::PMUVer), 0 | 15);
    let Some(event) = counter.event() else {
        read_virtual_counter();
        return true;
    };
    if !has_pmu || READS_TICKS.load(Ordering::Relaxed) != 0 {
        return false;
    }
    let events: u64;
    // SAFETY: there is a PMU; the entry code has started event counter 0, which only benches read.
    unsafe {
        core::arch::asm!("mrs {0}, pmceid0_el0", "msr pmevtyper0_el0, {1}", "isb", out(reg) events, in(reg) event,
            options(nostack));
    }
    events >> event & 1 != 0
}

/// The code reads the virtual counter: once patched, it stays so.
static READS_TICKS: AtomicU32 = AtomicU32::new(0);

/// Makes each MRS of PMEVCNTR0_EL0 in the text one of CNTVCT_EL0.
fn read_virtual_counter() {
    const MRS_PMEVCNTR0: u32 = 0xd53b_e800;
    const MRS_CNTVCT: u32 = 0xd53b_e040;
    const REGISTER: u32 = 0x1f;
    if READS_TICKS.swap(1, Ordering::Relaxed) != 0 {
        return;
    }
    let caches = granule::kernel().features().cpus.code_caches();
    let mut at = image::start();
    while at < image::constants().start() {
        // SAFETY: the image's text, which is readable.
        let word = unsafe { at.as_ptr::<u32>().read_volatile() };
        if word & !REGISTER == MRS_PMEVCNTR0 {
            // SAFETY: a word of the image; the other CPUs do not count, and this one does not now.
            unsafe { fixmap::patch_word(granule::kernel().boot, at, MRS_CNTVCT | word & REGISTER) };
            // SAFETY: the word is mapped.
            unsafe { cache::sync_code(at, size_of::<u32>() as u64, caches) };
        }
        at = VirtAddr(at.0 + size_of::<u32>() as u64);
    }
}
