//! Sets of signals, pending signals, and actions.

use core::cell::Cell;
use core::fmt;

use granule_abi::Errno;
use granule_abi::signal::{
    SA_EXPOSE_TAGBITS, SA_NOCLDSTOP, SA_NOCLDWAIT, SA_NODEFER, SA_ONSTACK, SA_RESETHAND, SA_RESTART, SA_RESTORER,
    SA_SIGINFO, SIG_DFL, SIG_IGN, SIGALRM, SIGBUS, SIGCHLD, SIGCONT, SIGFPE, SIGHUP, SIGILL, SIGINT, SIGKILL, SIGNALS,
    SIGSEGV, SIGSTOP, SIGSYS, SIGTRAP, SIGTSTP, SIGTTIN, SIGTTOU, SIGURG, SIGWINCH, SigAction, SigInfo,
};
use granule_arch::addr::VirtAddr;

/// The number of a signal, 1 to 64.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Signal(u32);

impl Signal {
    /// No such instruction.
    pub const ILL: Self = Self(SIGILL);
    /// A breakpoint.
    pub const TRAP: Self = Self(SIGTRAP);
    /// An access that cannot be made.
    pub const BUS: Self = Self(SIGBUS);
    /// The end, in any case.
    pub const KILL: Self = Self(SIGKILL);
    /// Ctrl-C.
    pub const INT: Self = Self(SIGINT);
    /// An access that is not allowed.
    pub const SEGV: Self = Self(SIGSEGV);
    /// A timer.
    pub const ALRM: Self = Self(SIGALRM);
    /// A child has ended.
    pub const CHLD: Self = Self(SIGCHLD);
    /// A stopped process continues.
    pub const CONT: Self = Self(SIGCONT);
    /// A process is stopped, in any case.
    pub const STOP: Self = Self(SIGSTOP);
    /// No session is left.
    pub const HUP: Self = Self(SIGHUP);

    /// The signal with this number.
    pub const fn new(number: u64) -> Option<Self> {
        if number >= 1 && number <= SIGNALS as u64 { Some(Self(number as u32)) } else { None }
    }

    /// Its place in a table of all signals. They are a power of two, so that the number is masked, as a CPU that predicts
    /// wrongly must find it.
    const fn place(self) -> usize {
        const { assert!(SIGNALS.is_power_of_two()) };
        (self.0 as usize).wrapping_sub(1) % SIGNALS as usize
    }

    /// Its number.
    pub const fn number(self) -> u32 {
        self.0
    }

    /// The set of this one.
    pub const fn set(self) -> Set {
        Set(1 << (self.0 - 1))
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match granule_abi::signal::name(self.0) {
            Some(name) => f.write_str(name),
            None => write!(f, "signal {}", self.0),
        }
    }
}

/// Signals.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Set(pub u64);

impl Set {
    /// None.
    pub const EMPTY: Self = Self(0);
    /// The signals that cannot be blocked or handled.
    const NEVER_BLOCKED: Self = Self(1 << (SIGKILL - 1) | 1 << (SIGSTOP - 1));

    /// The signals that stop a process by default.
    pub const STOPS: Self = Self(1 << (SIGSTOP - 1) | 1 << (SIGTSTP - 1) | 1 << (SIGTTIN - 1) | 1 << (SIGTTOU - 1));

    /// A set that may be blocked.
    pub const fn blockable(self) -> Self {
        self.without(Self::NEVER_BLOCKED)
    }

    /// Whether it has this one.
    pub const fn has(self, signal: Signal) -> bool {
        self.0 & signal.set().0 != 0
    }

    /// All of both.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those that are not in `other`.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Those that are in both.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Each of them, by number.
    pub fn iter(self) -> impl Iterator<Item = Signal> {
        (1..=SIGNALS as u64).filter_map(Signal::new).filter(move |signal| self.has(*signal))
    }

