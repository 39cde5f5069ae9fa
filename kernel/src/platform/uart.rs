//! The serial port that the tree names as its console, and how its registers are laid out.
//!
//! `/chosen` `stdout-path` names it, or, in a tree without that property, the alias `serial0`. No other UART is used:
//! the line of another may lead to a Bluetooth chip or to an embedded controller. For the same reason a UART with a
//! node below it is not used: that node is what the line leads to (the binding `serial/serial-peripheral-props`).

use granule_arch::addr::{PhysAddr, PhysRange};

use super::error::{NodeName, PlatformError};
use super::interrupts::{ControllerNode, Interrupt, Interrupts};
use super::tree::{Node, cell, strings};

/// A serial port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Uart {
    /// The kind of its registers.
    pub kind: UartKind,
    /// Where they are.
    pub registers: PhysRange,
    /// How they are laid out and accessed, where that is not the same in all of its kind.
    pub layout: UartLayout,
    /// Its interrupt; without one it is polled.
    pub interrupt: Option<Interrupt>,
}

/// Distance and width of the registers of a UART whose kind leaves them open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UartLayout {
    /// The binary logarithm of the bytes from one register to the next: `reg-shift`. At most [`MAX_SHIFT`](Self::MAX_SHIFT).
    pub shift: u8,
    /// `reg-io-width`.
    pub width: RegisterWidth,
}

impl UartLayout {
    /// Registers of all kinds are at most four bytes apart.
    pub const MAX_SHIFT: u8 = 2;
    const PACKED: Self = Self { shift: 0, width: RegisterWidth::Byte };
    const WORDS: Self = Self { shift: 2, width: RegisterWidth::Word };
}

/// Bytes of one access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RegisterWidth {
    /// One.
    Byte,
    /// Two.
    Half,
    /// Four.
    Word,
}

impl RegisterWidth {
    /// As a number.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Byte => 1,
            Self::Half => 2,
            Self::Word => 4,
        }
    }

    fn from_bytes(bytes: u32) -> Option<Self> {
        [Self::Byte, Self::Half, Self::Word].into_iter().find(|width| width.bytes() == u64::from(bytes))
    }
}

/// A family of UARTs with the same registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UartKind {
    /// Arm PrimeCell UART.
    Pl011,
    /// Arm SBSA generic UART: a subset of the PL011, set up by firmware.
    Sbsa,
    /// The 16550A, and those that differ from it by the layout of their registers.
    Ns16550,
    /// Texas Instruments' of OMAP and K3: a 16550 with registers more.
    Omap,
    /// Synopsys DW_apb_uart: a 16550 with an interrupt more.
    DesignWare,
    /// The mini UART of Broadcom's BCM2835: a 16550 of which LSR counts bytes instead of the FIFO.
    BcmMini,
    /// Freescale and NXP i.MX.
    Imx,
    /// NXP LPUART with 32-bit registers, as on i.MX.
    Lpuart,
    /// Amlogic Meson.
    Meson,
    /// Cadence, on Xilinx ZynqMP.
    Cadence,
    /// Samsung Exynos.
    Exynos,
    /// Marvell Armada 3700.
    Armada3700,
    /// Qualcomm GENI.
    Geni,
    /// Qualcomm UARTDM, version 1.4.
    UartDm,
    /// Renesas SCIF and HSCIF.
    Scif,
}

impl UartKind {
    /// Each kind, once.
    pub const ALL: [Self; 15] = [
        Self::Pl011,
        Self::Sbsa,
        Self::Ns16550,
        Self::Omap,
        Self::DesignWare,
        Self::BcmMini,
        Self::Imx,
        Self::Lpuart,
        Self::Meson,
        Self::Cadence,
        Self::Exynos,
        Self::Armada3700,
        Self::Geni,
        Self::UartDm,
        Self::Scif,
    ];

