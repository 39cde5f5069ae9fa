//! Faults on access beside what changes the page or its storage.

use super::*;

/// The work of another CPU at each step of a fault, and the page then. (Work that waits for a lock of the fault is met
/// on the target.)
#[test]
fn the_fault_meets_what_changes_its_page_at_each_step() {
    type Other = fn(&Space, &Cpu, VirtAddr);
    let others: [(&str, Other); 3] = [
        ("discard", |space, cpu, page| {
            space.madvise_dontneed(cpu, page, PAGE).unwrap();
        }),
        ("fault", |space, cpu, page| {
            let _ = handle_fault(space, cpu, page, Access::Write);
        }),
        ("migration", |space, cpu, page| {
            let _ = space.common.migrate_at(cpu, space, page);
        }),
    ];
    for (what, other) in others {
        for occupied in [false, true].into_iter().filter(|&occupied| !occupied || what == "discard") {
            let mut nth = 0;
            loop {
                let met = with_storage(1, |rig| {
                    let space = rig.space();
                    let [start, beside] = [rig.written(&space, 1), rig.written(&space, 1)];
                    if occupied {
                        rig.put_into_storage_of(&space, beside, rig.entry(&space, start).address());
                    }
                    space.mprotect(start, PAGE, TAGGED).unwrap();
                    let fault = || _ = rig.fault(&space, start, Access::Write);
                    let there = space.clone();
                    let met = meet(&[&space], start, fault, move |cpu| other(&there, cpu, start), nth);
                    let entry = rig.entry(&space, start);
                    let has_storage = |entry: Descriptor| rig.spaces.record(entry.address()).has_tag_storage();
                    assert!(!entry.is_valid() || entry.is_special() || has_storage(entry), "{what} {nth}: {entry:?}");
                    rig.frames.drain_cpu(&rig.cpu);
                    rig.check();
                    assert_eq!(rig.read(&space, beside), 1, "{what} {nth}");
                    if what != "discard" {
                        assert_eq!(rig.read(&space, start), 1, "{what} {nth}");
                    }
                    drop(space);
                    assert_eq!(rig.stats().users, 1, "{what} {nth}");
                    met
                });
                if !met {
                    break;
                }
                nth += 1;
            }
            assert!(nth > 1, "{what} meets the fault");
        }
    }
}

/// `lab=skip-recheck`: a page that was discarded concurrently comes back.
#[test]
fn without_the_second_comparison_a_discarded_page_comes_back() {
    let comes_back = |switches: &[u16]| {
        (0..)
            .map_while(|nth| {
                with_switch(1, switches, |rig| {
                    let space = rig.space();
                    let [start, _] = occupied(rig, &space);
                    let there = space.clone();
                    let discarded = Rc::new(Cell::new(false));
                    let discard = {
                        let discarded = discarded.clone();
                        move |cpu: &Cpu| {
                            discarded.set(true);
                            there.madvise_dontneed(cpu, start, PAGE).unwrap();
                        }
                    };
                    let met = meet(&[&space], start, || _ = rig.fault(&space, start, Access::Read), discard, nth);
                    met.then(|| discarded.get() && rig.read(&space, start) != 0)
                })
            })
            .filter(|&comes_back| comes_back)
            .count()
    };
    assert_eq!(comes_back(&[]), 0);
    assert!(comes_back(&[lab::SKIP_RECHECK.identifier]) > 0);
}

/// `lab=early-unpin`: a page that was discarded concurrently has the same frame again, which has lost its storage. Its
/// new entry waits like the old one, bit for bit, and is made valid.
#[test]
fn without_the_pin_the_next_life_of_a_page_becomes_valid_without_storage() {
    let is_without_storage = |switches: &[u16], nth| {
        with_switch(1, switches, |rig| {
            let space = rig.space();
            let [start, _] = occupied(rig, &space);
            let waiting = rig.entry(&space, start);
            let wanted = rig.block_of(waiting.address());
            let (there, is_alike) = (space.clone(), Rc::new(Cell::new(false)));
            let other = {
                let is_alike = is_alike.clone();
                move |cpu: &Cpu| {
                    let frames = there.common.frames;
                    // A frame that is still held is not among those that come next.
                    there.madvise_dontneed(cpu, start, PAGE).unwrap();
                    let ordinary: Vec<_> = core::iter::from_fn(|| frames.alloc(cpu).ok()).collect();
                    let lend = || frames.alloc_movable(cpu).ok();
                    let is_lent = core::iter::from_fn(lend).any(|frame| wanted.contains(&frame.frame_number()));
                    if is_lent && ordinary.contains(&waiting.address()) {
                        frames.free(cpu, waiting.address());
                        let _ = handle_fault(&there, cpu, start, Access::Write);
                        let entry = there.page_tables().cell(start).map(|(_, cell)| there.mmu().load(cell));
                        is_alike.set(entry == Some(waiting));
                    }
                    ordinary
                        .into_iter()
                        .filter(|&frame| frame != waiting.address())
                        .for_each(|frame| frames.free(cpu, frame));
                }
            };
            let met = meet(&[&space], start, || _ = rig.fault(&space, start, Access::Write), other, nth);
            let entry = rig.entry(&space, start);
            let is_valid = entry.is_valid() && !rig.spaces.record(entry.address()).has_tag_storage();
            met.then_some((is_alike.get(), is_valid))
        })
    };
    let met = |switches: &[u16]| (0..).map_while(|nth| is_without_storage(switches, nth)).collect::<Vec<_>>();
    let pinned = met(&[]);
    assert!(!pinned.is_empty() && pinned.iter().all(|&(_, is_valid)| !is_valid), "{pinned:?}");
    let unpinned = met(&[lab::EARLY_UNPIN.identifier]);
    assert!(unpinned.contains(&(true, true)), "{unpinned:?}");
}
