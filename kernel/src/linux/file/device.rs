//! Files of devices: those of the kernel alone, as `/dev/null`, and `/dev/NAME0` and so on, by which a process that a
//! device is bound to maps its registers.

use core::fmt::Write;

use spin::Once;

use crate::linux::errno::Errno;
use crate::mm::counted::Counted;
use crate::mm::space::{HasRegisters, Object, Space};

/// A device that is the kernel's alone (Linux: `drivers/char/mem.c`, `drivers/char/random.c`, `fs/userfaultfd.c`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KernelDevice {
    /// Empty, and takes all.
    Null,
    /// Zeros without an end; takes all. A mapping of it is memory.
    Zero,
    /// Zeros without an end; has room for nothing.
    Full,
    /// Random numbers; takes what they are to depend on.
    Random,
    /// As [`Self::Random`]. There is no difference once the numbers are seeded.
    Urandom,
    /// Makes userfaultfds.
    Userfaultfd,
}

impl KernelDevice {
    /// Each with its name below `/dev` and its permissions.
    pub const ALL: [(&str, u32, Self); 6] = [
        ("null", 0o666, Self::Null),
        ("zero", 0o666, Self::Zero),
        ("full", 0o666, Self::Full),
        ("random", 0o666, Self::Random),
        ("urandom", 0o666, Self::Urandom),
        ("userfaultfd", 0o600, Self::Userfaultfd),
    ];

    /// Whether its bytes are random numbers.
    pub const fn is_random(self) -> bool {
        matches!(self, Self::Random | Self::Urandom)
    }

    /// `st_rdev`, Linux's: of its devices of memory, and the last of those that have any minor number.
    pub const fn of_stat(self) -> u64 {
        const MEMORY: u64 = 1 << 8;
        match self {
            Self::Null => MEMORY | 3,
            Self::Zero => MEMORY | 5,
            Self::Full => MEMORY | 7,
            Self::Random => MEMORY | 8,
            Self::Urandom => MEMORY | 9,
            Self::Userfaultfd => 10 << 8 | 255,
        }
    }
}

/// Devices of one kind.
#[derive(Debug)]
pub struct DeviceKind {
    /// The name of their files, before the number.
    pub name: &'static str,
    /// How many the machine has.
    pub count: fn() -> usize,
    /// The one with a number, if it was started: what binds it does that.
    pub started: fn(usize) -> Option<&'static dyn HasRegisters>,
}

static KINDS: Once<&'static [DeviceKind]> = Once::new();

/// Sets which devices have files. Once.
pub fn set_kinds(kinds: &'static [DeviceKind]) {
    KINDS.call_once(|| kinds);
}

/// A device that has a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceNumber {
    kind: usize,
    index: usize,
}

impl DeviceNumber {
    /// Calls `each` with the name of each below `/dev`, and with its number.
    ///
    /// # Errors
    /// The first of `each`.
    pub fn for_each(each: impl FnMut(&[u8], Self) -> Result<(), Errno>) -> Result<(), Errno> {
        Self::for_each_in(KINDS.get().copied().unwrap_or_default(), each)
    }

    fn for_each_in(kinds: &[DeviceKind], mut each: impl FnMut(&[u8], Self) -> Result<(), Errno>) -> Result<(), Errno> {
        for (kind, of_kind) in kinds.iter().enumerate() {
            for index in 0..(of_kind.count)() {
                let mut name = heapless::String::<32>::new();
                write!(name, "{}{index}", of_kind.name).map_err(|_| Errno::ENAMETOOLONG)?;
                each(name.as_bytes(), Self { kind, index })?;
            }
        }
        Ok(())
    }

    /// The object of its registers, if it is bound to `space`.
    fn registers(self, space: &Space) -> Option<Counted<Object>> {
        let kind = KINDS.get()?.get(self.kind)?;
        (kind.started)(self.index)?.registers(space)
    }

    /// `st_rdev`: from the major numbers that Linux leaves to local devices.
    pub const fn of_stat(self) -> u64 {
        const LOCAL: u64 = 240;
        (LOCAL + self.kind as u64) << 8 | self.index as u64
    }
}

/// A page of registers for a mapping in `space`, as a driver's `mmap` checks it.
///
/// # Errors
/// `EINVAL` (private, not at the start, or not one page), `EPERM` (executable), `ENXIO`: the device is not bound to `space`.
pub fn registers(
    device: DeviceNumber,
    space: &Space,
    is_shared: bool,
    pages: u64,
    first_page: u64,
    is_executable: bool,
) -> Result<Counted<Object>, Errno> {
    if !is_shared || pages != 1 || first_page != 0 {
        return Err(Errno::EINVAL);
    }
    if is_executable {
        return Err(Errno::EPERM);
    }
    device.registers(space).ok_or(Errno::ENXIO)
}

#[cfg(test)]
mod tests {
    use std::string::String;
    use std::vec::Vec;

    use super::{DeviceKind, DeviceNumber};

    #[test]
    fn files_of_devices_have_names_with_numbers() {
        let kinds = [
            DeviceKind { name: "one", count: || 2, started: |_| None },
            DeviceKind { name: "two", count: || 11, started: |_| None },
        ];
        let mut found = Vec::new();
        let each = |name: &[u8], number: DeviceNumber| {
            found.push((String::from_utf8(name.to_vec()).unwrap(), number.kind, number.index, number.of_stat()));
            Ok(())
        };
        DeviceNumber::for_each_in(&kinds, each).unwrap();
        assert_eq!(found.len(), 13);
        assert_eq!(found[1], ("one1".into(), 0, 1, 240 << 8 | 1));
        assert_eq!(found[12], ("two10".into(), 1, 10, 241 << 8 | 10));
    }
}
