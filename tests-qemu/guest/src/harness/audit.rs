//! Looks the kernel over after each test: what a test leaves behind fails it.
//!
//! A test that passes and leaves an interrupt masked or a frame taken has broken every test after it, which would
//! then fail far from the cause. The audit repairs the state that it can, so that the next test starts sound.

use alloc::vec::Vec;
use core::time::Duration;

use granule::bootargs::{self, PARAMETERS, Parameter};
use granule::chip::message;
use granule::chip::timer::{self, Deadline};
use granule::devices::pci::{self, Function};
use granule::devices::virtio::mmio::{self, Node};
use granule::linux::file::files;
use granule::linux::file::tree::{LinkTarget, NodeKind};
use granule::linux::process;
use granule::mm::heap;
use granule::mm::kernel::{self, area::AreaKind};
use granule::mm::space::Tally;
use granule::sched::sleep_until;
use granule::smp::{self, Cpu, this_cpu};
use granule::{iommu, sched, services};
use granule_arch::addr::{PAGE_SIZE, VirtAddr};
use granule_arch::{interrupts, wait};
use granule_pgtable::PageRange;
use linkme::distributed_slice;

use super::Patience;

/// The owners of devices that their drivers keep.
const DRIVERS: [&str; 4] = ["blk", "edu", "nvme", "rng"];
/// How long another CPU may take for what it is in the middle of.
const PATIENCE: Duration = Duration::from_secs(10);
/// The most that a boot argument may give it, in seconds.
const MOST: usize = 60;
/// The kernel's half of the addresses.
const UPPER_HALF: VirtAddr = VirtAddr(0xffff_0000_0000_0000);

/// For guests that are to fail: each of their findings takes as long.
#[allow(unsafe_code, reason = "collected by the linker")]
#[distributed_slice(PARAMETERS)]
static AUDIT: Parameter = Parameter {
    name: "test.patience",
    help: "seconds that the audit gives another CPU to finish: 0 to 60, without it 10",
    check: |value| bootargs::number(value, MOST).map(drop),
};

