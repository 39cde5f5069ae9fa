//! How the SMMU may see a stream: by everything that its structures were since they were invalidated last.

use std::collections::BTreeSet;

use granule_arch::addr::PhysAddr;

use super::config::{Context, Entry, Stage1};
use super::memory::{Arena, PAGE_WORDS};
use super::registers::SMMUEN;
use super::state::{State, Unordered};
use super::violation::SmmuRule;
use super::{Time, View};

/// The most values of an entry that are tried: eight words, each as it was at several times.
const MOST_MIXTURES: usize = 4096;

impl State {
    /// The values that word `index` may have for a reader at some time since `since`, each with the first such time.
    fn values(&self, index: usize, since: Time) -> Vec<(Time, u64)> {
        let mut values = vec![(since, self.at_first(index))];
        for &(time, value) in self.history.get(&index).into_iter().flatten() {
            if time <= since {
                values[0].1 = value;
            } else if !values.iter().any(|(_, known)| *known == value) {
                values.push((time, value));
            }
        }
        values
    }

    /// Every mixture of what the eight words at `index` may be, with the times of the first of them.
    fn mixtures(&self, index: usize, since: Time) -> Vec<(Time, [u64; 8])> {
        let words: [Vec<(Time, u64)>; 8] = std::array::from_fn(|word| self.values(index + word, since));
        let count = words.iter().map(Vec::len).product::<usize>();
        assert!(count <= MOST_MIXTURES, "{count} mixtures of an entry: too much was stored without an invalidation");
        (0..count)
            .map(|mut which| {
                let mut first = 0;
                let mixture = std::array::from_fn(|word| {
                    let (time, value) = words[word][which % words[word].len()];
                    which /= words[word].len();
                    if word == 0 {
                        first = time;
                    }
                    value
                });
                (first, mixture)
            })
            .collect()
    }

    /// How the SMMU may see the entry of `stream`, and since when it may see that; `now` only as it is now.
    fn entries(&mut self, stream: u32, now: bool) -> Vec<(Time, Option<Entry>)> {
        let latest = self.time;
        let since = |time| if now { latest } else { time };
        let (base, config) = (self.registers.table_base & ((1 << 52) - 1) & !0x3f, self.registers.table_config);
        let (bits, split) = (config & 0x3f, config >> 6 & 0x1f);
        if u64::from(stream) >> bits != 0 {
            return vec![(latest, None)];
        }
        let since_entry = since(self.fetched.of(&self.fetched.entry, stream));
        let places = if config >> 16 & 3 == 1 {
            let level1 = base + u64::from(stream >> split) * 8;
            let Some(index) = self.arena.index(level1) else { return vec![(latest, None)] };
            self.watched.insert(index / PAGE_WORDS);
            let since_level1 = since(self.fetched.of(&self.fetched.level1, stream >> split));
            let leaf = |descriptor: u64| {
                let (span, within) = (descriptor & 0x1f, stream & ((1 << split) - 1));
                let is_there = span != 0 && u64::from(within) < 1 << (span - 1);
                is_there.then(|| (descriptor & ((1 << 52) - 1) & !0x3f) + u64::from(within) * 64)
            };
            self.values(index, since_level1).into_iter().map(|(time, descriptor)| (time, leaf(descriptor))).collect()
        } else {
            vec![(since_entry, Some(base + u64::from(stream) * 64))]
        };
        let mut entries = Vec::new();
        for (time, place) in places {
            let Some(index) = place.and_then(|place| self.arena.index(place)) else {
                entries.push((time, None));
                continue;
            };
            self.watched.insert(index / PAGE_WORDS);
            self.check_ordered(index, time, "a stream table entry");
            let seen = self.mixtures(index, since_entry.max(time)).into_iter();
            entries.extend(seen.map(|(time, words)| (time, Some(Entry::decode(&words, &self.hardware)))));
        }
        entries
    }

    /// The structure at `index` can be reached since `reached`: what was stored to it before must be certain to be
    /// seen.
    fn check_ordered(&mut self, index: usize, reached: Time, what: &str) {
        let late = |store: &&Unordered| store.time < reached;
        if (0..8).filter_map(|word| self.unordered.get(&(index + word))).any(|store| late(&store)) {
            let address = Arena::address(index);
            let text = format!("{what} at {address:#x} was stored and is led to, and no DMB OSHST is in between");
            self.report(SmmuRule::UnorderedStructure, text);
        }
    }

    /// Where the entry of `stream` is now.
    pub(crate) fn place_of_entry(&self, stream: u32) -> Option<PhysAddr> {
        let (base, config) = (self.registers.table_base & ((1 << 52) - 1) & !0x3f, self.registers.table_config);
        let split = config >> 6 & 0x1f;
        if config >> 16 & 3 == 0 {
            return Some(PhysAddr(base + u64::from(stream) * 64));
        }
        let descriptor = self.arena.read(self.arena.index(base + u64::from(stream >> split) * 8)?);
        let leaf = descriptor & ((1 << 52) - 1) & !0x3f;
        (descriptor & 0x1f != 0).then_some(PhysAddr(leaf + u64::from(stream & ((1 << split) - 1)) * 64))
    }

    /// Everything that transactions of `stream` may be treated as.
    pub(crate) fn views(&mut self, stream: u32) -> BTreeSet<View> {
        self.views_at(stream, false)
    }

    /// The one that they are treated as when nothing is cached.
    pub(crate) fn view_now(&mut self, stream: u32) -> View {
        let mut views = self.views_at(stream, true);
        assert!(views.len() == 1, "memory says one thing at a time");
        views.pop_first().expect("one")
    }

    fn views_at(&mut self, stream: u32, now: bool) -> BTreeSet<View> {
        if !self.registers.is_on(SMMUEN) {
            return BTreeSet::from([if self.registers.aborts_when_off() { View::OffAborts } else { View::OffPasses }]);
        }
        let mut views = BTreeSet::new();
        let entries = self.entries(stream, now);
        for (time, entry) in &entries {
            let stage1 = match entry {
                None => {
                    views.insert(View::NoStream);
                    continue;
                }
                Some(Entry::Translate(stage1)) => *stage1,
                Some(other) => {
                    views.insert(View::Entry(*other));
                    continue;
                }
            };
            let Some(index) = self.arena.index(stage1.context) else {
                views.insert(View::Entry(Entry::Bad("the context is no memory")));
                continue;
            };
            self.watched.insert(index / PAGE_WORDS);
            // It may have been fetched since an entry led there, whichever it was.
            let leads_there = entries
                .iter()
                .filter(|(_, other)| matches!(other, Some(Entry::Translate(other)) if other.context == stage1.context));
            let reached = leads_there.map(|(time, _)| *time).min().unwrap_or(*time);
            self.check_ordered(index, reached, "a context descriptor");
            let since = self.fetched.of(&self.fetched.context, stream).max(reached);
            let since = if now { self.time } else { since };
            for (_, words) in self.mixtures(index, since) {
                let context = Context::decode(&words, &stage1, &self.hardware);
                views.insert(View::Translate { stage1: Stage1 { context: 0, ..stage1 }, context });
            }
        }
        views
    }
}
