//! Pages that a pager moves, against a model that moves them one by one.

use std::collections::BTreeMap;
use std::thread;

use granule_arch::alternative::host;
use granule_arch::descriptor::Descriptor;
use granule_pgtable::host::Operation;

use super::*;
use crate::mm::kernel::record::record;
use crate::mm::page_block::BLOCK_FRAMES;
use crate::mm::space::{AreaAdvice, Holes, Transfer, UserfaultError};
use crate::platform::features::branch;

/// Sequences, and calls of each.
const ROUNDS: u64 = 60;
const CALLS: u64 = 150;
/// Pages of a window: over the border of two tables.
const PAGES: u64 = 40;
/// Of one with blocks.
const BLOCK_PAGES: u64 = BLOCK_FRAMES as u64 + 24;
/// The windows: of pages, of groups at another offset, and of a block. All have a registered area.
const WINDOWS: [(VirtAddr, u64); 4] = [
    (VirtAddr(0x10_0000_0000 - 16 * PAGE), PAGES),
    (VirtAddr(0x10_4000_0000 - 16 * PAGE), PAGES),
    (VirtAddr(0x10_8000_0000 - 3 * PAGE), PAGES),
    (VirtAddr(0x10_c000_0000), BLOCK_PAGES),
];

fn transfer(
    rig: &Rig,
    pager: &Userfaultfd,
    space: &Space,
    [to, from]: [VirtAddr; 2],
    pages: u64,
    holes: Holes,
) -> (u64, Result<(), FillError>) {
    let (done, result) = pager.transfer(&rig.cpu, space, &Transfer { to, from, bytes: pages * PAGE, holes });
    assert_eq!(done % PAGE, 0);
    (done / PAGE, result)
}

fn call_error(error: UserfaultError) -> Result<(), FillError> {
    Err(FillError::Call(error))
}

/// A page as the model knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Known {
    /// It has no table either.
    NoTable,
    Empty,
    Zeros,
    Own(PhysAddr),
    Shared(PhysAddr),
    /// Something that does not move.
    Marker,
}

fn known(rig: &Rig, space: &Space, page: VirtAddr) -> Known {
    if let Some(found) = space.tables().translate(page) {
        let references = || rig.spaces.record(found.physical).references();
        let is_sole = match space.block_entry(page) {
            Some(block) => rig.spaces.block(block.address()).is_sole(),
            None => found.descriptor.is_special() || references() == 1,
        };
        return match (found.descriptor.is_special(), is_sole) {
            (true, _) => Known::Zeros,
            (false, true) => Known::Own(found.physical),
            (false, false) => Known::Shared(found.physical),
        };
    }
    match space.page_tables().cell(page).map(|(_, cell)| space.mmu().load(cell)) {
        None if space.is_block_or_marker(page) => Known::Marker,
        None => Known::NoTable,
        Some(Descriptor::EMPTY) => Known::Empty,
        Some(_) => Known::Marker,
    }
}

struct World {
    rig: &'static Rig,
    space: SpaceRef,
    child: Option<SpaceRef>,
    pager: Counted<Userfaultfd>,
    random: u64,
    /// The steps that were done, for the message of a test that fails.
    done: Vec<std::string::String>,
    /// Calls that moved something, and those that ended before the end.
    moved: u64,
    short: u64,
}

impl World {
    fn new(rig: &'static Rig, round: u64) -> Self {
        let space = rig.space();
        let features = if round.is_multiple_of(2) { Features::WP_UNPOPULATED } else { 0 };
        let pager = pager(&space, features);
        for (window, (start, pages)) in WINDOWS.into_iter().enumerate() {
            let request = MapRequest { placement: Placement::Fixed(start), ..private(pages) };
            space.mmap(&rig.cpu, &request).unwrap();
            if window % 2 == 1 {
                space.madvise_areas(&rig.cpu, start, pages * PAGE, AreaAdvice::HugePage).unwrap();
            }
            Userfaultfd::register(&pager, &rig.cpu, start, pages * PAGE, WP).unwrap();
        }
        Self { rig, space, child: None, pager, random: round, done: Vec::new(), moved: 0, short: 0 }
    }

    fn next(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % below
    }

