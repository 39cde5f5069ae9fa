//! Configuration space in memory: devices and bridges that take writes as the specification defines.
//!
//! A read or write goes the way that it would go: through the bridges whose bus numbers lead there. The windows that a
//! bridge forwards are decoded here once more, from the registers alone. Each write is judged by what the function does
//! at that moment ([`Enabled`]); what is wrong with one is in [`ModelNode::wrong`].

use std::ops::Range;
use std::sync::Mutex;
use std::time::Duration;

use pci_types::PciAddress;

use super::super::config::ConfigSpace;

/// The use of a base address register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Want {
    Io(u32),
    Memory { bits: u32, wide: bool, prefetchable: bool },
}

/// The kind of a function or bridge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ModelKind {
    Endpoint,
    RootPort,
    ToConventional,
    Conventional,
}

/// The operations that a function does by itself, as its registers have it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Enabled {
    /// It decodes memory.
    pub(super) memory: bool,
    pub(super) bus_master: bool,
    /// It may assert its interrupt pin.
    pub(super) pin: bool,
    pub(super) msi: bool,
    pub(super) msix: bool,
}

/// Control and status of power management: state 3 is the one of least power.
const SLEEP: usize = 0x74;
/// In the word with BRIDGE_CONTROL: the bus behind is held in reset.
const RESET: u32 = 1 << 22;

/// Status bits that a one clears (7.5.1.1.4), in the word with the half above them.
const CLEARED_BY_ONES: u32 = 0xf900_0000;

/// A function as a test describes it.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) kind: ModelKind,
    pub(super) wants: Vec<Want>,
    /// Of a bridge: its prefetchable window, with 64 bits if it has one.
    pub(super) prefetchable: bool,
    /// Of a bridge: the bus that firmware left behind it.
    pub(super) left_bus: u8,
    /// The ACS controls that it offers; `None` without the capability.
    pub(super) acs: Option<u16>,
    pub(super) behind: Vec<Plan>,
}

/// One function: its registers, and which of their bits can be written.
pub(super) struct ModelNode {
    pub(super) kind: ModelKind,
    registers: [u32; 128],
    writable: [u32; 128],
    pub(super) wants: Vec<(usize, Want)>,
    pub(super) behind: Vec<ModelNode>,
    /// Its state after each write that changed the state.
    pub(super) history: Vec<Enabled>,
    /// Until then it does not answer itself, and what is behind it does not.
    wakes: [Duration; 2],
    /// Accesses that came at the wrong moment.
    pub(super) wrong: Vec<&'static str>,
}

impl ModelNode {
    fn new(plan: &Plan) -> Self {
        let mut node = Self {
            kind: plan.kind,
            registers: [0; 128],
            writable: [0; 128],
            wants: Vec::new(),
            behind: plan.behind.iter().map(Self::new).collect(),
            history: Vec::new(),
            wakes: [Duration::ZERO; 2],
            wrong: Vec::new(),
        };
        node.registers[0] = 0x5678_1234;
        // A list of capabilities, status bit 4, and what the firmware may have left: everything decoded, and errors
        // that it met.
        node.registers[1] = 0x3010_0007;
        node.writable[1] = 0x0000_0547;
        node.registers[0x3c / 4] = 0x0100;
        node.registers[0x34 / 4] = 0x40;
        let express = match plan.kind {
            ModelKind::RootPort => Some(4),
            ModelKind::ToConventional => Some(7),
            ModelKind::Endpoint | ModelKind::Conventional => None,
        };
        node.registers[0x40 / 4] = express.map_or(0x0012, |kind| 0x0002_0010 | kind << 20);
        node.leave_on(plan);
        let mut register = 0x10 / 4;
        let end = if plan.kind == ModelKind::Endpoint { 0x28 / 4 } else { 0x18 / 4 };
        for &want in &plan.wants {
            let width = if matches!(want, Want::Memory { wide: true, .. }) { 2 } else { 1 };
            if register + width > end {
                break;
            }
            node.wants.push((register - 4, want));
            match want {
                Want::Io(bits) => (node.registers[register], node.writable[register]) = (1, !0 << bits),
                Want::Memory { bits, wide, prefetchable } => {
                    let mask = u64::MAX << bits;
                    node.registers[register] = u32::from(wide) << 2 | u32::from(prefetchable) << 3;
                    node.writable[register] = mask as u32;
                    if wide {
                        node.writable[register + 1] = (mask >> 32) as u32;
                    }
                }
            }
            register += width;
        }
        if plan.kind != ModelKind::Endpoint {
            node.registers[3] = 0x0001_0000;
            // Left by firmware: a window over everything.
            node.writable[0x18 / 4] = 0x00ff_ffff;
            node.registers[0x18 / 4] = u32::from(plan.left_bus) << 16 | u32::from(plan.left_bus) << 8;
            (node.registers[0x20 / 4], node.writable[0x20 / 4]) = (0xfff0_0000, 0xfff0_fff0);
            if plan.prefetchable {
                (node.registers[0x24 / 4], node.writable[0x24 / 4]) = (0xfff1_0001, 0xfff0_fff0);
                (node.writable[0x28 / 4], node.writable[0x2c / 4]) = (!0, !0);
                node.registers[0x2c / 4] = !0;
            }
        }
        node
    }

