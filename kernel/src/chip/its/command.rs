//! Commands of the ITS: 32 bytes each (IHI 0069, 5.3).

use tock_registers::fields::FieldValue;
use tock_registers::register_bitfields;

register_bitfields! { u64,
    /// The command, and its device.
    WORD0 [
        OPCODE OFFSET(0) NUMBITS(8) [
            SYNC = 0x05,
            MAPD = 0x08,
            MAPC = 0x09,
            MAPTI = 0x0a,
            INV = 0x0c,
            DISCARD = 0x0f,
        ],
        DEVICE OFFSET(32) NUMBITS(32) [],
    ],
    /// Which event, and which interrupt it is.
    WORD1 [
        EVENT OFFSET(0) NUMBITS(32) [],
        INTID OFFSET(32) NUMBITS(32) [],
    ],
    /// MAPD has its number of bits of an event where others have the event.
    SIZE_WORD [
        EVENT_BITS_LESS_ONE OFFSET(0) NUMBITS(5) [],
    ],
    /// Where it goes.
    WORD2 [
        COLLECTION OFFSET(0) NUMBITS(16) [],
        /// Bits 51:16: of an address, or a processor's number.
        TARGET OFFSET(16) NUMBITS(36) [],
        VALID OFFSET(63) NUMBITS(1) [],
    ],
    /// MAPD has a table there.
    TABLE_WORD [
        /// Bits 51:8 of its address.
        ADDRESS OFFSET(8) NUMBITS(44) [],
    ],
}

/// A command as it stands in the queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ItsCommand(pub(super) [u64; 4]);

/// The table into which the ITS writes interrupts of a device's events: one of `1 << event_bits` entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct EventTable {
    /// A multiple of 256.
    pub(super) address: u64,
    /// At least 1.
    pub(super) event_bits: u32,
}

impl ItsCommand {
    /// The table of a device's events. Its old one must not be in use.
    pub(super) fn map_device(device: u32, table: EventTable) -> Self {
        let size = SIZE_WORD::EVENT_BITS_LESS_ONE.val(u64::from(table.event_bits) - 1);
        let address = TABLE_WORD::ADDRESS.val(table.address >> 8).value | WORD2::VALID::SET.value;
        Self([about(WORD0::OPCODE::MAPD, device), size.value, address, 0])
    }

    /// The redistributor that a collection's interrupts go to.
    pub(super) fn map_collection(collection: u16, target: u64) -> Self {
        let to = WORD2::COLLECTION.val(collection.into()) + WORD2::TARGET.val(target) + WORD2::VALID::SET;
        Self([WORD0::OPCODE::MAPC.value, 0, to.value, 0])
    }

    /// The interrupt that an event is, and its collection.
    pub(super) fn map_event(device: u32, event: u32, intid: u32, collection: u16) -> Self {
        let which = WORD1::EVENT.val(event.into()) + WORD1::INTID.val(intid.into());
        Self([about(WORD0::OPCODE::MAPTI, device), which.value, WORD2::COLLECTION.val(collection.into()).value, 0])
    }

    /// The ITS reads the configuration of an event's interrupt again.
    pub(super) fn invalidate(device: u32, event: u32) -> Self {
        Self([about(WORD0::OPCODE::INV, device), WORD1::EVENT.val(event.into()).value, 0, 0])
    }

    /// An event is no interrupt any more, and one that is pending goes.
    pub(super) fn discard(device: u32, event: u32) -> Self {
        Self([about(WORD0::OPCODE::DISCARD, device), WORD1::EVENT.val(event.into()).value, 0, 0])
    }

    /// Earlier commands about this redistributor have taken effect when this one is done.
    pub(super) fn sync(target: u64) -> Self {
        Self([WORD0::OPCODE::SYNC.value, 0, WORD2::TARGET.val(target).value, 0])
    }
}

/// The first word of a command about a device.
fn about(opcode: FieldValue<u64, WORD0::Register>, device: u32) -> u64 {
    (opcode + WORD0::DEVICE.val(device.into())).value
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{EventTable, ItsCommand};

    /// A field by the table of 5.3, word and bits, as it stands in the 32 bytes.
    fn field(command: ItsCommand, word: usize, high: u32, low: u32) -> u64 {
        let bytes: Vec<u8> = command.0.iter().flat_map(|word| word.to_le_bytes()).collect();
        let word = u64::from_le_bytes(bytes[word * 8..][..8].try_into().unwrap());
        (word << (63 - high)) >> (63 - high) >> low
    }

    /// The command with these fields taken out: what is left must be zero.
    fn rest(command: ItsCommand, fields: &[(usize, u32, u32)]) -> [u64; 4] {
        let mut rest = command.0;
        for &(word, high, low) in fields {
            rest[word] &= !((u64::MAX >> (63 - high)) & (u64::MAX << low));
        }
        rest
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn each_command_has_its_fields_where_the_specification_has_them_and_nothing_else(
            device: u32, event: u32, intid: u32, collection: u16, target in 0_u64..1 << 36, table in 0_u64..1 << 44,
            event_bits in 1_u32..=32,
        ) {
            let (opcode, of) = ((0, 7, 0), (0, 63, 32));
            let get = |command, (word, high, low)| field(command, word, high, low);
            let device_field = u64::from(device);

            let mapd = ItsCommand::map_device(device, EventTable { address: table << 8, event_bits });
            let (size, itt, valid) = ((1, 4, 0), (2, 51, 8), (2, 63, 63));
            prop_assert_eq!(
                [opcode, of, size, itt, valid].map(|at| get(mapd, at)),
                [8, device_field, u64::from(event_bits) - 1, table, 1]
            );
            prop_assert_eq!(rest(mapd, &[opcode, of, size, itt, valid]), [0; 4]);

            let mapc = ItsCommand::map_collection(collection, target);
            let (icid, rdbase) = ((2, 15, 0), (2, 51, 16));
            prop_assert_eq!(get(mapc, opcode), 9);
            prop_assert_eq!(get(mapc, icid), u64::from(collection));
            prop_assert_eq!(get(mapc, rdbase), target);
            prop_assert_eq!(get(mapc, valid), 1);
            prop_assert_eq!(rest(mapc, &[opcode, icid, rdbase, valid]), [0; 4]);

            let mapti = ItsCommand::map_event(device, event, intid, collection);
            let (event_at, intid_at) = ((1, 31, 0), (1, 63, 32));
            prop_assert_eq!(
                [opcode, of, event_at, intid_at, icid].map(|at| get(mapti, at)),
                [10, device_field, event.into(), intid.into(), collection.into()]
            );
            prop_assert_eq!(rest(mapti, &[opcode, of, event_at, intid_at, icid]), [0; 4]);

            for (command, code) in [(ItsCommand::invalidate(device, event), 12), (ItsCommand::discard(device, event), 15)] {
                prop_assert_eq!(
                    [opcode, of, event_at].map(|at| get(command, at)), [code, device_field, event.into()]
                );
                prop_assert_eq!(rest(command, &[opcode, of, event_at]), [0; 4]);
            }

            let sync = ItsCommand::sync(target);
            prop_assert_eq!([opcode, rdbase].map(|at| get(sync, at)), [5, target]);
            prop_assert_eq!(rest(sync, &[opcode, rdbase]), [0; 4]);
        }
    }
}
