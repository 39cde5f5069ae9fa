//! Run queues, the kernel's own source: a thread that is woken or started runs, once, on whichever CPU; and work that is
//! raised for it is seen on its way to EL0, or interrupts its CPU there. A thread that is bound to a CPU goes there.
//!
//! A wake-up that is lost while a CPU goes idle is a deadlock; a thread that two CPUs run has two CPUs, or its registers
//! race. loom reports each.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use granule_loom::smp::{self, CpuId};
use granule_loom::{Omitted, Sleeper, omit, sched};
use loom::sync::Notify;

use crate::{assert_caught, threads_with};

/// CPU `cpu` idles in a thread of loom's own.
fn idle_on(cpu: u32, omitted: Omitted) -> loom::thread::JoinHandle<()> {
    let idle = Sleeper::on(cpu);
    idle.is_idle_thread_of(cpu);
    loom::thread::spawn(move || {
        omit(omitted);
        idle.runs_on(cpu);
        sched::idle();
    })
}

/// The running thread is what `cpu` runs.
fn run_on(cpu: u32) -> Arc<Sleeper> {
    let main = Sleeper::on(cpu);
    main.is_idle_thread_of(cpu);
    main.runs_on(cpu);
    main
}

/// A thread that counts how often it runs, when it has a CPU.
fn thread(
    cpu: u32,
    omitted: Omitted,
    body: impl FnOnce(&Sleeper) + 'static,
) -> (Arc<Sleeper>, loom::thread::JoinHandle<()>) {
    let thread = Sleeper::on(cpu);
    let own = Arc::clone(&thread);
    let runs = loom::thread::spawn(move || {
        omit(omitted);
        own.begin();
        body(&own);
        own.exit();
    });
    (thread, runs)
}

/// CPU 0 starts a thread, and is busy; CPU 1 is about to idle.
fn started_while_idle(omitted: Omitted) {
    threads_with(2, move || {
        let idles = idle_on(1, omitted);
        let (thread, runs) = thread(0, omitted, |_| {});
        run_on(0);
        omit(omitted);
        thread.start();
        runs.join().unwrap();
        omit(Omitted::Nothing);
        smp::stop_all();
        idles.join().unwrap();
    });
}

#[test]
fn a_cpu_that_goes_idle_takes_the_thread_that_another_starts() {
    started_while_idle(Omitted::Nothing);
}

#[test]
fn a_look_at_idle_cpus_without_a_barrier_is_caught() {
    assert_caught("deadlock", || started_while_idle(Omitted::Fences));
}

/// One interrupt is enough for a CPU that idles, so the second thread's goes to another one, where there is one.
#[test]
fn a_cpu_that_was_interrupted_is_not_taken_for_idle() {
    threads_with(1, || {
        let threads = [(); 2].map(|()| thread(0, Omitted::Nothing, |_| {}));
        run_on(0);
        sched::prepare_to_idle(1);
        for (thread, _) in &threads {
            thread.start();
        }
        assert_eq!(smp::cpu(CpuId(1)).unwrap().interruptions(), 1);
        sched::run_ready();
        for (_, runs) in threads {
            runs.join().unwrap();
        }
    });
}

/// On CPU 0 a thread gives way to one that does not end before it continues; CPU 1 is about to idle.
fn gives_way_while_idle(omitted: Omitted) {
    threads_with(2, move || {
        let idles = idle_on(1, omitted);
        let (main, idle) = (Sleeper::on(0), Sleeper::on(0));
        idle.is_idle_thread_of(0);
        main.runs_on(0);
        let goes_on = Arc::new(Notify::new());
        let waits = Arc::clone(&goes_on);
        let (woken, runs) = thread(0, omitted, move |_| waits.wait());
        woken.start_kernel(0);
        omit(omitted);
        sched::give_way();
        goes_on.notify();
        runs.join().unwrap();
        omit(Omitted::Nothing);
        main.exit();
        smp::stop_all();
        idles.join().unwrap();
    });
}

#[test]
fn a_cpu_that_goes_idle_takes_the_thread_that_gives_way_on_another() {
    gives_way_while_idle(Omitted::Nothing);
    assert_caught("deadlock", || gives_way_while_idle(Omitted::Fences));
}

