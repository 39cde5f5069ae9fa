//! The stream table: for each stream, what becomes of its transactions (IHI 0070, 3.3 and 5.1).
//!
//! Where the SMMU can, the table has two levels: leaves of 256 entries, one for each bus of PCI, which are made when
//! one of their streams is set up for the first time. A table for 65,536 streams starts as 2 KiB. Elsewhere it is one
//! array. A stream that was not set up is refused: by an abort entry or, where there is no leaf, by C_BAD_STREAMID.
//!
//! A stream has room for two context descriptors. A translated stream that is to be translated otherwise gets the other
//! one, and then one word of its entry points there: its transactions are translated as before or as after, and none is
//! refused in between.

#![allow(unsafe_code, reason = "reads and writes entries in DMA memory, and frees it")]

use core::marker::PhantomData;
use core::sync::atomic::Ordering;
use core::{ptr, slice};

use granule_arch::addr::PhysAddr;
use tock_registers::register_bitfields;

use crate::hitless::{self, WORDS};
use crate::registers::{STRTAB_BASE, STRTAB_BASE_CFG};
use crate::stream_entry::{EntryFormat, StreamTableEntry};
use crate::{
    Command, CommandError, ContextDescriptor, DmaMemory, Features, Memory, Platform, Privilege, Scope, Smmu, Stall,
    Step, StreamError, Word,
};

register_bitfields! {u64,
    /// A descriptor of the first level.
    LEVEL1 [
        /// `2^(SPAN - 1)` entries in the leaf; 0: there is none.
        SPAN OFFSET(0) NUMBITS(5) [],
        /// Where the leaf is, in units of 64 bytes; aligned to its size.
        LEAF OFFSET(6) NUMBITS(46) []
    ]
}

/// log2 of the entries in a leaf: one of the values that SPLIT may have.
const LEAF_BITS: u32 = 8;
const LEAF_STREAMS: usize = 1 << LEAF_BITS;
const LEAF_BYTES: usize = StreamTableEntry::BYTES << LEAF_BITS;

/// log2 of the most streams that a table is made for. One level is made at once, and so is the first of two: 2^12
/// streams by one level are 256 KiB, 2^20 by two are 32 KiB and what is used.
const LINEAR_BITS: u32 = 12;
const TWO_LEVEL_BITS: u32 = 20;

/// Context descriptors of a stream.
const CONTEXTS: usize = 2;
const CONTEXTS_BYTES: usize = CONTEXTS * ContextDescriptor::BYTES * LEAF_STREAMS;

/// The driver's record of 256 streams, by words: where the CPU finds their entries (0: there is no leaf), where it
/// finds their context descriptors (0: none was needed so far), and where the SMMU finds those.
const GROUP_WORDS: usize = 3;
const ENTRIES: usize = 0;
const CONTEXTS_CPU: usize = 1;
const CONTEXTS_SMMU: usize = 2;

/// The treatment of a stream's transactions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream<'a> {
    /// They end, and leave no event.
    Abort,
    /// They pass untranslated.
    Bypass,
    /// They are translated.
    Translate {
        /// By which tables.
        context: &'a ContextDescriptor,
        /// As whom.
        privilege: Privilege,
    },
}

/// All streams of an SMMU. A change needs `&mut`; the SMMU reads the table at any moment.
pub struct Streams<P: Platform + Memory> {
    /// The table, or its first level.
    table: DmaMemory,
    /// The driver's own notes, `GROUP_WORDS` for each 256 streams.
    groups: DmaMemory,
    two_levels: bool,
    /// log2 of its streams.
    bits: u32,
    format: EntryFormat,
    platform: PhantomData<fn(P)>,
}

