//! The calls and accesses: each concerns one page or all, and answers in words.

use std::format;

use super::*;
use crate::mm::kernel::record::note_step;
use crate::mm::space::mlock::Passed;
use crate::mm::space::pagemap::{GUARD, UFFD_WP};
use crate::mm::space::scan::{Scan, ScanRequest, WRITTEN};
use crate::mm::space::{
    Aged, AreaAdvice, Content, Discard, Holes, Move, Patience, Remap, Resident, SizeChoice, Sought, SpaceError,
    SpaceLimits, SpaceUser, Transfer, Unneeded, Used,
};
use crate::uaccess;

/// The answer of a call, in words.
pub(super) type Answer = String;

/// The answer of each call about a space that has ended.
pub(super) const ENDED: &str = "ended";

/// A call of `cpu` about the page at an address, of a space that has not ended.
type Run = fn(&World, &Space, &Cpu, VirtAddr) -> Answer;

#[derive(Clone, Copy)]
pub(super) struct Call {
    pub(super) name: &'static str,
    run: What,
    /// How it is made in its steps, and how often it is between two of them.
    steps: Option<(usize, Run)>,
}

#[derive(Clone, Copy)]
enum What {
    /// By a thread of the space, or another that has a reference.
    InSpace(Run),
    /// By what needs none.
    Outside(fn(&World, &Cpu)),
}

const fn call(name: &'static str, run: Run) -> Call {
    Call { name, run: What::InSpace(run), steps: None }
}

const fn outside(name: &'static str, run: fn(&World, &Cpu)) -> Call {
    Call { name, run: What::Outside(run), steps: None }
}

impl Call {
    /// The call is several steps, as Linux's, which releases the lock of its mappings between them: `run` makes the
    /// same call with a [pause](note_step) between each two. A call of another thread may come before a step, or after
    /// it.
    const fn in_steps(self, pauses: usize, run: Run) -> Self {
        Self { steps: Some((pauses, run)), ..self }
    }

    /// How often it is between two steps, at most.
    pub(super) fn pauses(&self) -> usize {
        self.steps.map_or(0, |(pauses, _)| pauses)
    }

    /// Makes the call, about the page of this number of those that are looked at; if it is wanted, in its steps.
    pub(super) fn make(&self, world: &World, cpu: &Cpu, page: usize, in_steps: bool) -> Answer {
        let answer = match self.run {
            What::InSpace(run) => {
                let run = self.steps.filter(|_| in_steps).map_or(run, |(_, run)| run);
                let space = world.handle.upgrade().or_else(|| world.left.lock().unwrap().clone());
                space.map(|space| run(world, &space, cpu, world.at(page)))
            }
            What::Outside(run) => {
                run(world, cpu);
                Some("done".into())
            }
        };
        answer.unwrap_or_else(|| ENDED.into())
    }
}

pub(super) fn said(answer: impl core::fmt::Debug) -> Answer {
    format!("{answer:?}")
}

fn protect(space: &Space, start: VirtAddr, bytes: u64, protection: Protection) -> Answer {
    said(space.mprotect(start, bytes, protection))
}

fn map_over(space: &Space, cpu: &Cpu, start: VirtAddr, bytes: u64, sharing: Sharing) -> Answer {
    let request = MapRequest { placement: Placement::Fixed(start), bytes, sharing, ..private(1) };
    said(space.mmap(cpu, &request).map(drop))
}

fn remap(space: &Space, cpu: &Cpu, [start, bytes, new_bytes]: [u64; 3], to: Move, keeps_source: bool) -> Answer {
    let request = Remap::new(VirtAddr(start), bytes, new_bytes, to, keeps_source);
    said(request.and_then(|mut request| space.mremap(cpu, &mut request, &SpaceLimits::NONE)).map(drop))
}

fn advise(world: &World, space: &Space, cpu: &Cpu, advice: AreaAdvice) -> Answer {
    said(space.madvise_areas(cpu, START, world.bytes(), advice))
}

fn pager(world: &World, call: impl FnOnce(&Counted<Userfaultfd>) -> Answer) -> Answer {
    let file = world.pager.lock().unwrap().clone();
    file.map_or_else(|| "no pager".into(), |file| call(&file.0))
}

