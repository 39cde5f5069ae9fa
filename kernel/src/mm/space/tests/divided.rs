//! Areas in parts: who divides them and where, what joins them, and that no answer depends on it.

use super::*;
use crate::mm::space::{SpaceError, SpaceLimits, SpaceUser, Terms};

/// From where one CPU works to where the next one does.
const APART: u64 = 1 << 30;
const BASE: u64 = 0x40_0000_0000;

/// CPUs that work for one space.
struct Team {
    rig: Rig,
    cpus: Vec<Cpu>,
    space: SpaceUser,
    _other: SpaceUser,
}

impl Team {
    fn new(cpus: u32) -> Self {
        let rig = Rig::new(8);
        let space = rig.space();
        let cpus = (0..cpus).map(|number| Cpu::new(CpuId(number))).collect();
        Self { cpus, _other: SpaceUser::new(space.clone()), space: SpaceUser::new(space), rig }
    }

    /// Where a CPU works.
    fn own(&self, cpu: &Cpu) -> VirtAddr {
        VirtAddr(BASE + u64::from(cpu.id.0) * APART)
    }

    /// Each CPU in turn maps its own pages and unmaps the last of them, several times.
    fn work(&self, rounds: usize) {
        for _ in 0..rounds {
            for cpu in &self.cpus {
                let own = self.own(cpu);
                self.space.mmap(cpu, &fixed(own, 4)).unwrap();
                self.space.munmap(cpu, own + 3 * PAGE, PAGE).unwrap();
            }
        }
    }
}

fn fixed(at: VirtAddr, pages: u64) -> MapRequest {
    MapRequest { placement: Placement::Fixed(at), ..private(pages) }
}

/// Any number of pages: what is not written may be larger than all memory.
fn read_only(at: VirtAddr, pages: u64) -> MapRequest {
    MapRequest { protection: Protection::READ, ..fixed(at, pages) }
}

#[test]
fn cpus_that_work_in_turn_get_parts_of_their_own() {
    let team = Team::new(8);
    team.work(8);
    assert_eq!(team.space.areas.count(), 8, "one for each, the lowest of which was there");
    // Each still has what it mapped, and one more turn divides nothing.
    for cpu in &team.cpus {
        let own = team.own(cpu);
        assert_eq!(handle_fault(&team.space, cpu, own, Access::Write), Ok(()));
        assert_eq!(team.space.with_area(own, Area::size), Some(3 * PAGE));
        assert!(handle_fault(&team.space, cpu, own + 3 * PAGE, Access::Write).is_err());
    }
    team.work(8);
    assert_eq!(team.space.areas.count(), 8);
    let expected: Vec<_> = team.cpus.iter().map(|cpu| team.own(cpu)).map(|at| (at.0, at.0 + 3 * PAGE, 3)).collect();
    assert_eq!(areas(&team.space), expected);
}

/// Registers of a device and execute-only pages exclude each other in whatever parts they are.
#[test]
fn execute_only_pages_of_another_part_keep_registers_out() {
    use granule_arch::alternative::host;

    use crate::mm::space::MappedFile;
    use crate::platform::features::branch;

    host::with(&[branch::EXECUTE_ONLY], || {
        let team = Team::new(4);
        let (first, last) = (&team.cpus[0], &team.cpus[3]);
        let registers = team.rig.spaces.create_registers(first, PhysAddr(0x10_0800_0000)).unwrap();
        let request = MapRequest { sharing: Sharing::Shared, ..fixed(team.own(first) + 16 * PAGE, 1) };
        let terms =
            Terms { file: Some(MappedFile { object: &registers, first_page: 0, may_write: true }), ..Terms::NONE };
        let map = || team.space.mmap_within(first, &request, &terms, &|| false).map(drop);
        let protect = |protection| team.space.mprotect(team.own(last), PAGE, protection);
        for (protection, answer) in [(Protection::EXECUTE, Err(SpaceError::NotAllowed)), (READ_EXECUTE, Ok(()))] {
            team.work(8);
            assert_eq!(team.space.areas.count(), 4);
            protect(protection).unwrap();
            assert_eq!(map(), answer);
        }
        team.work(8);
        assert_eq!(team.space.areas.count(), 4);
        assert_eq!(protect(Protection::EXECUTE), Err(SpaceError::NotAllowed));
    });
}

#[test]
fn a_space_with_one_thread_is_never_divided() {
    let Team { rig: _rig, cpus, space, _other } = Team::new(2);
    drop(_other);
    for _ in 0..100 {
        for cpu in &cpus {
            space.mmap(cpu, &fixed(VirtAddr(BASE + u64::from(cpu.id.0) * APART), 1)).unwrap();
        }
    }
    assert_eq!(space.areas.count(), 1);
}

