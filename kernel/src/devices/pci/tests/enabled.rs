//! Operations that a function does by itself after each call, and the order in which they go on and off.

use super::super::enumerate::{BUS_MASTER, NO_PIN};
use super::super::{Claim, Function};
use super::model::{Enabled, ModelBus, ModelKind, ModelNode};
use super::*;

/// As the walk leaves a function, and a claim that is dropped.
const QUIET: Enabled = Enabled { memory: true, bus_master: false, pin: false, msi: false, msix: false };
/// Message control of the model's capabilities: on, and of MSI-X all masked.
const MSI: (u16, u16) = (0x62, 1 << 0);
const MSIX: (u16, u16) = (0x52, 1 << 15);
const MASKED: u16 = 1 << 14;

fn stage() -> (Claim, &'static ModelBus) {
    let (functions, model) = walk_model(&[endpoint(&[memory(12)])], 255, LOW);
    let function: &'static Function = &functions.leak()[0];
    (function.claim("a test").unwrap(), model)
}

fn enabled(model: &ModelBus) -> Enabled {
    model.0.lock().unwrap()[0].enabled()
}

fn wrong(model: &ModelBus) -> std::vec::Vec<&'static str> {
    core::mem::take(&mut model.0.lock().unwrap()[0].wrong)
}

/// A call on a driver's claim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    BusMaster(bool),
    /// One way to interrupt, or none: each closes the others first.
    Interrupt(Option<Way>),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Pin,
    Msi,
    MsiX,
}

fn set(claim: &Claim, (offset, bit): (u16, u16), on: bool) {
    let control = claim.read_config16(offset).unwrap();
    claim.write_config16(offset, if on { control | bit } else { control & !bit }).unwrap();
}

fn take(claim: &Claim, step: Step, expected: &mut Enabled) {
    match step {
        Step::BusMaster(on) => {
            claim.set_bus_master(on);
            expected.bus_master = on;
        }
        Step::Interrupt(way) => {
            super::super::interrupt::clear(claim.function());
            match way {
                Some(Way::Pin) => claim.function().change_command(NO_PIN, false),
                Some(Way::Msi) => set(claim, MSI, true),
                Some(Way::MsiX) => set(claim, MSIX, true),
                None => {}
            }
            (expected.pin, expected.msi, expected.msix) =
                (way == Some(Way::Pin), way == Some(Way::Msi), way == Some(Way::MsiX));
        }
    }
}

fn steps() -> impl Strategy<Value = std::vec::Vec<Step>> {
    let way = prop_oneof![Just(None), Just(Some(Way::Pin)), Just(Some(Way::Msi)), Just(Some(Way::MsiX))];
    let step = prop_oneof![any::<bool>().prop_map(Step::BusMaster), way.prop_map(Step::Interrupt)];
    prop::collection::vec(step, 0..12)
}

proptest! {
    /// Wherever a start fails, and whenever a driver ends.
    #[test]
    fn a_claim_that_is_dropped_leaves_a_quiet_function(steps in steps()) {
        let (claim, model) = stage();
        let mut expected = QUIET;
        prop_assert_eq!(enabled(model), expected);
        for step in steps {
            take(&claim, step, &mut expected);
            prop_assert_eq!(enabled(model), expected, "behind {:?}", step);
        }
        let before = model.0.lock().unwrap()[0].history.len();
        drop(claim);
        prop_assert_eq!(enabled(model), QUIET);
        // A device that is no bus master sends no messages: that goes first, and with the rest as it was.
        let bus = model.0.lock().unwrap();
        let last = &bus[0].history[before..];
        let silent = Enabled { bus_master: false, ..expected };
        prop_assert!(!expected.bus_master || last.first() == Some(&silent), "{:?}", last);
        prop_assert!(bus[0].wrong.is_empty(), "{:?}", bus[0].wrong);
    }
}

#[test]
fn messages_that_are_masked_are_not_sent() {
    let (claim, model) = stage();
    set(&claim, (MSIX.0, MSIX.1 | MASKED), true);
    assert_eq!(enabled(model), QUIET);
    set(&claim, (MSIX.0, MASKED), false);
    assert_eq!(enabled(model), Enabled { msix: true, ..QUIET });
}

/// Each write at the wrong moment, and at the right one.
#[test]
fn the_model_sees_each_write_at_the_wrong_moment() {
    let (claim, model) = stage();
    let function = claim.function();
    assert_eq!(wrong(model), [""; 0]);
    claim.write_config32(0x10, 0x1234_5000).unwrap();
    assert_eq!(wrong(model), ["a base address register changes while the function decodes memory"]);
    function.change_command(2, false);
    claim.write_config32(0x10, 0x1000_0000).unwrap();
    assert_eq!(wrong(model), [""; 0]);
    function.change_command(BUS_MASTER, true);
    assert_eq!(wrong(model), ["bus mastering is on before the function decodes memory"]);
    function.change_command(2, true);

    claim.write_config32(0x64, 0x0808_0040).unwrap();
    set(&claim, MSI, true);
    assert_eq!(wrong(model), [""; 0]);
    claim.write_config32(0x64, 0x0808_0080).unwrap();
    assert_eq!(wrong(model), ["a message changes while the function may send it"]);
    function.change_command(NO_PIN, false);
    assert_eq!(wrong(model), ["the pin is open beside messages"]);

    let command = claim.read_config32(4).unwrap();
    claim.write_config32(4, command).unwrap();
    assert_eq!(wrong(model), ["status bits are cleared by the way"]);
    claim.write_config16(4, command as u16).unwrap();
    assert_eq!(wrong(model), [""; 0]);
    drop(claim);

    let (functions, model) = walk_model(&[bridge(ModelKind::RootPort, vec![endpoint(&[memory(12)])])], 255, LOW);
    let port = functions[0].address();
    let wrong = || core::mem::take(&mut model.0.lock().unwrap()[0].wrong);
    assert_eq!(wrong(), [""; 0]);
    model.write32(port, 0x20, 0xfff0);
    assert_eq!(wrong(), ["a bridge's buses or windows change while it forwards"]);
    model.write16(port, 4, 0);
    model.write32(port, 0x18, 0);
    assert_eq!(wrong(), [""; 0]);
}

/// Firmware that has left everything on: nothing is given addresses, or taken from it, while the function uses it.
#[test]
fn the_walk_turns_off_before_it_changes_and_on_when_it_has() {
    let behind = vec![endpoint(&[wide(16, true), memory(12)])];
    let (_, model) = walk_model(&[endpoint(&[memory(16)]), bridge(ModelKind::RootPort, behind)], 255, LOW);
    let mut count = 0;
    each_node(&model.0.lock().unwrap(), &mut |node: &ModelNode| {
        count += 1;
        assert_eq!(node.wrong, [""; 0]);
        let forwards = node.is_bridge();
        assert_eq!(node.enabled(), Enabled { bus_master: forwards, ..QUIET });
        let first = node.history.first().unwrap();
        assert!(!first.memory && !first.bus_master && !first.pin, "the command register is the first: {first:?}");
    });
    assert_eq!(count, 3);
}