/// A page of bytes that the pager has.
fn copy(world: &World, space: &Space, cpu: &Cpu, at: VirtAddr, is_protected: bool) -> Answer {
    pager(world, |pager| {
        let content = Content::Copy(VirtAddr(0), is_protected);
        said(uaccess::with_contents(0x99, || pager.fill(cpu, Some(space), at, PAGE, content)))
    })
}

/// Moves a page.
fn transfer(world: &World, space: &Space, cpu: &Cpu, [to, from]: [VirtAddr; 2], holes: Holes) -> Answer {
    pager(world, |pager| said(pager.transfer(cpu, space, &Transfer { to, from, bytes: PAGE, holes })))
}

/// The part of smaps about a page. How often it is mapped is not compared, nor its age: see [`shown`].
fn smaps(space: &Space, at: VirtAddr) -> Answer {
    let (mut sum, mut properties) = (Resident::default(), None);
    space.add_resident(
        at,
        &mut sum,
        || false,
        |area| {
            let start = area.start().max(at);
            let has = area.shown().properties.into_iter().filter(|&(_, has)| has).map(|(name, _)| name);
            properties = (start == at).then(|| has.collect::<Vec<_>>());
            pages(start, start + PAGE)
        },
    );
    said(properties.map(|properties| (properties, sum.bytes, sum.has_guards)))
}

/// Protects what was written. Whether a page was is not compared: a store ends the protection before it is made.
fn scan(space: &Space, cpu: &Cpu, start: VirtAddr, bytes: u64) -> Answer {
    let request = ScanRequest {
        inverted: 0,
        required: WRITTEN,
        any: 0,
        returned: 0,
        protects: true,
        is_strict: false,
        has_regions: true,
    };
    let mut scan = Scan::new(request, start, start + bytes, u64::MAX, u64::MAX);
    let mut answer = Ok(());
    while answer.is_ok() && !scan.is_done() {
        answer = space.scan(cpu, &mut scan);
        scan.stored();
    }
    said(answer)
}

fn file(world: &World, call: impl FnOnce(&Object) -> Answer) -> Answer {
    let file = world.file.as_ref().filter(|_| world.kind.of == Of::File);
    file.map_or_else(|| "no file".into(), |file| call(file))
}

fn write_to_file(world: &World, cpu: &Cpu, at: VirtAddr) -> Answer {
    file(world, |file| said(file.write(cpu, WriteAt::Byte(at - START + 8), &[own(cpu)], 1, u64::MAX)))
}

/// The byte that a CPU stores.
fn own(cpu: &Cpu) -> u8 {
    0xa0 + cpu.id.0 as u8
}

/// Serves a fault, which may end a page's protection, and then makes the store, which may be refused by then.
fn behind_a_fault(space: &Space, cpu: &Cpu, page: VirtAddr, store: impl FnOnce() -> Answer) -> Answer {
    _ = handle_fault(space, cpu, page, Access::Write);
    note_step();
    store()
}

/// As [`behind_a_fault`], for the device of this number, if there is one.
fn device_behind_a_fault(world: &World, space: &Space, cpu: &Cpu, page: VirtAddr, index: usize) -> Answer {
    let write = || world.device(index, space, cpu, page, Access::Write);
    if world.devices.get(index).is_some() { behind_a_fault(space, cpu, page, write) } else { write() }
}

/// Marks the pages as locked, and then brings them.
fn lock_in_steps(space: &Space, cpu: &Cpu, start: VirtAddr, bytes: u64) -> Answer {
    // It ends before the first page is brought.
    match space.mlock(cpu, start, bytes, Locking::Now, KILLED) {
        Err(SpaceError::Interrupted) => {}
        refused => return said(refused),
    }
    note_step();
    said(space.bring(cpu, pages(start, start + bytes), Passed::Registers, ALIVE))
}

const ALIVE: &dyn Fn() -> bool = &|| false;
const KILLED: &dyn Fn() -> bool = &|| true;
const NO_WRITES: Protection = Protection::READ;

