//! The driver's half of a controller against one that obeys its registers, decoded here without a line of the driver's;
//! and the ways in which a controller can lie.

#![allow(unsafe_code, reason = "queues that the device reads and writes")]

extern crate std;

use std::boxed::Box;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::vec::Vec;

use granule_arch::addr::VirtAddr;
use granule_arch::recorded::at_each;
use proptest::prelude::{ProptestConfig, any, prop, prop_assert, prop_assert_eq, proptest};

use super::controller::{Controller, ControllerError, NvmeRegisters, PAGES};
use super::queue::{SharedPage, Violation};
use super::{READ, WRITE, command, piece};
use crate::iommu::DmaAddress;

/// A rule that the controller breaks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lie {
    None,
    /// It completes with the phase of the round before.
    Phase,
    /// These are added to what belongs there.
    Identifier(u16),
    Queue(u16),
    Head(u16),
    Status(u16),
    NeverReady,
    NeverIdle,
    Fails,
    /// It fails over a command, and does not answer it.
    Dies,
    /// Its status is the old one so many looks long.
    Late(u32),
    Capabilities(u64),
    NoNamespace,
    Shift(u8),
    Metadata(u16),
    /// Completions and what it says it is have bits of this, turned by where they are, that do not belong there.
    Noise(u64),
}

const PAGE: usize = 4096;
const STRIDE: u64 = 8;
/// NVM commands, a stride of 8, 64 entries at most, 1 s.
const CAPABILITIES: u64 = 1 << 37 | 1 << 32 | 2 << 24 | 63;

#[repr(C, align(4096))]
struct Frame([u8; PAGE]);

/// A submission queue, its completion queue, and where the controller is in them.
#[derive(Clone, Copy, Default)]
struct Pair {
    submissions: u64,
    completions: u64,
    entries: u16,
    head: u16,
    tail: u16,
    round: u16,
}

/// A read or write of the controller: opcode, sector, number of sectors, pointers.
type Done = (u8, u64, u32, [u64; 2]);

struct ModelController {
    lie: Cell<Lie>,
    pairs: RefCell<[Pair; 2]>,
    enabled: Cell<bool>,
    admin: Cell<[u64; 2]>,
    done: RefCell<Vec<Done>>,
    /// Each command, with the number of its queue.
    commands: RefCell<Vec<(usize, [u32; 16])>>,
    /// The bits that the noise changed in the last completion.
    noise: Cell<[u32; 4]>,
    /// Of its registers.
    bytes: Cell<u64>,
    /// The interrupts that are masked.
    masked: Cell<u32>,
    /// At its status, since it was enabled or disabled.
    looks: Cell<u32>,
}

impl ModelController {
    fn new(lie: Lie) -> Self {
        let (pairs, enabled, admin, done, commands, noise, masked, looks) = Default::default();
        let (lie, bytes) = (Cell::new(lie), Cell::new(0x4000));
        Self { lie, pairs, enabled, admin, done, commands, noise, bytes, masked, looks }
    }

    /// Memory at `address`: devices have the host's addresses here.
    fn words(address: u64) -> *mut u32 {
        assert_eq!(address % 4, 0);
        core::ptr::with_exposed_provenance_mut(address as usize)
    }

    fn ring(&self, number: usize, tail: u16) {
        let pair = self.pairs.borrow()[number];
        assert!(tail < pair.entries && pair.entries > 1, "a doorbell of a queue that there is");
        let at = pair.submissions + 64 * u64::from(pair.head);
        // SAFETY: a command that the driver has written, into a page of the test's.
        let words: [u32; 16] = unsafe { Self::words(at).cast::<[u32; 16]>().read() };
        self.commands.borrow_mut().push((number, words));
        self.pairs.borrow_mut()[number].head = (pair.head + 1) % pair.entries;
        assert_eq!(self.pairs.borrow()[number].head, tail, "one command at a time");
        let status = self.execute(number, &words);
        self.complete(number, (words[0] >> 16) as u16, status);
    }

