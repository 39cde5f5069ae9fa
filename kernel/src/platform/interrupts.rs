//! The interrupts of a node: which controller they lead to, and which of its lines they are (Devicetree Specification
//! v0.4, 2.4; the bindings `arm,gic`, `arm,gic-v3`, `brcm,bcm2836-l1-intc` and `brcm,bcm2835-armctrl-ic`).
//!
//! `interrupts` lists lines of the controller that `interrupt-parent` names, on the node or on the way up;
//! `interrupts-extended` names the controller of each line, and counts where both are there. How many cells a line
//! takes is defined by the controller, which the tree may have after the node. So a node's interrupts are kept as they
//! stand ([`Interrupts`]) and read when the controller ([`ControllerNode`]) is known.

use super::error::{NodeName, PlatformError};
use super::tree::{self, cell};

/// The signal by which the controller recognises an interrupt.
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

/// The interrupt controller as other nodes refer to it.
pub(super) struct ControllerNode {
    /// `None` where it has none: then no node can name it, and all that name no other are taken to lead there.
    pub(super) phandle: Option<u32>,
    /// Of its own bus; each entry of an `interrupt-map` has as many, which mean nothing.
    pub(super) address_cells: u32,
    /// Cells of one line: kind, number and flags, and on some machines a partition of CPUs.
    pub(super) interrupt_cells: u32,
    /// The meaning of its cells.
    pub(super) kind: LineKind,
    /// The phandle of the controller behind it, where there is one: [`LineKind::Bcm2836Shared`].
    behind: Option<u32>,
}

/// The meaning of a line's cells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LineKind {
    /// A kind, a number and flags.
    Gic,
    /// The number of a core's source, and flags.
    Bcm2836,
    /// A bank and a number.
    Bcm2836Shared,
}

/// Cells of a line that identify it; those after them have the CPUs that share a PPI.
const MEANINGFUL: u32 = 3;
/// Cells of a line at most: more have no meaning in any binding.
const MAX_CELLS: u32 = 8;

impl Default for ControllerNode {
    fn default() -> Self {
        Self { phandle: None, address_cells: 0, interrupt_cells: MEANINGFUL, kind: LineKind::Gic, behind: None }
    }
}

impl ControllerNode {
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
            kind: LineKind::Gic,
            behind: None,
        })
    }

    /// A BCM2836's controllers, by their phandles. Both have two cells.
    pub(super) fn bcm2836(phandle: Option<u32>, behind: Option<u32>) -> Self {
        Self { phandle, address_cells: 0, interrupt_cells: 2, kind: LineKind::Bcm2836, behind }
    }

    /// The meaning of cells after this phandle; `None` where it is another controller's.
    fn kind_behind(&self, phandle: Option<u32>) -> Option<LineKind> {
        match phandle {
            Some(_) if phandle == self.phandle => Some(self.kind),
            Some(_) if phandle == self.behind => Some(LineKind::Bcm2836Shared),
            _ => None,
        }
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
    /// The line leads to another controller, or is none of this one's.
    pub(super) fn get(&self, index: usize, gic: &ControllerNode) -> Result<Option<Interrupt>, PlatformError> {
        if let Some(list) = self.extended {
            return self.get_extended(list, index, gic);
        }
        let Some(list) = self.list else { return Ok(None) };
        let named = gic.kind_behind(self.parent);
        let kind = named.or((self.parent.is_none() || gic.phandle.is_none()).then_some(gic.kind));
        let kind = kind.ok_or_else(|| self.bad("interrupt-parent"))?;
        if !list.len().is_multiple_of(gic.line_size()) {
            return Err(self.bad("interrupts"));
        }
        let line = index.checked_mul(gic.line_size()).and_then(|at| list.get(at..)?.get(..gic.line_size()));
        let Some(line) = line else { return Ok(None) };
        interrupt_of(kind, line).map(Some).ok_or_else(|| self.bad("interrupts"))
    }

    /// As [`get`](Self::get), where each line begins with its controller. The number of cells of another
    /// controller's lines is not known here, so a line after one of those is not found.
    fn get_extended(
        &self,
        list: &[u8],
        index: usize,
        gic: &ControllerNode,
    ) -> Result<Option<Interrupt>, PlatformError> {
        let bad = || self.bad("interrupts-extended");
        let mut entries = list.chunks(4 + gic.line_size());
        for _ in 0..index {
            let Some(entry) = entries.next() else { return Ok(None) };
            gic.kind_behind(entry.get(..4).and_then(cell)).ok_or_else(bad)?;
        }
        let Some(entry) = entries.next() else { return Ok(None) };
        let (controller, line) = entry.split_at_checked(4).ok_or_else(bad)?;
        let kind = gic.kind_behind(cell(controller)).filter(|_| line.len() == gic.line_size()).ok_or_else(bad)?;
        interrupt_of(kind, line).map(Some).ok_or_else(bad)
    }

    /// The error that there is no interrupt where one is needed.
    pub(super) fn missing(&self) -> PlatformError {
        PlatformError::Missing { node: NodeName::from(self.node), property: "interrupts" }
    }

    fn bad(&self, property: &'static str) -> PlatformError {
        PlatformError::Bad { node: NodeName::from(self.node), property }
    }
}

