//! Events: what a space does to its mappings, for pagers that have asked for it.
//!
//! | | `changing` from | sent | the caller continues |
//! |---|---|---|---|
//! | fork | the copy of areas | after the fork | when it is read, with the child's userfaultfd |
//! | remap | the move | after it | when it is read |
//! | unmap | the unmapping | after it | when it is read |
//! | remove | the event | before pages are discarded | when it is read; then it discards |
//!
//! While `changing` is not 0 the pager's calls fail ([`UserfaultError::Changing`]): what it has read before may not be true
//! any more. No lock is held while an event waits.

use granule_arch::addr::VirtAddr;
use granule_pgtable::{Mmu, PageRange, Stores, Visited};

use super::super::address_space::{Space, SpaceRef};
use super::super::area::tree::Areas;
use super::super::area::{Area, AreaFlags};
use super::super::entry::unprotected;
use super::super::error::SpaceError;
use super::super::range::{USER_END, USER_START, pages};
use super::super::remap::Remap;
use super::super::seal::check_unmapping;
use super::super::tally::{Met, Tally};
use super::{Features, Message, Registered, UserfaultError, Userfaultfd, UserfaultfdNumber};
use crate::mm::OutOfMemory;
use crate::mm::counted::Counted;
use crate::mm::paged::PagedList;
use crate::sched::relax;

/// Whether what has moved is registered still.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in super::super) enum MovedRegistration {
    /// Or was never.
    Kept,
    /// Its marks and markers go.
    Lost,
}

/// Events of a change under way. Dropping it ends those that were not sent.
#[derive(Default)]
pub struct PendingEvents(Option<PagedList<(Counted<Userfaultfd>, Message)>>);

impl PendingEvents {
    /// No events.
    pub(in super::super) const NONE: Self = Self(None);

    fn add(&mut self, userfaultfd: Counted<Userfaultfd>, message: Message) -> Result<(), OutOfMemory> {
        let frames = userfaultfd.space.common().frames;
        let events = self.0.get_or_insert_with(|| PagedList::new(frames));
        events.push((userfaultfd, message))?;
        if let Some((userfaultfd, _)) = events.get(events.count() - 1) {
            userfaultfd.changing.begin();
        }
        Ok(())
    }

    /// How many there are.
    pub(in super::super) fn count(&self) -> usize {
        self.0.as_ref().map_or(0, PagedList::count)
    }

    /// Ends those after the first `count`: their change is not made.
    pub(in super::super) fn undo_from(&mut self, count: usize) {
        let Some(events) = &mut self.0 else { return };
        while events.count() > count
            && let Some((userfaultfd, _)) = events.pop()
        {
            userfaultfd.changing.end();
        }
    }

    /// Adds those of an unmapping of `range`, which `areas` of `space` have, if none of them is sealed.
    ///
    /// # Errors
    /// [`SpaceError::NotPermitted`] (a sealed area), [`SpaceError::NoMemory`].
    pub(in super::super) fn add_unmapping(
        &mut self,
        space: &Space,
        areas: &Areas,
        range: PageRange,
    ) -> Result<(), SpaceError> {
        if space.minds_unmapping() { self.add_unmapped(space, areas, range) } else { Ok(()) }
    }

    #[cold]
    #[inline(never)]
    fn add_unmapped(&mut self, space: &Space, areas: &Areas, range: PageRange) -> Result<(), SpaceError> {
        check_unmapping(areas, range)?;
        let (first, tally) = (self.count(), Tally::begin());
        for area in areas.walk(range) {
            relax();
            if let Some(userfaultfd) = space.subscribed(area, Features::EVENT_UNMAP) {
                // As on Linux, once for each userfaultfd, with all of the range.
                let is_known = match userfaultfd.met.meet(tally) {
                    Met::First => false,
                    Met::Again => true,
                    // By an unmapping elsewhere in the space.
                    Met::Unknown => {
                        self.0.iter().flat_map(PagedList::iter).skip(first).any(|(known, _)| known.is(&userfaultfd))
                    }
                };
                if !is_known {
                    self.add(userfaultfd, Message::Unmap(range))?;
                }
            }
        }
        Ok(())
    }