    /// Some pages, and as many elsewhere or beside them.
    fn ranges(&mut self) -> ([VirtAddr; 2], u64) {
        if self.next(5) == 0 {
            // They overlap, most often.
            let ((start, pages), count) = (WINDOWS[self.next(4) as usize], self.next(8) + 1);
            let at = start + self.next(pages - 15) * PAGE;
            let beside = at + self.next(4) * PAGE;
            return (if self.next(2) == 0 { [at, beside] } else { [beside, at] }, count);
        }
        let [to, from] = [(); 2].map(|()| WINDOWS[self.next(4) as usize]);
        let most = match self.next(8) {
            0 => 520,
            1 | 2 => 20,
            _ => 5,
        };
        let count = (self.next(most) + 1).min(to.1).min(from.1);
        let [to, from] = [to, from].map(|(start, pages)| start + self.next(pages - count + 1) * PAGE);
        ([to, from], count)
    }

    /// Moves pages, and compares what has become of them with the model.
    fn transfer(&mut self) {
        let ([to, from], count) = self.ranges();
        let holes = if self.next(2) == 0 { Holes::Refused } else { Holes::Skipped };
        let each = |start: VirtAddr| (0..count).map(move |page| start + page * PAGE);
        let mut model: BTreeMap<VirtAddr, Known> =
            each(to).chain(each(from)).map(|page| (page, known(self.rig, &self.space, page))).collect();
        let before = model.clone();
        let (mut expected, mut result) = (0, Ok(()));
        for (to, from) in each(to).zip(each(from)) {
            let is_empty = |known: Known| matches!(known, Known::NoTable | Known::Empty);
            result = match (model[&from], model[&to]) {
                (Known::NoTable, _) if holes == Holes::Refused => Err(FillError::Hole),
                (_, target) if !is_empty(target) => Err(FillError::Exists),
                (Known::NoTable | Known::Empty, _) if holes == Holes::Refused => Err(FillError::Hole),
                (Known::NoTable | Known::Empty, _) => Ok(()),
                (Known::Marker, _) => Err(FillError::Fault),
                (Known::Shared(_), _) => Err(FillError::Shared),
                (page, _) => {
                    model.insert(from, Known::Empty);
                    model.insert(to, page);
                    Ok(())
                }
            };
            if result.is_err() {
                break;
            }
            expected += 1;
        }
        let name = std::format!("{count} pages from {from} to {to}, {holes:?}");
        let found = transfer(self.rig, &self.pager, &self.space, [to, from], count, holes);
        assert_eq!(found, (expected, result), "{name}: {:#x?}", self.done);
        for (&page, &wanted) in &model {
            let same = |known| if known == Known::NoTable { Known::Empty } else { known };
            let now = known(self.rig, &self.space, page);
            assert_eq!(same(now), same(wanted), "{page}, {name}: {:#x?}", self.done);
            if now != before[&page] && matches!(now, Known::Own(_) | Known::Zeros) {
                let entry = self.space.tables().translate(page).unwrap().descriptor;
                assert!(!entry.is_uffd_wp() && entry.is_valid() && entry.is_young(), "{page}, {name}: {entry:?}");
                assert_eq!(entry.may_be_written(), now != Known::Zeros, "{page}, {name}: {entry:?}");
            }
        }
        if expected != 0 && matches!(model[&to], Known::Own(_)) && before[&to] != model[&to] && self.next(4) == 0 {
            // It is found by its new address.
            assert_ne!(self.rig.migrate(&self.rig.cpu, &self.space, to), Some(Err(Unmovable::NotFound)), "{name}");
        }
        self.moved += u64::from(expected != 0);
        self.short += u64::from(expected != 0 && result.is_err());
        self.done.push(name);
    }

    fn step(&mut self) {
        let call = self.next(20);
        let ([at, _], count) = self.ranges();
        let (rig, cpu, bytes) = (self.rig, &self.rig.cpu, count * PAGE);
        match call {
            0..4 => (0..count.min(24)).for_each(|page| _ = access(&self.space, cpu, at + page * PAGE, Access::Write)),
            4 => (0..count.min(24)).for_each(|page| _ = access(&self.space, cpu, at + page * PAGE, Access::Read)),
            5 => self.space.madvise_dontneed(cpu, at, bytes).unwrap(),
            6 => self.pager.write_protect(cpu, None, at, bytes, Mark::Set).unwrap(),
            7 => self.pager.write_protect(cpu, None, at, bytes, Mark::Clear).unwrap(),
            8 if count < 6 => self.space.madvise_guard(cpu, at, bytes, &|| false).unwrap(),
            9 => _ = rig.migrate(cpu, &self.space, at),
            10 => self.child = Some(self.space.fork(cpu).unwrap()),
            11 => self.child = None,
            12 if count < 6 => _ = self.pager.fill(cpu, None, at, bytes, Content::Poison),
            13 => _ = divide(&self.space, VirtAddr(0x10_6000_0000)),
            14 => {
                for (start, pages) in WINDOWS {
                    self.space.madvise_dontneed(cpu, start, pages * PAGE).unwrap();
                    self.space.madvise_unguard(start, pages * PAGE).unwrap();
                }
            }
            _ => return self.transfer(),
        }
        self.done.push(std::format!("call {call} of {count} pages at {at}"));
    }