/// The interrupt that these cells describe; those that the kind has no meaning for are not looked at.
pub(super) fn interrupt_of(kind: LineKind, cells: &[u8]) -> Option<Interrupt> {
    let mut fields = cells.chunks_exact(4).map_while(cell);
    let (first, second) = (fields.next()?, fields.next()?);
    let (intid, flags) = match (kind, first, second) {
        (LineKind::Gic, 0, number @ ..988) => (32 + number, fields.next()?),
        (LineKind::Gic, 1, number @ ..16) => (16 + number, fields.next()?),
        (LineKind::Bcm2836, number @ ..12, _) => (16 + number, 0),
        (LineKind::Bcm2836Shared, 0, number @ ..8) => (32 + number, 0),
        (LineKind::Bcm2836Shared, bank @ 1..3, number @ ..32) => (32 + 32 * bank + number, 0),
        _ => return None,
    };
    // Bits 3:0 as in Linux's irq.h: rising 1, falling 2, high 4, low 8.
    let trigger = if flags & 0b11 != 0 { Trigger::Edge } else { Trigger::Level };
    Some(Interrupt { intid, trigger })
}

#[cfg(test)]
mod tests {
    use super::super::tree_builder::cells;
    use super::{ControllerNode, Interrupt, Interrupts, LineKind, PlatformError, Trigger};

    const GIC: u32 = 7;

    fn gic(interrupt_cells: u32) -> ControllerNode {
        ControllerNode { phandle: Some(GIC), address_cells: 2, interrupt_cells, ..ControllerNode::default() }
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
    fn a_bcm2836s_lines_are_those_of_two_controllers() {
        let controller = ControllerNode::bcm2836(Some(1), Some(2));
        let read = |parent, list: &[u32], extended: Option<&[u32]>| {
            let (list, extended) = (cells(list), extended.map(cells));
            let interrupts = Interrupts { node: "n", parent, list: Some(&list), extended: extended.as_deref() };
            interrupts.get(1, &controller).map(|line| line.map(|line| (line.intid, line.trigger)))
        };
        let level = |intid| Ok(Some((intid, Trigger::Level)));
        assert_eq!(read(Some(1), &[0, 4, 3, 4], None), level(19));
        assert_eq!(read(Some(1), &[0, 4, 11, 1], None), level(27));
        for (bank, number, intid) in [(0, 7, 39), (1, 29, 93), (2, 31, 127)] {
            assert_eq!(read(Some(2), &[0, 0, bank, number], None), level(intid));
        }
        assert_eq!(read(Some(9), &[], Some(&[2, 1, 29, 1, 3, 4])), level(19), "each has its own controller");
        assert_eq!(read(Some(9), &[], Some(&[1, 3, 4, 2, 1, 29])), level(93));
        for (parent, cells) in [(1, [12, 4]), (2, [0, 8]), (2, [1, 32]), (2, [3, 0])] {
            assert_eq!(read(Some(parent), &[&[0, 0][..], &cells].concat(), None), bad("interrupts").map(|_| None));
        }
        assert_eq!(read(Some(3), &[0, 4, 3, 4], None), bad("interrupt-parent").map(|_| None));
    }

    #[test]
    fn numbers_that_the_gic_has_not_are_refused() {
        assert_eq!(read(None, Some(&[0, 988, 4]), None, 0, 3), bad("interrupts"));
        assert_eq!(read(None, Some(&[1, 16, 4]), None, 0, 3), bad("interrupts"));
        assert_eq!(read(None, Some(&[2, 0, 4]), None, 0, 3), bad("interrupts"));
        let edge = super::interrupt_of(LineKind::Gic, &cells(&[0, 74, 1]));
        assert_eq!(edge, Some(Interrupt { intid: 106, trigger: Trigger::Edge }));
    }
}