    fn execute(&self, number: usize, words: &[u32; 16]) -> u16 {
        let pointer = |at: usize| u64::from(words[at]) | u64::from(words[at + 1]) << 32;
        let opcode = words[0] as u8;
        let entries = (words[10] >> 16) as u16 + 1;
        let mut pairs = self.pairs.borrow_mut();
        match (number, opcode) {
            (0, 6) => self.identify(words, pointer(6)),
            // Contiguous, with interrupts by vector 0 if any; then contiguous, into completion queue 1.
            (0, 5) if words[10] as u16 == 1 && words[11] & !2 == 1 => {
                pairs[1] = Pair { completions: pointer(6), ..pairs[1] }
            }
            (0, 1) if words[10] as u16 == 1 && words[11] == 1 << 16 | 1 => {
                assert_ne!(pairs[1].completions, 0, "what it completes to is made first");
                (pairs[1].submissions, pairs[1].entries) = (pointer(6), entries);
            }
            (1, READ | WRITE) if words[1] == 1 => {
                let end = words[12] + 1;
                self.done.borrow_mut().push((opcode, pointer(10), end, [pointer(6), pointer(8)]));
            }
            _ => return 1,
        }
        match self.lie.get() {
            Lie::Status(status) => status,
            _ => 0,
        }
    }

    fn identify(&self, words: &[u32; 16], at: u64) {
        let mut data = [0_u8; PAGE];
        if words[10] == 1 {
            data[4..24].copy_from_slice(b"a serial number     ");
        } else if self.lie.get() != Lie::NoNamespace {
            assert_eq!(words[1], 1);
            data[..8].copy_from_slice(&8192_u64.to_le_bytes());
            // The second format.
            data[26] = 1;
            if let Lie::Metadata(bytes) = self.lie.get() {
                data[128 + 4..][..2].copy_from_slice(&bytes.to_le_bytes());
            }
            data[128 + 4 + 2] = if let Lie::Shift(shift) = self.lie.get() { shift } else { 9 };
        }
        if let Lie::Noise(bits) = self.lie.get() {
            for (at, byte) in data.iter_mut().enumerate() {
                *byte ^= bits.rotate_left(at as u32 * 7) as u8 & bits.rotate_left(at as u32 * 11) as u8;
            }
        }
        // SAFETY: the page that the driver has for it, of the test's.
        unsafe { Self::words(at).cast::<[u8; PAGE]>().write(data) };
    }

    fn complete(&self, number: usize, identifier: u16, status: u16) {
        let pair = &mut self.pairs.borrow_mut()[number];
        let mut phase = (pair.round + 1) % 2;
        let (mut queue, mut head, mut identifier) = (number as u16, pair.head, identifier);
        match self.lie.get() {
            Lie::Phase | Lie::Dies => phase ^= 1,
            Lie::Identifier(more) => identifier = identifier.wrapping_add(more),
            Lie::Queue(more) => queue += more,
            Lie::Head(more) => head += more,
            _ => {}
        }
        let at = Self::words(pair.completions + 16 * u64::from(pair.tail));
        pair.tail += 1;
        if pair.tail == pair.entries {
            (pair.tail, pair.round) = (0, pair.round + 1);
        }
        let mut words = [0, 0, u32::from(queue) << 16 | u32::from(head), u32::from(status << 1 | phase) << 16];
        words[3] |= u32::from(identifier);
        if let Lie::Noise(bits) = self.lie.get() {
            // One bit or two of one word, or of none.
            let noise = 1_u32 << (bits % 32) | 1 << ((bits >> 8) % 32);
            let noise = core::array::from_fn(|at| if at as u64 == bits >> 16 & 7 { noise } else { 0 });
            self.noise.set(noise);
            words.iter_mut().zip(noise).for_each(|(word, noise)| *word ^= noise);
        }
        // SAFETY: an entry of the driver's queue, in a page of the test's.
        unsafe { at.cast::<[u32; 4]>().write(words) };
    }
}

