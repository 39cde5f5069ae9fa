//! CPUs that take, cut and join at once.

use super::*;

#[test]
fn many_cpus_never_share_a_frame() {
    const CPUS: u32 = 4;
    let (machine, cpu) = small_machine();
    let frames = &machine.boot(&cpu, &[]);
    let total = frames.stats().total;
    std::thread::scope(|scope| {
        for id in 0..CPUS {
            scope.spawn(move || {
                let cpu = Cpu::new(CpuId(id));
                let mut held = Vec::new();
                for round in 0..400_usize {
                    while held.len() < (round * 37 + id as usize * 11) % 300 {
                        let Ok(frame) = frames.alloc(&cpu) else { break };
                        let word = frames.linear().address(frame).as_ptr::<u64>();
                        // SAFETY: the frame is this thread's alone, which is what the test checks.
                        unsafe { word.write(u64::from(id) << 32 | frame.frame_number() as u64) };
                        held.push(frame);
                    }
                    for frame in held.drain(held.len() / 3..) {
                        let word = frames.linear().address(frame).as_ptr::<u64>();
                        // SAFETY: as above.
                        let found = unsafe { word.read() };
                        assert_eq!(found, u64::from(id) << 32 | frame.frame_number() as u64);
                        frames.free(&cpu, frame);
                    }
                }
                held.iter().for_each(|frame| frames.free(&cpu, *frame));
                frames.drain_cpu(&cpu);
            });
        }
    });
    let stats = frames.stats();
    assert_eq!((stats.used, stats.free, stats.in_magazines), (0, total, 0));
}

#[test]
fn cpus_that_cut_and_join_blocks_at_once_lose_none() {
    const CPUS: u32 = 4;
    let machine = Machine::new(&[range(0x4000_0000, 0x4400_0000)]);
    let cpu = Cpu::new(CpuId(0));
    let frames = &machine.boot(&cpu, &[]);
    let at_boot = frames.stats();
    std::thread::scope(|scope| {
        for id in 0..CPUS {
            scope.spawn(move || {
                let cpu = Cpu::new(CpuId(id));
                for round in 0..1000 {
                    let list = frames.alloc_list(&cpu, 3 * BLOCK_FRAMES).unwrap();
                    frames.free_list(&cpu, list);
                    if round % 3 == 0
                        && let Ok(blocks) = frames.alloc_blocks(&cpu, 1)
                    {
                        frames.free_blocks(&cpu, blocks, 1);
                    }
                }
                frames.drain_cpu(&cpu);
            });
        }
    });
    assert_eq!(frames.stats(), at_boot);
}

/// Notes how many frames are free whenever some are hidden, and which are.
struct FreeWhenHidden {
    frames: &'static FrameAllocator,
    free: Mutex<Vec<usize>>,
    hidden: Mutex<BTreeSet<usize>>,
}

impl DebugPagealloc for FreeWhenHidden {
    fn show(&self, frames: Range<usize>) {
        let mut hidden = self.hidden.lock().unwrap();
        frames.for_each(|frame| assert!(hidden.remove(&frame), "{frame:#x} was not hidden"));
    }

    fn hide(&self, frames: &[Range<usize>]) {
        self.free.lock().unwrap().push(self.frames.stats().free);
        let mut hidden = self.hidden.lock().unwrap();
        frames.iter().cloned().flatten().for_each(|frame| assert!(hidden.insert(frame), "{frame:#x} was hidden"));
    }
}

/// Once a frame is free, another CPU may take and show it. So each frame that comes back, by any way, is hidden before,
/// and frames that are in use are not hidden.
#[test]
fn frames_are_hidden_before_they_are_free() {
    host::with(&[branch::DEBUG_PAGEALLOC], || {
        let (frames, cpu) = (leaked(8), Cpu::new(CpuId(0)));
        let watch = FreeWhenHidden { frames, free: Mutex::default(), hidden: Mutex::default() };
        let watch: &FreeWhenHidden = Box::leak(Box::new(watch));
        frames.hide_free_frames(&cpu, watch);
        let assert_hidden = |what: &str| {
            assert_eq!(watch.hidden.lock().unwrap().len(), frames.stats().free, "{what}");
        };
        assert_hidden("at first");
        let [one, other, last] = [0; 3].map(|_| frames.alloc(&cpu).unwrap());
        let (list, block) = (frames.alloc_list(&cpu, 8).unwrap(), frames.alloc_blocks(&cpu, 0).unwrap());
        assert_hidden("taken");
        let hidden_first = |what: &str, give_back: &mut dyn FnMut()| {
            watch.free.lock().unwrap().clear();
            let free = frames.stats().free;
            give_back();
            assert!(frames.stats().free > free);
            assert_eq!(*watch.free.lock().unwrap(), [free], "{what}");
            assert_hidden(what);
        };
        hidden_first("a frame", &mut || frames.free(&cpu, one));
        hidden_first("frames", &mut || frames.freeing(&cpu).add(other));
        let mut list = Some(list);
        hidden_first("a list", &mut || frames.free_list(&cpu, list.take().unwrap()));
        hidden_first("a block", &mut || frames.free_blocks(&cpu, block, 0));
        let number = last.frame_number();
        hidden_first("a hold", &mut || frames.put_runs(&cpu, core::iter::once(number..number + 1)));
    });
}

