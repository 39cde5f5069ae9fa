//! Random numbers that one process cannot predict for another, nor from those that it has been given.
//!
//! A key of 32 bytes ([`KeyPool`]) is all that is kept. The bytes of a source are absorbed into it; a caller gets
//! numbers of ChaCha20 ([`Stream`]) under a key that the pool derives. Pool and stream replace their own keys in the same
//! step, so that neither leads back to what was given before (fast key erasure, as in Linux's `drivers/char/random.c`).
//!
//! The sources, in this order ([`Source`]): the CPU's generator (RNDR), the device tree's `rng-seed`, a virtio
//! generator, the jitter of the counter. The first two are absorbed at boot. A device is asked where neither is there,
//! when numbers are needed for the first time and then every [`RESEED`] seconds; a boot that has jitter alone prints a
//! warning. Each stream also absorbs the counter, and RNDR where the CPU has it.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use granule_arch::random::Rndr;
use granule_arch::timer;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};
use spin::Once;

use crate::chip::timer::uptime;
use crate::smp::cpu::Cpu;
use crate::sync::{IrqLock, rank};

/// Bytes of a key.
const KEY: usize = 32;
/// Seconds after which a device is asked again.
const RESEED: u64 = 300;
/// Times that the counter is read for its jitter. Of each reading a fraction of a bit is taken to be unknown.
const JITTER_READINGS: usize = 256;

static POOL: IrqLock<KeyPool, { rank::RANDOM }> = IrqLock::new(KeyPool::new());
/// The generator of the CPUs, where all have it.
static RNDR: Once<Option<Rndr>> = Once::new();
static DEVICE: Once<DeviceSource> = Once::new();
/// The second of the uptime at which a device is asked next; 0 before the first time.
static NEXT_RESEED: AtomicU64 = AtomicU64::new(0);

/// Asks a device for a seed. The thread may sleep; no lock is held. `None` where the device gives nothing.
pub type DeviceSource = fn(&Cpu) -> Option<[u8; KEY]>;

/// Where numbers come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// The CPU's generator.
    Rndr,
    /// The device tree's `rng-seed`.
    Seed,
    /// A device.
    Device,
    /// The counter.
    Jitter,
}

/// "RNDR, rng-seed".
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sources(u8);

impl Sources {
    const NAMES: [(Source, &str); 4] = [
        (Source::Rndr, "RNDR"),
        (Source::Seed, "rng-seed"),
        (Source::Device, "a virtio device"),
        (Source::Jitter, "the counter's jitter"),
    ];

    const fn with(self, source: Source) -> Self {
        Self(self.0 | 1 << source as u8)
    }

    /// Whether `source` is among them.
    pub const fn has(self, source: Source) -> bool {
        self.0 & 1 << source as u8 != 0
    }

    /// Whether an observer of the machine cannot guess what was absorbed.
    pub const fn is_seeded(self) -> bool {
        self.has(Source::Rndr) || self.has(Source::Seed) || self.has(Source::Device)
    }
}

impl fmt::Display for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (_, name) in Self::NAMES.into_iter().filter(|(source, _)| self.has(*source)) {
            write!(f, "{separator}{name}")?;
            separator = ", ";
        }
        Ok(())
    }
}

/// The key, and what went into it.
struct KeyPool {
    key: [u8; KEY],
    sources: Sources,
}

impl KeyPool {
    const fn new() -> Self {
        Self { key: [0; KEY], sources: Sources(0) }
    }

    /// Has the key depend on `bytes` as well. Choosing them without the key does not reveal the next one.
    fn absorb(&mut self, bytes: &[u8]) {
        for block in bytes.chunks(KEY) {
            for (key, byte) in self.key.iter_mut().zip(block) {
                *key ^= byte;
            }
            let mut generator = ChaCha20Rng::from_seed(self.key);
            generator.fill_bytes(&mut self.key);
        }
    }

