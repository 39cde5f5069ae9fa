//! The interrupts of a node: which controller they lead to, and which of its lines they are (Devicetree Specification
//! v0.4, 2.4; the bindings `arm,gic` and `arm,gic-v3`).
//!
//! `interrupts` lists lines of the controller that `interrupt-parent` names, on the node or on the way up;
//! `interrupts-extended` names the controller of each line, and counts where both are there. How many cells a line
//! takes is defined by the controller, which the tree may have behind the node. So a node's interrupts are kept as they
//! stand ([`Interrupts`]) and read when the GIC ([`GicNode`]) is known.

use super::tree::{self, cell};
use super::{NodeName, PlatformError};

/// What identifies an interrupt to the controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trigger {
    /// A pulse is one interrupt. A controller that is set to level loses it.
    Edge,
    /// It is there for as long as the line is held.
    Level,
}

/// An interrupt line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interrupt {
    /// Its number as the GIC counts: SGIs from 0, PPIs from 16, SPIs from 32.
    pub intid: u32,
    /// Its kind.
    pub trigger: Trigger,
}

/// The GIC as other nodes refer to it.
pub(super) struct GicNode {
    /// `None` where the GIC has none: then no node can name it, and all that name no other are taken to lead there.
    pub(super) phandle: Option<u32>,
    /// Of its own bus; each entry of an `interrupt-map` has as many, which mean nothing.
    pub(super) address_cells: u32,
    /// Cells of one line: kind, number and flags, and on some machines a partition of CPUs.
    pub(super) interrupt_cells: u32,
}

/// Cells of a line that identify it; those behind them have the CPUs that share a PPI.
const MEANINGFUL: u32 = 3;
/// Cells of a line at most: more have no meaning in any binding.
const MAX_CELLS: u32 = 8;

impl Default for GicNode {
    fn default() -> Self {
        Self { phandle: None, address_cells: 0, interrupt_cells: MEANINGFUL }
    }
}

impl GicNode {
    /// The GIC's node.
    ///
    /// # Errors
    /// `#interrupt-cells` is not 3 to 8.
    pub(super) fn of(node: &tree::Node<'_, '_>) -> Result<Self, PlatformError> {
        let interrupt_cells = match node.property("#interrupt-cells") {
            Some(value) => cell(value).filter(|cells| (MEANINGFUL..=MAX_CELLS).contains(cells)),
            None => Some(MEANINGFUL),
        };
        Ok(Self {
            phandle: node.phandle(),
            // Missing means none, unlike for `reg`.
            address_cells: node.address_cells().unwrap_or(0),
            interrupt_cells: interrupt_cells.ok_or_else(|| node.bad("#interrupt-cells"))?,
        })
    }

    /// Bytes of one line.
    pub(super) fn line_size(&self) -> usize {
        self.interrupt_cells as usize * 4
    }
}

/// The interrupts of a node, as they stand in the tree.
#[derive(Clone, Copy)]
pub(super) struct Interrupts<'t> {
    /// The node's name.
    pub(super) node: &'t str,
    /// The phandle of their controller; `None` where no node on the way up names one.
    pub(super) parent: Option<u32>,
    /// `interrupts`, raw.
    pub(super) list: Option<&'t [u8]>,
    /// `interrupts-extended`, raw.
    pub(super) extended: Option<&'t [u8]>,
}

impl Interrupts<'_> {
    /// The line with this index; `None` where there are fewer.
    ///
    /// # Errors
    /// The line leads to another controller than the GIC, or is none of the GIC's.
    pub(super) fn get(&self, index: usize, gic: &GicNode) -> Result<Option<Interrupt>, PlatformError> {
        if let Some(list) = self.extended {
            return self.get_extended(list, index, gic);
        }
        let Some(list) = self.list else { return Ok(None) };
        if self.parent.is_some() && gic.phandle.is_some() && self.parent != gic.phandle {
            return Err(self.bad("interrupt-parent"));
        }
        if !list.len().is_multiple_of(gic.line_size()) {
            return Err(self.bad("interrupts"));
        }
        let line = index.checked_mul(gic.line_size()).and_then(|at| list.get(at..)?.get(..gic.line_size()));
        let Some(line) = line else { return Ok(None) };
        interrupt_of(line).map(Some).ok_or_else(|| self.bad("interrupts"))
    }

    /// As [`get`](Self::get), where each line begins with its controller. What another controller's lines take is not
    /// known here, so that a line behind one of those is not found.
    fn get_extended(&self, list: &[u8], index: usize, gic: &GicNode) -> Result<Option<Interrupt>, PlatformError> {
        let bad = || self.bad("interrupts-extended");
        let mut entries = list.chunks(4 + gic.line_size());
        for _ in 0..index {
            let Some(entry) = entries.next() else { return Ok(None) };
            if entry.get(..4).and_then(cell) != gic.phandle {
                return Err(bad());
            }
        }
        let Some(entry) = entries.next() else { return Ok(None) };
        let (controller, line) = entry.split_at_checked(4).ok_or_else(bad)?;
        if cell(controller) != gic.phandle || line.len() != gic.line_size() {
            return Err(bad());
        }
        interrupt_of(line).map(Some).ok_or_else(bad)
    }

    /// The error that there is no interrupt where one is needed.
    pub(super) fn missing(&self) -> PlatformError {
        PlatformError::Missing { node: NodeName::from(self.node), property: "interrupts" }
    }

    fn bad(&self, property: &'static str) -> PlatformError {
        PlatformError::Bad { node: NodeName::from(self.node), property }
    }
}

