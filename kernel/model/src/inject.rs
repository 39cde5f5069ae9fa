//! Faults that a test injects: the nth barrier or invalidation is lost, weakened, moved to another CPU, or given
//! another operand.
//!
//! **Rule: a checker is believed only when it is seen to fail.** Each rule of the model has a test that breaks a
//! correct sequence by one of these and expects the violation.

use granule_arch::tlbi::Instruction;

use crate::event::Operation;

/// Which operations are counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// DMB ISHST.
    DmbIshst,
    /// DSB ISHST.
    DsbIshst,
    /// DSB ISH.
    DsbIsh,
    /// DSB NSH.
    DsbNsh,
    /// ISB.
    Isb,
    /// Any TLBI.
    Tlbi,
    /// A compare-exchange, which becomes a load, a comparison and a plain store, whatever the sabotage.
    CompareExchange,
}

/// The fault that is injected into the operation that is hit.
#[derive(Clone, Copy, Debug)]
pub enum Sabotage {
    /// It is not there.
    Lost,
    /// Another barrier stands in its place.
    Becomes(Step),
    /// It runs on this CPU instead: as if the thread had migrated in between.
    OnCpu(usize),
    /// A TLBI with another operand, or of another kind.
    Rewritten(fn(Instruction) -> Instruction),
}

/// One fault: what happens to the `nth` (from 0) operation of this kind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Injection {
    pub(crate) step: Step,
    pub(crate) nth: usize,
    pub(crate) sabotage: Sabotage,
}

impl Step {
    fn of(operation: Operation) -> Option<Self> {
        match operation {
            Operation::DmbIshst => Some(Self::DmbIshst),
            Operation::DsbIshst => Some(Self::DsbIshst),
            Operation::DsbIsh => Some(Self::DsbIsh),
            Operation::DsbNsh => Some(Self::DsbNsh),
            Operation::Isb => Some(Self::Isb),
            Operation::Tlbi(_) => Some(Self::Tlbi),
            _ => None,
        }
    }

    fn operation(self) -> Operation {
        match self {
            Self::CompareExchange => unreachable!("no barrier becomes one"),
            Self::DmbIshst => Operation::DmbIshst,
            Self::DsbIshst => Operation::DsbIshst,
            Self::DsbIsh => Operation::DsbIsh,
            Self::DsbNsh => Operation::DsbNsh,
            Self::Isb => Operation::Isb,
            Self::Tlbi => Operation::Tlbi(Instruction::Vmalle1is),
        }
    }
}

/// The CPU and the operation that happen when `cpu` asks for `operation`; `None` where it is lost. Each strikes once.
pub(crate) fn strike(injections: &mut Vec<Injection>, cpu: usize, operation: Operation) -> Option<(usize, Operation)> {
    let happens = Some((cpu, operation));
    let Some(sabotage) = Step::of(operation).and_then(|step| struck(injections, step)) else { return happens };
    match (sabotage, operation) {
        (Sabotage::Lost, _) => None,
        (Sabotage::Becomes(other), _) => Some((cpu, other.operation())),
        (Sabotage::OnCpu(other), _) => Some((other, operation)),
        (Sabotage::Rewritten(rewrite), Operation::Tlbi(instruction)) => {
            Some((cpu, Operation::Tlbi(rewrite(instruction))))
        }
        (Sabotage::Rewritten(_), _) => happens,
    }
}

/// A step of this kind happens: what strikes it, if anything does.
pub(crate) fn struck(injections: &mut Vec<Injection>, step: Step) -> Option<Sabotage> {
    let mut sabotage = None;
    injections.retain_mut(|injection| {
        if injection.step != step {
            return true;
        }
        if let Some(left) = injection.nth.checked_sub(1) {
            injection.nth = left;
            return true;
        }
        sabotage = Some(injection.sabotage);
        false
    });
    sabotage
}
