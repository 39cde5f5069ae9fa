//! Memory that CPUs and the model SMMU share, word by word.
//!
//! The model's own: each store to it is seen when it is made. A [`Word`] is reached by reference, as on the metal; to
//! which model it belongs is found by its address. Or a test's ([`Elsewhere`]): what has changed in it is seen when
//! anything is asked of the SMMU.
//!
//! An SMMU that does not see the CPUs' caches reads what was cleaned last ([`Memory`]). The caches write nothing back
//! by themselves: what a missing clean leaves in them stays there. So the order of two cleans is not judged.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::Shared;
use crate::machine::lock;

/// Where the model's own memory is for the SMMU. Nothing else is there.
const BASE: u64 = 0x8000_0000;

/// A word that CPUs and the model SMMU share.
#[derive(Debug)]
#[repr(transparent)]
pub struct Word(AtomicU64);

impl Word {
    pub(crate) const fn new(value: u64) -> Self {
        Self(AtomicU64::new(value))
    }

    /// Runs `change` with the model looking on, if the word is memory of one, and passes it the word's new value.
    fn observed<T>(&self, change: impl FnOnce(&AtomicU64) -> T) -> T {
        let address = std::ptr::from_ref(self).addr();
        let owner = {
            let arenas = ARENAS.lock().unwrap_or_else(PoisonError::into_inner);
            let below = arenas.range(..=address).next_back();
            below
                .filter(|(_, (end, _))| address < *end)
                .and_then(|(start, (_, owner))| Some((*start, owner.upgrade()?)))
        };
        let Some((start, owner)) = owner else { return change(&self.0) };
        let mut state = owner.state();
        let result = change(&self.0);
        state.stored(Arena::first() + (address - start) / 8, self.0.load(Ordering::Relaxed));
        result
    }
}

impl granule_smmuv3::Word for Word {
    fn load(&self, order: Ordering) -> u64 {
        self.0.load(order)
    }

    fn store(&self, value: u64, order: Ordering) {
        self.observed(|word| word.store(value, order));
    }

    fn exchange(&self, current: u64, new: u64, order: Ordering) -> bool {
        self.observed(|word| word.compare_exchange(current, new, order, Ordering::Relaxed).is_ok())
    }
}

/// The owner of each range of memory: first address, and the one after the last.
static ARENAS: Mutex<BTreeMap<usize, (usize, Weak<Shared>)>> = Mutex::new(BTreeMap::new());

/// Words of a page.
pub(crate) const PAGE_WORDS: usize = 512;

/// Where the word at a physical address is, if there is memory. The words of a page follow one another.
pub type Elsewhere = Box<dyn Fn(u64) -> Option<NonNull<AtomicU64>> + Send + Sync>;

/// The contents of memory below the CPUs' caches.
#[derive(Default)]
struct Memory {
    /// The words that were cleaned, or written by the SMMU, as they were then.
    words: HashMap<usize, u64>,
    /// Words that the CPUs have mapped Non-cacheable.
    uncached: Vec<Range<usize>>,
}

/// The word in a test's memory that was never cleaned: an entry of a table that leads nowhere, and no CPU's.
const NEVER_CLEANED: u64 = 0x5a5a_5a5a_5a5a_5a5b;

/// The memory of one model: its own, and a test's, if that brings some.
pub(crate) struct Arena {
    words: Box<[Word]>,
    elsewhere: Option<Elsewhere>,
    /// `None` where the SMMU sees the caches.
    memory: Option<Mutex<Memory>>,
}

impl Arena {
    pub(crate) fn new(bytes: usize, elsewhere: Option<Elsewhere>, sees_caches: bool) -> Self {
        let memory = (!sees_caches).then(Mutex::default);
        Self { words: (0..bytes / 8).map(|_| Word::new(0)).collect(), elsewhere, memory }
    }

    /// The CPUs have `words` mapped Non-cacheable, where the SMMU does not see their caches.
    pub(crate) fn map_uncached(&self, words: Range<usize>) {
        if let Some(memory) = &self.memory {
            lock(memory).uncached.push(words);
        }
    }

    /// Whether the SMMU reads word `index` as the CPUs do, without a clean.
    pub(crate) fn is_seen(&self, index: usize) -> bool {
        self.memory.as_ref().is_none_or(|memory| lock(memory).uncached.iter().any(|words| words.contains(&index)))
    }

    /// Where word `index` is and what CPUs have stored there, if the SMMU reads something else.
    pub(crate) fn in_caches_alone(&self, index: usize) -> Option<(u64, u64)> {
        let cached = self.at(index).load(Ordering::Acquire);
        (self.read(index) != cached).then_some((Self::address(index), cached))
    }