impl NvmeRegisters for &ModelController {
    fn bytes(&self) -> u64 {
        self.bytes.get()
    }
    fn read32(&self, offset: u64) -> u32 {
        assert_eq!(offset, 0x1c);
        self.looks.update(|looks| looks + 1);
        match self.lie.get() {
            Lie::Fails => 2,
            Lie::Dies if !self.commands.borrow().is_empty() => 3,
            Lie::Late(looks) if self.looks.get() <= looks => (!self.enabled.get()).into(),
            Lie::NeverReady => 0,
            Lie::NeverIdle => 1,
            _ => self.enabled.get().into(),
        }
    }
    fn read64(&self, offset: u64) -> u64 {
        assert_eq!(offset, 0);
        if let Lie::Capabilities(value) = self.lie.get() { value } else { CAPABILITIES }
    }
    fn write32(&self, offset: u64, value: u32) {
        match offset {
            0x0c => {
                assert!(!self.enabled.get(), "masked before there can be one");
                self.masked.set(self.masked.get() | value);
            }
            // Enabled with entries of 64 and 16 bytes, pages of 4 KiB; or not.
            0x14 => {
                assert!(value == 0 || value == 4 << 20 | 6 << 16 | 1);
                self.enabled.set(value != 0);
                self.looks.set(0);
                let [submissions, completions] = self.admin.get();
                let entries = self.pairs.borrow()[0].entries;
                *self.pairs.borrow_mut() =
                    [Pair { submissions, completions, entries, ..Pair::default() }, Pair::default()];
            }
            0x24 => {
                assert!(value >> 16 == value & 0xffff && !self.enabled.get());
                self.pairs.borrow_mut()[0].entries = value as u16 + 1;
            }
            0x1000.. => {
                let index = (offset - 0x1000) / STRIDE;
                assert!(self.enabled.get() && offset.is_multiple_of(STRIDE) && index < 4);
                if index.is_multiple_of(2) {
                    self.ring(index as usize / 2, value as u16);
                } else {
                    let pair = self.pairs.borrow()[index as usize / 2];
                    assert_eq!(value, u32::from(pair.tail), "all that is completed is taken");
                }
            }
            _ => panic!("register {offset:#x}"),
        }
    }
    fn write64(&self, offset: u64, value: u64) {
        assert!(matches!(offset, 0x28 | 0x30) && !self.enabled.get());
        let mut admin = self.admin.get();
        admin[(offset as usize - 0x28) / 8] = value;
        self.admin.set(admin);
    }
}

/// Runs `test` with a controller that has not been started, and so much patience.
fn with<T>(
    model: &ModelController,
    test: impl FnOnce(&mut Controller<&ModelController>) -> T,
) -> Result<T, ControllerError> {
    let mut frames: Box<[Frame; PAGES]> = Box::new([const { Frame([0xff; PAGE]) }; PAGES]);
    let start = frames.as_mut_ptr().expose_provenance() as u64;
    let pages = core::array::from_fn(|number| {
        let at = start + (number * PAGE) as u64;
        SharedPage { memory: VirtAddr(at), address: DmaAddress(at) }
    });
    // SAFETY: the frames live as long as the controller, which is not seen elsewhere.
    let mut controller = unsafe { Controller::new(model, pages)? };
    Ok(test(&mut controller))
}

fn patience() -> impl FnMut() -> bool {
    let mut left = 3;
    move || {
        left -= 1;
        left > 0
    }
}

fn start(controller: &mut Controller<&ModelController>) -> Result<(), ControllerError> {
    controller.disable(&mut patience())?;
    controller.enable(true, &mut patience())
}

fn begun(model: &ModelController) -> Result<(), ControllerError> {
    with(model, |controller| {
        start(controller)?;
        controller.identify(&mut patience()).map(|_| ())
    })?
}

#[test]
fn a_controller_is_started_says_what_it_is_and_does_what_it_is_told() {
    let model = ModelController::new(Lie::None);
    let run = |controller: &mut Controller<&ModelController>| {
        assert_eq!(controller.patience(), 1000);
        // The second time as one that is given up and begun anew.
        for _ in 0..2 {
            start(controller).unwrap();
            let identity = controller.identify(&mut patience()).unwrap();
            assert_eq!((identity.serial(), identity.sectors), ("a serial number", 8192));
            for sector in 0..9 {
                controller.submit(&command(READ, sector << 32 | 5, 0x1_2345_6000, 4096));
                assert!(controller.has_some());
                assert_eq!(controller.take(), Ok(Some(0)));
                assert_eq!(controller.take(), Ok(None));
            }
        }
    };
    with(&model, run).unwrap();
    let done = model.done.borrow();
    assert_eq!(done.len(), 18);
    assert!(
        done.iter()
            .zip((0..9).cycle())
            .all(|(done, sector)| { *done == (READ, sector << 32 | 5, 8, [0x1_2345_6000, 0]) })
    );
}

