//! No register of a device is accessed by a volatile access, which need not be one plain load or store instruction: see
//! `granule::mmio`.
//!
//! A volatile access may be one of memory that a device shares, and then it is in the list here.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use granule_tools::files;

/// The crates of the kernel.
const SOURCES: [&str; 3] = ["arch/src", "boot/src", "kernel"];

/// Accesses of memory: the file, and what the line has.
const MEMORY: [(&str, &str); 17] = [
    ("arch/src/machine/alternative.rs", "site.address.as_ptr::<u32>().read_volatile()"),
    ("kernel/src/chip/its/mod.rs", "slot.write_volatile(command.0)"),
    ("kernel/src/devices/nvme/controller.rs", "self.identity.memory.as_ptr::<u8>().add(index).read_volatile()"),
    ("kernel/src/devices/nvme/queue.rs", "at.add(index.into()).write_volatile(words)"),
    ("kernel/src/devices/nvme/queue.rs", "at.add(usize::from(index) * COMPLETION_WORDS + word).write_volatile(value)"),
    ("kernel/src/devices/nvme/queue.rs", "at.add(usize::from(self.head) * COMPLETION_WORDS + word).read_volatile()"),
    ("kernel/src/devices/virtio/queue.rs", "(&raw mut (*self.rings).available.flags).write_volatile(flags)"),
    (
        "kernel/src/devices/virtio/queue.rs",
        "(&raw mut (*self.rings).descriptors[usize::from(index % MAX_SIZE)]).write_volatile(descriptor)",
    ),
    (
        "kernel/src/devices/virtio/queue.rs",
        "(&raw mut (*self.rings).available.ring[usize::from(place % MAX_SIZE)]).write_volatile(head)",
    ),
    ("kernel/src/devices/virtio/queue.rs", "(&raw mut (*self.rings).available.index).write_volatile(index)"),
    ("kernel/src/devices/virtio/queue.rs", "(&raw const (*self.rings).used.index).read_volatile()"),
    (
        "kernel/src/devices/virtio/queue.rs",
        "(&raw const (*self.rings).used.ring[usize::from(place % MAX_SIZE)]).read_volatile()",
    ),
    ("kernel/src/devices/virtio/requests.rs", "at.cast::<[u8; HEADER_BYTES]>().write_volatile(header)"),
    ("kernel/src/devices/virtio/requests.rs", "at.add(HEADER_BYTES).write_volatile(NO_STATUS)"),
    ("kernel/src/devices/virtio/requests.rs", "self.frames.add(index * FRAME_BYTES + HEADER_BYTES).read_volatile()"),
    ("kernel/src/devices/virtio_rng.rs", "page.virt().as_ptr::<[u8; 32]>().read_volatile()"),
    ("kernel/src/mm/kernel/fixmap.rs", "ptr::write_volatile(alias.as_ptr::<u32>(), word)"),
];

/// Sources that run on the host alone, besides those in directories for tests.
const HOST: [&str; 1] = ["kernel/src/devices/virtio/model.rs"];

/// Volatile accesses in the sources below `root` that are not in the list, and entries of the list that no line has.
///
/// # Errors
/// Where a source cannot be read.
pub(crate) fn unknown(root: &Path) -> Result<Vec<String>> {
    let (mut found, mut seen) = (Vec::new(), [false; MEMORY.len()]);
    for path in SOURCES.iter().map(|directory| files(&root.join(directory), "rs")).collect::<Result<Vec<_>>>()?.concat()
    {
        let name = path.strip_prefix(root)?.display().to_string();
        let text = fs::read_to_string(&path).with_context(|| name.clone())?;
        found.extend(in_source(&name, &text, &mut seen));
    }
    let gone = MEMORY.iter().zip(seen).filter(|(_, seen)| !seen);
    found.extend(gone.map(|((file, line), _)| format!("{file}: there is no more `{line}`")));
    Ok(found)
}

/// As [`unknown`], for one source; sets in `seen` the entries of the list that it has.
fn in_source(name: &str, text: &str, seen: &mut [bool]) -> Vec<String> {
    let mut unknown = Vec::new();
    if HOST.contains(&name) || name.split('/').any(|part| ["tests", "tests.rs"].contains(&part)) {
        return unknown;
    }
    for (number, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        if !["read_volatile", "write_volatile", "VolatileCell"].iter().any(|what| code.contains(what)) {
            continue;
        }
        match MEMORY.iter().position(|(file, known)| *file == name && code.contains(known)) {
            Some(index) => seen[index] = true,
            None => unknown.push(format!("{name}:{}: a volatile access: {}", number + 1, line.trim())),
        }
    }
    unknown
}

#[cfg(test)]
mod tests {
    use super::{MEMORY, in_source, unknown};
    use granule_tools::root;

    #[test]
    fn registers_of_devices_are_accessed_by_single_instructions() {
        assert_eq!(unknown(&root()).unwrap(), Vec::<String>::new(), "use granule::mmio, or list the access in MEMORY");
    }

    #[test]
    fn a_volatile_access_is_found_wherever_it_is_new() {
        let find = |name, text: &str| in_source(name, text, &mut [false; MEMORY.len()]).len();
        let (file, line) = MEMORY[0];
        assert_eq!(find(file, line), 0);
        assert_eq!(find("kernel/src/chip/pl011.rs", line), 1, "known of another file alone");
        assert_eq!(find("kernel/src/chip/pl011.rs", "unsafe { self.base.add(6).read_volatile() }"), 1);
        assert_eq!(find("kernel/src/chip/pl011.rs", "core::ptr::write_volatile(at, 1);\n// read_volatile"), 1);
        assert_eq!(find("kernel/src/iommu/tests/emulated.rs", "at.read_volatile()"), 0);
    }
}
