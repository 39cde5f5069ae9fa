//! Kernels over a serial line: what `./x boot --serial` does, with QEMU's models for boards that run the loader, and a
//! pseudo terminal for the line.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::Duration;

use granule_host_tests::board::{OnALine, model, terminal_of};
use granule_host_tests::{built, own_file, skip_without_debians_tools};
use granule_protocol::{Event, Frame, Nonce, Order, Refusal, Request};
use granule_runner::load::{Entered, Files, load};
use granule_runner::machine;
use granule_runner::script;
use granule_runner::serial::{Deadline, Limit, Line, Lines, Port, Received};
use granule_runner::wire;
use serial2::SerialPort;

/// How long a loader may take to ask, and a kernel for a script.
const PATIENCE: Duration = Duration::from_secs(300);

/// A board of boards.toml that runs an image, with arguments of its card.
fn board(name: &str, image: &str, card: &str, per_million: u32) -> (OnALine, u32) {
    let board = machine::board(name).unwrap();
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    (OnALine::new(model(&board, &built(image), card, scratch), scratch, 11, per_million), board.baud)
}

fn kernel(initrd: Vec<u8>, bootargs: &str) -> Files {
    Files { kernel: fs::read(built("granule.img")).unwrap(), initrd, bootargs: bootargs.into() }
}

/// Loads the kernel into a model, runs a script there, and returns the session.
fn session(name: &str, initrd: Vec<u8>, level: u32, commands: &str) -> String {
    let (line, baud) = board(name, "granule-loader.img", "maxcpus=2 loglevel=debug", 0);
    let mut port = wire::open(&line.port, baud, None).unwrap();
    let files = kernel(initrd, "maxcpus=16 script");
    let (mut calls, mut whole) = (0, false);
    let entered = load(&mut port, &files, PATIENCE, &mut |arrived, all| {
        calls += 1;
        whole = arrived == all;
    });
    let entered = entered.unwrap();
    assert_eq!(entered.level, Some(level));
    assert!(calls > 100 && whole, "progress: {calls}");
    let mut session = Vec::new();
    let limit = Limit::Clock(PATIENCE);
    let wrong = script::run_over(&mut port, &entered.output, &script::lines(commands), limit, &mut session).unwrap();
    let session = String::from_utf8_lossy(&session).replace('\r', "");
    assert!(wrong.is_empty(), "{wrong:?}\n{session}");
    assert!(session.contains(&format!("entered at EL{level}")), "{session}");
    session
}

/// How many CPUs run, by the command `cpus`.
fn cpus(session: &str) -> usize {
    session.lines().filter(|line| line.starts_with("cpu ") && line.ends_with(" runs")).count()
}

/// At EL1, with PSCI, programs, and the boot arguments of the card before its own.
#[test]
#[ignore = "takes minutes: ./x test --long"]
fn a_kernel_is_loaded_with_its_initrd() {
    let initrd = fs::read(built("initrd.cpio")).unwrap();
    let session = session("virt", initrd, 1, "cpus\nrun hello\nlog\npoweroff");
    assert_eq!(cpus(&session), 3, "{session}");
    assert!(session.contains("hello from process"), "{session}");
    assert!(session.contains("branches patched"), "the log level is the card's: {session}");
}

/// At EL2, from which the loader had gone, and with the other CPUs still in the firmware's spin table; no initrd,
/// though the loader's tree has one.
#[test]
#[ignore = "takes minutes: ./x test --long"]
fn a_raspberry_pi_4_is_loaded_at_el2() {
    if skip_without_debians_tools("device trees") {
        return;
    }
    let session = session("raspi4b", Vec::new(), 2, "cpus\nmem");
    assert_eq!(cpus(&session), 4, "{session}");
    assert!(!session.contains("initrd"), "{session}");
}

/// At EL2, with PSCI and a GICv3.
#[test]
#[ignore = "takes minutes: ./x test --long"]
fn a_versal_is_loaded_at_el2() {
    let session = session("versal", Vec::new(), 2, "cpus");
    assert_eq!(cpus(&session), 2, "{session}");
}

