//! The entries that the model expects, and their comparison with the tables.

use super::*;

/// A request for `mremap`, in pages of the window.
pub(super) struct Remapped {
    pub(super) at: u64,
    pub(super) pages: u64,
    pub(super) new_pages: u64,
    pub(super) to: Move,
    pub(super) keeps: bool,
}

impl Remapped {
    /// Changes the model like the call, which answered `new`.
    pub(super) fn model(&self, model: &mut Model, new: Option<VirtAddr>) -> Result<(), SpaceError> {
        let Self { at, pages, new_pages, to, keeps } = *self;
        let start = address(at);
        if let Move::To(VirtAddr(to)) | Move::Near(VirtAddr(to)) = to
            && (start.0 + pages * PAGE > to && to + new_pages * PAGE > start.0 || keeps && pages != new_pages)
        {
            return Err(SpaceError::Invalid);
        }
        match to {
            Move::To(to) if pages == new_pages => {
                let mut next = at;
                while next < at + pages {
                    let Some(end) = end_of_area(model, address(next)) else {
                        if next == at {
                            return Err(SpaceError::NoArea);
                        }
                        next += 1;
                        continue;
                    };
                    let pages = (end / PAGE - BASE / PAGE).min(at + pages) - next;
                    let piece =
                        Self { at: next, pages, new_pages: pages, to: Move::To(to + (next - at) * PAGE), keeps };
                    piece.one(model, Some(to + (next - at) * PAGE))?;
                    next += pages;
                }
                Ok(())
            }
            _ => self.one(model, new),
        }
    }

    /// Of one area.
    fn one(&self, model: &mut Model, new: Option<VirtAddr>) -> Result<(), SpaceError> {
        let Self { at, pages, new_pages, to, keeps } = *self;
        let start = address(at);
        let end = end_of_area(model, start).ok_or(SpaceError::NoArea)?;
        let unmap = |model: &mut Model, start, pages| {
            each(start, pages).for_each(|page| drop(model.remove(&page)));
        };
        let stays = matches!(to, Move::Not | Move::IfNeeded);
        if new_pages <= pages && stays {
            unmap(model, address(at + new_pages), pages - new_pages);
            return Ok(());
        }
        if pages == 0 && !matches!(model[&start.0].backing, Backing::Shared(..)) {
            return Err(SpaceError::Invalid);
        }
        let kept = pages.min(new_pages);
        if start.0 + kept * PAGE > end {
            return Err(SpaceError::NoArea);
        }
        if let Move::To(to) = to {
            unmap(model, to, new_pages);
            unmap(model, address(at + kept), pages - kept);
        }
        let is_free = each(VirtAddr(end), new_pages - kept).all(|page| !model.contains_key(&page));
        let grows = stays && start.0 + pages * PAGE == end && is_free;
        let new = match to {
            _ if grows => start,
            Move::Not => return Err(SpaceError::NoMemory),
            Move::To(to) => to,
            Move::IfNeeded | Move::Near(_) => new.expect("there is room"),
        };
        // Without bytes, it may be in its own target.
        let Some(first) = model.get(&start.0).cloned() else { return Err(SpaceError::NoArea) };
        let moved: Vec<Page> = (0..new_pages)
            .map(|index| {
                let page = (index < kept).then(|| model[&address(at + index).0].clone());
                page.unwrap_or_else(|| first.at_distance(index))
            })
            .collect();
        if keeps {
            for page in each(start, kept) {
                let page = model.get_mut(&page).unwrap();
                page.is_guard = false;
                page.discard();
            }
        } else {
            unmap(model, start, kept);
        }
        for (page, moved) in each(new, new_pages).zip(moved) {
            assert!(model.insert(page, moved).is_none(), "{page:#x} was mapped");
        }
        Ok(())
    }
}

/// The end of the area that has `address`.
fn end_of_area(model: &Model, address: VirtAddr) -> Option<u64> {
    expected_areas(model).into_iter().find(|area| (area.0..area.1).contains(&address.0)).map(|area| area.1)
}

/// The answer to an access at a page of the window.
pub(super) fn refusal(model: &Model, ends: [u64; FILES], at: u64, access: Access) -> Result<(), FaultError> {
    let page = model.get(&address(at).0).ok_or(FaultError::NotMapped)?;
    let allowed = match access {
        Access::Read => page.protection.accesses() != Protection::NONE,
        Access::Write => page.protection.contains(Protection::WRITE),
        Access::Execute => page.protection.contains(Protection::EXECUTE),
    };
    match page.is_behind_the_end(ends) {
        _ if !allowed => Err(FaultError::NotAllowed),
        _ if page.is_guard => Err(FaultError::Guard),
        true => Err(FaultError::Unusable),
        false => Ok(()),
    }
}