    /// Writes word `index` to memory; its value, if that is another one there.
    pub(crate) fn clean(&self, index: usize) -> Option<u64> {
        let (before, value) = (self.read(index), self.at(index).load(Ordering::Acquire));
        let memory = self.memory.as_ref().filter(|_| !self.is_seen(index))?;
        lock(memory).words.insert(index, value);
        (before != value).then_some(value)
    }

    /// From now on stores to it are seen by `owner`.
    pub(crate) fn belongs_to(&self, owner: &Arc<Shared>) {
        let range = self.words.as_ptr_range();
        let mut arenas = ARENAS.lock().unwrap_or_else(PoisonError::into_inner);
        arenas.insert(range.start.addr(), (range.end.addr(), Arc::downgrade(owner)));
    }

    /// Words of its own.
    pub(crate) fn len(&self) -> usize {
        self.words.len()
    }

    /// Whether there is memory in which stores are not observed.
    pub(crate) const fn is_elsewhere(&self) -> bool {
        self.elsewhere.is_some()
    }

    pub(crate) fn word(&self, index: usize) -> &Word {
        &self.words[index - Self::first()]
    }

    /// Where the CPU finds word `index`.
    pub(crate) fn pointer(&self, index: usize) -> NonNull<u64> {
        NonNull::from(&self.words[index - Self::first()..]).cast()
    }

    /// The number of the first word of its own. All memory is numbered by its physical addresses.
    pub(crate) const fn first() -> usize {
        BASE as usize / 8
    }

    /// The physical address of word `index`.
    pub(crate) const fn address(index: usize) -> u64 {
        index as u64 * 8
    }

    /// The word at the physical address `address`, if that is memory.
    pub(crate) fn index(&self, address: u64) -> Option<usize> {
        if !address.is_multiple_of(8) {
            return None;
        }
        let index = usize::try_from(address / 8).ok()?;
        let is_elsewhere = || self.elsewhere.as_ref().is_some_and(|find| find(address).is_some());
        (self.is_own(index) || is_elsewhere()).then_some(index)
    }

    fn is_own(&self, index: usize) -> bool {
        index.checked_sub(Self::first()).is_some_and(|own| own < self.words.len())
    }

    fn at(&self, index: usize) -> &AtomicU64 {
        if self.is_own(index) {
            return &self.words[index - Self::first()].0;
        }
        let find = self.elsewhere.as_ref().expect("an index is that of memory");
        let word = find(Self::address(index)).expect("an index is that of memory");
        // SAFETY: the caller that brought the memory has promised that what `find` returns are words that stay
        // (`SmmuModel::over`).
        #[allow(unsafe_code, reason = "memory that a test brings")]
        unsafe {
            word.as_ref()
        }
    }

    /// Calls `each` with each word of page `page` as the SMMU reads it, and its index.
    pub(crate) fn for_each_word(&self, page: usize, mut each: impl FnMut(usize, u64)) {
        let first = page * PAGE_WORDS;
        match &self.memory {
            None => (first..).zip(self.page(page)).for_each(|(index, word)| each(index, word.load(Ordering::Acquire))),
            Some(_) => (first..first + PAGE_WORDS).for_each(|index| each(index, self.read(index))),
        }
    }

    /// The words of page `page`.
    fn page(&self, page: usize) -> &[AtomicU64] {
        let first = std::ptr::from_ref(self.at(page * PAGE_WORDS));
        // SAFETY: the model's own memory is whole pages, and the caller that brought other memory has promised that its
        // pages are contiguous and stay.
        #[allow(unsafe_code, reason = "memory that a test brings")]
        unsafe {
            std::slice::from_raw_parts(first, PAGE_WORDS)
        }
    }

    /// The word as the SMMU reads it.
    pub(crate) fn read(&self, index: usize) -> u64 {
        let Some(memory) = self.memory.as_ref().filter(|_| !self.is_seen(index)) else {
            return self.at(index).load(Ordering::Acquire);
        };
        let at_first = if self.is_own(index) { 0 } else { NEVER_CLEANED };
        lock(memory).words.get(&index).copied().unwrap_or(at_first)
    }

    /// The SMMU's own write: no CPU's store.
    pub(crate) fn write(&self, index: usize, value: u64) {
        match self.memory.as_ref().filter(|_| !self.is_seen(index)) {
            None => self.at(index).store(value, Ordering::Release),
            Some(memory) => drop(lock(memory).words.insert(index, value)),
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let start = self.words.as_ptr().addr();
        ARENAS.lock().unwrap_or_else(PoisonError::into_inner).remove(&start);
    }
}
