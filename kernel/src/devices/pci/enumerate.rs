//! Finds the functions, and gives buses and base address registers what no firmware has given them.
//!
//! The walk takes back first, for a whole bus before it goes behind any of its bridges, all that firmware left ([`wake`],
//! [`quiet`]): a function may sleep, or be held in reset with all of its bus; two bridges may have the same bus behind
//! them; and a function may decode, send or translate by itself.
//!
//! One walk, depth first. A bridge gets the next bus number when it is met, and its windows are what its devices have
//! taken when the walk is back from behind it: addresses are handed out in ascending order, from a multiple of a mebibyte
//! on where a bridge begins to one where it ends. So nothing need be known before (PCI-to-PCI Bridge Architecture
//! Specification 1.2, 3.2.5: windows of memory begin and end at mebibytes).
//!
//! Where the host's windows are not known, buses keep the numbers and functions the addresses that firmware gave them.
//! A bus whose number is not higher than all before it is left out, so the walk ends; so is a bridge whose buses are
//! not all its parent's, or are another's too ([`Walk::refuse_bridges`]). Further root buses begin, as far as is known,
//! where a range of requester IDs does.
//!
//! Memory comes from the host's window below 4 GiB. Registers that do not fit there and may lie anywhere come from the
//! window above; bridges forward those by their prefetchable windows, which no other memory behind them uses.

use alloc::vec::Vec;
use core::ops::RangeInclusive;
use core::sync::atomic::AtomicU32;
use core::time::Duration;

use granule_arch::addr::{PAGE, PhysAddr, PhysRange};
use pci_types::PciAddress;
use pci_types::capability::PciCapability;
use spin::Once;

use super::bar::{self, Bar, BarKind};
use super::config::{self, ConfigSpace, capabilities, extended, extended_capabilities};
use super::{Buses, Class, Function, Host, Id, PciError, acs, interrupt};
use crate::mm::OutOfMemory;
use crate::platform::{IdMap, Pcie, Window, WindowKind};
use crate::sync::IrqLock;

/// Bridges behind one another. More is not a real machine but a device with invalid registers, and the stack is finite.
const MAX_DEPTH: u32 = 8;
/// A bridge's windows are whole mebibytes.
const MEBIBYTE: u64 = 1 << 20;
/// The upper limit of the low window's addresses on the bus.
const LOW_END: u64 = 1 << 32;

/// Registers of configuration space (7.5.1).
pub(super) const COMMAND: u16 = 0x04;
const CLASS: u16 = 0x08;
const HEADER: u16 = 0x0c;
const BUSES: u16 = 0x18;
const IO_WINDOW: u16 = 0x1c;
pub(super) const MEMORY_WINDOW: u16 = 0x20;
pub(super) const PREFETCHABLE_WINDOW: u16 = 0x24;
pub(super) const PREFETCHABLE_BASE_UPPER: u16 = 0x28;
pub(super) const PREFETCHABLE_LIMIT_UPPER: u16 = 0x2c;
const IO_WINDOW_UPPER: u16 = 0x30;
const INTERRUPT: u16 = 0x3c;
const BRIDGE_CONTROL: u16 = 0x3e;
/// The expansion ROM's base address register; its lowest bit has it decoded.
const ROM: u16 = 0x30;
const ROM_OF_BRIDGE: u16 = 0x38;

/// Bits of COMMAND.
const MEMORY: u16 = 1 << 1;
pub(super) const BUS_MASTER: u16 = 1 << 2;
pub(super) const NO_PIN: u16 = 1 << 10;
/// Of BRIDGE_CONTROL: all that is behind it is held in reset.
const SECONDARY_BUS_RESET: u32 = 1 << 6;
/// Of a function's power management, from its capability's begin: control and status (7.5.2.2), whose highest bit says that
/// it has asked for power, and is cleared by a one.
const POWER: u16 = 4;
const POWER_STATE: u32 = 0b11;
const HAS_ASKED: u16 = 1 << 15;
/// The kind of header: what follows the first 16 bytes. A bit is set where there are more functions than number 0.
const ENDPOINT: u8 = 0;
const BRIDGE: u8 = 1;
const SEVERAL_FUNCTIONS: u8 = 0x80;
/// A window that ends before it begins: it forwards nothing.
const CLOSED: u32 = 0x0000_fff0;

