//! From which node the pages of an area come (`mbind`). There is one node: a policy is kept for the program that asks for
//! it, and has no effect but that areas of two policies stay two.

use core::cell::Cell;

use granule_arch::addr::{PAGE, VirtAddr};

use super::address_space::Space;
use super::advise::too_little_memory;
use super::area::Area;
use super::area::tree::Areas;
use super::entry::{EntryState, state};
use super::error::SpaceError;
use super::node_policy::NodePolicy;
use super::range::{USER_END, clamped_range, pages};
use crate::smp::Cpu;

/// The place of a page's frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Residence {
    /// Nothing is mapped at its address.
    NotMapped,
    /// It has none.
    Absent,
    /// It is the page of zeros, or no memory.
    Special,
    /// It is on the one node.
    There,
}

impl Space {
    /// Gives the areas in the `bytes` bytes from `start` on a policy.
    ///
    /// # Errors
    /// [`SpaceError::Invalid`] (an address that is no page's, a wrapping range), [`SpaceError::NoArea`] (a part is not mapped;
    /// for the default nothing is), [`SpaceError::NoMemory`] (too many areas, or no memory for records).
    pub fn set_policy(&self, cpu: &Cpu, start: VirtAddr, bytes: u64, policy: NodePolicy) -> Result<(), SpaceError> {
        if start >= USER_END {
            return Err(SpaceError::NoArea);
        }
        let Some((range, in_space)) = clamped_range(start, bytes, SpaceError::Invalid)? else { return Ok(()) };
        let is_default = policy == NodePolicy::DEFAULT;
        self.change_areas(self.write_areas(range), |areas: &mut Areas| {
            let is_there = if is_default { areas.first_touching(range).is_some() } else { areas.covers(range) };
            if !is_there || !in_space && !is_default {
                return Err(SpaceError::NoArea.into());
            }
            let new = |area: &Area| Ok(area.flags().with_policy(policy));
            self.change_flags(cpu, areas, range, new).map_err(too_little_memory)
        })
        .map(drop)
    }

    /// Makes the one node the home of the policies of one of `modes` in the `bytes` bytes from `start` on; whether there were
    /// some.
    ///
    /// # Errors
    /// As [`Self::set_policy`]; [`SpaceError::NotAllowed`]: of another mode. Those below have changed.
    pub fn set_home(&self, cpu: &Cpu, start: VirtAddr, bytes: u64, modes: [u32; 2]) -> Result<bool, SpaceError> {
        if start >= USER_END {
            return Ok(false);
        }
        let Some((range, _)) = clamped_range(start, bytes, SpaceError::Invalid)? else { return Ok(true) };
        let are_some = Cell::new(false);
        let change = |areas: &mut Areas| {
            self.change_flags(cpu, areas, range, |area| {
                let policy = area.flags().policy();
                if policy == NodePolicy::DEFAULT {
                    return Ok(area.flags());
                }
                if !modes.contains(&policy.kind()) {
                    return Err(SpaceError::NotAllowed);
                }
                are_some.set(true);
                Ok(area.flags().with_policy(policy.with_home()))
            })
            .map_err(too_little_memory)
        };
        drop(self.change_areas(self.write_areas(range), change)?);
        Ok(are_some.get())
    }

    /// The policy at `address`, if something is mapped there.
    pub fn policy_at(&self, address: VirtAddr) -> Option<NodePolicy> {
        self.with_area(address.align_down(PAGE), |area| area.flags().policy())
    }

    /// Where the page at `address` is. It may be elsewhere by now.
    pub fn residence(&self, address: VirtAddr) -> Residence {
        let page = address.align_down(PAGE);
        let areas = self.areas.read(page);
        if areas.find(page).is_none() {
            return Residence::NotMapped;
        }
        let mut found = Residence::Absent;
        self.look_at_each(pages(page, page + PAGE), |seen| {
            let entry = seen.descriptor();
            found = match state(entry) {
                EntryState::Page | EntryState::Inaccessible if entry.is_special() => Residence::Special,
                EntryState::Page | EntryState::Inaccessible | EntryState::Migration => Residence::There,
                _ => Residence::Absent,
            };
        });
        found
    }
}
