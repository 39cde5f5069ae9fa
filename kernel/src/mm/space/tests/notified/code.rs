//! Caches are maintained before the entry that lets code run.

use super::*;

/// A page of code is cleaned with what was copied to it, and fetched by no CPU before.
#[test]
fn copied_code_is_visible_before_its_entry() {
    let all = Protection::READ.and(Protection::WRITE).and(Protection::EXECUTE);
    let stage = Stage::new(1);
    stage.space.mprotect(stage.start, PAGE, all).unwrap();
    let _child = stage.fork();
    let cleaned = Rc::new(RefCell::new(Vec::new()));
    let look = {
        let cleaned = cleaned.clone();
        move |operation: &Operation| {
            if let Operation::Cache(CacheOperation::Clean { start, .. }) = operation {
                // SAFETY: a page of the linear map, which this thread alone uses.
                cleaned.borrow_mut().push(unsafe { start.as_ptr::<u8>().read_volatile() });
            }
        }
    };
    stage.listener.take();
    let copy = || stage.fault(0, Access::Write);
    let machine = host::with(&[], || at_each(look, copy));
    let words: Vec<_> = machine.iter().map(|operation| stage.operation(operation)).collect();
    assert_eq!(words.join(", "), format!("{CODE}, write, dsb ishst, vale1is 0, dsb ish, write"));
    assert_eq!(*cleaned.borrow(), [1], "the copy, and not what was in the frame before");
    assert_eq!(stage.rig.read(&stage.space, stage.start), 1);
}

#[test]
fn code_is_visible_before_its_entry_lets_it_run() {
    let stage = Stage::new(1);
    let run = || stage.space.mprotect(stage.start, PAGE, READ_EXECUTE).unwrap();
    let changed = "write, dsb ishst, vale1is 0, tlbs 0..1, dsb ish, end protection of areas 0..1";
    let story = host::with(&lab::SKIP_ICACHE_USER.sites(), || stage.story(run));
    assert_eq!(story, format!("start protection of areas 0..1, {changed}"), "lab=skip-icache-user");

    let stage = Stage::new(1);
    let run = || stage.space.mprotect(stage.start, PAGE, READ_EXECUTE).unwrap();
    assert_events(&stage, run, &format!("start protection of areas 0..1, {CODE}, {changed}"));
    // Once for each frame.
    stage.space.mprotect(stage.start, PAGE, Protection::READ).unwrap();
    let run = || stage.space.mprotect(stage.start, PAGE, READ_EXECUTE).unwrap();
    assert_events(&stage, run, &format!("start protection of areas 0..1, {changed}"));
}

/// Erratum 2645198 of Cortex-A715.
#[test]
fn code_that_becomes_data_is_broken_first() {
    const AFFECTED: &[u16] = &[branch::BREAK_CODE];
    let change = |to| format!("start protection of areas 0..2, {to}end protection of areas 0..2");
    let flushed = change("write, dsb ishst, vale1is 0, vale1is 1, tlbs 0..2, dsb ish, ");
    let read_write_execute = READ_WRITE.and(READ_EXECUTE);
    for from in [READ_EXECUTE, read_write_execute, Protection::EXECUTE] {
        for to in [Protection::READ, READ_WRITE, Protection::NONE, read_write_execute] {
            if from == to {
                continue;
            }
            let is_broken = !to.contains(Protection::EXECUTE) && to != Protection::NONE;
            let [plain, affected] = [&[], AFFECTED].map(|sites| {
                let stage = Stage::new(2);
                let copy = stage.fork();
                stage.fault(0, Access::Write);
                stage.space.mprotect(stage.start, 2 * PAGE, from).unwrap();
                let protect = || stage.space.mprotect(stage.start, 2 * PAGE, to).unwrap();
                let story = host::with(sites, || stage.story(protect));
                drop(copy);
                // One frame is the space's own, the other is shared.
                (story, [0, 1].map(|page| stage.entry(page).without_address()))
            });
            assert_eq!(plain.0, flushed, "{from:?} to {to:?}");
            assert_eq!(
                affected.0,
                if is_broken { format!("{flushed}, {}", change("write, ")) } else { flushed.clone() }
            );
            assert_eq!(plain.1, affected.1, "{from:?} to {to:?}");
        }
    }
    // Entries that were no code are changed in place.
    let stage = Stage::new(2);
    let protect = || stage.space.mprotect(stage.start, 2 * PAGE, Protection::READ).unwrap();
    assert_eq!(host::with(AFFECTED, || stage.story(protect)), flushed);
}