#[test]
fn one_cpu_after_another_divides_nothing() {
    let team = Team::new(2);
    for round in 0..20 {
        for cpu in &team.cpus {
            (0..10).for_each(|_| _ = team.space.mmap(cpu, &fixed(team.own(cpu), 1 + round % 2)).unwrap());
        }
    }
    assert_eq!(team.space.areas.count(), 1);
}

#[test]
fn what_reaches_over_a_border_joins_the_parts() {
    type Join = fn(&Team);
    let joins: [(&str, Join); 6] = [
        ("munmap", |team| team.space.munmap(&team.cpus[0], VirtAddr(BASE), 8 * APART).unwrap()),
        ("mmap", |team| _ = team.space.mmap(&team.cpus[0], &read_only(VirtAddr(BASE), 8 * APART / PAGE)).unwrap()),
        ("fork", |team| drop(team.space.fork(&team.cpus[0]).unwrap())),
        ("a look at the tables", |team| drop(team.space.tables())),
        ("a device that binds", |team| team.space.between_changes(|_| ()).unwrap()),
        ("the end", |team| team.space.release(&team.cpus[0])),
    ];
    for (name, join) in joins {
        let team = Team::new(8);
        team.work(8);
        assert_eq!(team.space.areas.count(), 8);
        let before = areas(&team.space);
        join(&team);
        assert_eq!(team.space.areas.count(), 1, "{name}");
        let expected = match name {
            "munmap" | "the end" => Vec::new(),
            "mmap" => Vec::from([(BASE, BASE + 8 * APART, 1)]),
            _ => before,
        };
        assert_eq!(areas(&team.space), expected, "{name}");
    }
}

#[test]
fn parts_are_used_again() {
    let team = Team::new(8);
    let frames = |team: &Team| team.rig.spaces.parts.frames();
    team.work(8);
    let before = frames(&team);
    for _ in 0..100 {
        drop(team.space.tables());
        assert_eq!(team.space.areas.count(), 1);
        team.work(8);
        assert_eq!(team.space.areas.count(), 8);
    }
    assert_eq!(frames(&team), before);
}

#[test]
fn cpus_that_leave_the_choice_to_the_kernel_get_arenas() {
    let team = Team::new(16);
    let stack = MapRequest { placement: Placement::Stack(USER_END - (1 << 30)), ..private(4) };
    team.space.mmap(&team.cpus[0], &stack).unwrap();
    let mut last = Vec::new();
    for _ in 0..8 {
        last.clear();
        for cpu in &team.cpus {
            let at = team.space.mmap(cpu, &private(4)).unwrap();
            last.push(at);
            team.space.munmap(cpu, at, 4 * PAGE).unwrap();
        }
    }
    // All but the last, which has what is left for itself.
    assert!((16..=18).contains(&team.space.areas.count()), "{}", team.space.areas.count());
    last.sort_unstable();
    assert!(last.windows(2).all(|pair| pair[1] - pair[0] > APART), "{last:x?}");
    // A request that fits in none of them fits in all together.
    let bytes = USER_END - VirtAddr(1 << 32) - (2 << 30);
    let large = MapRequest { placement: Placement::Hint(VirtAddr(0)), ..read_only(VirtAddr(0), bytes / PAGE) };
    assert!(team.space.mmap(&team.cpus[3], &large).is_ok());
    assert_eq!(team.space.areas.count(), 1);
}

#[test]
fn limits_are_exact_whatever_the_parts_have() {
    const LIMIT: u64 = 1000 * PAGE;
    let terms = Terms { limits: SpaceLimits { space: LIMIT, ..SpaceLimits::NONE }, ..Terms::NONE };
    let team = Team::new(4);
    let map = |cpu: &Cpu, page: u64, pages| {
        let request = fixed(team.own(cpu) + page * PAGE, pages);
        team.space.mmap_within(cpu, &request, &terms, &|| false)
    };
    for _ in 0..8 {
        team.cpus.iter().for_each(|cpu| _ = map(cpu, 0, 10).unwrap());
    }
    assert_eq!(team.space.areas.count(), 4);
    // One takes all that is left, more than a part has by itself, and not a page more.
    assert_eq!(map(&team.cpus[2], 10, 961), Err(SpaceError::NoMemory));
    assert!(map(&team.cpus[2], 10, 960).is_ok());
    assert!(team.cpus.iter().all(|cpu| map(cpu, 2000, 1) == Err(SpaceError::NoMemory)));
    // In place of others there is no page more.
    assert!(map(&team.cpus[0], 0, 10).is_ok());
    team.space.munmap(&team.cpus[2], team.own(&team.cpus[2]), PAGE).unwrap();
    assert!(map(&team.cpus[3], 2000, 1).is_ok());
    assert_eq!(map(&team.cpus[1], 2000, 1), Err(SpaceError::NoMemory));
}