    /// Its name in `earlycon=`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pl011 => "pl011",
            Self::Sbsa => "sbsa",
            Self::Ns16550 => "ns16550",
            Self::Omap => "omap",
            Self::DesignWare => "dw",
            Self::BcmMini => "bcm2835aux",
            Self::Imx => "imx",
            Self::Lpuart => "lpuart",
            Self::Meson => "meson",
            Self::Cadence => "cadence",
            Self::Exynos => "exynos",
            Self::Armada3700 => "armada3700",
            Self::Geni => "geni",
            Self::UartDm => "uartdm",
            Self::Scif => "scif",
        }
    }

    /// Where the last register that is used ends: in bytes from the first, or, where registers have a distance, in
    /// registers.
    const fn end(self) -> u64 {
        match self {
            Self::Pl011 => 0x4c,
            Self::Sbsa => 0x48,
            Self::Ns16550 | Self::BcmMini => 6,
            Self::Omap => 17,
            Self::DesignWare => 0x20,
            Self::Imx => 0xb8,
            Self::Lpuart => 0x30,
            Self::Meson => 0x14,
            Self::Cadence => 0x34,
            Self::Exynos => 0x3c,
            Self::Armada3700 => 0x10,
            Self::Geni => 0xe20,
            Self::UartDm => 0x144,
            Self::Scif => 10,
        }
    }

    /// The layout of a port of this kind of which nothing more is known.
    pub const fn usual_layout(self) -> UartLayout {
        match self {
            Self::Omap | Self::DesignWare | Self::BcmMini => UartLayout::WORDS,
            Self::Scif => UartLayout { shift: 2, width: RegisterWidth::Half },
            Self::Pl011
            | Self::Sbsa
            | Self::Ns16550
            | Self::Imx
            | Self::Lpuart
            | Self::Meson
            | Self::Cadence
            | Self::Exynos
            | Self::Armada3700
            | Self::Geni
            | Self::UartDm => UartLayout::PACKED,
        }
    }

    /// The layout of a port of this kind with `stride`, a number, bytes from one register to the next, which is the width
    /// of accesses as well where the kind leaves that open; `None` where it is none.
    pub fn layout_of_stride(self, stride: &str) -> Option<UartLayout> {
        let (shift, width) = match stride {
            "1" => (0, RegisterWidth::Byte),
            "2" => (1, RegisterWidth::Half),
            "4" => (2, RegisterWidth::Word),
            _ => return None,
        };
        let width = if self == Self::Scif { RegisterWidth::Half } else { width };
        self.has_stride().then_some(UartLayout { shift, width })
    }

    /// Whether registers of this kind have a distance that differs from port to port.
    pub const fn has_stride(self) -> bool {
        matches!(self, Self::Ns16550 | Self::Omap | Self::DesignWare | Self::BcmMini | Self::Scif)
    }
}

impl Uart {
    /// The port of this kind whose registers begin at `start`, without an interrupt; `None` where the addresses wrap, or
    /// its registers are not aligned: a register lies nearer to the next than it is wide, too.
    pub fn at(kind: UartKind, start: PhysAddr, layout: UartLayout) -> Option<Self> {
        if kind.has_stride() && layout.width.bytes() > 1 << layout.shift {
            return None;
        }
        let bytes = Self::bytes(kind, layout);
        let registers =
            PhysRange::from_size(start, bytes).filter(|_| start.is_aligned(Self::alignment(kind, layout)))?;
        Some(Self { kind, registers, layout, interrupt: None })
    }

    /// Bytes from the first register to the end of the last one that is used.
    pub const fn used_bytes(&self) -> u64 {
        Self::bytes(self.kind, self.layout)
    }

    const fn bytes(kind: UartKind, layout: UartLayout) -> u64 {
        let end = kind.end();
        if kind.has_stride() { end << layout.shift } else { end }
    }

    const fn alignment(kind: UartKind, layout: UartLayout) -> u64 {
        if kind.has_stride() { layout.width.bytes() } else { 4 }
    }
}

/// Their names in `compatible`, and the layout where the tree gives none: the bindings of each.
static COMPATIBLE: [(&str, UartKind, UartLayout); 24] = [
    ("arm,pl011", UartKind::Pl011, UartLayout::PACKED),
    ("arm,sbsa-uart", UartKind::Sbsa, UartLayout::PACKED),
    ("snps,dw-apb-uart", UartKind::DesignWare, UartLayout::PACKED),
    ("mediatek,mt6577-uart", UartKind::Ns16550, UartLayout::WORDS),
    ("ti,am654-uart", UartKind::Omap, UartLayout::WORDS),
    ("nvidia,tegra20-uart", UartKind::Ns16550, UartLayout::WORDS),
    ("ns16550a", UartKind::Ns16550, UartLayout::PACKED),
    ("ns16550", UartKind::Ns16550, UartLayout::PACKED),
    ("nuvoton,npcm750-uart", UartKind::Ns16550, UartLayout::PACKED),
    ("brcm,bcm2835-aux-uart", UartKind::BcmMini, UartLayout::WORDS),
    ("fsl,imx6q-uart", UartKind::Imx, UartLayout::PACKED),
    ("fsl,imx7ulp-lpuart", UartKind::Lpuart, UartLayout::PACKED),
    ("fsl,imx8qxp-lpuart", UartKind::Lpuart, UartLayout::PACKED),
    ("amlogic,meson-ao-uart", UartKind::Meson, UartLayout::PACKED),
    ("amlogic,meson-s4-uart", UartKind::Meson, UartLayout::PACKED),
    ("cdns,uart-r1p12", UartKind::Cadence, UartLayout::PACKED),
    ("samsung,exynos4210-uart", UartKind::Exynos, UartLayout::PACKED),
    ("samsung,exynos5433-uart", UartKind::Exynos, UartLayout::PACKED),
    ("samsung,exynos850-uart", UartKind::Exynos, UartLayout::PACKED),
    ("samsung,exynos8895-uart", UartKind::Exynos, UartLayout::PACKED),
    ("google,gs101-uart", UartKind::Exynos, UartLayout { shift: 0, width: RegisterWidth::Word }),
    ("marvell,armada-3700-uart", UartKind::Armada3700, UartLayout::PACKED),
    ("qcom,geni-debug-uart", UartKind::Geni, UartLayout::PACKED),
    ("qcom,msm-uartdm-v1.4", UartKind::UartDm, UartLayout::PACKED),
];

