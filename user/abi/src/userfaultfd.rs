//! userfaultfd: `linux/userfaultfd.h`.

/// userfaultfd: accesses of the kernel fail.
pub const UFFD_USER_MODE_ONLY: u32 = 1;
/// Of `/dev/userfaultfd`: a new userfaultfd, with the flags of the call.
pub const USERFAULTFD_IOC_NEW: u32 = 0xaa00;

/// The version that [`UFFDIO_API`] agrees upon.
pub const UFFD_API: u64 = 0xaa;

/// ioctl: [`Api`], before all others.
pub const UFFDIO_API: u32 = 0xc018_aa3f;
/// ioctl: [`Register`].
pub const UFFDIO_REGISTER: u32 = 0xc020_aa00;
/// ioctl: [`Range`].
pub const UFFDIO_UNREGISTER: u32 = 0x8010_aa01;
/// ioctl: [`Range`].
pub const UFFDIO_WAKE: u32 = 0x8010_aa02;
/// ioctl: [`struct@Copy`].
pub const UFFDIO_COPY: u32 = 0xc028_aa03;
/// ioctl: [`Fill`].
pub const UFFDIO_ZEROPAGE: u32 = 0xc020_aa04;
/// ioctl: [`struct@Copy`].
pub const UFFDIO_MOVE: u32 = 0xc028_aa05;
/// ioctl: [`WriteProtect`].
pub const UFFDIO_WRITEPROTECT: u32 = 0xc018_aa06;
/// ioctl: [`Fill`].
pub const UFFDIO_CONTINUE: u32 = 0xc020_aa07;
/// ioctl: [`Fill`].
pub const UFFDIO_POISON: u32 = 0xc020_aa08;
/// The bits of calls in [`Api::ioctls`] and [`Register::ioctls`]: the number of a call is its lowest byte.
pub const fn ioctl_bit(call: u32) -> u64 {
    1 << (call & 0x3f)
}

/// [`Api::features`]: messages say whether a page is write-protected.
pub const UFFD_FEATURE_PAGEFAULT_FLAG_WP: u64 = 1;
/// [`Api::features`]: a fork is an event.
pub const UFFD_FEATURE_EVENT_FORK: u64 = 1 << 1;
/// [`Api::features`]: mremap is an event.
pub const UFFD_FEATURE_EVENT_REMAP: u64 = 1 << 2;
/// [`Api::features`]: pages that are discarded are an event.
pub const UFFD_FEATURE_EVENT_REMOVE: u64 = 1 << 3;
/// [`Api::features`]: shared memory can be registered.
pub const UFFD_FEATURE_MISSING_SHMEM: u64 = 1 << 5;
/// [`Api::features`]: munmap is an event.
pub const UFFD_FEATURE_EVENT_UNMAP: u64 = 1 << 6;
/// [`Api::features`]: faults are SIGBUS.
pub const UFFD_FEATURE_SIGBUS: u64 = 1 << 7;
/// [`Api::features`]: messages have the number of the thread.
pub const UFFD_FEATURE_THREAD_ID: u64 = 1 << 8;
/// [`Api::features`]: shared memory can be registered for the first accesses to pages that its object has.
pub const UFFD_FEATURE_MINOR_SHMEM: u64 = 1 << 10;
/// [`Api::features`]: messages have the address within its page.
pub const UFFD_FEATURE_EXACT_ADDRESS: u64 = 1 << 11;
/// [`Api::features`]: shared memory can be write-protected.
pub const UFFD_FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
/// [`Api::features`]: anonymous pages that were never accessed can be write-protected.
pub const UFFD_FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
/// [`Api::features`]: pages can be poisoned.
pub const UFFD_FEATURE_POISON: u64 = 1 << 14;
/// [`Api::features`]: a store to a page that is write-protected ends that, and is no message.
pub const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;
/// [`Api::features`]: pages can be moved.
pub const UFFD_FEATURE_MOVE: u64 = 1 << 16;