/// The interrupt that the first three of these cells describe: kind, number, flags.
pub(super) fn interrupt_of(cells: &[u8]) -> Option<Interrupt> {
    let mut fields = cells.chunks_exact(4).map_while(cell);
    let (kind, number, flags) = (fields.next()?, fields.next()?, fields.next()?);
    let intid = match kind {
        0 if number < 988 => 32 + number,
        1 if number < 16 => 16 + number,
        _ => return None,
    };
    // Bits 3:0 as in Linux's irq.h: rising 1, falling 2, high 4, low 8.
    let trigger = if flags & 0b11 != 0 { Trigger::Edge } else { Trigger::Level };
    Some(Interrupt { intid, trigger })
}

#[cfg(test)]
mod tests {
    use super::super::tree_builder::cells;
    use super::{GicNode, Interrupt, Interrupts, PlatformError, Trigger};

    const GIC: u32 = 7;

    fn gic(interrupt_cells: u32) -> GicNode {
        GicNode { phandle: Some(GIC), address_cells: 2, interrupt_cells }
    }

    /// The INTID of line `index` of a node with these properties.
    fn read(
        parent: Option<u32>,
        list: Option<&[u32]>,
        extended: Option<&[u32]>,
        index: usize,
        interrupt_cells: u32,
    ) -> Result<Option<u32>, PlatformError> {
        let (list, extended) = (list.map(cells), extended.map(cells));
        let interrupts = Interrupts { node: "n", parent, list: list.as_deref(), extended: extended.as_deref() };
        interrupts.get(index, &gic(interrupt_cells)).map(|line| line.map(|line| line.intid))
    }

    fn bad(property: &'static str) -> Result<Option<u32>, PlatformError> {
        Err(PlatformError::Bad { node: "n".into(), property })
    }

    #[test]
    fn lines_of_four_cells_name_a_partition_of_cpus() {
        let timer = [1, 13, 8, 0, 1, 14, 8, 0, 1, 11, 8, 0, 1, 10, 8, 0];
        assert_eq!(read(Some(GIC), Some(&timer), None, 2, 4), Ok(Some(27)));
        assert_eq!(read(Some(GIC), Some(&timer), None, 4, 4), Ok(None));
        assert_eq!(read(Some(GIC), Some(&timer), None, 0, 3), bad("interrupts"));
    }

    #[test]
    fn a_line_of_another_controller_is_none_of_the_gics() {
        assert_eq!(read(Some(GIC), Some(&[0, 5, 4]), None, 0, 3), Ok(Some(37)));
        assert_eq!(read(None, Some(&[0, 5, 4]), None, 0, 3), Ok(Some(37)), "no node names a controller");
        assert_eq!(read(Some(GIC + 1), Some(&[0, 5, 4]), None, 0, 3), bad("interrupt-parent"));
    }

    #[test]
    fn interrupts_extended_names_the_controller_of_each_line_and_counts_alone() {
        let two = [GIC, 0, 5, 4, GIC, 1, 11, 4];
        assert_eq!(read(Some(9), Some(&[0, 1, 4]), Some(&two), 0, 3), Ok(Some(37)));
        assert_eq!(read(Some(9), Some(&[0, 1, 4]), Some(&two), 1, 3), Ok(Some(27)));
        assert_eq!(read(None, None, Some(&two), 2, 3), Ok(None));
        assert_eq!(read(None, None, Some(&[9, 1, GIC, 0, 5, 4]), 1, 3), bad("interrupts-extended"));
        assert_eq!(read(None, None, Some(&[GIC, 0, 5]), 0, 3), bad("interrupts-extended"));
    }

    #[test]
    fn numbers_that_the_gic_has_not_are_refused() {
        assert_eq!(read(None, Some(&[0, 988, 4]), None, 0, 3), bad("interrupts"));
        assert_eq!(read(None, Some(&[1, 16, 4]), None, 0, 3), bad("interrupts"));
        assert_eq!(read(None, Some(&[2, 0, 4]), None, 0, 3), bad("interrupts"));
        let edge = super::interrupt_of(&cells(&[0, 74, 1]));
        assert_eq!(edge, Some(Interrupt { intid: 106, trigger: Trigger::Edge }));
    }
}