/// SCIFs, whose registers are closer together in the RZ series.
static COMPATIBLE_SCIF: [(&str, u8); 4] =
    [("renesas,scif", 2), ("renesas,hscif", 2), ("renesas,scif-r9a07g044", 1), ("renesas,scif-r9a09g057", 1)];

/// The kind of what `compatible` lists; the first name that is known counts.
fn kind_of(node: &Node<'_, '_>) -> Option<(UartKind, UartLayout)> {
    node.compatible().find_map(|name| {
        let known = COMPATIBLE.iter().find(|(known, ..)| *known == name).map(|&(_, kind, layout)| (kind, layout));
        known.or_else(|| {
            let (_, shift) = COMPATIBLE_SCIF.iter().find(|(known, _)| *known == name)?;
            Some((UartKind::Scif, UartLayout { shift: *shift, width: RegisterWidth::Half }))
        })
    })
}

/// A serial port, but for its interrupt.
#[derive(Clone, Copy)]
pub(super) struct UartNode<'t> {
    uart: Uart,
    interrupts: Interrupts<'t>,
    /// One interrupt is all that the port raises.
    has_one_line: bool,
}

impl<'t> UartNode<'t> {
    /// The port that `node`, the console's, describes.
    ///
    /// # Errors
    /// There is no driver for it, another device is on its line, or `reg`, `reg-shift` or `reg-io-width` makes no sense.
    #[inline(never)]
    pub(super) fn read(node: &Node<'t, '_>) -> Result<Self, PlatformError> {
        let Some((kind, usual)) = kind_of(node) else {
            let compatible = NodeName::from(node.compatible().next().unwrap_or("device without `compatible`"));
            return Err(PlatformError::NoDriver { compatible });
        };
        let mut attached = None;
        node.each_child(|child| {
            attached = attached.or(child.is_available().then_some(child.name()));
            Ok(())
        })?;
        if let Some(device) = attached.map(NodeName::from) {
            return Err(PlatformError::LineInUse { device });
        }
        let number = |name| match node.property(name) {
            Some(value) => cell(value).map(Some).ok_or_else(|| node.bad(name)),
            None => Ok(None),
        };
        let mut layout = usual;
        if kind.has_stride()
            && let Some(shift) = number("reg-shift")?
        {
            let shift = u8::try_from(shift).ok().filter(|&shift| shift <= UartLayout::MAX_SHIFT);
            layout.shift = shift.ok_or_else(|| node.bad("reg-shift"))?;
        }
        if let Some(bytes) = number("reg-io-width")?
            && kind != UartKind::Scif
        {
            let width = RegisterWidth::from_bytes(bytes);
            layout.width = width.ok_or_else(|| node.bad("reg-io-width"))?;
        }
        let registers = node.first_registers()?;
        let uart = Uart::at(kind, registers.start(), layout).filter(|uart| uart.registers.size() <= registers.size());
        let uart = uart.ok_or_else(|| node.bad("reg"))?;
        let named = node.properties.interrupt_names.map_or(0, |names| strings(names).count());
        let has_one_line = kind != UartKind::Scif || named <= 1;
        Ok(Self { uart: Uart { registers, ..uart }, interrupts: node.interrupts(), has_one_line })
    }

    /// The port with its interrupt. A SCIF of the RZ series has a line for each event, and is polled.
    ///
    /// # Errors
    /// Those of [`Interrupts::get`].
    pub(super) fn resolve(self, gic: &ControllerNode) -> (Uart, Result<Option<Interrupt>, PlatformError>) {
        let interrupt = if self.has_one_line { self.interrupts.get(0, gic) } else { Ok(None) };
        (self.uart, interrupt)
    }
}

/// Where `/chosen` `stdout-path` leads: without the options after the colon, an alias resolved. Without that property,
/// where the alias `serial0` leads.
pub(super) fn console_path<'t>(chosen: Option<&Node<'t, '_>>, aliases: Option<&Node<'t, '_>>) -> Option<&'t str> {
    let named = |chosen: &Node<'t, '_>| chosen.string("stdout-path").or_else(|| chosen.string("linux,stdout-path"));
    let Some(value) = chosen.and_then(named) else { return aliases?.string("serial0") };
    let path = value.split(':').next()?;
    if path.starts_with('/') { Some(path) } else { aliases?.string(path) }
}