pub(super) const CALLS: &[Call] = &[
    call("load", |w, space, cpu, at| said(w.access(space, cpu, at, Access::Read, None))),
    call("store", |w, space, cpu, at| said(w.access(space, cpu, at, Access::Write, Some(own(cpu))))).in_steps(
        1,
        |w, space, cpu, at| {
            behind_a_fault(space, cpu, at, || said(w.access(space, cpu, at, Access::Write, Some(own(cpu)))))
        },
    ),
    call("fetch", |w, space, cpu, at| said(w.access(space, cpu, at, Access::Execute, None))),
    call("fault for a load", |w, space, cpu, at| said(w.fault(space, cpu, at, Access::Read))),
    call("kernel copies out", |_, space, cpu, at| {
        let mut bytes = [0; 9];
        said(space.read_bytes(cpu, at, &mut bytes).map(|()| bytes[8]))
    }),
    call("kernel copies out, without a pager", |_, space, cpu, at| {
        let mut bytes = [0; 9];
        said(space.read_bytes_within(cpu, at, &mut bytes, Patience::WithoutPager(ALIVE)).map(|()| bytes[8]))
    }),
    call("kernel copies in", |_, space, cpu, at| said(space.write_bytes(cpu, at + 8, &[own(cpu)])))
        .in_steps(1, |_, space, cpu, at| {
            behind_a_fault(space, cpu, at, || said(space.write_bytes(cpu, at + 8, &[own(cpu)])))
        }),
    call("kernel exchanges a word", |_, space, cpu, at| said(space.exchange_word(cpu, at + 8, 1, 0x55)))
        .in_steps(1, |_, space, cpu, at| {
            behind_a_fault(space, cpu, at, || said(space.exchange_word(cpu, at + 8, 1, 0x55)))
        }),
    call("device reads", |w, space, cpu, at| w.device(0, space, cpu, at, Access::Read)),
    call("device writes", |w, space, cpu, at| w.device(0, space, cpu, at, Access::Write))
        .in_steps(1, |w, space, cpu, at| device_behind_a_fault(w, space, cpu, at, 0)),
    call("mirror reads", |w, space, cpu, at| w.device(1, space, cpu, at, Access::Read)),
    call("mirror writes", |w, space, cpu, at| w.device(1, space, cpu, at, Access::Write))
        .in_steps(1, |w, space, cpu, at| device_behind_a_fault(w, space, cpu, at, 1)),
    call("mmap over a page", |_, space, cpu, at| map_over(space, cpu, at, PAGE, Sharing::Private)),
    call("mmap over all, shared", |w, space, cpu, _| map_over(space, cpu, START, w.bytes(), Sharing::Shared)),
    call("mmap, populated", |_, space, cpu, at| {
        let request = MapRequest { placement: Placement::Fixed(at), populate: Populate::Now, ..private(1) };
        said(space.mmap(cpu, &request).map(drop))
    })
    .in_steps(1, |_, space, cpu, at| {
        let answer = map_over(space, cpu, at, PAGE, Sharing::Private);
        note_step();
        space.populate_again(cpu, at, PAGE, ALIVE);
        answer
    }),
    call("munmap of a page", |_, space, cpu, at| said(space.munmap(cpu, at, PAGE))),
    call("munmap of all", |w, space, cpu, _| said(space.munmap(cpu, START, w.bytes()))),
    call("mprotect to read, a page", |_, space, _, at| protect(space, at, PAGE, NO_WRITES)),
    call("mprotect to read, all", |w, space, _, _| protect(space, START, w.bytes(), NO_WRITES)),
    call("mprotect to nothing", |_, space, _, at| protect(space, at, PAGE, Protection::NONE)),
    call("mprotect to nothing, all", |w, space, _, _| protect(space, START, w.bytes(), Protection::NONE)),
    call("mprotect to write", |w, space, _, _| protect(space, START, w.bytes(), READ_WRITE)),
    call("mprotect to execute", |_, space, _, at| protect(space, at, PAGE, READ_EXECUTE)),
    call("mprotect to tagged", |w, space, _, _| protect(space, START, w.bytes(), TAGGED)),
    call("store of a tag", |w, space, cpu, at| w.store_tag(space, cpu, at)),
    call("mremap of a page", |_, space, cpu, at| remap(space, cpu, [at.0, PAGE, PAGE], Move::To(there(at)), false)),
    call("mremap of all", |w, space, cpu, _| {
        remap(space, cpu, [START.0, w.bytes(), w.bytes()], Move::To(there(START)), false)
    }),
    call("mremap, kept", |w, space, cpu, _| {
        remap(space, cpu, [START.0, w.bytes(), w.bytes()], Move::To(there(START)), true)
    }),
    call("mremap, shorter", |w, space, cpu, _| {
        remap(space, cpu, [START.0, w.bytes(), w.bytes() - PAGE], Move::Not, false)
    }),
    call("mremap, longer", |w, space, cpu, _| {
        remap(space, cpu, [START.0, w.bytes(), w.bytes() + 2 * PAGE], Move::Not, false)
    }),
    call("MADV_DONTNEED", |_, space, cpu, at| said(space.madvise_dontneed(cpu, at, PAGE))),
    call("MADV_DONTNEED of all", |w, space, cpu, _| said(space.madvise_dontneed(cpu, START, w.bytes()))),
    call("MADV_DONTNEED_LOCKED", |_, space, cpu, at| said(space.madvise_discard(cpu, at, PAGE, Discard::All))),
    call("MADV_FREE", |w, space, cpu, _| said(space.madvise_discard(cpu, START, w.bytes(), Discard::Anonymous))),
    // The object's pages go without the areas' lock.
    call("MADV_REMOVE", |_, space, cpu, at| said(space.madvise_remove(cpu, at, PAGE))).in_steps(
        1,
        |_, space, cpu, at| {
            let found = space.find_removed(pages(at, at + PAGE));
            note_step();
            let remove = |(removed, _): (Option<_>, _)| space.remove(cpu, &removed.ok_or(SpaceError::NoMemory)?);
            said(found.and_then(remove))
        },
    ),
    call("MADV_GUARD_INSTALL", |_, space, cpu, at| said(space.madvise_guard(cpu, at, PAGE, ALIVE))),
    call("MADV_GUARD_INSTALL of all", |w, space, cpu, _| said(space.madvise_guard(cpu, START, w.bytes(), ALIVE))),
    call("MADV_GUARD_REMOVE", |w, space, _, _| said(space.madvise_unguard(START, w.bytes()))),
    call("MADV_POPULATE_READ", |w, space, cpu, _| {
        said(space.madvise_populate(cpu, START, w.bytes(), Access::Read, ALIVE))
    }),
    call("MADV_POPULATE_WRITE", |w, space, cpu, _| {
        said(space.madvise_populate(cpu, START, w.bytes(), Access::Write, ALIVE))
    }),
    call("MADV_PAGEOUT", |w, space, cpu, _| said(space.madvise_unneeded(cpu, START, w.bytes(), Unneeded::Out))),
    call("MADV_WILLNEED", |w, space, _, _| said(space.madvise_nothing(START, w.bytes()))),
    call("MADV_DONTFORK", |w, space, cpu, _| advise(w, space, cpu, AreaAdvice::DontFork)),
    call("MADV_WIPEONFORK", |w, space, cpu, _| advise(w, space, cpu, AreaAdvice::WipeOnFork)),
    call("MADV_HUGEPAGE", |w, space, cpu, _| advise(w, space, cpu, AreaAdvice::HugePage)),
    call("MADV_NOHUGEPAGE", |w, space, cpu, _| advise(w, space, cpu, AreaAdvice::NoHugePage)),
    call("MADV_COLLAPSE", |w, space, cpu, _| said(space.madvise_collapse(cpu, START, w.bytes(), ALIVE))),
    call("mlock", |_, space, cpu, at| said(space.mlock(cpu, at, PAGE, Locking::Now, ALIVE)))
        .in_steps(1, |_, space, cpu, at| lock_in_steps(space, cpu, at, PAGE)),
    call("mlock of all", |w, space, cpu, _| said(space.mlock(cpu, START, w.bytes(), Locking::Now, ALIVE)))
        .in_steps(1, |w, space, cpu, _| lock_in_steps(space, cpu, START, w.bytes())),
    call("mlock on fault", |w, space, cpu, _| said(space.mlock(cpu, START, w.bytes(), Locking::OnFault, ALIVE))),
    call("munlock", |_, space, cpu, at| said(space.mlock(cpu, at, PAGE, Locking::None, ALIVE))),
    call("mlockall", |_, space, cpu, _| {
        space.mlock_all(cpu, Locking::Now, ALIVE);
        "done".into()
    })
    .in_steps(1, |_, space, cpu, _| {
        space.mlock_all(cpu, Locking::Now, KILLED);
        note_step();
        _ = space.bring(cpu, pages(USER_START, USER_END), Passed::All, ALIVE);
        "done".into()
    }),
    call("mseal", |_, space, cpu, at| said(space.mseal(cpu, at, PAGE))),
    call("mseal of all", |w, space, cpu, _| said(space.mseal(cpu, START, w.bytes()))),
    call("mincore", |_, space, _, at| {
        let mut present = [0xff];
        said(space.mincore(at, &mut present).map(|_| present[0] & 1))
    }),
    call("msync", |w, space, _, _| said(space.msync(START, w.bytes(), true, true))),
    call("pagemap", |_, space, _, at| said(shown(space, at))),
    call("smaps", |_, space, _, at| smaps(space, at)),
    call("clear_refs", |_, space, _, _| {
        space.age(Aged::All, ALIVE);
        "done".into()
    }),
    call("a stack grows", |_, space, _, at| said(space.grow_stack(at, &SpaceLimits::NONE))),
    call("brk, longer", |w, space, cpu, _| {
        let request = MapRequest { placement: Placement::Heap(START + w.bytes()), ..private(1) };
        said(space.mmap(cpu, &request).map(drop))
    }),
    call("brk, shorter", |w, space, cpu, _| said(space.munmap(cpu, START + (w.bytes() - PAGE), PAGE))),
    call("fork", |w, space, cpu, _| said(space.fork(cpu).map(|child| w.family.lock().unwrap().push(child)))),
    call("fork, and the child ends", |_, space, cpu, _| said(space.fork(cpu).map(drop))),
    call("store by a child", |w, _, cpu, at| {
        let child = w.family.lock().unwrap().first().cloned();
        child.map_or_else(|| "no child".into(), |child| said(w.access(&child, cpu, at, Access::Write, Some(own(cpu)))))
    }),
    outside("a child ends", |w, _| {
        let child = w.family.lock().unwrap().pop();
        drop(child);
    }),
    outside("exec or exit", |w, _| {
        let space = w.main.lock().unwrap().take();
        drop(space);
    }),
    outside("exec, beside other references", |w, _| {
        let Some(space) = w.main.lock().unwrap().take() else { return };
        *w.left.lock().unwrap() = Some(space.clone());
        drop(SpaceUser::new(space));
    }),
    call("bind", |w, space, cpu, at| match Device::join(&w.handle, Notified::WithTlbs) {
        Err(SubscribeError::Released) => ENDED.into(),
        Err(error) => said(error),
        Ok(device) => {
            let answer = device.access(w, space, cpu, at, Access::Read);
            *w.bound.lock().unwrap() = Some(device);
            answer
        }
    }),
    outside("unbind", |w, _| {
        let bound = w.bound.lock().unwrap().take();
        drop(bound);
    }),
    call("UFFDIO_REGISTER", |w, _, cpu, _| {
        let both = crate::mm::space::Enrolment { missing: true, minor: false, write_protected: true };
        pager(w, |pager| said(Userfaultfd::register(pager, cpu, START, w.bytes(), both)))
    }),
    call("UFFDIO_UNREGISTER", |w, _, cpu, _| pager(w, |pager| said(pager.unregister(cpu, START, w.bytes())))),
    call("UFFDIO_COPY", |w, space, cpu, at| copy(w, space, cpu, at, false)),
    call("UFFDIO_COPY, protected", |w, space, cpu, at| copy(w, space, cpu, at, true)),
    call("UFFDIO_CONTINUE", |w, space, cpu, at| {
        pager(w, |pager| said(pager.fill(cpu, Some(space), at, PAGE, Content::Present(false))))
    }),
    call("UFFDIO_CONTINUE, protected", |w, space, cpu, at| {
        pager(w, |pager| said(pager.fill(cpu, Some(space), at, PAGE, Content::Present(true))))
    }),
    call("UFFDIO_ZEROPAGE", |w, space, cpu, at| {
        pager(w, |pager| said(pager.fill(cpu, Some(space), at, PAGE, Content::Zeros)))
    }),
    call("UFFDIO_POISON", |w, space, cpu, at| {
        pager(w, |pager| said(pager.fill(cpu, Some(space), at, PAGE, Content::Poison)))
    }),
    call("UFFDIO_MOVE", |w, space, cpu, at| transfer(w, space, cpu, [w.at(3), at], Holes::Refused)),
    call("UFFDIO_MOVE, from the first page", |w, space, cpu, at| transfer(w, space, cpu, [at, START], Holes::Skipped)),
    call("UFFDIO_WRITEPROTECT", |w, space, cpu, at| {
        pager(w, |pager| said(pager.write_protect(cpu, Some(space), at, PAGE, Mark::Set)))
    }),
    call("UFFDIO_WRITEPROTECT of all", |w, space, cpu, _| {
        pager(w, |pager| said(pager.write_protect(cpu, Some(space), START, w.bytes(), Mark::Set)))
    }),
    call("UFFDIO_WRITEPROTECT, ended", |w, space, cpu, _| {
        pager(w, |pager| said(pager.write_protect(cpu, Some(space), START, w.bytes(), Mark::Clear)))
    }),
    call("PAGEMAP_SCAN", |_, space, cpu, at| scan(space, cpu, at, PAGE)),
    call("PAGEMAP_SCAN of all", |w, space, cpu, _| scan(space, cpu, START, w.bytes())),
    call("UFFDIO_WAKE", |w, _, _, _| pager(w, |pager| said(pager.wake(START, w.bytes())))),
    outside("userfaultfd is closed", |w, _| {
        let file = w.pager.lock().unwrap().take();
        drop(file);
    }),
    call("punch hole", |w, _, cpu, at| file(w, |file| said(file.punch_hole(cpu, at - START, at - START + PAGE)))),
    call("ftruncate", |w, _, cpu, at| file(w, |file| said(file.truncate(cpu, at - START)))),
    call("ftruncate, longer", |w, _, cpu, _| file(w, |file| said(file.truncate(cpu, w.bytes())))),
    call("fallocate", |w, _, cpu, _| file(w, |file| said(file.allocate(cpu, 0, w.bytes(), SizeChoice::Keep, ALIVE)))),
    call("write to the file", |w, _, cpu, at| write_to_file(w, cpu, at)),
    call("read of the file", |w, _, _, at| {
        file(w, |file| {
            let mut byte = [0];
            said((file.read(at - START + 8, &mut byte), byte))
        })
    }),
    // Of the one page: others may come one by one.
    call("SEEK_DATA", |w, _, _, at| file(w, |file| said(file.seek(at - START, Sought::Data) == Some(at - START)))),
    call("SEEK_HOLE", |w, _, _, at| file(w, |file| said(file.seek(at - START, Sought::Hole) == Some(at - START)))),
    outside("the device is gone", |w, cpu| {
        w.file.iter().filter(|_| w.kind.of == Of::Registers).for_each(|registers| registers.revoke(cpu));
    }),
    call("migration", |w, space, cpu, at| {
        _ = w.rig.migrate(cpu, space, at);
        "done".into()
    }),
    outside("compaction", |w, cpu| _ = w.rig.spaces.compact(cpu, 1, ALIVE)),
    call("pages are dropped", |_, space, cpu, _| {
        space.drop_pages(cpu);
        "done".into()
    }),
    outside("reclaim ages", |w, cpu| _ = w.rig.spaces.reclaim(cpu, usize::MAX, Used::Age, ALIVE)),
    outside("reclaim", |w, cpu| {
        (0..2).for_each(|_| _ = w.rig.spaces.reclaim(cpu, usize::MAX, Used::Age, ALIVE));
    }),
];

/// The word of pagemap for a page; without bits that change where another CPU copies the page or brings it too early.
pub(super) fn shown(space: &Space, at: VirtAddr) -> u64 {
    let mut word = [0];
    space.pagemap(at, &mut word);
    word[0] & (GUARD | UFFD_WP)
}
