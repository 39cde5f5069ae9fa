//! Tables of descriptors against maps: whatever is shared, copied or executed, and nothing is left.

use std::boxed::Box;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::mm::frame::tests::leaked;
use crate::smp::{Cpu, CpuId};

type File = Arc<u32>;

impl Filed for File {
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(self, other)
    }

    fn has_memory(&self) -> bool {
        **self % 2 == 1
    }

    fn subject(&self) -> u64 {
        0
    }
}

/// How many files `files` has, and those with memory.
fn peeked(files: &Files<File>) -> (usize, Vec<u32>) {
    let (mut next, mut count, mut met) = (0, 0, Vec::new());
    loop {
        match files.peek(next, &mut |file| met.push(**file)) {
            Peek::Leaf { files, next: behind, .. } => {
                assert!(behind > next);
                (next, count) = (behind, count + files);
            }
            Peek::Busy => panic!("no thread changes them"),
            Peek::End => return (count, met),
        }
    }
}

fn pools() -> &'static Pools<File> {
    Box::leak(Box::new(Pools::new(leaked(2))))
}

/// Each process's files, with the number of its map; processes that share files have one number.
struct Model {
    files: Vec<(Files<File>, usize)>,
    maps: Vec<BTreeMap<u32, (u32, OnExec)>>,
}

#[derive(Clone, Debug)]
enum Step {
    Add(u32, OnExec),
    Duplicate(u32, u32, OnExec),
    Close(u32),
    Mark(u32, OnExec),
    Fork,
    Share,
    Exec,
    End,
}

fn descriptor() -> impl Strategy<Value = u32> {
    prop_oneof![0..6_u32, 60..70_u32, Just(1000), Just(MOST as u32 - 1)]
}

fn on_exec() -> impl Strategy<Value = OnExec> {
    prop_oneof![Just(OnExec::Keep), Just(OnExec::Close)]
}

fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
    let step = prop_oneof![
        6 => (descriptor(), on_exec()).prop_map(|(from, on_exec)| Step::Add(from, on_exec)),
        4 => (descriptor(), descriptor(), on_exec()).prop_map(|(old, new, on_exec)| Step::Duplicate(old, new, on_exec)),
        4 => descriptor().prop_map(Step::Close),
        2 => (descriptor(), on_exec()).prop_map(|(descriptor, on_exec)| Step::Mark(descriptor, on_exec)),
        2 => Just(Step::Fork),
        2 => Just(Step::Share),
        1 => Just(Step::Exec),
        1 => Just(Step::End),
    ];
    prop::collection::vec((0..8_usize, step), 1..60)
}

impl Model {
    fn new() -> Self {
        let first = BTreeMap::from([0, 1, 2].map(|descriptor| (descriptor, (0, OnExec::Keep))));
        Self { files: Vec::from([(Files::new(pools(), &Arc::new(0)).unwrap(), 0)]), maps: Vec::from([first]) }
    }

    fn take(&mut self, who: usize, step: Step, number: u32) -> Result<(), TestCaseError> {
        let place = who % self.files.len();
        let (files, map) = (&self.files[place].0, self.files[place].1);
        let own = &mut self.maps[map];
        match step {
            Step::Add(from, on_exec) => {
                let free = (from..MOST as u32).find(|descriptor| !own.contains_key(descriptor));
                prop_assert_eq!(files.add(Arc::new(number), from, u64::MAX, on_exec).ok(), free);
                own.extend(free.map(|free| (free, (number, on_exec))));
            }
            Step::Duplicate(old, new, on_exec) => {
                let expected = own.get(&old).map(|&(file, _)| file).ok_or(Errno::EBADF);
                prop_assert_eq!(files.duplicate(old, new, on_exec), expected.map(drop));
                own.extend(expected.map(|file| (new, (file, on_exec))));
            }
            Step::Close(descriptor) => {
                let expected = own.remove(&descriptor).map(|(file, _)| file).ok_or(Errno::EBADF);
                prop_assert_eq!(files.close(descriptor).map(|file| *file), expected);
            }
            Step::Mark(descriptor, on_exec) => {
                let expected = own.get_mut(&descriptor).map(|entry| entry.1 = on_exec).ok_or(Errno::EBADF);
                prop_assert_eq!(files.set_on_exec(descriptor, on_exec), expected);
            }
            Step::Fork => {
                let (copy, own) = (files.fork(), own.clone());
                self.maps.push(own);
                self.files.push((copy, self.maps.len() - 1));
            }
            Step::Share => {
                let new = files.fork();
                new.share(files).unwrap();
                self.files.push((new, map));
            }
            Step::Exec => {
                let mut after = own.clone();
                after.retain(|_, (_, on_exec)| *on_exec == OnExec::Keep);
                let prepared = files.prepare_exec().unwrap();
                prop_assert!(files.is_as_prepared(&prepared));
                files.exec(prepared);
                self.maps.push(after);
                self.files[place].1 = self.maps.len() - 1;
            }
            Step::End if self.files.len() > 1 => {
                files.clear();
                prop_assert_eq!(peeked(files), (0, Vec::new()));
                prop_assert!(files.get(0).is_none() && !files.has_room(u64::MAX));
                prop_assert_eq!(files.add(Arc::new(0), 0, 5, OnExec::Keep), Err(Errno::EBADF));
                self.files.remove(place);
            }
            Step::End => {}
        }
        Ok(())
    }