/// Addresses that are still free in a window of the host, from `next` on.
#[derive(Clone, Copy, Debug)]
struct FreeWindow {
    window: Window,
    next: u64,
    end: u64,
}

impl FreeWindow {
    /// The first of the windows that is `wanted`.
    fn of(windows: &[Window], wanted: impl Fn(&Window) -> bool) -> Option<Self> {
        let window = *windows.iter().find(|window| wanted(window))?;
        Some(Self { window, next: window.bus, end: window.bus + window.cpu.size() })
    }

    /// The next free addresses, on the bus, at a multiple of their size, a power of two. No page is shared by two, so
    /// that mapping the registers of one does not show those of another.
    fn take(&mut self, size: u64) -> Option<u64> {
        let size = size.max(PAGE);
        let start = self.next.checked_next_multiple_of(size)?;
        // Zero would mean that the register is not set.
        let start = if start == 0 { size } else { start };
        let end = start.checked_add(size).filter(|end| *end <= self.end)?;
        self.next = end;
        Some(start)
    }

    /// Continues at a multiple of a mebibyte; `None` where that is beyond the window.
    fn align(&mut self) -> Option<u64> {
        let next = self.next.checked_next_multiple_of(MEBIBYTE).filter(|next| *next <= self.end)?;
        self.next = next;
        Some(next)
    }

    /// These addresses of the bus as the CPU has them.
    fn cpu(&self, bus: u64, size: u64) -> Option<PhysRange> {
        let start = self.window.cpu.start().checked_add(bus.checked_sub(self.window.bus)?)?;
        PhysRange::from_size(start, size)
    }
}

/// A bus as the walk sees it.
struct PciBus {
    number: u8,
    /// The last bus that may be behind it.
    subordinate: u8,
    depth: u32,
    /// Only device 0 can be there: what is behind a port of PCI Express is a link.
    is_link: bool,
    /// The requester ID of its functions, if they cannot carry their own.
    alias: Option<u16>,
    /// The device of the host's own bus that it is behind; and by how much pins were turned on the way there.
    root: Option<(u16, u8)>,
    /// The host's windows below and above 4 GiB reach it.
    has_low: bool,
    has_high: bool,
    /// The first port on the way here that may send what comes from behind it to a peer, past the host.
    leak: Option<PciAddress>,
}

impl PciBus {
    /// A bus of the host's own, but for its number.
    const ROOT: Self = Self {
        number: 0,
        subordinate: 0,
        depth: 0,
        is_link: false,
        alias: None,
        root: None,
        has_low: true,
        has_high: false,
        leak: None,
    };
}

/// The walk.
pub(super) struct Walk<'m> {
    host: &'static Host,
    /// Makes the functions of a bus readable; false where that cannot be.
    map: &'m mut dyn FnMut(u8) -> bool,
    functions: Vec<Function>,
    last_bus: u8,
    low: Option<FreeWindow>,
    high: Option<FreeWindow>,
}

impl<'m> Walk<'m> {
    pub(super) fn new(host: &'static Host, map: &'m mut dyn FnMut(u8) -> bool) -> Self {
        let windows = host.description.windows.as_deref().unwrap_or_default();
        // Anything may lie below, so reads must have their effects there.
        let low = FreeWindow::of(windows, |window| window.kind == WindowKind::Memory32 && !window.prefetchable);
        let high = FreeWindow::of(windows, |window| window.kind == WindowKind::Memory64);
        Self { host, map, functions: Vec::new(), last_bus: host.description.buses.0, low, high }
    }

    /// Finds everything; nothing, where the first bus cannot be read.
    ///
    /// # Errors
    /// There is no memory for the list.
    pub(super) fn run(mut self) -> Result<Vec<Function>, OutOfMemory> {
        let number = self.last_bus;
        if !(self.map)(number) {
            return Ok(self.functions);
        }
        self.root_bus(number)?;
        if self.keeps() {
            let Pcie { streams, devices, buses, .. } = &self.host.description;
            while let Some(number) = next_root(streams, devices, self.last_bus).filter(|number| *number <= buses.1) {
                self.last_bus = number;
                if (self.map)(number) {
                    self.root_bus(number)?;
                }
            }
        }
        Ok(self.functions)
    }

