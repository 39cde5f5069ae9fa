//! Calls for processes and threads.

use core::ops::Deref;
use core::sync::atomic::Ordering;

use granule_abi::process::{
    NAME_LENGTH, P_ALL, P_PGID, P_PID, P_PIDFD, PER_LINUX32, PER_MASK, PR_GET_MDWE, PR_GET_NAME,
    PR_GET_TAGGED_ADDR_CTRL, PR_GET_THP_DISABLE, PR_MDWE_NO_INHERIT, PR_MDWE_REFUSE_EXEC_GAIN, PR_MTE_TAG_MASK,
    PR_MTE_TAG_SHIFT, PR_MTE_TCF_ASYNC, PR_MTE_TCF_MASK, PR_MTE_TCF_SYNC, PR_SET_MDWE, PR_SET_NAME,
    PR_SET_TAGGED_ADDR_CTRL, PR_SET_THP_DISABLE, PR_TAGGED_ADDR_ENABLE, PR_THP_DISABLE_EXCEPT_ADVISED,
    RSEQ_FLAG_UNREGISTER, RobustListHead, WALL, WCLONE, WCONTINUED, WEXITED, WNOHANG, WNOTHREAD, WNOWAIT, WUNTRACED,
};
use granule_abi::signal::{SIGCHLD, SigInfo};
use granule_arch::addr::{PAGE, VirtAddr};

use super::usage::USAGE;
use super::{Answer, Syscall, io, names, read_bytes, read_quads, write_quads};
use crate::kernel;
use crate::linux::errno::Errno;
use crate::linux::process::charge::Charge;
use crate::linux::process::clone_request::CloneRequest;
use crate::linux::process::elf::PATH_MAX;
use crate::linux::process::exec::Drawn;
use crate::linux::process::registration::Registration;
use crate::linux::process::signal::Signal;
use crate::linux::process::stack::{self, StackMemory, StringCounts, Strings};
use crate::linux::process::status::{Change, ExecError, Name, ProcessEnd};
use crate::linux::process::task::Task;
use crate::linux::process::tree::collect::Named;
use crate::linux::process::tree::{PROCESSES, Process};
use crate::linux::process::{clone, exec, exit, jobs};
use crate::mm::OutOfMemory;
use crate::mm::paged::PagedBytes;
use crate::mm::space::Settings;
use crate::sched::{self, IfNotReady, TagChecks, TagFaults, Thread, enlarge_shortage};
use crate::smp::this_cpu;
use crate::uaccess;

pub(super) fn getpid(call: &mut Syscall<'_>) -> Answer {
    Ok(u64::from(call.task.process().id()))
}

pub(super) fn gettid(call: &mut Syscall<'_>) -> Answer {
    Ok(u64::from(call.task.id()))
}

/// 0 where the parent is the kernel, or has ended.
pub(super) fn getppid(call: &mut Syscall<'_>) -> Answer {
    Ok(call.task.process().parent_id().into())
}

/// A number of the process that has the first argument's, 0 for the caller's own.
fn number_of(call: &Syscall<'_>, look: impl FnOnce(&Process) -> u32) -> Answer {
    match call.argument::<0>() as u32 {
        0 => Ok(look(call.task.process()).into()),
        id => PROCESSES.lock().find_of_thread(id).map(|process| look(process).into()).ok_or(Errno::ESRCH),
    }
}

pub(super) fn getpgid(call: &mut Syscall<'_>) -> Answer {
    number_of(call, Process::group)
}

pub(super) fn getsid(call: &mut Syscall<'_>) -> Answer {
    number_of(call, Process::session)
}

pub(super) fn setpgid(call: &mut Syscall<'_>) -> Answer {
    let own = call.task.process();
    let [of, group] = [call.argument::<0>(), call.argument::<1>()].map(|number| number as u32 as i32);
    let of = if of == 0 { own.id() } else { of as u32 };
    let group = if group == 0 { of as i32 } else { group };
    if group < 0 {
        return Err(Errno::EINVAL);
    }
    jobs::set_group(own, of, group as u32).map(|()| 0)
}

pub(super) fn setsid(call: &mut Syscall<'_>) -> Answer {
    jobs::begin_session(call.task.process())?;
    getpid(call)
}

/// There is one user.
pub(super) fn root(_: &mut Syscall<'_>) -> Answer {
    Ok(0)
}

