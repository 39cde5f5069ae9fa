//! Changing a stream table entry or a context descriptor that the SMMU may read at any moment.
//!
//! IHI 0070, 3.21.3 (configuration structures and invalidation). Two facts make the rules:
//! - the SMMU reads an entry of eight words in any order and at any time, and only a single word is never torn: until
//!   an invalidation (`CMD_CFGI_*`, completed by a `CMD_SYNC`) each word may be any that it was since the last one;
//! - which bits count depends on other bits. A bypassing entry has no context pointer, a descriptor whose EPD0 is set
//!   no table.
//!
//! So words that do not count yet are written first, and invalidated; then the one word that makes the difference,
//! whose old value means the old entry and whose new value the new one; then what counts no more. Where two words that
//! count differ there is no such order: the entry is made invalid in between, transactions of that moment are aborted,
//! and never does the SMMU see half of one and half of the other.
//!
//! [`Update`] is the order as a value: a test looks at it store by store, the driver carries it out ([`carry_out`]).

use core::sync::atomic::Ordering;

use tock_registers::RegisterLongName;
use tock_registers::fields::Field;

use crate::platform::Word;

/// Words of a stream table entry and of a context descriptor.
pub const WORDS: usize = 8;

/// An entry by its words.
pub type Words = [u64; WORDS];

/// A structure of eight words of which only some bits count at a time.
pub trait Entry: Copy {
    /// V, in word 0. Where it is clear nothing else counts.
    const VALID: u64;

    /// Its words.
    fn words(&self) -> &Words;

    /// Which bits the SMMU looks at where an entry is `words`.
    fn used(words: &Words) -> Words;
}

/// The next step of a change of an entry in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryStep {
    /// Write this word, by one store of 64 bits.
    Store {
        /// Which, from 0.
        word: usize,
        /// Its new value.
        value: u64,
    },
    /// Invalidate what the SMMU may have read of the entry so far, and wait until it is done.
    Invalidate,
}

/// The way from one value of an entry to another: [`EntryStep`]s in order.
///
/// It is at most three images of the entry. From image to image the words that differ are stored, in any order, for no
/// mixture of two neighbours is anything but one of them; an invalidation ends each.
#[derive(Clone, Debug)]
pub struct Update {
    current: Words,
    hitless: bool,
    images: [Words; 3],
    /// Where the next step is: an image and a word of it. The word after the last is the invalidation.
    image: usize,
    word: usize,
    /// Something was stored since the last invalidation.
    dirty: bool,
}

impl Update {
    /// From what an entry is now, `current`, to `target`.
    pub fn new<E: Entry>(current: &Words, target: &E) -> Self {
        let target = *target.words();
        let (now, then) = (E::used(current), E::used(&target));
        // Bits that the SMMU ignores so far, taken over: what can be prepared unseen.
        let prepared: Words = core::array::from_fn(|word| current[word] & now[word] | target[word] & !now[word]);
        let mut differing = (0..WORDS).filter(|&word| (prepared[word] ^ target[word]) & then[word] != 0);
        let (hitless, images) = match (differing.next(), differing.next()) {
            (None, _) => (true, [target; 3]),
            (Some(critical), None) => {
                let with = |words: &Words| {
                    core::array::from_fn(|word| if word == critical { words[word] } else { prepared[word] })
                };
                let (before, after) = (with(current), with(&target));
                (true, [before, after, target])
            }
            (Some(_), Some(_)) => {
                let (mut off, mut filled) = (*current, target);
                off[0] &= !E::VALID;
                filled[0] = off[0];
                (false, [off, filled, target])
            }
        };
        Self { current: *current, hitless, images, image: 0, word: 0, dirty: false }
    }

    /// Whether the SMMU sees the old entry or the new one at each moment, and nothing else.
    pub const fn is_hitless(&self) -> bool {
        self.hitless
    }
}

impl Iterator for Update {
    type Item = EntryStep;

    fn next(&mut self) -> Option<EntryStep> {
        while let Some(image) = self.images.get(self.image) {
            while let Some((&value, now)) = image.get(self.word).zip(self.current.get_mut(self.word)) {
                let word = self.word;
                self.word += 1;
                if *now != value {
                    *now = value;
                    self.dirty = true;
                    return Some(EntryStep::Store { word, value });
                }
            }
            (self.image, self.word) = (self.image + 1, 0);
            if core::mem::take(&mut self.dirty) {
                return Some(EntryStep::Invalidate);
            }
        }
        None
    }
}

/// Makes the entry in `cells`, [`WORDS`] of them, what `target` is. `invalidate` issues the invalidation of what the
/// SMMU may have read of the entry, and waits; its queue orders the stores before the command. The caller alone writes
/// to `cells`, and has made visible what the entry will point to.
///
/// # Errors
/// `invalidate` failed: which entry the SMMU sees is not known then.
pub fn carry_out<E: Entry, W: Word, Failure>(
    cells: &[W],
    target: &E,
    mut invalidate: impl FnMut() -> Result<(), Failure>,
) -> Result<(), Failure> {
    for step in Update::new(&read(cells), target) {
        match step {
            EntryStep::Store { word, value } => cells[word].store(value, Ordering::Relaxed),
            EntryStep::Invalidate => invalidate()?,
        }
    }
    Ok(())
}

/// The words of the entry in `cells`.
pub(crate) fn read<W: Word>(cells: &[W]) -> Words {
    core::array::from_fn(|word| cells[word].load(Ordering::Relaxed))
}

/// The bits of `field`, where they are.
pub(crate) const fn in_place(field: Field<u64, impl RegisterLongName>) -> u64 {
    field.mask << field.shift
}
