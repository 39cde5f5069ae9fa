//! The kinds of memory, and how each is made.

use super::*;
use crate::mm::space::{Commitment, Enrolment, MappedFile, Seals, Terms};

/// The kind of object that the pages are of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Of {
    Anonymous,
    /// A memory file.
    File,
    /// A file of the initrd, whose pages are reclaimed.
    Rom,
    /// A device's registers.
    Registers,
    /// None, and the memory grows downward: the lowest page that is looked at is not mapped yet.
    Stack,
}

/// How pages are translated, where that can be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum By {
    Pages,
    /// As many as a block has, which a collapse makes one.
    ManyPages,
    Groups,
    Blocks,
}

/// The features and the enrolment of a pager that serves the pages; `None` for no pager.
type Served = Option<(u64, Enrolment)>;

/// A kind of memory.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) sharing: Sharing,
    pub(super) of: Of,
    pub(super) by: By,
    /// A child has it too.
    is_forked: bool,
    served: Served,
    /// Its commitment, or a last step of its preparation.
    then: Option<Then>,
    pub(super) branches: &'static [u16],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Droppable,
    Guarded,
    Locked,
    Tagged,
}

const BOTH: Enrolment = Enrolment { missing: true, minor: false, write_protected: true };
const MISSING: Enrolment = Enrolment { missing: true, minor: false, write_protected: false };
const MINOR: Enrolment = Enrolment { minor: true, ..BOTH };
const PROTECTED: Enrolment = Enrolment { missing: false, minor: false, write_protected: true };
const WITHOUT_EVENTS: u64 = Features::ALL.0
    & !(Features::WP_ASYNC
        | Features::SIGBUS
        | Features::EVENT_FORK
        | Features::EVENT_REMAP
        | Features::EVENT_REMOVE
        | Features::EVENT_UNMAP);
/// A store ends the protection of its page.
const TRACKED: u64 = WITHOUT_EVENTS | Features::WP_ASYNC;

const fn kind(name: &'static str, sharing: Sharing, of: Of, by: By) -> Kind {
    Kind { name, sharing, of, by, is_forked: false, served: None, then: None, branches: &[] }
}

const PRIVATE: Kind = kind("private", Sharing::Private, Of::Anonymous, By::Pages);
const SHARED: Kind = kind("shared", Sharing::Shared, Of::Anonymous, By::Pages);
const GROUPS: Kind = Kind { by: By::Groups, name: "groups", ..PRIVATE };
const BLOCKS: Kind = Kind { by: By::Blocks, name: "blocks", ..PRIVATE };
const MANY: Kind = Kind { by: By::ManyPages, name: "many", ..PRIVATE };
const FILE: Kind = kind("file", Sharing::Shared, Of::File, By::Pages);
const LIVE: &[u16] = &[branch::SIZE_CHANGE];

pub(super) const KINDS: &[Kind] = &[
    PRIVATE,
    Kind { name: "forked", is_forked: true, ..PRIVATE },
    SHARED,
    FILE,
    Kind { name: "private_file", sharing: Sharing::Private, ..FILE },
    kind("rom", Sharing::Private, Of::Rom, By::Pages),
    Kind { name: "guarded", then: Some(Then::Guarded), ..PRIVATE },
    Kind { name: "locked", then: Some(Then::Locked), is_forked: true, ..PRIVATE },
    Kind { name: "droppable", then: Some(Then::Droppable), is_forked: true, ..PRIVATE },
    kind("stack", Sharing::Private, Of::Stack, By::Pages),
    kind("registers", Sharing::Shared, Of::Registers, By::Pages),
    Kind { name: "tagged", then: Some(Then::Tagged), branches: &[branch::MTE, branch::TAG_STORAGE], ..PRIVATE },
    Kind { name: "missing", served: Some((WITHOUT_EVENTS, MISSING)), is_forked: true, ..PRIVATE },
    Kind { name: "protected", served: Some((WITHOUT_EVENTS, PROTECTED)), is_forked: true, ..PRIVATE },
    Kind { name: "protected_file", served: Some((WITHOUT_EVENTS, BOTH)), ..FILE },
    Kind { name: "minor_file", served: Some((WITHOUT_EVENTS, MINOR)), ..FILE },
    Kind { name: "tracked", served: Some((TRACKED, PROTECTED)), is_forked: true, ..PRIVATE },
    Kind { name: "sigbus", served: Some((WITHOUT_EVENTS | Features::SIGBUS, BOTH)), is_forked: true, ..PRIVATE },
    GROUPS,
    Kind { name: "groups_live", branches: LIVE, ..GROUPS },
    Kind { name: "groups_forked", is_forked: true, ..GROUPS },
    Kind { name: "groups_protected", served: Some((WITHOUT_EVENTS, PROTECTED)), ..GROUPS },
    MANY,
    Kind { name: "many_forked", is_forked: true, ..MANY },
    Kind { name: "many_protected", served: Some((WITHOUT_EVENTS, PROTECTED)), ..MANY },
    Kind { name: "many_missing", served: Some((WITHOUT_EVENTS, MISSING)), ..MANY },
    BLOCKS,
    Kind { name: "blocks_live", branches: LIVE, ..BLOCKS },
    Kind { name: "blocks_forked", is_forked: true, ..BLOCKS },
    Kind { name: "blocks_shared", by: By::Blocks, ..FILE },
    Kind { name: "blocks_shared_live", by: By::Blocks, branches: LIVE, ..FILE },
    Kind { name: "blocks_protected", served: Some((WITHOUT_EVENTS, PROTECTED)), ..BLOCKS },
    Kind { name: "blocks_tracked", served: Some((TRACKED, PROTECTED)), ..BLOCKS },
];