pub(super) fn sched_yield(_: &mut Syscall<'_>) -> Answer {
    sched::yield_now();
    Ok(0)
}

pub(super) fn exit(call: &mut Syscall<'_>) -> Answer {
    exit::exit(call.task, call.argument::<0>() as u8)
}

pub(super) fn exit_group(call: &mut Syscall<'_>) -> Answer {
    exit::exit_group(call.task, ProcessEnd::Exited(call.argument::<0>() as u8))
}

pub(super) fn set_tid_address(call: &mut Syscall<'_>) -> Answer {
    call.task.clear_at_exit.set(call.argument::<0>());
    gettid(call)
}

/// Where the fields are that follow the code in `siginfo_t`.
const AFTER_CODE: u64 = core::mem::offset_of!(SigInfo, fields) as u64;

/// The list is walked when the thread leaves its space: `linux::process::robust`.
pub(super) fn set_robust_list(call: &mut Syscall<'_>) -> Answer {
    if call.argument::<1>() != size_of::<RobustListHead>() as u64 {
        return Err(Errno::EINVAL);
    }
    call.task.robust_list.store(call.argument::<0>(), Ordering::Relaxed);
    Ok(0)
}

pub(super) fn get_robust_list(call: &mut Syscall<'_>) -> Answer {
    let head = with_thread(call, |task| task.robust_list.load(Ordering::Relaxed))?;
    write_quads(call.address::<2>(), [size_of::<RobustListHead>() as u64])?;
    write_quads(call.address::<1>(), [head]).map(|()| 0)
}

/// Registers memory for restartable sequences, in Linux's order of errors: `linux::process::rseq`.
pub(super) fn rseq(call: &mut Syscall<'_>) -> Answer {
    let (bytes, flags, signature) =
        (call.argument::<1>() as u32, call.argument::<2>() as u32, call.argument::<3>() as u32);
    let (own, asked) = (call.task.rseq.get(), Registration { at: call.argument::<0>(), bytes, signature });
    if flags & !RSEQ_FLAG_UNREGISTER != 0 {
        return Err(Errno::EINVAL);
    }
    let (unregisters, is_registered) = (flags & RSEQ_FLAG_UNREGISTER != 0, own.at != 0);
    if is_registered && (asked.at, bytes) != (own.at, own.bytes) || unregisters && !is_registered {
        return Err(Errno::EINVAL);
    }
    match (is_registered, unregisters) {
        (true, _) if signature != own.signature => return Err(Errno::EPERM),
        (true, false) => return Err(Errno::EBUSY),
        (true, true) => own.end(call.task)?,
        (false, _) => asked.begin(call.task)?,
    }
    Ok(0)
}

/// Calls `look` with the thread that the first argument is the number of; 0 for the caller's own.
pub(super) fn with_thread<T>(call: &Syscall<'_>, look: impl Fn(&Task) -> T) -> Result<T, Errno> {
    match call.argument::<0>() as i32 {
        0 => Ok(look(call.task)),
        id => {
            let tree = PROCESSES.lock();
            u32::try_from(id).ok().and_then(|id| tree.find_task(id)).map(look).ok_or(Errno::ESRCH)
        }
    }
}

pub(super) fn clone(call: &mut Syscall<'_>) -> Answer {
    let [flags, stack, parent_id, tls, child_id, ..] = call.frame.x;
    let request = CloneRequest::of_clone([flags, stack, parent_id, tls, child_id])?;
    clone::clone(call.task, call.thread, call.frame, &request).map(u64::from)
}

pub(super) fn clone3(call: &mut Syscall<'_>) -> Answer {
    let request = read_clone3(call)?;
    clone::clone(call.task, call.thread, call.frame, &request).map(u64::from)
}

