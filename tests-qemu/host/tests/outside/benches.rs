//! The benches: what they count is there, repeats, and nothing else is counted with it.

use std::path::Path;

use anyhow::Result;
use granule_host_tests::built;
use granule_runner::bench::boot::{self, Chosen, Images};
use granule_runner::bench::counted::Counted;
use granule_runner::bench::scale::boot::Part;
use granule_runner::bench::scale::rows::{ROWS, What};
use granule_runner::bench::tlb;
use granule_runner::bench::{Measured, list};
use granule_runner::machine;

/// Measures rows on `default`, in two boots that must agree to the instruction; `bootargs` are more boot arguments.
fn measure(names: &[&str], bootargs: &str) -> Result<Measured> {
    let [elf, program, image, kernel] =
        ["granule-bench.elf", "bench.elf", "granule-bench.img", "granule.img"].map(built);
    let rows = list::read(&elf).unwrap();
    let chosen = Chosen::new(&rows, |row| names.contains(&row.name.as_str()), |_| true, false).unwrap();
    assert_eq!(chosen.rows.len(), names.len(), "rows of the image: {rows:?}");
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let images = Images { elf: &elf, program: &program, image: &image, kernel: &kernel, scratch };
    let mut measured = boot::measure(&[(machine::named("default").unwrap(), chosen)], images, bootargs)?;
    Ok(measured.remove(0))
}

/// Revoking takes two DSBs and an invalidation; what becomes valid has nothing to invalidate. So the counts are known.
/// Every measurement checks that both boots took as many instructions.
#[test]
fn boots_repeat_each_other_and_barriers_are_counted() {
    let measured = measure(&["set_memory_valid/off", "set_memory_valid/on"], "").unwrap();
    let counts: Vec<_> = measured.rows.iter().map(|row| (row.dsb, row.isb, row.tlbi)).collect();
    assert_eq!(counts, [(Some(2), Some(1), Some(1)), (Some(1), Some(1), Some(0))]);
    for row in &measured.rows {
        assert_eq!(row.points.iter().map(|(size, _)| *size).collect::<Vec<_>>(), [1, 8, 16, 64, 512, 4096]);
        assert!(row.points.is_sorted_by_key(|(_, taken)| *taken), "{row:?}");
        assert!(row.points.iter().all(|(size, taken)| taken > size), "{row:?}");
    }
}

#[test]
fn an_interrupt_that_is_counted_with_the_rest_is_noticed() {
    let error = measure(&["set_memory_x"], "bench.disturb").unwrap_err();
    let said = format!("{error:#}");
    assert!(said.contains("something else ran"), "{said}");
}

/// The program at EL0 has windows of its own, and the kernel's barriers are found in them.
#[test]
fn rows_at_el0_count_what_the_kernel_does_for_them() {
    let measured = measure(&["null_syscall", "mprotect_ro"], "").unwrap();
    let counts: Vec<_> = measured.rows.iter().map(|row| (row.dsb, row.isb, row.tlbi)).collect();
    assert_eq!(counts, [(Some(0), Some(0), Some(0)), (Some(2), Some(0), Some(1))]);
    assert!(measured.rows.iter().all(|row| row.points.iter().all(|(_, taken)| *taken > 20)), "{measured:?}");
}

/// Accesses with a known answer are counted as such in each boot, and two boots count the same: else [`Counted::measure`]
/// fails. Beyond that: one CPU moves nothing, and two that take turns do.
#[test]
fn lines_that_move_between_cpus_are_counted() {
    let machine = machine::named("default").unwrap();
    let [image, plugin] = ["granule-bench.img", "lines.so"].map(built);
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let scale = Counted { machine: &machine, image: &image, plugin: &plugin, scratch };
    let [alone, two] = [1, 2].map(|cpus| scale.measure(Part::Kernel, cpus).unwrap());
    for row in ROWS.iter().filter(|row| row.part == Part::Kernel) {
        assert_eq!(row.cost(&alone), Some(0.0), "{}", row.name);
        // The command queue is one. Areas are each CPU's own, but where one purge frees more frames than its magazine
        // holds, in which call depends on the image's size: a line that each call moved would be one for each.
        let cost = row.cost(&two).unwrap();
        match row.name {
            "scale/vmalloc/own" | "scale/vfree/own" => assert!((0.0..1.0).contains(&cost), "{}: {cost}", row.name),
            name => assert_eq!(cost > 0.0, name.contains("smmu"), "{name}"),
        }
    }
}

/// Two CPUs that split a block at once wait or retry, and the guest's count of that arrives; one CPU does neither.
#[test]
fn splits_at_once_wait_for_the_lock_or_retry() {
    let machine = machine::named("default").unwrap();
    let [image, plugin] = ["granule-bench.img", "lines.so"].map(built);
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let scale = Counted { machine: &machine, image: &image, plugin: &plugin, scratch };
    for part in [Part::LooseSplitLock, Part::LooseSplitLockless] {
        let [alone, two] = [1, 2].map(|cpus| scale.measure(part, cpus).unwrap());
        let mut events = ROWS.iter().filter(|row| row.part == part && row.what == What::Events);
        let row = events.find(|row| row.name.contains("split_block")).unwrap();
        assert_eq!(row.cost(&alone), Some(0.0), "{}", row.name);
        assert!(row.cost(&two).unwrap() > 0.0, "{}", row.name);
    }
}

/// The counts of a pass are known, and [`Tlb::measure`] fails where the plugin counts anything else: leaves of
/// another size, another access, or an entry that was replaced too early or too late.
#[test]
fn a_pass_fills_an_entry_for_each_leaf() {
    let machine = machine::named("default").unwrap();
    let [image, plugin] = ["granule-bench.img", "tlb.so"].map(built);
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let rows = tlb::measure(&Counted { machine: &machine, image: &image, plugin: &plugin, scratch }).unwrap();
    let in_order = rows.iter().filter(|row| row.name.contains("/in_order/"));
    assert_eq!(in_order.map(|row| row.entries).collect::<Vec<_>>(), [512, 32, 1]);
}
