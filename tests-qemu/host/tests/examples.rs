//! The example on the metal boots: a kernel of one file on the crates, as another kernel's author would begin.

use granule_host_tests::built;
use granule_host_tests::session::Session;
use granule_runner::machine;
use granule_runner::qemu::{Qemu, Reset, Serial};

/// On the newest CPU that QEMU has, and on one of Armv8.0, which has none of the features.
#[test]
fn the_metal_example_maps_itself_and_shows_its_fault() {
    for name in ["default", "a53"] {
        let machine = machine::named(name).unwrap();
        let extra = ["-kernel".into(), built("metal.elf").into()];
        let qemu = Qemu::without_kernel(&machine, Serial::Pipes, Reset::Ends, &extra);
        let mut session = Session::of(&qemu).unwrap();
        session.wait_for("metal: MMU on, 39-bit addresses\n").unwrap();
        let dump = session.wait_for("\ntotal ").unwrap();
        for line in ["x 1           RW NX SHD AF        UXN    DEVICE/nGnRE", "ro x  SHD AF        UXN    MEM/NORMAL"] {
            assert!(dump.contains(line), "{name}: no {line:?} in {dump}");
        }
        let walk = session.wait_for("metal: a store to 0x").unwrap();
        assert!(walk.contains("AP read-only at EL1"), "{name}: {walk}");
        let address = session.wait_for("\n").unwrap();
        let fault = session.wait_for("metal: permission fault, level 3, on a write at 0x").unwrap();
        assert!(fault.starts_with("metal: permission"), "{name}: {fault}");
        assert_eq!(session.wait_for("\n").unwrap(), address, "{name}");
    }
}

/// At EL2 the registers of EL1 can be written, and translate nothing.
#[test]
fn the_metal_example_does_not_go_on_without_translation() {
    let machine = machine::named("el2").unwrap();
    let extra = ["-kernel".into(), built("metal.elf").into()];
    let qemu = Qemu::without_kernel(&machine, Serial::Pipes, Reset::Ends, &extra);
    let mut session = Session::of(&qemu).unwrap();
    session.wait_for("metal: MMU off\n").unwrap();
    session.wait_for("the CPU is at EL2, and what the MMU of EL1 translates is EL1's alone").unwrap();
}