/// Reads the structure as Linux's `copy_clone_args_from_user`: newer fields must be zero. Out of line: the frame of a fork
/// has no words of it.
#[inline(never)]
fn read_clone3(call: &Syscall<'_>) -> Result<CloneRequest, Errno> {
    /// Bytes of the first structure, and of the one that is known here.
    const FIRST: u64 = 64;
    const KNOWN: u64 = 8 * CloneRequest::WORDS as u64;
    /// The most numbers, for as many nested namespaces, of which there is one here.
    const NUMBERS: u64 = 32;
    let (from, bytes) = (call.address::<0>(), call.argument::<1>());
    if bytes > PAGE {
        return Err(Errno::E2BIG);
    }
    if bytes < FIRST {
        return Err(Errno::EINVAL);
    }
    for at in KNOWN..bytes {
        if read_bytes(VirtAddr(from.0.wrapping_add(at)))? != [0] {
            return Err(Errno::E2BIG);
        }
    }
    let mut words = [[0; 8]; CloneRequest::WORDS];
    let read = words.as_flattened_mut().get_mut(..bytes.min(KNOWN) as usize).unwrap_or_default();
    uaccess::copy_from_user(read, from)?;
    let words = words.map(u64::from_le_bytes);
    let [.., numbers, count, _] = words;
    if count > NUMBERS || (numbers == 0) != (count == 0) {
        return Err(Errno::EINVAL);
    }
    let number = if count == 0 { None } else { Some(u32::from_le_bytes(read_bytes(VirtAddr(numbers))?)) };
    if count > 1 {
        return Err(Errno::EINVAL);
    }
    CloneRequest::of_clone3(words, number)
}

/// Processes are never stopped here, so there is nothing to report for some options.
pub(super) fn wait4(call: &mut Syscall<'_>) -> Answer {
    const OPTIONS: u64 = WNOHANG | WUNTRACED | WCONTINUED | WNOTHREAD | WALL | WCLONE;
    let (which, status, usage) = (call.argument::<0>() as i32, call.address::<1>(), call.address::<3>());
    let options = u64::from(call.argument::<2>() as u32);
    if options & !OPTIONS != 0 {
        return Err(Errno::EINVAL);
    }
    let named = match which {
        i32::MIN => return Err(Errno::ESRCH),
        -1 => Named::Any,
        0 => Named::Group(call.task.process().group()),
        group @ ..0 => Named::Group(group.unsigned_abs()),
        id => Named::Number(id as u32),
    };
    let Some((child, change)) = exit::wait(call.task, call.thread, named, options | WEXITED)? else { return Ok(0) };
    if status.0 != 0 {
        uaccess::copy_to_user(status, &change.word().to_le_bytes())?;
    }
    clear_usage(usage)?;
    Ok(u64::from(child))
}

/// As [`wait4`], with the change in the words of a signal: zeros where the call fails, too.
pub(super) fn waitid(call: &mut Syscall<'_>) -> Answer {
    let found = wait_for_named(call);
    if matches!(found, Ok(Some(_))) {
        clear_usage(call.address::<4>())?;
    }
    let to = call.address::<2>();
    if to.0 != 0 {
        let words = found.as_ref().ok().copied().flatten().map_or([0; 5], |(id, change)| {
            let cause = change.cause(id);
            [SIGCHLD, cause.code as u32, id, 0, cause.fields[1] as u32]
        });
        let [signal, code, id, user, status] = words.map(u32::to_le_bytes);
        uaccess::copy_to_user(to, [signal, [0; 4], code].as_flattened())?;
        uaccess::copy_to_user(VirtAddr(to.0.wrapping_add(AFTER_CODE)), [id, user, status].as_flattened())?;
    }
    found.map(|_| 0)
}

fn wait_for_named(call: &Syscall<'_>) -> Result<Option<(u32, Change)>, Errno> {
    const STOPS: u64 = WUNTRACED | WCONTINUED;
    const OPTIONS: u64 = WNOHANG | WNOWAIT | WEXITED | STOPS | WNOTHREAD | WALL | WCLONE;
    let (kind, id) = (call.argument::<0>() as u32, u32::try_from(call.argument::<1>() as i32));
    let mut options = u64::from(call.argument::<3>() as u32);
    if options & !OPTIONS != 0 || options & (WEXITED | STOPS) == 0 {
        return Err(Errno::EINVAL);
    }
    let file = match (u64::from(kind), id) {
        (P_PIDFD, Ok(descriptor)) => Some(io::file(call, descriptor.into())?),
        _ => None,
    };
    let named = match (u64::from(kind), id, &file) {
        (P_ALL, ..) => Named::Any,
        (P_PGID, Ok(0), _) => Named::Group(call.task.process().group()),
        (P_PGID, Ok(group), _) => Named::Group(group),
        (P_PID, Ok(id @ 1..), _) => Named::Number(id),
        (P_PIDFD, _, Some(file)) => Named::By(file.process().ok_or(Errno::EBADF)?),
        _ => return Err(Errno::EINVAL),
    };
    let waits = options & WNOHANG == 0;
    let is_nonblocking = file.as_ref().is_some_and(|file| file.if_not_ready() == IfNotReady::Fail);
    if is_nonblocking {
        options |= WNOHANG;
    }
    let found = exit::wait(call.task, call.thread, named, options)?;
    if found.is_none() && waits && is_nonblocking { Err(Errno::EAGAIN) } else { Ok(found) }
}