    fn root_bus(&mut self, number: u8) -> Result<(), OutOfMemory> {
        let (subordinate, has_high) = (self.host.description.buses.1, self.high.is_some());
        self.bus(&PciBus { number, subordinate, has_high, ..PciBus::ROOT })
    }

    /// Whether numbers and addresses stay as firmware left them.
    fn keeps(&self) -> bool {
        self.host.description.windows.is_none()
    }

    fn config(&self) -> &'static dyn ConfigSpace {
        self.host.config
    }

    // The calls that record a function, not those that recurse, have the large frames (`inline(never)`): the walk
    // runs on a boot stack.
    fn bus(&mut self, bus: &PciBus) -> Result<(), OutOfMemory> {
        let config = self.config();
        let mut time = Duration::ZERO;
        each_function(config, bus, &mut |address, header, _| {
            time = time.max(wake(config, address, header));
            Ok(())
        })?;
        if !time.is_zero() {
            config.rest(time);
        }
        let keeps = self.keeps();
        each_function(config, bus, &mut |address, header, _| {
            quiet(config, address, header);
            if header == BRIDGE && !keeps {
                close(config, address);
            }
            Ok(())
        })?;
        if keeps {
            self.refuse_bridges(bus)?;
        }
        each_function(config, bus, &mut |address, header, several| {
            let index = self.function(bus, address, header, several)?;
            if header == BRIDGE {
                let buses = self.bridge(bus, address, several)?;
                if let Some(function) = self.functions.get_mut(index) {
                    function.bridge = buses;
                }
            }
            Ok(())
        })
    }

    /// Closes each bridge of a bus that firmware has left buses which are not behind this one, which a neighbour has
    /// too, or which answer without it, as another root's do: functions there would be taken for ones
    /// behind the bridge.
    #[inline(never)]
    fn refuse_bridges(&mut self, bus: &PciBus) -> Result<(), OutOfMemory> {
        let config = self.config();
        // Bits of bus numbers that one bridge has, and that several have.
        let (mut once, mut twice) = ([0_u64; 4], [0_u64; 4]);
        each_function(config, bus, &mut |address, header, _| {
            let left = left_buses(config, bus, address).filter(|_| header == BRIDGE);
            for number in left.into_iter().flatten() {
                let bit = 1 << (number % 64);
                if let (Some(once), Some(twice)) = (word_mut(&mut once, number), word_mut(&mut twice, number)) {
                    *twice |= *once & bit;
                    *once |= bit;
                }
            }
            Ok(())
        })?;
        each_function(config, bus, &mut |address, header, _| {
            if header == BRIDGE {
                let own = left_buses(config, bus, address);
                let is_own = own.is_some_and(|mut own| {
                    !own.any(|number| word_mut(&mut twice, number).is_none_or(|word| *word >> (number % 64) & 1 != 0))
                });
                self.keep_buses(bus, address, is_own)?;
            }
            Ok(())
        })
    }

    /// Leaves a bridge the buses that are its own alone, and none of which is another root.
    fn keep_buses(&mut self, bus: &PciBus, address: PciAddress, is_own: bool) -> Result<(), OutOfMemory> {
        let config = self.config();
        let left = config.read32(address, BUSES);
        let own = left_buses(config, bus, address).filter(|_| is_own);
        // Without the bridge what is behind it does not answer.
        config.write32(address, BUSES, 0);
        // Those behind a bridge of a bridge have been looked at.
        let is_own = match own {
            Some(own) => bus.depth > 0 || !self.has_other_root(&own)?,
            None => false,
        };
        if is_own {
            config.write32(address, BUSES, left);
        } else if left & 0x00ff_ff00 != 0 {
            crate::log::warn!("PCI {address}: firmware left it buses that are not its own alone: {left:#010x}");
        }
        Ok(())
    }

    /// Whether a range of requester IDs begins with one of these buses, and a function answers there.
    fn has_other_root(&mut self, buses: &RangeInclusive<u8>) -> Result<bool, OutOfMemory> {
        let (config, Pcie { streams, devices, .. }) = (self.config(), &self.host.description);
        let (mut last, mut answers) = (buses.start().saturating_sub(1), false);
        while let Some(number) = next_root(streams, devices, last).filter(|number| number <= buses.end()) {
            if (self.map)(number) {
                each_function(config, &PciBus { number, ..PciBus::ROOT }, &mut |_, _, _| {
                    answers = true;
                    Ok(())
                })?;
            }
            last = number;
        }
        Ok(answers)
    }

    /// Puts a function on the list; returns its place there.
    #[inline(never)]
    fn function(&mut self, bus: &PciBus, address: PciAddress, header: u8, several: bool) -> Result<usize, OutOfMemory> {
        let config = self.config();
        let (id, class) = (config.read32(address, 0), config.read32(address, CLASS));
        let id = Id { vendor: id as u16, device: (id >> 16) as u16 };
        let [_, interface, sub, base] = class.to_le_bytes();
        let registers = match header {
            ENDPOINT => bar::COUNT,
            BRIDGE => 2,
            _ => {
                crate::log::warn!(
                    "PCI {address} ({id}) has a header of the unknown kind {header:#x}, and is left alone"
                );
                0
            }
        };
        self.functions.try_reserve(1).map_err(|_| OutOfMemory)?;
        let bars = self.assign(bus, address, registers);
        self.functions.push(Function {
            host: self.host,
            address,
            id,
            class: Class { base, sub, interface },
            requester: bus.alias.unwrap_or(requester_id(address)),
            leak: bus.leak,
            reaches_siblings: several && !acs::enable(config, address),
            pin: self.pin(bus, address),
            bridge: None,
            bars,
            mapped: [const { Once::new() }; bar::COUNT],
            owner: IrqLock::new(None),
            holds: AtomicU32::new(0),
        });
        Ok(self.functions.len() - 1)
    }

    /// Gives a function's base address registers addresses, and has it decode them if all have some.
    fn assign(&mut self, bus: &PciBus, address: PciAddress, count: usize) -> [Option<Bar>; bar::COUNT] {
        let mut bars = [None; bar::COUNT];
        let (mut index, mut has_all) = (0, true);
        while index < count {
            let left = self.keeps().then(|| bar::address(self.config(), address, index));
            let Some(mut bar) = bar::size(self.config(), address, index, count) else {
                index += 1;
                continue;
            };
            if bar.kind != BarKind::Io {
                bar.range = match left {
                    Some(left) => self.keep(address, index, bar, left, &bars),
                    None => self.place(bus, address, index, bar),
                };
                if bar.range.is_none() {
                    has_all = false;
                    let refused = PciError::NoRoom { function: address, index, size: bar.size };
                    match left {
                        Some(left) => crate::log::warn!("PCI {address}: firmware left {left:#x} in register {index}"),
                        None => crate::log::warn!("PCI {refused}"),
                    }
                }
            }
            if let Some(slot) = bars.get_mut(index) {
                *slot = Some(bar);
            }
            index += bar.registers();
        }
        // A register without an address would decode zero; and what an unknown header would decode is not known.
        if has_all && count > 0 {
            self.config().write16(address, COMMAND, NO_PIN | MEMORY);
        }
        bars
    }

    /// Takes addresses for a register and writes them there. `None`: there are none, or it does not keep them.
    fn place(&mut self, bus: &PciBus, address: PciAddress, index: usize, bar: Bar) -> Option<PhysRange> {
        let BarKind::Memory { wide, prefetchable } = bar.kind else { return None };
        let take = |free: &mut Option<FreeWindow>| {
            let free = free.as_mut()?;
            Some((free.take(bar.size)?, *free))
        };
        // The host may read ahead above, if its window is prefetchable, and a conventional bridge in its prefetchable
        // window.
        let reads_ahead = bus.alias.is_some() || self.high.is_some_and(|free| free.window.prefetchable);
        let high = wide && bus.has_high && (prefetchable || !reads_ahead);
        let low = if bus.has_low { take(&mut self.low) } else { None };
        let (start, free) = low.or_else(|| if high { take(&mut self.high) } else { None })?;
        let kept = bar::set_address(self.config(), address, index, wide, start);
        free.cpu(start, bar.size).filter(|_| kept == start)
    }

    /// Writes the address back that firmware had `left` in a register. `None`: it had none, the register does not keep it,
    /// or the address is an earlier one's, of this function or of another, or is memory or another device's.
    fn keep(&self, address: PciAddress, index: usize, bar: Bar, left: u64, own: &[Option<Bar>]) -> Option<PhysRange> {
        let BarKind::Memory { wide, .. } = bar.kind else { return None };
        let start = if wide { left } else { left & u64::from(u32::MAX) };
        let range = PhysRange::from_size(PhysAddr(start), bar.size);
        let range = range.filter(|range| start != 0 && range.start().is_aligned(bar.size))?;
        let others = self.functions.iter().flat_map(|function| &function.bars).chain(own).flatten();
        let mut others = others.filter_map(|bar| bar.range).chain(self.host.taken.iter().copied());
        if others.any(|other| other.overlaps(range)) {
            return None;
        }
        (bar::set_address(self.config(), address, index, wide, start) == start).then_some(range)
    }

    /// Where a function's pin leads on the host's own bus. Each bridge on the way turns the pins by its device number,
    /// so that not all first pins meet (PCI-to-PCI Bridge Architecture Specification, 9.1).
    fn pin(&self, bus: &PciBus, address: PciAddress) -> Option<(u16, u8)> {
        let pin = (self.config().read32(address, INTERRUPT) >> 8) as u8;
        if !(1..=4).contains(&pin) {
            return None;
        }
        Some(match bus.root {
            None => (requester_id(address) & !7, pin),
            Some((root, turned)) => (root, (pin - 1 + address.device() + turned) % 4 + 1),
        })
    }

    /// Walks the bus behind a bridge, and opens the bridge for it.
    fn bridge(&mut self, bus: &PciBus, address: PciAddress, several: bool) -> Result<Option<Buses>, OutOfMemory> {
        let config = self.config();
        let left = self.keeps().then(|| left_buses(config, bus, address).unwrap_or(0..=0));
        let Some(number) = self.next_bus(bus.depth, left.as_ref().map(|left| *left.start())) else {
            crate::log::warn!("PCI {address}: no bus number is left for what is behind it");
            return Ok(None);
        };
        // While the walk is behind it, it forwards everything that the walk may ask for.
        let numbers = u32::from(number) << 8 | u32::from(bus.number);
        if left.is_none() {
            config.write32(address, BUSES, u32::from(self.host.description.buses.1) << 16 | numbers);
        }
        let kind = port_type(config, address);
        let high_base = config.read32(address, PREFETCHABLE_WINDOW);
        let (low, high) =
            (self.low.as_mut().and_then(FreeWindow::align), self.high.as_mut().and_then(FreeWindow::align));
        let behind = PciBus {
            number,
            subordinate: left.as_ref().map_or(bus.subordinate, |left| *left.end()),
            depth: bus.depth + 1,
            is_link: matches!(kind, PortKind::Downstream),
            alias: match kind {
                PortKind::Downstream | PortKind::Upstream => bus.alias,
                // It speaks for its devices with the number of the bus behind it, or with its own.
                PortKind::ToConventional => bus.alias.or(Some(u16::from(number) << 8)),
                PortKind::Conventional => bus.alias.or(Some(requester_id(address))),
            },
            root: Some(match bus.root {
                None => (requester_id(address) & !7, 0),
                Some((root, turned)) => (root, (turned + address.device()) % 4),
            }),
            // The lowest bits are set where the window can lie above 4 GiB.
            has_low: bus.has_low && low.is_some(),
            has_high: bus.has_high && high.is_some() && high_base & 0xf == 1,
            leak: bus.leak.or((!self.isolates(address, &kind, several)).then_some(address)),
        };
        self.bus(&behind)?;
        match left {
            // Room for more devices, which firmware has left.
            Some(left) => self.last_bus = self.last_bus.max(*left.end()),
            None => self.open(address, low.filter(|_| behind.has_low), high.filter(|_| behind.has_high)),
        }
        let buses = Buses { secondary: number, subordinate: self.last_bus };
        config.write32(address, BUSES, u32::from(buses.subordinate) << 16 | numbers);
        // It must forward its devices' memory accesses; each device's own bus master bit decides whether it makes any.
        config.write16(address, COMMAND, NO_PIN | MEMORY | BUS_MASTER);
        Ok(Some(buses))
    }

    /// Whether a bridge sends accesses from behind it to the host, and never to a peer. Functions behind a conventional
    /// bus are one to the host in any case: see [`Function::isolation`].
    fn isolates(&self, address: PciAddress, kind: &PortKind, several: bool) -> bool {
        match kind {
            PortKind::Downstream => acs::enable(self.config(), address),
            PortKind::Upstream => !several || acs::enable(self.config(), address),
            PortKind::ToConventional | PortKind::Conventional => true,
        }
    }

    /// The number of the next bus, where firmware has `left` one that.
    fn next_bus(&mut self, depth: u32, left: Option<u8>) -> Option<u8> {
        let least = self.last_bus.checked_add(1)?;
        let next = left.unwrap_or(least);
        if !(least..=self.host.description.buses.1).contains(&next) {
            return None;
        }
        if depth >= MAX_DEPTH || !(self.map)(next) {
            return None;
        }
        self.last_bus = next;
        Some(next)
    }

    /// Makes a bridge forward what its devices have taken since the windows were at `low` and `high`.
    fn open(&mut self, address: PciAddress, low: Option<u64>, high: Option<u64>) {
        let config = self.config();
        let used = |free: &mut Option<FreeWindow>, start: Option<u64>| {
            let free = free.as_mut()?;
            let start = start.filter(|start| free.next > *start)?;
            // After the end of the host's window nothing is handed out, so a bridge may forward it as well.
            let end = free.align().unwrap_or_else(|| {
                free.next = free.end;
                free.end
            });
            Some((start, (end - 1) & !(MEBIBYTE - 1)))
        };
        let window = |(base, last): (u64, u64)| (last as u32 & 0xfff0_0000) | (base >> 16) as u32 & 0xfff0;
        if let Some(range) = used(&mut self.low, low) {
            debug_assert!(range.1 < LOW_END);
            config.write32(address, MEMORY_WINDOW, window(range));
        }
        if let Some(range) = used(&mut self.high, high) {
            config.write32(address, PREFETCHABLE_BASE_UPPER, (range.0 >> 32) as u32);
            config.write32(address, PREFETCHABLE_LIMIT_UPPER, (range.1 >> 32) as u32);
            config.write32(address, PREFETCHABLE_WINDOW, window(range));
        }
    }
}

