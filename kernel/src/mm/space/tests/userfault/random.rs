//! Long sequences of calls on areas that a pager serves, against a model with a few words for each page: whether it is
//! write-protected, what it is registered for, and whether it is poison. No store is missed, and none is reported that is
//! not protected.
//!
//! Whether a page is there, in an entry or in its object, is an input of the model and not its result: `random` checks
//! that. The rules of what survives are the tables of `zap` and of `userfault::protect`.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::vec;

use granule_arch::alternative::host;

use super::*;
use crate::mm::page_block::{BLOCK_FRAMES, BLOCK_SIZE};
use crate::mm::space::pagemap::UFFD_WP;
use crate::mm::space::scan::WRITTEN;
use crate::mm::space::{
    AreaAdvice, MappedFile, Message, Move, Object, ReadError, Remap, Seals, SpaceError, SpaceLimits, Terms, Used,
    UserfaultError,
};
use crate::sched::IfNotReady;

/// Sequences, and calls of each.
const ROUNDS: u64 = 250;
const CALLS: u64 = 400;
/// Pages of a window: over the border of two tables, and with a contiguous group.
const PAGES: u64 = 32;
/// Those of a window of blocks: a block, and pages beside it.
const BLOCK_PAGES: u64 = BLOCK_FRAMES as u64 + 8;

/// Numbers that repeat.
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }

    fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.next(of.len() as u64) as usize]
    }
}

/// The mapping of a window of addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Anonymous,
    /// Of an object, by its number.
    Shared(usize),
    Private(usize),
    /// With `MADV_HUGEPAGE`.
    AnonymousGroups,
    AnonymousBlocks,
    SharedBlocks(usize),
    /// Where areas move to.
    Free,
}

/// The object whose pages are reclaimed.
const ROM: usize = 1;
const BLOCKS: usize = 2;

const WINDOWS: [Kind; 8] = [
    Kind::Anonymous,
    Kind::Shared(0),
    Kind::Private(0),
    Kind::Private(ROM),
    Kind::AnonymousGroups,
    Kind::Free,
    Kind::SharedBlocks(BLOCKS),
    Kind::AnonymousBlocks,
];

impl Kind {
    const fn has_blocks(self) -> bool {
        matches!(self, Self::AnonymousBlocks | Self::SharedBlocks(_))
    }

    const fn pages(self) -> u64 {
        if self.has_blocks() { BLOCK_PAGES } else { PAGES }
    }

    const fn object(self) -> Option<usize> {
        match self {
            Self::Shared(object) | Self::Private(object) | Self::SharedBlocks(object) => Some(object),
            _ => None,
        }
    }

    const fn is_shared(self) -> bool {
        matches!(self, Self::Shared(_) | Self::SharedBlocks(_))
    }
}

/// The model's state of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Page {
    kind: Kind,
    /// The object's page.
    of_object: u64,
    protection: Protection,
    missing: bool,
    minor: bool,
    write_protected: bool,
    /// The next store is a message.
    mark: bool,
    poison: bool,
}

impl Page {
    fn is_registered(&self) -> bool {
        self.missing || self.minor || self.write_protected
    }

    /// Poison keeps its mark.
    fn unregister(&mut self) {
        (self.missing, self.minor, self.write_protected) = (false, false, false);
        self.mark &= self.poison;
    }
}

type Pages = BTreeMap<u64, Page>;

std::thread_local! {
    /// Markers of blocks that were met.
    static BLOCK_MARKERS: Cell<usize> = const { Cell::new(0) };
}

struct World {
    rig: &'static Rig,
    space: SpaceRef,
    objects: [Counted<Object>; 3],
    pager: Counted<Userfaultfd>,
    features: Features,
    pages: Pages,
    random: Random,
    last: Last,
}

/// The call that is under way, for the message of a test that fails.
struct Last {
    round: u64,
    step: u64,
    call: u64,
    range: Range,
}

