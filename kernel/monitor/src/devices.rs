//! Commands about devices: what is on PCI Express, and virtio devices that are not.

use granule_arch::addr::PhysRange;
use granule_pgtable::Size;

use super::accounts::{kernel, plural};
use super::parse::Args;
use super::{Command, Failure, Session, no_keywords};
use granule::devices::pci::capability::PciCapability;
use granule::devices::pci::{self, BarKind, Class, Function};
use granule::devices::virtio::mmio::{self, Node};

pub(super) const COMMANDS: &[Command] = &[Command {
    name: "lspci",
    words: "",
    help: "PCI Express functions, registers, capabilities; virtio devices",
    run: lspci,
    complete: no_keywords,
}];

fn lspci<'a>(session: &mut Session<'_>, args: Args<'a>) -> Result<(), Failure<'a>> {
    args.finish()?;
    if kernel()?.platform.pcie.is_none() {
        writeln!(session, "this machine has no PCI Express with its configuration space in memory");
    }
    for function in pci::functions() {
        show(session, function);
    }
    mmio::nodes().iter().for_each(|node| show_node(session, node));
    Ok(())
}

fn show_node(session: &mut Session<'_>, node: &Node) {
    let place = node.place();
    write!(session, "{node} {}", node.id());
    if let Some(stream) = place.stream {
        write!(session, ", StreamID {:#x}", stream.id);
    }
    match place.interrupt {
        Some(line) => write!(session, ", interrupt {}", line.intid),
        None => write!(session, ", polled"),
    }
    show_owner(session, node.owner());
}

fn show_owner(session: &mut Session<'_>, owner: Option<&str>) {
    match owner {
        Some(owner) => writeln!(session, ", in use by {owner}"),
        None => writeln!(session),
    }
}

fn show(session: &mut Session<'_>, function: &Function) {
    let Class { base, sub, interface } = function.class();
    write!(session, "{} {} class {base:02x}.{sub:02x}.{interface:02x}", function.address(), function.id());
    write!(session, " {}", kind(function.class()));
    if let Some(stream) = function.stream_id() {
        write!(session, ", StreamID {:#x}", stream.id);
    }
    if let Some(device) = function.msi_device_id() {
        write!(session, ", DeviceID {device:#x}");
    }
    if let Some(line) = function.line() {
        write!(session, ", pin to interrupt {}", line.intid);
    }
    show_owner(session, function.owner());
    if let Some(buses) = function.bridge() {
        writeln!(session, "  behind it  buses {:#x} to {:#x}", buses.secondary, buses.subordinate);
        for (what, window) in [("memory", function.window()), ("prefetchable", function.prefetchable_window())] {
            if let Some(range) = window {
                show_range(session, format_args!("forwards {what}"), range);
            }
        }
    }
    for (index, bar) in function.bars() {
        match (bar.kind, bar.range) {
            (BarKind::Io, _) => writeln!(session, "  register {index}  {} I/O ports, not used", bar.size),
            (BarKind::Memory { .. }, None) => writeln!(session, "  register {index}  {}, no addresses", Size(bar.size)),
            (BarKind::Memory { wide, prefetchable }, Some(range)) => {
                let bits = if wide { 64 } else { 32 };
                let prefetchable = if prefetchable { ", prefetchable" } else { "" };
                show_range(session, format_args!("register {index}, {bits} bits{prefetchable}"), range);
            }
        }
    }
    function.capabilities().for_each(|capability| show_capability(session, capability));
}

fn show_range(session: &mut Session<'_>, what: core::fmt::Arguments<'_>, range: PhysRange) {
    let (start, end) = (range.start().0, range.end().0);
    writeln!(session, "  {what}: {start:#012x}-{end:#012x} {}", Size(range.size()));
}

fn show_capability(session: &mut Session<'_>, capability: PciCapability) {
    let offset = capability.address().offset;
    write!(session, "  capability at {offset:#x}: ");
    match capability {
        PciCapability::Msi(msi) => {
            let count = 1_u32 << msi.multiple_message_capable() as u32;
            writeln!(session, "MSI, {count} message{}", plural(count.into()));
        }
        PciCapability::MsiX(msix) => {
            let (count, bar, at) = (msix.table_size(), msix.table_bar(), msix.table_offset());
            writeln!(session, "MSI-X, {count} message{}, table at {at:#x} of register {bar}", plural(count.into()));
        }
        PciCapability::PciExpress(_) => writeln!(session, "PCI Express"),
        PciCapability::PowerManagement(_) => writeln!(session, "power management"),
        PciCapability::Vendor(_) => writeln!(session, "the vendor's own"),
        PciCapability::BridgeSubsystemVendorId(_) => writeln!(session, "subsystem of a bridge"),
        PciCapability::SlotIdentification(_) => writeln!(session, "slot"),
        PciCapability::PciHotPlugControl(_) => writeln!(session, "hot plug"),
        PciCapability::Unknown { id, .. } => writeln!(session, "of the kind {id:#x}"),
        other => writeln!(session, "{other:?}"),
    }
}

/// The name of a function's class, where machines here have the class (PCI Code and ID Assignment Specification, 1).
fn kind(class: Class) -> &'static str {
    match (class.base, class.sub) {
        (0x00, _) => "device from before classes",
        (0x01, 0x08) => "non-volatile memory controller",
        (0x01, _) => "mass storage controller",
        (0x02, _) => "network controller",
        (0x03, _) => "display controller",
        (0x06, 0x00) => "host bridge",
        (0x06, 0x04) => "PCI bridge",
        (0x06, _) => "bridge",
        (0x0c, 0x03) => "USB controller",
        (0xff, _) => "device of no class",
        _ => "device",
    }
}