/// The work on each function of a bus: its address, its header's kind, whether its device may have several.
type Each<'e> = dyn FnMut(PciAddress, u8, bool) -> Result<(), OutOfMemory> + 'e;

/// Calls `each` for the functions of a bus that answer.
fn each_function(config: &dyn ConfigSpace, bus: &PciBus, each: &mut Each<'_>) -> Result<(), OutOfMemory> {
    let devices = if bus.is_link { 1 } else { 32 };
    for device in 0..devices {
        let mut several = false;
        for function in 0..8 {
            let address = PciAddress::new(0, bus.number, device, function);
            // No vendor has that number: it is what a read brings that no function answers. Nor zero.
            if !matches!(config.read32(address, 0) as u16, 0 | 0xffff) {
                let header = (config.read32(address, HEADER) >> 16) as u8;
                several |= function == 0 && header & SEVERAL_FUNCTIONS != 0;
                each(address, header & !SEVERAL_FUNCTIONS, several)?;
            }
            if !several {
                break;
            }
        }
    }
    Ok(())
}

/// Has a function leave the state of little power, and a bridge the reset of its bus, that firmware left them in. The time
/// until it answers, or what is behind it (PCI Express Base Specification 5.0, 5.9 and 6.6.1).
#[inline(never)]
fn wake(config: &dyn ConfigSpace, address: PciAddress, header: u8) -> Duration {
    let mut time = Duration::ZERO;
    if header == BRIDGE {
        if config.read32(address, INTERRUPT) >> 16 & SECONDARY_BUS_RESET != 0 {
            time = Duration::from_millis(100);
        }
        // It passes on no accesses of VGA, and no errors of its bus.
        config.write16(address, BRIDGE_CONTROL, 0);
    }
    let power = |found| if let PciCapability::PowerManagement(at) = found { Some(at.offset + POWER) } else { None };
    if let Some(power) = capabilities(config, address).find_map(power) {
        if config.read32(address, power) & POWER_STATE != 0 {
            time = time.max(Duration::from_millis(10));
        }
        config.write16(address, power, HAS_ASKED);
    }
    time
}