impl Drop for Last {
    fn drop(&mut self) {
        if thread::panicking() {
            let Self { round, step, call, range } = *self;
            std::eprintln!("round {round}, step {step}: call {call} of {range:?}");
        }
    }
}

fn window_start(window: usize) -> VirtAddr {
    let start = VirtAddr(0x10_0000_0000 + ((window as u64) << 30));
    if WINDOWS[window].has_blocks() { start } else { start - 12 * PAGE }
}

/// A range of pages, in one window.
#[derive(Clone, Copy, Debug)]
struct Range {
    window: usize,
    start: VirtAddr,
    pages: u64,
}

impl Range {
    fn bytes(self) -> u64 {
        self.pages * PAGE
    }

    fn each(self) -> impl Iterator<Item = u64> + Clone {
        (0..self.pages).map(move |page| self.start.0 + page * PAGE)
    }
}

/// The features that a pager may have here.
fn features(random: &mut Random) -> Features {
    let of_memory = Features::MISSING_SHMEM | Features::MINOR_SHMEM;
    let mut features = Features::POISON | Features::WP_HUGETLBFS_SHMEM | of_memory;
    if random.next(3) == 0 {
        features |= Features::WP_ASYNC | Features::WP_UNPOPULATED;
    }
    for (feature, one_in) in [
        (Features::WP_UNPOPULATED, 2),
        (Features::EVENT_FORK, 3),
        (Features::EVENT_REMAP, 2),
        (Features::EVENT_REMOVE, 8),
        (Features::EVENT_UNMAP, 8),
    ] {
        if random.next(one_in) == 0 {
            features |= feature;
        }
    }
    Features(features)
}

impl World {
    fn new(rig: &'static Rig, rom: &'static [u8], round: u64) -> Self {
        let mut random = Random(round);
        let space = rig.space();
        let object = |bytes, contents| rig.spaces.create_object(&rig.cpu, bytes, Some(contents), Seals(0)).unwrap();
        let objects = [object(PAGES * PAGE, &[]), object(PAGES * PAGE, rom), object(BLOCK_PAGES * PAGE, &[])];
        let features = features(&mut random);
        let pager = pager(&space, features.0);
        let last = Last { round, step: 0, call: 0, range: Range { window: 0, start: VirtAddr(0), pages: 0 } };
        let mut world = Self { rig, space, objects, pager, features, pages: Pages::new(), random, last };
        for (window, of) in WINDOWS.iter().enumerate() {
            world.map(Range { window, start: window_start(window), pages: of.pages() });
        }
        world
    }

    fn end(self) {
        let Self { rig, space, objects, pager, .. } = self;
        pager.close();
        drop((space, objects, pager));
        assert_eq!((rig.used(), rig.spaces.counts()), (0, [0; 3]), "something is leaked");
        assert_eq!(rig.frames.stats().refused, 0, "a frame is freed twice");
    }

