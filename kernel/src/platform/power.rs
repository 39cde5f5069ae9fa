//! Registers that turn the machine off and reset it where PSCI does not: one of a system controller (the bindings
//! `syscon-poweroff`, `syscon-reboot` and `syscon`), or the watchdog of a BCM2835 and its successors.

use granule_arch::addr::{PhysAddr, PhysRange};

use super::error::{PlatformError, dispensable};
use super::tree::{Detached, Node, Root, cell};

/// The registers that end or reset the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PowerRegisters {
    /// Turns it off (`syscon-poweroff`).
    pub off: Option<SysconWrite>,
    /// Resets it (`syscon-reboot`).
    pub reset: Option<SysconWrite>,
    /// Resets it, and on some machines turns it off (`brcm,bcm2835-pm-wdt`).
    pub watchdog: Option<Bcm2835Pm>,
}

/// A change of a register of a system controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SysconWrite {
    /// The register: 1, 2 or 4 bytes, aligned.
    pub register: PhysRange,
    /// The most significant byte is the first.
    pub is_big_endian: bool,
    /// The bits that change.
    pub mask: u32,
    /// Their new values.
    pub value: u32,
}

/// The power management block with the watchdog.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bcm2835Pm {
    /// Its registers.
    pub registers: PhysRange,
    /// The firmware, which a reset starts again, halts where it is asked to (`system-power-controller`).
    pub turns_off: bool,
}

/// Bytes of the block's registers that are used, up to PM_WDOG.
const PM_BYTES: u64 = 0x28;

/// The nodes that a pass over the tree found; the first of each kind counts. A system controller may be anywhere, so those
/// that refer to one are read by another pass, if there are any.
#[derive(Default)]
pub(super) struct PowerNodes<'t> {
    off: Option<Detached<'t>>,
    reset: Option<Detached<'t>>,
    watchdog: Option<Bcm2835Pm>,
}

impl<'t> PowerNodes<'t> {
    /// Takes `node` down if it is one that is `compatible` with one of them; returns whether.
    pub(super) fn look_at(&mut self, compatible: &str, node: &Node<'t, '_>) -> bool {
        match compatible {
            "syscon-poweroff" => drop(self.off.get_or_insert_with(|| node.detached())),
            "syscon-reboot" => drop(self.reset.get_or_insert_with(|| node.detached())),
            "brcm,bcm2835-pm" | "brcm,bcm2835-pm-wdt" | "brcm,bcm2711-pm" | "brcm,bcm2712-pm" => {
                self.watchdog = self.watchdog.or_else(|| dispensable(Bcm2835Pm::read(node)));
            }
            _ => return false,
        }
        true
    }

    /// Reads those that refer to system controllers.
    #[inline(never)]
    pub(super) fn resolve(&self, root: &Root<'t>) -> PowerRegisters {
        let write = |node: Option<&Detached<'t>>| node.and_then(|node| dispensable(SysconWrite::find(root, node)));
        PowerRegisters { off: write(self.off.as_ref()), reset: write(self.reset.as_ref()), watchdog: self.watchdog }
    }
}

impl SysconWrite {
    /// The change that `node` describes, of the controller that its `regmap` names, or else of its parent.
    fn find<'t>(root: &Root<'t>, node: &Detached<'t>) -> Result<Self, PlatformError> {
        let regmap = node.property("regmap").map(|value| cell(value).ok_or_else(|| node.bad("regmap"))).transpose()?;
        let mut found = None;
        root.visit(None, &mut |controller, _| {
            let is_its = match regmap {
                Some(phandle) => controller.phandle() == Some(phandle),
                None => controller.is_parent_of(node),
            };
            if is_its && found.is_none() {
                found = Some(Self::read(controller, node)?);
            }
            Ok(())
        })?;
        found.ok_or_else(|| node.bad("regmap"))
    }

    fn read(controller: &Node<'_, '_>, node: &Detached<'_>) -> Result<Self, PlatformError> {
        let registers = controller.first_registers()?;
        let width = match controller.number("reg-io-width")? {
            None => 4,
            Some(width @ (1 | 2 | 4)) => width,
            Some(_) => return Err(controller.bad("reg-io-width")),
        };
        // Of `reg` the first cell counts, which is the offset where the parent is the controller.
        let number = |name| {
            let value = node.property(name);
            value.map(|value| value.get(..4).and_then(cell).ok_or_else(|| node.bad(name))).transpose()
        };
        let offset = number("offset")?.map_or_else(|| number("reg"), |offset| Ok(Some(offset)))?;
        let offset = u64::from(offset.ok_or_else(|| node.missing("offset"))?);
        // A node of the old binding has its value in `mask`.
        let (mask, value) = match (number("mask")?, number("value")?) {
            (Some(mask), Some(value)) => (mask, value),
            (None, Some(value)) | (Some(value), None) => (!0, value),
            (None, None) => return Err(node.missing("value")),
        };
        let start = registers.start().0.checked_add(offset).map(PhysAddr);
        let register =
            start.filter(|start| start.is_aligned(width)).and_then(|start| PhysRange::from_size(start, width));
        let register = register.filter(|register| register.end() <= registers.end());
        let is_big_endian = controller.property("big-endian").is_some();
        Ok(Self { register: register.ok_or_else(|| node.bad("offset"))?, is_big_endian, mask, value })
    }
}

impl Bcm2835Pm {
    fn read(node: &Node<'_, '_>) -> Result<Self, PlatformError> {
        let registers = node.first_registers()?;
        if registers.size() < PM_BYTES || !registers.start().is_aligned(4) {
            return Err(node.bad("reg"));
        }
        Ok(Self { registers, turns_off: node.property("system-power-controller").is_some() })
    }
}
