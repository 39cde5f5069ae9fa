//! From a file to a program that runs: a fresh space with its segments, its stack, and its first
//! registers.
//!
//! [`Layout`] has the addresses. All of it is anonymous memory: a segment's contents are copied, and from then on belong
//! to the program. The program before is not changed until nothing can fail any more.

#![allow(unsafe_code, reason = "tasks of threads, and the spaces that they run in")]

use core::ops::{Deref, Range};

use aarch64_cpu::registers::{TPIDR_EL0, Writeable as _};
use granule_abi::process::{
    AT_BASE, AT_CLKTCK, AT_EGID, AT_ENTRY, AT_EUID, AT_FLAGS, AT_GID, AT_HWCAP, AT_HWCAP2, AT_MINSIGSTKSZ, AT_PAGESZ,
    AT_PHDR, AT_PHENT, AT_PHNUM, AT_RSEQ_ALIGN, AT_RSEQ_FEATURE_SIZE, AT_SECURE, AT_UID, HWCAP_ASIMD, HWCAP_ATOMICS,
    HWCAP_FP, HWCAP2_BTI, HWCAP2_MTE, HWCAP2_MTE3, READ_IMPLIES_EXEC,
};
use granule_abi::{number, signal};
use granule_arch::addr::{PAGE, PAGE_SIZE, VirtAddr};
use granule_arch::descriptor::Protection;
use granule_arch::features::Mte;
use granule_arch::patched_branch;

use super::exit;
use super::state::Handlers;
use super::task::Task;
use super::timer;
use super::tree::{self, PROCESSES};
use crate::kernel;
use crate::linux::errno::Errno;
use crate::linux::file::contents::FileContents;
use crate::linux::file::files::{self, FilePlace};
use crate::linux::file::open::FileRef;
use crate::linux::file::table::ExecFiles;
use crate::linux::file::tree::NodeKind;
use crate::linux::file::walk::{Follow, Found, Place};
use crate::linux::process::elf::{ElfSegment, FILE_HEADER, Position, Program, ProgramFile};
use crate::linux::process::layout::{Layout, PROGRAM_LIMIT, STACK_SIZE};
use crate::linux::process::registration::Registration;
use crate::linux::process::script::{self, Interpreter};
use crate::linux::process::signal::Actions;
use crate::linux::process::stack::{self, StackMemory, StringCounts, Strings};
use crate::linux::process::status::{ExecError, Name, PathError};
use crate::mm::counted::Counted;
use crate::mm::paged::PagedBytes;
use crate::mm::space::{
    FaultError, Made, MapRequest, Object, Placement, Populate, ProgramHeap, Sharing, Sought, SpaceError, SpaceLimits,
    SpaceRef, SpaceUser, Terms,
};
use crate::platform::features::branch;
use crate::random;
use crate::sched::{self, TagChecks, Thread, enlarge_shortage, is_killed, relax};
use crate::smp::{Cpu, this_cpu};
use crate::trap::TrapFrame;

/// Bytes of the first stack below the program's SP; it grows (Linux's `setup_arg_pages`).
const STACK_BEGIN: u64 = 128 << 10;
// The longest argument list leaves room.
const _: () = assert!(stack::argument_space(u64::MAX) < STACK_SIZE);

/// Mode bits that allow execution: by owner, group or others. One is enough, since every program is root's.
const EXECUTABLE: u32 = 0o111;

/// `mov x8, #rt_sigreturn`, `svc #0`.
const TRAMPOLINE_CODE: [u32; 2] = [0xd280_0008 | (number::RT_SIGRETURN as u32) << 5, 0xd400_0001];

/// A program, ready to run.
pub struct Loaded {
    /// Its space.
    pub space: SpaceRef,
    /// PC and SP at its first instruction.
    pub entry: u64,
    /// See `entry`.
    pub stack: u64,
    /// The actions of its signals: the defaults.
    pub handlers: Counted<Handlers>,
    /// Its name.
    pub name: Name,
    /// Whether a segment may be written and executed.
    pub writes_code: bool,
}

