//! Every device tree of the newest arm64 kernel image package of Debian can be read, and its console, if it has one, is the
//! one that it names.
//!
//! A tree may lack the memory, which boot loaders put in: the test puts some in. It may lack a GIC: the parser says so last,
//! having read the rest.
//!
//! The console is looked for a second time here. The driver then takes over a page of memory in place of the registers,
//! and prints a line: whatever this changes must be in the registers that the tree names. SMMUs, host bridges, what
//! takes messages, PSCI and spin tables are looked for a second time too. docs/BOARDS.md has the tables of what is
//! driven and found; the test fails where that is not what it finds in the package that the tables name.
//!
//! The package is taken when the test runs, from the mirror that this machine's own package sources name, into lists and
//! a cache of the test's own: the system's stay as they are. Where it cannot be had, the test fails; on a system without
//! Debian's tools it is skipped. It keeps what it took under the target directory, by the package's version, so that a
//! mirror is asked for the trees once, and for the newest version once a day.
//!
//! `GRANULE_DEVICE_TREES` may name a directory with other trees, which is then read in its place.

#![allow(unsafe_code, reason = "memory in place of registers")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::{env, fs};

use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node as _, Property as _};
use granule::chip::uart::Port;
use granule::platform::{Conduit, EnableMethod, Platform, PlatformError, Uart};
use granule_arch::addr::{PhysAddr, PhysRange, VirtAddr};
use granule_runner::debian::{files, has_debians_tools, newest_trees};

/// In front of the registers, for them, and behind them.
const PAGE: usize = 4096;
/// Of so many trees so many at least are read, and so many have a driver for their console; of others as many in each.
const TREES: usize = 1649;
const READ: usize = 1643;
const DRIVEN: usize = 1440;

#[test]
fn every_device_tree_of_debians_newest_arm64_kernel_is_read() {
    let (directory, package) = match env::var_os("GRANULE_DEVICE_TREES") {
        Some(directory) => (PathBuf::from(directory), "GRANULE_DEVICE_TREES".into()),
        None if !has_debians_tools() => {
            // Past the harness: `./x test` reports the test as skipped, with this reason.
            let _ =
                writeln!(io::stderr(), "@skipped no apt-get and dpkg-deb here: GRANULE_DEVICE_TREES names a folder");
            return;
        }
        None => {
            let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("device-trees");
            newest_trees(&directory).expect("the package can be taken")
        }
    };
    let trees = files(&directory, "dtb");
    assert!(trees.len() > 500, "{package} has {} device trees", trees.len());
    let mut seen = Seen::default();
    for path in &trees {
        seen.tree(path, &fs::read(path).unwrap());
    }
    let Seen { refused, without, consoles, devices, .. } = seen;
    println!("{package}: {} device trees, {} refused", trees.len(), refused.len());
    println!("read, and no machine to boot on: {without:?}");
    assert!(refused.is_empty(), "{}", refused.join("\n"));
    // Each is read, and has an interrupt controller that there is a driver for.
    let read = trees.len() - without.values().sum::<usize>();
    assert!(read * TREES >= trees.len() * READ, "{read} of {}: {without:?}", trees.len());

    let driven: usize = consoles.iter().filter(|(console, _)| console.driver.is_some()).map(|(_, count)| count).sum();
    println!("{driven} have a driver for their console");
    assert!(driven * TREES >= trees.len() * DRIVEN, "{driven} of {}", trees.len());
    let tables = [table(&package, trees.len(), &consoles), device_table(&package, &devices)];
    let documented = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/BOARDS.md")).unwrap();
    if documented.contains(&package) {
        for table in tables {
            assert!(documented.contains(&table), "docs/BOARDS.md has another table:\n{table}");
        }
    } else {
        println!("{}", tables.join("\n"));
    }
}

/// The results of all trees.
#[derive(Default)]
struct Seen {
    refused: Vec<String>,
    /// By what is missing.
    without: BTreeMap<String, usize>,
    consoles: BTreeMap<Console, usize>,
    /// By kind: trees that have one, and that have several.
    devices: BTreeMap<&'static str, [usize; 2]>,
}