#[test]
fn a_piece_is_whole_sectors_in_two_pages_at_most() {
    for (address, bytes, expected, second) in [
        (0x1000, 512, 512, 0),
        (0x1000, 4096, 4096, 0),
        (0x1000, 1 << 20, 8192, 0x2000),
        (0x1e00, 512, 512, 0),
        (0x1e04, 512, 512, 0x2000),
        (0x1ffc, 1 << 20, 4096, 0x2000),
        (0x1200, 1 << 20, 7680, 0x2000),
    ] {
        assert_eq!(piece(address, bytes), expected, "{address:#x}");
        let command = command(WRITE, 7, address, expected);
        assert_eq!((command.data, command.words), ([address, second], [7, 0, expected / 512 - 1]), "{address:#x}");
    }
}

#[test]
fn what_cannot_be_driven_is_refused() {
    type Expected = ControllerError;
    for (lie, expected) in [
        (Lie::Capabilities(0), Expected::NoCommands(0)),
        (Lie::Capabilities(CAPABILITIES | 1 << 48), Expected::PageSize(CAPABILITIES | 1 << 48)),
        (Lie::Capabilities(u64::MAX), Expected::Doorbells(0x4000)),
        (Lie::NeverReady, Expected::NotReady(0)),
        (Lie::NeverIdle, Expected::NotReady(1)),
        (Lie::Status(2), Expected::Refused(5, 2)),
        (Lie::NoNamespace, Expected::NoNamespace),
        (Lie::Shift(12), Expected::SectorSize(12)),
        (Lie::Shift(255), Expected::SectorSize(255)),
        (Lie::Metadata(8), Expected::Metadata(8)),
        (Lie::Metadata(0x100), Expected::Metadata(0x100)),
        (Lie::Phase, Expected::Silent(5)),
        (Lie::Fails, Expected::Fatal(2)),
        (Lie::Dies, Expected::Fatal(3)),
    ] {
        assert_eq!(begun(&ModelController::new(lie)), Err(expected));
    }
}

/// Each word of each command (3.3.3.1, 5.4, 5.5, 5.17; NVM Command Set Specification 1.0, 3.2.6), zero where it has no
/// field: not fused, by pages, without metadata.
#[test]
fn each_command_has_its_fields_and_nothing_else() {
    let model = ModelController::new(Lie::None);
    with(&model, |controller| {
        start(controller).unwrap();
        controller.identify(&mut patience()).unwrap();
        controller.submit(&command(WRITE, 0x12_3456_789a, 0x7_0000_0e00, 4096));
        assert_eq!(controller.take(), Ok(Some(0)));
    })
    .unwrap();
    let ([submissions, completions], io) = (model.admin.get(), model.pairs.borrow()[1]);
    let commands = model.commands.borrow();
    let identity = |at: usize| u64::from(commands[at].1[6]) | u64::from(commands[at].1[7]) << 32;
    let pages = [submissions, completions, io.submissions, io.completions, identity(2)];
    assert!(pages.iter().enumerate().all(|(at, page)| page % 4096 == 0 && !pages[..at].contains(page)), "{pages:x?}");
    // The queues have two entries each; identifiers count up in each pair of queues.
    for ((number, words), (queue, identifier, opcode, namespace, data, last)) in commands.iter().zip([
        (0, 1, 5, 0, [io.completions, 0], [1 << 16 | 1, 3, 0]),
        (0, 2, 1, 0, [io.submissions, 0], [1 << 16 | 1, 1 << 16 | 1, 0]),
        (0, 3, 6, 0, [identity(2), 0], [1, 0, 0]),
        (0, 4, 6, 1, [identity(2), 0], [0; 3]),
        (1, 1, WRITE, 1, [0x7_0000_0e00, 0x7_0000_1000], [0x3456_789a, 0x12, 7]),
    ]) {
        let half = |at: usize| (data[at / 2] >> (32 * (at % 2))) as u32;
        let mut expected = [0; 16];
        (expected[0], expected[1]) = (identifier << 16 | u32::from(opcode), namespace);
        (0..4).for_each(|at| expected[6 + at] = half(at));
        expected[10..13].copy_from_slice(&last);
        assert_eq!((*number, words), (queue, &expected), "{opcode:#x}");
    }
    assert_eq!(commands.len(), 5);
}