    /// A key for a stream. The pool's own is another afterwards, from which this one cannot be computed.
    #[inline(never)]
    fn derive(&mut self, fresh: &[u8; 16]) -> [u8; KEY] {
        for (key, byte) in self.key.iter_mut().zip(fresh) {
            *key ^= byte;
        }
        let mut generator = ChaCha20Rng::from_seed(self.key);
        let mut derived = [0; KEY];
        generator.fill_bytes(&mut self.key);
        generator.fill_bytes(&mut derived);
        derived
    }
}

/// Random numbers for one caller. It takes no lock, so a long call may be interrupted and may sleep.
pub struct Stream([u8; KEY]);

impl Stream {
    /// Fills `bytes`. The key is another afterwards, as the pool's is.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        let mut generator = ChaCha20Rng::from_seed(self.0);
        generator.fill_bytes(&mut self.0);
        generator.fill_bytes(bytes);
    }
}

/// Absorbs what there is at boot: `seed` of the device tree, `rndr`, and jitter.
pub fn init(seed: &[u8], rndr: Option<Rndr>) {
    RNDR.call_once(|| rndr);
    let jitter = jitter(timer::count);
    let mut pool = POOL.lock();
    if let Some(rndr) = rndr {
        let numbers = [0; KEY / 8].map(|_: u64| rndr.number());
        // All at once: the generator runs for each block.
        pool.absorb(numbers.map(|number| number.unwrap_or_default().to_le_bytes()).as_flattened());
        if numbers.iter().all(Option::is_some) {
            pool.sources = pool.sources.with(Source::Rndr);
        }
    }
    if seed.len() >= KEY {
        pool.absorb(seed);
        pool.sources = pool.sources.with(Source::Seed);
    }
    pool.absorb(&jitter);
    pool.sources = pool.sources.with(Source::Jitter);
    crate::log::debug!("random numbers from {}", pool.sources);
}

/// Sets the device to ask. Only the first call counts.
pub fn set_device(source: DeviceSource) {
    DEVICE.call_once(|| source);
}

/// The sources that the pool has absorbed so far.
pub fn sources() -> Sources {
    POOL.lock().sources
}

/// Numbers for a thread that may sleep: a device is asked where it has to be. No lock is held. `cpu` is this CPU.
pub fn stream(cpu: &Cpu) -> Stream {
    let sources = sources();
    if !sources.has(Source::Rndr) && !sources.has(Source::Seed) {
        reseed_from_device(cpu);
    }
    Stream(POOL.lock().derive(&fresh()))
}

/// Has all numbers depend on `bytes` as well, whatever they are. May be called in any context. The lock is held for one
/// key, however many bytes there are.
pub fn mix(bytes: &[u8]) {
    let mut digest = KeyPool::new();
    digest.absorb(bytes);
    POOL.lock().absorb(&digest.key);
}

/// A number for the kernel's own use, at once: no device is asked.
pub fn number() -> u64 {
    POOL.lock().derive(&fresh()).into_iter().fold(0, |number, byte| number << 8 | u64::from(byte))
}

/// Bytes that differ for each stream: the counter, and a number of RNDR, or 0 without it.
fn fresh() -> [u8; 16] {
    let number = RNDR.get().copied().flatten().and_then(Rndr::number);
    let mut bytes = [0; 16];
    let words = [timer::count(), number.unwrap_or(0)];
    bytes.as_chunks_mut::<8>().0.iter_mut().zip(words).for_each(|(half, word)| *half = word.to_le_bytes());
    bytes
}

/// Asks the device, once in a while; of several threads one.
fn reseed_from_device(cpu: &Cpu) {
    let now = uptime().as_secs();
    let due = NEXT_RESEED.load(Ordering::Relaxed);
    if now < due || NEXT_RESEED.compare_exchange(due, now + RESEED, Ordering::Relaxed, Ordering::Relaxed).is_err() {
        return;
    }
    let given = DEVICE.get().and_then(|source| source(cpu));
    let mut pool = POOL.lock();
    if let Some(bytes) = given {
        pool.absorb(&bytes);
        let before = pool.sources;
        pool.sources = before.with(Source::Device);
        drop(pool);
        if !before.has(Source::Device) {
            crate::log::debug!("random numbers from {before}, and now from a virtio device");
        }
    } else if !pool.sources.is_seeded() && due == 0 {
        drop(pool);
        crate::log::warn!("random numbers from the counter's jitter alone: no RNDR, no rng-seed, no virtio device");
    }
}