/// A kernel for QEMU's `virt` of 34 instructions, `memory` bytes by its header. It prints "whole" and switches the
/// machine off if it lies at a multiple of 2 MiB, x1 to x3 are zero, it runs at EL1 with the MMU and the caches off and
/// all exceptions masked, and x0 is the address of a device tree. The rest of its bytes are noise.
fn small(memory: u64) -> Files {
    const CODE: [u32; 34] = [
        0x1000_000a,
        0xd101_014a,
        0xf240_515f,
        0x5400_0381,
        0xaa02_002b,
        0xaa03_016b,
        0xb500_032b,
        0xd538_424b,
        0xf100_117f,
        0x5400_02c1,
        0xd538_100b,
        0xd282_00ac,
        0xea0c_017f,
        0x5400_0241,
        0xd53b_422b,
        0xf10f_017f,
        0x5400_01e1,
        0xb940_000b,
        0x5281_ba0c,
        0x72bd_bfcc,
        0x6b0c_017f,
        0x5400_0141,
        0x1000_014d,
        0xd2a1_200e,
        0x3840_15ab,
        0x3400_006b,
        0xb900_01cb,
        0x17ff_fffd,
        0x5280_0100,
        0x72b0_8000,
        0xd400_0002,
        0x1400_0000,
        0x6c6f_6877,
        0x0000_0a65,
    ];
    let mut kernel = vec![0; 64];
    // A branch over the header; anywhere in memory.
    for (at, bytes) in [(0, 0x1400_0010u64), (16, memory), (24, 0b1010)] {
        kernel[at..at + 8].copy_from_slice(&bytes.to_le_bytes());
    }
    kernel[56..60].copy_from_slice(b"ARM\x64");
    kernel.extend(CODE.iter().flat_map(|word| word.to_le_bytes()));
    let mut random = 7u32;
    kernel.extend((0..2_000).map(|_| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 24) as u8
    }));
    Files { kernel, initrd: b"programs".to_vec(), bootargs: "one two".into() }
}

/// The kernel's output, for as long as it takes.
fn prints_whole(port: &mut Port, entered: &Entered) {
    let (mut session, deadline) = (entered.output.clone(), port.deadline(Limit::Clock(PATIENCE)));
    while !session.contains("whole") {
        let Received::Bytes(bytes) = port.receive(deadline) else { panic!("{session}") };
        session += &String::from_utf8_lossy(&bytes);
    }
}

/// One byte of a thousand is lost, doubled or changed, in each direction. A kernel that is too large is refused first,
/// and a load was broken off before: neither is in the way of the next.
#[test]
fn a_bad_line_and_refused_loads_end_in_a_whole_kernel() {
    let (line, baud) = board("virt", "granule-loader.img", "", 1000);
    let mut port = wire::open(&line.port, baud, None).unwrap();
    let refused = load(&mut port, &small(3 << 30), PATIENCE, &mut |_, _| {}).unwrap_err().to_string();
    assert!(refused.contains("not so much free memory in one piece"), "{refused}");
    let broken_off = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        load(&mut port, &small(9_000), PATIENCE, &mut |arrived, _| assert!(arrived < 500))
    }));
    assert!(broken_off.is_err());
    let entered = load(&mut port, &small(100 << 20), PATIENCE, &mut |_, _| {}).unwrap();
    assert!(matches!(entered.level, Some(1) | None), "{entered:?}");
    // A bad line may have damaged the word itself.
    if entered.output.is_empty() {
        prints_whole(&mut port, &entered);
    }
}

/// As above, with a line that is good. The loader maintains caches: QEMU has none, but lists the instructions that it
/// meets, and DC CIVAC is used for nothing else.
#[test]
fn a_kernel_is_entered_as_the_boot_protocol_has_it() {
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let met = own_file(scratch, "met");
    // Of a run that failed.
    _ = fs::remove_dir_all(&met);
    fs::create_dir_all(&met).unwrap();
    // A file for each process: the board starts again at its end.
    let list: [OsString; 4] = ["-d".into(), "in_asm".into(), "-D".into(), met.join("%d").into()];
    let board = machine::board("virt").unwrap();
    let qemu = model(&board, &built("granule-loader.img"), "", scratch).with(&list);
    let cleans = || {
        let texts = fs::read_dir(&met).unwrap().map(|file| fs::read(file.unwrap().path()).unwrap());
        let texts = texts.map(|text| String::from_utf8_lossy(&text).into_owned());
        let is_clean = |word: &str| u32::from_str_radix(word, 16).is_ok_and(|word| word & !0x1f == 0xd50b_7e20);
        texts.map(|text| text.split_whitespace().filter(|word| is_clean(word)).count()).sum::<usize>()
    };
    let line = OnALine::new(qemu, scratch, 11, 0);
    let mut port = wire::open(&line.port, board.baud, None).unwrap();
    let mut before = None;
    // While parts are on their way: with the last one the loader begins.
    let mut look = |arrived, all| {
        if arrived < all {
            before = Some(cleans());
        }
    };
    let entered = load(&mut port, &small(9_000), PATIENCE, &mut look).unwrap();
    assert_eq!((entered.level, before), (Some(1), Some(0)));
    prints_whole(&mut port, &entered);
    assert!(cleans() > 0);
    drop(line);
    fs::remove_dir_all(met).unwrap();
}