#[test]
fn without_messages_interrupts_are_masked_and_none_is_asked_for() {
    for (interrupts, masked, kind) in [(true, 0, 3), (false, u32::MAX, 1)] {
        let model = ModelController::new(Lie::None);
        with(&model, |controller| {
            controller.disable(&mut patience()).unwrap();
            controller.enable(interrupts, &mut patience()).unwrap();
        })
        .unwrap();
        assert_eq!((model.masked.get(), model.commands.borrow()[0].1[11]), (masked, kind));
    }
}

/// The last doorbell is that of queue 1 for completions: with a stride of 8 the four end at 0x1020.
#[test]
fn registers_have_room_for_all_doorbells() {
    for (bytes, result) in [
        (0x1000, Err(ControllerError::Doorbells(0x1000))),
        (0x101f, Err(ControllerError::Doorbells(0x101f))),
        (0x1020, Ok(())),
    ] {
        let model = ModelController::new(Lie::None);
        model.bytes.set(bytes);
        assert_eq!(with(&model, |_| ()), result, "{bytes:#x}");
    }
}

/// Three looks, by the patience of these tests: as long it may take to become idle, and to become ready.
#[test]
fn a_controller_has_its_own_time_to_become_idle_and_ready() {
    for (late, disabled, enabled) in
        [(2, Ok(()), Ok(())), (3, Err(ControllerError::NotReady(1)), Err(ControllerError::NotReady(0)))]
    {
        let model = ModelController::new(Lie::Late(late));
        let run = |controller: &mut Controller<&ModelController>| {
            model.lie.set(Lie::Late(late));
            assert_eq!(controller.disable(&mut patience()), disabled);
            model.lie.set(Lie::None);
            controller.disable(&mut patience()).unwrap();
            model.lie.set(Lie::Late(late));
            assert_eq!(controller.enable(true, &mut patience()), enabled);
        };
        with(&model, run).unwrap();
    }
    for (units, milliseconds) in [(0, 500), (1, 500), (2, 1000), (255, 127_500)] {
        let model = ModelController::new(Lie::Capabilities(CAPABILITIES & !(0xff << 24) | units << 24));
        assert_eq!(with(&model, |controller| controller.patience()), Ok(milliseconds));
    }
}

#[test]
fn a_controller_that_lies_is_found_out() {
    type Expected = Result<Option<u16>, ControllerError>;
    let violation = |violation: Violation| -> Expected { Err(violation.into()) };
    for (lie, expected) in [
        (Lie::Phase, Ok(None)),
        (Lie::Identifier(1), violation(Violation::Identifier(2))),
        (Lie::Identifier(u16::MAX), violation(Violation::Identifier(0))),
        (Lie::Queue(1), violation(Violation::Queue(2))),
        (Lie::Head(1), violation(Violation::Head(2))),
        (Lie::Status(0x281), Ok(Some(0x281))),
    ] {
        let model = ModelController::new(Lie::None);
        let run = |controller: &mut Controller<&ModelController>| {
            start(controller).unwrap();
            model.lie.set(lie);
            controller.submit(&command(WRITE, 0, 0x1000, 512));
            assert_eq!(controller.take(), expected);
            // One that has failed besides reports it, and is restarted when it no longer does.
            if lie == Lie::Phase {
                model.lie.set(Lie::Fails);
                assert_eq!(controller.take(), Err(ControllerError::Fatal(2)));
            }
            model.lie.set(Lie::None);
            start(controller).unwrap();
            controller.submit(&command(WRITE, 0, 0x1000, 512));
            assert_eq!(controller.take(), Ok(Some(0)));
        };
        with(&model, run).unwrap();
    }
}