/// The differences between readings of a counter, folded: outside of this CPU it cannot be seen when it is interrupted,
/// waits for memory or is emulated.
fn jitter(count: impl Fn() -> u64) -> [u8; KEY] {
    let mut words = [0_u64; KEY / 8];
    let mut last = count();
    for _ in 0..JITTER_READINGS / words.len() {
        for word in &mut words {
            let now = count();
            // An odd factor loses nothing of what is there (splitmix64's).
            *word = word.rotate_left(7).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ now.wrapping_sub(last) ^ now << 32;
            last = now;
        }
    }
    let mut bytes = [0; KEY];
    bytes.as_chunks_mut::<8>().0.iter_mut().zip(words).for_each(|(eight, word)| *eight = word.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;

    use super::{KeyPool, Source, Sources, Stream, jitter};

    fn pool(absorbed: &[&[u8]]) -> KeyPool {
        let mut pool = KeyPool::new();
        absorbed.iter().for_each(|bytes| pool.absorb(bytes));
        pool
    }

    fn draw(pool: &mut KeyPool, bytes: usize) -> Vec<u8> {
        let mut drawn = vec![0; bytes];
        Stream(pool.derive(&[0; 16])).fill(&mut drawn);
        drawn
    }

    #[test]
    fn every_byte_that_is_absorbed_counts() {
        let seed = [7_u8; 64];
        let whole = draw(&mut pool(&[&seed]), 64);
        assert_eq!(whole, draw(&mut pool(&[&seed]), 64), "nothing else counts");
        for at in 0..seed.len() {
            let mut other = seed;
            other[at] ^= 1;
            assert_ne!(whole, draw(&mut pool(&[&other]), 64), "byte {at}");
        }
        assert_ne!(whole, draw(&mut pool(&[&seed, &[0]]), 64), "zeros are absorbed too");
    }

    #[test]
    fn a_pool_keeps_nothing_that_it_has_given() {
        let mut pool = pool(&[b"a seed"]);
        let before = pool.key;
        let given = pool.derive(&[0; 16]);
        assert!(pool.key != before && pool.key != given);
        let next = pool.derive(&[0; 16]);
        assert_ne!(next, given);
        // The state after the first number gives the second, and no number that was given before.
        let mut later = KeyPool { key: pool.key, sources: Sources(0) };
        assert_ne!(later.derive(&[0; 16]), next);
    }

    #[test]
    fn a_stream_keeps_nothing_that_it_has_given() {
        let (key, mut given) = ([7; 32], [[0; 64]; 3]);
        let mut stream = Stream(key);
        for drawn in &mut given {
            let before = stream.0;
            stream.fill(drawn);
            assert!(stream.0 != before && !drawn.windows(32).any(|part| part == stream.0 || part == before));
        }
        assert!(given[0] != given[1] && given[1] != given[2] && given[0] != given[2]);
    }

    #[test]
    fn what_is_new_counts_in_every_stream() {
        let [mut a, mut b] = [(); 2].map(|()| pool(&[b"a seed"]));
        assert_ne!(a.derive(&[0; 16]), b.derive(&[1; 16]));
        assert_ne!(a.derive(&[0; 16]), b.derive(&[0; 16]), "also later");
    }

    #[test]
    fn each_reading_of_the_counter_counts() {
        let read = |late: u64| {
            let count = Cell::new(0);
            jitter(|| {
                count.set(count.get() + 1);
                count.get() * 16 + u64::from(count.get() >= late)
            })
        };
        let all: std::collections::BTreeSet<_> = (1..=256).map(read).collect();
        assert_eq!(all.len(), 256);
    }

    #[test]
    fn jitter_alone_is_no_seed() {
        let none = Sources::default();
        assert!(!none.with(Source::Jitter).is_seeded());
        assert!(none.with(Source::Rndr).is_seeded() && none.with(Source::Seed).is_seeded());
        assert_eq!(none.with(Source::Seed).with(Source::Rndr).to_string(), "RNDR, rng-seed");
    }
}
