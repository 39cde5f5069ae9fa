//! Changes of a user page's entry on the model machine: its hardware sets the access flag and the dirty state between
//! any load and store of software, and no store may lose that.

use granule_arch::addr::PhysAddr;
use granule_arch::descriptor::{Attributes, Descriptor, MemoryType, Protection};
use granule_model::{Features, Model, ModelCpu, Rule, Sabotage, Step};
use granule_pgtable::{EnsureError, Granule4K, Mmu, Stores};

use super::READ_WRITE;
use crate::mm::space::entry::{attributes, is_settled, replace, set_access_flags};

/// Entries of pages that the hardware may find: young or old, not writable, clean or dirty.
fn pages() -> impl Iterator<Item = Descriptor> {
    let page = |protection| Descriptor::page(PhysAddr(0x4000_0000), Attributes::user(MemoryType::Normal, protection));
    let clean = page(READ_WRITE);
    [page(Protection::READ), clean, clean.dirty()].into_iter().flat_map(|entry| [entry, entry.old()])
}

/// The rules that `change` breaks on an entry that is `entry` when it begins, and the entry then.
fn after(
    entry: Descriptor,
    sabotage: Option<Sabotage>,
    change: impl FnOnce(&ModelCpu<'_>, &<ModelCpu<'_> as Mmu>::Cell),
) -> (Vec<Rule>, Descriptor) {
    let model = Model::<Granule4K>::new(2, 8, Features::ALL);
    let cpu = model.cpu(0);
    let page = model.base() + 0x20_3000;
    let cell = cpu.page_tables().ensure_cell(page, &mut model.frames(), || Ok::<_, EnsureError>(()));
    let ((_, cell), ()) = cell.unwrap();
    cpu.store(cell, entry);
    cpu.dsb_ishst();
    sabotage.into_iter().for_each(|sabotage| model.inject(Step::CompareExchange, 0, sabotage));
    change(&cpu, cell);
    (model.violations().iter().map(|violation| violation.rule).collect(), cpu.load(cell))
}

#[test]
fn replacing_an_entry_loses_no_flag_that_the_hardware_sets() {
    let changes: [fn(Descriptor) -> Descriptor; 3] = [
        Descriptor::write_protected,
        |page| page.modified(attributes(Protection::READ)),
        |page| page.modified(attributes(Protection::NONE)),
    ];
    for entry in pages() {
        for change in changes {
            let replaced =
                |sabotage| after(entry, sabotage, |cpu, cell| _ = replace(cpu, cell, cpu.load(cell), change));
            let (broken, left) = replaced(None);
            assert!(broken.is_empty() && left.is_young(), "{entry:?} becomes {left:?}: {broken:?}");
            assert_eq!(left.is_dirty(), entry.may_be_written(), "{entry:?} becomes {left:?}");
            // In two steps, where it has to be one.
            let (broken, _) = replaced(Some(Sabotage::Lost));
            assert_eq!(broken.is_empty(), is_settled(entry), "{entry:?}: {broken:?}");
            assert!(broken.iter().all(|&rule| rule == Rule::LostUpdate), "{broken:?}");
        }
    }
}

#[test]
fn setting_flags_loses_none_that_the_hardware_sets() {
    for entry in pages() {
        let set = |sabotage| {
            after(entry, sabotage, |cpu, cell| {
                let found = cpu.load(cell);
                assert_eq!(set_access_flags(cpu, cell, found, found.young()), found != found.young());
            })
        };
        let (broken, left) = set(None);
        assert!(broken.is_empty() && left.is_young(), "{entry:?} becomes {left:?}: {broken:?}");
        let is_clean = entry.may_be_written() && !entry.is_dirty();
        // In two steps a dirty state that comes between them is lost.
        let (broken, _) = set(Some(Sabotage::Lost));
        assert_eq!(broken.contains(&Rule::LostUpdate), is_clean && !entry.is_young(), "{entry:?}");
    }
}