/// A block that becomes whole, and one that is cut, is in some count and in some place at each moment.
#[test]
fn frames_that_stay_free_are_found_while_blocks_are_cut_and_joined() {
    const ROUNDS: usize = 20_000;
    let machine = Machine::new(&[range(0x4000_0000, 0x4080_0000)]);
    let cpu = Cpu::new(CpuId(0));
    let frames = &machine.boot(&cpu, &[]);
    // All blocks but one are taken. Of that, two CPUs have a frame each at most.
    let held = frames.alloc_list(&cpu, frames.stats().free - BLOCK_FRAMES).unwrap();
    frames.drain_cpu(&cpu);
    assert_eq!(frames.stats().free, BLOCK_FRAMES);
    let is_ended = &AtomicBool::new(false);
    let missed = std::thread::scope(|scope| {
        scope.spawn(|| {
            let [home, other] = [1, 2].map(|id| Cpu::new(CpuId(id)));
            while !is_ended.load(Ordering::Relaxed) {
                let mut frame = [0];
                assert_eq!(frames.blocks.take_frames(&home, Mobility::Unmovable, &mut frame, 0), 1);
                // By another CPU than the block's home: it goes to the buddy.
                frames.blocks.put_runs(&other, core::iter::once(frame[0]..frame[0] + 1));
            }
        });
        let mut missed = [0, 0];
        for _ in 0..ROUNDS {
            missed[0] += usize::from(frames.blocks.totals().free_frames < BLOCK_FRAMES - 2);
            let mut frame = [0];
            if frames.blocks.take_frames(&cpu, Mobility::Unmovable, &mut frame, 0) == 0 {
                missed[1] += 1;
            } else {
                frames.blocks.put_runs(&cpu, core::iter::once(frame[0]..frame[0] + 1));
            }
        }
        is_ended.store(true, Ordering::Relaxed);
        missed
    });
    assert_eq!(missed, [0, 0], "by the counts, by a search");
    frames.free_list(&cpu, held);
}

#[test]
fn cpus_that_take_all_at_once_leave_what_is_to_stay() {
    const CPUS: u32 = 4;
    const LEFT: usize = 1000;
    let machine = Machine::new(&[range(0x4000_0000, 0x4400_0000)]);
    let cpu = Cpu::new(CpuId(0));
    let frames = &machine.boot(&cpu, &[]);
    let at_boot = frames.stats();
    for round in 0..20 {
        std::thread::scope(|scope| {
            let takers: Vec<_> = (0..CPUS)
                .map(|id| {
                    scope.spawn(move || {
                        let cpu = Cpu::new(CpuId(id));
                        let mut runs = Vec::new();
                        while frames
                            .blocks
                            .take_runs(&cpu, Mobility::Unmovable, 1 + 64 * id as usize, LEFT, |run| runs.push(run))
                            > 0
                        {}
                        runs
                    })
                })
                .collect();
            let runs: Vec<_> = takers.into_iter().flat_map(|taker| taker.join().unwrap()).collect();
            assert_eq!(frames.stats().free, LEFT, "round {round}");
            frames.blocks.put_runs(&cpu, runs);
        });
    }
    frames.drain_cpu(&cpu);
    assert_eq!(frames.stats(), at_boot);
}

/// Runs of several blocks, as many as fewer CPUs may take between two looks.
#[test]
fn cpus_that_take_blocks_at_once_leave_what_is_to_stay() {
    const CPUS: u32 = 4;
    const LEFT: usize = 3 * BLOCK_FRAMES;
    let machine = Machine::new(&[range(0x4000_0000, 0x4800_0000)]);
    let cpu = Cpu::new(CpuId(0));
    let frames = &machine.boot(&cpu, &[]);
    frames.blocks.set_cpus(CPUS as usize);
    let at_boot = frames.stats();
    for round in 0..40 {
        std::thread::scope(|scope| {
            let take = |id| {
                move || {
                    let (cpu, order) = (Cpu::new(CpuId(id)), (id + round) % 3);
                    let more = || frames.blocks.take_blocks(&cpu, order, LEFT);
                    core::iter::from_fn(more).map(|first| (first, order)).collect::<Vec<_>>()
                }
            };
            let takers: Vec<_> = (0..CPUS).map(|id| scope.spawn(take(id))).collect();
            let runs: Vec<_> = takers.into_iter().flat_map(|taker| taker.join().unwrap()).collect();
            let free = frames.stats().free;
            assert!(free >= LEFT, "round {round}: {free} of {LEFT} stay");
            runs.into_iter().for_each(|(first, order)| frames.blocks.put_blocks(&cpu, first, order));
        });
    }
    frames.drain_cpu(&cpu);
    assert_eq!(frames.stats(), at_boot);
}