    /// Sends them one after the other, each when the one before it is read. Sleeps; no lock is held.
    pub fn send(mut self) {
        for (userfaultfd, message) in self.0.take().iter().flat_map(PagedList::iter) {
            userfaultfd.send_counted(message.clone());
        }
    }
}

impl Drop for PendingEvents {
    fn drop(&mut self) {
        self.undo_from(0);
    }
}

impl Userfaultfd {
    /// Whether an event is not read yet.
    pub fn is_changing(&self) -> bool {
        self.changing.are_there()
    }

    /// Fails while an event is not read.
    ///
    /// # Errors
    /// [`UserfaultError::Changing`].
    pub(super) fn check_unchanging(&self) -> Result<(), UserfaultError> {
        if self.is_changing() { Err(UserfaultError::Changing) } else { Ok(()) }
    }

    /// Sends an event whose change is counted, and ends that; whether it was read.
    fn send_counted(&self, message: Message) -> bool {
        let is_read = self.queue.send(message);
        self.changing.end();
        is_read
    }

    /// Counts and sends an event that comes before its change.
    fn send(&self, message: Message) {
        self.changing.begin();
        self.send_counted(message);
    }
}

impl Space {
    /// The userfaultfd of `area`, if it has asked for the events of `feature`.
    fn subscribed(&self, area: &Area, feature: u64) -> Option<Counted<Userfaultfd>> {
        let flags = area.flags();
        let userfaultfd = self.userfaultfds.get(flags.has_any(AreaFlags::REGISTERED).then(|| flags.userfaultfd())?)?;
        userfaultfd.features().has(feature).then_some(userfaultfd)
    }

    /// Sends the event of each area in `range` whose pages are about to be discarded, and waits until it is read. Sleeps; no
    /// lock is held.
    #[cold]
    #[inline(never)]
    pub(in super::super) fn announce_remove(&self, range: PageRange) {
        let mut next = range.start();
        while next < range.end() {
            let found = {
                let areas = self.areas.read(next);
                let end = super::part_end(&areas, range);
                let found = areas.touching(pages(next, end)).find_map(|area| {
                    let part = area.part_in(pages(next, end));
                    Some((self.subscribed(area, Features::EVENT_REMOVE)?, part))
                });
                next = found.as_ref().map_or(end, |(_, part)| part.end());
                found
            };
            if let Some((userfaultfd, part)) = found {
                userfaultfd.send(Message::Remove(part));
            }
            relax();
        }
    }

    /// The events of an unmapping of `range`, which `areas` have.
    ///
    /// # Errors
    /// As [`PendingEvents::add_unmapping`].
    #[cold]
    #[inline(never)]
    pub(in super::super) fn events_of_unmapping(
        &self,
        areas: &Areas,
        range: PageRange,
    ) -> Result<PendingEvents, SpaceError> {
        let mut events = PendingEvents::NONE;
        events.add_unmapped(self, areas, range)?;
        Ok(events)
    }

