//! The lab on the model: with a fix taken away, the kernel's own invalidation leaves something that a CPU may still
//! use, and the model reports what is missing. QEMU completes everything at once and shows none of it.
//!
//! Each has its control: the same call with nothing taken away leaves the model nothing to report.

mod user;

use granule::lab::{self, Lab, Witness};
use granule::mm::tlb::KernelTlb;
use granule::platform::features::branch;
use granule_arch::addr::PhysAddr;
use granule_arch::alternative::host;
use granule_arch::descriptor::{Attributes, MemoryType};
use granule_model::{Access, Features, Model};
use granule_pgtable::{Change, Granule4K, Lazy, Mmu, PageRange, Shape, WholeLeaves};

const FRAME: PhysAddr = PhysAddr(0x4000_0000);
const DATA: Attributes = Attributes::kernel_data(MemoryType::Normal);

/// The model's reports when CPU 0 makes `pages` pages read-only that both CPUs have written to, with these branch
/// sites taken.
fn read_only(sites: &[u16], pages: usize) -> Vec<String> {
    let has = |feature| sites.contains(&feature);
    let features = Features { tlb_range: has(branch::TLB_RANGE), ttl: has(branch::TLB_LEVEL), ..Features::BASE };
    let model = Model::<Granule4K>::new(2, 8, features);
    let cpu = model.cpu(0);
    let range = PageRange::from_pages(model.base() + 0x20_3000, pages).unwrap();
    host::with(sites, || {
        let lazy = Lazy::new(&cpu);
        cpu.page_tables().map(&lazy, range, FRAME, DATA, Shape::PAGES, &mut model.frames()).unwrap();
        lazy.flush_barriers();
        model.cpus().for_each(|cpu| cpu.isb());
        for cpu in model.cpus() {
            for page in 0..pages as u64 {
                assert_eq!(cpu.access(range.start() + (page << 12), Access::Write), Ok(FRAME + (page << 12)));
            }
        }
        let flush = cpu.page_tables().update(&lazy, range, Change::READ_ONLY, WholeLeaves).unwrap();
        lazy.invalidate(&KernelTlb, [flush]);
    });
    model.audit(0, range);
    model.violations().iter().map(ToString::to_string).collect()
}

/// Asserts that the model objects for the right reason with the switch, and not at all without.
#[track_caller]
fn assert_caught(lab: Lab, pages: usize, reason: &str) {
    assert_eq!(read_only(&[], pages), [""; 0]);
    let violations = read_only(&lab.sites(), pages);
    let found = violations.iter().any(|violation| violation.contains(reason));
    assert!(found, "lab={} with {pages} pages; wanted: {reason}; the model said: {violations:#?}", lab.name);
}

#[test]
fn without_the_dsb_before_the_tlbi_an_old_entry_may_come_back() {
    assert_caught(lab::SKIP_DSB_BEFORE_TLBI, 1, "came before a DSB ISHST made");
}

#[test]
fn without_the_dsb_after_the_tlbi_another_cpu_may_use_the_old_permission() {
    assert_caught(lab::SKIP_DSB_AFTER_TLBI, 1, "missing: DSB ISH on CPU 0");
}

#[test]
fn without_the_isb_this_cpu_may_use_what_it_looked_up_ahead() {
    assert_caught(lab::SKIP_ISB, 1, "missing: ISB");
}

#[test]
fn without_invalidation_both_cpus_may_use_the_old_permission() {
    assert_caught(lab::SKIP_TLBI, 3, "missing: TLBI");
}

#[test]
fn with_local_invalidation_the_other_cpu_may_use_the_old_permission() {
    assert_caught(lab::LOCAL_TLBI, 3, "CPU 1 may still use an old translation");
    assert_caught(lab::LOCAL_TLBI, 3, "is for CPU 0 alone");
}

#[test]
fn with_an_invalidation_that_ends_early_the_last_page_keeps_its_permission() {
    assert_caught(lab::SHORT_TLBI, 1, "missing: TLBI");
    for (pages, last) in [(2, "0xffff000000204000"), (3, "0xffff000000205000"), (67, "0xffff000000245000")] {
        assert_caught(lab::SHORT_TLBI, pages, &format!("may still use an old translation of {last}"));
    }
}

/// But for `early-unpin`, which concerns programs' memory: see `mm::space::tests::tag_storage` of the kernel.
#[test]
fn every_switch_with_the_model_for_a_witness_has_its_test_here() {
    let names: Vec<_> = lab::all().iter().filter(|lab| lab.witness == Witness::Model).map(|lab| lab.name).collect();
    assert_eq!(names, ["skip-dsb-before-tlbi", "skip-dsb-after-tlbi", "skip-isb", "early-unpin"]);
}

#[test]
fn every_form_of_the_kernels_invalidation_satisfies_the_model() {
    for sites in [
        &[][..],
        &[branch::TLB_RANGE],
        &[branch::TLB_LEVEL],
        &[branch::TLB_RANGE, branch::TLB_LEVEL],
        &[branch::TLB_RANGE, branch::TLB_LEVEL, branch::REPEAT_TLBI],
    ] {
        // One page, ranges with an odd page and without, three scales, and past the threshold of single operations.
        for pages in [1, 2, 3, 63, 64, 600, 2115] {
            assert_eq!(read_only(sites, pages), [""; 0], "{pages} pages with {sites:?}");
        }
    }
}