/// As few areas as can be.
pub(super) fn expected_areas(model: &Model) -> Vec<(u64, u64, u8)> {
    let mut areas: Vec<(u64, u64, u8)> = Vec::new();
    let mut before: Option<(u64, &Page)> = None;
    for (&start, page) in model {
        let goes_on = before.is_some_and(|(address, before)| {
            let same = match (&before.backing, &page.backing) {
                (Backing::Private(_), Backing::Private(_)) => true,
                (Backing::Shared(one, index, _), Backing::Shared(other, next, _))
                | (Backing::Copy(one, index, ..), Backing::Copy(other, next, ..)) => {
                    Rc::ptr_eq(one, other) && index + 1 == *next
                }
                _ => false,
            };
            let alike = before.protection == page.protection
                && before.in_children == page.in_children
                && before.is_wanted == page.is_wanted;
            address + PAGE == start && alike && same
        });
        match areas.last_mut() {
            Some(area) if goes_on => area.1 = start + PAGE,
            _ => areas.push((start, start + PAGE, page.protection.bits())),
        }
        before = Some((start, page));
    }
    areas
}

pub(super) fn check_entries(
    world: &World,
    space: &Space,
    model: &Model,
    holders: &mut BTreeMap<PhysAddr, u32>,
) -> Result<(), String> {
    let (rig, ends) = (&world.rig, world.ends());
    for (&at, page) in model {
        let entry = space.page_tables().cell(VirtAddr(at)).map(|(_, cell)| space.mmu().load(cell));
        if page.is_guard != (entry == Some(Markers::GUARD.into())) {
            return Err(format!("{at:#x} is {entry:?}, and is a guard: {}", page.is_guard));
        }
    }
    // Not by `Space::tables`, which joins the parts.
    let tables = space.page_tables();
    let mut leaves = Vec::new();
    let whole = PageRange::new(USER_START, USER_END - USER_START).unwrap();
    tables.dump(whole, |extent| {
        leaves.extend((0..extent.size).step_by(PAGE as usize).map(|offset| extent.start + offset))
    });
    for &at in &leaves {
        let page = model.get(&at.0).ok_or_else(|| format!("{at} has an entry and no area"))?;
        let found = tables.translate(at).unwrap();
        let (leaf, frame) = (found.descriptor, found.physical);
        // SAFETY: a frame that an entry has; its first byte is the page's.
        let value = unsafe { rig.frames.linear().address(frame).as_ptr::<u8>().read() };
        if Value::from(value) != page.value() & 0xff {
            return Err(format!("{at} holds {value} instead of {:#x}", page.value()));
        }
        let has_tags = leaf.is_special() || rig.spaces.record(frame).has_tags();
        // SAFETY: as above.
        let tag = if has_tags { unsafe { mte::load_tag(rig.frames.linear().address(frame)) }.number() } else { 0 };
        if Value::from(tag) != page.value() >> 8 || leaf.is_valid() && leaf.is_tagged() && !has_tags {
            return Err(format!("{at} has the tag {tag} ({has_tags}) instead of that in {:#x}", page.value()));
        }
        if page.is_behind_the_end(ends) {
            return Err(format!("{at} is behind the end, with {leaf:?}"));
        }
        // Every entry without a copy shows the frame of the file.
        if let Backing::Copy(_, number, file, None) | Backing::Shared(_, number, Some(file)) = &page.backing {
            let found = world.files[*file].0.frame(&rig.cpu, *number).ok().map(|found| found.frame());
            if found != Some(frame) {
                return Err(format!("{at} has {frame}, the file {found:?}"));
            }
            if matches!(page.backing, Backing::Copy(..)) && leaf.may_be_written() {
                return Err(format!("{at} may be written, and is the file's"));
            }
        }
        let protection = page.protection;
        let private = matches!(page.backing, Backing::Private(_) | Backing::Copy(.., Some(_)));
        let may = |what| protection.contains(what);
        if leaf.is_valid() != (protection.accesses() != Protection::NONE)
            || leaf.is_tagged() != may(Protection::TAGGED)
            || (leaf.0 & bits::GP != 0) != may(Protection::GUARDED)
            || leaf.may_be_written() && !may(Protection::WRITE)
            || leaf.is_valid() && leaf.is_user_executable() != may(Protection::EXECUTE)
            || leaf.is_writable() && !leaf.may_be_written()
            || leaf.0 & (bits::PXN | bits::NG) != bits::PXN | bits::NG
        {
            return Err(format!("{at} has {leaf:?}, its area {protection:?}"));
        }
        if leaf.is_special() {
            if frame != rig.spaces.zeros || leaf.may_be_written() {
                return Err(format!("{at} is special, with {leaf:?}"));
            }
        } else if private {
            *holders.entry(frame).or_default() += 1;
            if leaf.may_be_written() && rig.spaces.record(frame).references() != 1 {
                return Err(format!("{at} may be written, and others have its frame"));
            }
        }
    }
    // A page without an entry is zero.
    let lost = model.iter().find(|(at, page)| {
        let own = matches!(page.backing, Backing::Private(value) | Backing::Copy(.., Some(value)) if value != 0);
        own && !leaves.contains(&VirtAddr(**at))
    });
    lost.map_or(Ok(()), |(at, _)| Err(format!("{at:#x} was written and has no entry")))
}