impl<P: Platform + Memory> Streams<P> {
    /// A table in which every stream is refused; `None` where there is no memory.
    pub fn new(features: &Features, memory: &P) -> Option<Self> {
        let bits = u32::from(features.stream_bits);
        let two_levels = features.two_levels && bits > LEAF_BITS;
        let bits = bits.min(if two_levels { TWO_LEVEL_BITS } else { LINEAR_BITS });
        let groups = 1 << bits.saturating_sub(LEAF_BITS);
        let bytes = if two_levels { size_of::<u64>() * groups } else { StreamTableEntry::BYTES << bits };
        let table = memory.allocate(bytes, bytes.max(StreamTableEntry::BYTES))?;
        let Some(groups) = memory.allocate(groups * GROUP_WORDS * size_of::<u64>(), size_of::<u64>()) else {
            // SAFETY: it is from this source, and no SMMU has its address.
            unsafe { memory.free(table) };
            return None;
        };
        let format = EntryFormat { coherent: features.coherent, can_stall: features.stall == Stall::ByContext };
        if !two_levels {
            let entries = table.words::<P>();
            refuse_all(entries);
            for (group, leaf) in groups.words::<P>().chunks_exact(GROUP_WORDS).zip(entries.chunks(LEAF_STREAMS * WORDS))
            {
                group[ENTRIES].store(expose(leaf), Ordering::Relaxed);
            }
        }
        Some(Self { table, groups, two_levels, bits, format, platform: PhantomData })
    }

    /// How many streams there are.
    pub const fn count(&self) -> u32 {
        1 << self.bits
    }

    /// The value for STRTAB_BASE.
    pub fn base(&self) -> u64 {
        (STRTAB_BASE::RA::SET + STRTAB_BASE::ADDRESS.val(self.table.phys().0 >> 6)).value
    }

    /// The value for STRTAB_BASE_CFG.
    pub fn configuration(&self) -> u32 {
        let form = match self.two_levels {
            true => STRTAB_BASE_CFG::FMT::TwoLevels + STRTAB_BASE_CFG::SPLIT.val(LEAF_BITS),
            false => STRTAB_BASE_CFG::FMT::Linear,
        };
        (form + STRTAB_BASE_CFG::LOG2SIZE.val(self.bits)).value
    }

    /// The entry of `stream`; `None` where the table has none for it.
    pub fn entry(&self, stream: u32) -> Option<StreamTableEntry> {
        self.entry_cells(stream).map(|cells| StreamTableEntry(hitless::read(cells)))
    }

    /// The context descriptor of `stream`; `None` where it is not translated.
    pub fn context(&self, stream: u32) -> Option<ContextDescriptor> {
        let slot = self.slot_in_use(stream)?;
        self.context_cells(stream, slot).map(|(cells, _)| ContextDescriptor(hitless::read(cells)))
    }

    /// The streams that are not aborted, in order, with their entries.
    pub fn in_use(&self) -> impl Iterator<Item = (u32, StreamTableEntry)> {
        let first_of_groups = (0..self.count()).step_by(LEAF_STREAMS);
        first_of_groups
            .filter(|&first| self.entry_cells(first).is_some())
            .flat_map(|first| first..self.count().min(first + LEAF_STREAMS as u32))
            .filter_map(|stream| Some((stream, self.entry(stream)?)))
            .filter(|(_, entry)| *entry != StreamTableEntry::ABORT)
    }