impl Loaded {
    /// The registers at its first instruction.
    pub fn frame(&self) -> TrapFrame {
        let mut frame = TrapFrame::default();
        (frame.elr, frame.sp) = (self.entry, self.stack);
        frame
    }
}

/// A file that is executed, and the directory that its path began in. It is the file's first bytes, for its line of a
/// script.
pub struct Executable {
    image: Image,
    base: Option<FilePlace>,
}

enum Image {
    Initrd(&'static [u8]),
    Written(Counted<Object>, Line),
}

/// The first bytes of a file whose pages may change.
struct Line(PagedBytes);

impl Drop for Line {
    fn drop(&mut self) {
        // Where the call failed for want of memory, it was for this frame too.
        enlarge_shortage(this_cpu(), 1);
    }
}

impl Deref for Executable {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.image {
            Image::Initrd(bytes) => bytes,
            Image::Written(_, line) => &line.0,
        }
    }
}

impl ProgramFile for Executable {
    fn size(&self) -> u64 {
        match &self.image {
            Image::Initrd(bytes) => bytes.size(),
            Image::Written(object, _) => object.size(),
        }
    }

    fn read(&self, offset: u64, to: &mut [u8]) -> Option<()> {
        match &self.image {
            Image::Initrd(bytes) => ProgramFile::read(*bytes, offset, to),
            Image::Written(object, _) => (object.read(offset, to) == to.len()).then_some(()),
        }
    }
}

/// The file at a path from `base` on, or the root, for [`load`].
///
/// # Errors
/// Those of the path. `ENOMEM`.
#[inline(never)]
pub fn open(base: Option<FilePlace>, path: &[u8]) -> Result<Executable, ExecError> {
    let found = files::walk(base.clone(), path, Follow::Always, tree::is_process).and_then(Found::existing);
    let place = found.map_err(|error| match error {
        Errno::ENOENT => PathError::NotFound.into(),
        error => ExecError::Errno(error),
    })?;
    let Place::Node(node) = place else { return Err(PathError::NotExecutable.into()) };
    let (attributes, _) = node.attributes();
    match &node.kind {
        NodeKind::File(contents) if attributes.mode & EXECUTABLE != 0 => {
            Ok(Executable { image: image(contents)?, base })
        }
        _ => Err(PathError::NotExecutable.into()),
    }
}

fn image(contents: &FileContents) -> Result<Image, ExecError> {
    // A file that was written stays so.
    let object = match (contents.bytes(), contents.written()) {
        (Some(bytes), _) => return Ok(Image::Initrd(bytes)),
        (None, object) => object.ok_or(Errno::ENOMEM)?,
    };
    let bytes = object.size().min(script::LOOKED_AT as u64) as usize;
    let mut line = PagedBytes::zeros(kernel().frames, bytes).map_err(Errno::from)?;
    object.read(0, &mut line);
    Ok(Image::Written(object.clone(), Line(line)))
}

/// The memory of a space that does not run yet.
#[derive(Debug)]
pub struct InSpace<'a>(&'a SpaceRef);

impl StackMemory for InSpace<'_> {
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        write(this_cpu(), self.0, address, bytes)
    }

    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        self.0.read_bytes(this_cpu(), VirtAddr(address), bytes).map_err(errno)
    }
}

/// The random numbers of a program, drawn before [`load`] has a frame: a device may have to be started for them.
#[derive(Clone, Copy, Debug)]
pub struct Drawn {
    /// The program's own bytes (AT_RANDOM).
    bytes: [u8; 16],
    layout: Layout,
}

impl Drawn {
    /// For the program of a thread that has this personality.
    #[inline(never)]
    pub fn new(cpu: &Cpu, personality: u32) -> Self {
        let (mut stream, mut bytes, mut numbers) = (random::stream(cpu), [0; 16], [[0; 4]; 5]);
        stream.fill(&mut bytes);
        stream.fill(numbers.as_flattened_mut());
        Self { bytes, layout: Layout::of(personality, numbers.map(u32::from_le_bytes)) }
    }
}