    /// Runs `call`, whose events are read concurrently; returns the userfaultfds of children.
    fn with_reader<T>(&self, feature: u64, call: impl FnOnce() -> T) -> (T, Vec<Counted<Userfaultfd>>) {
        if self.features.0 & feature == 0 {
            return (call(), Vec::new());
        }
        let done = AtomicBool::new(false);
        let pager = &self.pager;
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut childs = Vec::new();
                loop {
                    let is_done = done.load(Ordering::Acquire);
                    match pager.read(IfNotReady::Fail) {
                        Ok(reading) => {
                            if let Message::Fork(child) = reading.message() {
                                childs.push(child.clone());
                            }
                            reading.done();
                        }
                        Err(ReadError::Nothing) if is_done => return childs,
                        Err(ReadError::Nothing) => thread::yield_now(),
                        Err(error) => panic!("{error:?}"),
                    }
                }
            });
            let result = call();
            done.store(true, Ordering::Release);
            (result, reader.join().unwrap())
        })
    }

    fn is_present(&self, space: &Space, page: u64) -> bool {
        space.tables().translate(VirtAddr(page)).is_some_and(|found| found.descriptor.is_present())
    }

    /// The answer to the next access of `page`.
    fn expected(&self, space: &Space, pages: &Pages, page: u64, access: Access) -> Result<(), FaultError> {
        let known = pages.get(&page).ok_or(FaultError::NotMapped)?;
        let is_write = access == Access::Write;
        let needed = if is_write { Protection::WRITE } else { Protection::READ };
        if !known.protection.contains(needed) {
            return Err(FaultError::NotAllowed);
        }
        if known.poison {
            return Err(FaultError::Poisoned);
        }
        let is_reported = is_write && known.mark && !self.is_async();
        if !self.is_present(space, page) {
            let object = known.kind.object().map(|object| &self.objects[object]);
            let is_inside = object.is_none_or(|object| object.has_inside(known.of_object));
            let is_missing = object.is_none_or(|object| !object.has(known.of_object));
            if is_inside && (known.missing && is_missing || known.minor && !is_missing) {
                return Err(FaultError::Userfault);
            }
            if !is_inside {
                return Err(FaultError::Unusable);
            }
        }
        if is_reported { Err(FaultError::Userfault) } else { Ok(()) }
    }

    /// Whether a store ends the protection of its page.
    fn is_async(&self) -> bool {
        self.features.0 & Features::WP_ASYNC != 0
    }

    #[track_caller]
    fn check_access(&self, space: &Space, pages: &mut Pages, page: u64, access: Access) {
        let expected = self.expected(space, pages, page, access);
        let found = super::access(space, &self.rig.cpu, VirtAddr(page), access);
        assert_eq!(found, expected, "{access:?} at {page:#x}: {:?}", pages.get(&page));
        if let (Access::Write, Ok(()), Some(known)) = (access, found, pages.get_mut(&page)) {
            known.mark = false;
        }
    }

    /// As [`Self::check_access`], of the space itself.
    #[track_caller]
    fn check_own_access(&mut self, page: u64, access: Access) {
        let mut pages = core::mem::take(&mut self.pages);
        self.check_access(&self.space, &mut pages, page, access);
        self.pages = pages;
    }

    /// Finds the pages that were written, and protects them.
    fn scan(&mut self, range: Range) {
        let mut wanted = Vec::new();
        for page in range.each() {
            if let Some(known) = self.pages.get_mut(&page).filter(|known| known.write_protected)
                && self.features.0 & Features::WP_ASYNC != 0
            {
                wanted.push((page, if known.mark { 0 } else { WRITTEN }));
                known.mark = true;
            }
        }
        let found = scanned(&self.space, &self.rig.cpu, (range.start, range.pages), 0);
        let found: Vec<_> = found.iter().map(|(page, categories)| (page.0, categories & WRITTEN)).collect();
        assert_eq!(found, wanted);
    }

    /// Compares the marks of a window.
    fn check_marks(&self, space: &Space, pages: &Pages, window: usize) {
        let start = window_start(window);
        let mut shown = vec![0; WINDOWS[window].pages() as usize];
        space.pagemap(start, &mut shown);
        if space.is_block_or_marker(start) && space.block_entry(start).is_none() {
            BLOCK_MARKERS.set(BLOCK_MARKERS.get() + 1);
        }
        for (word, page) in shown.iter().zip((start.0..).step_by(PAGE as usize)) {
            let known = pages.get(&page);
            let is_marked = word & UFFD_WP != 0;
            assert_eq!(is_marked, known.is_some_and(|known| known.mark), "{page:#x}: {word:#x}, {known:?}");
            let is_poison = word >> 62 == 1 && word >> 5 & 2 != 0;
            assert_eq!(is_poison, known.is_some_and(|known| known.poison), "{page:#x}: {word:#x}, {known:?}");
        }
    }

    /// Whether calls are those of blocks, for the most part.
    fn has_blocks(&self) -> bool {
        self.last.round.is_multiple_of(4)
    }

    fn range(&mut self) -> Range {
        let window = self.random.next(WINDOWS.len() as u64) as usize;
        // Blocks take time, and more calls that concern the same one.
        let window = match self.has_blocks() {
            true => self.random.one_of(&[6, 6, 6, 7, 5]),
            _ if self.random.next(6) == 0 => window,
            _ => window % 6,
        };
        let start = window_start(window);
        let one_in = if self.has_blocks() { 24 } else { 4 };
        if WINDOWS[window].has_blocks() && self.random.next(one_in) != 0 {
            return Range { window, start, pages: BLOCK_FRAMES as u64 };
        }
        let first = self.random.next(WINDOWS[window].pages());
        let most = WINDOWS[window].pages() - first;
        let most = if self.random.next(4) == 0 { most } else { most.min(6) };
        let pages = 1 + self.random.next(most);
        Range { window, start: start + first * PAGE, pages }
    }

    /// Maps a range of its window anew.
    fn map(&mut self, range: Range) {
        let kind = WINDOWS[range.window];
        if kind == Kind::Free {
            return;
        }
        let cpu = &self.rig.cpu;
        let sharing = if kind.is_shared() { Sharing::Shared } else { Sharing::Private };
        let request = MapRequest { placement: Placement::Fixed(range.start), sharing, ..private(range.pages) };
        let first_page = (range.start - window_start(range.window)) / PAGE;
        let file =
            kind.object().map(|object| MappedFile { object: &self.objects[object], first_page, may_write: true });
        let terms = Terms { file, ..Terms::NONE };
        let map = || self.space.mmap_within(cpu, &request, &terms, &|| false);
        assert_eq!(self.with_reader(Features::EVENT_UNMAP, map).0, Ok(range.start));
        if kind.has_blocks() || kind == Kind::AnonymousGroups {
            self.space.madvise_areas(cpu, range.start, range.bytes(), AreaAdvice::HugePage).unwrap();
        }
        for (page, of_object) in range.each().zip(first_page..) {
            let page_of = Page {
                kind,
                of_object,
                protection: READ_WRITE,
                missing: false,
                minor: false,
                write_protected: false,
                mark: false,
                poison: false,
            };
            self.pages.insert(page, page_of);
        }
    }

    fn write_protect(&mut self, range: Range, mark: Mark) {
        let (mut expected, mut marked) = (Err(UserfaultError::NotRegistered), Vec::new());
        for page in range.each() {
            let Some(known) = self.pages.get(&page) else { continue };
            if !known.write_protected {
                expected = Err(UserfaultError::NotRegistered);
                break;
            }
            expected = Ok(());
            let has_markers = known.kind.object().is_some() || self.features.0 & Features::WP_UNPOPULATED != 0;
            let takes_mark = !known.poison && (has_markers || self.is_present(&self.space, page));
            // A scan alone marks poison, and nothing takes that mark.
            let is_marked = known.mark && known.poison || mark == Mark::Set && (takes_mark || known.mark);
            marked.push((page, is_marked));
        }
        assert_eq!(self.pager.write_protect(&self.rig.cpu, None, range.start, range.bytes(), mark), expected);
        for (page, is_marked) in marked {
            self.pages.get_mut(&page).unwrap().mark = is_marked;
        }
    }

    fn register(&mut self, range: Range) {
        let (mut modes, mut minor) = (
            self.random.one_of(&[(true, false), (false, true), (true, true), (false, true)]),
            self.random.next(4) == 0,
        );
        if self.has_blocks() && self.random.next(4) != 0 {
            // Else a pager serves each page.
            (modes, minor) = ((false, true), false);
        }
        let (missing, write_protected) = modes;
        let enrolment = Enrolment { missing, minor, write_protected };
        let mut mapped = range.each().filter_map(|page| self.pages.get(&page)).peekable();
        let is_mapped = mapped.peek().is_some() && mapped.all(|known| !minor || known.kind.object().is_some());
        let expected = if is_mapped { Ok(()) } else { Err(UserfaultError::Invalid) };
        let result = Userfaultfd::register(&self.pager, &self.rig.cpu, range.start, range.bytes(), enrolment);
        assert_eq!(result, expected);
        for page in range.each().filter(|_| is_mapped) {
            let Some(known) = self.pages.get_mut(&page) else { continue };
            let has = [known.missing, known.minor, known.write_protected];
            let has_all = has.into_iter().zip([missing, minor, write_protected]).all(|(has, wanted)| has || !wanted);
            if !(known.is_registered() && has_all) {
                known.mark &= write_protected || known.poison;
                (known.missing, known.minor, known.write_protected) = (missing, minor, write_protected);
            }
        }
    }

    fn unregister(&mut self, range: Range) {
        let is_mapped = range.each().any(|page| self.pages.contains_key(&page));
        let expected = if is_mapped { Ok(()) } else { Err(UserfaultError::Invalid) };
        assert_eq!(self.pager.unregister(&self.rig.cpu, range.start, range.bytes()), expected);
        range.each().for_each(|page| self.pages.get_mut(&page).into_iter().for_each(Page::unregister));
    }

    fn discard(&mut self, range: Range) {
        let is_covered = range.each().all(|page| self.pages.contains_key(&page));
        let discard = || self.space.madvise_dontneed(&self.rig.cpu, range.start, range.bytes());
        let (result, _) = self.with_reader(Features::EVENT_REMOVE, discard);
        assert_eq!(result, if is_covered { Ok(()) } else { Err(SpaceError::NoMemory) });
        for page in range.each() {
            if let Some(known) = self.pages.get_mut(&page) {
                known.poison = false;
                known.mark &= known.kind.object().is_some();
            }
        }
    }

    fn protect(&mut self, range: Range) {
        let protection = self.random.one_of(&[Protection::NONE, Protection::READ, READ_WRITE, READ_WRITE]);
        let is_covered = range.each().all(|page| self.pages.contains_key(&page));
        let result = self.space.mprotect(range.start, range.bytes(), protection);
        assert_eq!(result, if is_covered { Ok(()) } else { Err(SpaceError::NoMemory) });
        for page in range.each() {
            let Some(known) = self.pages.get_mut(&page) else { break };
            known.protection = protection;
        }
    }

    fn unmap(&mut self, range: Range) {
        let unmap = || self.space.munmap(&self.rig.cpu, range.start, range.bytes());
        self.with_reader(Features::EVENT_UNMAP, unmap).0.unwrap();
        range.each().for_each(|page| _ = self.pages.remove(&page));
    }

    /// To another window, or another place of its own.
    fn remap(&mut self, range: Range) {
        let target = self.range();
        let pages = range.pages.min(target.pages);
        let (range, target) = (Range { pages, ..range }, Range { pages, ..target });
        let overlaps =
            range.start.0 < target.start.0 + target.bytes() && target.start.0 < range.start.0 + range.bytes();
        if overlaps || !range.each().all(|page| self.pages.contains_key(&page)) {
            return;
        }
        let to = Move::To(target.start);
        let mut request = Remap::new(range.start, range.bytes(), range.bytes(), to, false).unwrap();
        let remap = || self.space.mremap(&self.rig.cpu, &mut request, &SpaceLimits::NONE);
        let (result, _) = self.with_reader(Features::EVENT_REMAP | Features::EVENT_UNMAP, remap);
        assert_eq!(result, Ok(target.start));
        for (from, to) in range.each().zip(target.each()) {
            let mut moved = self.pages.remove(&from).unwrap();
            if self.features.0 & Features::EVENT_REMAP == 0 {
                moved.unregister();
                moved.mark = false;
            }
            self.pages.insert(to, moved);
        }
    }

    /// The pages in areas of `object` whose page of the object `is_such`.
    fn of_object(&mut self, object: usize, is_such: impl Fn(u64) -> bool) -> impl Iterator<Item = (u64, &mut Page)> {
        let is_one = move |known: &Page| known.kind.object() == Some(object) && is_such(known.of_object);
        self.pages.iter_mut().map(|(page, known)| (*page, known)).filter(move |(_, known)| is_one(known))
    }

    fn truncate(&mut self, object: usize) {
        let pages = if object == BLOCKS { BLOCK_PAGES } else { PAGES };
        let size = match self.random.next(4) {
            0 | 1 => pages,
            2 => 0,
            _ => self.random.next(pages + 1),
        };
        let is_cut = size * PAGE <= self.objects[object].size();
        self.objects[object].truncate(&self.rig.cpu, size * PAGE).unwrap();
        if is_cut {
            for (_, known) in self.of_object(object, |page| page >= size) {
                known.poison = false;
            }
        }
    }

    fn punch_hole(&mut self, object: usize) {
        let first = self.random.next(PAGES);
        let end = first + self.random.next(6) + 1;
        self.objects[object].punch_hole(&self.rig.cpu, first * PAGE, end * PAGE).unwrap();
    }

    fn migrate(&self, range: Range) {
        let pages = if range.pages > PAGES { 1 } else { range.pages };
        for page in (Range { pages, ..range }).each() {
            _ = self.rig.migrate(&self.rig.cpu, &self.space, VirtAddr(page));
        }
    }

    fn fork(&mut self, range: Range) {
        let fork = || self.space.fork(&self.rig.cpu).unwrap();
        let (child, own) = self.with_reader(Features::EVENT_FORK, fork);
        let mut pages = self.pages.clone();
        let is_forked = self.features.0 & Features::EVENT_FORK != 0;
        for known in pages.values_mut() {
            if !is_forked {
                known.unregister();
            }
            known.mark &= !known.poison;
            // It finds the pages of an object there; markers that are copied have poison beside them.
            known.poison &= !known.kind.is_shared() || known.write_protected;
        }
        let is_registered = is_forked && pages.values().any(Page::is_registered);
        assert_eq!(own.len(), usize::from(is_registered));
        (0..WINDOWS.len()).for_each(|window| self.check_marks(&child, &pages, window));
        for page in range.each().take(8) {
            let access = self.random.one_of(&[Access::Read, Access::Write]);
            self.check_access(&child, &mut pages, page, access);
            self.check_own_access(page, access);
        }
        self.check_marks(&child, &pages, range.window);
        let is_dropped_first = self.random.next(2) == 0;
        if is_dropped_first {
            drop(child);
            own.iter().for_each(|own| own.close());
        } else {
            own.iter().for_each(|own| own.close());
            pages.values_mut().for_each(Page::unregister);
            (0..WINDOWS.len()).for_each(|window| self.check_marks(&child, &pages, window));
        }
    }

    /// One page of zeros, of poison, or of its object.
    fn fill(&mut self, page: u64, content: Content) {
        let invalid = Err(FillError::Call(UserfaultError::Invalid));
        let expected = match self.pages.get(&page) {
            None => Err(FillError::Call(UserfaultError::NotRegistered)),
            Some(known) if !known.is_registered() => Err(FillError::Call(UserfaultError::NotRegistered)),
            Some(known) if content == Content::Present(true) && !known.write_protected => invalid,
            Some(known) if matches!(content, Content::Present(_)) => match known.kind.object() {
                None => invalid,
                Some(object) => {
                    let (object, page_of) = (&self.objects[object], known.of_object);
                    match object.has_inside(page_of) && object.has(page_of) {
                        false => Err(FillError::Fault),
                        true if self.is_present(&self.space, page) => Err(FillError::Exists),
                        true => Ok(()),
                    }
                }
            },
            Some(known) => {
                let object = known.kind.object().map(|object| &self.objects[object]);
                let takes_markers = known.kind.is_shared() && content == Content::Zeros;
                let is_blank = !self.is_present(&self.space, page)
                    && (takes_markers && object.is_none_or(|object| !object.has(known.of_object))
                        || !takes_markers && !known.mark && !known.poison);
                match object.is_none_or(|object| object.has_inside(known.of_object)) {
                    false if known.kind.is_shared() && content != Content::Poison => {
                        Err(FillError::Call(UserfaultError::OutOfMemory))
                    }
                    false => Err(FillError::Fault),
                    true if is_blank => Ok(()),
                    true => Err(FillError::Exists),
                }
            }
        };
        let filled = self.pager.fill(&self.rig.cpu, None, VirtAddr(page), PAGE, content);
        assert_eq!(filled, (if expected.is_ok() { PAGE } else { 0 }, expected), "{page:#x}, {content:?}");
        if expected.is_ok() {
            let known = self.pages.get_mut(&page).unwrap();
            (known.mark, known.poison) = (content == Content::Present(true), content == Content::Poison);
        }
    }

    fn close(&mut self) {
        self.pager.close();
        self.pages.values_mut().for_each(Page::unregister);
        self.features = features(&mut self.random);
        self.pager = pager(&self.space, self.features.0);
    }

    fn step(&mut self) {
        let range = self.range();
        let page = range.start.0;
        let mut call = self.random.next(100);
        if self.has_blocks() && self.random.next(2) == 0 {
            // Calls that bring a block, and have it leave a marker.
            call = self.random.one_of(&[0, 8, 15, 15, 26, 34, 34, 51, 59, 99, 99]);
        }
        (self.last.step, self.last.call, self.last.range) = (self.last.step + 1, call, range);
        match call {
            0..8 => self.register(range),
            8..15 => self.scan(range),
            15..26 => self.write_protect(range, Mark::Set),
            26..34 => self.write_protect(range, Mark::Clear),
            34..42 => self.discard(range),
            42..49 => self.protect(range),
            49..51 => self.unmap(range),
            51..55 => self.map(range),
            55..59 => self.remap(range),
            59..61 => {
                let object = if self.has_blocks() { BLOCKS } else { self.random.one_of(&[0, 0, ROM, BLOCKS]) };
                self.truncate(object);
            }
            61..64 => {
                let object = if self.has_blocks() { BLOCKS } else { self.random.one_of(&[0, 0, ROM, BLOCKS]) };
                self.punch_hole(object);
            }
            64..68 => _ = self.rig.spaces.reclaim(&self.rig.cpu, usize::MAX, Used::Age, &|| false),
            68..73 => self.migrate(range),
            73 => self.fork(range),
            74..78 => self.fill(page, Content::Zeros),
            78..81 => self.fill(page, Content::Poison),
            83..86 => self.fill(page, Content::Present(call == 83)),
            81 => self.unregister(range),
            82 if self.random.next(4) == 0 => self.close(),
            // Of what is registered it waits for the pager, which is this thread.
            82 if !range.each().any(|page| self.pages.get(&page).is_some_and(Page::is_registered)) => {
                self.space.populate_again(&self.rig.cpu, range.start, range.bytes(), &|| false);
            }
            _ => {
                for page in range.each().take(4) {
                    let access = self.random.one_of(&[Access::Read, Access::Write, Access::Write]);
                    self.check_own_access(page, access);
                }
            }
        }
        let window = if self.random.next(16) == 0 { self.random.next(8) as usize } else { range.window };
        self.check_marks(&self.space, &self.pages, window);
    }
}

#[test]
fn no_store_is_missed_and_none_is_reported_that_is_not_protected() {
    assert_eq!(BLOCK_SIZE, BLOCK_FRAMES as u64 * PAGE);
    let rom: &'static [u8] = vec![1; (PAGES * PAGE) as usize].leak();
    let rig: &'static Rig = Box::leak(Box::new(Rig::new(24)));
    for round in 0..ROUNDS {
        // Also the switches of the lab are off.
        host::with(&[], || {
            let mut world = World::new(rig, rom, round);
            (0..if round % 4 == 0 { CALLS / 4 } else { CALLS }).for_each(|_| world.step());
            world.end();
        });
    }
    assert!(BLOCK_MARKERS.get() > 4, "{}", BLOCK_MARKERS.get());
}