/// Zeros a `struct rusage`, if there is one: no usage is counted.
fn clear_usage(usage: VirtAddr) -> Result<(), Errno> {
    if usage.0 == 0 { Ok(()) } else { Ok(uaccess::clear_user(usage, USAGE * size_of::<u64>())?) }
}

pub(super) fn execve(call: &mut Syscall<'_>) -> Answer {
    let (arguments, environment) = (call.address::<1>(), call.address::<2>());
    let loaded = {
        let path = read_path(call, call.address::<0>())?;
        let file = exec::open(names::working_directory(call), &path).map_err(ExecError::errno)?;
        let limits = call.task.process().limits.of_space();
        let pointers = |array| count_pointers(call, array, limits.stack);
        let counts = StringCounts { arguments: pointers(arguments)?, environment: pointers(environment)? };
        let add = |strings: &mut Strings<exec::InSpace<'_>>| {
            copy_strings(call, environment, counts.environment, strings)?;
            copy_strings(call, arguments, counts.arguments, strings)
        };
        let drawn = Drawn::new(this_cpu(), call.task.personality.get());
        exec::load(this_cpu(), file, &path, &limits, counts, drawn, add).map_err(ExecError::errno)?
    };
    if loaded.writes_code && call.task.space().settings().denies_in_next() {
        return Err(Errno::EACCES);
    }
    let mut files = call.task.files().prepare_exec()?;
    exit::kill_other_threads(call.task)?;
    if !call.task.files().is_as_prepared(&files) {
        // Another thread, or a process that shares them, has changed descriptors until now. Later changes do not
        // concern this exec.
        files = loop {
            match call.task.files().prepare_exec() {
                Ok(files) => break files,
                Err(OutOfMemory) if call.is_relieved() => {}
                // The other threads are gone, so there is no way back (Linux's `begin_new_exec`).
                Err(OutOfMemory) => {
                    drop((loaded, files));
                    exit::exit_group(call.task, ProcessEnd::Killed(Signal::SEGV))
                }
            }
        };
    }
    exec::install(call.task, call.thread, loaded, files, call.frame);
    // The value of x0 at the program's first instruction.
    Ok(0)
}

/// The execution domain of the thread, as Linux has it: any bits are kept, and the domain of 32 bits is refused.
pub(super) fn personality(call: &mut Syscall<'_>) -> Answer {
    let (before, asked) = (call.task.personality.get(), call.argument::<0>() as u32);
    if asked & PER_MASK == PER_LINUX32 {
        return Err(Errno::EINVAL);
    }
    if asked != u32::MAX {
        call.task.personality.set(asked);
    }
    Ok(u64::from(before))
}

/// A path of a call, in a frame that its process is charged for: the copy waits for pagers, in any number of threads.
pub(super) struct Path {
    bytes: PagedBytes,
    _charge: Charge<'static>,
}

