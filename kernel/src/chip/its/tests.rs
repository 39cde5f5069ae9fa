//! An ITS in memory, which executes the queue by the specification's table of commands.

#![allow(unsafe_code, reason = "registers of the ITS, and tables that it reads")]

use std::alloc::{Layout, alloc};
use std::cell::RefCell;
use std::collections::BTreeMap;

use granule_arch::addr::{PhysAddr, VirtAddr};
use proptest::prelude::*;

use super::command::ItsCommand;
use super::{EVENTS, FIRST, ItsError, ItsLists, ItsRegisters, ItsUnit, TableMemory};

const BLOCK: u64 = 2 << 20;

/// The properties of a model ITS.
#[derive(Clone, Copy)]
struct CommandKind {
    typer: u64,
    /// It has pages of this kind and no other.
    page: u64,
    /// It sees what is in the caches.
    coherent: bool,
    /// It stops at the command of this number.
    stalls: Option<usize>,
}

/// As QEMU's: events and devices of 16 bits, twelve bytes for an event, redistributors by number.
const QEMU: CommandKind =
    CommandKind { typer: 0x1 | 11 << 4 | 15 << 8 | 15 << 13, page: 0, coherent: true, stalls: None };

/// The state that the model's commands have set.
#[derive(Default)]
struct ModelState {
    enabled: bool,
    queue: u64,
    read: u64,
    done: usize,
    tables: BTreeMap<usize, u64>,
    /// Device to its table, and the bits of an event.
    devices: BTreeMap<u64, (u64, u64)>,
    collections: BTreeMap<u64, u64>,
    /// Device and event to interrupt and collection.
    events: BTreeMap<(u64, u64), (u64, u64)>,
    /// Redistributors that a command has changed, and not synchronised since.
    unsynchronised: Vec<u64>,
    written: u64,
}

struct ModelIts {
    kind: CommandKind,
    state: RefCell<ModelState>,
}

impl ModelIts {
    fn new(kind: CommandKind) -> Self {
        Self { kind, state: RefCell::default() }
    }

    fn run(&self, state: &mut ModelState, words: [u64; 4]) {
        let [first, second, third, _] = words;
        let (device, event) = (first >> 32, second & 0xffff_ffff);
        match first & 0xff {
            0x08 => {
                let (table, bits) = (third & 0xf_ffff_ffff_ff00, (second & 0x1f) + 1);
                assert!(third >> 63 == 1 && table != 0 && bits <= (self.kind.typer >> 8 & 0x1f) + 1);
                assert!(state.devices.insert(device, (table, bits)).is_none(), "a table that is in use");
            }
            0x09 => {
                assert!(third >> 63 == 1);
                state.collections.insert(third & 0xffff, third >> 16 & 0xf_ffff_ffff);
            }
            0x0a => {
                let (intid, collection) = (second >> 32, third & 0xffff);
                assert!(state.devices[&device].1 >= 64 - u64::from(event.leading_zeros()));
                assert!(intid >= 8192, "{intid} is no LPI");
                state.unsynchronised.push(state.collections[&collection]);
                assert!(state.events.insert((device, event), (intid, collection)).is_none());
            }
            0x0c | 0x0f => {
                let (_, collection) = state.events[&(device, event)];
                state.unsynchronised.push(state.collections[&collection]);
                if first & 0xff == 0x0f {
                    state.events.remove(&(device, event));
                }
            }
            0x05 => state.unsynchronised.retain(|target| *target != third >> 16 & 0xf_ffff_ffff),
            other => panic!("command {other:#x}"),
        }
    }
}

impl ItsRegisters for &ModelIts {
    fn read32(&self, offset: usize) -> u32 {
        assert_eq!(offset, 0);
        if self.state.borrow().enabled { 1 } else { 1 << 31 }
    }

    fn write32(&self, offset: usize, value: u32) {
        assert_eq!(offset, 0);
        self.state.borrow_mut().enabled = value & 1 != 0;
    }

