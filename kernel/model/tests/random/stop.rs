//! All other CPUs stopped for a split or a collapse, as the kernel parks them: outside of their walks. When they go on,
//! they acquire what was stored during the stop, with an ISB. **Rule: then no access of any CPU comes to what it
//! could not come to before**, such as a fault on what is mapped all the time.

use core::sync::atomic::Ordering;

use granule_arch::addr::VirtAddr;
use granule_model::{Access, ModelCpu, Outcome, Sabotage, Step};
use granule_pgtable::{Entries, Geometry, Mmu, Serialise, Tlb, WalkWord};

use crate::calls::window;
use crate::rig::{Rig, based};
use crate::turns::Gated;

/// How CPUs are stopped, and what is left out to see that it must not be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stop {
    /// Outside of their walks.
    Outside,
    /// Wherever they are.
    Anywhere,
    /// None is.
    NotAtAll,
    /// They go on without an ISB.
    Unsynchronised,
    /// In one stop, by its number, one operation is lost: so many of its kind come first.
    Lost(u64, Step, usize),
}

/// One CPU as it stops the others.
pub(crate) struct Stopping<'r, 'm, G: Geometry, T> {
    rig: &'r Rig<'m, G, T>,
    pub(crate) cpu: usize,
    how: Stop,
}

impl<'r, 'm, G: Geometry, T: for<'c> Tlb<Gated<'c, G>>> Stopping<'r, 'm, G, T> {
    pub(crate) const fn new(rig: &'r Rig<'m, G, T>, cpu: usize, how: Stop) -> Self {
        Self { rig, cpu, how }
    }

    fn others(&self) -> impl Iterator<Item = ModelCpu<'m, G>> {
        self.rig.model.cpus().filter(|other| other.index() != self.cpu && self.how != Stop::NotAtAll)
    }

    /// All pages, or some of many.
    fn pages(&self) -> Vec<VirtAddr> {
        let window = based::<G>(self.rig.model, window::<G>());
        match window.pages() as u64 {
            few @ ..=16 => (0..few).map(|page| window.start() + page * G::PAGE_SIZE).collect(),
            _ => [self.rig.samples(0), self.rig.samples(1)].concat(),
        }
    }
}

// SAFETY: the others are parked outside of walks, or a lab shows that it matters; tables are words of the model.
#[allow(unsafe_code, reason = "keeps the contract of `Serialise`")]
unsafe impl<'r, 'm, G: Geometry, T: for<'c> Tlb<Gated<'c, G>>> Serialise for Stopping<'r, 'm, G, T> {
    type Section<'a>
        = OthersStopped<'a, 'r, 'm, G, T>
    where
        Self: 'a;

    fn entries(&self) -> Entries {
        Entries::Stopped
    }

    fn begin(&self) -> Self::Section<'_> {
        let Self { rig, cpu, how, .. } = *self;
        let is_in_walk = |cpu: usize| !rig.words[cpu].load_acquire().is_multiple_of(2);
        assert!(!is_in_walk(cpu), "CPU {cpu} stops others inside a walk of its own");
        if let Some(turns) = rig.turns() {
            turns.begin_stop(cpu);
            if how != Stop::NotAtAll {
                turns.park(cpu, || how == Stop::Anywhere || !is_in_walk(1 - cpu));
            }
        }
        self.others().for_each(|other| rig.model.hand_over(other.index(), cpu));
        let of_cpu = |cpu: ModelCpu<'m, G>, page| Access::ALL.map(|access| (cpu, page, access, cpu.may(page, access)));
        let of_page = |page| rig.model.cpus().flat_map(move |cpu| of_cpu(cpu, page));
        let before = self.pages().into_iter().flat_map(of_page).collect();
        let number = rig.stops.fetch_add(1, Ordering::Relaxed);
        if let Stop::Lost(stop, step, nth) = how
            && stop == number
        {
            rig.model.inject(step, nth, Sabotage::Lost);
        }
        OthersStopped { stopping: self, before }
    }
}

/// All other CPUs are stopped.
pub(crate) struct OthersStopped<'a, 'r, 'm, G: Geometry, T: for<'c> Tlb<Gated<'c, G>>> {
    stopping: &'a Stopping<'r, 'm, G, T>,
    /// The outcomes that each CPU could come to by each access to some pages.
    before: Vec<(ModelCpu<'m, G>, VirtAddr, Access, Vec<Outcome>)>,
}

impl<G: Geometry, T: for<'c> Tlb<Gated<'c, G>>> Drop for OthersStopped<'_, '_, '_, G, T> {
    fn drop(&mut self) {
        let Stopping { rig, cpu, how, .. } = *self.stopping;
        for other in self.stopping.others() {
            rig.model.hand_over(cpu, other.index());
            if how != Stop::Unsynchronised {
                other.isb();
            }
        }
        let after: Vec<_> = self.before.iter().map(|&(cpu, page, access, _)| cpu.may(page, access)).collect();
        rig.turns().into_iter().for_each(|turns| turns.end_stop(cpu));
        if std::thread::panicking() || how == Stop::NotAtAll {
            return;
        }
        for ((cpu, page, access, before), after) in self.before.iter().zip(after) {
            let is_known = after.iter().all(|outcome| before.contains(outcome));
            assert!(is_known, "CPU {}: {access:?} of {page}: {before:?}, after a stop {after:?}", cpu.index());
        }
    }
}