/// [`Register::mode`]: first accesses.
pub const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;
/// [`Register::mode`]: stores to what is write-protected.
pub const UFFDIO_REGISTER_MODE_WP: u64 = 2;
/// [`Register::mode`]: first accesses to pages that the object has.
pub const UFFDIO_REGISTER_MODE_MINOR: u64 = 4;
/// [`Copy::mode`]: wakes nothing.
pub const UFFDIO_COPY_MODE_DONTWAKE: u64 = 1;
/// [`Copy::mode`]: the copies are write-protected.
pub const UFFDIO_COPY_MODE_WP: u64 = 2;
/// [`Copy::mode`] of [`UFFDIO_MOVE`]: wakes nothing.
pub const UFFDIO_MOVE_MODE_DONTWAKE: u64 = 1;
/// [`Copy::mode`] of [`UFFDIO_MOVE`]: where no page is, none is moved.
pub const UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES: u64 = 2;
/// [`Fill::mode`] of [`UFFDIO_CONTINUE`]: wakes nothing.
pub const UFFDIO_CONTINUE_MODE_DONTWAKE: u64 = 1;
/// [`Fill::mode`] of [`UFFDIO_CONTINUE`]: the pages are write-protected.
pub const UFFDIO_CONTINUE_MODE_WP: u64 = 2;
/// [`Fill::mode`] of [`UFFDIO_ZEROPAGE`] and of [`UFFDIO_POISON`]: wakes nothing.
pub const UFFDIO_ZEROPAGE_MODE_DONTWAKE: u64 = 1;
/// [`WriteProtect::mode`]: protects, and does not end that.
pub const UFFDIO_WRITEPROTECT_MODE_WP: u64 = 1;
/// [`WriteProtect::mode`]: wakes nothing.
pub const UFFDIO_WRITEPROTECT_MODE_DONTWAKE: u64 = 2;

/// [`Message::event`]: a fault.
pub const UFFD_EVENT_PAGEFAULT: u8 = 0x12;
/// [`Message::event`]: a fork.
pub const UFFD_EVENT_FORK: u8 = 0x13;
/// [`Message::event`]: mappings have moved.
pub const UFFD_EVENT_REMAP: u8 = 0x14;
/// [`Message::event`]: pages are discarded.
pub const UFFD_EVENT_REMOVE: u8 = 0x15;
/// [`Message::event`]: mappings are gone.
pub const UFFD_EVENT_UNMAP: u8 = 0x16;
/// [`Message::words`] of a fault: a store.
pub const UFFD_PAGEFAULT_FLAG_WRITE: u64 = 1;
/// [`Message::words`] of a fault: of a page that is write-protected.
pub const UFFD_PAGEFAULT_FLAG_WP: u64 = 2;
/// [`Message::words`] of a fault: of a page that the object has, and the space not.
pub const UFFD_PAGEFAULT_FLAG_MINOR: u64 = 4;

/// `struct uffdio_api`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Api {
    /// [`UFFD_API`].
    pub api: u64,
    /// Those that are asked for; then those that there are.
    pub features: u64,
    /// The calls that there are.
    pub ioctls: u64,
}

/// `struct uffdio_range`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Register {
    /// The range to register.
    pub range: Range,
    /// For which faults.
    pub mode: u64,
    /// The calls that its pages take.
    pub ioctls: u64,
}

/// `struct uffdio_copy`, `struct uffdio_move`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Copy {
    /// Where pages are missing.
    pub dst: u64,
    /// The pages that they become copies of, or that move there.
    pub src: u64,
    /// Bytes.
    pub len: u64,
    /// How.
    pub mode: u64,
    /// Bytes that were copied or moved, or an error's number negated.
    pub copy: i64,
}

/// `struct uffdio_zeropage`, `struct uffdio_continue`, `struct uffdio_poison`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Fill {
    /// Where pages are missing.
    pub range: Range,
    /// How.
    pub mode: u64,
    /// Bytes that were filled, or an error's number negated.
    pub filled: i64,
}

/// `struct uffdio_writeprotect`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct WriteProtect {
    /// Which pages.
    pub range: Range,
    /// How.
    pub mode: u64,
}

/// `struct uffd_msg`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Message {
    /// One of the `UFFD_EVENT_`.
    pub event: u8,
    /// Nothing.
    pub reserved: [u8; 7],
    /// By event: flags, address and thread; a descriptor; from, to and bytes; start and end.
    pub words: [u64; 3],
}