/// The controller's view of memory at each barrier: empty queues before it is enabled, a command before its
/// doorbell (DMB OSHST), and the rest of a completion no earlier than after its phase (DMB OSHLD).
#[test]
fn barriers_are_between_queues_and_registers_and_behind_the_phase() {
    type Seen = Rc<RefCell<Vec<(&'static str, bool, bool)>>>;
    let model: &'static ModelController = Box::leak(Box::new(ModelController::new(Lie::None)));
    /// A word of a page of the test's.
    fn word(address: u64) -> *mut u32 {
        ModelController::words(address)
    }
    let run = |controller: &mut Controller<&ModelController>| {
        let seen = Seen::default();
        // Begun before, so that the queues are where the model knows, and not empty.
        start(controller).unwrap();
        let pages = {
            let io = model.pairs.borrow()[1];
            let [submissions, completions] = model.admin.get();
            [submissions, completions, io.submissions, io.completions]
        };
        controller.disable(&mut patience()).unwrap();
        let at_barrier = {
            let seen = seen.clone();
            move |barrier| {
                // SAFETY: pages of the test's, which outlive the controller.
                let is_empty =
                    pages.iter().all(|&page| unsafe { word(page).read() == 0 && word(page + 12).read() == 0 });
                seen.borrow_mut().push((barrier, is_empty, model.enabled.get()));
            }
        };
        at_each(at_barrier, || controller.enable(true, &mut patience())).unwrap();
        assert_eq!(seen.borrow()[0], ("dmb_oshst", true, false), "empty queues, and not yet enabled");

        seen.take();
        let before = model.done.borrow().len();
        let [submissions, completions] = [model.pairs.borrow()[1].submissions, model.pairs.borrow()[1].completions];
        let at_barrier = {
            let (seen, head) = (seen.clone(), u64::from(model.pairs.borrow()[1].head));
            move |barrier| {
                // SAFETY: as above.
                let opcode = unsafe { word(submissions + 64 * head).read() } as u8;
                seen.borrow_mut().push((barrier, opcode == WRITE, model.done.borrow().len() == before));
            }
        };
        // The queue of the completion is another, until the barrier.
        model.lie.set(Lie::Queue(1));
        at_each(at_barrier, || controller.submit(&command(WRITE, 0, 0x1000, 512)));
        assert_eq!(*seen.borrow(), [("dmb_oshst", true, true)], "the command, and no doorbell yet");
        assert_eq!(model.done.borrow().len(), before + 1);

        seen.take();
        let at_barrier = {
            let seen = seen.clone();
            move |barrier| {
                seen.borrow_mut().push((barrier, true, true));
                // SAFETY: as above; word 2 of the first completion: its queue, and the head of that.
                unsafe { word(completions + 8).write(1 << 16) };
            }
        };
        assert_eq!(at_each(at_barrier, || controller.take()), Ok(Some(0)));
        assert_eq!(*seen.borrow(), [("dmb_oshld", true, true)]);
    };
    with(model, run).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// A completion that is taken belongs to the command, whatever is written; all else is an error, or not there yet.
    #[test]
    fn what_a_noisy_controller_completes_is_taken_or_refused(noises in prop::collection::vec(any::<u64>(), 1..20)) {
        let model = ModelController::new(Lie::None);
        let mut taken = Vec::new();
        with(&model, |controller| {
            for &bits in &noises {
                model.lie.set(Lie::None);
                start(controller).unwrap();
                model.lie.set(Lie::Noise(bits));
                controller.submit(&command(WRITE, 0, 0x1000, 512));
                taken.push((model.noise.get(), controller.take()));
            }
        })
        .unwrap();
        for (noise, result) in taken {
            // Without the bits that say whether to try again, and when.
            let status = noise[3] >> 17 & 0x7ff;
            // Either head is one of a queue of two.
            let belongs = noise[2] & !1 == 0 && noise[3] & 0x1_ffff == 0;
            prop_assert_eq!(result.is_ok_and(|status| status.is_some()), belongs, "{:x?}: {:?}", noise, result);
            if belongs {
                prop_assert_eq!(result, Ok(Some(status as u16)));
            }
        }
    }

    /// A random identity is an error or a namespace that can be driven.
    #[test]
    fn what_a_noisy_controller_says_it_is_never_panics(bits: u64) {
        let model = ModelController::new(Lie::None);
        let identity = with(&model, |controller| {
            start(controller)?;
            model.lie.set(Lie::Noise(bits | 0xff_0000));
            controller.identify(&mut patience()).map(|identity| identity.serial().len())
        });
        prop_assert!(identity.is_ok_and(|identity| identity.is_ok_and(|serial| serial <= 20) || identity.is_err()));
    }
}
