//! Signals: `asm-generic/signal.h`, `asm-generic/siginfo.h`, `asm/sigcontext.h`, `asm/ucontext.h`.

use core::mem::offset_of;

/// Signals are 1 to this.
pub const SIGNALS: u32 = 64;

/// Makes the constants and their names from one list.
macro_rules! signals {
    ($($name:ident = $number:literal;)*) => {
        $(#[doc = concat!("`", stringify!($name), "`")] pub const $name: u32 = $number;)*

        /// The signal's name, if it has one.
        pub const fn name(signal: u32) -> Option<&'static str> {
            match signal {
                $($number => Some(stringify!($name)),)*
                _ => None,
            }
        }
    };
}

signals! {
    SIGHUP = 1;
    SIGINT = 2;
    SIGQUIT = 3;
    SIGILL = 4;
    SIGTRAP = 5;
    SIGABRT = 6;
    SIGBUS = 7;
    SIGFPE = 8;
    SIGKILL = 9;
    SIGUSR1 = 10;
    SIGSEGV = 11;
    SIGUSR2 = 12;
    SIGPIPE = 13;
    SIGALRM = 14;
    SIGTERM = 15;
    SIGSTKFLT = 16;
    SIGCHLD = 17;
    SIGCONT = 18;
    SIGSTOP = 19;
    SIGTSTP = 20;
    SIGTTIN = 21;
    SIGTTOU = 22;
    SIGURG = 23;
    SIGXCPU = 24;
    SIGXFSZ = 25;
    SIGVTALRM = 26;
    SIGPROF = 27;
    SIGWINCH = 28;
    SIGIO = 29;
    SIGPWR = 30;
    SIGSYS = 31;
}

/// The default action, in place of a handler's address.
pub const SIG_DFL: u64 = 0;
/// Nothing happens, in place of a handler's address.
pub const SIG_IGN: u64 = 1;

/// Children that have ended leave nothing to wait for.
pub const SA_NOCLDWAIT: u64 = 2;
/// No signal when a child stops.
pub const SA_NOCLDSTOP: u64 = 1;
/// The handler takes three arguments.
pub const SA_SIGINFO: u64 = 4;
/// `si_addr` keeps the top byte that the hardware ignores.
pub const SA_EXPOSE_TAGBITS: u64 = 0x800;
/// `SigAction::restorer` is where the handler returns to.
pub const SA_RESTORER: u64 = 0x0400_0000;
/// The handler runs on the alternative stack.
pub const SA_ONSTACK: u64 = 0x0800_0000;
/// Calls that the handler interrupts go on.
pub const SA_RESTART: u64 = 0x1000_0000;
/// The handler may be interrupted by its own signal.
pub const SA_NODEFER: u64 = 0x4000_0000;
/// The default action is back once the handler has been called.
pub const SA_RESETHAND: u64 = 0x8000_0000;

/// rt_sigprocmask: add these.
pub const SIG_BLOCK: u64 = 0;
/// rt_sigprocmask: take these away.
pub const SIG_UNBLOCK: u64 = 1;
/// rt_sigprocmask: exactly these.
pub const SIG_SETMASK: u64 = 2;

/// Sent by kill.
pub const SI_USER: i32 = 0;
/// Sent by a timer.
pub const SI_TIMER: i32 = -2;
/// Sent by a file.
pub const SI_SIGIO: i32 = -5;
/// Sent by sigqueue.
pub const SI_QUEUE: i32 = -1;
/// Sent by the kernel.
pub const SI_KERNEL: i32 = 0x80;
/// Sent by tkill or tgkill.
pub const SI_TKILL: i32 = -6;
/// SIGSEGV: nothing is mapped there.
pub const SEGV_MAPERR: i32 = 1;
/// SIGSEGV: the mapping does not permit the access.
pub const SEGV_ACCERR: i32 = 2;
/// SIGSEGV: the tag of some pointer was not the memory's, at some access before.
pub const SEGV_MTEAERR: i32 = 8;
/// SIGSEGV: the pointer's tag is not the memory's.
pub const SEGV_MTESERR: i32 = 9;
/// SIGBUS: not aligned as the access needs it.
pub const BUS_ADRALN: i32 = 1;
/// SIGBUS: there is no memory behind the address.
pub const BUS_ADRERR: i32 = 2;
/// SIGBUS: the hardware reported an error.
pub const BUS_OBJERR: i32 = 3;
/// SIGBUS: the memory of the page that was accessed is gone.
pub const BUS_MCEERR_AR: i32 = 4;
/// SIGILL: no such instruction.
pub const ILL_ILLOPC: i32 = 1;
/// SIGTRAP: a breakpoint.
pub const TRAP_BRKPT: i32 = 1;
/// SIGCHLD: it exited.
pub const CLD_EXITED: i32 = 1;
/// SIGCHLD: a signal ended it.
pub const CLD_KILLED: i32 = 2;
/// SIGCHLD: a signal stopped it.
pub const CLD_STOPPED: i32 = 5;
/// SIGCHLD: it continues.
pub const CLD_CONTINUED: i32 = 6;

