//! Random calls on shared blocks, with a device.

use super::*;

/// A device that keeps each entry that it has read until it is invalidated or upgraded.
#[derive(Default)]
struct Device(Mutex<BTreeMap<u64, Descriptor>>);

impl Device {
    fn forget(&self, start: VirtAddr, end: VirtAddr) {
        self.0.lock().unwrap().retain(|&page, _| page < start.0 || page >= end.0);
    }
}

impl Subscriber for Device {
    fn invalidate_range_start(&self, range: &Range) {
        if range.event == Event::ProtectionUpgrade {
            self.forget(range.start, range.end);
        }
    }

    fn invalidate_secondary_tlbs(&self, start: VirtAddr, end: VirtAddr) {
        self.forget(start, end);
    }
}

/// The expected state of a page of a space: its protection, its file, and the file's page.
type Mapped = Option<(Protection, usize, u64)>;

/// A space with a device, and what its pages should be.
struct Place {
    space: SpaceRef,
    device: Subscription<Device, SpaceRef>,
    expected: Vec<Mapped>,
}

impl Place {
    fn new(space: SpaceRef, expected: Vec<Mapped>) -> Self {
        let device = Subscription::new(space.clone(), Device::default(), 0).unwrap();
        Self { space, device, expected }
    }
}

/// Pages of each space and each file, and files.
const ALL: u64 = 2 * BLOCK_PAGES;
const FILES: u64 = 2;

/// Files with the first bytes of their pages, those before the end, and spaces that share them.
struct Shares<'r> {
    rig: &'r Rig,
    numbers: Numbers,
    files: Vec<(Counted<Object>, Vec<u8>)>,
    places: Vec<Place>,
}