    fn read64(&self, offset: usize) -> u64 {
        let state = self.state.borrow();
        // Tables: devices of eight bytes, virtual processors, collections of eight bytes.
        let fixed = match offset {
            0x100 => 1 << 56 | 7 << 48,
            0x108 => 2 << 56 | 7 << 48,
            0x110 => 4 << 56 | 7 << 48,
            _ => 0,
        };
        let shareability = if self.kind.coherent { !0 } else { !(3 << 10) };
        match offset {
            0x08 => self.kind.typer,
            0x80 => state.queue & shareability,
            0x88 => state.written,
            0x90 => state.read | u64::from(self.kind.stalls == Some(state.done) && state.read != state.written),
            0x100..0x140 => {
                let value = state.tables.get(&offset).copied().unwrap_or(0);
                (value & !(7 << 56 | 31 << 48 | 3 << 8) | fixed | self.kind.page << 8) & shareability
            }
            _ => panic!("register {offset:#x}"),
        }
    }

    fn write64(&self, offset: usize, value: u64) {
        let mut state = self.state.borrow_mut();
        match offset {
            0x80 => state.queue = value,
            0x88 => {
                state.written = value;
                while state.enabled && state.read != value && self.kind.stalls != Some(state.done) {
                    let slot = (state.queue & 0xf_ffff_ffff_f000) + state.read;
                    // SAFETY: the queue is in the memory that the test gave the driver.
                    let words = unsafe { (slot as *const [u64; 4]).read() };
                    self.run(&mut state, words);
                    state.done += 1;
                    state.read = (state.read + 32) % 4096;
                }
            }
            0x100..0x140 => {
                assert!(!state.enabled);
                state.tables.insert(offset, value);
            }
            _ => panic!("register {offset:#x}"),
        }
    }
}

/// Memory for tables, as large as the metal's; it is not given back.
fn memory(bytes: u64) -> TableMemory {
    let layout = Layout::from_size_align(BLOCK as usize, BLOCK as usize).unwrap();
    // SAFETY: the layout is not empty, and what is allocated is the value's for ever.
    unsafe {
        let start = alloc(layout);
        start.write_bytes(0xa5, BLOCK as usize);
        TableMemory::new(VirtAddr::from_ptr(start), PhysAddr(start as u64), bytes)
    }
}

fn lists() -> &'static mut ItsLists {
    Box::leak(Box::new(ItsLists::EMPTY))
}

fn start(kind: CommandKind) -> (ItsUnit<&'static ModelIts>, &'static ModelIts) {
    let model: &'static ModelIts = Box::leak(Box::new(ModelIts::new(kind)));
    (ItsUnit::new(model, memory(BLOCK), lists(), 0xff).unwrap(), model)
}

#[test]
fn it_gets_its_tables_before_it_is_enabled_and_interrupts_before_devices_know_them() {
    let (mut its, model) = start(QEMU);
    let (devices, collections) = (model.read64(0x100), model.read64(0x110));
    for table in [devices, collections] {
        assert!(table >> 63 == 1 && table >> 10 & 3 == 1 && table >> 59 & 7 == 7, "{table:#x}");
    }
    assert_eq!(model.read64(0x108) >> 63, 0, "no table for an unused type");
    its.connect_cpu(3, 7).unwrap();
    let event = its.add(0x20, 3).unwrap();
    let state = model.state.borrow();
    assert_eq!(state.events[&(0x20, event as u64)], (u64::from(FIRST) + event as u64, 3));
    assert_eq!(state.collections[&3], 7);
    assert_eq!(state.unsynchronised, [], "each change was waited for");
}

#[test]
fn large_pages_are_taken_where_there_are_no_small_ones() {
    let (_, model) = start(CommandKind { page: 2, ..QEMU });
    let table = model.read64(0x100);
    assert_eq!((table & 0xff, table & 0xffff_f000 & 0xffff), (0, 0), "one page of 64 KiB, at a multiple of that");
}