    fn check(&self) -> Result<(), TestCaseError> {
        for (files, map) in &self.files {
            let map = &self.maps[*map];
            for descriptor in (0..130).chain([1000, MOST as u32 - 1, MOST as u32, u32::MAX]) {
                let found = files.get_with_on_exec(descriptor).map(|(file, on_exec)| (*file, on_exec));
                prop_assert_eq!(found, map.get(&descriptor).copied());
            }
            let with_memory = map.values().map(|(file, _)| *file).filter(|file| file % 2 == 1);
            prop_assert_eq!(peeked(files), (map.len(), with_memory.collect()));
            let lowest = (0..).find(|descriptor| !map.contains_key(descriptor)).unwrap();
            prop_assert!(!files.has_room(lowest.into()) && files.has_room(u64::from(lowest) + 1));
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn tables_are_maps(steps in steps()) {
        let mut model = Model::new();
        let pools = model.files[0].0.pools;
        for (number, (who, step)) in (1..).zip(steps) {
            model.take(who, step, number)?;
            model.check()?;
        }
        drop(model);
        prop_assert_eq!(pools.stats().objects, 0);
    }
}

#[test]
fn each_file_goes_with_its_last_descriptor() {
    let (pools, file) = (pools(), Arc::new(7));
    let files = Files::new(pools, &file).unwrap();
    let copy = files.fork();
    assert_eq!((Arc::strong_count(&file), pools.stats().objects), (4, 1), "a fork copies nothing");
    drop(copy.close(2).unwrap());
    assert_eq!((Arc::strong_count(&file), pools.stats().objects), (6, 2));
    copy.duplicate(0, 900, OnExec::Close).unwrap();
    let prepared = copy.prepare_exec().unwrap();
    // A change since is noticed, and the exec prepared again.
    copy.duplicate(0, 901, OnExec::Close).unwrap();
    assert!(!copy.is_as_prepared(&prepared));
    drop(prepared);
    copy.exec(copy.prepare_exec().unwrap());
    assert_eq!(Arc::strong_count(&file), 6);
    // An exec that need not close a file copies nothing.
    copy.duplicate(0, 900, OnExec::Close).unwrap();
    drop(copy.close(900).unwrap());
    let before = pools.stats().objects;
    let prepared = copy.prepare_exec().unwrap();
    assert_eq!(pools.stats().objects, before);
    copy.exec(prepared);
    assert_eq!(copy.get(900), None);
    files.clear();
    drop(copy);
    assert_eq!((Arc::strong_count(&file), pools.stats().objects), (1, 0));
}

/// With each number of frames that may run out: an error changes nothing.
#[test]
fn where_memory_runs_out_all_is_as_before() {
    let mut refused = 0;
    for frames in 1..12 {
        let (frames_of_all, file, cpu) = (leaked(2), Arc::new(7), Cpu::new(CpuId(0)));
        let pools = Box::leak(Box::new(Pools::new(frames_of_all)));
        let mut taken: Vec<_> = std::iter::from_fn(|| frames_of_all.alloc(&cpu).ok()).collect();
        taken.drain(..frames).for_each(|frame| frames_of_all.free(&cpu, frame));
        let Ok(files) = Files::new(pools, &file) else { continue };
        let copies: Vec<_> = (0..20).map(|_| files.fork()).collect();
        for (copy, descriptor) in copies.iter().zip(64..) {
            let before = (Arc::strong_count(&file), pools.stats().objects);
            if copy.duplicate(0, 64 * (descriptor - 60), OnExec::Keep) == Err(Errno::ENOMEM) {
                refused += 1;
                assert!(copy.get(0).is_some() && copy.get(64 * (descriptor - 60)).is_none());
                assert!(Arc::strong_count(&file) >= before.0 && pools.stats().objects >= before.1);
            }
        }
        drop((copies, files));
        assert_eq!((Arc::strong_count(&file), pools.stats().objects), (1, 0));
    }
    assert!(refused > 50, "{refused}");
}