    /// Configures `stream` as `to`. When this returns the SMMU uses nothing of what it was before, its TLB apart: that
    /// is by ASIDs. With interrupts masked.
    ///
    /// No transaction meets anything but what it was and what it is to be; only where privilege changes, and neither is
    /// abort, some may be refused on the way, with C_BAD_STE.
    ///
    /// # Errors
    /// It is as it was; but where commands failed nothing passes any more, of no stream.
    ///
    /// # Safety
    /// The caller vouches for the stream's accesses, from the call on until the stream is set otherwise:
    /// 1. `smmu` is the one that the table is of, from the same [`probe`](crate::probe).
    /// 2. [`Stream::Bypass`]: the device may read and write all of memory.
    /// 3. [`Stream::Translate`]: what [`ContextDescriptor`] names as its root is a table of the shape that it names,
    ///    which stays one, and so do all that it leads to, and walks find them ([`Smmu::clean`]); and the device may
    ///    access all memory that their leaves map, as they allow. Tables and memory outlive the TLB too:
    ///    [`Smmu::invalidate_asid`] comes before their next use.
    /// 4. The ASID of the context is from the SMMU's [`Asids`](crate::Asids), and translations that it had by other tables
    ///    have been invalidated.
    pub unsafe fn set(&mut self, smmu: &Smmu<P>, stream: u32, to: Stream<'_>) -> Result<(), StreamError> {
        self.make_entry(smmu, stream)?;
        let entry = match to {
            Stream::Abort => StreamTableEntry::ABORT,
            Stream::Bypass => StreamTableEntry::BYPASS,
            Stream::Translate { context, privilege } => {
                let place = self.write_free_context(&smmu.platform, stream, context)?;
                StreamTableEntry::translate(place, privilege, self.format)
            }
        };
        let cells = self.entry_cells(stream).ok_or(StreamError::OutOfMemory(stream))?;
        // Tables, context descriptor, then the entry that leads there.
        smmu.platform.dmb_oshst();
        Ok(hitless::carry_out(cells, &entry, || forget(smmu, Command::cfgi_ste(stream, Scope::Leaves)))?)
    }

    /// Changes the context of `stream`, which is translated. With interrupts masked.
    ///
    /// In between it is as [`hitless::Update`] defines for the two descriptors.
    ///
    /// # Errors
    /// It is as it was; but where commands failed nothing passes any more, of no stream.
    ///
    /// # Safety
    /// As [`Self::set`] with `to`; while the change is under way the contract holds for both descriptors. It holds for
    /// any [`ContextDescriptor::disabled`] of the descriptor in use.
    pub unsafe fn update_context(
        &mut self,
        smmu: &Smmu<P>,
        stream: u32,
        to: &ContextDescriptor,
    ) -> Result<(), StreamError> {
        let in_use = self.slot_in_use(stream).and_then(|slot| self.context_cells(stream, slot));
        let (cells, _) = in_use.ok_or(StreamError::NoContext(stream))?;
        smmu.platform.dmb_oshst();
        Ok(hitless::carry_out(cells, to, || forget(smmu, Command::cfgi_cd(stream, 0, Scope::Leaves)))?)
    }

    /// Sees to it that the table has an entry for `stream`.
    fn make_entry(&mut self, smmu: &Smmu<P>, stream: u32) -> Result<(), StreamError> {
        let group = self.group(stream).ok_or(StreamError::NoSuchStream { stream, bits: self.bits as u8 })?;
        if group[ENTRIES].load(Ordering::Relaxed) != 0 {
            return Ok(());
        }
        let memory = &smmu.platform;
        let leaf = memory.allocate(LEAF_BYTES, LEAF_BYTES).ok_or(StreamError::OutOfMemory(stream))?;
        refuse_all(leaf.words::<P>());
        group[ENTRIES].store(expose(leaf.words::<P>()), Ordering::Relaxed);
        // A walk that finds the descriptor must find the entries refusing, not what the memory was before.
        memory.dmb_oshst();
        let descriptor = LEVEL1::SPAN.val(u64::from(LEAF_BITS) + 1) + LEVEL1::LEAF.val(leaf.phys().0 >> 6);
        self.table.words::<P>()[(stream >> LEAF_BITS) as usize].store(descriptor.value, Ordering::Relaxed);
        // The SMMU may have cached that there is none.
        Ok(forget(smmu, Command::cfgi_ste(stream, Scope::Tables))?)
    }

