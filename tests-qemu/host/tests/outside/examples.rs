//! The example on the metal boots: a kernel of one file on the crates, as another kernel's author would begin.

use std::ffi::OsString;

use granule_host_tests::built;
use granule_host_tests::session::Session;
use granule_runner::machine;
use granule_runner::qemu::{Qemu, Reset, Serial};

/// The example on a machine, with this in addition to its `-machine`, started by `extra` or as QEMU does.
fn start(machine: &str, addition: &str, extra: &[&str]) -> Session {
    let mut machine = machine::named(machine).unwrap();
    machine.machine += addition;
    let mut all: Vec<OsString> = vec!["-kernel".into(), built("metal.elf").into()];
    all.extend(extra.iter().map(Into::into));
    Session::of(&Qemu::without_kernel(&machine, Serial::Pipes, Reset::Ends, &all)).unwrap()
}

/// On the newest CPU that QEMU has, and on one of Armv8.0, which has none of the features; entered at EL1 and at EL2,
/// with VHE (the newest, and neoverse-n1) and without (cortex-a53).
#[test]
fn the_metal_example_maps_itself_and_shows_its_fault() {
    for (name, addition, level) in [
        ("default", "", "El1"),
        ("a53", "", "El1"),
        ("default", ",virtualization=on", "El2"),
        ("a53", ",virtualization=on", "El2"),
        ("el2", "", "El2"),
    ] {
        let mut session = start(name, addition, &[]);
        session.wait_for(&format!("metal: MMU off, entered at {level}\n")).unwrap();
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
        // It has ended by PSCI.
        let ended = session.wait_for("never").unwrap_err().to_string();
        assert!(ended.contains("the machine ended"), "{name}: {ended}");
    }
}

/// QEMU enters an ELF file at the highest exception level that there is.
#[test]
fn the_metal_example_refuses_el3() {
    for name in ["default", "a53"] {
        let mut session = start(name, ",secure=on,virtualization=on", &[]);
        session.wait_for("metal: entered at EL3; the loader must enter at EL2 or EL1\n").unwrap();
    }
}