    /// Leaves on all that firmware may leave on: MSI-X, an expansion ROM, ATS, PRI, PASID, virtual functions; little
    /// power, and a bridge's reset of its bus; and ACS off.
    fn leave_on(&mut self, plan: &Plan) {
        let rom = if plan.kind == ModelKind::Endpoint { 0x30 } else { 0x38 };
        (self.registers[rom / 4], self.writable[rom / 4]) = (0xfff0_0001, 0xffff_f801);
        // After the first capability comes MSI-X, and after that MSI.
        self.registers[0x40 / 4] |= 0x5000;
        (self.registers[0x50 / 4], self.writable[0x50 / 4]) = (0x8003_6011, 0xc000_0000);
        (self.registers[0x60 / 4], self.writable[0x60 / 4]) = (0x0001_7005, 0x0071_0000);
        self.registers[0x70 / 4] = 0x0001;
        (self.registers[SLEEP / 4], self.writable[SLEEP / 4]) = (0x8103, 0x0103);
        if self.is_bridge() {
            self.registers[0x3c / 4] |= RESET;
            self.writable[0x3c / 4] = 0xffff_0000;
        }
        (self.writable[0x64 / 4], self.writable[0x68 / 4]) = (!0b11, 0xffff);
        let lists = [(0x100, 0x0f, 4, 1 << 31), (0x110, 0x13, 4, 1), (0x120, 0x1b, 4, 1 << 16), (0x130, 0x10, 8, 9)];
        for (at, identifier, control, on) in lists {
            self.registers[at / 4] = identifier | 1 << 16 | (at as u32 + 0x10) << 20;
            (self.registers[(at + control) / 4], self.writable[(at + control) / 4]) = (on, !0);
        }
        match plan.acs {
            Some(offered) => {
                self.registers[0x140 / 4] = 0x000d | 1 << 16;
                (self.registers[0x144 / 4], self.writable[0x144 / 4]) = (offered.into(), u32::from(offered) << 16);
            }
            None => self.registers[0x130 / 4] &= 0x000f_ffff,
        }
    }