/// A call that is refused for what it asks is held against the order of refusals first, by the part that it concerns.
#[test]
fn a_look_at_a_placement_joins_nothing_but_where_a_part_has_no_room() {
    let team = Team::new(8);
    team.work(8);
    let look = |placement, pages: u64| team.space.check_placement(&team.cpus[3], placement, pages * PAGE);
    let own = team.own(&team.cpus[3]);
    assert_eq!(look(Placement::Hint(VirtAddr(0)), 16), Ok(()));
    assert_eq!(look(Placement::Hint(own), 1), Ok(()));
    assert_eq!(look(Placement::FixedNoReplace(own), 1), Err(SpaceError::InUse));
    assert_eq!(look(Placement::Fixed(own), 0), Err(SpaceError::Invalid));
    assert_eq!(team.space.areas.count(), 8);
    assert_eq!(look(Placement::Hint(VirtAddr(0)), 1 << 36), Err(SpaceError::NoMemory));
    assert_eq!(team.space.areas.count(), 1);
}

#[test]
fn parts_share_what_there_is_of_a_limit() {
    const LIMIT: u64 = 1000 * PAGE;
    let limits = SpaceLimits { space: LIMIT, data: 2 * LIMIT, ..SpaceLimits::NONE };
    let team = Team::new(4);
    for _ in 0..8 {
        for cpu in &team.cpus {
            let terms = Terms { limits, ..Terms::NONE };
            team.space.mmap_within(cpu, &fixed(team.own(cpu), 10), &terms, &|| false).unwrap();
        }
    }
    let all = |parts: usize| {
        assert_eq!(team.space.areas.count(), parts);
        let mut all = (0, 0);
        team.space.areas.for_each(pages(USER_START, USER_END), &mut |areas, _| {
            all = (all.0 + areas.grants.most().0, all.1 + areas.grants.most().1);
            true
        });
        all
    };
    assert_eq!(all(4), (LIMIT, 2 * LIMIT));
    // Two of the parts become one.
    let (low, high) = (team.own(&team.cpus[1]), team.own(&team.cpus[2]));
    team.space.munmap(&team.cpus[0], low, high + PAGE - low).unwrap();
    assert_eq!(all(3), (LIMIT, 2 * LIMIT));
}

#[test]
fn a_limit_that_was_lowered_counts_at_once() {
    let team = Team::new(2);
    let within = |pages: u64| Terms { limits: SpaceLimits { space: pages * PAGE, ..SpaceLimits::NONE }, ..Terms::NONE };
    let map = |cpu: &Cpu, page: u64, terms: &Terms| {
        team.space.mmap_within(cpu, &fixed(team.own(cpu) + page * PAGE, 1), terms, &|| false)
    };
    for _ in 0..8 {
        team.cpus.iter().for_each(|cpu| _ = map(cpu, 0, &within(1000)).unwrap());
    }
    assert_eq!(team.space.areas.count(), 2);
    assert!(map(&team.cpus[0], 1, &within(3)).is_ok());
    assert_eq!(map(&team.cpus[1], 1, &within(3)), Err(SpaceError::NoMemory));
    assert!(map(&team.cpus[1], 1, &within(4)).is_ok());
}

#[test]
fn the_guard_of_a_stack_is_not_divided_from_it() {
    let team = Team::new(2);
    let (space, cpu) = (&team.space, &team.cpus[0]);
    let mut stack = VirtAddr(BASE + APART);
    space.mmap(cpu, &MapRequest { placement: Placement::Stack(stack), ..private(4) }).unwrap();
    assert!(!divide(space, stack - 1000 * PAGE), "the room to grow of a small limit");
    // Used up but for a page.
    for _ in 0..130 {
        stack = stack - (1 << 20);
        space.grow_stack(stack, &SpaceLimits::NONE).unwrap();
    }
    assert!(!divide(space, stack - 2 * PAGE), "256 pages stay free in any case");
    let border = stack - 300 * PAGE;
    assert!(divide(space, border));
    let heap = |below: u64| MapRequest { placement: Placement::Heap(stack - below * PAGE), ..private(1) };
    assert_eq!(space.mmap(cpu, &heap(302)), Ok(stack - 302 * PAGE));
    assert_eq!(space.areas.count(), 2);
    // Down to 200 pages above the border: what lies below that is too near, wherever it is.
    stack = stack - 45 * PAGE;
    assert_eq!(space.grow_stack(stack, &SpaceLimits::NONE), Ok(()));
    assert_eq!(space.grow_stack(stack - PAGE, &SpaceLimits::NONE), Err(SpaceError::NoMemory), "near the heap");
    let refused = MapRequest { placement: Placement::Heap(stack - 257 * PAGE), ..private(1) };
    assert_eq!(space.mmap(cpu, &refused), Err(SpaceError::InUse));
}