/// timer_create: a signal to the process.
pub const SIGEV_SIGNAL: u32 = 0;
/// timer_create: none.
pub const SIGEV_NONE: u32 = 1;
/// timer_create: a signal to the process, for a library that starts a thread then.
pub const SIGEV_THREAD: u32 = 2;
/// timer_create: a signal to a thread.
pub const SIGEV_THREAD_ID: u32 = 4;

/// sigaltstack: the thread is on it now.
pub const SS_ONSTACK: i32 = 1;
/// sigaltstack: there is none.
pub const SS_DISABLE: i32 = 2;
/// Least size of an alternative stack on arm64.
pub const MINSIGSTKSZ: u64 = 5120;

/// The action on a signal: the kernel's `struct sigaction`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SigAction {
    /// The handler's address, [`SIG_DFL`] or [`SIG_IGN`].
    pub handler: u64,
    /// `SA_` flags.
    pub flags: u64,
    /// Where the handler returns to, under [`SA_RESTORER`].
    pub restorer: u64,
    /// Signals that are blocked while it runs.
    pub mask: u64,
}

/// An alternative stack: `stack_t`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SigStack {
    /// Its lowest byte.
    pub base: u64,
    /// `SS_` flags.
    pub flags: i32,
    /// Nothing.
    pub padding: u32,
    /// Its bytes.
    pub size: u64,
}

impl SigStack {
    /// No alternative stack.
    pub const NONE: Self = Self { base: 0, flags: SS_DISABLE, padding: 0, size: 0 };
}

/// The information for a handler about its signal: `siginfo_t`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SigInfo {
    /// Which signal.
    pub signal: i32,
    /// Nothing.
    pub errno: i32,
    /// Why: one of the `SI_`, `SEGV_`, `BUS_`, ... codes.
    pub code: i32,
    /// Nothing.
    pub padding: i32,
    /// By code: the address of a fault; sender's process and user; child's process, user, and status.
    pub fields: [u64; 14],
}

impl SigInfo {
    /// A signal of the kernel's.
    pub const fn new(signal: u32, code: i32) -> Self {
        Self { signal: signal as i32, errno: 0, code, padding: 0, fields: [0; 14] }
    }

    /// This information, about an address.
    pub const fn with_address(mut self, address: u64) -> Self {
        self.fields[0] = address;
        self
    }

    /// This information, from or about a process: its number, and user 0.
    pub const fn with_process(mut self, process: u32) -> Self {
        self.fields[0] = process as u64;
        self
    }

    /// This information, about a process that ended so.
    pub const fn with_status(mut self, status: i32) -> Self {
        self.fields[1] = status as u32 as u64;
        self
    }

    /// The address that a fault was about.
    pub const fn address(&self) -> u64 {
        self.fields[0]
    }

    /// The process that it is from or about.
    pub const fn process(&self) -> u32 {
        self.fields[0] as u32
    }
}

/// A signal as it is read from a file: `struct signalfd_siginfo`. Each field is 0 but for those that its kind has.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct SignalfdSiginfo {
    /// Which signal.
    pub signo: u32,
    /// Nothing.
    pub errno: i32,
    /// Why: one of the `SI_`, `SEGV_`, `BUS_`, ... codes.
    pub code: i32,
    /// The sender, or the child.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// SIGIO: the descriptor.
    pub fd: i32,
    /// The timer.
    pub tid: u32,
    /// SIGIO: the events.
    pub band: u32,
    /// How often a timer passed unnoticed.
    pub overrun: u32,
    /// Nothing on arm64.
    pub trapno: u32,
    /// The child's.
    pub status: i32,
    /// The value that it was sent with, as a number.
    pub int: i32,
    /// The value, as an address.
    pub ptr: u64,
    /// The child's CPU time in EL0.
    pub utime: u64,
    /// Its CPU time in the kernel.
    pub stime: u64,
    /// The address of a fault.
    pub addr: u64,
    /// log2 of the bytes that are gone there.
    pub addr_lsb: u16,
    /// Nothing.
    pub padding: u16,
    /// SIGSYS: the call's number.
    pub syscall: i32,
    /// SIGSYS: the address of the call.
    pub call_addr: u64,
    /// SIGSYS: the machine.
    pub arch: u32,
    /// Nothing.
    pub reserved: [u32; 7],
}

