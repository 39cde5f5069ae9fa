//! Long sequences of calls by several CPUs on the model machine, against a plain map of page → attributes.
//!
//! After each call, what *every* CPU may see of what the caller owns is exactly what the map says: no old permission, no old address,
//! no fault of its own making. Another CPU may take one fault on what has just become valid, until its next exception. A call of
//! another CPU runs in the middle of each; a map is tried with every number of tables that is too small; frames that are unmapped and
//! tables that are reclaimed are given up at once, and nobody may reach them.
//!
//! In every geometry, with and without range operations, level hints and FEAT_ETS2, and with mappings that are not global; with the
//! model's own TLB, and for 4 KiB pages with the kernel's.

#[path = "../../../pgtable/tests/host/calls.rs"]
mod calls;
#[path = "../../../pgtable/tests/host/plain.rs"]
mod plain;
mod rig;

use granule::mm::tlb::KernelTlb;
use granule::platform::features::branch;
use granule_arch::alternative::host;
use granule_arch::descriptor::{Attributes, MemoryType};
use granule_model::{Features, Model, ModelCpu, PlanTlb, Sabotage, Step};
use granule_pgtable::{Execution, Geometry, Granule4K, Granule16K, Granule64K, Leaves, Shape, Tiny, Tlb};
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};
use proptest::test_runner::Config;

use calls::{Call, call};
use rig::{Kernel, Rig};

const DATA: Attributes = Attributes::kernel_data(MemoryType::Normal);
const RODATA: Attributes = Attributes::kernel_rodata(MemoryType::Normal);
const TEXT: Attributes = Attributes::kernel_text(MemoryType::Normal);
const LARGEST: Shape = Shape { leaves: Leaves::Largest, execution: Execution::ByLeaf };

/// A call of a CPU, and what another does in the middle of it.
#[derive(Clone, Copy, Debug)]
struct Action {
    by_first: bool,
    call: Call,
    meanwhile: Option<Call>,
    reclaim: bool,
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = (any::<bool>(), call(), proptest::option::of(call()), any::<bool>())
        .prop_map(|(by_first, call, meanwhile, reclaim)| Action { by_first, call, meanwhile, reclaim });
    proptest::collection::vec(action, 1..12)
}

fn features() -> impl Strategy<Value = Features> {
    (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(ets2, tlb_range, ttl)| Features {
        ets2,
        tlb_range,
        ttl,
        ..Features::BASE
    })
}

fn kernel() -> impl Strategy<Value = Kernel> {
    prop_oneof![Just(Kernel::Global), Just(Kernel::NotGlobal)]
}

fn run<G: Geometry>(
    tlb: impl for<'m> Tlb<ModelCpu<'m, G>>,
    features: Features,
    kernel: Kernel,
    border: u64,
    actions: &[Action],
) {
    let model = Model::<G>::new(3, rig::FRAMES, features);
    let rig = Rig::new(&model, tlb, kernel, border);
    for action in actions {
        let (first, second) = if action.by_first { (0, 1) } else { (1, 0) };
        rig.perform(first, action.call, &|| {
            action.meanwhile.into_iter().for_each(|call| rig.perform(second, call, &|| ()));
        });
        if action.reclaim {
            rig.reclaim(first);
        }
        rig.check_agreement(first);
    }
    rig.check_agreement(0);
    rig.check_agreement(1);
}

/// The switches that the kernel's TLB asks for what the CPUs can do.
fn switches(features: Features) -> Vec<u16> {
    let have = [(features.tlb_range, branch::TLB_RANGE), (features.ttl, branch::TLB_LEVEL)];
    have.into_iter().filter(|&(has, _)| has).map(|(_, identifier)| identifier).collect()
}

proptest! {
    #![proptest_config(Config::with_cases(32))]

    #[test]
    fn with_4_kib_pages(features in features(), kernel in kernel(), border in 0_u64..40, actions in actions()) {
        run::<Granule4K>(PlanTlb::of(features), features, kernel, border, &actions);
    }

    #[test]
    fn with_4_kib_pages_and_the_kernels_tlb(
        features in features(), kernel in kernel(), border in 0_u64..40, actions in actions(),
    ) {
        host::with(&switches(features), || run::<Granule4K>(KernelTlb, features, kernel, border, &actions));
    }

    #[test]
    fn with_16_kib_pages(features in features(), kernel in kernel(), border in 0_u64..40, actions in actions()) {
        run::<Granule16K>(PlanTlb::of(features), features, kernel, border, &actions);
    }

}

proptest! {
    // Tables of 8192 entries take their time.
    #![proptest_config(Config::with_cases(12))]

    #[test]
    fn with_64_kib_pages(features in features(), kernel in kernel(), border in 0_u64..40, actions in actions()) {
        run::<Granule64K>(PlanTlb::of(features), features, kernel, border, &actions);
    }
}

proptest! {
    #![proptest_config(Config::with_cases(256))]

    #[test]
    fn tiny(features in features(), kernel in kernel(), border in 0_u64..8, actions in actions()) {
        run::<Tiny>(PlanTlb::of(features), features, kernel, border, &actions);
    }

    /// Each barrier that a call issues is needed: taken away, it is missed in the very call. So the sequences are minimal, and the
    /// property tests above have teeth.
    #[test]
    fn no_barrier_can_be_taken_away(
        nth in 0_usize..6,
        step in prop_oneof![Just(Step::DmbIshst), Just(Step::DsbIshst), Just(Step::DsbIsh), Just(Step::Isb)],
        actions in actions(),
    ) {
        let model = Model::<Tiny>::new(2, rig::FRAMES, Features::BASE);
        let rig = Rig::new(&model, PlanTlb::of(Features::BASE), Kernel::Global, 0);
        model.inject(step, nth, Sabotage::Lost);
        for action in &actions {
            rig.perform_unchecked(0, action.call, &|| ());
            if model.all_struck() {
                rig.audit(0);
                let found = model.violations();
                assert!(!found.is_empty(), "{step:?} {nth} was taken out of {:?} and nobody missed it", action.call);
                return Ok(());
            }
            rig.check(0);
        }
    }
}