/// A row of the table.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Console {
    /// Its driver.
    driver: Option<&'static str>,
    /// The most general `compatible` of the node; or why there is none.
    what: String,
}

impl Seen {
    fn tree(&mut self, path: &Path, blob: &[u8]) {
        let name = path.display();
        let console = named_console(blob);
        let platform = match Platform::parse(blob) {
            Err(PlatformError::Missing { property: "reg", .. }) => Platform::parse(&with_memory(blob)),
            read => read,
        };
        match platform {
            Ok(platform) => {
                let described = Described::by(blob);
                described.check(&name.to_string(), &platform);
                for (kind, count) in described.counts() {
                    let [one, several] = self.devices.entry(kind).or_default();
                    *one += usize::from(count > 0);
                    *several += usize::from(count > 1);
                }
                let driver = platform.uart.map(|uart| uart.kind.name());
                match (&console, platform.uart) {
                    (Ok(Named { registers, .. }), Some(uart)) => {
                        let of_tree = (uart.registers.start().0, uart.registers.size());
                        assert_eq!(of_tree, *registers, "{name}: the registers are those of the node");
                        assert!(uart.used_bytes() <= uart.registers.size(), "{name}");
                        print_line(&uart);
                    }
                    (_, None) => {}
                    (Err(why), Some(uart)) => panic!("{name}: {why}, and {uart:?} is used"),
                }
                let what = console.map_or_else(str::to_owned, |named| named.compatible);
                *self.consoles.entry(Console { driver, what }).or_default() += 1;
            }
            Err(error @ PlatformError::Missing { .. }) => {
                *self.without.entry(error.to_string()).or_default() += 1;
            }
            Err(error) => self.refused.push(format!("{name}: {error}")),
        }
    }
}

/// The console that a tree names.
struct Named {
    compatible: String,
    /// Where its registers begin, and their bytes.
    registers: (u64, u64),
}

fn value<'t>(node: FdtNode<'t>, name: &str) -> Option<&'t [u8]> {
    node.property(name).and_then(|property| property.value_as().ok())
}

fn text(value: &[u8]) -> Vec<String> {
    let strings = value.split(|&byte| byte == 0).filter(|string| !string.is_empty());
    strings.map(|string| String::from_utf8_lossy(string).into_owned()).collect()
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

fn child<'t>(node: FdtNode<'t>, name: &str) -> Option<FdtNode<'t>> {
    let is = |child: &FdtNode<'_>| child.name() == name || child.name().split('@').next() == Some(name);
    node.children().find(is)
}

/// Whether a node may be used, if those above it may.
fn is_on(node: FdtNode<'_>) -> bool {
    value(node, "status").is_none_or(|status| matches!(status, b"okay\0" | b"ok\0"))
}

/// Bytes of addresses and of sizes on the bus that a node makes.
fn cells(node: FdtNode<'_>) -> [usize; 2] {
    let cells = |name, default| value(node, name).map_or(default, number) as usize * 4;
    [cells("#address-cells", 2), cells("#size-cells", 1)]
}

/// The console that the tree names, or why it names none that may be used.
fn named_console(blob: &[u8]) -> Result<Named, &'static str> {
    let fdt = Fdt::new_unchecked(blob);
    let root = fdt.root();
    let alias = |name: &str| value(child(root, "aliases")?, name).map(|path| text(path).concat());
    let named = child(root, "chosen").and_then(|chosen| {
        value(chosen, "stdout-path").or_else(|| value(chosen, "linux,stdout-path")).map(|path| text(path).concat())
    });
    let path = match named {
        Some(path) => {
            let path = path.split(':').next().unwrap_or_default().to_owned();
            if path.starts_with('/') { path } else { alias(&path).ok_or("`stdout-path` leads nowhere")? }
        }
        None => alias("serial0").ok_or("neither `stdout-path` nor `serial0`")?,
    };
    let mut way = vec![root];
    for component in path.split('/').filter(|component| !component.is_empty()) {
        let node = child(way[way.len() - 1], component).ok_or("`stdout-path` leads nowhere")?;
        if !is_on(node) {
            return Err("the console is disabled");
        }
        way.push(node);
    }
    let node = way[way.len() - 1];
    if node.children().any(is_on) {
        return Err("another device is on the console's line");
    }
    let compatible = value(node, "compatible").map(text).unwrap_or_default();
    let compatible = compatible.last().cloned().ok_or("the console has no `compatible`")?;
    Ok(Named { compatible, registers: registers(&way) })
}