/// The interrupted registers, which the handler may change: `struct sigcontext`.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug)]
pub struct SigContext {
    /// FAR_EL1 of a fault.
    pub fault_address: u64,
    /// x0 to x30.
    pub registers: [u64; 31],
    /// SP.
    pub sp: u64,
    /// PC.
    pub pc: u64,
    /// PSTATE.
    pub pstate: u64,
    /// Records that start with a [`ContextHeader`], up to one whose magic is 0.
    pub records: Records,
}

/// The records' place.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug)]
pub struct Records(pub [u8; 4096]);

/// The start of each record: `struct _aarch64_ctx`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ContextHeader {
    /// The kind of record; 0 ends them.
    pub magic: u32,
    /// Its bytes, the header's included.
    pub size: u32,
}

/// Magic of [`FpsimdContext`].
pub const FPSIMD_MAGIC: u32 = 0x4650_8001;
/// Magic of [`EsrContext`].
pub const ESR_MAGIC: u32 = 0x4553_5201;
/// Magic of [`ExtraContext`].
pub const EXTRA_MAGIC: u32 = 0x4558_5401;
/// Magic of the record of SVE registers.
pub const SVE_MAGIC: u32 = 0x5356_4501;

/// Floating-point and SIMD registers: `struct fpsimd_context`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FpsimdContext {
    /// [`FPSIMD_MAGIC`], and the size.
    pub header: ContextHeader,
    /// FPSR.
    pub fpsr: u32,
    /// FPCR.
    pub fpcr: u32,
    /// v0 to v31.
    pub registers: [u128; 32],
}

/// ESR_EL1 of a fault: `struct esr_context`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EsrContext {
    /// [`ESR_MAGIC`], and the size.
    pub header: ContextHeader,
    /// The syndrome.
    pub esr: u64,
}

/// Records that follow the frame because they do not fit into it: `struct extra_context`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExtraContext {
    /// [`EXTRA_MAGIC`], and the size.
    pub header: ContextHeader,
    /// Where they are: 16 bytes, a header that ends the records, lie between this record and them.
    pub address: u64,
    /// Their bytes.
    pub size: u32,
    /// Nothing.
    pub reserved: [u32; 3],
}

/// The state that a handler interrupts: `struct ucontext`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct UContext {
    /// Nothing.
    pub flags: u64,
    /// Nothing.
    pub link: u64,
    /// The alternative stack.
    pub stack: SigStack,
    /// Blocked signals; put back at the handler's return.
    pub mask: u64,
    /// Room for more signals.
    pub reserved: [u8; 120],
    /// The registers.
    pub context: SigContext,
}

/// The frame that the kernel writes to the stack for a handler: `struct rt_sigframe`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SigFrame {
    /// The second argument.
    pub info: SigInfo,
    /// The third argument.
    pub context: UContext,
}

// The layout is the interface: these are the offsets that the kernel headers give on arm64.
const _: () = {
    assert!(size_of::<SigAction>() == 32);
    assert!(size_of::<SigStack>() == 24);
    assert!(size_of::<SigInfo>() == 128);
    assert!(size_of::<SignalfdSiginfo>() == 128);
    assert!(offset_of!(SignalfdSiginfo, ptr) == 48);
    assert!(offset_of!(SignalfdSiginfo, call_addr) == 88);
    assert!(offset_of!(SigInfo, fields) == 16);
    assert!(offset_of!(SigContext, records) == 288);
    assert!(size_of::<SigContext>() == 4384);
    assert!(offset_of!(UContext, mask) == 40);
    assert!(offset_of!(UContext, context) == 176);
    assert!(size_of::<UContext>() == 4560);
    assert!(size_of::<FpsimdContext>() == 528);
    assert!(offset_of!(FpsimdContext, registers) == 16);
    assert!(size_of::<EsrContext>() == 16);
    assert!(size_of::<ExtraContext>() == 32);
    assert!(size_of::<SigFrame>() == 4688);
};
