//! The registers, and what may be written to them when.

use super::hardware::Hardware;
use super::state::State;
use super::violation::SmmuRule;

/// Bits of CR0.
pub(crate) const SMMUEN: u32 = 1 << 0;
pub(crate) const EVENTQEN: u32 = 1 << 2;
/// CR1: shareability and cacheability of tables and queues.
const CR1_ATTRIBUTES: u32 = 0xfff;
/// Inner shareable, write-back inside and outside, both.
const CR1_COHERENT: u32 = 0b11_01_01_11_01_01;
/// Outer shareable, Non-cacheable inside and outside, both.
const CR1_UNCACHED: u32 = 0b10_00_00_10_00_00;
/// CR2.PTM: TLBIs that CPUs broadcast are ignored.
const PTM: u32 = 1 << 2;
pub(crate) const CMDQEN: u32 = 1 << 3;
pub(crate) const ATSCHK: u32 = 1 << 4;
/// Bits of GBPA.
const GBPA_ABORT: u32 = 1 << 20;
const GBPA_UPDATE: u32 = 1 << 31;
/// Bits of GERROR.
pub(crate) const CMDQ_ERR: u32 = 1 << 0;
pub(crate) const EVENTQ_ABT_ERR: u32 = 1 << 2;

/// A register that is written, and a second one that later shows the value in force.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Acknowledged {
    written: u32,
    in_force: u32,
    /// Looks until it is.
    looks: u32,
}

impl Acknowledged {
    fn write(&mut self, value: u32, lag: u32) {
        (self.written, self.looks) = (value, lag);
        if lag == 0 {
            self.in_force = value;
        }
    }

    /// The driver reads it.
    fn look(&mut self) -> u32 {
        if self.in_force != self.written {
            match self.looks.checked_sub(1) {
                Some(left) => self.looks = left,
                None => self.in_force = self.written,
            }
        }
        self.in_force
    }

    const fn is_pending(&self) -> bool {
        self.written != self.in_force
    }
}

/// All of them.
#[derive(Clone, Debug)]
pub(crate) struct Registers {
    pub(crate) cr0: Acknowledged,
    interrupts: Acknowledged,
    cr1: u32,
    cr2: u32,
    gbpa: u32,
    gbpa_looks: u32,
    pub(crate) gerror: u32,
    pub(crate) gerrorn: u32,
    pub(crate) table_base: u64,
    pub(crate) table_config: u32,
    pub(crate) command_base: u64,
    pub(crate) command_prod: u32,
    pub(crate) command_cons: u32,
    pub(crate) event_base: u64,
    pub(crate) event_prod: u32,
    pub(crate) event_cons: u32,
}

impl Registers {
    /// As reset leaves them, but for those that it leaves unknown: those are what another kernel may have written.
    pub(crate) fn out_of_reset(unknown: u32) -> Self {
        let wide = u64::from(unknown) << 32 | u64::from(unknown);
        Self {
            cr0: Acknowledged::default(),
            interrupts: Acknowledged::default(),
            cr1: unknown,
            cr2: unknown,
            // Transactions pass, with the shareability that they come with.
            gbpa: 0x1000,
            gbpa_looks: 0,
            gerror: 0,
            gerrorn: 0,
            table_base: wide,
            table_config: unknown,
            command_base: wide,
            command_prod: unknown,
            command_cons: unknown & 0xffff,
            event_base: wide,
            event_prod: unknown,
            event_cons: unknown,
        }
    }

    /// As another kernel left them: the SMMU translates, by tables that are no longer in use, and has stopped at
    /// a command.
    pub(crate) fn in_use() -> Self {
        let on = SMMUEN | EVENTQEN | CMDQEN;
        let cr0 = Acknowledged { written: on, in_force: on, looks: 0 };
        Self { cr0, gerror: CMDQ_ERR, command_cons: 1 << 24 | 7, ..Self::out_of_reset(0xffff_ffff) }
    }

    pub(crate) const fn is_on(&self, bit: u32) -> bool {
        self.cr0.in_force & bit != 0
    }

    /// While the SMMU does not translate transactions are refused, and do not pass.
    pub(crate) const fn aborts_when_off(&self) -> bool {
        self.gbpa & GBPA_ABORT != 0 && self.gbpa & GBPA_UPDATE == 0
    }

    /// Global errors that have not been acknowledged.
    pub(crate) const fn active_errors(&self) -> u32 {
        self.gerror ^ self.gerrorn
    }

    pub(crate) fn raise(&mut self, error: u32) {
        if self.active_errors() & error == 0 {
            self.gerror ^= error;
        }
    }
}