/// Takes back what firmware may have given a function: it decodes, masters and interrupts nothing, sends no messages,
/// translates nothing by itself, has no virtual functions.
#[inline(never)]
fn quiet(config: &dyn ConfigSpace, address: PciAddress, header: u8) {
    config.write16(address, COMMAND, NO_PIN);
    let rom = match header {
        ENDPOINT => Some(ROM),
        BRIDGE => Some(ROM_OF_BRIDGE),
        _ => None,
    };
    if let Some(rom) = rom {
        config.write32(address, rom, 0);
    }
    interrupt::stop_messages(config, address);
    for (identifier, offset) in extended_capabilities(config, address) {
        let (control, on) = match identifier {
            extended::ATS => (6, 1 << 15),
            extended::PRI => (4, 1 << 0),
            extended::PASID => (6, 1 << 0),
            // VF enable, and their memory.
            extended::SR_IOV => (8, 1 << 0 | 1 << 3),
            _ => continue,
        };
        config::clear_bits(config, address, offset + control, on);
    }
}

/// The word of a bus number's bit.
fn word_mut(words: &mut [u64; 4], number: u8) -> Option<&mut u64> {
    words.get_mut(usize::from(number / 64))
}

/// The buses that firmware has left a bridge of this bus; `None` where they are not all behind the bus.
fn left_buses(config: &dyn ConfigSpace, bus: &PciBus, address: PciAddress) -> Option<RangeInclusive<u8>> {
    let [_, secondary, subordinate, _] = config.read32(address, BUSES).to_le_bytes();
    let is_behind = bus.number < secondary && secondary <= subordinate && subordinate <= bus.subordinate;
    is_behind.then_some(secondary..=subordinate)
}