    fn end(self) {
        self.pager.close();
        drop((self.space, self.child, self.pager));
        assert_eq!((self.rig.used(), self.rig.spaces.counts()), (0, [0; 3]), "something is leaked");
        assert_eq!(self.rig.frames.stats().refused, 0, "a frame is freed twice");
    }
}

#[test]
fn pages_move_as_if_one_by_one() {
    for live in [&[][..], &[branch::SIZE_CHANGE]] {
        let rig: &'static Rig = Box::leak(Box::new(Rig::new(24)));
        let (mut moved, mut short) = (0, 0);
        for round in 0..ROUNDS {
            host::with(live, || {
                let mut world = World::new(rig, round);
                (0..CALLS).for_each(|_| world.step());
                moved += world.moved;
                short += world.short;
                world.end();
            });
        }
        assert!(moved > 500 && short > 100, "{moved} calls moved pages, {short} of them not all");
    }
}

/// The areas of a move, and what it is refused for, in Linux's order.
#[test]
fn areas_that_are_not_alike_are_refused() {
    let rig = Rig::new(4);
    let space = rig.space();
    let map = |start: VirtAddr, request: MapRequest| {
        space.mmap(&rig.cpu, &MapRequest { placement: Placement::Fixed(start), ..request }).unwrap()
    };
    let (to, from, shared) = (map(START, private(4)), map(START + 8 * PAGE, private(4)), START + 16 * PAGE);
    map(shared, MapRequest { sharing: Sharing::Shared, ..private(4) });
    rig.write(&space, from, 1);
    rig.write(&space, shared, 1);
    let own = pager(&space, 0);
    let others = pager(&space, 0);
    let ask = |to, from, pages| transfer(&rig, &own, &space, [to, from], pages, Holes::Refused);
    let (invalid, nowhere) = ((0, call_error(UserfaultError::Invalid)), (0, call_error(UserfaultError::NotRegistered)));
    assert_eq!(ask(to, from, 1), invalid, "with no userfaultfd");
    Userfaultfd::register(&others, &rig.cpu, to, 4 * PAGE, BOTH).unwrap();
    assert_eq!(ask(to, from, 1), invalid, "with another one");
    others.close();
    Userfaultfd::register(&own, &rig.cpu, to, 4 * PAGE, BOTH).unwrap();
    Userfaultfd::register(&own, &rig.cpu, shared, 4 * PAGE, BOTH).unwrap();
    assert_eq!(ask(to + 4 * PAGE, from, 1), nowhere);
    assert_eq!(ask(to, from + 4 * PAGE, 1), nowhere);
    assert_eq!(ask(to, from, 5), invalid, "not of one area");
    assert_eq!(ask(to + PAGE, from, 4), invalid, "not to one area");
    assert_eq!(ask(to, from + PAGE, 4), invalid, "not from one area");
    assert_eq!(ask(to, shared, 1), invalid);
    assert_eq!(ask(shared + PAGE, from, 1), invalid);
    for protection in [Protection::READ, READ_WRITE.and(Protection::EXECUTE), READ_WRITE.and(Protection::TAGGED)] {
        space.mprotect(from, 4 * PAGE, protection).unwrap();
        assert_eq!(ask(to, from, 1), invalid, "{protection:?}");
    }
    // The tags of an area stay.
    let again = map(START + 24 * PAGE, private(4));
    rig.write(&space, again, 2);
    space.mprotect(again, 4 * PAGE, Protection::READ).unwrap();
    space.mprotect(to, 4 * PAGE, Protection::READ).unwrap();
    assert_eq!(ask(to, again, 1), invalid, "both read-only");
    [again, to].into_iter().for_each(|at| space.mprotect(at, 4 * PAGE, READ_WRITE).unwrap());
    space.mlock(&rig.cpu, again, 4 * PAGE, crate::mm::space::Locking::OnFault, &|| false).unwrap();
    assert_eq!(ask(to, again, 1), invalid, "one is locked");
    space.mlock(&rig.cpu, again, 4 * PAGE, crate::mm::space::Locking::None, &|| false).unwrap();
    assert_eq!(ask(to, again, 1), (1, Ok(())));
    assert_eq!(rig.read(&space, to), 2);
    own.close();
}