/// A thread sleeps on CPU 0, which idles; CPU 1 wakes it, twice.
#[test]
fn a_cpu_that_goes_idle_runs_the_thread_that_another_wakes() {
    threads_with(2, || {
        let idle = Sleeper::on(0);
        idle.is_idle_thread_of(0);
        let idles = loom::thread::spawn(move || {
            idle.begin();
            sched::idle();
        });
        run_on(1);
        let sleeper = Sleeper::on(0);
        let own = Arc::clone(&sleeper);
        let sleeps = loom::thread::spawn(move || {
            own.runs_on(0);
            own.park();
            own.exit();
        });
        sleeper.unpark();
        sleeps.join().unwrap();
        smp::stop_all();
        idles.join().unwrap();
    });
}

/// A thread that CPU 0 is about to run, and CPU 1 to steal, runs once.
#[test]
fn of_two_cpus_one_runs_a_ready_thread() {
    threads_with(2, || {
        let ran = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&ran);
        let (thread, runs) = thread(0, Omitted::Nothing, move |_| _ = count.fetch_add(1, Ordering::Relaxed));
        run_on(0);
        thread.start();
        let idles = idle_on(1, Omitted::Nothing);
        sched::run_ready();
        runs.join().unwrap();
        smp::stop_all();
        idles.join().unwrap();
        assert_eq!(ran.load(Ordering::Relaxed), 1);
    });
}

/// A thread that CPU 1 steals from CPU 0 sleeps there; CPU 0, which may still take it for its own, wakes it.
#[test]
fn a_thread_is_woken_where_it_sleeps() {
    threads_with(2, || {
        let (thread, runs) = thread(0, Omitted::Nothing, Sleeper::park);
        run_on(0);
        thread.start();
        let idles = idle_on(1, Omitted::Nothing);
        thread.unpark();
        runs.join().unwrap();
        smp::stop_all();
        idles.join().unwrap();
    });
}

/// Work is raised by CPU 0, for a thread that CPU 1 steals from it.
fn raised_while_stolen(omitted: Omitted, raiser: Omitted) {
    threads_with(2, move || {
        let seen = Arc::new(AtomicUsize::new(0));
        let sees = Arc::clone(&seen);
        let (thread, runs) = thread(0, omitted, move |own| sees.store(own.has_signal().into(), Ordering::Relaxed));
        run_on(0);
        thread.start();
        let idles = idle_on(1, omitted);
        let before = smp::cpu(CpuId(1)).unwrap().interruptions();
        omit(raiser);
        thread.raise();
        omit(Omitted::Nothing);
        runs.join().unwrap();
        smp::stop_all();
        idles.join().unwrap();
        let interrupted = smp::cpu(CpuId(1)).unwrap().interruptions() > before;
        assert!(seen.load(Ordering::Relaxed) != 0 || interrupted, "the work waits at EL0");
    });
}

#[test]
fn a_stolen_thread_sees_its_work_or_is_interrupted() {
    raised_while_stolen(Omitted::Nothing, Omitted::Nothing);
}

#[test]
fn work_and_thread_that_are_looked_at_without_barriers_are_caught() {
    assert_caught("the work waits at EL0", || raised_while_stolen(Omitted::Fences, Omitted::Nothing));
    assert_caught("the work waits at EL0", || raised_while_stolen(Omitted::Nothing, Omitted::Fences));
}

/// Work is raised by CPU 1 for a thread of CPU 0, which an interrupt there wakes.
fn raised_while_woken(omitted: Omitted, raiser: Omitted) {
    threads_with(2, move || {
        let sleeper = Sleeper::on(0);
        let seen = Arc::new(AtomicUsize::new(0));
        let (own, sees) = (Arc::clone(&sleeper), Arc::clone(&seen));
        let idle = Sleeper::on(0);
        idle.is_idle_thread_of(0);
        let wakes = {
            let sleeper = Arc::clone(&sleeper);
            loom::thread::spawn(move || {
                omit(omitted);
                idle.begin();
                sleeper.unpark();
                sched::run_ready();
            })
        };
        let sleeps = loom::thread::spawn(move || {
            own.runs_on(0);
            own.park();
            sees.store(own.has_signal().into(), Ordering::Relaxed);
            own.exit();
        });
        run_on(1);
        omit(raiser);
        sleeper.raise();
        omit(Omitted::Nothing);
        sleeps.join().unwrap();
        wakes.join().unwrap();
        let interrupted = smp::cpu(CpuId(0)).unwrap().interruptions() > 0;
        assert!(seen.load(Ordering::Relaxed) != 0 || interrupted, "the work waits at EL0");
    });
}

