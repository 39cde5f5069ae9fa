//! CPUs and the devices that the kernel starts with (3.7, 3.8; the bindings of `arm,gic-v3`, `arm,gic-400`,
//! `arm,gic-v3-its`, `arm,gic-v2m-frame`, `brcm,bcm2836-l1-intc`, `brcm,bcm2836-armctrl-ic`, `arm,armv8-timer`,
//! `arm,psci` and `arm,smmu-v3`); virtio devices by [`virtio`].

use core::mem;

use granule_arch::addr::{PhysAddr, PhysRange};
use granule_arch::psci::Conduit;
use heapless::Vec;

use super::description::{
    ControllerDescription, CpuNode, EnableMethod, Its, MAX_REDISTRIBUTOR_REGIONS, MAX_SMMUS, MessageFrame, Platform,
    Psci, PsciFunctions, Redistributors, Smmu,
};
use super::error::{NodeName, PlatformError, dispensable};
use super::interrupts::{ControllerNode, Interrupts};
use super::memory;
use super::pcie::{self, References};
use super::power::PowerNodes;
use super::tree::{Node, cell, strings};
use super::uart::{Uart, UartNode};
use super::virtio;
use crate::smp::cpu::AFFINITY;

impl Redistributors {
    fn read_regions(&mut self, node: &Node<'_, '_>, count: usize) -> Result<(), PlatformError> {
        for index in 0..count {
            let region = node.nth_registers(1 + index)?;
            let full = PlatformError::TooMany { what: "redistributor regions", limit: MAX_REDISTRIBUTOR_REGIONS };
            self.regions.push(region).map_err(|_| full)?;
        }
        Ok(())
    }
}

/// A BCM2836's interrupt controllers: the registers and the phandle of each.
#[derive(Clone, Copy, Default)]
struct Bcm2836Nodes {
    cores: Option<(PhysRange, Option<u32>)>,
    shared: Option<(PhysRange, Option<u32>)>,
}

/// The devices that a pass over the tree found; the first of each kind counts. Their interrupts are read last: the tree
/// may have the controller after them.
#[derive(Default)]
pub(super) struct Found<'t> {
    gic: Option<ControllerDescription>,
    bcm2836: Bcm2836Nodes,
    its: Option<Its>,
    message_frame: Option<MessageFrame>,
    timer: Option<TimerNode<'t>>,
    psci: Option<Psci>,
    console: Option<UartNode<'t>>,
    has_met_console: bool,
    pcie: Option<pcie::HostBridgeNode<'t>>,
    pub(super) power: PowerNodes<'t>,
    smmus: Vec<SmmuNode<'t>, MAX_SMMUS>,
    /// How other nodes refer to them.
    references: References,
}

impl<'t> Found<'t> {
    /// Takes `node` down if it is one of them. Things that need no other node go to `platform` at once.
    pub(super) fn look_at(
        &mut self,
        platform: &mut Platform,
        node: &Node<'t, '_>,
        is_console: bool,
    ) -> Result<(), PlatformError> {
        // Of several nodes that a path without unit addresses may mean it is the first.
        if is_console && !mem::replace(&mut self.has_met_console, true) {
            self.console = dispensable(UartNode::read(node));
            return Ok(());
        }
        for compatible in node.compatible() {
            match compatible {
                "arm,gic-v3" if self.gic.is_none() => self.add_gic_v3(node)?,
                "arm,gic-400" | "arm,cortex-a15-gic" | "arm,cortex-a7-gic" | "arm,cortex-a9-gic" | "qcom,msm-qgic2"
                    if self.gic.is_none() =>
                {
                    let (distributor, cpu_interface) = (node.first_registers()?, node.nth_registers(1)?);
                    self.gic = Some(ControllerDescription::V2 { distributor, cpu_interface });
                    self.references.gic = ControllerNode::of(node)?;
                }
                // Without the property it is there, and another is used: so on a BCM2711, which has a GIC.
                "brcm,bcm2836-l1-intc"
                    if self.bcm2836.cores.is_none() && node.property("interrupt-controller").is_some() =>
                {
                    self.bcm2836.cores = controller_registers(node, BCM2836_CORES_BYTES);
                }
                "brcm,bcm2836-armctrl-ic" if self.bcm2836.shared.is_none() => {
                    self.bcm2836.shared = controller_registers(node, BCM2836_SHARED_BYTES);
                }
                "arm,gic-v3-its" if self.its.is_none() => {
                    self.its = dispensable(node.first_registers().map(|registers| Its { registers }));
                    self.references.its = self.its.and(node.phandle());
                }
                "arm,gic-v2m-frame" if self.message_frame.is_none() => {
                    self.message_frame = dispensable(message_frame(node));
                    self.references.message_frame = self.message_frame.and(node.phandle());
                }
                "arm,armv8-timer" | "arm,armv7-timer" if self.timer.is_none() => {
                    self.timer = Some(TimerNode::read(node));
                }
                "arm,psci-1.0" | "arm,psci-0.2" if self.psci.is_none() => {
                    self.psci = psci(node, |_| PsciFunctions::Standard);
                }
                "arm,psci" if self.psci.is_none() => {
                    self.psci = psci(node, listed_functions);
                }
                "pci-host-ecam-generic" if self.pcie.is_none() => {
                    _ = dispensable(pcie::HostBridgeNode::read(node, &mut self.pcie));
                }
                "virtio,mmio" => virtio::add(platform, node),
                "arm,smmu-v3" => self.add_smmu(node),
                _ if !self.power.look_at(compatible, node) => continue,
                _ => {}
            }
            break;
        }
        Ok(())
    }

