//! The end of the kernel: one CPU prints one report, and the machine is switched off with a failing status.
//!
//! Rust's panics and the exceptions that have no answer both end in `die`. It takes no lock, allocates nothing and
//! waits for nothing without a limit, because it may be called from anywhere: from an interrupt, on an overflow stack,
//! while the console's lock is held.

#[cfg(target_os = "none")]
pub(crate) use target::die;

#[cfg(target_os = "none")]
mod target {
    #![allow(unsafe_code, reason = "vouches for the registers of tag checks")]

    use core::fmt::{self, Write};
    use core::panic::PanicInfo;
    use core::sync::atomic::{AtomicU32, Ordering};

    use granule_arch::tag_check::Registers;
    use granule_arch::{interrupts, patched_branch};

    use crate::chip::console;
    use crate::chip::power::{self, Status};
    use crate::platform::features::branch;
    use crate::smp::{self, Cpu, this_cpu};
    use crate::trap::backtrace::backtrace_here;

    const NO_CPU: u32 = u32::MAX;

    /// The CPU that reports, or [`NO_CPU`].
    static REPORTER: AtomicU32 = AtomicU32::new(NO_CPU);
    /// How many times the reporting CPU has failed while it reported.
    static FAILURES: AtomicU32 = AtomicU32::new(0);

    #[panic_handler]
    fn panic(info: &PanicInfo<'_>) -> ! {
        let calls = backtrace_here();
        die(format_args!("{}", info.message()), &|out| {
            if let Some(location) = info.location() {
                writeln!(out, "  at {location}")?;
            }
            write!(out, "backtrace:\n{calls}")
        })
    }

    /// Stops all other CPUs, prints "kernel panic on CPU n: `headline`" and the details, and switches the machine off
    /// as failed.
    ///
    /// The first CPU that comes here reports. Another that fails concurrently stops without a word: its error may well
    /// be a consequence, and two reports mixed would both be lost.
    pub(crate) fn die(headline: fmt::Arguments<'_>, details: &dyn Fn(&mut dyn Write) -> fmt::Result) -> ! {
        let _ = interrupts::mask();
        if patched_branch!(branch::TAG_CHECKS) {
            // The report reads what may be broken.
            // SAFETY: the heap's tags are checked only where all CPUs have tags.
            unsafe { Registers::new() }.suspend();
        }
        let cpu = this_cpu();
        match REPORTER.compare_exchange(NO_CPU, cpu.id.0, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => report(cpu, headline, details),
            Err(reporter) if reporter == cpu.id.0 => failed_again(headline),
            Err(_) => smp::stop(cpu),
        }
    }

    fn report(cpu: &Cpu, headline: fmt::Arguments<'_>, details: &dyn Fn(&mut dyn Write) -> fmt::Result) -> ! {
        cpu.held_ranks().forget();
        let running = smp::stop_others();
        console::take_over();
        // The console cannot fail; an error of some `Display` on the way ends the details, not the shutdown.
        let _ = writeln!(ConsoleWriter, "\nkernel panic on CPU {}: {headline}", cpu.id.0)
            .and_then(|()| details(&mut ConsoleWriter));
        if !running.is_empty() {
            let _ = writeln!(ConsoleWriter, "CPUs that could not be stopped: {running:?}");
        }
        power::off(Status::Failure)
    }

    /// The report itself failed. Each further failure leaves out one thing more, so this ends.
    fn failed_again(headline: fmt::Arguments<'_>) -> ! {
        match FAILURES.fetch_add(1, Ordering::Relaxed) {
            0 => {
                console::take_over();
                let _ = writeln!(ConsoleWriter, "\nkernel panic, and then while it was reported: {headline}");
                power::off(Status::Failure)
            }
            1 => power::off(Status::Failure),
            _ => smp::halt(),
        }
    }

    /// The console, printed to piece by piece: a report that faults half-way has printed its first half.
    struct ConsoleWriter;

    impl Write for ConsoleWriter {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            console::print(format_args!("{text}"));
            Ok(())
        }
    }
}