    /// The one that is delivered first: those of faults before others, then by number.
    pub fn first(self) -> Option<Signal> {
        // Linux's SYNCHRONOUS_MASK.
        const SYNCHRONOUS: u64 = Signal::SEGV.set().0
            | Signal::BUS.set().0
            | Signal::ILL.set().0
            | Signal::TRAP.set().0
            | 1 << (SIGFPE - 1)
            | 1 << (SIGSYS - 1);
        let urgent = self.0 & SYNCHRONOUS;
        let from = if urgent != 0 { urgent } else { self.0 };
        Signal::new(u64::from(from.trailing_zeros()) + 1)
    }
}

/// The information that comes with a signal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SignalCause {
    /// One of the `SI_`, `SEGV_`, ... codes.
    pub code: i32,
    /// The first two words of what follows the code in [`SigInfo`].
    pub fields: [u64; 2],
}

impl SignalCause {
    /// The kernel, without a code of its own.
    pub const KERNEL: Self = Self { code: granule_abi::signal::SI_KERNEL, fields: [0; 2] };

    /// A placeholder that is never read: zeros, which are stored at once.
    const UNKEPT: Self = Self { code: 0, fields: [0; 2] };

    /// A fault at an address.
    pub const fn fault(code: i32, address: u64) -> Self {
        Self { code, fields: [address, 0] }
    }

    /// This cause, about the memory of a whole page (`si_addr_lsb`).
    #[must_use]
    pub const fn of_page(self) -> Self {
        Self { fields: [self.fields[0], granule_arch::addr::PAGE_SIZE.trailing_zeros() as u64], ..self }
    }

    /// This cause without the tag of its address, if it has one: as on Linux, which keeps that of a breakpoint.
    #[must_use]
    pub fn untagged(self, signal: Signal) -> Self {
        // Codes of faults are the kernel's: other senders have codes of 0 and below.
        let is_fault = (1..granule_abi::signal::SI_KERNEL).contains(&self.code)
            && [Signal::SEGV, Signal::BUS, Signal::ILL].contains(&signal);
        let address = VirtAddr(self.fields[0]).untagged().0;
        if is_fault { Self { fields: [address, self.fields[1]], ..self } } else { self }
    }

    /// A process, by one of the kill calls.
    pub const fn process(code: i32, process: u32) -> Self {
        Self { code, fields: [process as u64, 0] }
    }

    /// A child that ended in this way.
    pub const fn child(code: i32, process: u32, status: i32) -> Self {
        Self { code, fields: [process as u64, status as u32 as u64] }
    }

    /// The information for the handler of the signal.
    pub const fn info(&self, signal: Signal) -> SigInfo {
        let mut info = SigInfo::new(signal.number(), self.code);
        info.fields[0] = self.fields[0];
        info.fields[1] = self.fields[1];
        info
    }
}

/// Pending signals, each with the cause of its first sending: as for Linux's standard signals, a second one while the
/// first is pending is the same one.
#[derive(Debug)]
pub struct Pending {
    set: Cell<Set>,
    /// Of the named signals.
    causes: [Cell<SignalCause>; Self::NAMED],
    /// Of the others, which processes alone send, or end with, and rarely. Those of a few are kept at a time: the others'
    /// are lost, as on Linux where its queue is full.
    others: [Cell<Option<(Signal, SignalCause)>>; Self::OTHERS],
}

impl Pending {
    const NAMED: usize = 31;
    const OTHERS: usize = 4;

    /// None.
    pub const fn new() -> Self {
        Self {
            set: Cell::new(Set::EMPTY),
            causes: [const { Cell::new(SignalCause::UNKEPT) }; Self::NAMED],
            others: [const { Cell::new(None) }; Self::OTHERS],
        }
    }

    /// Their set.
    pub const fn set(&self) -> Set {
        self.set.get()
    }

    /// Adds one; returns whether its pollers are woken: as on Linux not for one of the named signals that is pending.
    #[inline]
    pub fn add(&self, signal: Signal, cause: SignalCause) -> bool {
        if self.set().has(signal) {
            return signal.place() >= Self::NAMED;
        }
        self.set.set(self.set().with(signal.set()));
        if let Some(place) = self.causes.get(signal.place()) {
            place.set(cause);
        } else if let Some(place) = self.others.iter().find(|place| place.get().is_none()) {
            place.set(Some((signal, cause)));
        }
        true
    }