impl State {
    pub(crate) fn read32(&mut self, offset: usize) -> u32 {
        let registers = &mut self.registers;
        match offset {
            0x00..=0x1c => self.hardware.id_registers()[offset / 4],
            0x20 => registers.cr0.written,
            0x24 => {
                let before = registers.cr0.in_force;
                let now = registers.cr0.look();
                if now != before {
                    self.control_changed(before, now);
                }
                now
            }
            0x28 => registers.cr1,
            0x2c => registers.cr2,
            0x44 => {
                let value = registers.gbpa;
                if value & GBPA_UPDATE != 0 {
                    match registers.gbpa_looks.checked_sub(1) {
                        Some(left) => registers.gbpa_looks = left,
                        None => registers.gbpa &= !GBPA_UPDATE,
                    }
                }
                value
            }
            0x50 => registers.interrupts.written,
            0x54 => registers.interrupts.look(),
            0x60 => registers.gerror,
            0x64 => registers.gerrorn,
            0x88 => registers.table_config,
            0x98 => registers.command_prod,
            0x9c => {
                self.looked_at_cons();
                self.registers.command_cons
            }
            0x1_00a8 => {
                self.looked_at_event_prod();
                self.registers.event_prod
            }
            0x1_00ac => registers.event_cons,
            _ => {
                self.report(SmmuRule::RegisterOrder, format!("offset {offset:#x} is read, where there is no register"));
                0
            }
        }
    }

    pub(crate) fn read64(&mut self, offset: usize) -> u64 {
        match offset {
            0x80 => self.registers.table_base,
            0x90 => self.registers.command_base,
            0xa0 => self.registers.event_base,
            _ => {
                self.report(SmmuRule::RegisterOrder, format!("offset {offset:#x} is read, where there is no register"));
                0
            }
        }
    }

    pub(crate) fn write32(&mut self, offset: usize, value: u32) {
        self.check_first(offset, value);
        let lag = self.hardware.lag;
        match offset {
            0x20 => self.write_cr0(value),
            0x28 => self.while_off(offset, SMMUEN | CMDQEN | EVENTQEN, |registers| registers.cr1 = value),
            0x2c => self.while_off(offset, SMMUEN | CMDQEN | EVENTQEN, |registers| registers.cr2 = value),
            0x44 => {
                if self.registers.gbpa & GBPA_UPDATE != 0 {
                    self.report(SmmuRule::RegisterOrder, "GBPA is written while an update of it is under way".into());
                } else if value & GBPA_UPDATE != 0 {
                    self.registers.gbpa = value;
                    self.registers.gbpa_looks = lag;
                }
            }
            0x50 => {
                if self.registers.interrupts.is_pending() {
                    self.report(SmmuRule::RegisterOrder, "IRQ_CTRL is written before IRQ_CTRLACK answered".into());
                }
                self.registers.interrupts.write(value, lag);
            }
            0x64 => {
                let before = self.registers.active_errors();
                self.registers.gerrorn = value;
                if self.registers.active_errors() & !before != 0 {
                    self.report(SmmuRule::RegisterOrder, "GERRORN acknowledges an error that is not active".into());
                }
                if before & CMDQ_ERR != 0 && self.registers.active_errors() & CMDQ_ERR == 0 {
                    self.command_error_acknowledged();
                }
            }
            0x88 => self.while_off(offset, SMMUEN, |registers| registers.table_config = value),
            0x98 if self.registers.is_on(CMDQEN) => self.commands_published(value),
            0x98 => self.registers.command_prod = value,
            0x9c => self.while_off(offset, CMDQEN, |registers| registers.command_cons = value),
            0x1_00a8 => self.while_off(offset, EVENTQEN, |registers| registers.event_prod = value),
            0x1_00ac if self.registers.is_on(EVENTQEN) => self.events_taken(value),
            0x1_00ac => self.registers.event_cons = value,
            _ => self
                .report(SmmuRule::RegisterOrder, format!("offset {offset:#x} is written, where no register takes it")),
        }
    }

    pub(crate) fn write64(&mut self, offset: usize, value: u64) {
        self.check_first(offset, 0);
        match offset {
            0x80 => self.while_off(offset, SMMUEN, |registers| registers.table_base = value),
            0x90 => self.while_off(offset, CMDQEN, |registers| registers.command_base = value),
            0xa0 => self.while_off(offset, EVENTQEN, |registers| registers.event_base = value),
            // Message-signalled interrupts, which it does not have.
            0x68 | 0xb0 => {}
            _ => self
                .report(SmmuRule::RegisterOrder, format!("offset {offset:#x} is written, where no register takes it")),
        }
    }

    /// Out of reset transactions pass: that is to end before anything else begins.
    fn check_first(&mut self, offset: usize, value: u32) {
        let closed = self.registers.is_on(SMMUEN) || self.registers.aborts_when_off();
        let closes = offset == 0x44 && value & GBPA_ABORT != 0;
        if !closed && !closes {
            let text = format!("offset {offset:#x} is written while transactions pass: GBPA.ABORT comes first");
            self.report(SmmuRule::RegisterOrder, text);
        }
    }