/// Also of a page that goes from hole to hole: none of its entries is emptied while a TLB may have it.
#[test]
fn each_entry_is_invalidated_before_it_is_emptied() {
    let rig = Rig::new(4);
    let space = rig.space();
    space.mmap(&rig.cpu, &MapRequest { placement: Placement::Fixed(START), ..private(8) }).unwrap();
    let pager = pager(&space, 0);
    Userfaultfd::register(&pager, &rig.cpu, START, 8 * PAGE, WP).unwrap();
    rig.write(&space, START, 7);
    let operations = host::with(&[], || {
        record(|| {
            let moved = transfer(&rig, &pager, &space, [START + PAGE, START], 5, Holes::Skipped);
            assert_eq!(moved, (5, Ok(())));
        })
    });
    let mut invalidations = 0;
    for operation in operations {
        match operation {
            Operation::Write { old, new, .. } => assert!(!old.is_valid() || new.is_present(), "{old:?}, then {new:?}"),
            Operation::Tlbi(_) => invalidations += 1,
            _ => {}
        }
    }
    assert_eq!((invalidations, rig.read(&space, START + 5 * PAGE)), (5, 7));
    pager.close();
}

/// Areas of two parts, which the call joins.
#[test]
fn pages_move_between_parts() {
    let rig = Rig::new(4);
    let space = rig.space();
    let rooms = [START, START + (1 << 30)];
    for start in rooms {
        space.mmap(&rig.cpu, &MapRequest { placement: Placement::Fixed(start), ..private(2) }).unwrap();
    }
    let pager = pager(&space, 0);
    rooms.into_iter().for_each(|at| Userfaultfd::register(&pager, &rig.cpu, at, 2 * PAGE, WP).unwrap());
    rig.write(&space, START, 7);
    for [to, from] in [[1, 0], [0, 1]] {
        assert!(divide(&space, START + (1 << 29)));
        assert_eq!(space.areas.count(), 2);
        assert_eq!(transfer(&rig, &pager, &space, [rooms[to], rooms[from]], 1, Holes::Refused), (1, Ok(())));
        assert_eq!((space.areas.count(), rig.read(&space, rooms[to])), (1, 7));
    }
    pager.close();
}

/// Both tables are locked by address: calls in both directions, faults, and forks meet. Each word stays in one place.
#[test]
fn pages_go_to_and_fro_beside_faults() {
    const PAGES: u64 = 8;
    let rig: &'static Rig = Box::leak(Box::new(Rig::new(8)));
    let space = rig.space();
    let rooms = [START, START + (1 << 30)];
    for start in rooms {
        space.mmap(&rig.cpu, &MapRequest { placement: Placement::Fixed(start), ..private(PAGES) }).unwrap();
    }
    divide(&space, START + (1 << 29));
    let pager = pager(&space, 0);
    rooms.into_iter().for_each(|at| Userfaultfd::register(&pager, &rig.cpu, at, PAGES * PAGE, WP).unwrap());
    (0..PAGES).for_each(|page| rig.write(&space, START + page * PAGE, page as u8 + 1));
    thread::scope(|scope| {
        for direction in 0..3 {
            let (space, pager) = (&space, &pager);
            scope.spawn(move || {
                let cpu = &Cpu::new(CpuId(direction + 1));
                for round in 0..400 {
                    let page = round % PAGES * PAGE;
                    if direction == 2 {
                        // A load changes nothing of a page that is there, and a page of zeros is no word.
                        let at = rooms[round as usize / 8 % 2] + page;
                        _ = handle_fault(space, cpu, at, Access::Write);
                        pager.write_protect(cpu, None, at, PAGE, Mark::Set).unwrap();
                        continue;
                    }
                    let [to, from] = [rooms[1 - direction as usize], rooms[direction as usize]];
                    let transfer = Transfer { to: to + page, from: from + page, bytes: PAGE, holes: Holes::Refused };
                    _ = pager.transfer(cpu, space, &transfer);
                }
                rig.frames.drain_cpu(cpu);
            });
        }
    });
    pager.close();
    for page in 0..PAGES {
        let bytes = rooms.map(|start| rig.read(&space, start + page * PAGE));
        assert_eq!(bytes.into_iter().max(), Some(page as u8 + 1), "page {page}: {bytes:?}");
        assert_eq!(bytes.into_iter().min(), Some(0), "page {page}: {bytes:?}");
    }
    drop((space, pager));
    assert_eq!((rig.used(), rig.frames.stats().refused), (0, 0));
}