    /// Takes one that is not blocked.
    pub fn take(&self, blocked: Set) -> Option<(Signal, SignalCause)> {
        let signal = self.set().without(blocked).first()?;
        let cause = self.cause(signal);
        self.remove(signal);
        Some((signal, cause))
    }

    /// The cause of one that is pending.
    pub fn cause(&self, signal: Signal) -> SignalCause {
        match self.causes.get(signal.place()) {
            Some(kept) => kept.get(),
            None => self
                .other(signal)
                .and_then(Cell::get)
                .map_or(SignalCause::process(granule_abi::signal::SI_USER, 0), |(_, cause)| cause),
        }
    }

    /// Takes one away.
    #[inline]
    pub fn remove(&self, signal: Signal) {
        self.set.set(self.set().without(signal.set()));
        if signal.place() >= Self::NAMED
            && let Some(place) = self.other(signal)
        {
            place.set(None);
        }
    }

    fn other(&self, signal: Signal) -> Option<&Cell<Option<(Signal, SignalCause)>>> {
        self.others.iter().find(|place| place.get().is_some_and(|(other, _)| other == signal))
    }
}

impl Default for Pending {
    fn default() -> Self {
        Self::new()
    }
}

/// The effect of a signal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Nothing.
    Ignored,
    /// It ends the process.
    Fatal,
    /// It stops the process.
    Stops,
    /// The program's handler runs.
    Handled(SigAction),
}

/// The flags that exist: Linux's `UAPI_SA_FLAGS`.
const KNOWN_FLAGS: u64 = SA_NOCLDSTOP
    | SA_NOCLDWAIT
    | SA_SIGINFO
    | SA_ONSTACK
    | SA_RESTART
    | SA_NODEFER
    | SA_RESETHAND
    | SA_EXPOSE_TAGBITS
    | SA_RESTORER;

/// The actions of a process.
#[derive(Clone, Debug)]
pub struct Actions([SigAction; SIGNALS as usize]);

impl Actions {
    /// The default for all.
    pub const fn new() -> Self {
        Self([SigAction { handler: SIG_DFL, flags: 0, restorer: 0, mask: 0 }; SIGNALS as usize])
    }

    /// The action of a signal.
    pub const fn get(&self, signal: Signal) -> SigAction {
        self.0[signal.place()]
    }

    /// The signals that are ignored on request, and those that have a handler.
    pub fn sets(&self) -> (Set, Set) {
        let set_where = |holds: fn(u64) -> bool| {
            let signals = self.0.iter().enumerate().filter(|(_, action)| holds(action.handler));
            Set(signals.fold(0, |set, (place, _)| set | 1 << place))
        };
        (set_where(|handler| handler == SIG_IGN), set_where(|handler| handler != SIG_IGN && handler != SIG_DFL))
    }

    /// Changes the action of a signal; returns the one before.
    ///
    /// # Errors
    /// `EINVAL`: it cannot be changed.
    pub fn set(&mut self, signal: Signal, action: SigAction) -> Result<SigAction, Errno> {
        if Set::NEVER_BLOCKED.has(signal) {
            return Err(Errno::EINVAL);
        }
        let mask = Set(action.mask).blockable().0;
        // A cleared flag shows a program that it is not supported (sigaction(2), SA_UNSUPPORTED).
        let flags = action.flags & KNOWN_FLAGS;
        Ok(core::mem::replace(self.entry(signal), SigAction { mask, flags, ..action }))
    }

    /// Restores the default action of a signal; its flags and mask stay, as on Linux.
    pub fn reset(&mut self, signal: Signal) {
        self.entry(signal).handler = SIG_DFL;
    }

    const fn entry(&mut self, signal: Signal) -> &mut SigAction {
        &mut self.0[signal.place()]
    }