    fn while_off(&mut self, offset: usize, bits: u32, write: impl FnOnce(&mut Registers)) {
        let cr0 = &self.registers.cr0;
        if (cr0.in_force | cr0.written) & bits != 0 {
            let text =
                format!("offset {offset:#x} is written while CR0 or CR0ACK is {:#x}", cr0.in_force | cr0.written);
            return self.report(SmmuRule::RegisterOrder, text);
        }
        write(&mut self.registers);
    }

    fn write_cr0(&mut self, value: u32) {
        let cr0 = self.registers.cr0;
        if cr0.is_pending() {
            self.report(SmmuRule::RegisterOrder, "CR0 is written before CR0ACK answered".into());
        }
        if cr0.written & SMMUEN != 0 && value & SMMUEN == 0 && !self.registers.aborts_when_off() {
            self.report(SmmuRule::RegisterOrder, "SMMUEN is cleared while GBPA lets transactions pass".into());
        }
        if (cr0.in_force | cr0.written) & SMMUEN != 0 && (value ^ cr0.written) & ATSCHK != 0 && value & SMMUEN != 0 {
            self.report(SmmuRule::RegisterOrder, "ATSCHK changes while SMMUEN is set".into());
        }
        if value & ATSCHK != 0 && !self.hardware.ats {
            self.report(SmmuRule::Undefined, "ATSCHK is set, and there is no ATS".into());
        }
        let turned_on = value & !cr0.in_force;
        if turned_on & CMDQEN != 0 && self.registers.active_errors() & CMDQ_ERR != 0 {
            self.report(SmmuRule::RegisterOrder, "CMDQEN is set while a command error is active".into());
        }
        if turned_on & SMMUEN != 0 {
            self.check_enable(value);
        }
        for (bit, base, name, unit) in [
            (CMDQEN, self.registers.command_base, "command queue", 4),
            (EVENTQEN, self.registers.event_base, "event queue", 5),
        ] {
            if turned_on & bit != 0 {
                self.check_queue(base, name, unit);
            }
        }
        let lag = self.hardware.lag;
        self.registers.cr0.write(value, lag);
        if lag == 0 {
            self.control_changed(cr0.in_force, value);
        }
    }

    /// Checks the steps that must be done before the SMMU translates.
    fn check_enable(&mut self, value: u32) {
        for (missing, what) in [
            (!self.configuration_was_invalidated(), "CMD_CFGI_ALL and a CMD_SYNC"),
            (!self.translations_were_invalidated(), "CMD_TLBI_NSNH_ALL and a CMD_SYNC"),
            (!self.registers.is_on(EVENTQEN) || value & EVENTQEN == 0, "EVENTQEN"),
        ] {
            if missing {
                self.report(SmmuRule::RegisterOrder, format!("SMMUEN is set, and there was no {what} before"));
            }
        }
        let Registers { cr1, cr2, .. } = self.registers;
        if cr1 & CR1_ATTRIBUTES != if self.hardware.sees_caches() { CR1_COHERENT } else { CR1_UNCACHED } {
            let text = format!("CR1 is {cr1:#x}: tables and queues are not read as their writers have them mapped");
            self.report(SmmuRule::RegisterOrder, text);
        }
        if cr2 & PTM == 0 {
            let text = format!("CR2 is {cr2:#x}: CPUs broadcast TLBIs under ASIDs that are not this SMMU's (PTM)");
            self.report(SmmuRule::RegisterOrder, text);
        }
        let (base, config) = (self.registers.table_base & ((1 << 52) - 1) & !0x3f, self.registers.table_config);
        let (bits, two_levels) = (config & 0x3f, config >> 16 & 3 == 1);
        if two_levels && !self.hardware.two_levels {
            self.report(SmmuRule::Undefined, "a stream table of two levels, where there is one only".into());
        }
        let bytes = if two_levels { 8 << bits.saturating_sub(config >> 6 & 0x1f) } else { 64u64 << bits };
        if !base.is_multiple_of(bytes.max(64)) || !self.is_allocated(base, bytes) {
            self.report(SmmuRule::Misaligned, format!("the stream table of {bytes} bytes is at {base:#x}"));
        }
    }

    fn check_queue(&mut self, base: u64, name: &str, unit: u32) {
        let (address, bytes) = (base & ((1 << 52) - 1) & !0x1f, 1u64 << (base & 0x1f) << unit);
        if !address.is_multiple_of(bytes.max(32)) || !self.is_allocated(address, bytes) {
            self.report(SmmuRule::Misaligned, format!("the {name} of {bytes} bytes is at {address:#x}"));
        }
        let most = if unit == 4 { self.hardware.command_bits } else { self.hardware.event_bits };
        if base & 0x1f > u64::from(most) {
            self.report(SmmuRule::Undefined, format!("the {name} has 2^{} entries, of at most 2^{most}", base & 0x1f));
        }
    }
}

const _: () = assert!(Hardware::QEMU.id_registers()[0] == 0x0d44_101b, "it is what QEMU says");
