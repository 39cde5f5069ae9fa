//! Attributes of open files, as `stat` has them.

use granule_abi::file::{S_IFCHR, S_IFDIR, S_IFIFO, S_IFREG};
use granule_arch::addr::{PAGE, PAGE_SIZE};

use super::files::FileNodeRef;
use super::open::{Kind, OpenFile};
use super::tree::{self, Attributes, Moment, NodeKind};

impl OpenFile {
    /// Its attributes, as a stat has them.
    pub fn stat(&self) -> FileStat {
        let special = |number: usize, mode: u32| FileStat {
            device: DEVICE_OF_OTHERS,
            number: number as u64,
            attributes: Attributes::new(mode, Moment::default()),
            links: 1,
            represented: 0,
            size: 0,
            pages: 0,
        };
        match self.kind() {
            Kind::Console => FileStat { represented: 5 << 8 | 1, ..special(usize::MAX - 2, S_IFCHR | 0o600) },
            Kind::Device(number) => {
                let represented = number.of_stat();
                FileStat { represented, ..special(usize::MAX - represented as usize, S_IFCHR | 0o600) }
            }
            Kind::Userfault(_) => special(usize::MAX - 3, 0o600),
            Kind::Node(node) => FileStat::of_node(node),
            Kind::Pipe(end) => {
                let (number, time) = end.identity();
                let attributes = Attributes::new(S_IFIFO | 0o600, Moment::at(time));
                FileStat { device: 3, attributes, ..special(number, 0) }
            }
            // As on Linux, of no kind.
            Kind::Event(_) | Kind::Timer(_) | Kind::Signals(_) | Kind::Epoll(_) => {
                FileStat { device: 4, ..special(1, 0o600) }
            }
            Kind::Process(process) => FileStat { device: 6, ..special(process.serial as usize, 0o700) },
            Kind::Proc(file) => FileStat { device: 5, ..special(usize::MAX - 3, S_IFREG | file.mode()) },
            Kind::ProcDirectory(_) => FileStat { links: 2, ..special(usize::MAX - 3, S_IFDIR | 0o555) },
        }
    }
}

/// The device of files that are on none of their own: the tree's.
const DEVICE_OF_OTHERS: u64 = tree::DEVICE;

/// The attributes that a stat shows.
pub struct FileStat {
    /// The device that it is on.
    pub device: u64,
    /// Its number there.
    pub number: u64,
    /// Mode, owner and times.
    pub attributes: Attributes,
    /// Names.
    pub links: u32,
    /// The device that it is.
    pub represented: u64,
    /// Bytes.
    pub size: u64,
    /// Pages of memory.
    pub pages: u64,
}

impl FileStat {
    fn of_node(node: &FileNodeRef) -> Self {
        let (attributes, links) = node.attributes();
        let (size, pages) = match &node.kind {
            NodeKind::File(contents) => (contents.size(), contents.pages()),
            _ => (node.size(), 0),
        };
        let represented = if let NodeKind::Kernel(device) = node.kind { device.of_stat() } else { 0 };
        Self { device: node.device, number: node.number, attributes, links, represented, size, pages }
    }

    /// `struct stat`, in words of 8 bytes.
    pub const fn words(&self) -> [u64; 16] {
        const fn pair(low: u32, high: u32) -> u64 {
            (high as u64) << 32 | low as u64
        }
        let Attributes { mode, user, group, accessed, modified, changed } = self.attributes;
        [
            self.device,
            self.number,
            pair(mode, self.links),
            pair(user, group),
            self.represented,
            0,
            self.size,
            PAGE,
            // In pages, as memory has them.
            self.pages * (PAGE_SIZE / 512) as u64,
            accessed.seconds as u64,
            accessed.nanoseconds as u64,
            modified.seconds as u64,
            modified.nanoseconds as u64,
            changed.seconds as u64,
            changed.nanoseconds as u64,
            0,
        ]
    }
}