impl Shares<'_> {
    /// Some pages of so many, more often whole blocks.
    fn range(&mut self, all: u64) -> (u64, u64) {
        let block = self.numbers.below(2) * BLOCK_PAGES;
        match self.numbers.below(3) {
            0 => (block, BLOCK_PAGES),
            1 => (0, all),
            _ => {
                let start = self.numbers.below(all);
                (start, 1 + self.numbers.below((all - start).min(40)))
            }
        }
    }

    fn step(&mut self) {
        let ((start, count), kind) = (self.range(ALL), self.numbers.below(17));
        let number = self.numbers.below(FILES) as usize;
        let chosen = self.numbers.below(self.places.len() as u64) as usize;
        let (rig, value, most) = (self.rig, 1 + self.numbers.below(255) as u8, self.places.len());
        let (file, bytes) = &mut self.files[number];
        let (pages, numbers) = (start as usize..(start + count) as usize, &mut self.numbers);
        match kind {
            0 => {
                file.punch_hole(&rig.cpu, start * PAGE, (start + count) * PAGE).unwrap();
                bytes.iter_mut().take(pages.end).skip(pages.start).for_each(|byte| *byte = 0);
            }
            1 => {
                let size = if numbers.below(2) == 0 { ALL } else { numbers.below(ALL + 1) };
                file.truncate(&rig.cpu, size * PAGE).unwrap();
                bytes.resize(size as usize, 0);
            }
            2 => {
                put(rig, file, start, value);
                bytes.resize(bytes.len().max(pages.start + 1), 0);
                bytes[pages.start] = value;
            }
            _ => self.step_in(chosen, kind, (start, count), (number, value, most)),
        }
    }

    /// The steps in a space.
    fn step_in(
        &mut self,
        chosen: usize,
        kind: u64,
        (start, count): (u64, u64),
        (number, value, most): (usize, u8, usize),
    ) {
        let (rig, numbers) = (self.rig, &mut self.numbers);
        let Place { space, expected, .. } = &mut self.places[chosen];
        let (at, bytes) = (page(start), count * PAGE);
        let pages = &mut expected[start as usize..(start + count) as usize];
        let is_covered = pages.iter().all(Option::is_some);
        match kind {
            3..=6 => {
                let written = space.write_bytes(&rig.cpu, at, &[value]).is_ok();
                let may = pages[0].filter(|(protection, ..)| protection.contains(Protection::WRITE));
                let byte = may.and_then(|(_, file, of_file)| self.files[file].1.get_mut(of_file as usize));
                assert_eq!(written, byte.is_some());
                byte.into_iter().for_each(|byte| *byte = value);
            }
            7 | 8 => {
                let first = if numbers.below(4) == 0 { numbers.below(ALL) } else { start };
                map_at(rig, space, &self.files[number].0, at, first, count, Sharing::Shared);
                (0..).zip(pages).for_each(|(index, page)| *page = Some((READ_WRITE, number, first + index)));
            }
            9 => {
                space.munmap(&rig.cpu, at, bytes).unwrap();
                pages.fill(None);
            }
            10 | 11 if is_covered => {
                let protection = [Protection::NONE, Protection::READ, READ_WRITE][numbers.below(3) as usize];
                space.mprotect(at, bytes, protection).unwrap();
                pages.iter_mut().flatten().for_each(|page| page.0 = protection);
            }
            12 => assert_eq!(space.madvise_dontneed(&rig.cpu, at, bytes).is_ok(), is_covered),
            13 if is_covered => {
                let wanted = [AreaAdvice::HugePage, AreaAdvice::NoHugePage][numbers.below(2) as usize];
                space.madvise_areas(&rig.cpu, at, bytes, wanted).unwrap();
                space.populate_again(&rig.cpu, at, bytes, &|| false);
            }
            14 if most < 4 => {
                let place = Place::new(space.fork(&rig.cpu).unwrap(), expected.clone());
                self.places.push(place);
            }
            15 if most > 1 => drop(self.places.swap_remove(chosen)),
            16 => {
                let moved = rig.migrate(&rig.cpu, &self.places[chosen].space, page(start));
                assert!(matches!(moved, None | Some(Ok(()))), "{moved:?}");
            }
            _ => {}
        }
    }

    /// Every entry shows what its file has, and each device has nothing else; then it reads some.
    fn check(&mut self) -> usize {
        /// The bits that a device uses.
        const USED: u64 = bits::VALID | bits::ADDRESS | bits::AF | bits::RDONLY | bits::USER;
        let (linear, numbers, mut blocks) = (self.rig.frames.linear(), &mut self.numbers, 0);
        for Place { space, device, expected } in &self.places {
            let tables = space.tables();
            let mut kept = device.0.lock().unwrap();
            let reads = numbers.below(7);
            for (index, expected) in (0..).zip(expected) {
                let found = tables.translate(page(index)).filter(|found| found.descriptor.is_present());
                let entry = found.as_ref().map_or(Descriptor::EMPTY, |found| found.descriptor);
                // The entry of a block has the address of its first page.
                let now = Descriptor(entry.0 & !bits::ADDRESS | found.as_ref().map_or(0, |found| found.physical.0));
                if let Some(had) = kept.get(&page(index).0) {
                    assert_eq!((had.0 ^ now.0) & USED, 0, "page {index}: the device has {had:?}, there is {now:?}");
                } else if now.is_valid() && index % 7 == reads {
                    kept.insert(page(index).0, now);
                }
                let Some(found) = found else { continue };
                blocks += usize::from(found.leaf_size == BLOCK_SIZE && index % BLOCK_PAGES == 0);
                let &Some((protection, number, of_file)) = expected else { panic!("page {index} is not mapped") };
                // SAFETY: the rig's memory, which no thread writes to.
                let byte = unsafe { linear.address(found.physical).as_ptr::<u8>().read() };
                assert_eq!(Some(&byte), self.files[number].1.get(of_file as usize), "page {index}");
                assert!(!entry.may_be_written() || protection.contains(Protection::WRITE), "page {index}");
            }
        }
        blocks
    }
}

#[test]
fn sequences_of_calls_leave_each_shared_page_and_each_device_what_they_should_have() {
    let rig = Rig::new(64);
    let mut blocks = 0;
    for seed in 1..=30 {
        let live: &[u16] = if seed % 2 == 0 { &[] } else { &[branch::SIZE_CHANGE] };
        host::with(live, || {
            let files: Vec<_> = (0..FILES).map(|_| (file(&rig, ALL), vec![0; ALL as usize])).collect();
            let space = rig.space();
            map_at(&rig, &space, &files[0].0, START, 0, ALL, Sharing::Shared);
            let places = vec![Place::new(space, (0..ALL).map(|page| Some((READ_WRITE, 0, page))).collect())];
            let numbers = Numbers(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
            let mut shares = Shares { rig: &rig, numbers, files, places };
            for _ in 0..80 {
                shares.step();
                blocks += shares.check();
            }
        });
        rig.frames.drain_cpu(&rig.cpu);
        all_gone(&rig);
    }
    assert!(blocks > 400, "{blocks}");
}