#[test]
fn a_woken_thread_sees_its_work_or_is_interrupted() {
    raised_while_woken(Omitted::Nothing, Omitted::Nothing);
}

#[test]
fn work_that_is_looked_at_before_the_thread_has_woken_is_caught() {
    assert_caught("the work waits at EL0", || raised_while_woken(Omitted::Fences, Omitted::Nothing));
    assert_caught("the work waits at EL0", || raised_while_woken(Omitted::Nothing, Omitted::Fences));
}

/// A thread of CPU 0 is bound to CPU 1 and goes there, where it does `then`. Both have no other thread; a third CPU does
/// `beside` concurrently. Returns how often CPU 1 was interrupted.
fn goes<T: Send + 'static>(
    omitted: Omitted,
    then: impl FnOnce(&Sleeper) -> T + Send + 'static,
    beside: impl FnOnce(&Sleeper),
) -> (T, usize) {
    let (thread, idle) = (Sleeper::on(0), Sleeper::on(0));
    idle.is_idle_thread_of(0);
    let idles = [loom::thread::spawn(move || idle.begin()), idle_on(1, omitted)];
    let own = Arc::clone(&thread);
    let goes = loom::thread::spawn(move || {
        omit(omitted);
        own.runs_on(0);
        own.set_cpus(1 << 1);
        assert_eq!(own.enter_user(), CpuId(1));
        let outcome = then(&own);
        own.exit();
        outcome
    });
    beside(&thread);
    let outcome = goes.join().unwrap();
    omit(Omitted::Nothing);
    smp::stop_all();
    for idles in idles {
        idles.join().unwrap();
    }
    (outcome, smp::cpu(CpuId(1)).unwrap().interruptions())
}

#[test]
fn a_thread_that_goes_to_another_cpu_is_woken_there() {
    threads_with(2, || {
        goes(Omitted::Nothing, Sleeper::park, Sleeper::unpark);
    });
}

/// Work is raised for a thread that goes to another CPU, which its arrival interrupts in any case.
fn raised_while_it_goes(omitted: Omitted, raiser: Omitted) {
    threads_with(2, move || {
        let raise = |thread: &Sleeper| {
            omit(raiser);
            thread.raise();
        };
        let (has_seen, interruptions) = goes(omitted, Sleeper::has_signal, raise);
        assert!(has_seen || interruptions > 1, "the work waits at EL0");
    });
}

#[test]
fn a_thread_that_goes_sees_its_work_or_is_interrupted() {
    raised_while_it_goes(Omitted::Nothing, Omitted::Nothing);
    assert_caught("the work waits at EL0", || raised_while_it_goes(Omitted::Fences, Omitted::Nothing));
    assert_caught("the work waits at EL0", || raised_while_it_goes(Omitted::Nothing, Omitted::Fences));
}

/// A thread is bound to the CPU of the thread that binds it, while it gives way for another reason. Where it enters EL0
/// on the wrong one, an interrupt is on its way.
#[test]
fn a_thread_that_others_bind_leaves() {
    threads_with(2, || {
        let (thread, idle, binds) = (Sleeper::on(0), Sleeper::on(0), Sleeper::on(1));
        idle.is_idle_thread_of(0);
        binds.is_idle_thread_of(1);
        thread.runs_on(0);
        let bound = Arc::clone(&thread);
        let others = [
            loom::thread::spawn(move || idle.begin()),
            loom::thread::spawn(move || {
                binds.runs_on(1);
                bound.set_cpus(1 << 1);
                sched::idle();
            }),
        ];
        sched::yield_now();
        if thread.enter_user() == CpuId(0) {
            thread.wait_for_interrupt();
            assert_eq!(thread.enter_user(), CpuId(1), "it stays where it may not be");
        }
        thread.exit();
        smp::stop_all();
        for other in others {
            other.join().unwrap();
        }
    });
}

/// Threads that are bound have their turns among the others, as they came.
#[test]
fn bound_threads_and_ready_ones_have_their_turns() {
    threads_with(0, || {
        run_on(0);
        let threads: Vec<_> = (0..6).map(|_| Sleeper::on(0)).collect();
        for (number, thread) in threads.iter().enumerate() {
            if number % 3 != 0 {
                thread.set_cpus(1);
            }
            thread.start();
        }
        assert_eq!(sched::take_all(0), threads.iter().map(Arc::as_ptr).collect::<Vec<_>>());
    });
}