#[test]
fn an_access_below_a_stack_extends_it_from_another_part() {
    let team = Team::new(2);
    let (space, cpu) = (&team.space, &team.cpus[0]);
    let stack = VirtAddr(BASE + APART);
    let limits = SpaceLimits { stack: 1 << 30, ..SpaceLimits::NONE };
    let terms = Terms { limits, grows: true, ..Terms::NONE };
    space.mmap_within(cpu, &fixed(stack, 4), &terms, &|| false).unwrap();
    let border = stack - 300 * PAGE;
    assert!(divide(space, border));
    assert_eq!(space.grow_stack(USER_END + PAGE, &limits), Err(SpaceError::NoArea));
    assert_eq!(space.grow_stack(stack + 4 * PAGE, &limits), Err(SpaceError::NoArea), "nothing is above");
    assert_eq!(space.areas.count(), 2);
    assert_eq!(space.grow_stack(border - 10 * PAGE, &limits), Ok(()));
    assert_eq!(space.with_area(border, Area::size), Some(314 * PAGE));
    assert_eq!(space.areas.count(), 1);
}

#[test]
fn tables_on_both_sides_of_a_border_go_when_it_goes() {
    let team = Team::new(2);
    let (space, cpu) = (&team.space, &team.cpus[0]);
    let before = team.rig.used();
    let tib = VirtAddr(1 << 40);
    let touch = |at: VirtAddr| {
        space.mmap(cpu, &fixed(at, 1)).unwrap();
        team.rig.write(space, at, 1);
    };
    // The border lies inside what a table of the level above the last translates.
    touch(tib);
    touch(tib + (512 << 20));
    assert!(divide(space, tib + (256 << 20)));
    space.munmap(cpu, tib, PAGE).unwrap();
    space.munmap(cpu, tib + (512 << 20), PAGE).unwrap();
    assert_eq!(space.areas.count(), 2);
    drop(space.fork(cpu).unwrap());
    // The table above is freed by this, with all that it links.
    touch(tib + 5 * APART);
    space.munmap(cpu, tib + 5 * APART, PAGE).unwrap();
    assert_eq!(space.table_frames(), 1);
    assert_eq!(team.rig.used(), before + 1, "the index of parts stays until the space ends");
}

#[test]
fn what_is_data_is_counted_exactly_in_parts() {
    const LIMIT: u64 = 1000;
    let data = |pages: u64| SpaceLimits { data: pages * PAGE, ..SpaceLimits::NONE };
    let team = Team::new(2);
    let map = |cpu: &Cpu, page: u64, pages: u64, protection| {
        let request = MapRequest { protection, ..fixed(team.own(cpu) + page * PAGE, pages) };
        team.space.mmap_within(cpu, &request, &Terms { limits: data(LIMIT), ..Terms::NONE }, &|| false).map(drop)
    };
    let [one, other] = [&team.cpus[0], &team.cpus[1]];
    let divide = || {
        for _ in 0..8 {
            team.cpus.iter().for_each(|cpu| map(cpu, 5000, 1, READ_WRITE).unwrap());
        }
        assert_eq!(team.space.areas.count(), 2);
    };
    // In place of pages that are no data.
    divide();
    map(one, 0, 900, Protection::READ).unwrap();
    map(one, 0, 900, READ_WRITE).unwrap();
    assert_eq!(map(other, 0, 400, READ_WRITE), Err(SpaceError::NoMemory));
    team.space.munmap(one, team.own(one), 900 * PAGE).unwrap();
    // Made writable by a program that has no limit.
    divide();
    map(one, 0, 900, Protection::READ).unwrap();
    team.space.mprotect(team.own(one), 900 * PAGE, READ_WRITE).unwrap();
    assert_eq!(map(other, 0, 400, READ_WRITE), Err(SpaceError::NoMemory));
    assert!(map(other, 0, LIMIT - 902, READ_WRITE).is_ok());
    assert_eq!(map(other, 2000, 1, READ_WRITE), Err(SpaceError::NoMemory));
    // Again, where the other part got most of the rest.
    for cpu in [one, other] {
        team.space.munmap(cpu, team.own(cpu), 2000 * PAGE).unwrap();
    }
    map(other, 0, 350, READ_WRITE).unwrap();
    divide();
    map(one, 0, 500, Protection::READ).unwrap();
    team.space.mprotect(team.own(one), 500 * PAGE, READ_WRITE).unwrap();
    assert_eq!(map(other, 1000, 149, READ_WRITE), Err(SpaceError::NoMemory));
    map(other, 1000, 148, READ_WRITE).unwrap();
}