/// Loads the program of a file, or the one that runs it if it is a script, into a new space. `path` is its name in the
/// auxiliary vector, `drawn` are its random numbers; `add` adds the strings of the environment and of the arguments to
/// the new stack, as many as `counts` has and `limits`, the program's, allow.
///
/// Errors of the strings come before errors of the file, as on Linux.
///
/// # Errors
/// [`ExecError`]; nothing stays allocated.
#[inline(never)]
pub fn load(
    cpu: &Cpu,
    file: Executable,
    path: &[u8],
    limits: &SpaceLimits,
    counts: StringCounts,
    Drawn { bytes, layout }: Drawn,
    add: impl FnOnce(&mut Strings<InSpace<'_>>) -> Result<(), Errno>,
) -> Result<Loaded, ExecError> {
    let (scripts, file) = {
        let base = file.base.clone();
        script::resolve(file, |path| open(base.clone(), path))
    };
    let program = match &file {
        Ok(file) => Program::parse(file, PROGRAM_LIMIT).map_err(ExecError::from),
        Err(error) => Err(*error),
    };
    let space = kernel().spaces.create(cpu).map_err(Errno::from)?;
    let executable = match &program {
        Ok(program) if program.executable_stack => Protection::EXECUTE,
        _ => Protection::NONE,
    };
    let protection = Protection::READ.and(Protection::WRITE).and(executable);
    map_stack(cpu, &space, layout, protection, limits).map_err(Errno::from)?;
    let mut strings = Strings::new(InSpace(&space), layout.stack_top(), limits.stack, counts)?;
    strings.add(path)?;
    add(&mut strings)?;
    let mut called = path;
    for Interpreter { path, argument } in scripts.iter().filter_map(|script| Interpreter::of(script)) {
        strings.interpret(called, argument, path)?;
        called = path;
    }

    // Neither is moved: its copy would be below that of each string.
    let program = program.as_ref().map_err(|error| *error)?;
    let file = file.as_ref().map_err(|error| *error)?;
    let base = program.base(layout.program(), PROGRAM_LIMIT)?;
    let linker = program.linker(file)?;
    let is_guarded = linker.is_none() && program.accepts_guards(file)?;
    map_program(cpu, &space, (file, program), base, is_guarded)?;
    map_trampoline(cpu, &space, layout.trampoline())?;
    let linker = linker.map(|path| map_linker(cpu, &space, file.base.clone(), &path)).transpose()?;
    let stack =
        finish_stack(&mut strings, path, program, [base, linker.map_or(0, |linker| linker.base)], bytes, layout)?;
    trim_stack(cpu, &space, layout.stack_top(), stack, limits).map_err(Errno::from)?;
    if !space.is_within(limits) {
        return Err(Errno::ENOMEM.into());
    }
    let heap = layout.heap(program.end().wrapping_add(base));
    *space.heap().write() = ProgramHeap { start: heap, end: heap };
    Ok(Loaded {
        entry: linker.map_or(program.entry.wrapping_add(base), |linker| linker.entry),
        stack,
        handlers: first_handlers()?,
        name: Name::of(path),
        writes_code: program.writes_code() || linker.is_some_and(|linker| linker.writes_code),
        space,
    })
}

/// The actions of a new program's signals: 2 KiB, which the copies of strings have not below them.
#[inline(never)]
fn first_handlers() -> Result<Counted<Handlers>, Errno> {
    Ok(Handlers::new(Actions::new())?)
}

/// A dynamic linker, mapped.
#[derive(Clone, Copy)]
struct Linker {
    base: u64,
    entry: u64,
    writes_code: bool,
}

/// Maps the dynamic linker at a path from `base` on, or the root: among the mappings, as on Linux.
#[inline(never)]
fn map_linker(cpu: &Cpu, space: &SpaceRef, base: Option<FilePlace>, path: &[u8]) -> Result<Linker, ExecError> {
    // As on Linux, for no path and for a file that is shorter than a header.
    if path.is_empty() {
        return Err(ExecError::LinkerPath(PathError::NotExecutable));
    }
    let file = open(base, path).map_err(|error| match error {
        ExecError::Path(error) => ExecError::LinkerPath(error),
        error => error,
    })?;
    if file.size() < FILE_HEADER {
        return Err(Errno::EIO.into());
    }
    let program = Program::parse(&file, PROGRAM_LIMIT).map_err(ExecError::Linker)?;
    let bytes = program.end() - program.start();
    let base = match program.position {
        Position::Fixed => 0,
        Position::Anywhere => {
            // There is no other thread: the room that it finds stays free.
            let room = map(cpu, space, Placement::Hint(VirtAddr(0)), bytes, Protection::NONE).map_err(Errno::from)?;
            space.munmap(cpu, room, bytes).map_err(Errno::from)?;
            room.0.wrapping_sub(program.start())
        }
    };
    let is_guarded = program.accepts_guards(&file).map_err(ExecError::Linker)?;
    map_program(cpu, space, (&file, &program), base, is_guarded)?;
    Ok(Linker { base, entry: program.entry.wrapping_add(base), writes_code: program.writes_code() })
}

/// Maps the program at `base`. Out of line, as all that [`load`] calls: its frame is below that of each string's copy.
#[inline(never)]
fn map_program(
    cpu: &Cpu,
    space: &SpaceRef,
    (file, program): (&Executable, &Program),
    base: u64,
    is_guarded: bool,
) -> Result<(), Errno> {
    let is_guarded = is_guarded && patched_branch!(branch::BTI);
    let code = if is_guarded { Protection::EXECUTE.and(Protection::GUARDED) } else { Protection::EXECUTE };
    program.segments().try_for_each(|segment| map_segment(cpu, space, (file, &segment), base, code))
}

/// Writes the vectors; returns SP.
#[inline(never)]
fn finish_stack(
    strings: &mut Strings<InSpace<'_>>,
    path: &[u8],
    program: &Program,
    bases: [u64; 2],
    bytes: [u8; 16],
    layout: Layout,
) -> Result<u64, Errno> {
    strings.finish(path, &auxiliary(program, bases), bytes, layout.below_strings())
}

/// The auxiliary vector, as far as it does not point into the stack, by the bases of the program and of its linker.
fn auxiliary(program: &Program, [base, linker]: [u64; 2]) -> [(u64, u64); 18] {
    [
        (AT_HWCAP, hardware_capabilities()),
        (AT_PAGESZ, PAGE),
        (AT_CLKTCK, 100),
        (AT_PHDR, if program.headers == 0 { 0 } else { program.headers.wrapping_add(base) }),
        (AT_PHENT, 56),
        (AT_PHNUM, u64::from(program.header_count)),
        (AT_BASE, linker),
        (AT_FLAGS, 0),
        (AT_ENTRY, program.entry.wrapping_add(base)),
        (AT_UID, 0),
        (AT_EUID, 0),
        (AT_GID, 0),
        (AT_EGID, 0),
        (AT_SECURE, 0),
        (AT_HWCAP2, more_hardware_capabilities()),
        (AT_RSEQ_FEATURE_SIZE, Registration::KNOWN),
        (AT_RSEQ_ALIGN, Registration::SIZE),
        (AT_MINSIGSTKSZ, signal::MINSIGSTKSZ),
    ]
}

/// Replaces the program of the running thread, the only one of its process. Nothing here fails.
#[inline(never)]
pub fn install(task: &Task, thread: &Thread, loaded: Loaded, files: ExecFiles<FileRef>, frame: &mut TrapFrame) {
    *frame = loaded.frame();
    // A request that failed on the way was repeated. The end of the old space does not add to it.
    thread.take_shortage();
    task.files().exec(files);
    if task.own_files.is_completed() {
        // The others that had the process's are gone.
        task.process().files.clear();
    }
    // First: a vfork parent, which continues from here, may wait for its child by the signal that it gets from now on.
    PROCESSES.lock().become_normal(task.process());
    loaded.space.inherit(task.space(), Made::ByExec);
    exit::leave_memory(task);
    timer::delete_all(task.process(), false);
    keep_actions(task, &loaded.handlers);
    let before = {
        let mut state = task.process().lock();
        state.name = loaded.name;
        // Actions that were shared stay with the other processes.
        (core::mem::replace(&mut state.handlers, loaded.handlers), state.space.replace(loaded.space.clone()))
    };
    drop(before);
    task.name.set(loaded.name);
    task.stack.set(signal::SigStack::NONE);
    task.personality.set(task.personality.get() & !READ_IMPLIES_EXEC);
    Registration::NONE.set(task);
    task.capabilities.exec();
    thread.set_fp_state(None);
    thread.set_tagged_addresses(false);
    thread.set_tag_checks(TagChecks::NONE);
    TPIDR_EL0.set(0);
    let left = sched::set_space(Some(loaded.space.clone().into()));
    // SAFETY: this is the task's own thread, and the old space is not used here.
    let own = unsafe { task.replace_space(Some(SpaceUser::new(loaded.space))) };
    drop((left, own));
}

/// Has a new program's handlers take the actions that an exec keeps. Out of line: [`install`] has no 2 KiB of them.
#[inline(never)]
fn keep_actions(task: &Task, handlers: &Counted<Handlers>) {
    let own = task.process().lock().handlers.clone();
    let mut actions = own.with(|actions| actions.clone());
    actions.exec();
    handlers.with(|new| *new = actions);
}

/// Maps a segment of a program at `base`, with the protection `code` where it may be executed.
fn map_segment(
    cpu: &Cpu,
    space: &SpaceRef,
    (file, segment): (&Executable, &ElfSegment),
    base: u64,
    code: Protection,
) -> Result<(), Errno> {
    let (start, bytes) = (segment.start().wrapping_add(base), segment.end() - segment.start());
    let mut protection = Protection::NONE;
    for (has, what) in [
        (segment.access.read, Protection::READ),
        (segment.access.write, Protection::WRITE),
        (segment.access.execute, code),
    ] {
        protection = if has { protection.and(what) } else { protection };
    }
    let writable = Protection::READ.and(Protection::WRITE);
    map(cpu, space, Placement::FixedNoReplace(VirtAddr(start)), bytes, writable)?;
    let address = segment.address.wrapping_add(base);
    match &file.image {
        Image::Initrd(file) => {
            let contents = file.get(segment.offset as usize..).and_then(|rest| rest.get(..segment.in_file as usize));
            write(cpu, space, address, contents.unwrap_or_default())?;
        }
        Image::Written(object, _) => {
            copy(cpu, space, address, object, segment.offset..segment.offset + segment.in_file)?
        }
    }
    if protection.bits() == writable.bits() {
        return Ok(());
    }
    Ok(space.mprotect(VirtAddr(start), bytes, protection)?)
}

/// Copies the pages of an object that are there; the others stay zeros.
#[inline(never)]
fn copy(cpu: &Cpu, space: &SpaceRef, to: u64, object: &Object, from: Range<u64>) -> Result<(), Errno> {
    let mut buffer = PagedBytes::zeros(kernel().frames, PAGE_SIZE)?;
    let (mut at, mut done) = (from.start, 0);
    while let Some(next) = object.seek(at, Sought::Data).map(|next| next.max(at)).filter(|next| *next < from.end) {
        let bytes = (PAGE - next % PAGE).min(from.end - next) as usize;
        let piece = buffer.get_mut(..bytes).unwrap_or_default();
        let read = object.read(next, piece);
        // The space ends where the call fails, and with it the pages before.
        let written = write(cpu, space, to.wrapping_add(next - from.start), piece.get(..read).unwrap_or_default());
        written.inspect_err(|_| enlarge_shortage(cpu, done + 1))?;
        (at, done) = (next + bytes as u64, done + 1);
        if is_killed() {
            return Err(Errno::EINTR);
        }
        relax();
    }
    Ok(())
}

fn map_trampoline(cpu: &Cpu, space: &SpaceRef, at: VirtAddr) -> Result<(), Errno> {
    let writable = Protection::READ.and(Protection::WRITE);
    map(cpu, space, Placement::FixedNoReplace(at), PAGE, writable)?;
    write(cpu, space, at.0, TRAMPOLINE_CODE.map(u32::to_le_bytes).as_flattened())?;
    space.set_trampoline(at);
    Ok(space.mprotect(at, PAGE, Protection::READ.and(Protection::EXECUTE))?)
}

/// Maps the stack, large enough for the strings and vectors.
#[inline(never)]
fn map_stack(
    cpu: &Cpu,
    space: &SpaceRef,
    layout: Layout,
    protection: Protection,
    limits: &SpaceLimits,
) -> Result<(), SpaceError> {
    let start = VirtAddr(layout.stack_top() - STACK_SIZE);
    let request = MapRequest {
        placement: Placement::Stack(start),
        bytes: STACK_SIZE,
        protection,
        sharing: Sharing::Private,
        populate: Populate::OnDemand,
    };
    // The part below that is unmapped again is free for it to grow.
    let limits = SpaceLimits { stack: limits.stack.saturating_add(STACK_SIZE), ..SpaceLimits::NONE };
    space.mmap_within(cpu, &request, &Terms { limits, ..Terms::NONE }, &|| false)?;
    space.widen_guard(start, layout.below_stack());
    Ok(())
}

/// Unmaps the stack below `pointer` and its first size, or beyond its limit.
#[inline(never)]
fn trim_stack(cpu: &Cpu, space: &SpaceRef, top: u64, pointer: u64, limits: &SpaceLimits) -> Result<(), SpaceError> {
    let lowest = top.saturating_sub(limits.stack) & !(PAGE - 1);
    let start = (pointer.saturating_sub(STACK_BEGIN) & !(PAGE - 1)).max(lowest).min(pointer & !(PAGE - 1));
    match start.checked_sub(top - STACK_SIZE) {
        Some(below) if below > 0 => space.munmap(cpu, VirtAddr(top - STACK_SIZE), below),
        _ => Ok(()),
    }
}

fn map(
    cpu: &Cpu,
    space: &SpaceRef,
    placement: Placement,
    bytes: u64,
    protection: Protection,
) -> Result<VirtAddr, SpaceError> {
    let request = MapRequest { placement, bytes, protection, sharing: Sharing::Private, populate: Populate::OnDemand };
    space.mmap(cpu, &request)
}

fn write(cpu: &Cpu, space: &SpaceRef, address: u64, bytes: &[u8]) -> Result<(), Errno> {
    space.write_bytes(cpu, VirtAddr(address), bytes).map_err(errno)
}

const fn errno(error: FaultError) -> Errno {
    match error {
        FaultError::OutOfMemory => Errno::ENOMEM,
        FaultError::NotMapped
        | FaultError::Guard
        | FaultError::NotAllowed
        | FaultError::Unusable
        | FaultError::Poisoned
        | FaultError::Userfault => Errno::EFAULT,
    }
}

/// The features of all CPUs that programs may use. SVE and SME are trapped, so they are excluded.
fn hardware_capabilities() -> u64 {
    let atomics = if kernel().features().cpus.lse() { HWCAP_ATOMICS } else { 0 };
    HWCAP_FP | HWCAP_ASIMD | atomics
}

/// The second word of them.
fn more_hardware_capabilities() -> u64 {
    let cpus = kernel().features().cpus;
    let tags = match cpus.mte() {
        Mte::None | Mte::Instructions => 0,
        Mte::Tags => HWCAP2_MTE,
        Mte::Asymmetric => HWCAP2_MTE | HWCAP2_MTE3,
    };
    tags | if cpus.bti() { HWCAP2_BTI } else { 0 }
}