    /// Leaves `copy`, the area to which `area` moves by `request`, registered where its userfaultfd has asked for moves, and
    /// adds the events; else it is registered no more.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub(in super::super) fn move_registration(
        &self,
        area: &Area,
        copy: &mut Area,
        request: &Remap,
        to: VirtAddr,
        events: &mut PendingEvents,
    ) -> Result<MovedRegistration, OutOfMemory> {
        if !area.flags().has_any(AreaFlags::REGISTERED) {
            return Ok(MovedRegistration::Kept);
        }
        let (from, bytes, is_unmapped) = request.source();
        let registered = match self.subscribed(area, Features::EVENT_REMAP) {
            Some(userfaultfd) => {
                events.add(userfaultfd, Message::Remap { from, to, bytes })?;
                MovedRegistration::Kept
            }
            None => {
                copy.unregister();
                MovedRegistration::Lost
            }
        };
        if is_unmapped
            && bytes != 0
            && let Some(userfaultfd) = self.subscribed(area, Features::EVENT_UNMAP)
        {
            events.add(userfaultfd, Message::Unmap(pages(from, from + bytes)))?;
        }
        Ok(registered)
    }

    /// Registers the areas of a child with userfaultfds of its own, where those of this space have asked for forks, and the
    /// others with none. Its areas are `childs`.
    ///
    /// # Errors
    /// [`OutOfMemory`]; the caller drops the child.
    pub(in super::super) fn register_childs(&self, child: &SpaceRef, childs: &mut Areas) -> Result<(), OutOfMemory> {
        let mut next = Some(pages(USER_START, USER_END));
        while let Some(range) = next {
            let Some(area) = childs.first_touching(range) else { break };
            let flags = area.flags();
            if flags.has_any(AreaFlags::REGISTERED) {
                let number = flags.userfaultfd();
                match self.userfaultfds.get(number).filter(|parent| parent.features().has(Features::EVENT_FORK)) {
                    Some(parent) => child.userfaultfds.fork_from(child, number, parent)?,
                    None => childs.set_flags(&area, flags.unregistered()),
                }
            }
            next = (area.end() < USER_END).then(|| pages(area.end(), USER_END));
            relax();
        }
        Ok(())
    }

    /// Takes the marks and markers out of the private pages that this space, a child, has got as copies of those of
    /// `parents`, in areas that are registered there and not here.
    pub(in super::super) fn unprotect_copies(&self, parents: &Areas) {
        let mmu = self.mmu();
        let is_protected = |area: &&Area| area.flags().has_any(AreaFlags::UFFD_WP) && !area.is_shared();
        for area in parents.walk(pages(USER_START, USER_END)).filter(is_protected) {
            if self.with_area(area.start(), |own| own.flags().has_any(AreaFlags::UFFD_WP)) != Some(false) {
                continue;
            }
            let mut walk = self.page_tables().walk_cells(area.range());
            while let Some(found) = walk.next_cells(|at| {
                relax();
                self.unprotect_block(at);
                Visited::Done
            }) {
                relax();
                // A walk by a reverse map may change what is of an object.
                let _locked = self.lock_table(found.table);
                for cell in found.cells {
                    let entry = mmu.load(cell);
                    if entry.is_uffd_wp_in_any_form() {
                        // No TLB has it: no thread runs here yet.
                        mmu.store(cell, unprotected(entry));
                    }
                }
            }
        }
    }

    /// Announces a fork, and waits until each pager has read that. If one does not, the child's userfaultfd is closed.
    #[cold]
    #[inline(never)]
    pub(in super::super) fn announce_fork(&self, child: &SpaceRef) {
        let mut next = 0;
        while let Some((own, parent)) = child.userfaultfds.take_forked(&mut next) {
            if !parent.send_counted(Message::Fork(own.clone())) {
                own.close();
            }
        }
    }
}

impl super::Userfaultfds {
    /// Gives `child`, whose table this is, a userfaultfd with the number of `parent` in its parent, if it has none.
    fn fork_from(
        &self,
        child: &SpaceRef,
        number: UserfaultfdNumber,
        parent: Counted<Userfaultfd>,
    ) -> Result<(), OutOfMemory> {
        let mut all = self.0.write();
        if all.get(number).is_some() {
            return Ok(());
        }
        child.note_userfaultfds();
        let own = Userfaultfd::with_features(child, parent.user_mode_only, parent.open_flags, parent.features().0)?;
        parent.changing.begin();
        all.put(number, Registered { userfaultfd: own, forked_from: Some(parent) })
    }

    /// The first one from `next` on whose fork is not announced yet, and the parent's; `next` is after it then.
    fn take_forked(&self, next: &mut usize) -> Option<(Counted<Userfaultfd>, Counted<Userfaultfd>)> {
        let mut all = self.0.write();
        loop {
            relax();
            let registered = all.places.get_mut(*next)?;
            *next += 1;
            if let Some(registered) = registered
                && let Some(parent) = registered.forked_from.take()
            {
                return Some((registered.userfaultfd.clone(), parent));
            }
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // Of a fork that has failed.
        if let Some(parent) = &self.forked_from {
            parent.changing.end();
        }
    }
}