    /// The settings of [`Self::leave_on`] that are still on.
    pub(super) fn is_on(&self) -> Vec<&'static str> {
        let rom = if self.kind == ModelKind::Endpoint { 0x30 } else { 0x38 };
        let bits = [
            ("ROM", rom, 1),
            ("MSI-X", 0x50, 1 << 31),
            ("MSI", 0x60, 1 << 16),
            ("ATS", 0x104, 1 << 31),
            ("PRI", 0x114, 1),
            ("PASID", 0x124, 1 << 16),
            ("SR-IOV", 0x138, 9),
            ("little power", SLEEP, 0x8103),
            ("reset", 0x3c, RESET.into()),
        ];
        bits.iter().filter(|(_, at, bit)| self.word(*at) & bit != 0).map(|(name, ..)| *name).collect()
    }

    pub(super) fn enabled(&self) -> Enabled {
        let is_set = |offset, bit: u32| self.word(offset) >> bit & 1 != 0;
        Enabled {
            memory: is_set(4, 1),
            bus_master: is_set(4, 2),
            pin: !is_set(4, 10),
            msi: is_set(0x60, 16),
            // On, and not all masked.
            msix: is_set(0x50, 31) && !is_set(0x50, 30),
        }
    }

    /// Writes the bits `lanes` of a word.
    fn write(&mut self, index: usize, value: u32, lanes: u32) {
        let (Some(&old), Some(&writable)) = (self.registers.get(index), self.writable.get(index)) else { return };
        let (offset, before) = (index * 4, self.enabled());
        let has_status = offset == 4 || offset == 0x1c && self.is_bridge();
        let cleared = if has_status { value & lanes & CLEARED_BY_ONES } else { 0 };
        let writable = writable & lanes;
        // Whether it has asked for power is cleared in the same way, on purpose.
        let asked = if offset == SLEEP { value & lanes & 0x8000 } else { 0 };
        let new = (old & !writable | value & writable) & !cleared & !asked;
        let registers = if self.is_bridge() { 0x10..0x18 } else { 0x10..0x28 };
        let rom = if self.is_bridge() { 0x38 } else { 0x30 };
        for (is_wrong, what) in [
            (cleared != 0, "status bits are cleared by the way"),
            (self.word(SLEEP) & 3 != 0 && ![SLEEP, 0x3c].contains(&offset), "a function changes that has little power"),
            (
                new != old && before.memory && (registers.contains(&offset) || offset == rom),
                "a base address register changes while the function decodes memory",
            ),
            (
                new != old && self.is_bridge() && before.bus_master && (0x18..0x34).contains(&offset),
                "a bridge's buses or windows change while it forwards",
            ),
            (
                new != old && before.msi && (0x64..0x70).contains(&offset),
                "a message changes while the function may send it",
            ),
        ] {
            if is_wrong {
                self.wrong.push(what);
            }
        }
        let ends = |at, bits| offset == at && old & bits != 0 && new & bits == 0;
        for (wakes, has_ended, time) in [(0, ends(SLEEP, 3), 10), (1, self.is_bridge() && ends(0x3c, RESET), 100)] {
            if has_ended {
                self.wakes[wakes] = Duration::from_millis(time);
            }
        }
        self.registers[index] = new;
        let after = self.enabled();
        if after == before {
            return;
        }
        self.history.push(after);
        if after.pin && (after.msi || after.msix) {
            self.wrong.push("the pin is open beside messages");
        }
        if after.bus_master && !before.bus_master && !after.memory {
            self.wrong.push("bus mastering is on before the function decodes memory");
        }
    }

    /// Notes an access that comes before it answers again.
    fn is_awake(&mut self) {
        if !self.wakes[0].is_zero() {
            self.wrong.push("an access comes too early");
        }
    }

    fn rest(&mut self, time: Duration) {
        self.wakes = self.wakes.map(|left| left.saturating_sub(time));
        self.behind.iter_mut().for_each(|node| node.rest(time));
    }

    fn word(&self, offset: usize) -> u64 {
        self.registers[offset / 4].into()
    }

    /// Has the function say something else.
    pub(super) fn set(&mut self, offset: usize, value: u32) {
        self.registers[offset / 4] = value;
    }

    pub(super) fn decodes_memory(&self) -> bool {
        self.word(4) & 2 != 0
    }

    pub(super) fn is_bridge(&self) -> bool {
        self.kind != ModelKind::Endpoint
    }

    /// The buses behind it.
    pub(super) fn buses(&self) -> Range<u64> {
        let numbers = self.word(0x18);
        numbers >> 8 & 0xff..(numbers >> 16 & 0xff) + 1
    }

    /// The addresses on the bus that a register decodes.
    pub(super) fn decoded(&self, register: usize, want: Want) -> Range<u64> {
        let Want::Memory { bits, wide, .. } = want else { return 0..0 };
        let high = if wide { self.word(0x14 + 4 * register) << 32 } else { 0 };
        let start = high | self.word(0x10 + 4 * register) & !0xf;
        start..start + (1 << bits)
    }

    /// The addresses that it forwards to what is behind it.
    pub(super) fn forwards(&self) -> [Range<u64>; 2] {
        let window = |offset: usize, base: u64, limit: u64| {
            let word = self.word(offset);
            let base = base << 32 | (word & 0xfff0) << 16;
            base..(limit << 32 | (word & 0xfff0_0000) | 0xf_ffff).saturating_add(1).max(base)
        };
        let memory = window(0x20, 0, 0);
        if self.writable[0x24 / 4] == 0 {
            return [memory, 0..0];
        }
        [memory, window(0x24, self.word(0x28), self.word(0x2c))]
    }
}