/// The lowest bus above `last` that a range of requester IDs begins with.
fn next_root(streams: &IdMap, devices: &IdMap, last: u8) -> Option<u8> {
    let buses = streams.firsts().chain(devices.firsts()).filter_map(|first| u8::try_from(first >> 8).ok());
    buses.filter(|bus| *bus > last).min()
}

/// Makes a bridge forward nothing.
fn close(config: &dyn ConfigSpace, address: PciAddress) {
    config.write32(address, BUSES, 0);
    // The upper half are status bits, which a one clears.
    config.write16(address, IO_WINDOW, 0x00f0);
    config.write32(address, IO_WINDOW_UPPER, 0);
    config.write32(address, MEMORY_WINDOW, CLOSED);
    config.write32(address, PREFETCHABLE_WINDOW, CLOSED);
    config.write32(address, PREFETCHABLE_BASE_UPPER, !0);
    config.write32(address, PREFETCHABLE_LIMIT_UPPER, 0);
}

/// Bus, device and function in 16 bits.
fn requester_id(address: PciAddress) -> u16 {
    u16::from(address.bus()) << 8 | u16::from(address.device()) << 3 | u16::from(address.function())
}

/// The kind of a bridge, by the buses that it connects.
enum PortKind {
    /// From a root complex or a switch to a link.
    Downstream,
    /// Into a switch.
    Upstream,
    /// From PCI Express to a conventional bus.
    ToConventional,
    /// From one conventional bus to another.
    Conventional,
}

/// By the PCI Express capability, bits 7:4 of its second half (7.5.3.2).
fn port_type(config: &'static dyn ConfigSpace, address: PciAddress) -> PortKind {
    let express = capabilities(config, address)
        .find_map(|found| if let PciCapability::PciExpress(at) = found { Some(at.offset) } else { None });
    match express.map(|offset| config.read32(address, offset) >> 20 & 0xf) {
        Some(4 | 6 | 8) => PortKind::Downstream,
        Some(5) => PortKind::Upstream,
        Some(7) => PortKind::ToConventional,
        _ => PortKind::Conventional,
    }
}
