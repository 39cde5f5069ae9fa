//! Changes of protection by two other crates, on tables of the shape that the kernel's have in the same boot.
//!
//! The pages of a vmalloc area of that many pages: as many tables are walked and entries written as in
//! [`set_memory`](crate::set_memory). Nothing is mapped at the addresses but what the kernel has there.

use core::cell::RefCell;

use granule::smp::this_cpu;
use granule_arch::addr::PAGE_SIZE;
use granule_peers::{aarch64_paging, page_table_multiarch};

use crate::harness::{Bench, PAGES, bench};
use crate::set_memory::area;

/// Measures `change` at every size, each time after `undo`, on what `new` makes of the first address and the bytes.
fn row<T>(bench: &mut Bench<'_>, new: fn(usize, usize) -> T, undo: impl Fn(&mut T), change: impl Fn(&mut T)) {
    for pages in PAGES {
        let area = area(pages);
        let tables = RefCell::new(new(area.start().0 as usize, pages as usize * PAGE_SIZE));
        bench.point(
            pages,
            || {
                undo(&mut tables.borrow_mut());
                tables.borrow_mut()
            },
            |mut tables| change(&mut tables),
            drop,
        );
        drop(tables);
        granule::kernel().space.vfree(this_cpu(), area);
    }
}

bench!(aarch64_paging_x, "aarch64-paging/set_memory_x", "page");
fn aarch64_paging_x(bench: &mut Bench<'_>) {
    use aarch64_paging::Tables;
    row(bench, Tables::constant, Tables::no_execute, Tables::executable);
}

bench!(aarch64_paging_nx, "aarch64-paging/set_memory_nx", "page");
fn aarch64_paging_nx(bench: &mut Bench<'_>) {
    use aarch64_paging::Tables;
    row(bench, Tables::constant, Tables::executable, Tables::no_execute);
}

bench!(aarch64_paging_ro, "aarch64-paging/set_memory_ro", "page");
fn aarch64_paging_ro(bench: &mut Bench<'_>) {
    use aarch64_paging::Tables;
    row(bench, Tables::new, Tables::read_write, Tables::read_only);
}

bench!(aarch64_paging_rw, "aarch64-paging/set_memory_rw", "page");
fn aarch64_paging_rw(bench: &mut Bench<'_>) {
    use aarch64_paging::Tables;
    row(bench, Tables::new, Tables::read_only, Tables::read_write);
}

bench!(page_table_multiarch_x, "page_table_multiarch/set_memory_x", "page");
fn page_table_multiarch_x(bench: &mut Bench<'_>) {
    use page_table_multiarch::Tables;
    row(bench, Tables::new, Tables::read_only, Tables::executable);
}

bench!(page_table_multiarch_nx, "page_table_multiarch/set_memory_nx", "page");
fn page_table_multiarch_nx(bench: &mut Bench<'_>) {
    use page_table_multiarch::Tables;
    row(bench, Tables::new, Tables::executable, Tables::read_only);
}

bench!(page_table_multiarch_ro, "page_table_multiarch/set_memory_ro", "page");
fn page_table_multiarch_ro(bench: &mut Bench<'_>) {
    use page_table_multiarch::Tables;
    row(bench, Tables::new, Tables::read_write, Tables::read_only);
}

bench!(page_table_multiarch_rw, "page_table_multiarch/set_memory_rw", "page");
fn page_table_multiarch_rw(bench: &mut Bench<'_>) {
    use page_table_multiarch::Tables;
    row(bench, Tables::new, Tables::read_only, Tables::read_write);
}