/// The devices behind a host bridge, their functions all being number 0.
pub(super) struct ModelBus(pub(super) Mutex<Vec<ModelNode>>);

impl ModelBus {
    pub(super) fn new(plans: &[Plan]) -> Self {
        Self(Mutex::new(plans.iter().map(ModelNode::new).collect()))
    }

    fn write(&self, function: PciAddress, offset: u16, value: u32, lanes: u32) {
        if let Some(node) = find(&mut self.0.lock().unwrap(), 0, function) {
            node.is_awake();
            node.write(usize::from(offset) / 4, value, lanes);
        }
    }
}

/// The function with that address, if the bridges lead there.
/// # Panics
/// Two bridges of one bus lead there: both would answer.
fn find(bus: &mut [ModelNode], number: u64, address: PciAddress) -> Option<&mut ModelNode> {
    let wanted = u64::from(address.bus());
    if wanted == number {
        let node = bus.get_mut(usize::from(address.device()))?;
        return (address.function() == 0).then_some(node);
    }
    let mut leading = bus.iter_mut().filter(|node| node.is_bridge() && node.buses().contains(&wanted));
    let bridge = leading.next()?;
    assert!(leading.next().is_none(), "two bridges forward accesses to bus {wanted}");
    let secondary = bridge.buses().start;
    // A number that leads back is none.
    // In reset nothing behind it answers.
    let is_reset = bridge.word(0x3c) & u64::from(RESET) != 0 || !bridge.wakes[1].is_zero();
    if is_reset || secondary <= number { None } else { find(&mut bridge.behind, secondary, address) }
}

impl ConfigSpace for ModelBus {
    fn rest(&self, time: Duration) {
        self.0.lock().unwrap().iter_mut().for_each(|node| node.rest(time));
    }

    fn read32(&self, function: PciAddress, offset: u16) -> u32 {
        assert!(offset.is_multiple_of(4) && offset < 4096);
        let mut bus = self.0.lock().unwrap();
        let node = find(&mut bus, 0, function);
        node.map_or(!0, |node| {
            node.is_awake();
            node.registers.get(usize::from(offset) / 4).copied().unwrap_or(0)
        })
    }

    fn write32(&self, function: PciAddress, offset: u16, value: u32) {
        assert!(offset.is_multiple_of(4) && offset < 4096);
        self.write(function, offset, value, !0);
    }

    fn write16(&self, function: PciAddress, offset: u16, value: u16) {
        assert!(offset.is_multiple_of(2) && offset < 4096);
        let shift = offset % 4 * 8;
        self.write(function, offset & !3, u32::from(value) << shift, 0xffff << shift);
    }
}