#[test]
fn beyond_a_limit_that_was_lowered_nothing_comes_back() {
    let team = Team::new(2);
    let map = |cpu: &Cpu, pages: u64, limit: u64| {
        let limits = SpaceLimits { space: limit * PAGE, ..SpaceLimits::NONE };
        team.space.mmap_within(cpu, &fixed(team.own(cpu), pages), &Terms { limits, ..Terms::NONE }, &|| false).map(drop)
    };
    team.cpus.iter().for_each(|cpu| map(cpu, 100, 1000).unwrap());
    for _ in 0..8 {
        // In place of as many: permitted even where there are too many.
        team.cpus.iter().for_each(|cpu| _ = map(cpu, 100, 50));
    }
    for cpu in &team.cpus {
        team.space.munmap(cpu, team.own(cpu), 10 * PAGE).unwrap();
        assert_eq!(map(cpu, 10, 50), Err(SpaceError::NoMemory));
    }
}

#[test]
fn a_hole_is_refused_without_the_other_parts() {
    let team = Team::new(4);
    team.work(8);
    assert_eq!(team.space.areas.count(), 4);
    let own = team.own(&team.cpus[1]);
    assert_eq!(team.space.mprotect(own, 8 * PAGE, Protection::READ), Err(SpaceError::NoMemory));
    assert_eq!(team.space.with_area(own, Area::protection), Some(Protection::READ), "what is before the hole");
    assert_eq!(team.space.madvise_dontneed(&team.cpus[1], own, 4 * APART), Err(SpaceError::NoMemory));
    assert_eq!(team.space.mincore(own, &mut [0; 8]), Ok(3));
    assert!(team.space.is_mapped_within(own + 3 * PAGE, APART) && !team.space.is_mapped_within(own + 3 * PAGE, PAGE));
    assert_eq!(team.space.areas.count(), 4);
}

#[test]
fn a_stack_at_a_border_joins_what_its_guard_reaches() {
    let team = Team::new(2);
    let (space, cpu) = (&team.space, &team.cpus[0]);
    let border = VirtAddr(BASE);
    assert!(divide(space, border));
    let grows = Terms { grows: true, ..Terms::NONE };
    space.mmap_within(cpu, &fixed(border, 4), &grows, &|| false).unwrap();
    assert_eq!(space.areas.count(), 1);
    let heap = MapRequest { placement: Placement::Heap(border - 2 * PAGE), ..private(1) };
    assert_eq!(space.mmap(cpu, &heap), Err(SpaceError::InUse));
    // An area in a guard hides the guard from the search for a border; once it is gone, the guard is found.
    let inside = border - 10 * PAGE;
    space.mmap(cpu, &fixed(inside, 1)).unwrap();
    assert!(divide(space, inside - 2 * PAGE));
    assert_eq!(space.areas.count(), 2);
    space.munmap(cpu, inside, PAGE).unwrap();
    assert_eq!(space.areas.count(), 1);
    assert_eq!(space.grow_stack(border - 5 * PAGE, &SpaceLimits::NONE), Ok(()));
}

#[test]
fn an_arena_is_in_a_gap_though_an_area_is_at_the_top() {
    let team = Team::new(2);
    let size = USER_END.0 / 8;
    let top = USER_END - size;
    team.space.mmap(&team.cpus[0], &read_only(top, (size - APART) / PAGE)).unwrap();
    for _ in 0..8 {
        for cpu in &team.cpus {
            let at = team.space.mmap(cpu, &private(4)).unwrap();
            assert!(at + 4 * PAGE <= top, "{at:?}");
            team.space.munmap(cpu, at, 4 * PAGE).unwrap();
        }
    }
    assert!(team.space.areas.count() > 1);
}

#[test]
fn what_others_unmap_makes_no_second_arena() {
    let team = Team::new(2);
    for _ in 0..50 {
        for cpu in &team.cpus {
            let at = team.space.mmap(cpu, &private(4)).unwrap();
            team.space.munmap(&team.cpus[1 - cpu.id.0 as usize], at, 4 * PAGE).unwrap();
        }
    }
    assert!(team.space.areas.count() <= 8, "{}", team.space.areas.count());
}
