//! Children that have ended, and the collection of their status.

use super::{Parent, Process, Tree};
use crate::linux::file::pidfd::Pidfd;
use crate::linux::process::signal::Signal;
use crate::linux::process::status::{Change, ProcessEnd};
use crate::mm::counted::Counted;
use crate::mm::pool::PoolBox;

/// By what a child is named.
#[derive(Clone, Copy)]
pub enum Named<'p> {
    /// By nothing: any.
    Any,
    /// By its number.
    Number(u32),
    /// By its group.
    Group(u32),
    /// By a pidfd.
    By(&'p Counted<Pidfd>),
}

/// The children that `wait4` and `waitid` select.
#[derive(Clone, Copy)]
pub struct Wanted<'p> {
    /// Those that are named so.
    pub named: Named<'p>,
    /// Those that have ended.
    pub ended: bool,
    /// Those that were stopped.
    pub stopped: bool,
    /// Those that continue.
    pub continued: bool,
    /// The status stays for another call.
    pub stays: bool,
    /// Those that send SIGCHLD at their end.
    pub normal: bool,
    /// The others.
    pub clones: bool,
}

impl Wanted<'_> {
    fn has(&self, exit_signal: Option<Signal>) -> bool {
        if exit_signal == Some(Signal::CHLD) { self.normal } else { self.clones }
    }
}

/// The result of a wait for a child.
pub enum Child {
    /// There is no such child.
    None,
    /// None has ended.
    Running,
    /// This one has ended. It is out of the tree, unless its status stays.
    Ended {
        /// Its number.
        id: u32,
        /// How it ended.
        status: ProcessEnd,
        /// Dropped without the lock.
        process: Option<PoolBox<Process>>,
    },
    /// The one with this number has changed so.
    Changed(u32, Change),
}

impl Tree {
    /// Finds a child of `parent` that has ended, among the selected ones; where these are one, also if it has changed.
    pub fn collect(&mut self, parent: &Process, wanted: Wanted<'_>) -> Child {
        let found = match wanted.named {
            Named::Any | Named::Group(_) => return self.collect_any(parent, wanted),
            Named::Number(id) => self.find(id),
            Named::By(pidfd) => self.find_by(pidfd),
        };
        // SAFETY: the tree owns it, and it stays there until it is removed.
        let found = found.map(|child| unsafe { &*core::ptr::from_ref(child) });
        found.map_or(Child::None, |child| self.collect_one(parent, child, wanted))
    }

    fn collect_any(&mut self, parent: &Process, wanted: Wanted<'_>) -> Child {
        let family = parent.family(&mut self.key);
        let (mut oldest, mut any_running): (Option<&Process>, _) = (None, false);
        for (is_wanted, children) in [(wanted.normal, &family.normal), (wanted.clones, &family.clones)] {
            if !is_wanted {
                continue;
            }
            any_running |= children.running != 0;
            if let Some(child) = children.ended.front().get().filter(|_| wanted.ended)
                && oldest.is_none_or(|oldest| child.serial() < oldest.serial())
            {
                oldest = Some(child);
            }
        }
        match oldest.map(core::ptr::from_ref) {
            // SAFETY: the tree owns it, and it stays there until it is removed.
            Some(child) => self.take_ended(parent, unsafe { &*child }, wanted),
            None if any_running => Child::Running,
            None => Child::None,
        }
    }

    fn collect_one(&mut self, parent: &Process, child: &Process, wanted: Wanted<'_>) -> Child {
        let family = child.family(&mut self.key);
        let is_own = matches!(family.parent, Parent::Process(number) if number == parent.id);
        if !is_own || !wanted.has(family.exit_signal) {
            return Child::None;
        }
        match family.status {
            None => {
                let is_wanted = |change| match change {
                    Change::Stopped(_) => wanted.stopped,
                    _ => wanted.continued,
                };
                let change = child.lock().stop.collect(is_wanted, wanted.stays);
                change.map_or(Child::Running, |change| Child::Changed(child.id, change))
            }
            Some(_) if !wanted.ended => Child::None,
            Some(_) => self.take_ended(parent, child, wanted),
        }
    }

    fn take_ended(&mut self, parent: &Process, child: &Process, wanted: Wanted<'_>) -> Child {
        let family = child.family(&mut self.key);
        let (Some(status), exit_signal) = (family.status, family.exit_signal) else { return Child::Running };
        if wanted.stays {
            return Child::Ended { id: child.id, status, process: None };
        }
        let siblings = parent.family(&mut self.key).children(exit_signal);
        // SAFETY: a child that has ended and is still in the tree is in its parent's list of its kind.
        unsafe { siblings.ended.cursor_mut_from_ptr(child) }.remove();
        self.removed(child, status)
    }

    /// Collects the status of a process that the kernel started, once it has ended.
    pub fn collect_own(&mut self, id: u32) -> Child {
        let Some(process) = self.by_id.find(&id).get() else { return Child::None };
        match process.family(&mut self.key).status {
            // SAFETY: the tree owns it, and it stays there until it is removed.
            Some(status) => self.removed(unsafe { &*core::ptr::from_ref(process) }, status),
            None => Child::Running,
        }
    }

    fn removed(&mut self, process: &Process, status: ProcessEnd) -> Child {
        let id = process.id;
        match self.remove(process) {
            Some(process) => Child::Ended { id, status, process: Some(process) },
            None => Child::None,
        }
    }
}