/// An account: what it counts, and how much of that there is.
type Account = (&'static str, usize);

/// The things that programs may leave behind: those in the tree of files by their names, which nothing else uses.
#[derive(Default)]
struct InTree {
    names: usize,
    nodes: usize,
    objects: usize,
    /// Frames that count in the limit of files.
    counted: usize,
    /// Pages, those that can be had again too, their tables, and long targets of links.
    frames: usize,
}

impl InTree {
    /// The first path makes the tree, which stays.
    fn take() -> Self {
        let (mut sum, mut linked) = (Self::default(), Vec::new());
        let Ok(tree) = files::tree() else { return sum };
        tree.for_each_name(|node| {
            sum.names += 1;
            if !node.is_directory() && node.attributes().1 > 1 {
                // Of what has several names the first one counts.
                if linked.contains(&node.number) {
                    return;
                }
                linked.push(node.number);
            }
            sum.nodes += 1;
            let target = usize::from(matches!(node.kind, NodeKind::Link(LinkTarget::Long(..))));
            (sum.counted, sum.frames) = (sum.counted + target, sum.frames + target);
            if let NodeKind::File(contents) = &node.kind
                && let Some(object) = contents.kept()
            {
                let kept = object.footprint(Tally::begin());
                sum.objects += 1;
                sum.counted += object.counted_frames();
                sum.frames += kept.pages + kept.tables;
            }
        });
        sum
    }

    /// How many of the objects of a pool they are.
    fn of_pool(&self, what: &str) -> usize {
        match what {
            "files" => self.nodes,
            "names of files" => self.names,
            _ => 0,
        }
    }
}

/// Reads accounts while the kernel's own threads rest: in a pass they have frames in their hands.
pub(crate) fn between_passes<T>(read: impl Fn() -> T) -> T {
    let patience = Patience::of(PATIENCE);
    loop {
        let passes = services::ended_passes();
        let read = read();
        if (passes.is_some() && services::ended_passes() == passes) || patience.has_passed() {
            return read;
        }
        sleep_until(Deadline::after(Duration::from_millis(1)));
    }
}

/// Frames in use, but for those that the kernel keeps when their users go.
pub(crate) fn frames_in_use() -> usize {
    between_passes(|| {
        trim();
        frames_now(&InTree::take())
    })
}

/// Gives back what is kept for later and can be had back.
fn trim() {
    sched::trim(this_cpu());
    while granule::kernel().space.reclaim(this_cpu()) != 0 {}
}

/// [`frames_in_use`] at this moment: those of tables, pools, the heap and files with names stay.
fn frames_now(tree: &InTree) -> usize {
    let kernel = granule::kernel();
    let pools = process::pools().iter().map(|(_, pool)| pool.frames).sum::<usize>();
    let kept = kernel.space.kept_frames() + kernel.spaces.kept_frames() + sched::kept_frames() + pools;
    let devices = message::kept_frames() + iommu::kept_frames() + iommu::coherent_pages();
    let heap = heap::kernel_heap().stats().total / PAGE_SIZE;
    kernel.frames.stats().used - kept - devices - heap - tree.frames
}

/// The accounts that must be the same before a test and after it.
pub(crate) struct Snapshot {
    accounts: heapless::Vec<Account, 32>,
    /// The accounts of devices. A driver of the kernel keeps its device for ever, from its first user on.
    devices: heapless::Vec<Account, 16>,
    drivers: usize,
    /// Frames of tables of the vmalloc window. Registers of devices are mapped there for ever, by their first user.
    tables: usize,
    device_areas: usize,
}

impl Snapshot {
    /// The kernel as it is, with nothing kept that could be given back.
    pub(crate) fn take() -> Self {
        between_passes(Self::take_now)
    }

    fn take_now() -> Self {
        let kernel = granule::kernel();
        trim();
        let (mut areas, mut device_areas) = (0, 0);
        kernel.space.for_each_area(|area| match area.kind() {
            AreaKind::Device => device_areas += 1,
            _ => areas += 1,
        });
        let mut accounts = heapless::Vec::new();
        let mut count = |what, how_many| {
            // There is room for all of them.
            let _ = accounts.push((what, how_many));
        };
        let tree = InTree::take();
        let (heap, pools) = (heap::kernel_heap().stats(), process::pools());
        count("frames in use", frames_now(&tree));
        count("frees of frames refused", kernel.frames.stats().refused as usize);
        // Which objects of the heap are sampled depends on the time.
        let guarded = heap::guarded::guarded_heap().stats().in_use;
        count("objects on the heap", heap.allocations + usize::from(guarded));
        count("vmalloc areas", areas);
        let [spaces, areas_of_spaces, objects] = kernel.spaces.counts();
        count("spaces", spaces);
        count("areas of spaces", areas_of_spaces);
        count("shared objects", objects - tree.objects);
        count("frames that count for files and are in none", files::limit().frames().0 - tree.counted);
        count("threads", sched::thread_count());
        count("numbers of processes and threads", process::tree::numbers_in_use());
        pools.iter().for_each(|(what, pool)| count(what, pool.objects - tree.of_pool(what)));
        count("CPUs", smp::online().iter().count());
        let mut devices = heapless::Vec::new();
        let mut count = |what, how_many| {
            let _ = devices.push((what, how_many));
        };
        let (mut attached, mut bound, mut streams) = (0, 0, 0);
        for iommu in iommu::iommus() {
            iommu.for_each_device(|device| {
                attached += 1;
                bound += usize::from(device.bound.is_some());
            });
            iommu.for_each_stream(|_, _, _| streams += 1);
        }
        count("pages shared with devices", iommu::coherent_pages());
        count("devices behind an SMMU", attached);
        count("devices bound to a space", bound);
        count("ASIDs of SMMUs", iommu::asids_in_use());
        count("streams that are not aborted", streams);
        count("connected messages", message::connections());
        let owners =
            || pci::functions().iter().map(Function::owner).chain(mmio::nodes().iter().map(Node::owner)).flatten();
        count("claimed devices", owners().count());
        count("bus masters", pci::functions().iter().filter(|function| is_bus_master(function)).count());
        let drivers = owners().filter(|name| DRIVERS.contains(name)).count();
        Self { accounts, devices, drivers, tables: kernel.space.area_table_frames(), device_areas }
    }

    /// Prints what is wrong, or differs from before; returns how many findings there are.
    pub(crate) fn compare(before: &Self) -> u32 {
        let mut findings: u32 = smp::online().iter().filter_map(smp::cpu).map(state_of).sum();
        findings += state_of_this_cpu();
        let after = Self::take();
        let mut compare = |(what, before): Account, after: usize| {
            if before != after {
                findings += 1;
                granule::println!("audit: {before} {what} before the test, {after} after it");
            }
        };
        before.accounts.iter().zip(&after.accounts).for_each(|(before, after)| compare(*before, after.1));
        if before.drivers == after.drivers {
            before.devices.iter().zip(&after.devices).for_each(|(before, after)| compare(*before, after.1));
        }
        if before.device_areas == after.device_areas {
            compare(("frames of kernel tables", before.tables), after.tables);
        }
        findings + wrong_leaves()
    }
}

fn seconds(number: usize) -> Duration {
    Duration::from_secs(number as u64)
}

/// Whether a device may access memory. Bridges always may, for those behind them.
fn is_bus_master(function: &Function) -> bool {
    const COMMAND: u16 = 4;
    const MASTER: u16 = 1 << 2;
    function.bridge().is_none() && function.read_config16(COMMAND).is_ok_and(|command| command & MASTER != 0)
}

/// Counts the findings on a CPU between tests, whatever was before them. Another CPU that is in an interrupt, or looks
/// for threads, is done with that in a moment.
fn state_of(cpu: &Cpu) -> u32 {
    let mut findings = 0;
    for (what, wrong) in WRONG {
        let patience = Patience::of(bootargs::get_number("test.patience", MOST).map_or(PATIENCE, seconds));
        while wrong(cpu) && !patience.has_passed() {
            wait::relax();
        }
        if wrong(cpu) {
            findings += 1;
            granule::println!("audit: the test left {what} on CPU {}", cpu.id.0);
        }
    }
    findings
}

/// Whether something is wrong with a CPU.
type Wrong = fn(&Cpu) -> bool;

/// The conditions that are wrong on a CPU between tests. Debug builds keep the ranks of the locks that are held.
const WRONG: [(&str, Wrong); 4] = [
    ("a lock held", |cpu| cpu.held_ranks().bits() != 0),
    ("an interrupt unfinished", |cpu| cpu.trap().is_in_handler()),
    ("a lockless walk open", |cpu| cpu.walk().is_open()),
    ("a deadline", timer::has_deadline),
];

/// Whether another test may run on these CPUs: what is wrong with one cannot be put right.
pub(crate) fn is_sound() -> bool {
    smp::online().iter().filter_map(smp::cpu).all(|cpu| !WRONG.iter().any(|(_, wrong)| wrong(cpu)))
}

/// Checks that this CPU takes interrupts, and the others: a CPU that takes none never serves the call; the test hangs.
fn state_of_this_cpu() -> u32 {
    let masked = !interrupts::state().irqs_enabled();
    if masked {
        granule::println!("audit: the test left interrupts masked");
        interrupts::enable();
    }
    smp::call(smp::online().without(this_cpu().id), |_, _| {}, 0);
    masked.into()
}

/// Leaves that the kernel's tables must never have, whatever a test does: writable and executable ones, and
/// misprogrammed contiguous groups.
fn wrong_leaves() -> u32 {
    let Ok(range) = PageRange::new(UPPER_HALF, UPPER_HALF.0.wrapping_neg()) else {
        granule::println!("audit: the upper half is no range");
        return 1;
    };
    let mut findings = 0;
    kernel::findings(&granule::kernel().space.tables().get(), range, &mut |finding| {
        if finding.is_fault() {
            findings += 1;
            granule::println!("audit: {finding}");
        }
    });
    findings
}