/// Threads that were woken go first, but sixteen of them at most past one that is ready.
#[test]
fn ready_threads_do_not_starve_behind_woken_ones() {
    const WOKEN: usize = 40;
    threads_with(0, || {
        run_on(0);
        let [ready, woken] = [2, WOKEN].map(|count| (0..count).map(|_| Sleeper::on(0)).collect::<Vec<_>>());
        ready.iter().for_each(|thread| thread.start());
        woken.iter().for_each(|thread| thread.start_kernel(0));
        let order = sched::take_all(0);
        assert_eq!(order.len(), ready.len() + woken.len());
        let places = |threads: &[Arc<Sleeper>]| {
            let place = |thread| order.iter().position(|&other| other == Arc::as_ptr(thread));
            threads.iter().map(place).collect::<Option<Vec<_>>>().expect("each gets the CPU")
        };
        assert_eq!(places(&ready), [16, 33]);
        assert!(places(&woken).is_sorted(), "first come, first served");
    });
}

/// How a thread comes to run: it was started for EL0, or continues in the kernel.
#[derive(Clone, Copy)]
enum Start {
    Ready,
    Woken,
}

/// The order in which threads run that were started so, 1 the first, and the running thread, 0, which then does `act`.
fn order_after(starts: &'static [Start], act: fn(), expected: &'static [usize]) {
    threads_with(0, move || {
        let order = Arc::new(Mutex::new(Vec::new()));
        let (main, idle) = (Sleeper::on(0), Sleeper::on(0));
        idle.is_idle_thread_of(0);
        main.runs_on(0);
        let threads: Vec<_> = (1..=starts.len())
            .map(|number| {
                let order = Arc::clone(&order);
                thread(0, Omitted::Nothing, move |_| order.lock().unwrap().push(number))
            })
            .collect();
        for (start, (thread, _)) in starts.iter().zip(&threads) {
            match start {
                Start::Ready => thread.start(),
                Start::Woken => thread.start_kernel(0),
            }
        }
        act();
        order.lock().unwrap().push(0);
        // Runs the threads that are left.
        while order.lock().unwrap().len() <= starts.len() {
            sched::yield_now();
            sched::give_way();
        }
        threads.into_iter().for_each(|(_, runs)| runs.join().unwrap());
        assert_eq!(*order.lock().unwrap(), expected);
    });
}

fn end_slice_and_give_way() {
    sched::yield_now();
    sched::give_way();
}

fn end_slice_and_relax() {
    sched::yield_now();
    sched::relax();
}

/// On its way to EL0 a thread goes behind those that are ready only where its slice has ended; woken ones go first.
#[test]
fn a_thread_gives_way_by_its_slice() {
    use Start::{Ready, Woken};
    order_after(&[], sched::give_way, &[0]);
    order_after(&[Ready, Ready], sched::give_way, &[0, 1, 2]);
    order_after(&[Ready, Ready], end_slice_and_give_way, &[1, 2, 0]);
    order_after(&[Ready, Woken], sched::give_way, &[2, 0, 1]);
    order_after(&[Ready, Woken], end_slice_and_give_way, &[2, 1, 0]);
}

/// In the kernel a thread lets woken ones go first, and a ready one where its slice has ended.
#[test]
fn a_scheduling_point_lets_others_run_by_the_slice() {
    use Start::{Ready, Woken};
    order_after(&[], end_slice_and_relax, &[0]);
    order_after(&[Ready], sched::relax, &[0, 1]);
    order_after(&[Ready, Woken], sched::relax, &[2, 0, 1]);
    order_after(&[Woken, Woken], sched::relax, &[1, 2, 0]);
    order_after(&[Ready, Woken, Ready], end_slice_and_relax, &[1, 2, 0, 3]);
}

/// A slice has an end while another thread waits for the CPU, and none else.
#[test]
fn a_slice_ends_only_where_a_thread_waits() {
    threads_with(0, || {
        let (main, idle) = (Sleeper::on(0), Sleeper::on(0));
        idle.is_idle_thread_of(0);
        main.runs_on(0);
        let (thread, runs) = thread(0, Omitted::Nothing, |_| assert!(sched::slice_has_end(), "the other one waits"));
        assert!(!sched::slice_has_end());
        thread.start();
        assert!(sched::slice_has_end());
        end_slice_and_give_way();
        assert!(!sched::slice_has_end(), "alone again");
        runs.join().unwrap();
    });
}
