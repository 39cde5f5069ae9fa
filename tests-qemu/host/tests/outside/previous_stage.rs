//! A previous stage that leaves everything set: a few instructions in front of the kernel that poison the registers it
//! is entered with. The kernel must come up all the same, with all of its CPUs, as nothing that was left is assumed.

use std::ffi::OsString;
use std::fs;

use granule_host_tests::session::Session;
use granule_host_tests::{built, own_file};
use granule_runner::machine::{self, Machine};
use granule_runner::qemu::{Qemu, Reset, Serial};

/// Where the previous stage is loaded. It ends in a jump to the kernel at 0x4020_0000.
const STAGE: &str = "0x44000000";

/// At EL1: translation registers of another system, counters running for EL0, interrupts open, the wrong stack pointer.
const AT_EL1: &[u32] = &[
    0xaa00_03f4, // mov x20, x0
    0x9280_0000, // mov x0, #-1
    0xd283_30a1, // mov x1, #0x1985
    0xd518_2041, // msr TCR_EL1, x1
    0xd518_a201, // msr MAIR_EL1, x1
    0xd518_2001, // msr TTBR0_EL1, x1
    0xd518_2021, // msr TTBR1_EL1, x1
    0xd518_d080, // msr TPIDR_EL1, x0
    0xd518_c01f, // msr VBAR_EL1, xzr
    0xd518_1040, // msr CPACR_EL1, x0
    0xd518_e100, // msr CNTKCTL_EL1, x0
    0xd51b_9c00, // msr PMCR_EL0, x0
    0xd51b_9c20, // msr PMCNTENSET_EL0, x0
    0xd51b_9e00, // msr PMUSERENR_EL0, x0
    0xd28f_ffe1, // mov x1, #0x7fff
    0xd510_0241, // msr MDSCR_EL1, x1
    0xd503_47ff, // msr DAIFClr, #7
    0xd500_40bf, // msr SPSel, #0
    0xd503_3fdf, // isb
    0xaa14_03e0, // mov x0, x20
    0xd2a8_0405, // mov x5, #0x40200000
    0xd61f_00a0, // br x5
];

/// At EL2: a VHE host (E2H, TGE) with stage 2 on and traps of every kind, and EL1's MMU on over tables that are none.
const AT_EL2: &[u32] = &[
    0xaa00_03f4, // mov x20, x0
    0x9280_0000, // mov x0, #-1
    0xd29f_ffe1, // mov x1, #0xffff
    0xd51c_1161, // msr HSTR_EL2, x1
    0xd51c_2100, // msr VTTBR_EL2, x0
    0xd51c_e060, // msr CNTVOFF_EL2, x0
    0xd51c_e11f, // msr CNTHCTL_EL2, xzr
    0xd51c_0000, // msr VPIDR_EL2, x0
    0xd51c_00a0, // msr VMPIDR_EL2, x0
    0x12b0_0001, // mov w1, #0x7fffffff
    0xd51c_1121, // msr MDCR_EL2, x1
    0xd51c_1141, // msr CPTR_EL2, x1
    0xd286_a201, // mov x1, #0x3510
    0xd51c_2141, // msr VTCR_EL2, x1
    0xd51c_1180, // msr S3_4_C1_C1_4, x0 (HFGRTR_EL2)
    0xd51c_11a0, // msr S3_4_C1_C1_5, x0 (HFGWTR_EL2)
    0xd51c_11c0, // msr S3_4_C1_C1_6, x0 (HFGITR_EL2)
    0xd51c_3180, // msr S3_4_C3_C1_4, x0 (HDFGRTR_EL2)
    0xd51c_31a0, // msr S3_4_C3_C1_5, x0 (HDFGWTR_EL2)
    0xd51c_125f, // msr S3_4_C1_C2_2, xzr (HCRX_EL2)
    0xd283_30a1, // mov x1, #0x1985
    0xd518_2041, // msr TCR_EL1, x1
    0xd518_a201, // msr MAIR_EL1, x1
    0xd518_2001, // msr TTBR0_EL1, x1
    0xd518_2021, // msr TTBR1_EL1, x1
    0xd282_00a1, // mov x1, #0x1005
    0xf2a6_1b01, // movk x1, #0x30d8, lsl #16
    0xd518_1001, // msr SCTLR_EL1, x1
    0xd282_0021, // mov x1, #0x1001
    0xf2b1_c081, // movk x1, #0x8e04, lsl #16
    0xf2c0_0081, // movk x1, #4, lsl #32
    0xd51c_1101, // msr HCR_EL2, x1
    0xd503_3fdf, // isb
    0xaa14_03e0, // mov x0, x20
    0xd2a8_0405, // mov x5, #0x40200000
    0xd61f_00a0, // br x5
];