impl Kind {
    pub(super) fn rig(&self) -> &'static Rig {
        let mib = match self.by {
            By::Pages => 4,
            By::Groups => 6,
            By::ManyPages | By::Blocks => 16,
        };
        let rig =
            if self.then == Some(Then::Tagged) { Rig::with(leaked_with_tag_storage(8, PAGE)) } else { Rig::new(mib) };
        if self.then == Some(Then::Tagged) {
            rig.spaces.start_tags().unwrap();
        }
        Box::leak(Box::new(rig))
    }

    /// Whether a fault that a pager would serve is a signal.
    pub(super) fn is_sigbus(&self) -> bool {
        self.served.is_some_and(|(features, _)| features & Features::SIGBUS != 0)
    }

    /// The pages that are looked at, of so many.
    pub(super) const fn pages(&self) -> (&'static [u64], u64) {
        match (self.by, self.of) {
            (_, Of::Registers) => (&[0], 1),
            (_, Of::Stack) => (&[1, 2, 3, 0], 4),
            (By::Pages, _) => (&[0, 1, 2, 3], 4),
            (By::Groups, _) => (&[0, 1, 15, 16], 18),
            (By::ManyPages | By::Blocks, _) => (&[0, 1, 511, 512], 514),
        }
    }

    /// Memory of this kind in a space of its own: some pages were written, one was read, and one not touched.
    pub(super) fn world(&'static self, rig: &'static Rig, devices: &[Notified]) -> Arc<World> {
        const CONTENTS: [u8; 4 * PAGE as usize] = [0x77; 4 * PAGE as usize];
        let (cpu, space, (looked_at, count)) = (&rig.cpu, rig.space(), self.pages());
        let bytes = count * PAGE;
        let file = match self.of {
            Of::Anonymous | Of::Stack => None,
            Of::File => Some(rig.spaces.create_object(cpu, bytes, None, Seals(0))),
            Of::Rom => Some(rig.spaces.create_object(cpu, bytes, Some(&CONTENTS), Seals(0))),
            Of::Registers => Some(rig.spaces.create_registers(cpu, REGISTERS)),
        };
        let file = file.map(|file| file.unwrap());
        let missing = u64::from(self.of == Of::Stack);
        let placement = Placement::Fixed(START + missing * PAGE);
        let request = MapRequest { placement, sharing: self.sharing, ..private(count - missing) };
        let terms = Terms {
            grows: self.of == Of::Stack,
            commitment: match self.then {
                Some(Then::Droppable) => Commitment::DROPPABLE,
                _ => Commitment::WITHIN_MEMORY,
            },
            file: file.as_ref().map(|object| MappedFile { object, first_page: 0, may_write: true }),
            ..Terms::NONE
        };
        space.mmap_within(cpu, &request, &terms, &|| false).unwrap();
        if !matches!(self.by, By::Pages | By::ManyPages) {
            space.madvise_areas(cpu, START, bytes, AreaAdvice::HugePage).unwrap();
        }
        let at = |index: usize| START + looked_at[index] * PAGE;
        let write = |index: usize| {
            for offset in LOOK {
                space.write_bytes(cpu, at(index) + offset, &[index as u8 + 1]).unwrap();
            }
        };
        if self.of == Of::Registers {
            handle_fault(&space, cpu, START, Access::Read).unwrap();
        } else {
            write(0);
            write(1);
            rig.read(&space, at(2));
        }
        let mut family = Vec::new();
        if self.is_forked {
            family.push(space.fork(cpu).unwrap());
            write(0);
        }
        let pager = self.served.map(|(features, enrolment)| {
            // The kernel's accesses fail, and do not wait for a pager.
            let pager = Userfaultfd::new(&space, true, 0).unwrap();
            pager.agree(Features(features)).unwrap();
            Userfaultfd::register(&pager, cpu, START, bytes, enrolment).unwrap();
            if enrolment.write_protected {
                pager.write_protect(cpu, Some(&space), at(1), PAGE, Mark::Set).unwrap();
            }
            pager
        });
        match self.then {
            None | Some(Then::Droppable) => {}
            Some(Then::Guarded) => space.madvise_guard(cpu, at(1), 2 * PAGE, &|| false).unwrap(),
            Some(Then::Locked) => space.mlock(cpu, START, bytes, Locking::Now, &|| false).unwrap(),
            Some(Then::Tagged) => space.mprotect(START, bytes, TAGGED).unwrap(),
        }
        let handle = SpaceHandle::new(&space);
        let devices = devices.iter().map(|&notified| Device::join(&handle, notified).unwrap()).collect();
        let world = World {
            rig,
            kind: self,
            handle,
            main: Mutex::new(Some(space)),
            left: Mutex::default(),
            family: Mutex::new(family),
            file,
            pager: Mutex::new(pager.map(|pager| Arc::new(PagerFile(pager)))),
            devices,
            bound: Mutex::default(),
        };
        world.devices_walk();
        Arc::new(world)
    }
}