    /// The actions after an exec: handlers are removed, ignored signals stay ignored.
    pub fn exec(&mut self) {
        for action in &mut self.0 {
            let handler = if action.handler == SIG_IGN { SIG_IGN } else { SIG_DFL };
            *action = SigAction { handler, ..SigAction::default() };
        }
    }

    /// The effect of a signal.
    pub fn effect(&self, signal: Signal) -> Effect {
        let action = self.get(signal);
        match (action.handler, signal.number()) {
            (SIG_IGN, _) => Effect::Ignored,
            (SIG_DFL, SIGCHLD | SIGCONT | SIGURG | SIGWINCH) => Effect::Ignored,
            (SIG_DFL, SIGSTOP | SIGTSTP | SIGTTIN | SIGTTOU) => Effect::Stops,
            (SIG_DFL, _) => Effect::Fatal,
            _ => Effect::Handled(action),
        }
    }

    /// The effect of a signal at its delivery; a handler that is called only once is removed then, except its flags.
    pub fn deliver(&mut self, signal: Signal) -> Effect {
        let effect = self.effect(signal);
        if let Effect::Handled(action) = effect
            && action.flags & SA_RESETHAND != 0
        {
            self.reset(signal);
        }
        effect
    }

    /// Whether SIGCHLD is ignored, and not only by default.
    pub const fn ignores_children(&self) -> bool {
        self.get(Signal::CHLD).handler == SIG_IGN
    }

    /// Whether SIGCHLD reports that a child stops or continues.
    pub const fn reports_stops(&self) -> bool {
        !self.ignores_children() && self.get(Signal::CHLD).flags & SA_NOCLDSTOP == 0
    }

    /// Whether children leave no status at their end.
    pub const fn reaps_children(&self) -> bool {
        self.ignores_children() || self.get(Signal::CHLD).flags & SA_NOCLDWAIT != 0
    }
}

impl Default for Actions {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use granule_abi::Errno;
    use granule_abi::signal::{
        CLD_EXITED, SA_NOCLDWAIT, SA_RESETHAND, SEGV_MAPERR, SI_TKILL, SI_USER, SIG_DFL, SIG_IGN, SIGHUP, SIGSTOP,
        SIGUSR1, SIGUSR2, SigAction,
    };

    use super::{Actions, Effect, Pending, Set, Signal, SignalCause};

    const HUP: Signal = Signal(SIGHUP);
    const USR1: Signal = Signal(SIGUSR1);
    const USR2: Signal = Signal(SIGUSR2);
    const STOP: Signal = Signal(SIGSTOP);

    fn handler(flags: u64) -> SigAction {
        SigAction { handler: 0x40_0000, flags, restorer: 0, mask: !0 }
    }

    #[test]
    fn signals_are_1_to_64() {
        assert_eq!(Signal::new(0), None);
        assert_eq!(Signal::new(65), None);
        assert_eq!(Signal::new(64).unwrap().set(), Set(1 << 63));
        assert_eq!(Signal::new(1 << 32 | 1), None);
    }

    #[test]
    fn faults_come_first_and_a_second_signal_is_the_same() {
        let pending = Pending::new();
        for signal in [HUP, USR1, Signal::new(64).unwrap()] {
            pending.add(signal, SignalCause::process(SI_USER, 7));
            pending.add(signal, SignalCause::process(SI_USER, 8));
        }
        let fault = SignalCause::fault(SEGV_MAPERR, 0x1234);
        pending.add(Signal::SEGV, fault);
        assert_eq!(pending.take(Set::EMPTY), Some((Signal::SEGV, fault)));
        assert_eq!(pending.take(HUP.set()).unwrap().0, USR1);
        let (first, cause) = pending.take(Set::EMPTY).unwrap();
        assert_eq!((first, cause.info(first).process()), (HUP, 7), "the first sender");
        let (last, cause) = pending.take(Set::EMPTY).unwrap();
        assert_eq!((last.number(), cause.info(last).process()), (64, 7), "glibc looks at the sender of signal 32");
        pending.add(last, SignalCause::process(SI_TKILL, 9));
        assert_eq!(pending.take(Set::EMPTY), Some((last, SignalCause::process(SI_TKILL, 9))));
        // The signal with which a child ends may be any.
        let end = SignalCause::child(CLD_EXITED, 9, 3);
        pending.add(last, end);
        assert_eq!(pending.take(Set::EMPTY), Some((last, end)));
        for number in [1, 31, 8, 11, 7, 5, 4] {
            pending.add(Signal::new(number).unwrap(), SignalCause::KERNEL);
        }
        for number in [4, 5, 7, 8, 11, 31, 1] {
            assert_eq!(pending.take(Set::EMPTY).unwrap().0.number(), number);
        }
        assert_eq!((pending.take(Set::EMPTY), pending.set()), (None, Set::EMPTY));
    }

