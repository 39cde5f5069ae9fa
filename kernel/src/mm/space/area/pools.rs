//! Room for areas and for what they have of objects.

use core::mem::MaybeUninit;

use super::{Area, Mapping};
use crate::mm::OutOfMemory;
use crate::mm::frame::FrameAllocator;
use crate::mm::pool::{CpuPools, Pool, PoolBox};
use crate::smp::Cpu;

/// Room for nodes that was allocated before a change begins, for the areas that it adds.
pub(in crate::mm::space) struct Spares {
    areas: [Option<PoolBox<MaybeUninit<Area>>>; 2],
    /// For those that are parts of areas with objects.
    mappings: [Option<PoolBox<MaybeUninit<Mapping>>>; 2],
}

/// Where areas come from.
pub(in crate::mm::space) struct AreaPools {
    areas: CpuPools<Area>,
    mappings: Pool<Mapping>,
}

impl AreaPools {
    pub(in crate::mm::space) fn new(cpu: &Cpu, frames: &'static FrameAllocator) -> Result<Self, OutOfMemory> {
        Ok(Self { areas: CpuPools::new(cpu, frames)?, mappings: Pool::new(frames) })
    }

    /// Areas in use.
    pub(in crate::mm::space) fn objects(&self) -> usize {
        self.areas.objects()
    }

    /// Frames that the pools have.
    pub(in crate::mm::space) fn frames(&self) -> usize {
        self.areas.frames() + self.mappings.stats().frames
    }

    /// The pool from which `cpu` takes areas.
    pub(in crate::mm::space) fn of(&self, cpu: &Cpu) -> &'static Pool<Area> {
        self.areas.of(cpu)
    }

    /// Room for what an area has of an object.
    pub(in crate::mm::space) fn new_mapping(&'static self, mapping: Mapping) -> Result<PoolBox<Mapping>, OutOfMemory> {
        self.mappings.try_new(mapping)
    }
}

impl Spares {
    /// Takes `count` nodes, at most two; for parts of areas that have objects, if `have_objects`.
    ///
    /// # Errors
    /// [`OutOfMemory`]; no node stays allocated.
    #[inline]
    pub(in crate::mm::space) fn take(
        cpu: &Cpu,
        source: &'static AreaPools,
        count: usize,
        have_objects: bool,
    ) -> Result<Self, OutOfMemory> {
        if count == 0 { Ok(Self::NONE) } else { Self::take_some(cpu, source, count, have_objects) }
    }

    const NONE: Self = Self { areas: [const { None }; 2], mappings: [const { None }; 2] };

    #[inline(never)]
    fn take_some(cpu: &Cpu, source: &'static AreaPools, count: usize, have_objects: bool) -> Result<Self, OutOfMemory> {
        let mut taken = Self::NONE;
        for (area, mapping) in taken.areas.iter_mut().zip(&mut taken.mappings).take(count) {
            *area = Some(source.of(cpu).try_new_uninit()?);
            if have_objects {
                *mapping = Some(source.mappings.try_new_uninit()?);
            }
        }
        Ok(taken)
    }

    /// A node that holds `area`.
    pub(in crate::mm::space) fn make(&mut self, area: Area) -> PoolBox<Area> {
        self.areas
            .iter_mut()
            .find_map(Option::take)
            .expect("as many nodes were taken as the change adds areas")
            .write(area)
    }

    /// The mapping of the part of an area that begins with `first_page` of the object of `mapping`.
    pub(super) fn make_mapping(&mut self, mapping: &Mapping, first_page: u64) -> PoolBox<Mapping> {
        let room = self
            .mappings
            .iter_mut()
            .find_map(Option::take)
            .expect("as many nodes were taken as the change adds areas with objects");
        room.write(mapping.copy(first_page, mapping.space))
    }
}
