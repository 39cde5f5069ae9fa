//! Memory that CPUs and the model SMMU share, word by word. Each store to it is seen by the model when it is made.
//!
//! A [`Word`] is reached by reference, as on the metal; to which model it belongs is found by its address.

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::Shared;

/// Where the memory is for the SMMU. Nothing else is there.
pub(crate) const BASE: u64 = 0x8000_0000;

/// A word that CPUs and the model SMMU share.
#[derive(Debug)]
#[repr(transparent)]
pub struct Word(AtomicU64);

impl Word {
    pub(crate) const fn new(value: u64) -> Self {
        Self(AtomicU64::new(value))
    }

    /// Runs `change` with the model looking on, if the word is memory of one, and tells it what the word has become.
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
        state.stored((address - start) / 8, self.0.load(Ordering::Relaxed));
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

/// Whose memory is where: first address, and the one behind the last.
static ARENAS: Mutex<BTreeMap<usize, (usize, Weak<Shared>)>> = Mutex::new(BTreeMap::new());

/// The memory of one model.
#[derive(Debug)]
pub(crate) struct Arena {
    words: Box<[Word]>,
}

impl Arena {
    pub(crate) fn new(bytes: usize) -> Self {
        Self { words: (0..bytes / 8).map(|_| Word::new(0)).collect() }
    }

    /// From now on stores to it are seen by `owner`.
    pub(crate) fn belongs_to(&self, owner: &Arc<Shared>) {
        let range = self.words.as_ptr_range();
        let mut arenas = ARENAS.lock().unwrap_or_else(PoisonError::into_inner);
        arenas.insert(range.start.addr(), (range.end.addr(), Arc::downgrade(owner)));
    }

    pub(crate) fn len(&self) -> usize {
        self.words.len()
    }

    pub(crate) fn word(&self, index: usize) -> &Word {
        &self.words[index]
    }

    /// Where the CPU finds word `index`.
    pub(crate) fn pointer(&self, index: usize) -> NonNull<u64> {
        NonNull::from(&self.words[index..]).cast()
    }

    /// The word at the physical address `address`, if it is one of this memory's.
    pub(crate) fn index(&self, address: u64) -> Option<usize> {
        let index = usize::try_from(address.checked_sub(BASE)? / 8).ok()?;
        (address.is_multiple_of(8) && index < self.words.len()).then_some(index)
    }

    /// What the SMMU reads.
    pub(crate) fn read(&self, index: usize) -> u64 {
        self.words[index].0.load(Ordering::Acquire)
    }

    /// The SMMU's own write: no CPU's store.
    pub(crate) fn write(&self, index: usize, value: u64) {
        self.words[index].0.store(value, Ordering::Release);
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let start = self.words.as_ptr().addr();
        ARENAS.lock().unwrap_or_else(PoisonError::into_inner).remove(&start);
    }
}