    /// Of one that is left out the phandle stays in maps, and by it devices behind it are refused.
    #[inline(never)]
    fn add_smmu(&mut self, node: &Node<'t, '_>) {
        if let Some(smmu) = dispensable(SmmuNode::read(node))
            && self.smmus.push(smmu).is_err()
        {
            crate::log::warn!("{}: more than {MAX_SMMUS} SMMUs; devices behind it are refused", node.name());
        }
    }

    /// Out of line, and the regions are read into their place: the description is large, and this is called on top of a
    /// frame for each level.
    #[inline(never)]
    fn add_gic_v3(&mut self, node: &Node<'t, '_>) -> Result<(), PlatformError> {
        let (distributor, stride) = (node.first_registers()?, node.number("redistributor-stride")?);
        let count = match node.property("#redistributor-regions") {
            Some(value) => cell(value).ok_or_else(|| node.bad("#redistributor-regions"))?,
            None => 1,
        };
        // Each CPU has at least two frames of 64 KiB, and the stride is a whole number of frames.
        if count == 0 || stride.is_some_and(|stride| stride < 0x2_0000 || !stride.is_multiple_of(0x1_0000)) {
            return Err(node.bad("redistributor-stride"));
        }
        let redistributors = Redistributors { regions: Vec::new(), stride };
        self.gic = Some(ControllerDescription::V3 { distributor, redistributors });
        if let Some(ControllerDescription::V3 { redistributors, .. }) = &mut self.gic {
            redistributors.read_regions(node, count as usize)?;
        }
        self.references.gic = ControllerNode::of(node)?;
        Ok(())
    }

    /// Decides for an interrupt controller: what other nodes refer to.
    pub(super) fn choose_controller(&mut self) {
        let Bcm2836Nodes { cores: Some((cores, phandle)), shared } = self.bcm2836 else { return };
        if self.gic.is_none() {
            self.gic = Some(ControllerDescription::Bcm2836 { cores, shared: shared.map(|(registers, _)| registers) });
            self.references.gic = ControllerNode::bcm2836(phandle, shared.and_then(|(_, phandle)| phandle));
        }
    }

    /// Hands the console over.
    pub(super) fn store_console(&self, platform: &mut Platform) {
        platform.uart = self.console.map(|console| {
            let (uart, interrupt) = console.resolve(&self.references.gic);
            // Its interrupt may make no sense without harm: without one it is polled.
            Uart { interrupt: dispensable(interrupt).flatten(), ..uart }
        });
    }

    /// Hands everything else over.
    #[inline(never)]
    pub(super) fn store(&mut self, platform: &mut Platform) -> Result<(), PlatformError> {
        let none = |property| PlatformError::Missing { node: NodeName::from("/"), property };
        platform.interrupt_controller = self
            .gic
            .take()
            .ok_or_else(|| none("arm,gic-400, arm,gic-v3 or brcm,bcm2836-l1-intc interrupt controller"))?;
        let gic = &self.references.gic;
        // In order: secure, non-secure, virtual, hypervisor.
        let timer = self.timer.as_ref().ok_or_else(|| none("arm,armv8-timer"))?;
        let virtual_timer = timer.interrupts.get(2, gic)?;
        // Each CPU has its own.
        let virtual_timer = virtual_timer.filter(|timer| (16..32).contains(&timer.intid));
        platform.timer = virtual_timer.ok_or_else(|| timer.interrupts.missing())?;
        platform.timer_frequency = timer.frequency;
        platform.psci = self.psci;
        virtio::resolve(platform, gic);
        platform.smmus = self.smmus.iter().map(|smmu| smmu.resolve(gic)).collect();
        (platform.its, platform.message_frame) = (self.its, self.message_frame);
        platform.choose_receiver();
        self.references.its = platform.its.and(self.references.its);
        self.references.message_frame = platform.message_frame.and(self.references.message_frame);
        // Last, since it refers to the others, which the tree may have after it.
        platform.pcie = self.pcie.take().and_then(|node| dispensable(node.resolve(&self.references)));
        Ok(())
    }
}

