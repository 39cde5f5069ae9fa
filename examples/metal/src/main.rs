//! A kernel of one file, on `granule-arch` and `granule-pgtable` alone: it maps itself with the MMU off, turns the MMU
//! on, makes a page read-only, and shows the fault that a store to it takes. For QEMU's machine `virt`, entered at
//! EL1 or EL2.
//!
//! Addresses have 39 bits and stay as they are: virtual is physical, so the direct map's offset is 0.

#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(unsafe_code, reason = "a kernel's entry, its linker symbols and its serial port")]

/// On the host the image is nothing: it is built for the target alone.
#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod kernel {
    use core::fmt::{self, Write};
    use core::panic::PanicInfo;
    use core::sync::atomic::{AtomicBool, Ordering};

    use granule_arch::addr::{PhysAddr, PhysRange, VirtAddr};
    use granule_arch::descriptor::{Attributes, MAIR, MemoryType};
    use granule_arch::el2::{self, Level};
    use granule_arch::esr::Syndrome;
    use granule_arch::features::CpuFeatures;
    use granule_arch::mmu::{self, Half, Registers};
    use granule_arch::{cache, psci};
    use granule_pgtable::metal::{DirectMap, FrameRange, KernelTlb, Metal, MmuOff};
    use granule_pgtable::{
        Change, Error, Geometry, Granule4KVa39, Lazy, PageRange, PageTables, Shape, Table, TableSource, WholeLeaves,
    };

    /// The PL011 of QEMU's `virt`.
    const UART: u64 = 0x0900_0000;
    const TCR: u64 = mmu::tcr(Granule4KVa39::HALF, Half::Off);

    core::arch::global_asm!(
        ".section .head.text, \"ax\"",
        ".globl _start",
        ".type _start, %function",
        "_start:",
        "adrp x0, __stack_end",
        "mov sp, x0",
        // The build follows this call for accesses that need the MMU.
        "bl {turn_mmu_on}",
        "b {start}",
        ".size _start, . - _start",
        // Every exception ends here: no register need be kept.
        ".balign 0x800",
        "vectors:",
        ".rept 16",
        ".balign 0x80",
        "mrs x0, esr_el1",
        "mrs x1, far_el1",
        "b {exception}",
        ".endr",
        // EL2 is empty once it is left.
        ".balign 0x800",
        "vectors_of_el2:",
        ".rept 16",
        ".balign 0x80",
        "1: wfe",
        "b 1b",
        ".endr",
        turn_mmu_on = sym turn_mmu_on,
        start = sym start,
        exception = sym exception,
    );

    unsafe extern "C" {
        static vectors: u8;
        static vectors_of_el2: u8;
        static __text_start: u8;
        static __rodata_start: u8;
        static __data_start: u8;
        static __data_end: u8;
        static __tables_start: u8;
        static __tables_end: u8;
    }

    /// The memory between two symbols of the linker script.
    fn between(start: *const u8, end: *const u8) -> PhysRange {
        let address = |symbol| PhysAddr(VirtAddr::from_ptr(symbol).0);
        PhysRange::new(address(start), address(end)).expect("the linker script has them in this order")
    }

    fn tables_memory() -> PhysRange {
        between(&raw const __tables_start, &raw const __tables_end)
    }

    /// All that runs with the MMU off: loads and stores, and nothing exclusive. Returns the address of the root table.
    #[inline(never)]
    extern "C" fn turn_mmu_on() -> u64 {
        // SAFETY: QEMU enters as the arm64 boot protocol has it, and the vectors stop.
        let level = unsafe { el2::enter_el1(PhysAddr((&raw const vectors_of_el2).addr() as u64)) };
        match level {
            Ok(level) => println!("metal: MMU off, entered at {level:?}"),
            Err(error) => {
                println!("metal: {error}");
                stop()
            }
        }
        IS_BELOW_EL2.store(level == Ok(Level::El2), Ordering::Relaxed);
        // SAFETY: the vectors are those of the program.
        unsafe { core::arch::asm!("msr vbar_el1, {}", "isb", in(reg) &raw const vectors) };
        let root = build_tables().expect("tables for the image and the serial port").address();
        let registers = Registers {
            mair: MAIR,
            tcr: mmu::tcr_of_this_cpu(TCR),
            lower: root,
            upper: PhysAddr(0),
            sctlr: mmu::SCTLR_MMU_ON,
        };
        // SAFETY: the tables map the image, its stack and the serial port where they are; no cache holds an older
        // line of any of it.
        let enabled = unsafe { mmu::enable(&registers) };
        enabled.unwrap_or_else(|error| panic!("{error}"));
        root.0
    }

    extern "C" fn start(root: u64) -> ! {
        println!("metal: MMU on, {}-bit addresses", Granule4KVa39::VA_BITS);
        // SAFETY: `build_tables` made it, and it stays the root.
        let root = unsafe { Table::<Granule4KVa39>::root(PhysAddr(root)) };
        make_read_only(root).expect("the page is mapped by a page");
        panic!("the store to a read-only page was not refused");
    }

    fn build_tables() -> Result<Table<Granule4KVa39>, Error> {
        let memory = tables_memory();
        // Variables, the stack and the tables.
        let written = between(&raw const __data_start, &raw const __tables_end);
        // SAFETY: the image was loaded into memory, not into caches alone, and every access since has bypassed them.
        unsafe { cache::invalidate_to_memory(VirtAddr(written.start().0), written.size()) };
        // SAFETY: the MMU is off, and no other CPU runs. The tables map the image and the serial port alone.
        let mmu = unsafe { MmuOff::<Granule4KVa39>::new() };
        // SAFETY: see above; it lies in the image.
        let mut frames = unsafe { FrameRange::new(&mmu, memory) };
        let root = frames.take().ok_or(Error::OutOfTables { needed: 1, available: 0 })?;
        // SAFETY: it was just taken, zeroed, and stays the root.
        let root = unsafe { Table::<Granule4KVa39>::root(root) };
        let tables = PageTables::new(&mmu, root);
        let lazy = Lazy::new(&mmu);
        let [text, rodata] = [&raw const __text_start, &raw const __rodata_start];
        let [data, end] = [&raw const __data_start, &raw const __data_end];
        for (part, attributes) in [
            (between(text, rodata), Attributes::kernel_text(MemoryType::Normal)),
            (between(rodata, data), Attributes::kernel_rodata(MemoryType::Normal)),
            (between(data, end), Attributes::kernel_data(MemoryType::Normal)),
            (memory, Attributes::kernel_data(MemoryType::Normal)),
        ] {
            let range = PageRange::new(VirtAddr(part.start().0), part.size())?;
            tables.map(&lazy, range, part.start(), attributes, Shape::PAGES, &mut frames)?;
        }
        let uart = PageRange::from_pages(VirtAddr(UART), 1)?;
        tables.map(&lazy, uart, PhysAddr(UART), Attributes::device(), Shape::PAGES, &mut frames)?;
        drop(lazy);
        // SAFETY: the stores bypassed the caches; what these hold is older.
        unsafe { cache::invalidate_to_memory(VirtAddr(written.start().0), written.size()) };
        Ok(root)
    }

    /// A page, so that nothing else lies in it.
    #[repr(align(4096))]
    struct Page([u64; 512]);

    static mut PAGE: Page = Page([0; 512]);

    fn make_read_only(root: Table<Granule4KVa39>) -> Result<(), Error> {
        // SAFETY: virtual is physical, and this is the only CPU. It has one function that changes tables, this one.
        let memory = unsafe { DirectMap::<Granule4KVa39>::new(0).with_features(&CpuFeatures::read()).for_owner() };
        let mmu = Metal(memory);
        let tables = PageTables::new(&mmu, root);
        let all = PageRange::new(VirtAddr(0), 1 << Granule4KVa39::VA_BITS)?;
        let totals = tables.dump(all, |extent| println!("{extent}"));
        println!("{totals}");

        // SAFETY: a variable that nothing else uses; only its address is taken.
        let page = unsafe { (&raw mut PAGE.0).cast::<u64>() };
        // SAFETY: the page is mapped writable.
        unsafe { page.write_volatile(1) };
        let range = PageRange::from_pages(VirtAddr::from_ptr(page), 1)?;
        let lazy = Lazy::new(&mmu);
        let flush = tables.update(&lazy, range, Change::READ_ONLY, WholeLeaves)?;
        lazy.invalidate(&KernelTlb, [flush]);
        tables.walk(range.start()).for_each(|step| println!("{step}"));
        println!("metal: a store to {}", range.start());
        // SAFETY: the store faults, which is what it is for.
        unsafe { page.write_volatile(2) };
        Ok(())
    }

    extern "C" fn exception(syndrome: u64, address: u64) -> ! {
        println!("metal: {} at {}", Syndrome(syndrome), VirtAddr(address));
        power_off()
    }

    #[panic_handler]
    fn panic(info: &PanicInfo<'_>) -> ! {
        println!("metal: {info}");
        power_off()
    }

    /// Whether EL2 is there, and empty. QEMU takes PSCI's calls by SMC then, else by HVC.
    static IS_BELOW_EL2: AtomicBool = AtomicBool::new(false);

    fn power_off() -> ! {
        let is_below_el2 = IS_BELOW_EL2.load(Ordering::Relaxed);
        let _ = psci::system_off(if is_below_el2 { psci::Conduit::Smc } else { psci::Conduit::Hvc });
        stop()
    }

    fn stop() -> ! {
        loop {
            granule_arch::wait::wfe();
        }
    }

    struct Serial;

    impl Write for Serial {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            for byte in text.bytes() {
                // SAFETY: the data register of the port, which is mapped as device memory, or the MMU is off.
                unsafe { VirtAddr(UART).as_ptr::<u32>().write_volatile(byte.into()) };
            }
            Ok(())
        }
    }

    macro_rules! println {
        ($($arguments:tt)*) => {{
            let _ = writeln!(Serial, $($arguments)*);
        }};
    }
    use println;
}