    #[test]
    fn kill_and_stop_are_never_blocked_handled_or_ignored() {
        assert_eq!(Set(!0).blockable(), Set(!(1 << 8 | 1 << 18)));
        let mut actions = Actions::new();
        assert_eq!(actions.set(Signal::KILL, handler(0)), Err(Errno::EINVAL));
        assert_eq!(actions.set(STOP, handler(0)), Err(Errno::EINVAL));
        assert_eq!(actions.effect(Signal::KILL), Effect::Fatal);
        actions.set(USR1, handler(0)).unwrap();
        let blocked = Set(actions.get(USR1).mask);
        assert!(!blocked.has(Signal::KILL));
        assert!(!blocked.has(STOP));
    }

    #[test]
    fn default_actions_are_linuxs() {
        let actions = Actions::new();
        let (ignored, stops) = ([17, 18, 23, 28], [19, 20, 21, 22]);
        for number in 1..=64 {
            let expected = match number {
                _ if ignored.contains(&number) => Effect::Ignored,
                _ if stops.contains(&number) => Effect::Stops,
                _ => Effect::Fatal,
            };
            assert_eq!(actions.effect(Signal::new(number).unwrap()), expected, "{number}");
        }
    }

    #[test]
    fn a_handler_for_once_is_called_once() {
        let mut actions = Actions::new();
        actions.set(USR1, handler(SA_RESETHAND)).unwrap();
        assert!(matches!(actions.deliver(USR1), Effect::Handled(_)));
        assert_eq!(actions.deliver(USR1), Effect::Fatal);
        let left = actions.get(USR1);
        assert_eq!((left.handler, left.flags), (SIG_DFL, SA_RESETHAND), "as on Linux, which resets the handler alone");
    }

    #[test]
    fn flags_that_do_not_exist_are_cleared() {
        let mut actions = Actions::new();
        // SA_UNSUPPORTED, by which programs find out; one of the high half; one that exists.
        actions.set(USR1, handler(0x400 | 1 << 40 | SA_RESETHAND)).unwrap();
        assert_eq!(actions.get(USR1).flags, SA_RESETHAND);
    }

    #[test]
    fn exec_forgets_handlers_and_keeps_what_is_ignored() {
        let mut actions = Actions::new();
        actions.set(USR1, handler(0)).unwrap();
        actions.set(USR2, SigAction { handler: SIG_IGN, ..handler(0) }).unwrap();
        actions.exec();
        assert_eq!(actions.get(USR1).handler, SIG_DFL);
        assert_eq!(actions.effect(USR2), Effect::Ignored);
        assert_eq!(actions.get(USR2).mask, 0);
    }

    #[test]
    fn children_may_leave_nothing() {
        let mut actions = Actions::new();
        assert!(!actions.reaps_children());
        actions.set(Signal::CHLD, handler(SA_NOCLDWAIT)).unwrap();
        assert!(actions.reaps_children());
        actions.set(Signal::CHLD, SigAction { handler: SIG_IGN, ..handler(0) }).unwrap();
        assert!(actions.reaps_children());
    }
}