/// `/cpus`.
#[inline(never)]
pub(super) fn cpus(platform: &mut Platform, cpus: Option<&Node<'_, '_>>) -> Result<(), PlatformError> {
    if let Some(cpus) = cpus {
        cpus.each_child(|node| {
            // "disabled" is a CPU that waits to be started; the fail family is one that must not be.
            if node.base_name() != "cpu" || node.status().is_some_and(|status| status.starts_with("fail")) {
                return Ok(());
            }
            let mut cpu = CpuNode { mpidr: node.unit()? & AFFINITY, enable_method: enable_method(node) };
            if platform.cpus.is_full() {
                platform.cpus_left_out += 1;
                return Ok(());
            }
            if let EnableMethod::SpinTable(address) = cpu.enable_method
                && dispensable(memory::reserve_page(platform, address)).is_none()
            {
                cpu.enable_method = EnableMethod::Unknown;
            }
            // There is room.
            let _ = platform.cpus.push(cpu);
            Ok(())
        })?;
    }
    if platform.cpus.is_empty() {
        return Err(PlatformError::Missing { node: NodeName::from("/cpus"), property: "cpu" });
    }
    Ok(())
}

fn enable_method(node: &Node<'_, '_>) -> EnableMethod {
    match node.string("enable-method") {
        Some("psci") => EnableMethod::Psci,
        Some("spin-table") => {
            let address = node.number("cpu-release-addr").ok().flatten();
            EnableMethod::SpinTable(PhysAddr(address.unwrap_or_default()))
        }
        _ => EnableMethod::Unknown,
    }
}

/// PSCI, if the node has how it is called: without it the CPU that boots is the only one, as on Linux.
fn psci(node: &Node<'_, '_>, functions: impl FnOnce(&Node<'_, '_>) -> PsciFunctions) -> Option<Psci> {
    dispensable(conduit(node)).map(|conduit| Psci { conduit, functions: functions(node) })
}

fn conduit(node: &Node<'_, '_>) -> Result<Conduit, PlatformError> {
    match node.string("method") {
        Some("hvc") => Ok(Conduit::Hvc),
        Some("smc") => Ok(Conduit::Smc),
        Some(_) => Err(node.bad("method")),
        None => Err(node.missing("method")),
    }
}

fn listed_functions(node: &Node<'_, '_>) -> PsciFunctions {
    let cpu_on = dispensable(match node.property("cpu_on") {
        Some(value) => cell(value).map(Some).ok_or_else(|| node.bad("cpu_on")),
        None => Ok(None),
    });
    PsciFunctions::Listed { cpu_on: cpu_on.flatten() }
}

/// The frame of a GICv2m. As on Linux its own register counts where the tree does not have both numbers.
fn message_frame(node: &Node<'_, '_>) -> Result<MessageFrame, PlatformError> {
    let numbers = ["arm,msi-base-spi", "arm,msi-num-spis"].map(|name| node.property(name).and_then(cell));
    let [first, count] = numbers.map(|number| number.filter(|&number| number != 0));
    Ok(MessageFrame { registers: node.first_registers()?, interrupts: first.zip(count) })
}

/// Bytes of registers that the driver of a BCM2836's controllers uses: of what each core has, and of what they share.
const BCM2836_CORES_BYTES: u64 = 0x100;
const BCM2836_SHARED_BYTES: u64 = 0x28;

/// The registers of one of them and its phandle, if so many bytes are there.
fn controller_registers(node: &Node<'_, '_>, bytes: u64) -> Option<(PhysRange, Option<u32>)> {
    let registers = dispensable(node.first_registers().and_then(|registers| {
        let is_whole = registers.size() >= bytes && registers.start().is_aligned(4);
        if is_whole { Ok(registers) } else { Err(node.bad("reg")) }
    }))?;
    Some((registers, node.phandle()))
}

/// The generic timer, but for its interrupt.
struct TimerNode<'t> {
    interrupts: Interrupts<'t>,
    frequency: Option<u64>,
}

impl<'t> TimerNode<'t> {
    /// A frequency that makes no sense is missed only where the CPU has none either.
    fn read(node: &Node<'t, '_>) -> Self {
        Self { interrupts: node.interrupts(), frequency: dispensable(node.number("clock-frequency")).flatten() }
    }
}

/// An SMMUv3, but for its interrupts.
struct SmmuNode<'t> {
    phandle: Option<u32>,
    registers: PhysRange,
    coherent: bool,
    interrupts: Interrupts<'t>,
    names: Option<&'t [u8]>,
}

impl<'t> SmmuNode<'t> {
    #[inline(never)]
    fn read(node: &Node<'t, '_>) -> Result<Self, PlatformError> {
        let (registers, interrupts) = (node.first_registers()?, node.interrupts());
        let (phandle, coherent) = (node.phandle(), node.is_coherent());
        Ok(Self { phandle, registers, coherent, interrupts, names: node.properties.interrupt_names })
    }

    /// Each of its interrupts may make no sense without harm: what it would report is polled.
    fn resolve(&self, gic: &ControllerNode) -> Smmu {
        let named = |name: &str| {
            let index = self.names.into_iter().flat_map(strings).position(|entry| entry == name)?;
            dispensable(self.interrupts.get(index, gic)).flatten()
        };
        Smmu {
            phandle: self.phandle,
            registers: self.registers,
            coherent: self.coherent,
            event_queue: named("eventq"),
            priority_queue: named("priq"),
            command_sync: named("cmdq-sync"),
            global_error: named("gerror"),
        }
    }
}