/// Those of [`AT_EL2`] that write registers which CPUs of Armv8.2 do not have.
const NEWER_THAN_VHE: [u32; 6] = [0xd51c_1180, 0xd51c_11a0, 0xd51c_11c0, 0xd51c_3180, 0xd51c_31a0, 0xd51c_125f];

/// Starts the machine `default`, with this in addition to its `-machine`, in the code `stage`, which jumps to the
/// kernel.
fn start_behind(name: &str, stage: &[u32], addition: &str) -> Session {
    let mut machine = machine::named("default").unwrap();
    machine.machine += addition;
    start_on(&machine, name, stage)
}

fn start_on(machine: &Machine, name: &str, stage: &[u32]) -> Session {
    let kernel = format!("loader,file={},addr=0x40200000,force-raw=on", built("granule.img").display());
    start_with(machine, name, stage, kernel)
}

/// As [`start_on`], with `kernel` loaded by this device.
fn start_with(machine: &Machine, name: &str, stage: &[u32], kernel: String) -> Session {
    let file = own_file(env!("CARGO_TARGET_TMPDIR"), name);
    fs::write(&file, stage.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
    let mut extra: Vec<OsString> = Vec::new();
    for device in [
        kernel,
        format!("loader,file={},addr={STAGE},force-raw=on", file.display()),
        format!("loader,addr={STAGE},cpu-num=0"),
    ] {
        extra.extend(["-device".into(), device.into()]);
    }
    Session::of(&Qemu::without_kernel(machine, Serial::Pipes, Reset::Ends, &extra)).unwrap()
}

/// Boots the kernel after `poisoner`, and looks whether all CPUs run.
#[track_caller]
fn assert_boots_behind(name: &str, poisoner: &[u32], addition: &str) {
    let mut session = start_behind(name, poisoner, addition);
    assert_runs(&machine::named("default").unwrap(), name, &mut session);
}

/// The prompt comes, keys arrive and nothing else does, and all CPUs run.
#[track_caller]
fn assert_runs(machine: &Machine, name: &str, session: &mut Session) {
    session.prompt().unwrap_or_else(|error| panic!("{name}: {error}"));
    let cpus = session.command("cpus").unwrap_or_else(|error| panic!("{name}: {error}"));
    let run = cpus.lines().filter(|line| line.starts_with("cpu ") && line.ends_with(" runs")).count();
    assert_eq!(run, machine.smp as usize, "{name}: {cpus}");
    let frames = session.command("mem").unwrap();
    assert!(frames.contains("frames"), "{name}: {frames}");
}

/// Registers of QEMU's `virt`.
const GICD: u64 = 0x800_0000;
const GICC: u64 = 0x801_0000;
const GICR: u64 = 0x80a_0000;
const UART: u64 = 0x900_0000;

/// Instructions that store words, and others after them; then the jump to the kernel.
fn stage(stores: &[(u64, u32)], more: &[u32]) -> Vec<u32> {
    let wide = |register: u32, value: u64| {
        (0..3).map(move |half: u32| {
            let opcode = if half == 0 { 0xd280_0000 } else { 0xf280_0000 };
            opcode | half << 21 | ((value >> (16 * half) & 0xffff) as u32) << 5 | register
        })
    };
    let mut stage = Vec::new();
    for &(address, value) in stores {
        stage.extend(wide(1, address).chain(wide(2, value.into())));
        stage.push(0xb900_0022); // str w2, [x1]
    }
    stage.extend(more);
    // dsb sy; mov x5, #0x40200000; br x5
    stage.extend([0xd503_3f9f, 0xd2a8_0405, 0xd61f_00a0]);
    stage
}

/// Stores `value` to registers of a bit for each interrupt, of those from `from` on that CPUs share.
fn shared(gicd: u64, value: u32) -> impl Iterator<Item = (u64, u32)> {
    (1..8).map(move |word| (gicd + 4 * word, value))
}

/// As a stage leaves it that was in the middle of handlers, and did not end them.
#[test]
fn interrupts_that_are_active_arrive_all_the_same() {
    let machine = machine::named("default").unwrap();
    let mut stores = vec![(GICD, 0x37)];
    stores.extend(shared(GICD + 0x80, !0).chain(shared(GICD + 0x300, !0)));
    for cpu in 0..u64::from(machine.smp) {
        let private = GICR + cpu * 0x2_0000 + 0x1_0000;
        stores.extend([(private + 0x80, !0), (private + 0x300, !0)]);
    }
    // The highest priority is active too: mov x1, #1; msr ICC_AP1R0_EL1, x1; msr ICC_AP0R0_EL1, x1; and ends of
    // interrupts do not deactivate them: mov x1, #2; msr ICC_CTLR_EL1, x1.
    let more = [0xd280_0021, 0xd518_c901, 0xd518_c881, 0xd280_0041, 0xd518_cc81];
    let mut session = start_on(&machine, "active.bin", &stage(&stores, &more));
    assert_runs(&machine, "GICv3", &mut session);

    let machine = machine::named("a72").unwrap();
    let mut stores = vec![(GICD, 3), (GICC, 0x203), (GICC + 4, 0xff), (GICC + 8, 7)];
    stores.extend((0..8).flat_map(|word| [(GICD + 0x80 + 4 * word, !0), (GICD + 0x300 + 4 * word, !0)]));
    // Active priorities of group 0, then of group 1.
    stores.extend([(GICC + 0xd0, 1), (GICC + 0xe0, 1)]);
    let mut session = start_on(&machine, "active2.bin", &stage(&stores, &[]));
    assert_runs(&machine, "GICv2", &mut session);
}

#[test]
fn interrupts_that_are_pending_are_those_of_the_stage_before() {
    let machine = machine::named("default").unwrap();
    let mut stores = vec![(GICD, 0x37)];
    stores.extend([0x80, 0x100, 0x200].into_iter().flat_map(|register| shared(GICD + register, !0)));
    for cpu in 0..u64::from(machine.smp) {
        let private = GICR + cpu * 0x2_0000 + 0x1_0000;
        stores.extend([0x80, 0x100, 0x200].map(|register| (private + register, !0)));
    }
    let mut session = start_on(&machine, "pending.bin", &stage(&stores, &[]));
    assert_runs(&machine, "GICv3", &mut session);

    let machine = machine::named("a72").unwrap();
    let mut stores = vec![(GICD, 3)];
    stores.extend((0..8).flat_map(|word| [0x100, 0x200].map(|register| (GICD + register + 4 * word, !0))));
    // Each SGI, to each CPU.
    stores.extend((0..16).map(|number| (GICD + 0xf00, 0xff << 16 | number)));
    let mut session = start_on(&machine, "pending2.bin", &stage(&stores, &[]));
    assert_runs(&machine, "GICv2", &mut session);
}

/// UARTLCR_H, UARTCR, UARTIMSC and UARTDMACR: a driver that was sending, loopback, and all at once.
#[test]
fn a_console_that_was_used_otherwise_is_a_console() {
    let machine = machine::named("default").unwrap();
    for (name, control, mask, dma) in
        [("sending", 0x301, 0x20, 0), ("loopback", 0x381, 0, 0), ("everything", 0xff87, 0x7ff, 7)]
    {
        let stores = [(UART + 0x2c, 0x70), (UART + 0x30, control), (UART + 0x38, mask), (UART + 0x48, dma)];
        let mut session = start_on(&machine, "uart.bin", &stage(&stores, &[]));
        assert_runs(&machine, name, &mut session);
    }
}

#[test]
fn poisoned_at_el1() {
    assert_boots_behind("el1.bin", AT_EL1, "");
}

#[test]
fn poisoned_at_el2_by_a_vhe_host() {
    assert_boots_behind("el2.bin", AT_EL2, ",virtualization=on");
}

/// Another kernel's way to EL1, on CPUs with VHE and without.
#[test]
fn the_metal_example_comes_up_after_a_hypervisor() {
    let older: Vec<u32> = AT_EL2.iter().copied().filter(|word| !NEWER_THAN_VHE.contains(word)).collect();
    for (name, stage) in [("default", AT_EL2), ("el2", &older), ("a72", &older)] {
        let mut machine = machine::named(name).unwrap();
        if !machine.machine.contains("virtualization=on") {
            machine.machine += ",virtualization=on";
        }
        let kernel = format!("loader,file={}", built("metal.elf").display());
        let mut session = start_with(&machine, "metal.bin", stage, kernel);
        for text in
            ["metal: MMU off, entered at El2\n", "metal: MMU on", "metal: permission fault, level 3, on a write"]
        {
            session.wait_for(text).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
}

/// Values that a loader without the boot protocol may leave in x0: an address where there is no memory, no RAM,
/// no tree, or which no table can hold.
#[test]
fn an_x0_that_leads_to_no_tree_is_a_message() {
    for x0 in [0x30_0000_0000u64, 0x0900_0000, 0x6000_0003, 0xf000_0000_0000, 0xf_0000_4000_0000, 0xffff_ffff_ffff_fffc]
    {
        let move_wide = |opcode: u32, half: u32| opcode | half << 21 | ((x0 >> (16 * half) & 0xffff) as u32) << 5;
        let stage = [
            move_wide(0xd280_0000, 0), // movz x0
            move_wide(0xf280_0000, 1), // movk x0, lsl #16
            move_wide(0xf280_0000, 2),
            move_wide(0xf280_0000, 3),
            0xd2a8_0405, // mov x5, #0x40200000
            0xd61f_00a0, // br x5
        ];
        let mut session = start_behind("x0.bin", &stage, "");
        session.wait_for("boot failed: no device tree").unwrap_or_else(|error| panic!("{x0:#x}: {error}"));
        assert!(session.wait_for("\n").unwrap().contains(&format!("x0 was {x0:#x}")));
    }
}
