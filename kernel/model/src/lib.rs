//! The model machine: CPUs whose TLBs may hold everything that the architecture lets them hold.
//!
//! A real machine shows one behaviour of the many that the architecture allows, and QEMU the most forgiving one. This
//! machine has them all at once: for each CPU it keeps the set of translations and walk steps that its TLB *may* hold,
//! for each cell of a table the set of values that a walk *may* read, and asks whether every element is allowed.
//! Deterministic, no chance.
//!
//! - stores reach walkers at any time, certainly after the DSB that orders them
//! - a TLBI takes what its operand's bits cover, where no walk can read it again; the DSB ISH of the same CPU completes
//!   it; an ISB ends what that CPU had looked up ahead
//! - between any two operations, whatever any TLB may hold: nothing is writable by one translation and executable by
//!   another, and an entry that was emptied is filled again when its invalidation is complete
//! - with FEAT_HAFDBS the hardware sets flags between any load and store of software, and TLBs may hold what it makes
//! - break-before-make, BBML2, contiguous groups, tables linked before their contents, frames and tables reused too
//!   early
//! - loads by software find late what other CPUs store, where a test wants that ([`Model::late_loads`])
//! - [`Model::inject`] takes a barrier or an invalidation away, so that each rule is seen to fail
//!
//! - several trees under ASIDs: a CPU keeps what it holds of one that it runs no more ([`Model::run`])
//! - [`Model::watching`] has no tables of its own and judges those of another machine, by the operations done on them:
//!   the kernel's spaces run under it as they ship
//!
//! The rules of barriers are those of Arm's own memory model (herd7 with VMSA), row by row in `tests/model/barriers.rs`.
//! Not modelled: stage 2, shareability of barriers, loads by software that are done early (loom has C11's order).
//!
//! # Example
//! ```
//! use granule_arch::{addr::PhysAddr, descriptor::{Attributes, MemoryType}};
//! use granule_model::{Access, Features, Model, Sabotage, Step};
//! use granule_pgtable::metal::KernelTlb;
//! use granule_pgtable::{Change, Granule4K, Lazy, PageRange, Shape, WholeLeaves};
//!
//! let model = Model::<Granule4K>::new(2, 8, Features::BASE);
//! let (cpu, other) = (model.cpu(0), model.cpu(1));
//! let page = PageRange::from_pages(model.base(), 1)?;
//! let lazy = Lazy::new(&cpu);
//! let data = Attributes::kernel_data(MemoryType::Normal);
//! cpu.page_tables().map(&lazy, page, PhysAddr(0x4000_0000), data, Shape::PAGES, &mut model.frames())?;
//! lazy.flush_barriers();
//! assert_eq!(cpu.access(page.start(), Access::Write), Ok(PhysAddr(0x4000_0000)));
//!
//! model.inject(Step::DsbIsh, 0, Sabotage::Lost); // the one that completes the TLBI
//! let flush = cpu.page_tables().update(&lazy, page, Change::READ_ONLY, WholeLeaves)?;
//! lazy.invalidate(&KernelTlb, [flush]);
//! assert!(other.may(page.start(), Access::Write).contains(&Ok(PhysAddr(0x4000_0000)))); // the old permission
//! model.audit(0, page);
//! assert!(model.expect_violation().to_string().contains("missing: DSB ISH on CPU 0"));
//! # Ok::<(), granule_pgtable::Error>(())
//! ```

#![deny(unsafe_code)]

mod arena;
mod decode;
mod event;
mod features;
mod frames;
mod inject;
mod machine;
mod outcome;
mod rules;
pub mod smmu;
mod state;
mod stores;
mod story;
mod tlb;

pub use event::{Event, Operation, Time};
pub use features::Features;
pub use frames::Frames;
pub use inject::{Sabotage, Step};
pub use machine::{Model, ModelCpu};
pub use outcome::{Access, Fault, Outcome};
pub use stores::MAX_CPUS;
pub use story::{Rule, Violation};

/// The examples of the README, compiled and run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
