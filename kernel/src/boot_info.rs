//! The structure that the entry code hands to Rust.

/// The machine as the entry code found it and the tables that it made, all by physical addresses.
///
/// `boot/src/entry.S` fills it on the boot stack.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BootInfo {
    /// x0 as entered: the device tree's address, or 0 where the loader gave none.
    pub device_tree: u64,
    /// First byte of the image in memory.
    pub image_start: u64,
    /// First byte after the image, its zeroed data included; page aligned.
    pub image_end: u64,
    /// The exception level that the kernel was entered at: 1 or 2.
    pub entry_level: u64,
    /// CNTVCT_EL0 at the entry.
    pub entry_count: u64,
    /// The level 0 table in TTBR1_EL1.
    pub root_table: u64,
    /// The level 0 table of the identity map, in TTBR0_EL1 until the boot is over.
    pub identity_root: u64,
    /// Where PSCI or a spin table starts a secondary CPU.
    pub secondary_entry: u64,
    /// The level 3 table of the fixmap's 2 MiB.
    pub fixmap_table: u64,
    /// 1 if the device tree was found sound before the image was relocated (`start::slide`), else 0.
    pub is_tree_sound: u64,
}