#[test]
fn what_it_cannot_do_is_said() {
    let new = |kind, bytes, last| {
        let model: &'static ModelIts = Box::leak(Box::new(ModelIts::new(kind)));
        ItsUnit::new(model, memory(bytes), lists(), last).map(|_| ()).unwrap_err()
    };
    assert_eq!(new(CommandKind { typer: QEMU.typer & !1, ..QEMU }, BLOCK, 0), ItsError::NoLpis);
    assert_eq!(new(CommandKind { typer: QEMU.typer & !(31 << 8) | 6 << 8, ..QEMU }, BLOCK, 0), ItsError::NoLpis);
    assert_eq!(new(CommandKind { coherent: false, ..QEMU }, BLOCK, 0), ItsError::NotCoherent);
    assert_eq!(new(QEMU, BLOCK, 0x1_0000), ItsError::NoSuchDevice(0x1_0000));
    assert_eq!(
        new(CommandKind { typer: QEMU.typer | 31 << 13, ..QEMU }, BLOCK, 1 << 20),
        ItsError::NoSuchDevice(1 << 20)
    );
    assert!(matches!(new(QEMU, 0x1000, 0), ItsError::OutOfMemory(_)));
    let (mut its, _) = start(CommandKind { stalls: Some(3), ..QEMU });
    its.connect_cpu(0, 0).unwrap();
    assert_eq!(its.add(1, 0), Err(ItsError::Stuck { read: 0x61, written: 0xc0 }));
}

#[test]
fn there_are_as_many_events_as_there_are_and_devices_too() {
    let (mut its, _) = start(QEMU);
    its.connect_cpu(0, 0).unwrap();
    for event in 0..EVENTS {
        assert_eq!(its.add(event as u32 % 8, 0), Ok(event));
    }
    assert_eq!(its.add(0, 0), Err(ItsError::Full));
    its.remove(77).unwrap();
    its.remove(EVENTS).unwrap();
    assert_eq!(its.add(9, 0), Ok(77));
    let (mut its, _) = start(QEMU);
    its.connect_cpu(0, 0).unwrap();
    for device in 0..64 {
        its.add(device, 0).unwrap();
    }
    assert_eq!(its.add(64, 0), Err(ItsError::Full));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Long enough for the queue to come round.
    #[test]
    fn the_its_knows_what_was_added_and_not_removed(steps in prop::collection::vec((0_u32..16, 0_u32..4, any::<u8>()), 1..200)) {
        let (mut its, model) = start(QEMU);
        let mut wanted: BTreeMap<usize, (u32, u32)> = BTreeMap::new();
        for (device, cpu, choice) in steps {
            if !its.is_cpu_connected(cpu) {
                its.connect_cpu(cpu, u64::from(cpu) + 100).unwrap();
            }
            let old = wanted.keys().copied().nth(usize::from(choice) % 8);
            match old {
                Some(event) if choice % 2 == 0 => {
                    its.remove(event).unwrap();
                    wanted.remove(&event);
                }
                _ => {
                    let event = its.add(device, cpu).unwrap();
                    prop_assert!(wanted.insert(event, (device, cpu)).is_none());
                }
            }
            let state = model.state.borrow();
            let known: BTreeMap<usize, (u32, u32)> = state
                .events
                .iter()
                .map(|(&(device, event), &(intid, collection))| {
                    assert_eq!(intid, u64::from(FIRST) + event);
                    (event as usize, (device as u32, collection as u32))
                })
                .collect();
            prop_assert_eq!(&known, &wanted);
            prop_assert!(state.unsynchronised.is_empty());
            for event in 0..EVENTS {
                // SAFETY: in the table of configurations, which the driver has.
                let byte = unsafe { (its.configurations.start + event as u64).as_ptr::<u8>().read() };
                prop_assert_eq!(byte & 1 != 0, wanted.contains_key(&event));
            }
        }
        let mut tables: Vec<u64> = model.state.borrow().devices.values().map(|(table, _)| *table).collect();
        tables.sort_unstable();
        prop_assert!(tables.windows(2).all(|pair| pair[1] - pair[0] >= 12 << 8), "tables overlap");
    }
}

#[test]
fn a_command_is_as_large_as_its_slot() {
    assert_eq!(size_of::<ItsCommand>(), 32);
}