impl Deref for Path {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Copies a path (Linux's `getname`).
pub(super) fn read_path(call: &Syscall<'_>, from: VirtAddr) -> Result<Path, Errno> {
    let length = string_length(from, PATH_MAX)?.ok_or(Errno::ENAMETOOLONG)?;
    let bytes = PagedBytes::zeros(kernel().frames, length)?;
    let mut charge = call.task.process().charges.begin();
    charge.add(1);
    let mut path = Path { bytes, _charge: charge };
    uaccess::copy_from_user(&mut path.bytes, from)?;
    Ok(path)
}

impl Drop for Path {
    fn drop(&mut self) {
        // Where the call failed for want of memory, it was for this frame too.
        enlarge_shortage(this_cpu(), 1);
    }
}

/// Counts the pointers of an array up to a null pointer; a null array is empty.
///
/// More than an argument list can have are E2BIG at once, also where Linux would first fault on a later one.
fn count_pointers(call: &Syscall<'_>, array: VirtAddr, stack_limit: u64) -> Result<usize, Errno> {
    if array.0 == 0 {
        return Ok(0);
    }
    for index in 0..=stack::most_pointers(stack_limit) {
        call.pause_at(index)?;
        if read_pointer(array, index)?.0 == 0 {
            return Ok(index);
        }
    }
    Err(Errno::E2BIG)
}

fn read_pointer(array: VirtAddr, index: usize) -> Result<VirtAddr, Errno> {
    let [pointer] = read_quads(VirtAddr(array.0.wrapping_add(8 * index as u64)))?;
    Ok(VirtAddr(pointer))
}

/// Copies the strings of an array of pointers to a new stack, the last one first.
fn copy_strings<M: StackMemory>(
    call: &Syscall<'_>,
    array: VirtAddr,
    count: usize,
    strings: &mut Strings<M>,
) -> Result<(), Errno> {
    for index in (0..count).rev() {
        call.pause_at(index)?;
        let from = read_pointer(array, index)?;
        let length = string_length(from, stack::STRING)?.ok_or(Errno::E2BIG)?;
        strings.add_with(length + 1, |offset, to| {
            give_up_if_killed(call)?;
            Ok(uaccess::copy_from_user(to, VirtAddr(from.0.wrapping_add(offset as u64)))?)
        })?;
    }
    Ok(())
}

/// Ends a long call when a signal is pending that ends the process.
fn give_up_if_killed(call: &Syscall<'_>) -> Result<(), Errno> {
    if call.is_killed() { Err(Errno::EINTR) } else { Ok(()) }
}

/// The length of a string without its final zero; `None` if it is longer than `most` with it.
///
/// Memory after the zero need not be readable: as on Linux, a page or a granule of tags that may not be read is EFAULT
/// only where the string reaches it.
///
/// # Errors
/// `EFAULT`.
pub(super) fn string_length(from: VirtAddr, most: usize) -> Result<Option<usize>, Errno> {
    /// Bytes read at once. No piece crosses the end of a page, after which often nothing is mapped: that would cost a
    /// fault.
    const PIECE: usize = 256;
    let mut buffer = [0; PIECE];
    let mut done = 0;
    while done < most {
        // The longest string of a program has 128 KiB.
        sched::relax();
        let at = VirtAddr(from.0.wrapping_add(done as u64));
        let bytes = (PIECE - at.0 as usize % PIECE).min(most - done);
        let piece = buffer.get_mut(..bytes).unwrap_or_default();
        let copied = uaccess::copy_from_user_up_to(piece, at);
        if let Some(zero) = piece.iter().take(copied).position(|&byte| byte == 0) {
            return Ok(Some(done + zero));
        }
        if copied < bytes {
            return Err(Errno::EFAULT);
        }
        done += bytes;
    }
    Ok(None)
}

pub(super) fn prctl(call: &mut Syscall<'_>) -> Answer {
    let at = call.address::<1>();
    match u64::from(call.argument::<0>() as u32) {
        PR_SET_NAME => {
            // A longer name is cut off.
            let length = string_length(at, NAME_LENGTH - 1)?.unwrap_or(NAME_LENGTH - 1);
            let mut name = [0; NAME_LENGTH];
            uaccess::copy_from_user(name.get_mut(..length).unwrap_or_default(), at)?;
            let name = Name::whole(&name);
            call.task.name.set(name);
            if call.task.is_main() {
                // The process has the name of its first thread.
                call.task.process().lock().name = name;
            }
            Ok(0)
        }
        PR_SET_TAGGED_ADDR_CTRL => {
            no_arguments_from(call, 2)?;
            set_tag_control(call.thread, call.argument::<1>())
        }
        PR_GET_TAGGED_ADDR_CTRL => {
            no_arguments_from(call, 1)?;
            Ok(tag_control(call.thread))
        }
        PR_SET_MDWE => set_mdwe(call),
        PR_GET_MDWE => {
            let set = call.task.space().settings();
            no_arguments_from(call, 1).map(|()| mdwe_of(set))
        }
        PR_SET_THP_DISABLE => set_blocks(call),
        PR_GET_THP_DISABLE => {
            let set = call.task.space().settings();
            let others = if set.has(Settings::NO_OTHER_BLOCKS) { 1 | PR_THP_DISABLE_EXCEPT_ADVISED } else { 0 };
            no_arguments_from(call, 1).map(|()| if set.has(Settings::NO_BLOCKS) { 1 } else { others })
        }
        PR_GET_NAME => {
            let name = call.task.name.get();
            uaccess::copy_to_user(at, name.bytes())?;
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}

/// Fails where `prctl` has an argument, of the five, from this one on.
fn no_arguments_from(call: &Syscall<'_>, first: usize) -> Result<(), Errno> {
    if call.frame.x.iter().take(5).skip(first).all(|argument| *argument == 0) { Ok(()) } else { Err(Errno::EINVAL) }
}

/// `PR_GET_MDWE`.
const fn mdwe_of(set: Settings) -> u64 {
    let gain = if set.has(Settings::DENIES_GAIN) { PR_MDWE_REFUSE_EXEC_GAIN } else { 0 };
    gain | if set.has(Settings::DENIES_ONCE) { PR_MDWE_NO_INHERIT } else { 0 }
}

/// `PR_SET_MDWE`: nothing takes it back.
fn set_mdwe(call: &Syscall<'_>) -> Answer {
    const BOTH: u64 = PR_MDWE_REFUSE_EXEC_GAIN | PR_MDWE_NO_INHERIT;
    no_arguments_from(call, 2)?;
    let asked = match call.argument::<1>() {
        0 => Settings::NONE,
        PR_MDWE_REFUSE_EXEC_GAIN => Settings::DENIES_GAIN,
        BOTH => Settings::DENIES_ALL,
        _ => return Err(Errno::EINVAL),
    };
    let change = |set: Settings| match mdwe_of(set) {
        before if before == 0 || before == call.argument::<1>() => Ok(set.with(asked)),
        _ => Err(Errno::EPERM),
    };
    call.task.space().set(change).map(|()| 0)
}

/// `PR_SET_THP_DISABLE`. There are no blocks here but those that are asked for.
fn set_blocks(call: &Syscall<'_>) -> Answer {
    no_arguments_from(call, 3)?;
    let both = Settings::NO_BLOCKS.with(Settings::NO_OTHER_BLOCKS);
    let asked = match (call.argument::<1>() != 0, call.argument::<2>()) {
        (false, 0) => Settings::NONE,
        (true, 0) => Settings::NO_BLOCKS,
        (true, PR_THP_DISABLE_EXCEPT_ADVISED) => Settings::NO_OTHER_BLOCKS,
        _ => return Err(Errno::EINVAL),
    };
    call.task.space().set(|set| Ok::<_, Errno>(set.without(both).with(asked))).map(|()| 0)
}

/// `PR_SET_TAGGED_ADDR_CTRL`: the bits for checks exist where memory has tags.
fn set_tag_control(thread: &Thread, control: u64) -> Answer {
    let mte = kernel().features().cpus.mte();
    let of_checks = if kernel().features().has_tags() { PR_MTE_TCF_MASK | PR_MTE_TAG_MASK } else { 0 };
    if control & !(PR_TAGGED_ADDR_ENABLE | of_checks) != 0 {
        return Err(Errno::EINVAL);
    }
    let faults = match control & PR_MTE_TCF_MASK {
        0 => TagFaults::Ignored,
        PR_MTE_TCF_SYNC => TagFaults::AtOnce,
        PR_MTE_TCF_ASYNC => TagFaults::Late,
        _ => TagFaults::AtOnceOrLate,
    };
    let included = (control >> PR_MTE_TAG_SHIFT) as u16;
    thread.set_tag_checks(TagChecks::new(faults, included, mte));
    thread.set_tagged_addresses(control & PR_TAGGED_ADDR_ENABLE != 0);
    Ok(0)
}

/// `PR_GET_TAGGED_ADDR_CTRL`: the same bits.
fn tag_control(thread: &Thread) -> u64 {
    let checks = thread.tag_checks();
    let faults = match checks.faults() {
        TagFaults::Ignored => 0,
        TagFaults::AtOnce => PR_MTE_TCF_SYNC,
        TagFaults::Late => PR_MTE_TCF_ASYNC,
        TagFaults::AtOnceOrLate => PR_MTE_TCF_MASK,
    };
    let addresses = if thread.has_tagged_addresses() { PR_TAGGED_ADDR_ENABLE } else { 0 };
    addresses | faults | u64::from(checks.included()) << PR_MTE_TAG_SHIFT
}
