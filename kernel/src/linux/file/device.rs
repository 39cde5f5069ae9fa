//! Files of devices, `/dev/NAME0` and so on: a process that a device is bound to maps its registers by them.

use spin::Once;

use crate::linux::errno::Errno;
use crate::mm::counted::Counted;
use crate::mm::space::{HasRegisters, Object, Space};

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
    /// By its name below `/dev`.
    pub fn find(name: &[u8]) -> Option<Self> {
        Self::find_in(KINDS.get()?, name)
    }

    fn find_in(kinds: &[DeviceKind], name: &[u8]) -> Option<Self> {
        kinds.iter().enumerate().find_map(|(kind, of_kind)| {
            let digits = str::from_utf8(name.strip_prefix(of_kind.name.as_bytes())?).ok()?;
            let is_number = digits.bytes().all(|digit| digit.is_ascii_digit());
            let index = digits.parse().ok().filter(|_| is_number && (digits == "0" || !digits.starts_with('0')))?;
            (index < (of_kind.count)()).then_some(Self { kind, index })
        })
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
    use super::{DeviceKind, DeviceNumber};

    #[test]
    fn files_of_devices_have_names_with_numbers() {
        let kinds = [
            DeviceKind { name: "one", count: || 2, started: |_| None },
            DeviceKind { name: "two", count: || 11, started: |_| None },
        ];
        let find = |name: &str| DeviceNumber::find_in(&kinds, name.as_bytes());
        for (name, kind, index) in [("one0", 0, 0), ("one1", 0, 1), ("two0", 1, 0), ("two10", 1, 10)] {
            assert_eq!(find(name), Some(DeviceNumber { kind, index }), "{name}");
        }
        for name in [
            "",
            "one",
            "one2",
            "one00",
            "one+1",
            "one 1",
            "two11",
            "two010",
            "three0",
            "one0/",
            "two18446744073709551616",
        ] {
            assert_eq!(find(name), None, "{name}");
        }
        assert_eq!(find("two3").map(DeviceNumber::of_stat), Some(241 << 8 | 3));
    }
}