/// Where the first registers of the last of these nodes begin for the CPU, and their bytes; the way to it begins with
/// the root. Zeros where it has none: a console may have a mailbox in their place.
fn registers(way: &[FdtNode<'_>]) -> (u64, u64) {
    let [address_bytes, size_bytes] = cells(way[way.len() - 2]);
    let reg = value(way[way.len() - 1], "reg").unwrap_or_default();
    let (mut address, size) = match reg.get(..address_bytes + size_bytes) {
        Some(first) => (number(&first[..address_bytes]), number(&first[address_bytes..])),
        None => (0, 0),
    };
    for pair in way[..way.len() - 1].windows(2).rev() {
        let ([_, bus_sizes], [child_bytes, parent_bytes]) = (cells(pair[1]), [cells(pair[1])[0], cells(pair[0])[0]]);
        let ranges = value(pair[1], "ranges").unwrap_or_default();
        let ranges = ranges.chunks_exact(child_bytes + parent_bytes + bus_sizes).find_map(|range| {
            let (from, rest) = range.split_at(child_bytes);
            let (to, length) = rest.split_at(parent_bytes);
            let offset = address.checked_sub(number(from)).filter(|offset| *offset < number(length))?;
            Some(number(to) + offset)
        });
        address = ranges.unwrap_or(address);
    }
    (address, size)
}

/// Calls `each` for every node below the last of `way` that may be used, with the way to it.
fn visit<'t>(way: &mut Vec<FdtNode<'t>>, each: &mut dyn FnMut(&[FdtNode<'t>])) {
    for child in way[way.len() - 1].children() {
        if is_on(child) {
            way.push(child);
            each(way);
            visit(way, each);
            way.pop();
        }
    }
}

/// A CPU: its number, and how it is started. A spin table has an address.
type Cpu = (u64, Option<(String, u64)>);

/// The devices of a tree that the kernel looks for, in the order of the tree.
#[derive(Default)]
struct Described {
    smmus: Vec<(u64, u64)>,
    /// With the entries of `ranges` that are windows.
    hosts: Vec<((u64, u64), usize)>,
    translators: Vec<(u64, u64)>,
    frames: Vec<(u64, u64)>,
    /// The conduit of each.
    psci: Vec<String>,
    cpus: Vec<Cpu>,
}

impl Described {
    fn by(blob: &[u8]) -> Self {
        let root = Fdt::new_unchecked(blob).root();
        let mut found = Self::default();
        visit(&mut vec![root], &mut |way| {
            let (node, bus) = (way[way.len() - 1], way[way.len() - 2]);
            for compatible in value(node, "compatible").map(text).unwrap_or_default() {
                match compatible.as_str() {
                    "arm,smmu-v3" => found.smmus.push(registers(way)),
                    "pci-host-ecam-generic" => found.hosts.push((registers(way), windows(node, bus).min(8))),
                    "arm,gic-v3-its" => found.translators.push(registers(way)),
                    "arm,gic-v2m-frame" => found.frames.push(registers(way)),
                    psci if psci.starts_with("arm,psci") => {
                        found.psci.push(value(node, "method").map(text).unwrap_or_default().concat());
                    }
                    _ => continue,
                }
                break;
            }
        });
        let cpus = child(root, "cpus").into_iter().flat_map(|cpus| cpus.children());
        for cpu in cpus.filter(|node| node.name().split('@').next() == Some("cpu")) {
            if value(cpu, "status").is_some_and(|status| status.starts_with(b"fail")) {
                continue;
            }
            let method = value(cpu, "enable-method").map(|method| text(method).concat());
            let address = value(cpu, "cpu-release-addr").map_or(0, number);
            found.cpus.push((number(value(cpu, "reg").unwrap()), method.map(|method| (method, address))));
        }
        found
    }

    /// Fails where the platform does not have all SMMUs and CPUs, and the first of each other kind.
    fn check(&self, name: &str, platform: &Platform) {
        let place = |range: PhysRange| (range.start().0, range.size());
        let smmus: Vec<_> = platform.smmus.iter().map(|smmu| place(smmu.registers)).collect();
        // There is room for so many.
        assert_eq!(smmus, self.smmus.iter().copied().take(8).collect::<Vec<_>>(), "{name}: SMMUs");
        let host = platform.pcie.as_ref();
        let host = host.map(|host| (place(host.ecam), host.windows.as_ref().map_or(0, |windows| windows.len())));
        assert_eq!(host, self.hosts.first().copied(), "{name}: host bridge and its windows");
        let translator = platform.its.map(|its| place(its.registers));
        assert_eq!(translator, self.translators.first().copied(), "{name}: ITS");
        let frame = platform.message_frame.map(|frame| place(frame.registers));
        assert_eq!(frame, self.frames.first().copied(), "{name}: GICv2m");
        let conduit = platform.psci.map(|psci| match psci.conduit {
            Conduit::Hvc => "hvc",
            Conduit::Smc => "smc",
        });
        let described = self.psci.first().map(String::as_str).filter(|method| ["hvc", "smc"].contains(method));
        assert_eq!(conduit, described, "{name}: PSCI");
        assert_eq!(platform.cpus.len() + platform.cpus_left_out, self.cpus.len(), "{name}: CPUs");
        for (cpu, (number, method)) in platform.cpus.iter().zip(&self.cpus) {
            let expected = match method.as_ref().map(|(method, address)| (method.as_str(), *address)) {
                Some(("psci", _)) => EnableMethod::Psci,
                Some(("spin-table", address)) => EnableMethod::SpinTable(PhysAddr(address)),
                _ => EnableMethod::Unknown,
            };
            assert_eq!((cpu.mpidr, cpu.enable_method), (*number, expected), "{name}: CPU {number:#x}");
        }
    }

    /// How many of each kind, in words of the table.
    fn counts(&self) -> [(&'static str, usize); 6] {
        let is_spin = |(_, method): &&Cpu| method.as_ref().is_some_and(|(method, _)| method == "spin-table");
        [
            ("`arm,smmu-v3`: all", self.smmus.len()),
            ("`pci-host-ecam-generic`: the first", self.hosts.len()),
            ("`arm,gic-v3-its`: the first", self.translators.len()),
            ("`arm,gic-v2m-frame`: the first", self.frames.len()),
            ("`arm,psci`, `-0.2`, `-1.0`: the first", self.psci.len()),
            ("CPUs with `spin-table`: all", self.cpus.iter().filter(is_spin).count()),
        ]
    }
}

/// Entries of a host bridge's `ranges` that are no configuration space.
fn windows(node: FdtNode<'_>, bus: FdtNode<'_>) -> usize {
    let entry = 3 * 4 + cells(bus)[0] + 2 * 4;
    value(node, "ranges").unwrap_or_default().chunks_exact(entry).filter(|entry| entry[0] & 3 != 0).count()
}

/// The tree with 1 GiB of memory more, as a boot loader puts it in.
fn with_memory(blob: &[u8]) -> Vec<u8> {
    let header = |index: usize| number(&blob[4 * index..][..4]) as usize;
    let [total, structure, strings, structure_bytes] = [1, 2, 3, 9].map(header);
    let string = |name: &str| {
        let name = format!("{name}\0");
        blob[strings..total]
            .windows(name.len())
            .position(|at| at == name.as_bytes())
            .expect("the tree has the property")
    };
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<_>>();
    let reg: Vec<u8> = [0x8000_0000_u64, 0x4000_0000]
        .into_iter()
        .zip(cells(Fdt::new_unchecked(blob).root()))
        .flat_map(|(value, bytes)| value.to_be_bytes()[8 - bytes..].to_vec())
        .collect();
    let node = [
        words(&[1]),
        b"memory@put-in\0\0\0".to_vec(),
        words(&[3, 7, string("device_type") as u32]),
        b"memory\0\0".to_vec(),
        words(&[3, reg.len() as u32, string("reg") as u32]),
        reg,
        words(&[2]),
    ]
    .concat();
    // In front of the ends of the root and of the structure.
    let mut tree = blob.to_vec();
    let at = structure + structure_bytes - 8;
    tree.splice(at..at, node.iter().copied());
    let moved = if strings > structure { strings + node.len() } else { strings };
    for (index, value) in [(1, total + node.len()), (3, moved), (9, structure_bytes + node.len())] {
        tree[4 * index..][..4].copy_from_slice(&(value as u32).to_be_bytes());
    }
    tree
}

/// Takes the port over and prints a line, with memory in place of registers, once all zeros and once all ones: so each
/// write changes one of the two. None is outside the registers that the driver asked for.
fn print_line(uart: &Uart) {
    let line = b"Granule\r\n";
    let mut printed = false;
    for fill in [0, u64::MAX] {
        let mut memory = vec![fill; 3 * PAGE / 8];
        let registers = VirtAddr::from_ptr(memory.as_mut_ptr().wrapping_byte_add(PAGE));
        // SAFETY: memory of the test in place of registers, of which three pages are there.
        let port = unsafe { Port::new(uart, registers) }.expect("the address is not zero");
        check_changes(uart, &memory, fill);
        // Flags that a one clears are gone.
        memory.fill(fill);
        printed |= port.console().write(line) == line.len();
        port.console().set_receive_interrupt(true);
        port.console().set_transmit_interrupt(true);
        check_changes(uart, &memory, fill);
    }
    assert!(printed, "{uart:?} has room neither with zeros nor with ones");
}

fn check_changes(uart: &Uart, memory: &[u64], fill: u64) {
    let bytes = memory.iter().flat_map(|word| word.to_ne_bytes()).enumerate();
    let changed: Vec<usize> = bytes.filter(|&(_, byte)| u64::from(byte) != fill & 0xff).map(|(at, _)| at).collect();
    let used = PAGE..PAGE + uart.used_bytes() as usize;
    assert!(changed.iter().all(|at| used.contains(at)), "{uart:?}: {changed:x?} of {used:x?}");
}

/// The table of docs/BOARDS.md.
fn table(package: &str, trees: usize, consoles: &BTreeMap<Console, usize>) -> String {
    let mut rows: Vec<_> = consoles.iter().collect();
    rows.sort_by_key(|(console, count)| (console.driver.is_none(), std::cmp::Reverse(**count)));
    let mut table =
        format!("{trees} trees of `{package}`:\n\n| console | driver | trees | in all |\n|---|---|---:|---:|\n");
    let mut all = 0;
    for (Console { driver, what }, count) in rows {
        all += count;
        let what = if what.contains(' ') { what.clone() } else { format!("`{what}`") };
        let driver = driver.map_or_else(|| "none".to_owned(), |driver| format!("`{driver}`"));
        writeln!(table, "| {what} | {driver} | {count} | {all} |").unwrap();
    }
    table
}

/// The table of docs/BOARDS.md of other devices.
fn device_table(package: &str, devices: &BTreeMap<&'static str, [usize; 2]>) -> String {
    let mut table =
        format!("Of `{package}`:\n\n| device: which the kernel takes | trees | with several |\n|---|---:|---:|\n");
    for (kind, [one, several]) in devices {
        writeln!(table, "| {kind} | {one} | {several} |").unwrap();
    }
    table
}