    /// Writes `context` where the SMMU does not look: a slot of `stream` that its entry does not point to, or did not
    /// since it was invalidated last. Returns where that is.
    fn write_free_context(
        &self,
        memory: &P,
        stream: u32,
        context: &ContextDescriptor,
    ) -> Result<PhysAddr, StreamError> {
        let group = self.group(stream).ok_or(StreamError::OutOfMemory(stream))?;
        if group[CONTEXTS_CPU].load(Ordering::Relaxed) == 0 {
            let contexts =
                memory.allocate(CONTEXTS_BYTES, ContextDescriptor::BYTES).ok_or(StreamError::OutOfMemory(stream))?;
            group[CONTEXTS_CPU].store(expose(contexts.words::<P>()), Ordering::Relaxed);
            group[CONTEXTS_SMMU].store(contexts.phys().0, Ordering::Relaxed);
        }
        let free = self.slot_in_use(stream).map_or(0, |slot| (slot + 1) % CONTEXTS);
        let (cells, place) = self.context_cells(stream, free).ok_or(StreamError::OutOfMemory(stream))?;
        cells.iter().zip(context.0).for_each(|(cell, word)| cell.store(word, Ordering::Relaxed));
        Ok(place)
    }

    /// Which of its context descriptors the entry of `stream` points to.
    fn slot_in_use(&self, stream: u32) -> Option<usize> {
        let place = self.entry(stream)?.context()?;
        (0..CONTEXTS).find(|&slot| self.context_cells(stream, slot).is_some_and(|(_, at)| at == place))
    }

    /// The driver's notes on the 256 streams that `stream` is one of; `None` where there is no such stream.
    fn group(&self, stream: u32) -> Option<&[P::Word]> {
        if stream >= self.count() {
            return None;
        }
        self.groups.words::<P>().chunks_exact(GROUP_WORDS).nth((stream >> LEAF_BITS) as usize)
    }

    fn entry_cells(&self, stream: u32) -> Option<&[P::Word]> {
        let first = self.group(stream)?[ENTRIES].load(Ordering::Relaxed);
        // SAFETY: what is not 0 was exposed, and is a leaf, or the part of an array, that `stream` has an entry in; it
        // is not given back while `self` lives.
        (first != 0).then(|| unsafe { words_at(first, stream as usize % LEAF_STREAMS) })
    }

    fn context_cells(&self, stream: u32, slot: usize) -> Option<(&[P::Word], PhysAddr)> {
        let group = self.group(stream)?;
        let first = group[CONTEXTS_CPU].load(Ordering::Relaxed);
        let index = stream as usize % LEAF_STREAMS * CONTEXTS + slot;
        let place = PhysAddr(group[CONTEXTS_SMMU].load(Ordering::Relaxed) + (index * ContextDescriptor::BYTES) as u64);
        // SAFETY: what is not 0 was exposed, and is room for `CONTEXTS` descriptors of each of 256 streams; it is not
        // given back while `self` lives.
        (first != 0).then(|| (unsafe { words_at(first, index) }, place))
    }
}

/// Has the SMMU forget what it has cached of an entry that has changed. One that does not is shut.
fn forget<P: Platform>(smmu: &Smmu<P>, command: Command) -> Result<(), CommandError> {
    if smmu.platform.leaves_out(Step::Configuration) { Ok(()) } else { smmu.issue_or_shut(command) }
}

/// Every entry refuses. They are zero, and the SMMU does not know of them.
fn refuse_all<W: Word>(entries: &[W]) {
    const { assert!(matches!(StreamTableEntry::ABORT.0, [_, 0, 0, 0, 0, 0, 0, 0])) };
    for entry in entries.chunks_exact(WORDS) {
        entry[0].store(StreamTableEntry::ABORT.0[0], Ordering::Relaxed);
    }
}

/// The address of `words`, for [`words_at`].
fn expose<W>(words: &[W]) -> u64 {
    words.as_ptr().expose_provenance() as u64
}

/// The structure `index` of those at `first`.
///
/// # Safety
/// `first` was exposed, and from there on are more than `index` structures that live while `'a` does.
unsafe fn words_at<'a, W>(first: u64, index: usize) -> &'a [W] {
    let words = ptr::with_exposed_provenance::<W>(first as usize);
    // SAFETY: as promised above.
    unsafe { slice::from_raw_parts(words.add(index * WORDS), WORDS) }
}