/// A line on which the load that is announced has another checksum. It keeps the number of the last request.
struct Forged {
    port: Port,
    last: (Nonce, u32),
}

impl Line for Forged {
    fn deadline(&self, limit: Limit) -> Deadline {
        self.port.deadline(limit)
    }

    fn receive(&mut self, deadline: Deadline) -> Received {
        self.port.receive(deadline)
    }

    fn send(&mut self, text: &str) {
        let (nonce, mut request) = Request::decode(text.trim()).unwrap();
        self.last = (nonce, request.sequence);
        if let Order::Load(load) = &mut request.order {
            load.checksum ^= 1;
        }
        let mut line = String::new();
        request.encode(nonce, &mut line).unwrap();
        self.port.send(&format!("\n{line}\n"));
    }
}

/// Nothing is entered that is not whole, and a load that was refused is over: another start finds none.
#[test]
fn a_refused_load_is_over() {
    let (line, baud) = board("virt", "granule-loader.img", "", 0);
    let mut forged = Forged { port: wire::open(&line.port, baud, None).unwrap(), last: (Nonce(0), 0) };
    let refused = load(&mut forged, &small(9_000), PATIENCE, &mut |_, _| {}).unwrap_err().to_string();
    assert!(refused.contains("what arrived has another checksum"), "{refused}");
    let (nonce, number) = forged.last;
    let mut start = String::new();
    Request { sequence: number + 1, order: Order::Start }.encode(nonce, &mut start).unwrap();
    forged.port.send(&format!("\n{start}\n"));
    let (mut lines, deadline) = (Lines::default(), forged.port.deadline(Limit::Clock(PATIENCE)));
    let answer = loop {
        let Received::Bytes(bytes) = forged.port.receive(deadline) else { panic!("the loader is silent") };
        let frames = lines.feed(&bytes).into_iter().filter_map(|line| Frame::decode(&line, nonce).ok());
        if let Some(frame) = frames.into_iter().find(|frame| frame.sequence == number + 1) {
            break frame.event;
        }
    };
    assert_eq!(answer, Event::Refused { why: Refusal::Order });
}

/// The loader is loaded, by the loader, and loads in its turn: the first has entered it at EL2, so it says that of the
/// next.
#[test]
fn a_loader_is_loaded_at_the_level_of_the_first() {
    let (line, baud) = board("versal", "granule-loader.img", "", 0);
    let mut port = wire::open(&line.port, baud, None).unwrap();
    let mut loader = small(9_000);
    loader.kernel = fs::read(built("granule-loader.img")).unwrap();
    for files in [loader, small(9_000)] {
        assert_eq!(load(&mut port, &files, PATIENCE, &mut |_, _| {}).unwrap().level, Some(2));
    }
}

#[test]
fn a_board_that_runs_the_tests_has_no_loader() {
    let (line, baud) = board("virt", "granule-tests.img", "", 0);
    let mut port = wire::open(&line.port, baud, None).unwrap();
    let why = load(&mut port, &small(9_000), PATIENCE, &mut |_, _| {}).unwrap_err().to_string();
    assert!(why.contains("runs the image of the tests, not the loader"), "{why}");
}

#[test]
fn a_silent_line_is_named() {
    let (near, far) = SerialPort::pair().unwrap();
    let mut port = wire::open(&terminal_of(&far), 115_200, None).unwrap();
    let why = load(&mut port, &small(9_000), Duration::from_secs(1), &mut |_, _| {}).unwrap_err().to_string();
    assert!(why.contains("no loader has asked for a kernel within 1 s"), "{why}");
    drop(near);
    let missing = wire::open(Path::new("/dev/none"), 115_200, None).unwrap_err();
    assert!(format!("{missing:#}").contains("cannot open /dev/none"), "{missing:#}");
}
